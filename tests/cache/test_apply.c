/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of the server meet pending work: each pairing in the view, replays, own events before and after answers, and each way in which a refusal is resolved. */
#include "world.h"

static struct world w;
static struct model m;
static struct node d, f; /* known on both sides: dir/, dir/file */

static int setup(void **state) {
        world_open(&w, 1, 2);
        model_open(&m, 1);
        struct id dir = model_make(&m, &id_root, "dir", NODE_DIR, 0);
        (void)model_make(&m, &dir, "file", NODE_FILE, 10);
        sync_down(&w, &m);
        d = look(&w, INO_ROOT, "dir");
        f = look(&w, d.ino, "file");
        w.n_notes = 0;
        return 0;
}
static int teardown(void **state) {
        world_check(&w);
        sync_all(&w, &m);
        compare(&w, &m);
        world_close(&w);
        model_close(&m);
        return 0;
}

static struct op_result answer(struct op *ret_op) {
        struct outbox_item items[8];
        size_t n = outbox_ready(&w, items, 8, NULL);
        assert_true(n >= 1);
        struct op op = items[0].op;
        if (items[0].gen)
                op.content = model_content(items[0].gen, op.content.size);
        MUST(outbox_mark_sent(w.tree, &op.id, 1));
        if (ret_op)
                *ret_op = op;
        return model_commit(&m, &op);
}

static struct tree_applied resolve(const struct op_result *r, enum resolve_kind kind) {
        struct resolve how = { .kind = kind, .host = "box" };
        struct tree_applied applied;
        MUST(tree_resolve(w.tree, r, &how, world_is_open, &w, w.arena, &applied));
        return applied;
}

static size_t pending(void) {
        struct outbox_totals totals;
        MUST(outbox_totals(w.tree, &totals));
        return totals.items;
}

static void test_notes(void **state) {
        assert_int_equal(model_chmod(&m, &f.id, 0600), 0);
        sync_down(&w, &m);
        assert_true(world_noted(&w, NOTE_ATTR, f.ino, NULL));
        assert_false(world_noted(&w, NOTE_CONTENT, f.ino, NULL));
        w.n_notes = 0;
        assert_int_equal(model_write(&m, &f.id, 20), 0);
        sync_down(&w, &m);
        assert_true(world_noted(&w, NOTE_CONTENT, f.ino, NULL));
        assert_int_equal(look(&w, d.ino, "file").incarnation, f.incarnation);
        w.open[w.n_open++] = f.ino;
        assert_int_equal(model_write(&m, &f.id, 30), 0);
        w.n_notes = 0;
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "file").incarnation, f.incarnation + 1);
        assert_true(world_noted(&w, NOTE_ENTRY, d.ino, "file"));
        w.n_notes = 0;
        assert_int_equal(model_rename(&m, &d.id, "file", &id_root, "up"), 0);
        sync_down(&w, &m);
        assert_true(world_noted(&w, NOTE_ENTRY, d.ino, "file"));
        assert_true(world_noted(&w, NOTE_LIST, d.ino, NULL));
        assert_true(world_noted(&w, NOTE_ENTRY, INO_ROOT, "up"));
        assert_true(world_noted(&w, NOTE_LIST, INO_ROOT, NULL));
        w.n_notes = 0;
        assert_int_equal(model_unlink(&m, &id_root, "up"), 0);
        sync_down(&w, &m);
        assert_true(world_noted(&w, NOTE_ENTRY, INO_ROOT, "up"));
        struct node n;
        MUST(tree_get(w.tree, f.ino, &n)); /* open: stays until it is forgotten */
        assert_true(n.unlinked);
        w.n_open = 0;
        MUST(tree_forget(w.tree, f.ino));
        assert_int_equal(tree_get(w.tree, f.ino, &n), -ENOENT);
        /* what we did ourselves is no news */
        (void)make(&w, INO_ROOT, "mine", NODE_SYMLINK);
        w.n_notes = 0;
        sync_all(&w, &m);
        assert_int_equal(w.n_notes, 0);
}

static void test_both_hold(void **state) {
        /* remote chmod, local rename */
        MUST(mv(&w, d.ino, "file", INO_ROOT, "moved", 0));
        assert_int_equal(model_chmod(&m, &f.id, 0611), 0);
        sync_down(&w, &m);
        assert_int_equal(look(&w, INO_ROOT, "moved").mode, 0611);
        assert_int_equal(look_error(&w, d.ino, "file"), -ENOENT);
        world_check(&w);
        /* remote rename, local edit */
        sync_all(&w, &m);
        (void)put_content(&w, f.ino, 1, 99);
        assert_int_equal(model_rename(&m, &id_root, "moved", &d.id, "again"), 0);
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "again").size, 99);
        assert_int_equal(look(&w, d.ino, "again").gen, 1);
        world_check(&w);
        sync_all(&w, &m);
        /* remote edit, local chmod */
        MUST(chmod_to(&w, f.ino, 0600));
        assert_int_equal(model_write(&m, &f.id, 55), 0);
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "again").mode, 0600);
        assert_int_equal(look(&w, d.ino, "again").size, 55);
        /* remote chmod of the same field: what is pending holds */
        assert_int_equal(model_chmod(&m, &f.id, 0666), 0);
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "again").mode, 0600);
        /* remote edit, local edit pending: the local bytes stay */
        (void)put_content(&w, f.ino, 2, 77);
        w.n_notes = 0;
        assert_int_equal(model_write(&m, &f.id, 66), 0);
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "again").size, 77);
        assert_false(world_noted(&w, NOTE_CONTENT, f.ino, NULL));
        /* both new names of one directory */
        (void)make(&w, d.ino, "local", NODE_SYMLINK);
        (void)model_make(&m, &d.id, "remote", NODE_FILE, 1);
        sync_down(&w, &m);
        (void)look(&w, d.ino, "local");
        (void)look(&w, d.ino, "remote");
        /* remote delete, local edit: stays shown, with its directory */
        assert_int_equal(model_unlink(&m, &d.id, "again"), 0);
        assert_int_equal(model_unlink(&m, &d.id, "remote"), 0);
        assert_int_equal(model_unlink(&m, &id_root, "dir"), 0);
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "again").gen, 2);
        assert_int_equal(look(&w, INO_ROOT, "dir").ino, d.ino);
        assert_int_equal(look_error(&w, d.ino, "remote"), -ENOENT);
        world_check(&w);
}

