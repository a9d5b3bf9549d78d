/* SPDX-License-Identifier: Apache-2.0 */
/* tree_held.c: the brake: what a snapshot would remove, and does not.
 *
 * A snapshot tells of deletions by absence alone, and a server that was emptied, restored or mixed up tells the same. Its trailer verifies, so the tree would believe it. Before its DELETES
 * phase the nodes that would go are counted (phase WEIGH of snapshot.c):
 *
 *   the snapshot is of             what is absent                                     then
 *   the tree's epoch               at most 1,000 nodes, or at most a tenth            deleted
 *                                  more                                               held, all of it
 *   an epoch that forks at F from  made or changed at F or before                     as above
 *   the tree's                     after F: only clients have it                      held, however few
 *   any other epoch                everything                                         held
 *
 * A server that went back without a new epoch (a copy of its files was put back) has the tree's epoch, but other marks: its answer 410 says that the line of our cursor parts from its own at F,
 * below the cursor (F is 0 if that is not known). Such a snapshot counts as one of another epoch that forks at F: its rows are taken whatever their sequence numbers are.
 *
 * A held node (table held) stays in the tree as it is, is readable, and its cached bytes are not evicted (cache.c hands their contents to the blobs). It counts as known to the server with the
 * sequence number 1, so that whatever the server says about it later is newer, and ends the hold. `tarn status` names them; `tarn accept` lets them go, in steps. Sync goes on meanwhile. Another
 * snapshot neither removes nor counts them.
 *
 * What becomes of it is for people to decide (`tarn held`): the server may have gone back on purpose.
 *
 *   drop          removed here, as if the server had said so (tree_held_drop); an unlink by a program is the same, for there is nothing that the server could be told (held_forget)
 *   send          a directory, a symlink, an empty file: CREATE, under the id that it has; its directories first (tree_held_send). A file with bytes: written anew and renamed over the held one, by
 *                 who decides; a held file that is saved over is gone, and the new one is a new file for the server
 *   made in it    who makes something in a held directory, or moves something into it, sends that directory; and so does what was pending in it when the server went back
 *
 * What is newer here than on the server, of a node that both have, is held as a copy beside it: tree_newer.c.
 *
 * Local deletions, and deletions that events tell, one by one, never come here: they are somebody's explicit act, and the server keeps what they deleted.
 *
 * t->n_held (t->lock) mirrors the table's size, so that nothing is asked where nothing is held. */
#include "tree_priv.h"

#include <assert.h>

#define BRAKE_NODES 1000
#define BRAKE_TENTH 10

int held_open(struct tree *t) {
        int64_t n = 0;
        int r = db_exec(t->w, "CREATE TABLE IF NOT EXISTS held(ino INTEGER PRIMARY KEY)");
        if (r == 0)
                r = db_int(t->w, &n, "SELECT count(*) FROM held", "");
        t->n_held = (uint64_t)n;
        return r < 0 ? r : newer_open(t);
}

int held_refresh(struct tree *t) {
        int64_t n;
        int r = db_run(t->w, "DELETE FROM held WHERE NOT EXISTS(SELECT 1 FROM node n WHERE n.ino=held.ino)", "");
        if (r == 0)
                r = db_int(t->w, &n, "SELECT count(*) FROM held", "");
        if (r == 0)
                t->n_held = (uint64_t)n;
        return r < 0 ? r : newer_refresh(t);
}

int held_end(struct tree *t, uint64_t ino) {
        if (t->n_held == 0)
                return 0;
        int r = db_run(t->w, "DELETE FROM held WHERE ino=?", "i", (int64_t)ino);
        if (r == 0 && db_changes(t->w) > 0)
                t->n_held--; /* a rollback makes it too small until held_refresh: the brake's list is asked again by every status */
        return r;
}

int held_weigh(struct tree *t, uint64_t seen, uint64_t absent, bool end) {
        int64_t s, a;
        int r = meta_get(t->w, "snap_seen", &s);
        if (r == 0)
                r = meta_get(t->w, "snap_absent", &a);
        if (r < 0)
                return r;
        s += (int64_t)seen;
        a += (int64_t)absent;
        r = meta_set(t->w, "snap_seen", s);
        if (r == 0)
                r = meta_set(t->w, "snap_absent", a);
        if (r == 0 && end && a > BRAKE_NODES && a > s / BRAKE_TENTH)
                r = meta_set(t->w, "snap_brake", 1);
        return r;
}

