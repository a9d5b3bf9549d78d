/* SPDX-License-Identifier: Apache-2.0 */
/* test_rot.c: bits flip in tree.db and in its log. Each page, each byte of the header, each frame: the tree opens and shows a state that it once had, or it says that the file is damaged
 * (-EBADMSG), so that the owner makes a new one. Never other rows, never another error. An error of the disk is not damage. */
#include "world.h"

#include <errno.h>
#include <sqlite3.h>

#include "base/digest.h"
#include "base/io.h"
#include "db.h"
#include "tree_priv.h"

#define PAGE 4096
#define STATES 64

static struct world w;
static uint64_t states[STATES];
static size_t n_states;

struct image { uint8_t *p; size_t n; };

static void image_load(struct image *im, const char *suffix) {
        char path[128];
        _cleanup_buf_ struct buf b = BUF_INIT(64 << 20);
        (void)snprintf(path, sizeof path, "%s%s", w.path, suffix);
        MUST(file_load(path, 64 << 20, &b));
        im->p = malloc(b.bytes);
        im->n = b.bytes;
        memcpy(im->p, b.data, b.bytes);
}

static void image_store(const struct image *im, const char *suffix) {
        char path[128];
        (void)snprintf(path, sizeof path, "%s%s", w.path, suffix);
        (void)unlink(path);
        if (!im)
                return;
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        MUST(write_full(fd, im->p, im->n));
        (void)close(fd);
}

static uint64_t state_of(struct tree *t) {
        uint64_t sums[WORLD_SUMS];
        world_sums(t, sums);
        return xxh3_64(sums, sizeof sums);
}

static void note_state(void) {
        assert_true(n_states < STATES);
        states[n_states++] = state_of(w.tree);
}

static bool known(uint64_t state) {
        for (size_t i = 0; i < n_states; i++)
                if (states[i] == state)
                        return true;
        return false;
}

static int open_tree(uint64_t *ret_state) {
        struct tree_config c = { .path = w.path, .readers = 1, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters };
        struct tree *t;
        int r = tree_open(&c, &t);
        if (r == 0) {
                *ret_state = state_of(t);
                tree_close(t);
        }
        return r;
}

/* 1: it says so; 0: an old state; else the test has failed. */
static int try_open(const char *what, uint64_t at) {
        uint64_t state;
        int r = open_tree(&state);
        if (r == -EBADMSG)
                return 1;
        if (r < 0)
                fail_msg("%s %llu: the open fails with %d", what, (unsigned long long)at, r);
        if (!known(state))
                fail_msg("%s %llu: shows what never was", what, (unsigned long long)at);
        return 0;
}

static void changes(unsigned first, unsigned n) {
        for (unsigned i = first; i < first + n; i++) {
                char name[64], other[64];
                (void)snprintf(name, sizeof name, "a name that takes some room %u", i);
                (void)snprintf(other, sizeof other, "moved %u", i);
                struct node f = make(&w, INO_ROOT, name, i % 5 == 4 ? NODE_DIR : NODE_FILE);
                if (i % 5 < 3)
                        (void)put_content(&w, f.ino, 1000 + i, i * 100);
                if (i % 7 == 3)
                        MUST(mv(&w, INO_ROOT, name, INO_ROOT, other, 0));
                else if (i % 11 == 5 && i % 5 < 4)
                        MUST(rm(&w, INO_ROOT, name));
        }
}

static int setup(void **state) {
        if (access("/dev/shm", W_OK) == 0)
                world_at = "/dev/shm"; /* a thousand opens, each with its syncs */
        world_open(&w, world_seed(), 1);
        n_states = 0;
        changes(0, 200);
        note_state();
        MUST(tree_sync(w.tree)); /* else the close leaves the log as it is (tree_sync.c) */
        tree_close(w.tree);
        w.tree = NULL;
        return 0;
}
static int setup_without_sums(void **state) {
        world_vfs = "unix";
        int r = setup(state);
        world_vfs = NULL;
        struct db *db; /* nor did it know marks */
        struct db_config c = { .path = w.path, .vfs = "unix", .write = true };
        MUST(db_open(&c, &db));
        MUST(db_exec(db, "PRAGMA user_version=1"));
        db_close(db);
        return r;
}
static int teardown(void **state) {
        world_close(&w);
        return 0;
}

