/* SPDX-License-Identifier: Apache-2.0 */
/* http_lane.h: threads for one class of requests, shared fairly among those who ask. Any thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/thread.h"

struct lane;
struct lane_job { void (*run)(struct lane_job *j); uint64_t who; struct lane_job *next; };

/* each_at_once: most threads that one asker may have at a moment; 0: all. queue_max: most jobs of one asker that wait. */
int lane_new(const char *name, unsigned threads, unsigned each_at_once, unsigned queue_max, struct lane **ret) _must_check_;
/* run is called once on one of the lane's threads. may_refuse: -EAGAIN if this asker has too much waiting already; else always 0. */
int lane_submit(struct lane *l, struct lane_job *j, uint64_t who, bool may_refuse) _must_check_;
void lane_free(struct lane *l); /* runs what is queued, then joins; NULL fine */