int held_rule(struct tree *t, bool same_epoch, bool *ret_all, uint64_t *ret_above_seq) {
        int64_t brake, known, fork;
        int r = meta_get(t->w, "snap_brake", &brake);
        if (r == 0)
                r = meta_get(t->w, "snap_forks", &known);
        if (r == 0)
                r = meta_get(t->w, "snap_fork_seq", &fork);
        if (r < 0)
                return r;
        *ret_all = brake || (!same_epoch && !known);
        *ret_above_seq = same_epoch || !known ? UINT64_MAX : (uint64_t)fork;
        return 0;
}

int held_add(struct tree *t, uint64_t ino) {
        int r = db_run(t->w, "INSERT OR IGNORE INTO held(ino) VALUES(?)", "i", (int64_t)ino);
        if (r == 0)
                t->n_held += (uint64_t)db_changes(t->w);
        return r < 0 ? r : db_run(t->w, "UPDATE node SET seq=1, nseq=1 WHERE ino=?", "i", (int64_t)ino);
}

int held_swap(struct tree *t, uint64_t a, uint64_t b) {
        return db_run(t->w, "UPDATE held SET ino=CASE ino WHEN ?1 THEN ?2 ELSE ?1 END WHERE (ino=?1 OR ino=?2) AND (SELECT count(*) FROM held WHERE ino=?1 OR ino=?2) = 1", "ii", (int64_t)a, (int64_t)b);
}

int tree_snapshot_fork(struct tree *t, const struct id *predecessor, uint64_t fork_seq) {
        int64_t parted = 0;
        int r = tree_begin(t);
        bool ours = id_equal(predecessor, &t->cursor.epoch) && !id_is_zero(predecessor);
        if (r == 0)
                r = meta_get(t->w, "snap_parted", &parted);
        if (r == 0 && !parted) { /* what was said of the tree's own cursor stays until that is another */
                r = meta_set(t->w, "snap_forks", ours);
                if (r == 0)
                        r = meta_set(t->w, "snap_fork_seq", ours ? (int64_t)fork_seq : 0);
                if (r == 0)
                        r = meta_set(t->w, "snap_parted", ours && (fork_seq < t->cursor.seq || fork_seq == 0));
        }
        return tree_end(t, r);
}

uint64_t tree_held(struct tree *t) {
        LOCK_SCOPE(&t->lock);
        return t->n_held;
}

int tree_held_list(struct tree *t, uint64_t after, int (*each)(void *arg, const struct node *node), void *arg) {
        for (;;) {
                struct nrow rows[256];
                size_t n = 0;
                {
                        TREE_READ(rd, t);
                        struct db_stmt *s;
                        int r = db_query(rd.db, &s, "SELECT " NODE_COLS " FROM held h JOIN node n ON n.ino=h.ino WHERE h.ino>? ORDER BY h.ino LIMIT 256", "i", (int64_t)after);
                        while (r > 0) {
                                row_read(s, 0, &rows[n++]);
                                r = db_step(s);
                        }
                        if (r < 0)
                                return r;
                }
                for (size_t i = 0; i < n; i++) {
                        struct node node;
                        row_public(t, &rows[i], &node);
                        after = node.ino;
                        int r = each(arg, &node);
                        if (r)
                                return MIN(r, 0);
                }
                if (n < ARRAY_SIZE(rows))
                        return 0;
        }
}

int held_remove(struct tree *t, uint64_t ino) {
        struct nrow row;
        struct server_side side;
        int r = row_get(t, t->w, ino, &row);
        if (r == 0)
                r = shadow_get(t, &row, &side);
        if (r == 0) {
                side.deleted = true;
                side.seq = MAX(side.seq, t->cursor.seq);
                r = settle(t, row.ino, &side, NULL);
        }
        return r < 0 && r != -ENOENT ? r : db_run(t->w, "DELETE FROM held WHERE ino=?", "i", (int64_t)ino);
}

