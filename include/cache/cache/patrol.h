/* SPDX-License-Identifier: Apache-2.0 */
/* patrol.h: a running cache reads everything that it holds, slowly, again and again. */
#pragma once
#include "cache/file.h"

struct patrol;
struct patrol_config {
        struct cache *cache;
        int64_t period_ms;            /* each block is read at least once in that time, as long as the program runs */
        bool by_hand;                 /* no thread: patrol_turn */
};
struct patrol_status {
        uint64_t blocks, blocks_total; /* read in this round, of so many */
        uint64_t bad, healed, stages_bad; /* in this round; pending files that were damaged at the last look */
        int64_t started_ns, finished_ns; /* real time: of this round, of the last complete one; 0: none */
        bool urgent;                  /* blocks that a power cut made doubtful come first */
};
int patrol_new(const struct patrol_config *c, struct patrol **ret) _must_check_;
/* Joins its thread, remembers where it was. NULL is fine. Before cache_close. */
void patrol_free(struct patrol *p);
void patrol_status(struct patrol *p, struct patrol_status *ret); /* any thread */
/* by_hand: what is due now. Returns when more is, in ms. */
int64_t patrol_turn(struct patrol *p);
