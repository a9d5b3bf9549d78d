/* SPDX-License-Identifier: Apache-2.0 */
/* tree_apply.c: rows of the server come in: events, answers, the rows of a refusal.
 *
 * A row of a node is applied if its seq is greater than the one held; a list of names if the seq at which it was true is greater than that of the held list (an event's
 * own seq; for rows of a refusal the greatest seq in them). So replaying any event, prefix or suffix changes nothing. A node that is not here is made,
 * unless a tombstone says that it was deleted later, or the rows are older than the cursor (then they tell of something that has ended since).
 *
 * An event of an operation of ours completes its outbox row, before or after the answer, or instead of it: whichever comes first does it. But if this state was rolled back or cloned, another
 * life of it may have sent the operation, and the row may say something else by now. So an event counts as ours only if the row was sent and says what the event says; else it is
 * applied like anybody's, the row stays, and the server judges it: the answer to what was sent before is the first one, to something else ID_REUSED.
 *
 * A merge (mkdir/mkdir) is told by its answer only. What we made in our directory is in the other one by then, and its events name that one: they wait for the answer (tree_apply_ready), because
 * the other directory is not shown as long as ours has the name.
 *
 * A generation may be carried by two operations: a temporary that was saved over a file while its CREATE (or CONTENT) was on its way. The first answer makes bytes known to the server and
 * changes nothing of what the file shows: its incarnation stays, whoever has it open goes on (adopt_content), and what is based on the save stays based on it (file_commit.c).
 *
 * Order inside one event does not matter: nodes first, then deletions, then names; collisions are tree_settle.c's. A list of names that names a parent which is not
 * here yet (answers run ahead of events) is left for its event. */
#include "tree_priv.h"

#include <assert.h>

/* ---- brackets ---- */

int apply_begin(struct tree *t, bool (*is_open)(void *arg, uint64_t ino), void *arg, struct arena *a, struct tree_applied *out) {
        int r = tree_begin(t);
        tree_ask_by(t, is_open, arg);
        t->out_arena = a;
        t->out = out;
        t->done_room = 0;
        *out = (struct tree_applied){0};
        return r;
}

int apply_end(struct tree *t, int r) {
        struct tree_applied *out = t->out;
        t->out = NULL;
        t->out_arena = NULL;
        r = tree_end(t, r);
        if (r < 0)
                *out = (struct tree_applied){0};
        return r;
}

static void *grow(struct arena *a, void *p, size_t n, size_t *room, size_t size) {
        if (n < *room)
                return p;
        size_t more = *room ? *room * 2 : 8;
        void *q = arena_alloc(a, more * size);
        if (q && n)
                memcpy(q, p, n * size);
        if (q)
                *room = more;
        return q;
}

int apply_done(struct tree *t, const struct orow *o, const struct content *content, const struct id *version) {
        return apply_fate(t, &(struct tree_done){ .op = o->op.id, .ino = o->ino, .gen = o->gen, .content = *content, .version = *version, .fate = FATE_COMMITTED });
}

int apply_fate(struct tree *t, const struct tree_done *done) {
        if (!t->out)
                return 0;
        struct tree_done *p = grow(t->out_arena, t->out->done, t->out->n_done, &t->done_room, sizeof(*p));
        if (!p)
                return -ENOMEM;
        t->out->done = p;
        p[t->out->n_done++] = *done;
        return 0;
}

/* ---- rows ---- */

/* Entries of the wire as names in local numbers. -ENOENT: a parent is not here. */
static int names_from(struct tree *t, const struct change *c, struct vnames *ret) {
        struct vnames list = { .v = arena_alloc(t->scratch, MAX(c->n_entries, 1u) * sizeof(struct vname)) };
        struct id last = {0};
        uint64_t ino = 0;
        if (!list.v)
                return -ENOMEM;
        for (size_t i = 0; i < c->n_entries; i++) {
                const struct entry_row *e = &c->entries[i];
                if (!ino || !id_equal(&last, &e->parent)) {
                        int r = row_find(t, t->w, &e->parent, &ino);
                        if (r < 0)
                                return r;
                        last = e->parent;
                }
                list.v[list.n++] = (struct vname){ .parent = ino, .name = e->name, .n = e->name_bytes, .placement = e->placement };
        }
        *ret = list;
        return 0;
}

static uint64_t list_seq_of(const struct change *c, uint64_t list_seq) {
        uint64_t seq = c->node.seq;
        if (list_seq)
                return list_seq;
        for (size_t i = 0; i < c->n_entries; i++)
                seq = MAX(seq, c->entries[i].seq);
        return seq;
}

