/* SPDX-License-Identifier: Apache-2.0 */
/* test_meta_log.c: the event log as a client sees it. A random stream of operations (seed printed) is replayed event by event into a model of a client that
 * applies rows and knows nothing else: after every event the model must be a valid tree (every parent live, no name twice, directories with one name, no
 * cycle), seq must be dense, and at the end the model equals the snapshot. Models kept from the way equal the tree as of their moment, read from the history tables. Then cursors: marks, epochs, the horizon; limits; pages. */
#include <stdlib.h>

#include "meta_int.h"
#include "test_meta_kit.h"

#define NODES_MAX 4000u

/* ---- a client's model ---- */

struct mnode { struct id id; enum node_kind kind; bool live; struct id version; uint64_t seq; };
struct mname { struct id parent, node; char name[NAME_BYTES_MAX + 1]; struct id placement; uint64_t entry_id; };
struct model { struct mnode nodes[NODES_MAX]; size_t n_nodes; struct mname names[NODES_MAX]; size_t n_names; };

static struct mnode *node_of(struct model *m, const struct id *id) {
        for (size_t i = 0; i < m->n_nodes; i++)
                if (id_equal(&m->nodes[i].id, id))
                        return &m->nodes[i];
        return NULL;
}

static void apply_node(struct model *m, const struct node_row *row) {
        struct mnode *n = node_of(m, &row->id);
        if (!n) {
                assert_true(m->n_nodes < NODES_MAX);
                n = &m->nodes[m->n_nodes++];
                n->id = row->id;
                n->kind = row->kind;
        }
        assert_int_equal(n->kind, row->kind);
        assert_true(row->seq >= n->seq);
        n->live = !row->deleted;
        n->version = row->version;
        n->seq = row->seq;
}

static void apply_entry(struct model *m, const struct entry_row *e) {
        assert_true(m->n_names < NODES_MAX);
        struct mname *w = &m->names[m->n_names++];
        w->parent = e->parent;
        w->node = e->node;
        w->placement = e->placement;
        w->entry_id = e->entry_id;
        memcpy(w->name, e->name, e->name_bytes + 1);
}

static void apply_event(struct model *m, const struct event *e) {
        for (size_t i = 0; i < e->n_changes; i++) {
                const struct change *c = &e->changes[i];
                apply_node(m, &c->node);
                assert_int_equal(c->node.seq, e->seq);
                if (!c->has_entries)
                        continue;
                size_t kept = 0;
                for (size_t k = 0; k < m->n_names; k++)
                        if (!id_equal(&m->names[k].node, &c->node.id))
                                m->names[kept++] = m->names[k];
                m->n_names = kept;
                for (size_t k = 0; k < c->n_entries; k++)
                        apply_entry(m, &c->entries[k]);
        }
}

static void check_tree(struct model *m) {
        for (size_t i = 0; i < m->n_names; i++) {
                struct mname *w = &m->names[i];
                struct mnode *p = node_of(m, &w->parent), *n = node_of(m, &w->node);
                assert_true(p && p->live && p->kind == NODE_DIR);
                assert_true(n && n->live);
                for (size_t k = i + 1; k < m->n_names; k++) {
                        assert_false(id_equal(&m->names[k].parent, &w->parent) && strcmp(m->names[k].name, w->name) == 0);
                        assert_false(n->kind == NODE_DIR && id_equal(&m->names[k].node, &w->node));
                }
                /* upwards from every directory to the root */
                struct id at = w->parent;
                for (size_t steps = 0; !id_equal(&at, &id_root); steps++) {
                        size_t k = 0;
                        while (k < m->n_names && !id_equal(&m->names[k].node, &at))
                                k++;
                        assert_true(k < m->n_names && steps <= m->n_names);
                        at = m->names[k].parent;
                }
        }
        for (size_t i = 0; i < m->n_nodes; i++) {
                size_t names = 0;
                for (size_t k = 0; k < m->n_names; k++)
                        names += id_equal(&m->names[k].node, &m->nodes[i].id);
                assert_true(id_equal(&m->nodes[i].id, &id_root) || (names > 0) == m->nodes[i].live);
        }
}

