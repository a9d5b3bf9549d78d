/* SPDX-License-Identifier: Apache-2.0 */
/* lru.h: which cached block goes first, and which blobs may hold a block of a given hash. One node of 32 bytes per block on disk, no pointers.
 * Not locked: the caller's lock (RANK_LRU) guards every call. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct lru;
struct lru_block { uint32_t blob, index; }; /* a block: id of its blob, number in its list */

int lru_new(struct lru **ret) _must_check_;
void lru_free(struct lru *l);
/* Makes room for one more node, so that the lru_add after it cannot fail. -ENOMEM. */
int lru_reserve(struct lru *l) _must_check_;
/* Puts a block that is not there yet at the newest end of the first part (lru_reserve came before). hash32: first bytes of its SHA-256. bytes: what it takes on disk. */
void lru_add(struct lru *l, struct lru_block b, uint32_t hash32, uint32_t bytes);
void lru_remove(struct lru *l, struct lru_block b);        /* not there: nothing */
void lru_touch(struct lru *l, struct lru_block b);         /* used */
void lru_demote(struct lru *l, struct lru_block b);        /* the first to go */
/* Takes the block that goes first out of the list. false: empty. */
bool lru_take(struct lru *l, struct lru_block *ret);
/* Blocks whose hash starts with hash32, in no order, at most max. */
size_t lru_find(const struct lru *l, uint32_t hash32, struct lru_block *ret, size_t max);
size_t lru_count(const struct lru *l);
/* Order, the first to go first: fills up to max, returns the count. ret_protected[i] tells the part (see lru.c). */
size_t lru_order(const struct lru *l, struct lru_block *ret, bool *ret_protected, size_t max);
/* Restores one entry of a saved order; called from the last to go to the first. Unknown blocks are ignored. */
void lru_restore(struct lru *l, struct lru_block b, bool is_protected);
/* Test: asserts that lists, tables and sums agree. */
void lru_check(const struct lru *l);
