/* SPDX-License-Identifier: Apache-2.0 */
/* tree_rows.c: reading and writing rows of node, entry, shadow and shadow_name.
 *
 * Names. The shown names are table entry, keyed by (parent, cookie), so that a listing is one range, and unique by (parent, name). A node's row holds one of its names
 * as (parent, cookie); further ones (hard links) are marked in entry.bits and found by a partial index: most nodes need no index from node to name. entry_add and
 * entry_remove keep these, nlink and the parent's count of subdirectories.
 *
 * The number of subdirectories (nlink of a directory) and of pending operations (pend) change by statements of their own, never by row_write: a row in memory may be
 * older than they are.
 *
 * Shadow. A node with pending work that is on the server, or one of whose server names is hidden by a pending operation's, has the server's row in shadow and
 * the server's names in shadow_name. Everybody else's shown row and names are the server's.
 *
 * Bits of entry: 1 the name was given by a pending operation; 2 it is not the one that the node's row holds.
 *
 * A tombstone of the server (seq > 0) keeps replayed rows from bringing a node back until the cursor has passed it; a local one (seq 0) tells recovery that a
 * stage found on disk belongs to a file that was deleted on purpose. There are at most TOMBS_MAX of the latter. */
#include "tree_priv.h"

#include <assert.h>

#define ENTRY_LOCAL 1
#define ENTRY_MORE 2
#define TOMBS_MAX 100000

/* ---- node ---- */

void row_read(struct db_stmt *s, int c, struct nrow *ret) {
        struct nrow w = { .ino = (uint64_t)db_col_int(s, c), .id = db_col_id(s, c + 1) };
        uint32_t mode = (uint32_t)db_col_int(s, c + 2);
        uint64_t bits = (uint64_t)db_col_int(s, c + 21);
        int64_t shape = db_col_int(s, c + 13);
        w.v.kind = (enum node_kind)(mode >> 12);
        w.v.mode = mode & 07777;
        w.v.uid = (uint32_t)db_col_int(s, c + 3);
        w.v.gid = (uint32_t)db_col_int(s, c + 4);
        w.nlink = (uint32_t)db_col_int(s, c + 5);
        w.v.rdev = (uint64_t)db_col_int(s, c + 6);
        w.v.mtime_ns = db_col_int(s, c + 7);
        w.v.ctime_ns = w.v.mtime_ns + db_col_int(s, c + 8);
        w.v.btime_ns = w.v.mtime_ns + db_col_int(s, c + 9);
        w.v.size = (uint64_t)db_col_int(s, c + 10);
        w.v.content = (struct content){ .root = db_col_digest(s, c + 12), .depth = (uint8_t)(shape >> 8), .param = (uint8_t)shape,
                                        .size = db_col_null(s, c + 11) ? w.v.size : (uint64_t)db_col_int(s, c + 11) };
        w.v.version = db_col_id(s, c + 14);
        w.v.gen = (uint64_t)db_col_int(s, c + 15);
        w.last_gen = (uint64_t)db_col_int(s, c + 16);
        w.seq = (uint64_t)db_col_int(s, c + 17);
        w.nseq = db_col_null(s, c + 18) ? w.seq : (uint64_t)db_col_int(s, c + 18);
        w.parent = (uint64_t)db_col_int(s, c + 19);
        w.cookie = (uint64_t)db_col_int(s, c + 20);
        w.bits = (uint8_t)bits;
        w.incarnation = (uint16_t)(bits >> 8);
        w.pend = (uint32_t)db_col_int(s, c + 22);
        w.has_atime = !db_col_null(s, c + 23);
        w.atime_ns = db_col_int(s, c + 23);
        *ret = w;
}

