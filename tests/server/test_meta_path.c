/* SPDX-License-Identifier: Apache-2.0 */
/* test_meta_path.c: whole files by path, conditions, idempotency keys, versions, restore, trash. */
#include "test_meta_kit.h"

static struct meta_put_result put(struct kit *k, struct meta_put p) {
        struct meta_put_result r;
        p.subject = &k->ann;
        p.ws = k->ws;
        if (id_is_zero(&p.op))
                p.op = kit_id(k);
        assert_int_equal(meta_put_path(k->m, &p, k->a, &r), 0);
        return r;
}

static struct meta_put_result del(struct kit *k, const char *path, bool if_match, struct id match, struct id op) {
        struct meta_put_result r;
        struct meta_delete d = { .subject = &k->ann, .ws = k->ws, .op = id_is_zero(&op) ? kit_id(k) : op, .path = path, .if_match = if_match, .match = match };
        assert_int_equal(meta_delete_path(k->m, &d, k->a, &r), 0);
        return r;
}

static uint64_t seq_now(struct kit *k) {
        struct meta_workspace w;
        assert_int_equal(meta_access(k->m, NULL, "w", ROLE_NONE, &w), 0);
        return w.at.seq;
}

static void put_and_delete(void **state) {
        struct kit k;
        kit_open(&k);
        struct id none = { { 0 } };
        struct content one = kit_block(&k, &k.ann, k.ws, "one"), two = kit_block(&k, &k.ann, k.ws, "two");
        struct meta_put_result r = put(&k, (struct meta_put){ .path = "/f.txt", .content = one });
        assert_int_equal(r.code, RES_OK);
        assert_true(r.created);
        assert_int_equal(r.node.mode, 0644);
        assert_int_equal(r.seq, 1);
        struct id v1 = r.node.version, node = r.node.id;
        r = put(&k, (struct meta_put){ .path = "f.txt", .content = two, .has_mode = true, .mode = 0600, .has_mtime = true, .mtime_ns = 5 });
        assert_int_equal(r.code, RES_OK);
        assert_false(r.created);
        assert_true(id_equal(&r.replaced_version, &v1));
        assert_true(id_equal(&r.node.id, &node));
        assert_int_equal(r.node.mode, 0600);
        assert_int_equal(r.node.mtime_ns, 5);
        struct id v2 = r.node.version;
        /* conditions are judged in the transaction, and the current row comes with a refusal */
        r = put(&k, (struct meta_put){ .path = "f.txt", .content = one, .if_match = true, .match = v1 });
        assert_int_equal(r.code, RES_STALE);
        assert_true(id_equal(&r.node.version, &v2));
        r = put(&k, (struct meta_put){ .path = "f.txt", .content = one, .if_none_match = true });
        assert_int_equal(r.code, RES_STALE);
        r = put(&k, (struct meta_put){ .path = "new", .content = one, .if_match = true });
        assert_int_equal(r.code, RES_STALE);
        r = put(&k, (struct meta_put){ .path = "f.txt", .content = one, .if_match = true, .match = v2 });
        assert_int_equal(r.code, RES_OK);
        struct id v3 = r.node.version;
        r = put(&k, (struct meta_put){ .path = "f.txt", .content = two, .if_match = true });
        assert_int_equal(r.code, RES_OK);
        struct id v4 = r.node.version;
        /* directories on the way, all in one event */
        r = put(&k, (struct meta_put){ .path = "a/b/c.txt", .content = one });
        assert_int_equal(r.code, RES_NOT_FOUND);
        uint64_t before = seq_now(&k);
        r = put(&k, (struct meta_put){ .path = "a/b/c.txt", .content = content_of("nobody has it"), .make_parents = true });
        assert_int_equal(r.code, RES_BLOCKS_MISSING);
        assert_int_equal(r.n_missing, 1);
        assert_int_equal(seq_now(&k), before);
        r = put(&k, (struct meta_put){ .path = "a/b/c.txt", .content = one, .make_parents = true, .if_none_match = true });
        assert_int_equal(r.code, RES_OK);
        assert_true(r.created);
        assert_int_equal(seq_now(&k), before + 1);
        struct node_row row;
        assert_int_equal(meta_resolve(k.m, k.ws, "a/b/c.txt", k.a, &row), 0);
        assert_true(id_equal(&row.id, &r.node.id));
        assert_int_equal(put(&k, (struct meta_put){ .path = "a/b", .content = one }).code, RES_IS_DIR);
        assert_int_equal(put(&k, (struct meta_put){ .path = "", .content = one }).code, RES_IS_DIR);
        assert_int_equal(put(&k, (struct meta_put){ .path = "f.txt/x", .content = one }).code, RES_NOT_DIR);
        assert_int_equal(put(&k, (struct meta_put){ .path = "f.txt/x/y", .content = one, .make_parents = true }).code, RES_NOT_DIR);
        assert_int_equal(put(&k, (struct meta_put){ .path = "a/../f", .content = one }).code, RES_NAME_INVALID);
        assert_int_equal(put(&k, (struct meta_put){ .path = "\xff", .content = one }).code, RES_NAME_INVALID);
        assert_int_equal(del(&k, "a/b", false, none, none).code, RES_NOT_EMPTY);
        assert_int_equal(del(&k, "a/none", false, none, none).code, RES_NOT_FOUND);
        assert_int_equal(del(&k, "", false, none, none).code, RES_INVALID);
        assert_int_equal(del(&k, "f.txt", true, v3, none).code, RES_STALE);
        r = del(&k, "f.txt", true, v4, none);
        assert_int_equal(r.code, RES_OK);
        assert_true(id_equal(&r.replaced_version, &v4));
        assert_true(r.node.deleted);
        assert_int_equal(meta_resolve(k.m, k.ws, "f.txt", k.a, &row), -ENOENT);
        /* an empty file */
        r = put(&k, (struct meta_put){ .path = "empty", .content = content_empty });
        assert_int_equal(r.code, RES_OK);
        struct meta_subject bob;
        kit_user(&k, "bob", &bob);
        struct meta_put p = { .subject = &bob, .ws = k.ws, .op = kit_id(&k), .path = "x", .content = content_empty };
        assert_int_equal(meta_put_path(k.m, &p, k.a, &r), 0);
        assert_int_equal(r.code, RES_FORBIDDEN);
        p.op = none;
        assert_int_equal(meta_put_path(k.m, &p, k.a, &r), -EINVAL);
        kit_close(&k);
}

