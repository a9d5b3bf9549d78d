/* SPDX-License-Identifier: Apache-2.0 */
/* engine.c: the control thread, its inbox, and what the outside sees of it.
 *
 * The engine is six small machines that share one connection state; each has its own file and its states as a table there:
 *
 *   connect.c   is the server there, does it know us, when may we try again      -> everyone asks it before sending
 *   load.c      the first (or a new) snapshot, until the tree has a cursor       -> then events.c
 *   events.c    the long poll, remote rows into the tree
 *   outbox.c    local operations in batches to the server; results.c judges the answers with planner.c
 *   upload.c    the content that an operation carries: cut, ask, put (put.c); early.c does the same for files still being written
 *   download.c  the cache's wishes for bytes: struct source
 *
 * One turn (engine_step): run the completions that came, then give each machine its turn; a machine does what is due and says when it must be called again by time
 * alone. A turn is bounded: some hundred rows at most, no network, no waiting for a worker. Local disk is used (SQLite transactions).
 *
 * Threads: `lock` (RANK_QUEUE) guards the inbox, the wake flags and the status; everything else belongs to the thread in engine_step. In the real program that
 * is the thread "engine"; in the simulation it is the test.
 *
 * Stopping: no new request or task starts; requests are cancelled; their completions are waited for (engine_stop) or pumped (simulation: engine_step until
 * engine_quiet). The outbox stays as it is: what was sent and not answered is sent again with the same ids by the next run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <assert.h>
#include <stdarg.h>

#include "priv.h"

int64_t engine_now(struct engine *e) {
        return clock_mono_ms(e->c.clock);
}

/* ---- inbox and waking ---- */

static void wake_with(struct engine *e, struct completion *c) {
        void (*woken)(void *) = NULL;
        void *arg = NULL;
        {
                LOCK_SCOPE(&e->lock);
                if (c) {
                        c->next = NULL;
                        *e->inbox_end = c;
                        e->inbox_end = &c->next;
                }
                e->woken = true;
                woken = e->on_woken;
                arg = e->on_woken_arg;
                cond_broadcast(&e->cond);
        }
        if (woken)
                woken(arg);
}

void engine_complete(struct engine *e, struct completion *c) {
        wake_with(e, c);
}

void engine_wake(struct engine *e) {
        wake_with(e, NULL);
}

void engine_set_woken(struct engine *e, void (*woken)(void *arg), void *arg) {
        LOCK_SCOPE(&e->lock);
        e->on_woken = woken;
        e->on_woken_arg = arg;
}

bool engine_stopping(struct engine *e) {
        LOCK_SCOPE(&e->lock);
        return e->stopping;
}

/* ---- requests ---- */

struct request *request_new(struct engine *e, enum http_method method, size_t max_body, size_t max_answer, const char *fmt, ...) {
        struct request *r = calloc(1, sizeof *r);
        char *path = NULL;
        va_list ap;
        if (!r)
                return NULL;
        r->e = e;
        r->call = http_call_new(method, max_body, max_answer);
        va_start(ap, fmt);
        int n = vasprintf(&path, fmt, ap);
        va_end(ap);
        if (!r->call || n < 0) {
                if (n >= 0)
                        free(path);
                request_free(r);
                return NULL;
        }
        r->call->path = path;
        r->call->accept = WIRE_TYPE;
        if (method == HTTP_POST)
                r->call->content_type = WIRE_TYPE;
        return r;
}

void request_free(struct request *r) {
        if (!r)
                return;
        if (r->call)
                http_call_free(r->call);
        free(r);
}

static void request_finish(struct engine *e, struct completion *c) {
        struct request *r = container_of(c, struct request, completion);
        int err = http_call_error(r->call);
        if (r->prev)
                r->prev->next = r->next;
        else
                e->requests = r->next;
        if (r->next)
                r->next->prev = r->prev;
        e->outstanding--;
        connect_report(e, r, err);
        r->finished(r, err);
        request_free(r);
}

static void request_done(struct http_call *call) {
        struct request *r = call->owner;
        engine_complete(r->e, &r->completion);
}

