/* SPDX-License-Identifier: Apache-2.0 */
/* meta_space.c: workspaces, members, quota, epochs, the horizon.
 *
 * A workspace is born with its root directory (id_root, no entry) at seq 0, whose mark is zero: an empty client may start there and replay everything.
 * A workspace that the asker is no member of does not exist for him. Changes to the row go through txn_space, as it may be cached in the transaction. */
#include <stdio.h>
#include <string.h>

#include "base/portable.h"
#include "meta_int.h"

const char *meta_role_name(enum meta_role r) {
        static const char *const names[] = { "none", "viewer", "editor", "owner" };
        return r <= ROLE_OWNER ? names[r] : "none";
}

int meta_role_parse(const char *s, enum meta_role *ret) {
        for (enum meta_role r = ROLE_NONE; r <= ROLE_OWNER; r++)
                if (strcmp(s, meta_role_name(r)) == 0) {
                        *ret = r;
                        return 0;
                }
        return -EINVAL;
}

int role_get(struct sql *db, uint64_t ws, uint64_t account) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT role FROM member WHERE workspace = ?1 AND account = ?2", "ii", (int64_t)ws, (int64_t)account);
        if (r <= 0)
                return r;
        int64_t role = sql_int(db, st, 0);
        sql_reset(db, st);
        return role >= ROLE_NONE && role <= ROLE_OWNER ? (int)role : ROLE_NONE;
}

#define SPACE_COLUMNS                                                                                                                  \
        "w.id, w.name, w.name_rule, w.epoch, w.seq, w.mark, w.predecessor, w.fork_seq, w.horizon, w.quota, w.used, w.reserved, w.nodes, a.name" \
        " FROM workspace w JOIN account a ON a.id = w.owner"

static void space_from(struct sql *db, struct sql_stmt *st, struct meta_workspace *ret) {
        struct meta_workspace w = { .ws = (uint64_t)sql_int(db, st, 0), .names = (enum meta_name_rule)sql_int(db, st, 2) };
        (void)snprintf(w.name, sizeof w.name, "%s", sql_text(db, st, 1));
        sql_get_id(db, st, 3, &w.at.epoch);
        w.at.seq = (uint64_t)sql_int(db, st, 4);
        size_t n;
        const void *mark = sql_blob(db, st, 5, &n);
        if (mark && n == 8)
                memcpy(w.at.mark, mark, 8);
        sql_get_id(db, st, 6, &w.predecessor);
        w.fork_seq = (uint64_t)sql_int(db, st, 7);
        w.horizon = (uint64_t)sql_int(db, st, 8);
        w.quota_bytes = (uint64_t)sql_int(db, st, 9);
        w.used_bytes = (uint64_t)sql_int(db, st, 10);
        w.reserved_bytes = (uint64_t)sql_int(db, st, 11);
        w.nodes = (uint64_t)sql_int(db, st, 12);
        (void)snprintf(w.owner, sizeof w.owner, "%s", sql_text(db, st, 13));
        *ret = w;
}

int space_read(struct sql *db, uint64_t ws, struct meta_workspace *ret) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT " SPACE_COLUMNS " WHERE w.id = ?1", "i", (int64_t)ws);
        if (r <= 0)
                return r;
        space_from(db, st, ret);
        sql_reset(db, st);
        return 1;
}

struct add_arg { const char *name, *owner; enum meta_name_rule names; uint64_t quota; struct id epoch; uint64_t ws; };

