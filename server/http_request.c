/* SPDX-License-Identifier: Apache-2.0 */
/* http_request.c: one request from its head to its answer.
 *
 *   stage     what happens                                            connection
 *   NEW       the head is coming                                      runs
 *   BODY      the body is collected, streamed or dropped              runs (suspended while the ring is full)
 *   RUNNING   a worker has it (a streamed upload: from the head on)   suspended, or still in BODY's traffic
 *   PARKED    a long poll waits for a commit or its deadline          suspended
 *   DONE      the answer is there                                     resumed, MHD asks for it
 *   SENT      the answer is MHD's                                     runs
 *
 * MHD's threads only move bytes; every call into the service runs on a worker. A suspended connection is never touched by MHD until we resume it, so
 * a request cannot vanish while a worker has it, except a streamed upload whose client went away: then `broken` ends the worker's read.
 *
 * Suspending: MHD_suspend_connection first, then, under the lock, `suspended` is set or, if what was to be awaited has happened meanwhile,
 * the connection is resumed at once. No MHD function is called with the lock held: MHD calls us with locks of its own.
 *
 * Memory: bodies are kept only up to what the route admits, and all bodies together up to body_bytes_max; a streamed one has a ring of 1 MiB. A body
 * that is refused is read and dropped up to HTTP_DRAIN_BYTES, because a client that is cut off while it sends does not see the answer. */
#include "http_int.h"

#include <assert.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/digest.h"
#include "base/log.h"

static const struct { enum http_header at; const char *name; } kept_headers[] = {
        {H_AUTHORIZATION, "Authorization"}, {H_ACCEPT, "Accept"}, {H_CONTENT_TYPE, "Content-Type"}, {H_RANGE, "Range"},
        {H_IF_MATCH, "If-Match"}, {H_IF_NONE_MATCH, "If-None-Match"}, {H_IF_RANGE, "If-Range"}, {H_IDEMPOTENCY_KEY, "Idempotency-Key"},
        {H_SUM, WIRE_SUM_HEADER},
};

struct http_request *request_new(struct http *h, struct MHD_Connection *mhd, const char *target) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        struct http_request *q = calloc(1, sizeof *q);

        if (!q)
                return NULL;
        q->h = h;
        q->mhd = mhd;
        q->conn = info ? info->socket_context : NULL;
        q->target = strdup(target);
        q->body = (struct buf)BUF_INIT(0);
        if (q->conn)
                (void)snprintf(q->peer, sizeof q->peer, "%s", q->conn->peer);
        atomic_init(&q->refs, 1);
        cond_init(&q->ring_changed);
        if (!q->target || !q->conn) {
                request_unref(q);
                return NULL;
        }
        return q;
}

void request_unref(struct http_request *q) {
        if (!q || atomic_fetch_sub(&q->refs, 1) != 1)
                return;
        assert(!q->waiter.registered);
        lock_take(&q->h->lock);
        q->h->body_bytes -= q->body_reserved;
        if (q->out)
                q->h->pulls--;
        lock_drop(&q->h->lock);
        service_answer_free(&q->answer);
        for (size_t i = 0; i < ARRAY_SIZE(q->header); i++)
                free(q->header[i]);
        buf_free(&q->body);
        cond_destroy(&q->ring_changed);
        free(q->ring);
        free(q->out);
        free(q->target);
        free(q);
}

void resume_locked_then_drop(struct http *h, struct http_request *q) {
        bool resume = q->suspended;

        q->suspended = false;
        lock_drop(&h->lock);
        if (resume)
                MHD_resume_connection(q->mhd);
}

/* ---- on a worker ---- */

static void request_answered(struct http_request *q) {
        struct http *h = q->h;

        lock_take(&h->lock);
        q->stage = REQ_DONE;
        resume_locked_then_drop(h, q);
}

/* The body is the one that was sent, as far as its sender said what that is. */
static bool undamaged(const struct http_request *q) {
        char sum[WIRE_SUM_CHARS + 1];

        if (!q->header[H_SUM] || q->ring)
                return true;
        wire_sum(0, q->body.data, q->body.bytes, sum);
        return strcasecmp(sum, q->header[H_SUM]) == 0;
}

