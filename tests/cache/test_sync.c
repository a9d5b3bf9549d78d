/* SPDX-License-Identifier: Apache-2.0 */
/* A sync of the tree's files that the disk refuses, and the ones after it. The kernel tells such a failure once and holds the pages for written from then on: they are read as they were, or, if it needed the
 * room, as the disk has them; a later sync succeeds without having written them. So the VFS here has two copies of each file: what is read and written, and the platter (PATH.platter), to which a sync brings
 * the pages that were written since the last one, failed or not. A power cut leaves the platter. */
#include <sqlite3.h>

#include "tree_priv.h"
#include "world.h"

#define PAGE 4096
#define PAGES_MAX 8192
#define SUFFIX ".platter"

static struct world w;
static const char *refused;       /* syncs of files whose names end so fail */
static bool dropped;              /* and the kernel drops what it could not write */
static unsigned refusals, spared; /* spared: so many go well before */

struct file { sqlite3_file base; sqlite3_file *inner; FILE *platter; const char *name; uint8_t dirty[PAGES_MAX]; };
static sqlite3_vfs vfs;

static sqlite3_vfs *inner(void) { return vfs.pAppData; }
static struct file *of(sqlite3_file *f) { return (struct file *)f; }

static int f_close(sqlite3_file *f) {
        if (of(f)->platter)
                MUST(fclose(of(f)->platter));
        return of(f)->inner->pMethods->xClose(of(f)->inner);
}
static int f_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at) { return of(f)->inner->pMethods->xRead(of(f)->inner, p, n, at); }
static int f_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at) {
        for (sqlite3_int64 k = at / PAGE; k * PAGE < at + n; k++) {
                assert_true(k < PAGES_MAX);
                of(f)->dirty[k] = 1;
        }
        return of(f)->inner->pMethods->xWrite(of(f)->inner, p, n, at);
}
static int f_truncate(sqlite3_file *f, sqlite3_int64 n) {
        if (of(f)->platter)
                MUST(ftruncate(fileno(of(f)->platter), n));
        return of(f)->inner->pMethods->xTruncate(of(f)->inner, n);
}
static bool ends_so(const char *name, const char *end) {
        size_t n = strlen(name), k = strlen(end);
        return n >= k && strcmp(name + n - k, end) == 0;
}
static int f_sync(sqlite3_file *f, int flags) {
        struct file *s = of(f);
        const bool meant = refused && ends_so(s->name, refused), fails = meant && spared == 0;
        sqlite3_int64 size;
        MUST(s->inner->pMethods->xFileSize(s->inner, &size));
        refusals += fails;
        spared -= meant && !fails;
        for (sqlite3_int64 k = 0; s->platter && k * PAGE < size; k++) {
                char page[PAGE] = { 0 };
                const int n = (int)MIN((sqlite3_int64)PAGE, size - k * PAGE);
                if (!s->dirty[k])
                        continue;
                s->dirty[k] = 0;
                if (!fails) {
                        MUST(s->inner->pMethods->xRead(s->inner, page, n, k * PAGE));
                        assert_int_equal(pwrite(fileno(s->platter), page, (size_t)n, k * PAGE), n);
                } else if (dropped) {
                        assert_true(pread(fileno(s->platter), page, (size_t)n, k * PAGE) >= 0);
                        MUST(s->inner->pMethods->xWrite(s->inner, page, n, k * PAGE));
                }
        }
        return fails ? SQLITE_IOERR_FSYNC : s->inner->pMethods->xSync(s->inner, flags);
}
static int f_size(sqlite3_file *f, sqlite3_int64 *ret) { return of(f)->inner->pMethods->xFileSize(of(f)->inner, ret); }
static int f_lock(sqlite3_file *f, int level) { return of(f)->inner->pMethods->xLock(of(f)->inner, level); }
static int f_unlock(sqlite3_file *f, int level) { return of(f)->inner->pMethods->xUnlock(of(f)->inner, level); }
static int f_reserved(sqlite3_file *f, int *ret) { return of(f)->inner->pMethods->xCheckReservedLock(of(f)->inner, ret); }
static int f_control(sqlite3_file *f, int op, void *arg) { return of(f)->inner->pMethods->xFileControl(of(f)->inner, op, arg); }
static int f_sector(sqlite3_file *f) { return of(f)->inner->pMethods->xSectorSize(of(f)->inner); }
static int f_traits(sqlite3_file *f) { return of(f)->inner->pMethods->xDeviceCharacteristics(of(f)->inner); }
static int f_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **ret) { return of(f)->inner->pMethods->xShmMap(of(f)->inner, page, size, extend, ret); }
static int f_shm_lock(sqlite3_file *f, int at, int n, int flags) { return of(f)->inner->pMethods->xShmLock(of(f)->inner, at, n, flags); }
static void f_shm_barrier(sqlite3_file *f) { of(f)->inner->pMethods->xShmBarrier(of(f)->inner); }
static int f_shm_unmap(sqlite3_file *f, int remove) { return of(f)->inner->pMethods->xShmUnmap(of(f)->inner, remove); }

