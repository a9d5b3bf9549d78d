/* SPDX-License-Identifier: Apache-2.0 */
/* tree_rename.c: rename with its three faces.
 *
 *   target           source                                   what is queued
 *   free             CREATE never sent, of this very name     nothing: the CREATE gets the new place
 *   free             RENAME to this very name, not sent       nothing: that RENAME gets the new place (but not the one that it left)
 *   free             else                                     RENAME
 *   never sent       any                                      the target's operations are cancelled; then as free
 *   a file           file, CREATE never sent, one link each   REPLACE on the target's id; the source's CREATE goes
 *   a file           file, sent, but a temporary or the       REPLACE with `source`
 *                    target's conflict copy, one link
 *   anything else    any                                      RENAME with `replaced`
 *   exchange                                                  RENAME with OPF_EXCHANGE
 *
 * REPLACE is how programs save a file: the temporary's inode lives on under the name (open handles and stat agree) and takes the target's server id, its server's row and its pending operations; the
 * target's inode becomes an orphan, which takes the temporary's id if the server knows that one: it is the node that the server will delete. So other clients see one
 * new version of the file that they know.
 *
 * The same by another way is one who takes the name while its file has another one, which then goes (rename f -> x, create f, unlink x: local_unlink_replaced). If the server never heard of x, the file
 * that goes is still at f there: the new one is its new version, as if it had been saved over it. That does not hang on when its bytes come (a close returns before the kernel tells of it): the REPLACE of
 * one that was not written yet waits for them as a CREATE would.
 *
 * A CREATE or RENAME that gets a new place must stay behind what its new place depends on: it moves to the end of the order, or, if something depends on it already, a RENAME is queued.
 * So it is with a CREATE whose content has been in hand for so long that it must get there (outbox.c): it does so at its place.
 */
#include "conflict.h"
#include "tree_priv.h"

#include <assert.h>
#include <stdio.h>

struct rename {
        uint64_t dir, dir2;
        const char *name, *name2;
        size_t n, n2;
        unsigned flags;
        struct nrow p1, p2, s, d; /* parents, source, target */
        struct name_at at, at2;
        bool over;                /* there is a target */
        bool in_place;            /* replace: the source has the second name already, and the target the first */
};

/* -EINVAL if ino is dir or one of its ancestors. */
static int check_cycle(struct tree *t, uint64_t ino, uint64_t dir) {
        struct nrow row;
        for (unsigned depth = 0; dir != INO_ROOT && dir != 0 && depth < 4096; depth++) {
                if (dir == ino)
                        return -EINVAL;
                int r = row_get(t, t->w, dir, &row);
                if (r < 0)
                        return r;
                dir = row.parent;
        }
        return 0;
}

static int check(struct tree *t, struct rename *m) {
        if ((m->flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) || m->flags == (RENAME_NOREPLACE | RENAME_EXCHANGE))
                return -EINVAL;
        int r = local_place_check(t, m->dir, m->name, m->n, &m->p1);
        if (r == 0)
                r = local_place_check(t, m->dir2, m->name2, m->n2, &m->p2);
        if (r == -EEXIST) /* "." and ".." */
                r = -EBUSY;
        if (r == 0)
                r = tree_sure_of(t, m->dir, m->name, m->n);
        if (r == 0)
                r = tree_sure_of(t, m->dir2, m->name2, m->n2);
        if (r == 0)
                r = entry_at(t->w, m->dir, m->name, m->n, &m->at);
        if (r == 0)
                r = row_get(t, t->w, m->at.ino, &m->s);
        if (r < 0)
                return r;
        r = entry_at(t->w, m->dir2, m->name2, m->n2, &m->at2);
        m->over = r == 0;
        if (r == -ENOENT) /* another way to write the name that it has is fine */
                r = portable_name(t, m->dir2, m->name2, m->n2, m->dir == m->dir2 ? m->s.ino : 0);
        if (r < 0)
                return r;
        if (m->over && (r = row_get(t, t->w, m->at2.ino, &m->d)) < 0)
                return r;
        bool exchange = m->flags & RENAME_EXCHANGE, s_dir = m->s.v.kind == NODE_DIR, d_dir = m->over && m->d.v.kind == NODE_DIR;
        if (exchange && !m->over)
                return -ENOENT;
        if (m->over && (m->flags & RENAME_NOREPLACE))
                return -EEXIST;
        if (s_dir && (r = check_cycle(t, m->s.ino, m->dir2)) < 0)
                return r;
        if (exchange && d_dir && (r = check_cycle(t, m->d.ino, m->dir)) < 0)
                return r;
        if (m->over && !exchange && s_dir != d_dir)
                return s_dir ? -ENOTDIR : -EISDIR;
        if (d_dir && !exchange && m->d.ino != m->s.ino && (r = entry_any(t->w, m->d.ino)) != 0)
                return r < 0 ? r : -ENOTEMPTY;
        return 0;
}

