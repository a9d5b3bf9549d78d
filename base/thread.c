/* SPDX-License-Identifier: Apache-2.0 */
/* thread.c: named threads with every signal blocked (signals go to the one thread that asked for them), and the pool.
 *
 * The pool is a first-in first-out list of jobs under one lock (RANK_QUEUE) and a fixed number of workers that wait on its condition. A job is embedded in
 * its owner's struct: submitting allocates nothing and cannot fail; a job may free itself or submit itself anew from its run function, because the pool does
 * not touch it after calling it. pool_free runs what is queued (also what those jobs submit), then joins. */
#include "base/thread.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/lock.h"

int thread_start(pthread_t *ret, const char *name, void *(*run)(void *), void *arg) {
        sigset_t all, old;
        char short_name[16];
        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &old); /* inherited by the new thread */
        pthread_t t;
        int r = pthread_create(&t, NULL, run, arg);
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r != 0)
                return -r;
        (void)snprintf(short_name, sizeof short_name, "%s", name);
        (void)pthread_setname_np(t, short_name);
        *ret = t;
        return 0;
}

struct pool {
        struct executor executor;
        struct lock lock;
        struct cond more;
        struct job *first, **last; /* lock */
        bool stop;                 /* lock: leave when the list is empty */
        unsigned busy;             /* lock: workers inside a job */
        unsigned n;
        pthread_t threads[];
};

static void pool_submit(struct executor *e, struct job *j) {
        struct pool *p = container_of(e, struct pool, executor);
        j->next = NULL;
        LOCK_SCOPE(&p->lock);
        *p->last = j;
        p->last = &j->next;
        cond_signal(&p->more);
}

static void *pool_worker(void *arg) {
        struct pool *p = arg;
        lock_take(&p->lock);
        for (;;) {
                if (p->first) {
                        struct job *j = p->first;
                        p->first = j->next;
                        if (!p->first)
                                p->last = &p->first;
                        p->busy++;
                        lock_drop(&p->lock);
                        j->run(j);
                        lock_assert_none();
                        lock_take(&p->lock);
                        if (--p->busy == 0 && p->stop)
                                cond_broadcast(&p->more);
                } else if (p->stop && p->busy == 0) {
                        break; /* nobody is left who could submit */
                } else {
                        cond_wait(&p->more, &p->lock);
                }
        }
        lock_drop(&p->lock);
        return NULL;
}

int pool_new(const char *name, unsigned threads, struct pool **ret) {
        assert(threads > 0 && threads <= 1024);
        struct pool *p = calloc(1, sizeof *p + threads * sizeof p->threads[0]);
        if (!p)
                return -ENOMEM;
        p->executor.submit = pool_submit;
        p->last = &p->first;
        lock_init(&p->lock, "pool", RANK_QUEUE);
        cond_init(&p->more);
        for (unsigned i = 0; i < threads; i++) {
                char label[16];
                (void)snprintf(label, sizeof label, "%.10s-%u", name, i % 1024);
                int r = thread_start(&p->threads[i], label, pool_worker, p);
                if (r < 0) {
                        pool_free(p);
                        return r;
                }
                p->n++;
        }
        *ret = p;
        return 0;
}

struct executor *pool_executor(struct pool *p) {
        return &p->executor;
}

void pool_free(struct pool *p) {
        if (!p)
                return;
        lock_take(&p->lock);
        p->stop = true;
        cond_broadcast(&p->more);
        lock_drop(&p->lock);
        for (unsigned i = 0; i < p->n; i++)
                (void)pthread_join(p->threads[i], NULL);
        cond_destroy(&p->more);
        lock_destroy(&p->lock);
        free(p);
}
