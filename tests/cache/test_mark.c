/* SPDX-License-Identifier: Apache-2.0 */
/* What of the tree is there after a power cut: the state at the last mark, and no row behind it, whatever of the log has reached the platter. A copy of the files as they are at a moment is the
 * power cut in which everything had reached it: the worst for rows whose bytes did not. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "tree_priv.h"
#include "world.h"

static struct world w;

static void copy_file(const char *from, const char *to) {
        static char buf[1 << 16];
        FILE *in = fopen(from, "rbe"), *out = fopen(to, "wbe");
        assert_non_null(out);
        for (size_t n; in && (n = fread(buf, 1, sizeof buf, in)) > 0;)
                assert_int_equal(fwrite(buf, 1, n, out), n);
        assert_int_equal(fclose(out), 0);
        if (in)
                assert_int_equal(fclose(in), 0);
}

static const char *const parts[] = { "", "-wal", "-mark" };
static void to_copy(const char *suffix) {
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                char from[120], to[120];
                (void)snprintf(from, sizeof from, "%s%s", w.path, parts[i]);
                (void)snprintf(to, sizeof to, "%s%s%s", w.path, suffix, parts[i]);
                copy_file(from, to);
        }
}

static struct tree *open_at(const char *suffix, bool power_cut, unsigned log_pages, int (*first)(void *arg), void *arg) {
        char path[120];
        struct tree *t;
        (void)snprintf(path, sizeof path, "%s%s", w.path, suffix);
        struct tree_config c = { .path = path, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters, .uid = 1000, .gid = 1000, .power_cut = power_cut, .log_pages = log_pages,
                                 .sync_first = first, .sync_arg = arg };
        MUST(tree_open(&c, &t));
        return t;
}

static bool has(struct tree *t, const char *name) {
        struct node n;
        int r = tree_lookup(t, INO_ROOT, name, strlen(name), &n);
        assert_true(r == 0 || r == -ENOENT);
        return r == 0;
}

/* What two copies of the moment show: one after a power cut, one after a kill. */
static void expect(const char *name, bool after_cut, bool after_kill) {
        to_copy(".cut");
        struct tree *t = open_at(".cut", true, 0, NULL, NULL);
        assert_int_equal(has(t, name), after_cut);
        tree_close(t);
        to_copy(".cut");
        t = open_at(".cut", false, 0, NULL, NULL);
        assert_int_equal(has(t, name), after_kill);
        tree_close(t);
}

static void mkdir_at(struct tree *t, const char *name) {
        struct tree_new what = { .kind = NODE_DIR, .mode = 0755 };
        struct node n;
        MUST(tree_create(t, INO_ROOT, name, strlen(name), &what, &n));
}

static void test_rows_behind_the_mark(void **state) {
        world_open(&w, 1, 0);
        MUST(tree_sync(w.tree));
        mkdir_at(w.tree, "a");
        expect("a", false, true);
        MUST(tree_sync(w.tree));
        expect("a", true, true);
        mkdir_at(w.tree, "b");
        expect("b", false, true);
        expect("a", true, true);
        /* a mark that is being written promised nothing, and the one before still counts */
        MUST(tree_sync(w.tree));
        expect("b", true, true);
        char mark[120];
        (void)snprintf(mark, sizeof mark, "%s-mark", w.path);
        for (int place = 0; place < 2; place++) {
                char kept[3 * 4096];
                FILE *f = fopen(mark, "r+be");
                assert_non_null(f);
                size_t n = fread(kept, 1, sizeof kept, f);
                assert_true(n == 2 * 4096);
                assert_int_equal(fseek(f, place * 4096 + 20, SEEK_SET), 0);
                assert_int_equal(fputc('?', f), '?');
                assert_int_equal(fclose(f), 0);
                expect("a", true, true);
                f = fopen(mark, "r+be");
                assert_non_null(f);
                assert_int_equal(fwrite(kept, 1, n, f), n);
                assert_int_equal(fclose(f), 0);
        }
        /* without any mark, of a program that had none, nothing is cut */
        mkdir_at(w.tree, "c");
        assert_int_equal(truncate(mark, 0), 0);
        expect("c", true, true);
        world_close(&w);
}

