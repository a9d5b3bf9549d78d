/* SPDX-License-Identifier: Apache-2.0 */
/* api_snapshot.c: the tree as pages: nodes by id, names by entry id, and one directory as of one moment.
 *
 * The rows come one by one from meta and are encoded straight into the answer, which has a bound; a page that would grow beyond PAGE_BYTES_MAX ends early, as if the
 * limit had been reached. The trailer's digest covers the row frames and chains to the page before (the client sends that one's digest as
 * ?previous=). The same page asked again gives the same keys; what changed meanwhile comes with the events up to `upto`.
 *
 * JSON (for people) has the same rows, at most JSON_ROWS_MAX per page. */
#include "api_call.h"

#include <string.h>

#include "api/wire.h"
#include "base/digest.h"

#define PAGE_BYTES_MAX (16u << 20)
#define DIR_BYTES_MAX (36u << 20)
#define JSON_ROWS_MAX 5000u

struct rows {
        struct meta_sink sink;
        struct buf *body;
        size_t max_bytes;
        json_t *nodes, *entries;         /* NULL: frames */
};

static void cleanup_rows_p(struct rows *r) {
        json_decref(r->nodes);
        json_decref(r->entries);
}

/* A row that does not fit ends the page and is taken back. */
static int row_end(struct rows *rows, size_t before, int r) {
        if (r == -EMSGSIZE || (r >= 0 && rows->body->bytes > rows->max_bytes)) {
                rows->body->bytes = before;
                return 1;
        }
        return r;
}

static int rows_node(struct meta_sink *s, const struct node_row *row) {
        struct rows *rows = container_of(s, struct rows, sink);
        size_t before = rows->body->bytes;

        if (rows->nodes)
                return json_array_append_new(rows->nodes, json_node(row)) < 0 ? -ENOMEM : 0;
        return row_end(rows, before, wire_add_node(rows->body, row));
}

static int rows_entry(struct meta_sink *s, const struct entry_row *row) {
        struct rows *rows = container_of(s, struct rows, sink);
        size_t before = rows->body->bytes;

        if (rows->entries)
                return json_array_append_new(rows->entries, json_entry(row)) < 0 ? -ENOMEM : 0;
        return row_end(rows, before, wire_add_entry(rows->body, row));
}

static int rows_init(struct call *c, struct rows *rows, size_t max_bytes, bool nodes, bool entries) {
        *rows = (struct rows){.sink = {rows_node, rows_entry}, .body = &c->ans->body, .max_bytes = max_bytes};
        if (!call_wants_json(c))
                return 0;
        if (nodes && !(rows->nodes = json_array()))
                return -ENOMEM;
        if (entries && !(rows->entries = json_array()))
                return -ENOMEM;
        return 0;
}

/* limit and previous of both scans. 0; 1 answered. */
static int page_query(struct call *c, uint64_t *ret_limit, struct digest *ret_previous) {
        uint64_t max = call_wants_json(c) ? JSON_ROWS_MAX : SNAPSHOT_ROWS_MAX;
        const char *previous = call_query(c, "previous");
        int r;

        *ret_limit = MIN(max, (uint64_t)10000);
        memset(ret_previous, 0, sizeof *ret_previous);
        r = call_query_u64(c, "limit", 1, UINT32_MAX, ret_limit);
        if (r < 0 && r != -ENOENT)
                return call_fail(c, "INVALID", "limit must be a number from 1"), 1;
        *ret_limit = MIN(max, *ret_limit);
        if (previous && hex_decode(previous, ret_previous->b, sizeof ret_previous->b) < 0)
                return call_fail(c, "INVALID", "previous must be 64 hex digits: the digest of the page before"), 1;
        return 0;
}

static int page_answer(struct call *c, struct rows *rows, const char *key, json_t *list, struct wire_page *page) {
        int r;

        if (list)
                return call_answer_json(c, 200,
                                        json_pack("{s:O, s:b, s:I, s:o, s:I, s:o}", key, list, "end", page->end, "count", (json_int_t)page->count, "last_id",
                                                  json_hex(page->last_id.b, ID_BYTES), "last_entry", (json_int_t)page->last_entry, "upto", json_cursor(&page->upto)));
        sha256(rows->body->data, rows->body->bytes, &page->digest);
        r = wire_add_page(rows->body, page);
        return r < 0 ? r : call_answer_frames(c);
}

int api_snapshot_nodes(struct call *c) {
        _cleanup_(cleanup_rows_p) struct rows rows = {0};
        struct meta_workspace w;
        struct wire_page page = {0};
        struct meta_page got;
        bool from_start;
        uint64_t limit;
        int r;

        r = call_query_id(c, "after", &page.after_id);
        from_start = r == -ENOENT;
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "after must be 32 hex digits: the last id of the page before");
        if (page_query(c, &limit, &page.previous) || call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        r = rows_init(c, &rows, PAGE_BYTES_MAX, true, false);
        if (r >= 0)
                r = meta_snapshot_nodes(c->s->meta, w.ws, from_start ? NULL : &page.after_id, limit, &rows.sink, &got);
        if (r < 0)
                return r;
        page.end = got.end;
        page.count = got.count;
        page.last_id = got.last_id;
        page.upto = got.upto;
        return page_answer(c, &rows, "nodes", rows.nodes, &page);
}

int api_snapshot_entries(struct call *c) {
        _cleanup_(cleanup_rows_p) struct rows rows = {0};
        struct meta_workspace w;
        struct wire_page page = {0};
        struct meta_page got;
        uint64_t limit;
        int r;

        r = call_query_u64(c, "after", 0, INT64_MAX, &page.after_entry);
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "after must be a number: the last entry id of the page before");
        if (page_query(c, &limit, &page.previous) || call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        r = rows_init(c, &rows, PAGE_BYTES_MAX, false, true);
        if (r >= 0)
                r = meta_snapshot_entries(c->s->meta, w.ws, page.after_entry, limit, &rows.sink, &got);
        if (r < 0)
                return r;
        page.end = got.end;
        page.count = got.count;
        page.last_entry = got.last_entry;
        page.upto = got.upto;
        return page_answer(c, &rows, "entries", rows.entries, &page);
}

int api_dir(struct call *c) {
        _cleanup_(cleanup_rows_p) struct rows rows = {0};
        struct meta_workspace w;
        struct wire_listed listed = {0};
        struct id dir;
        int r;

        if (strcmp(c->param[1], "root") == 0)
                dir = id_root;
        else if (hex_decode(c->param[1], dir.b, sizeof dir.b) < 0)
                return call_fail(c, "INVALID", "a directory is named by 32 hex digits, or root");
        if (call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        r = rows_init(c, &rows, DIR_BYTES_MAX, true, true);
        if (r >= 0)
                r = meta_dir(c->s->meta, w.ws, &dir, &rows.sink, &listed.dir, &listed.at, &listed.count);
        if (r == -ENOENT)
                return call_fail(c, "NOT_FOUND", "there is no directory of that id");
        if (r < 0)
                return r;
        if (rows.nodes)
                return call_answer_json(c, 200,
                                        json_pack("{s:o, s:O, s:O, s:I, s:o}", "dir", json_hex(listed.dir.b, ID_BYTES), "nodes", rows.nodes, "entries", rows.entries, "count",
                                                  (json_int_t)listed.count, "at", json_cursor(&listed.at)));
        r = wire_add_listed(&c->ans->body, &listed);
        return r < 0 ? r : call_answer_frames(c);
}
