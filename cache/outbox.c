/* SPDX-License-Identifier: Apache-2.0 */
/* outbox.c: the durable queue of local changes: rows, their order and their states. outbox_next.c decides what may go now.
 *
 *   state    from            what
 *   QUEUED   a local verb    soft: later changes may be merged in, or take it away. With OB_FROZEN (was sent once, the answer is not known): only sent again
 *   SENT     QUEUED, PARKED  on its way; never changed
 *   PARKED   SENT, QUEUED    failed; tried again at next_try_ns; blocks only what depends on it
 *   (gone)   any             accepted, merged, dropped; or cancelled while soft
 *
 * Predecessors. When a row is queued its predecessors among the pending rows are found by index and written to table dep:
 *   - the latest operation on the same node (as the node that changes, or as the one replaced, exchanged or used as source)
 *   - the CREATE of each parent that it names
 *   - the latest operation that names the same (parent, name), on either side
 *   - for a directory's rename: the latest rename of a directory (cycles depend on their order)
 * `nwait` counts the predecessors that were not sent: rows with nwait = 0 are found by a partial index, so the length of the queue costs nothing. Two more
 * rules have too many predecessors for a table and are computed when the row is about to go: OB_BARRIER and OB_CHILDREN (outbox_next.c).
 *
 * A predecessor always has a smaller order. A row that is changed so that it needs a later one gets a new place at the end, if nothing depends on it, by the table or because it takes a name
 * out of a directory that is removed later (OB_CHILDREN); else the caller queues another row instead.
 *
 * Upload is never starved: `handed` remembers since when the engine has a row in hand; a content in hand for PROTECT_MS is not replaced by a newer one any more, which
 * then waits behind it (and is replaced in turn). What is queued instead of a content that goes (a save by rename, whose operation is another one) has been in hand since that one was: what counts
 * is for how long a file has not got there, not how it is saved. So has a new file whose place a content in hand has left (a save that moves the old file aside, makes it anew and deletes the
 * old one): the place is remembered until then. A new file that is protected stays at its place; the moves that follow are operations of their own. The engine reads rows again after it marked them, so a change in between is seen. */
#include "tree_priv.h"

#include <assert.h>
#include <stdio.h>

#include "base/digest.h"

#define HANDED_MAX 65536u

/* ---- rows ---- */

static const char *copy_text(struct db_stmt *s, int col, struct arena *a, size_t *ret_n) {
        size_t n;
        const char *p = db_col_text(s, col, &n);
        *ret_n = p ? n : 0;
        return p ? arena_strndup(a, p, n) : NULL;
}

int outbox_row_read(struct db_stmt *s, int c, struct arena *a, struct orow *ret) {
        struct orow o = { .ord = (uint64_t)db_col_int(s, c), .state = (enum outbox_state)db_col_int(s, c + 3), .bits = (uint32_t)db_col_int(s, c + 4),
                          .ino = (uint64_t)db_col_int(s, c + 5), .ino2 = (uint64_t)db_col_int(s, c + 6), .p1 = (uint64_t)db_col_int(s, c + 7),
                          .p2 = (uint64_t)db_col_int(s, c + 9), .gen = (uint64_t)db_col_int(s, c + 11), .queued_ns = db_col_int(s, c + 13),
                          .nwait = (uint64_t)db_col_int(s, c + 14), .class = (enum out_class)db_col_int(s, c + 15), .rev = (uint32_t)db_col_int(s, c + 16),
                          .attempts = (uint32_t)db_col_int(s, c + 17), .error = (int)db_col_int(s, c + 18), .next_try_ns = db_col_int(s, c + 19) };
        o.op.id = db_col_id(s, c + 1);
        o.op.kind = (enum op_kind)db_col_int(s, c + 2);
        o.op.name = copy_text(s, c + 8, a, &o.op.name_bytes);
        o.op.name2 = copy_text(s, c + 10, a, &o.op.name2_bytes);
        const char *reason = db_col_text(s, c + 20, NULL);
        (void)snprintf(o.reason, sizeof(o.reason), "%s", reason ? reason : "");
        size_t n;
        const void *p = db_col_blob(s, c + 12, &n);
        int r = op_unpack(a, p, n, &o);
        if (r == 0 && ((o.p1 && !o.op.name) || (o.p2 && !o.op.name2)))
                r = db_col_null(s, o.p1 && !o.op.name ? c + 8 : c + 10) ? -EBADMSG : -ENOMEM;
        if (r == 0)
                *ret = o;
        return r;
}

