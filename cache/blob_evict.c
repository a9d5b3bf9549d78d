/* SPDX-License-Identifier: Apache-2.0 */
/* blob_evict.c: room, index writes, scrub.
 *
 * Who wants to write asks blobs_make_room first; if the account is full, free pages of the pack are punched, then blocks are evicted in batches:
 *
 *   1. take victims out of the LRU; under the blob's lock: PRESENT -> BUSY if nobody has it pinned, no waiting read covers it and no pending edit stands on it (stage_needs.c), else it goes back as the
 *      newest. If nothing else is left and the server can be asked, those of pending edits go too
 *   2. one index transaction with every dirty row (blobs_flush): the disk's index does not name the blocks any more
 *   3. punch or free, give the room back, BUSY -> 0
 *
 * So no row ever points to bytes that were given away, and space is used again only after the transaction that freed it. If the index cannot be written (no space at
 * all), step 3 goes on all the same: eviction must work at zero free bytes, and the keyed sums prove stale rows wrong. A batch is at least 1/32 of the limit (8 MiB
 * at most), so that a stream through a full cache costs one small transaction for every few blocks. Several threads may evict at the same time: a victim
 * belongs to who took it out of the LRU.
 *
 * blobs_flush holds the index lock from before the rows are copied until they are committed, so that rows reach the index in the order in which they were true. */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/digest.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"
#include "blob_priv.h"

#define VICTIMS_MAX 128u
#define SHED_BYTES (UINT64_C(1) << 20)
#define TIGHT_LOOK_BYTES (UINT64_C(64) << 20) /* more than rows take between two measurements, once a second */
#define EVICT_BATCH_MAX (UINT64_C(8) << 20)

struct victim { struct blob *blob; uint32_t index; };

/* ---- index ---- */

/* Copies what the row needs under the blob's lock. */
static int row_of(struct blob *blob, struct blob_row *ret, bool *ret_any) {
        size_t n = blob->list.n;
        *ret = (struct blob_row){ .id = blob->id, .content = blob->content };
        ret->state = calloc(1, n + 1);
        ret->place = blob->place ? malloc((n + 1) * sizeof *ret->place) : NULL;
        if (!ret->state || (blob->place && !ret->place))
                return -ENOMEM;
        LOCK_SCOPE(&blob->lock);
        ret->file = blob->file;
        for (size_t i = 0; i < n; i++) {
                if (blob->state[i] & BS_PRESENT)
                        ret->state[i] = ROW_PRESENT | (blob->state[i] & BS_CHECKED ? ROW_CHECKED : 0);
                if (blob->place)
                        ret->place[i] = blob->place[i];
        }
        *ret_any = blob->n_present > 0;
        return 0;
}

static int save_row(struct blobs *b, struct blob *blob, bool *ret_list_saved) {
        struct blob_row row;
        bool any = false;
        int r = row_of(blob, &row, &any);
        if (r == 0 && any) {
                row.list = blob->list; /* borrowed: never changes while the reference is held */
                row.list_saved = blob->list_saved;
                r = blob_index_save(b->index, &row);
        } else if (r == 0) {
                r = blob_index_remove(b->index, blob->id);
        }
        *ret_list_saved = any;
        free(row.state);
        free(row.place);
        return r;
}

