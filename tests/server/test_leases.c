/* SPDX-License-Identifier: Apache-2.0 */
/* test_leases.c: locks across clients: ranges against a model of single bytes, waits, deadlocks, numbers, ends and pins of leases by a clock moved by hand; then the same over the routes, with commits
 * that are fenced. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/wire.h"
#include "api_call.h"
#include "base/digest.h"
#include "leases.h"

#define LEASE_MS 10000

struct kit {
        struct clock_manual clock;
        struct rng_seeded rng;
        struct leases *ls;
        struct lease_who who[3];
        struct id lease[3], node;
        uint64_t number;
        struct lease_held held;
};

static int setup(void **state) {
        struct kit *k = calloc(1, sizeof *k);

        assert_non_null(k);
        clock_manual_init(&k->clock, 1000, 1000);
        rng_seed(&k->rng, 7);
        assert_int_equal(leases_new(&k->clock.clock, &k->rng.rng, LEASE_MS, &k->ls), 0);
        k->node = rng_id(&k->rng.rng);
        for (size_t i = 0; i < 3; i++) {
                k->who[i] = (struct lease_who){.ws = 1, .account = 1, .device = rng_id(&k->rng.rng)};
                assert_int_equal(lease_begin(k->ls, &k->who[i], &k->lease[i]), 0);
        }
        *state = k;
        return 0;
}

static int teardown(void **state) {
        struct kit *k = *state;

        leases_free(k->ls);
        free(k);
        return 0;
}

struct waiting { struct service_waiter w; struct lease_request q; size_t who; int told; };

static void told(struct service_waiter *w) {
        struct waiting *x = w->owner;

        x->told++;
}

static struct lease_request request(struct kit *k, uint64_t owner, enum lease_type type, uint64_t start, uint64_t end) {
        return (struct lease_request){.lock = {.node = k->node, .owner = owner, .type = type, .start = start, .end = end}, .number = ++k->number};
}

static int lock(struct kit *k, size_t who, uint64_t owner, enum lease_type type, uint64_t start, uint64_t end) {
        struct lease_request q = request(k, owner, type, start, end);

        return lease_lock(k->ls, &k->who[who], &k->lease[who], &q, NULL, 0, &k->held);
}

static int flock_as(struct kit *k, size_t who, uint64_t owner, enum lease_type type) {
        struct lease_request q = request(k, owner, type, 0, LOCK_END);

        q.lock.flock = true;
        return lease_lock(k->ls, &k->who[who], &k->lease[who], &q, NULL, 0, &k->held);
}

static int again(struct kit *k, struct waiting *x) {
        return lease_lock(k->ls, &k->who[x->who], &k->lease[x->who], &x->q, &x->w, 60000, &k->held);
}

static int wait_as(struct kit *k, struct waiting *x, size_t who, uint64_t owner, enum lease_type type, uint64_t start, uint64_t end) {
        *x = (struct waiting){.w = {.ready = told, .owner = x}, .q = request(k, owner, type, start, end), .who = who};
        return again(k, x);
}

static uint64_t n_locks(struct kit *k) {
        struct leases_count n;

        leases_count(k->ls, &n);
        return n.locks;
}

static void test_shared_and_exclusive(void **state) {
        struct kit *k = *state;

        assert_int_equal(lock(k, 0, 1, LEASE_READ, 0, 9), 0);
        assert_int_equal(lock(k, 1, 1, LEASE_READ, 0, 9), 0); /* the same owner's number under another lease is somebody else */
        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, 0, 9), -EAGAIN);
        assert_true(id_equal(&k->held.lock.node, &k->node));
        assert_int_equal(k->held.lock.type, LEASE_READ);
        assert_false(k->held.yours);
        assert_int_equal(lock(k, 1, 1, LEASE_NONE, 0, LOCK_END), 0);
        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, 0, 9), 0);
        assert_int_equal(lock(k, 0, 2, LEASE_READ, 5, 5), -EAGAIN); /* another process of the same client */
        assert_true(k->held.yours);
        assert_int_equal(lock(k, 1, 1, LEASE_READ, 10, 10), 0);
        assert_int_equal(flock_as(k, 1, 9, LEASE_WRITE), 0); /* another kind */
        assert_int_equal(flock_as(k, 0, 9, LEASE_READ), -EAGAIN);
        assert_int_equal(lock(k, 0, 1, LEASE_NONE, 0, LOCK_END), 0);
        assert_int_equal(lock(k, 1, 1, LEASE_NONE, 0, LOCK_END), 0);
        assert_int_equal(flock_as(k, 1, 9, LEASE_NONE), 0);
        assert_int_equal(n_locks(k), 0);
}

