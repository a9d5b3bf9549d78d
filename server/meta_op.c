/* SPDX-License-Identifier: Apache-2.0 */
/* meta_op.c: the life of one operation inside the transaction.
 *
 *   known id?  -> same digest: the stored result again; another digest: ID_REUSED
 *   editor?    -> FORBIDDEN          every `after` accepted? -> SKIPPED
 *   decide     -> a refusal with the rows as they are, or MERGED (operation and alias stored, no event), or a plan
 *   write      -> seq and mark from the workspace row; old rows to revision and entry_past; nodes, names (removals first), blocks; the packed event; the operation
 *
 * An event holds every row that the operation changed, with the whole list of names where that changed. Its time is the database's clock, never less than
 * the event before; the operation's own time goes into the directories' mtime and ctime only. Operations of one directory may overtake each other on their way, and clocks differ: an older
 * time never sets a directory's mtime back, but every change of names is seen in it (it grows by a nanosecond at least). An mtime that was set on purpose may lie anywhere: a change after it, by ctime, sets it.
 * The workspace row is changed in memory here and written once per transaction (meta.c). */
#include "meta_op.h"

#include <assert.h>
#include <string.h>

#include "api/wire.h"
#include "base/portable.h"

static const int64_t CLOCK_SKEW_NS = INT64_C(2000000000); /* between machines that keep time; a ctime further ahead was a wrong clock, which must not hold the times for years */

void opx_init(struct opx *x, struct txn *t, struct space *s, struct arena *a, const struct meta_subject *subject, const struct op *op, const struct digest *digest,
              struct fresh *fresh, const struct content_plan *plan) {
        *x = (struct opx){ .t = t, .db = t->db, .s = s, .a = a, .subject = subject, .op = op, .digest = *digest, .fresh = fresh, .plan = plan };
        x->now_ns = MAX(t->now_ns, s->time_ns);
        x->when_ns = op->time_ns ? op->time_ns : x->now_ns;
        x->work_end = &x->work;
        x->moves_end = &x->moves;
        x->main = op->node;
}

static struct work *work_find(struct opx *x, const struct id *id) {
        for (struct work *w = x->work; w; w = w->next)
                if (id_equal(&w->row.id, id))
                        return w;
        return NULL;
}

static struct work *work_append(struct opx *x, const struct node_row *row) {
        struct work *w = arena_alloc(x->a, sizeof *w);
        if (!w)
                return NULL;
        w->row = w->was = *row;
        *x->work_end = w;
        x->work_end = &w->next;
        return w;
}

int opx_work(struct opx *x, const struct id *id, struct work **ret) {
        *ret = work_find(x, id);
        if (*ret)
                return 1;
        struct node_row row;
        struct id real = *id;
        int r = node_get(x->db, x->s->ws, &real, x->a, &row);
        if (r == 0 && (r = alias_get(x->db, x->s->ws, &real)) > 0) {
                *ret = work_find(x, &real);
                if (*ret)
                        return 1;
                r = node_get(x->db, x->s->ws, &real, x->a, &row);
        }
        if (r <= 0)
                return r;
        *ret = work_append(x, &row);
        return *ret ? 1 : -ENOMEM;
}

int opx_new(struct opx *x, const struct node_row *row, struct work **ret) {
        struct work *w = work_append(x, row);
        if (!w)
                return -ENOMEM;
        w->is_new = w->dirty = true;
        *ret = w;
        return 0;
}

static bool wrong_clock(const struct opx *x, int64_t ctime_ns) { return ctime_ns > x->now_ns + CLOCK_SKEW_NS; }

int64_t opx_ctime(const struct opx *x, const struct work *w, int64_t when_ns) {
        const int64_t old = w->row.ctime_ns;
        return wrong_clock(x, old) ? when_ns : MAX(old, when_ns);
}

void opx_touch_dir(struct opx *x, struct work *dir) {
        struct node_row *row = &dir->row;
        const int64_t when = x->when_ns;
        if (wrong_clock(x, row->ctime_ns) || when > row->ctime_ns)
                row->mtime_ns = when;
        else /* at the same moment: another name of the same operation, most often */
                row->mtime_ns = MAX(when == row->ctime_ns ? row->mtime_ns : MIN(row->mtime_ns, INT64_MAX - 1) + 1, when);
        row->ctime_ns = opx_ctime(x, dir, when);
        dir->dirty = true;
}

