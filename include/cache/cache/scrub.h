/* SPDX-License-Identifier: Apache-2.0 */
/* scrub.h: reads everything that a cache holds. Seconds to minutes; for a thread that may wait. */
#pragma once
#include "cache/check.h"
#include "cache/file.h"

struct scrubbed { uint64_t blocks, blocks_bad, blocks_healed, stages, stages_bad, stage_bytes; };
/* Of a running cache. Clean damage is dropped and fetched again, dirty damage is told by path. -ECANCELED: *stop. */
int cache_scrub(struct cache *c, _Atomic bool *stop, const struct check_report *report, struct scrubbed *ret) _must_check_;
/* Only its pending files: how many are damaged. */
int cache_scrub_stages(struct cache *c, _Atomic bool *stop, uint64_t *ret_bad) _must_check_;
/* Of a directory whose lock the caller holds: as check_cache, and each block is read; what is damaged of those is dropped. */
int cache_scrub_dir(const char *dir, struct clock *clock, struct executor *workers, const struct check_report *report, struct scrubbed *ret) _must_check_;
