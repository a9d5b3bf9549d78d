/* SPDX-License-Identifier: Apache-2.0 */
/* lru.c: segmented LRU over blocks (Karedla, Love, Wherry: "Caching strategies to improve disk system performance", 1994).
 *
 * Why segmented: one `grep -r` or one copy of a large tree reads everything once, and a plain LRU would throw the working set out for it. So a block starts in the
 * *probation* list; its first use only moves it to the newest end there; the second use, which shows that it is read again, moves it to the *protected* list. The
 * protected list holds at most 4/5 of the bytes; what falls out of it gets one more round in probation. Victims come from probation's oldest end, then from
 * protected's. The caller reports one touch per visit to a block, not per read call (blob_read.c keeps the last block of each blob), so that reading a
 * block in 128 KiB pieces counts as one use. Cost over plain LRU: one bit and one comparison.
 *
 *   state        left by
 *   probation    touch: USED set, to the newest end; touch with USED: to protected; take; remove
 *   protected    touch: to the newest end; overflow: to probation's newest end; take; remove
 *
 * Memory: nodes live in one array and name each other by number; two chained hash tables of numbers find a block by (blob, index), and by the first 4 bytes of its
 * SHA-256 (for reuse across versions; a false match is found out by comparing the whole hash in the blob's list). 32 bytes per node and 8 per bucket; 512,000
 * blocks (256 GiB of large files) take 20 MiB.
 *
 * Node 0 and 1 are the heads of the two lists: next = newest, prev = oldest. Free nodes are chained through next. */
#include "lru.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_PROBATION = 0, HEAD_PROTECTED = 1, NODE_FIRST = 2 };
enum { FLAG_PROTECTED = 1, FLAG_USED = 2 };
#define NONE UINT32_MAX

struct node {
        uint32_t prev, next;     /* list; next alone: free chain */
        uint32_t key_next, hash_next; /* chains of the tables */
        uint32_t blob, index;
        uint32_t hash32;
        uint16_t units;          /* 4 KiB on disk */
        uint8_t flags;
};
static_assert(sizeof(struct node) == 32, "32 bytes for each block");

struct lru {
        struct node *nodes;
        uint32_t n_nodes, room;  /* used part of the array (heads and free ones included), allocated */
        uint32_t free_first;
        uint32_t *by_key, *by_hash;
        uint32_t buckets;        /* power of two */
        size_t count;
        uint64_t units[2];       /* sum in each list */
};

static uint32_t key_bucket(const struct lru *l, uint32_t blob, uint32_t index) {
        uint64_t h = ((uint64_t)blob << 32 | index) * UINT64_C(0x9e3779b97f4a7c15);
        return (uint32_t)(h >> 32) & (l->buckets - 1);
}

static uint32_t hash_bucket(const struct lru *l, uint32_t hash32) {
        return hash32 & (l->buckets - 1);
}

int lru_new(struct lru **ret) {
        struct lru *l = calloc(1, sizeof *l);
        if (!l)
                return -ENOMEM;
        l->buckets = 1024;
        l->room = 1024;
        l->nodes = calloc(l->room, sizeof *l->nodes);
        l->by_key = malloc(l->buckets * sizeof *l->by_key);
        l->by_hash = malloc(l->buckets * sizeof *l->by_hash);
        if (!l->nodes || !l->by_key || !l->by_hash) {
                lru_free(l);
                return -ENOMEM;
        }
        memset(l->by_key, 0xff, l->buckets * sizeof *l->by_key);
        memset(l->by_hash, 0xff, l->buckets * sizeof *l->by_hash);
        for (uint32_t i = 0; i < NODE_FIRST; i++)
                l->nodes[i].prev = l->nodes[i].next = i;
        l->n_nodes = NODE_FIRST;
        l->free_first = NONE;
        *ret = l;
        return 0;
}

void lru_free(struct lru *l) {
        if (!l)
                return;
        free(l->nodes);
        free(l->by_key);
        free(l->by_hash);
        free(l);
}

size_t lru_count(const struct lru *l) {
        return l->count;
}

