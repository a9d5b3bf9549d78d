/* SPDX-License-Identifier: Apache-2.0 */
/* meta_check.c: the invariants of the database, checked.
 *
 *   tree      each name has a live node and lies in a live directory; each live node but the root has a name; a directory has one, and leads to the root
 *   versions  a node's latest columns are what its newest version says; revisions of a node follow each other without a gap; a trashed node has its last place
 *   log       the events from the horizon to seq are all there, once, in order of time, readable, and say of themselves what their row says; the newest event that
 *             names a node has the node's row; each has its operation, each operation its event; the mark on the workspace is that of the newest
 *   counters  seq, entry ids, nodes, used and reserved bytes are what the rows add up to
 *   blocks    each lies inside an object; what a version refers to has bytes that are not dead; lengths agree
 *   people    members, claims and tokens belong to somebody
 *
 * A row check is a query whose rows are the problems: (workspace, id, id, number). They run in one read transaction on a connection of their own, so that a
 * running server neither waits for them nor changes under them; its log of changes (WAL) cannot be emptied meanwhile and grows.
 * Contents of more than one block and the store are the caller's (maintain_fsck.c): they need bytes. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "api/wire.h"
#include "meta_int.h"
#include "meta_maintain.h"

struct meta_checker { struct meta *m; struct sql *db; bool own; };

int meta_checker_open(struct meta *m, struct meta_checker **ret) {
        struct meta_checker *k = calloc(1, sizeof *k);
        if (!k)
                return -ENOMEM;
        k->m = m;
        int r;
        if (m->in_memory) {
                r = view_begin(m, &k->db);
        } else {
                r = sql_sqlite_open(m->path, m->c.vfs, false, m->c.clock, &k->db);
                k->own = r == 0;
                if (r == 0)
                        r = sql_begin(k->db, false);
        }
        struct sql_stmt *st;
        if (r == 0 && (r = sql_first(k->db, &st, "SELECT count(*) FROM workspace", "")) > 0) { /* the first read fixes the moment */
                sql_reset(k->db, st);
                r = 0;
        }
        if (r < 0) {
                meta_checker_close(k);
                return r;
        }
        *ret = k;
        return 0;
}

void meta_checker_close(struct meta_checker *k) {
        if (!k)
                return;
        if (k->own) {
                sql_rollback(k->db);
                sql_close(k->db);
        } else if (k->db) {
                view_end(k->m, k->db);
        }
        free(k);
}

