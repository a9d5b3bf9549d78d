/* SPDX-License-Identifier: Apache-2.0 */
/* test_damage.c: what happens to the disk between and under us: reopen, kill -9, a lost or damaged index, flipped bits in every kind of file. A reader never sees a wrong
 * byte, what is clean is healed by fetching, and what can be kept is kept. */
#include "world.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#define N_KNOWN 12

static void know_some(struct world *w, struct known *k[N_KNOWN]) {
        static const size_t some[N_KNOWN] = { 1, 3000, 4096, 20000, 150 * KIB, 600 * KIB, 800 * KIB, MIB, 2 * MIB + 5, 3 * MIB, 5 * MIB + 123, 300 };
        for (size_t i = 0; i < N_KNOWN; i++)
                k[i] = know_random(w, some[i], i == 9 ? 30000 : 0);
}

static void read_all(struct world *w, struct known *k[N_KNOWN]) {
        for (size_t i = 0; i < N_KNOWN; i++) {
                struct blob *blob = get_blob(w, k[i]);
                assert_int_equal(read_compare(blob, k[i], 0, k[i]->n), k[i]->n);
                blob_put(blob);
        }
}

/* Every read is right or an error that may be; returns how many were right. */
static size_t read_all_offline(struct world *w, struct known *k[N_KNOWN], size_t *ret_reads) {
        size_t good = 0, reads = 0;
        set_bool(w, &w->offline, true);
        for (size_t i = 0; i < N_KNOWN; i++) {
                struct blob *blob = get_blob(w, k[i]);
                for (uint64_t off = 0; off < k[i]->n; off += 64 * KIB, reads++) {
                        ssize_t r = read_compare(blob, k[i], off, 64 * KIB);
                        assert_true(r > 0 || r == -EHOSTDOWN || r == -EIO);
                        good += r > 0;
                }
                blob_put(blob);
        }
        set_bool(w, &w->offline, false);
        *ret_reads = reads;
        return good;
}

static bool all_there(struct world *w, struct known *k[N_KNOWN]) {
        size_t reads, good = read_all_offline(w, k, &reads);
        return good == reads;
}

static void reopen(struct world *w, bool new_boot) {
        WAIT_FOR(w, w->n_queue == 0);
        world_close(w);
        world_open(w, 64 * MIB, new_boot);
}

static void test_reopen_is_warm(void **state) {
        struct world *w = world_new(64 * MIB);
        struct known *k[N_KNOWN];
        know_some(w, k);
        read_all(w, k);
        struct blobs_totals before, after;
        blobs_totals(w->blobs, &before);
        for (int boot = 0; boot < 2; boot++) {
                reopen(w, boot);
                blobs_totals(w->blobs, &after);
                assert_int_equal(after.blocks, before.blocks);
                assert_int_equal(after.blobs, before.blobs);
                assert_true(all_there(w, k));
        }
        assert_int_equal(counter_get(&w->counters, corruptions_found), 0);
        world_free(w);
}

/* The order is restored: what was used last goes last. */
static void test_reopen_keeps_the_order(void **state) {
        struct world *w = world_new(64 * MIB);
        struct known *k[N_KNOWN];
        know_some(w, k);
        read_all(w, k);
        struct blob *blob = get_blob(w, k[8]);
        for (int i = 0; i < 3; i++) /* from end to end, so that each visit is one */
                for (uint64_t off = 0; off < k[8]->n; off += 64 * KIB)
                        assert_true(read_compare(blob, k[8], off, 64 * KIB) > 0);
        blob_put(blob);
        reopen(w, false);
        assert_int_equal(blobs_charge(w->blobs, 52 * MIB), 0); /* 3 MiB are left */
        set_bool(w, &w->offline, true);
        blob = get_blob(w, k[8]);
        assert_int_equal(read_compare(blob, k[8], 0, k[8]->n), k[8]->n);
        blob_put(blob);
        blob = get_blob(w, k[7]);
        assert_int_equal(read_compare(blob, k[7], 0, 10), -EHOSTDOWN);
        blob_put(blob);
        blobs_discharge(w->blobs, 52 * MIB);
        world_free(w);
}

enum { FLIP_DATA, FLIP_SUMS, FLIP_PACK, FLIP_INDEX, FLIP_KINDS };

static bool flip_kind_matches(int kind, const char *path) {
        bool sums = strstr(path, ".sums"), blob = strstr(path, "/blob/"), pack = strstr(path, "/pack/"), db = strstr(path, "blobs.db");
        return kind == FLIP_DATA ? blob && !sums : kind == FLIP_SUMS ? blob && sums : kind == FLIP_PACK ? pack : db;
}

