/* SPDX-License-Identifier: Apache-2.0 */
/* test_budget.c: what a read may cost. A hit: no allocation, no SQL, no request (asserted, by wrapping the allocator at link time); timings against plain pread are printed. */
#include <stdatomic.h>
#include <stdbool.h>

/* Set where the cache runs on this thread: allocations there may be made to fail. */
static _Thread_local bool in_cache;
#define IN_CALLBACK(call) ({ in_cache = true; __typeof__(call) r_ = (call); in_cache = false; r_; })
#include "world.h"

/* Of the reader's thread: workers may allocate meanwhile. */
static _Thread_local unsigned long allocations;
static _Thread_local bool counting;
static _Atomic long fail_after = -1; /* the allocation after this many fails; -1: none */
static _Atomic bool failed;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_reallocarray(void *p, size_t n, size_t size);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_reallocarray(void *p, size_t n, size_t size);

static bool count(void) {
        allocations += counting;
        if (in_cache && atomic_load(&fail_after) >= 0 && atomic_fetch_sub(&fail_after, 1) == 0) {
                atomic_store(&failed, true);
                return true;
        }
        return false;
}
void *__wrap_malloc(size_t n) {
        return count() ? NULL : __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t size) {
        return count() ? NULL : __real_calloc(n, size);
}
void *__wrap_realloc(void *p, size_t n) {
        return count() ? NULL : __real_realloc(p, n);
}
void *__wrap_reallocarray(void *p, size_t n, size_t size) {
        return count() ? NULL : __real_reallocarray(p, n, size);
}

static double now_us(void) {
        struct timespec ts;
        (void)clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static void never(struct blob_read *r, ssize_t result) {
        fail();
}

static void test_hit(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *large = know_random(w, 32 * MIB, 0), *small = know_random(w, 64 * KIB, 0);
        struct blob *blob = get_blob(w, large), *packed = get_blob(w, small);
        assert_int_equal(read_compare(blob, large, 0, large->n), large->n);
        assert_int_equal(read_compare(packed, small, 0, small->n), small->n);
        WAIT_FOR(w, w->n_queue == 0);
        assert_int_equal(blobs_sync(w->blobs), 0); /* what was fetched is in the index: its time will find nothing to write */
        uint8_t *buf = malloc(MIB);
        char path[256];
        (void)snprintf(path, sizeof path, "%s/plain", w->dir);
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_int_equal(pwrite_full(fd, large->bytes, large->n, 0), 0);
        static const struct { const char *what; size_t n; bool large; } rows[] = { { "4 KiB, large", 4096, true }, { "128 KiB, large", 128 * KIB, true }, { "4 KiB, packed", 4096, false }, { "64 KiB, packed", 64 * KIB, false } };
        size_t fetches = get_size(w, &w->fetches);
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                int rounds = rows[i].n > 64 * KIB ? 2000 : 20000;
                uint64_t span = rows[i].large ? large->n : small->n;
                struct blob_read r = { .blob = rows[i].large ? blob : packed, .buf = buf, .deadline_ms = now_ms() + WAIT_MS, .done = never };
                double plain = now_us();
                for (int k = 0; k < rounds; k++)
                        assert_true(pread(fd, buf, rows[i].n, (off_t)((uint64_t)k * 7919 * 4096 % (span - rows[i].n + 1) / 4096 * 4096)) > 0);
                plain = (now_us() - plain) / rounds;
                allocations = 0;
                counting = true;
                double hit = now_us();
                for (int k = 0; k < rounds; k++) {
                        r.off = (uint64_t)k * 7919 * 4096 % (span - rows[i].n + 1) / 4096 * 4096;
                        r.n = rows[i].n;
                        if (blob_read(&r) != (ssize_t)rows[i].n)
                                fail();
                }
                hit = (now_us() - hit) / rounds;
                counting = false;
                print_message("%-16s hit %7.2f us, plain pread %7.2f us\n", rows[i].what, hit, plain);
                assert_int_equal(allocations, 0);
        }
        /* no allocation: so no SQL either. The counter is not asked: 5 s after a change the waiting thread writes the index. */
        assert_int_equal(get_size(w, &w->fetches), fetches);
        assert_int_equal(close(fd), 0);
        free(buf);
        blob_put(blob);
        blob_put(packed);
        world_free(w);
}

