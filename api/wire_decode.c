/* SPDX-License-Identifier: Apache-2.0 */
/* wire_decode.c: frames into rows. Everything that comes in is a claim by somebody else:
 *
 *   lengths       pb.c checks each against what is left before it is used
 *   counts        arrays are counted first and come out of the caller's arena, whose maximum bounds them; one row of N bytes never asks for more than
 *                 a fixed multiple of N
 *   ids, digests  exactly their length; absent = zero
 *   names         name_check (entries). In an operation a name is only bounded: a bad one is that operation's refusal (RES_NAME_INVALID), not a
 *                 reason to refuse the batch, and the service checks it
 *   text          no NUL inside (targets, xattr names, actors), bounded, NUL-terminated copies in the arena
 *   enums         unknown node kind, operation kind or encoding: -EPROTONOSUPPORT, "upgrade needed"; other ranges: -EPROTO
 *
 * Arena exhausted or no memory: -ENOMEM. Outputs are written only on success. Arrays of ids and digests are borrowed from the payload (they are plain
 * bytes there, and struct id and struct digest have no alignment). */
#include "api/wire.h"
#include "pb.h"

#define TEXT_MAX 1024u   /* names in operations, actors, devices, workspaces */
#define CHANGES_MAX 65536u

/* One field after the other; `break` out of the switch goes on. r is the loop's result. */
#define EACH_FIELD(in, f, r) \
        struct pb_field f; \
        int r = 0; \
        for (; r == 0 && (r = pb_next(&(in), &f)) > 0;)
#define FIELD_RESULT(r) \
        if ((r) < 0) \
                return (r)

static int get_text(const struct pb_field *f, struct arena *a, size_t max, const char **ret, size_t *ret_n) {
        if (f->type != PB_BYTES || f->n > max || (f->n > 0 && memchr(f->p, 0, f->n)))
                return -EPROTO;
        char *s = arena_strndup(a, f->n > 0 ? (const char *)f->p : "", f->n);
        if (!s)
                return -ENOMEM;
        *ret = s;
        if (ret_n)
                *ret_n = f->n;
        return 0;
}

static int get_array(const struct pb_field *f, size_t each, const void **ret, size_t *ret_n) {
        if (f->type != PB_BYTES || f->n % each != 0)
                return -EPROTO;
        *ret = f->n > 0 ? f->p : NULL;
        *ret_n = f->n / each;
        return 0;
}

static int get_content(const struct pb_field *field, struct content *ret) {
        struct pb_in in;
        struct content c = { 0 };
        uint64_t v = 0;
        int q = pb_get_message(field, &in);
        FIELD_RESULT(q);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_fixed(&f, c.root.b, DIGEST_BYTES); break;
                case 2: r = pb_get_u64(&f, INT64_MAX, &c.size); break;
                case 3: r = pb_get_u64(&f, 3, &v); c.depth = (uint8_t)v; break;
                case 4: r = pb_get_u64(&f, 255, &v); c.param = (uint8_t)v; break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        *ret = c;
        return 0;
}

static int get_cursor_fields(struct pb_in in, struct cursor *ret) {
        struct cursor c = { 0 };
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_fixed(&f, c.epoch.b, ID_BYTES); break;
                case 2: r = pb_get_u64(&f, UINT64_MAX, &c.seq); break;
                case 3: r = pb_get_fixed(&f, c.mark, sizeof c.mark); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        *ret = c;
        return 0;
}

static int get_cursor(const struct pb_field *field, struct cursor *ret) {
        struct pb_in in;
        int r = pb_get_message(field, &in);
        return r < 0 ? r : get_cursor_fields(in, ret);
}

static int get_xattr(const struct pb_field *field, struct arena *a, struct xattr *ret) {
        struct pb_in in;
        struct xattr x = { 0 };
        size_t name_bytes = 0;
        int q = pb_get_message(field, &in);
        FIELD_RESULT(q);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = get_text(&f, a, XATTR_NAME_MAX, &x.name, &name_bytes); break;
                case 2:
                        r = f.type == PB_BYTES && f.n <= XATTR_VALUE_MAX ? 0 : -EPROTO;
                        x.value = f.p;
                        x.value_bytes = (uint32_t)f.n;
                        break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        if (name_bytes == 0)
                return -EPROTO;
        if (!x.value)
                x.value = "";
        *ret = x;
        return 0;
}