/* Flips bits where there is data; returns how many. */
static size_t flip_bits(struct world *w, struct rng *rng, int kind, size_t for_each) {
        char *const paths[] = { w->dir, NULL };
        size_t flips = 0;
        FTS *fts = fts_open(paths, FTS_PHYSICAL, NULL);
        for (FTSENT *e; (e = fts_read(fts));) {
                if (e->fts_info != FTS_F || !flip_kind_matches(kind, e->fts_path))
                        continue;
                int fd = open(e->fts_accpath, O_RDWR | O_CLOEXEC);
                assert_true(fd >= 0);
                for (size_t i = 0; i < for_each; i++) {
                        off_t at = lseek(fd, (off_t)rng_below(rng, (uint64_t)e->fts_statp->st_size + 1), SEEK_DATA);
                        uint8_t byte;
                        if (at < 0)
                                at = lseek(fd, 0, SEEK_DATA);
                        if (at < 0)
                                break;
                        off_t end = lseek(fd, at, SEEK_HOLE);
                        at += (off_t)rng_below(rng, (uint64_t)(end - at));
                        assert_int_equal(pread_full(fd, &byte, 1, (uint64_t)at), 0);
                        byte ^= (uint8_t)(1u << rng_below(rng, 8));
                        assert_int_equal(pwrite_full(fd, &byte, 1, (uint64_t)at), 0);
                        flips++;
                }
                assert_int_equal(close(fd), 0);
        }
        (void)fts_close(fts);
        return flips;
}

static void test_flipped_bits_never_reach_a_reader(void **state) {
        uint64_t seed = test_seed();
        struct world *w = world_new_in("/tmp", 64 * MIB, seed);
        struct rng *rng = &w->rng.rng;
        struct known *k[N_KNOWN];
        know_some(w, k);
        for (int round = 0; round < 24; round++) {
                int kind = round % FLIP_KINDS;
                size_t reads;
                read_all(w, k);
                bool closed = kind == FLIP_INDEX || rng_below(rng, 2);
                WAIT_FOR(w, w->n_queue == 0);
                if (closed)
                        world_close(w);
                size_t flips = flip_bits(w, rng, kind, 1 + rng_below(rng, 5));
                assert_true(flips > 0);
                if (closed)
                        world_open(w, 64 * MIB, rng_below(rng, 2));
                uint64_t found = counter_get(&w->counters, corruptions_found);
                size_t good = read_all_offline(w, k, &reads);
                if (kind == FLIP_DATA) {
                        assert_true(good < reads); /* every flip in data is seen */
                        assert_true(counter_get(&w->counters, corruptions_found) > found);
                }
                read_all(w, k); /* healed */
                assert_true(all_there(w, k));
        }
        print_message("found %llu, healed %llu\n", (unsigned long long)counter_get(&w->counters, corruptions_found), (unsigned long long)counter_get(&w->counters, corruptions_healed));
        assert_true(counter_get(&w->counters, corruptions_healed) > 0);
        world_free(w);
}

static void test_scrub_finds_and_drops(void **state) {
        struct world *w = world_new(64 * MIB);
        struct known *k[N_KNOWN];
        struct blobs_scrub s = { 0 };
        know_some(w, k);
        read_all(w, k);
        struct blobs_totals t;
        blobs_totals(w->blobs, &t);
        assert_int_equal(blobs_scrub(w->blobs, &s), 0);
        assert_int_equal(s.checked, t.blocks);
        assert_int_equal(s.bad, 0);
        assert_true(flip_bits(w, &w->rng.rng, FLIP_DATA, 1) > 0);
        assert_int_equal(blobs_scrub(w->blobs, &s), 0);
        assert_true(s.bad > 0 && s.healed == 0);
        struct blobs_totals after;
        blobs_totals(w->blobs, &after);
        assert_int_equal(after.blocks, t.blocks - s.bad);
        s = (struct blobs_scrub) { 0 };
        assert_int_equal(blobs_scrub(w->blobs, &s), 0);
        assert_int_equal(s.bad, 0);
        read_all(w, k);
        assert_true(flip_bits(w, &w->rng.rng, FLIP_DATA, 1) > 0);
        s = (struct blobs_scrub) { .heal_ms = WAIT_MS };
        assert_int_equal(blobs_scrub(w->blobs, &s), 0);
        assert_true(s.bad > 0 && s.healed == s.bad);
        blobs_totals(w->blobs, &after);
        assert_int_equal(after.blocks, t.blocks);
        _Atomic bool stop = true;
        s = (struct blobs_scrub) { .stop = &stop };
        assert_int_equal(blobs_scrub(w->blobs, &s), -ECANCELED);
        world_free(w);
}

