/* SPDX-License-Identifier: Apache-2.0 */
/* api_put.c: PUT and DELETE of whole files by path.
 *
 * PUT streams: bytes are collected in a window of WINDOW_BYTES, cut by content (base/chunk.h), hashed, and handed to a content_writer, which stores what is
 * missing in objects of up to BATCH_BYTES_MAX. Memory is the window, one batch and 36 bytes per block. When the body is complete (and as long as
 * Content-Length said) the list pages are stored like blocks, and one transaction makes the version: a file that was cut off on its way never
 * becomes one, and readers see the old bytes until then. Blocks of a broken upload stay claimed for a week, which makes the second try cheap.
 *
 * Conditions: without any, the newest bytes win and the replaced version is kept and named in the answer (`replaced`). If-Match names the ETag that must be
 * there (* = anything), If-None-Match: * that nothing is. They are looked at before the body is read, and judged in the transaction, by version id.
 *
 * Idempotency-Key makes a retry safe: it is the operation id, and a request is the same if its condition is written the same. Missing parent directories are made. */
#include "api_content.h"

#include <string.h>

#include "api_files.h"
#include "base/chunk.h"
#include "base/digest.h"

#define WINDOW_BYTES (2u * BLOCK_BYTES_MAX)

struct upload {
        struct content_writer writer;
        struct blocklist list;
        struct page_sink sink;
        uint8_t *window;
        size_t filled;
        uint64_t total;
};

static void cleanup_upload_p(struct upload *u) {
        content_writer_close(&u->writer);
        blocklist_free(&u->list);
        free(u->window);
}

static int upload_page(struct page_sink *s, const struct digest *hash, const void *bytes, size_t n, uint8_t level) {
        struct upload *u = container_of(s, struct upload, sink);

        (void)level;
        return content_writer_add(&u->writer, hash, (uint32_t)n, ENC_RAW, bytes, n);
}

/* Cuts off the blocks that are decided; final: all. */
static int upload_cut(struct upload *u, bool final) {
        const struct chunk_param *param = chunk_param(CHUNK_PARAM_1);
        size_t at = 0;

        while (at < u->filled) {
                size_t n = chunk_next(param, u->window + at, u->filled - at, final);
                struct blockref ref;
                int r;

                if (n == 0)
                        break;
                ref.bytes = (uint32_t)n;
                sha256(u->window + at, n, &ref.hash);
                if (u->list.n >= META_CONTENT_BLOCKS_MAX)
                        return -EFBIG;
                r = blocklist_add(&u->list, &ref);
                if (r >= 0)
                        r = content_writer_add(&u->writer, &ref.hash, ref.bytes, ENC_RAW, u->window + at, n);
                if (r < 0)
                        return r;
                at += n;
        }
        u->filled -= at;
        memmove(u->window, u->window + at, u->filled);
        return 0;
}

/* The next bytes of the body: from read, or from memory in process. */
static int64_t body_read(const struct service_request *req, uint64_t at, void *p, size_t n) {
        if (req->read)
                return req->read(req->read_arg, p, n);
        n = MIN(n, req->body_bytes - (size_t)at);
        if (n > 0)
                memcpy(p, (const uint8_t *)req->body + at, n);
        return (int64_t)n;
}

static int upload_run(struct call *c, struct upload *u, struct content *ret) {
        const struct service_request *req = c->req;
        int64_t n;
        int r;

        u->window = malloc(WINDOW_BYTES);
        if (!u->window)
                return -ENOMEM;
        u->list.param = CHUNK_PARAM_1;
        while ((n = body_read(req, u->total, u->window + u->filled, WINDOW_BYTES - u->filled)) > 0) {
                u->total += (uint64_t)n;
                u->filled += (size_t)n;
                if (u->filled == WINDOW_BYTES) {
                        r = upload_cut(u, false);
                        if (r < 0)
                                return r;
                }
        }
        if (n < 0) { /* broken off: what came so far is kept for the next try */
                r = upload_cut(u, false);
                if (r >= 0)
                        r = content_writer_flush(&u->writer);
                return r < 0 ? r : (int)n;
        }
        if (req->read && req->content_length >= 0 && (uint64_t)req->content_length != u->total)
                return -ECONNRESET;
        (void)atomic_fetch_add_explicit(&c->s->stats.body_bytes_received, u->total, memory_order_relaxed);
        r = upload_cut(u, true);
        if (r < 0)
                return r;
        u->sink.page = upload_page;
        r = blocklist_content(&u->list, &u->sink, ret);
        if (r < 0)
                return r;
        return content_writer_flush(&u->writer);
}

