/* SPDX-License-Identifier: Apache-2.0 */
/* tree_resolve.c: what becomes of an operation that the server refused or merged, as the planner decided it.
 *
 * The rows that came with the refusal are applied first, in the same transaction. Then:
 *
 *   DROP           the row goes; the view is computed anew. Later soft rows that named it as their base name what it started from
 *   REBASE         the place from the server's rows, new operation id
 *   CONFLICT_COPY  all pending contents of the node go, the newest becomes the content of a new node beside it, marked (tree_conflict.c); the temporary of a REPLACE is unlinked.
 *                  The same copy, without content yet, is made for handles of a file that another content has taken (tree_create_copy)
 *   NEW_NAME       same node, conflict name, new operation id; later soft rows follow the name. Why this ends: conflict.c
 *   DIR_NAME       our new directory wants the name of a file: as NEW_NAME, and behind it an exchange of the two names: the directory gets the name
 *   REVIVE         OPF_REVIVE, new operation id; content also takes the deleted version as its base
 *   MERGED         the server's node takes the place of ours: our ino gets its id; if that node is here under another ino, its children and pending
 *                  operations move over and its row goes
 *
 * Nothing is lost by a decision: a DROP of a CREATE that holds content or children is refused (-EINVAL), the caller parks it. */
#include "conflict.h"
#include "tree_priv.h"

#include <assert.h>
#include <stdio.h>

/* A conflict name that nobody has in the directory, shown or waiting; its number is greater than that of `name`. In scratch. */
static int free_name(struct tree *t, uint64_t parent, const char *name, size_t n, const char *host, const char **ret) {
        char text[NAME_BYTES_MAX + 1];
        for (unsigned number = conflict_next(name, n, host);; number++) {
                struct name_at at;
                int64_t waits = 0;
                conflict_name(name, n, host, number, text);
                int r = entry_at(t->w, parent, text, strlen(text), &at);
                if (r == -ENOENT)
                        r = db_int(t->w, &waits, "SELECT EXISTS(SELECT 1 FROM shadow_name WHERE parent=? AND name=?)", "it", (int64_t)parent, text, strlen(text));
                else if (r == 0)
                        continue;
                if (r < 0)
                        return r;
                if (!waits) {
                        *ret = arena_strndup(t->scratch, text, strlen(text));
                        return *ret ? 0 : -ENOMEM;
                }
        }
}

static int is_content(const struct orow *o) {
        return o->op.kind == OP_CONTENT || o->op.kind == OP_REPLACE;
}

/* The name that the operation wants to take away, as the server has it: if it was refused nevertheless, that is because of where it wants to go. NULL: it is not there. */
static const struct vname *source_name(const struct orow *o, const struct server_side *side) {
        for (size_t i = 0; i < side->names.n; i++) {
                const struct vname *v = &side->names.v[i];
                if (v->parent == o->p1 && v->n == o->op.name_bytes && memcmp(v->name, o->op.name, v->n) == 0)
                        return v;
        }
        return NULL;
}

static const struct vname *server_name(const struct server_side *side, uint64_t parent, const char *name, size_t n, const struct id *placement) {
        for (size_t i = 0; i < side->names.n; i++)
                if (id_equal(&side->names.v[i].placement, placement))
                        return &side->names.v[i];
        for (size_t i = 0; i < side->names.n; i++)
                if (side->names.v[i].parent == parent && side->names.v[i].n == n && memcmp(side->names.v[i].name, name, n) == 0)
                        return &side->names.v[i];
        return side->names.n == 1 ? side->names.v : NULL;
}

static int count_pend(struct tree *t, uint64_t ino) {
        return db_run(t->w, "UPDATE node SET pend=(SELECT count(*) FROM outbox WHERE ino=?1) + (SELECT count(*) FROM outbox WHERE ino2=?1 AND ino2 > 0) WHERE ino=?1", "i", (int64_t)ino);
}

static int settle_both(struct tree *t, const struct orow *o) {
        int r = tree_settle_later(t, o->ino);
        return r == 0 && o->ino2 ? tree_settle_later(t, o->ino2) : r;
}

/* Soft rows that named the dropped operation as their base name what it started from: a version the server's, a place the one that the dropped rename wanted to
 * leave. If the server has that no more, they are refused in their turn and judged by what it says then. What followed a dropped link has no place: it is refused. */
