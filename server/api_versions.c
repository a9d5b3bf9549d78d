/* SPDX-License-Identifier: Apache-2.0 */
/* api_versions.c: the kept versions of a file, and restoring one: by node id for programs, by path for people.
 *
 * Restoring makes a new version with the old bytes: nothing is lost by it and it can be restored away again. No byte is copied: the
 * new version names the same blocks. A deleted file comes back under its last name. */
#include "api_content.h"

#include <string.h>

#include "api_files.h"

#define VERSIONS_DEFAULT 100u
#define VERSIONS_LIMIT 1000u

/* 0; 1 answered; -errno. */
static int node_by_path(struct call *c, uint64_t ws, struct id *ret) {
        const char *given = call_query(c, "path"), *path;
        struct node_row row;
        int r;

        if (!given)
                return call_fail(c, "INVALID", "?path= is needed"), 1;
        while (*given == '/')
                given++;
        path = given;
        r = meta_resolve(c->s->meta, ws, path, c->arena, &row);
        if (r == -ENOENT || r == -ENOTDIR)
                return call_fail(c, "NOT_FOUND", "there is no %s", path), 1;
        if (r < 0)
                return r;
        *ret = row.id;
        return 0;
}

static int node_by_param(struct call *c, struct id *ret) {
        if (hex_decode(c->param[1], ret->b, sizeof ret->b) < 0)
                return call_fail(c, "INVALID", "a node is named by 32 hex digits"), 1;
        return 0;
}

static int answer_versions(struct call *c, uint64_t ws, const struct id *node) {
        _cleanup_json_ json_t *list = json_array();
        uint64_t limit = VERSIONS_DEFAULT;
        struct meta_version *v;
        size_t n;
        int r = call_query_u64(c, "limit", 1, UINT32_MAX, &limit);

        if (r == -EINVAL)
                return call_fail(c, "INVALID", "limit must be a number from 1");
        r = meta_versions(c->s->meta, ws, node, MIN(limit, (uint64_t)VERSIONS_LIMIT), c->arena, &v, &n);
        if (r == -EISDIR || r == -EINVAL)
                return call_fail(c, "INVALID", "only files have versions");
        if (r == -ENOENT)
                return call_fail(c, "NOT_FOUND", "there is no such node");
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (json_array_append_new(list, json_version(&v[i])) < 0)
                        return -ENOMEM;
        return call_answer_json(c, 200, json_pack("{s:o, s:O}", "node", json_hex(node->b, ID_BYTES), "versions", list));
}

static int answer_restore(struct call *c, uint64_t ws, const struct id *node) {
        _cleanup_json_ json_t *body = NULL;
        struct content_pages pages;
        struct meta_restore restore = {.subject = &c->who, .ws = ws, .node = *node};
        struct meta_put_result res;
        const char *version;
        int r;

        if (call_json(c, &body) < 0 || json_get_str(body, "version", &version) < 0 || hex_decode(version, restore.version.b, ID_BYTES) < 0)
                return call_fail(c, "INVALID", "the body must be {\"version\": 32 hex digits}");
        restore.op = call_op_id(c);
        r = content_pages_open(c->s, &c->who, ws, &pages);
        if (r < 0)
                return r;
        restore.pages = &pages.get;
        r = meta_version_restore(c->s->meta, &restore, c->arena, &res);
        content_pages_close(&pages);
        if (r == -ENOENT)
                return call_fail(c, "NOT_FOUND", "there is no such node or version");
        if (r < 0)
                return r;
        if (res.code != RES_OK && res.code != RES_MERGED)
                return call_fail_op(c, res.code, "restoring");
        etag_of(&res.node.content, c->ans->etag);
        hex_encode(res.node.version.b, ID_BYTES, c->ans->version);
        return call_answer_json(c, 200, json_pack("{s:o, s:I}", "node", json_node(&res.node), "seq", (json_int_t)res.seq));
}

int api_versions_path(struct call *c) {
        struct meta_workspace w;
        struct id node;
        int r;

        if (call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        r = node_by_path(c, w.ws, &node);
        return r != 0 ? (r < 0 ? r : 0) : answer_versions(c, w.ws, &node);
}

int api_versions_node(struct call *c) {
        struct meta_workspace w;
        struct id node;

        if (node_by_param(c, &node) || call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        return answer_versions(c, w.ws, &node);
}

int api_restore_path(struct call *c) {
        struct meta_workspace w;
        struct id node;
        int r;

        if (call_workspace(c, ROLE_EDITOR, &w))
                return 0;
        r = node_by_path(c, w.ws, &node);
        return r != 0 ? (r < 0 ? r : 0) : answer_restore(c, w.ws, &node);
}

int api_restore_node(struct call *c) {
        struct meta_workspace w;
        struct id node;

        if (node_by_param(c, &node) || call_workspace(c, ROLE_EDITOR, &w))
                return 0;
        return answer_restore(c, w.ws, &node);
}
