/* SPDX-License-Identifier: Apache-2.0 */
/* connect.c: is the server there, does it still know us, and when may the next request go out.
 *
 *   phase        shown as     requests   leaves on
 *   START        offline      the probe  at once -> PROBE
 *   PROBE        offline      the probe  answered -> ONLINE; failed -> WAIT; 401 -> REFRESH
 *   ONLINE       online       all        two failures in a row (breaker) -> WAIT; 401 -> REFRESH
 *   WAIT         offline      none       the breaker's time came, or a nudge -> PROBE
 *   REFRESH      as before    none       a worker asked for a new token: -> PROBE; refused -> SIGNED_OUT; could not ask -> WAIT
 *   SIGNED_OUT   signed_out   none       a nudge, or each minute -> REFRESH (somebody may have logged in again)
 *   UPGRADE      upgrade      none       a nudge, or each five minutes -> START (the server may have gone back to the older version): three answers in a row were newer than
 *                                        this program, or it said so itself (426)
 *
 * What counts as a failure: no connection, a transfer that broke off, a deadline, 502, 503 and 504. An answer with any other status is an answer. 429 and 503 with
 * Retry-After hold everything back for that long. The breaker's delays have full jitter (base/retry.h), from 0.5 s up to 8 s. Machines pace their own
 * retries with connect_retry_ms, which also asks the retry budget: retries are at most a fifth of all requests, the rest waits a second or more.
 *
 * An answer that does not parse may have been damaged on its way, whatever it looks like: it is asked for again. Three in a row, of frames or rows that this program does not know: UPGRADE.
 * Three in a row that are broken: WAIT, as for a workspace that is not there; nothing of them was used.
 *
 * Until the first answer or failure reads are queued, not refused: a mount that has just started is not offline yet. */
#include <stdio.h>
#include <string.h>

#include "priv.h"

#define SIGNED_OUT_RETRY_MS 60000
#define UPGRADE_RETRY_MS 300000
#define REFUSED_RETRY_MS 30000 /* no such workspace, no right to it, only broken answers: ask again */
#define PROTOCOL_ERRORS_MAX 3u

static const char *phase_name(enum connect_phase p) {
        static const char *const names[] = { "start", "probe", "online", "wait", "refresh", "signed_out", "upgrade" };
        return names[p];
}

static void set_phase(struct engine *e, enum connect_phase p) {
        if (e->connect.phase != p)
                log_debug("connect phase=%s was=%s", phase_name(p), phase_name(e->connect.phase));
        e->connect.phase = p;
}

void connect_init(struct engine *e) {
        breaker_init(&e->connect.breaker, 2, 500, 8000);
        retry_budget_init(&e->connect.budget, 20, 0.2);
}

bool connect_online(const struct engine *e) {
        return e->connect.phase == CONNECT_ONLINE && e->connect.hold_until_ms <= clock_mono_ms(e->c.clock);
}

static void go_online(struct engine *e) {
        if (e->connect.phase == CONNECT_ONLINE)
                return;
        set_phase(e, CONNECT_ONLINE);
        engine_set_state(e, CONN_ONLINE, 0, "");
        download_refuse(e, false);
        /* what waited for the connection may go at once */
        e->load.retry_at_ms = e->events.retry_at_ms = e->outbox.retry_at_ms = e->early.retry_at_ms = e->down.retry_at_ms = 0;
        backoff_reset(&e->outbox.backoff);
        backoff_reset(&e->events.backoff);
        outbox_look(e);
}

static void go_offline(struct engine *e, const char *why) {
        char reason[200];
        set_phase(e, CONNECT_WAIT);
        snprintf(reason, sizeof reason, "cannot reach the server%s%.150s", *why ? ": " : "", why);
        engine_set_state(e, CONN_OFFLINE, -EHOSTDOWN, reason);
        download_refuse(e, true);
}

