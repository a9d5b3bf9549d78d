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
        return r;
}

int held_refresh(struct tree *t) {
        int64_t n;
        int r = db_run(t->w, "DELETE FROM held WHERE NOT EXISTS(SELECT 1 FROM node n WHERE n.ino=held.ino)", "");
        if (r == 0)
                r = db_int(t->w, &n, "SELECT count(*) FROM held", "");
        if (r == 0)
                t->n_held = (uint64_t)n;
        return r;
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
        for (size_t i = 0; i < list.n && r == 0; i++) {
                struct nrow row;
                struct server_side side;
                r = row_get(t, t->w, list.ino[i], &row);
                if (r == 0)
                        r = shadow_get(t, &row, &side);
                if (r == 0) {
                        side.deleted = true;
                        side.seq = MAX(side.seq, t->cursor.seq);
                        r = settle(t, row.ino, &side, NULL);
                }
                if (r == 0 || r == -ENOENT)
                        r = db_run(t->w, "DELETE FROM held WHERE ino=?", "i", (int64_t)list.ino[i]);
        }
        if (r == 0)
                r = held_refresh(t);
        r = tree_end(t, r);
        bool more = list.n == max;
        cleanup_open_set_p(&list);
        return r < 0 ? r : more;
}
