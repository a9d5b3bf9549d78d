/* SPDX-License-Identifier: Apache-2.0 */
/* Command lines: every form of an option, and the one line that a wrong word gets. */
#include "base_test.h"

#include <errno.h>

#include "base/args.h"
#include "base/buf.h"

static struct {
        bool verbose, quiet;
        const char *name, *url, *dir;
        uint64_t threads, size, wait;
        struct buf list;
} got;
static const struct arg table[] = {
        { "verbose", 'v', ARG_FLAG, &got.verbose, "say more" },
        { "quiet", 'q', ARG_FLAG, &got.quiet, "say less" },
        { "name", 'n', ARG_STR, &got.name, "a name" },
        { "threads", 't', ARG_U64, &got.threads, "how many" },
        { "cache-size", 0, ARG_BYTES, &got.size, "how much" },
        { "wait", 'w', ARG_DURATION_S, &got.wait, "how long" },
        { "options", 'o', ARG_LIST, &got.list, "mount options" },
        { "URL", 0, ARG_POSITIONAL, &got.url, "server" },
        { "DIR", 0, ARG_POSITIONAL_OPTIONAL, &got.dir, "where" },
        { NULL },
};

/* Runs args_parse with words up to NULL; text gets what it wrote to fd `which`. */
static int run(int which, char *text, size_t text_n, ...) {
        char *argv[32] = { (char *)"prog" };
        int argc = 1;
        va_list words;
        va_start(words, text_n);
        for (char *w; (w = va_arg(words, char *));)
                argv[argc++] = w;
        va_end(words);
        buf_free(&got.list);
        memset(&got, 0, sizeof got);
        FILE *file = tmpfile();
        fflush(NULL);
        int saved = fcntl(which, F_DUPFD_CLOEXEC, 10);
        assert_true(dup2(fileno(file), which) == which);
        int r = args_parse("prog", table, argc, argv);
        fflush(NULL);
        assert_true(dup2(saved, which) == which);
        close(saved);
        rewind(file);
        size_t n = fread(text, 1, text_n - 1, file);
        text[n] = 0;
        fclose(file);
        return r;
}
static char text[4096];
#define ERR(...) run(2, text, sizeof text, __VA_ARGS__, NULL)
#define OUT(...) run(1, text, sizeof text, __VA_ARGS__, NULL)

static void test_forms(void **state) {
        assert_int_equal(ERR("--verbose", "--name=a=b", "-t", "8", "--cache-size", "1.5G", "-w2h", "http://x", "/mnt"), 0);
        assert_true(got.verbose && !got.quiet);
        assert_string_equal(got.name, "a=b");
        assert_int_equal(got.threads, 8);
        assert_int_equal(got.size, 1536ull << 20);
        assert_int_equal(got.wait, 7200);
        assert_string_equal(got.url, "http://x");
        assert_string_equal(got.dir, "/mnt");
        assert_string_equal(text, "");
        assert_int_equal(ERR("-vqnx", "u"), 0);
        assert_true(got.verbose && got.quiet);
        assert_string_equal(got.name, "x");
        assert_int_equal(ERR("-v", "--no-verbose", "--", "--name"), 0);
        assert_false(got.verbose);
        assert_string_equal(got.url, "--name");
        assert_null(got.dir);
        assert_int_equal(ERR("-o", "ro", "u", "-oallow_other,x=1", "--options=y"), 0);
        assert_string_equal(buf_text(&got.list), "ro,allow_other,x=1,y");
        assert_int_equal(ERR("-"), 0);
        assert_string_equal(got.url, "-");
}

