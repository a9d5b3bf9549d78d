/* SPDX-License-Identifier: Apache-2.0 */
/* outbox.c: local operations, in batches, to the server.
 *
 *   state       is when           leaves on
 *   idle        !look             a wake (an outbox row came), an upload became ready, a time came -> lingering
 *   lingering   look_at_ms        15 ms later: looking
 *   looking     (within a turn)   nothing to send -> idle; else -> in flight
 *   in flight   in_flight         answered -> results.c -> looking; failed -> rows queued again, waiting
 *   waiting     retry_at_ms       time, or the connection is back -> looking
 *
 * One commit is in flight at a time, with as many operations as fit: the tree's order is then the server's order without any window to reason about. The contents of
 * large files travel beside it (upload.c) and only their commit joins a batch when they are there, so a big upload blocks nothing else. While a commit is in flight
 * the outbox is looked at only to get uploads going.
 *
 * What goes into a batch, in local order: an item is left out if its content is not ready, or if it comes `after` one that is left out. Renames over something, replaces and
 * unlinks are barriers: they wait for every earlier content that was left out, unless that has waited for 60 s or is parked (the tree leaves those out by itself).
 *
 * Sending: the rows are marked sent, durably; only then are they read again and put into the body, because a local change may have merged into or cancelled them in between.
 * Nothing changes a sent row. An answer that never came leaves them sent; they are queued again with the same ids and contents, and the server
 * answers what it answered before.
 *
 * A whole request that is refused (4xx): it is narrowed down to one operation, which is parked with the reason; the others go on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "priv.h"
#include "base/failpoint.h"

#define BARRIER_WAIT_NS 60000000000ll
#define BUSY_LOOK_MS 50 /* between two looks while a commit is in flight */

void outbox_init(struct engine *e) {
        e->outbox.backoff = (struct backoff){ .base_ms = 100, .cap_ms = 5000 };
        e->outbox.limit = BATCH_OPS_MAX;
        e->outbox.wait_until_ms = NEVER;
        outbox_look(e);
}

void outbox_free(struct engine *e) {
        free(steal_ptr(e->outbox.batch.ops));
}

void outbox_look(struct engine *e) {
        struct outbox *o = &e->outbox;
        if (o->look)
                return;
        o->look = true;
        o->look_at_ms = engine_now(e) + BATCH_LINGER_MS;
}

void outbox_park_item(struct engine *e, const struct id *op, int error, const char *reason, int64_t retry_ms, bool refused) {
        char hex[2 * ID_BYTES + 1];
        hex_encode(op->b, ID_BYTES, hex);
        log_info("sync parked op=%s err=%s retry_s=%lld reason=\"%s\"", hex, err_name(error), (long long)(retry_ms / 1000), reason);
        int64_t next_ns = clock_real_ns(e->c.clock) + retry_ms * 1000000;
        int r = refused ? outbox_park_refused(e->c.cache->tree, op, error, reason, next_ns) : outbox_park(e->c.cache->tree, op, error, reason, next_ns);
        if (r < 0 && r != -ENOENT)
                log_warn("sync park op=%s err=%s", hex, err_name(r));
        cache_poke(e->c.cache); /* who waits for it hears why */
        outbox_look(e);
}

static bool in_flight(const struct outbox *o, const struct id *op) {
        if (!o->in_flight)
                return false;
        for (size_t i = 0; i < o->batch.n; i++)
                if (id_equal(&o->batch.ops[i], op))
                        return true;
        return false;
}

/* Rows that an earlier run of the program had sent, or whose answer was lost: queued again, same ids. If the disk refuses that they would count as sent for ever, and what depends on them would
 * overtake them: nothing is looked at until recover has done it. */
static void unsend_all(struct engine *e, const struct id *ops, size_t n) {
        for (size_t i = 0; i < n; i++) {
                int r = outbox_unsend(e->c.cache->tree, &ops[i]);
                if (r < 0 && r != -ENOENT) {
                        log_warn("sync unsend err=%s", err_name(r));
                        e->outbox.recovered = false;
                }
        }
}

static int recover(struct engine *e) {
        e->outbox.recovered = true;
        struct arena *a = NULL;
        size_t n = 0, max = 1 << 16;
        int r = arena_new(512u << 20, &a);
        struct outbox_item *items = r >= 0 ? malloc(max * sizeof *items) : NULL;
        if (r >= 0 && !items)
                r = -ENOMEM;
        if (r >= 0)
                r = outbox_list(e->c.cache->tree, a, false, items, max, &n);
        for (size_t i = 0; r >= 0 && i < n; i++)
                if (items[i].state == OUT_SENT && !in_flight(&e->outbox, &items[i].op.id))
                        unsend_all(e, &items[i].op.id, 1);
        free(items);
        arena_free(a);
        if (r < 0)
                e->outbox.recovered = false;
        else if (!e->outbox.recovered)
                r = -EIO; /* told already */
        return r;
}

