/* SPDX-License-Identifier: Apache-2.0 */
/* blob.c: the table of blobs in memory, opening and closing.
 *
 * A blob is in memory while somebody refers to it, while its row must be written, and for some time after (two idle lists: small contents cost a few hundred bytes,
 * large ones two descriptors). All others are rows of the index. A blob without a block on disk has no row: the list of a large content is asked for again together with
 * its first block, in the same request.
 *
 * Open: the index is read once, row by row. A row claims its sparse file or its pack pages and puts its blocks into the LRU; one that contradicts the disk is
 * dropped; what no row claims is free (files are emptied, pages are known to be free but allocated, ranges of a sparse file that no present block covers are punched).
 * So after kill -9 the index may lack the last seconds, and that is all: states are written after the bytes, and erased before the bytes go.
 *
 * References: blob_put decrements without the table lock unless it is the last one, so that nobody can find a blob that is being freed. */
#include "blob_priv.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"

static const size_t idle_max[2] = { 2048, 64 };

static uint32_t content_bucket(const struct content *c) {
        uint32_t h;
        memcpy(&h, c->root.b, sizeof h);
        return (h ^ (uint32_t)c->size * 2654435761u) % TABLE_BUCKETS;
}

static struct blob *find_locked(struct blobs *b, const struct content *content) {
        struct blob *blob = b->by_content[content_bucket(content)];
        while (blob && !content_equal(&blob->content, content))
                blob = blob->by_content;
        return blob;
}

static struct blob *find_id_locked(struct blobs *b, uint32_t id) {
        struct blob *blob = b->by_id[id % TABLE_BUCKETS];
        while (blob && blob->id != id)
                blob = blob->by_id;
        return blob;
}

static int idle_kind(const struct blob *blob) {
        return blob->content.size >= PACK_CONTENT_MAX;
}

static void idle_unlink_locked(struct blob *blob) {
        struct blobs *b = blob->owner;
        int kind = idle_kind(blob);
        *(blob->idle_prev ? &blob->idle_prev->idle_next : &b->idle_first[kind]) = blob->idle_next;
        *(blob->idle_next ? &blob->idle_next->idle_prev : &b->idle_last[kind]) = blob->idle_prev;
        blob->idle_prev = blob->idle_next = NULL;
        blob->idle = false;
        b->n_idle[kind]--;
}

static void idle_add_locked(struct blob *blob) {
        struct blobs *b = blob->owner;
        int kind = idle_kind(blob);
        blob->idle_prev = b->idle_last[kind];
        blob->idle_next = NULL;
        *(blob->idle_prev ? &blob->idle_prev->idle_next : &b->idle_first[kind]) = blob;
        b->idle_last[kind] = blob;
        blob->idle = true;
        b->n_idle[kind]++;
}

static void ref_locked(struct blob *blob) {
        if (blob->idle)
                idle_unlink_locked(blob);
        atomic_fetch_add_explicit(&blob->refs, 1, memory_order_relaxed);
}

static void insert_locked(struct blob *blob) {
        struct blobs *b = blob->owner;
        struct blob **at = &b->by_content[content_bucket(&blob->content)];
        blob->by_content = *at;
        *at = blob;
        at = &b->by_id[blob->id % TABLE_BUCKETS];
        blob->by_id = *at;
        *at = blob;
}

static void unlist_locked(struct blob *blob) {
        struct blobs *b = blob->owner;
        struct blob **at = &b->by_content[content_bucket(&blob->content)];
        while (*at != blob)
                at = &(*at)->by_content;
        *at = blob->by_content;
        at = &b->by_id[blob->id % TABLE_BUCKETS];
        while (*at != blob)
                at = &(*at)->by_id;
        *at = blob->by_id;
}

