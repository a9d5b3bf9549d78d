/* SPDX-License-Identifier: Apache-2.0 */
/* service.h: the server without its sockets: one request in, one answer out. server/http.c (libmicrohttpd) feeds it from the network; the simulation and unit tests call it in process. */
#pragma once
#include "base/buf.h"
#include "base/clock.h"
#include "base/counters.h"

struct service;
struct service_config {
        const char *data_dir;      /* NULL: everything in memory (SQLite :memory:, a memory object store) */
        struct clock *clock; struct rng *rng; struct counters *counters;
        unsigned workers;          /* 0: every request runs on the caller's thread (simulation, unit tests); else own workers and the commit queue's thread */
        const char *vfs;           /* SQLite VFS name or NULL */
};
int service_open(const struct service_config *c, struct service **ret, char *ret_why, size_t n) _must_check_;
void service_close(struct service *s);

struct service_request {
        const char *method, *target;       /* "GET", "/v1/...?query", percent-encoded */
        const char *authorization, *accept, *content_type, *range, *if_match, *if_none_match, *idempotency_key; /* NULL if absent */
        const char *peer;                  /* address, for the log */
        const void *body; size_t body_bytes;      /* small bodies; at most BATCH_BYTES_MAX + overhead */
        /* large PUT of a whole file: body comes in pieces through read (returns bytes, 0 at the end, -errno) instead of body */
        int64_t (*read)(void *arg, void *p, size_t n); void *read_arg; int64_t content_length; /* -1 unknown */
};
struct service_answer {
        int status;
        const char *content_type;          /* static */
        struct buf body;                   /* small answers */
        /* large answers: pulled in pieces; closed once. length known. */
        int64_t (*pull)(void *arg, uint64_t off, void *p, size_t n); void (*pull_close)(void *arg); void *pull_arg; uint64_t pull_bytes;
        char etag[80], content_range[80]; int64_t retry_after_s; char request_id[40]; int64_t last_modified_ns;
        bool accept_ranges;
};
void service_answer_free(struct service_answer *a);
/* Runs one request to its end. Long polls with wait > 0: returns -EINPROGRESS if there is nothing yet; `parked` is set to an object that service_poll_wait watches. Always fills an answer otherwise (errors too). */
int service_handle(struct service *s, const struct service_request *r, struct service_answer *ret) _must_check_;
/* Long poll: called (any thread, queues only) when a commit happened that a parked request may want; the owner then calls service_handle again with wait=0 semantics. arg from registration. */
struct service_waiter { void (*ready)(struct service_waiter *w); void *owner; struct service_waiter *next, *prev; bool registered; char workspaces[256]; };
void service_wait_add(struct service *s, struct service_waiter *w);
void service_wait_remove(struct service *s, struct service_waiter *w);
/* Administration (also through the Unix socket while serving): used by tarn-server's subcommands. 0, -EEXIST, -ENOENT, ...; ret_text: what to print. */
int service_admin(struct service *s, const char *const *words, size_t n, const char *password, struct buf *ret_text) _must_check_;
