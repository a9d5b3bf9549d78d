/* SPDX-License-Identifier: Apache-2.0 */
/* blob_read.c: reads, those who wait, and the waiting thread.
 *
 *   read      state                 next
 *   hit       IDLE                  blocks pinned under the lock, bytes read and verified outside it, unpinned: returned by blob_read itself
 *   miss      WAITING               in blob->waiters, covered by somebody's fetch
 *   arrived   RUNNING               taken out of the list with its blocks pinned, read, done(n)
 *   damaged   RUNNING -> WAITING    the block was dropped; asked for again
 *   failed    WAITING -> IDLE       done(error)
 *   cancelled WAITING -> IDLE       done(-EINTR); RUNNING: finishes normally, unless it would wait again
 *
 * Who takes a read out of the list under the blob's lock owns it and calls done exactly once. Blocks that a waiting read covers are not evicted, so that a read of two
 * blocks in a small cache ends. done is called by the source's threads (blob_drive after each block) or by the waiting thread, never from inside blob_read or
 * blob_read_cancel and with no lock held.
 *
 * The waiting thread ("blob-wait") sleeps on a condition until the earliest deadline. It ends reads whose time is over, drives blobs that were kicked (a block came back
 * to life, a fetch failed and another may be made, the list became known), ends cancelled reads, and writes the index 5 s after something changed (the LRU
 * order once a minute). In a simulation (by_hand) there is no such thread: its owner takes its steps, one blobs_turn each. A deadline does not
 * cancel the fetch: on a slow link the next try must find what came meanwhile. An explicit cancel of the last reader does.
 *
 * A crawler's read gets what is here, and has blocks fetched that begin before its head, no more: behind that it is refused as offline, whether it finds out at once or when the list has come. It
 * neither warms what it uses nor reads ahead; what it has fetched enters the LRU at the cold end, until somebody else uses it.
 *
 * Readahead: a read near the end of the one before doubles the blob's window (512 KiB to 8 MiB, at most 1/16 of the cache). A miss claims the window with it; a hit asks for what
 * lies in the second half of the window, so that a stream never waits at its edge. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blob_priv.h"

#define READ_TRIES 4
#define PREAD_STEP (UINT64_C(4) << 20)
#define PREFETCH_BYTES_MAX (UINT64_C(64) << 20)
#define SEQ_SLACK (UINT64_C(256) << 10)

void blob_range(const struct blob *blob, uint64_t off, uint64_t n, size_t *ret_first, size_t *ret_last) {
        *ret_first = blocklist_find(blob->starts, blob->list.n, off);
        size_t last = *ret_first;
        while (blob->starts[last + 1] < off + n)
                last++;
        *ret_last = last;
}

static bool available_locked(const struct blob *blob, size_t first, size_t last) {
        for (size_t i = first; i <= last; i++)
                if (!(blob->state[i] & (BS_PRESENT | BS_MEM)) || blob->pins[i] == UINT16_MAX)
                        return false;
        return true;
}

static void pin_locked(struct blob *blob, size_t first, size_t last) {
        for (size_t i = first; i <= last; i++)
                blob->pins[i]++;
}

/* One touch for each visit to a block. */
static void touch_locked(struct blob *blob, size_t first, size_t last) {
        struct blobs *b = blob->owner;
        if (blob->last_block == last)
                return;
        LOCK_SCOPE(&b->lru_lock);
        for (size_t i = first; i <= last; i++)
                if (i != blob->last_block) {
                        lru_touch(b->lru, (struct lru_block){ blob->id, (uint32_t)i });
                        b->touches++;
                }
        blob->last_block = (uint32_t)last;
}

/* Would this read of a crawler need a block to be fetched that begins behind its head? What somebody fetches now, it may wait for. */
static bool behind_head_locked(const struct blob *blob, const struct blob_read *r, size_t first, size_t last) {
        for (size_t i = first; r->crawler && i <= last; i++)
                if (blob->starts[i] >= r->head && !(blob->state[i] & (BS_PRESENT | BS_MEM | BS_BUSY)))
                        return true;
        return false;
}

