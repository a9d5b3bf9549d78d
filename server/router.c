/* SPDX-License-Identifier: Apache-2.0 */
/* router.c: the table of routes. docs/openapi.yaml documents exactly this table; a test compares both directions.
 *
 * A pattern is a path whose components may be {names}. Components are compared as they came, parameters are percent-decoded after the split, so
 * that an encoded slash never makes a component. {path} is special: only at the end, it takes everything that is left (also nothing, also without the
 * slash before it) and stays encoded: call_path splits and checks it.
 *
 * The first route that fits wins; a fitting path with another method gives 405 with the methods that are there. HEAD runs the GET route, the answer's body is
 * then not sent.
 *
 * Order of a call: target's size and shape, route (404, 405), token (401), handler. The body was bounded before by service_admit, which uses the same table. */
#include "router.h"

#include <assert.h>
#include <string.h>
#include <strings.h>

#define WS "/v1/workspaces/{workspace}"
#define FRAMES_MAX (BATCH_BYTES_MAX + (1u << 20)) /* a full batch and its headers */

const struct route routes[] = {
        {"GET", "/v1", AUTH_NONE, CLASS_CONTROL, 0, false, api_root, "features and limits"},
        {"GET", "/v1/health", AUTH_NONE, CLASS_CONTROL, 0, false, api_health, "the process answers"},
        {"GET", "/v1/ready", AUTH_NONE, CLASS_CONTROL, 0, false, api_ready, "database and store answer"},
        {"GET", "/v1/metrics", AUTH_TOKEN, CLASS_CONTROL, 0, false, api_metrics, "counters for Prometheus"},
        {"POST", "/v1/login", AUTH_NONE, CLASS_CONTROL, CALL_JSON_BYTES_MAX, false, api_login, "name and password to tokens"},
        {"POST", "/v1/refresh", AUTH_NONE, CLASS_CONTROL, CALL_JSON_BYTES_MAX, false, api_refresh, "a new access token"},
        {"POST", "/v1/logout", AUTH_TOKEN, CLASS_CONTROL, CALL_JSON_BYTES_MAX, false, api_logout, "revoke this device"},
        {"GET", "/v1/devices", AUTH_TOKEN, CLASS_CONTROL, 0, false, api_devices, "own devices"},
        {"DELETE", "/v1/devices/{device}", AUTH_TOKEN, CLASS_CONTROL, 0, false, api_device_revoke, "revoke a device"},
        {"GET", "/v1/workspaces", AUTH_TOKEN, CLASS_CONTROL, 0, false, api_workspaces, "own workspaces"},
        {"POST", "/v1/workspaces", AUTH_TOKEN, CLASS_CONTROL, CALL_JSON_BYTES_MAX, false, api_workspace_add, "make a workspace"},
        {"GET", WS, AUTH_TOKEN, CLASS_CONTROL, 0, false, api_workspace, "one workspace"},
        {"GET", WS "/snapshot/nodes", AUTH_TOKEN, CLASS_METADATA, 0, false, api_snapshot_nodes, "a page of nodes by id"},
        {"GET", WS "/snapshot/entries", AUTH_TOKEN, CLASS_METADATA, 0, false, api_snapshot_entries, "a page of names by entry id"},
        {"GET", WS "/dirs/{node}", AUTH_TOKEN, CLASS_METADATA, 0, false, api_dir, "one directory as of one moment"},
        {"GET", "/v1/events", AUTH_TOKEN, CLASS_EVENTS, 0, false, api_events, "events after cursors, long poll"},
        {"POST", WS "/commit", AUTH_TOKEN, CLASS_UPLOAD, FRAMES_MAX, false, api_commit, "a batch of operations"},
        {"POST", WS "/missing", AUTH_TOKEN, CLASS_METADATA, 4u << 20, false, api_missing, "which blocks are missing"},
        {"POST", WS "/blocks", AUTH_TOKEN, CLASS_UPLOAD, FRAMES_MAX, false, api_blocks, "store blocks"},
        {"POST", WS "/read", AUTH_TOKEN, CLASS_DOWNLOAD, 1u << 20, false, api_read, "blocks of ranges, packed"},
        {"GET", WS "/files/{path}", AUTH_TOKEN, CLASS_DOWNLOAD, 0, false, api_file_get, "a file or a directory's list"},
        {"HEAD", WS "/files/{path}", AUTH_TOKEN, CLASS_METADATA, 0, false, api_file_get, "the same without the bytes"},
        {"PUT", WS "/files/{path}", AUTH_TOKEN, CLASS_UPLOAD, 0, true, api_file_put, "make or replace a file"},
        {"DELETE", WS "/files/{path}", AUTH_TOKEN, CLASS_METADATA, 0, false, api_file_delete, "delete a file or an empty directory"},
        {"GET", WS "/versions", AUTH_TOKEN, CLASS_METADATA, 0, false, api_versions_path, "versions of a file by path"},
        {"POST", WS "/restore", AUTH_TOKEN, CLASS_METADATA, CALL_JSON_BYTES_MAX, false, api_restore_path, "an older version becomes the newest, by path"},
        {"GET", WS "/nodes/{node}/versions", AUTH_TOKEN, CLASS_METADATA, 0, false, api_versions_node, "versions of a file by node"},
        {"POST", WS "/nodes/{node}/restore", AUTH_TOKEN, CLASS_METADATA, CALL_JSON_BYTES_MAX, false, api_restore_node, "an older version becomes the newest"},
        {"GET", WS "/trash", AUTH_TOKEN, CLASS_METADATA, 0, false, api_trash, "what was deleted, newest first"},
        {"DELETE", WS "/trash", AUTH_TOKEN, CLASS_METADATA, 0, false, api_trash_purge, "forget what was deleted"},
        {"POST", WS "/trash/restore", AUTH_TOKEN, CLASS_METADATA, CALL_JSON_BYTES_MAX, false, api_trash_restore, "bring back what was deleted"},
        {"POST", WS "/leases", AUTH_TOKEN, CLASS_CONTROL, CALL_JSON_BYTES_MAX, false, api_lease_add, "begin a lease for locks"},
        {"POST", WS "/leases/{lease}", AUTH_TOKEN, CLASS_CONTROL, CALL_JSON_BYTES_MAX, false, api_lease_renew, "renew it"},
        {"DELETE", WS "/leases/{lease}", AUTH_TOKEN, CLASS_CONTROL, 0, false, api_lease_end, "end it and give up its locks"},
        {"POST", WS "/leases/{lease}/locks", AUTH_TOKEN, CLASS_EVENTS, CALL_JSON_BYTES_MAX, false, api_lock, "take, test or give up a lock; long poll"},
        {"GET", WS "/members", AUTH_TOKEN, CLASS_CONTROL, 0, false, api_members, "who may do what here"},
        {"PUT", WS "/members/{user}", AUTH_TOKEN, CLASS_CONTROL, CALL_JSON_BYTES_MAX, false, api_member_set, "give a user a role"},
        {"DELETE", WS "/members/{user}", AUTH_TOKEN, CLASS_CONTROL, 0, false, api_member_remove, "take a user's access"},
        {NULL, NULL, AUTH_NONE, CLASS_CONTROL, 0, false, NULL, NULL},
};

