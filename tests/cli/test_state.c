/* SPDX-License-Identifier: Apache-2.0 */
/* test_state.c: where a client's things are, and which mount a path means. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/io.h"
#include "cli.h"
#include "../tmpdir.h"

static char base[64];

static void test_state_dir(void **state) {
        char *d = NULL;
        unsetenv("TARN_STATE_DIR");
        setenv("XDG_STATE_HOME", "/x/state", 1);
        assert_int_equal(state_dir(NULL, &d), 0);
        assert_string_equal(d, "/x/state/tarn");
        free(d);
        unsetenv("XDG_STATE_HOME");
        setenv("HOME", "/home/anna", 1);
        assert_int_equal(state_dir(NULL, &d), 0);
        assert_string_equal(d, "/home/anna/.local/state/tarn");
        free(d);
        setenv("TARN_STATE_DIR", "/y", 1);
        assert_int_equal(state_dir(NULL, &d), 0);
        assert_string_equal(d, "/y");
        free(d);
        assert_int_equal(state_dir("/z", &d), 0);
        assert_string_equal(d, "/z");
        free(d);
}

static void test_places_differ(void **state) {
        struct place p[5] = { 0 };
        assert_int_equal(place_of("/s", "http://h:1", "work", &p[0]), 0);
        assert_int_equal(place_of("/s", "https://h:1", "work", &p[1]), 0);
        assert_int_equal(place_of("/s", "http://h:1", "work/..", &p[2]), 0);
        assert_int_equal(place_of("/s", "http://h:1", "..", &p[3]), 0);
        assert_int_equal(place_of("/s", "http://h:1", "日本日本日本日本日本日本日本日本日本日本日本日本日本日本日本日本", &p[4]), 0);
        for (size_t i = 0; i < ARRAY_SIZE(p); i++) {
                assert_memory_equal(p[i].dir, "/s/mounts/", 10);
                assert_null(strchr(p[i].dir + 10, '/'));
                assert_true(p[i].dir[10] != '.');
                assert_true(strlen(p[i].dir + 10) < 120);
                for (size_t k = 0; k < i; k++)
                        assert_string_not_equal(p[i].dir, p[k].dir);
        }
        for (size_t i = 0; i < ARRAY_SIZE(p); i++)
                place_free(&p[i]);
}

static void test_mountpoint_path(void **state) {
        char path[128], *r = NULL, link[128];
        snprintf(path, sizeof path, "%s/a/b", base);
        assert_int_equal(mkdir_p(path, 0700), 0);
        snprintf(link, sizeof link, "%s/link", base);
        assert_int_equal(symlink("a", link), 0);
        snprintf(link, sizeof link, "%s/link/./b//", base);
        assert_int_equal(mountpoint_path(link, &r), 0);
        assert_string_equal(r, path);
        free(r);
        assert_int_equal(chdir(path), 0);
        assert_int_equal(mountpoint_path(".", &r), 0);
        assert_string_equal(r, path);
        free(r);
        assert_int_equal(mountpoint_path("../b", &r), 0);
        assert_string_equal(r, path);
        free(r);
        assert_int_equal(mountpoint_path("/", &r), 0);
        assert_string_equal(r, "/");
        free(r);
        assert_int_equal(mountpoint_path("/tmp", &r), 0);
        assert_string_equal(r, "/tmp");
        free(r);
        assert_int_equal(mountpoint_path("/no/such/parent", &r), -ENOENT);
        assert_int_equal(chdir("/"), 0);
}

static void test_infos(void **state) {
        struct mount_info *all = NULL;
        size_t n = 99;
        char dir[128], mountpoint[128], in[200];
        struct place p[2] = { 0 };
        snprintf(dir, sizeof dir, "%s/state", base);
        snprintf(mountpoint, sizeof mountpoint, "%s/a", base);
        assert_int_equal(mount_infos_list(dir, &all, &n), 0); /* nothing yet */
        assert_int_equal(n, 0);
        mount_infos_free(all, n);
        assert_int_equal(place_of(dir, "http://h:1", "one", &p[0]), 0);
        assert_int_equal(place_of(dir, "http://h:1", "two", &p[1]), 0);
        assert_int_equal(mkdir_p(p[0].dir, 0700), 0);
        assert_int_equal(mkdir_p(p[1].dir, 0700), 0);
        assert_int_equal(mount_info_write(&p[0], mountpoint, "http://h:1/one"), 0);
        snprintf(in, sizeof in, "%s/b", mountpoint);
        assert_int_equal(mount_info_write(&p[1], in, "http://h:1/two"), 0);
        snprintf(in, sizeof in, "%s/mounts/broken", dir);
        assert_int_equal(mkdir_p(in, 0700), 0);
        snprintf(in, sizeof in, "%s/mounts/broken/mount.json", dir);
        assert_int_equal(file_replace(in, "{\"pid\": 0", 9, 0600), 0);
        assert_int_equal(mount_infos_list(dir, &all, &n), 0);
        assert_int_equal(n, 2);
        const struct mount_info *m = mount_infos_find(all, n, mountpoint);
        assert_non_null(m);
        assert_string_equal(m->url, "http://h:1/one");
        assert_int_equal(m->pid, getpid());
        snprintf(in, sizeof in, "%s/b/deep/er", mountpoint);
        m = mount_infos_find(all, n, in); /* the inner one */
        assert_non_null(m);
        assert_string_equal(m->url, "http://h:1/two");
        snprintf(in, sizeof in, "%s/link/b", base);
        m = mount_infos_find(all, n, in); /* by another name */
        assert_non_null(m);
        assert_string_equal(m->url, "http://h:1/two");
        snprintf(in, sizeof in, "%sx", mountpoint);
        assert_null(mount_infos_find(all, n, in));
        assert_null(mount_infos_find(all, n, "/"));
        int fd = -1;
        assert_int_equal(control_connect(p[0].dir, &fd), -ENOENT);
        mount_infos_free(all, n);
        place_free(&p[0]);
        place_free(&p[1]);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_state_dir), cmocka_unit_test(test_places_differ), cmocka_unit_test(test_mountpoint_path), cmocka_unit_test(test_infos) };
        snprintf(base, sizeof base, "/tmp/tarn-cli-XXXXXX");
        if (!tmpdir_new(base))
                return 1;
        int failed = cmocka_run_group_tests(tests, NULL, NULL);
        char command[128];
        snprintf(command, sizeof command, "rm -rf %s", base);
        return system(command) != 0 ? 1 : failed;
}

int args_exit(int r) { /* main.c's */
        return r == 0 ? EXIT_OK : EXIT_USAGE;
}

int cli_fail(const char *program, int code, const char *fmt, ...) { /* main.c's, quiet */
        (void)program;
        (void)fmt;
        return code;
}
