/* SPDX-License-Identifier: Apache-2.0 */
/* download.c: the cache's wishes for bytes (struct source), answered by POST read.
 *
 *   state     list      under way                          leaves on
 *   queued    queued    nothing                            its turn: joined with others into one request -> asked
 *   asked     active    the request                        answered -> decoding; failed -> queued again (or its end)
 *   decoding  active    a task: expand, give to the cache  all given -> end; the server had no room for the rest -> queued
 *
 * A wish is for blocks by hash (its list is known: the usual case) or for a range of a content with its list pages. Wishes by hash that are queued
 * at the same time are joined into one request of at most PIECE_MAX blocks (the server ends its answer at 8 MiB); a range travels alone, because only the cache can tell
 * whose the blocks are. After a request that ran out of time the pieces get smaller, so that a slow link moves too.
 *
 * Ends: 0; -EHOSTDOWN known to be offline (at once, all queued ones too); -ETIMEDOUT net_timeout after it came or last moved; -ENOENT the server says it has not got a part;
 * -ECANCELED. A failed transfer is tried again within net_timeout while the connection counts as online.
 *
 * Threads: `fetch` and `cancel` come from any thread and only touch the lists, under the engine's lock. A wish belongs to the cache until `done`; we look at it only while
 * it is in a list. Decoding runs on threads of its own (engine_start), because workers may be waiting for just these bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "priv.h"

#define REQUESTS_MAX 8u
#define PIECE_MAX 64u             /* blocks by hash in one request */
#define RANGE_SLICE (2u << 20)

struct download {
        struct download *next, *prev;  /* lock */
        struct fetch *f;
        bool cancelled;                /* lock */
        int64_t deadline_ms;
        uint8_t *got;                  /* per hash: 1 given, 2 the server has not got it */
        size_t left, asked;            /* hashes: not yet given; in the request under way */
        uint64_t at, end;              /* range: next byte to ask for */
        bool pages_got;
        int err;                       /* -ENOENT: the server has not got a part; or what the cache said to a block */
};

#define JOIN_MAX 64u
struct ask {                           /* one request */
        struct ask *next;
        struct task task;
        struct engine *e;
        struct request *request;       /* under way; NULL while decoding */
        bool given_up;                 /* cancelled, because nobody wants it any more */
        struct buf answer;
        size_t n;                      /* wishes */
        struct download *of[JOIN_MAX];
        bool range;
        uint64_t slice_end;
        size_t n_items;
        struct { uint16_t wish; uint32_t hash; } item[PIECE_MAX + 1]; /* READ items in order */
        int err;
};

/* ---- from the cache ---- */

static int source_fetch(struct source *s, struct fetch *f) {
        struct downloads *d = container_of(s, struct downloads, source);
        struct engine *e = container_of(d, struct engine, down);
        if (d->refuse)
                return -EHOSTDOWN;
        struct download *w = calloc(1, sizeof *w);
        if (!w)
                return -ENOMEM;
        w->f = f;
        w->deadline_ms = engine_now(e) + e->c.net_timeout_ms;
        w->left = f->n_hashes;
        w->at = f->offset;
        w->end = f->bytes > f->content.size - MIN(f->offset, f->content.size) ? f->content.size : f->offset + f->bytes;
        if (f->n_hashes) {
                w->got = calloc(f->n_hashes, 1);
                if (!w->got) {
                        free(w);
                        return -ENOMEM;
                }
        }
        {
                LOCK_SCOPE(&e->lock);
                w->prev = d->queued_last;
                if (d->queued_last)
                        d->queued_last->next = w;
                else
                        d->queued = w;
                d->queued_last = w;
        }
        engine_wake(e);
        return 0;
}

static void source_cancel(struct source *s, struct fetch *f) {
        struct downloads *d = container_of(s, struct downloads, source);
        struct engine *e = container_of(d, struct engine, down);
        {
                LOCK_SCOPE(&e->lock);
                for (struct download *w = d->queued; w; w = w->next)
                        if (w->f == f)
                                w->cancelled = true;
                for (struct download *w = d->active; w; w = w->next)
                        if (w->f == f)
                                w->cancelled = true;
                d->cancels = true;
        }
        engine_wake(e);
}

void download_init(struct engine *e) {
        e->down.source = (struct source){ .fetch = source_fetch, .cancel = source_cancel };
        e->down.backoff = (struct backoff){ .base_ms = 100, .cap_ms = 3000 };
        e->down.piece = PIECE_MAX;
}

