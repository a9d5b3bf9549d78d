/* SPDX-License-Identifier: Apache-2.0 */
/* Rules about crawlers: what a line means, what is wrong with one, who fits, and what asking costs. argv[1]: the list that is installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "fs/crawlers.h"
#include "../tmpdir.h"

static const char *installed;
#define NOT UINT64_MAX
#define GROUPS "12:pids:/user.slice\n1:name=systemd:/user.slice/user-1000.slice/app.slice/tracker-extract-3.service/payload\n0::/odd:name/x\n"

static struct crawlers *with(const char *text) {
        struct crawlers *c;
        assert_int_equal(crawlers_new(&c), 0);
        assert_int_equal(crawlers_load_text(c, "rules", text, strlen(text)), 0);
        return c;
}

/* The head of who fits, or NOT. */
static uint64_t head(const char *rules, const char *exe, const char *cgroups) {
        struct crawlers *c = with(rules);
        uint64_t h = NOT;
        if (!crawlers_judge(c, exe, cgroups, &h))
                h = NOT;
        crawlers_free(c);
        return h;
}

static void test_who_fits(void **state) {
        assert_true(head("", "/usr/bin/updatedb", GROUPS) == NOT);
        assert_true(head("exe updatedb\n", "/usr/bin/updatedb", GROUPS) == CRAWLER_HEAD_BYTES);
        assert_true(head("exe updatedb", "/usr/bin/updatedb2", GROUPS) == NOT);
        assert_true(head("exe updatedb", "updatedb", NULL) == CRAWLER_HEAD_BYTES);
        assert_true(head("exe update*\r\n", "/opt/x/updatedb", NULL) == CRAWLER_HEAD_BYTES);
        assert_true(head("exe /usr/bin/*", "/usr/bin/deep/er", NULL) == CRAWLER_HEAD_BYTES);
        assert_true(head("exe /usr/bin/[a-c]x", "/usr/bin/bx", NULL) == CRAWLER_HEAD_BYTES);
        assert_true(head("exe /usr/bin/[a-c]x", "/usr/bin/dx", NULL) == NOT);
        assert_true(head("exe bin", "/usr/bin/x", NULL) == NOT);
        assert_true(head("  exe\tMy?Scanner   head\t1M  ", "/opt/My Scanner", NULL) == 1u << 20);
        assert_true(head("exe x head 0", "/x", NULL) == 0);
        assert_true(head("exe x", NULL, NULL) == NOT);
        assert_true(head("cgroup tracker-*.service head 4096", "/usr/bin/cat", GROUPS) == 4096);
        assert_true(head("cgroup /user.slice", "/usr/bin/cat", GROUPS) == CRAWLER_HEAD_BYTES);
        assert_true(head("cgroup /user.slice/*/payload", "/usr/bin/cat", GROUPS) == CRAWLER_HEAD_BYTES);
        assert_true(head("cgroup /user.slice/*/pay", "/usr/bin/cat", GROUPS) == NOT);
        assert_true(head("cgroup odd:name", NULL, GROUPS) == CRAWLER_HEAD_BYTES);
        assert_true(head("cgroup *", NULL, NULL) == NOT);
        assert_true(head("cgroup *", NULL, "no colons at all\n::\n") == NOT);
        /* the first that fits counts */
        assert_true(head("not cat\nexe *", "/bin/cat", NULL) == NOT);
        assert_true(head("not cat\nexe *", "/bin/dog", NULL) == CRAWLER_HEAD_BYTES);
        assert_true(head("exe * head 1\nnot cat", "/bin/cat", NULL) == 1);
        assert_true(head("not payload\nexe *", "/bin/cat", GROUPS) == NOT);
        assert_true(head("exe * head 2\nexe cat head 1", "/bin/cat", NULL) == 2);
}