/* Reads all rows of a query that has had its first step (r). */
static int read_list(struct db_stmt *s, int r, struct arena *a, struct orow **ret, size_t *ret_n) {
        struct orow *list = NULL;
        size_t n = 0, room = 0;
        while (r > 0) {
                if (n == room) {
                        size_t more = room ? room * 2 : 4;
                        struct orow *p = arena_alloc(a, more * sizeof(*p));
                        if (!p) {
                                db_reset(s);
                                return -ENOMEM;
                        }
                        if (n)
                                memcpy(p, list, n * sizeof(*p));
                        list = p;
                        room = more;
                }
                r = outbox_row_read(s, 0, a, &list[n]);
                if (r < 0) {
                        db_reset(s);
                        return r;
                }
                n++;
                r = db_step(s);
        }
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = n;
        return 0;
}

int outbox_of_node(struct tree *t, uint64_t ino, struct orow **ret, size_t *ret_n) {
        struct db_stmt *s;
        int r = db_query(t->w, &s, "SELECT " OUT_COLS " FROM outbox o WHERE o.ord IN (SELECT ord FROM outbox WHERE ino=?1 UNION SELECT ord FROM outbox WHERE ino2=?1 AND ino2 > 0)"
                                   " ORDER BY o.ord", "i", (int64_t)ino);
        return read_list(s, r, t->scratch, ret, ret_n);
}

int outbox_find(struct tree *t, struct db *db, struct arena *a, const struct id *id, struct orow *ret) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(db, &s, "SELECT " OUT_COLS " FROM outbox o WHERE o.id=?", "I", id);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        return outbox_row_read(s, 0, a, ret);
}

int outbox_create_of(struct tree *t, uint64_t ino, struct orow *ret) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(t->w, &s, "SELECT " OUT_COLS " FROM outbox o WHERE o.ino=? AND o.kind=1", "i", (int64_t)ino);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        return outbox_row_read(s, 0, t->scratch, ret);
}

int outbox_touches_dir(struct tree *t, uint64_t dir) {
        int64_t v;
        int r = db_int(t->w, &v, "SELECT EXISTS(SELECT 1 FROM outbox WHERE p1=?1 AND p1 > 0) OR EXISTS(SELECT 1 FROM outbox WHERE p2=?1 AND p2 > 0)", "i", (int64_t)dir);
        return r < 0 ? r : (int)v;
}

int outbox_last_at(struct tree *t, uint64_t parent, const char *name, size_t n, uint64_t before, uint64_t *ret_ord) {
        int64_t v;
        int r = db_int(t->w, &v, "SELECT max((SELECT ifnull(max(ord),0) FROM outbox WHERE p1=?1 AND n1=?2 AND p1 > 0 AND ord<?3),"
                                 "           (SELECT ifnull(max(ord),0) FROM outbox WHERE p2=?1 AND n2=?2 AND p2 > 0 AND ord<?3))", "iti", (int64_t)parent, name, n, (int64_t)before);
        if (r == 0)
                *ret_ord = (uint64_t)v;
        return r;
}

int outbox_has_dependents(struct tree *t, const struct orow *o) {
        int64_t v;
        int r = db_int(t->w, &v, "SELECT EXISTS(SELECT 1 FROM dep WHERE pred=?1) OR EXISTS(SELECT 1 FROM outbox WHERE ino=?2 AND ord>?1 AND bits & 8)"
                                 " OR EXISTS(SELECT 1 FROM outbox WHERE ino2=?2 AND ino2 > 0 AND ord>?1 AND bits & 8)", "ii", (int64_t)o->ord, (int64_t)o->p1);
        return r < 0 ? r : (int)v;
}

/* ---- predecessors ---- */

static int add_dep(struct tree *t, struct orow *o, uint64_t pred) {
        if (pred == 0 || pred >= o->ord) /* a row that changes may find later ones at its places: they follow it */
                return 0;
        int64_t state;
        int r = db_int(t->w, &state, "SELECT state FROM outbox WHERE ord=?", "i", (int64_t)pred);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        r = db_run(t->w, "INSERT OR IGNORE INTO dep(succ,pred) VALUES(?,?)", "ii", (int64_t)o->ord, (int64_t)pred);
        if (r == 0 && db_changes(t->w) && state != OUT_SENT)
                o->nwait++;
        return r;
}

