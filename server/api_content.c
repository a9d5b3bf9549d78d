/* SPDX-License-Identifier: Apache-2.0 */
/* api_content.c: reading and writing blocks.
 *
 * Reading: meta says where a block lies (object, offset, length, encoding) if the subject may read it in this workspace; the store gives the bytes; they
 * are expanded within BLOCK_BYTES_MAX and hashed. Only bytes that match leave. A mismatch is logged with block and object and counted; the reader
 * gets an error, never other bytes. The block is marked, so that it is asked for again wherever its bytes may come from (meta_block.c); nothing is deleted.
 * An object that is not there may have been emptied since meta was asked (maintain_compact.c): meta is asked again, and only a block that should lie there still counts as damaged.
 *
 * A content of one block has no page; one of up to 1,024 blocks has one page, larger ones a tree. content_walk goes down from the root by the
 * sizes in the pages and remembers the page of each level, so that a sequential read costs one look-up per block and one page per 1,024 blocks, and
 * memory is three pages however large the file is. Every page is checked against its hash, its level and the sizes promised above it.
 *
 * Writing: blocks are collected in memory up to BATCH_BYTES_MAX; then meta is asked which of them are missing (which claims all of them), those are put as one
 * object and recorded. The order is the promise: bytes durable, then mapped, and only then may a version name them. If recording fails the
 * object is removed again: nothing refers to it. */
#include "api_content.h"

#include <assert.h>
#include <string.h>

#include "base/digest.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "meta_maintain.h"

#define PLACE_ARENA_BYTES (64u << 10)

static int damaged(struct service *s, const struct meta_place *place, int err) {
        char hex[2 * DIGEST_BYTES + 1];

        hex_encode(place->block.hash.b, DIGEST_BYTES, hex);
        (void)atomic_fetch_add_explicit(&s->stats.corrupt_blocks, 1, memory_order_relaxed);
        counter_add(s->counters, corruptions_found, 1);
        if (!place->bad) {
                int r = meta_block_mark(s->meta, place, true);

                if (r < 0)
                        log_warn("event=mark_damaged hash=%s error=%s", hex, err_name(r));
        }
        log_error("event=damaged_block hash=%s object=%s offset=%llu error=%s", hex, place->object, (unsigned long long)place->block.offset, err_name(err));
        return -EBADMSG;
}

/* -ENOENT: no such object. */
static int read_at(struct service *s, const struct meta_place *place, uint8_t *raw, uint8_t *stored, struct wire_block *ret_wire) {
        const struct meta_block *b = &place->block;
        struct wire_block wire = {.hash = b->hash, .encoding = b->encoding, .raw_bytes = b->raw_bytes, .n = b->stored_bytes};
        _cleanup_free_ uint8_t *own = NULL;
        int r;

        if (b->raw_bytes > BLOCK_BYTES_MAX || b->stored_bytes > BLOCK_BYTES_MAX || b->stored_bytes == 0)
                return damaged(s, place, -EPROTO);
        if (b->encoding == ENC_RAW) {
                struct digest d;

                if (b->stored_bytes != b->raw_bytes)
                        return damaged(s, place, -EPROTO);
                r = s->store->get(s->store, place->object, b->offset, raw, b->raw_bytes);
                if (r < 0)
                        return r == -EIO ? damaged(s, place, r) : r;
                sha256(raw, b->raw_bytes, &d);
                if (!digest_equal(&d, &b->hash))
                        return damaged(s, place, -EBADMSG);
                wire.bytes = raw;
        } else {
                if (!stored)
                        stored = own = malloc(BLOCK_BYTES_MAX);
                if (!stored)
                        return -ENOMEM;
                r = s->store->get(s->store, place->object, b->offset, stored, b->stored_bytes);
                if (r < 0)
                        return r == -EIO ? damaged(s, place, r) : r;
                wire.bytes = stored;
                r = wire_block_expand(&wire, NULL, 0, raw);
                if (r < 0)
                        return r == -ENOMEM ? r : damaged(s, place, r);
        }
        if (ret_wire)
                *ret_wire = wire;
        return 0;
}

int content_block_read(struct service *s, const struct meta_place *place, uint8_t *raw, uint8_t *stored, struct wire_block *ret_wire) {
        char names[2][STORE_NAME_BYTES + 1];
        struct meta_place at = *place;
        int r;

        assert(place->found);
        r = FAILPOINT("content.read");
        for (unsigned i = 0; r == 0; i = !i) { /* while it moves (maintain_compact.c): each time to an object that is newer than the question before */
                struct meta_place now;

                r = read_at(s, &at, raw, stored, ret_wire);
                if (r != -ENOENT)
                        return r;
                r = meta_block_again(s->meta, place, &now, names[i]);
                if (r == -ENOENT || (r == 0 && strcmp(now.object, at.object) == 0))
                        return damaged(s, &at, -ENOENT);
                if (r == 0 && now.block.raw_bytes != place->block.raw_bytes)
                        return -EBADMSG;
                at = now;
        }
        return r;
}

