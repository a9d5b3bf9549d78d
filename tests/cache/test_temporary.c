/* SPDX-License-Identifier: Apache-2.0 */
/* What programs make for a moment is never sent, and that does not hang on how fast they or we are: the outbox is asked after each step of a save, with time between the steps, while the save
 * before it is on the server, on its way, or was given up on the way. tests/e2e/test_patterns.py does the same on a mount. */
#include "../../cache/tree_priv.h"
#include "world.h"

static struct world w;
static struct model m;
static uint64_t gen;

static int setup(void **state) {
        world_open(&w, 1, 2);
        model_open(&m, 11);
        outbox_set_open_check(w.tree, world_is_open, &w);
        gen = 0;
        return 0;
}
static int teardown(void **state) {
        w.n_open = 0;
        world_check(&w);
        model_close(&m);
        world_close(&w);
        return 0;
}

static void write_to(uint64_t ino) { /* a commit point */
        gen++;
        (void)put_content(&w, ino, gen, 100 + gen);
}

/* ---- names ---- */

static void test_patterns(void **state) {
        static const char *const temps[] = { ".#a", "a~", "a.swp", "a.tmp", ".~lock.a.odt#", "4913", "a.crdownload", "a.part", ".goutputstream-ABC", "sedAbc123", ".a.txt.Xy12Ab", "~$a.docx",
                                             "a.txt___jb_tmp___" };
        static const char *const others[] = { "a.txt", "sed", "sedation", "Makefile", ".bashrc", "4914", "a.b.c", "report.odt.TRmZyU" };
        for (size_t i = 0; i < ARRAY_SIZE(temps); i++)
                if (!temporary_name(temps[i], strlen(temps[i])))
                        fail_msg("%s is a temporary's name", temps[i]);
        for (size_t i = 0; i < ARRAY_SIZE(others); i++)
                if (temporary_name(others[i], strlen(others[i])))
                        fail_msg("%s is not a temporary's name", others[i]);
}

static int here(uint64_t dir, const char *name) {
        int r = tree_begin(w.tree);
        if (r == 0)
                r = temporary_here(w.tree, dir, name, strlen(name));
        assert_true(r >= 0);
        assert_int_equal(tree_end(w.tree, -ECANCELED), -ECANCELED);
        return r;
}

static void test_neighbours(void **state) {
        static const char *const files[] = { "report.odt", "report.odt2", "report.odt.Tz", "repo", "prog", "a", "index.db", "x.123456", "Zz" };
        struct node dir = make(&w, INO_ROOT, "sub", NODE_DIR);
        for (size_t i = 0; i < ARRAY_SIZE(files); i++)
                (void)make(&w, INO_ROOT, files[i], NODE_FILE);
        (void)make(&w, INO_ROOT, "folder", NODE_DIR);
        static const char *const temps[] = { "report.odt.TRmZyU", "report.odt.AAAAAA", "report.odt.zzzzzz", ".report.odt1234567", ".report.odt-XyZaBcD", "#report.odt-abcdef", "index.db-journal",
                                             "report.odt.1234567890", "x.123456.abcdef", "_report.odt.dpkgnew" };
        static const char *const others[] = { "report.odt", "report.odt.b", "report.odt.Tz.gz", "report.pdf", "prog.c", "prog.conf.in", "a.tar.gz", "a.txt", "folder.TRmZyU", "report", "index.db-wal",
                                              "bb.TRmZyU", "Z.tar.Abcdef", "prog (conflict box 1)", "prog - backup", "prog.old copy", "..", "rep.TRmZyU" };
        for (size_t i = 0; i < ARRAY_SIZE(temps); i++)
                if (!here(INO_ROOT, temps[i]))
                        fail_msg("%s is a temporary's name beside its document", temps[i]);
        for (size_t i = 0; i < ARRAY_SIZE(temps); i++)
                if (here(dir.ino, temps[i]))
                        fail_msg("%s is nobody's temporary in another directory", temps[i]);
        for (size_t i = 0; i < ARRAY_SIZE(others); i++)
                if (here(INO_ROOT, others[i]))
                        fail_msg("%s is not a temporary's name", others[i]);
        assert_true(temporary_of("report.odt.TRmZyU", 17, "report.odt", 10));
        assert_true(temporary_of(".report.odt.TRmZyU", 18, "report.odt", 10));
        assert_false(temporary_of("report.odt.TRmZyU", 17, "report.odt.TRmZyU", 17));
        assert_false(temporary_of("report.odt.TRmZyU", 17, "report.od", 9));
        assert_false(temporary_of("report.odt.TRmZyU", 17, "eport.odt", 9));
}

