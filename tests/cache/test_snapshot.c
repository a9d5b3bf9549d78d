/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots: the first load, events that meet pages, a new snapshot over pending work, restarts in the middle, a new epoch. */
#include "world.h"

#include "tree_priv.h"

static struct world w;
static struct model m;

static int setup(void **state) {
        world_open_bare(&w, 1, 2);
        model_open(&m, 1);
        return 0;
}
static int teardown(void **state) {
        world_check(&w);
        world_close(&w);
        model_close(&m);
        return 0;
}

static void populate(unsigned dirs, unsigned files) {
        char name[32];
        for (unsigned i = 0; i < dirs; i++) {
                (void)snprintf(name, sizeof(name), "dir%u", i);
                struct id d = model_make(&m, &id_root, name, NODE_DIR, 0);
                for (unsigned k = 0; k < files; k++) {
                        (void)snprintf(name, sizeof(name), "file%u", k);
                        (void)model_make(&m, &d, name, k % 7 ? NODE_FILE : NODE_DIR, k);
                }
        }
}

static void test_first_load(void **state) {
        struct node n;
        struct tree_totals totals;
        struct cursor c;
        assert_int_equal(tree_cursor(w.tree, &c), -ENOENT);
        assert_int_equal(tree_lookup(w.tree, INO_ROOT, "dir1", 4, &n), -EHOSTDOWN);
        assert_int_equal(tree_list(w.tree, INO_ROOT, 0, NULL, NULL), -EHOSTDOWN);
        struct tree_new what = { .kind = NODE_FILE };
        assert_int_equal(tree_create(w.tree, INO_ROOT, "x", 1, &what, &n), -EHOSTDOWN);
        populate(10, 60);
        load_snapshot(&w, &m, 37, 3); /* many small steps */
        compare(&w, &m);
        MUST(tree_totals(w.tree, &totals));
        assert_true(totals.complete);
        assert_int_equal(totals.nodes, 611);
        MUST(tree_cursor(w.tree, &c));
        assert_int_equal(c.seq, m.seq);
        assert_int_equal(look_error(&w, INO_ROOT, "none"), -ENOENT);
        tree_close(w.tree);
        world_reopen(&w, 0);
        compare(&w, &m);
        /* and events go on after it */
        (void)model_make(&m, &id_root, "later", NODE_FILE, 3);
        sync_down(&w, &m);
        compare(&w, &m);
}

static void test_links(void **state) {
        populate(2, 5);
        struct model_entry *e = model_at(&m, &model_at(&m, &id_root, "dir0")->row.node, "file1");
        struct op op = { .id = rng_id(&m.rng.rng), .kind = OP_LINK, .node = e->row.node, .parent = id_root, .name = "second", .name_bytes = 6 };
        assert_int_equal(model_commit(&m, &op).code, RES_OK);
        load_snapshot(&w, &m, 1000, 1000);
        compare(&w, &m);
        assert_int_equal(look(&w, INO_ROOT, "second").nlink, 2);
}

static void new_snapshot(size_t step) {
        load_snapshot(&w, &m, 50, step);
}

static void test_difference(void **state) {
        populate(6, 20);
        load_snapshot(&w, &m, 1000, 1000);
        struct node same = look(&w, look(&w, INO_ROOT, "dir3").ino, "file3");
        /* changes that no event tells of */
        struct id d0 = model_at(&m, &id_root, "dir0")->row.node, d1 = model_at(&m, &id_root, "dir1")->row.node;
        assert_int_equal(model_rename(&m, &d0, "file1", &d1, "moved"), 0);
        assert_int_equal(model_unlink(&m, &d0, "file2"), 0);
        assert_int_equal(model_write(&m, &model_at(&m, &d0, "file3")->row.node, 77), 0);
        assert_int_equal(model_rename(&m, &id_root, "dir5", &d0, "dir5"), 0);
        assert_int_equal(model_rename(&m, &id_root, "dir4", &id_root, "dir5"), 0);
        (void)model_make(&m, &d1, "new", NODE_FILE, 5);
        /* and pending work here */
        struct node l0 = look(&w, INO_ROOT, "dir0");
        MUST(chmod_to(&w, look(&w, l0.ino, "file4").ino, 0611));
        struct node mine = make(&w, look(&w, INO_ROOT, "dir2").ino, "mine", NODE_FILE);
        (void)put_content(&w, mine.ino, 1, 9);
        w.n_notes = 0;
        new_snapshot(7);
        assert_true(world_noted(&w, NOTE_ENTRY, l0.ino, "file1"));
        assert_true(world_noted(&w, NOTE_CONTENT, look(&w, l0.ino, "file3").ino, NULL));
        assert_false(world_noted(&w, NOTE_CONTENT, same.ino, NULL));
        assert_int_equal(look(&w, l0.ino, "file4").mode, 0611);
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir2").ino, "mine").ino, mine.ino);
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir3").ino, "file3").ino, same.ino);
        world_check(&w);
        sync_all(&w, &m);
        compare(&w, &m);
}