void row_public(const struct tree *t, const struct nrow *w, struct node *ret) {
        bool unlinked = w->parent == 0 && w->ino != INO_ROOT;
        *ret = (struct node){ .ino = w->ino, .id = w->id, .kind = w->v.kind, .mode = w->v.mode, .uid = w->v.uid, .gid = w->v.gid, .nlink = unlinked ? 0 : w->nlink,
                              .rdev = w->v.rdev, .mtime_ns = w->v.mtime_ns, .ctime_ns = w->v.ctime_ns, .btime_ns = w->v.btime_ns, .content = w->v.content,
                              .version = w->v.version, .gen = w->v.gen, .size = w->v.size, .parent = w->parent, .seq = w->seq, .incarnation = w->incarnation,
                              .has_xattrs = w->bits & NB_XATTR, .has_atime = w->has_atime, .atime_ns = w->atime_ns,
                              .pending = w->pend > 0, .unlinked = unlinked, .taken = unlinked && (w->bits & (NB_REMOTE | NB_HIDDEN)),
                              .loaded = atomic_load(&t->complete) || (w->seq == 0 && w->ino != INO_ROOT) };
}

int row_get(struct tree *t, struct db *db, uint64_t ino, struct nrow *ret) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(db, &s, "SELECT " NODE_COLS " FROM node n WHERE n.ino=?", "i", (int64_t)ino);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        row_read(s, 0, ret);
        return 0;
}

int row_find(struct tree *t, struct db *db, const struct id *id, uint64_t *ret_ino) {
        int64_t ino;
        if (id_is_zero(id))
                return -ENOENT;
        int r = db_int(db, &ino, "SELECT ino FROM node WHERE id=?", "I", id);
        if (r == -ENOENT)
                r = db_int(db, &ino, "SELECT ino FROM alias WHERE id=? AND local = 0", "I", id);
        if (r == 0)
                *ret_ino = (uint64_t)ino;
        return r;
}

int row_find_here(struct tree *t, struct db *db, const struct id *id, uint64_t *ret_ino) {
        int64_t ino;
        int r = row_find(t, db, id, ret_ino);
        if (r != -ENOENT || id_is_zero(id))
                return r;
        r = db_int(db, &ino, "SELECT ino FROM alias WHERE id=?", "I", id);
        if (r == 0)
                *ret_ino = (uint64_t)ino;
        return r;
}

int row_extra(struct tree *t, struct nrow *w) {
        if (w->extra_loaded)
                return 0;
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(t->w, &s, "SELECT extra FROM node WHERE ino=? AND extra IS NOT NULL", "i", (int64_t)w->ino);
        if (r < 0)
                return r;
        if (r > 0) {
                size_t n;
                const void *p = db_col_blob(s, 0, &n);
                if (n && !(w->v.extra = (const uint8_t *)arena_strndup(t->scratch, p, n)))
                        return -ENOMEM;
                w->v.extra_n = n;
        }
        w->extra_loaded = true;
        return 0;
}

#define COLS_OF(w)                                                                                                                                          \
        (int64_t)((w)->v.kind << 12 | (w)->v.mode), (int64_t)(w)->v.uid, (int64_t)(w)->v.gid, (int64_t)(w)->nlink, (int64_t)(w)->v.rdev, (int64_t)(w)->v.mtime_ns, \
        (int64_t)((w)->v.ctime_ns - (w)->v.mtime_ns), (int64_t)((w)->v.btime_ns - (w)->v.mtime_ns), (int64_t)(w)->v.size
#define COLS_OF_REST(w)                                                                                                                                     \
        &(w)->v.content.root, (int64_t)((w)->v.content.depth << 8 | (w)->v.content.param), &(w)->v.version, (int64_t)(w)->v.gen, (int64_t)(w)->last_gen,     \
        (int64_t)(w)->seq

static void extra_bits(struct nrow *w) {
        bool conflict = false, any = extra_has_xattr(w->v.extra, w->v.extra_n, &conflict);
        w->bits = (uint8_t)((w->bits & ~(NB_XATTR | NB_CONFLICT)) | (any ? NB_XATTR : 0) | (conflict ? NB_CONFLICT : 0));
}

