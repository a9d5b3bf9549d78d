/* SPDX-License-Identifier: Apache-2.0 */
/* upload.c: the content that an operation carries, on its way to the server. One upload per outbox item with a stage generation, named by (operation id, generation).
 *
 *   state    under way                              leaves on
 *   NEW      nothing                                room among the workers -> CHUNK
 *   CHUNK    a task: cut, hash, list pages;         small (one block, INLINE_BYTES_MAX at most): its bytes were read too -> READY
 *            small ones are read whole              else -> ASK
 *   ASK      POST missing, slice by slice           all asked: nothing missing -> READY; else -> PUT
 *   PUT      put.c: POST blocks, in parallel        nothing left -> READY
 *   READY    nothing: the commit may carry it       commit answered BLOCKS_MISSING -> PUT; operation completed -> freed
 *   FAILED   nothing                                time -> the state before (NEW or ASK); hopeless ones are parked and freed
 *
 * Whether content goes inline depends on its size alone, so that a retry sends the same bytes under the same operation id.
 *
 * Room: at most UPLOADS_MAX at once, INLINE_ROOM bytes of small contents in memory, HEAVY_MAX large files being cut (a worker each, which may wait for base blocks
 * that must be fetched), and `uploads` requests with blocks (put.c). An upload that finds no room is simply left out of this look at the outbox.
 *
 * abandoned: the operation was completed by its own event, cancelled, or carries a newer generation. What is under way is cancelled or ends, its result is dropped.
 * What failed here (cutting, reading: upload_fail) and what failed there (upload_request_failed) have errors of the same names and are told apart by who reports them: EIO is local damage here, and
 * there a server that is asked again. A stage that is gone while its operation still names it is local damage: parked with EIO, in its place. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "priv.h"

#define UPLOADS_MAX 512u
#define INLINE_ROOM (16u << 20)
#define HEAVY_MAX 2u
#define HEAVY_BYTES (4u << 20)
#define HASHES_PER_ASK 65536u
#define CUT_DEADLINE_MS 60000
#define PARKED_MS 600000
#define MISMATCHES_MAX 3u

void uploads_init(struct engine *e) {
}

static void release(struct upload *u) {
        struct uploads *s = &u->e->uploads;
        if (u->prev)
                u->prev->next = u->next;
        else
                s->first = u->next;
        if (u->next)
                u->next->prev = u->prev;
        else
                s->last = u->prev;
        s->n--;
        s->inline_bytes -= u->charged;
        if (u->stage)
                stage_put(u->stage);
        for (size_t i = 0; i < u->n_pages; i++)
                free(u->pages[i].bytes);
        free(u->pages);
        free(u->starts);
        free(u->inline_bytes);
        free(u->todo);
        free(u->by_hash);
        free(u);
}

void uploads_free(struct engine *e) {
        while (e->uploads.first)
                release(e->uploads.first);
}

void upload_abandon(struct upload *u) {
        u->abandoned = true; /* freed in uploads_step, so that no caller is left with a dead pointer */
        if (u->asking) /* nobody waits for what a server that hangs may say: the stage holds room on the disk */
                request_cancel(u->asking);
        put_cancel(u);
        if (u->busy > 0 && u->stage)
                stage_chunk_stop(u->stage);
}

void upload_unref(struct upload *u) {
        u->busy--;
}

struct upload *upload_find(struct engine *e, const struct id *op) {
        for (struct upload *u = e->uploads.first; u; u = u->next)
                if (!u->abandoned && id_equal(&u->op, op))
                        return u;
        return NULL;
}

struct upload *upload_for(struct engine *e, const struct outbox_item *item) {
        struct uploads *s = &e->uploads;
        struct upload *u = upload_find(e, &item->op.id);
        if (u && u->gen == item->gen)
                return u;
        if (u)
                upload_abandon(u); /* superseded while it was on its way */
        if (s->n >= UPLOADS_MAX || s->inline_bytes >= INLINE_ROOM)
                return NULL;
        struct stage *stage = NULL;
        int r = stage_get(e->c.cache->stages, item->gen, &stage);
        if (r == -ENOENT) {
                outbox_park_item(e, &item->op.id, EIO, "its bytes are gone from this disk", 600000, false);
                return NULL;
        }
        if (r < 0)
                return NULL;
        u = calloc(1, sizeof *u);
        if (!u) {
                stage_put(stage);
                return NULL;
        }
        u->e = e;
        u->op = item->op.id;
        u->ino = item->ino;
        u->gen = item->gen;
        u->stage = stage;
        u->state = UPLOAD_NEW;
        u->backoff = (struct backoff){ .base_ms = 200, .cap_ms = 30000 };
        uint64_t size = stage_size(stage);
        u->charged = size <= INLINE_BYTES_MAX ? size : 0;
        s->inline_bytes += u->charged;
        u->prev = s->last;
        if (s->last)
                s->last->next = u;
        else
                s->first = u;
        s->last = u;
        s->n++;
        return u;
}