static void test_name_waits(void **state) {
        struct node l = make(&w, INO_ROOT, "n", NODE_SYMLINK);
        struct id theirs = model_make(&m, &id_root, "n", NODE_FILE, 5);
        sync_down(&w, &m);
        assert_int_equal(look(&w, INO_ROOT, "n").ino, l.ino); /* the pending name wins until the answer */
        uint64_t ino;
        MUST(tree_find_id(w.tree, &theirs, &ino));
        world_check(&w);
        struct op_result r = answer(NULL);
        assert_int_equal(r.code, RES_EXISTS);
        w.n_notes = 0;
        (void)resolve(&r, RESOLVE_NEW_NAME);
        assert_int_equal(look(&w, INO_ROOT, "n").ino, ino);
        assert_int_equal(look(&w, INO_ROOT, "n (conflict box 1)").ino, l.ino);
        assert_true(world_noted(&w, NOTE_ENTRY, INO_ROOT, "n"));
        assert_true(world_noted(&w, NOTE_ENTRY, INO_ROOT, "n (conflict box 1)"));
        /* and if the local name just goes, the other one appears at once */
        struct node l2 = make(&w, INO_ROOT, "k", NODE_SYMLINK);
        (void)model_make(&m, &id_root, "k", NODE_FILE, 5);
        sync_down(&w, &m);
        assert_int_equal(look(&w, INO_ROOT, "k").ino, l2.ino);
        MUST(rm(&w, INO_ROOT, "k"));
        assert_int_equal(look(&w, INO_ROOT, "k").kind, NODE_FILE);
}

static void test_conflict_copy(void **state) {
        (void)put_content(&w, f.ino, 1, 100);
        assert_int_equal(model_write(&m, &f.id, 200), 0);
        w.open[w.n_open++] = f.ino;
        struct op_result r = answer(NULL);
        assert_int_equal(r.code, RES_STALE);
        (void)make(&w, d.ino, "file (conflict box 1)", NODE_SYMLINK); /* N + 1 */
        struct tree_applied applied = resolve(&r, RESOLVE_CONFLICT_COPY);
        struct node orig = look(&w, d.ino, "file"), copy = look(&w, d.ino, "file (conflict box 2)");
        assert_int_equal(orig.size, 200);
        assert_int_equal(orig.gen, 0);
        assert_int_equal(orig.incarnation, f.incarnation + 1);
        assert_int_equal(copy.size, 100);
        assert_int_equal(copy.gen, 1);
        assert_int_equal(applied.n_done, 1);
        assert_int_equal(applied.done[0].fate, FATE_MOVED);
        assert_int_equal(applied.done[0].ino, copy.ino);
        assert_int_equal(applied.done[0].gen, 1);
        assert_int_equal(pending(), 2);
        w.n_open = 0;
}

static int count_conflict(void *arg, const struct tree_conflict *c) {
        struct tree_conflict *last = arg;
        *last = *c;
        last->name = arena_strndup(w.arena, c->name, strlen(c->name));
        return 0;
}

static uint64_t conflicts(struct tree_conflict *ret) {
        uint64_t n = 99;
        memset(ret, 0, sizeof(*ret));
        MUST(tree_conflict_count(w.tree, &n));
        MUST(tree_conflicts(w.tree, count_conflict, ret));
        return n;
}

/* Listed from the transaction that makes it; after a restart; not when it is renamed by hand; and its way back over the original is a new version of that. */
static void test_conflict_listed(void **state) {
        struct tree_conflict c;
        struct node moved, replaced;
        struct outbox_item items[4];
        (void)put_content(&w, f.ino, 1, 100);
        assert_int_equal(model_write(&m, &f.id, 200), 0);
        struct op_result r = answer(NULL);
        assert_int_equal(conflicts(&c), 0);
        (void)resolve(&r, RESOLVE_CONFLICT_COPY);
        assert_int_equal(conflicts(&c), 1);
        assert_string_equal(c.name, "file (conflict box 1)");
        assert_int_equal(c.original.ino, f.ino);
        assert_int_equal(c.parent, d.ino);
        /* its conflict name is taken, too: the next one, and still a copy of the same */
        (void)model_make(&m, &d.id, "file (conflict box 1)", NODE_FILE, 7);
        r = answer(NULL);
        assert_int_equal(r.code, RES_EXISTS);
        (void)resolve(&r, RESOLVE_NEW_NAME);
        assert_int_equal(conflicts(&c), 1);
        assert_string_equal(c.name, "file (conflict box 2)");
        assert_int_equal(c.original.ino, f.ino);
        assert_int_equal(model_unlink(&m, &d.id, "file (conflict box 1)"), 0);
        tree_close(w.tree);
        world_reopen(&w, 2);
        assert_int_equal(conflicts(&c), 1);
        struct buf names = BUF_INIT(4096);
        MUST(tree_xattr_list(w.tree, c.copy.ino, &names));
        assert_int_equal(names.bytes, 0); /* cp -a does not see it */
        MUST(mv(&w, d.ino, "file (conflict box 2)", d.ino, "other", 0));
        assert_int_equal(conflicts(&c), 0);
        MUST(mv(&w, d.ino, "other", d.ino, "file (conflict box 2)", 0));
        sync_all(&w, &m);
        assert_int_equal(conflicts(&c), 1);
        const uint64_t copy = c.copy.ino;
        MUST(tree_rename(w.tree, d.ino, "file (conflict box 2)", 21, d.ino, "file", 4, 0, world_kept, &w, &moved, &replaced));
        assert_int_equal(moved.ino, copy);
        assert_int_equal(conflicts(&c), 0);
        assert_int_equal(outbox_all(&w, items, 4), 1);
        assert_int_equal(items[0].op.kind, OP_REPLACE);
        assert_true(id_equal(&items[0].op.node, &f.id));
        sync_all(&w, &m);
        assert_int_equal(look(&w, d.ino, "file").size, 100);
        struct node now = look(&w, d.ino, "file");
        assert_true(id_equal(&now.id, &f.id));
        compare(&w, &m);
        buf_free(&names);
}

