/* SPDX-License-Identifier: Apache-2.0 */
/* early.c: blocks of files that are still being written. A stage that holds more dirty bytes than it should (or whose writer waits for room) hands out blocks whose cuts are
 * certain; once the server has them durably under the stage's upload session, their bytes may leave the disk. So a file larger than the room for dirty data can be written.
 *
 *   state    under way                                            leaves on
 *   READ     task: copy the blocks (skipping overwritten ones)    -> ASK; none left -> over
 *   ASK      POST missing?session=ID                              -> FRAME; all there -> LOG
 *   FRAME    task: compress and frame the missing ones            -> PUT
 *   PUT      POST blocks?session=ID                               -> LOG
 *   LOG      task: stage_early_sent for each, durable             -> over; the stage may hand out more: next turn
 *
 * One round per stage at a time, `uploads` puts in the whole engine (shared with put.c). A failure ends the round; nothing is marked, so nothing is lost; the next try
 * follows with backoff. A stage that no file shows any more (it was deleted) ends its round's request: the room that it takes is wanted. Bytes that were overwritten meanwhile are noticed by the stage (-ESTALE) and forgotten here: their block is an orphan under a claim. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "priv.h"

#define ROUND_BLOCKS 8u
#define LOOK_MS 10 /* between two looks: the wakes of a stream of writes */

enum early_state { EARLY_READ, EARLY_ASK, EARLY_FRAME, EARLY_PUT, EARLY_LOG };
struct early {
        struct early *next;
        struct engine *e;
        uint64_t gen;
        struct stage *stage;
        enum early_state state;
        struct task task; int err;
        struct request *put;
        struct request *under_way;    /* ASK, PUT */
        size_t n;
        struct early_block blocks[ROUND_BLOCKS];
        uint8_t *bytes[ROUND_BLOCKS];
        bool missing[ROUND_BLOCKS];
};

void early_init(struct engine *e) {
        e->early.look = true;
        e->early.backoff = (struct backoff){ .base_ms = 500, .cap_ms = 10000 };
}

static void over(struct early *y, int err, int64_t retry_after_ms) {
        struct engine *e = y->e;
        for (struct early **p = &e->early.first; *p; p = &(*p)->next)
                if (*p == y) {
                        *p = y->next;
                        break;
                }
        e->early.n--;
        e->uploads.puts--;
        if (err < 0 && !stage_left(y->stage)) {
                log_debug("sync early gen=%llu err=%s", (unsigned long long)y->gen, err_name(err));
                e->early.retry_at_ms = engine_now(e) + connect_retry_ms(e, &e->early.backoff, retry_after_ms);
        } else {
                backoff_reset(&e->early.backoff);
        }
        e->early.look = true;
        for (size_t i = 0; i < y->n; i++)
                free(y->bytes[i]);
        request_free(y->put);
        stage_put(y->stage);
        free(y);
}

static void read_work(struct task *t) {
        struct early *y = container_of(t, struct early, task);
        size_t n = 0, kept = 0, bytes = 0;
        y->err = stage_early_blocks(y->stage, y->blocks, ROUND_BLOCKS, &n);
        if (y->err < 0)
                return;
        for (size_t i = 0; i < n && bytes < PUT_BYTES; i++) { /* the others are handed out again in the next round */
                uint8_t *p = malloc(MAX(y->blocks[i].ref.bytes, 1u));
                if (!p) {
                        y->err = -ENOMEM;
                        break;
                }
                int r = stage_pread_frozen(y->stage, &y->blocks[i], p);
                if (r < 0) {
                        free(p);
                        if (r == -ESTALE)
                                continue;
                        y->err = r;
                        break;
                }
                bytes += y->blocks[i].ref.bytes;
                y->blocks[kept] = y->blocks[i];
                y->bytes[kept++] = p;
        }
        y->n = kept;
}

static void log_work(struct task *t) {
        struct early *y = container_of(t, struct early, task);
        y->err = 0;
        for (size_t i = 0; i < y->n; i++) {
                int r = stage_early_sent(y->stage, &y->blocks[i]);
                if (r < 0 && r != -ESTALE)
                        y->err = r;
        }
}

static void frame_work(struct task *t) {
        struct early *y = container_of(t, struct early, task);
        struct buf scratch = BUF_INIT(2 * BLOCK_BYTES_MAX);
        y->err = 0;
        for (size_t i = 0; i < y->n && y->err >= 0; i++) {
                struct wire_block block;
                if (!y->missing[i])
                        continue;
                buf_reset(&scratch);
                y->err = wire_block_compress(&y->blocks[i].ref.hash, y->bytes[i], y->blocks[i].ref.bytes, &scratch, &block);
                if (y->err >= 0)
                        y->err = wire_add_block(&y->put->call->body, &block);
        }
        buf_free(&scratch);
}

static void task_over(struct task *t);

static void start_task(struct early *y, enum early_state state, void (*work)(struct task *)) {
        y->state = state;
        y->task.work = work;
        y->task.finished = task_over;
        task_start(y->e, y->e->c.workers, &y->task);
}

