/* SPDX-License-Identifier: Apache-2.0 */
/* room.c: the hard limit. At every moment
 *
 *      clean + dirty + max(reserve, books + half the reserve)  <=  min(limit, what the free-space floor allows)
 *
 * clean   what blocks take, as allocated: whole 4 KiB pages of data and of sums; a page shared by two blocks counts twice; pages of pack segments that were
 *         written and not punched since, used or not; 8 KiB for each sparse file (first page of sums, one leaf of extents). An upper bound of st_blocks.
 * dirty   what the stages asked for
 * books   SQLite files (index, tree, their logs), measured, because SQLite decides about them
 * reserve 3 % of the limit, at least 8 MiB (at most half the limit): growth of the books between two measurements (their logs are
 *         bounded), directories, extent leaves of fragmented segments
 *
 * Who writes takes first; if there is not enough it evicts and asks again (blob_room.c). Room is given back after the bytes have left the disk, never before:
 * du -s cannot see more than the limit. The floor is measured every 16 MiB taken, and more often near it, by bytes and not by time: nothing changes the account but bytes. */
#include "room.h"

#include <assert.h>
#include <errno.h>

void room_init(struct room *r, uint64_t limit, uint64_t floor) {
        *r = (struct room){ .limit = limit, .floor = floor, .floor_limit = UINT64_MAX, .since_measure = ROOM_MEASURE_BYTES };
        lock_init(&r->lock, "room", RANK_ROOM);
}

void room_destroy(struct room *r) {
        lock_destroy(&r->lock);
}

static uint64_t reserve_locked(const struct room *r) {
        uint64_t reserve = MAX(r->limit / 100 * 3, ROOM_RESERVE_MIN);
        return MIN(reserve, r->limit / 2);
}

static uint64_t used_locked(const struct room *r) {
        uint64_t reserve = reserve_locked(r);
        return r->clean + r->dirty + MAX(reserve, r->books + reserve / 2);
}

static uint64_t allowed_locked(const struct room *r) {
        return MIN(r->limit, r->floor_limit);
}

int room_take(struct room *r, uint64_t n, bool is_dirty) {
        LOCK_SCOPE(&r->lock);
        uint64_t used = used_locked(r), allowed = allowed_locked(r);
        if (used > allowed || n > allowed - used)
                return -ENOSPC;
        *(is_dirty ? &r->dirty : &r->clean) += n;
        r->since_measure += n;
        return 0;
}

void room_add(struct room *r, uint64_t n, bool is_dirty) {
        LOCK_SCOPE(&r->lock);
        *(is_dirty ? &r->dirty : &r->clean) += n;
        r->since_measure += n;
}

void room_give(struct room *r, uint64_t n, bool is_dirty) {
        LOCK_SCOPE(&r->lock);
        uint64_t *account = is_dirty ? &r->dirty : &r->clean;
        assert(*account >= n);
        *account -= n;
}

uint64_t room_short(struct room *r, uint64_t n) {
        LOCK_SCOPE(&r->lock);
        uint64_t wanted = used_locked(r) + n, allowed = allowed_locked(r);
        return wanted > allowed ? wanted - allowed : 0;
}

bool room_over(struct room *r) {
        return room_short(r, 0) > 0;
}

bool room_wants_measure(struct room *r) {
        LOCK_SCOPE(&r->lock);
        /* A small limit must be watched more closely than every 16 MiB, and so must the floor when it is near. */
        uint64_t every = MIN(ROOM_MEASURE_BYTES, r->limit / 16), used = used_locked(r);
        if (r->floor_limit != UINT64_MAX)
                every = MIN(every, MAX(r->floor_limit > used ? (r->floor_limit - used) / 4 : 0, ROOM_MEASURE_MIN));
        if (r->since_measure < every)
                return false;
        r->since_measure = 0;
        return true;
}

void room_measured(struct room *r, uint64_t books_bytes, uint64_t disk_free_bytes) {
        LOCK_SCOPE(&r->lock);
        r->books = books_bytes;
        if (r->floor == 0) {
                r->floor_limit = UINT64_MAX;
                return;
        }
        /* Measured against what is counted: everything that is free above the floor may be added to it. */
        uint64_t used = used_locked(r);
        if (disk_free_bytes >= r->floor)
                r->floor_limit = used + (disk_free_bytes - r->floor);
        else
                r->floor_limit = used > r->floor - disk_free_bytes ? used - (r->floor - disk_free_bytes) : 0;
}

void room_set_limit(struct room *r, uint64_t limit) {
        LOCK_SCOPE(&r->lock);
        r->limit = limit;
}

void room_totals(struct room *r, struct room_totals *ret) {
        LOCK_SCOPE(&r->lock);
        *ret = (struct room_totals){ .used = r->clean + r->dirty + r->books, .limit = r->limit, .dirty = r->dirty };
}
