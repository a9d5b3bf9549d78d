/* SPDX-License-Identifier: Apache-2.0 */
/* lock.c: mutexes with a rank, and condition variables on the monotonic clock.
 *
 * Under TARN_DEBUG_LOCKS (all builds but release) each thread keeps a stack of the locks that it holds. Taking one whose rank is not greater than that of every
 * held one aborts with both names: the order is checked on every run, not only on the unlucky one. Locks may be dropped in any order. A condition wait keeps the lock on
 * the stack: the thread owns it again before it goes on. In release builds there is nothing but the mutex. */
#include "base/lock.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if TARN_DEBUG_LOCKS
#define HELD_MAX 16

static _Thread_local struct lock *held[HELD_MAX];
static _Thread_local unsigned n_held;
#endif

static void __attribute__((noreturn)) lock_die(const char *what, const struct lock *l, const struct lock *other) {
        (void)fprintf(stderr, "lock: %s: %s (rank %d)%s%s%s\n", what, l ? l->name : "-", l ? l->rank : 0, other ? " while holding " : "", other ? other->name : "",
                      other && l && other->rank == l->rank ? " (same rank)" : "");
        abort();
}

#if TARN_DEBUG_LOCKS
static void held_check(struct lock *l) {
        for (unsigned i = 0; i < n_held; i++)
                if (held[i]->rank >= l->rank)
                        lock_die("rank violated", l, held[i]);
        if (n_held == HELD_MAX)
                lock_die("too many locks", l, held[0]);
}

static void held_add(struct lock *l) {
        held[n_held++] = l;
}

static void held_remove(struct lock *l) {
        for (unsigned i = n_held; i-- > 0;)
                if (held[i] == l) {
                        for (unsigned k = i; k + 1 < n_held; k++)
                                held[k] = held[k + 1];
                        n_held--;
                        return;
                }
        lock_die("dropped but not held", l, NULL);
}

void lock_assert_held(struct lock *l) {
        for (unsigned i = 0; i < n_held; i++)
                if (held[i] == l)
                        return;
        lock_die("not held", l, NULL);
}

void lock_assert_none(void) {
        if (n_held > 0)
                lock_die("held where no lock may be", held[0], NULL);
}

void lock_assert_below(int rank) {
        for (unsigned i = 0; i < n_held; i++)
                if (held[i]->rank >= rank)
                        lock_die("held where only lower ranks may be", held[i], NULL);
}
#else
static inline void held_check(struct lock *l) {
}
static inline void held_add(struct lock *l) {
}
static inline void held_remove(struct lock *l) {
}
void lock_assert_held(struct lock *l) {
}
void lock_assert_none(void) {
}
void lock_assert_below(int rank) {
}
#endif

/* What pthreads refuse is our mistake (a lock that is not held, a destroyed one): told with the call's name. */
static void must_(int r, const char *what, const struct lock *l) {
        if (r != 0) {
                (void)fprintf(stderr, "%s: error %d\n", what, r);
                lock_die(what, l, NULL);
        }
}
#define must(call, l) must_(call, #call, l)

void lock_init(struct lock *l, const char *name, int rank) {
        l->name = name;
        l->rank = rank;
        must(pthread_mutex_init(&l->m, NULL), l);
}

void lock_destroy(struct lock *l) {
        must(pthread_mutex_destroy(&l->m), l);
}

void lock_take(struct lock *l) {
        held_check(l);
        must(pthread_mutex_lock(&l->m), l);
        held_add(l);
}

void lock_drop(struct lock *l) {
        held_remove(l);
        must(pthread_mutex_unlock(&l->m), l);
}

void cond_init(struct cond *c) {
        pthread_condattr_t attr;
        must(pthread_condattr_init(&attr), NULL);
        must(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC), NULL);
        must(pthread_cond_init(&c->c, &attr), NULL);
        must(pthread_condattr_destroy(&attr), NULL);
}

void cond_destroy(struct cond *c) {
        must(pthread_cond_destroy(&c->c), NULL);
}

void cond_wait(struct cond *c, struct lock *l) {
        lock_assert_held(l);
        must(pthread_cond_wait(&c->c, &l->m), l);
}

int cond_wait_until(struct cond *c, struct lock *l, int64_t deadline_ms) {
        lock_assert_held(l);
        if (deadline_ms < 0)
                deadline_ms = 0;
        struct timespec ts = { .tv_sec = deadline_ms / 1000, .tv_nsec = deadline_ms % 1000 * 1000000 };
        int r = pthread_cond_timedwait(&c->c, &l->m, &ts);
        if (r == ETIMEDOUT)
                return -ETIMEDOUT;
        must_(r, "pthread_cond_timedwait", l);
        return 0;
}

void cond_signal(struct cond *c) {
        must(pthread_cond_signal(&c->c), NULL);
}

void cond_broadcast(struct cond *c) {
        must(pthread_cond_broadcast(&c->c), NULL);
}
