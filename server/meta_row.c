/* SPDX-License-Identifier: Apache-2.0 */
/* meta_row.c: database rows to model rows and back, look-ups by key, paths.
 *
 * On disk: ids and hashes are blobs; a symlink's target is a blob with its NUL; extended attributes are one blob of { u8 name bytes, name, NUL, u32 LE value bytes,
 * value }; 64-bit unsigned values are stored as signed ones of the same bits. What a statement gives is copied into the caller's arena. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "api/wire.h"
#include "meta_int.h"

int xattrs_pack(const struct xattr *x, size_t n, struct arena *a, const void **ret, size_t *ret_n) {
        if (n == 0) {
                *ret = NULL;
                *ret_n = 0;
                return 0;
        }
        size_t bytes = 0;
        for (size_t i = 0; i < n; i++)
                bytes += 1 + strlen(x[i].name) + 1 + 4 + x[i].value_bytes;
        uint8_t *p = arena_alloc(a, bytes), *at = p;
        if (!p)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                size_t k = strlen(x[i].name);
                assert(k <= 255);
                *at++ = (uint8_t)k;
                memcpy(at, x[i].name, k + 1);
                at += k + 1;
                for (int b = 0; b < 4; b++)
                        *at++ = (uint8_t)(x[i].value_bytes >> 8 * b);
                if (x[i].value_bytes)
                        memcpy(at, x[i].value, x[i].value_bytes);
                at += x[i].value_bytes;
        }
        *ret = p;
        *ret_n = bytes;
        return 0;
}

/* p is in the arena. */
static int xattrs_unpack(const uint8_t *p, size_t n, struct arena *a, const struct xattr **ret, size_t *ret_n) {
        size_t count = 0;
        for (int pass = 0; pass < 2; pass++) {
                struct xattr *x = pass ? arena_alloc(a, count * sizeof *x) : NULL;
                if (pass && !x)
                        return -ENOMEM;
                size_t i = 0;
                for (size_t at = 0; at < n; i++) {
                        size_t k = p[at];
                        if (n - at < 1 + k + 1 + 4 || p[at + 1 + k] != 0)
                                return -EBADMSG;
                        const uint8_t *len = p + at + 1 + k + 1;
                        uint32_t bytes = (uint32_t)len[0] | (uint32_t)len[1] << 8 | (uint32_t)len[2] << 16 | (uint32_t)len[3] << 24;
                        if (n - at - (1 + k + 1 + 4) < bytes)
                                return -EBADMSG;
                        if (x)
                                x[i] = (struct xattr){ .name = (const char *)p + at + 1, .value = len + 4, .value_bytes = bytes };
                        at += 1 + k + 1 + 4 + bytes;
                }
                count = i;
                if (pass) {
                        *ret = x;
                        *ret_n = count;
                }
        }
        return 0;
}

static int copy_blob(struct sql *db, struct sql_stmt *st, int at, struct arena *a, const void **ret, size_t *ret_n) {
        const void *p = sql_blob(db, st, at, ret_n);
        if (!p) {
                *ret = NULL;
                return 0;
        }
        void *copy = arena_alloc(a, *ret_n);
        if (!copy)
                return -ENOMEM;
        memcpy(copy, p, *ret_n);
        *ret = copy;
        return 0;
}

int node_from(struct sql *db, struct sql_stmt *st, struct arena *a, struct node_row *ret) {
        struct node_row row = { .kind = (enum node_kind)sql_int(db, st, 1) };
        sql_get_id(db, st, 0, &row.id);
        row.mode = (uint32_t)sql_int(db, st, 2);
        row.uid = (uint32_t)sql_int(db, st, 3);
        row.gid = (uint32_t)sql_int(db, st, 4);
        row.rdev = (uint64_t)sql_int(db, st, 5);
        row.mtime_ns = sql_int(db, st, 6);
        row.ctime_ns = sql_int(db, st, 7);
        row.btime_ns = sql_int(db, st, 8);
        const void *p;
        size_t n;
        int r = copy_blob(db, st, 9, a, &p, &n);
        if (r < 0)
                return r;
        row.target = p;
        if (p && row.target[n - 1] != 0)
                return -EBADMSG;
        r = copy_blob(db, st, 10, a, &p, &n);
        if (r == 0 && p)
                r = xattrs_unpack(p, n, a, &row.xattrs, &row.n_xattrs);
        if (r < 0)
                return r;
        sql_get_digest(db, st, 11, &row.content.root);
        row.content.size = (uint64_t)sql_int(db, st, 12);
        row.content.depth = (uint8_t)sql_int(db, st, 13);
        row.content.param = (uint8_t)sql_int(db, st, 14);
        sql_get_id(db, st, 15, &row.version);
        row.seq = (uint64_t)sql_int(db, st, 16);
        row.deleted = sql_int(db, st, 17) != 0;
        *ret = row;
        return 0;
}

int entry_from(struct sql *db, struct sql_stmt *st, struct arena *a, struct entry_row *ret) {
        struct entry_row e = { .entry_id = (uint64_t)sql_int(db, st, 0), .seq = (uint64_t)sql_int(db, st, 5) };
        sql_get_id(db, st, 1, &e.parent);
        const void *name = sql_blob(db, st, 2, &e.name_bytes);
        if (!name)
                return -EBADMSG;
        e.name = arena_strndup(a, name, e.name_bytes);
        if (!e.name)
                return -ENOMEM;
        sql_get_id(db, st, 3, &e.node);
        sql_get_id(db, st, 4, &e.placement);
        *ret = e;
        return 0;
}

int node_get(struct sql *db, uint64_t ws, const struct id *id, struct arena *a, struct node_row *ret) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT " NODE_COLUMNS " FROM node WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)ws, id);
        if (r <= 0)
                return r;
        r = node_from(db, st, a, ret);
        sql_reset(db, st);
        return r < 0 ? r : 1;
}