static void test_conflict_copy_newest(void **state) {
        struct op_result r;
        (void)put_content(&w, f.ino, 1, 100);
        assert_int_equal(model_write(&m, &f.id, 200), 0);
        struct outbox_item items[4];
        assert_int_equal(outbox_ready(&w, items, 4, NULL), 1);
        r = answer(NULL);
        (void)put_content(&w, f.ino, 2, 150); /* saved again while it was on its way */
        struct tree_applied applied = resolve(&r, RESOLVE_CONFLICT_COPY);
        assert_int_equal(look(&w, d.ino, "file (conflict box 1)").size, 150);
        assert_int_equal(look(&w, d.ino, "file").size, 200);
        assert_int_equal(applied.n_done, 2);
        assert_int_equal(pending(), 1);
}

static void test_drop(void **state) {
        MUST(rm(&w, d.ino, "file"));
        assert_int_equal(model_write(&m, &f.id, 42), 0);
        struct op_result r = answer(NULL);
        assert_int_equal(r.code, RES_STALE);
        w.n_notes = 0;
        (void)resolve(&r, RESOLVE_DROP); /* the file reappears with the edit */
        assert_int_equal(look(&w, d.ino, "file").ino, f.ino);
        assert_int_equal(look(&w, d.ino, "file").size, 42);
        assert_true(world_noted(&w, NOTE_ENTRY, d.ino, "file"));
        assert_int_equal(pending(), 0);
        /* a new file with bytes is never dropped */
        struct node n = make(&w, INO_ROOT, "bytes", NODE_FILE);
        (void)put_content(&w, n.ino, 9, 1);
        struct op op;
        (void)model_make(&m, &id_root, "bytes", NODE_FILE, 5);
        r = answer(&op);
        assert_int_equal(r.code, RES_EXISTS);
        struct resolve how = { .kind = RESOLVE_DROP, .host = "box" };
        struct tree_applied applied;
        assert_int_equal(tree_resolve(w.tree, &r, &how, NULL, NULL, w.arena, &applied), -EINVAL);
        assert_int_equal(look(&w, INO_ROOT, "bytes").ino, n.ino);
        (void)resolve(&r, RESOLVE_NEW_NAME);
}

static void test_rebase(void **state) {
        MUST(rm(&w, d.ino, "file"));
        assert_int_equal(model_rename(&m, &d.id, "file", &id_root, "elsewhere"), 0);
        struct op op;
        struct op_result r = answer(&op);
        assert_int_equal(r.code, RES_STALE);
        (void)resolve(&r, RESOLVE_REBASE); /* it was only renamed: delete wins */
        assert_int_equal(look_error(&w, INO_ROOT, "elsewhere"), -ENOENT);
        struct outbox_item items[2];
        assert_int_equal(outbox_all(&w, items, 2), 1);
        assert_false(id_equal(&items[0].op.id, &op.id));
        assert_string_equal(items[0].op.name, "elsewhere");
        r = answer(NULL);
        assert_int_equal(r.code, RES_OK);
}

static void test_revive(void **state) {
        (void)put_content(&w, f.ino, 1, 100);
        assert_int_equal(model_unlink(&m, &d.id, "file"), 0);
        assert_int_equal(model_unlink(&m, &id_root, "dir"), 0);
        struct op op;
        struct op_result r = answer(&op);
        assert_int_equal(r.code, RES_DELETED);
        (void)resolve(&r, RESOLVE_REVIVE);
        struct outbox_item items[2];
        assert_int_equal(outbox_all(&w, items, 2), 1);
        assert_true(items[0].op.flags & OPF_REVIVE);
        assert_false(id_equal(&items[0].op.id, &op.id));
        assert_int_equal(items[0].gen, 1);
        assert_int_equal(look(&w, d.ino, "file").gen, 1);
}

static void test_merged_dir(void **state) {
        struct node src = make(&w, INO_ROOT, "src", NODE_DIR), mine = make(&w, src.ino, "mine", NODE_FILE), both = make(&w, src.ino, "both", NODE_SYMLINK);
        struct id theirs = model_make(&m, &id_root, "src", NODE_DIR, 0);
        struct id child = model_make(&m, &theirs, "theirs", NODE_FILE, 3);
        (void)model_make(&m, &theirs, "both", NODE_FILE, 3);
        sync_down(&w, &m); /* their directory is here already, waiting */
        struct op_result r = answer(NULL);
        assert_int_equal(r.code, RES_MERGED);
        struct tree_applied applied;
        MUST(tree_accepted(w.tree, &r, NULL, NULL, w.arena, &applied));
        struct node now = look(&w, INO_ROOT, "src");
        assert_int_equal(now.ino, src.ino); /* our ino stays */
        assert_true(id_equal(&now.id, &theirs));
        assert_int_equal(look(&w, src.ino, "mine").ino, mine.ino);
        now = look(&w, src.ino, "theirs");
        assert_true(id_equal(&now.id, &child));
        assert_int_equal(look(&w, src.ino, "both").ino, both.ino);
        uint64_t ino;
        MUST(tree_find_id(w.tree, &src.id, &ino)); /* the alias */
        assert_int_equal(ino, src.ino);
}

