/* SPDX-License-Identifier: Apache-2.0 */
/* api_call.c: reading a request's parameters and writing its answer.
 *
 * Parameters: percent-decoding happens once, after the split into components or query parts, into the call's arena. A NUL byte is never let through, so that decoded
 * values are C strings. Numbers are decimal digits only, ids lower-case hex.
 *
 * Errors are one JSON object {code, message, request_id, retry_after?, ...}: `code` from the table in api/code.h gives the HTTP status and is what programs
 * act on, `message` is one sentence for people. Texts that came from the client are shown in messages only after they passed a check, or cut
 * and as JSON strings; bytes that are not UTF-8 are replaced by '?'.
 *
 * Retry: 429 and 503 always carry Retry-After. */
#include "api_call.h"

#include <ctype.h>
#include <stdarg.h>
#include <string.h>

#include "api/code.h"
#include "api/wire.h"
#include "base/digest.h"
#include "base/log.h"

#define RETRY_AFTER_S 1

static int hex_digit(char ch) {
        if (ch >= '0' && ch <= '9')
                return ch - '0';
        if (ch >= 'a' && ch <= 'f')
                return ch - 'a' + 10;
        if (ch >= 'A' && ch <= 'F')
                return ch - 'A' + 10;
        return -1;
}

int call_decode(struct call *c, const char *p, size_t n, const char **ret) {
        char *out = arena_alloc(c->arena, n + 1);
        size_t k = 0;

        if (!out)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                int ch = (unsigned char)p[i];

                if (ch == '%') {
                        int high, low;

                        if (n - i < 3)
                                return -EILSEQ;
                        high = hex_digit(p[i + 1]);
                        low = hex_digit(p[i + 2]);
                        if (high < 0 || low < 0)
                                return -EILSEQ;
                        ch = high * 16 + low;
                        i += 2;
                }
                if (ch == 0)
                        return -EILSEQ;
                out[k++] = (char)ch;
        }
        out[k] = 0;
        *ret = out;
        return 0;
}

int call_parse_query(struct call *c, const char *text) {
        while (*text) {
                size_t n = strcspn(text, "&");
                const char *equals = memchr(text, '=', n);
                size_t key = equals ? (size_t)(equals - text) : n;
                int r;

                if (n > 0) {
                        if (c->n_query == CALL_QUERIES_MAX)
                                return -E2BIG;
                        r = call_decode(c, text, key, &c->query[c->n_query].key);
                        if (r >= 0)
                                r = equals ? call_decode(c, equals + 1, n - key - 1, &c->query[c->n_query].value) : call_decode(c, "", 0, &c->query[c->n_query].value);
                        if (r < 0)
                                return r;
                        c->n_query++;
                }
                text += n;
                text += *text == '&';
        }
        return 0;
}

const char *call_query(const struct call *c, const char *key) {
        for (size_t i = 0; i < c->n_query; i++)
                if (strcmp(c->query[i].key, key) == 0)
                        return c->query[i].value;
        return NULL;
}

int call_query_u64(const struct call *c, const char *key, uint64_t min, uint64_t max, uint64_t *ret) {
        const char *text = call_query(c, key);
        uint64_t v = 0;

        if (!text)
                return -ENOENT;
        if (!*text)
                return -EINVAL;
        for (; *text; text++) {
                if (!isdigit((unsigned char)*text) || v > (UINT64_MAX - 9) / 10)
                        return -EINVAL;
                v = v * 10 + (uint64_t)(*text - '0');
        }
        if (v < min || v > max)
                return -EINVAL;
        *ret = v;
        return 0;
}

int call_query_id(const struct call *c, const char *key, struct id *ret) {
        const char *text = call_query(c, key);

        if (!text)
                return -ENOENT;
        return hex_decode(text, ret->b, sizeof ret->b) < 0 ? -EINVAL : 0;
}

bool call_wants_json(const struct call *c) {
        return c->req->accept && strstr(c->req->accept, "application/json");
}

int call_json(struct call *c, json_t **ret) {
        _cleanup_json_ json_t *j = NULL;
        int r;

        if (!c->req->body || c->req->body_bytes == 0)
                return -EINVAL;
        r = json_parse(c->req->body, c->req->body_bytes, &j);
        if (r < 0)
                return r;
        if (!json_is_object(j))
                return -EINVAL;
        *ret = steal_ptr(j);
        return 0;
}