static void request_run(struct lane_job *j) {
        struct http_request *q = container_of(j, struct http_request, job);
        struct http *h = q->h;
        const bool whole = undamaged(q);

        if (!whole)
                service_refuse(h->service, "UNAVAILABLE", "the request was damaged on its way; send it again", &q->answer);
        while (whole) {
                int r;

                q->request.waiter = q->admission.class == CLASS_EVENTS ? &q->waiter : NULL;
                q->request.no_wait = q->no_wait;
                r = service_handle(h->service, &q->request, &q->answer);
                if (r != -EINPROGRESS)
                        break;
                lock_take(&h->lock);
                if (!q->woken && !h->stopping) {
                        q->stage = REQ_PARKED;
                        q->prev = NULL;
                        q->next = h->parked;
                        if (q->next)
                                q->next->prev = q;
                        h->parked = q;
                        lock_drop(&h->lock);
                        return; /* the job's reference stays with the parked request */
                }
                q->woken = false;
                q->no_wait = h->stopping;
                lock_drop(&h->lock);
        }
        if (!q->answer.pull && !q->answer.head)
                wire_sum(q->answer.status, q->answer.body.data, q->answer.body.bytes, q->sum);
        request_answered(q);
        request_unref(q);
}

void request_wake_locked(struct http_request *q, bool no_wait) {
        struct http *h = q->h;

        lock_assert_held(&h->lock);
        if (q->stage != REQ_PARKED) {
                q->woken = true;
                return;
        }
        if (q->prev)
                q->prev->next = q->next;
        else
                h->parked = q->next;
        if (q->next)
                q->next->prev = q->prev;
        q->next = q->prev = NULL;
        q->stage = REQ_RUNNING;
        q->woken = false;
        q->no_wait = no_wait || h->stopping;
        int r = lane_submit(h->lanes[LANE_TREE], &q->job, q->who, false);

        assert(r == 0);
        (void)r;
}

static void request_ready(struct service_waiter *w) {
        struct http_request *q = w->owner;

        LOCK_SCOPE(&q->h->lock);
        request_wake_locked(q, false);
}

/* The body of a streamed upload, for the service, on its thread. */
static int64_t request_read(void *arg, void *p, size_t n) {
        struct http_request *q = arg;
        struct http *h = q->h;
        size_t m;

        lock_take(&h->lock);
        while (q->ring_bytes == 0 && !q->body_ended && !q->broken)
                cond_wait(&q->ring_changed, &h->lock);
        if (q->ring_bytes == 0) {
                int r = q->body_ended ? 0 : -ECONNRESET;

                lock_drop(&h->lock);
                return r;
        }
        m = MIN(n, MIN(q->ring_bytes, HTTP_RING_BYTES - q->ring_at));
        memcpy(p, q->ring + q->ring_at, m);
        q->ring_at = (q->ring_at + m) % HTTP_RING_BYTES;
        q->ring_bytes -= m;
        if (q->suspended && q->stage == REQ_RUNNING && !q->body_ended && q->ring_bytes <= HTTP_RING_BYTES / 2)
                resume_locked_then_drop(h, q);
        else
                lock_drop(&h->lock);
        return (int64_t)m;
}

/* ---- on MHD's threads ---- */

/* Whose turn the request takes: a hash of what it authenticates with, or of its address. */
static uint64_t asker(const struct http_request *q) {
        const char *text = q->header[H_AUTHORIZATION] ? q->header[H_AUTHORIZATION] : q->peer;
        size_t n = q->header[H_AUTHORIZATION] ? strlen(text) : strcspn(text, ":");
        struct digest d;
        uint64_t who;

        sha256(text, n, &d);
        memcpy(&who, d.b, sizeof who);
        return who;
}

/* Hands the request to a lane; its connection stands still unless it streams. -EAGAIN: too many of this asker wait, nothing was done. */
static int request_submit(struct http_request *q, enum http_lane lane, bool suspend) {
        struct http *h = q->h;
        int r;

        q->who = asker(q);
        q->job.run = request_run;
        (void)atomic_fetch_add(&q->refs, 1);
        if (suspend)
                MHD_suspend_connection(q->mhd);
        lock_take(&h->lock);
        q->stage = REQ_RUNNING;
        q->suspended = suspend;
        lock_drop(&h->lock);
        r = lane_submit(h->lanes[lane], &q->job, q->who, true);
        if (r < 0) {
                lock_take(&h->lock);
                q->stage = REQ_BODY;
                resume_locked_then_drop(h, q);
                request_unref(q);
        }
        return r;
}