/* What SQLite does with a rollback journal: SHARED by two, one RESERVED beside them, PENDING, and EXCLUSIVE when the readers are gone. */
static void test_as_a_database_does(void **state) {
        struct kit *k = *state;
        const uint64_t pending = 0x40000000, reserved = pending + 1, shared = pending + 2, shared_end = shared + 509;

        for (size_t i = 0; i < 2; i++) {
                assert_int_equal(lock(k, i, 1, LEASE_READ, pending, pending), 0);
                assert_int_equal(lock(k, i, 1, LEASE_READ, shared, shared_end), 0);
                assert_int_equal(lock(k, i, 1, LEASE_NONE, pending, pending), 0);
        }
        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, reserved, reserved), 0);
        assert_int_equal(lock(k, 1, 1, LEASE_WRITE, reserved, reserved), -EAGAIN);
        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, pending, pending), 0);
        assert_int_equal(lock(k, 2, 1, LEASE_READ, pending, pending), -EAGAIN); /* no new readers */
        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, shared, shared_end), -EAGAIN);
        assert_int_equal(lock(k, 1, 1, LEASE_NONE, 0, LOCK_END), 0);
        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, shared, shared_end), 0);
        assert_int_equal(lock(k, 0, 1, LEASE_READ, shared, shared_end), 0);
        assert_int_equal(lock(k, 0, 1, LEASE_NONE, pending, reserved), 0);
        assert_int_equal(lock(k, 2, 1, LEASE_READ, pending, pending), 0);
        assert_int_equal(n_locks(k), 2);
}

/* Random ranges of three clients with two owners each, beside a table of 48 bytes. */
static void test_ranges_against_bytes(void **state) {
        enum { BYTES = 48, OWNERS = 6 };
        struct kit *k = *state;
        uint8_t model[OWNERS][BYTES] = {{0}};

        for (unsigned round = 0; round < 60000; round++) {
                const size_t who = rng_below(&k->rng.rng, OWNERS);
                const uint64_t start = rng_below(&k->rng.rng, BYTES), end = start + rng_below(&k->rng.rng, BYTES - start);
                const enum lease_type type = (enum lease_type)rng_below(&k->rng.rng, 3);
                bool free = true;
                int r;

                for (size_t i = 0; i < OWNERS && type != LEASE_NONE; i++)
                        for (uint64_t b = start; b <= end && i != who; b++)
                                if (model[i][b] == LEASE_WRITE || (type == LEASE_WRITE && model[i][b] != LEASE_NONE))
                                        free = false;
                r = lock(k, who / 2, who % 2, type, start, end);
                if (r != (free ? 0 : -EAGAIN))
                        fail_msg("round %u: %d", round, r);
                if (free)
                        memset(&model[who][start], type, end - start + 1);
                if (round % 16 == 0) { /* each byte, asked as somebody else */
                        for (uint64_t b = 0; b < BYTES; b++) {
                                struct lease_request q = request(k, 99, LEASE_WRITE, b, b);
                                bool held = false;

                                q.test = true;
                                for (size_t i = 0; i < OWNERS; i++)
                                        held |= model[i][b] != LEASE_NONE;
                                r = lease_lock(k->ls, &k->who[0], &k->lease[0], &q, NULL, 0, &k->held);
                                if (r != (held ? -EAGAIN : 0))
                                        fail_msg("round %u byte %u: %d", round, (unsigned)b, r);
                        }
                }
                if (round % 64 == 0) { /* and as few ranges as there can be */
                        unsigned n = 0;

                        for (size_t i = 0; i < OWNERS; i++)
                                for (unsigned b = 0; b < BYTES; b++)
                                        n += model[i][b] != LEASE_NONE && (b == 0 || model[i][b] != model[i][b - 1]);
                        assert_int_equal(n_locks(k), n);
                }
        }
        for (size_t who = 0; who < OWNERS; who++)
                assert_int_equal(lock(k, who / 2, who % 2, LEASE_NONE, 0, LOCK_END), 0);
        assert_int_equal(n_locks(k), 0);
}