void request_send(struct request *r, int64_t deadline_ms) {
        struct engine *e = r->e;
        int64_t now = engine_now(e);
        r->completion.run = request_finish;
        r->sent_ms = now;
        r->call->deadline_ms = deadline_ms ? deadline_ms : now + e->c.net_timeout_ms;
        r->call->done = request_done;
        r->call->owner = r;
        r->prev = NULL;
        r->next = e->requests;
        if (e->requests)
                e->requests->prev = r;
        e->requests = r;
        e->outstanding++;
        retry_budget_request(&e->connect.budget);
        int err = engine_stopping(e) ? -ECANCELED : e->c.transport->submit(e->c.transport, r->call);
        if (err < 0) {
                r->call->err = err == -ESHUTDOWN ? -ECANCELED : err;
                engine_complete(e, &r->completion);
        }
}

int64_t request_deadline(struct engine *e, size_t bytes) {
        return engine_now(e) + e->c.net_timeout_ms + (int64_t)(bytes / 32);
}

void request_cancel(struct request *r) {
        r->e->c.transport->cancel(r->e->c.transport, r->call);
}

int request_hashes(const struct request *r, int (*each)(void *arg, const struct digest *hash), void *arg) {
        struct wire_reader reader = { .p = r->call->answer.data, .n = r->call->answer.bytes };
        const struct digest *hashes;
        struct frame f;
        size_t n;
        int k = wire_next(&reader, &f);
        if (k <= 0 || f.kind != FRAME_HASHES)
                return k < 0 ? k : -EPROTO;
        k = wire_get_hashes(&f, &hashes, &n);
        for (size_t i = 0; k >= 0 && i < n; i++)
                k = each(arg, &hashes[i]);
        if (k >= 0)
                k = wire_next(&reader, &f);
        return k > 0 ? -EPROTO : k;
}

/* ---- tasks ---- */

static void task_finish(struct engine *e, struct completion *c) {
        struct task *t = container_of(c, struct task, completion);
        e->outstanding--;
        t->finished(t);
}

static void task_run(struct job *j) {
        struct task *t = container_of(j, struct task, job);
        t->work(t);
        engine_complete(t->e, &t->completion);
}

void task_start(struct engine *e, struct executor *where, struct task *t) {
        t->e = e;
        t->job.run = task_run;
        t->completion.run = task_finish;
        e->outstanding++;
        executor_submit(where, &t->job);
}

/* ---- status ---- */

void engine_set_state(struct engine *e, enum conn_state state, int fatal, const char *reason) {
        bool stop = false, changed;
        {
                LOCK_SCOPE(&e->lock);
                changed = e->status.state != state;
                if (changed)
                        e->status.since_ns = clock_real_ns(e->c.clock);
                stop = changed && (state == CONN_UPGRADE || state == CONN_SIGNED_OUT);
                e->status.state = state;
                snprintf(e->status.reason, sizeof e->status.reason, "%s", reason);
                e->fatal = fatal;
                snprintf(e->fatal_why, sizeof e->fatal_why, "%s", reason);
                cond_broadcast(&e->cond);
        }
        if (changed) {
                static const char *const names[] = { "online", "offline", "signed_out", "upgrade" };
                log_info("sync state=%s reason=\"%s\"", names[state], reason);
                cache_set_online(e->c.cache, state == CONN_ONLINE);
        }
        if (stop && e->c.stopped)
                e->c.stopped(e->c.stopped_arg, state == CONN_UPGRADE ? -EPROTONOSUPPORT : -EKEYREJECTED);
}

void engine_set_loaded(struct engine *e, uint64_t rows, bool loaded) {
        LOCK_SCOPE(&e->lock);
        e->status.load_rows = rows;
        if (loaded)
                e->status.loaded = true;
        e->loaded = e->status.loaded;
        cond_broadcast(&e->cond);
}

void engine_set_sending(struct engine *e, uint64_t n) {
        LOCK_SCOPE(&e->lock);
        e->status.sending = n;
}

void engine_status(struct engine *e, struct engine_status *ret) {
        LOCK_SCOPE(&e->lock);
        *ret = e->status;
        ret->paused = e->paused;
}

void engine_set_space(struct engine *e, uint64_t quota_bytes, uint64_t used_bytes) {
        LOCK_SCOPE(&e->lock);
        e->status.quota_bytes = quota_bytes;
        e->status.used_bytes = used_bytes;
}

bool engine_is_open(void *arg, uint64_t ino) {
        return file_is_open(arg, ino);
}

