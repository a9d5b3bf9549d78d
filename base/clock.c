/* SPDX-License-Identifier: Apache-2.0 */
/* clock.c: the real clock and the real randomness, and their counterparts for tests: a clock moved by hand and a seeded generator.
 *
 * The seeded generator is xoshiro256** (Blackman and Vigna), its state filled by splitmix64 from the seed, as its authors
 * advise. rng_below rejects the tail of the range that would make small values likelier. getrandom(2) without flags cannot fail once the kernel's pool
 * is ready, and blocks only before that. */
#include "base/clock.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static int64_t system_ns(clockid_t id) {
        struct timespec ts;
        int r = clock_gettime(id, &ts);
        assert(r == 0);
        (void)r;
        return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int64_t system_mono_ms(struct clock *c) {
        return system_ns(CLOCK_MONOTONIC) / 1000000;
}

static int64_t system_real_ns(struct clock *c) {
        return system_ns(CLOCK_REALTIME);
}

struct clock *clock_system(void) {
        static struct clock c = { system_mono_ms, system_real_ns };
        return &c;
}

static void system_fill(struct rng *r, void *p, size_t n) {
        uint8_t *at = p;
        while (n > 0) {
                ssize_t got = getrandom(at, n, 0);
                if (got < 0) {
                        if (errno == EINTR)
                                continue;
                        abort(); /* no randomness: ids would collide; nothing sane can go on */
                }
                at += got;
                n -= (size_t)got;
        }
}

struct rng *rng_system(void) {
        static struct rng r = { system_fill };
        return &r;
}

uint64_t rng_u64(struct rng *r) {
        uint64_t v;
        r->fill(r, &v, sizeof v);
        return v;
}

uint64_t rng_below(struct rng *r, uint64_t bound) {
        assert(bound > 0);
        uint64_t reject = -bound % bound; /* 2^64 mod bound */
        for (;;) {
                uint64_t v = rng_u64(r);
                if (v >= reject)
                        return v % bound;
        }
}

struct id rng_id(struct rng *r) {
        struct id id;
        do
                r->fill(r, id.b, sizeof id.b);
        while (id_is_zero(&id) || id_equal(&id, &id_root));
        return id;
}

static inline uint64_t rotl(uint64_t x, int k) {
        return x << k | x >> (64 - k);
}

static uint64_t seeded_next(struct rng_seeded *g) {
        uint64_t *s = g->s, result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = rotl(s[3], 45);
        return result;
}

static void seeded_fill(struct rng *r, void *p, size_t n) {
        struct rng_seeded *g = (struct rng_seeded *)r;
        uint8_t *at = p;
        while (n > 0) {
                uint64_t v = seeded_next(g);
                size_t k = n < sizeof v ? n : sizeof v;
                memcpy(at, &v, k);
                at += k;
                n -= k;
        }
}

void rng_seed(struct rng_seeded *r, uint64_t seed) {
        r->rng.fill = seeded_fill;
        for (int i = 0; i < 4; i++) {
                uint64_t z = seed += 0x9e3779b97f4a7c15u;
                z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
                z = (z ^ z >> 27) * 0x94d049bb133111ebu;
                r->s[i] = z ^ z >> 31;
        }
}

static int64_t manual_mono_ms(struct clock *c) {
        return atomic_load_explicit(&((struct clock_manual *)c)->mono_ms, memory_order_relaxed);
}

static int64_t manual_real_ns(struct clock *c) {
        return atomic_load_explicit(&((struct clock_manual *)c)->real_ns, memory_order_relaxed);
}

void clock_manual_init(struct clock_manual *c, int64_t mono_ms, int64_t real_ns) {
        c->clock = (struct clock){ manual_mono_ms, manual_real_ns };
        atomic_init(&c->mono_ms, mono_ms);
        atomic_init(&c->real_ns, real_ns);
}

void clock_manual_advance(struct clock_manual *c, int64_t ms) {
        assert(ms >= 0);
        (void)atomic_fetch_add_explicit(&c->mono_ms, ms, memory_order_relaxed);
        (void)atomic_fetch_add_explicit(&c->real_ns, ms * 1000000, memory_order_relaxed);
}