static int move_append(struct opx *x, bool add, const struct entry_row *e) {
        struct move *m = arena_alloc(x->a, sizeof *m);
        if (!m)
                return -ENOMEM;
        m->add = add;
        m->entry = *e;
        *x->moves_end = m;
        x->moves_end = &m->next;
        return 0;
}

int opx_add_name(struct opx *x, const struct work *parent, const char *name, size_t n, struct work *node) {
        struct entry_row e = { .parent = parent->row.id, .node = node->row.id, .name = arena_strndup(x->a, name, n), .name_bytes = n, .placement = x->op->id };
        node->names = node->dirty = true;
        return e.name ? move_append(x, true, &e) : -ENOMEM;
}

int opx_remove_name(struct opx *x, const struct entry_row *e, struct work *node) {
        node->names = node->dirty = true;
        return move_append(x, false, e);
}

int opx_base(struct opx *x, const struct id *base, const struct id *current, bool placement) {
        if (id_equal(base, current))
                return 1;
        if (id_is_zero(base) || id_is_zero(current))
                return 0;
        struct sql_stmt *st;
        int r = sql_first(x->db, &st, "SELECT placement, version FROM operation WHERE workspace = ?1 AND id = ?2 AND code = ?3", "iDi", (int64_t)x->s->ws, base,
                          (int64_t)RES_MERGED);
        if (r <= 0)
                return r;
        struct id stands;
        sql_get_id(x->db, st, placement ? 0 : 1, &stands);
        sql_reset(x->db, st);
        return id_equal(&stands, current);
}

int opx_allowed(struct opx *x) {
        int r = role_get(x->db, x->s->ws, x->subject->account);
        return r < 0 ? r : r >= ROLE_EDITOR ? RES_OK : RES_FORBIDDEN;
}