void engine_committed(struct engine *e, const struct tree_applied *applied) {
        if (applied->n_done == 0)
                return;
        for (size_t i = 0; i < applied->n_done; i++) {
                struct upload *u = upload_find(e, &applied->done[i].op);
                counter_add(e->c.counters, ops_committed, applied->done[i].fate == FATE_COMMITTED);
                if (u)
                        upload_abandon(u);
        }
        file_committed(e->c.cache, applied->done, applied->n_done);
}

/* ---- one turn ---- */

int64_t engine_step(struct engine *e) {
        struct completion *c;
        bool changed, nudged, paused;
        for (;;) {
                {
                        LOCK_SCOPE(&e->lock);
                        c = e->inbox;
                        if (c) {
                                e->inbox = c->next;
                                if (!e->inbox)
                                        e->inbox_end = &e->inbox;
                        }
                }
                if (!c)
                        break;
                c->run(e, c);
        }
        int64_t now = engine_now(e), due = NEVER;
        {
                LOCK_SCOPE(&e->lock);
                changed = e->changed;
                nudged = e->nudged;
                paused = e->paused;
                e->woken = e->changed = e->nudged = false;
                if (e->stopping)
                        paused = true;
        }
        if (engine_stopping(e)) {
                (void)download_step(e, now); /* wishes end */
                (void)uploads_step(e, now);  /* abandoned ones are freed */
                return NEVER;
        }
        if (nudged)
                connect_nudge(e);
        if (changed || nudged) {
                outbox_look(e);
                e->early.look = e->uploads.look = true;
        }
        if (now >= e->quiet_at_ms) {
                int64_t wait = file_quiet_points(e->c.cache);
                e->quiet_at_ms = now + MIN(MAX(wait, 100), QUIET_TICK_MS);
        }
        due = MIN(due, e->quiet_at_ms);
        due = MIN(due, connect_step(e, now));
        due = MIN(due, download_step(e, now));
        if (!paused) {
                due = MIN(due, load_step(e, now));
                due = MIN(due, events_step(e, now));
                due = MIN(due, outbox_step(e, now));
                due = MIN(due, uploads_step(e, now));
                due = MIN(due, early_step(e, now));
        }
        {
                LOCK_SCOPE(&e->lock);
                if (e->inbox || e->woken)
                        return 0;
        }
        if (due == NEVER)
                return NEVER;
        now = engine_now(e);
        return due > now ? due - now : 0;
}

/* ---- from outside ---- */

static void on_notes(struct listener *l, const struct note *notes, size_t n) {
}

static void on_wake(struct listener *l) {
        struct engine *e = container_of(l, struct engine, listener);
        {
                LOCK_SCOPE(&e->lock);
                e->changed = true;
        }
        engine_wake(e);
}

static bool open_for_write(void *arg, uint64_t ino) {
        return file_is_open_for_write(arg, ino);
}

int engine_new(const struct engine_config *config, struct engine **ret) {
        assert(config->cache && config->transport && config->workers && config->clock && config->rng && config->counters && config->workspace && config->host);
        struct engine *e = calloc(1, sizeof *e);
        struct tree_totals totals = { 0 };
        struct cursor cursor;
        if (!e)
                return -ENOMEM;
        e->c = *config;
        if (e->c.net_timeout_ms <= 0)
                e->c.net_timeout_ms = 30000;
        if (e->c.uploads == 0)
                e->c.uploads = 4;
        e->ws = (struct buf)BUF_INIT(4096);
        lock_init(&e->lock, "engine", RANK_QUEUE);
        cond_init(&e->cond);
        e->inbox_end = &e->inbox;
        e->listener = (struct listener){ .notes = on_notes, .wake = on_wake };
        int r = url_escape(config->workspace, &e->ws);
        if (r >= 0 && !buf_text(&e->ws))
                r = -ENOMEM;
        if (r >= 0)
                r = tree_totals(e->c.cache->tree, &totals);
        if (r < 0) {
                engine_free(e);
                return r;
        }
        if (tree_setting_set(e->c.cache->tree, "host", config->host, strlen(config->host)) < 0) /* for the conflict names that the cache makes by itself */
                log_warn("sync setting=host failed");
        e->status = (struct engine_status){ .state = CONN_OFFLINE, .reason = "connecting", .since_ns = clock_real_ns(e->c.clock) };
        e->status.loaded = e->loaded = totals.complete && tree_cursor(e->c.cache->tree, &cursor) >= 0;
        e->status.load_rows = totals.nodes + totals.entries;
        connect_init(e);
        load_init(e);
        events_init(e);
        outbox_init(e);
        uploads_init(e);
        early_init(e);
        download_init(e);
        outbox_set_open_check(e->c.cache->tree, open_for_write, e->c.cache);
        e->woken = true;
        *ret = e;
        return 0;
}

