/* SPDX-License-Identifier: Apache-2.0 */
/* The file itself: newer schemas refused untouched, damage told, kill -9 in the middle of changes, stages that meet the tree after it. */
#include "world.h"

#include <signal.h>

#include "db.h"

static struct world w;

static int setup(void **state) {
        world_open(&w, 1, 2);
        return 0;
}
static int teardown(void **state) {
        if (w.tree)
                world_check(&w);
        world_close(&w);
        return 0;
}

static int try_open(void) {
        struct tree_config c = { .path = w.path, .readers = 1, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters };
        struct tree *t = NULL;
        int r = tree_open(&c, &t);
        if (r == 0)
                tree_close(t);
        return r;
}

static void patch(off_t at, const void *p, size_t n) {
        int fd = open(w.path, O_WRONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(pwrite(fd, p, n, at), n);
        (void)close(fd);
}

/* By a program that knows more: through SQLite, so that the page is a whole one. */
static void set_version(const char *sql) {
        struct db *db;
        struct db_config c = { .path = w.path, .write = true };
        MUST(db_open(&c, &db));
        MUST(db_exec(db, sql));
        db_close(db);
}

static void test_newer(void **state) {
        tree_close(w.tree);
        w.tree = NULL;
        set_version("PRAGMA user_version=3");
        char before[4096], after[4096];
        int fd = open(w.path, O_RDONLY | O_CLOEXEC);
        assert_int_equal(pread(fd, before, sizeof(before), 0), sizeof(before));
        assert_int_equal(try_open(), -EPROTONOSUPPORT);
        assert_int_equal(pread(fd, after, sizeof(after), 0), sizeof(after));
        (void)close(fd);
        assert_memory_equal(before, after, sizeof(before));
        set_version("PRAGMA user_version=2");
        world_reopen(&w, 2);
}

/* A file of a program that kept no access times gets a place for them, and loses nothing. */
static void test_older(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE), n;
        tree_close(w.tree);
        w.tree = NULL;
        set_version("ALTER TABLE node DROP COLUMN atime");
        world_reopen(&w, 2);
        world_check(&w);
        n = look(&w, INO_ROOT, "f");
        assert_int_equal(n.ino, f.ino);
        assert_false(n.has_atime);
        struct tree_attrs a = { .has_atime = true, .atime_ns = -5 };
        MUST(tree_setattr(w.tree, f.ino, &a, &n));
        tree_close(w.tree);
        w.tree = NULL;
        world_reopen(&w, 2);
        n = look(&w, INO_ROOT, "f");
        assert_true(n.has_atime && n.atime_ns == -5 && n.mtime_ns == f.mtime_ns);
}

static void test_damage(void **state) {
        for (int i = 0; i < 500; i++) {
                char name[16];
                (void)snprintf(name, sizeof(name), "f%d", i);
                (void)make(&w, INO_ROOT, name, NODE_SYMLINK);
        }
        tree_close(w.tree);
        w.tree = NULL;
        struct db *db;
        struct db_config c = { .path = w.path, .write = true };
        MUST(db_open(&c, &db));
        MUST(db_run(db, "UPDATE meta SET value=1 WHERE key='open'", ""));
        db_close(db);
        char junk[8192];
        memset(junk, 0xa5, sizeof(junk));
        patch(8 * 4096, junk, sizeof(junk));
        assert_int_equal(try_open(), -EBADMSG);
        patch(0, junk, sizeof(junk));
        assert_int_equal(try_open(), -EBADMSG);
}

