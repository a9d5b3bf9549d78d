/* SPDX-License-Identifier: Apache-2.0 */
/* blob_store.c: one block on disk: writing, verified reading, checking, giving back.
 *
 * A block's sums count from the block's start, not from the file's, because blocks are cut by content and begin anywhere: so blocks are written, checked and dropped
 * independently though they share pages at their edges. Sum of piece k = XXH3-64(bytes) ^ key(hash, k): keyed with the block's own hash, the sums of a place
 * prove that it holds *this* block. A stale index row, a reused slot, a hole, or a file mixed up with another can never pass.
 *
 *   home     bytes                            sums
 *   pack     extent + 0                       extent + bytes rounded up to 8; small blocks are read with their sums in one call
 *   sparse   offset in the content            N.sums, 8 * (start / 4096 + number): room for ceil(bytes / 4096) each, without overlap
 *
 * Reading: one preadv of the pieces that cover the range (the head and tail that were not asked for go to the stack), the sums, compare. A block that is not CHECKED
 * (adopted from a stage, or written before this boot) is read whole, compared with its SHA-256, and gets its sums then.
 *
 * Giving back: pages that no other present or busy block overlaps are punched, under `punch` alone, so that nobody writes into a shared page in between; the
 * neighbours' states are read under the blob's lock, which is dropped before the system call. The last block gives the whole file back to the pool. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/digest.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "blob_priv.h"

#define PIECES_MAX 256u /* verified in one go: 1 MiB */

uint32_t block_hash32(const struct blob *blob, size_t i) {
        uint32_t h;
        memcpy(&h, blob->list.refs[i].hash.b, sizeof h);
        return h;
}

static struct lru_block lru_key(const struct blob *blob, size_t i) {
        return (struct lru_block){ blob->id, (uint32_t)i };
}

void block_state_locked(struct blob *blob, size_t i, uint8_t clear, uint8_t set) {
        if (set & BS_BUSY)
                clear |= BS_COLD;
        uint8_t before = blob->state[i], after = (uint8_t)((before & ~clear) | set);
        blob->state[i] = after;
        if ((before ^ after) & BS_PRESENT) {
                if (after & BS_PRESENT) {
                        if (blob->n_present++ == 0)
                                atomic_fetch_add(&blob->owner->n_blobs, 1);
                } else if (--blob->n_present == 0) {
                        atomic_fetch_sub(&blob->owner->n_blobs, 1);
                }
        }
        if ((before ^ after) & BS_BUSY) {
                if (after & BS_BUSY)
                        blob->n_busy++;
                else
                        blob->n_busy--;
        }
}

