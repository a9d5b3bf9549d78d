/* SPDX-License-Identifier: Apache-2.0 */
/* tree_newer.c: a file that is newer here than on the server after that went back: its bytes become a held copy beside it.
 *
 * The snapshot of another epoch (or of a server that went back without one) has the node, but with another content, and our row is from above the point F from which the two lines part: what we have was
 * made after the backup, so the server does not have it. The server's version takes the name, as with any two versions that do not know each other; ours stays as
 *
 *   NAME (conflict HOST N).EXT     a node of this client alone, held (tree_held.c): readable, not evicted, named by `tarn held`, and the server hears nothing of it until people decide
 *
 * Only a content that is here as a whole can be kept: a part of a file is nobody's version. One that is not is noted, so that `tarn held` can name it.
 *
 * In phases of the snapshot (snapshot.c), so that no block can be evicted in between:
 *
 *   state     rows of table newer                                              then
 *   ASKED     phase NEWER found it                                             the cache is asked, with all such contents kept from eviction (cache_newer)
 *   HERE      whole: phase NODES makes the copy in the transaction that gives
 *             the name the server's version                                    the row goes; table newer_copy has (copy, original, the version that the server had then)
 *   PARTLY    not whole, and the server's version is shown next                GONE
 *   GONE      for `tarn held`                                                  the node has a new version or is gone, or people have seen it (dropped)
 *
 * What is only asked when a load is abandoned is found again by the next one. Not kept: an empty content; what a pending edit stands on or replaces (its writer saw it, and the edit is kept by the
 * conflict table); a file without a name here; attributes.
 *
 * What becomes of a copy: as of all that is held, and
 *
 *   send      the node has the version that it had when the copy was made: the copy's bytes become its next version. It has another one: the copy stays a conflict copy, a new file for the server
 *   by itself the node gets the same bytes (another client had them, too, and sent them): the copy goes
 *   renamed   -EXDEV: mv copies it then, and removes the held one: that is a decision (tree_rename.c) */
#include "conflict.h"
#include "tree_priv.h"

#include <assert.h>
#include <stdio.h>

enum newer_state { NEWER_ASKED = 0, NEWER_HERE = 1, NEWER_PARTLY = 2, NEWER_GONE = 3 };

int newer_open(struct tree *t) {
        static const char *const sql[] = { "CREATE TABLE IF NOT EXISTS newer(ino INTEGER PRIMARY KEY, state INTEGER, size INTEGER, mtime INTEGER, version BLOB)",
                                           "CREATE TABLE IF NOT EXISTS newer_copy(ino INTEGER PRIMARY KEY, original INTEGER, version BLOB)",
                                           "CREATE INDEX IF NOT EXISTS newer_copy_original ON newer_copy(original)" };
        int r = 0;
        for (size_t i = 0; i < ARRAY_SIZE(sql) && r == 0; i++)
                r = db_exec(t->w, sql[i]);
        return r;
}

int newer_abandon(struct tree *t) {
        return db_run(t->w, "DELETE FROM newer WHERE state < 3", "");
}

int newer_refresh(struct tree *t) {
        int r = db_run(t->w, "DELETE FROM newer WHERE NOT EXISTS(SELECT 1 FROM node n WHERE n.ino=newer.ino AND (newer.state < 3 OR n.version=newer.version))", "");
        return r < 0 ? r : db_run(t->w, "DELETE FROM newer_copy WHERE NOT EXISTS(SELECT 1 FROM held h WHERE h.ino=newer_copy.ino)", "");
}

/* ---- what is found ---- */

int newer_look(struct tree *t, const struct id *node, const struct vrow *server, uint64_t above_seq) {
        struct nrow row;
        struct server_side side;
        uint64_t ino;
        int r = row_find(t, t->w, node, &ino);
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        if (row.v.kind != NODE_FILE || server->kind != NODE_FILE || row.seq <= above_seq || !row.cookie || row.v.gen || row.v.content.size == 0 || content_equal(&row.v.content, &server->content))
                return 0;
        r = held_has(t, ino);
        if (r != 0)
                return MIN(r, 0);
        r = shadow_get(t, &row, &side);
        if (r < 0 || !side.exists || side.deleted || !id_equal(&side.v.version, &row.v.version) || id_equal(&side.v.version, &server->version))
                return r;
        return db_run(t->w, "INSERT OR REPLACE INTO newer(ino,state,size,mtime) VALUES(?,0,?,?)", "iii", (int64_t)ino, (int64_t)row.v.content.size, row.v.mtime_ns);
}

