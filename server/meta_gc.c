/* SPDX-License-Identifier: Apache-2.0 */
/* meta_gc.c: which blocks and objects nobody needs; marks on damaged ones.
 *
 *   block     live --mark--> dead --sweep--> (no row)        a put of its bytes at any time: live again, in a new object
 *   object    holds blocks --the last one is swept--> (no row) --> removed from the store
 *
 * Why this is safe while everybody commits:
 *   1. Every writing transaction is alone (the commit queue has one writer), so each of these steps sees all references and claims there are, and a commit
 *      comes wholly before or after it.
 *   2. Marking: no reference, no claim. Whoever was told "not missing" has a claim (or the workspace a reference), so his block is not marked as long as the claim
 *      lives; a live upload session keeps its claims alive. Expired claims are dropped by meta_tidy, never here.
 *   3. A dead block counts as missing in "missing?", in the right to read and in the check that every commit makes in its own transaction (block_right). So nobody can
 *      come to refer to a dead block: he is told BLOCKS_MISSING, sends the bytes, and they get a new mapping into a new object, whose name was never used before.
 *   4. Sweeping looks again, in the transaction that deletes the row: still dead, no reference, no claim. A block that came back is not dead any more.
 *   5. An object's row goes only when no block lies in it. Names are never used again, so nothing can be mapped into it later, except by the request that made it and is
 *      still at work: those are named by `busy` (the service keeps a list of objects from before the put until after the last transaction of the request).
 *   6. The store's copy goes after the row's deletion is on disk. Killed in between, an object is left that no row names: gc finds it by listing the store.
 *   7. meta_blocks_move gives blocks another place. Nothing but a reader who asked before it knows the old one; he asks again if the object is gone.
 * The grace between mark and sweep is for readers: an answer that was begun may still take bytes from the object, and a backup's database copy still
 * names it (gc and backup exclude each other besides). */
#include <stdio.h>
#include <string.h>

#include "meta_int.h"
#include "meta_maintain.h"

int64_t meta_now_ns(struct meta *m) { return clock_real_ns(m->c.clock); }

struct mark_arg { const struct meta_place *place; bool bad; };

static int mark_write(struct txn *t, void *arg, int *ret_refusal) {
        const struct mark_arg *g = arg;
        const struct meta_block *b = &g->place->block;
        return g->bad ? sql_run(t->db, "UPDATE block SET bad_ns = ?4 WHERE hash = ?1 AND bad_ns IS NULL AND offset = ?2 AND object = (SELECT id FROM object WHERE name = ?3)", "diti",
                                &b->hash, (int64_t)b->offset, g->place->object, t->now_ns)
                      : sql_run(t->db, "UPDATE block SET bad_ns = NULL WHERE hash = ?1 AND bad_ns IS NOT NULL AND offset = ?2 AND object = (SELECT id FROM object WHERE name = ?3)", "dit",
                                &b->hash, (int64_t)b->offset, g->place->object);
}

int meta_block_mark(struct meta *m, const struct meta_place *place, bool bad) {
        struct mark_arg g = { place, bad };
        return meta_write(m, mark_write, &g);
}

#define UNUSED "NOT EXISTS (SELECT 1 FROM block_ref r WHERE r.hash = block.hash) AND NOT EXISTS (SELECT 1 FROM claim c WHERE c.hash = block.hash)"
#define RANGE "hash > ?1 AND hash <= ?2"

struct step_arg { bool mark, dry_run; int64_t before_ns; size_t batch; struct meta_gc_step from, to; };

/* The last hash of the next `batch` rows: 1, 0 there is none, -errno. */
static int range_end(struct sql *db, const struct step_arg *g, struct digest *ret) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT max(hash), count(*) FROM (SELECT hash FROM block WHERE hash > ?1 ORDER BY hash LIMIT ?2) AS rows", "di", &g->from.after_hash, (int64_t)g->batch);
        if (r <= 0)
                return r < 0 ? r : -EIO;
        sql_get_digest(db, st, 0, ret);
        r = sql_int(db, st, 1) > 0;
        sql_reset(db, st);
        return r;
}

