/* SPDX-License-Identifier: Apache-2.0 */
/* Each local verb: its errnos, what it shows, what it queues, what it merges. */
#include "conflict.h"
#include "world.h"

#include <sys/xattr.h>

static struct world w;

static int setup(void **state) {
        world_open(&w, 1, 2);
        return 0;
}
static int teardown(void **state) {
        world_check(&w);
        world_close(&w);
        return 0;
}

static struct node node_of(uint64_t ino) {
        struct node n;
        MUST(tree_get(w.tree, ino, &n));
        return n;
}

static void test_create(void **state) {
        struct node f = make(&w, INO_ROOT, "a.txt", NODE_FILE), d = make(&w, INO_ROOT, "d", NODE_DIR);
        assert_int_equal(f.nlink, 1);
        assert_int_equal(d.nlink, 2);
        assert_true(f.pending && d.pending);
        assert_int_equal(node_of(INO_ROOT).nlink, 3);
        assert_int_equal(node_of(INO_ROOT).mtime_ns, w.clock.real_ns);
        assert_int_equal(look(&w, INO_ROOT, "a.txt").ino, f.ino);
        struct tree_new what = { .kind = NODE_FILE };
        struct node n;
        assert_int_equal(tree_create(w.tree, INO_ROOT, "a.txt", 5, &what, &n), -EEXIST);
        assert_int_equal(tree_create(w.tree, f.ino, "x", 1, &what, &n), -ENOTDIR);
        assert_int_equal(tree_create(w.tree, 99999, "x", 1, &what, &n), -ENOENT);
        assert_int_equal(tree_create(w.tree, INO_ROOT, "\xff\xfe", 2, &what, &n), -EILSEQ);
        assert_int_equal(tree_create(w.tree, INO_ROOT, "a/b", 3, &what, &n), -EILSEQ);
        assert_int_equal(tree_create(w.tree, INO_ROOT, "\xed\xa0\x80", 3, &what, &n), -EILSEQ);
        char longer[300];
        memset(longer, 'x', sizeof(longer));
        assert_int_equal(tree_create(w.tree, INO_ROOT, longer, 256, &what, &n), -ENAMETOOLONG);
        MUST(tree_create(w.tree, INO_ROOT, longer, 255, &what, &n));
        assert_int_equal(look_error(&w, INO_ROOT, "nothing"), -ENOENT);
        assert_int_equal(look_error(&w, f.ino, "x"), -ENOTDIR);
        struct outbox_item items[8];
        assert_int_equal(outbox_all(&w, items, 8), 3);
        assert_int_equal(items[0].op.kind, OP_CREATE);
        assert_string_equal(items[0].op.name, "a.txt");
        assert_true(id_equal(&items[0].op.parent, &id_root));
        assert_int_equal(items[1].op.attrs.kind, NODE_DIR);
        assert_int_equal(items[1].op.attrs.mode, 0755);
}

static void test_symlink(void **state) {
        struct node l = make(&w, INO_ROOT, "l", NODE_SYMLINK);
        _cleanup_buf_ struct buf b = BUF_INIT(4096);
        MUST(tree_readlink(w.tree, l.ino, &b));
        assert_string_equal(buf_text(&b), "there");
        assert_int_equal(l.size, 5);
        assert_int_equal(tree_readlink(w.tree, INO_ROOT, &b), -EINVAL);
        struct outbox_item items[2];
        assert_int_equal(outbox_all(&w, items, 2), 1);
        assert_string_equal(items[0].op.attrs.target, "there");
}

static int count_entry(void *arg, const struct tree_entry *e) {
        uint64_t *last = arg;
        assert_true(e->cookie > *last);
        *last = e->cookie;
        return e->name[0] == 'z';
}

