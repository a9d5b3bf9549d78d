/* SPDX-License-Identifier: Apache-2.0 */
/* view.c: server's row + pending operations = what is shown.
 *
 * The operations are replayed on the server's row in local order, field by field, so that a remote chmod meets a local rename and both hold:
 *
 *   CREATE    all attributes (only while the server has no row), one name
 *   CONTENT   size, mtime, generation; the server's content below stays the one that was shown when the first pending content came
 *   ATTR      the fields of its mask
 *   LINK      one more name
 *   UNLINK    one name less
 *   RENAME    one name less, one more; the node replaced loses the target's name; an exchange gives it the other one
 *   REPLACE   content and attributes of the target; the source loses its name
 *
 * A name that an operation takes away is looked for by place, then by placement, and then, if the node has one name only, it is that one: a local rename or
 * unlink of a file that was renamed elsewhere at the same time is still about this file. Whether the server agrees is decided at the answer.
 *
 * Two things depend on what was shown before, because a local program has seen them: the content below a pending one, and the times of a directory in which
 * something changed (the server sets the same times when it applies the operations; until it tells of the directory, and while operations in it are pending, and
 * when our own ones come back, they do not go backwards).
 *
 * Nothing here knows of other nodes: who gets a name that two nodes want is decided in tree_settle.c. */
#include "view.h"

/* placement NULL: the place only. */
static struct vname *find_name(struct vnames *names, uint64_t parent, const char *name, size_t n, const struct id *placement) {
        for (size_t i = 0; i < names->n; i++)
                if (names->v[i].parent == parent && names->v[i].n == n && memcmp(names->v[i].name, name, n) == 0)
                        return &names->v[i];
        for (size_t i = 0; placement && !id_is_zero(placement) && i < names->n; i++)
                if (id_equal(&names->v[i].placement, placement))
                        return &names->v[i];
        return placement && names->n == 1 ? names->v : NULL;
}

static void take_name(struct vnames *names, uint64_t parent, const char *name, size_t n, const struct id *placement) {
        struct vname *v = find_name(names, parent, name, n, placement);
        if (!v)
                return;
        memmove(v, v + 1, (size_t)(names->v + names->n - (v + 1)) * sizeof(*v));
        names->n--;
}

static void give_name(struct vnames *names, uint64_t parent, const char *name, size_t n, const struct id *placement) {
        for (size_t i = 0; i < names->n; i++)
                if (names->v[i].parent == parent && names->v[i].n == n && memcmp(names->v[i].name, name, n) == 0)
                        return; /* the server has it already */
        names->v[names->n++] = (struct vname){ .parent = parent, .name = name, .n = n, .placement = *placement, .local = true };
}

/* The first pending change sets ctime, as the server will; later ones do not set it back. */
static void changed_at(struct vrow *v, int64_t time_ns) {
        v->ctime_ns = v->ctime_set ? MAX(v->ctime_ns, time_ns) : time_ns;
        v->ctime_set = true;
}

static void take_attrs(struct vrow *v, const struct view_op *o, uint32_t mask) {
        const struct node_row *a = &o->op->attrs;
        if (mask & ATTR_MODE)
                v->mode = a->mode;
        if (mask & ATTR_UID)
                v->uid = a->uid;
        if (mask & ATTR_GID)
                v->gid = a->gid;
        if (mask & ATTR_MTIME)
                v->mtime_ns = a->mtime_ns;
        if (mask & ATTR_BTIME)
                v->btime_ns = a->btime_ns;
        if (mask & ATTR_CTIME)
                changed_at(v, a->ctime_ns);
        if (mask & ATTR_XATTR) {
                v->extra = o->extra;
                v->extra_n = o->extra_n;
        }
}

static void take_content(struct vrow *v, const struct view_op *o) {
        if (o->gen) {
                v->gen = o->gen;
                v->size = o->op->content.size;
        } else {
                v->gen = 0;
                v->content = o->op->content;
                v->size = o->op->content.size;
        }
        v->version = o->op->id;
}