/* The log begins anew after a checkpoint: the mark is of another life of it, and nothing of the new one counts. */
static void test_log_begins_anew(void **state) {
        world_open(&w, 1, 0);
        MUST(tree_sync(w.tree));
        tree_close(w.tree);
        w.tree = open_at("", false, 64, NULL, NULL);
        char name[20] = "";
        unsigned begun = 0;
        struct db_mark before = { .frames = 0 }, at;
        for (unsigned i = 0; i < 300; i++) {
                db_log_at(w.tree->w, &at);
                begun += memcmp(at.head, before.head, sizeof at.head) != 0;
                before = at;
                if (i > 0 && at.frames > 3 && i % 10 == 0) {
                        struct db_mark now;
                        MUST(tree_sync(w.tree));
                        db_log_at(w.tree->w, &now);
                        expect(name, true, true);
                }
                (void)snprintf(name, sizeof name, "d%u", i);
                mkdir_at(w.tree, name);
                bool marked = db_log_pages(w.tree->w) == 0; /* that one made a checkpoint */
                if (marked || i % 25 == 0)
                        expect(name, marked, true);
        }
        assert_true(begun > 3);
        char log[120];
        struct stat st;
        (void)snprintf(log, sizeof log, "%s-wal", w.path);
        MUST(stat(log, &st));
        assert_true(st.st_size < (64 + 64) * 4200);
        world_close(&w);
}

/* A start after a kill moves nothing into the database that is behind the mark, however it ends: a power cut in it or after it takes the tree back to the mark. */
static void test_start_after_a_kill(void **state) {
        world_open(&w, 1, 0);
        mkdir_at(w.tree, "kept");
        MUST(tree_sync(w.tree));
        mkdir_at(w.tree, "a");
        to_copy(".killed");
        tree_close(w.tree);
        char path[120];
        (void)snprintf(path, sizeof path, "%s.killed", w.path);
        MUST(rename(path, w.path));
        for (size_t i = 1; i < ARRAY_SIZE(parts); i++) {
                char to[120];
                (void)snprintf(path, sizeof path, "%s.killed%s", w.path, parts[i]);
                (void)snprintf(to, sizeof to, "%s%s", w.path, parts[i]);
                MUST(rename(path, to));
        }
        for (int i = 0; i < 3; i++) {
                MUST(failpoint_arm(i == 1 ? "tree.opened=error:EIO" : "tree.opened=off"));
                struct tree_config c = { .path = w.path, .readers = (unsigned)i, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters, .uid = 1000, .gid = 1000 };
                assert_int_equal(tree_open(&c, &w.tree), i == 1 ? -EIO : 0);
                MUST(failpoint_arm("tree.opened=off"));
                expect("a", false, true);
                expect("kept", true, true);
                if (i == 1)
                        continue;
                assert_true(has(w.tree, "a"));
                tree_close(w.tree);
                expect("a", false, true);
        }
        w.tree = open_at("", false, 0, NULL, NULL);
        MUST(tree_sync(w.tree));
        expect("a", true, true);
        tree_close(w.tree);
        expect("a", true, true);
        (void)snprintf(path, sizeof path, "%s-wal", w.path);
        assert_int_equal(access(path, F_OK), -1); /* all is marked: it was moved */
        w.tree = open_at("", true, 0, NULL, NULL);
        assert_true(has(w.tree, "a"));
        world_close(&w);
}

/* One bit of the header of the log, found after a boot or a kill: nothing that is marked is lost. */
static void test_header_of_the_log(void **state) {
        char log[120];
        world_open(&w, 1, 0);
        (void)snprintf(log, sizeof log, "%s.flip-wal", w.path);
        mkdir_at(w.tree, "a");
        MUST(tree_sync(w.tree));
        mkdir_at(w.tree, "b");
        for (int bit = 0; bit < 32 * 8; bit++)
                for (int cut = 0; cut < 2; cut++) {
                        to_copy(".flip");
                        FILE *f = fopen(log, "r+be");
                        assert_non_null(f);
                        MUST(fseek(f, bit / 8, SEEK_SET));
                        int c = fgetc(f);
                        MUST(fseek(f, bit / 8, SEEK_SET));
                        assert_true(fputc(c ^ 1 << bit % 8, f) != EOF);
                        MUST(fclose(f));
                        struct tree *t = open_at(".flip", cut, 0, NULL, NULL);
                        assert_true(has(t, "a"));
                        assert_int_equal(has(t, "b"), !cut);
                        tree_close(t);
                }
        world_close(&w);
}

