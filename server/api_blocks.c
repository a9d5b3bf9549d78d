/* SPDX-License-Identifier: Apache-2.0 */
/* api_blocks.c: which blocks are missing, storing blocks, and the packed read.
 *
 * Nothing is believed: every block that comes is expanded within its bound and hashed before it is stored; one wrong block refuses the whole request and
 * is named. A zstd patch is expanded against a base that the sender may read, and stored whole.
 *
 * The packed read answers many ranges in one body of at most BATCH_BYTES_MAX: each hash once, in the order of the items. When a block does
 * not fit any more its item is named in STATUS (not_sent) and later items are tried, which may be small; the first block always fits, so a reader that
 * asks again for the rest gets on. What the asker may not read, or what is damaged, is named as not_found: hashes never grant access. */
#include "api_content.h"

#include <string.h>

#include "base/digest.h"
#include "base/log.h"

#define PUT_BLOCKS_MAX 8192u
#define HASHES_MAX 65536u
#define READ_ITEMS_MAX 4096u
#define SEEN_SLOTS 16384u        /* power of two */
#define SEEN_MAX 8192u           /* blocks of one answer */

static int session_of(struct call *c, struct id *ret, const struct id **ret_session) {
        int r = call_query_id(c, "session", ret);

        *ret_session = r == 0 && !id_is_zero(ret) ? ret : NULL;
        return r == -ENOENT ? 0 : r;
}

int api_missing(struct call *c) {
        struct wire_reader reader = {c->req->body, c->req->body_bytes, 0};
        const struct id *session;
        struct meta_workspace w;
        struct digest *hashes = NULL;
        struct id session_id;
        struct frame f;
        size_t n = 0, k = 0;
        bool *missing;
        int r;

        if (session_of(c, &session_id, &session) < 0)
                return call_fail(c, "INVALID", "session must be 32 hex digits");
        if (call_workspace(c, ROLE_EDITOR, &w))
                return 0;
        while ((r = wire_next(&reader, &f)) > 0) {
                const struct digest *more;
                struct digest *p;
                size_t m;

                if (f.kind != FRAME_HASHES)
                        return call_fail(c, "INVALID", "only HASHES frames belong here");
                r = wire_get_hashes(&f, &more, &m);
                if (r < 0)
                        return r;
                if (m > HASHES_MAX - n)
                        return call_fail(c, "TOO_LARGE", "at most %u hashes in one request", HASHES_MAX);
                p = arena_alloc(c->arena, (n + m + 1) * sizeof *p);
                if (!p)
                        return -ENOMEM;
                if (n > 0)
                        memcpy(p, hashes, n * sizeof *p);
                if (m > 0)
                        memcpy(p + n, more, m * sizeof *p);
                hashes = p;
                n += m;
        }
        if (r < 0)
                return r;
        missing = arena_alloc(c->arena, n + 1);
        if (!missing)
                return -ENOMEM;
        if (n > 0) {
                r = meta_blocks_missing(c->s->meta, &c->who, w.ws, session, hashes, n, missing);
                if (r < 0)
                        return r;
        }
        for (size_t i = 0; i < n; i++)
                if (missing[i])
                        hashes[k++] = hashes[i];
        r = wire_add_hashes(&c->ans->body, hashes, k);
        return r < 0 ? r : call_answer_frames(c);
}

static int hash_refused(struct call *c, const struct digest *hash, const char *why) {
        char hex[2 * DIGEST_BYTES + 1];

        hex_encode(hash->b, DIGEST_BYTES, hex);
        return call_fail_with(c, "HASH_MISMATCH", json_pack("{s:s}", "hash", hex), "block %s: %s", hex, why);
}

/* The base of a patch, if the sender may read it. */
static int base_read(struct content_walk *walk, const struct digest *hash, uint8_t *base, size_t *ret_n) {
        struct meta_place place;
        int r = content_walk_place(walk, hash, &place);

        if (r >= 0)
                r = content_block_read(walk->s, &place, base, NULL, NULL);
        if (r >= 0)
                *ret_n = place.block.raw_bytes;
        return r;
}

struct put { struct call *c; struct content_writer writer; struct content_walk walk; uint8_t *raw, *base; };

static void cleanup_put_p(struct put *p) {
        content_writer_close(&p->writer);
        content_walk_close(&p->walk);
        free(p->raw);
        free(p->base);
}