/* bare: an operation's attributes, which need not say what the node is. */
static int get_node_fields(struct pb_in in, struct arena *a, bool bare, struct node_row *ret) {
        struct node_row n = { 0 };
        struct xattr *xattrs = NULL;
        size_t room = 0, total = 0;
        uint64_t kind = 0;
        int q = pb_count(in, 11, &room);
        FIELD_RESULT(q);
        if (room > 0) {
                if (room > XATTR_TOTAL_MAX / 2)
                        return -EPROTO;
                xattrs = arena_alloc(a, room * sizeof *xattrs);
                if (!xattrs)
                        return -ENOMEM;
        }
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_fixed(&f, n.id.b, ID_BYTES); break;
                case 2: r = pb_get_u64(&f, UINT64_MAX, &kind); break;
                case 3: r = pb_get_u32(&f, 07777, &n.mode); break;
                case 4: r = pb_get_u32(&f, UINT32_MAX, &n.uid); break;
                case 5: r = pb_get_u32(&f, UINT32_MAX, &n.gid); break;
                case 6: r = pb_get_u64(&f, UINT64_MAX, &n.rdev); break;
                case 7: r = pb_get_time(&f, &n.mtime_ns); break;
                case 8: r = pb_get_time(&f, &n.ctime_ns); break;
                case 9: r = pb_get_time(&f, &n.btime_ns); break;
                case 10: r = get_text(&f, a, SYMLINK_BYTES_MAX, &n.target, NULL); break;
                case 11:
                        r = get_xattr(&f, a, &xattrs[n.n_xattrs]);
                        if (r == 0) {
                                total += strlen(xattrs[n.n_xattrs].name) + xattrs[n.n_xattrs].value_bytes;
                                n.n_xattrs++;
                                r = total > XATTR_TOTAL_MAX ? -EPROTO : 0;
                        }
                        break;
                case 12: r = get_content(&f, &n.content); break;
                case 13: r = pb_get_fixed(&f, n.version.b, ID_BYTES); break;
                case 14: r = pb_get_u64(&f, UINT64_MAX, &n.seq); break;
                case 15: r = pb_get_bool(&f, &n.deleted); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        if (kind > NODE_RESERVED)
                return -EPROTONOSUPPORT;
        if (!bare && (id_is_zero(&n.id) || (kind == 0 && !n.deleted)))
                return -EPROTO;
        n.kind = (enum node_kind)kind;
        n.xattrs = xattrs;
        *ret = n;
        return 0;
}

static int get_entry_fields(struct pb_in in, struct arena *a, struct entry_row *ret) {
        struct entry_row e = { 0 };
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_u64(&f, UINT64_MAX, &e.entry_id); break;
                case 2: r = pb_get_fixed(&f, e.parent.b, ID_BYTES); break;
                case 3: r = pb_get_fixed(&f, e.node.b, ID_BYTES); break;
                case 4: r = get_text(&f, a, NAME_BYTES_MAX, &e.name, &e.name_bytes); break;
                case 5: r = pb_get_fixed(&f, e.placement.b, ID_BYTES); break;
                case 6: r = pb_get_u64(&f, UINT64_MAX, &e.seq); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        if (!e.name || name_check(e.name, e.name_bytes) < 0 || id_is_zero(&e.parent) || id_is_zero(&e.node))
                return -EPROTO;
        *ret = e;
        return 0;
}

static int get_change_fields(struct pb_in in, struct arena *a, struct change *ret) {
        struct change c = { 0 };
        struct entry_row *entries = NULL;
        struct pb_in sub;
        size_t room = 0;
        bool node = false;
        int q = pb_count(in, 3, &room);
        FIELD_RESULT(q);
        if (room > 0) {
                if (room > CHANGES_MAX)
                        return -EPROTO;
                entries = arena_alloc(a, room * sizeof *entries);
                if (!entries)
                        return -ENOMEM;
        }
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1:
                        r = pb_get_message(&f, &sub);
                        if (r == 0)
                                r = get_node_fields(sub, a, false, &c.node);
                        node = true;
                        break;
                case 2: r = pb_get_bool(&f, &c.has_entries); break;
                case 3:
                        r = pb_get_message(&f, &sub);
                        if (r == 0)
                                r = get_entry_fields(sub, a, &entries[c.n_entries++]);
                        break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        if (!node || (c.n_entries > 0 && !c.has_entries))
                return -EPROTO;
        c.entries = entries;
        *ret = c;
        return 0;
}