static enum http_lane lane_of(enum service_class class) {
        switch (class) {
        case CLASS_UPLOAD:
                return LANE_COMMIT;
        case CLASS_DOWNLOAD:
                return LANE_READ;
        default:
                return LANE_TREE;
        }
}

static void request_refuse(struct http_request *q, const char *code, const char *message) {
        service_refuse(q->h->service, code, message, &q->answer);
        q->refused = true;
}

static int64_t content_length(struct http_request *q) {
        const char *text = MHD_lookup_connection_value(q->mhd, MHD_HEADER_KIND, "Content-Length");
        int64_t v = 0;

        if (!text || !*text)
                return MHD_lookup_connection_value(q->mhd, MHD_HEADER_KIND, "Transfer-Encoding") ? -1 : 0;
        for (; isdigit((unsigned char)*text); text++) {
                if (v > (INT64_MAX - 9) / 10)
                        return INT64_MAX;
                v = v * 10 + (*text - '0');
        }
        return v;
}

enum MHD_Result request_head(struct http_request *q, const char *method) {
        struct http *h = q->h;
        struct service_request *r = &q->request;
        const char *expect;
        int64_t length;
        bool stopping;

        for (size_t i = 0; i < ARRAY_SIZE(kept_headers); i++) {
                const char *value = MHD_lookup_connection_value(q->mhd, MHD_HEADER_KIND, kept_headers[i].name);

                if (value && !(q->header[kept_headers[i].at] = strdup(value)))
                        return MHD_NO;
        }
        if (snprintf(q->method, sizeof q->method, "%s", method) >= (int)sizeof q->method)
                (void)snprintf(q->method, sizeof q->method, "-");
        q->head_seen = true;
        length = content_length(q);
        *r = (struct service_request){
                .method = q->method, .target = q->target, .authorization = q->header[H_AUTHORIZATION], .accept = q->header[H_ACCEPT],
                .content_type = q->header[H_CONTENT_TYPE], .range = q->header[H_RANGE], .if_match = q->header[H_IF_MATCH],
                .if_none_match = q->header[H_IF_NONE_MATCH], .if_range = q->header[H_IF_RANGE], .idempotency_key = q->header[H_IDEMPOTENCY_KEY],
                .peer = q->peer, .content_length = length,
        };
        q->waiter.ready = request_ready;
        q->waiter.owner = q;
        service_admit(h->service, q->method, q->target, &q->admission);
        q->body.max_bytes = q->admission.max_body_bytes;
        lock_take(&h->lock);
        q->stage = REQ_BODY;
        q->counted = true;
        h->active++;
        stopping = h->stopping;
        lock_drop(&h->lock);
        conn_phase(q->conn, PHASE_BODY);
        if (stopping)
                request_refuse(q, "UNAVAILABLE", "the server is stopping; try again");
        else if (!q->admission.stream && q->admission.max_body_bytes > 0 && length > (int64_t)q->admission.max_body_bytes)
                request_refuse(q, "TOO_LARGE", "the body is larger than this address takes");
        else if (!q->admission.stream && q->admission.max_body_bytes == 0 && length > (int64_t)HTTP_DRAIN_BYTES)
                request_refuse(q, "TOO_LARGE", "this address takes no body");
        expect = MHD_lookup_connection_value(q->mhd, MHD_HEADER_KIND, "Expect");
        if (q->refused && (length > (int64_t)HTTP_DRAIN_BYTES || (expect && strcasecmp(expect, "100-continue") == 0)))
                return answer_send(q); /* before the body: MHD closes the connection after it */
        if (q->admission.stream && !q->refused) {
                q->ring = malloc(HTTP_RING_BYTES);
                if (!q->ring)
                        return MHD_NO;
                r->read = request_read;
                r->read_arg = q;
                if (request_submit(q, LANE_STREAM, false) < 0) {
                        free(steal_ptr(q->ring));
                        request_refuse(q, "RATE_LIMITED", "too many of your requests are waiting; try again");
                }
        }
        return MHD_YES;
}

/* Takes what fits into the ring; suspends when it is full. */
static enum MHD_Result piece_stream(struct http_request *q, const char *p, size_t *n) {
        struct http *h = q->h;
        size_t taken = 0;
        bool resume;

