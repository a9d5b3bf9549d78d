/* SPDX-License-Identifier: Apache-2.0 */
/* test_limit.c: the hard limit, with du running all the time: a stream through a small cache, turnover of small contents, a random walk compared with a model, a file
 * system that is really full. TARN_TEST_SCALE multiplies limit and stream (4: 256 MiB, 2 GiB). */
#include "world.h"
#include "../tmpdir.h"

#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>

static unsigned scale(void) {
        const char *text = getenv("TARN_TEST_SCALE");
        return text ? (unsigned)strtoul(text, NULL, 10) : 1;
}

/* Stops the whole process again and again and runs du over the stopped moment: a walk beside running threads could count what moves twice. A child of its own; it
 * ends when its pipe does. */
struct watch_report { unsigned rounds; uint64_t max, over_bytes, limit; };
struct watcher { pid_t pid; int stop_fd; struct watch_report *shared; };

static bool all_stopped(pid_t pid) {
        char path[64], text[512];
        (void)snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
        DIR *d = opendir(path);
        bool stopped = d != NULL;
        for (struct dirent *e; stopped && (e = readdir(d));) {
                if (e->d_name[0] == '.')
                        continue;
                (void)snprintf(path, sizeof path, "/proc/%d/task/%.16s/stat", (int)pid, e->d_name);
                int fd = open(path, O_RDONLY | O_CLOEXEC);
                ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
                if (fd >= 0)
                        (void)close(fd);
                text[MAX(n, 0)] = '\0';
                const char *p = strrchr(text, ')');
                stopped = p && (p[2] == 'T' || p[2] == 't');
        }
        if (d)
                (void)closedir(d);
        return stopped;
}

static void watch(struct watcher *w, const char *dir, uint64_t limit) {
        int fds[2];
        *w = (struct watcher){ .shared = mmap(NULL, sizeof *w->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) };
        assert_true(w->shared != MAP_FAILED);
        w->shared->limit = limit;
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        pid_t parent = getpid();
        w->pid = fork();
        assert_true(w->pid >= 0);
        if (w->pid == 0) {
                (void)close(fds[1]);
                for (;;) {
                        struct pollfd pipe_end = { .fd = fds[0], .events = POLLIN };
                        if (poll(&pipe_end, 1, 2) != 0)
                                _exit(0);
                        if (kill(parent, SIGSTOP) < 0)
                                _exit(1);
                        for (int64_t until = now_ms() + WAIT_MS; !all_stopped(parent) && now_ms() < until;)
                                (void)sched_yield();
                        uint64_t bytes = du(dir);
                        w->shared->max = MAX(w->shared->max, bytes);
                        if (bytes > w->shared->limit)
                                w->shared->over_bytes = MAX(w->shared->over_bytes, bytes - w->shared->limit);
                        w->shared->rounds++;
                        if (kill(parent, SIGCONT) < 0)
                                _exit(1);
                }
        }
        (void)close(fds[0]);
        w->stop_fd = fds[1];
}

static void watch_limit(struct watcher *w, uint64_t limit) {
        *(volatile uint64_t *)&w->shared->limit = limit;
}

static void watch_end(struct watcher *w) {
        int status;
        (void)close(w->stop_fd);
        assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
        assert_int_equal(status, 0);
        print_message("du: %u moments, at most %llu KiB (limit at the end: %llu KiB)\n", w->shared->rounds, (unsigned long long)w->shared->max / 1024, (unsigned long long)w->shared->limit / 1024);
        assert_true(w->shared->rounds > 10);
        assert_int_equal(w->shared->over_bytes, 0);
        (void)munmap(w->shared, sizeof *w->shared);
}

static void test_stream_through_a_small_cache(void **state) {
        uint64_t limit = 64ull * MIB * scale(), stream = 512ull * MIB * scale(), streamed = 0;
        struct world *w = world_new(limit);
        struct watcher watcher;
        struct known *k[4];
        for (size_t i = 0; i < ARRAY_SIZE(k); i++)
                k[i] = know_random(w, limit / 2 + i, 0); /* together twice the cache: nothing is there when it is read again */
        watch(&watcher, w->dir, limit);
        int64_t start = now_ms();
        for (size_t i = 0; streamed < stream; i = (i + 1) % ARRAY_SIZE(k)) {
                struct blob *blob = get_blob(w, k[i]);
                for (uint64_t off = 0; off < k[i]->n; off += MIB) {
                        ssize_t r = read_compare(blob, k[i], off, MIB);
                        assert_true(r > 0);
                        streamed += (uint64_t)r;
                }
                blob_put(blob);
        }
        int64_t took = now_ms() - start;
        watch_end(&watcher);
        print_message("streamed %llu MiB through %llu MiB in %lld ms, %llu blocks evicted, %llu transactions, %llu files refilled\n", (unsigned long long)streamed / MIB,
                      (unsigned long long)limit / MIB, (long long)took, (unsigned long long)counter_get(&w->counters, cache_evicted_blocks),
                      (unsigned long long)counter_get(&w->counters, sql_transactions), (unsigned long long)counter_get(&w->counters, cache_refills));
        struct blobs_totals t;
        blobs_totals(w->blobs, &t);
        assert_true(t.bytes > limit / 2); /* it is used, too */
        assert_int_equal(counter_get(&w->counters, corruptions_found), 0);
        world_free(w);
}

