/* SPDX-License-Identifier: Apache-2.0 */
/* tree_priv.h: what the files of the tree share: the struct, the rows in memory, and the helpers inside one transaction.
 *
 * Everything here runs under t->lock (RANK_TREE) inside tree_begin .. tree_end, unless a comment says otherwise. Strings and arrays of rows that are handed out
 * live in t->scratch until the transaction (or, in a long one, the event) ends. */
#pragma once
#include <stdatomic.h>

#include "base/lock.h"
#include "cache/tree.h"
#include "db.h"
#include "view.h"

#define TREE_SCHEMA_VERSION 2
#define TREE_SCHEMA_TEXT "2"
#define TREE_LISTENERS 4
#define HOLD_MS 2000           /* temporaries and files still open for writing */
#define BARRIER_MS 60000       /* unlink and rename-over wait that long for earlier contents */
#define PROTECT_MS 3000        /* a content that was handed out that long ago is not replaced any more: upload is never starved */
#define TOUCHED 4096u
#define AFTER_MAX 64u          /* ids in one `after` list */

/* Bits of table node. The incarnation is kept in the same column, 8 bits up. */
enum node_bits {
        NB_SHADOW = 1,   /* has a row in shadow: the server's row apart from the shown one */
        NB_KEPT = 2,     /* no name left, somebody has it open */
        NB_UNNAMED = 4,  /* made without a name, never linked: nothing in the outbox */
        NB_GONE = 8,     /* the server deleted it; shown because of pending work in or below it */
        NB_XATTR = 16,   /* extra has extended attributes */
        NB_CONFLICT = 64, /* extra has the mark of a conflict copy */
        NB_REMOTE = 32,  /* with NB_KEPT: the server took the last name; local content brings the node back */
        NB_HIDDEN = 128, /* no name shown, because others have those that it has on the server: nobody here unlinked it */
};
/* A node as it is in table node: the local view and what belongs to it. */
struct nrow {
        uint64_t ino;
        struct id id;
        struct vrow v;           /* v.extra only after row_extra */
        bool extra_loaded;
        uint32_t nlink, pend;    /* shown names (dirs: 2 + subdirectories); outbox rows that name it */
        uint16_t incarnation;
        uint8_t bits;
        uint64_t last_gen;       /* newest generation ever queued */
        uint64_t seq, nseq;      /* of the server's row and of its list of names; 0: not on the server */
        uint64_t parent, cookie; /* one of its names; 0: none */
        bool has_atime; int64_t atime_ns; /* as a program has set it; changed by tree_setattr only */
};

enum out_bits {
        OB_FROZEN = 1,   /* was sent once: never changed again */
        OB_BARRIER = 2,  /* unlink, rename-over: follows earlier contents */
        OB_TEMP = 4,     /* the name that it gives is a temporary's */
        OB_CHILDREN = 8, /* follows all earlier operations in a directory (ino, or ino2 for a rename over it) */
        OB_DIRMOVE = 16, /* rename of a directory: these keep their order among themselves */
};
enum out_class { CLASS_PLAIN = 0, CLASS_BARRIER = 1, CLASS_HOLD = 2 };
/* A row of the outbox. op.name, op.name2 and op.attrs are complete; op.after is not. */
struct orow {
        uint64_t ord;
        enum outbox_state state;
        uint32_t bits, rev, attempts;
        enum out_class class;
        uint64_t ino, ino2;      /* node that changes; node replaced, exchanged with, or source */
        uint64_t p1, p2;         /* parents of name and name2 */
        uint64_t gen;
        uint64_t nwait;          /* predecessors that were not sent yet */
        int64_t queued_ns, next_try_ns;
        int error;
        char reason[160];
        const uint8_t *extra;    /* packed target and attributes of op.attrs */
        size_t extra_n;
        struct op op;
};

enum number { NUMBER_INO = 0, NUMBER_COOKIE = 1, NUMBER_ORDER = 2, NUMBER_GEN = 3 /* given by the stages: tree_gen_seen */, N_NUMBERS = 4 };
struct open_set { uint64_t *ino; size_t n, room; }; /* a list of numbers */
struct handed { struct id op; int64_t first_ms; }; /* outbox rows that the engine may be working on */