int call_workspace(struct call *c, enum meta_role least, struct meta_workspace *ret) {
        int r = meta_access(c->s->meta, &c->who, c->param[0], least, ret);

        if (r >= 0)
                return 0;
        if (r == -ENOENT)
                (void)call_fail(c, "NOT_FOUND", "there is no workspace of that name for you");
        else if (r == -EACCES)
                (void)call_fail(c, "FORBIDDEN", "this needs the role %s in the workspace", meta_role_name(least));
        else
                (void)call_fail_errno(c, r, "opening the workspace");
        return 1;
}

int call_path(struct call *c, const char *encoded, const char **ret) {
        size_t room = strlen(encoded) + 1, k = 0;
        char *out = arena_alloc(c->arena, room);

        if (!out)
                return -ENOMEM;
        while (*encoded) {
                size_t n = strcspn(encoded, "/");
                const char *name;
                int r;

                if (n > 0) {
                        r = call_decode(c, encoded, n, &name);
                        if (r < 0)
                                return r;
                        r = name_check(name, strlen(name));
                        if (r < 0)
                                return r == -ENAMETOOLONG ? r : -EILSEQ;
                        if (k > 0)
                                out[k++] = '/';
                        memcpy(out + k, name, strlen(name));
                        k += strlen(name);
                }
                encoded += n;
                encoded += *encoded == '/';
        }
        out[k] = 0;
        *ret = out;
        return 0;
}

struct id call_op_id(struct call *c) {
        const char *key = c->req->idempotency_key;
        struct digest d;
        struct id id;

        if (!key || !*key)
                return rng_id(c->s->rng);
        sha256(key, strlen(key), &d);
        memcpy(id.b, d.b, sizeof id.b);
        return id;
}

/* A new string that is always valid in JSON. */
static json_t *json_lossy(const char *text) {
        json_t *j = json_string(text);
        char safe[512];
        size_t k = 0;

        if (j)
                return j;
        for (; *text && k + 1 < sizeof safe; text++)
                safe[k++] = (unsigned char)*text < 0x80 ? *text : '?';
        safe[k] = 0;
        return json_string(safe);
}

int call_answer_json(struct call *c, int status, json_t *body) {
        int r;

        c->ans->content_type = "application/json";
        buf_reset(&c->ans->body);
        r = body ? json_to_buf(body, &c->ans->body) : -ENOMEM;
        json_decref(body);
        if (r < 0) {
                buf_reset(&c->ans->body);
                c->ans->status = 500;
                return 0;
        }
        c->ans->status = status;
        return 0;
}

static int call_fail_v(struct call *c, const char *code, json_t *extra, const char *fmt, va_list args) {
        const struct api_code *a = api_code_find(code);
        _cleanup_json_ json_t *more = extra;
        char message[400];
        json_t *j;

        if (!a)
                a = api_code_find("INTERNAL");
        (void)vsnprintf(message, sizeof message, fmt, args);
        if ((a->http_status == 429 || a->http_status == 503) && c->ans->retry_after_s == 0)
                c->ans->retry_after_s = RETRY_AFTER_S;
        if (a->http_status >= 500)
                log_warn("request=%s method=%.16s target=%.200s code=%s message=\"%s\"", c->ans->request_id, c->req->method, c->req->target, a->code, message);
        j = json_pack("{s:s, s:o, s:s}", "code", a->code, "message", json_lossy(message), "request_id", c->ans->request_id);
        if (j && c->ans->retry_after_s > 0 && json_object_set_new(j, "retry_after", json_integer(c->ans->retry_after_s)) < 0)
                j = (json_decref(j), NULL);
        if (j && more && json_object_update_missing(j, more) < 0)
                j = (json_decref(j), NULL);
        return call_answer_json(c, a->http_status, j);
}

int call_fail(struct call *c, const char *code, const char *fmt, ...) {
        va_list args;
        int r;

        va_start(args, fmt);
        r = call_fail_v(c, code, NULL, fmt, args);
        va_end(args);
        return r;
}

