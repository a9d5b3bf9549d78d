/* SPDX-License-Identifier: Apache-2.0 */
/* test_wire.c: the codec: every row comes back as it went; every damaged byte gives an error or a valid row and never a read out of bounds (run it under
 * ASan: frames are decoded from allocations of exactly their size); limits hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "api/wire.h"
#include "rows.h"

static uint64_t seed = 1;

struct ctx { struct rng_seeded rng; struct gen g; struct arena *out; struct buf a, b; };

static void ctx_open(struct ctx *c, uint64_t salt) {
        *c = (struct ctx){ .a = BUF_INIT(1u << 20), .b = BUF_INIT(1u << 20) };
        rng_seed(&c->rng, seed + salt);
        c->g.rng = &c->rng.rng;
        assert_int_equal(arena_new(8u << 20, &c->g.a), 0);
        assert_int_equal(arena_new(8u << 20, &c->out), 0);
}

static void ctx_close(struct ctx *c) {
        buf_free(&c->a);
        buf_free(&c->b);
        arena_free(c->g.a);
        arena_free(c->out);
}

static void ctx_reset(struct ctx *c) {
        buf_reset(&c->a);
        buf_reset(&c->b);
        arena_reset(c->g.a);
        arena_reset(c->out);
}

static struct frame first_frame(const struct buf *b) {
        struct wire_reader r = { b->data, b->bytes, 0 };
        struct frame f;
        assert_int_equal(wire_next(&r, &f), 1);
        return f;
}

static void content_same(const struct content *a, const struct content *b) {
        assert_memory_equal(&a->root, &b->root, DIGEST_BYTES);
        assert_int_equal(a->size, b->size);
        assert_int_equal(a->depth, b->depth);
        assert_int_equal(a->param, b->param);
}

static void node_same(const struct node_row *a, const struct node_row *b) {
        assert_memory_equal(&a->id, &b->id, ID_BYTES);
        assert_int_equal(a->kind, b->kind);
        assert_int_equal(a->mode, b->mode);
        assert_int_equal(a->uid, b->uid);
        assert_int_equal(a->gid, b->gid);
        assert_true(a->rdev == b->rdev && a->seq == b->seq && a->deleted == b->deleted);
        assert_true(a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns && a->btime_ns == b->btime_ns);
        assert_int_equal(!a->target, !b->target);
        if (a->target)
                assert_string_equal(a->target, b->target);
        assert_int_equal(a->n_xattrs, b->n_xattrs);
        for (size_t i = 0; i < a->n_xattrs; i++) {
                assert_string_equal(a->xattrs[i].name, b->xattrs[i].name);
                assert_int_equal(a->xattrs[i].value_bytes, b->xattrs[i].value_bytes);
                assert_memory_equal(a->xattrs[i].value, b->xattrs[i].value, a->xattrs[i].value_bytes);
        }
        content_same(&a->content, &b->content);
        assert_memory_equal(&a->version, &b->version, ID_BYTES);
}

static void entry_same(const struct entry_row *a, const struct entry_row *b) {
        assert_true(a->entry_id == b->entry_id && a->seq == b->seq);
        assert_memory_equal(&a->parent, &b->parent, ID_BYTES);
        assert_memory_equal(&a->node, &b->node, ID_BYTES);
        assert_int_equal(a->name_bytes, b->name_bytes);
        assert_string_equal(a->name, b->name);
        assert_memory_equal(&a->placement, &b->placement, ID_BYTES);
}

static void changes_same(const struct change *a, size_t na, const struct change *b, size_t nb) {
        assert_int_equal(na, nb);
        for (size_t i = 0; i < na; i++) {
                node_same(&a[i].node, &b[i].node);
                assert_int_equal(a[i].has_entries, b[i].has_entries);
                assert_int_equal(a[i].n_entries, b[i].n_entries);
                for (size_t k = 0; k < a[i].n_entries; k++)
                        entry_same(&a[i].entries[k], &b[i].entries[k]);
        }
}

static void test_fields(void **state) {
        struct ctx c;
        ctx_open(&c, 1);
        for (unsigned round = 0; round < 2000; round++) {
                ctx_reset(&c);
                struct node_row n = gen_node(&c.g), n2;
                struct entry_row e = gen_entry(&c.g), e2;
                struct event v = gen_event(&c.g), v2;
                struct op_result r = gen_result(&c.g), r2;
                struct op o = gen_op(&c.g), o2;
                struct wire_reader in;
                struct frame f;
                assert_int_equal(wire_add_node(&c.a, &n), 0);
                assert_int_equal(wire_add_entry(&c.a, &e), 0);
                assert_int_equal(wire_add_event(&c.a, &v), 0);
                assert_int_equal(wire_add_result(&c.a, &r), 0);
                assert_int_equal(wire_add_op(&c.a, &o), 0);
                in = (struct wire_reader){ c.a.data, c.a.bytes, 0 };
                assert_int_equal(wire_next(&in, &f), 1);
                assert_int_equal(wire_get_node(&f, c.out, &n2), 0);
                node_same(&n, &n2);
                assert_int_equal(wire_get_entry(&f, c.out, &e2), -EPROTO); /* another kind */
                assert_int_equal(wire_next(&in, &f), 1);
                assert_int_equal(wire_get_entry(&f, c.out, &e2), 0);
                entry_same(&e, &e2);
                assert_int_equal(wire_next(&in, &f), 1);
                assert_int_equal(wire_get_event(&f, c.out, &v2), 0);
                assert_true(v.seq == v2.seq && v.time_ns == v2.time_ns && id_equal(&v.op, &v2.op) && id_equal(&v.job, &v2.job));
                assert_memory_equal(v.mark, v2.mark, 8);
                assert_true(!v.actor == !v2.actor && (!v.actor || strcmp(v.actor, v2.actor) == 0));
                assert_true(!v.device == !v2.device);
                changes_same(v.changes, v.n_changes, v2.changes, v2.n_changes);
                assert_int_equal(wire_next(&in, &f), 1);
                assert_int_equal(wire_get_result(&f, c.out, &r2), 0);
                assert_true(id_equal(&r.op, &r2.op) && r.code == r2.code && r.seq == r2.seq && id_equal(&r.merged_into, &r2.merged_into));
                assert_memory_equal(r.mark, r2.mark, 8);
                changes_same(r.current, r.n_current, r2.current, r2.n_current);
                assert_int_equal(r.n_missing, r2.n_missing);
                if (r.n_missing)
                        assert_memory_equal(r.missing, r2.missing, r.n_missing * DIGEST_BYTES);
                assert_int_equal(wire_next(&in, &f), 1);
                assert_int_equal(wire_get_op(&f, c.out, &o2), 0);
                assert_true(id_equal(&o.id, &o2.id) && o.kind == o2.kind && o.flags == o2.flags && o.n_after == o2.n_after && id_equal(&o.node, &o2.node));
                if (o.n_after)
                        assert_memory_equal(o.after, o2.after, o.n_after * ID_BYTES);
                assert_true(id_equal(&o.parent, &o2.parent) && id_equal(&o.parent2, &o2.parent2) && id_equal(&o.placement, &o2.placement) && id_equal(&o.version, &o2.version));
                assert_true(id_equal(&o.replaced, &o2.replaced) && id_equal(&o.replaced_version, &o2.replaced_version) && id_equal(&o.replaced_placement, &o2.replaced_placement));
                assert_true(id_equal(&o.source, &o2.source) && id_equal(&o.lease, &o2.lease) && o.attr_mask == o2.attr_mask && o.time_ns == o2.time_ns && o.name_bytes == o2.name_bytes && o.name2_bytes == o2.name2_bytes);
                if (o.name)
                        assert_string_equal(o.name, o2.name);
                if (o.name2)
                        assert_string_equal(o.name2, o2.name2);
                node_same(&o.attrs, &o2.attrs);
                content_same(&o.content, &o2.content);
                if (o.flags & OPF_INLINE) {
                        assert_int_equal(wire_next(&in, &f), 1);
                        assert_int_equal(f.kind, FRAME_DATA);
                        assert_int_equal(f.bytes, o.content.size);
                        assert_memory_equal(f.payload, o.inline_bytes, f.bytes);
                }
                assert_int_equal(wire_next(&in, &f), 0);
        }
        ctx_close(&c);
}

