/* SPDX-License-Identifier: Apache-2.0 */
/* file.h: the bytes of a node as open handles see them: the stack blob <- sealed stages <- open stage, shared by all handles of one (ino, incarnation). Joins tree, blobs and stages for
 * fs/ (handles) and sync/ (commits). Commit points (see semantics.md): RELEASE of the last write handle, a freeze by rename or link or fsync, a quiet point (30 s), at the
 * latest 5 min after the oldest write. Freezing fixes the extent list only.
 *
 * The cache as a whole is opened and closed here too. */
#pragma once
#include "cache/blob.h"
#include "cache/stage.h"
#include "cache/tree.h"

enum close_level { CLOSE_FAST = 0, CLOSE_LOCAL = 1, CLOSE_SERVER = 2 };
struct cache {                        /* owned parts, open between cache_open and cache_close */
        struct tree *tree; struct blobs *blobs; struct stages *stages; struct files *files;
        struct clock *clock; struct rng *rng; struct counters *counters;
        bool new_boot;                /* the machine was started since the last life of this cache */
};
struct cache_config {
        const char *dir;              /* made if missing (0700); one process at a time: -EBUSY */
        uint64_t limit_bytes, free_floor_bytes;
        uint32_t uid, gid;
        struct clock *clock; struct rng *rng; struct counters *counters;
        struct executor *workers;
        bool read_only;
        /* For simulations: the SQLite VFS of the tree (NULL: SQLite's own), and no threads: what the flusher does once a second is done by cache_turn, what the blobs' waiting thread
         * does by blobs_turn, both called by the owner. */
        const char *tree_vfs; bool by_hand;
};
/* Locks, checks, opens all, recovers stages (unknown ones go to lost+found/ of the tree or dir; nothing is deleted), starts the 1 s flusher thread. A damaged tree file is moved
 * aside and rebuilt from stages. ret_note: one line for the user about what was recovered, or empty. */
int cache_open(const struct cache_config *c, struct cache **ret, char *ret_note, size_t n) _must_check_;
/* Freezes every open stage, makes all local, stops threads. */
void cache_close(struct cache *c);
/* The first load of the tree has ended: stages that are older than a tree file that was made anew are matched with it now. To be called before anything is sent. Nothing otherwise. */
int cache_loaded(struct cache *c) _must_check_;
/* The set of held nodes (tree_held) has changed: the cached bytes of those are not evicted. Cost: one pass over them. */
int cache_keep_held(struct cache *c) _must_check_;
/* Before a step of a snapshot: of files that it has found newer here (tree_newer_list) nothing is evicted from now on, and the tree is told which of them are here as a whole. 1 SELECT if there are none.
 * wait: -EAGAIN if bytes of one are on their way from a stage to its blob (a second, if the disk syncs). Without: what is not there counts as missing */
int cache_newer(struct cache *c, bool wait) _must_check_;
int cache_sync(struct cache *c) _must_check_;   /* everything accepted is durable (local) on return. A file whose sync fails is an error once here, and in each file_sync of it */
int cache_turn(struct cache *c) _must_check_;   /* by_hand: a round of the flusher; as cache_sync, and what the flusher does after that */

/* No file grows beyond this here (-EFBIG): the longest list of blocks that is cut (64 Mi, each at least 128 KiB long) always suffices. */
#define FILE_BYTES_MAX (UINT64_C(8) << 40)
struct file;
/* One reference per open handle. write: counts as a write handle until file_release. truncate: O_TRUNC as part of it. The content is the tree row's; incarnation must be the row's (-ESTALE).
 * Counted as open before the row is read, so that a remote change either finds it open or is seen. No lock held. 1 SELECT */