/* ---- saves ---- */

/* create and keep open; write and close (a commit point); close without more; freeze (a commit point, still open); rename; unlink; symlink */
enum step { END, CREATE, WRITE, FREEZE, CLOSE, RENAME, UNLINK, SYMLINK };
struct save { const char *program; struct { enum step step; const char *name, *name2; } steps[16]; };
#define DOC "report.odt"
#define R "TRmZyU"
static const struct save saves[] = {
        { "vim", { { CREATE, "4913", 0 }, { CLOSE, "4913", 0 }, { UNLINK, "4913", 0 }, { RENAME, DOC, DOC "~" }, { CREATE, DOC, 0 }, { WRITE, DOC, 0 }, { UNLINK, DOC "~", 0 } } },
        { "moved aside and made anew, which is still being written when the old one goes", { { RENAME, DOC, DOC "~" }, { CREATE, DOC, 0 }, { UNLINK, DOC "~", 0 }, { WRITE, DOC, 0 } } },
        { "vim, a backup by copy", { { CREATE, DOC "~", 0 }, { WRITE, DOC "~", 0 }, { WRITE, DOC, 0 }, { UNLINK, DOC "~", 0 } } },
        { "emacs", { { SYMLINK, ".#" DOC, 0 }, { CREATE, "#" DOC "#", 0 }, { WRITE, "#" DOC "#", 0 }, { WRITE, DOC, 0 }, { UNLINK, "#" DOC "#", 0 }, { UNLINK, ".#" DOC, 0 } } },
        { "libreoffice", { { CREATE, ".~lock." DOC "#", 0 }, { WRITE, ".~lock." DOC "#", 0 }, { CREATE, "lu" R ".tmp", 0 }, { WRITE, "lu" R ".tmp", 0 }, { RENAME, "lu" R ".tmp", DOC },
                           { UNLINK, ".~lock." DOC "#", 0 } } },
        { "ms office", { { CREATE, "~$" DOC, 0 }, { WRITE, "~$" DOC, 0 }, { CREATE, R ".tmp", 0 }, { WRITE, R ".tmp", 0 }, { RENAME, DOC, "old.tmp" }, { RENAME, R ".tmp", DOC }, { UNLINK, "old.tmp", 0 },
                         { UNLINK, "~$" DOC, 0 } } },
        { "qsavefile", { { CREATE, DOC "." R, 0 }, { WRITE, DOC "." R, 0 }, { RENAME, DOC "." R, DOC } } },
        { "keepassxc", { { CREATE, DOC "." R, 0 }, { FREEZE, DOC "." R, 0 }, { RENAME, DOC "." R, DOC }, { CLOSE, DOC, 0 } } },
        { "sed -i", { { CREATE, "sed" R, 0 }, { WRITE, "sed" R, 0 }, { RENAME, "sed" R, DOC } } },
        { "rsync", { { CREATE, "." DOC "." R, 0 }, { WRITE, "." DOC "." R, 0 }, { RENAME, "." DOC "." R, DOC } } },
        { "gedit", { { CREATE, ".goutputstream-" R, 0 }, { FREEZE, ".goutputstream-" R, 0 }, { RENAME, ".goutputstream-" R, DOC }, { CLOSE, DOC, 0 } } },
        { "git", { { CREATE, DOC ".lock", 0 }, { WRITE, DOC ".lock", 0 }, { RENAME, DOC ".lock", DOC } } },
        { "go", { { CREATE, "." DOC "1234567890", 0 }, { WRITE, "." DOC "1234567890", 0 }, { RENAME, "." DOC "1234567890", DOC } } },
        { "intellij", { { CREATE, DOC "___jb_tmp___", 0 }, { WRITE, DOC "___jb_tmp___", 0 }, { RENAME, DOC, DOC "___jb_old___" }, { RENAME, DOC "___jb_tmp___", DOC }, { UNLINK, DOC "___jb_old___", 0 } } },
        { "sqlite", { { CREATE, DOC "-journal", 0 }, { WRITE, DOC "-journal", 0 }, { WRITE, DOC, 0 }, { UNLINK, DOC "-journal", 0 } } },
        { "browser", { { CREATE, DOC ".part", 0 }, { WRITE, DOC ".part", 0 }, { RENAME, DOC ".part", DOC } } },
};