int blobs_flush(struct blobs *b) {
        _cleanup_free_ struct blob **all = NULL; /* a blob may become dirty and be chained anew while we are at it: no walking of the chain */
        _cleanup_free_ bool *saved = NULL;
        size_t n = 0;
        int r = 0;
        {
                /* Also when nothing is dirty: a row of ours may be in another thread's transaction, which must be over. */
                LOCK_SCOPE(&b->index_lock);
                for (size_t room = 0;;) {
                        {
                                LOCK_SCOPE(&b->table_lock);
                                for (; b->n_dirty <= room && b->dirty; n++) {
                                        all[n] = b->dirty;
                                        b->dirty = all[n]->dirty_next;
                                        all[n]->dirty = false;
                                }
                                if (!b->dirty) {
                                        b->n_dirty = 0;
                                        break;
                                }
                                room = b->n_dirty + 32;
                        }
                        free(all);
                        free(saved);
                        all = reallocarray(NULL, room, sizeof *all);
                        saved = calloc(room, sizeof *saved);
                        if (!all || !saved)
                                return -ENOMEM;
                }
                if (n > 0 && b->index) {
                        r = blob_index_begin(b->index);
                        for (size_t i = 0; r == 0 && i < n; i++)
                                r = save_row(b, all[i], &saved[i]);
                        if (r == 0)
                                r = blob_index_commit(b->index);
                        else
                                blob_index_rollback(b->index);
                        counter_add(b->counters, sql_transactions, 1);
                        counter_add(b->counters, index_flushes, 1);
                        for (size_t i = 0; r == 0 && i < n; i++)
                                all[i]->list_saved = saved[i];
                        if (r == -EBADMSG) {
                                log_debug("blobs: index damaged while writing dir=%s", b->dir);
                                blob_index_abandon(steal_ptr(b->index));
                                counter_add(b->counters, corruptions_found, 1);
                        }
                }
        }
        for (size_t i = 0; i < n; i++) {
                bool kept = false;
                if (r < 0 && r != -EBADMSG) { /* failed rows try again with the next flush */
                        LOCK_SCOPE(&b->table_lock);
                        if (!all[i]->dirty) {
                                all[i]->dirty = kept = true; /* the reference stays with the list */
                                all[i]->dirty_next = b->dirty;
                                b->dirty = all[i];
                                b->n_dirty++;
                        }
                }
                if (!kept)
                        blob_put(all[i]);
        }
        blobs_measure(b);
        return r;
}

int blobs_sync(struct blobs *b) {
        int r = blobs_flush(b);
        size_t n;
        uint64_t touches;
        {
                LOCK_SCOPE(&b->lru_lock);
                n = lru_count(b->lru);
                touches = b->touches;
        }
        _cleanup_free_ struct lru_block *order = reallocarray(NULL, n + 1, sizeof *order);
        _cleanup_free_ bool *is_protected = reallocarray(NULL, n + 1, sizeof *is_protected);
        if (!order || !is_protected)
                return -ENOMEM;
        {
                LOCK_SCOPE(&b->index_lock);
                if (b->order_touches == touches || !b->index)
                        return r;
                {
                        LOCK_SCOPE(&b->lru_lock);
                        n = lru_order(b->lru, order, is_protected, n);
                }
                int w = blob_index_begin(b->index);
                if (w == 0)
                        w = blob_index_save_order(b->index, order, is_protected, n);
                if (w == 0)
                        w = blob_index_commit(b->index);
                else
                        blob_index_rollback(b->index);
                if (w == 0) {
                        b->order_touches = touches;
                        w = blob_index_trim(b->index);
                }
                if (r == 0)
                        r = w;
        }
        blobs_measure(b);
        return r;
}

/* ---- room ---- */

