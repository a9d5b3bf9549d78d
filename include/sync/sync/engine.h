/* SPDX-License-Identifier: Apache-2.0 */
/* engine.h: the sync decisions as a state machine on one control thread. It sees time, disk, network and randomness only through what it is given (clock, cache, transport, rng, executor),
 * so the simulation runs this very code. It loads the tree, polls events, sends the outbox, uploads blocks, answers the cache's fetches (it gives a struct source), and keeps the connection state
 * (online, offline, signed_out) with backoff, retry budget and breaker. */
#pragma once
#include "api/client.h"
#include "cache/file.h"

enum conn_state { CONN_ONLINE = 0, CONN_OFFLINE = 1, CONN_SIGNED_OUT = 2, CONN_UPGRADE = 3 };
struct engine;
struct engine_config {
        struct cache *cache;
        struct transport *transport;
        struct session *session;      /* NULL in the simulation: no refresh */
        struct executor *workers;     /* chunking, hashing, compressing: jobs may wait for base blocks, so at least 4 threads; a simulation: inline or in seeded order */
        struct clock *clock; struct rng *rng; struct counters *counters;
        const char *workspace;        /* name */
        const char *host;             /* for conflict names */
        int64_t net_timeout_ms;       /* 30,000 */
        unsigned uploads;             /* parallel requests with blocks; 0: 4 */
        void (*stopped)(void *arg, int err); void *stopped_arg; /* cannot go on: -EPROTONOSUPPORT, -EKEYREJECTED */
};
int engine_new(const struct engine_config *config, struct engine **ret) _must_check_;
void engine_free(struct engine *e);
struct source *engine_source(struct engine *e);
struct listener *engine_listener(struct engine *e);

/* One turn: handles what completed and what is due. Returns ms until it must be called again by time alone (>= 0), or earlier when woken. One thread. Never blocks on the network. */
int64_t engine_step(struct engine *e);
/* Something completed or came: from any thread; calls `woken` given below. */
void engine_wake(struct engine *e);
void engine_set_woken(struct engine *e, void (*woken)(void *arg), void *arg);

/* Stopping without a thread (simulation): engine_shutdown cancels what is under way and starts nothing new; then engine_step until engine_quiet, then engine_free. */
void engine_shutdown(struct engine *e);
bool engine_quiet(struct engine *e);             /* no request and no task is under way */

/* The control thread that calls engine_step: the real mount's way. */
int engine_start(struct engine *e) _must_check_;
void engine_stop(struct engine *e);              /* cancels requests, joins; the outbox stays */
/* Waits until the tree is completely loaded once: 0; -ETIMEDOUT, -EKEYREJECTED, -ENOENT (no such workspace), -EACCES, -EHOSTDOWN (only if nothing was ever loaded), -EPROTONOSUPPORT. why: one line. */
int engine_wait_loaded(struct engine *e, int64_t deadline_ms, char *ret_why, size_t n) _must_check_;
void engine_nudge(struct engine *e);             /* try the server now (network changed, user asked) */
void engine_accept(struct engine *e);            /* the user lets go what the brake holds (tree_held): removed here, in steps */
void engine_pause(struct engine *e, bool paused);
struct engine_status { enum conn_state state; char reason[200]; int64_t since_ns; bool paused; uint64_t sending; bool loaded; uint64_t load_rows;
                       uint64_t quota_bytes, used_bytes; /* of the workspace, from the newest answer with events; quota 0: none, or not known yet */ };
void engine_status(struct engine *e, struct engine_status *ret);