int row_insert(struct tree *t, struct nrow *w) {
        int r = w->ino ? 0 : tree_number(t, NUMBER_INO, &w->ino);
        if (r == 0)
                r = tree_gen_seen(t, w->last_gen);
        if (r < 0)
                return r;
        w->extra_loaded = true;
        extra_bits(w);
        struct db_stmt *s;
        r = db_get(t->w, "INSERT INTO node(ino,id,mode,uid,gid,nlink,rdev,mtime,ctime_d,btime_d,size,root,shape,version,gen,last_gen,seq,parent,cookie,bits,pend,"
                         "extra,csize,nseq) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", &s);
        if (r == 0)
                r = db_bind(s, "iIiiiiiiiiiDiIiiiiiiib", (int64_t)w->ino, &w->id, COLS_OF(w), COLS_OF_REST(w), (int64_t)w->parent, (int64_t)w->cookie,
                            (int64_t)(w->incarnation << 8 | w->bits), (int64_t)w->pend, w->v.extra_n ? w->v.extra : NULL, w->v.extra_n);
        if (r < 0)
                return r;
        r = db_bind_more(s, 23, w->v.content.size != w->v.size, (int64_t)w->v.content.size);
        if (r == 0)
                r = db_bind_more(s, 24, w->nseq != w->seq, (int64_t)w->nseq);
        if (r < 0)
                return r;
        r = db_step(s);
        assert(r <= 0);
        return r;
}

int row_write(struct tree *t, const struct nrow *w) {
        struct db_stmt *s;
        if (w->v.kind == NODE_FILE && w->parent == 0)
                tree_naming(t, w->ino);
        int r = tree_gen_seen(t, w->last_gen);
        if (r == 0)
                r = db_get(t->w, "UPDATE node SET mode=?2,uid=?3,gid=?4,nlink=CASE WHEN ?2>>12=2 THEN nlink ELSE ?5 END,rdev=?6,mtime=?7,ctime_d=?8,btime_d=?9,size=?10,"
                             "root=?11,shape=?12,version=?13,gen=?14,last_gen=?15,seq=?16,parent=?17,cookie=?18,bits=?19,csize=?20,nseq=?21 WHERE ino=?1", &s);
        if (r == 0)
                r = db_bind(s, "iiiiiiiiiiDiIiiiiii", (int64_t)w->ino, COLS_OF(w), COLS_OF_REST(w), (int64_t)w->parent, (int64_t)w->cookie,
                            (int64_t)(w->incarnation << 8 | w->bits));
        if (r < 0)
                return r;
        r = db_bind_more(s, 20, w->v.content.size != w->v.size, (int64_t)w->v.content.size);
        if (r == 0)
                r = db_bind_more(s, 21, w->nseq != w->seq, (int64_t)w->nseq);
        return r < 0 ? r : db_step(s);
}

int row_write_extra(struct tree *t, struct nrow *w) {
        assert(w->extra_loaded);
        extra_bits(w);
        return db_run(t->w, "UPDATE node SET extra=? WHERE ino=?", "bi", w->v.extra_n ? w->v.extra : NULL, w->v.extra_n, (int64_t)w->ino);
}

int row_write_id(struct tree *t, uint64_t ino, const struct id *id) {
        return db_run(t->w, "UPDATE node SET id=? WHERE ino=?", "Ii", id, (int64_t)ino);
}

static int tomb_put(struct tree *t, const struct id *id, uint64_t seq, enum tomb_local local) {
        return db_run(t->w, "INSERT INTO tomb(id,seq,local) VALUES(?1,?2,?3) ON CONFLICT(id) DO UPDATE SET seq=max(seq,?2), local=max(local,?3)", "Iii", id, (int64_t)seq,
                      (int64_t)local);
}

int tomb_get(struct tree *t, const struct id *id, uint64_t *ret_seq, int64_t *ret_local) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(t->w, &s, "SELECT seq, local FROM tomb WHERE id=?", "I", id);
        if (r < 0)
                return r;
        *ret_seq = r > 0 ? (uint64_t)db_col_int(s, 0) : 0;
        if (ret_local)
                *ret_local = r > 0 ? db_col_int(s, 1) : TOMB_SERVER;
        return 0;
}

