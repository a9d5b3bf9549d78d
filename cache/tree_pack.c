/* SPDX-License-Identifier: Apache-2.0 */
/* tree_pack.c: the three packed columns of tree.db (docs/client-state.md has the formats).
 *
 *   extra   symlink target and extended attributes of a node: records { u8 tag, u16 name bytes, u32 value bytes, name, value }, tag 'T' (target, in value,
 *           no name) or 'X'
 *   shadow  the server's row of a node: { u8 1, varint fields, content, version, extra to the end }
 *   body    what an outbox row has no column for: { u8 1, u16 mask of ids that are not zero, those ids, varint fields, content, extra to the end }
 *
 * Integers are little-endian; varints are LEB128, signed ones as their two's complement in 64 bits (times need nearly all of them anyway). Our own file, but read
 * with every length checked: -EBADMSG. */
#include <assert.h>

#include "conflict.h"
#include "tree_priv.h"

#define PACK_VERSION 1

struct out { uint8_t *p; size_t n, room; };
struct in { const uint8_t *p; size_t n; bool bad; };

static void put(struct out *o, const void *p, size_t n) {
        assert(n <= o->room - o->n);
        if (n)
                memcpy(o->p + o->n, p, n);
        o->n += n;
}
static void put_int(struct out *o, uint64_t v) {
        do {
                uint8_t b = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
                put(o, &b, 1);
                v >>= 7;
        } while (v);
}
static void get(struct in *i, void *p, size_t n) {
        if (i->bad || n > i->n) {
                i->bad = true;
                memset(p, 0, n);
                return;
        }
        memcpy(p, i->p, n);
        i->p += n;
        i->n -= n;
}
static uint64_t get_int(struct in *i) {
        uint64_t v = 0;
        for (unsigned shift = 0; shift < 64; shift += 7) {
                uint8_t b;
                get(i, &b, 1);
                v |= (uint64_t)(b & 0x7f) << shift;
                if (!(b & 0x80))
                        return v;
        }
        i->bad = true;
        return 0;
}
static void put_content(struct out *o, const struct content *c) {
        bool some = !digest_is_zero(&c->root);
        uint8_t head[3] = { c->depth, c->param, some };
        put(o, head, sizeof(head));
        put_int(o, c->size);
        if (some)
                put(o, c->root.b, DIGEST_BYTES);
}
static struct content get_content(struct in *i) {
        struct content c = {0};
        uint8_t head[3];
        get(i, head, sizeof(head));
        c.depth = head[0];
        c.param = head[1];
        c.size = get_int(i);
        if (head[2])
                get(i, c.root.b, DIGEST_BYTES);
        return c;
}
#define FIXED_ROOM 512u /* more than all fields but extra need */
#define ATTR_FIELDS 8u

static void put_attrs(struct out *o, enum node_kind kind, uint32_t mode, uint32_t uid, uint32_t gid, uint64_t rdev, int64_t mtime, int64_t ctime, int64_t btime) {
        const uint64_t f[ATTR_FIELDS] = { (uint64_t)kind, mode, uid, gid, rdev, (uint64_t)mtime, (uint64_t)ctime, (uint64_t)btime };
        for (unsigned k = 0; k < ATTR_FIELDS; k++)
                put_int(o, f[k]);
}
static void get_attrs(struct in *i, uint64_t f[ATTR_FIELDS]) {
        for (unsigned k = 0; k < ATTR_FIELDS; k++)
                f[k] = get_int(i);
}
static int get_extra(struct arena *a, struct in *i, const uint8_t **ret, size_t *ret_n) {
        if (i->bad)
                return -EBADMSG;
        *ret = i->n ? (const uint8_t *)arena_strndup(a, (const char *)i->p, i->n) : NULL;
        *ret_n = i->n;
        return i->n && !*ret ? -ENOMEM : 0;
}

int extra_pack(struct arena *a, const char *target, const struct xattr *xattrs, size_t n, const uint8_t **ret, size_t *ret_n) {
        size_t room = target ? 7 + strlen(target) : 0;
        for (size_t k = 0; k < n; k++)
                room += 7 + strlen(xattrs[k].name) + xattrs[k].value_bytes;
        *ret = NULL;
        *ret_n = 0;
        if (!room)
                return 0;
        struct out o = { .p = arena_alloc(a, room), .room = room };
        if (!o.p)
                return -ENOMEM;
        for (size_t k = 0; k < n + (target ? 1 : 0); k++) {
                bool is_target = target && k == n;
                const char *name = is_target ? "" : xattrs[k].name;
                uint16_t name_n = (uint16_t)strlen(name);
                uint32_t value_n = is_target ? (uint32_t)strlen(target) : xattrs[k].value_bytes;
                uint8_t head[7] = { is_target ? 'T' : 'X', (uint8_t)name_n, (uint8_t)(name_n >> 8), (uint8_t)value_n, (uint8_t)(value_n >> 8), (uint8_t)(value_n >> 16),
                                    (uint8_t)(value_n >> 24) };
                put(&o, head, sizeof(head));
                put(&o, name, name_n);
                put(&o, is_target ? target : xattrs[k].value, value_n);
        }
        *ret = o.p;
        *ret_n = o.n;
        return 0;
}