/* ---- a look ---- */

struct left_out { struct id *ids; size_t n; bool barrier; };

static bool is_left_out(const struct left_out *l, const struct id *op) {
        for (size_t i = 0; i < l->n; i++)
                if (id_equal(&l->ids[i], op))
                        return true;
        return false;
}

static bool is_barrier(const struct op *op) {
        return op->kind == OP_UNLINK || op->kind == OP_REPLACE || (op->kind == OP_RENAME && !id_is_zero(&op->replaced));
}

static bool depends_on_left_out(const struct left_out *l, const struct op *op) {
        for (size_t i = 0; i < op->n_after; i++)
                if (is_left_out(l, &op->after[i]))
                        return true;
        return false;
}

static void leave_out(struct engine *e, struct left_out *l, const struct outbox_item *item) {
        l->ids[l->n++] = item->op.id;
        if (item->gen && clock_real_ns(e->c.clock) - item->queued_ns < BARRIER_WAIT_NS)
                l->barrier = true;
}

/* Bytes of the operation in the body, generously. */
static size_t weight(const struct outbox_item *item, const struct upload *u) {
        size_t n = 1024 + item->op.name_bytes + item->op.name2_bytes + item->op.n_after * ID_BYTES * 2;
        for (size_t i = 0; i < item->op.attrs.n_xattrs; i++)
                n += XATTR_NAME_MAX + 32 + item->op.attrs.xattrs[i].value_bytes;
        return n + (item->op.attrs.target ? SYMLINK_BYTES_MAX : 0) + (u && u->inline_bytes ? u->content.size : 0);
}

/* What it must come after: what the row says now, and what the look found (barriers have theirs only there). */
static int join_after(struct arena *a, struct op *op, const struct op *looked) {
        struct id *all = arena_alloc(a, (op->n_after + looked->n_after + 1) * sizeof *all);
        size_t n = 0;
        if (!all)
                return -ENOMEM;
        for (size_t i = 0; i < op->n_after; i++)
                all[n++] = op->after[i];
        for (size_t i = 0; i < looked->n_after; i++) {
                bool known = false;
                for (size_t j = 0; j < n && !known; j++)
                        known = id_equal(&all[j], &looked->after[i]);
                if (!known)
                        all[n++] = looked->after[i];
        }
        op->after = all;
        op->n_after = n;
        return 0;
}

static int add_op(struct engine *e, struct arena *a, struct buf *body, struct outbox_item *item, const struct op *looked) {
        struct upload *u = item->gen ? upload_find(e, &item->op.id) : NULL;
        struct op op = item->op;
        int r = join_after(a, &op, looked);
        if (r < 0)
                return r;
        if (item->gen) {
                op.content = u->content;
                if (u->inline_bytes) {
                        op.flags |= OPF_INLINE;
                        op.inline_bytes = u->inline_bytes;
                }
        }
        return wire_add_op(body, &op);
}

/* Marks sent, reads again, encodes, sends. */
static void send_batch(struct engine *e, const struct outbox_item *const *looked, const struct id *ops, size_t n) {
        struct outbox *o = &e->outbox;
        struct arena *a = NULL;
        struct tree *t = e->c.cache->tree;
        struct request *r = request_new(e, HTTP_POST, BATCH_BYTES_MAX + (1u << 20), ANSWER_BYTES_MAX, "/v1/workspaces/%s/commit", buf_text(&e->ws));
        struct id *sent = calloc(n, sizeof *sent);
        size_t n_sent = 0;
        int k = r && sent ? arena_new(16u << 20, &a) : -ENOMEM;
        uint64_t *gens = calloc(n, sizeof *gens);
        if (k >= 0 && !gens)
                k = -ENOMEM;
        for (size_t i = 0; i < n && k >= 0; i++)
                gens[i] = looked[i]->gen;
        if (k >= 0) /* what was sent cannot be taken back: its bytes must be there after a power cut too */
                k = stages_sync_some(e->c.cache->stages, gens, n);
        free(gens);
        if (k >= 0)
                k = outbox_mark_sent(t, ops, n);
        FAILPOINT_HERE("outbox.sent");
        for (size_t i = 0; k >= 0 && i < n; i++) {
                struct outbox_item item;
                arena_reset(a);
                int g = outbox_get(t, &ops[i], a, &item);
                if (g == -ENOENT)
                        continue; /* cancelled just before it was marked */
                if (g < 0) {
                        k = g;
                        break;
                }
                struct upload *u = item.gen ? upload_find(e, &item.op.id) : NULL;
                if (item.gen && (!u || u->gen != item.gen || u->state != UPLOAD_READY)) {
                        unsend_all(e, &ops[i], 1); /* newer bytes came just before it was marked: they are cut first */
                        outbox_look(e);
                        break;                     /* and what follows may depend on it */
                }
                g = add_op(e, a, &r->call->body, &item, &looked[i]->op);
                if (g == -EMSGSIZE && n_sent > 0)
                        break;
                if (g < 0) {
                        k = g;
                        break;
                }
                sent[n_sent++] = ops[i];
        }
        arena_free(a);
        if (n_sent < n && k >= 0)
                for (size_t i = 0; i < n; i++) {
                        bool went = false;
                        for (size_t j = 0; j < n_sent && !went; j++)
                                went = id_equal(&sent[j], &ops[i]);
                        if (!went)
                                unsend_all(e, &ops[i], 1);
                }
        if (k < 0 || n_sent == 0) {
                if (k < 0) {
                        log_warn("sync outbox=send err=%s", err_name(k));
                        unsend_all(e, ops, n);
                        o->retry_at_ms = engine_now(e) + connect_retry_ms(e, &o->backoff, 0);
                }
                free(sent);
                request_free(r);
                outbox_look(e);
                return;
        }
        free(o->batch.ops);
        o->batch = (struct batch){ .request = r, .ops = sent, .n = n_sent };
        o->in_flight = true;
        engine_set_sending(e, n_sent);
        r->finished = outbox_batch_done;
        request_send(r, request_deadline(e, r->call->body.bytes));
}