static void blob_free(struct blob *blob) {
        if (!blob)
                return;
        assert(!blob->waiters && !blob->fills && blob->n_busy == 0);
        held_drop_all_locked(blob);
        if (blob->data_fd >= 0)
                (void)close(blob->data_fd);
        if (blob->sums_fd >= 0)
                (void)close(blob->sums_fd);
        blocklist_free(&blob->list);
        free(blob->starts);
        free(blob->state);
        free(blob->pins);
        free(blob->place);
        lock_destroy(&blob->lock);
        free(blob);
}

/* The longest idle ones over the maximum leave the table; chained through idle_next, to be freed without the lock. */
static struct blob *shrink_locked(struct blobs *b, int kind, size_t max) {
        struct blob *gone = NULL;
        while (b->n_idle[kind] > max) {
                struct blob *blob = b->idle_first[kind];
                idle_unlink_locked(blob);
                unlist_locked(blob);
                blob->idle_next = gone;
                gone = blob;
        }
        return gone;
}

static void free_chain(struct blob *gone) {
        while (gone) {
                struct blob *next = gone->idle_next;
                blob_free(gone);
                gone = next;
        }
}

struct blob *blob_ref(struct blob *blob) {
        unsigned before = atomic_fetch_add_explicit(&blob->refs, 1, memory_order_relaxed);
        assert(before > 0);
        (void)before;
        return blob;
}

void blob_put(struct blob *blob) {
        if (!blob)
                return;
        unsigned refs = atomic_load_explicit(&blob->refs, memory_order_relaxed);
        while (refs > 1)
                if (atomic_compare_exchange_weak_explicit(&blob->refs, &refs, refs - 1, memory_order_release, memory_order_relaxed))
                        return;
        struct blobs *b = blob->owner;
        struct blob *gone = NULL;
        {
                LOCK_SCOPE(&b->table_lock);
                if (atomic_fetch_sub_explicit(&blob->refs, 1, memory_order_acq_rel) == 1) {
                        idle_add_locked(blob);
                        int kind = idle_kind(blob);
                        gone = shrink_locked(b, kind, idle_max[kind]);
                }
        }
        free_chain(gone);
}

int blob_set_list_locked(struct blob *blob, struct blocklist *list) {
        size_t n = list->n;
        _cleanup_free_ uint64_t *starts = NULL;
        int r = blocklist_starts(list, &starts);
        if (r < 0)
                return r;
        _cleanup_free_ uint8_t *state = calloc(n + 1, sizeof *state);
        _cleanup_free_ uint16_t *pins = calloc(n + 1, sizeof *pins);
        _cleanup_free_ uint32_t *place = blob->content.size < PACK_CONTENT_MAX ? malloc((n + 1) * sizeof *place) : NULL;
        if (!state || !pins || (blob->content.size < PACK_CONTENT_MAX && !place))
                return -ENOMEM;
        if (place)
                memset(place, 0xff, (n + 1) * sizeof *place);
        blob->list = *list;
        *list = (struct blocklist){ 0 };
        blob->starts = steal_ptr(starts);
        blob->state = steal_ptr(state);
        blob->pins = steal_ptr(pins);
        blob->place = steal_ptr(place);
        blob->list_known = true;
        return 0;
}

static int blob_new(struct blobs *b, const struct content *content, struct blob_row *row /* or NULL */, struct blob **ret) {
        struct blob *blob = calloc(1, sizeof *blob);
        if (!blob)
                return -ENOMEM;
        blob->owner = b;
        blob->content = *content;
        blob->data_fd = blob->sums_fd = -1;
        blob->last_block = UINT32_MAX;
        blob->seq_next = UINT64_MAX;
        atomic_init(&blob->refs, 1);
        lock_init(&blob->lock, "blob", RANK_BLOB);
        int r = 0;
        if (row) {
                blob->id = row->id;
                blob->file = row->file;
                blob->list_saved = true;
                r = blob_set_list_locked(blob, &row->list);
                for (size_t i = 0; r == 0 && i < blob->list.n; i++) {
                        if (!(row->state[i] & ROW_PRESENT))
                                continue;
                        blob->state[i] = BS_PRESENT | (row->state[i] & ROW_CHECKED ? BS_CHECKED : 0);
                        blob->n_present++;
                        if (blob->place)
                                blob->place[i] = row->place[i];
                }
        } else if (content->depth == 0) {
                struct blocklist list = { 0 };
                r = blocklist_load(content, NULL, 1, &list);
                if (r == 0)
                        r = blob_set_list_locked(blob, &list);
                blocklist_free(&list);
        }
        if (r < 0) {
                blob_free(blob);
                return r;
        }
        *ret = blob;
        return 0;
}

