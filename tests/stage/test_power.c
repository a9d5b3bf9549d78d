/* SPDX-License-Identifier: Apache-2.0 */
/* A power cut at the level of files: the copy of a cache directory as it is at some moment, opened under another boot id. All that was written is there, rows too, also what was not synced: that
 * must not count, so that a name shows the old or the new content and nothing else. Nothing is synced but by the test. */
#include "cache_world.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>

#include "base/failpoint.h"
#include "tree_priv.h"

static const char *killed_start; /* each start after a power cut is the second one: the first one ended at this place. NULL: it is the first */
static unsigned killed_starts;

static int try_open(struct cw *w) {
        char note[200];
        struct cache_config c = { .dir = w->dir, .limit_bytes = w->limit, .uid = 1000, .gid = 1000, .clock = clock_system(), .rng = rng_system(), .counters = &w->counters,
                                  .workers = pool_executor(w->pool), .by_hand = true };
        return cache_open(&c, &w->cache, note, sizeof note);
}

static void open_by_hand(struct cw *w) {
        assert_int_equal(try_open(w), 0);
        cache_set_source(w->cache, &w->source->source);
        cw_load(w);
}

/* The machine starts again with that copy. */
static void start_with(struct cw *w, const char *copy, bool cut) {
        cw_become(w, copy, cut);
        if (cut && killed_start) {
                assert_int_equal(failpoint_arm(killed_start), 0);
                int r = try_open(w); /* a start that fails makes nothing durable: as if it had been killed there */
                assert_int_equal(failpoint_arm("recover.match=off;recover.flush=off;tree.sync=off"), 0);
                assert_true(r == 0 || r == -EIO);
                killed_starts += r < 0;
                if (r == 0) { /* it did not come by there */
                        char path[200];
                        cw_load(w);
                        cw_close(w);
                        (void)snprintf(path, sizeof path, "%s/boot", w->dir);
                        assert_int_equal(file_replace(path, "00000000-0000-0000-0000-000000000000", 36, 0600), 0);
                }
        }
        open_by_hand(w);
}

/* With what was on the disk at this moment. */
static void die(struct cw *w, bool cut) {
        char copy[200];
        cw_copy(w, "", copy);
        start_with(w, copy, cut);
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

/* What was written on top of bytes that a power cut took goes with them; a start that is killed after it sealed what is left below does not make it come back. */
static void test_on_top_of_what_is_lost(void **state) {
        const size_t small = 20000;
        static const char *const ends[] = { NULL, "recover.flush=fail:EIO", "tree.sync=fail:EIO" };
        for (size_t i = 0; i < 2 * ARRAY_SIZE(ends); i++) {
                struct cw *w = cw_new(256 * MIB, 1);
                static uint8_t p[300000];
                const char *end = ends[i / 2];
                memset(p, 'o', sizeof p);
                open_by_hand(w);
                save(w, "f", 'o', 100, false);
                assert_int_equal(cache_sync(w->cache), 0);
                struct node node;
                assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "f", 1, &node), 0);
                struct file *f = cw_file(w, node.ino, true, false);
                assert_int_equal(write_at(f, 100, p, small - 100, false, WAIT_MS), small - 100);
                assert_int_equal(write_at(f, small, p, sizeof p - small, false, WAIT_MS), sizeof p - small); /* moves to a log of its own, which is not synced */
                file_release(f, true);
                f = cw_file(w, node.ino, true, false);
                assert_int_equal(i % 2 ? file_set_size(f, small + 5000) : (int)write_at(f, small + 1000, "later", 5, false, WAIT_MS), i % 2 ? 0 : 5);
                file_release(f, true);
                killed_start = end;
                die(w, true);
                expect(w, "f", 'o', small);
                killed_start = NULL;
                die(w, true);
                expect(w, "f", 'o', small);
                cw_free(w);
        }
}

/* What was fsynced is written on, or over, and closed; the note that it is not what its operation carries any more is on the platter (a sync of the shared log is enough for that), what replaced it is not:
 * it is a file of its own. The fsynced bytes are what a power cut leaves. */
