/* SPDX-License-Identifier: Apache-2.0 */
/* meta_maintain.h: what looking after the metadata needs: garbage collection, marks on damaged blocks, the invariants, a copy for a backup.
 * Rules of meta.h hold: any thread, one transaction per function, negative errnos. */
#pragma once
#include "meta.h"

/* ---- damaged blocks ---- */

/* The bytes of this block at this place are damaged (bad) or were read well (not bad). Harmless if the block lies elsewhere by now. Cost: one transaction. */
int meta_block_mark(struct meta *m, const struct meta_place *place, bool bad) _must_check_;

/* ---- garbage ---- */

struct meta_gc_step {
        struct digest after_hash;        /* in/out: where the scan of blocks stands; zero: start */
        uint64_t after_object;           /* in/out: likewise of objects */
        bool end;                        /* out: nothing follows */
        uint64_t blocks, bytes;          /* out: of this step, bytes as stored */
};
/* Marks blocks dead that no version refers to and no claim holds, in objects made before `before_ns`: they count as missing from then on. One step looks at `batch` rows. */
int meta_gc_mark(struct meta *m, int64_t before_ns, size_t batch, bool dry_run, struct meta_gc_step *s) _must_check_;
/* Forgets the mapping of blocks that were marked before `before_ns` and still are neither referred to nor claimed. */
int meta_gc_sweep(struct meta *m, int64_t before_ns, size_t batch, bool dry_run, struct meta_gc_step *s) _must_check_;
/* Forgets objects made before `before_ns` that hold no mapped block and that `busy` (may be NULL; called inside the transaction) does not name; ret_names[n] (n <= batch) are
 * for the store to remove. */
typedef char meta_object_name[33];
int meta_gc_objects(struct meta *m, int64_t before_ns, size_t batch, bool dry_run, bool (*busy)(void *arg, const char *object), void *arg, struct meta_gc_step *s,
                    meta_object_name *ret_names, size_t *ret_n) _must_check_;
struct meta_object { uint64_t id, bytes; meta_object_name name; int64_t created_ns; };
/* Of the next `batch` objects those that hold live blocks, but are at most `percent` full of them: their number in s->blocks and the bytes that nobody needs in s->bytes. ret (room for
 * batch; NULL: not wanted): they. Reads only. */
int meta_gc_sparse(struct meta *m, unsigned percent, size_t batch, struct meta_gc_step *s, struct meta_object *ret, size_t *ret_n) _must_check_;
/* Blocks get another place: one transaction. Those that do not lie any more where they are said to lie, are dead or bad, stay. Objects that hold no block after it are forgotten, unless `busy` (called
 * inside the transaction) names them; so is the new one if nothing lies in it. removed has room for n + 1. */
struct meta_moved { struct digest hash; uint64_t from_object, from_offset, to_offset; };
struct meta_move {
        const char *object; uint64_t bytes; int64_t created_ns; /* of the new one, which is durable in the store */
        const struct meta_moved *blocks; size_t n;
        bool (*busy)(void *arg, const char *object); void *busy_arg;
        meta_object_name *removed;                              /* out, with the next three: for the store to remove */
        size_t n_removed, n_moved; uint64_t removed_bytes;
};
int meta_blocks_move(struct meta *m, struct meta_move *move) _must_check_;
/* Objects by number, after `after`: name, length. */
int meta_objects(struct meta *m, uint64_t after, size_t max, struct meta_object *ret, size_t *ret_n) _must_check_;
/* Live blocks that lie in one object, by hash. In the arena. */
int meta_object_blocks(struct meta *m, const struct meta_object *o, struct arena *a, struct meta_place **ret, size_t *ret_n) _must_check_;
int64_t meta_now_ns(struct meta *m);     /* the database's clock */

/* ---- the invariants ---- */

/* Told of each thing that is wrong (ws 0: not of one workspace); calls nothing of meta. text is one line. */
struct meta_report { void (*problem)(struct meta_report *p, uint64_t ws, const char *kind, const char *text); bool (*stopped)(struct meta_report *p); };
/* One view of the whole database, on a connection of its own (in memory: the one there is, locked), so that a server may go on meanwhile. One thread. */
struct meta_checker;
int meta_checker_open(struct meta *m, struct meta_checker **ret) _must_check_;
void meta_checker_close(struct meta_checker *k); /* NULL fine */
/* Rows against rows, and the log against the rows: the list is in meta_check.c. -ECANCELED: stopped. */
int meta_check_rows(struct meta_checker *k, struct meta_report *report) _must_check_;
int meta_check_spaces(struct meta_checker *k, struct arena *a, uint64_t **ret_ws, size_t *ret_n) _must_check_;
/* Every version of every node, by node, each node's from old to new: up to `max` nodes after `after` (NULL: from the start). In the arena. */
struct meta_check_content { struct id node; struct content content; bool first; };
int meta_check_contents(struct meta_checker *k, uint64_t ws, const struct id *after, size_t max, struct arena *a, struct meta_check_content **ret, size_t *ret_n,
                        struct id *ret_last, bool *ret_end) _must_check_;
/* References as the table has them, by hash. each: non-zero stops and is returned. */
struct meta_ref { struct digest hash; uint64_t refs; uint32_t raw; };
int meta_check_refs(struct meta_checker *k, uint64_t ws, int (*each)(void *arg, const struct meta_ref *ref), void *arg) _must_check_;
int meta_check_objects(struct meta_checker *k, int (*each)(void *arg, const char *object, uint64_t bytes), void *arg) _must_check_;
int meta_check_place(struct meta_checker *k, const struct digest *hash, struct arena *a, struct meta_place *ret) _must_check_; /* of a live block, whoever it belongs to */
/* All blocks of a content, pages included, distinct and sorted by hash; the caller frees it. -ENODATA a page is not there, -EBADMSG the list is wrong. */
int meta_content_set(const struct content *content, struct page_get *pages, struct blockref **ret, size_t *ret_n) _must_check_;

/* The blocks that begin a run with `now`, the version of a node after `prev` (NULL: its first), as a commit counts them. each: non-zero stops and is returned. */
struct meta_set { struct content content; struct blockref *refs; size_t n; };
int meta_runs(const struct meta_set *prev, const struct meta_set *now, int (*each)(void *arg, const struct blockref *ref), void *arg) _must_check_;

/* Repairs, for a database that nobody else uses. */
int meta_refs_set(struct meta *m, uint64_t ws, const struct meta_ref *refs, size_t n) _must_check_; /* refs 0 removes */
int meta_object_lost(struct meta *m, const char *object) _must_check_; /* its blocks are wanted anew */
/* Repairs one workspace, see meta_repair.c. forget_log: the log does not fit the rows. ret_epoch: clients will load anew. */
int meta_repair(struct meta *m, uint64_t ws, bool forget_log, bool *ret_epoch) _must_check_;

/* ---- copies ---- */

/* The whole database as of one moment as a new file, which must not exist; not yet synced. */
int meta_copy(struct meta *m, const char *path) _must_check_;
