/* SPDX-License-Identifier: Apache-2.0 */
/* service.h: the server without its sockets: one request in, one answer out. server/http.c (libmicrohttpd) feeds it from the network; the simulation
 * and unit tests call it in process.
 *
 * Threads: service_handle may be called from any number of threads at once (with workers 0: from one). No lock of the caller's may be held. */
#pragma once
#include "base/buf.h"
#include "base/clock.h"
#include "base/counters.h"

struct service;
struct lease_wait;
struct service_config {
        const char *data_dir;      /* NULL: everything in memory (SQLite :memory:, a memory object store); else made by service_init and locked while open */
        struct clock *clock; struct rng *rng; struct counters *counters; /* NULL: the system's; own ones */
        unsigned workers;          /* 0: commits run on the caller's thread (simulation, unit tests); else the commit queue has its thread */
        const char *vfs;           /* SQLite VFS name or NULL */
        int64_t lease_ms;          /* a client that holds locks and is silent for so long loses them; 0: 30,000 */
};
/* Makes a new data directory (0700). -EEXIST: there is one already; ret_why: one line that says what to do. */
int service_init(const char *data_dir, char *ret_why, size_t n) _must_check_;
/* -ENOENT no data directory there, -EBUSY another process has it open, -EPROTONOSUPPORT made by a newer server; ret_why: one line that says what to do. */
int service_open(const struct service_config *c, struct service **ret, char *ret_why, size_t n) _must_check_;
void service_close(struct service *s); /* no request may be under way, no waiter registered */

/* A long poll that waits for a commit, or for a lock. Embedded in its owner's struct; zeroed, then `ready` and `owner` set. */
struct service_waiter {
        void (*ready)(struct service_waiter *w); /* called at most once per registration, from any thread, a lock of the service held: queues only */
        void *owner;
        /* set by service_handle when it returns -EINPROGRESS */
        int64_t deadline_ms;       /* monotonic, absolute: the end of the client's wait */
        /* the service's own */
        struct service_waiter *next, *prev; bool registered; uint64_t mask;
        struct lease_wait *lock;   /* waits for a lock */
};

struct service_request {
        const char *method, *target;       /* "GET", "/v1/...?query", percent-encoded */
        const char *authorization, *accept, *content_type, *range, *if_match, *if_none_match, *if_range, *idempotency_key; /* NULL if absent */
        const char *peer;                  /* address, for the log; NULL in process */
        const void *body; size_t body_bytes;      /* small bodies; at most what service_admit says */
        /* large PUT of a whole file: body comes in pieces through read (returns bytes, 0 at the end, -errno) instead of body */
        int64_t (*read)(void *arg, void *p, size_t n); void *read_arg;
        int64_t content_length;            /* of a body that comes through read; -1 unknown */
        /* Long poll: with a waiter and nothing to say, service_handle registers it and returns -EINPROGRESS: call again (with the same waiter) when ready was called, or with
         * no_wait once deadline_ms has passed. No commit is missed in between; any other return leaves the waiter unregistered. Without a waiter nothing ever parks: the answer comes at once. */
        struct service_waiter *waiter;
        bool no_wait;
};
struct service_answer {
        int status;
        const char *content_type;          /* static */
        struct buf body;                   /* small answers */
        /* large answers: pulled in order, in pieces: each call gives 1..n bytes at `off`, or -errno (the transfer is then cut, never padded). n is at least SERVICE_PULL_BYTES. Closed once. */
        int64_t (*pull)(void *arg, uint64_t off, void *p, size_t n); void (*pull_close)(void *arg); void *pull_arg; uint64_t pull_bytes;
        char etag[80], content_range[80], location[64], allow[40]; /* headers; "" = absent */
        int64_t retry_after_s; char request_id[40]; int64_t last_modified_ns; /* 0 = absent */
        char version[40], replaced[40];    /* X-Tarn-Version of the content shown or made; X-Tarn-Replaced: the version that a PUT or DELETE by path replaced */
        bool accept_ranges;
        bool head;                         /* the body's length is told, its bytes are not sent */
};
#define SERVICE_PULL_BYTES (2u << 20)
void service_answer_free(struct service_answer *a);
/* Runs one request to its end and fills the answer, errors too; returns 0. -EINPROGRESS: see waiter (the answer is empty). Nothing else is returned. */
int service_handle(struct service *s, const struct service_request *r, struct service_answer *ret) _must_check_;
/* Takes a waiter out (the client went away); after that `ready` is not called. Harmless if it is not registered. */
void service_wait_remove(struct service *s, struct service_waiter *w);

/* What a body may be, told from method and path alone, before a byte of it is kept. */
enum service_class { CLASS_CONTROL, CLASS_METADATA, CLASS_EVENTS, CLASS_UPLOAD, CLASS_DOWNLOAD };
struct service_admission { enum service_class class; size_t max_body_bytes; bool stream; /* body goes through read, not body */ };
void service_admit(struct service *s, const char *method, const char *target, struct service_admission *ret);
/* The answer to a request that is refused before it runs (body too large, too many connections): code as in api/code.h. */
void service_refuse(struct service *s, const char *code, const char *message, struct service_answer *ret);

/* Administration (also through the Unix socket while serving): used by tarn-server's subcommands. words: {"user", "add", NAME}, {"workspace", "add", NAME, "--owner", USER},
 * {"token", "add", "--user", NAME}, {"url"}. 0, -EEXIST, -ENOENT, -EINVAL; ret_text: what to print, or on failure why, without newline. */
int service_admin(struct service *s, const char *const *words, size_t n, const char *password, struct buf *ret_text) _must_check_;
