/* SPDX-License-Identifier: Apache-2.0 */
/* http.c: starts and stops the network side; gives MHD's calls to the requests.
 *
 * Threads
 *   MHD (2)        epoll; move bytes between sockets and requests, never wait for anything else
 *   worker (8)     requests for logins, metadata, events
 *   commit (8)     commits and blocks that come
 *   read (8)       packed reads, the blocks of streamed answers
 *   upload (16)    streamed PUTs, which wait for their bodies; half of them at most for one asker
 *   http-reaper    deadlines, ends of long polls
 * No class waits for the threads of another, and within one the askers take turns (http_lane.c).
 *
 * One lock (rank between the service's waiters and the pools' queues) guards all that they share; nothing but memcpy, a condition and shutdown(2) happens
 * under it. MHD calls us with its own locks held, so no MHD function is called under it.
 *
 * Stopping: the listening socket is closed, parked polls are answered, requests that come on open connections get 503, and answers say Connection: close. What
 * is under way may finish for grace_ms; then the sockets are shut down, which also ends uploads. Workers are joined before MHD, because MHD must
 * not be stopped while a connection is suspended. */
#include "http_int.h"

#include <arpa/inet.h>
#include <assert.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"

#define PEM_BYTES_MAX (1u << 20)
#define CONNECTION_MEMORY_BYTES (128u << 10)
#define NETWORK_THREADS 2u
#define LISTEN_BACKLOG 512
#define QUEUE_MAX 512u           /* requests of one asker that wait for a thread of a class */

static int why(char *ret_why, size_t n, int err, const char *fmt, ...) _printf_(4, 5);
static int why(char *ret_why, size_t n, int err, const char *fmt, ...) {
        va_list args;

        va_start(args, fmt);
        (void)vsnprintf(ret_why, n, fmt, args);
        va_end(args);
        return err;
}

/* ---- MHD's calls ---- */

static void peer_name(struct MHD_Connection *mhd, char ret[64]) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
        const struct sockaddr *sa = info ? info->client_addr : NULL;
        char host[INET6_ADDRSTRLEN] = "?";
        unsigned port = 0;

        if (sa && sa->sa_family == AF_INET) {
                const struct sockaddr_in *in = (const void *)sa;

                (void)inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
                port = ntohs(in->sin_port);
        } else if (sa && sa->sa_family == AF_INET6) {
                const struct sockaddr_in6 *in = (const void *)sa;

                (void)inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
                port = ntohs(in->sin6_port);
        }
        (void)snprintf(ret, 64, "%s:%u", host, port);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **ret_context, enum MHD_ConnectionNotificationCode code) {
        struct http *h = cls;
        struct http_conn *c = *ret_context;
        const union MHD_ConnectionInfo *info;

        if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
                if (!c)
                        return;
                lock_take(&h->lock);
                if (c->prev)
                        c->prev->next = c->next;
                else
                        h->conns = c->next;
                if (c->next)
                        c->next->prev = c->prev;
                lock_drop(&h->lock);
                free(c);
                *ret_context = NULL;
                return;
        }
        info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        c = info ? calloc(1, sizeof *c) : NULL;
        if (!c)
                return; /* its requests will be refused */
        c->h = h;
        c->fd = info->connect_fd;
        peer_name(mhd, c->peer);
        c->phase = PHASE_FRESH;
        c->since_ms = clock_mono_ms(clock_system());
        lock_take(&h->lock);
        c->next = h->conns;
        if (c->next)
                c->next->prev = c;
        h->conns = c;
        if (h->stopping && c->fd >= 0)
                (void)shutdown(c->fd, SHUT_RDWR);
        lock_drop(&h->lock);
        *ret_context = c;
}

/* The request line is there. */
static void *on_uri(void *cls, const char *uri, struct MHD_Connection *mhd) {
        struct http *h = cls;
        struct http_request *q = request_new(h, mhd, uri);

        if (q)
                conn_phase(q->conn, PHASE_HEAD);
        return q;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version, const char *data, size_t *n, void **context) {
        struct http_request *q = *context;

        (void)cls;
        (void)mhd;
        (void)url;
        (void)version;
        if (!q)
                return MHD_NO;
        if (!q->head_seen)
                return request_head(q, method);
        if (*n > 0)
                return request_piece(q, data, n);
        return request_end(q);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode code) {
        (void)cls;
        (void)mhd;
        if (*context)
                request_completed(*context, code == MHD_REQUEST_TERMINATED_COMPLETED_OK);
        *context = NULL;
}

