/* SPDX-License-Identifier: Apache-2.0 */
/* stage_early.c: blocks of an open stage go up while the file is still written, and may then leave the disk.
 *
 * A *known block* was cut from a true cut on and hashed, and no byte of it has changed since. The list of known blocks (by offset) lives as long as the stage; stage_chunk
 * takes over what is still intact at the seal without reading it, so that a 2 GiB file is cut, hashed and sent once, and after the last close only the tail is left.
 *
 *   (bytes written) --stage_early_blocks--> known --engine uploads, stage_early_sent--> sent (logged, synced) --room needed--> punched: EXTENT_SENT
 *
 * A change of any byte of a block makes it unknown (early_touch), before the bytes change and again after. A block that was sent and punched and is then overwritten in
 * part keeps its untouched bytes as parts of the old block (EXTENT_SENT with an offset); they are read by hash through the block cache.
 *
 * Which cuts are certain: those that the cutter makes with more bytes following (never "the end of the file"), from cut 0 on through known blocks. The block
 * that is being written to is left alone while it is fresh, unless a writer waits for room.
 *
 * One cutter per stage at a time (early_busy); it reads and hashes without locks and finds out afterwards whether a write came into its range (early_hit). */
#include "stage_core.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>

#include "base/chunk.h"
#include "base/digest.h"
#include "base/log.h"

#define QUIET_MS 500
#define EARLY_READ_MS 30000

static size_t known_lower(const struct stage *st, uint64_t off) {
        size_t lo = 0, hi = st->n_known;
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                if (st->known[mid].off < off)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        return lo;
}

void early_touch(struct stage *st, uint64_t off, uint64_t end) {
        lock_assert_held(&st->lock);
        if (st->early_busy && off < st->early_hi && end > st->early_lo)
                st->early_hit = true;
        if (!st->n_known || off >= end)
                return;
        size_t a = known_lower(st, off), b = known_lower(st, end);
        if (a > 0 && st->known[a - 1].off + st->known[a - 1].ref.bytes > off)
                a--;
        if (a < b) {
                memmove(st->known + a, st->known + b, (st->n_known - b) * sizeof *st->known);
                st->n_known -= b - a;
        }
}

static int known_add_locked(struct stage *st, uint64_t off, const struct blockref *ref, bool sent) {
        if (st->n_known == st->known_room) {
                size_t room = st->known_room ? st->known_room * 2 : 64;
                struct known_block *p = realloc(st->known, room * sizeof *p);
                if (!p)
                        return -ENOMEM;
                st->known = p;
                st->known_room = room;
        }
        size_t i = known_lower(st, off);
        assert(i == st->n_known || st->known[i].off != off);
        memmove(st->known + i + 1, st->known + i, (st->n_known - i) * sizeof *st->known);
        st->known[i] = (struct known_block) { .off = off, .ref = *ref, .sent = sent };
        st->n_known++;
        return 0;
}

int early_known(struct stage *st, uint64_t off, const struct blockref *ref) {
        int r = known_add_locked(st, off, ref, true);
        if (r == 0)
                st->known[known_lower(st, off)].off_disk = true;
        return r;
}

struct sent_block *stage_sent_block(struct stage *st, const struct digest *hash, uint32_t bytes) {
        if (st->n_sent_blocks > 0) {
                struct sent_block *last = st->sent_blocks[st->n_sent_blocks - 1];
                if (last->bytes == bytes && digest_equal(&last->hash, hash))
                        return last;
        }
        if (st->n_sent_blocks == st->sent_room) {
                size_t room = st->sent_room ? st->sent_room * 2 : 64;
                struct sent_block **p = realloc(st->sent_blocks, room * sizeof *p);
                if (!p)
                        return NULL;
                st->sent_blocks = p;
                st->sent_room = room;
        }
        struct sent_block *b = malloc(sizeof *b);
        if (!b)
                return NULL;
        *b = (struct sent_block) { .hash = *hash, .bytes = bytes };
        st->sent_blocks[st->n_sent_blocks++] = b;
        return b;
}

/* Enough bytes here that the server does not have? */
static bool wants_locked(struct stage *st, bool waiting) {
        if (st->state != STAGE_OPEN || !st->large || st->error || stage_left(st))
                return false;
        uint64_t bytes = st->pages * EXTENT_PAGE, kept = 0;
        for (size_t i = 0; i < st->n_known; i++)
                if (st->known[i].sent && !st->known[i].off_disk)
                        kept += st->known[i].ref.bytes;
        return bytes > kept && bytes - kept > (waiting ? 0 : st->owner->cfg.early_bytes);
}

