/* SPDX-License-Identifier: Apache-2.0 */
/* stage_chunk.c: the block list of a sealed stage.
 *
 * Cuts are a function of the bytes from a true cut on (base/chunk.h), so a block that begins at a true cut and whose bytes did not change ends where it ended before. The walk starts
 * at 0, which is a true cut, and at each cut asks for a *known block*: one that begins right there and that no layer above its origin has touched. Origins: blocks that were cut
 * while the stage was open (stage_early.c), the list of a sealed stage below, the list of the base blob. Known: the reference is taken, nothing is read. Unknown: bytes are read,
 * cut and hashed. So only the stretch from the last true cut before a dirty extent to the first common cut behind it costs anything, and the list is the same as that of
 * cutting the whole.
 *
 * A list's last block may have been ended by the end of the file; it is known only if the view ends there too. Blocks ended by content are known also at a new end of
 * the file: the cutter decides from the bytes before the cut alone.
 *
 * Holes are not read. A block of nothing but zeros is always the same one (its length is the cutter's, its hash is computed once), so a hole that goes on for the longest block begins with that block: a
 * sparse file costs as much as its list is long.
 *
 * Runs on the caller's thread without locks; several may run, the first result is kept. The stage is synced first: what is hashed and named to the server must not be lost by a
 * power cut, because the operation that carries it is frozen then. If the disk had refused it, it is written once more for that (stage_again.c). */
#include "stage_core.h"

#include <assert.h>
#include <stdlib.h>

#include "base/chunk.h"
#include "base/digest.h"
#include "base/log.h"

#define CUT_PARAM CHUNK_PARAM_1
#define CUT_STEP (512u << 10)
#define CUT_STEP_MIN 4096u
#define REFS_MAX (64u << 20)

/* The entry of a list that begins at off. */
static bool list_at(const struct blocklist *l, const uint64_t *starts, uint64_t off, size_t *ret_i) {
        if (off >= l->size)
                return false;
        size_t i = blocklist_find(starts, l->n, off);
        if (starts[i] != off)
                return false;
        *ret_i = i;
        return true;
}

static bool known_at_locked(const struct stage *st, uint64_t off, struct blockref *ret, bool *ret_sent) {
        size_t lo = 0, hi = st->n_known;
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                if (st->known[mid].off < off)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        if (lo == st->n_known || st->known[lo].off != off)
                return false;
        *ret = st->known[lo].ref;
        *ret_sent = st->known[lo].sent;
        return true;
}

/* One question's way down the stack. starts: of the bottom blob's list, made when first needed, kept by the walk. */
struct known_walk { uint64_t *starts; struct blob *blob; const struct blocklist *list; bool no_list; };

static void known_walk_end(struct known_walk *w) {
        free(w->starts);
        blob_put(w->blob);
        *w = (struct known_walk) { 0 };
}

static bool blob_known(struct known_walk *w, struct blob *blob, uint64_t off, uint64_t clean_end, uint64_t view_size, struct blockref *ret) {
        if (w->blob != blob) {
                known_walk_end(w);
                w->blob = blob_ref(blob);
                if (blob_list(blob, &w->list) < 0 || w->list->param != CUT_PARAM || blocklist_starts(w->list, &w->starts) < 0)
                        w->no_list = true;
        }
        size_t i;
        if (w->no_list || !list_at(w->list, w->starts, off, &i))
                return false;
        uint64_t end = off + w->list->refs[i].bytes;
        if (end > clean_end || (i + 1 == w->list->n && end != view_size))
                return false;
        *ret = w->list->refs[i];
        return true;
}

static bool known_in(struct stage *top, uint64_t off, struct known_walk *w, struct blockref *ret, bool *ret_sent) {
        uint64_t clean_end = UINT64_MAX, view_size = 0;
        struct stage *st = stage_ref(top);
        bool found = false;
        for (;;) {
                struct stage *below = NULL;
                struct blob *blob = NULL;
                struct extent e;
                size_t i;
                lock_take(&st->lock);
                if (st == top)
                        view_size = st->size;
                bool gone = st->state == STAGE_GONE && !st->become; /* says nothing any more, nor does what it stood on */
                if (st->become) {
                        blob = blob_ref(st->become);
                } else if (gone) {
                        found = false;
                } else if (known_at_locked(st, off, ret, ret_sent) && off + ret->bytes <= clean_end) {
                        found = true;
                } else if (st->chunked && st->starts && list_at(&st->list, st->starts, off, &i)) {
                        uint64_t end = off + st->list.refs[i].bytes;
                        found = end <= clean_end && (i + 1 < st->list.n || end == view_size);
                        *ret = st->list.refs[i];
                        *ret_sent = st->committed || (st->sent_bits[i / 8] >> (i % 8) & 1);
                }
                bool stop = found || gone;
                if (!stop && !blob) {
                        if (extents_find(&st->map, off, &e)) {
                                stop = e.off <= off;
                                clean_end = MIN(clean_end, e.off);
                        }
                        clean_end = MIN(clean_end, st->base_limit);
                        stop |= off >= st->base_limit;
                        if (!stop && st->below)
                                below = stage_ref(st->below);
                }
                lock_drop(&st->lock);
                if (!stop && !below) {
                        int r = 0;
                        if (!blob)
                                blob = stage_base_blob(st, &r);
                        if (blob) {
                                found = blob_known(w, blob, off, clean_end, view_size, ret);
                                *ret_sent = true;
                                blob_put(blob);
                        }
                        stop = true;
                } else {
                        blob_put(blob);
                }
                stage_put(st);
                if (stop)
                        return found;
                st = below;
        }
}

