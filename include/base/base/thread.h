/* SPDX-License-Identifier: Apache-2.0 */
/* thread.h: named, joined threads, and a pool that runs jobs. Nothing is detached, nothing sleeps. */
#pragma once
#include <pthread.h>

#include "base/cleanup.h"

/* name: at most 15 characters. All signals blocked in the new thread. -errno. */
int thread_start(pthread_t *ret, const char *name, void *(*run)(void *), void *arg) _must_check_;

/* A job is embedded in its owner's struct; run is called once on a worker. The executor is given to those who need work done elsewhere; a simulation
 * gives one that runs jobs inline or in seeded order. */
struct job { void (*run)(struct job *j); struct job *next; };
struct executor { void (*submit)(struct executor *e, struct job *j); };
static inline void executor_submit(struct executor *e, struct job *j) { e->submit(e, j); }
struct pool;
int pool_new(const char *name, unsigned threads, struct pool **ret) _must_check_;
struct executor *pool_executor(struct pool *p);
void pool_free(struct pool *p);  /* runs what is queued, then joins */
