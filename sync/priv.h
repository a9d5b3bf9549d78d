/* SPDX-License-Identifier: Apache-2.0 */
/* priv.h: the inside of the engine: one struct per sub-machine, and the two ways to have something done elsewhere (a request, a task). Every field is the control
 * thread's (whoever calls engine_step) unless a comment names a lock. Nothing here waits.
 *
 * How a completion comes back: the transport's or a worker's thread puts it into the inbox (engine.c, under `lock`) and wakes the control thread, which
 * runs it in engine_step. So the machines never see each other's threads. */
#pragma once
#include "api/wire.h"
#include "base/err.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/retry.h"
#include "base/thread.h"
#include "sync/engine.h"
#include "sync/planner.h"

#define NEVER INT64_MAX           /* "not by time alone" */
#define POLL_WAIT_S 25            /* how long the server may hold a long poll */
#define EVENTS_PER_POLL 1000u
#define EVENTS_PER_TURN 128u      /* applied in one transaction while local work is pending, so that neither side starves */
#define ROWS_PER_PAGE 20000u
#define ROWS_PER_STEP 1000u
#define ANSWER_BYTES_MAX (64u << 20)
#define PUT_BYTES 4194304u        /* raw bytes of blocks in one request, about */
#define QUIET_TICK_MS 5000        /* at most between two looks for files that are quiet: a file opened since may be due earlier */
#define BATCH_LINGER_MS 15        /* from the first wake to the first look into the outbox: what a program does in one go travels together */

/* ---- completions ---- */
struct completion {
        void (*run)(struct engine *e, struct completion *c);
        struct completion *next;  /* lock */
};
void engine_complete(struct engine *e, struct completion *c); /* any thread */

/* One HTTP request of a machine. `finished` runs on the control thread, once; afterwards the request and its call are freed. */
struct request {
        struct completion completion;
        struct http_call *call;
        struct engine *e;
        void (*finished)(struct request *r, int err); /* err: 0 for 2xx, else -errno */
        void *owner;
        int64_t sent_ms;
        bool probe;               /* goes out although the connection is not known to work */
        struct request *next, *prev;
};
/* Time for a request that carries or brings so many bytes: net_timeout, and what they take at 32 KiB/s. */
int64_t request_deadline(struct engine *e, size_t bytes);
/* path is printf-style, after "/v1". NULL without memory. */
struct request *request_new(struct engine *e, enum http_method method, size_t max_body, size_t max_answer, const char *fmt, ...) _printf_(5, 6);
void request_free(struct request *r);              /* never sent */
/* Takes the request over in every case; `finished` comes later, also for errors. deadline 0: net_timeout from now. */
void request_send(struct request *r, int64_t deadline_ms);
/* Each hash of an answer that is one HASHES frame. -EPROTO: it is something else (each hash named before it counts for nothing), -EPROTONOSUPPORT; or what `each` says. */
int request_hashes(const struct request *r, int (*each)(void *arg, const struct digest *hash), void *arg) _must_check_;
void request_cancel(struct request *r);            /* finished comes with -ECANCELED */

/* Work for a worker. `finished` runs on the control thread. Embedded in its owner. */
struct task {
        struct job job;
        struct completion completion;
        struct engine *e;
        void (*work)(struct task *t);
        void (*finished)(struct task *t);
};
void task_start(struct engine *e, struct executor *where, struct task *t);

/* ---- connect.c ---- */
enum connect_phase { CONNECT_START, CONNECT_PROBE, CONNECT_ONLINE, CONNECT_WAIT, CONNECT_REFRESH, CONNECT_SIGNED_OUT, CONNECT_UPGRADE };
struct connect {
        enum connect_phase phase;
        struct breaker breaker;
        struct retry_budget budget;
        int64_t hold_until_ms;     /* the server asked for quiet (Retry-After) */
        int64_t refreshed_ms;      /* when the token was last renewed */
        int64_t ask_at_ms;         /* signed out: when to try the token again */
        unsigned protocol_errors;  /* consecutive answers that did not parse */
        struct request *probe;
        struct task refresh; int refresh_err; bool refreshing;
};
void connect_init(struct engine *e);
int64_t connect_step(struct engine *e, int64_t now);
bool connect_online(const struct engine *e);       /* requests may go out */
void connect_report(struct engine *e, const struct request *r, int err);
void connect_protocol_error(struct engine *e, int err, const char *what); /* an answer did not parse: -EPROTO, -EPROTONOSUPPORT */
void connect_parsed(struct engine *e);             /* an answer did */
void connect_failed(struct engine *e, int err, const char *what);      /* the workspace cannot be had: -ENOENT, -EACCES */
int64_t connect_retry_ms(struct engine *e, struct backoff *b, int64_t retry_after_ms);
void connect_nudge(struct engine *e);

