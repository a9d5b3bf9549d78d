/* SPDX-License-Identifier: Apache-2.0 */
/* api_commit.c: a batch of operations, with small contents inline.
 *
 * The body is OP [DATA] OP [DATA] ...: an operation that is marked inline is followed by its bytes. Each inline content is hashed here; one that is not what
 * its operation says gets RES_CORRUPT and the others go on. All inline contents of the batch become one object, written and synced before meta is asked to
 * commit: bytes durable first, then one transaction per group. Only the blocks that an accepted operation names are mapped to the object; if there is none
 * (everything refused, or a retry of what was accepted before) the object is removed again.
 *
 * Large contents were sent as blocks before; their list pages are read through content_pages by meta.
 *
 * An operation that was made under a lock names its lease. The lease is pinned until the batch has been answered; if it has ended, the operation is fenced (leases.c). */
#include "api_content.h"

#include <string.h>

#include "base/digest.h"
#include "base/log.h"

struct batch {
        struct op *ops; size_t n;
        enum op_code *preset;
        struct meta_block *blocks; size_t n_blocks;
        struct buf object;
        struct content_pages pages;
        struct service *s;
        struct service_object busy;      /* the object, until the last transaction that may name it */
        bool *pinned;                    /* per operation: its lease */
};

static void cleanup_batch_p(struct batch *b) {
        for (size_t i = 0; b->pinned && i < b->n; i++)
                if (b->pinned[i])
                        lease_unpin(b->s->leases, &b->ops[i].lease);
        if (b->busy.name)
                service_object_end(b->s, &b->busy);
        buf_free(&b->object);
        content_pages_close(&b->pages);
}

/* Checks the inline bytes of the last operation and puts them into the object. */
static int batch_inline(struct batch *b, const struct frame *f) {
        struct op *op = &b->ops[b->n - 1];
        enum op_code *code = &b->preset[b->n - 1];
        struct digest d;
        int r;

        if (f->bytes > INLINE_BYTES_MAX) {
                *code = RES_TOO_LARGE;
                return 0;
        }
        op->inline_bytes = f->payload;
        if (op->content.depth != 0 || op->content.size != f->bytes) {
                *code = RES_CORRUPT;
                return 0;
        }
        if (f->bytes == 0) {
                if (!digest_is_zero(&op->content.root))
                        *code = RES_CORRUPT;
                return 0;
        }
        sha256(f->payload, f->bytes, &d);
        if (!digest_equal(&d, &op->content.root)) {
                *code = RES_CORRUPT;
                return 0;
        }
        for (size_t i = 0; i < b->n_blocks; i++)
                if (digest_equal(&b->blocks[i].hash, &d))
                        return 0;
        b->blocks[b->n_blocks++] =
                (struct meta_block){.hash = d, .raw_bytes = (uint32_t)f->bytes, .encoding = ENC_RAW, .offset = b->object.bytes, .stored_bytes = (uint32_t)f->bytes};
        r = buf_add(&b->object, f->payload, f->bytes);
        return r;
}

/* 0; 1 answered; -errno. */
static int batch_parse(struct call *c, struct batch *b) {
        struct wire_reader reader = {c->req->body, c->req->body_bytes, 0};
        bool data_due = false;
        struct frame f;
        int r;

        b->ops = arena_alloc(c->arena, BATCH_OPS_MAX * sizeof *b->ops);
        b->preset = arena_alloc(c->arena, BATCH_OPS_MAX * sizeof *b->preset);
        b->blocks = arena_alloc(c->arena, BATCH_OPS_MAX * sizeof *b->blocks);
        if (!b->ops || !b->preset || !b->blocks)
                return -ENOMEM;
        while ((r = wire_next(&reader, &f)) > 0) {
                if (data_due != (f.kind == FRAME_DATA) || (f.kind != FRAME_OP && f.kind != FRAME_DATA))
                        return call_fail(c, "INVALID", "an OP frame, followed by a DATA frame exactly if it is inline, belongs here"), 1;
                if (f.kind == FRAME_DATA) {
                        r = batch_inline(b, &f);
                        if (r < 0)
                                return r;
                        data_due = false;
                        continue;
                }
                if (b->n == BATCH_OPS_MAX)
                        return call_fail(c, "TOO_LARGE", "at most %u operations in one batch", BATCH_OPS_MAX), 1;
                r = wire_get_op(&f, c->arena, &b->ops[b->n]);
                if (r == -EPROTONOSUPPORT)
                        return call_fail(c, "UPGRADE_NEEDED", "operation %zu of the batch is of a kind that this server does not know", b->n), 1;
                if (r < 0)
                        return r;
                b->preset[b->n] = RES_OK;
                data_due = (b->ops[b->n].flags & OPF_INLINE) != 0;
                b->n++;
        }
        if (r == 0 && data_due)
                return call_fail(c, "INVALID", "the last operation's bytes are not there"), 1;
        return r;
}