int call_fail_with(struct call *c, const char *code, json_t *extra, const char *fmt, ...) {
        va_list args;
        int r;

        va_start(args, fmt);
        r = call_fail_v(c, code, extra, fmt, args);
        va_end(args);
        return r;
}

int call_fail_errno(struct call *c, int err, const char *what) {
        switch (-err) {
        case EPROTO:
                return call_fail(c, "INVALID", "%s: the body is not what this address takes", what);
        case EFBIG:
        case EMSGSIZE:
        case E2BIG:
                return call_fail(c, "TOO_LARGE", "%s: more than the limits allow", what);
        case ENAMETOOLONG:
                return call_fail(c, "NAME_INVALID", "%s: a name is longer than %u bytes", what, NAME_BYTES_MAX);
        case EDQUOT:
                return call_fail(c, "QUOTA", "the workspace's quota is used up; delete something or ask its owner for more");
        case ENOSPC:
                return call_fail(c, "NO_SPACE", "the server's disk is full; tell its administrator");
        case EACCES:
                return call_fail(c, "FORBIDDEN", "%s: your role does not allow it", what);
        case ESHUTDOWN:
        case ENOMEM:
                return call_fail(c, "UNAVAILABLE", "%s: the server is %s; try again", what, err == -ENOMEM ? "short of memory" : "stopping");
        case ECONNRESET:
        case ETIMEDOUT:
                return call_fail(c, "INVALID", "%s: the body ended too early", what);
        case EBADMSG:
                return call_fail(c, "INTERNAL", "%s: stored data is damaged; tell the administrator", what);
        default:
                return call_fail(c, api_code_from_errno(err)->code, "%s: %s", what, err_name(err));
        }
}

int call_fail_op(struct call *c, enum op_code code, const char *what) {
        static const struct { enum op_code code; const char *api, *message; } map[] = {
                {RES_STALE, "PRECONDITION_FAILED", "what is there now is not what the condition names"},
                {RES_EXISTS, "CONFLICT", "something of that name is there already"},
                {RES_NOT_FOUND, "NOT_FOUND", "there is nothing of that name"},
                {RES_DELETED, "NOT_FOUND", "it was deleted"},
                {RES_NOT_EMPTY, "NOT_EMPTY", "the directory is not empty"},
                {RES_QUOTA, "QUOTA", "the workspace's quota is used up; delete something or ask its owner for more"},
                {RES_BLOCKS_MISSING, "BLOCKS_MISSING", "blocks of this content are not here any more; send it again"},
                {RES_ID_REUSED, "OPERATION_ID_REUSED", "this Idempotency-Key was used for another request"},
                {RES_NAME_INVALID, "NAME_INVALID", "a name is not allowed: 1 to 255 bytes of UTF-8 without slash and NUL, not . or ..; in a workspace of portable names also not what Windows or macOS cannot carry (< > : \" \\ | ? *, a dot or space at the end, CON)"},
                {RES_FORBIDDEN, "FORBIDDEN", "your role does not allow it"},
                {RES_IS_DIR, "IS_DIR", "a directory is in that place"},
                {RES_NOT_DIR, "NOT_DIR", "a part of the path is not a directory"},
                {RES_TOO_LARGE, "TOO_LARGE", "more than the limits allow"},
                {RES_CYCLE, "CONFLICT", "a directory cannot be moved into itself"},
                {RES_UNSUPPORTED, "UPGRADE_NEEDED", "this server does not do that"},
                {RES_BUSY, "UNAVAILABLE", "the server could not decide it now; try again"},
                {RES_CORRUPT, "HASH_MISMATCH", "the bytes do not match their hash"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(map); i++)
                if (map[i].code == code)
                        return call_fail(c, map[i].api, "%s: %s", what, map[i].message);
        return call_fail(c, "INVALID", "%s: %s", what, op_code_name(code));
}

int call_answer_frames(struct call *c) {
        c->ans->status = 200;
        c->ans->content_type = WIRE_TYPE;
        return 0;
}

int call_answer_empty(struct call *c, int status) {
        buf_reset(&c->ans->body);
        c->ans->content_type = NULL;
        c->ans->status = status;
        return 0;
}
