/* SPDX-License-Identifier: Apache-2.0 */
/* io, log, json, digest and model: what touches the disk or reads what others wrote. */
#include "base_test.h"

#include <errno.h>

#include "base/digest.h"
#include "base/err.h"
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "base/model.h"

static void test_transfers(void **state) {
        char *dir = test_dir();
        _cleanup_free_ char *path = path_join(dir, "a");
        char back[16];
        _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(pwrite_full(fd, "hello", 5, 3), 0);
        assert_int_equal(pread_full(fd, back, 5, 3), 0);
        assert_memory_equal(back, "hello", 5);
        assert_int_equal(pread_full(fd, back, 6, 3), -EIO);
        assert_int_equal(pread_some(fd, back, 16, 0), 8);
        assert_int_equal(pread_some(fd, back, 16, 8), 0);
        assert_int_equal(pread_full(-1, back, 1, 0), -EBADF);
        uint64_t free_bytes = 0;
        assert_int_equal(disk_free(fd, &free_bytes), 0);
        test_dir_remove(dir);
}

static void test_replace(void **state) {
        char *dir = test_dir();
        _cleanup_free_ char *deep = path_join(dir, "x/y//z/");
        assert_int_equal(mkdir_p(deep, 0700), 0);
        assert_int_equal(mkdir_p(deep, 0700), 0);
        assert_int_equal(mkdir_p("", 0700), -ENOENT);
        _cleanup_free_ char *path = path_join(deep, "file");
        _cleanup_free_ char *below_file = path_join(path, "no");
        assert_int_equal(file_replace(path, "one", 3, 0640), 0);
        assert_int_equal(file_replace(path, "second", 6, 0600), 0);
        assert_int_equal(mkdir_p(below_file, 0700), -ENOTDIR);
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
        _cleanup_buf_ struct buf b = BUF_INIT(0);
        assert_int_equal(file_load(path, 6, &b), 0);
        assert_int_equal(b.bytes, 6);
        assert_memory_equal(b.data, "second", 6);
        assert_int_equal(file_load(path, 5, &b), -EMSGSIZE);
        assert_int_equal(file_load(below_file, 5, &b), -ENOTDIR);
        assert_memory_equal(b.data, "second", 6); /* untouched on failure */
        assert_int_equal(file_replace(deep, "x", 1, 0600), -ENOTDIR); /* the directory itself: nothing is left behind */
        _cleanup_free_ char *z = path_join(dir, "x/y/z");
        assert_int_equal(unlink(path), 0);
        assert_int_equal(rmdir(z), 0);
        test_dir_remove(dir);
}

static void test_lock_file(void **state) {
        char *dir = test_dir();
        _cleanup_free_ char *path = path_join(dir, "lock");
        int fd = -1, other = -1;
        assert_int_equal(file_lock(path, &fd), 0);
        assert_int_equal(file_lock(path, &other), -EBUSY);
        assert_int_equal(other, -1);
        assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        close(fd);
        assert_int_equal(file_lock(path, &other), 0);
        close(other);
        test_dir_remove(dir);
}

static void test_log(void **state) {
        char *dir = test_dir();
        _cleanup_free_ char *path = path_join(dir, "log");
        assert_int_equal(log_open("prog", LOG_LEVEL_INFO, path), 0);
        char longer[6000];
        memset(longer, 'a', sizeof longer - 1);
        longer[sizeof longer - 1] = 0;
        log_debug("event=hidden");
        log_info("event=name name=%s", "a\nb\x7f");
        log_warn("event=long text=%s", longer);
        log_set_level(LOG_LEVEL_DEBUG);
        assert_true(log_enabled(LOG_LEVEL_DEBUG));
        log_debug("event=shown");
        assert_int_equal(log_open("prog", LOG_LEVEL_INFO, NULL), 0);
        assert_int_equal(log_open("prog", LOG_LEVEL_INFO, "/nonexistent/x"), -ENOENT);
        _cleanup_buf_ struct buf b = BUF_INIT(0);
        assert_int_equal(file_load(path, 100000, &b), 0);
        const char *text = buf_text(&b);
        assert_non_null(strstr(text, "info: event=name name=a?b?\n"));
        assert_non_null(strstr(text, "aaa...\n"));
        assert_non_null(strstr(text, "debug: event=shown\n"));
        assert_null(strstr(text, "hidden"));
        test_dir_remove(dir);
}

