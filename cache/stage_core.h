/* SPDX-License-Identifier: Apache-2.0 */
/* stage_core.h: the inside of a stage, for stage_*.c and file_*.c only. stage.c has the design. */
#pragma once
#include <limits.h>
#include <stdatomic.h>

#include "base/err.h"
#include "base/lock.h"
#include "cache/stage.h"
#include "extent.h"
#include "stage_log.h"
#include "stage_seg.h"

#define SMALL_STAGE_BYTES (64u << 10)   /* appended to the shared log; beyond it the stage gets a file of its own */
#define STAGE_NOBODY ((uint64_t)INT64_MAX) /* as ino in a header: of no node any more, and not in lost+found/ yet */
#define SMALL_STAGE_RECORDS 256u
#define STAGE_SEGS_MAX 8u
#define LOG_POOL_MAX 64u
#define SPOILT_MAX 64u
#define LOG_CHARGE (64u << 10)          /* room for an own log is taken in steps */
#define CHUNK_PARAM_SENT 1                /* a single block is its own content under every parameter id */

enum stage_state {
        STAGE_OPEN = 1,   /* takes writes */
        STAGE_SEALED = 2, /* never changes its view again */
        STAGE_GONE = 3,   /* its bytes are elsewhere (become) or nowhere */
};
struct sent_block { struct digest hash; uint32_t bytes; };
struct known_block { uint64_t off; struct blockref ref; bool sent, off_disk; };
struct payload { const struct segment *seg; uint64_t at; uint32_t bytes, first; }; /* first: of its sums, one per 4 KiB */
struct own_log {
        int fd;                       /* -1: closed */
        uint32_t number;
        struct id salt;
        uint64_t end;                 /* next record */
        uint64_t charged, sums_charged; /* sums: of the file beside it */
        struct slog_entry last;        /* record before end, if it may still be made longer */
        bool last_open;
        bool released;                /* the file went back: nothing is written any more */
};
struct stage {
        struct stages *owner;
        _Atomic unsigned refs;
        struct stage *hash_next;      /* owner's lock */
        struct stage *dirty_next, *dirty_prev; /* owner's lock */
        bool in_dirty;                /* owner's lock */
        bool based;                   /* owner's lock: stands on a base, or did once (stage_needs.c) */
        uint64_t gen;
        _Atomic uint64_t ino;         /* changes by file_reassign */
        _Atomic bool damage_told;     /* logged once */
        struct id session;

        struct lock io;               /* RANK_STAGE_IO: serialises changes; held over pwrite, log append, punch; never over fsync */
        struct stage_header head;     /* io: as logged */
        bool logged;                  /* io: the header is on disk */
        bool rebase_due;              /* io: its log still names the stage below, of which the server has the content by now: that one stays */
        uint16_t copy;                /* io */
        uint64_t seq;                 /* io: next record's */
        uint32_t appended, records;   /* io: small home: payload bytes, records */
        bool large;                   /* io + lock to change: home is an own file */
        bool was_small;               /* io: has records in the shared log */
        struct own_log log;           /* io */
        uint64_t changes;             /* io: records and merges so far */
        uint64_t content_changes;     /* io: that many when it was sealed: what its bytes need to survive; 0: not sealed here */
        struct segment *segs[STAGE_SEGS_MAX]; unsigned n_segs; /* io: references */
        bool data_gone;               /* its data file is another one's or not there: fixed by recovery. Nothing of it is synced or given back */
        bool untrusted;               /* io: an fsync failed: nothing of it is believed */
        struct lock sync;             /* RANK_STAGE_IO, with nothing else: who asks the disk about its own files. The kernel tells a failure once, to whoever comes first */
        bool sync_failed;             /* sync: it was told; until it was written once more */
        unsigned sync_failures;       /* sync: so often */