/* Every kind: decode, encode again, same bytes. */
static void test_again(void **state) {
        struct ctx c;
        ctx_open(&c, 2);
        for (unsigned round = 0; round < 500; round++)
                for (unsigned kind = 0; kind < ROW_KINDS; kind++) {
                        ctx_reset(&c);
                        assert_int_equal(row_add(&c.g, kind, &c.a), 0);
                        struct wire_reader in = { c.a.data, c.a.bytes, 0 };
                        struct frame f;
                        while (wire_next(&in, &f) > 0)
                                assert_int_equal(row_again(&f, c.out, &c.b), 0);
                        assert_int_equal(c.a.bytes, c.b.bytes);
                        assert_memory_equal(c.a.data, c.b.data, c.a.bytes);
                }
        ctx_close(&c);
}

/* Decodes a payload out of an allocation of exactly its size. What decodes must encode, decode and encode to the same bytes again. */
static void feed(struct ctx *c, enum frame_kind kind, const uint8_t *p, size_t n) {
        uint8_t *exact = malloc(n ? n : 1);
        if (n)
                memcpy(exact, p, n);
        struct frame f = { .kind = kind, .payload = exact, .bytes = n };
        arena_reset(c->out);
        buf_reset(&c->b);
        int r = row_again(&f, c->out, &c->b);
        if (r == 0) {
                struct frame again = first_frame(&c->b);
                size_t bytes = c->b.bytes;
                uint8_t *own = malloc(again.bytes ? again.bytes : 1); /* names point into the payload, and the buffer moves when it grows */
                if (again.bytes)
                        memcpy(own, again.payload, again.bytes);
                again.payload = own;
                assert_int_equal(row_again(&again, c->out, &c->b), 0);
                free(own);
                assert_int_equal(c->b.bytes, 2 * bytes);
                assert_memory_equal(c->b.data, c->b.data + bytes, bytes);
        } else
                assert_true(r == -EPROTO || r == -EPROTONOSUPPORT || r == -EMSGSIZE || r == -ENOMEM);
        free(exact);
}