/* The event of what was made in a directory of ours that was merged names the other one, which is not shown as long as ours has the name: it waits for the answer. */
static void test_merged_below(void **state) {
        struct node src = make(&w, INO_ROOT, "src", NODE_DIR), mine = make(&w, src.ino, "mine", NODE_DIR);
        struct id theirs = model_make(&m, &id_root, "src", NODE_DIR, 0);
        struct op_result merged = answer(NULL);
        assert_int_equal(merged.code, RES_MERGED);
        assert_int_equal(answer(NULL).code, RES_OK); /* mine, in theirs */
        size_t n = m.n_log - 2, ready = 99;
        MUST(tree_apply_ready(w.tree, m.log + n, 2, w.arena, &ready));
        assert_int_equal(ready, 1); /* theirs may come, mine may not */
        sync_events(&w, &m, m.log[n].seq - 1, m.log[n].seq);
        assert_int_equal(look(&w, src.ino, "mine").ino, mine.ino);
        MUST(tree_apply_ready(w.tree, m.log + n + 1, 1, w.arena, &ready));
        assert_int_equal(ready, 0);
        (void)resolve(&merged, RESOLVE_MERGED);
        MUST(tree_apply_ready(w.tree, m.log + n + 1, 1, w.arena, &ready));
        assert_int_equal(ready, 1);
        sync_down(&w, &m);
        struct node now = look(&w, INO_ROOT, "src");
        assert_true(now.ino == src.ino && id_equal(&now.id, &theirs));
        assert_int_equal(look(&w, src.ino, "mine").ino, mine.ino);
        assert_int_equal(pending(), 0);
}

static void test_merged_before(void **state) {
        struct node src = make(&w, INO_ROOT, "src", NODE_DIR);
        struct id theirs = model_make(&m, &id_root, "src", NODE_DIR, 0);
        struct op_result r = answer(NULL); /* the answer is faster than the event */
        (void)resolve(&r, RESOLVE_MERGED);
        struct node now = look(&w, INO_ROOT, "src");
        assert_int_equal(now.ino, src.ino);
        assert_true(id_equal(&now.id, &theirs));
        sync_down(&w, &m);
        assert_int_equal(look(&w, INO_ROOT, "src").ino, src.ino);
}

static void test_merged_file(void **state) {
        struct node n = make(&w, INO_ROOT, "same", NODE_FILE);
        (void)put_content(&w, n.ino, 7, 5);
        struct id id = model_make(&m, &id_root, "same", NODE_FILE, 5);
        struct model_node *theirs = model_find(&m, &id);
        theirs->row.content = model_content(7, 5); /* the same bytes */
        struct op_result r = answer(NULL);
        assert_int_equal(r.code, RES_MERGED);
        w.n_notes = 0;
        struct tree_applied applied = resolve(&r, RESOLVE_MERGED);
        assert_int_equal(applied.n_done, 1);
        assert_int_equal(applied.done[0].gen, 7);
        assert_int_equal(applied.done[0].fate, FATE_COMMITTED);
        assert_true(id_equal(&applied.done[0].version, &theirs->row.version));
        assert_int_equal(look(&w, INO_ROOT, "same").gen, 0);
        assert_false(world_noted(&w, NOTE_CONTENT, n.ino, NULL));
        m.log[m.n_log - 1].changes = NULL; /* the event told of other bytes: the model was bent */
        m.log[m.n_log - 1].n_changes = 0;
        assert_int_equal(model_chmod(&m, &id, 0600), 0);
}

static void test_answers(void **state) {
        struct tree_applied applied;
        struct outbox_item item;
        (void)put_content(&w, f.ino, 1, 100);
        struct op op;
        struct op_result r = answer(&op);
        w.n_notes = 0;
        sync_down(&w, &m); /* the event first */
        assert_int_equal(outbox_get(w.tree, &op.id, w.arena, &item), -ENOENT);
        assert_int_equal(look(&w, d.ino, "file").gen, 0);
        assert_false(world_noted(&w, NOTE_CONTENT, f.ino, NULL)); /* the bytes are those that were shown */
        MUST(tree_accepted(w.tree, &r, NULL, NULL, w.arena, &applied));
        assert_int_equal(applied.n_done, 0);
        (void)put_content(&w, f.ino, 2, 101);
        r = answer(&op);
        MUST(tree_accepted(w.tree, &r, NULL, NULL, w.arena, &applied)); /* the answer first */
        assert_int_equal(applied.n_done, 1);
        assert_int_equal(applied.done[0].gen, 2);
        assert_true(id_equal(&applied.done[0].version, &op.id));
        assert_int_equal(applied.done[0].content.size, 101);
        assert_int_equal(look(&w, d.ino, "file").gen, 0);
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "file").size, 101);
        /* lost: the same operation again gets the first result */
        (void)put_content(&w, f.ino, 3, 102);
        (void)answer(&op);
        MUST(outbox_unsend(w.tree, &op.id));
        assert_int_equal(model_write(&m, &f.id, 500), 0); /* and somebody wrote since */
        r = answer(&op);
        MUST(tree_accepted(w.tree, &r, NULL, NULL, w.arena, &applied));
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "file").size, 500);
}