struct tree {
        struct lock lock;               /* RANK_TREE: writer and all below, unless said */
        struct db *w;
        struct clock *clock;
        struct rng *rng;
        struct counters *counters;
        struct listener *listeners[TREE_LISTENERS]; /* fixed before threads start */
        size_t n_listeners;
        struct arena *scratch;
        struct { uint64_t next, limit, limit_before; } numbers[N_NUMBERS];
        uint64_t inos_known;            /* those below were given before this process */
        uint64_t ino_newest;            /* of the nodes that this process found */
        bool power_cut;                 /* this process found the file after one, and took it back to its mark */
        bool raise;                     /* who makes a round: the file is still an older program's, for which marks mean nothing */
        uint64_t born_us;               /* when this file was made: generations of files lost before it are lower */
        int64_t now_ns;                 /* of the transaction */
        struct cursor cursor, cursor_next; /* as committed; as the transaction sets it */
        struct cursor answered, answered_next; /* the same of the newest event that an answer named */
        struct note *notes;             /* of the transaction; names are malloced */
        size_t n_notes, notes_room;
        bool wake;
        bool content_only;              /* the transaction: tree_content */
        uint64_t *again;                /* nodes to settle once more before the commit */
        size_t n_again, again_at, again_room;
        bool (*is_open)(void *arg, uint64_t ino); /* of the transaction; NULL: nothing is open */
        void *is_open_arg;
        struct arena *out_arena;        /* caller's, for `out` */
        struct tree_applied *out;       /* completed operations of the transaction, or NULL */
        size_t done_room;
        struct handed *handed;
        size_t n_handed, handed_room;
        bool (*open_for_write)(void *arg, uint64_t ino);
        void *open_for_write_arg;
        void (*named)(void *arg, uint64_t ino); /* fixed: tree_on_named */
        void *named_arg;
        struct open_set namings;        /* of the transaction: tree_naming */
        bool namings_all;
        _Atomic bool complete;          /* the first load is finished */
        uint64_t n_held;                /* rows of table held: tree_held.c */
        bool portable;                  /* the workspace's name rule: tree_portable.c */

        struct lock rlock;              /* RANK_OUTBOX: the pool of readers */
        struct cond rcond;
        struct db **readers;
        bool *reader_busy;
        unsigned n_readers;

        struct lock alock;              /* RANK_QUEUE: what the transaction has asked about; see tree_asks */
        struct cond acond;
        uint64_t *asked;
        size_t n_asked, asked_room;
        unsigned waiting;               /* openers that wait for its end */
        struct open_set born;           /* made by somebody who is about to open them: tree_opened */

        struct lock slock;              /* RANK_OUTBOX: who syncs */
        struct cond scond;
        uint64_t sync_started, sync_done;
        int sync_result;                /* of the last round */
        bool syncing;
        bool dropped;                   /* who syncs: what could not be synced is not there any more */
        int (*sync_first)(void *arg);   /* bytes that rows name; NULL: there are none. Fixed, as the next three */
        void (*log_full)(void *arg);
        void *sync_arg;
        unsigned log_pages;
        bool gate;                      /* lock: no transaction begins; a checkpoint is being prepared */
        struct cond gcond;
        _Atomic uint64_t commits, commits_synced;
        _Atomic uint64_t touched[TOUCHED]; /* by ino: the last commit that queued or changed an operation of it (or of one that shares its place) */
};

