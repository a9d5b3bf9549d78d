/* SPDX-License-Identifier: Apache-2.0 */
/* blob.h: the bytes of one content on this disk: block list, which blocks are present, fetches under way. Named by content identity, so that equal contents
 * share one blob. Two homes: contents under 1 MiB in pack segments (64 MiB files, slots reused in place), larger ones in one sparse file each, recycled from a pool. The index is a SQLite file of its own
 * (losable: an index that is gone only empties the cache). XXH3-64 per 4 KiB is checked on every read served; SHA-256 before first use, and again before first use after a
 * change of boot id. LRU by block, hard limit over everything on disk (stage.h's bytes are charged here too).
 * I/O and hashing happen outside locks. A block is pinned while it is read or refilled. No polling. */
#pragma once
#include "base/blocklist.h"
#include "base/clock.h"
#include "base/counters.h"
#include "base/thread.h"
#include "cache/seams.h"

struct blobs;
struct blob;
struct blobs_config {
        const char *dir;              /* cache directory (exists, locked by the caller) */
        uint64_t limit_bytes;         /* of everything below dir that cache/ owns */
        uint64_t free_floor_bytes;    /* of the file system */
        uint64_t reserve_bytes;       /* that data leaves free whatever the floor says, so that the SQLite files can grow */
        struct clock *clock; struct counters *counters;
        struct executor *workers;     /* hashing, eviction */
        struct source *source;        /* may be set later with blobs_set_source */
        bool new_boot;                /* nothing on disk is trusted before its hash was checked again */
        bool by_hand;                 /* for simulations on one thread: no waiting thread (blobs_turn), and blob_pread never waits; what is not here is fetched, and it returns -EHOSTDOWN */
};
int blobs_open(const struct blobs_config *c, struct blobs **ret) _must_check_;
void blobs_close(struct blobs *b);    /* every fetch was cancelled and done before */
void blobs_set_source(struct blobs *b, struct source *s);
/* by_hand: one step of what the waiting thread does otherwise (reads that end, deadlines, the index); and when it is due, on the clock's monotonic ms: 0 now, INT64_MAX never. */
void blobs_turn(struct blobs *b);
int64_t blobs_due(struct blobs *b);

/* A reference to the blob of a content; made (empty) if not here. Never blocks on network; at most 1 SELECT when not in memory. */
int blob_get(struct blobs *b, const struct content *content, struct blob **ret) _must_check_;
struct blob *blob_ref(struct blob *blob);
void blob_put(struct blob *blob);
const struct content *blob_content(const struct blob *blob);
/* Block list, if known here: -ENODATA otherwise. Valid while the reference is held. */
int blob_list(struct blob *blob, const struct blocklist **ret) _must_check_;
/* Gets the list alone, if it is not known: its pages are fetched, no byte of the content. Blocking, for workers. -EBUSY: a reader is about to bring it; else as blob_pread, or -EHOSTDOWN when by_hand. */
int blob_fetch_list(struct blob *blob, int64_t deadline_ms) _must_check_;
bool blob_complete(struct blob *blob); /* every block present */

/* Reads [off, off + n) clipped to the size. Everything present: fills buf, returns the byte count (0 SQL, 0 HTTP, 0 malloc). Otherwise claims the missing run, asks the source once,
 * and returns -EINPROGRESS: r->done comes exactly once, from another thread, no lock held, with the count or -EHOSTDOWN, -ETIMEDOUT, -EBADMSG->-EIO, -EINTR
 * (blob_read_cancel), -EKEYREJECTED. Other readers of the same block wait on that fetch. Source offline: -EHOSTDOWN at once. */
struct blob_read {
        struct blob *blob; uint64_t off; void *buf; size_t n;
        int64_t deadline_ms;          /* monotonic; -ETIMEDOUT after it */
        void (*done)(struct blob_read *r, ssize_t result);
        void *owner;
        bool exact;                   /* a worker that knows what it needs: nothing is read ahead, a stream of others is not disturbed, and what is damaged here and cannot be fetched now is -EHOSTDOWN, not -EIO: it comes again */
        bool crawler;                 /* what is not here is fetched only if its block begins before `head`, else -EHOSTDOWN with `refused`; it enters at the cold end; using it leaves the order as it is. With exact */
        uint64_t head; bool refused;
        struct blob_read *next, *prev; int state; void *priv; /* blob.c's */
};
ssize_t blob_read(struct blob_read *r) _must_check_;
void blob_read_cancel(struct blob_read *r);  /* done comes with -EINTR unless it already came */
/* Blocking forms, for workers (upload, chunking, scrub) and tests. */
ssize_t blob_pread(struct blob *blob, uint64_t off, void *buf, size_t n, int64_t deadline_ms) _must_check_;
ssize_t blob_pread_exact(struct blob *blob, uint64_t off, void *buf, size_t n, int64_t deadline_ms) _must_check_;
int blob_prefetch(struct blob *blob, uint64_t off, uint64_t n) _must_check_;

