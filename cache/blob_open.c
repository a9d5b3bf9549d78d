/* SPDX-License-Identifier: Apache-2.0 */
/* blob_open.c: opening and closing.
 *
 * Open: the index is read once, row by row. A row claims its sparse file or its pack pages and puts its blocks into the LRU; one that contradicts the disk is
 * dropped; what no row claims is free (files are emptied, pages are known to be free but allocated, ranges of a sparse file that no present block covers are punched).
 * So after kill -9 the index may lack the last seconds, and that is all: states are written after the bytes, and erased before the bytes go.
 *
 * An index that cannot be read to its end is moved aside, and everything starts empty: it is only a cache. Close: the waiting thread ends first (every fetch was cancelled
 * by the owner and is waited for), then rows and LRU order are written, then the table is emptied; every reference was put before.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "blob_priv.h"

/* What a sparse file holds beyond the present blocks goes; blocks' own pages stay. Errors only leave bytes that the next open sees again. */
static void punch_absent(struct blobs *b, struct blob *blob) {
        struct stat st;
        uint64_t charge = FILE_CHARGE, data = 0;
        for (size_t i = 0; i < blob->list.n; i++)
                if (blob->state[i] & BS_PRESENT) {
                        charge += block_charge(blob, i);
                        data += blob->list.refs[i].bytes;
                }
        room_add(&b->room, charge, false);
        if (blob_fds(blob) < 0 || fstat(blob->data_fd, &st) < 0)
                return;
        if ((uint64_t)st.st_size != blob->content.size && ftruncate(blob->data_fd, (off_t)blob->content.size) < 0)
                return;
        if ((uint64_t)st.st_blocks * 512 <= data)
                return;
        uint64_t at = 0, sums_at = 0;
        for (size_t i = 0; i <= blob->list.n; i++) {
                if (i < blob->list.n && !(blob->state[i] & BS_PRESENT))
                        continue;
                uint64_t upto = (blob->content.size + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE, sums_upto = UINT64_C(1) << 40, sums_end = 0;
                if (i < blob->list.n) {
                        block_sums_range(blob, i, &sums_upto, &sums_end);
                        upto = blob->starts[i] / ROOM_PAGE * ROOM_PAGE;
                        sums_upto = sums_upto / ROOM_PAGE * ROOM_PAGE;
                }
                if (upto > at)
                        (void)fallocate(blob->data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(upto - at));
                if (sums_upto > sums_at)
                        (void)fallocate(blob->sums_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)sums_at, (off_t)(sums_upto - sums_at));
                if (i < blob->list.n) {
                        at = (blob->starts[i + 1] + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE;
                        sums_at = (sums_end + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE;
                }
        }
}

/* Claims what the row says; false: it contradicts the disk or another row. */
static bool row_keep(void *arg, struct blob_row *row) {
        struct blobs *b = arg;
        size_t n = row->list.n, present = 0;
        bool small = row->content.size < PACK_CONTENT_MAX;
        if (small != (row->file == 0))
                return false;
        if (!small && !blob_files_claim(b->files, row->file))
                return false;
        for (size_t i = 0; i < n; i++) {
                if (!(row->state[i] & ROW_PRESENT))
                        continue;
                if (small && !pack_claim(b->pack, row->place[i], block_pages(row->list.refs[i].bytes))) {
                        while (i-- > 0) /* all or nothing: a row in memory is believed when it frees its pages */
                                if (row->state[i] & ROW_PRESENT)
                                        pack_free(b->pack, row->place[i], block_pages(row->list.refs[i].bytes));
                        return false;
                }
                present++;
        }
        for (size_t i = 0; i < n; i++) {
                if (!(row->state[i] & ROW_PRESENT))
                        continue;
                uint32_t hash32;
                memcpy(&hash32, row->list.refs[i].hash.b, sizeof hash32);
                if (lru_reserve(b->lru) == 0) /* without memory it stays until the next open, unevictable */
                        lru_add(b->lru, (struct lru_block){ row->id, (uint32_t)i }, hash32, row->list.refs[i].bytes);
        }
        if (present == 0)
                return false;
        atomic_fetch_add(&b->n_blobs, 1);
        if (!small) {
                struct blob *blob;
                struct content content = row->content;
                if (blob_new(b, &content, row, &blob) == 0) {
                        punch_absent(b, blob);
                        blob_free(blob);
                }
        }
        return true;
}

static void order_each(void *arg, struct lru_block block, bool is_protected) {
        struct blobs *b = arg;
        lru_restore(b->lru, block, is_protected);
}

/* Everything that is filled by one reading of the index. */
static int load(struct blobs *b, const struct blobs_config *c, bool *ret_lost) {
        bool lost;
        uint32_t id_max = 0;
        int r = blob_index_open(c->dir, c->new_boot, &b->index, &lost);
        if (r < 0)
                return r;
        r = pack_open(c->dir, &b->room, &b->pack);
        if (r == 0)
                r = blob_files_open(c->dir, &b->files);
        if (r == 0)
                r = lru_new(&b->lru);
        if (r == 0)
                r = blob_index_scan(b->index, row_keep, b, &id_max);
        if (r == 0)
                r = blob_index_load_order(b->index, order_each, b);
        b->next_id = id_max + 1;
        *ret_lost = lost;
        return r;
}

static void unload(struct blobs *b) {
        lru_free(b->lru);
        pack_close(b->pack);
        blob_files_close(b->files);
        blob_index_close(b->index);
        b->lru = NULL;
        b->pack = NULL;
        b->files = NULL;
        b->index = NULL;
}

static void blobs_free(struct blobs *b) {
        unload(b);
        room_destroy(&b->room);
        lock_destroy(&b->index_lock);
        lock_destroy(&b->table_lock);
        lock_destroy(&b->lru_lock);
        lock_destroy(&b->wait_lock);
        cond_destroy(&b->wait_more);
        cond_destroy(&b->wait_idle);
        (void)pthread_rwlock_destroy(&b->punch);
        if (b->dir_fd >= 0)
                (void)close(b->dir_fd);
        free(b->dir);
        free(b->keep);
        free(b);
}

int blobs_open(const struct blobs_config *c, struct blobs **ret) {
        struct blobs *b = calloc(1, sizeof *b);
        if (!b)
                return -ENOMEM;
        b->clock = c->clock;
        b->counters = c->counters;
        b->workers = c->workers;
        b->by_hand = c->by_hand;
        b->reserve = c->reserve_bytes;
        atomic_init(&b->disk_free, 0);
        atomic_init(&b->source, c->source);
        b->next_deadline_ms = b->flush_at_ms = INT64_MAX;
        lock_init(&b->index_lock, "blob index", RANK_BLOB_INDEX);
        lock_init(&b->table_lock, "blob table", RANK_BLOB_TABLE);
        lock_init(&b->lru_lock, "lru", RANK_LRU);
        lock_init(&b->wait_lock, "blob wait", RANK_BLOB_WAIT);
        cond_init(&b->wait_more);
        cond_init(&b->wait_idle);
        pthread_rwlockattr_t attr;
        (void)pthread_rwlockattr_init(&attr);
        (void)pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
        (void)pthread_rwlock_init(&b->punch, &attr);
        (void)pthread_rwlockattr_destroy(&attr);
        room_init(&b->room, c->limit_bytes, MAX(c->free_floor_bytes, c->reserve_bytes));
        b->dir = strdup(c->dir);
        b->dir_fd = open(c->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        bool lost = false;
        int r = !b->dir ? -ENOMEM : b->dir_fd < 0 ? -errno : load(b, c, &lost);
        if (r == -EBADMSG && b->index) { /* opened, but a page was damaged: start with an empty one */
                blob_index_abandon(steal_ptr(b->index));
                unload(b);
                atomic_store(&b->n_blobs, 0);
                room_destroy(&b->room);
                room_init(&b->room, c->limit_bytes, MAX(c->free_floor_bytes, c->reserve_bytes));
                r = load(b, c, &lost);
                lost = true;
        }
        if (r == 0)
                r = blob_files_settle(b->files);
        if (r == 0)
                r = pack_settle(b->pack);
        if (r == 0)
                r = wait_start(b);
        if (r < 0) {
                blobs_free(b);
                return r;
        }
        if (lost) {
                log_debug("blobs: index lost, cache starts empty dir=%s", c->dir);
                counter_add(b->counters, corruptions_found, 1);
        }
        blobs_measure(b);
        if (room_over(&b->room))
                (void)(blobs_make_room(b, 0, false) < 0); /* what remains is pinned or dirty */
        *ret = b;
        return 0;
}

void blobs_close(struct blobs *b) {
        if (!b)
                return;
        atomic_store(&b->source, NULL);
        wait_stop(b);
        if (blobs_sync(b) < 0 && blobs_sync(b) < 0)
                log_debug("blobs: index not written at close dir=%s", b->dir);
        blobs_forget_idle(b);
        for (size_t i = 0; i < TABLE_BUCKETS; i++)
                assert(!b->by_id[i]); /* every reference was put */
        blobs_free(b);
}