static void test_each_page(void **state) {
        struct image im;
        unsigned flips = 0, told = 0;
        image_load(&im, "");
        assert_int_equal(im.p[20], 8);
        uint64_t s;
        MUST(open_tree(&s)); /* sound */
        assert_true(known(s));
        image_store(&im, "");
        for (size_t page = 0; page < im.n / PAGE; page++)
                for (unsigned k = 0; k < (page ? 3 : 108); k++) {
                        size_t at = page * PAGE + (page ? rng_below(&w.rng.rng, PAGE) : k < 100 ? k : rng_below(&w.rng.rng, PAGE));
                        uint8_t bit = (uint8_t)(1u << rng_below(&w.rng.rng, 8));
                        im.p[at] ^= bit;
                        image_store(&im, "");
                        im.p[at] ^= bit;
                        told += (unsigned)try_open("byte", at);
                        image_store(NULL, "-wal");
                        flips++;
                }
        printf("%u flips in %zu pages, %u told\n", flips, im.n / PAGE, told);
        assert_int_equal(told, flips);
        /* pages that changed places, and a file that lost its end */
        struct image cut = { im.p, im.n - PAGE * 2 - 100 };
        image_store(&cut, "");
        assert_int_equal(try_open("cut", cut.n), 1);
        uint8_t keep[PAGE];
        memcpy(keep, im.p + 5 * PAGE, PAGE);
        memcpy(im.p + 5 * PAGE, im.p + 6 * PAGE, PAGE);
        memcpy(im.p + 6 * PAGE, keep, PAGE);
        image_store(&im, "");
        assert_int_equal(try_open("exchanged", 5), 1);
        free(im.p);
}

/* A process that was killed: file and log as they are. The log's changes: each made known. */
static void killed(struct image *file, struct image *log, struct image *after) {
        world_reopen(&w, 1);
        note_state();
        for (unsigned i = 0; i < 20; i++) {
                char name[32], other[32];
                (void)snprintf(name, sizeof name, "in the log %u", i);
                (void)snprintf(other, sizeof other, "moved in the log %u", i);
                struct node f = make(&w, INO_ROOT, name, NODE_FILE);
                note_state();
                (void)put_content(&w, f.ino, 5000 + i, i);
                note_state();
                if (i % 2) {
                        MUST(mv(&w, INO_ROOT, name, INO_ROOT, other, 0));
                        note_state();
                }
        }
        image_load(file, "");
        image_load(log, "-wal");
        MUST(tree_sync(w.tree)); /* only what is marked is moved */
        MUST(db_checkpoint(w.tree->w));
        image_load(after, "");
        tree_close(w.tree);
        w.tree = NULL;
}

static void store(const struct image *file, const struct image *log) {
        image_store(file, "");
        image_store(log, "-wal");
        image_store(NULL, "-shm");
}

static void test_each_frame(void **state) {
        struct image file, log, after;
        unsigned flips = 0, told = 0;
        killed(&file, &log, &after);
        size_t frames = (log.n - 32) / (24 + PAGE);
        assert_true(frames > 40);
        store(&file, &log);
        uint64_t s;
        MUST(open_tree(&s));
        assert_true(s == states[n_states - 1]);
        for (size_t i = 0; i < 32 + frames; i++)
                for (unsigned k = 0; k < (i < 32 ? 1 : 2); k++) {
                        size_t frame = 32 + (i - 32) * (24 + PAGE), at = i < 32 ? i : frame + (k ? 24 + rng_below(&w.rng.rng, PAGE) : rng_below(&w.rng.rng, 24));
                        uint8_t bit = (uint8_t)(1u << rng_below(&w.rng.rng, 8));
                        log.p[at] ^= bit;
                        store(&file, &log);
                        log.p[at] ^= bit;
                        told += (unsigned)try_open("byte of the log", at);
                        flips++;
                }
        printf("%u flips in %zu frames, %u told\n", flips, frames, told);
        free(file.p);
        free(log.p);
        free(after.p);
}

