/* SPDX-License-Identifier: Apache-2.0 */
/* stage_seg.h: the shared write log: records and bytes of small stages in preallocated segment files, synced together. */
#pragma once
#include "base/clock.h"
#include "base/lock.h"
#include "cache/blob.h"
#include "stage_log.h"

#define SEGMENT_BYTES (4u << 20)
#define SEGMENT_SLACK (256u << 10) /* control records may go this far beyond a full segment */
#define RANK_SEGMENT (RANK_STAGE + 5)

struct segment {
        struct segments *owner;
        struct segment *next;      /* owner's lock */
        int fd;
        uint32_t number;           /* file log-%08u */
        struct id salt;
        uint64_t order;
        uint64_t end;              /* owner's lock: reserved so far */
        uint64_t synced;           /* owner's lock: everything before it is on the platter */
        uint64_t marked;           /* owner's lock: end after the last sync mark */
        struct seg_writing *writing; /* owner's lock: reservations that are being written */
        unsigned refs;             /* owner's lock: stages with records here, and readers */
        bool full;                 /* owner's lock: takes no more */
        bool failed;               /* owner's lock, set under sync too: a sync of it failed; what was not synced before never is */
        struct lock sync;          /* RANK_STAGE_IO, with nothing else: who asks the disk */
};
struct segments;
struct segments_config { int dir_fd; struct blobs *blobs; struct rng *rng; uint32_t segment_bytes; uint64_t order; /* first free */ };
int segments_new(const struct segments_config *c, struct segments **ret) _must_check_;
void segments_free(struct segments *s);
uint32_t segments_number(struct segments *s);                    /* a fresh file number, for own logs and data files too */
void segments_number_above(struct segments *s, uint32_t number); /* numbers up to this are in use */

/* Makes sure that a record of this size fits now: creates a segment if need be (charged, preallocated). No lock held. -ENOSPC: no room. */
int segments_prepare(struct segments *s, uint64_t record_bytes) _must_check_;
/* Appends. control: small and never refused for lack of a place. Returns with a reference to the segment. -EAGAIN (not for control): segments_prepare first. */
int segments_append(struct segments *s, const struct slog_entry *e, const void *payload, bool control, struct segment **ret, uint64_t *ret_pos) _must_check_;
struct segment *segment_ref(struct segment *seg);
void segment_put(struct segment *seg);
bool segment_is_synced(struct segment *seg, uint64_t pos);
bool segment_failed(struct segment *seg);
/* Everything appended before the call is on the platter, but for what lies in segments that have failed (segment_failed); those take no more records. Returns the first failure. No lock held. */
int segments_sync(struct segments *s) _must_check_;
/* Emptied segments become spare or go. May fsync; no lock held. */
void segments_tidy(struct segments *s);
/* The oldest segment, if few stages keep it and it alone keeps emptied ones from being used again: a reference, or NULL. */
struct segment *segments_pinned(struct segments *s);
/* Recovery: a segment file as found, already full. Holds one reference for the caller. fd is taken over. */
int segments_found(struct segments *s, uint32_t number, int fd, const struct slog_file *f, uint64_t end, struct segment **ret) _must_check_;
/* After its scan: where its records end, and what its last sync mark says. */
void segments_found_end(struct segment *seg, uint64_t end, uint64_t synced);
uint64_t segments_each(const struct segments *s);                /* bytes that one is charged with */
uint64_t segments_bytes(struct segments *s);                     /* on disk */
