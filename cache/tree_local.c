/* SPDX-License-Identifier: Apache-2.0 */
/* tree_local.c: local changes but for rename (tree_rename.c). Each is one transaction {rows, outbox row}.
 *
 * A verb checks, keeps the server's row aside if it is the first change of a node that is on the server (shadow_ensure), changes the shown rows directly, and queues
 * its operation, or merges it into one that was never sent:
 *
 *   change       unsent CREATE of the node    other unsent rows
 *   content      becomes the CREATE's         replaces that of the latest CONTENT or REPLACE, whose base stays
 *   attributes   merged                       merged into the latest operation of the node if that is ATTR (mtime also: CONTENT, REPLACE)
 *   unlink       cancels all of the node      CONTENT and ATTR rows of a node that loses its last name go
 *   unlink       the node's place was taken meanwhile: see local_unlink_replaced in tree_rename.c
 *   unlink       -                            a LINK of that name goes
 *   rename       see tree_rename.c
 *
 * Not merged: an explicit mtime of a directory in which operations are pending (the server sets a parent's times with them, so it has to follow them: OB_CHILDREN).
 *
 * An access time that a program sets is kept on the row and stays here: the server has no field for it, only the ctime goes there.
 *
 * Times: ctime of the node, mtime and ctime of the parents are the transaction's time, which is also the operation's: the server sets the same ones, and no
 * program sees a time change when the operation is answered. */
#include "tree_priv.h"

#include <assert.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define LINKS_MAX 65000u

static int name_ok(const char *name, size_t n) {
        if (n == 0)
                return -ENOENT;
        if (n > NAME_BYTES_MAX)
                return -ENAMETOOLONG;
        if ((n == 1 && name[0] == '.') || (n == 2 && name[0] == '.' && name[1] == '.'))
                return -EEXIST;
        const uint8_t *p = (const uint8_t *)name, *end = p + n;
        while (p < end) { /* UTF-8 without surrogates and overlong forms, no '/' and no NUL */
                unsigned more = *p < 0x80 ? 0 : *p >= 0xc2 && *p < 0xe0 ? 1 : (*p & 0xf0) == 0xe0 ? 2 : *p >= 0xf0 && *p < 0xf5 ? 3 : 9;
                if (*p == 0 || *p == '/' || more == 9 || (size_t)(end - p) <= more)
                        return -EILSEQ;
                if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
                        return -EILSEQ;
                for (unsigned i = 1; i <= more; i++)
                        if ((p[i] & 0xc0) != 0x80)
                                return -EILSEQ;
                p += more + 1;
        }
        return 0;
}

/* dir is a directory that still has a name and is loaded; the name is a good one. */
int local_place_check(struct tree *t, uint64_t dir, const char *name, size_t n, struct nrow *ret_dir) {
        struct node node;
        int r = row_get(t, t->w, dir, ret_dir);
        if (r < 0)
                return r;
        row_public(t, ret_dir, &node);
        if (node.kind != NODE_DIR)
                return -ENOTDIR;
        if (node.unlinked)
                return -ENOENT;
        r = name_ok(name, n);
        return r < 0 ? r : node.loaded ? 0 : -EHOSTDOWN;
}

void local_attrs_to_op(const struct nrow *row, struct orow *o) {
        const struct vrow *v = &row->v;
        o->op.attrs = (struct node_row){ .kind = v->kind, .mode = v->mode, .uid = v->uid, .gid = v->gid, .rdev = v->rdev, .mtime_ns = v->mtime_ns, .ctime_ns = v->ctime_ns,
                                         .btime_ns = v->btime_ns };
        o->extra = v->extra;
        o->extra_n = v->extra_n;
        o->op.attr_mask = ATTR_MODE | ATTR_UID | ATTR_GID | ATTR_MTIME | ATTR_BTIME | ATTR_CTIME | (extra_has_xattr(v->extra, v->extra_n, NULL) ? ATTR_XATTR : 0);
}