static int rebase_followers(struct tree *t, const struct orow *dropped, const struct server_side *side) {
        const uint64_t nodes[2] = { dropped->ino, dropped->op.flags & OPF_EXCHANGE ? dropped->ino2 : 0 };
        int r = 0;
        for (unsigned k = 0; k < 2 && r == 0; k++) {
                struct orow *list;
                size_t n = 0;
                if (nodes[k])
                        r = outbox_of_node(t, nodes[k], &list, &n);
                for (size_t i = 0; i < n && r == 0; i++) {
                        struct orow *o = &list[i];
                        bool any = false;
                        if (!outbox_soft(o) || o->ino != nodes[k])
                                continue;
                        if (k == 0 && id_equal(&o->op.version, &dropped->op.id)) {
                                o->op.version = side->v.version;
                                any = true;
                        }
                        if (dropped->op.kind == OP_RENAME && id_equal(&o->op.placement, &dropped->op.id)) {
                                const struct op *from = &dropped->op;
                                o->p1 = k ? dropped->p2 : dropped->p1;
                                o->op.parent = k ? from->parent2 : from->parent;
                                o->op.name = k ? from->name2 : from->name;
                                o->op.name_bytes = k ? from->name2_bytes : from->name_bytes;
                                o->op.placement = k ? from->replaced_placement : from->placement;
                                any = true;
                        }
                        if (!any)
                                continue;
                        if (o->op.kind == OP_RENAME && o->p1 == o->p2 && o->op.name_bytes == o->op.name2_bytes && memcmp(o->op.name, o->op.name2, o->op.name_bytes) == 0) {
                                r = outbox_remove(t, o); /* from its name to its name: nothing is left of it */
                                if (r == 0)
                                        r = rebase_followers(t, o, side);
                                if (r == 0 && o->ino2)
                                        r = tree_settle_later(t, o->ino2);
                                return r < 0 ? r : rebase_followers(t, dropped, side); /* the list has changed */
                        }
                        r = outbox_change(t, o);
                        if (r == 0 && o->ino2)
                                r = tree_settle_later(t, o->ino2);
                }
        }
        return r;
}

static int resolve_drop(struct tree *t, struct orow *own, struct nrow *row, struct server_side *side) {
        if (own->op.kind == OP_CREATE && !side->exists) {
                struct orow *list;
                size_t n;
                int r = row->v.kind == NODE_DIR ? entry_any(t->w, row->ino) : 0;
                if (r != 0 || row->v.gen)
                        return r < 0 ? r : -EINVAL;
                r = outbox_of_node(t, row->ino, &list, &n);
                for (size_t i = 0; i < n && r == 0; i++)
                        if (list[i].ino == row->ino)
                                r = outbox_remove(t, &list[i]);
                return r < 0 ? r : settle_both(t, own);
        }
        int r = outbox_remove(t, own);
        if (r == 0)
                r = rebase_followers(t, own, side);
        if (r == 0)
                r = settle_both(t, own);
        if (r == 0 && own->gen)
                r = apply_fate(t, &(struct tree_done){ .op = own->op.id, .ino = own->ino, .gen = own->gen, .content = side->v.content, .version = side->v.version, .fate = FATE_DROPPED });
        return r;
}

/* The temporary of a REPLACE is not where it was: it goes under its one name of today, unless somebody wrote into it or linked it; then it stays where it is. */
static int rebase_source(struct tree *t, struct orow *own) {
        struct op *op = &own->op;
        const uint64_t was = own->ino2;
        struct nrow source, parent;
        struct server_side there = { 0 };
        int r = row_get(t, t->w, was, &source);
        if (r == 0)
                r = shadow_get(t, &source, &there);
        const bool same = there.exists && !there.deleted && there.names.n == 1 && (id_is_zero(&op->replaced_version) || id_equal(&op->replaced_version, &there.v.version));
        if (r == 0 && same)
                r = row_get(t, t->w, there.names.v[0].parent, &parent);
        if (r == 0 && same) {
                own->p1 = parent.ino;
                op->parent = parent.id;
                op->name = there.names.v[0].name;
                op->name_bytes = there.names.v[0].n;
                op->placement = there.names.v[0].placement;
                return 0;
        }
        if (r < 0 && r != -ENOENT)
                return r;
        own->ino2 = own->p1 = 0;
        op->name = NULL;
        op->name_bytes = 0;
        op->source = op->parent = op->placement = op->replaced_version = (struct id){ { 0 } };
        return 0;
}

