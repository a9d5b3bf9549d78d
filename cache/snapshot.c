/* SPDX-License-Identifier: Apache-2.0 */
/* snapshot.c: a whole workspace comes in beside the tree, and then becomes it.
 *
 * Loading. Pages of nodes and of names go into snap_node and snap_entry, which know no constraint but their keys: pages show the tree at different moments. Events up to
 * E meet them there by seq, with tombstones (snap_node.deleted) and the seq of each list of names (snap_node.nseq). Each page is one transaction with the state that continues the
 * scan (setting '.snapshot'); a killed load goes on after the last whole page.
 *
 * Applying, in steps of one transaction each, restartable at each (meta snap_phase, setting '.snapshot_pos'):
 *
 *   phase    does                                                                       by
 *   PREPARE  indexes on snap_entry; chooses FILL for an empty tree, else NODES (NEWER)  -
 *   NEWER    another epoch: files that are newer here are noted (tree_newer.c)          node id
 *   NODES    rows: new nodes come without names, others get a newer row                 node id
 *   NAMES    lists of names that differ                                                 node id
 *   WEIGH    counts the nodes of the server that the snapshot does not have             ino
 *   DELETES  those are deleted, or held if they are too many (tree_held.c)              ino
 *   FILL     an empty tree: rows go straight in, without views, notes or comparisons    node id
 *   LINK     an empty tree: the names                                                   parent, entry id
 *   FINISH   cursor, `complete`, side tables emptied                                    -
 *   SHRINK   free pages are given back to the file system                               -
 *
 * Nothing is shown of FILL and LINK: until `complete` is set, lookups of what is not there say -EHOSTDOWN. The other phases change what is shown by the same code as events
 * (tree_settle.c), so pending work is kept, unchanged content is not touched, and notes go out for what did change.
 *
 * With the epoch that the tree is of, rows count by seq as always, and nodes that are newer than E (accepted meanwhile) are not deleted. With another epoch, or where the server went back
 * without one (tree_held.c), seqs do not compare: each row is taken. */
#include "tree_priv.h"

#include <assert.h>

#define STEP_MS 10
#define FILL_FACTOR 16u       /* rows of FILL and LINK cost that much less than those that are compared */
#define SHRINK_PAGES 64

enum phase { PHASE_LOAD = 0, PHASE_NODES = 1, PHASE_NAMES = 2, PHASE_DELETES = 3, PHASE_FILL = 4, PHASE_LINK = 5, PHASE_FINISH = 6, PHASE_SHRINK = 7, PHASE_WEIGH = 8, PHASE_NEWER = 9 };

/* ---- state ---- */

static void put(uint8_t **p, const void *v, size_t n) {
        memcpy(*p, v, n);
        *p += n;
}
static void put_u64(uint8_t **p, uint64_t v) {
        for (unsigned i = 0; i < 8; i++)
                *(*p)++ = (uint8_t)(v >> (8 * i));
}
static uint64_t get_u64(const uint8_t **p) {
        uint64_t v = 0;
        for (unsigned i = 0; i < 8; i++)
                v |= (uint64_t)*(*p)++ << (8 * i);
        return v;
}
static void get(const uint8_t **p, void *v, size_t n) {
        memcpy(v, *p, n);
        *p += n;
}
static void put_cursor(uint8_t **p, const struct cursor *c) {
        put(p, c->epoch.b, ID_BYTES);
        put_u64(p, c->seq);
        put(p, c->mark, 8);
}
static void get_cursor(const uint8_t **p, struct cursor *c) {
        get(p, c->epoch.b, ID_BYTES);
        c->seq = get_u64(p);
        get(p, c->mark, 8);
}
#define STATE_BYTES (2 * ID_BYTES + 8 + 2 + 2 * DIGEST_BYTES + 2 * (ID_BYTES + 16))

static int setting_put(struct tree *t, const char *key, const void *p, size_t n) {
        return db_run(t->w, "INSERT INTO setting(key,value) VALUES(?1,?2) ON CONFLICT(key) DO UPDATE SET value=?2", "tb", key, strlen(key), p, n);
}

