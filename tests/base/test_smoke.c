/* SPDX-License-Identifier: Apache-2.0 */
/* One call into every module of base/, so that a broken build shows here first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/args.h"
#include "base/blocklist.h"
#include "base/chunk.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/io.h"
#include "base/json.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/retry.h"
#include "base/thread.h"

static void smoke(void **state) {
        assert_string_equal(err_name(-ESTALE), "ESTALE");
        struct digest d;
        char hex[65];
        sha256("abc", 3, &d);
        hex_encode(d.b, 32, hex);
        assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        struct id id = rng_id(rng_system());
        assert_false(id_is_zero(&id));
        assert_int_equal(chunk_next(chunk_param(1), (const uint8_t *)"abc", 3, true), 3);
        struct content c;
        struct blocklist l = { .param = 1 };
        assert_int_equal(blocklist_content(&l, NULL, &c), 0);
        assert_true(content_equal(&c, &content_empty));
        _cleanup_json_ json_t *j = NULL;
        assert_int_equal(json_parse("{\"a\":1}", 7, &j), 0);
        char boot[37];
        assert_int_equal(boot_id(boot), 0);
        uint64_t n;
        assert_int_equal(parse_bytes("2G", &n), 0);
        assert_int_equal(n, 2ull << 30);
        struct pool *p;
        assert_int_equal(pool_new("smoke", 2, &p), 0);
        pool_free(p);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(smoke) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