static void test_pending_survives_absence(void **state) {
        populate(2, 8);
        load_snapshot(&w, &m, 1000, 1000);
        struct node d = look(&w, INO_ROOT, "dir0"), f = look(&w, d.ino, "file1");
        (void)put_content(&w, f.ino, 1, 9);
        const struct id did = d.id;
        for (unsigned k = 0; k < 8; k++) { /* the directory and all in it are deleted elsewhere */
                char name[16];
                (void)snprintf(name, sizeof(name), "file%u", k);
                assert_int_equal(model_unlink(&m, &did, name), 0);
        }
        assert_int_equal(model_unlink(&m, &id_root, "dir0"), 0);
        new_snapshot(3);
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir0").ino, "file1").gen, 1); /* edit wins */
        assert_int_equal(look_error(&w, look(&w, INO_ROOT, "dir0").ino, "file2"), -ENOENT);
        world_check(&w);
        sync_all(&w, &m);
        compare(&w, &m);
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir0").ino, "file1").size, 9);
}

static void test_restart(void **state) {
        populate(5, 30);
        load_snapshot(&w, &m, 1000, 1000);
        assert_int_equal(model_unlink(&m, &model_at(&m, &id_root, "dir2")->row.node, "file1"), 0);
        populate(7, 31);
        struct cursor c = model_cursor(&m, m.seq);
        struct snapshot_state st, again;
        MUST(tree_snapshot_begin(w.tree, &c, &st));
        struct node_row rows[400];
        struct entry_row entries[400];
        size_t n = 0, k = 0;
        for (size_t i = 0; i < m.n_nodes; i++)
                if (!m.nodes[i].row.deleted)
                        rows[n++] = m.nodes[i].row;
        for (size_t i = 0; i < m.n_entries; i++)
                if (m.entries[i].live)
                        entries[k++] = m.entries[i].row;
        st.nodes_after = rows[99].id;
        MUST(tree_snapshot_nodes(w.tree, rows, 100, &st));
        tree_close(w.tree);
        world_reopen(&w, 2);
        MUST(tree_snapshot_begin(w.tree, &c, &again)); /* the same epoch: goes on where it stood */
        assert_true(id_equal(&again.nodes_after, &rows[99].id));
        assert_false(again.nodes_end);
        again.nodes_end = true;
        MUST(tree_snapshot_nodes(w.tree, rows + 50, n - 50, &again)); /* rows twice do no harm */
        MUST(tree_snapshot_entries(w.tree, entries, k, &again));
        int r;
        for (unsigned i = 0; (r = tree_snapshot_step(w.tree, &c, 25, NULL, NULL)) > 0; i++)
                if (i % 3 == 2) { /* and so do restarts between any two steps */
                        tree_close(w.tree);
                        world_reopen(&w, 2);
                }
        MUST(r);
        compare(&w, &m);
        MUST(tree_snapshot_begin(w.tree, &c, &again));
        assert_true(id_is_zero(&again.nodes_after));
        MUST(tree_snapshot_abandon(w.tree));
        compare(&w, &m);
}

