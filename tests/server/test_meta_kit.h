/* SPDX-License-Identifier: Apache-2.0 */
/* test_meta_kit.h: a metadata database for a test (in memory or in a temporary directory), one workspace "w" of user "ann", and short ways to make operations.
 * Everything lives until kit_close; rows in results live in kit.a until kit_reset. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "api/code.h"
#include "api/wire.h"
#include "base/digest.h"
#include "meta.h"

static const int64_t KIT_TIME = INT64_C(1700000000) * 1000000000; /* the clock at the start; the operations of kit_... come some us later */

struct kit {
        struct meta *m;
        struct arena *a;
        struct rng_seeded rng;
        struct clock_manual clock;
        struct counters counters;
        char dir[64], path[96];       /* "" in memory */
        struct meta_subject ann;
        uint64_t ws;
        struct id epoch;
};
extern bool kit_on_disk;             /* both kinds are run by every test program */
void kit_open(struct kit *k);
void kit_open_threaded(struct kit *k);
void kit_reopen(struct kit *k);       /* on disk: closes and opens again */
void kit_close(struct kit *k);
void kit_reset(struct kit *k);
void kit_user(struct kit *k, const char *name, struct meta_subject *ret); /* made, with a script token */

struct id kit_id(struct kit *k);
/* A durable block with these bytes, recorded for the subject. */
struct content kit_block(struct kit *k, const struct meta_subject *who, uint64_t ws, const char *text);
struct content content_of(const char *text);

struct op op_create(struct kit *k, enum node_kind kind, struct id parent, const char *name);
struct op op_file(struct kit *k, struct id parent, const char *name, struct content c);
struct op op_content(struct kit *k, struct id node, struct id version, struct content c);
struct op op_unlink(struct kit *k, struct id node, struct id parent, const char *name, struct id placement, struct id version);
struct op op_rename(struct kit *k, struct id node, struct id parent, const char *name, struct id placement, struct id parent2, const char *name2);
struct op op_link(struct kit *k, struct id node, struct id parent, const char *name);

/* One operation in one batch, as ann. */
struct op_result run(struct kit *k, const struct op *op);
struct op_result run_as(struct kit *k, const struct meta_subject *who, uint64_t ws, const struct op *op);
/* Runs it and expects this code. Returns the result. */
#define expect(k, op, want)                                                                                                     \
        ({                                                                                                                      \
                struct op_result expect_ = run((k), (op));                                                                      \
                if (expect_.code != (want))                                                                                     \
                        fail_msg("operation: %s, expected %s", op_code_name(expect_.code), op_code_name(want));                 \
                expect_;                                                                                                        \
        })
/* Row of a node in a result; NULL if it is not there. */
const struct change *current_of(const struct op_result *r, struct id node);
struct change node_now(struct kit *k, struct id node);
int kit_main(const struct CMUnitTest *tests, size_t n);
