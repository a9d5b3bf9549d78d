/* SPDX-License-Identifier: Apache-2.0 */
/* What becomes of stages while others look at them: a committed one turns into a blob under its readers, layers go, discarded ones are let go once. */
#include "cache_world.h"

/* ---- the moment after a file went to the blobs: everything is evicted, then a handle reads ---- */
int __real_blobs_adopt_file(struct blobs *b, const struct content *content, const struct blocklist *list, const char *path, const uint8_t *present, struct blobs_handover *h);
int __wrap_blobs_adopt_file(struct blobs *b, const struct content *content, const struct blocklist *list, const char *path, const uint8_t *present, struct blobs_handover *h);
static struct { struct file *f; const uint8_t *want; size_t n; _Atomic int looked, wrong; bool fill; } after_adoption;

int __wrap_blobs_adopt_file(struct blobs *b, const struct content *content, const struct blocklist *list, const char *path, const uint8_t *present, struct blobs_handover *h) {
        int r = __real_blobs_adopt_file(b, content, list, path, present, h);
        if (!after_adoption.f)
                return r;
        (void)(blobs_evict_all(b) < 0);
        uint8_t *buf = malloc(after_adoption.n);
        if (read_at(after_adoption.f, 0, buf, after_adoption.n) != (ssize_t)after_adoption.n || memcmp(buf, after_adoption.want, after_adoption.n) != 0)
                after_adoption.wrong++;
        free(buf);
        after_adoption.looked++;
        return r;
}

static void adopt_under_a_reader(bool there) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "large"), twin = cw_create(w, INO_ROOT, "twin");
        size_t size = 3 * MIB;
        uint8_t *p = malloc(size);
        w->source->rng.rng.fill(&w->source->rng.rng, p, size);
        if (there) { /* the same content came by another file: its blob has blocks already */
                struct file *t = cw_file(w, twin.ino, true, false);
                assert_int_equal(write_at(t, 0, p, size, false, 0), size);
                file_release(t, true);
                cw_accept_all(w);
                cw_settle(w);
        }
        struct file *f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, p, size, false, 0), size);
        file_release(f, true);
        f = cw_file(w, n.ino, false, false);
        after_adoption.want = p;
        after_adoption.n = size;
        after_adoption.looked = after_adoption.wrong = 0;
        after_adoption.f = f;
        cw_accept_all(w);
        cw_settle(w);
        after_adoption.f = NULL;
        assert_int_equal(after_adoption.looked, 1);
        assert_int_equal(after_adoption.wrong, 0);
        file_release(f, false);
        cw_free(w);
        free(p);
}

static void test_adopt(void **state) {
        adopt_under_a_reader(false);
        adopt_under_a_reader(true);
}

/* ---- the blobs' index is written while the cache is open, not only at its close ---- */
int __real_blobs_sync(struct blobs *b);
int __wrap_blobs_sync(struct blobs *b);
static _Atomic int index_syncs;
int __wrap_blobs_sync(struct blobs *b) {
        index_syncs++;
        return __real_blobs_sync(b);
}

static void test_index_minute(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct files *fs = w->cache->files;
        lock_take(&fs->lock);
        assert_in_range(fs->index_due_ms, now_ms(), now_ms() + INDEX_MS);
        int before = index_syncs;
        fs->index_due_ms = 0; /* the minute is over */
        fs->kicked = true;
        cond_broadcast(&fs->work);
        lock_drop(&fs->lock);
        WAIT_UNLOCKED(w->source, index_syncs > before);
        lock_take(&fs->lock);
        int64_t next = fs->index_due_ms;
        lock_drop(&fs->lock);
        assert_in_range(next, now_ms(), now_ms() + INDEX_MS);
        cw_free(w);
}

