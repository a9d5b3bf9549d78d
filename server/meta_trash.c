/* SPDX-License-Identifier: Apache-2.0 */
/* meta_trash.c: the trash of a workspace.
 *
 *   node     live --last name goes--> deleted = 1 (trash) --purge--> deleted = 2 (only its id, its last place and its version's name)
 *                    <--undelete, restore, an edit with OPF_REVIVE--
 *
 * Nothing is moved to be in the trash: a deleted node keeps its row, its content, its revisions; its last place is the entry_past row whose until_seq is the
 * tombstone's seq. So a deletion costs no more for it, and what is in the trash counts to the quota until it is purged.
 *
 * Undelete is one ordinary operation per node, with its own event; the operation's id is worked out from the job's and the node's, so that a request that broke off may be
 * sent again. Going from the newest tombstone to the oldest brings directories back before what was in them, as they were deleted after it. A directory that
 * has the name by now stands for the deleted one, a file with the same bytes too; anything else gets "NAME (restored N)".
 *
 * When something was deleted is told by its event. If that is forgotten (meta_horizon_set), it was deleted before the oldest event that is kept, and nothing more is known: it counts as old only
 * when that one is old. So forgetting events never makes the trash go earlier.
 *
 * Purge takes back the references that the node's versions hold: the same runs that the commits counted (meta_content.c), worked out from the block lists, which are read
 * before the transaction; they cannot change, as a deleted node's history does not. The row itself stays: ids are never used again, and somebody who edited the file offline
 * for a year still gets it back in its place. */
#include <stdio.h>
#include <string.h>

#include "base/digest.h"
#include "meta_maintain.h"
#include "meta_op.h"

#define PATH_DEPTH_MAX 512u
#define PATH_BYTES_MAX 8192u

/* The place of a node: of a deleted one the last. 1, 0 none, -errno. */
static int place_of(struct sql *db, uint64_t ws, const struct node_row *n, struct arena *a, struct entry_row *ret) {
        struct sql_stmt *st;
        int r = n->deleted ? sql_first(db, &st, "SELECT " ENTRY_COLUMNS " FROM entry_past WHERE workspace = ?1 AND node = ?2 AND until_seq = ?3 ORDER BY id LIMIT 1", "iDi", (int64_t)ws,
                                       &n->id, (int64_t)n->seq)
                           : sql_first(db, &st, "SELECT " ENTRY_COLUMNS " FROM entry WHERE workspace = ?1 AND node = ?2 ORDER BY id LIMIT 1", "iD", (int64_t)ws, &n->id);
        if (r <= 0)
                return r;
        r = entry_from(db, st, a, ret);
        sql_reset(db, st);
        return r < 0 ? r : 1;
}

/* "a/b/c" of an entry, through directories that may be deleted. "" if it leads nowhere. */
static int path_of(struct sql *db, uint64_t ws, const struct entry_row *e, struct arena *a, const char **ret) {
        char path[PATH_BYTES_MAX];
        size_t at = sizeof path - 1;
        struct entry_row here = *e;
        path[at] = 0;
        *ret = "";
        for (unsigned depth = 0; depth < PATH_DEPTH_MAX; depth++) {
                if (here.name_bytes + 1 > at)
                        return 0;
                at -= here.name_bytes;
                memcpy(path + at, here.name, here.name_bytes);
                if (id_equal(&here.parent, &id_root)) {
                        *ret = arena_strndup(a, path + at, sizeof path - 1 - at);
                        return *ret ? 0 : -ENOMEM;
                }
                path[--at] = '/';
                struct node_row dir;
                int r = node_get(db, ws, &here.parent, a, &dir);
                if (r > 0)
                        r = place_of(db, ws, &dir, a, &here);
                if (r <= 0)
                        return r;
        }
        return 0;
}

static bool below(const char *path, const char *top) {
        size_t n = strlen(top);
        return n == 0 || (strncmp(path, top, n) == 0 && (path[n] == 0 || path[n] == '/'));
}

