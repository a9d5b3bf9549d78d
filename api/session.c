/* SPDX-License-Identifier: Apache-2.0 */
/* session.c: who we are to one server. On disk, in the state directory, one file per server, mode 0600, replaced whole:
 *
 *   session-https___host_7380.json   {"version": 1, "base_url", "user", "device_id", "token", "refresh_token", "ca_file"?}
 *   session-...json.lock             held while a process refreshes
 *
 *   signed in --401--> refreshing --200--> signed in
 *                         |  `--no answer--> signed in (try later)
 *                         `--401--> signed out --another token in the file--> signed in
 *
 * A refresh token is good for one use, so of all the processes that share the file only one may use it: it takes the lock file, reads the file again, and only if
 * nobody was faster asks the server. Nothing here looks at a clock: a token is good until the server says 401.
 *
 * `lock` guards the tokens and the state; it is not held during HTTP or file access. Threads wait for a refresh under way on `cond`. Tokens
 * never reach a log line; memory that held one is cleared. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "api/client.h"
#include "base/io.h"
#include "base/json.h"
#include "base/lock.h"

#define FILE_MAX_BYTES 65536u
#define ANSWER_MAX_BYTES 65536u
#define ASK_MS 30000

struct tokens { char *token, *refresh; };
struct session {
        char *path, *lock_path, *base_url;
        char *user, *device_id, *ca_file;  /* as of session_open */
        struct lock lock;
        struct cond cond;
        struct tokens t;                   /* lock */
        bool refreshing, signed_out;       /* lock */
        int result;                        /* lock; of the last refresh */
};

static void secret_free(char *s) {
        if (s)
                explicit_bzero(s, strlen(s));
        free(s);
}

static void cleanup_secret_buf_p(struct buf *b) {
        if (b->data)
                explicit_bzero(b->data, b->room);
        buf_free(b);
}
#define _cleanup_secret_buf_ _cleanup_(cleanup_secret_buf_p)

static void tokens_free(struct tokens *t) {
        secret_free(t->token);
        secret_free(t->refresh);
        *t = (struct tokens){ 0 };
}

/* A file name out of a base URL: every byte that is not plain becomes '_'. */
static char *file_path(const char *state_dir, const char *base_url) {
        char *path = NULL;
        size_t n = strlen(state_dir);
        if (asprintf(&path, "%s/session-%s.json", state_dir, base_url) < 0)
                return NULL;
        for (char *p = path + n + 1 + strlen("session-"); *p; p++)
                if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || *p == '.' || *p == '-'))
                        *p = '_';
        return path;
}

static int take_str(const json_t *j, const char *key, char **ret) {
        const char *s;
        int r = json_get_str(j, key, &s);
        if (r < 0)
                return r;
        char *copy = strdup(s);
        if (!copy)
                return -ENOMEM;
        *ret = copy;
        return 0;
}

static int tokens_from(const json_t *j, struct tokens *ret) {
        struct tokens t = { 0 };
        int r = take_str(j, "token", &t.token);
        if (r == 0)
                r = take_str(j, "refresh_token", &t.refresh);
        if (r < 0) {
                tokens_free(&t);
                return r;
        }
        *ret = t;
        return 0;
}

static int read_file(const char *path, json_t **ret) {
        _cleanup_secret_buf_ struct buf b = BUF_INIT(FILE_MAX_BYTES);
        int r = file_load(path, FILE_MAX_BYTES, &b);
        if (r < 0)
                return r;
        r = json_parse(b.data, b.bytes, ret);
        return r < 0 && r != -ENOMEM ? -EINVAL : r;
}

static int write_file(const char *path, const char *base_url, const char *user, const char *device_id, const char *ca_file, const struct tokens *t) {
        _cleanup_secret_buf_ struct buf b = BUF_INIT(FILE_MAX_BYTES);
        _cleanup_json_ json_t *j = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s}", "version", 1, "base_url", base_url, "user", user, "device_id", device_id,
                                             "token", t->token, "refresh_token", t->refresh);
        if (!j || (ca_file && json_object_set_new(j, "ca_file", json_string(ca_file)) < 0))
                return -ENOMEM;
        int r = json_to_buf(j, &b);
        return r < 0 ? r : file_replace(path, b.data, b.bytes, 0600);
}