struct record { uint8_t tag; const uint8_t *name, *value; size_t name_n, value_n; };
static bool next_record(struct in *i, struct record *ret) {
        uint8_t head[7];
        if (i->bad || i->n == 0)
                return false;
        get(i, head, sizeof(head));
        ret->tag = head[0];
        ret->name_n = (size_t)(head[1] | head[2] << 8);
        ret->value_n = (size_t)head[3] | (size_t)head[4] << 8 | (size_t)head[5] << 16 | (size_t)head[6] << 24;
        if (i->bad || ret->name_n > i->n || ret->value_n > i->n - ret->name_n) {
                i->bad = true;
                return false;
        }
        ret->name = i->p;
        ret->value = i->p + ret->name_n;
        i->p += ret->name_n + ret->value_n;
        i->n -= ret->name_n + ret->value_n;
        return true;
}

bool extra_has_xattr(const uint8_t *p, size_t n, bool *ret_conflict) {
        struct in i = { p, n, false };
        struct record rec;
        bool any = false;
        while (next_record(&i, &rec)) {
                if (rec.tag != 'X')
                        continue;
                any = true;
                char name[XATTR_NAME_MAX + 1];
                if (ret_conflict && rec.name_n <= XATTR_NAME_MAX) {
                        memcpy(name, rec.name, rec.name_n);
                        name[rec.name_n] = 0;
                        *ret_conflict = *ret_conflict || conflict_is_mark(name);
                }
        }
        return any;
}

static uint64_t target_bytes(const uint8_t *p, size_t n) {
        struct in i = { p, n, false };
        struct record rec;
        while (next_record(&i, &rec))
                if (rec.tag == 'T')
                        return rec.value_n;
        return 0;
}

int extra_unpack(struct arena *a, const uint8_t *p, size_t n, const char **ret_target, const struct xattr **ret, size_t *ret_n) {
        struct in i = { p, n, false };
        struct record rec;
        size_t count = 0;
        while (next_record(&i, &rec))
                count += rec.tag == 'X';
        if (i.bad)
                return -EBADMSG;
        struct xattr *list = count ? arena_alloc(a, count * sizeof(*list)) : NULL;
        if (count && !list)
                return -ENOMEM;
        *ret_target = NULL;
        *ret = list;
        *ret_n = 0;
        i = (struct in){ p, n, false };
        while (next_record(&i, &rec)) {
                if (rec.tag == 'T') {
                        if (!(*ret_target = arena_strndup(a, (const char *)rec.value, rec.value_n)))
                                return -ENOMEM;
                        continue;
                }
                struct xattr *x = &list[*ret_n];
                if (!(x->name = arena_strndup(a, (const char *)rec.name, rec.name_n)) || !(x->value = arena_strndup(a, (const char *)rec.value, rec.value_n)))
                        return -ENOMEM;
                x->value_bytes = (uint32_t)rec.value_n;
                (*ret_n)++;
        }
        return 0;
}

int vrow_pack(struct arena *a, const struct vrow *v, const uint8_t **ret, size_t *ret_n) {
        struct out o = { .p = arena_alloc(a, FIXED_ROOM + v->extra_n), .room = FIXED_ROOM + v->extra_n };
        if (!o.p)
                return -ENOMEM;
        uint8_t version = PACK_VERSION;
        put(&o, &version, 1);
        put_attrs(&o, v->kind, v->mode, v->uid, v->gid, v->rdev, v->mtime_ns, v->ctime_ns, v->btime_ns);
        put_content(&o, &v->content);
        put(&o, v->version.b, ID_BYTES);
        put(&o, v->extra, v->extra_n);
        *ret = o.p;
        *ret_n = o.n;
        return 0;
}