static void go_upgrade(struct engine *e, const char *what) {
        char reason[200];
        set_phase(e, CONNECT_UPGRADE);
        e->connect.ask_at_ms = engine_now(e) + UPGRADE_RETRY_MS;
        snprintf(reason, sizeof reason, "upgrade needed: the server speaks a newer version than this program (%.100s)", what);
        engine_set_state(e, CONN_UPGRADE, -EPROTONOSUPPORT, reason);
        download_refuse(e, true);
}

static void go_signed_out(struct engine *e) {
        set_phase(e, CONNECT_SIGNED_OUT);
        e->connect.ask_at_ms = engine_now(e) + SIGNED_OUT_RETRY_MS;
        engine_set_state(e, CONN_SIGNED_OUT, -EKEYREJECTED, "the server no longer accepts this login: run `tarn login` again");
        download_refuse(e, true);
}

static void refresh_work(struct task *t) {
        struct engine *e = t->e;
        e->connect.refresh_err = session_refresh(e->c.session, e->c.transport);
}

static void refresh_finished(struct task *t) {
        struct engine *e = t->e;
        int err = e->connect.refresh_err;
        e->connect.refreshing = false;
        if (e->connect.phase != CONNECT_REFRESH)
                return;
        if (err >= 0) {
                e->connect.refreshed_ms = engine_now(e);
                set_phase(e, CONNECT_START);
        } else if (err == -EKEYREJECTED) {
                go_signed_out(e);
        } else {
                breaker_failure(&e->connect.breaker, engine_now(e), e->c.rng);
                breaker_failure(&e->connect.breaker, engine_now(e), e->c.rng);
                go_offline(e, "the login could not be renewed");
        }
}

static void start_refresh(struct engine *e) {
        if (!e->c.session) {
                go_signed_out(e);
                return;
        }
        set_phase(e, CONNECT_REFRESH);
        if (e->connect.refreshing)
                return;
        e->connect.refreshing = true;
        e->connect.refresh.work = refresh_work;
        e->connect.refresh.finished = refresh_finished;
        task_start(e, e->c.workers, &e->connect.refresh);
}

/* Every finished request passes here before its owner sees it. */
void connect_report(struct engine *e, const struct request *r, int err) {
        const struct http_call *c = r->call;
        struct connect *n = &e->connect;
        int64_t now = engine_now(e);
        if (c->err == -ECANCELED || c->err == -ENOMEM || c->err == -EMSGSIZE || n->phase == CONNECT_UPGRADE)
                return;
        if (c->err < 0 || c->status == 502 || c->status == 503 || c->status == 504) {
                counter_add(e->c.counters, http_errors, 1);
                if (c->retry_after_ms > 0)
                        n->hold_until_ms = MAX(n->hold_until_ms, now + MIN(c->retry_after_ms, 60000));
                if (n->phase == CONNECT_WAIT || n->phase == CONNECT_SIGNED_OUT || n->phase == CONNECT_REFRESH)
                        return; /* known */
                breaker_failure(&n->breaker, now, e->c.rng);
                if (n->phase == CONNECT_PROBE && n->breaker.state == BREAKER_CLOSED)
                        breaker_failure(&n->breaker, now, e->c.rng);
                if (n->breaker.state == BREAKER_OPEN)
                        go_offline(e, c->message);
                return;
        }
        if (c->status == 426) {
                go_upgrade(e, c->message);
                return;
        }
        if (c->status == 401) {
                if (r->sent_ms > n->refreshed_ms || n->refreshed_ms == 0) {
                        if (n->phase != CONNECT_SIGNED_OUT)
                                start_refresh(e);
                }
                return;
        }
        if (c->status == 429)
                n->hold_until_ms = MAX(n->hold_until_ms, now + MIN(MAX(c->retry_after_ms, 100), 60000));
        breaker_success(&n->breaker);
        if (n->phase == CONNECT_PROBE || n->phase == CONNECT_WAIT)
                go_online(e);
}

void connect_parsed(struct engine *e) {
        e->connect.protocol_errors = 0;
}

