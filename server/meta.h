/* SPDX-License-Identifier: Apache-2.0 */
/* meta.h: all metadata of the server; the seam between the HTTP side (service, api_*, store) and the database. One function per transaction.
 *
 * Threads: every function may be called from any thread. Reads take one of a few read connections (a consistent view per call); writes go through
 * the commit queue and block until they are on disk. With `threaded` false everything runs on the caller's thread.
 * Rights: functions that take a `struct meta_subject` check its role inside the transaction. Workspaces are named by their number (`ws`), which
 * meta_access gives after checking membership.
 * Memory: rows given back live in the arena that the caller passes in. Errors are negative errnos; each function lists those that
 * mean something, all may return -ENOMEM, -EIO, -EAGAIN (database busy), -ENOSPC, -EBADMSG (database damaged), -ESHUTDOWN. */
#pragma once
#include "base/blocklist.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/counters.h"
#include "base/err.h"
#include "base/model.h"

#define META_SCHEMA_VERSION 2
#define META_NAME_MAX 64u            /* of users, devices and workspaces */
#define META_LINKS_MAX 1024u         /* names of one node */
#define META_ACCESS_TOKEN_S 3600
#define META_REFRESH_TOKEN_S (90 * 86400)
#define META_CLAIM_S (7 * 86400)
#define META_SESSION_S (30 * 86400)
#define META_CONTENT_BLOCKS_MAX (1u << 20) /* blocks and pages of one content */

struct meta;
struct meta_config {
        const char *path;        /* database file; NULL or ":memory:": one connection in memory */
        const char *vfs;         /* SQLite VFS or NULL */
        struct clock *clock; struct rng *rng; struct counters *counters; /* counters may be NULL */
        bool threaded;           /* own commit thread; rng must then be good for any thread */
        unsigned readers;        /* read connections; 0: 3 */
        bool cheap_passwords;    /* tests only */
        /* A commit made `seq` the newest of this workspace. Called after it is on disk, no lock held, from the commit thread (or the caller's). NULL fine. */
        void (*notify)(void *arg, uint64_t ws, const char *workspace, uint64_t seq); void *notify_arg;
        /* A transaction failed for lack of room and will be tried once more. NULL fine. */
        void (*full)(void *arg); void *full_arg;
};
/* -EPROTONOSUPPORT: the schema is newer than this program (nothing was touched). ret_why: one line for people, on failure. */
int meta_open(const struct meta_config *c, struct meta **ret, char *ret_why, size_t n) _must_check_;
void meta_close(struct meta *m);                 /* NULL fine; waits for writes under way */
int meta_ready(struct meta *m) _must_check_;     /* one cheap read and one write transaction: readiness */
/* Expires tokens, claims and upload sessions; call every few minutes. */
int meta_tidy(struct meta *m) _must_check_;

/* ---- users, devices, tokens ---- */

enum meta_role { ROLE_NONE = 0, ROLE_VIEWER = 1, ROLE_EDITOR = 2, ROLE_OWNER = 3 };
const char *meta_role_name(enum meta_role r);
int meta_role_parse(const char *s, enum meta_role *ret) _must_check_; /* -EINVAL */

struct meta_subject {            /* who asks; filled in by meta_token_check */
        uint64_t account; char account_name[META_NAME_MAX + 1];
        struct id device; char device_name[META_NAME_MAX + 1];
        bool script;             /* a script token */
};
struct meta_tokens { char access[72], refresh[72]; int64_t access_expires_s; struct id device; }; /* seconds from now */
struct meta_device { struct id id; char name[META_NAME_MAX + 1]; bool script; int64_t created_ns, seen_ns; };

