/* SPDX-License-Identifier: Apache-2.0 */
/* commit_queue.h: group commit. Every writing transaction of the metadata database is a job made of steps (a batch of operations: one step each; all
 * else: one step). One thread takes jobs in order and runs their steps inside one transaction, which ends after `max_ops` steps, after `max_ms`, or as soon as nothing
 * is queued (it never waits for company). If a step or the commit fails, the whole group is rolled back and every step of it is tried again alone, each in its
 * own transaction; a step that fails alone is given up with its error. Callers block until the last step of their job is on disk (or given up). */
#pragma once
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/lock.h"

struct commit_job {
        /* Runs the next step inside the open transaction: 1 more steps follow, 0 that was the last, -errno the transaction is spoilt. */
        int (*step)(struct commit_job *j);
        void (*rewind)(struct commit_job *j);          /* the steps since the last keep did not happen */
        void (*keep)(struct commit_job *j);            /* they are on disk */
        int (*give_up)(struct commit_job *j, int err); /* the next step failed alone: note it, go past it; 1 more steps follow, 0 none */
        /* the queue's */
        struct commit_job *next;
        bool finished;
        struct cond done;
};
struct commit_queue_config {
        int (*begin)(void *arg);
        int (*commit)(void *arg, void **ret_note); /* 0; -errno: the queue then calls rollback */
        void (*rollback)(void *arg);
        void (*failed)(void *arg, int err);        /* a group, or a step alone, was rolled back because of err; what follows is tried again. NULL fine */
        void (*committed)(void *arg, void *note);  /* after a commit, outside the transaction, no lock held; frees the note */
        void *arg;
        bool threaded;                 /* false: run on the caller's thread */
        unsigned max_ops;              /* 0: 64 */
        int64_t max_ms;                /* 0: 20 */
        struct clock *clock;
};
struct commit_queue;
int commit_queue_new(const struct commit_queue_config *c, struct commit_queue **ret) _must_check_;
void commit_queue_free(struct commit_queue *q); /* runs what is queued, joins; NULL fine */
/* Blocks until the job has finished. Results are the job's own business. -ESHUTDOWN: the queue is closing, nothing was done. */
int commit_queue_run(struct commit_queue *q, struct commit_job *j) _must_check_;
struct commit_queue_stats { uint64_t transactions, steps, rollbacks, largest_group; };
void commit_queue_stats_get(struct commit_queue *q, struct commit_queue_stats *ret);