/* 0 stored or collected; 1 the answer (a refusal) is written; -errno. */
static int put_one(struct put *p, const struct wire_block *b) {
        const struct digest *hash = &b->hash;
        size_t base_bytes = 0;
        bool patch = b->encoding == ENC_ZSTD_PATCH;
        int r;

        if (b->raw_bytes == 0 || b->raw_bytes > BLOCK_BYTES_MAX || b->n == 0 || b->n > BLOCK_BYTES_MAX)
                return call_fail(p->c, "TOO_LARGE", "a block has 1 to %u bytes", BLOCK_BYTES_MAX), 1;
        if (patch) {
                if (!p->base)
                        p->base = malloc(BLOCK_BYTES_MAX);
                if (!p->base)
                        return -ENOMEM;
                r = base_read(&p->walk, &b->base, p->base, &base_bytes);
                if (r == -ENODATA || r == -EBADMSG)
                        return hash_refused(p->c, hash, "the base of this patch is not here; send it whole"), 1;
                if (r < 0)
                        return r;
        }
        r = wire_block_expand(b, p->base, base_bytes, p->raw);
        if (r == -ENOMEM)
                return r;
        if (r < 0)
                return hash_refused(p->c, hash, "its bytes do not match this hash"), 1;
        return content_writer_add(&p->writer, hash, b->raw_bytes, b->encoding == ENC_ZSTD ? ENC_ZSTD : ENC_RAW, b->encoding == ENC_ZSTD ? b->bytes : p->raw,
                                  b->encoding == ENC_ZSTD ? b->n : b->raw_bytes);
}

int api_blocks(struct call *c) {
        _cleanup_(cleanup_put_p) struct put p = {.c = c};
        struct wire_reader reader = {c->req->body, c->req->body_bytes, 0};
        const struct id *session;
        struct meta_workspace w;
        struct digest *hashes;
        struct id session_id;
        struct frame f;
        size_t n = 0;
        int r;

        if (session_of(c, &session_id, &session) < 0)
                return call_fail(c, "INVALID", "session must be 32 hex digits");
        if (call_workspace(c, ROLE_EDITOR, &w))
                return 0;
        r = meta_quota_check(c->s->meta, w.ws, c->req->body_bytes);
        if (r < 0)
                return r;
        content_writer_init(&p.writer, c->s, &c->who, w.ws, session);
        p.writer.known_missing = true; /* every block that comes is claimed and mapped; one that has a place keeps it */
        r = content_walk_open(c->s, &c->who, w.ws, &content_empty, &p.walk);
        if (r < 0)
                return r;
        p.raw = malloc(BLOCK_BYTES_MAX);
        hashes = arena_alloc(c->arena, PUT_BLOCKS_MAX * sizeof *hashes);
        if (!p.raw || !hashes)
                return -ENOMEM;
        while ((r = wire_next(&reader, &f)) > 0) {
                struct wire_block b;

                if (f.kind != FRAME_BLOCK)
                        return call_fail(c, "INVALID", "only BLOCK frames belong here");
                if (n == PUT_BLOCKS_MAX)
                        return call_fail(c, "TOO_LARGE", "at most %u blocks in one request", PUT_BLOCKS_MAX);
                r = wire_get_block(&f, &b);
                if (r < 0)
                        return r;
                r = put_one(&p, &b);
                if (r != 0)
                        return r < 0 ? r : 0;
                hashes[n++] = b.hash;
        }
        if (r < 0)
                return r;
        r = content_writer_flush(&p.writer);
        if (r < 0)
                return r;
        r = wire_add_hashes(&c->ans->body, hashes, n);
        return r < 0 ? r : call_answer_frames(c);
}

struct read {
        struct call *c;
        uint64_t ws;
        struct content_walk walk;
        uint8_t *raw, *stored;
        struct digest *seen; uint16_t *slots; size_t n_seen;
        uint32_t *not_sent, *not_found; size_t n_not_sent, n_not_found;
        size_t sent_bytes;
        bool send_pages;
};

static void cleanup_read_p(struct read *d) {
        content_walk_close(&d->walk);
        free(d->raw);
        free(d->stored);
}

/* True if the hash was in this answer before; else notes it (if `note`). */
static bool seen(struct read *d, const struct digest *hash, bool note) {
        uint32_t h;

        memcpy(&h, hash->b, sizeof h);
        for (h &= SEEN_SLOTS - 1; d->slots[h]; h = (h + 1) & (SEEN_SLOTS - 1))
                if (digest_equal(&d->seen[d->slots[h] - 1], hash))
                        return true;
        if (note) {
                d->seen[d->n_seen++] = *hash;
                d->slots[h] = (uint16_t)d->n_seen;
        }
        return false;
}

static bool fits(const struct read *d, size_t bytes) {
        return d->n_seen < SEEN_MAX && (d->sent_bytes == 0 || d->sent_bytes + bytes <= BATCH_BYTES_MAX);
}