int tree_newer_list(struct tree *t, bool asked, int (*each)(void *arg, uint64_t ino, const struct content *content), void *arg) {
        uint64_t after = 0;
        for (;;) {
                struct nrow rows[64];
                size_t n = 0;
                {
                        TREE_READ(rd, t);
                        struct db_stmt *s;
                        int r = db_query(rd.db, &s, "SELECT " NODE_COLS " FROM newer w JOIN node n ON n.ino=w.ino WHERE w.state < ? AND w.ino>? ORDER BY w.ino LIMIT 64", "ii", (int64_t)(asked ? NEWER_HERE : NEWER_PARTLY), (int64_t)after);
                        for (; r > 0; r = db_step(s))
                                row_read(s, 0, &rows[n++]);
                        if (r < 0)
                                return r;
                }
                for (size_t i = 0; i < n; i++) {
                        after = rows[i].ino;
                        int r = each(arg, after, &rows[i].v.content);
                        if (r)
                                return MIN(r, 0);
                }
                if (n < ARRAY_SIZE(rows))
                        return 0;
        }
}

int tree_newer_answer(struct tree *t, uint64_t ino, bool here) {
        int r = tree_begin(t);
        if (r == 0)
                r = db_run(t->w, "UPDATE newer SET state=? WHERE ino=? AND state=0", "ii", (int64_t)(here ? NEWER_HERE : NEWER_PARTLY), (int64_t)ino);
        return tree_end(t, r);
}

/* ---- the copy ---- */

/* Neither shown nor waiting, nor in the snapshot whose names come next. */
static int copy_name(struct tree *t, const struct nrow *parent, const char *name, size_t n, const char *host, const char **ret) {
        char text[NAME_BYTES_MAX + 1];
        for (unsigned number = conflict_next(name, n, host);; number++) {
                struct name_at at;
                int64_t taken;
                conflict_name(name, n, host, number, text);
                int r = entry_at(t->w, parent->ino, text, strlen(text), &at);
                if (r == 0)
                        continue;
                if (r == -ENOENT)
                        r = db_int(t->w, &taken, "SELECT EXISTS(SELECT 1 FROM shadow_name WHERE parent=?1 AND name=?2) OR EXISTS(SELECT 1 FROM snap_entry WHERE parent=?3 AND name=?2)", "itI",
                                   (int64_t)parent->ino, text, strlen(text), &parent->id);
                if (r < 0)
                        return r;
                if (!taken) {
                        *ret = arena_strndup(t->scratch, text, strlen(text));
                        return *ret ? 0 : -ENOMEM;
                }
        }
}

static int host_name(struct tree *t, const char **ret) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        size_t n = 0;
        int r = db_query(t->w, &s, "SELECT value FROM setting WHERE key='host'", "");
        const char *p = r > 0 ? db_col_blob(s, 0, &n) : NULL;
        *ret = r < 0 ? NULL : arena_strndup(t->scratch, n ? p : "here", n ? n : 4);
        return r < 0 ? r : *ret ? 0 : -ENOMEM;
}

static int make_copy(struct tree *t, const struct nrow *row, const struct server_side *side, const struct vrow *now) {
        struct nrow copy = { .id = rng_id(t->rng), .v = side->v, .extra_loaded = true, .seq = 1, .nseq = 1 }, parent;
        struct vnames names;
        const char *host, *name = NULL;
        int r = entries_of(t, row, &names);
        if (r == 0 && names.n == 0)
                return -EBADMSG;
        if (r == 0)
                r = row_get(t, t->w, names.v[0].parent, &parent);
        if (r == 0)
                r = host_name(t, &host);
        if (r == 0)
                r = copy_name(t, &parent, names.v[0].name, names.v[0].n, host, &name);
        if (r < 0)
                return r;
        struct vname v = { .parent = parent.ino, .name = name, .n = strlen(name), .placement = copy.id };
        r = row_insert(t, &copy);
        if (r == 0)
                r = entry_add(t, &copy, &v);
        if (r == 0)
                r = row_write(t, &copy);
        if (r == 0)
                r = held_add(t, copy.ino);
        if (r == 0)
                r = db_run(t->w, "INSERT INTO newer_copy(ino,original,version) VALUES(?,?,?)", "iiI", (int64_t)copy.ino, (int64_t)row->ino, &now->version);
        if (r == 0)
                r = tree_note(t, NOTE_ENTRY, parent.ino, name, v.n);
        return r < 0 ? r : tree_note(t, NOTE_LIST, parent.ino, NULL, 0);
}

