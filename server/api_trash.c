/* SPDX-License-Identifier: Apache-2.0 */
/* api_trash.c: what was deleted: list it, bring it back, forget it.
 *
 * Bringing back takes one node, a path with what was below it, a time, or all of these together: so that one request undoes a `rm -rf` of whatever size.
 * It goes from the newest tombstone to the oldest (meta_trash.c) and stops after RUN_MS or RUN_NODES with `before`, from where the next request goes on: a
 * request is never longer than a client waits, and one that was broken off may be sent again. Times are the server's: a client says how many seconds ago, so that no two clocks
 * are compared.
 *
 * Forgetting is for owners. */
#include "api_content.h"

#include <string.h>

#include "base/digest.h"

#define LIMIT_DEFAULT 100u
#define LIMIT_MAX 1000u
#define PAGE 200u
#define RUN_NODES 20000u
#define RUN_MS 10000

static json_t *json_trash(const struct meta_trash *t) {
        json_t *j = json_pack("{s:o, s:s, s:s, s:I, s:o, s:I, s:I, s:s, s:s}", "id", json_hex(t->node.id.b, ID_BYTES), "kind", node_kind_name(t->node.kind), "path", t->path, "size",
                              (json_int_t)t->node.content.size, "version", json_hex(t->node.version.b, ID_BYTES), "seq", (json_int_t)t->node.seq, "deleted_ns", (json_int_t)t->time_ns, "actor",
                              t->actor, "device", t->device);

        return j;
}

/* "since_s", "until_s": seconds ago. */
static int64_t ago(struct call *c, uint64_t seconds) {
        int64_t now = clock_real_ns(c->s->clock);

        return seconds > (uint64_t)now / 1000000000 ? 1 : now - (int64_t)seconds * 1000000000;
}

/* The filter of GET and DELETE. 0; 1 answered. */
static int query_filter(struct call *c, struct meta_trash_filter *f) {
        uint64_t since_s, until_s;
        int r;

        r = call_query_u64(c, "since_s", 0, UINT32_MAX, &since_s);
        if (r == 0)
                f->since_ns = ago(c, since_s);
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "since_s must be a number of seconds"), 1;
        r = call_query_u64(c, "until_s", 0, UINT32_MAX, &until_s);
        if (r == 0)
                f->until_ns = ago(c, until_s);
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "until_s must be a number of seconds"), 1;
        r = call_query_u64(c, "before", 1, INT64_MAX, &f->before_seq);
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "before must be the number that the page before gave"), 1;
        f->path = call_query(c, "path");
        while (f->path && *f->path == '/')
                f->path++;
        return 0;
}

int api_trash(struct call *c) {
        _cleanup_json_ json_t *list = json_array();
        struct meta_trash_filter f = {.before_seq = 0};
        uint64_t limit = LIMIT_DEFAULT, before;
        struct meta_workspace w;
        struct meta_trash *t;
        size_t n;
        json_t *j;
        int r;

        if (call_query_u64(c, "limit", 1, LIMIT_MAX, &limit) == -EINVAL)
                return call_fail(c, "INVALID", "limit must be a number from 1 to %u", LIMIT_MAX);
        if (call_workspace(c, ROLE_VIEWER, &w) || query_filter(c, &f))
                return 0;
        r = meta_trash(c->s->meta, w.ws, &f, (size_t)limit, c->arena, &t, &n, &before);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (json_array_append_new(list, json_trash(&t[i])) < 0)
                        return -ENOMEM;
        j = json_pack("{s:O}", "items", list);
        if (j && before && json_object_set_new(j, "before", json_integer((json_int_t)before)) < 0)
                j = (json_decref(j), NULL);
        return call_answer_json(c, 200, j);
}

struct restore { struct call *c; uint64_t ws; struct id job; uint64_t restored, merged, left; bool stopped; };

static struct id op_of(const struct id *job, const struct id *node) {
        struct { struct id job, node; } in = {*job, *node};
        struct digest d;
        struct id id;

        sha256(&in, sizeof in, &d);
        memcpy(id.b, d.b, sizeof id.b);
        return id;
}

/* One page; the filter goes on behind it. 0; 1 answered (an error); -errno. */
static int restore_page(struct restore *x, struct meta_trash_filter *f, int64_t deadline_ms) {
        _cleanup_arena_ struct arena *a = NULL;
        struct call *c = x->c;
        struct meta_trash *t;
        uint64_t before;
        size_t n;
        int r = arena_new(CALL_ARENA_BYTES, &a);

        if (r == 0)
                r = meta_trash(c->s->meta, x->ws, f, PAGE, a, &t, &n, &before);
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct meta_undelete u = {.subject = &c->who, .ws = x->ws, .op = op_of(&x->job, &t[i].node.id), .job = x->job, .node = t[i].node.id};
                struct meta_put_result res;

                r = meta_undelete(c->s->meta, &u, a, &res);
                if (r < 0)
                        return r;
                if (res.code == RES_FORBIDDEN)
                        return call_fail_op(c, res.code, "restoring"), 1;
                x->restored += res.code == RES_OK;
                x->merged += res.code == RES_MERGED;
                x->left += res.code != RES_OK && res.code != RES_MERGED && res.code != RES_NOT_FOUND; /* not found: a directory that came back with what was in it */
                f->before_seq = t[i].node.seq;
                if (clock_mono_ms(c->s->clock) >= deadline_ms || x->restored + x->merged >= RUN_NODES) {
                        x->stopped = true;
                        return 0;
                }
        }
        if (r == 0)
                f->before_seq = before;
        return r;
}

