/* SPDX-License-Identifier: Apache-2.0 */
/* api_files.c: reading whole files by path: for curl, browsers and scripts.
 *
 * The path is percent-decoded component by component and each component is checked, so that an encoded slash, "..", a NUL or bytes that are not
 * UTF-8 never reach the tree; no path of the server's own disk is ever built from it.
 *
 * ETag is the content's root digest: equal bytes have equal tags, across names, versions and restores. Ranges: one range, also "last n" (bytes=-n); several
 * ranges or a malformed header are answered with the whole file, as RFC 9110 permits; one that lies beyond the end is 416. If-Range with another tag
 * gives the whole file.
 *
 * The body is pulled block by block: one block is read, checked against its hash and handed on; memory is one block however large the file is. The first is read before
 * the status is chosen, so that damage there (and in any file of one block) is an error that says so. If a later block turns out damaged the connection is
 * cut: a short transfer is visible to the client, wrong bytes would not be.
 *
 * A directory answers its list as JSON. ?version=ID reads an older version of the file. */
#include "api_content.h"

#include <ctype.h>
#include <inttypes.h>
#include <string.h>

#include "api_files.h"

#define DIR_ROWS_MAX 100000u
#define VERSIONS_MAX 1000u

struct reader {
        struct content_walk walk;
        uint64_t from, bytes;            /* the range */
        uint8_t *first; size_t first_bytes; /* its first piece, read before the answer began; NULL once it was given */
};

static void reader_close(void *arg) {
        struct reader *rd = arg;

        content_walk_close(&rd->walk);
        free(rd->first);
        free(rd);
}

/* The rest of the block that holds `off`. n >= SERVICE_PULL_BYTES, so that a whole block fits. */
static int64_t reader_pull(void *arg, uint64_t off, void *p, size_t n) {
        struct reader *rd = arg;
        struct meta_place place;
        struct blockref ref;
        uint64_t start, left;
        size_t skip, m;
        int r;

        if (off >= rd->bytes || n < SERVICE_PULL_BYTES)
                return -EINVAL;
        if (rd->first && off == 0) {
                memcpy(p, rd->first, rd->first_bytes);
                m = rd->first_bytes;
                free(rd->first);
                rd->first = NULL;
                return (int64_t)m;
        }
        left = rd->bytes - off;
        off += rd->from;
        r = content_walk_find(&rd->walk, off, &ref, &start);
        if (r >= 0)
                r = content_walk_place(&rd->walk, &ref.hash, &place);
        if (r >= 0 && place.block.raw_bytes != ref.bytes)
                r = -EBADMSG;
        if (r >= 0)
                r = content_block_read(rd->walk.s, &place, p, NULL, NULL);
        if (r < 0)
                return r;
        skip = (size_t)(off - start);
        m = (size_t)MIN((uint64_t)(ref.bytes - skip), left);
        memmove(p, (uint8_t *)p + skip, m);
        return (int64_t)m;
}

bool etag_in_list(const char *list, const char *etag, bool weak) {
        while (list && *list) {
                size_t n;

                list += strspn(list, " \t,");
                if (strncmp(list, "W/", 2) == 0) {
                        list += 2;
                        if (!weak) {
                                list += strcspn(list, ",");
                                continue;
                        }
                }
                n = strcspn(list, " \t,");
                if (n == strlen(etag) && memcmp(list, etag, n) == 0)
                        return true;
                if (n == 1 && *list == '*')
                        return true;
                list += n;
        }
        return false;
}

enum range { RANGE_NONE, RANGE_ONE, RANGE_BAD };

static int range_number(const char **p, uint64_t *ret) {
        uint64_t v = 0;

        if (!isdigit((unsigned char)**p))
                return -EINVAL;
        for (; isdigit((unsigned char)**p); (*p)++) {
                if (v > (UINT64_MAX - 9) / 10)
                        return -EINVAL;
                v = v * 10 + (uint64_t)(**p - '0');
        }
        *ret = v;
        return 0;
}

