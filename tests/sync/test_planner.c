/* SPDX-License-Identifier: Apache-2.0 */
/* test_planner.c: each row of the conflict table (semantics.md, section 4) and each answer that is not in it, one case per row; and, over random
 * refusals, that the planner always decides and never gives up bytes that only this client has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/clock.h"
#include "sync/planner.h"

static const struct id OP = { { 1 } }, NODE = { { 2 } }, OTHER = { { 3 } }, DIR1 = { { 4 } }, DIR2 = { { 5 } }, PLACE = { { 6 } }, PLACE2 = { { 7 } };
static const struct id V1 = { { 8 } }, V2 = { { 9 } };

struct row {
        const char *what;
        enum op_kind kind; uint32_t flags;
        bool replaces;                 /* rename: names a replaced node */
        enum op_code code;
        /* current rows of the answer */
        struct { bool told, deleted, moved, edited; enum node_kind kind; } node, replaced;
        bool parent_deleted, parent2_deleted;
        bool same_content;
        enum plan_kind plan; enum resolve_kind resolve; int error;
};
#define TOLD .told = true, .kind = NODE_FILE
#define RESOLVED(how) .plan = PLAN_RESOLVE, .resolve = RESOLVE_##how

static const struct row table[] = {
        /* the conflict table of semantics.md */
        { "edit | edit, same bytes", OP_CONTENT, .code = RES_STALE, .node = { TOLD, .edited = true }, .same_content = true, RESOLVED(DROP) },
        { "edit | edit, other bytes", OP_CONTENT, .code = RES_STALE, .node = { TOLD, .edited = true }, RESOLVED(CONFLICT_COPY) },
        { "edit | delete", OP_CONTENT, .code = RES_DELETED, .node = { TOLD, .deleted = true }, RESOLVED(REVIVE) },
        { "edit | edit and delete", OP_CONTENT, .code = RES_STALE, .node = { TOLD, .edited = true, .deleted = true }, RESOLVED(REVIVE) },
        { "edit | edit and delete, cannot come back", OP_CONTENT, .flags = OPF_REVIVE, .code = RES_STALE, .node = { TOLD, .edited = true, .deleted = true }, RESOLVED(CONFLICT_COPY) },
        { "edit | delete, row gone", OP_CONTENT, .code = RES_NOT_FOUND, RESOLVED(REVIVE) },
        { "edit | delete of a parent", OP_CONTENT, .code = RES_DELETED, .node = { TOLD, .deleted = true }, .parent_deleted = true, RESOLVED(REVIVE) },
        { "delete | edit not seen", OP_UNLINK, .code = RES_STALE, .node = { TOLD, .edited = true }, RESOLVED(DROP) },
        { "delete | rename, content unchanged", OP_UNLINK, .code = RES_STALE, .node = { TOLD, .moved = true }, RESOLVED(REBASE) },
        { "delete | rename and edit", OP_UNLINK, .code = RES_STALE, .node = { TOLD, .moved = true, .edited = true }, RESOLVED(DROP) },
        { "delete | delete", OP_UNLINK, .code = RES_DELETED, .node = { TOLD, .deleted = true }, RESOLVED(DROP) },
        { "rename-over | edit of the target", OP_RENAME, .replaces = true, .code = RES_STALE, .node = { TOLD }, .replaced = { TOLD, .edited = true }, RESOLVED(NEW_NAME) },
        { "rename-over | delete of the target, something else has its name", OP_RENAME, .replaces = true, .code = RES_STALE, .node = { TOLD }, .replaced = { TOLD, .deleted = true }, RESOLVED(NEW_NAME) },
        { "rename A to n | create n", OP_RENAME, .code = RES_EXISTS, .node = { TOLD }, RESOLVED(NEW_NAME) },
        { "rename | rename of the same node", OP_RENAME, .code = RES_STALE, .node = { TOLD, .moved = true }, RESOLVED(DROP) },
        { "rename | delete, clean", OP_RENAME, .code = RES_DELETED, .node = { TOLD, .deleted = true }, RESOLVED(DROP) },
        { "rename | delete, edited here: the edit revives", OP_RENAME, .code = RES_DELETED, .node = { TOLD, .deleted = true }, RESOLVED(DROP) },
        { "create into a directory that cannot come back", OP_CREATE, .flags = OPF_REVIVE, .code = RES_DELETED, .parent_deleted = true, .plan = PLAN_PARK, .error = ENOENT },
        { "create into a directory for which another one stands", OP_CREATE, .flags = OPF_REVIVE, .code = RES_EXISTS, .parent_deleted = true, RESOLVED(NEW_NAME) },
        { "edit of a file that cannot come back", OP_CONTENT, .flags = OPF_REVIVE, .code = RES_DELETED, .node = { TOLD, .deleted = true }, RESOLVED(CONFLICT_COPY) },
        { "delete | rename, told as not found", OP_UNLINK, .code = RES_NOT_FOUND, .node = { TOLD, .moved = true }, RESOLVED(REBASE) },
        { "replace, only the temporary moved", OP_REPLACE, .code = RES_STALE, .node = { TOLD }, RESOLVED(REBASE) },
        { "create into a deleted directory", OP_CREATE, .code = RES_DELETED, .parent_deleted = true, RESOLVED(REVIVE) },
        { "move into a deleted directory", OP_RENAME, .code = RES_DELETED, .node = { TOLD }, .parent2_deleted = true, RESOLVED(REVIVE) },
        { "move into a deleted directory that cannot come back", OP_RENAME, .flags = OPF_REVIVE, .code = RES_NOT_FOUND, .node = { TOLD }, .parent2_deleted = true, RESOLVED(DROP) },
        { "link into a deleted directory", OP_LINK, .code = RES_DELETED, .node = { TOLD }, .parent_deleted = true, RESOLVED(REVIVE) },
        { "link | node deleted", OP_LINK, .code = RES_DELETED, .node = { TOLD, .deleted = true }, RESOLVED(DROP) },
        { "move that makes a cycle", OP_RENAME, .code = RES_CYCLE, .node = { TOLD }, RESOLVED(DROP) },
        { "rmdir | child added", OP_UNLINK, .code = RES_NOT_EMPTY, .node = { .told = true, .kind = NODE_DIR }, RESOLVED(DROP) },
        { "create | create, same name", OP_CREATE, .code = RES_EXISTS, RESOLVED(NEW_NAME) },
        { "create | create, merged", OP_CREATE, .code = RES_MERGED, RESOLVED(MERGED) },
        { "link | create, same name", OP_LINK, .code = RES_EXISTS, .node = { TOLD }, RESOLVED(NEW_NAME) },
        { "attribute | deleted", OP_ATTR, .code = RES_DELETED, .node = { TOLD, .deleted = true }, RESOLVED(DROP) },
        { "replace | edit of the target", OP_REPLACE, .code = RES_STALE, .node = { TOLD, .edited = true }, RESOLVED(CONFLICT_COPY) },
        { "replace | edit of the target, same bytes", OP_REPLACE, .code = RES_STALE, .node = { TOLD, .edited = true }, .same_content = true, RESOLVED(DROP) },
        { "replace | delete of the target", OP_REPLACE, .code = RES_DELETED, .node = { TOLD, .deleted = true }, RESOLVED(REVIVE) },
        { "exchange | either changed", OP_RENAME, .flags = OPF_EXCHANGE, .replaces = true, .code = RES_STALE, .node = { TOLD }, .replaced = { TOLD, .moved = true }, RESOLVED(DROP) },
        { "rename of a directory over one that is not empty now", OP_RENAME, .replaces = true, .code = RES_NOT_EMPTY, .node = { .told = true, .kind = NODE_DIR }, RESOLVED(NEW_NAME) },
        /* answers that are no conflict */
        { "after a refused one", OP_CONTENT, .code = RES_SKIPPED, .plan = PLAN_RETRY },
        { "server busy", OP_CREATE, .code = RES_BUSY, .plan = PLAN_RETRY },
        { "blocks missing", OP_CONTENT, .code = RES_BLOCKS_MISSING, .plan = PLAN_UPLOAD_MISSING },
        { "id reused", OP_CREATE, .code = RES_ID_REUSED, RESOLVED(REBASE) },
        { "a node without bytes that was made before", OP_CREATE, .code = RES_ID_REUSED, .node = { TOLD }, RESOLVED(DROP) },
        { "quota", OP_CONTENT, .code = RES_QUOTA, .plan = PLAN_PARK, .error = EDQUOT },
        { "name invalid", OP_CREATE, .code = RES_NAME_INVALID, .plan = PLAN_PARK, .error = EILSEQ },
        { "forbidden", OP_UNLINK, .code = RES_FORBIDDEN, .plan = PLAN_PARK, .error = EACCES },
        { "unsupported", OP_CREATE, .code = RES_UNSUPPORTED, .plan = PLAN_PARK, .error = EOPNOTSUPP },
        { "invalid", OP_ATTR, .code = RES_INVALID, .plan = PLAN_PARK, .error = EINVAL },
        { "too large", OP_CONTENT, .code = RES_TOO_LARGE, .plan = PLAN_PARK, .error = EFBIG },
        { "corrupt", OP_CONTENT, .code = RES_CORRUPT, .plan = PLAN_PARK, .error = EBADMSG },
        { "a code from the future", OP_CONTENT, .code = (enum op_code)99, .plan = PLAN_UPGRADE, .error = EPROTONOSUPPORT },
};

