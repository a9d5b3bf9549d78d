/* SPDX-License-Identifier: Apache-2.0 */
/* commit_queue.c: group commit.
 *
 *   queue (FIFO)  ->  group: one transaction, up to max_ops steps or max_ms   ->  keep() and wake
 *                          | a step or the commit failed
 *                          v
 *                     rollback, rewind() each job, then every step of the group alone; what fails alone is given up
 *
 * A job that has steps left when its group ends stays at the head, so that the operations of one client keep their order. Nothing waits for company: with one
 * caller a group is one job, under load it is what gathered during the last fsync.
 *
 * Locks: `lock` (RANK_QUEUE) guards the list, `stop`, `finished` of queued jobs and the counters; it is never held during a step or a commit. A job belongs to the
 * running thread from the moment it is the head until it is finished; its owner only waits.
 * Without a thread the caller's own job is a group of its own, at once. */
#include "commit_queue.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/failpoint.h"
#include "base/thread.h"

struct commit_queue {
        struct commit_queue_config c;
        struct lock lock;
        struct cond wake;
        struct commit_job *head, *tail;
        bool stop;
        pthread_t thread;
        struct commit_queue_stats stats;
};
struct member { struct commit_job *job; unsigned steps; bool last; };

static void count(struct commit_queue *q, unsigned steps, unsigned rollbacks) {
        LOCK_SCOPE(&q->lock);
        q->stats.transactions += steps > 0;
        q->stats.steps += steps;
        q->stats.rollbacks += rollbacks;
        q->stats.largest_group = MAX(q->stats.largest_group, (uint64_t)steps);
}

/* One step in a transaction of its own. 1 more follow, 0 the job is through. */
static int run_alone(struct commit_queue *q, struct commit_job *j) {
        void *note = NULL;
        int r = q->c.begin(q->c.arg);
        if (r == 0) {
                int more = j->step(j);
                r = more < 0 ? more : q->c.commit(q->c.arg, &note);
                if (r == 0) {
                        j->keep(j);
                        count(q, 1, 0);
                        q->c.committed(q->c.arg, note);
                        return more;
                }
                q->c.rollback(q->c.arg);
                j->rewind(j);
        }
        return j->give_up(j, r);
}

static void redo_alone(struct commit_queue *q, struct member *members, size_t n) {
        for (size_t i = 0; i < n; i++) {
                struct member *g = &members[i];
                g->last = false;
                for (unsigned k = 0; k < g->steps && !g->last; k++)
                        g->last = run_alone(q, g->job) == 0;
        }
}

/* The job that follows in this group; NULL: none. Only the running thread takes jobs off the list. */
static struct commit_job *head_of(struct commit_queue *q) {
        LOCK_SCOPE(&q->lock);
        return q->head;
}

static void take_off(struct commit_queue *q) {
        LOCK_SCOPE(&q->lock);
        q->head = q->head->next;
        if (!q->head)
                q->tail = NULL;
}

