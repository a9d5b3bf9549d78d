/* SPDX-License-Identifier: Apache-2.0 */
/* meta_read.c: what clients read: events, snapshot pages, one directory, single nodes, paths, versions. Each call is one consistent view.
 *
 * A cursor is believed only if epoch, seq and mark all fit: a server that was rolled back without saying so has other marks (or fewer events), and the client must
 * load anew instead of missing what it had. seq 0 has the mark zero. The horizon row keeps its mark after its event is gone.
 *
 * Snapshot pages are scans by key, nodes and names apart, no join; each names the counter at its moment. Pages of different moments meet on the client
 * through the events. */
#include <assert.h>
#include <string.h>

#include "meta_int.h"

/* 1 the cursor is on this workspace's line of events, 0 it is not, -errno. */
static int cursor_valid(struct sql *db, const struct meta_workspace *w, const struct cursor *c) {
        if (!id_equal(&c->epoch, &w->at.epoch) || c->seq > w->at.seq || c->seq < w->horizon)
                return 0;
        if (c->seq == w->at.seq)
                return memcmp(c->mark, w->at.mark, 8) == 0;
        struct sql_stmt *st;
        int r = c->seq == w->horizon ? sql_first(db, &st, "SELECT horizon_mark FROM workspace WHERE id = ?1", "i", (int64_t)w->ws)
                                     : sql_first(db, &st, "SELECT mark FROM event WHERE workspace = ?1 AND seq = ?2", "ii", (int64_t)w->ws, (int64_t)c->seq);
        if (r <= 0)
                return r;
        size_t n;
        const void *mark = sql_blob(db, st, 0, &n);
        r = mark && n == 8 && memcmp(mark, c->mark, 8) == 0;
        sql_reset(db, st);
        return r;
}

/* Up to which seq the line of a cursor that is not valid is also ours: 0 if nothing is known. */
static int fork_of(struct sql *db, const struct meta_workspace *w, const struct cursor *c, uint64_t *ret) {
        *ret = 0;
        if (id_equal(&c->epoch, &w->at.epoch))
                return 0;
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT fork_seq FROM epoch WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)w->ws, &c->epoch);
        if (r <= 0)
                return r;
        *ret = MIN((uint64_t)sql_int(db, st, 0), c->seq);
        sql_reset(db, st);
        return 0;
}

int meta_events(struct meta *m, uint64_t ws, const struct cursor *after, size_t max_events, size_t max_bytes, struct arena *a, struct meta_event **ret, size_t *ret_n,
                struct cursor *ret_upto, struct meta_workspace *ret_ws) {
        _cleanup_view_ struct view v = { m, NULL };
        struct meta_workspace w;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = space_read(v.db, ws, &w);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        *ret_ws = w;
        r = cursor_valid(v.db, &w, after);
        if (r == 0 && id_equal(&after->epoch, &w.at.epoch) && after->seq < w.horizon) { /* only forgotten: nothing says that the lines part */
                ret_ws->predecessor = (struct id){ { 0 } };
                ret_ws->fork_seq = 0;
                return -EIDRM;
        }
        if (r == 0) {
                ret_ws->predecessor = after->epoch;
                r = fork_of(v.db, &w, after, &ret_ws->fork_seq);
                return r < 0 ? r : -EIDRM;
        }
        if (r < 0)
                return r;
        size_t room = (size_t)MIN((uint64_t)max_events, w.at.seq - after->seq), n = 0, bytes = 0;
        struct meta_event *list = room ? arena_alloc(a, room * sizeof *list) : NULL;
        struct cursor upto = *after;
        struct sql_stmt *st = NULL;
        if (room && !list)
                return -ENOMEM;
        if (room) {
                r = sql_stmt(v.db, &st, "SELECT seq, mark, body FROM event WHERE workspace = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3", "iii", (int64_t)ws, (int64_t)after->seq,
                             (int64_t)room);
                if (r < 0)
                        return r;
                while (n < room && (r = sql_step(v.db, st)) > 0) {
                        size_t k, mark_n;
                        const void *body = sql_blob(v.db, st, 2, &k), *mark = sql_blob(v.db, st, 1, &mark_n);
                        if (!body || !mark || mark_n != 8) {
                                r = -EBADMSG;
                                break;
                        }
                        if (n > 0 && bytes + k > max_bytes)
                                break;
                        void *copy = arena_alloc(a, k);
                        if (!copy) {
                                r = n > 0 ? 0 : -ENOMEM;
                                break;
                        }
                        memcpy(copy, body, k);
                        list[n++] = (struct meta_event){ (uint64_t)sql_int(v.db, st, 0), copy, k };
                        bytes += k;
                        upto.seq = (uint64_t)sql_int(v.db, st, 0);
                        memcpy(upto.mark, mark, 8);
                }
                sql_reset(v.db, st);
                if (r < 0)
                        return r;
        }
        *ret = list;
        *ret_n = n;
        *ret_upto = upto;
        return 0;
}