#define MARKABLE RANGE " AND dead_ns IS NULL AND (SELECT created_ns FROM object o WHERE o.id = block.object) <= ?3 AND " UNUSED
#define SWEEPABLE RANGE " AND dead_ns <= ?3 AND " UNUSED
#define SUMS "SELECT count(*), coalesce(sum(stored), 0) FROM block WHERE "

/* What the next rows have to mark or to sweep is counted, and unless this is a dry run, done. */
static int blocks_step(struct sql *db, struct step_arg *g, int64_t now_ns) {
        struct digest upto;
        struct sql_stmt *st;
        int r = range_end(db, g, &upto);
        g->to = g->from;
        g->to.end = r == 0;
        g->to.blocks = g->to.bytes = 0;
        if (r <= 0)
                return r;
        r = sql_first(db, &st, g->mark ? SUMS MARKABLE : SUMS SWEEPABLE, "ddi", &g->from.after_hash, &upto, g->before_ns);
        if (r <= 0)
                return r < 0 ? r : -EIO;
        g->to.blocks = (uint64_t)sql_int(db, st, 0);
        g->to.bytes = (uint64_t)sql_int(db, st, 1);
        sql_reset(db, st);
        g->to.after_hash = upto;
        if (g->dry_run || g->to.blocks == 0)
                return 0;
        return g->mark ? sql_run(db, "UPDATE block SET dead_ns = ?4 WHERE " MARKABLE, "ddii", &g->from.after_hash, &upto, g->before_ns, now_ns)
                       : sql_run(db, "DELETE FROM block WHERE " SWEEPABLE, "ddi", &g->from.after_hash, &upto, g->before_ns);
}

static int blocks_txn(struct txn *t, void *arg, int *ret_refusal) { return blocks_step(t->db, arg, t->now_ns); }

/* A dry run only reads. */
static int blocks_run(struct meta *m, bool mark, int64_t before_ns, size_t batch, bool dry_run, struct meta_gc_step *s) {
        struct step_arg g = { .mark = mark, .dry_run = dry_run, .before_ns = before_ns, .batch = batch, .from = *s };
        _cleanup_view_ struct view v = { m, NULL };
        int r = dry_run ? view_begin(m, &v.db) : meta_write(m, blocks_txn, &g);
        if (r == 0 && dry_run)
                r = blocks_step(v.db, &g, 0);
        if (r == 0)
                *s = g.to;
        return r;
}

int meta_gc_mark(struct meta *m, int64_t before_ns, size_t batch, bool dry_run, struct meta_gc_step *s) { return blocks_run(m, true, before_ns, batch, dry_run, s); }
int meta_gc_sweep(struct meta *m, int64_t before_ns, size_t batch, bool dry_run, struct meta_gc_step *s) { return blocks_run(m, false, before_ns, batch, dry_run, s); }

struct objects_arg {
        int64_t before_ns; size_t batch; bool dry_run;
        bool (*busy)(void *arg, const char *object); void *busy_arg;
        struct meta_gc_step from, to;
        meta_object_name *names; size_t n;
};

/* Objects without blocks of the next `batch` objects. */
static int objects_step(struct sql *db, struct objects_arg *g) {
        struct sql_stmt *st;
        int r = sql_stmt(db, &st, "SELECT id, name, bytes, created_ns <= ?3 AND NOT EXISTS (SELECT 1 FROM block b WHERE b.object = object.id) FROM object WHERE id > ?1 ORDER BY id LIMIT ?2",
                         "iii", (int64_t)g->from.after_object, (int64_t)g->batch, g->before_ns);
        if (r < 0)
                return r;
        size_t rows = 0;
        g->to = g->from;
        g->to.blocks = g->to.bytes = 0;
        g->n = 0;
        while ((r = sql_step(db, st)) > 0) {
                rows++;
                g->to.after_object = (uint64_t)sql_int(db, st, 0);
                const char *name = sql_text(db, st, 1);
                if (!sql_int(db, st, 3) || !name || (g->busy && g->busy(g->busy_arg, name)))
                        continue;
                (void)snprintf(g->names[g->n++], sizeof g->names[0], "%s", name);
                g->to.bytes += (uint64_t)sql_int(db, st, 2);
        }
        sql_reset(db, st);
        if (r < 0)
                return r;
        g->to.end = rows < g->batch;
        for (size_t i = 0; r == 0 && !g->dry_run && i < g->n; i++)
                r = sql_run(db, "DELETE FROM object WHERE name = ?1", "t", g->names[i]);
        return r;
}