static struct vname name_one(const struct rename *m) {
        return (struct vname){ .parent = m->dir, .cookie = m->at.cookie, .name = m->name, .n = m->n, .placement = m->at.placement, .local = m->at.local };
}
static struct vname name_two(const struct rename *m) {
        return (struct vname){ .parent = m->dir2, .cookie = m->at2.cookie, .name = m->name2, .n = m->n2, .placement = m->at2.placement, .local = m->at2.local };
}

static struct orow rename_op(struct tree *t, const struct rename *m) {
        struct orow o = { .ino = m->s.ino, .p1 = m->dir, .p2 = m->dir2,
                          .op = { .kind = OP_RENAME, .id = rng_id(t->rng), .node = m->s.id, .parent = m->p1.id, .name = m->name, .name_bytes = m->n, .parent2 = m->p2.id,
                                  .name2 = m->name2, .name2_bytes = m->n2, .placement = m->at.placement } };
        o.op.attrs.kind = m->s.v.kind;
        if (m->s.v.kind == NODE_DIR)
                o.bits |= OB_DIRMOVE;
        return o;
}

/* The source gets the second name as given by the operation `placement`. */
static int move_name(struct tree *t, struct rename *m, const struct id *placement) {
        struct vname from = name_one(m), to = name_two(m);
        to.placement = *placement;
        to.local = true;
        int r = entry_remove(t, &m->s, &from);
        if (r == 0)
                r = entry_add(t, &m->s, &to);
        m->s.v.ctime_ns = t->now_ns;
        return r < 0 ? r : row_write(t, &m->s);
}

/* May o, which names the source's place, name the second place instead? It must come after what that place depends on: 1, perhaps at the end of the order now. */
static int may_move(struct tree *t, struct rename *m, struct orow *o) {
        struct orow parent;
        uint64_t at;
        int r = outbox_last_at(t, m->dir2, m->name2, m->n2, INT64_MAX, &at);
        if (r == 0 && at == o->ord) /* back to where it was */
                at = 0;
        if (r == 0) {
                r = outbox_create_of(t, m->dir2, &parent);
                if (r == 0)
                        at = MAX(at, parent.ord);
                if (r == -ENOENT)
                        r = 0;
        }
        if (r == 0 && (at > o->ord || (o->bits & OB_DIRMOVE))) {
                r = outbox_has_dependents(t, o);
                if (r > 0)
                        return 0;
                if (r == 0)
                        r = outbox_to_end(t, o);
        }
        return r < 0 ? r : 1;
}

/* 1: the source's CREATE was never sent and has the new place now. */
static int move_create(struct tree *t, struct rename *m) {
        struct orow o;
        int r = m->s.seq == 0 && m->s.pend ? outbox_create_of(t, m->s.ino, &o) : -ENOENT;
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        if (!outbox_soft(&o) || o.p1 != m->dir || o.op.name_bytes != m->n || memcmp(o.op.name, m->name, m->n) != 0 || !id_equal(&m->at.placement, &o.op.id))
                return 0;
        if (o.gen && outbox_protected(t, &o))
                return 0;
        r = may_move(t, m, &o);
        if (r <= 0)
                return r;
        o.p1 = m->dir2;
        o.op.parent = m->p2.id;
        o.op.name = m->name2;
        o.op.name_bytes = m->n2;
        o.op.attrs.ctime_ns = t->now_ns;
        o.op.time_ns = t->now_ns;
        r = outbox_mark_temporary(t, &o);
        if (r == 0)
                r = outbox_change(t, &o);
        if (r == 0)
                r = move_name(t, m, &o.op.id);
        return r < 0 ? r : 1;
}

