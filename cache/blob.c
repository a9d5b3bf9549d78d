/* SPDX-License-Identifier: Apache-2.0 */
/* blob.c: the table of blobs in memory.
 *
 * A blob is in memory while somebody refers to it, while its row must be written, and for some time after (two idle lists: small contents cost a few hundred bytes,
 * large ones two descriptors). All others are rows of the index. A blob without a block on disk has no row: the list of a large content is asked for again together with
 * its first block, in the same request.
 *
 * References: blob_put decrements without the table lock unless it is the last one, so that nobody can find a blob that is being freed. */
#include "blob_priv.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

void blob_free(struct blob *blob) {
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

int blob_new(struct blobs *b, const struct content *content, struct blob_row *row, struct blob **ret) {
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

void blobs_forget_idle(struct blobs *b) {
        struct blob *gone[2], *dirty;
        do { /* rows that could not be written: at close they are given up */
                {
                        LOCK_SCOPE(&b->table_lock);
                        dirty = b->dirty;
                        if (dirty) {
                                b->dirty = dirty->dirty_next;
                                b->n_dirty--;
                                dirty->dirty = false;
                        }
                }
                blob_put(dirty);
        } while (dirty);
        {
                LOCK_SCOPE(&b->table_lock);
                gone[0] = shrink_locked(b, 0, 0);
                gone[1] = shrink_locked(b, 1, 0);
        }
        free_chain(gone[0]);
        free_chain(gone[1]);
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