static void test_events_meet_pages(void **state) {
        populate(4, 10);
        struct cursor from = model_cursor(&m, m.seq);
        struct snapshot_state st;
        struct node_row rows[200];
        struct entry_row entries[200];
        char names[200][32];
        size_t n = 0, k = 0, first = m.n_log;
        for (size_t i = 0; i < m.n_nodes; i++)
                rows[n++] = m.nodes[i].row;
        for (size_t i = 0; i < m.n_entries; i++) {
                (void)snprintf(names[k], sizeof(names[0]), "%s", m.entries[i].name);
                entries[k] = m.entries[i].row;
                entries[k].name = names[k];
                k++;
        }
        struct id d0 = model_at(&m, &id_root, "dir0")->row.node;
        (void)model_rename(&m, &d0, "file1", &id_root, "moved");
        (void)model_unlink(&m, &d0, "file2");
        (void)model_make(&m, &d0, "file2", NODE_FILE, 3);
        (void)model_rename(&m, &id_root, "dir1", &d0, "inner");
        (void)model_write(&m, &model_at(&m, &d0, "file3")->row.node, 99);
        MUST(tree_snapshot_begin(w.tree, &from, &st));
        MUST(tree_snapshot_nodes(w.tree, rows, n / 2, &st));
        MUST(tree_snapshot_events(w.tree, m.log + first, m.n_log - first)); /* before the pages that they are newer than */
        MUST(tree_snapshot_nodes(w.tree, rows + n / 2, n - n / 2, &st));
        MUST(tree_snapshot_entries(w.tree, entries, k, &st));
        MUST(tree_snapshot_events(w.tree, m.log + first, m.n_log - first));
        struct cursor upto = model_cursor(&m, m.seq);
        int r;
        while ((r = tree_snapshot_step(w.tree, &upto, 1000, NULL, NULL)) > 0)
                ;
        MUST(r);
        compare(&w, &m);
}

static void test_new_epoch(void **state) {
        populate(4, 10);
        load_snapshot(&w, &m, 1000, 1000);
        struct node f = look(&w, look(&w, INO_ROOT, "dir1").ino, "file3");
        /* restored from a backup: another epoch, lower numbers */
        m.epoch.b[0] = 9;
        for (size_t i = 0; i < m.n_nodes; i++)
                m.nodes[i].row.seq = 1 + i % 3;
        for (size_t i = 0; i < m.n_entries; i++)
                m.entries[i].row.seq = 1 + i % 3;
        m.seq = 3;
        m.n_log = 0;
        w.n_notes = 0;
        load_snapshot(&w, &m, 1000, 10);
        assert_int_equal(w.n_notes, 0); /* the same tree: nothing to tell */
        compare(&w, &m);
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir1").ino, "file3").ino, f.ino);
        (void)model_write(&m, &f.id, 5);
        sync_down(&w, &m);
        compare(&w, &m);
}

static void delete_all(unsigned dirs, unsigned files) {
        char name[32];
        for (unsigned i = 0; i < dirs; i++) {
                (void)snprintf(name, sizeof(name), "dir%u", i);
                const struct id d = model_at(&m, &id_root, name)->row.node;
                for (unsigned k = 0; k < files; k++) {
                        (void)snprintf(name, sizeof(name), "file%u", k);
                        assert_int_equal(model_unlink(&m, &d, name), 0);
                }
        }
}

static int count(void *arg, const struct node *node) {
        (*(unsigned *)arg)++;
        return 0;
}

