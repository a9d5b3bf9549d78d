/* SPDX-License-Identifier: Apache-2.0 */
/* test_service.c: the server without sockets: routes, errors, batches, blocks, the packed read, snapshot, events and waiters, whole files; all in memory, on
 * one thread, as the simulation uses it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "api/wire.h"
#include "api_call.h"
#include "base/digest.h"
#include "base/json.h"
#include "router.h"
#include "server/service.h"

struct kit {
        struct service *s;
        char auth[100], other_auth[100];
        struct service_answer a;         /* of the last call */
        struct arena *arena;
        int woken;
};

static int call_full(struct kit *k, const struct service_request *r) {
        service_answer_free(&k->a);
        return service_handle(k->s, r, &k->a);
}

static int call_as(struct kit *k, const char *auth, const char *method, const char *target, const void *body, size_t n) {
        struct service_request r = {.method = method, .target = target, .authorization = auth, .body = body, .body_bytes = n};

        assert_int_equal(call_full(k, &r), 0);
        return k->a.status;
}

static int call(struct kit *k, const char *method, const char *target, const void *body, size_t n) {
        return call_as(k, k->auth, method, target, body, n);
}

static void expect_code(struct kit *k, const char *code) {
        _cleanup_json_ json_t *j = NULL;
        const char *text;

        assert_int_equal(json_parse(k->a.body.data, k->a.body.bytes, &j), 0);
        assert_int_equal(json_get_str(j, "code", &text), 0);
        assert_string_equal(text, code);
        assert_int_equal(json_get_str(j, "message", &text), 0);
        assert_true(strlen(text) > 5);
        assert_int_equal(json_get_str(j, "request_id", &text), 0);
        assert_string_equal(text, k->a.request_id);
        assert_int_equal(strlen(text), 32);
}

static void admin(struct kit *k, const char *password, int expected, struct buf *text, const char *const *words, size_t n) {
        buf_reset(text);
        assert_int_equal(service_admin(k->s, words, n, password, text), expected);
        assert_non_null(buf_text(text));
}
#define ADMIN(k, password, expected, text, ...)                                          \
        do {                                                                             \
                const char *const words_[] = {__VA_ARGS__};                              \
                admin((k), (password), (expected), (text), words_, ARRAY_SIZE(words_)); \
        } while (0)

static int setup(void **state) {
        struct kit *k = calloc(1, sizeof *k);
        struct service_config config = {0};
        _cleanup_buf_ struct buf text = BUF_INIT(4096);
        char why[200];

        assert_non_null(k);
        assert_int_equal(service_open(&config, &k->s, why, sizeof why), 0);
        assert_int_equal(arena_new(64 << 20, &k->arena), 0);
        ADMIN(k, "correct horse", 0, &text, "user", "add", "ann");
        ADMIN(k, "correct horse", -EEXIST, &text, "user", "add", "ann");
        ADMIN(k, "short", -EINVAL, &text, "user", "add", "bob");
        ADMIN(k, "correct horse", 0, &text, "user", "add", "bob");
        ADMIN(k, NULL, -ENOENT, &text, "workspace", "add", "w", "--owner", "nobody");
        ADMIN(k, NULL, 0, &text, "workspace", "add", "w", "--owner", "ann");
        ADMIN(k, NULL, -EINVAL, &text, "make", "coffee");
        ADMIN(k, NULL, 0, &text, "token", "add", "--user", "ann");
        (void)snprintf(k->auth, sizeof k->auth, "Bearer %s", (const char *)text.data);
        ADMIN(k, NULL, 0, &text, "token", "add", "--user", "bob");
        (void)snprintf(k->other_auth, sizeof k->other_auth, "Bearer %s", (const char *)text.data);
        *state = k;
        return 0;
}

static int teardown(void **state) {
        struct kit *k = *state;

        service_answer_free(&k->a);
        arena_free(k->arena);
        service_close(k->s);
        free(k);
        return 0;
}

static json_t *answer_json(struct kit *k) {
        json_t *j = NULL;

        assert_int_equal(json_parse(k->a.body.data, k->a.body.bytes, &j), 0);
        return j;
}

/* ---- routes ---- */

static void test_routes(void **state) {
        struct kit *k = *state;
        char allow[64];
        const struct route *r;

        assert_int_equal(call_as(k, NULL, "GET", "/v1", NULL, 0), 200);
        assert_int_equal(call_as(k, NULL, "GET", "/v1/health", NULL, 0), 200);
        assert_int_equal(call_as(k, NULL, "GET", "/v1/ready", NULL, 0), 200);
        assert_int_equal(call(k, "GET", "/v1/metrics", NULL, 0), 200);
        assert_int_equal(call(k, "GET", "/", NULL, 0), 404);
        expect_code(k, "NOT_FOUND");
        assert_int_equal(call(k, "GET", "/v1/", NULL, 0), 404);
        assert_int_equal(call(k, "GET", "/v2", NULL, 0), 404);
        assert_int_equal(call(k, "POST", "/v1/health", NULL, 0), 405);
        expect_code(k, "METHOD_NOT_ALLOWED");
        assert_string_equal(k->a.allow, "GET");
        assert_int_equal(call(k, "PATCH", "/v1/workspaces/w/files/x", NULL, 0), 405);
        assert_string_equal(k->a.allow, "GET, HEAD, PUT, DELETE");
        assert_int_equal(call_as(k, NULL, "GET", "/v1/workspaces", NULL, 0), 401);
        expect_code(k, "UNAUTHORIZED");
        assert_int_equal(call_as(k, "Bearer tarns_wrong", "GET", "/v1/workspaces", NULL, 0), 401);
        assert_int_equal(call_as(k, "Basic YTpi", "GET", "/v1/workspaces", NULL, 0), 401);
        assert_int_equal(call(k, "GET", "/v1/workspaces/%zz", NULL, 0), 400);
        assert_int_equal(call(k, "GET", "/v1/workspaces/a%00b", NULL, 0), 400);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w?x=%", NULL, 0), 400);
        assert_int_equal(call(k, "GET", "/v1/workspaces/none", NULL, 0), 404);
        assert_int_equal(call_as(k, k->other_auth, "GET", "/v1/workspaces/w", NULL, 0), 404); /* not a member: it does not exist */
        assert_int_equal(call(k, "HEAD", "/v1/health", NULL, 0), 200);
        assert_true(k->a.head);
        assert_int_equal(router_find("GET", "/v1/workspaces/w/files", 22, NULL, &r, allow, sizeof allow), 0);
        assert_string_equal(r->pattern, "/v1/workspaces/{workspace}/files/{path}");
        assert_int_equal(router_find("GET", "/v1/workspaces/w/filesX", 23, NULL, &r, allow, sizeof allow), -ENOENT);
        assert_int_equal(router_find("GET", "/v1/workspaces//files/x", 23, NULL, &r, allow, sizeof allow), -ENOENT);
}