int file_open(struct cache *c, uint64_t ino, uint16_t incarnation, bool write, bool truncate, struct file **ret) _must_check_;
/* ret_committed: this was the last write handle and a generation was queued (1 SQL transaction). Never blocks on network. */
void file_release(struct file *f, bool write);
uint64_t file_ino(const struct file *f);
bool file_is_open(struct cache *c, uint64_t ino);       /* any handle, also one on its way, or open stage. A leaf: asked by the tree inside transactions */
bool file_is_open_for_write(struct cache *c, uint64_t ino);
/* ino lost its last name (unlink, or replaced by a rename) and no handle may be left: what was written and is no longer queued goes. Cheap if there is nothing; never wrong to call. */
void file_forget(struct cache *c, uint64_t ino);
/* The size and mtime that stat must show, if an open stage knows better than the row. */
bool file_overlay(struct cache *c, uint64_t ino, uint64_t *ret_size, int64_t *ret_mtime_ns, int64_t *ret_ctime_ns);
/* The size of what the handles of this incarnation read. False: it has no file (any more, or under this number). */
bool file_shown_size(struct cache *c, uint64_t ino, uint16_t incarnation, uint64_t *ret_size);
/* Counts contents that moved from a stage to the row, and files that moved to another inode. A row read before and an overlay asked after: if there is none but the count has grown in between, the row may be from
 * before the move: read it again. */
uint64_t file_seals(struct cache *c);

/* Completion form as blob_read: bytes, or -EINPROGRESS and done comes. */
struct file_read {
        struct file *file; uint64_t off; void *buf; size_t n; int64_t deadline_ms;
        void (*done)(struct file_read *r, ssize_t result); void *owner;
        bool crawler; uint64_t head; bool refused; /* as blob_read */
        struct blob_read inner; void *priv; int state;
};
ssize_t file_read(struct file_read *r) _must_check_;
void file_read_cancel(struct file_read *r);
/* Accepted (survives kill -9) on return. 0 SQL, 0 HTTP. append: at the end, atomically. -EINPROGRESS: no room now: nothing was written; w->done comes when there is room (0: call
 * again) or with -ENOSPC (offline or stuck), -EINTR. -EIO after a failed write of this generation. */
struct file_write {
        struct file *file; uint64_t off; const void *buf; size_t n; bool append; int64_t deadline_ms;
        void (*done)(struct file_write *w, int result); void *owner; struct file_write *next, *prev; int state; struct files *files;
};
ssize_t file_write(struct file_write *w) _must_check_;
void file_write_cancel(struct file_write *w);
/* For changes of rows that found no room on the disk (-ENOSPC). cache_shed: clean blocks go; true: some did, try again. cache_wait_room: as file_write when it finds no room, for w without a file. */
bool cache_tight(struct cache *c);                                  /* what adds rows must not go on: as if it had failed with -ENOSPC. Costs nothing while the disk is far from full */
bool cache_shed(struct cache *c);
int cache_wait_room(struct cache *c, struct file_write *w) _must_check_;
int file_set_size(struct file *f, uint64_t size) _must_check_;                 /* ftruncate: by the handle, as a write: a superseded one becomes the conflict copy */
/* A copy that moves no byte: f, which is empty or holds what comes before off in it, gets [off, off + n) of what `from` shows. ret_n: how much (it ends with `from`). 1 record in the log of the stage, no HTTP.
 * -EOPNOTSUPP: small, or one of the two is not like that: read and write instead. */