/* Reads If-Match against what is there now. 0; 1 answered; -errno. A request with an Idempotency-Key may be our own that was done already: then what it asked for is there no more, and
 * only the transaction knows; it is given a version that nothing has. */
static int match_now(struct call *c, uint64_t ws, const char *path, bool *ret_given, struct id *ret_version, struct digest *ret_condition) {
        static const struct id none = { { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff } };
        const bool again = c->req->idempotency_key && *c->req->idempotency_key;
        struct node_row row;
        char etag[80];
        int r;

        *ret_given = false;
        memset(ret_version, 0, sizeof *ret_version);
        memset(ret_condition, 0, sizeof *ret_condition);
        if (!c->req->if_match)
                return 0;
        *ret_given = true;
        sha256(c->req->if_match, strlen(c->req->if_match), ret_condition);
        r = meta_resolve(c->s->meta, ws, path, c->arena, &row);
        if (r == -ENOENT || r == -ENOTDIR) {
                *ret_version = none;
                return again ? 0 : (call_fail(c, "PRECONDITION_FAILED", "there is no %s", path), 1);
        }
        if (r < 0)
                return r;
        if (strcmp(c->req->if_match, "*") == 0)
                return 0;
        if (row.kind != NODE_FILE)
                return call_fail(c, "PRECONDITION_FAILED", "%s is not a file", path), 1;
        etag_of(&row.content, etag);
        if (!etag_in_list(c->req->if_match, etag, false)) {
                *ret_version = none;
                if (again)
                        return 0;
                (void)snprintf(c->ans->etag, sizeof c->ans->etag, "%s", etag);
                return call_fail(c, "PRECONDITION_FAILED", "the file's ETag is %s", etag), 1;
        }
        *ret_version = row.version;
        return 0;
}

/* ?mode=0644&mtime_ns=N. 0; 1 answered. */
static int put_query(struct call *c, struct meta_put *p) {
        const char *mode = call_query(c, "mode");
        uint64_t mtime;
        int r;

        if (mode) {
                p->has_mode = true;
                for (p->mode = 0; *mode >= '0' && *mode <= '7' && p->mode <= 07777; mode++)
                        p->mode = p->mode * 8 + (uint32_t)(*mode - '0');
                if (*mode || p->mode > 07777)
                        return call_fail(c, "INVALID", "mode must be octal permission bits, such as 0644"), 1;
        }
        r = call_query_u64(c, "mtime_ns", 0, INT64_MAX, &mtime);
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "mtime_ns must be nanoseconds since 1970"), 1;
        p->has_mtime = r == 0;
        p->mtime_ns = r == 0 ? (int64_t)mtime : 0;
        return 0;
}

/* What stands in the way, before the body is read: 0; 1 answered; -errno. */
static int put_look(struct call *c, uint64_t ws, const char *path) {
        struct node_row row;
        int r;

        if (!*path)
                return call_fail(c, "IS_DIR", "the root is a directory"), 1;
        r = meta_resolve(c->s->meta, ws, path, c->arena, &row);
        if (r == -ENOENT)
                return 0;
        if (r == -ENOTDIR)
                return call_fail(c, "NOT_DIR", "a part of %s is not a directory", path), 1;
        if (r < 0)
                return r;
        if (row.kind == NODE_DIR)
                return call_fail(c, "IS_DIR", "%s is a directory", path), 1;
        if (c->req->if_none_match && !c->req->idempotency_key) /* with a key it may be our own first try: the transaction knows */
                return call_fail(c, "PRECONDITION_FAILED", "%s is there already", path), 1;
        return 0;
}