/* Asks for what a read needs. A crawler's goes no further than its head while the list is not known. */
static int want_read_locked(struct blob *blob, struct blob_read *r, uint64_t window) {
        if (!r->crawler)
                return blob_want_locked(blob, r->off, r->n, window, WANT_NOW);
        if (!blob->list_known && r->off >= r->head) {
                r->refused = true;
                return -EHOSTDOWN;
        }
        return blob_want_locked(blob, r->off, blob->list_known ? r->n : MIN(r->n, r->head - r->off), 0, WANT_COLD);
}

/* Reads pinned blocks and unpins them. */
static int read_pinned(struct blob *blob, size_t first, size_t last, uint64_t off, uint64_t n, uint8_t *buf) {
        int r = 0;
        for (size_t i = first; r == 0 && i <= last; i++) {
                uint64_t from = MAX(off, blob->starts[i]), to = MIN(off + n, blob->starts[i + 1]);
                r = block_read(blob, i, (uint32_t)(from - blob->starts[i]), (uint32_t)(to - from), buf + (from - off));
                if (r == -EBADMSG)
                        block_damaged(blob, i);
        }
        blocks_unpin(blob, first, last);
        return r;
}

/* ---- waiters ---- */

static void waiter_add_locked(struct blob *blob, struct blob_read *r) {
        struct blobs *b = blob->owner;
        r->state = READ_WAITING;
        r->prev = NULL;
        r->next = blob->waiters;
        if (r->next)
                r->next->prev = r;
        blob->waiters = r;
        LOCK_SCOPE(&b->wait_lock);
        if (!blob->waiting) {
                blob->waiting = true;
                blob->wait_next = b->waiting;
                b->waiting = blob_ref(blob);
        }
        if (r->deadline_ms < b->next_deadline_ms) {
                b->next_deadline_ms = r->deadline_ms;
                cond_signal(&b->wait_more);
        }
}

void waiter_unlink_locked(struct blob *blob, struct blob_read *r) {
        assert(r->state == READ_WAITING);
        *(r->prev ? &r->prev->next : &blob->waiters) = r->next;
        if (r->next)
                r->next->prev = r->prev;
        r->next = r->prev = NULL;
        r->state = READ_IDLE;
}

void blob_finish_later(struct blob_read *r, ssize_t result, struct blobs *b) {
        r->priv = (void *)(intptr_t)result;
        LOCK_SCOPE(&b->wait_lock);
        r->next = b->finished;
        b->finished = r;
        cond_signal(&b->wait_more);
}

void blob_kick(struct blob *blob) {
        struct blobs *b = blob->owner;
        LOCK_SCOPE(&b->wait_lock);
        if (blob->kicked)
                return;
        blob->kicked = true;
        blob->kick_next = b->kicked;
        b->kicked = blob_ref(blob);
        cond_signal(&b->wait_more);
}

/* Reads that can be answered leave the list, pinned; a read whose blocks nobody fetches gets a fetch. Chain through next. */
static struct blob_read *ready_locked(struct blob *blob, bool may_fetch, struct blob_read **ret_failed) {
        struct blob_read *ready = NULL, *next;
        bool unclaimed = false;
        *ret_failed = NULL;
        for (struct blob_read *r = blob->waiters; r; r = next) {
                size_t first, last;
                next = r->next;
                if (blob->list_known) {
                        blob_range(blob, r->off, r->n, &first, &last);
                        if (available_locked(blob, first, last)) {
                                waiter_unlink_locked(blob, r);
                                pin_locked(blob, first, last);
                                if (!r->crawler)
                                        touch_locked(blob, first, last);
                                r->state = READ_RUNNING;
                                r->next = ready;
                                ready = r;
                                continue;
                        }
                        bool open = false;
                        for (size_t i = first; i <= last; i++)
                                open |= !(blob->state[i] & (BS_PRESENT | BS_MEM | BS_BUSY));
                        if (!open)
                                continue;
                } else if (blob->list_wanted) {
                        continue;
                }
                r->refused = blob->list_known && behind_head_locked(blob, r, first, last);
                if (!r->refused && !may_fetch) {
                        unclaimed = true;
                        continue;
                }
                intptr_t tries = (intptr_t)r->priv + 1;
                r->priv = (void *)tries;
                int err = r->refused ? -EHOSTDOWN : tries > REDRIVES_MAX ? -EIO : want_read_locked(blob, r, 0);
                if (err < 0) {
                        waiter_unlink_locked(blob, r);
                        r->priv = (void *)(intptr_t)reader_error_locked(blob, r, err);
                        r->next = *ret_failed;
                        *ret_failed = r;
                }
        }
        if (unclaimed)
                blob_kick(blob);
        return ready;
}

