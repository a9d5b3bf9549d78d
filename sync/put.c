/* SPDX-License-Identifier: Apache-2.0 */
/* put.c: missing blocks in requests of some MiB, in parallel.
 *
 * A put is a task (read the blocks from the sealed stage, check their hashes, compress those that shrink, frame them), then a request (POST blocks), then its answer (the hashes
 * that are durable, and each of those sent must be among them). At most `uploads` puts are under way in the whole engine; their bodies are the memory this costs. Blocks are taken in file order; what fails goes
 * back to the list. Early uploads (early.c) share the limit.
 *
 * A block whose bytes on disk no longer match their hash is local damage (-EBADMSG): the item is parked. If the server says that a hash does not match
 * (422), the bytes were damaged on the way: three times, then parked. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "priv.h"

#define PUT_ITEMS_MAX 256u

struct put {
        struct put *next;
        struct task task;
        struct upload *u;
        struct request *request; bool asked; /* asked: it is under way */
        int err;
        size_t n;
        uint32_t items[PUT_ITEMS_MAX];
        bool named[PUT_ITEMS_MAX]; size_t durable; /* by the answer */
};

static void give_back(struct put *p) {
        struct upload *u = p->u;
        for (size_t i = 0; i < p->n; i++)
                if (u->todo[p->items[i]] == 2)
                        u->todo[p->items[i]] = 1;
        u->at = 0;
}

static void put_end(struct put *p) {
        for (struct put **x = &p->u->first_put; *x; x = &(*x)->next)
                if (*x == p) {
                        *x = p->next;
                        break;
                }
        p->u->e->uploads.puts--;
        upload_unref(p->u);
        request_free(p->request);
        free(p);
}

static void sent(struct put *p) {
        struct upload *u = p->u;
        for (size_t i = 0; i < p->n; i++) {
                u->todo[p->items[i]] = 0;
                u->left--;
                if (p->items[i] < u->list->n)
                        stage_block_mark_sent(u->stage, p->items[i]);
        }
        counter_add(u->e->c.counters, blocks_sent, p->n);
        backoff_reset(&u->backoff);
        u->mismatches = 0;
        if (u->left == 0 && u->state == UPLOAD_PUT) {
                u->state = UPLOAD_READY;
                outbox_look(u->e);
        }
}

/* The server names what it has: an answer of somebody else (a portal, a proxy) must not let bytes go. */
static int durable(void *arg, const struct digest *hash) {
        struct put *p = arg;
        for (size_t i = 0; i < p->n; i++)
                if (!p->named[i] && digest_equal(upload_item_hash(p->u, p->items[i]), hash)) {
                        p->named[i] = true;
                        p->durable++;
                        return 0;
                }
        return -EPROTO;
}

static void put_finished(struct request *r, int err) {
        struct put *p = r->owner;
        struct upload *u = p->u;
        p->request = NULL; /* freed by whoever called us */
        if (u->abandoned) {
                put_end(p);
                return;
        }
        if (err == 0) {
                p->durable = 0;
                int k = request_hashes(r, durable, p);
                if (k < 0 || p->durable < p->n) {
                        connect_protocol_error(u->e, k < 0 ? k : -EPROTO, "stored blocks");
                        err = -EPROTO;
                }
        }
        if (err == 0) {
                sent(p);
        } else {
                give_back(p);
                upload_request_failed(u, r, err);
        }
        put_end(p);
}

void put_cancel(struct upload *u) {
        for (struct put *p = u->first_put; p; p = p->next)
                if (p->asked && p->request)
                        request_cancel(p->request);
}

static int fill(struct put *p) {
        struct upload *u = p->u;
        struct buf scratch = BUF_INIT(2 * BLOCK_BYTES_MAX);
        uint8_t *bytes = malloc(BLOCK_BYTES_MAX);
        int64_t deadline = engine_now(u->e) + u->e->c.net_timeout_ms;
        int r = bytes ? 0 : -ENOMEM;
        for (size_t i = 0; r >= 0 && i < p->n; i++) {
                size_t item = p->items[i];
                uint32_t n = upload_item_bytes(u, item);
                const struct digest *hash = upload_item_hash(u, item);
                const void *data = bytes;
                struct wire_block block;
                if (item < u->list->n) {
                        struct digest d;
                        ssize_t got = stage_pread(u->stage, u->starts[item], bytes, n, deadline);
                        if (got < 0) {
                                r = (int)got;
                                break;
                        }
                        sha256(bytes, n, &d);
                        if ((size_t)got != n || !digest_equal(&d, hash)) {
                                r = -EBADMSG;
                                break;
                        }
                } else {
                        data = u->pages[item - u->list->n].bytes;
                }
                buf_reset(&scratch);
                r = wire_block_compress(hash, data, n, &scratch, &block);
                if (r >= 0)
                        r = wire_add_block(&p->request->call->body, &block);
        }
        buf_free(&scratch);
        free(bytes);
        return r;
}

static void fill_work(struct task *t) {
        struct put *p = container_of(t, struct put, task);
        p->err = fill(p);
}

static void fill_finished(struct task *t) {
        struct put *p = container_of(t, struct put, task);
        struct upload *u = p->u;
        if (u->abandoned || p->err < 0) {
                if (!u->abandoned) {
                        give_back(p);
                        upload_fail(u, p->err, 0);
                }
                put_end(p);
                return;
        }
        p->asked = true;
        p->request->owner = p;
        p->request->finished = put_finished;
        request_send(p->request, request_deadline(u->e, p->request->call->body.bytes));
}

static struct put *take(struct upload *u) {
        struct put *p = calloc(1, sizeof *p);
        size_t bytes = 0;
        if (!p)
                return NULL;
        p->u = u;
        for (; u->at < u->n_items && p->n < PUT_ITEMS_MAX && bytes < PUT_BYTES; u->at++) {
                if (u->todo[u->at] != 1)
                        continue;
                u->todo[u->at] = 2;
                p->items[p->n++] = (uint32_t)u->at;
                bytes += upload_item_bytes(u, u->at);
        }
        if (p->n == 0) {
                free(p);
                return NULL;
        }
        p->request = request_new(u->e, HTTP_POST, BATCH_BYTES_MAX + (1u << 20), BATCH_BYTES_MAX, "/v1/workspaces/%s/blocks", buf_text(&u->e->ws));
        if (!p->request) {
                give_back(p);
                free(p);
                return NULL;
        }
        return p;
}

int64_t put_step(struct upload *u, int64_t now) {
        struct engine *e = u->e;
        if (u->left == 0) {
                u->state = UPLOAD_READY;
                outbox_look(e);
                return now;
        }
        unsigned share = e->uploads.putting > 1 ? MAX(1u, e->c.uploads / 2) : e->c.uploads; /* none takes every slot while others wait */
        while (e->uploads.puts < e->c.uploads && u->busy < share && u->at < u->n_items) {
                struct put *p = take(u);
                if (!p)
                        break;
                e->uploads.puts++;
                u->busy++;
                p->next = u->first_put;
                u->first_put = p;
                p->task.work = fill_work;
                p->task.finished = fill_finished;
                task_start(e, e->c.workers, &p->task);
        }
        return NEVER;
}