void download_refuse(struct engine *e, bool refuse) {
        e->down.refuse = refuse;
        engine_wake(e);
}

/* ---- lists, on the control thread; the lock because `fetch` and `cancel` walk them ---- */

static void unlink_queued(struct downloads *d, struct download *w) {
        if (w->prev)
                w->prev->next = w->next;
        else
                d->queued = w->next;
        if (w->next)
                w->next->prev = w->prev;
        else
                d->queued_last = w->prev;
        w->next = w->prev = NULL;
}

static void to_active(struct engine *e, struct download *w) {
        LOCK_SCOPE(&e->lock);
        unlink_queued(&e->down, w);
        w->next = e->down.active;
        if (w->next)
                w->next->prev = w;
        e->down.active = w;
}

static void unlink_active(struct downloads *d, struct download *w) {
        if (w->prev)
                w->prev->next = w->next;
        else
                d->active = w->next;
        if (w->next)
                w->next->prev = w->prev;
        w->next = w->prev = NULL;
}

/* An unfinished wish goes back to the head of the queue. */
static void to_queue(struct engine *e, struct download *w) {
        LOCK_SCOPE(&e->lock);
        struct downloads *d = &e->down;
        unlink_active(d, w);
        w->next = d->queued;
        if (d->queued)
                d->queued->prev = w;
        else
                d->queued_last = w;
        d->queued = w;
}

/* In no list any more; the wish is the cache's from here on. */
static void end(struct download *w, int err) {
        struct fetch *f = w->f;
        free(w->got);
        free(w);
        f->done(f, err);
}

static void end_active(struct engine *e, struct download *w, int err) {
        {
                LOCK_SCOPE(&e->lock);
                unlink_active(&e->down, w);
                if (w->cancelled)
                        err = err == 0 ? 0 : -ECANCELED;
        }
        end(w, err);
}

static bool is_cancelled(struct engine *e, struct download *w) {
        LOCK_SCOPE(&e->lock);
        return w->cancelled;
}

static bool complete(const struct download *w) {
        return w->f->n_hashes ? w->left == 0 : w->at >= w->end && (w->pages_got || !w->f->pages);
}

/* ---- decoding, off the control thread ---- */

static void give(struct ask *a, const struct digest *hash, const void *p, size_t n) {
        if (a->range) {
                int r = a->of[0]->f->block(a->of[0]->f, hash, p, n);
                if (r < 0)
                        a->of[0]->err = r;
                return;
        }
        for (size_t i = 0; i < a->n_items; i++) {
                struct download *w = a->of[a->item[i].wish];
                if (w->got[a->item[i].hash] || !digest_equal(&w->f->hashes[a->item[i].hash], hash))
                        continue;
                int r = w->f->block(w->f, hash, p, n);
                if (r < 0)
                        w->err = r; /* ends in an error instead of asking for ever */
                w->got[a->item[i].hash] = 1;
                w->left--;
        }
}

static int decode(struct ask *a) {
        struct wire_reader r = { .p = a->answer.data, .n = a->answer.bytes };
        struct arena *arena = NULL;
        struct wire_status status = { 0 };
        struct frame f;
        uint8_t *out = malloc(BLOCK_BYTES_MAX);
        bool ended = false;
        int k = out ? arena_new(1 << 20, &arena) : -ENOMEM;
        while (k >= 0) {
                struct wire_block b;
                k = wire_next(&r, &f);
                if (k <= 0)
                        break;
                if (f.kind == FRAME_BLOCK && !ended) {
                        k = wire_get_block(&f, &b);
                        if (k >= 0)
                                k = b.raw_bytes <= BLOCK_BYTES_MAX ? wire_block_expand(&b, NULL, 0, out) : -EPROTO;
                        if (k == -EBADMSG) { /* one bad block: it stays missing and is asked for again */
                                counter_add(a->e->c.counters, corruptions_found, 1);
                                k = 0;
                        } else if (k >= 0) {
                                give(a, &b.hash, out, b.raw_bytes);
                        }
                } else if (f.kind == FRAME_STATUS && !ended) {
                        k = wire_get_status(&f, arena, &status);
                        ended = true;
                } else {
                        k = -EPROTO;
                }
        }
        if (k >= 0 && !ended)
                k = -EPROTO;
        bool not_sent = false, not_found = false;
        for (size_t i = 0; k >= 0 && i < status.n_not_found; i++) {
                uint32_t item = status.not_found[i];
                if (item >= a->n_items) {
                        k = -EPROTO;
                } else if (a->range) {
                        not_found = true;
                } else {
                        struct download *w = a->of[a->item[item].wish];
                        if (!w->got[a->item[item].hash]) {
                                w->got[a->item[item].hash] = 2;
                                w->left--;
                                w->err = -ENOENT;
                        }
                }
        }
        for (size_t i = 0; k >= 0 && i < status.n_not_sent; i++)
                not_sent = not_sent || status.not_sent[i] < a->n_items;
        if (k >= 0 && a->range) {
                struct download *w = a->of[0];
                if (not_found) {
                        w->err = -ENOENT;
                        w->at = w->end;
                        w->pages_got = true;
                } else if (!not_sent) {
                        w->at = a->slice_end;
                        w->pages_got = true;
                } else {
                        k = -EMSGSIZE; /* a slice that never fits */
                }
        }
        free(out);
        arena_free(arena);
        return k;
}