int row_drop(struct tree *t, const struct nrow *w, uint64_t server_seq) {
        assert(w->ino != INO_ROOT && w->pend == 0);
        if (w->v.kind == NODE_FILE)
                tree_naming(t, w->ino);
        int r = db_run(t->w, "DELETE FROM node WHERE ino=?", "i", (int64_t)w->ino);
        if (r == 0 && (w->bits & NB_SHADOW)) {
                struct nrow copy = *w;
                r = shadow_drop(t, &copy);
        }
        bool local = w->v.kind == NODE_FILE && (w->last_gen || (w->bits & (NB_KEPT | NB_UNNAMED)));
        if (r == 0 && (server_seq || local))
                r = tomb_put(t, &w->id, server_seq, local ? TOMB_DELETED : TOMB_SERVER);
        if (r == 0)
                r = db_run(t->w, "DELETE FROM alias WHERE ino=?", "i", (int64_t)w->ino);
        if (r == 0 && local && w->ino % 1024 == 0) {
                int64_t n;
                r = db_int(t->w, &n, "SELECT count(*) FROM tomb", "");
                if (r == 0 && n > TOMBS_MAX)
                        r = db_run(t->w, "DELETE FROM tomb WHERE seq=0 AND id IN (SELECT id FROM tomb WHERE seq=0 LIMIT ?)", "i", n - TOMBS_MAX);
        }
        return r;
}

/* ---- entry ---- */

int entry_at(struct db *db, uint64_t parent, const char *name, size_t n, struct name_at *ret) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(db, &s, "SELECT node,cookie,placement,bits FROM entry WHERE parent=? AND name=?", "it", (int64_t)parent, name, n);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        *ret = (struct name_at){ .ino = (uint64_t)db_col_int(s, 0), .cookie = (uint64_t)db_col_int(s, 1), .placement = db_col_id(s, 2), .local = db_col_int(s, 3) & ENTRY_LOCAL };
        return 0;
}

int entry_any(struct db *db, uint64_t parent) {
        int64_t v;
        int r = db_int(db, &v, "SELECT EXISTS(SELECT 1 FROM entry WHERE parent=?)", "i", (int64_t)parent);
        return r < 0 ? r : (int)v;
}

static int names_add(struct arena *a, struct vnames *list, size_t *room, const struct vname *v) {
        if (list->n == *room) {
                size_t more = *room ? *room * 2 : 4;
                struct vname *p = arena_alloc(a, more * sizeof(*p));
                if (!p)
                        return -ENOMEM;
                if (list->n)
                        memcpy(p, list->v, list->n * sizeof(*p));
                list->v = p;
                *room = more;
        }
        list->v[list->n] = *v;
        if (!(list->v[list->n].name = arena_strndup(a, v->name, v->n)))
                return -ENOMEM;
        list->n++;
        return 0;
}

static int names_read(struct tree *t, struct db_stmt *s, int r, bool shown, struct vnames *ret) {
        size_t room = ret->n;
        while (r > 0) {
                struct vname v = { .parent = (uint64_t)db_col_int(s, 0), .placement = db_col_id(s, 2) };
                v.name = db_col_text(s, 1, &v.n);
                if (shown) {
                        v.cookie = (uint64_t)db_col_int(s, 3);
                        v.local = db_col_int(s, 4) & ENTRY_LOCAL;
                }
                int e = v.name ? names_add(t->scratch, ret, &room, &v) : -EBADMSG;
                if (e < 0) {
                        db_reset(s);
                        return e;
                }
                r = db_step(s);
        }
        return r;
}