static size_t build(const struct row *t, struct op *op, struct op_result *r, struct change *current, struct entry_row *entries, struct plan_facts *facts) {
        size_t n = 0;
        *op = (struct op){ .id = OP, .kind = t->kind, .flags = t->flags, .node = NODE, .parent = DIR1, .name = "n", .name_bytes = 1, .parent2 = DIR2, .name2 = "m", .name2_bytes = 1,
                           .placement = PLACE, .version = V1 };
        if (t->replaces) {
                op->replaced = OTHER;
                op->replaced_version = V1;
        }
        if (t->node.told) {
                entries[0] = (struct entry_row){ .parent = DIR1, .node = NODE, .name = "n", .name_bytes = 1, .placement = t->node.moved ? PLACE2 : PLACE };
                current[n++] = (struct change){ .node = { .id = NODE, .kind = t->node.kind, .deleted = t->node.deleted, .version = t->node.edited ? V2 : V1 }, .has_entries = true,
                                                .entries = entries, .n_entries = t->node.deleted ? 0 : 1 };
        }
        if (t->replaced.told) {
                entries[1] = (struct entry_row){ .parent = DIR2, .node = OTHER, .name = "m", .name_bytes = 1, .placement = t->replaced.moved ? PLACE2 : PLACE };
                current[n++] = (struct change){ .node = { .id = OTHER, .kind = t->replaced.kind, .deleted = t->replaced.deleted, .version = t->replaced.edited ? V2 : V1 },
                                                .has_entries = true, .entries = entries + 1, .n_entries = t->replaced.deleted ? 0 : 1 };
        }
        if (t->parent_deleted)
                current[n++] = (struct change){ .node = { .id = DIR1, .kind = NODE_DIR, .deleted = true } };
        if (t->parent2_deleted)
                current[n++] = (struct change){ .node = { .id = DIR2, .kind = NODE_DIR, .deleted = true } };
        *r = (struct op_result){ .op = OP, .code = t->code, .current = current, .n_current = n };
        *facts = (struct plan_facts){ .same_content = t->same_content };
        return n;
}