void blob_drive(struct blob *blob, bool may_fetch) {
        for (;;) {
                struct blob_read *ready, *failed, *next;
                {
                        LOCK_SCOPE(&blob->lock);
                        if (!blob->waiters) {
                                if (blob->held && blob->list_known)
                                        held_trim_locked(blob);
                                return;
                        }
                        ready = ready_locked(blob, may_fetch, &failed);
                }
                for (; failed; failed = next) {
                        next = failed->next;
                        failed->done(failed, (ssize_t)(intptr_t)failed->priv);
                }
                bool again = false;
                for (; ready; ready = next) {
                        size_t first, last;
                        next = ready->next;
                        blob_range(blob, ready->off, ready->n, &first, &last);
                        ssize_t result = read_pinned(blob, first, last, ready->off, ready->n, ready->buf);
                        {
                                LOCK_SCOPE(&blob->lock);
                                bool cancelled = ready->state == READ_RUNNING_CANCELLED;
                                ready->state = READ_IDLE;
                                if (result == -EBADMSG && !cancelled && (intptr_t)ready->priv < REDRIVES_MAX) {
                                        ready->priv = (void *)((intptr_t)ready->priv + 1);
                                        waiter_add_locked(blob, ready);
                                        again = true;
                                        continue;
                                }
                                result = result == 0 ? (ssize_t)ready->n : cancelled ? -EINTR : read_error((int)result);
                        }
                        ready->done(ready, result);
                }
                if (!again)
                        return;
        }
}

void blob_read_cancel(struct blob_read *r) {
        _cleanup_blob_ struct blob *blob = blob_ref(r->blob); /* done may put the owner's before we leave */
        LOCK_SCOPE(&blob->lock);
        if (r->state == READ_RUNNING)
                r->state = READ_RUNNING_CANCELLED;
        if (r->state != READ_WAITING)
                return;
        waiter_unlink_locked(blob, r);
        if (!blob->waiters)
                blob_cancel_fills_locked(blob);
        blob_finish_later(r, -EINTR, blob->owner);
}

/* ---- reading ---- */

/* The window after this read, in bytes; 0: not sequential. */
static uint64_t sequence_locked(struct blob *blob, uint64_t off, uint64_t n) {
        struct room_totals totals;
        if (off == 0)
                blob->window = READAHEAD_BYTES_MIN;
        else if (blob->seq_next != UINT64_MAX && off + SEQ_SLACK >= blob->seq_next && off <= blob->seq_next + SEQ_SLACK)
                blob->window = MIN(MAX(blob->window * 2, READAHEAD_BYTES_MIN), READAHEAD_BYTES_MAX);
        else
                blob->window = 0;
        blob->seq_next = off + n;
        if (blob->window == 0)
                return 0;
        room_totals(&blob->owner->room, &totals);
        return totals.dirty > totals.limit / 2 ? 0 : MIN(blob->window, totals.limit / 16); /* what cannot stay is not fetched ahead */
}

/* A hit in a stream: is what comes in the second half of the window on its way? */
static void ahead_locked(struct blob *blob, uint64_t end, uint64_t window) {
        uint64_t at = end + window / 2;
        if (window == 0 || at >= blob->content.size)
                return;
        size_t i = blocklist_find(blob->starts, blob->list.n, at);
        if (!(blob->state[i] & (BS_PRESENT | BS_MEM | BS_BUSY)) && !block_has_twin(blob, i))
                (void)(blob_want_locked(blob, at, MIN(window / 2, blob->content.size - at), 0, WANT_PREFETCH) < 0); /* nobody waits for it */
}

