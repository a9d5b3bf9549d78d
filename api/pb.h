/* SPDX-License-Identifier: Apache-2.0 */
/* pb.h: the Protocol Buffers wire format, as much of it as docs/tarn.proto needs: varints, 64-bit fixed numbers, bytes, nested messages.
 * Private to api/.
 *
 * Writing is sticky: the first error stays in `err` and everything after it is a no-op, so that a row's encoder reads as a list of its fields. Fields
 * with their default value are left out (proto3), so that a row has one encoding: that encoding is what wire_op_digest covers. Nested messages
 * are written in place and their length is put in afterwards (rows are small: the move costs less than a pass that counts).
 *
 * Reading never allocates and never looks past `end`: pb_next checks each length against what is left before it hands out a field. */
#pragma once
#include "base/buf.h"
#include "base/model.h"

enum pb_type { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

struct pb_out { struct buf *b; int err; };
void pb_put_u64(struct pb_out *o, uint32_t field, uint64_t v);                   /* left out if 0 */
void pb_put_time(struct pb_out *o, uint32_t field, int64_t v);                   /* sfixed64; left out if 0 */
void pb_put_bytes(struct pb_out *o, uint32_t field, const void *p, size_t n);    /* left out if n is 0 */
void pb_put_present(struct pb_out *o, uint32_t field, const void *p, size_t n);  /* written even if empty */
void pb_put_id(struct pb_out *o, uint32_t field, const struct id *id);           /* left out if zero */
void pb_put_digest(struct pb_out *o, uint32_t field, const struct digest *d);    /* left out if zero */
/* A nested message: what is written between begin and end is its body. */
size_t pb_begin(struct pb_out *o, uint32_t field);
void pb_end(struct pb_out *o, size_t begin);

struct pb_in { const uint8_t *p, *end; };
struct pb_field { uint32_t num; enum pb_type type; uint64_t v; const uint8_t *p; size_t n; };
static inline struct pb_in pb_in(const void *p, size_t n) {
        return (struct pb_in){ .p = p, .end = n ? (const uint8_t *)p + n : p };
}
/* 1 and the next field, 0 at the end, -EPROTO. */
int pb_next(struct pb_in *in, struct pb_field *ret) _must_check_;
/* How many fields of the message have this number (a whole pass; -EPROTO if it does not parse). */
int pb_count(struct pb_in in, uint32_t field, size_t *ret) _must_check_;
/* Typed values of a field: -EPROTO on another wire type, length or range. */
int pb_get_u64(const struct pb_field *f, uint64_t max, uint64_t *ret) _must_check_;
int pb_get_u32(const struct pb_field *f, uint32_t max, uint32_t *ret) _must_check_;
int pb_get_bool(const struct pb_field *f, bool *ret) _must_check_;
int pb_get_time(const struct pb_field *f, int64_t *ret) _must_check_;
int pb_get_fixed(const struct pb_field *f, void *ret, size_t n) _must_check_;    /* bytes of exactly n */
int pb_get_message(const struct pb_field *f, struct pb_in *ret) _must_check_;