static void replaced_by_what_is_lost(bool over, bool on_server, bool killed) {
        struct cw *w = cw_new(256 * MIB, 1);
        static uint8_t p[300000];
        open_by_hand(w);
        save(w, "f", 'a', 100, false);
        assert_int_equal(cache_sync(w->cache), 0);
        if (on_server) {
                assert_true(cw_accept_all(w) > 0);
                assert_int_equal(cache_sync(w->cache), 0);
        }
        save(w, "f", 'b', 3000, true);
        struct node node;
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "f", 1, &node), 0);
        struct file *f = cw_file(w, node.ino, true, over);
        memset(p, 'd', sizeof p);
        assert_int_equal(write_at(f, over ? 0 : 3000, p, sizeof p, false, WAIT_MS), sizeof p);
        file_release(f, true);
        if (killed)
                killed_start = "tree.sync=fail:EIO";
        for (int i = 0; i < 2; i++) {
                die(w, true);
                expect(w, "f", 'b', over ? 0 : 3000); /* over: its first record, which empties the file, is in the shared log */
                killed_start = NULL;
        }
        cw_free(w);
}

static void test_replaced_by_what_is_lost(void **state) {
        for (unsigned i = 0; i < 8; i++)
                replaced_by_what_is_lost(i & 1, i & 2, i & 4);
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

/* The sync of a new generation fails: its row is marked all the same, so it is not believed after a power cut, and what it replaced is still there. half: the first half of it was synced. */
static void sync_fails(const char *how, bool again, bool over, bool half, size_t n) {
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        save(w, "f", 'o', n, false);
        assert_int_equal(cache_sync(w->cache), 0);
        const char *name = over ? ".f.tmp" : "f";
        if (half) {
                if (over)
                        (void)cw_create(w, INO_ROOT, name);
                struct node node;
                assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, name, strlen(name), &node), 0);
                static uint8_t p[400000];
                memset(p, 'n', sizeof p);
                assert_true(n <= sizeof p);
                struct file *f = cw_file(w, node.ino, true, true);
                assert_int_equal(write_at(f, 0, p, n / 2, false, WAIT_MS), n / 2);
                assert_int_equal(file_sync(f), 0);
                assert_int_equal(write_at(f, n / 2, p, n - n / 2, false, WAIT_MS), n - n / 2);
                file_release(f, true);
        } else {
                save(w, name, 'n', n, false);
        }
        if (over)
                mv(w, name, "f");
        assert_int_equal(failpoint_arm(how), 0);
        assert_true(cache_sync(w->cache) < 0);
        if (again) /* for ever */
                assert_true(cache_sync(w->cache) < 0);
        else
                assert_int_equal(failpoint_arm("stage.sync=off;stage.sync.log=off"), 0);
        for (int i = 0; i < 3; i++)
                (void)!cache_sync(w->cache); /* what was spoilt is not tried again */
        assert_int_equal(failpoint_arm("stage.sync=off;stage.sync.log=off;stage.mark=off;segment.sync=off"), 0);
        die(w, true);
        if (strstr(how, "log")) /* the bytes are there, and the record that says so, too: here all that was written is */
                expect(w, "f", 'n', n);
        else if (over)
                expect(w, "f", 'o', n); /* all of it or nothing */
        else
                expect(w, "f", 'n', half ? n / 2 : 0); /* a state that it had: when it was opened it was emptied */
        cw_free(w);
}

static void test_a_sync_that_failed(void **state) {
        for (int i = 0; i < 4; i++) {
                sync_fails("stage.sync=fail:EIO", false, i & 1, i & 2, 300000);
                sync_fails("stage.sync.log=fail:EIO", false, i & 1, i & 2, 300000);
                sync_fails("stage.mark=fail:ENOSPC", true, i & 1, i & 2, 300000);
        }
}

/* ---- two who sync at once: the kernel tells a failure to one of them ---- */

static uint64_t hits_of;
static const char *hits_name;
static void count_hits(void *arg, const char *name, uint64_t hits) {
        if (strcmp(name, hits_name) == 0)
                hits_of = MAX(hits_of, hits);
}
static void wait_hits(const char *name, uint64_t n) {
        for (int64_t end = now_ms() + WAIT_MS;;) {
                hits_name = name;
                hits_of = 0;
                failpoint_each(count_hits, NULL);
                if (hits_of >= n)
                        return;
                assert_true(now_ms() < end);
                (void)sched_yield();
        }
}

