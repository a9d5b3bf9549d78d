/* SPDX-License-Identifier: Apache-2.0 */
/* retry.h: when to try again. Exponential backoff with full jitter (AWS architecture blog, "Exponential Backoff And Jitter"), a retry
 * budget (token bucket: retries are at most a share of first tries; Google SRE book, "Handling Overload"), a circuit breaker with
 * half-open probes. Values, no locks: the owner's lock guards them. Time and randomness are given. */
#pragma once
#include "base/clock.h"

struct backoff { int64_t base_ms, cap_ms; unsigned attempt; };
/* Delay before the next try: uniform in [0, min(cap, base << attempt)], at least retry_after_ms; counts the attempt. */
int64_t backoff_next_ms(struct backoff *b, struct rng *r, int64_t retry_after_ms);
void backoff_reset(struct backoff *b);

struct retry_budget { double tokens, max, per_request; };
void retry_budget_init(struct retry_budget *b, double max, double per_request);
void retry_budget_request(struct retry_budget *b); /* a first try earns */
bool retry_budget_take(struct retry_budget *b);    /* a retry pays; false: not now */

enum breaker_state { BREAKER_CLOSED, BREAKER_OPEN, BREAKER_HALF_OPEN };
struct breaker {
        enum breaker_state state;
        unsigned failures, threshold;  /* consecutive failures that open it */
        int64_t probe_at_ms;           /* open: when one probe may go */
        struct backoff backoff;        /* between probes */
};
void breaker_init(struct breaker *b, unsigned threshold, int64_t base_ms, int64_t cap_ms);
bool breaker_allows(struct breaker *b, int64_t now_ms);     /* closed: yes; open: one probe once due, then half open */
void breaker_success(struct breaker *b);
void breaker_failure(struct breaker *b, int64_t now_ms, struct rng *r);
void breaker_nudge(struct breaker *b, int64_t now_ms);      /* the network changed: probe now */
