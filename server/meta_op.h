/* SPDX-License-Identifier: Apache-2.0 */
/* meta_op.h: one operation between its arrival and its event. Shared by meta_op.c (rows, plan, event, results), meta_decide.c (what is
 * allowed), meta_content.c (blocks), meta_commit.c and meta_path.c (who asks).
 *
 * An operation is decided on rows read into `work`, which it changes in memory, and on a list of names to remove and to add. Nothing is written until it is accepted; a
 * refusal throws the plan away and shows the rows as they were. Functions that decide return a negative errno (database, memory) or an enum op_code;
 * OPX_AGAIN means that the block lists loaded beforehand do not fit any more: load them again outside the transaction. */
#pragma once
#include "meta_int.h"

#define OPX_AGAIN 1000

/* Block lists of a content with depth > 0, loaded before the transaction. Sets are distinct, sorted by hash, pages included. */
struct content_plan {
        struct content content; struct blockref *set; size_t n;
        struct content prev; struct blockref *prev_set; size_t prev_n; /* prev: content of the node then; loaded if both are deep */
        struct digest *missing; size_t n_missing;  /* pages that the subject may not name or that are not there */
        enum op_code code;                         /* RES_CORRUPT, RES_TOO_LARGE: the list is wrong */
};
int content_plan_make(struct meta *m, const struct meta_subject *subject, uint64_t ws, const struct content *content, const struct content *prev, struct page_get *pages,
                      struct content_plan **ret) _must_check_;
void content_plan_free(struct content_plan *p);

/* Blocks that came with the request, durable in one object. */
struct fresh { const char *object; uint64_t object_bytes; const struct meta_block *blocks; size_t n; uint32_t *order; int64_t object_id; };
int fresh_init(struct fresh *f, const char *object, uint64_t object_bytes, const struct meta_block *blocks, size_t n) _must_check_;
void fresh_free(struct fresh *f);

enum run_state { RUN_KNOWN, RUN_CLAIMED, RUN_FRESH, RUN_HEALED /* referred to here, its damaged bytes came anew */, RUN_REPEATED /* likewise, and the node's last version has it: no other reference */ };
struct run { struct digest hash; uint32_t raw, reserved; enum run_state state; const struct meta_block *fresh; };

struct work {
        struct node_row row, was;     /* planned; as in the database */
        bool is_new, dirty, names;    /* names: its list of names changes */
        const struct entry_row *entries; size_t n_entries; /* after it was written, if names */
        struct work *next;
};
struct move { bool add; struct entry_row entry; struct move *next; };

struct opx {
        struct txn *t; struct sql *db; struct space *s; struct arena *a;
        const struct meta_subject *subject;
        const struct op *op;
        struct digest digest;
        struct fresh *fresh;
        const struct content_plan *plan;
        int64_t now_ns, when_ns;      /* event time; the operation's own time */
        struct work *work, **work_end;
        struct move *moves, **moves_end;
        struct run *runs; size_t n_runs; uint64_t bytes_more, bytes_released;
        struct id merged_into, stands_placement, stands_version; /* merged: what stands for ours */
        struct id main;               /* node that the operation is about (after aliases) */
        struct id replaced_version;   /* content version that it replaced */
        const struct digest *missing; size_t n_missing;
        bool rename_taken;            /* reviving: a file whose name is taken gets another one too */
        struct id job;                /* of the event */
};

/* ---- meta_op.c ---- */
void opx_init(struct opx *x, struct txn *t, struct space *s, struct arena *a, const struct meta_subject *subject, const struct op *op, const struct digest *digest,
              struct fresh *fresh, const struct content_plan *plan);
/* The node, aliases resolved, loaded once: 1, 0 none, -errno. */
int opx_work(struct opx *x, const struct id *id, struct work **ret) _must_check_;
int opx_new(struct opx *x, const struct node_row *row, struct work **ret) _must_check_;
int64_t opx_ctime(const struct opx *x, const struct work *w, int64_t when_ns); /* of a node that changes: the given time, but not less than the ctime that it has */
void opx_touch_dir(struct opx *x, struct work *dir);   /* mtime and ctime of a directory whose names change */
int opx_add_name(struct opx *x, const struct work *parent, const char *name, size_t n, struct work *node) _must_check_;
int opx_remove_name(struct opx *x, const struct entry_row *e, struct work *node) _must_check_;
/* Whether a base named by an operation id is `current`, directly or through a merge. 1, 0, -errno. */
int opx_base(struct opx *x, const struct id *base, const struct id *current, bool placement) _must_check_;
/* Everything about one operation: replay, rights, `after`, decision, writing, result. 0 (code in ret) or -errno; OPX_AGAIN. */
int opx_run(struct opx *x, struct op_result *ret) _must_check_;
/* Likewise for one whose lease has ended: what it was answered before, or RES_FENCED with the rows as they are. */
int opx_fenced(struct opx *x, struct op_result *ret) _must_check_;
/* The steps of it, for operations made by paths. */
int opx_replay(struct opx *x, struct op_result *ret) _must_check_;  /* 1 answered, 0 new, -errno */
int opx_finish(struct opx *x, int code, struct op_result *ret) _must_check_; /* code: what was decided */
int opx_allowed(struct opx *x) _must_check_;           /* RES_OK, RES_FORBIDDEN, -errno */

/* ---- meta_decide.c ---- */
/* A name that is given in a directory where no entry has these bytes: RES_OK, RES_NAME_INVALID; RES_EXISTS in a portable workspace, if another one is equal to it there. */
int opx_new_name(struct opx *x, const struct id *parent, const char *name, size_t n) _must_check_;
int opx_decide(struct opx *x) _must_check_;
int opx_set_content(struct opx *x, struct work *w, const struct content *c) _must_check_;
int opx_revive(struct opx *x, struct work **w) _must_check_;

/* ---- meta_content.c ---- */
int content_check(struct opx *x, const struct content *c, const struct content *prev) _must_check_;  /* fills runs, missing */
int content_apply(struct opx *x) _must_check_;