/* 1: the source's last RENAME was never sent and has the new place now. Not the place that it left: a RENAME to itself would keep a name that goes later. */
static int move_rename(struct tree *t, struct rename *m) {
        struct orow *list, *o = NULL;
        size_t n = 0;
        int r = m->s.pend ? outbox_of_node(t, m->s.ino, &list, &n) : 0;
        for (size_t i = 0; i < n; i++)
                if (id_equal(&list[i].op.id, &m->at.placement))
                        o = &list[i];
        if (r < 0 || !o || o->op.kind != OP_RENAME || o->ino != m->s.ino || o->ino2 || o->op.flags || !outbox_soft(o) || o->p2 != m->dir || o->op.name2_bytes != m->n ||
            memcmp(o->op.name2, m->name, m->n) != 0)
                return r;
        if (o->p1 == m->dir2 && o->op.name_bytes == m->n2 && memcmp(o->op.name, m->name2, m->n2) == 0)
                return 0;
        r = may_move(t, m, o);
        if (r <= 0)
                return r;
        o->p2 = m->dir2;
        o->op.parent2 = m->p2.id;
        o->op.name2 = m->name2;
        o->op.name2_bytes = m->n2;
        o->op.time_ns = t->now_ns;
        r = outbox_mark_temporary(t, o);
        if (r == 0)
                r = outbox_change(t, o);
        if (r == 0)
                r = move_name(t, m, &o->op.id);
        return r < 0 ? r : 1;
}

/* A content on its way leaves the place where it was to arrive: who takes that place next is waited for since then. */
static int leave_place(struct tree *t, const struct rename *m) {
        struct orow *list;
        size_t n = 0;
        int r = m->s.v.kind == NODE_FILE && m->s.v.gen && m->s.pend ? outbox_of_node(t, m->s.ino, &list, &n) : 0;
        for (size_t i = 0; i < n && r == 0; i++) {
                int64_t since_ms = list[i].gen && list[i].ino == m->s.ino ? outbox_in_hand_since(t, &list[i].op.id) : 0;
                if (since_ms)
                        r = outbox_place_hand(t, m->dir, m->name, m->n, since_ms);
        }
        return r;
}

static int to_free_name(struct tree *t, struct rename *m) {
        int r = leave_place(t, m);
        if (r == 0)
                r = move_create(t, m);
        if (r == 0)
                r = move_rename(t, m);
        if (r != 0)
                return r < 0 ? r : 0;
        struct orow o = rename_op(t, m);
        r = shadow_ensure(t, &m->s);
        if (r == 0)
                r = outbox_add(t, &o);
        return r < 0 ? r : move_name(t, m, &o.op.id);
}

static int exchange(struct tree *t, struct rename *m) {
        struct orow o = rename_op(t, m);
        o.ino2 = m->d.ino;
        o.op.flags = OPF_EXCHANGE;
        o.op.replaced = m->d.id;
        o.op.replaced_placement = m->at2.placement;
        if (m->d.v.kind == NODE_FILE)
                o.op.replaced_version = m->d.v.version;
        if (m->d.v.kind == NODE_DIR)
                o.bits |= OB_DIRMOVE;
        struct vname one = name_one(m), two = name_two(m);
        int r = shadow_ensure(t, &m->s);
        if (r == 0)
                r = shadow_ensure(t, &m->d);
        if (r == 0)
                r = outbox_add(t, &o);
        if (r == 0)
                r = entry_remove(t, &m->s, &one);
        if (r == 0)
                r = entry_remove(t, &m->d, &two);
        one.placement = two.placement = o.op.id;
        one.local = two.local = true;
        if (r == 0)
                r = entry_add(t, &m->s, &two);
        if (r == 0)
                r = entry_add(t, &m->d, &one);
        m->s.v.ctime_ns = m->d.v.ctime_ns = t->now_ns;
        if (r == 0)
                r = row_write(t, &m->s);
        return r < 0 ? r : row_write(t, &m->d);
}

