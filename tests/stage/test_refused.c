/* SPDX-License-Identifier: Apache-2.0 */
/* What a disk that has refused a sync may not do afterwards: to those who come later, after a restart, beside another sync. Nothing is synced but by the test. */
#include "cache_world.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "base/failpoint.h"

static struct cw *begin(void) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open_by_hand(w, clock_system());
        return w;
}

static void die(struct cw *w, bool cut) {
        char copy[200];
        cw_copy(w, "", copy);
        cw_become(w, copy, cut);
        cw_open_by_hand(w, clock_system());
}

static void arm(const char *how) {
        assert_int_equal(failpoint_arm(how), 0);
}
#define ALL_OFF "stage.sync=off;stage.sync.log=off;segment.sync=off"

static struct node node_of(struct cw *w, const char *name, bool make) {
        struct node n;
        int r = tree_lookup(w->cache->tree, INO_ROOT, name, strlen(name), &n);
        if (r == -ENOENT && make)
                return cw_create(w, INO_ROOT, name);
        assert_int_equal(r, 0);
        return n;
}

static void put(struct file *f, char c, size_t n) {
        uint8_t *p = malloc(n);
        assert_non_null(p);
        memset(p, c, n);
        assert_int_equal(write_at(f, 0, p, n, false, WAIT_MS), n);
        free(p);
}

static struct file *write_open(struct cw *w, const char *name, char c, size_t n) {
        struct file *f = cw_file(w, node_of(w, name, true).ino, true, true);
        put(f, c, n);
        return f;
}

static void save(struct cw *w, const char *name, char c, size_t n) {
        file_release(write_open(w, name, c, n), true);
}

static void expect(struct cw *w, const char *name, char c, size_t n) {
        struct file *f = cw_file(w, node_of(w, name, false).ino, false, false);
        uint8_t *p = malloc(n + 1);
        assert_non_null(p);
        assert_int_equal(read_at(f, 0, p, n + 1), n);
        for (size_t i = 0; i < n; i++)
                assert_int_equal(p[i], c);
        free(p);
        file_release(f, false);
}

static void mv(struct cw *w, const char *from, const char *to) {
        struct node node = node_of(w, from, false), old = { 0 };
        uint64_t gen;
        assert_int_equal(file_freeze(w->cache, node.ino, &gen), 0);
        assert_int_equal(tree_rename(w->cache->tree, INO_ROOT, from, strlen(from), INO_ROOT, to, strlen(to), 0, (bool (*)(void *, uint64_t))file_is_open, w->cache, &node, &old), 0);
        file_renamed(w->cache, &node, &old);
        if (old.ino)
                file_forget(w->cache, old.ino);
}

static struct stage *stage_of(struct cw *w, const char *name) {
        struct stage *st;
        assert_int_equal(stage_get(w->cache->stages, node_of(w, name, false).gen, &st), 0);
        return st;
}

static bool is_there(struct cw *w, uint64_t gen) {
        struct stage *st;
        if (stage_get(w->cache->stages, gen, &st) < 0)
                return false;
        stage_put(st);
        return true;
}

static int chunk(struct stage *st) {
        const struct blocklist *list;
        struct content content;
        return stage_chunk(st, now_ms() + WAIT_MS, &list, &content);
}

/* However often one file is tried again: what others have replaced goes all the same. */
static void test_tried_often(void **state) {
        struct cw *w = begin();
        save(w, "bad", 'b', 300000);
        arm("stage.sync=fail:EIO");
        assert_true(cache_sync(w->cache) < 0);
        struct stage *st = stage_of(w, "bad");
        for (unsigned i = 0; i < 2 * SPOILT_MAX; i++)
                assert_int_equal(chunk(st), -EIO);
        assert_true(w->cache->stages->n_spoilt == 1);
        arm(ALL_OFF);
        assert_int_equal(chunk(st), 0);
        stage_put(st);
        save(w, "f", 'a', 3000);
        uint64_t gen = node_of(w, "f", false).gen;
        save(w, "f", 'c', 3000);
        for (int i = 0; i < 3; i++)
                assert_int_equal(cache_sync(w->cache), 0);
        assert_false(is_there(w, gen));
        cw_free(w);
}