static void test_target_is_bounded(void **state) {
        struct kit *k = *state;
        _cleanup_free_ char *target = malloc(CALL_TARGET_BYTES_MAX + 2);

        memset(target, 'a', CALL_TARGET_BYTES_MAX + 1);
        memcpy(target, "/v1/", 4);
        target[CALL_TARGET_BYTES_MAX + 1] = 0;
        assert_int_equal(call(k, "GET", target, NULL, 0), 413);
        target[CALL_TARGET_BYTES_MAX] = 0;
        assert_int_equal(call(k, "GET", target, NULL, 0), 404);
}

/* ---- commit, blocks, read ---- */

static struct content content_of(const void *p, size_t n) {
        struct content c = content_empty;

        c.size = n;
        if (n > 0)
                sha256(p, n, &c.root);
        return c;
}

static struct op create_op(const char *name, const void *p, size_t n) {
        struct op op = {.id = rng_id(rng_system()), .kind = OP_CREATE, .node = rng_id(rng_system()), .parent = id_root, .name = name, .name_bytes = strlen(name),
                        .flags = OPF_INLINE, .attr_mask = ATTR_MODE | ATTR_MTIME, .content = content_of(p, n), .inline_bytes = p};

        op.attrs.kind = NODE_FILE;
        op.attrs.mode = 0640;
        op.attrs.mtime_ns = 123456789;
        op.attrs.content = op.content;
        return op;
}

/* Sends operations; the results are in order. */
static void commit(struct kit *k, const struct op *ops, size_t n, struct op_result *results) {
        _cleanup_buf_ struct buf body = BUF_INIT(BATCH_BYTES_MAX);
        struct wire_reader reader;
        struct frame f;

        for (size_t i = 0; i < n; i++)
                assert_int_equal(wire_add_op(&body, &ops[i]), 0);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/commit", body.data, body.bytes), 200);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        for (size_t i = 0; i < n; i++) {
                assert_int_equal(wire_next(&reader, &f), 1);
                assert_int_equal(wire_get_result(&f, k->arena, &results[i]), 0);
                assert_true(id_equal(&results[i].op, &ops[i].id));
        }
        assert_int_equal(wire_next(&reader, &f), 0);
}

static struct wire_status read_items(struct kit *k, const struct wire_read *items, size_t n, struct wire_block *ret, size_t *ret_n) {
        _cleanup_buf_ struct buf body = BUF_INIT(BATCH_BYTES_MAX);
        struct wire_status status = {0};
        struct wire_reader reader;
        struct frame f;
        bool ended = false;
        int r;

        for (size_t i = 0; i < n; i++)
                assert_int_equal(wire_add_read(&body, &items[i]), 0);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/read", body.data, body.bytes), 200);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        *ret_n = 0;
        while ((r = wire_next(&reader, &f)) > 0) {
                assert_false(ended);
                if (f.kind == FRAME_BLOCK) {
                        assert_int_equal(wire_get_block(&f, &ret[(*ret_n)++]), 0);
                } else {
                        assert_int_equal(f.kind, FRAME_STATUS);
                        assert_int_equal(wire_get_status(&f, k->arena, &status), 0);
                        ended = true;
                }
        }
        assert_int_equal(r, 0);
        assert_true(ended);
        return status;
}

static void test_commit_inline(void **state) {
        struct kit *k = *state;
        struct op ops[4];
        struct op_result res[4];
        struct wire_block blocks[8];
        struct wire_read items[2] = {0};
        struct wire_status status;
        uint64_t puts = k->s->store_counts.puts;
        size_t n;

        ops[0] = create_op("a", "alpha", 5);
        ops[1] = create_op("b", "alpha", 5); /* the same bytes: one block */
        ops[2] = create_op("c", "gamma", 5);
        ops[2].inline_bytes = "GAMMA"; /* not what it says */
        ops[3] = create_op("empty", NULL, 0);
        commit(k, ops, 4, res);
        assert_int_equal(res[0].code, RES_OK);
        assert_int_equal(res[1].code, RES_OK);
        assert_int_equal(res[2].code, RES_CORRUPT);
        assert_int_equal(res[3].code, RES_OK);
        assert_true(res[0].seq > 0 && res[1].seq > res[0].seq);
        assert_int_equal(k->s->store_counts.puts, puts + 1); /* one batch, one object */
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/b", NULL, 0), 200);
        assert_int_equal(k->a.pull_bytes, 5);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/c", NULL, 0), 404);

        items[0].content = ops[0].content;
        items[1].content = ops[1].content;
        status = read_items(k, items, 2, blocks, &n);
        assert_int_equal(n, 1); /* each hash once */
        assert_memory_equal(blocks[0].bytes, "alpha", 5);
        assert_int_equal(status.n_not_found + status.n_not_sent, 0);

        commit(k, ops, 2, res); /* a retry: the same results, and the object that it brought is gone again */
        assert_int_equal(res[0].code, RES_OK);
        assert_int_equal(k->s->store_counts.puts, puts + 2);
        assert_int_equal(k->s->store_counts.removes, 1);
}

static void test_commit_refuses_bad_bodies(void **state) {
        struct kit *k = *state;
        _cleanup_buf_ struct buf body = BUF_INIT(BATCH_BYTES_MAX);
        struct op op = create_op("x", "bytes", 5);

        assert_int_equal(wire_add_op(&body, &op), 0);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/commit", body.data, body.bytes - 10), 400); /* DATA frame cut off */
        expect_code(k, "INVALID");
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/commit", "g\x01\x00\x00\x00!", 6), 426); /* an unknown frame kind */
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/commit", "garbage!", 8), 400);                /* not frames at all */
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/commit", "\x07\xff\xff\xff\xff", 5), 400);
        body.bytes -= 10;                                                    /* the DATA frame away: its bytes are due */
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/commit", body.data, body.bytes), 400);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/commit", "", 0), 200); /* nothing to do */
        assert_int_equal(call_as(k, k->other_auth, "POST", "/v1/workspaces/w/commit", "", 0), 404);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/x", NULL, 0), 404);
}