static struct http_call *json_call(const char *path, const json_t *body, bool *ret_ok) {
        struct http_call *c = http_call_new(HTTP_POST, FILE_MAX_BYTES, ANSWER_MAX_BYTES);
        if (!c)
                return NULL;
        c->path = strdup(path);
        c->content_type = c->accept = "application/json";
        c->no_auth = true;
        c->deadline_ms = clock_mono_ms(clock_system()) + ASK_MS;
        *ret_ok = c->path && body && json_to_buf(body, &c->body) == 0;
        return c;
}

static void call_free_secret(struct http_call *c) {
        if (c && c->body.data)
                explicit_bzero(c->body.data, c->body.room);
        if (c && c->answer.data)
                explicit_bzero(c->answer.data, c->answer.room);
        http_call_free(c);
}

static int read_answer(const struct http_call *c, json_t **ret, struct tokens *ret_tokens) {
        _cleanup_json_ json_t *j = NULL;
        int r = json_parse(c->answer.data, c->answer.bytes, &j);
        if (r == 0)
                r = tokens_from(j, ret_tokens);
        if (r < 0)
                return r == -ENOMEM ? r : -EPROTO;
        *ret = steal_ptr(j);
        return 0;
}

static int log_in(struct transport *t, const char *path, const char *base_url, const char *ca_file, const char *user, const char *password, char *ret_why, size_t n) {
        char device[128] = "tarn";
        (void)gethostname(device, sizeof device - 1);
        bool ok = false;
        _cleanup_json_ json_t *ask = json_pack("{s:s, s:s, s:s}", "user", user, "password", password, "device", device);
        struct http_call *c = json_call("/v1/login", ask, &ok);
        _cleanup_json_ json_t *j = NULL;
        struct tokens tokens = { 0 };
        if (!ok) {
                call_free_secret(c);
                return -ENOMEM;
        }
        int r = transport_call(t, c);
        if (r == 0 && (r = read_answer(c, &j, &tokens)) < 0)
                (void)snprintf(ret_why, n, "%s does not answer as a tarn server does: check the URL", base_url);
        else if (c->status == 401 || c->status == 403) {
                (void)snprintf(ret_why, n, "wrong user name or password for %s", base_url);
                r = -EACCES;
        } else if (r < 0) {
                (void)snprintf(ret_why, n, "%s", c->message);
                if (c->err == 0 && !c->error_code[0]) {
                        (void)snprintf(ret_why, n, "%s does not answer as a tarn server does (HTTP status %d): check the URL", base_url, c->status);
                        r = -EPROTO;
                }
        }
        call_free_secret(c);
        if (r < 0)
                return r;
        const char *device_id;
        if (json_get_str(j, "device_id", &device_id) < 0)
                device_id = "";
        r = write_file(path, base_url, user, device_id, ca_file, &tokens);
        tokens_free(&tokens);
        if (r < 0)
                (void)snprintf(ret_why, n, "cannot write %s: %s", path, strerror(-r));
        return r;
}

int session_login(const char *state_dir, const char *base_url, const char *ca_file, const char *user, const char *password, char *ret_why, size_t n) {
        struct counters counters = { 0 };
        struct transport *t = NULL;
        (void)snprintf(ret_why, n, "out of memory");
        _cleanup_free_ char *path = file_path(state_dir, base_url);
        if (!path)
                return -ENOMEM;
        int r = mkdir_p(state_dir, 0700);
        if (r < 0) {
                (void)snprintf(ret_why, n, "cannot make %s: %s", state_dir, strerror(-r));
                return r;
        }
        r = transport_curl_new(&(struct transport_curl_config){ .base_url = base_url, .ca_file = ca_file, .counters = &counters, .max_connections = 1 }, &t);
        if (r < 0)
                return r;
        r = log_in(t, path, base_url, ca_file, user, password, ret_why, n);
        transport_curl_free(t);
        return r;
}