static int state_write(struct tree *t, const struct snapshot_state *s) {
        uint8_t b[STATE_BYTES], *p = b;
        put(&p, s->epoch.b, ID_BYTES);
        put(&p, s->nodes_after.b, ID_BYTES);
        put_u64(&p, s->entries_after);
        *p++ = s->nodes_end;
        *p++ = s->entries_end;
        put(&p, s->nodes_digest.b, DIGEST_BYTES);
        put(&p, s->entries_digest.b, DIGEST_BYTES);
        put_cursor(&p, &s->from);
        put_cursor(&p, &s->upto);
        assert(p == b + STATE_BYTES);
        return setting_put(t, ".snapshot", b, sizeof(b));
}

/* -ENOENT: no snapshot is under way. */
static int state_read(struct tree *t, struct snapshot_state *ret) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(t->w, &s, "SELECT value FROM setting WHERE key='.snapshot'", "");
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        size_t n;
        const uint8_t *p = db_col_blob(s, 0, &n);
        if (n != STATE_BYTES)
                return -EBADMSG;
        struct snapshot_state st = {0};
        get(&p, st.epoch.b, ID_BYTES);
        get(&p, st.nodes_after.b, ID_BYTES);
        st.entries_after = get_u64(&p);
        st.nodes_end = *p++;
        st.entries_end = *p++;
        get(&p, st.nodes_digest.b, DIGEST_BYTES);
        get(&p, st.entries_digest.b, DIGEST_BYTES);
        get_cursor(&p, &st.from);
        get_cursor(&p, &st.upto);
        *ret = st;
        return 0;
}

struct position { uint8_t b[ID_BYTES]; uint64_t number; }; /* node id or parent id; entry id or ino */

static int position_write(struct tree *t, enum phase phase, const struct position *pos) {
        uint8_t b[ID_BYTES + 8], *p = b;
        put(&p, pos->b, ID_BYTES);
        put_u64(&p, pos->number);
        int r = setting_put(t, ".snapshot_pos", b, sizeof(b));
        return r < 0 ? r : meta_set(t->w, "snap_phase", phase);
}

static int position_read(struct db *db, enum phase *ret_phase, struct position *ret) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int64_t phase;
        int r = meta_get(db, "snap_phase", &phase);
        if (r == 0)
                r = db_query(db, &s, "SELECT value FROM setting WHERE key='.snapshot_pos'", "");
        if (r < 0)
                return r;
        struct position pos = {0};
        size_t n = 0;
        const uint8_t *p = r > 0 ? db_col_blob(s, 0, &n) : NULL;
        if (n == ID_BYTES + 8) {
                get(&p, pos.b, ID_BYTES);
                pos.number = get_u64(&p);
        }
        *ret = pos;
        *ret_phase = (enum phase)phase;
        return 0;
}

/* Not what tree_snapshot_fork said: it is said before the load begins. */
static int clear(struct tree *t) {
        static const char *const sql[] = { "DELETE FROM snap_node", "DELETE FROM snap_entry", "DELETE FROM setting WHERE key IN ('.snapshot','.snapshot_pos')",
                                           "DELETE FROM meta WHERE key IN ('snap_phase','snap_events','snap_seen','snap_absent','snap_brake')", "DROP INDEX IF EXISTS snap_entry_node", "DROP INDEX IF EXISTS snap_entry_parent" };
        int r = 0;
        for (size_t i = 0; i < ARRAY_SIZE(sql) && r == 0; i++)
                r = db_run(t->w, sql[i], "");
        return r < 0 ? r : newer_abandon(t);
}

/* ---- loading ---- */

int tree_snapshot_begin(struct tree *t, const struct cursor *from, struct snapshot_state *ret) {
        struct snapshot_state st;
        int r = tree_begin(t);
        if (r == 0)
                r = state_read(t, &st);
        if ((r == 0 || r == -ENOENT) && t->answered.seq) { /* what another line of the server has said */
                int k = db_run(t->w, "DELETE FROM setting WHERE key='.answered'", "");
                r = k < 0 ? k : r;
                t->answered_next = (struct cursor){ 0 };
        }
        if (r == -ENOENT || (r == 0 && !id_equal(&st.epoch, &from->epoch))) {
                st = (struct snapshot_state){ .epoch = from->epoch, .from = *from };
                r = clear(t);
                if (r == 0)
                        r = state_write(t, &st);
        }
        r = tree_end(t, r);
        if (r == 0)
                *ret = st;
        return r;
}