static void test_waits(void **state) {
        struct kit *k = *state;
        struct waiting a, b, c;

        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, 0, 99), 0);
        assert_int_equal(wait_as(k, &a, 1, 1, LEASE_WRITE, 10, 19), -EINPROGRESS);
        assert_int_equal(wait_as(k, &b, 2, 1, LEASE_READ, 15, 15), -EINPROGRESS);
        assert_int_equal(wait_as(k, &c, 2, 2, LEASE_READ, 50, 50), -EINPROGRESS);
        assert_int_equal(lock(k, 0, 1, LEASE_NONE, 0, 30), 0);
        assert_int_equal(a.told, 1);
        assert_int_equal(b.told, 1);
        assert_int_equal(c.told, 0);
        assert_int_equal(again(k, &a), 0);
        lease_forget(k->ls, &a.w);
        assert_int_equal(again(k, &b), -EINPROGRESS);
        assert_int_equal(lock(k, 1, 1, LEASE_READ, 10, 19), 0); /* weaker: others may have more room */
        assert_int_equal(b.told, 2);
        assert_int_equal(again(k, &b), 0);
        assert_int_equal(again(k, &b), 0); /* the answer was lost: the same again */
        lease_forget(k->ls, &b.w);
        assert_int_equal(c.told, 0);
        lease_forget(k->ls, &c.w); /* its client went away */
        assert_int_equal(lock(k, 0, 1, LEASE_NONE, 0, LOCK_END), 0);
        assert_int_equal(c.told, 0);
}

static void test_changing_a_flock_gives_it_up_first(void **state) {
        struct kit *k = *state;
        struct waiting w;

        assert_int_equal(flock_as(k, 0, 1, LEASE_READ), 0);
        assert_int_equal(flock_as(k, 1, 1, LEASE_READ), 0);
        w = (struct waiting){.w = {.ready = told, .owner = &w}, .q = request(k, 1, LEASE_WRITE, 0, LOCK_END), .who = 0};
        w.q.lock.flock = true;
        assert_int_equal(again(k, &w), -EINPROGRESS);
        assert_int_equal(flock_as(k, 1, 1, LEASE_WRITE), 0); /* else both would wait for ever */
        assert_int_equal(w.told, 0);
        assert_int_equal(flock_as(k, 1, 1, LEASE_NONE), 0);
        assert_int_equal(w.told, 1);
        assert_int_equal(again(k, &w), 0);
        lease_forget(k->ls, &w.w);
}

static void test_who_waits_in_a_circle(void **state) {
        struct kit *k = *state;
        struct waiting a, b, c;

        /* two readers that both want to write */
        assert_int_equal(lock(k, 0, 1, LEASE_READ, 0, 0), 0);
        assert_int_equal(lock(k, 1, 1, LEASE_READ, 0, 0), 0);
        assert_int_equal(wait_as(k, &a, 0, 1, LEASE_WRITE, 0, 0), -EINPROGRESS);
        assert_int_equal(wait_as(k, &b, 1, 1, LEASE_WRITE, 0, 0), -EDEADLK);
        lease_forget(k->ls, &b.w);
        assert_int_equal(lock(k, 1, 1, LEASE_NONE, 0, 0), 0);
        assert_int_equal(a.told, 1);
        assert_int_equal(again(k, &a), 0);
        lease_forget(k->ls, &a.w);
        /* three */
        assert_int_equal(lock(k, 1, 1, LEASE_WRITE, 1, 1), 0);
        assert_int_equal(lock(k, 2, 1, LEASE_WRITE, 2, 2), 0);
        assert_int_equal(wait_as(k, &a, 0, 1, LEASE_WRITE, 1, 1), -EINPROGRESS);
        assert_int_equal(wait_as(k, &b, 1, 1, LEASE_WRITE, 2, 2), -EINPROGRESS);
        assert_int_equal(wait_as(k, &c, 2, 1, LEASE_READ, 0, 0), -EDEADLK);
        assert_int_equal(wait_as(k, &c, 2, 2, LEASE_READ, 0, 0), -EINPROGRESS); /* another owner closes no circle */
        lease_forget(k->ls, &a.w);
        lease_forget(k->ls, &b.w);
        lease_forget(k->ls, &c.w);
}