/* Makes the row of an unknown node, without names. */
static int introduce(struct tree *t, const struct change *c, bool event) {
        uint64_t ino, tomb;
        int r = row_find(t, t->w, &c->node.id, &ino);
        if (r != -ENOENT)
                return r;
        r = tomb_get(t, &c->node.id, &tomb, NULL);
        if (r < 0 || tomb >= c->node.seq || (!event && c->node.seq <= t->cursor.seq))
                return r;
        if (c->node.kind < NODE_FILE || c->node.kind > NODE_RESERVED)
                return -EPROTO;
        struct nrow row = { .id = c->node.id, .nlink = c->node.kind == NODE_DIR ? 2 : 0 };
        r = vrow_from_node(t->scratch, &c->node, &row.v);
        return r < 0 ? r : row_insert(t, &row);
}

static int apply_one(struct tree *t, const struct change *c, uint64_t list_seq, const struct settle_hint *hint) {
        struct nrow row;
        struct server_side side;
        uint64_t ino, names_seq = list_seq_of(c, list_seq);
        int r = row_find(t, t->w, &c->node.id, &ino);
        if (r == -ENOENT) /* not wanted; a deletion is remembered until the cursor passes it */
                return c->node.deleted && c->node.seq > t->cursor.seq
                               ? db_run(t->w, "INSERT INTO tomb(id,seq,local) VALUES(?1,?2,0) ON CONFLICT(id) DO UPDATE SET seq=max(seq,?2)", "Ii", &c->node.id, (int64_t)c->node.seq)
                               : 0;
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r < 0)
                return r;
        bool newer = c->node.seq > row.seq, names_newer = c->has_entries && !c->node.deleted && names_seq > row.nseq;
        if (!newer && !names_newer)
                return hint->own && row.pend ? tree_settle_later(t, ino) : 0;
        r = shadow_get(t, &row, &side);
        if (r < 0)
                return r;
        if (row.seq == 0 && ino != INO_ROOT)
                side = (struct server_side){ .exists = newer };
        if (newer) {
                side.seq = c->node.seq;
                side.deleted = c->node.deleted;
                side.exists = true;
                if (!c->node.deleted)
                        r = vrow_from_node(t->scratch, &c->node, &side.v);
                else if (row.seq == 0)
                        side.v = row.v;
                if (c->node.deleted) /* it has no names any more: an older event that is still to come must not give it one */
                        side.nseq = MAX(side.nseq, c->node.seq);
        }
        if (r == 0 && names_newer) {
                struct vnames names;
                r = names_from(t, c, &names);
                if (r == 0) {
                        side.names = names;
                        side.nseq = names_seq;
                } else if (r == -ENOENT) {
                        r = 0;
                }
        }
        if (r == 0)
                r = settle(t, ino, &side, hint);
        if (t->out)
                t->out->changed_nodes++;
        return r;
}

int apply_changes(struct tree *t, const struct change *changes, size_t n, uint64_t list_seq, const struct orow *own, const struct id *own_version) {
        struct settle_hint hint = { .own = own != NULL, .done_gen = own ? own->gen : 0, };
        bool event = list_seq > t->cursor.seq;
        int r = 0;
        if (own_version)
                hint.done_version = *own_version;
        for (size_t i = 0; i < n && r == 0; i++)
                if (!changes[i].node.deleted)
                        r = introduce(t, &changes[i], event);
        for (size_t i = 0; i < n && r == 0; i++)
                if (changes[i].node.deleted)
                        r = apply_one(t, &changes[i], list_seq, &hint);
        for (size_t i = 0; i < n && r == 0; i++)
                if (!changes[i].node.deleted)
                        r = apply_one(t, &changes[i], list_seq, &hint);
        return r;
}

/* A REPLACE whose source has just been answered carries the same generation: its bytes are on the server now, and no byte of what it shows has changed. */
static int adopt_content(struct tree *t, const struct orow *own, const struct content *content) {
        struct orow *list;
        size_t n = 0;
        struct nrow row;
        int r = own->op.kind == OP_CREATE || own->op.kind == OP_CONTENT ? row_get(t, t->w, own->ino, &row) : -ENOENT;
        if (r == 0 && row.pend)
                r = outbox_of_node(t, own->ino, &list, &n);
        for (size_t i = 0; i < n && r == 0; i++)
                if (list[i].op.kind == OP_REPLACE && list[i].gen == own->gen && outbox_soft(&list[i])) {
                        const struct settle_hint same = { .done_gen = own->gen, .done_version = list[i].op.id };
                        list[i].gen = 0;
                        list[i].op.content = *content;
                        r = outbox_change(t, &list[i]);
                        if (r == 0)
                                r = settle(t, list[i].ino, NULL, &same);
                        if (r == 0)
                                r = tree_settle_later(t, list[i].ino); /* its names, when the others have theirs */
                }
        return r == -ENOENT ? 0 : r;
}

