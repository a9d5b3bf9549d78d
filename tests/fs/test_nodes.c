/* SPDX-License-Identifier: Apache-2.0 */
/* The node table against a model, and the order of notifications: a session whose device is this program, so that every message to the "kernel" is seen. What a race
 * would show once in a million runs is made to happen here: a request is held between its rows and its reply while a note comes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/fuse.h>

#include "fs.h"
#include "../tmpdir.h"

#define SENT_MAX 256

static struct world {
        struct mount *m;
        struct cache cache;
        struct counters counters;
        char dir[64];
        struct lock lock;
        struct cond changed;
        struct { int kind; uint64_t nodeid; int64_t off; char name[64]; } sent[SENT_MAX];
        size_t n_sent;
} *w;

static ssize_t io_read(int fd, void *buf, size_t n, void *userdata) {
        return 0;
}

static ssize_t io_writev(int fd, struct iovec *iov, int count, void *userdata) {
        uint8_t all[4096];
        size_t n = 0;
        for (int i = 0; i < count; i++) {
                assert_true(n + iov[i].iov_len <= sizeof all);
                memcpy(all + n, iov[i].iov_base, iov[i].iov_len);
                n += iov[i].iov_len;
        }
        struct fuse_out_header head;
        memcpy(&head, all, sizeof head);
        if (head.unique != 0)
                return (ssize_t)n; /* the INIT reply */
        LOCK_SCOPE(&w->lock);
        assert_true(w->n_sent < SENT_MAX);
        w->sent[w->n_sent].kind = head.error;
        if (head.error == FUSE_NOTIFY_INVAL_INODE) {
                struct fuse_notify_inval_inode_out out;
                memcpy(&out, all + sizeof head, sizeof out);
                w->sent[w->n_sent].nodeid = out.ino;
                w->sent[w->n_sent].off = out.off;
        } else {
                struct fuse_notify_inval_entry_out out;
                memcpy(&out, all + sizeof head, sizeof out);
                w->sent[w->n_sent].nodeid = out.parent;
                memcpy(w->sent[w->n_sent].name, all + sizeof head + sizeof out, out.namelen);
        }
        w->n_sent++;
        cond_broadcast(&w->changed);
        return (ssize_t)n;
}

static const struct fuse_custom_io io = { .writev = io_writev, .read = io_read };
static const struct fuse_lowlevel_ops ops = { .init = op_init };

/* The first load: a snapshot that has the root only. */
static void load(struct tree *t) {
        struct cursor at = { .epoch = rng_id(rng_system()), .seq = 1 };
        struct node_row root = { .id = id_root, .kind = NODE_DIR, .mode = 0755, .seq = 1 };
        struct snapshot_state s;
        assert_int_equal(tree_snapshot_begin(t, &at, &s), 0);
        s.nodes_after = root.id;
        s.nodes_end = s.entries_end = true;
        assert_int_equal(tree_snapshot_nodes(t, &root, 1, &s), 0);
        assert_int_equal(tree_snapshot_entries(t, NULL, 0, &s), 0);
        int r;
        do
                r = tree_snapshot_step(t, &at, 1000, NULL, NULL);
        while (r > 0);
        assert_int_equal(r, 0);
}