static void test_what_is_wrong_is_told_and_the_rest_counts(void **state) {
        static const struct { const char *line, *error; } wrong[] = {
                { "exec updatedb", "rules:2: 'exec' is not one of exe, cgroup, not" },
                { "exe", "rules:2: a pattern is missing after exe" },
                { "exe updatedb tail 5", "rules:2: 'tail' after the pattern is not expected (blanks in a pattern are written as ?)" },
                { "exe updatedb head", "rules:2: '' is not a size such as 0, 65536, 64K, 1M" },
                { "exe updatedb head much", "rules:2: 'much' is not a size such as 0, 65536, 64K, 1M" },
                { "exe updatedb head 99999999999999999999999", "rules:2: '99999999999999999999999' is not a size such as 0, 65536, 64K, 1M" },
                { "exe updatedb head 5 6", "rules:2: '6' after the size is not expected" },
                { "not updatedb head 5", "rules:2: 'head' after the pattern is not expected (blanks in a pattern are written as ?)" },
                { "exe *********", "rules:2: the pattern has more than 8 stars" },
                { "\x1b[31m\xff", "rules:2: '?[31m?' is not one of exe, cgroup, not" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                char text[2048];
                struct crawlers_status s;
                uint64_t h;
                (void)snprintf(text, sizeof text, "# first\n%s\n\nexe cat head 7\n", wrong[i].line);
                struct crawlers *c = with(text);
                crawlers_status(c, &s);
                assert_int_equal(s.n_errors, 1);
                assert_string_equal(s.errors[0], wrong[i].error);
                assert_int_equal(s.rules, 1);
                assert_true(crawlers_judge(c, "/bin/cat", NULL, &h) && h == 7);
                crawlers_free(c);
        }
        /* bounds: a long line, a NUL, very many errors, very many rules */
        struct crawlers *c;
        struct crawlers_status s;
        char *big = malloc(65536);
        assert_int_equal(crawlers_new(&c), 0);
        memset(big, 'x', 2000);
        memcpy(big + 2000, "\nexe a\0b\nexe cat\n", 17);
        assert_int_equal(crawlers_load_text(c, "rules", big, 2017), 0);
        crawlers_status(c, &s);
        assert_int_equal(s.n_errors, 2);
        assert_string_equal(s.errors[0], "rules:1: the line is longer than 1024 bytes");
        assert_string_equal(s.errors[1], "rules:2: the line has a NUL byte");
        assert_int_equal(s.rules, 1);
        size_t n = 0;
        while (n + 8 < 65536)
                n += (size_t)snprintf(big + n, 9, "exe %03zu\n", n / 8 % 1000);
        assert_int_equal(crawlers_load_text(c, "rules", big, n), 0);
        crawlers_status(c, &s);
        assert_int_equal(s.rules, 1024);
        assert_int_equal(s.n_errors, n / 8 - 1024);
        assert_string_equal(s.errors[0], "rules:1025: more than 1024 rules");
        free(big);
        crawlers_free(c);
}

/* Whatever is in the file: no crash, no endless work, as many lines judged as there are. */
static void test_anything(void **state) {
        const char *seed_text = getenv("TARN_TEST_SEED");
        uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : rng_u64(rng_system());
        print_message("seed %llu (TARN_TEST_SEED=%llu repeats it)\n", (unsigned long long)seed, (unsigned long long)seed);
        static const char *const pieces[] = { "exe ", "cgroup ", "not ", "head ", "64K", "\n", "\n", "*", "[", "]", "\\", "?", "/", "#", " ", "a", "\t", "!", "[!a-", "\xff", "[[:alpha:]", "[.", "\r" };
        struct rng_seeded rng;
        struct crawlers *c;
        rng_seed(&rng, seed);
        assert_int_equal(crawlers_new(&c), 0);
        for (int round = 0; round < 3000; round++) {
                char text[4096];
                size_t n = 0;
                uint64_t h, words = rng_u64(&rng.rng) % 300;
                for (uint64_t k = 0; k < words; k++)
                        n += (size_t)snprintf(text + n, sizeof text - n, "%s", pieces[rng_u64(&rng.rng) % ARRAY_SIZE(pieces)]);
                assert_int_equal(crawlers_load_text(c, "rules", text, n), 0);
                (void)crawlers_judge(c, "/usr/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/b", GROUPS, &h);
        }
        crawlers_free(c);
}

static void write_file(const char *path, const char *text) {
        FILE *f = fopen(path, "we");
        assert_non_null(f);
        assert_true(fputs(text, f) >= 0);
        assert_int_equal(fclose(f), 0);
}

static void test_files(void **state) {
        char dir[] = "/tmp/tarn-crawlers-XXXXXX", a[64], b[64], fifo[64];
        struct crawlers *c;
        struct crawlers_status s;
        uint64_t h;
        assert_non_null(tmpdir_new(dir));
        (void)snprintf(a, sizeof a, "%s/a", dir);
        (void)snprintf(b, sizeof b, "%s/b", dir);
        (void)snprintf(fifo, sizeof fifo, "%s/fifo", dir);
        const char *paths[] = { a, b, fifo, dir };
        assert_int_equal(crawlers_new(&c), 0);
        assert_int_equal(crawlers_load(c, paths, 2), 0); /* neither is there */
        crawlers_status(c, &s);
        assert_true(s.rules == 0 && s.n_errors == 0);
        write_file(a, "not cat\nwrong\n");
        write_file(b, "exe *at head 3\n");
        assert_int_equal(crawlers_load(c, paths, 2), 0);
        crawlers_status(c, &s);
        assert_true(s.rules == 2 && s.n_errors == 1);
        assert_true(strstr(s.errors[0], "/a:2: 'wrong' is not one of"));
        assert_false(crawlers_judge(c, "/bin/cat", NULL, &h));
        assert_true(crawlers_judge(c, "/bin/bat", NULL, &h) && h == 3);
        /* what would block, or cannot be a file of rules */
        assert_int_equal(mkfifo(fifo, 0600), 0);
        assert_int_equal(crawlers_load(c, paths, 4), 0);
        crawlers_status(c, &s);
        assert_true(s.rules == 2 && s.n_errors == 3);
        assert_true(strstr(s.errors[1], "is not a regular file") && strstr(s.errors[2], "is not a regular file"));
        /* too long: what fits into the bound, in whole lines */
        FILE *f = fopen(b, "we");
        assert_non_null(f);
        assert_true(fputs("exe cow\n#", f) >= 0);
        for (int i = 0; i < 70000; i++)
                assert_true(fputc(i % 100 ? '#' : '\n', f) >= 0);
        assert_true(fputs("\nexe late\n", f) >= 0);
        assert_int_equal(fclose(f), 0);
        assert_int_equal(crawlers_load(c, paths + 1, 1), 0);
        crawlers_status(c, &s);
        assert_true(s.rules == 1);
        assert_true(strstr(s.errors[0], "is longer than 65536 bytes"));
        /* the list that is installed has no slip */
        assert_int_equal(crawlers_load(c, &installed, 1), 0);
        crawlers_status(c, &s);
        if (s.n_errors)
                print_message("%s\n", s.errors[0]);
        assert_true(s.rules > 10 && s.n_errors == 0);
        assert_true(crawlers_judge(c, "/usr/sbin/updatedb.plocate", NULL, &h) && h == 0);
        assert_true(crawlers_judge(c, "/usr/libexec/tracker-extract-3", NULL, &h) && h == CRAWLER_HEAD_BYTES);
        assert_false(crawlers_judge(c, "/usr/bin/grep", GROUPS, &h));
        crawlers_free(c);
        assert_int_equal(unlink(a) | unlink(b) | unlink(fifo) | rmdir(dir), 0);
}

static size_t descriptors(void) {
        size_t n = 0;
        DIR *d = opendir("/proc/self/fd");
        assert_non_null(d);
        while (readdir(d))
                n++;
        (void)closedir(d);
        return n;
}

/* Real processes: by executable, by group, one that ended, another one under the same number after exec. */
static void test_processes(void **state) {
        char self[4096], rule[4200];
        ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
        assert_true(n > 0);
        self[n] = 0;
        (void)snprintf(rule, sizeof rule, "exe %s head 5\nexe sleep head 6\n", strrchr(self, '/') + 1);
        struct crawlers *c = with(rule);
        struct crawler *me = crawlers_find(c, getpid());
        assert_non_null(me);
        assert_true(me->head == 5 && me->pid == getpid() && strcmp(me->name, self) == 0);
        struct crawlers_status s;
        crawlers_refused(c, me);
        crawlers_status(c, &s);
        assert_string_equal(s.last, self);
        assert_int_equal(s.last_pid, getpid());
        free(me);
        assert_null(crawlers_find(c, 0));
        assert_null(crawlers_find(c, -1));

        int go[2], gone[2];
        assert_int_equal(pipe2(go, O_CLOEXEC) | pipe2(gone, O_CLOEXEC), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                char byte;
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void)close(go[1]); /* else it never reads the end */
                if (read(go[0], &byte, 1) == 1) /* then another program; its end of `gone` closes at exec */
                        (void)execlp("sleep", "sleep", "600", NULL);
                _exit(1);
        }
        me = crawlers_find(c, pid);
        assert_non_null(me);
        assert_true(me->head == 5);
        free(me);
        (void)close(gone[1]);
        assert_int_equal(write(go[1], "", 1), 1);
        char byte;
        assert_int_equal(read(gone[0], &byte, 1), 0);
        struct crawler *other = crawlers_find(c, pid);
        assert_non_null(other);
        assert_true(other->head == 6 && other->pid == pid);
        free(other);
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        assert_null(crawlers_find(c, pid));
        (void)close(go[0]), (void)close(go[1]), (void)close(gone[0]);
        crawlers_free(c);

        c = with("cgroup /* head 8\n"); /* everybody is in some group */
        other = crawlers_find(c, getpid());
        assert_non_null(other);
        assert_true(other->head == 8);
        free(other);
        size_t before = descriptors();
        for (int i = 0; i < 100; i++)
                free(crawlers_find(c, getpid()));
        assert_int_equal(descriptors(), before);
        crawlers_free(c);
}