int tree_held_drop(struct tree *t, size_t max, bool (*is_open)(void *arg, uint64_t ino), void *arg) {
        struct open_set list = { 0 };
        struct tree_applied out;
        struct db_stmt *s;
        int r = apply_begin(t, is_open, arg, NULL, &out);
        t->out = NULL;
        if (r == 0)
                r = db_query(t->w, &s, "SELECT ino FROM held ORDER BY ino DESC LIMIT ?", "i", (int64_t)max); /* what is in a directory is mostly younger than it */
        while (r > 0) {
                r = open_set_add(&list, (uint64_t)db_col_int(s, 0));
                if (r < 0)
                        db_reset(s);
                else
                        r = db_step(s);
        }
        for (size_t i = 0; i < list.n && r == 0; i++)
                r = held_remove(t, list.ino[i]);
        if (r == 0 && list.n < max)
                r = db_run(t->w, "DELETE FROM newer WHERE state=3", "");
        if (r == 0)
                r = held_refresh(t);
        r = tree_end(t, r);
        bool more = list.n == max;
        cleanup_open_set_p(&list);
        return r < 0 ? r : more;
}

/* ---- decisions ---- */

int held_has(struct tree *t, uint64_t ino) {
        int64_t v;
        if (t->n_held == 0)
                return 0;
        int r = db_int(t->w, &v, "SELECT EXISTS(SELECT 1 FROM held WHERE ino=?)", "i", (int64_t)ino);
        return r < 0 ? r : (int)v;
}

/* The node is one that no server knows, from now on: 1. 0: it is not held, or something of it is on its way. */
int held_forget(struct tree *t, struct nrow *row) {
        struct orow *list;
        size_t n = 0;
        int r = held_has(t, row->ino);
        if (r <= 0)
                return r;
        r = row->pend ? outbox_of_node(t, row->ino, &list, &n) : 0;
        for (size_t i = 0; i < n && r == 0; i++)
                if (!outbox_soft(&list[i]) || list[i].ino != row->ino || list[i].ino2)
                        return 0;
        for (size_t i = 0; i < n && r == 0; i++)
                r = outbox_remove(t, &list[i]);
        if (r == 0)
                r = held_end(t, row->ino);
        if (r == 0)
                r = shadow_drop(t, row);
        row->seq = row->nseq = 0;
        if (r == 0)
                r = row_write(t, row);
        return r < 0 ? r : 1;
}

static int read_row(struct tree *t, uint64_t ord, struct orow *ret) {
        struct db_stmt *s;
        int r = db_query(t->w, &s, "SELECT " OUT_COLS " FROM outbox o WHERE o.ord=?", "i", (int64_t)ord);
        if (r <= 0)
                return r < 0 ? r : -EBADMSG;
        r = outbox_row_read(s, 0, t->scratch, ret);
        db_reset(s);
        return r;
}

/* What is pending in the directory, and what depends on that. -EAGAIN: some of it is on its way. */
static int pending_in(struct tree *t, uint64_t dir, struct open_set *ret) {
        struct db_stmt *s;
        int r = db_query(t->w, &s, "WITH RECURSIVE late(ord) AS (SELECT ord FROM outbox WHERE p1=?1 AND p1 > 0 UNION SELECT ord FROM outbox WHERE p2=?1 AND p2 > 0"
                                   " UNION SELECT d.succ FROM dep d JOIN late ON d.pred=late.ord) SELECT o.ord, o.state FROM late JOIN outbox o ON o.ord=late.ord ORDER BY o.ord", "i", (int64_t)dir);
        while (r > 0) {
                r = db_col_int(s, 1) == OUT_SENT ? -EAGAIN : open_set_add(ret, (uint64_t)db_col_int(s, 0));
                if (r < 0)
                        db_reset(s);
                else
                        r = db_step(s);
        }
        return r;
}