static void test_truncated_and_flipped(void **state) {
        struct ctx c;
        ctx_open(&c, 3);
        for (unsigned round = 0; round < 6; round++)
                for (unsigned kind = 0; kind < ROW_KINDS; kind++) {
                        arena_reset(c.g.a);
                        buf_reset(&c.a);
                        assert_int_equal(row_add(&c.g, kind, &c.a), 0);
                        struct frame f = first_frame(&c.a);
                        uint8_t *copy = malloc(f.bytes + 1);
                        memcpy(copy, f.payload, f.bytes);
                        for (size_t n = 0; n < f.bytes; n++)
                                feed(&c, f.kind, copy, n);
                        for (size_t bit = 0; bit < f.bytes * 8; bit++) {
                                copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
                                feed(&c, f.kind, copy, f.bytes);
                                copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
                        }
                        free(copy);
                }
        ctx_close(&c);
}

static void test_noise(void **state) {
        struct ctx c;
        ctx_open(&c, 4);
        for (unsigned round = 0; round < 20000; round++) {
                uint8_t p[64];
                size_t n = rng_below(c.g.rng, sizeof p);
                c.g.rng->fill(c.g.rng, p, n);
                enum frame_kind kind = (enum frame_kind)(1 + rng_below(c.g.rng, 13));
                if (kind != FRAME_DATA) /* bare bytes: nothing to decode */
                        feed(&c, kind, p, n);
        }
        ctx_close(&c);
}

static void test_reader(void **state) {
        struct ctx c;
        struct frame f;
        ctx_open(&c, 5);
        for (unsigned kind = 0; kind < ROW_KINDS; kind++)
                assert_int_equal(row_add(&c.g, kind, &c.a), 0);
        for (size_t n = 0; n < c.a.bytes; n++) { /* cut anywhere: clean end or -EPROTO */
                uint8_t *exact = malloc(n ? n : 1);
                memcpy(exact, c.a.data, n);
                struct wire_reader r = { exact, n, 0 };
                int k;
                while ((k = wire_next(&r, &f)) > 0)
                        assert_true(f.payload + f.bytes <= exact + n);
                assert_true(k == 0 ? r.at == n : k == -EPROTO);
                free(exact);
        }
        uint8_t unknown[] = { 14, 0, 0, 0, 0 }, zero[] = { 0, 0, 0, 0, 0 }, large[] = { 1, 0xff, 0xff, 0xff, 0xff };
        struct wire_reader r = { unknown, sizeof unknown, 0 };
        assert_int_equal(wire_next(&r, &f), -EPROTONOSUPPORT);
        r = (struct wire_reader){ zero, sizeof zero, 0 };
        assert_int_equal(wire_next(&r, &f), -EPROTONOSUPPORT);
        r = (struct wire_reader){ (const uint8_t *)"<html><body>sign in</body></html>", 33, 0 }; /* not a newer version: not frames */
        assert_int_equal(wire_next(&r, &f), -EPROTO);
        r = (struct wire_reader){ large, sizeof large, 0 };
        assert_int_equal(wire_next(&r, &f), -EPROTO);
        ctx_close(&c);
}

