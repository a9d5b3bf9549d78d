/* SPDX-License-Identifier: Apache-2.0 */
/* http_lane.c: who gets a thread next.
 *
 * Requests of different kinds do not wait for each other: each class has a lane with threads of its own (http.c), so that reads from a slow disk never hold up commits, nor commits
 * a login. Within a lane every asker (one bearer token, or one address without one) has a queue of its own, and the queues take turns: a client that sends hundreds of requests at
 * once waits behind itself, another one's single request is next.
 *
 *   flow     one asker's queue and how many of its jobs run; made with the first job, gone with the last
 *   turn     the first flow of the list that has a job and is below each_at_once gives its oldest job, and goes to the end of the list
 *
 * Bounds: an asker has at most queue_max jobs waiting, more are refused; there are as many flows as requests under way at most, which the number of connections bounds.
 *
 * `lock` (RANK_QUEUE) guards everything; jobs run without it. */
#include "http_lane.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/lock.h"

struct flow { uint64_t who; struct lane_job *first, **last; unsigned waiting, running; struct flow *next, *prev; };
struct lane {
        struct lock lock;
        struct cond more;
        struct flow *head, *tail;
        struct flow spare;               /* when there is no memory for one: shared by all who come then */
        unsigned each_at_once, queue_max, busy, n;
        bool stop;
        pthread_t threads[];
};

static void flow_off(struct lane *l, struct flow *f) {
        if (f->prev)
                f->prev->next = f->next;
        else
                l->head = f->next;
        if (f->next)
                f->next->prev = f->prev;
        else
                l->tail = f->prev;
}

static void flow_last(struct lane *l, struct flow *f) {
        f->next = NULL;
        f->prev = l->tail;
        if (l->tail)
                l->tail->next = f;
        else
                l->head = f;
        l->tail = f;
}

static struct flow *flow_of(struct lane *l, uint64_t who) {
        struct flow *f = l->head;

        while (f && f->who != who)
                f = f->next;
        if (f)
                return f;
        f = calloc(1, sizeof *f);
        if (!f) {
                f = &l->spare;
                if (f->waiting + f->running > 0)
                        return f;
        }
        *f = (struct flow){.who = who, .last = &f->first};
        flow_last(l, f);
        return f;
}

/* The next job whose turn it is; NULL: none may run now. */
static struct lane_job *turn(struct lane *l, struct flow **ret) {
        for (struct flow *f = l->head; f; f = f->next) {
                struct lane_job *j = f->first;

                if (!j || (l->each_at_once && f->running >= l->each_at_once))
                        continue;
                f->first = j->next;
                if (!f->first)
                        f->last = &f->first;
                f->waiting--;
                f->running++;
                flow_off(l, f);
                flow_last(l, f);
                *ret = f;
                return j;
        }
        return NULL;
}

static void *lane_thread(void *arg) {
        struct lane *l = arg;

        lock_take(&l->lock);
        for (;;) {
                struct flow *f;
                struct lane_job *j = turn(l, &f);

                if (j) {
                        l->busy++;
                        lock_drop(&l->lock);
                        j->run(j);
                        lock_assert_none();
                        lock_take(&l->lock);
                        l->busy--;
                        f->running--;
                        if (f->running + f->waiting == 0) {
                                flow_off(l, f);
                                if (f != &l->spare)
                                        free(f);
                        }
                        if (l->stop || l->each_at_once) /* somebody may wait for the end, or for this flow */
                                cond_broadcast(&l->more);
                } else if (l->stop && l->busy == 0) {
                        break; /* nobody is left who could submit */
                } else {
                        cond_wait(&l->more, &l->lock);
                }
        }
        cond_broadcast(&l->more);
        lock_drop(&l->lock);
        return NULL;
}

int lane_new(const char *name, unsigned threads, unsigned each_at_once, unsigned queue_max, struct lane **ret) {
        struct lane *l;

        assert(threads > 0 && threads <= 1024 && queue_max > 0);
        l = calloc(1, sizeof *l + threads * sizeof l->threads[0]);
        if (!l)
                return -ENOMEM;
        lock_init(&l->lock, "lane", RANK_QUEUE);
        cond_init(&l->more);
        l->each_at_once = each_at_once;
        l->queue_max = queue_max;
        for (unsigned i = 0; i < threads; i++) {
                char label[16];
                int r;

                (void)snprintf(label, sizeof label, "%.10s-%u", name, i % 1024);
                r = thread_start(&l->threads[i], label, lane_thread, l);
                if (r < 0) {
                        lane_free(l);
                        return r;
                }
                l->n++;
        }
        *ret = l;
        return 0;
}

int lane_submit(struct lane *l, struct lane_job *j, uint64_t who, bool may_refuse) {
        LOCK_SCOPE(&l->lock);
        struct flow *f = flow_of(l, who);

        if (may_refuse && f->waiting >= l->queue_max)
                return -EAGAIN;
        j->next = NULL;
        j->who = who;
        *f->last = j;
        f->last = &j->next;
        f->waiting++;
        cond_signal(&l->more);
        return 0;
}

void lane_free(struct lane *l) {
        if (!l)
                return;
        lock_take(&l->lock);
        l->stop = true;
        cond_broadcast(&l->more);
        lock_drop(&l->lock);
        for (unsigned i = 0; i < l->n; i++)
                (void)pthread_join(l->threads[i], NULL);
        assert(!l->head);
        cond_destroy(&l->more);
        lock_destroy(&l->lock);
        free(l);
}