static int objects_txn(struct txn *t, void *arg, int *ret_refusal) { return objects_step(t->db, arg); }

int meta_gc_objects(struct meta *m, int64_t before_ns, size_t batch, bool dry_run, bool (*busy)(void *arg, const char *object), void *arg, struct meta_gc_step *s,
                    meta_object_name *ret_names, size_t *ret_n) {
        struct objects_arg g = { before_ns, batch, dry_run, busy, arg, *s, *s, ret_names, 0 };
        int r;
        if (dry_run) {
                _cleanup_view_ struct view v = { m, NULL };
                r = view_begin(m, &v.db);
                if (r == 0)
                        r = objects_step(v.db, &g);
        } else {
                r = meta_write(m, objects_txn, &g);
        }
        if (r < 0)
                return r;
        *s = g.to;
        *ret_n = g.n;
        return 0;
}

int meta_gc_sparse(struct meta *m, unsigned percent, size_t batch, struct meta_gc_step *s, struct meta_object *ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        struct meta_gc_step to = *s;
        struct sql_stmt *st;
        size_t rows = 0, n = 0;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = sql_stmt(v.db, &st, "SELECT id, bytes, (SELECT coalesce(sum(stored), 0) FROM block b WHERE b.object = object.id AND b.dead_ns IS NULL), name, created_ns FROM object WHERE id > ?1 ORDER BY id LIMIT ?2",
                             "ii", (int64_t)s->after_object, (int64_t)batch);
        if (r < 0)
                return r;
        to.blocks = to.bytes = 0;
        while ((r = sql_step(v.db, st)) > 0) {
                const uint64_t bytes = (uint64_t)sql_int(v.db, st, 1), live = (uint64_t)sql_int(v.db, st, 2);
                rows++;
                to.after_object = (uint64_t)sql_int(v.db, st, 0);
                if (live == 0 || live * 100 > bytes * percent)
                        continue;
                to.blocks++;
                to.bytes += bytes - live;
                if (!ret)
                        continue;
                const char *name = sql_text(v.db, st, 3);
                ret[n] = (struct meta_object){ .id = to.after_object, .bytes = bytes, .created_ns = sql_int(v.db, st, 4) };
                (void)snprintf(ret[n++].name, sizeof ret->name, "%s", name ? name : "");
        }
        sql_reset(v.db, st);
        to.end = rows < batch;
        if (r < 0)
                return r;
        *s = to;
        if (ret)
                *ret_n = n;
        return 0;
}

/* The object's row goes if no block lies in it and nobody is writing it. */
static int object_emptied(struct txn *t, struct meta_move *g, uint64_t id) {
        struct sql_stmt *st;
        int r = sql_first(t->db, &st, "SELECT name, bytes FROM object WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM block b WHERE b.object = object.id)", "i", (int64_t)id);
        if (r <= 0)
                return r;
        const char *name = sql_text(t->db, st, 0);
        const bool goes = name && (!g->busy(g->busy_arg, name) || strcmp(name, g->object) == 0);
        if (goes) {
                (void)snprintf(g->removed[g->n_removed++], sizeof g->removed[0], "%s", name);
                g->removed_bytes += (uint64_t)sql_int(t->db, st, 1);
        }
        sql_reset(t->db, st);
        return goes ? sql_run(t->db, "DELETE FROM object WHERE id = ?1", "i", (int64_t)id) : 0;
}