/* What an answer named is still to be asked for after a restart, until the cursor has passed it; a new snapshot knows nothing of it. */
static void test_answered_stays(void **state) {
        struct tree_applied applied;
        struct cursor c, at;
        assert_int_equal(tree_answered(w.tree, &c), -ENOENT);
        assert_int_equal(model_chmod(&m, &d.id, 0711), 0); /* an event that is not here yet */
        (void)put_content(&w, f.ino, 1, 100);
        struct op_result r = answer(NULL);
        MUST(tree_accepted(w.tree, &r, NULL, NULL, w.arena, &applied));
        MUST(tree_cursor(w.tree, &at));
        tree_close(w.tree);
        world_reopen(&w, 2);
        MUST(tree_answered(w.tree, &c));
        assert_int_equal(c.seq, r.seq);
        assert_true(c.seq > at.seq);
        assert_memory_equal(c.mark, r.mark, sizeof c.mark);
        assert_true(id_equal(&c.epoch, &at.epoch));
        sync_down(&w, &m);
        assert_int_equal(tree_answered(w.tree, &c), -ENOENT);
        (void)put_content(&w, f.ino, 2, 101);
        r = answer(NULL);
        MUST(tree_accepted(w.tree, &r, NULL, NULL, w.arena, &applied));
        MUST(tree_answered(w.tree, &c));
        load_snapshot(&w, &m, 100, 100);
        assert_int_equal(tree_answered(w.tree, &c), -ENOENT);
        tree_close(w.tree);
        world_reopen(&w, 2);
        assert_int_equal(tree_answered(w.tree, &c), -ENOENT);
}

/* Something is saved over one of a file's names, and then the file is written through another one, which another client has deleted: the edit comes after what took the name, and the file comes back. */
static void written_after_a_name_went(bool saved_over) {
        struct node n;
        MUST(tree_link(w.tree, f.ino, INO_ROOT, "second", 6, &n));
        sync_all(&w, &m);
        assert_int_equal(model_unlink(&m, &d.id, "file"), 0);
        (void)put_content(&w, f.ino, 1, 100);
        if (saved_over) {
                n = make(&w, INO_ROOT, "new", NODE_FILE);
                (void)put_content(&w, n.ino, 2, 50);
                MUST(mv(&w, INO_ROOT, "new", INO_ROOT, "second", 0));
        } else {
                MUST(rm(&w, INO_ROOT, "second"));
        }
        (void)put_content(&w, f.ino, 3, 101);
        (void)put_content(&w, f.ino, 4, 102);
        sync_all(&w, &m);
        compare(&w, &m);
        MUST(tree_get(w.tree, f.ino, &n));
        assert_int_equal(n.nlink, 1);
        assert_int_equal(n.size, 102);
        if (saved_over)
                assert_int_equal(look(&w, INO_ROOT, "second").size, 50);
}
static void test_written_after_save_over(void **state) { written_after_a_name_went(true); }
static void test_written_after_unlink(void **state) { written_after_a_name_went(false); }

/* Another life of this state (a clone) has sent a new file that was saved over another one here: to the server these are two files. */
static void test_clone_sent_the_temporary(void **state) {
        struct outbox_item items[4];
        struct node n = make(&w, d.ino, "new", NODE_FILE);
        (void)put_content(&w, n.ino, 1, 100);
        assert_int_equal(outbox_all(&w, items, 4), 1);
        struct op op = items[0].op;
        op.content = model_content(1, 100);
        struct op_result r = model_commit(&m, &op);
        assert_int_equal(r.code, RES_OK);
        (void)put_content(&w, n.ino, 2, 101);
        MUST(mv(&w, d.ino, "new", d.ino, "file", 0));
        sync_all(&w, &m);
        compare(&w, &m);
        assert_int_equal(look(&w, d.ino, "file").size, 101);
        assert_int_equal(look(&w, d.ino, "file").ino, n.ino);
        n = look(&w, d.ino, "new");
        assert_int_equal(n.size, 100);
        assert_true(id_equal(&n.id, &op.node));
}

/* A name that was made and taken away again before it was sent leaves nothing. */
static void test_link_and_unlink(void **state) {
        struct node n;
        MUST(tree_link(w.tree, f.ino, INO_ROOT, "second", 6, &n));
        clock_manual_advance(&w.clock, 1000);
        MUST(rm(&w, INO_ROOT, "second"));
        struct outbox_item items[2];
        assert_int_equal(outbox_all(&w, items, 2), 0);
        world_check(&w); /* it is settled */
        MUST(tree_get(w.tree, f.ino, &n));
        assert_false(n.pending);
        assert_int_equal(n.nlink, 1);
}

static void test_replays(void **state) {
        struct id ids[4];
        for (unsigned i = 0; i < 4; i++) {
                char name[8];
                (void)snprintf(name, sizeof(name), "r%u", i);
                ids[i] = model_make(&m, &id_root, name, NODE_FILE, i);
        }
        assert_int_equal(model_rename(&m, &id_root, "r0", &d.id, "r0"), 0);
        assert_int_equal(model_unlink(&m, &id_root, "r1"), 0);
        assert_int_equal(model_write(&m, &ids[2], 9), 0);
        sync_down(&w, &m);
        compare(&w, &m);
        w.n_notes = 0;
        for (uint64_t from = 0; from < m.seq; from++)
                sync_events(&w, &m, from, m.seq);
        for (uint64_t to = 0; to <= m.seq; to++)
                sync_events(&w, &m, 0, to);
        assert_int_equal(w.n_notes, 0);
        compare(&w, &m);
        /* an answer ahead of events: what was deleted by it does not come back with older rows */
        struct op_result r;
        struct tree_applied applied;
        assert_int_equal(model_write(&m, &ids[3], 11), 0);
        struct outbox_item items[2];
        sync_events(&w, &m, m.seq - 1, m.seq);
        assert_int_equal(model_chmod(&m, &ids[3], 0606), 0);
        MUST(rm(&w, INO_ROOT, "r3"));
        assert_int_equal(outbox_ready(&w, items, 2, NULL), 1);
        r = answer(NULL);
        assert_int_equal(r.code, RES_OK);
        MUST(tree_accepted(w.tree, &r, NULL, NULL, w.arena, &applied));
        assert_int_equal(look_error(&w, INO_ROOT, "r3"), -ENOENT);
        sync_events(&w, &m, m.seq - 2, m.seq - 1); /* the chmod, late */
        assert_int_equal(look_error(&w, INO_ROOT, "r3"), -ENOENT);
        sync_down(&w, &m);
        assert_int_equal(look_error(&w, INO_ROOT, "r3"), -ENOENT);
}