static void test_silence_ends_a_lease(void **state) {
        struct kit *k = *state;
        struct waiting w;

        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, 0, 9), 0);
        clock_manual_advance(&k->clock, LEASE_MS - 1);
        assert_int_equal(lease_renew(k->ls, &k->who[0], &k->lease[0]), 0);
        assert_int_equal(lease_renew(k->ls, &k->who[1], &k->lease[1]), 0);
        clock_manual_advance(&k->clock, LEASE_MS - 1);
        assert_int_equal(wait_as(k, &w, 1, 1, LEASE_READ, 0, 0), -EINPROGRESS);
        assert_int_equal(w.w.deadline_ms, clock_mono_ms(&k->clock.clock) + 1); /* when it may be looked again */
        clock_manual_advance(&k->clock, 1);
        assert_int_equal(again(k, &w), 0);
        lease_forget(k->ls, &w.w);
        assert_int_equal(lease_renew(k->ls, &k->who[0], &k->lease[0]), -ENOLCK);
        assert_int_equal(lock(k, 0, 1, LEASE_READ, 0, 0), -ENOLCK);
        assert_int_equal(lease_end(k->ls, &k->who[0], &k->lease[0]), -ENOLCK);
        assert_int_equal(lease_pin(k->ls, &k->who[0], &k->lease[0]), -ENOLCK);
        assert_int_equal(lease_renew(k->ls, &k->who[2], &k->lease[2]), -ENOLCK);
        assert_int_equal(lease_begin(k->ls, &k->who[0], &k->lease[0]), 0);
        assert_int_equal(lock(k, 0, 1, LEASE_READ, 0, 0), 0);
        /* somebody else's does not exist */
        assert_int_equal(lease_renew(k->ls, &k->who[1], &k->lease[0]), -ENOLCK);
        assert_int_equal(lease_end(k->ls, &k->who[1], &k->lease[0]), -ENOLCK);
}

static void test_an_end_wakes(void **state) {
        struct kit *k = *state;
        struct waiting a, b;

        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, 0, 9), 0);
        assert_int_equal(wait_as(k, &a, 1, 1, LEASE_READ, 0, 0), -EINPROGRESS);
        assert_int_equal(wait_as(k, &b, 0, 2, LEASE_READ, 0, 0), -EINPROGRESS);
        assert_int_equal(lease_end(k->ls, &k->who[0], &k->lease[0]), 0);
        assert_int_equal(a.told, 1);
        assert_int_equal(b.told, 1);
        assert_int_equal(again(k, &a), 0);
        assert_int_equal(again(k, &b), -ENOLCK);
        lease_forget(k->ls, &a.w);
        lease_forget(k->ls, &b.w);
}

static void test_a_pin_holds_the_locks(void **state) {
        struct kit *k = *state;
        struct waiting w;

        assert_int_equal(lock(k, 0, 1, LEASE_WRITE, 0, 9), 0);
        assert_int_equal(lease_pin(k->ls, &k->who[0], &k->lease[0]), 0);
        assert_int_equal(lease_pin(k->ls, &k->who[0], &k->lease[0]), 0);
        clock_manual_advance(&k->clock, LEASE_MS - 1);
        assert_int_equal(lease_renew(k->ls, &k->who[1], &k->lease[1]), 0);
        clock_manual_advance(&k->clock, 1);
        assert_int_equal(lease_renew(k->ls, &k->who[0], &k->lease[0]), -ENOLCK);
        assert_int_equal(lease_pin(k->ls, &k->who[0], &k->lease[0]), -ENOLCK); /* no more of them */
        assert_int_equal(lock(k, 1, 1, LEASE_READ, 0, 0), -EAGAIN);
        assert_int_equal(wait_as(k, &w, 1, 1, LEASE_READ, 0, 0), -EINPROGRESS);
        assert_int_equal(w.w.deadline_ms, clock_mono_ms(&k->clock.clock) + 60000); /* it is told, not timed */
        lease_unpin(k->ls, &k->lease[0]);
        assert_int_equal(w.told, 0);
        lease_unpin(k->ls, &k->lease[0]);
        assert_int_equal(w.told, 1);
        assert_int_equal(again(k, &w), 0);
        lease_forget(k->ls, &w.w);
        /* given up while it is pinned */
        assert_int_equal(lease_pin(k->ls, &k->who[1], &k->lease[1]), 0);
        assert_int_equal(lease_end(k->ls, &k->who[1], &k->lease[1]), 0);
        assert_int_equal(n_locks(k), 1);
        lease_unpin(k->ls, &k->lease[1]);
        assert_int_equal(n_locks(k), 0);
}

