/* SPDX-License-Identifier: Apache-2.0 */
/* net.c: the network of the simulation: a struct transport per client whose messages reach the server's own code in process. A message goes (delay), is handled, its
 * answer comes back (delay). On the way it may be lost, be handled twice, be answered by a busy proxy (503), or its answer may be lost after the server acted;
 * a cut link ends everything that is under way. A program may choose what a message meets (nth_request.c). Parked long polls wait in the service as they do under HTTP. */
#include <stdlib.h>
#include <string.h>
#include <assert.h>

#include "base/json.h"
#include "sim.h"

static void message_free(struct world *w, struct message *m) {
        for (struct message **p = &w->messages; *p; p = &(*p)->next)
                if (*p == m) {
                        *p = m->next;
                        break;
                }
        if (m->state == MSG_PARKED)
                service_wait_remove(w->server, &m->waiter);
        if (m->has_answer)
                service_answer_free(&m->answer);
        free(m);
}

static void on_ready(struct service_waiter *waiter) {
        struct message *m = waiter->owner;
        m->ready = true;
}

static int64_t delay(struct world *w) {
        return (int64_t)(1 + pick(w, 30) + (chance(w, 50) ? pick(w, 500) : 0));
}

static void meets(struct message *m, enum fate fate) {
        switch (fate) {
        case FATE_LOST: /* on its way */
                m->err = -EHOSTDOWN;
                m->state = MSG_COMING;
                break;
        case FATE_ANSWER_LOST:
                m->lose_answer = true;
                break;
        case FATE_TWICE:
                m->twice = true;
                break;
        case FATE_BUSY:
                m->refuse = 503;
                break;
        case FATE_STALLS: /* until its deadline */
                m->err = -ETIMEDOUT;
                m->at = m->call->deadline_ms;
                m->state = MSG_COMING;
                break;
        case FATE_ERROR:
                m->refuse = 500;
                break;
        case FATE_GATEWAY:
                m->status = 502;
                break;
        case FATE_CUT:
                m->cut = true;
                break;
        case FATE_PORTAL: /* somebody who answers whatever is asked */
                m->refuse = 200;
                m->page = "<html><body>Welcome. Please sign in to use this network.</body></html>";
                break;
        case FATE_EMPTY:
                m->refuse = 200;
                break;
        default:
                break;
        }
}

static int submit(struct transport *t, struct http_call *call) {
        struct client *c = container_of(t, struct client, transport);
        struct world *w = c->w;
        struct message *m = calloc(1, sizeof *m);
        if (!m)
                return -ENOMEM;
        m->client = c;
        m->call = call;
        call->priv = m;
        call->err = 0;
        call->status = 0;
        call->error_code[0] = call->message[0] = 0;
        m->waiter = (struct service_waiter){ .ready = on_ready, .owner = m };
        m->order = ++w->order;
        m->at = w->clock.mono_ms + delay(w);
        m->state = MSG_GOING;
        if (!c->connected) {
                m->err = -EHOSTDOWN;
                m->state = MSG_COMING;
        } else if (w->fate) {
                meets(m, w->fate(m));
        } else if (w->faults && chance(w, w->trouble)) {
                meets(m, (enum fate)pick(w, FATES_AT_RANDOM));
        }
        m->next = w->messages;
        w->messages = m;
        return 0;
}

static void cancel(struct transport *t, struct http_call *call) {
        struct client *c = container_of(t, struct client, transport);
        for (struct message *m = c->w->messages; m; m = m->next)
                if (m->call == call)
                        m->cancelled = true;
}

void net_transport(struct client *c) {
        c->transport = (struct transport){ .submit = submit, .cancel = cancel };
}

int64_t net_time(const struct world *w, const struct message *m) {
        if (m->cancelled || m->ready)
                return w->clock.mono_ms;
        if (m->state == MSG_PARKED)
                return MIN(m->waiter.deadline_ms, m->call->deadline_ms);
        return MIN(m->at, m->call->deadline_ms);
}

bool net_due(const struct world *w, const struct message *m) {
        return net_time(w, m) <= w->clock.mono_ms;
}

static const char *method_name(enum http_method m) {
        static const char *const names[] = { "GET", "HEAD", "POST", "PUT", "DELETE" };
        return names[m];
}

static void finish(struct world *w, struct message *m, int err) {
        struct http_call *call = m->call;
        call->err = err;
        call->sent = true;
        if (err < 0) {
                snprintf(call->message, sizeof call->message, "the simulated link failed");
        } else {
                call->status = m->answer.status;
                w->count[SIM_GONE] += call->status == 410;
                call->retry_after_ms = m->answer.retry_after_s * 1000;
                buf_reset(&call->answer);
                if (m->answer.body.bytes > call->max_answer_bytes)
                        call->err = -EMSGSIZE;
                else if (buf_add(&call->answer, m->answer.body.data, m->answer.body.bytes) < 0)
                        call->err = -ENOMEM;
                for (uint64_t off = 0; call->err == 0 && m->answer.pull && off < m->answer.pull_bytes;) {
                        static uint8_t piece[SERVICE_PULL_BYTES];
                        int64_t n = m->answer.pull(m->answer.pull_arg, off, piece, sizeof piece);
                        if (n <= 0 || buf_add(&call->answer, piece, (size_t)n) < 0)
                                call->err = n <= 0 ? -EHOSTDOWN : -EMSGSIZE;
                        off += (uint64_t)n;
                }
                if (m->cut) /* and nobody noticed: a proxy that made a whole answer of it */
                        call->answer.bytes /= 2;
                if (call->status >= 400 && call->answer.bytes) {
                        _cleanup_json_ json_t *j = NULL;
                        const char *s;
                        if (json_parse(call->answer.data, call->answer.bytes, &j) >= 0) {
                                if (json_get_str(j, "code", &s) >= 0)
                                        snprintf(call->error_code, sizeof call->error_code, "%s", s);
                                if (json_get_str(j, "message", &s) >= 0)
                                        snprintf(call->message, sizeof call->message, "%s", s);
                        }
                }
        }
        trace(w, "%s < %s %s err=%d status=%d bytes=%zu", m->client->name, method_name(call->method), call->path, call->err, call->status, call->err ? 0 : call->answer.bytes);
        call->priv = NULL;
        message_free(w, m);
        call->done(call);
}

