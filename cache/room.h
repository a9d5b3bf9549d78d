/* SPDX-License-Identifier: Apache-2.0 */
/* room.h: the one account of everything that the cache has on disk. Takes before a write, gives back after a punch. Own lock, a leaf; any thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/lock.h"

#define RANK_ROOM (RANK_LRU + 2)
#define ROOM_PAGE 4096u
#define ROOM_RESERVE_MIN (UINT64_C(8) << 20)
#define ROOM_MEASURE_BYTES (UINT64_C(16) << 20)
#define ROOM_MEASURE_MIN (UINT64_C(256) << 10)

struct room {
        struct lock lock;
        uint64_t limit, floor;         /* lock: bytes of everything; bytes that must stay free on the file system */
        uint64_t clean, dirty;         /* lock: blocks, sums and allocated pack pages; stages */
        uint64_t books;                /* lock: index and other SQLite files as last measured */
        uint64_t floor_limit;          /* lock: what `floor` allowed at the last measurement */
        uint64_t since_measure;        /* lock: bytes taken since then */
};
void room_init(struct room *r, uint64_t limit, uint64_t floor);
void room_destroy(struct room *r);
/* 0: n bytes are taken. -ENOSPC: evict first. */
int room_take(struct room *r, uint64_t n, bool is_dirty) _must_check_;
/* Bytes that are on disk already: never refused. */
void room_add(struct room *r, uint64_t n, bool is_dirty);
void room_give(struct room *r, uint64_t n, bool is_dirty);
bool room_over(struct room *r);        /* more is used than allowed: evict */
uint64_t room_short(struct room *r, uint64_t n); /* how much must go before n more bytes may come */
bool room_wants_measure(struct room *r); /* true once per ROOM_MEASURE_BYTES taken: the caller measures */
void room_measured(struct room *r, uint64_t books_bytes, uint64_t disk_free_bytes);
void room_set_limit(struct room *r, uint64_t limit);
struct room_totals { uint64_t used, limit, dirty; };
void room_totals(struct room *r, struct room_totals *ret);