static int restore_filter(struct call *c, const json_t *body, struct meta_trash_filter *f) {
        const char *node = NULL, *path = NULL;
        int64_t since_s, until_s, before;
        int r;

        r = json_get_str(body, "node", &node);
        if (r == -EINVAL || (node && hex_decode(node, f->node.b, ID_BYTES) < 0))
                return -EINVAL;
        if (json_get_str(body, "path", &path) == -EINVAL)
                return -EINVAL;
        while (path && *path == '/')
                path++;
        f->path = path;
        r = json_get_int(body, "since_s", 0, UINT32_MAX, &since_s);
        if (r == 0)
                f->since_ns = ago(c, (uint64_t)since_s);
        if (r == -EINVAL)
                return r;
        r = json_get_int(body, "until_s", 0, UINT32_MAX, &until_s);
        if (r == 0)
                f->until_ns = ago(c, (uint64_t)until_s);
        if (r == -EINVAL)
                return r;
        r = json_get_int(body, "before", 1, INT64_MAX, &before);
        if (r == 0)
                f->before_seq = (uint64_t)before;
        if (r == -EINVAL)
                return r;
        return node || path || f->since_ns ? 0 : -EINVAL;
}

int api_trash_restore(struct call *c) {
        struct restore x = {.c = c, .job = call_op_id(c)};
        struct meta_trash_filter f = {.before_seq = 0};
        _cleanup_json_ json_t *body = NULL;
        int64_t deadline_ms = clock_mono_ms(c->s->clock) + RUN_MS;
        struct meta_workspace w;
        json_t *j;
        int r;

        if (call_workspace(c, ROLE_EDITOR, &w))
                return 0;
        if (call_json(c, &body) < 0 || restore_filter(c, body, &f) < 0)
                return call_fail(c, "INVALID", "the body names what comes back: {\"node\": ID}, {\"path\": ...}, {\"since_s\": seconds ago} or several of them");
        x.ws = w.ws;
        do {
                r = restore_page(&x, &f, deadline_ms);
                if (r != 0)
                        return r < 0 ? r : 0;
        } while (!x.stopped && f.before_seq);
        j = json_pack("{s:o, s:I, s:I, s:I}", "job", json_hex(x.job.b, ID_BYTES), "restored", (json_int_t)x.restored, "merged", (json_int_t)x.merged, "left", (json_int_t)x.left);
        if (j && x.stopped && json_object_set_new(j, "before", json_integer((json_int_t)f.before_seq)) < 0)
                j = (json_decref(j), NULL);
        return call_answer_json(c, 200, j);
}

int api_trash_purge(struct call *c) {
        struct meta_trash_filter f = {.before_seq = 0};
        int64_t deadline_ms = clock_mono_ms(c->s->clock) + RUN_MS;
        uint64_t purged = 0, bytes = 0, left = 0;
        struct content_pages pages;
        struct meta_workspace w;
        bool stopped = false;
        json_t *j;
        int r;

        if (call_workspace(c, ROLE_OWNER, &w) || query_filter(c, &f))
                return 0;
        r = content_pages_open(c->s, &c->who, w.ws, &pages);
        if (r < 0)
                return r;
        do {
                _cleanup_arena_ struct arena *a = NULL;
                struct meta_trash *t;
                uint64_t before = 0;
                size_t n = 0;

                r = arena_new(CALL_ARENA_BYTES, &a);
                if (r == 0)
                        r = meta_trash(c->s->meta, w.ws, &f, PAGE, a, &t, &n, &before);
                for (size_t i = 0; r == 0 && i < n && !stopped; i++) {
                        uint64_t released = 0;

                        r = meta_trash_purge(c->s->meta, w.ws, &t[i], &pages.get, &released);
                        purged += r == 0;
                        bytes += released;
                        left += r == -EBADMSG || r == -ENODATA;
                        if (r == -ESTALE || r == -EBADMSG || r == -ENODATA)
                                r = 0;
                        before = i + 1 < n ? t[i].node.seq : before;
                        stopped = clock_mono_ms(c->s->clock) >= deadline_ms;
                }
                f.before_seq = before;
        } while (r == 0 && !stopped && f.before_seq);
        content_pages_close(&pages);
        if (r < 0)
                return r;
        j = json_pack("{s:I, s:I, s:I}", "purged", (json_int_t)purged, "released_bytes", (json_int_t)bytes, "left", (json_int_t)left);
        if (j && stopped && f.before_seq && json_object_set_new(j, "before", json_integer((json_int_t)f.before_seq)) < 0)
                j = (json_decref(j), NULL);
        return call_answer_json(c, 200, j);
}