/* A snapshot that lacks more than 1,000 nodes and a tenth of the tree: nothing goes until the user says so, and all else goes on. */
static void test_brake(void **state) {
        populate(11, 100);
        load_snapshot(&w, &m, 5000, 1000);
        const uint64_t before = 1 + 11 + 1100;
        struct tree_totals totals;
        struct node file = look(&w, look(&w, INO_ROOT, "dir3").ino, "file3");
        delete_all(11, 100);
        (void)model_make(&m, &id_root, "new", NODE_FILE, 5); /* what comes is shown */
        new_snapshot(13);
        MUST(tree_totals(w.tree, &totals));
        assert_int_equal(totals.nodes, before + 1);
        assert_int_equal(tree_held(w.tree), 1100);
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir3").ino, "file3").ino, file.ino);
        (void)look(&w, INO_ROOT, "new");
        /* events go on; the server speaking of one of them ends its hold */
        const struct id d3 = model_at(&m, &id_root, "dir3")->row.node;
        (void)model_make(&m, &d3, "later", NODE_FILE, 9);
        sync_down(&w, &m);
        (void)look(&w, look(&w, INO_ROOT, "dir3").ino, "later");
        /* a restart, and another snapshot, change nothing */
        tree_close(w.tree);
        world_reopen(&w, 2);
        assert_int_equal(tree_held(w.tree), 1100);
        load_snapshot(&w, &m, 50, 400);
        assert_int_equal(tree_held(w.tree), 1100);
        unsigned n = 0;
        MUST(tree_held_list(w.tree, 0, count, &n));
        assert_int_equal(n, 1100);
        /* one is deleted here: an act of the user, not the brake's */
        MUST(rm(&w, look(&w, INO_ROOT, "dir4").ino, "file4"));
        world_check(&w);
        int r;
        unsigned steps = 0;
        while ((r = tree_held_drop(w.tree, 100, NULL, NULL)) > 0)
                steps++;
        MUST(r);
        assert_true(steps >= 10);
        assert_int_equal(tree_held(w.tree), 0);
        sync_all(&w, &m);
        compare(&w, &m);
}

/* At the limits: exactly 1,000 nodes go; more than that but not a tenth of the tree go too. */
static void test_brake_limits(void **state) {
        populate(10, 100);
        load_snapshot(&w, &m, 5000, 1000);
        delete_all(10, 100); /* 1,000 of 1,011 */
        new_snapshot(1000);
        assert_int_equal(tree_held(w.tree), 0);
        compare(&w, &m);
}

static void test_no_brake_for_a_tenth(void **state) {
        bool all;
        uint64_t above;
        load_snapshot(&w, &m, 50, 50);
        for (uint64_t more = 0; more < 2; more++) { /* in two steps, as a snapshot does it */
                MUST(tree_begin(w.tree));
                MUST(held_weigh(w.tree, 5000, 600, false));
                MUST(held_weigh(w.tree, 5010, 401 + more, true));
                MUST(held_rule(w.tree, true, &all, &above));
                assert_int_equal(all, more > 0);
                assert_true(above == UINT64_MAX);
                assert_int_equal(tree_end(w.tree, -ECANCELED), -ECANCELED);
        }
}

/* Deletions that events tell one by one, and local ones, never meet the brake. */
static void test_events_do_not_brake(void **state) {
        populate(11, 100);
        load_snapshot(&w, &m, 5000, 1000);
        delete_all(6, 100);
        sync_down(&w, &m);
        assert_int_equal(tree_held(w.tree), 0);
        compare(&w, &m);
        for (unsigned i = 6; i < 11; i++) {
                char name[16];
                (void)snprintf(name, sizeof(name), "dir%u", i);
                struct node d = look(&w, INO_ROOT, name);
                for (unsigned k = 0; k < 100; k++) {
                        (void)snprintf(name, sizeof(name), "file%u", k);
                        MUST(k % 7 ? rm(&w, d.ino, name) : tree_unlink(w.tree, d.ino, name, strlen(name), true, NULL, NULL, &(struct node) { 0 }));
                }
        }
        assert_int_equal(tree_held(w.tree), 0);
        sync_all(&w, &m);
        compare(&w, &m);
        struct outbox_totals o;
        MUST(outbox_totals(w.tree, &o));
        assert_int_equal(o.parked, 0);
}