static void idempotency_key(void **state) {
        struct kit k;
        kit_open(&k);
        struct id none = { { 0 } };
        struct content one = kit_block(&k, &k.ann, k.ws, "one"), two = kit_block(&k, &k.ann, k.ws, "two");
        struct meta_put p = { .op = kit_id(&k), .path = "f", .content = one, .if_none_match = true };
        struct meta_put_result a = put(&k, p);
        struct meta_put_result b = put(&k, (struct meta_put){ .path = "f", .content = two });
        assert_int_equal(b.code, RES_OK);
        /* the answer was lost: the same request gets the same answer, though the condition no longer holds */
        struct meta_put_result again = put(&k, p);
        assert_int_equal(again.code, RES_OK);
        assert_true(again.created);
        assert_int_equal(again.seq, a.seq);
        assert_true(id_equal(&again.node.version, &a.node.version));
        assert_int_equal(seq_now(&k), 2);
        p.path = "g";
        assert_int_equal(put(&k, p).code, RES_ID_REUSED);
        struct id op = kit_id(&k);
        assert_int_equal(del(&k, "f", false, none, op).code, RES_OK);
        assert_int_equal(del(&k, "f", false, none, op).code, RES_OK);
        assert_int_equal(del(&k, "f", false, none, none).code, RES_NOT_FOUND);
        assert_int_equal(del(&k, "g", false, none, op).code, RES_ID_REUSED);
        kit_close(&k);
}