static int put_node(struct tree *t, const struct node_row *n) {
        struct vrow v = {0};
        const uint8_t *p;
        size_t bytes;
        int r = n->deleted ? 0 : vrow_from_node(t->scratch, n, &v);
        if (r == 0)
                r = vrow_pack(t->scratch, &v, &p, &bytes);
        return r < 0 ? r
                     : db_run(t->w, "INSERT INTO snap_node(id,seq,nseq,deleted,row) VALUES(?1,?2,0,?3,?4) ON CONFLICT(id) DO UPDATE SET seq=?2, deleted=?3, row=?4 WHERE seq < ?2",
                              "Iiib", &n->id, (int64_t)n->seq, (int64_t)n->deleted, p, bytes);
}

static int put_entry(struct tree *t, const struct entry_row *e) {
        return db_run(t->w, "INSERT INTO snap_entry(entry_id,parent,node,name,placement,seq) VALUES(?1,?2,?3,?4,?5,?6)"
                            " ON CONFLICT(entry_id) DO UPDATE SET parent=?2, node=?3, name=?4, placement=?5, seq=?6 WHERE seq <= ?6", "iIItIi",
                      (int64_t)e->entry_id, &e->parent, &e->node, e->name, e->name_bytes, &e->placement, (int64_t)e->seq);
}

int tree_snapshot_nodes(struct tree *t, const struct node_row *rows, size_t n, const struct snapshot_state *after_page) {
        int r = tree_begin(t);
        for (size_t i = 0; i < n && r == 0; i++) {
                r = put_node(t, &rows[i]);
                arena_reset(t->scratch);
        }
        if (r == 0)
                r = state_write(t, after_page);
        return tree_end(t, r);
}

int tree_snapshot_entries(struct tree *t, const struct entry_row *rows, size_t n, const struct snapshot_state *after_page) {
        int64_t events = 0;
        int r = tree_begin(t);
        if (r == 0)
                r = meta_get(t->w, "snap_events", &events);
        for (size_t i = 0; i < n && r == 0; i++) {
                if (events) { /* an event may have told of a later list of this node's names */
                        int64_t nseq;
                        r = db_int(t->w, &nseq, "SELECT nseq FROM snap_node WHERE id=?", "I", &rows[i].node);
                        if (r == 0 && nseq >= (int64_t)rows[i].seq)
                                continue;
                        if (r == -ENOENT)
                                r = 0;
                }
                if (r == 0)
                        r = put_entry(t, &rows[i]);
        }
        if (r == 0)
                r = state_write(t, after_page);
        return tree_end(t, r);
}

static int event_change(struct tree *t, const struct change *c, uint64_t seq) {
        int64_t nseq = 0;
        int r = put_node(t, &c->node);
        if (r == 0)
                r = db_int(t->w, &nseq, "SELECT nseq FROM snap_node WHERE id=?", "I", &c->node.id);
        if (r < 0 || (!c->has_entries && !c->node.deleted) || nseq >= (int64_t)seq)
                return r;
        r = db_run(t->w, "DELETE FROM snap_entry WHERE node=?", "I", &c->node.id);
        for (size_t i = 0; i < c->n_entries && r == 0 && !c->node.deleted; i++)
                r = put_entry(t, &c->entries[i]);
        return r < 0 ? r : db_run(t->w, "UPDATE snap_node SET nseq=? WHERE id=?", "iI", (int64_t)seq, &c->node.id);
}

int tree_snapshot_events(struct tree *t, const struct event *events, size_t n) {
        int r = tree_begin(t);
        if (r == 0)
                r = db_run(t->w, "CREATE INDEX IF NOT EXISTS snap_entry_node ON snap_entry(node)", "");
        if (r == 0)
                r = meta_set(t->w, "snap_events", 1);
        for (size_t i = 0; i < n && r == 0; i++) {
                for (size_t k = 0; k < events[i].n_changes && r == 0; k++)
                        r = event_change(t, &events[i].changes[k], events[i].seq);
                arena_reset(t->scratch);
        }
        return tree_end(t, r);
}