int vrow_unpack(struct arena *a, const uint8_t *p, size_t n, struct vrow *ret) {
        struct in i = { p, n, false };
        uint8_t version;
        uint64_t f[ATTR_FIELDS];
        get(&i, &version, 1);
        get_attrs(&i, f);
        struct vrow v = { .kind = (enum node_kind)f[0], .mode = (uint32_t)f[1], .uid = (uint32_t)f[2], .gid = (uint32_t)f[3], .rdev = f[4], .mtime_ns = (int64_t)f[5],
                          .ctime_ns = (int64_t)f[6], .btime_ns = (int64_t)f[7] };
        v.content = get_content(&i);
        get(&i, v.version.b, ID_BYTES);
        v.size = v.content.size;
        if (i.bad || version != PACK_VERSION)
                return -EBADMSG;
        int r = get_extra(a, &i, &v.extra, &v.extra_n);
        if (v.kind == NODE_SYMLINK)
                v.size = target_bytes(v.extra, v.extra_n);
        if (r == 0)
                *ret = v;
        return r;
}

int vrow_from_node(struct arena *a, const struct node_row *n, struct vrow *ret) {
        struct vrow v = { .kind = n->kind, .mode = n->mode & 07777, .uid = n->uid, .gid = n->gid, .rdev = n->rdev, .mtime_ns = n->mtime_ns, .ctime_ns = n->ctime_ns,
                          .btime_ns = n->btime_ns, .content = n->content, .version = n->version, .size = n->kind == NODE_FILE ? n->content.size : n->kind == NODE_SYMLINK && n->target ? strlen(n->target) : 0 };
        if (v.kind == NODE_FILE && v.content.size == 0)
                v.content = content_empty;
        int r = extra_pack(a, n->target, n->xattrs, n->n_xattrs, &v.extra, &v.extra_n);
        if (r == 0)
                *ret = v;
        return r;
}

#define BODY_IDS(X) X(node) X(parent) X(parent2) X(placement) X(version) X(replaced) X(replaced_version) X(replaced_placement) X(source) X(attrs.version)

int op_pack(struct arena *a, const struct orow *o, const uint8_t **ret, size_t *ret_n) {
        const struct op *op = &o->op;
        struct out out = { .p = arena_alloc(a, FIXED_ROOM + o->extra_n), .room = FIXED_ROOM + o->extra_n };
        if (!out.p)
                return -ENOMEM;
        uint16_t mask = 0;
        unsigned bit = 0;
#define X(f) mask |= id_is_zero(&op->f) ? 0 : (uint16_t)(1u << bit); bit++;
        BODY_IDS(X)
#undef X
        uint8_t head[3] = { PACK_VERSION, (uint8_t)mask, (uint8_t)(mask >> 8) };
        put(&out, head, sizeof(head));
#define X(f) if (!id_is_zero(&op->f)) put(&out, op->f.b, ID_BYTES);
        BODY_IDS(X)
#undef X
        put_int(&out, op->flags);
        put_int(&out, op->attr_mask);
        put_int(&out, (uint64_t)op->time_ns);
        put_attrs(&out, op->attrs.kind, op->attrs.mode, op->attrs.uid, op->attrs.gid, op->attrs.rdev, op->attrs.mtime_ns, op->attrs.ctime_ns, op->attrs.btime_ns);
        put_content(&out, &op->content);
        put(&out, o->extra, o->extra_n);
        *ret = out.p;
        *ret_n = out.n;
        return 0;
}

int op_unpack(struct arena *a, const uint8_t *p, size_t n, struct orow *o) {
        struct in i = { p, n, false };
        struct op *op = &o->op;
        uint8_t head[3];
        uint64_t f[ATTR_FIELDS];
        get(&i, head, sizeof(head));
        uint16_t mask = (uint16_t)(head[1] | head[2] << 8);
        unsigned bit = 0;
#define X(f)                                    \
        if (mask & (1u << bit))                 \
                get(&i, op->f.b, ID_BYTES);     \
        bit++;
        BODY_IDS(X)
#undef X
        op->flags = (uint32_t)get_int(&i);
        op->attr_mask = (uint32_t)get_int(&i);
        op->time_ns = (int64_t)get_int(&i);
        get_attrs(&i, f);
        op->attrs.kind = (enum node_kind)f[0];
        op->attrs.mode = (uint32_t)f[1];
        op->attrs.uid = (uint32_t)f[2];
        op->attrs.gid = (uint32_t)f[3];
        op->attrs.rdev = f[4];
        op->attrs.mtime_ns = (int64_t)f[5];
        op->attrs.ctime_ns = (int64_t)f[6];
        op->attrs.btime_ns = (int64_t)f[7];
        op->content = get_content(&i);
        if (i.bad || head[0] != PACK_VERSION)
                return -EBADMSG;
        int r = get_extra(a, &i, &o->extra, &o->extra_n);
        if (r == 0 && o->extra_n)
                r = extra_unpack(a, o->extra, o->extra_n, &op->attrs.target, &op->attrs.xattrs, &op->attrs.n_xattrs);
        return r;
}
