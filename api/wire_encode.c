/* SPDX-License-Identifier: Apache-2.0 */
/* wire_encode.c: rows into frames. The fields and their numbers are those of docs/tarn.proto, in rising order; nothing else decides the bytes, so
 * equal rows give equal bytes. That is what an operation's digest relies on.
 *
 * A frame is written in place: header with an empty length, payload, length. If anything fails, the buffer is cut back to where the frame began, so
 * a caller that runs into the buffer's maximum can send what it has and start the next body with the row that did not fit.
 *
 * Left out of an operation's digest: `after` (an order of delivery: the list gets shorter as predecessors are answered) and the way the bytes travel
 * (OPF_INLINE: a retry may send them as blocks; the content's root covers them either way and the server checks it). */
#include <assert.h>

#include "api/wire.h"
#include "base/digest.h"
#include "pb.h"

static void put_content(struct pb_out *o, uint32_t field, const struct content *c) {
        if (digest_is_zero(&c->root) && c->size == 0 && c->depth == 0 && c->param == 0)
                return;
        size_t at = pb_begin(o, field);
        pb_put_digest(o, 1, &c->root);
        pb_put_u64(o, 2, c->size);
        pb_put_u64(o, 3, c->depth);
        pb_put_u64(o, 4, c->param);
        pb_end(o, at);
}

static void put_mark(struct pb_out *o, uint32_t field, const uint8_t mark[8]) {
        static const uint8_t zero[8];
        if (memcmp(mark, zero, sizeof zero) != 0)
                pb_put_bytes(o, field, mark, 8);
}

static void put_cursor_fields(struct pb_out *o, const struct cursor *c) {
        pb_put_id(o, 1, &c->epoch);
        pb_put_u64(o, 2, c->seq);
        put_mark(o, 3, c->mark);
}

static void put_cursor(struct pb_out *o, uint32_t field, const struct cursor *c) {
        size_t at = pb_begin(o, field);
        put_cursor_fields(o, c);
        pb_end(o, at);
}

static void put_node_fields(struct pb_out *o, const struct node_row *n) {
        pb_put_id(o, 1, &n->id);
        pb_put_u64(o, 2, n->kind);
        pb_put_u64(o, 3, n->mode);
        pb_put_u64(o, 4, n->uid);
        pb_put_u64(o, 5, n->gid);
        pb_put_u64(o, 6, n->rdev);
        pb_put_time(o, 7, n->mtime_ns);
        pb_put_time(o, 8, n->ctime_ns);
        pb_put_time(o, 9, n->btime_ns);
        if (n->target)
                pb_put_present(o, 10, n->target, strlen(n->target));
        for (size_t i = 0; i < n->n_xattrs; i++) {
                size_t at = pb_begin(o, 11);
                pb_put_bytes(o, 1, n->xattrs[i].name, strlen(n->xattrs[i].name));
                pb_put_bytes(o, 2, n->xattrs[i].value, n->xattrs[i].value_bytes);
                pb_end(o, at);
        }
        put_content(o, 12, &n->content);
        pb_put_id(o, 13, &n->version);
        pb_put_u64(o, 14, n->seq);
        pb_put_u64(o, 15, n->deleted);
}

static void put_node(struct pb_out *o, uint32_t field, const struct node_row *n) {
        size_t at = pb_begin(o, field);
        put_node_fields(o, n);
        pb_end(o, at);
}

static void put_entry_fields(struct pb_out *o, const struct entry_row *e) {
        pb_put_u64(o, 1, e->entry_id);
        pb_put_id(o, 2, &e->parent);
        pb_put_id(o, 3, &e->node);
        pb_put_bytes(o, 4, e->name, e->name_bytes);
        pb_put_id(o, 5, &e->placement);
        pb_put_u64(o, 6, e->seq);
}

static void put_change_fields(struct pb_out *o, const struct change *c) {
        put_node(o, 1, &c->node);
        pb_put_u64(o, 2, c->has_entries);
        for (size_t i = 0; c->has_entries && i < c->n_entries; i++) {
                size_t at = pb_begin(o, 3);
                put_entry_fields(o, &c->entries[i]);
                pb_end(o, at);
        }
}

static void put_changes(struct pb_out *o, uint32_t field, const struct change *c, size_t n) {
        for (size_t i = 0; i < n; i++) {
                size_t at = pb_begin(o, field);
                put_change_fields(o, &c[i]);
                pb_end(o, at);
        }
}

