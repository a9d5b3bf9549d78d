/* SPDX-License-Identifier: Apache-2.0 */
/* A clock that has gone back between two starts (no battery, a wrong setting): generations of stages begin at the clock, and must not begin below those that the tree knows, of which the server has
 * taken the stages since. What is written then is as durable as ever: after a kill, and after a power cut if it was fsynced. */
#include "cache_world.h"
#include "tree_priv.h"

static int64_t back_ns;
static int64_t mono(struct clock *c) { return clock_mono_ms(clock_system()); }
static int64_t real(struct clock *c) { return clock_real_ns(clock_system()) - back_ns; }
static struct clock a_clock = { mono, real };

/* A copy of the directory as it is now, to go on with; f, open in there, is closed behind its back. */
static void die(struct cw *w, struct file *f, bool cut) {
        char copy[200];
        cw_copy(w, "", copy);
        if (f)
                file_release(f, true);
        cw_become(w, copy, cut);
}

static void fill(struct file *f, char c, size_t n) {
        uint8_t *p = malloc(n);
        assert_non_null(p);
        memset(p, c, n);
        assert_int_equal(write_at(f, 0, p, n, false, WAIT_MS), n);
        free(p);
}

static void goes_back(bool fsynced, bool cut, bool noted, size_t n) {
        struct cw *w = cw_new(256 * MIB, 1);
        back_ns = 0;
        cw_open_by_hand(w, &a_clock);
        const uint64_t ino = cw_create(w, INO_ROOT, "f").ino;
        struct file *f = cw_file(w, ino, true, false);
        fill(f, 'o', n);
        file_release(f, true);
        assert_int_equal(cache_sync(w->cache), 0);
        const uint64_t before = cw_row(w, ino).gen;
        assert_true(cw_accept_all(w) > 0);
        struct stage *st;
        for (int64_t end = now_ms() + WAIT_MS; stage_get(w->cache->stages, before, &st) == 0;) { /* until the stage is gone */
                stage_put(st);
                assert_true(now_ms() < end);
                assert_int_equal(cache_sync(w->cache), 0);
        }
        assert_int_equal(cache_sync(w->cache), 0);
        if (!noted) { /* by an older program, which did not note how high generations are */
                lock_take(&w->cache->tree->lock);
                assert_int_equal(db_exec(w->cache->tree->w, "DELETE FROM meta WHERE key='next_gen'; UPDATE meta SET value=1 WHERE key='born'"), 0);
                tree_count_commit(w->cache->tree);
                lock_drop(&w->cache->tree->lock);
                assert_int_equal(cache_sync(w->cache), 0);
        }
        die(w, NULL, false);
        back_ns = clock_real_ns(clock_system()) - INT64_C(1000000000); /* 1970 */
        cw_open_by_hand(w, &a_clock);
        f = cw_file(w, ino, true, true);
        fill(f, 'n', n);
        if (fsynced)
                assert_int_equal(file_sync(f), 0);
        die(w, f, cut);
        cw_open_by_hand(w, &a_clock);
        assert_true(cw_row(w, ino).gen > before);
        f = cw_file(w, ino, false, false);
        uint8_t *p = malloc(n + 1);
        assert_non_null(p);
        assert_int_equal(read_at(f, 0, p, n + 1), n);
        for (size_t i = 0; i < n; i++)
                assert_int_equal(p[i], 'n');
        free(p);
        file_release(f, false);
        cw_free(w);
}

static void test_goes_back(void **state) {
        for (int i = 0; i < 16; i++)
                if ((i & 1) || !(i & 2)) /* after a power cut only what was fsynced */
                        goes_back(i & 1, i & 2, i & 4, i & 8 ? 300000 : 3000);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_goes_back) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
