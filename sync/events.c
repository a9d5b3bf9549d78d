/* SPDX-License-Identifier: Apache-2.0 */
/* events.c: the long poll. While online there is always one open (unless an answer is just being applied), so that what another client commits is here within
 * a round trip.
 *
 *   state        is when                        leaves on
 *   stopped      !have_cursor                   events_start (the tree has a cursor)
 *   asking       poll                           events -> applying; nothing new -> asking; 410 -> load.c; failed -> waiting
 *   applying     batch_held                     the last event is in the tree -> asking
 *   waiting      retry_at_ms                    time, or the connection is back -> asking
 *
 * An answer is applied in transactions of at most EVENTS_PER_TURN events while local work is pending, else as a whole; each moves the cursor to the last event in it (every event carries its mark),
 * the last one to `upto`. Own events come back here like all others; an operation that they complete was perhaps answered into the void, so the stage is handed over
 * just as after an answer. After a failure of the local disk the same events are applied again: twice is once.
 *
 * Events of what we made in a directory that was merged into another one wait for the answer that says so (tree_apply_ready), and those behind them too: outbox.c calls when it has one.
 *
 * A server that went back to an older state without saying so is found by the mark of the cursor. What the server has accepted from this client since, beyond the cursor, would be lost unseen: so while the newest
 * answer is ahead of the cursor, a poll names it as a second cursor (tree_answered: it outlives this process, as the rows of the answer do). The server looks at both and answers 410 if either is not in its log; events are taken from the first one only.
 *
 * The first poll after a start does not wait: it tells at once whether the cursor still holds. */
#include <stdio.h>
#include <string.h>

#include "priv.h"
#include "base/failpoint.h"

#define ANSWER_WAIT_MS 1000 /* the answer calls; this is for answers that never come */

void events_init(struct engine *e) {
        e->events.backoff = (struct backoff){ .base_ms = 200, .cap_ms = 8000 };
}

static void drop_batch(struct events *v) {
        arena_free(steal_ptr(v->arena));
        buf_free(&v->held);
        v->batch = NULL;
        v->n = v->at = 0;
        v->batch_held = false;
}

void events_start(struct engine *e) {
        int r = tree_cursor(e->c.cache->tree, &e->events.cursor);
        e->events.have_cursor = r >= 0;
        e->events.first_poll_done = false;
        if (r < 0) {
                log_warn("sync events=no cursor err=%s", err_name(r));
                load_start(e);
        }
}

void events_stop(struct engine *e) {
        e->events.have_cursor = false;
        drop_batch(&e->events);
        if (e->events.poll)
                request_cancel(e->events.poll);
}

int events_decode(struct engine *e, const struct buf *body, struct arena *a, struct event **ret, size_t *ret_n, struct cursor *ret_upto) {
        struct wire_reader r = { .p = body->data, .n = body->bytes };
        struct frame f;
        struct wire_cursor c = { 0 };
        size_t n = 0, room = 0;
        bool have_cursor = false, second = false;
        for (;;) {
                int k = wire_next(&r, &f);
                if (k < 0)
                        return k;
                if (k == 0)
                        break;
                room++;
        }
        struct event *v = arena_alloc(a, MAX(room, 1u) * sizeof *v);
        if (!v)
                return -ENOMEM;
        r = (struct wire_reader){ .p = body->data, .n = body->bytes };
        for (;;) {
                int k = wire_next(&r, &f);
                if (k < 0)
                        return k;
                if (k == 0)
                        break;
                if (f.kind == FRAME_CURSOR && have_cursor) { /* the second cursor's: the same events, or the last of them */
                        if (second)
                                return -EPROTO;
                        second = true;
                } else if (f.kind == FRAME_CURSOR) {
                        k = wire_get_cursor(&f, a, &c);
                        have_cursor = true;
                } else if (f.kind == FRAME_EVENT && second) {
                        continue;
                } else if (f.kind == FRAME_EVENT) {
                        k = wire_get_event(&f, a, &v[n]);
                        if (k >= 0 && n > 0 && v[n].seq <= v[n - 1].seq)
                                return -EPROTO;
                        n++;
                } else {
                        return -EPROTO;
                }
                if (k < 0)
                        return k;
        }
        if (!have_cursor || (n > 0 && v[n - 1].seq > c.cursor.seq))
                return -EPROTO;
        *ret = v;
        *ret_n = n;
        *ret_upto = c.cursor;
        engine_set_space(e, c.quota_bytes, c.used_bytes);
        return 0;
}

