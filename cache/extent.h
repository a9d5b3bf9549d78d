/* SPDX-License-Identifier: Apache-2.0 */
/* extent.h: which byte ranges of a file a stage holds, and where. Pure memory; the owner's lock guards it. */
#pragma once
#include "base/cleanup.h"
#include "base/model.h"

#define EXTENT_LEAF 64u
#define EXTENTS_MAX (4u << 20)   /* of one map */
#define EXTENT_PAGE 4096u

enum extent_kind {
        EXTENT_DATA = 1, /* bytes on this disk: in the stage's own file at `at` (where NULL), or in a segment at `at` */
        EXTENT_ZERO = 2, /* reads as zeros */
        EXTENT_SENT = 3, /* a part of a block that the server holds: where = struct sent_block, at = offset in it */
};
struct extent {
        uint64_t off, bytes; /* bytes > 0 */
        uint64_t at;
        void *where;
        enum extent_kind kind;
};
struct extent_leaf { uint32_t n; struct extent e[EXTENT_LEAF]; };
struct extents {
        struct extent_leaf **leaf; size_t n_leaves, room;
        struct extent_leaf *spare[2]; /* so that put and cut cannot fail after extents_reserve */
        size_t n;
};

void extents_free(struct extents *m);   /* the struct can be used again */
/* Makes the next extents_put or extents_cut infallible. -ENOMEM, -EFBIG. */
int extents_reserve(struct extents *m) _must_check_;
/* Sets a range; what it covers of older extents goes. Merges with neighbours that go on in the same place. */
void extents_put(struct extents *m, const struct extent *e);
void extents_cut(struct extents *m, uint64_t off, uint64_t bytes); /* the range is no longer in the map */
/* First extent that ends after off (it may begin after off). False: none. */
bool extents_find(const struct extents *m, uint64_t off, struct extent *ret);
/* Calls each for the extents that intersect [off, off + bytes), unclipped, in order; stops at non-zero, which is returned. */
int extents_each(const struct extents *m, uint64_t off, uint64_t bytes, int (*each)(void *arg, const struct extent *e), void *arg);
/* Every DATA extent is now in the stage's own file at its own offset. */
void extents_rehome(struct extents *m);
/* Pages of EXTENT_PAGE bytes that DATA extents touch inside the page-aligned hull of [off, off + bytes). */
uint64_t extents_pages(const struct extents *m, uint64_t off, uint64_t bytes);