int stages_early_next(struct stages *s, uint64_t after_gen, uint64_t *ret_gen) {
        bool waiting = atomic_load(&s->waiting);
        for (uint64_t after = after_gen;;) {
                struct stage *best = NULL;
                lock_take(&s->lock);
                bool none = s->n_open == 0 || (!waiting && s->dirty_bytes <= s->cfg.early_bytes);
                for (size_t i = 0; !none && i < s->n_buckets; i++)
                        for (struct stage *st = s->bucket[i]; st; st = st->hash_next)
                                if (st->gen > after && st->pages > 0 && (!best || st->gen < best->gen))
                                        best = st;
                uint64_t gen = best ? best->gen : 0;
                lock_drop(&s->lock);
                if (!gen)
                        return -ENOENT;
                struct stage *st;
                if (stage_get(s, gen, &st) == 0) {
                        lock_take(&st->lock);
                        bool wants = wants_locked(st, waiting);
                        lock_drop(&st->lock);
                        stage_put(st);
                        if (wants) {
                                *ret_gen = gen;
                                return 0;
                        }
                }
                after = gen;
        }
}

struct any { uint64_t lo, hi; bool yes; };
static int any_data(void *arg, const struct extent *e) {
        struct any *a = arg;
        a->yes |= e->kind == EXTENT_DATA;
        return a->yes;
}
static bool on_disk_locked(struct stage *st, uint64_t off, uint64_t n) {
        struct any a = { 0 };
        (void)extents_each(&st->map, off, n, any_data, &a);
        return a.yes;
}

/* Cuts one block at the true cut off. 1: no certain cut there yet, or a write came in between. */
static int cut_at(struct stage *st, uint64_t off, uint8_t *buf) {
        const struct chunk_param *p = chunk_param(CHUNK_PARAM_1);
        bool waiting = atomic_load(&st->owner->waiting);
        lock_take(&st->lock);
        uint64_t size = st->size;
        uint64_t n = off < size ? MIN((uint64_t)p->max_bytes, size - off) : 0;
        bool fresh = !waiting && st->last_write_end > off && st->last_write_end < off + n && clock_mono_ms(st->owner->cfg.clock) - st->last_write_ms < QUIET_MS;
        /* a sequential writer is at the end of the file: full look-ahead means that it has left this block */
        bool skip = st->state != STAGE_OPEN || st->error || n == 0 || (fresh && n < p->max_bytes);
        if (!skip) {
                st->early_lo = off;
                st->early_hi = off + n;
                st->early_hit = false;
        }
        lock_drop(&st->lock);
        if (skip)
                return 1;
        ssize_t got = stage_pread(st, off, buf, (size_t)n, clock_mono_ms(st->owner->cfg.clock) + EARLY_READ_MS);
        if (got < 0)
                return (int)got;
        if ((uint64_t)got < n)
                return 1; /* truncated meanwhile */
        size_t cut = chunk_next(p, buf, (size_t)n, false);
        if (!cut)
                return 1;
        struct blockref ref = { .bytes = (uint32_t)cut };
        sha256(buf, cut, &ref.hash);
        LOCK_SCOPE(&st->lock);
        if (st->early_hit || st->state != STAGE_OPEN)
                return 1;
        return known_add_locked(st, off, &ref, false);
}

int stage_early_blocks(struct stage *st, struct early_block *ret, size_t max, size_t *ret_n) {
        lock_assert_none();
        lock_take(&st->lock);
        bool busy = st->early_busy || st->state != STAGE_OPEN || !st->large;
        if (!busy)
                st->early_busy = true;
        lock_drop(&st->lock);
        *ret_n = 0;
        if (busy)
                return 0;
        _cleanup_free_ uint8_t *buf = malloc(chunk_param(CHUNK_PARAM_1)->max_bytes);
        int r = buf ? 0 : -ENOMEM;
        size_t n = 0;
        for (uint64_t pos = 0; r == 0 && n < max;) {
                struct blockref ref;
                bool sent;
                if (!stage_known_block(st, pos, &ref, &sent)) {
                        r = cut_at(st, pos, buf);
                        if (r != 0)
                                break;
                        continue;
                }
                if (!sent) {
                        lock_take(&st->lock);
                        bool here = on_disk_locked(st, pos, ref.bytes);
                        lock_drop(&st->lock);
                        if (here)
                                ret[n++] = (struct early_block) { .off = pos, .ref = ref };
                }
                pos += ref.bytes;
        }
        lock_take(&st->lock);
        st->early_busy = false;
        lock_drop(&st->lock);
        if (r < 0 && n == 0)
                return r;
        *ret_n = n;
        return 0;
}

/* The block as it was cut is still the view. */
static struct known_block *intact_locked(struct stage *st, const struct early_block *b) {
        size_t i = known_lower(st, b->off);
        if (i == st->n_known || st->known[i].off != b->off || st->known[i].ref.bytes != b->ref.bytes || !digest_equal(&st->known[i].ref.hash, &b->ref.hash))
                return NULL;
        return &st->known[i];
}

int stage_pread_frozen(struct stage *stage, const struct early_block *b, void *buf) {
        for (int round = 0; round < 2; round++) {
                lock_take(&stage->lock);
                bool ok = intact_locked(stage, b) != NULL;
                lock_drop(&stage->lock);
                if (!ok)
                        return -ESTALE;
                if (round == 0) {
                        ssize_t n = stage_pread(stage, b->off, buf, b->ref.bytes, clock_mono_ms(stage->owner->cfg.clock) + EARLY_READ_MS);
                        if (n < 0)
                                return (int)n;
                        if ((size_t)n != b->ref.bytes)
                                return -ESTALE;
                }
        }
        return 0;
}