/* ---- random operations, some from an old view ---- */

static struct mname *any_name(struct kit *k, struct model *m) { return m->n_names ? &m->names[rng_below(&k->rng.rng, m->n_names)] : NULL; }

static struct id any_dir(struct kit *k, struct model *m) {
        for (int i = 0; i < 20; i++) {
                struct mnode *n = &m->nodes[rng_below(&k->rng.rng, m->n_nodes)];
                if (n->kind == NODE_DIR && (n->live || rng_below(&k->rng.rng, 10) == 0))
                        return n->id;
        }
        return id_root;
}

static const char *any_text(struct kit *k, char buf[16]) {
        (void)snprintf(buf, 16, "t%u", (unsigned)rng_below(&k->rng.rng, 12));
        return buf;
}

static struct op random_op(struct kit *k, struct model *m, char name[16]) {
        struct rng *r = &k->rng.rng;
        struct mname *w = any_name(k, m), *w2 = any_name(k, m);
        (void)snprintf(name, 16, "n%u", (unsigned)rng_below(r, 8));
        unsigned kind = w ? (unsigned)rng_below(r, 14) : 0;
        char text[16];
        struct op op;
        switch (kind) {
        case 0: case 1: case 2:
                op = op_create(k, rng_below(r, 8) ? NODE_DIR : NODE_SYMLINK, any_dir(k, m), name);
                break;
        case 3: case 4:
                op = op_file(k, any_dir(k, m), name, kit_block(k, &k->ann, k->ws, any_text(k, text)));
                break;
        case 5:
                op = op_content(k, w->node, node_of(m, &w->node)->version, kit_block(k, &k->ann, k->ws, any_text(k, text)));
                break;
        case 6:
                op = op_link(k, w->node, any_dir(k, m), name);
                break;
        case 7: case 8:
                op = op_unlink(k, w->node, w->parent, w->name, w->placement, node_of(m, &w->node)->version);
                break;
        case 9:
                op = op_rename(k, w->node, w->parent, w->name, w->placement, w2->parent, w2->name);
                op.replaced = w2->node;
                op.replaced_version = node_of(m, &w2->node)->version;
                op.replaced_placement = w2->placement;
                op.flags = rng_below(r, 3) ? 0 : OPF_EXCHANGE;
                break;
        case 11:
                op = op_content(k, w->node, node_of(m, &w->node)->version, kit_block(k, &k->ann, k->ws, any_text(k, text)));
                op.kind = OP_REPLACE;
                op.source = w2->node;
                op.parent = w2->parent, op.name = w2->name, op.name_bytes = strlen(w2->name), op.placement = w2->placement;
                break;
        case 12:
                op = (struct op){ .id = kit_id(k), .kind = OP_ATTR, .node = w->node, .attr_mask = ATTR_MODE, .attrs = { .mode = (uint32_t)rng_below(r, 512) } };
                break;
        case 10:
                op = op_rename(k, w->node, w->parent, w->name, w->placement, any_dir(k, m), name);
                break;
        default: {
                struct mnode *n = &m->nodes[rng_below(r, m->n_nodes)]; /* perhaps a deleted one */
                op = op_content(k, n->id, n->version, kit_block(k, &k->ann, k->ws, any_text(k, text)));
        }
        }
        if (rng_below(r, 2))
                op.flags |= OPF_REVIVE;
        return op;
}

struct table { struct meta_sink sink; struct model *m; size_t full_at, n; };
static int sink_node(struct meta_sink *s, const struct node_row *row) {
        struct table *t = container_of(s, struct table, sink);
        if (t->full_at && t->n == t->full_at)
                return 1;
        t->n++;
        apply_node(t->m, row);
        return 0;
}
static int sink_entry(struct meta_sink *s, const struct entry_row *e) {
        struct table *t = container_of(s, struct table, sink);
        if (t->full_at && t->n == t->full_at)
                return 1;
        t->n++;
        apply_entry(t->m, e);
        return 0;
}