/* ---- load.c ---- */
enum load_phase { LOAD_NONE, LOAD_NODES, LOAD_ENTRIES, LOAD_EVENTS, LOAD_APPLY };
struct load {
        enum load_phase phase;
        struct snapshot_state at;
        bool begun;                /* `at` is the tree's; else the first page tells where to begin */
        unsigned page_rows;
        struct request *request;
        struct backoff backoff; int64_t retry_at_ms;
        int64_t apply_since_ms;    /* 0: not yet */
        uint64_t rows;
};
void load_init(struct engine *e);
void load_fork(struct engine *e, const struct buf *answer); /* before it: what the 410 says */
void load_start(struct engine *e);                 /* the cursor is unknown to the server, or there is none */
bool load_active(const struct engine *e);
int64_t load_step(struct engine *e, int64_t now);

/* ---- events.c ---- */
struct events {
        struct request *poll;
        struct arena *arena; struct event *batch; size_t n, at; /* an answer being applied */
        struct buf held;           /* its bytes: rows borrow from them */
        struct cursor upto, cursor;
        bool have_cursor, batch_held, first_poll_done;
        bool waits;                /* the next event is about something whose answer comes first */
        struct backoff backoff; int64_t retry_at_ms;
};
void events_init(struct engine *e);
void events_start(struct engine *e);               /* the tree has a cursor now */
void events_stop(struct engine *e);
int64_t events_step(struct engine *e, int64_t now);
/* Decodes { CURSOR EVENT* }. Strings borrow from body and arena. 0, -EPROTO, -EPROTONOSUPPORT, -ENOMEM. */
int events_decode(struct engine *e, const struct buf *body, struct arena *a, struct event **ret, size_t *ret_n, struct cursor *ret_upto); /* also takes over the quota (engine_status) */

/* ---- outbox.c, results.c ---- */
struct batch {
        struct request *request;
        struct id *ops; size_t n;
};
struct outbox {
        bool look;                 /* something may have become ready */
        int64_t look_at_ms, wait_until_ms;
        int64_t looked_ms;
        struct batch batch; bool in_flight;
        unsigned limit;            /* operations in the next batch: 1 while a refused body is being narrowed down */
        struct backoff backoff; int64_t retry_at_ms;
        bool recovered;            /* rows that an earlier run had sent, or that could not be queued again when their answer was lost, are queued again */
};
void outbox_init(struct engine *e);
void outbox_free(struct engine *e);
int64_t outbox_step(struct engine *e, int64_t now);
void outbox_look(struct engine *e);
void outbox_batch_done(struct request *r, int err);
int results_handle(struct engine *e, const struct op_result *r, struct arena *a);
void outbox_park_item(struct engine *e, const struct id *op, int error, const char *reason, int64_t retry_ms, bool refused /* this very operation, by the server's judgement */);

