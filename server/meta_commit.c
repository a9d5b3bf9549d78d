/* SPDX-License-Identifier: Apache-2.0 */
/* meta_commit.c: a batch of operations as a job of the commit queue: one operation = one step.
 *
 * Before it is queued: request digests, and the block lists of deep contents (meta_content.c), both on the caller's thread without any lock. If the
 * transaction finds that a list was loaded for a content that is no longer the node's (also: an operation earlier in this batch changed it), the job ends early with what
 * it has, the list is loaded anew and the rest is queued again. After PLAN_TRIES of these for one operation the answer is BUSY.
 *
 * Results are final once their transaction is on disk: `kept` trails `next` by what the open transaction has done. */
#include <assert.h>
#include <string.h>

#include "api/wire.h"
#include "meta_op.h"

#define PLAN_TRIES 8u

struct batch_job {
        struct commit_job job;
        struct meta *m;
        struct meta_batch *b;
        struct digest *digests;
        struct content_plan **plans;
        struct fresh fresh;
        size_t next, kept;
        bool again;
};

static int batch_step(struct commit_job *j) {
        struct batch_job *g = container_of(j, struct batch_job, job);
        struct meta_batch *b = g->b;
        const struct op *op = &b->ops[g->next];
        struct op_result *res = &b->results[g->next];
        *res = (struct op_result){ .op = op->id };
        const enum op_code preset = b->preset ? b->preset[g->next] : RES_OK;
        if (preset != RES_OK && preset != RES_FENCED)
                res->code = preset;
        else {
                struct space *s;
                int r = txn_space(&g->m->txn, b->ws, &s);
                if (r < 0)
                        return r;
                if (r == 0)
                        res->code = RES_FORBIDDEN;
                else {
                        struct opx x;
                        opx_init(&x, &g->m->txn, s, b->arena, b->subject, op, &g->digests[g->next], &g->fresh, g->plans[g->next]);
                        r = preset == RES_FENCED ? opx_fenced(&x, res) : opx_run(&x, res);
                        if (r == OPX_AGAIN) {
                                g->again = true;
                                return 0;
                        }
                        if (r < 0)
                                return r;
                }
        }
        return ++g->next < b->n_ops;
}

static void batch_rewind(struct commit_job *j) {
        struct batch_job *g = container_of(j, struct batch_job, job);
        g->next = g->kept;
        g->fresh.object_id = 0;
        g->again = false;
}

static void batch_keep(struct commit_job *j) {
        struct batch_job *g = container_of(j, struct batch_job, job);
        g->kept = g->next;
}

static int batch_give_up(struct commit_job *j, int err) {
        struct batch_job *g = container_of(j, struct batch_job, job);
        (void)err;
        g->b->results[g->next] = (struct op_result){ .op = g->b->ops[g->next].id, .code = RES_BUSY };
        g->kept = ++g->next;
        g->fresh.object_id = 0;
        return g->next < g->b->n_ops;
}

static bool is_deep(const struct op *op) {
        return (op->kind == OP_CREATE || op->kind == OP_CONTENT || op->kind == OP_REPLACE) && op->content.size > 0 && op->content.depth > 0 && op->content.depth <= 3;
}

/* The content that this operation would replace, as of now. */
static int prev_content(struct meta *m, uint64_t ws, const struct id *node, struct content *ret) {
        *ret = (struct content){ .size = 0 };
        _cleanup_arena_ struct arena *a = NULL;
        int r = arena_new(1u << 20, &a);
        if (r < 0)
                return r;
        _cleanup_view_ struct view v = { m, NULL };
        r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        struct node_row row;
        struct id id = *node;
        r = node_get(v.db, ws, &id, a, &row);
        if (r == 0 && (r = alias_get(v.db, ws, &id)) > 0)
                r = node_get(v.db, ws, &id, a, &row);
        if (r > 0)
                *ret = row.content;
        return r < 0 ? r : 0;
}

static int plan_from(struct batch_job *g, size_t first) {
        for (size_t i = first; i < g->b->n_ops; i++) {
                const struct op *op = &g->b->ops[i];
                if (g->plans[i] || !is_deep(op))
                        continue;
                struct content prev = { .size = 0 };
                int r = op->kind == OP_CREATE ? 0 : prev_content(g->m, g->b->ws, &op->node, &prev);
                if (r == 0)
                        r = content_plan_make(g->m, g->b->subject, g->b->ws, &op->content, &prev, g->b->pages, &g->plans[i]);
                if (r == -ENOMEM)
                        return r;
                /* Any other failure: no plan, which ends as BUSY. */
        }
        return 0;
}

static int batch_run(struct batch_job *g) {
        struct meta_batch *b = g->b;
        unsigned tries = 0;
        while (g->next < b->n_ops) {
                int r = plan_from(g, g->next);
                if (r < 0)
                        return r;
                size_t before = g->next;
                g->again = false;
                r = commit_queue_run(g->m->queue, &g->job);
                if (r < 0)
                        return r;
                if (!g->again)
                        break;
                content_plan_free(g->plans[g->next]);
                g->plans[g->next] = NULL;
                tries = g->next == before ? tries + 1 : 1;
                if (tries >= PLAN_TRIES) {
                        (void)batch_give_up(&g->job, -EAGAIN);
                        tries = 0;
                }
        }
        return 0;
}

int meta_commit(struct meta *m, struct meta_batch *b) {
        assert(b->subject && b->arena);
        if (b->n_ops == 0)
                return 0;
        struct batch_job g = {
                .job = { .step = batch_step, .rewind = batch_rewind, .keep = batch_keep, .give_up = batch_give_up },
                .m = m, .b = b,
        };
        b->results = arena_alloc(b->arena, b->n_ops * sizeof *b->results);
        g.digests = calloc(b->n_ops, sizeof *g.digests);
        g.plans = calloc(b->n_ops, sizeof *g.plans);
        int r = b->results && g.digests && g.plans ? fresh_init(&g.fresh, b->object, b->object_bytes, b->blocks, b->n_blocks) : -ENOMEM;
        for (size_t i = 0; r == 0 && i < b->n_ops; i++) {
                b->results[i] = (struct op_result){ .op = b->ops[i].id, .code = RES_BUSY };
                r = wire_op_digest(&b->ops[i], &g.digests[i]);
        }
        if (r == 0)
                r = batch_run(&g);
        for (size_t i = 0; g.plans && i < b->n_ops; i++)
                content_plan_free(g.plans[i]);
        fresh_free(&g.fresh);
        free(g.plans);
        free(g.digests);
        return r;
}
