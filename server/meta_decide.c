/* SPDX-License-Identifier: Apache-2.0 */
/* meta_decide.c: what each kind of operation may do, on the rows as they are. Reads and plans only.
 *
 *   kind      must hold                                                          otherwise
 *   CREATE    id never used; parent a live directory; name free                  ID_REUSED; NOT_FOUND, DELETED, NOT_DIR; EXISTS, or MERGED if both are directories, files of
 *                                                                                the same bytes, or symlinks to the same target
 *   CONTENT   a live file (or OPF_REVIVE); version is the current one            NOT_FOUND, DELETED, IS_DIR; STALE, or MERGED if it is the same bytes
 *   ATTR      a live node                                                        NOT_FOUND, DELETED
 *   LINK      a live node, no directory; parent as above; name free              EXISTS, or MERGED if the name is this node's already
 *   UNLINK    the name is the node's, by that placement; last name: a            NOT_FOUND, DELETED, STALE; NOT_EMPTY
 *             directory is empty, a file's content is the one the deleter knew
 *   RENAME    as UNLINK for the old name, and for the new one: free, or          EXISTS, STALE, IS_DIR, NOT_DIR, NOT_EMPTY, CYCLE
 *             `replaced` as known. A replaced node that is gone by now is no obstacle.
 *   REPLACE   as CONTENT; the source's name is its by that placement             a source that is gone by now is no obstacle
 *
 * OPF_REVIVE on CONTENT and REPLACE brings the file back, on CREATE, LINK, RENAME a deleted parent: with the names that their deletion took, and so on
 * upwards. If such a name is a directory by now and the node was one, that directory takes its part; anything else there is EXISTS. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "api/wire.h"
#include "base/portable.h"
#include "meta_op.h"

#define REVIVE_DEPTH_MAX 512u
#define TRY(expression)                  \
        do {                             \
                int try_ = (expression); \
                if (try_ != RES_OK)      \
                        return try_;     \
        } while (0)

static int name_code(const char *name, size_t n) { return name && name_check(name, n) == 0 ? RES_OK : RES_NAME_INVALID; }

/* A name that somebody gives; one that is taken away may be older than the rule. */
static int new_name_code(struct opx *x, const char *name, size_t n) {
        char fold[FOLD_BYTES_MAX];
        size_t bytes;
        TRY(name_code(name, n));
        if (!x->s->portable)
                return RES_OK;
        int r = name_fold(name, n, fold, &bytes);
        return r == -EINVAL ? RES_NAME_INVALID : r < 0 ? r : RES_OK;
}

static bool same_bytes(const struct entry_row *e, const char *name, size_t n) { return e->name_bytes == n && memcmp(e->name, name, n) == 0; }

static int xattrs_code(const struct op *op) {
        size_t total = 0;
        if ((op->attr_mask & ATTR_MODE) && (op->attrs.mode & ~07777u))
                return RES_INVALID;
        if (!(op->attr_mask & ATTR_XATTR) && op->kind != OP_CREATE)
                return RES_OK;
        for (size_t i = 0; i < op->attrs.n_xattrs; i++) {
                const struct xattr *v = &op->attrs.xattrs[i];
                size_t n = strnlen(v->name, XATTR_NAME_MAX + 1);
                if (n == 0)
                        return RES_INVALID;
                if (n > XATTR_NAME_MAX || v->value_bytes > XATTR_VALUE_MAX)
                        return RES_TOO_LARGE;
                total += n + v->value_bytes;
                if (total > XATTR_TOTAL_MAX)
                        return RES_TOO_LARGE;
        }
        return RES_OK;
}

