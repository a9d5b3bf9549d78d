/* SPDX-License-Identifier: Apache-2.0 */
/* blocklist.h: the list of a content's blocks and its tree of list pages. A page is: 8 bytes "tarnlst1", u8 level (1 = references
 * to data blocks, 2 = to level-1 pages, ...), u8 param, u16 LE count, u32 zero, then count x { 32 bytes SHA-256, u64 LE bytes of
 * content below }. Full pages hold LIST_FANOUT references; only the last page of a level is shorter. A page is named by the SHA-256
 * of its bytes and stored and sent as a block. Pure functions over memory; any thread. */
#pragma once
#include "base/buf.h"
#include "base/model.h"

#define LIST_PAGE_BYTES_MAX (16u + LIST_FANOUT * 40u)

struct blocklist {
        struct blockref *refs; size_t n, room;
        uint64_t size;      /* sum of refs' bytes */
        uint8_t param;
};
void blocklist_free(struct blocklist *l);   /* frees refs, resets; NULL fine */
int blocklist_add(struct blocklist *l, const struct blockref *ref) _must_check_;  /* -ENOMEM, -EFBIG */
/* Index of the block that holds `off` and its start; off < size. Cost: binary search needs offsets, so linear unless `starts`
 * (n + 1 prefix sums made by blocklist_starts) is given. */
int blocklist_starts(const struct blocklist *l, uint64_t **ret) _must_check_;
size_t blocklist_find(const uint64_t *starts, size_t n, uint64_t off);

/* Computes the content identity. If sink is not NULL it gets every list page (child pages before parents). A sink's error is returned. */
struct page_sink { int (*page)(struct page_sink *s, const struct digest *hash, const void *bytes, size_t n, uint8_t level); };
int blocklist_content(const struct blocklist *l, struct page_sink *sink, struct content *ret) _must_check_;

/* One page, checked (-EBADMSG on any irregularity). refs: caller's array of LIST_FANOUT; for level >= 2 `bytes64` has the sizes. */
struct list_page { uint8_t level, param; size_t n; struct digest hash[LIST_FANOUT]; uint64_t bytes[LIST_FANOUT]; };
int list_page_parse(const void *p, size_t n, struct list_page *ret) _must_check_;

/* Rebuilds the flat list of `content`, asking `get` for pages by hash (-ENODATA if it has not got one, passed on). Checks levels, sizes, sums
 * (-EBADMSG). depth 0 needs no page. max_refs bounds memory (-EFBIG). */
struct page_get { int (*page)(struct page_get *g, const struct digest *hash, const void **ret_bytes, size_t *ret_n); };
int blocklist_load(const struct content *content, struct page_get *get, size_t max_refs, struct blocklist *ret) _must_check_;
