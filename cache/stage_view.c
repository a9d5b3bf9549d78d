/* SPDX-License-Identifier: Apache-2.0 */
/* stage_view.c: what the bytes of a file are at an offset, looked up through the stack.
 *
 * view_find walks from the top stage down until one layer knows: an extent of that layer, or zeros beyond what it lets through of its base (base_limit), or the blob at the bottom. The
 * answer is one *piece*: as many bytes as have one source. A reader goes from piece to piece; most reads are one piece. A piece holds the references that keep its source alive.
 *
 * Bytes may move between the look and the read: a block that the server holds is punched, a committed stage's file becomes a blob's. Whoever moves bytes first changes the map and the
 * stage's epoch, then moves. piece_read (stage_sums.c) compares the epoch after its read; -ESTALE sends the reader back to view_find, which sees the new place. So nobody waits and nobody
 * ever returns bytes of a hole.
 *
 * Locks: one stage's `lock` at a time, for memory only. Blobs are looked up with no lock held (it may cost a SELECT). */
#include "stage_core.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "base/io.h"

#define VERIFY_BYTES (1u << 20)

void piece_end(struct piece *p) {
        stage_put(p->stage);
        blob_put(p->blob);
        *p = (struct piece) { .fd = -1 };
}

struct blob *stage_base_blob(struct stage *st, int *ret_err) {
        *ret_err = 0;
        lock_take(&st->lock);
        struct blob *b = st->blob ? blob_ref(st->blob) : NULL;
        bool moved = st->below || st->become;
        struct content c = st->base;
        lock_drop(&st->lock);
        if (!b && !moved && c.size == 0)
                *ret_err = -EIO; /* asked for bytes of a base that has none: never zeros instead */
        if (b || moved || c.size == 0)
                return b;
        int r = blob_get(st->owner->cfg.blobs, &c, &b);
        if (r < 0) {
                *ret_err = r;
                return NULL;
        }
        LOCK_SCOPE(&st->lock);
        if (!st->blob && !st->below && content_equal(&c, &st->base))
                st->blob = blob_ref(b);
        return b;
}

/* One layer: what it says about off. next: look there, at most *limit bytes. */
enum layer_says { SAYS_PIECE, SAYS_SENT, SAYS_BELOW, SAYS_BASE };
static enum layer_says look_locked(struct stage *st, uint64_t off, uint64_t *limit, struct piece *p, struct content *ret_sent) {
        if (st->become) {
                *p = (struct piece) { .kind = PIECE_BLOB, .bytes = *limit, .at = off, .fd = -1, .blob = blob_ref(st->become) };
                return SAYS_PIECE;
        }
        struct extent e;
        if (extents_find(&st->map, off, &e)) {
                if (e.off <= off) {
                        uint64_t n = MIN(*limit, e.off + e.bytes - off), at = e.at + (off - e.off);
                        if (e.kind == EXTENT_ZERO) {
                                *p = (struct piece) { .kind = PIECE_ZERO, .bytes = n, .fd = -1 };
                                return SAYS_PIECE;
                        }
                        if (e.kind == EXTENT_SENT) {
                                const struct sent_block *b = e.where;
                                *ret_sent = (struct content) { .root = b->hash, .size = b->bytes, .depth = 0, .param = CHUNK_PARAM_SENT };
                                *p = (struct piece) { .kind = PIECE_BLOB, .bytes = n, .at = at, .fd = -1 };
                                return SAYS_SENT;
                        }
                        const struct segment *seg = e.where;
                        *p = (struct piece) { .kind = PIECE_DISK, .bytes = n, .at = at, .fd = seg ? seg->fd : st->fd, .stage = stage_ref(st), .epoch = st->epoch,
                                             .large = !seg, .sums_fd = st->sums_fd };
                        if (seg)
                                payload_piece(st, seg, p);
                        return SAYS_PIECE;
                }
                *limit = MIN(*limit, e.off - off);
        }
        if (off >= st->base_limit) {
                *p = (struct piece) { .kind = PIECE_ZERO, .bytes = *limit, .fd = -1 };
                return SAYS_PIECE;
        }
        *limit = MIN(*limit, st->base_limit - off);
        return st->below ? SAYS_BELOW : SAYS_BASE;
}

