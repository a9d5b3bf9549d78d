/* SPDX-License-Identifier: Apache-2.0 */
/* extent.c: a sorted map of disjoint extents.
 *
 * Two levels: an array of pointers to leaves, each leaf a sorted array of up to 64 extents. A random writer over 1 GiB makes 262,144 extents: an insert then moves
 * at most 64 extents and 8,192 pointers (a few microseconds), a search is two binary searches without pointer chasing. A leaf that becomes empty goes; leaves are not merged,
 * which costs memory only after odd patterns and keeps the code small.
 *
 * Invariants: extents ascend and do not overlap, no leaf is empty, bytes > 0. A put or a cut makes at most two leaves more (one split by the cut of a range out of the middle of
 * an extent, one by the insert): these are reserved before, so that a write that is on disk and in the log can never fail to reach the map.
 *
 * No lock here: the stage's lock guards its map. Left out: removal of the `where` objects, which their owner keeps until the map goes. */
#include "extent.h"

#include <assert.h>
#include <stdlib.h>

struct at { size_t leaf; uint32_t i; };

void extents_free(struct extents *m) {
        if (!m)
                return;
        for (size_t i = 0; i < m->n_leaves; i++)
                free(m->leaf[i]);
        free(m->spare[0]);
        free(m->spare[1]);
        free(m->leaf);
        *m = (struct extents) {};
}

int extents_reserve(struct extents *m) {
        if (m->n + 2 > EXTENTS_MAX)
                return -EFBIG;
        if (m->n_leaves + 2 > m->room) {
                size_t room = m->room ? m->room * 2 : 8;
                struct extent_leaf **p = realloc(m->leaf, room * sizeof *p);
                if (!p)
                        return -ENOMEM;
                m->leaf = p;
                m->room = room;
        }
        for (int i = 0; i < 2; i++)
                if (!m->spare[i] && !(m->spare[i] = malloc(sizeof **m->leaf)))
                        return -ENOMEM;
        return 0;
}

static uint64_t end_of(const struct extent *e) {
        return e->off + e->bytes;
}

/* Position of the first extent that ends after off; leaf == n_leaves: none. */
static struct at seek(const struct extents *m, uint64_t off) {
        size_t lo = 0, hi = m->n_leaves;
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                const struct extent_leaf *l = m->leaf[mid];
                if (end_of(&l->e[l->n - 1]) > off)
                        hi = mid;
                else
                        lo = mid + 1;
        }
        struct at a = { .leaf = lo };
        if (lo == m->n_leaves)
                return a;
        const struct extent_leaf *l = m->leaf[lo];
        uint32_t x = 0, y = l->n;
        while (x < y) {
                uint32_t mid = (x + y) / 2;
                if (end_of(&l->e[mid]) > off)
                        y = mid;
                else
                        x = mid + 1;
        }
        a.i = x;
        return a;
}

static struct extent *peek(const struct extents *m, struct at a) {
        return a.leaf < m->n_leaves ? &m->leaf[a.leaf]->e[a.i] : NULL;
}

static struct at after(const struct extents *m, struct at a) {
        if (++a.i == m->leaf[a.leaf]->n) {
                a.leaf++;
                a.i = 0;
        }
        return a;
}

static void leaf_insert(struct extents *m, size_t at, struct extent_leaf *l) {
        assert(m->n_leaves < m->room);
        memmove(m->leaf + at + 1, m->leaf + at, (m->n_leaves - at) * sizeof *m->leaf);
        m->leaf[at] = l;
        m->n_leaves++;
}

static struct extent_leaf *take_spare(struct extents *m) {
        struct extent_leaf *l = m->spare[0] ? steal_ptr(m->spare[0]) : steal_ptr(m->spare[1]);
        assert(l);
        l->n = 0;
        return l;
}

/* Inserts before position a (which may be the end). */
static void insert(struct extents *m, struct at a, const struct extent *e) {
        if (a.leaf == m->n_leaves) {
                if (m->n_leaves && m->leaf[m->n_leaves - 1]->n < EXTENT_LEAF) {
                        a.leaf = m->n_leaves - 1;
                        a.i = m->leaf[a.leaf]->n;
                } else {
                        leaf_insert(m, a.leaf, take_spare(m));
                        a.i = 0;
                }
        }
        struct extent_leaf *l = m->leaf[a.leaf];
        if (l->n == EXTENT_LEAF) {
                struct extent_leaf *right = take_spare(m);
                uint32_t keep = a.i == EXTENT_LEAF ? EXTENT_LEAF : EXTENT_LEAF / 2;
                right->n = l->n - keep;
                memcpy(right->e, l->e + keep, right->n * sizeof *l->e);
                l->n = keep;
                leaf_insert(m, a.leaf + 1, right);
                if (a.i > keep || keep == EXTENT_LEAF) {
                        a.i -= keep;
                        l = right;
                }
        }
        memmove(l->e + a.i + 1, l->e + a.i, (l->n - a.i) * sizeof *l->e);
        l->e[a.i] = *e;
        l->n++;
        m->n++;
}