int tree_snapshot_abandon(struct tree *t) {
        int r = tree_begin(t);
        if (r == 0)
                r = clear(t);
        return tree_end(t, r);
}

/* ---- applying ---- */

struct step {
        struct tree *t;
        struct snapshot_state state;
        struct position pos;
        size_t max;
        int64_t until_ms;
        bool same_epoch;
        bool end;          /* of the phase */
};

struct snap_row { struct id id; uint64_t seq, nseq; bool deleted; struct vrow v; };

/* The next rows of snap_node, in scratch. */
static int next_nodes(struct step *s, size_t max, struct snap_row **ret, size_t *ret_n) {
        struct db_stmt *q;
        size_t n = 0, room = 0;
        struct snap_row *list = NULL;
        int r = db_query(s->t->w, &q, "SELECT id,seq,nseq,deleted,row FROM snap_node WHERE id>? ORDER BY id LIMIT ?", "bi", s->pos.b, (size_t)(id_is_zero((struct id *)s->pos.b) ? 0 : ID_BYTES),
                         (int64_t)max);
        while (r > 0) {
                size_t bytes;
                if (n == room) {
                        size_t more = room ? room * 2 : 16;
                        struct snap_row *longer = arena_alloc(s->t->scratch, more * sizeof(*list));
                        if (!longer) {
                                db_reset(q);
                                return -ENOMEM;
                        }
                        if (n)
                                memcpy(longer, list, n * sizeof(*list));
                        list = longer;
                        room = more;
                }
                list[n].id = db_col_id(q, 0);
                list[n].seq = (uint64_t)db_col_int(q, 1);
                list[n].nseq = (uint64_t)db_col_int(q, 2);
                list[n].deleted = db_col_int(q, 3);
                const void *p = db_col_blob(q, 4, &bytes);
                r = list[n].deleted ? 0 : vrow_unpack(s->t->scratch, p, bytes, &list[n].v);
                if (r < 0) {
                        db_reset(q);
                        return r;
                }
                n++;
                r = db_step(q);
        }
        if (r < 0)
                return r;
        s->end = n < max;
        *ret = list;
        *ret_n = n;
        return 0;
}

static bool over(struct step *s, size_t i) {
        return i % 32 == 31 && clock_mono_ms(s->t->clock) >= s->until_ms;
}

static int one_node(struct step *s, const struct snap_row *n) {
        struct tree *t = s->t;
        struct nrow row;
        struct server_side side;
        uint64_t ino;
        int r = row_find(t, t->w, &n->id, &ino);
        if (r == -ENOENT) {
                row = (struct nrow){ .id = n->id, .v = n->v, .nlink = n->v.kind == NODE_DIR ? 2 : 0, .seq = n->seq, .nseq = 0 };
                return row_insert(t, &row);
        }
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r < 0 || (s->same_epoch && n->seq <= row.seq))
                return r;
        r = shadow_get(t, &row, &side);
        if (r == 0 && !s->same_epoch)
                r = newer_keep(t, &row, &side, &n->v);
        side.v = n->v;
        side.exists = true;
        side.deleted = false;
        side.seq = n->seq;
        return r < 0 ? r : settle(t, ino, &side, NULL);
}

static int step_nodes(struct step *s) {
        struct snap_row *list;
        size_t n;
        int r = next_nodes(s, s->max, &list, &n);
        for (size_t i = 0; i < n && r == 0; i++) {
                if (!list[i].deleted)
                        r = one_node(s, &list[i]);
                memcpy(s->pos.b, list[i].id.b, ID_BYTES);
                if (over(s, i) && i + 1 < n) {
                        s->end = false;
                        break;
                }
        }
        return r;
}

