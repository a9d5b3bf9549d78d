/* SPDX-License-Identifier: Apache-2.0 */
/* api_workspace.c: what the server is (GET /v1) and the workspaces of an account. A workspace that the asker is not a member of does not exist for
 * him. Its `id` on the wire is the number that the database gives it; clients name it by name, and notice by epoch that it is another one. */
#include "api_call.h"

#include <inttypes.h>
#include <string.h>

#include "api/wire.h"

int api_root(struct call *c) {
        return call_answer_json(c, 200,
                                json_pack("{s:s, s:s, s:i, s:[s,s,s,s,s,s], s:{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}}", "name", "tarn", "version", TARN_VERSION, "api", 1,
                                          "features", "commit", "blocks", "zstd", "events", "files", "versions",
                                          "limits", "batch_bytes", (json_int_t)BATCH_BYTES_MAX, "batch_ops", (json_int_t)BATCH_OPS_MAX, "inline_bytes",
                                          (json_int_t)INLINE_BYTES_MAX, "block_bytes", (json_int_t)BLOCK_BYTES_MAX, "name_bytes", (json_int_t)NAME_BYTES_MAX,
                                          "snapshot_rows", (json_int_t)SNAPSHOT_ROWS_MAX, "events_wait_s", (json_int_t)EVENTS_WAIT_S_MAX, "events_cursors",
                                          (json_int_t)EVENTS_CURSORS_MAX, "target_bytes", (json_int_t)CALL_TARGET_BYTES_MAX));
}

static json_t *json_workspace(const struct meta_workspace *w) {
        char id[24];

        (void)snprintf(id, sizeof id, "%" PRIu64, w->ws);
        return json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:I, s:o, s:I, s:I, s:I, s:I}", "name", w->name, "id", id, "role", meta_role_name(w->role), "owner", w->owner, "names",
                         w->names == NAMES_PORTABLE ? "portable" : "exact", "epoch", json_hex(w->at.epoch.b, ID_BYTES), "seq", (json_int_t)w->at.seq, "mark",
                         json_hex(w->at.mark, sizeof w->at.mark), "quota_bytes", (json_int_t)w->quota_bytes, "used_bytes", (json_int_t)w->used_bytes, "reserved_bytes",
                         (json_int_t)w->reserved_bytes, "nodes", (json_int_t)w->nodes);
}

int api_workspaces(struct call *c) {
        _cleanup_json_ json_t *list = json_array();
        struct meta_workspace *w;
        size_t n;
        int r = meta_workspaces(c->s->meta, &c->who, c->arena, &w, &n);

        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (json_array_append_new(list, json_workspace(&w[i])) < 0)
                        return -ENOMEM;
        return call_answer_json(c, 200, json_pack("{s:O}", "workspaces", list));
}

int api_workspace_add(struct call *c) {
        _cleanup_json_ json_t *body = NULL;
        const char *name, *names = "exact";
        struct meta_workspace w;
        int64_t quota = 0;
        uint64_t ws;
        int r;

        if (call_json(c, &body) < 0 || json_get_str(body, "name", &name) < 0)
                return call_fail(c, "INVALID", "the body must be {\"name\": ..., \"quota_bytes\": optional}");
        r = json_get_int(body, "quota_bytes", 0, INT64_MAX, &quota);
        if (r < 0 && r != -ENOENT)
                return call_fail(c, "INVALID", "quota_bytes must be a number of bytes, 0 for none");
        r = json_get_str(body, "names", &names);
        if ((r < 0 && r != -ENOENT) || (strcmp(names, "exact") != 0 && strcmp(names, "portable") != 0))
                return call_fail(c, "INVALID", "names must be \"exact\" or \"portable\"");
        r = meta_workspace_add(c->s->meta, name, c->who.account_name, strcmp(names, "portable") == 0 ? NAMES_PORTABLE : NAMES_EXACT, (uint64_t)quota, &ws);
        if (r == -EEXIST)
                return call_fail(c, "CONFLICT", "there is a workspace of that name already");
        if (r == -EINVAL)
                return call_fail(c, "NAME_INVALID", "a workspace's name has 1 to %u of the characters A-Z a-z 0-9 . _ - @", META_NAME_MAX);
        if (r < 0)
                return r;
        r = meta_access(c->s->meta, &c->who, name, ROLE_OWNER, &w);
        if (r < 0)
                return r;
        return call_answer_json(c, 201, json_workspace(&w));
}

int api_workspace(struct call *c) {
        struct meta_workspace w;

        if (call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        return call_answer_json(c, 200, json_workspace(&w));
}