static void each_row(void **state) {
        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                const struct row *t = &table[i];
                struct op op;
                struct op_result r;
                struct change current[4];
                struct entry_row entries[2];
                struct plan_facts facts;
                struct plan plan = { 0 };
                build(t, &op, &r, current, entries, &facts);
                planner_decide(&op, &r, &facts, &plan);
                if (plan.kind != t->plan || plan.resolve != t->resolve || (t->error && plan.error != t->error))
                        fail_msg("%s: plan %d resolve %d error %d, expected %d %d %d", t->what, (int)plan.kind, (int)plan.resolve, plan.error, (int)t->plan, (int)t->resolve,
                                 t->error);
                if (plan.kind == PLAN_PARK) {
                        assert_non_null(plan.reason);
                        assert_true(plan.retry_after_ms >= 30000);
                }
        }
}

/* Who has the name that we want: a file gives it to a directory, nothing else does. */
static void name_of_directory(void **state) {
        struct entry_row at = { .parent = DIR1, .node = OTHER, .name = "n", .name_bytes = 1, .placement = PLACE2 };
        struct change current[2] = { { .node = { .id = DIR1, .kind = NODE_DIR } }, { .node = { .id = OTHER, .kind = NODE_FILE }, .has_entries = true, .entries = &at, .n_entries = 1 } };
        struct op_result r = { .op = OP, .code = RES_EXISTS, .current = current, .n_current = 2 };
        struct op op = { .id = OP, .kind = OP_CREATE, .node = NODE, .parent = DIR1, .name = "n", .name_bytes = 1, .attrs = { .kind = NODE_DIR } };
        struct plan_facts facts = { 0 };
        struct plan plan;
        planner_decide(&op, &r, &facts, &plan);
        assert_int_equal(plan.resolve, RESOLVE_DIR_NAME);
        current[1].node.kind = NODE_DIR; /* a merge that did not come about */
        planner_decide(&op, &r, &facts, &plan);
        assert_int_equal(plan.resolve, RESOLVE_NEW_NAME);
        current[1].node.kind = NODE_SYMLINK;
        planner_decide(&op, &r, &facts, &plan);
        assert_int_equal(plan.resolve, RESOLVE_DIR_NAME);
        at.name = "m";
        planner_decide(&op, &r, &facts, &plan);
        assert_int_equal(plan.resolve, RESOLVE_NEW_NAME);
        at.name = "n";
        op.attrs.kind = NODE_FILE;
        planner_decide(&op, &r, &facts, &plan);
        assert_int_equal(plan.resolve, RESOLVE_NEW_NAME);
}

