/* SPDX-License-Identifier: Apache-2.0 */
/* blob_priv.h: what the files blob*.c share. blob.c has the table, blob_open.c opening and closing, blob_read.c reads and waiters, blob_fetch.c the source's side, blob_store.c blocks on disk,
 * blob_evict.c room, index writes and scrub, blob_adopt.c contents that come from stages.
 *
 * Locks, in rising rank: index (SQLite and everything that must not pass it), table (who is in memory), blob (one per blob: states, pins, waiters), wait (the waiting
 * thread's lists), lru, room, pack, files (leaves). Besides them `punch`, a read-write lock: whoever writes a block into a sparse file holds it shared, whoever
 * punches holds it alone, because blocks share 4 KiB pages at their edges; no ranked lock but blob (and leaves) is taken under it. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>

#include "base/lock.h"
#include "cache/blob.h"
#include "blob_file.h"
#include "blob_index.h"
#include "lru.h"
#include "pack.h"
#include "room.h"

#define RANK_BLOB_INDEX (RANK_BLOB - 4)
#define RANK_BLOB_TABLE (RANK_BLOB - 2)
#define RANK_BLOB_WAIT (RANK_BLOB + 2)

#define PIECE_BYTES 4096u                        /* what one sum covers, counted from the block's start */
#define PACK_CONTENT_MAX (UINT64_C(1) << 20)     /* contents below it live in the pack */
#define FILE_CHARGE (2 * ROOM_PAGE)              /* one sparse file: a page of sums at least, a leaf of extents */
#define FILL_BYTES_MAX (7u << 20)                /* blocks asked for in one fetch */
#define FIRST_RANGE_BYTES (UINT64_C(1) << 20)    /* asked for at the start of a content whose list is unknown */
#define READAHEAD_BYTES_MAX (UINT64_C(8) << 20)
#define READAHEAD_BYTES_MIN (UINT64_C(512) << 10)
#define HELD_BYTES_MAX (UINT64_C(32) << 20)      /* blocks in memory: before their list is known, or when the disk has no room */
#define DIRTY_BLOBS_MAX 256u                     /* rows in one index transaction, about */
#define FLUSH_AFTER_MS 5000
#define ORDER_EVERY_MS 60000
#define REDRIVES_MAX 8

/* One block. Transitions (L = under the blob's lock):
 *   0 -> BUSY               claimed by a fetch, a local copy, an adoption (L)
 *   BUSY -> PRESENT|CHECKED bytes and sums are on disk (L)
 *   BUSY -> MEM             no room on disk: bytes in memory until nobody waits for them (L)
 *   BUSY -> 0               fetch failed (L)
 *   PRESENT -> +CHECKED     SHA-256 compared, sums written (L)
 *   PRESENT -> BUSY         being evicted: unpinned, unwanted (L) -> index written -> punched -> 0 (L)
 *   0 -> BUSY|COLD          claimed for a crawler: enters at the cold end of the LRU. A claim without COLD takes it away (L)
 *   PRESENT -> BUSY|DROP    damaged; the last pin releases it (DAMAGED stays until it is stored again) */
enum block_state { BS_PRESENT = 1, BS_CHECKED = 2, BS_BUSY = 4, BS_MEM = 8, BS_BAD = 16, BS_DAMAGED = 32, BS_DROP = 64, BS_COLD = 128 };

struct held { struct held *next; struct digest hash; uint32_t index; uint32_t bytes; uint8_t data[]; };
#define HELD_UNPLACED UINT32_MAX

/* One fetch under way. In blob->fills from start to done; guarded by the blob's lock. */
struct fill {
        struct fetch fetch;
        struct fill *next;
        struct blob *blob;            /* a reference */
        bool list;                    /* asked for pages: the list was unknown when it started */
        bool cold;                    /* list: what it brings enters at the cold end */
        bool cancelled;
        bool dropped;                 /* something that came had to be let go: what is missing may be asked for again */
        unsigned bad;                 /* wrong bytes came */
        size_t n, room; uint32_t *index; /* blocks claimed and not delivered */
        struct digest hashes[];
};

