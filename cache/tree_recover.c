/* SPDX-License-Identifier: Apache-2.0 */
/* tree_recover.c: a stage that lies on disk meets the tree, at the start of a process, one stage after the other, oldest generation first.
 *
 *   what the tree says                                         result
 *   its generation is in the outbox                            KNOWN
 *   the node lives, under the stage's ino, and has no name     COMMITTED: unlinked before the crash; nobody can open it any more
 *   the node lives, and has had this or a newer generation     COMMITTED: superseded, or on the server
 *   the node lives                                             QUEUED: its newest content
 *   another ino has the node's id now                          COMMITTED: it was replaced by an atomic save
 *   deleted here on purpose (tombstone)                        COMMITTED
 *   its ino is another id's by now                             as the node that has the ino says (atomic saves hand ids on, and a power cut takes them back)
 *   ino and id are gone, and this file has known the ino       COMMITTED: deleted here, or replaced by an atomic save of an atomic save
 *   after a power cut: its ino is newer than all nodes here    BEHIND: made, and never fsynced, after the moment to which the tree went back: a plain file in lost+found/ (or removed just before
 *                                                              that moment, and nothing was made since: nobody knows any more)
 *   deleted by the server while it was open here               the node is made again: QUEUED, or LOST_FOUND
 *   nothing (the file was lost and is new)                     likewise
 *
 * The tree file may be lost, with the outbox in it. Its successor is told by tree_birth up to which generation the stages on disk are its predecessor's; those wait until the tree is
 * loaded from the server (tree_recovers_later), because only then there is something to compare with. Then a stage whose node lives is an edit of it, with the base that its header
 * names: the server says whether it has these bytes already, takes them, or calls it a conflict. A stage whose node the server does not have is made again. What else was in the lost
 * outbox (directories, renames, deletions, attributes that were not sent) is gone with it; a directory's files come back in lost+found/.
 *
 * Inos that stages name are never given again, also if a power cut took back that they were given: before anything is made in recovery the next one is raised above them (tree_inos_above), for good.
 *
 * Before that, rows whose generation is not on disk (a row may be durable before its bytes are) go back to the newest older generation of their file that is: what was fsynced under
 * it has not been let go before the newer one was synced too.
 *
 * A node that is made again gets a new id (the server may know the old one) under its old name, a conflict name if that is taken, or in lost+found/ if its parent is not
 * here. The server merges it if the bytes are the same. */
#include "tree_priv.h"

#include <assert.h>
#include <stdio.h>

#define LOST_FOUND "lost+found"

int tree_birth(struct tree *t, uint64_t gen) {
        int64_t newborn;
        int r = tree_begin(t);
        if (r == 0)
                r = meta_get(t->w, "newborn", &newborn);
        if (r == 0 && newborn && gen > t->born_us)
                r = meta_set(t->w, "born", (int64_t)gen);
        if (r == 0 && newborn)
                r = db_run(t->w, "DELETE FROM meta WHERE key='newborn'", "");
        r = tree_end(t, r);
        if (r == 0 && newborn)
                t->born_us = MAX(t->born_us, gen);
        return r;
}

int tree_inos_above(struct tree *t, uint64_t ino) {
        struct { uint64_t next, limit; } before;
        int r = tree_begin(t);
        before.next = t->numbers[NUMBER_INO].next;
        before.limit = t->numbers[NUMBER_INO].limit;
        if (r == 0 && ino >= before.next && ino < INT64_MAX) {
                r = meta_set(t->w, "next_ino", (int64_t)ino + 1);
                t->numbers[NUMBER_INO].next = t->numbers[NUMBER_INO].limit = ino + 1; /* inos_known stays: those below were not given by what this file knows */
        }
        r = tree_end(t, r);
        if (r < 0) {
                LOCK_SCOPE(&t->lock);
                t->numbers[NUMBER_INO].next = before.next;
                t->numbers[NUMBER_INO].limit = before.limit;
        }
        return r;
}

bool tree_recovers_later(struct tree *t, uint64_t gen) {
        LOCK_SCOPE(&t->lock);
        return gen <= t->born_us && !atomic_load(&t->complete);
}

/* 1: its generation is in the outbox, under this node. Of two operations that carry it the later one is the save that shows it. */
static int in_outbox(struct tree *t, struct db *db, struct stage_identity *s) {
        int64_t ino;
        struct nrow row;
        int r = db_int(db, &ino, "SELECT ino FROM outbox WHERE gen=? AND gen > 0 ORDER BY ord DESC LIMIT 1", "i", (int64_t)s->gen);
        if (r == 0)
                r = row_get(t, db, (uint64_t)ino, &row);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        s->ino = row.ino;
        s->node = row.id;
        return 1;
}