static void assert_same(struct model *a, struct model *b) {
        size_t live = 0;
        for (size_t i = 0; i < a->n_nodes; i++) {
                if (!a->nodes[i].live)
                        continue;
                live++;
                struct mnode *n = node_of(b, &a->nodes[i].id);
                assert_true(n && n->live && n->seq == a->nodes[i].seq && id_equal(&n->version, &a->nodes[i].version));
        }
        for (size_t i = 0; i < b->n_nodes; i++)
                live -= b->nodes[i].live;
        assert_int_equal(live, 0);
        assert_int_equal(a->n_names, b->n_names);
        for (size_t i = 0; i < a->n_names; i++) {
                size_t k = 0;
                while (k < b->n_names && b->names[k].entry_id != a->names[i].entry_id)
                        k++;
                assert_true(k < b->n_names && id_equal(&a->names[i].node, &b->names[k].node) && id_equal(&a->names[i].parent, &b->names[k].parent) &&
                            id_equal(&a->names[i].placement, &b->names[k].placement) && strcmp(a->names[i].name, b->names[k].name) == 0);
        }
}

/* Reads every event after the cursor and applies it; returns how many. */
static size_t follow(struct kit *k, struct cursor *at, struct model *m, size_t max) {
        size_t total = 0;
        for (;;) {
                struct meta_event *ev;
                size_t n;
                struct meta_workspace w;
                struct cursor upto;
                assert_int_equal(meta_events(k->m, k->ws, at, max, 1u << 20, k->a, &ev, &n, &upto, &w), 0);
                if (n == 0)
                        return total;
                for (size_t i = 0; i < n; i++) {
                        struct event e;
                        assert_int_equal(wire_unpack_event(ev[i].bytes, ev[i].n, k->a, &e), 0);
                        assert_int_equal(e.seq, at->seq + 1 + i); /* no gap */
                        assert_int_equal(ev[i].seq, e.seq);
                        assert_string_equal(e.actor, "ann");
                        apply_event(m, &e);
                        check_tree(m);
                }
                total += n;
                *at = upto;
                kit_reset(k);
        }
}

static void snapshot(struct kit *k, struct model *m, size_t limit, size_t full_at, struct cursor *ret_first, struct cursor *ret_end) {
        struct table t = { .sink = { sink_node, sink_entry }, .m = m };
        struct meta_page page;
        struct id after = { { 0 } };
        uint64_t entry = 0;
        bool first = true;
        do {
                t.n = 0, t.full_at = full_at;
                assert_int_equal(meta_snapshot_nodes(k->m, k->ws, &after, limit, &t.sink, &page), 0);
                assert_int_equal(page.count, t.n);
                assert_true(page.end || page.count > 0);
                if (first)
                        *ret_first = page.upto;
                first = false;
                after = page.last_id;
        } while (!page.end);
        do {
                t.n = 0;
                assert_int_equal(meta_snapshot_entries(k->m, k->ws, entry, limit, &t.sink, &page), 0);
                assert_int_equal(page.count, t.n);
                assert_true(page.end || page.count > 0);
                entry = page.last_entry;
        } while (!page.end);
        *ret_end = page.upto;
}

/* The tree as of seq, from the rows of today and of the past. */
static void tree_at(struct kit *k, uint64_t seq, struct model *m) {
        struct sql *db;
        struct sql_stmt *st;
        assert_int_equal(view_begin(k->m, &db), 0);
        assert_int_equal(sql_stmt(db, &st, "SELECT " NODE_COLUMNS " FROM node WHERE workspace = ?1 AND seq <= ?2 UNION ALL SELECT " NODE_COLUMNS
                                  " FROM revision WHERE workspace = ?1 AND seq <= ?2 AND until_seq > ?2", "ii", (int64_t)k->ws, (int64_t)seq), 0);
        while (sql_step(db, st) > 0) {
                struct node_row row;
                assert_int_equal(node_from(db, st, k->a, &row), 0);
                apply_node(m, &row);
        }
        sql_reset(db, st);
        assert_int_equal(sql_stmt(db, &st, "SELECT " ENTRY_COLUMNS " FROM entry WHERE workspace = ?1 AND seq <= ?2 UNION ALL SELECT " ENTRY_COLUMNS
                                  " FROM entry_past WHERE workspace = ?1 AND seq <= ?2 AND until_seq > ?2", "ii", (int64_t)k->ws, (int64_t)seq), 0);
        while (sql_step(db, st) > 0) {
                struct entry_row e;
                assert_int_equal(entry_from(db, st, k->a, &e), 0);
                apply_entry(m, &e);
        }
        sql_reset(db, st);
        view_end(k->m, db);
}

