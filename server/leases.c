/* SPDX-License-Identifier: Apache-2.0 */
/* leases.c: locks across clients, in memory.
 *
 * A lease belongs to one client (account and device) in one workspace and is named by a random number; all locks of that client are held under it. It ends when it is given
 * back, or when the client has not been heard for lease_ms by this clock. With it go all its locks. Nothing of this is on disk: after a restart no lease of before exists, and since
 * the numbers are random none of them can come to mean another one.
 *
 * The fence. A change that was made under a lock names its lease; it is accepted only while the lease lasts (meta_commit). So that a lease does not end between that look and the
 * transaction, it is pinned for as long: a pinned lease whose time is over takes no request any more, but its locks go only when the last pin does.
 *
 *   lease     renewed  -> holds          time over, no pin    -> gone, waiters are told
 *             given up -> gone           time over, pinned    -> ended: refuses everything, locks stay; last unpin -> gone
 *
 * Locks are ranges of bytes with an owner within the lease, as fcntl(2) has them: an owner's ranges never meet each other (a new one takes the place of what it covers), ranges of two owners
 * meet only if both are for reading. Those of flock(2) are of another kind and do not meet them; changing one gives up the old one first, as it does on one machine.
 *
 * Requests of a client travel on several connections, so that one which was given up (its answer lost, its wait interrupted) may come late, behind the unlock. Hence the numbers: every
 * request names the number up to which all are done, those do nothing any more; a single one above it is cancelled by name. A repeated request does what it did.
 *
 * A wait is a parked request. It holds no place: whoever gives up a range wakes those who could have it, in the order in which they came, and they ask again from here, within the
 * server, before anybody outside has heard of it. Its deadline is the first end of a lease that is in its way, so that nobody has to watch for that. Who would wait for somebody who waits for
 * him is refused (fcntl only).
 *
 * `lock` guards everything. Leases lie in the order of their ends (all last equally long). */
#include "leases.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/lock.h"

#define BUCKETS 1024u
#define CYCLE_STEPS_MAX 10000u
#define RANK_LEASES (RANK_QUEUE - 4) /* as the service's waiters; never together */

struct lease {
        struct lease *next, *prev;   /* by expires_ms */
        struct id id; struct lease_who who;
        int64_t expires_ms;
        bool ended;                  /* given up while pinned */
        unsigned pins;
        unsigned n_locks;
        uint64_t done, cancelled[LEASE_CANCELS_MAX]; size_t n_cancelled;
};
struct held { struct held *next; struct lease *lease; struct lease_lock l; };
struct locked { struct locked *next; uint64_t ws; struct id node; struct held *held; }; /* a node */
struct lease_wait {
        struct lease_wait *next, *prev;
        struct service_waiter *w;
        struct id lease; struct lease_lock l; uint64_t ws;
        uint64_t number;
        int64_t end_ms;              /* of the client's wait */
        bool armed;                  /* not told yet */
};
struct leases {
        struct clock *clock; struct rng *rng;
        int64_t lease_ms;
        struct lock lock;
        struct lease *first, *last; size_t n_leases, n_locks;
        struct locked *nodes[BUCKETS];
        struct lease_wait *waits, *waits_last; /* oldest first */
};

/* ---- nodes ---- */

static struct locked **node_slot(struct leases *ls, uint64_t ws, const struct id *node) {
        struct locked **p;
        uint32_t h;

        memcpy(&h, node->b, sizeof h); /* ids are random */
        for (p = &ls->nodes[h % BUCKETS]; *p; p = &(*p)->next)
                if ((*p)->ws == ws && id_equal(&(*p)->node, node))
                        break;
        return p;
}

static bool overlap(const struct lease_lock *a, const struct lease_lock *b) {
        return a->start <= b->end && b->start <= a->end;
}

static bool is_own(const struct held *h, const struct lease *lease, const struct lease_lock *l) {
        return h->lease == lease && h->l.owner == l->owner && h->l.flock == l->flock;
}

