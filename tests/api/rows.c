/* SPDX-License-Identifier: Apache-2.0 */
/* rows.c: see rows.h. Numbers are spread over all lengths (a uniform 64-bit number is nearly always ten bytes of varint), optional parts are there half
 * of the time, and zero and the maximum are frequent. */
#include <assert.h>

#include "rows.h"

const char *const row_names[ROW_KINDS] = { "Node", "Entry", "Page", "Listed", "WorkspaceCursor", "Event", "Op", "Result", "Hashes", "Block", "Read", "Status" };

static bool half(struct gen *g) {
        return rng_below(g->rng, 2);
}

uint64_t gen_u64(struct gen *g, unsigned bits) {
        uint64_t max = bits == 64 ? UINT64_MAX : (1ull << bits) - 1;
        switch (rng_below(g->rng, 8)) {
        case 0: return 0;
        case 1: return max;
        default: return (rng_u64(g->rng) >> rng_below(g->rng, 64)) & max;
        }
}

struct id gen_id(struct gen *g) {
        return rng_id(g->rng);
}

struct digest gen_digest(struct gen *g) {
        struct digest d;
        g->rng->fill(g->rng, &d, sizeof d);
        return d;
}

static struct id maybe_id(struct gen *g) {
        return half(g) ? gen_id(g) : (struct id){ 0 };
}

static struct digest maybe_digest(struct gen *g) {
        return half(g) ? gen_digest(g) : (struct digest){ 0 };
}

static void gen_mark(struct gen *g, uint8_t mark[8]) {
        memset(mark, 0, 8);
        if (half(g))
                g->rng->fill(g->rng, mark, 8);
}

static struct cursor gen_cursor(struct gen *g) {
        struct cursor c = { .epoch = maybe_id(g), .seq = gen_u64(g, 64) };
        gen_mark(g, c.mark);
        return c;
}

char *gen_name(struct gen *g, size_t *ret_n) {
        static const char *const parts[] = { "a", "B7", "é", "日本", "😀", " ", ".", "\n", "-", "~" };
        char text[NAME_BYTES_MAX + 8] = "x";
        size_t n = 1, parts_n = rng_below(g->rng, 20);
        for (size_t i = 0; i < parts_n; i++) {
                const char *p = parts[rng_below(g->rng, ARRAY_SIZE(parts))];
                memcpy(text + n, p, strlen(p));
                n += strlen(p);
        }
        *ret_n = n;
        return arena_strndup(g->a, text, n);
}

static void *gen_bytes(struct gen *g, size_t n) {
        void *p = arena_alloc(g->a, n + 1);
        g->rng->fill(g->rng, p, n);
        return p;
}

static struct content gen_content(struct gen *g) {
        if (half(g))
                return content_empty;
        return (struct content){ .root = gen_digest(g), .size = gen_u64(g, 63), .depth = (uint8_t)gen_u64(g, 2), .param = (uint8_t)gen_u64(g, 8) };
}

struct node_row gen_node(struct gen *g) {
        struct node_row n = {
                .id = gen_id(g), .kind = (enum node_kind)(1 + rng_below(g->rng, 9)), .mode = (uint32_t)gen_u64(g, 12), .uid = (uint32_t)gen_u64(g, 32),
                .gid = (uint32_t)gen_u64(g, 32), .rdev = gen_u64(g, 64), .mtime_ns = (int64_t)gen_u64(g, 64), .ctime_ns = (int64_t)gen_u64(g, 64),
                .btime_ns = (int64_t)gen_u64(g, 64), .version = maybe_id(g), .seq = gen_u64(g, 64), .deleted = half(g),
        };
        if (half(g))
                n.content = gen_content(g);
        size_t unused;
        if (half(g))
                n.target = half(g) ? "" : gen_name(g, &unused);
        n.n_xattrs = half(g) ? rng_below(g->rng, 4) : 0;
        struct xattr *x = arena_alloc(g->a, (n.n_xattrs + 1) * sizeof *x);
        for (size_t i = 0; i < n.n_xattrs; i++) {
                uint32_t bytes = (uint32_t)rng_below(g->rng, 40);
                x[i] = (struct xattr){ .name = gen_name(g, &unused), .value = gen_bytes(g, bytes), .value_bytes = bytes };
        }
        n.xattrs = x;
        return n;
}

