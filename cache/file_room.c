/* SPDX-License-Identifier: Apache-2.0 */
/* file_room.c: the thread that makes things durable and serves those who wait for room.
 *
 * "cache-flush" waits on one condition with a deadline and does, in this order:
 *
 *   1. a second after something became dirty, or at once when asked or when the tree's log is long: sync stages (stage_sync.c), then the tree (tree_sync.c)
 *   2. what may only go after that sync, if nothing in it failed: stages that nobody needs; committed stages are handed to the workers (file_commit.c)
 *   3. outbox rows that could not be written before are tried again
 *   4. writers that wait for room, in order of arrival
 *   5. once a minute the blobs' index, so that a kill costs the order of a minute and not of the whole day
 *
 * Back-pressure. A write is parked when the dirty share is full, or when the blobs could not evict enough. It is told to come again when its bytes fit (each wake-up reserves them in
 * thought, so that a crowd does not wake for one place); it fails with -ENOSPC when its deadline passes, or when we are offline and nothing will free room: stages that nobody needs any more
 * (a file was deleted) go with the next flush, or when the upload that works on them has heard of it and ends. A writer that waits also
 * makes every large open stage a candidate for early upload (stages->waiting) and wakes the engine.
 *
 * SQLite's files grow too, and without them nothing can be sent: no row marked as sent, no answer applied. So data leaves a reserve free on the disk whatever the floor says (cache.c says how much),
 * and the second half of it is for the engine and for what gives room back: rows that would be added (a create, a link) find the disk full before (cache_tight). They wait in the same list as
 * writers (cache_wait_room), after clean blocks were let go (cache_shed). Step 1 looks at the disk once a second.
 *
 * A write that failed for lack of room spoils its generation: the program was told, and half a file must not become a version.
 *
 * One lock, fs->lock, for the lists; completions are called without it, from this thread (in a simulation, by_hand, from cache_turn). */
#include <assert.h>
#include <time.h>

#include "base/log.h"
#include "file_priv.h"

static int64_t mono_ms(void) {
        return clock_mono_ms(clock_system());
}

void files_kick(struct files *fs, bool now) {
        LOCK_SCOPE(&fs->lock);
        if (!fs->dirty) {
                fs->dirty = true;
                fs->dirty_since_ms = mono_ms();
        }
        if (now)
                fs->kicked = true;
        cond_broadcast(&fs->work);
}

void files_dirty(void *arg) {
        files_kick(arg, false);
}

void files_log_full(void *arg) {
        struct files *fs = ((struct cache *)arg)->files;
        LOCK_SCOPE(&fs->lock);
        if (!fs->log_full) {
                fs->log_full = fs->kicked = true;
                cond_broadcast(&fs->work);
        }
}

void files_room(void *arg) {
        struct files *fs = arg;
        LOCK_SCOPE(&fs->lock);
        fs->room_seq++;
        if (fs->wait_first) {
                fs->kicked = true;
                cond_broadcast(&fs->work);
        }
}

static uint64_t dirty_bytes(struct files *fs) {
        struct stages_totals t;
        stages_totals(fs->c->stages, &t);
        return t.dirty_bytes;
}

bool files_room_now(struct files *fs, uint64_t n) {
        lock_take(&fs->lock);
        bool queue = fs->wait_first != NULL;
        lock_drop(&fs->lock);
        uint64_t dirty = dirty_bytes(fs);
        /* those who wait came first, unless there is plenty */
        return dirty + n <= fs->dirty_limit && (!queue || dirty + n <= fs->dirty_limit / 2);
}

static void unlink_locked(struct files *fs, struct file_write *w) {
        if (w->prev)
                w->prev->next = w->next;
        else
                fs->wait_first = w->next;
        if (w->next)
                w->next->prev = w->prev;
        else
                fs->wait_last = w->prev;
        w->next = w->prev = NULL;
        w->state = 0;
        if (!fs->wait_first)
                atomic_store(&fs->c->stages->waiting, false);
}

enum { WAIT_DIRTY = 1, WAIT_BLOBS = 2 };

static void tell_failed(struct file_write *w, int err) {
        if (w->file) /* no bytes, no generation to spoil */
                file_write_failed(w, err);
}

/* Room that needs no server is on its way back: of what was deleted or replaced since the last flush, or while somebody worked on it. */
static bool coming_locked(const struct files *fs) {
        return fs->discards != fs->looked || fs->held || fs->going;
}