static void test_list(void **state) {
        char name[16];
        uint64_t last = 0;
        for (int i = 0; i < 700; i++) {
                (void)snprintf(name, sizeof(name), "f%d", i);
                (void)make(&w, INO_ROOT, name, NODE_FILE);
        }
        MUST(tree_list(w.tree, INO_ROOT, 0, count_entry, &last));
        assert_true(last >= 700);
        uint64_t again = last;
        MUST(tree_list(w.tree, INO_ROOT, last, count_entry, &again));
        assert_int_equal(again, last);
        assert_int_equal(tree_list(w.tree, look(&w, INO_ROOT, "f1").ino, 0, count_entry, &last), -ENOTDIR);
}

static void test_unlink(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE), d = make(&w, INO_ROOT, "d", NODE_DIR);
        (void)make(&w, d.ino, "x", NODE_FILE);
        assert_int_equal(rm(&w, INO_ROOT, "d"), -EISDIR);
        assert_int_equal(rmdir_at(&w, INO_ROOT, "f"), -ENOTDIR);
        assert_int_equal(rmdir_at(&w, INO_ROOT, "d"), -ENOTEMPTY);
        assert_int_equal(rm(&w, INO_ROOT, "none"), -ENOENT);
        MUST(rm(&w, d.ino, "x"));
        MUST(rmdir_at(&w, INO_ROOT, "d"));
        MUST(rm(&w, INO_ROOT, "f"));
        struct node n;
        assert_int_equal(tree_get(w.tree, f.ino, &n), -ENOENT);
        struct outbox_item items[4];
        assert_int_equal(outbox_all(&w, items, 4), 0); /* nothing of it ever happened */
        assert_int_equal(node_of(INO_ROOT).nlink, 2);
}

static void test_unlink_open(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE), n;
        w.open[w.n_open++] = f.ino;
        MUST(tree_unlink(w.tree, INO_ROOT, "f", 1, false, world_kept, &w, &n));
        assert_true(n.unlinked);
        assert_int_equal(n.nlink, 0);
        n = node_of(f.ino);
        assert_true(n.unlinked);
        assert_int_equal(put_content(&w, f.ino, 5, 100), 0);
        struct outbox_item items[4];
        assert_int_equal(outbox_all(&w, items, 4), 0);
        w.n_open = 0;
        MUST(tree_forget(w.tree, f.ino));
        assert_int_equal(tree_get(w.tree, f.ino, &n), -ENOENT);
        MUST(tree_forget(w.tree, f.ino));
        MUST(tree_forget(w.tree, INO_ROOT));
}

static void test_link(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE), d = make(&w, INO_ROOT, "d", NODE_DIR), n;
        assert_int_equal(tree_link(w.tree, d.ino, INO_ROOT, "d2", 2, &n), -EPERM);
        assert_int_equal(tree_link(w.tree, f.ino, INO_ROOT, "d", 1, &n), -EEXIST);
        MUST(tree_link(w.tree, f.ino, d.ino, "g", 1, &n));
        assert_int_equal(n.nlink, 2);
        MUST(tree_link(w.tree, f.ino, d.ino, "h", 1, &n));
        assert_int_equal(n.nlink, 3);
        struct outbox_item items[8];
        assert_int_equal(outbox_all(&w, items, 8), 4);
        MUST(rm(&w, d.ino, "g")); /* its LINK was never sent */
        assert_int_equal(outbox_all(&w, items, 8), 3);
        MUST(rm(&w, INO_ROOT, "f"));
        n = node_of(f.ino);
        assert_int_equal(n.nlink, 1);
        assert_int_equal(n.parent, d.ino);
        _cleanup_buf_ struct buf b = BUF_INIT(4096);
        MUST(tree_path(w.tree, f.ino, &b));
        assert_string_equal(buf_text(&b), "d/h");
}

static void test_unnamed(void **state) {
        struct tree_new what = { .kind = NODE_FILE, .mode = 0600 };
        struct outbox_item items[4];
        struct node n;
        MUST(tree_create_unnamed(w.tree, INO_ROOT, &what, &n));
        (void)put_content(&w, n.ino, 3, 10);
        assert_int_equal(outbox_all(&w, items, 4), 0);
        MUST(tree_link(w.tree, n.ino, INO_ROOT, "now", 3, &n));
        assert_int_equal(n.nlink, 1);
        assert_int_equal(n.size, 10);
        assert_int_equal(outbox_all(&w, items, 4), 1);
        assert_int_equal(items[0].op.kind, OP_CREATE);
        assert_int_equal(items[0].gen, 3);
}