/* The node's first name: CREATE with everything that the row says. */
int local_new_create(struct tree *t, struct nrow *row, const struct nrow *dir, const char *name, size_t n) {
        int r = held_send(t, dir->ino);
        if (r < 0 && r != -EEXIST && r != -EAGAIN && r != -EMLINK && r != -ELOOP)
                return r;
        struct orow o = { .ino = row->ino, .p1 = dir->ino, .gen = row->v.gen,
                          .op = { .kind = OP_CREATE, .id = rng_id(t->rng), .node = row->id, .parent = dir->id, .name = name, .name_bytes = n } };
        local_attrs_to_op(row, &o);
        o.op.content = row->v.gen ? (struct content){ .size = row->v.size, .param = 1 } : row->v.content;
        struct vname v = { .parent = dir->ino, .name = name, .n = n, .placement = o.op.id, .local = true };
        if (row->v.kind == NODE_FILE)
                row->v.version = o.op.id;
        int64_t since_ms = outbox_place_taken(t, dir->ino, name, n);
        r = entry_add(t, row, &v);
        if (r == 0)
                r = row_write(t, row);
        if (r == 0)
                r = outbox_add(t, &o);
        return r == 0 && since_ms ? outbox_hand_since(t, &o.op.id, since_ms) : r;
}

static int new_node(struct tree *t, const struct tree_new *what, struct nrow *ret) {
        struct nrow row = { .id = rng_id(t->rng), .nlink = what->kind == NODE_DIR ? 2 : 0 };
        row.v = (struct vrow){ .kind = what->kind, .mode = what->mode & 07777, .uid = what->uid, .gid = what->gid, .rdev = what->rdev, .mtime_ns = t->now_ns, .ctime_ns = t->now_ns,
                               .btime_ns = t->now_ns };
        if (what->kind == NODE_FILE)
                row.v.content = content_empty;
        int r = 0;
        if (what->kind == NODE_SYMLINK) {
                if (!what->target || !*what->target)
                        return -ENOENT;
                if (strlen(what->target) > SYMLINK_BYTES_MAX)
                        return -ENAMETOOLONG;
                row.v.size = strlen(what->target);
                r = extra_pack(t->scratch, what->target, NULL, 0, &row.v.extra, &row.v.extra_n);
        }
        *ret = row;
        return r;
}

int tree_create(struct tree *t, uint64_t dir, const char *name, size_t n, const struct tree_new *what, struct node *ret) {
        struct nrow parent, row;
        struct name_at at;
        int r = tree_begin(t);
        if (r == 0)
                r = local_place_check(t, dir, name, n, &parent);
        if (r == 0) {
                r = entry_at(t->w, dir, name, n, &at);
                r = r == 0 ? -EEXIST : r == -ENOENT ? portable_name(t, dir, name, n, 0) : r;
        }
        if (r == 0)
                r = new_node(t, what, &row);
        if (r == 0)
                r = row_insert(t, &row);
        const bool born = r == 0 && what->opens && (r = tree_born(t, row.ino)) == 0;
        if (r == 0)
                r = local_new_create(t, &row, &parent, name, n);
        if (r == 0)
                r = dir_touch(t, dir, t->now_ns);
        row.pend = 1;
        r = tree_end(t, r);
        if (r == 0)
                row_public(t, &row, ret);
        else if (born)
                tree_opened(t, row.ino);
        return r;
}

int tree_create_unnamed(struct tree *t, uint64_t dir, const struct tree_new *what, struct node *ret) {
        struct nrow parent, row;
        int r = tree_begin(t);
        if (r == 0)
                r = local_place_check(t, dir, "x", 1, &parent);
        if (r == 0)
                r = what->kind == NODE_FILE ? new_node(t, what, &row) : -EINVAL;
        if (r == 0) {
                row.bits = NB_UNNAMED;
                r = row_insert(t, &row);
        }
        if (r == 0)
                row_public(t, &row, ret);
        return tree_end(t, r);
}

