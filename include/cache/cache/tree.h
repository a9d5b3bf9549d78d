/* SPDX-License-Identifier: Apache-2.0 */
/* tree.h: nodes, names, the outbox and the cursor: one SQLite file, one table for both arms. Every local change is one transaction {rows, outbox row}; every
 * remote batch is one transaction {rows, cursor}.
 *
 * A node is known here by `ino`, a 64-bit row id that is never reused (root = 1) and never changes; the server's id is a column. Names are rows of
 * their own; the name row's id is the readdir cookie. A node with pending local work has two rows: the server's last one (shadow) and the local view that all verbs
 * below show; the view is a pure function of the shadow and the pending operations (cache/view.c). In the view, a name that a pending operation gave wins over the
 * server's row of that name, which waits in the shadow until the operation is answered: so conflicts are decided in one place, at the answer.
 *
 * Threads: any, unless said. Verbs that change take the tree lock (RANK_TREE) for the time of one transaction; verbs that look use a read
 * connection of their own and never wait for a writer. Cost is in SQL statements per call. All strings out are copied into the caller's struct or arena. */
#pragma once
#include "base/buf.h"
#include "base/clock.h"
#include "base/counters.h"
#include "base/model.h"
#include "cache/seams.h"

#define INO_ROOT 1u

struct tree;
struct tree_config {
        const char *path;         /* of the SQLite file; its directory exists and is locked by the caller */
        const char *vfs;          /* NULL: SQLite's own; the simulation names its in-memory one */
        unsigned readers;         /* read connections; 0: reads go through the writer under the lock */
        struct clock *clock; struct rng *rng;
        struct counters *counters;
        struct listener *listener; size_t n_listeners; /* unused here when NULL; see tree_add_listener */
        unsigned log_pages;       /* the SQLite log is checkpointed beyond so many pages and cut to twice as many: it counts to the cache's limit; 0: 2,000 */
        bool power_cut;           /* the machine has started anew since the file was used: what may lack its bytes does not count */
        /* Called before each sync of the tree: makes the bytes durable that rows committed so far name. -EAGAIN: it cannot yet; then no checkpoint is made. NULL: rows name no bytes. The caller may hold
         * locks below RANK_STAGE_IO. log_full: log_pages is passed, a tree_sync soon is wanted (no locks but such; NULL: transactions see to it). */
        int (*sync_first)(void *arg);
        void (*log_full)(void *arg);
        void *sync_arg;
        uint32_t uid, gid;        /* owner of the root until the server's row is known */
};
/* Opens or creates. -EPROTONOSUPPORT: schema newer than ours, untouched. -EBADMSG: damaged (the caller moves it aside and opens anew). */
int tree_open(const struct tree_config *config, struct tree **ret) _must_check_;
void tree_close(struct tree *t);
void tree_add_listener(struct tree *t, struct listener *l); /* before other threads start; at most 4 */
/* Everything accepted so far is durable on return, with the bytes that it names. Many callers share one round: sync_first, a sync of the log, one of the mark; nothing committed since the last: none. */
int tree_sync(struct tree *t) _must_check_;

/* ---- looking ---- */
struct node {
        uint64_t ino;
        struct id id;
        enum node_kind kind;
        uint32_t mode, uid, gid, nlink; /* permission bits; dirs: 2 + subdirectories */
        uint64_t rdev;
        int64_t mtime_ns, ctime_ns, btime_ns;
        bool has_atime; int64_t atime_ns; /* set by a program on this client; else the mtime is shown */
        struct content content;   /* the server's newest that we show (file) */
        struct id version;        /* its name, or that of the pending operation that made it */
        uint64_t gen;             /* newest stage generation handed to the outbox and not yet on the server; 0: content is `content` */
        uint64_t size;            /* of the view: of gen or content */
        uint64_t parent;          /* dirs: ino of the parent; others: of one name, or 0 */
        uint64_t seq;
        uint16_t incarnation;     /* grows when remote content replaced that of an open node */
        bool has_xattrs, pending, unlinked; /* unlinked: no name left, kept while open */
        bool taken;               /* unlinked, but not here: the server took the last name, or gave it to another node. Local content (tree_content) counts and brings the node back */
        bool loaded;              /* dir: its children are known */
};
int tree_get(struct tree *t, uint64_t ino, struct node *ret) _must_check_;                                    /* -ENOENT. 1 SELECT */
/* The row for an opener that has counted its handle already: if a transaction has asked whether ino is open (below), waits for its end. -ENOENT also for a node without a name that
 * nobody has kept. Locks of the file layer may be held. 1 SELECT */