/* ---- cutting, on a worker ---- */

struct keep_pages { struct page_sink sink; struct upload *u; };

static int keep_page(struct page_sink *s, const struct digest *hash, const void *bytes, size_t n, uint8_t level) {
        struct upload *u = container_of(s, struct keep_pages, sink)->u;
        if (u->n_pages == u->room_pages) {
                size_t room = u->room_pages ? u->room_pages * 2 : 4;
                struct upload_page *p = reallocarray(u->pages, room, sizeof *p);
                if (!p)
                        return -ENOMEM;
                u->pages = p;
                u->room_pages = room;
        }
        struct upload_page *p = &u->pages[u->n_pages];
        p->bytes = malloc(n);
        if (!p->bytes)
                return -ENOMEM;
        memcpy(p->bytes, bytes, n);
        p->n = (uint32_t)n;
        p->hash = *hash;
        u->n_pages++;
        return 0;
}

static int compare_items(const void *a, const void *b, void *arg) {
        const struct upload *u = arg;
        return memcmp(upload_item_hash(u, *(const uint32_t *)a), upload_item_hash(u, *(const uint32_t *)b), DIGEST_BYTES);
}

static int cut(struct upload *u) {
        struct engine *e = u->e;
        int64_t deadline = engine_now(e) + MAX(e->c.net_timeout_ms, (int64_t)CUT_DEADLINE_MS);
        int r = stage_chunk(u->stage, deadline, &u->list, &u->content);
        if (r < 0)
                return r;
        if (u->content.depth == 0 && u->content.size <= INLINE_BYTES_MAX) {
                u->inline_bytes = malloc(u->content.size + 1);
                if (!u->inline_bytes)
                        return -ENOMEM;
                ssize_t n = u->content.size ? stage_pread(u->stage, 0, u->inline_bytes, u->content.size, deadline) : 0;
                if (n < 0)
                        return (int)n;
                struct digest d = { 0 };
                if (u->content.size)
                        sha256(u->inline_bytes, u->content.size, &d);
                return (uint64_t)n == u->content.size && digest_equal(&d, &u->content.root) ? 0 : -EBADMSG;
        }
        struct keep_pages keep = { .sink = { .page = keep_page }, .u = u };
        struct content check;
        r = u->content.depth > 0 ? blocklist_content(u->list, &keep.sink, &check) : 0;
        if (r >= 0)
                r = blocklist_starts(u->list, &u->starts);
        if (r < 0)
                return r;
        u->n_items = u->list->n + u->n_pages;
        u->todo = calloc(MAX(u->n_items, (size_t)1), 1);
        u->by_hash = calloc(MAX(u->n_items, (size_t)1), sizeof *u->by_hash);
        if (!u->todo || !u->by_hash || u->n_items > UINT32_MAX)
                return -ENOMEM;
        for (size_t i = 0; i < u->n_items; i++)
                u->by_hash[i] = (uint32_t)i;
        qsort_r(u->by_hash, u->n_items, sizeof *u->by_hash, compare_items, u);
        return 0;
}

static void cut_work(struct task *t) {
        struct upload *u = container_of(t, struct upload, task);
        u->task_err = cut(u);
}

static void cut_finished(struct task *t) {
        struct upload *u = container_of(t, struct upload, task);
        struct engine *e = u->e;
        upload_unref(u);
        if (u->heavy) {
                e->uploads.heavy--;
                u->heavy = false;
        }
        if (u->abandoned)
                return;
        if (u->task_err < 0) {
                u->state = UPLOAD_NEW;
                upload_fail(u, u->task_err, 0);
                return;
        }
        u->state = u->inline_bytes ? UPLOAD_READY : UPLOAD_ASK;
        if (u->state == UPLOAD_READY) {
                outbox_look(e);
                e->outbox.look_at_ms = MIN(e->outbox.look_at_ms, engine_now(e) + 2);
        }
}