/* ---- a stage that two places let go of is let go once ---- */
static void test_discarded_twice(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct stage_header h = { .gen = stages_gen(w->cache->stages), .ino = 99, .base = content_empty };
        struct stage *st;
        assert_int_equal(stage_new(w->cache->stages, &h, NULL, NULL, 0, &st), 0);
        files_discard(w->cache->files, stage_ref(st));
        files_discard(w->cache->files, stage_ref(st));
        stage_put(st);
        for (int i = 0; i < 3; i++)
                assert_int_equal(cache_sync(w->cache), 0);
        assert_int_equal(stage_get(w->cache->stages, h.gen, &st), -ENOENT);
        cw_free(w);
}

/* ---- everything at once ---- */
#define WRITERS 2
#define FILES_EACH 3
struct run { struct cw *w; pthread_t thread; uint64_t seed; _Atomic uint64_t *ino; int saves; _Atomic bool *over; };

#define must_be(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

static struct file *open_now(struct cw *w, uint64_t ino, bool write, bool truncate) {
        for (;;) { /* its incarnation may change between the two */
                struct node n;
                struct file *f;
                int r = tree_get(w->cache->tree, ino, &n);
                if (r == 0)
                        r = file_open(w->cache, ino, n.incarnation, write, truncate, &f);
                if (r == 0)
                        return f;
                if (r == -ENOENT)
                        return NULL;
                must_be(r == -ESTALE);
        }
}

static void *writer_run(void *arg) {
        struct run *run = arg;
        struct cw *w = run->w;
        struct rng_seeded r;
        rng_seed(&r, run->seed);
        uint8_t *m[FILES_EACH], *buf = malloc(3 * MIB);
        size_t n[FILES_EACH] = { 0 };
        for (int i = 0; i < FILES_EACH; i++)
                m[i] = calloc(1, 3 * MIB);
        for (int save = 0; save < run->saves; save++) {
                int i = (int)rng_below(&r.rng, FILES_EACH);
                bool truncate = rng_below(&r.rng, 4) == 0;
                struct file *f = open_now(w, run->ino[i], true, truncate);
                must_be(f);
                if (truncate)
                        n[i] = 0;
                for (unsigned k = (unsigned)rng_below(&r.rng, 4); k-- > 0;) {
                        size_t len = 1 + (size_t)rng_below(&r.rng, rng_below(&r.rng, 6) ? 4000 : 1500000);
                        uint64_t off = rng_below(&r.rng, n[i] + 1);
                        if (off + len > 3 * MIB)
                                continue;
                        r.rng.fill(&r.rng, buf, len);
                        must_be(write_at(f, off, buf, len, false, WAIT_MS) == (ssize_t)len);
                        memcpy(m[i] + off, buf, len);
                        n[i] = MAX(n[i], off + len);
                        if (rng_below(&r.rng, 8) == 0)
                                must_be(file_sync(f) == 0);
                }
                must_be(read_at(f, 0, buf, 3 * MIB) == (ssize_t)n[i] && memcmp(buf, m[i], n[i]) == 0);
                file_release(f, true);
                if (rng_below(&r.rng, 3) == 0) {
                        f = open_now(w, run->ino[i], false, false);
                        must_be(f && read_at(f, 0, buf, 3 * MIB) == (ssize_t)n[i] && memcmp(buf, m[i], n[i]) == 0);
                        file_release(f, false);
                }
        }
        for (int i = 0; i < FILES_EACH; i++)
                free(m[i]);
        free(buf);
        return NULL;
}

static void *reader_run(void *arg) {
        struct run *run = arg;
        struct cw *w = run->w;
        struct rng_seeded r;
        rng_seed(&r, run->seed);
        static _Thread_local uint8_t buf[100000];
        struct file *held[4] = { 0 };
        while (!atomic_load(run->over)) {
                int k = (int)rng_below(&r.rng, ARRAY_SIZE(held));
                uint64_t ino = run->ino[rng_below(&r.rng, WRITERS * FILES_EACH)], size;
                int64_t mt, ct;
                if (held[k]) {
                        ssize_t got = read_at(held[k], rng_below(&r.rng, 3 * MIB), buf, sizeof buf);
                        must_be(got >= 0);
                }
                if (rng_below(&r.rng, 3) == 0) {
                        if (held[k])
                                file_release(held[k], false);
                        held[k] = open_now(w, ino, false, false);
                }
                (void)file_overlay(w->cache, ino, &size, &mt, &ct);
                (void)file_is_open(w->cache, ino);
                struct cache_totals t;
                must_be(cache_totals(w->cache, &t) == 0);
        }
        for (size_t k = 0; k < ARRAY_SIZE(held); k++)
                if (held[k])
                        file_release(held[k], false);
        return NULL;
}