static int add_write(struct txn *t, void *arg, int *ret_refusal) {
        struct add_arg *w = arg;
        struct sql_stmt *st;
        int r = sql_first(t->db, &st, "SELECT id FROM workspace WHERE name = ?1", "t", w->name);
        if (r != 0) {
                if (r > 0)
                        sql_reset(t->db, st);
                *ret_refusal = -EEXIST;
                return r < 0 ? r : 0;
        }
        r = sql_first(t->db, &st, "SELECT id FROM account WHERE name = ?1", "t", w->owner);
        if (r <= 0) {
                *ret_refusal = -ENOENT;
                return r;
        }
        int64_t owner = sql_int(t->db, st, 0);
        sql_reset(t->db, st);
        static const uint8_t zero[8];
        r = sql_first(t->db, &st,
                      "INSERT INTO workspace(name, owner, created_ns, epoch, predecessor, fork_seq, seq, mark, horizon, horizon_mark, entry_next, time_ns, name_rule, unicode,"
                      " quota, used, reserved, nodes) VALUES(?1, ?2, ?3, ?4, NULL, 0, 0, ?5, 0, ?5, 1, ?3, ?6, nullif(?8, 0), ?7, 0, 0, 1) RETURNING id", "tiiDbiii", w->name, owner,
                      t->now_ns, &w->epoch, (const void *)zero, sizeof zero, (int64_t)w->names, (int64_t)w->quota, (int64_t)(w->names == NAMES_PORTABLE ? name_fold_unicode() : 0));
        if (r <= 0)
                return r < 0 ? r : -EIO;
        w->ws = (uint64_t)sql_int(t->db, st, 0);
        sql_reset(t->db, st);
        r = sql_run(t->db, "INSERT INTO member(workspace, account, role) VALUES(?1, ?2, ?3)", "iii", (int64_t)w->ws, owner, (int64_t)ROLE_OWNER);
        if (r < 0)
                return r;
        return sql_run(t->db, "INSERT INTO node(workspace, id, kind, mode, uid, gid, rdev, mtime_ns, ctime_ns, btime_ns, size, depth, param, seq, deleted)"
                              " VALUES(?1, ?2, ?3, 493, 0, 0, 0, ?4, ?4, ?4, 0, 0, 0, 0, 0)", "iDii", (int64_t)w->ws, &id_root, (int64_t)NODE_DIR, t->now_ns);
}

int meta_workspace_add(struct meta *m, const char *name, const char *owner, enum meta_name_rule names, uint64_t quota_bytes, uint64_t *ret_ws) {
        int r = names_valid(name);
        if (r < 0)
                return r;
        if ((names != NAMES_EXACT && names != NAMES_PORTABLE) || quota_bytes > INT64_MAX)
                return -EINVAL;
        struct add_arg w = { .name = name, .owner = owner, .names = names, .quota = quota_bytes, .epoch = rng_id(m->c.rng) };
        r = meta_write(m, add_write, &w);
        if (r < 0)
                return r;
        *ret_ws = w.ws;
        return 0;
}

int meta_access(struct meta *m, const struct meta_subject *subject, const char *name, enum meta_role least, struct meta_workspace *ret) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        struct sql_stmt *st;
        r = sql_first(v.db, &st, "SELECT " SPACE_COLUMNS " WHERE w.name = ?1", "t", name);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        struct meta_workspace w;
        space_from(v.db, st, &w);
        sql_reset(v.db, st);
        if (subject) {
                r = role_get(v.db, w.ws, subject->account);
                if (r <= ROLE_NONE)
                        return r < 0 ? r : -ENOENT;
                w.role = (enum meta_role)r;
                if (w.role < least)
                        return -EACCES;
        }
        *ret = w;
        return 0;
}