/* A name in a directory, the plan included; in a portable workspace also one that is equal by its fold: 1, 0, -errno. */
static int name_get(struct opx *x, const struct id *parent, const char *name, size_t n, struct entry_row *ret) {
        for (struct move *m = x->moves; m; m = m->next)
                if (m->add && id_equal(&m->entry.parent, parent) && m->entry.name_bytes == n && memcmp(m->entry.name, name, n) == 0) {
                        *ret = m->entry;
                        return 1;
                }
        int r = entry_get(x->db, x->s->ws, parent, name, n, x->a, ret);
        if (r != 0 || !x->s->portable)
                return r;
        char fold[FOLD_BYTES_MAX], other[FOLD_BYTES_MAX];
        size_t bytes, other_bytes;
        r = name_fold(name, n, fold, &bytes);
        if (r < 0)
                return r == -EINVAL ? 0 : r;
        for (struct move *m = x->moves; m; m = m->next)
                if (m->add && id_equal(&m->entry.parent, parent) && name_fold(m->entry.name, m->entry.name_bytes, other, &other_bytes) == 0 && other_bytes == bytes &&
                    memcmp(other, fold, bytes) == 0) {
                        *ret = m->entry;
                        return 1;
                }
        return entry_get_folded(x->db, x->s->ws, parent, fold, bytes, x->a, ret);
}

int opx_new_name(struct opx *x, const struct id *parent, const char *name, size_t n) {
        struct entry_row e;
        TRY(new_name_code(x, name, n));
        int r = name_get(x, parent, name, n, &e);
        return r < 0 ? r : r > 0 ? RES_EXISTS : RES_OK;
}

static int names_count(struct opx *x, const struct id *node) {
        struct sql_stmt *st;
        int r = sql_first(x->db, &st, "SELECT count(*) FROM entry WHERE workspace = ?1 AND node = ?2", "iD", (int64_t)x->s->ws, node);
        if (r <= 0)
                return r;
        r = (int)sql_int(x->db, st, 0);
        sql_reset(x->db, st);
        return r;
}

static int has_children(struct opx *x, const struct id *dir) {
        struct sql_stmt *st;
        int r = sql_first(x->db, &st, "SELECT 1 FROM entry WHERE workspace = ?1 AND parent = ?2 LIMIT 1", "iD", (int64_t)x->s->ws, dir);
        if (r > 0)
                sql_reset(x->db, st);
        return r;
}

/* Parent of a directory, the plan included: 1, 0 (root, or deleted), -errno. */
static int parent_of(struct opx *x, const struct id *dir, struct id *ret) {
        for (struct move *m = x->moves; m; m = m->next)
                if (m->add && id_equal(&m->entry.node, dir)) {
                        *ret = m->entry.parent;
                        return 1;
                }
        struct sql_stmt *st;
        int r = sql_first(x->db, &st, "SELECT parent FROM entry WHERE workspace = ?1 AND node = ?2 LIMIT 1", "iD", (int64_t)x->s->ws, dir);
        if (r <= 0)
                return r;
        sql_get_id(x->db, st, 0, ret);
        sql_reset(x->db, st);
        return 1;
}

/* RES_CYCLE if `ancestor` is dir or above it. */
static int no_cycle(struct opx *x, struct id dir, const struct id *ancestor) {
        for (;;) {
                if (id_equal(&dir, ancestor))
                        return RES_CYCLE;
                struct id up;
                int r = parent_of(x, &dir, &up);
                if (r <= 0)
                        return r < 0 ? r : RES_OK;
                dir = up;
        }
}

static void work_to_end(struct opx *x, struct work *w) {
        if (!w->next)
                return;
        struct work **p = &x->work;
        while (*p != w)
                p = &(*p)->next;
        *p = w->next;
        w->next = NULL;
        *x->work_end = w;
        x->work_end = &w->next;
}

static int past_names(struct opx *x, const struct work *w, struct entry_row **ret, size_t *ret_n) {
        struct sql_stmt *st;
        int r = sql_stmt(x->db, &st, "SELECT " ENTRY_COLUMNS " FROM entry_past WHERE workspace = ?1 AND node = ?2 AND until_seq = ?3 ORDER BY id LIMIT 1024", "iDi", (int64_t)x->s->ws,
                         &w->row.id, (int64_t)w->was.seq);
        if (r < 0)
                return r;
        size_t n = 0, room = 4;
        struct entry_row *list = arena_alloc(x->a, room * sizeof *list);
        while (list && (r = sql_step(x->db, st)) > 0) {
                if (n == room) {
                        struct entry_row *more = arena_alloc(x->a, 2 * room * sizeof *more);
                        if (more)
                                memcpy(more, list, n * sizeof *more);
                        list = more;
                        room *= 2;
                }
                if (!list || (r = entry_from(x->db, st, x->a, &list[n++])) < 0)
                        break;
        }
        sql_reset(x->db, st);
        if (!list)
                return -ENOMEM;
        *ret = list;
        *ret_n = n;
        return r < 0 ? r : 0;
}