static int step_newer(struct step *s) {
        struct tree *t = s->t;
        struct snap_row *list;
        size_t n;
        bool all;
        uint64_t above;
        int r = next_nodes(s, s->max, &list, &n);
        if (r == 0)
                r = held_rule(t, false, &all, &above);
        for (size_t i = 0; i < n && r == 0; i++) {
                if (!list[i].deleted)
                        r = newer_look(t, &list[i].id, &list[i].v, all ? 0 : above);
                memcpy(s->pos.b, list[i].id.b, ID_BYTES);
                if (over(s, i) && i + 1 < n) {
                        s->end = false;
                        break;
                }
        }
        return r;
}

static int snap_names(struct tree *t, const struct id *node, struct vnames *ret, uint64_t *ret_seq, bool *ret_whole) {
        struct db_stmt *q;
        struct { struct id parent; struct vname v; } *list = NULL;
        size_t n = 0, room = 0;
        uint64_t seq = 0;
        int r = db_query(t->w, &q, "SELECT parent,name,placement,seq FROM snap_entry WHERE node=?", "I", node);
        while (r > 0) {
                if (n == room) {
                        size_t more = room ? room * 2 : 2;
                        void *p = arena_alloc(t->scratch, more * sizeof(*list));
                        if (p && n)
                                memcpy(p, list, n * sizeof(*list));
                        list = p;
                        room = more;
                }
                if (!list) {
                        db_reset(q);
                        return -ENOMEM;
                }
                list[n].parent = db_col_id(q, 0);
                list[n].v = (struct vname){ .placement = db_col_id(q, 2) };
                const char *name = db_col_text(q, 1, &list[n].v.n);
                list[n].v.name = arena_strndup(t->scratch, name, list[n].v.n);
                seq = MAX(seq, (uint64_t)db_col_int(q, 3));
                n++;
                r = db_step(q);
        }
        struct vnames names = { .v = arena_alloc(t->scratch, MAX(n, 1u) * sizeof(struct vname)) };
        if (r < 0 || !names.v)
                return r < 0 ? r : -ENOMEM;
        *ret_whole = true;
        for (size_t i = 0; i < n && r == 0; i++) {
                r = row_find(t, t->w, &list[i].parent, &list[i].v.parent);
                if (r == 0)
                        names.v[names.n++] = list[i].v;
                if (r == -ENOENT) {
                        *ret_whole = false;
                        r = 0;
                }
        }
        *ret = names;
        *ret_seq = seq;
        return r;
}

static bool names_equal(const struct vnames *a, const struct vnames *b) {
        if (a->n != b->n)
                return false;
        for (size_t i = 0; i < a->n; i++) {
                bool found = false;
                for (size_t k = 0; k < b->n && !found; k++)
                        found = a->v[i].parent == b->v[k].parent && a->v[i].n == b->v[k].n && memcmp(a->v[i].name, b->v[k].name, a->v[i].n) == 0 &&
                                id_equal(&a->v[i].placement, &b->v[k].placement);
                if (!found)
                        return false;
        }
        return true;
}

static int one_list(struct step *s, const struct snap_row *n) {
        struct tree *t = s->t;
        struct nrow row;
        struct server_side side;
        struct vnames names;
        uint64_t ino, seq;
        bool whole;
        int r = row_find(t, t->w, &n->id, &ino);
        if (r == 0)
                r = row_get(t, t->w, ino, &row);
        if (r < 0 || ino == INO_ROOT)
                return r == -ENOENT ? 0 : r;
        r = snap_names(t, &n->id, &names, &seq, &whole);
        if (r < 0 || !whole || names.n == 0) /* no live node is without a name: then it is not known, and absence proves nothing */
                return r;
        seq = MAX(MAX(seq, n->nseq), n->seq);
        if (s->same_epoch && seq < row.nseq)
                return 0;
        r = shadow_get(t, &row, &side);
        if (r < 0)
                return r;
        bool same = names_equal(&side.names, &names);
        if (same && row.nseq == seq)
                return 0;
        side.names = names;
        side.nseq = seq;
        return settle(t, ino, &side, NULL);
}

static int step_names(struct step *s) {
        struct snap_row *list;
        size_t n;
        int r = next_nodes(s, s->max, &list, &n);
        for (size_t i = 0; i < n && r == 0; i++) {
                if (!list[i].deleted)
                        r = one_list(s, &list[i]);
                memcpy(s->pos.b, list[i].id.b, ID_BYTES);
                if (over(s, i) && i + 1 < n) {
                        s->end = false;
                        break;
                }
        }
        return r;
}