static const sqlite3_io_methods methods = {
        .iVersion = 2, .xClose = f_close, .xRead = f_read, .xWrite = f_write, .xTruncate = f_truncate, .xSync = f_sync, .xFileSize = f_size, .xLock = f_lock, .xUnlock = f_unlock,
        .xCheckReservedLock = f_reserved, .xFileControl = f_control, .xSectorSize = f_sector, .xDeviceCharacteristics = f_traits, .xShmMap = f_shm_map, .xShmLock = f_shm_lock,
        .xShmBarrier = f_shm_barrier, .xShmUnmap = f_shm_unmap,
};

static int v_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *ret_flags) {
        struct file *s = of(f);
        char path[200];
        (void)v;
        memset(s, 0, sizeof *s);
        s->inner = (sqlite3_file *)(s + 1);
        s->name = name;
        int rc = inner()->xOpen(inner(), name, s->inner, flags, ret_flags);
        if (s->inner->pMethods)
                f->pMethods = &methods;
        if (rc == SQLITE_OK && name && (flags & SQLITE_OPEN_READWRITE)) {
                (void)snprintf(path, sizeof path, "%s" SUFFIX, name);
                if (!(s->platter = fopen(path, "r+be")))
                        s->platter = fopen(path, "w+be");
                assert_non_null(s->platter);
        }
        return rc;
}
static int v_delete(sqlite3_vfs *v, const char *name, int sync_dir) {
        char path[200];
        (void)v;
        (void)snprintf(path, sizeof path, "%s" SUFFIX, name);
        (void)unlink(path);
        return inner()->xDelete(inner(), name, sync_dir);
}

static void platter_start(void) {
        vfs = *sqlite3_vfs_find("unix");
        vfs.pAppData = sqlite3_vfs_find("unix");
        vfs.pNext = NULL;
        vfs.iVersion = 2;
        vfs.zName = "platter";
        vfs.szOsFile = (int)sizeof(struct file) + inner()->szOsFile;
        vfs.xOpen = v_open;
        vfs.xDelete = v_delete;
        MUST(sqlite3_vfs_register(&vfs, 0));
        world_vfs = vfs.zName;
}

static bool has(struct tree *t, const char *name) {
        struct node n;
        int r = tree_lookup(t, INO_ROOT, name, strlen(name), &n);
        assert_true(r == 0 || r == -ENOENT);
        return r == 0;
}

static void mkdir_at(struct tree *t, const char *name) {
        struct tree_new what = { .kind = NODE_DIR, .mode = 0755 };
        struct node n;
        MUST(tree_create(t, INO_ROOT, name, strlen(name), &what, &n));
}

static struct tree *open_at(const char *path, const char *with, bool power_cut, unsigned log_pages) {
        struct tree_config c = { .path = path, .vfs = with, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters, .uid = 1000, .gid = 1000, .power_cut = power_cut, .log_pages = log_pages };
        struct tree *t;
        MUST(tree_open(&c, &t));
        return t;
}

static void copy(const char *from, const char *to) {
        static char buf[1 << 16];
        FILE *in = fopen(from, "rbe"), *out = fopen(to, "wbe");
        assert_non_null(out);
        for (size_t n; in && (n = fread(buf, 1, sizeof buf, in)) > 0;)
                assert_int_equal(fwrite(buf, 1, n, out), n);
        MUST(fclose(out));
        if (in)
                MUST(fclose(in));
}

/* The files as a power cut leaves them (cut), or the end of the process: as they are read, and as the platter has them. */
static void copies(const char *to, bool cut) {
        static const char *const parts[] = { "", "-wal", "-mark" };
        char a[200], b[200];
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                (void)snprintf(a, sizeof a, "%s%s" SUFFIX, w.path, parts[i]);
                (void)snprintf(b, sizeof b, "%s%s%s", to, parts[i], cut ? "" : SUFFIX);
                copy(a, b);
                if (cut)
                        continue;
                (void)snprintf(a, sizeof a, "%s%s", w.path, parts[i]);
                (void)snprintf(b, sizeof b, "%s%s", to, parts[i]);
                copy(a, b);
        }
}

/* After a power cut at this moment there are the first n of d0, d1, ... */
static void expect(unsigned n, unsigned made) {
        char path[150], name[20];
        (void)snprintf(path, sizeof path, "%s.cut", w.path);
        copies(path, true);
        struct tree *t = open_at(path, "unix", true, 0);
        for (unsigned i = 0; i < made; i++) {
                (void)snprintf(name, sizeof name, "d%u", i);
                assert_int_equal(has(t, name), i < n);
        }
        tree_close(t);
}

