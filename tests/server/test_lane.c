/* SPDX-License-Identifier: Apache-2.0 */
/* test_lane.c: askers take turns; bounds hold; nothing is lost at the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/lock.h"
#include "http_lane.h"

#define JOBS 200u

struct shared { struct lock lock; struct cond changed; bool open; unsigned running, most[3], now[3], n; uint64_t order[2 * JOBS]; };
struct work { struct lane_job job; struct shared *s; };

static void run(struct lane_job *j) {
        struct work *w = container_of(j, struct work, job);
        struct shared *s = w->s;

        LOCK_SCOPE(&s->lock);
        s->order[s->n++] = j->who;
        s->now[j->who]++;
        s->most[j->who] = MAX(s->most[j->who], s->now[j->who]);
        s->running++;
        cond_broadcast(&s->changed);
        while (!s->open)
                cond_wait(&s->changed, &s->lock);
        s->now[j->who]--;
}

static void open_shared(struct shared *s) {
        *s = (struct shared){.n = 0};
        lock_init(&s->lock, "test", RANK_QUEUE + 2);
        cond_init(&s->changed);
}

static void let_go(struct shared *s) {
        LOCK_SCOPE(&s->lock);
        s->open = true;
        cond_broadcast(&s->changed);
}

static void wait_running(struct shared *s, unsigned n) {
        LOCK_SCOPE(&s->lock);
        while (s->running < n)
                cond_wait(&s->changed, &s->lock);
}

static void close_shared(struct shared *s) {
        cond_destroy(&s->changed);
        lock_destroy(&s->lock);
}

static void test_turns(void **state) {
        static struct work many[JOBS], few[3];
        struct shared s;
        struct lane *l;

        (void)state;
        open_shared(&s);
        assert_int_equal(lane_new("test", 1, 0, JOBS + 10, &l), 0);
        for (size_t i = 0; i < JOBS; i++) {
                many[i] = (struct work){.job = {.run = run}, .s = &s};
                assert_int_equal(lane_submit(l, &many[i].job, 1, true), 0);
        }
        wait_running(&s, 1);
        for (size_t i = 0; i < 3; i++) {
                few[i] = (struct work){.job = {.run = run}, .s = &s};
                assert_int_equal(lane_submit(l, &few[i].job, 2, true), 0);
        }
        let_go(&s);
        lane_free(l); /* runs all of it */
        assert_int_equal(s.n, JOBS + 3);
        for (size_t i = 0, seen = 0; i < s.n; i++)
                if (s.order[i] == 2)
                        assert_true(i <= 2 * ++seen); /* behind one of the other's each, not behind all */
        close_shared(&s);
}

static void test_bounds(void **state) {
        static struct work work[40];
        struct shared s;
        struct lane *l;
        unsigned taken = 0;

        (void)state;
        open_shared(&s);
        assert_int_equal(lane_new("test", 4, 2, 10, &l), 0);
        for (size_t i = 0; i < 30; i++) {
                work[i] = (struct work){.job = {.run = run}, .s = &s};
                if (i < 2) {
                        assert_int_equal(lane_submit(l, &work[i].job, 1, true), 0);
                        wait_running(&s, (unsigned)i + 1);
                        taken++;
                } else {
                        int r = lane_submit(l, &work[i].job, 1, true);

                        assert_int_equal(r, i < 12 ? 0 : -EAGAIN);
                        taken += r == 0;
                }
        }
        work[30] = (struct work){.job = {.run = run}, .s = &s};
        assert_int_equal(lane_submit(l, &work[30].job, 1, false), 0); /* what was taken in before is never refused */
        work[31] = (struct work){.job = {.run = run}, .s = &s};
        assert_int_equal(lane_submit(l, &work[31].job, 2, true), 0);
        wait_running(&s, 3); /* there are four threads, the first asker has two of them at most */
        let_go(&s);
        lane_free(l);
        assert_int_equal(s.n, taken + 2);
        assert_int_equal(s.most[1], 2);
        close_shared(&s);
}

int main(void) {
        const struct CMUnitTest tests[] = {cmocka_unit_test(test_turns), cmocka_unit_test(test_bounds)};

        return cmocka_run_group_tests(tests, NULL, NULL);
}