/* The next nodes that the server has had; those that the snapshot does not have. */
static int next_absent(struct step *s, struct open_set *ret, size_t *ret_seen) {
        struct tree *t = s->t;
        struct db_stmt *q;
        size_t n = 0;
        int r = db_query(t->w, &q, "SELECT n.ino, n.seq, EXISTS(SELECT 1 FROM snap_node s WHERE s.id=n.id AND s.deleted=0) OR EXISTS(SELECT 1 FROM held h WHERE h.ino=n.ino) FROM node n WHERE n.ino>?"
                                   " ORDER BY n.ino LIMIT ?", "ii", (int64_t)s->pos.number, (int64_t)s->max);
        while (r > 0) {
                uint64_t seq = (uint64_t)db_col_int(q, 1);
                s->pos.number = (uint64_t)db_col_int(q, 0);
                n++;
                if (!db_col_int(q, 2) && seq && s->pos.number != INO_ROOT && !(s->same_epoch && seq > s->state.upto.seq))
                        r = open_set_add(ret, s->pos.number);
                if (r < 0)
                        db_reset(q);
                else
                        r = db_step(q);
        }
        s->end = n < s->max;
        *ret_seen = n;
        return r;
}

static int step_weigh(struct step *s) {
        struct open_set list = {0};
        size_t seen;
        int r = next_absent(s, &list, &seen);
        if (r == 0)
                r = held_weigh(s->t, seen, list.n, s->end);
        cleanup_open_set_p(&list);
        return r;
}

static int step_deletes(struct step *s) {
        struct tree *t = s->t;
        struct open_set list = {0};
        size_t seen;
        bool hold_all;
        uint64_t hold_above;
        int r = next_absent(s, &list, &seen);
        if (r == 0)
                r = held_rule(t, s->same_epoch, &hold_all, &hold_above);
        for (size_t i = 0; i < list.n && r == 0; i++) {
                struct nrow row;
                struct server_side side;
                r = row_get(t, t->w, list.ino[i], &row);
                if (r == -ENOENT) {
                        r = 0;
                        continue;
                }
                if (r == 0 && (hold_all || row.seq > hold_above)) {
                        r = held_add(t, row.ino);
                        continue;
                }
                if (r == 0)
                        r = shadow_get(t, &row, &side);
                side.deleted = true;
                side.seq = s->state.upto.seq;
                if (r == 0)
                        r = settle(t, row.ino, &side, NULL);
        }
        cleanup_open_set_p(&list);
        return r;
}

/* ---- the empty tree ---- */

static int step_fill(struct step *s) {
        struct snap_row *list;
        size_t n;
        int r = next_nodes(s, s->max * FILL_FACTOR, &list, &n);
        for (size_t i = 0; i < n && r == 0; i++) {
                memcpy(s->pos.b, list[i].id.b, ID_BYTES);
                if (list[i].deleted)
                        continue;
                struct nrow row = { .id = list[i].id, .v = list[i].v, .nlink = list[i].v.kind == NODE_DIR ? 2 : 0, .seq = list[i].seq, .nseq = MAX(list[i].seq, list[i].nseq),
                                    .extra_loaded = true };
                if (id_equal(&row.id, &id_root)) {
                        row.ino = INO_ROOT;
                        r = row_write_extra(s->t, &row);
                        if (r == 0)
                                r = row_write(s->t, &row);
                } else {
                        r = row_insert(s->t, &row);
                }
        }
        return r;
}

static int add_subdirs(struct tree *t, uint64_t ino, uint64_t n) {
        return n ? db_run(t->w, "UPDATE node SET nlink=nlink+? WHERE ino=?", "ii", (int64_t)n, (int64_t)ino) : 0;
}