/* Claims the next block of the range that may be cached under another name. */
static bool claim_twin_locked(struct blob *blob, size_t first, size_t last, bool cold, size_t *from, size_t *ret) {
        for (size_t i = MAX(first, *from); i <= last; i++)
                if (!(blob->state[i] & (BS_PRESENT | BS_MEM | BS_BUSY)) && block_has_twin(blob, i)) {
                        block_state_locked(blob, i, 0, cold ? BS_BUSY | BS_COLD : BS_BUSY);
                        *from = i + 1;
                        *ret = i;
                        return true;
                }
        *from = last + 1;
        return false;
}

static void reuse_or_unclaim(struct blob *blob, size_t i) {
        if (block_reuse(blob, i) == -ENODATA) {
                LOCK_SCOPE(&blob->lock);
                if (blob->state[i] & BS_BUSY)
                        block_state_locked(blob, i, BS_BUSY, 0);
        }
        blob_kick(blob); /* others may have waited for it */
}

ssize_t blob_read(struct blob_read *r) {
        struct blob *blob = r->blob;
        struct blobs *b = blob->owner;
        r->state = READ_IDLE;
        r->next = r->prev = NULL;
        r->priv = NULL;
        r->refused = false;
        assert(r->exact || !r->crawler);
        if (r->off >= blob->content.size || r->n == 0)
                return 0;
        r->n = MIN(r->n, blob->content.size - r->off);
        size_t twins_from = 0;
        bool counted = false;
        for (int damaged = 0; damaged < READ_TRIES;) {
                size_t first, last, twin;
                lock_take(&blob->lock);
                uint64_t window = counted || r->exact ? 0 : sequence_locked(blob, r->off, r->n);
                if (blob->list_known) {
                        blob_range(blob, r->off, r->n, &first, &last);
                        if (available_locked(blob, first, last)) {
                                pin_locked(blob, first, last);
                                if (!r->crawler && blob->last_block != last) {
                                        touch_locked(blob, first, last);
                                        ahead_locked(blob, r->off + r->n, window);
                                }
                                lock_drop(&blob->lock);
                                if (!counted)
                                        counter_add(b->counters, cache_hits, 1);
                                counted = true;
                                int err = read_pinned(blob, first, last, r->off, r->n, r->buf);
                                if (err == 0)
                                        return (ssize_t)r->n;
                                if (err != -EBADMSG)
                                        return read_error(err);
                                damaged++;
                                continue;
                        }
                        if (twins_from <= last && claim_twin_locked(blob, first, last, r->crawler, &twins_from, &twin)) {
                                lock_drop(&blob->lock);
                                reuse_or_unclaim(blob, twin);
                                continue;
                        }
                        r->refused = behind_head_locked(blob, r, first, last);
                        if (r->refused) {
                                lock_drop(&blob->lock);
                                return -EHOSTDOWN;
                        }
                }
                if (!counted)
                        counter_add(b->counters, cache_misses, 1);
                int err = want_read_locked(blob, r, window);
                if (err == 0)
                        waiter_add_locked(blob, r);
                else
                        err = reader_error_locked(blob, r, err);
                lock_drop(&blob->lock);
                return err < 0 ? err : -EINPROGRESS;
        }
        return -EIO;
}

/* The blocking form: one step at a time, a condition for each. */
struct pread_wait { struct lock lock; struct cond cond; bool over; ssize_t result; };

static void pread_done(struct blob_read *r, ssize_t result) {
        struct pread_wait *w = r->owner;
        LOCK_SCOPE(&w->lock);
        w->over = true;
        w->result = result;
        cond_signal(&w->cond);
}

/* What is here, without a wait for anybody: -EHOSTDOWN: not all of it is; it is being fetched now. */
static ssize_t pread_here(struct blob *blob, uint64_t off, void *buf, size_t n) {
        for (;;) {
                size_t first, last;
                lock_take(&blob->lock);
                bool here = false;
                if (blob->list_known) {
                        blob_range(blob, off, n, &first, &last);
                        here = available_locked(blob, first, last);
                        if (here)
                                pin_locked(blob, first, last);
                }
                lock_drop(&blob->lock);
                if (!here)
                        break;
                int r = read_pinned(blob, first, last, off, n, buf);
                if (r != -EBADMSG) /* damaged: it is not here any more */
                        return r < 0 ? read_error(r) : (ssize_t)n;
        }
        int r = blob_prefetch(blob, off, n);
        return r < 0 ? r : -EHOSTDOWN;
}