static void test_kill(void **state) {
        /* a child changes until it is killed; everything that returned is there */
        for (unsigned round = 0; round < 5; round++) {
                int pipes[2];
                assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
                tree_close(w.tree);
                w.tree = NULL;
                pid_t pid = fork();
                if (pid == 0) {
                        rng_seed(&w.rng, 100 + round); /* not the ids of the child before */
                        world_reopen(&w, 1);
                        for (unsigned i = 0;; i++) {
                                char name[32];
                                (void)snprintf(name, sizeof(name), "r%u-%u", round, i);
                                struct node n = make(&w, INO_ROOT, name, NODE_FILE);
                                (void)put_content(&w, n.ino, round * 100000 + i + 1, i);
                                if (i % 3 == 1)
                                        (void)mv(&w, INO_ROOT, name, INO_ROOT, "moved", 0);
                                if (write(pipes[1], &i, sizeof(i)) != sizeof(i))
                                        _exit(1);
                        }
                }
                (void)close(pipes[1]);
                unsigned last = 0;
                while (last < 60 + round * 17)
                        assert_int_equal(read(pipes[0], &last, sizeof(last)), sizeof(last));
                assert_int_equal(kill(pid, SIGKILL), 0);
                unsigned more;
                while (read(pipes[0], &more, sizeof(more)) == sizeof(more))
                        last = more;
                (void)close(pipes[0]);
                int status;
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_true(WIFSIGNALED(status));
                world_reopen(&w, 2);
                world_check(&w);
                for (unsigned i = 0; i <= last; i++) {
                        char name[32];
                        (void)snprintf(name, sizeof(name), "r%u-%u", round, i);
                        if (i % 3 == 1) {
                                assert_int_equal(look_error(&w, INO_ROOT, name), -ENOENT);
                                continue;
                        }
                        struct node n = look(&w, INO_ROOT, name);
                        assert_int_equal(n.size, i);
                        assert_int_equal(n.gen, round * 100000 + i + 1);
                }
        }
}

static enum recover_result recover(struct stage_identity *s) {
        enum recover_result r;
        MUST(tree_recover_stage(w.tree, s, &r));
        return r;
}

static void test_stages(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE), gone = make(&w, INO_ROOT, "gone", NODE_FILE);
        const uint64_t gen = (uint64_t)w.clock.real_ns; /* generations grow with time */
        (void)put_content(&w, f.ino, gen, 10);
        (void)put_content(&w, gone.ino, gen + 1, 10);
        w.open[w.n_open++] = gone.ino;
        MUST(rm(&w, INO_ROOT, "gone")); /* and still open when the machine stops */
        w.n_open = 0;
        tree_close(w.tree);
        world_reopen(&w, 2);
        struct stage_identity s = { .ino = f.ino, .gen = gen, .node = f.id, .parent = id_root, .name = "f", .mode = 0644, .size = 10 };
        assert_int_equal(recover(&s), RECOVER_KNOWN);
        s.gen = gen + 5;
        s.size = 20;
        assert_int_equal(recover(&s), RECOVER_QUEUED); /* written, but the row did not get there */
        assert_int_equal(look(&w, INO_ROOT, "f").gen, gen + 5);
        s.gen = gen + 2;
        assert_int_equal(recover(&s), RECOVER_COMMITTED); /* superseded */
        struct stage_identity g = { .ino = gone.ino, .gen = gen + 1, .node = gone.id, .parent = id_root, .name = "gone", .mode = 0644, .size = 10 };
        assert_int_equal(recover(&g), RECOVER_COMMITTED); /* deleted on purpose */
        assert_int_equal(look_error(&w, INO_ROOT, "gone"), -ENOENT);
        /* of a tree that was lost */
        struct stage_identity lost = { .ino = 777777, .gen = gen + 9, .node = { { 1, 2 } }, .parent = id_root, .name = "f", .mode = 0600, .size = 7 };
        assert_int_equal(recover(&lost), RECOVER_QUEUED);
        struct node n = look(&w, INO_ROOT, "f (conflict recovered 1)");
        assert_int_equal(n.ino, lost.ino);
        assert_int_equal(n.gen, gen + 9);
        assert_int_equal(recover(&lost), RECOVER_KNOWN);
        struct stage_identity orphan = { .ino = 777778, .gen = gen + 10, .node = { { 1, 3 } }, .parent = { { 4 } }, .name = "o", .mode = 0600, .size = 7 };
        assert_int_equal(recover(&orphan), RECOVER_LOST_FOUND);
        assert_int_equal(look(&w, look(&w, INO_ROOT, "lost+found").ino, "o").ino, orphan.ino);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_newer, setup, teardown),
                cmocka_unit_test_setup_teardown(test_older, setup, teardown),
                cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
                cmocka_unit_test_setup_teardown(test_kill, setup, teardown),
                cmocka_unit_test_setup_teardown(test_stages, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
