/* SPDX-License-Identifier: Apache-2.0 */
/* tree_settle.c: computes the view of one node anew (view.c) and writes what differs, with notes for the kernel side.
 *
 * Called when the server's side of a node changed, when an operation on it ended, or when a name that it waits for was freed. Local verbs write the view directly; a
 * test holds that settling afterwards changes nothing.
 *
 * Who gets a name that two nodes want:
 *   - a name given by a pending operation stays; the server's node of that name waits (its names are in shadow_name) until the name is freed
 *   - of two names from the server the one with the newer list wins; the other node is about to lose it (its row has not come yet)
 * The loser is *hidden*: it keeps its row, without that name. Whoever frees a name settles those that wait for it: both orders of arrival give one result. One that has no other
 * name (NB_HIDDEN) is not unlinked: what its handles write counts, and the server decides about it.
 * A node without a name (all of them hidden, or in a directory that is not here yet) goes on showing what it showed; as the row then is not the server's, the server's is kept beside it until
 * the node has a name again.
 *
 * What becomes of a node that the server deleted: while operations on it are pending, or a directory has entries left (they are there because of pending work), it stays
 * as it was shown last, marked NB_GONE. When the last of that ends it goes, and its parents of that kind after it. A node that is open goes at tree_forget. */
#include "tree_priv.h"

#include <assert.h>

static bool same_place(const struct vname *a, const struct vname *b) {
        return a->parent == b->parent && a->n == b->n && memcmp(a->name, b->name, a->n) == 0;
}

static const struct vname *find_same(const struct vnames *list, const struct vname *v) {
        for (size_t i = 0; i < list->n; i++)
                if (same_place(&list->v[i], v))
                        return &list->v[i];
        return NULL;
}

static int note_name(struct tree *t, const struct vname *v) {
        int r = tree_note(t, NOTE_ENTRY, v->parent, v->name, v->n);
        return r < 0 ? r : tree_note(t, NOTE_LIST, v->parent, NULL, 0);
}

/* Takes the name from a node of the server that is to wait. */
static int evict(struct tree *t, uint64_t ino, const struct vname *v) {
        struct nrow row;
        struct vnames names;
        int r = row_get(t, t->w, ino, &row);
        if (r == 0)
                r = shadow_ensure(t, &row);
        if (r == 0)
                r = entries_of(t, &row, &names);
        if (r < 0)
                return r;
        const struct vname *mine = find_same(&names, v);
        if (!mine)
                return -EBADMSG;
        r = entry_remove(t, &row, mine);
        if (r == 0)
                r = row_write(t, &row);
        return r < 0 ? r : tree_settle_later(t, ino);
}

/* Gives the node a name, or finds that it has to wait. */
static int claim(struct tree *t, struct nrow *row, const struct vname *v, uint64_t nseq, bool *ret_hidden) {
        struct name_at at;
        struct nrow other;
        int64_t parent_there;
        int r = db_int(t->w, &parent_there, "SELECT EXISTS(SELECT 1 FROM node WHERE ino=?)", "i", (int64_t)v->parent);
        if (r < 0)
                return r;
        if (!parent_there) {
                *ret_hidden = true;
                return 0;
        }
        r = entry_at(t->w, v->parent, v->name, v->n, &at);
        if (r == 0) {
                assert(at.ino != row->ino);
                bool wins = v->local && !at.local;
                if (!v->local && !at.local) {
                        r = row_get(t, t->w, at.ino, &other);
                        if (r < 0)
                                return r;
                        wins = other.nseq < nseq;
                }
                if (!wins) {
                        *ret_hidden = true;
                        return 0;
                }
                r = evict(t, at.ino, v);
        }
        if (r < 0 && r != -ENOENT)
                return r;
        r = entry_add(t, row, v);
        return r < 0 ? r : note_name(t, v);
}

static bool extra_equal(const struct vrow *a, const struct vrow *b) {
        return a->extra_n == b->extra_n && (a->extra_n == 0 || memcmp(a->extra, b->extra, a->extra_n) == 0);
}

static bool attrs_equal(const struct vrow *a, const struct vrow *b) {
        return a->kind == b->kind && a->mode == b->mode && a->uid == b->uid && a->gid == b->gid && a->rdev == b->rdev && a->mtime_ns == b->mtime_ns &&
               a->ctime_ns == b->ctime_ns && a->btime_ns == b->btime_ns && extra_equal(a, b);
}

