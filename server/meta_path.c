/* SPDX-License-Identifier: Apache-2.0 */
/* meta_path.c: what people do with curl: put and delete a whole file by path, restore a version. Each is one step of the commit queue that finds its rows
 * in the transaction, makes an ordinary operation with the current rows as bases, and ends as one event.
 *
 * The request digest that guards the operation id covers what was asked (path, content, conditions), not the rows found, so that a retry after
 * a lost answer gets the first answer. */
#include <string.h>

#include "base/digest.h"
#include "meta_op.h"

#define PLAN_TRIES 8u

struct solo {
        struct commit_job job;
        struct meta *m;
        struct arena *a;
        const struct meta_subject *subject;
        uint64_t ws;
        struct op op;
        struct digest digest;
        const struct meta_put *put;
        const struct meta_delete *del;
        const struct meta_restore *restore;
        struct page_get *pages;
        struct content_plan *plan;
        bool again;
        int err;
        struct meta_put_result result;
};

static void take_result(struct solo *s, const struct opx *x, const struct op_result *res) {
        struct meta_put_result *out = &s->result;
        *out = (struct meta_put_result){ .code = res->code, .missing = res->missing, .n_missing = res->n_missing, .seq = res->seq };
        for (size_t i = 0; i < res->n_current; i++)
                if (id_equal(&res->current[i].node.id, &x->main))
                        out->node = res->current[i].node;
        if (res->code == RES_OK) {
                out->replaced_version = x->replaced_version;
                out->created = s->put && id_is_zero(&x->replaced_version);
        }
}

/* New directories and the new file below `dir`, which exists. */
static int plan_new_file(struct solo *s, struct opx *x, const struct path *p, size_t depth, const struct node_row *dir) {
        struct work *parent, *node;
        int r = opx_work(x, &dir->id, &parent);
        if (r <= 0)
                return r < 0 ? r : -EBADMSG;
        if (parent->row.kind != NODE_DIR)
                return RES_NOT_DIR;
        for (size_t i = depth; i < p->n; i++) { /* all of them before anything is planned; below the first there is nothing yet */
                r = opx_new_name(x, i == depth ? &dir->id : &(struct id){ { 0 } }, p->names[i], strlen(p->names[i]));
                if (r != RES_OK)
                        return r;
        }
        for (; depth < p->n; depth++) {
                bool file = depth + 1 == p->n;
                struct node_row row = { .id = rng_id(x->t->m->c.rng), .kind = file ? NODE_FILE : NODE_DIR, .mode = file ? 0644 : 0755,
                                        .mtime_ns = x->when_ns, .ctime_ns = x->when_ns, .btime_ns = x->when_ns };
                if (file && s->put->has_mode)
                        row.mode = s->put->mode & 07777u;
                r = opx_new(x, &row, &node);
                if (r == 0)
                        r = opx_add_name(x, parent, p->names[depth], strlen(p->names[depth]), node);
                if (r < 0)
                        return r;
                opx_touch_dir(x, parent);
                parent = node;
        }
        x->main = node->row.id;
        r = opx_set_content(x, node, &s->put->content);
        if (s->put->has_mtime)
                node->row.mtime_ns = s->put->mtime_ns;
        return r;
}

/* Splits and walks. RES_OK, or why the path leads nowhere. */
static int find(struct solo *s, struct sql *db, const char *path, struct path *ret_path, struct node_row *ret_row, size_t *ret_depth) {
        int r = path_split(path, s->a, ret_path);
        if (r == -EILSEQ || r == -ENAMETOOLONG || r == -EINVAL)
                return RES_NAME_INVALID;
        if (r == 0)
                r = path_walk(db, s->ws, ret_path, s->a, ret_row, ret_depth);
        return r == -ENOTDIR ? RES_NOT_DIR : r;
}

static int decide_put(struct solo *s, struct opx *x) {
        const struct meta_put *p = s->put;
        struct path path;
        struct node_row row;
        size_t depth;
        int r = find(s, x->db, p->path, &path, &row, &depth);
        if (r != RES_OK)
                return r;
        bool exists = depth == path.n;
        if (exists) {
                struct work *w;
                x->main = row.id;
                r = opx_work(x, &row.id, &w);
                if (r < 0)
                        return r;
                if (row.kind != NODE_FILE)
                        return row.kind == NODE_DIR ? RES_IS_DIR : RES_INVALID;
        }
        if ((exists && p->if_none_match) || (p->if_match && (!exists || (!id_is_zero(&p->match) && !id_equal(&p->match, &row.version)))))
                return RES_STALE;
        if (!exists) {
                if (depth + 1 < path.n && !p->make_parents)
                        return RES_NOT_FOUND;
                return plan_new_file(s, x, &path, depth, &row);
        }
        s->op.kind = OP_CONTENT;
        s->op.node = row.id;
        s->op.version = row.version;
        s->op.content = p->content;
        s->op.attr_mask = (p->has_mode ? ATTR_MODE : 0u) | (p->has_mtime ? ATTR_MTIME : 0u);
        s->op.attrs = (struct node_row){ .mode = p->mode & 07777u, .mtime_ns = p->mtime_ns };
        return opx_decide(x);
}