enum { READ_IDLE = 0, READ_WAITING, READ_RUNNING, READ_RUNNING_CANCELLED };

struct blob {
        struct blobs *owner;
        struct content content;
        uint32_t id;
        _Atomic unsigned refs;
        /* table lock */
        struct blob *by_content, *by_id;          /* chains */
        struct blob *idle_prev, *idle_next; bool idle;
        struct blob *dirty_next; bool dirty;      /* a reference */
        bool list_saved;                          /* index lock */
        /* wait lock */
        struct blob *wait_next; bool waiting;     /* a reference */
        struct blob *kick_next; bool kicked;      /* a reference */

        struct lock lock;
        /* guarded by lock from here on; list, starts: set once, then read freely by whoever has seen list_known */
        bool list_known;
        unsigned list_bad;
        struct blocklist list; uint64_t *starts;
        uint8_t *state; uint16_t *pins; uint32_t *place;
        size_t n_present, n_busy;
        uint32_t file; int data_fd, sums_fd;      /* file 0: none; stable while a block is pinned or busy */
        struct held *held; size_t n_held;
        struct blob_read *waiters;                /* doubly linked */
        struct fill *fills;
        bool list_wanted;                         /* a fill with `list` is under way */
        uint64_t seq_next, window;                /* sequential reads */
        uint32_t last_block;                      /* touched last */
};

#define TABLE_BUCKETS 4096u
struct blobs {
        struct clock *clock; struct counters *counters; struct executor *workers; bool by_hand;
        char *dir;
        int dir_fd;
        uint64_t reserve;                         /* of the disk, for SQLite's files */
        _Atomic uint64_t disk_free;               /* as last seen */
        _Atomic(struct source *) source;

        struct lock index_lock;
        struct blob_index *index;                 /* NULL after damage: nothing is remembered until the next open */
        uint64_t order_touches;                   /* touches at the last save of the order, */
        int64_t order_at_ms;                      /* and when the next is due */

        struct lock table_lock;
        struct blob *by_content[TABLE_BUCKETS], *by_id[TABLE_BUCKETS];
        struct blob *idle_first[2], *idle_last[2]; size_t n_idle[2]; /* 0: pack, 1: sparse (descriptors); first = longest idle */
        struct blob *dirty; size_t n_dirty;
        uint32_t next_id;

        struct lock lru_lock;
        struct lru *lru;
        uint64_t touches;                         /* lru lock */
        uint64_t *keep; size_t n_keep;            /* lru lock; sorted: blobs_keep */
        struct blobs_needs needs;                 /* fixed */

        struct room room;
        struct pack *pack;
        struct blob_files *files;
        pthread_rwlock_t punch;

        struct lock wait_lock;
        struct cond wait_more, wait_idle;
        struct blob *waiting, *kicked;            /* wait lock */
        struct blob_read *finished;               /* wait lock: done must come from the waiting thread; result in priv */
        int64_t next_deadline_ms, flush_at_ms;    /* wait lock; INT64_MAX: none */
        bool stop, wait_started;
        size_t inflight;                          /* wait lock: fetches not done */
        pthread_t wait_thread;

        void (*on_room)(void *arg); void *on_room_arg;
        _Atomic uint64_t held_bytes, n_blobs;
};

/* ---- blob.c ---- */
struct blob *blob_by_id(struct blobs *b, uint32_t id);         /* a reference, or NULL */
int blob_new(struct blobs *b, const struct content *content, struct blob_row *row /* or NULL */, struct blob **ret) _must_check_; /* not in the table yet */
void blob_free(struct blob *blob);                             /* not in the table any more */
void blobs_forget_idle(struct blobs *b);
struct blob *blob_if_known(struct blobs *b, const struct content *content); /* in memory or in the index; else NULL */
void blob_mark_dirty(struct blob *blob);                       /* its row must be written; flushes when many wait. No lock of this layer held. */
int blob_set_list_locked(struct blob *blob, struct blocklist *list) _must_check_; /* takes the list over */
static inline void cleanup_blob_p(struct blob **blob) { if (*blob) blob_put(*blob); }
#define _cleanup_blob_ _cleanup_(cleanup_blob_p)