static void put_block(struct buf *b, const struct digest *hash, enum block_encoding e, uint32_t raw, const void *p, size_t n) {
        struct wire_block w = {.hash = *hash, .encoding = e, .raw_bytes = raw, .bytes = p, .n = (uint32_t)n};

        assert_int_equal(wire_add_block(b, &w), 0);
}

static void test_blocks(void **state) {
        struct kit *k = *state;
        _cleanup_buf_ struct buf body = BUF_INIT(BATCH_BYTES_MAX), scratch = BUF_INIT(4 << 20);
        _cleanup_free_ uint8_t *zeros = calloc(1, 1 << 20);
        struct digest h[3];
        struct wire_block z, blocks[8];
        struct wire_read items[3] = {0};
        struct wire_status status;
        struct wire_reader reader;
        const struct digest *got;
        struct frame f;
        size_t n;

        sha256("first", 5, &h[0]);
        sha256(zeros, 1 << 20, &h[1]);
        sha256("absent", 6, &h[2]);
        /* all are missing */
        assert_int_equal(wire_add_hashes(&body, h, 3), 0);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/missing", body.data, body.bytes), 200);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(wire_get_hashes(&f, &got, &n), 0);
        assert_int_equal(n, 3);
        /* one raw, one compressed */
        buf_reset(&body);
        put_block(&body, &h[0], ENC_RAW, 5, "first", 5);
        assert_int_equal(wire_block_compress(&h[1], zeros, 1 << 20, &scratch, &z), 0);
        assert_int_equal(z.encoding, ENC_ZSTD);
        assert_true(z.n < 10000);
        assert_int_equal(wire_add_block(&body, &z), 0);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/blocks", body.data, body.bytes), 200);
        buf_reset(&body);
        assert_int_equal(wire_add_hashes(&body, h, 3), 0);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/missing", body.data, body.bytes), 200);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(wire_get_hashes(&f, &got, &n), 0);
        assert_int_equal(n, 1);
        assert_true(digest_equal(got, &h[2]));
        /* they come back by hash; the compressed one as it is stored */
        for (int i = 0; i < 3; i++) {
                items[i].by_hash = true;
                items[i].hash = h[i];
        }
        status = read_items(k, items, 3, blocks, &n);
        assert_int_equal(n, 2);
        assert_int_equal(blocks[1].encoding, ENC_ZSTD);
        assert_int_equal(wire_block_expand(&blocks[1], NULL, 0, zeros), 0);
        assert_int_equal(status.n_not_found, 1);
        assert_int_equal(status.not_found[0], 2);
}

static void test_blocks_refuses_wrong_bytes(void **state) {
        struct kit *k = *state;
        _cleanup_buf_ struct buf body = BUF_INIT(BATCH_BYTES_MAX);
        _cleanup_json_ json_t *j = NULL;
        struct wire_read item = {.by_hash = true};
        struct wire_block blocks[2];
        struct digest good, bad;
        const char *text;
        char hex[2 * DIGEST_BYTES + 1];
        size_t n;

        sha256("good", 4, &good);
        sha256("bad", 3, &bad);
        put_block(&body, &good, ENC_RAW, 4, "good", 4);
        put_block(&body, &bad, ENC_RAW, 3, "BAD", 3);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/blocks", body.data, body.bytes), 422);
        expect_code(k, "HASH_MISMATCH");
        j = answer_json(k);
        assert_int_equal(json_get_str(j, "hash", &text), 0);
        hex_encode(bad.b, DIGEST_BYTES, hex);
        assert_string_equal(text, hex);
        item.hash = good; /* all or nothing */
        (void)read_items(k, &item, 1, blocks, &n);
        assert_int_equal(n, 0);
        buf_reset(&body); /* a bomb: says that it expands to less than it does */
        put_block(&body, &bad, ENC_ZSTD, 3, "\x28\xb5\x2f\xfd\x24\xff\xff\xff\xff", 9);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/blocks", body.data, body.bytes), 422);
}

static void test_read_is_bounded_and_gets_on(void **state) {
        struct kit *k = *state;
        enum { BLOCKS = 6, BYTES = 2 << 20 };
        _cleanup_buf_ struct buf body = BUF_INIT(BATCH_BYTES_MAX + 65536);
        _cleanup_free_ uint8_t *p = malloc(BYTES);
        struct wire_read items[BLOCKS + 1] = {0};
        struct wire_block blocks[BLOCKS + 1];
        struct wire_status status;
        struct digest small;
        size_t n;

        for (int i = 0; i < BLOCKS; i++) { /* 12 MiB that do not fit into one answer */
                memset(p, 'a' + i, BYTES);
                items[i].by_hash = true;
                sha256(p, BYTES, &items[i].hash);
                buf_reset(&body);
                put_block(&body, &items[i].hash, ENC_RAW, BYTES, p, BYTES);
                assert_int_equal(call(k, "POST", "/v1/workspaces/w/blocks", body.data, body.bytes), 200);
        }
        sha256("small", 5, &small);
        buf_reset(&body);
        put_block(&body, &small, ENC_RAW, 5, "small", 5);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/blocks", body.data, body.bytes), 200);
        items[BLOCKS].by_hash = true;
        items[BLOCKS].hash = small;
        status = read_items(k, items, BLOCKS + 1, blocks, &n);
        assert_int_equal(status.n_not_found, 0);
        assert_int_equal(n, 4);
        assert_int_equal(status.n_not_sent, 3);
        assert_int_equal(status.not_sent[0], 4);
        (void)read_items(k, items + 4, 3, blocks, &n);
        assert_int_equal(n, 3);
}