int stage_early_sent(struct stage *stage, const struct early_block *b) {
        lock_assert_none();
        struct stages *s = stage->owner;
        uint8_t payload[LOG_SENT_BYTES];
        struct slog_sent sent = { .hash = b->ref.hash, .block_bytes = b->ref.bytes };
        slog_sent_encode(&sent, payload);
        /* the stage's header must be on the platter before its SENT records mean anything */
        lock_take(&stage->io);
        lock_take(&stage->lock);
        struct known_block *k = intact_locked(stage, b);
        bool gone = !k || !stage->large || stage->state == STAGE_GONE, have = k && k->sent;
        lock_drop(&stage->lock);
        int r = gone ? -ESTALE : have ? 0 : stage_note(stage, LOG_SENT, b->off, b->ref.bytes, 0, 0, payload, sizeof payload);
        lock_drop(&stage->io);
        if (r < 0)
                return r;
        r = stage_sync(stage);
        if (r < 0)
                return r;
        lock_take(&stage->lock);
        k = intact_locked(stage, b);
        if (k)
                k->sent = true;
        lock_drop(&stage->lock);
        if (!k)
                return -ESTALE; /* overwritten since: the record is right for what was not, and later records are for the rest */
        lock_take(&s->lock);
        bool tight = s->dirty_bytes > s->cfg.dirty_limit_bytes / 2;
        lock_drop(&s->lock);
        if (tight || atomic_load(&s->waiting))
                stage_punch_sent(stage);
        return 0;
}

struct parts { struct { uint64_t off, bytes; } v[64]; size_t n; uint64_t lo, hi; };
static int data_parts(void *arg, const struct extent *e) {
        struct parts *p = arg;
        if (e->kind != EXTENT_DATA)
                return 0;
        if (p->n == ARRAY_SIZE(p->v))
                return 1;
        uint64_t a = MAX(e->off, p->lo), b = MIN(e->off + e->bytes, p->hi);
        p->v[p->n].off = a;
        p->v[p->n++].bytes = b - a;
        return 0;
}

/* Makes [off, end) leave the disk: map first. Returns freed pages. io held. */
static uint64_t punch_block(struct stage *st, uint64_t off, uint64_t end, const struct digest *hash) {
        struct parts p = { .lo = off, .hi = end };
        lock_take(&st->lock);
        (void)extents_each(&st->map, off, end - off, data_parts, &p);
        uint64_t before = extents_pages(&st->map, off, end - off);
        struct sent_block *b = p.n ? stage_sent_block(st, hash, (uint32_t)(end - off)) : NULL;
        size_t done = 0;
        for (; b && done < p.n && extents_reserve(&st->map) == 0; done++)
                extents_put(&st->map, &(struct extent) { .off = p.v[done].off, .bytes = p.v[done].bytes, .at = p.v[done].off - off, .where = b, .kind = EXTENT_SENT });
        /* pages at the edges go with the last of their bytes */
        for (size_t i = 0; i < done; i++) {
                uint64_t a = p.v[i].off, z = a + p.v[i].bytes, first = a / EXTENT_PAGE * EXTENT_PAGE, last = (z + EXTENT_PAGE - 1) / EXTENT_PAGE * EXTENT_PAGE;
                if (first < a && extents_pages(&st->map, first, 1) == 0)
                        a = first;
                if (last > z && extents_pages(&st->map, z, 1) == 0)
                        z = last;
                p.v[i].off = a;
                p.v[i].bytes = z - a;
        }
        uint64_t freed = before - extents_pages(&st->map, off, end - off);
        if (done)
                st->epoch++;
        size_t known = known_lower(st, off);
        if (done == p.n && p.n < ARRAY_SIZE(p.v) && known < st->n_known && st->known[known].off == off)
                st->known[known].off_disk = true;
        stage_account(st, st->pages - freed, st->small_bytes);
        lock_drop(&st->lock);
        for (size_t i = 0; i < done; i++)
                sums_punch(st, p.v[i].off, p.v[i].bytes);
        return freed;
}

void stage_punch_sent(struct stage *st) {
        lock_assert_none();
        uint64_t pos = 0, freed = 0;
        for (;;) {
                lock_take(&st->io);
                lock_take(&st->lock);
                struct known_block b = { 0 };
                bool found = false;
                for (size_t i = known_lower(st, pos); st->state != STAGE_GONE && i < st->n_known && !found; i++) {
                        b = st->known[i];
                        pos = b.off + b.ref.bytes;
                        found = b.sent && on_disk_locked(st, b.off, b.ref.bytes);
                }
                lock_drop(&st->lock);
                if (found)
                        freed += punch_block(st, b.off, b.off + b.ref.bytes, &b.ref.hash);
                lock_drop(&st->io);
                if (!found)
                        break;
        }
        if (freed)
                blobs_discharge(st->owner->cfg.blobs, freed * EXTENT_PAGE);
}