static void test_rename(void **state) {
        struct node a = make(&w, INO_ROOT, "a", NODE_DIR), b = make(&w, a.ino, "b", NODE_DIR), f = make(&w, b.ino, "f", NODE_FILE);
        assert_int_equal(mv(&w, INO_ROOT, "a", b.ino, "x", 0), -EINVAL);
        assert_int_equal(mv(&w, INO_ROOT, "none", INO_ROOT, "x", 0), -ENOENT);
        assert_int_equal(mv(&w, b.ino, "f", INO_ROOT, "a", 0), -EISDIR);
        assert_int_equal(mv(&w, a.ino, "b", b.ino, "f", 0), -EINVAL);
        (void)make(&w, INO_ROOT, "d", NODE_DIR);
        (void)make(&w, INO_ROOT, "g", NODE_FILE);
        assert_int_equal(mv(&w, INO_ROOT, "d", INO_ROOT, "g", 0), -ENOTDIR);
        assert_int_equal(mv(&w, INO_ROOT, "d", INO_ROOT, "a", 0), -ENOTEMPTY);
        assert_int_equal(mv(&w, INO_ROOT, "g", INO_ROOT, "d", 1), -EEXIST); /* RENAME_NOREPLACE */
        assert_int_equal(mv(&w, INO_ROOT, "g", INO_ROOT, "none", 2), -ENOENT); /* RENAME_EXCHANGE */
        assert_int_equal(mv(&w, INO_ROOT, "g", INO_ROOT, "x", 3), -EINVAL);
        MUST(mv(&w, b.ino, "f", INO_ROOT, "f2", 0));
        assert_int_equal(look(&w, INO_ROOT, "f2").ino, f.ino);
        assert_int_equal(look_error(&w, b.ino, "f"), -ENOENT);
        struct outbox_item items[8];
        assert_int_equal(outbox_all(&w, items, 8), 5); /* the CREATE moved */
        MUST(mv(&w, INO_ROOT, "d", INO_ROOT, "e", 0));
        MUST(mv(&w, INO_ROOT, "a", INO_ROOT, "e", 2));
        assert_int_equal(look(&w, INO_ROOT, "e").ino, a.ino);
        assert_int_equal(look(&w, a.ino, "b").ino, b.ino);
        assert_int_equal(node_of(a.ino).nlink, 3);
}

/* A name that came by a link, went away and came back by renames, and is removed then: nothing of it is left, whoever takes the name and leaves it. */
static void test_name_back_and_gone(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE), n;
        MUST(tree_link(w.tree, f.ino, INO_ROOT, "c", 1, &n));
        MUST(mv(&w, INO_ROOT, "c", INO_ROOT, "d", 0));
        MUST(mv(&w, INO_ROOT, "d", INO_ROOT, "c", 0));
        MUST(tree_unlink(w.tree, INO_ROOT, "c", 1, false, world_kept, &w, &n));
        (void)make(&w, INO_ROOT, "c", NODE_DIR);
        MUST(mv(&w, INO_ROOT, "c", INO_ROOT, "e", 0));
        assert_int_equal(look_error(&w, INO_ROOT, "c"), -ENOENT);
        assert_int_equal(look_error(&w, INO_ROOT, "d"), -ENOENT);
        assert_int_equal(node_of(f.ino).nlink, 1);
        struct outbox_item items[8];
        size_t count = outbox_all(&w, items, 8);
        for (size_t i = 0; i < count; i++)
                assert_false(items[i].op.kind == OP_RENAME && items[i].op.name_bytes == items[i].op.name2_bytes && memcmp(items[i].op.name, items[i].op.name2, items[i].op.name_bytes) == 0);
}