/* The changes of an event or a result: field `num` of the message. Filled in later, one by one. */
static int changes_room(struct pb_in in, uint32_t num, struct arena *a, struct change **ret) {
        size_t room = 0;
        int r = pb_count(in, num, &room);
        FIELD_RESULT(r);
        if (room > CHANGES_MAX)
                return -EPROTO;
        struct change *c = NULL;
        if (room > 0 && !(c = arena_alloc(a, room * sizeof *c)))
                return -ENOMEM;
        *ret = c;
        return 0;
}

static int get_change(const struct pb_field *f, struct arena *a, struct change *ret) {
        struct pb_in in;
        int r = pb_get_message(f, &in);
        return r < 0 ? r : get_change_fields(in, a, ret);
}

static int get_event_fields(struct pb_in in, struct arena *a, struct event *ret) {
        struct event e = { 0 };
        struct change *changes = NULL;
        int q = changes_room(in, 8, a, &changes);
        FIELD_RESULT(q);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_u64(&f, UINT64_MAX, &e.seq); break;
                case 2: r = pb_get_fixed(&f, e.mark, sizeof e.mark); break;
                case 3: r = pb_get_fixed(&f, e.op.b, ID_BYTES); break;
                case 4: r = pb_get_fixed(&f, e.job.b, ID_BYTES); break;
                case 5: r = get_text(&f, a, TEXT_MAX, &e.actor, NULL); break;
                case 6: r = get_text(&f, a, TEXT_MAX, &e.device, NULL); break;
                case 7: r = pb_get_time(&f, &e.time_ns); break;
                case 8: r = get_change(&f, a, &changes[e.n_changes++]); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        e.changes = changes;
        *ret = e;
        return 0;
}

static int get_op_fields(struct pb_in in, struct arena *a, struct op *ret) {
        struct op op = { 0 };
        struct pb_in sub;
        const void *after = NULL;
        uint64_t kind = 0;
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_fixed(&f, op.id.b, ID_BYTES); break;
                case 2: r = pb_get_u64(&f, UINT64_MAX, &kind); break;
                case 3: r = pb_get_u32(&f, UINT32_MAX, &op.flags); break;
                case 4: r = get_array(&f, ID_BYTES, &after, &op.n_after); break;
                case 5: r = pb_get_fixed(&f, op.node.b, ID_BYTES); break;
                case 6: r = pb_get_fixed(&f, op.parent.b, ID_BYTES); break;
                case 7: r = get_text(&f, a, TEXT_MAX, &op.name, &op.name_bytes); break;
                case 8: r = pb_get_fixed(&f, op.parent2.b, ID_BYTES); break;
                case 9: r = get_text(&f, a, TEXT_MAX, &op.name2, &op.name2_bytes); break;
                case 10: r = pb_get_fixed(&f, op.placement.b, ID_BYTES); break;
                case 11: r = pb_get_fixed(&f, op.version.b, ID_BYTES); break;
                case 12: r = pb_get_fixed(&f, op.replaced.b, ID_BYTES); break;
                case 13: r = pb_get_fixed(&f, op.replaced_version.b, ID_BYTES); break;
                case 14: r = pb_get_fixed(&f, op.replaced_placement.b, ID_BYTES); break;
                case 15: r = pb_get_fixed(&f, op.source.b, ID_BYTES); break;
                case 16: r = pb_get_u32(&f, UINT32_MAX, &op.attr_mask); break;
                case 17:
                        r = pb_get_message(&f, &sub);
                        if (r == 0)
                                r = get_node_fields(sub, a, true, &op.attrs);
                        break;
                case 18: r = get_content(&f, &op.content); break;
                case 19: r = pb_get_time(&f, &op.time_ns); break;
                case 20: r = pb_get_fixed(&f, op.lease.b, ID_BYTES); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        if (kind == 0 || id_is_zero(&op.id))
                return -EPROTO;
        if (kind > OP_REPLACE)
                return -EPROTONOSUPPORT;
        op.kind = (enum op_kind)kind;
        op.after = after;
        *ret = op;
        return 0;
}

static int get_result_fields(struct pb_in in, struct arena *a, struct op_result *ret) {
        struct op_result res = { 0 };
        struct change *current = NULL;
        const void *missing = NULL;
        uint64_t code = 0;
        int q = changes_room(in, 6, a, &current);
        FIELD_RESULT(q);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_fixed(&f, res.op.b, ID_BYTES); break;
                case 2: r = pb_get_u64(&f, UINT64_MAX, &code); break;
                case 3: r = pb_get_u64(&f, UINT64_MAX, &res.seq); break;
                case 4: r = pb_get_fixed(&f, res.mark, sizeof res.mark); break;
                case 5: r = pb_get_fixed(&f, res.merged_into.b, ID_BYTES); break;
                case 6: r = get_change(&f, a, &current[res.n_current++]); break;
                case 7: r = get_array(&f, DIGEST_BYTES, &missing, &res.n_missing); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        if (code > RES_FENCED)
                return -EPROTONOSUPPORT;
        res.code = (enum op_code)code;
        res.current = current;
        res.missing = missing;
        *ret = res;
        return 0;
}