int view_find(struct stage *top, uint64_t off, uint64_t max, struct piece *ret) {
        struct stage *st = stage_ref(top);
        uint64_t limit = max;
        for (;;) {
                struct content sent;
                struct stage *below = NULL;
                lock_take(&st->lock);
                if (st == top) {
                        if (off >= st->size || max == 0) {
                                lock_drop(&st->lock);
                                stage_put(st);
                                *ret = (struct piece) { .kind = PIECE_END, .fd = -1 };
                                return 0;
                        }
                        limit = MIN(limit, st->size - off);
                }
                enum layer_says says;
                if (st->state == STAGE_GONE && !st->become) {
                        lock_drop(&st->lock);
                        stage_put(st);
                        return -ENOENT;
                }
                says = look_locked(st, off, &limit, ret, &sent);
                if (says == SAYS_BELOW)
                        below = stage_ref(st->below);
                lock_drop(&st->lock);
                int r = 0;
                if (says == SAYS_BELOW) {
                        stage_put(st);
                        st = below;
                        continue;
                }
                if (says == SAYS_SENT) {
                        r = blob_get(st->owner->cfg.blobs, &sent, &ret->blob);
                } else if (says == SAYS_BASE) {
                        *ret = (struct piece) { .kind = PIECE_BLOB, .bytes = limit, .at = off, .fd = -1 };
                        ret->blob = stage_base_blob(st, &r);
                        if (!ret->blob && r == 0) {
                                /* the base changed between two looks (its stage was committed) */
                                stage_put(st);
                                st = stage_ref(top);
                                limit = max;
                                continue;
                        }
                }
                stage_put(st);
                return r;
        }
}

int stage_verify(struct stage *st, _Atomic bool *stop) {
        lock_assert_none();
        _cleanup_free_ uint8_t *buf = malloc(VERIFY_BYTES);
        int result = 0;
        if (!buf)
                return -ENOMEM;
        for (uint64_t off = 0;;) {
                struct piece p = { .fd = -1 };
                struct content sent;
                struct extent e;
                uint64_t n = VERIFY_BYTES;
                lock_take(&st->lock);
                bool gone = st->state == STAGE_GONE, any = !gone && extents_find(&st->map, off, &e), data = any && e.kind == EXTENT_DATA;
                if (data) {
                        off = MAX(off, e.off);
                        (void)look_locked(st, off, &n, &p, &sent);
                }
                lock_drop(&st->lock);
                if (gone)
                        return -ENOENT;
                if (!any)
                        return result;
                int r = data ? piece_read(&p, buf, (size_t)p.bytes) : 0;
                if (r != -ESTALE) /* else it moved: look again */
                        off += data ? p.bytes : e.off + e.bytes - off;
                piece_end(&p);
                if (r < 0 && r != -ESTALE)
                        result = -EIO; /* the rest is looked at too: it is counted */
                if (stop && atomic_load(stop))
                        return -ECANCELED;
        }
}

ssize_t stage_pread(struct stage *stage, uint64_t off, void *buf, size_t n, int64_t deadline_ms) {
        lock_assert_none();
        size_t done = 0;
        while (done < n) {
                struct piece p;
                int r = view_find(stage, off + done, n - done, &p);
                if (r < 0)
                        return r;
                if (p.kind == PIECE_END)
                        break;
                uint8_t *at = (uint8_t *)buf + done;
                ssize_t got = (ssize_t)p.bytes;
                if (p.kind == PIECE_ZERO) {
                        memset(at, 0, p.bytes);
                } else if (p.kind == PIECE_DISK) {
                        r = piece_read(&p, at, (size_t)p.bytes);
                        got = r == -ESTALE ? 0 : r < 0 ? r : got;
                } else {
                        got = blob_pread_exact(p.blob, p.at, at, (size_t)p.bytes, deadline_ms);
                        if (got == 0)
                                got = -EIO;
                }
                piece_end(&p);
                if (got < 0)
                        return got;
                done += (size_t)got;
        }
        return (ssize_t)done;
}