/* Many small contents: what one costs, cold and from the index, and that rows are written in groups. */
static void test_many_small(void **state) {
        struct world *w = world_new(256 * MIB);
        static struct known *k[5000];
        for (size_t i = 0; i < ARRAY_SIZE(k); i++)
                k[i] = know_random(w, 500 + i % 3000, 0);
        uint64_t transactions = counter_get(&w->counters, sql_transactions);
        double start = now_us();
        for (size_t i = 0; i < ARRAY_SIZE(k); i++)
                assert_int_equal(blobs_adopt_bytes(w->blobs, &k[i]->content, &k[i]->list, k[i]->bytes), 0);
        double adopted = now_us();
        transactions = counter_get(&w->counters, sql_transactions) - transactions;
        world_close(w);
        double closed = now_us();
        world_open(w, 256 * MIB, false);
        double opened = now_us();
        set_bool(w, &w->offline, true);
        for (size_t i = 0; i < ARRAY_SIZE(k); i++) {
                struct blob *blob = get_blob(w, k[i]);
                assert_int_equal(read_compare(blob, k[i], 0, k[i]->n), k[i]->n);
                blob_put(blob);
        }
        print_message("5,000 small contents: adopt %.1f us each in %llu transactions, close %.1f ms, open %.1f ms, get + read %.1f us each\n", (adopted - start) / 5000,
                      (unsigned long long)transactions, (closed - adopted) / 1e3, (opened - closed) / 1e3, (now_us() - opened) / 5000);
        assert_true(transactions <= 5000 / 256 + 10);
        world_free(w);
}

/* One run through everything with the n-th allocation failing. Whatever happens: an error that says so, never a wrong byte, nothing left behind. */
static bool run_short_of_memory(long n) {
        struct world *w = world_new(64 * MIB);
        struct known *large = know_random(w, 3 * MIB, 0), *small = know_random(w, 20000, 0), *own = know_random(w, 200 * KIB, 0);
        uint8_t *buf = malloc(large->n);
        world_close(w);
        atomic_store(&failed, false);
        atomic_store(&fail_after, n);
        struct blobs_config c = { .dir = w->dir, .limit_bytes = 64 * MIB, .clock = clock_system(), .counters = &w->counters, .source = &w->source };
        int r = IN_CALLBACK(blobs_open(&c, &w->blobs));
        assert_true(r == 0 || r == -ENOMEM);
        for (int i = 0; r == 0 && i < 6; i++) {
                struct known *k = i % 3 == 0 ? large : i % 3 == 1 ? small : own;
                struct blob *blob = NULL;
                if (i == 2) {
                        int a = IN_CALLBACK(blobs_adopt_bytes(w->blobs, &own->content, &own->list, own->bytes));
                        assert_true(a == 0 || a == -ENOMEM);
                }
                int g = IN_CALLBACK(blob_get(w->blobs, &k->content, &blob));
                assert_true(g == 0 || g == -ENOMEM);
                if (g < 0)
                        continue;
                ssize_t got = IN_CALLBACK(blob_pread(blob, 0, buf, k->n, now_ms() + WAIT_MS));
                assert_true(got == (ssize_t)k->n || got == -ENOMEM || got == -EIO);
                if (got > 0)
                        assert_memory_equal(buf, k->bytes, (size_t)got);
                in_cache = true;
                blob_put(blob);
                if (i == 3)
                        (void)(blobs_evict_all(w->blobs) < 0);
                in_cache = false;
        }
        WAIT_FOR(w, w->n_queue == 0);
        if (r == 0) {
                in_cache = true;
                blobs_close(w->blobs);
                in_cache = false;
        }
        atomic_store(&fail_after, -1);
        world_open(w, 64 * MIB, false);
        struct blob *blob = get_blob(w, large);
        assert_int_equal(read_compare(blob, large, 0, large->n), large->n);
        blob_put(blob);
        free(buf);
        world_free(w);
        return atomic_load(&failed);
}

static void test_each_allocation_fails_once(void **state) {
        long n = 0;
        while (run_short_of_memory(n))
                n++;
        print_message("%ld allocations, each failed once\n", n);
        assert_true(n > 50);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_hit),
                cmocka_unit_test(test_many_small),
                cmocka_unit_test(test_each_allocation_fails_once),
        };
        return cmocka_run_group_tests_name("blob budget", tests, NULL, NULL);
}