/* After damage the index stays closed: everything not in memory is forgotten until the next open, which starts empty. */
static void index_failed_locked(struct blobs *b, int err) {
        if (err == -EBADMSG && b->index) {
                log_debug("blobs: index damaged, what is not in use is forgotten dir=%s", b->dir);
                blob_index_abandon(b->index);
                b->index = NULL;
                counter_add(b->counters, corruptions_found, 1);
        }
}

static int get(struct blobs *b, const struct content *content, bool make, struct blob **ret) {
        {
                LOCK_SCOPE(&b->table_lock);
                struct blob *blob = find_locked(b, content);
                if (blob) {
                        ref_locked(blob);
                        *ret = blob;
                        return 0;
                }
        }
        LOCK_SCOPE(&b->index_lock); /* one loader at a time */
        {
                LOCK_SCOPE(&b->table_lock);
                struct blob *blob = find_locked(b, content);
                if (blob) {
                        ref_locked(blob);
                        *ret = blob;
                        return 0;
                }
        }
        _cleanup_blob_row_ struct blob_row row = { 0 };
        int r = b->index && content->size > 0 ? blob_index_find(b->index, content, &row) : -ENOENT;
        index_failed_locked(b, r);
        bool known = r == 0;
        if (!known && !make)
                return -ENOENT;
        struct blob *blob;
        r = blob_new(b, content, known ? &row : NULL, &blob);
        if (r < 0)
                return r;
        LOCK_SCOPE(&b->table_lock);
        if (!known) {
                if (b->next_id >= INT32_MAX) {
                        blob_free(blob);
                        return -EOVERFLOW;
                }
                blob->id = b->next_id++;
        }
        insert_locked(blob);
        *ret = blob;
        return 0;
}

int blob_get(struct blobs *b, const struct content *content, struct blob **ret) {
        if (content->depth > 3 || (content->depth == 0 && content->size > BLOCK_BYTES_MAX) || content->size > INT64_MAX || (content->size > 0 && content->param == 0))
                return -EINVAL;
        return get(b, content, true, ret);
}

struct blob *blob_if_known(struct blobs *b, const struct content *content) {
        struct blob *blob;
        return get(b, content, false, &blob) == 0 ? blob : NULL;
}

struct blob *blob_by_id(struct blobs *b, uint32_t id) {
        struct blob *blob;
        {
                LOCK_SCOPE(&b->table_lock);
                blob = find_id_locked(b, id);
                if (blob) {
                        ref_locked(blob);
                        return blob;
                }
        }
        LOCK_SCOPE(&b->index_lock);
        {
                LOCK_SCOPE(&b->table_lock);
                blob = find_id_locked(b, id);
                if (blob) {
                        ref_locked(blob);
                        return blob;
                }
        }
        _cleanup_blob_row_ struct blob_row row = { 0 };
        int r = b->index ? blob_index_get(b->index, id, &row) : -ENOENT;
        index_failed_locked(b, r);
        if (r < 0 || blob_new(b, &row.content, &row, &blob) < 0)
                return NULL;
        LOCK_SCOPE(&b->table_lock);
        insert_locked(blob);
        return blob;
}