static int make_dir(struct tree *t, const struct nrow *root, struct nrow *ret) {
        struct name_at at;
        int r = entry_at(t->w, INO_ROOT, LOST_FOUND, strlen(LOST_FOUND), &at);
        if (r == 0)
                return row_get(t, t->w, at.ino, ret);
        if (r != -ENOENT)
                return r;
        struct nrow dir = { .id = rng_id(t->rng), .nlink = 2 };
        dir.v = (struct vrow){ .kind = NODE_DIR, .mode = 0700, .uid = root->v.uid, .gid = root->v.gid, .mtime_ns = t->now_ns, .ctime_ns = t->now_ns, .btime_ns = t->now_ns };
        r = row_insert(t, &dir);
        if (r == 0)
                r = local_new_create(t, &dir, root, LOST_FOUND, strlen(LOST_FOUND));
        if (r == 0)
                *ret = dir;
        return r;
}

static int make_again(struct tree *t, struct stage_identity *s, enum recover_result *ret) {
        struct nrow parent, root;
        struct name_at at;
        uint64_t ino;
        char name[NAME_BYTES_MAX + 1], other[NAME_BYTES_MAX + 1];
        enum recover_result result = RECOVER_QUEUED;
        int r = row_get(t, t->w, INO_ROOT, &root);
        if (r < 0)
                return r;
        (void)snprintf(name, sizeof(name), "%s", s->name);
        if (!name[0])
                (void)snprintf(name, sizeof(name), "recovered %llu", (unsigned long long)s->gen);
        r = row_find(t, t->w, &s->parent, &ino);
        if (r == 0)
                r = row_get(t, t->w, ino, &parent);
        if (r == -ENOENT || (r == 0 && (parent.v.kind != NODE_DIR || (parent.parent == 0 && parent.ino != INO_ROOT)))) {
                result = RECOVER_LOST_FOUND;
                r = make_dir(t, &root, &parent);
        }
        (void)snprintf(other, sizeof(other), "%s", name);
        for (unsigned number = 1; r == 0; number++) {
                r = entry_at(t->w, parent.ino, other, strlen(other), &at);
                if (r == -ENOENT) {
                        r = 0;
                        break;
                }
                conflict_name(name, strlen(name), "recovered", number, other);
        }
        if (r < 0)
                return r;
        struct nrow row = { .id = rng_id(t->rng), .last_gen = s->gen };
        row.v = (struct vrow){ .kind = NODE_FILE, .mode = s->mode & 07777, .uid = root.v.uid, .gid = root.v.gid, .mtime_ns = s->mtime_ns, .ctime_ns = t->now_ns, .btime_ns = s->mtime_ns,
                               .content = content_empty, .gen = s->gen, .size = s->size };
        r = row_insert(t, &row);
        if (r == 0)
                r = local_new_create(t, &row, &parent, other, strlen(other));
        if (r == 0)
                r = dir_touch(t, parent.ino, t->now_ns);
        if (r < 0)
                return r;
        s->ino = row.ino;
        s->node = row.id;
        *ret = result;
        return 0;
}

static bool is_known(const struct tree *t, const struct stage_identity *s) {
        return s->ino < t->inos_known && s->gen > t->born_us; /* inos are never used again */
}

/* A base that the tree does not know: what was there when a save that was taken back was made, or a generation whose row was. */
static bool taken_back(const struct tree *t, const struct stage_identity *s, const struct nrow *row) {
        return is_known(t, s) && (!id_equal(&s->node, &row->id) || s->below_gen > row->last_gen);
}

int tree_recover_base(struct tree *t, const struct stage_identity *s, struct id *ret_base) {
        struct nrow row;
        TREE_READ(rd, t);
        int r = row_get(t, rd.db, s->ino, &row);
        if (r < 0 || !taken_back(t, s, &row))
                return r == -ENOENT ? 0 : MIN(r, 0);
        *ret_base = row.v.version;
        return 1;
}