static void replay(struct view_out *out, const struct view_op *o, bool exists) {
        const struct op *op = o->op;
        struct vrow *v = &out->v;
        struct vnames *names = &out->names;
        if (o->second) {
                if (op->kind == OP_RENAME) {
                        take_name(names, o->p2, op->name2, op->name2_bytes, op->flags & OPF_EXCHANGE ? &op->replaced_placement : NULL);
                        if (op->flags & OPF_EXCHANGE)
                                give_name(names, o->p1, op->name, op->name_bytes, &op->id);
                        changed_at(v, op->time_ns);
                } else if (op->kind == OP_REPLACE) {
                        take_name(names, o->p1, op->name, op->name_bytes, &op->placement);
                }
                return;
        }
        switch (op->kind) {
        case OP_CREATE:
                if (exists)
                        break; /* it was accepted; the answer is on its way */
                v->kind = op->attrs.kind;
                v->rdev = op->attrs.rdev;
                changed_at(v, op->attrs.ctime_ns);
                take_attrs(v, o, UINT32_MAX);
                v->content = content_empty;
                if (v->kind == NODE_FILE)
                        take_content(v, o);
                else
                        v->size = op->attrs.target ? strlen(op->attrs.target) : 0;
                give_name(names, o->p1, op->name, op->name_bytes, &op->id);
                break;
        case OP_CONTENT:
        case OP_REPLACE:
                take_content(v, o);
                take_attrs(v, o, op->attr_mask);
                break;
        case OP_ATTR:
                take_attrs(v, o, op->attr_mask);
                break;
        case OP_LINK:
                give_name(names, o->p1, op->name, op->name_bytes, &op->id);
                changed_at(v, op->time_ns);
                break;
        case OP_UNLINK:
                take_name(names, o->p1, op->name, op->name_bytes, &op->placement);
                changed_at(v, op->time_ns);
                break;
        case OP_RENAME:
                take_name(names, o->p1, op->name, op->name_bytes, &op->placement);
                give_name(names, o->p2, op->name2, op->name2_bytes, &op->id);
                changed_at(v, op->time_ns);
                break;
        }
}

int view_fold(const struct view_in *in, struct arena *a, struct view_out *ret) {
        struct view_out out = {0};
        if (in->exists)
                out.v = *in->server;
        out.v.gen = 0;
        out.v.ctime_set = false;
        out.names.v = arena_alloc(a, (in->server_names.n + 2 * in->n_ops + 1) * sizeof(struct vname));
        if (!out.names.v)
                return -ENOMEM;
        for (size_t i = 0; i < in->server_names.n; i++) {
                out.names.v[out.names.n] = in->server_names.v[i];
                out.names.v[out.names.n].cookie = 0;
                out.names.v[out.names.n++].local = false;
        }
        for (size_t i = 0; i < in->n_ops; i++)
                replay(&out, &in->ops[i], in->exists);
        if (in->before && in->before->kind == NODE_DIR && out.v.kind == NODE_DIR && (!in->news || in->own || in->dir_busy)) {
                /* an explicit time that is pending may be older than the server's; what was shown knows which came last */
                bool set = !in->news || !in->exists;
                for (size_t i = 0; i < in->n_ops; i++)
                        set = set || (!in->ops[i].second && (in->ops[i].op->attr_mask & ATTR_MTIME));
                out.v.mtime_ns = set ? in->before->mtime_ns : MAX(out.v.mtime_ns, in->before->mtime_ns);
                out.v.ctime_ns = MAX(out.v.ctime_ns, in->before->ctime_ns);
        }
        if (out.v.gen && in->before)
                out.v.content = in->before->content;
        if (in->own && in->before && in->before->kind == NODE_FILE && in->n_ops)
                out.v.ctime_ns = MAX(out.v.ctime_ns, in->before->ctime_ns);
        out.v.ctime_set = false;
        *ret = out;
        return 0;
}
