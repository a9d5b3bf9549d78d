/* SPDX-License-Identifier: Apache-2.0 */
/* test_meta_auth.c: passwords, tokens, devices; workspaces and members; the schema's version. */
#include <sqlite3.h>
#include <stdlib.h>
#include <unistd.h>

#include "auth.h"
#include "test_meta_kit.h"

static void passwords(void **state) {
        struct kit k;
        kit_open(&k);
        assert_int_equal(meta_user_add(k.m, "ann", "correct horse"), -EEXIST);
        assert_int_equal(meta_user_add(k.m, "carl", "short"), -EINVAL);
        assert_int_equal(meta_user_add(k.m, "not a name", "correct horse"), -EINVAL);
        assert_int_equal(meta_user_add(k.m, "", "correct horse"), -EINVAL);
        struct meta_tokens t;
        assert_int_equal(meta_login(k.m, "ann", "correct horse", "laptop", &t), 0);
        assert_int_equal(meta_login(k.m, "ann", "wrong horse", "laptop", &t), -EKEYREJECTED);
        assert_int_equal(meta_login(k.m, "nobody", "correct horse", "laptop", &t), -EKEYREJECTED);
        assert_int_equal(meta_user_add(k.m, "robot", NULL), 0); /* no password: no login */
        assert_int_equal(meta_login(k.m, "robot", "", "laptop", &t), -EKEYREJECTED);
        assert_int_equal(meta_user_password(k.m, "ann", "battery staple"), 0);
        assert_int_equal(meta_login(k.m, "ann", "correct horse", "laptop", &t), -EKEYREJECTED);
        assert_int_equal(meta_login(k.m, "ann", "battery staple", NULL, &t), 0);
        assert_int_equal(meta_user_password(k.m, "nobody", "battery staple"), -ENOENT);
        uint64_t id;
        assert_int_equal(meta_user_find(k.m, "ann", &id), 0);
        assert_int_equal(id, k.ann.account);
        assert_int_equal(meta_user_find(k.m, "nobody", &id), -ENOENT);
        const char *const *users;
        size_t n;
        assert_int_equal(meta_users(k.m, k.a, &users, &n), 0);
        assert_int_equal(n, 2);
        assert_string_equal(users[0], "ann");
        kit_close(&k);
        /* the real cost, once */
        char hash[PASSWORD_HASH_BYTES];
        assert_int_equal(password_hash("correct horse", false, hash), 0);
        assert_non_null(strstr(hash, "$argon2id$"));
        assert_int_equal(password_verify(hash, "correct horse", false), 0);
        assert_int_equal(password_verify(hash, "correct hors", false), -EKEYREJECTED);
}