static bool bytes_equal(const struct vrow *before, const struct vrow *after, const struct settle_hint *hint) {
        if (after->kind != NODE_FILE)
                return true;
        if (after->gen)
                return before->gen == after->gen;
        if (before->gen)
                return hint && hint->done_gen == before->gen && id_equal(&after->version, &hint->done_version);
        return content_equal(&before->content, &after->content);
}

static int write_names(struct tree *t, struct nrow *row, const struct vnames *want, uint64_t nseq, bool *ret_hidden) {
        struct vnames have;
        int r = entries_of(t, row, &have);
        for (size_t i = 0; i < have.n && r == 0; i++) {
                const struct vname *same = find_same(want, &have.v[i]);
                if (!same) {
                        r = entry_remove(t, row, &have.v[i]);
                        if (r == 0)
                                r = entry_freed(t, have.v[i].parent, have.v[i].name, have.v[i].n, row->ino);
                        if (r == 0)
                                r = note_name(t, &have.v[i]);
                        struct nrow parent;
                        if (r == 0 && (r = row_get(t, t->w, have.v[i].parent, &parent)) == 0 && (parent.bits & NB_GONE))
                                r = tree_settle_later(t, parent.ino);
                        if (r == -ENOENT)
                                r = 0;
                } else if (same->local != have.v[i].local || !id_equal(&same->placement, &have.v[i].placement)) {
                        struct vname v = have.v[i];
                        v.local = same->local;
                        v.placement = same->placement;
                        r = entry_update(t, &v);
                        if (r == 0 && have.v[i].local && !same->local) /* it was given here: a node of the server may be waiting, and can claim it now */
                                r = entry_freed(t, v.parent, v.name, v.n, row->ino);
                }
        }
        for (size_t i = 0; i < want->n && r == 0; i++)
                if (!find_same(&have, &want->v[i]))
                        r = claim(t, row, &want->v[i], nseq, ret_hidden);
        return r;
}

static int load_ops(struct tree *t, const struct nrow *row, struct view_op **ret, size_t *ret_n) {
        struct orow *list;
        size_t n;
        *ret = NULL;
        *ret_n = 0;
        if (!row->pend)
                return 0;
        int r = outbox_of_node(t, row->ino, &list, &n);
        if (r < 0)
                return r;
        struct view_op *ops = arena_alloc(t->scratch, MAX(n, 1u) * sizeof(*ops));
        if (!ops)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                ops[i] = (struct view_op){ .op = &list[i].op, .second = list[i].ino != row->ino, .p1 = list[i].p1, .p2 = list[i].p2, .gen = list[i].gen, .extra = list[i].extra,
                                           .extra_n = list[i].extra_n };
        *ret = ops;
        *ret_n = n;
        return 0;
}

/* Nothing on the server, nothing pending, no name: the row goes unless somebody has it open. taken: it had a name here until now. One that was unlinked here and that its handles let go stays deleted,
 * even if something of it (a generation that failed) has not been put away yet. */
static int end_node(struct tree *t, struct nrow *row, const struct server_side *side, bool taken) {
        if ((row->bits & (NB_KEPT | NB_UNNAMED)) || tree_is_open(t, row->ino)) {
                int r = shadow_drop(t, row);
                if (!(row->bits & (NB_UNNAMED | NB_KEPT)))
                        row->bits |= taken ? NB_KEPT | NB_REMOTE : NB_KEPT;
                row->seq = side->seq;
                row->nseq = side->nseq;
                return r < 0 ? r : row_write(t, row);
        }
        if (row->v.kind == NODE_DIR) { /* names of others that wait in it cannot come any more */
                int r = db_run(t->w, "DELETE FROM shadow_name WHERE parent=?", "i", (int64_t)row->ino);
                if (r < 0)
                        return r;
        }
        return row_drop(t, row, side->deleted ? side->seq : 0);
}

/* Names known to the kernel lead to the node as it was: they are to be asked for again. */
static int grow_incarnation(struct tree *t, struct nrow *row) {
        struct vnames names;
        int r = entries_of(t, row, &names);
        for (size_t i = 0; i < names.n && r == 0; i++)
                r = tree_note(t, NOTE_ENTRY, names.v[i].parent, names.v[i].name, names.v[i].n);
        row->incarnation++;
        return r;
}