/* Somebody reads all the time, each with an older state than the one after him: the log begins anew all the same. */
struct reading { pthread_mutex_t m; pthread_cond_t c; unsigned turn, open; bool stop; };
static struct reading rd = { .m = PTHREAD_MUTEX_INITIALIZER, .c = PTHREAD_COND_INITIALIZER };
static void *read_on(void *arg) {
        unsigned me = *(unsigned *)arg;
        struct db_config c = { .path = w.path };
        struct db *db;
        int64_t n;
        MUST(db_open(&c, &db));
        MUST(pthread_mutex_lock(&rd.m));
        rd.open++;
        MUST(pthread_cond_broadcast(&rd.c));
        MUST(pthread_mutex_unlock(&rd.m));
        for (bool stop = false; !stop;) {
                MUST(db_begin(db));
                MUST(db_int(db, &n, "SELECT count(*) FROM node", ""));
                MUST(pthread_mutex_lock(&rd.m));
                rd.turn = me; /* the other one may end: this one has begun */
                MUST(pthread_cond_broadcast(&rd.c));
                while (rd.turn == me && !rd.stop)
                        MUST(pthread_cond_wait(&rd.c, &rd.m));
                stop = rd.stop;
                MUST(pthread_mutex_unlock(&rd.m));
                db_rollback(db);
        }
        db_close(db);
        return NULL;
}

static void test_readers_all_the_time(void **state) {
        pthread_t thread[2];
        unsigned me[2] = { 1, 2 };
        world_open(&w, 1, 0);
        tree_close(w.tree);
        struct tree_config c = { .path = w.path, .readers = 1, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters, .uid = 1000, .gid = 1000, .log_pages = 64 };
        MUST(tree_open(&c, &w.tree));
        rd.stop = false;
        rd.open = 0;
        for (int i = 0; i < 2; i++)
                MUST(pthread_create(&thread[i], NULL, read_on, &me[i]));
        MUST(pthread_mutex_lock(&rd.m));
        while (rd.open < 2) /* one alone waits for the other and would hold its state as long as that opens */
                MUST(pthread_cond_wait(&rd.c, &rd.m));
        MUST(pthread_mutex_unlock(&rd.m));
        char log[120];
        (void)snprintf(log, sizeof log, "%s-wal", w.path);
        for (unsigned i = 0; i < 1500; i++) {
                char name[20];
                struct stat st;
                (void)snprintf(name, sizeof name, "d%u", i);
                mkdir_at(w.tree, name);
                MUST(stat(log, &st));
                assert_true(st.st_size < (64 + 64) * 4200);
        }
        MUST(pthread_mutex_lock(&rd.m));
        rd.stop = true;
        MUST(pthread_cond_broadcast(&rd.c));
        MUST(pthread_mutex_unlock(&rd.m));
        for (int i = 0; i < 2; i++)
                MUST(pthread_join(thread[i], NULL));
        world_close(&w);
}

/* A program that knew no marks has written since the last one: they mean nothing. The first round of this program makes the file its own. */
static uint32_t version_of(const char *suffix) {
        char path[120];
        uint32_t version = 0;
        (void)snprintf(path, sizeof path, "%s%s", w.path, suffix);
        MUST(db_version_of(path, &version));
        return version;
}

static void test_older_program(void **state) {
        world_open(&w, 1, 0);
        mkdir_at(w.tree, "a");
        MUST(tree_sync(w.tree));
        MUST(db_exec(w.tree->w, "PRAGMA user_version=1"));
        mkdir_at(w.tree, "b");
        MUST(tree_sync(w.tree));
        MUST(db_checkpoint(w.tree->w));
        mkdir_at(w.tree, "c"); /* behind the last mark, as all that it writes */
        expect("c", true, true);
        to_copy(".old");
        struct tree *t = open_at(".old", true, 0, NULL, NULL);
        assert_true(has(t, "c"));
        assert_int_equal(version_of(".old"), 1);
        MUST(tree_sync(t));
        mkdir_at(t, "d");
        tree_close(t);
        assert_int_equal(version_of(".old"), 2);
        t = open_at(".old", true, 0, NULL, NULL);
        assert_true(has(t, "c") && !has(t, "d"));
        tree_close(t);
        world_close(&w);
        world_open(&w, 1, 0); /* a new one says so from the beginning */
        to_copy(".new");
        assert_int_equal(version_of(".new"), 2);
        world_close(&w);
}