int tree_get_open(struct tree *t, uint64_t ino, struct node *ret) _must_check_;
int tree_lookup(struct tree *t, uint64_t dir, const char *name, size_t n, struct node *ret) _must_check_;     /* -ENOENT, -ENOTDIR, -EHOSTDOWN (not loaded). 1 SELECT */
int tree_find_id(struct tree *t, const struct id *id, uint64_t *ret_ino) _must_check_;
/* Ids of nodes in an operation that a merge has made other names of a node become that node's: the server's answers name nodes so. 5 SELECT */
int tree_ids_now(struct tree *t, struct op *io_op) _must_check_;
struct tree_entry { uint64_t cookie; char name[NAME_BYTES_MAX + 1]; size_t name_bytes; struct node node; };
/* Entries of dir with cookie > after, in cookie order; calls each until it returns non-zero (passed on if negative; positive stops, returns 0). No lock is held during each. */
int tree_list(struct tree *t, uint64_t dir, uint64_t after, int (*each)(void *arg, const struct tree_entry *e), void *arg) _must_check_;
int tree_readlink(struct tree *t, uint64_t ino, struct buf *ret) _must_check_;
int tree_xattr_get(struct tree *t, uint64_t ino, const char *name, struct buf *ret) _must_check_;             /* -ENODATA */
int tree_xattr_list(struct tree *t, uint64_t ino, struct buf *ret) _must_check_;                              /* names, each with its NUL */
/* One path from the root for messages ("docs/a.txt"); any of several. -ENOENT */
int tree_path(struct tree *t, uint64_t ino, struct buf *ret) _must_check_;

/* ---- local changes: each is one transaction {rows, outbox}, accepted on return ---- */
struct tree_new {
        enum node_kind kind; uint32_t mode, uid, gid; uint64_t rdev; const char *target;
        bool opens;               /* who makes it opens it for writing next: it counts as open until tree_opened, which must follow a success */
};
int tree_create(struct tree *t, uint64_t dir, const char *name, size_t n, const struct tree_new *what, struct node *ret) _must_check_; /* -EEXIST -ENOTDIR -ENOENT -EILSEQ -ENAMETOOLONG */
/* A conflict copy without content for handles of the file whose bytes are not its own any more: beside it, also where nobody sees that directory or the file's name for now, marked with the version that
 * the file shows, under a free name made of its name, which is returned. -ENOENT: no such file. */
int tree_create_copy(struct tree *t, uint64_t ino, const char *host, struct node *ret, char ret_name[static NAME_BYTES_MAX + 1]) _must_check_;
void tree_opened(struct tree *t, uint64_t ino); /* the handle is counted, or there will be none */
int tree_create_unnamed(struct tree *t, uint64_t dir, const struct tree_new *what, struct node *ret) _must_check_;  /* O_TMPFILE: nothing in the outbox until linked */
int tree_link(struct tree *t, uint64_t ino, uint64_t dir, const char *name, size_t n, struct node *ret) _must_check_;      /* -EPERM for a dir, -EEXIST, -EMLINK */
/* rmdir false: -EISDIR for a directory; true: -ENOTDIR, -ENOTEMPTY. ret: the node after it (nlink 0 and `unlinked` if that was its last name). The node's row stays until
 * tree_forget if `kept` says somebody has it open. */
int tree_unlink(struct tree *t, uint64_t dir, const char *name, size_t n, bool rmdir, bool (*kept)(void *arg, uint64_t ino), void *arg, struct node *ret) _must_check_;
/* Likewise. ret_taker: the node that has its id now, as after a rename over it (who moved a file aside deletes it): the caller tells file_renamed. ino 0: none. */
int tree_unlink_taken(struct tree *t, uint64_t dir, const char *name, size_t n, bool rmdir, bool (*kept)(void *arg, uint64_t ino), void *arg, struct node *ret, struct node *ret_taker) _must_check_;
/* flags: RENAME_NOREPLACE, RENAME_EXCHANGE of renameat2. Atomic-save pattern (an unsent temporary over a file, both with one link): becomes OP_REPLACE on the
 * target's id: ret_moved keeps its ino and takes the target's id and history; the old inode becomes the orphan ret_replaced. */
