/* SPDX-License-Identifier: Apache-2.0 */
/* planner.h: what to do about a refusal: a pure function of the operation, the server's answer (with its current rows) and what is known locally. The conflict table of semantics.md is
 * this function. */
#pragma once
#include "cache/tree.h"

enum plan_kind { PLAN_RESOLVE = 1, PLAN_UPLOAD_MISSING = 2, PLAN_RETRY = 3, PLAN_PARK = 4, PLAN_UPGRADE = 5 };
struct plan { enum plan_kind kind; enum resolve_kind resolve; int error; const char *reason; int64_t retry_after_ms; };
struct plan_facts { bool same_content; /* local content equals the server's current one */ };
void planner_decide(const struct op *op, const struct op_result *r, const struct plan_facts *facts, struct plan *ret);