/* No room for a mark: nothing is vouched for, and the next one may have it. */
static ssize_t no_mark(int fd, const void *p, size_t n, off_t at) {
        if (n == 64) {
                errno = ENOSPC;
                return -1;
        }
        return pwrite(fd, p, n, at);
}

static void test_no_room_for_a_mark(void **state) {
        sqlite3_vfs *vfs = sqlite3_vfs_find("unix");
        static const char *const names[] = { "pwrite", "pwrite64" };
        world_open(&w, 1, 0);
        MUST(tree_sync(w.tree));
        mkdir_at(w.tree, "a");
        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                (void)vfs->xSetSystemCall(vfs, names[i], (sqlite3_syscall_ptr)no_mark);
        for (int i = 0; i < 3; i++)
                assert_int_equal(tree_sync(w.tree), -ENOSPC);
        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                (void)vfs->xSetSystemCall(vfs, names[i], NULL);
        expect("a", false, true);
        MUST(tree_sync(w.tree));
        expect("a", true, true);
        MUST(tree_sync(w.tree));
        world_close(&w);
}

static void put(struct tree *t, const char *key) {
        int r = tree_begin(t);
        if (r == 0)
                r = meta_set(t->w, key, 1);
        MUST(tree_end(t, r));
}
static bool got(struct tree *t, const char *key) {
        int64_t v;
        MUST(meta_get(t->w, key, &v));
        return v;
}

/* The database is gone, its log and its marks are not: they are nobody's, and the next one starts with its own. */
static void test_database_is_missing(void **state) {
        for (int cut = 0; cut < 2; cut++) {
                world_open(&w, 1, 0);
                put(w.tree, "a");
                MUST(tree_sync(w.tree));
                to_copy(".left");
                char path[120];
                (void)snprintf(path, sizeof path, "%s.left", w.path);
                MUST(unlink(path));
                struct tree *t = open_at(".left", cut, 0, NULL, NULL);
                assert_false(got(t, "a"));
                put(t, "b");
                MUST(tree_sync(t));
                put(t, "c");
                tree_close(t);
                t = open_at(".left", true, 0, NULL, NULL);
                assert_true(got(t, "b") && !got(t, "c") && !got(t, "a"));
                tree_close(t);
                world_close(&w);
        }
}

/* The bytes come first, and rows that are committed while they are synced are not vouched for. */
struct hook { struct tree *tree; unsigned calls; int result; const char *late; };
static int on_first(void *arg) {
        struct hook *h = arg;
        h->calls++;
        if (h->late) {
                const char *name = h->late;
                h->late = NULL;
                expect("early", false, true); /* not before this has returned */
                mkdir_at(h->tree, name);
        }
        return h->result;
}

static void test_bytes_first(void **state) {
        world_open(&w, 1, 0);
        MUST(tree_sync(w.tree));
        tree_close(w.tree);
        struct hook h = { .calls = 0 };
        h.tree = w.tree = open_at("", false, 0, on_first, &h);
        mkdir_at(w.tree, "early");
        h.late = "late";
        MUST(tree_sync(w.tree));
        assert_int_equal(h.calls, 1);
        expect("early", true, true);
        expect("late", false, true);
        MUST(tree_sync(w.tree));
        assert_int_equal(h.calls, 2);
        expect("late", true, true);
        MUST(tree_sync(w.tree)); /* nothing new */
        assert_int_equal(h.calls, 2);
        mkdir_at(w.tree, "soon");
        h.result = -EAGAIN; /* it cannot say yet */
        assert_int_equal(tree_sync(w.tree), -EAGAIN);
        expect("soon", false, true);
        h.result = -EIO; /* one file is lost: the others count */
        MUST(tree_sync(w.tree));
        expect("soon", true, true);
        mkdir_at(w.tree, "last");
        tree_close(w.tree); /* without a sync: what is not marked is not moved into the database */
        expect("last", false, true);
        w.tree = open_at("", false, 0, NULL, NULL);
        world_close(&w);
}

