/* SPDX-License-Identifier: Apache-2.0 */
/* http.h: the network side: one libmicrohttpd daemon in front of one service. */
#pragma once
#include <stdint.h>

#include "server/service.h"

struct http;
struct http_config {
        struct service *service;
        const char *listen;              /* "127.0.0.1:7380", "[::1]:0", "0.0.0.0:443"; port 0: the kernel picks one */
        const char *tls_cert, *tls_key;  /* PEM files; NULL: plain HTTP */
        unsigned workers;                /* 0: 8; threads for database and disk work */
        unsigned uploads;                /* 0: 16; streamed PUTs at once */
        unsigned downloads;              /* 0: 128; streamed GETs at once (2 MiB each) */
        unsigned connections;            /* 0: 1,024 */
        size_t body_bytes_max;           /* 0: 256 MiB; of all bodies being collected */
        /* Slow clients: a request's head must come within head_ms; a body, and the client's taking of an answer, gets grace_ms plus a second per rate_bytes;
         * a connection may rest idle_ms between requests. 0: 20 s, 30 s, 16 KiB, 90 s. */
        int64_t head_ms, grace_ms, idle_ms;
        uint64_t rate_bytes;
};
/* Starts to serve. ret_why: one line that says what to do. -EADDRINUSE, -EACCES, -EINVAL (address, certificate), -ENOENT (certificate file). */
int http_open(const struct http_config *c, struct http **ret, char *ret_why, size_t n) _must_check_;
const char *http_url(const struct http *h); /* "http://127.0.0.1:7380" */
/* Accepts no more, answers parked polls, lets requests under way finish for at most grace_ms, then cuts them. All threads joined. NULL fine. */
void http_close(struct http *h, int64_t grace_ms);