static void tokens(void **state) {
        struct kit k;
        kit_open(&k);
        struct meta_tokens t, t2;
        struct meta_subject s;
        assert_int_equal(meta_login(k.m, "ann", "correct horse", "lap\"top\n", &t), 0);
        assert_string_not_equal(t.access, t.refresh);
        assert_int_equal(meta_token_check(k.m, t.access, &s), 0);
        assert_string_equal(s.account_name, "ann");
        assert_string_equal(s.device_name, "lap_top_");
        assert_false(s.script);
        assert_true(id_equal(&s.device, &t.device));
        assert_int_equal(meta_token_check(k.m, t.refresh, &s), -EKEYREJECTED);
        assert_int_equal(meta_token_check(k.m, "", &s), -EKEYREJECTED);
        assert_int_equal(meta_token_check(k.m, "tarna_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &s), -EKEYREJECTED);
        char changed[72];
        memcpy(changed, t.access, sizeof changed);
        changed[20] = changed[20] == 'A' ? 'B' : 'A';
        assert_int_equal(meta_token_check(k.m, changed, &s), -EKEYREJECTED);
        memcpy(changed, t.access, sizeof changed);
        changed[4] = 's'; /* another kind of token with the same secret */
        assert_int_equal(meta_token_check(k.m, changed, &s), -EKEYREJECTED);
        /* an hour, then the refresh token, twice (a lost answer) */
        clock_manual_advance(&k.clock, META_ACCESS_TOKEN_S * 1000ll + 1);
        assert_int_equal(meta_token_check(k.m, t.access, &s), -EKEYREJECTED);
        assert_int_equal(meta_refresh(k.m, t.refresh, &t2), 0);
        assert_int_equal(meta_refresh(k.m, t.refresh, &t2), 0);
        assert_string_equal(t2.refresh, t.refresh);
        assert_int_equal(meta_token_check(k.m, t2.access, &s), 0);
        assert_int_equal(meta_refresh(k.m, t2.access, &t2), -EKEYREJECTED);
        /* use keeps the refresh token alive, silence ends it */
        for (int i = 0; i < 3; i++) {
                clock_manual_advance(&k.clock, 60ll * 86400 * 1000);
                assert_int_equal(meta_tidy(k.m), 0);
                assert_int_equal(meta_refresh(k.m, t.refresh, &t2), 0);
        }
        clock_manual_advance(&k.clock, 91ll * 86400 * 1000);
        assert_int_equal(meta_refresh(k.m, t.refresh, &t2), -EKEYREJECTED);
        char script[72];
        struct id device;
        assert_int_equal(meta_script_token_add(k.m, "nobody", "cron", script, &device), -ENOENT);
        assert_int_equal(meta_script_token_add(k.m, "ann", "cron", script, &device), 0);
        clock_manual_advance(&k.clock, 5000ll * 86400 * 1000);
        assert_int_equal(meta_tidy(k.m), 0);
        assert_int_equal(meta_token_check(k.m, script, &s), 0);
        assert_true(s.script);
        if (kit_on_disk) {
                /* the file has no token in it */
                kit_reopen(&k);
                assert_int_equal(meta_token_check(k.m, script, &s), 0);
                FILE *f = fopen(k.path, "r");
                char *all = calloc(1, 1 << 20);
                size_t n = fread(all, 1, 1 << 20, f);
                fclose(f);
                assert_true(n > 4096);
                assert_null(memmem(all, n, script, 20));
                free(all);
        }
        kit_close(&k);
}

static void devices(void **state) {
        struct kit k;
        kit_open(&k);
        struct meta_subject bob, s;
        kit_user(&k, "bob", &bob);
        struct meta_tokens a, b;
        assert_int_equal(meta_login(k.m, "ann", "correct horse", "one", &a), 0);
        clock_manual_advance(&k.clock, 1000);
        assert_int_equal(meta_login(k.m, "ann", "correct horse", "two", &b), 0);
        struct meta_device *list;
        size_t n;
        assert_int_equal(meta_devices(k.m, k.ann.account, k.a, &list, &n), 0);
        assert_int_equal(n, 3); /* with the kit's script token */
        assert_string_equal(list[2].name, "two");
        assert_true(list[2].created_ns > list[0].created_ns);
        assert_int_equal(meta_device_revoke(k.m, bob.account, &a.device), -ENOENT); /* not his */
        assert_int_equal(meta_device_revoke(k.m, k.ann.account, &a.device), 0);
        assert_int_equal(meta_device_revoke(k.m, k.ann.account, &a.device), -ENOENT);
        assert_int_equal(meta_token_check(k.m, a.access, &s), -EKEYREJECTED);
        assert_int_equal(meta_refresh(k.m, a.refresh, &a), -EKEYREJECTED);
        assert_int_equal(meta_token_check(k.m, b.access, &s), 0);
        kit_close(&k);
}

static void workspaces(void **state) {
        struct kit k;
        kit_open(&k);
        struct meta_subject bob;
        struct meta_workspace w, *list;
        struct meta_member *members;
        uint64_t ws;
        size_t n;
        kit_user(&k, "bob", &bob);
        assert_int_equal(meta_workspace_add(k.m, "w", "ann", NAMES_EXACT, 0, &ws), -EEXIST);
        assert_int_equal(meta_workspace_add(k.m, "x", "nobody", NAMES_EXACT, 0, &ws), -ENOENT);
        assert_int_equal(meta_workspace_add(k.m, "a/b", "ann", NAMES_EXACT, 0, &ws), -EINVAL);
        assert_int_equal(meta_workspace_add(k.m, "x", "ann", NAMES_PORTABLE + 1, 0, &ws), -EINVAL);
        assert_int_equal(meta_workspace_add(k.m, "x", "bob", NAMES_PORTABLE, 77, &ws), 0);
        assert_int_equal(meta_access(k.m, &k.ann, "x", ROLE_VIEWER, &w), -ENOENT); /* hidden */
        assert_int_equal(meta_access(k.m, &k.ann, "none", ROLE_VIEWER, &w), -ENOENT);
        assert_int_equal(meta_access(k.m, &bob, "x", ROLE_OWNER, &w), 0);
        assert_int_equal(w.quota_bytes, 77);
        assert_int_equal(w.names, NAMES_PORTABLE);
        assert_string_equal(w.owner, "bob");
        assert_int_equal(w.role, ROLE_OWNER);
        assert_int_equal(w.nodes, 1);
        assert_false(id_is_zero(&w.at.epoch));
        assert_int_equal(meta_workspaces(k.m, &k.ann, k.a, &list, &n), 0);
        assert_int_equal(n, 1);
        assert_string_equal(list[0].name, "w");
        assert_int_equal(meta_workspaces(k.m, NULL, k.a, &list, &n), 0);
        assert_int_equal(n, 2);
        assert_int_equal(meta_member_set(k.m, &k.ann, ws, "ann", ROLE_VIEWER), -EACCES);
        assert_int_equal(meta_member_set(k.m, &bob, ws, "ann", ROLE_VIEWER), 0);
        assert_int_equal(meta_member_set(k.m, &bob, ws, "nobody", ROLE_VIEWER), -ENOENT);
        assert_int_equal(meta_member_set(k.m, &bob, 99, "ann", ROLE_VIEWER), -ENOENT);
        assert_int_equal(meta_access(k.m, &k.ann, "x", ROLE_VIEWER, &w), 0);
        assert_int_equal(meta_access(k.m, &k.ann, "x", ROLE_EDITOR, &w), -EACCES);
        assert_int_equal(meta_members(k.m, ws, k.a, &members, &n), 0);
        assert_int_equal(n, 2);
        assert_string_equal(members[0].name, "ann");
        assert_int_equal(members[0].role, ROLE_VIEWER);
        assert_int_equal(meta_member_set(k.m, &bob, ws, "bob", ROLE_EDITOR), -EBUSY); /* the last owner */
        assert_int_equal(meta_member_set(k.m, &bob, ws, "ann", ROLE_OWNER), 0);
        assert_int_equal(meta_member_set(k.m, &bob, ws, "bob", ROLE_NONE), 0);
        assert_int_equal(meta_access(k.m, &bob, "x", ROLE_VIEWER, &w), -ENOENT);
        enum meta_role role;
        assert_int_equal(meta_role_parse("editor", &role), 0);
        assert_int_equal(role, ROLE_EDITOR);
        assert_int_equal(meta_role_parse("king", &role), -EINVAL);
        assert_int_equal(meta_ready(k.m), 0);
        kit_close(&k);
}

static int open_file(struct kit *k, const char *path, char *why, size_t n) {
        struct meta *m;
        struct meta_config c = { .path = path, .clock = &k->clock.clock, .rng = &k->rng.rng, .cheap_passwords = true };
        int r = meta_open(&c, &m, why, n);
        if (r == 0)
                meta_close(m);
        return r;
}

static int64_t pragma_of(const char *path, const char *sql) {
        sqlite3 *db;
        sqlite3_stmt *st;
        assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
        assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &st, NULL), SQLITE_OK);
        (void)sqlite3_step(st);
        int64_t v = sqlite3_column_int64(st, 0);
        sqlite3_finalize(st);
        sqlite3_close(db);
        return v;
}