static bool start_cut(struct upload *u) {
        struct engine *e = u->e;
        bool heavy = stage_size(u->stage) > HEAVY_BYTES;
        if (heavy && e->uploads.heavy >= HEAVY_MAX)
                return false;
        /* an earlier attempt may have left something */
        for (size_t i = 0; i < u->n_pages; i++)
                free(u->pages[i].bytes);
        u->n_pages = 0;
        free(steal_ptr(u->starts));
        free(steal_ptr(u->todo));
        free(steal_ptr(u->by_hash));
        free(steal_ptr(u->inline_bytes));
        u->asked = u->at = u->left = 0;
        u->heavy = heavy;
        e->uploads.heavy += heavy;
        u->state = UPLOAD_CHUNK;
        u->busy++;
        u->task.work = cut_work;
        u->task.finished = cut_finished;
        task_start(e, e->c.workers, &u->task);
        return true;
}

/* ---- items ---- */

const struct digest *upload_item_hash(const struct upload *u, size_t i) {
        return i < u->list->n ? &u->list->refs[i].hash : &u->pages[i - u->list->n].hash;
}

uint32_t upload_item_bytes(const struct upload *u, size_t i) {
        return i < u->list->n ? u->list->refs[i].bytes : u->pages[i - u->list->n].n;
}

/* Marks the first item with this hash; equal blocks of one file travel once. */
static bool mark_todo(struct upload *u, const struct digest *hash) {
        size_t lo = 0, hi = u->n_items;
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                if (memcmp(upload_item_hash(u, u->by_hash[mid]), hash, DIGEST_BYTES) < 0)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        if (lo == u->n_items || !digest_equal(upload_item_hash(u, u->by_hash[lo]), hash))
                return false;
        if (u->todo[u->by_hash[lo]] == 0) {
                u->todo[u->by_hash[lo]] = 1;
                u->left++;
        }
        return true;
}

int upload_missing(struct upload *u, const struct digest *hashes, size_t n) {
        if (u->inline_bytes) {
                u->state = UPLOAD_READY; /* its bytes travel with the operation anyway */
                return 0;
        }
        for (size_t i = 0; i < n; i++)
                if (!mark_todo(u, &hashes[i]))
                        return -EPROTO;
        if (n == 0) { /* not told which: ask */
                u->asked = 0;
                u->state = UPLOAD_ASK;
                return 0;
        }
        u->at = 0;
        u->state = UPLOAD_PUT;
        return 0;
}

/* ---- asking ---- */

static int mark_asked(void *arg, const struct digest *hash) {
        return mark_todo(arg, hash) ? 0 : -EPROTO;
}

static void ask_finished(struct request *r, int err) {
        struct upload *u = r->owner;
        struct engine *e = u->e;
        u->asking = NULL;
        upload_unref(u);
        if (u->abandoned)
                return;
        if (err < 0) {
                upload_request_failed(u, r, err);
                return;
        }
        const size_t before = u->left;
        int k = request_hashes(r, mark_asked, u);
        if (k < 0) {
                connect_protocol_error(e, k, "missing blocks");
                u->asked = 0;
                upload_fail(u, -EAGAIN, 0);
                return;
        }
        size_t missing = u->left - before;
        size_t asked = MIN((size_t)HASHES_PER_ASK, u->n_items - u->asked);
        u->asked += asked;
        counter_add(e->c.counters, blocks_deduplicated, asked > missing ? asked - missing : 0);
        backoff_reset(&u->backoff);
        if (u->asked < u->n_items)
                return; /* the next slice */
        u->at = 0;
        u->state = u->left ? UPLOAD_PUT : UPLOAD_READY;
        if (u->state == UPLOAD_READY)
                outbox_look(e);
}