/* References to blocks are counted as the schema says: one for each run of versions of a node that hold the block. */
static void check_references(struct kit *k) {
        struct sql *db;
        struct sql_stmt *st;
        struct { struct digest hash; uint64_t runs, bytes; } seen[32];
        size_t n = 0;
        struct node_row row, last = { .id = { { 0 } } };
        assert_int_equal(view_begin(k->m, &db), 0);
        assert_int_equal(sql_stmt(db, &st, "SELECT " NODE_COLUMNS " FROM node WHERE workspace = ?1 AND kind = 1 UNION ALL SELECT " NODE_COLUMNS
                                  " FROM revision WHERE workspace = ?1 AND kind = 1 ORDER BY id, seq", "i", (int64_t)k->ws), 0);
        while (sql_step(db, st) > 0) {
                assert_int_equal(node_from(db, st, k->a, &row), 0);
                bool runs_on = id_equal(&row.id, &last.id) && digest_equal(&row.content.root, &last.content.root);
                last = row;
                if (runs_on || row.content.size == 0)
                        continue;
                size_t i = 0;
                while (i < n && !digest_equal(&seen[i].hash, &row.content.root))
                        i++;
                assert_true(i < ARRAY_SIZE(seen));
                if (i == n)
                        seen[n++].runs = 0;
                seen[i].hash = row.content.root;
                seen[i].bytes = row.content.size;
                seen[i].runs++;
        }
        sql_reset(db, st);
        uint64_t used = 0;
        for (size_t i = 0; i < n; i++) {
                assert_int_equal(sql_first(db, &st, "SELECT refs FROM block_ref WHERE workspace = ?1 AND hash = ?2", "id", (int64_t)k->ws, &seen[i].hash), 1);
                assert_int_equal(sql_int(db, st, 0), seen[i].runs);
                sql_reset(db, st);
                used += seen[i].bytes;
        }
        assert_int_equal(sql_first(db, &st, "SELECT count(*) FROM block_ref", ""), 1);
        assert_int_equal(sql_int(db, st, 0), n);
        sql_reset(db, st);
        view_end(k->m, db);
        struct meta_workspace w;
        assert_int_equal(meta_access(k->m, NULL, "w", ROLE_NONE, &w), 0);
        assert_int_equal(w.used_bytes, used);
}

