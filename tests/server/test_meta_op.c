/* SPDX-License-Identifier: Apache-2.0 */
/* test_meta_op.c: every kind of operation, accepted and refused, with the rows that a refusal carries; replay, merges, revival. */
#include "test_meta_kit.h"

#include <stdlib.h>

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
        assert_int_equal(current_of(&r, id_root)->node.mtime_ns, KIT_TIME + 1000); /* the parent's time is the operation's */
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

/* Operations of one directory that overtake each other, clocks that differ, a time that was set on purpose, a clock that was years ahead. */
static void times_of_directories(void **state) {
        struct kit k;
        kit_open(&k);
        struct op d = op_create(&k, NODE_DIR, id_root, "d");
        d.time_ns = 5000;
        expect(&k, &d, RES_OK);
        static const struct { int64_t time_ns, set_ns, mtime_ns, ctime_ns; } step[] = {
                { 7000, 0, 7000, 7000 }, { 6000, 0, 7001, 7000 },                         /* overtaken: seen, and not set back */
                { 8000, INT64_C(1) << 62, INT64_C(1) << 62, 8000 }, { 9000, 0, 9000, 9000 }, /* set, and changed after that */
                { 9500, 100, 100, 9500 }, { 9400, 0, 9400, 9500 },
                { INT64_C(1) << 62, 0, INT64_C(1) << 62, INT64_C(1) << 62 }, { 10000, 0, 10000, 10000 },
                { 11000, INT64_MAX, INT64_MAX, 11000 }, { 10900, 0, INT64_MAX, 11000 },
                { 12000, 0, 12000, 12000 }, { 11500, 0, 12001, 12000 }, { 12000, 0, 12001, 12000 },   /* the same moment: not set back either */
                { 11000, -1, 12001, 12000 }, { 11800, 0, 12002, 12000 },                              /* an attribute that was overtaken takes no moment back */
        };
        for (size_t i = 0; i < ARRAY_SIZE(step); i++) {
                char name[8];
                (void)snprintf(name, sizeof name, "k%zu", i);
                struct op op = op_create(&k, NODE_DIR, d.node, name);
                if (step[i].set_ns > 0)
                        op = (struct op){ .id = op.id, .kind = OP_ATTR, .node = d.node, .attr_mask = ATTR_MTIME, .attrs.mtime_ns = step[i].set_ns };
                else if (step[i].set_ns < 0)
                        op = (struct op){ .id = op.id, .kind = OP_ATTR, .node = d.node, .attr_mask = ATTR_MODE | ATTR_CTIME, .attrs = { .mode = 0700, .ctime_ns = step[i].time_ns } };
                op.time_ns = step[i].time_ns;
                expect(&k, &op, RES_OK);
                const struct node_row n = node_now(&k, d.node).node;
                if (n.mtime_ns != step[i].mtime_ns || n.ctime_ns != step[i].ctime_ns)
                        fail_msg("step %zu: mtime %lld, ctime %lld", i, (long long)n.mtime_ns, (long long)n.ctime_ns);
        }
        kit_close(&k);
}