void blob_mark_dirty(struct blob *blob) {
        struct blobs *b = blob->owner;
        bool first = false, flush;
        {
                LOCK_SCOPE(&b->table_lock);
                if (!blob->dirty) {
                        first = !b->dirty;
                        ref_locked(blob);
                        blob->dirty = true;
                        blob->dirty_next = b->dirty;
                        b->dirty = blob;
                        b->n_dirty++;
                }
                flush = b->n_dirty >= DIRTY_BLOBS_MAX;
        }
        if (flush) {
                if (blobs_flush(b) < 0)
                        log_debug("blobs: index not written now");
        } else if (first) {
                LOCK_SCOPE(&b->wait_lock);
                b->flush_at_ms = clock_mono_ms(b->clock) + FLUSH_AFTER_MS;
                cond_signal(&b->wait_more);
        }
}

const struct content *blob_content(const struct blob *blob) {
        return &blob->content;
}

int blob_list(struct blob *blob, const struct blocklist **ret) {
        LOCK_SCOPE(&blob->lock);
        if (!blob->list_known)
                return -ENODATA;
        *ret = &blob->list;
        return 0;
}

bool blob_complete(struct blob *blob) {
        LOCK_SCOPE(&blob->lock);
        return blob->list_known && blob->n_present == blob->list.n;
}

/* ---- open ---- */

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
        uint64_t end = (blob->content.size + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE, at = 0;
        for (size_t i = 0; i <= blob->list.n; i++) {
                if (i < blob->list.n && !(blob->state[i] & BS_PRESENT))
                        continue;
                uint64_t upto = i < blob->list.n ? blob->starts[i] / ROOM_PAGE * ROOM_PAGE : end;
                if (upto > at)
                        (void)fallocate(blob->data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(upto - at));
                if (i < blob->list.n)
                        at = (blob->starts[i + 1] + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE;
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
        free(b);
}

int blobs_open(const struct blobs_config *c, struct blobs **ret) {
        struct blobs *b = calloc(1, sizeof *b);
        if (!b)
                return -ENOMEM;
        b->clock = c->clock;
        b->counters = c->counters;
        b->workers = c->workers;
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
        room_init(&b->room, c->limit_bytes, c->free_floor_bytes);
        b->dir = strdup(c->dir);
        b->dir_fd = open(c->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        bool lost = false;
        int r = !b->dir ? -ENOMEM : b->dir_fd < 0 ? -errno : load(b, c, &lost);
        if (r == -EBADMSG && b->index) { /* opened, but a page was damaged: start with an empty one */
                blob_index_abandon(steal_ptr(b->index));
                unload(b);
                atomic_store(&b->n_blobs, 0);
                room_destroy(&b->room);
                room_init(&b->room, c->limit_bytes, c->free_floor_bytes);
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
        if (blobs_sync(b) < 0)
                log_debug("blobs: index not written at close");
        struct blob *gone[2];
        {
                LOCK_SCOPE(&b->table_lock);
                gone[0] = shrink_locked(b, 0, 0);
                gone[1] = shrink_locked(b, 1, 0);
        }
        free_chain(gone[0]);
        free_chain(gone[1]);
        for (size_t i = 0; i < TABLE_BUCKETS; i++)
                assert(!b->by_id[i]); /* every reference was put */
        blobs_free(b);
}

void blobs_set_source(struct blobs *b, struct source *s) {
        atomic_store(&b->source, s);
}

void blobs_totals(struct blobs *b, struct blobs_totals *ret) {
        struct room_totals room;
        room_totals(&b->room, &room);
        *ret = (struct blobs_totals){ .bytes = room.used, .limit_bytes = room.limit, .dirty_bytes = room.dirty, .blobs = atomic_load(&b->n_blobs) };
        LOCK_SCOPE(&b->lru_lock);
        ret->blocks = lru_count(b->lru);
}

void blobs_on_room(struct blobs *b, void (*room)(void *arg), void *arg) {
        b->on_room = room;
        b->on_room_arg = arg;
}
