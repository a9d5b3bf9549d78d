/* SPDX-License-Identifier: Apache-2.0 */
/* test_tmpdir.c: the temporary directories of a test program go with it, whether it ends by itself, by an assertion, or is killed with its group as a test that takes too long is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/inotify.h>
#include <time.h>

#include "../tmpdir.h"

enum how { ENDS, ABORTS, KILLED, GROUP_KILLED };

static void child(enum how how, const char *parent, int tell) {
        char a[200], b[300];
        (void)setpgid(0, 0);
        (void)signal(SIGABRT, SIG_DFL);
        (void)snprintf(a, sizeof a, "%s/a-XXXXXX", parent);
        if (!tmpdir_new(a))
                _exit(1);
        (void)snprintf(b, sizeof b, "%s/sub", a);
        if (mkdir(b, 0700) < 0)
                _exit(1);
        (void)snprintf(b, sizeof b, "%s/sub/outside", a);
        if (symlink(parent, b) < 0)
                _exit(1);
        if (write(tell, "x", 1) != 1 || how == ENDS)
                _exit(0);
        if (how == ABORTS)
                abort();
        for (;;)
                (void)pause();
}

static bool is_empty(const char *dir) { return rmdir(dir) == 0; }

static void one(enum how how) {
        char parent[] = "/tmp/tarn-tmpdir-XXXXXX";
        int tell[2], status;
        assert_non_null(tmpdir_new(parent));
        int watch = inotify_init1(IN_CLOEXEC);
        assert_true(watch >= 0 && inotify_add_watch(watch, parent, IN_DELETE) >= 0);
        assert_int_equal(pipe2(tell, O_CLOEXEC), 0);
        pid_t pid = fork();
        if (pid == 0)
                child(how, parent, tell[1]);
        char c;
        assert_int_equal(read(tell[0], &c, 1), 1);
        if (how == KILLED)
                assert_int_equal(kill(pid, SIGKILL), 0);
        if (how == GROUP_KILLED)
                assert_int_equal(kill(-pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(how != ENDS, WIFSIGNALED(status));
        for (int i = 0; !is_empty(parent); i++) {
                struct pollfd p = { .fd = watch, .events = POLLIN };
                char event[4096];
                assert_true(i < 100 && poll(&p, 1, 60000) == 1);
                assert_true(read(watch, event, sizeof event) > 0);
        }
        (void)close(tell[0]);
        (void)close(tell[1]);
        (void)close(watch);
}

static void test_each_end(void **state) {
        for (enum how how = ENDS; how <= GROUP_KILLED; how++)
                one(how);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_each_end) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