/* "NAME (restored N)" that nobody has in the directory: a directory comes back under it if a file has its name by now. */
static int restored_name(struct opx *x, const struct id *parent, const struct entry_row *past, const char **ret, size_t *ret_n) {
        char name[NAME_BYTES_MAX + 1], mark[32];
        for (unsigned number = 1; number < 1000; number++) {
                struct entry_row e;
                size_t more = (size_t)snprintf(mark, sizeof mark, " (restored %u)", number), n = MIN((size_t)past->name_bytes, NAME_BYTES_MAX - more);
                while (n < past->name_bytes && n > 0 && ((unsigned char)past->name[n] & 0xc0) == 0x80) /* not inside a character */
                        n--;
                memcpy(name, past->name, n);
                memcpy(name + n, mark, more + 1);
                int r = name_get(x, parent, name, n + more, &e);
                if (r < 0)
                        return r;
                if (r == 0) {
                        *ret = arena_strndup(x->a, name, n + more);
                        *ret_n = n + more;
                        return *ret ? RES_OK : -ENOMEM;
                }
        }
        return RES_EXISTS;
}

static int revive(struct opx *x, struct work **w, unsigned depth) {
        struct work *node = *w;
        if (!node->row.deleted)
                return RES_OK;
        if (depth > REVIVE_DEPTH_MAX)
                return RES_TOO_LARGE;
        struct entry_row *past;
        size_t n;
        int r = past_names(x, node, &past, &n);
        if (r < 0)
                return r;
        if (n == 0) /* its history is forgotten: there is no place to bring it back to */
                return RES_DELETED;
        node->row.deleted = false;
        for (size_t i = 0; i < n; i++) {
                struct work *parent, *there;
                r = opx_work(x, &past[i].parent, &parent);
                if (r <= 0)
                        return r < 0 ? r : RES_NOT_FOUND;
                TRY(revive(x, &parent, depth + 1));
                struct entry_row e;
                r = name_get(x, &parent->row.id, past[i].name, past[i].name_bytes, &e);
                if (r < 0)
                        return r;
                const char *name = past[i].name;
                size_t name_bytes = past[i].name_bytes;
                if (r > 0) {
                        node->row.deleted = true;
                        r = opx_work(x, &e.node, &there);
                        if (r < 0)
                                return r;
                        if (node->row.kind != NODE_DIR && !x->rename_taken)
                                return RES_EXISTS;
                        if (r > 0 && node->row.kind == there->row.kind &&
                            (node->row.kind == NODE_DIR || (node->row.kind == NODE_FILE && content_equal(&node->row.content, &there->row.content)))) {
                                *w = there; /* stays deleted: the other one stands for it */
                                return RES_OK;
                        }
                        TRY(restored_name(x, &parent->row.id, &past[i], &name, &name_bytes));
                        node->row.deleted = false;
                }
                r = opx_add_name(x, parent, name, name_bytes, node);
                if (r < 0)
                        return r;
                opx_touch_dir(x, parent);
        }
        node->dirty = true;
        work_to_end(x, node);
        return RES_OK;
}

int opx_revive(struct opx *x, struct work **w) { return revive(x, w, 0); }

/* The live directory that an operation wants to put a name into. */
static int target_dir(struct opx *x, const struct id *id, struct work **ret) {
        int r = opx_work(x, id, ret);
        if (r <= 0)
                return r < 0 ? r : RES_NOT_FOUND;
        if ((*ret)->row.kind != NODE_DIR)
                return RES_NOT_DIR;
        if ((*ret)->row.deleted)
                return x->op->flags & OPF_REVIVE ? opx_revive(x, ret) : RES_DELETED;
        return RES_OK;
}

static int live_node(struct opx *x, const struct id *id, struct work **ret) {
        int r = opx_work(x, id, ret);
        if (r <= 0)
                return r < 0 ? r : RES_NOT_FOUND;
        x->main = (*ret)->row.id;
        return (*ret)->row.deleted ? RES_DELETED : RES_OK;
}

