/* SPDX-License-Identifier: Apache-2.0 */
/* stage_seg.c: the shared write log of small stages.
 *
 * A segment is a preallocated file of 4 MiB; one is *current*, one may be *spare*, the others are *full* and wait until no stage has records in them. A save of a small
 * file thus costs one pwrite, no file creation, and all saves of a second share one fdatasync. Emptied segments are reused (a new salt makes their old records invalid, and that is synced
 * before the first new record), so that in steady state no file is made or unlinked.
 *
 *   spare --rotation--> current --full--> full, refs > 0 --last stage gone--> tidy: spare (new salt, synced), or unlinked and discharged
 *
 * Segments are reused strictly in the order in which they were filled. So the record that ends a stage (DONE) always outlives the records that it ends, and no stage ever comes back
 * from the dead after a crash. A stage that stays for long (parked, offline) would thus hold up all later segments: it is moved to a file of its own (stages_relocate).
 *
 * Appending reserves a range under the lock and writes outside of it. A crash between leaves a hole, which the scanner skips (stage_log.c). The sync mark tells up to
 * which position everything was on the platter: after a power cut a damaged record before the mark is rot, behind it an ordinary loss of the last second.
 *
 * Room: the whole segment is charged when it is made. Making one needs disk room and may evict, so it is done in segments_prepare with no lock held; an append that finds no
 * place answers -EAGAIN. Control records (seal, done, reassign, ...) end things and must not wait: they may run into a slack behind the nominal end, and where that is full too, or
 * nothing was ever written, a segment is made for them on the spot, beyond the limit if need be (one segment at most: what they end gives room back).
 *
 * A sync that failed spoils the segment: nobody knows which of its bytes arrived. It takes no more, whoever has bytes in it that were not synced before hears of it (stage_sync.c), and it is not used again.
 *
 * One lock (RANK_SEGMENT), a leaf but for nothing; no I/O under it. The lock `sync` of a segment is held while the disk is asked. */
#include "stage_seg.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"

struct seg_writing { uint64_t pos; struct seg_writing *next; };

struct segments {
        struct segments_config cfg;
        struct lock lock;
        struct segment *all;       /* lock: every segment, newest first */
        struct segment *current, *spare; /* lock */
        uint64_t order;            /* lock: of the next rotation */
        uint32_t number;           /* lock: next file number */
        uint64_t n;                /* lock: segments on disk */
};

int segments_new(const struct segments_config *c, struct segments **ret) {
        struct segments *s = calloc(1, sizeof *s);
        if (!s)
                return -ENOMEM;
        s->cfg = *c;
        if (!s->cfg.segment_bytes)
                s->cfg.segment_bytes = SEGMENT_BYTES;
        s->order = c->order;
        lock_init(&s->lock, "segments", RANK_SEGMENT);
        *ret = s;
        return 0;
}

static void segment_close(struct segment *seg) {
        lock_destroy(&seg->sync);
        if (seg->fd >= 0)
                (void)close(seg->fd);
        free(seg);
}

void segments_free(struct segments *s) {
        if (!s)
                return;
        while (s->all) {
                struct segment *seg = s->all;
                s->all = seg->next;
                segment_close(seg);
        }
        lock_destroy(&s->lock);
        free(s);
}

uint32_t segments_number(struct segments *s) {
        LOCK_SCOPE(&s->lock);
        return s->number++;
}

void segments_number_above(struct segments *s, uint32_t number) {
        LOCK_SCOPE(&s->lock);
        if (s->number <= number)
                s->number = number + 1;
}

uint64_t segments_bytes(struct segments *s) {
        LOCK_SCOPE(&s->lock);
        return s->n * s->cfg.segment_bytes;
}

static void segment_name(uint32_t number, char ret[STAGE_DATA_NAME]) {
        (void)snprintf(ret, STAGE_DATA_NAME, "log-%08" PRIu32, number);
}

