/* SPDX-License-Identifier: Apache-2.0 */
/* results.c: the answer to one operation: accepted rows go into the tree; a refusal is judged by planner.c, with what is known here about the bytes, and the tree
 * carries the decision out. Whatever happens, the operation ends in exactly one of: completed, resolved (dropped with the server's rows, or replaced by a new operation), queued
 * again, parked. An answer to an operation that is not in the outbox any more (its event was faster) changes nothing. */
#include <stdio.h>
#include <string.h>

#include "api/code.h"
#include "priv.h"

static void log_refusal(struct engine *e, const struct op *op, const struct op_result *r, const char *decision) {
        char hex[2 * ID_BYTES + 1];
        hex_encode(op->id.b, ID_BYTES, hex);
        counter_add(e->c.counters, ops_refused, 1);
        log_info("sync refused op=%s kind=%d code=%s name=\"%.*s\" decision=%s", hex, (int)op->kind, op_code_name(r->code), (int)op->name_bytes, op->name ? op->name : "", decision);
}

static void gather_facts(struct engine *e, const struct outbox_item *item, const struct op_result *r, struct plan_facts *ret) {
        struct upload *u = upload_find(e, &item->op.id);
        *ret = (struct plan_facts){ 0 };
        if (item->gen && u && u->gen == item->gen && u->state == UPLOAD_READY)
                for (size_t i = 0; i < r->n_current; i++)
                        if (id_equal(&r->current[i].node.id, &item->op.node) && !r->current[i].node.deleted)
                                ret->same_content = content_equal(&r->current[i].node.content, &u->content);
}

static int do_resolve(struct engine *e, const struct outbox_item *item, const struct op_result *r, enum resolve_kind how, struct arena *a) {
        static const char *const names[] = { "", "drop", "rebase", "conflict_copy", "new_name", "revive", "merged", "dir_name" };
        struct resolve resolve = { .kind = how, .host = e->c.host };
        struct tree_applied applied = { 0 };
        struct upload *u = upload_find(e, &r->op);
        if (how != RESOLVE_MERGED)
                log_refusal(e, &item->op, r, names[how]);
        if (how == RESOLVE_CONFLICT_COPY || how == RESOLVE_NEW_NAME || how == RESOLVE_DIR_NAME)
                counter_add(e->c.counters, conflicts, 1);
        int k = tree_resolve(e->c.cache->tree, r, &resolve, engine_is_open, e->c.cache, a, &applied);
        if (k == -EINVAL) { /* the tree would lose something by it */
                outbox_park_item(e, &r->op, EINVAL, "refused by the server, and giving it up would lose data", 600000, false);
                return 0;
        }
        if (k < 0 && k != -ENOENT)
                return k;
        if (u)
                upload_abandon(u); /* what follows has another operation id */
        if (k >= 0)
                engine_committed(e, &applied);
        return 0;
}

static int upload_missing_again(struct engine *e, const struct outbox_item *item, const struct op_result *r) {
        struct upload *u = upload_find(e, &item->op.id);
        int k = outbox_unsend(e->c.cache->tree, &item->op.id);
        if (k < 0)
                return k;
        if (!u || u->gen != item->gen || u->state != UPLOAD_READY) {
                if (!item->gen) /* a content without local bytes cannot be sent again */
                        outbox_park_item(e, &item->op.id, EIO, "the server lost blocks that are not here any more", 600000, false);
                return 0;       /* else: cut and asked anew */
        }
        return upload_missing(u, r->missing, r->n_missing);
}

/* 0: settled, 1: to be sent again as it is, or an error of the local disk; -EPROTONOSUPPORT. */
int results_handle(struct engine *e, const struct op_result *r, struct arena *a) {
        struct tree *t = e->c.cache->tree;
        struct tree_applied applied = { 0 };
        struct outbox_item item;
        struct plan_facts facts;
        struct plan plan;
        if (r->code == RES_OK) {
                struct upload *u = upload_find(e, &r->op);
                int k = tree_accepted(t, r, engine_is_open, e->c.cache, a, &applied);
                if (k < 0 && k != -ENOENT)
                        return k;
                if (u)
                        upload_abandon(u);
                if (k >= 0)
                        engine_committed(e, &applied);
                return 0;
        }
        int k = outbox_get(t, &r->op, a, &item);
        if (k == -ENOENT)
                return 0;
        if (k < 0)
                return k;
        k = tree_ids_now(t, &item.op); /* from here on only to judge by */
        if (k < 0)
                return k;
        gather_facts(e, &item, r, &facts);
        planner_decide(&item.op, r, &facts, &plan);
        switch (plan.kind) {
        case PLAN_RESOLVE:
                return do_resolve(e, &item, r, plan.resolve, a);
        case PLAN_UPLOAD_MISSING:
                return upload_missing_again(e, &item, r);
        case PLAN_RETRY:
                if (plan.retry_after_ms > 0)
                        e->outbox.retry_at_ms = MAX(e->outbox.retry_at_ms, engine_now(e) + connect_retry_ms(e, &e->outbox.backoff, plan.retry_after_ms));
                k = outbox_unsend(t, &item.op.id);
                return k < 0 ? k : 1;
        case PLAN_PARK:
                log_refusal(e, &item.op, r, "park");
                outbox_park_item(e, &item.op.id, plan.error, plan.reason, plan.retry_after_ms, true);
                return 0;
        case PLAN_UPGRADE:
                return -EPROTONOSUPPORT;
        }
        return -EPROTONOSUPPORT;
}