static void create_refused(void **state) {
        struct kit k;
        kit_open(&k);
        struct op d = op_create(&k, NODE_DIR, id_root, "d"), f = op_file(&k, id_root, "f", content_empty);
        expect(&k, &d, RES_OK);
        expect(&k, &f, RES_OK);
        uint64_t before = node_now(&k, id_root).node.seq;
        struct op op = op_create(&k, NODE_GRAFT, id_root, "g");
        expect(&k, &op, RES_UNSUPPORTED);
        op = op_create(&k, NODE_RESERVED, id_root, "g");
        expect(&k, &op, RES_UNSUPPORTED);
        op = op_create(&k, NODE_DIR, id_root, "g");
        op.kind = (enum op_kind)99;
        expect(&k, &op, RES_UNSUPPORTED);
        const char *bad[] = { "", ".", "..", "a/b", "\xff\xfe", NULL };
        for (int i = 0; bad[i]; i++) {
                op = op_create(&k, NODE_DIR, id_root, bad[i]);
                expect(&k, &op, RES_NAME_INVALID);
        }
        char longest[257];
        memset(longest, 'x', sizeof longest);
        longest[256] = 0;
        op = op_create(&k, NODE_DIR, id_root, longest);
        expect(&k, &op, RES_NAME_INVALID);
        op = op_create(&k, NODE_DIR, kit_id(&k), "g");
        expect(&k, &op, RES_NOT_FOUND);
        op = op_create(&k, NODE_DIR, f.node, "g");
        struct op_result r = expect(&k, &op, RES_NOT_DIR);
        assert_non_null(current_of(&r, f.node));
        /* the name is taken by something else: what is there comes with the refusal */
        op = op_create(&k, NODE_FILE, id_root, "d");
        op.content = content_empty;
        r = expect(&k, &op, RES_EXISTS);
        assert_non_null(current_of(&r, d.node));
        assert_int_equal(current_of(&r, d.node)->n_entries, 1);
        assert_non_null(current_of(&r, id_root));
        /* the node id was used before */
        op = op_create(&k, NODE_DIR, id_root, "again");
        op.node = d.node;
        expect(&k, &op, RES_ID_REUSED);
        op = op_create(&k, NODE_DIR, id_root, "m");
        op.attrs.mode = 0107777;
        expect(&k, &op, RES_INVALID);
        op = op_create(&k, NODE_DIR, id_root, "m");
        op.content = content_of("a directory with bytes");
        expect(&k, &op, RES_INVALID);
        op = op_create(&k, NODE_SYMLINK, id_root, "s");
        op.attrs.target = "";
        expect(&k, &op, RES_INVALID);
        char *target = malloc(SYMLINK_BYTES_MAX + 2);
        memset(target, 't', SYMLINK_BYTES_MAX + 1);
        target[SYMLINK_BYTES_MAX + 1] = 0;
        op = op_create(&k, NODE_SYMLINK, id_root, "s");
        op.attrs.target = target;
        expect(&k, &op, RES_TOO_LARGE);
        free(target);
        void *value = calloc(1, XATTR_VALUE_MAX + 1);
        struct xattr x = { "user.big", value, XATTR_VALUE_MAX + 1 };
        op = op_create(&k, NODE_DIR, id_root, "x");
        op.attrs.xattrs = &x;
        op.attrs.n_xattrs = 1;
        expect(&k, &op, RES_TOO_LARGE);
        free(value);
        /* nothing of this left a trace */
        assert_int_equal(node_now(&k, id_root).node.seq, before);
        struct meta_workspace w;
        assert_int_equal(meta_access(k.m, NULL, "w", ROLE_NONE, &w), 0);
        assert_int_equal(w.at.seq, 2);
        assert_int_equal(w.nodes, 3);
        kit_close(&k);
}

static void replay_and_reuse(void **state) {
        struct kit k;
        kit_open(&k);
        struct op op = op_file(&k, id_root, "f", kit_block(&k, &k.ann, k.ws, "one"));
        struct op_result first = expect(&k, &op, RES_OK), again = expect(&k, &op, RES_OK);
        assert_int_equal(first.seq, again.seq);
        assert_memory_equal(first.mark, again.mark, 8);
        assert_int_equal(again.n_current, first.n_current);
        assert_non_null(current_of(&again, op.node));
        assert_int_equal(current_of(&again, op.node)->n_entries, 1);
        struct meta_workspace w;
        assert_int_equal(meta_access(k.m, NULL, "w", ROLE_NONE, &w), 0);
        assert_int_equal(w.at.seq, 1);
        /* the answer of then, also after more has happened, and after the database was closed and opened */
        struct op more = op_content(&k, op.node, op.id, kit_block(&k, &k.ann, k.ws, "two"));
        expect(&k, &more, RES_OK);
        if (kit_on_disk)
                kit_reopen(&k);
        again = expect(&k, &op, RES_OK);
        assert_int_equal(again.seq, 1);
        assert_true(id_equal(&current_of(&again, op.node)->node.version, &op.id));
        /* same id, other payload */
        struct op other = op;
        other.name = "g";
        expect(&k, &other, RES_ID_REUSED);
        /* a refusal is not stored: the same id is judged afresh */
        struct op dir = op_create(&k, NODE_DIR, id_root, "late"), child = op_create(&k, NODE_DIR, dir.node, "c");
        expect(&k, &child, RES_NOT_FOUND);
        expect(&k, &dir, RES_OK);
        expect(&k, &child, RES_OK);
        kit_close(&k);
}

static void after_and_batch(void **state) {
        struct kit k;
        kit_open(&k);
        struct op a = op_create(&k, NODE_DIR, id_root, "a"), b = op_create(&k, NODE_DIR, a.node, "b"), c = op_create(&k, NODE_DIR, id_root, "c"),
                  bad = op_create(&k, NODE_DIR, kit_id(&k), "bad"), d = op_create(&k, NODE_DIR, id_root, "d");
        b.after = &a.id, b.n_after = 1;
        c.after = &bad.id, c.n_after = 1;
        struct op ops[] = { a, b, bad, c, d };
        enum op_code preset[] = { RES_OK, RES_OK, RES_OK, RES_OK, RES_CORRUPT };
        struct meta_batch batch = { .subject = &k.ann, .ws = k.ws, .ops = ops, .n_ops = 5, .preset = preset, .arena = k.a };
        assert_int_equal(meta_commit(k.m, &batch), 0);
        enum op_code want[] = { RES_OK, RES_OK, RES_NOT_FOUND, RES_SKIPPED, RES_CORRUPT };
        for (int i = 0; i < 5; i++) {
                assert_int_equal(batch.results[i].code, want[i]);
                assert_true(id_equal(&batch.results[i].op, &ops[i].id));
        }
        assert_int_equal(batch.results[1].seq, 2);
        /* accepted earlier counts too */
        c.after = &a.id;
        expect(&k, &c, RES_OK);
        kit_close(&k);
}