        struct lock lock;             /* RANK_STAGE: everything below */
        enum stage_state state;
        bool queued;                  /* its content is (or was) in the outbox */
        bool layer;                   /* replaced there by a newer generation */
        bool committed;               /* on the server as `content` */
        struct extents map;
        uint64_t size, base_limit;
        struct stage *below;          /* reference */
        bool below_shared;            /* we left its stack and it did not: that stack lets it go when the time comes, not we */
        struct blob *blob;            /* reference: base, if below is NULL; got when first needed */
        struct content base;          /* identity of blob */
        struct blob *become;          /* reference: state GONE: holds the same bytes */
        struct id version;            /* committed: its version on the server */
        int fd, sums_fd;              /* large: data file and the sums of its pages (stage_sums.c), until the end */
        struct payload *payloads; size_t n_payloads, payload_room; /* small: what lies where, and its sums */
        uint64_t *payload_sums; size_t n_payload_sums, payload_sum_room;
        char data_name[STAGE_DATA_NAME];
        uint64_t pages;               /* charged for the data file, in EXTENT_PAGE */
        uint64_t small_bytes;         /* payload bytes in the shared log, for the totals */
        uint64_t epoch;               /* grows when bytes leave their place: who read meanwhile reads again */
        int64_t mtime_ns, ctime_ns;
        _Atomic int64_t first_write_ns; /* real time; 0: no write yet */
        int64_t first_write_ms, last_write_ms;
        uint64_t last_write_end;
        uint64_t synced;              /* value of changes that is on the platter */
        int error;                    /* a write failed: not committed until healed */
        uint64_t error_off, error_bytes;
        /* cutting */
        struct known_block *known; size_t n_known, known_room; /* intact blocks cut before the seal, by offset */
        bool early_busy, early_hit; uint64_t early_lo, early_hi; /* range being read for an early block */
        struct sent_block **sent_blocks; size_t n_sent_blocks, sent_room; /* for EXTENT_SENT, kept until the end */
        atomic_bool chunk_stop;       /* stage_chunk is to come to an end */
        bool chunked;
        struct blocklist list; uint64_t *starts; struct content content; uint8_t *sent_bits, *reused_bits; /* reused: taken over from a list, not cut anew */
        /* in no stack any more (file_commit.c): all by the file layer's lock */
        struct stage *chain; _Atomic bool listed; /* anybody may look */ bool due;
        struct stage *moved_next; bool moved; /* recovery (cache.c) */
        _Atomic bool rescue;          /* what can be read is still to go to lost+found/; until then it stays */
        bool dead;                    /* what could be read is in lost+found/: goes even if an operation names it */
};

struct stages {
        struct stages_config cfg;
        struct rng *rng;
        int dir_fd;
        char *dir;
        struct segments *segs;
        struct lock lock;             /* RANK_QUEUE */
        struct stage **bucket; size_t n_buckets, n, n_based;
        struct stage *dirty;          /* changed since their last sync; no reference: a freed stage leaves the list */
        uint64_t n_open, n_sealed, dirty_bytes;
        uint64_t next_gen;
        uint32_t log_pool[LOG_POOL_MAX]; size_t n_log_pool;
        uint64_t spoilt[SPOILT_MAX]; size_t n_spoilt; /* generations whose sync failed and that may still be needed; more: all are, for good */
        _Atomic bool waiting;         /* writers wait for room */
        struct listener *listener;
        void (*kick)(void *arg); void *kick_arg; /* the flusher: something became dirty */
};

/* ---- stage.c: life ---- */
int stages_open(const struct stages_config *c, struct rng *rng, struct stages **ret) _must_check_;
void stages_close(struct stages *s);
void stages_set_kick(struct stages *s, void (*kick)(void *arg), void *arg);
uint64_t stages_gen(struct stages *s);
void stages_gen_above(struct stages *s, uint64_t gen);
/* A stage without a byte on disk yet. below or blob: the base (references are taken). size: the view's. */
int stage_new(struct stages *s, const struct stage_header *head, struct stage *below, struct blob *blob, uint64_t size, struct stage **ret) _must_check_;
struct stage *stage_ref(struct stage *st);
struct stage *stage_below(struct stage *st);           /* reference, or NULL */
void stage_account(struct stage *st, uint64_t new_pages, uint64_t new_small); /* lock held */
void stage_mark_dirty(struct stage *st);
void stage_unlist_locked(struct stage *st);            /* owner's lock held: it is not dirty any more */
/* Small stages that alone keep an old segment from being used again move to files of their own. No lock held. */
void stages_relocate(struct stages *s);
void stages_count_state(struct stages *s, enum stage_state from, enum stage_state to);
/* ---- stage_write.c: changes ---- */
struct stage_room { uint64_t charged, want; int fd; char path[PATH_MAX]; bool want_file; uint64_t want_record; };
#define STAGE_ROOM_INIT { .fd = -1 }
/* What a change asked for by -EAGAIN. No lock held. -ENOSPC: no room. */
int stage_room_get(struct stages *s, struct stage_room *room) _must_check_;
void stage_room_end(struct stages *s, struct stage_room *room);
/* Changes: io held, state OPEN. -EAGAIN: drop io, stage_room_get, again. Other errors: nothing happened, or (-EIO, ...) stage_fail was done. */
int stage_put_data(struct stage *st, uint64_t off, const void *buf, size_t n, struct stage_room *room) _must_check_;
int stage_put_zero(struct stage *st, uint64_t off, uint64_t n, bool grow, struct stage_room *room) _must_check_;
int stage_put_size(struct stage *st, uint64_t size, struct stage_room *room) _must_check_;
/* [off, off + n) of another content, at the end of what it shows, which is nothing or what comes before in that content: it stands on that content now, not a byte is copied.
 * -EOPNOTSUPP: it shows something else, or there is no room in the log for one more record: the bytes have to be written. */
