/* SPDX-License-Identifier: Apache-2.0 */
/* pb.c: see pb.h. The format: https://protobuf.dev/programming-guides/encoding/
 *
 * Strict where a sane writer never differs: field number 0, groups, a varint of more than 64 bits, a length that runs over the end are
 * -EPROTO. Lenient where the format wants it: unknown fields, any order, the last of several wins. */
#include "pb.h"

#include <string.h>

static void put_raw(struct pb_out *o, const void *p, size_t n) {
        if (o->err == 0 && n > 0)
                o->err = buf_add(o->b, p, n);
}

static size_t varint(uint8_t ret[10], uint64_t v) {
        size_t n = 0;
        while (v >= 0x80) {
                ret[n++] = (uint8_t)(v | 0x80);
                v >>= 7;
        }
        ret[n++] = (uint8_t)v;
        return n;
}

static void put_varint(struct pb_out *o, uint64_t v) {
        uint8_t b[10];
        put_raw(o, b, varint(b, v));
}

static void put_tag(struct pb_out *o, uint32_t field, enum pb_type type) {
        put_varint(o, (uint64_t)field << 3 | type);
}

void pb_put_u64(struct pb_out *o, uint32_t field, uint64_t v) {
        if (v == 0)
                return;
        put_tag(o, field, PB_VARINT);
        put_varint(o, v);
}

void pb_put_time(struct pb_out *o, uint32_t field, int64_t v) {
        uint8_t b[8];
        if (v == 0)
                return;
        for (int i = 0; i < 8; i++)
                b[i] = (uint8_t)((uint64_t)v >> (8 * i));
        put_tag(o, field, PB_FIXED64);
        put_raw(o, b, sizeof b);
}

void pb_put_present(struct pb_out *o, uint32_t field, const void *p, size_t n) {
        put_tag(o, field, PB_BYTES);
        put_varint(o, n);
        put_raw(o, p, n);
}

void pb_put_bytes(struct pb_out *o, uint32_t field, const void *p, size_t n) {
        if (n > 0)
                pb_put_present(o, field, p, n);
}

void pb_put_id(struct pb_out *o, uint32_t field, const struct id *id) {
        if (!id_is_zero(id))
                pb_put_present(o, field, id->b, ID_BYTES);
}

void pb_put_digest(struct pb_out *o, uint32_t field, const struct digest *d) {
        if (!digest_is_zero(d))
                pb_put_present(o, field, d->b, DIGEST_BYTES);
}

size_t pb_begin(struct pb_out *o, uint32_t field) {
        put_tag(o, field, PB_BYTES);
        return o->b->bytes;
}

void pb_end(struct pb_out *o, size_t begin) {
        uint8_t b[10];
        if (o->err)
                return;
        size_t n = o->b->bytes - begin, k = varint(b, n);
        o->err = buf_reserve(o->b, k);
        if (o->err)
                return;
        if (n > 0)
                memmove(o->b->data + begin + k, o->b->data + begin, n);
        memcpy(o->b->data + begin, b, k);
        o->b->bytes += k;
}

static int get_varint(struct pb_in *in, uint64_t *ret) {
        uint64_t v = 0;
        for (unsigned shift = 0; shift < 70; shift += 7) {
                if (in->p == in->end)
                        return -EPROTO;
                uint8_t b = *in->p++;
                if (shift == 63 && b > 1)
                        return -EPROTO;
                v |= (uint64_t)(b & 0x7f) << shift;
                if (b < 0x80) {
                        *ret = v;
                        return 0;
                }
        }
        return -EPROTO;
}

static uint64_t le(const uint8_t *p, unsigned n) {
        uint64_t v = 0;
        for (unsigned i = 0; i < n; i++)
                v |= (uint64_t)p[i] << (8 * i);
        return v;
}

int pb_next(struct pb_in *in, struct pb_field *ret) {
        if (in->p == in->end)
                return 0;
        uint64_t tag = 0;
        if (get_varint(in, &tag) < 0 || tag >> 3 == 0 || tag >> 3 > (1u << 29) - 1)
                return -EPROTO;
        struct pb_field f = { .num = (uint32_t)(tag >> 3), .type = (enum pb_type)(tag & 7) };
        size_t left = (size_t)(in->end - in->p);
        switch (f.type) {
        case PB_VARINT:
                if (get_varint(in, &f.v) < 0)
                        return -EPROTO;
                break;
        case PB_FIXED64:
        case PB_FIXED32: {
                unsigned n = f.type == PB_FIXED64 ? 8 : 4;
                if (left < n)
                        return -EPROTO;
                f.v = le(in->p, n);
                in->p += n;
                break;
        }
        case PB_BYTES:
                if (get_varint(in, &f.v) < 0 || f.v > (size_t)(in->end - in->p))
                        return -EPROTO;
                f.p = in->p;
                f.n = (size_t)f.v;
                in->p += f.n;
                break;
        default:
                return -EPROTO;
        }
        *ret = f;
        return 1;
}

int pb_count(struct pb_in in, uint32_t field, size_t *ret) {
        struct pb_field f;
        size_t n = 0;
        int r;
        while ((r = pb_next(&in, &f)) > 0)
                n += f.num == field;
        if (r < 0)
                return r;
        *ret = n;
        return 0;
}

int pb_get_u64(const struct pb_field *f, uint64_t max, uint64_t *ret) {
        if (f->type != PB_VARINT || f->v > max)
                return -EPROTO;
        *ret = f->v;
        return 0;
}

int pb_get_u32(const struct pb_field *f, uint32_t max, uint32_t *ret) {
        if (f->type != PB_VARINT || f->v > max)
                return -EPROTO;
        *ret = (uint32_t)f->v;
        return 0;
}

int pb_get_bool(const struct pb_field *f, bool *ret) {
        if (f->type != PB_VARINT || f->v > 1)
                return -EPROTO;
        *ret = f->v;
        return 0;
}

int pb_get_time(const struct pb_field *f, int64_t *ret) {
        if (f->type != PB_FIXED64)
                return -EPROTO;
        *ret = (int64_t)f->v;
        return 0;
}

int pb_get_fixed(const struct pb_field *f, void *ret, size_t n) {
        if (f->type != PB_BYTES || f->n != n)
                return -EPROTO;
        memcpy(ret, f->p, n);
        return 0;
}

int pb_get_message(const struct pb_field *f, struct pb_in *ret) {
        if (f->type != PB_BYTES)
                return -EPROTO;
        *ret = pb_in(f->p, f->n);
        return 0;
}