int meta_workspaces(struct meta *m, const struct meta_subject *subject, struct arena *a, struct meta_workspace **ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        struct sql_stmt *st = NULL;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = sql_first(v.db, &st, "SELECT count(*) FROM workspace", "");
        if (r < 0)
                return r;
        size_t room = (size_t)sql_int(v.db, st, 0), n = 0, kept = 0;
        sql_reset(v.db, st);
        struct meta_workspace *list = arena_alloc(a, room * sizeof *list);
        if (!list)
                return -ENOMEM;
        r = sql_stmt(v.db, &st, "SELECT " SPACE_COLUMNS " ORDER BY w.name", "");
        if (r < 0)
                return r;
        for (; n < room && (r = sql_step(v.db, st)) > 0; n++)
                space_from(v.db, st, &list[n]);
        sql_reset(v.db, st);
        for (size_t i = 0; r >= 0 && i < n; i++) {
                if (subject) {
                        r = role_get(v.db, list[i].ws, subject->account);
                        if (r <= ROLE_NONE)
                                continue;
                        list[i].role = (enum meta_role)r;
                }
                list[kept++] = list[i];
        }
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = kept;
        return 0;
}

struct set_arg { uint64_t ws, value; struct id epoch; };

static int quota_write(struct txn *t, void *arg, int *ret_refusal) {
        struct set_arg *q = arg;
        struct space *s;
        int r = txn_space(t, q->ws, &s);
        if (r <= 0) {
                *ret_refusal = -ENOENT;
                return r;
        }
        s->quota = q->value;
        s->dirty = true;
        return 0;
}

int meta_quota_set(struct meta *m, uint64_t ws, uint64_t quota_bytes) {
        struct set_arg q = { .ws = ws, .value = quota_bytes };
        return quota_bytes > INT64_MAX ? -EINVAL : meta_write(m, quota_write, &q);
}

int meta_quota_check(struct meta *m, uint64_t ws, uint64_t bytes) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        struct meta_workspace w;
        r = space_read(v.db, ws, &w);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        if (w.quota_bytes == 0)
                return 0;
        uint64_t taken = w.used_bytes + w.reserved_bytes;
        return taken > w.quota_bytes || bytes > w.quota_bytes - taken ? -EDQUOT : 0;
}

