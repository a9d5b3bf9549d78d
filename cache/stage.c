/* SPDX-License-Identifier: Apache-2.0 */
/* stage.c: the life of a stage, and the table of all of them.
 *
 * A stage is the overlay that one generation of a file's bytes is: extents over a base, which is the blob of a committed content or the sealed stage before it. The stack of a
 * file is a chain of references from the top: open stage -> sealed stages -> blob.
 *
 *   OPEN    --stage_seal-->  SEALED  --committed, layers below too-->  GONE (become: the blob of the new version)
 *      \------------------------\------- discarded (unlinked, dropped) -->  GONE (become: none)
 *
 * Two homes. *Small* (up to 64 KiB appended): records and bytes in the shared log (stage_seg.c). *Large*: bytes at their file offsets in a sparse file lent by the blob pool, records in an
 * own log `log-N` (stage_own.c). A small stage that outgrows its home moves once, as copy 1 of itself; recovery takes the highest complete copy. Nothing is on disk before the
 * first change: the header is written with it.
 *
 * Order of a write: bytes, then record, then map, then the reply. Of a cut (truncate, punch): record, then map, then the bytes go. So a record never promises bytes that were not
 * written, and bytes that are promised never leave; what a kill between the steps leaves behind in the file is not in the map, and recovery punches it.
 *
 * Locks. `io` (RANK_STAGE_IO) makes changes serial and is held over pwrite and log append, never over fsync, hashing or the network. `lock` (RANK_STAGE) guards map and
 * state and is held for memory only. Readers find a place under `lock`, read without it, and look at `epoch` again: if bytes have left their place meanwhile (punched, given to
 * the blob pool) they start over. The table's lock is a leaf.
 *
 * References: each upper stage or file holds one on what is under it; the engine's stage_get takes one. `below` changes under `lock` alone, whatever else is held: who walks a stack takes a
 * reference at each step (stage_below), because a committed layer may close under it at any moment. It is replaced by what holds the same bytes, or given up with the stage itself; a stage that
 * leaves a stack keeps it, for those who read it. Segments are given back with the last one, because readers may still be there. */
#include "stage_core.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/log.h"

int stages_open(const struct stages_config *c, struct rng *rng, struct stages **ret) {
        struct stages *s = calloc(1, sizeof *s);
        if (!s)
                return -ENOMEM;
        s->cfg = *c;
        s->rng = rng;
        s->dir_fd = -1;
        s->next_gen = 1;
        lock_init(&s->lock, "stages", RANK_QUEUE);
        int r = 0;
        s->n_buckets = 256;
        s->bucket = calloc(s->n_buckets, sizeof *s->bucket);
        s->dir = path_join(c->dir, "stages");
        if (!s->bucket || !s->dir)
                r = -ENOMEM;
        if (r == 0)
                r = mkdir_p(s->dir, 0700);
        if (r == 0) {
                s->dir_fd = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                if (s->dir_fd < 0)
                        r = -errno;
        }
        if (r == 0) {
                /* A small dirty share gets small segments, so that two of them do not fill it. */
                uint64_t seg = c->dirty_limit_bytes / 8 / 4096 * 4096;
                struct segments_config sc = { .dir_fd = s->dir_fd, .blobs = c->blobs, .rng = rng, .order = 1,
                                              .segment_bytes = (uint32_t)MIN(MAX(seg, (uint64_t)(256u << 10)), (uint64_t)SEGMENT_BYTES) };
                r = segments_new(&sc, &s->segs);
        }
        if (r < 0) {
                stages_close(s);
                return r;
        }
        *ret = s;
        return 0;
}

void stages_close(struct stages *s) {
        if (!s)
                return;
        assert(s->n == 0);
        segments_free(s->segs);
        if (s->dir_fd >= 0)
                (void)close(s->dir_fd);
        lock_destroy(&s->lock);
        free(s->bucket);
        free(s->dir);
        free(s);
}

void stages_set_kick(struct stages *s, void (*kick)(void *arg), void *arg) {
        s->kick = kick;
        s->kick_arg = arg;
}

uint64_t stages_gen(struct stages *s) {
        LOCK_SCOPE(&s->lock);
        return s->next_gen++;
}

