/* SPDX-License-Identifier: Apache-2.0 */
/* clock.h: time and randomness as things that are given, so that a simulation can give others. No decision compares the
 * clocks of two machines: real time is data only. */
#pragma once
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/model.h"

struct clock {
        int64_t (*mono_ms)(struct clock *c); /* monotonic, for deadlines; never goes back */
        int64_t (*real_ns)(struct clock *c); /* since the epoch, for timestamps shown to people and programs */
};
struct rng {
        void (*fill)(struct rng *r, void *p, size_t n);
};
static inline int64_t clock_mono_ms(struct clock *c) { return c->mono_ms(c); }
static inline int64_t clock_real_ns(struct clock *c) { return c->real_ns(c); }
struct clock *clock_system(void);  /* CLOCK_MONOTONIC, CLOCK_REALTIME. Any thread. */
struct rng *rng_system(void);      /* getrandom(2). Any thread. */
uint64_t rng_u64(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t bound); /* uniform in [0, bound); bound > 0 */
struct id rng_id(struct rng *r);   /* never zero, never id_root */

/* A seeded generator (xoshiro256**) for tests and the simulation. One thread. */
struct rng_seeded { struct rng rng; uint64_t s[4]; };
void rng_seed(struct rng_seeded *r, uint64_t seed);
/* A clock moved by hand, by one thread; any may read it meanwhile. */
struct clock_manual { struct clock clock; _Atomic int64_t mono_ms, real_ns; };
void clock_manual_init(struct clock_manual *c, int64_t mono_ms, int64_t real_ns);
void clock_manual_advance(struct clock_manual *c, int64_t ms);