static int step_link(struct step *s) {
        struct tree *t = s->t;
        struct db_stmt *q;
        struct id last = {0};
        const struct position from = s->pos; /* bound while the rows are read, so it must stay */
        uint64_t parent = 0, subdirs = 0;
        size_t n = 0, max = s->max * FILL_FACTOR;
        tree_naming(t, 0);
        int r = db_query(t->w, &q, "SELECT e.parent,e.entry_id,e.name,e.placement,n.ino,n.mode,n.seq,e.seq,n.nseq FROM snap_entry e LEFT JOIN node n ON n.id=e.node"
                                   " WHERE (e.parent,e.entry_id)>(?,?) ORDER BY e.parent,e.entry_id LIMIT ?", "bii", from.b, (size_t)(id_is_zero((const struct id *)from.b) ? 0 : ID_BYTES),
                         (int64_t)from.number, (int64_t)max);
        while (r > 0) {
                struct id id = db_col_id(q, 0), placement = db_col_id(q, 3);
                uint64_t ino = (uint64_t)db_col_int(q, 4), cookie, mode = (uint64_t)db_col_int(q, 5);
                size_t bytes;
                const char *name = db_col_text(q, 2, &bytes);
                int64_t seq = db_col_int(q, 7);
                int e = 0;
                memcpy(s->pos.b, id.b, ID_BYTES);
                s->pos.number = (uint64_t)db_col_int(q, 1);
                n++;
                if (!parent || !id_equal(&id, &last)) {
                        e = add_subdirs(t, parent, subdirs);
                        subdirs = 0;
                        last = id;
                        if (e == 0)
                                e = row_find(t, t->w, &id, &parent);
                        if (e == -ENOENT)
                                e = parent = 0;
                }
                if (e == 0 && parent && ino && ino != INO_ROOT) { /* a name of a node that is not there ended before E */
                        e = tree_number(t, NUMBER_COOKIE, &cookie);
                        bool dir = mode >> 12 == NODE_DIR, more = false;
                        subdirs += dir;
                        if (e == 0)
                                e = db_run(t->w, "UPDATE node SET parent=?1, cookie=?2, nlink=nlink+?3, nseq=CASE WHEN ?4>seq THEN ?4 ELSE nseq END WHERE ino=?5 AND cookie=0", "iiiii",
                                           (int64_t)parent, (int64_t)cookie, (int64_t)!dir, seq, (int64_t)ino);
                        if (e == 0 && db_changes(t->w) == 0) {
                                more = true;
                                e = db_run(t->w, "UPDATE node SET nlink=nlink+1, nseq=max(ifnull(nseq,seq),?) WHERE ino=?", "ii", seq, (int64_t)ino);
                        }
                        if (e == 0)
                                e = db_run(t->w, "INSERT INTO entry(parent,cookie,name,node,placement,bits) VALUES(?,?,?,?,?,?)", "iitiIi", (int64_t)parent, (int64_t)cookie, name, bytes,
                                           (int64_t)ino, &placement, (int64_t)(more ? 2 : 0));
                }
                if (e < 0) {
                        db_reset(q);
                        return e;
                }
                r = db_step(q);
        }
        if (r == 0 && parent)
                r = add_subdirs(t, parent, subdirs);
        s->end = n < max;
        return r;
}

/* ---- one step ---- */

static int prepare(struct step *s, enum phase *ret) {
        struct tree *t = s->t;
        int64_t nodes, pending;
        int r = db_int(t->w, &nodes, "SELECT count(*) FROM (SELECT 1 FROM node LIMIT 2)", "");
        if (r == 0)
                r = db_int(t->w, &pending, "SELECT EXISTS(SELECT 1 FROM outbox)", "");
        if (r < 0)
                return r;
        bool fill = nodes == 1 && !pending && id_is_zero(&t->cursor.epoch);
        const bool other = !s->same_epoch && !id_is_zero(&t->cursor.epoch);
        *ret = fill ? PHASE_FILL : other ? PHASE_NEWER : PHASE_NODES;
        if (fill || other)
                r = db_run(t->w, "CREATE INDEX IF NOT EXISTS snap_entry_parent ON snap_entry(parent, entry_id)", "");
        return r < 0 || fill ? r : db_run(t->w, "CREATE INDEX IF NOT EXISTS snap_entry_node ON snap_entry(node)", "");
}