int stage_put_share(struct stage *st, const struct content *content, struct blob *blob, uint64_t off, uint64_t n, struct stage_room *room) _must_check_;
bool stage_is_base(struct stage *st);                         /* it shows its base as it is, whole */
int stage_put_mtime(struct stage *st, int64_t mtime_ns) _must_check_;
/* A write of [off, off + n) failed and the program was told: not committed until that range is written or cut. io held. */
void stage_fail(struct stage *st, int error, uint64_t off, uint64_t n);
int stage_error(struct stage *st);
/* No more changes. io held. */
int stage_seal(struct stage *st) _must_check_;
/* A control record: fits always. io held. */
int stage_note(struct stage *st, enum slog_kind kind, uint64_t off, uint64_t bytes, int64_t time_ns, uint8_t flags, const void *payload, uint32_t payload_bytes) _must_check_;
/* ---- stage_sync.c: bytes and log on the platter ---- */
int stage_sync(struct stage *st) _must_check_;         /* No lock held. -ENOSPC: not now; -EIO: never */
int stages_sync_dirty(struct stages *s) _must_check_;  /* No lock held */
int stages_sync_sealed(struct stages *s) _must_check_; /* locks below RANK_STAGE_IO may be held */
void stages_spoil(struct stages *s, uint64_t gen);     /* its sync failed */
/* Has the sync of a generation failed that is still needed? named: as outbox_carries. No lock held. */
bool stages_spoilt(struct stages *s, int (*named)(void *arg, uint64_t gen), void *arg);
void stages_unspoil(struct stages *s, uint64_t gen);   /* it was synced after all */
/* ---- stage_again.c ---- */
/* A sealed stage whose sync failed: written once more, and synced. No lock held. -EIO: not this time; -ENOSPC: no room to move it */
int stage_again(struct stage *st) _must_check_;
/* ---- stage_own.c: the large home ---- */
int own_log_begin(struct stage *st) _must_check_;
int own_log_append(struct stage *st, const struct slog_entry *e, const void *payload) _must_check_;
int own_log_open(struct stage *st) _must_check_;
void own_log_close(struct stage *st);
void own_log_recycle(struct stages *s, struct own_log *log);
int data_file_path(struct stages *s, const char *name, char *ret, size_t n) _must_check_;
/* Moves a small stage into a file of its own. io held. */
int stage_grow(struct stage *st, struct stage_room *room) _must_check_;
/* The stage's part of the disk goes back (or was taken over: data_taken). Logged first. State must be GONE. No lock held. */
void stage_release_disk(struct stage *st, bool data_taken);
/* ---- stage_view.c: reading ---- */
enum piece_kind { PIECE_END = 0, PIECE_ZERO, PIECE_DISK, PIECE_BLOB };
struct piece {
        enum piece_kind kind;
        uint64_t bytes, at;
        int fd;
        struct stage *stage;          /* DISK: reference, keeps fd */
        uint64_t epoch;
        bool large;
        int sums_fd;                  /* large */
        uint64_t grid, grid_end, sums[SMALL_STAGE_BYTES / EXTENT_PAGE + 1]; /* small: the first 4 KiB that are checked together, the payload's end */
        struct blob *blob;            /* BLOB: reference; at = offset in it */
};
int view_find(struct stage *top, uint64_t off, uint64_t max, struct piece *ret) _must_check_;
void piece_end(struct piece *p);
struct blob *stage_base_blob(struct stage *st, int *ret_err); /* reference, or NULL */
/* Reads what this layer holds on this disk, each byte once, beside everybody else. -EIO: some of it is damaged; -ENOENT: it has gone meanwhile; -ECANCELED: *stop. No lock held. */
int stage_verify(struct stage *st, _Atomic bool *stop) _must_check_;
/* ---- stage_needs.c: struct blobs_needs (blob.h) ---- */
void *stages_needs_look(void *stages);
bool stages_need(void *look, const struct content *content, uint64_t before, uint64_t start, uint64_t end);
void stages_needs_end(void *look);
void stage_set_based(struct stage *st);                /* it has a base now, or a stage below */
/* ---- stage_sums.c ---- */
/* DISK: the bytes, checked; -ESTALE: they moved meanwhile, find again; -EIO: damaged. No lock held, or (small home) io. */
int piece_read(const struct piece *p, void *buf, size_t n) _must_check_;
int payload_reserve(struct stage *st, size_t n) _must_check_;   /* makes the next payload_add infallible. lock held */
void payload_sums(const void *buf, size_t n, uint64_t *ret);
void payload_add(struct stage *st, const struct segment *seg, uint64_t at, uint32_t bytes, const uint64_t *sums); /* lock held */
void payload_piece(const struct stage *st, const struct segment *seg, struct piece *p);  /* lock held */
void sums_name(uint32_t number, char ret[STAGE_DATA_NAME]);
/* Large home. io held. write: -EIO with *ret_begun false: what is there is damaged, nothing was changed. */
int sums_write(struct stage *st, uint64_t off, const void *buf, size_t n, bool *ret_begun) _must_check_;
int sums_edges(struct stage *st, uint64_t off, uint64_t n) _must_check_; /* may [off, off + n) be cut out? -EIO: a page that stays in part is damaged */
void sums_punch(struct stage *st, uint64_t off, uint64_t n);
int sums_make(const struct extents *map, int fd, int sums_fd) _must_check_;
/* Pages that the map has, from *io_page on, at most max, are compared and written over themselves. 1: *io_page goes on; 0: that was the last one; -EBADMSG: one is damaged. io held */
int sums_again(struct stage *st, uint64_t *io_page, unsigned max) _must_check_;
int sums_digest(const struct extents *map, int sums_fd, uint64_t *ret) _must_check_;
/* Nobody has the stage open: pages that differ from their sums, but for those of an INTENT that no record followed (seq: of the record that would come next). */
int sums_check(const struct extents *map, int fd, int sums_fd, const struct id *salt, uint64_t gen, uint64_t seq, uint64_t *ret_bad, uint64_t *ret_pages) _must_check_;
uint64_t sums_pages(const struct extents *map);                /* pages of the sums file */
uint64_t sums_regions(const struct extents *map, uint64_t off, uint64_t n); /* pages that the sums file grows by, at most */
/* Recovery: what the map does not have leaves the file, and the sums are right or made anew. */
int sums_recover(struct stage *st, uint64_t file_bytes, bool new_boot, bool sealed_then, uint64_t digest, bool *ret_made) _must_check_;
/* ---- stage_early.c ---- */
void early_touch(struct stage *st, uint64_t off, uint64_t end); /* lock held */
int early_known(struct stage *st, uint64_t off, const struct blockref *ref) _must_check_; /* recovery: a sent block. lock held */
void stage_punch_sent(struct stage *st);                        /* blocks that the server holds leave the disk. No lock held */
struct sent_block *stage_sent_block(struct stage *st, const struct digest *hash, uint32_t bytes); /* lock held; NULL: no memory */
/* ---- stage_chunk.c ---- */
/* The block that begins at off in the view, if it is known and intact. ret_sent: the server has it. */
bool stage_block_reused(struct stage *st, size_t i);
bool stage_known_block(struct stage *st, uint64_t off, struct blockref *ret, bool *ret_sent);
/* ---- stage_recover.c ---- */
struct found_stage { struct stage *stage; bool sealed, layer, done, damaged, incomplete, changed /* a record says so, whatever the map looks like */; bool top, held, keep; /* cache.c's */ };
struct stages_found { struct found_stage *v; size_t n, room; unsigned lost; };
int stages_recover(struct stages *s, bool new_boot, const char *lost_dir, struct stages_found *ret) _must_check_;
void stages_found_free(struct stages_found *f);
/* Says in the shared log that the generation has ended, whatever its own records say. Not synced. */
int stage_void(struct stage *st) _must_check_;
/* Puts what can be read of a stage into lost_dir as a plain file: all of that, or an error and no file. */
int stage_salvage(struct stage *st, const char *lost_dir) _must_check_;