struct syncer { pthread_t thread; struct cw *w; struct stage *st; int result; };
static void *sync_it(void *arg) {
        struct syncer *s = arg;
        s->result = s->st ? stage_sync(s->st) : stages_sync_dirty(s->w->cache->stages);
        return NULL;
}
static void begin_sync(struct syncer *s, struct cw *w, struct stage *st) {
        s->w = w;
        s->st = st;
        assert_int_equal(pthread_create(&s->thread, NULL, sync_it, s), 0);
}
static int end_sync(struct syncer *s) {
        assert_int_equal(pthread_join(s->thread, NULL), 0);
        return s->result;
}
static struct stage *stage_of(struct cw *w, const char *name) {
        struct node node;
        struct stage *st;
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, name, strlen(name), &node), 0);
        assert_int_equal(stage_get(w->cache->stages, node.gen, &st), 0);
        return st;
}

static void test_two_who_sync(void **state) {
        struct syncer all, one, two;
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        save(w, "small", 's', 3000, false);
        save(w, "large", 'l', 300000, false);
        struct stage *small = stage_of(w, "small");
        assert_int_equal(failpoint_arm("segment.sync=error:EIO;stage.sync=hold"), 0);
        begin_sync(&all, w, NULL); /* has heard of the segment, and is held before it can say so */
        wait_hits("stage.sync", 1);
        begin_sync(&one, w, small);
        assert_int_equal(end_sync(&one), -EIO);
        assert_int_equal(failpoint_arm("segment.sync=off;stage.sync=off"), 0);
        assert_int_equal(end_sync(&all), -EIO);
        save(w, "next", 'x', 3000, false); /* not in a segment that failed */
        struct stage *next = stage_of(w, "next");
        assert_int_equal(stage_sync(next), 0);
        assert_int_equal(stage_sync(small), -EIO);
        stage_put(next);
        stage_put(small);

        save(w, "a", 'a', 300000, false);
        save(w, "b", 'b', 300000, false);
        struct stage *a = stage_of(w, "a"), *b = stage_of(w, "b");
        assert_int_equal(failpoint_arm("stage.sync=error:EIO;stage.sync.log=hold"), 0);
        begin_sync(&all, w, NULL); /* one of the two failed, it is held with the other one's log */
        wait_hits("stage.sync.log", 1);
        begin_sync(&one, w, a);
        begin_sync(&two, w, b);
        wait_hits("stage.sync", 3); /* the one that failed: the other one waits for its turn */
        assert_int_equal(failpoint_arm("stage.sync=off;stage.sync.log=off"), 0);
        assert_int_equal(end_sync(&all), -EIO);
        int ra = end_sync(&one), rb = end_sync(&two);
        assert_true((ra == -EIO && rb == 0) || (ra == 0 && rb == -EIO));
        assert_int_equal(stage_sync(a), ra);
        assert_int_equal(stage_sync(b), rb);
        stage_put(a);
        stage_put(b);
        cw_free(w);
}

/* ---- a closed file whose sync failed is written once more, and sent ---- */

static int chunk(struct stage *st) {
        const struct blocklist *list;
        struct content content;
        return stage_chunk(st, now_ms() + WAIT_MS, &list, &content);
}
static int64_t written_ns(int fd) {
        struct stat st;
        assert_int_equal(fstat(fd, &st), 0);
        return st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;
}

static void sent_after_all(const char *how, size_t n, bool killed) {
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        save(w, "f", 'o', n, false);
        assert_int_equal(cache_sync(w->cache), 0);
        save(w, "f", 'n', n + 5000, false);
        assert_int_equal(failpoint_arm(how), 0);
        assert_true(cache_sync(w->cache) < 0);
        struct stage *st = stage_of(w, "f");
        bool large = st->large;
        assert_int_equal(large, n > SMALL_STAGE_BYTES);
        if (large) /* the disk goes on refusing it */
                assert_int_equal(chunk(st), -EIO);
        assert_int_equal(failpoint_arm("stage.sync=off;stage.sync.log=off;segment.sync=off"), 0);
        (void)!cache_sync(w->cache); /* by itself nobody asks again */
        assert_true(st->untrusted);
        if (killed) {
                stage_put(st);
                die(w, false);
                st = stage_of(w, "f");
                assert_true(st->untrusted);
        }
        int64_t before = large ? written_ns(st->fd) : 0;
        if (large) { /* a bit that flips: nothing is given a fresh sum */
                uint8_t b;
                assert_int_equal(pread_full(st->fd, &b, 1, 2 * 4096 + 9), 0);
                b ^= 4;
                assert_int_equal(pwrite_full(st->fd, &b, 1, 2 * 4096 + 9), 0);
                assert_int_equal(chunk(st), -EIO);
                assert_int_equal(chunk(st), -EIO);
                b ^= 4;
                assert_int_equal(pwrite_full(st->fd, &b, 1, 2 * 4096 + 9), 0);
                before = written_ns(st->fd);
        }
        assert_int_equal(chunk(st), 0);
        assert_true(st->large && !st->untrusted && !st->error && st->synced >= st->content_changes);
        assert_true(written_ns(st->fd) > before); /* not only synced */
        stage_put(st);
        assert_int_equal(cache_sync(w->cache), 0);
        die(w, true);
        expect(w, "f", 'n', n + 5000);
        assert_true(cw_accept_all(w) > 0);
        assert_int_equal(cache_sync(w->cache), 0);
        expect(w, "f", 'n', n + 5000);
        cw_free(w);
}