/* ---- tree.c: transactions, readers, numbers, notes ---- */
int tree_begin(struct tree *t) _must_check_;  /* takes the lock even on failure: always followed by tree_end */
int tree_end(struct tree *t, int r);          /* commits if r >= 0, else rolls back; gives notes; returns r or the commit's failure */
struct db *tree_reader(struct tree *t);       /* a connection to read with; any thread; no lock of ours is held with readers > 0 */
void tree_reader_put(struct tree *t, struct db *db);
struct tree_read { struct tree *t; struct db *db; };
static inline void cleanup_tree_read_p(struct tree_read *r) { if (r->db) tree_reader_put(r->t, r->db); }
#define TREE_READ(name, tree) _cleanup_(cleanup_tree_read_p) struct tree_read name = { (tree), tree_reader(tree) }
int tree_number(struct tree *t, enum number which, uint64_t *ret) _must_check_;
int tree_gen_seen(struct tree *t, uint64_t gen) _must_check_; /* a row gets it */
int tree_note(struct tree *t, enum note_kind kind, uint64_t ino, const char *name, size_t n) _must_check_;
int tree_settle_later(struct tree *t, uint64_t ino) _must_check_;
int tree_sure_of(struct tree *t, uint64_t dir, const char *name, size_t n) _must_check_; /* -ESTALE: the caller may mean another node than the one that has this name now (struct listener) */
void tree_naming(struct tree *t, uint64_t ino); /* the transaction may give a file its only name, or take it, or the node goes; 0: of any */
void tree_touch(struct tree *t, uint64_t ino);  /* the transaction queues or changes an operation of it: more than a content, whose stage says it all */
void tree_count_commit(struct tree *t);
void tree_log_grown(struct tree *t);            /* after a transaction, without the lock: a checkpoint may be due */
int meta_get(struct db *db, const char *key, int64_t *ret) _must_check_;  /* 0 if absent */
int meta_set(struct db *db, const char *key, int64_t value) _must_check_;
int open_set_add(struct open_set *s, uint64_t ino) _must_check_;
void cleanup_open_set_p(struct open_set *s);
/* Asks the caller whether ino is open, inside the transaction, in a way that no opener can slip past: openers of ino wait from now on until the transaction has ended
 * (tree_get_open). NULL: no. Without memory to note it: yes. */
bool tree_asks(struct tree *t, bool (*is_open)(void *arg, uint64_t ino), void *arg, uint64_t ino);
bool tree_is_open(struct tree *t, uint64_t ino); /* by the transaction's own is_open */
static inline void tree_ask_by(struct tree *t, bool (*is_open)(void *arg, uint64_t ino), void *arg) { /* for this transaction; after tree_begin */
        t->is_open = is_open;
        t->is_open_arg = arg;
}
unsigned tree_waiting(struct tree *t);           /* openers that wait; for tests */
int tree_born(struct tree *t, uint64_t ino) _must_check_; /* counts as open for writing until tree_opened */
bool tree_is_born(struct tree *t, uint64_t ino);

/* ---- tree_rows.c: rows of node, entry, shadow ---- */
#define NODE_COLS "n.ino,n.id,n.mode,n.uid,n.gid,n.nlink,n.rdev,n.mtime,n.ctime_d,n.btime_d,n.size,n.csize,n.root,n.shape,n.version," \
                  "n.gen,n.last_gen,n.seq,n.nseq,n.parent,n.cookie,n.bits,n.pend,n.atime"
#define NODE_COLS_N 24
void row_read(struct db_stmt *s, int col, struct nrow *ret);
void row_public(const struct tree *t, const struct nrow *row, struct node *ret);
int row_get(struct tree *t, struct db *db, uint64_t ino, struct nrow *ret) _must_check_;                /* -ENOENT */
/* By the server's id, or one that was merged into it; -ENOENT. row_find_here: also by the id that a file had here before it was saved over another one, unsent. To the server that is another node, if
 * another life of this state has sent it. */
int row_find(struct tree *t, struct db *db, const struct id *id, uint64_t *ret_ino) _must_check_;
int row_find_here(struct tree *t, struct db *db, const struct id *id, uint64_t *ret_ino) _must_check_;
int row_extra(struct tree *t, struct nrow *row) _must_check_;
int row_insert(struct tree *t, struct nrow *row) _must_check_;  /* gives ino unless set */
int row_write(struct tree *t, const struct nrow *row) _must_check_; /* all but id, extra, pend, a directory's nlink */
int row_write_extra(struct tree *t, struct nrow *row) _must_check_;
int row_write_id(struct tree *t, uint64_t ino, const struct id *id) _must_check_;
int row_drop(struct tree *t, const struct nrow *row, uint64_t server_seq) _must_check_; /* the node, its shadow; leaves a tombstone */
enum tomb_local { TOMB_SERVER = 0, TOMB_DELETED = 1 /* here, on purpose */, TOMB_REMOTE = 2 /* by the server, while it was open here */ };
int tomb_get(struct tree *t, const struct id *id, uint64_t *ret_seq, int64_t *ret_local) _must_check_; /* 0 and seq 0: none */