static void decode_work(struct task *t) {
        struct ask *a = container_of(t, struct ask, task);
        a->err = decode(a);
}

static void ask_end(struct ask *a) {
        struct ask **p = &a->e->down.asks;
        while (*p != a)
                p = &(*p)->next;
        *p = a->next;
        a->e->down.requests--;
        buf_free(&a->answer);
        free(a);
}

/* What remains of each wish after an answer or a failure. */
static void settle(struct ask *a, int err, int64_t retry_after_ms) {
        struct engine *e = a->e;
        int64_t now = engine_now(e);
        bool again = err == -EHOSTDOWN || err == -ETIMEDOUT || err == -EAGAIN || err == -EIO || err == -EPROTO || err == -EKEYREJECTED || err == -ENOMEM;
        if (err < 0 && again)
                e->down.retry_at_ms = now + connect_retry_ms(e, &e->down.backoff, retry_after_ms);
        else
                backoff_reset(&e->down.backoff);
        if (err == -ETIMEDOUT) /* a slow link: smaller pieces */
                e->down.piece = MAX(e->down.piece / 4, 1u);
        else if (err == 0)
                e->down.piece = MIN(e->down.piece * 2, PIECE_MAX);
        for (size_t i = 0; i < a->n; i++) {
                struct download *w = a->of[i];
                if (err == 0)
                        w->deadline_ms = now + e->c.net_timeout_ms; /* it moves */
                if (is_cancelled(e, w) || err == -ECANCELED)
                        end_active(e, w, -ECANCELED);
                else if (err < 0 && !again)
                        end_active(e, w, err == -EACCES ? -EACCES : err == -ENOENT ? -ENOENT : -EIO);
                else if (complete(w))
                        end_active(e, w, w->err);
                else if (e->down.refuse)
                        end_active(e, w, -EHOSTDOWN);
                else if (now >= w->deadline_ms)
                        end_active(e, w, -ETIMEDOUT);
                else
                        to_queue(e, w);
        }
        ask_end(a);
}

static void decode_finished(struct task *t) {
        struct ask *a = container_of(t, struct ask, task);
        if (a->err == -EPROTO || a->err == -EPROTONOSUPPORT)
                connect_protocol_error(a->e, a->err, "blocks");
        else if (a->err >= 0)
                connect_parsed(a->e);
        settle(a, a->err, 0);
}

static void ask_finished(struct request *r, int err) {
        struct ask *a = r->owner;
        struct engine *e = a->e;
        a->request = NULL;
        if (err < 0) {
                settle(a, err, r->call->retry_after_ms);
                return;
        }
        a->answer = r->call->answer;
        r->call->answer = (struct buf)BUF_INIT(r->call->answer.max_bytes);
        a->task.work = decode_work;
        a->task.finished = decode_finished;
        task_start(e, e->down.pool ? pool_executor(e->down.pool) : e->c.workers, &a->task);
}

/* ---- asking ---- */

static int add_range(struct ask *a, struct buf *body, struct download *w) {
        struct wire_read read = { .content = w->f->content, .offset = w->at, .pages = w->f->pages && !w->pages_got };
        uint64_t n = MIN(w->end - MIN(w->at, w->end), (uint64_t)RANGE_SLICE);
        read.bytes = MAX(n, 1ull); /* 0 would mean all of it */
        a->range = true;
        a->slice_end = w->at + n;
        a->n_items = 1;
        return wire_add_read(body, &read);
}