/* The same intent under a new id. What it is based on stays what the user saw: a place is all that follows the server. */
static int resolve_rebase(struct tree *t, struct orow *own, struct server_side *side) {
        struct op *op = &own->op;
        const uint64_t was = own->ino2;
        int r = 0;
        if (op->kind == OP_UNLINK) {
                const struct vname *v = server_name(side, own->p1, op->name, op->name_bytes, &op->placement);
                struct nrow parent;
                if (v && (r = row_get(t, t->w, v->parent, &parent)) == 0) {
                        own->p1 = v->parent;
                        op->parent = parent.id;
                        op->name = v->name;
                        op->name_bytes = v->n;
                        op->placement = v->placement;
                }
        }
        if (op->kind == OP_REPLACE && was)
                r = rebase_source(t, own);
        if (r == 0)
                r = outbox_reidentify(t, own);
        if (r == 0 && was != own->ino2) {
                r = count_pend(t, was);
                if (r == 0)
                        r = tree_settle_later(t, was);
        }
        return r < 0 ? r : settle_both(t, own);
}

/* A REPLACE goes: its temporary is still on the server, under the name that it had here. */
static int unlink_source(struct tree *t, const struct orow *o) {
        struct nrow temp;
        struct server_side there;
        if (o->op.kind != OP_REPLACE || !o->ino2)
                return 0;
        int r = row_get(t, t->w, o->ino2, &temp);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        if (temp.seq && !(temp.bits & NB_GONE)) {
                struct orow u = { .ino = temp.ino, .p1 = o->p1, .op = { .kind = OP_UNLINK, .node = temp.id, .parent = o->op.parent, .name = o->op.name, .name_bytes = o->op.name_bytes,
                                  .placement = o->op.placement } };
                u.op.attrs.kind = NODE_FILE;
                r = shadow_get(t, &temp, &there);
                u.op.version = id_is_zero(&o->op.replaced_version) ? there.v.version : o->op.replaced_version; /* what was seen here: an edit since is not deleted with it */
                if (r == 0)
                        r = outbox_add(t, &u);
        }
        return r < 0 ? r : tree_settle_later(t, o->ino2);
}

/* The conflict copy as a new node with a CREATE of its own, under a free name made of `name`. */
static int insert_copy(struct tree *t, struct nrow *copy, const struct nrow *row, const struct id *version, struct nrow *parent, const char *name, size_t n, const char *host) {
        const char *own_name = NULL;
        int r = free_name(t, parent->ino, name, n, host, &own_name);
        if (r == 0)
                r = conflict_mark_make(t, copy, &row->id, version, host);
        if (r == 0)
                r = row_insert(t, copy);
        if (r == 0)
                r = local_new_create(t, copy, parent, own_name, strlen(own_name));
        if (r == 0)
                r = dir_touch(t, parent->ino, t->now_ns);
        if (r == 0)
                r = tree_note(t, NOTE_ENTRY, parent->ino, own_name, strlen(own_name));
        return r < 0 ? r : tree_note(t, NOTE_LIST, parent->ino, NULL, 0);
}

/* Where a copy of the file belongs: where it is shown, else where the server has it, else in the root. A directory counts as long as its row is here, with or without a name. */
struct place { struct nrow dir; const char *name; size_t n; };
static int place_of(struct tree *t, const struct nrow *row, const struct server_side *side, struct place *ret) {
        struct vnames names = { 0 };
        int r = entries_of(t, row, &names);
        const struct vname *at = names.n ? names.v : side->names.n ? side->names.v : NULL;
        *ret = (struct place) { .name = at ? at->name : "file", .n = at ? at->n : 4 };
        if (r == 0)
                r = row_get(t, t->w, at ? at->parent : INO_ROOT, &ret->dir);
        return r == -ENOENT && at ? row_get(t, t->w, INO_ROOT, &ret->dir) : r; /* the server's directory is not here yet */
}

int tree_create_copy(struct tree *t, uint64_t ino, const char *host, struct node *ret, char ret_name[static NAME_BYTES_MAX + 1]) {
        struct nrow row, copy;
        struct server_side side;
        struct place at;
        int r = tree_begin(t);
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r == 0)
                r = row_extra(t, &row);
        if (r == 0)
                r = shadow_get(t, &row, &side);
        if (r == 0)
                r = place_of(t, &row, &side, &at);
        if (r == 0) {
                copy = (struct nrow) { .id = rng_id(t->rng), .v = { .kind = NODE_FILE, .mode = row.v.mode, .uid = row.v.uid, .gid = row.v.gid, .mtime_ns = t->now_ns, .ctime_ns = t->now_ns,
                                                                    .btime_ns = t->now_ns, .content = content_empty } };
                r = insert_copy(t, &copy, &row, &row.v.version, &at.dir, at.name, at.n, host);
        }
        struct vnames names = { 0 };
        char name[NAME_BYTES_MAX + 1];
        if (r == 0)
                r = entries_of(t, &copy, &names);
        if (r == 0)
                (void)snprintf(name, sizeof name, "%.*s", (int)names.v[0].n, names.v[0].name);
        r = tree_end(t, r);
        if (r == 0) {
                copy.pend = 1;
                row_public(t, &copy, ret);
                memcpy(ret_name, name, sizeof name);
        }
        return r;
}

