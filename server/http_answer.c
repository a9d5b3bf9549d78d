/* SPDX-License-Identifier: Apache-2.0 */
/* http_answer.c: from a service's answer to bytes on the wire.
 *
 * Small answers are one buffer that becomes MHD's. Large ones are pulled: MHD asks for the next piece on its own thread; if it is not there, the connection
 * is suspended and a worker reads one block (2 MiB at most, checked against its hash) into the request's buffer, then resumes it. So the
 * network threads never wait for the disk, and a slow client costs one buffer. If a pull fails the connection is closed before the promised length:
 * the client sees a short transfer, never padding. */
#include "http_int.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/failpoint.h"
#include "base/log.h"

#define PIECE_BYTES (128u << 10)

static void out_fetch(struct lane_job *j) {
        struct http_request *q = container_of(j, struct http_request, out_job);
        struct http *h = q->h;
        int64_t n = q->answer.pull(q->answer.pull_arg, q->out_off, q->out, SERVICE_PULL_BYTES);

        if (n == 0 || (n > 0 && (uint64_t)n > q->answer.pull_bytes - q->out_off))
                n = -EIO;
        lock_take(&h->lock);
        q->fetching = false;
        q->out_at = 0;
        q->out_bytes = n > 0 ? (size_t)n : 0;
        q->out_error = n < 0 ? (int)n : 0;
        if (n < 0)
                log_error("request=%s event=answer_cut offset=%" PRIu64 " error=%s", q->answer.request_id, q->out_off, err_name((int)n));
        resume_locked_then_drop(h, q);
        request_unref(q);
}

static ssize_t out_read(void *cls, uint64_t pos, char *buf, size_t max) {
        struct http_request *q = cls;
        struct http *h = q->h;
        size_t n;

        (void)pos;
        conn_pause(q->conn, false);
        lock_take(&h->lock);
        if (q->out_error < 0) {
                lock_drop(&h->lock);
                return MHD_CONTENT_READER_END_WITH_ERROR;
        }
        if (q->out_at < q->out_bytes) {
                n = MIN(max, q->out_bytes - q->out_at);
                memcpy(buf, q->out + q->out_at, n);
                q->out_at += n;
                q->out_off += n;
                lock_drop(&h->lock);
                conn_progress(q->conn, n);
                return (ssize_t)n;
        }
        lock_drop(&h->lock);
        conn_pause(q->conn, true);
        MHD_suspend_connection(q->mhd);
        lock_take(&h->lock);
        assert(!q->fetching);
        q->fetching = true;
        q->suspended = true;
        lock_drop(&h->lock);
        (void)atomic_fetch_add(&q->refs, 1);
        q->out_job.run = out_fetch;
        if (lane_submit(h->lanes[LANE_READ], &q->out_job, q->who, false) < 0)
                return MHD_CONTENT_READER_END_WITH_ERROR; /* does not happen: it may not be refused */
        return 0;
}

static void out_free(void *cls) {
        request_unref(cls);
}

static void add(struct MHD_Response *r, const char *name, const char *value) {
        if (value && *value && MHD_add_response_header(r, name, value) != MHD_YES)
                log_warn("event=header_dropped name=%s", name);
}

static void add_headers(struct http_request *q, struct MHD_Response *r, bool close) {
        const struct service_answer *a = &q->answer;
        char text[64];

        add(r, "X-Request-Id", a->request_id);
        add(r, "X-Content-Type-Options", "nosniff");
        add(r, "Cache-Control", a->etag[0] ? "private, no-cache" : "no-store");
        add(r, "Content-Type", a->content_type);
        add(r, WIRE_SUM_HEADER, q->sum);
        add(r, "ETag", a->etag);
        add(r, "Content-Range", a->content_range);
        add(r, "Location", a->location);
        add(r, "Allow", a->allow);
        add(r, "X-Tarn-Version", a->version);
        add(r, "X-Tarn-Replaced", a->replaced);
        if (a->accept_ranges)
                add(r, "Accept-Ranges", "bytes");
        if (a->status == 401)
                add(r, "WWW-Authenticate", "Bearer realm=\"tarn\"");
        if (a->retry_after_s > 0) {
                (void)snprintf(text, sizeof text, "%" PRId64, a->retry_after_s);
                add(r, "Retry-After", text);
        }
        if (a->last_modified_ns != 0) {
                time_t s = (time_t)(a->last_modified_ns / 1000000000);
                struct tm tm;

                if (gmtime_r(&s, &tm) && strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm) > 0)
                        add(r, "Last-Modified", text);
        }
        if (close)
                add(r, "Connection", "close");
}

/* A response that pulls. NULL: too many at once (the answer is then a refusal), or no memory. */
static struct MHD_Response *respond_pull(struct http_request *q) {
        struct http *h = q->h;
        struct MHD_Response *r;
        bool room;

        if (!q->answer.head) {
                lock_take(&h->lock);
                room = h->pulls < h->config.downloads;
                if (room)
                        h->pulls++;
                lock_drop(&h->lock);
                q->out = room ? malloc(SERVICE_PULL_BYTES) : NULL;
                if (!q->out) {
                        if (room) {
                                lock_take(&h->lock);
                                h->pulls--;
                                lock_drop(&h->lock);
                        }
                        service_answer_free(&q->answer);
                        service_refuse(h->service, "UNAVAILABLE", "too many downloads at the same moment; try again", &q->answer);
                        return NULL;
                }
        }
        (void)atomic_fetch_add(&q->refs, 1);
        r = MHD_create_response_from_callback(q->answer.pull_bytes, PIECE_BYTES, out_read, q, out_free);
        if (!r)
                request_unref(q);
        return r;
}

enum MHD_Result answer_send(struct http_request *q) {
        struct http *h = q->h;
        struct MHD_Response *r = NULL;
        enum MHD_Result done;
        bool stopping;

        if (q->answer.pull)
                r = respond_pull(q);
        if (!r && !q->answer.pull) {
                size_t n = q->answer.body.bytes;

                r = MHD_create_response_from_buffer(n, q->answer.body.data, MHD_RESPMEM_MUST_FREE);
                if (r) {
                        q->answer.body.data = NULL; /* MHD's now */
                        buf_free(&q->answer.body);
                }
        }
        if (!r)
                return MHD_NO;
        FAILPOINT_HERE("answer.send");
        lock_take(&h->lock);
        q->stage = REQ_SENT;
        stopping = h->stopping;
        lock_drop(&h->lock);
        add_headers(q, r, stopping);
        conn_phase(q->conn, PHASE_SEND);
        done = MHD_queue_response(q->mhd, (unsigned)q->answer.status, r);
        MHD_destroy_response(r);
        return done;
}