static void set_attrs(struct opx *x, struct work *w) {
        const struct node_row *a = &x->op->attrs;
        uint32_t m = x->op->attr_mask;
        if (m & ATTR_MODE)
                w->row.mode = a->mode;
        if (m & ATTR_UID)
                w->row.uid = a->uid;
        if (m & ATTR_GID)
                w->row.gid = a->gid;
        if (m & ATTR_MTIME)
                w->row.mtime_ns = a->mtime_ns;
        if (m & ATTR_BTIME)
                w->row.btime_ns = a->btime_ns;
        if (m & ATTR_XATTR) {
                w->row.xattrs = a->n_xattrs ? a->xattrs : NULL;
                w->row.n_xattrs = a->n_xattrs;
        }
        if (!(m & ATTR_CTIME))
                w->row.ctime_ns = opx_ctime(x, w, x->when_ns);
        else /* a file's is what its writer has seen; a directory's tells which change of its names was the last one */
                w->row.ctime_ns = w->row.kind == NODE_DIR ? opx_ctime(x, w, a->ctime_ns) : a->ctime_ns;
        w->dirty = true;
}

int opx_set_content(struct opx *x, struct work *w, const struct content *c) {
        TRY(content_check(x, c, w->is_new ? NULL : &w->was.content));
        w->row.content = *c;
        x->replaced_version = w->is_new ? (struct id){ { 0 } } : w->was.version;
        w->row.version = x->op->id;
        w->row.mtime_ns = x->when_ns;
        w->row.ctime_ns = opx_ctime(x, w, x->when_ns);
        w->dirty = true;
        return RES_OK;
}

/* The name is taken. Merged if both are the same thing. */
static int create_collides(struct opx *x, const struct entry_row *e) {
        struct work *there;
        int r = opx_work(x, &e->node, &there);
        if (r <= 0)
                return r < 0 ? r : -EBADMSG;
        const struct node_row *ours = &x->op->attrs;
        if (there->row.kind != ours->kind || !same_bytes(e, x->op->name, x->op->name_bytes))
                return RES_EXISTS;
        bool same = ours->kind == NODE_DIR || (ours->kind == NODE_FILE && content_equal(&there->row.content, &x->op->content)) ||
                    (ours->kind == NODE_SYMLINK && strcmp(there->row.target, ours->target) == 0);
        if (!same)
                return RES_EXISTS;
        x->merged_into = there->row.id;
        x->stands_placement = e->placement;
        x->stands_version = there->row.version;
        return RES_MERGED;
}

static int decide_create(struct opx *x) {
        const struct op *op = x->op;
        const struct node_row *a = &op->attrs;
        if (a->kind == NODE_GRAFT || a->kind == NODE_RESERVED || a->kind < NODE_FILE || a->kind > NODE_RESERVED)
                return RES_UNSUPPORTED;
        TRY(new_name_code(x, op->name, op->name_bytes));
        if (a->mode & ~07777u || (a->kind != NODE_FILE && op->content.size > 0))
                return RES_INVALID;
        TRY(xattrs_code(op));
        if (a->kind == NODE_SYMLINK) {
                size_t n = a->target ? strnlen(a->target, SYMLINK_BYTES_MAX + 1) : 0;
                if (n == 0 || n > SYMLINK_BYTES_MAX)
                        return n ? RES_TOO_LARGE : RES_INVALID;
        }
        struct node_row known;
        struct id id = op->node;
        int r = node_get(x->db, x->s->ws, &id, x->a, &known);
        if (r == 0)
                r = alias_get(x->db, x->s->ws, &id);
        struct work *parent, *node;
        if (r > 0)
                r = opx_work(x, &id, &node); /* the answer has its row */
        if (r != 0)
                return r < 0 ? r : RES_ID_REUSED;
        TRY(target_dir(x, &op->parent, &parent));
        struct entry_row e;
        r = name_get(x, &parent->row.id, op->name, op->name_bytes, &e);
        if (r != 0) {
                r = r < 0 ? r : create_collides(x, &e);
                /* A merge writes no event, so it cannot revive. A revived parent has no names, so this does not happen. */
                return r;
        }
        struct node_row row = *a;
        row.id = op->node;
        row.seq = 0;
        row.deleted = false;
        row.version = (struct id){ { 0 } };
        row.content = (struct content){ .param = 0 };
        if (a->kind != NODE_SYMLINK)
                row.target = NULL;
        if (a->kind != NODE_CHAR && a->kind != NODE_BLOCK)
                row.rdev = 0;
        r = opx_new(x, &row, &node);
        if (r < 0)
                return r;
        if (a->kind == NODE_FILE) {
                TRY(opx_set_content(x, node, &op->content));
                node->row.mtime_ns = a->mtime_ns;
                node->row.ctime_ns = a->ctime_ns;
        }
        if (!node->row.mtime_ns)
                node->row.mtime_ns = x->when_ns;
        if (!node->row.ctime_ns)
                node->row.ctime_ns = x->when_ns;
        if (!node->row.btime_ns)
                node->row.btime_ns = x->when_ns;
        opx_touch_dir(x, parent);
        r = opx_add_name(x, parent, op->name, op->name_bytes, node);
        return r < 0 ? r : RES_OK;
}