static int64_t now_ns(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Printed, not asserted. */
static void test_cost(void **state) {
        struct { const char *what, *rules; } of[] = { { "no rules", "" }, { "the installed rules", NULL }, { "a rule about groups", "cgroup no-such-group\n" } };
        for (size_t i = 0; i < ARRAY_SIZE(of); i++) {
                struct crawlers *c = with(of[i].rules ? of[i].rules : "");
                if (!of[i].rules)
                        assert_int_equal(crawlers_load(c, &installed, 1), 0);
                int64_t best = INT64_MAX;
                for (int round = 0; round < 20; round++) {
                        int64_t at = now_ns();
                        for (int k = 0; k < 200; k++)
                                assert_null(crawlers_find(c, getpid()));
                        best = MIN(best, (now_ns() - at) / 200);
                }
                print_message("asking with %s: %.2f us\n", of[i].what, (double)best / 1000);
                crawlers_free(c);
        }
}

int main(int argc, char **argv) {
        assert_int_equal(argc, 2);
        installed = argv[1];
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_who_fits), cmocka_unit_test(test_what_is_wrong_is_told_and_the_rest_counts), cmocka_unit_test(test_anything), cmocka_unit_test(test_files),
                cmocka_unit_test(test_processes), cmocka_unit_test(test_cost),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