static void put_event_fields(struct pb_out *o, const struct event *e) {
        pb_put_u64(o, 1, e->seq);
        put_mark(o, 2, e->mark);
        pb_put_id(o, 3, &e->op);
        pb_put_id(o, 4, &e->job);
        if (e->actor)
                pb_put_present(o, 5, e->actor, strlen(e->actor));
        if (e->device)
                pb_put_present(o, 6, e->device, strlen(e->device));
        pb_put_time(o, 7, e->time_ns);
        put_changes(o, 8, e->changes, e->n_changes);
}

static void put_op_fields(struct pb_out *o, const struct op *op, bool digest) {
        pb_put_id(o, 1, &op->id);
        pb_put_u64(o, 2, op->kind);
        pb_put_u64(o, 3, digest ? op->flags & ~(uint32_t)OPF_INLINE : op->flags);
        if (!digest)
                pb_put_bytes(o, 4, op->after, op->n_after * ID_BYTES);
        pb_put_id(o, 5, &op->node);
        pb_put_id(o, 6, &op->parent);
        pb_put_bytes(o, 7, op->name, op->name_bytes);
        pb_put_id(o, 8, &op->parent2);
        pb_put_bytes(o, 9, op->name2, op->name2_bytes);
        pb_put_id(o, 10, &op->placement);
        pb_put_id(o, 11, &op->version);
        pb_put_id(o, 12, &op->replaced);
        pb_put_id(o, 13, &op->replaced_version);
        pb_put_id(o, 14, &op->replaced_placement);
        pb_put_id(o, 15, &op->source);
        pb_put_u64(o, 16, op->attr_mask);
        put_node(o, 17, &op->attrs);
        put_content(o, 18, &op->content);
        pb_put_time(o, 19, op->time_ns);
        pb_put_id(o, 20, &op->lease);
}

static void put_result_fields(struct pb_out *o, const struct op_result *r) {
        pb_put_id(o, 1, &r->op);
        pb_put_u64(o, 2, r->code);
        pb_put_u64(o, 3, r->seq);
        put_mark(o, 4, r->mark);
        pb_put_id(o, 5, &r->merged_into);
        put_changes(o, 6, r->current, r->n_current);
        pb_put_bytes(o, 7, r->missing, r->n_missing * DIGEST_BYTES);
}

/* ---- frames ---- */

struct out { struct pb_out o; size_t start; };

static struct out frame_begin(struct buf *b, enum frame_kind kind) {
        const uint8_t head[FRAME_HEADER_BYTES] = { (uint8_t)kind };
        struct out out = { .o = { .b = b }, .start = b->bytes };
        out.o.err = buf_add(b, head, sizeof head);
        return out;
}

static int frame_end(struct out *out) {
        struct buf *b = out->o.b;
        if (out->o.err == 0) {
                size_t n = b->bytes - out->start - FRAME_HEADER_BYTES;
                if (n <= FRAME_BYTES_MAX) {
                        for (int i = 0; i < 4; i++)
                                b->data[out->start + 1 + i] = (uint8_t)(n >> (8 * i));
                        return 0;
                }
                out->o.err = -EMSGSIZE;
        }
        b->bytes = out->start;
        return out->o.err;
}

int wire_add_node(struct buf *b, const struct node_row *row) {
        struct out out = frame_begin(b, FRAME_NODE);
        put_node_fields(&out.o, row);
        return frame_end(&out);
}

int wire_add_entry(struct buf *b, const struct entry_row *row) {
        struct out out = frame_begin(b, FRAME_ENTRY);
        put_entry_fields(&out.o, row);
        return frame_end(&out);
}

int wire_add_page(struct buf *b, const struct wire_page *page) {
        struct out out = frame_begin(b, FRAME_PAGE);
        pb_put_u64(&out.o, 1, page->end);
        pb_put_u64(&out.o, 2, page->count);
        pb_put_id(&out.o, 3, &page->after_id);
        pb_put_id(&out.o, 4, &page->last_id);
        pb_put_u64(&out.o, 5, page->after_entry);
        pb_put_u64(&out.o, 6, page->last_entry);
        pb_put_digest(&out.o, 7, &page->digest);
        pb_put_digest(&out.o, 8, &page->previous);
        put_cursor(&out.o, 9, &page->upto);
        return frame_end(&out);
}

int wire_add_listed(struct buf *b, const struct wire_listed *l) {
        struct out out = frame_begin(b, FRAME_LISTED);
        pb_put_id(&out.o, 1, &l->dir);
        put_cursor(&out.o, 2, &l->at);
        pb_put_u64(&out.o, 3, l->count);
        return frame_end(&out);
}

int wire_add_cursor(struct buf *b, const struct wire_cursor *c) {
        struct out out = frame_begin(b, FRAME_CURSOR);
        pb_put_bytes(&out.o, 1, c->workspace, strlen(c->workspace));
        put_cursor(&out.o, 2, &c->cursor);
        pb_put_u64(&out.o, 3, c->quota_bytes);
        pb_put_u64(&out.o, 4, c->used_bytes);
        return frame_end(&out);
}