static int rename_over(struct tree *t, struct rename *m) {
        struct orow o = rename_op(t, m);
        struct vname two = name_two(m);
        bool last = m->d.v.kind == NODE_DIR || m->d.nlink == 1;
        o.ino2 = m->d.ino;
        o.op.replaced = m->d.id;
        if (m->d.v.kind == NODE_DIR)
                o.bits |= OB_CHILDREN;
        int r = shadow_ensure(t, &m->s);
        if (r == 0)
                r = shadow_ensure(t, &m->d);
        if (m->d.v.kind == NODE_FILE) {
                o.op.replaced_version = m->d.v.version;
                if (r == 0 && last)
                        r = local_drop_contents(t, &m->d, &o.op.replaced_version, NULL);
        }
        if (r == 0)
                r = outbox_add(t, &o);
        if (r == 0)
                r = entry_remove(t, &m->d, &two);
        m->d.v.ctime_ns = t->now_ns;
        if (r == 0)
                r = local_after_unlink(t, &m->d);
        return r < 0 ? r : move_name(t, m, &o.op.id);
}

/* ---- replace ---- */

/* How the source may become the target's new version: 0 not at all; 1 it was never sent; 2 it was sent. */
static int replace_kind(struct tree *t, struct rename *m, struct orow **ret_ops, size_t *ret_n) {
        const struct nrow *s = &m->s, *d = &m->d;
        *ret_n = 0;
        if (s->v.kind != NODE_FILE || d->v.kind != NODE_FILE || s->nlink != 1 || d->nlink != 1)
                return 0;
        int r = s->pend ? outbox_of_node(t, s->ino, ret_ops, ret_n) : 0;
        if (r < 0)
                return r;
        bool create = false, soft = true;
        for (size_t i = 0; i < *ret_n; i++) {
                const struct orow *o = &(*ret_ops)[i];
                if (o->ino != s->ino || o->ino2 || (o->op.kind != OP_CREATE && o->op.kind != OP_CONTENT && o->op.kind != OP_ATTR))
                        return 0;
                create = create || o->op.kind == OP_CREATE;
                soft = soft && outbox_soft(o);
        }
        if (s->seq == 0 && create && soft)
                return 1;
        if ((s->seq == 0 && create) || temporary_name(m->name, m->n) || temporary_of(m->name, m->n, m->name2, m->n2))
                return 2;
        struct conflict_mark mark; /* a conflict copy that goes back to where it comes from is its new version */
        r = row_extra(t, &m->s);
        if (r == 0)
                r = conflict_mark_get(t, &m->s, &mark);
        return r <= 0 ? r : id_equal(&mark.original, &d->id) ? 2 : 0;
}

static int swap_shadows(struct tree *t, uint64_t a, uint64_t b) {
        static const char *const rows = "UPDATE shadow SET ino=? WHERE ino=?", *const names = "UPDATE shadow_name SET ino=? WHERE ino=?";
        const int64_t aside = -1, x = (int64_t)a, y = (int64_t)b, steps[3][2] = { { aside, x }, { x, y }, { y, aside } };
        int r = 0;
        for (unsigned i = 0; i < 3 && r == 0; i++) {
                r = db_run(t->w, rows, "ii", steps[i][0], steps[i][1]);
                if (r == 0)
                        r = db_run(t->w, names, "ii", steps[i][0], steps[i][1]);
        }
        return r;
}