static void test_swap(void **state) {
        /* names change hands inside one event, in either order of its rows */
        (void)model_make(&m, &id_root, "x", NODE_FILE, 1);
        (void)model_make(&m, &id_root, "y", NODE_FILE, 2);
        sync_down(&w, &m);
        uint64_t x = look(&w, INO_ROOT, "x").ino, y = look(&w, INO_ROOT, "y").ino;
        struct model_entry *a = model_at(&m, &id_root, "x"), *b = model_at(&m, &id_root, "y");
        struct op op = { .id = rng_id(&m.rng.rng), .kind = OP_RENAME, .flags = OPF_EXCHANGE, .node = a->row.node, .parent = id_root, .name = "x", .name_bytes = 1, .parent2 = id_root,
                         .name2 = "y", .name2_bytes = 1, .placement = a->row.placement, .replaced = b->row.node, .replaced_placement = b->row.placement };
        assert_int_equal(model_commit(&m, &op).code, RES_OK);
        sync_down(&w, &m);
        assert_int_equal(look(&w, INO_ROOT, "x").ino, y);
        assert_int_equal(look(&w, INO_ROOT, "y").ino, x);
        assert_int_equal(model_rename(&m, &id_root, "x", &id_root, "y"), 0); /* over */
        sync_down(&w, &m);
        assert_int_equal(look(&w, INO_ROOT, "y").ino, y);
        assert_int_equal(look_error(&w, INO_ROOT, "x"), -ENOENT);
}

static void test_remote_delete_open(void **state) {
        /* deleted elsewhere while it is open here, and then written: the node comes back */
        w.open[w.n_open++] = f.ino;
        assert_int_equal(model_unlink(&m, &d.id, "file"), 0);
        sync_down(&w, &m);
        assert_int_equal(look_error(&w, d.ino, "file"), -ENOENT);
        assert_int_equal(put_content(&w, f.ino, 5, 55), 0);
        struct outbox_item items[2];
        assert_int_equal(outbox_all(&w, items, 2), 1);
        assert_true(items[0].op.flags & OPF_REVIVE);
        w.n_open = 0;
        sync_all(&w, &m);
        assert_int_equal(look(&w, d.ino, "file").ino, f.ino);
        assert_int_equal(look(&w, d.ino, "file").size, 55);
}

/* A temporary that was on the server was saved over a file; meanwhile somebody else wrote into the temporary, and removed the file. Both contents stay. */
static void test_save_source_edited(void **state) {
        struct node temp = make(&w, d.ino, "f.tmp", NODE_FILE);
        (void)put_content(&w, temp.ino, 7, 77);
        sync_all(&w, &m);
        MUST(mv(&w, d.ino, "f.tmp", d.ino, "file", 0));
        struct model_entry *e = model_at(&m, &d.id, "f.tmp");
        assert_int_equal(model_write(&m, &e->row.node, 99), RES_OK);
        const struct content theirs = model_find(&m, &e->row.node)->row.content;
        assert_int_equal(model_unlink(&m, &d.id, "file"), 0);
        sync_all(&w, &m);
        compare(&w, &m);
        temp = look(&w, d.ino, "f.tmp");
        assert_true(content_equal(&temp.content, &theirs));
        assert_int_equal(look(&w, d.ino, "file").size, 77);
}

/* A file that was saved over while an edit of it was on its way, and the edit is refused: the copy is of the save. Who has the old inode open stays there. */
static void test_copy_leaves_old_inode(void **state) {
        struct outbox_item items[4];
        (void)put_content(&w, f.ino, 1, 11);
        assert_int_equal(outbox_ready(&w, items, 4, NULL), 1);
        struct op edit = items[0].op;
        MUST(outbox_mark_sent(w.tree, &edit.id, 1));
        w.open[w.n_open++] = f.ino;
        struct node temp = make(&w, d.ino, "new", NODE_FILE);
        (void)put_content(&w, temp.ino, 2, 22);
        MUST(mv(&w, d.ino, "new", d.ino, "file", 0));
        assert_int_equal(model_write(&m, &f.id, 99), RES_OK);
        edit.content = model_content(1, 11);
        struct op_result r = model_commit(&m, &edit);
        assert_int_equal(r.code, RES_STALE);
        struct tree_applied applied = resolve(&r, RESOLVE_CONFLICT_COPY);
        assert_int_equal(applied.n_done, 2);
        for (size_t i = 0; i < applied.n_done; i++)
                assert_int_equal(applied.done[i].fate, applied.done[i].gen == 2 ? FATE_MOVED : FATE_DROPPED);
        assert_int_equal(applied.done[0].gen, 2);
        w.n_open = 0;
        sync_all(&w, &m);
        compare(&w, &m);
}

static void make_way(uint64_t from) {
        struct event *e = &m.log[from]; /* the answer to an operation of ours may carry rows that are newer than the events so far */
        struct tree_applied out;
        struct op_result r = { .op = rng_id(&m.rng.rng), .code = RES_OK, .seq = e->seq, .current = e->changes, .n_current = e->n_changes };
        MUST(tree_accepted(w.tree, &r, world_is_open, &w, w.arena, &out));
}