static void test_late_requests_do_nothing(void **state) {
        struct kit *k = *state;
        struct lease_request late = request(k, 1, LEASE_WRITE, 0, 9), q;
        struct waiting w;

        q = request(k, 1, LEASE_NONE, 0, LOCK_END);
        q.done = late.number; /* given up by the client, overtaken by its unlock */
        assert_int_equal(lease_lock(k->ls, &k->who[0], &k->lease[0], &q, NULL, 0, &k->held), 0);
        assert_int_equal(lease_lock(k->ls, &k->who[0], &k->lease[0], &late, NULL, 0, &k->held), -ESTALE);
        assert_int_equal(n_locks(k), 0);
        /* one of several that wait */
        assert_int_equal(lock(k, 1, 1, LEASE_WRITE, 0, 9), 0);
        assert_int_equal(wait_as(k, &w, 0, 1, LEASE_WRITE, 0, 9), -EINPROGRESS);
        assert_int_equal(lease_cancel(k->ls, &k->who[0], &k->lease[0], w.q.number, w.q.number - 1), 0);
        assert_int_equal(w.told, 1);
        assert_int_equal(again(k, &w), -ESTALE);
        lease_forget(k->ls, &w.w);
        for (uint64_t i = 0; i < LEASE_CANCELS_MAX - 1; i++)
                assert_int_equal(lease_cancel(k->ls, &k->who[0], &k->lease[0], 1000 + i, 0), 0);
        assert_int_equal(lease_cancel(k->ls, &k->who[0], &k->lease[0], 5000, 0), -EUSERS);
        assert_int_equal(lease_cancel(k->ls, &k->who[0], &k->lease[0], 1000, 0), 0);
        assert_int_equal(lease_cancel(k->ls, &k->who[0], &k->lease[0], 5000, 1100), 0);
        late.number = 1100;
        assert_int_equal(lease_lock(k->ls, &k->who[0], &k->lease[0], &late, NULL, 0, &k->held), -ESTALE);
}

static void test_limits(void **state) {
        struct kit *k = *state;
        struct id id;
        int r = 0;

        for (unsigned i = 1; i < LEASES_DEVICE_MAX; i++)
                assert_int_equal(lease_begin(k->ls, &k->who[0], &id), 0);
        assert_int_equal(lease_begin(k->ls, &k->who[0], &id), -EUSERS);
        for (uint64_t i = 0; r == 0; i++)
                r = lock(k, 1, i, LEASE_READ, 0, 0);
        assert_int_equal(r, -EUSERS);
        assert_in_range(n_locks(k), LEASE_LOCKS_MAX - 2, LEASE_LOCKS_MAX);
        assert_int_equal(lock(k, 1, 0, LEASE_NONE, 0, 0), 0);
        clock_manual_advance(&k->clock, LEASE_MS);
        assert_int_equal(n_locks(k), 0);
}

/* ---- over the routes ---- */

struct side { struct service *s; struct clock_manual clock; char auth[2][100]; char lease[2][80]; struct service_answer a; struct arena *arena; struct op_result result; };

static int call_with(struct side *k, size_t who, const char *method, const char *target, const void *body, size_t n, struct service_waiter *w, bool no_wait) {
        struct service_request r = {.method = method, .target = target, .authorization = k->auth[who], .body = body, .body_bytes = n, .waiter = w, .no_wait = no_wait};
        int e;

        service_answer_free(&k->a);
        e = service_handle(k->s, &r, &k->a);
        return e < 0 ? e : k->a.status;
}

static int post(struct side *k, size_t who, const char *target, const char *body, struct service_waiter *w) {
        return call_with(k, who, "POST", target, body, strlen(body), w, false);
}

static void text_of(struct side *k, const char *key, char *ret, size_t n) {
        _cleanup_json_ json_t *j = NULL;
        const char *text;

        assert_int_equal(json_parse(k->a.body.data, k->a.body.bytes, &j), 0);
        assert_int_equal(json_get_str(j, key, &text), 0);
        (void)snprintf(ret, n, "%s", text);
}

static void expect_code(struct side *k, const char *code) {
        char text[40];

        text_of(k, "code", text, sizeof text);
        assert_string_equal(text, code);
}