int tree_link(struct tree *t, uint64_t ino, uint64_t dir, const char *name, size_t n, struct node *ret) {
        struct nrow parent, row;
        struct name_at at;
        int r = tree_begin(t);
        if (r == 0)
                r = local_place_check(t, dir, name, n, &parent);
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r == 0 && row.v.kind == NODE_DIR)
                r = -EPERM;
        if (r == 0) {
                r = entry_at(t->w, dir, name, n, &at);
                r = r == 0 ? -EEXIST : r == -ENOENT ? portable_name(t, dir, name, n, 0) : r;
        }
        if (r == 0 && row.nlink >= LINKS_MAX)
                r = -EMLINK;
        if (r == 0 && row.nlink == 0 && !(row.bits & NB_UNNAMED))
                r = -ENOENT;
        if (r == 0)
                r = row_extra(t, &row);
        if (r == 0 && (row.bits & NB_UNNAMED)) {
                row.bits &= (uint8_t)~NB_UNNAMED;
                row.v.ctime_ns = t->now_ns;
                r = local_new_create(t, &row, &parent, name, n);
        } else if (r == 0) {
                struct orow o = { .ino = ino, .p1 = dir, .op = { .kind = OP_LINK, .id = rng_id(t->rng), .node = row.id, .parent = parent.id, .name = name, .name_bytes = n } };
                struct vname v = { .parent = dir, .name = name, .n = n, .placement = o.op.id, .local = true };
                r = shadow_ensure(t, &row);
                if (r == 0)
                        r = entry_add(t, &row, &v);
                row.v.ctime_ns = t->now_ns;
                if (r == 0)
                        r = row_write(t, &row);
                if (r == 0)
                        r = outbox_add(t, &o);
        }
        if (r == 0)
                r = dir_touch(t, dir, t->now_ns);
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r == 0)
                row_public(t, &row, ret);
        return tree_end(t, r);
}

/* Removes all soft contents of the node from the outbox (it loses its last name or is replaced). io_base: base of the oldest one. A save over the file is its content as well, unless it also takes the
 * temporary's name away on the server, or has been in hand for so long that it must get there. */
static bool is_content_alone(const struct tree *t, const struct orow *o) {
        return o->op.kind == OP_CONTENT || (o->op.kind == OP_REPLACE && !o->ino2 && !outbox_protected(t, o));
}

static void earlier(int64_t since_ms, int64_t *io_since_ms) {
        if (io_since_ms && since_ms && (!*io_since_ms || since_ms < *io_since_ms))
                *io_since_ms = since_ms;
}

int local_drop_contents(struct tree *t, const struct nrow *row, struct id *io_base, int64_t *io_since_ms) {
        struct orow *list;
        size_t n = 0;
        bool first = true;
        int r = row->pend ? outbox_of_node(t, row->ino, &list, &n) : 0;
        for (size_t i = 0; i < n && r == 0; i++) {
                const struct orow *o = &list[i];
                if (o->ino != row->ino || !outbox_soft(o) || (!is_content_alone(t, o) && o->op.kind != OP_ATTR))
                        continue;
                if (o->op.kind != OP_ATTR && first) {
                        *io_base = o->op.version;
                        first = false;
                }
                if (o->op.kind != OP_ATTR)
                        earlier(outbox_in_hand_since(t, &o->op.id), io_since_ms);
                r = outbox_remove(t, o);
        }
        return r;
}

/* The row after its last name went (names are removed already). */
int local_after_unlink(struct tree *t, struct nrow *row) {
        struct nrow now;
        int r = row_get(t, t->w, row->ino, &now); /* pend changed by itself */
        if (r < 0)
                return r;
        row->pend = now.pend;
        bool last = row->v.kind == NODE_DIR ? row->parent == 0 : row->nlink == 0;
        bool kept = last && tree_is_open(t, row->ino);
        if (kept)
                row->bits |= NB_KEPT;
        if (last && !row->pend && !kept && !(row->bits & NB_SHADOW))
                return row_drop(t, row, 0);
        if (last && row->v.kind == NODE_DIR)
                row->incarnation++; /* the kernel never enters that inode again; should the server refuse this, names must lead to another one */
        return row_write(t, row);
}

