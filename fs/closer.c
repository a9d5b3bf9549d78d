/* SPDX-License-Identifier: Apache-2.0 */
/* closer.c: flush and fsync: requests that wait for a disk or for the server, away from the workers.
 *
 *   flush, close=fast     reports an error of an earlier write; nothing else. Answered on the worker
 *   flush, close=local    file_sync, from the job pool
 *   flush, close=server   file_sync and freeze, from the job pool; then until the node has nothing pending, in the closer's thread; -ETIMEDOUT after
 *                         net_timeout, -EINTR when interrupted
 *   fsync                 file_sync, from the job pool; with close=server it freezes too
 *   fsyncdir              the tree's log
 *
 * The closer waits for "everything is on the server" in slices of SLICE_MS on the cache's own condition, and after each asks for the nodes that are waited
 * for; so a file whose own upload is done is not kept waiting by others for longer than a slice. A FLUSH comes once per descriptor, so it is never taken for the close
 * of the file: the commit point is RELEASE (or the freeze above). */
#include "fs.h"

#include <stddef.h>
#include <stdlib.h>

#define SLICE_MS 100

struct waiter {
        struct waiter *next;
        struct job job;
        struct mount *m;
        fuse_req_t req;
        struct file *file;    /* NULL: fsyncdir. The kernel sends no RELEASE before the reply */
        bool freeze, wait;
        int64_t deadline_ms;
};

static void *closer(void *arg) {
        struct mount *m = arg;
        struct closer *k = &m->closer;
        struct waiter *mine = NULL, **end = &mine;
        for (;;) {
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
                int64_t now = clock_mono_ms(m->cfg.clock);
                bool drained = !stop && cache_wait_drained(m->cfg.cache, now + SLICE_MS) == 0;
                now = clock_mono_ms(m->cfg.clock);
                for (struct waiter **at = &mine; *at;) {
                        struct waiter *w = *at;
                        struct node n;
                        int r = drained ? 0 : tree_get(m->cfg.cache->tree, file_ino(w->file), &n);
                        if (r == 0 && !drained && n.pending)
                                r = stop || fuse_req_interrupted(w->req) ? -EINTR : now >= w->deadline_ms ? -ETIMEDOUT : -EINPROGRESS;
                        if (r == -EINPROGRESS) {
                                at = &w->next;
                                continue;
                        }
                        *at = w->next;
                        reply_fail_or_ok(w->req, r == -ENOENT ? 0 : r); /* deleted meanwhile: nothing left to wait for */
                        free(w);
                }
                for (end = &mine; *end; end = &(*end)->next)
                        ;
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
        if (r == 0 && w->wait) {
                struct closer *k = &m->closer;
                LOCK_SCOPE(&k->lock);
                w->next = NULL;
                *k->last = w;
                k->last = &w->next;
                cond_signal(&k->more);
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