/* Server's identity of the two nodes changes hands: id, seq, shadow, aliases, and the operations that stay. */
static int swap_identity(struct tree *t, struct rename *m, bool source_known) {
        struct nrow *s = &m->s, *d = &m->d;
        const struct id s_id = s->id, d_id = d->id, aside = rng_id(t->rng), orphan = source_known ? s_id : rng_id(t->rng);
        int r = swap_shadows(t, s->ino, d->ino);
        if (r == 0)
                r = db_run(t->w, "UPDATE alias SET ino=CASE ino WHEN ?1 THEN ?2 ELSE ?1 END WHERE ino=?1 OR ino=?2", "ii", (int64_t)s->ino, (int64_t)d->ino);
        if (r == 0 && t->n_held)
                r = held_swap(t, s->ino, d->ino);
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET ino=CASE ino WHEN ?1 THEN ?2 ELSE ?1 END WHERE ino=?1 OR ino=?2", "ii", (int64_t)s->ino, (int64_t)d->ino);
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET ino2=CASE ino2 WHEN ?1 THEN ?2 ELSE ?1 END WHERE ino2 > 0 AND (ino2=?1 OR ino2=?2)", "ii", (int64_t)s->ino, (int64_t)d->ino);
        if (r == 0)
                r = row_write_id(t, d->ino, &aside);
        if (r == 0)
                r = row_write_id(t, s->ino, &d_id);
        if (r == 0)
                r = row_write_id(t, d->ino, &orphan);
        if (r == 0 && !source_known) /* stages of the source name it by the id that it had */
                r = db_run(t->w, "INSERT OR REPLACE INTO alias(id,ino,local) VALUES(?,?,1)", "Ii", &s_id, (int64_t)s->ino);
        const uint8_t moving = NB_SHADOW | NB_GONE, s_bits = s->bits & moving, d_bits = d->bits & moving;
        s->bits = (uint8_t)((s->bits & ~moving) | d_bits);
        d->bits = (uint8_t)((d->bits & ~moving) | s_bits);
        const uint64_t seq = s->seq, nseq = s->nseq;
        s->id = d_id;
        s->seq = d->seq;
        s->nseq = d->nseq;
        d->id = orphan;
        d->seq = seq;
        d->nseq = nseq;
        return r;
}

static int count_pend(struct tree *t, uint64_t ino) {
        return db_run(t->w, "UPDATE node SET pend=(SELECT count(*) FROM outbox WHERE ino=?1) + (SELECT count(*) FROM outbox WHERE ino2=?1 AND ino2 > 0) WHERE ino=?1", "i", (int64_t)ino);
}

static int replace(struct tree *t, struct rename *m, const struct orow *ops, size_t n_ops, bool sent) {
        struct nrow *s = &m->s, *d = &m->d;
        struct orow o = { .ino = s->ino, .op = { .kind = OP_REPLACE, .id = rng_id(t->rng), .node = d->id, .version = d->v.version } };
        struct conflict_mark mark;
        struct id known = s->v.version; /* of the source: what is deleted with its name */
        int64_t since_ms = 0;           /* the file has been on its way to the server */
        int r = row_extra(t, s);
        if (r == 0)
                r = row_extra(t, d);
        if (r == 0 && (r = conflict_mark_get(t, d, &mark)) >= 0) /* who saves a conflict copy resolves nothing; its own mark a copy leaves behind */
                r = conflict_mark_set(t, s, r > 0 ? &mark : NULL);
        if (r == 0)
                r = row_write_extra(t, s);
        if (r == 0) /* while their names are as they were */
                r = shadow_ensure(t, s);
        if (r == 0)
                r = shadow_ensure(t, d);
        if (sent) {
                o.ino2 = d->ino;
                o.p1 = m->dir;
                o.op.source = s->id;
                o.op.parent = m->p1.id;
                o.op.name = m->name;
                o.op.name_bytes = m->n;
                o.op.placement = m->at.placement;
        }
        if (r == 0)
                r = local_drop_contents(t, d, &o.op.version, &since_ms);
        if (r == 0 && sent)
                r = local_drop_contents(t, s, &known, NULL);
        if (sent)
                o.op.replaced_version = known;
        for (size_t i = 0; i < n_ops && r == 0 && !sent; i++)
                r = outbox_remove(t, &ops[i]);
        s->v.ctime_ns = t->now_ns;
        o.gen = s->v.gen;
        o.op.content = s->v.gen ? (struct content){ .size = s->v.size, .param = 1 } : s->v.content;
        local_attrs_to_op(s, &o);
        o.op.attr_mask |= ATTR_XATTR;
        /* names: the target's entry leads to the source's inode from now on */
        struct vname one = name_one(m), two = name_two(m);
        if (r == 0)
                r = entry_remove(t, m->in_place ? d : s, &one);
        if (r == 0)
                r = m->in_place ? entry_update(t, &two)
                                : db_run(t->w, "UPDATE entry SET node=? WHERE parent=? AND cookie=?", "iii", (int64_t)s->ino, (int64_t)m->dir2, (int64_t)m->at2.cookie);
        s->parent = m->dir2;
        s->cookie = m->at2.cookie;
        s->nlink = 1;
        d->parent = d->cookie = 0;
        d->nlink = 0;
        d->v.ctime_ns = t->now_ns;
        /* what the orphan's handles see is a local matter: nothing pending of its own is left to be sent */
        if (r == 0)
                r = swap_identity(t, m, sent);
        s->last_gen = MAX(s->last_gen, d->last_gen);
        s->v.version = o.op.id;
        if (r == 0)
                r = row_write(t, s);
        if (r == 0)
                r = row_write(t, d);
        if (r == 0)
                r = outbox_add(t, &o);
        if (r == 0 && since_ms)
                r = outbox_hand_since(t, &o.op.id, since_ms);
        if (r == 0)
                r = count_pend(t, s->ino);
        if (r == 0)
                r = count_pend(t, d->ino);
        return r < 0 ? r : local_after_unlink(t, d);
}