static ssize_t pread_steps(struct blob *blob, uint64_t off, void *buf, size_t n, int64_t deadline_ms, bool exact) {
        if (off >= blob->content.size)
                return 0;
        n = MIN(n, blob->content.size - off);
        if (blob->owner->by_hand)
                return pread_here(blob, off, buf, n);
        for (size_t got = 0; got < n;) {
                struct pread_wait w = { 0 };
                struct blob_read r = { .blob = blob, .off = off + got, .buf = (uint8_t *)buf + got, .n = MIN(n - got, PREAD_STEP), .deadline_ms = deadline_ms, .done = pread_done, .owner = &w, .exact = exact };
                lock_init(&w.lock, "pread", RANK_QUEUE);
                cond_init(&w.cond);
                ssize_t result = blob_read(&r);
                if (result == -EINPROGRESS) {
                        LOCK_SCOPE(&w.lock);
                        while (!w.over)
                                cond_wait(&w.cond, &w.lock); /* bounded: done comes at the deadline */
                        result = w.result;
                }
                cond_destroy(&w.cond);
                lock_destroy(&w.lock);
                if (result <= 0)
                        return result < 0 ? result : -EIO;
                got += (size_t)result;
        }
        return (ssize_t)n;
}

ssize_t blob_pread(struct blob *blob, uint64_t off, void *buf, size_t n, int64_t deadline_ms) {
        return pread_steps(blob, off, buf, n, deadline_ms, false);
}

ssize_t blob_pread_exact(struct blob *blob, uint64_t off, void *buf, size_t n, int64_t deadline_ms) {
        return pread_steps(blob, off, buf, n, deadline_ms, true);
}

int blob_prefetch(struct blob *blob, uint64_t off, uint64_t n) {
        struct blobs *b = blob->owner;
        struct room_totals totals;
        if (off >= blob->content.size)
                return 0;
        room_totals(&b->room, &totals);
        n = MIN(MIN(n, blob->content.size - off), MIN(PREFETCH_BYTES_MAX, totals.limit / 4));
        if (n == 0 || totals.dirty > totals.limit / 2)
                return 0;
        size_t twins_from = 0;
        for (;;) {
                size_t first, last, twin;
                bool copy = false;
                {
                        LOCK_SCOPE(&blob->lock);
                        if (blob->list_known) {
                                blob_range(blob, off, n, &first, &last);
                                copy = twins_from <= last && claim_twin_locked(blob, first, last, false, &twins_from, &twin);
                        }
                        if (!copy)
                                return blob_want_locked(blob, off, n, 0, WANT_PREFETCH);
                }
                reuse_or_unclaim(blob, twin);
        }
}

/* ---- the waiting thread ---- */

/* Ends reads whose deadline is over; the blob goes back on the list if others wait. */
static void expire(struct blobs *b, struct blob *blob, int64_t now_ms) {
        struct blob_read *over = NULL, *next;
        bool keep;
        {
                LOCK_SCOPE(&blob->lock);
                int64_t earliest = INT64_MAX;
                for (struct blob_read *r = blob->waiters; r; r = next) {
                        next = r->next;
                        if (r->deadline_ms > now_ms) {
                                earliest = MIN(earliest, r->deadline_ms);
                                continue;
                        }
                        waiter_unlink_locked(blob, r);
                        r->next = over;
                        over = r;
                }
                keep = blob->waiters != NULL;
                LOCK_SCOPE(&b->wait_lock);
                if (keep && !blob->waiting) {
                        blob->waiting = true;
                        blob->wait_next = b->waiting;
                        b->waiting = blob_ref(blob);
                }
                b->next_deadline_ms = MIN(b->next_deadline_ms, earliest);
        }
        for (; over; over = next) {
                next = over->next;
                over->done(over, -ETIMEDOUT);
        }
}

