/* SPDX-License-Identifier: Apache-2.0 */
/* leases.h: locks that hold across clients, and the leases under which they are held. docs/locks.md has the protocol.
 *
 * Threads: every function from any thread. One lock (rank of the service's waiters) guards all; `ready` of a waiter is called with it held. Nothing waits, no I/O. */
#pragma once
#include "base/clock.h"
#include "server/service.h"

#define LEASE_MS_DEFAULT 30000
#define LEASE_MS_MIN 500
#define LEASE_MS_MAX 600000
#define LEASES_MAX 16384u             /* at once; of one device LEASES_DEVICE_MAX */
#define LEASES_DEVICE_MAX 64u
#define LEASE_LOCKS_MAX 16384u        /* ranges held under one lease */
#define LEASE_CANCELS_MAX 256u        /* cancelled numbers above `done` */
#define LOCK_END UINT64_C(0x7fffffffffffffff)

struct leases;
struct lease_who { uint64_t ws, account; struct id device; }; /* a lease belongs to these; nobody else's exists for the asker */
enum lease_type { LEASE_NONE = 0, LEASE_READ = 1, LEASE_WRITE = 2 };
struct lease_lock {
        struct id node;
        uint64_t owner;               /* who it is within the client */
        bool flock;                   /* flock(2): does not meet locks of fcntl(2) */
        enum lease_type type;         /* LEASE_NONE: unlock */
        uint64_t start, end;          /* bytes, end included; to the end of the file: LOCK_END */
};
/* number: of the request, grows within the lease, 0 for a test. done: of all requests up to this one the client has the answer, or wants none: if one of them comes yet, it does nothing. */
struct lease_request { struct lease_lock lock; uint64_t number, done; bool test; };
struct lease_held { struct lease_lock lock; bool yours; /* under the asker's lease */ };

/* lease_ms 0: LEASE_MS_DEFAULT. */
int leases_new(struct clock *clock, struct rng *rng, int64_t lease_ms, struct leases **ret) _must_check_;
void leases_free(struct leases *ls);         /* nobody waits */
int64_t leases_ms(const struct leases *ls);
struct leases_count { uint64_t leases, locks, waits; };
void leases_count(struct leases *ls, struct leases_count *ret);

int lease_begin(struct leases *ls, const struct lease_who *who, struct id *ret) _must_check_;             /* -EUSERS: too many */
int lease_renew(struct leases *ls, const struct lease_who *who, const struct id *lease) _must_check_;     /* -ENOLCK: it has ended */
int lease_end(struct leases *ls, const struct lease_who *who, const struct id *lease) _must_check_;       /* its locks go with it. -ENOLCK */
/* Takes, changes or gives up a range; renews the lease. 0: done. -EAGAIN: somebody holds it (ret_held). With `waiter` and wait_ms > 0 instead -EINPROGRESS: the waiter is registered with its deadline
 * set, and is told (once) when the range may be had: ask again, with the same number. -EDEADLK: those who hold it wait for the asker. -ENOLCK: the lease has ended. -ESTALE: the number is done or
 * cancelled. -EUSERS: too many locks. */
int lease_lock(struct leases *ls, const struct lease_who *who, const struct id *lease, const struct lease_request *q, struct service_waiter *waiter, int64_t wait_ms, struct lease_held *ret_held) _must_check_;
/* The request of that number is to do nothing from now on; if it has been granted, its lock stays until it is given up. -ENOLCK, -EUSERS. */
int lease_cancel(struct leases *ls, const struct lease_who *who, const struct id *lease, uint64_t number, uint64_t done) _must_check_;
void lease_forget(struct leases *ls, struct service_waiter *waiter); /* takes a waiter out. Harmless if it does not wait */

/* A commit under the lease is under way: until lease_unpin nobody gets its locks, even if its time is over meanwhile. -ENOLCK: it has ended. */
int lease_pin(struct leases *ls, const struct lease_who *who, const struct id *lease) _must_check_;
void lease_unpin(struct leases *ls, const struct id *lease);