/* As many of w's hashes as a piece may have. Block lengths are not known here; the server says what did not fit into its answer. */
static int add_hashes(struct ask *a, struct buf *body, struct download *w, uint16_t index) {
        for (size_t i = 0; i < w->f->n_hashes && a->n_items < a->e->down.piece; i++) {
                if (w->got[i])
                        continue;
                struct wire_read read = { .by_hash = true, .hash = w->f->hashes[i] };
                int r = wire_add_read(body, &read);
                if (r < 0)
                        return r;
                a->item[a->n_items].wish = index;
                a->item[a->n_items++].hash = (uint32_t)i;
        }
        return 0;
}

static int send_ask(struct engine *e, struct download *first) {
        struct downloads *d = &e->down;
        struct ask *a = calloc(1, sizeof *a);
        struct request *r = request_new(e, HTTP_POST, 1 << 20, 2 * BATCH_BYTES_MAX + (1u << 20), "/v1/workspaces/%s/read", buf_text(&e->ws));
        int k = a && r ? 0 : -ENOMEM;
        if (k >= 0) {
                a->e = e;
                a->of[0] = first;
                a->n = 1;
                k = first->f->n_hashes ? add_hashes(a, &r->call->body, first, 0) : add_range(a, &r->call->body, first);
        }
        if (k < 0) {
                free(a);
                request_free(r);
                return k;
        }
        to_active(e, first);
        while (!a->range && a->n < JOIN_MAX && a->n_items < d->piece) {
                struct download *w;
                {
                        LOCK_SCOPE(&e->lock);
                        for (w = d->queued; w && (w->f->n_hashes == 0 || w->cancelled || w->f->prefetch != first->f->prefetch); w = w->next)
                                ;
                }
                if (!w)
                        break;
                a->of[a->n] = w;
                k = add_hashes(a, &r->call->body, w, (uint16_t)a->n);
                if (k < 0)
                        break; /* what was added is asked; this one waits for its turn */
                a->n++;
                to_active(e, w);
        }
        d->requests++;
        a->next = d->asks;
        d->asks = a;
        a->request = r;
        r->call->background = first->f->prefetch;
        r->owner = a;
        r->finished = ask_finished;
        request_send(r, MAX(first->deadline_ms, engine_now(e) + 1000));
        return 0;
}

/* The next wish that may be asked: those with a reader before prefetches. Ends those that are over. NULL: none. */
static struct download *next_wish(struct engine *e, int64_t now, bool may_ask) {
        struct downloads *d = &e->down;
        for (;;) {
                struct download *w, *over = NULL, *best = NULL;
                int err = 0;
                {
                        LOCK_SCOPE(&e->lock);
                        for (w = d->queued; w && !over; w = w->next) {
                                err = w->cancelled || e->stopping ? -ECANCELED : d->refuse ? -EHOSTDOWN : now >= w->deadline_ms ? -ETIMEDOUT : 0;
                                if (err < 0)
                                        over = w;
                                else if (!best || (best->f->prefetch && !w->f->prefetch))
                                        best = w;
                        }
                        if (over)
                                unlink_queued(d, over);
                }
                if (!over)
                        return may_ask ? best : NULL;
                end(over, err);
        }
}

/* Requests whose every wish was cancelled. */
static void give_up(struct engine *e) {
        for (struct ask *a = e->down.asks; a; a = a->next) {
                bool wanted = false;
                for (size_t i = 0; i < a->n && !wanted; i++)
                        wanted = !is_cancelled(e, a->of[i]);
                if (wanted || !a->request || a->given_up)
                        continue;
                a->given_up = true;
                request_cancel(a->request);
        }
}

int64_t download_step(struct engine *e, int64_t now) {
        struct downloads *d = &e->down;
        struct download *w;
        int64_t due = NEVER;
        if (atomic_exchange(&d->cancels, false))
                give_up(e);
        bool may_ask = connect_online(e) && d->retry_at_ms <= now && !engine_stopping(e);
        while ((w = next_wish(e, now, may_ask && d->requests < REQUESTS_MAX)) != NULL)
                if (send_ask(e, w) < 0) {
                        due = now + 100;
                        break;
                }
        {
                LOCK_SCOPE(&e->lock);
                for (w = d->queued; w; w = w->next)
                        due = MIN(due, w->deadline_ms);
                if (d->queued && connect_online(e) && d->retry_at_ms > now)
                        due = MIN(due, d->retry_at_ms);
        }
        return due;
}