/* ---- a disk that refuses one call ---- */

static sqlite3_vfs *unix_vfs;
static void replace(const char *name, sqlite3_syscall_ptr f) { /* NULL: as it was */
        MUST(unix_vfs->xSetSystemCall(unix_vfs, name, f) == SQLITE_OK ? 0 : -EINVAL);
}

static unsigned heads_refused;
static ssize_t no_head(int fd, void *p, size_t n, off_t at) {
        if (n == DB_LOG_HEAD_BYTES && at == 0 && heads_refused > 0) {
                heads_refused--;
                errno = EIO;
                return -1;
        }
        return pread(fd, p, n, at);
}

/* After a commit the log's header cannot be read: no mark is made of a place in no log. */
static void test_header_unreadable(void **state) {
        world_open(&w, 1, 0);
        mkdir_at(w.tree, "a");
        MUST(tree_sync(w.tree));
        unix_vfs = sqlite3_vfs_find("unix");
        static const char *const names[] = { "pread", "pread64" };
        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                if (unix_vfs->xGetSystemCall(unix_vfs, names[i]))
                        replace(names[i], (sqlite3_syscall_ptr)no_head);
        heads_refused = UINT_MAX;
        mkdir_at(w.tree, "b");
        assert_int_equal(tree_sync(w.tree), -EAGAIN);
        assert_int_equal(db_checkpoint(w.tree->w), -EAGAIN);
        heads_refused = 0;
        expect("a", true, true);
        expect("b", false, true);
        MUST(tree_sync(w.tree)); /* not sticky */
        expect("b", true, true);
        heads_refused = 1;
        mkdir_at(w.tree, "c");
        assert_int_equal(heads_refused, 0);
        MUST(tree_sync(w.tree)); /* read once more */
        expect("c", true, true);
        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                replace(names[i], NULL);
        world_close(&w);
}

/* The n-th call for one file fails with what a disk says. */
static char refused_path[130];
static int refused_in;
static bool refused(const char *path) {
        if (strcmp(path, refused_path) != 0 || refused_in-- != 0)
                return false;
        errno = EIO;
        return true;
}
static int bad_stat(const char *path, struct stat *st) { return refused(path) ? -1 : stat(path, st); }
static int bad_access(const char *path, int mode) { return refused(path) ? -1 : access(path, mode); }
static int bad_open(const char *path, int flags, int mode) { return refused(path) ? -1 : open(path, flags, (mode_t)mode); }

/* A start to which the disk says once that it cannot tell whether a file is there: nothing behind the mark gets into the database, whatever becomes of the start. */
static void test_start_cannot_look(void **state) {
        static const struct { const char *name; sqlite3_syscall_ptr f; } calls[] = { { "stat", (sqlite3_syscall_ptr)bad_stat }, { "access", (sqlite3_syscall_ptr)bad_access }, { "open", (sqlite3_syscall_ptr)bad_open } };
        unsigned failed = 0;
        unix_vfs = sqlite3_vfs_find("unix");
        world_open(&w, 1, 0);
        mkdir_at(w.tree, "a");
        MUST(tree_sync(w.tree));
        mkdir_at(w.tree, "b");
        for (size_t call = 0; call < ARRAY_SIZE(calls); call++)
                for (size_t part = 0; part < ARRAY_SIZE(parts); part++)
                        for (int cut = 0; cut < 2; cut++)
                                for (int n = 0; n < 12; n++) {
                                        char path[120];
                                        struct tree *t;
                                        to_copy(".look");
                                        (void)snprintf(path, sizeof path, "%s.look", w.path);
                                        (void)snprintf(refused_path, sizeof refused_path, "%s%s", path, parts[part]);
                                        struct tree_config c = { .path = path, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters, .uid = 1000, .gid = 1000, .power_cut = cut };
                                        refused_in = n;
                                        replace(calls[call].name, calls[call].f);
                                        int r = tree_open(&c, &t);
                                        replace(calls[call].name, NULL);
                                        bool hit = refused_in < 0;
                                        if (r == 0) {
                                                assert_true(has(t, "a"));
                                                assert_int_equal(has(t, "b"), !cut);
                                                tree_close(t); /* no round was made */
                                        } else {
                                                assert_true(r == -EIO || r == -EROFS); /* SQLite tries once more, for reading; and not: damaged */
                                                failed++;
                                        }
                                        t = open_at(".look", true, 0, NULL, NULL);
                                        assert_true(has(t, "a"));
                                        assert_false(has(t, "b"));
                                        tree_close(t);
                                        if (!hit)
                                                break;
                                }
        assert_true(failed > 0);
        world_close(&w);
}