struct name_at { uint64_t ino, cookie; struct id placement; bool local; };
int entry_at(struct db *db, uint64_t parent, const char *name, size_t n, struct name_at *ret) _must_check_; /* -ENOENT */
int entry_any(struct db *db, uint64_t parent) _must_check_;     /* 1: the directory has a shown entry */
int entries_of(struct tree *t, const struct nrow *row, struct vnames *ret) _must_check_;  /* shown names */
/* Adding and removing keeps nlink, parent and cookie of row (in memory and, for the parent, on disk); the caller writes row. */
int entry_add(struct tree *t, struct nrow *row, const struct vname *name) _must_check_;
int entry_remove(struct tree *t, struct nrow *row, const struct vname *name) _must_check_;
int entry_update(struct tree *t, const struct vname *name) _must_check_;                   /* placement and local bit */
int entry_freed(struct tree *t, uint64_t parent, const char *name, size_t n, uint64_t not_ino) _must_check_; /* settles who waits for that name */
int dir_touch(struct tree *t, uint64_t dir, int64_t now_ns) _must_check_;

struct server_side { bool exists, deleted; struct vrow v; struct vnames names; uint64_t seq, nseq; };
int shadow_get(struct tree *t, struct nrow *row, struct server_side *ret) _must_check_;
int shadow_put(struct tree *t, struct nrow *row, const struct server_side *s) _must_check_; /* sets or clears NB_SHADOW and NB_GONE in row; caller writes row */
int shadow_drop(struct tree *t, struct nrow *row) _must_check_;
int shadow_ensure(struct tree *t, struct nrow *row) _must_check_; /* before the first local change of a node that is on the server */

/* ---- tree_pack.c: rows as bytes ---- */
int extra_pack(struct arena *a, const char *target, const struct xattr *xattrs, size_t n, const uint8_t **ret, size_t *ret_n) _must_check_;
int extra_unpack(struct arena *a, const uint8_t *p, size_t n, const char **ret_target, const struct xattr **ret, size_t *ret_n) _must_check_;
bool extra_has_xattr(const uint8_t *p, size_t n, bool *ret_conflict /* NULL, or set to true if the mark of a conflict copy is among them */);
int vrow_pack(struct arena *a, const struct vrow *v, const uint8_t **ret, size_t *ret_n) _must_check_;
int vrow_unpack(struct arena *a, const uint8_t *p, size_t n, struct vrow *ret) _must_check_;
int vrow_from_node(struct arena *a, const struct node_row *n, struct vrow *ret) _must_check_;
int op_pack(struct arena *a, const struct orow *o, const uint8_t **ret, size_t *ret_n) _must_check_;
int op_unpack(struct arena *a, const uint8_t *p, size_t n, struct orow *o) _must_check_;  /* copies */