int alias_get(struct sql *db, uint64_t ws, struct id *id) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT node FROM alias WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)ws, id);
        if (r <= 0)
                return r;
        struct id to;
        sql_get_id(db, st, 0, &to);
        sql_reset(db, st);
        *id = to;
        return 1;
}

int entry_get(struct sql *db, uint64_t ws, const struct id *parent, const void *name, size_t n, struct arena *a, struct entry_row *ret) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT " ENTRY_COLUMNS " FROM entry WHERE workspace = ?1 AND parent = ?2 AND name = ?3", "iDb", (int64_t)ws, parent, name, n);
        if (r <= 0)
                return r;
        r = entry_from(db, st, a, ret);
        sql_reset(db, st);
        return r < 0 ? r : 1;
}

int entry_get_folded(struct sql *db, uint64_t ws, const struct id *parent, const void *fold, size_t n, struct arena *a, struct entry_row *ret) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT " ENTRY_COLUMNS " FROM entry WHERE workspace = ?1 AND parent = ?2 AND fold = ?3", "iDb", (int64_t)ws, parent, fold, n);
        if (r <= 0)
                return r;
        r = entry_from(db, st, a, ret);
        sql_reset(db, st);
        return r < 0 ? r : 1;
}

int entries_get(struct sql *db, uint64_t ws, const struct id *node, struct arena *a, const struct entry_row **ret, size_t *ret_n) {
        struct sql_stmt *st;
        int r = sql_stmt(db, &st, "SELECT " ENTRY_COLUMNS " FROM entry WHERE workspace = ?1 AND node = ?2 ORDER BY id", "iD", (int64_t)ws, node);
        if (r < 0)
                return r;
        struct entry_row *list = NULL;
        size_t n = 0, room = 0;
        while ((r = sql_step(db, st)) > 0) {
                if (n == room) {
                        room = room ? room * 4 : 1;
                        struct entry_row *more = arena_alloc(a, room * sizeof *more);
                        if (!more) {
                                r = -ENOMEM;
                                break;
                        }
                        if (n)
                                memcpy(more, list, n * sizeof *more);
                        list = more;
                }
                r = entry_from(db, st, a, &list[n]);
                if (r < 0)
                        break;
                n++;
        }
        sql_reset(db, st);
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = n;
        return 0;
}

int change_get(struct sql *db, uint64_t ws, const struct id *node, struct arena *a, struct change *ret) {
        struct change c = { .has_entries = true };
        struct id id = *node;
        int r = node_get(db, ws, &id, a, &c.node);
        if (r == 0 && (r = alias_get(db, ws, &id)) > 0)
                r = node_get(db, ws, &id, a, &c.node);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        r = entries_get(db, ws, &id, a, &c.entries, &c.n_entries);
        if (r < 0)
                return r;
        *ret = c;
        return 0;
}

int event_origin(struct sql *db, uint64_t ws, uint64_t seq, struct arena *a, const char **ret_actor, const char **ret_device, int64_t *ret_time_ns) {
        struct sql_stmt *st;
        int r = sql_first(db, &st,
                          "SELECT e.time_ns, coalesce(a.name, ''), coalesce(d.name, '') FROM event e LEFT JOIN account a ON a.id = e.actor"
                          " LEFT JOIN device d ON d.id = e.device WHERE e.workspace = ?1 AND e.seq = ?2", "ii", (int64_t)ws, (int64_t)seq);
        if (r < 0)
                return r;
        const char *actor = r ? sql_text(db, st, 1) : "", *device = r ? sql_text(db, st, 2) : "";
        *ret_time_ns = r ? sql_int(db, st, 0) : 0;
        *ret_actor = arena_strndup(a, actor, strlen(actor));
        *ret_device = arena_strndup(a, device, strlen(device));
        sql_reset(db, st);
        return *ret_actor && *ret_device ? 0 : -ENOMEM;
}

int names_valid(const char *name) {
        size_t n = strnlen(name, META_NAME_MAX + 1);
        if (n == 0 || n > META_NAME_MAX || name[0] == '.' || name[0] == '-')
                return -EINVAL;
        return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-@") == n ? 0 : -EINVAL;
}

int path_split(const char *path, struct arena *a, struct path *ret) {
        size_t room = 1;
        for (const char *p = path; *p; p++)
                room += *p == '/';
        struct path out = { .names = arena_alloc(a, room * sizeof *out.names) };
        if (!out.names)
                return -ENOMEM;
        for (const char *p = path; *p;) {
                size_t n = strcspn(p, "/");
                if (n > 0) {
                        int r = name_check(p, n);
                        if (r < 0)
                                return r;
                        out.names[out.n] = arena_strndup(a, p, n);
                        if (!out.names[out.n++])
                                return -ENOMEM;
                }
                p += n + (p[n] == '/');
        }
        *ret = out;
        return 0;
}

int path_walk(struct sql *db, uint64_t ws, const struct path *p, struct arena *a, struct node_row *ret_row, size_t *ret_depth) {
        struct node_row row;
        int r = node_get(db, ws, &id_root, a, &row);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        size_t i;
        for (i = 0; i < p->n; i++) {
                if (row.kind != NODE_DIR)
                        return -ENOTDIR;
                struct entry_row e;
                r = entry_get(db, ws, &row.id, p->names[i], strlen(p->names[i]), a, &e);
                if (r < 0)
                        return r;
                if (r == 0)
                        break;
                r = node_get(db, ws, &e.node, a, &row);
                if (r <= 0)
                        return r < 0 ? r : -EBADMSG;
        }
        *ret_row = row;
        *ret_depth = i;
        return 0;
}