/* Its name belongs to another node by now, but that it was deleted has not been told yet: what is written through its handle is kept, and brings it back. */
static void test_hidden_write(void **state) {
        w.open[w.n_open++] = f.ino;
        assert_int_equal(model_unlink(&m, &d.id, "file"), 0);
        const uint64_t from = m.n_log;
        (void)model_make(&m, &d.id, "file", NODE_FILE, 3);
        make_way(from);
        assert_int_not_equal(look(&w, d.ino, "file").ino, f.ino);
        struct node node;
        MUST(tree_get(w.tree, f.ino, &node));
        assert_true(node.unlinked && node.taken);
        assert_int_equal(put_content(&w, f.ino, 5, 55), 0);
        struct outbox_item items[2];
        assert_int_equal(outbox_all(&w, items, 2), 1);
        w.n_open = 0;
        sync_all(&w, &m);
        MUST(tree_get(w.tree, f.ino, &node));
        assert_false(node.unlinked);
        assert_int_equal(node.size, 55);
        compare(&w, &m);
}

/* The same, and a kill before the row was written: the stage is queued at the start. */
static void test_hidden_recovers(void **state) {
        w.open[w.n_open++] = f.ino;
        assert_int_equal(model_unlink(&m, &d.id, "file"), 0);
        const uint64_t from = m.n_log;
        (void)model_make(&m, &d.id, "file", NODE_FILE, 3);
        make_way(from);
        tree_close(w.tree);
        w.n_open = 0;
        world_reopen(&w, 0);
        struct stage_identity s = { .ino = f.ino, .gen = UINT64_MAX / 4, .node = f.id, .parent = d.id, .name = "file", .base_version = f.version, .mode = 0644, .mtime_ns = 5, .size = 55 };
        enum recover_result how;
        MUST(tree_recover_stage(w.tree, &s, &how));
        assert_int_equal(how, RECOVER_QUEUED);
        sync_all(&w, &m);
        assert_int_equal(look(&w, d.ino, "file").size, 3);
        compare(&w, &m);
}

/* This state was rolled back, or cloned: the server has an operation that was never sent from here, and its row says something else by now. Nothing of ours is lost. */
static void test_never_sent(void **state) {
        struct outbox_item items[8];
        (void)put_content(&w, f.ino, 1, 100);
        assert_int_equal(outbox_ready(&w, items, 8, NULL), 1);
        struct op theirs = items[0].op;
        theirs.content = model_content(1, 100);
        assert_int_equal(model_commit(&m, &theirs).code, RES_OK); /* by the other one */
        assert_int_equal(put_content(&w, f.ino, 2, 200), 1);      /* the same row, the same id */
        sync_down(&w, &m);
        assert_int_equal(look(&w, d.ino, "file").gen, 2);
        assert_int_equal(pending(), 1);
        assert_int_equal(outbox_ready(&w, items, 8, NULL), 1);
        assert_true(id_equal(&items[0].op.id, &theirs.id));
        struct op_result reused = { .op = theirs.id, .code = RES_ID_REUSED };
        MUST(outbox_mark_sent(w.tree, &theirs.id, 1));
        (void)resolve(&reused, RESOLVE_REBASE);
        struct op ours;
        struct op_result r = answer(&ours);
        assert_false(id_equal(&ours.id, &theirs.id));
        assert_int_equal(r.code, RES_STALE);
        (void)resolve(&r, RESOLVE_CONFLICT_COPY);
        assert_int_equal(look(&w, d.ino, "file").size, 100);
        assert_int_equal(look(&w, d.ino, "file (conflict box 1)").size, 200);
        /* a new file that is there already, with other bytes */
        struct node n = make(&w, d.ino, "new", NODE_FILE);
        (void)put_content(&w, n.ino, 3, 30);
        size_t count = outbox_all(&w, items, 8);
        theirs = items[count - 1].op;
        assert_int_equal(theirs.kind, OP_CREATE);
        theirs.content = model_content(3, 30);
        struct op_result made = model_commit(&m, &theirs);
        assert_int_equal(made.code, RES_OK);
        (void)put_content(&w, n.ino, 4, 40);
        MUST(outbox_mark_sent(w.tree, &theirs.id, 1));
        struct op_result again = made;
        again.code = RES_ID_REUSED;
        struct tree_applied applied = resolve(&again, RESOLVE_CONFLICT_COPY);
        assert_int_equal(applied.n_done, 1);
        assert_int_equal(applied.done[0].fate, FATE_MOVED);
        assert_int_equal(look(&w, d.ino, "new").size, 30);
        assert_int_equal(look(&w, d.ino, "new (conflict box 1)").gen, 4);
        /* a directory that is there already */
        (void)make(&w, d.ino, "sub", NODE_DIR);
        count = outbox_all(&w, items, 8);
        theirs = items[count - 1].op;
        made = model_commit(&m, &theirs);
        assert_int_equal(made.code, RES_OK);
        MUST(outbox_mark_sent(w.tree, &theirs.id, 1));
        again = made;
        again.code = RES_ID_REUSED;
        (void)resolve(&again, RESOLVE_DROP);
        assert_int_equal(look(&w, d.ino, "sub").pending, false);
}