static int handle(struct world *w, struct message *m, bool no_wait, struct service_answer *ret) {
        struct http_call *call = m->call;
        struct service_request r = { .method = method_name(call->method), .target = call->path, .accept = call->accept,
                                     .content_type = call->content_type, .body = call->body.data, .body_bytes = call->body.bytes, .content_length = -1,
                                     .waiter = no_wait ? NULL : &m->waiter, .no_wait = no_wait };
        r.authorization = m->client->expired_until > w->clock.mono_ms ? "Bearer not-any-more" : w->authorization;
        return service_handle(w->server, &r, ret);
}

static void arrive(struct world *w, struct message *m, bool no_wait) {
        m->ready = false;
        if (m->twice) { /* a proxy that sent it again: the server sees it two times, the client one answer */
                struct service_answer first = { 0 };
                m->twice = false;
                if (m->call->method == HTTP_POST) {
                        trace(w, "%s twice %s", m->client->name, m->call->path);
                        (void)handle(w, m, true, &first);
                        service_answer_free(&first);
                }
        }
        int r = handle(w, m, no_wait, &m->answer);
        if (r == -EINPROGRESS) {
                m->state = MSG_PARKED;
                return;
        }
        if (m->state == MSG_PARKED)
                service_wait_remove(w->server, &m->waiter);
        assert(r == 0);
        static const char commit[] = "/v1/workspaces/w/commit";
        if (m->answer.status == 200 && !strcmp(m->call->path, commit))
                table_commit(m->client, &m->call->body, &m->answer.body);
        m->has_answer = true;
        m->state = MSG_COMING;
        m->at = w->clock.mono_ms + delay(w);
        if (m->lose_answer) {
                trace(w, "%s answer lost %s status=%d", m->client->name, m->call->path, m->answer.status);
                m->err = -EHOSTDOWN;
        }
        if (m->status) { /* a proxy that has lost the server, after it acted */
                service_answer_free(&m->answer);
                m->answer = (struct service_answer){ .status = m->status, .body = BUF_INIT(64) };
        }
}

void net_run(struct world *w, struct message *m) {
        if (m->cancelled) {
                finish(w, m, -ECANCELED);
                return;
        }
        if (w->clock.mono_ms >= m->call->deadline_ms && !(m->state == MSG_COMING && m->at <= w->clock.mono_ms && !m->err)) {
                finish(w, m, -ETIMEDOUT);
                return;
        }
        switch (m->state) {
        case MSG_GOING:
                if (m->refuse) {
                        m->answer = (struct service_answer){ .status = m->refuse, .body = BUF_INIT(200), .retry_after_s = m->refuse == 503 ? (int64_t)pick(w, 2) : 0 };
                        if (m->page && buf_add(&m->answer.body, m->page, strlen(m->page)) < 0)
                                abort();
                        m->has_answer = true;
                        m->state = MSG_COMING;
                        m->at = w->clock.mono_ms + delay(w);
                        return;
                }
                trace(w, "%s > %s %s bytes=%zu", m->client->name, method_name(m->call->method), m->call->path, m->call->body.bytes);
                arrive(w, m, false);
                return;
        case MSG_PARKED:
                arrive(w, m, !m->ready);
                return;
        default:
                finish(w, m, m->err);
                return;
        }
}

void net_cut(struct client *c) {
        for (struct message *m = c->w->messages; m; m = m->next)
                if (m->client == c && !m->cancelled) {
                        if (m->state == MSG_PARKED)
                                service_wait_remove(c->w->server, &m->waiter);
                        m->state = MSG_COMING;
                        m->ready = false;
                        m->err = -EHOSTDOWN;
                        m->at = c->w->clock.mono_ms + 1 + (int64_t)pick(c->w, 20);
                }
}

int net_server_at(struct world *w, struct cursor *ret) {
        struct service_request r = { .method = "GET", .target = "/v1/workspaces/w", .authorization = w->authorization, .accept = "application/json", .content_length = -1 };
        struct service_answer a = { 0 };
        _cleanup_json_ json_t *j = NULL;
        const char *epoch, *mark;
        int64_t seq = 0;
        int k = service_handle(w->server, &r, &a);
        if (k >= 0)
                k = a.status == 200 ? json_parse(a.body.data, a.body.bytes, &j) : -EIO;
        if (k >= 0)
                k = json_get_int(j, "seq", 0, INT64_MAX, &seq);
        if (k >= 0)
                k = json_get_str(j, "epoch", &epoch);
        if (k >= 0)
                k = json_get_str(j, "mark", &mark);
        if (k >= 0)
                k = hex_decode(epoch, ret->epoch.b, ID_BYTES);
        if (k >= 0)
                k = hex_decode(mark, ret->mark, sizeof ret->mark);
        service_answer_free(&a);
        ret->seq = (uint64_t)seq;
        return k;
}
