/* SPDX-License-Identifier: Apache-2.0 */
/* world.c: see world.h. The invariants read tree.db through a connection of their own, by the cache's adapter. */
#include "world.h"

#include "base/digest.h"
#include "db.h"

#include "db.h"
#include "tree_priv.h"
#include "../tmpdir.h"

const char *world_at = "/tmp", *world_vfs;

static void on_notes(struct listener *l, const struct note *notes, size_t n) {
        struct world *w = container_of(l, struct world, listener);
        for (size_t i = 0; i < n && w->n_notes < ARRAY_SIZE(w->notes); i++) {
                w->notes[w->n_notes].kind = notes[i].kind;
                w->notes[w->n_notes].ino = notes[i].ino;
                (void)snprintf(w->notes[w->n_notes].name, sizeof(w->notes[0].name), "%.*s", (int)notes[i].name_bytes, notes[i].name ? notes[i].name : "");
                w->n_notes++;
        }
}

static void on_wake(struct listener *l) {
        container_of(l, struct world, listener)->wakes++;
}

bool world_noted(const struct world *w, enum note_kind kind, uint64_t ino, const char *name) {
        for (size_t i = 0; i < w->n_notes; i++)
                if (w->notes[i].kind == kind && w->notes[i].ino == ino && (!name || strcmp(w->notes[i].name, name) == 0))
                        return true;
        return false;
}

uint64_t world_seed(void) {
        const char *given = getenv("TARN_TEST_SEED");
        uint64_t seed = given ? strtoull(given, NULL, 0) : rng_u64(rng_system());
        printf("TARN_TEST_SEED=%llu\n", (unsigned long long)seed);
        return seed;
}

unsigned world_scale(void) {
        const char *s = getenv("TARN_TEST_SCALE");
        return s ? (unsigned)strtoul(s, NULL, 10) : 1;
}

bool world_is_open(void *arg, uint64_t ino) {
        struct world *w = arg;
        for (size_t i = 0; i < w->n_open; i++)
                if (w->open[i] == ino)
                        return true;
        return false;
}

bool world_kept(void *arg, uint64_t ino) {
        return world_is_open(arg, ino);
}

void world_reopen(struct world *w, unsigned readers) {
        struct tree_config c = { .path = w->path, .vfs = world_vfs, .readers = readers, .clock = &w->clock.clock, .rng = &w->rng.rng, .counters = &w->counters, .uid = 1000, .gid = 1000 };
        MUST(tree_open(&c, &w->tree));
        tree_add_listener(w->tree, &w->listener);
}

void world_open_bare(struct world *w, uint64_t seed, unsigned readers) {
        memset(w, 0, sizeof(*w));
        (void)snprintf(w->dir, sizeof(w->dir), "%s/tarn-tree-test.XXXXXX", world_at);
        assert_non_null(tmpdir_new(w->dir));
        (void)snprintf(w->path, sizeof(w->path), "%s/tree.db", w->dir);
        rng_seed(&w->rng, seed);
        clock_manual_init(&w->clock, 1000, 1700000000000000000);
        w->listener = (struct listener){ .notes = on_notes, .wake = on_wake };
        MUST(arena_new(64u << 20, &w->arena));
        world_reopen(w, readers);
}

void world_open(struct world *w, uint64_t seed, unsigned readers) {
        struct node_row root = { .id = id_root, .kind = NODE_DIR, .mode = 0755, .uid = 1000, .gid = 1000, .mtime_ns = 1, .ctime_ns = 1, .btime_ns = 1, .seq = 1 };
        struct cursor c = { .epoch = { { 7 } }, .seq = 1 };
        struct snapshot_state st;
        world_open_bare(w, seed, readers);
        MUST(tree_snapshot_begin(w->tree, &c, &st));
        MUST(tree_snapshot_nodes(w->tree, &root, 1, &st));
        int r;
        while ((r = tree_snapshot_step(w->tree, &c, 1000, NULL, NULL)) > 0)
                ;
        MUST(r);
        w->n_notes = 0;
}