/* Ends an operation of ours as accepted, with the rows after it. */
static int complete(struct tree *t, struct orow *own, const struct change *changes, size_t n, uint64_t seq) {
        const struct node_row *node = NULL;
        struct nrow row = { .id = own->op.node };
        int r = row_get(t, t->w, own->ino, &row); /* a merge may have given it another id since */
        if (r < 0 && r != -ENOENT)
                return r;
        for (size_t i = 0; i < n && !node; i++)
                if (id_equal(&changes[i].node.id, &row.id))
                        node = &changes[i].node;
        r = outbox_remove(t, own);
        if (r == 0)
                r = apply_changes(t, changes, n, seq, own, &own->op.id);
        if (r == 0)
                r = tree_settle_later(t, own->ino);
        if (r == 0 && own->ino2)
                r = tree_settle_later(t, own->ino2);
        if (r < 0 || !own->gen)
                return r < 0 ? r : apply_done(t, own, &own->op.content, &own->op.id);
        if (node && !node->deleted && id_equal(&node->version, &own->op.id)) {
                r = adopt_content(t, own, &node->content);
                return r < 0 ? r : apply_done(t, own, &node->content, &node->version);
        }
        /* replaced on the server since: these bytes are history */
        return apply_fate(t, &(struct tree_done){ .op = own->op.id, .ino = own->ino, .gen = own->gen, .fate = FATE_DROPPED });
}

static bool is_ours(const struct orow *own, const struct event *e) {
        const struct op *op = &own->op;
        const struct change *c = NULL;
        for (size_t i = 0; i < e->n_changes && !c; i++)
                if (id_equal(&e->changes[i].node.id, &op->node))
                        c = &e->changes[i];
        if (outbox_soft(own))
                return false;
        if (!c || c->node.deleted)
                return true;
        const struct node_row *n = &c->node;
        const bool content = op->kind == OP_CREATE || op->kind == OP_CONTENT || op->kind == OP_REPLACE;
        if (content && n->kind == NODE_FILE && n->content.size != op->content.size)
                return false;
        if ((op->attr_mask & ATTR_MTIME) && n->mtime_ns != op->attrs.mtime_ns)
                return false;
        if ((op->attr_mask & ATTR_MODE) && n->mode != op->attrs.mode)
                return false;
        const char *name = op->kind == OP_CREATE || op->kind == OP_LINK ? op->name : op->kind == OP_RENAME ? op->name2 : NULL;
        const size_t bytes = op->kind == OP_RENAME ? op->name2_bytes : op->name_bytes;
        for (size_t i = 0; name && i < c->n_entries; i++)
                if (id_equal(&c->entries[i].placement, &op->id))
                        return c->entries[i].name_bytes == bytes && memcmp(c->entries[i].name, name, bytes) == 0;
        return true;
}

static int cursor_write(struct tree *t, const char *key, const struct cursor *c) {
        uint8_t b[ID_BYTES + 16];
        memcpy(b, c->epoch.b, ID_BYTES);
        for (unsigned i = 0; i < 8; i++)
                b[ID_BYTES + i] = (uint8_t)(c->seq >> (8 * i));
        memcpy(b + ID_BYTES + 8, c->mark, 8);
        return db_run(t->w, "INSERT INTO setting(key,value) VALUES(?1,?2) ON CONFLICT(key) DO UPDATE SET value=?2", "tb", key, strlen(key), b, sizeof(b));
}

int apply_cursor(struct tree *t, const struct cursor *c) {
        int r = cursor_write(t, ".cursor", c);
        if (r == 0)
                r = db_run(t->w, "DELETE FROM tomb WHERE seq > 0 AND seq <= ? AND local = 0", "i", (int64_t)c->seq);
        if (r == 0)
                r = db_run(t->w, "UPDATE tomb SET seq = 0 WHERE seq > 0 AND seq <= ?", "i", (int64_t)c->seq);
        return r;
}

/* ---- public ---- */