static void content_bases(void **state) {
        struct kit k;
        kit_open(&k);
        struct op f = op_file(&k, id_root, "f", kit_block(&k, &k.ann, k.ws, "one")), d = op_create(&k, NODE_DIR, id_root, "d"), p = op_create(&k, NODE_FIFO, id_root, "p");
        expect(&k, &f, RES_OK);
        expect(&k, &d, RES_OK);
        expect(&k, &p, RES_OK);
        struct op v2 = op_content(&k, f.node, f.id, kit_block(&k, &k.ann, k.ws, "two"));
        v2.attr_mask = ATTR_MODE | ATTR_MTIME;
        v2.attrs.mode = 0600;
        v2.attrs.mtime_ns = 77;
        struct op_result r = expect(&k, &v2, RES_OK);
        assert_int_equal(r.n_current, 1); /* no name changed */
        assert_false(r.current[0].has_entries);
        assert_int_equal(r.current[0].node.mode, 0600);
        assert_int_equal(r.current[0].node.mtime_ns, 77);
        assert_int_equal(r.current[0].node.ctime_ns, KIT_TIME + 2000);
        struct op late = op_content(&k, f.node, f.id, kit_block(&k, &k.ann, k.ws, "three"));
        r = expect(&k, &late, RES_STALE);
        assert_true(id_equal(&current_of(&r, f.node)->node.version, &v2.id));
        assert_int_equal(current_of(&r, f.node)->n_entries, 1);
        /* the same bytes under another base: no conflict, and a base named by that operation stands for the current version */
        struct op same = op_content(&k, f.node, f.id, content_of("two"));
        r = expect(&k, &same, RES_MERGED);
        assert_true(id_equal(&r.merged_into, &f.node));
        struct op next = op_content(&k, f.node, same.id, kit_block(&k, &k.ann, k.ws, "four"));
        expect(&k, &next, RES_OK);
        struct op op = op_content(&k, kit_id(&k), f.id, content_empty);
        expect(&k, &op, RES_NOT_FOUND);
        op = op_content(&k, d.node, d.id, content_empty);
        expect(&k, &op, RES_IS_DIR);
        op = op_content(&k, id_root, d.id, content_empty);
        expect(&k, &op, RES_IS_DIR);
        op = op_content(&k, p.node, p.id, content_empty);
        expect(&k, &op, RES_INVALID);
        op = op_content(&k, f.node, next.id, content_of("nobody has these bytes"));
        r = expect(&k, &op, RES_BLOCKS_MISSING);
        assert_int_equal(r.n_missing, 1);
        assert_memory_equal(&r.missing[0], &op.content.root, DIGEST_BYTES);
        op = op_content(&k, f.node, next.id, content_of("four"));
        op.content.size = 5; /* not the block's length */
        expect(&k, &op, RES_CORRUPT);
        op = op_content(&k, f.node, next.id, content_of("four"));
        op.content.param = 9;
        expect(&k, &op, RES_UNSUPPORTED);
        op = op_content(&k, f.node, next.id, content_of("four"));
        op.content.depth = 4;
        expect(&k, &op, RES_INVALID);
        op = op_content(&k, f.node, next.id, content_empty);
        expect(&k, &op, RES_OK);
        assert_int_equal(node_now(&k, f.node).node.content.size, 0);
        kit_close(&k);
}

static void attributes(void **state) {
        struct kit k;
        kit_open(&k);
        struct op f = op_file(&k, id_root, "f", content_empty);
        expect(&k, &f, RES_OK);
        struct xattr x[2] = { { "user.a", "1", 1 }, { "user.b", "", 0 } };
        struct op at = { .id = kit_id(&k), .kind = OP_ATTR, .node = f.node, .attr_mask = ATTR_UID | ATTR_XATTR | ATTR_CTIME, .time_ns = 5,
                         .attrs = { .uid = 1000, .gid = 7, .ctime_ns = 99, .xattrs = x, .n_xattrs = 2 } };
        expect(&k, &at, RES_OK);
        struct change c = node_now(&k, f.node);
        assert_int_equal(c.node.uid, 1000);
        assert_int_equal(c.node.gid, 0); /* not named */
        assert_int_equal(c.node.ctime_ns, 99);
        assert_int_equal(c.node.n_xattrs, 2);
        assert_string_equal(c.node.xattrs[1].name, "user.b");
        assert_true(id_equal(&c.node.version, &f.id));
        at.id = kit_id(&k), at.attrs.n_xattrs = 0, at.attrs.xattrs = NULL; /* removal by absence */
        expect(&k, &at, RES_OK);
        assert_int_equal(node_now(&k, f.node).node.n_xattrs, 0);
        at.id = kit_id(&k), at.node = id_root, at.attr_mask = ATTR_MODE, at.attrs.mode = 0700; /* the root has attributes too */
        expect(&k, &at, RES_OK);
        assert_int_equal(node_now(&k, id_root).node.mode, 0700);
        at.id = kit_id(&k), at.attrs.mode = 07777777;
        expect(&k, &at, RES_INVALID);
        at.id = kit_id(&k), at.attrs.mode = 0, at.node = kit_id(&k);
        expect(&k, &at, RES_NOT_FOUND);
        kit_close(&k);
}