/* Another process reads the file when a start wants to cut the log: refused, nothing is changed; and not called damaged. */
static void test_foreign_reader(void **state) {
        world_open(&w, 1, 0);
        mkdir_at(w.tree, "a");
        MUST(tree_sync(w.tree));
        for (int i = 0; i < 40; i++) {
                char name[20];
                (void)snprintf(name, sizeof name, "b%d", i);
                mkdir_at(w.tree, name);
        }
        to_copy(".read");
        char path[120], ch;
        (void)snprintf(path, sizeof path, "%s.read", w.path);
        int up[2], down[2];
        MUST(pipe(up));
        MUST(pipe(down));
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                struct db_config c = { .path = path };
                struct db *db;
                int64_t n = 0;
                (void)close(up[0]);
                (void)close(down[1]); /* the end of the other one is seen */
                int r = db_open(&c, &db);
                if (r == 0)
                        r = db_int(db, &n, "SELECT count(*) FROM node", "");
                ch = r == 0 && n > 40 ? 'r' : '?';
                if (write(up[1], &ch, 1) == 1)
                        (void)!read(down[0], &ch, 1);
                _exit(0);
        }
        (void)close(up[1]);
        (void)close(down[0]);
        assert_int_equal(read(up[0], &ch, 1), 1);
        assert_int_equal(ch, 'r');
        for (unsigned readers = 0; readers < 2; readers++) {
                struct tree_config c = { .path = path, .readers = readers, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters, .uid = 1000, .gid = 1000, .power_cut = true };
                struct tree *t;
                assert_int_equal(tree_open(&c, &t), -EBUSY);
        }
        (void)close(down[1]);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        (void)close(up[0]);
        struct tree *t = open_at(".read", true, 0, NULL, NULL);
        assert_true(has(t, "a"));
        assert_false(has(t, "b0"));
        assert_false(has(t, "b39"));
        tree_close(t);
        world_close(&w);
}

/* A file whose first page the disk refuses may be an older program's: that is not taken for one with marks. (This process's memory has nothing at 0 that could be read: EIO.) */
static void test_version_unreadable(void **state) {
        char path[120], mark[130];
        uint32_t version = 77;
        world_open(&w, 1, 0);
        (void)snprintf(path, sizeof path, "%s.unreadable", w.path);
        (void)snprintf(mark, sizeof mark, "%s-mark", path);
        assert_int_equal(db_version_of(path, &version), -ENODATA);
        MUST(symlink("/proc/self/mem", path));
        assert_int_equal(db_version_of(path, &version), -EIO);
        assert_int_equal(version, 77);
        struct tree_config c = { .path = path, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters, .uid = 1000, .gid = 1000, .power_cut = true };
        struct tree *t;
        assert_int_equal(tree_open(&c, &t), -EIO);
        assert_int_equal(access(mark, F_OK), -1);
        world_close(&w);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_rows_behind_the_mark), cmocka_unit_test(test_log_begins_anew), cmocka_unit_test(test_start_after_a_kill), cmocka_unit_test(test_header_of_the_log),
                                              cmocka_unit_test(test_readers_all_the_time), cmocka_unit_test(test_older_program), cmocka_unit_test(test_no_room_for_a_mark),
                                              cmocka_unit_test(test_database_is_missing), cmocka_unit_test(test_bytes_first),
                                              cmocka_unit_test(test_header_unreadable), cmocka_unit_test(test_start_cannot_look),
                                              cmocka_unit_test(test_foreign_reader), cmocka_unit_test(test_version_unreadable) };
        if (access("/dev/shm", W_OK) == 0)
                world_at = "/dev/shm"; /* many opens, each with its syncs */
        return cmocka_run_group_tests(tests, NULL, NULL);
}