static int resolve_copy(struct tree *t, struct orow *own, struct nrow *row, struct server_side *side, const char *host) {
        struct orow *list;
        const struct orow *newest = own;
        struct nrow copy = { .id = rng_id(t->rng), .v = row->v };
        struct place at;
        size_t n = 0;
        int r = outbox_of_node(t, row->ino, &list, &n);
        if (r == 0)
                r = place_of(t, row, side, &at);
        for (size_t i = 0; i < n && r == 0; i++)
                if (list[i].ino == row->ino && is_content(&list[i])) {
                        newest = &list[i];
                        r = outbox_remove(t, &list[i]);
                }
        if (r < 0)
                return r;
        copy.v.gen = copy.last_gen = newest->gen;
        copy.v.size = newest->op.content.size;
        if (!newest->gen) /* a REPLACE with bytes that are on the server already */
                copy.v.content = newest->op.content;
        r = insert_copy(t, &copy, row, &side->v.version, &at.dir, at.name, at.n, host);
        /* The newest takes its handles and the layers below it along. An older one that is not below it was written to an inode that was saved over since: its handles have nothing to do with the copy. */
        if (r == 0 && newest->gen)
                r = apply_fate(t, &(struct tree_done){ .op = newest->op.id, .ino = copy.ino, .gen = newest->gen, .fate = FATE_MOVED });
        for (size_t i = 0; i < n && r == 0; i++) {
                if (list[i].ino != row->ino || !is_content(&list[i]))
                        continue;
                if (list[i].gen && list[i].gen != newest->gen)
                        r = apply_fate(t, &(struct tree_done){ .op = list[i].op.id, .ino = copy.ino, .gen = list[i].gen, .fate = FATE_DROPPED });
                if (r == 0)
                        r = unlink_source(t, &list[i]);
        }
        return r < 0 ? r : settle_both(t, own);
}

/* The node of a CREATE is on the server, with other bytes: from before this state was rolled back, or from a clone of it. Ours become a node of their own. */
static int resolve_made_before(struct tree *t, struct orow *own, struct nrow *row, const struct server_side *side, const char *host) {
        struct nrow copy = { .id = rng_id(t->rng), .last_gen = own->gen, .v = row->v }, parent;
        copy.v.gen = own->gen;
        copy.v.size = own->op.content.size;
        if (!own->gen) /* its bytes are on the server already */
                copy.v.content = own->op.content;
        int r = outbox_remove(t, own);
        if (r == 0)
                r = row_get(t, t->w, own->p1, &parent);
        if (r == -ENOENT)
                r = row_get(t, t->w, INO_ROOT, &parent);
        if (r == 0)
                r = insert_copy(t, &copy, row, &side->v.version, &parent, own->op.name, own->op.name_bytes, host);
        if (r == 0 && own->gen)
                r = apply_fate(t, &(struct tree_done){ .op = own->op.id, .ino = copy.ino, .gen = own->gen, .fate = FATE_MOVED });
        return r < 0 ? r : settle_both(t, own);
}

/* The node that the server has under that name, hidden behind ours. -ENOENT */
static int server_occupant(struct tree *t, uint64_t parent, const char *name, size_t n, uint64_t not_ino, struct nrow *ret) {
        int64_t ino;
        int r = db_int(t->w, &ino, "SELECT s.ino FROM shadow_name s JOIN node n ON n.ino=s.ino WHERE s.parent=? AND s.name=? AND s.ino<>? AND n.bits & 8 = 0", "iti", (int64_t)parent, name, n,
                       (int64_t)not_ino);
        return r < 0 ? r : row_get(t, t->w, (uint64_t)ino, ret);
}

