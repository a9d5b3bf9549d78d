/* SPDX-License-Identifier: Apache-2.0 */
/* test_compact.c: objects that are mostly empty are put together (maintain_compact.c), in process and one step after the other: readers who asked before it, objects that are being written, places that
 * have changed meanwhile, damage. Kills and a busy server: test_compact.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "api/wire.h"
#include "api_call.h"
#include "api_content.h"
#include "base/digest.h"
#include "base/json.h"
#include "maintain.h"
#include "server/service.h"

#define BIG_BYTES 6000000u
#define PART_BYTES 2000000u

struct kit { struct service *s; char auth[100]; struct service_answer a; struct arena *arena; uint8_t *bytes, *raw; };
struct stale { struct meta_place place; char object[STORE_NAME_BYTES + 1]; };

static int call(struct kit *k, const char *method, const char *target, const void *body, size_t n) {
        struct service_request r = {.method = method, .target = target, .authorization = k->auth, .body = body, .body_bytes = n};

        service_answer_free(&k->a);
        assert_int_equal(service_handle(k->s, &r, &k->a), 0);
        return k->a.status;
}

static int setup(void **state) {
        static const char *const words[][5] = {{"user", "add", "ann"}, {"workspace", "add", "w", "--owner", "ann"}, {"token", "add", "--user", "ann"}};
        static const size_t n[] = {3, 5, 4};
        struct kit *k = calloc(1, sizeof *k);
        struct service_config config = {0};
        _cleanup_buf_ struct buf text = BUF_INIT(4096);
        struct rng_seeded rng;
        char why[200];

        assert_non_null(k);
        assert_int_equal(service_open(&config, &k->s, why, sizeof why), 0);
        assert_int_equal(arena_new(64 << 20, &k->arena), 0);
        for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
                buf_reset(&text);
                assert_int_equal(service_admin(k->s, words[i], n[i], i ? NULL : "correct horse", &text), 0);
        }
        (void)snprintf(k->auth, sizeof k->auth, "Bearer %s", buf_text(&text));
        k->bytes = malloc(BIG_BYTES);
        k->raw = malloc(BLOCK_BYTES_MAX);
        assert_true(k->bytes && k->raw);
        rng_seed(&rng, 7);
        for (size_t i = 0; i < BIG_BYTES; i++)
                k->bytes[i] = (uint8_t)rng_u64(&rng.rng);
        *state = k;
        return 0;
}

static int teardown(void **state) {
        struct kit *k = *state;

        service_answer_free(&k->a);
        arena_free(k->arena);
        service_close(k->s);
        free(k->bytes);
        free(k->raw);
        free(k);
        return 0;
}

static int64_t gc(struct kit *k, bool compact, const char *what) {
        const char *const words[] = {"gc", "--min-age", "0", "--json", "--compact"};
        _cleanup_buf_ struct buf text = BUF_INIT(65536);
        _cleanup_json_ json_t *j = NULL;
        int64_t v = 0;

        assert_int_equal(maintain_run(k->s, words, compact ? 5 : 4, false, &text), 0);
        assert_int_equal(json_parse(text.data, text.bytes, &j), 0);
        assert_int_equal(json_get_int(j, what, 0, INT64_MAX, &v), 0);
        return v;
}

/* The beginning of a big file is all that is left of its object. */
static void make_sparse(struct kit *k, const char *part) {
        char target[100];

        (void)snprintf(target, sizeof target, "/v1/workspaces/w/files/%s", part);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/big", k->bytes, BIG_BYTES), 201);
        assert_int_equal(call(k, "PUT", target, k->bytes, PART_BYTES), 201);
        assert_int_equal(call(k, "DELETE", "/v1/workspaces/w/files/big", NULL, 0), 204);
        assert_int_equal(call(k, "DELETE", "/v1/workspaces/w/trash", NULL, 0), 200);
        assert_true(gc(k, false, "blocks_forgotten") > 0);
}

static void same(struct kit *k, const char *part) {
        char target[100];

        (void)snprintf(target, sizeof target, "/v1/workspaces/w/files/%s", part);
        assert_int_equal(call(k, "GET", target, NULL, 0), 200);
        assert_non_null(k->a.pull);
        assert_int_equal(k->a.pull_bytes, PART_BYTES);
        for (uint64_t at = 0; at < PART_BYTES;) {
                int64_t n = k->a.pull(k->a.pull_arg, at, k->raw, BLOCK_BYTES_MAX);

                assert_in_range(n, 1, PART_BYTES - at);
                assert_memory_equal(k->raw, k->bytes + at, (size_t)n);
                at += (uint64_t)n;
        }
}

static void place_of(struct kit *k, const char *part, struct stale *ret) {
        struct meta_subject who = {.account = 1};
        struct content_walk walk;
        struct node_row row;
        struct blockref ref;
        uint64_t start;

        assert_int_equal(meta_resolve(k->s->meta, 1, part, k->arena, &row), 0);
        assert_int_equal(content_walk_open(k->s, &who, 1, &row.content, &walk), 0);
        assert_int_equal(content_walk_find(&walk, 0, &ref, &start), 0);
        assert_int_equal(content_walk_place(&walk, &ref.hash, &ret->place), 0);
        (void)snprintf(ret->object, sizeof ret->object, "%s", ret->place.object);
        ret->place.object = ret->object;
        content_walk_close(&walk);
}