static int trash_one(struct sql *db, uint64_t ws, struct arena *a, struct meta_trash *t) {
        struct entry_row e;
        int r = event_origin(db, ws, t->node.seq, a, &t->actor, &t->device, &t->time_ns);
        t->name = t->path = "";
        if (r == 0)
                r = place_of(db, ws, &t->node, a, &e);
        if (r <= 0)
                return r;
        t->parent = e.parent;
        t->name = e.name;
        return path_of(db, ws, &e, a, &t->path);
}

/* Nothing that was deleted below the horizon was deleted later than this: the time of the oldest event that is kept. */
static int horizon_time(struct sql *db, uint64_t ws, int64_t *ret_ns) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT coalesce((SELECT time_ns FROM event WHERE workspace = ?1 ORDER BY seq LIMIT 1), time_ns) FROM workspace WHERE id = ?1", "i", (int64_t)ws);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        *ret_ns = sql_int(db, st, 0);
        sql_reset(db, st);
        return 0;
}

int meta_trash(struct meta *m, uint64_t ws, const struct meta_trash_filter *f, size_t max, struct arena *a, struct meta_trash **ret, size_t *ret_n, uint64_t *ret_before) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        size_t n = 0, room = MIN(max, (size_t)10000);
        uint64_t before = f->before_seq ? f->before_seq : INT64_MAX;
        struct meta_trash *list = arena_alloc(a, (room + 1) * sizeof *list);
        int64_t forgotten_ns;
        bool more = true;
        if (!list)
                return -ENOMEM;
        r = horizon_time(v.db, ws, &forgotten_ns);
        while (r >= 0 && more && n < room) { /* one row at a time: a filter may drop any number of them */
                struct meta_trash t = { .parent = { { 0 } } };
                struct sql_stmt *st;
                r = id_is_zero(&f->node) ? sql_first(v.db, &st, "SELECT " NODE_COLUMNS " FROM node WHERE workspace = ?1 AND deleted = 1 AND seq < ?2 ORDER BY seq DESC LIMIT 1", "ii",
                                                     (int64_t)ws, (int64_t)before)
                                         : sql_first(v.db, &st, "SELECT " NODE_COLUMNS " FROM node WHERE workspace = ?1 AND id = ?3 AND deleted = 1 AND seq < ?2", "iiD", (int64_t)ws, (int64_t)before,
                                                     &f->node);
                more = r > 0;
                if (r <= 0)
                        break;
                r = node_from(v.db, st, a, &t.node);
                sql_reset(v.db, st);
                if (r == 0)
                        r = trash_one(v.db, ws, a, &t);
                if (r < 0)
                        break;
                before = t.node.seq;
                const int64_t at_most_ns = t.time_ns ? t.time_ns : forgotten_ns; /* 0: its event is forgotten; then it is old only if all that was forgotten is */
                if (f->since_ns && at_most_ns < f->since_ns)
                        more = false; /* the log is in order of time */
                else if ((!f->until_ns || at_most_ns <= f->until_ns) && below(t.path, f->path ? f->path : ""))
                        list[n++] = t;
        }
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = n;
        *ret_before = more && n == room ? before : 0;
        return 0;
}

/* ---- undelete ---- */

struct undelete_arg { struct meta *m; const struct meta_undelete *u; struct arena *a; struct op op; struct digest digest; struct meta_put_result result; };