static void test_setattr(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE), n;
        struct outbox_item items[4];
        clock_manual_advance(&w.clock, 5);
        struct tree_attrs a = { .mask = ATTR_MODE | ATTR_UID | ATTR_GID | ATTR_MTIME, .mode = 0600, .uid = 5, .gid = 6, .mtime_ns = 77 };
        MUST(tree_setattr(w.tree, f.ino, &a, &n));
        assert_int_equal(n.mode, 0600);
        assert_int_equal(n.uid, 5);
        assert_int_equal(n.mtime_ns, 77);
        assert_int_equal(n.ctime_ns, w.clock.real_ns);
        assert_int_equal(n.btime_ns, f.btime_ns);
        assert_int_equal(outbox_all(&w, items, 4), 1); /* merged into the CREATE */
        assert_int_equal(items[0].op.attrs.mode, 0600);
        assert_int_equal(items[0].op.attrs.mtime_ns, 77);
        assert_int_equal(tree_setattr(w.tree, 999, &a, &n), -ENOENT);
        MUST(chmod_to(&w, INO_ROOT, 0700));
        MUST(chmod_to(&w, INO_ROOT, 0711));
        assert_int_equal(outbox_all(&w, items, 4), 2); /* and into the ATTR */
        assert_int_equal(items[1].op.kind, OP_ATTR);
        assert_int_equal(items[1].op.attrs.mode, 0711);
        assert_int_equal(items[1].op.attr_mask, ATTR_MODE | ATTR_CTIME);
}

static void test_xattr(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE);
        _cleanup_buf_ struct buf b = BUF_INIT(1u << 20);
        assert_int_equal(tree_xattr_get(w.tree, f.ino, "user.a", &b), -ENODATA);
        MUST(tree_xattr_set(w.tree, f.ino, "user.a", "one", 3, 0));
        MUST(tree_xattr_set(w.tree, f.ino, "user.b", "", 0, XATTR_CREATE));
        assert_int_equal(tree_xattr_set(w.tree, f.ino, "user.a", "x", 1, XATTR_CREATE), -EEXIST);
        assert_int_equal(tree_xattr_set(w.tree, f.ino, "user.c", "x", 1, XATTR_REPLACE), -ENODATA);
        MUST(tree_xattr_set(w.tree, f.ino, "user.a", "two", 3, XATTR_REPLACE));
        MUST(tree_xattr_get(w.tree, f.ino, "user.a", &b));
        assert_string_equal(buf_text(&b), "two");
        buf_reset(&b);
        MUST(tree_xattr_list(w.tree, f.ino, &b));
        assert_int_equal(b.bytes, 14);
        assert_true(node_of(f.ino).has_xattrs);
        char *big = calloc(1, 65536);
        MUST(tree_xattr_set(w.tree, f.ino, "user.1", big, 65536, 0));
        assert_int_equal(tree_xattr_set(w.tree, f.ino, "user.2", big, 65536, 0), -ENOSPC);
        free(big);
        MUST(tree_xattr_remove(w.tree, f.ino, "user.1"));
        MUST(tree_xattr_remove(w.tree, f.ino, "user.b"));
        assert_int_equal(tree_xattr_remove(w.tree, f.ino, "user.b"), -ENODATA);
        struct outbox_item items[2];
        assert_int_equal(outbox_all(&w, items, 2), 1);
        assert_int_equal(items[0].op.attrs.n_xattrs, 1);
        assert_string_equal(items[0].op.attrs.xattrs[0].name, "user.a");
        MUST(tree_xattr_remove(w.tree, f.ino, "user.a"));
        assert_false(node_of(f.ino).has_xattrs);
}

