/* SPDX-License-Identifier: Apache-2.0 */
/* test_portable.c: names that Windows and macOS can carry, and when two are one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/portable.h"

static int fold(const char *name, char *ret) {
        char text[FOLD_BYTES_MAX];
        size_t n;
        int r = name_fold(name, strlen(name), text, &n);
        if (r < 0)
                return r;
        assert_in_range(n, 1, FOLD_BYTES_MAX);
        memcpy(ret, text, n);
        ret[n] = 0;
        return 0;
}

static void test_refused(void **state) {
        static const char *const bad[] = { "a:b", "a<b", "a>b", "a\"b", "a\\b", "a|b", "a?", "*", "a\tb", "\x01", "a\x7f", "a.", "a ", ". ", "con", "CON", "Con.txt", "nul.tar.gz", "aux", "prn.a",
                                           "com1", "LPT9.x", "com0", "CONIN$", "conout$.txt", "com\xc2\xb2", "con .txt", "x\xcd\xb8" };
        static const char *const good[] = { "a", ".a", "a.b", "console", "com", "com10", "lpt", "nulx", "xnul", "a b", "conx.txt", "\xc3\xa9", "-", "a;b", "a'b", "com\xc2\xb5", "..a", "\xf0\x9f\x98\x80" };
        char text[FOLD_BYTES_MAX + 1];
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                if (fold(bad[i], text) != -EINVAL)
                        fail_msg("%s is taken", bad[i]);
        for (size_t i = 0; i < ARRAY_SIZE(good); i++)
                if (fold(good[i], text) != 0)
                        fail_msg("%s is refused", good[i]);
        assert_true(name_fold_unicode() >= 1000);
}

static void test_equal(void **state) {
        static const struct { const char *a, *b; bool same; } rows[] = {
                { "README.md", "readme.MD", true },
                { "a", "b", false },
                { "\xc3\xa9", "e\xcc\x81", true },                     /* e acute: one character, or two */
                { "\xc3\x89t\xc3\xa9", "E\xcc\x81T\xc3\x89", true },
                { "stra\xc3\x9f" "e", "STRASSE", true },                /* sharp s folds to ss */
                { "\xce\xa3\xce\xaf\xcf\x83\xcf\x85\xcf\x86\xce\xbf\xcf\x82", "\xcf\x83\xce\xaf\xcf\x83\xcf\x85\xcf\x86\xce\xbf\xcf\x83", true }, /* final sigma */
                { "\xe2\x84\xab", "\xc3\xa5", true },                   /* the sign of angstrom is A with a ring */
                { "e", "\xc3\xa9", false },
                { "\xef\xac\x81", "fi", true },                         /* a ligature folds, too */
                { "\xc2\xb2", "2", false },                             /* but what is only similar does not */
        };
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                char a[FOLD_BYTES_MAX + 1], b[FOLD_BYTES_MAX + 1], again[FOLD_BYTES_MAX + 1];
                assert_int_equal(fold(rows[i].a, a), 0);
                assert_int_equal(fold(rows[i].b, b), 0);
                if ((strcmp(a, b) == 0) != rows[i].same)
                        fail_msg("%s and %s: %s, %s", rows[i].a, rows[i].b, a, b);
                assert_int_equal(fold(a, again), 0); /* a fold is its own fold */
                assert_string_equal(a, again);
        }
        /* the longest folds fit */
        char longest[255 + 1], text[FOLD_BYTES_MAX + 1];
        for (size_t i = 0; i + 2 <= 255; i += 2)
                memcpy(longest + i, "\xce\x90", 2); /* one of those that fold to three characters */
        longest[254] = 0;
        assert_int_equal(fold(longest, text), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_refused), cmocka_unit_test(test_equal) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