static struct at erase(struct extents *m, struct at a) {
        struct extent_leaf *l = m->leaf[a.leaf];
        memmove(l->e + a.i, l->e + a.i + 1, (l->n - a.i - 1) * sizeof *l->e);
        m->n--;
        if (--l->n == 0) {
                if (!m->spare[0])
                        m->spare[0] = l;
                else if (!m->spare[1])
                        m->spare[1] = l;
                else
                        free(l);
                m->n_leaves--;
                memmove(m->leaf + a.leaf, m->leaf + a.leaf + 1, (m->n_leaves - a.leaf) * sizeof *m->leaf);
                a.i = 0;
        } else if (a.i == l->n) {
                a.leaf++;
                a.i = 0;
        }
        return a;
}

void extents_cut(struct extents *m, uint64_t off, uint64_t bytes) {
        if (!bytes)
                return;
        uint64_t end = off + bytes < off ? UINT64_MAX : off + bytes;
        struct at a = seek(m, off);
        struct extent *e = peek(m, a);
        if (!e || e->off >= end)
                return;
        if (e->off < off) {
                struct extent right = *e;
                uint64_t old_end = end_of(e);
                e->bytes = off - e->off;
                a = after(m, a);
                if (old_end > end) {
                        right.at += end - right.off;
                        right.off = end;
                        right.bytes = old_end - end;
                        insert(m, a, &right);
                        return;
                }
        }
        while ((e = peek(m, a)) && e->off < end) {
                if (end_of(e) > end) {
                        uint64_t gone = end - e->off;
                        e->off += gone;
                        e->at += gone;
                        e->bytes -= gone;
                        return;
                }
                a = erase(m, a);
        }
}

static bool joins(const struct extent *a, const struct extent *b) {
        return a->kind == b->kind && a->where == b->where && end_of(a) == b->off && (a->kind == EXTENT_ZERO || a->at + a->bytes == b->at);
}

void extents_put(struct extents *m, const struct extent *add) {
        assert(add->bytes > 0 && add->off + add->bytes > add->off);
        extents_cut(m, add->off, add->bytes);
        struct extent e = *add;
        struct at a = seek(m, e.off);
        struct extent *next = peek(m, a);
        if (next && joins(&e, next)) {
                e.bytes += next->bytes;
                a = erase(m, a);
        }
        /* the one before */
        if (e.off > 0) {
                struct at b = seek(m, e.off - 1);
                struct extent *prev = peek(m, b);
                if (prev && end_of(prev) == e.off && joins(prev, &e)) {
                        prev->bytes += e.bytes;
                        return;
                }
        }
        insert(m, a, &e);
}

bool extents_find(const struct extents *m, uint64_t off, struct extent *ret) {
        struct extent *e = peek(m, seek(m, off));
        if (!e)
                return false;
        *ret = *e;
        return true;
}

int extents_each(const struct extents *m, uint64_t off, uint64_t bytes, int (*each)(void *arg, const struct extent *e), void *arg) {
        uint64_t end = off + bytes < off ? UINT64_MAX : off + bytes;
        for (struct at a = seek(m, off);;) {
                const struct extent *e = peek(m, a);
                if (!e || e->off >= end)
                        return 0;
                int r = each(arg, e);
                if (r)
                        return r;
                a = after(m, a);
        }
}

void extents_rehome(struct extents *m) {
        for (size_t i = 0; i < m->n_leaves; i++)
                for (uint32_t k = 0; k < m->leaf[i]->n; k++) {
                        struct extent *e = &m->leaf[i]->e[k];
                        if (e->kind == EXTENT_DATA) {
                                e->where = NULL;
                                e->at = e->off;
                        }
                }
}

struct count { uint64_t first, last /* one past */, next, pages; };
static int count_pages(void *arg, const struct extent *e) {
        struct count *c = arg;
        if (e->kind != EXTENT_DATA || e->where)
                return 0;
        uint64_t a = MAX(e->off / EXTENT_PAGE, MAX(c->first, c->next)), b = MIN((end_of(e) - 1) / EXTENT_PAGE + 1, c->last);
        if (b > a) {
                c->pages += b - a;
                c->next = b;
        }
        return 0;
}

uint64_t extents_pages(const struct extents *m, uint64_t off, uint64_t bytes) {
        if (!bytes)
                return 0;
        uint64_t end = off + bytes < off ? UINT64_MAX : off + bytes;
        struct count c = { .first = off / EXTENT_PAGE, .last = (end - 1) / EXTENT_PAGE + 1 };
        uint64_t hull_end = c.last > UINT64_MAX / EXTENT_PAGE ? UINT64_MAX : c.last * EXTENT_PAGE;
        (void)extents_each(m, c.first * EXTENT_PAGE, hull_end - c.first * EXTENT_PAGE, count_pages, &c);
        return c.pages;
}
