/* SPDX-License-Identifier: Apache-2.0 */
/* counters.h: relaxed atomic 64-bit counters, one struct per daemon, handed to whoever counts. They feed status, /metrics and the budget tests.
 * index_flushes: those of the sql_transactions that write back what is known of blobs, some seconds after they changed. */
#pragma once
#include <stdatomic.h>
#include <stdint.h>

#define COUNTERS(X)                                                                                               \
        X(http_requests) X(http_retries) X(http_errors) X(bytes_sent) X(bytes_received)                           \
        X(sql_transactions) X(index_flushes) X(blocks_fetched) X(blocks_sent) X(blocks_deduplicated) X(cache_hits) X(cache_misses) \
        X(cache_evicted_blocks) X(cache_refills) X(events_applied) X(snapshot_rows) X(ops_queued) X(ops_committed) X(ops_refused) \
        X(conflicts) X(fuse_requests) X(fuse_lookup) X(fuse_getattr) X(fuse_readdir) X(fuse_open) X(fuse_read) X(fuse_write)       \
        X(fuse_notifications) X(stage_bytes_written) X(corruptions_found) X(corruptions_healed) \
        X(crawler_opens) X(crawler_refusals)
struct counters {
#define X(name) _Atomic uint64_t name;
        COUNTERS(X)
#undef X
};
#define counter_add(c, field, n) ((void)atomic_fetch_add_explicit(&(c)->field, (n), memory_order_relaxed))
#define counter_get(c, field) atomic_load_explicit(&(c)->field, memory_order_relaxed)