static const struct row_check { const char *kind, *text, *sql; bool root; } row_checks[] = {
        { "name_without_node", "a name leads to no live node (node, parent, entry)", "SELECT e.workspace, e.node, e.parent, e.id FROM entry e WHERE NOT EXISTS (SELECT 1 FROM node n WHERE n.workspace = e.workspace AND n.id = e.node AND n.deleted = 0)", false },
        { "name_without_directory", "a name lies in no live directory (directory is the second id; node, parent, entry)",
          "SELECT e.workspace, e.node, e.parent, e.id FROM entry e WHERE NOT EXISTS (SELECT 1 FROM node n WHERE n.workspace = e.workspace AND n.id = e.parent AND n.deleted = 0 AND n.kind = 2)",
          false },
        { "directory_with_names", "a directory has several names (node, count)",
          "SELECT e.workspace, e.node, NULL, count(*) FROM entry e JOIN node n ON n.workspace = e.workspace AND n.id = e.node WHERE n.kind = 2 GROUP BY e.workspace, e.node HAVING count(*) > 1", false },
        { "node_without_name", "a node has no name (node, kind)",
          "SELECT n.workspace, n.id, NULL, n.kind FROM node n WHERE n.deleted = 0 AND n.id <> ?1 AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.workspace = n.workspace AND e.node = n.id)", true },
        { "no_root", "there is no root directory", "SELECT w.id, NULL, NULL, 0 FROM workspace w WHERE NOT EXISTS (SELECT 1 FROM node n WHERE n.workspace = w.id AND n.id = ?1 AND n.deleted = 0 AND n.kind = 2)", true },
        { "directory_unreachable", "no way leads from the root to a directory (node)",
          "WITH RECURSIVE reach(ws, id) AS (SELECT w.id, ?1 FROM workspace w UNION SELECT e.workspace, e.node FROM reach JOIN entry e ON e.workspace = reach.ws AND e.parent = reach.id JOIN node n"
          " ON n.workspace = e.workspace AND n.id = e.node WHERE n.kind = 2 AND n.deleted = 0) SELECT n.workspace, n.id, NULL, 0 FROM node n WHERE n.kind = 2 AND n.deleted = 0"
          " AND EXISTS (SELECT 1 FROM entry e WHERE e.workspace = n.workspace AND e.node = n.id) AND (n.workspace, n.id) NOT IN (SELECT ws, id FROM reach)", true },
        { "entry_counter", "an entry's number is not below the counter (counter)",
          "SELECT w.id, NULL, NULL, w.entry_next FROM workspace w WHERE EXISTS (SELECT 1 FROM entry e WHERE e.workspace = w.id AND e.id >= w.entry_next)", false },
        { "row_from_the_future", "a row is newer than the workspace (node, seq)", "SELECT n.workspace, n.id, NULL, n.seq FROM node n JOIN workspace w ON w.id = n.workspace WHERE n.seq > w.seq"
          " UNION ALL SELECT e.workspace, e.node, e.parent, e.seq FROM entry e JOIN workspace w ON w.id = e.workspace WHERE e.seq > w.seq"
          " UNION ALL SELECT o.workspace, o.node, o.id, o.seq FROM operation o JOIN workspace w ON w.id = o.workspace WHERE o.seq > w.seq", false },
        { "revision_gap", "the history of a node has a gap (node, seq where it breaks)",
          "SELECT r.workspace, r.id, NULL, r.until_seq FROM revision r WHERE r.until_seq <= r.seq OR NOT (EXISTS (SELECT 1 FROM revision q WHERE q.workspace = r.workspace AND q.id = r.id AND"
          " q.seq = r.until_seq) OR EXISTS (SELECT 1 FROM node n WHERE n.workspace = r.workspace AND n.id = r.id AND n.seq = r.until_seq))", false },
        { "revision_without_node", "a revision of no node (node, seq)", "SELECT r.workspace, r.id, NULL, r.seq FROM revision r WHERE NOT EXISTS (SELECT 1 FROM node n WHERE"
          " n.workspace = r.workspace AND n.id = r.id)", false },
        { "trash_without_place", "a deleted node has no last place (node, seq)",
          "SELECT n.workspace, n.id, NULL, n.seq FROM node n WHERE n.deleted = 1 AND NOT EXISTS (SELECT 1 FROM entry_past p WHERE p.workspace = n.workspace AND p.node = n.id AND p.until_seq = n.seq)", false },
        { "version_without_operation", "a version is of no known operation (node, version, seq)",
          "SELECT n.workspace, n.id, n.version, n.seq FROM node n WHERE n.version IS NOT NULL AND NOT EXISTS (SELECT 1 FROM operation o WHERE o.workspace = n.workspace AND o.id = n.version)", false },
        { "content_columns", "the columns of a content contradict each other (node, seq)",
          "SELECT n.workspace, n.id, NULL, n.seq FROM node n WHERE n.size < 0 OR n.depth < 0 OR n.depth > 3 OR (n.kind <> 1 AND n.size > 0) OR (n.size > 0) <> (n.root IS NOT NULL)"
          " OR (n.kind = 1 AND n.deleted = 0 AND n.version IS NULL) OR (n.depth = 0 AND n.size > 2097152)", false },
        { "version_with_two_contents", "one version with two contents (node, version, seq)",
          "SELECT r.workspace, r.id, r.version, r.seq FROM revision r JOIN node n ON n.workspace = r.workspace AND n.id = r.id AND n.version = r.version WHERE n.deleted < 2 AND"
          " (n.size <> r.size OR n.depth <> r.depth OR coalesce(n.root, r.version) <> coalesce(r.root, r.version))", false },
        { "alias_without_node", "an id stands for no node (id, node)", "SELECT a.workspace, a.id, a.node, 0 FROM alias a WHERE NOT EXISTS (SELECT 1 FROM node n WHERE n.workspace = a.workspace AND n.id = a.node)", false },
        { "operation_without_event", "the event is not of its operation (node, operation, seq)",
          "SELECT o.workspace, o.node, o.id, o.seq FROM operation o JOIN workspace w ON w.id = o.workspace LEFT JOIN event e ON e.workspace = o.workspace AND e.seq = o.seq"
          " WHERE o.code = 0 AND o.seq > w.horizon AND (e.op IS NULL OR e.op <> o.id)", false },
        { "event_without_operation", "an event has no operation (operation, seq)",
          "SELECT e.workspace, e.op, NULL, e.seq FROM event e WHERE NOT EXISTS (SELECT 1 FROM operation o WHERE o.workspace = e.workspace AND o.id = e.op AND o.seq = e.seq)", false },
        { "event_gap", "events are missing (how many)",
          "SELECT w.id, NULL, NULL, w.seq - w.horizon - (SELECT count(*) FROM event e WHERE e.workspace = w.id AND e.seq > w.horizon AND e.seq <= w.seq) AS lacking FROM workspace w"
          " WHERE w.seq - w.horizon <> (SELECT count(*) FROM event e WHERE e.workspace = w.id AND e.seq > w.horizon)", false },
        { "event_time", "an event is older than the one before (operation, seq)", "SELECT e.workspace, e.op, NULL, e.seq FROM event e JOIN event p ON p.workspace = e.workspace AND p.seq = e.seq - 1"
          " WHERE e.time_ns < p.time_ns", false },
        { "mark", "the workspace's mark is not that of its newest event (seq)", "SELECT w.id, NULL, NULL, w.seq FROM workspace w JOIN event e ON e.workspace = w.id AND e.seq = w.seq WHERE e.mark <> w.mark", false },
        { "node_counter", "the counter of nodes is wrong (by)",
          "SELECT w.id, NULL, NULL, w.nodes - (SELECT count(*) FROM node n WHERE n.workspace = w.id AND n.deleted = 0) FROM workspace w"
          " WHERE w.nodes <> (SELECT count(*) FROM node n WHERE n.workspace = w.id AND n.deleted = 0)", false },
        { "used_bytes", "the used bytes are wrong (by)", "SELECT w.id, NULL, NULL, w.used - (SELECT coalesce(sum(b.raw), 0) FROM block_ref b WHERE b.workspace = w.id) FROM workspace w"
          " WHERE w.used <> (SELECT coalesce(sum(b.raw), 0) FROM block_ref b WHERE b.workspace = w.id)", false },
        { "reserved_bytes", "the reserved bytes are wrong (by)", "SELECT w.id, NULL, NULL, w.reserved - (SELECT coalesce(sum(c.raw), 0) FROM claim c WHERE c.workspace = w.id) FROM workspace w"
          " WHERE w.reserved <> (SELECT coalesce(sum(c.raw), 0) FROM claim c WHERE c.workspace = w.id)", false },
        { "block_outside_object", "a block does not lie in its object (block, object)",
          "SELECT 0, b.hash, NULL, b.object FROM block b LEFT JOIN object o ON o.id = b.object WHERE o.id IS NULL OR b.offset < 0 OR b.stored <= 0 OR b.offset + b.stored > o.bytes OR b.raw <= 0"
          " OR b.raw > 2097152", false },
        { "block_lost", "a version refers to a block whose bytes are gone (block, references)",
          "SELECT r.workspace, r.hash, NULL, r.refs FROM block_ref r LEFT JOIN block b ON b.hash = r.hash WHERE b.hash IS NULL OR b.dead_ns IS NOT NULL", false },
        { "block_damaged", "a block is damaged; whoever has its bytes may put them again (block, references)",
          "SELECT r.workspace, r.hash, NULL, r.refs FROM block b JOIN block_ref r ON r.hash = b.hash WHERE b.bad_ns IS NOT NULL AND b.dead_ns IS NULL", false },
        { "reference", "a reference of another length than its block, or none (block, references)", "SELECT r.workspace, r.hash, NULL, r.refs FROM block_ref r LEFT JOIN block b ON b.hash = r.hash"
          " WHERE r.refs <= 0 OR (b.raw IS NOT NULL AND b.raw <> r.raw)", false },
        { "content_without_reference", "a version names a block that nothing refers to (node, block, seq)",
          "SELECT n.workspace, n.id, n.root, n.seq FROM (SELECT workspace, id, root, seq, size FROM node UNION ALL SELECT workspace, id, root, seq, size FROM revision) AS n"
          " WHERE n.size > 0 AND NOT EXISTS (SELECT 1 FROM block_ref b WHERE b.workspace = n.workspace AND b.hash = n.root)", false },
        { "claim", "a claim of nobody (block, account)", "SELECT c.workspace, c.hash, NULL, c.account FROM claim c WHERE NOT EXISTS (SELECT 1 FROM account a WHERE a.id = c.account)"
          " OR NOT EXISTS (SELECT 1 FROM workspace w WHERE w.id = c.workspace) OR c.raw < 0", false },
        { "member", "a member is nobody (account)", "SELECT m.workspace, NULL, NULL, m.account FROM member m WHERE NOT EXISTS (SELECT 1 FROM account a WHERE a.id = m.account)"
          " OR NOT EXISTS (SELECT 1 FROM workspace w WHERE w.id = m.workspace)", false },
        { "owner", "the owner is nobody (account)", "SELECT w.id, NULL, NULL, w.owner FROM workspace w WHERE NOT EXISTS (SELECT 1 FROM account a WHERE a.id = w.owner)", false },
};

