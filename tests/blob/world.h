/* SPDX-License-Identifier: Apache-2.0 */
/* world.h: what the blob tests share: contents that are known, a source that serves them from its own thread with faults on demand, a cache in a directory of its own,
 * du, waiting with a deadline. Header-only; each test is one executable. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/chunk.h"
#include "base/digest.h"
#include "base/io.h"
#include "base/lock.h"
#include "base/log.h"
#include "cache/blob.h"
#include "../tmpdir.h"

#define KIB 1024u
#define MIB (1024u * 1024u)
#define WAIT_MS 20000

/* Around every call from the source into the cache; a test may define it. */
#ifndef IN_CALLBACK
#define IN_CALLBACK(call) (call)
#endif

struct page { struct page *next; struct digest hash; size_t n; uint8_t bytes[]; };
struct known { uint8_t *bytes; size_t n; struct content content; struct blocklist list; struct page *pages; };

struct world {
        struct source source;
        struct counters counters;
        char dir[128];
        uint64_t floor;
        struct blobs *blobs;
        struct known **known; size_t n_known;  /* lock */
        struct rng_seeded rng;                 /* main thread */

        struct lock lock;
        struct cond more;
        pthread_t thread;
        bool stop;
        struct fetch *queue[4096]; size_t n_queue;
        /* faults and counts, all under lock */
        bool offline;          /* refuse at once */
        bool hold;             /* accept, serve nothing until it is over */
        int fail;              /* done(fail) without a block */
        int wrong;             /* this many blocks get wrong bytes */
        bool missing;          /* done(0) without a block */
        bool report_bad;       /* done(-EBADMSG) if a block was wrong */
        bool pages_last;
        size_t fetches, blocks, cancels;
};

static inline uint64_t test_seed(void) {
        const char *text = getenv("TARN_TEST_SEED");
        uint64_t seed = text ? strtoull(text, NULL, 0) : rng_u64(rng_system());
        print_message("seed %llu (TARN_TEST_SEED=%llu repeats it)\n", (unsigned long long)seed, (unsigned long long)seed);
        return seed;
}

static inline int64_t now_ms(void) { return clock_mono_ms(clock_system()); }

struct keep_pages { struct page_sink sink; struct page **pages; };
static inline int keep_page(struct page_sink *s, const struct digest *hash, const void *bytes, size_t n, uint8_t level) {
        struct keep_pages *k = container_of(s, struct keep_pages, sink);
        struct page *p = malloc(sizeof *p + n);
        assert_non_null(p);
        p->hash = *hash;
        p->n = n;
        memcpy(p->bytes, bytes, n);
        p->next = *k->pages;
        *k->pages = p;
        return 0;
}

/* Makes a content of these bytes known to the source. block: fixed length of blocks, 0: cut by content. */
static inline struct known *know(struct world *w, const void *bytes, size_t n, size_t block) {
        struct known *k = calloc(1, sizeof *k);
        k->bytes = malloc(n + 1);
        memcpy(k->bytes, bytes, n);
        k->n = n;
        k->list.param = 1;
        for (size_t at = 0; at < n;) {
                size_t len = block ? MIN(block, n - at) : chunk_next(chunk_param(1), k->bytes + at, n - at, true);
                struct blockref ref = { .bytes = (uint32_t)len };
                sha256(k->bytes + at, len, &ref.hash);
                assert_int_equal(blocklist_add(&k->list, &ref), 0);
                at += len;
        }
        struct keep_pages sink = { { keep_page }, &k->pages };
        assert_int_equal(blocklist_content(&k->list, &sink.sink, &k->content), 0);
        LOCK_SCOPE(&w->lock);
        w->known = reallocarray(w->known, w->n_known + 1, sizeof *w->known);
        w->known[w->n_known++] = k;
        return k;
}

static inline struct known *know_random(struct world *w, size_t n, size_t block) {
        uint8_t *bytes = malloc(n + 1);
        w->rng.rng.fill(&w->rng.rng, bytes, n);
        struct known *k = know(w, bytes, n, block);
        free(bytes);
        return k;
}

static inline void forget_known(struct known *k) {
        for (struct page *p = k->pages, *next; p; p = next) {
                next = p->next;
                free(p);
        }
        blocklist_free(&k->list);
        free(k->bytes);
        free(k);
}

static inline int world_fetch(struct source *s, struct fetch *f) {
        struct world *w = container_of(s, struct world, source);
        LOCK_SCOPE(&w->lock);
        if (w->offline || w->stop)
                return -EHOSTDOWN;
        assert_true(w->n_queue < ARRAY_SIZE(w->queue));
        w->queue[w->n_queue++] = f;
        w->fetches++;
        f->priv = NULL;
        cond_broadcast(&w->more);
        return 0;
}

static inline void world_cancel(struct source *s, struct fetch *f) {
        struct world *w = container_of(s, struct world, source);
        LOCK_SCOPE(&w->lock);
        w->cancels++;
        for (size_t i = 0; i < w->n_queue; i++)
                if (w->queue[i] == f)
                        f->priv = w; /* seen when it is taken from the queue */
        cond_broadcast(&w->more);
}