/* A node that never left this machine and loses its last name: its operations never happened. 1: done. io_since_ms not NULL: something takes its place, and has been in hand since then; a content that was in
 * hand for so long that it must get there stays. */
int local_cancel(struct tree *t, const struct nrow *row, int64_t *io_since_ms) {
        struct orow *list;
        size_t n = 0;
        if (row->seq || !row->pend)
                return 0;
        int r = outbox_of_node(t, row->ino, &list, &n);
        if (r < 0)
                return r;
        bool create = false;
        for (size_t i = 0; i < n; i++) {
                if (!outbox_soft(&list[i]) || list[i].ino != row->ino || list[i].ino2 || (io_since_ms && list[i].gen && outbox_protected(t, &list[i])))
                        return 0;
                create = create || list[i].op.kind == OP_CREATE;
        }
        if (!create)
                return 0;
        if (row->v.kind == NODE_DIR && (r = outbox_touches_dir(t, row->ino)) != 0)
                return r < 0 ? r : 0;
        for (size_t i = 0; i < n && r == 0; i++) {
                if (list[i].gen)
                        earlier(outbox_in_hand_since(t, &list[i].op.id), io_since_ms);
                r = outbox_remove(t, &list[i]);
        }
        return r < 0 ? r : 1;
}

/* The LINK that gave this name, if it was never sent (one that the name has left and come back to since is needed by the renames between). 1: it is gone. */
static int cancel_link(struct tree *t, const struct nrow *row, const struct id *placement) {
        struct orow *list;
        size_t count = 0;
        int r = row->pend ? outbox_of_node(t, row->ino, &list, &count) : 0;
        for (size_t i = 0; i < count && r == 0; i++) {
                const struct orow *o = &list[i];
                if (o->op.kind == OP_LINK && id_equal(&o->op.id, placement) && outbox_soft(o)) {
                        r = outbox_remove(t, o);
                        return r < 0 ? r : 1;
                }
        }
        return r;
}

/* A file that the server has, or is about to get, was renamed to the name which goes now, and that rename was never sent: it becomes the unlink, at the place where the server has the file, so nobody
 * ever hears of the name in between (how some programs replace a document: the old one moves to a temporary name and is deleted). In the order it stays where it
 * was, before what took the old name. 1: done. */
static int unlink_instead(struct tree *t, const struct nrow *row, uint64_t dir, const char *name, size_t n) {
        struct orow *list;
        size_t count = 0;
        if (row->v.kind != NODE_FILE || !row->pend)
                return 0;
        int r = outbox_of_node(t, row->ino, &list, &count);
        if (r < 0 || !count)
                return r;
        struct orow *o = &list[count - 1]; /* the last one; those before it may be on their way */
        for (size_t i = 0; i < count; i++)
                if (list[i].ino != row->ino)
                        return 0;
        if (o->op.kind != OP_RENAME || o->ino != row->ino || o->ino2 || !id_is_zero(&o->op.replaced) || o->op.flags || !outbox_soft(o) || o->p2 != dir || o->op.name2_bytes != n ||
            memcmp(o->op.name2, name, n) != 0)
                return 0;
        struct id version = row->v.version;
        r = local_drop_contents(t, row, &version, NULL);
        if (r == 0)
                r = outbox_of_node(t, row->ino, &list, &count); /* as it is without those */
        if (r < 0)
                return r;
        o = &list[count - 1];
        o->op.kind = OP_UNLINK;
        o->op.version = version;
        o->op.parent2 = (struct id){0};
        o->op.name2 = NULL;
        o->op.name2_bytes = 0;
        o->p2 = 0;
        o->op.time_ns = t->now_ns;
        r = outbox_change(t, o);
        return r < 0 ? r : 1;
}