        lock_take(&h->lock);
        if (q->stage == REQ_DONE) { /* answered early (refused): the rest is dropped */
                lock_drop(&h->lock);
                q->dropped_bytes += *n;
                *n = 0;
                return q->dropped_bytes > HTTP_DRAIN_BYTES ? MHD_NO : MHD_YES;
        }
        while (taken < *n && q->ring_bytes < HTTP_RING_BYTES) {
                size_t at = (q->ring_at + q->ring_bytes) % HTTP_RING_BYTES;
                size_t m = MIN(*n - taken, MIN(HTTP_RING_BYTES - q->ring_bytes, HTTP_RING_BYTES - at));

                memcpy(q->ring + at, p + taken, m);
                q->ring_bytes += m;
                taken += m;
        }
        if (taken > 0)
                cond_signal(&q->ring_changed);
        lock_drop(&h->lock);
        *n -= taken;
        if (*n == 0)
                return MHD_YES;
        conn_pause(q->conn, true);
        MHD_suspend_connection(q->mhd);
        lock_take(&h->lock);
        resume = q->stage != REQ_RUNNING || q->ring_bytes <= HTTP_RING_BYTES / 2;
        q->suspended = !resume;
        lock_drop(&h->lock);
        if (resume)
                MHD_resume_connection(q->mhd);
        return MHD_YES;
}

enum MHD_Result request_piece(struct http_request *q, const char *p, size_t *n) {
        struct http *h = q->h;
        size_t bytes = *n, more;
        bool room;

        conn_pause(q->conn, false);
        if (q->ring) {
                enum MHD_Result r = piece_stream(q, p, n);

                conn_progress(q->conn, bytes - *n);
                return r;
        }
        conn_progress(q->conn, bytes);
        *n = 0;
        if (!q->refused && q->admission.max_body_bytes > 0) {
                if (bytes > q->body.max_bytes - q->body.bytes) {
                        request_refuse(q, "TOO_LARGE", "the body is larger than this address takes");
                } else {
                        lock_take(&h->lock);
                        more = q->body.bytes + bytes > q->body_reserved ? q->body.bytes + bytes - q->body_reserved : 0;
                        room = more <= h->config.body_bytes_max - h->body_bytes;
                        if (room) {
                                h->body_bytes += more;
                                q->body_reserved += more;
                        }
                        lock_drop(&h->lock);
                        if (!room || buf_add(&q->body, p, bytes) < 0)
                                request_refuse(q, "UNAVAILABLE", "too many requests are on their way; try again");
                }
        }
        if (q->refused || q->admission.max_body_bytes == 0) {
                buf_free(&q->body);
                q->dropped_bytes += bytes;
        }
        return q->dropped_bytes > HTTP_DRAIN_BYTES ? MHD_NO : MHD_YES;
}

enum MHD_Result request_end(struct http_request *q) {
        struct http *h = q->h;
        enum request_stage stage;
        bool resume;

        lock_take(&h->lock);
        stage = q->stage;
        lock_drop(&h->lock);
        if (stage == REQ_DONE || q->refused)
                return answer_send(q);
        conn_phase(q->conn, PHASE_WORK);
        if (stage == REQ_BODY) {
                q->request.body = q->body.data;
                q->request.body_bytes = q->body.bytes;
                if (request_submit(q, lane_of(q->admission.class), true) < 0) /* resumed: MHD calls again */
                        request_refuse(q, "RATE_LIMITED", "too many of your requests are waiting; try again");
                return MHD_YES;
        }
        assert(stage == REQ_RUNNING && q->ring);
        MHD_suspend_connection(q->mhd);
        lock_take(&h->lock);
        q->body_ended = true;
        cond_signal(&q->ring_changed);
        resume = q->stage == REQ_DONE;
        q->suspended = !resume;
        lock_drop(&h->lock);
        if (resume)
                MHD_resume_connection(q->mhd);
        return MHD_YES;
}

void request_completed(struct http_request *q, bool ok) {
        struct http *h = q->h;

        lock_take(&h->lock);
        assert(!q->suspended);
        q->broken = true;
        cond_signal(&q->ring_changed);
        if (q->counted) {
                h->active--;
                cond_broadcast(&h->changed);
        }
        lock_drop(&h->lock);
        if (!ok)
                log_debug("event=request_broken_off method=%s peer=%s", q->method, q->peer);
        conn_phase(q->conn, PHASE_IDLE);
        request_unref(q);
}