/* Open, refused, killed: the next process does not take it for good either. */
static void open_and_killed(const char *how, size_t n, bool twice) {
        struct cw *w = begin();
        struct file *f = write_open(w, "f", 'a', n);
        for (int i = 0; i <= twice; i++) {
                if (i) { /* emptied, and refused again */
                        assert_int_equal(file_set_size(f, 0), 0);
                        put(f, 'c', n);
                }
                arm(how);
                assert_true(file_sync(f) < 0);
                arm(ALL_OFF);
                assert_true(file_sync(f) < 0);
        }
        uint64_t gen = f->top->gen;
        char copy[200];
        cw_copy(w, "", copy);
        file_release(f, true);
        cw_become(w, copy, false);
        cw_open_by_hand(w, clock_system());
        f = cw_file(w, node_of(w, "f", false).ino, true, false);
        assert_true(f->top && f->top->gen == gen);
        assert_true(file_sync(f) < 0);
        assert_int_equal(file_set_size(f, 0), 0);
        put(f, 'b', n);
        assert_true(f->top->gen != gen);
        assert_int_equal(file_sync(f), 0);
        file_release(f, true);
        assert_int_equal(cache_sync(w->cache), 0);
        die(w, true);
        expect(w, "f", 'b', n);
        cw_free(w);
}
static void test_open_and_killed(void **state) {
        for (int i = 0; i < 2; i++) {
                open_and_killed("segment.sync=fail:EIO", 3000, i);
                open_and_killed("stage.sync=fail:EIO", 300000, i);
                open_and_killed("stage.sync.log=fail:EIO", 300000, i);
        }
}

/* Saved over a file, refused, killed: what was there before is kept by the next process, too. */
static void over_and_killed(const char *how, size_t n, bool sent) {
        struct cw *w = begin();
        save(w, "f", 'o', n);
        assert_int_equal(cache_sync(w->cache), 0);
        if (sent) {
                assert_true(cw_accept_all(w) > 0);
                assert_int_equal(cache_sync(w->cache), 0);
        }
        save(w, ".f.tmp", 'n', n + 7);
        mv(w, ".f.tmp", "f");
        arm(how);
        assert_true(cache_sync(w->cache) < 0);
        arm(ALL_OFF);
        die(w, false);
        expect(w, "f", 'n', n + 7);
        for (int i = 0; i < 3; i++)
                (void)!cache_sync(w->cache);
        die(w, true);
        expect(w, "f", 'o', n);
        cw_free(w);
}
static void test_over_and_killed(void **state) {
        for (int i = 0; i < 2; i++)
                over_and_killed("stage.sync=fail:EIO", 300000, i);
}

/* ---- beside a sync that had begun before ---- */

static _Atomic int slow_fd = -1, bad_fd = -1;
static _Atomic unsigned step, bad_calls;
static void until(unsigned n) {
        for (int64_t end = now_ms() + WAIT_MS; atomic_load(&step) < n;) {
                assert_true(now_ms() < end);
                (void)sched_yield();
        }
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd) {
        if (atomic_load(&step) == 1 && fd != atomic_load(&bad_fd)) { /* the first one's other file: both have begun */
                atomic_store(&slow_fd, fd);
                atomic_store(&step, 2);
                until(3);
        }
        if (atomic_load(&step) > 1 && fd == atomic_load(&bad_fd)) {
                unsigned n = atomic_fetch_add(&bad_calls, 1);
                if (n == 1)
                        atomic_store(&step, 4); /* st->sync is held: who wants it waits until this has been noted */
                if (n < 2) {
                        errno = EIO;
                        return -1;
                }
        }
        return __real_fdatasync(fd);
}

int __real_pwrite_full(int fd, const void *p, size_t n, uint64_t off);
int __wrap_pwrite_full(int fd, const void *p, size_t n, uint64_t off);
int __wrap_pwrite_full(int fd, const void *p, size_t n, uint64_t off) {
        int r = __real_pwrite_full(fd, p, n, off);
        if (atomic_load(&step) == 2 && fd == atomic_load(&bad_fd)) { /* the stage is being written once more */
                atomic_store(&step, 3);
                until(4);
        }
        return r;
}

static void *sync_all_of(void *arg) {
        return (void *)(intptr_t)stages_sync_dirty(((struct cw *)arg)->cache->stages);
}