static void tables_add(struct lru *l, uint32_t i) {
        struct node *n = &l->nodes[i];
        uint32_t k = key_bucket(l, n->blob, n->index), h = hash_bucket(l, n->hash32);
        n->key_next = l->by_key[k];
        l->by_key[k] = i;
        n->hash_next = l->by_hash[h];
        l->by_hash[h] = i;
}

static int tables_grow(struct lru *l) {
        uint32_t buckets = l->buckets * 2;
        uint32_t *by_key = malloc(buckets * sizeof *by_key), *by_hash = malloc(buckets * sizeof *by_hash);
        if (!by_key || !by_hash) {
                free(by_key);
                free(by_hash);
                return -ENOMEM;
        }
        memset(by_key, 0xff, buckets * sizeof *by_key);
        memset(by_hash, 0xff, buckets * sizeof *by_hash);
        free(l->by_key);
        free(l->by_hash);
        l->by_key = by_key;
        l->by_hash = by_hash;
        l->buckets = buckets;
        for (int head = HEAD_PROBATION; head <= HEAD_PROTECTED; head++)
                for (uint32_t i = l->nodes[head].prev; i >= NODE_FIRST; i = l->nodes[i].prev)
                        tables_add(l, i);
        return 0;
}

int lru_reserve(struct lru *l) {
        if (l->count >= l->buckets && l->buckets < UINT32_C(1) << 30) {
                int r = tables_grow(l);
                if (r < 0)
                        return r;
        }
        if (l->free_first != NONE || l->n_nodes < l->room)
                return 0;
        if (l->room >= UINT32_C(1) << 30)
                return -ENOMEM;
        struct node *nodes = reallocarray(l->nodes, (size_t)l->room * 2, sizeof *nodes);
        if (!nodes)
                return -ENOMEM;
        l->nodes = nodes;
        l->room *= 2;
        return 0;
}

static uint32_t find(const struct lru *l, struct lru_block b) {
        uint32_t i = l->by_key[key_bucket(l, b.blob, b.index)];
        while (i != NONE && (l->nodes[i].blob != b.blob || l->nodes[i].index != b.index))
                i = l->nodes[i].key_next;
        return i;
}

static void list_unlink(struct lru *l, uint32_t i) {
        struct node *n = &l->nodes[i];
        l->nodes[n->prev].next = n->next;
        l->nodes[n->next].prev = n->prev;
        l->units[n->flags & FLAG_PROTECTED] -= n->units;
}

static void list_newest(struct lru *l, uint32_t i, int head) {
        struct node *n = &l->nodes[i];
        n->flags = (uint8_t)((n->flags & ~FLAG_PROTECTED) | (head == HEAD_PROTECTED ? FLAG_PROTECTED : 0));
        n->prev = (uint32_t)head;
        n->next = l->nodes[head].next;
        l->nodes[n->next].prev = i;
        l->nodes[head].next = i;
        l->units[head] += n->units;
}

static void list_oldest(struct lru *l, uint32_t i, int head) {
        struct node *n = &l->nodes[i];
        n->flags = (uint8_t)((n->flags & ~FLAG_PROTECTED) | (head == HEAD_PROTECTED ? FLAG_PROTECTED : 0));
        n->next = (uint32_t)head;
        n->prev = l->nodes[head].prev;
        l->nodes[n->prev].next = i;
        l->nodes[head].prev = i;
        l->units[head] += n->units;
}

void lru_add(struct lru *l, struct lru_block b, uint32_t hash32, uint32_t bytes) {
        assert(find(l, b) == NONE);
        uint32_t i = l->free_first;
        if (i != NONE) {
                l->free_first = l->nodes[i].next;
        } else {
                assert(l->n_nodes < l->room);
                i = l->n_nodes++;
        }
        uint32_t units = (bytes + 4095) / 4096;
        l->nodes[i] = (struct node){ .blob = b.blob, .index = b.index, .hash32 = hash32, .units = (uint16_t)MIN(units, (uint32_t)UINT16_MAX) };
        list_newest(l, i, HEAD_PROBATION);
        tables_add(l, i);
        l->count++;
}