/* -EEXIST; -EINVAL name (1..64 of A-Z a-z 0-9 . _ - @) or password (8..1024 bytes). password NULL: can only use tokens. */
int meta_user_add(struct meta *m, const char *name, const char *password) _must_check_;
int meta_user_password(struct meta *m, const char *name, const char *password) _must_check_; /* -ENOENT, -EINVAL; old tokens stay */
int meta_user_find(struct meta *m, const char *name, uint64_t *ret_account) _must_check_;    /* -ENOENT */
int meta_users(struct meta *m, struct arena *a, const char *const **ret, size_t *ret_n) _must_check_;
/* A new device with an access and a refresh token. -EKEYREJECTED: wrong name or password (same time for both). Cost: argon2id, 60 ms, no lock held. */
int meta_login(struct meta *m, const char *name, const char *password, const char *device_name, struct meta_tokens *ret) _must_check_;
/* A new access token. The refresh token stays and lives on for META_REFRESH_TOKEN_S (a lost answer thus signs nobody out). -EKEYREJECTED. */
int meta_refresh(struct meta *m, const char *refresh_token, struct meta_tokens *ret) _must_check_;
/* A token without expiry for scripts; its own device named `label`. Shown once. -ENOENT no such user. */
int meta_script_token_add(struct meta *m, const char *user, const char *label, char ret_token[72], struct id *ret_device) _must_check_;
/* -EKEYREJECTED unknown, expired, revoked, or a refresh token. Cost: one indexed read. */
int meta_token_check(struct meta *m, const char *token, struct meta_subject *ret) _must_check_;
int meta_devices(struct meta *m, uint64_t account, struct arena *a, struct meta_device **ret, size_t *ret_n) _must_check_;
int meta_device_revoke(struct meta *m, uint64_t account, const struct id *device) _must_check_; /* -ENOENT; its tokens die at once */

/* ---- workspaces ---- */

enum meta_name_rule { NAMES_EXACT = 1, NAMES_PORTABLE = 2 };
struct meta_workspace {
        uint64_t ws; char name[META_NAME_MAX + 1];
        enum meta_role role;     /* of the asker; ROLE_NONE if nobody asked */
        enum meta_name_rule names;
        struct cursor at;        /* epoch, newest seq and its mark */
        struct id predecessor; uint64_t fork_seq; /* epoch before this one, or zero */
        uint64_t horizon;        /* cursors below it are gone */
        uint64_t quota_bytes, used_bytes, reserved_bytes; /* quota 0: none */
        uint64_t nodes;          /* live ones */
        char owner[META_NAME_MAX + 1];
};
/* Root directory (id_root, mode 0755, uid and gid 0) included. -EEXIST, -EINVAL name (as users'), -ENOENT owner. */
int meta_workspace_add(struct meta *m, const char *name, const char *owner, enum meta_name_rule names, uint64_t quota_bytes, uint64_t *ret_ws) _must_check_;
/* -ENOENT: none, or not a member (existence stays hidden); -EACCES: role below `least`. subject NULL: the server's own administration. */
int meta_access(struct meta *m, const struct meta_subject *subject, const char *name, enum meta_role least, struct meta_workspace *ret) _must_check_;
int meta_workspaces(struct meta *m, const struct meta_subject *subject, struct arena *a, struct meta_workspace **ret, size_t *ret_n) _must_check_;
int meta_quota_set(struct meta *m, uint64_t ws, uint64_t quota_bytes) _must_check_;
struct meta_member { char name[META_NAME_MAX + 1]; enum meta_role role; };
int meta_members(struct meta *m, uint64_t ws, struct arena *a, struct meta_member **ret, size_t *ret_n) _must_check_;
/* ROLE_NONE removes. by NULL: administration; else -EACCES unless an owner. -ENOENT user; -EBUSY: the last owner. */
int meta_member_set(struct meta *m, const struct meta_subject *by, uint64_t ws, const char *user, enum meta_role role) _must_check_;
/* After a restore from a backup: a new epoch that names its predecessor and forks at the present seq. */
int meta_epoch_new(struct meta *m, uint64_t ws, struct id *ret_epoch) _must_check_;
/* Forgets events below seq (never the newest). */
int meta_horizon_set(struct meta *m, uint64_t ws, uint64_t seq) _must_check_;