/* Is f, which the rename `away` took from the node, still its place on the server (or will be, when its CREATE is there)? */
static int still_at(struct tree *t, struct nrow *row, const struct orow *ops, size_t n_ops, const struct orow *away) {
        struct server_side side;
        if (row->seq == 0) {
                for (size_t i = 0; i < n_ops; i++)
                        if (ops[i].op.kind == OP_CREATE && ops[i].ino == row->ino)
                                return id_equal(&ops[i].op.id, &away->op.placement);
                return 0;
        }
        int r = shadow_get(t, row, &side);
        if (r < 0 || !side.exists || side.deleted || side.names.n != 1)
                return MIN(r, 0);
        const struct vname *v = &side.names.v[0];
        return v->parent == away->p1 && v->n == away->op.name_bytes && memcmp(v->name, away->op.name, v->n) == 0 && id_equal(&v->placement, &away->op.placement);
}

int local_unlink_replaced(struct tree *t, struct nrow *old, uint64_t dir, const char *name, size_t n, const struct name_at *at, struct node *ret_taker) {
        struct orow *ops, *new_ops = NULL, create;
        size_t n_ops = 0, n_new = 0;
        int64_t since_ms = 0;
        if (old->v.kind != NODE_FILE || old->nlink != 1 || !old->pend)
                return 0;
        int r = held_has(t, old->ino);
        if (r != 0)
                return MIN(r, 0);
        r = outbox_of_node(t, old->ino, &ops, &n_ops);
        if (r < 0 || n_ops == 0)
                return r;
        const struct orow *away = &ops[n_ops - 1];
        if (away->op.kind != OP_RENAME || away->ino != old->ino || away->ino2 || away->op.flags || !outbox_soft(away) || !id_equal(&away->op.id, &at->placement))
                return 0;
        struct rename m = { .dir = dir, .name = name, .n = n, .at = *at, .dir2 = away->p1, .name2 = away->op.name, .n2 = away->op.name_bytes, .d = *old, .over = true, .in_place = true };
        r = entry_at(t->w, m.dir2, m.name2, m.n2, &m.at2);
        if (r == 0)
                r = row_get(t, t->w, m.at2.ino, &m.s);
        if (r == 0)
                r = row_get(t, t->w, m.dir, &m.p1);
        if (r == 0)
                r = row_get(t, t->w, m.dir2, &m.p2);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        if (m.s.nlink != 1)
                return 0;
        r = replace_kind(t, &m, &new_ops, &n_new);
        if (r == 1)
                r = still_at(t, old, ops, n_ops, away);
        if (r != 1 || m.s.seq)
                return MIN(r, 0);
        r = local_cancel(t, old, &since_ms);
        if (r > 0) { /* the old one was never sent */
                struct vname one = name_one(&m);
                r = outbox_create_of(t, m.s.ino, &create);
                if (r == 0 && since_ms)
                        r = outbox_hand_since(t, &create.op.id, since_ms);
                if (r == 0)
                        r = entry_remove(t, old, &one);
                old->v.ctime_ns = t->now_ns;
                if (r == 0)
                        r = local_after_unlink(t, old);
                return r < 0 ? r : 1;
        }
        m.at2.placement = away->op.placement;
        m.at2.local = old->seq == 0;
        if (r == 0)
                r = outbox_remove(t, away);
        if (r == 0)
                r = replace(t, &m, new_ops, n_new, false);
        if (r == 0) {
                *old = m.d;
                row_public(t, &m.s, ret_taker);
        }
        return r < 0 ? r : 1;
}

