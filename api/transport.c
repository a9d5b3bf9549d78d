/* SPDX-License-Identifier: Apache-2.0 */
/* transport.c: HTTP/1.1 on libcurl's multi interface: one thread ("tarn-http"), one multi handle, one list of requests.
 *
 *   submit            QUEUED     in the list, waits for a free connection (background ones leave half of the connections to others)
 *   the thread        RUNNING    easy handle in the multi
 *   answer, error, deadline, cancel, free
 *                     gone       out of the list and the multi; `done` is called with no lock held; the caller may free the call inside it
 *
 * `lock` guards the list, each request's `state` and `cancelled`, and `stop`. The easy handles, the multi and everything in a http_call belong to the thread from submit
 * to done. The thread waits in curl_multi_poll with the nearest deadline; submit, cancel and free wake it.
 *
 * Deadlines are ours: libcurl's own timeouts do not cover a request that waits for a connection. A silent peer costs at most the deadline of
 * the request, and TCP keepalive finds a dead one sooner. Answers are bounded while they come. Connections are kept and reused; libcurl itself
 * repeats a request once if a kept connection turns out to be dead before a byte of the answer came, which our operation ids permit.
 *
 * Bodies have sums both ways (wire.h): an answer with a wrong one is a transfer that broke off, and nobody reads it.
 *
 * No redirects (a token must not follow one), no proxies' credentials, no cookies, http and https only, certificates and host names always checked. The token
 * is asked for per request, lives in the header list of that request only, and is never logged. */
#include <assert.h>
#include <curl/curl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "api/client.h"
#include "api/wire.h"
#include "base/failpoint.h"
#include "base/json.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/thread.h"

#define CONNECT_TIMEOUT_MS 10000
#define ERROR_BODY_MAX 65536u
#define TOKEN_BYTES_MAX 4096u

enum request_state { QUEUED, RUNNING };
struct request {
        struct http_call *call;
        enum request_state state;
        bool cancelled;
        bool too_large;           /* the answer ran over its maximum */
        CURL *easy;
        struct curl_slist *headers;
        char cause[CURL_ERROR_SIZE];
        struct request *next, *prev;
        struct request *act;      /* the thread's list of what to do this turn */
};

struct transport_curl {
        struct transport transport;
        struct lock lock;
        struct request *first, *last; /* in order of submission */
        bool stop;
        unsigned running, running_background; /* the thread's */
        CURLM *multi;
        pthread_t thread;
        char *base_url, *ca_file;
        unsigned max_connections;
        struct counters *counters;
        int (*token)(void *arg, char *ret, size_t n);
        void *token_arg;
};

static struct transport_curl *self(struct transport *t) {
        return container_of(t, struct transport_curl, transport);
}

/* ---- the caller's side ---- */

static int submit(struct transport *t, struct http_call *c) {
        struct transport_curl *tc = self(t);
        assert(c->path && c->path[0] == '/' && c->done && c->deadline_ms > 0);
        struct request *q = calloc(1, sizeof *q);
        if (!q)
                return -ENOMEM;
        q->call = c;
        c->err = 0;
        c->status = 0;
        c->sent = false;
        c->retry_after_ms = 0;
        c->error_code[0] = c->message[0] = 0;
        buf_reset(&c->answer);
        {
                LOCK_SCOPE(&tc->lock);
                if (tc->stop) {
                        free(q);
                        return -ESHUTDOWN;
                }
                c->priv = q;
                q->prev = tc->last;
                *(tc->last ? &tc->last->next : &tc->first) = q;
                tc->last = q;
        }
        curl_multi_wakeup(tc->multi);
        return 0;
}

/* Looks the call up by its address and does not touch it: it may be done and freed already. */
static void cancel(struct transport *t, struct http_call *c) {
        struct transport_curl *tc = self(t);
        {
                LOCK_SCOPE(&tc->lock);
                struct request *q = tc->first;
                while (q && q->call != c)
                        q = q->next;
                if (!q)
                        return;
                q->cancelled = true;
        }
        curl_multi_wakeup(tc->multi);
}

/* ---- the thread's side ---- */