/* ---- blocks ---- */

struct meta_block {              /* where a block's bytes lie inside an object */
        struct digest hash;
        uint32_t raw_bytes;      /* <= BLOCK_BYTES_MAX */
        uint8_t encoding;        /* enum block_encoding of the stored bytes */
        struct digest base;      /* ENC_ZSTD_PATCH */
        uint64_t offset; uint32_t stored_bytes;
};
/* `place` was asked for before: where the block lies now, whoever it belongs to. -ENOENT: nowhere. The object's name goes to name. */
struct meta_place;
int meta_block_again(struct meta *m, const struct meta_place *place, struct meta_place *ret, char name[33]) _must_check_;
struct meta_place { bool found, bad; struct meta_block block; const char *object; }; /* object in the arena; bad: was found damaged, new bytes are wanted */

/* The object is durable and its blocks are hash-checked: maps them (a block that has a live mapping keeps the old one) and gives the subject a claim on each:
 * META_CLAIM_S, or as long as the upload session if session is not NULL (renewed by every use; made by its first). Claims reserve quota.
 * -EACCES below editor; -EDQUOT: nothing recorded, the object may be removed. */
int meta_blocks_record(struct meta *m, const struct meta_subject *subject, uint64_t ws, const struct id *session,
                       const char *object, uint64_t object_bytes, const struct meta_block *blocks, size_t n) _must_check_;
/* Which of these are missing for this workspace and subject (ret_missing[n]): not referenced by a kept version here and not claimed by the subject with good bytes
 * present; one that is known to be damaged is missing for everybody who may name it. Claims all of them (so that gc leaves them, and bytes that come reserve quota). -EACCES below editor; -EDQUOT.
 * Cost: one transaction, a few index look-ups per hash. */
int meta_blocks_missing(struct meta *m, const struct meta_subject *subject, uint64_t ws, const struct id *session,
                        const struct digest *hashes, size_t n, bool *ret_missing) _must_check_;
/* Where blocks lie that this subject may read in this workspace (a kept version refers to them, or own claim); others: found = false. */
int meta_blocks_find(struct meta *m, const struct meta_subject *subject, uint64_t ws, const struct digest *hashes, size_t n,
                     struct arena *a, struct meta_place *ret) _must_check_;
/* Whether more bytes fit into the quota: 0, -EDQUOT. A hint before bytes flow; the truth is told at record and commit. */
int meta_quota_check(struct meta *m, uint64_t ws, uint64_t bytes) _must_check_;

/* ---- commit ---- */

struct meta_batch {
        /* in; all borrowed until meta_commit returns */
        const struct meta_subject *subject;
        uint64_t ws;
        const struct op *ops; size_t n_ops;
        const enum op_code *preset;     /* NULL, or n_ops codes: an operation whose code is not RES_OK is refused with it unseen (inline bytes that do not hash to root: RES_CORRUPT).
                                         * RES_FENCED: its lease has ended; answered from memory if it was accepted before, else refused with the rows as they are */
        /* Blocks of inline contents: one durable object, hash-checked. Only those that an accepted operation names are mapped. n_blocks 0: none. */
        const char *object; uint64_t object_bytes;
        const struct meta_block *blocks; size_t n_blocks;
        /* Reads list pages of contents with depth > 0, by hash; called on this thread, outside transactions, only for pages that the subject may read. NULL if no
         * such content can come (then BLOCKS_MISSING names the root). The page's bytes need to live until the next call only. */
        struct page_get *pages;
        /* out: n_ops results, in the arena with all that they point to (rows just written borrow strings from ops) */
        struct arena *arena;            /* given; 16 MiB is good for a batch */
        struct op_result *results;
};
/* Runs the operations in order, each atomic, accepted ones on disk when this returns. Per operation: results[i].code. The whole request fails only for
 * lack of memory or -ESHUTDOWN (then what was accepted stays so: a retry gets the same results). */