static void test_content(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE), n;
        struct outbox_item items[4];
        assert_int_equal(put_content(&w, f.ino, 1, 100), 0);
        n = node_of(f.ino);
        assert_int_equal(n.gen, 1);
        assert_int_equal(n.size, 100);
        assert_int_equal(put_content(&w, f.ino, 2, 50), 1); /* the CREATE's content is replaced */
        assert_int_equal(outbox_all(&w, items, 4), 1);
        assert_int_equal(items[0].gen, 2);
        assert_int_equal(items[0].op.content.size, 50);
        uint64_t dropped;
        assert_int_equal(tree_content(w.tree, INO_ROOT, 3, 1, 1, NULL, &dropped), -EISDIR);
        /* sent: a new one, with the sent one's as its base */
        MUST(outbox_mark_sent(w.tree, &items[0].op.id, 1));
        assert_int_equal(put_content(&w, f.ino, 3, 60), 0);
        assert_int_equal(put_content(&w, f.ino, 4, 70), 3);
        assert_int_equal(outbox_all(&w, items, 4), 2);
        assert_int_equal(items[0].gen, 2);
        assert_int_equal(items[1].gen, 4);
        assert_int_equal(items[1].op.kind, OP_CONTENT);
        assert_true(id_equal(&items[1].op.version, &items[0].op.id));
        /* a sent row is never changed */
        MUST(chmod_to(&w, f.ino, 0600));
        assert_int_equal(outbox_all(&w, items, 4), 3);
        MUST(rm(&w, INO_ROOT, "f"));
        assert_int_equal(outbox_all(&w, items, 4), 2); /* unsent content and attributes go, the sent CREATE stays, UNLINK follows */
        assert_int_equal(items[1].op.kind, OP_UNLINK);
        assert_true(id_equal(&items[1].op.version, &items[0].op.id));
        assert_true(id_equal(&items[1].op.placement, &items[0].op.id));
}

static void test_protected(void **state) {
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE);
        struct outbox_item items[4];
        (void)put_content(&w, f.ino, 1, 100);
        assert_int_equal(outbox_ready(&w, items, 4, NULL), 1);
        clock_manual_advance(&w.clock, 1000);
        assert_int_equal(put_content(&w, f.ino, 2, 100), 1); /* just handed out: replaced */
        assert_int_equal(outbox_ready(&w, items, 4, NULL), 1);
        clock_manual_advance(&w.clock, 2500);
        assert_int_equal(put_content(&w, f.ino, 3, 100), 0); /* in hand for 3 s: must come to its end */
        assert_int_equal(put_content(&w, f.ino, 4, 100), 3);
        assert_int_equal(outbox_all(&w, items, 4), 2);
        assert_int_equal(items[0].gen, 2);
        assert_int_equal(outbox_ready(&w, items, 4, NULL), 1);
        assert_int_equal(items[0].gen, 2);
}

static void test_settings(void **state) {
        _cleanup_buf_ struct buf b = BUF_INIT(4096);
        assert_int_equal(tree_setting_get(w.tree, "device", &b), -ENOENT);
        MUST(tree_setting_set(w.tree, "device", "abc", 3));
        MUST(tree_setting_set(w.tree, "device", "abcd", 4));
        MUST(tree_setting_get(w.tree, "device", &b));
        assert_string_equal(buf_text(&b), "abcd");
        MUST(tree_sync(w.tree));
        MUST(tree_sync(w.tree));
        struct tree_totals totals;
        MUST(tree_totals(w.tree, &totals));
        assert_int_equal(totals.nodes, 1);
        assert_true(totals.complete);
}

/* A stage that lies on disk longer than its node: what was replaced by an atomic save, and that by another, does not come back after a kill. */
static void test_recover_replaced(void **state) {
        static struct model m;
        model_open(&m, 7);
        const uint64_t gen = (uint64_t)(clock_real_ns(&w.clock.clock) / 1000) + 1000;
        struct node b = make(&w, INO_ROOT, "b", NODE_FILE);
        (void)put_content(&w, b.ino, gen, 1);
        sync_all(&w, &m);
        struct node one = make(&w, INO_ROOT, "one", NODE_FILE);
        struct stage_identity s = { .ino = one.ino, .gen = gen + 1, .node = one.id, .parent = id_root, .name = "one", .mode = 0644, .size = 2 };
        (void)put_content(&w, one.ino, gen + 1, 2);
        MUST(mv(&w, INO_ROOT, "one", INO_ROOT, "b", 0));
        struct node two = make(&w, INO_ROOT, "two", NODE_FILE);
        (void)put_content(&w, two.ino, gen + 2, 3);
        MUST(mv(&w, INO_ROOT, "two", INO_ROOT, "b", 0));
        MUST(rm(&w, INO_ROOT, "b"));
        sync_all(&w, &m);
        tree_close(w.tree);
        world_reopen(&w, 0);
        enum recover_result how;
        MUST(tree_recover_stage(w.tree, &s, &how));
        assert_int_equal(how, RECOVER_COMMITTED);
        assert_int_equal(look_error(&w, INO_ROOT, "one"), -ENOENT);
        /* one that this tree never knew is another matter */
        s = (struct stage_identity) { .ino = 1u << 30, .gen = gen + 9, .node = { { 9 } }, .parent = id_root, .name = "new", .mode = 0644, .size = 2 };
        MUST(tree_recover_stage(w.tree, &s, &how));
        assert_int_equal(how, RECOVER_QUEUED);
        assert_int_equal(look_error(&w, INO_ROOT, "new"), 0);
        model_close(&m);
}