static int last_of_node(struct tree *t, uint64_t ino, uint64_t before, uint64_t *ret) {
        int64_t v;
        int r = db_int(t->w, &v, "SELECT max((SELECT ifnull(max(ord),0) FROM outbox WHERE ino=?1 AND ord<?2), (SELECT ifnull(max(ord),0) FROM outbox WHERE ino2=?1 AND ino2 > 0 AND ord<?2))",
                       "ii", (int64_t)ino, (int64_t)before);
        if (r == 0)
                *ret = (uint64_t)v;
        return r;
}

static int depend_on_parent(struct tree *t, struct orow *o, uint64_t parent) {
        int64_t v;
        if (!parent)
                return 0;
        int r = db_int(t->w, &v, "SELECT ord FROM outbox WHERE ino=? AND kind=1", "i", (int64_t)parent);
        return r == -ENOENT ? 0 : r < 0 ? r : add_dep(t, o, (uint64_t)v);
}

static int depend_on_name(struct tree *t, struct orow *o, uint64_t parent, const char *name, size_t n) {
        if (!parent)
                return 0;
        int64_t v; /* earlier ones only: a row that is changed later (outbox_change) may have successors at its name */
        int r = db_int(t->w, &v, "SELECT max((SELECT ifnull(max(ord),0) FROM outbox WHERE p1=?1 AND n1=?2 AND p1 > 0 AND ord<?3),"
                                 "           (SELECT ifnull(max(ord),0) FROM outbox WHERE p2=?1 AND n2=?2 AND p2 > 0 AND ord<?3))", "iti", (int64_t)parent, name, n, (int64_t)o->ord);
        return r < 0 ? r : add_dep(t, o, (uint64_t)v);
}

static int find_deps(struct tree *t, struct orow *o) {
        uint64_t ord = 0;
        int r = 0;
        if (o->op.kind != OP_CREATE)
                r = last_of_node(t, o->ino, o->ord, &ord);
        if (r == 0)
                r = add_dep(t, o, ord);
        if (r == 0 && o->ino2 && (r = last_of_node(t, o->ino2, o->ord, &ord)) == 0)
                r = add_dep(t, o, ord);
        if (r == 0)
                r = depend_on_parent(t, o, o->p1);
        if (r == 0)
                r = depend_on_parent(t, o, o->p2);
        if (r == 0)
                r = depend_on_name(t, o, o->p1, o->op.name, o->op.name_bytes);
        if (r == 0)
                r = depend_on_name(t, o, o->p2, o->op.name2, o->op.name2_bytes);
        if (r == 0 && (o->bits & OB_DIRMOVE)) {
                int64_t v;
                r = db_int(t->w, &v, "SELECT ifnull(max(ord),0) FROM outbox WHERE kind = 6 AND bits >= 16 AND ord<?", "i", (int64_t)o->ord);
                if (r == 0)
                        r = add_dep(t, o, (uint64_t)v);
        }
        return r;
}

static int release_dependents(struct tree *t, uint64_t ord, int by) {
        return by > 0 ? db_run(t->w, "UPDATE outbox SET nwait=nwait+1 WHERE ord IN (SELECT succ FROM dep WHERE pred=?)", "i", (int64_t)ord)
                      : db_run(t->w, "UPDATE outbox SET nwait=nwait-1 WHERE ord IN (SELECT succ FROM dep WHERE pred=?)", "i", (int64_t)ord);
}

/* ---- changes ---- */

void outbox_classify(struct orow *o) {
        const struct op *op = &o->op;
        o->bits &= ~(uint32_t)OB_BARRIER;
        bool dir = op->attrs.kind == NODE_DIR, free_name = op->kind == OP_CREATE || op->kind == OP_RENAME;
        if ((op->kind == OP_UNLINK && !dir) || op->kind == OP_REPLACE || (op->kind == OP_RENAME && !id_is_zero(&op->replaced) && !(op->flags & OPF_EXCHANGE)))
                o->bits |= OB_BARRIER;
        o->class = o->bits & OB_BARRIER ? CLASS_BARRIER : CLASS_PLAIN;
        const bool no_bytes = op->attrs.kind == NODE_FILE && !o->gen && (op->kind == OP_CREATE || (op->kind == OP_REPLACE && !o->ino2 && op->content.size == 0)); /* most often they are on their way */
        if (!(o->bits & OB_FROZEN) && (no_bytes || (o->class == CLASS_PLAIN && free_name && (o->bits & OB_TEMP))))
                o->class = CLASS_HOLD;
}