static int decide_delete(struct solo *s, struct opx *x) {
        const struct meta_delete *d = s->del;
        struct path path;
        struct node_row row;
        size_t depth;
        int r = find(s, x->db, d->path, &path, &row, &depth);
        if (r != RES_OK)
                return r;
        if (depth < path.n)
                return d->if_match ? RES_STALE : RES_NOT_FOUND;
        x->main = row.id;
        struct work *w;
        r = opx_work(x, &row.id, &w);
        if (r < 0)
                return r;
        if (path.n == 0)
                return RES_INVALID;
        if (d->if_match && !id_is_zero(&d->match) && !id_equal(&d->match, &row.version))
                return RES_STALE;
        struct path up = { path.names, path.n - 1 };
        struct node_row parent;
        struct entry_row e;
        r = path_walk(x->db, s->ws, &up, s->a, &parent, &depth);
        if (r == 0)
                r = entry_get(x->db, s->ws, &parent.id, path.names[path.n - 1], strlen(path.names[path.n - 1]), s->a, &e);
        if (r <= 0)
                return r < 0 ? r : -EBADMSG;
        s->op.kind = OP_UNLINK;
        s->op.node = row.id;
        s->op.parent = parent.id;
        s->op.name = e.name;
        s->op.name_bytes = e.name_bytes;
        s->op.placement = e.placement;
        s->op.version = row.version;
        return opx_decide(x);
}

/* A kept version of a node: 1, 0, -errno. */
static int version_get(struct sql *db, uint64_t ws, const struct id *node, const struct id *version, struct arena *a, struct node_row *ret) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT " NODE_COLUMNS " FROM revision WHERE workspace = ?1 AND id = ?2 AND version = ?3 AND deleted < 2 ORDER BY seq LIMIT 1", "iDD", (int64_t)ws, node, version);
        if (r < 0)
                return r;
        if (r == 0)
                r = sql_first(db, &st, "SELECT " NODE_COLUMNS " FROM node WHERE workspace = ?1 AND id = ?2 AND version = ?3 AND deleted < 2", "iDD", (int64_t)ws, node, version);
        if (r <= 0)
                return r;
        r = node_from(db, st, a, ret);
        sql_reset(db, st);
        return r < 0 ? r : 1;
}

static int decide_restore(struct solo *s, struct opx *x) {
        const struct meta_restore *v = s->restore;
        struct work *w;
        struct node_row old;
        int r = opx_work(x, &v->node, &w);
        if (r <= 0)
                return r < 0 ? r : RES_NOT_FOUND;
        x->main = w->row.id;
        if (w->row.kind != NODE_FILE)
                return w->row.kind == NODE_DIR ? RES_IS_DIR : RES_INVALID;
        r = version_get(x->db, s->ws, &w->row.id, &v->version, s->a, &old);
        if (r <= 0)
                return r < 0 ? r : RES_NOT_FOUND;
        s->op.kind = OP_CONTENT;
        s->op.flags = OPF_REVIVE;
        s->op.node = w->row.id;
        s->op.version = w->row.version;
        s->op.content = old.content;
        s->op.attr_mask = ATTR_MTIME;
        s->op.attrs = (struct node_row){ .mtime_ns = old.mtime_ns };
        return opx_decide(x);
}

static int solo_step(struct commit_job *j) {
        struct solo *s = container_of(j, struct solo, job);
        struct space *space;
        int r = txn_space(&s->m->txn, s->ws, &space);
        if (r < 0)
                return r;
        if (r == 0) {
                s->result = (struct meta_put_result){ .code = RES_NOT_FOUND };
                return 0;
        }
        struct opx x;
        struct op_result res;
        opx_init(&x, &s->m->txn, space, s->a, s->subject, &s->op, &s->digest, NULL, s->plan);
        r = opx_replay(&x, &res);
        if (r == 0) {
                r = opx_allowed(&x);
                if (r == RES_OK)
                        r = s->put ? decide_put(s, &x) : s->del ? decide_delete(s, &x) : decide_restore(s, &x);
                r = opx_finish(&x, r, &res);
        } else if (r > 0)
                r = 0;
        s->again = r == OPX_AGAIN;
        if (r == 0)
                take_result(s, &x, &res);
        return r < 0 ? r : 0;
}
static void solo_rewind(struct commit_job *j) { container_of(j, struct solo, job)->again = false; }
static void solo_keep(struct commit_job *j) { (void)j; }
static int solo_give_up(struct commit_job *j, int err) {
        container_of(j, struct solo, job)->err = err;
        return 0;
}