/* A block by its hash from anything that is cached here (used before any download, and for chunk reuse): copies into buf (refs' bytes), verified. -ENODATA. */
int blobs_find_block(struct blobs *b, const struct blockref *ref, void *buf) _must_check_;
/* A new content whose bytes are on this disk already: stage.c gives a file over (large; fd's file is renamed from `path` into the pool of blob files: same file
 * system) or the bytes (small). present: bitmap of list's blocks that the file really holds. Hashed and summed at first use. Later reads need no download. */
struct blobs_handover {               /* who still reads the file by a descriptor of its own */
        void (*now)(struct blobs_handover *h); /* once, before a byte may leave the file: from here on readers must come to the blob. Not called if the call fails */
};
int blobs_adopt_file(struct blobs *b, const struct content *content, const struct blocklist *list, const char *path, const uint8_t *present, struct blobs_handover *h) _must_check_;
int blobs_adopt_bytes(struct blobs *b, const struct content *content, const struct blocklist *list, const void *bytes) _must_check_;
/* The content is no longer shown by any node: its blocks are the first to go. A hint. */
void blobs_drop_hint(struct blobs *b, const struct content *content);

/* ---- room: the one account of everything on disk ---- */
/* Takes n bytes for stages, evicting clean blocks if needed. -ENOSPC: nothing more can be evicted (the caller parks the writer on blobs_on_room). */
int blobs_charge(struct blobs *b, uint64_t n) _must_check_;
void blobs_discharge(struct blobs *b, uint64_t n);
/* Bytes of stages that are on the disk already (found at start): never refused. */
void blobs_charge_found(struct blobs *b, uint64_t n);
/* Called (queues only) whenever room was freed. Set once. */
void blobs_on_room(struct blobs *b, void (*room)(void *arg), void *arg);
/* An empty sparse file for a stage, from the pool or new: O_RDWR fd and its path (PATH_MAX). Not charged until written. */
int blobs_file_take(struct blobs *b, int *ret_fd, char *ret_path, size_t n) _must_check_;
int blobs_file_return(struct blobs *b, const char *path) _must_check_; /* truncated and pooled */
struct blobs_totals { uint64_t bytes, limit_bytes, dirty_bytes, blobs, blocks; };
void blobs_totals(struct blobs *b, struct blobs_totals *ret);
int blobs_set_limit(struct blobs *b, uint64_t limit_bytes) _must_check_;  /* evicts down to it */
/* The disk (not the account) has no room: clean, unpinned blocks go. True: some did. */
bool blobs_shed(struct blobs *b);
/* More than half of the reserve is used up. A system call if the disk was not far from that when it was looked at last; blobs_measure looks. */
bool blobs_tight(struct blobs *b);
void blobs_measure(struct blobs *b);
int blobs_evict_all(struct blobs *b) _must_check_;                        /* clean, unpinned */
int blobs_flush(struct blobs *b) _must_check_;                            /* every row that has changed to the index, which a kill of the process does not take back. 1 SQL transaction */
int blobs_sync(struct blobs *b) _must_check_;                             /* index (LRU order) to disk, at close and every minute */
/* Blocks of contents whose root begins with one of these (the first 8 bytes, little endian) are not evicted from now on; replaces the set of the call before. -ENOMEM: as it was. */
int blobs_keep(struct blobs *b, const uint64_t *roots, size_t n) _must_check_;
/* Blocks that pending edits stand on are not evicted while they could not be fetched again (may_fetch false), and after all others while they could. Set once; called with no lock held. look: a moment's
 * state, or NULL (no memory: nothing is evicted then); need: is block [start, end) of that content among them? `before`: where the one that lies
 * NEEDS_BEHIND blocks before it begins. */
#define NEEDS_BEHIND 2u
struct blobs_needs {
        void *(*look)(void *arg);
        bool (*need)(void *look, const struct content *content, uint64_t before, uint64_t start, uint64_t end);
        void (*end)(void *look);
        bool (*may_fetch)(void *arg);
        void *look_arg, *fetch_arg;
};
void blobs_set_needs(struct blobs *b, const struct blobs_needs *needs);
/* Everything present against SHA-256. A bad block is dropped, so that a read fetches it again; with heal_ms it is fetched here, each for that long at most. -ECANCELED: *stop was set. */
struct blobs_scrub {
        int64_t heal_ms;              /* 0: drop only */
        _Atomic bool *stop;           /* or NULL */
        _Atomic uint64_t checked, bad, healed; /* may be read while it goes on */
};
int blobs_scrub(struct blobs *b, struct blobs_scrub *s) _must_check_;
/* The same in pieces. Blocks have numbers that rise, and stay when others come and go: the first max of those above `after`, and how many there are in all. */
int blobs_blocks_after(struct blobs *b, uint64_t after, uint64_t *ret, size_t max, size_t *ret_n, uint64_t *ret_left) _must_check_;
/* One of them, which may be gone. unchecked: only if its hash was not compared since the last power cut. ret_bytes: what was read. */
int blobs_scrub_block(struct blobs *b, uint64_t number, bool unchecked, struct blobs_scrub *s, uint64_t *ret_bytes) _must_check_;
