/* SPDX-License-Identifier: Apache-2.0 */
/* call.c: one HTTP exchange as a value, whoever carries it: making and freeing it, what its answer means as an errno, and the blocking form.
 *
 * An answer means, in this order: the transport's own error; success for 2xx; the symbolic code of the body; the bare status (a proxy between us and the
 * server knows no codes). */
#include <assert.h>
#include <string.h>

#include "api/client.h"
#include "api/code.h"
#include "api/wire.h"
#include "base/digest.h"
#include "base/lock.h"

struct http_call *http_call_new(enum http_method method, size_t max_body, size_t max_answer) {
        struct http_call *c = calloc(1, sizeof *c);
        if (!c)
                return NULL;
        c->method = method;
        c->body.max_bytes = max_body;
        c->answer.max_bytes = max_answer;
        c->max_answer_bytes = max_answer;
        return c;
}

void http_call_free(struct http_call *c) {
        if (!c)
                return;
        assert(!c->priv); /* still under way */
        free(c->path);
        buf_free(&c->body);
        buf_free(&c->answer);
        free(c);
}

int http_call_error(const struct http_call *c) {
        if (c->err)
                return c->err;
        if (c->status >= 200 && c->status < 300)
                return 0;
        const struct api_code *code = c->error_code[0] ? api_code_find(c->error_code) : NULL;
        if (code)
                return -code->err;
        switch (c->status) {
        case 401: return -EKEYREJECTED;
        case 403: return -EACCES;
        case 404: return -ENOENT;
        case 405: return -EOPNOTSUPP;
        case 409: return -EEXIST;
        case 410: return -EIDRM;
        case 412: return -ESTALE;
        case 413: return -EMSGSIZE;
        case 422: return -EBADMSG;
        case 426: return -EPROTONOSUPPORT;
        case 408:
        case 429:
        case 502:
        case 503:
        case 504: return -EAGAIN;
        case 507: return -EDQUOT;
        default: return c->status >= 500 ? -EIO : c->status >= 400 ? -EINVAL : -EPROTO;
        }
}

void wire_sum(int status, const void *body, size_t n, char ret[WIRE_SUM_CHARS + 1]) {
        static const char digits[] = "0123456789abcdef";
        uint64_t sum = xxh3_64(body, n) ^ (uint64_t)status;
        for (size_t i = WIRE_SUM_CHARS; i > 0; i--, sum >>= 4)
                ret[i - 1] = digits[sum & 15];
        ret[WIRE_SUM_CHARS] = 0;
}

struct waiter {
        struct lock lock;
        struct cond cond;
        bool done; /* lock */
};

static void wake(struct http_call *c) {
        struct waiter *w = c->owner;
        lock_take(&w->lock);
        w->done = true;
        cond_signal(&w->cond);
        lock_drop(&w->lock);
}

int transport_call(struct transport *t, struct http_call *c) {
        struct waiter w = { 0 };
        lock_init(&w.lock, "call", RANK_QUEUE);
        cond_init(&w.cond);
        c->done = wake;
        c->owner = &w;
        int r = t->submit(t, c);
        if (r == 0) {
                lock_take(&w.lock);
                while (!w.done)
                        cond_wait(&w.cond, &w.lock);
                lock_drop(&w.lock);
                r = http_call_error(c);
        }
        c->owner = NULL;
        cond_destroy(&w.cond);
        lock_destroy(&w.lock);
        return r;
}