/* What is written once more while a slow sync of it is under way, and is refused to that one, has not been written. */
static void test_beside_another(void **state) {
        struct cw *w = begin();
        pthread_t thread;
        void *result;
        save(w, "slow", 's', 300000);
        save(w, "bad", 'b', 300000);
        struct stage *st = w->cache->stages->dirty; /* that one is asked first */
        struct stage *slow = stage_of(w, "slow"), *bad = stage_of(w, "bad");
        if (st == bad) {
                bad = slow;
                slow = st;
        }
        atomic_store(&bad_fd, bad->fd);
        atomic_store(&step, 1);
        assert_int_equal(pthread_create(&thread, NULL, sync_all_of, w), 0);
        until(2);
        assert_int_equal(slow_fd, slow->fd);
        assert_int_equal(stage_sync(bad), -EIO);
        int r = chunk(bad);
        assert_int_equal(pthread_join(thread, &result), 0);
        atomic_store(&step, 0);
        assert_int_equal((intptr_t)result, -EIO);
        assert_int_equal(r, -EIO);
        assert_int_equal(bad_calls, 2);
        assert_true(bad->untrusted);
        assert_int_equal(chunk(bad), 0);
        assert_false(bad->untrusted);
        stage_put(bad);
        stage_put(slow);
        cw_free(w);
}

/* ---- refused, and killed before all have heard of it ---- */

static uint64_t written_gen;
static unsigned written_again;
int __real_slog_write(int fd, const struct id *salt, uint64_t pos, const struct slog_entry *e, const void *payload);
int __wrap_slog_write(int fd, const struct id *salt, uint64_t pos, const struct slog_entry *e, const void *payload);
int __wrap_slog_write(int fd, const struct id *salt, uint64_t pos, const struct slog_entry *e, const void *payload) {
        written_again += e->gen == written_gen && e->kind == LOG_DATA;
        return __real_slog_write(fd, salt, pos, e, payload);
}

/* Two files in one segment; the sync of one is refused, and the process dies before the other one is asked about. The kernel does not tell the next process: what that one calls synced it has written. */
static void test_not_all_heard(void **state) {
        struct cw *w = begin();
        assert_int_equal(cache_sync(w->cache), 0);
        save(w, "a", 'a', 3000);
        save(w, "b", 'b', 3000);
        struct stage *a = stage_of(w, "a");
        arm("segment.sync=error:EIO");
        assert_int_equal(stage_sync(a), -EIO);
        arm(ALL_OFF);
        stage_put(a);
        written_gen = node_of(w, "b", false).gen;
        written_again = 0;
        die(w, false);
        struct stage *b = stage_of(w, "b");
        assert_true(stage_sync(b) < 0 || written_again > 0);
        stage_put(b);
        cw_free(w);
}

/* A file goes on while its last state is sent. When the answer comes, the log of what goes on cannot be written: it names the older stage, which must be there as long as it does, whatever ends the
 * process (how: 0 a stop, 1 kills, 2 a power cut and a kill), and goes when the log could be written. */
static void not_said(size_t n, int how) {
        struct cw *w = begin();
        save(w, "f", 'a', 100);
        (void)cw_accept_all(w);
        save(w, "f", 'b', n);
        uint64_t gen = node_of(w, "f", false).gen;
        struct file *f = cw_file(w, node_of(w, "f", false).ino, true, false);
        uint8_t p[3000], *got = malloc(n + 1);
        assert_non_null(got);
        memset(p, 'c', sizeof p);
        assert_int_equal(write_at(f, n / 2, p, sizeof p, false, WAIT_MS), sizeof p);
        assert_int_equal(file_sync(f), 0);
        arm("adopt.rebase=fail:EIO");
        (void)cw_accept_all(w);
        for (int i = 0; i < 3; i++)
                assert_int_equal(cache_turn(w->cache), 0);
        if (how == 0) {
                arm("adopt.rebase=off");
                file_release(f, true);
                cw_close(w);
                cw_open_by_hand(w, clock_system());
        } else {
                die(w, how == 2);
                arm("adopt.rebase=off");
                die(w, false);
        }
        f = cw_file(w, node_of(w, "f", false).ino, false, false);
        assert_int_equal(read_at(f, 0, got, n + 1), n);
        for (size_t i = 0; i < n; i++)
                assert_int_equal(got[i], i >= n / 2 && i < n / 2 + sizeof p ? 'c' : 'b');
        file_release(f, false);
        (void)cw_accept_all(w);
        for (int64_t end = now_ms() + WAIT_MS; is_there(w, gen); assert_true(now_ms() < end))
                assert_int_equal(cache_turn(w->cache), 0);
        free(got);
        cw_free(w);
}

static void test_not_said(void **state) {
        for (int how = 0; how < 3; how++) {
                not_said(8000, how);
                not_said(300000, how);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_tried_often), cmocka_unit_test(test_open_and_killed), cmocka_unit_test(test_over_and_killed), cmocka_unit_test(test_beside_another),
                                            cmocka_unit_test(test_not_all_heard), cmocka_unit_test(test_not_said) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
