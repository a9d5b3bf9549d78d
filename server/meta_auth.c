/* SPDX-License-Identifier: Apache-2.0 */
/* meta_auth.c: users, devices, tokens.
 *
 * A device is what a login or a script token made; all its tokens die with it. Access tokens live an hour; a refresh token lives on with each use and is
 * never replaced, so that a lost answer to a refresh signs nobody out. The database holds hashes only. Passwords are hashed and verified outside
 * of every lock and transaction; only then a transaction stores the outcome. Expired tokens are refused by time and removed by meta_tidy. */
#include <stdio.h>
#include <string.h>

#include "auth.h"
#include "meta_int.h"

#define S_NS 1000000000ll

static int password_ok(const char *p) {
        size_t n = strnlen(p, PASSWORD_BYTES_MAX + 1);
        return n < PASSWORD_BYTES_MIN || n > PASSWORD_BYTES_MAX ? -EINVAL : 0;
}

static int account_by_name(struct sql *db, const char *name, uint64_t *ret) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT id FROM account WHERE name = ?1", "t", name);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        *ret = (uint64_t)sql_int(db, st, 0);
        sql_reset(db, st);
        return 0;
}

struct user_arg { const char *name, *hash; };

static int user_add(struct txn *t, void *arg, int *ret_refusal) {
        struct user_arg *u = arg;
        uint64_t id;
        int r = account_by_name(t->db, u->name, &id);
        if (r == 0)
                *ret_refusal = -EEXIST;
        if (r != -ENOENT)
                return r;
        return sql_run(t->db, "INSERT INTO account(name, password, created_ns) VALUES(?1, ?2, ?3)", "tti", u->name, u->hash, t->now_ns);
}

static int user_password(struct txn *t, void *arg, int *ret_refusal) {
        struct user_arg *u = arg;
        uint64_t id;
        int r = account_by_name(t->db, u->name, &id);
        if (r < 0) {
                *ret_refusal = r;
                return r == -ENOENT ? 0 : r;
        }
        return sql_run(t->db, "UPDATE account SET password = ?2 WHERE id = ?1", "it", (int64_t)id, u->hash);
}

static int user_store(struct meta *m, const char *name, const char *password, int (*fn)(struct txn *, void *, int *)) {
        char hash[PASSWORD_HASH_BYTES];
        int r = names_valid(name);
        if (r == 0 && password)
                r = password_ok(password);
        if (r == 0 && password)
                r = password_hash(password, m->c.cheap_passwords, hash);
        if (r < 0)
                return r;
        struct user_arg u = { name, password ? hash : NULL };
        return meta_write(m, fn, &u);
}

int meta_user_add(struct meta *m, const char *name, const char *password) { return user_store(m, name, password, user_add); }

int meta_user_password(struct meta *m, const char *name, const char *password) {
        return password ? user_store(m, name, password, user_password) : -EINVAL;
}

int meta_user_find(struct meta *m, const char *name, uint64_t *ret_account) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        return r < 0 ? r : account_by_name(v.db, name, ret_account);
}

