/* SPDX-License-Identifier: Apache-2.0 */
/* api_members.c: who may do what in a workspace. Everybody in it sees the list; owners change it. There is always an owner. A role is read in each request and again
 * in each transaction, so a change counts at once. */
#include "api_call.h"

#include <string.h>

static int answer_members(struct call *c, uint64_t ws) {
        _cleanup_json_ json_t *list = json_array();
        struct meta_member *members;
        size_t n;
        int r = meta_members(c->s->meta, ws, c->arena, &members, &n);

        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (json_array_append_new(list, json_pack("{s:s, s:s}", "user", members[i].name, "role", meta_role_name(members[i].role))) < 0)
                        return -ENOMEM;
        return call_answer_json(c, 200, json_pack("{s:O}", "members", list));
}

int api_members(struct call *c) {
        struct meta_workspace w;

        return call_workspace(c, ROLE_VIEWER, &w) ? 0 : answer_members(c, w.ws);
}

static int change(struct call *c, const struct meta_workspace *w, enum meta_role role) {
        int r = meta_member_set(c->s->meta, &c->who, w->ws, c->param[1], role);

        if (r == -ENOENT)
                return call_fail(c, "NOT_FOUND", "there is no user %s", c->param[1]);
        if (r == -EBUSY)
                return call_fail(c, "CONFLICT", "%s is the last owner; make somebody else an owner first", c->param[1]);
        if (r < 0)
                return r;
        return role == ROLE_NONE ? call_answer_empty(c, 204) : answer_members(c, w->ws);
}

int api_member_set(struct call *c) {
        _cleanup_json_ json_t *body = NULL;
        struct meta_workspace w;
        enum meta_role role;
        const char *text;

        if (call_workspace(c, ROLE_OWNER, &w))
                return 0;
        if (call_json(c, &body) < 0 || json_get_str(body, "role", &text) < 0 || meta_role_parse(text, &role) < 0 || role == ROLE_NONE)
                return call_fail(c, "INVALID", "the body must be {\"role\": \"viewer\", \"editor\" or \"owner\"}");
        return change(c, &w, role);
}

int api_member_remove(struct call *c) {
        struct meta_workspace w;

        return call_workspace(c, ROLE_OWNER, &w) ? 0 : change(c, &w, ROLE_NONE);
}