static void hex_of(struct sql *db, struct sql_stmt *st, int at, char ret[2 * DIGEST_BYTES + 1]) {
        size_t n;
        const void *p = sql_blob(db, st, at, &n);
        hex_encode(p, p ? MIN(n, (size_t)DIGEST_BYTES) : 0, ret);
}

static void tell(struct meta_report *report, const char *kind, int64_t ws, const char *fmt, ...) _printf_(4, 5);
static void tell(struct meta_report *report, const char *kind, int64_t ws, const char *fmt, ...) {
        char text[400];
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        report->problem(report, (uint64_t)ws, kind, text);
}

static int check_row(struct meta_checker *k, const struct row_check *c, struct meta_report *report) {
        struct sql_stmt *st;
        int r = c->root ? sql_stmt(k->db, &st, c->sql, "D", &id_root) : sql_stmt(k->db, &st, c->sql, "");
        if (r < 0)
                return r;
        while ((r = sql_step(k->db, st)) > 0) {
                char one[2 * DIGEST_BYTES + 1], two[2 * DIGEST_BYTES + 1];
                hex_of(k->db, st, 1, one);
                hex_of(k->db, st, 2, two);
                tell(report, c->kind, sql_int(k->db, st, 0), "%s: %s%s%s%s%lld", c->text, one, *one ? " " : "", two, *two ? " " : "", (long long)sql_int(k->db, st, 3));
        }
        sql_reset(k->db, st);
        return r;
}

