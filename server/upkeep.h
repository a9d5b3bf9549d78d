/* SPDX-License-Identifier: Apache-2.0 */
/* upkeep.h: what a serving server does by itself, without anybody who asks: gc, with the trash and the log of events, every so often. */
#pragma once
#include "server/service.h"

struct upkeep_config {
        uint64_t gc_every_s;             /* 0: never */
        uint64_t min_age_s;              /* as of gc: what is younger is left alone */
        uint64_t trash_age_s;            /* 0: the trash is kept */
        uint64_t keep_events;            /* of each workspace; 0: all */
};
#define UPKEEP_GC_EVERY_S 86400u
#define UPKEEP_MIN_AGE_S 86400u
#define UPKEEP_TRASH_AGE_S (90u * 86400u)
#define UPKEEP_KEEP_EVENTS 1000000u

struct upkeep;
/* Starts the thread "upkeep"; with gc_every_s 0 there is none. */
int upkeep_open(struct service *s, const struct upkeep_config *c, struct upkeep **ret) _must_check_;
/* Ends what is under way soon (as maintain_stop does), waits for the thread. NULL fine. */
void upkeep_close(struct upkeep *u);
/* When the next run is due, if the last began at `last_ms` (-1: none since the server started at `start_ms`) and ended with r; monotonic. */
int64_t upkeep_next_ms(const struct upkeep_config *c, int64_t start_ms, int64_t last_ms, int r);