void connect_protocol_error(struct engine *e, int err, const char *what) {
        log_warn("sync answer=%s err=%s", what, err_name(err));
        if (++e->connect.protocol_errors < PROTOCOL_ERRORS_MAX)
                return;
        e->connect.protocol_errors = 0;
        if (err == -EPROTONOSUPPORT) {
                go_upgrade(e, what);
                return;
        }
        char reason[150];
        snprintf(reason, sizeof reason, "the server's answers are broken or damaged on their way (%.80s)", what);
        connect_failed(e, -EPROTO, reason);
}

void connect_failed(struct engine *e, int err, const char *what) {
        char reason[200];
        snprintf(reason, sizeof reason, "%s", what);
        engine_set_state(e, CONN_OFFLINE, err, reason);
        set_phase(e, CONNECT_WAIT);
        download_refuse(e, true);
        e->connect.hold_until_ms = engine_now(e) + REFUSED_RETRY_MS;
        for (unsigned i = 0; i < e->connect.breaker.threshold; i++)
                breaker_failure(&e->connect.breaker, engine_now(e), e->c.rng);
}

int64_t connect_retry_ms(struct engine *e, struct backoff *b, int64_t retry_after_ms) {
        int64_t d = backoff_next_ms(b, e->c.rng, retry_after_ms);
        counter_add(e->c.counters, http_retries, 1);
        if (!retry_budget_take(&e->connect.budget))
                d = MAX(d, 1000 + (int64_t)rng_below(e->c.rng, 2000));
        return d;
}

void connect_nudge(struct engine *e) {
        struct connect *n = &e->connect;
        n->hold_until_ms = 0;
        if (n->phase == CONNECT_WAIT)
                breaker_nudge(&n->breaker, engine_now(e));
        else if (n->phase == CONNECT_SIGNED_OUT || n->phase == CONNECT_UPGRADE)
                n->ask_at_ms = 0;
        e->load.retry_at_ms = e->events.retry_at_ms = e->outbox.retry_at_ms = e->early.retry_at_ms = e->down.retry_at_ms = 0;
}

static void probe_finished(struct request *r, int err) {
        struct engine *e = r->e;
        e->connect.probe = NULL;
        if (e->connect.phase == CONNECT_PROBE) /* neither an answer nor a failure: cancelled, no memory */
                set_phase(e, CONNECT_START);
}

static void send_probe(struct engine *e) {
        struct request *r = request_new(e, HTTP_GET, 0, 1 << 20, "/v1");
        if (!r)
                return; /* next turn */
        r->call->accept = "application/json";
        r->finished = probe_finished;
        r->probe = true;
        e->connect.probe = r;
        set_phase(e, CONNECT_PROBE);
        request_send(r, engine_now(e) + MIN(e->c.net_timeout_ms, 10000));
}

int64_t connect_step(struct engine *e, int64_t now) {
        struct connect *n = &e->connect;
        switch (n->phase) {
        case CONNECT_START:
                send_probe(e);
                return n->probe ? NEVER : now + 100;
        case CONNECT_WAIT:
                if (n->hold_until_ms > now)
                        return n->hold_until_ms;
                if (!n->probe && breaker_allows(&n->breaker, now)) {
                        send_probe(e);
                        return n->probe ? NEVER : now + 100;
                }
                return MAX(n->breaker.probe_at_ms, now + 1);
        case CONNECT_SIGNED_OUT:
                if (now < n->ask_at_ms)
                        return n->ask_at_ms;
                n->ask_at_ms = now + SIGNED_OUT_RETRY_MS;
                if (e->c.session) {
                        start_refresh(e);
                } else { /* nobody to ask: the next request says whether the token is good again */
                        n->refreshed_ms = now;
                        set_phase(e, CONNECT_START);
                }
                return now;
        case CONNECT_UPGRADE:
                if (now < n->ask_at_ms)
                        return n->ask_at_ms;
                set_phase(e, CONNECT_START);
                return now;
        case CONNECT_ONLINE:
                return n->hold_until_ms > now ? n->hold_until_ms : NEVER;
        default:
                return NEVER;
        }
}