static int unlink_in(struct tree *t, uint64_t dir, const char *name, size_t n, bool rmdir, struct node *ret, struct node *ret_taker) {
        struct nrow parent, row;
        struct name_at at;
        int r = local_place_check(t, dir, name, n, &parent);
        if (r == -EEXIST) /* "." and ".." */
                r = rmdir ? -EINVAL : -EISDIR;
        if (r == 0 && rmdir)
                r = tree_sure_of(t, dir, name, n);
        if (r == 0)
                r = entry_at(t->w, dir, name, n, &at);
        if (r == 0)
                r = row_get(t, t->w, at.ino, &row);
        if (r < 0)
                return r;
        bool is_dir = row.v.kind == NODE_DIR, last = is_dir || row.nlink == 1;
        if (is_dir != rmdir)
                return rmdir ? -ENOTDIR : -EISDIR;
        if (is_dir && (r = entry_any(t->w, row.ino)) != 0)
                return r < 0 ? r : -ENOTEMPTY;
        struct vname v = { .parent = dir, .cookie = at.cookie, .name = name, .n = n, .placement = at.placement };
        const bool replaced = !is_dir && (r = local_unlink_replaced(t, &row, dir, name, n, &at, ret_taker)) > 0;
        if (r == 0)
                r = last ? held_forget(t, &row) : row.pend == 0 ? held_has(t, row.ino) : 0;
        if (r == 0)
                r = last ? local_cancel(t, &row, NULL) : cancel_link(t, &row, &at.placement);
        if (r > 0 && !last && !replaced && (row.bits & NB_SHADOW)) { /* perhaps it was all that was pending; without a shadow the row is right as it is, its new ctime too */
                int k = tree_settle_later(t, row.ino);
                r = k < 0 ? k : r;
        }
        if (r == 0 && last)
                r = unlink_instead(t, &row, dir, name, n);
        if (r == 0) {
                struct orow o = { .ino = row.ino, .p1 = dir, .bits = is_dir ? OB_CHILDREN : 0,
                                  .op = { .kind = OP_UNLINK, .node = row.id, .parent = parent.id, .name = name, .name_bytes = n, .placement = at.placement } };
                o.op.attrs.kind = row.v.kind;
                if (last && row.v.kind == NODE_FILE) {
                        o.op.version = row.v.version;
                        r = local_drop_contents(t, &row, &o.op.version, NULL);
                }
                if (r == 0)
                        r = shadow_ensure(t, &row);
                if (r == 0)
                        r = outbox_add(t, &o);
        }
        if (r >= 0)
                r = replaced ? 0 : entry_remove(t, &row, &v);
        if (r == 0)
                r = dir_touch(t, dir, t->now_ns);
        row.v.ctime_ns = t->now_ns;
        if (r == 0 && !replaced)
                r = local_after_unlink(t, &row);
        if (r == 0)
                r = entry_freed(t, dir, name, n, row.ino);
        if (r == 0 && (parent.bits & NB_GONE)) /* shown because of what was in it */
                r = tree_settle_later(t, dir);
        if (r == 0)
                row_public(t, &row, ret);
        return r;
}

int tree_unlink_taken(struct tree *t, uint64_t dir, const char *name, size_t n, bool rmdir, bool (*kept)(void *arg, uint64_t ino), void *arg, struct node *ret, struct node *ret_taker) {
        struct node taker = { 0 };
        int r = tree_begin(t);
        tree_ask_by(t, kept, arg);
        if (r == 0)
                r = unlink_in(t, dir, name, n, rmdir, ret, &taker);
        r = tree_end(t, r);
        if (r == 0)
                *ret_taker = taker;
        return r;
}

int tree_unlink(struct tree *t, uint64_t dir, const char *name, size_t n, bool rmdir, bool (*kept)(void *arg, uint64_t ino), void *arg, struct node *ret) {
        struct node taker;
        return tree_unlink_taken(t, dir, name, n, rmdir, kept, arg, ret, &taker);
}

/* ---- attributes ---- */