static int wait_room(struct files *fs, struct file_write *w, bool blobs_full) {
        w->files = fs;
        lock_take(&fs->lock);
        bool wait = (fs->online || coming_locked(fs)) && fs->running && !fs->stop;
        if (wait) {
                w->state = blobs_full ? WAIT_BLOBS : WAIT_DIRTY;
                if (blobs_full)
                        fs->failed_seq = fs->room_seq;
                w->next = NULL;
                w->prev = fs->wait_last;
                if (w->prev)
                        w->prev->next = w;
                else
                        fs->wait_first = w;
                fs->wait_last = w;
                atomic_store(&fs->c->stages->waiting, true);
                fs->kicked = true;
                cond_broadcast(&fs->work);
        }
        lock_drop(&fs->lock);
        if (!wait) {
                tell_failed(w, -ENOSPC);
                return -ENOSPC;
        }
        files_wake(fs);
        return -EINPROGRESS;
}

int file_wait_room(struct file_write *w, bool blobs_full) {
        return wait_room(w->file->fs, w, blobs_full);
}

int cache_wait_room(struct cache *c, struct file_write *w) {
        assert(!w->file && w->n > 0);
        return wait_room(c->files, w, true);
}

bool cache_tight(struct cache *c) {
        return blobs_tight(c->blobs);
}

bool cache_shed(struct cache *c) {
        return blobs_shed(c->blobs);
}

void file_write_cancel(struct file_write *w) {
        struct files *fs = w->files;
        if (!fs)
                return;
        lock_take(&fs->lock);
        bool mine = w->state != 0;
        if (mine)
                unlink_locked(fs, w);
        lock_drop(&fs->lock);
        if (mine)
                w->done(w, -EINTR);
}

/* Returns the earliest deadline of those who still wait. */
static int64_t serve_waiters(struct files *fs) {
        uint64_t admitted = 0;
        for (;;) {
                uint64_t dirty = dirty_bytes(fs);
                lock_take(&fs->lock);
                struct file_write *w = fs->wait_first;
                int64_t now = clock_mono_ms(fs->c->clock), deadline = INT64_MAX;
                int result = 1;
                /* a deadline may pass behind the head too */
                for (struct file_write *x = fs->wait_first; x; x = x->next) {
                        if (now >= x->deadline_ms) {
                                w = x;
                                result = -ENOSPC;
                                break;
                        }
                        deadline = MIN(deadline, x->deadline_ms);
                }
                if (w && result > 0) {
                        if (!fs->stop && dirty + admitted + w->n <= fs->dirty_limit && (w->state == WAIT_DIRTY || fs->room_seq != fs->failed_seq))
                                result = 0;
                        else if ((!fs->online && !coming_locked(fs)) || fs->stop)
                                result = -ENOSPC;
                }
                if (!w || result > 0) {
                        lock_drop(&fs->lock);
                        return deadline;
                }
                if (w->state == WAIT_BLOBS)
                        fs->failed_seq = fs->room_seq; /* one try per change of room */
                unlink_locked(fs, w);
                lock_drop(&fs->lock);
                if (result == 0)
                        admitted += w->n;
                else
                        tell_failed(w, result);
                w->done(w, result);
        }
}

static int row_names(void *arg, uint64_t gen) {
        return outbox_carries(((struct files *)arg)->c->tree, gen);
}

int files_flush(struct files *fs) {
        lock_assert_none();
        lock_take(&fs->lock);
        /* One at a time: what another one has begun to sync is not durable yet. */
        while (fs->flushing)
                cond_wait(&fs->idle, &fs->lock);
        fs->flushing = true;
        fs->dirty = fs->log_full = false;
        uint64_t upto = fs->retire_added; /* those listed before the sync */
        lock_drop(&fs->lock);
        files_loose_look(fs);
        int r = stages_sync_dirty(fs->c->stages);
        if (r < 0)
                log_error("cache sync error=%s", err_name(r));
        int t = tree_sync(fs->c->tree); /* costs nothing if nothing was committed since */
        if (t < 0)
                log_error("cache tree_sync error=%s", err_name(t));
        /* what was replaced by a generation that did not reach the platter is all that a power cut would leave of the file */
        const bool whole = r == 0 && t == 0 && !stages_spoilt(fs->c->stages, row_names, fs);
        if (whole)
                files_loose_go(fs);
        lock_take(&fs->lock);
        fs->flushing = false;
        cond_broadcast(&fs->idle);
        lock_drop(&fs->lock);
        if (whole)
                files_retire(fs, upto);
        stages_relocate(fs->c->stages);
        segments_tidy(fs->c->stages->segs);
        return r < 0 ? r : t;
}

