/* SPDX-License-Identifier: Apache-2.0 */
/* api_events.c: events after the cursors of several workspaces, and the long poll.
 *
 * Events leave as meta packed them when they were committed: the payload of an EVENT frame, copied, not encoded anew.
 *
 * A poll that finds nothing registers its waiter BEFORE it looks, so that a commit between looking and parking is not missed: the waiter's
 * mask has one bit per workspace (number modulo 64), and a commit calls the waiters whose mask has its bit. A bit that two workspaces
 * share costs a look, nothing else. Registered, woken, removed: under waiters_lock, which ranks below the queues, because `ready` puts
 * the owner's job into one. A registration ends with its first wake; looking again registers anew.
 *
 * Each cursor of an answer comes with the workspace's quota and what is used of it, so that a client's statfs has numbers without asking.
 *
 * A cursor that the server does not know (another epoch, a wrong mark, below the horizon, from the future) is 410 CURSOR_GONE for the whole request and names
 * its workspace: the client loads a snapshot and polls for the others meanwhile. */
#include "api_call.h"

#include <string.h>

#include "api/wire.h"

#define EVENTS_LIMIT 1000u
#define EVENTS_BYTES_MAX (4u << 20)   /* of one answer, shared by its workspaces; always one event */

struct poll { struct meta_workspace w; struct cursor cursor, upto; struct meta_event *events; size_t n; };

/* "W:EPOCH:SEQ:MARK" */
static int cursor_parse(struct call *c, const char *text, const char **ret_name, struct cursor *ret) {
        char *copy = arena_strndup(c->arena, text, strlen(text)), *field[4], *rest = copy;
        char *end;

        if (!copy)
                return -ENOMEM;
        for (size_t i = 0; i < 4; i++) {
                field[i] = strsep(&rest, ":");
                if (!field[i] || !*field[i])
                        return -EINVAL;
        }
        if (rest || hex_decode(field[1], ret->epoch.b, ID_BYTES) < 0 || hex_decode(field[3], ret->mark, sizeof ret->mark) < 0)
                return -EINVAL;
        if (strspn(field[2], "0123456789") != strlen(field[2]) || strlen(field[2]) > 19)
                return -EINVAL;
        errno = 0;
        ret->seq = strtoull(field[2], &end, 10);
        *ret_name = field[0];
        return errno || *end || ret->seq > INT64_MAX ? -EINVAL : 0;
}

static int gone(struct call *c, const struct meta_workspace *w) {
        json_t *j = json_pack("{s:s, s:o, s:I}", "workspace", w->name, "epoch", json_hex(w->at.epoch.b, ID_BYTES), "seq", (json_int_t)w->at.seq);

        if (j && !id_is_zero(&w->predecessor) &&
            (json_object_set_new(j, "predecessor", json_hex(w->predecessor.b, ID_BYTES)) < 0 || json_object_set_new(j, "fork_seq", json_integer((json_int_t)w->fork_seq)) < 0))
                j = (json_decref(j), NULL);
        return call_fail_with(c, "CURSOR_GONE", j, "the cursor of workspace %s is not known here; load a snapshot", w->name);
}

static int raw_frame(struct buf *b, enum frame_kind kind, const void *p, size_t n) {
        uint8_t head[FRAME_HEADER_BYTES] = {(uint8_t)kind, (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24)};
        int r = buf_add(b, head, sizeof head);

        return r < 0 ? r : buf_add(b, p, n);
}

static json_t *json_event(struct call *c, const struct meta_event *e) {
        _cleanup_arena_ struct arena *a = NULL;
        struct event event;
        json_t *changes = json_array(), *j;

        if (arena_new(CALL_ARENA_BYTES, &a) < 0 || wire_unpack_event(e->bytes, e->n, a, &event) < 0)
                return json_decref(changes), NULL;
        for (size_t i = 0; i < event.n_changes; i++) {
                const struct change *ch = &event.changes[i];
                json_t *node = json_node(&ch->node), *entries = ch->has_entries ? json_array() : NULL;

                for (size_t k = 0; entries && k < ch->n_entries; k++)
                        if (json_array_append_new(entries, json_entry(&ch->entries[k])) < 0)
                                return json_decref(node), json_decref(entries), json_decref(changes), NULL;
                if (json_array_append_new(changes, entries ? json_pack("{s:o, s:o}", "node", node, "entries", entries) : json_pack("{s:o}", "node", node)) < 0)
                        return json_decref(changes), NULL;
        }
        (void)c;
        j = json_pack("{s:I, s:o, s:o, s:I, s:o, s:s?, s:s?}", "seq", (json_int_t)event.seq, "mark", json_hex(event.mark, sizeof event.mark), "op",
                      json_hex(event.op.b, ID_BYTES), "time_ns", (json_int_t)event.time_ns, "changes", changes, "actor", event.actor, "device", event.device);
        return j;
}

/* What counts to the quota. */
static uint64_t taken(const struct meta_workspace *w) {
        return w->used_bytes + w->reserved_bytes;
}

