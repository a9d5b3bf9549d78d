/* SPDX-License-Identifier: Apache-2.0 */
/* service.c: the server without sockets: opens the data directory, runs requests, wakes long polls, does administration.
 *
 * The data directory
 *   format        "tarn-server 1": what this is; another number is refused, not touched
 *   lock          flock: one process has the directory open, whatever it does (serve, user add, ...)
 *   meta.db*      the metadata (SQLite)
 *   objects/      the object store
 *   reserve       room for deletions on a full disk (reserve.c)
 *   admin.sock    administration of a running server (admin.c)
 *   url           where it listens (main.c)
 *
 * The stack of the store: count over verify over dir (or memory). Requests share the service without a lock of their own: meta and store are safe for
 * any thread, statistics are atomics. The one lock is waiters_lock (rank below the queues: `ready` submits jobs with it held).
 *
 * meta_tidy (expired tokens, claims, sessions) runs every TIDY_MS on the thread of whichever request comes then: it is short, and a
 * server that nobody asks has nothing that could expire usefully. */
#include "api_call.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "admin.h"
#include "api/code.h"
#include "base/io.h"
#include "base/log.h"
#include "router.h"

#define FORMAT_TEXT "tarn-server 1\n"
#define MEM_STORE_BYTES ((size_t)4 << 30)
#define RANK_WAITERS (RANK_QUEUE - 4)
#define RANK_OBJECTS (RANK_QUEUE - 6) /* above the database: gc asks inside its transaction */
#define TIDY_MS (5 * 60 * 1000)

static int why(char *ret_why, size_t n, int err, const char *fmt, ...) _printf_(4, 5);
static int why(char *ret_why, size_t n, int err, const char *fmt, ...) {
        va_list args;

        va_start(args, fmt);
        (void)vsnprintf(ret_why, n, fmt, args);
        va_end(args);
        return err;
}

static int path_in(const char *dir, const char *name, char **ret) {
        *ret = path_join(dir, name);
        return *ret ? 0 : -ENOMEM;
}

int service_init(const char *data_dir, char *ret_why, size_t n) {
        _cleanup_free_ char *format = NULL, *objects = NULL, *db = NULL;
        _cleanup_(cleanup_store_p) struct store *store = NULL;
        struct meta_config mc = {.clock = clock_system(), .rng = rng_system()};
        struct meta *meta = NULL;
        struct stat st;
        int r;

        if (path_in(data_dir, "format", &format) < 0 || path_in(data_dir, "objects", &objects) < 0 || path_in(data_dir, "meta.db", &db) < 0)
                return why(ret_why, n, -ENOMEM, "no memory");
        if (stat(format, &st) == 0)
                return why(ret_why, n, -EEXIST, "%s is a server's data directory already; use it with serve", data_dir);
        r = mkdir_p(data_dir, 0700);
        if (r < 0 && r != -EEXIST)
                return why(ret_why, n, r, "cannot make %s: %s", data_dir, strerror(-r));
        if (stat(db, &st) == 0)
                return why(ret_why, n, -EEXIST, "%s has a database but no format file; name an empty directory", data_dir);
        if (stat(data_dir, &st) < 0 || !S_ISDIR(st.st_mode))
                return why(ret_why, n, -ENOTDIR, "%s is not a directory", data_dir);
        r = store_dir_open(objects, &store);
        if (r < 0)
                return why(ret_why, n, r, "cannot make %s: %s", objects, strerror(-r));
        mc.path = db;
        r = meta_open(&mc, &meta, ret_why, n);
        if (r < 0)
                return r;
        meta_close(meta);
        r = file_replace(format, FORMAT_TEXT, strlen(FORMAT_TEXT), 0600);
        if (r >= 0)
                r = fsync_parent(data_dir);
        return r < 0 ? why(ret_why, n, r, "cannot write %s: %s", format, strerror(-r)) : 0;
}

/* A commit is on disk: wakes who waits for that workspace. */
static void service_notify(void *arg, uint64_t ws, const char *workspace, uint64_t seq) {
        struct service *s = arg;
        uint64_t bit = UINT64_C(1) << (ws % 64);
        struct service_waiter *next;

        (void)workspace;
        (void)seq;
        LOCK_SCOPE(&s->waiters_lock);
        for (struct service_waiter *w = s->waiters; w; w = next) {
                next = w->next;
                if (!(w->mask & bit))
                        continue;
                if (w->prev)
                        w->prev->next = w->next;
                else
                        s->waiters = w->next;
                if (w->next)
                        w->next->prev = w->prev;
                w->next = w->prev = NULL;
                w->registered = false;
                w->ready(w);
        }
}