/* Bytes and sums changed together, as a power cut could leave them (or somebody made them): only the hash tells. After a new boot it is asked first. */
/* A program that reads what is damaged here hears so when there is no server; a worker hears that there is no server, and comes again. */
static void test_damaged_and_offline(void **state) {
        struct world *w = world_new(64 * MIB);
        struct known *k = know_random(w, 200 * KIB, 0); /* one block */
        uint8_t *buf = malloc(k->n);
        assert_non_null(buf);
        for (int worker_first = 0; worker_first < 2; worker_first++) {
                struct blob *blob = get_blob(w, k);
                assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
                assert_true(flip_bits(w, &w->rng.rng, FLIP_PACK, 1) > 0);
                set_bool(w, &w->offline, true);
                for (int i = 0; i < 4; i++)
                        if ((i + worker_first) % 2)
                                assert_int_equal(blob_pread_exact(blob, 0, buf, k->n, now_ms() + WAIT_MS), -EHOSTDOWN);
                        else
                                assert_int_equal(read_compare(blob, k, 0, k->n), -EIO);
                set_bool(w, &w->offline, false);
                assert_int_equal(blob_pread_exact(blob, 0, buf, k->n, now_ms() + WAIT_MS), k->n);
                assert_memory_equal(buf, k->bytes, k->n);
                blob_put(blob);
        }
        free(buf);
        world_free(w);
}

