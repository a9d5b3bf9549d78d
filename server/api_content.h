/* SPDX-License-Identifier: Apache-2.0 */
/* api_content.h: blocks and contents between metadata and object store: the only way that stored bytes leave the server, always through a check of
 * their SHA-256. One thread per object; the service may be shared. */
#pragma once
#include "api/wire.h"
#include "api_call.h"
#include "base/blocklist.h"

/* Reads the block at `place` and checks its hash. raw (at least BLOCK_BYTES_MAX) gets the expanded bytes. If stored is not NULL it (BLOCK_BYTES_MAX) is used
 * for compressed bytes, and ret_wire tells what may be sent as it is stored. -EBADMSG: damaged (logged and counted); -ENOENT: the object is gone. */
int content_block_read(struct service *s, const struct meta_place *place, uint8_t *raw, uint8_t *stored, struct wire_block *ret_wire) _must_check_;

/* Walks one content by byte ranges without loading its whole list: keeps one page per level. */
struct content_walk {
        struct service *s;
        struct meta_subject who;
        uint64_t ws;
        struct content content;
        struct arena *arena;             /* its own, small, reset per look-up */
        struct walk_level { struct list_page *page; struct digest hash; uint64_t start; } level[4]; /* [d]: page of level d + 1 */
        uint8_t *page_bytes;             /* LIST_PAGE_BYTES_MAX ... BLOCK_BYTES_MAX scratch, allocated when first needed */
        int (*on_page)(struct content_walk *w, const struct digest *hash, const struct meta_place *place, const void *bytes, size_t n); /* NULL fine: each page fetched */
        void *arg;
};
int content_walk_open(struct service *s, const struct meta_subject *who, uint64_t ws, const struct content *content, struct content_walk *ret) _must_check_;
void content_walk_close(struct content_walk *w);
/* The block that holds byte `off` (< size) and where it starts. -ENODATA: a page is not here; -EBADMSG: the tree of pages is damaged. */
int content_walk_find(struct content_walk *w, uint64_t off, struct blockref *ret, uint64_t *ret_start) _must_check_;
/* Where the lowest page used last ends (depth > 0, after a find): always beyond the offset that was found. */
uint64_t content_walk_page_end(const struct content_walk *w);
/* Where one block lies; -ENODATA if it is not readable here. The place borrows from the walk's arena until the next call. */
int content_walk_place(struct content_walk *w, const struct digest *hash, struct meta_place *ret) _must_check_;

/* page_get for meta: list pages by hash, for one subject and workspace. */
struct content_pages { struct page_get get; struct content_walk walk; uint8_t *bytes; };
int content_pages_open(struct service *s, const struct meta_subject *who, uint64_t ws, struct content_pages *ret) _must_check_;
void content_pages_close(struct content_pages *p);

/* Writes blocks: collects up to a batch, asks which are missing, stores those as one object and records them. */
struct content_writer {
        struct service *s;
        const struct meta_subject *who;
        uint64_t ws;
        const struct id *session;        /* NULL: ordinary claims */
        struct buf object;               /* bytes of the blocks collected */
        struct meta_block *blocks; size_t n, room;
        bool known_missing;              /* the client asked before: do not ask again */
        uint64_t stored_bytes;
};
void content_writer_init(struct content_writer *w, struct service *s, const struct meta_subject *who, uint64_t ws, const struct id *session);
void content_writer_close(struct content_writer *w);
/* hash is of the raw bytes and has been checked; stored: the bytes as they are to be kept. Flushes when the batch is full. */
int content_writer_add(struct content_writer *w, const struct digest *hash, uint32_t raw_bytes, uint8_t encoding, const void *stored, size_t n) _must_check_;
int content_writer_flush(struct content_writer *w) _must_check_; /* durable and recorded when it returns 0; -EDQUOT, -EACCES, -ENOSPC */