/* ---- outbox.c ---- */
int outbox_add(struct tree *t, struct orow *o) _must_check_;     /* gives order, id (unless set), predecessors; counts pend of its nodes */
int outbox_change(struct tree *t, struct orow *o) _must_check_;  /* writes all of a row that is not frozen; new predecessors are added */
int outbox_remove(struct tree *t, const struct orow *o) _must_check_; /* pend of its nodes goes down */
int outbox_reidentify(struct tree *t, struct orow *o) _must_check_; /* new operation id, not frozen, queued; later rows and names follow */
int outbox_state_set(struct tree *t, struct orow *o, enum outbox_state state, bool freeze) _must_check_;
int outbox_find(struct tree *t, struct db *db, struct arena *a, const struct id *id, struct orow *ret) _must_check_; /* -ENOENT */
int outbox_of_node(struct tree *t, uint64_t ino, struct orow **ret, size_t *ret_n) _must_check_; /* all rows that name it, in order */
int outbox_create_of(struct tree *t, uint64_t ino, struct orow *ret) _must_check_; /* its CREATE, -ENOENT */
int outbox_touches_dir(struct tree *t, uint64_t dir) _must_check_;     /* 1: a pending operation changes entries of dir */
int outbox_last_at(struct tree *t, uint64_t parent, const char *name, size_t n, uint64_t before, uint64_t *ret_ord) _must_check_; /* latest row before that order which names the place; 0: none */
int outbox_has_dependents(struct tree *t, const struct orow *o) _must_check_;
int outbox_to_end(struct tree *t, struct orow *o) _must_check_;  /* gives it a new place in the order; only without dependents */
int outbox_row_read(struct db_stmt *s, int col, struct arena *a, struct orow *ret) _must_check_;
#define OUT_COLS "o.ord,o.id,o.kind,o.state,o.bits,o.ino,o.ino2,o.p1,o.n1,o.p2,o.n2,o.gen,o.body,o.queued_ns,o.nwait,o.class,o.rev,o.attempts,o.error,o.next_try_ns,o.reason"
int outbox_mark_temporary(struct tree *t, struct orow *o) _must_check_; /* sets OB_TEMP by the name that it gives; outbox_add does, who changes the name too */
bool outbox_protected(const struct tree *t, const struct orow *o); /* its content must not be replaced any more */
int outbox_hand(struct tree *t, const struct id *op) _must_check_; /* the engine has it now */
int outbox_hand_since(struct tree *t, const struct id *op, int64_t since_ms) _must_check_; /* it stands for one that the engine had since then (monotonic) */
int64_t outbox_in_hand_since(const struct tree *t, const struct id *op); /* 0: it is not */
void outbox_unhand(struct tree *t, const struct id *op);
int outbox_place_hand(struct tree *t, uint64_t parent, const char *name, size_t n, int64_t since_ms) _must_check_; /* a content in hand since then leaves the place */
int64_t outbox_place_taken(struct tree *t, uint64_t parent, const char *name, size_t n); /* since when that was, or 0; told once */
int outbox_item_from(struct arena *a, const struct orow *o, struct outbox_item *ret) _must_check_;
void outbox_classify(struct orow *o);
static inline bool outbox_soft(const struct orow *o) { return o->state != OUT_SENT && !(o->bits & OB_FROZEN); }

/* ---- temporary.c ---- */
bool temporary_name(const char *name, size_t n);                 /* a name of the patterns */
bool temporary_of(const char *name, size_t n, const char *document, size_t document_n); /* what a program calls the file that it will rename over the document */
int temporary_here(struct tree *t, uint64_t dir, const char *name, size_t n) _must_check_; /* 1: a pattern's, or of a file in dir. Up to 16 SELECT by index, one or two as a rule */

/* ---- tree_settle.c: the view of one node is computed anew and written ---- */
/* s: the server's side as it is to be from now on (NULL: as it is). done_gen: generation that an operation just brought to the server as version
 * done_version: showing it as the server's content changes no byte. */
struct settle_hint { uint64_t done_gen; struct id done_version; bool own; };
int settle(struct tree *t, uint64_t ino, const struct server_side *s, const struct settle_hint *hint) _must_check_;
int settle_pending(struct tree *t) _must_check_;  /* those asked for by tree_settle_later */

/* ---- tree_held.c: inside a transaction ---- */
int held_open(struct tree *t) _must_check_;
int held_refresh(struct tree *t) _must_check_;            /* rows of nodes that are gone go; counts */
int held_add(struct tree *t, uint64_t ino) _must_check_;
int held_swap(struct tree *t, uint64_t a, uint64_t b) _must_check_; /* their identities change hands */
int held_end(struct tree *t, uint64_t ino) _must_check_;  /* the server has spoken of it again */
int held_has(struct tree *t, uint64_t ino) _must_check_;  /* 1: it is held */
int held_forget(struct tree *t, struct nrow *row) _must_check_; /* 1: it was held, and counts as never sent from now on; row is written */
int held_send(struct tree *t, uint64_t ino) _must_check_; /* it and the directories that it is in; as tree_held_send. Nothing if it is not held */
int held_send_wanted(struct tree *t) _must_check_;        /* the held directories in which something is pending */
int held_weigh(struct tree *t, uint64_t seen, uint64_t absent, bool end) _must_check_; /* adds up over the steps; at the end: does the brake hold? */
int held_rule(struct tree *t, bool same_epoch, bool *ret_all, uint64_t *ret_above_seq) _must_check_; /* what is absent is held: all, or what is newer */

int held_remove(struct tree *t, uint64_t ino) _must_check_; /* here, as if the server had said so */