/* Who is in the way, from `from` on; NULL: nobody. */
static struct held *in_the_way(struct held *from, const struct lease *lease, const struct lease_lock *l) {
        for (struct held *h = from; h && l->type != LEASE_NONE; h = h->next)
                if (h->l.flock == l->flock && !is_own(h, lease, l) && overlap(&h->l, l) && (h->l.type == LEASE_WRITE || l->type == LEASE_WRITE))
                        return h;
        return NULL;
}

static struct lease *lease_find(struct leases *ls, const struct id *id) {
        for (struct lease *lease = ls->last; lease; lease = lease->prev)
                if (id_equal(&lease->id, id))
                        return lease;
        return NULL;
}

/* Tells those who wait for a range of the node and could have it. */
static void tell(struct leases *ls, uint64_t ws, const struct id *node) {
        struct locked **at = node_slot(ls, ws, node);

        for (struct lease_wait *w = ls->waits; w; w = w->next) {
                if (!w->armed || w->ws != ws || !id_equal(&w->l.node, node) || (*at && in_the_way((*at)->held, lease_find(ls, &w->lease), &w->l)))
                        continue;
                w->armed = false;
                w->w->ready(w->w);
        }
}

static void held_free(struct leases *ls, struct held **p) {
        struct held *h = *p;

        *p = h->next;
        h->lease->n_locks--;
        ls->n_locks--;
        free(h);
}

/* Nothing is held there: true, and *p is the next one. */
static bool node_drop(struct locked **p) {
        struct locked *n = *p;

        if (!n || n->held)
                return false;
        *p = n->next;
        free(n);
        return true;
}

/* ---- leases ---- */

static void lease_unlink(struct leases *ls, struct lease *lease) {
        if (lease->prev)
                lease->prev->next = lease->next;
        else
                ls->first = lease->next;
        if (lease->next)
                lease->next->prev = lease->prev;
        else
                ls->last = lease->prev;
}

static void lease_append(struct leases *ls, struct lease *lease) {
        lease->expires_ms = clock_mono_ms(ls->clock) + ls->lease_ms;
        lease->next = NULL;
        lease->prev = ls->last;
        if (lease->prev)
                lease->prev->next = lease;
        else
                ls->first = lease;
        ls->last = lease;
}

static void lease_free(struct leases *ls, struct lease *lease) {
        lease_unlink(ls, lease);
        ls->n_leases--;
        for (size_t i = 0; i < BUCKETS && lease->n_locks > 0; i++)
                for (struct locked **at = &ls->nodes[i]; *at;) {
                        struct locked *n = *at;
                        unsigned before = lease->n_locks;
                        uint64_t ws = n->ws;
                        struct id node = n->node;

                        for (struct held **p = &n->held; *p;)
                                if ((*p)->lease == lease)
                                        held_free(ls, p);
                                else
                                        p = &(*p)->next;
                        if (!node_drop(at))
                                at = &n->next;
                        if (lease->n_locks < before)
                                tell(ls, ws, &node);
                }
        for (struct lease_wait *w = ls->waits; w; w = w->next)
                if (w->armed && id_equal(&w->lease, &lease->id)) {
                        w->armed = false;
                        w->w->ready(w->w);
                }
        free(lease);
}

static bool lease_over(struct leases *ls, const struct lease *lease) {
        return lease->ended || lease->expires_ms <= clock_mono_ms(ls->clock);
}

static void sweep(struct leases *ls) {
        struct lease *next;

        for (struct lease *lease = ls->first; lease && lease_over(ls, lease); lease = next) {
                next = lease->next;
                if (lease->pins == 0)
                        lease_free(ls, lease);
        }
}

/* The asker's lease, if it lasts. */
static struct lease *lease_get(struct leases *ls, const struct lease_who *who, const struct id *id) {
        struct lease *lease;

        sweep(ls);
        lease = lease_find(ls, id);
        if (!lease || lease_over(ls, lease) || lease->who.ws != who->ws || lease->who.account != who->account || !id_equal(&lease->who.device, &who->device))
                return NULL;
        return lease;
}

static void renew(struct leases *ls, struct lease *lease) {
        lease_unlink(ls, lease);
        lease_append(ls, lease);
}