static int mark_row(struct tree *t, struct nrow *row, const struct id *original, const struct id *version, const char *host) {
        int r = row_extra(t, row);
        if (r == 0)
                r = conflict_mark_make(t, row, original, version, host);
        if (r == 0)
                r = row_write_extra(t, row);
        return r < 0 ? r : row_write(t, row);
}

/* Marks the node as a conflict copy of what has the name on the server. A CREATE carries the mark itself, else it is an operation of its own. */
static int mark_second(struct tree *t, struct orow *own, uint64_t parent, const char *name, size_t n, const char *host) {
        struct conflict_suffix suffix;
        struct conflict_mark mark;
        struct server_side there;
        struct nrow row, other;
        int r = server_occupant(t, parent, name, n, own->ino, &other);
        if (r == 0)
                r = shadow_get(t, &other, &there);
        if (r == 0)
                r = row_get(t, t->w, own->ino, &row);
        if (r == 0)
                r = row_extra(t, &row);
        if (r == 0 && conflict_parse(name, n, &suffix) && (r = conflict_mark_get(t, &row, &mark)) > 0) /* a copy whose conflict name is taken, too, stays a copy of the same */
                return 0;
        if (r == 0)
                r = mark_row(t, &row, &other.id, &there.v.version, host);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        if (own->op.kind != OP_CREATE)
                return local_queue_attrs(t, &row, ATTR_XATTR);
        own->extra = row.v.extra;
        own->extra_n = row.v.extra_n;
        own->op.attr_mask |= ATTR_XATTR;
        return 0;
}

static int resolve_new_name(struct tree *t, struct orow *own, const struct server_side *side, bool dir_name, const char *host) {
        struct op *op = &own->op;
        bool second = op->kind == OP_RENAME;
        uint64_t parent = second ? own->p2 : own->p1, was = own->ino2;
        const char *old = second ? op->name2 : op->name, *name;
        size_t old_n = second ? op->name2_bytes : op->name_bytes, n;
        struct orow *list;
        int r = free_name(t, parent, old, old_n, host, &name);
        if (r < 0)
                return r;
        n = strlen(name);
        if (second) {
                op->placement = source_name(own, side)->placement; /* the next refusal can be about the new name only */
                op->name2 = name;
                op->name2_bytes = n;
                own->ino2 = 0;
                own->bits &= ~(uint32_t)OB_CHILDREN;
                memset(&op->replaced, 0, sizeof(op->replaced));
                memset(&op->replaced_version, 0, sizeof(op->replaced_version));
        } else {
                op->name = name;
                op->name_bytes = n;
        }
        if (!dir_name)
                r = mark_second(t, own, parent, old, old_n, host);
        if (r == 0)
                r = outbox_reidentify(t, own);
        if (r == 0 && was && !own->ino2) {
                r = count_pend(t, was);
                if (r == 0)
                        r = tree_settle_later(t, was);
        }
        size_t count = 0;
        if (r == 0)
                r = outbox_of_node(t, own->ino, &list, &count);
        for (size_t i = 0; i < count && r == 0; i++) {
                struct orow *o = &list[i];
                if (o->ord > own->ord && o->ino == own->ino && outbox_soft(o) && o->p1 == parent && o->op.name_bytes == old_n && memcmp(o->op.name, old, old_n) == 0) {
                        o->op.name = name;
                        o->op.name_bytes = n;
                        r = outbox_change(t, o);
                        if (r == 0 && o->ino2) /* an exchange gives it to the other one */
                                r = tree_settle_later(t, o->ino2);
                }
        }
        return r < 0 ? r : settle_both(t, own);
}