static void links_and_unlink(void **state) {
        struct kit k;
        kit_open(&k);
        struct op d = op_create(&k, NODE_DIR, id_root, "d"), f = op_file(&k, d.node, "f", kit_block(&k, &k.ann, k.ws, "one"));
        expect(&k, &d, RES_OK);
        expect(&k, &f, RES_OK);
        struct op l = op_link(&k, f.node, id_root, "l");
        struct op_result r = expect(&k, &l, RES_OK);
        assert_int_equal(current_of(&r, f.node)->n_entries, 2);
        struct op op = op_link(&k, f.node, id_root, "l"); /* somebody else made the same link */
        expect(&k, &op, RES_MERGED);
        op = op_link(&k, f.node, id_root, "d");
        expect(&k, &op, RES_EXISTS);
        op = op_link(&k, d.node, id_root, "dd");
        expect(&k, &op, RES_IS_DIR);
        op = op_link(&k, kit_id(&k), id_root, "x");
        expect(&k, &op, RES_NOT_FOUND);
        op = op_unlink(&k, d.node, id_root, "d", d.id, (struct id){ { 0 } });
        expect(&k, &op, RES_NOT_EMPTY);
        op = op_unlink(&k, f.node, d.node, "g", f.id, f.id);
        expect(&k, &op, RES_NOT_FOUND);
        op = op_unlink(&k, f.node, d.node, "f", l.id, f.id); /* placement of another name */
        expect(&k, &op, RES_STALE);
        op = op_unlink(&k, d.node, d.node, "f", f.id, f.id); /* the name is another node's */
        r = expect(&k, &op, RES_STALE);
        assert_non_null(current_of(&r, f.node));
        op = op_unlink(&k, id_root, id_root, "f", f.id, f.id);
        expect(&k, &op, RES_INVALID);
        /* not the last name: the content does not matter */
        op = op_unlink(&k, f.node, d.node, "f", f.id, kit_id(&k));
        r = expect(&k, &op, RES_OK);
        assert_int_equal(current_of(&r, f.node)->n_entries, 1);
        assert_false(current_of(&r, f.node)->node.deleted);
        /* the last one: an edit that the deleter has not seen keeps the file */
        op = op_content(&k, f.node, f.id, kit_block(&k, &k.ann, k.ws, "two"));
        expect(&k, &op, RES_OK);
        struct op u = op_unlink(&k, f.node, id_root, "l", l.id, f.id);
        r = expect(&k, &u, RES_STALE);
        assert_true(id_equal(&current_of(&r, f.node)->node.version, &op.id));
        u = op_unlink(&k, f.node, id_root, "l", l.id, op.id);
        r = expect(&k, &u, RES_OK);
        assert_true(current_of(&r, f.node)->node.deleted);
        assert_true(current_of(&r, f.node)->has_entries);
        assert_int_equal(current_of(&r, f.node)->n_entries, 0);
        assert_int_equal(current_of(&r, id_root)->node.mtime_ns, KIT_TIME + 5001);
        op = op_unlink(&k, f.node, id_root, "l", l.id, op.id);
        expect(&k, &op, RES_DELETED);
        op = op_link(&k, f.node, id_root, "z");
        expect(&k, &op, RES_DELETED);
        op = (struct op){ .id = kit_id(&k), .kind = OP_ATTR, .node = f.node, .attr_mask = ATTR_MODE };
        expect(&k, &op, RES_DELETED);
        op = op_unlink(&k, d.node, id_root, "d", d.id, (struct id){ { 0 } });
        expect(&k, &op, RES_OK);
        struct op in = op_create(&k, NODE_DIR, d.node, "in");
        expect(&k, &in, RES_DELETED);
        struct meta_workspace w;
        assert_int_equal(meta_access(k.m, NULL, "w", ROLE_NONE, &w), 0);
        assert_int_equal(w.nodes, 1);
        kit_close(&k);
}

