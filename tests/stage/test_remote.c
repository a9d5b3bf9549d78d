/* SPDX-License-Identifier: Apache-2.0 */
/* Contents from elsewhere meet files that are here: what an opener sees is what its row says, at every moment in which the two can meet; open handles keep what they opened. */
#include "cache_world.h"

#include "tree_priv.h"

/* A new content of the node by somebody else, or (text NULL) a name in the same directory, applied as its event. */
static void remote_change(struct cw *w, const struct id *node, const char *text, const char *name, bool (*is_open)(void *arg, uint64_t ino), void *arg) {
        struct arena *a;
        assert_int_equal(arena_new(16 << 20, &a), 0);
        struct server_node *n = cw_server_node(w, node, false);
        assert_non_null(n);
        n->row.seq = ++w->seq;
        if (text) {
                n->row.content = know(w->source, text, strlen(text), 0)->content;
                n->row.version = rng_id(rng_system());
        } else {
                (void)snprintf(n->name, sizeof n->name, "%s", name);
                n->entry.name = n->name;
                n->entry.name_bytes = strlen(name);
                n->entry.placement = rng_id(rng_system());
                n->entry.seq = w->seq;
        }
        struct change ch = { .node = n->row, .has_entries = !text, .entries = text ? NULL : &n->entry, .n_entries = text ? 0 : 1 };
        struct event e = { .seq = w->seq, .op = rng_id(rng_system()), .changes = &ch, .n_changes = 1 };
        struct cursor upto = { .epoch = { { 1 } }, .seq = w->seq };
        struct tree_applied applied = { 0 };
        assert_int_equal(tree_apply(w->cache->tree, &e, 1, &upto, is_open, arg, a, &applied), 0);
        file_committed(w->cache, applied.done, applied.n_done);
        arena_free(a);
}

static void remote(struct cw *w, const struct id *node, const char *text, bool (*is_open)(void *arg, uint64_t ino), void *arg) {
        remote_change(w, node, text, NULL, is_open, arg);
}

static bool is_open(void *arg, uint64_t ino) {
        return file_is_open(arg, ino);
}

static void write_all(struct cw *w, uint64_t ino, const char *text) {
        struct file *f = cw_file(w, ino, true, true);
        assert_int_equal(write_at(f, 0, text, strlen(text), false, WAIT_MS), (ssize_t)strlen(text));
        file_release(f, true);
}

static void expect(struct file *f, const char *text) {
        char buf[256] = "";
        assert_int_equal(read_at(f, 0, buf, sizeof buf - 1), (ssize_t)strlen(text));
        assert_string_equal(buf, text);
}

static void expect_ino(struct cw *w, uint64_t ino, const char *text) {
        struct file *f = cw_file(w, ino, false, false);
        expect(f, text);
        file_release(f, false);
}

/* A save of ours is on the server but has not become a blob yet; then another version comes from elsewhere. */
static void test_after_commit(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "f");
        lock_take(&w->cache->files->lock);
        w->cache->files->jobs++; /* no retirement: its worker is late */
        lock_drop(&w->cache->files->lock);
        write_all(w, n.ino, "ours");
        assert_true(cw_accept_all(w) > 0);
        expect_ino(w, n.ino, "ours");
        remote(w, &n.id, "theirs", is_open, w->cache);
        assert_int_equal(cw_row(w, n.ino).size, 6);
        expect_ino(w, n.ino, "theirs");
        /* what is added goes on top of theirs, with it as the base */
        struct id base = cw_row(w, n.ino).version;
        struct file *f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, "+", 1, true, WAIT_MS), 1);
        file_release(f, true);
        expect_ino(w, n.ino, "theirs+");
        struct arena *a;
        struct outbox_item item;
        size_t k;
        assert_int_equal(arena_new(1 << 20, &a), 0);
        assert_int_equal(outbox_list(w->cache->tree, a, false, &item, 1, &k), 0);
        assert_int_equal(k, 1);
        assert_true(id_equal(&item.op.version, &base));
        arena_free(a);
        lock_take(&w->cache->files->lock);
        w->cache->files->jobs--;
        lock_drop(&w->cache->files->lock);
        assert_true(cw_accept_all(w) > 0);
        cw_settle(w);
        expect_ino(w, n.ino, "theirs+");
        cw_free(w);
}