struct piece { const char *p; size_t n; };

/* Fits a path to a pattern; params gets the pieces for {...}. */
static bool pattern_fits(const char *pattern, const char *path, size_t n, struct piece *params, size_t *ret_params) {
        const char *end = path + n;
        size_t k = 0;

        while (*pattern) {
                const char *next = strchrnul(pattern + 1, '/');
                size_t m = (size_t)(next - pattern);
                const char *slash;

                if (strcmp(pattern, "/{path}") == 0) {
                        if (path < end)
                                path++; /* the slash */
                        params[k++] = (struct piece){path, (size_t)(end - path)};
                        path = end;
                        break;
                }
                if (path >= end || *path != '/')
                        return false;
                slash = memchr(path + 1, '/', (size_t)(end - path - 1));
                if (!slash)
                        slash = end;
                if (pattern[1] == '{') {
                        if (slash == path + 1)
                                return false;
                        params[k++] = (struct piece){path + 1, (size_t)(slash - path - 1)};
                } else if ((size_t)(slash - path) != m || memcmp(path, pattern, m) != 0) {
                        return false;
                }
                path = slash;
                pattern = next;
        }
        *ret_params = k;
        return path == end;
}

static bool takes_rest(const struct route *route) {
        size_t n = strlen(route->pattern);

        return n >= 6 && strcmp(route->pattern + n - 6, "{path}") == 0;
}