static int decide_undelete(struct opx *x) {
        struct work *w;
        int r = opx_work(x, &x->op->node, &w);
        if (r <= 0)
                return r < 0 ? r : RES_NOT_FOUND;
        x->main = w->row.id;
        if (!w->row.deleted)
                return RES_NOT_FOUND;
        struct sql_stmt *st;
        r = sql_first(x->db, &st, "SELECT deleted FROM node WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)x->s->ws, &w->row.id);
        if (r <= 0)
                return r < 0 ? r : RES_NOT_FOUND;
        bool purged = sql_int(x->db, st, 0) != 1;
        sql_reset(x->db, st);
        if (purged)
                return RES_NOT_FOUND;
        struct work *there = w;
        x->rename_taken = true;
        r = opx_revive(x, &there);
        if (r != RES_OK || there == w)
                return r;
        x->merged_into = there->row.id; /* something that is there stands for it */
        x->main = there->row.id;
        x->stands_version = there->row.version;
        for (w = x->work; w; w = w->next)
                if (w->dirty)
                        return RES_OK; /* directories above came back on the way */
        return RES_MERGED;
}

static int undelete_write(struct txn *t, void *arg, int *ret_refusal) {
        struct undelete_arg *g = arg;
        struct space *s;
        struct opx x;
        struct op_result res;
        int r = txn_space(t, g->u->ws, &s);
        if (r <= 0) {
                *ret_refusal = -ENOENT;
                return r;
        }
        opx_init(&x, t, s, g->a, g->u->subject, &g->op, &g->digest, NULL, NULL);
        x.job = g->u->job;
        r = opx_replay(&x, &res);
        if (r == 0) {
                r = opx_allowed(&x);
                if (r == RES_OK)
                        r = decide_undelete(&x);
                r = opx_finish(&x, r, &res);
        } else if (r > 0)
                r = 0;
        if (r < 0)
                return r;
        g->result = (struct meta_put_result){ .code = res.code, .seq = res.seq };
        for (size_t i = 0; i < res.n_current; i++)
                if (id_equal(&res.current[i].node.id, &x.main))
                        g->result.node = res.current[i].node;
        return 0;
}

int meta_undelete(struct meta *m, const struct meta_undelete *u, struct arena *a, struct meta_put_result *ret) {
        struct undelete_arg g = { .m = m, .u = u, .a = a, .op = { .id = u->op, .node = u->node, .flags = OPF_REVIVE, .time_ns = clock_real_ns(m->c.clock) } };
        struct { char verb[8]; struct id node; } fixed = { "UNDELET", u->node };
        if (id_is_zero(&u->op) || id_is_zero(&u->node))
                return -EINVAL;
        sha256(&fixed, sizeof fixed, &g.digest);
        int r = meta_write(m, undelete_write, &g);
        if (r == 0)
                *ret = g.result;
        return r;
}

/* ---- purge ---- */

struct purge { uint64_t ws; struct id node; uint64_t seq; struct blockref *runs; size_t n, room; uint64_t bytes; };

static int purge_run(void *arg, const struct blockref *ref) {
        struct purge *p = arg;
        if (p->n == p->room) {
                size_t room = p->room ? p->room * 2 : 64;
                void *more = reallocarray(p->runs, room, sizeof *p->runs);
                if (!more)
                        return -ENOMEM;
                p->runs = more;
                p->room = room;
        }
        p->runs[p->n++] = *ref;
        return 0;
}

/* Every distinct version's content, from old to new. */
static int purge_contents(struct meta *m, const struct purge *p, struct arena *a, struct content **ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        struct sql_stmt *st;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = sql_first(v.db, &st, "SELECT count(*) FROM revision WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)p->ws, &p->node);
        if (r <= 0)
                return r < 0 ? r : -EIO;
        size_t room = (size_t)sql_int(v.db, st, 0) + 1, n = 0;
        sql_reset(v.db, st);
        struct content *list = arena_alloc(a, room * sizeof *list);
        struct id last = { { 0 } };
        if (!list)
                return -ENOMEM;
        r = sql_stmt(v.db, &st, "SELECT version, root, size, depth, param, seq FROM revision WHERE workspace = ?1 AND id = ?2 UNION ALL SELECT version, root, size, depth, param, seq"
                                " FROM node WHERE workspace = ?1 AND id = ?2 ORDER BY 6", "iD", (int64_t)p->ws, &p->node);
        if (r < 0)
                return r;
        while (n < room && (r = sql_step(v.db, st)) > 0) {
                struct id version;
                struct content c = { .size = (uint64_t)sql_int(v.db, st, 2), .depth = (uint8_t)sql_int(v.db, st, 3), .param = (uint8_t)sql_int(v.db, st, 4) };
                sql_get_digest(v.db, st, 1, &c.root);
                sql_get_id(v.db, st, 0, &version);
                if (n > 0 && id_equal(&version, &last))
                        continue;
                last = version;
                list[n++] = c;
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = n;
        return 0;
}

static int purge_refs(struct sql *db, const struct purge *p, uint64_t *ret_bytes) {
        uint64_t bytes = 0;
        for (size_t i = 0; i < p->n; i++) {
                const struct digest *hash = &p->runs[i].hash;
                int r = sql_run(db, "UPDATE block_ref SET refs = refs - 1 WHERE workspace = ?1 AND hash = ?2", "id", (int64_t)p->ws, hash);
                if (r == 0)
                        r = sql_run(db, "DELETE FROM block_ref WHERE workspace = ?1 AND hash = ?2 AND refs <= 0", "id", (int64_t)p->ws, hash);
                if (r < 0)
                        return r;
                if (db->ops->changes(db) > 0)
                        bytes += p->runs[i].bytes;
        }
        *ret_bytes = bytes;
        return 0;
}

static int purge_write(struct txn *t, void *arg, int *ret_refusal) {
        struct purge *p = arg;
        struct sql_stmt *st;
        struct space *s;
        uint64_t bytes;
        int r = txn_space(t, p->ws, &s);
        if (r > 0)
                r = sql_first(t->db, &st, "SELECT 1 FROM node WHERE workspace = ?1 AND id = ?2 AND deleted = 1 AND seq = ?3", "iDi", (int64_t)p->ws, &p->node, (int64_t)p->seq);
        if (r <= 0) {
                *ret_refusal = -ESTALE;
                return r;
        }
        sql_reset(t->db, st);
        r = purge_refs(t->db, p, &bytes);
        if (r == 0)
                r = sql_run(t->db, "DELETE FROM revision WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)p->ws, &p->node);
        if (r == 0)
                r = sql_run(t->db, "DELETE FROM entry_past WHERE workspace = ?1 AND node = ?2 AND until_seq <> ?3", "iDi", (int64_t)p->ws, &p->node, (int64_t)p->seq);
        if (r == 0)
                r = sql_run(t->db, "UPDATE node SET deleted = 2, root = NULL, size = 0, depth = 0, xattrs = NULL WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)p->ws, &p->node);
        if (r < 0)
                return r;
        s->used -= MIN(s->used, bytes);
        s->dirty = true;
        p->bytes = bytes;
        return 0;
}

int meta_trash_purge(struct meta *m, uint64_t ws, const struct meta_trash *t, struct page_get *pages, uint64_t *ret_bytes) {
        _cleanup_arena_ struct arena *a = NULL;
        struct purge p = { .ws = ws, .node = t->node.id, .seq = t->node.seq };
        struct meta_set prev = { .n = 0 }, now = { .n = 0 };
        struct content *list;
        size_t n = 0;
        int r = arena_new(64u << 20, &a);
        if (r == 0)
                r = purge_contents(m, &p, a, &list, &n);
        for (size_t i = 0; r == 0 && i < n; i++) {
                now = (struct meta_set){ .content = list[i] };
                r = meta_content_set(&now.content, pages, &now.refs, &now.n);
                if (r == 0)
                        r = meta_runs(i ? &prev : NULL, &now, purge_run, &p);
                free(prev.refs);
                prev = now;
        }
        free(prev.refs);
        if (r == 0)
                r = meta_write(m, purge_write, &p);
        free(p.runs);
        if (r == 0)
                *ret_bytes = p.bytes;
        return r;
}