/* ---- tree_newer.c: inside a transaction ---- */
int newer_open(struct tree *t) _must_check_;
int newer_abandon(struct tree *t) _must_check_;          /* what an unfinished load has found */
int newer_refresh(struct tree *t) _must_check_;          /* rows of what is gone go */
int newer_look(struct tree *t, const struct id *node, const struct vrow *server, uint64_t above_seq) _must_check_; /* notes the node if its content here is newer, and would not be shown any more */
int newer_keep(struct tree *t, const struct nrow *row, const struct server_side *side, const struct vrow *now) _must_check_; /* before the server's row is taken: the copy, if the node was noted */
int newer_settled(struct tree *t, const struct nrow *row) _must_check_; /* the node has other bytes: a copy with the same ones goes */

/* ---- tree_portable.c ---- */
int portable_open(struct tree *t) _must_check_;
/* A program gives this name, which the directory does not have, to not_ino (0: something new). -EINVAL, -EEXIST. Cost: nothing in other workspaces, else the directory's names */
int portable_name(struct tree *t, uint64_t dir, const char *name, size_t n, uint64_t not_ino) _must_check_;

/* ---- tree_apply.c ---- */
int apply_changes(struct tree *t, const struct change *changes, size_t n, uint64_t list_seq /* 0: of the rows */, const struct orow *own, const struct id *own_version) _must_check_;
int apply_done(struct tree *t, const struct orow *o, const struct content *content, const struct id *version) _must_check_;
int apply_fate(struct tree *t, const struct tree_done *done) _must_check_;
int apply_cursor(struct tree *t, const struct cursor *c) _must_check_; /* writes it, forgets tombstones behind it; caller sets t->cursor_next */
int apply_merged(struct tree *t, struct orow *o, const struct op_result *r) _must_check_;
/* Brackets of a transaction that gives tree_applied to the caller. */
int apply_begin(struct tree *t, bool (*is_open)(void *arg, uint64_t ino), void *arg, struct arena *a, struct tree_applied *out) _must_check_;
int apply_end(struct tree *t, int r);

/* ---- tree_conflict.c: the mark of a conflict copy, in a row in memory whose extra is loaded ---- */
struct conflict_mark;
int conflict_mark_get(struct tree *t, const struct nrow *row, struct conflict_mark *ret) _must_check_;   /* 1: it has one; 0 */
int conflict_mark_set(struct tree *t, struct nrow *row, const struct conflict_mark *mark) _must_check_;  /* NULL: takes it off. The caller writes extra */
int conflict_mark_make(struct tree *t, struct nrow *copy, const struct id *original, const struct id *version, const char *host) _must_check_;

/* ---- check_tree.c ---- */
int check_tree_rules(struct db *db) _must_check_; /* how many rules that hold at any moment do not */

/* ---- tree_local.c ---- */
int local_queue_attrs(struct tree *t, const struct nrow *row, uint32_t mask) _must_check_; /* what the row says in those fields: its own operation, or in a soft one */
int local_place_check(struct tree *t, uint64_t dir, const char *name, size_t n, struct nrow *ret_dir) _must_check_;
int local_new_create(struct tree *t, struct nrow *row, const struct nrow *dir, const char *name, size_t n) _must_check_; /* queues CREATE and adds the name */
void local_attrs_to_op(const struct nrow *row, struct orow *o);
int local_cancel(struct tree *t, const struct nrow *row, int64_t *io_since_ms /* or NULL */) _must_check_; /* 1: the node was never sent; its operations are gone */
/* The last name of `old` goes: 1 if the one who has its former place is its new version now (tree_rename.c). */
int local_unlink_replaced(struct tree *t, struct nrow *old, uint64_t dir, const char *name, size_t n, const struct name_at *at, struct node *ret_taker) _must_check_;
int local_drop_contents(struct tree *t, const struct nrow *row, struct id *io_base, int64_t *io_since_ms /* or NULL */) _must_check_; /* unsent contents go; base: the oldest one's; since: when
                                                                     the engine had the first of them, if earlier or if it was 0 */
int local_queue_content(struct tree *t, struct nrow *row, uint64_t gen, uint64_t size, int64_t mtime_ns, const struct id *base, uint64_t *ret_dropped) _must_check_;
int local_after_unlink(struct tree *t, struct nrow *row) _must_check_; /* asks tree_is_open if it has no name any more */