static void begin(struct side *k, size_t who) {
        char id[40];

        assert_int_equal(post(k, who, "/v1/workspaces/w/leases", "", NULL), 201);
        text_of(k, "lease", id, sizeof id);
        (void)snprintf(k->lease[who], sizeof k->lease[who], "/v1/workspaces/w/leases/%s", id);
}

static void admin_text(struct side *k, struct buf *text, const char *a, const char *b, const char *c, const char *d, const char *password) {
        const char *words[5] = {a, b, c, d};
        size_t n = 4;

        while (n > 0 && !words[n - 1])
                n--;
        if (strcmp(a, "workspace") == 0)
                words[n++] = "ann";
        buf_reset(text);
        assert_int_equal(service_admin(k->s, words, n, password, text), 0);
        assert_non_null(buf_text(text));
}

static int setup_side(void **state) {
        struct side *k = calloc(1, sizeof *k);
        struct service_config config = {.lease_ms = LEASE_MS};
        _cleanup_buf_ struct buf text = BUF_INIT(4096);
        char why[200];

        assert_non_null(k);
        clock_manual_init(&k->clock, 1000, INT64_C(1000000000000));
        config.clock = &k->clock.clock;
        assert_int_equal(service_open(&config, &k->s, why, sizeof why), 0);
        assert_int_equal(arena_new(16 << 20, &k->arena), 0);
        admin_text(k, &text, "user", "add", "ann", NULL, "correct horse");
        admin_text(k, &text, "workspace", "add", "w", "--owner", NULL);
        for (size_t i = 0; i < 2; i++) { /* each token is a device */
                admin_text(k, &text, "token", "add", "--user", "ann", NULL);
                (void)snprintf(k->auth[i], sizeof k->auth[i], "Bearer %s", (const char *)text.data);
                begin(k, i);
        }
        *state = k;
        return 0;
}

static int teardown_side(void **state) {
        struct side *k = *state;

        service_answer_free(&k->a);
        arena_free(k->arena);
        service_close(k->s);
        free(k);
        return 0;
}

#define NODE "00112233445566778899aabbccddeeff"

static int lock_with(struct side *k, size_t who, const char *type, unsigned number, const char *more, struct service_waiter *w, bool no_wait) {
        char target[120], body[300];
        int n = snprintf(body, sizeof body, "{\"node\": \"" NODE "\", \"owner\": \"%016x\", \"type\": \"%s\", \"number\": %u%s}", (unsigned)who, type, number, more);

        (void)snprintf(target, sizeof target, "%s/locks", k->lease[who]);
        return call_with(k, who, "POST", target, body, (size_t)n, w, no_wait);
}

static void ready(struct service_waiter *w) {
        int *n = w->owner;

        ++*n;
}

static void test_routes(void **state) {
        struct side *k = *state;
        struct service_waiter w = {.ready = ready};
        int told_n = 0;

        w.owner = &told_n;
        assert_int_equal(lock_with(k, 0, "write", 1, "", NULL, false), 200);
        assert_int_equal(lock_with(k, 1, "read", 1, "", NULL, false), 423);
        expect_code(k, "LOCKED");
        assert_int_equal(lock_with(k, 1, "read", 2, ", \"wait\": 20, \"start\": 5, \"end\": 6", &w, false), -EINPROGRESS);
        assert_int_equal(lock_with(k, 0, "none", 2, "", NULL, false), 200);
        assert_int_equal(told_n, 1);
        assert_int_equal(lock_with(k, 1, "read", 2, ", \"wait\": 20, \"start\": 5, \"end\": 6", &w, false), 200);
        assert_null(w.lock);
        /* the end of the wait */
        assert_int_equal(lock_with(k, 0, "write", 3, ", \"wait\": 20", &w, false), -EINPROGRESS);
        assert_int_equal(lock_with(k, 0, "write", 3, ", \"wait\": 20", &w, true), 423);
        assert_null(w.lock);
        assert_int_equal(post(k, 0, k->lease[1], "", NULL), 410); /* somebody else's */
        expect_code(k, "LEASE_ENDED");
        assert_int_equal(post(k, 0, k->lease[0], "", NULL), 200);
        assert_int_equal(call_with(k, 1, "DELETE", k->lease[1], NULL, 0, NULL, false), 204);
        assert_int_equal(lock_with(k, 1, "read", 3, "", NULL, false), 410);
        assert_int_equal(lock_with(k, 0, "write", 4, "", NULL, false), 200);
        assert_int_equal(lock_with(k, 0, "write", 0, "", NULL, false), 400);
        assert_int_equal(lock_with(k, 0, "both", 5, "", NULL, false), 400);
        assert_int_equal(lock_with(k, 0, "read", 5, ", \"start\": 6, \"end\": 5", NULL, false), 400);
        assert_int_equal(lock_with(k, 0, "read", 5, ", \"kind\": \"flock\", \"start\": 6", NULL, false), 400);
        assert_int_equal(lock_with(k, 0, "read", 5, ", \"done\": 7", NULL, false), 412);
}