int content_walk_open(struct service *s, const struct meta_subject *who, uint64_t ws, const struct content *content, struct content_walk *ret) {
        *ret = (struct content_walk){.s = s, .who = *who, .ws = ws, .content = *content};
        if (content->depth >= ARRAY_SIZE(ret->level))
                return -EBADMSG;
        return arena_new(PLACE_ARENA_BYTES, &ret->arena);
}

void content_walk_close(struct content_walk *w) {
        for (size_t i = 0; i < ARRAY_SIZE(w->level); i++)
                free(w->level[i].page);
        free(w->page_bytes);
        arena_free(w->arena);
        *w = (struct content_walk){0};
}

int content_walk_place(struct content_walk *w, const struct digest *hash, struct meta_place *ret) {
        int r;

        arena_reset(w->arena);
        r = meta_blocks_find(w->s->meta, &w->who, w->ws, hash, 1, w->arena, ret);
        if (r < 0)
                return r;
        return ret->found ? 0 : -ENODATA;
}

/* Makes level[level - 1] hold the page `hash`, which covers the content from `start`. */
static int walk_page(struct content_walk *w, unsigned level, const struct digest *hash, uint64_t start) {
        struct walk_level *at = &w->level[level - 1];
        struct meta_place place;
        int r;

        if (at->page && digest_equal(&at->hash, hash)) {
                at->start = start;
                return 0;
        }
        if (!at->page)
                at->page = malloc(sizeof *at->page);
        if (!w->page_bytes)
                w->page_bytes = malloc(BLOCK_BYTES_MAX);
        if (!at->page || !w->page_bytes)
                return -ENOMEM;
        memset(&at->hash, 0, sizeof at->hash);
        r = content_walk_place(w, hash, &place);
        if (r < 0)
                return r;
        r = content_block_read(w->s, &place, w->page_bytes, NULL, NULL);
        if (r < 0)
                return r;
        r = list_page_parse(w->page_bytes, place.block.raw_bytes, at->page);
        if (r < 0)
                return r;
        if (at->page->level != level || at->page->param != w->content.param)
                return -EBADMSG;
        if (w->on_page) {
                r = w->on_page(w, hash, &place, w->page_bytes, place.block.raw_bytes);
                if (r < 0)
                        return r;
        }
        at->hash = *hash;
        at->start = start;
        return 0;
}

int content_walk_find(struct content_walk *w, uint64_t off, struct blockref *ret, uint64_t *ret_start) {
        struct digest hash = w->content.root;
        uint64_t start = 0, bytes = w->content.size;

        assert(off < w->content.size);
        for (unsigned level = w->content.depth; level > 0; level--) {
                const struct list_page *page;
                uint64_t sum = 0;
                size_t i;
                int r = walk_page(w, level, &hash, start);

                if (r < 0)
                        return r;
                page = w->level[level - 1].page;
                for (i = 0; i < page->n && off - start >= page->bytes[i]; i++) {
                        start += page->bytes[i];
                        sum += page->bytes[i];
                        if (sum > bytes)
                                return -EBADMSG;
                }
                if (i == page->n || page->bytes[i] > bytes - sum)
                        return -EBADMSG;
                hash = page->hash[i];
                bytes = page->bytes[i];
        }
        if (bytes == 0 || bytes > BLOCK_BYTES_MAX)
                return -EBADMSG;
        *ret = (struct blockref){hash, (uint32_t)bytes};
        *ret_start = start;
        return 0;
}

uint64_t content_walk_page_end(const struct content_walk *w) {
        uint64_t end = w->level[0].start;

        assert(w->level[0].page);
        for (size_t i = 0; i < w->level[0].page->n; i++)
                end += w->level[0].page->bytes[i];
        return end;
}

static int pages_get(struct page_get *g, const struct digest *hash, const void **ret_bytes, size_t *ret_n) {
        struct content_pages *p = container_of(g, struct content_pages, get);
        struct meta_place place;
        int r = content_walk_place(&p->walk, hash, &place);

        if (r < 0)
                return r;
        if (!p->bytes)
                p->bytes = malloc(BLOCK_BYTES_MAX);
        if (!p->bytes)
                return -ENOMEM;
        r = content_block_read(p->walk.s, &place, p->bytes, NULL, NULL);
        if (r < 0)
                return r;
        *ret_bytes = p->bytes;
        *ret_n = place.block.raw_bytes;
        return 0;
}

