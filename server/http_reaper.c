/* SPDX-License-Identifier: Apache-2.0 */
/* http_reaper.c: absolute deadlines for slow clients, the ends of long polls.
 *
 * MHD's own timeout counts idle time only: a client that sends one byte every few seconds would hold its connection for ever. So every connection
 * has a phase and a start, and one thread looks at all of them every REAP_MS (a few thousand comparisons) and shuts down the sockets of those that are over:
 *
 *   FRESH, HEAD  head_ms                                    from the accept, or the request line
 *   BODY, SEND   grace_ms + bytes / rate_bytes              from the phase's start, without the time that we held the client back
 *   WORK         none: we are the slow ones
 *   IDLE         idle_ms
 *
 * Shutting a socket down makes MHD see its end and close it in its own way; the descriptor stays MHD's. A connection is taken out of the list, under the lock,
 * before MHD closes the descriptor, so that a shutdown never hits a number that was given away anew.
 *
 * Parked polls are woken at their deadline. While one is parked MHD does not watch its socket: the same thread asks poll(2) which of
 * them were closed by their clients, and ends those too. */
#include "http_int.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"

#define REAP_MS 500
#define POLL_BATCH 512u

static int64_t now_ms(void) {
        return clock_mono_ms(clock_system());
}

void conn_phase(struct http_conn *c, enum http_phase phase) {
        LOCK_SCOPE(&c->h->lock);
        c->phase = phase;
        c->since_ms = now_ms();
        c->paused_ms = 0;
        c->bytes = 0;
}

void conn_progress(struct http_conn *c, uint64_t bytes) {
        LOCK_SCOPE(&c->h->lock);
        c->bytes += bytes;
}

void conn_pause(struct http_conn *c, bool paused) {
        LOCK_SCOPE(&c->h->lock);
        if (paused && c->paused_ms == 0) {
                c->paused_ms = now_ms();
        } else if (!paused && c->paused_ms != 0) {
                c->since_ms += now_ms() - c->paused_ms;
                c->paused_ms = 0;
        }
}

static bool overdue_locked(const struct http *h, const struct http_conn *c, int64_t now) {
        int64_t age = now - c->since_ms;

        switch (c->phase) {
        case PHASE_FRESH:
        case PHASE_HEAD:
                return age > h->config.head_ms;
        case PHASE_BODY:
        case PHASE_SEND:
                return c->paused_ms == 0 && age > h->config.grace_ms && (uint64_t)(age - h->config.grace_ms) / 1000 > c->bytes / h->config.rate_bytes;
        case PHASE_IDLE:
                return age > h->config.idle_ms;
        case PHASE_WORK:
                break;
        }
        return false;
}

static void cut_locked(struct http_conn *c) {
        c->cut = true;
        (void)shutdown(c->fd, SHUT_RDWR);
}

void conns_cut(struct http *h) {
        LOCK_SCOPE(&h->lock);
        for (struct http_conn *c = h->conns; c; c = c->next)
                if (!c->cut)
                        cut_locked(c);
}

/* Wakes parked polls that are over, and those whose clients went away. */
static void polls_end_locked(struct http *h, int64_t now) {
        struct http_request *next, *batch[POLL_BATCH];
        struct pollfd fds[POLL_BATCH];
        nfds_t n = 0;

        for (struct http_request *q = h->parked; q; q = next) {
                next = q->next;
                if (now >= q->waiter.deadline_ms) {
                        request_wake_locked(q, true);
                } else if (n < POLL_BATCH) {
                        fds[n] = (struct pollfd){.fd = q->conn->fd, .events = POLLRDHUP};
                        batch[n++] = q;
                }
        }
        if (n == 0 || poll(fds, n, 0) <= 0)
                return;
        for (nfds_t i = 0; i < n; i++)
                if (fds[i].revents & (POLLRDHUP | POLLHUP | POLLERR))
                        request_wake_locked(batch[i], true);
}

static void *reaper_run(void *arg) {
        struct http *h = arg;

        lock_take(&h->lock);
        while (!h->stopping) {
                int64_t now = now_ms();

                for (struct http_conn *c = h->conns; c; c = c->next)
                        if (!c->cut && overdue_locked(h, c, now)) {
                                log_info("event=slow_client_cut peer=%s phase=%d age_ms=%lld bytes=%llu", c->peer, c->phase, (long long)(now - c->since_ms),
                                         (unsigned long long)c->bytes);
                                cut_locked(c);
                        }
                polls_end_locked(h, now);
                if (cond_wait_until(&h->stop, &h->lock, now + REAP_MS) < 0)
                        continue;
        }
        lock_drop(&h->lock);
        return NULL;
}

int reaper_start(struct http *h) {
        int r = thread_start(&h->reaper, "http-reaper", reaper_run, h);

        h->reaper_started = r >= 0;
        return r;
}