/* ---- scans ---- */


static int scan_begin(struct meta *m, uint64_t ws, struct view *v, struct arena **ret_a, struct meta_page *page) {
        struct meta_workspace w;
        int r = view_begin(m, &v->db);
        if (r == 0)
                r = space_read(v->db, ws, &w);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        page->upto = w.at;
        return arena_new(4u << 20, ret_a);
}

int meta_snapshot_nodes(struct meta *m, uint64_t ws, const struct id *after, size_t limit, struct meta_sink *sink, struct meta_page *ret) {
        _cleanup_view_ struct view v = { m, NULL };
        _cleanup_arena_ struct arena *a = NULL;
        struct meta_page page = { .end = false };
        static const struct id none;
        int r = scan_begin(m, ws, &v, &a, &page);
        if (r < 0)
                return r;
        struct sql_stmt *st;
        r = sql_stmt(v.db, &st, "SELECT " NODE_COLUMNS " FROM node WHERE workspace = ?1 AND id > ?2 AND deleted = 0 ORDER BY id", "iD", (int64_t)ws, after ? after : &none);
        if (r < 0)
                return r;
        int full = 0;
        while (!full && page.count < limit && (r = sql_step(v.db, st)) > 0) {
                struct node_row row;
                r = node_from(v.db, st, a, &row);
                if (r < 0 || (r = full = sink->node(sink, &row)) < 0)
                        break;
                if (!full) {
                        page.count++;
                        page.last_id = row.id;
                }
                if (row.target || row.n_xattrs)
                        arena_reset(a);
        }
        /* One step beyond the limit tells whether this was the end. */
        if (r >= 0 && !full) {
                if (page.count == limit)
                        r = sql_step(v.db, st);
                page.end = r == 0;
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret = page;
        return 0;
}

int meta_snapshot_entries(struct meta *m, uint64_t ws, uint64_t after, size_t limit, struct meta_sink *sink, struct meta_page *ret) {
        _cleanup_view_ struct view v = { m, NULL };
        _cleanup_arena_ struct arena *a = NULL;
        struct meta_page page = { .end = false };
        int r = scan_begin(m, ws, &v, &a, &page);
        if (r < 0)
                return r;
        struct sql_stmt *st;
        r = sql_stmt(v.db, &st, "SELECT " ENTRY_COLUMNS " FROM entry WHERE workspace = ?1 AND id > ?2 ORDER BY id", "ii", (int64_t)ws, (int64_t)MIN(after, (uint64_t)INT64_MAX));
        if (r < 0)
                return r;
        int full = 0;
        while (!full && page.count < limit && (r = sql_step(v.db, st)) > 0) {
                struct entry_row e;
                r = entry_from(v.db, st, a, &e);
                if (r < 0 || (r = full = sink->entry(sink, &e)) < 0)
                        break;
                if (!full) {
                        page.count++;
                        page.last_entry = e.entry_id;
                }
                arena_reset(a);
        }
        if (r >= 0 && !full) {
                if (page.count == limit)
                        r = sql_step(v.db, st);
                page.end = r == 0;
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret = page;
        return 0;
}

int meta_dir(struct meta *m, uint64_t ws, const struct id *dir, struct meta_sink *sink, struct id *ret_dir, struct cursor *ret_at, uint64_t *ret_count) {
        _cleanup_view_ struct view v = { m, NULL };
        _cleanup_arena_ struct arena *a = NULL;
        struct meta_page page;
        struct node_row row;
        struct id id = *dir;
        int r = scan_begin(m, ws, &v, &a, &page);
        if (r < 0)
                return r;
        r = node_get(v.db, ws, &id, a, &row);
        if (r == 0 && (r = alias_get(v.db, ws, &id)) > 0)
                r = node_get(v.db, ws, &id, a, &row);
        if (r <= 0 || row.deleted)
                return r < 0 ? r : -ENOENT;
        if (row.kind != NODE_DIR)
                return -ENOTDIR;
        r = sink->node(sink, &row);
        if (r != 0)
                return r < 0 ? r : -EMSGSIZE;
        struct sql_stmt *st;
        r = sql_stmt(v.db, &st, "SELECT " ENTRY_COLUMNS " FROM entry WHERE workspace = ?1 AND parent = ?2 ORDER BY id", "iD", (int64_t)ws, &id);
        if (r < 0)
                return r;
        uint64_t count = 0;
        while ((r = sql_step(v.db, st)) > 0) {
                struct entry_row e;
                arena_reset(a);
                r = entry_from(v.db, st, a, &e);
                if (r == 0 && (r = node_get(v.db, ws, &e.node, a, &row)) == 0)
                        r = -EBADMSG;
                if (r > 0 && (r = sink->node(sink, &row)) == 0)
                        r = sink->entry(sink, &e);
                if (r != 0) {
                        r = r < 0 ? r : -EMSGSIZE;
                        break;
                }
                count++;
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret_dir = id;
        *ret_at = page.upto;
        *ret_count = count;
        return 0;
}

/* ---- single things ---- */

int meta_node(struct meta *m, uint64_t ws, const struct id *node, struct arena *a, struct change *ret) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        return r < 0 ? r : change_get(v.db, ws, node, a, ret);
}

int meta_resolve(struct meta *m, uint64_t ws, const char *path, struct arena *a, struct node_row *ret) {
        struct path p;
        int r = path_split(path, a, &p);
        if (r < 0)
                return r;
        _cleanup_view_ struct view v = { m, NULL };
        struct node_row row;
        size_t depth;
        r = view_begin(m, &v.db);
        if (r == 0)
                r = path_walk(v.db, ws, &p, a, &row, &depth);
        if (r < 0)
                return r;
        if (depth < p.n)
                return row.kind == NODE_DIR ? -ENOENT : -ENOTDIR;
        *ret = row;
        return 0;
}

static int version_add(struct sql *db, uint64_t ws, const struct node_row *row, bool latest, struct arena *a, struct meta_version *ret) {
        *ret = (struct meta_version){ .version = row->version, .content = row->content, .mtime_ns = row->mtime_ns, .seq = row->seq, .latest = latest };
        return event_origin(db, ws, row->seq, a, &ret->actor, &ret->device, &ret->time_ns);
}

int meta_versions(struct meta *m, uint64_t ws, const struct id *node, size_t max, struct arena *a, struct meta_version **ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        struct change c;
        r = change_get(v.db, ws, node, a, &c);
        if (r < 0)
                return r;
        if (c.node.kind != NODE_FILE)
                return c.node.kind == NODE_DIR ? -EISDIR : -EINVAL;
        /* Rows from new to old; of the rows that share a version the oldest is the one that made it. */
        size_t n = 0, room = MIN(max, (size_t)65536);
        struct node_row *rows = arena_alloc(a, (room + 1) * sizeof *rows);
        if (!rows)
                return -ENOMEM;
        rows[n++] = c.node;
        struct sql_stmt *st;
        r = sql_stmt(v.db, &st, "SELECT " NODE_COLUMNS " FROM revision WHERE workspace = ?1 AND id = ?2 AND deleted < 2 ORDER BY seq DESC", "iD", (int64_t)ws, &c.node.id);
        if (r < 0)
                return r;
        while ((r = sql_step(v.db, st)) > 0) {
                struct node_row row;
                r = node_from(v.db, st, a, &row);
                if (r < 0)
                        break;
                if (id_equal(&row.version, &rows[n - 1].version))
                        rows[n - 1] = row;
                else if (n < room)
                        rows[n++] = row;
                else
                        break;
        }
        sql_reset(v.db, st);
        struct meta_version *list = r < 0 ? NULL : arena_alloc(a, n * sizeof *list);
        for (size_t i = 0; list && r >= 0 && i < n; i++)
                r = version_add(v.db, ws, &rows[i], i == 0 && !c.node.deleted, a, &list[i]);
        if (r < 0)
                return r;
        if (!list)
                return -ENOMEM;
        *ret = list;
        *ret_n = MIN(n, max);
        return 0;
}