int meta_members(struct meta *m, uint64_t ws, struct arena *a, struct meta_member **ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        struct sql_stmt *st = NULL;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = sql_first(v.db, &st, "SELECT count(*) FROM member WHERE workspace = ?1", "i", (int64_t)ws);
        if (r < 0)
                return r;
        size_t room = (size_t)sql_int(v.db, st, 0), n = 0;
        sql_reset(v.db, st);
        struct meta_member *list = arena_alloc(a, room * sizeof *list);
        if (!list)
                return -ENOMEM;
        r = sql_stmt(v.db, &st, "SELECT a.name, m.role FROM member m JOIN account a ON a.id = m.account WHERE m.workspace = ?1 ORDER BY a.name", "i", (int64_t)ws);
        if (r < 0)
                return r;
        for (; n < room && (r = sql_step(v.db, st)) > 0; n++) {
                (void)snprintf(list[n].name, sizeof list[n].name, "%s", sql_text(v.db, st, 0));
                list[n].role = (enum meta_role)sql_int(v.db, st, 1);
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = n;
        return 0;
}

struct member_arg { const struct meta_subject *by; uint64_t ws; const char *user; enum meta_role role; };

static int member_write(struct txn *t, void *arg, int *ret_refusal) {
        struct member_arg *g = arg;
        struct space *s;
        int r = txn_space(t, g->ws, &s);
        if (r <= 0) {
                *ret_refusal = -ENOENT;
                return r;
        }
        if (g->by && (r = role_get(t->db, g->ws, g->by->account)) != ROLE_OWNER) {
                *ret_refusal = -EACCES;
                return r < 0 ? r : 0;
        }
        struct sql_stmt *st;
        r = sql_first(t->db, &st, "SELECT id FROM account WHERE name = ?1", "t", g->user);
        if (r <= 0) {
                *ret_refusal = -ENOENT;
                return r;
        }
        int64_t account = sql_int(t->db, st, 0);
        sql_reset(t->db, st);
        if (g->role != ROLE_OWNER) {
                r = sql_first(t->db, &st, "SELECT count(*) FROM member WHERE workspace = ?1 AND role = ?2 AND account <> ?3", "iii", (int64_t)g->ws, (int64_t)ROLE_OWNER, account);
                if (r < 0)
                        return r;
                int64_t others = sql_int(t->db, st, 0);
                sql_reset(t->db, st);
                if (others == 0) {
                        *ret_refusal = -EBUSY;
                        return 0;
                }
        }
        if (g->role == ROLE_NONE)
                return sql_run(t->db, "DELETE FROM member WHERE workspace = ?1 AND account = ?2", "ii", (int64_t)g->ws, account);
        return sql_run(t->db, "INSERT INTO member(workspace, account, role) VALUES(?1, ?2, ?3) ON CONFLICT(workspace, account) DO UPDATE SET role = excluded.role", "iii",
                       (int64_t)g->ws, account, (int64_t)g->role);
}

int meta_member_set(struct meta *m, const struct meta_subject *by, uint64_t ws, const char *user, enum meta_role role) {
        struct member_arg g = { by, ws, user, role };
        return role > ROLE_OWNER ? -EINVAL : meta_write(m, member_write, &g);
}

int epoch_change(struct sql *db, uint64_t ws, const struct id *epoch) {
        int r = sql_run(db, "INSERT INTO epoch(workspace, id, fork_seq) SELECT id, epoch, seq FROM workspace WHERE id = ?1", "i", (int64_t)ws);
        if (r == 0)
                r = sql_run(db, "UPDATE epoch SET fork_seq = (SELECT seq FROM workspace w WHERE w.id = ?1) WHERE workspace = ?1 AND fork_seq > (SELECT seq FROM workspace w WHERE w.id = ?1)", "i",
                            (int64_t)ws);
        return r < 0 ? r : sql_run(db, "UPDATE workspace SET predecessor = epoch, fork_seq = seq, epoch = ?2 WHERE id = ?1", "iD", (int64_t)ws, epoch);
}

static int epoch_write(struct txn *t, void *arg, int *ret_refusal) {
        struct set_arg *e = arg;
        struct space *s;
        int r = txn_space(t, e->ws, &s);
        if (r <= 0) {
                *ret_refusal = -ENOENT;
                return r;
        }
        r = s->dirty ? space_write(t, s) : 0;
        if (r == 0)
                r = epoch_change(t->db, e->ws, &e->epoch);
        if (r == 0) {
                s->at.epoch = e->epoch;
                s->news = true;
        }
        return r;
}

int meta_epoch_new(struct meta *m, uint64_t ws, struct id *ret_epoch) {
        struct set_arg e = { .ws = ws, .epoch = rng_id(m->c.rng) };
        int r = meta_write(m, epoch_write, &e);
        if (r == 0)
                *ret_epoch = e.epoch;
        return r;
}

static int horizon_write(struct txn *t, void *arg, int *ret_refusal) {
        struct set_arg *h = arg;
        struct space *s;
        int r = txn_space(t, h->ws, &s);
        if (r <= 0) {
                *ret_refusal = -ENOENT;
                return r;
        }
        uint64_t to = MIN(h->value, s->at.seq);
        if (to <= s->horizon)
                return 0;
        r = sql_run(t->db, "UPDATE workspace SET horizon = ?2, horizon_mark = (SELECT mark FROM event WHERE workspace = ?1 AND seq = ?2) WHERE id = ?1", "ii", (int64_t)h->ws,
                    (int64_t)to);
        if (r == 0)
                r = sql_run(t->db, "DELETE FROM event WHERE workspace = ?1 AND seq <= ?2 AND seq < ?3", "iii", (int64_t)h->ws, (int64_t)to, (int64_t)s->at.seq);
        if (r == 0)
                s->horizon = to;
        return r;
}

int meta_horizon_set(struct meta *m, uint64_t ws, uint64_t seq) {
        struct set_arg h = { .ws = ws, .value = seq };
        return meta_write(m, horizon_write, &h);
}