/* That comes behind the directory's CREATE. All are moved before the first looks for its predecessors: at their old places they would be taken for what came before it. */
static int move_behind(struct tree *t, uint64_t dir) {
        struct open_set ords = { 0 };
        int r = pending_in(t, dir, &ords);
        for (size_t i = 0; i < ords.n && r == 0; i++) {
                struct orow o;
                r = read_row(t, ords.ino[i], &o);
                if (r == 0)
                        r = outbox_to_end(t, &o);
                if (r == 0)
                        ords.ino[i] = o.ord;
        }
        for (size_t i = 0; i < ords.n && r == 0; i++) {
                struct orow o;
                r = read_row(t, ords.ino[i], &o);
                if (r == 0) { /* also what was refused before: it is another request now */
                        o.op.flags &= ~(uint32_t)OPF_REVIVE;
                        r = outbox_reidentify(t, &o);
                }
        }
        cleanup_open_set_p(&ords);
        return r;
}

static int send_one(struct tree *t, struct nrow *row) {
        struct nrow parent;
        struct vnames names;
        int r = row_extra(t, row);
        if (r == 0)
                r = entries_of(t, row, &names);
        if (r < 0)
                return r;
        if (names.n != 1)
                return names.n ? -EMLINK : -EEXIST; /* something of the server has its name by now, or it is deleted here */
        r = row_get(t, t->w, names.v[0].parent, &parent);
        if (r < 0)
                return r;
        if (row->v.kind == NODE_FILE && row->v.size > 0)
                return -ENODATA;
        if (row->v.kind == NODE_DIR) { /* nothing may have changed when it cannot be */
                struct open_set ords = { 0 };
                r = pending_in(t, row->ino, &ords);
                cleanup_open_set_p(&ords);
                if (r < 0)
                        return r;
        }
        r = held_forget(t, row);
        if (r <= 0)
                return r < 0 ? r : -EAGAIN;
        struct orow o = { .ino = row->ino, .p1 = parent.ino, .op = { .kind = OP_CREATE, .id = rng_id(t->rng), .node = row->id, .parent = parent.id, .name = names.v[0].name, .name_bytes = names.v[0].n } };
        local_attrs_to_op(row, &o);
        o.op.content = row->v.content;
        if (row->v.kind == NODE_FILE)
                row->v.version = o.op.id;
        names.v[0].placement = o.op.id;
        names.v[0].local = true;
        r = entry_update(t, &names.v[0]);
        if (r == 0)
                r = row_write(t, row);
        if (r == 0)
                r = outbox_add(t, &o);
        return r == 0 && row->v.kind == NODE_DIR ? move_behind(t, row->ino) : r;
}

int held_send(struct tree *t, uint64_t ino) {
        uint64_t chain[256];
        size_t n = 0;
        struct nrow row;
        int r;
        for (uint64_t at = ino; (r = held_has(t, at)) > 0; at = row.parent) {
                r = row_get(t, t->w, at, &row);
                if (r == 0 && n == ARRAY_SIZE(chain))
                        r = -ELOOP;
                if (r < 0)
                        return r;
                chain[n++] = at;
        }
        while (n-- > 0 && r == 0) {
                r = row_get(t, t->w, chain[n], &row);
                if (r == 0)
                        r = send_one(t, &row);
        }
        return r;
}

int tree_held_send(struct tree *t, uint64_t ino) {
        int r = tree_begin(t);
        if (r == 0)
                r = held_has(t, ino);
        if (r == 0)
                r = -ENOENT;
        if (r > 0)
                r = held_send(t, ino);
        return tree_end(t, r);
}

int held_send_wanted(struct tree *t) {
        struct open_set list = { 0 };
        struct db_stmt *s;
        if (t->n_held == 0)
                return 0;
        int r = db_query(t->w, &s, "SELECT h.ino FROM held h WHERE EXISTS(SELECT 1 FROM outbox WHERE p1=h.ino AND p1 > 0) OR EXISTS(SELECT 1 FROM outbox WHERE p2=h.ino AND p2 > 0) ORDER BY h.ino", "");
        while (r > 0) {
                r = open_set_add(&list, (uint64_t)db_col_int(s, 0));
                if (r < 0)
                        db_reset(s);
                else
                        r = db_step(s);
        }
        for (size_t i = 0; i < list.n && r == 0; i++) {
                r = held_send(t, list.ino[i]);
                if (r == -EEXIST || r == -EAGAIN || r == -ENODATA || r == -EMLINK || r == -ELOOP) /* what is in it waits for people */
                        r = 0;
        }
        cleanup_open_set_p(&list);
        return r;
}