/* ---- all ---- */

static int held_bytes(struct tree *t, const struct nrow *row) {
        return row->v.kind == NODE_FILE && row->v.size > 0 ? held_has(t, row->ino) : 0;
}

static int rename_in(struct tree *t, struct rename *m, struct node *ret_moved, struct node *ret_replaced) {
        struct orow *ops = NULL;
        size_t n_ops = 0;
        int64_t since_ms = 0;
        int r = check(t, m);
        if (r < 0)
                return r;
        *ret_replaced = (struct node){0};
        if (m->over && m->s.ino == m->d.ino) { /* two names of one node, or one and the same: POSIX says: nothing */
                row_public(t, &m->s, ret_moved);
                return 0;
        }
        bool is_exchange = m->flags & RENAME_EXCHANGE, replaced = m->over && !is_exchange;
        if ((r = held_bytes(t, &m->s)) != 0 || (is_exchange && (r = held_bytes(t, &m->d)) != 0)) /* the server could not be told: a copy of the bytes is a file of its own (mv does that) */
                return r < 0 ? r : -EXDEV;
        const bool last = replaced && (m->d.v.kind == NODE_DIR || m->d.nlink == 1);
        if (m->dir2 != m->dir && (r = held_send(t, m->dir2)) < 0 && r != -EEXIST && r != -EAGAIN && r != -EMLINK && r != -ELOOP)
                return r;
        r = last ? held_forget(t, &m->d) : replaced && m->d.pend == 0 ? held_has(t, m->d.ino) : 0;
        if (last && r == 0)
                r = local_cancel(t, &m->d, &since_ms);
        if (r > 0) {
                struct vname two = name_two(m);
                r = entry_remove(t, &m->d, &two);
                m->d.v.ctime_ns = t->now_ns;
                if (r == 0)
                        r = local_after_unlink(t, &m->d);
                m->over = false;
        }
        if (r < 0)
                return r;
        if (is_exchange) {
                r = exchange(t, m);
        } else if (!m->over) {
                struct orow create;
                r = to_free_name(t, m);
                if (r == 0 && since_ms && (r = outbox_create_of(t, m->s.ino, &create)) == 0)
                        r = outbox_hand_since(t, &create.op.id, since_ms);
                if (r == -ENOENT)
                        r = 0;
        } else {
                r = replace_kind(t, m, &ops, &n_ops);
                if (r > 0)
                        r = replace(t, m, ops, n_ops, r == 2);
                else if (r == 0)
                        r = rename_over(t, m);
        }
        if (r == 0)
                r = dir_touch(t, m->dir, t->now_ns);
        if (r == 0 && m->dir2 != m->dir)
                r = dir_touch(t, m->dir2, t->now_ns);
        if (r == 0 && !is_exchange)
                r = entry_freed(t, m->dir, m->name, m->n, m->s.ino);
        if (r == 0 && (m->p1.bits & NB_GONE)) /* shown because of what was in it */
                r = tree_settle_later(t, m->dir);
        if (r == 0)
                r = row_get(t, t->w, m->s.ino, &m->s);
        if (r < 0)
                return r;
        row_public(t, &m->s, ret_moved);
        if (is_exchange || replaced) {
                struct nrow now;
                r = row_get(t, t->w, m->d.ino, &now);
                row_public(t, r == 0 ? &now : &m->d, ret_replaced);
        }
        return r == -ENOENT ? 0 : r;
}

int tree_rename(struct tree *t, uint64_t dir, const char *name, size_t n, uint64_t dir2, const char *name2, size_t n2, unsigned flags,
                bool (*kept)(void *arg, uint64_t ino), void *arg, struct node *ret_moved, struct node *ret_replaced) {
        struct rename m = { .dir = dir, .name = name, .n = n, .dir2 = dir2, .name2 = name2, .n2 = n2, .flags = flags };
        int r = tree_begin(t);
        tree_ask_by(t, kept, arg);
        if (r == 0)
                r = rename_in(t, &m, ret_moved, ret_replaced);
        return tree_end(t, r);
}
