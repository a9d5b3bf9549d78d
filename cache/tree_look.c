/* SPDX-License-Identifier: Apache-2.0 */
/* tree_look.c: the verbs that look. Each takes a read connection from the pool, asks one statement, and gives the connection back: it never waits for a writer.
 *
 * A listing is read in runs of LIST_ROWS with no connection or lock held while the caller works on a run; it goes on after the last cookie, so entries that come or
 * go meanwhile are shown or not, and none is shown twice.
 *
 * Until the first load is complete, a name that is not here may well be on the server: -EHOSTDOWN, never -ENOENT. Directories made here are complete
 * from the start. */
#include "conflict.h"
#include "tree_priv.h"

#include <assert.h>

#define LIST_ROWS 256
#define PATH_DEPTH_MAX 4096

int tree_get(struct tree *t, uint64_t ino, struct node *ret) {
        TREE_READ(rd, t);
        struct nrow row;
        int r = row_get(t, rd.db, ino, &row);
        if (r == 0)
                row_public(t, &row, ret);
        return r;
}

int tree_lookup(struct tree *t, uint64_t dir, const char *name, size_t n, struct node *ret) {
        TREE_READ(rd, t);
        struct nrow row;
        struct node node;
        struct db_stmt *s;
        int r = db_query(rd.db, &s, "SELECT " NODE_COLS " FROM entry e JOIN node n ON n.ino=e.node WHERE e.parent=? AND e.name=?", "it", (int64_t)dir, name, n);
        if (r > 0) {
                row_read(s, 0, &row);
                db_reset(s);
                row_public(t, &row, ret);
                return 0;
        }
        if (r == 0) { /* why not */
                r = row_get(t, rd.db, dir, &row);
                if (r == 0) {
                        row_public(t, &row, &node);
                        r = node.kind != NODE_DIR ? -ENOTDIR : node.loaded ? -ENOENT : -EHOSTDOWN;
                }
        }
        return r;
}

int tree_find_id(struct tree *t, const struct id *id, uint64_t *ret_ino) {
        TREE_READ(rd, t);
        return row_find_here(t, rd.db, id, ret_ino);
}

int tree_ids_now(struct tree *t, struct op *io_op) {
        TREE_READ(rd, t);
        struct id *const ids[] = { &io_op->node, &io_op->parent, &io_op->parent2, &io_op->replaced, &io_op->source };
        for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
                _cleanup_stmt_ struct db_stmt *s = NULL;
                int r = id_is_zero(ids[i]) ? 0 : db_query(rd.db, &s, "SELECT n.id FROM alias a JOIN node n ON n.ino=a.ino WHERE a.id=? AND a.local = 0", "I", ids[i]);
                if (r < 0)
                        return r;
                if (r > 0)
                        *ids[i] = db_col_id(s, 0);
        }
        return 0;
}

static int read_run(struct tree *t, uint64_t dir, uint64_t after, struct tree_entry *list, size_t *ret_n) {
        TREE_READ(rd, t);
        struct db_stmt *s;
        size_t n = 0;
        int r = db_query(rd.db, &s, "SELECT " NODE_COLS ",e.cookie,e.name FROM entry e JOIN node n ON n.ino=e.node WHERE e.parent=? AND e.cookie>? ORDER BY e.cookie LIMIT ?", "iii",
                         (int64_t)dir, (int64_t)after, (int64_t)LIST_ROWS);
        while (r > 0) {
                struct nrow row;
                size_t bytes;
                row_read(s, 0, &row);
                const char *name = db_col_text(s, NODE_COLS_N + 1, &bytes);
                if (!name || bytes > NAME_BYTES_MAX) {
                        db_reset(s);
                        return -EBADMSG;
                }
                list[n].cookie = (uint64_t)db_col_int(s, NODE_COLS_N);
                memcpy(list[n].name, name, bytes);
                list[n].name[bytes] = 0;
                list[n].name_bytes = bytes;
                row_public(t, &row, &list[n++].node);
                r = db_step(s);
        }
        *ret_n = n;
        return r;
}

int tree_list(struct tree *t, uint64_t dir, uint64_t after, int (*each)(void *arg, const struct tree_entry *e), void *arg) {
        struct node node;
        int r = tree_get(t, dir, &node);
        if (r < 0)
                return r;
        if (node.kind != NODE_DIR)
                return -ENOTDIR;
        if (!node.loaded)
                return -EHOSTDOWN;
        _cleanup_free_ struct tree_entry *list = malloc(LIST_ROWS * sizeof(*list));
        if (!list)
                return -ENOMEM;
        for (;;) {
                size_t n;
                r = read_run(t, dir, after, list, &n);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < n; i++) {
                        r = each(arg, &list[i]);
                        if (r != 0)
                                return r < 0 ? r : 0;
                }
                if (n < LIST_ROWS)
                        return 0;
                after = list[n - 1].cookie;
        }
}