static int move_write(struct txn *t, void *arg, int *ret_refusal) {
        struct meta_move *g = arg;
        struct sql_stmt *st;
        g->n_removed = g->n_moved = 0;
        g->removed_bytes = 0;
        int r = sql_run(t->db, "INSERT INTO object(name, bytes, created_ns) VALUES(?1, ?2, ?3)", "tii", g->object, (int64_t)g->bytes, g->created_ns);
        if (r == 0)
                r = sql_first(t->db, &st, "SELECT id FROM object WHERE name = ?1", "t", g->object);
        if (r <= 0)
                return r < 0 ? r : -EIO;
        const uint64_t id = (uint64_t)sql_int(t->db, st, 0);
        sql_reset(t->db, st);
        for (size_t i = 0; i < g->n; i++) {
                const struct meta_moved *b = &g->blocks[i];
                r = sql_run(t->db, "UPDATE block SET object = ?4, offset = ?5 WHERE hash = ?1 AND object = ?2 AND offset = ?3 AND dead_ns IS NULL AND bad_ns IS NULL", "diiii", &b->hash,
                            (int64_t)b->from_object, (int64_t)b->from_offset, (int64_t)id, (int64_t)b->to_offset);
                if (r < 0)
                        return r;
        }
        r = sql_first(t->db, &st, "SELECT count(*) FROM block WHERE object = ?1", "i", (int64_t)id);
        if (r <= 0)
                return r < 0 ? r : -EIO;
        g->n_moved = (size_t)sql_int(t->db, st, 0);
        sql_reset(t->db, st);
        for (size_t i = 0; r >= 0 && i < g->n; i++)
                if (i == 0 || g->blocks[i].from_object != g->blocks[i - 1].from_object) /* those of one object are neighbours */
                        r = object_emptied(t, g, g->blocks[i].from_object);
        if (r >= 0)
                r = object_emptied(t, g, id);
        return r < 0 ? r : 0;
}

int meta_blocks_move(struct meta *m, struct meta_move *move) { return meta_write(m, move_write, move); }

int meta_objects(struct meta *m, uint64_t after, size_t max, struct meta_object *ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        struct sql_stmt *st;
        if (r == 0)
                r = sql_stmt(v.db, &st, "SELECT id, name, bytes, created_ns FROM object WHERE id > ?1 ORDER BY id LIMIT ?2", "ii", (int64_t)after, (int64_t)max);
        if (r < 0)
                return r;
        size_t n = 0;
        while (n < max && (r = sql_step(v.db, st)) > 0) {
                ret[n] = (struct meta_object){ .id = (uint64_t)sql_int(v.db, st, 0), .bytes = (uint64_t)sql_int(v.db, st, 2), .created_ns = sql_int(v.db, st, 3) };
                const char *name = sql_text(v.db, st, 1);
                (void)snprintf(ret[n++].name, sizeof ret->name, "%s", name ? name : "");
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret_n = n;
        return 0;
}

int meta_object_blocks(struct meta *m, const struct meta_object *o, struct arena *a, struct meta_place **ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        struct sql_stmt *st = NULL;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = sql_first(v.db, &st, "SELECT count(*) FROM block WHERE object = ?1 AND dead_ns IS NULL", "i", (int64_t)o->id);
        if (r < 0)
                return r;
        size_t room = (size_t)sql_int(v.db, st, 0), n = 0;
        sql_reset(v.db, st);
        struct meta_place *list = arena_alloc(a, (room + 1) * sizeof *list);
        if (!list)
                return -ENOMEM;
        r = sql_stmt(v.db, &st, "SELECT hash, offset, stored, raw, encoding, base, bad_ns IS NOT NULL FROM block WHERE object = ?1 AND dead_ns IS NULL ORDER BY offset", "i", (int64_t)o->id);
        if (r < 0)
                return r;
        while (n < room && (r = sql_step(v.db, st)) > 0) {
                struct meta_place *p = &list[n++];
                *p = (struct meta_place){ .found = true, .bad = sql_int(v.db, st, 6) != 0, .object = o->name };
                p->block = (struct meta_block){ .offset = (uint64_t)sql_int(v.db, st, 1), .stored_bytes = (uint32_t)sql_int(v.db, st, 2), .raw_bytes = (uint32_t)sql_int(v.db, st, 3),
                                                .encoding = (uint8_t)sql_int(v.db, st, 4) };
                sql_get_digest(v.db, st, 0, &p->block.hash);
                sql_get_digest(v.db, st, 5, &p->block.base);
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = n;
        return 0;
}

int meta_copy(struct meta *m, const char *path) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        sql_rollback(v.db); /* the copy is its own moment */
        return v.db->ops->copy(v.db, path);
}