int leases_new(struct clock *clock, struct rng *rng, int64_t lease_ms, struct leases **ret) {
        struct leases *ls = calloc(1, sizeof *ls);

        if (!ls)
                return -ENOMEM;
        ls->clock = clock;
        ls->rng = rng;
        ls->lease_ms = lease_ms > 0 ? lease_ms : LEASE_MS_DEFAULT;
        lock_init(&ls->lock, "leases", RANK_LEASES);
        *ret = ls;
        return 0;
}

void leases_free(struct leases *ls) {
        if (!ls)
                return;
        assert(!ls->waits);
        while (ls->first)
                lease_free(ls, ls->first);
        lock_destroy(&ls->lock);
        free(ls);
}

int64_t leases_ms(const struct leases *ls) {
        return ls->lease_ms;
}

void leases_count(struct leases *ls, struct leases_count *ret) {
        LOCK_SCOPE(&ls->lock);
        sweep(ls);
        *ret = (struct leases_count){.leases = ls->n_leases, .locks = ls->n_locks};
        for (const struct lease_wait *w = ls->waits; w; w = w->next)
                ret->waits++;
}

int lease_begin(struct leases *ls, const struct lease_who *who, struct id *ret) {
        struct lease *lease;
        unsigned same = 0;

        LOCK_SCOPE(&ls->lock);
        sweep(ls);
        for (lease = ls->first; lease; lease = lease->next)
                same += id_equal(&lease->who.device, &who->device);
        if (ls->n_leases >= LEASES_MAX || same >= LEASES_DEVICE_MAX)
                return -EUSERS;
        lease = calloc(1, sizeof *lease);
        if (!lease)
                return -ENOMEM;
        lease->id = rng_id(ls->rng);
        lease->who = *who;
        lease_append(ls, lease);
        ls->n_leases++;
        *ret = lease->id;
        return 0;
}

int lease_renew(struct leases *ls, const struct lease_who *who, const struct id *id) {
        struct lease *lease;

        LOCK_SCOPE(&ls->lock);
        lease = lease_get(ls, who, id);
        if (!lease)
                return -ENOLCK;
        renew(ls, lease);
        return 0;
}

int lease_end(struct leases *ls, const struct lease_who *who, const struct id *id) {
        struct lease *lease;

        LOCK_SCOPE(&ls->lock);
        lease = lease_get(ls, who, id);
        if (!lease)
                return -ENOLCK;
        lease->ended = true;
        if (lease->pins == 0)
                lease_free(ls, lease);
        return 0;
}

int lease_pin(struct leases *ls, const struct lease_who *who, const struct id *id) {
        struct lease *lease;

        LOCK_SCOPE(&ls->lock);
        lease = lease_get(ls, who, id);
        if (!lease)
                return -ENOLCK;
        lease->pins++;
        return 0;
}

void lease_unpin(struct leases *ls, const struct id *id) {
        struct lease *lease;

        LOCK_SCOPE(&ls->lock);
        lease = lease_find(ls, id);
        assert(lease && lease->pins > 0);
        if (--lease->pins == 0 && lease_over(ls, lease))
                lease_free(ls, lease);
}

/* ---- numbers ---- */

static void numbers_done(struct leases *ls, struct lease *lease, uint64_t done) {
        size_t n = 0;

        if (done <= lease->done)
                return;
        lease->done = done;
        for (size_t i = 0; i < lease->n_cancelled; i++)
                if (lease->cancelled[i] > done)
                        lease->cancelled[n++] = lease->cancelled[i];
        lease->n_cancelled = n;
        for (struct lease_wait *w = ls->waits; w; w = w->next)
                if (w->armed && w->number <= done && id_equal(&w->lease, &lease->id)) {
                        w->armed = false;
                        w->w->ready(w->w);
                }
}

static bool number_over(const struct lease *lease, uint64_t number) {
        for (size_t i = 0; i < lease->n_cancelled; i++)
                if (lease->cancelled[i] == number)
                        return true;
        return number <= lease->done;
}

