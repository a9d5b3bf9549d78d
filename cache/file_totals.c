/* SPDX-License-Identifier: Apache-2.0 */
/* file_totals.c: what waits for the server, in numbers, who waits for that, and the files that have been quiet for so long that what they have counts as a version (a quiet point).
 *
 * Pending is what the outbox has and what is in open stages of files that have a name. Open ones are counted first: what is sealed in between is in the outbox by then. No lock is held over SQL but f->lock in
 * file_quiet_points. */
#include <stdlib.h>

#include "base/log.h"
#include "file_priv.h"

#define OPEN_LOOK_MAX 256u    /* files at a time */
#define OPEN_ROUNDS_MAX 1024u

/* The server took its name, and nobody here can reach it any more: what could not be written before that will never be sent. It waits for the next start, which puts it aside. */
static bool given_up(struct file *f) {
        LOCK_SCOPE(&f->lock);
        lock_take(&f->fs->lock);
        bool held = f->handles > 0 || f->opening > 0;
        lock_drop(&f->fs->lock);
        return !held && f->top && stage_error(f->top) != 0;
}

/* Files with an open stage whose bytes are to go somewhere. A deleted one that a program still has open goes with its last handle, whatever is in it. What is known of each counts until the tree tells that
 * a name of it came or went (files_named), or its last handle: one SELECT then, none else. */
static int open_pending(struct cache *c, uint64_t *ret) {
        struct files *fs = c->files;
        struct file *v[OPEN_LOOK_MAX];
        uint64_t seen[OPEN_LOOK_MAX];
        for (unsigned round = 0;; round++) {
                size_t n = 0;
                int r = 0;
                lock_take(&fs->lock);
                bool know = fs->n_open_by_name[NAME_UNKNOWN] == 0 || round == OPEN_ROUNDS_MAX; /* who changes that fast is pending */
                *ret = fs->n_open - fs->n_open_by_name[NAME_NONE];
                for (struct file *f = fs->open_first; f && n < OPEN_LOOK_MAX && !know; f = f->open_next)
                        if (f->name == NAME_UNKNOWN) {
                                f->refs++;
                                seen[n] = f->namings;
                                v[n++] = f;
                        }
                lock_drop(&fs->lock);
                if (know)
                        return 0;
                for (size_t i = 0; i < n; i++) {
                        struct node node;
                        int k = r == 0 ? tree_get(c->tree, v[i]->ino, &node) : r;
                        bool none = k == -ENOENT || (k == 0 && node.unlinked && (!node.taken || given_up(v[i])));
                        lock_take(&fs->lock);
                        if ((k == 0 || k == -ENOENT) && v[i]->namings == seen[i])
                                file_name_set_locked(v[i], none ? NAME_NONE : NAME_KEPT);
                        else if (k != -ENOENT)
                                r = k;
                        lock_drop(&fs->lock);
                        file_put(v[i]);
                }
                if (r < 0)
                        return r;
        }
}

static uint64_t rescues(struct files *fs) {
        uint64_t n = 0;
        LOCK_SCOPE(&fs->lock);
        for (struct stage *st = fs->loose; st; st = st->chain)
                n += st->rescue;
        return n;
}

int cache_totals(struct cache *c, struct cache_totals *ret) {
        struct outbox_totals o;
        struct stages_totals s;
        struct blobs_totals b;
        uint64_t open;
        int r = open_pending(c, &open); /* before the outbox: what is sealed in between is there */
        if (r == 0)
                r = outbox_totals(c->tree, &o);
        if (r < 0)
                return r;
        stages_totals(c->stages, &s);
        blobs_totals(c->blobs, &b);
        int64_t oldest = o.oldest_ns;
        if (s.oldest_write_ns && (!oldest || s.oldest_write_ns < oldest))
                oldest = s.oldest_write_ns;
        *ret = (struct cache_totals) { .bytes = b.bytes, .limit_bytes = b.limit_bytes, .dirty_bytes = s.dirty_bytes, .pending_files = o.files + open,
                                       .pending_bytes = s.dirty_bytes, .oldest_pending_ns = oldest, .rescues = rescues(c->files) };
        return 0;
}

int cache_wait_drained(struct cache *c, int64_t deadline_ms) {
        struct files *fs = c->files;
        for (;;) {
                struct outbox_totals o;
                uint64_t open = 0;
                int r = open_pending(c, &open); /* first, as above */
                if (r == 0)
                        r = outbox_totals(c->tree, &o);
                if (r < 0)
                        return r;
                LOCK_SCOPE(&fs->lock);
                if (o.items == 0 && open == 0)
                        return 0;
                int64_t now = clock_mono_ms(c->clock);
                if (now >= deadline_ms)
                        return -ETIMEDOUT;
                /* answers without bytes of ours (mkdir, ...) have no signal of their own: look every 50 ms too */
                (void)!cond_wait_until(&fs->drained, &fs->lock, clock_mono_ms(clock_system()) + MIN(deadline_ms - now, (int64_t)50));
        }
}

int64_t file_quiet_points(struct cache *c) {
        struct files *fs = c->files;
        int64_t now = clock_mono_ms(c->clock), next = QUIET_POINT_MS;
        size_t max = 0, n = 0;
        lock_take(&fs->lock);
        max = fs->n_open;
        lock_drop(&fs->lock);
        _cleanup_free_ struct file **v = max ? calloc(max, sizeof *v) : NULL;
        if (!v)
                return next;
        lock_take(&fs->lock);
        for (struct file *f = fs->open_first; f && n < max; f = f->open_next) {
                f->refs++;
                v[n++] = f;
        }
        lock_drop(&fs->lock);
        for (size_t i = 0; i < n; i++) {
                struct file *f = v[i];
                lock_take(&f->lock);
                int64_t due = INT64_MAX;
                if (f->top) {
                        LOCK_SCOPE(&f->top->lock);
                        if (f->top->state == STAGE_OPEN && !f->top->error && atomic_load(&f->top->first_write_ns))
                                due = MIN(f->top->last_write_ms + QUIET_POINT_MS, f->top->first_write_ms + COMMIT_AGE_MS);
                }
                if (due <= now) {
                        uint64_t gen;
                        int r = file_seal(f, &gen);
                        if (r < 0)
                                log_warn("file ino=%llu quiet_point error=%s", (unsigned long long)f->ino, err_name(r));
                        due = now + (gen ? QUIET_POINT_MS : COMMIT_AGE_MS);
                }
                lock_drop(&f->lock);
                if (due - now < next)
                        next = due - now;
                file_put(f);
        }
        return MAX(next, (int64_t)1);
}