/* The file that content goes to, base checked. same: equal bytes under another version are accepted as RES_MERGED. */
static int content_target(struct opx *x, struct work **ret) {
        const struct op *op = x->op;
        int r = live_node(x, &op->node, ret);
        if (r != RES_OK && (r != RES_DELETED || !(op->flags & OPF_REVIVE)))
                return r;
        struct work *w = *ret;
        if (w->row.kind != NODE_FILE)
                return w->row.kind == NODE_DIR ? RES_IS_DIR : RES_INVALID;
        TRY(xattrs_code(op));
        r = opx_base(x, &op->version, &w->row.version, false);
        if (r < 0)
                return r;
        if (r == 0) {
                if (w->row.deleted || !content_equal(&w->row.content, &op->content))
                        return RES_STALE;
                x->merged_into = w->row.id;
                x->stands_version = w->row.version;
                return RES_MERGED;
        }
        return w->row.deleted ? opx_revive(x, ret) : RES_OK;
}

static int decide_content(struct opx *x) {
        struct work *w;
        TRY(content_target(x, &w));
        TRY(opx_set_content(x, w, &x->op->content));
        set_attrs(x, w);
        return RES_OK;
}

static int decide_attr(struct opx *x) {
        struct work *w;
        TRY(live_node(x, &x->op->node, &w));
        TRY(xattrs_code(x->op));
        set_attrs(x, w);
        return RES_OK;
}

static int decide_link(struct opx *x) {
        const struct op *op = x->op;
        struct work *w, *parent;
        TRY(new_name_code(x, op->name, op->name_bytes));
        TRY(live_node(x, &op->node, &w));
        if (w->row.kind == NODE_DIR)
                return RES_IS_DIR;
        TRY(target_dir(x, &op->parent, &parent));
        struct entry_row e;
        int r = name_get(x, &parent->row.id, op->name, op->name_bytes, &e);
        if (r < 0)
                return r;
        if (r > 0 && id_equal(&e.node, &w->row.id) && same_bytes(&e, op->name, op->name_bytes)) {
                x->merged_into = w->row.id;
                x->stands_placement = e.placement;
                x->stands_version = w->row.version;
                return RES_MERGED;
        }
        if (r > 0) {
                struct work *there;
                r = opx_work(x, &e.node, &there);
                return r < 0 ? r : RES_EXISTS;
        }
        r = names_count(x, &w->row.id);
        if (r < 0)
                return r;
        if (r >= (int)META_LINKS_MAX)
                return RES_TOO_LARGE;
        opx_touch_dir(x, parent);
        w->row.ctime_ns = opx_ctime(x, w, x->when_ns);
        r = opx_add_name(x, parent, op->name, op->name_bytes, w);
        return r < 0 ? r : RES_OK;
}

/* The name (parent_id, name), which must be w's by the placement known to the client. */
static int own_name(struct opx *x, const struct id *parent_id, const char *name, size_t n, const struct id *placement, struct work *w, struct work **ret_parent, struct entry_row *ret) {
        TRY(name_code(name, n));
        int r = opx_work(x, parent_id, ret_parent);
        if (r <= 0)
                return r < 0 ? r : RES_NOT_FOUND;
        r = name_get(x, &(*ret_parent)->row.id, name, n, ret);
        if (r <= 0)
                return r < 0 ? r : RES_NOT_FOUND;
        if (!id_equal(&ret->node, &w->row.id)) {
                struct work *there;
                r = opx_work(x, &ret->node, &there);
                return r < 0 ? r : RES_STALE;
        }
        r = opx_base(x, placement, &ret->placement, true);
        return r < 0 ? r : r ? RES_OK : RES_STALE;
}