static void test_conflict_name(void **state) {
        char out[NAME_BYTES_MAX + 1], longer[256];
        conflict_name("a.txt", 5, "box", 1, out);
        assert_string_equal(out, "a (conflict box 1).txt");
        conflict_name(".bashrc", 7, "box", 2, out);
        assert_string_equal(out, ".bashrc (conflict box 2)");
        conflict_name("x", 1, "a/b", 1, out);
        assert_string_equal(out, "x (conflict a-b 1)");
        for (int i = 0; i < 255; i += 3)
                memcpy(longer + i, "\xe2\x82\xac", 3);
        conflict_name(longer, 255, "box", 12, out);
        assert_true(strlen(out) <= 255);
        assert_memory_equal(out + strlen(out) - 18, " (conflict box 12)", 18);
        assert_int_equal((strlen(out) - 18) % 3, 0);
        /* a copy of a copy has one suffix, whoever made the first one; of several that an older program stacked, one is left */
        conflict_name("a (conflict box 1).txt", 22, "box", 2, out);
        assert_string_equal(out, "a (conflict box 2).txt");
        conflict_name("a (conflict far away 17).txt", 28, "box", 1, out);
        assert_string_equal(out, "a (conflict box 1).txt");
        conflict_name("a (conflict x 1) (conflict y 2)", 31, "box", 3, out);
        assert_string_equal(out, "a (conflict box 3)");
        conflict_name("a (conflict x 1) (conflict y 2).txt", 35, "box", 3, out);
        assert_string_equal(out, "a (conflict box 3).txt");
        /* what only looks like one stays */
        static const char *const others[] = { "a (conflict x).t", "a (conflict x 0).t", "a (conflict  1).t", "a(conflict x 1).t", " (conflict x 1)", "a (conflict x 1) b.t", "a (conflict x 1234567890).t" };
        for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
                struct conflict_suffix suffix;
                assert_false(conflict_parse(others[i], strlen(others[i]), &suffix));
                conflict_name(others[i], strlen(others[i]), "box", 1, out);
                const char *dot = strrchr(others[i], '.');
                assert_memory_equal(out, others[i], dot ? (size_t)(dot - others[i]) : strlen(others[i]));
        }
        /* the number grows */
        assert_int_equal(conflict_next("a.txt", 5, "box"), 1);
        assert_int_equal(conflict_next("a (conflict box 7).txt", 22, "box"), 8);
        assert_int_equal(conflict_next("a (conflict fox 7).txt", 22, "box"), 1);
        assert_int_equal(conflict_next("a (conflict a-b 7)", 18, "a/b"), 8);
        /* hosts that are no text, or too long */
        conflict_name("a", 1, "h\xff\n", 1, out);
        assert_string_equal(out, "a (conflict h-- 1)");
        conflict_name("a", 1, "", 1, out);
        assert_string_equal(out, "a (conflict - 1)");
}