int lease_cancel(struct leases *ls, const struct lease_who *who, const struct id *id, uint64_t number, uint64_t done) {
        struct lease *lease;

        LOCK_SCOPE(&ls->lock);
        lease = lease_get(ls, who, id);
        if (!lease)
                return -ENOLCK;
        renew(ls, lease);
        numbers_done(ls, lease, done);
        if (number_over(lease, number))
                return 0;
        if (lease->n_cancelled == LEASE_CANCELS_MAX)
                return -EUSERS;
        lease->cancelled[lease->n_cancelled++] = number;
        for (struct lease_wait *w = ls->waits; w; w = w->next)
                if (w->armed && w->number == number && id_equal(&w->lease, id)) {
                        w->armed = false;
                        w->w->ready(w->w);
                }
        return 0;
}

/* ---- locks ---- */

/* Puts the range into the owner's. spare: two, for the range itself and for what is left behind it; what is used becomes NULL. True: somebody may have more room now. */
static bool held_set(struct leases *ls, struct locked *at, struct lease *lease, const struct lease_lock *l, struct held *spare[2]) {
        struct lease_lock whole = *l;
        bool freed = false;

        for (struct held **p = &at->held; *p;) {
                struct held *h = *p;

                if (!is_own(h, lease, l)) {
                        p = &h->next;
                        continue;
                }
                if (h->l.type == l->type && h->l.start <= (l->end < LOCK_END ? l->end + 1 : l->end) && l->start <= (h->l.end < LOCK_END ? h->l.end + 1 : h->l.end)) {
                        whole.start = MIN(whole.start, h->l.start); /* they meet or touch: one */
                        whole.end = MAX(whole.end, h->l.end);
                        held_free(ls, p);
                        continue;
                }
                if (!overlap(&h->l, l)) {
                        p = &h->next;
                        continue;
                }
                freed = true;
                if (h->l.start < l->start && h->l.end > l->end) {
                        struct held *behind = steal_ptr(spare[1]);

                        *behind = *h;
                        behind->l.start = l->end + 1;
                        h->next = behind;
                        lease->n_locks++;
                        ls->n_locks++;
                }
                if (h->l.start < l->start) {
                        h->l.end = l->start - 1;
                        p = &h->next;
                } else if (h->l.end > l->end) {
                        h->l.start = l->end + 1;
                        p = &h->next;
                } else {
                        held_free(ls, p);
                }
        }
        if (l->type != LEASE_NONE) {
                struct held *h = steal_ptr(spare[0]);

                *h = (struct held){.next = at->held, .lease = lease, .l = whole};
                at->held = h;
                lease->n_locks++;
                ls->n_locks++;
        }
        return freed;
}

/* Would the asker, waiting for l, wait for himself? */
static bool is_cycle(struct leases *ls, const struct lease *lease, uint64_t ws, const struct lease_lock *l, const struct lease *asker, uint64_t owner, unsigned *steps) {
        struct locked *at = *node_slot(ls, ws, &l->node);

        for (struct held *h = at ? in_the_way(at->held, lease, l) : NULL; h; h = in_the_way(h->next, lease, l)) {
                if (h->lease == asker && h->l.owner == owner)
                        return true;
                for (struct lease_wait *w = ls->waits; w; w = w->next) {
                        if (w->l.flock || w->l.owner != h->l.owner || !id_equal(&w->lease, &h->lease->id))
                                continue;
                        if (*steps == 0)
                                return false; /* too long to tell: it waits, and can be interrupted */
                        --*steps;
                        if (is_cycle(ls, h->lease, w->ws, &w->l, asker, owner, steps))
                                return true;
                }
        }
        return false;
}

