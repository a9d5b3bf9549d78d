/* SPDX-License-Identifier: Apache-2.0 */
/* tree_conflict.c: which files are conflict copies, and of what.
 *
 * The mark is an extended attribute of the copy, user.tarn.conflict, one line of text:
 *
 *   1 COPY ORIGINAL VERSION HOST     ids in hexadecimal: the copy's own node, the node that has the name, the version of it that was there first (zeros: unknown)
 *
 * Why there and not in a table of this client: it is made in the transaction that makes the copy (or gives it its conflict name), so the copy is listed before the name
 * shows the other version, whatever happens in between; it goes to the server with the copy, so every client lists the same conflicts, also after the loss of this
 * disk; and it goes when the copy goes. It is not listed by listxattr, so programs do not copy it, and a mark that names another node (a server-side copy) counts for nothing.
 *
 *   listed       a mark that names its own node, and one of the node's names still is a conflict name
 *   not listed   removed; renamed by hand; mark removed ("keep both")
 *
 * Bit NB_CONFLICT of a node says that it has such an attribute: a partial index finds those few among millions of rows.
 *
 * A program that saves a marked copy by rename-over keeps the mark; renaming the copy over its original takes it off and makes the copy's bytes the original's new
 * version (tree_rename.c). */
#include "conflict.h"
#include "tree_priv.h"

#include <stdio.h>
#include <string.h>

#define MARK "user.tarn.conflict"
#define MARK_BYTES_MAX (3 * 2 * ID_BYTES + 8 + CONFLICT_HOST_MAX)

bool conflict_is_mark(const char *name) {
        return strcmp(name, MARK) == 0;
}

static int find_mark(struct arena *a, const uint8_t *extra, size_t n, struct conflict_mark *ret) {
        const struct xattr *x;
        const char *target;
        size_t count;
        int r = extra_unpack(a, extra, n, &target, &x, &count);
        for (size_t i = 0; i < count && r == 0; i++) {
                char text[MARK_BYTES_MAX + 1];
                struct conflict_mark m = { 0 };
                struct id *const ids[] = { &m.copy, &m.original, &m.version };
                if (!conflict_is_mark(x[i].name) || x[i].value_bytes > MARK_BYTES_MAX)
                        continue;
                memcpy(text, x[i].value, x[i].value_bytes);
                text[x[i].value_bytes] = 0;
                if (x[i].value_bytes < 2 + 3 * (2 * ID_BYTES + 1) || memcmp(text, "1 ", 2) != 0)
                        return 0;
                char *p = text + 2;
                for (size_t k = 0; k < ARRAY_SIZE(ids); k++, p += 2 * ID_BYTES + 1) {
                        if (p[2 * ID_BYTES] != ' ')
                                return 0;
                        p[2 * ID_BYTES] = 0;
                        if (hex_decode(p, ids[k]->b, ID_BYTES) < 0)
                                return 0;
                }
                (void)snprintf(m.host, sizeof(m.host), "%s", p);
                *ret = m;
                return 1;
        }
        return r;
}

int conflict_mark_get(struct tree *t, const struct nrow *row, struct conflict_mark *ret) {
        return find_mark(t->scratch, row->v.extra, row->v.extra_n, ret);
}

int conflict_mark_set(struct tree *t, struct nrow *row, const struct conflict_mark *mark) {
        const struct xattr *old;
        const char *target;
        size_t n, k = 0, total = 0;
        char ids[3][2 * ID_BYTES + 1], *text = arena_alloc(t->scratch, MARK_BYTES_MAX + 1);
        int r = extra_unpack(t->scratch, row->v.extra, row->v.extra_n, &target, &old, &n);
        struct xattr *list = r == 0 ? arena_alloc(t->scratch, (n + 1) * sizeof(*list)) : NULL;
        if (r < 0 || !list || !text)
                return r < 0 ? r : -ENOMEM;
        for (size_t i = 0; i < n; i++)
                if (!conflict_is_mark(old[i].name)) {
                        list[k++] = old[i];
                        total += strlen(old[i].name) + old[i].value_bytes;
                }
        if (mark) {
                hex_encode(mark->copy.b, ID_BYTES, ids[0]);
                hex_encode(mark->original.b, ID_BYTES, ids[1]);
                hex_encode(mark->version.b, ID_BYTES, ids[2]);
                const size_t bytes = (size_t)snprintf(text, MARK_BYTES_MAX + 1, "1 %s %s %s %s", ids[0], ids[1], ids[2], mark->host);
                if (total + sizeof(MARK) + bytes > XATTR_TOTAL_MAX) /* full of other attributes: the name alone has to tell */
                        return 0;
                list[k++] = (struct xattr){ .name = MARK, .value = text, .value_bytes = (uint32_t)bytes };
        }
        return extra_pack(t->scratch, target, list, k, &row->v.extra, &row->v.extra_n);
}