void engine_free(struct engine *e) {
        if (!e)
                return;
        assert(!e->running && e->outstanding == 0);
        outbox_free(e);
        uploads_free(e);
        arena_free(e->events.arena);
        buf_free(&e->events.held);
        buf_free(&e->ws);
        cond_destroy(&e->cond);
        lock_destroy(&e->lock);
        free(e);
}

struct source *engine_source(struct engine *e) {
        return &e->down.source;
}

struct listener *engine_listener(struct engine *e) {
        return &e->listener;
}

void engine_accept(struct engine *e) {
        atomic_store(&e->accept, true);
        engine_wake(e);
}

bool engine_quiet(struct engine *e) {
        return e->outstanding == 0;
}

void engine_shutdown(struct engine *e) {
        {
                LOCK_SCOPE(&e->lock);
                e->stopping = true;
        }
        download_refuse(e, true);
        for (struct request *r = e->requests; r; r = r->next)
                request_cancel(r);
}

static void *control(void *arg) {
        struct engine *e = arg;
        bool down = false;
        for (;;) {
                int64_t wait = engine_step(e);
                bool stopping = engine_stopping(e);
                if (stopping && !down) {
                        engine_shutdown(e);
                        down = true;
                        continue;
                }
                if (stopping && e->outstanding == 0) {
                        (void)engine_step(e); /* what ended last may have left something to free */
                        if (e->outstanding == 0)
                                return NULL;
                }
                LOCK_SCOPE(&e->lock);
                int64_t deadline = wait == NEVER ? NEVER : engine_now(e) + wait;
                while (!e->woken && !e->inbox && (down || !e->stopping)) {
                        if (deadline == NEVER)
                                cond_wait(&e->cond, &e->lock);
                        else if (cond_wait_until(&e->cond, &e->lock, deadline) == -ETIMEDOUT)
                                break;
                }
        }
}

int engine_start(struct engine *e) {
        assert(!e->running);
        int r = pool_new("sync-read", 2, &e->down.pool);
        if (r < 0)
                return r;
        r = thread_start(&e->thread, "engine", control, e);
        if (r < 0) {
                pool_free(steal_ptr(e->down.pool));
                return r;
        }
        e->running = true;
        return 0;
}

void engine_stop(struct engine *e) {
        if (!e->running)
                return;
        download_refuse(e, true);
        {
                LOCK_SCOPE(&e->lock);
                e->stopping = true;
                e->woken = true;
                cond_broadcast(&e->cond);
        }
        (void)pthread_join(e->thread, NULL);
        uploads_free(e); /* references to stages end before the cache is closed */
        pool_free(steal_ptr(e->down.pool));
        e->running = false;
}

int engine_wait_loaded(struct engine *e, int64_t deadline_ms, char *ret_why, size_t n) {
        LOCK_SCOPE(&e->lock);
        for (;;) {
                if (e->status.loaded)
                        return 0;
                if (e->fatal < 0) {
                        snprintf(ret_why, n, "%s", e->fatal_why);
                        return e->fatal;
                }
                if (e->stopping) {
                        snprintf(ret_why, n, "stopped");
                        return -ECANCELED;
                }
                if (cond_wait_until(&e->cond, &e->lock, deadline_ms) == -ETIMEDOUT) {
                        snprintf(ret_why, n, "the server did not give the whole tree in time (%s)", e->status.reason);
                        return -ETIMEDOUT;
                }
        }
}

void engine_nudge(struct engine *e) {
        {
                LOCK_SCOPE(&e->lock);
                e->nudged = true;
        }
        engine_wake(e);
}

void engine_pause(struct engine *e, bool paused) {
        {
                LOCK_SCOPE(&e->lock);
                e->paused = paused;
        }
        engine_wake(e);
}