int outbox_mark_temporary(struct tree *t, struct orow *o) {
        const struct op *op = &o->op;
        int r = 0;
        if (op->kind == OP_CREATE && op->attrs.kind == NODE_FILE)
                r = temporary_here(t, o->p1, op->name, op->name_bytes);
        else if (op->kind == OP_CREATE && op->attrs.kind != NODE_DIR)
                r = temporary_name(op->name, op->name_bytes);
        else if (op->kind == OP_RENAME && op->attrs.kind != NODE_DIR && !(op->flags & OPF_EXCHANGE)) /* on its way out, most often */
                r = temporary_name(op->name2, op->name2_bytes);
        if (r > 0 && !(o->bits & OB_TEMP))
                o->queued_ns = t->now_ns; /* however long it waited under another name */
        o->bits = r > 0 ? o->bits | OB_TEMP : o->bits & ~(uint32_t)OB_TEMP;
        return r < 0 ? r : 0;
}

static int insert_row(struct tree *t, struct orow *o) {
        const uint8_t *body;
        size_t n;
        int r = op_pack(t->scratch, o, &body, &n);
        if (r < 0)
                return r;
        return db_run(t->w, "INSERT INTO outbox(ord,id,kind,state,bits,ino,ino2,p1,n1,p2,n2,gen,body,queued_ns,nwait,class,rev,attempts,error,next_try_ns,reason)"
                            " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", "iIiiiiiititibiiiiiiit",
                      (int64_t)o->ord, &o->op.id, (int64_t)o->op.kind, (int64_t)o->state, (int64_t)o->bits, (int64_t)o->ino, (int64_t)o->ino2, (int64_t)o->p1, o->op.name,
                      o->op.name_bytes, (int64_t)o->p2, o->op.name2, o->op.name2_bytes, (int64_t)o->gen, body, n, o->queued_ns, (int64_t)o->nwait, (int64_t)o->class,
                      (int64_t)o->rev, (int64_t)o->attempts, (int64_t)o->error, o->next_try_ns, o->reason, strlen(o->reason));
}

int outbox_add(struct tree *t, struct orow *o) {
        int r = tree_number(t, NUMBER_ORDER, &o->ord);
        if (r < 0)
                return r;
        if (id_is_zero(&o->op.id))
                o->op.id = rng_id(t->rng);
        o->queued_ns = t->now_ns;
        if (!o->op.time_ns)
                o->op.time_ns = t->now_ns;
        o->nwait = 0;
        r = outbox_mark_temporary(t, o);
        outbox_classify(o);
        tree_touch(t, o->ino);
        tree_touch(t, o->ino2);
        if (r == 0)
                r = find_deps(t, o);
        if (r == 0)
                r = insert_row(t, o);
        if (r == 0)
                r = db_run(t->w, "UPDATE node SET pend=pend+1 WHERE ino=? OR ino=?", "ii", (int64_t)o->ino, (int64_t)o->ino2);
        counter_add(t->counters, ops_queued, 1);
        t->wake = true;
        return r;
}

int outbox_change(struct tree *t, struct orow *o) {
        const uint8_t *body;
        size_t n;
        assert(outbox_soft(o));
        o->rev++;
        outbox_classify(o);
        tree_touch(t, o->ino);
        tree_touch(t, o->ino2);
        int r = find_deps(t, o);
        if (r == 0)
                r = op_pack(t->scratch, o, &body, &n);
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET id=?2,bits=?3,ino=?4,ino2=?5,p1=?6,n1=?7,p2=?8,n2=?9,gen=?10,body=?11,nwait=?12,class=?13,rev=?14,state=?15,attempts=?16,error=?17,"
                                 "next_try_ns=?18,kind=?19,queued_ns=?20 WHERE ord=?1", "iIiiiititibiiiiiiiii",
                           (int64_t)o->ord, &o->op.id, (int64_t)o->bits, (int64_t)o->ino, (int64_t)o->ino2, (int64_t)o->p1, o->op.name, o->op.name_bytes, (int64_t)o->p2, o->op.name2,
                           o->op.name2_bytes, (int64_t)o->gen, body, n, (int64_t)o->nwait, (int64_t)o->class, (int64_t)o->rev, (int64_t)o->state, (int64_t)o->attempts,
                           (int64_t)o->error, o->next_try_ns, (int64_t)o->op.kind, o->queued_ns);
        t->wake = true;
        return r;
}