static void test_unknown_things(void **state) {
        struct ctx c;
        struct node_row n, n2;
        ctx_open(&c, 6);
        n = gen_node(&c.g);
        assert_int_equal(wire_add_node(&c.a, &n), 0);
        /* an unknown field of each wire type is skipped */
        const uint8_t extra[] = { 0xa0, 0x06, 0x7f, 0xa1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0xa2, 0x06, 2, 'x', 'y', 0xa5, 0x06, 1, 2, 3, 4 };
        assert_int_equal(buf_add(&c.a, extra, sizeof extra), 0);
        struct frame f = { .kind = FRAME_NODE, .payload = c.a.data + FRAME_HEADER_BYTES, .bytes = c.a.bytes - FRAME_HEADER_BYTES };
        assert_int_equal(wire_get_node(&f, c.out, &n2), 0);
        node_same(&n, &n2);
        /* an unknown kind of node or operation means upgrade; a known field of another type is broken */
        n.kind = (enum node_kind)10;
        buf_reset(&c.a);
        assert_int_equal(wire_add_node(&c.a, &n), 0);
        f = first_frame(&c.a);
        assert_int_equal(wire_get_node(&f, c.out, &n2), -EPROTONOSUPPORT);
        struct op o = gen_op(&c.g), o2;
        o.kind = (enum op_kind)8;
        o.flags = 0;
        buf_reset(&c.a);
        assert_int_equal(wire_add_op(&c.a, &o), 0);
        f = first_frame(&c.a);
        assert_int_equal(wire_get_op(&f, c.out, &o2), -EPROTONOSUPPORT);
        const uint8_t wrong[] = { 0x08, 1 }; /* id as a varint */
        f = (struct frame){ .kind = FRAME_NODE, .payload = wrong, .bytes = sizeof wrong };
        assert_int_equal(wire_get_node(&f, c.out, &n2), -EPROTO);
        const uint8_t group[] = { 0x0b }, field0[] = { 0x00, 0x00 }, runaway[] = { 0x70, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f };
        f = (struct frame){ .kind = FRAME_NODE, .payload = group, .bytes = sizeof group };
        assert_int_equal(wire_get_node(&f, c.out, &n2), -EPROTO);
        f = (struct frame){ .kind = FRAME_NODE, .payload = field0, .bytes = sizeof field0 };
        assert_int_equal(wire_get_node(&f, c.out, &n2), -EPROTO);
        f = (struct frame){ .kind = FRAME_NODE, .payload = runaway, .bytes = sizeof runaway };
        assert_int_equal(wire_get_node(&f, c.out, &n2), -EPROTO);
        ctx_close(&c);
}

static void test_bad_names(void **state) {
        static const struct { const char *name; size_t n; } bad[] = { { "", 0 }, { ".", 1 }, { "..", 2 }, { "a/b", 3 }, { "\xff", 1 }, { "\xc0\x80", 2 }, { "a\xed\xa0\x80", 4 } };
        struct ctx c;
        ctx_open(&c, 7);
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                struct entry_row e = gen_entry(&c.g), e2;
                e.name = bad[i].name;
                e.name_bytes = bad[i].n;
                buf_reset(&c.a);
                assert_int_equal(wire_add_entry(&c.a, &e), 0);
                struct frame f = first_frame(&c.a);
                assert_int_equal(wire_get_entry(&f, c.out, &e2), -EPROTO);
        }
        ctx_close(&c);
}