/* The disk is full: what needs more of it than a row is refused, what gives room back goes on. The client waits with the rest, as for quota. */
static void refuse_growth(struct batch *b) {
        for (size_t i = 0; i < b->n; i++)
                if (b->preset[i] == RES_OK && b->ops[i].kind != OP_UNLINK && b->ops[i].kind != OP_ATTR && b->ops[i].kind != OP_RENAME)
                        b->preset[i] = RES_QUOTA;
}

/* Holds the leases that the operations name. */
static int batch_pin(struct call *c, struct batch *b, uint64_t ws) {
        struct lease_who who = {.ws = ws, .account = c->who.account, .device = c->who.device};

        b->pinned = arena_alloc(c->arena, (b->n + 1) * sizeof *b->pinned);
        if (!b->pinned)
                return -ENOMEM;
        for (size_t i = 0; i < b->n; i++) {
                int r = id_is_zero(&b->ops[i].lease) ? 0 : lease_pin(c->s->leases, &who, &b->ops[i].lease);

                if (r == -ENOLCK && b->preset[i] == RES_OK)
                        b->preset[i] = RES_FENCED;
                b->pinned[i] = r == 0 && !id_is_zero(&b->ops[i].lease);
        }
        return 0;
}

int api_commit(struct call *c) {
        char name[STORE_NAME_BYTES + 1];
        _cleanup_(cleanup_batch_p) struct batch b = {.object = BUF_INIT(STORE_OBJECT_BYTES_MAX), .s = c->s};
        struct store *store = c->s->store;
        struct meta_workspace w;
        struct meta_batch batch;
        uint64_t bytes;
        int r;

        if (call_workspace(c, ROLE_EDITOR, &w))
                return 0;
        r = batch_parse(c, &b);
        if (r != 0)
                return r < 0 ? r : 0;
        r = batch_pin(c, &b, w.ws);
        if (r < 0)
                return r;
        r = content_pages_open(c->s, &c->who, w.ws, &b.pages);
        if (r < 0)
                return r;
        if (reserve_tight(c->s->reserve)) {
                refuse_growth(&b);
                b.n_blocks = 0;
        }
        if (b.n_blocks > 0) {
                store_name_new(c->s->rng, name);
                service_object_begin(c->s, &b.busy, name);
                r = store->put(store, name, b.object.data, b.object.bytes);
                if (r < 0)
                        return r;
        }
        batch = (struct meta_batch){
                .subject = &c->who, .ws = w.ws, .ops = b.ops, .n_ops = b.n, .preset = b.preset, .pages = &b.pages.get, .arena = c->arena,
                .object = b.n_blocks > 0 ? name : NULL, .object_bytes = b.object.bytes, .blocks = b.blocks, .n_blocks = b.n_blocks,
        };
        if (b.n > 0) {
                r = meta_commit(c->s->meta, &batch);
                if (r < 0)
                        return r;
        }
        (void)atomic_fetch_add_explicit(&c->s->stats.commits_ops, b.n, memory_order_relaxed);
        if (b.n_blocks > 0 && meta_object_find(c->s->meta, name, &bytes) == -ENOENT) {
                r = store->remove(store, name);
                if (r < 0)
                        log_warn("event=object_left object=%s error=%s", name, err_name(r));
        }
        for (size_t i = 0; i < b.n; i++) {
                r = wire_add_result(&c->ans->body, &batch.results[i]);
                if (r < 0)
                        return r;
        }
        return call_answer_frames(c);
}