int tree_rename(struct tree *t, uint64_t dir, const char *name, size_t n, uint64_t dir2, const char *name2, size_t n2, unsigned flags,
                bool (*kept)(void *arg, uint64_t ino), void *arg, struct node *ret_moved, struct node *ret_replaced /* ino 0: none */) _must_check_;
struct tree_attrs { uint32_t mask; /* enum attr_mask */ uint32_t mode, uid, gid; int64_t mtime_ns, btime_ns; bool has_atime; int64_t atime_ns; /* kept by this client alone */ };
int tree_setattr(struct tree *t, uint64_t ino, const struct tree_attrs *a, struct node *ret) _must_check_;
int tree_xattr_set(struct tree *t, uint64_t ino, const char *name, const void *value, size_t n, int flags /* XATTR_CREATE, XATTR_REPLACE */) _must_check_; /* -ENOSPC over XATTR_TOTAL_MAX */
int tree_xattr_remove(struct tree *t, uint64_t ino, const char *name) _must_check_;
/* A sealed generation of ino's bytes: {size, mtime, gen} on the row and OP_CONTENT (or the content of a still unsent create or content) in the outbox.
 * base_version: version under the stage. ret_dropped_gen: an unsent older generation that this one replaces in the outbox, or 0 (the stage stack keeps it as a layer). */
int tree_content(struct tree *t, uint64_t ino, uint64_t gen, uint64_t size, int64_t mtime_ns, const struct id *base_version, uint64_t *ret_dropped_gen) _must_check_;
/* An unlinked node that nobody has open any more: the row goes. 0 also if it has names (again). */
int tree_forget(struct tree *t, uint64_t ino) _must_check_;

/* ---- outbox ---- */
enum outbox_state { OUT_QUEUED = 0, OUT_SENT = 1, OUT_PARKED = 2 };
struct outbox_item {
        uint64_t order;                 /* local order */
        enum outbox_state state;
        uint64_t ino, gen;              /* gen: stage whose content the operation carries, 0: none */
        struct op op;                   /* as it will be sent, but for content and inline bytes when gen != 0 */
        int64_t queued_ns;              /* real time, for `oldest_pending_s` */
        unsigned attempts; int error; int64_t next_try_ns; /* parked (real time) */
        char reason[160];
};
/* Items that may go now, in local order, with their `after` lists: neither parked before their next try, nor held by the 2 s rule for temporaries
 * and open files, nor behind a barrier; an item whose predecessors are earlier in the same answer or sent is included. Arena owns the strings. */
int outbox_next(struct tree *t, struct arena *a, struct outbox_item *items, size_t max, size_t *ret_n, int64_t *ret_wait_ms /* until something becomes ready by time; -1: nothing */) _must_check_;
/* Durable before return: these rows are frozen: never changed, merged or cancelled any more. Idempotent. */
int outbox_mark_sent(struct tree *t, const struct id *ops, size_t n) _must_check_;
int outbox_unsend(struct tree *t, const struct id *op) _must_check_;  /* the server said SKIPPED or BUSY: may be sent again with the same id; stays frozen */
int outbox_park(struct tree *t, const struct id *op, int error, const char *reason, int64_t next_try_ns) _must_check_;
/* The server refused it: as outbox_park, and the row has a new operation id and may be changed, merged and cancelled again. */
int outbox_park_refused(struct tree *t, const struct id *op, int error, const char *reason, int64_t next_try_ns) _must_check_;
int outbox_unpark(struct tree *t, const struct id *op) _must_check_;  /* tried at once; zero id: all */
/* 1 and the errno (positive) of a parked row that ino's changes are or wait for; 0: none. 1 SELECT, by index */
int outbox_parked_error(struct tree *t, uint64_t ino, int *ret_error) _must_check_;
int outbox_retry(struct tree *t, uint64_t ino) _must_check_;          /* those rows are tried at once */
int outbox_get(struct tree *t, const struct id *op, struct arena *a, struct outbox_item *ret) _must_check_; /* -ENOENT */
int outbox_carries(struct tree *t, uint64_t gen) _must_check_;  /* 1: an operation carries this generation (of whatever node by now), 0: none. 1 SELECT, indexed */
int outbox_list(struct tree *t, struct arena *a, bool parked_only, struct outbox_item *items, size_t max, size_t *ret_n) _must_check_;
struct outbox_totals { uint64_t items, files, parked, sent; int64_t oldest_ns; uint64_t mutations; /* ever queued */ };
int outbox_totals(struct tree *t, struct outbox_totals *ret) _must_check_;
/* Called before the 2 s hold is computed: is ino open for writing now? Set once. */
void outbox_set_open_check(struct tree *t, bool (*open_for_write)(void *arg, uint64_t ino), void *arg);