/* Refusals tell of a file whose only name is in a directory that is not here yet: until that directory comes, what the server has is kept beside what was shown. */
static void test_refused_before_its_directory(void **state) {
        struct outbox_item items[8];
        struct node n = make(&w, d.ino, "new", NODE_FILE);
        (void)put_content(&w, n.ino, 3, 30);
        assert_int_equal(outbox_all(&w, items, 8), 1);
        struct op theirs = items[0].op;
        theirs.content = model_content(3, 30);
        assert_int_equal(model_commit(&m, &theirs).code, RES_OK); /* by a clone of this client; another one edits and moves it */
        const struct id far = model_make(&m, &id_root, "far", NODE_DIR, 0);
        assert_int_equal(model_write(&m, &n.id, 20), 0);
        assert_int_equal(model_rename(&m, &d.id, "new", &far, "away"), 0);
        MUST(outbox_mark_sent(w.tree, &theirs.id, 1));
        (void)put_content(&w, n.ino, 4, 40);
        const size_t count = outbox_all(&w, items, 8);
        assert_int_equal(items[count - 1].op.kind, OP_CONTENT);
        struct op edit = items[count - 1].op;
        edit.content = model_content(4, 40);
        struct op_result stale = model_commit(&m, &edit), reused = stale;
        assert_int_equal(stale.code, RES_STALE);
        reused.op = theirs.id;
        reused.code = RES_ID_REUSED;
        (void)resolve(&reused, RESOLVE_CONFLICT_COPY);
        MUST(outbox_mark_sent(w.tree, &edit.id, 1));
        (void)resolve(&stale, RESOLVE_CONFLICT_COPY);
        assert_int_equal(tree_lookup(w.tree, d.ino, "new", 3, &n), -ENOENT);
        sync_down(&w, &m);
        n = look(&w, look(&w, INO_ROOT, "far").ino, "away");
        assert_true(id_equal(&n.id, &theirs.node));
        assert_int_equal(n.gen, 0);
        assert_int_equal(n.size, 20);
}

/* The bytes of a new file did not survive a power cut: it is empty, and what was done to it since holds. */
static void test_lost_content(void **state) {
        struct outbox_item items[8];
        struct node n = make(&w, d.ino, "lost", NODE_FILE);
        (void)put_content(&w, n.ino, 5, 50);
        assert_int_equal(outbox_all(&w, items, 8), 1);
        MUST(outbox_mark_sent(w.tree, &items[0].op.id, 1)); /* what was sent is never changed: it gets another id */
        MUST(mv(&w, d.ino, "lost", d.ino, "moved", 0));
        MUST(tree_lost_content(w.tree, &items[0].op.id));
        assert_int_equal(tree_lost_content(w.tree, &items[0].op.id), -ENOENT);
        n = look(&w, d.ino, "moved");
        assert_true(n.size == 0 && n.gen == 0);
}

static void test_dir_times(void **state) {
        /* an explicit time of a directory follows what was done in it, and is what both sides show */
        struct node n;
        struct tree_attrs a = { .mask = ATTR_MTIME, .mtime_ns = 1234567890 };
        struct node dir = make(&w, INO_ROOT, "untarred", NODE_DIR);
        for (unsigned i = 0; i < 10; i++) {
                char name[8];
                (void)snprintf(name, sizeof(name), "l%u", i);
                clock_manual_advance(&w.clock, 10);
                (void)make(&w, dir.ino, name, NODE_SYMLINK);
        }
        MUST(tree_setattr(w.tree, dir.ino, &a, &n));
        sync_all(&w, &m);
        n = look(&w, INO_ROOT, "untarred");
        assert_int_equal(n.mtime_ns, 1234567890);
        assert_int_equal(model_find(&m, &n.id)->row.mtime_ns, 1234567890);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_notes, setup, teardown),         cmocka_unit_test_setup_teardown(test_both_hold, setup, teardown),
                cmocka_unit_test_setup_teardown(test_name_waits, setup, teardown),    cmocka_unit_test_setup_teardown(test_conflict_copy, setup, teardown),
                cmocka_unit_test_setup_teardown(test_conflict_copy_newest, setup, teardown), cmocka_unit_test_setup_teardown(test_conflict_listed, setup, teardown), cmocka_unit_test_setup_teardown(test_drop, setup, teardown),
                cmocka_unit_test_setup_teardown(test_rebase, setup, teardown),        cmocka_unit_test_setup_teardown(test_revive, setup, teardown),
                cmocka_unit_test_setup_teardown(test_merged_dir, setup, teardown),    cmocka_unit_test_setup_teardown(test_merged_before, setup, teardown),
                cmocka_unit_test_setup_teardown(test_merged_below, setup, teardown),
                cmocka_unit_test_setup_teardown(test_merged_file, setup, teardown),   cmocka_unit_test_setup_teardown(test_answers, setup, teardown),
                cmocka_unit_test_setup_teardown(test_replays, setup, teardown),       cmocka_unit_test_setup_teardown(test_swap, setup, teardown),
                cmocka_unit_test_setup_teardown(test_remote_delete_open, setup, teardown), cmocka_unit_test_setup_teardown(test_save_source_edited, setup, teardown), cmocka_unit_test_setup_teardown(test_copy_leaves_old_inode, setup, teardown), cmocka_unit_test_setup_teardown(test_hidden_write, setup, teardown), cmocka_unit_test_setup_teardown(test_hidden_recovers, setup, teardown), cmocka_unit_test_setup_teardown(test_dir_times, setup, teardown), cmocka_unit_test_setup_teardown(test_never_sent, setup, teardown),
                cmocka_unit_test_setup_teardown(test_refused_before_its_directory, setup, teardown), cmocka_unit_test_setup_teardown(test_lost_content, setup, teardown),
                cmocka_unit_test_setup_teardown(test_answered_stays, setup, teardown), cmocka_unit_test_setup_teardown(test_written_after_save_over, setup, teardown),
                cmocka_unit_test_setup_teardown(test_written_after_unlink, setup, teardown), cmocka_unit_test_setup_teardown(test_clone_sent_the_temporary, setup, teardown),
                cmocka_unit_test_setup_teardown(test_link_and_unlink, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