int wire_add_event(struct buf *b, const struct event *e) {
        struct out out = frame_begin(b, FRAME_EVENT);
        put_event_fields(&out.o, e);
        return frame_end(&out);
}

int wire_add_op(struct buf *b, const struct op *op) {
        struct out out = frame_begin(b, FRAME_OP);
        size_t start = out.start;
        put_op_fields(&out.o, op, false);
        int r = frame_end(&out);
        if (r < 0 || !(op->flags & OPF_INLINE))
                return r;
        if (op->content.size > INLINE_BYTES_MAX) {
                b->bytes = start;
                return -EMSGSIZE;
        }
        assert(op->inline_bytes || op->content.size == 0);
        out = frame_begin(b, FRAME_DATA);
        if (out.o.err == 0 && op->content.size > 0)
                out.o.err = buf_add(b, op->inline_bytes, op->content.size);
        r = frame_end(&out);
        if (r < 0)
                b->bytes = start;
        return r;
}

int wire_add_result(struct buf *b, const struct op_result *r) {
        struct out out = frame_begin(b, FRAME_RESULT);
        put_result_fields(&out.o, r);
        return frame_end(&out);
}

int wire_add_hashes(struct buf *b, const struct digest *hashes, size_t n) {
        struct out out = frame_begin(b, FRAME_HASHES);
        pb_put_bytes(&out.o, 1, hashes, n * DIGEST_BYTES);
        return frame_end(&out);
}

int wire_add_block(struct buf *b, const struct wire_block *block) {
        struct out out = frame_begin(b, FRAME_BLOCK);
        pb_put_digest(&out.o, 1, &block->hash);
        pb_put_u64(&out.o, 2, block->encoding);
        pb_put_u64(&out.o, 3, block->raw_bytes);
        pb_put_digest(&out.o, 4, &block->base);
        pb_put_bytes(&out.o, 5, block->bytes, block->n);
        return frame_end(&out);
}

int wire_add_read(struct buf *b, const struct wire_read *r) {
        struct out out = frame_begin(b, FRAME_READ);
        put_content(&out.o, 1, &r->content);
        pb_put_u64(&out.o, 2, r->offset);
        pb_put_u64(&out.o, 3, r->bytes);
        pb_put_u64(&out.o, 4, r->pages);
        pb_put_u64(&out.o, 5, r->by_hash);
        pb_put_digest(&out.o, 6, &r->hash);
        return frame_end(&out);
}

/* repeated uint32, packed: the varints one after the other. */
static void put_packed(struct pb_out *o, uint32_t field, const uint32_t *v, size_t n) {
        if (n == 0)
                return;
        size_t at = pb_begin(o, field);
        for (size_t i = 0; i < n && o->err == 0; i++) {
                uint8_t b[5];
                size_t k = 0;
                for (uint32_t x = v[i];; x >>= 7) {
                        b[k++] = (uint8_t)(x < 0x80 ? x : x | 0x80);
                        if (x < 0x80)
                                break;
                }
                o->err = buf_add(o->b, b, k);
        }
        pb_end(o, at);
}

int wire_add_status(struct buf *b, const struct wire_status *s) {
        struct out out = frame_begin(b, FRAME_STATUS);
        put_packed(&out.o, 1, s->not_sent, s->n_not_sent);
        put_packed(&out.o, 2, s->not_found, s->n_not_found);
        return frame_end(&out);
}

/* ---- payloads alone ---- */

static int pack_end(struct pb_out *o, size_t start) {
        if (o->err)
                o->b->bytes = start;
        return o->err;
}

int wire_pack_change(struct buf *b, const struct change *c) {
        struct pb_out o = { .b = b };
        size_t start = b->bytes;
        put_change_fields(&o, c);
        return pack_end(&o, start);
}

int wire_pack_event(struct buf *b, const struct event *e) {
        struct pb_out o = { .b = b };
        size_t start = b->bytes;
        put_event_fields(&o, e);
        return pack_end(&o, start);
}

int wire_pack_result(struct buf *b, const struct op_result *r) {
        struct pb_out o = { .b = b };
        size_t start = b->bytes;
        put_result_fields(&o, r);
        return pack_end(&o, start);
}

int wire_op_digest(const struct op *op, struct digest *ret) {
        _cleanup_buf_ struct buf b = BUF_INIT(XATTR_TOTAL_MAX + 65536);
        struct pb_out o = { .b = &b };
        put_op_fields(&o, op, true);
        if (o.err)
                return o.err;
        sha256(b.data, b.bytes, ret);
        return 0;
}