/* A restored server: what was made after the moment of the backup is only here, however little it is; what is older and absent was deleted. */
static void test_fork(void **state) {
        populate(2, 10);
        load_snapshot(&w, &m, 1000, 1000);
        const struct id d0 = model_at(&m, &id_root, "dir0")->row.node, d1 = model_at(&m, &id_root, "dir1")->row.node;
        const uint64_t fork = m.seq;
        struct cursor old;
        (void)model_make(&m, &d0, "after", NODE_FILE, 5);
        sync_down(&w, &m);
        MUST(tree_cursor(w.tree, &old));
        assert_int_equal(model_unlink(&m, &d0, "after"), 0);  /* as if it had never been */
        assert_int_equal(model_unlink(&m, &d1, "file1"), 0);  /* deleted before the backup, we have not heard of it */
        m.epoch.b[0] = 9;
        MUST(tree_snapshot_fork(w.tree, &old.epoch, fork));
        load_snapshot(&w, &m, 1000, 10);
        assert_int_equal(tree_held(w.tree), 1);
        (void)look(&w, look(&w, INO_ROOT, "dir0").ino, "after");
        assert_int_equal(look_error(&w, look(&w, INO_ROOT, "dir1").ino, "file1"), -ENOENT);
        /* a second time, of an epoch that nobody explains: nothing goes at all */
        m.epoch.b[0] = 10;
        assert_int_equal(model_unlink(&m, &d1, "file2"), 0);
        load_snapshot(&w, &m, 1000, 10);
        assert_int_equal(tree_held(w.tree), 2);
        (void)look(&w, look(&w, INO_ROOT, "dir1").ino, "file2");
        assert_int_equal(tree_held_drop(w.tree, 100, NULL, NULL), 0);
        assert_int_equal(look_error(&w, look(&w, INO_ROOT, "dir1").ino, "file2"), -ENOENT);
        compare(&w, &m);
}

/* A copy of the server's files was put back: the epoch is the same, the numbers are lower, and say nothing. */
static void test_gone_back(void **state) {
        populate(2, 10);
        load_snapshot(&w, &m, 1000, 1000);
        const struct id d0 = model_at(&m, &id_root, "dir0")->row.node, f = look(&w, look(&w, INO_ROOT, "dir1").ino, "file3").id;
        const uint64_t size = look(&w, look(&w, INO_ROOT, "dir1").ino, "file3").size;
        for (unsigned i = 0; i < 20; i++)
                (void)model_write(&m, &f, 100 + i);
        (void)model_make(&m, &d0, "after", NODE_FILE, 5);
        (void)model_make(&m, &d0, "after2", NODE_FILE, 5);
        const struct id nd = model_make(&m, &id_root, "nd", NODE_DIR, 0), ne = model_make(&m, &nd, "ne", NODE_DIR, 0);
        (void)model_make(&m, &id_root, "nf", NODE_DIR, 0);
        sync_down(&w, &m);
        /* pending in what will be forgotten, and refused once already */
        const uint64_t in = look(&w, look(&w, INO_ROOT, "nd").ino, "ne").ino;
        (void)put_content(&w, make(&w, in, "mine", NODE_FILE).ino, 8001, 7);
        struct outbox_item item[8];
        assert_int_equal(outbox_all(&w, item, 8), 1);
        const struct id refused = item[0].op.id;
        MUST(outbox_mark_sent(w.tree, &refused, 1));
        MUST(outbox_park(w.tree, &refused, ENOENT, "its directory is gone", w.clock.real_ns + INT64_C(3600000000000)));
        MUST(mv(&w, in, "mine", in, "mine2", 0)); /* an operation of its own, as the first was sent */
        MUST(mv(&w, in, "mine2", look(&w, INO_ROOT, "dir1").ino, "file4", 0));
        (void)make(&w, in, "mine", NODE_FIFO);
        struct cursor old;
        MUST(tree_cursor(w.tree, &old));
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir1").ino, "file3").size, 119);
        assert_int_equal(model_unlink(&m, &d0, "after"), 0); /* as if they had never been */
        assert_int_equal(model_unlink(&m, &d0, "after2"), 0);
        assert_int_equal(model_unlink(&m, &nd, "ne"), 0);
        assert_int_equal(model_unlink(&m, &id_root, "nd"), 0);
        assert_int_equal(model_unlink(&m, &id_root, "nf"), 0);
        for (size_t i = 0; i < m.n_nodes; i++)
                if (m.nodes[i].row.deleted)
                        m.nodes[i].row.id = rng_id(&w.rng.rng);
        (void)model_write(&m, &f, size);
        for (size_t i = 0; i < m.n_nodes; i++)
                m.nodes[i].row.seq = 1 + i % 3;
        for (size_t i = 0; i < m.n_entries; i++)
                m.entries[i].row.seq = 1 + i % 3;
        m.seq = 3;
        m.n_log = 0;
        MUST(tree_snapshot_fork(w.tree, &old.epoch, 0));
        load_snapshot(&w, &m, 1000, 10);
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir1").ino, "file3").size, size);
        assert_int_equal(tree_held(w.tree), 3); /* only we have them; the directories of what is pending go up again before it */
        size_t pending = outbox_all(&w, item, 8);
        assert_in_range(pending, 5, 7);
        assert_string_equal(item[0].op.name, "nd");
        assert_string_equal(item[1].op.name, "ne");
        assert_string_equal(item[2].op.name, "mine");
        assert_false(id_equal(&item[2].op.id, &refused));
        world_check(&w);
        sync_all(&w, &m);
        assert_int_equal(outbox_all(&w, item, 8), 0);
        assert_non_null(model_at(&m, &ne, "mine"));
        assert_int_equal(look(&w, look(&w, INO_ROOT, "dir1").ino, "file4").size, 7);
        /* deleted here: nobody else has to know */
        const uint64_t dir = look(&w, INO_ROOT, "dir0").ino;
        MUST(rm(&w, dir, "after2"));
        assert_int_equal(outbox_all(&w, item, 8), 0);
        assert_int_equal(tree_held(w.tree), 2);
        /* sent on demand, but for bytes */
        assert_int_equal(tree_held_send(w.tree, look(&w, dir, "after").ino), -ENODATA);
        MUST(tree_held_send(w.tree, look(&w, INO_ROOT, "nf").ino));
        assert_int_equal(tree_held(w.tree), 1);
        assert_int_equal(tree_held_send(w.tree, look(&w, INO_ROOT, "nf").ino), -ENOENT);
        sync_all(&w, &m);
        /* saved by rename: a new file */
        const uint64_t held = look(&w, dir, "after").ino, temp = make(&w, dir, "after.tmp", NODE_FILE).ino;
        (void)put_content(&w, temp, 9001, 6);
        MUST(mv(&w, dir, "after.tmp", dir, "after", 0));
        assert_int_equal(look(&w, dir, "after").ino, temp);
        assert_int_not_equal(held, temp);
        assert_int_equal(tree_held(w.tree), 0);
        assert_int_equal(outbox_all(&w, item, 8), 1);
        assert_int_equal(item[0].op.kind, OP_CREATE);
        sync_all(&w, &m);
        assert_int_equal(tree_held_drop(w.tree, 100, NULL, NULL), 0);
        compare(&w, &m);
        (void)model_write(&m, &f, 7);
        sync_down(&w, &m);
        compare(&w, &m);
}