void world_close(struct world *w) {
        tree_close(w->tree);
        arena_free(w->arena);
        DIR *d = opendir(w->dir);
        assert_non_null(d);
        for (struct dirent *e; (e = readdir(d));)
                if (e->d_name[0] != '.')
                        (void)unlinkat(dirfd(d), e->d_name, 0);
        (void)closedir(d);
        (void)rmdir(w->dir);
}

/* ---- invariants ---- */

static int64_t count(struct db *db, const char *sql) {
        int64_t v = -1;
        MUST(db_int(db, &v, sql, ""));
        return v;
}

#define NONE(db, sql)                                                        \
        do {                                                                 \
                if (count(db, "SELECT count(*) FROM " sql) != 0) {           \
                        world_print(w);                                      \
                        fail_msg("invariant: %s", sql);                      \
                }                                                            \
        } while (0)

/* What is shown of a node, as text, without what settling may choose anew. */
static char *dump(struct world *w) {
        static const char *const sql[] = {
                ("SELECT group_concat(printf('%d %s %d %d %d %d %d %d %d %s %s %d %d %d %d %d', ino, hex(id), mode, uid, gid, nlink, mtime, ctime_d, size, hex(root), hex(version), gen, seq, parent, bits, pend),"
                " char(10)) FROM (SELECT * FROM node ORDER BY ino)"),
                "SELECT group_concat(printf('%d %s %d %s %d', parent, name, node, hex(placement), bits), char(10)) FROM (SELECT * FROM entry ORDER BY parent, name)",
                "SELECT group_concat(printf('%d %s', ino, hex(row)), char(10)) FROM (SELECT * FROM shadow ORDER BY ino)",
        };
        struct db *db = w->tree->w;
        size_t room = 1;
        char *text = calloc(1, 1);
        for (size_t i = 0; i < ARRAY_SIZE(sql); i++) {
                struct db_stmt *s;
                size_t n, at = strlen(text);
                assert_int_equal(db_query(db, &s, sql[i], ""), 1);
                const char *p = db_col_text(s, 0, &n);
                text = realloc(text, room += n + 2);
                memcpy(text + at, p ? p : "", n);
                memcpy(text + at + n, "\n", 2);
                db_reset(s);
        }
        return text;
}

static void print_rows(struct db *db, const char *sql) {
        struct db_stmt *s;
        int r = db_query(db, &s, sql, "");
        unsigned n = 0;
        for (; r > 0; r = db_step(s))
                if (n++ < 40)
                        printf("  %s\n", db_col_text(s, 0, NULL));
}

void world_print(struct world *w) {
        struct db *db = w->tree->w;
        printf("nodes\n");
        print_rows(db, "SELECT printf('%d %.8s kind %d nlink %d mtime %d gen %d seq %d nseq %s parent %d bits %d pend %d', ino, hex(id), mode>>12, nlink, mtime/1000000%10000000, gen, seq, nseq, parent, bits, pend) FROM node");
        printf("entries\n");
        print_rows(db, "SELECT printf('%d/%s -> %d by %.8s bits %d', parent, name, node, hex(placement), bits) FROM entry");
        printf("server's names\n");
        print_rows(db, "SELECT printf('%d/%s -> %d by %.8s', parent, name, ino, hex(placement)) FROM shadow_name");
        printf("outbox\n");
        print_rows(db, "SELECT printf('%d %.8s kind %d state %d bits %d ino %d,%d %d/%s %d/%s gen %d nwait %d class %d', ord, hex(id), kind, state, bits, ino, ino2, p1, n1, p2, n2, gen, nwait, class) FROM outbox");
}