static int start(void **state) {
        w = calloc(1, sizeof *w);
        lock_init(&w->lock, "world", RANK_LOG);
        cond_init(&w->changed);
        (void)snprintf(w->dir, sizeof w->dir, "/tmp/tarn-nodes-test.%s", "XXXXXX");
        assert_non_null(tmpdir_new(w->dir));
        char path[96];
        (void)snprintf(path, sizeof path, "%s/tree.db", w->dir);
        struct tree_config tc = { .path = path, .readers = 2, .clock = clock_system(), .rng = rng_system(), .counters = &w->counters };
        assert_int_equal(tree_open(&tc, &w->cache.tree), 0);
        load(w->cache.tree);
        struct mount_config mc = { .cache = &w->cache, .mountpoint = "/nowhere", .source_name = "x", .clock = clock_system(), .counters = &w->counters };
        assert_int_equal(mount_new(&mc, &w->m), 0);
        struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
        assert_int_equal(fuse_opt_add_arg(&args, "test"), 0);
        w->m->se = fuse_session_new(&args, &ops, sizeof ops, w->m);
        fuse_opt_free_args(&args);
        assert_non_null(w->m->se);
        int ends[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
        close(ends[1]);
        assert_int_equal(fuse_session_custom_io(w->m->se, &io, ends[0]), 0);
        struct { struct fuse_in_header head; struct fuse_init_in in; } init = { { .len = sizeof init, .opcode = FUSE_INIT, .unique = 2 },
                                                                                 { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_readahead = 65536, .flags = ~0u & ~FUSE_INIT_EXT } };
        struct fuse_buf buf = { .mem = &init, .size = sizeof init };
        fuse_session_process_buf(w->m->se, &buf);
        assert_int_equal(notify_start(w->m), 0);
        return 0;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
        return remove(path);
}

static int stop(void **state) {
        mount_free(w->m);
        tree_close(w->cache.tree);
        cond_destroy(&w->changed);
        lock_destroy(&w->lock);
        assert_int_equal(nftw(w->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
        free(w);
        return 0;
}

static void note(enum note_kind kind, uint64_t ino, const char *name) {
        struct note n = { .kind = kind, .ino = ino, .name = name, .name_bytes = name ? strlen(name) : 0 };
        struct listener *l = mount_listener(w->m);
        l->notes(l, &n, 1);
}

static void wait_sent(size_t n) {
        int64_t deadline = clock_mono_ms(clock_system()) + 10000;
        LOCK_SCOPE(&w->lock);
        while (w->n_sent < n)
                assert_int_equal(cond_wait_until(&w->changed, &w->lock, deadline), 0);
        assert_int_equal(w->n_sent, n);
}

/* The notifier has looked at all that it may issue and waits; then what it sent is all that it will. */
static void settled(void) {
        int64_t deadline = clock_mono_ms(clock_system()) + 10000;
        struct cond never;
        cond_init(&never);
        lock_take(&w->m->lock);
        while (!w->m->note_waits) {
                assert_true(clock_mono_ms(clock_system()) < deadline);
                (void)!cond_wait_until(&never, &w->m->lock, clock_mono_ms(clock_system()) + 1);
        }
        lock_drop(&w->m->lock);
        cond_destroy(&never);
}

#define KNOWN(id) assert_int_equal(nodes_ref(w->m, (id)), 0)

static void test_waits_for_older_requests(void **state) {
        struct reg before, after;
        KNOWN(5);
        reg_begin(w->m, &before);
        note(NOTE_ATTR, 5, NULL);
        reg_begin(w->m, &after);
        settled();
        wait_sent(0);
        reg_end(w->m, &before); /* its reply with the old row has reached the kernel: now */
        wait_sent(1);
        assert_int_equal(w->sent[0].kind, FUSE_NOTIFY_INVAL_INODE);
        assert_int_equal(w->sent[0].nodeid, 5);
        assert_true(w->sent[0].off < 0); /* attributes only */
        reg_end(w->m, &after);
        settled();
        wait_sent(1);
}

static void test_what_a_reply_in_flight_makes_known(void **state) {
        struct reg lookup;
        note(NOTE_ATTR, 77, NULL); /* unknown and nobody in flight: dropped at the door */
        assert_int_equal(w->m->n_queued, 0);
        reg_begin(w->m, &lookup);
        note(NOTE_ATTR, 77, NULL); /* the lookup may have read the old row */
        note(NOTE_ATTR, 78, NULL);
        KNOWN(77);                 /* ... and tells the kernel */
        settled();
        wait_sent(0);
        reg_end(w->m, &lookup);
        wait_sent(1);
        assert_int_equal(w->sent[0].nodeid, 77);
        settled();
        wait_sent(1);
        assert_int_equal(w->m->n_queued, 0);
}

static void test_parked_requests_stall_only_their_node(void **state) {
        KNOWN(5);
        KNOWN(6);
        assert_int_equal(nodes_park(w->m, 5), 0);
        assert_int_equal(nodes_park(w->m, 5), 0);
        note(NOTE_LIST, 5, NULL);
        note(NOTE_ATTR, 5, NULL); /* drops no pages: goes at once */
        note(NOTE_LIST, 6, NULL);
        wait_sent(2);
        assert_int_equal(w->sent[0].nodeid, 5);
        assert_true(w->sent[0].off < 0);
        assert_int_equal(w->sent[1].nodeid, 6);
        nodes_unpark(w->m, 5);
        settled();
        wait_sent(2);
        nodes_unpark(w->m, 5);
        wait_sent(3);
        assert_int_equal(w->sent[2].nodeid, 5);
        assert_int_equal(w->sent[2].off, 0);
}

static void test_pages_are_not_kept_while_a_note_is_pending(void **state) {
        struct reg r;
        KNOWN(5);
        for (int i = 0; i < 4; i++)
                assert_int_equal(nodes_open(w->m, 5, false), 0);
        assert_true(nodes_opened(w->m, 5, NULL, NULL));
        reg_begin(w->m, &r);
        note(NOTE_LIST, 5, NULL); /* also between the count and the answer of an open */
        assert_false(nodes_opened(w->m, 5, NULL, NULL));
        assert_false(nodes_opened(w->m, 5, NULL, NULL));
        reg_end(w->m, &r);
        wait_sent(1);
        settled();
        assert_true(nodes_opened(w->m, 5, NULL, NULL));
        for (int i = 0; i < 4; i++) {
                nodes_closing(w->m, 5);
                (void)nodes_close(w->m, 5, false);
        }
}

static void test_listing_once_after_a_run_of_names(void **state) {
        struct reg r;
        KNOWN(5);
        KNOWN(6);
        reg_begin(w->m, &r);
        note(NOTE_ENTRY, 5, "a");
        note(NOTE_ENTRY, 5, "b");
        note(NOTE_ENTRY, 6, "c");
        reg_end(w->m, &r);
        wait_sent(5);
        const struct { int kind; uint64_t nodeid; const char *name; } want[] = { { FUSE_NOTIFY_INVAL_ENTRY, 5, "a" }, { FUSE_NOTIFY_INVAL_ENTRY, 5, "b" }, { FUSE_NOTIFY_INVAL_INODE, 5, "" },
                                                                                  { FUSE_NOTIFY_INVAL_ENTRY, 6, "c" }, { FUSE_NOTIFY_INVAL_INODE, 6, "" } };
        for (size_t i = 0; i < 5; i++) {
                assert_int_equal(w->sent[i].kind, want[i].kind);
                assert_int_equal(w->sent[i].nodeid, want[i].nodeid);
                assert_string_equal(w->sent[i].name, want[i].name);
        }
}

static void test_superseded_incarnation_keeps_its_pages(void **state) {
        struct tree_new what = { .kind = NODE_FILE, .mode = 0644 };
        struct node n;
        assert_int_equal(tree_create(w->cache.tree, INO_ROOT, "f", 1, &what, &n), 0);
        uint64_t now = nodeid_of(&n), other = n.ino | UINT64_C(7) << 48;
        KNOWN(now);
        KNOWN(other);
        note(NOTE_CONTENT, n.ino, NULL);
        wait_sent(2);
        for (int i = 0; i < 2; i++)
                assert_true((w->sent[i].nodeid == now && w->sent[i].off == 0) || (w->sent[i].nodeid == other && w->sent[i].off < 0));
}

static void test_flood(void **state) {
        struct tree_new what = { .kind = NODE_DIR, .mode = 0755 };
        struct node n;
        struct reg r;
        assert_int_equal(tree_create(w->cache.tree, INO_ROOT, "d", 1, &what, &n), 0);
        KNOWN(n.ino);
        KNOWN(99);
        w->m->notes_max = 3;
        reg_begin(w->m, &r);
        for (int i = 0; i < 10; i++)
                note(NOTE_ATTR, 99, NULL);
        assert_int_equal(nodes_open(w->m, n.ino, false), 0);
        assert_false(nodes_opened(w->m, n.ino, NULL, NULL));
        nodes_closing(w->m, n.ino);
        settled();
        wait_sent(0);
        reg_end(w->m, &r);
        wait_sent(3 + 1 + 3); /* all three that are known, the root's one name, the queue */
        bool named = false;
        for (size_t i = 0; i < w->n_sent; i++)
                named |= w->sent[i].kind == FUSE_NOTIFY_INVAL_ENTRY && w->sent[i].nodeid == 1 && strcmp(w->sent[i].name, "d") == 0;
        assert_true(named);
        settled();
        assert_false(w->m->flood);
        (void)nodes_close(w->m, n.ino, false);
}

static void test_kept_and_last_close(void **state) {
        KNOWN(9);
        KNOWN(9 | UINT64_C(1) << 48);
        assert_false(nodes_kept(w->m, 9));
        assert_int_equal(nodes_open(w->m, 9, true), 0);
        assert_int_equal(nodes_open(w->m, 9 | UINT64_C(1) << 48, false), 0);
        assert_true(nodes_kept(w->m, 9));
        nodes_unlinked(w->m, 9);
        assert_false(nodes_close(w->m, 9, true)); /* the other incarnation is still open */
        assert_true(nodes_kept(w->m, 9));
        assert_true(nodes_close(w->m, 9 | UINT64_C(1) << 48, false));
        assert_false(nodes_kept(w->m, 9));
        assert_int_equal(nodes_open(w->m, 9, false), 0);
        assert_false(nodes_close(w->m, 9, false)); /* nothing happened to its names: no query */
        assert_int_equal(nodes_open(w->m, 9, false), 0);
        note(NOTE_ENTRY, 3, "somewhere");
        assert_true(nodes_close(w->m, 9, false)); /* a remote change of names: look */
}

/* Random references against a plain array: collisions, growth, shrinking, removal in the middle of a run. */
static void test_table(void **state) {
        enum { N = 3000 };
        static unsigned count[N][3];
        struct rng_seeded rng;
        const char *given = getenv("TARN_TEST_SEED");
        uint64_t seed = given ? strtoull(given, NULL, 0) : rng_u64(rng_system());
        printf("TARN_TEST_SEED=%llu\n", (unsigned long long)seed);
        rng_seed(&rng, seed);
        memset(count, 0, sizeof count);
        size_t live = 0;
        for (int step = 0; step < 200000; step++) {
                bool growing = step / 20000 % 2 == 0;
                size_t i = rng_below(&rng.rng, N), k = rng_below(&rng.rng, 3);
                uint64_t nodeid = (2 + i * 65536) | (uint64_t)k << 48; /* far apart numbers, near homes */
                if (rng_below(&rng.rng, 10) < (growing ? 7 : 2)) {
                        assert_int_equal(nodes_ref(w->m, nodeid), 0);
                        live += count[i][k]++ == 0;
                } else if (count[i][k] > 0) {
                        unsigned n = (unsigned)rng_below(&rng.rng, count[i][k]) + 1;
                        nodes_forget(w->m, nodeid, n);
                        count[i][k] -= n;
                        live -= count[i][k] == 0;
                }
                assert_int_equal(w->m->n_slots, live + 1); /* and the root */
                if (step % 997 == 0) {
                        LOCK_SCOPE(&w->m->lock);
                        for (size_t a = 0; a < N; a++)
                                for (size_t b = 0; b < 3; b++) {
                                        struct slot *s = slot_find_locked(w->m, (2 + a * 65536) | (uint64_t)b << 48);
                                        assert_int_equal(s ? s->nlookup : 0, count[a][b]);
                                }
                }
        }
        nodes_forget(w->m, FUSE_ROOT_ID, 1000); /* never goes */
        LOCK_SCOPE(&w->m->lock);
        assert_non_null(slot_find_locked(w->m, FUSE_ROOT_ID));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
int main(void) {
        const struct CMUnitTest tests[] = {
                TEST(test_waits_for_older_requests),
                TEST(test_what_a_reply_in_flight_makes_known),
                TEST(test_parked_requests_stall_only_their_node),
                TEST(test_pages_are_not_kept_while_a_note_is_pending),
                TEST(test_listing_once_after_a_run_of_names),
                TEST(test_superseded_incarnation_keeps_its_pages),
                TEST(test_flood),
                TEST(test_kept_and_last_close),
                TEST(test_table),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