static void test_json(void **state) {
        _cleanup_json_ json_t *j = NULL;
        static const char *const bad[] = { "", "{", "{\"a\":1,\"a\":2}", "[1] x", "{\"a\":\"\\u0000\"}", "\"\xff\"", "nul" };
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                assert_int_equal(json_parse(bad[i], strlen(bad[i]), &j), -EINVAL);
        char deep[200];
        memset(deep, '[', 65);
        memset(deep + 65, ']', 65);
        assert_int_equal(json_parse(deep, 130, &j), -EINVAL);
        assert_int_equal(json_parse(deep + 1, 128, &j), 0);
        json_decref(steal_ptr(j));
        const char *text = "{\"s\":\"[[[\\\"x\",\"n\":5,\"b\":true,\"f\":1.5}", *s;
        assert_int_equal(json_parse(text, strlen(text), &j), 0);
        int64_t n;
        bool b;
        assert_int_equal(json_get_str(j, "s", &s), 0);
        assert_string_equal(s, "[[[\"x");
        assert_int_equal(json_get_str(j, "n", &s), -EINVAL);
        assert_int_equal(json_get_str(j, "none", &s), -ENOENT);
        assert_int_equal(json_get_int(j, "n", 0, 5, &n), 0);
        assert_int_equal(n, 5);
        assert_int_equal(json_get_int(j, "n", 6, 9, &n), -EINVAL);
        assert_int_equal(json_get_int(j, "f", 0, 9, &n), -EINVAL);
        assert_int_equal(json_get_bool(j, "b", &b), 0);
        assert_true(b);
        assert_int_equal(json_get_bool(j, "s", &b), -EINVAL);
        _cleanup_buf_ struct buf out = BUF_INIT(1000), small = BUF_INIT(10);
        assert_int_equal(json_to_buf(j, &out), 0);
        assert_string_equal(buf_text(&out), text);
        assert_int_equal(json_to_buf(j, &small), -EMSGSIZE);
        assert_int_equal(small.bytes, 0);
}

static void test_digest(void **state) {
        struct digest d, e;
        char hex[65];
        sha256("", 0, &d);
        hex_encode(d.b, 32, hex);
        assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        struct sha256_state *s;
        assert_int_equal(sha256_new(&s), 0);
        for (int round = 0; round < 2; round++) {
                sha256_add(s, "a", 1);
                sha256_add(s, "bc", 2);
                sha256_end(s, &e);
                sha256("abc", 3, &d);
                assert_true(digest_equal(&d, &e));
        }
        sha256_free(s);
        sha256_free(NULL);
        assert_true(xxh3_64("abc", 3) == 0x78af5f94892f3950u);
}

static void test_model(void **state) {
        struct id id;
        char hex[33];
        hex_encode(id_root.b, 16, hex);
        assert_string_equal(hex, "00000000000000000000000000000001");
        assert_int_equal(hex_decode("000000000000000000000000000000AF", id.b, 16), 0);
        assert_int_equal(id.b[15], 0xaf);
        assert_int_equal(hex_decode("00000000000000000000000000000a", id.b, 16), -EINVAL);
        assert_int_equal(hex_decode("000000000000000000000000000000aff", id.b, 16), -EINVAL);
        assert_int_equal(hex_decode("0000000000000000000000000000000g", id.b, 16), -EINVAL);
        assert_int_equal(id.b[15], 0xaf);
        for (int k = NODE_FILE; k <= NODE_BLOCK; k++) {
                enum node_kind back;
                assert_int_equal(node_kind_from_mode(node_kind_to_mode(k) | 0644, &back), 0);
                assert_int_equal(back, k);
        }
        enum node_kind kind;
        assert_int_equal(node_kind_to_mode(NODE_GRAFT), 0);
        assert_int_equal(node_kind_from_mode(0644, &kind), -EINVAL);
        assert_string_equal(err_name(ESTALE), "ESTALE");
        assert_string_equal(err_name(-EHOSTDOWN), "EHOSTDOWN");
        assert_string_equal(err_name(99999), "E?");
        assert_string_equal(err_name(INT32_MIN), "E?");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_transfers), cmocka_unit_test(test_replace), cmocka_unit_test(test_lock_file), cmocka_unit_test(test_log),
                cmocka_unit_test(test_json),      cmocka_unit_test(test_digest),  cmocka_unit_test(test_model),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