int router_find(const char *method, const char *path, size_t path_bytes, struct call *c, const struct route **ret, char *ret_allow, size_t allow_bytes) {
        const struct route *found = NULL;
        struct piece params[3], fit[3];
        size_t n_params = 0, n_fit, allowed = 0;
        bool known = false;

        if (allow_bytes > 0)
                ret_allow[0] = 0;
        for (const struct route *route = routes; route->method; route++) {
                bool same;

                if (!pattern_fits(route->pattern, path, path_bytes, fit, &n_fit))
                        continue;
                known = true;
                same = strcmp(route->method, method) == 0;
                if (same || (!found && strcmp(method, "HEAD") == 0 && strcmp(route->method, "GET") == 0)) {
                        found = route;
                        memcpy(params, fit, sizeof params);
                        n_params = n_fit;
                }
                if (same)
                        break;
                if (allowed + strlen(route->method) + 3 < allow_bytes) {
                        int n = snprintf(ret_allow + allowed, allow_bytes - allowed, "%s%s", allowed ? ", " : "", route->method);

                        allowed += n > 0 ? (size_t)n : 0;
                }
        }
        if (!found)
                return known ? -EOPNOTSUPP : -ENOENT;
        for (size_t i = 0; c && i < n_params; i++) {
                int r;

                if (takes_rest(found) && i + 1 == n_params) {
                        c->param[i] = arena_strndup(c->arena, params[i].p, params[i].n);
                        r = c->param[i] ? 0 : -ENOMEM;
                } else {
                        r = call_decode(c, params[i].p, params[i].n, &c->param[i]);
                }
                if (r < 0)
                        return r;
        }
        *ret = found;
        return 0;
}

/* "Bearer TOKEN" -> the subject. -EKEYREJECTED. */
static int authenticate(struct call *c) {
        const char *text = c->req->authorization;

        if (!text || strncasecmp(text, "Bearer ", 7) != 0)
                return -EKEYREJECTED;
        text += 7;
        text += strspn(text, " ");
        return meta_token_check(c->s->meta, text, &c->who);
}

int router_run(struct call *c) {
        const char *target = c->req->target, *question;
        size_t n = strnlen(target, CALL_TARGET_BYTES_MAX + 1), path_bytes;
        int r;

        if (n > CALL_TARGET_BYTES_MAX)
                return call_fail(c, "TOO_LARGE", "the address is longer than %u bytes", CALL_TARGET_BYTES_MAX);
        question = strchr(target, '?');
        path_bytes = question ? (size_t)(question - target) : n;
        r = router_find(c->req->method, target, path_bytes, c, &c->route, c->ans->allow, sizeof c->ans->allow);
        if (r == -ENOENT)
                return call_fail(c, "NOT_FOUND", "there is nothing at %.*s; docs/api.md lists what there is", (int)MIN(path_bytes, (size_t)200), target);
        if (r == -EOPNOTSUPP)
                return call_fail(c, "METHOD_NOT_ALLOWED", "%.16s is not possible here; possible: %s", c->req->method, c->ans->allow);
        if (r == -EILSEQ)
                return call_fail(c, "NAME_INVALID", "the address is not correctly percent-encoded");
        if (r < 0)
                return call_fail_errno(c, r, "routing");
        c->ans->allow[0] = 0;
        (void)atomic_fetch_add_explicit(&c->s->stats.requests[c->route->class], 1, memory_order_relaxed);
        if (question) {
                r = call_parse_query(c, question + 1);
                if (r < 0)
                        return call_fail(c, "INVALID", "the query is not correctly encoded or has more than %u parts", CALL_QUERIES_MAX);
        }
        if (c->route->auth == AUTH_TOKEN) {
                r = authenticate(c);
                if (r == -EKEYREJECTED)
                        return call_fail(c, "UNAUTHORIZED", "a valid token is needed (Authorization: Bearer TOKEN); log in again");
                if (r < 0)
                        return call_fail_errno(c, r, "checking the token");
        }
        if (!c->route->stream && c->req->body_bytes > c->route->max_body_bytes)
                return call_fail(c, "TOO_LARGE", "the body may have at most %zu bytes here", c->route->max_body_bytes);
        r = c->route->run(c);
        if (r < 0 && r != -EINPROGRESS)
                return call_fail_errno(c, r, c->route->summary);
        return r;
}

int router_print(struct buf *b) {
        for (const struct route *route = routes; route->method; route++) {
                int r = buf_printf(b, "%s %s\n", route->method, route->pattern);

                if (r < 0)
                        return r;
        }
        return 0;
}