static void set_fields(struct orow *o, const struct nrow *row, uint32_t mask) {
        const struct vrow *v = &row->v;
        struct node_row *a = &o->op.attrs;
        a->kind = v->kind;
        if (mask & ATTR_MODE)
                a->mode = v->mode;
        if (mask & ATTR_UID)
                a->uid = v->uid;
        if (mask & ATTR_GID)
                a->gid = v->gid;
        if (mask & ATTR_MTIME)
                a->mtime_ns = v->mtime_ns;
        if (mask & ATTR_BTIME)
                a->btime_ns = v->btime_ns;
        if (mask & ATTR_XATTR) {
                o->extra = v->extra;
                o->extra_n = v->extra_n;
        }
        a->ctime_ns = v->ctime_ns;
        o->op.attr_mask |= mask | ATTR_CTIME;
}

/* A row of the node after this one sets one of the fields: what is merged in here would not be seen behind it. */
static bool set_later(const struct orow *list, size_t n, const struct orow *here, uint32_t mask) {
        for (size_t i = 0; i < n; i++)
                if (list[i].ord > here->ord && list[i].ino == here->ino && (list[i].op.attr_mask & mask))
                        return true;
        return false;
}

/* Queues (or merges) what the row says in the fields of the mask. */
int local_queue_attrs(struct tree *t, const struct nrow *row, uint32_t mask) {
        struct orow *list;
        size_t n = 0;
        if (row->nlink == 0 || (row->parent == 0 && row->ino != INO_ROOT)) /* no name: nobody else will see it */
                return 0;
        bool children = false;
        int r = row->pend ? outbox_of_node(t, row->ino, &list, &n) : 0;
        if (r == 0 && row->v.kind == NODE_DIR && (mask & ATTR_MTIME)) {
                r = outbox_touches_dir(t, row->ino);
                children = r > 0;
        }
        if (r < 0)
                return r;
        if (n && !children && outbox_soft(&list[0]) && list[0].op.kind == OP_CREATE && list[0].ino == row->ino && !set_later(list, n, &list[0], mask)) {
                set_fields(&list[0], row, mask);
                return outbox_change(t, &list[0]);
        }
        struct orow *last = n ? &list[n - 1] : NULL;
        if (last && !children && outbox_soft(last) && last->ino == row->ino &&
            (last->op.kind == OP_ATTR || ((last->op.kind == OP_CONTENT || last->op.kind == OP_REPLACE) && mask == ATTR_MTIME))) {
                set_fields(last, row, mask);
                return outbox_change(t, last);
        }
        struct orow o = { .ino = row->ino, .bits = children ? OB_CHILDREN : 0, .op = { .kind = OP_ATTR, .node = row->id } };
        set_fields(&o, row, mask);
        return outbox_add(t, &o);
}

int tree_setattr(struct tree *t, uint64_t ino, const struct tree_attrs *a, struct node *ret) {
        struct nrow row;
        uint32_t mask = a->mask & (ATTR_MODE | ATTR_UID | ATTR_GID | ATTR_MTIME | ATTR_BTIME);
        int r = tree_begin(t);
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r == 0)
                r = shadow_ensure(t, &row);
        if (r == 0) {
                row.v.mode = mask & ATTR_MODE ? a->mode & 07777 : row.v.mode;
                row.v.uid = mask & ATTR_UID ? a->uid : row.v.uid;
                row.v.gid = mask & ATTR_GID ? a->gid : row.v.gid;
                row.v.mtime_ns = mask & ATTR_MTIME ? a->mtime_ns : row.v.mtime_ns;
                row.v.btime_ns = mask & ATTR_BTIME ? a->btime_ns : row.v.btime_ns;
                row.v.ctime_ns = t->now_ns;
                r = row_write(t, &row);
        }
        if (r == 0 && a->has_atime)
                r = db_run(t->w, "UPDATE node SET atime=? WHERE ino=?", "ii", a->atime_ns, (int64_t)ino);
        if (r == 0)
                r = local_queue_attrs(t, &row, mask);
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r == 0)
                row_public(t, &row, ret);
        return tree_end(t, r);
}