void stages_gen_above(struct stages *s, uint64_t gen) {
        LOCK_SCOPE(&s->lock);
        if (s->next_gen <= gen)
                s->next_gen = gen + 1;
}

static void table_grow_locked(struct stages *s) {
        size_t n = s->n_buckets * 2;
        struct stage **b = calloc(n, sizeof *b);
        if (!b)
                return; /* longer chains */
        for (size_t i = 0; i < s->n_buckets; i++)
                for (struct stage *st = s->bucket[i], *next; st; st = next) {
                        next = st->hash_next;
                        st->hash_next = b[st->gen & (n - 1)];
                        b[st->gen & (n - 1)] = st;
                }
        free(s->bucket);
        s->bucket = b;
        s->n_buckets = n;
}

int stage_new(struct stages *s, const struct stage_header *head, struct stage *below, struct blob *blob, uint64_t size, struct stage **ret) {
        struct stage *st = calloc(1, sizeof *st);
        if (!st)
                return -ENOMEM;
        st->owner = s;
        atomic_init(&st->refs, 1);
        atomic_init(&st->ino, head->ino);
        atomic_init(&st->first_write_ns, 0);
        atomic_init(&st->damage_told, false);
        atomic_init(&st->listed, false);
        st->gen = head->gen;
        st->session = head->session;
        st->head = *head;
        lock_init(&st->io, "stage io", RANK_STAGE_IO);
        lock_init(&st->sync, "stage sync", RANK_STAGE_IO);
        lock_init(&st->lock, "stage", RANK_STAGE);
        st->state = STAGE_OPEN;
        st->log.fd = st->fd = st->sums_fd = -1;
        st->size = size;
        st->base_limit = head->base_limit;
        st->below = below ? stage_ref(below) : NULL;
        st->blob = blob ? blob_ref(blob) : NULL;
        st->base = head->base;
        st->mtime_ns = st->ctime_ns = head->mtime_ns;
        LOCK_SCOPE(&s->lock);
        if (s->n >= s->n_buckets)
                table_grow_locked(s);
        struct stage **b = &s->bucket[st->gen & (s->n_buckets - 1)];
        st->hash_next = *b;
        *b = st;
        s->n++;
        s->n_open++;
        st->based = head->base.size > 0 || head->below_gen || below;
        s->n_based += st->based;
        *ret = st;
        return 0;
}

struct stage *stage_ref(struct stage *st) {
        unsigned before = atomic_fetch_add_explicit(&st->refs, 1, memory_order_relaxed);
        assert(before > 0);
        (void)before;
        return st;
}

int stage_get(struct stages *s, uint64_t gen, struct stage **ret) {
        LOCK_SCOPE(&s->lock);
        for (struct stage *st = s->bucket[gen & (s->n_buckets - 1)]; st; st = st->hash_next) {
                if (st->gen != gen)
                        continue;
                unsigned n = atomic_load_explicit(&st->refs, memory_order_relaxed);
                while (n > 0 && !atomic_compare_exchange_weak_explicit(&st->refs, &n, n + 1, memory_order_acquire, memory_order_relaxed))
                        ;
                if (n == 0)
                        return -ENOENT;
                *ret = st;
                return 0;
        }
        return -ENOENT;
}

void stage_unlist_locked(struct stage *st) {
        struct stages *s = st->owner;
        if (!st->in_dirty)
                return;
        if (st->dirty_prev)
                st->dirty_prev->dirty_next = st->dirty_next;
        else
                s->dirty = st->dirty_next;
        if (st->dirty_next)
                st->dirty_next->dirty_prev = st->dirty_prev;
        st->dirty_next = st->dirty_prev = NULL;
        st->in_dirty = false;
}

