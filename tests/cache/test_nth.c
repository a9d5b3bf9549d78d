/* SPDX-License-Identifier: Apache-2.0 */
/* test_nth.c: the n-th write, sync, change of a file's length or allocation fails, for n = 1, 2, ... until a run of changes of the tree meets no failure any more. The change that
 * met it says so, or has happened; what is shown then, and after the next open, is the state before it or after it, and all rules of the tree hold. Never a crash, never half a change.
 *
 * System calls (their 64-bit names) are replaced in this program for SQLite too (a shared library finds the program's symbols first); allocations at link time for our own objects. Only while armed, only on the main thread. */
#include "world.h"

#include <errno.h>
#include <sys/syscall.h>

#include "base/digest.h"
#include "base/io.h"
#include "db.h"
#include "tree_priv.h"

enum kind { WRITE, WRITE_FULL, SYNC, LENGTH, ALLOC, KINDS };
static const char *const kind_names[] = { "write (EIO)", "write (ENOSPC)", "sync", "length", "allocation" };

static _Thread_local bool armed;
static _Thread_local enum kind armed_kind;
static _Thread_local unsigned left;
static _Thread_local bool fired;

static bool hit(enum kind kind) {
        if (!armed || kind != armed_kind || fired || --left > 0)
                return false;
        return fired = true;
}

static ssize_t put(int fd, const void *p, size_t n, off_t at) {
        if (hit(WRITE))
                return errno = EIO, -1;
        if (armed && armed_kind == WRITE_FULL && (fired || --left == 0)) { /* a full disk stays full */
                fired = true;
                return errno = ENOSPC, -1;
        }
        return (ssize_t)syscall(SYS_pwrite64, fd, p, n, at);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return put(fd, p, n, at); }
int fsync(int fd) { return hit(SYNC) ? (errno = EIO, -1) : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return hit(SYNC) ? (errno = EIO, -1) : (int)syscall(SYS_fdatasync, fd); }
int ftruncate(int fd, off_t n) { return hit(LENGTH) ? (errno = EIO, -1) : (int)syscall(SYS_ftruncate, fd, n); }

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_reallocarray(void *p, size_t n, size_t size);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_reallocarray(void *p, size_t n, size_t size);
void *__wrap_malloc(size_t n) { return hit(ALLOC) ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t size) { return hit(ALLOC) ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t n) { return hit(ALLOC) ? NULL : __real_realloc(p, n); }
void *__wrap_reallocarray(void *p, size_t n, size_t size) { return hit(ALLOC) ? NULL : __real_reallocarray(p, n, size); }

/* ---- the changes ---- */

static struct world w;

static int create(const char *name, enum node_kind kind) {
        struct tree_new what = { .kind = kind, .mode = kind == NODE_DIR ? 0755 : 0644, .uid = 1000, .gid = 1000, .target = kind == NODE_SYMLINK ? "there" : NULL };
        struct node node;
        return tree_create(w.tree, INO_ROOT, name, strlen(name), &what, &node);
}

static int find(const char *name, uint64_t *ret) {
        struct node node;
        int r = tree_lookup(w.tree, INO_ROOT, name, strlen(name), &node);
        if (r == 0)
                *ret = node.ino;
        return r;
}

static int content(const char *name, uint64_t gen, uint64_t size) {
        uint64_t ino = 0, dropped;
        int r = find(name, &ino);
        return r < 0 ? r : tree_content(w.tree, ino, gen, size, w.clock.real_ns, NULL, &dropped);
}

static int send_one(void) {
        struct arena *a;
        struct outbox_item items[8];
        size_t n = 0;
        int64_t wait;
        int r = arena_new(16u << 20, &a);
        if (r < 0)
                return r;
        r = outbox_next(w.tree, a, items, 8, &n, &wait);
        if (r == 0 && n > 0)
                r = outbox_mark_sent(w.tree, &items[0].op.id, 1);
        arena_free(a);
        return MIN(r, 0);
}

