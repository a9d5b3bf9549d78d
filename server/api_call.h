/* SPDX-License-Identifier: Apache-2.0 */
/* api_call.h: what the functions behind the routes share: the service itself, the call (one request on its way to an answer), and the helpers that read
 * parameters and write answers. A handler runs on one thread; the call is its own. */
#pragma once
#include <stdatomic.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/json.h"
#include "base/lock.h"
#include "base/model.h"
#include "leases.h"
#include "meta.h"
#include "reserve.h"
#include "server/service.h"
#include "store.h"

#define CALL_QUERIES_MAX 40u
#define CALL_TARGET_BYTES_MAX 16384u
#define CALL_ARENA_BYTES (24u << 20)
#define CALL_JSON_BYTES_MAX (64u << 10)      /* request bodies of JSON */
#define CALL_ANSWER_BYTES_MAX (40u << 20)
#define EVENTS_WAIT_S_MAX 60
#define EVENTS_CURSORS_MAX 16u
#define LOGINS_AT_ONCE 4

struct service_stats {           /* relaxed atomics */
        _Atomic uint64_t requests[5];   /* by enum service_class */
        _Atomic uint64_t answers[6];    /* by status / 100 */
        _Atomic uint64_t body_bytes_received, commits_ops, corrupt_blocks;
};

/* An object of the store on its way to its row: from before its put until after the last transaction that may name it. gc leaves it alone. */
struct service_object { const char *name; struct service_object *next, *prev; };

struct service {
        struct meta *meta;
        struct store *store;
        struct clock *clock;
        struct rng *rng;
        struct counters *counters;
        struct counters own_counters;
        struct store_counts store_counts;
        struct service_stats stats;
        int lock_fd;
        _Atomic int logins;              /* password checks under way: each takes 64 MiB */
        _Atomic int64_t tidy_at_ms;      /* when meta_tidy is due */
        struct reserve *reserve;
        struct lock objects_lock;
        struct service_object *objects;  /* objects_lock */
        struct lock job_lock;
        struct cond job_changed;
        const char *job;                 /* job_lock: what maintenance is under way, NULL none */
        bool job_stop;                   /* job_lock: it should end */
        bool job_yields, job_wanted;     /* job_lock: it was started by nobody; another one wants the slot */
        char *data_dir;                  /* NULL in memory */
        bool serving;                    /* workers > 0 */
        struct lock waiters_lock;
        struct service_waiter *waiters;  /* waiters_lock: those registered */
        struct leases *leases;
};

enum route_auth { AUTH_NONE, AUTH_TOKEN };
struct call;
struct route {
        const char *method, *pattern;    /* "/v1/workspaces/{workspace}/files/{path}"; a last {path} takes the rest, slashes included, maybe empty */
        enum route_auth auth;
        enum service_class class;
        size_t max_body_bytes;           /* 0: no body */
        bool stream;                     /* the body comes through read */
        int (*run)(struct call *c);      /* 0: answered; -EINPROGRESS: parked; -errno: becomes an error answer */
        const char *summary;
};

struct call {
        struct service *s;
        const struct service_request *req;
        struct service_answer *ans;
        struct arena *arena;
        const struct route *route;
        const char *param[3];            /* values of {...} in order: decoded; {path} is left encoded */
        struct { const char *key, *value; } query[CALL_QUERIES_MAX]; size_t n_query;
        struct meta_subject who;         /* AUTH_TOKEN */
};

/* ---- reading ---- */
/* Percent-decodes [p, p+n) into the arena. -EILSEQ: bad escape or a NUL byte. */
int call_decode(struct call *c, const char *p, size_t n, const char **ret) _must_check_;
/* Splits "?a=b&c=d" (without the question mark) into query. -EILSEQ, -E2BIG. */
int call_parse_query(struct call *c, const char *text) _must_check_;
const char *call_query(const struct call *c, const char *key);   /* NULL if absent */
/* -ENOENT absent (ret untouched), -EINVAL not a number in [min, max]. */
int call_query_u64(const struct call *c, const char *key, uint64_t min, uint64_t max, uint64_t *ret) _must_check_;
int call_query_id(const struct call *c, const char *key, struct id *ret) _must_check_;      /* -ENOENT, -EINVAL */
bool call_wants_json(const struct call *c);
/* The request's JSON object. -EINVAL. */
int call_json(struct call *c, json_t **ret) _must_check_;
/* The workspace named by the first parameter, with the asker's role checked: the answer is filled in (and 1 returned) unless 0. */
int call_workspace(struct call *c, enum meta_role least, struct meta_workspace *ret) _must_check_;
/* "a/b/c" of a percent-encoded path: each component decoded and checked (name_check), empty ones dropped. -EILSEQ (also an encoded slash or a dot name), -ENAMETOOLONG. */
int call_path(struct call *c, const char *encoded, const char **ret) _must_check_;
/* The operation id of a mutation by path: from Idempotency-Key, or random. */
struct id call_op_id(struct call *c);

/* ---- answering; all return 0 ---- */
int call_fail(struct call *c, const char *code, const char *fmt, ...) _printf_(3, 4);
/* Adds members to the error object; `extra` is taken over, may be NULL. */
int call_fail_with(struct call *c, const char *code, json_t *extra, const char *fmt, ...) _printf_(4, 5);
int call_fail_errno(struct call *c, int err, const char *what);  /* -errno of meta or store */
int call_fail_op(struct call *c, enum op_code code, const char *what);
int call_answer_json(struct call *c, int status, json_t *body);  /* takes body over; NULL = out of memory */
int call_answer_frames(struct call *c);                          /* body is filled already */
int call_answer_empty(struct call *c, int status);

/* ---- names of things in JSON ---- */
json_t *json_node(const struct node_row *row);
json_t *json_entry(const struct entry_row *row);
json_t *json_cursor(const struct cursor *cursor);
json_t *json_hex(const void *p, size_t n);
json_t *json_version(const struct meta_version *v);
const char *node_kind_name(enum node_kind kind);
void etag_of(const struct content *content, char ret[80]);

/* ---- objects on their way ---- */
void service_object_begin(struct service *s, struct service_object *o, const char *name); /* name lives until the end */
void service_object_end(struct service *s, struct service_object *o);
bool service_object_busy(void *service, const char *name);

/* ---- routes: one function each ---- */
int api_root(struct call *c);
int api_login(struct call *c);
int api_refresh(struct call *c);
int api_logout(struct call *c);
int api_devices(struct call *c);
int api_device_revoke(struct call *c);
int api_workspaces(struct call *c);
int api_workspace_add(struct call *c);
int api_workspace(struct call *c);
int api_snapshot_nodes(struct call *c);
int api_snapshot_entries(struct call *c);
int api_dir(struct call *c);
int api_events(struct call *c);
int api_commit(struct call *c);
int api_missing(struct call *c);
int api_blocks(struct call *c);
int api_read(struct call *c);
int api_file_get(struct call *c);      /* HEAD too */
int api_file_put(struct call *c);
int api_file_delete(struct call *c);
int api_versions_path(struct call *c);
int api_versions_node(struct call *c);
int api_restore_path(struct call *c);
int api_restore_node(struct call *c);
int api_trash(struct call *c);
int api_trash_restore(struct call *c);
int api_trash_purge(struct call *c);
int api_members(struct call *c);
int api_member_set(struct call *c);
int api_member_remove(struct call *c);
int api_lease_add(struct call *c);
int api_lease_renew(struct call *c);
int api_lease_end(struct call *c);
int api_lock(struct call *c);
int api_health(struct call *c);
int api_ready(struct call *c);
int api_metrics(struct call *c);