/* Takes one name from a node; with the last one the node goes. version: the content that the deleter knew; NULL: not asked. */
static int drop_name(struct opx *x, const struct entry_row *e, struct work *w, const struct id *version) {
        int n = names_count(x, &w->row.id);
        if (n < 0)
                return n;
        int r;
        if (n <= 1) {
                if (w->row.kind == NODE_DIR) {
                        r = has_children(x, &w->row.id);
                        if (r != 0)
                                return r < 0 ? r : RES_NOT_EMPTY;
                }
                if (w->row.kind == NODE_FILE && version) {
                        r = opx_base(x, version, &w->row.version, false);
                        if (r <= 0)
                                return r < 0 ? r : RES_STALE;
                }
                w->row.deleted = true;
        }
        w->row.ctime_ns = opx_ctime(x, w, x->when_ns);
        r = opx_remove_name(x, e, w);
        return r < 0 ? r : RES_OK;
}

static int decide_unlink(struct opx *x) {
        const struct op *op = x->op;
        struct work *w, *parent;
        struct entry_row e;
        TRY(live_node(x, &op->node, &w));
        TRY(own_name(x, &op->parent, op->name, op->name_bytes, &op->placement, w, &parent, &e));
        x->replaced_version = w->row.version;
        TRY(drop_name(x, &e, w, &op->version));
        opx_touch_dir(x, parent);
        return RES_OK;
}

static int rename_exchange(struct opx *x, struct work *w, struct work *from, const struct entry_row *e, struct work *to, const struct entry_row *e2) {
        const struct op *op = x->op;
        struct work *other;
        int r = opx_work(x, &e2->node, &other);
        if (r <= 0)
                return r < 0 ? r : -EBADMSG;
        r = opx_base(x, &op->replaced_placement, &e2->placement, true);
        if (r <= 0)
                return r < 0 ? r : RES_STALE;
        if (w == other)
                return RES_INVALID;
        if (w->row.kind == NODE_DIR)
                TRY(no_cycle(x, to->row.id, &w->row.id));
        if (other->row.kind == NODE_DIR)
                TRY(no_cycle(x, from->row.id, &other->row.id));
        if (opx_remove_name(x, e, w) < 0 || opx_remove_name(x, e2, other) < 0 || opx_add_name(x, to, e2->name, e2->name_bytes, w) < 0 ||
            opx_add_name(x, from, e->name, e->name_bytes, other) < 0)
                return -ENOMEM;
        w->row.ctime_ns = opx_ctime(x, w, x->when_ns);
        other->row.ctime_ns = opx_ctime(x, other, x->when_ns);
        opx_touch_dir(x, from);
        opx_touch_dir(x, to);
        return RES_OK;
}

/* What stands at the new name must be what the client knew, and may be replaced by w. */
static int rename_over(struct opx *x, struct work *w, const struct entry_row *e2) {
        const struct op *op = x->op;
        struct work *target, *replaced = NULL;
        int r = opx_work(x, &e2->node, &target);
        if (r <= 0)
                return r < 0 ? r : -EBADMSG;
        if (id_is_zero(&op->replaced))
                return RES_EXISTS;
        r = opx_work(x, &op->replaced, &replaced);
        if (r < 0)
                return r;
        if (replaced != target)
                return RES_STALE;
        if (target == w)
                return RES_EXISTS; /* two names of one node: POSIX does nothing, and there is nothing to do here */
        if (w->row.kind == NODE_DIR && target->row.kind != NODE_DIR)
                return RES_NOT_DIR;
        if (w->row.kind != NODE_DIR && target->row.kind == NODE_DIR)
                return RES_IS_DIR;
        x->replaced_version = target->row.version;
        return drop_name(x, e2, target, &op->replaced_version);
}

