/* SPDX-License-Identifier: Apache-2.0 */
/* Extent maps against an array with one entry per byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "extent.h"

#define SPACE 20000u

static uint64_t seed_of_run(void) {
        const char *text = getenv("TARN_TEST_SEED");
        uint64_t seed = text ? strtoull(text, NULL, 0) : rng_u64(rng_system());
        print_message("seed %llu (TARN_TEST_SEED=%llu repeats it)\n", (unsigned long long)seed, (unsigned long long)seed);
        return seed;
}

struct cell { uint8_t kind; uint64_t at; void *where; };
static struct cell model[SPACE];

static void compare(const struct extents *m) {
        uint64_t at = 0, n = 0;
        struct extent e, before = { 0 };
        while (extents_find(m, at, &e)) {
                assert_true(e.off >= at && e.bytes > 0 && e.off + e.bytes <= SPACE);
                for (uint64_t i = at; i < e.off; i++)
                        assert_int_equal(model[i].kind, 0);
                for (uint64_t i = 0; i < e.bytes; i++) {
                        assert_int_equal(model[e.off + i].kind, e.kind);
                        if (e.kind != EXTENT_ZERO) {
                                assert_int_equal(model[e.off + i].at, e.at + i);
                                assert_ptr_equal(model[e.off + i].where, e.where);
                        }
                }
                /* neighbours that go on are merged */
                if (n && before.off + before.bytes == e.off && before.kind == e.kind && before.kind == EXTENT_ZERO)
                        fail_msg("two zero extents meet at %llu", (unsigned long long)e.off);
                before = e;
                at = e.off + e.bytes;
                n++;
        }
        for (uint64_t i = at; i < SPACE; i++)
                assert_int_equal(model[i].kind, 0);
        assert_int_equal(n, m->n);
}

static uint64_t model_pages(uint64_t off, uint64_t bytes) {
        uint64_t pages = 0;
        for (uint64_t p = off / EXTENT_PAGE; p <= (off + bytes - 1) / EXTENT_PAGE; p++) {
                bool any = false;
                for (uint64_t i = p * EXTENT_PAGE; i < (p + 1) * EXTENT_PAGE && i < SPACE; i++)
                        any |= model[i].kind == EXTENT_DATA && !model[i].where;
                pages += any;
        }
        return pages;
}

static void test_random(void **state) {
        struct rng_seeded r;
        rng_seed(&r, seed_of_run());
        static int things[3];
        for (int round = 0; round < 20; round++) {
                struct extents m = { 0 };
                memset(model, 0, sizeof model);
                uint64_t longest = round % 2 ? 40 : 3000;
                for (int i = 0; i < 3000; i++) {
                        uint64_t off = rng_below(&r.rng, SPACE - 1), n = 1 + rng_below(&r.rng, MIN(longest, SPACE - off));
                        assert_int_equal(extents_reserve(&m), 0);
                        unsigned what = (unsigned)rng_below(&r.rng, 10);
                        if (what < 2) {
                                extents_cut(&m, off, n);
                                memset(model + off, 0, n * sizeof *model);
                        } else {
                                struct extent e = { .off = off, .bytes = n, .kind = what < 7 ? EXTENT_DATA : what < 9 ? EXTENT_ZERO : EXTENT_SENT };
                                if (e.kind == EXTENT_SENT || what == 6) {
                                        e.where = &things[rng_below(&r.rng, 3)];
                                        e.at = rng_below(&r.rng, 1000);
                                } else if (e.kind == EXTENT_DATA) {
                                        e.at = off;
                                }
                                extents_put(&m, &e);
                                for (uint64_t k = 0; k < n; k++)
                                        model[off + k] = (struct cell) { .kind = e.kind, .at = e.at + k, .where = e.where };
                        }
                        if (i % 100 == 0) {
                                compare(&m);
                                assert_int_equal(extents_pages(&m, off, n), model_pages(off, n));
                        }
                }
                compare(&m);
                if (round % 5 == 0) {
                        extents_rehome(&m);
                        struct extent e;
                        for (uint64_t at = 0; extents_find(&m, at, &e); at = e.off + e.bytes)
                                assert_true(e.kind != EXTENT_DATA || (!e.where && e.at == e.off));
                }
                extents_cut(&m, 0, UINT64_MAX);
                assert_int_equal(m.n, 0);
                extents_free(&m);
        }
}

static void test_random_writer(void **state) {
        /* 4 KiB writes all over 1 GiB: the map stays quick and ends as one extent */
        struct extents m = { 0 };
        struct rng_seeded r;
        rng_seed(&r, 7);
        enum { N = 1 << 18 };
        uint32_t *order = malloc(N * sizeof *order);
        for (uint32_t i = 0; i < N; i++)
                order[i] = i;
        for (uint32_t i = N - 1; i > 0; i--) {
                uint32_t k = (uint32_t)rng_below(&r.rng, i + 1), t = order[i];
                order[i] = order[k];
                order[k] = t;
        }
        int64_t before = clock_mono_ms(clock_system());
        for (uint32_t i = 0; i < N; i++) {
                assert_int_equal(extents_reserve(&m), 0);
                extents_put(&m, &(struct extent) { .off = order[i] * 4096ull, .bytes = 4096, .at = order[i] * 4096ull, .kind = EXTENT_DATA });
        }
        print_message("%d puts in %lld ms\n", N, (long long)(clock_mono_ms(clock_system()) - before));
        assert_int_equal(m.n, 1);
        assert_int_equal(extents_pages(&m, 0, UINT64_MAX), N);
        extents_free(&m);
        free(order);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_random), cmocka_unit_test(test_random_writer) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
