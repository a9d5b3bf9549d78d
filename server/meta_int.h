/* SPDX-License-Identifier: Apache-2.0 */
/* meta_int.h: what the files of meta share among themselves.
 *
 * Locks: db_lock (RANK_TREE) is held from begin to the end of a writing transaction and guards writer, txn and scratch; in memory also by reads, which then use the
 * writer's connection. views_lock (RANK_QUEUE) guards the free list of read connections. Neither is held while waiting for the other's owner. */
#pragma once
#include "base/lock.h"
#include "commit_queue.h"
#include "meta.h"
#include "sql.h"

#define META_READERS_MAX 16u
#define TXN_SPACES_MAX 64u   /* as many as steps in a group */

/* A workspace row, loaded (and by that locked) once per transaction, written back before its commit if dirty. */
struct space {
        uint64_t ws; char name[META_NAME_MAX + 1];
        struct cursor at;
        uint64_t horizon, entry_next, quota, used, reserved, nodes;
        int64_t time_ns;         /* of the newest event */
        bool portable;           /* its name rule */
        bool dirty, news;        /* news: its seq moved in this transaction */
};
struct txn {
        struct meta *m;
        struct sql *db;
        int64_t now_ns;          /* database clock at begin */
        struct space spaces[TXN_SPACES_MAX]; size_t n_spaces;
};
struct meta {
        struct meta_config c;
        struct lock db_lock;
        struct sql *writer;
        bool in_memory;
        char *path;
        struct txn txn;
        struct buf scratch;      /* packing of events */
        struct commit_queue *queue;
        struct lock views_lock;
        struct cond views_free;
        struct sql *views[META_READERS_MAX]; size_t n_views, n_free; /* the first n_free are free */
        struct sql *all_views[META_READERS_MAX];
};

/* ---- transactions ---- */

/* One consistent view of the database for reading. */
int view_begin(struct meta *m, struct sql **ret) _must_check_;
void view_end(struct meta *m, struct sql *db);
struct view { struct meta *m; struct sql *db; };
static inline void cleanup_view_p(struct view *v) { if (v->db) view_end(v->m, v->db); }
#define _cleanup_view_ _cleanup_(cleanup_view_p)

/* Runs fn as one step of the commit queue. fn: 0 or a negative errno of the database; a refusal of its own, found before it wrote anything, goes to
 * ret_refusal (negative errno) with 0 returned. Returns the error or the refusal. fn may run more than once (after a rollback). */
int meta_write(struct meta *m, int (*fn)(struct txn *t, void *arg, int *ret_refusal), void *arg) _must_check_;
/* The workspace row, locked. 1, 0 no such workspace, -errno. */
int txn_space(struct txn *t, uint64_t ws, struct space **ret) _must_check_;
int space_write(struct txn *t, struct space *s) _must_check_; /* writes a cached row back */
/* Role of an account: ROLE_NONE if none; -errno. */
int role_get(struct sql *db, uint64_t ws, uint64_t account) _must_check_;

/* ---- rows ---- */

#define NODE_COLUMNS "id, kind, mode, uid, gid, rdev, mtime_ns, ctime_ns, btime_ns, target, xattrs, root, size, depth, param, version, seq, deleted"
#define NODE_COLUMNS_N 18
#define ENTRY_COLUMNS "id, parent, name, node, placement, seq"
/* Strings and arrays are copied into the arena. -ENOMEM. */
int node_from(struct sql *db, struct sql_stmt *st, struct arena *a, struct node_row *ret) _must_check_;
int entry_from(struct sql *db, struct sql_stmt *st, struct arena *a, struct entry_row *ret) _must_check_;
/* 1, 0 none, -errno. */
int node_get(struct sql *db, uint64_t ws, const struct id *id, struct arena *a, struct node_row *ret) _must_check_;
int alias_get(struct sql *db, uint64_t ws, struct id *id) _must_check_;  /* replaces id by what it was merged into, if it was: 1, 0, -errno */
int entry_get(struct sql *db, uint64_t ws, const struct id *parent, const void *name, size_t n, struct arena *a, struct entry_row *ret) _must_check_;
/* The same by the fold of the name: a portable workspace. */
int entry_get_folded(struct sql *db, uint64_t ws, const struct id *parent, const void *fold, size_t n, struct arena *a, struct entry_row *ret) _must_check_;
int entries_get(struct sql *db, uint64_t ws, const struct id *node, struct arena *a, const struct entry_row **ret, size_t *ret_n) _must_check_;
int xattrs_pack(const struct xattr *x, size_t n, struct arena *a, const void **ret, size_t *ret_n) _must_check_;
/* node, then aliases, then names. -ENOENT if there is no such node. */
int change_get(struct sql *db, uint64_t ws, const struct id *node, struct arena *a, struct change *ret) _must_check_;
/* Account, device and time of the event at seq; strings "" if it is forgotten. */
int event_origin(struct sql *db, uint64_t ws, uint64_t seq, struct arena *a, const char **ret_actor, const char **ret_device, int64_t *ret_time_ns) _must_check_;
/* A new epoch, forking at the seq that the row has; epochs before it share no more than that with the present line. Not for a row that is cached in the transaction. */
int epoch_change(struct sql *db, uint64_t ws, const struct id *epoch) _must_check_;
int names_valid(const char *name); /* of users, workspaces: 0, -EINVAL */
/* A path split at slashes, empty components dropped. -EILSEQ, -ENAMETOOLONG, -EINVAL as name_check. */
struct path { const char **names; size_t n; };
int path_split(const char *path, struct arena *a, struct path *ret) _must_check_;
/* Walks as far as it can: ret_row is the last node found, ret_depth how many names led to it. -ENOTDIR: names are left but it is no directory. */
int path_walk(struct sql *db, uint64_t ws, const struct path *p, struct arena *a, struct node_row *ret_row, size_t *ret_depth) _must_check_;
int space_read(struct sql *db, uint64_t ws, struct meta_workspace *ret) _must_check_; /* 1, 0, -errno; role is not set */
/* Whether `hash` may be named by this account here, and what the claim has reserved. */
enum block_right {
        RIGHT_NONE = 0,
        RIGHT_KEPT = 1,          /* a kept version refers to it, its bytes are here */
        RIGHT_CLAIM = 2,         /* an own claim, its bytes are here */
        RIGHT_WANTED = 3,        /* a kept version refers to it, but its bytes are gone or known to be damaged: new ones cost no quota */
};
int block_right(struct sql *db, uint64_t ws, uint64_t account, const struct digest *hash, uint32_t *ret_raw, uint32_t *ret_reserved) _must_check_;
/* Where a live block lies, whoever may read it. near: an object's name that ret may borrow if it is the same. -errno. */
int place_get(struct sql *db, const struct digest *hash, struct arena *a, const char *near, struct meta_place *ret) _must_check_;
/* Gives the block a mapping into the object, unless it has a live one. *object_id: 0 until the object's row is known in this transaction. */
int block_map(struct txn *t, const char *object, uint64_t object_bytes, const struct meta_block *b, int64_t *object_id) _must_check_;