int content_pages_open(struct service *s, const struct meta_subject *who, uint64_t ws, struct content_pages *ret) {
        *ret = (struct content_pages){.get = {pages_get}};
        return content_walk_open(s, who, ws, &content_empty, &ret->walk);
}

void content_pages_close(struct content_pages *p) {
        content_walk_close(&p->walk);
        free(p->bytes);
        p->bytes = NULL;
}

void content_writer_init(struct content_writer *w, struct service *s, const struct meta_subject *who, uint64_t ws, const struct id *session) {
        *w = (struct content_writer){.s = s, .who = who, .ws = ws, .session = session, .object = BUF_INIT(STORE_OBJECT_BYTES_MAX)};
}

void content_writer_close(struct content_writer *w) {
        buf_free(&w->object);
        free(w->blocks);
        w->blocks = NULL;
        w->n = w->room = 0;
}

int content_writer_add(struct content_writer *w, const struct digest *hash, uint32_t raw_bytes, uint8_t encoding, const void *stored, size_t n) {
        int r;

        assert(n > 0 && n <= BLOCK_BYTES_MAX);
        for (size_t i = 0; i < w->n; i++)
                if (digest_equal(&w->blocks[i].hash, hash))
                        return 0;
        if (w->n > 0 && w->object.bytes + n > BATCH_BYTES_MAX) {
                r = content_writer_flush(w);
                if (r < 0)
                        return r;
        }
        if (w->n == w->room) {
                size_t room = w->room ? w->room * 2 : 32;
                void *p = reallocarray(w->blocks, room, sizeof *w->blocks);

                if (!p)
                        return -ENOMEM;
                w->blocks = p;
                w->room = room;
        }
        w->blocks[w->n] = (struct meta_block){.hash = *hash, .raw_bytes = raw_bytes, .encoding = encoding, .offset = w->object.bytes, .stored_bytes = (uint32_t)n};
        r = buf_add(&w->object, stored, n);
        if (r < 0)
                return r;
        w->n++;
        return 0;
}

/* Takes the blocks that are here already out of the batch; claims all. */
static int writer_ask(struct content_writer *w) {
        _cleanup_free_ struct digest *hashes = reallocarray(NULL, w->n, sizeof *hashes);
        _cleanup_free_ bool *missing = calloc(w->n, sizeof *missing);
        size_t kept = 0, bytes = 0;
        int r;

        if (!hashes || !missing)
                return -ENOMEM;
        for (size_t i = 0; i < w->n; i++)
                hashes[i] = w->blocks[i].hash;
        r = meta_blocks_missing(w->s->meta, w->who, w->ws, w->session, hashes, w->n, missing);
        if (r < 0)
                return r;
        for (size_t i = 0; i < w->n; i++) {
                struct meta_block b = w->blocks[i];

                if (!missing[i]) {
                        counter_add(w->s->counters, blocks_deduplicated, 1);
                        continue;
                }
                memmove(w->object.data + bytes, w->object.data + b.offset, b.stored_bytes);
                b.offset = bytes;
                bytes += b.stored_bytes;
                w->blocks[kept++] = b;
        }
        w->n = kept;
        w->object.bytes = bytes;
        return 0;
}

int content_writer_flush(struct content_writer *w) {
        char name[STORE_NAME_BYTES + 1];
        struct store *store = w->s->store;
        struct service_object busy;
        int r;

        if (w->n > 0 && !w->known_missing) {
                r = writer_ask(w);
                if (r < 0)
                        return r;
        }
        if (w->n == 0)
                return 0;
        if (reserve_tight(w->s->reserve))
                return -ENOSPC;
        store_name_new(w->s->rng, name);
        service_object_begin(w->s, &busy, name);
        r = store->put(store, name, w->object.data, w->object.bytes);
        if (r < 0) {
                service_object_end(w->s, &busy);
                return r;
        }
        r = meta_blocks_record(w->s->meta, w->who, w->ws, w->session, name, w->object.bytes, w->blocks, w->n);
        if (r < 0 && r != -EIO) { /* after a failed sync nobody knows whether the rows are there: gc will see */
                int q = store->remove(store, name);

                if (q < 0)
                        log_warn("event=object_left object=%s error=%s", name, err_name(q));
        }
        service_object_end(w->s, &busy);
        if (r < 0)
                return r;
        w->stored_bytes += w->object.bytes;
        w->n = 0;
        buf_reset(&w->object);
        return 0;
}