/* Killed in the middle of a checkpoint: some pages are new, one is torn. The log shadows them; if it is damaged too, the file is a mix, and that is found out. */
static void test_checkpoint(void **state) {
        struct image file, log, after;
        unsigned told = 0, n = 0;
        killed(&file, &log, &after);
        assert_true(after.n >= file.n);
        size_t pages = after.n / PAGE;
        struct image mix = { malloc(after.n), after.n };
        for (size_t page = 0; page < pages; page++) {
                mix.n = MAX(file.n, (page + 1) * PAGE);
                memset(mix.p, 0, after.n);
                memcpy(mix.p, file.p, file.n);
                memcpy(mix.p, after.p, page * PAGE);
                memcpy(mix.p + page * PAGE, after.p + page * PAGE, PAGE / 2);
                store(&mix, &log);
                uint64_t s;
                MUST(open_tree(&s));
                assert_true(s == states[n_states - 1]);
                size_t at = 32 + rng_below(&w.rng.rng, log.n - 32);
                log.p[at] ^= 4;
                store(&mix, &log);
                log.p[at] ^= 4;
                told += (unsigned)try_open("byte of the log", at);
                n++;
        }
        printf("%u checkpoints cut, %u of them told with a damaged log\n", n, told);
        free(mix.p);
        free(file.p);
        free(log.p);
        free(after.p);
}

/* The disk is full: nothing that is not there yet is written behind this. */
static off_t room;
static ssize_t full_pwrite(int fd, const void *p, size_t n, off_t at) {
        struct stat st;
        if (at + (off_t)n > room && fstat(fd, &st) == 0 && at + (off_t)n > st.st_size) {
                errno = ENOSPC;
                return -1;
        }
        return pwrite(fd, p, n, at);
}

static void disk_is_full(bool yes) {
        sqlite3_vfs *vfs = sqlite3_vfs_find("unix");
        static const char *const names[] = { "pwrite", "pwrite64" };
        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                (void)vfs->xSetSystemCall(vfs, names[i], yes ? (sqlite3_syscall_ptr)full_pwrite : NULL);
}

/* A file of a program that made no sums is read, also when there is no room to write it anew, and gets them with the first round. */
static void test_without_sums(void **state) {
        struct image im;
        image_load(&im, "");
        assert_int_equal(im.p[20], 0);
        room = 60000;
        assert_true(im.n > (size_t)room);
        free(im.p);
        for (int full = 1; full >= 0; full--) {
                disk_is_full(full);
                assert_int_equal(try_open("without sums", (uint64_t)full), 0);
                disk_is_full(false);
        }
        world_reopen(&w, 1);
        MUST(tree_sync(w.tree));
        tree_close(w.tree);
        w.tree = NULL;
        image_load(&im, "");
        assert_int_equal(im.p[20], 8);
        for (size_t page = 0; page < im.n / PAGE; page++) {
                im.p[page * PAGE + 3000] ^= 32;
                image_store(&im, "");
                im.p[page * PAGE + 3000] ^= 32;
                assert_int_equal(try_open("page", page), 1);
        }
        free(im.p);
}

/* ---- the disk itself ---- */

static unsigned reads, fail_at;
static ssize_t bad_pread(int fd, void *p, size_t n, off_t at) {
        if (++reads >= fail_at) {
                errno = EIO;
                return -1;
        }
        return pread(fd, p, n, at);
}

static void test_an_error_of_the_disk_is_no_damage(void **state) {
        struct image file, log, after;
        killed(&file, &log, &after);
        sqlite3_vfs *vfs = sqlite3_vfs_find("unix");
        const char *const names[] = { "pread", "pread64" };
        unsigned hits = 0;
        for (unsigned n = 1;; n++) {
                store(&file, &log);
                reads = 0;
                fail_at = n;
                for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                        (void)vfs->xSetSystemCall(vfs, names[i], (sqlite3_syscall_ptr)bad_pread);
                uint64_t s;
                int r = open_tree(&s);
                for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                        (void)vfs->xSetSystemCall(vfs, names[i], NULL);
                if (r == 0 && reads < n)
                        break;
                if (r == 0)
                        assert_true(s == states[n_states - 1]);
                else if (r != -EIO)
                        fail_msg("read %u fails with EIO, the open with %d", n, r);
                hits++;
        }
        printf("%u reads failed one after the other\n", hits);
        assert_true(hits > 10);
        free(file.p);
        free(log.p);
        free(after.p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_each_page, setup, teardown),
                cmocka_unit_test_setup_teardown(test_each_frame, setup, teardown),
                cmocka_unit_test_setup_teardown(test_checkpoint, setup, teardown),
                cmocka_unit_test_setup_teardown(test_without_sums, setup_without_sums, teardown),
                cmocka_unit_test_setup_teardown(test_an_error_of_the_disk_is_no_damage, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
