/* SPDX-License-Identifier: Apache-2.0 */
/* What of the tree is there after a power cut: the state at the last mark, and no row behind it, whatever of the log has reached the platter. A copy of the files as they are at a moment is the
 * power cut in which everything had reached it: the worst for rows whose bytes did not. */
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
        tree_close(w.tree);
        w.tree = open_at("", false, 64, NULL, NULL);
        char name[20] = "";
        unsigned begun = 0;
        struct db_mark before = { .frames = 0 }, at;
        for (unsigned i = 0; i < 300; i++) {
                MUST(db_log_at(w.tree->w, &at));
                begun += memcmp(at.salt, before.salt, sizeof at.salt) != 0;
                before = at;
                if (i > 0 && at.frames > 3 && i % 10 == 0) {
                        struct db_mark now;
                        MUST(tree_sync(w.tree));
                        MUST(db_log_at(w.tree->w, &now));
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

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_rows_behind_the_mark), cmocka_unit_test(test_log_begins_anew), cmocka_unit_test(test_bytes_first) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