static void test_hashes_grant_nothing(void **state) {
        struct kit *k = *state;
        static const char add[] = "{\"name\":\"bobs\"}", secret[] = "ann's secret bytes";
        _cleanup_buf_ struct buf body = BUF_INIT(65536);
        struct op op = create_op("secret", secret, sizeof secret - 1), steal;
        struct op_result res;
        struct wire_read items[2] = {0};
        struct wire_status status = {0};
        struct wire_reader reader;
        const struct digest *missing;
        struct frame f;
        size_t n;

        commit(k, &op, 1, &res);
        assert_int_equal(res.code, RES_OK);
        assert_int_equal(call_as(k, k->other_auth, "POST", "/v1/workspaces", add, strlen(add)), 201);
        /* bob knows the hash: he cannot read the block, is told that it is missing, and cannot make a file of it */
        items[0].by_hash = true;
        items[0].hash = op.content.root;
        items[1].content = op.content;
        for (int i = 0; i < 2; i++)
                assert_int_equal(wire_add_read(&body, &items[i]), 0);
        assert_int_equal(call_as(k, k->other_auth, "POST", "/v1/workspaces/bobs/read", body.data, body.bytes), 200);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(f.kind, FRAME_STATUS);
        assert_int_equal(wire_get_status(&f, k->arena, &status), 0);
        assert_int_equal(status.n_not_found, 2);
        buf_reset(&body);
        assert_int_equal(wire_add_hashes(&body, &op.content.root, 1), 0);
        assert_int_equal(call_as(k, k->other_auth, "POST", "/v1/workspaces/bobs/missing", body.data, body.bytes), 200);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(wire_get_hashes(&f, &missing, &n), 0);
        assert_int_equal(n, 1);
        steal = op;
        steal.id = rng_id(rng_system());
        steal.flags = 0;
        steal.inline_bytes = NULL;
        buf_reset(&body);
        assert_int_equal(wire_add_op(&body, &steal), 0);
        assert_int_equal(call_as(k, k->other_auth, "POST", "/v1/workspaces/bobs/commit", body.data, body.bytes), 200);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(wire_get_result(&f, k->arena, &res), 0);
        assert_int_equal(res.code, RES_BLOCKS_MISSING);
}

/* A store whose puts fail. */
struct broken { struct store store; struct store *inner; int err; };
static int broken_put(struct store *s, const char *object, const void *p, size_t n) {
        struct broken *b = container_of(s, struct broken, store);

        return b->err ? b->err : b->inner->put(b->inner, object, p, n);
}
static int broken_get(struct store *s, const char *object, uint64_t off, void *p, size_t n) {
        struct broken *b = container_of(s, struct broken, store);

        return b->inner->get(b->inner, object, off, p, n);
}
static int broken_remove(struct store *s, const char *object) {
        struct broken *b = container_of(s, struct broken, store);

        return b->inner->remove(b->inner, object);
}

static void test_a_full_store_loses_nothing(void **state) {
        struct kit *k = *state;
        struct broken broken = {.store = {.put = broken_put, .get = broken_get, .remove = broken_remove}, .inner = k->s->store, .err = -ENOSPC};
        _cleanup_buf_ struct buf body = BUF_INIT(65536);
        struct op op = create_op("a", "bytes", 5);
        struct op_result res;

        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/f", "old", 3), 201);
        k->s->store = &broken.store;
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/f", "new", 3), 507);
        expect_code(k, "NO_SPACE");
        assert_int_equal(wire_add_op(&body, &op), 0);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/commit", body.data, body.bytes), 507);
        broken.err = -EIO;
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/f", "new", 3), 500);
        expect_code(k, "INTERNAL");
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/a", NULL, 0), 404);
        broken.err = 0;
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/f", NULL, 0), 200);
        assert_int_equal(k->a.pull_bytes, 3);
        commit(k, &op, 1, &res); /* the same operation again: nothing of its refusal was kept */
        assert_int_equal(res.code, RES_OK);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/f", "new", 3), 200);
        k->s->store = broken.inner;
}

/* Damaged bodies and targets: any answer but a crash, a leak or a 500. */
static void test_rubbish(void **state) {
        struct kit *k = *state;
        static const char *const paths[] = {"/v1/workspaces/w/commit", "/v1/workspaces/w/missing", "/v1/workspaces/w/blocks", "/v1/workspaces/w/read", "/v1/login", "/v1/workspaces/w/restore?path=x"};
        const char *text = getenv("TARN_TEST_SEED");
        uint64_t seed = text ? strtoull(text, NULL, 0) : rng_u64(rng_system());
        _cleanup_buf_ struct buf valid = BUF_INIT(65536);
        struct wire_read item = {.content = content_of("alpha", 5), .pages = true};
        struct op op = create_op("name", "alpha", 5);
        struct rng_seeded rng;
        struct digest h;

        print_message("seed %llu\n", (unsigned long long)seed);
        rng_seed(&rng, seed);
        sha256("alpha", 5, &h);
        assert_int_equal(wire_add_op(&valid, &op), 0);
        assert_int_equal(wire_add_hashes(&valid, &h, 1), 0);
        put_block(&valid, &h, ENC_RAW, 5, "alpha", 5);
        assert_int_equal(wire_add_read(&valid, &item), 0);
        assert_int_equal(buf_add_str(&valid, "{\"user\":\"ann\",\"password\":[{}]}"), 0);
        for (int round = 0; round < 5000; round++) {
                size_t from = (size_t)rng_below(&rng.rng, valid.bytes), n = 1 + (size_t)rng_below(&rng.rng, valid.bytes - from);
                _cleanup_free_ uint8_t *body = malloc(n);
                char target[64];

                if (rng_below(&rng.rng, 2))
                        from = 0;
                memcpy(body, valid.data + from, n);
                for (uint64_t flips = rng_below(&rng.rng, 8); flips > 0; flips--)
                        body[rng_below(&rng.rng, n)] = (uint8_t)rng_u64(&rng.rng);
                assert_true(call(k, "POST", paths[rng_below(&rng.rng, ARRAY_SIZE(paths))], body, n) != 500);
                (void)snprintf(target, sizeof target, "/v1/workspaces/w/files/");
                for (size_t i = strlen(target); i < sizeof target - 1; i++) {
                        target[i] = "%/.?&=0aF\xc3\xa4:-"[rng_below(&rng.rng, 14)];
                        target[i + 1] = 0;
                }
                assert_true(call(k, rng_below(&rng.rng, 2) ? "GET" : "PUT", target, "x", 1) != 500);
        }
}