static struct outbox_item items[64];

/* Nothing that may go now names anything but the document, or takes it away before the new one comes. */
static size_t look_out(const char *program, const char *when) {
        arena_reset(w.arena);
        size_t n = outbox_ready(&w, items, ARRAY_SIZE(items), NULL);
        for (size_t i = 0; i < n; i++) {
                const char *const names[] = { items[i].op.name, items[i].op.name2 };
                for (unsigned k = 0; k < 2; k++)
                        if (names[k] && strcmp(names[k], DOC) != 0)
                                fail_msg("%s: %s would be sent %s", program, names[k], when);
                if (items[i].op.kind == OP_UNLINK)
                        fail_msg("%s: the document would be deleted %s", program, when);
        }
        return n;
}

static void act(enum step step, const char *name, const char *name2) {
        struct tree_new what = { .kind = step == SYMLINK ? NODE_SYMLINK : NODE_FILE, .mode = 0644, .target = step == SYMLINK ? "anna@host" : NULL, .opens = step == CREATE };
        struct node n;
        switch (step) {
        case CREATE:
                MUST(tree_create(w.tree, INO_ROOT, name, strlen(name), &what, &n));
                (void)look_out(name, "before its handle is counted");
                w.open[w.n_open++] = n.ino;
                tree_opened(w.tree, n.ino);
                break;
        case SYMLINK:
                MUST(tree_create(w.tree, INO_ROOT, name, strlen(name), &what, &n));
                break;
        case WRITE: case FREEZE: case CLOSE:
                n = look(&w, INO_ROOT, name);
                if (step != CLOSE)
                        write_to(n.ino);
                for (size_t i = 0; i < w.n_open && step != FREEZE; i++)
                        if (w.open[i] == n.ino)
                                w.open[i] = w.open[--w.n_open];
                break;
        case RENAME:
                MUST(mv(&w, INO_ROOT, name, INO_ROOT, name2, 0));
                break;
        case UNLINK:
                MUST(rm(&w, INO_ROOT, name));
                break;
        case END:
                break;
        }
}

/* How the save before is when this one begins. */
enum before { ACCEPTED, SENT, SENT_AGAIN, QUEUED, N_BEFORE };

static void replay(const struct save *save, enum before before) {
        struct id sent[8];
        size_t n_sent = 0;
        struct node doc = look(&w, INO_ROOT, DOC);
        write_to(doc.ino);
        if (before == ACCEPTED)
                sync_all(&w, &m);
        if (before == SENT || before == SENT_AGAIN)
                n_sent = look_out(save->program, "at first");
        assert_in_range(n_sent, 0, ARRAY_SIZE(sent));
        for (size_t i = 0; i < n_sent; i++)
                sent[i] = items[i].op.id;
        if (n_sent)
                MUST(outbox_mark_sent(w.tree, sent, n_sent));
        clock_manual_advance(&w.clock, 30000); /* whatever waits has waited for long */
        for (size_t i = 0; save->steps[i].step != END; i++) {
                char when[64];
                (void)snprintf(when, sizeof(when), "after step %zu, case %d", i + 1, (int)before);
                act(save->steps[i].step, save->steps[i].name, save->steps[i].name2);
                (void)look_out(save->program, when);
                clock_manual_advance(&w.clock, 190);
                (void)look_out(save->program, when);
                if (before == SENT_AGAIN && i == 1)
                        for (size_t k = 0; k < n_sent; k++)
                                MUST(outbox_unsend(w.tree, &sent[k]));
                world_check(&w);
        }
        if (before == SENT)
                for (size_t k = 0; k < n_sent; k++)
                        MUST(outbox_unsend(w.tree, &sent[k]));
        w.n_open = 0;
        sync_all(&w, &m);
        compare(&w, &m);
        struct model_entry *at = model_at(&m, &m.nodes[0].row.id, DOC);
        assert_non_null(at);
}