/* Deleted here while the server went back behind it: pending in a directory without a name, which cannot be sent, and must not keep the load from its end. */
static void test_gone_back_and_deleted(void **state) {
        populate(1, 3);
        load_snapshot(&w, &m, 1000, 1000);
        const struct id d = model_make(&m, &id_root, "ng", NODE_DIR, 0);
        (void)model_make(&m, &d, "x", NODE_FILE, 5);
        sync_down(&w, &m);
        const uint64_t dir = look(&w, INO_ROOT, "ng").ino;
        MUST(rm(&w, dir, "x"));
        MUST(rmdir_at(&w, INO_ROOT, "ng"));
        struct cursor old;
        MUST(tree_cursor(w.tree, &old));
        assert_int_equal(model_unlink(&m, &d, "x"), 0);
        assert_int_equal(model_unlink(&m, &id_root, "ng"), 0);
        for (size_t i = 0; i < m.n_nodes; i++) {
                if (m.nodes[i].row.deleted)
                        m.nodes[i].row.id = rng_id(&w.rng.rng);
                m.nodes[i].row.seq = 1;
        }
        for (size_t i = 0; i < m.n_entries; i++)
                m.entries[i].row.seq = 1;
        m.seq = 3;
        m.n_log = 0;
        MUST(tree_snapshot_fork(w.tree, &old.epoch, 0));
        load_snapshot(&w, &m, 1000, 10);
        struct cursor now;
        MUST(tree_cursor(w.tree, &now));
        assert_int_equal(now.seq, 3);
        assert_int_equal(look_error(&w, INO_ROOT, "ng"), -ENOENT);
        world_check(&w);
}