static void many_links(void **state) {
        struct kit k;
        kit_open(&k);
        struct op f = op_file(&k, id_root, "f", content_empty);
        expect(&k, &f, RES_OK);
        struct op *ops = calloc(META_LINKS_MAX, sizeof *ops);
        char (*names)[16] = calloc(META_LINKS_MAX, sizeof *names);
        for (unsigned i = 0; i < META_LINKS_MAX; i++) {
                (void)snprintf(names[i], sizeof names[i], "l%u", i);
                ops[i] = op_link(&k, f.node, id_root, names[i]);
        }
        struct meta_batch b = { .subject = &k.ann, .ws = k.ws, .ops = ops, .n_ops = META_LINKS_MAX, .arena = k.a };
        assert_int_equal(meta_commit(k.m, &b), 0);
        for (unsigned i = 0; i + 1 < META_LINKS_MAX; i++)
                assert_int_equal(b.results[i].code, RES_OK);
        assert_int_equal(b.results[META_LINKS_MAX - 1].code, RES_TOO_LARGE);
        assert_int_equal(node_now(&k, f.node).n_entries, META_LINKS_MAX);
        free(names);
        free(ops);
        kit_close(&k);
}

static void renames(void **state) {
        struct kit k;
        kit_open(&k);
        struct id none = { { 0 } };
        struct op a = op_create(&k, NODE_DIR, id_root, "a"), b = op_create(&k, NODE_DIR, a.node, "b"), f = op_file(&k, a.node, "f", kit_block(&k, &k.ann, k.ws, "one")),
                  g = op_file(&k, id_root, "g", kit_block(&k, &k.ann, k.ws, "two"));
        struct op *all[] = { &a, &b, &f, &g };
        for (int i = 0; i < 4; i++)
                expect(&k, all[i], RES_OK);
        struct op op = op_rename(&k, f.node, a.node, "f", f.id, id_root, "h");
        struct op_result r = expect(&k, &op, RES_OK);
        assert_int_equal(r.n_current, 3);
        assert_true(id_equal(&current_of(&r, f.node)->entries[0].placement, &op.id));
        assert_int_equal(current_of(&r, a.node)->node.mtime_ns, KIT_TIME + 4000);
        assert_int_equal(current_of(&r, id_root)->node.mtime_ns, KIT_TIME + 4000);
        struct id place = op.id;
        /* the first commit wins: the second renamer has an old placement */
        op = op_rename(&k, f.node, a.node, "f", f.id, id_root, "i");
        expect(&k, &op, RES_NOT_FOUND);
        op = op_rename(&k, f.node, id_root, "h", f.id, id_root, "i");
        expect(&k, &op, RES_STALE);
        /* the target must not exist */
        op = op_rename(&k, f.node, id_root, "h", place, id_root, "g");
        r = expect(&k, &op, RES_EXISTS);
        assert_non_null(current_of(&r, g.node));
        /* replacing what was edited meanwhile */
        op.id = kit_id(&k), op.replaced = g.node, op.replaced_version = f.id;
        expect(&k, &op, RES_STALE);
        op.id = kit_id(&k), op.replaced = f.node, op.replaced_version = g.id; /* another node than thought */
        expect(&k, &op, RES_STALE);
        op.id = kit_id(&k), op.replaced = g.node, op.replaced_version = g.id;
        r = expect(&k, &op, RES_OK);
        assert_true(current_of(&r, g.node)->node.deleted);
        assert_string_equal(current_of(&r, f.node)->entries[0].name, "g");
        place = op.id;
        /* kinds */
        op = op_rename(&k, f.node, id_root, "g", place, id_root, "a");
        op.replaced = a.node;
        expect(&k, &op, RES_IS_DIR);
        op = op_rename(&k, a.node, id_root, "a", a.id, id_root, "g");
        op.replaced = f.node;
        expect(&k, &op, RES_NOT_DIR);
        op = op_rename(&k, a.node, id_root, "a", a.id, b.node, "a");
        expect(&k, &op, RES_CYCLE);
        op = op_rename(&k, a.node, id_root, "a", a.id, a.node, "a");
        expect(&k, &op, RES_CYCLE);
        struct op e = op_create(&k, NODE_DIR, id_root, "e"); /* directory over directory: only an empty one goes */
        expect(&k, &e, RES_OK);
        op = op_rename(&k, e.node, id_root, "e", e.id, id_root, "a");
        op.replaced = a.node;
        expect(&k, &op, RES_NOT_EMPTY);
        op = op_rename(&k, e.node, id_root, "e", e.id, a.node, "b");
        op.replaced = b.node;
        r = expect(&k, &op, RES_OK);
        assert_true(current_of(&r, b.node)->node.deleted);
        place = op.id;
        /* the replaced one is gone by now: no obstacle */
        op = op_rename(&k, e.node, a.node, "b", place, a.node, "c");
        op.replaced = b.node;
        expect(&k, &op, RES_OK);
        struct id e_place = op.id;
        /* exchange, a directory with a file */
        op = op_rename(&k, e.node, a.node, "c", e_place, id_root, "g");
        op.flags = OPF_EXCHANGE, op.replaced = f.node, op.replaced_placement = none;
        expect(&k, &op, RES_STALE);
        struct id f_place = node_now(&k, f.node).entries[0].placement;
        op.id = kit_id(&k), op.replaced_placement = f_place;
        r = expect(&k, &op, RES_OK);
        assert_string_equal(current_of(&r, e.node)->entries[0].name, "g");
        assert_true(id_equal(&current_of(&r, f.node)->entries[0].parent, &a.node));
        place = op.id;
        op = op_rename(&k, a.node, id_root, "a", a.id, a.node, "c"); /* a with its own child */
        op.flags = OPF_EXCHANGE, op.replaced = f.node, op.replaced_placement = place;
        expect(&k, &op, RES_CYCLE);
        op = op_rename(&k, f.node, a.node, "c", place, id_root, "nothing");
        op.flags = OPF_EXCHANGE, op.replaced = e.node;
        expect(&k, &op, RES_NOT_FOUND);
        op = op_rename(&k, f.node, a.node, "c", place, id_root, "bad/name");
        expect(&k, &op, RES_NAME_INVALID);
        op = op_rename(&k, f.node, a.node, "c", place, a.node, "c"); /* to itself */
        expect(&k, &op, RES_OK);
        kit_close(&k);
}