/* ---- the log ---- */

/* 1: this is the newest event of the node, and the row is as the event says. */
static int check_change(struct meta_checker *k, uint64_t ws, const struct event *e, const struct node_row *n, struct arena *a, struct meta_report *report) {
        struct node_row row;
        char hex[2 * ID_BYTES + 1];
        int r = node_get(k->db, ws, &n->id, a, &row);
        hex_encode(n->id.b, ID_BYTES, hex);
        if (r < 0)
                return r;
        if (r == 0 || row.seq < e->seq) {
                tell(report, "event_without_row", (int64_t)ws, "event %llu changed node %s, the row %s", (unsigned long long)e->seq, hex, r ? "is older" : "is not there");
                return 0;
        }
        if (row.seq > e->seq)
                return 0;
        if (row.deleted != n->deleted || (!n->deleted && (row.kind != n->kind || row.mode != n->mode || row.mtime_ns != n->mtime_ns || !content_equal(&row.content, &n->content) ||
                                                          !id_equal(&row.version, &n->version))))
                tell(report, "event_and_row", (int64_t)ws, "event %llu and the row of node %s differ", (unsigned long long)e->seq, hex);
        return 1;
}

static int check_log(struct meta_checker *k, uint64_t ws, struct meta_report *report) {
        _cleanup_arena_ struct arena *a = NULL;
        struct sql_stmt *st, *rows;
        struct meta_workspace w;
        uint64_t newest = 0;
        int r = arena_new(64u << 20, &a);
        if (r == 0)
                r = space_read(k->db, ws, &w);
        if (r <= 0)
                return r;
        r = sql_stmt(k->db, &st, "SELECT seq, mark, op, time_ns, body FROM event WHERE workspace = ?1 AND seq > ?2 ORDER BY seq", "ii", (int64_t)ws, (int64_t)w.horizon);
        if (r < 0)
                return r;
        while ((r = sql_step(k->db, st)) > 0) {
                struct event e;
                struct id op;
                size_t n, m;
                const void *body = sql_blob(k->db, st, 4, &n), *mark = sql_blob(k->db, st, 1, &m);
                uint64_t seq = (uint64_t)sql_int(k->db, st, 0);
                arena_reset(a);
                sql_get_id(k->db, st, 2, &op);
                if (!body || wire_unpack_event(body, n, a, &e) < 0) {
                        tell(report, "event_unreadable", (int64_t)ws, "event %llu cannot be read", (unsigned long long)seq);
                        continue;
                }
                if (e.seq != seq || !id_equal(&e.op, &op) || e.time_ns != sql_int(k->db, st, 3) || !mark || m != 8 || memcmp(mark, e.mark, 8) != 0)
                        tell(report, "event_and_columns", (int64_t)ws, "event %llu says something else than its columns", (unsigned long long)seq);
                for (size_t i = 0; i < e.n_changes; i++) {
                        r = check_change(k, ws, &e, &e.changes[i].node, a, report);
                        if (r < 0)
                                break;
                        newest += (uint64_t)r;
                }
                if (r >= 0 && report->stopped(report))
                        r = -ECANCELED;
                if (r < 0)
                        break;
        }
        sql_reset(k->db, st);
        if (r < 0)
                return r;
        r = sql_first(k->db, &rows, "SELECT count(*) FROM node WHERE workspace = ?1 AND seq > ?2", "ii", (int64_t)ws, (int64_t)w.horizon);
        if (r <= 0)
                return r < 0 ? r : -EIO;
        uint64_t there = (uint64_t)sql_int(k->db, rows, 0);
        sql_reset(k->db, rows);
        if (there != newest)
                tell(report, "row_without_event", (int64_t)ws, "%lld rows changed without an event", (long long)there - (long long)newest);
        return 0;
}

