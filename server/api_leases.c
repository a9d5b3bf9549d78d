/* SPDX-License-Identifier: Apache-2.0 */
/* api_leases.c: leases and locks over HTTP; leases.c decides, docs/locks.md is the protocol.
 *
 * Who asks is the device of the token: another device's lease does not exist for it. Viewers may lock for reading only: a lock for writing is of use only to who may write.
 *
 * The answer to a lock that was got has the workspace's newest seq, read after the lock was given: whatever was committed under a lock that ended before is at or below it. A client shows nothing of
 * the node before it has applied the events up to there. */
#include "api_call.h"

#include <inttypes.h>
#include <string.h>

#include "api/wire.h"

#define LOCK_WAIT_S_MAX EVENTS_WAIT_S_MAX
#define NUMBER_MAX INT64_MAX

static void who_of(const struct call *c, const struct meta_workspace *w, struct lease_who *ret) {
        *ret = (struct lease_who){.ws = w->ws, .account = c->who.account, .device = c->who.device};
}

static int fail_lease(struct call *c, int err, const char *what) {
        switch (-err) {
        case ENOLCK:
                return call_fail(c, "LEASE_ENDED", "this lease has ended, and its locks with it; begin a new one");
        case EUSERS:
                return call_fail(c, "RATE_LIMITED", "%s: too many at once", what);
        case EDEADLK:
                return call_fail(c, "DEADLOCK", "who holds the lock waits for the asker");
        case ESTALE:
                return call_fail(c, "PRECONDITION_FAILED", "the request of this number is done or cancelled");
        default:
                return call_fail_errno(c, err, what);
        }
}

/* Workspace and lease of the address: 0, 1 answered. */
static int lease_of(struct call *c, struct lease_who *ret_who, struct id *ret, struct meta_workspace *ret_w) {
        if (call_workspace(c, ROLE_VIEWER, ret_w))
                return 1;
        if (hex_decode(c->param[1], ret->b, ID_BYTES) < 0)
                return call_fail(c, "INVALID", "a lease is %u hex digits", 2 * ID_BYTES), 1;
        who_of(c, ret_w, ret_who);
        return 0;
}

static int answer_lease(struct call *c, int status, const struct id *lease) {
        return call_answer_json(c, status, json_pack("{s:o, s:I}", "lease", json_hex(lease->b, ID_BYTES), "lease_ms", (json_int_t)leases_ms(c->s->leases)));
}