void service_wait_remove(struct service *s, struct service_waiter *w) {
        lease_forget(s->leases, w);
        LOCK_SCOPE(&s->waiters_lock);
        if (!w->registered)
                return;
        if (w->prev)
                w->prev->next = w->next;
        else
                s->waiters = w->next;
        if (w->next)
                w->next->prev = w->prev;
        w->next = w->prev = NULL;
        w->registered = false;
}

/* Checks the directory and locks it. */
static int dir_open(struct service *s, const char *dir, char *ret_why, size_t n) {
        _cleanup_free_ char *format = NULL, *lock = NULL;
        _cleanup_buf_ struct buf text = BUF_INIT(256);
        int r;

        if (path_in(dir, "format", &format) < 0 || path_in(dir, "lock", &lock) < 0)
                return why(ret_why, n, -ENOMEM, "no memory");
        r = file_load(format, 128, &text);
        if (r == -ENOENT || r == -ENOTDIR)
                return why(ret_why, n, -ENOENT, "%s is not a server's data directory; make one with: tarn-server init --data %s", dir, dir);
        if (r < 0)
                return why(ret_why, n, r, "cannot read %s: %s", format, strerror(-r));
        if (text.bytes != strlen(FORMAT_TEXT) || memcmp(text.data, FORMAT_TEXT, text.bytes) != 0)
                return why(ret_why, n, -EPROTONOSUPPORT, "%s was made by another version of tarn-server; use that one", dir);
        r = file_lock(lock, &s->lock_fd);
        if (r == -EBUSY)
                return why(ret_why, n, -EBUSY, "%s is in use by another tarn-server; stop that one first", dir);
        return r < 0 ? why(ret_why, n, r, "cannot lock %s: %s", lock, strerror(-r)) : 0;
}

static void service_full(void *arg) {
        struct service *s = arg;

        (void)reserve_release(s->reserve);
}

static int stack_open(struct service *s, const char *dir, char *ret_why, size_t n) {
        _cleanup_free_ char *objects = NULL;
        struct store *store;
        int r;

        if (!dir) {
                r = store_mem_open(MEM_STORE_BYTES, &store);
        } else {
                r = path_in(dir, "objects", &objects);
                if (r >= 0)
                        r = store_dir_open(objects, &store);
        }
        if (r >= 0)
                r = store_verify_new(store, &store);
        if (r >= 0)
                r = store_count_new(store, &s->store_counts, &s->store);
        return r < 0 ? why(ret_why, n, r, "cannot open the object store: %s", strerror(-r)) : 0;
}

int service_open(const struct service_config *c, struct service **ret, char *ret_why, size_t n) {
        _cleanup_free_ char *db = NULL;
        struct service *s = calloc(1, sizeof *s);
        struct meta_config mc;
        int r = 0;

        if (!s)
                return why(ret_why, n, -ENOMEM, "no memory");
        s->clock = c->clock ? c->clock : clock_system();
        s->rng = c->rng ? c->rng : rng_system();
        s->counters = c->counters ? c->counters : &s->own_counters;
        s->lock_fd = -1;
        lock_init(&s->waiters_lock, "waiters", RANK_WAITERS);
        lock_init(&s->objects_lock, "objects", RANK_OBJECTS);
        lock_init(&s->job_lock, "job", RANK_WAITERS);
        cond_init(&s->job_changed);
        s->serving = c->workers > 0;
        if (c->data_dir) {
                s->data_dir = strdup(c->data_dir);
                if (!s->data_dir)
                        r = -ENOMEM;
        }
        if (r >= 0 && c->data_dir) {
                r = path_in(c->data_dir, "meta.db", &db);
                if (r >= 0)
                        r = dir_open(s, c->data_dir, ret_why, n);
        }
        if (r >= 0) {
                r = leases_new(s->clock, s->rng, c->lease_ms, &s->leases);
                if (r < 0)
                        r = why(ret_why, n, r, "no memory");
        }
        if (r >= 0)
                r = stack_open(s, c->data_dir, ret_why, n);
        if (r >= 0) {
                r = reserve_open(c->data_dir, &s->reserve);
                if (r < 0)
                        r = why(ret_why, n, r, "cannot open %s/reserve: %s", c->data_dir, strerror(-r));
        }
        if (r >= 0) {
                mc = (struct meta_config){.path = db, .vfs = c->vfs, .clock = s->clock, .rng = s->rng, .counters = s->counters, .threaded = c->workers > 0,
                                          .cheap_passwords = !c->data_dir, .notify = service_notify, .notify_arg = s, .full = service_full, .full_arg = s};
                r = meta_open(&mc, &s->meta, ret_why, n);
                if ((r == -ENOSPC || r == -EIO) && reserve_release(s->reserve)) /* its shared memory is a file too */
                        r = meta_open(&mc, &s->meta, ret_why, n);
        }
        if (r < 0) {
                service_close(s);
                return r;
        }
        atomic_store(&s->tidy_at_ms, clock_mono_ms(s->clock) + TIDY_MS);
        *ret = s;
        return 0;
}