int tree_apply(struct tree *t, const struct event *events, size_t n, const struct cursor *upto, bool (*is_open)(void *arg, uint64_t ino), void *arg, struct arena *a,
               struct tree_applied *ret) {
        struct tree_applied out;
        int r = apply_begin(t, is_open, arg, a, &out);
        for (size_t i = 0; i < n && r == 0; i++) {
                const struct event *e = &events[i];
                struct orow own;
                arena_reset(t->scratch);
                if (e->seq <= t->cursor.seq)
                        continue;
                r = id_is_zero(&e->op) ? -ENOENT : outbox_find(t, t->w, t->scratch, &e->op, &own);
                if (r == 0 && !is_ours(&own, e)) /* the answer will tell */
                        r = -ENOENT;
                if (r == 0)
                        r = complete(t, &own, e->changes, e->n_changes, e->seq);
                else if (r == -ENOENT)
                        r = apply_changes(t, e->changes, e->n_changes, e->seq, NULL, NULL);
                if (r == 0)
                        r = settle_pending(t);
        }
        bool forward = upto && (upto->seq >= t->cursor.seq || !id_equal(&upto->epoch, &t->cursor.epoch));
        if (r == 0 && forward)
                r = apply_cursor(t, upto);
        if (r == 0 && forward)
                t->cursor_next = *upto;
        r = apply_end(t, r);
        if (r < 0)
                return r;
        counter_add(t->counters, events_applied, n);
        *ret = out;
        return 0;
}

/* 1: the place that this event gives to what we made is in a directory that ours has become, as the answer to ours will say. */
static int waits_for_merge(struct tree *t, struct db *db, const struct event *e, struct arena *a) {
        struct orow own;
        const struct change *c = NULL;
        const struct entry_row *at = NULL;
        uint64_t ours, theirs;
        int64_t made;
        int r = id_is_zero(&e->op) ? -ENOENT : outbox_find(t, db, a, &e->op, &own);
        if (r < 0 || !is_ours(&own, e))
                return r == -ENOENT ? 0 : r;
        for (size_t i = 0; i < e->n_changes && !at; i++) {
                c = &e->changes[i];
                for (size_t k = 0; k < c->n_entries && !at; k++)
                        at = id_equal(&c->entries[k].placement, &own.op.id) ? &c->entries[k] : NULL;
        }
        const struct id *parent = own.op.kind == OP_RENAME ? &own.op.parent2 : &own.op.parent;
        if (!at || id_equal(&at->parent, parent))
                return 0;
        r = row_find(t, db, parent, &ours);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        r = row_find(t, db, &at->parent, &theirs);
        if (r < 0 && r != -ENOENT)
                return r;
        if (r == 0 && ours == theirs)
                return 0;
        r = db_int(db, &made, "SELECT EXISTS(SELECT 1 FROM outbox WHERE ino=? AND kind=?)", "ii", (int64_t)ours, (int64_t)OP_CREATE);
        return r < 0 ? r : made != 0;
}

int tree_apply_ready(struct tree *t, const struct event *events, size_t n, struct arena *a, size_t *ret_n) {
        TREE_READ(rd, t);
        int64_t any;
        int r = db_int(rd.db, &any, "SELECT EXISTS(SELECT 1 FROM outbox)", "");
        size_t k = any ? 0 : n;
        for (; k < n && r >= 0; k++) {
                r = waits_for_merge(t, rd.db, &events[k], a);
                if (r > 0)
                        break;
        }
        if (r < 0)
                return r;
        *ret_n = k;
        return 0;
}

/* What the server says is in its log, ahead of the cursor, is kept with the rows that say so: a server that goes back behind it while we are down is found out all the same. */
static int answered(struct tree *t, const struct op_result *res) {
        static const uint8_t none[sizeof res->mark];
        struct cursor c = { .epoch = t->cursor.epoch, .seq = res->seq };
        if (res->code != RES_OK || id_is_zero(&c.epoch) || c.seq <= t->cursor.seq || memcmp(res->mark, none, sizeof none) == 0)
                return 0;
        if (id_equal(&t->answered.epoch, &c.epoch) && t->answered.seq >= c.seq)
                return 0;
        memcpy(c.mark, res->mark, sizeof c.mark);
        t->answered_next = c;
        return cursor_write(t, ".answered", &c);
}

int tree_accepted(struct tree *t, const struct op_result *res, bool (*is_open)(void *arg, uint64_t ino), void *arg, struct arena *a, struct tree_applied *ret) {
        struct tree_applied out;
        struct orow own;
        int r = apply_begin(t, is_open, arg, a, &out);
        if (r == 0)
                r = outbox_find(t, t->w, t->scratch, &res->op, &own);
        if (r == 0)
                r = res->code == RES_MERGED ? apply_merged(t, &own, res) : complete(t, &own, res->current, res->n_current, res->seq);
        else if (r == -ENOENT)
                r = apply_changes(t, res->current, res->n_current, res->seq, NULL, NULL);
        if (r == 0)
                r = answered(t, res);
        r = apply_end(t, r);
        if (r == 0)
                *ret = out;
        return r;
}