static void on_log(void *cls, const char *fmt, va_list args) {
        char text[400];

        (void)cls;
        (void)vsnprintf(text, sizeof text, fmt, args);
        text[strcspn(text, "\n")] = 0;
        log_debug("mhd=\"%s\"", text);
}

/* ---- starting ---- */

/* "HOST:PORT" or "[HOST]:PORT" */
static int listen_split(const char *text, char host[256], const char **ret_port, bool *ret_v6) {
        const char *colon = strrchr(text, ':'), *end;

        if (!colon || !colon[1] || strspn(colon + 1, "0123456789") != strlen(colon + 1) || strlen(colon + 1) > 5 ||
            strtoul(colon + 1, NULL, 10) > 65535)
                return -EINVAL;
        end = colon;
        *ret_v6 = *text == '[';
        if (*ret_v6) {
                text++;
                if (end == text || *--end != ']')
                        return -EINVAL;
        }
        if (end <= text || (size_t)(end - text) >= 256)
                return -EINVAL;
        memcpy(host, text, (size_t)(end - text));
        host[end - text] = 0;
        *ret_port = colon + 1;
        return 0;
}

static int listen_open(struct http *h, int *ret_fd, char *ret_why, size_t n) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *list = NULL;
        union { struct sockaddr sa; struct sockaddr_in in; struct sockaddr_in6 in6; struct sockaddr_storage any; } at;
        _cleanup_close_ int fd = -1;
        socklen_t size = sizeof at;
        const char *listen_at = h->config.listen, *port;
        char host[256];
        bool v6;
        int r, one = 1;

        if (listen_split(listen_at, host, &port, &v6) < 0)
                return why(ret_why, n, -EINVAL, "--listen wants HOST:PORT, such as 127.0.0.1:7380, not '%s'", listen_at);
        r = getaddrinfo(host, port, &hints, &list);
        if (r != 0)
                return why(ret_why, n, -EINVAL, "--listen: cannot find the address %s: %s", host, gai_strerror(r));
        fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        r = fd < 0 ? -errno : 0;
        if (r == 0)
                (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (r == 0 && (bind(fd, list->ai_addr, list->ai_addrlen) < 0 || listen(fd, LISTEN_BACKLOG) < 0 || getsockname(fd, &at.sa, &size) < 0))
                r = -errno;
        freeaddrinfo(list);
        if (r == -EADDRINUSE)
                return why(ret_why, n, r, "%s is in use by another program; choose another with --listen (port 0 picks a free one)", listen_at);
        if (r == -EACCES)
                return why(ret_why, n, r, "not allowed to listen on %s; ports below 1024 need root", listen_at);
        if (r < 0)
                return why(ret_why, n, r, "cannot listen on %s: %s", listen_at, strerror(-r));
        (void)snprintf(h->url, sizeof h->url, "%s://%s%s%s:%u", h->config.tls_cert ? "https" : "http", v6 ? "[" : "", host, v6 ? "]" : "",
                       ntohs(at.sa.sa_family == AF_INET6 ? at.in6.sin6_port : at.in.sin_port));
        *ret_fd = steal_fd(&fd);
        return 0;
}

static int pem_read(const char *path, const char *option, struct buf *ret, char *ret_why, size_t n) {
        int r = file_load(path, PEM_BYTES_MAX, ret);

        if (r >= 0 && !buf_text(ret))
                r = -ENOMEM;
        return r < 0 ? why(ret_why, n, r, "%s: cannot read %s: %s", option, path, strerror(-r)) : 0;
}