static int wait_add(struct leases *ls, const struct locked *at, const struct lease *lease, const struct lease_request *q, struct service_waiter *waiter, int64_t wait_ms) {
        int64_t now = clock_mono_ms(ls->clock);
        struct lease_wait *w = waiter->lock;

        if (!w) {
                w = calloc(1, sizeof *w);
                if (!w)
                        return -ENOMEM;
                *w = (struct lease_wait){.w = waiter, .lease = lease->id, .l = q->lock, .ws = lease->who.ws, .number = q->number, .end_ms = now + wait_ms, .prev = ls->waits_last};
                if (w->prev)
                        w->prev->next = w;
                else
                        ls->waits = w;
                ls->waits_last = w;
                waiter->lock = w;
        }
        w->armed = true;
        waiter->deadline_ms = w->end_ms;
        for (const struct held *h = in_the_way(at->held, lease, &q->lock); h; h = in_the_way(h->next, lease, &q->lock))
                if (!lease_over(ls, h->lease)) /* else it is pinned, and the last unpin tells */
                        waiter->deadline_ms = MIN(waiter->deadline_ms, h->lease->expires_ms);
        return -EINPROGRESS;
}

void lease_forget(struct leases *ls, struct service_waiter *waiter) {
        struct lease_wait *w = waiter->lock; /* the owner's own: he is not asked about here at the same time */

        if (!w)
                return;
        LOCK_SCOPE(&ls->lock);
        if (w->prev)
                w->prev->next = w->next;
        else
                ls->waits = w->next;
        if (w->next)
                w->next->prev = w->prev;
        else
                ls->waits_last = w->prev;
        waiter->lock = NULL;
        free(w);
}

static int lock_locked(struct leases *ls, struct lease *lease, const struct lease_request *q, struct service_waiter *waiter, int64_t wait_ms, struct held *spare[2], struct locked **room,
                       struct lease_held *ret_held) {
        const struct lease_lock *l = &q->lock;
        struct locked **slot = node_slot(ls, lease->who.ws, &l->node), *at = *slot;
        unsigned steps = CYCLE_STEPS_MAX;
        struct held *h;
        bool freed = false;

        h = at ? in_the_way(at->held, lease, l) : NULL;
        if (q->test && h) {
                *ret_held = (struct lease_held){h->l, h->lease == lease};
                return -EAGAIN;
        }
        if (q->test)
                return 0;
        if (h && l->flock) { /* a change gives up the old one first */
                struct lease_lock none = *l;

                none.type = LEASE_NONE;
                if (held_set(ls, at, lease, &none, spare))
                        tell(ls, at->ws, &at->node);
        }
        if (h) {
                *ret_held = (struct lease_held){h->l, h->lease == lease};
                if (!waiter || wait_ms <= 0)
                        return -EAGAIN;
                if (!l->flock && is_cycle(ls, lease, lease->who.ws, l, lease, l->owner, &steps))
                        return -EDEADLK;
                return wait_add(ls, at, lease, q, waiter, wait_ms);
        }
        if (!at && l->type == LEASE_NONE)
                return 0;
        if (lease->n_locks + 2 > LEASE_LOCKS_MAX && l->type != LEASE_NONE)
                return -EUSERS;
        if (!at) {
                at = *slot = steal_ptr(*room);
                *at = (struct locked){.ws = lease->who.ws, .node = l->node};
        }
        freed = held_set(ls, at, lease, l, spare);
        (void)node_drop(slot);
        if (freed)
                tell(ls, lease->who.ws, &l->node);
        return 0;
}

int lease_lock(struct leases *ls, const struct lease_who *who, const struct id *id, const struct lease_request *q, struct service_waiter *waiter, int64_t wait_ms, struct lease_held *ret_held) {
        struct held *spare[2] = {calloc(1, sizeof **spare), calloc(1, sizeof **spare)};
        struct locked *room = calloc(1, sizeof *room);
        struct lease *lease;
        int r = -ENOMEM;

        assert(q->lock.start <= q->lock.end && q->lock.end <= LOCK_END);
        if (spare[0] && spare[1] && room) {
                LOCK_SCOPE(&ls->lock);
                lease = lease_get(ls, who, id);
                if (!lease) {
                        r = -ENOLCK;
                } else {
                        renew(ls, lease);
                        numbers_done(ls, lease, q->done);
                        r = !q->test && number_over(lease, q->number) ? -ESTALE : lock_locked(ls, lease, q, waiter, wait_ms, spare, &room, ret_held);
                }
        }
        free(spare[0]);
        free(spare[1]);
        free(room);
        return r;
}