/* -EMSGSIZE: does not fit. */
static int read_block(struct read *d, const struct digest *hash) {
        struct meta_place place;
        struct wire_block b;
        int r;

        if (seen(d, hash, false))
                return 0;
        r = content_walk_place(&d->walk, hash, &place);
        if (r < 0)
                return r;
        if (!fits(d, place.block.stored_bytes))
                return -EMSGSIZE;
        r = content_block_read(d->c->s, &place, d->raw, d->stored, &b);
        if (r >= 0)
                r = wire_add_block(&d->c->ans->body, &b);
        if (r < 0)
                return r;
        d->sent_bytes += b.n;
        (void)seen(d, hash, true);
        return 0;
}

static int read_page(struct content_walk *w, const struct digest *hash, const struct meta_place *place, const void *bytes, size_t n) {
        struct read *d = w->arg;
        struct wire_block b = {.hash = *hash, .encoding = ENC_RAW, .raw_bytes = (uint32_t)n, .bytes = bytes, .n = (uint32_t)n};
        int r;

        if (!d->send_pages || seen(d, hash, false))
                return 0;
        if (!fits(d, n))
                return -EMSGSIZE;
        r = wire_add_block(&d->c->ans->body, &b);
        if (r < 0)
                return r;
        d->sent_bytes += n;
        (void)seen(d, hash, true);
        return 0;
}

static int read_range(struct read *d, const struct wire_read *item) {
        uint64_t at = item->offset, end;
        int r;

        if (item->content.size == 0)
                return 0;
        if (item->offset >= item->content.size)
                return -ENODATA;
        end = item->bytes == 0 || item->bytes > item->content.size - at ? item->content.size : at + item->bytes;
        content_walk_close(&d->walk);
        r = content_walk_open(d->c->s, &d->c->who, d->ws, &item->content, &d->walk);
        if (r < 0)
                return r;
        d->walk.on_page = read_page;
        d->walk.arg = d;
        d->send_pages = item->pages;
        if (item->pages && item->content.depth > 1) { /* all pages, not only those of the range */
                for (uint64_t p = 0; p < item->content.size; p = content_walk_page_end(&d->walk)) {
                        struct blockref ref;
                        uint64_t start;

                        r = content_walk_find(&d->walk, p, &ref, &start);
                        if (r < 0)
                                return r;
                }
        }
        while (at < end) {
                struct blockref ref;
                uint64_t start;

                r = content_walk_find(&d->walk, at, &ref, &start);
                if (r >= 0)
                        r = read_block(d, &ref.hash);
                if (r < 0)
                        return r;
                at = start + ref.bytes;
        }
        return 0;
}

int api_read(struct call *c) {
        _cleanup_(cleanup_read_p) struct read d = {.c = c};
        struct wire_reader reader = {c->req->body, c->req->body_bytes, 0};
        struct meta_workspace w;
        struct wire_status status;
        struct frame f;
        uint32_t n = 0;
        int r;

        if (call_workspace(c, ROLE_VIEWER, &w))
                return 0;
        d.ws = w.ws;
        d.raw = malloc(BLOCK_BYTES_MAX);
        d.stored = malloc(BLOCK_BYTES_MAX);
        d.seen = arena_alloc(c->arena, (SEEN_MAX + 1) * sizeof *d.seen);
        d.slots = arena_alloc(c->arena, SEEN_SLOTS * sizeof *d.slots);
        d.not_sent = arena_alloc(c->arena, READ_ITEMS_MAX * sizeof *d.not_sent);
        d.not_found = arena_alloc(c->arena, READ_ITEMS_MAX * sizeof *d.not_found);
        if (!d.raw || !d.stored || !d.seen || !d.slots || !d.not_sent || !d.not_found)
                return -ENOMEM;
        r = content_walk_open(c->s, &c->who, w.ws, &content_empty, &d.walk);
        if (r < 0)
                return r;
        for (; (r = wire_next(&reader, &f)) > 0; n++) {
                struct wire_read item;

                if (f.kind != FRAME_READ)
                        return call_fail(c, "INVALID", "only READ frames belong here");
                if (n == READ_ITEMS_MAX)
                        return call_fail(c, "TOO_LARGE", "at most %u items in one request", READ_ITEMS_MAX);
                r = wire_get_read(&f, &item);
                if (r < 0)
                        return r;
                r = item.by_hash ? read_block(&d, &item.hash) : read_range(&d, &item);
                if (r == -EMSGSIZE)
                        d.not_sent[d.n_not_sent++] = n;
                else if (r == -ENODATA || r == -EBADMSG || r == -ENOENT)
                        d.not_found[d.n_not_found++] = n;
                else if (r < 0)
                        return r;
        }
        if (r < 0)
                return r;
        status = (struct wire_status){d.not_sent, d.n_not_sent, d.not_found, d.n_not_found};
        r = wire_add_status(&c->ans->body, &status);
        return r < 0 ? r : call_answer_frames(c);
}