static void atomic_save(void **state) {
        struct kit k;
        kit_open(&k);
        struct op f = op_file(&k, id_root, "f", kit_block(&k, &k.ann, k.ws, "one")), t = op_file(&k, id_root, "f.tmp", kit_block(&k, &k.ann, k.ws, "two"));
        expect(&k, &f, RES_OK);
        expect(&k, &t, RES_OK);
        struct op save = { .id = kit_id(&k), .kind = OP_REPLACE, .node = f.node, .version = f.id, .content = content_of("two"), .source = t.node, .parent = id_root, .name = "f.tmp",
                           .name_bytes = 5, .placement = t.id, .attr_mask = ATTR_MODE, .attrs = { .mode = 0640 }, .time_ns = KIT_TIME + 6000 };
        struct op stale = save;
        stale.id = kit_id(&k), stale.version = t.id, stale.content = content_of("one"), stale.content = kit_block(&k, &k.ann, k.ws, "other");
        expect(&k, &stale, RES_STALE);
        stale = save;
        stale.id = kit_id(&k), stale.replaced_version = f.id; /* the temporary was edited elsewhere */
        expect(&k, &stale, RES_STALE);
        struct op_result r = expect(&k, &save, RES_OK);
        assert_true(current_of(&r, t.node)->node.deleted);
        assert_true(id_equal(&current_of(&r, f.node)->node.version, &save.id));
        assert_int_equal(current_of(&r, f.node)->node.mode, 0640);
        assert_int_equal(current_of(&r, id_root)->node.mtime_ns, KIT_TIME + 6000);
        /* without a sent temporary; one that is gone is no obstacle */
        struct op save2 = { .id = kit_id(&k), .kind = OP_REPLACE, .node = f.node, .version = save.id, .content = kit_block(&k, &k.ann, k.ws, "three"), .time_ns = KIT_TIME + 7000 };
        expect(&k, &save2, RES_OK);
        assert_int_equal(node_now(&k, id_root).node.mtime_ns, KIT_TIME + 7000);
        struct op save3 = save;
        save3.id = kit_id(&k), save3.version = save2.id;
        expect(&k, &save3, RES_OK);
        save3.id = kit_id(&k), save3.version = save.id, save3.source = f.node;
        expect(&k, &save3, RES_INVALID); /* a file is not its own temporary */
        save3.id = kit_id(&k), save3.node = id_root;
        expect(&k, &save3, RES_IS_DIR);
        kit_close(&k);
}

static void merges(void **state) {
        struct kit k;
        kit_open(&k);
        struct op theirs = op_create(&k, NODE_DIR, id_root, "src"), ours = op_create(&k, NODE_DIR, id_root, "src");
        expect(&k, &theirs, RES_OK);
        struct op_result r = expect(&k, &ours, RES_MERGED);
        assert_true(id_equal(&r.merged_into, &theirs.node));
        assert_non_null(current_of(&r, theirs.node));
        r = expect(&k, &ours, RES_MERGED); /* replay */
        assert_true(id_equal(&r.merged_into, &theirs.node));
        assert_non_null(current_of(&r, theirs.node));
        /* what was built below ours arrives in theirs */
        struct op f = op_file(&k, ours.node, "f", kit_block(&k, &k.ann, k.ws, "one"));
        expect(&k, &f, RES_OK);
        assert_true(id_equal(&node_now(&k, f.node).entries[0].parent, &theirs.node));
        struct change through = node_now(&k, ours.node);
        assert_true(id_equal(&through.node.id, &theirs.node));
        /* same bytes, and a base named by the merged operation */
        struct op g = op_file(&k, theirs.node, "f", content_of("one"));
        expect(&k, &g, RES_MERGED);
        struct op v2 = op_content(&k, g.node, g.id, kit_block(&k, &k.ann, k.ws, "two"));
        r = expect(&k, &v2, RES_OK);
        assert_non_null(current_of(&r, f.node));
        struct op h = op_file(&k, theirs.node, "f", content_of("one"));
        expect(&k, &h, RES_EXISTS);
        struct op s1 = op_create(&k, NODE_SYMLINK, id_root, "s"), s2 = op_create(&k, NODE_SYMLINK, id_root, "s"), s3 = op_create(&k, NODE_SYMLINK, id_root, "s");
        s3.attrs.target = "elsewhere";
        expect(&k, &s1, RES_OK);
        expect(&k, &s2, RES_MERGED);
        expect(&k, &s3, RES_EXISTS);
        /* a placement named by the merged operation moves the directory */
        struct op mv = op_rename(&k, ours.node, id_root, "src", ours.id, id_root, "lib");
        expect(&k, &mv, RES_OK);
        assert_string_equal(node_now(&k, theirs.node).entries[0].name, "lib");
        /* an id that was merged away is used */
        struct op reuse = op_create(&k, NODE_DIR, id_root, "other");
        reuse.node = ours.node;
        struct op_result used = expect(&k, &reuse, RES_ID_REUSED);
        assert_non_null(current_of(&used, theirs.node));
        kit_close(&k);
}