static int daemon_start(struct http *h, int fd, char *ret_why, size_t n) {
        _cleanup_buf_ struct buf cert = BUF_INIT(PEM_BYTES_MAX + 1), key = BUF_INIT(PEM_BYTES_MAX + 1);
        unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG;
        struct MHD_OptionItem tls[4] = {{MHD_OPTION_END, 0, NULL}};
        int r;

        if (h->config.tls_cert) {
                r = pem_read(h->config.tls_cert, "--tls-cert", &cert, ret_why, n);
                if (r >= 0)
                        r = pem_read(h->config.tls_key, "--tls-key", &key, ret_why, n);
                if (r < 0)
                        return r;
                flags |= MHD_USE_TLS;
                tls[0] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, cert.data};
                tls[1] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, key.data};
                tls[2] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t) "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1"};
                tls[3] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
        }
        h->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, h, MHD_OPTION_LISTEN_SOCKET, fd,
                                     MHD_OPTION_THREAD_POOL_SIZE, NETWORK_THREADS, MHD_OPTION_CONNECTION_LIMIT, h->config.connections,
                                     MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_CONNECTION_TIMEOUT, 0u, MHD_OPTION_NOTIFY_CONNECTION,
                                     on_connection, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_URI_LOG_CALLBACK, on_uri, h, MHD_OPTION_ARRAY, tls,
                                     MHD_OPTION_END);
        if (!h->daemon)
                return why(ret_why, n, -EINVAL, h->config.tls_cert ? "cannot start: %s and %s must be a certificate and its key in PEM form" : "cannot start the HTTP server (%s%s)",
                           h->config.tls_cert ? h->config.tls_cert : "", h->config.tls_key ? h->config.tls_key : "");
        return 0;
}

#define DEFAULT(field, value)                  \
        do {                                   \
                if (h->config.field == 0)      \
                        h->config.field = (value); \
        } while (0)

int http_open(const struct http_config *c, struct http **ret, char *ret_why, size_t n) {
        struct http *h = calloc(1, sizeof *h);
        _cleanup_close_ int fd = -1;
        int r;

        if (!h)
                return why(ret_why, n, -ENOMEM, "no memory");
        assert((c->tls_cert == NULL) == (c->tls_key == NULL));
        h->config = *c;
        h->service = c->service;
        DEFAULT(workers, 8);
        DEFAULT(uploads, 16);
        DEFAULT(downloads, 128);
        DEFAULT(connections, 1024);
        DEFAULT(body_bytes_max, (size_t)256 << 20);
        DEFAULT(head_ms, 20000);
        DEFAULT(grace_ms, 30000);
        DEFAULT(idle_ms, 90000);
        DEFAULT(rate_bytes, 16384);
        lock_init(&h->lock, "http", RANK_HTTP);
        cond_init(&h->changed);
        cond_init(&h->stop);
        r = listen_open(h, &fd, ret_why, n);
        if (r >= 0) {
                static const char *const names[LANES] = {"worker", "commit", "read", "upload"};

                for (size_t i = 0; r >= 0 && i < LANES; i++)
                        r = lane_new(names[i], i == LANE_STREAM ? h->config.uploads : h->config.workers, i == LANE_STREAM ? MAX(h->config.uploads / 2, 1u) : 0, QUEUE_MAX, &h->lanes[i]);
                if (r >= 0)
                        r = reaper_start(h);
                if (r < 0)
                        (void)why(ret_why, n, r, "cannot start threads: %s", strerror(-r));
        }
        if (r >= 0)
                r = daemon_start(h, fd, ret_why, n);
        if (r < 0) {
                http_close(h, 0);
                return r;
        }
        (void)steal_fd(&fd);
        *ret = h;
        return 0;
}

const char *http_url(const struct http *h) {
        return h->url;
}

void http_close(struct http *h, int64_t grace_ms) {
        struct http_request *next;
        int64_t deadline = clock_mono_ms(clock_system()) + grace_ms;
        int fd;

        if (!h)
                return;
        if (h->daemon) {
                fd = MHD_quiesce_daemon(h->daemon);
                if (fd >= 0)
                        (void)close(fd);
        }
        lock_take(&h->lock);
        h->stopping = true;
        cond_broadcast(&h->stop);
        for (struct http_request *q = h->parked; q; q = next) {
                next = q->next;
                request_wake_locked(q, true);
        }
        while (h->active > 0)
                if (cond_wait_until(&h->changed, &h->lock, deadline) < 0)
                        break;
        if (h->active > 0)
                log_warn("event=requests_cut count=%u", h->active);
        lock_drop(&h->lock);
        if (h->reaper_started)
                (void)pthread_join(h->reaper, NULL);
        conns_cut(h);
        lock_take(&h->lock);
        while (h->active > 0) /* the workers end what they have: nothing they wait for comes from a client any more */
                cond_wait(&h->changed, &h->lock);
        lock_drop(&h->lock);
        for (size_t i = LANES; i > 0; i--)
                lane_free(h->lanes[i - 1]);
        if (h->daemon)
                MHD_stop_daemon(h->daemon);
        assert(!h->conns && !h->parked);
        cond_destroy(&h->changed);
        cond_destroy(&h->stop);
        lock_destroy(&h->lock);
        free(h);
}
