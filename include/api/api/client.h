/* SPDX-License-Identifier: Apache-2.0 */
/* client.h: HTTP from the client's side: the one libcurl user. `struct transport` is the seam that the sync engine sees: submit a request, get
 * one completion. The real one (transport_curl) runs one multi handle on one thread; the simulation gives one that calls the server's router in process.
 *
 * Guarantees: `done` is called exactly once per submitted request, never from inside submit, from the transport's own thread with no lock held;
 * after cancel() it still comes (err -ECANCELED). Deadlines are absolute for the whole request and also bound idle time. */
#pragma once
#include "base/buf.h"
#include "base/clock.h"
#include "base/counters.h"
#include "base/model.h"

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_PUT, HTTP_DELETE };

struct http_call {
        /* request: filled in by the caller, who keeps it alive until done */
        enum http_method method;
        char *path;               /* "/v1/..." with query, percent-encoded; owned by the call, freed with it */
        const char *content_type; /* of the body */
        const char *accept;
        struct buf body;
        int64_t deadline_ms;      /* monotonic, absolute */
        size_t max_answer_bytes;  /* more is -EMSGSIZE */
        bool background;          /* lower priority */
        bool no_auth;             /* login, refresh */
        /* answer */
        int err;                  /* 0: an HTTP answer came (any status); -EHOSTDOWN connect or transfer failed, -ETIMEDOUT, -ECANCELED, -EMSGSIZE, -ENOKEY TLS: the server could not prove who it is */
        bool sent;                /* some request bytes may have left: the server may have acted */
        int status;
        int64_t retry_after_ms;   /* 0: none given */
        char error_code[32];      /* symbolic code of a JSON error answer, "" if none */
        char message[320];        /* human-readable cause: the server's message or libcurl's */
        struct buf answer;
        void (*done)(struct http_call *c);
        void *owner;
        void *priv;               /* the transport's */
};
struct transport {
        int (*submit)(struct transport *t, struct http_call *c);  /* 0; -ENOMEM, -ESHUTDOWN: done will not come */
        void (*cancel)(struct transport *t, struct http_call *c);
};
void http_call_free(struct http_call *c); /* path, body, answer, and the struct itself (made by http_call_new) */
struct http_call *http_call_new(enum http_method method, size_t max_body, size_t max_answer);

/* -errno of a finished call: err, or from status and error_code; 0 for 2xx. */
int http_call_error(const struct http_call *c);

struct transport_curl_config {
        const char *base_url;     /* "https://host:port" */
        const char *ca_file;      /* NULL: the system's */
        unsigned max_connections; /* 0: 16 */
        struct counters *counters;
        /* Gives the current bearer token, called on the transport's thread for each request; refresh is the session's business (api/session.h). */
        int (*token)(void *arg, char *ret, size_t n);
        void *token_arg;
};
int transport_curl_new(const struct transport_curl_config *config, struct transport **ret) _must_check_;
void transport_curl_free(struct transport *t);  /* cancels what is under way, calls every done, joins */
/* One blocking call through any transport, for subcommands (login), workers and tests; never on the transport's own thread. Sets done and owner; returns http_call_error. */
int transport_call(struct transport *t, struct http_call *c) _must_check_;

/* "https://host[:port]/workspace" -> base URL and workspace (both newly allocated). One clear line in ret_why (static) on -EINVAL. */
int url_split(const char *url, char **ret_base, char **ret_workspace, const char **ret_why) _must_check_;
/* The base alone; a workspace in the URL is permitted and dropped (login). */
int url_base(const char *url, char **ret_base, const char **ret_why) _must_check_;
int url_escape(const char *s, struct buf *b) _must_check_; /* one path part or query value */

/* session: the token file of one account under the state directory, 0600, replaced atomically. One refresh at a time, in this process and among those that share the directory: a
 * token that another process (a second mount, `tarn login`) has put there is taken over without asking the server. */
struct session;
/* Wrong password -EACCES; TLS -ENOKEY; unreachable -EHOSTDOWN, -ETIMEDOUT; not a tarn server -EPROTO; ret_why: one clear line. ca_file (or NULL) is remembered for mounts. */
int session_login(const char *state_dir, const char *base_url, const char *ca_file, const char *user, const char *password, char *ret_why, size_t n) _must_check_;
int session_open(const char *state_dir, const char *base_url, struct session **ret) _must_check_; /* -ENOENT: never logged in here; -EINVAL: the file is damaged */
void session_free(struct session *s);
int session_token(void *session, char *ret, size_t n);          /* for transport_curl_config.token. -EKEYREJECTED: signed out */
/* A 401 came: 0 refreshed (or a newer token was found in the file), try again; -EKEYREJECTED signed out (the refresh token was refused; asking again costs one read of the file
 * until somebody logs in); -EAGAIN another process is at it; -EHOSTDOWN, -ETIMEDOUT, -ENOKEY ... could not ask. Blocks for one HTTP request: never on the transport's thread. */
int session_refresh(struct session *s, struct transport *t) _must_check_;
const char *session_user(const struct session *s);
const char *session_ca_file(const struct session *s);           /* NULL: the system's */