/* Whatever a server answers: there is a decision, it is the same each time, and an edit with bytes of its own is never dropped. */
static void any_answer(void **state) {
        struct rng_seeded rng;
        uint64_t seed = rng_u64(rng_system());
        const char *given = getenv("TARN_TEST_SEED");
        if (given)
                seed = strtoull(given, NULL, 10);
        print_message("seed %llu\n", (unsigned long long)seed);
        rng_seed(&rng, seed);
        for (unsigned i = 0; i < 100000; i++) {
                struct row t = { .kind = (enum op_kind)(1 + rng_below(&rng.rng, 7)), .code = (enum op_code)(1 + rng_below(&rng.rng, 20)), .replaces = rng_below(&rng.rng, 2) };
                t.flags = rng_below(&rng.rng, 4) == 0 ? OPF_EXCHANGE : 0;
                uint64_t bits = rng_u64(&rng.rng);
                t.node.told = bits & 1;
                t.node.deleted = bits & 2;
                t.node.moved = bits & 4;
                t.node.edited = bits & 8;
                t.node.kind = bits & 16 ? NODE_FILE : NODE_DIR;
                t.replaced.told = bits & 32;
                t.replaced.deleted = bits & 64;
                t.replaced.kind = NODE_FILE;
                t.parent_deleted = bits & 128;
                t.parent2_deleted = bits & 256;
                t.same_content = bits & 512;
                struct op op;
                struct op_result r;
                struct change current[4];
                struct entry_row entries[2];
                struct plan_facts facts;
                struct plan plan = { 0 }, twice = { 0 };
                build(&t, &op, &r, current, entries, &facts);
                planner_decide(&op, &r, &facts, &plan);
                planner_decide(&op, &r, &facts, &twice);
                assert_true(plan.kind >= PLAN_RESOLVE && plan.kind <= PLAN_UPGRADE);
                assert_true(plan.kind == twice.kind && plan.resolve == twice.resolve && plan.error == twice.error && plan.retry_after_ms == twice.retry_after_ms);
                if ((op.kind == OP_CONTENT || op.kind == OP_REPLACE || op.kind == OP_CREATE) && plan.kind == PLAN_RESOLVE && plan.resolve == RESOLVE_DROP)
                        assert_true(facts.same_content || (op.kind == OP_CREATE && (op.attrs.kind != NODE_FILE || op.content.size == 0)));
        }
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(each_row), cmocka_unit_test(name_of_directory), cmocka_unit_test(any_answer) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