int api_lease_add(struct call *c) {
        struct meta_workspace w;
        struct lease_who who;
        struct id lease;
        int r;

        if (call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        who_of(c, &w, &who);
        r = lease_begin(c->s->leases, &who, &lease);
        return r < 0 ? fail_lease(c, r, "leases") : answer_lease(c, 201, &lease);
}

int api_lease_renew(struct call *c) {
        struct meta_workspace w;
        struct lease_who who;
        struct id lease;
        int r;

        if (lease_of(c, &who, &lease, &w))
                return 0;
        r = lease_renew(c->s->leases, &who, &lease);
        return r < 0 ? fail_lease(c, r, "renewing") : answer_lease(c, 200, &lease);
}

int api_lease_end(struct call *c) {
        struct meta_workspace w;
        struct lease_who who;
        struct id lease;
        int r;

        if (lease_of(c, &who, &lease, &w))
                return 0;
        r = lease_end(c->s->leases, &who, &lease);
        return r < 0 ? fail_lease(c, r, "ending") : call_answer_empty(c, 204);
}

/* A member that may be absent. -EINVAL. */
static int get_u64(const json_t *j, const char *key, uint64_t max, uint64_t *io) {
        int64_t v;
        int r = json_get_int(j, key, 0, (int64_t)max, &v);

        if (r >= 0)
                *io = (uint64_t)v;
        return r == -ENOENT ? 0 : r;
}

static int get_flag(const json_t *j, const char *key, bool *io) {
        int r = json_get_bool(j, key, io);

        return r == -ENOENT ? 0 : r;
}

/* -EINVAL. */
static int get_lock(const json_t *j, struct lease_lock *ret) {
        const char *node, *owner, *kind = "posix", *type;
        uint8_t b[8];
        int r = json_get_str(j, "kind", &kind);

        *ret = (struct lease_lock){.end = LOCK_END};
        if ((r < 0 && r != -ENOENT) || json_get_str(j, "node", &node) < 0 || json_get_str(j, "owner", &owner) < 0 || json_get_str(j, "type", &type) < 0)
                return -EINVAL;
        if (hex_decode(node, ret->node.b, ID_BYTES) < 0 || hex_decode(owner, b, sizeof b) < 0 || get_u64(j, "start", LOCK_END, &ret->start) < 0 || get_u64(j, "end", LOCK_END, &ret->end) < 0)
                return -EINVAL;
        for (size_t i = 0; i < sizeof b; i++)
                ret->owner = ret->owner << 8 | b[i];
        ret->flock = strcmp(kind, "flock") == 0;
        ret->type = strcmp(type, "write") == 0 ? LEASE_WRITE : strcmp(type, "read") == 0 ? LEASE_READ : LEASE_NONE;
        if ((!ret->flock && strcmp(kind, "posix") != 0) || (ret->type == LEASE_NONE && strcmp(type, "none") != 0))
                return -EINVAL;
        if (ret->flock && (ret->start != 0 || ret->end != LOCK_END))
                return -EINVAL;
        return ret->start > ret->end ? -EINVAL : 0;
}

static json_t *json_held(const struct lease_held *h) {
        char owner[17];

        (void)snprintf(owner, sizeof owner, "%016" PRIx64, h->lock.owner);
        return json_pack("{s:s, s:s, s:I, s:I, s:s, s:b}", "kind", h->lock.flock ? "flock" : "posix", "type", h->lock.type == LEASE_WRITE ? "write" : "read", "start", (json_int_t)h->lock.start,
                         "end", (json_int_t)h->lock.end, "owner", owner, "yours", (int)h->yours);
}

/* What a lock brings: how new the workspace is. */
static int answer_locked(struct call *c) {
        struct meta_workspace w;

        if (call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        return call_answer_json(c, 200, json_pack("{s:o, s:I}", "cursor", json_cursor(&w.at), "lease_ms", (json_int_t)leases_ms(c->s->leases)));
}

int api_lock(struct call *c) {
        _cleanup_json_ json_t *j = NULL;
        struct service_waiter *waiter = c->req->no_wait ? NULL : c->req->waiter;
        struct lease_request q = {.number = 0};
        struct lease_held held;
        struct meta_workspace w;
        struct lease_who who;
        uint64_t wait_s = 0;
        bool cancel = false;
        struct id lease;
        int r;

        if (lease_of(c, &who, &lease, &w))
                return 0;
        r = call_json(c, &j);
        if (r == -ENOMEM)
                return r;
        if (r < 0 || get_u64(j, "number", NUMBER_MAX, &q.number) < 0 || get_u64(j, "done", NUMBER_MAX, &q.done) < 0 || get_u64(j, "wait", NUMBER_MAX, &wait_s) < 0 ||
            get_flag(j, "test", &q.test) < 0 || get_flag(j, "cancel", &cancel) < 0 || (q.test ? cancel : q.number == 0) || (!cancel && get_lock(j, &q.lock) < 0))
                return call_fail(c, "INVALID", "a lock is {node, owner, kind, type, start, end, number, done, wait}, a test has test instead of number, a cancellation is {number, done, cancel}");
        if (cancel) {
                r = lease_cancel(c->s->leases, &who, &lease, q.number, q.done);
                return r < 0 ? fail_lease(c, r, "cancelling") : answer_lease(c, 200, &lease);
        }
        if (q.lock.type == LEASE_WRITE && w.role < ROLE_EDITOR)
                return call_fail(c, "FORBIDDEN", "a lock for writing needs the role %s in the workspace", meta_role_name(ROLE_EDITOR));
        r = lease_lock(c->s->leases, &who, &lease, &q, waiter, (int64_t)MIN(wait_s, (uint64_t)LOCK_WAIT_S_MAX) * 1000, &held);
        if (r == -EINPROGRESS)
                return r;
        if (r == -EAGAIN && q.test)
                return call_answer_json(c, 200, json_pack("{s:b, s:o}", "free", 0, "held", json_held(&held)));
        if (r == -EAGAIN) {
                json_t *extra = json_pack("{s:o}", "held", json_held(&held));

                return extra ? call_fail_with(c, "LOCKED", extra, "somebody else holds a lock on it") : -ENOMEM;
        }
        if (r < 0)
                return fail_lease(c, r, "locking");
        return q.test ? call_answer_json(c, 200, json_pack("{s:b}", "free", 1)) : answer_locked(c);
}