static int change_xattr(struct tree *t, uint64_t ino, const char *name, const void *value, size_t n, int flags, bool remove) {
        struct nrow row;
        const struct xattr *old;
        const char *target;
        size_t n_old, n_new = 0, total = 0, name_bytes = strlen(name);
        bool found = false;
        if (name_bytes == 0 || name_bytes > XATTR_NAME_MAX)
                return -ERANGE;
        if (n > XATTR_VALUE_MAX)
                return -E2BIG;
        int r = row_get(t, t->w, ino, &row);
        if (r == 0)
                r = shadow_ensure(t, &row);
        if (r == 0)
                r = row_extra(t, &row);
        if (r == 0)
                r = extra_unpack(t->scratch, row.v.extra, row.v.extra_n, &target, &old, &n_old);
        if (r < 0)
                return r;
        struct xattr *list = arena_alloc(t->scratch, (n_old + 1) * sizeof(*list));
        if (!list)
                return -ENOMEM;
        for (size_t i = 0; i < n_old; i++) {
                bool same = strcmp(old[i].name, name) == 0;
                found = found || same;
                if (!same)
                        list[n_new++] = old[i];
        }
        if (remove && !found)
                return -ENODATA;
        if (found && (flags & XATTR_CREATE))
                return -EEXIST;
        if (!found && (flags & XATTR_REPLACE))
                return -ENODATA;
        if (!remove)
                list[n_new++] = (struct xattr){ .name = name, .value = value, .value_bytes = (uint32_t)n };
        for (size_t i = 0; i < n_new; i++)
                total += strlen(list[i].name) + list[i].value_bytes;
        if (total > XATTR_TOTAL_MAX)
                return -ENOSPC;
        r = extra_pack(t->scratch, target, list, n_new, &row.v.extra, &row.v.extra_n);
        row.v.ctime_ns = t->now_ns;
        if (r == 0)
                r = row_write_extra(t, &row);
        if (r == 0)
                r = row_write(t, &row);
        return r < 0 ? r : local_queue_attrs(t, &row, ATTR_XATTR);
}

int tree_xattr_set(struct tree *t, uint64_t ino, const char *name, const void *value, size_t n, int flags) {
        int r = tree_begin(t);
        if (r == 0)
                r = change_xattr(t, ino, name, value, n, flags, false);
        return tree_end(t, r);
}

int tree_xattr_remove(struct tree *t, uint64_t ino, const char *name) {
        int r = tree_begin(t);
        if (r == 0)
                r = change_xattr(t, ino, name, NULL, 0, 0, true);
        return tree_end(t, r);
}

/* ---- content ---- */

/* A new content sets the times, so what later rows say of them is void. 1: no row after `here` sets them any more. */
static int drop_times(struct tree *t, const struct nrow *row, struct orow *list, size_t n, const struct orow *here) {
        for (size_t i = 0; i < n; i++)
                if (list[i].ord > here->ord && list[i].ino == here->ino && (list[i].op.attr_mask & ATTR_MTIME) && (list[i].op.kind != OP_ATTR || !outbox_soft(&list[i])))
                        return 0;
        for (size_t i = 0; i < n; i++) {
                struct orow *o = &list[i];
                if (o->ord <= here->ord || o->ino != here->ino || !(o->op.attr_mask & ATTR_MTIME))
                        continue;
                o->op.attr_mask &= ~(uint32_t)ATTR_MTIME;
                o->op.attrs.ctime_ns = row->v.ctime_ns;
                int r = o->op.attr_mask & ~(uint32_t)ATTR_CTIME ? outbox_change(t, o) : outbox_remove(t, o);
                if (r < 0)
                        return r;
        }
        return 1;
}

/* One of its names was taken away after this row. What is written from then on is not what was taken away with the name: it must not go before it, or the server would delete it too if another
 * client had taken the last of the other names. */
static bool name_gone_after(const struct orow *list, size_t n, const struct orow *row, uint64_t ino) {
        for (size_t i = 0; i < n; i++)
                if (list[i].ord > row->ord && ((list[i].op.kind == OP_UNLINK && list[i].ino == ino) || (list[i].op.kind == OP_RENAME && list[i].ino2 == ino && list[i].ino != ino)))
                        return true;
        return false;
}

