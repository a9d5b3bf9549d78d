/* SPDX-License-Identifier: Apache-2.0 */
/* test_patrol.c: the background scrub on a clock that is moved by hand: all of the cache within the period at an even pace, after a power cut the doubtful blocks first, never while the mount is busy (for
 * long), from where it was after a start; and what it finds. */
#include "cache_world.h"

#include <dirent.h>

#include "cache/patrol.h"

#define DAY_MS (INT64_C(24) * 3600 * 1000)
#define PERIOD_MS (30 * DAY_MS)
#define FILES 40

struct scene { struct cw *w; struct clock_manual clock; struct patrol *p; uint8_t *bytes[FILES]; size_t n[FILES]; struct node node[FILES]; };

static void open_patrol(struct scene *s) {
        assert_int_equal(patrol_new(&(struct patrol_config) { .cache = s->w->cache, .period_ms = PERIOD_MS, .by_hand = true }, &s->p), 0);
}

static void scene_open(struct scene *s) {
        cw_open_bare(s->w, &s->clock.clock);
        cw_load(s->w);
        assert_int_equal(cache_loaded(s->w->cache), 0);
        open_patrol(s);
}

static void scene_close(struct scene *s) {
        patrol_free(s->p);
        cw_close(s->w);
}

static struct patrol_status status(struct scene *s) {
        struct patrol_status st;
        patrol_status(s->p, &st);
        return st;
}

static struct scene *scene_new(void) {
        struct scene *s = calloc(1, sizeof *s);
        s->w = cw_new(256 * MIB, test_seed());
        struct rng *r = &s->w->source->rng.rng;
        clock_manual_init(&s->clock, 1000000, INT64_C(1700000000) * 1000000000);
        scene_open(s);
        for (int i = 0; i < FILES; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "f%d", i);
                s->n[i] = i % 4 == 0 ? 3 * MIB : 100 + rng_below(r, 200000);
                s->bytes[i] = malloc(s->n[i]);
                r->fill(r, s->bytes[i], s->n[i]);
                s->node[i] = cw_create(s->w, INO_ROOT, name);
                struct file *f = cw_file(s->w, s->node[i].ino, true, false);
                assert_int_equal(write_at(f, 0, s->bytes[i], s->n[i], false, WAIT_MS), (ssize_t)s->n[i]);
                file_release(f, true);
        }
        cw_accept_all(s->w);
        cw_settle(s->w);
        return s;
}

static void scene_free(struct scene *s) {
        scene_close(s);
        for (int i = 0; i < FILES; i++)
                free(s->bytes[i]);
        cw_free(s->w);
        free(s);
}

/* Until the time has passed or the round is over; the clock goes as the patrol asks for. Returns the time that went by. */
static int64_t run_for(struct scene *s, int64_t ms) {
        int64_t gone = 0;
        uint64_t blocks = status(s).blocks;
        while (gone < ms) {
                int64_t wait = patrol_turn(s->p);
                struct patrol_status now = status(s);
                assert_true(now.urgent || now.blocks < blocks || now.blocks - blocks <= 256); /* small steps */
                blocks = now.blocks;
                if (now.finished_ns && now.finished_ns >= now.started_ns)
                        return gone;
                wait = MIN(MAX(wait, (int64_t)1), ms - gone);
                clock_manual_advance(&s->clock, wait);
                gone += wait;
        }
        return gone;
}

static uint64_t blocks_of(struct scene *s) {
        struct blobs_totals t;
        blobs_totals(s->w->cache->blobs, &t);
        return t.blocks;
}

/* A bit of the content of that file, in the cache. */
static void flip(struct scene *s, int i) {
        const char *const dirs[] = { "pack", "blob" };
        for (size_t k = 0; k < ARRAY_SIZE(dirs); k++) {
                char path[400];
                (void)snprintf(path, sizeof path, "%s/%s", s->w->dir, dirs[k]);
                DIR *d = opendir(path);
                assert_non_null(d);
                for (struct dirent *e; (e = readdir(d));) {
                        (void)snprintf(path, sizeof path, "%s/%s/%s", s->w->dir, dirs[k], e->d_name);
                        struct buf b = BUF_INIT(128 * MIB);
                        uint8_t *at = e->d_name[0] != '.' && file_load(path, 128 * MIB, &b) == 0 ? memmem(b.data, b.bytes, s->bytes[i] + 50, 16) : NULL;
                        if (at) {
                                uint8_t byte = *at ^ 4;
                                int fd = open(path, O_WRONLY | O_CLOEXEC);
                                assert_int_equal(pwrite(fd, &byte, 1, at - b.data), 1);
                                (void)close(fd);
                                buf_free(&b);
                                (void)closedir(d);
                                return;
                        }
                        buf_free(&b);
                }
                (void)closedir(d);
        }
        fail_msg("file %d is not in the cache", i);
}