/* An opener that comes just after the applier has asked whether the file is open. */
struct opener {
        struct cw *w;
        uint64_t ino;
        uint16_t incarnation;
        bool write, started;
        pthread_t thread;
        struct lock lock; /* RANK_LOG: taken inside the tree's question */
        struct cond more;
        bool over;
        int result;
        struct file *f;
};
static void *open_run(void *arg) {
        struct opener *o = arg;
        struct file *f = NULL;
        int r = file_open(o->w->cache, o->ino, o->incarnation, o->write, false, &f);
        LOCK_SCOPE(&o->lock);
        o->result = r;
        o->f = f;
        o->over = true;
        cond_broadcast(&o->more);
        return NULL;
}
/* The answer to the tree is from before the opener; it goes on only when the opener has finished or waits for this very transaction. */
static bool asked(void *arg, uint64_t ino) {
        struct opener *o = arg;
        bool open = file_is_open(o->w->cache, ino);
        if (o->started || ino != o->ino)
                return open;
        o->started = true;
        assert_int_equal(thread_start(&o->thread, "opener", open_run, o), 0);
        for (int64_t end = now_ms() + WAIT_MS;;) {
                bool waits = tree_waiting(o->w->cache->tree) > 0;
                LOCK_SCOPE(&o->lock);
                if (o->over || waits)
                        return open;
                assert_true(now_ms() < end);
                (void)!cond_wait_until(&o->more, &o->lock, now_ms() + 2);
        }
}
static void race(bool write) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "f");
        write_all(w, n.ino, "old");
        assert_true(cw_accept_all(w) > 0);
        cw_settle(w);
        struct opener o = { .w = w, .ino = n.ino, .incarnation = n.incarnation, .write = write };
        lock_init(&o.lock, "opener", RANK_LOG);
        cond_init(&o.more);
        remote(w, &n.id, "newer", asked, &o);
        assert_true(o.started);
        (void)pthread_join(o.thread, NULL);
        n = cw_row(w, n.ino);
        if (o.result == 0) { /* it may have the old bytes, but then it is not what the row stands for */
                expect(o.f, n.incarnation == o.incarnation ? "newer" : "old");
        } else {
                assert_int_equal(o.result, -ESTALE);
                assert_int_not_equal(n.incarnation, o.incarnation);
        }
        expect_ino(w, n.ino, "newer");
        if (o.result == 0 && write) {
                assert_int_equal(write_at(o.f, 0, "+", 1, true, WAIT_MS), 1);
                if (n.incarnation == o.incarnation)
                        expect_ino(w, n.ino, "newer+");
        }
        if (o.result == 0)
                file_release(o.f, write);
        cond_destroy(&o.more);
        lock_destroy(&o.lock);
        cw_free(w);
}
static void test_race(void **state) {
        race(false);
        race(true);
}

/* Many openers and a stream of versions: whoever opens reads one version, and one that was the row's while it opened. */
struct storm { struct cw *w; uint64_t ino; struct id id; _Atomic int newest; _Atomic bool over; };
static void *storm_run(void *arg) {
        struct storm *s = arg;
        while (!s->over) {
                struct node n;
                struct file *f;
                int from = s->newest;
                if (tree_get(s->w->cache->tree, s->ino, &n) < 0)
                        abort();
                int r = file_open(s->w->cache, s->ino, n.incarnation, false, false, &f);
                if (r == -ESTALE)
                        continue;
                if (r < 0)
                        abort();
                char a[64] = "", b[64] = "";
                if (read_at(f, 0, a, 63) < 0 || strtol(a, NULL, 10) < from || read_at(f, 0, b, 63) < 0 || strcmp(a, b) != 0)
                        abort();
                file_release(f, false);
        }
        return NULL;
}
static void test_many(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "f");
        write_all(w, n.ino, "0");
        assert_true(cw_accept_all(w) > 0);
        struct storm s = { .w = w, .ino = n.ino, .id = n.id };
        pthread_t t[3];
        for (int i = 0; i < 3; i++)
                assert_int_equal(thread_start(&t[i], "storm", storm_run, &s), 0);
        for (int i = 1; i <= 300; i++) {
                char text[32];
                (void)snprintf(text, sizeof text, "%d", i);
                remote(w, &n.id, text, is_open, w->cache);
                s.newest = i;
        }
        s.over = true;
        for (int i = 0; i < 3; i++)
                (void)pthread_join(t[i], NULL);
        expect_ino(w, n.ino, "300");
        cw_free(w);
}