int entries_of(struct tree *t, const struct nrow *w, struct vnames *ret) {
        struct vnames list = {0};
        struct db_stmt *s;
        int r = 0;
        if (w->cookie) {
                r = db_query(t->w, &s, "SELECT parent,name,placement,cookie,bits FROM entry WHERE parent=? AND cookie=?", "ii", (int64_t)w->parent, (int64_t)w->cookie);
                r = names_read(t, s, r, true, &list);
        }
        if (r == 0 && w->v.kind != NODE_DIR && w->nlink > 1) {
                r = db_query(t->w, &s, "SELECT parent,name,placement,cookie,bits FROM entry WHERE node=? AND bits >= 2", "i", (int64_t)w->ino);
                r = names_read(t, s, r, true, &list);
        }
        if (r == 0)
                *ret = list;
        return r;
}

int entry_add(struct tree *t, struct nrow *w, const struct vname *v) {
        uint64_t cookie;
        int r = tree_number(t, NUMBER_COOKIE, &cookie);
        if (r < 0)
                return r;
        bool more = w->cookie != 0;
        r = db_run(t->w, "INSERT INTO entry(parent,cookie,name,node,placement,bits) VALUES(?,?,?,?,?,?)", "iitiIi", (int64_t)v->parent, (int64_t)cookie, v->name, v->n,
                   (int64_t)w->ino, &v->placement, (int64_t)((v->local ? ENTRY_LOCAL : 0) | (more ? ENTRY_MORE : 0)));
        if (r < 0)
                return r;
        if (!more) {
                if (w->v.kind == NODE_FILE)
                        tree_naming(t, w->ino);
                w->parent = v->parent;
                w->cookie = cookie;
        }
        if (w->v.kind == NODE_DIR)
                return db_run(t->w, "UPDATE node SET nlink=nlink+1 WHERE ino=?", "i", (int64_t)v->parent);
        w->nlink++;
        return 0;
}

int entry_remove(struct tree *t, struct nrow *w, const struct vname *v) {
        int r = db_run(t->w, "DELETE FROM entry WHERE parent=? AND cookie=?", "ii", (int64_t)v->parent, (int64_t)v->cookie);
        if (r < 0)
                return r;
        if (w->v.kind == NODE_DIR) {
                w->parent = w->cookie = 0;
                return db_run(t->w, "UPDATE node SET nlink=nlink-1 WHERE ino=?", "i", (int64_t)v->parent);
        }
        assert(w->nlink > 0);
        w->nlink--;
        if (w->cookie != v->cookie)
                return 0;
        w->parent = w->cookie = 0;
        if (w->nlink == 0)
                return 0;
        struct db_stmt *s;
        r = db_query(t->w, &s, "SELECT parent,cookie FROM entry WHERE node=? AND bits >= 2 LIMIT 1", "i", (int64_t)w->ino);
        if (r <= 0)
                return r < 0 ? r : -EBADMSG;
        w->parent = (uint64_t)db_col_int(s, 0);
        w->cookie = (uint64_t)db_col_int(s, 1);
        db_reset(s);
        return db_run(t->w, "UPDATE entry SET bits=bits-2 WHERE parent=? AND cookie=?", "ii", (int64_t)w->parent, (int64_t)w->cookie);
}

int entry_update(struct tree *t, const struct vname *v) {
        return db_run(t->w, "UPDATE entry SET placement=?, bits=(bits & 2) | ? WHERE parent=? AND cookie=?", "Iiii", &v->placement, (int64_t)(v->local ? ENTRY_LOCAL : 0),
                      (int64_t)v->parent, (int64_t)v->cookie);
}

static int settle_later_all(struct tree *t, struct db_stmt *s, int r) {
        while (r > 0) {
                r = tree_settle_later(t, (uint64_t)db_col_int(s, 0));
                if (r < 0)
                        db_reset(s);
                else
                        r = db_step(s);
        }
        return r;
}