/* SQLite decides how large its files are: look. Everything in the top directory with .db in its name, the tree's files too. */
static uint64_t books_bytes(struct blobs *b) {
        uint64_t bytes = 0;
        int fd = openat(b->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *d = fd < 0 ? NULL : fdopendir(fd);
        if (!d) {
                if (fd >= 0)
                        (void)close(fd);
                return 0;
        }
        for (struct dirent *e; (e = readdir(d));) {
                struct stat st;
                if (strstr(e->d_name, ".db") && fstatat(b->dir_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
                        bytes += (uint64_t)st.st_blocks * 512;
        }
        (void)closedir(d);
        return bytes;
}

void blobs_measure(struct blobs *b) {
        uint64_t free_bytes = UINT64_MAX / 2;
        (void)(disk_free(b->dir_fd, &free_bytes) < 0); /* then only the limit counts */
        atomic_store(&b->disk_free, free_bytes);
        room_measured(&b->room, books_bytes(b), free_bytes);
}

void blobs_room_freed(struct blobs *b) {
        if (b->on_room)
                b->on_room(b->on_room_arg);
}

static int by_value(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
        return x < y ? -1 : x > y;
}

int blobs_keep(struct blobs *b, const uint64_t *roots, size_t n) {
        uint64_t *v = n ? reallocarray(NULL, n, sizeof *v) : NULL;
        if (n && !v)
                return -ENOMEM;
        if (n) {
                memcpy(v, roots, n * sizeof *v);
                qsort(v, n, sizeof *v, by_value);
        }
        LOCK_SCOPE(&b->lru_lock);
        free(b->keep);
        b->keep = v;
        b->n_keep = n;
        return 0;
}

static bool is_kept_locked(struct blobs *b, const struct content *content) {
        uint64_t root;
        memcpy(&root, content->root.b, sizeof root);
        return b->n_keep > 0 && bsearch(&root, b->keep, b->n_keep, sizeof root, by_value);
}

/* No lock held. look NULL: nobody needs anything. */
static bool is_needed(struct blobs *b, struct blob *blob, size_t i, void *look) {
        if (!look)
                return false;
        {
                LOCK_SCOPE(&blob->lock);
                if (!blob->list_known || i >= blob->list.n)
                        return false;
        }
        return b->needs.need(look, &blob->content, blob->starts[i - MIN(i, (size_t)NEEDS_BEHIND)], blob->starts[i], blob->starts[i + 1]);
}

static uint64_t evict_batch(struct blobs *b, uint64_t want, void *look) {
        struct victim victims[VICTIMS_MAX];
        size_t n = 0, left;
        uint64_t got = 0;
        {
                LOCK_SCOPE(&b->lru_lock);
                left = lru_count(b->lru);
        }
        for (; n < VICTIMS_MAX && got < want && left > 0; left--) {
                struct lru_block key;
                {
                        LOCK_SCOPE(&b->lru_lock);
                        if (!lru_take(b->lru, &key))
                                break;
                }
                struct blob *blob = blob_by_id(b, key.blob);
                if (!blob)
                        continue; /* its row is lost: the next open finds the space */
                bool taken = false, needed = is_needed(b, blob, key.index, look);
                {
                        LOCK_SCOPE(&blob->lock);
                        size_t i = key.index;
                        if (blob->list_known && i < blob->list.n && blob->state[i] & BS_PRESENT) {
                                bool kept;
                                {
                                        LOCK_SCOPE(&b->lru_lock);
                                        kept = is_kept_locked(b, &blob->content);
                                }
                                if (blob->pins[i] == 0 && !kept && !needed && !block_wanted_locked(blob, i)) {
                                        block_state_locked(blob, i, BS_PRESENT | BS_CHECKED, BS_BUSY);
                                        got += block_charge(blob, i);
                                        taken = true;
                                }
                                LOCK_SCOPE(&b->lru_lock);
                                lru_remove(b->lru, key); /* it may have come back since */
                                if (!taken && lru_reserve(b->lru) == 0)
                                        lru_add(b->lru, key, block_hash32(blob, i), (uint32_t)block_charge(blob, i));
                        }
                }
                if (taken)
                        victims[n++] = (struct victim){ blob, key.index };
                else
                        blob_put(blob);
        }
        for (size_t i = 0; i < n; i++)
                blob_mark_dirty(victims[i].blob);
        if (n > 0) {
                FAILPOINT_HERE("evict.index");
                (void)(blobs_flush(b) < 0); /* see above */
                FAILPOINT_HERE("evict.punch");
        }
        for (size_t i = 0; i < n; i++) {
                block_release(victims[i].blob, victims[i].index);
                blob_put(victims[i].blob);
        }
        counter_add(b->counters, cache_evicted_blocks, n);
        return got;
}

/* Until `want` bytes went or nothing can. */
static uint64_t evict(struct blobs *b, uint64_t want) {
        uint64_t got = 0, more = 1;
        void *look = b->needs.look ? b->needs.look(b->needs.look_arg) : NULL;
        bool blind = b->needs.look && !look;
        while (got < want && more > 0 && !blind) {
                more = evict_batch(b, want - got, look);
                if (more == 0 && look && b->needs.may_fetch(b->needs.fetch_arg)) {
                        b->needs.end(steal_ptr(look));
                        more = evict_batch(b, want - got, NULL);
                }
                got += more;
        }
        if (look)
                b->needs.end(look);
        return got;
}

void blobs_set_needs(struct blobs *b, const struct blobs_needs *needs) {
        b->needs = *needs;
}

uint64_t blobs_evict(struct blobs *b, uint64_t want) {
        struct room_totals totals;
        room_totals(&b->room, &totals);
        uint64_t batch = MIN(totals.limit / 32, EVICT_BATCH_MAX);
        return evict(b, MAX(want, batch));
}

int blobs_make_room(struct blobs *b, uint64_t n, bool is_dirty) {
        bool evicted = false, looked = false;
        for (;;) {
                if (room_wants_measure(&b->room))
                        blobs_measure(b);
                if (room_take(&b->room, n, is_dirty) == 0)
                        break;
                uint64_t want = MAX(room_short(&b->room, n), UINT64_C(1));
                if (pack_trim(b->pack, want) > 0)
                        continue;
                if (blobs_evict(b, want) > 0) {
                        evicted = true;
                        continue;
                }
                if (looked) /* somebody else may have freed some of the disk */
                        return -ENOSPC;
                blobs_measure(b);
                looked = true;
        }
        if (evicted && !is_dirty)
                blobs_room_freed(b);
        return 0;
}

int blobs_charge(struct blobs *b, uint64_t n) {
        return blobs_make_room(b, n, true);
}

void blobs_charge_found(struct blobs *b, uint64_t n) {
        room_add(&b->room, n, true);
}

void blobs_discharge(struct blobs *b, uint64_t n) {
        room_give(&b->room, n, true);
        blobs_room_freed(b);
}

int blobs_set_limit(struct blobs *b, uint64_t limit_bytes) {
        room_set_limit(&b->room, limit_bytes);
        blobs_measure(b);
        int r = blobs_make_room(b, 0, false);
        blobs_room_freed(b);
        return r;
}

bool blobs_tight(struct blobs *b) {
        uint64_t free_bytes;
        if (b->reserve == 0 || atomic_load(&b->disk_free) > b->reserve + TIGHT_LOOK_BYTES || disk_free(b->dir_fd, &free_bytes) < 0)
                return false;
        atomic_store(&b->disk_free, free_bytes);
        return free_bytes < b->reserve / 2;
}

bool blobs_shed(struct blobs *b) {
        bool some = pack_trim(b->pack, SHED_BYTES) > 0 || blobs_evict(b, SHED_BYTES) > 0;
        if (some)
                blobs_room_freed(b);
        return some;
}

int blobs_evict_all(struct blobs *b) {
        (void)evict(b, UINT64_MAX);
        (void)pack_trim(b->pack, UINT64_MAX);
        blobs_measure(b);
        blobs_room_freed(b);
        return 0;
}

int blobs_file_take(struct blobs *b, int *ret_fd, char *ret_path, size_t n) {
        return blob_files_lend(b->files, ret_fd, ret_path, n);
}

int blobs_file_return(struct blobs *b, const char *path) {
        return blob_files_unlend(b->files, path);
}

void blobs_drop_hint(struct blobs *b, const struct content *content) {
        _cleanup_blob_ struct blob *blob = content->size > 0 ? blob_if_known(b, content) : NULL;
        if (!blob)
                return;
        LOCK_SCOPE(&blob->lock);
        LOCK_SCOPE(&b->lru_lock);
        for (size_t i = 0; blob->list_known && i < blob->list.n; i++)
                if (blob->state[i] & BS_PRESENT)
                        lru_demote(b->lru, (struct lru_block){ blob->id, (uint32_t)i });
}

/* ---- scrub ---- */

static uint64_t number_of(struct lru_block key) {
        return (uint64_t)key.blob << 32 | key.index;
}

static int scrub_block(struct blobs *b, struct lru_block key, bool unchecked, uint8_t *buf, struct blobs_scrub *s, uint64_t *ret_bytes) {
        *ret_bytes = 0;
        if (s->stop && atomic_load(s->stop))
                return -ECANCELED;
        _cleanup_blob_ struct blob *blob = blob_by_id(b, key.blob);
        size_t i = key.index;
        if (!blob)
                return 0;
        bool pinned = false, bad = false;
        {
                LOCK_SCOPE(&blob->lock);
                if (blob->list_known && i < blob->list.n && blob->state[i] & BS_PRESENT && blob->pins[i] < UINT16_MAX && !(unchecked && blob->state[i] & BS_CHECKED)) {
                        blob->pins[i]++;
                        pinned = true;
                }
        }
        if (!pinned)
                return 0;
        const struct blockref *ref = &blob->list.refs[i];
        struct digest got;
        int r = block_read(blob, i, 0, ref->bytes, buf);
        if (r == 0)
                sha256(buf, ref->bytes, &got);
        atomic_fetch_add(&s->checked, 1);
        if (r == -EBADMSG || (r == 0 && !digest_equal(&got, &ref->hash))) {
                atomic_fetch_add(&s->bad, 1);
                bad = true;
                block_damaged(blob, i);
        }
        uint64_t off = blob->starts[i], bytes = ref->bytes;
        *ret_bytes = bytes;
        blocks_unpin(blob, i, i);
        if (bad && s->heal_ms > 0 && blob_pread_exact(blob, off, buf, bytes, clock_mono_ms(b->clock) + s->heal_ms) == (ssize_t)bytes)
                atomic_fetch_add(&s->healed, 1);
        return 0;
}

static int all_blocks(struct blobs *b, struct lru_block **ret, size_t *ret_n) {
        size_t n;
        {
                LOCK_SCOPE(&b->lru_lock);
                n = lru_count(b->lru);
        }
        _cleanup_free_ struct lru_block *all = reallocarray(NULL, n + 1, sizeof *all);
        _cleanup_free_ bool *is_protected = reallocarray(NULL, n + 1, sizeof *is_protected);
        if (!all || !is_protected)
                return -ENOMEM;
        LOCK_SCOPE(&b->lru_lock);
        *ret_n = lru_order(b->lru, all, is_protected, n);
        *ret = steal_ptr(all);
        return 0;
}

int blobs_scrub(struct blobs *b, struct blobs_scrub *s) {
        _cleanup_free_ struct lru_block *all = NULL;
        _cleanup_free_ uint8_t *buf = malloc(BLOCK_BYTES_MAX);
        size_t n;
        int r = buf ? all_blocks(b, &all, &n) : -ENOMEM;
        uint64_t bytes;
        for (size_t k = 0; r == 0 && k < n; k++)
                r = scrub_block(b, all[k], false, buf, s, &bytes);
        return r;
}

int blobs_scrub_block(struct blobs *b, uint64_t number, bool unchecked, struct blobs_scrub *s, uint64_t *ret_bytes) {
        _cleanup_free_ uint8_t *buf = malloc(BLOCK_BYTES_MAX);
        return buf ? scrub_block(b, (struct lru_block){ (uint32_t)(number >> 32), (uint32_t)number }, unchecked, buf, s, ret_bytes) : -ENOMEM;
}

int blobs_blocks_after(struct blobs *b, uint64_t after, uint64_t *ret, size_t max, size_t *ret_n, uint64_t *ret_left) {
        _cleanup_free_ struct lru_block *all = NULL;
        size_t n, left = 0;
        int r = all_blocks(b, &all, &n);
        if (r < 0)
                return r;
        _cleanup_free_ uint64_t *v = reallocarray(NULL, n + 1, sizeof *v);
        if (!v)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                if (number_of(all[i]) > after)
                        v[left++] = number_of(all[i]);
        if (left)
                qsort(v, left, sizeof *v, by_value);
        *ret_n = MIN(left, max);
        *ret_left = left;
        memcpy(ret, v, *ret_n * sizeof *v);
        return 0;
}
