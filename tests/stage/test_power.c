/* SPDX-License-Identifier: Apache-2.0 */
/* A power cut at the level of files: the copy of a cache directory as it is at some moment, opened under another boot id. All that was written is there, rows too, also what was not synced: that
 * must not count, so that a name shows the old or the new content and nothing else. Nothing is synced but by the test. */
#include "cache_world.h"

static void open_by_hand(struct cw *w) {
        char note[200];
        struct cache_config c = { .dir = w->dir, .limit_bytes = w->limit, .uid = 1000, .gid = 1000, .clock = clock_system(), .rng = rng_system(), .counters = &w->counters,
                                  .workers = pool_executor(w->pool), .by_hand = true };
        assert_int_equal(cache_open(&c, &w->cache, note, sizeof note), 0);
        cache_set_source(w->cache, &w->source->source);
        cw_load(w);
}

/* The machine starts again with what was on the disk at this moment; boot: as after a power cut, else as after a kill. */
static void die(struct cw *w, bool cut) {
        char copy[200], cmd[700], path[200];
        (void)snprintf(copy, sizeof copy, "%s.copy", w->dir);
        (void)snprintf(cmd, sizeof cmd, "cp -a --sparse=always %s %s", w->dir, copy);
        assert_int_equal(system(cmd), 0);
        cw_close(w);
        remove_tree(w->dir);
        assert_int_equal(rename(copy, w->dir), 0);
        (void)snprintf(path, sizeof path, "%s/boot", w->dir);
        if (cut)
                assert_int_equal(file_replace(path, "00000000-0000-0000-0000-000000000000", 36, 0600), 0);
        open_by_hand(w);
}

static void save(struct cw *w, const char *name, char c, size_t n, bool sync) {
        uint8_t *p = malloc(n);
        assert_non_null(p);
        memset(p, c, n);
        struct node node;
        if (tree_lookup(w->cache->tree, INO_ROOT, name, strlen(name), &node) < 0)
                node = cw_create(w, INO_ROOT, name);
        struct file *f = cw_file(w, node.ino, true, true);
        assert_int_equal(write_at(f, 0, p, n, false, WAIT_MS), n);
        if (sync)
                assert_int_equal(file_sync(f), 0);
        file_release(f, true);
        free(p);
}

/* c 0: it is not there. */
static void expect(struct cw *w, const char *name, char c, size_t n) {
        struct node node;
        int r = tree_lookup(w->cache->tree, INO_ROOT, name, strlen(name), &node);
        if (!c) {
                assert_int_equal(r, -ENOENT);
                return;
        }
        assert_int_equal(r, 0);
        struct file *f = cw_file(w, node.ino, false, false);
        uint8_t *p = malloc(n + 1);
        assert_non_null(p);
        assert_int_equal(read_at(f, 0, p, n + 1), n);
        for (size_t i = 0; i < n; i++)
                assert_int_equal(p[i], c);
        free(p);
        file_release(f, false);
}

static void mv(struct cw *w, const char *from, const char *to) {
        struct node node, old = { 0 };
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, from, strlen(from), &node), 0);
        uint64_t gen;
        assert_int_equal(file_freeze(w->cache, node.ino, &gen), 0);
        assert_int_equal(tree_rename(w->cache->tree, INO_ROOT, from, strlen(from), INO_ROOT, to, strlen(to), 0, (bool (*)(void *, uint64_t))file_is_open, w->cache, &node, &old), 0);
        file_renamed(w->cache, &node, &old);
        if (old.ino)
                file_forget(w->cache, old.ino);
}

/* write-temp + rename over, with and without an fsync, the old content new or on the server, and what follows the rename. */
static void save_over(size_t n, bool on_server, bool synced, bool cut) {
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        save(w, "f", 'o', n, false);
        assert_int_equal(cache_sync(w->cache), 0);
        if (on_server) {
                assert_true(cw_accept_all(w) > 0);
                assert_int_equal(cache_sync(w->cache), 0);
        }
        save(w, ".f.tmp", 'n', n + 7, synced);
        mv(w, ".f.tmp", "f");
        die(w, cut);
        if (!cut) {
                expect(w, "f", 'n', n + 7);
                expect(w, ".f.tmp", 0, 0);
        } else {
                expect(w, "f", 'o', n);
                expect(w, ".f.tmp", synced ? 'n' : 0, n + 7);
        }
        if (cut) { /* once more, and now the rename is synced, the next save is not */
                save(w, ".f.tmp", 'p', n + 9, false);
                mv(w, ".f.tmp", "f");
                assert_int_equal(tree_sync(w->cache->tree), 0);
                save(w, ".f.tmp", 'q', n, false);
                mv(w, ".f.tmp", "f");
                save(w, "f", 'r', n, false);
                die(w, true);
                expect(w, "f", 'p', n + 9);
                expect(w, ".f.tmp", 0, 0);
        }
        cw_free(w);
}