/* ---- frames ---- */

static int body(const struct frame *f, enum frame_kind kind, struct pb_in *ret) {
        if (f->kind != kind)
                return -EPROTO;
        *ret = pb_in(f->payload, f->bytes);
        return 0;
}
#define BODY(f, kind, in) \
        struct pb_in in; \
        int body_r = body((f), (kind), &in); \
        FIELD_RESULT(body_r)

int wire_next(struct wire_reader *r, struct frame *ret) {
        size_t left = r->n - r->at;
        if (left == 0)
                return 0;
        if (left < FRAME_HEADER_BYTES)
                return -EPROTO;
        const uint8_t *p = r->p + r->at;
        uint32_t n = (uint32_t)p[1] | (uint32_t)p[2] << 8 | (uint32_t)p[3] << 16 | (uint32_t)p[4] << 24;
        if (n > left - FRAME_HEADER_BYTES) /* first: what is not made of frames at all is not a newer version */
                return -EPROTO;
        if (p[0] < FRAME_NODE || p[0] > FRAME_STATUS)
                return -EPROTONOSUPPORT;
        if (n > FRAME_BYTES_MAX)
                return -EPROTO;
        *ret = (struct frame){ .kind = (enum frame_kind)p[0], .payload = p + FRAME_HEADER_BYTES, .bytes = n };
        r->at += FRAME_HEADER_BYTES + n;
        return 1;
}

int wire_get_node(const struct frame *f, struct arena *a, struct node_row *ret) {
        BODY(f, FRAME_NODE, in);
        return get_node_fields(in, a, false, ret);
}

int wire_get_entry(const struct frame *f, struct arena *a, struct entry_row *ret) {
        BODY(f, FRAME_ENTRY, in);
        return get_entry_fields(in, a, ret);
}

int wire_get_page(const struct frame *frame, struct wire_page *ret) {
        struct wire_page p = { 0 };
        BODY(frame, FRAME_PAGE, in);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_bool(&f, &p.end); break;
                case 2: r = pb_get_u64(&f, UINT64_MAX, &p.count); break;
                case 3: r = pb_get_fixed(&f, p.after_id.b, ID_BYTES); break;
                case 4: r = pb_get_fixed(&f, p.last_id.b, ID_BYTES); break;
                case 5: r = pb_get_u64(&f, UINT64_MAX, &p.after_entry); break;
                case 6: r = pb_get_u64(&f, UINT64_MAX, &p.last_entry); break;
                case 7: r = pb_get_fixed(&f, p.digest.b, DIGEST_BYTES); break;
                case 8: r = pb_get_fixed(&f, p.previous.b, DIGEST_BYTES); break;
                case 9: r = get_cursor(&f, &p.upto); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        *ret = p;
        return 0;
}

int wire_get_listed(const struct frame *frame, struct wire_listed *ret) {
        struct wire_listed l = { 0 };
        BODY(frame, FRAME_LISTED, in);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_fixed(&f, l.dir.b, ID_BYTES); break;
                case 2: r = get_cursor(&f, &l.at); break;
                case 3: r = pb_get_u64(&f, UINT64_MAX, &l.count); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        *ret = l;
        return 0;
}

int wire_get_cursor(const struct frame *frame, struct arena *a, struct wire_cursor *ret) {
        struct wire_cursor c = { 0 };
        BODY(frame, FRAME_CURSOR, in);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = get_text(&f, a, TEXT_MAX, &c.workspace, NULL); break;
                case 2: r = get_cursor(&f, &c.cursor); break;
                case 3: r = pb_get_u64(&f, UINT64_MAX, &c.quota_bytes); break;
                case 4: r = pb_get_u64(&f, UINT64_MAX, &c.used_bytes); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        if (!c.workspace || !c.workspace[0])
                return -EPROTO;
        *ret = c;
        return 0;
}

int wire_get_event(const struct frame *f, struct arena *a, struct event *ret) {
        BODY(f, FRAME_EVENT, in);
        return get_event_fields(in, a, ret);
}