static inline bool give(struct world *w, struct fetch *f, const struct digest *hash, const void *p, size_t n) {
        bool wrong;
        {
                LOCK_SCOPE(&w->lock);
                wrong = w->wrong > 0;
                w->wrong -= wrong;
                w->blocks++;
        }
        if (!wrong) {
                assert_int_equal(IN_CALLBACK(f->block(f, hash, p, n)), 0);
                return false;
        }
        uint8_t *bad = malloc(n);
        memcpy(bad, p, n);
        bad[n / 2] ^= 1;
        assert_int_equal(f->block(f, hash, bad, n), -EBADMSG);
        free(bad);
        return true;
}

static inline bool serve(struct world *w, struct fetch *f) {
        size_t n_known;
        struct known **known;
        bool pages_last, any_wrong = false;
        {
                LOCK_SCOPE(&w->lock);
                n_known = w->n_known;
                known = malloc((n_known + 1) * sizeof *known);
                memcpy(known, w->known, n_known * sizeof *known);
                pages_last = w->pages_last;
        }
        for (size_t h = 0; h < f->n_hashes; h++) {
                bool found = false;
                for (size_t c = n_known; !found && c-- > 0;) {
                        uint64_t at = 0;
                        for (size_t i = 0; !found && i < known[c]->list.n; at += known[c]->list.refs[i++].bytes)
                                if (digest_equal(&known[c]->list.refs[i].hash, &f->hashes[h])) {
                                        any_wrong |= give(w, f, &f->hashes[h], known[c]->bytes + at, known[c]->list.refs[i].bytes);
                                        found = true;
                                }
                }
                assert_true(found);
        }
        if (f->n_hashes == 0) {
                struct known *k = NULL;
                for (size_t c = 0; c < n_known && !k; c++)
                        if (content_equal(&known[c]->content, &f->content))
                                k = known[c];
                assert_non_null(k);
                for (struct page *p = k->pages; p && f->pages && !pages_last; p = p->next)
                        any_wrong |= give(w, f, &p->hash, p->bytes, p->n);
                uint64_t at = 0;
                for (size_t i = 0; i < k->list.n; at += k->list.refs[i++].bytes)
                        if (at < f->offset + f->bytes && at + k->list.refs[i].bytes > f->offset)
                                any_wrong |= give(w, f, &k->list.refs[i].hash, k->bytes + at, k->list.refs[i].bytes);
                for (struct page *p = k->pages; p && f->pages && pages_last; p = p->next)
                        any_wrong |= give(w, f, &p->hash, p->bytes, p->n);
        }
        free(known);
        return any_wrong;
}

static inline void *world_run(void *arg) {
        struct world *w = arg;
        lock_take(&w->lock);
        for (;;) {
                size_t i = 0;
                while (i < w->n_queue && w->hold && !w->queue[i]->priv && !w->stop)
                        i++;
                if (i == w->n_queue) {
                        if (w->stop)
                                break;
                        cond_wait(&w->more, &w->lock);
                        continue;
                }
                struct fetch *f = w->queue[i];
                memmove(&w->queue[i], &w->queue[i + 1], (--w->n_queue - i) * sizeof w->queue[0]);
                int err = f->priv || w->stop ? -ECANCELED : w->fail;
                bool missing = w->missing, report_bad = w->report_bad;
                lock_drop(&w->lock);
                if (err == 0 && !missing && serve(w, f) && report_bad)
                        err = -EBADMSG;
                f->done(f, err);
                lock_take(&w->lock);
        }
        lock_drop(&w->lock);
        return NULL;
}

static inline void set_bool(struct world *w, bool *field, bool value) {
        LOCK_SCOPE(&w->lock);
        *field = value;
        cond_broadcast(&w->more);
}

static inline void set_int(struct world *w, int *field, int value) {
        LOCK_SCOPE(&w->lock);
        *field = value;
}

static inline size_t get_size(struct world *w, size_t *field) {
        LOCK_SCOPE(&w->lock);
        return *field;
}

static inline void world_open(struct world *w, uint64_t limit, bool new_boot) {
        struct blobs_config c = { .dir = w->dir, .limit_bytes = limit, .free_floor_bytes = w->floor, .clock = clock_system(), .counters = &w->counters, .source = &w->source, .new_boot = new_boot };
        assert_int_equal(blobs_open(&c, &w->blobs), 0);
}

static inline void world_close(struct world *w) {
        blobs_close(w->blobs);
        w->blobs = NULL;
}


static inline struct world *world_new_floor(const char *parent, uint64_t limit, uint64_t seed, uint64_t floor) {
        struct world *w = calloc(1, sizeof *w);
        w->floor = floor;
        (void)snprintf(w->dir, sizeof w->dir, "%s/tarn-blob-XXXXXX", parent);
        assert_non_null(tmpdir_new(w->dir));
        w->source = (struct source){ world_fetch, world_cancel };
        lock_init(&w->lock, "world", RANK_QUEUE);
        cond_init(&w->more);
        rng_seed(&w->rng, seed);
        assert_int_equal(thread_start(&w->thread, "source", world_run, w), 0);
        world_open(w, limit, false);
        return w;
}