/* A line for people; cut if it is too long. */
static void _printf_(2, 3) say(struct http_call *c, const char *fmt, ...) {
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(c->message, sizeof c->message, fmt, ap);
        va_end(ap);
}

static size_t on_body(char *p, size_t one, size_t n, void *arg) {
        struct request *q = arg;
        struct http_call *c = q->call;
        if (n > c->max_answer_bytes - MIN(c->answer.bytes, c->max_answer_bytes) || buf_add(&c->answer, p, n) < 0) {
                q->too_large = true;
                return 0;
        }
        return n;
}

static int add_header(struct request *q, const char *name, const char *value) {
        char line[TOKEN_BYTES_MAX + 64];
        int n = snprintf(line, sizeof line, "%s: %s", name, value);
        struct curl_slist *l = n < (int)sizeof line ? curl_slist_append(q->headers, line) : NULL;
        explicit_bzero(line, sizeof line);
        if (!l)
                return -ENOMEM;
        q->headers = l;
        return 0;
}

static int add_headers(struct transport_curl *tc, struct request *q) {
        struct http_call *c = q->call;
        int r = 0;
        struct curl_slist *l = curl_slist_append(NULL, "Expect:"); /* no 100-continue: one round trip less */
        if (!l)
                return -ENOMEM;
        q->headers = l;
        if (c->content_type)
                r = add_header(q, "Content-Type", c->content_type);
        if (r == 0 && c->accept)
                r = add_header(q, "Accept", c->accept);
        if (r == 0 && c->body.bytes > 0) {
                char sum[WIRE_SUM_CHARS + 1];
                wire_sum(0, c->body.data, c->body.bytes, sum);
                r = add_header(q, WIRE_SUM_HEADER, sum);
        }
        if (r == 0 && tc->token && !c->no_auth) {
                char value[TOKEN_BYTES_MAX] = "Bearer ";
                r = tc->token(tc->token_arg, value + 7, sizeof value - 7);
                if (r == 0)
                        r = add_header(q, "Authorization", value);
                else
                        say(c, "not signed in: run `tarn login`");
                explicit_bzero(value, sizeof value);
        }
        return r;
}

/* Errors of single options are out of memory or an option this libcurl does not have; both would show at once in every test. */
static int set_up(struct transport_curl *tc, struct request *q) {
        struct http_call *c = q->call;
        _cleanup_free_ char *url = NULL;
        if (asprintf(&url, "%s%s", tc->base_url, c->path) < 0) {
                url = NULL;
                return -ENOMEM;
        }
        int r = add_headers(tc, q);
        if (r < 0)
                return r;
        CURL *e = q->easy;
        CURLcode k = curl_easy_setopt(e, CURLOPT_URL, url);
        curl_easy_setopt(e, CURLOPT_PRIVATE, q);
        curl_easy_setopt(e, CURLOPT_ERRORBUFFER, q->cause);
        curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(e, CURLOPT_NOPROGRESS, 1L);
        curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
        curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
        curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L);
        curl_easy_setopt(e, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
        curl_easy_setopt(e, CURLOPT_USERAGENT, "tarn/" TARN_VERSION);
        curl_easy_setopt(e, CURLOPT_ACCEPT_ENCODING, "zstd");
        curl_easy_setopt(e, CURLOPT_TCP_NODELAY, 1L);
        curl_easy_setopt(e, CURLOPT_TCP_KEEPALIVE, 1L);
        curl_easy_setopt(e, CURLOPT_TCP_KEEPIDLE, 15L);
        curl_easy_setopt(e, CURLOPT_TCP_KEEPINTVL, 5L);
        curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_TIMEOUT_MS);
        curl_easy_setopt(e, CURLOPT_BUFFERSIZE, 256L << 10);
        curl_easy_setopt(e, CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
        curl_easy_setopt(e, CURLOPT_SSL_VERIFYPEER, 1L);
        curl_easy_setopt(e, CURLOPT_SSL_VERIFYHOST, 2L);
        curl_easy_setopt(e, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
        if (k == CURLE_OK && tc->ca_file)
                k = curl_easy_setopt(e, CURLOPT_CAINFO, tc->ca_file);
        curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
        curl_easy_setopt(e, CURLOPT_WRITEDATA, q);
        if (c->method == HTTP_POST || c->method == HTTP_PUT) {
                curl_easy_setopt(e, CURLOPT_POST, 1L);
                curl_easy_setopt(e, CURLOPT_POSTFIELDS, c->body.bytes > 0 ? (const char *)c->body.data : "");
                curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)c->body.bytes);
        }
        if (c->method == HTTP_PUT)
                curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, "PUT");
        else if (c->method == HTTP_DELETE)
                curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, "DELETE");
        else if (c->method == HTTP_HEAD)
                curl_easy_setopt(e, CURLOPT_NOBODY, 1L);
        if (k == CURLE_OK)
                k = curl_easy_setopt(e, CURLOPT_HTTPHEADER, q->headers);
        return k == CURLE_OK ? 0 : -ENOMEM;
}