bool stage_known_block(struct stage *st, uint64_t off, struct blockref *ret, bool *ret_sent) {
        struct known_walk w = { 0 };
        bool found = known_in(st, off, &w, ret, ret_sent);
        known_walk_end(&w);
        return found;
}

struct cutter { uint8_t *buf; size_t n; uint64_t off /* of buf */; struct blockref zeros; /* bytes 0: not known yet */ };

/* 1: nothing but zeros from the true cut pos on, for at least the longest block; ret is the block that begins there. */
static int zero_block(struct stage *st, struct cutter *c, uint64_t pos, uint64_t size, struct blockref *ret) {
        const struct chunk_param *p = chunk_param(CUT_PARAM);
        struct piece piece;
        if (size - pos < p->max_bytes)
                return 0;
        int r = view_find(st, pos, p->max_bytes, &piece);
        if (r < 0)
                return r;
        bool hole = piece.kind == PIECE_ZERO && piece.bytes >= p->max_bytes;
        piece_end(&piece);
        if (!hole)
                return 0;
        if (c->zeros.bytes == 0) {
                _cleanup_free_ uint8_t *zeros = calloc(1, p->max_bytes);
                if (!zeros)
                        return -ENOMEM;
                c->zeros.bytes = (uint32_t)chunk_next(p, zeros, p->max_bytes, false);
                sha256(zeros, c->zeros.bytes, &c->zeros.hash);
        }
        *ret = c->zeros;
        return 1;
}

/* The next block from the true cut c->off on. */
static int cut_next(struct stage *st, struct cutter *c, uint64_t size, int64_t deadline_ms, struct blockref *ret) {
        const struct chunk_param *p = chunk_param(CUT_PARAM);
        for (size_t want = CUT_STEP;; want *= 2) {
                size_t max = (size_t)MIN((uint64_t)MIN(want, (size_t)p->max_bytes), size - c->off);
                if (c->n < max) {
                        size_t ask = max - c->n;
                        ssize_t n = stage_pread(st, c->off + c->n, c->buf + c->n, ask, deadline_ms);
                        while (n == -EHOSTDOWN && ask > CUT_STEP_MIN) { /* what lies behind the cut need not be here */
                                ask /= 2;
                                n = stage_pread(st, c->off + c->n, c->buf + c->n, ask, deadline_ms);
                        }
                        if (n < 0)
                                return (int)n;
                        if ((size_t)n != ask)
                                return -EIO;
                        c->n += ask;
                }
                size_t cut = chunk_next(p, c->buf, c->n, c->off + c->n == size);
                if (!cut) {
                        assert(c->n < p->max_bytes);
                        continue;
                }
                lock_assert_none();
                sha256(c->buf, cut, &ret->hash);
                ret->bytes = (uint32_t)cut;
                memmove(c->buf, c->buf + cut, c->n - cut);
                c->n -= cut;
                c->off += cut;
                return 0;
        }
}

static int bits_set(uint8_t **bits, size_t *room, size_t i) {
        if (i / 8 >= *room) {
                size_t n = MAX(*room * 2, (size_t)64);
                uint8_t *p = realloc(*bits, n);
                if (!p)
                        return -ENOMEM;
                memset(p + *room, 0, n - *room);
                *bits = p;
                *room = n;
        }
        (*bits)[i / 8] |= (uint8_t)(1u << (i % 8));
        return 0;
}

