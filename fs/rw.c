/* SPDX-License-Identifier: Apache-2.0 */
/* rw.c: read and write. What is here is answered at once on the worker, from buffers that the worker keeps (no allocation on a hit). What needs the network or
 * room is *parked*: the request and its buffer leave the worker, and whoever has the result answers.
 *
 *   state      who may finish it
 *   SUBMITTED  the worker, still inside file_read / file_write or arming; a completion that comes now only leaves its result (-> EARLY)
 *   ARMED      the completion; an interrupt asks the cache to cancel, upon which the completion comes with -EINTR
 *   EARLY      the worker
 *
 * A write that found no room has written nothing; when told that there is room it is tried again from the job pool, as often as it takes until its
 * deadline. Its bytes are copied out of the worker's request buffer only when it is parked.
 *
 * A change of names that found no room (the tree's file could not grow) waits in the same way: struct held has its arguments. While it waits, the kernel holds the directory's lock, so it
 * counts as parked there, and notes about that directory wait (notify.c).
 *
 * A crawler's read is refused behind its head (crawlers.c), never cut short: the kernel would take a short answer for the end of the file, for everybody. The pages of a refused
 * read stay unread, and those of them that lie in the head are asked for one by one.
 *
 * A page that its readahead did not get is asked for by the kernel once more, at once. So after a read has waited for the whole net_timeout in vain, those that come on the same handle within
 * AGAIN_MS get what is here and wait for nothing: else a program waits twice.
 *
 * Interrupts: libfuse calls park_interrupt under the request's own lock, and fuse_req_interrupt_func takes that lock. So taking the function away before
 * the reply waits for a running cancel, which makes freeing safe; when the completion runs inside the cancel itself (same thread)
 * this must not be done, and need not. */
#include "fs.h"

#include <assert.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define WRITE_WAIT_MS 300000 /* for room, at least; the network's timeout if that is longer */

#define AGAIN_MS 250

enum park_state { SUBMITTED, ARMED, EARLY };

struct park {
        struct mount *m;
        fuse_req_t req;
        uint64_t nodeid;
        struct job job;          /* retry of a write */
        atomic_int state;
        ssize_t result;          /* EARLY */
        const struct crawler *crawler; /* a read of one: its handle's, which the kernel keeps until the reply */
        struct handle *waits;    /* a read that waits for all of net_timeout: its handle, which the kernel keeps until the reply */
        bool is_write, counted;  /* counted: among the node's parked requests */
        bool listed;             /* in m->parks */
        unsigned refs;           /* m->lock, while listed: 1, and 1 for parks_end */
        struct park *next, *prev; /* m->lock */
        union {
                struct file_read r;
                struct file_write w;
        };
        struct held held;        /* op: not a write, but a change of names that waits like one */
        uint8_t *buf;            /* IO_BYTES_MAX, touched as far as used */
};

static _Thread_local struct park *spare;         /* this worker's */
static _Thread_local struct park *interrupting;  /* whose cancel is running on this thread */
static _Thread_local struct { void *p; size_t n; } scratch;

void *worker_buffer(size_t n) {
        if (scratch.n < n) {
                size_t room = MAX(n, (size_t)65536);
                free(scratch.p);
                scratch.p = malloc(room);
                scratch.n = scratch.p ? room : 0;
        }
        return scratch.p;
}

static void park_free(struct park *p) {
        if (!p)
                return;
        free(p->buf);
        free(p);
}

void worker_buffers_free(void) {
        park_free(steal_ptr(spare));
        free(scratch.p);
        scratch.p = NULL;
        scratch.n = 0;
}

static struct park *park_take(struct mount *m, fuse_req_t req, uint64_t nodeid, bool is_write) {
        struct park *p = steal_ptr(spare);
        if (!p) {
                p = calloc(1, sizeof *p);
                if (p)
                        p->buf = malloc(IO_BYTES_MAX);
                if (!p || !p->buf) {
                        park_free(p);
                        return NULL;
                }
        }
        p->m = m;
        p->req = req;
        p->nodeid = nodeid;
        p->is_write = is_write;
        p->counted = p->listed = false;
        p->refs = 1;
        p->held.op = NULL;
        atomic_store_explicit(&p->state, SUBMITTED, memory_order_relaxed);
        return p;
}

static void park_keep(struct park *p) {
        if (spare)
                park_free(p);
        else
                spare = p;
}

static void park_answer(struct park *p, ssize_t result) {
        if (result < 0 && !p->is_write && p->r.refused) {
                counter_add(p->m->cfg.counters, crawler_refusals, 1);
                crawlers_refused(p->m->cfg.crawlers, p->crawler);
        }
        if (result < 0)
                reply_fail(p->req, result == -ENODATA ? -EIO : (int)result);
        else if (p->held.op)
                ; /* it has replied itself */
        else if (p->is_write)
                (void)fuse_reply_write(p->req, (size_t)result);
        else
                (void)fuse_reply_buf(p->req, (char *)p->buf, (size_t)result);
}