/* What libcurl's result means, and a line that says what to do. */
static int judge(struct transport_curl *tc, struct request *q, CURLcode code) {
        struct http_call *c = q->call;
        const char *cause = q->cause[0] ? q->cause : curl_easy_strerror(code);
        switch (code) {
        case CURLE_OK:
                return 0;
        case CURLE_WRITE_ERROR:
                if (q->too_large) {
                        say(c, "the answer is larger than %zu bytes", c->max_answer_bytes);
                        return -EMSGSIZE;
                }
                break;
        case CURLE_OPERATION_TIMEDOUT:
                say(c, "%s does not answer (timed out)", tc->base_url);
                return -ETIMEDOUT;
        case CURLE_COULDNT_RESOLVE_HOST:
                say(c, "cannot find the host of %s: check the URL and the network", tc->base_url);
                return -EHOSTDOWN;
        case CURLE_COULDNT_CONNECT:
                say(c, "cannot connect to %s: check that the server runs there", tc->base_url);
                return -EHOSTDOWN;
        case CURLE_PEER_FAILED_VERIFICATION:
        case CURLE_SSL_ISSUER_ERROR:
                say(c, "the TLS certificate of %s is not trusted (%s): name its authority with ca_file", tc->base_url, cause);
                return -ENOKEY;
        case CURLE_SSL_CACERT_BADFILE:
                say(c, "cannot read certificates from %s", tc->ca_file ? tc->ca_file : "the system's store (install ca-certificates)");
                return -ENOKEY;
        case CURLE_SSL_CONNECT_ERROR:
                if (strstr(cause, "wrong version number") || strstr(cause, "packet length")) {
                        say(c, "%s does not speak TLS: is it an http:// server?", tc->base_url);
                        return -ENOKEY;
                }
                break;
        case CURLE_GOT_NOTHING:
        case CURLE_WEIRD_SERVER_REPLY:
        case CURLE_UNSUPPORTED_PROTOCOL:
                say(c, "%s does not answer as a tarn server does: check scheme and port of the URL", tc->base_url);
                return -EHOSTDOWN;
        default:
                break;
        }
        say(c, "transfer with %s failed: %s", tc->base_url, cause);
        return -EHOSTDOWN;
}

/* {code, message, retry_after?} of an error answer. Absent or foreign: the status must do. */
static void read_error(struct http_call *c) {
        _cleanup_json_ json_t *j = NULL;
        const char *s;
        int64_t v;
        if (c->answer.bytes > 0 && c->answer.bytes <= ERROR_BODY_MAX && json_parse(c->answer.data, c->answer.bytes, &j) == 0) {
                if (json_get_str(j, "code", &s) == 0)
                        snprintf(c->error_code, sizeof c->error_code, "%s", s);
                if (json_get_str(j, "message", &s) == 0)
                        say(c, "%s", s);
                if (c->retry_after_ms == 0 && json_get_int(j, "retry_after", 0, 86400, &v) == 0)
                        c->retry_after_ms = v * 1000;
        }
        if (!c->message[0])
                say(c, "the server answered with HTTP status %d", c->status);
}

static bool has_header(const struct request *q, const char *name) {
        struct curl_header *h;
        return curl_easy_header(q->easy, name, 0, CURLH_HEADER, -1, &h) == CURLHE_OK;
}