/* The packed column of a node; the arena owns it. */
static int read_extra(struct tree *t, uint64_t ino, struct arena *a, enum node_kind *ret_kind, const char **ret_target, const struct xattr **ret, size_t *ret_n) {
        TREE_READ(rd, t);
        struct db_stmt *s;
        int r = db_query(rd.db, &s, "SELECT mode, extra FROM node WHERE ino=?", "i", (int64_t)ino);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        size_t n;
        const void *p = db_col_blob(s, 1, &n);
        *ret_kind = (enum node_kind)(db_col_int(s, 0) >> 12);
        r = extra_unpack(a, p, n, ret_target, ret, ret_n);
        db_reset(s);
        return r;
}

int tree_readlink(struct tree *t, uint64_t ino, struct buf *ret) {
        _cleanup_arena_ struct arena *a = NULL;
        const struct xattr *x;
        const char *target;
        enum node_kind kind;
        size_t n;
        int r = arena_new(1u << 20, &a);
        if (r == 0)
                r = read_extra(t, ino, a, &kind, &target, &x, &n);
        if (r < 0)
                return r;
        return kind != NODE_SYMLINK || !target ? -EINVAL : buf_add_str(ret, target);
}

int tree_xattr_get(struct tree *t, uint64_t ino, const char *name, struct buf *ret) {
        _cleanup_arena_ struct arena *a = NULL;
        const struct xattr *x;
        const char *target;
        enum node_kind kind;
        size_t n;
        int r = arena_new(1u << 20, &a);
        if (r == 0)
                r = read_extra(t, ino, a, &kind, &target, &x, &n);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (strcmp(x[i].name, name) == 0)
                        return buf_add(ret, x[i].value, x[i].value_bytes);
        return -ENODATA;
}

int tree_xattr_list(struct tree *t, uint64_t ino, struct buf *ret) {
        _cleanup_arena_ struct arena *a = NULL;
        const struct xattr *x;
        const char *target;
        enum node_kind kind;
        size_t n = 0;
        int r = arena_new(1u << 20, &a);
        if (r == 0)
                r = read_extra(t, ino, a, &kind, &target, &x, &n);
        for (size_t i = 0; i < n && r == 0; i++)
                if (!conflict_is_mark(x[i].name)) /* programs that copy attributes must not copy that */
                        r = buf_add(ret, x[i].name, strlen(x[i].name) + 1);
        return r;
}

int tree_path(struct tree *t, uint64_t ino, struct buf *ret) {
        TREE_READ(rd, t);
        _cleanup_arena_ struct arena *a = NULL;
        struct part { const char *name; size_t n; struct part *up; } *list = NULL;
        int r = arena_new(4u << 20, &a);
        for (unsigned depth = 0; r == 0 && ino != INO_ROOT; depth++) {
                struct db_stmt *s;
                if (depth == PATH_DEPTH_MAX)
                        return -ELOOP;
                r = db_query(rd.db, &s, "SELECT e.parent,e.name FROM node n JOIN entry e ON e.parent=n.parent AND e.cookie=n.cookie WHERE n.ino=?", "i", (int64_t)ino);
                if (r <= 0)
                        return r < 0 ? r : -ENOENT;
                struct part *p = arena_alloc(a, sizeof(*p));
                const char *name = db_col_text(s, 1, p ? &p->n : NULL);
                if (p)
                        p->name = arena_strndup(a, name, p->n);
                ino = (uint64_t)db_col_int(s, 0);
                db_reset(s);
                r = p && p->name ? 0 : -ENOMEM;
                if (r == 0) {
                        p->up = list;
                        list = p;
                }
        }
        for (struct part *p = list; p && r == 0; p = p->up) {
                r = buf_add(ret, p->name, p->n);
                if (r == 0 && p->up)
                        r = buf_add(ret, "/", 1);
        }
        return r;
}

int tree_pending_files(struct tree *t, int (*each)(void *arg, const struct node *n), void *arg) {
        TREE_READ(rd, t);
        struct db_stmt *s;
        int r = db_query(rd.db, &s, "SELECT " NODE_COLS " FROM node n WHERE n.ino IN (SELECT ino FROM outbox UNION SELECT ino2 FROM outbox WHERE ino2>0) AND n.mode >> 12 = 1 AND n.parent > 0", "");
        while (r > 0) {
                struct nrow row;
                struct node node;
                row_read(s, 0, &row);
                row_public(t, &row, &node);
                int k = each(arg, &node);
                if (k != 0) {
                        db_reset(s);
                        return MIN(k, 0);
                }
                r = db_step(s);
        }
        return r;
}