static void start_ask(struct upload *u) {
        struct engine *e = u->e;
        size_t n = MIN((size_t)HASHES_PER_ASK, u->n_items - u->asked);
        struct request *r = request_new(e, HTTP_POST, BATCH_BYTES_MAX, BATCH_BYTES_MAX, "/v1/workspaces/%s/missing", buf_text(&e->ws));
        struct digest *hashes = calloc(n, sizeof *hashes);
        int k = r && hashes ? 0 : -ENOMEM;
        for (size_t i = 0; k >= 0 && i < n; i++)
                hashes[i] = *upload_item_hash(u, u->asked + i);
        if (k >= 0)
                k = wire_add_hashes(&r->call->body, hashes, n);
        free(hashes);
        if (k < 0) {
                request_free(r);
                upload_fail(u, k, 0);
                return;
        }
        r->owner = u;
        r->finished = ask_finished;
        u->busy++;
        u->asking = r;
        request_send(r, 0);
}

/* ---- failing ---- */

static void park(struct upload *u, int err, const char *why, int64_t retry_ms) {
        outbox_park_item(u->e, &u->op, -err, why, retry_ms, false);
        upload_abandon(u);
}

void upload_fail(struct upload *u, int err, int64_t retry_after_ms) {
        switch (err) {
        case -EIO: case -EBADMSG:
                park(u, err, "its bytes on this disk are damaged", PARKED_MS);
                return;
        case -ENOENT:
                park(u, err, "its bytes are gone from this disk", PARKED_MS);
                return;
        case -EACCES: /* bytes that it needs from there */
                park(u, err, "no right to change this", 60000);
                return;
        case -EINVAL: case -EMSGSIZE: case -EOPNOTSUPP:
                park(u, err, "the server does not take this content", PARKED_MS);
                return;
        }
        u->retry_at_ms = engine_now(u->e) + connect_retry_ms(u->e, &u->backoff, retry_after_ms);
}

void upload_request_failed(struct upload *u, const struct request *r, int err) {
        if (r->call->err == 0 && r->call->status == 422) {
                if (++u->mismatches < MISMATCHES_MAX)
                        err = -EAGAIN;
                else
                        park(u, -EBADMSG, "the content is damaged on its way", PARKED_MS);
        }
        if (u->abandoned)
                return;
        switch (err) {
        case -EDQUOT:
                park(u, err, "over quota on the server", 30000);
                return;
        case -ENOSPC:
                park(u, err, "no space on the server", 30000);
                return;
        case -EACCES: case -EINVAL: case -EMSGSIZE: case -EOPNOTSUPP:
                upload_fail(u, err, 0);
                return;
        default: /* an error of the server's own disk, or of the network, says nothing about the bytes here */
                upload_fail(u, -EAGAIN, r->call->retry_after_ms);
                return;
        }
}

/* ---- one turn ---- */

/* Without a server nobody goes through the outbox (outbox.c does it else), but what is deleted meanwhile gives its room back, request or not. */
static void look_for_gone(struct engine *e) {
        for (struct upload *u = e->uploads.first; u; u = u->next)
                if (!u->abandoned && u->busy > 0 && outbox_carries(e->c.cache->tree, u->gen) == 0)
                        upload_abandon(u);
}

int64_t uploads_step(struct engine *e, int64_t now) {
        int64_t due = NEVER;
        bool online = connect_online(e) && !load_active(e), stopping = engine_stopping(e);
        if (e->uploads.look && !online)
                look_for_gone(e);
        e->uploads.look = false;
        e->uploads.putting = 0;
        for (struct upload *u = e->uploads.first; u; u = u->next)
                e->uploads.putting += u->state == UPLOAD_PUT && !u->abandoned;
        for (struct upload *u = e->uploads.first, *next; u; u = next) {
                next = u->next;
                if (u->abandoned && u->busy == 0) {
                        release(u);
                        continue;
                }
                if (stopping && u->busy > 0 && u->stage) /* the end must not wait for a large file */
                        stage_chunk_stop(u->stage);
                if (u->abandoned || stopping)
                        continue;
                if (u->retry_at_ms > now) {
                        due = MIN(due, u->retry_at_ms);
                        continue;
                }
                if (u->state == UPLOAD_NEW && u->busy == 0 && online)
                        (void)start_cut(u); /* no room: a cut that finishes calls for another turn */
                else if (u->state == UPLOAD_ASK && u->busy == 0 && online)
                        start_ask(u);
                else if (u->state == UPLOAD_PUT && online)
                        due = MIN(due, put_step(u, now));
        }
        return due;
}