static void test_moved(void **state) {
        struct kit *k = *state;
        struct store *store = k->s->store;
        struct stale before, after;
        uint64_t bytes;

        make_sparse(k, "part");
        assert_int_equal(gc(k, false, "objects_half_empty"), 1);
        place_of(k, "part", &before);
        assert_true(gc(k, true, "blocks_moved") >= 2);
        assert_int_equal(gc(k, false, "objects_half_empty"), 0);
        assert_int_equal(store->stat(store, before.object, &bytes), -ENOENT);
        place_of(k, "part", &after);
        assert_string_not_equal(before.object, after.object);
        assert_int_equal(store->stat(store, after.object, &bytes), 0);
        assert_true(bytes < BIG_BYTES / 2);
        same(k, "part");
        /* who asked before it moved */
        assert_int_equal(content_block_read(k->s, &before.place, k->raw, NULL, NULL), 0);
        assert_memory_equal(k->raw, k->bytes, before.place.block.raw_bytes);
        assert_int_equal(gc(k, true, "blocks_moved"), 0); /* nothing is left to do */
        /* a file that had nothing to do with it shares its blocks */
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/again", k->bytes, PART_BYTES), 201);
        same(k, "again");
        /* where it should lie there is nothing: damaged, from the old place and the new one; not for ever */
        assert_int_equal(store->remove(store, after.object), 0);
        assert_int_equal(content_block_read(k->s, &before.place, k->raw, NULL, NULL), -EBADMSG);
        assert_int_equal(content_block_read(k->s, &after.place, k->raw, NULL, NULL), -EBADMSG);
}

static void test_left_alone(void **state) {
        struct kit *k = *state;
        struct service_object busy;
        struct stale at;
        char name[STORE_NAME_BYTES + 1];

        make_sparse(k, "part");
        place_of(k, "part", &at);
        service_object_begin(k->s, &busy, at.object);
        assert_int_equal(gc(k, true, "blocks_moved"), 0); /* it is being written */
        service_object_end(k->s, &busy);
        same(k, "part");
        /* a block that has moved meanwhile stays where it is, and the object that nothing lies in goes */
        struct meta_object o = {.id = 0};
        size_t n = 1;
        while (n > 0 && strcmp(o.name, at.object) != 0)
                assert_int_equal(meta_objects(k->s->meta, o.id, 1, &o, &n), 0);
        meta_object_name removed[3];
        struct meta_moved moved[] = {{.hash = at.place.block.hash, .from_object = o.id, .from_offset = at.place.block.offset + 1}, {.hash = at.place.block.hash, .from_object = o.id + 100}};
        struct meta_move move = {.object = name, .bytes = 100, .created_ns = 1, .blocks = moved, .n = 2, .busy = service_object_busy, .busy_arg = k->s, .removed = removed};
        store_name_new(k->s->rng, name);
        service_object_begin(k->s, &busy, name);
        assert_int_equal(meta_blocks_move(k->s->meta, &move), 0);
        service_object_end(k->s, &busy);
        assert_int_equal(move.n_moved, 0);
        assert_int_equal(move.n_removed, 1);
        assert_string_equal(removed[0], name);
        same(k, "part");
        /* a damaged block stays where it is, and the rest moves */
        assert_int_equal(meta_block_mark(k->s->meta, &at.place, true), 0);
        assert_true(gc(k, true, "blocks_moved") >= 1);
        struct stale now;
        place_of(k, "part", &now);
        assert_string_equal(now.object, at.object);
        assert_true(now.place.bad);
        same(k, "part");
        assert_int_equal(meta_block_mark(k->s->meta, &at.place, false), 0);
        assert_int_equal(gc(k, true, "objects_compacted"), 1);
        same(k, "part");
}

static void test_many_in_one(void **state) {
        struct kit *k = *state;
        char name[20];

        for (unsigned i = 0; i < 12; i++) { /* 12 sparse objects, more blocks than one new object takes */
                (void)snprintf(name, sizeof name, "part%u", i);
                for (size_t at = 0; at < BIG_BYTES; at += 50000)
                        k->bytes[at] = (uint8_t)i;
                make_sparse(k, name);
        }
        assert_int_equal(gc(k, false, "objects_half_empty"), 12);
        assert_int_equal(gc(k, true, "objects_made"), 3); /* 18 MB */
        assert_int_equal(gc(k, true, "objects_made"), 0);
        for (unsigned i = 0; i < 12; i++) {
                (void)snprintf(name, sizeof name, "part%u", i);
                for (size_t at = 0; at < BIG_BYTES; at += 50000)
                        k->bytes[at] = (uint8_t)i;
                same(k, name);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_moved, setup, teardown),
                cmocka_unit_test_setup_teardown(test_left_alone, setup, teardown),
                cmocka_unit_test_setup_teardown(test_many_in_one, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