/* Goes through what may go now: gets uploads going, and (when no commit is in flight) sends what is ready. */
static int look(struct engine *e, int64_t now) {
        struct outbox *o = &e->outbox;
        struct arena *a = NULL;
        size_t n = 0, n_ops = 0, bytes = 0;
        int64_t wait_ms = -1;
        int r = arena_new(256u << 20, &a);
        struct outbox_item *items = malloc(BATCH_OPS_MAX * sizeof *items); /* not cleared: there is room for many, and there are few */
        struct left_out left = { .ids = calloc(BATCH_OPS_MAX, sizeof *left.ids) };
        struct id *ops = calloc(BATCH_OPS_MAX, sizeof *ops);
        const struct outbox_item **looked = calloc(BATCH_OPS_MAX, sizeof *looked);
        if (r >= 0 && (!items || !left.ids || !ops || !looked))
                r = -ENOMEM;
        if (r >= 0)
                r = outbox_next(e->c.cache->tree, a, items, BATCH_OPS_MAX, &n, &wait_ms);
        for (struct upload *u = e->uploads.first; u; u = u->next)
                u->listed = false;
        for (size_t i = 0; r >= 0 && i < n; i++) {
                struct outbox_item *item = &items[i];
                struct upload *u = NULL;
                if (in_flight(o, &item->op.id))
                        continue;
                if (item->gen) {
                        u = upload_for(e, item);
                        if (u)
                                u->listed = true;
                }
                if ((item->gen && (!u || u->state != UPLOAD_READY)) || depends_on_left_out(&left, &item->op) || (left.barrier && is_barrier(&item->op))) {
                        leave_out(e, &left, item);
                        continue;
                }
                size_t w = weight(item, u);
                if (n_ops >= o->limit || (n_ops > 0 && bytes + w > BATCH_BYTES_MAX)) {
                        leave_out(e, &left, item);
                        continue;
                }
                bytes += w;
                looked[n_ops] = item;
                ops[n_ops++] = item->op.id;
        }
        if (r >= 0) {
                o->wait_until_ms = wait_ms < 0 ? NEVER : now + wait_ms;
                if (n < BATCH_OPS_MAX) /* an upload whose operation is not among all that may go: it is gone, parked, or has other bytes */
                        for (struct upload *u = e->uploads.first, *next; u; u = next) {
                                next = u->next;
                                if (!u->listed && !in_flight(o, &u->op))
                                        upload_abandon(u);
                        }
        }
        if (r >= 0 && !o->in_flight && n_ops > 0)
                send_batch(e, looked, ops, n_ops);
        free(items);
        free(left.ids);
        free(ops);
        free(looked);
        arena_free(a);
        return r;
}

/* ---- the answer ---- */

/* The server refused the request as a whole; retrying the same bytes is hopeless. */
static void refused(struct engine *e, const struct request *r, int err) {
        struct outbox *o = &e->outbox;
        int64_t retry_ms = err == -EDQUOT || err == -ENOSPC ? 30000 : err == -EACCES ? 60000 : 600000;
        if (o->batch.n > 1 && err != -EACCES) {
                o->limit = MAX(1u, (unsigned)(o->batch.n / 2));
                log_info("sync batch=refused err=%s n=%zu: trying %u", err_name(err), o->batch.n, o->limit);
                return;
        }
        for (size_t i = 0; i < o->batch.n; i++)
                outbox_park_item(e, &o->batch.ops[i], -err, r->call->message[0] ? r->call->message : "refused by the server", retry_ms, false); /* an earlier try may have been accepted */
        o->limit = BATCH_OPS_MAX;
}