int file_share(struct file *f, struct file *from, uint64_t off, uint64_t n, uint64_t *ret_n) _must_check_;
int file_truncate(struct cache *c, uint64_t ino, uint64_t size) _must_check_;  /* also without a handle: then it is a commit point */
enum file_alloc { FILE_ALLOC_EXTEND = 1, FILE_ALLOC_KEEP = 2, FILE_ALLOC_PUNCH = 3, FILE_ALLOC_ZERO = 4, FILE_ALLOC_ZERO_KEEP = 5 };
int file_allocate(struct file *f, enum file_alloc how, uint64_t off, uint64_t n) _must_check_;
int file_seek(struct file *f, bool data, uint64_t off, uint64_t *ret) _must_check_;  /* SEEK_DATA, SEEK_HOLE; -ENXIO */
int file_set_mtime(struct cache *c, uint64_t ino, int64_t mtime_ns) _must_check_;    /* explicit times win over those of earlier writes. Only the open stage, 0 SQL: the caller does tree_setattr as well */
/* fsync: stage bytes and log synced, then the tree. Level local. Also freezes when the mount has close=server. */
int file_sync(struct file *f) _must_check_;
/* ino has another name, or (save over a file) another id: what is on disk of it says so, in case that the tree file is lost, and what is being written to it is based on that. replaced: the node whose id
 * it took, ino 0: none. */
void file_renamed(struct cache *c, const struct node *node, const struct node *replaced);
/* A commit point now, if there is anything: rename, link, quiet point. ret_gen: the generation that carries it, 0: nothing was dirty. The error of a generation that is spoiled: what was
 * written is not committed. */
int file_freeze(struct cache *c, uint64_t ino, uint64_t *ret_gen) _must_check_;
/* The ladder of durability, and where a node stands on it at this moment (semantics.md, 1). -ENOENT. 2 SELECTs */
enum level { LEVEL_ACCEPTED = 0, LEVEL_LOCAL = 1, LEVEL_SERVER = 2 };
const char *level_name(enum level level);
int file_level(struct cache *c, uint64_t ino, enum level *ret) _must_check_;
/* Files that are not on the server, by level. Costs by what is pending: 1 SELECT, and 2 per file with an open stage. */
struct cache_levels { uint64_t accepted, local; };
int cache_levels(struct cache *c, struct cache_levels *ret) _must_check_;
/* The error that close must report: a call of this handle's file failed (cleared by reporting it once), or its generation is spoiled and not committed as it is (reported until that is healed). */
int file_take_error(struct file *f) _must_check_;
/* ---- engine ---- */
/* Fates of generations, as tree_apply, tree_accepted and tree_resolve tell them. Committed: stages become blobs, open handles go on with the same bytes. Moved: as file_reassign.
 * Dropped: the stage goes once no handle shows it. */
void file_committed(struct cache *c, const struct tree_done *done, size_t n);
/* Local content of gen goes to another node (conflict copy): done by tree_resolve's new row; moves the stage's identity. */
int file_reassign(struct cache *c, uint64_t gen, uint64_t new_ino) _must_check_;
void cache_set_source(struct cache *c, struct source *s);
void cache_set_listener(struct cache *c, struct listener *l);      /* up to 4, before threads start */
/* Freezes stages that are quiet or old; returns ms until the next is due. Called by the engine's tick. */
int64_t file_quiet_points(struct cache *c);
/* For who waits until the server has something: a count that grows with each answer, each change of the link and each poke. Read it, look at what is waited for, then wait for
 * another value: nothing is missed. Any thread, no lock held, 0 SQL. -ETIMEDOUT */
uint64_t cache_answers(struct cache *c);
int cache_wait_answers(struct cache *c, uint64_t seen, int64_t deadline_ms) _must_check_;
void cache_poke(struct cache *c);                                   /* RANK_QUEUE */
bool cache_online(struct cache *c);
/* Offline or stuck: writers that wait for room get -ENOSPC. */
void cache_set_online(struct cache *c, bool online);
struct cache_totals { uint64_t bytes, limit_bytes, dirty_bytes, pending_files, pending_bytes; int64_t oldest_pending_ns; /* real; 0: none */ uint64_t rescues; /* that wait for room in lost+found/ */ };
int cache_totals(struct cache *c, struct cache_totals *ret) _must_check_; /* open dirty files count as pending, unless they are deleted */
/* 0 when no local change is left that the server does not have, waiting on a condition until deadline_ms: -ETIMEDOUT. */
int cache_wait_drained(struct cache *c, int64_t deadline_ms) _must_check_;