static void park_cancel(struct park *p) {
        if (p->is_write)
                file_write_cancel(&p->w);
        else
                file_read_cancel(&p->r);
}

static void park_interrupt(fuse_req_t req, void *data) {
        struct park *p = data;
        interrupting = p;
        park_cancel(p);
        interrupting = NULL; /* p may be gone */
}

/* Answered: leaves the list and goes, unless parks_end still looks at it. Once it has left the list the mount may go: m is not touched after that. */
static void park_end(struct park *p, ssize_t result) {
        struct mount *m = p->m;
        bool last = true;
        park_answer(p, result);
        if (p->counted)
                nodes_unpark(m, p->nodeid);
        lock_take(&m->lock);
        if (p->listed) {
                if (p->prev)
                        p->prev->next = p->next;
                else
                        m->parks = p->next;
                if (p->next)
                        p->next->prev = p->prev;
                last = --p->refs == 0;
                cond_broadcast(&m->park_gone);
        }
        lock_drop(&m->lock);
        if (last)
                park_free(p);
}

void parks_end(struct mount *m) {
        lock_take(&m->lock);
        m->closing = true;
        while (m->parks) {
                /* one that was between two tries saw no cancel: asked again until all are gone */
                for (struct park *p = m->parks, *next; p; p = next) {
                        p->refs++;
                        lock_drop(&m->lock);
                        park_cancel(p);
                        lock_take(&m->lock);
                        next = p->refs > 1 ? p->next : NULL; /* gone: its links mean nothing; from the front again */
                        if (--p->refs == 0)
                                park_free(p);
                }
                if (m->parks)
                        (void)!cond_wait_until(&m->park_gone, &m->lock, clock_mono_ms(clock_system()) + 50);
        }
        lock_drop(&m->lock);
}

/* The completion's result, with nobody else interested in p any more. */
static void park_finish(struct park *p, ssize_t result) {
        if (interrupting != p)
                fuse_req_interrupt_func(p->req, NULL, NULL);
        if (p->is_write && result == 0 && p->w.n > 0) {
                executor_submit(pool_executor(p->m->jobs), &p->job);
                return;
        }
        park_end(p, result);
}

static void park_done(struct park *p, ssize_t result) {
        p->result = result;
        if (atomic_exchange(&p->state, EARLY) == ARMED)
                park_finish(p, result);
}

static void read_done(struct file_read *r, ssize_t result) {
        struct park *p = r->owner;
        if (result == -ETIMEDOUT && p->waits)
                atomic_store(&p->waits->timed_out_ms, clock_mono_ms(p->m->cfg.clock));
        park_done(r->owner, result);
}

static void write_done(struct file_write *w, int result) {
        park_done(w->owner, result);
}

/* After -EINPROGRESS. p belongs to the completion from the exchange on. */
static void park_arm(struct park *p) {
        if (!p->counted)
                p->counted = nodes_park(p->m, p->nodeid) == 0; /* without memory a note may have to wait in the kernel for this request */
        if (!p->listed) {
                LOCK_SCOPE(&p->m->lock);
                p->listed = true;
                p->prev = NULL;
                p->next = p->m->parks;
                if (p->next)
                        p->next->prev = p;
                p->m->parks = p;
        }
        fuse_req_interrupt_func(p->req, park_interrupt, p);
        int expected = SUBMITTED;
        if (!atomic_compare_exchange_strong(&p->state, &expected, ARMED))
                park_finish(p, p->result);
}

void op_read(fuse_req_t req, fuse_ino_t nodeid, size_t size, off_t off, struct fuse_file_info *fi) {
        struct call c;
        call_begin(&c, req);
        counter_add(c.m->cfg.counters, fuse_read, 1);
        struct park *p = park_take(c.m, req, nodeid, false);
        if (!p || off < 0) {
                reply_fail(req, p ? -EINVAL : -ENOMEM);
                if (p)
                        park_keep(p);
                call_end(&c);
                return;
        }
        int64_t now = clock_mono_ms(c.m->cfg.clock), in_vain = atomic_load(&fi_handle(fi)->timed_out_ms);
        bool again = in_vain && now - in_vain < AGAIN_MS;
        p->waits = again ? NULL : fi_handle(fi);
        p->crawler = fi_handle(fi)->crawler;
        p->r = (struct file_read){ .file = fi_handle(fi)->file, .off = (uint64_t)off, .buf = p->buf, .n = MIN(size, (size_t)IO_BYTES_MAX), .deadline_ms = again ? now : now + c.m->cfg.net_timeout_ms,
                                   .done = read_done, .owner = p,
                                   .crawler = p->crawler, .head = p->crawler ? p->crawler->head : 0 };
        ssize_t n = file_read(&p->r);
        if (n == -EINPROGRESS) {
                park_arm(p);
        } else {
                park_answer(p, n);
                park_keep(p);
        }
        call_end(&c);
}