static void random_log(void **state) {
        struct kit k;
        kit_open(&k);
        uint64_t seed;
        const char *given = getenv("TARN_TEST_SEED");
        if (given)
                seed = strtoull(given, NULL, 0);
        else
                rng_system()->fill(rng_system(), &seed, sizeof seed);
        print_message("seed %llu\n", (unsigned long long)seed);
        rng_seed(&k.rng, seed);
        struct model *m = calloc(1, sizeof *m), *s = calloc(1, sizeof *s);
        assert_true(m && s);
        struct cursor at = { .epoch = k.epoch }, first, end;
        struct { struct model *m; uint64_t seq; } kept[4] = { { NULL, 0 } };
        struct change root = node_now(&k, id_root);
        apply_node(m, &root.node);
        unsigned codes[32] = { 0 };
        size_t accepted = 0, ops = kit_on_disk ? 250 : 1500;
        for (size_t i = 0; i < ops; i++) {
                char name[16];
                struct op op = random_op(&k, m, name);
                struct op_result r = run(&k, &op);
                codes[r.code]++;
                accepted += r.code == RES_OK;
                assert_true(r.code != RES_BUSY && r.code != RES_ID_REUSED);
                if (r.code > RES_MERGED) { /* a refusal shows rows that are true now */
                        for (size_t c = 0; c < r.n_current; c++) {
                                struct change now = node_now(&k, r.current[c].node.id);
                                assert_int_equal(now.node.seq, r.current[c].node.seq);
                                assert_int_equal(now.node.deleted, r.current[c].node.deleted);
                                assert_int_equal(now.n_entries, r.current[c].n_entries);
                        }
                }
                if (rng_below(&k.rng.rng, 3) == 0)
                        (void)follow(&k, &at, m, 1 + (size_t)rng_below(&k.rng.rng, 5));
                if (i % (ops / 4) == ops / 8) {
                        kept[i / (ops / 4)].m = malloc(sizeof *m);
                        assert_non_null(kept[i / (ops / 4)].m);
                        memcpy(kept[i / (ops / 4)].m, m, sizeof *m);
                        kept[i / (ops / 4)].seq = at.seq;
                }
        }
        (void)follow(&k, &at, m, 100);
        check_references(&k);
        assert_int_equal(at.seq, accepted);
        for (int i = 0; i < 20; i++)
                if (codes[i])
                        print_message("%s %u  ", op_code_name((enum op_code)i), codes[i]);
        print_message("\n");
        snapshot(&k, s, 7, 0, &first, &end);
        assert_int_equal(end.seq, at.seq);
        assert_memory_equal(end.mark, at.mark, 8);
        assert_same(m, s);
        for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
                memset(s, 0, sizeof *s);
                tree_at(&k, kept[i].seq, s);
                assert_same(kept[i].m, s);
                free(kept[i].m);
        }
        struct meta_workspace w;
        assert_int_equal(meta_access(k.m, NULL, "w", ROLE_NONE, &w), 0);
        size_t live = 0;
        for (size_t i = 0; i < m->n_nodes; i++)
                live += m->nodes[i].live;
        assert_int_equal(w.nodes, live);
        free(m);
        free(s);
        kit_close(&k);
}

/* Pages taken while the tree changes, then the events from the first page's counter on: exactly the tree. */
static void snapshot_meets_events(void **state) {
        struct kit k;
        kit_open(&k);
        struct model *m = calloc(1, sizeof *m), *full = calloc(1, sizeof *full);
        struct cursor none = { .epoch = k.epoch };
        struct change root = node_now(&k, id_root);
        apply_node(full, &root.node);
        char name[16];
        struct op dirs[40];
        for (int i = 0; i < 40; i++) {
                (void)snprintf(name, sizeof name, "d%d", i);
                dirs[i] = op_create(&k, NODE_DIR, i % 3 ? dirs[i / 2].node : id_root, name);
                expect(&k, &dirs[i], RES_OK);
        }
        struct table t = { .sink = { sink_node, sink_entry }, .m = m };
        struct meta_page page;
        struct id after = { { 0 } };
        struct cursor start = none;
        for (int turn = 0;; turn++) {
                t.n = 0;
                assert_int_equal(meta_snapshot_nodes(k.m, k.ws, &after, 5, &t.sink, &page), 0);
                if (turn == 0)
                        start = page.upto;
                after = page.last_id;
                (void)snprintf(name, sizeof name, "x%d", turn);
                struct op op = op_create(&k, NODE_DIR, dirs[turn % 40].node, name);
                expect(&k, &op, RES_OK);
                struct change c = node_now(&k, dirs[39 - turn].node);
                op = op_rename(&k, dirs[39 - turn].node, c.entries[0].parent, c.entries[0].name, c.entries[0].placement, id_root, name);
                expect(&k, &op, RES_OK);
                if (page.end)
                        break;
        }
        uint64_t entry = 0;
        do {
                assert_int_equal(meta_snapshot_entries(k.m, k.ws, entry, 9, &t.sink, &page), 0);
                entry = page.last_entry;
        } while (!page.end);
        /* rows and events meet: an event replaces a row only if it is newer, and its list of names replaces theirs */
        struct meta_event *ev;
        size_t n;
        struct cursor upto;
        struct meta_workspace w;
        assert_int_equal(meta_events(k.m, k.ws, &start, 1000, 1u << 20, k.a, &ev, &n, &upto, &w), 0);
        for (size_t i = 0; i < n; i++) {
                struct event e;
                assert_int_equal(wire_unpack_event(ev[i].bytes, ev[i].n, k.a, &e), 0);
                for (size_t c = 0; c < e.n_changes; c++) {
                        struct mnode *have = node_of(m, &e.changes[c].node.id);
                        struct event one = { .seq = e.seq, .changes = &e.changes[c], .n_changes = 1 };
                        if (!have || have->seq < e.seq)
                                apply_event(m, &one);
                        else if (e.changes[c].has_entries && have->seq == e.seq)
                                apply_event(m, &one);
                }
        }
        assert_int_equal(upto.seq, page.upto.seq);
        struct cursor at = none;
        (void)follow(&k, &at, full, 100);
        check_tree(m);
        assert_same(full, m);
        free(m);
        free(full);
        kit_close(&k);
}