static uint32_t pieces_of(uint32_t bytes) {
        return (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
}

static uint32_t pack_sums_offset(uint32_t bytes) {
        return (bytes + 7) / 8 * 8;
}

unsigned block_pages(uint32_t bytes) {
        return (pack_sums_offset(bytes) + pieces_of(bytes) * 8 + PACK_PAGE - 1) / PACK_PAGE;
}

static uint64_t file_sums_offset(const struct blob *blob, size_t i) {
        return 8 * (blob->starts[i] / PIECE_BYTES + i);
}

void block_sums_range(const struct blob *blob, size_t i, uint64_t *ret_start, uint64_t *ret_end) {
        *ret_start = file_sums_offset(blob, i);
        *ret_end = *ret_start + pieces_of(blob->list.refs[i].bytes) * 8;
}

static uint64_t piece_key(const struct digest *hash, uint32_t k) {
        uint64_t key;
        memcpy(&key, hash->b, sizeof key);
        return key + (k + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

static uint64_t pages_touched(uint64_t off, uint64_t n) {
        return n == 0 ? 0 : (off + n - 1) / ROOM_PAGE - off / ROOM_PAGE + 1;
}

uint64_t block_charge(const struct blob *blob, size_t i) {
        uint32_t bytes = blob->list.refs[i].bytes;
        if (blob->place)
                return (uint64_t)block_pages(bytes) * PACK_PAGE;
        return (pages_touched(blob->starts[i], bytes) + pages_touched(file_sums_offset(blob, i), pieces_of(bytes) * 8)) * ROOM_PAGE;
}

int blob_fds(struct blob *blob) {
        uint32_t number;
        {
                LOCK_SCOPE(&blob->lock);
                if (blob->data_fd >= 0)
                        return 0;
                number = blob->file;
        }
        if (number == 0)
                return -ENOENT;
        int data_fd, sums_fd;
        int r = blob_files_fds(blob->owner->files, number, &data_fd, &sums_fd);
        if (r < 0)
                return r;
        lock_take(&blob->lock);
        bool mine = blob->data_fd < 0 && blob->file == number;
        if (mine) {
                blob->data_fd = data_fd;
                blob->sums_fd = sums_fd;
        }
        bool have = blob->data_fd >= 0;
        lock_drop(&blob->lock);
        if (!mine) {
                (void)close(data_fd);
                (void)close(sums_fd);
        }
        return have ? 0 : -ENOENT;
}

/* ---- blocks in memory ---- */

struct held *held_find_locked(struct blob *blob, const struct digest *hash) {
        struct held *h = blob->held;
        while (h && !digest_equal(&h->hash, hash))
                h = h->next;
        return h;
}

int held_add_locked(struct blob *blob, const struct digest *hash, uint32_t index, const void *p, size_t n) {
        struct blobs *b = blob->owner;
        if (atomic_fetch_add(&b->held_bytes, n) + n > HELD_BYTES_MAX) {
                atomic_fetch_sub(&b->held_bytes, n);
                return -ENOSPC;
        }
        struct held *h = malloc(sizeof *h + n);
        if (!h) {
                atomic_fetch_sub(&b->held_bytes, n);
                return -ENOMEM;
        }
        h->hash = *hash;
        h->index = index;
        h->bytes = (uint32_t)n;
        memcpy(h->data, p, n);
        h->next = blob->held;
        blob->held = h;
        blob->n_held++;
        return 0;
}

static void held_free_at(struct blob *blob, struct held **at) {
        struct held *h = *at;
        *at = h->next;
        blob->n_held--;
        atomic_fetch_sub(&blob->owner->held_bytes, h->bytes);
        free(h);
}

void held_trim_locked(struct blob *blob) {
        for (struct held **at = &blob->held; *at;) {
                uint32_t i = (*at)->index;
                if (i == HELD_UNPLACED ? !blob->list_known : blob->pins[i] > 0 || block_wanted_locked(blob, i)) {
                        at = &(*at)->next;
                } else {
                        if (i != HELD_UNPLACED)
                                block_state_locked(blob, i, BS_MEM, 0);
                        held_free_at(blob, at);
                }
        }
}

void held_drop_all_locked(struct blob *blob) {
        while (blob->held)
                held_free_at(blob, &blob->held);
}

bool block_wanted_locked(const struct blob *blob, size_t i) {
        for (const struct blob_read *r = blob->waiters; r; r = r->next)
                if (r->off < blob->starts[i + 1] && r->off + r->n > blob->starts[i])
                        return true;
        return false;
}

/* ---- reading ---- */

/* SHA-256 of the whole block, then fresh sums. Bytes go to `buf`. */
static int check_whole(struct blob *blob, size_t i, uint8_t *buf) {
        struct blobs *b = blob->owner;
        const struct blockref *ref = &blob->list.refs[i];
        uint64_t sums[BLOCK_BYTES_MAX / PIECE_BYTES];
        uint32_t pieces = pieces_of(ref->bytes);
        struct iovec iov = { buf, ref->bytes };
        int r = blob->place ? pack_read(b->pack, blob->place[i], 0, &iov, 1) : pread_full(blob->data_fd, buf, ref->bytes, blob->starts[i]);
        if (r < 0)
                return r;
        struct digest got;
        sha256(buf, ref->bytes, &got);
        if (!digest_equal(&got, &ref->hash))
                return -EBADMSG;
        for (uint32_t k = 0; k < pieces; k++)
                sums[k] = xxh3_64(buf + (size_t)k * PIECE_BYTES, MIN(PIECE_BYTES, ref->bytes - k * PIECE_BYTES)) ^ piece_key(&ref->hash, k);
        iov = (struct iovec){ sums, pieces * 8 };
        r = blob->place ? pack_write(b->pack, blob->place[i], pack_sums_offset(ref->bytes), &iov, 1) : iov_write_full(blob->sums_fd, &iov, 1, file_sums_offset(blob, i));
        if (r < 0)
                return 0; /* bytes are right; without sums it stays unchecked */
        {
                LOCK_SCOPE(&blob->lock);
                if (blob->state[i] & BS_PRESENT)
                        block_state_locked(blob, i, 0, BS_CHECKED);
        }
        blob_mark_dirty(blob);
        return 0;
}

/* [off, off + n) of a checked block; n covers at most PIECES_MAX pieces. */
static int read_pieces(struct blob *blob, size_t i, uint32_t off, uint32_t n, uint8_t *buf) {
        struct blobs *b = blob->owner;
        const struct blockref *ref = &blob->list.refs[i];
        uint32_t first = off / PIECE_BYTES, last = (off + n - 1) / PIECE_BYTES;
        uint32_t start = first * PIECE_BYTES, end = MIN((last + 1) * PIECE_BYTES, ref->bytes);
        uint32_t head_n = off - start, tail_n = end - (off + n);
        uint8_t head[PIECE_BYTES], tail[PIECE_BYTES], pad[8];
        uint64_t sums[PIECES_MAX * 2 + 2];
        const uint64_t *sum = sums;
        struct iovec iov[5];
        int count = 0, r;
        if (head_n > 0)
                iov[count++] = (struct iovec){ head, head_n };
        iov[count++] = (struct iovec){ buf, n };
        if (tail_n > 0)
                iov[count++] = (struct iovec){ tail, tail_n };
        bool with_sums = blob->place && end == ref->bytes && last < ARRAY_SIZE(sums);
        if (with_sums) { /* the sums of all pieces follow the end */
                if (pack_sums_offset(end) > end)
                        iov[count++] = (struct iovec){ pad, pack_sums_offset(end) - end };
                iov[count++] = (struct iovec){ sums, (last + 1) * 8 };
                sum = sums + first;
        }
        r = blob->place ? pack_read(b->pack, blob->place[i], start, iov, count) : iov_read_full(blob->data_fd, iov, count, blob->starts[i] + start);
        if (r == 0 && !with_sums) {
                struct iovec one = { sums, (last - first + 1) * 8 };
                r = blob->place ? pack_read(b->pack, blob->place[i], pack_sums_offset(ref->bytes) + first * 8, &one, 1)
                                : iov_read_full(blob->sums_fd, &one, 1, file_sums_offset(blob, i) + first * 8);
        }
        if (r < 0)
                return r == -EIO ? -EBADMSG : r; /* unreadable or cut off: fetch it again */
        for (uint32_t k = first; k <= last; k++) {
                uint32_t at = k * PIECE_BYTES, piece_n = MIN(PIECE_BYTES, ref->bytes - at);
                const uint8_t *piece;
                uint8_t whole[PIECE_BYTES];
                if (at >= off && at + piece_n <= off + n) {
                        piece = buf + (at - off);
                } else { /* put together what lies before, in and after the buffer */
                        uint32_t before = at < off ? off - at : 0, behind = at + piece_n > off + n ? at + piece_n - (off + n) : 0;
                        memcpy(whole, head, before);
                        memcpy(whole + before, buf + (at + before - off), piece_n - before - behind);
                        memcpy(whole + piece_n - behind, tail, behind);
                        piece = whole;
                }
                if ((xxh3_64(piece, piece_n) ^ piece_key(&ref->hash, k)) != sum[k - first])
                        return -EBADMSG;
        }
        return 0;
}

int block_read(struct blob *blob, size_t i, uint32_t off, uint32_t n, void *buf) {
        const struct blockref *ref = &blob->list.refs[i];
        bool checked;
        {
                LOCK_SCOPE(&blob->lock);
                if (blob->state[i] & BS_MEM) {
                        for (struct held *h = blob->held; h; h = h->next)
                                if (h->index == i) {
                                        memcpy(buf, h->data + off, n);
                                        return 0;
                                }
                }
                checked = blob->state[i] & BS_CHECKED;
        }
        if (!blob->place) {
                int r = blob_fds(blob);
                if (r < 0)
                        return -EBADMSG; /* the file is not there: fetch it again */
        }
        if (!checked) {
                _cleanup_free_ uint8_t *whole = off == 0 && n == ref->bytes ? NULL : malloc(ref->bytes);
                if (!whole && !(off == 0 && n == ref->bytes))
                        return -ENOMEM;
                int r = check_whole(blob, i, whole ? whole : buf);
                if (r == 0 && whole)
                        memcpy(buf, whole + off, n);
                return r == -EIO ? -EBADMSG : r;
        }
        for (uint32_t done = 0; done < n;) {
                uint32_t at = off + done;
                uint32_t step = MIN(n - done, PIECES_MAX * PIECE_BYTES - at % PIECE_BYTES);
                int r = read_pieces(blob, i, at, step, (uint8_t *)buf + done);
                if (r < 0)
                        return r;
                done += step;
        }
        return 0;
}

/* ---- writing ---- */

static int file_ready(struct blob *blob) {
        struct blobs *b = blob->owner;
        bool have;
        {
                LOCK_SCOPE(&blob->lock);
                have = blob->file != 0;
        }
        if (have)
                return blob_fds(blob);
        int r = blobs_make_room(b, FILE_CHARGE, false);
        if (r < 0)
                return r;
        uint32_t number;
        int data_fd, sums_fd;
        bool recycled;
        r = blob_files_take(b->files, blob->content.size, &number, &data_fd, &sums_fd, &recycled);
        if (r < 0) {
                room_give(&b->room, FILE_CHARGE, false);
                return r;
        }
        if (recycled)
                counter_add(b->counters, cache_refills, 1);
        bool mine = false;
        {
                LOCK_SCOPE(&blob->lock);
                if (blob->file == 0) { /* the caller's claim keeps it from being given back */
                        blob->file = number;
                        blob->data_fd = data_fd;
                        blob->sums_fd = sums_fd;
                        mine = true;
                }
        }
        if (!mine) {
                blob_files_return(b->files, number, data_fd, sums_fd);
                room_give(&b->room, FILE_CHARGE, false);
        }
        return blob_fds(blob);
}

static int write_file(struct blob *blob, size_t i, const void *bytes, uint64_t *sums) {
        struct blobs *b = blob->owner;
        const struct blockref *ref = &blob->list.refs[i];
        struct iovec data = { (void *)(uintptr_t)bytes, ref->bytes }, sum = { sums, pieces_of(ref->bytes) * 8 };
        (void)pthread_rwlock_rdlock(&b->punch);
        int r = iov_write_full(blob->data_fd, &data, 1, blob->starts[i]);
        if (r == 0)
                r = iov_write_full(blob->sums_fd, &sum, 1, file_sums_offset(blob, i));
        (void)pthread_rwlock_unlock(&b->punch);
        return r;
}

static int extent_take(struct blobs *b, unsigned pages, uint32_t *ret_place) {
        for (;;) {
                if (pack_reuse(b->pack, pages, ret_place) == 0) {
                        counter_add(b->counters, cache_refills, 1);
                        return 0;
                }
                if (room_take(&b->room, (uint64_t)pages * PACK_PAGE, false) == 0) {
                        int r = pack_alloc(b->pack, pages, ret_place);
                        if (r < 0)
                                room_give(&b->room, (uint64_t)pages * PACK_PAGE, false);
                        return r;
                }
                /* Free pages in fragments too short: punched, they make room for an extent elsewhere. */
                if (pack_free_bytes(b->pack) >= (uint64_t)pages * PACK_PAGE * 2 && pack_trim(b->pack, (uint64_t)pages * PACK_PAGE) > 0)
                        continue;
                if (blobs_evict(b, (uint64_t)pages * PACK_PAGE) == 0 && pack_trim(b->pack, (uint64_t)pages * PACK_PAGE) == 0)
                        return -ENOSPC;
        }
}

/* Gives the room of a claimed block back: bytes leave the disk first. */
static void unstore(struct blob *blob, size_t i, uint32_t place) {
        struct blobs *b = blob->owner;
        if (blob->place) {
                pack_free(b->pack, place, block_pages(blob->list.refs[i].bytes));
                return;
        }
        uint64_t start = blob->starts[i], end = blob->starts[i + 1];
        uint64_t sums_start = file_sums_offset(blob, i), sums_end = sums_start + pieces_of(blob->list.refs[i].bytes) * 8;
        uint64_t a = start / ROOM_PAGE * ROOM_PAGE, z = (end + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE;
        uint64_t sums_a = sums_start / ROOM_PAGE * ROOM_PAGE, sums_z = (sums_end + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE;
        (void)pthread_rwlock_wrlock(&b->punch);
        int data_fd, sums_fd;
        {
                LOCK_SCOPE(&blob->lock);
                data_fd = blob->data_fd;
                sums_fd = blob->sums_fd;
                /* A page stays as long as another block that is there, or coming, overlaps it. */
                for (size_t k = i; k-- > 0 && (blob->starts[k + 1] > a || file_sums_offset(blob, k + 1) > sums_a);)
                        if (blob->state[k] & (BS_PRESENT | BS_BUSY)) {
                                if (blob->starts[k + 1] > a)
                                        a += ROOM_PAGE;
                                if (file_sums_offset(blob, k) + pieces_of(blob->list.refs[k].bytes) * 8 > sums_a)
                                        sums_a += ROOM_PAGE;
                                break; /* the next one that matters is nearer than all others */
                        }
                for (size_t k = i + 1; k < blob->list.n && (blob->starts[k] < z || file_sums_offset(blob, k) < sums_z); k++)
                        if (blob->state[k] & (BS_PRESENT | BS_BUSY)) {
                                if (blob->starts[k] < z)
                                        z -= ROOM_PAGE;
                                if (file_sums_offset(blob, k) < sums_z)
                                        sums_z -= ROOM_PAGE;
                                break;
                        }
        }
        if (data_fd >= 0 && a < z)
                (void)fallocate(data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)a, (off_t)(z - a));
        if (sums_fd >= 0 && sums_a < sums_z)
                (void)fallocate(sums_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)sums_a, (off_t)(sums_z - sums_a));
        (void)pthread_rwlock_unlock(&b->punch);
        room_give(&b->room, block_charge(blob, i), false);
}

/* The claim ends; the file goes back to the pool with its last block. */
static void unclaim(struct blob *blob, size_t i, uint8_t set) {
        struct blobs *b = blob->owner;
        uint32_t file = 0;
        int data_fd = -1, sums_fd = -1;
        bool wanted;
        {
                LOCK_SCOPE(&blob->lock);
                block_state_locked(blob, i, BS_BUSY | BS_DROP, set);
                if (blob->n_present == 0 && blob->n_busy == 0 && blob->file != 0) {
                        file = blob->file;
                        data_fd = blob->data_fd;
                        sums_fd = blob->sums_fd;
                        blob->file = 0;
                        blob->data_fd = blob->sums_fd = -1;
                }
                wanted = blob->waiters != NULL;
        }
        if (file != 0) {
                blob_files_return(b->files, file, data_fd, sums_fd);
                room_give(&b->room, FILE_CHARGE, false);
        }
        if (wanted)
                blob_kick(blob);
}

void block_release(struct blob *blob, size_t i) {
        uint32_t place = PACK_NOWHERE;
        if (blob->place) {
                LOCK_SCOPE(&blob->lock);
                place = blob->place[i];
                blob->place[i] = PACK_NOWHERE;
        } else {
                (void)(blob_fds(blob) < 0); /* then the file is gone, and there is nothing to punch */
        }
        unstore(blob, i, place);
        unclaim(blob, i, 0);
}

int block_store(struct blob *blob, size_t i, const void *bytes) {
        struct blobs *b = blob->owner;
        const struct blockref *ref = &blob->list.refs[i];
        uint64_t sums[BLOCK_BYTES_MAX / PIECE_BYTES];
        uint32_t pieces = pieces_of(ref->bytes), place = PACK_NOWHERE;
        FAILPOINT_HERE("block.store");
        for (uint32_t k = 0; k < pieces; k++)
                sums[k] = xxh3_64((const uint8_t *)bytes + (size_t)k * PIECE_BYTES, MIN(PIECE_BYTES, ref->bytes - k * PIECE_BYTES)) ^ piece_key(&ref->hash, k);
        int r = 0;
        for (int attempt = 0; attempt < 3; attempt++) { /* the disk itself may be full: evict and try again */
                bool taken = false;
                if (blob->place) {
                        r = extent_take(b, block_pages(ref->bytes), &place);
                        taken = r == 0;
                        static const uint8_t zeros[8];
                        struct iovec iov[3] = { { (void *)(uintptr_t)bytes, ref->bytes }, { (void *)(uintptr_t)zeros, pack_sums_offset(ref->bytes) - ref->bytes }, { sums, pieces * 8 } };
                        if (r == 0)
                                r = pack_write(b->pack, place, 0, iov, 3);
                } else {
                        r = file_ready(blob);
                        if (r == 0)
                                r = blobs_make_room(b, block_charge(blob, i), false);
                        taken = r == 0;
                        if (r == 0)
                                r = write_file(blob, i, bytes, sums);
                }
                if (r == 0)
                        break;
                if (taken)
                        unstore(blob, i, place);
                if (r != -ENOSPC || !taken || blobs_evict(b, ref->bytes) == 0)
                        break;
                (void)pack_trim(b->pack, ref->bytes);
        }
        bool healed = false, stored = r == 0;
        FAILPOINT_HERE("block.stored");
        if (stored) {
                LOCK_SCOPE(&blob->lock);
                {
                        LOCK_SCOPE(&b->lru_lock);
                        r = lru_reserve(b->lru);
                        if (r == 0)
                                lru_add(b->lru, lru_key(blob, i), block_hash32(blob, i), (uint32_t)block_charge(blob, i));
                        if (r == 0 && blob->state[i] & BS_COLD)
                                lru_demote(b->lru, lru_key(blob, i));
                }
                if (r == 0) {
                        if (blob->last_block == i && blob->state[i] & BS_COLD)
                                blob->last_block = UINT32_MAX; /* whoever uses it next warms it */
                        healed = blob->state[i] & BS_DAMAGED;
                        if (blob->place)
                                blob->place[i] = place;
                        block_state_locked(blob, i, BS_BUSY | BS_BAD | BS_DAMAGED | BS_MEM | BS_COLD, BS_PRESENT | BS_CHECKED);
                }
        }
        if (stored && r == 0) {
                if (healed)
                        counter_add(b->counters, corruptions_healed, 1);
                blob_mark_dirty(blob);
                return 0;
        }
        if (stored)
                unstore(blob, i, place);
        /* No room or a failing disk: readers get it from memory. */
        {
                LOCK_SCOPE(&blob->lock);
                if (block_wanted_locked(blob, i) && held_add_locked(blob, &ref->hash, (uint32_t)i, bytes, ref->bytes) == 0)
                        r = 0;
        }
        unclaim(blob, i, r == 0 ? BS_MEM : 0);
        return r;
}

/* ---- damage and pins ---- */

void block_damaged(struct blob *blob, size_t i) {
        struct blobs *b = blob->owner;
        LOCK_SCOPE(&blob->lock);
        assert(blob->pins[i] > 0);
        if (!(blob->state[i] & BS_PRESENT))
                return; /* another reader saw it too */
        counter_add(b->counters, corruptions_found, 1);
        block_state_locked(blob, i, BS_PRESENT | BS_CHECKED, BS_BUSY | BS_DROP | BS_DAMAGED);
        LOCK_SCOPE(&b->lru_lock);
        lru_remove(b->lru, lru_key(blob, i));
}

void blocks_unpin(struct blob *blob, size_t first, size_t last) {
        bool drop = false;
        {
                LOCK_SCOPE(&blob->lock);
                for (size_t i = first; i <= last; i++) {
                        assert(blob->pins[i] > 0);
                        if (--blob->pins[i] == 0 && blob->state[i] & BS_DROP)
                                drop = true;
                }
                if (blob->held)
                        held_trim_locked(blob);
        }
        for (size_t i = first; drop && i <= last; i++) {
                {
                        LOCK_SCOPE(&blob->lock);
                        if (!(blob->state[i] & BS_DROP) || blob->pins[i] > 0)
                                continue;
                        block_state_locked(blob, i, BS_DROP, 0); /* ours now; still BUSY */
                }
                blob_mark_dirty(blob);
                (void)(blobs_flush(blob->owner) < 0); /* then the row is stale, and keyed sums tell */
                block_release(blob, i);
        }
}

/* ---- the same block elsewhere ---- */

bool block_has_twin(struct blob *blob, size_t i) {
        struct blobs *b = blob->owner;
        struct lru_block found[4];
        LOCK_SCOPE(&b->lru_lock);
        return lru_find(b->lru, block_hash32(blob, i), found, ARRAY_SIZE(found)) > 0;
}

int blobs_find_block(struct blobs *b, const struct blockref *ref, void *buf) {
        struct lru_block found[4];
        uint32_t hash32;
        size_t n;
        memcpy(&hash32, ref->hash.b, sizeof hash32);
        {
                LOCK_SCOPE(&b->lru_lock);
                n = lru_find(b->lru, hash32, found, ARRAY_SIZE(found));
        }
        for (size_t k = 0; k < n; k++) {
                _cleanup_blob_ struct blob *blob = blob_by_id(b, found[k].blob);
                if (!blob)
                        continue;
                size_t i = found[k].index;
                bool pinned = false;
                {
                        LOCK_SCOPE(&blob->lock);
                        if (blob->list_known && i < blob->list.n && blob->list.refs[i].bytes == ref->bytes && digest_equal(&blob->list.refs[i].hash, &ref->hash) &&
                            blob->state[i] & BS_PRESENT && blob->pins[i] < UINT16_MAX) {
                                blob->pins[i]++;
                                pinned = true;
                        }
                }
                if (!pinned)
                        continue;
                int r = block_read(blob, i, 0, ref->bytes, buf);
                if (r == -EBADMSG)
                        block_damaged(blob, i);
                blocks_unpin(blob, i, i);
                if (r == 0)
                        return 0;
        }
        return -ENODATA;
}

int block_reuse(struct blob *blob, size_t i) {
        struct blobs *b = blob->owner;
        _cleanup_free_ uint8_t *buf = malloc(blob->list.refs[i].bytes);
        if (!buf || blobs_find_block(b, &blob->list.refs[i], buf) < 0)
                return -ENODATA;
        counter_add(b->counters, blocks_deduplicated, 1);
        return block_store(blob, i, buf);
}