/* The buffer's maximum: the frame that does not fit leaves no trace. */
static void test_full_buffer(void **state) {
        struct ctx c;
        ctx_open(&c, 8);
        for (size_t max = 0; max < 400; max++) {
                struct buf b = BUF_INIT(max);
                struct op o = gen_op(&c.g);
                struct event e = gen_event(&c.g);
                size_t before = 0;
                int r;
                while ((r = wire_add_op(&b, &o)) == 0)
                        before = b.bytes;
                assert_int_equal(r, -EMSGSIZE);
                assert_int_equal(b.bytes, before);
                while ((r = wire_add_event(&b, &e)) == 0)
                        before = b.bytes;
                assert_int_equal(r, -EMSGSIZE);
                assert_int_equal(b.bytes, before);
                buf_free(&b);
                arena_reset(c.g.a);
        }
        ctx_close(&c);
}

/* A row that claims many elements gets memory for what it really holds, bounded by the arena. */
static void test_small_arena(void **state) {
        struct ctx c;
        struct arena *small = NULL;
        ctx_open(&c, 9);
        assert_int_equal(arena_new(4096, &small), 0);
        for (size_t i = 0; i < 200000; i++)
                assert_int_equal(buf_add(&c.a, "\x42\x00", 2), 0); /* an event of 200,000 empty changes */
        struct event e;
        assert_int_equal(wire_unpack_event(c.a.data, c.a.bytes, small, &e), -EPROTO);
        buf_reset(&c.a);
        for (size_t i = 0; i < 1000; i++)
                assert_int_equal(buf_add(&c.a, "\x42\x00", 2), 0);
        assert_int_equal(wire_unpack_event(c.a.data, c.a.bytes, small, &e), -ENOMEM);
        arena_free(small);
        ctx_close(&c);
}

static void test_op_digest(void **state) {
        struct ctx c;
        struct digest a, b;
        ctx_open(&c, 10);
        struct op o = gen_op(&c.g);
        o.flags |= OPF_INLINE;
        assert_int_equal(wire_op_digest(&o, &a), 0);
        o.flags &= ~(uint32_t)OPF_INLINE;
        o.n_after = 0;
        assert_int_equal(wire_op_digest(&o, &b), 0);
        assert_true(digest_equal(&a, &b)); /* how it travels does not count */
        o.time_ns ^= 1;
        assert_int_equal(wire_op_digest(&o, &b), 0);
        assert_false(digest_equal(&a, &b));
        ctx_close(&c);
}

static void test_pack(void **state) {
        struct ctx c;
        ctx_open(&c, 11);
        for (unsigned i = 0; i < 200; i++) {
                ctx_reset(&c);
                struct event e = gen_event(&c.g), e2;
                struct op_result r = gen_result(&c.g), r2;
                struct change ch = { .node = gen_node(&c.g) }, ch2;
                assert_int_equal(wire_add_event(&c.a, &e), 0);
                assert_int_equal(wire_pack_event(&c.b, &e), 0);
                assert_int_equal(c.a.bytes, c.b.bytes + FRAME_HEADER_BYTES); /* same bytes as in the frame */
                assert_memory_equal(c.a.data + FRAME_HEADER_BYTES, c.b.data, c.b.bytes);
                assert_int_equal(wire_unpack_event(c.b.data, c.b.bytes, c.out, &e2), 0);
                changes_same(e.changes, e.n_changes, e2.changes, e2.n_changes);
                buf_reset(&c.b);
                assert_int_equal(wire_pack_result(&c.b, &r), 0);
                assert_int_equal(wire_unpack_result(c.b.data, c.b.bytes, c.out, &r2), 0);
                changes_same(r.current, r.n_current, r2.current, r2.n_current);
                buf_reset(&c.b);
                assert_int_equal(wire_pack_change(&c.b, &ch), 0);
                assert_int_equal(wire_unpack_change(c.b.data, c.b.bytes, c.out, &ch2), 0);
                changes_same(&ch, 1, &ch2, 1);
        }
        ctx_close(&c);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_fields), cmocka_unit_test(test_again), cmocka_unit_test(test_truncated_and_flipped), cmocka_unit_test(test_noise),
                cmocka_unit_test(test_reader), cmocka_unit_test(test_unknown_things), cmocka_unit_test(test_bad_names), cmocka_unit_test(test_full_buffer),
                cmocka_unit_test(test_small_arena), cmocka_unit_test(test_op_digest), cmocka_unit_test(test_pack),
        };
        seed = argc > 1 ? strtoull(argv[1], NULL, 0) : rng_u64(rng_system());
        printf("seed %llu\n", (unsigned long long)seed);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