/* Told after each transaction that gave a file (ino; 0: any) its only name or took it. Queues only, RANK_QUEUE at most. Set once. */
void tree_on_named(struct tree *t, void (*named)(void *arg, uint64_t ino), void *arg);

/* ---- remote rows ---- */
/* What became of a generation of ours; the caller tells file.c (file_committed). COMMITTED: its content is on the server as `content`, `version`. MOVED: nothing was committed, the local
 * bytes of gen now belong to ino, a new node (conflict copy); its open handles follow. DROPPED: the server won, gen is no longer in the outbox nor shown. */
enum tree_fate { FATE_COMMITTED = 0, FATE_MOVED = 1, FATE_DROPPED = 2 };
struct tree_done { struct id op; uint64_t ino, gen; struct content content; struct id version; enum tree_fate fate; };
struct tree_applied { struct tree_done *done; size_t n_done; /* arena */ uint64_t changed_nodes; };
/* Events in seq order. One transaction: rows with a greater seq (shadow, or view where nothing is pending), completed operations, cursor. Notes go out after the
 * commit. is_open: node has open handles or an open stage: its incarnation grows when its shown content changes. Applying anything twice changes nothing. */
/* is_open and kept of all verbs are asked inside the transaction, with the tree lock held: they take RANK_QUEUE at most and do not call back. Openers count first, then read by
 * tree_get_open: so none slips between the question and the commit. open_for_write is asked with no lock held. */
int tree_apply(struct tree *t, const struct event *events, size_t n, const struct cursor *upto /* NULL: leave */,
               bool (*is_open)(void *arg, uint64_t ino), void *arg, struct arena *a, struct tree_applied *ret) _must_check_;
/* How many of these events may be applied now. Fewer than n: the event behind them tells of an operation of ours below a directory that the server has merged into another one, and the
 * answer that says so is still to come; applied now, what was made there would be shown nowhere until then. 3 SELECTs per event, all by key; none without an outbox */
int tree_apply_ready(struct tree *t, const struct event *events, size_t n, struct arena *a, size_t *ret_n) _must_check_;
/* An answer of the server to a sent operation. accepted: as its event. */
int tree_accepted(struct tree *t, const struct op_result *r, bool (*is_open)(void *arg, uint64_t ino), void *arg, struct arena *a, struct tree_applied *ret) _must_check_;
/* A refusal, as the planner decided it (sync/planner.h). The current rows of the refusal are applied first, in the same transaction. */
enum resolve_kind {
        RESOLVE_DROP = 1,          /* the server wins; the operation goes, the view is computed anew */
        RESOLVE_REBASE = 2,        /* same intent, new operation id, bases from the current rows */
        RESOLVE_CONFLICT_COPY = 3, /* local content becomes a new node NAME (conflict HOST N).EXT beside it, with its own CREATE; the original shows the server's row */
        RESOLVE_NEW_NAME = 4,      /* the name is taken: same node, conflict name, new operation id */
        RESOLVE_REVIVE = 5,        /* content again with OPF_REVIVE, new operation id */
        RESOLVE_DIR_NAME = 7,      /* a file has the name of our new directory: the directory gets it, the file the conflict name */
        RESOLVE_MERGED = 6,        /* r->merged_into stands for our node: children and handles move to it, our ino stays */
};
struct resolve { enum resolve_kind kind; const char *host; /* for conflict names */ };
int tree_resolve(struct tree *t, const struct op_result *r, const struct resolve *how, bool (*is_open)(void *arg, uint64_t ino), void *arg, struct arena *a,
                 struct tree_applied *ret) _must_check_;