static unsigned made, promised;
static void make_some(unsigned n) {
        char name[20];
        for (unsigned i = 0; i < n; i++) {
                (void)snprintf(name, sizeof name, "d%u", made++);
                mkdir_at(w.tree, name);
                if (db_log_pages(w.tree->w) == 0 && !refused) /* that one made a checkpoint */
                        promised = made;
        }
}
static void sync_ok(void) {
        MUST(tree_sync(w.tree));
        promised = made;
        expect(promised, made);
}
static void sync_fails(const char *what) {
        const unsigned before = refusals;
        while (promised == made)
                make_some(1);
        refused = what;
        assert_int_equal(tree_sync(w.tree), -EIO);
        refused = NULL;
        assert_true(refusals > before);
        expect(promised, made);
}

static void begin(unsigned log_pages) {
        made = promised = 0;
        dropped = false;
        world_open(&w, 1, 0);
        MUST(tree_sync(w.tree));
        tree_close(w.tree);
        w.tree = open_at(w.path, vfs.zName, false, log_pages);
        sync_ok();
}

/* Who asks while it fails is told; who asks later is served, and so is what the first one had written. */
static void test_later_ones_succeed(void **state) {
        begin(64);
        for (unsigned round = 0; round < 40; round++) {
                make_some(1 + round % 7);
                for (unsigned k = 0; k <= round % 3; k++) {
                        sync_fails(round % 2 ? "-mark" : "-wal");
                        if (k == 1)
                                make_some(2);
                }
                if (round % 5 == 0) { /* a checkpoint comes between, or tries to */
                        sync_ok();
                        make_some(1);
                        sync_fails("-wal");
                }
                sync_ok();
                MUST(tree_sync(w.tree)); /* nothing new */
        }
        world_close(&w);
}

/* The database itself cannot be synced, in a checkpoint: nothing was promised with it, and the next one writes all again. */
static void test_checkpoint(void **state) {
        begin(16);
        for (unsigned round = 0; round < 20; round++) {
                refused = ".db";
                make_some(10);
                MUST(tree_sync(w.tree));
                promised = made;
                expect(promised, made);
                refused = NULL;
                make_some(3);
                sync_ok();
        }
        assert_true(refusals > 0);
        world_close(&w);
}

static void log_full(void *arg) { *(unsigned *)arg += 1; }

/* All is synced, and then the checkpoint is refused. Who asks later, with nothing new, is not told of that: the disk is asked again. */
static void test_after_the_round(void **state) {
        unsigned told = 0;
        begin(64);
        tree_close(w.tree);
        struct tree_config c = { .path = w.path, .vfs = vfs.zName, .clock = &w.clock.clock, .rng = &w.rng.rng, .counters = &w.counters, .uid = 1000, .gid = 1000, .log_pages = 16, .log_full = log_full, .sync_arg = &told };
        MUST(tree_open(&c, &w.tree));
        sync_ok();
        while (told == 0)
                make_some(1);
        refused = "-mark";
        spared = 1;
        sync_ok();
        assert_int_equal(spared, 0);
        const unsigned before = refusals;
        assert_true(before > 0);
        refused = NULL;
        MUST(tree_sync(w.tree));
        expect(made, made);
        make_some(3);
        sync_ok();
        world_close(&w);
}

/* The process ends after it was told, and the next one is not told: what it then promises is there all the same. */
static void test_next_process(void **state) {
        char path[150];
        for (unsigned k = 0; k < 3; k++) {
                begin(64);
                make_some(4);
                sync_ok();
                make_some(1 + k * 30);
                sync_fails("-wal");
                (void)snprintf(path, sizeof path, "%s.next", w.path);
                copies(path, false); /* killed */
                tree_close(w.tree);
                memcpy(w.path, path, sizeof w.path);
                w.tree = open_at(w.path, vfs.zName, false, 64);
                for (unsigned i = 0; i < made; i++) {
                        char name[20];
                        (void)snprintf(name, sizeof name, "d%u", i);
                        assert_true(has(w.tree, name));
                }
                expect(promised, made);
                sync_ok();
                world_close(&w);
        }
}

/* The kernel has dropped what it could not write: nobody has it any more, and nobody is told that it is safe. */
static void test_dropped(void **state) {
        begin(64);
        make_some(5);
        sync_ok();
        make_some(5);
        dropped = true;
        sync_fails("-wal");
        for (unsigned i = 0; i < 3; i++) {
                assert_int_equal(tree_sync(w.tree), -EIO);
                expect(promised, made);
        }
        tree_close(w.tree);
        w.tree = open_at(w.path, vfs.zName, false, 64);
        for (unsigned i = 0; i < made; i++) {
                char name[20];
                (void)snprintf(name, sizeof name, "d%u", i);
                assert_int_equal(has(w.tree, name), i < promised);
        }
        made = promised;
        sync_ok();
        make_some(3);
        sync_ok();
        world_close(&w);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_later_ones_succeed), cmocka_unit_test(test_checkpoint), cmocka_unit_test(test_after_the_round), cmocka_unit_test(test_next_process), cmocka_unit_test(test_dropped) };
        platter_start();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