static void structure(void *arg, const char *problem) {
        struct meta_report *report = arg;
        report->problem(report, 0, "database", problem);
}

int meta_check_rows(struct meta_checker *k, struct meta_report *report) {
        _cleanup_arena_ struct arena *a = NULL;
        uint64_t *ws;
        size_t n;
        int r = k->db->ops->verify(k->db, structure, report);
        for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(row_checks); i++) {
                r = check_row(k, &row_checks[i], report);
                if (r >= 0 && report->stopped(report))
                        r = -ECANCELED;
        }
        if (r >= 0)
                r = arena_new(8u << 20, &a);
        if (r >= 0)
                r = meta_check_spaces(k, a, &ws, &n);
        for (size_t i = 0; r >= 0 && i < n; i++)
                r = check_log(k, ws[i], report);
        return r < 0 ? r : 0;
}

int meta_check_spaces(struct meta_checker *k, struct arena *a, uint64_t **ret_ws, size_t *ret_n) {
        struct sql_stmt *st;
        int r = sql_first(k->db, &st, "SELECT count(*) FROM workspace", "");
        if (r <= 0)
                return r < 0 ? r : -EIO;
        size_t room = (size_t)sql_int(k->db, st, 0), n = 0;
        sql_reset(k->db, st);
        uint64_t *list = arena_alloc(a, (room + 1) * sizeof *list);
        if (!list)
                return -ENOMEM;
        r = sql_stmt(k->db, &st, "SELECT id FROM workspace ORDER BY id", "");
        if (r < 0)
                return r;
        while (n < room && (r = sql_step(k->db, st)) > 0)
                list[n++] = (uint64_t)sql_int(k->db, st, 0);
        sql_reset(k->db, st);
        if (r < 0)
                return r;
        *ret_ws = list;
        *ret_n = n;
        return 0;
}