static void test_save_over(void **state) {
        for (int i = 0; i < 16; i++)
                save_over(i & 1 ? 300000 : 3000, i & 2, i & 4, i & 8);
}

/* What was fsynced is there, also if what came later is not; what was removed and synced stays away. */
static void test_fsynced(void **state) {
        for (int i = 0; i < 2; i++) {
                struct cw *w = cw_new(256 * MIB, 1);
                size_t n = i ? 300000 : 3000;
                open_by_hand(w);
                save(w, "a", 'a', n, true);
                save(w, "b", 'b', n, false);
                die(w, true);
                expect(w, "a", 'a', n);
                expect(w, "b", 0, 0);
                save(w, "a", 'c', n - 1, true);
                save(w, "a", 'd', n - 2, true); /* on top of what is pending */
                struct node node;
                assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "a", 1, &node), 0);
                die(w, true);
                expect(w, "a", 'd', n - 2);
                struct node gone;
                assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, "a", 1, false, (bool (*)(void *, uint64_t))file_is_open, w->cache, &gone), 0);
                file_forget(w->cache, node.ino);
                assert_int_equal(tree_sync(w->cache->tree), 0);
                die(w, true);
                expect(w, "a", 0, 0);
                cw_free(w);
        }
}

/* The log of a stage that had ended is back after a power cut (its truncation was not on the platter), its data file is where it went. What stands on it covers it all; nothing of it is synced,
 * and the file that has its name by now is not touched when it goes. */
static void log_is_back(bool copy) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "victim"), other = cw_create(w, INO_ROOT, "other"), third = cw_create(w, INO_ROOT, "copy");
        static uint8_t buf[400000], back[sizeof buf];
        memset(buf, 1, sizeof buf);
        struct file *f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, buf, 300000, false, 0), 300000);
        file_release(f, true);
        const uint64_t ended = cw_row(w, n.ino).gen;
        struct stage *st;
        char path[200];
        assert_int_equal(stage_get(w->cache->stages, ended, &st), 0);
        (void)snprintf(path, sizeof path, "%s/stages/log-%08u", w->dir, st->log.number);
        stage_put(st);
        _cleanup_buf_ struct buf log = BUF_INIT(1u << 20);
        assert_int_equal(file_load(path, 1u << 20, &log), 0);
        f = cw_file(w, n.ino, true, true);
        assert_int_equal(write_at(f, 0, buf, 3000, false, 0), 3000);
        file_release(f, true);
        for (int64_t end = now_ms() + WAIT_MS; stage_get(w->cache->stages, ended, &st) == 0;) {
                stage_put(st);
                assert_true(now_ms() < end);
                assert_int_equal(cache_sync(w->cache), 0);
        }
        cw_close(w);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(pwrite_full(fd, log.data, log.bytes, 0), 0);
        (void)close(fd);
        cw_open(w);
        assert_int_equal(stage_get(w->cache->stages, ended, &st), 0);
        assert_true(st->large && st->fd < 0);
        char name[STAGE_DATA_NAME];
        memcpy(name, st->data_name, sizeof name);
        stage_put(st);
        memset(buf, 2, sizeof buf);
        f = cw_file(w, other.ino, true, false);
        assert_int_equal(write_at(f, 0, buf, sizeof buf, false, 0), sizeof buf);
        file_release(f, true);
        assert_int_equal(stage_get(w->cache->stages, cw_row(w, other.ino).gen, &st), 0);
        assert_string_equal(st->data_name, name);
        stage_put(st);
        if (copy) { /* what was refused goes to a conflict copy with all that it stands on */
                assert_int_equal(file_reassign(w->cache, cw_row(w, n.ino).gen, third.ino), 0);
                assert_int_equal(stages_sync_sealed(w->cache->stages), 0);
        } else {
                struct node gone;
                assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, "victim", 6, false, (bool (*)(void *, uint64_t))file_is_open, w->cache, &gone), 0);
                file_forget(w->cache, n.ino);
                for (int64_t end = now_ms() + WAIT_MS; stage_get(w->cache->stages, ended, &st) == 0;) {
                        stage_put(st);
                        assert_true(now_ms() < end);
                        assert_int_equal(cache_sync(w->cache), 0);
                }
        }
        assert_int_equal(cache_sync(w->cache), 0);
        f = cw_file(w, other.ino, false, false);
        assert_int_equal(read_at(f, 0, back, sizeof back), sizeof back);
        assert_memory_equal(buf, back, sizeof back);
        file_release(f, false);
        cw_free(w);
}

static void test_the_log_is_back(void **state) {
        log_is_back(false);
        log_is_back(true);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_save_over), cmocka_unit_test(test_fsynced), cmocka_unit_test(test_the_log_is_back) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
