/* SPDX-License-Identifier: Apache-2.0 */
/* What every unit test of base/ includes: cmocka in its order, a printed seed, a private directory that is removed again. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "../tmpdir.h"

/* TARN_TEST_SEED, or a fresh one; printed, so that a failure can be repeated. */
static inline uint64_t test_seed(struct rng_seeded *r) {
        const char *given = getenv("TARN_TEST_SEED");
        uint64_t seed = given ? strtoull(given, NULL, 0) : rng_u64(rng_system());
        printf("TARN_TEST_SEED=%llu\n", (unsigned long long)seed);
        rng_seed(r, seed);
        return seed;
}

static inline int test_remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
        return remove(path);
}
static inline char *test_dir(void) {
        static char path[64];
        (void)snprintf(path, sizeof path, "/tmp/tarn-base-test.%s", "XXXXXX");
        assert_non_null(tmpdir_new(path));
        return path;
}
static inline void test_dir_remove(const char *path) {
        assert_int_equal(nftw(path, test_remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}
