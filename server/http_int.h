/* SPDX-License-Identifier: Apache-2.0 */
/* http_int.h: what the files of the network side share. All fields that are marked `lock` are guarded by http.lock. */
#pragma once
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "api/wire.h"
#include "base/lock.h"
#include "base/thread.h"
#include "http.h"
#include "http_lane.h"

#define HTTP_RING_BYTES (1u << 20)        /* of one streamed upload, between the network and its thread */
#define HTTP_DRAIN_BYTES (UINT64_C(64) << 20) /* of a refused body: read and dropped so that the client sees the answer; beyond it the connection is cut */
#define RANK_HTTP (RANK_QUEUE - 2)        /* above the service's waiters, below the pools */

/* Threads apart, so that no kind of request waits for another kind. */
enum http_lane {
        LANE_TREE,       /* logins, metadata, events: short */
        LANE_COMMIT,     /* commits, blocks that come: a sync of the disk each */
        LANE_READ,       /* blocks that go: packed reads, the pieces of downloads */
        LANE_STREAM,     /* streamed uploads, which wait for their clients */
        LANES
};
enum http_phase {
        PHASE_FRESH,     /* connected, no request line yet */
        PHASE_HEAD,      /* the head is coming */
        PHASE_BODY,      /* the body is coming */
        PHASE_WORK,      /* we are at it: no deadline */
        PHASE_SEND,      /* the client takes the answer */
        PHASE_IDLE,      /* between requests */
};
struct http_conn {
        struct http *h;
        struct http_conn *next, *prev;   /* lock */
        int fd;                          /* MHD's; open as long as the conn is in the list */
        enum http_phase phase;           /* lock */
        int64_t since_ms;                /* lock: start of the phase, moved on by the time that we were the slow ones */
        int64_t paused_ms;               /* lock: since when we hold the client back; 0: not */
        uint64_t bytes;                  /* lock: progress in the phase */
        bool cut;                        /* lock: shut down by us */
        char peer[64];
};

enum request_stage { REQ_NEW, REQ_BODY, REQ_RUNNING, REQ_PARKED, REQ_DONE, REQ_SENT };
struct http_request {
        struct http *h;
        struct MHD_Connection *mhd;
        struct http_conn *conn;
        _Atomic int refs;                /* MHD's request, its response, a job */
        char *target;                    /* as it came */
        char *header[9];                 /* copies: enum http_header */
        char method[16], peer[64];
        struct service_admission admission;
        enum request_stage stage;        /* lock */
        bool suspended;                  /* lock: MHD holds the connection until we resume it */
        bool counted;                    /* lock: in http.active */
        bool head_seen;                  /* MHD's thread */
        bool refused;                    /* the answer is there before the body's end: the rest is dropped */
        uint64_t dropped_bytes;
        struct buf body; size_t body_reserved;
        struct service_request request;
        struct service_answer answer;
        char sum[WIRE_SUM_CHARS + 1];    /* of the answer; "": it has none */
        struct lane_job job;
        uint64_t who;                    /* whose turn it takes: of the token, or of the address */
        /* long poll */
        struct service_waiter waiter;
        struct http_request *next, *prev; /* lock: http.parked */
        bool woken, no_wait;             /* lock */
        /* streamed upload */
        uint8_t *ring; size_t ring_at, ring_bytes; /* lock */
        bool body_ended, broken;         /* lock */
        struct cond ring_changed;        /* lock */
        /* streamed answer */
        uint8_t *out; size_t out_at, out_bytes; uint64_t out_off; int out_error; bool fetching; /* lock */
        struct lane_job out_job;
};

struct http {
        struct http_config config;
        struct service *service;
        struct MHD_Daemon *daemon;
        struct lane *lanes[LANES];       /* by enum http_lane */
        char url[300];
        struct lock lock;
        struct cond changed;             /* lock: active */
        struct cond stop;                /* lock: stopping; the reaper waits for it */
        struct http_conn *conns;         /* lock */
        struct http_request *parked;     /* lock */
        unsigned active;                 /* lock: requests between their head and the end of their answer */
        unsigned pulls;                  /* lock: streamed answers */
        size_t body_bytes;               /* lock: of all bodies being collected */
        bool stopping;                   /* lock */
        pthread_t reaper;
        bool reaper_started;
};

enum http_header { H_AUTHORIZATION, H_ACCEPT, H_CONTENT_TYPE, H_RANGE, H_IF_MATCH, H_IF_NONE_MATCH, H_IF_RANGE, H_IDEMPOTENCY_KEY, H_SUM, HEADERS };

/* http_request.c */
struct http_request *request_new(struct http *h, struct MHD_Connection *mhd, const char *target); /* NULL without memory */
void request_unref(struct http_request *q);
/* The head is complete / a piece of the body came / the body is complete: MHD's calls, in order, on its threads. */
enum MHD_Result request_head(struct http_request *q, const char *method);
enum MHD_Result request_piece(struct http_request *q, const char *p, size_t *n);
enum MHD_Result request_end(struct http_request *q);
void request_completed(struct http_request *q, bool ok);
void request_wake_locked(struct http_request *q, bool no_wait);  /* a parked one: looks again */
/* http_answer.c */
enum MHD_Result answer_send(struct http_request *q);             /* queues the answer */
/* http_reaper.c */
void conn_phase(struct http_conn *c, enum http_phase phase);
void conn_progress(struct http_conn *c, uint64_t bytes);
void conn_pause(struct http_conn *c, bool paused);
int reaper_start(struct http *h) _must_check_;
void conns_cut(struct http *h);                                  /* shuts all connections down */
void resume_locked_then_drop(struct http *h, struct http_request *q); /* lock held on entry; resumes the connection if it is suspended, after dropping the lock */