void world_check(struct world *w) {
        struct db *db = w->tree->w;
        NONE(db, "entry e LEFT JOIN node n ON n.ino=e.node WHERE n.ino IS NULL");
        NONE(db, "entry e LEFT JOIN node n ON n.ino=e.parent WHERE n.ino IS NULL OR n.mode>>12 <> 2");
        NONE(db, "node n WHERE n.cookie>0 AND NOT EXISTS(SELECT 1 FROM entry e WHERE e.parent=n.parent AND e.cookie=n.cookie AND e.node=n.ino AND e.bits<2)");
        NONE(db, "node n WHERE n.mode>>12 <> 2 AND n.nlink <> (SELECT count(*) FROM entry e WHERE e.node=n.ino)");
        NONE(db, "node n WHERE n.mode>>12 = 2 AND (SELECT count(*) FROM entry e WHERE e.node=n.ino) > 1");
        NONE(db, "node n WHERE n.mode>>12 = 2 AND n.nlink <> 2 + (SELECT count(*) FROM entry e JOIN node c ON c.ino=e.node WHERE e.parent=n.ino AND c.mode>>12 = 2)");
        NONE(db, "node n WHERE n.pend <> (SELECT count(*) FROM outbox WHERE ino=n.ino) + (SELECT count(*) FROM outbox WHERE ino2=n.ino)");
        NONE(db, "outbox o WHERE NOT EXISTS(SELECT 1 FROM node n WHERE n.ino=o.ino)");
        NONE(db, "outbox o WHERE o.nwait <> (SELECT count(*) FROM dep d JOIN outbox p ON p.ord=d.pred WHERE d.succ=o.ord AND p.state<>1)");
        NONE(db, "dep WHERE pred>=succ OR succ NOT IN (SELECT ord FROM outbox) OR pred NOT IN (SELECT ord FROM outbox)");
        NONE(db, "shadow s LEFT JOIN node n ON n.ino=s.ino WHERE n.ino IS NULL OR n.bits & 1 = 0");
        NONE(db, "node n WHERE n.bits & 1 AND NOT EXISTS(SELECT 1 FROM shadow s WHERE s.ino=n.ino)");
        NONE(db, "shadow_name s WHERE NOT EXISTS(SELECT 1 FROM shadow x WHERE x.ino=s.ino)");
        NONE(db, "node n WHERE n.seq>0 AND n.pend>0 AND n.bits & 1 = 0 AND n.ino>1 AND n.bits & 2 = 0");
        NONE(db, "entry e WHERE e.bits & 1 AND NOT EXISTS(SELECT 1 FROM outbox o WHERE o.id=e.placement)");
        /* the view is what view.c says */
        char *before = dump(w);
        size_t notes = w->n_notes;
        struct open_set all = {0};
        struct db_stmt *s;
        MUST(tree_begin(w->tree));
        int r = db_query(db, &s, "SELECT ino FROM node WHERE bits & 6 = 0", "");
        for (; r > 0; r = db_step(s))
                MUST(open_set_add(&all, (uint64_t)db_col_int(s, 0)));
        MUST(r);
        for (size_t i = 0; i < all.n; i++)
                MUST(settle(w->tree, all.ino[i], NULL, NULL));
        MUST(settle_pending(w->tree));
        for (size_t i = 0; i < w->tree->n_notes; i++)
                free((void *)w->tree->notes[i].name);
        w->tree->n_notes = 0;
        char *after = dump(w);
        if (strcmp(before, after) != 0) {
                char *a = before, *b = after, *sa, *sb;
                for (char *x = strtok_r(a, "\n", &sa), *y = strtok_r(b, "\n", &sb); x || y; x = strtok_r(NULL, "\n", &sa), y = strtok_r(NULL, "\n", &sb))
                        if (!x || !y || strcmp(x, y) != 0) {
                                printf("view differs:\n  was    %s\n  should %s\n", x ? x : "-", y ? y : "-");
                                break;
                        }
                assert_int_equal(tree_end(w->tree, -ECANCELED), -ECANCELED);
                world_print(w);
                fail_msg("settling anew changed the tree");
        }
        free(before);
        free(after);
        cleanup_open_set_p(&all);
        assert_int_equal(tree_end(w->tree, -ECANCELED), -ECANCELED);
        w->n_notes = notes;
}