static int decide_rename(struct opx *x) {
        const struct op *op = x->op;
        struct work *w, *from, *to;
        struct entry_row e, e2;
        TRY(new_name_code(x, op->name2, op->name2_bytes));
        TRY(live_node(x, &op->node, &w));
        TRY(own_name(x, &op->parent, op->name, op->name_bytes, &op->placement, w, &from, &e));
        TRY(target_dir(x, &op->parent2, &to));
        int r = name_get(x, &to->row.id, op->name2, op->name2_bytes, &e2);
        if (r < 0)
                return r;
        bool taken = r > 0;
        if (op->flags & OPF_EXCHANGE) {
                struct work *replaced;
                if (!taken)
                        return RES_NOT_FOUND;
                r = opx_work(x, &op->replaced, &replaced);
                if (r < 0)
                        return r;
                if (r == 0 || !id_equal(&replaced->row.id, &e2.node)) {
                        r = opx_work(x, &e2.node, &replaced);
                        return r < 0 ? r : RES_STALE;
                }
                return rename_exchange(x, w, from, &e, to, &e2);
        }
        if (w->row.kind == NODE_DIR)
                TRY(no_cycle(x, to->row.id, &w->row.id));
        bool same = taken && e2.entry_id == e.entry_id;
        if (taken && !same)
                TRY(rename_over(x, w, &e2));
        if (opx_remove_name(x, &e, w) < 0 || opx_add_name(x, to, op->name2, op->name2_bytes, w) < 0)
                return -ENOMEM;
        w->row.ctime_ns = opx_ctime(x, w, x->when_ns);
        opx_touch_dir(x, from);
        opx_touch_dir(x, to);
        return RES_OK;
}

/* Directories that hold a name of the node get the time of an atomic save, which renames over it. */
static int touch_parents(struct opx *x, struct work *w) {
        const struct entry_row *names;
        size_t n;
        int r = entries_get(x->db, x->s->ws, &w->row.id, x->a, &names, &n);
        for (size_t i = 0; r == 0 && i < n && i < 4; i++) {
                struct work *dir;
                r = opx_work(x, &names[i].parent, &dir);
                if (r > 0) {
                        opx_touch_dir(x, dir);
                        r = 0;
                }
        }
        return r;
}

static int decide_replace(struct opx *x) {
        const struct op *op = x->op;
        struct work *w, *source = NULL, *parent = NULL;
        struct entry_row e;
        int r = content_target(x, &w);
        bool merged = r == RES_MERGED;
        if (r != RES_OK && !merged)
                return r;
        if (!id_is_zero(&op->source)) {
                r = opx_work(x, &op->source, &source);
                if (r < 0)
                        return r;
                if (source == w || (source && source->row.kind != NODE_FILE))
                        return RES_INVALID;
                if (source && source->row.deleted)
                        source = NULL;
        }
        if (source) {
                TRY(own_name(x, &op->parent, op->name, op->name_bytes, &op->placement, source, &parent, &e));
                TRY(drop_name(x, &e, source, id_is_zero(&op->replaced_version) ? NULL : &op->replaced_version));
                opx_touch_dir(x, parent);
                merged = false; /* the source's name has to go, so there is an event: take the version too */
        }
        if (merged)
                return RES_MERGED;
        x->merged_into = (struct id){ { 0 } };
        TRY(opx_set_content(x, w, &op->content));
        set_attrs(x, w);
        r = touch_parents(x, w);
        return r < 0 ? r : RES_OK;
}

int opx_decide(struct opx *x) {
        const struct op *op = x->op;
        if (id_is_zero(&op->id) || id_is_zero(&op->node))
                return RES_INVALID;
        if (id_equal(&op->node, &id_root) && op->kind != OP_ATTR)
                return op->kind == OP_CONTENT || op->kind == OP_REPLACE || op->kind == OP_LINK ? RES_IS_DIR : RES_INVALID;
        switch (op->kind) {
        case OP_CREATE: return decide_create(x);
        case OP_CONTENT: return decide_content(x);
        case OP_ATTR: return decide_attr(x);
        case OP_LINK: return decide_link(x);
        case OP_UNLINK: return decide_unlink(x);
        case OP_RENAME: return decide_rename(x);
        case OP_REPLACE: return decide_replace(x);
        }
        return RES_UNSUPPORTED;
}