/* The directory that we made is now called (parent, conflict name); if nothing moves it away from there, it changes names with the file. */
static int exchange_with_file(struct tree *t, const struct orow *own, const char *name, size_t n, const char *host) {
        struct server_side there = { 0 };
        struct nrow other, dir;
        struct orow *list;
        size_t count = 0;
        int r = outbox_of_node(t, own->ino, &list, &count);
        for (size_t i = 0; i < count && r == 0; i++)
                if (list[i].ord > own->ord && (list[i].op.kind == OP_RENAME || list[i].op.kind == OP_UNLINK))
                        return 0;
        if (r == 0)
                r = server_occupant(t, own->p1, name, n, own->ino, &other);
        if (r == 0)
                r = shadow_get(t, &other, &there);
        if (r < 0 || other.v.kind == NODE_DIR || there.deleted)
                return r == -ENOENT ? 0 : r;
        struct orow o = { .ino = own->ino, .ino2 = other.ino, .p1 = own->p1, .p2 = own->p1, .bits = OB_DIRMOVE,
                          .op = { .kind = OP_RENAME, .flags = OPF_EXCHANGE, .node = own->op.node, .name = own->op.name, .name_bytes = own->op.name_bytes, .name2 = name, .name2_bytes = n,
                                  .placement = own->op.id, .replaced = other.id, .replaced_version = there.v.version } };
        o.op.attrs.kind = NODE_DIR;
        for (size_t i = 0; i < there.names.n; i++)
                if (there.names.v[i].parent == own->p1 && there.names.v[i].n == n && memcmp(there.names.v[i].name, name, n) == 0)
                        o.op.replaced_placement = there.names.v[i].placement;
        r = row_get(t, t->w, own->p1, &dir);
        o.op.parent = o.op.parent2 = dir.id;
        if (r == 0)
                r = shadow_ensure(t, &other);
        if (r == 0)
                r = row_write(t, &other);
        if (r == 0)
                r = outbox_add(t, &o);
        if (r == 0)
                r = settle_both(t, &o);
        if (r == 0)
                r = settle_pending(t); /* the file is shown again, under the conflict name */
        if (r == 0)
                r = row_get(t, t->w, o.ino2, &other);
        if (r == 0)
                r = mark_row(t, &other, &own->op.node, &(struct id){ { 0 } }, host);
        return r < 0 ? r : local_queue_attrs(t, &other, ATTR_XATTR);
}

static int resolve_dir_name(struct tree *t, struct orow *own, const struct server_side *side, const char *host) {
        const char *name = own->op.name;
        const size_t n = own->op.name_bytes;
        if (own->op.kind != OP_CREATE || own->op.attrs.kind != NODE_DIR)
                return -EINVAL;
        int r = resolve_new_name(t, own, side, true, host);
        return r < 0 ? r : exchange_with_file(t, own, name, n, host);
}

/* ---- merge ---- */

/* Children of the node that goes move below ours; one whose name is taken here by a pending operation waits. */
static int move_children(struct tree *t, uint64_t from, uint64_t to) {
        struct name_at at;
        int r = 0;
        while (r == 0) {
                struct db_stmt *s;
                struct nrow child;
                struct vname v = { .parent = from };
                r = db_query(t->w, &s, "SELECT node,cookie,name,placement,bits FROM entry WHERE parent=? LIMIT 1", "i", (int64_t)from);
                if (r <= 0)
                        break;
                uint64_t ino = (uint64_t)db_col_int(s, 0);
                v.cookie = (uint64_t)db_col_int(s, 1);
                const char *name = db_col_text(s, 2, &v.n);
                v.name = arena_strndup(t->scratch, name, v.n);
                v.placement = db_col_id(s, 3);
                v.local = db_col_int(s, 4) & 1;
                db_reset(s);
                r = v.name ? row_get(t, t->w, ino, &child) : -ENOMEM;
                if (r == 0)
                        r = shadow_ensure(t, &child); /* its server names are moved below with all others */
                if (r == 0)
                        r = entry_remove(t, &child, &v);
                if (r == 0 && entry_at(t->w, to, v.name, v.n, &at) == -ENOENT) {
                        v.parent = to;
                        r = entry_add(t, &child, &v);
                }
                if (r == 0)
                        r = row_write(t, &child);
                if (r == 0)
                        r = tree_settle_later(t, ino);
                if (r == 0)
                        r = tree_note(t, NOTE_ENTRY, to, v.name, v.n);
        }
        if (r == 0)
                r = tree_note(t, NOTE_LIST, to, NULL, 0);
        const int64_t a = (int64_t)to, b = (int64_t)from;
        if (r == 0)
                r = db_run(t->w, "UPDATE shadow_name SET parent=? WHERE parent=?", "ii", a, b);
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET p1=? WHERE p1=? AND p1 > 0", "ii", a, b);
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET p2=? WHERE p2=? AND p2 > 0", "ii", a, b);
        return r;
}

/* A rename of the one over the other has lost its meaning now that both are one. */
static int drop_self(struct tree *t, uint64_t ino) {
        struct orow *list;
        size_t n;
        int r = outbox_of_node(t, ino, &list, &n);
        for (size_t i = 0; i < n && r == 0; i++)
                if (list[i].ino == ino && list[i].ino2 == ino)
                        r = outbox_remove(t, &list[i]);
        return r;
}