static int recover_in(struct tree *t, struct stage_identity *s, enum recover_result *ret) {
        struct nrow row;
        uint64_t ino, seq, dropped;
        int64_t local;
        int r;
        bool known = is_known(t, s);
        if (t->power_cut && s->gen > t->born_us && s->ino > t->ino_newest) {
                r = tomb_get(t, &s->node, &seq, &local);
                *ret = local == TOMB_DELETED ? RECOVER_COMMITTED : RECOVER_BEHIND;
                return r;
        }
        /* The ino first: what the stage says of its node may be of a save over a file that a power cut took back. */
        ino = s->ino;
        r = known ? row_get(t, t->w, ino, &row) : -ENOENT;
        if (r == -ENOENT && (r = row_find_here(t, t->w, &s->node, &ino)) == 0)
                r = row_get(t, t->w, ino, &row);
        if (r == 0) {
                if (row.v.kind != NODE_FILE) /* an id is never of two kinds: not our node */
                        return make_again(t, s, ret);
                bool superseded = s->gen <= row.last_gen || (row.nlink == 0 && !(row.bits & (NB_REMOTE | NB_HIDDEN))) || (ino != s->ino && known);
                *ret = superseded ? RECOVER_COMMITTED : RECOVER_QUEUED;
                if (superseded)
                        return 0;
                struct id base = taken_back(t, s, &row) ? row.v.version : s->base_version;
                s->ino = row.ino; /* another one if the tree file was lost and the node was loaded again */
                s->node = row.id;
                return local_queue_content(t, &row, s->gen, s->size, s->mtime_ns, &base, &dropped);
        }
        if (r != -ENOENT)
                return r;
        r = tomb_get(t, &s->node, &seq, &local);
        if (r < 0)
                return r;
        if (local == TOMB_DELETED || (known && local != TOMB_REMOTE)) {
                *ret = RECOVER_COMMITTED;
                return 0;
        }
        return make_again(t, s, ret);
}

static int content_lost_in(struct tree *t, uint64_t gen, const struct stage_identity *older) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        struct orow o;
        int r = db_query(t->w, &s, "SELECT " OUT_COLS " FROM outbox o WHERE o.gen=? AND o.gen > 0", "i", (int64_t)gen);
        if (r <= 0)
                return r;
        r = outbox_row_read(s, 0, t->scratch, &o);
        db_reset(s);
        s = NULL;
        if (r < 0)
                return r;
        if (!outbox_soft(&o) || (!older && o.op.kind != OP_CREATE))
                return -EINVAL;
        o.gen = older ? older->gen : 0;
        o.op.content = older ? (struct content){ .size = older->size, .param = 1 } : content_empty;
        if (older) {
                o.op.attrs.mtime_ns = older->mtime_ns;
                o.op.attr_mask |= ATTR_MTIME;
        }
        r = outbox_change(t, &o);
        return r < 0 ? r : settle(t, o.ino, NULL, NULL);
}

int tree_content_lost(struct tree *t, uint64_t gen, const struct stage_identity *older) {
        int r = tree_begin(t);
        if (r == 0)
                r = content_lost_in(t, gen, older);
        return tree_end(t, r);
}

int tree_queued_after(struct tree *t, uint64_t ino, uint64_t gen) {
        struct nrow row;
        TREE_READ(rd, t);
        int r = row_get(t, rd.db, ino, &row);
        return r == -ENOENT ? 0 : r < 0 ? r : row.last_gen > gen;
}

int tree_recover_stage(struct tree *t, struct stage_identity *s, enum recover_result *ret) {
        enum recover_result result = RECOVER_KNOWN;
        int r;
        {
                TREE_READ(rd, t); /* the usual case writes nothing */
                r = in_outbox(t, rd.db, s);
        }
        if (r != 0) {
                *ret = r > 0 ? result : *ret;
                return MIN(r, 0);
        }
        r = tree_begin(t);
        if (r == 0)
                r = recover_in(t, s, &result);
        r = tree_end(t, r);
        if (r == 0)
                *ret = result;
        return r;
}

/* What was sent stays what it was (the server may have it): the empty file is another operation on the same node. */
int tree_lost_content(struct tree *t, const struct id *op) {
        struct orow o;
        struct nrow row;
        int r = tree_begin(t);
        if (r == 0)
                r = outbox_find(t, t->w, t->scratch, op, &o);
        if (r == 0 && o.op.kind != OP_CREATE)
                r = -ENOENT;
        if (r == 0)
                r = row_get(t, t->w, o.ino, &row);
        const uint64_t gen = o.gen;
        if (r == 0) {
                o.gen = 0;
                o.op.content = content_empty;
                r = outbox_soft(&o) ? outbox_change(t, &o) : outbox_reidentify(t, &o);
        }
        if (r == 0)
                r = row_get(t, t->w, o.ino, &row);
        if (r == 0 && row.v.gen == gen) {
                row.v.gen = 0;
                row.v.content = content_empty;
                row.v.size = 0;
                r = row_write(t, &row);
        }
        return tree_end(t, r);
}