/* Whether the answer is the whole one that the server sent, as far as it said what that is. It must say where it ends: libcurl takes a head that breaks off for a whole one without a body, and
 * its bytes would be judged as the server's. */
static bool undamaged(const struct request *q, int status) {
        const struct http_call *c = q->call;
        char sum[WIRE_SUM_CHARS + 1];
        struct curl_header *h;
        if (c->method == HTTP_HEAD || status == 204 || status == 304)
                return true;
        if (!has_header(q, "Content-Length") && !has_header(q, "Transfer-Encoding"))
                return false;
        if (curl_easy_header(q->easy, WIRE_SUM_HEADER, 0, CURLH_HEADER, -1, &h) != CURLHE_OK)
                return true;
        wire_sum(status, c->answer.data, c->answer.bytes, sum);
        return strcmp(sum, h->value) == 0;
}

/* The request leaves list and multi; done is called. */
static void finish(struct transport_curl *tc, struct request *q, int err) {
        struct http_call *c = q->call;
        {
                LOCK_SCOPE(&tc->lock);
                *(q->prev ? &q->prev->next : &tc->first) = q->next;
                *(q->next ? &q->next->prev : &tc->last) = q->prev;
        }
        if (q->state == RUNNING) {
                long status = 0, head_bytes = 0;
                curl_off_t up = 0, down = 0, retry = 0;
                curl_easy_getinfo(q->easy, CURLINFO_RESPONSE_CODE, &status);
                curl_easy_getinfo(q->easy, CURLINFO_REQUEST_SIZE, &head_bytes);
                curl_easy_getinfo(q->easy, CURLINFO_SIZE_UPLOAD_T, &up);
                curl_easy_getinfo(q->easy, CURLINFO_SIZE_DOWNLOAD_T, &down);
                curl_easy_getinfo(q->easy, CURLINFO_RETRY_AFTER, &retry);
                c->sent = head_bytes > 0;
                if (err == 0 && !undamaged(q, (int)status)) {
                        say(c, "an answer of %s was damaged or cut off on its way", tc->base_url);
                        err = -EHOSTDOWN;
                }
                if (err == 0) {
                        FAILPOINT_HERE("http.answer");
                        c->status = (int)status;
                        c->retry_after_ms = retry * 1000;
                        if (c->status >= 300)
                                read_error(c);
                }
                counter_add(tc->counters, bytes_sent, (uint64_t)MAX(up, (curl_off_t)head_bytes));
                counter_add(tc->counters, bytes_received, (uint64_t)down);
                curl_multi_remove_handle(tc->multi, q->easy);
                tc->running--;
                tc->running_background -= c->background;
        }
        curl_easy_cleanup(q->easy);
        curl_slist_free_all(q->headers);
        free(q);
        c->err = err;
        c->priv = NULL;
        log_debug("http method=%d path=%s status=%d err=%d bytes=%zu", c->method, c->path, c->status, c->err, c->answer.bytes);
        c->done(c);
}

static void start(struct transport_curl *tc, struct request *q) {
        FAILPOINT_HERE("http.request");
        q->easy = curl_easy_init();
        int r = q->easy ? set_up(tc, q) : -ENOMEM;
        if (r == 0 && curl_multi_add_handle(tc->multi, q->easy) != CURLM_OK)
                r = -ENOMEM;
        if (r < 0) {
                finish(tc, q, r);
                return;
        }
        {
                LOCK_SCOPE(&tc->lock);
                q->state = RUNNING;
        }
        tc->running++;
        tc->running_background += q->call->background;
        counter_add(tc->counters, http_requests, 1);
}

struct turn { struct request *end, *begin; int64_t wait_ms; bool stop; };