static void drop(struct lru *l, uint32_t i) {
        struct node *n = &l->nodes[i];
        list_unlink(l, i);
        uint32_t *at = &l->by_key[key_bucket(l, n->blob, n->index)];
        while (*at != i)
                at = &l->nodes[*at].key_next;
        *at = n->key_next;
        at = &l->by_hash[hash_bucket(l, n->hash32)];
        while (*at != i)
                at = &l->nodes[*at].hash_next;
        *at = n->hash_next;
        n->next = l->free_first;
        l->free_first = i;
        l->count--;
}

void lru_remove(struct lru *l, struct lru_block b) {
        uint32_t i = find(l, b);
        if (i != NONE)
                drop(l, i);
}

/* What is over the protected list's share goes back for one more round. */
static void balance(struct lru *l) {
        while (l->units[HEAD_PROTECTED] > (l->units[HEAD_PROBATION] + l->units[HEAD_PROTECTED]) / 5 * 4) {
                uint32_t oldest = l->nodes[HEAD_PROTECTED].prev;
                if (oldest < NODE_FIRST || oldest == l->nodes[HEAD_PROTECTED].next)
                        break;
                list_unlink(l, oldest);
                list_newest(l, oldest, HEAD_PROBATION);
        }
}

void lru_touch(struct lru *l, struct lru_block b) {
        uint32_t i = find(l, b);
        if (i == NONE)
                return;
        struct node *n = &l->nodes[i];
        bool again = n->flags & (FLAG_USED | FLAG_PROTECTED);
        list_unlink(l, i);
        n->flags |= FLAG_USED;
        list_newest(l, i, again ? HEAD_PROTECTED : HEAD_PROBATION);
        if (again)
                balance(l);
}

void lru_demote(struct lru *l, struct lru_block b) {
        uint32_t i = find(l, b);
        if (i == NONE)
                return;
        list_unlink(l, i);
        l->nodes[i].flags = 0;
        list_oldest(l, i, HEAD_PROBATION);
}

bool lru_take(struct lru *l, struct lru_block *ret) {
        uint32_t i = l->nodes[HEAD_PROBATION].prev;
        if (i < NODE_FIRST)
                i = l->nodes[HEAD_PROTECTED].prev;
        if (i < NODE_FIRST)
                return false;
        *ret = (struct lru_block){ l->nodes[i].blob, l->nodes[i].index };
        drop(l, i);
        return true;
}

size_t lru_find(const struct lru *l, uint32_t hash32, struct lru_block *ret, size_t max) {
        size_t n = 0;
        for (uint32_t i = l->by_hash[hash_bucket(l, hash32)]; i != NONE && n < max; i = l->nodes[i].hash_next)
                if (l->nodes[i].hash32 == hash32)
                        ret[n++] = (struct lru_block){ l->nodes[i].blob, l->nodes[i].index };
        return n;
}

size_t lru_order(const struct lru *l, struct lru_block *ret, bool *ret_protected, size_t max) {
        size_t n = 0;
        for (int head = HEAD_PROBATION; head <= HEAD_PROTECTED; head++)
                for (uint32_t i = l->nodes[head].prev; i >= NODE_FIRST && n < max; i = l->nodes[i].prev) {
                        ret[n] = (struct lru_block){ l->nodes[i].blob, l->nodes[i].index };
                        ret_protected[n++] = head == HEAD_PROTECTED;
                }
        return n;
}

void lru_restore(struct lru *l, struct lru_block b, bool is_protected) {
        uint32_t i = find(l, b);
        if (i == NONE)
                return;
        list_unlink(l, i);
        l->nodes[i].flags |= FLAG_USED;
        list_oldest(l, i, is_protected ? HEAD_PROTECTED : HEAD_PROBATION);
}

void lru_check(const struct lru *l) {
        size_t n = 0;
        for (int head = HEAD_PROBATION; head <= HEAD_PROTECTED; head++) {
                uint64_t units = 0;
                for (uint32_t i = l->nodes[head].next; i >= NODE_FIRST; i = l->nodes[i].next, n++) {
                        units += l->nodes[i].units;
                        assert((l->nodes[i].flags & FLAG_PROTECTED ? HEAD_PROTECTED : HEAD_PROBATION) == head);
                        assert(l->nodes[l->nodes[i].next].prev == i);
                        assert(find(l, (struct lru_block){ l->nodes[i].blob, l->nodes[i].index }) == i);
                }
                assert(units == l->units[head]);
        }
        assert(n == l->count);
}