/* "bytes=a-b", "bytes=a-", "bytes=-n" */
static enum range range_parse(const char *text, uint64_t size, uint64_t *ret_from, uint64_t *ret_bytes) {
        uint64_t a = 0, b;

        if (!text || strncmp(text, "bytes=", 6) != 0)
                return RANGE_NONE;
        text += 6;
        if (*text == '-') {
                text++;
                if (range_number(&text, &b) < 0 || *text)
                        return RANGE_NONE;
                if (b == 0 || size == 0)
                        return RANGE_BAD;
                *ret_bytes = MIN(b, size);
                *ret_from = size - *ret_bytes;
                return RANGE_ONE;
        }
        if (range_number(&text, &a) < 0 || *text++ != '-')
                return RANGE_NONE;
        b = UINT64_MAX;
        if (*text && (range_number(&text, &b) < 0 || *text || b < a))
                return RANGE_NONE;
        if (a >= size)
                return RANGE_BAD;
        *ret_from = a;
        *ret_bytes = b >= size ? size - a : b - a + 1;
        return RANGE_ONE;
}

static int answer_content(struct call *c, const struct meta_workspace *w, const struct content *content, const struct id *version, int64_t mtime_ns) {
        uint64_t from = 0, bytes = content->size;
        struct service_answer *ans = c->ans;
        const char *range = c->req->range;
        struct reader *rd;
        int r;

        etag_of(content, ans->etag);
        hex_encode(version->b, ID_BYTES, ans->version);
        ans->last_modified_ns = mtime_ns;
        ans->accept_ranges = true;
        ans->status = 200;
        if (etag_in_list(c->req->if_none_match, ans->etag, true))
                return call_answer_empty(c, 304);
        if (c->req->if_match && !etag_in_list(c->req->if_match, ans->etag, false))
                return call_fail(c, "PRECONDITION_FAILED", "the file's ETag is %s", ans->etag);
        if (c->req->if_range && strcmp(c->req->if_range, ans->etag) != 0)
                range = NULL;
        switch (range_parse(range, content->size, &from, &bytes)) {
        case RANGE_BAD:
                (void)snprintf(ans->content_range, sizeof ans->content_range, "bytes */%" PRIu64, content->size);
                return call_fail(c, "BAD_RANGE", "the file has %" PRIu64 " bytes", content->size);
        case RANGE_ONE:
                (void)snprintf(ans->content_range, sizeof ans->content_range, "bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64, from, from + bytes - 1, content->size);
                ans->status = 206;
                break;
        case RANGE_NONE:
                break;
        }
        ans->content_type = "application/octet-stream";
        if (bytes == 0)
                return 0;
        rd = calloc(1, sizeof *rd);
        if (!rd)
                return -ENOMEM;
        r = content_walk_open(c->s, &c->who, w->ws, content, &rd->walk);
        if (r < 0) {
                free(rd);
                return r;
        }
        rd->from = from;
        rd->bytes = bytes;
        if (strcmp(c->req->method, "HEAD") != 0) {
                int64_t n = -ENOMEM;
                uint8_t *first = malloc(SERVICE_PULL_BYTES);

                if (first)
                        n = reader_pull(rd, 0, first, SERVICE_PULL_BYTES);
                if (n < 0) {
                        free(first);
                        reader_close(rd);
                        ans->etag[0] = ans->version[0] = ans->content_range[0] = 0;
                        ans->accept_ranges = false;
                        ans->last_modified_ns = 0;
                        return n == -ENODATA ? -EBADMSG : (int)n;
                }
                rd->first = realloc(first, (size_t)n);
                rd->first = rd->first ? rd->first : first;
                rd->first_bytes = (size_t)n;
        }
        ans->pull = reader_pull;
        ans->pull_close = reader_close;
        ans->pull_arg = rd;
        ans->pull_bytes = bytes;
        return 0;
}

struct listing { struct meta_sink sink; struct arena *arena; json_t *entries; json_t *node; bool self_seen; size_t n; };

static int listing_node(struct meta_sink *s, const struct node_row *row) {
        struct listing *l = container_of(s, struct listing, sink);

        if (!l->self_seen) { /* the directory itself comes first */
                l->self_seen = true;
                return 0;
        }
        if (++l->n > DIR_ROWS_MAX)
                return -EMSGSIZE;
        json_decref(l->node);
        l->node = json_node(row);
        return l->node ? 0 : -ENOMEM;
}

static int listing_entry(struct meta_sink *s, const struct entry_row *row) {
        struct listing *l = container_of(s, struct listing, sink);
        json_t *node = steal_ptr(l->node);

        if (!node || json_object_set_new(node, "name", json_stringn(row->name, row->name_bytes)) < 0) {
                json_decref(node);
                return -ENOMEM;
        }
        return json_array_append_new(l->entries, node) < 0 ? -ENOMEM : 0;
}

static int answer_directory(struct call *c, const struct meta_workspace *w, const char *path, const struct id *dir) {
        struct listing l = {.sink = {listing_node, listing_entry}, .entries = json_array()};
        _cleanup_json_ json_t *entries = l.entries;
        struct cursor at;
        uint64_t count;
        struct id id;
        int r;

        if (!entries)
                return -ENOMEM;
        r = meta_dir(c->s->meta, w->ws, dir, &l.sink, &id, &at, &count);
        json_decref(l.node);
        if (r < 0)
                return r;
        return call_answer_json(c, 200,
                                json_pack("{s:s, s:s, s:o, s:O, s:o}", "kind", "dir", "path", path, "id", json_hex(id.b, ID_BYTES), "entries", entries, "at", json_cursor(&at)));
}

int files_path(struct call *c, const char *encoded, const char **ret) {
        int r = call_path(c, encoded, ret);

        if (r == -EILSEQ)
                (void)call_fail(c, "NAME_INVALID", "a part of the path is not allowed: 1 to 255 bytes of UTF-8 without slash and NUL, not . or ..");
        else if (r < 0)
                (void)call_fail_errno(c, r, "the path");
        return r < 0;
}

/* Looks for a version of the file; 0, 1 answered, -errno. */
static int find_version(struct call *c, uint64_t ws, const struct node_row *row, struct meta_version *ret) {
        struct meta_version *versions;
        struct id id;
        size_t n;
        int r = call_query_id(c, "version", &id);

        if (r == -EINVAL)
                return call_fail(c, "INVALID", "version must be 32 hex digits"), 1;
        r = meta_versions(c->s->meta, ws, &row->id, VERSIONS_MAX, c->arena, &versions, &n);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (id_equal(&versions[i].version, &id)) {
                        *ret = versions[i];
                        return 0;
                }
        return call_fail(c, "NOT_FOUND", "this file has no such version"), 1;
}

int api_file_get(struct call *c) {
        struct meta_workspace w;
        struct meta_version v;
        struct node_row row;
        const char *path;
        int r;

        if (call_workspace(c, ROLE_VIEWER, &w) || files_path(c, c->param[1], &path))
                return 0;
        r = meta_resolve(c->s->meta, w.ws, path, c->arena, &row);
        if (r == -ENOENT)
                return call_fail(c, "NOT_FOUND", "there is no %s", path);
        if (r == -ENOTDIR)
                return call_fail(c, "NOT_FOUND", "a part of %s is not a directory", path);
        if (r < 0)
                return r;
        switch (row.kind) {
        case NODE_DIR:
                return answer_directory(c, &w, path, &row.id);
        case NODE_FILE:
                break;
        case NODE_SYMLINK:
                return call_fail(c, "INVALID", "%s is a symbolic link to %s; ask for that", path, row.target ? row.target : "?");
        default:
                return call_fail(c, "INVALID", "%s is a %s, which has no bytes", path, node_kind_name(row.kind));
        }
        if (!call_query(c, "version"))
                return answer_content(c, &w, &row.content, &row.version, row.mtime_ns);
        r = find_version(c, w.ws, &row, &v);
        if (r != 0)
                return r < 0 ? r : 0;
        return answer_content(c, &w, &v.content, &v.version, v.mtime_ns);
}