/* Nodes that the server has under that name, and nodes that a pending operation gives it (of two such the first one has it). */
int entry_freed(struct tree *t, uint64_t parent, const char *name, size_t n, uint64_t not_ino) {
        struct db_stmt *s;
        int r = db_query(t->w, &s, "SELECT ino FROM shadow_name WHERE parent=? AND name=? AND ino<>?", "iti", (int64_t)parent, name, n, (int64_t)not_ino);
        r = settle_later_all(t, s, r);
        if (r == 0) {
                r = db_query(t->w, &s, "SELECT ino FROM outbox WHERE p1=?1 AND n1=?2 AND p1 > 0 AND ino<>?3 UNION SELECT ino FROM outbox WHERE p2=?1 AND n2=?2 AND p2 > 0 AND ino<>?3", "iti",
                             (int64_t)parent, name, n, (int64_t)not_ino);
                r = settle_later_all(t, s, r);
        }
        return r;
}

int dir_touch(struct tree *t, uint64_t dir, int64_t now_ns) {
        return db_run(t->w, "UPDATE node SET btime_d=btime_d+mtime-?1, mtime=?1, ctime_d=0 WHERE ino=?2", "ii", now_ns, (int64_t)dir);
}

/* ---- shadow ---- */

int shadow_get(struct tree *t, struct nrow *w, struct server_side *ret) {
        struct server_side side = { .seq = w->seq, .nseq = w->nseq };
        int r;
        if (w->bits & NB_SHADOW) {
                struct db_stmt *s;
                r = db_query(t->w, &s, "SELECT row FROM shadow WHERE ino=?", "i", (int64_t)w->ino);
                if (r <= 0)
                        return r < 0 ? r : -EBADMSG;
                size_t n;
                const void *p = db_col_blob(s, 0, &n);
                r = vrow_unpack(t->scratch, p, n, &side.v);
                db_reset(s);
                if (r < 0)
                        return r;
                side.exists = true;
                side.deleted = w->bits & NB_GONE;
                r = db_query(t->w, &s, "SELECT parent,name,placement FROM shadow_name WHERE ino=?", "i", (int64_t)w->ino);
                r = names_read(t, s, r, false, &side.names);
        } else if (w->seq || w->ino == INO_ROOT) { /* the root is always there */
                r = row_extra(t, w);
                side.exists = true;
                side.v = w->v;
                if (r == 0)
                        r = entries_of(t, w, &side.names);
        } else {
                r = 0;
        }
        if (r == 0)
                *ret = side;
        return r;
}

int shadow_put(struct tree *t, struct nrow *w, const struct server_side *side) {
        const uint8_t *p;
        size_t n;
        int r = vrow_pack(t->scratch, &side->v, &p, &n);
        if (r == 0)
                r = db_run(t->w, "INSERT INTO shadow(ino,row) VALUES(?1,?2) ON CONFLICT(ino) DO UPDATE SET row=?2", "ib", (int64_t)w->ino, p, n);
        if (r == 0 && (w->bits & NB_SHADOW))
                r = db_run(t->w, "DELETE FROM shadow_name WHERE ino=?", "i", (int64_t)w->ino);
        for (size_t i = 0; i < side->names.n && r == 0; i++) {
                const struct vname *v = &side->names.v[i];
                r = db_run(t->w, "INSERT INTO shadow_name(ino,parent,name,placement) VALUES(?,?,?,?)", "iitI", (int64_t)w->ino, (int64_t)v->parent, v->name, v->n, &v->placement);
        }
        w->bits = (uint8_t)((w->bits & ~NB_GONE) | NB_SHADOW | (side->deleted ? NB_GONE : 0));
        return r;
}

int shadow_drop(struct tree *t, struct nrow *w) {
        if (!(w->bits & NB_SHADOW))
                return 0;
        w->bits &= (uint8_t)~(NB_SHADOW | NB_GONE);
        int r = db_run(t->w, "DELETE FROM shadow WHERE ino=?", "i", (int64_t)w->ino);
        return r < 0 ? r : db_run(t->w, "DELETE FROM shadow_name WHERE ino=?", "i", (int64_t)w->ino);
}

int shadow_ensure(struct tree *t, struct nrow *w) {
        struct server_side side;
        if ((w->bits & NB_SHADOW) || (w->seq == 0 && w->ino != INO_ROOT))
                return 0;
        int r = shadow_get(t, w, &side);
        return r < 0 ? r : shadow_put(t, w, &side);
}