static void test_new_boot_hashes_before_use(void **state) {
        struct world *w = world_new(64 * MIB);
        struct known *k = know_random(w, 2 * MIB, 128 * KIB);
        struct blob *blob = get_blob(w, k);
        assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
        blob_put(blob);
        world_close(w);
        char path[256];
        uint8_t piece[4096];
        uint64_t key, sum;
        memcpy(piece, k->bytes, sizeof piece);
        piece[17] ^= 4;
        memcpy(&key, k->list.refs[0].hash.b, sizeof key);
        sum = xxh3_64(piece, sizeof piece) ^ (key + UINT64_C(0x9e3779b97f4a7c15));
        (void)snprintf(path, sizeof path, "%s/blob/00000001", w->dir);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(pwrite_full(fd, piece, sizeof piece, 0), 0);
        assert_int_equal(close(fd), 0);
        (void)snprintf(path, sizeof path, "%s/blob/00000001.sums", w->dir);
        fd = open(path, O_RDWR | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(pwrite_full(fd, &sum, sizeof sum, 0), 0);
        assert_int_equal(close(fd), 0);
        set_bool(w, &w->offline, true);
        world_open(w, 64 * MIB, true);
        world_close(w);
        world_open(w, 64 * MIB, false); /* the doubt outlives a restart */
        blob = get_blob(w, k);
        assert_int_equal(read_compare(blob, k, 0, 4096), -EIO);
        assert_int_equal(read_compare(blob, k, 128 * KIB, k->n), k->n - 128 * KIB);
        set_bool(w, &w->offline, false);
        assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
        blob_put(blob);
        world_free(w);
}

static void test_lost_index(void **state) {
        for (int how = 0; how < 5; how++) {
                struct world *w = world_new(64 * MIB);
                struct known *k[N_KNOWN];
                size_t reads;
                know_some(w, k);
                read_all(w, k);
                WAIT_FOR(w, w->n_queue == 0);
                world_close(w);
                char path[256], aside[300];
                (void)snprintf(path, sizeof path, "%s/blobs.db", w->dir);
                (void)snprintf(aside, sizeof aside, "%s.damaged", path);
                static const char garbage[] = "this is not a database, it only has its name";
                if (how == 0) {
                        assert_int_equal(unlink(path), 0);
                } else if (how == 1) {
                        assert_int_equal(file_replace(path, garbage, sizeof garbage, 0600), 0);
                } else if (how == 2) {
                        assert_int_equal(truncate(path, 3 * 4096), 0);
                } else { /* 3: every page but the first is overwritten, 4: a schema of the future */
                        int fd = open(path, O_RDWR | O_CLOEXEC);
                        struct stat st;
                        uint8_t page[4096], version[4] = { 0, 0, 0, 99 };
                        assert_int_equal(fstat(fd, &st), 0);
                        memset(page, 0x5a, sizeof page);
                        for (off_t at = 4096; how == 3 && at < st.st_size; at += 4096)
                                assert_int_equal(pwrite_full(fd, page, sizeof page, (uint64_t)at), 0);
                        if (how == 4)
                                assert_int_equal(pwrite_full(fd, version, 4, 60), 0);
                        assert_int_equal(close(fd), 0);
                }
                world_open(w, 64 * MIB, false);
                assert_int_equal(access(aside, F_OK), how == 0 ? -1 : 0);
                struct blobs_totals t;
                blobs_totals(w->blobs, &t);
                assert_int_equal(t.blocks, 0);
                assert_int_equal(read_all_offline(w, k, &reads), 0);
                (void)unlink(aside);
                /* The files are reclaimed: nothing but empty ones, and pages that are known to be free. */
                assert_int_equal(blobs_evict_all(w->blobs), 0);
                assert_true(du(w->dir) < MIB);
                read_all(w, k);
                assert_true(all_there(w, k));
                world_free(w);
        }
}

/* kill -9 at a random moment of a process that fills, evicts and adopts: what the index says is there is right, and the limit still holds. */
static void test_kill(void **state) {
        uint64_t seed = test_seed();
        struct world *w = world_new_in("/tmp", 20 * MIB, seed);
        struct known *k[N_KNOWN];
        size_t reads, kept = 0;
        know_some(w, k);
        for (int round = 0; round < 15; round++) {
                world_close(w);
                uint64_t delay_ms = 5 + rng_below(&w->rng.rng, 120);
                int fds[2];
                assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
                pid_t pid = fork();
                assert_true(pid >= 0);
                if (pid == 0) { /* the source's thread is not in here: another one */
                        struct world *child = calloc(1, sizeof *child);
                        memcpy(child->dir, w->dir, sizeof child->dir);
                        child->source = (struct source){ world_fetch, world_cancel };
                        lock_init(&child->lock, "world", RANK_QUEUE);
                        cond_init(&child->more);
                        child->known = w->known;
                        child->n_known = w->n_known;
                        rng_seed(&child->rng, seed + (uint64_t)round);
                        if (thread_start(&child->thread, "source", world_run, child) < 0)
                                _exit(1);
                        world_open(child, 20 * MIB, false);
                        if (write(fds[1], "x", 1) != 1)
                                _exit(1);
                        for (;;) {
                                struct known *one = k[rng_below(&child->rng.rng, N_KNOWN)];
                                struct blob *blob = get_blob(child, one);
                                if (read_compare(blob, one, rng_below(&child->rng.rng, one->n), 400 * KIB) < 0)
                                        _exit(1);
                                if (rng_below(&child->rng.rng, 20) == 0)
                                        (void)(blobs_sync(child->blobs) < 0);
                                blob_put(blob);
                        }
                }
                (void)close(fds[1]);
                char x;
                assert_int_equal(read(fds[0], &x, 1), 1);
                struct pollfd closed = { .fd = fds[0], .events = POLLIN };
                assert_int_equal(poll(&closed, 1, (int)delay_ms), 0); /* it lives */
                assert_int_equal(kill(pid, SIGKILL), 0);
                int status;
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_true(WIFSIGNALED(status));
                (void)close(fds[0]);
                world_open(w, 20 * MIB, false);
                assert_true(du(w->dir) <= 20 * MIB);
                kept += read_all_offline(w, k, &reads);
                assert_int_equal(counter_get(&w->counters, corruptions_found), 0);
                read_all(w, k);
                WAIT_FOR(w, w->n_queue == 0);
                assert_true(du(w->dir) <= 20 * MIB);
        }
        print_message("15 kills, %zu reads of 64 KiB were still there\n", kept);
        assert_true(kept > 0);
        world_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_reopen_is_warm),
                cmocka_unit_test(test_reopen_keeps_the_order),
                cmocka_unit_test(test_flipped_bits_never_reach_a_reader),
                cmocka_unit_test(test_scrub_finds_and_drops),
                cmocka_unit_test(test_damaged_and_offline),
                cmocka_unit_test(test_new_boot_hashes_before_use),
                cmocka_unit_test(test_lost_index),
                cmocka_unit_test(test_kill),
        };
        return cmocka_run_group_tests_name("blob damage", tests, NULL, NULL);
}