/* "NAME (conflict HOST N).EXT", shortened at a UTF-8 boundary to 255 bytes; of a conflict name: the one with another HOST and N, not two suffixes. Pure. */
void conflict_name(const char *name, size_t n, const char *host, unsigned number, char ret[NAME_BYTES_MAX + 1]);
/* NAME.EXT without such suffixes; the name itself if it has none. Pure. */
void conflict_plain(const char *name, size_t n, char ret[NAME_BYTES_MAX + 1]);

/* Conflict copies that nobody has resolved (marked, and still under a conflict name), and what has the name that they were made for: wherever that is now, ino 0 if it is gone.
 * Calls each without a lock until it returns non-zero (negative is passed on). 1 SELECT by a partial index, and some for each of them. */
struct tree_conflict { struct node copy, original; uint64_t parent; const char *name; /* of the copy */ struct id version; /* that was there first */ const char *host; };
int tree_conflicts(struct tree *t, int (*each)(void *arg, const struct tree_conflict *c), void *arg) _must_check_;
int tree_conflict_count(struct tree *t, uint64_t *ret) _must_check_;

int tree_cursor(struct tree *t, struct cursor *ret) _must_check_; /* -ENOENT: nothing was ever loaded */
/* The newest event that an answer has named (tree_accepted), while it is ahead of the cursor: the server must know it as it must know the cursor. Forgotten when a snapshot begins. -ENOENT: none */
int tree_answered(struct tree *t, struct cursor *ret) _must_check_;
/* A new snapshot: rows go into side tables without constraints; events up to E meet them there; then the difference is applied in bounded steps, upserts before deletes,
 * cursor last. Restartable: begin with the same epoch resumes, and tells where the scans stand. The shown tree stays as it was until apply. */
struct snapshot_state { struct id epoch; struct id nodes_after; uint64_t entries_after; bool nodes_end, entries_end; struct digest nodes_digest, entries_digest; struct cursor from, upto; };
int tree_snapshot_begin(struct tree *t, const struct cursor *from, struct snapshot_state *ret) _must_check_;
int tree_snapshot_nodes(struct tree *t, const struct node_row *rows, size_t n, const struct snapshot_state *after_page) _must_check_;
int tree_snapshot_entries(struct tree *t, const struct entry_row *rows, size_t n, const struct snapshot_state *after_page) _must_check_;
int tree_snapshot_events(struct tree *t, const struct event *events, size_t n) _must_check_;
/* Applies at most max_rows; 1: more to do, 0: finished and the cursor is `upto`. */
int tree_snapshot_step(struct tree *t, const struct cursor *upto, size_t max_rows, bool (*is_open)(void *arg, uint64_t ino), void *arg) _must_check_;
int tree_snapshot_abandon(struct tree *t) _must_check_;
/* Before the load of another epoch: the server says which one it came from, and up to which seq it agrees with it. Without this call nothing is removed by a snapshot of another epoch. */
int tree_snapshot_fork(struct tree *t, const struct id *predecessor, uint64_t fork_seq) _must_check_;
/* The brake (tree_held.c): nodes that a snapshot would have removed and that are kept until the user lets them go. */
uint64_t tree_held(struct tree *t);
int tree_held_list(struct tree *t, uint64_t after_ino, int (*each)(void *arg, const struct node *node), void *arg) _must_check_; /* as tree_list, in order of ino */
int tree_held_drop(struct tree *t, size_t max, bool (*is_open)(void *arg, uint64_t ino), void *arg) _must_check_; /* removes up to max of them; 1: more to do */

/* A held directory, symlink or empty file, and the held directories that it is in, go to the server as new ones. -ENOENT: it is not held. -ENODATA: a file with bytes (save it over). -EEXIST: something of
 * the server has its name by now. -EMLINK: it has several names. -EAGAIN: something of it is on its way. */
int tree_held_send(struct tree *t, uint64_t ino) _must_check_;

/* Newer here (tree_newer.c). While the steps of a snapshot go on: contents that will not be shown any more, and must not be evicted until they are copies; asked: only those of which nobody has
 * said yet whether all of their bytes are here. As tree_held_list. */