static void test_damage_never_leaves(void **state) {
        struct kit *k = *state;
        struct op op = create_op("rot", "precious bytes", 14);
        struct op_result res;
        struct wire_read item = {.content = op.content};
        struct wire_block blocks[2];
        struct wire_status status;
        struct meta_place place;
        struct meta_subject who;
        struct meta_workspace w;
        struct store *store = k->s->store;
        size_t n;
        char *object;

        commit(k, &op, 1, &res);
        assert_int_equal(res.code, RES_OK);
        assert_int_equal(meta_token_check(k->s->meta, k->auth + 7, &who), 0);
        assert_int_equal(meta_access(k->s->meta, &who, "w", ROLE_VIEWER, &w), 0);
        assert_int_equal(meta_blocks_find(k->s->meta, &who, w.ws, &op.content.root, 1, k->arena, &place), 0);
        assert_true(place.found);
        object = strdup(place.object);
        assert_int_equal(store->remove(store, object), 0);
        assert_int_equal(store->put(store, object, "precious bytEs", 14), 0); /* one bit rots */
        free(object);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/rot", NULL, 0), 500); /* the first block is read before the status is chosen */
        status = read_items(k, &item, 1, blocks, &n);
        assert_int_equal(n, 0);
        assert_int_equal(status.n_not_found, 1);
        assert_int_equal(k->s->stats.corrupt_blocks, 2);
}

/* ---- whole files ---- */

static char *pull_all(struct kit *k, size_t *ret_n) {
        char *p = malloc((size_t)k->a.pull_bytes + SERVICE_PULL_BYTES);
        uint64_t at = 0;

        assert_non_null(p);
        while (at < k->a.pull_bytes) {
                int64_t n = k->a.pull(k->a.pull_arg, at, p + at, SERVICE_PULL_BYTES);

                assert_true(n > 0);
                at += (uint64_t)n;
        }
        assert_int_equal(at, k->a.pull_bytes);
        *ret_n = (size_t)at;
        return p;
}

static void test_files_ranges_and_conditions(void **state) {
        struct kit *k = *state;
        static const struct { const char *range; int status; const char *bytes, *content_range; } cases[] = {
                {"bytes=0-3", 206, "0123", "bytes 0-3/10"},  {"bytes=8-", 206, "89", "bytes 8-9/10"},      {"bytes=-3", 206, "789", "bytes 7-9/10"},
                {"bytes=-99", 206, "0123456789", "bytes 0-9/10"}, {"bytes=5-999", 206, "56789", "bytes 5-9/10"}, {"bytes=10-", 416, NULL, "bytes */10"},
                {"bytes=-0", 416, NULL, "bytes */10"},       {"bytes=3-1", 200, "0123456789", ""},         {"bytes=0-1,3-4", 200, "0123456789", ""},
                {"lines=1-2", 200, "0123456789", ""},        {"bytes=", 200, "0123456789", ""},            {"bytes=18446744073709551616-", 200, "0123456789", ""},
                {"bytes=9-9", 206, "9", "bytes 9-9/10"},
        };
        struct service_request r = {.method = "GET", .target = "/v1/workspaces/w/files/dir/ten", .authorization = k->auth};
        char etag[80];

        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/dir/ten?mode=0600&mtime_ns=5", "0123456789", 10), 201);
        (void)snprintf(etag, sizeof etag, "%s", k->a.etag);
        assert_int_equal(strlen(etag), 66);
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                r.range = cases[i].range;
                assert_int_equal(call_full(k, &r), 0);
                assert_int_equal(k->a.status, cases[i].status);
                assert_string_equal(k->a.content_range, cases[i].content_range);
                if (cases[i].bytes) {
                        size_t n;
                        char *p = pull_all(k, &n);

                        assert_int_equal(n, strlen(cases[i].bytes));
                        assert_memory_equal(p, cases[i].bytes, n);
                        free(p);
                }
        }
        r.range = "bytes=0-0";
        r.if_range = "\"other\"";
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 200);
        r.if_range = r.range = NULL;
        r.if_none_match = etag;
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 304);
        r.if_none_match = NULL;
        /* PUT with conditions */
        r.method = "PUT";
        r.body = "new";
        r.body_bytes = 3;
        r.if_none_match = "*";
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 412);
        r.if_none_match = NULL;
        r.if_match = "\"0000000000000000000000000000000000000000000000000000000000000000\"";
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 412);
        expect_code(k, "PRECONDITION_FAILED");
        assert_string_equal(k->a.etag, etag); /* says what is there */
        r.if_match = etag;
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 200);
        assert_int_equal(strlen(k->a.replaced), 32);
        assert_int_equal(call_full(k, &r), 0); /* the same again: no longer what is there */
        assert_int_equal(k->a.status, 412);
        r.target = "/v1/workspaces/w/files/not/there";
        r.if_match = "*";
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 412);
}

static void test_files_bad_paths(void **state) {
        struct kit *k = *state;
        static const struct { const char *path; int status; } bad[] = {
                {"../x", 400}, {"a/../b", 400}, {"a/./b", 400}, {"a%2fb", 400}, {"a%00b", 400}, {"%2e%2e/x", 400}, {"a%ffb", 400}, {"a%", 400}, {"a%4", 400}, {"%c0%ae%c0%ae/x", 400},
        };
        char target[700], name[300];

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                (void)snprintf(target, sizeof target, "/v1/workspaces/w/files/%s", bad[i].path);
                assert_int_equal(call(k, "PUT", target, "x", 1), bad[i].status);
                expect_code(k, "NAME_INVALID");
                assert_int_equal(call(k, "GET", target, NULL, 0), bad[i].status);
                assert_int_equal(call(k, "DELETE", target, NULL, 0), bad[i].status);
        }
        memset(name, 'n', 256);
        name[256] = 0;
        (void)snprintf(target, sizeof target, "/v1/workspaces/w/files/%s", name);
        assert_int_equal(call(k, "PUT", target, "x", 1), 400);
        target[strlen(target) - 1] = 0; /* 255 are fine */
        assert_int_equal(call(k, "PUT", target, "x", 1), 201);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/", "x", 1), 409);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/d/f", "x", 1), 201);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/d", "x", 1), 409);
        expect_code(k, "IS_DIR");
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/d/f/below", "x", 1), 409);
        expect_code(k, "NOT_DIR");
        assert_int_equal(call(k, "DELETE", "/v1/workspaces/w/files/d", NULL, 0), 409);
        expect_code(k, "NOT_EMPTY");
        assert_int_equal(call(k, "DELETE", "/v1/workspaces/w/files/d/f", NULL, 0), 204);
        assert_int_equal(call(k, "DELETE", "/v1/workspaces/w/files/d/f", NULL, 0), 404);
        assert_int_equal(call(k, "DELETE", "/v1/workspaces/w/files/d", NULL, 0), 204);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/%C3%A4%20b", "x", 1), 201); /* UTF-8 and a space */
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files//%c3%a4%20b/", NULL, 0), 200);
}