static int all_after(struct opx *x) {
        for (size_t i = 0; i < x->op->n_after; i++) {
                struct sql_stmt *st;
                int r = sql_first(x->db, &st, "SELECT 1 FROM operation WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)x->s->ws, &x->op->after[i]);
                if (r < 0)
                        return r;
                if (r == 0)
                        return RES_SKIPPED;
                sql_reset(x->db, st);
        }
        return RES_OK;
}

/* ---- results ---- */

static int result_from_event(struct opx *x, uint64_t seq, struct op_result *ret, bool *ret_ours) {
        struct sql_stmt *st;
        int r = sql_first(x->db, &st, "SELECT mark, op, body FROM event WHERE workspace = ?1 AND seq = ?2", "ii", (int64_t)x->s->ws, (int64_t)seq);
        if (r <= 0)
                return r;
        size_t n;
        const void *p = sql_blob(x->db, st, 0, &n);
        if (p && n == 8)
                memcpy(ret->mark, p, 8);
        struct id op;
        sql_get_id(x->db, st, 1, &op);
        p = sql_blob(x->db, st, 2, &n);
        void *body = NULL;
        *ret_ours = p && id_equal(&op, &x->op->id);
        if (*ret_ours && (body = arena_alloc(x->a, n)))
                memcpy(body, p, n);
        sql_reset(x->db, st);
        if (!*ret_ours)
                return 0;
        struct event e;
        if (!body)
                return -ENOMEM;
        r = wire_unpack_event(body, n, x->a, &e);
        if (r < 0)
                return r;
        ret->current = e.changes;
        ret->n_current = e.n_changes;
        return 0;
}

int opx_replay(struct opx *x, struct op_result *ret) {
        struct sql_stmt *st;
        int r = sql_first(x->db, &st, "SELECT digest, code, seq, merged_into, node, version FROM operation WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)x->s->ws, &x->op->id);
        if (r <= 0)
                return r;
        struct digest stored;
        struct id node;
        struct op_result res = { .op = x->op->id, .code = (enum op_code)sql_int(x->db, st, 1), .seq = (uint64_t)sql_int(x->db, st, 2) };
        sql_get_digest(x->db, st, 0, &stored);
        sql_get_id(x->db, st, 3, &res.merged_into);
        sql_get_id(x->db, st, 4, &node);
        sql_get_id(x->db, st, 5, &x->replaced_version);
        sql_reset(x->db, st);
        if (!digest_equal(&stored, &x->digest)) {
                *ret = (struct op_result){ .op = x->op->id, .code = RES_ID_REUSED };
                return 1;
        }
        x->main = node;
        bool ours = false;
        r = result_from_event(x, res.seq, &res, &ours);
        if (r < 0)
                return r;
        if (!ours) { /* merged, or its event is forgotten: the rows of today */
                struct change *c = arena_alloc(x->a, sizeof *c);
                if (!c)
                        return -ENOMEM;
                r = change_get(x->db, x->s->ws, &node, x->a, c);
                if (r < 0 && r != -ENOENT)
                        return r;
                res.current = c;
                res.n_current = r == 0;
        }
        *ret = res;
        return 1;
}

/* The rows that the operation touched, as the database has them. */
static int current_rows(struct opx *x, struct op_result *ret) {
        size_t n = 0;
        for (struct work *w = x->work; w; w = w->next)
                n += !w->is_new;
        struct change *list = n ? arena_alloc(x->a, n * sizeof *list) : NULL;
        if (n && !list)
                return -ENOMEM;
        n = 0;
        for (struct work *w = x->work; w; w = w->next) {
                if (w->is_new)
                        continue;
                struct change *c = &list[n++];
                c->node = w->was;
                c->has_entries = true;
                int r = entries_get(x->db, x->s->ws, &w->was.id, x->a, &c->entries, &c->n_entries);
                if (r < 0)
                        return r;
        }
        ret->current = list;
        ret->n_current = n;
        return 0;
}

static int operation_write(struct opx *x, enum op_code code, uint64_t seq) {
        const struct id *placement = &x->stands_placement, *version = code == RES_MERGED ? &x->stands_version : &x->replaced_version;
        return sql_run(x->db, "INSERT INTO operation(workspace, id, digest, code, seq, merged_into, node, placement, version) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)", "iDdiibDbb",
                       (int64_t)x->s->ws, &x->op->id, &x->digest, (int64_t)code, (int64_t)seq, code == RES_MERGED ? (const void *)x->merged_into.b : NULL, (size_t)ID_BYTES,
                       &x->main, id_is_zero(placement) ? NULL : (const void *)placement->b, (size_t)ID_BYTES, id_is_zero(version) ? NULL : (const void *)version->b,
                       (size_t)ID_BYTES);
}

static int finish_merged(struct opx *x, struct op_result *ret) {
        struct op_result res = { .op = x->op->id, .code = RES_MERGED, .seq = x->s->at.seq, .merged_into = x->merged_into };
        memcpy(res.mark, x->s->at.mark, 8);
        x->main = x->merged_into;
        int r = operation_write(x, RES_MERGED, res.seq);
        if (r == 0 && x->op->kind == OP_CREATE)
                r = sql_run(x->db, "INSERT INTO alias(workspace, id, node) VALUES(?1, ?2, ?3)", "iDD", (int64_t)x->s->ws, &x->op->node, &x->merged_into);
        if (r == 0)
                r = current_rows(x, &res);
        if (r == 0)
                *ret = res;
        return r;
}

/* ---- writing ---- */

static int node_write(struct opx *x, struct work *w) {
        const struct node_row *n = &w->row;
        int64_t ws = (int64_t)x->s->ws;
        if (!w->is_new) {
                int r = sql_run(x->db, "INSERT INTO revision(workspace, " NODE_COLUMNS ", until_seq) SELECT workspace, " NODE_COLUMNS ", ?3 FROM node WHERE workspace = ?1 AND id = ?2",
                                "iDi", ws, &n->id, (int64_t)n->seq);
                if (r < 0)
                        return r;
                if (n->kind == NODE_DIR && !n->deleted && !w->was.deleted && n->mode == w->was.mode && n->uid == w->was.uid && n->gid == w->was.gid && n->xattrs == w->was.xattrs &&
                    n->btime_ns == w->was.btime_ns) /* by far the most frequent: a directory whose names changed */
                        return sql_run(x->db, "UPDATE node SET mtime_ns = ?3, ctime_ns = ?4, seq = ?5 WHERE workspace = ?1 AND id = ?2", "iDiii", ws, &n->id, n->mtime_ns, n->ctime_ns,
                                       (int64_t)n->seq);
        }
        const void *xattrs;
        size_t xattrs_n;
        int r = xattrs_pack(n->xattrs, n->n_xattrs, x->a, &xattrs, &xattrs_n);
        if (r < 0)
                return r;
        return sql_run(x->db,
                       "INSERT INTO node(workspace, id, kind, mode, uid, gid, rdev, mtime_ns, ctime_ns, btime_ns, target, xattrs, root, size, depth, param, version, seq, deleted)"
                       " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19) ON CONFLICT(workspace, id) DO UPDATE SET mode = excluded.mode,"
                       " uid = excluded.uid, gid = excluded.gid, mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns, btime_ns = excluded.btime_ns, xattrs = excluded.xattrs,"
                       " root = excluded.root, size = excluded.size, depth = excluded.depth, param = excluded.param, version = excluded.version, seq = excluded.seq,"
                       " deleted = excluded.deleted",
                       "iDiiiiiiiibbbiiibii", ws, &n->id, (int64_t)n->kind, (int64_t)n->mode, (int64_t)n->uid, (int64_t)n->gid, (int64_t)n->rdev, n->mtime_ns, n->ctime_ns, n->btime_ns,
                       (const void *)n->target, n->target ? strlen(n->target) + 1 : (size_t)0, xattrs, xattrs_n,
                       n->content.size ? (const void *)n->content.root.b : NULL, (size_t)DIGEST_BYTES, (int64_t)n->content.size, (int64_t)n->content.depth, (int64_t)n->content.param,
                       id_is_zero(&n->version) ? NULL : (const void *)n->version.b, (size_t)ID_BYTES, (int64_t)n->seq, (int64_t)n->deleted);
}

static int move_write(struct opx *x, struct move *m, uint64_t seq) {
        struct entry_row *e = &m->entry;
        int64_t ws = (int64_t)x->s->ws;
        if (m->add) {
                char fold[FOLD_BYTES_MAX];
                size_t bytes = 0;
                int k = x->s->portable ? name_fold(e->name, e->name_bytes, fold, &bytes) : 0;
                if (k == -ENOMEM)
                        return k;
                if (k < 0) { /* it came back with its directory, and is older than this version of Unicode or than the rule: it is equal to nothing but itself */
                        bytes = MIN(e->name_bytes, sizeof fold);
                        memcpy(fold, e->name, bytes);
                }
                e->entry_id = x->s->entry_next++;
                e->seq = seq;
                return sql_run(x->db, "INSERT INTO entry(workspace, id, parent, name, fold, node, placement, seq) VALUES(?1, ?2, ?3, ?4, ?8, ?5, ?6, ?7)", "iiDbDDib", ws,
                               (int64_t)e->entry_id, &e->parent, (const void *)e->name, e->name_bytes, &e->node, &e->placement, (int64_t)seq, x->s->portable ? (const void *)fold : NULL, bytes);
        }
        int r = sql_run(x->db, "INSERT INTO entry_past(workspace, id, parent, name, node, placement, seq, until_seq) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)", "iiDbDDii", ws,
                        (int64_t)e->entry_id, &e->parent, (const void *)e->name, e->name_bytes, &e->node, &e->placement, (int64_t)e->seq, (int64_t)seq);
        return r < 0 ? r : sql_run(x->db, "DELETE FROM entry WHERE workspace = ?1 AND id = ?2", "ii", ws, (int64_t)e->entry_id);
}

/* The names of a node after the writes. A new node has exactly those of the plan. */
static int names_after(struct opx *x, struct work *w) {
        if (!w->is_new)
                return entries_get(x->db, x->s->ws, &w->row.id, x->a, &w->entries, &w->n_entries);
        for (struct move *m = x->moves; m; m = m->next)
                if (m->add && id_equal(&m->entry.node, &w->row.id)) {
                        assert(w->n_entries == 0);
                        w->entries = &m->entry;
                        w->n_entries = 1;
                }
        return 0;
}

static int event_write(struct opx *x, const struct event *e) {
        struct buf *b = &x->t->m->scratch;
        buf_reset(b);
        int r = wire_pack_event(b, e);
        if (r < 0)
                return r;
        return sql_run(x->db, "INSERT INTO event(workspace, seq, mark, op, job, actor, device, time_ns, body) VALUES(?1, ?2, ?3, ?4, ?9, ?5, ?6, ?7, ?8)", "iibDiDibb",
                       (int64_t)x->s->ws, (int64_t)e->seq, (const void *)e->mark, (size_t)8, &e->op, (int64_t)x->subject->account, &x->subject->device, e->time_ns,
                       (const void *)b->data, b->bytes, id_is_zero(&e->job) ? NULL : (const void *)e->job.b, (size_t)ID_BYTES);
}

static int finish_accepted(struct opx *x, struct op_result *ret) {
        struct space *s = x->s;
        struct event e = { .seq = s->at.seq + 1, .op = x->op->id, .job = x->job, .actor = x->subject->account_name, .device = x->subject->device_name, .time_ns = x->now_ns };
        do /* zero is the mark of seq 0 */
                x->t->m->c.rng->fill(x->t->m->c.rng, e.mark, sizeof e.mark);
        while (memcmp(e.mark, (uint8_t[8]){ 0 }, 8) == 0);
        int r = content_apply(x);
        size_t n = 0;
        for (struct work *w = x->work; w && r == 0; w = w->next)
                if (w->dirty) {
                        n++;
                        w->row.seq = e.seq;
                        bool lived = !w->is_new && !w->was.deleted;
                        s->nodes = s->nodes + !w->row.deleted - lived;
                        r = node_write(x, w);
                }
        for (int pass = 0; pass < 2; pass++)
                for (struct move *m = x->moves; m && r == 0; m = m->next)
                        if (m->add == (pass == 1))
                                r = move_write(x, m, e.seq);
        for (struct work *w = x->work; w && r == 0; w = w->next)
                if (w->dirty && w->names)
                        r = names_after(x, w);
        if (r < 0)
                return r;
        assert(n > 0);
        struct change *changes = arena_alloc(x->a, n * sizeof *changes);
        if (!changes)
                return -ENOMEM;
        for (struct work *w = x->work; w; w = w->next)
                if (w->dirty)
                        changes[e.n_changes++] = (struct change){ .node = w->row, .has_entries = w->names, .entries = w->entries, .n_entries = w->n_entries };
        e.changes = changes;
        r = event_write(x, &e);
        if (r == 0)
                r = operation_write(x, RES_OK, e.seq);
        if (r < 0)
                return r;
        s->at.seq = e.seq;
        memcpy(s->at.mark, e.mark, 8);
        s->time_ns = x->now_ns;
        s->dirty = s->news = true;
        struct op_result res = { .op = x->op->id, .code = RES_OK, .seq = e.seq, .current = changes, .n_current = n };
        memcpy(res.mark, e.mark, 8);
        *ret = res;
        return 0;
}

int opx_finish(struct opx *x, int code, struct op_result *ret) {
        if (code < 0 || code == OPX_AGAIN)
                return code;
        struct counters *k = x->t->m->c.counters;
        if (code == RES_OK || code == RES_MERGED) {
                if (k)
                        counter_add(k, ops_committed, 1);
                return code == RES_OK ? finish_accepted(x, ret) : finish_merged(x, ret);
        }
        if (k)
                counter_add(k, ops_refused, 1);
        struct op_result res = { .op = x->op->id, .code = (enum op_code)code, .missing = x->missing, .n_missing = x->n_missing };
        int r = current_rows(x, &res);
        if (r == 0)
                *ret = res;
        return r;
}

int opx_run(struct opx *x, struct op_result *ret) {
        int r = opx_replay(x, ret);
        if (r != 0)
                return r < 0 ? r : 0;
        r = opx_allowed(x);
        if (r == RES_OK)
                r = all_after(x);
        if (r == RES_OK)
                r = opx_decide(x);
        return opx_finish(x, r, ret);
}

int opx_fenced(struct opx *x, struct op_result *ret) {
        const struct op *op = x->op;
        const struct id *about[] = { &op->node, &op->parent, &op->parent2, &op->replaced, &op->source };
        struct work *w;
        int r = opx_replay(x, ret);
        if (r != 0)
                return r < 0 ? r : 0;
        r = opx_allowed(x);
        if (r == RES_OK)
                r = RES_FENCED;
        for (size_t i = 0; i < ARRAY_SIZE(about) && r == RES_FENCED; i++) {
                int k = id_is_zero(about[i]) ? 0 : opx_work(x, about[i], &w);
                if (k < 0)
                        return k;
        }
        return opx_finish(x, r, ret);
}