/* ---- short forms ---- */

struct node make(struct world *w, uint64_t dir, const char *name, enum node_kind kind) {
        struct tree_new what = { .kind = kind, .mode = kind == NODE_DIR ? 0755 : 0644, .uid = 1000, .gid = 1000, .target = kind == NODE_SYMLINK ? "there" : NULL };
        struct node node;
        MUST(tree_create(w->tree, dir, name, strlen(name), &what, &node));
        return node;
}

int look_error(struct world *w, uint64_t dir, const char *name) {
        struct node node;
        return tree_lookup(w->tree, dir, name, strlen(name), &node);
}

struct node look(struct world *w, uint64_t dir, const char *name) {
        struct node node = {0};
        int r = tree_lookup(w->tree, dir, name, strlen(name), &node);
        if (r < 0)
                fail_msg("%s: error %d", name, r);
        return node;
}

int rm(struct world *w, uint64_t dir, const char *name) {
        struct node node;
        return tree_unlink(w->tree, dir, name, strlen(name), false, world_kept, w, &node);
}

int rmdir_at(struct world *w, uint64_t dir, const char *name) {
        struct node node;
        return tree_unlink(w->tree, dir, name, strlen(name), true, world_kept, w, &node);
}

int mv(struct world *w, uint64_t dir, const char *name, uint64_t dir2, const char *name2, unsigned flags) {
        struct node moved, replaced;
        return tree_rename(w->tree, dir, name, strlen(name), dir2, name2, strlen(name2), flags, world_kept, w, &moved, &replaced);
}

uint64_t put_content(struct world *w, uint64_t ino, uint64_t gen, uint64_t size) {
        uint64_t dropped;
        MUST(tree_content(w->tree, ino, gen, size, w->clock.real_ns, NULL, &dropped));
        return dropped;
}

int chmod_to(struct world *w, uint64_t ino, uint32_t mode) {
        struct tree_attrs a = { .mask = ATTR_MODE, .mode = mode };
        struct node node;
        return tree_setattr(w->tree, ino, &a, &node);
}

size_t outbox_all(struct world *w, struct outbox_item *items, size_t max) {
        size_t n;
        MUST(outbox_list(w->tree, w->arena, false, items, max, &n));
        return n;
}

size_t outbox_ready(struct world *w, struct outbox_item *items, size_t max, int64_t *ret_wait_ms) {
        size_t n;
        int64_t wait;
        MUST(outbox_next(w->tree, w->arena, items, max, &n, ret_wait_ms ? ret_wait_ms : &wait));
        return n;
}

void world_sums(struct tree *t, uint64_t ret[WORLD_SUMS]) {
        static const char *const sql[] = {
                "SELECT group_concat(printf('%d %s %d %d %d %d %s %d %d %d %d %s', ino, hex(id), mode, nlink, size, mtime, hex(root), gen, last_gen, parent, pend, hex(extra))) FROM (SELECT * FROM node ORDER BY ino)",
                "SELECT group_concat(printf('%d %s %d', parent, hex(name), node)) FROM (SELECT * FROM entry ORDER BY parent, name)",
                "SELECT group_concat(printf('%d %s %d %d %s', ord, hex(id), kind, ino, hex(body))) FROM (SELECT * FROM outbox ORDER BY ord)",
                "SELECT group_concat(printf('%d %s', ino, hex(row))) FROM (SELECT * FROM shadow ORDER BY ino)",
        };
        _Static_assert(ARRAY_SIZE(sql) == WORLD_SUMS, "one sum for each");
        for (size_t i = 0; i < ARRAY_SIZE(sql); i++) {
                struct db_stmt *s;
                size_t n;
                assert_int_equal(db_query(t->w, &s, sql[i], ""), 1);
                const char *p = db_col_text(s, 0, &n);
                ret[i] = xxh3_64(p ? p : "", n);
                db_reset(s);
        }
}