int conflict_mark_make(struct tree *t, struct nrow *copy, const struct id *original, const struct id *version, const char *host) {
        struct conflict_mark m = { .copy = copy->id, .original = *original, .version = *version };
        (void)conflict_host(host, m.host);
        return conflict_mark_set(t, copy, &m);
}

/* ---- looking ---- */

struct found { struct nrow row; struct conflict_mark mark; uint64_t parent; const char *name; size_t n; };

/* A name of the node that is a conflict name: 1, 0. */
static int conflict_entry(struct db *db, struct arena *a, struct found *f) {
        struct db_stmt *s;
        struct conflict_suffix suffix;
        int r = db_query(db, &s, "SELECT parent,name FROM entry WHERE parent=?1 AND cookie=?2 UNION ALL SELECT parent,name FROM entry WHERE node=?3 AND bits >= 2", "iii",
                         (int64_t)f->row.parent, (int64_t)f->row.cookie, (int64_t)f->row.ino);
        for (; r > 0; r = db_step(s)) {
                const char *name = db_col_text(s, 1, &f->n);
                if (!name || !conflict_parse(name, f->n, &suffix))
                        continue;
                f->parent = (uint64_t)db_col_int(s, 0);
                f->name = arena_strndup(a, name, f->n);
                db_reset(s);
                return f->name ? 1 : -ENOMEM;
        }
        return r;
}

static int find_all(struct tree *t, struct arena *a, struct found **ret, size_t *ret_n) {
        TREE_READ(rd, t);
        struct db_stmt *s;
        struct found *list = NULL;
        size_t n = 0, room = 0, kept = 0;
        int r = db_query(rd.db, &s, "SELECT " NODE_COLS ",n.extra FROM node n WHERE n.bits & 64 AND n.cookie > 0 ORDER BY n.ino", "");
        for (; r > 0; r = db_step(s)) {
                struct found f = { 0 };
                size_t bytes;
                row_read(s, 0, &f.row);
                const void *extra = db_col_blob(s, NODE_COLS_N, &bytes);
                r = find_mark(a, extra, bytes, &f.mark);
                if (r == 0 || (r > 0 && !id_equal(&f.mark.copy, &f.row.id)))
                        continue;
                if (r > 0 && n == room) {
                        const size_t more = room ? 2 * room : 16;
                        struct found *p = arena_alloc(a, more * sizeof(*p));
                        if (p && n)
                                memcpy(p, list, n * sizeof(*p));
                        list = p;
                        room = more;
                        r = p ? 1 : -ENOMEM;
                }
                if (r < 0) {
                        db_reset(s);
                        break;
                }
                list[n++] = f;
        }
        for (size_t i = 0; i < n && r >= 0; i++) {
                r = conflict_entry(rd.db, a, &list[i]);
                if (r > 0)
                        list[kept++] = list[i];
        }
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = kept;
        return 0;
}

/* What has the name: the node that had it first, wherever it is now; if that is gone, what is called so beside the copy. */
static int find_original(struct tree *t, const struct found *f, struct node *ret) {
        char plain[NAME_BYTES_MAX + 1];
        uint64_t ino;
        *ret = (struct node){ 0 };
        int r = tree_find_id(t, &f->mark.original, &ino);
        if (r == 0)
                r = tree_get(t, ino, ret);
        if (r == 0 && !ret->unlinked && ret->parent && ino != f->row.ino)
                return 0;
        if (r < 0 && r != -ENOENT)
                return r;
        conflict_plain(f->name, f->n, plain);
        r = tree_lookup(t, f->parent, plain, strlen(plain), ret);
        if (r < 0)
                *ret = (struct node){ 0 };
        return r == -ENOENT || r == -EHOSTDOWN ? 0 : r;
}

int tree_conflicts(struct tree *t, int (*each)(void *arg, const struct tree_conflict *c), void *arg) {
        _cleanup_arena_ struct arena *a = NULL;
        struct found *list;
        size_t n = 0;
        int r = arena_new(64u << 20, &a);
        if (r == 0)
                r = find_all(t, a, &list, &n);
        for (size_t i = 0; i < n && r == 0; i++) {
                struct tree_conflict c = { .parent = list[i].parent, .name = list[i].name, .version = list[i].mark.version, .host = list[i].mark.host };
                r = tree_get(t, list[i].row.ino, &c.copy);
                if (r == 0)
                        r = find_original(t, &list[i], &c.original);
                if (r == 0)
                        r = each(arg, &c);
                if (r == -ENOENT) /* gone meanwhile */
                        r = 0;
        }
        return r < 0 ? r : 0;
}

int tree_conflict_count(struct tree *t, uint64_t *ret) {
        _cleanup_arena_ struct arena *a = NULL;
        struct found *list;
        size_t n;
        int r = arena_new(64u << 20, &a);
        if (r == 0)
                r = find_all(t, a, &list, &n);
        if (r == 0)
                *ret = n;
        return r;
}