/* Decides under the lock what this turn does: requests to end (cancelled, late, or all at stop) and to begin. */
static void look(struct transport_curl *tc, int64_t now_ms, struct turn *ret) {
        struct turn t = { .wait_ms = 60000 };
        struct request **end_tail = &t.end, **begin_tail = &t.begin;
        unsigned running = tc->running, background = tc->running_background;
        LOCK_SCOPE(&tc->lock);
        t.stop = tc->stop;
        for (unsigned pass = 0; pass < 2; pass++)
                for (struct request *q = tc->first; q; q = q->next) {
                        if (q->call->background != (pass == 1))
                                continue;
                        int64_t left_ms = q->call->deadline_ms - now_ms;
                        if (tc->stop || q->cancelled || left_ms <= 0) {
                                *end_tail = q;
                                end_tail = &q->act;
                        } else if (q->state == QUEUED && running < tc->max_connections && (pass == 0 || background < MAX(tc->max_connections / 2, 1u))) {
                                *begin_tail = q;
                                begin_tail = &q->act;
                                running++;
                                background += pass;
                        }
                        t.wait_ms = MIN(t.wait_ms, MAX(left_ms, (int64_t)0));
                }
        *end_tail = *begin_tail = NULL;
        *ret = t;
}

static void *run(void *arg) {
        struct transport_curl *tc = arg;
        for (;;) {
                struct turn t;
                int left = 0;
                look(tc, clock_mono_ms(clock_system()), &t);
                for (struct request *q = t.end, *next; q; q = next) {
                        next = q->act;
                        bool cancelled = t.stop || q->cancelled; /* only ever set, and never unset */
                        if (!cancelled)
                                say(q->call, "%s does not answer (timed out)", tc->base_url);
                        finish(tc, q, cancelled ? -ECANCELED : -ETIMEDOUT);
                }
                for (struct request *q = t.begin, *next; q; q = next) {
                        next = q->act;
                        start(tc, q);
                }
                if (t.stop)
                        return NULL;
                curl_multi_perform(tc->multi, &left);
                bool finished = false;
                for (CURLMsg *m; (m = curl_multi_info_read(tc->multi, &left));) {
                        struct request *q = NULL;
                        if (m->msg != CURLMSG_DONE)
                                continue;
                        CURLcode code = m->data.result; /* m is gone after the handle is removed */
                        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &q);
                        finish(tc, q, judge(tc, q, code));
                        finished = true;
                }
                if (!finished)
                        curl_multi_poll(tc->multi, NULL, 0, (int)t.wait_ms + 1, NULL);
        }
}

/* ---- making and freeing ---- */

static void global_init(void) {
        CURLcode k = curl_global_init(CURL_GLOBAL_DEFAULT); /* not undone: other threads may use TLS to the end of the process */
        assert(k == CURLE_OK);
        (void)k;
}

int transport_curl_new(const struct transport_curl_config *config, struct transport **ret) {
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        pthread_once(&once, global_init);
        struct transport_curl *tc = calloc(1, sizeof *tc);
        if (!tc)
                return -ENOMEM;
        tc->transport = (struct transport){ .submit = submit, .cancel = cancel };
        tc->max_connections = config->max_connections ? config->max_connections : 16;
        tc->counters = config->counters;
        tc->token = config->token;
        tc->token_arg = config->token_arg;
        tc->base_url = strdup(config->base_url);
        tc->ca_file = config->ca_file ? strdup(config->ca_file) : NULL;
        tc->multi = curl_multi_init();
        lock_init(&tc->lock, "transport", RANK_QUEUE);
        int r = -ENOMEM;
        if (tc->base_url && tc->multi && (tc->ca_file || !config->ca_file)) {
                curl_multi_setopt(tc->multi, CURLMOPT_MAXCONNECTS, (long)tc->max_connections);
                curl_multi_setopt(tc->multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)tc->max_connections);
                curl_multi_setopt(tc->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
                r = thread_start(&tc->thread, "tarn-http", run, tc);
        }
        if (r < 0) {
                curl_multi_cleanup(tc->multi);
                lock_destroy(&tc->lock);
                free(tc->base_url);
                free(tc->ca_file);
                free(tc);
                return r;
        }
        *ret = &tc->transport;
        return 0;
}

void transport_curl_free(struct transport *t) {
        if (!t)
                return;
        struct transport_curl *tc = self(t);
        {
                LOCK_SCOPE(&tc->lock);
                tc->stop = true;
        }
        curl_multi_wakeup(tc->multi);
        pthread_join(tc->thread, NULL);
        assert(!tc->first);
        curl_multi_cleanup(tc->multi);
        lock_destroy(&tc->lock);
        free(tc->base_url);
        free(tc->ca_file);
        free(tc);
}