/* The server's node is here under an ino of its own: it goes, what belongs to it comes to ours. */
static int absorb(struct tree *t, uint64_t ours, uint64_t theirs, struct server_side *ret_side) {
        struct nrow row;
        struct vnames names = { 0 };
        int r = row_get(t, t->w, theirs, &row);
        if (r == 0)
                r = shadow_get(t, &row, ret_side);
        if (r == 0)
                r = entries_of(t, &row, &names);
        for (size_t i = 0; i < names.n && r == 0; i++) {
                r = entry_remove(t, &row, &names.v[i]);
                if (r == 0)
                        r = tree_note(t, NOTE_ENTRY, names.v[i].parent, names.v[i].name, names.v[i].n);
                if (r == 0)
                        r = tree_note(t, NOTE_LIST, names.v[i].parent, NULL, 0);
        }
        if (r == 0 && row.v.kind == NODE_DIR)
                r = move_children(t, theirs, ours);
        const int64_t a = (int64_t)ours, b = (int64_t)theirs;
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET ino=? WHERE ino=?", "ii", a, b);
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET ino2=? WHERE ino2=? AND ino2 > 0", "ii", a, b);
        if (r == 0)
                r = drop_self(t, ours);
        if (r == 0)
                r = db_run(t->w, "UPDATE alias SET ino=? WHERE ino=?", "ii", a, b);
        if (r == 0)
                r = shadow_drop(t, &row);
        if (r == 0)
                r = db_run(t->w, "DELETE FROM node WHERE ino=?", "i", b);
        return r;
}

/* What is pending on the merged node and was never sent names it, its place and its version as the server does. What was sent before names them as it did: the server knows
 * what a merged operation stands for. */
static int follow_merge(struct tree *t, const struct orow *own, const struct id *theirs) {
        struct server_side side;
        struct nrow row;
        struct orow *list;
        size_t n = 0;
        int r = row_get(t, t->w, own->ino, &row);
        if (r == -ENOENT) /* deleted there, and nothing pending here */
                return 0;
        if (r == 0)
                r = shadow_get(t, &row, &side);
        if (r == 0)
                r = outbox_of_node(t, own->ino, &list, &n);
        for (size_t i = 0; i < n && r == 0; i++) {
                struct orow *o = &list[i];
                if (!outbox_soft(o))
                        continue;
                if (o->ino == own->ino)
                        o->op.node = *theirs;
                else if (id_equal(&o->op.replaced, &own->op.node))
                        o->op.replaced = *theirs;
                else if (id_equal(&o->op.source, &own->op.node))
                        o->op.source = *theirs;
                for (size_t k = 0; k < side.names.n; k++) {
                        const struct vname *v = &side.names.v[k];
                        if (v->parent != own->p1 || v->n != own->op.name_bytes || memcmp(v->name, own->op.name, v->n) != 0)
                                continue;
                        if (id_equal(&o->op.placement, &own->op.id))
                                o->op.placement = v->placement;
                        if (id_equal(&o->op.replaced_placement, &own->op.id))
                                o->op.replaced_placement = v->placement;
                }
                if (id_equal(&o->op.version, &own->op.id))
                        o->op.version = side.v.version;
                if (id_equal(&o->op.replaced_version, &own->op.id))
                        o->op.replaced_version = side.v.version;
                r = outbox_change(t, o);
        }
        return r;
}