/* Contents that the plan is about: the new one, and the one that is there now. */
static int contents(struct solo *s, struct content *ret_new, struct content *ret_prev) {
        _cleanup_view_ struct view v = { s->m, NULL };
        int r = view_begin(s->m, &v.db);
        if (r < 0)
                return r;
        struct node_row row, old;
        *ret_prev = (struct content){ .size = 0 };
        *ret_new = *ret_prev;
        if (s->put) {
                struct path path;
                size_t depth;
                r = find(s, v.db, s->put->path, &path, &row, &depth);
                *ret_new = s->put->content;
                if (r == 0 && depth == path.n)
                        *ret_prev = row.content;
                return r < 0 ? r : 0;
        }
        struct change c;
        r = change_get(v.db, s->ws, &s->restore->node, s->a, &c);
        if (r == 0) {
                *ret_prev = c.node.content;
                r = version_get(v.db, s->ws, &c.node.id, &s->restore->version, s->a, &old);
                if (r > 0)
                        *ret_new = old.content;
        }
        return r < 0 && r != -ENOENT ? r : 0;
}

static int solo_run(struct solo *s, struct meta_put_result *ret) {
        s->job = (struct commit_job){ .step = solo_step, .rewind = solo_rewind, .keep = solo_keep, .give_up = solo_give_up };
        s->op.time_ns = clock_real_ns(s->m->c.clock);
        int r = 0;
        for (unsigned i = 0; i < PLAN_TRIES; i++) {
                content_plan_free(s->plan);
                s->plan = NULL;
                if (!s->del) {
                        struct content content, prev;
                        r = contents(s, &content, &prev);
                        if (r == 0 && content.size > 0 && content.depth > 0 && content.depth <= 3)
                                r = content_plan_make(s->m, s->subject, s->ws, &content, &prev, s->pages, &s->plan);
                        if (r < 0)
                                break;
                }
                s->again = false;
                r = commit_queue_run(s->m->queue, &s->job);
                if (r == 0)
                        r = s->err;
                if (r < 0 || !s->again)
                        break;
                r = -EAGAIN;
        }
        content_plan_free(s->plan);
        if (r == 0)
                *ret = s->result;
        return r;
}

static void digest_of(struct digest *ret, const char *verb, const void *fixed, size_t n, const char *path) {
        struct digest parts[3];
        sha256(verb, strlen(verb), &parts[0]);
        sha256(fixed, n, &parts[1]);
        sha256(path, strlen(path), &parts[2]);
        sha256(parts, sizeof parts, ret);
}

int meta_put_path(struct meta *m, const struct meta_put *p, struct arena *a, struct meta_put_result *ret) {
        struct solo s = { .m = m, .a = a, .subject = p->subject, .ws = p->ws, .op = { .id = p->op }, .put = p, .pages = p->pages };
        if (id_is_zero(&p->op))
                return -EINVAL;
        struct { struct digest root; uint64_t size, mode, mtime, flags; struct digest condition; } fixed = {
                .root = p->content.root, .size = p->content.size, .mode = p->has_mode ? p->mode : 0, .mtime = p->has_mtime ? (uint64_t)p->mtime_ns : 0,
                .flags = (uint64_t)p->content.depth << 32 | (uint64_t)p->content.param << 40 | (uint64_t)p->has_mode | (uint64_t)p->has_mtime << 1 | (uint64_t)p->if_match << 2 |
                         (uint64_t)p->if_none_match << 3,
                .condition = p->condition,
        };
        digest_of(&s.digest, "PUT", &fixed, sizeof fixed, p->path);
        return solo_run(&s, ret);
}

int meta_delete_path(struct meta *m, const struct meta_delete *d, struct arena *a, struct meta_put_result *ret) {
        struct solo s = { .m = m, .a = a, .subject = d->subject, .ws = d->ws, .op = { .id = d->op }, .del = d };
        if (id_is_zero(&d->op))
                return -EINVAL;
        uint8_t fixed[1 + DIGEST_BYTES] = { d->if_match };
        memcpy(fixed + 1, d->condition.b, DIGEST_BYTES);
        digest_of(&s.digest, "DELETE", fixed, sizeof fixed, d->path);
        return solo_run(&s, ret);
}

int meta_version_restore(struct meta *m, const struct meta_restore *r, struct arena *a, struct meta_put_result *ret) {
        struct solo s = { .m = m, .a = a, .subject = r->subject, .ws = r->ws, .op = { .id = r->op }, .restore = r, .pages = r->pages };
        if (id_is_zero(&r->op))
                return -EINVAL;
        struct id fixed[2] = { r->node, r->version };
        digest_of(&s.digest, "RESTORE", fixed, sizeof fixed, "");
        return solo_run(&s, ret);
}