static void test_errors(void **state) {
        static const struct { const char *words[3], *line; } cases[] = {
                { { "--verbos", "u" }, "prog: unknown option '--verbos' (did you mean --verbose?); see --help\n" },
                { { "--zzzzzzzz=1", "u" }, "prog: unknown option '--zzzzzzzz'; see --help\n" },
                { { "-x", "u" }, "prog: unknown option '-x'; see --help\n" },
                { { "u", "--name" }, "prog: --name needs a value (VALUE)\n" },
                { { "u", "-n" }, "prog: -n needs a value (VALUE)\n" },
                { { "--verbose=1", "u" }, "prog: --verbose takes no value\n" },
                { { "-t", "8x", "u" }, "prog: --threads: '8x' is not a number (expected digits, such as 8)\n" },
                { { "--cache-size=big", "u" }, "prog: --cache-size: 'big' is not a size (expected something like 512M or 20G)\n" },
                { { "--wait=5y", "u" }, "prog: --wait: '5y' is not a time (expected something like 30s, 5m, 2h or 1d)\n" },
                { { "u", "d", "three" }, "prog: 'three' is one word too many; see --help\n" },
                { { "-v" }, "prog: URL is missing; see --help\n" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                assert_int_equal(ERR(cases[i].words[0], cases[i].words[1], cases[i].words[2]), -EINVAL);
                assert_string_equal(text, cases[i].line);
        }
}

static void test_help(void **state) {
        assert_int_equal(OUT("--help"), -ECANCELED);
        assert_non_null(strstr(text, "Usage: prog [OPTION]... URL [DIR]\n"));
        assert_non_null(strstr(text, "-t, --threads=NUMBER"));
        assert_non_null(strstr(text, "    --cache-size=SIZE"));
        assert_int_equal(OUT("u", "-h"), -ECANCELED);
}

static void test_list(void **state) {
        static bool ro;
        static const char *name;
        static uint64_t size;
        static const struct arg o[] = { { "ro", 0, ARG_FLAG, &ro, "" }, { "name", 0, ARG_STR, &name, "" }, { "cache_size", 0, ARG_BYTES, &size, "" }, { NULL } };
        static const char *const ignored[] = { "noauto", "x-*", NULL };
        assert_int_equal(args_parse_o("prog", o, ignored, "ro,,noauto,x-systemd.automount,name=a\\,b,cache_size=64M,"), 0);
        assert_true(ro);
        assert_string_equal(name, "a,b");
        assert_int_equal(size, 64u << 20);
        free((void *)name);
        assert_int_equal(args_parse_o("prog", o, ignored, ""), 0);
        assert_int_equal(args_parse_o("prog", o, ignored, "rw"), -EINVAL);
        assert_int_equal(args_parse_o("prog", o, ignored, "ro=1"), -EINVAL);
        assert_int_equal(args_parse_o("prog", o, ignored, "name"), -EINVAL);
        assert_int_equal(args_parse_o("prog", o, ignored, "cache_size=x"), -EINVAL);
        assert_int_equal(args_parse_o("prog", o, ignored, "=1"), -EINVAL);
}

static void test_units(void **state) {
        static const struct { const char *text; int r; uint64_t n; } sizes[] = {
                { "0", 0, 0 }, { "512", 0, 512 }, { "64K", 0, 65536 }, { "10MiB", 0, 10u << 20 }, { "2G", 0, 2ull << 30 }, { "1T", 0, 1ull << 40 }, { "1.5k", 0, 1536 },
                { "15E", 0, 15ull << 60 }, { "16E", -ERANGE }, { "99999999999999999999", -ERANGE }, { "", -EINVAL }, { "-1", -EINVAL }, { "1X", -EINVAL },
                { "1.5", -EINVAL }, { "1 K", -EINVAL }, { "1KK", -EINVAL }, { "7B", 0, 7 }, { ".5G", -EINVAL }, { "1.G", -EINVAL },
        };
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                uint64_t n = 7777;
                assert_int_equal(parse_bytes(sizes[i].text, &n), sizes[i].r);
                assert_true(n == (sizes[i].r ? 7777 : sizes[i].n));
        }
        uint64_t s;
        assert_int_equal(parse_duration_s("30", &s), 0);
        assert_int_equal(s, 30);
        assert_int_equal(parse_duration_s("1d", &s), 0);
        assert_int_equal(s, 86400);
        assert_int_equal(parse_duration_s("1dd", &s), -EINVAL);
        assert_int_equal(parse_duration_s("99999999999999999d", &s), -ERANGE);
        char out[24];
        format_bytes(0, out);
        assert_string_equal(out, "0 B");
        format_bytes(1536, out);
        assert_string_equal(out, "1.5 KiB");
        format_bytes(1048575, out);
        assert_string_equal(out, "1.0 MiB");
        format_bytes(UINT64_MAX, out);
        assert_string_equal(out, "16.0 EiB");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_forms), cmocka_unit_test(test_errors), cmocka_unit_test(test_help), cmocka_unit_test(test_list), cmocka_unit_test(test_units),
        };
        int r = cmocka_run_group_tests(tests, NULL, NULL);
        buf_free(&got.list);
        return r;
}