static int finish(struct step *s, const struct cursor *upto) {
        struct tree *t = s->t;
        int r = apply_cursor(t, upto);
        if (r == 0)
                r = clear(t);
        if (r == 0)
                r = db_run(t->w, "DELETE FROM meta WHERE key IN ('snap_forks','snap_fork_seq','snap_parted')", "");
        if (r == 0)
                r = held_refresh(t);
        if (r == 0)
                r = held_send_wanted(t);
        if (r == 0)
                r = meta_set(t->w, "complete", 1);
        if (r == 0)
                r = meta_set(t->w, "snap_phase", PHASE_SHRINK);
        t->cursor_next = *upto;
        return r;
}

static int shrink(struct tree *t) {
        int64_t before, after;
        int r = db_int(t->w, &before, "PRAGMA freelist_count", "");
        if (r == 0)
                r = db_run(t->w, "PRAGMA incremental_vacuum(1024)", "");
        if (r == 0)
                r = db_int(t->w, &after, "PRAGMA freelist_count", "");
        if (r < 0)
                return r;
        if (after > SHRINK_PAGES && after < before)
                return 1;
        r = db_run(t->w, "DELETE FROM meta WHERE key='snap_phase'", "");
        return r;
}

static int step_in(struct step *s, const struct cursor *upto) {
        static const enum phase after[] = { [PHASE_NEWER] = PHASE_NODES, [PHASE_NODES] = PHASE_NAMES, [PHASE_NAMES] = PHASE_WEIGH, [PHASE_WEIGH] = PHASE_DELETES, [PHASE_DELETES] = PHASE_FINISH, [PHASE_FILL] = PHASE_LINK, [PHASE_LINK] = PHASE_FINISH };
        struct tree *t = s->t;
        enum phase phase;
        int r = position_read(t->w, &phase, &s->pos);
        if (r == 0 && phase == PHASE_SHRINK)
                return shrink(t);
        if (r == 0)
                r = state_read(t, &s->state);
        if (r < 0)
                return r;
        s->state.upto = *upto;
        int64_t parted;
        r = meta_get(t->w, "snap_parted", &parted);
        if (r < 0)
                return r;
        s->same_epoch = id_equal(&s->state.epoch, &t->cursor.epoch) && !parted;
        switch (phase) {
        case PHASE_LOAD:
                r = prepare(s, &phase);
                if (r == 0)
                        r = position_write(t, phase, &(struct position){ .number = 0 });
                return r < 0 ? r : 1;
        case PHASE_NEWER:
                r = step_newer(s);
                break;
        case PHASE_NODES:
                r = step_nodes(s);
                break;
        case PHASE_NAMES:
                r = step_names(s);
                break;
        case PHASE_WEIGH:
                r = step_weigh(s);
                break;
        case PHASE_DELETES:
                r = step_deletes(s);
                break;
        case PHASE_FILL:
                r = step_fill(s);
                break;
        case PHASE_LINK:
                r = step_link(s);
                break;
        case PHASE_FINISH:
                r = finish(s, upto);
                return r < 0 ? r : 1;
        default:
                return -EBADMSG;
        }
        if (r < 0)
                return r;
        r = s->end ? position_write(t, after[phase], &(struct position){ .number = 0 }) : position_write(t, phase, &s->pos);
        return r < 0 ? r : 1;
}

int tree_snapshot_step(struct tree *t, const struct cursor *upto, size_t max_rows, bool (*is_open)(void *arg, uint64_t ino), void *arg) {
        struct tree_applied out;
        struct step s = { .t = t, .max = MAX(max_rows, 1u), .until_ms = clock_mono_ms(t->clock) + STEP_MS };
        int r = apply_begin(t, is_open, arg, NULL, &out);
        t->out = NULL; /* nothing of ours is completed by a snapshot */
        if (r == 0)
                r = step_in(&s, upto);
        bool finished = r >= 0 && !id_is_zero(&t->cursor_next.epoch) && t->cursor_next.seq == upto->seq && id_equal(&t->cursor_next.epoch, &upto->epoch);
        r = tree_end(t, r);
        if (r >= 0 && finished)
                atomic_store(&t->complete, true);
        return r;
}