static void versions_and_restore(void **state) {
        struct kit k;
        kit_open(&k);
        const char *texts[] = { "one", "two", "three" };
        struct meta_put_result r = { .code = RES_OK };
        struct id v[3];
        for (int i = 0; i < 3; i++) {
                clock_manual_advance(&k.clock, 1000);
                r = put(&k, (struct meta_put){ .path = "f", .content = kit_block(&k, &k.ann, k.ws, texts[i]), .has_mtime = true, .mtime_ns = i + 1 });
                v[i] = r.node.version;
        }
        struct id node = r.node.id;
        struct op at = { .id = kit_id(&k), .kind = OP_ATTR, .node = node, .attr_mask = ATTR_MODE, .attrs = { .mode = 0600 } };
        expect(&k, &at, RES_OK); /* makes no version */
        struct meta_version *list;
        size_t n;
        assert_int_equal(meta_versions(k.m, k.ws, &node, 100, k.a, &list, &n), 0);
        assert_int_equal(n, 3);
        for (int i = 0; i < 3; i++) {
                assert_true(id_equal(&list[i].version, &v[2 - i]));
                assert_int_equal(list[i].content.size, strlen(texts[2 - i]));
                assert_int_equal(list[i].mtime_ns, 3 - i);
                assert_int_equal(list[i].seq, 3 - i);
                assert_string_equal(list[i].actor, "ann");
                assert_string_equal(list[i].device, "test");
                assert_int_equal(list[i].latest, i == 0);
        }
        assert_true(list[0].time_ns > list[1].time_ns);
        assert_int_equal(meta_versions(k.m, k.ws, &node, 2, k.a, &list, &n), 0);
        assert_int_equal(n, 2);
        struct meta_restore back = { .subject = &k.ann, .ws = k.ws, .op = kit_id(&k), .node = node, .version = v[0] };
        struct meta_put_result res;
        assert_int_equal(meta_version_restore(k.m, &back, k.a, &res), 0);
        assert_int_equal(res.code, RES_OK);
        assert_int_equal(res.node.content.size, 3);
        assert_int_equal(res.node.mtime_ns, 1);
        assert_int_equal(res.node.mode, 0600);
        assert_true(id_equal(&res.replaced_version, &v[2]));
        assert_int_equal(meta_version_restore(k.m, &back, k.a, &res), 0); /* replay */
        assert_int_equal(res.code, RES_OK);
        assert_int_equal(seq_now(&k), 5);
        back.op = kit_id(&k), back.version = kit_id(&k);
        assert_int_equal(meta_version_restore(k.m, &back, k.a, &res), 0);
        assert_int_equal(res.code, RES_NOT_FOUND);
        back.op = kit_id(&k), back.node = kit_id(&k);
        assert_int_equal(meta_version_restore(k.m, &back, k.a, &res), 0);
        assert_int_equal(res.code, RES_NOT_FOUND);
        /* out of the trash */
        struct id none = { { 0 } };
        assert_int_equal(del(&k, "f", false, none, none).code, RES_OK);
        struct meta_trash *trash;
        uint64_t before;
        assert_int_equal(meta_trash(k.m, k.ws, &(struct meta_trash_filter){ 0 }, 10, k.a, &trash, &n, &before), 0);
        assert_int_equal(n, 1);
        assert_string_equal(trash[0].name, "f");
        assert_true(id_equal(&trash[0].parent, &id_root));
        assert_string_equal(trash[0].actor, "ann");
        assert_int_equal(meta_versions(k.m, k.ws, &node, 10, k.a, &list, &n), 0);
        assert_int_equal(n, 4);
        assert_false(list[0].latest);
        back = (struct meta_restore){ .subject = &k.ann, .ws = k.ws, .op = kit_id(&k), .node = node, .version = v[1] };
        assert_int_equal(meta_version_restore(k.m, &back, k.a, &res), 0);
        assert_int_equal(res.code, RES_OK);
        struct node_row row;
        assert_int_equal(meta_resolve(k.m, k.ws, "f", k.a, &row), 0);
        assert_true(id_equal(&row.id, &node));
        assert_int_equal(row.mtime_ns, 2);
        assert_int_equal(meta_versions(k.m, k.ws, &id_root, 10, k.a, &list, &n), -EISDIR);
        assert_int_equal(meta_versions(k.m, k.ws, &v[0], 10, k.a, &list, &n), -ENOENT);
        kit_close(&k);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(put_and_delete), cmocka_unit_test(idempotency_key), cmocka_unit_test(versions_and_restore) };
        return kit_main(tests, ARRAY_SIZE(tests));
}