static void test_sent_after_all(void **state) {
        for (int i = 0; i < 2; i++) {
                sent_after_all("segment.sync=error:EIO", 3000, i);
                sent_after_all("stage.sync=fail:EIO", 300000, i);
                sent_after_all("stage.sync.log=fail:EIO", 3000000, i);
        }
}

/* ---- made behind the mark ---- */

static bool in_lost_found(struct cw *w, const char *name, char c, size_t n) {
        char path[200];
        (void)snprintf(path, sizeof path, "%s/lost+found", w->dir);
        DIR *d = opendir(path);
        bool found = false;
        for (struct dirent *e; d && !found && (e = readdir(d));) {
                const char *at = strrchr(e->d_name, '-');
                if (!at || strcmp(at + 1, name) != 0)
                        continue;
                _cleanup_buf_ struct buf b = BUF_INIT(1u << 20);
                char full[500];
                (void)snprintf(full, sizeof full, "%s/%s", path, e->d_name);
                assert_int_equal(file_load(full, 1u << 20, &b), 0);
                found = b.bytes == n;
                for (size_t i = 0; found && i < n; i++)
                        found = (char)b.data[i] == c;
        }
        if (d)
                (void)closedir(d);
        return found;
}

static void test_behind_the_mark(void **state) {
        for (int i = 0; i < 2; i++) {
                struct cw *w = cw_new(256 * MIB, 1);
                size_t n = i ? 300000 : 3000;
                open_by_hand(w);
                save(w, "kept", 'k', n, true);
                save(w, "new", 'n', n, false);
                assert_int_equal(stages_sync_dirty(w->cache->stages), 0); /* its bytes are on the platter, its row is not */
                die(w, true);
                expect(w, "kept", 'k', n);
                expect(w, "new", 0, 0);
                assert_true(in_lost_found(w, "new", 'n', n));
                assert_false(in_lost_found(w, "kept", 'k', n));
                cw_free(w);
        }
}

/* Deleted by the server while it was open here, and what was written since is fsynced: the start makes it again, under its name. */
static void made_again(size_t n) {
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        save(w, "f", 'o', n, false);
        save(w, "g", 'g', n, true);
        assert_true(cw_accept_all(w) > 0);
        assert_int_equal(cache_sync(w->cache), 0);
        struct node node;
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "f", 1, &node), 0);
        static uint8_t p[400000];
        memset(p, 'n', sizeof p);
        struct file *f = cw_file(w, node.ino, true, false);
        assert_int_equal(write_at(f, 0, p, n, false, WAIT_MS), n);
        cw_deleted(w, &node.id);
        assert_int_equal(file_sync(f), 0);
        assert_int_equal(tree_sync(w->cache->tree), 0);
        char then[200];
        cw_copy(w, "", then);
        file_release(f, true);
        start_with(w, then, true);
        expect(w, "f", 'n', n);
        expect(w, "g", 'g', n);
        assert_false(in_lost_found(w, "f", 'n', n));
        cw_free(w);
}

static void test_made_again(void **state) {
        made_again(3000);
        made_again(300000);
}

/* A start after a power cut that is killed itself: the next one comes to the same result. */
static void test_killed_starts(void **state) {
        static const char *const places[] = { "recover.match=error:EIO", "recover.match=error:EIO@2", "recover.flush=error:EIO", "tree.sync=error:EIO" };
        for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
                const unsigned before = killed_starts;
                killed_start = places[i];
                for (int k = 0; k < 4; k++) {
                        save_over(k & 1 ? 300000 : 3000, false, k & 2, true);
                        sync_fails("stage.sync=fail:EIO", false, k & 1, k & 2, 300000);
                }
                test_made_again(state);
                test_behind_the_mark(state);
                killed_start = NULL;
                assert_true(killed_starts >= before + 2);
        }
}