/* Steps 3 to 5. Returns the earliest deadline of those who still wait, on the cache's clock. */
static int64_t tend(struct files *fs, int64_t now_ms) {
        files_queue_again(fs);
        lock_take(&fs->lock);
        bool index = now_ms >= fs->index_due_ms;
        if (index)
                fs->index_due_ms = now_ms + INDEX_MS;
        lock_drop(&fs->lock);
        int r = index ? blobs_sync(fs->c->blobs) : 0;
        if (r < 0)
                log_warn("cache blobs_sync error=%s", err_name(r));
        return serve_waiters(fs);
}

static void *run(void *arg) {
        struct files *fs = arg;
        int64_t deadline = INT64_MAX, tick = mono_ms();
        for (;;) {
                bool due = false;
                lock_take(&fs->lock);
                for (;;) {
                        int64_t now = mono_ms();
                        /* the tree's changes give no kick: they are found once a second */
                        int64_t until = tick + FLUSH_MS;
                        if (fs->dirty)
                                until = MIN(until, fs->dirty_since_ms + FLUSH_MS);
                        due = now >= until || (fs->kicked && (fs->log_full || fs->loose || (fs->retire_last && fs->retire_last->n > fs->retire_upto)));
                        if (fs->stop || fs->kicked || due || now >= deadline)
                                break;
                        (void)!cond_wait_until(&fs->work, &fs->lock, MIN(until, deadline));
                }
                bool stop = fs->stop;
                fs->kicked = false;
                lock_drop(&fs->lock);
                if (stop)
                        break;
                if (due) {
                        (void)!files_flush(fs); /* logged there; comes again */
                        tick = mono_ms();
                        if (blobs_tight(fs->c->blobs))
                                (void)blobs_shed(fs->c->blobs);
                        else
                                blobs_measure(fs->c->blobs);
                }
                int64_t at = tend(fs, mono_ms());
                /* deadlines are told on the cache's clock */
                deadline = at == INT64_MAX ? at : mono_ms() + MAX((int64_t)1, MIN(at - clock_mono_ms(fs->c->clock), (int64_t)FLUSH_MS));
        }
        (void)serve_waiters(fs);
        return NULL;
}

int files_start(struct files *fs) {
        fs->running = true;
        fs->index_due_ms = (fs->cfg.by_hand ? clock_mono_ms(fs->c->clock) : mono_ms()) + INDEX_MS;
        if (fs->cfg.by_hand)
                return 0;
        int r = thread_start(&fs->thread, "cache-flush", run, fs);
        if (r < 0)
                fs->running = false;
        return r;
}

void files_stop(struct files *fs) {
        if (!fs->running)
                return;
        lock_take(&fs->lock);
        fs->stop = true;
        cond_broadcast(&fs->work);
        lock_drop(&fs->lock);
        if (!fs->cfg.by_hand)
                (void)pthread_join(fs->thread, NULL);
        fs->running = false;
}

void cache_set_online(struct cache *c, bool online) {
        struct files *fs = c->files;
        LOCK_SCOPE(&fs->lock);
        fs->online = online;
        fs->kicked = true;
        fs->answers++;
        cond_broadcast(&fs->work);
        cond_broadcast(&fs->drained);
}

bool cache_online(struct cache *c) {
        LOCK_SCOPE(&c->files->lock);
        return c->files->online;
}

/* ---- who waits for the server ---- */

uint64_t cache_answers(struct cache *c) {
        LOCK_SCOPE(&c->files->lock);
        return c->files->answers;
}

int cache_wait_answers(struct cache *c, uint64_t seen, int64_t deadline_ms) {
        struct files *fs = c->files;
        lock_assert_none();
        LOCK_SCOPE(&fs->lock);
        while (fs->answers == seen)
                if (cond_wait_until(&fs->drained, &fs->lock, deadline_ms) < 0)
                        return -ETIMEDOUT;
        return 0;
}

void cache_poke(struct cache *c) {
        struct files *fs = c->files;
        LOCK_SCOPE(&fs->lock);
        fs->answers++;
        cond_broadcast(&fs->drained);
}

int cache_sync(struct cache *c) {
        return files_flush(c->files);
}

int cache_turn(struct cache *c) {
        assert(c->files->cfg.by_hand);
        int r = files_flush(c->files);
        (void)tend(c->files, clock_mono_ms(c->clock));
        return r;
}