int meta_users(struct meta *m, struct arena *a, const char *const **ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        struct sql_stmt *st = NULL;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = sql_first(v.db, &st, "SELECT count(*) FROM account", "");
        if (r < 0)
                return r;
        size_t room = (size_t)sql_int(v.db, st, 0), n = 0;
        sql_reset(v.db, st);
        const char **list = arena_alloc(a, room * sizeof *list);
        if (!list)
                return -ENOMEM;
        r = sql_stmt(v.db, &st, "SELECT name FROM account ORDER BY name", "");
        if (r < 0)
                return r;
        while (n < room && (r = sql_step(v.db, st)) > 0) {
                const char *name = sql_text(v.db, st, 0);
                list[n] = arena_strndup(a, name, strlen(name));
                if (!list[n++]) {
                        r = -ENOMEM;
                        break;
                }
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = n;
        return 0;
}

static int token_add(struct txn *t, uint64_t account, const struct id *device, const char *token, int64_t life_s) {
        char kind;
        struct digest hash;
        int r = token_digest(token, &kind, &hash);
        if (r < 0)
                return r;
        if (life_s)
                return sql_run(t->db, "INSERT INTO token(hash, account, device, kind, created_ns, expires_ns) VALUES(?1, ?2, ?3, ?4, ?5, ?6)", "diDiii", &hash, (int64_t)account,
                               device, (int64_t)kind, t->now_ns, t->now_ns + life_s * S_NS);
        return sql_run(t->db, "INSERT INTO token(hash, account, device, kind, created_ns) VALUES(?1, ?2, ?3, ?4, ?5)", "diDii", &hash, (int64_t)account, device, (int64_t)kind,
                       t->now_ns);
}

struct login_arg { const char *user, *device_name; uint64_t account; bool script; struct id device; char first[TOKEN_TEXT_BYTES], second[TOKEN_TEXT_BYTES]; const char *hash; };

static int login_write(struct txn *t, void *arg, int *ret_refusal) {
        struct login_arg *l = arg;
        int r = account_by_name(t->db, l->user, &l->account);
        if (r < 0) {
                *ret_refusal = r;
                return r == -ENOENT ? 0 : r;
        }
        r = sql_run(t->db, "INSERT INTO device(id, account, name, script, created_ns, seen_ns) VALUES(?1, ?2, ?3, ?4, ?5, ?5)", "Ditii", &l->device, (int64_t)l->account,
                    l->device_name, (int64_t)l->script, t->now_ns);
        if (r == 0)
                r = token_add(t, l->account, &l->device, l->first, l->script ? 0 : META_ACCESS_TOKEN_S);
        if (r == 0 && !l->script)
                r = token_add(t, l->account, &l->device, l->second, META_REFRESH_TOKEN_S);
        return r;
}

/* Printable, at most META_NAME_MAX bytes; anything else becomes '_'. */
static void device_label(const char *name, char ret[META_NAME_MAX + 1]) {
        size_t n = name ? strnlen(name, META_NAME_MAX) : 0;
        for (size_t i = 0; i < n; i++)
                ret[i] = name[i] < 0x20 || name[i] > 0x7e || name[i] == '"' || name[i] == '\\' ? '_' : name[i];
        ret[n] = 0;
        if (n == 0)
                (void)snprintf(ret, META_NAME_MAX + 1, "device");
}

int meta_login(struct meta *m, const char *name, const char *password, const char *device_name, struct meta_tokens *ret) {
        char hash[PASSWORD_HASH_BYTES] = "";
        {
                _cleanup_view_ struct view v = { m, NULL };
                int r = view_begin(m, &v.db);
                if (r < 0)
                        return r;
                struct sql_stmt *st;
                r = sql_first(v.db, &st, "SELECT password FROM account WHERE name = ?1", "t", name);
                if (r < 0)
                        return r;
                if (r > 0) {
                        const char *p = sql_text(v.db, st, 0);
                        (void)snprintf(hash, sizeof hash, "%s", p ? p : "");
                        sql_reset(v.db, st);
                }
        }
        int r = password_verify(hash[0] ? hash : NULL, password, m->c.cheap_passwords);
        if (r < 0)
                return r;
        char label[META_NAME_MAX + 1];
        device_label(device_name, label);
        struct login_arg l = { .user = name, .device_name = label, .device = rng_id(m->c.rng) };
        token_new(m->c.rng, 'a', l.first);
        token_new(m->c.rng, 'r', l.second);
        r = meta_write(m, login_write, &l);
        if (r < 0)
                return r == -ENOENT ? -EKEYREJECTED : r;
        struct meta_tokens out = { .access_expires_s = META_ACCESS_TOKEN_S, .device = l.device };
        memcpy(out.access, l.first, sizeof l.first);
        memcpy(out.refresh, l.second, sizeof l.second);
        *ret = out;
        return 0;
}

struct refresh_arg { struct digest hash; char access[TOKEN_TEXT_BYTES]; struct id device; };

static int refresh_write(struct txn *t, void *arg, int *ret_refusal) {
        struct refresh_arg *f = arg;
        struct sql_stmt *st;
        int r = sql_first(t->db, &st, "SELECT account, device FROM token WHERE hash = ?1 AND kind = ?2 AND expires_ns > ?3", "dii", &f->hash, (int64_t)'r', t->now_ns);
        if (r < 0)
                return r;
        if (r == 0) {
                *ret_refusal = -EKEYREJECTED;
                return 0;
        }
        uint64_t account = (uint64_t)sql_int(t->db, st, 0);
        sql_get_id(t->db, st, 1, &f->device);
        sql_reset(t->db, st);
        r = sql_run(t->db, "UPDATE token SET expires_ns = ?2 WHERE hash = ?1", "di", &f->hash, t->now_ns + META_REFRESH_TOKEN_S * S_NS);
        if (r == 0)
                r = sql_run(t->db, "UPDATE device SET seen_ns = ?2 WHERE id = ?1", "Di", &f->device, t->now_ns);
        if (r == 0)
                r = sql_run(t->db, "DELETE FROM token WHERE device = ?1 AND expires_ns <= ?2", "Di", &f->device, t->now_ns);
        return r == 0 ? token_add(t, account, &f->device, f->access, META_ACCESS_TOKEN_S) : r;
}

int meta_refresh(struct meta *m, const char *refresh_token, struct meta_tokens *ret) {
        struct refresh_arg f;
        char kind;
        if (token_digest(refresh_token, &kind, &f.hash) < 0 || kind != 'r')
                return -EKEYREJECTED;
        token_new(m->c.rng, 'a', f.access);
        int r = meta_write(m, refresh_write, &f);
        if (r < 0)
                return r;
        struct meta_tokens out = { .access_expires_s = META_ACCESS_TOKEN_S, .device = f.device };
        memcpy(out.access, f.access, sizeof f.access);
        (void)snprintf(out.refresh, sizeof out.refresh, "%s", refresh_token);
        *ret = out;
        return 0;
}

int meta_script_token_add(struct meta *m, const char *user, const char *label, char ret_token[72], struct id *ret_device) {
        char text[META_NAME_MAX + 1];
        device_label(label && *label ? label : "script", text);
        struct login_arg l = { .user = user, .device_name = text, .script = true, .device = rng_id(m->c.rng) };
        token_new(m->c.rng, 's', l.first);
        int r = meta_write(m, login_write, &l);
        if (r < 0)
                return r;
        memcpy(ret_token, l.first, sizeof l.first);
        *ret_device = l.device;
        return 0;
}

int meta_token_check(struct meta *m, const char *token, struct meta_subject *ret) {
        struct digest hash;
        char kind;
        if (token_digest(token, &kind, &hash) < 0 || kind == 'r')
                return -EKEYREJECTED;
        _cleanup_view_ struct view v = { m, NULL };
        int64_t now;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = v.db->ops->now_ns(v.db, &now);
        if (r < 0)
                return r;
        struct sql_stmt *st;
        r = sql_first(v.db, &st,
                      "SELECT t.account, a.name, t.device, d.name, d.script FROM token t JOIN account a ON a.id = t.account JOIN device d ON d.id = t.device"
                      " WHERE t.hash = ?1 AND t.kind = ?2 AND (t.expires_ns IS NULL OR t.expires_ns > ?3)", "dii", &hash, (int64_t)kind, now);
        if (r <= 0)
                return r < 0 ? r : -EKEYREJECTED;
        struct meta_subject s = { .account = (uint64_t)sql_int(v.db, st, 0), .script = sql_int(v.db, st, 4) != 0 };
        (void)snprintf(s.account_name, sizeof s.account_name, "%s", sql_text(v.db, st, 1));
        sql_get_id(v.db, st, 2, &s.device);
        (void)snprintf(s.device_name, sizeof s.device_name, "%s", sql_text(v.db, st, 3));
        sql_reset(v.db, st);
        *ret = s;
        return 0;
}

int meta_devices(struct meta *m, uint64_t account, struct arena *a, struct meta_device **ret, size_t *ret_n) {
        _cleanup_view_ struct view v = { m, NULL };
        struct sql_stmt *st = NULL;
        int r = view_begin(m, &v.db);
        if (r == 0)
                r = sql_first(v.db, &st, "SELECT count(*) FROM device WHERE account = ?1", "i", (int64_t)account);
        if (r < 0)
                return r;
        size_t room = (size_t)sql_int(v.db, st, 0), n = 0;
        sql_reset(v.db, st);
        struct meta_device *list = arena_alloc(a, room * sizeof *list);
        if (!list)
                return -ENOMEM;
        r = sql_stmt(v.db, &st, "SELECT id, name, script, created_ns, seen_ns FROM device WHERE account = ?1 ORDER BY created_ns, id", "i", (int64_t)account);
        if (r < 0)
                return r;
        for (; n < room && (r = sql_step(v.db, st)) > 0; n++) {
                struct meta_device *d = &list[n];
                sql_get_id(v.db, st, 0, &d->id);
                (void)snprintf(d->name, sizeof d->name, "%s", sql_text(v.db, st, 1));
                d->script = sql_int(v.db, st, 2) != 0;
                d->created_ns = sql_int(v.db, st, 3);
                d->seen_ns = sql_int(v.db, st, 4);
        }
        sql_reset(v.db, st);
        if (r < 0)
                return r;
        *ret = list;
        *ret_n = n;
        return 0;
}

struct revoke_arg { uint64_t account; const struct id *device; };

static int revoke_write(struct txn *t, void *arg, int *ret_refusal) {
        struct revoke_arg *v = arg;
        int r = sql_run(t->db, "DELETE FROM device WHERE id = ?1 AND account = ?2", "Di", v->device, (int64_t)v->account);
        if (r < 0)
                return r;
        if (t->db->ops->changes(t->db) == 0) {
                *ret_refusal = -ENOENT;
                return 0;
        }
        return sql_run(t->db, "DELETE FROM token WHERE device = ?1", "D", v->device);
}

int meta_device_revoke(struct meta *m, uint64_t account, const struct id *device) {
        struct revoke_arg v = { account, device };
        return meta_write(m, revoke_write, &v);
}