static unsigned segments(struct world *w) {
        for (unsigned n = 0;; n++) {
                char path[256];
                (void)snprintf(path, sizeof path, "%s/pack/%05x.seg", w->dir, n);
                if (access(path, F_OK) < 0)
                        return n;
        }
}

static void test_small_contents_reuse_their_places(void **state) {
        struct world *w = world_new(32 * MIB);
        struct watcher watcher;
        static struct known *k[900];
        uint64_t total = 0;
        for (size_t i = 0; i < ARRAY_SIZE(k); i++) {
                k[i] = know_random(w, 1 + rng_below(&w->rng.rng, rng_below(&w->rng.rng, 10) == 0 ? 600 * KIB : 60 * KIB), 0);
                total += k[i]->n;
        }
        assert_true(total > 48 * MIB);
        watch(&watcher, w->dir, 32 * MIB);
        unsigned after_two = 0;
        for (int turn = 0; turn < 10; turn++) {
                for (size_t i = 0; i < ARRAY_SIZE(k); i++) {
                        struct blob *blob = get_blob(w, k[i]);
                        assert_int_equal(read_compare(blob, k[i], 0, k[i]->n), k[i]->n);
                        blob_put(blob);
                }
                if (turn == 1)
                        after_two = segments(w);
        }
        watch_end(&watcher);
        print_message("10 turnovers: %u segments, %llu places refilled, %llu blocks evicted\n", segments(w), (unsigned long long)counter_get(&w->counters, cache_refills),
                      (unsigned long long)counter_get(&w->counters, cache_evicted_blocks));
        assert_int_equal(segments(w), after_two);
        assert_true(counter_get(&w->counters, cache_refills) > 5000);
        world_free(w);
}

static void test_random_walk(void **state) {
        uint64_t seed = test_seed(), limit = 24 * MIB, dirty = 0;
        struct world *w = world_new_in("/tmp", limit, seed);
        struct rng *rng = &w->rng.rng;
        struct watcher watcher;
        struct known *k[60];
        for (size_t i = 0; i < ARRAY_SIZE(k); i++) {
                static const size_t most[] = { 3 * 4096, 200 * KIB, 2 * MIB, 8 * MIB };
                k[i] = know_random(w, rng_below(rng, most[rng_below(rng, 4)] + 1), rng_below(rng, 5) == 0 ? 1 + rng_below(rng, 20000) : 0);
        }
        watch(&watcher, w->dir, limit);
        int64_t until = now_ms() + 3000 * scale();
        int steps = 0;
        for (; now_ms() < until; steps++) {
                struct known *one = k[rng_below(rng, ARRAY_SIZE(k))];
                uint64_t what = rng_below(rng, 1000);
                if (what < 940) {
                        struct blob *blob = get_blob(w, one);
                        uint64_t off = rng_below(rng, one->n + 2), n = 1 + rng_below(rng, rng_below(rng, 10) == 0 ? 4 * MIB : 150 * KIB);
                        for (uint64_t reads = 1 + rng_below(rng, 4); reads > 0; reads--, off += n)
                                assert_true(read_compare(blob, one, off, n) >= 0);
                        blob_put(blob);
                } else if (what < 960) {
                        struct blob *blob = get_blob(w, one);
                        (void)(blob_prefetch(blob, rng_below(rng, one->n + 1), rng_below(rng, 3 * MIB)) < 0);
                        blob_put(blob);
                } else if (what < 970) {
                        blobs_drop_hint(w->blobs, &one->content);
                } else if (what < 985) {
                        uint64_t n = rng_below(rng, 3 * MIB);
                        if (blobs_charge(w->blobs, n) == 0)
                                dirty += n;
                        if (dirty > 6 * MIB) {
                                blobs_discharge(w->blobs, dirty);
                                dirty = 0;
                        }
                } else if (what < 989) {
                        assert_int_equal(blobs_evict_all(w->blobs), 0);
                } else if (what < 993) {
                        uint64_t next = (20 + rng_below(rng, 20)) * MIB;
                        if (next > limit)
                                watch_limit(&watcher, next);
                        if (blobs_set_limit(w->blobs, next) == 0 || next > limit)
                                watch_limit(&watcher, next);
                        else
                                assert_int_equal(blobs_set_limit(w->blobs, next = limit), 0);
                        limit = next;
                } else {
                        WAIT_FOR(w, w->n_queue == 0);
                        blobs_discharge(w->blobs, dirty);
                        dirty = 0;
                        world_close(w);
                        world_open(w, limit, rng_below(rng, 2));
                }
        }
        watch_end(&watcher);
        print_message("%d steps, %zu fetches, %llu hits, %llu misses, %llu evicted, %llu reused\n", steps, w->fetches, (unsigned long long)counter_get(&w->counters, cache_hits),
                      (unsigned long long)counter_get(&w->counters, cache_misses), (unsigned long long)counter_get(&w->counters, cache_evicted_blocks),
                      (unsigned long long)counter_get(&w->counters, blocks_deduplicated));
        assert_int_equal(counter_get(&w->counters, corruptions_found), 0);
        blobs_discharge(w->blobs, dirty);
        /* Nothing leaked: emptied, the account says what du says. */
        WAIT_FOR(w, w->n_queue == 0);
        assert_int_equal(blobs_evict_all(w->blobs), 0);
        struct blobs_totals t;
        blobs_totals(w->blobs, &t);
        assert_int_equal(t.blocks, 0);
        assert_int_equal(t.blobs, 0);
        assert_int_equal(t.dirty_bytes, 0);
        assert_true(t.bytes < 4 * MIB);
        assert_true(du(w->dir) < 4 * MIB);
        world_free(w);
}

