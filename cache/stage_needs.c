/* SPDX-License-Identifier: Apache-2.0 */
/* stage_needs.c: which cached blocks pending edits stand on. An edit of a part of a file is sent as the blocks that it touches, and those are cut from its bytes and the base's around them. So as long as
 * it waits these blocks of the base are not evicted:
 *
 *   - one that a change touches, unless one change covers it: the rest of its bytes goes into the new block
 *   - the two behind that (NEEDS_BEHIND): the cuts are found again there, as a rule; else cutting, which is done when there is a server, fetches what it lacks
 *   - the one that holds the new end, if the file got shorter or longer
 *
 * Nothing is counted or kept up to date: who wants to evict takes a look (all stages that let something of a base through, by base) and asks for each block. That is as true after a start as before it, and costs a
 * write nothing. A block that goes between the look and a write was gone before the write.
 *
 * A look holds references of the stages; no lock from begin to end. */
#include "stage_core.h"

#include <assert.h>
#include <stdlib.h>

struct based { uint64_t key; struct content base; struct stage *stage; };
struct needs_look { size_t n; struct based v[]; };

static uint64_t key_of(const struct content *c) {
        uint64_t key;
        memcpy(&key, c->root.b, sizeof key);
        return key;
}

static int by_key(const void *a, const void *b) {
        const struct based *x = a, *y = b;
        return x->key < y->key ? -1 : x->key > y->key;
}

/* What the stack under st ends in. False: nothing of it is let through, or st has ended. */
static bool base_of(struct stage *st, struct content *ret) {
        struct stage *x = stage_ref(st);
        bool any = true;
        while (any) {
                lock_take(&x->lock);
                any = x->state != STAGE_GONE && x->base_limit > 0;
                *ret = x->base;
                struct stage *below = any && x->below ? stage_ref(x->below) : NULL;
                lock_drop(&x->lock);
                if (!below)
                        break;
                stage_put(x);
                x = below;
        }
        stage_put(x);
        return any && ret->size > 0;
}

void *stages_needs_look(void *stages) {
        struct stages *s = stages;
        struct needs_look *look;
        size_t n = 0;
        lock_assert_none();
        {
                LOCK_SCOPE(&s->lock);
                look = malloc(sizeof *look + s->n_based * sizeof look->v[0]);
                for (size_t i = 0; look && i < s->n_buckets; i++)
                        for (struct stage *st = s->bucket[i]; st; st = st->hash_next) {
                                unsigned refs = atomic_load_explicit(&st->refs, memory_order_relaxed);
                                while (st->based && refs > 0 && !atomic_compare_exchange_weak_explicit(&st->refs, &refs, refs + 1, memory_order_acquire, memory_order_relaxed))
                                        ;
                                if (st->based && refs > 0)
                                        look->v[n++].stage = st;
                        }
        }
        if (!look)
                return NULL;
        look->n = 0;
        for (size_t i = 0; i < n; i++) {
                struct based b = { .stage = look->v[i].stage };
                if (base_of(b.stage, &b.base)) {
                        b.key = key_of(&b.base);
                        look->v[look->n++] = b;
                } else {
                        stage_put(b.stage);
                }
        }
        if (look->n)
                qsort(look->v, look->n, sizeof look->v[0], by_key);
        return look;
}

/* Block [a, b) of the base; `before`: where the one NEEDS_BEHIND before it begins. */
static bool stage_needs(struct stage *st, uint64_t base_bytes, uint64_t before, uint64_t a, uint64_t b) {
        struct extent e;
        LOCK_SCOPE(&st->lock);
        if (st->state == STAGE_GONE || a >= st->base_limit)
                return false;
        if (extents_find(&st->map, a, &e) && e.off <= a && e.off + e.bytes >= b)
                return false;
        if (extents_find(&st->map, before, &e) && e.off < b)
                return true;
        uint64_t end = MIN(st->base_limit, st->size);
        return (st->size != base_bytes || st->base_limit < base_bytes) && a < end && end <= b;
}

bool stages_need(void *look, const struct content *content, uint64_t before, uint64_t start, uint64_t end) {
        struct needs_look *l = look;
        size_t lo = 0, hi = l->n;
        uint64_t key = key_of(content);
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                if (l->v[mid].key < key)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        for (; lo < l->n && l->v[lo].key == key; lo++)
                if (content_equal(&l->v[lo].base, content) && stage_needs(l->v[lo].stage, content->size, before, start, end))
                        return true;
        return false;
}

void stages_needs_end(void *look) {
        struct needs_look *l = look;
        for (size_t i = 0; l && i < l->n; i++)
                stage_put(l->v[i].stage);
        free(l);
}

void stage_set_based(struct stage *st) {
        struct stages *s = st->owner;
        LOCK_SCOPE(&s->lock);
        s->n_based += !st->based;
        st->based = true;
}
