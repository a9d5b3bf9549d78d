/* SPDX-License-Identifier: Apache-2.0 */
/* The word for how safe a file is, at each step of its way; nothing is synced but by the test. And the commit points of files that stay open. */
#include "cache_world.h"

static void open_by_hand(struct cw *w) {
        char note[200];
        struct cache_config c = { .dir = w->dir, .limit_bytes = w->limit, .uid = 1000, .gid = 1000, .clock = clock_system(), .rng = rng_system(), .counters = &w->counters,
                                  .workers = pool_executor(w->pool), .by_hand = true };
        assert_int_equal(cache_open(&c, &w->cache, note, sizeof note), 0);
        cache_set_source(w->cache, &w->source->source);
        cw_load(w);
        assert_int_equal(cache_sync(w->cache), 0);
}

static void expect_level(struct cw *w, uint64_t ino, enum level want) {
        enum level level;
        struct cache_levels n;
        assert_int_equal(file_level(w->cache, ino, &level), 0);
        assert_string_equal(level_name(level), level_name(want));
        assert_int_equal(cache_levels(w->cache, &n), 0);
        assert_int_equal(n.accepted, want == LEVEL_ACCEPTED);
        assert_int_equal(n.local, want == LEVEL_LOCAL);
}

static void way(size_t bytes) {
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        uint8_t *p = calloc(1, bytes);
        struct node n = cw_create(w, INO_ROOT, "f");
        expect_level(w, n.ino, LEVEL_ACCEPTED); /* its row */
        assert_int_equal(tree_sync(w->cache->tree), 0);
        expect_level(w, n.ino, LEVEL_LOCAL);
        struct file *f = cw_file(w, n.ino, true, false);
        expect_level(w, n.ino, LEVEL_LOCAL);
        assert_int_equal(write_at(f, 0, p, bytes, false, WAIT_MS), bytes);
        expect_level(w, n.ino, LEVEL_ACCEPTED);
        assert_int_equal(tree_sync(w->cache->tree), 0);
        expect_level(w, n.ino, LEVEL_ACCEPTED);
        assert_int_equal(file_sync(f), 0);
        expect_level(w, n.ino, LEVEL_LOCAL);
        assert_int_equal(write_at(f, 0, "x", 1, true, WAIT_MS), 1);
        expect_level(w, n.ino, LEVEL_ACCEPTED);
        assert_int_equal(cache_sync(w->cache), 0);
        expect_level(w, n.ino, LEVEL_LOCAL);
        file_release(f, true); /* sealed and queued: its bytes are as safe as before */
        expect_level(w, n.ino, LEVEL_LOCAL);
        struct tree_attrs a = { .mask = ATTR_MODE, .mode = 0600 };
        assert_int_equal(tree_setattr(w->cache->tree, n.ino, &a, &n), 0);
        expect_level(w, n.ino, LEVEL_ACCEPTED);
        assert_int_equal(cache_sync(w->cache), 0);
        expect_level(w, n.ino, LEVEL_LOCAL);
        assert_true(cw_accept_all(w) > 0);
        expect_level(w, n.ino, LEVEL_SERVER); /* before it is a blob, and without a sync */
        f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, "y", 1, false, WAIT_MS), 1);
        expect_level(w, n.ino, LEVEL_ACCEPTED);
        file_release(f, true);
        expect_level(w, n.ino, LEVEL_ACCEPTED);
        assert_int_equal(cache_sync(w->cache), 0);
        expect_level(w, n.ino, LEVEL_LOCAL);
        cw_close(w);
        open_by_hand(w); /* a start ends with a sync */
        expect_level(w, n.ino, LEVEL_LOCAL);
        assert_true(cw_accept_all(w) > 0);
        expect_level(w, n.ino, LEVEL_SERVER);
        free(p);
        cw_free(w);
}

static void test_small(void **state) { way(100); }
static void test_large(void **state) { way(3 * MIB); }

