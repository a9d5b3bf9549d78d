/* SPDX-License-Identifier: Apache-2.0 */
/* Cuts: incremental equals full, two bytes per step equals one, sizes, resynchronisation, and a golden list that pins parameter set 1 for ever. */
#include "base_test.h"

#include "base/chunk.h"
#include "base/cleanup.h"
#include "base/digest.h"

#define DATA_BYTES (24u << 20)

static struct rng_seeded rng;

static uint8_t *random_bytes(size_t n) {
        uint8_t *p = malloc(n);
        assert_non_null(p);
        rng.rng.fill(&rng.rng, p, n);
        return p;
}

static size_t cut_all(const uint8_t *p, size_t n, size_t *cuts, size_t max) {
        const struct chunk_param *param = chunk_param(CHUNK_PARAM_1);
        size_t k = 0, at = 0;
        while (at < n) {
                size_t len = chunk_next(param, p + at, n - at, true);
                assert_in_range(len, 1, param->max_bytes);
                at += len;
                assert_true(k < max);
                cuts[k++] = at;
        }
        return k;
}

static void test_edges(void **state) {
        const struct chunk_param *param = chunk_param(CHUNK_PARAM_1);
        assert_null(chunk_param(0));
        assert_null(chunk_param(2));
        _cleanup_free_ uint8_t *zeros = calloc(1, (size_t)param->max_bytes * 2);
        assert_int_equal(chunk_next(param, zeros, 0, true), 0);
        assert_int_equal(chunk_next(param, zeros, 1, true), 1);
        assert_int_equal(chunk_next(param, zeros, 1, false), 0);
        assert_int_equal(chunk_next(param, zeros, param->min_bytes, true), param->min_bytes);
        assert_int_equal(chunk_next(param, zeros, param->min_bytes, false), 0);
        /* a constant byte never meets the masks (or always at once): cuts are still between min and max, and decided at max */
        size_t len = chunk_next(param, zeros, (size_t)param->max_bytes * 2, false);
        assert_in_range(len, param->min_bytes, param->max_bytes);
        assert_int_equal(chunk_next(param, zeros, (size_t)param->max_bytes, false), len);
}

static void test_incremental_equals_full(void **state) {
        const struct chunk_param *param = chunk_param(CHUNK_PARAM_1);
        for (int round = 0; round < 6; round++) {
                size_t n = (size_t)rng_below(&rng.rng, 12u << 20) + 1, cuts[256];
                _cleanup_free_ uint8_t *p = random_bytes(n);
                size_t k = cut_all(p, n, cuts, ARRAY_SIZE(cuts)), i = 0, at = 0, have = 0;
                while (at < n) { /* bytes arrive in pieces of any length, the decision may come at any of them */
                        size_t len = chunk_next(param, p + at, have - at, have == n);
                        if (len == 0) {
                                assert_true(have < n);
                                assert_true(have - at < param->max_bytes);
                                have += MIN(n - have, (size_t)rng_below(&rng.rng, 200000) + 1);
                                continue;
                        }
                        at += len;
                        assert_true(i < k);
                        assert_int_equal(at, cuts[i]);
                        i++;
                }
                assert_int_equal(i, k);
        }
}

/* The definition, one byte at a time. */
static size_t cut_slowly(const uint8_t *p, size_t n) {
        uint64_t gear[256], state = 0x7461726e67656172u, h = 0;
        for (int i = 0; i < 256; i++) {
                uint64_t z = state += 0x9e3779b97f4a7c15u;
                z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
                z = (z ^ z >> 27) * 0x94d049bb133111ebu;
                gear[i] = z ^ z >> 31;
        }
        const uint64_t hard = ((UINT64_C(1) << 21) - 1) << 42, easy = ((UINT64_C(1) << 17) - 1) << 46;
        if (n <= 131072)
                return n;
        for (size_t i = 131072 - 64; i < n && i < 2097152; i++) {
                h = (h << 1) + gear[p[i]];
                if (i >= 131072 && !(h & (i < 425984 ? hard : easy)))
                        return i + 1;
        }
        return MIN(n, (size_t)2097152);
}

static void test_two_bytes_per_step(void **state) {
        size_t n = 8u << 20;
        _cleanup_free_ uint8_t *p = random_bytes(n);
        for (size_t at = 0; at < n;) {
                size_t len = chunk_next(chunk_param(1), p + at, n - at, true);
                assert_int_equal(len, cut_slowly(p + at, n - at));
                at += len;
        }
}

static void test_sizes(void **state) {
        const struct chunk_param *param = chunk_param(CHUNK_PARAM_1);
        size_t cuts[512], last = 0, at_max = 0;
        _cleanup_free_ uint8_t *p = random_bytes(DATA_BYTES * 2);
        size_t k = cut_all(p, DATA_BYTES * 2, cuts, ARRAY_SIZE(cuts));
        for (size_t i = 0; i + 1 < k; i++) {
                assert_in_range(cuts[i] - last, param->min_bytes + 1, param->max_bytes);
                at_max += cuts[i] - last == param->max_bytes;
                last = cuts[i];
        }
        size_t mean = DATA_BYTES * 2 / k;
        printf("blocks=%zu mean_bytes=%zu at_max=%zu\n", k, mean, at_max);
        assert_in_range(mean, param->avg_bytes * 8 / 10, param->avg_bytes * 12 / 10);
        assert_true(at_max <= 1);
}

static void test_resynchronises(void **state) {
        size_t before[256], after[256], at = 5u << 20;
        _cleanup_free_ uint8_t *p = random_bytes(DATA_BYTES);
        _cleanup_free_ uint8_t *q = malloc(DATA_BYTES + 1);
        memcpy(q, p, at);
        q[at] = 'x';
        memcpy(q + at + 1, p + at, DATA_BYTES - at);
        size_t n = cut_all(p, DATA_BYTES, before, 256), m = cut_all(q, DATA_BYTES + 1, after, 256), same = 0;
        for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < m; j++)
                        same += before[i] < at ? after[j] == before[i] : after[j] == before[i] + 1;
        printf("cuts=%zu same=%zu\n", n, same);
        assert_true(same + 12 >= n); /* one byte put in costs the neighbourhood only */
}

/* The cuts of a fixed text: if this fails, the parameter set was changed, and with it the meaning of every stored version. */
static void test_golden(void **state) {
        struct rng_seeded fixed;
        rng_seed(&fixed, 1);
        size_t n = 8u << 20, cuts[64];
        _cleanup_free_ uint8_t *p = malloc(n);
        fixed.rng.fill(&fixed.rng, p, n);
        size_t k = cut_all(p, n, cuts, 64);
        uint64_t h = xxh3_64(cuts, k * sizeof cuts[0]);
        printf("golden k=%zu first=%zu xxh3=%016llx\n", k, cuts[0], (unsigned long long)h);
        assert_int_equal(k, 16);
        assert_true(h == 0x1b6efc910f434e5cu);
}

int main(void) {
        test_seed(&rng);
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_edges),     cmocka_unit_test(test_incremental_equals_full), cmocka_unit_test(test_two_bytes_per_step), cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_resynchronises), cmocka_unit_test(test_golden),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
