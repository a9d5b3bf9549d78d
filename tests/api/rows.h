/* SPDX-License-Identifier: Apache-2.0 */
/* rows.h: random rows for the codec's tests. Everything comes out of an arena and a seeded generator. */
#pragma once
#include "api/wire.h"
#include "base/clock.h"

struct gen { struct rng *rng; struct arena *a; };

/* One random frame of each kind, appended. */
enum { ROW_KINDS = 12 };
extern const char *const row_names[ROW_KINDS]; /* message of docs/tarn.proto */
int row_add(struct gen *g, unsigned kind, struct buf *b);
/* Decodes a frame of any kind and encodes it again into b (DATA frames are copied). */
int row_again(const struct frame *f, struct arena *a, struct buf *b);

uint64_t gen_u64(struct gen *g, unsigned bits);
struct id gen_id(struct gen *g);
struct digest gen_digest(struct gen *g);
char *gen_name(struct gen *g, size_t *ret_n);
struct node_row gen_node(struct gen *g);
struct entry_row gen_entry(struct gen *g);
struct op gen_op(struct gen *g);
struct event gen_event(struct gen *g);
struct op_result gen_result(struct gen *g);