struct entry_row gen_entry(struct gen *g) {
        struct entry_row e = { .entry_id = gen_u64(g, 64), .parent = gen_id(g), .node = gen_id(g), .placement = maybe_id(g), .seq = gen_u64(g, 64) };
        e.name = gen_name(g, &e.name_bytes);
        return e;
}

static struct change *gen_changes(struct gen *g, size_t n) {
        struct change *c = arena_alloc(g->a, (n + 1) * sizeof *c);
        for (size_t i = 0; i < n; i++) {
                c[i] = (struct change){ .node = gen_node(g), .has_entries = half(g) };
                c[i].n_entries = c[i].has_entries ? rng_below(g->rng, 3) : 0;
                struct entry_row *e = arena_alloc(g->a, (c[i].n_entries + 1) * sizeof *e);
                for (size_t k = 0; k < c[i].n_entries; k++)
                        e[k] = gen_entry(g);
                c[i].entries = e;
        }
        return c;
}

struct event gen_event(struct gen *g) {
        size_t unused;
        struct event e = { .seq = gen_u64(g, 64), .op = maybe_id(g), .job = maybe_id(g), .time_ns = (int64_t)gen_u64(g, 63) };
        gen_mark(g, e.mark);
        e.actor = half(g) ? gen_name(g, &unused) : NULL;
        e.device = half(g) ? "" : NULL;
        e.n_changes = rng_below(g->rng, 3);
        e.changes = gen_changes(g, e.n_changes);
        return e;
}

struct op gen_op(struct gen *g) {
        struct op op = {
                .id = gen_id(g), .kind = (enum op_kind)(1 + rng_below(g->rng, 7)), .flags = (uint32_t)rng_below(g->rng, 8), .node = maybe_id(g), .parent = maybe_id(g),
                .parent2 = maybe_id(g), .placement = maybe_id(g), .version = maybe_id(g), .replaced = maybe_id(g), .replaced_version = maybe_id(g),
                .replaced_placement = maybe_id(g), .source = maybe_id(g), .lease = maybe_id(g), .attr_mask = (uint32_t)gen_u64(g, 7), .attrs = gen_node(g), .time_ns = (int64_t)gen_u64(g, 63),
        };
        if (half(g))
                op.name = gen_name(g, &op.name_bytes);
        if (half(g))
                op.name2 = gen_name(g, &op.name2_bytes);
        op.n_after = rng_below(g->rng, 4);
        op.after = op.n_after ? gen_bytes(g, op.n_after * ID_BYTES) : NULL;
        op.content = gen_content(g);
        if (op.flags & OPF_INLINE) {
                op.content.size = rng_below(g->rng, 200);
                op.inline_bytes = gen_bytes(g, op.content.size);
        }
        return op;
}

struct op_result gen_result(struct gen *g) {
        struct op_result r = { .op = maybe_id(g), .code = (enum op_code)rng_below(g->rng, RES_FENCED + 1), .seq = gen_u64(g, 64), .merged_into = maybe_id(g) };
        gen_mark(g, r.mark);
        r.n_current = rng_below(g->rng, 3);
        r.current = gen_changes(g, r.n_current);
        r.n_missing = rng_below(g->rng, 4);
        r.missing = r.n_missing ? gen_bytes(g, r.n_missing * DIGEST_BYTES) : NULL;
        return r;
}

