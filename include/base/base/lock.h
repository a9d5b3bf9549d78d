/* SPDX-License-Identifier: Apache-2.0 */
/* lock.h: mutexes with a rank. A thread takes locks in rising rank only; debug builds (and all sanitizer builds) check that per thread and abort
 * with both names. None is held during HTTP, fsync, hashing a file or a kernel notification. Waits have deadlines. */
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

enum lock_rank {
        RANK_HANDLE = 10, RANK_FILE = 20, RANK_STAGE_IO = 25, RANK_STAGE = 30, RANK_BLOB = 40, RANK_LRU = 50, RANK_TREE = 60, RANK_OUTBOX = 70,
        RANK_QUEUE = 80, /* work queues, notifier, completion lists */
        RANK_LOG = 90,
};
struct lock { pthread_mutex_t m; const char *name; int rank; };
struct cond { pthread_cond_t c; }; /* CLOCK_MONOTONIC */
void lock_init(struct lock *l, const char *name, int rank);
void lock_destroy(struct lock *l);
void lock_take(struct lock *l);
void lock_drop(struct lock *l);
void lock_assert_held(struct lock *l);
void lock_assert_none(void);                 /* this thread holds no ranked lock */
void lock_assert_below(int rank);            /* it holds none of that rank or above */
void cond_init(struct cond *c);
void cond_destroy(struct cond *c);
void cond_wait(struct cond *c, struct lock *l);
/* deadline_ms: absolute on CLOCK_MONOTONIC. Returns 0 or -ETIMEDOUT. */
int cond_wait_until(struct cond *c, struct lock *l, int64_t deadline_ms) _must_check_;
void cond_signal(struct cond *c);
void cond_broadcast(struct cond *c);
static inline void cleanup_lock_p(struct lock **l) { if (*l) lock_drop(*l); }
#define LOCK_PASTE_(a, b) a##b
#define LOCK_NAME_(n) LOCK_PASTE_(lock_scope_, n)
/* Holds l until the end of the scope. */
#define LOCK_SCOPE(l) _unused_ _cleanup_(cleanup_lock_p) struct lock *LOCK_NAME_(__LINE__) = (lock_take(l), (l))