int tree_newer_list(struct tree *t, bool asked, int (*each)(void *arg, uint64_t ino, const struct content *content), void *arg) _must_check_;
int tree_newer_answer(struct tree *t, uint64_t ino, bool here) _must_check_;
/* 1: the held node is such a copy, 0: it is not. original: 0 if that is gone. changed: it has other bytes by now than when the copy was made. 2 SELECTs */
struct tree_newer { uint64_t original; bool changed; };
int tree_newer_of(struct tree *t, uint64_t ino, struct tree_newer *ret) _must_check_;
/* Files whose newer bytes were here in part only, and are lost; and people have seen that (0: of all). */
int tree_newer_lost(struct tree *t, int (*each)(void *arg, uint64_t ino, uint64_t size, int64_t mtime_ns), void *arg) _must_check_;
int tree_newer_seen(struct tree *t, uint64_t ino) _must_check_;

/* Everything that was queued about ino so far is durable. May say no for some ms longer than needed, never yes too early. 0 SQL */
bool tree_synced(struct tree *t, uint64_t ino);
/* Files with a name that pending operations name; each until it returns non-zero, as tree_list. 1 SELECT */
int tree_pending_files(struct tree *t, int (*each)(void *arg, const struct node *n), void *arg) _must_check_;
struct tree_totals { uint64_t files, nodes, entries, content_bytes; bool complete; /* first load finished */ };
int tree_totals(struct tree *t, struct tree_totals *ret) _must_check_;
/* The workspace has portable names, for good: names that a program gives are looked at (tree_portable.c: -EINVAL, -EEXIST). */
int tree_portable_names(struct tree *t) _must_check_;
/* Small durable settings of the client (workspace id, device, host name, ...). */
int tree_setting_get(struct tree *t, const char *key, struct buf *ret) _must_check_; /* -ENOENT */
int tree_setting_set(struct tree *t, const char *key, const void *value, size_t n) _must_check_;

/* Recovery: a stage found on disk without its row. If the node lives, its content is queued; else the node is made again under its name (or in lost+found/). */
struct stage_identity { uint64_t ino, gen, below_gen; struct id node, parent, base_version; char name[NAME_BYTES_MAX + 1]; uint32_t mode; int64_t mtime_ns; uint64_t size; };
/* A tree file that was made anew (the old one is lost) must not take the generations of its predecessor for its own, whatever the clock says: the first call after it was made
 * says that everything up to gen is older than the file. Later calls change nothing. */
int tree_birth(struct tree *t, uint64_t gen) _must_check_;
/* Stages on disk name inos up to this one: none of them is given again, from now on and for good. One transaction, if it was not so. */
int tree_inos_above(struct tree *t, uint64_t ino) _must_check_;
/* No row has, or has had, a higher generation; those that are given from now on must be, whatever the clock says, because a stage that is not newer than its node counts as superseded. */
uint64_t tree_gens(struct tree *t);
/* True if a stage of this generation is older than the tree file and the tree was not loaded yet: nothing can be said about its node before that. */
bool tree_recovers_later(struct tree *t, uint64_t gen);
enum recover_result { RECOVER_QUEUED, RECOVER_KNOWN /* already in the outbox */, RECOVER_COMMITTED /* on the server: the stage may go */, RECOVER_LOST_FOUND, RECOVER_BEHIND /* a power cut took its node back */ };
/* A power cut left the row of an operation that carries gen, but not its bytes. The operation gets those of an older generation of the file that are here (older: gen, size, mtime_ns), or a
 * CREATE becomes that of an empty file. Nothing was sent of it. -EINVAL: neither is possible, or it was sent: the caller drops it, and the server's version shows. */
int tree_content_lost(struct tree *t, uint64_t gen, const struct stage_identity *older) _must_check_;
int tree_queued_after(struct tree *t, uint64_t ino, uint64_t gen) _must_check_; /* 1: a newer generation of ino was queued, whatever became of it. 0: none, or no such node. 1 SELECT */
int tree_recover_stage(struct tree *t, struct stage_identity *s /* ino, node: updated to the node that has it now */, enum recover_result *ret) _must_check_;
/* 1: after a power cut the tree does not know what the stage stands on any more (an operation that was not sent); ret_base is what it stands on now, as tree_recover_stage would have it. 0: it does,
 * or there is no such node. For stages that are shown, and not queued. 2 SELECTs */
int tree_recover_base(struct tree *t, const struct stage_identity *s, struct id *ret_base) _must_check_;
/* The bytes of the new file that this operation makes are gone (a power cut before they were local, damage): it is an empty one. -ENOENT: no such CREATE is pending. */
int tree_lost_content(struct tree *t, const struct id *op) _must_check_;