/* The last writer closes while others open: they see what was closed before they came. */
static void *grow_run(void *arg) {
        struct storm *s = arg;
        char *buf = malloc(4096);
        while (!s->over) {
                struct file *f;
                int from = s->newest;
                if (file_open(s->w->cache, s->ino, 0, false, false, &f) < 0 || read_at(f, 0, buf, 4096) < from)
                        abort();
                file_release(f, false);
        }
        free(buf);
        return NULL;
}
static void test_closing(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "f");
        struct storm s = { .w = w, .ino = n.ino };
        pthread_t t;
        assert_int_equal(thread_start(&t, "grow", grow_run, &s), 0); /* one: else another's handle keeps the file as it is */
        for (int i = 1; i <= 1500; i++) {
                struct file *f = cw_file(w, n.ino, true, false);
                assert_int_equal(write_at(f, 0, "x", 1, true, WAIT_MS), 1);
                file_release(f, true);
                s.newest = i;
                if (i % 100 == 0)
                        cw_accept_all(w);
        }
        s.over = true;
        (void)pthread_join(t, NULL);
        cw_free(w);
}

/* An unlink asks whether somebody has the file open, and somebody opens it then: it is kept, or the opener finds it gone. */
static void test_unlink(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "f"), after;
        write_all(w, n.ino, "old");
        assert_true(cw_accept_all(w) > 0);
        struct opener o = { .w = w, .ino = n.ino, .incarnation = n.incarnation, .write = true };
        lock_init(&o.lock, "opener", RANK_LOG);
        cond_init(&o.more);
        assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, "f", 1, false, asked, &o, &after), 0);
        assert_true(o.started);
        (void)pthread_join(o.thread, NULL);
        if (o.result == 0) {
                assert_true(cw_row(w, n.ino).unlinked);
                expect(o.f, "old");
                file_release(o.f, true);
        } else {
                assert_int_equal(o.result, -ENOENT);
        }
        cond_destroy(&o.more);
        lock_destroy(&o.lock);
        cw_free(w);
}

/* Has the directory a name that begins like that? */
static int begins(void *arg, const struct tree_entry *e) {
        const char **name = arg;
        if (*name && strncmp(e->name, *name, strlen(*name)) == 0)
                *name = NULL;
        return *name == NULL;
}
static bool has(struct cw *w, uint64_t dir, const char *name) {
        assert_int_equal(tree_list(w->cache->tree, dir, 0, begins, &name), 0);
        return !name;
}

/* The directory of an open file has no name here for a while, as something of ours that was not sent yet has the one that it was given elsewhere; and the file gets a new version from elsewhere. What was
 * written before, or is written then, is a copy beside it, at once. */
static void hidden_directory(bool before) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node d, n, e;
        struct tree_new what = { .kind = NODE_DIR, .mode = 0755, .uid = 1000, .gid = 1000 };
        assert_int_equal(tree_create(w->cache->tree, INO_ROOT, "d", 1, &what, &d), 0);
        n = cw_create(w, d.ino, "f.txt");
        write_all(w, n.ino, "old");
        assert_true(cw_accept_all(w) > 0);
        cw_settle(w);
        struct file *f = cw_file(w, n.ino, true, false);
        if (before)
                assert_int_equal(write_at(f, 0, "mine", 4, false, WAIT_MS), 4);
        e = cw_create(w, INO_ROOT, "e");
        remote_change(w, &d.id, NULL, "e", is_open, w->cache);
        assert_true(cw_row(w, d.ino).unlinked);
        remote(w, &n.id, "theirs", is_open, w->cache);
        if (!before)
                assert_int_equal(write_at(f, 0, "mine", 4, false, WAIT_MS), 4);
        expect(f, "mine");
        file_release(f, true);
        lock_take(&w->cache->files->lock);
        const uint64_t left = w->cache->files->n_open;
        lock_drop(&w->cache->files->lock);
        assert_int_equal(left, 0);
        assert_true(has(w, d.ino, "f (conflict "));
        assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, "e", 1, false, is_open, w->cache, &e), 0); /* the name is free */
        assert_false(cw_row(w, d.ino).unlinked);
        assert_true(has(w, d.ino, "f.txt"));
        assert_true(has(w, d.ino, "f (conflict "));
        expect_ino(w, n.ino, "theirs");
        assert_true(cw_accept_all(w) > 0);
        cw_settle(w);
        cw_free(w);
}
static void test_hidden_directory(void **state) {
        hidden_directory(true);
        hidden_directory(false);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_after_commit), cmocka_unit_test(test_race), cmocka_unit_test(test_many), cmocka_unit_test(test_closing),
                                            cmocka_unit_test(test_unlink), cmocka_unit_test(test_hidden_directory) };
        return cmocka_run_group_tests_name("remote", tests, NULL, NULL);
}