int meta_commit(struct meta *m, struct meta_batch *b) _must_check_;

/* PUT of a whole file by path: replaces what is there (the old version is kept) or makes it, judged in the transaction. */
struct meta_put {
        const struct meta_subject *subject; uint64_t ws;
        struct id op;                   /* Idempotency-Key (its first 16 bytes of SHA-256) or random */
        const char *path;               /* "a/b/c", decoded; leading and double slashes are ignored */
        struct content content;         /* its blocks are recorded (claimed by the subject) */
        bool has_mode; uint32_t mode;   /* else 0644 when new */
        bool has_mtime; int64_t mtime_ns; /* else now */
        bool make_parents;              /* missing directories on the way are made (0755) */
        bool if_match; struct id match; /* only if this is the current version; zero id: only if it exists ("*") */
        struct digest condition;        /* of the condition as the caller wrote it: a retry of the same request finds another `match`, or none */
        bool if_none_match;             /* only if nothing is there ("*") */
        struct page_get *pages;         /* as in meta_batch */
};
struct meta_put_result {
        enum op_code code;              /* RES_STALE: a condition does not hold */
        bool created;
        struct id replaced_version;     /* kept; zero when created */
        struct node_row node;           /* after it (or the current one, for RES_STALE); in the arena */
        const struct digest *missing; size_t n_missing;
        uint64_t seq;
};
int meta_put_path(struct meta *m, const struct meta_put *p, struct arena *a, struct meta_put_result *ret) _must_check_;
/* DELETE by path: a file, special, symlink or empty directory (else RES_NOT_EMPTY). Conditions as above. */
struct meta_delete { const struct meta_subject *subject; uint64_t ws; struct id op; const char *path; bool if_match; struct id match; struct digest condition; };
int meta_delete_path(struct meta *m, const struct meta_delete *d, struct arena *a, struct meta_put_result *ret) _must_check_;
/* An older version becomes the newest (a new version with those bytes, mode kept; mtime that of the old one). A deleted node comes back. code RES_NOT_FOUND: no such node or version. */
struct meta_restore { const struct meta_subject *subject; uint64_t ws; struct id op, node, version; struct page_get *pages; };
int meta_version_restore(struct meta *m, const struct meta_restore *r, struct arena *a, struct meta_put_result *ret) _must_check_;

/* ---- reading ---- */

/* Events after a cursor, oldest first, as packed by wire_pack_event (the payload of an EVENT frame). At most max_events, and as many as fit in max_bytes (always
 * one). ret_upto: where they lead (the newest, if none). -EIDRM: wrong epoch or mark, below the horizon or from the future: ret_ws tells epoch; below the horizon its predecessor is zero, else it is the cursor's epoch, and its
 * fork_seq the seq up to which that line is also the present one (0: not known). */
struct meta_event { uint64_t seq; const void *bytes; size_t n; };
int meta_events(struct meta *m, uint64_t ws, const struct cursor *after, size_t max_events, size_t max_bytes, struct arena *a,
                struct meta_event **ret, size_t *ret_n, struct cursor *ret_upto, struct meta_workspace *ret_ws) _must_check_;