struct pieces { const uint8_t *p; size_t n, at, piece; int fail_at; };
static int64_t read_pieces(void *arg, void *p, size_t n) {
        struct pieces *s = arg;

        if (s->fail_at > 0 && s->at >= (size_t)s->fail_at)
                return -ECONNRESET;
        n = MIN(n, MIN(s->piece, s->n - s->at));
        memcpy(p, s->p + s->at, n);
        s->at += n;
        return (int64_t)n;
}

static void test_files_large(void **state) {
        struct kit *k = *state;
        enum { BYTES = 21 * 1000 * 1000 };
        _cleanup_free_ uint8_t *p = malloc(BYTES);
        struct rng_seeded rng;
        struct pieces s = {.p = p, .n = BYTES, .piece = 77777};
        struct service_request r = {.method = "PUT", .target = "/v1/workspaces/w/files/large", .authorization = k->auth, .read = read_pieces, .read_arg = &s, .content_length = BYTES};
        uint64_t puts, stored;
        char etag[80], *back;
        size_t n;

        rng_seed(&rng, 7);
        rng.rng.fill(&rng.rng, p, BYTES);
        s.fail_at = 10 * 1000 * 1000; /* broken off: no version */
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 400);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/large", NULL, 0), 404);
        s.fail_at = 0;
        s.at = 0;
        stored = k->s->store_counts.put_bytes;
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 201);
        assert_true(k->s->store_counts.put_bytes - stored < BYTES - 4 * 1000 * 1000); /* what the first try brought is not stored again */
        (void)snprintf(etag, sizeof etag, "%s", k->a.etag);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/large", NULL, 0), 200);
        back = pull_all(k, &n);
        assert_int_equal(n, BYTES);
        assert_memory_equal(back, p, BYTES);
        free(back);
        /* the same bytes by other pieces under another name: the same root, nothing stored but the version */
        puts = k->s->store_counts.puts;
        s.at = 0;
        s.piece = 1 << 20;
        r.target = "/v1/workspaces/w/files/copy";
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 201);
        assert_string_equal(k->a.etag, etag);
        assert_int_equal(k->s->store_counts.puts, puts);
        /* shorter than promised */
        s.at = 0;
        s.n = 1000;
        r.target = "/v1/workspaces/w/files/short";
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 400);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/short", NULL, 0), 404);
}

static void test_idempotency_key(void **state) {
        struct kit *k = *state;
        struct service_request r = {.method = "PUT", .target = "/v1/workspaces/w/files/once", .authorization = k->auth, .body = "v1", .body_bytes = 2, .idempotency_key = "key-1", .if_none_match = "*"};
        char version[40];

        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 201);
        (void)snprintf(version, sizeof version, "%s", k->a.version);
        assert_int_equal(call_full(k, &r), 0); /* the answer was lost: the same one */
        assert_int_equal(k->a.status, 201);
        assert_string_equal(k->a.version, version);
        r.body = "v2";
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 409);
        expect_code(k, "OPERATION_ID_REUSED");
}

static void test_versions_and_restore(void **state) {
        struct kit *k = *state;
        _cleanup_json_ json_t *j = NULL;
        char body[100], target[200], *back;
        const char *old;
        size_t n;

        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/doc", "one", 3), 201);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/doc", "two", 3), 200);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/versions?path=/doc", NULL, 0), 200);
        j = answer_json(k);
        assert_int_equal(json_array_size(json_object_get(j, "versions")), 2);
        old = json_string_value(json_object_get(json_array_get(json_object_get(j, "versions"), 1), "version"));
        assert_non_null(old);
        (void)snprintf(target, sizeof target, "/v1/workspaces/w/files/doc?version=%s", old);
        assert_int_equal(call(k, "GET", target, NULL, 0), 200);
        back = pull_all(k, &n);
        assert_memory_equal(back, "one", 3);
        free(back);
        (void)snprintf(body, sizeof body, "{\"version\":\"%s\"}", old);
        assert_int_equal(call(k, "POST", "/v1/workspaces/w/restore?path=doc", body, strlen(body)), 200);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/files/doc", NULL, 0), 200);
        back = pull_all(k, &n);
        assert_memory_equal(back, "one", 3);
        free(back);
        (void)snprintf(target, sizeof target, "/v1/workspaces/w/nodes/%s/versions", json_string_value(json_object_get(j, "node")));
        assert_int_equal(call(k, "GET", target, NULL, 0), 200);
        json_decref(j);
        j = answer_json(k);
        assert_int_equal(json_array_size(json_object_get(j, "versions")), 3);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/versions?path=none", NULL, 0), 404);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/versions?path=", NULL, 0), 400); /* the root */
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/versions", NULL, 0), 400);
}

/* ---- snapshot, events ---- */

static void cursor_now(struct kit *k, char *ret, size_t n) {
        _cleanup_json_ json_t *j = NULL;

        assert_int_equal(call(k, "GET", "/v1/workspaces/w", NULL, 0), 200);
        j = answer_json(k);
        (void)snprintf(ret, n, "w:%s:%lld:%s", json_string_value(json_object_get(j, "epoch")), (long long)json_integer_value(json_object_get(j, "seq")),
                       json_string_value(json_object_get(j, "mark")));
}