static void poll_finished(struct request *r, int err) {
        struct engine *e = r->e;
        struct events *v = &e->events;
        v->poll = NULL;
        if (!v->have_cursor)
                return; /* a load began meanwhile */
        if (err >= 0)
                err = FAILPOINT("events.answer");
        if (err == -EIDRM) {
                log_info("sync cursor=gone: a new snapshot is loaded");
                load_fork(e, &r->call->answer);
                load_start(e);
                return;
        }
        if (err == -ENOENT || err == -EACCES) {
                connect_failed(e, err, err == -ENOENT ? "the workspace is gone from the server" : "this login has no right to the workspace any more");
                return;
        }
        if (err < 0) {
                v->retry_at_ms = engine_now(e) + connect_retry_ms(e, &v->backoff, r->call->retry_after_ms);
                return;
        }
        drop_batch(v);
        v->held = r->call->answer;
        r->call->answer = (struct buf)BUF_INIT(r->call->answer.max_bytes);
        int k = arena_new(4ull * ANSWER_BYTES_MAX, &v->arena);
        if (k >= 0)
                k = events_decode(e, &v->held, v->arena, &v->batch, &v->n, &v->upto);
        if (k >= 0 && (!id_equal(&v->upto.epoch, &v->cursor.epoch) || v->upto.seq < v->cursor.seq))
                k = -EPROTO;
        if (k < 0) {
                drop_batch(v);
                if (k == -EPROTO || k == -EPROTONOSUPPORT)
                        connect_protocol_error(e, k, "events");
                v->retry_at_ms = engine_now(e) + connect_retry_ms(e, &v->backoff, 0);
                return;
        }
        connect_parsed(e);
        v->first_poll_done = true;
        v->batch_held = true;
        v->at = 0;
        if (v->n == 0 && v->upto.seq == v->cursor.seq) { /* nothing new: no transaction */
                drop_batch(v);
                backoff_reset(&v->backoff);
        }
}

static void send_poll(struct engine *e, int64_t now) {
        struct events *v = &e->events;
        char epoch[2 * ID_BYTES + 1], mark[17], second[160] = "";
        struct cursor answered;
        unsigned wait_s = v->first_poll_done ? POLL_WAIT_S : 0;
        hex_encode(v->cursor.epoch.b, ID_BYTES, epoch);
        if (tree_answered(e->c.cache->tree, &answered) == 0) {
                hex_encode(answered.mark, sizeof answered.mark, mark);
                (void)snprintf(second, sizeof second, ":%s:%llu:%s", epoch, (unsigned long long)answered.seq, mark);
        }
        hex_encode(v->cursor.mark, sizeof v->cursor.mark, mark);
        struct request *r = request_new(e, HTTP_GET, 0, ANSWER_BYTES_MAX, "/v1/events?cursor=%s:%s:%llu:%s&wait=%u&limit=%u%s%s%s", buf_text(&e->ws), epoch,
                                        (unsigned long long)v->cursor.seq, mark, wait_s, EVENTS_PER_POLL, *second ? "&cursor=" : "", *second ? buf_text(&e->ws) : "", second);
        if (!r) {
                v->retry_at_ms = now + 1000;
                return;
        }
        r->finished = poll_finished;
        v->poll = r;
        request_send(r, now + wait_s * 1000 + e->c.net_timeout_ms);
}

/* One transaction of the held answer. */
static int64_t apply(struct engine *e, int64_t now) {
        struct events *v = &e->events;
        struct outbox_totals totals = { 0 };
        struct tree_applied applied = { 0 };
        struct arena *a = NULL;
        struct cursor upto = v->upto;
        size_t n = v->n - v->at, ready = 0;
        if (outbox_totals(e->c.cache->tree, &totals) < 0 || totals.items > 0)
                n = MIN(n, (size_t)EVENTS_PER_TURN);
        int r = arena_new(16u << 20, &a);
        if (r >= 0)
                r = tree_apply_ready(e->c.cache->tree, v->batch + v->at, n, a, &ready);
        if (r >= 0 && ready == 0 && n > 0) { /* until outbox.c has an answer */
                arena_free(a);
                v->waits = true;
                v->retry_at_ms = now + ANSWER_WAIT_MS;
                return v->retry_at_ms;
        }
        n = r >= 0 ? ready : n;
        if (v->at + n < v->n) {
                upto.seq = v->batch[v->at + n - 1].seq;
                memcpy(upto.mark, v->batch[v->at + n - 1].mark, sizeof upto.mark);
        }
        if (r >= 0)
                r = tree_apply(e->c.cache->tree, v->batch + v->at, n, &upto, engine_is_open, e->c.cache, a, &applied);
        FAILPOINT_HERE("events.applied");
        if (r < 0) {
                arena_free(a);
                log_warn("sync events=apply n=%zu err=%s", n, err_name(r));
                v->retry_at_ms = now + connect_retry_ms(e, &v->backoff, 0);
                return v->retry_at_ms;
        }
        engine_committed(e, &applied);
        bool done = applied.n_done > 0;
        arena_free(a);
        v->cursor = upto;
        v->at += n;
        if (v->at == v->n) {
                drop_batch(v);
                backoff_reset(&v->backoff);
        }
        if (done || totals.items > 0)
                outbox_look(e);
        return now;
}

int64_t events_step(struct engine *e, int64_t now) {
        struct events *v = &e->events;
        if (!v->have_cursor || v->poll)
                return NEVER;
        if (v->retry_at_ms > now)
                return v->retry_at_ms;
        if (v->batch_held) {
                int64_t due = apply(e, now);
                if (v->batch_held)
                        return due;
        }
        if (!connect_online(e))
                return NEVER;
        send_poll(e, now);
        return v->poll ? NEVER : v->retry_at_ms;
}
