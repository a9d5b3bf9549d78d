/* SPDX-License-Identifier: Apache-2.0 */
/* test_meta_kit.c: see test_meta_kit.h. */
#include "test_meta_kit.h"
#include "../tmpdir.h"

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

bool kit_on_disk;

static void open_meta(struct kit *k, bool threaded) {
        char why[200] = "";
        struct meta_config c = { .path = k->path[0] ? k->path : NULL, .clock = &k->clock.clock, .rng = threaded ? rng_system() : &k->rng.rng, .counters = &k->counters,
                                 .threaded = threaded, .cheap_passwords = true };
        if (threaded)
                c.clock = clock_system();
        int r = meta_open(&c, &k->m, why, sizeof why);
        if (r < 0)
                fail_msg("meta_open: %d %s", r, why);
}

static void make(struct kit *k, bool threaded) {
        memset(k, 0, sizeof *k);
        rng_seed(&k->rng, 42);
        clock_manual_init(&k->clock, 1000, KIT_TIME);
        if (kit_on_disk) {
                (void)snprintf(k->dir, sizeof k->dir, "%s/tarn-meta-XXXXXX", access("/tmp", W_OK) == 0 ? "/tmp" : ".");
                assert_non_null(tmpdir_new(k->dir));
                (void)snprintf(k->path, sizeof k->path, "%s/meta.db", k->dir);
        }
        assert_int_equal(arena_new(256u << 20, &k->a), 0);
        open_meta(k, threaded);
        kit_user(k, "ann", &k->ann);
        assert_int_equal(meta_workspace_add(k->m, "w", "ann", NAMES_EXACT, 0, &k->ws), 0);
        struct meta_workspace w;
        assert_int_equal(meta_access(k->m, &k->ann, "w", ROLE_OWNER, &w), 0);
        k->epoch = w.at.epoch;
}

void kit_open(struct kit *k) { make(k, false); }
void kit_open_threaded(struct kit *k) { make(k, true); }

void kit_reopen(struct kit *k) {
        meta_close(k->m);
        open_meta(k, false);
}

void kit_close(struct kit *k) {
        meta_close(k->m);
        arena_free(k->a);
        if (k->dir[0]) {
                DIR *d = opendir(k->dir);
                assert_non_null(d);
                for (struct dirent *e; (e = readdir(d));)
                        if (e->d_name[0] != '.')
                                (void)unlinkat(dirfd(d), e->d_name, 0);
                closedir(d);
                assert_int_equal(rmdir(k->dir), 0);
        }
}

void kit_reset(struct kit *k) { arena_reset(k->a); }

void kit_user(struct kit *k, const char *name, struct meta_subject *ret) {
        char token[72];
        struct id device;
        assert_int_equal(meta_user_add(k->m, name, "correct horse"), 0);
        assert_int_equal(meta_script_token_add(k->m, name, "test", token, &device), 0);
        assert_int_equal(meta_token_check(k->m, token, ret), 0);
}

struct id kit_id(struct kit *k) { return rng_id(&k->rng.rng); }

struct content content_of(const char *text) {
        struct content c = content_empty;
        c.size = strlen(text);
        if (c.size)
                sha256(text, c.size, &c.root);
        return c;
}

struct content kit_block(struct kit *k, const struct meta_subject *who, uint64_t ws, const char *text) {
        struct content c = content_of(text);
        char object[33];
        struct id name = kit_id(k);
        hex_encode(name.b, sizeof name.b, object);
        struct meta_block b = { .hash = c.root, .raw_bytes = (uint32_t)c.size, .stored_bytes = (uint32_t)c.size };
        assert_int_equal(meta_blocks_record(k->m, who, ws, NULL, object, c.size, &b, 1), 0);
        return c;
}

struct op op_create(struct kit *k, enum node_kind kind, struct id parent, const char *name) {
        return (struct op){ .id = kit_id(k), .kind = OP_CREATE, .node = kit_id(k), .parent = parent, .name = name, .name_bytes = strlen(name),
                            .attrs = { .kind = kind, .mode = kind == NODE_DIR ? 0755 : 0644, .target = kind == NODE_SYMLINK ? "target" : NULL }, .time_ns = KIT_TIME + 1000 };
}

struct op op_file(struct kit *k, struct id parent, const char *name, struct content c) {
        struct op op = op_create(k, NODE_FILE, parent, name);
        op.content = c;
        return op;
}

struct op op_content(struct kit *k, struct id node, struct id version, struct content c) {
        return (struct op){ .id = kit_id(k), .kind = OP_CONTENT, .node = node, .version = version, .content = c, .time_ns = KIT_TIME + 2000 };
}

struct op op_unlink(struct kit *k, struct id node, struct id parent, const char *name, struct id placement, struct id version) {
        return (struct op){ .id = kit_id(k), .kind = OP_UNLINK, .node = node, .parent = parent, .name = name, .name_bytes = strlen(name), .placement = placement, .version = version,
                            .time_ns = KIT_TIME + 3000 };
}

struct op op_rename(struct kit *k, struct id node, struct id parent, const char *name, struct id placement, struct id parent2, const char *name2) {
        return (struct op){ .id = kit_id(k), .kind = OP_RENAME, .node = node, .parent = parent, .name = name, .name_bytes = strlen(name), .placement = placement, .parent2 = parent2,
                            .name2 = name2, .name2_bytes = strlen(name2), .time_ns = KIT_TIME + 4000 };
}

struct op op_link(struct kit *k, struct id node, struct id parent, const char *name) {
        return (struct op){ .id = kit_id(k), .kind = OP_LINK, .node = node, .parent = parent, .name = name, .name_bytes = strlen(name), .time_ns = KIT_TIME + 5000 };
}

struct op_result run_as(struct kit *k, const struct meta_subject *who, uint64_t ws, const struct op *op) {
        struct meta_batch b = { .subject = who, .ws = ws, .ops = op, .n_ops = 1, .arena = k->a };
        assert_int_equal(meta_commit(k->m, &b), 0);
        return b.results[0];
}

struct op_result run(struct kit *k, const struct op *op) { return run_as(k, &k->ann, k->ws, op); }

const struct change *current_of(const struct op_result *r, struct id node) {
        for (size_t i = 0; i < r->n_current; i++)
                if (id_equal(&r->current[i].node.id, &node))
                        return &r->current[i];
        return NULL;
}

struct change node_now(struct kit *k, struct id node) {
        struct change c;
        assert_int_equal(meta_node(k->m, k->ws, &node, k->a, &c), 0);
        return c;
}

int kit_main(const struct CMUnitTest *tests, size_t n) {
        int failed = 0;
        for (int i = 0; i < 2; i++) {
                kit_on_disk = i == 1;
                failed += _cmocka_run_group_tests(kit_on_disk ? "on disk" : "in memory", tests, n, NULL, NULL);
        }
        return failed;
}