int newer_keep(struct tree *t, const struct nrow *row, const struct server_side *side, const struct vrow *now) {
        int64_t state;
        int r = db_int(t->w, &state, "SELECT state FROM newer WHERE ino=?", "i", (int64_t)row->ino);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        /* a program or another event may have been faster */
        bool still = row->cookie && !row->v.gen && id_equal(&side->v.version, &row->v.version) && side->v.content.size > 0 && !content_equal(&side->v.content, &now->content);
        if (state == NEWER_HERE && still)
                r = make_copy(t, row, side, now);
        if (r == 0)
                r = state == NEWER_PARTLY && still ? db_run(t->w, "UPDATE newer SET state=3, version=? WHERE ino=?", "Ii", &now->version, (int64_t)row->ino) : db_run(t->w, "DELETE FROM newer WHERE ino=?", "i", (int64_t)row->ino);
        return r;
}

int newer_settled(struct tree *t, const struct nrow *row) {
        struct open_set same = { 0 };
        struct db_stmt *s;
        if (t->n_held == 0)
                return 0;
        int r = db_query(t->w, &s, "SELECT c.ino FROM newer_copy c JOIN held h ON h.ino=c.ino JOIN node n ON n.ino=c.ino WHERE c.original=? AND n.pend=0 AND n.root=? AND n.size=?", "iDi",
                         (int64_t)row->ino, &row->v.content.root, (int64_t)row->v.content.size);
        while (r > 0) {
                r = open_set_add(&same, (uint64_t)db_col_int(s, 0));
                if (r < 0)
                        db_reset(s);
                else
                        r = db_step(s);
        }
        for (size_t i = 0; i < same.n && r == 0; i++)
                r = held_remove(t, same.ino[i]);
        cleanup_open_set_p(&same);
        return r;
}

/* ---- for people ---- */

int tree_newer_of(struct tree *t, uint64_t ino, struct tree_newer *ret) {
        struct tree_newer n = { 0 };
        struct id version;
        {
                TREE_READ(rd, t);
                _cleanup_stmt_ struct db_stmt *s = NULL;
                int r = db_query(rd.db, &s, "SELECT c.original,c.version FROM newer_copy c JOIN held h ON h.ino=c.ino WHERE c.ino=?", "i", (int64_t)ino);
                if (r <= 0)
                        return r;
                n.original = (uint64_t)db_col_int(s, 0);
                version = db_col_id(s, 1);
        }
        struct node node;
        int r = tree_get(t, n.original, &node);
        if (r < 0 && r != -ENOENT)
                return r;
        if (r == -ENOENT || node.unlinked || !node.parent)
                n.original = 0;
        n.changed = !n.original || !id_equal(&node.version, &version); /* a pending content has a version of its own */
        *ret = n;
        return 1;
}

int tree_newer_lost(struct tree *t, int (*each)(void *arg, uint64_t ino, uint64_t size, int64_t mtime_ns), void *arg) {
        uint64_t after = 0;
        for (;;) {
                struct { uint64_t ino, size; int64_t mtime_ns; } v[256];
                size_t n = 0;
                {
                        TREE_READ(rd, t);
                        struct db_stmt *s;
                        int r = db_query(rd.db, &s, "SELECT w.ino,w.size,w.mtime FROM newer w JOIN node n ON n.ino=w.ino AND n.version=w.version WHERE w.state=3 AND w.ino>? ORDER BY w.ino LIMIT 256", "i", (int64_t)after);
                        for (; r > 0; r = db_step(s)) {
                                v[n].ino = (uint64_t)db_col_int(s, 0);
                                v[n].size = (uint64_t)db_col_int(s, 1);
                                v[n++].mtime_ns = db_col_int(s, 2);
                        }
                        if (r < 0)
                                return r;
                }
                for (size_t i = 0; i < n; i++) {
                        after = v[i].ino;
                        int r = each(arg, after, v[i].size, v[i].mtime_ns);
                        if (r)
                                return MIN(r, 0);
                }
                if (n < ARRAY_SIZE(v))
                        return 0;
        }
}

int tree_newer_seen(struct tree *t, uint64_t ino) {
        int r = tree_begin(t);
        if (r == 0)
                r = ino ? db_run(t->w, "DELETE FROM newer WHERE ino=? AND state=3", "i", (int64_t)ino) : db_run(t->w, "DELETE FROM newer WHERE state=3", "");
        return tree_end(t, r);
}