static void test_snapshot_pages(void **state) {
        struct kit *k = *state;
        char target[300], hex[2 * DIGEST_BYTES + 1] = "", id[2 * ID_BYTES + 1] = "";
        struct op ops[25];
        struct op_result res[25];
        char names[25][8];
        size_t nodes = 0, entries = 0, pages = 0;
        struct id last = {{0}};
        struct wire_page page;
        uint64_t after = 0;

        for (int i = 0; i < 25; i++) {
                (void)snprintf(names[i], sizeof names[i], "f%02d", i);
                ops[i] = create_op(names[i], names[i], 3);
        }
        commit(k, ops, 25, res);
        do {
                struct wire_reader reader;
                struct frame f;
                size_t in_page = 0;
                const uint8_t *rows_end;
                struct digest d;

                (void)snprintf(target, sizeof target, "/v1/workspaces/w/snapshot/nodes?limit=10%s%s%s%s", id[0] ? "&after=" : "", id, hex[0] ? "&previous=" : "", hex);
                assert_int_equal(call(k, "GET", target, NULL, 0), 200);
                reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
                rows_end = k->a.body.data;
                while (wire_next(&reader, &f) > 0 && f.kind == FRAME_NODE) {
                        struct node_row row;

                        assert_int_equal(wire_get_node(&f, k->arena, &row), 0);
                        assert_true(memcmp(row.id.b, last.b, ID_BYTES) > 0);
                        last = row.id;
                        in_page++;
                        rows_end = f.payload + f.bytes;
                }
                assert_int_equal(f.kind, FRAME_PAGE);
                assert_int_equal(wire_get_page(&f, &page), 0);
                assert_int_equal(page.count, in_page);
                assert_true(in_page == 0 || id_equal(&page.last_id, &last));
                sha256(k->a.body.data, (size_t)(rows_end - k->a.body.data), &d);
                assert_true(digest_equal(&d, &page.digest));
                if (hex[0]) {
                        assert_int_equal(hex_decode(hex, d.b, DIGEST_BYTES), 0);
                        assert_true(digest_equal(&d, &page.previous));
                }
                hex_encode(page.digest.b, DIGEST_BYTES, hex);
                hex_encode(page.last_id.b, ID_BYTES, id);
                nodes += in_page;
                pages++;
        } while (!page.end);
        assert_int_equal(nodes, 26); /* and the root */
        assert_int_equal(pages, 3);
        assert_int_equal(page.upto.seq, 25);
        do {
                struct wire_reader reader;
                struct frame f;

                (void)snprintf(target, sizeof target, "/v1/workspaces/w/snapshot/entries?limit=7&after=%llu", (unsigned long long)after);
                assert_int_equal(call(k, "GET", target, NULL, 0), 200);
                reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
                while (wire_next(&reader, &f) > 0 && f.kind == FRAME_ENTRY)
                        entries++;
                assert_int_equal(wire_get_page(&f, &page), 0);
                after = page.last_entry;
        } while (!page.end);
        assert_int_equal(entries, 25);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/dirs/root", NULL, 0), 200);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/dirs/00000000000000000000000000000099", NULL, 0), 404);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/snapshot/nodes?limit=0", NULL, 0), 400);
        assert_int_equal(call(k, "GET", "/v1/workspaces/w/snapshot/nodes?after=zz", NULL, 0), 400);
}

static void ready(struct service_waiter *w) {
        struct kit *k = w->owner;

        k->woken++;
}

static void test_events_and_waiters(void **state) {
        struct kit *k = *state;
        char cursor[200], target[300];
        struct service_waiter waiter = {.ready = ready, .owner = k};
        struct service_request r = {.method = "GET", .target = target, .authorization = k->auth, .waiter = &waiter};
        struct wire_reader reader;
        struct wire_cursor upto;
        struct event e;
        struct frame f;

        cursor_now(k, cursor, sizeof cursor);
        (void)snprintf(target, sizeof target, "/v1/events?cursor=%s&wait=20", cursor);
        assert_int_equal(call_full(k, &r), -EINPROGRESS);
        assert_true(waiter.registered);
        assert_true(waiter.deadline_ms > clock_mono_ms(clock_system()) + 15000);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/news", "n", 1), 201);
        assert_int_equal(k->woken, 1);
        assert_false(waiter.registered);
        assert_int_equal(call_full(k, &r), 0);
        assert_int_equal(k->a.status, 200);
        assert_false(waiter.registered);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(f.kind, FRAME_CURSOR);
        assert_int_equal(wire_get_cursor(&f, k->arena, &upto), 0);
        assert_string_equal(upto.workspace, "w");
        assert_int_equal(upto.cursor.seq, 1);
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(wire_get_event(&f, k->arena, &e), 0);
        assert_int_equal(e.seq, 1);
        assert_string_equal(e.actor, "ann");
        assert_int_equal(wire_next(&reader, &f), 0);
        /* the end of the wait: every cursor, no event */
        cursor_now(k, cursor, sizeof cursor);
        (void)snprintf(target, sizeof target, "/v1/events?cursor=%s&wait=20", cursor);
        waiter.deadline_ms = 0;
        assert_int_equal(call_full(k, &r), -EINPROGRESS);
        r.no_wait = true;
        assert_int_equal(call_full(k, &r), 0);
        assert_false(waiter.registered);
        reader = (struct wire_reader){k->a.body.data, k->a.body.bytes, 0};
        assert_int_equal(wire_next(&reader, &f), 1);
        assert_int_equal(f.kind, FRAME_CURSOR);
        assert_int_equal(wire_next(&reader, &f), 0);
        /* without a waiter nothing parks; JSON for people */
        r = (struct service_request){.method = "GET", .target = target, .authorization = k->auth, .accept = "application/json"};
        assert_int_equal(call_full(k, &r), 0);
        assert_string_equal(k->a.content_type, "application/json");
}

static void test_events_gone(void **state) {
        struct kit *k = *state;
        char cursor[200], target[400];
        _cleanup_json_ json_t *j = NULL;
        static const char *const bad[] = {"", "cursor=w", "cursor=w:1:2:3", "cursor=w:00112233445566778899aabbccddeeff:x:0011223344556677", "cursor=w:00112233445566778899aabbccddeeff:1:00", "wait=1"};

        assert_int_equal(call(k, "PUT", "/v1/workspaces/w/files/news", "n", 1), 201);
        assert_int_equal(call(k, "GET", "/v1/events?cursor=w:00112233445566778899aabbccddeeff:1:0011223344556677", NULL, 0), 410);
        expect_code(k, "CURSOR_GONE");
        j = answer_json(k);
        assert_string_equal(json_string_value(json_object_get(j, "workspace")), "w");
        assert_int_equal(strlen(json_string_value(json_object_get(j, "epoch"))), 32);
        cursor_now(k, cursor, sizeof cursor);
        cursor[strlen(cursor) - 1] = cursor[strlen(cursor) - 1] == '0' ? '1' : '0'; /* a wrong mark: a server that was rolled back */
        (void)snprintf(target, sizeof target, "/v1/events?cursor=%s", cursor);
        assert_int_equal(call(k, "GET", target, NULL, 0), 410);
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                (void)snprintf(target, sizeof target, "/v1/events?%s", bad[i]);
                assert_int_equal(call(k, "GET", target, NULL, 0), 400);
        }
        assert_int_equal(call_as(k, k->other_auth, "GET", "/v1/events?cursor=w:00112233445566778899aabbccddeeff:1:0011223344556677", NULL, 0), 404);
}

