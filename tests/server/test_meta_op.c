// SPDX-License-Identifier: Apache-2.0
/* test_meta_op.c: every kind of operation, accepted and refused, with the rows that a refusal carries; replay, merges, revival. */
#include "test_meta_kit.h"

static void create_all_kinds(void **state) {
        struct kit k;
        kit_open(&k);
        struct op dir = op_create(&k, NODE_DIR, id_root, "d");
        struct op_result r = expect(&k, &dir, RES_OK);
        assert_int_equal(r.seq, 1);
        assert_int_equal(r.n_current, 2);
        const struct change *c = current_of(&r, dir.node);
        assert_non_null(c);
        assert_int_equal(c->n_entries, 1);
        assert_string_equal(c->entries[0].name, "d");
        assert_true(id_equal(&c->entries[0].placement, &dir.id));
        assert_int_equal(current_of(&r, id_root)->node.mtime_ns, 1000); /* the parent's time is the operation's */
        assert_int_equal(current_of(&r, id_root)->node.seq, 1);
        struct op file = op_file(&k, dir.node, "f", kit_block(&k, &k.ann, k.ws, "hello"));
        file.attrs.xattrs = &(struct xattr){ "user.x", "v\0w", 3 };
        file.attrs.n_xattrs = 1;
        expect(&k, &file, RES_OK);
        struct change f = node_now(&k, file.node);
        assert_int_equal(f.node.content.size, 5);
        assert_true(id_equal(&f.node.version, &file.id));
        assert_int_equal(f.node.n_xattrs, 1);
        assert_memory_equal(f.node.xattrs[0].value, "v\0w", 3);
        enum node_kind others[] = { NODE_SYMLINK, NODE_FIFO, NODE_SOCKET, NODE_CHAR, NODE_BLOCK, NODE_FILE };
        for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
                char name[8];
                (void)snprintf(name, sizeof name, "k%zu", i);
                struct op op = op_create(&k, others[i], dir.node, name);
                op.attrs.rdev = 0x801;
                expect(&k, &op, RES_OK);
                struct change n = node_now(&k, op.node);
                assert_int_equal(n.node.kind, others[i]);
                assert_int_equal(n.node.rdev, others[i] == NODE_CHAR || others[i] == NODE_BLOCK ? 0x801 : 0);
                if (others[i] == NODE_SYMLINK)
                        assert_string_equal(n.node.target, "target");
        }
        kit_close(&k);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(create_all_kinds),
        };
        return kit_main(tests, ARRAY_SIZE(tests));
}