static void write_again(struct job *j) {
        struct park *p = container_of(j, struct park, job);
        atomic_store(&p->state, SUBMITTED);
        lock_take(&p->m->lock);
        bool closing = p->m->closing;
        lock_drop(&p->m->lock);
        if (closing || clock_mono_ms(p->m->cfg.clock) >= p->w.deadline_ms) {
                park_end(p, closing ? -EINTR : -ENOSPC);
                return;
        }
        ssize_t n = file_write(&p->w);
        if (n == -EINPROGRESS)
                park_arm(p);
        else
                park_finish(p, n);
}

/* ---- changes of names ---- */

static int held_try(struct park *p, fuse_req_t req, const struct held *h) {
        struct call c;
        call_begin(&c, req);
        int r = -ENOSPC;
        for (bool shed = true; r == -ENOSPC && shed; shed = r == -ENOSPC && cache_shed(c.m->cfg.cache))
                r = h->adds && cache_tight(c.m->cfg.cache) ? -ENOSPC : h->op(&c, h);
        if (r < 0 && r != -ENOSPC && !p)
                reply_fail(req, r);
        call_end(&c);
        return r;
}

static void held_again(struct job *j) {
        struct park *p = container_of(j, struct park, job);
        atomic_store(&p->state, SUBMITTED);
        lock_take(&p->m->lock);
        bool closing = p->m->closing;
        lock_drop(&p->m->lock);
        int r = closing ? -EINTR : clock_mono_ms(p->m->cfg.clock) >= p->w.deadline_ms ? -ENOSPC : held_try(p, p->req, &p->held);
        if (r == -ENOSPC && !closing && clock_mono_ms(p->m->cfg.clock) < p->w.deadline_ms && cache_wait_room(p->m->cfg.cache, &p->w) == -EINPROGRESS)
                park_arm(p);
        else
                park_end(p, r);
}

void call_with_room(fuse_req_t req, const struct held *h) {
        struct mount *m = req_mount(req);
        if (m->cfg.ro) { /* mounted so, and remounted rw since */
                (void)fuse_reply_err(req, EROFS);
                return;
        }
        if (held_try(NULL, req, h) != -ENOSPC)
                return;
        struct park *p = park_take(m, req, h->dir, true);
        if (p) {
                size_t n = strlen(h->name) + 1, k = h->text ? strlen(h->text) + 1 : 0;
                assert(n + k <= IO_BYTES_MAX);
                p->held = *h;
                p->held.name = memcpy(p->buf, h->name, n);
                if (k)
                        p->held.text = memcpy(p->buf + n, h->text, k);
                p->job.run = held_again;
                p->w = (struct file_write){ .n = 1, .deadline_ms = clock_mono_ms(m->cfg.clock) + MAX(m->cfg.net_timeout_ms, (int64_t)WRITE_WAIT_MS), .done = write_done, .owner = p };
                if (cache_wait_room(m->cfg.cache, &p->w) == -EINPROGRESS) {
                        park_arm(p);
                        return;
                }
                park_keep(p);
        }
        reply_fail(req, -ENOSPC);
}

void op_write(fuse_req_t req, fuse_ino_t nodeid, const char *buf, size_t size, off_t off, struct fuse_file_info *fi) {
        struct call c;
        struct handle *h = fi_handle(fi);
        call_begin(&c, req);
        counter_add(c.m->cfg.counters, fuse_write, 1);
        struct park *p = park_take(c.m, req, nodeid, true);
        int r = !p ? -ENOMEM : off < 0 || size > IO_BYTES_MAX ? -EINVAL : 0;
        if (r == 0)
                r = take_privileges(c.m, req, nodeid, h->file);
        if (r < 0) {
                reply_fail(req, r);
                if (p)
                        park_keep(p);
                call_end(&c);
                return;
        }
        int64_t wait_ms = MAX(c.m->cfg.net_timeout_ms, (int64_t)WRITE_WAIT_MS);
        p->job.run = write_again;
        p->w = (struct file_write){ .file = h->file, .off = (uint64_t)off, .buf = buf, .n = size, .append = (fi->flags & O_APPEND) && !fi->writepage,
                                    .deadline_ms = clock_mono_ms(c.m->cfg.clock) + wait_ms, .done = write_done, .owner = p };
        ssize_t n = file_write(&p->w);
        if (n == -EINPROGRESS) {
                memcpy(p->buf, buf, size); /* nothing was written, and nobody reads it before the next try */
                p->w.buf = p->buf;
                park_arm(p);
        } else {
                park_answer(p, n);
                park_keep(p);
        }
        call_end(&c);
}