/* The answer names blocks: which of ours, once each. Before their bytes leave the disk the server itself must have said that it has them. */
struct naming { struct early *y; bool named[ROUND_BLOCKS]; size_t n; };
static int name_one(void *arg, const struct digest *hash) {
        struct naming *x = arg;
        for (size_t i = 0; i < x->y->n; i++)
                if (!x->named[i] && digest_equal(hash, &x->y->blocks[i].ref.hash)) {
                        x->named[i] = true;
                        x->n++;
                        return 0;
                }
        return -EPROTO;
}

static void put_over(struct request *r, int err) {
        struct early *y = r->owner;
        struct naming x = { .y = y };
        y->put = y->under_way = NULL;
        if (err >= 0) {
                err = request_hashes(r, name_one, &x);
                for (size_t i = 0; err >= 0 && i < y->n; i++)
                        if (y->missing[i] && !x.named[i])
                                err = -EPROTO;
                if (err < 0)
                        connect_protocol_error(y->e, err, "stored blocks");
        }
        if (err < 0) {
                over(y, err, r->call->retry_after_ms);
                return;
        }
        for (size_t i = 0; i < y->n; i++)
                counter_add(y->e->c.counters, blocks_sent, y->missing[i]);
        start_task(y, EARLY_LOG, log_work);
}

static struct request *session_request(struct early *y, const char *what, size_t max_body) {
        struct id session = stage_session(y->stage);
        char hex[2 * ID_BYTES + 1];
        hex_encode(session.b, ID_BYTES, hex);
        struct request *r = request_new(y->e, HTTP_POST, max_body, BATCH_BYTES_MAX, "/v1/workspaces/%s/%s?session=%s", buf_text(&y->e->ws), what, hex);
        if (r)
                r->owner = y;
        return r;
}

static void ask_over(struct request *r, int err) {
        struct early *y = r->owner;
        struct naming x = { .y = y };
        y->under_way = NULL;
        if (err < 0) {
                over(y, err, r->call->retry_after_ms);
                return;
        }
        int k = request_hashes(r, name_one, &x);
        if (k < 0) {
                connect_protocol_error(y->e, k, "missing blocks");
                over(y, k, 0);
                return;
        }
        memcpy(y->missing, x.named, sizeof y->missing);
        if (x.n == 0) {
                start_task(y, EARLY_LOG, log_work);
                return;
        }
        y->put = session_request(y, "blocks", BATCH_BYTES_MAX + (1u << 20));
        if (!y->put) {
                over(y, -ENOMEM, 0);
                return;
        }
        y->put->finished = put_over;
        start_task(y, EARLY_FRAME, frame_work);
}

static void ask(struct early *y) {
        struct digest hashes[ROUND_BLOCKS];
        struct request *r = session_request(y, "missing", 1 << 16);
        for (size_t i = 0; i < y->n; i++)
                hashes[i] = y->blocks[i].ref.hash;
        int k = r ? wire_add_hashes(&r->call->body, hashes, y->n) : -ENOMEM;
        if (k < 0) {
                request_free(r);
                over(y, k, 0);
                return;
        }
        y->state = EARLY_ASK;
        r->finished = ask_over;
        y->under_way = r;
        request_send(r, 0);
}

static void task_over(struct task *t) {
        struct early *y = container_of(t, struct early, task);
        if (y->err < 0) {
                over(y, y->err, 0);
                return;
        }
        switch (y->state) {
        case EARLY_READ:
                if (y->n == 0)
                        over(y, 0, 0);
                else
                        ask(y);
                break;
        case EARLY_FRAME: {
                struct request *r = y->put;
                y->state = EARLY_PUT;
                y->under_way = r;
                request_send(r, request_deadline(y->e, r->call->body.bytes));
                break;
        }
        default: /* LOG */
                over(y, 0, 0);
                break;
        }
}

static bool under_way(struct engine *e, uint64_t gen) {
        for (struct early *y = e->early.first; y; y = y->next)
                if (y->gen == gen)
                        return true;
        return false;
}

static void begin(struct engine *e, uint64_t gen) {
        struct early *y = calloc(1, sizeof *y);
        if (!y)
                return;
        y->e = e;
        y->gen = gen;
        if (stage_get(e->c.cache->stages, gen, &y->stage) < 0) {
                free(y);
                return;
        }
        y->next = e->early.first;
        e->early.first = y;
        e->early.n++;
        e->uploads.puts++;
        start_task(y, EARLY_READ, read_work);
}

int64_t early_step(struct engine *e, int64_t now) {
        struct earlies *s = &e->early;
        uint64_t gen = 0;
        for (struct early *y = s->look ? s->first : NULL; y; y = y->next)
                if (y->under_way && stage_left(y->stage))
                        request_cancel(y->under_way);
        if (!connect_online(e) || load_active(e))
                return NEVER;
        if (s->retry_at_ms > now)
                return s->retry_at_ms;
        if (!s->look)
                return NEVER; /* a wake, or the end of a round, calls for a turn */
        if (now < s->look_at_ms)
                return s->look_at_ms;
        s->look = false;
        s->look_at_ms = now + LOOK_MS;
        while (e->uploads.puts < e->c.uploads && stages_early_next(e->c.cache->stages, gen, &gen) >= 0)
                if (!under_way(e, gen))
                        begin(e, gen);
        return NEVER;
}