static int queue_content(struct tree *t, const struct nrow *row, const struct id *base, struct id *ret_version, uint64_t *ret_dropped) {
        struct orow *list, *last = NULL;
        size_t n = 0;
        int r = row->pend ? outbox_of_node(t, row->ino, &list, &n) : 0;
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (list[i].ino == row->ino && (list[i].op.kind == OP_CREATE || list[i].op.kind == OP_CONTENT || list[i].op.kind == OP_REPLACE))
                        last = &list[i];
        struct orow o = { .ino = row->ino, .gen = row->v.gen, .op = { .kind = OP_CONTENT, .id = rng_id(t->rng), .node = row->id, .version = *base } };
        if (row->bits & NB_REMOTE)
                o.op.flags = OPF_REVIVE;
        struct orow *into = last && outbox_soft(last) && !(last->gen && outbox_protected(t, last)) && !name_gone_after(list, n, last, row->ino) ? last : &o;
        if (into == last && set_later(list, n, last, ATTR_MTIME)) {
                r = drop_times(t, row, list, n, last);
                if (r < 0)
                        return r;
                into = r > 0 ? last : &o;
        }
        *ret_dropped = into == &o ? 0 : into->gen;
        into->gen = row->v.gen;
        into->op.content = (struct content){ .size = row->v.size, .param = 1 };
        into->op.attrs.kind = NODE_FILE;
        into->op.attrs.mtime_ns = row->v.mtime_ns;
        into->op.attrs.ctime_ns = row->v.ctime_ns;
        into->op.attr_mask |= ATTR_MTIME | ATTR_CTIME;
        *ret_version = into->op.id;
        return into == &o ? outbox_add(t, &o) : outbox_change(t, into);
}

int local_queue_content(struct tree *t, struct nrow *row, uint64_t gen, uint64_t size, int64_t mtime_ns, const struct id *base, uint64_t *ret_dropped) {
        uint64_t before = row->v.gen;
        const struct id from = base && !id_is_zero(base) ? *base : row->v.version;
        int r = shadow_ensure(t, row);
        row->v.gen = row->last_gen = gen;
        row->v.size = size;
        row->v.mtime_ns = mtime_ns;
        row->v.ctime_ns = MAX(row->v.ctime_ns, mtime_ns);
        *ret_dropped = before;
        if (r == 0 && (row->nlink > 0 || (row->bits & (NB_REMOTE | NB_HIDDEN)))) /* else nobody but its handles will ever see it */
                r = queue_content(t, row, &from, &row->v.version, ret_dropped);
        return r < 0 ? r : row_write(t, row);
}

int tree_content(struct tree *t, uint64_t ino, uint64_t gen, uint64_t size, int64_t mtime_ns, const struct id *base_version, uint64_t *ret_dropped_gen) {
        struct nrow row;
        uint64_t dropped = 0;
        int r = tree_begin(t);
        t->content_only = true;
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r == 0 && row.v.kind != NODE_FILE)
                r = row.v.kind == NODE_DIR ? -EISDIR : -EINVAL;
        if (r == 0)
                r = local_queue_content(t, &row, gen, size, mtime_ns, base_version, &dropped);
        r = tree_end(t, r);
        if (r == 0)
                *ret_dropped_gen = dropped;
        return r;
}

int tree_forget(struct tree *t, uint64_t ino) {
        struct nrow row;
        int r = tree_begin(t);
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r == 0 && row.parent == 0 && ino != INO_ROOT && (row.bits & (NB_KEPT | NB_UNNAMED))) {
                if (!row.pend && !(row.bits & NB_SHADOW)) {
                        r = row_drop(t, &row, 0);
                } else { /* goes when its operations are answered */
                        row.bits &= (uint8_t)~(NB_KEPT | NB_UNNAMED);
                        r = row_write(t, &row);
                        if (r == 0)
                                r = tree_settle_later(t, ino);
                }
        }
        return tree_end(t, r == -ENOENT ? 0 : r);
}