static uint64_t partly; /* of this file not everything is here */
struct asked { uint64_t ino[16]; size_t n; };
static int one_asked(void *arg, uint64_t ino, const struct content *content) {
        struct asked *a = arg;
        a->ino[a->n++] = ino;
        return 0;
}
static void answer(struct world *world) {
        struct asked a = { .n = 0 };
        MUST(tree_newer_list(world->tree, true, one_asked, &a));
        for (size_t i = 0; i < a.n; i++)
                MUST(tree_newer_answer(world->tree, a.ino[i], a.ino[i] != partly));
}
static int one_lost(void *arg, uint64_t ino, uint64_t size, int64_t mtime_ns) {
        struct asked *a = arg;
        assert_int_equal(size, 300);
        a->ino[a->n++] = ino;
        return 0;
}

/* Edited after the moment to which the server went back: the server's version has the name, the other one is held beside it, if it is here as a whole. */
static void test_newer(void **state) {
        enum { SENT, SAME, CHANGED, PARTLY, CHMOD, OLDER, PENDING, N };
        struct node_row was[N];
        struct id id[N];
        uint64_t ino[N], copy[N];
        struct tree_newer of;
        struct cursor old;
        struct asked lost = { .n = 0 };
        char name[64];
        populate(1, 1);
        MUST(tree_setting_set(w.tree, "host", "box", 3));
        const struct id dir = model_at(&m, &id_root, "dir0")->row.node;
        for (unsigned i = 0; i < N; i++) {
                (void)snprintf(name, sizeof name, "n%u.txt", i);
                id[i] = model_make(&m, &dir, name, NODE_FILE, 10 + i);
        }
        load_snapshot(&w, &m, 1000, 1000);
        assert_int_equal(model_write(&m, &id[OLDER], 77), RES_OK); /* of this the client does not hear before the server goes back */
        const struct node_row older = model_find(&m, &id[OLDER])->row;
        for (unsigned i = 0; i < N; i++)
                was[i] = model_find(&m, &id[i])->row;
        const uint64_t fork = m.seq;
        for (unsigned i = 0; i < N; i++) {
                if (i == CHMOD)
                        assert_int_equal(model_chmod(&m, &id[i], 0600), RES_OK);
                else if (i != OLDER)
                        assert_int_equal(model_write(&m, &id[i], i == PARTLY ? 300 : 100 + i), RES_OK);
        }
        const struct content same = model_find(&m, &id[SAME])->row.content;
        sync_events(&w, &m, fork, m.seq);
        MUST(tree_cursor(w.tree, &old));
        const uint64_t at = look(&w, INO_ROOT, "dir0").ino;
        for (unsigned i = 0; i < N; i++) {
                (void)snprintf(name, sizeof name, "n%u.txt", i);
                ino[i] = look(&w, at, name).ino;
        }
        partly = ino[PARTLY];
        (void)put_content(&w, ino[PENDING], 9000, 9);
        /* the server goes back, and goes on: somebody makes a file that is called as our copy would be */
        for (unsigned i = 0; i < N; i++)
                if (i != OLDER)
                        model_find(&m, &id[i])->row = was[i];
        (void)model_make(&m, &dir, "n0 (conflict box 1).txt", NODE_FILE, 1);
        m.epoch.b[0] = 7;
        MUST(tree_snapshot_fork(w.tree, &old.epoch, fork));
        load_before_step = answer;
        load_snapshot(&w, &m, 1000, 3); /* in small steps */
        assert_int_equal(tree_held(w.tree), 3);
        for (unsigned i = 0; i < N; i++) {
                (void)snprintf(name, sizeof name, "n%u.txt", i);
                assert_int_equal(look(&w, at, name).ino, ino[i]);
                assert_int_equal(look(&w, at, name).size, i == PENDING ? 9 : i == OLDER ? older.content.size : was[i].content.size);
                (void)snprintf(name, sizeof name, "n%u (conflict box %u).txt", i, i == SENT ? 2 : 1);
                assert_int_equal(look_error(&w, at, name), i <= CHANGED ? 0 : -ENOENT);
                if (i > CHANGED)
                        continue;
                const struct node n = look(&w, at, name);
                copy[i] = n.ino;
                assert_int_equal(n.size, 100 + i);
                assert_false(n.pending);
                assert_int_equal(tree_newer_of(w.tree, copy[i], &of), 1);
                assert_int_equal(of.original, ino[i]);
                assert_false(of.changed);
        }
        assert_int_equal(tree_newer_of(w.tree, ino[SENT], &of), 0);
        MUST(tree_newer_lost(w.tree, one_lost, &lost));
        assert_int_equal(lost.n, 1);
        assert_int_equal(lost.ino[0], partly);
        struct outbox_item item[8];
        assert_int_equal(outbox_all(&w, item, 8), 1); /* the pending edit, and nothing else */
        world_check(&w);
        /* kept by a restart, and by another snapshot of the same line */
        tree_close(w.tree);
        world_reopen(&w, 2);
        assert_int_equal(tree_held(w.tree), 3);
        load_snapshot(&w, &m, 1000, 1000);
        assert_int_equal(tree_held(w.tree), 3);
        /* another client sends the same bytes: nothing is left to decide. Others: the copy is one of something that has changed */
        struct op op = { .id = rng_id(&m.rng.rng), .kind = OP_CONTENT, .node = id[SAME], .version = was[SAME].version, .content = same };
        assert_int_equal(model_commit(&m, &op).code, RES_OK);
        assert_int_equal(model_write(&m, &id[CHANGED], 55), RES_OK);
        assert_int_equal(model_write(&m, &id[PARTLY], 56), RES_OK);
        sync_down(&w, &m);
        assert_int_equal(tree_held(w.tree), 2);
        assert_int_equal(look_error(&w, at, "n1 (conflict box 1).txt"), -ENOENT);
        assert_int_equal(tree_newer_of(w.tree, copy[CHANGED], &of), 1);
        assert_true(of.changed);
        lost.n = 0;
        MUST(tree_newer_lost(w.tree, one_lost, &lost));
        assert_int_equal(lost.n, 0);
        /* it cannot be renamed, as the server could not be told; it can be removed */
        assert_int_equal(mv(&w, at, "n2 (conflict box 1).txt", at, "n2.txt", 0), -EXDEV);
        assert_int_equal(mv(&w, at, "n2.txt", at, "n2 (conflict box 1).txt", RENAME_EXCHANGE), -EXDEV);
        MUST(rm(&w, at, "n2 (conflict box 1).txt"));
        assert_int_equal(tree_held(w.tree), 1);
        assert_int_equal(tree_held_drop(w.tree, 100, NULL, NULL), 0);
        load_before_step = NULL;
        sync_all(&w, &m);
        compare(&w, &m);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_first_load, setup, teardown), cmocka_unit_test_setup_teardown(test_links, setup, teardown),
                cmocka_unit_test_setup_teardown(test_difference, setup, teardown), cmocka_unit_test_setup_teardown(test_pending_survives_absence, setup, teardown),
                cmocka_unit_test_setup_teardown(test_restart, setup, teardown),    cmocka_unit_test_setup_teardown(test_events_meet_pages, setup, teardown),
                cmocka_unit_test_setup_teardown(test_new_epoch, setup, teardown),  cmocka_unit_test_setup_teardown(test_brake, setup, teardown),
                cmocka_unit_test_setup_teardown(test_brake_limits, setup, teardown), cmocka_unit_test_setup_teardown(test_no_brake_for_a_tenth, setup, teardown),
                cmocka_unit_test_setup_teardown(test_events_do_not_brake, setup, teardown), cmocka_unit_test_setup_teardown(test_fork, setup, teardown), cmocka_unit_test_setup_teardown(test_gone_back, setup, teardown), cmocka_unit_test_setup_teardown(test_gone_back_and_deleted, setup, teardown),
                cmocka_unit_test_setup_teardown(test_newer, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