/* ---- upload.c, put.c ---- */
enum upload_state { UPLOAD_NEW, UPLOAD_CHUNK, UPLOAD_ASK, UPLOAD_PUT, UPLOAD_READY, UPLOAD_FAILED };
struct upload_page { struct digest hash; uint8_t *bytes; uint32_t n; };
struct upload {
        struct upload *next, *prev;
        struct engine *e;
        struct id op; uint64_t ino, gen;
        enum upload_state state;
        bool abandoned;            /* its operation is gone or has newer bytes: freed when nothing is under way */
        bool listed;               /* seen in this look at the outbox */
        bool heavy;                /* counts to uploads.heavy while it is cut */
        unsigned busy;             /* tasks and requests under way */
        struct request *asking;    /* POST missing under way */
        struct put *first_put;     /* put.c: those under way */
        uint64_t charged;          /* bytes of uploads.inline_bytes */
        struct stage *stage;
        struct task task; int task_err; /* cutting */
        const struct blocklist *list; struct content content; uint64_t *starts;
        struct upload_page *pages; size_t n_pages, room_pages;
        void *inline_bytes;
        /* items are blocks 0..list->n-1, then pages */
        size_t n_items, asked, at, left;
        uint8_t *todo;             /* per item: 0 there, 1 to send, 2 in flight */
        uint32_t *by_hash;         /* items sorted by hash */
        struct backoff backoff; int64_t retry_at_ms;
        unsigned mismatches;
};
struct uploads {
        struct upload *first, *last;
        bool look;                 /* an operation may be gone */
        unsigned n, heavy, putting, puts; /* putting: uploads that have blocks to send; puts: requests with blocks under way, early ones too */
        uint64_t inline_bytes;
};
void uploads_init(struct engine *e);
void uploads_free(struct engine *e);
int64_t uploads_step(struct engine *e, int64_t now);
struct upload *upload_find(struct engine *e, const struct id *op);
/* The upload for this item: begun if it is new and there is room for it, else NULL. */
struct upload *upload_for(struct engine *e, const struct outbox_item *item);
void upload_abandon(struct upload *u);
void upload_unref(struct upload *u);               /* one task or request less */
int upload_missing(struct upload *u, const struct digest *hashes, size_t n); /* the server named these */
void upload_fail(struct upload *u, int err, int64_t retry_after_ms); /* here */
void upload_request_failed(struct upload *u, const struct request *r, int err); /* there, or on the way */
const struct digest *upload_item_hash(const struct upload *u, size_t i);
uint32_t upload_item_bytes(const struct upload *u, size_t i);
int64_t put_step(struct upload *u, int64_t now);   /* starts what may start */
void put_cancel(struct upload *u);                 /* requests with its blocks end */

/* ---- early.c ---- */
struct early;
struct earlies {
        struct early *first;
        unsigned n;
        bool look; int64_t look_at_ms, retry_at_ms;
        struct backoff backoff;
};
void early_init(struct engine *e);
int64_t early_step(struct engine *e, int64_t now);

/* ---- download.c ---- */
struct download;                   /* one wish of the cache */
struct downloads {
        struct source source;
        struct download *queued, *queued_last, *active; /* lock */
        _Atomic bool refuse;       /* known to be offline: -EHOSTDOWN at once */
        _Atomic bool cancels;      /* somebody cancelled */
        unsigned requests, piece;  /* piece: blocks in one request */
        struct ask *asks;
        struct pool *pool;         /* decodes; NULL: config.workers */
        struct backoff backoff; int64_t retry_at_ms;
};
void download_init(struct engine *e);
int64_t download_step(struct engine *e, int64_t now);
void download_refuse(struct engine *e, bool refuse);

/* ---- engine.c ---- */
struct engine {
        struct engine_config c;
        struct buf ws;             /* workspace, percent-encoded, with its NUL */
        struct listener listener;
        struct connect connect;
        struct load load;
        struct events events;
        struct outbox outbox;
        struct uploads uploads;
        struct earlies early;
        struct downloads down;
        struct request *requests;  /* sent, not finished */
        unsigned outstanding;      /* requests and tasks under way */
        int64_t quiet_at_ms;
        bool loaded;               /* the tree is complete */
        _Atomic bool accept;       /* what the brake holds is to go */

        struct lock lock;          /* guards what follows; RANK_QUEUE */
        struct cond cond;
        struct completion *inbox, **inbox_end;
        bool woken, changed, nudged, stopping, running, paused; /* changed: the outbox or a stage has something */
        void (*on_woken)(void *arg); void *on_woken_arg;
        struct engine_status status;
        int fatal; char fatal_why[200]; /* for engine_wait_loaded */
        pthread_t thread;
};
int64_t engine_now(struct engine *e);
bool engine_stopping(struct engine *e);
void engine_set_space(struct engine *e, uint64_t quota_bytes, uint64_t used_bytes);
void engine_set_state(struct engine *e, enum conn_state state, int fatal, const char *reason);
void engine_set_loaded(struct engine *e, uint64_t rows, bool loaded);
void engine_set_sending(struct engine *e, uint64_t n);
bool engine_is_open(void *arg, uint64_t ino);      /* arg: the cache */
void engine_committed(struct engine *e, const struct tree_applied *applied);