static int contents_of(struct meta_checker *k, uint64_t ws, const struct id *node, struct arena *a, struct meta_check_content *list, size_t room, size_t *n) {
        struct sql_stmt *st;
        struct id version = { { 0 } };
        bool first = true;
        int r = sql_stmt(k->db, &st, "SELECT version, root, size, depth, param, seq FROM revision WHERE workspace = ?1 AND id = ?2 UNION ALL SELECT version, root, size, depth, param, seq"
                                     " FROM node WHERE workspace = ?1 AND id = ?2 ORDER BY 6", "iD", (int64_t)ws, node);
        if (r < 0)
                return r;
        while ((r = sql_step(k->db, st)) > 0) {
                struct id v;
                struct meta_check_content c = { .node = *node, .first = first };
                sql_get_id(k->db, st, 0, &v);
                if (!first && id_equal(&v, &version))
                        continue;
                version = v;
                sql_get_digest(k->db, st, 1, &c.content.root);
                c.content.size = (uint64_t)sql_int(k->db, st, 2);
                c.content.depth = (uint8_t)sql_int(k->db, st, 3);
                c.content.param = (uint8_t)sql_int(k->db, st, 4);
                if (*n == room) {
                        r = -EMSGSIZE;
                        break;
                }
                list[(*n)++] = c;
                first = false;
        }
        sql_reset(k->db, st);
        return r;
}

int meta_check_contents(struct meta_checker *k, uint64_t ws, const struct id *after, size_t max, struct arena *a, struct meta_check_content **ret, size_t *ret_n, struct id *ret_last,
                        bool *ret_end) {
        static const struct id none;
        struct id *ids = arena_alloc(a, (max + 1) * sizeof *ids);
        struct sql_stmt *st;
        size_t n_ids = 0, n = 0, room;
        if (!ids)
                return -ENOMEM;
        int r = sql_stmt(k->db, &st, "SELECT id FROM node WHERE workspace = ?1 AND id > ?2 AND kind = 1 ORDER BY id LIMIT ?3", "iDi", (int64_t)ws, after ? after : &none, (int64_t)max);
        if (r < 0)
                return r;
        while (n_ids < max && (r = sql_step(k->db, st)) > 0)
                sql_get_id(k->db, st, 0, &ids[n_ids++]);
        sql_reset(k->db, st);
        if (r < 0)
                return r;
        room = n_ids;
        for (size_t i = 0; i < n_ids; i++) {
                r = sql_first(k->db, &st, "SELECT count(*) FROM revision WHERE workspace = ?1 AND id = ?2", "iD", (int64_t)ws, &ids[i]);
                if (r <= 0)
                        return r < 0 ? r : -EIO;
                room += (size_t)sql_int(k->db, st, 0);
                sql_reset(k->db, st);
        }
        struct meta_check_content *list = arena_alloc(a, (room + 1) * sizeof *list);
        if (!list)
                return -ENOMEM;
        for (size_t i = 0; i < n_ids; i++) {
                r = contents_of(k, ws, &ids[i], a, list, room, &n);
                if (r < 0)
                        return r;
        }
        *ret = list;
        *ret_n = n;
        *ret_end = n_ids < max;
        *ret_last = n_ids ? ids[n_ids - 1] : none;
        return 0;
}

int meta_check_refs(struct meta_checker *k, uint64_t ws, int (*each)(void *arg, const struct meta_ref *ref), void *arg) {
        struct sql_stmt *st;
        int r = sql_stmt(k->db, &st, "SELECT hash, refs, raw FROM block_ref WHERE workspace = ?1 ORDER BY hash", "i", (int64_t)ws);
        if (r < 0)
                return r;
        while ((r = sql_step(k->db, st)) > 0) {
                struct meta_ref ref = { .refs = (uint64_t)sql_int(k->db, st, 1), .raw = (uint32_t)sql_int(k->db, st, 2) };
                sql_get_digest(k->db, st, 0, &ref.hash);
                r = each(arg, &ref);
                if (r != 0)
                        break;
        }
        sql_reset(k->db, st);
        return r;
}

int meta_check_objects(struct meta_checker *k, int (*each)(void *arg, const char *object, uint64_t bytes), void *arg) {
        struct sql_stmt *st;
        int r = sql_stmt(k->db, &st, "SELECT name, bytes FROM object ORDER BY name", "");
        if (r < 0)
                return r;
        while ((r = sql_step(k->db, st)) > 0) {
                const char *name = sql_text(k->db, st, 0);
                r = name ? each(arg, name, (uint64_t)sql_int(k->db, st, 1)) : -EBADMSG;
                if (r != 0)
                        break;
        }
        sql_reset(k->db, st);
        return r;
}

int meta_check_place(struct meta_checker *k, const struct digest *hash, struct arena *a, struct meta_place *ret) { return place_get(k->db, hash, a, NULL, ret); }