/* As the engine does: what is marked stays as it is, newer contents queue behind it. */
static size_t accept_marked(struct cw *w) {
        static struct outbox_item items[64];
        struct arena *a, *b;
        size_t n = 0, done = 0;
        int64_t wait;
        assert_int_equal(arena_new(16 << 20, &a), 0);
        assert_int_equal(arena_new(16 << 20, &b), 0);
        assert_int_equal(outbox_next(w->cache->tree, a, items, 64, &n, &wait), 0);
        for (size_t i = 0; i < n; i++) {
                struct outbox_item now;
                assert_int_equal(outbox_mark_sent(w->cache->tree, &items[i].op.id, 1), 0);
                int r = outbox_get(w->cache->tree, &items[i].op.id, b, &now);
                assert_true(r == 0 || r == -ENOENT);
                if (r == 0)
                        cw_accept(w, &now);
                done += r == 0;
                arena_reset(b);
        }
        arena_free(a);
        arena_free(b);
        return done;
}

static void test_all_at_once(void **state) {
        uint64_t seed = test_seed();
        unsigned scale = (unsigned)strtoul(getenv("TARN_TEST_SCALE") ? getenv("TARN_TEST_SCALE") : "1", NULL, 10);
        struct cw *w = cw_new(64 * MIB, seed);
        cw_open(w);
        _Atomic uint64_t ino[WRITERS * FILES_EACH];
        for (int i = 0; i < WRITERS * FILES_EACH; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "f%d", i);
                ino[i] = cw_create(w, INO_ROOT, name).ino;
        }
        _Atomic bool over = false;
        struct run writer[WRITERS], reader = { .w = w, .seed = seed + 100, .ino = ino, .over = &over };
        for (int i = 0; i < WRITERS; i++) {
                writer[i] = (struct run) { .w = w, .seed = seed + (uint64_t)i, .ino = ino + i * FILES_EACH, .saves = 120 * (int)scale };
                assert_int_equal(thread_start(&writer[i].thread, "writer", writer_run, &writer[i]), 0);
        }
        assert_int_equal(thread_start(&reader.thread, "reader", reader_run, &reader), 0);
        size_t committed = 0;
        for (struct stages_totals t;;) {
                committed += accept_marked(w);
                assert_int_equal(cache_sync(w->cache), 0);
                (void)file_quiet_points(w->cache);
                bool alive = false;
                for (int i = 0; i < WRITERS; i++)
                        alive |= writer[i].thread && pthread_tryjoin_np(writer[i].thread, NULL) != 0 ? true : (writer[i].thread = 0, false);
                stages_totals(w->cache->stages, &t);
                if (!alive)
                        break;
        }
        atomic_store(&over, true);
        (void)pthread_join(reader.thread, NULL);
        (void)cw_accept_all(w);
        cw_settle(w);
        print_message("%llu commits\n", (unsigned long long)committed);
        struct stages_totals t;
        struct blobs_totals b;
        stages_totals(w->cache->stages, &t);
        assert_int_equal(t.open + t.sealed, 0);
        assert_int_equal(t.dirty_bytes, 0);
        blobs_totals(w->cache->blobs, &b);
        assert_int_equal(b.dirty_bytes, segments_bytes(w->cache->stages->segs)); /* nothing of the room is lost */
        cw_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_discarded_twice), cmocka_unit_test(test_index_minute), cmocka_unit_test(test_adopt), cmocka_unit_test(test_all_at_once) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