/* The limit is larger than the file system: ENOSPC from the kernel at any write. Reads are right all the same. */
static void test_full_file_system(void **state) {
        char dir[] = "/tmp/tarn-full-XXXXXX";
        assert_non_null(tmpdir_new(dir));
        if (mount("tarn-test", dir, "tmpfs", 0, "size=20m") < 0) {
                (void)rmdir(dir);
                print_message("no tmpfs here: %s\n", strerror(errno));
                skip();
        }
        struct world *w = world_new_in(dir, 200 * MIB, 5);
        struct known *k[3] = { know_random(w, 15 * MIB, 0), know_random(w, 12 * MIB, 0), know_random(w, 900 * KIB, 0) };
        for (int round = 0; round < 6; round++)
                for (size_t i = 0; i < ARRAY_SIZE(k); i++) {
                        struct blob *blob = get_blob(w, k[i]);
                        for (uint64_t off = 0; off < k[i]->n; off += 300 * KIB)
                                assert_true(read_compare(blob, k[i], off, 300 * KIB) > 0);
                        blob_put(blob);
                }
        /* Somebody else takes all the rest. */
        char path[256];
        (void)snprintf(path, sizeof path, "%s/other", dir);
        int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        static uint8_t zeros[64 * KIB];
        while (write(fd, zeros, sizeof zeros) > 0)
                ;
        assert_int_equal(close(fd), 0);
        for (size_t i = 0; i < ARRAY_SIZE(k); i++) {
                struct blob *blob = get_blob(w, k[i]);
                for (uint64_t off = 0; off < k[i]->n; off += MIB)
                        assert_true(read_compare(blob, k[i], off, MIB) > 0);
                blob_put(blob);
        }
        assert_int_equal(blobs_evict_all(w->blobs), 0); /* works at zero free bytes */
        struct blobs_totals t;
        blobs_totals(w->blobs, &t);
        assert_int_equal(t.blocks, 0);
        assert_int_equal(counter_get(&w->counters, corruptions_found), 0);
        world_free(w);
        /* A floor keeps the file system from being filled. */
        (void)unlink(path);
        w = world_new_floor(dir, 200 * MIB, 6, 8 * MIB);
        struct known *one = know_random(w, 18 * MIB, 0);
        struct blob *blob = get_blob(w, one);
        for (uint64_t off = 0; off < one->n; off += MIB) {
                assert_true(read_compare(blob, one, off, MIB) > 0);
                uint64_t left;
                fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                assert_int_equal(disk_free(fd, &left), 0);
                assert_int_equal(close(fd), 0);
                assert_true(left >= 4 * MIB); /* measured at intervals of bytes, so not to the byte */
        }
        blob_put(blob);
        world_free(w);
        assert_int_equal(umount(dir), 0);
        assert_int_equal(rmdir(dir), 0);
}

static void test_kept_blocks_stay(void **state) {
        struct world *w = world_new(64 * MIB);
        struct known *kept = know_random(w, 3 * MIB, 512 * KIB), *other = know_random(w, 3 * MIB, 512 * KIB);
        uint64_t root;
        memcpy(&root, kept->content.root.b, sizeof root);
        for (int i = 0; i < 2; i++) {
                struct blob *blob = get_blob(w, i ? other : kept);
                assert_int_equal(read_compare(blob, i ? other : kept, 0, 3 * MIB), 3 * MIB);
                blob_put(blob);
        }
        assert_int_equal(blobs_keep(w->blobs, &root, 1), 0);
        assert_int_equal(blobs_evict_all(w->blobs), 0);
        struct blobs_totals t;
        blobs_totals(w->blobs, &t);
        assert_int_equal(t.blocks, kept->list.n);
        assert_int_equal(blobs_keep(w->blobs, NULL, 0), 0);
        assert_int_equal(blobs_evict_all(w->blobs), 0);
        blobs_totals(w->blobs, &t);
        assert_int_equal(t.blocks, 0);
        world_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_stream_through_a_small_cache),
                cmocka_unit_test(test_small_contents_reuse_their_places),
                cmocka_unit_test(test_random_walk),
                cmocka_unit_test(test_kept_blocks_stay),
                cmocka_unit_test(test_full_file_system),
        };
        return cmocka_run_group_tests_name("blob limit", tests, NULL, NULL);
}