static int answer_put(struct call *c, const char *path, const struct meta_put_result *res) {
        json_t *j;

        if (res->code == RES_STALE && res->node.kind == NODE_FILE && !id_is_zero(&res->node.id))
                etag_of(&res->node.content, c->ans->etag);
        if (res->code != RES_OK && res->code != RES_MERGED)
                return call_fail_op(c, res->code, path);
        etag_of(&res->node.content, c->ans->etag);
        hex_encode(res->node.version.b, ID_BYTES, c->ans->version);
        if (!id_is_zero(&res->replaced_version))
                hex_encode(res->replaced_version.b, ID_BYTES, c->ans->replaced);
        j = json_pack("{s:s, s:b, s:o, s:I}", "path", path, "created", res->created, "node", json_node(&res->node), "seq", (json_int_t)res->seq);
        if (j && !id_is_zero(&res->replaced_version) && json_object_set_new(j, "replaced", json_hex(res->replaced_version.b, ID_BYTES)) < 0)
                j = (json_decref(j), NULL);
        return call_answer_json(c, res->created ? 201 : 200, j);
}

struct pages_scope { struct content_pages pages; };
static void cleanup_pages_p(struct pages_scope *p) {
        content_pages_close(&p->pages);
}

int api_file_put(struct call *c) {
        _cleanup_(cleanup_upload_p) struct upload u = {0};
        _cleanup_(cleanup_pages_p) struct pages_scope pages = {0};
        struct meta_put put = {.subject = &c->who, .make_parents = true};
        struct meta_put_result res;
        struct meta_workspace w;
        const char *path;
        int r;

        if (call_workspace(c, ROLE_EDITOR, &w) || files_path(c, c->param[1], &path) || put_query(c, &put))
                return 0;
        if (c->req->if_none_match && strcmp(c->req->if_none_match, "*") != 0)
                return call_fail(c, "INVALID", "PUT takes If-None-Match only as *; use If-Match to name what must be there");
        r = put_look(c, w.ws, path);
        if (r == 0)
                r = match_now(c, w.ws, path, &put.if_match, &put.match, &put.condition);
        if (r != 0)
                return r < 0 ? r : 0;
        if (c->req->content_length > 0) {
                r = meta_quota_check(c->s->meta, w.ws, (uint64_t)c->req->content_length);
                if (r < 0)
                        return r;
        }
        if (reserve_tight(c->s->reserve))
                return -ENOSPC;
        content_writer_init(&u.writer, c->s, &c->who, w.ws, NULL);
        r = upload_run(c, &u, &put.content);
        if (r >= 0)
                r = content_pages_open(c->s, &c->who, w.ws, &pages.pages);
        if (r < 0)
                return r;
        put.ws = w.ws;
        put.op = call_op_id(c);
        put.path = path;
        put.if_none_match = c->req->if_none_match != NULL;
        put.pages = &pages.pages.get;
        r = meta_put_path(c->s->meta, &put, c->arena, &res);
        return r < 0 ? r : answer_put(c, path, &res);
}

int api_file_delete(struct call *c) {
        struct meta_delete del = {.subject = &c->who};
        struct meta_put_result res;
        struct meta_workspace w;
        const char *path;
        int r;

        if (call_workspace(c, ROLE_EDITOR, &w) || files_path(c, c->param[1], &path))
                return 0;
        if (!*path)
                return call_fail(c, "INVALID", "the root cannot be deleted");
        r = match_now(c, w.ws, path, &del.if_match, &del.match, &del.condition);
        if (r != 0)
                return r < 0 ? r : 0;
        del.ws = w.ws;
        del.op = call_op_id(c);
        del.path = path;
        r = meta_delete_path(c->s->meta, &del, c->arena, &res);
        if (r < 0)
                return r;
        if (res.code != RES_OK && res.code != RES_MERGED)
                return call_fail_op(c, res.code, path);
        if (!id_is_zero(&res.replaced_version))
                hex_encode(res.replaced_version.b, ID_BYTES, c->ans->replaced);
        return call_answer_empty(c, 204);
}