/* No room for lost+found/ (here: what has its name is a file): it stays, over a start too, and comes there when there is room. */
static void no_room_for_it(size_t n, bool again) {
        struct cw *w = cw_new(256 * MIB, 1);
        struct cache_totals t;
        char path[200];
        (void)snprintf(path, sizeof path, "%s/lost+found", w->dir);
        open_by_hand(w);
        save(w, "kept", 'k', n, true);
        save(w, "new", 'n', n, false);
        save(w, "newer", 'm', n + 1, false);
        assert_int_equal(stages_sync_dirty(w->cache->stages), 0);
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        (void)close(fd);
        die(w, true);
        for (int i = 0; i < 3; i++) {
                assert_int_equal(cache_totals(w->cache, &t), 0);
                assert_int_equal(t.rescues, 2);
                for (int k = 0; k < 20; k++) /* a small one's segment is not used again */
                        save(w, "busy", 'b', 60000, true);
                if (again)
                        die(w, false);
        }
        expect(w, "new", 0, 0);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(cache_sync(w->cache), 0);
        assert_true(in_lost_found(w, "new", 'n', n));
        assert_true(in_lost_found(w, "newer", 'm', n + 1));
        assert_int_equal(cache_totals(w->cache, &t), 0);
        assert_int_equal(t.rescues, 0);
        remove_tree(path);
        die(w, false);
        assert_false(in_lost_found(w, "new", 'n', n)); /* not twice */
        expect(w, "kept", 'k', n);
        cw_free(w);
}

static void test_no_room_for_it(void **state) {
        for (int i = 0; i < 4; i++)
                no_room_for_it(i & 1 ? 300000 : 3000, i & 2);
}

/* An ino that was given behind the last mark, and a second cut that takes back that its stage had been left behind: unless the next ino is raised above those that stages name, it is given again and the
 * old stage is taken for the content of another file. */
static void test_two_cuts(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        open_by_hand(w);
        (void)cw_create(w, INO_ROOT, "first");
        w->cache->tree->numbers[NUMBER_INO].next = w->cache->tree->numbers[NUMBER_INO].limit; /* some 4,000 files later: the mark knows nothing of the next ino */
        assert_int_equal(cache_sync(w->cache), 0);
        save(w, "x", 'x', 3000, false);
        struct node x, n;
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "x", 1, &x), 0);
        assert_int_equal(stages_sync_dirty(w->cache->stages), 0); /* the first half of a round: the bytes, not the row */
        char cmd[1000], copy[200], stages[200], earlier[200];
        cw_copy(w, "/stages", stages);
        (void)snprintf(earlier, sizeof earlier, "%s.stages", w->dir); /* where no start looks */
        assert_true(tmpdir_adopt(earlier));
        assert_int_equal(rename(stages, earlier), 0);
        die(w, true);
        expect(w, "x", 0, 0);
        struct node y = cw_create(w, INO_ROOT, "y");
        assert_int_not_equal(y.ino, x.ino);
        assert_int_equal(tree_sync(w->cache->tree), 0);
        cw_copy(w, "", copy);
        (void)snprintf(cmd, sizeof cmd, "rm -r %s/stages && mv %s %s/stages", copy, earlier, copy); /* the second cut: what was written to the stages since is gone */
        assert_int_equal(system(cmd), 0);
        cw_become(w, copy, true);
        open_by_hand(w);
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "y", 1, &n), 0);
        assert_int_equal(n.ino, y.ino);
        assert_int_equal(n.content.size, 0);
        assert_int_equal(n.gen, 0);
        cw_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_save_over), cmocka_unit_test(test_fsynced), cmocka_unit_test(test_the_log_is_back), cmocka_unit_test(test_a_sync_that_failed),
                                            cmocka_unit_test(test_two_who_sync), cmocka_unit_test(test_sent_after_all), cmocka_unit_test(test_behind_the_mark), cmocka_unit_test(test_no_room_for_it), cmocka_unit_test(test_made_again), cmocka_unit_test(test_killed_starts), cmocka_unit_test(test_two_cuts), cmocka_unit_test(test_on_top_of_what_is_lost), cmocka_unit_test(test_replaced_by_what_is_lost) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