/* Any name of up to 255 bytes, again and again: never too long, never cut inside a character, one suffix, the same host. */
static void test_conflict_names(void **state) {
        static const char *const pieces[] = { "a", ".", " ", ")", "(", "1", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", " (conflict b 1)", ".tar", "e\xcc\x81" };
        static const char *const hosts[] = { "b", "h\xc3\xb6st", "a very long name of a machine that has sixty-four bytes \xe2\x82\xac\xe2\x82\xac\xe2\x82\xac and more", "x/y" };
        char name[NAME_BYTES_MAX + 1], next[NAME_BYTES_MAX + 1];
        for (unsigned round = 0; round < 20000; round++) {
                const char *host = hosts[rng_below(&w.rng.rng, ARRAY_SIZE(hosts))];
                const size_t want = 1 + (size_t)rng_below(&w.rng.rng, round % 2 ? NAME_BYTES_MAX : 40);
                size_t n = 0;
                for (;;) {
                        const char *piece = pieces[rng_below(&w.rng.rng, ARRAY_SIZE(pieces))];
                        if (n + strlen(piece) > want)
                                break;
                        memcpy(name + n, piece, strlen(piece) + 1);
                        n += strlen(piece);
                }
                if (n == 0)
                        continue;
                unsigned last = 0;
                for (unsigned again = 0; again < 3; again++) {
                        struct conflict_suffix suffix;
                        unsigned number = conflict_next(name, n, host);
                        assert_true(again == 0 || number > last);
                        conflict_name(name, n, host, number, next);
                        assert_true(strlen(next) <= NAME_BYTES_MAX);
                        for (const char *p = next; *p;) { /* whole characters only */
                                const unsigned char c = (unsigned char)*p;
                                const int len = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
                                assert_true(c < 0x80 || c >= 0xc2);
                                for (int k = 1; k < len; k++)
                                        assert_int_equal((unsigned char)p[k] & 0xc0, 0x80);
                                p += len;
                        }
                        assert_true(conflict_parse(next, strlen(next), &suffix));
                        assert_int_equal(suffix.number, number);
                        last = number;
                        n = strlen(next);
                        memcpy(name, next, n + 1);
                }
        }
}

static void test_transactions(void **state) {
        uint64_t before = counter_get(&w.counters, sql_transactions);
        struct node f = make(&w, INO_ROOT, "f", NODE_FILE);
        assert_int_equal(counter_get(&w.counters, sql_transactions) - before, 1);
        (void)look(&w, INO_ROOT, "f");
        assert_int_equal(counter_get(&w.counters, sql_transactions) - before, 1);
        (void)put_content(&w, f.ino, 1, 5);
        assert_int_equal(counter_get(&w.counters, sql_transactions) - before, 2);
        MUST(mv(&w, INO_ROOT, "f", INO_ROOT, "g", 0));
        assert_int_equal(counter_get(&w.counters, sql_transactions) - before, 3);
        assert_true(w.wakes >= 3);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_create, setup, teardown),   cmocka_unit_test_setup_teardown(test_symlink, setup, teardown),
                cmocka_unit_test_setup_teardown(test_list, setup, teardown),     cmocka_unit_test_setup_teardown(test_unlink, setup, teardown),
                cmocka_unit_test_setup_teardown(test_unlink_open, setup, teardown), cmocka_unit_test_setup_teardown(test_link, setup, teardown),
                cmocka_unit_test_setup_teardown(test_unnamed, setup, teardown),  cmocka_unit_test_setup_teardown(test_rename, setup, teardown),
                cmocka_unit_test_setup_teardown(test_name_back_and_gone, setup, teardown),
                cmocka_unit_test_setup_teardown(test_setattr, setup, teardown),  cmocka_unit_test_setup_teardown(test_xattr, setup, teardown),
                cmocka_unit_test_setup_teardown(test_content, setup, teardown),  cmocka_unit_test_setup_teardown(test_protected, setup, teardown),
                cmocka_unit_test_setup_teardown(test_settings, setup, teardown), cmocka_unit_test_setup_teardown(test_transactions, setup, teardown),
                cmocka_unit_test_setup_teardown(test_recover_replaced, setup, teardown), cmocka_unit_test(test_conflict_name), cmocka_unit_test_setup_teardown(test_conflict_names, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
