/* SPDX-License-Identifier: Apache-2.0 */
/* closer.c: flush and fsync: requests that wait for a disk or for the server, away from the workers.
 *
 *   flush, close=fast     reports an error of an earlier write; nothing else. Answered on the worker
 *   flush, close=local    file_sync, from the job pool
 *   flush, close=server   file_sync and freeze, from the job pool; then until the node has nothing pending, in the closer's thread; -EHOSTDOWN when offline,
 *                         -ETIMEDOUT after net_timeout, -EINTR when interrupted; if it, or what must go before it, is parked: tried once more, then the reason's error
 *   fsync                 file_sync, from the job pool; with close=server it freezes too
 *   fsyncdir              the tree's log
 *
 * The closer waits on the cache's count of answers (cache_wait_answers) and after each change asks for the nodes that are waited for; an interrupt, a new waiter and the end poke it. When the
 * cache is known to be offline a waiter gets -EHOSTDOWN at once: its bytes are local and go up later. A FLUSH comes once per descriptor, so it is never taken for the
 * close of the file: the commit point is RELEASE (or the freeze above). */
#include "fs.h"

#include <stddef.h>
#include <stdlib.h>

struct waiter {
        struct waiter *next;
        struct job job;
        struct mount *m;
        fuse_req_t req;
        struct file *file;    /* NULL: fsyncdir. The kernel sends no RELEASE before the reply */
        bool freeze, wait;
        int64_t deadline_ms;
};

static void interrupted(fuse_req_t req, void *mount) {
        cache_poke(((struct mount *)mount)->cfg.cache);
}

/* -EINPROGRESS: waits on. */
static int look(struct mount *m, struct waiter *w, bool stop, int64_t now) {
        struct node n;
        int r = tree_get(m->cfg.cache->tree, file_ino(w->file), &n);
        if (r < 0 || !n.pending)
                return r == -ENOENT ? 0 : r; /* deleted meanwhile: nothing left to wait for */
        if (stop || fuse_req_interrupted(w->req))
                return -EINTR;
        if (!cache_online(m->cfg.cache))
                return -EHOSTDOWN;
        int error;
        r = outbox_parked_error(m->cfg.cache->tree, n.ino, &error);
        if (r != 0)
                return r < 0 ? r : error > 0 ? -error : -EIO;
        return now >= w->deadline_ms ? -ETIMEDOUT : -EINPROGRESS;
}

static void *closer(void *arg) {
        struct mount *m = arg;
        struct closer *k = &m->closer;
        struct waiter *mine = NULL, **end = &mine;
        for (;;) {
                uint64_t seen = cache_answers(m->cfg.cache);
                lock_take(&k->lock);
                while (!mine && !k->first && !k->stop)
                        cond_wait(&k->more, &k->lock);
                *end = k->first;
                while (*end)
                        end = &(*end)->next;
                k->first = NULL;
                k->last = &k->first;
                bool stop = k->stop;
                lock_drop(&k->lock);
                if (!mine)
                        return NULL; /* asked to stop and nobody waits */
                int64_t now = clock_mono_ms(m->cfg.clock), next = INT64_MAX;
                for (struct waiter **at = &mine; *at;) {
                        struct waiter *w = *at;
                        int r = look(m, w, stop, now);
                        if (r == -EINPROGRESS) {
                                next = MIN(next, w->deadline_ms);
                                at = &w->next;
                                continue;
                        }
                        *at = w->next;
                        fuse_req_interrupt_func(w->req, NULL, NULL); /* waits for one that is running */
                        reply_fail_or_ok(w->req, r);
                        free(w);
                }
                for (end = &mine; *end; end = &(*end)->next)
                        ;
                if (mine)
                        (void)!cache_wait_answers(m->cfg.cache, seen, next);
        }
}

int closer_start(struct mount *m) {
        struct closer *k = &m->closer;
        k->last = &k->first;
        lock_init(&k->lock, "closer", RANK_QUEUE);
        cond_init(&k->more);
        int r = thread_start(&k->thread, "fuse-closer", closer, m);
        k->started = r == 0;
        return r;
}

void closer_stop(struct mount *m) {
        struct closer *k = &m->closer;
        if (!k->started)
                return;
        lock_take(&k->lock);
        k->stop = true;
        cond_signal(&k->more);
        lock_drop(&k->lock);
        cache_poke(m->cfg.cache);
        (void)pthread_join(k->thread, NULL);
        k->started = false;
        cond_destroy(&k->more);
        lock_destroy(&k->lock);
}

static void waiter_run(struct job *j) {
        struct waiter *w = container_of(j, struct waiter, job);
        struct mount *m = w->m;
        uint64_t gen;
        int r = w->file ? file_sync(w->file) : tree_sync(m->cfg.cache->tree);
        if (r == 0 && w->freeze)
                r = file_freeze(m->cfg.cache, file_ino(w->file), &gen);
        if (r == 0 && w->wait) /* what was refused before is asked again: the reason may be gone */
                r = outbox_retry(m->cfg.cache->tree, file_ino(w->file));
        if (r == 0 && w->wait) {
                struct closer *k = &m->closer;
                fuse_req_interrupt_func(w->req, interrupted, m);
                lock_take(&k->lock);
                w->next = NULL;
                *k->last = w;
                k->last = &w->next;
                cond_signal(&k->more);
                lock_drop(&k->lock);
                cache_poke(m->cfg.cache);
                return;
        }
        reply_fail_or_ok(w->req, r);
        free(w);
}

static void submit(fuse_req_t req, struct file *file, bool freeze, bool wait) {
        struct mount *m = req_mount(req);
        struct waiter *w = calloc(1, sizeof *w);
        if (!w) {
                (void)fuse_reply_err(req, ENOMEM);
                return;
        }
        *w = (struct waiter){ .job = { .run = waiter_run }, .m = m, .req = req, .file = file, .freeze = freeze, .wait = wait,
                              .deadline_ms = clock_mono_ms(m->cfg.clock) + m->cfg.net_timeout_ms };
        executor_submit(pool_executor(m->jobs), &w->job);
}

void op_flush(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi) {
        struct mount *m = req_mount(req);
        struct handle *h = fi_handle(fi);
        counter_add(m->cfg.counters, fuse_requests, 1);
        int r = h->write ? file_take_error(h->file) : 0;
        if (r < 0 || !h->write || m->cfg.close_level == CLOSE_FAST)
                reply_fail_or_ok(req, r);
        else
                submit(req, h->file, m->cfg.close_level == CLOSE_SERVER, m->cfg.close_level == CLOSE_SERVER);
}

void op_fsync(fuse_req_t req, fuse_ino_t nodeid, int datasync, struct fuse_file_info *fi) {
        struct mount *m = req_mount(req);
        counter_add(m->cfg.counters, fuse_requests, 1);
        submit(req, fi_handle(fi)->file, m->cfg.close_level == CLOSE_SERVER, false);
}

void op_fsyncdir(fuse_req_t req, fuse_ino_t nodeid, int datasync, struct fuse_file_info *fi) {
        struct mount *m = req_mount(req);
        counter_add(m->cfg.counters, fuse_requests, 1);
        submit(req, NULL, false, false);
}