static void test_round(void **state) {
        struct scene *s = scene_new();
        uint64_t all = blocks_of(s);
        (void)run_for(s, DAY_MS);
        struct patrol_status early = status(s);
        assert_true(early.blocks > 0 && early.blocks < all / 4); /* a day of thirty, in steps of 256 KiB */
        flip(s, 1);
        flip(s, 4);
        int64_t took = DAY_MS + run_for(s, PERIOD_MS);
        print_message("%llu blocks in %.1f days\n", (unsigned long long)all, (double)took / DAY_MS);
        struct patrol_status st = status(s);
        assert_int_equal(st.blocks, all);
        assert_true(took < PERIOD_MS && took > PERIOD_MS / 2);
        if (st.bad < 2) /* one lay in what was read on the first day: in the next round */
                st.bad += (run_for(s, 1), clock_manual_advance(&s->clock, PERIOD_MS - took), (void)run_for(s, 1), (void)run_for(s, PERIOD_MS), status(s).bad);
        assert_int_equal(st.bad, 2);
        struct blobs_scrub b = { 0 };
        assert_int_equal(blobs_scrub(s->w->cache->blobs, &b), 0);
        assert_int_equal(atomic_load(&b.bad), 0);
        assert_int_equal(atomic_load(&b.checked), all); /* fetched again */
        /* nothing until the period has passed since the start */
        int64_t started = status(s).started_ns;
        for (int64_t gone = 0; status(s).started_ns == started; gone += 3600000) {
                assert_true(gone <= PERIOD_MS);
                (void)patrol_turn(s->p);
                clock_manual_advance(&s->clock, 3600000);
        }
        assert_true(status(s).started_ns - started >= PERIOD_MS * 1000000);
        scene_free(s);
}

static void test_start_again(void **state) {
        struct scene *s = scene_new();
        uint64_t all = blocks_of(s);
        (void)run_for(s, 12 * DAY_MS);
        struct patrol_status before = status(s);
        assert_true(before.blocks > all / 4 && before.blocks < all);
        scene_close(s);
        clock_manual_advance(&s->clock, 2 * DAY_MS);
        scene_open(s);
        struct patrol_status after = status(s);
        assert_int_equal(after.blocks, before.blocks);
        assert_int_equal(after.started_ns, before.started_ns);
        (void)run_for(s, PERIOD_MS);
        assert_int_equal(status(s).blocks, all); /* not one twice */
        assert_true(status(s).finished_ns - before.started_ns < PERIOD_MS * 1000000);
        scene_free(s);
}

static void test_power_cut(void **state) {
        struct scene *s = scene_new();
        uint64_t all = blocks_of(s);
        char path[400];
        (void)snprintf(path, sizeof path, "%s/boot", s->w->dir);
        scene_close(s);
        int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
        assert_int_equal(write_full(fd, "000000000000000000000000000000000000", 36), 0);
        (void)close(fd);
        flip(s, 3);
        scene_open(s);
        assert_true(status(s).urgent);
        int64_t gone = 0;
        while (status(s).urgent && gone < PERIOD_MS) {
                int64_t wait = MAX(patrol_turn(s->p), (int64_t)1);
                if (!status(s).urgent)
                        break;
                clock_manual_advance(&s->clock, wait);
                gone += wait;
        }
        print_message("%llu doubtful blocks in %.0f min\n", (unsigned long long)all, (double)gone / 60000);
        assert_true(gone < 2 * 3600000);
        assert_int_equal(status(s).bad, 1);
        /* the next start on the same boot trusts them */
        scene_close(s);
        scene_open(s);
        assert_false(status(s).urgent);
        scene_free(s);
}

static void test_busy(void **state) {
        struct scene *s = scene_new();
        clock_manual_advance(&s->clock, DAY_MS);
        int64_t quiet = 0, last = 0;
        uint64_t blocks = 0;
        for (int64_t gone = 0; gone < 3 * DAY_MS;) { /* somebody is always at work */
                counter_add(&s->w->counters, fuse_requests, 1);
                int64_t wait = MAX(patrol_turn(s->p), (int64_t)1);
                if (status(s).blocks > blocks) {
                        assert_true(gone == 0 || gone - last >= 60000);
                        quiet = MAX(quiet, gone - last);
                        last = gone;
                        blocks = status(s).blocks;
                }
                clock_manual_advance(&s->clock, wait);
                gone += wait;
        }
        assert_true(blocks > 0);
        print_message("%llu blocks in 3 days of work, at most %.1f h apart\n", (unsigned long long)blocks, (double)quiet / 3600000);
        scene_free(s);
}

static void test_pending(void **state) {
        struct scene *s = scene_new();
        struct node n = cw_create(s->w, INO_ROOT, "only here");
        struct file *f = cw_file(s->w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, s->bytes[0], 300000, false, WAIT_MS), 300000);
        file_release(f, true);
        char path[400];
        struct stage *st;
        assert_int_equal(stage_get(s->w->cache->stages, cw_row(s->w, n.ino).gen, &st), 0);
        (void)snprintf(path, sizeof path, "%s/lent/%s", s->w->dir, st->data_name);
        stage_put(st);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        uint8_t byte = s->bytes[0][200000] ^ 1;
        assert_int_equal(pwrite(fd, &byte, 1, 200000), 1);
        (void)run_for(s, 2 * DAY_MS);
        assert_int_equal(status(s).stages_bad, 1);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, 200000), 1);
        (void)close(fd);
        (void)run_for(s, 2 * DAY_MS);
        assert_int_equal(status(s).stages_bad, 0);
        scene_free(s);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_round), cmocka_unit_test(test_start_again), cmocka_unit_test(test_power_cut), cmocka_unit_test(test_busy), cmocka_unit_test(test_pending) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