int apply_merged(struct tree *t, struct orow *own, const struct op_result *res) {
        const struct id theirs = res->merged_into;
        const struct change *current = NULL;
        struct server_side side = {0};
        struct nrow row;
        uint64_t ino = 0;
        for (size_t i = 0; i < res->n_current && !current; i++)
                if (id_equal(&res->current[i].node.id, &theirs))
                        current = &res->current[i];
        int r = row_get(t, t->w, own->ino, &row);
        if (r == 0)
                r = outbox_remove(t, own);
        if (r == 0)
                r = row_find(t, t->w, &theirs, &ino);
        if (r == 0 && ino != own->ino)
                r = absorb(t, own->ino, ino, &side);
        const struct change *rows = res->current;
        if (r == -ENOENT && current && current->node.seq <= t->cursor.seq) { /* the answer is older than what we know: that node has been deleted since */
                struct change *copy = arena_alloc(t->scratch, res->n_current * sizeof(*copy));
                if (!copy)
                        return -ENOMEM;
                memcpy(copy, res->current, res->n_current * sizeof(*copy));
                struct change *gone = &copy[current - res->current];
                gone->node.deleted = true;
                gone->node.seq = t->cursor.seq;
                gone->has_entries = false;
                rows = copy;
        }
        if (r == -ENOENT)
                r = current ? 0 : -EPROTO; /* the rows of the node that stands for ours are the answer's */
        if (r == 0 && !id_equal(&row.id, &theirs)) {
                r = db_run(t->w, "INSERT OR REPLACE INTO alias(id,ino,local) VALUES(?,?,0)", "Ii", &row.id, (int64_t)own->ino);
                if (r == 0)
                        r = row_write_id(t, own->ino, &theirs);
        }
        if (r == 0)
                r = count_pend(t, own->ino);
        if (r < 0)
                return r;
        struct settle_hint hint = { .own = true, .done_gen = own->gen };
        hint.done_version = current ? current->node.version : side.v.version;
        if (side.exists) { /* as far as it was known; the answer's rows may be newer */
                r = settle(t, own->ino, &side, &hint);
                if (r < 0)
                        return r;
        }
        r = apply_changes(t, rows, res->n_current, 0, own, &hint.done_version);
        if (r == 0)
                r = follow_merge(t, own, &theirs);
        if (r == 0)
                r = settle(t, own->ino, NULL, &hint);
        if (r == 0) {
                const struct content content = current ? current->node.content : side.v.content;
                r = apply_done(t, own, &content, &hint.done_version);
        }
        return r;
}

/* ---- all ---- */

static int resolve_in(struct tree *t, const struct op_result *res, const struct resolve *how) {
        struct orow own;
        struct nrow row;
        struct server_side side;
        int r = outbox_find(t, t->w, t->scratch, &res->op, &own);
        if (r < 0 && r != -ENOENT)
                return r;
        if (r == 0 && how->kind == RESOLVE_MERGED)
                return apply_merged(t, &own, res);
        bool pending = r == 0;
        r = apply_changes(t, res->current, res->n_current, 0, NULL, NULL);
        if (r == 0)
                r = settle_pending(t);
        if (r < 0 || !pending) /* an event was faster */
                return r;
        r = outbox_find(t, t->w, t->scratch, &res->op, &own);
        if (r == 0)
                r = row_get(t, t->w, own.ino, &row);
        if (r == 0)
                r = row_extra(t, &row);
        if (r == 0)
                r = shadow_get(t, &row, &side);
        if (r < 0)
                return r;
        switch (how->kind) {
        case RESOLVE_DROP:
                return resolve_drop(t, &own, &row, &side);
        case RESOLVE_REBASE:
                return resolve_rebase(t, &own, &side);
        case RESOLVE_CONFLICT_COPY:
        case RESOLVE_NEW_NAME:
                if (own.op.kind == OP_CREATE && res->code == RES_ID_REUSED)
                        return resolve_made_before(t, &own, &row, &side, how->host ? how->host : "local");
                if (is_content(&own))
                        return resolve_copy(t, &own, &row, &side, how->host ? how->host : "local");
                if (own.op.kind != OP_CREATE && own.op.kind != OP_LINK && own.op.kind != OP_RENAME)
                        return -EINVAL;
                if (own.op.kind == OP_RENAME && !source_name(&own, &side)) /* another rename was first */
                        return resolve_drop(t, &own, &row, &side);
                return resolve_new_name(t, &own, &side, false, how->host ? how->host : "local");
        case RESOLVE_DIR_NAME:
                return resolve_dir_name(t, &own, &side, how->host ? how->host : "local");
        case RESOLVE_REVIVE:
                if (own.op.kind == OP_RENAME && side.deleted) /* content brings a node back, a rename does not; the one behind it will */
                        return resolve_drop(t, &own, &row, &side);
                own.op.flags |= OPF_REVIVE;
                for (size_t i = 0; i < res->n_current && is_content(&own); i++)
                        if (id_equal(&res->current[i].node.id, &row.id) && res->current[i].node.deleted)
                                own.op.version = res->current[i].node.version;
                r = outbox_reidentify(t, &own);
                return r < 0 ? r : settle_both(t, &own);
        case RESOLVE_MERGED:
                break;
        }
        return -EINVAL;
}

int tree_resolve(struct tree *t, const struct op_result *res, const struct resolve *how, bool (*is_open)(void *arg, uint64_t ino), void *arg, struct arena *a,
                 struct tree_applied *ret) {
        struct tree_applied out;
        int r = apply_begin(t, is_open, arg, a, &out);
        if (r == 0)
                r = resolve_in(t, res, how);
        r = apply_end(t, r);
        if (r == 0)
                *ret = out;
        return r;
}