/* What follows the row follows what the row followed. */
static int inherit(struct tree *t, uint64_t ord) {
        int64_t both;
        int r = db_int(t->w, &both, "SELECT EXISTS(SELECT 1 FROM dep WHERE pred=?1) AND EXISTS(SELECT 1 FROM dep WHERE succ=?1)", "i", (int64_t)ord);
        if (r < 0 || !both)
                return r;
        r = db_run(t->w, "INSERT OR IGNORE INTO dep(succ,pred) SELECT s.succ, p.pred FROM dep s, dep p WHERE s.pred=?1 AND p.succ=?1", "i", (int64_t)ord);
        return r < 0 ? r : db_run(t->w, "UPDATE outbox SET nwait=(SELECT count(*) FROM dep d JOIN outbox p ON p.ord=d.pred WHERE d.succ=outbox.ord AND p.state<>1)"
                                        " WHERE ord IN (SELECT succ FROM dep WHERE pred=?)", "i", (int64_t)ord);
}

int outbox_remove(struct tree *t, const struct orow *o) {
        int r = inherit(t, o->ord);
        if (r == 0 && o->state != OUT_SENT)
                r = release_dependents(t, o->ord, -1);
        if (r == 0)
                r = db_run(t->w, "DELETE FROM dep WHERE pred=?", "i", (int64_t)o->ord);
        if (r == 0)
                r = db_run(t->w, "DELETE FROM dep WHERE succ=?", "i", (int64_t)o->ord);
        if (r == 0)
                r = db_run(t->w, "DELETE FROM outbox WHERE ord=?", "i", (int64_t)o->ord);
        if (r == 0)
                r = db_run(t->w, "UPDATE node SET pend=pend-1 WHERE ino=? OR ino=?", "ii", (int64_t)o->ino, (int64_t)o->ino2);
        outbox_unhand(t, &o->op.id);
        t->wake = true;
        return r;
}

int outbox_to_end(struct tree *t, struct orow *o) {
        uint64_t ord;
        int r = tree_number(t, NUMBER_ORDER, &ord);
        if (r == 0)
                r = db_run(t->w, "DELETE FROM dep WHERE succ=?", "i", (int64_t)o->ord);
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET ord=?, nwait=0 WHERE ord=?", "ii", (int64_t)ord, (int64_t)o->ord);
        if (r == 0) {
                o->ord = ord;
                o->nwait = 0;
        }
        return r;
}

int outbox_state_set(struct tree *t, struct orow *o, enum outbox_state state, bool freeze) {
        int r = 0;
        if (o->state != OUT_SENT && state == OUT_SENT)
                r = release_dependents(t, o->ord, -1);
        else if (o->state == OUT_SENT && state != OUT_SENT)
                r = release_dependents(t, o->ord, 1);
        o->state = state;
        if (freeze && !(o->bits & OB_FROZEN)) {
                o->bits |= OB_FROZEN;
                outbox_classify(o);
        }
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET state=?,bits=?,class=?,attempts=?,error=?,next_try_ns=?,reason=? WHERE ord=?", "iiiiiiti", (int64_t)o->state, (int64_t)o->bits,
                           (int64_t)o->class, (int64_t)o->attempts, (int64_t)o->error, o->next_try_ns, o->reason, strlen(o->reason), (int64_t)o->ord);
        return r;
}

/* Replaces an operation id where soft rows, shown names and versions refer to it. */
static int rename_references(struct tree *t, const struct id *from, const struct orow *o) {
        const struct id *to = &o->op.id;
        const uint64_t nodes[2] = { o->ino, o->ino2 };
        for (unsigned k = 0; k < 2; k++) {
                struct orow *list;
                size_t n = 0;
                if (!nodes[k])
                        continue;
                int r = db_run(t->w, "UPDATE node SET version=? WHERE ino=? AND version=?", "IiI", to, (int64_t)nodes[k], from);
                if (r == 0)
                        r = outbox_of_node(t, nodes[k], &list, &n);
                for (size_t i = 0; i < n && r == 0; i++) {
                        struct op *op = &list[i].op;
                        struct id *const refs[] = { &op->version, &op->placement, &op->replaced_version, &op->replaced_placement };
                        bool any = false;
                        for (size_t j = 0; j < ARRAY_SIZE(refs); j++)
                                if (id_equal(refs[j], from)) {
                                        *refs[j] = *to;
                                        any = true;
                                }
                        if (any && outbox_soft(&list[i]))
                                r = outbox_change(t, &list[i]);
                }
                if (r < 0)
                        return r;
        }
        int r = o->p1 ? db_run(t->w, "UPDATE entry SET placement=? WHERE parent=? AND name=? AND placement=?", "IitI", to, (int64_t)o->p1, o->op.name, o->op.name_bytes, from) : 0;
        if (r == 0 && o->p2)
                r = db_run(t->w, "UPDATE entry SET placement=? WHERE parent=? AND name=? AND placement=?", "IitI", to, (int64_t)o->p2, o->op.name2, o->op.name2_bytes, from);
        return r;
}