static struct blob *splice_waiting_locked(struct blobs *b) {
        struct blob *all = b->waiting;
        b->waiting = NULL;
        b->next_deadline_ms = INT64_MAX;
        return all;
}

/* One thing that is due now, done without the lock; false: nothing is. */
static bool wait_step_locked(struct blobs *b, int64_t now_ms) {
        if (b->finished) {
                struct blob_read *r = b->finished;
                b->finished = r->next;
                r->next = NULL;
                lock_drop(&b->wait_lock);
                r->done(r, (ssize_t)(intptr_t)r->priv);
                lock_take(&b->wait_lock);
                return true;
        }
        if (b->kicked) {
                struct blob *blob = b->kicked;
                b->kicked = blob->kick_next;
                blob->kicked = false;
                lock_drop(&b->wait_lock);
                blob_drive(blob, true);
                blob_put(blob);
                lock_take(&b->wait_lock);
                return true;
        }
        if (now_ms >= b->next_deadline_ms) {
                struct blob *all = splice_waiting_locked(b), *next;
                for (; all; all = next) {
                        next = all->wait_next;
                        all->waiting = false;
                        lock_drop(&b->wait_lock);
                        expire(b, all, now_ms);
                        blob_put(all);
                        lock_take(&b->wait_lock);
                }
                return true;
        }
        if (now_ms < b->flush_at_ms || b->stop)
                return false;
        b->flush_at_ms = INT64_MAX;
        lock_drop(&b->wait_lock);
        bool order = now_ms >= b->order_at_ms; /* this thread's alone */
        if (order)
                b->order_at_ms = now_ms + ORDER_EVERY_MS;
        (void)((order ? blobs_sync(b) : blobs_flush(b)) < 0); /* the next change tries again */
        lock_take(&b->wait_lock);
        return true;
}

static void *wait_run(void *arg) {
        struct blobs *b = arg;
        lock_take(&b->wait_lock);
        for (;;) {
                int64_t now = clock_mono_ms(b->clock);
                if (wait_step_locked(b, now))
                        continue;
                if (b->stop)
                        break;
                int64_t until = MIN(b->next_deadline_ms, b->flush_at_ms);
                if (until == INT64_MAX)
                        cond_wait(&b->wait_more, &b->wait_lock);
                else
                        (void)(cond_wait_until(&b->wait_more, &b->wait_lock, clock_mono_ms(clock_system()) + (until - now)) < 0);
        }
        lock_drop(&b->wait_lock);
        return NULL;
}

int64_t blobs_due(struct blobs *b) {
        LOCK_SCOPE(&b->wait_lock);
        return b->finished || b->kicked ? 0 : MIN(b->next_deadline_ms, b->flush_at_ms);
}

void blobs_turn(struct blobs *b) {
        assert(b->by_hand);
        LOCK_SCOPE(&b->wait_lock);
        (void)wait_step_locked(b, clock_mono_ms(b->clock));
}

int wait_start(struct blobs *b) {
        int r = b->by_hand ? 1 : thread_start(&b->wait_thread, "blob-wait", wait_run, b);
        if (r >= 0)
                b->wait_started = true;
        return MIN(r, 0);
}

void wait_stop(struct blobs *b) {
        if (!b->wait_started)
                return;
        struct blob *all, *next;
        lock_take(&b->wait_lock);
        assert(!b->by_hand || b->inflight == 0);
        while (b->inflight > 0)
                cond_wait(&b->wait_idle, &b->wait_lock); /* the owner has cancelled them: their done is on its way */
        b->stop = true;
        while (b->by_hand && wait_step_locked(b, clock_mono_ms(b->clock)))
                ;
        cond_broadcast(&b->wait_more);
        lock_drop(&b->wait_lock);
        if (!b->by_hand)
                (void)pthread_join(b->wait_thread, NULL);
        lock_take(&b->wait_lock);
        all = splice_waiting_locked(b);
        lock_drop(&b->wait_lock);
        for (; all; all = next) {
                next = all->wait_next;
                all->waiting = false;
                assert(!all->waiters);
                blob_put(all);
        }
}