/* Runs one group. `only`: the group is this job alone, which is not in the list (no thread). Returns whether `only` is through. */
static bool run_group(struct commit_queue *q, struct commit_job *only) {
        struct member members[64];
        size_t n = 0;
        unsigned steps = 0;
        bool failed = false;
        void *note = NULL;
        int64_t end_ms = clock_mono_ms(q->c.clock) + q->c.max_ms;
        struct commit_job *j = only ? only : head_of(q);
        if (!j)
                return true;
        int r = q->c.begin(q->c.arg);
        bool begun = r == 0;
        failed = r < 0;
        do {
                if (n == 0 || members[n - 1].job != j)
                        members[n++] = (struct member){ .job = j };
                struct member *g = &members[n - 1];
                g->steps++;
                if (failed)
                        break;
                r = j->step(j);
                if (r < 0) {
                        failed = true;
                        break;
                }
                steps++;
                if (r == 0) {
                        g->last = true;
                        if (only)
                                break;
                        take_off(q);
                        j = head_of(q);
                }
        } while (j && steps < q->c.max_ops && n < ARRAY_SIZE(members) && clock_mono_ms(q->c.clock) < end_ms);
        if (!failed) {
                r = FAILPOINT("commit.group");
                if (r == 0)
                        r = q->c.commit(q->c.arg, &note);
                failed = r < 0;
        }
        if (!failed) {
                FAILPOINT_HERE("commit.done");
                for (size_t i = 0; i < n; i++)
                        members[i].job->keep(members[i].job);
                count(q, steps, 0);
                q->c.committed(q->c.arg, note);
        } else {
                bool was_head = !members[n - 1].last && !only;
                if (begun)
                        q->c.rollback(q->c.arg);
                if (q->c.failed)
                        q->c.failed(q->c.arg, r);
                for (size_t i = 0; i < n; i++)
                        members[i].job->rewind(members[i].job);
                count(q, 0, 1);
                redo_alone(q, members, n);
                if (was_head && members[n - 1].last)
                        take_off(q);
                /* A job whose last step had been in the group may, alone, have more to do than before. */
                for (size_t i = 0; i < n; i++)
                        while (!members[i].last && (only || !was_head || i + 1 < n))
                                members[i].last = run_alone(q, members[i].job) == 0;
        }
        bool through = members[n - 1].last;
        if (!only) {
                LOCK_SCOPE(&q->lock);
                for (size_t i = 0; i < n; i++)
                        if (members[i].last) {
                                members[i].job->finished = true;
                                cond_signal(&members[i].job->done);
                        }
        }
        return through;
}

static void *run(void *arg) {
        struct commit_queue *q = arg;
        for (;;) {
                {
                        LOCK_SCOPE(&q->lock);
                        while (!q->head && !q->stop)
                                cond_wait(&q->wake, &q->lock);
                        if (!q->head)
                                return NULL;
                }
                (void)run_group(q, NULL);
        }
}

int commit_queue_new(const struct commit_queue_config *c, struct commit_queue **ret) {
        struct commit_queue *q = calloc(1, sizeof *q);
        if (!q)
                return -ENOMEM;
        q->c = *c;
        if (!q->c.max_ops)
                q->c.max_ops = 64;
        if (!q->c.max_ms)
                q->c.max_ms = 20;
        lock_init(&q->lock, "commit queue", RANK_QUEUE);
        cond_init(&q->wake);
        int r = q->c.threaded ? thread_start(&q->thread, "commit", run, q) : 0;
        if (r < 0) {
                cond_destroy(&q->wake);
                lock_destroy(&q->lock);
                free(q);
                return r;
        }
        *ret = q;
        return 0;
}

void commit_queue_free(struct commit_queue *q) {
        if (!q)
                return;
        {
                LOCK_SCOPE(&q->lock);
                q->stop = true;
                cond_broadcast(&q->wake);
        }
        if (q->c.threaded)
                (void)pthread_join(q->thread, NULL);
        cond_destroy(&q->wake);
        lock_destroy(&q->lock);
        free(q);
}

int commit_queue_run(struct commit_queue *q, struct commit_job *j) {
        j->next = NULL;
        j->finished = false;
        if (!q->c.threaded) {
                while (!run_group(q, j))
                        ;
                return 0;
        }
        cond_init(&j->done);
        int r = 0;
        {
                LOCK_SCOPE(&q->lock);
                if (q->stop)
                        r = -ESHUTDOWN;
                else {
                        if (q->tail)
                                q->tail->next = j;
                        else
                                q->head = j;
                        q->tail = j;
                        cond_signal(&q->wake);
                        while (!j->finished)
                                cond_wait(&j->done, &q->lock);
                }
        }
        cond_destroy(&j->done);
        return r;
}

void commit_queue_stats_get(struct commit_queue *q, struct commit_queue_stats *ret) {
        LOCK_SCOPE(&q->lock);
        *ret = q->stats;
}