int session_open(const char *state_dir, const char *base_url, struct session **ret) {
        struct session *s = calloc(1, sizeof *s);
        if (!s)
                return -ENOMEM;
        lock_init(&s->lock, "session", RANK_QUEUE);
        cond_init(&s->cond);
        _cleanup_json_ json_t *j = NULL;
        s->path = file_path(state_dir, base_url);
        s->base_url = strdup(base_url);
        int r = -ENOMEM;
        if (s->path && s->base_url && asprintf(&s->lock_path, "%s.lock", s->path) > 0)
                r = read_file(s->path, &j);
        if (r == 0)
                r = tokens_from(j, &s->t);
        if (r == 0)
                r = take_str(j, "user", &s->user);
        if (r == 0)
                r = take_str(j, "device_id", &s->device_id);
        if (r == 0 && json_object_get(j, "ca_file"))
                r = take_str(j, "ca_file", &s->ca_file);
        if (r < 0) {
                session_free(s);
                return j && r == -ENOENT ? -EINVAL : r; /* a field is missing, not the file */
        }
        *ret = s;
        return 0;
}

void session_free(struct session *s) {
        if (!s)
                return;
        tokens_free(&s->t);
        cond_destroy(&s->cond);
        lock_destroy(&s->lock);
        free(s->path);
        free(s->lock_path);
        free(s->base_url);
        free(s->user);
        free(s->device_id);
        free(s->ca_file);
        free(s);
}

int session_token(void *session, char *ret, size_t n) {
        struct session *s = session;
        LOCK_SCOPE(&s->lock);
        if (s->signed_out)
                return -EKEYREJECTED;
        int k = snprintf(ret, n, "%s", s->t.token);
        return k >= 0 && (size_t)k < n ? 0 : -EKEYREJECTED;
}

static void adopt(struct session *s, struct tokens *t) {
        LOCK_SCOPE(&s->lock);
        tokens_free(&s->t);
        s->t = *t;
        s->signed_out = false;
        *t = (struct tokens){ 0 };
}

/* Asks the server, with the lock file held. */
static int ask(struct session *s, struct transport *t, const struct tokens *old, bool refused_before) {
        _cleanup_json_ json_t *file = NULL;
        struct tokens tokens = { 0 };
        int r = read_file(s->path, &file);
        if (r == 0 && tokens_from(file, &tokens) == 0 && strcmp(tokens.token, old->token) != 0) {
                adopt(s, &tokens);
                return 0;
        }
        tokens_free(&tokens);
        if (refused_before)
                return -EKEYREJECTED;
        bool ok = false;
        _cleanup_json_ json_t *body = json_pack("{s:s}", "refresh_token", old->refresh);
        _cleanup_json_ json_t *answer = NULL;
        struct http_call *c = json_call("/v1/refresh", body, &ok);
        r = ok ? transport_call(t, c) : -ENOMEM;
        if (r == 0)
                r = read_answer(c, &answer, &tokens);
        call_free_secret(c);
        if (r == 0)
                r = write_file(s->path, s->base_url, s->user, s->device_id, s->ca_file, &tokens);
        if (tokens.token)
                adopt(s, &tokens); /* also if the file could not be written: the old one may be used up */
        return r;
}

int session_refresh(struct session *s, struct transport *t) {
        struct tokens old = { 0 };
        _cleanup_close_ int fd = -1;
        bool refused_before;
        {
                LOCK_SCOPE(&s->lock);
                if (s->refreshing) {
                        while (s->refreshing)
                                cond_wait(&s->cond, &s->lock);
                        return s->result;
                }
                s->refreshing = true;
                refused_before = s->signed_out;
                old.token = strdup(s->t.token);
                old.refresh = strdup(s->t.refresh);
        }
        int r = old.token && old.refresh ? file_lock(s->lock_path, &fd) : -ENOMEM;
        if (r == -EBUSY)
                r = -EAGAIN;
        else if (r == 0)
                r = ask(s, t, &old, refused_before);
        tokens_free(&old);
        LOCK_SCOPE(&s->lock);
        s->refreshing = false;
        s->signed_out = r == -EKEYREJECTED || (s->signed_out && r < 0);
        s->result = r;
        cond_broadcast(&s->cond);
        return r;
}

const char *session_user(const struct session *s) {
        return s->user;
}

const char *session_ca_file(const struct session *s) {
        return s->ca_file;
}
