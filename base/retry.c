/* SPDX-License-Identifier: Apache-2.0 */
/* retry.c: backoff, retry budget, circuit breaker. Values only; the owner's lock guards them.
 *
 * breaker   closed     every try goes; `threshold` failures in a row open it
 *           open       nothing goes until probe_at_ms; then one probe, and the state is half open
 *           half open  nothing more goes until the probe is answered: success closes, failure opens again with a longer wait
 * A nudge (the network changed) makes the probe due at once. */
#include "base/retry.h"

#include <assert.h>

#include "base/cleanup.h"

int64_t backoff_next_ms(struct backoff *b, struct rng *r, int64_t retry_after_ms) {
        int64_t bound = MIN(b->base_ms, b->cap_ms);
        for (unsigned i = 0; i < b->attempt && bound < b->cap_ms; i++)
                bound = bound > b->cap_ms / 2 ? b->cap_ms : bound * 2;
        if (b->attempt < 63)
                b->attempt++;
        int64_t delay = bound > 0 ? (int64_t)rng_below(r, (uint64_t)bound + 1) : 0;
        return MAX(delay, retry_after_ms);
}

void backoff_reset(struct backoff *b) {
        b->attempt = 0;
}

void retry_budget_init(struct retry_budget *b, double max, double per_request) {
        *b = (struct retry_budget){ .tokens = max, .max = max, .per_request = per_request };
}

void retry_budget_request(struct retry_budget *b) {
        b->tokens = MIN(b->max, b->tokens + b->per_request);
}

bool retry_budget_take(struct retry_budget *b) {
        if (b->tokens < 1.0)
                return false;
        b->tokens -= 1.0;
        return true;
}

void breaker_init(struct breaker *b, unsigned threshold, int64_t base_ms, int64_t cap_ms) {
        assert(threshold > 0);
        *b = (struct breaker){ .state = BREAKER_CLOSED, .threshold = threshold, .backoff = { .base_ms = base_ms, .cap_ms = cap_ms } };
}

bool breaker_allows(struct breaker *b, int64_t now_ms) {
        if (b->state == BREAKER_CLOSED)
                return true;
        if (b->state == BREAKER_HALF_OPEN || now_ms < b->probe_at_ms)
                return false;
        b->state = BREAKER_HALF_OPEN;
        return true;
}

void breaker_success(struct breaker *b) {
        b->state = BREAKER_CLOSED;
        b->failures = 0;
        backoff_reset(&b->backoff);
}

void breaker_failure(struct breaker *b, int64_t now_ms, struct rng *r) {
        if (b->failures < UINT32_MAX)
                b->failures++;
        if (b->state == BREAKER_OPEN) /* a request that left before it opened: no longer wait for it */
                return;
        if (b->state == BREAKER_HALF_OPEN || b->failures >= b->threshold) {
                b->state = BREAKER_OPEN;
                b->probe_at_ms = now_ms + backoff_next_ms(&b->backoff, r, 0);
        }
}

void breaker_nudge(struct breaker *b, int64_t now_ms) {
        if (b->state == BREAKER_OPEN)
                b->probe_at_ms = now_ms;
}