/* ---- blob_store.c: one block ---- */
void block_state_locked(struct blob *blob, size_t i, uint8_t clear, uint8_t set); /* keeps the counts */
uint32_t block_hash32(const struct blob *blob, size_t i);
/* Bytes of a pinned block, verified. -EBADMSG: damaged. No lock held. */
int block_read(struct blob *blob, size_t i, uint32_t off, uint32_t n, void *buf) _must_check_;
/* Stores a block that the caller has claimed (BUSY); bytes are known to match the hash. Ends as PRESENT or MEM; -errno: unclaimed. No lock held. */
int block_store(struct blob *blob, size_t i, const void *bytes) _must_check_;
/* PRESENT was cleared and BUSY set by the caller, the index has been told: gives the space back and clears BUSY. */
void block_release(struct blob *blob, size_t i);
/* A pinned block turned out to be damaged (the caller unpins it afterwards). */
void block_damaged(struct blob *blob, size_t i);
void blocks_unpin(struct blob *blob, size_t first, size_t last);
unsigned block_pages(uint32_t bytes);                          /* extent of a block in the pack: bytes, padding, sums */
void block_sums_range(const struct blob *blob, size_t i, uint64_t *ret_start, uint64_t *ret_end); /* in the sparse file's .sums */
uint64_t block_charge(const struct blob *blob, size_t i);
bool block_wanted_locked(const struct blob *blob, size_t i);
int blob_fds(struct blob *blob) _must_check_;                  /* opens the sparse file's descriptors if needed */
int held_add_locked(struct blob *blob, const struct digest *hash, uint32_t index, const void *p, size_t n) _must_check_;
struct held *held_find_locked(struct blob *blob, const struct digest *hash);
void held_trim_locked(struct blob *blob);                      /* lets go what nobody waits for */
void held_drop_all_locked(struct blob *blob);
/* Before a download: the same block somewhere else here. Claimed by the caller. 0: stored; -ENODATA: still claimed. */
int block_reuse(struct blob *blob, size_t i) _must_check_;
bool block_has_twin(struct blob *blob, size_t i);              /* some cached block may have this hash; leaf lock only */

/* ---- blob_read.c ---- */
void blob_drive(struct blob *blob, bool may_fetch);            /* completes what can be completed, asks for what is missing */
void blob_kick(struct blob *blob);                             /* the waiting thread drives it soon; any lock below wait may be held */
void blob_finish_later(struct blob_read *r, ssize_t result, struct blobs *b);
void waiter_unlink_locked(struct blob *blob, struct blob_read *r);
void blob_range(const struct blob *blob, uint64_t off, uint64_t n, size_t *ret_first, size_t *ret_last);
int wait_start(struct blobs *b) _must_check_;
void wait_stop(struct blobs *b);

/* ---- blob_fetch.c ---- */
/* Claims what is missing of [off, off + n) and up to `ahead` bytes after it, and asks the source. 0: everything is claimed by somebody. WANT_COLD: not a byte more than that, and it
 * enters at the cold end. */
enum want { WANT_NOW, WANT_PREFETCH, WANT_COLD };
int blob_want_locked(struct blob *blob, uint64_t off, uint64_t n, uint64_t ahead, enum want want) _must_check_;
void blob_cancel_fills_locked(struct blob *blob);
int read_error(int err);
int reader_error_locked(const struct blob *blob, const struct blob_read *r, int err); /* offline: -EIO to a program that reads what is damaged here */

/* ---- blob_evict.c ---- */
int blobs_make_room(struct blobs *b, uint64_t n, bool is_dirty) _must_check_;
uint64_t blobs_evict(struct blobs *b, uint64_t want);          /* returns bytes let go; 0: nothing can go */
void blobs_room_freed(struct blobs *b);