static inline struct world *world_new_in(const char *parent, uint64_t limit, uint64_t seed) {
        return world_new_floor(parent, limit, seed, 0);
}

static inline struct world *world_new(uint64_t limit) {
        return world_new_in("/tmp", limit, 1);
}

static inline void remove_tree(const char *dir) {
        char *const paths[] = { (char *)(uintptr_t)dir, NULL };
        FTS *fts = fts_open(paths, FTS_PHYSICAL | FTS_NOSTAT, NULL);
        for (FTSENT *e; fts && (e = fts_read(fts));)
                if (e->fts_info == FTS_DP)
                        (void)rmdir(e->fts_accpath);
                else if (e->fts_info != FTS_D)
                        (void)unlink(e->fts_accpath);
        if (fts)
                (void)fts_close(fts);
}

static inline void world_stop_source(struct world *w) {
        set_bool(w, &w->stop, true);
        (void)pthread_join(w->thread, NULL);
}

static inline void world_free(struct world *w) {
        world_stop_source(w);
        if (w->blobs)
                world_close(w);
        for (size_t i = 0; i < w->n_known; i++)
                forget_known(w->known[i]);
        free(w->known);
        cond_destroy(&w->more);
        lock_destroy(&w->lock);
        remove_tree(w->dir);
        free(w);
}

/* du -s --block-size=1. A file that goes away meanwhile counts as gone. */
static inline uint64_t du(const char *dir) {
        char *const paths[] = { (char *)(uintptr_t)dir, NULL };
        uint64_t bytes = 0;
        FTS *fts = fts_open(paths, FTS_PHYSICAL, NULL);
        for (FTSENT *e; fts && (e = fts_read(fts));)
                if (e->fts_info != FTS_DP && e->fts_info != FTS_NS && e->fts_info != FTS_ERR)
                        bytes += (uint64_t)e->fts_statp->st_blocks * 512;
        if (fts)
                (void)fts_close(fts);
        return bytes;
}

static inline struct blob *get_blob(struct world *w, const struct known *k) {
        struct blob *blob;
        assert_int_equal(blob_get(w->blobs, &k->content, &blob), 0);
        return blob;
}

/* Reads through the cache and compares. Returns blob_pread's result. */
static inline ssize_t read_compare(struct blob *blob, const struct known *k, uint64_t off, size_t n) {
        uint8_t *buf = malloc(n + 1);
        ssize_t r = blob_pread(blob, off, buf, n, now_ms() + WAIT_MS);
        if (r >= 0) {
                size_t expected = off >= k->n ? 0 : MIN(n, k->n - off);
                assert_int_equal(r, expected);
                if (r > 0)
                        assert_memory_equal(buf, k->bytes + off, (size_t)r);
        }
        free(buf);
        return r;
}

/* Waits until the condition holds; a mistake if it takes too long. */
#define WAIT_FOR(w, cond_expr)                                                                 \
        do {                                                                                   \
                int64_t until_ = now_ms() + WAIT_MS;                                           \
                LOCK_SCOPE(&(w)->lock);                                                        \
                while (!(cond_expr)) {                                                         \
                        assert_true(now_ms() < until_);                                        \
                        (void)(cond_wait_until(&(w)->more, &(w)->lock, now_ms() + 5) < 0);      \
                }                                                                              \
        } while (0)

/* The same for conditions that take locks of their own. */
#define WAIT_UNLOCKED(w, cond_expr)                                                            \
        do {                                                                                   \
                int64_t until_ = now_ms() + WAIT_MS;                                           \
                while (!(cond_expr)) {                                                         \
                        assert_true(now_ms() < until_);                                        \
                        LOCK_SCOPE(&(w)->lock);                                                \
                        (void)(cond_wait_until(&(w)->more, &(w)->lock, now_ms() + 5) < 0);      \
                }                                                                              \
        } while (0)

/* A read in completion form, with what came of it. */
struct async { struct blob_read read; struct world *w; int done; ssize_t result; uint8_t *buf; };
static inline void async_done(struct blob_read *r, ssize_t result) {
        struct async *a = r->owner;
        lock_assert_none();
        LOCK_SCOPE(&a->w->lock);
        a->done++;
        a->result = result;
        cond_broadcast(&a->w->more);
}
static inline ssize_t async_start(struct async *a, struct world *w, struct blob *blob, uint64_t off, size_t n, int64_t deadline_ms) {
        *a = (struct async){ .w = w, .buf = malloc(n) };
        a->read = (struct blob_read){ .blob = blob, .off = off, .buf = a->buf, .n = n, .deadline_ms = deadline_ms, .done = async_done, .owner = a };
        return blob_read(&a->read);
}
static inline ssize_t async_end(struct async *a) {
        WAIT_FOR(a->w, a->done > 0);
        LOCK_SCOPE(&a->w->lock);
        assert_int_equal(a->done, 1);
        free(a->buf);
        return a->result;
}