/* A fresh life: new salt, header on disk. */
static int segment_begin(struct segment *seg, uint64_t order, bool sync) {
        struct segments *s = seg->owner;
        seg->salt = rng_id(s->cfg.rng);
        seg->order = order;
        struct slog_file f = { .kind = LOG_SHARED, .salt = seg->salt, .order = order };
        uint8_t b[LOG_UNIT];
        slog_file_encode(&f, b);
        int r = pwrite_full(seg->fd, b, sizeof b, 0);
        if (r == 0)
                r = FAILPOINT("segment.begin");
        if (r == 0 && sync && fdatasync(seg->fd) < 0)
                r = -errno;
        seg->end = seg->synced = seg->marked = LOG_UNIT;
        return r;
}

static int segment_create(struct segments *s, struct segment **ret) {
        struct segment *seg = calloc(1, sizeof *seg);
        if (!seg)
                return -ENOMEM;
        *seg = (struct segment) { .owner = s, .fd = -1 };
        lock_init(&seg->sync, "segment sync", RANK_STAGE_IO);
        char name[STAGE_DATA_NAME];
        int r;
        uint64_t order;
        do {
                lock_take(&s->lock);
                seg->number = s->number++;
                order = s->order++;
                lock_drop(&s->lock);
                segment_name(seg->number, name);
                seg->fd = openat(s->cfg.dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
                r = seg->fd < 0 ? -errno : 0;
        } while (r == -EEXIST);
        if (r == 0 && fallocate(seg->fd, 0, 0, s->cfg.segment_bytes) < 0 && errno != EOPNOTSUPP)
                r = -errno;
        if (r == 0)
                r = segment_begin(seg, order, false);
        if (r < 0) {
                if (seg->fd >= 0)
                        (void)unlinkat(s->cfg.dir_fd, name, 0);
                segment_close(seg);
                return r;
        }
        *ret = seg;
        return 0;
}

static bool fits_locked(const struct segments *s, const struct segment *seg, uint64_t bytes) {
        return seg && !seg->full && seg->end + bytes <= s->cfg.segment_bytes;
}

static void segment_add(struct segments *s, struct segment *seg) {
        LOCK_SCOPE(&s->lock);
        seg->next = s->all;
        s->all = seg;
        s->n++;
        if (!s->spare)
                s->spare = seg;
        else
                seg->full = true; /* two made one at a time: the second goes back by segments_tidy */
}

int segments_prepare(struct segments *s, uint64_t bytes) {
        assert(bytes + LOG_UNIT <= s->cfg.segment_bytes);
        lock_take(&s->lock);
        bool ok = fits_locked(s, s->current, bytes) || s->spare, first = !s->current && !s->spare;
        lock_drop(&s->lock);
        if (ok)
                return 0;
        int r = blobs_charge(s->cfg.blobs, s->cfg.segment_bytes);
        if (r == -ENOSPC && first) {
                /* without a segment nothing could even be ended */
                blobs_charge_found(s->cfg.blobs, s->cfg.segment_bytes);
                r = 0;
        }
        if (r < 0)
                return r;
        struct segment *seg;
        r = segment_create(s, &seg);
        if (r < 0) {
                blobs_discharge(s->cfg.blobs, s->cfg.segment_bytes);
                return r;
        }
        segment_add(s, seg);
        return 0;
}

static struct segment *reserve_locked(struct segments *s, uint64_t bytes, bool control) {
        if (!fits_locked(s, s->current, bytes) && s->spare) {
                if (s->current)
                        s->current->full = true;
                s->current = steal_ptr(s->spare);
        }
        if (fits_locked(s, s->current, bytes))
                return s->current;
        if (control && s->current && !s->current->failed && s->current->end + bytes <= (uint64_t)s->cfg.segment_bytes + SEGMENT_SLACK)
                return s->current;
        return NULL;
}

int segments_append(struct segments *s, const struct slog_entry *e, const void *payload, bool control, struct segment **ret, uint64_t *ret_pos) {
        uint64_t bytes = slog_record_bytes(e->payload_bytes);
        struct segment *seg;
        for (;;) {
                lock_take(&s->lock);
                seg = reserve_locked(s, bytes, control);
                if (seg)
                        break;
                lock_drop(&s->lock);
                if (!control)
                        return -EAGAIN;
                struct segment *made;
                int r = segment_create(s, &made);
                if (r < 0)
                        return r;
                blobs_charge_found(s->cfg.blobs, s->cfg.segment_bytes); /* evicts nothing: the caller holds locks */
                segment_add(s, made);
        }
        struct seg_writing w = { .pos = seg->end, .next = seg->writing };
        seg->writing = &w;
        seg->end += bytes;
        seg->refs++;
        lock_drop(&s->lock);

        int r = slog_write(seg->fd, &seg->salt, w.pos, e, payload);

        lock_take(&s->lock);
        for (struct seg_writing **p = &seg->writing; *p; p = &(*p)->next)
                if (*p == &w) {
                        *p = w.next;
                        break;
                }
        if (r < 0)
                seg->refs--;
        lock_drop(&s->lock);
        if (r < 0)
                return r;
        *ret = seg;
        *ret_pos = w.pos;
        return 0;
}

struct segment *segment_ref(struct segment *seg) {
        LOCK_SCOPE(&seg->owner->lock);
        seg->refs++;
        return seg;
}

void segment_put(struct segment *seg) {
        if (!seg)
                return;
        LOCK_SCOPE(&seg->owner->lock);
        assert(seg->refs > 0);
        seg->refs--;
}

bool segment_is_synced(struct segment *seg, uint64_t pos) {
        LOCK_SCOPE(&seg->owner->lock);
        return pos < seg->synced;
}

bool segment_failed(struct segment *seg) {
        LOCK_SCOPE(&seg->owner->lock);
        return seg->failed;
}

/* The kernel tells a failure to one caller only, and it is told to all who have bytes here: one asks at a time, and notes it before the next one does. */
static int ask_disk(struct segments *s, struct segment *g) {
        LOCK_SCOPE(&g->sync);
        int r = FAILPOINT("segment.sync");
        if (r == 0 && fdatasync(g->fd) < 0)
                r = -errno;
        LOCK_SCOPE(&s->lock);
        if (r < 0) {
                log_error("segment number=%" PRIu32 " sync error=%s", g->number, err_name(r));
                g->failed = g->full = true;
        }
        return g->failed ? -EIO : 0;
}

/* The newest one before below_order that has records behind its last mark. */
static struct segment *unsynced_locked(struct segments *s, uint64_t below_order) {
        struct segment *best = NULL;
        for (struct segment *g = s->all; g; g = g->next)
                if (g->end > g->marked && !g->failed && g->order < below_order && (!best || g->order > best->order))
                        best = g;
        return best;
}

int segments_sync(struct segments *s) {
        int result = 0;
        uint64_t below = UINT64_MAX;
        for (;;) {
                lock_take(&s->lock);
                struct segment *g = unsynced_locked(s, below);
                if (!g) {
                        lock_drop(&s->lock);
                        return result;
                }
                below = g->order;
                g->refs++;
                uint64_t done = g->end;
                for (struct seg_writing *w = g->writing; w; w = w->next)
                        done = MIN(done, w->pos);
                lock_drop(&s->lock);

                int r = ask_disk(s, g);
                if (r == 0)
                        FAILPOINT_HERE("segment.synced");

                uint64_t pos = 0;
                if (r == 0) {
                        lock_take(&s->lock);
                        pos = g->end;
                        g->end += LOG_UNIT;
                        struct seg_writing w = { .pos = pos, .next = g->writing };
                        g->writing = &w;
                        lock_drop(&s->lock);
                        struct slog_entry mark = { .kind = LOG_SYNC, .off = done };
                        int m = slog_write(g->fd, &g->salt, pos, &mark, NULL);
                        if (m < 0) /* it is on the platter all the same; only damage could not be told from loss */
                                log_debug("segment number=%" PRIu32 " mark error=%s", g->number, err_name(m));
                        lock_take(&s->lock);
                        for (struct seg_writing **p = &g->writing; *p; p = &(*p)->next)
                                if (*p == &w) {
                                        *p = w.next;
                                        break;
                                }
                        g->synced = MAX(g->synced, done);
                        /* quiet since: the next round has nothing to do here */
                        if (pos == done)
                                g->marked = pos + LOG_UNIT;
                        lock_drop(&s->lock);
                }
                segment_put(g);
                if (r < 0 && result == 0)
                        result = r;
        }
}

static struct segment **oldest_locked(struct segments *s) {
        struct segment **best = &s->all;
        for (struct segment **p = &s->all; *p; p = &(*p)->next)
                if ((*p)->order < (*best)->order)
                        best = p;
        return best;
}

#define PINNED_BLOCKED 2u
#define PINNED_STAGES 64u
struct segment *segments_pinned(struct segments *s) {
        LOCK_SCOPE(&s->lock);
        struct segment *g = *oldest_locked(s);
        unsigned blocked = 0;
        for (struct segment *x = s->all; x; x = x->next)
                blocked += x != g && x->full && x->refs == 0;
        if (!g || !g->full || g->refs == 0 || g->refs > PINNED_STAGES || blocked < PINNED_BLOCKED)
                return NULL;
        g->refs++;
        return g;
}

void segments_tidy(struct segments *s) {
        for (;;) {
                lock_take(&s->lock);
                struct segment **p = oldest_locked(s);
                struct segment *g = *p && (*p)->full && (*p)->refs == 0 ? *p : NULL;
                bool keep = false;
                uint64_t order = 0;
                if (g) {
                        *p = g->next;
                        s->n--;
                        keep = !s->spare && !g->failed;
                        order = s->order++;
                }
                lock_drop(&s->lock);
                if (!g)
                        return;
                if (keep && segment_begin(g, order, true) == 0) {
                        lock_take(&s->lock);
                        g->full = s->spare != NULL;
                        if (!s->spare)
                                s->spare = g;
                        g->next = s->all;
                        s->all = g;
                        s->n++;
                        lock_drop(&s->lock);
                        continue;
                }
                char name[STAGE_DATA_NAME];
                segment_name(g->number, name);
                (void)unlinkat(s->cfg.dir_fd, name, 0);
                segment_close(g);
                blobs_discharge(s->cfg.blobs, s->cfg.segment_bytes);
        }
}

int segments_found(struct segments *s, uint32_t number, int fd, const struct slog_file *f, uint64_t end, struct segment **ret) {
        struct segment *seg = calloc(1, sizeof *seg);
        if (!seg)
                return -ENOMEM;
        *seg = (struct segment) { .owner = s, .fd = fd, .number = number, .salt = f->salt, .order = f->order, .end = end, .synced = end, .marked = end, .refs = 1, .full = true };
        lock_init(&seg->sync, "segment sync", RANK_STAGE_IO);
        LOCK_SCOPE(&s->lock);
        seg->next = s->all;
        s->all = seg;
        s->n++;
        if (s->order <= f->order)
                s->order = f->order + 1;
        if (s->number <= number)
                s->number = number + 1;
        *ret = seg;
        return 0;
}

void segments_found_end(struct segment *seg, uint64_t end, uint64_t synced) {
        LOCK_SCOPE(&seg->owner->lock);
        seg->end = end;
        seg->synced = synced;
        seg->marked = 0; /* synced again once: after a kill the page cache may still hold some of it */
}

uint64_t segments_each(const struct segments *s) {
        return s->cfg.segment_bytes;
}