static int handle_results(struct engine *e, const struct buf *body) {
        struct outbox *o = &e->outbox;
        struct wire_reader r = { .p = body->data, .n = body->bytes };
        struct arena *a = NULL;
        struct frame f;
        size_t answered = 0, again = 0;
        int k = arena_new(4ull * ANSWER_BYTES_MAX, &a);
        while (k >= 0) {
                struct op_result res;
                arena_reset(a);
                k = wire_next(&r, &f);
                if (k <= 0)
                        break;
                k = f.kind == FRAME_RESULT ? wire_get_result(&f, a, &res) : -EPROTO;
                if (k < 0)
                        break;
                size_t i = 0;
                while (i < o->batch.n && !id_equal(&o->batch.ops[i], &res.op))
                        i++;
                if (i == o->batch.n) {
                        k = -EPROTO;
                        break;
                }
                answered++;
                k = results_handle(e, &res, a);
                FAILPOINT_HERE("outbox.result");
                if (k == -EPROTONOSUPPORT)
                        break;
                if (k < 0) {
                        log_warn("sync result err=%s", err_name(k));
                        unsend_all(e, &res.op, 1); /* the disk failed us: the server will say it again */
                        o->retry_at_ms = engine_now(e) + connect_retry_ms(e, &o->backoff, 0);
                        k = 0;
                }
                again += k > 0;
        }
        arena_free(a);
        if (k == 0 && answered > 0 && again == answered) /* nothing moved: not in a tight circle */
                o->retry_at_ms = MAX(o->retry_at_ms, engine_now(e) + connect_retry_ms(e, &o->backoff, 50));
        else if (k == 0)
                backoff_reset(&o->backoff);
        if (k == 0 && answered < o->batch.n)
                k = -EPROTO;
        return k;
}

void outbox_batch_done(struct request *r, int err) {
        struct engine *e = r->e;
        struct outbox *o = &e->outbox;
        o->in_flight = false;
        o->batch.request = NULL;
        engine_set_sending(e, 0);
        if (err == 0) {
                FAILPOINT_HERE("outbox.answer");
                int k = handle_results(e, &r->call->answer);
                if (k >= 0) {
                        connect_parsed(e);
                        o->limit = o->limit < BATCH_OPS_MAX ? MIN(o->limit * 2, BATCH_OPS_MAX) : BATCH_OPS_MAX;
                } else {
                        connect_protocol_error(e, k, "commit results");
                        unsend_all(e, o->batch.ops, o->batch.n);
                        o->retry_at_ms = engine_now(e) + connect_retry_ms(e, &o->backoff, 0);
                }
        } else {
                bool answered = r->call->err == 0 && r->call->status >= 400 && r->call->status < 500 && r->call->status != 401 && r->call->status != 408 && r->call->status != 429;
                unsend_all(e, o->batch.ops, o->batch.n);
                if (err == -ENOENT && answered)
                        connect_failed(e, err, "the workspace is gone from the server");
                else if (answered || err == -EDQUOT || err == -ENOSPC)
                        refused(e, r, err);
                else
                        o->retry_at_ms = engine_now(e) + connect_retry_ms(e, &o->backoff, r->call->retry_after_ms);
        }
        free(steal_ptr(o->batch.ops));
        o->batch.n = 0;
        if (e->events.waits) {
                e->events.waits = false;
                e->events.retry_at_ms = 0;
        }
        o->look = true;
        o->look_at_ms = 0; /* what queued up meanwhile goes at once */
}

/* ---- one turn ---- */

int64_t outbox_step(struct engine *e, int64_t now) {
        struct outbox *o = &e->outbox;
        if (!o->recovered) {
                int r = recover(e);
                if (r < 0) {
                        log_warn("sync outbox=recover err=%s", err_name(r));
                        return now + 1000;
                }
                o->look = true;
        }
        if (load_active(e) || !connect_online(e))
                return NEVER;
        if (now >= o->wait_until_ms) {
                o->wait_until_ms = NEVER;
                o->look = true;
                o->look_at_ms = now;
        }
        if (!o->look)
                return o->wait_until_ms;
        int64_t at = MAX(o->look_at_ms, o->retry_at_ms);
        if (o->in_flight)
                at = MAX(at, o->looked_ms + BUSY_LOOK_MS);
        if (at > now)
                return MIN(at, o->wait_until_ms);
        o->look = false;
        o->looked_ms = now;
        int r = look(e, now);
        if (r < 0) {
                log_warn("sync outbox=look err=%s", err_name(r));
                o->look = true;
                o->look_at_ms = now + 1000;
        }
        return o->look ? o->look_at_ms : o->wait_until_ms;
}