static int answer_json(struct call *c, const struct poll *polls, size_t n, bool all) {
        _cleanup_json_ json_t *list = json_array();

        for (size_t i = 0; i < n; i++) {
                json_t *events;

                if (polls[i].n == 0 && !all)
                        continue;
                events = json_array();
                for (size_t k = 0; events && k < polls[i].n; k++)
                        if (json_array_append_new(events, json_event(c, &polls[i].events[k])) < 0)
                                return json_decref(events), -ENOMEM;
                if (json_array_append_new(list, json_pack("{s:s, s:o, s:o, s:I, s:I}", "workspace", polls[i].w.name, "cursor", json_cursor(&polls[i].upto), "events", events,
                                                          "quota_bytes", (json_int_t)polls[i].w.quota_bytes, "used_bytes", (json_int_t)taken(&polls[i].w))) < 0)
                        return -ENOMEM;
        }
        return call_answer_json(c, 200, json_pack("{s:O}", "workspaces", list));
}

static int answer_frames(struct call *c, const struct poll *polls, size_t n, bool all) {
        for (size_t i = 0; i < n; i++) {
                struct wire_cursor cursor = {polls[i].w.name, polls[i].upto, polls[i].w.quota_bytes, taken(&polls[i].w)};
                int r;

                if (polls[i].n == 0 && !all)
                        continue;
                r = wire_add_cursor(&c->ans->body, &cursor);
                for (size_t k = 0; r >= 0 && k < polls[i].n; k++)
                        r = raw_frame(&c->ans->body, FRAME_EVENT, polls[i].events[k].bytes, polls[i].events[k].n);
                if (r < 0)
                        return r;
        }
        return call_answer_frames(c);
}

static void wait_add(struct service *s, struct service_waiter *w, uint64_t mask) {
        LOCK_SCOPE(&s->waiters_lock);
        w->mask = mask;
        if (w->registered)
                return;
        w->prev = NULL;
        w->next = s->waiters;
        if (w->next)
                w->next->prev = w;
        s->waiters = w;
        w->registered = true;
}

/* Reads cursors; 0, 1 answered, -errno. */
static int polls_parse(struct call *c, struct poll *polls, size_t *ret_n, uint64_t *ret_mask) {
        size_t n = 0;

        *ret_mask = 0;
        for (size_t i = 0; i < c->n_query; i++) {
                struct poll *p = &polls[n];
                const char *name;
                int r;

                if (strcmp(c->query[i].key, "cursor") != 0)
                        continue;
                if (n == EVENTS_CURSORS_MAX)
                        return call_fail(c, "TOO_LARGE", "at most %u cursors in one request", EVENTS_CURSORS_MAX), 1;
                r = cursor_parse(c, c->query[i].value, &name, &p->cursor);
                if (r == -EINVAL)
                        return call_fail(c, "INVALID", "a cursor is WORKSPACE:EPOCH:SEQ:MARK"), 1;
                if (r < 0)
                        return r;
                c->param[0] = name;
                if (call_workspace(c, ROLE_VIEWER, &p->w))
                        return 1;
                *ret_mask |= UINT64_C(1) << (p->w.ws % 64);
                n++;
        }
        if (n == 0)
                return call_fail(c, "INVALID", "at least one cursor=WORKSPACE:EPOCH:SEQ:MARK is needed"), 1;
        *ret_n = n;
        return 0;
}

int api_events(struct call *c) {
        struct poll *polls = arena_alloc(c->arena, EVENTS_CURSORS_MAX * sizeof *polls);
        struct service_waiter *waiter = c->req->no_wait ? NULL : c->req->waiter;
        uint64_t wait_s = 0, limit = EVENTS_LIMIT, mask;
        size_t n, total = 0, room = EVENTS_BYTES_MAX;
        int r;

        if (!polls)
                return -ENOMEM;
        r = call_query_u64(c, "wait", 0, UINT32_MAX, &wait_s);
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "wait must be a number of seconds");
        r = call_query_u64(c, "limit", 1, UINT32_MAX, &limit);
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "limit must be a number from 1");
        wait_s = MIN(wait_s, (uint64_t)EVENTS_WAIT_S_MAX);
        limit = MIN(limit, (uint64_t)EVENTS_LIMIT);
        r = polls_parse(c, polls, &n, &mask);
        if (r != 0)
                return r < 0 ? r : 0;
        if (waiter && wait_s > 0) {
                if (waiter->deadline_ms == 0)
                        waiter->deadline_ms = clock_mono_ms(c->s->clock) + (int64_t)wait_s * 1000;
                wait_add(c->s, waiter, mask);
        }
        for (size_t i = 0; i < n; i++) {
                struct poll *p = &polls[i];
                struct meta_workspace at = p->w;

                r = meta_events(c->s->meta, p->w.ws, &p->cursor, limit, MAX(room, (size_t)1), c->arena, &p->events, &p->n, &p->upto, &at);
                if (r < 0) {
                        if (r != -EIDRM)
                                return r;
                        (void)snprintf(at.name, sizeof at.name, "%s", p->w.name);
                        return gone(c, &at);
                }
                p->w.quota_bytes = at.quota_bytes; /* read with the events: what these took is in it */
                p->w.used_bytes = at.used_bytes;
                p->w.reserved_bytes = at.reserved_bytes;
                total += p->n;
                for (size_t k = 0; k < p->n; k++)
                        room -= MIN(room, p->events[k].n);
        }
        if (total == 0 && waiter && wait_s > 0)
                return -EINPROGRESS;
        return call_wants_json(c) ? answer_json(c, polls, n, total == 0) : answer_frames(c, polls, n, total == 0);
}