static void test_saves(void **state) {
        struct node doc = make(&w, INO_ROOT, DOC, NODE_FILE);
        write_to(doc.ino);
        sync_all(&w, &m);
        for (size_t i = 0; i < ARRAY_SIZE(saves); i++)
                for (enum before before = ACCEPTED; before < N_BEFORE; before++) {
                        replay(&saves[i], before);
                        replay(&saves[i], before); /* over what the first one left */
                }
        for (size_t i = 0; i < m.n_entries; i++)
                assert_string_equal(m.entries[i].name, DOC);
}

/* A save that is not the file's first: the document itself was never sent, or its CREATE is on its way. */
static void test_new_documents(void **state) {
        for (size_t i = 0; i < ARRAY_SIZE(saves); i++)
                for (unsigned sent = 0; sent < 2; sent++) {
                        struct node doc = make(&w, INO_ROOT, DOC, NODE_FILE);
                        struct id create = {0};
                        write_to(doc.ino);
                        if (sent) {
                                assert_int_equal(look_out(saves[i].program, "new"), 1);
                                create = items[0].op.id;
                                MUST(outbox_mark_sent(w.tree, &create, 1));
                        }
                        clock_manual_advance(&w.clock, 30000);
                        for (size_t k = 0; saves[i].steps[k].step != END; k++) {
                                act(saves[i].steps[k].step, saves[i].steps[k].name, saves[i].steps[k].name2);
                                (void)look_out(saves[i].program, sent ? "while its document is on its way" : "while its document waits");
                                clock_manual_advance(&w.clock, 190);
                                (void)look_out(saves[i].program, "later");
                        }
                        w.n_open = 0;
                        if (sent)
                                MUST(outbox_unsend(w.tree, &create));
                        sync_all(&w, &m);
                        compare(&w, &m);
                        MUST(rm(&w, INO_ROOT, DOC));
                        sync_all(&w, &m);
                }
        for (size_t i = 0; i < m.n_entries; i++)
                assert_string_equal(m.entries[i].name, DOC);
}

/* One that lived so long that it was sent is the document's new version all the same. */
static void test_sent_temporary(void **state) {
        struct node doc = make(&w, INO_ROOT, DOC, NODE_FILE);
        write_to(doc.ino);
        sync_all(&w, &m);
        doc = look(&w, INO_ROOT, DOC);
        struct node temp = make(&w, INO_ROOT, DOC "." R, NODE_FILE);
        write_to(temp.ino);
        clock_manual_advance(&w.clock, 2500);
        sync_all(&w, &m);
        MUST(mv(&w, INO_ROOT, DOC "." R, INO_ROOT, DOC, 0));
        temp = look(&w, INO_ROOT, DOC);
        assert_true(id_equal(&temp.id, &doc.id));
        assert_int_equal(outbox_ready(&w, items, ARRAY_SIZE(items), NULL), 1);
        assert_int_equal(items[0].op.kind, OP_REPLACE);
        sync_all(&w, &m);
        compare(&w, &m);
}

/* A clock in whose every reading by the outbox something happens: each change comes after one reading and before the next. */
static int64_t (*manual_real_ns)(struct clock *c);
static unsigned readings;

static int64_t busy_real_ns(struct clock *c) {
        char name[32];
        int64_t now = manual_real_ns(c);
        c->real_ns = manual_real_ns;
        clock_manual_advance(&w.clock, 1);
        (void)snprintf(name, sizeof(name), "%u.tmp", ++readings);
        write_to(make(&w, INO_ROOT, name, NODE_FILE).ino);
        struct node doc = look(&w, INO_ROOT, DOC);
        write_to(doc.ino);
        c->real_ns = busy_real_ns;
        return now;
}

static void test_newer_than_the_clock(void **state) {
        write_to(make(&w, INO_ROOT, DOC, NODE_FILE).ino);
        manual_real_ns = w.clock.clock.real_ns;
        w.clock.clock.real_ns = busy_real_ns;
        for (unsigned i = 0; i < 20; i++)
                assert_int_equal(look_out("busy", "by a clock read before it was there"), 1);
        w.clock.clock.real_ns = manual_real_ns;
        assert_true(readings > 20);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_patterns, setup, teardown), cmocka_unit_test_setup_teardown(test_neighbours, setup, teardown),
                cmocka_unit_test_setup_teardown(test_saves, setup, teardown), cmocka_unit_test_setup_teardown(test_new_documents, setup, teardown),
                cmocka_unit_test_setup_teardown(test_sent_temporary, setup, teardown), cmocka_unit_test_setup_teardown(test_newer_than_the_clock, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