/* A file as an operation under a lease. */
static enum op_code commit(struct side *k, size_t who, struct op *op) {
        _cleanup_buf_ struct buf body = BUF_INIT(BATCH_BYTES_MAX);
        struct wire_reader reader;
        struct frame f;

        assert_int_equal(wire_add_op(&body, op), 0);
        assert_int_equal(call_with(k, who, "POST", "/v1/workspaces/w/commit", body.data, body.bytes, NULL, false), 200);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(wire_get_result(&f, k->arena, &k->result), 0);
        return k->result.code;
}

static void lease_id(struct side *k, size_t who, struct id *ret) {
        assert_int_equal(hex_decode(k->lease[who] + strlen("/v1/workspaces/w/leases/"), ret->b, ID_BYTES), 0);
}

static struct op content_op(const struct op *file, const char *text) {
        struct op op = {.id = rng_id(rng_system()), .kind = OP_CONTENT, .flags = OPF_INLINE, .node = file->node, .version = file->id, .inline_bytes = text, .content = content_empty};

        op.content.size = strlen(text);
        sha256(text, strlen(text), &op.content.root);
        return op;
}

static void test_commits_are_fenced(void **state) {
        struct side *k = *state;
        struct op file = {.id = rng_id(rng_system()), .kind = OP_CREATE, .flags = OPF_INLINE, .parent = id_root, .name = "db", .name_bytes = 2, .inline_bytes = "one", .content = content_empty,
                          .attr_mask = ATTR_MODE | ATTR_MTIME, .attrs = {.kind = NODE_FILE, .mode = 0644}};
        struct op first, second, third;
        struct leases_count n;

        file.node = rng_id(rng_system());
        file.content.size = 3;
        sha256("one", 3, &file.content.root);
        file.attrs.content = file.content;
        lease_id(k, 0, &file.lease);
        assert_int_equal(lock_with(k, 0, "write", 1, "", NULL, false), 200);
        assert_int_equal(commit(k, 0, &file), RES_OK);
        first = content_op(&file, "two");
        first.lease = file.lease;
        assert_int_equal(commit(k, 0, &first), RES_OK);
        second = content_op(&file, "three");
        second.version = first.id;
        second.lease = file.lease;
        assert_int_equal(commit(k, 1, &second), RES_FENCED); /* another device's lease is none */
        clock_manual_advance(&k->clock, LEASE_MS);
        assert_int_equal(commit(k, 0, &second), RES_FENCED);
        assert_int_equal(k->result.n_current, 1); /* with the rows, so that nothing needs to be asked */
        assert_true(id_equal(&k->result.current[0].node.version, &first.id));
        assert_int_equal(commit(k, 0, &first), RES_OK); /* what was accepted stays so */
        leases_count(k->s->leases, &n);
        assert_int_equal(n.leases, 0);
        third = content_op(&file, "four");
        third.version = first.id;
        assert_int_equal(commit(k, 1, &third), RES_OK); /* without a lease: as ever */
        begin(k, 0);
        second.id = rng_id(rng_system());
        second.version = third.id;
        lease_id(k, 0, &second.lease);
        assert_int_equal(commit(k, 0, &second), RES_OK);
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define S(f) cmocka_unit_test_setup_teardown(f, setup_side, teardown_side)
        const struct CMUnitTest tests[] = {
                T(test_shared_and_exclusive), T(test_as_a_database_does), T(test_ranges_against_bytes), T(test_waits), T(test_changing_a_flock_gives_it_up_first), T(test_who_waits_in_a_circle),
                T(test_silence_ends_a_lease), T(test_an_end_wakes), T(test_a_pin_holds_the_locks), T(test_late_requests_do_nothing), T(test_limits),
                S(test_routes), S(test_commits_are_fenced),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