static void revival(void **state) {
        struct kit k;
        kit_open(&k);
        struct id none = { { 0 } };
        struct op a = op_create(&k, NODE_DIR, id_root, "a"), b = op_create(&k, NODE_DIR, a.node, "b"), f = op_file(&k, b.node, "f", kit_block(&k, &k.ann, k.ws, "one"));
        expect(&k, &a, RES_OK);
        expect(&k, &b, RES_OK);
        expect(&k, &f, RES_OK);
        struct op u1 = op_unlink(&k, f.node, b.node, "f", f.id, f.id), u2 = op_unlink(&k, b.node, a.node, "b", b.id, none), u3 = op_unlink(&k, a.node, id_root, "a", a.id, none);
        expect(&k, &u1, RES_OK);
        expect(&k, &u2, RES_OK);
        expect(&k, &u3, RES_OK);
        struct op edit = op_content(&k, f.node, f.id, kit_block(&k, &k.ann, k.ws, "two"));
        struct op_result r = expect(&k, &edit, RES_DELETED);
        assert_true(current_of(&r, f.node)->node.deleted);
        edit.id = kit_id(&k), edit.flags = OPF_REVIVE, edit.version = u1.id;
        expect(&k, &edit, RES_STALE);
        edit.id = kit_id(&k), edit.version = f.id;
        r = expect(&k, &edit, RES_OK);
        assert_int_equal(r.n_current, 4); /* root, a, b, f: parents before children */
        assert_true(id_equal(&r.current[3].node.id, &f.node));
        struct node_row row;
        assert_int_equal(meta_resolve(k.m, k.ws, "a/b/f", k.a, &row), 0);
        assert_true(id_equal(&row.id, &f.node));
        assert_true(id_equal(&row.version, &edit.id));
        /* a new file in a deleted directory brings that back */
        struct op u4 = op_unlink(&k, f.node, b.node, "f", edit.id, edit.id), u5 = op_unlink(&k, b.node, a.node, "b", edit.id, none);
        expect(&k, &u4, RES_OK);
        expect(&k, &u5, RES_OK);
        struct op g = op_file(&k, b.node, "g", content_empty);
        expect(&k, &g, RES_DELETED);
        g.flags = OPF_REVIVE;
        expect(&k, &g, RES_OK);
        assert_int_equal(meta_resolve(k.m, k.ws, "a/b/g", k.a, &row), 0);
        /* a directory that has taken the name by now stands for the deleted one; a file does not */
        struct id b_place = node_now(&k, b.node).entries[0].placement;
        struct op u6 = op_unlink(&k, g.node, b.node, "g", g.id, g.id), u7 = op_unlink(&k, b.node, a.node, "b", b_place, none), b2 = op_create(&k, NODE_DIR, a.node, "b");
        expect(&k, &u6, RES_OK);
        expect(&k, &u7, RES_OK);
        expect(&k, &b2, RES_OK);
        struct op again = op_content(&k, f.node, edit.id, kit_block(&k, &k.ann, k.ws, "three"));
        again.flags = OPF_REVIVE;
        expect(&k, &again, RES_OK);
        assert_true(id_equal(&node_now(&k, f.node).entries[0].parent, &b2.node));
        struct op u8 = op_unlink(&k, f.node, b2.node, "f", again.id, again.id), h = op_file(&k, b2.node, "f", content_empty);
        expect(&k, &u8, RES_OK);
        expect(&k, &h, RES_OK);
        struct op last = op_content(&k, f.node, again.id, kit_block(&k, &k.ann, k.ws, "four"));
        last.flags = OPF_REVIVE;
        r = expect(&k, &last, RES_EXISTS);
        assert_non_null(current_of(&r, h.node));
        /* but a directory whose name a file has by now comes back beside it */
        struct op d = op_create(&k, NODE_DIR, id_root, "d"), u = op_unlink(&k, d.node, id_root, "d", d.id, none), file = op_file(&k, id_root, "d", content_empty);
        expect(&k, &d, RES_OK);
        expect(&k, &u, RES_OK);
        expect(&k, &file, RES_OK);
        struct op into = op_file(&k, d.node, "x", content_empty);
        into.flags = OPF_REVIVE;
        expect(&k, &into, RES_OK);
        assert_int_equal(meta_resolve(k.m, k.ws, "d (restored 1)/x", k.a, &row), 0);
        assert_true(id_equal(&row.id, &into.node));
        /* a directory cannot go into itself by coming back: n/p, p deleted, n moved into p */
        struct op n = op_create(&k, NODE_DIR, id_root, "n"), p = op_create(&k, NODE_DIR, n.node, "p");
        expect(&k, &n, RES_OK);
        expect(&k, &p, RES_OK);
        struct op u9 = op_unlink(&k, p.node, n.node, "p", p.id, none);
        expect(&k, &u9, RES_OK);
        struct op mv = op_rename(&k, n.node, id_root, "n", n.id, p.node, "n");
        mv.flags = OPF_REVIVE;
        expect(&k, &mv, RES_CYCLE);
        kit_close(&k);
}