static int walk(struct stage *st, int64_t deadline_ms, struct blocklist *list, uint8_t **bits, size_t *bits_room) {
        uint64_t size = stage_size(st);
        _cleanup_free_ uint8_t *buf = malloc(MIN((uint64_t)chunk_param(CUT_PARAM)->max_bytes, MAX(size, (uint64_t)1)));
        if (!buf)
                return -ENOMEM;
        struct cutter c = { .buf = buf };
        struct known_walk w = { 0 };
        int r = 0;
        for (uint64_t pos = 0; r == 0 && pos < size;) {
                struct blockref ref;
                bool sent = false;
                if (atomic_load_explicit(&st->chunk_stop, memory_order_relaxed)) {
                        r = -ECANCELED;
                        break;
                }
                if (known_in(st, pos, &w, &ref, &sent)) {
                        /* what is behind the block and in the buffer already stays of use */
                        size_t drop = MIN((size_t)ref.bytes, c.n);
                        memmove(buf, buf + drop, c.n - drop);
                        c.n -= drop;
                        c.off = pos + ref.bytes;
                } else {
                        sent = false;
                        r = zero_block(st, &c, pos, size, &ref);
                        if (r > 0) {
                                r = 0;
                                c.n = 0;
                                c.off = pos + ref.bytes;
                        } else if (r == 0) {
                                r = cut_next(st, &c, size, deadline_ms, &ref);
                        }
                }
                if (r == 0 && list->n >= REFS_MAX)
                        r = -EFBIG;
                if (r == 0)
                        r = blocklist_add(list, &ref);
                if (r == 0 && sent)
                        r = bits_set(bits, bits_room, list->n - 1);
                pos += ref.bytes;
        }
        known_walk_end(&w);
        return r;
}

/* The list of the base, if it shows through and was never needed here. What it cannot be had for is read, which tells the error. */
static void learn_base(struct stage *st, int64_t deadline_ms) {
        int r = 0;
        lock_take(&st->lock);
        bool shows = !st->below && !st->become && st->base_limit > 0 && st->base.depth > 0;
        lock_drop(&st->lock);
        struct blob *blob = shows ? stage_base_blob(st, &r) : NULL;
        if (blob && (r = blob_fetch_list(blob, deadline_ms)) < 0)
                log_debug("stage gen=%llu base_list error=%s", (unsigned long long)st->gen, err_name(r));
        blob_put(blob);
}

void stage_chunk_stop(struct stage *stage) {
        atomic_store(&stage->chunk_stop, true);
}

int stage_chunk(struct stage *stage, int64_t deadline_ms, const struct blocklist **ret_list, struct content *ret_content) {
        lock_assert_none();
        lock_take(&stage->lock);
        bool have = stage->chunked, sealed = stage->state != STAGE_OPEN;
        lock_drop(&stage->lock);
        if (!sealed)
                return -EBUSY;
        if (!have) {
                atomic_store(&stage->chunk_stop, false);
                int r = stage_sync(stage);
                if (r == -EIO) /* it failed, now or before: a sealed stage has no other error */
                        r = stage_again(stage);
                if (r < 0)
                        return r;
                struct blocklist list = { .param = CUT_PARAM };
                _cleanup_free_ uint8_t *bits = NULL;
                _cleanup_free_ uint64_t *starts = NULL;
                size_t bits_room = 0;
                struct content content;
                learn_base(stage, deadline_ms);
                r = walk(stage, deadline_ms, &list, &bits, &bits_room);
                if (r == 0)
                        r = blocklist_content(&list, NULL, &content);
                if (r == 0 && list.n > 0)
                        r = blocklist_starts(&list, &starts);
                if (r == 0 && bits_room * 8 < list.n) {
                        uint8_t *p = realloc(bits, list.n / 8 + 1);
                        if (!p)
                                r = -ENOMEM;
                        else
                                memset((bits = p) + bits_room, 0, list.n / 8 + 1 - bits_room);
                }
                _cleanup_free_ uint8_t *reused = r == 0 && list.n ? malloc(list.n / 8 + 1) : NULL;
                if (reused)
                        memcpy(reused, bits, (list.n + 7) / 8);
                else if (r == 0 && list.n)
                        r = -ENOMEM;
                if (r < 0) {
                        blocklist_free(&list);
                        return r;
                }
                lock_take(&stage->lock);
                if (!stage->chunked) {
                        stage->list = list;
                        list = (struct blocklist) { 0 };
                        stage->starts = steal_ptr(starts);
                        stage->sent_bits = steal_ptr(bits);
                        stage->reused_bits = steal_ptr(reused);
                        stage->content = content;
                        stage->chunked = true;
                }
                lock_drop(&stage->lock);
                blocklist_free(&list);
        }
        LOCK_SCOPE(&stage->lock);
        *ret_list = &stage->list;
        *ret_content = stage->content;
        return 0;
}

bool stage_block_reused(struct stage *stage, size_t i) {
        LOCK_SCOPE(&stage->lock);
        assert(stage->chunked && i < stage->list.n);
        return stage->reused_bits[i / 8] >> (i % 8) & 1;
}

bool stage_block_sent(struct stage *stage, size_t i) {
        LOCK_SCOPE(&stage->lock);
        assert(stage->chunked && i < stage->list.n);
        return stage->sent_bits[i / 8] >> (i % 8) & 1;
}

void stage_block_mark_sent(struct stage *stage, size_t i) {
        LOCK_SCOPE(&stage->lock);
        assert(stage->chunked && i < stage->list.n);
        stage->sent_bits[i / 8] |= (uint8_t)(1u << (i % 8));
}