/* ---- accounts ---- */

static void test_login_and_devices(void **state) {
        struct kit *k = *state;
        static const char *const bad[] = {"{\"user\":\"ann\",\"password\":\"wrong horse\",\"device\":\"d\"}", "{\"user\":\"nobody\",\"password\":\"correct horse\",\"device\":\"d\"}"};
        static const char good[] = "{\"user\":\"ann\",\"password\":\"correct horse\",\"device\":\"laptop\"}";
        _cleanup_json_ json_t *login = NULL, *again = NULL, *devices = NULL;
        char auth[100], body[200], target[200];

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                assert_int_equal(call_as(k, NULL, "POST", "/v1/login", bad[i], strlen(bad[i])), 401);
                expect_code(k, "UNAUTHORIZED");
        }
        assert_int_equal(call_as(k, NULL, "POST", "/v1/login", "{}", 2), 400);
        assert_int_equal(call_as(k, NULL, "POST", "/v1/login", "[", 1), 400);
        assert_int_equal(call_as(k, NULL, "POST", "/v1/login", good, strlen(good)), 200);
        login = answer_json(k);
        assert_true(json_integer_value(json_object_get(login, "expires_in")) > 600);
        (void)snprintf(auth, sizeof auth, "Bearer %s", json_string_value(json_object_get(login, "token")));
        assert_int_equal(call_as(k, auth, "GET", "/v1/workspaces", NULL, 0), 200);
        (void)snprintf(body, sizeof body, "{\"refresh_token\":\"%s\"}", json_string_value(json_object_get(login, "refresh_token")));
        assert_int_equal(call_as(k, NULL, "POST", "/v1/refresh", body, strlen(body)), 200);
        again = answer_json(k);
        assert_non_null(json_string_value(json_object_get(again, "token")));
        assert_non_null(json_string_value(json_object_get(again, "refresh_token")));
        assert_int_equal(call_as(k, auth, "GET", "/v1/devices", NULL, 0), 200);
        devices = answer_json(k);
        assert_int_equal(json_array_size(json_object_get(devices, "devices")), 2);
        (void)snprintf(target, sizeof target, "/v1/devices/%s", json_string_value(json_object_get(login, "device_id")));
        assert_int_equal(call_as(k, k->other_auth, "DELETE", target, NULL, 0), 404); /* not his */
        assert_int_equal(call(k, "DELETE", target, NULL, 0), 204);
        assert_int_equal(call_as(k, auth, "GET", "/v1/workspaces", NULL, 0), 401); /* dead at once */
        assert_int_equal(call_as(k, NULL, "POST", "/v1/refresh", body, strlen(body)), 401);
        assert_int_equal(call_as(k, NULL, "POST", "/v1/login", good, strlen(good)), 200);
        json_decref(login);
        login = answer_json(k);
        (void)snprintf(auth, sizeof auth, "Bearer %s", json_string_value(json_object_get(login, "token")));
        assert_int_equal(call_as(k, auth, "POST", "/v1/logout", NULL, 0), 204);
        assert_int_equal(call_as(k, auth, "GET", "/v1/workspaces", NULL, 0), 401);
}

static void test_workspaces(void **state) {
        struct kit *k = *state;
        static const char add[] = "{\"name\":\"second\",\"quota_bytes\":1000}";

        assert_int_equal(call(k, "POST", "/v1/workspaces", add, strlen(add)), 201);
        assert_int_equal(call(k, "POST", "/v1/workspaces", add, strlen(add)), 409);
        assert_int_equal(call(k, "POST", "/v1/workspaces", "{\"name\":\"a/b\"}", 14), 400);
        assert_int_equal(call(k, "PUT", "/v1/workspaces/second/files/small", "0123456789", 10), 201);
        {
                char big[2000];

                memset(big, 'x', sizeof big);
                assert_int_equal(call(k, "PUT", "/v1/workspaces/second/files/big", big, sizeof big), 507);
                expect_code(k, "QUOTA");
        }
        assert_int_equal(call_as(k, k->other_auth, "GET", "/v1/workspaces/second/files/small", NULL, 0), 404);
}

static void test_admission(void **state) {
        struct kit *k = *state;
        struct service_admission a;

        service_admit(k->s, "PUT", "/v1/workspaces/w/files/x?mode=0600", &a);
        assert_true(a.stream);
        service_admit(k->s, "POST", "/v1/workspaces/w/commit", &a);
        assert_false(a.stream);
        assert_true(a.max_body_bytes >= BATCH_BYTES_MAX && a.max_body_bytes < 2 * BATCH_BYTES_MAX);
        service_admit(k->s, "GET", "/v1/events?cursor=x", &a);
        assert_int_equal(a.class, CLASS_EVENTS);
        assert_int_equal(a.max_body_bytes, 0);
        service_admit(k->s, "POST", "/nowhere", &a);
        assert_int_equal(a.max_body_bytes, 0);
        service_answer_free(&k->a);
        service_refuse(k->s, "TOO_LARGE", "the body is too large", &k->a);
        assert_int_equal(k->a.status, 413);
        expect_code(k, "TOO_LARGE");
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_routes), T(test_target_is_bounded), T(test_commit_inline), T(test_commit_refuses_bad_bodies), T(test_blocks), T(test_blocks_refuses_wrong_bytes),
                T(test_read_is_bounded_and_gets_on), T(test_damage_never_leaves), T(test_hashes_grant_nothing), T(test_a_full_store_loses_nothing), T(test_rubbish), T(test_files_ranges_and_conditions), T(test_files_bad_paths), T(test_files_large),
                T(test_idempotency_key), T(test_versions_and_restore), T(test_snapshot_pages), T(test_events_and_waiters), T(test_events_gone),
                T(test_login_and_devices), T(test_workspaces), T(test_admission),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