int row_add(struct gen *g, unsigned kind, struct buf *b) {
        size_t unused;
        switch (kind) {
        case 0: return wire_add_node(b, &(struct node_row[]){ gen_node(g) }[0]);
        case 1: return wire_add_entry(b, &(struct entry_row[]){ gen_entry(g) }[0]);
        case 2:
                return wire_add_page(b, &(struct wire_page){ .end = half(g), .count = gen_u64(g, 64), .after_id = maybe_id(g), .last_id = maybe_id(g), .after_entry = gen_u64(g, 64),
                                                             .last_entry = gen_u64(g, 64), .digest = maybe_digest(g), .previous = maybe_digest(g), .upto = gen_cursor(g) });
        case 3: return wire_add_listed(b, &(struct wire_listed){ .dir = maybe_id(g), .at = gen_cursor(g), .count = gen_u64(g, 64) });
        case 4: return wire_add_cursor(b, &(struct wire_cursor){ .workspace = gen_name(g, &unused), .cursor = gen_cursor(g), .quota_bytes = gen_u64(g, 64), .used_bytes = gen_u64(g, 64) });
        case 5: return wire_add_event(b, &(struct event[]){ gen_event(g) }[0]);
        case 6: return wire_add_op(b, &(struct op[]){ gen_op(g) }[0]);
        case 7: return wire_add_result(b, &(struct op_result[]){ gen_result(g) }[0]);
        case 8: {
                size_t n = rng_below(g->rng, 5);
                return wire_add_hashes(b, gen_bytes(g, n * DIGEST_BYTES), n);
        }
        case 9: {
                uint32_t n = (uint32_t)rng_below(g->rng, 300);
                return wire_add_block(b, &(struct wire_block){ .hash = maybe_digest(g), .encoding = (enum block_encoding)rng_below(g->rng, 3),
                                                               .raw_bytes = (uint32_t)gen_u64(g, 21), .base = maybe_digest(g), .bytes = gen_bytes(g, n), .n = n });
        }
        case 10:
                return wire_add_read(b, &(struct wire_read){ .content = gen_content(g), .offset = gen_u64(g, 63), .bytes = gen_u64(g, 63), .pages = half(g), .by_hash = half(g), .hash = maybe_digest(g) });
        case 11: {
                uint32_t v[8];
                for (size_t i = 0; i < ARRAY_SIZE(v); i++)
                        v[i] = (uint32_t)gen_u64(g, 32);
                size_t n = rng_below(g->rng, 9);
                return wire_add_status(b, &(struct wire_status){ .not_sent = v, .n_not_sent = n, .not_found = v + n, .n_not_found = 8 - n });
        }
        default: assert(!"kind"); return -EINVAL;
        }
}

#define AGAIN(type, get, add)              \
        {                                  \
                type v_;                   \
                int r_ = get;              \
                return r_ < 0 ? r_ : add;  \
        }

int row_again(const struct frame *f, struct arena *a, struct buf *b) {
        switch (f->kind) {
        case FRAME_NODE: AGAIN(struct node_row, wire_get_node(f, a, &v_), wire_add_node(b, &v_))
        case FRAME_ENTRY: AGAIN(struct entry_row, wire_get_entry(f, a, &v_), wire_add_entry(b, &v_))
        case FRAME_PAGE: AGAIN(struct wire_page, wire_get_page(f, &v_), wire_add_page(b, &v_))
        case FRAME_LISTED: AGAIN(struct wire_listed, wire_get_listed(f, &v_), wire_add_listed(b, &v_))
        case FRAME_CURSOR: AGAIN(struct wire_cursor, wire_get_cursor(f, a, &v_), wire_add_cursor(b, &v_))
        case FRAME_EVENT: AGAIN(struct event, wire_get_event(f, a, &v_), wire_add_event(b, &v_))
        case FRAME_RESULT: AGAIN(struct op_result, wire_get_result(f, a, &v_), wire_add_result(b, &v_))
        case FRAME_BLOCK: AGAIN(struct wire_block, wire_get_block(f, &v_), wire_add_block(b, &v_))
        case FRAME_READ: AGAIN(struct wire_read, wire_get_read(f, &v_), wire_add_read(b, &v_))
        case FRAME_STATUS: AGAIN(struct wire_status, wire_get_status(f, a, &v_), wire_add_status(b, &v_))
        case FRAME_OP: {
                struct op op;
                int r = wire_get_op(f, a, &op);
                if (r < 0)
                        return r;
                /* The bytes come in the next frame: written here as an empty one that is cut off again. */
                uint32_t flags = op.flags;
                size_t start = b->bytes;
                op.flags &= ~(uint32_t)OPF_INLINE;
                if (!(flags & OPF_INLINE))
                        return wire_add_op(b, &op);
                uint64_t size = op.content.size;
                if (size > INLINE_BYTES_MAX)
                        return -EMSGSIZE;
                op.flags = flags;
                op.inline_bytes = arena_alloc(a, size + 1);
                if (!op.inline_bytes)
                        return -ENOMEM;
                r = wire_add_op(b, &op);
                if (r == 0)
                        b->bytes -= FRAME_HEADER_BYTES + size;
                assert(b->bytes > start);
                return r;
        }
        case FRAME_HASHES: {
                const struct digest *h;
                size_t n;
                int r = wire_get_hashes(f, &h, &n);
                return r < 0 ? r : wire_add_hashes(b, h, n);
        }
        case FRAME_DATA: return buf_add(b, f->payload - FRAME_HEADER_BYTES, f->bytes + FRAME_HEADER_BYTES);
        default: return -EPROTONOSUPPORT;
        }
}