static void *sync_it(void *arg) {
        assert_int_equal(file_sync(arg), 0);
        return NULL;
}

/* An fsync beside another one, or beside the sync of each second: local from its return on. */
static void test_side_by_side(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        _cleanup_free_ uint8_t *p = calloc(1, MIB);
        struct node n = cw_create(w, INO_ROOT, "f");
        struct file *f = cw_file(w, n.ino, true, false);
        for (int round = 0; round < 60; round++) {
                pthread_t others[3];
                assert_int_equal(write_at(f, (uint64_t)round * 1000, p, MIB, false, WAIT_MS), MIB);
                expect_level(w, n.ino, LEVEL_ACCEPTED);
                for (size_t i = 0; i < ARRAY_SIZE(others); i++)
                        assert_int_equal(thread_start(&others[i], "sync", sync_it, f), 0);
                assert_int_equal(file_sync(f), 0);
                expect_level(w, n.ino, LEVEL_LOCAL);
                for (size_t i = 0; i < ARRAY_SIZE(others); i++)
                        assert_int_equal(pthread_join(others[i], NULL), 0);
                expect_level(w, n.ino, LEVEL_LOCAL);
        }
        file_release(f, true);
        cw_free(w);
}

/* Directories have a level too: that of their operations. */
static void test_dir(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        struct node n;
        enum level level;
        assert_int_equal(tree_create(w->cache->tree, INO_ROOT, "d", 1, &(struct tree_new) { .kind = NODE_DIR, .mode = 0755 }, &n), 0);
        assert_int_equal(file_level(w->cache, n.ino, &level), 0);
        assert_int_equal(level, LEVEL_ACCEPTED);
        assert_int_equal(tree_sync(w->cache->tree), 0);
        assert_int_equal(file_level(w->cache, n.ino, &level), 0);
        assert_int_equal(level, LEVEL_LOCAL);
        assert_int_equal(file_level(w->cache, INO_ROOT, &level), 0);
        assert_int_equal(level, LEVEL_SERVER);
        assert_int_equal(file_level(w->cache, 123456, &level), -ENOENT);
        cw_free(w);
}

/* Commit points of a file that stays open: half a minute without a write, and five minutes after the oldest write even if it never rests. */
static void test_quiet_points(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        struct clock_manual clock;
        clock_manual_init(&clock, 1000, 1700000000000000000);
        cw_open_with(w, &clock.clock);
        struct node n = cw_create(w, INO_ROOT, "f");
        struct file *f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, "a", 1, true, WAIT_MS), 1);
        clock_manual_advance(&clock, 29000);
        assert_int_equal(file_quiet_points(w->cache), 1000);
        assert_int_equal(cw_row(w, n.ino).gen, 0);
        clock_manual_advance(&clock, 1000);
        (void)file_quiet_points(w->cache);
        uint64_t first = cw_row(w, n.ino).gen, last = first;
        assert_int_not_equal(first, 0);
        assert_int_equal(cw_row(w, n.ino).size, 1);
        (void)file_quiet_points(w->cache);
        assert_int_equal(cw_row(w, n.ino).gen, first); /* nothing new: no version */
        int points = 0;
        for (int s = 0; s < 610; s += 10) {
                assert_int_equal(write_at(f, 0, "b", 1, true, WAIT_MS), 1);
                clock_manual_advance(&clock, 10000);
                (void)file_quiet_points(w->cache);
                uint64_t gen = cw_row(w, n.ino).gen;
                points += gen != last;
                if (gen != last)
                        assert_true(s + 10 == 300 || s + 10 == 600);
                last = gen;
        }
        assert_int_equal(points, 2);
        file_release(f, true);
        assert_int_equal(cw_row(w, n.ino).size, 62);
        cw_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_small), cmocka_unit_test(test_large), cmocka_unit_test(test_side_by_side), cmocka_unit_test(test_dir), cmocka_unit_test(test_quiet_points) };
        return cmocka_run_group_tests_name("level", tests, NULL, NULL);
}