static int events_at(struct kit *k, struct cursor c, struct meta_workspace *w) {
        struct meta_event *ev;
        size_t n;
        struct cursor upto;
        return meta_events(k->m, k->ws, &c, 10, 1000, k->a, &ev, &n, &upto, w);
}

static void cursors(void **state) {
        struct kit k;
        kit_open(&k);
        struct cursor at[11] = { { .epoch = k.epoch } };
        for (int i = 1; i <= 10; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "d%d", i);
                struct op op = op_create(&k, NODE_DIR, id_root, name);
                struct op_result r = expect(&k, &op, RES_OK);
                at[i] = (struct cursor){ .epoch = k.epoch, .seq = r.seq };
                memcpy(at[i].mark, r.mark, 8);
        }
        struct meta_workspace w;
        for (int i = 0; i <= 10; i++) {
                assert_int_equal(events_at(&k, at[i], &w), 0);
                struct cursor wrong = at[i];
                wrong.mark[3] ^= 1; /* a server that was rolled back has other marks */
                assert_int_equal(events_at(&k, wrong, &w), -EIDRM);
                wrong = at[i];
                wrong.epoch.b[0] ^= 1;
                assert_int_equal(events_at(&k, wrong, &w), -EIDRM);
        }
        struct cursor future = at[10];
        future.seq++;
        assert_int_equal(events_at(&k, future, &w), -EIDRM);
        /* limits: by count, by bytes (always one) */
        struct meta_event *ev;
        size_t n;
        struct cursor upto;
        assert_int_equal(meta_events(k.m, k.ws, &at[0], 3, 1u << 20, k.a, &ev, &n, &upto, &w), 0);
        assert_int_equal(n, 3);
        assert_memory_equal(&upto, &at[3], sizeof upto);
        assert_int_equal(meta_events(k.m, k.ws, &at[0], 10, 1, k.a, &ev, &n, &upto, &w), 0);
        assert_int_equal(n, 1);
        assert_int_equal(meta_events(k.m, k.ws, &at[10], 10, 1, k.a, &ev, &n, &upto, &w), 0);
        assert_int_equal(n, 0);
        assert_memory_equal(&upto, &at[10], sizeof upto);
        /* the horizon */
        assert_int_equal(meta_horizon_set(k.m, k.ws, 4), 0);
        assert_int_equal(events_at(&k, at[3], &w), -EIDRM);
        assert_int_equal(w.horizon, 4);
        assert_true(id_is_zero(&w.predecessor)); /* forgotten is not another line: a client at the very first event must not take it for one */
        assert_int_equal(events_at(&k, at[0], &w), -EIDRM);
        assert_true(id_is_zero(&w.predecessor));
        assert_int_equal(events_at(&k, at[4], &w), 0);
        struct cursor wrong = at[4];
        wrong.mark[0] ^= 1;
        assert_int_equal(events_at(&k, wrong, &w), -EIDRM);
        assert_int_equal(meta_horizon_set(k.m, k.ws, 2), 0); /* never back */
        assert_int_equal(events_at(&k, at[3], &w), -EIDRM);
        /* a new epoch names its predecessor and the fork */
        struct id epoch;
        assert_int_equal(meta_epoch_new(k.m, k.ws, &epoch), 0);
        assert_int_equal(events_at(&k, at[10], &w), -EIDRM);
        assert_true(id_equal(&w.predecessor, &k.epoch) && id_equal(&w.at.epoch, &epoch));
        assert_int_equal(w.fork_seq, 10);
        at[10].epoch = epoch;
        assert_int_equal(events_at(&k, at[10], &w), 0);
        if (kit_on_disk) {
                kit_reopen(&k);
                assert_int_equal(events_at(&k, at[10], &w), 0);
        }
        kit_close(&k);
}