void service_close(struct service *s) {
        if (!s)
                return;
        assert(!s->waiters);
        leases_free(s->leases);
        meta_close(s->meta);
        store_close(s->store);
        reserve_close(s->reserve);
        lock_destroy(&s->waiters_lock);
        lock_destroy(&s->objects_lock);
        lock_destroy(&s->job_lock);
        cond_destroy(&s->job_changed);
        free(s->data_dir);
        if (s->lock_fd >= 0)
                (void)close(s->lock_fd);
        free(s);
}

void service_answer_free(struct service_answer *a) {
        if (a->pull_close)
                a->pull_close(a->pull_arg);
        buf_free(&a->body);
        *a = (struct service_answer){0};
}

void service_object_begin(struct service *s, struct service_object *o, const char *name) {
        *o = (struct service_object){.name = name};
        LOCK_SCOPE(&s->objects_lock);
        o->next = s->objects;
        if (o->next)
                o->next->prev = o;
        s->objects = o;
}

void service_object_end(struct service *s, struct service_object *o) {
        LOCK_SCOPE(&s->objects_lock);
        if (o->prev)
                o->prev->next = o->next;
        else
                s->objects = o->next;
        if (o->next)
                o->next->prev = o->prev;
}

bool service_object_busy(void *service, const char *name) {
        struct service *s = service;

        LOCK_SCOPE(&s->objects_lock);
        for (struct service_object *o = s->objects; o; o = o->next)
                if (strcmp(o->name, name) == 0)
                        return true;
        return false;
}

static void answer_init(struct service *s, struct service_answer *a) {
        struct id id = rng_id(s->rng);

        *a = (struct service_answer){.body = BUF_INIT(CALL_ANSWER_BYTES_MAX)};
        hex_encode(id.b, ID_BYTES, a->request_id);
}

static void tidy(struct service *s) {
        int64_t due = atomic_load(&s->tidy_at_ms), now = clock_mono_ms(s->clock);
        int r;

        if (now < due || !atomic_compare_exchange_strong(&s->tidy_at_ms, &due, now + TIDY_MS))
                return;
        r = meta_tidy(s->meta);
        if (r < 0)
                log_warn("event=tidy error=%s", err_name(r));
}

int service_handle(struct service *s, const struct service_request *req, struct service_answer *ret) {
        struct call c = {.s = s, .req = req, .ans = ret};
        _cleanup_arena_ struct arena *arena = NULL;
        int64_t started = clock_mono_ms(s->clock);
        int r;

        answer_init(s, ret);
        tidy(s);
        r = arena_new(CALL_ARENA_BYTES, &arena);
        c.arena = arena;
        r = r < 0 ? call_fail_errno(&c, r, "starting") : router_run(&c);
        if (r != -EINPROGRESS && req->waiter)
                service_wait_remove(s, req->waiter);
        if (r == -EINPROGRESS) {
                assert(req->waiter && !req->no_wait);
                service_answer_free(ret);
                return r;
        }
        assert(r == 0 && ret->status >= 200 && ret->status < 600);
        if (strcmp(req->method, "HEAD") == 0)
                ret->head = true;
        (void)atomic_fetch_add_explicit(&s->stats.answers[ret->status / 100], 1, memory_order_relaxed);
        log_debug("request=%s method=%.16s path=%.*s status=%d ms=%" PRId64 " user=%s peer=%s bytes=%" PRIu64, ret->request_id, req->method,
                  (int)MIN(strcspn(req->target, "?"), (size_t)300), req->target, ret->status, clock_mono_ms(s->clock) - started,
                  c.who.account_name[0] ? c.who.account_name : "-", req->peer ? req->peer : "-", ret->pull ? ret->pull_bytes : ret->body.bytes);
        return 0;
}

void service_admit(struct service *s, const char *method, const char *target, struct service_admission *ret) {
        const struct route *route;
        size_t n = strcspn(target, "?");

        (void)s;
        *ret = (struct service_admission){.class = CLASS_CONTROL};
        if (router_find(method, target, n, NULL, &route, NULL, 0) < 0)
                return;
        ret->class = route->class;
        ret->stream = route->stream;
        ret->max_body_bytes = route->max_body_bytes;
}

void service_refuse(struct service *s, const char *code, const char *message, struct service_answer *ret) {
        struct service_request req = {.method = "-", .target = "-"};
        struct call c = {.s = s, .req = &req, .ans = ret};

        answer_init(s, ret);
        (void)call_fail(&c, code, "%s", message);
        (void)atomic_fetch_add_explicit(&s->stats.answers[ret->status / 100], 1, memory_order_relaxed);
}

int service_admin(struct service *s, const char *const *words, size_t n, const char *password, struct buf *ret_text) {
        return admin_run(s, words, n, password, ret_text);
}