/* Rows are given one by one, inside the read transaction: a sink calls nothing of meta. A row lives until the sink returns. The sink returns 0 to go on, 1 "the page is full, this row is not in it", -errno to fail. */
struct meta_sink {
        int (*node)(struct meta_sink *s, const struct node_row *row);
        int (*entry)(struct meta_sink *s, const struct entry_row *row);
};
struct meta_page { uint64_t count; bool end; struct id last_id; uint64_t last_entry; struct cursor upto; };
/* Live nodes with id > after (NULL: from the start), in key order, at most limit. */
int meta_snapshot_nodes(struct meta *m, uint64_t ws, const struct id *after, size_t limit, struct meta_sink *sink, struct meta_page *ret) _must_check_;
int meta_snapshot_entries(struct meta *m, uint64_t ws, uint64_t after, size_t limit, struct meta_sink *sink, struct meta_page *ret) _must_check_;
/* One directory as of one moment: sink->node(directory), then node, entry for each name in it, by entry id. A sink that answers 1 fails it with -EMSGSIZE. -ENOENT, -ENOTDIR. Aliases are resolved. */
int meta_dir(struct meta *m, uint64_t ws, const struct id *dir, struct meta_sink *sink, struct id *ret_dir, struct cursor *ret_at, uint64_t *ret_count) _must_check_;
/* Row and names of a node, deleted ones too (row.deleted). -ENOENT. */
int meta_node(struct meta *m, uint64_t ws, const struct id *node, struct arena *a, struct change *ret) _must_check_;
/* A path to its node. "" is the root. -ENOENT, -ENOTDIR (a component on the way is no directory), -EILSEQ, -ENAMETOOLONG. Symlinks are not followed. */
int meta_resolve(struct meta *m, uint64_t ws, const char *path, struct arena *a, struct node_row *ret) _must_check_;
struct meta_version { struct id version; struct content content; int64_t mtime_ns; uint64_t seq; int64_t time_ns; const char *actor, *device; bool latest; };
/* Kept versions of a file, newest first. -ENOENT, -EISDIR and -EINVAL for what has none. */
int meta_versions(struct meta *m, uint64_t ws, const struct id *node, size_t max, struct arena *a, struct meta_version **ret, size_t *ret_n) _must_check_;

/* ---- trash: meta_trash.c ---- */

/* Deleted nodes, newest first, with their last place. path: as it was when the node was deleted. */
struct meta_trash { struct node_row node; struct id parent; const char *name, *path; int64_t time_ns; const char *actor, *device; };
struct meta_trash_filter {
        uint64_t before_seq;             /* 0: from the newest */
        int64_t since_ns, until_ns;      /* deleted in this time (database's clock); 0: open */
        struct id node;                  /* only this one, unless zero */
        const char *path;                /* only what was there or below; NULL or "": all */
};
/* ret_before: where the next page goes on (before_seq), 0 if nothing is left. */
int meta_trash(struct meta *m, uint64_t ws, const struct meta_trash_filter *f, size_t max, struct arena *a, struct meta_trash **ret, size_t *ret_n, uint64_t *ret_before) _must_check_;
/* Brings one node back under its last name, its directories with it; a name that somebody has by now gets " (restored N)". `op` makes it safe to repeat; `job` tags
 * the event. RES_NOT_FOUND: not in the trash (any more). */
struct meta_undelete { const struct meta_subject *subject; uint64_t ws; struct id op, job, node; };
int meta_undelete(struct meta *m, const struct meta_undelete *u, struct arena *a, struct meta_put_result *ret) _must_check_;
/* Forgets content and history of a deleted node; its id stays taken, and somebody's later edit of it still comes back to its place. -ESTALE: not in the trash as `t` says any more;
 * -EBADMSG, -ENODATA: a block list cannot be read, nothing was changed. ret_bytes: quota given back. */
int meta_trash_purge(struct meta *m, uint64_t ws, const struct meta_trash *t, struct page_get *pages, uint64_t *ret_bytes) _must_check_;

struct meta_stats {
        uint64_t users, workspaces, nodes, events, operations, blocks, block_bytes, stored_bytes, objects, claims;
        uint64_t transactions, steps, rollbacks, largest_group; /* of the commit queue, since the start */
};
int meta_stats(struct meta *m, struct meta_stats *ret) _must_check_;
/* Objects of the store that a mapping refers to: for gc and verify. -ENOENT. */
int meta_object_find(struct meta *m, const char *object, uint64_t *ret_bytes) _must_check_;