int wire_get_op(const struct frame *f, struct arena *a, struct op *ret) {
        BODY(f, FRAME_OP, in);
        return get_op_fields(in, a, ret);
}

int wire_get_result(const struct frame *f, struct arena *a, struct op_result *ret) {
        BODY(f, FRAME_RESULT, in);
        return get_result_fields(in, a, ret);
}

int wire_get_hashes(const struct frame *frame, const struct digest **ret, size_t *ret_n) {
        const void *hashes = NULL;
        size_t n = 0;
        BODY(frame, FRAME_HASHES, in);
        EACH_FIELD(in, f, r)
                r = f.num == 1 ? get_array(&f, DIGEST_BYTES, &hashes, &n) : 0;
        FIELD_RESULT(r);
        *ret = hashes;
        *ret_n = n;
        return 0;
}

int wire_get_block(const struct frame *frame, struct wire_block *ret) {
        struct wire_block b = { .bytes = "" };
        uint64_t encoding = 0;
        BODY(frame, FRAME_BLOCK, in);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = pb_get_fixed(&f, b.hash.b, DIGEST_BYTES); break;
                case 2: r = pb_get_u64(&f, UINT64_MAX, &encoding); break;
                case 3: r = pb_get_u32(&f, BLOCK_BYTES_MAX, &b.raw_bytes); break;
                case 4: r = pb_get_fixed(&f, b.base.b, DIGEST_BYTES); break;
                case 5:
                        r = f.type == PB_BYTES ? 0 : -EPROTO;
                        b.bytes = f.p;
                        b.n = (uint32_t)f.n;
                        break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        if (encoding > ENC_ZSTD_PATCH)
                return -EPROTONOSUPPORT;
        b.encoding = (enum block_encoding)encoding;
        *ret = b;
        return 0;
}

int wire_get_read(const struct frame *frame, struct wire_read *ret) {
        struct wire_read v = { 0 };
        BODY(frame, FRAME_READ, in);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = get_content(&f, &v.content); break;
                case 2: r = pb_get_u64(&f, INT64_MAX, &v.offset); break;
                case 3: r = pb_get_u64(&f, INT64_MAX, &v.bytes); break;
                case 4: r = pb_get_bool(&f, &v.pages); break;
                case 5: r = pb_get_bool(&f, &v.by_hash); break;
                case 6: r = pb_get_fixed(&f, v.hash.b, DIGEST_BYTES); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        *ret = v;
        return 0;
}

static int get_packed(const struct pb_field *f, struct arena *a, const uint32_t **ret, size_t *ret_n) {
        if (f->type != PB_BYTES)
                return -EPROTO;
        uint32_t *v = f->n > 0 ? arena_alloc(a, f->n * sizeof *v) : NULL; /* at least one byte each */
        if (f->n > 0 && !v)
                return -ENOMEM;
        size_t n = 0;
        for (size_t i = 0; i < f->n;) {
                uint64_t x = 0;
                for (unsigned shift = 0;; shift += 7) {
                        if (i == f->n || shift > 28)
                                return -EPROTO;
                        uint8_t b = f->p[i++];
                        x |= (uint64_t)(b & 0x7f) << shift;
                        if (b < 0x80)
                                break;
                }
                if (x > UINT32_MAX)
                        return -EPROTO;
                v[n++] = (uint32_t)x;
        }
        *ret = v;
        *ret_n = n;
        return 0;
}

int wire_get_status(const struct frame *frame, struct arena *a, struct wire_status *ret) {
        struct wire_status s = { 0 };
        BODY(frame, FRAME_STATUS, in);
        EACH_FIELD(in, f, r) {
                switch (f.num) {
                case 1: r = get_packed(&f, a, &s.not_sent, &s.n_not_sent); break;
                case 2: r = get_packed(&f, a, &s.not_found, &s.n_not_found); break;
                default: r = 0;
                }
        }
        FIELD_RESULT(r);
        *ret = s;
        return 0;
}

/* ---- payloads alone ---- */

int wire_unpack_change(const void *p, size_t n, struct arena *a, struct change *ret) {
        return get_change_fields(pb_in(p, n), a, ret);
}

int wire_unpack_event(const void *p, size_t n, struct arena *a, struct event *ret) {
        return get_event_fields(pb_in(p, n), a, ret);
}

int wire_unpack_result(const void *p, size_t n, struct arena *a, struct op_result *ret) {
        return get_result_fields(pb_in(p, n), a, ret);
}