static struct stage *stage_free(struct stage *st) {
        struct stages *s = st->owner;
        lock_take(&s->lock);
        for (struct stage **p = &s->bucket[st->gen & (s->n_buckets - 1)]; *p; p = &(*p)->hash_next)
                if (*p == st) {
                        *p = st->hash_next;
                        s->n--;
                        s->n_based -= st->based;
                        break;
                }
        stage_unlist_locked(st);
        if (st->state == STAGE_OPEN)
                s->n_open--;
        else if (st->state == STAGE_SEALED)
                s->n_sealed--;
        s->dirty_bytes -= st->pages * EXTENT_PAGE + st->small_bytes;
        lock_drop(&s->lock);
        struct stage *below = st->below;
        for (unsigned i = 0; i < st->n_segs; i++)
                segment_put(st->segs[i]);
        blob_put(st->blob);
        blob_put(st->become);
        if (st->fd >= 0)
                (void)close(st->fd);
        if (st->sums_fd >= 0)
                (void)close(st->sums_fd);
        own_log_close(st);
        free(st->payloads);
        free(st->payload_sums);
        extents_free(&st->map);
        free(st->known);
        for (size_t i = 0; i < st->n_sent_blocks; i++)
                free(st->sent_blocks[i]);
        free(st->sent_blocks);
        blocklist_free(&st->list);
        free(st->starts);
        free(st->sent_bits);
        free(st->reused_bits);
        lock_destroy(&st->io);
        lock_destroy(&st->sync);
        lock_destroy(&st->lock);
        free(st);
        return below;
}

void stage_put(struct stage *st) {
        while (st && atomic_fetch_sub_explicit(&st->refs, 1, memory_order_acq_rel) == 1)
                st = stage_free(st);
}

struct stage *stage_below(struct stage *st) {
        LOCK_SCOPE(&st->lock);
        return st->below ? stage_ref(st->below) : NULL;
}

bool stage_is_base(struct stage *st) {
        struct extent any;
        LOCK_SCOPE(&st->lock);
        return st->state != STAGE_GONE && !st->below && st->base.size > 0 && st->size == st->base.size && st->base_limit == st->size && !extents_find(&st->map, 0, &any);
}

bool stage_left(const struct stage *st) {
        return atomic_load(&((struct stage *)st)->listed);
}

uint64_t stage_ino(const struct stage *st) {
        return atomic_load(&st->ino);
}

uint64_t stage_size(const struct stage *st) {
        struct stage *s = (struct stage *)st;
        LOCK_SCOPE(&s->lock);
        return s->size;
}

struct id stage_session(const struct stage *st) {
        return st->session;
}

void stage_account(struct stage *st, uint64_t pages, uint64_t small) {
        struct stages *s = st->owner;
        LOCK_SCOPE(&s->lock);
        s->dirty_bytes += (pages - st->pages) * EXTENT_PAGE + (small - st->small_bytes);
        st->pages = pages;
        st->small_bytes = small;
}

void stage_mark_dirty(struct stage *st) {
        struct stages *s = st->owner;
        bool first = false;
        lock_take(&s->lock);
        if (!st->in_dirty) {
                first = !s->dirty;
                st->in_dirty = true;
                st->dirty_prev = NULL;
                st->dirty_next = s->dirty;
                if (s->dirty)
                        s->dirty->dirty_prev = st;
                s->dirty = st;
        }
        lock_drop(&s->lock);
        if (first && s->kick)
                s->kick(s->kick_arg);
}

void stages_count_state(struct stages *s, enum stage_state from, enum stage_state to) {
        LOCK_SCOPE(&s->lock);
        if (from == STAGE_OPEN)
                s->n_open--;
        else if (from == STAGE_SEALED)
                s->n_sealed--;
        if (to == STAGE_OPEN)
                s->n_open++;
        else if (to == STAGE_SEALED)
                s->n_sealed++;
}

void stages_totals(struct stages *s, struct stages_totals *ret) {
        LOCK_SCOPE(&s->lock);
        int64_t oldest = 0;
        if (s->n_open > 0)
                for (size_t i = 0; i < s->n_buckets; i++)
                        for (struct stage *st = s->bucket[i]; st; st = st->hash_next) {
                                int64_t t = atomic_load_explicit(&st->first_write_ns, memory_order_relaxed);
                                if (t && (!oldest || t < oldest))
                                        oldest = t;
                        }
        *ret = (struct stages_totals) { .open = s->n_open, .sealed = s->n_sealed, .dirty_bytes = s->dirty_bytes, .oldest_write_ns = oldest };
}