static struct digest file_digest(const char *path) {
        static uint8_t all[1 << 20];
        FILE *f = fopen(path, "r");
        assert_non_null(f);
        size_t n = fread(all, 1, sizeof all, f);
        fclose(f);
        struct digest d;
        sha256(all, n, &d);
        return d;
}

static void schema_versions(void **state) {
        struct kit k;
        char why[200] = "";
        if (!kit_on_disk)
                return;
        kit_open(&k);
        meta_close(k.m);
        (void)pragma_of(k.path, "UPDATE meta SET value = 3 WHERE key = 'schema'");
        int64_t before = pragma_of(k.path, "PRAGMA data_version");
        assert_int_equal(open_file(&k, k.path, why, sizeof why), -EPROTONOSUPPORT);
        assert_non_null(strstr(why, "newer"));
        assert_int_equal(pragma_of(k.path, "SELECT value FROM meta WHERE key = 'schema'"), 3);
        assert_int_equal(pragma_of(k.path, "PRAGMA data_version"), before);
        (void)pragma_of(k.path, "UPDATE meta SET value = 2 WHERE key = 'schema'");
        assert_int_equal(open_file(&k, k.path, why, sizeof why), 0);
        char other[128];
        (void)snprintf(other, sizeof other, "%s/other.db", k.dir);
        (void)pragma_of(other, "CREATE TABLE theirs(x)");
        struct digest was = file_digest(other);
        assert_int_equal(open_file(&k, other, why, sizeof why), -EBADMSG);
        struct digest is = file_digest(other);
        assert_memory_equal(&was, &is, sizeof is); /* somebody else's database stays as it is */
        (void)snprintf(other, sizeof other, "%s/junk.db", k.dir);
        FILE *f = fopen(other, "w");
        for (int i = 0; i < 1000; i++)
                fputs("this is no database\n", f);
        fclose(f);
        assert_int_equal(open_file(&k, other, why, sizeof why), -EBADMSG);
        assert_int_equal(open_file(&k, "/nonexistent/dir/meta.db", why, sizeof why), -ENOENT);
        assert_int_equal(open_file(&k, k.path, why, sizeof why), 0);
        k.m = NULL;
        kit_close(&k);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(passwords), cmocka_unit_test(tokens), cmocka_unit_test(devices), cmocka_unit_test(workspaces), cmocka_unit_test(schema_versions),
        };
        return kit_main(tests, ARRAY_SIZE(tests));
}
