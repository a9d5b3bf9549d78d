/* SPDX-License-Identifier: Apache-2.0 */
/* file_level.c: how far a file has come on the ladder of durability.
 *
 *   accepted   survives the end of this process: some of its bytes, their log records or its row are not on the platter yet
 *   local      survives a power cut: all of that is, and the server does not have it
 *   server     the server has all of it
 *
 * On the platter: each stage of its stack is synced up to its last byte, and if an operation names the node, so is the last transaction that queued or changed one
 * (tree_synced). The seal and the row that queues a content are not needed for that: a stage alone is enough to recover, so a file that was synced and is then closed
 * stays local. Nothing is remembered or guessed: a word is true at the moment in which it is read, because row and stack are read under the file's lock, which
 * a seal and an opener hold too. A stage that is on the server already counts for nothing.
 *
 * Counting all files goes by the outbox and the list of open stages, so it costs by what is pending, not by the size of the tree. */
#include <stdlib.h>

#include "file_priv.h"

const char *level_name(enum level level) {
        static const char *const names[] = { [LEVEL_ACCEPTED] = "accepted", [LEVEL_LOCAL] = "local", [LEVEL_SERVER] = "server" };
        return names[level];
}

/* Every stage from top down. Reference is taken. ret_any: some of it is not on the server. */
static bool stack_synced(struct stage *top, bool *ret_any) {
        bool synced = true;
        for (struct stage *st = top; st;) {
                lock_take(&st->io);
                lock_take(&st->lock);
                bool counts = st->state != STAGE_GONE && !st->committed && st->logged;
                uint64_t needed = st->content_changes ? st->content_changes : st->changes;
                if (counts && (st->untrusted || st->error || st->synced < needed))
                        synced = false;
                *ret_any |= counts;
                struct stage *below = st->below ? stage_ref(st->below) : NULL;
                lock_drop(&st->lock);
                lock_drop(&st->io);
                stage_put(st);
                st = below;
        }
        return synced;
}

static enum level level_of(struct cache *c, const struct node *n, struct stage *top) {
        bool any = false, synced = stack_synced(top, &any);
        if (!any && !n->pending)
                return LEVEL_SERVER;
        return synced && (!n->pending || tree_synced(c->tree, n->ino)) ? LEVEL_LOCAL : LEVEL_ACCEPTED;
}

int file_level(struct cache *c, uint64_t ino, enum level *ret) {
        struct node n;
        lock_assert_none();
        for (;;) {
                int r = tree_get(c->tree, ino, &n);
                if (r < 0)
                        return r;
                if (n.kind != NODE_FILE) {
                        *ret = level_of(c, &n, NULL);
                        return 0;
                }
                uint16_t incarnation = n.incarnation;
                struct file *f = file_get_or_new(c->files, ino, incarnation);
                if (!f)
                        return -ENOMEM;
                lock_take(&f->lock);
                r = tree_get(c->tree, ino, &n);
                bool same = r < 0 || (n.incarnation == incarnation && f->ino == ino);
                if (r == 0 && same) {
                        struct stage *top = f->top ? stage_ref(f->top) : NULL;
                        if (!top && n.gen && stage_get(c->stages, n.gen, &top) < 0)
                                top = NULL; /* on the server between the row and now */
                        *ret = level_of(c, &n, top);
                }
                lock_drop(&f->lock);
                file_put(f);
                if (same)
                        return r;
        }
}

/* ---- all ---- */

struct counting { struct cache *c; struct cache_levels n; uint64_t *open; size_t n_open; };

static int by_ino(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
        return x < y ? -1 : x > y;
}

static int count_one(void *arg, const struct node *n) {
        struct counting *k = arg;
        struct stage *top;
        if (k->n_open && bsearch(&n->ino, k->open, k->n_open, sizeof(*k->open), by_ino))
                return 0; /* counted with its open stage */
        if (!n->gen || stage_get(k->c->stages, n->gen, &top) < 0)
                top = NULL;
        enum level level = level_of(k->c, n, top);
        k->n.accepted += level == LEVEL_ACCEPTED;
        k->n.local += level == LEVEL_LOCAL;
        return 0;
}

int cache_levels(struct cache *c, struct cache_levels *ret) {
        struct files *fs = c->files;
        struct counting k = { .c = c };
        lock_take(&fs->lock);
        size_t max = fs->n_open;
        lock_drop(&fs->lock);
        _cleanup_free_ uint64_t *open = max ? calloc(max, sizeof *open) : NULL;
        if (max && !open)
                return -ENOMEM;
        lock_take(&fs->lock);
        for (struct file *f = fs->open_first; f && k.n_open < max; f = f->open_next)
                open[k.n_open++] = f->ino;
        lock_drop(&fs->lock);
        if (k.n_open)
                qsort(open, k.n_open, sizeof *open, by_ino);
        k.open = open;
        for (size_t i = 0; i < k.n_open; i++) {
                enum level level;
                if ((i > 0 && open[i] == open[i - 1]) || file_level(c, open[i], &level) < 0)
                        continue;
                k.n.accepted += level == LEVEL_ACCEPTED;
                k.n.local += level == LEVEL_LOCAL;
        }
        int r = tree_pending_files(c->tree, count_one, &k);
        if (r == 0)
                *ret = k.n;
        return r;
}