int settle(struct tree *t, uint64_t ino, const struct server_side *s, const struct settle_hint *hint) {
        struct nrow row;
        struct server_side side;
        struct view_in in = {0};
        struct view_out out;
        struct view_op *ops;
        int r = row_get(t, t->w, ino, &row);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        if (s)
                r = held_end(t, ino);
        if (r == 0)
                r = row_extra(t, &row);
        if (r == 0 && !s)
                r = shadow_get(t, &row, &side);
        if (r < 0)
                return r;
        if (s)
                side = *s;
        r = load_ops(t, &row, &ops, &in.n_ops);
        if (r < 0)
                return r;
        in.exists = side.exists;
        in.own = hint && hint->own;
        in.news = s && s->seq != row.seq;
        in.server = &side.v;
        in.server_names = side.names;
        in.ops = ops;
        in.before = &row.v;
        if (row.v.kind == NODE_DIR) {
                r = outbox_touches_dir(t, ino);
                if (r < 0)
                        return r;
                in.dir_busy = r > 0;
                for (size_t i = 0; i < in.n_ops; i++)
                        in.dir_busy = in.dir_busy || (ops[i].op->attr_mask & ATTR_MTIME);
        }
        r = view_fold(&in, t->scratch, &out);
        if (r < 0)
                return r;
        bool gone = in.n_ops == 0 && (!side.exists || side.deleted) && ino != INO_ROOT, kept_for_children = false, hidden = false;
        if (gone && row.v.kind == NODE_DIR) {
                r = entry_any(t->w, ino);
                if (r < 0)
                        return r;
                kept_for_children = r > 0;
        }
        if (kept_for_children) {
                out.v = row.v;
                r = entries_of(t, &row, &out.names);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < out.names.n; i++) /* no operation gives them any more */
                        out.names.v[i].local = false;
        } else if (gone) {
                out.v = row.v;
                out.names.n = 0;
        }
        uint32_t nlink = row.nlink;
        const bool shown = row.cookie || (row.bits & NB_HIDDEN);
        r = write_names(t, &row, &out.names, side.nseq, &hidden);
        if (r < 0)
                return r;
        if (gone && !kept_for_children)
                return end_node(t, &row, &side, shown);
        bool bytes = bytes_equal(&row.v, &out.v, hint), attrs = attrs_equal(&row.v, &out.v) && (row.nlink == nlink || row.v.kind == NODE_DIR), extra = extra_equal(&row.v, &out.v);
        const bool nameless = !row.cookie && ino != INO_ROOT; /* without a name it shows to its handles what it showed; with a name again, what it is */
        if (nameless) {
                out.v = row.v;
                bytes = attrs = extra = true;
        }
        if (out.names.n)
                row.bits &= (uint8_t)~(NB_KEPT | NB_REMOTE | NB_UNNAMED);
        row.bits = (uint8_t)((row.bits & ~NB_HIDDEN) | (out.names.n && !row.cookie ? NB_HIDDEN : 0));
        row.v = out.v;
        row.seq = side.seq;
        row.nseq = side.nseq;
        if (!bytes) {
                r = tree_note(t, NOTE_CONTENT, ino, NULL, 0);
                if (r == 0 && tree_is_open(t, ino))
                        r = grow_incarnation(t, &row);
        } else if (!attrs) {
                r = tree_note(t, NOTE_ATTR, ino, NULL, 0);
        }
        if (r == 0) {
                bool need = side.exists && (in.n_ops || hidden || kept_for_children || nameless); /* else the row is what the server has */
                if (!need)
                        r = shadow_drop(t, &row);
                else if (s || !(row.bits & NB_SHADOW))
                        r = shadow_put(t, &row, &side);
        }
        if (r == 0 && !extra)
                r = row_write_extra(t, &row);
        if (r == 0)
                r = row_write(t, &row);
        return r == 0 && s && !bytes ? newer_settled(t, &row) : r;
}

int settle_pending(struct tree *t) {
        int r = 0;
        while (t->again_at < t->n_again && r == 0)
                r = settle(t, t->again[t->again_at++], NULL, NULL);
        t->n_again = t->again_at = 0;
        return r;
}