static void pages_and_directories(void **state) {
        struct kit k;
        kit_open(&k);
        struct op d = op_create(&k, NODE_DIR, id_root, "d");
        expect(&k, &d, RES_OK);
        for (int i = 0; i < 9; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "s%d", i);
                struct op op = op_create(&k, i % 2 ? NODE_SYMLINK : NODE_FIFO, d.node, name);
                op.attrs.xattrs = &(struct xattr){ "user.n", name, 2 };
                op.attrs.n_xattrs = 1;
                expect(&k, &op, RES_OK);
        }
        for (size_t limit = 1; limit < 14; limit++)
                for (size_t full = 0; full <= limit; full++) {
                        struct model *m = calloc(1, sizeof *m);
                        struct cursor first, end;
                        snapshot(&k, m, limit, full, &first, &end);
                        assert_int_equal(m->n_nodes, 11);
                        assert_int_equal(m->n_names, 10);
                        free(m);
                }
        struct model *m = calloc(1, sizeof *m);
        struct table t = { .sink = { sink_node, sink_entry }, .m = m };
        struct id dir;
        struct cursor listed;
        uint64_t count;
        assert_int_equal(meta_dir(k.m, k.ws, &d.node, &t.sink, &dir, &listed, &count), 0);
        assert_int_equal(count, 9);
        assert_int_equal(m->n_nodes, 10); /* the directory itself too */
        assert_int_equal(m->n_names, 9);
        assert_int_equal(listed.seq, 10);
        t.full_at = 5, t.n = 0;
        assert_int_equal(meta_dir(k.m, k.ws, &d.node, &t.sink, &dir, &listed, &count), -EMSGSIZE);
        t.full_at = 0;
        struct id other = kit_id(&k);
        assert_int_equal(meta_dir(k.m, k.ws, &other, &t.sink, &dir, &listed, &count), -ENOENT);
        assert_int_equal(meta_dir(k.m, k.ws, &m->names[0].node, &t.sink, &dir, &listed, &count), -ENOTDIR);
        struct op same = op_create(&k, NODE_DIR, id_root, "d"); /* an alias lists the directory that it stands for */
        expect(&k, &same, RES_MERGED);
        assert_int_equal(meta_dir(k.m, k.ws, &same.node, &t.sink, &dir, &listed, &count), 0);
        assert_true(id_equal(&dir, &d.node));
        struct node_row row;
        assert_int_equal(meta_resolve(k.m, k.ws, "", k.a, &row), 0);
        assert_true(id_equal(&row.id, &id_root));
        assert_int_equal(meta_resolve(k.m, k.ws, "//d/s1", k.a, &row), 0);
        assert_int_equal(row.kind, NODE_SYMLINK);
        assert_int_equal(meta_resolve(k.m, k.ws, "d/none", k.a, &row), -ENOENT);
        assert_int_equal(meta_resolve(k.m, k.ws, "d/s1/x", k.a, &row), -ENOTDIR);
        assert_int_equal(meta_resolve(k.m, k.ws, "d/none/x", k.a, &row), -ENOENT);
        assert_int_equal(meta_resolve(k.m, k.ws, "d/../d", k.a, &row), -EINVAL);
        free(m);
        kit_close(&k);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(random_log), cmocka_unit_test(snapshot_meets_events), cmocka_unit_test(cursors), cmocka_unit_test(pages_and_directories),
        };
        return kit_main(tests, ARRAY_SIZE(tests));
}