int outbox_reidentify(struct tree *t, struct orow *o) {
        struct id old = o->op.id;
        outbox_unhand(t, &old);
        o->op.id = rng_id(t->rng);
        if (o->state == OUT_SENT) {
                int r = release_dependents(t, o->ord, 1);
                if (r < 0)
                        return r;
        }
        o->state = OUT_QUEUED;
        o->bits &= ~(uint32_t)OB_FROZEN;
        o->error = 0;
        o->next_try_ns = 0;
        int r = outbox_change(t, o);
        return r < 0 ? r : rename_references(t, &old, o);
}

/* ---- what the engine has in hand ---- */

static struct handed *handed_find(const struct tree *t, const struct id *op) {
        uint64_t h;
        if (!t->handed_room)
                return NULL;
        memcpy(&h, op->b, sizeof(h));
        for (size_t at = h & (t->handed_room - 1);; at = (at + 1) & (t->handed_room - 1))
                if (id_is_zero(&t->handed[at].op) || id_equal(&t->handed[at].op, op))
                        return &t->handed[at];
}

static int handed_grow(struct tree *t) {
        struct handed *old = t->handed;
        size_t n = t->handed_room, room = n ? n * 2 : 1024;
        if (n >= HANDED_MAX) { /* forget: only the protection starts anew */
                memset(old, 0, n * sizeof(*old));
                t->n_handed = 0;
                return 0;
        }
        if (!(t->handed = calloc(room, sizeof(*t->handed)))) {
                t->handed = old;
                return -ENOMEM;
        }
        t->handed_room = room;
        t->n_handed = 0;
        for (size_t i = 0; i < n; i++)
                if (old[i].first_ms) {
                        *handed_find(t, &old[i].op) = old[i];
                        t->n_handed++;
                }
        free(old);
        return 0;
}

int outbox_hand_since(struct tree *t, const struct id *op, int64_t since_ms) {
        if (t->n_handed * 2 >= t->handed_room) {
                int r = handed_grow(t);
                if (r < 0)
                        return r;
        }
        struct handed *h = handed_find(t, op);
        if (id_is_zero(&h->op))
                t->n_handed++;
        if (!h->first_ms || h->first_ms > since_ms)
                h->first_ms = MAX(since_ms, 1);
        h->op = *op;
        return 0;
}

int outbox_hand(struct tree *t, const struct id *op) {
        return outbox_hand_since(t, op, clock_mono_ms(t->clock));
}

int64_t outbox_in_hand_since(const struct tree *t, const struct id *op) {
        const struct handed *h = handed_find(t, op);
        return h ? h->first_ms : 0;
}

void outbox_unhand(struct tree *t, const struct id *op) {
        struct handed *h = handed_find(t, op);
        if (h)
                h->first_ms = 0; /* the place stays taken until the table grows */
}

bool outbox_protected(const struct tree *t, const struct orow *o) {
        const struct handed *h = handed_find(t, &o->op.id);
        return h && h->first_ms && clock_mono_ms(t->clock) - h->first_ms >= PROTECT_MS;
}

/* A place stands in the table by the hash of its name. */
static struct id place_key(uint64_t parent, const char *name, size_t n) {
        struct id id;
        const uint64_t h[2] = { xxh3_64(name, n), ~parent };
        memcpy(id.b, h, sizeof(id.b));
        return id;
}

int outbox_place_hand(struct tree *t, uint64_t parent, const char *name, size_t n, int64_t since_ms) {
        struct id key = place_key(parent, name, n);
        return outbox_hand_since(t, &key, since_ms);
}

int64_t outbox_place_taken(struct tree *t, uint64_t parent, const char *name, size_t n) {
        struct id key = place_key(parent, name, n);
        int64_t since_ms = outbox_in_hand_since(t, &key);
        outbox_unhand(t, &key);
        return since_ms;
}