#define STEPS 20
static int step(unsigned k) {
        uint64_t ino = 0, dir = 0;
        struct node node;
        int r;
        switch (k) {
        case 0: return create("a", NODE_FILE);
        case 1: return content("a", 100, 1000);
        case 2: return create("d", NODE_DIR);
        case 3: return (r = find("d", &dir)) < 0 ? r : mv(&w, INO_ROOT, "a", dir, "b", 0);
        case 4: return create("c", NODE_FILE);
        case 5: return content("c", 101, 2000);
        case 6: return (r = find("d", &dir)) < 0 ? r : mv(&w, INO_ROOT, "c", dir, "b", 0);
        case 7: return create("l", NODE_SYMLINK);
        case 8: return create("e", NODE_FILE);
        case 9: return (r = find("e", &ino)) < 0 ? r : tree_link(w.tree, ino, INO_ROOT, "f", 1, &node);
        case 10: return (r = find("e", &ino)) < 0 ? r : chmod_to(&w, ino, 0600);
        case 11: return content("old 3", 102, 5);
        case 12: return rm(&w, INO_ROOT, "old 4");
        case 13: return mv(&w, INO_ROOT, "old 5", INO_ROOT, "old 6", 0);
        case 14: return tree_sync(w.tree);
        case 15: return send_one();
        case 16: return (r = tree_sync(w.tree)) < 0 ? r : db_checkpoint(w.tree->w);
        case 17: return rm(&w, INO_ROOT, "e");
        case 18: return content("old 3", 103, 50);
        default: return tree_sync(w.tree);
        }
}

struct seen { uint64_t all, names; /* names and pending operations */ };

static struct seen state_of(void) {
        uint64_t sums[WORLD_SUMS];
        world_sums(w.tree, sums);
        assert_int_equal(check_tree_rules(w.tree->w), 0);
        return (struct seen){ xxh3_64(sums, sizeof sums), xxh3_64(sums + 1, 2 * sizeof sums[0]) };
}

static void begin(const struct buf *file) {
        static const char *const parts[] = { "-wal", "-shm", "" };
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                char path[128];
                (void)snprintf(path, sizeof path, "%s%s", w.path, parts[i]);
                (void)unlink(path);
        }
        int fd = open(w.path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        MUST(write_full(fd, file->data, file->bytes));
        (void)close(fd);
        rng_seed(&w.rng, 42);
        world_reopen(&w, 1);
}

static void end(void) {
        tree_close(w.tree);
        w.tree = NULL;
}

static void test_each_failure(void **state) {
        _cleanup_buf_ struct buf file = BUF_INIT(64 << 20);
        struct seen want[STEPS + 1];
        if (access("/dev/shm", W_OK) == 0)
                world_at = "/dev/shm";
        world_open(&w, 7, 1);
        for (int i = 0; i < 30; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "old %d", i);
                (void)make(&w, INO_ROOT, name, NODE_FILE);
        }
        MUST(tree_sync(w.tree)); /* else the close leaves the log as it is (tree_sync.c) */
        end();
        MUST(file_load(w.path, 64 << 20, &file));
        begin(&file);
        want[0] = state_of();
        for (unsigned k = 0; k < STEPS; k++) {
                MUST(step(k));
                want[k + 1] = state_of();
        }
        end();
        for (enum kind kind = 0; kind < KINDS; kind++) {
                unsigned n = 0, told = 0;
                for (;;) {
                        unsigned k = 0;
                        int r = 0;
                        begin(&file);
                        left = ++n;
                        fired = false;
                        armed_kind = kind;
                        for (; k < STEPS && r == 0; k++) {
                                armed = true;
                                r = step(k);
                                armed = false;
                        }
                        bool met = fired;
                        told += r < 0;
                        if (r < 0 && r != (kind == WRITE_FULL ? -ENOSPC : kind == ALLOC ? -ENOMEM : -EIO))
                                fail_msg("%s %u: step %u fails with %d", kind_names[kind], n, k - 1, r);
                        struct seen before = want[r < 0 ? k - 1 : k], after = want[k], now = state_of();
                        /* without memory for the question whether a node is open it counts as open: its row stays until the next start */
                        bool kept = kind == ALLOC && r == 0;
                        if (kept ? now.names != after.names : now.all != before.all && now.all != after.all)
                                fail_msg("%s %u: step %u (%d) has left something else", kind_names[kind], n, k - 1, r);
                        end();
                        world_reopen(&w, 1);
                        struct seen then = state_of();
                        if (then.names != now.names || (!kept && then.all != now.all))
                                fail_msg("%s %u: step %u (%d) shows something else after the next open", kind_names[kind], n, k - 1, r);
                        end();
                        if (!met)
                                break;
                }
                printf("%s: %u failures, %u told\n", kind_names[kind], n - 1, told);
                assert_true(n > 1 || kind == LENGTH);
        }
        world_close(&w);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_each_failure) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
