/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers and arenas at their limits, clocks and generators, retry policy, ranks of locks, threads and the pool. */
#include "base_test.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "base/buf.h"
#include "base/lock.h"
#include "base/retry.h"
#include "base/thread.h"

static struct rng_seeded rng;

static void test_buf(void **state) {
        _cleanup_buf_ struct buf b = BUF_INIT(100);
        assert_string_equal(buf_text(&b), "");
        assert_int_equal(buf_add_str(&b, "hello"), 0);
        assert_int_equal(buf_printf(&b, " %d %s", 5, "world"), 0);
        assert_string_equal(buf_text(&b), "hello 5 world");
        for (int i = 0; i < 8; i++)
                assert_int_equal(buf_printf(&b, "%s", "0123456789"), 0);
        assert_int_equal(b.bytes, 93);
        assert_int_equal(buf_add(&b, "01234567", 8), -EMSGSIZE);
        assert_int_equal(buf_printf(&b, "%s", "01234567"), -EMSGSIZE);
        assert_int_equal(buf_reserve(&b, SIZE_MAX), -EMSGSIZE);
        assert_int_equal(b.bytes, 93);
        assert_int_equal(buf_add(&b, "0123456", 7), 0);
        assert_int_equal(strlen(buf_text(&b)), 100); /* full, and still a text */
        assert_true(b.room <= 101);
        buf_reset(&b);
        assert_int_equal(b.bytes, 0);
        assert_int_equal(buf_add(&b, NULL, 0), 0);
        buf_free(&b);
        assert_int_equal(buf_add(&b, "x", 1), 0);
        buf_free(NULL);
}

static void test_arena(void **state) {
        struct arena *a;
        assert_int_equal(arena_new(1u << 20, &a), 0);
        for (int round = 0; round < 3; round++) {
                size_t total = 0;
                while (total < (1u << 20)) {
                        size_t n = (size_t)rng_below(&rng.rng, round == 1 ? 100000 : 500) + 1;
                        uint8_t *p = arena_alloc(a, n);
                        if (!p)
                                break;
                        assert_int_equal((uintptr_t)p % 16, 0);
                        for (size_t i = 0; i < n; i++)
                                assert_int_equal(p[i], 0);
                        memset(p, 0xaa, n);
                        total += (n + 15) & ~(size_t)15;
                }
                assert_true(total > (1u << 20) - 100000 - 16);
                arena_reset(a);
        }
        assert_null(arena_alloc(a, (1u << 20) + 1));
        assert_null(arena_alloc(a, SIZE_MAX));
        assert_null(arena_strndup(a, "x", SIZE_MAX));
        assert_non_null(arena_alloc(a, 1u << 20));
        assert_null(arena_alloc(a, 1));
        arena_reset(a);
        assert_string_equal(arena_strndup(a, "hello", 3), "hel");
        assert_non_null(arena_alloc(a, 0));
        arena_free(a);
        arena_free(NULL);
}

static void test_clock_and_rng(void **state) {
        struct clock_manual m;
        clock_manual_init(&m, 5, 7);
        clock_manual_advance(&m, 2);
        assert_int_equal(clock_mono_ms(&m.clock), 7);
        assert_int_equal(clock_real_ns(&m.clock), 2000007);
        int64_t before = clock_mono_ms(clock_system());
        assert_true(clock_mono_ms(clock_system()) >= before);
        struct rng_seeded a, b;
        rng_seed(&a, 42);
        rng_seed(&b, 42);
        for (int i = 0; i < 100; i++)
                assert_true(rng_u64(&a.rng) == rng_u64(&b.rng));
        unsigned hits[7] = { 0 };
        for (int i = 0; i < 70000; i++)
                hits[rng_below(&a.rng, 7)]++;
        for (int i = 0; i < 7; i++)
                assert_in_range(hits[i], 9400, 10600);
        struct id x = rng_id(rng_system()), y = rng_id(rng_system());
        assert_false(id_equal(&x, &y));
}

static void test_backoff(void **state) {
        struct backoff b = { .base_ms = 100, .cap_ms = 1000 };
        int64_t bounds[] = { 100, 200, 400, 800, 1000, 1000, 1000 };
        for (size_t i = 0; i < ARRAY_SIZE(bounds); i++)
                assert_in_range(backoff_next_ms(&b, &rng.rng, 0), 0, bounds[i]);
        for (int i = 0; i < 200; i++)
                assert_in_range(backoff_next_ms(&b, &rng.rng, 0), 0, 1000);
        assert_int_equal(backoff_next_ms(&b, &rng.rng, 5000), 5000);
        backoff_reset(&b);
        assert_in_range(backoff_next_ms(&b, &rng.rng, 0), 0, 100);
        struct backoff huge = { .base_ms = INT64_MAX / 2, .cap_ms = INT64_MAX - 1 };
        for (int i = 0; i < 70; i++)
                assert_true(backoff_next_ms(&huge, &rng.rng, 0) >= 0);
        struct backoff none = { 0 };
        assert_int_equal(backoff_next_ms(&none, &rng.rng, 0), 0);
}

static void test_budget(void **state) {
        struct retry_budget b;
        retry_budget_init(&b, 2, 0.25);
        assert_true(retry_budget_take(&b));
        assert_true(retry_budget_take(&b));
        assert_false(retry_budget_take(&b));
        for (int i = 0; i < 4; i++)
                retry_budget_request(&b);
        assert_true(retry_budget_take(&b));
        assert_false(retry_budget_take(&b));
        for (int i = 0; i < 1000; i++)
                retry_budget_request(&b);
        assert_true(b.tokens <= 2);
}