static void rights_and_quota(void **state) {
        struct kit k;
        kit_open(&k);
        struct meta_subject bob;
        kit_user(&k, "bob", &bob);
        struct op op = op_create(&k, NODE_DIR, id_root, "d");
        assert_int_equal(run_as(&k, &bob, k.ws, &op).code, RES_FORBIDDEN);
        assert_int_equal(meta_member_set(k.m, &k.ann, k.ws, "bob", ROLE_VIEWER), 0);
        assert_int_equal(run_as(&k, &bob, k.ws, &op).code, RES_FORBIDDEN);
        assert_int_equal(meta_member_set(k.m, &k.ann, k.ws, "bob", ROLE_EDITOR), 0);
        assert_int_equal(run_as(&k, &bob, k.ws, &op).code, RES_OK);
        assert_int_equal(run_as(&k, &bob, 999, &op).code, RES_FORBIDDEN);
        struct op f = op_file(&k, id_root, "f", kit_block(&k, &k.ann, k.ws, "12345678"));
        struct meta_workspace w;
        assert_int_equal(meta_access(k.m, &k.ann, "w", ROLE_VIEWER, &w), 0);
        assert_int_equal(w.reserved_bytes, 8);
        expect(&k, &f, RES_OK);
        assert_int_equal(meta_access(k.m, &k.ann, "w", ROLE_VIEWER, &w), 0);
        assert_int_equal(w.reserved_bytes, 0);
        assert_int_equal(w.used_bytes, 8);
        assert_int_equal(meta_quota_set(k.m, k.ws, 20), 0);
        assert_int_equal(meta_quota_check(k.m, k.ws, 12), 0);
        assert_int_equal(meta_quota_check(k.m, k.ws, 13), -EDQUOT);
        /* the same bytes again cost nothing; new ones that came with the request are counted at the commit */
        struct op same = op_file(&k, id_root, "same", content_of("12345678"));
        expect(&k, &same, RES_OK);
        struct op over = op_file(&k, id_root, "over", content_of("thirteen byte"));
        struct meta_block fresh = { .hash = over.content.root, .raw_bytes = 13, .stored_bytes = 13 };
        struct meta_batch b = { .subject = &k.ann, .ws = k.ws, .ops = &over, .n_ops = 1, .object = "0123456789abcdef0123456789abcdef", .object_bytes = 13, .blocks = &fresh,
                                .n_blocks = 1, .arena = k.a };
        assert_int_equal(meta_commit(k.m, &b), 0);
        assert_int_equal(b.results[0].code, RES_QUOTA);
        uint64_t bytes;
        assert_int_equal(meta_object_find(k.m, b.object, &bytes), -ENOENT);
        assert_int_equal(meta_quota_set(k.m, k.ws, 21), 0);
        assert_int_equal(meta_commit(k.m, &b), 0);
        assert_int_equal(b.results[0].code, RES_OK);
        assert_int_equal(meta_object_find(k.m, b.object, &bytes), 0);
        assert_int_equal(bytes, 13);
        kit_close(&k);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(create_all_kinds), cmocka_unit_test(create_refused), cmocka_unit_test(times_of_directories), cmocka_unit_test(replay_and_reuse), cmocka_unit_test(after_and_batch), cmocka_unit_test(content_bases), cmocka_unit_test(attributes), cmocka_unit_test(links_and_unlink), cmocka_unit_test(many_links), cmocka_unit_test(renames), cmocka_unit_test(atomic_save), cmocka_unit_test(merges), cmocka_unit_test(revival), cmocka_unit_test(rights_and_quota),
        };
        return kit_main(tests, ARRAY_SIZE(tests));
}