static void test_breaker(void **state) {
        struct breaker b;
        breaker_init(&b, 3, 1000, 60000);
        for (int i = 0; i < 2; i++)
                breaker_failure(&b, 0, &rng.rng);
        breaker_success(&b);
        for (int i = 0; i < 2; i++)
                breaker_failure(&b, 0, &rng.rng);
        assert_true(breaker_allows(&b, 0));
        breaker_failure(&b, 0, &rng.rng);
        assert_int_equal(b.state, BREAKER_OPEN);
        b.probe_at_ms = 500;
        assert_false(breaker_allows(&b, 499));
        assert_true(breaker_allows(&b, 500));  /* the probe */
        assert_false(breaker_allows(&b, 501)); /* only one */
        breaker_failure(&b, 600, &rng.rng);
        assert_int_equal(b.state, BREAKER_OPEN);
        assert_in_range(b.probe_at_ms, 600, 600 + 2000);
        b.probe_at_ms = 99999;
        int64_t due = b.probe_at_ms;
        breaker_failure(&b, 700, &rng.rng); /* a straggler does not move the probe */
        assert_int_equal(b.probe_at_ms, due);
        breaker_nudge(&b, 800);
        assert_true(breaker_allows(&b, 800));
        breaker_success(&b);
        assert_true(breaker_allows(&b, 801) && breaker_allows(&b, 801));
}

/* Runs fn in a child; true if it died by abort(). */
static bool aborts(void (*fn)(void)) {
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) {
                struct rlimit none = { 0, 0 };
                (void)setrlimit(RLIMIT_CORE, &none);
                (void)signal(SIGABRT, SIG_DFL);
                (void)close(STDERR_FILENO);
                fn();
                _exit(0);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}
static struct lock low, high, high2;
static void ranks_rising(void) {
        lock_take(&low);
        lock_take(&high);
        lock_drop(&low); /* any order */
        lock_drop(&high);
        LOCK_SCOPE(&high2);
}
static void ranks_falling(void) {
        lock_take(&high);
        lock_take(&low);
}
static void ranks_equal(void) {
        lock_take(&high);
        lock_take(&high2);
}
static void ranks_again(void) {
        lock_take(&low);
        lock_take(&low);
}
static void ranks_none(void) {
        lock_assert_none();
        lock_take(&low);
        lock_assert_none();
}
static void ranks_not_held(void) {
        lock_take(&low);
        lock_assert_held(&low);
        lock_assert_held(&high);
}

static void test_ranks(void **state) {
        lock_init(&low, "low", RANK_FILE);
        lock_init(&high, "high", RANK_TREE);
        lock_init(&high2, "high2", RANK_TREE);
        assert_false(aborts(ranks_rising));
#if TARN_DEBUG_LOCKS
        assert_true(aborts(ranks_falling));
        assert_true(aborts(ranks_equal));
        assert_true(aborts(ranks_again));
        assert_true(aborts(ranks_none));
        assert_true(aborts(ranks_not_held));
#else
        (void)ranks_falling, (void)ranks_equal, (void)ranks_again, (void)ranks_none, (void)ranks_not_held;
#endif
        struct cond c;
        cond_init(&c);
        int64_t now = clock_mono_ms(clock_system());
        lock_take(&low);
        assert_int_equal(cond_wait_until(&c, &low, now + 30), -ETIMEDOUT);
        assert_int_equal(cond_wait_until(&c, &low, -5), -ETIMEDOUT);
        lock_assert_held(&low);
        lock_drop(&low);
        assert_true(clock_mono_ms(clock_system()) >= now + 30);
        cond_destroy(&c);
        lock_destroy(&low);
        lock_destroy(&high);
        lock_destroy(&high2);
}

static atomic_int jobs_run;
struct chain { struct job job; struct executor *executor; int left; };
static void chain_run(struct job *j) {
        struct chain *c = (struct chain *)j;
        atomic_fetch_add(&jobs_run, 1);
        if (--c->left > 0)
                executor_submit(c->executor, j); /* the pool has let go of it */
        else
                free(c);
}

static void test_pool(void **state) {
        struct pool *p;
        assert_int_equal(pool_new("a-rather-long-name", 3, &p), 0);
        for (int i = 0; i < 100; i++) {
                struct chain *c = calloc(1, sizeof *c);
                *c = (struct chain){ { chain_run, NULL }, pool_executor(p), 5 };
                executor_submit(pool_executor(p), &c->job);
        }
        pool_free(p); /* runs what is queued, also what jobs submit */
        assert_int_equal(atomic_load(&jobs_run), 500);
        pool_free(NULL);
}

static void *report_signals(void *arg) {
        sigset_t now;
        pthread_sigmask(SIG_SETMASK, NULL, &now);
        *(int *)arg = sigismember(&now, SIGTERM);
        return NULL;
}

static void test_thread(void **state) {
        pthread_t t;
        int blocked = 0;
        assert_int_equal(thread_start(&t, "a name that is too long", report_signals, &blocked), 0);
        pthread_join(t, NULL);
        assert_int_equal(blocked, 1);
        sigset_t now;
        pthread_sigmask(SIG_SETMASK, NULL, &now);
        assert_int_equal(sigismember(&now, SIGTERM), 0);
}

int main(void) {
        test_seed(&rng);
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_buf),    cmocka_unit_test(test_arena),   cmocka_unit_test(test_clock_and_rng), cmocka_unit_test(test_backoff), cmocka_unit_test(test_budget),
                cmocka_unit_test(test_breaker), cmocka_unit_test(test_ranks), cmocka_unit_test(test_pool),          cmocka_unit_test(test_thread),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
