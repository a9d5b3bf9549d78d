/* SPDX-License-Identifier: Apache-2.0 */
/* test_meta_block.c: claims, sessions, "missing?", who may read what; deep contents with their list pages, quickly and counted right. */
#include <stdlib.h>
#include <time.h>

#include "base/chunk.h"
#include "meta_int.h"
#include "test_meta_kit.h"

#define DAY_MS (86400ll * 1000)

static struct meta_workspace space_now(struct kit *k, const char *name) {
        struct meta_workspace w;
        assert_int_equal(meta_access(k->m, NULL, name, ROLE_NONE, &w), 0);
        return w;
}

static bool missing_one(struct kit *k, const struct meta_subject *who, uint64_t ws, const struct id *session, struct content c) {
        bool missing;
        assert_int_equal(meta_blocks_missing(k->m, who, ws, session, &c.root, 1, &missing), 0);
        return missing;
}

static bool may_read(struct kit *k, const struct meta_subject *who, uint64_t ws, struct content c) {
        struct meta_place p;
        assert_int_equal(meta_blocks_find(k->m, who, ws, &c.root, 1, k->a, &p), 0);
        if (p.found) {
                assert_int_equal(p.block.raw_bytes, c.size);
                assert_int_equal(strlen(p.object), 32);
        }
        return p.found;
}

/* A hash opens nothing: not in another workspace, not for another user of the same one, not by asking for it. */
static void hashes_grant_nothing(void **state) {
        struct kit k;
        kit_open(&k);
        struct meta_subject bob;
        uint64_t other;
        kit_user(&k, "bob", &bob);
        assert_int_equal(meta_workspace_add(k.m, "other", "bob", NAMES_EXACT, 0, &other), 0);
        assert_int_equal(meta_member_set(k.m, NULL, k.ws, "bob", ROLE_EDITOR), 0);
        struct content c = content_of("secret");
        assert_true(missing_one(&k, &k.ann, k.ws, NULL, c));
        assert_false(may_read(&k, &k.ann, k.ws, c));
        c = kit_block(&k, &k.ann, k.ws, "secret");
        assert_false(missing_one(&k, &k.ann, k.ws, NULL, c));
        assert_true(may_read(&k, &k.ann, k.ws, c));
        /* Bob may not, by hash: the claim is Ann's */
        assert_true(missing_one(&k, &bob, k.ws, NULL, c));
        assert_true(missing_one(&k, &bob, k.ws, NULL, c)); /* asking made a claim, but no bytes of his came */
        assert_false(may_read(&k, &bob, k.ws, c));
        assert_true(missing_one(&k, &bob, other, NULL, c));
        assert_false(may_read(&k, &bob, other, c));
        struct op theft = op_file(&k, id_root, "theft", c);
        assert_int_equal(run_as(&k, &bob, other, &theft).code, RES_BLOCKS_MISSING);
        assert_int_equal(run_as(&k, &bob, k.ws, &theft).code, RES_BLOCKS_MISSING);
        /* committed here: everybody here, nobody elsewhere */
        struct op f = op_file(&k, id_root, "f", c);
        expect(&k, &f, RES_OK);
        assert_true(may_read(&k, &bob, k.ws, c));
        assert_false(missing_one(&k, &bob, k.ws, NULL, c));
        assert_false(may_read(&k, &bob, other, c));
        assert_int_equal(run_as(&k, &bob, other, &theft).code, RES_BLOCKS_MISSING);
        /* with his own bytes he may: one stored block, two workspaces */
        (void)kit_block(&k, &bob, other, "secret");
        assert_int_equal(run_as(&k, &bob, other, &theft).code, RES_OK);
        struct meta_stats s;
        assert_int_equal(meta_stats(k.m, &s), 0);
        assert_int_equal(s.blocks, 1);
        assert_int_equal(s.objects, 1);
        /* deleted files keep their versions, and so the right */
        struct op u = op_unlink(&k, f.node, id_root, "f", f.id, f.id);
        expect(&k, &u, RES_OK);
        assert_true(may_read(&k, &bob, k.ws, c));
        /* viewers neither put nor ask */
        assert_int_equal(meta_member_set(k.m, NULL, k.ws, "bob", ROLE_VIEWER), 0);
        bool missing;
        assert_int_equal(meta_blocks_missing(k.m, &bob, k.ws, NULL, &c.root, 1, &missing), -EACCES);
        struct meta_block b = { .hash = c.root, .raw_bytes = 6, .stored_bytes = 6 };
        assert_int_equal(meta_blocks_record(k.m, &bob, k.ws, NULL, "o", 6, &b, 1), -EACCES);
        b.offset = 1;
        assert_int_equal(meta_blocks_record(k.m, &k.ann, k.ws, NULL, "o", 6, &b, 1), -EINVAL);
        assert_int_equal(meta_blocks_record(k.m, &k.ann, 77, NULL, "o", 7, &b, 1), -ENOENT);
        kit_close(&k);
}

static void claims_expire(void **state) {
        struct kit k;
        kit_open(&k);
        struct content week = kit_block(&k, &k.ann, k.ws, "a week"), renewed = kit_block(&k, &k.ann, k.ws, "renewed");
        struct id session = kit_id(&k);
        struct content under = content_of("under a session");
        struct meta_block b = { .hash = under.root, .raw_bytes = (uint32_t)under.size, .stored_bytes = (uint32_t)under.size };
        assert_int_equal(meta_blocks_record(k.m, &k.ann, k.ws, &session, "00112233445566778899aabbccddeeff", under.size, &b, 1), 0);
        assert_int_equal(space_now(&k, "w").reserved_bytes, 6 + 7 + 15);
        clock_manual_advance(&k.clock, 5 * DAY_MS);
        assert_false(missing_one(&k, &k.ann, k.ws, NULL, renewed)); /* use renews */
        clock_manual_advance(&k.clock, 3 * DAY_MS);
        assert_int_equal(meta_tidy(k.m), 0);
        assert_int_equal(space_now(&k, "w").reserved_bytes, 7 + 15);
        assert_false(may_read(&k, &k.ann, k.ws, week));
        assert_true(may_read(&k, &k.ann, k.ws, renewed));
        assert_true(may_read(&k, &k.ann, k.ws, under));
        clock_manual_advance(&k.clock, 20 * DAY_MS);
        assert_true(missing_one(&k, &k.ann, k.ws, &session, content_of("nothing"))); /* any use renews the session */
        clock_manual_advance(&k.clock, 29 * DAY_MS);
        assert_int_equal(meta_tidy(k.m), 0);
        assert_int_equal(space_now(&k, "w").reserved_bytes, 15);
        assert_true(may_read(&k, &k.ann, k.ws, under));
        clock_manual_advance(&k.clock, 2 * DAY_MS);
        assert_int_equal(meta_tidy(k.m), 0);
        assert_int_equal(space_now(&k, "w").reserved_bytes, 0);
        assert_false(may_read(&k, &k.ann, k.ws, under));
        kit_close(&k);
}

static void claims_reserve_quota(void **state) {
        struct kit k;
        kit_open(&k);
        assert_int_equal(meta_quota_set(k.m, k.ws, 10), 0);
        struct content a = kit_block(&k, &k.ann, k.ws, "123456");
        struct content c = content_of("12345");
        struct meta_block b = { .hash = c.root, .raw_bytes = 5, .stored_bytes = 5 };
        assert_int_equal(meta_blocks_record(k.m, &k.ann, k.ws, NULL, "0f112233445566778899aabbccddeeff", 5, &b, 1), -EDQUOT);
        (void)kit_block(&k, &k.ann, k.ws, "123456"); /* again: reserved once */
        assert_int_equal(space_now(&k, "w").reserved_bytes, 6);
        struct op f = op_file(&k, id_root, "f", a);
        expect(&k, &f, RES_OK);
        assert_int_equal(space_now(&k, "w").used_bytes, 6);
        (void)kit_block(&k, &k.ann, k.ws, "1234");
        bool missing;
        assert_int_equal(meta_blocks_missing(k.m, &k.ann, k.ws, NULL, &c.root, 1, &missing), -EDQUOT); /* full */
        kit_close(&k);
}

/* ---- deep contents ---- */

struct pages { struct page_get get; struct page_sink sink; struct { struct digest hash; void *p; size_t n; } page[64]; size_t n; unsigned asked; struct kit *k; };

static int keep_page(struct page_sink *s, const struct digest *hash, const void *bytes, size_t n, uint8_t level) {
        struct pages *p = container_of(s, struct pages, sink);
        (void)level;
        assert_true(p->n < ARRAY_SIZE(p->page));
        p->page[p->n].hash = *hash;
        p->page[p->n].p = malloc(n);
        memcpy(p->page[p->n].p, bytes, n);
        p->page[p->n++].n = n;
        return 0;
}

static int give_page(struct page_get *g, const struct digest *hash, const void **ret_bytes, size_t *ret_n) {
        struct pages *p = container_of(g, struct pages, get);
        p->asked++;
        for (size_t i = 0; i < p->n; i++)
                if (digest_equal(&p->page[i].hash, hash)) {
                        *ret_bytes = p->page[i].p;
                        *ret_n = p->page[i].n;
                        return 0;
                }
        return -ENODATA;
}

static void pages_free(struct pages *p) {
        for (size_t i = 0; i < p->n; i++)
                free(p->page[i].p);
}

static struct digest block_hash(unsigned i) {
        struct digest d;
        sha256(&i, sizeof i, &d);
        return d;
}

/* A content of blocks first .. first + n - 1 (1,000 bytes each), its pages kept. */
static struct content deep(struct pages *p, unsigned first, unsigned n) {
        struct blocklist l = { .param = CHUNK_PARAM_1 };
        for (unsigned i = 0; i < n; i++) {
                struct blockref ref = { block_hash(first + i), 1000 };
                assert_int_equal(blocklist_add(&l, &ref), 0);
        }
        struct content c;
        assert_int_equal(blocklist_content(&l, &p->sink, &c), 0);
        blocklist_free(&l);
        return c;
}

static void record(struct kit *k, const struct meta_block *b, size_t n) {
        char object[33];
        struct id name = kit_id(k);
        hex_encode(name.b, sizeof name.b, object);
        struct meta_block *copy = calloc(n, sizeof *copy);
        uint64_t at = 0;
        for (size_t i = 0; i < n; i++) {
                copy[i] = b[i];
                copy[i].stored_bytes = b[i].raw_bytes;
                copy[i].offset = at;
                at += b[i].raw_bytes;
        }
        assert_int_equal(meta_blocks_record(k->m, &k->ann, k->ws, NULL, object, at, copy, n), 0);
        free(copy);
}

static void record_range(struct kit *k, unsigned first, unsigned n) {
        struct meta_block *b = calloc(n, sizeof *b);
        for (unsigned i = 0; i < n; i++)
                b[i] = (struct meta_block){ .hash = block_hash(first + i), .raw_bytes = 1000 };
        record(k, b, n);
        free(b);
}

static void record_pages(struct kit *k, const struct pages *p, size_t first) {
        for (size_t i = first; i < p->n; i++) {
                struct meta_block b = { .hash = p->page[i].hash, .raw_bytes = (uint32_t)p->page[i].n };
                record(k, &b, 1);
        }
}

static struct op_result commit_deep(struct kit *k, struct pages *p, const struct op *op, size_t n) {
        struct meta_batch b = { .subject = &k->ann, .ws = k->ws, .ops = op, .n_ops = n, .pages = p ? &p->get : NULL, .arena = k->a };
        assert_int_equal(meta_commit(k->m, &b), 0);
        return b.results[n - 1];
}

static int64_t now_us(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static int64_t refs_of(struct kit *k, unsigned block) {
        struct sql *db;
        struct sql_stmt *st;
        struct digest hash = block_hash(block);
        assert_int_equal(view_begin(k->m, &db), 0);
        assert_int_equal(sql_first(db, &st, "SELECT refs FROM block_ref WHERE workspace = ?1 AND hash = ?2", "id", (int64_t)k->ws, &hash), 1);
        int64_t refs = sql_int(db, st, 0);
        sql_reset(db, st);
        view_end(k->m, db);
        return refs;
}

static void deep_contents(void **state) {
        struct kit k;
        kit_open(&k);
        struct pages p = { .get = { give_page }, .sink = { keep_page }, .k = &k };
        struct content c = deep(&p, 0, 4096); /* four full pages and the page of pages */
        assert_int_equal(c.depth, 2);
        struct op f = op_file(&k, id_root, "f", c);
        /* nothing is there: only the root can be named; then its children; then the blocks */
        struct op_result r = commit_deep(&k, &p, &f, 1);
        assert_int_equal(r.code, RES_BLOCKS_MISSING);
        assert_int_equal(r.n_missing, 1);
        assert_memory_equal(&r.missing[0], &c.root, DIGEST_BYTES);
        assert_int_equal(p.asked, 0); /* a page that the subject may not name is not read */
        assert_int_equal(commit_deep(&k, NULL, &f, 1).code, RES_BLOCKS_MISSING);
        record_pages(&k, &p, p.n - 1);
        r = commit_deep(&k, &p, &f, 1);
        assert_int_equal(r.code, RES_BLOCKS_MISSING);
        assert_int_equal(r.n_missing, 4);
        record_pages(&k, &p, 0);
        r = commit_deep(&k, &p, &f, 1);
        assert_int_equal(r.code, RES_BLOCKS_MISSING);
        assert_int_equal(r.n_missing, 4096);
        record_range(&k, 0, 4096);
        int64_t t0 = now_us();
        r = commit_deep(&k, &p, &f, 1);
        int64_t t1 = now_us();
        assert_int_equal(r.code, RES_OK);
        print_message("commit of 4,096 new blocks: %.1f ms\n", (double)(t1 - t0) / 1000);
        uint64_t used = 4096 * 1000, page_bytes = 0;
        for (size_t i = 0; i < p.n; i++)
                page_bytes += p.page[i].n;
        assert_int_equal(space_now(&k, "w").used_bytes, used + page_bytes);
        assert_int_equal(space_now(&k, "w").reserved_bytes, 0);
        /* one block more: only that, its pages, and nothing else */
        size_t before = p.n;
        struct content c2 = deep(&p, 0, 4097);
        struct op v2 = op_content(&k, f.node, f.id, c2);
        for (size_t i = before; i < p.n; i++) {
                struct meta_block b = { .hash = p.page[i].hash, .raw_bytes = (uint32_t)p.page[i].n };
                record(&k, &b, 1);
        }
        r = commit_deep(&k, &p, &v2, 1);
        assert_int_equal(r.code, RES_BLOCKS_MISSING);
        assert_int_equal(r.n_missing, 1);
        record_range(&k, 4096, 1);
        t0 = now_us();
        r = commit_deep(&k, &p, &v2, 1);
        t1 = now_us();
        assert_int_equal(r.code, RES_OK);
        print_message("commit of one block more: %.1f ms\n", (double)(t1 - t0) / 1000);
        /* in one batch: the second names what the first makes, so its list is loaded again in between */
        before = p.n;
        struct content c3 = deep(&p, 10, 4000), c4 = deep(&p, 20, 3000);
        record_pages(&k, &p, before);
        struct op two[2] = { op_content(&k, f.node, v2.id, c3) };
        two[1] = op_content(&k, f.node, two[0].id, c4);
        r = commit_deep(&k, &p, two, 2);
        assert_int_equal(r.code, RES_OK);
        /* to one block and back, and a restored version */
        struct op small = op_content(&k, f.node, two[1].id, kit_block(&k, &k.ann, k.ws, "small"));
        assert_int_equal(commit_deep(&k, &p, &small, 1).code, RES_OK);
        struct meta_restore back = { .subject = &k.ann, .ws = k.ws, .op = kit_id(&k), .node = f.node, .version = f.id, .pages = &p.get };
        struct meta_put_result res;
        assert_int_equal(meta_version_restore(k.m, &back, k.a, &res), 0);
        assert_int_equal(res.code, RES_OK);
        assert_true(content_equal(&res.node.content, &c));
        assert_true(id_equal(&res.replaced_version, &small.id));
        assert_int_equal(refs_of(&k, 0), 2);    /* versions 1-2, 6 */
        assert_int_equal(refs_of(&k, 15), 2);   /* 1-3, 6 */
        assert_int_equal(refs_of(&k, 100), 2);  /* 1-4, 6 */
        assert_int_equal(refs_of(&k, 4096), 1); /* 2 */
        struct meta_version *versions;
        size_t n;
        assert_int_equal(meta_versions(k.m, k.ws, &f.node, 100, k.a, &versions, &n), 0);
        assert_int_equal(n, 6);
        pages_free(&p);
        kit_close(&k);
}

static void wrong_lists(void **state) {
        struct kit k;
        kit_open(&k);
        struct pages p = { .get = { give_page }, .sink = { keep_page }, .k = &k };
        struct content c = deep(&p, 0, 10);
        record_pages(&k, &p, 0);
        record_range(&k, 0, 10);
        struct op f = op_file(&k, id_root, "f", c);
        f.content.size++; /* the sum of the list is something else */
        assert_int_equal(commit_deep(&k, &p, &f, 1).code, RES_CORRUPT);
        f = op_file(&k, id_root, "f", c);
        f.content.depth = 2;
        assert_int_equal(commit_deep(&k, &p, &f, 1).code, RES_CORRUPT);
        f = op_file(&k, id_root, "f", c);
        f.content.param = 2;
        assert_int_equal(commit_deep(&k, &p, &f, 1).code, RES_UNSUPPORTED);
        /* a list that gives a block another length than it has */
        struct blocklist l = { .param = CHUNK_PARAM_1 };
        struct blockref refs[2] = { { block_hash(0), 1000 }, { block_hash(1), 999 } };
        assert_int_equal(blocklist_add(&l, &refs[0]), 0);
        assert_int_equal(blocklist_add(&l, &refs[1]), 0);
        size_t before = p.n;
        assert_int_equal(blocklist_content(&l, &p.sink, &c), 0);
        blocklist_free(&l);
        record_pages(&k, &p, before);
        f = op_file(&k, id_root, "f", c);
        assert_int_equal(commit_deep(&k, &p, &f, 1).code, RES_CORRUPT);
        /* a page that is not what its name says */
        c = deep(&p, 0, 9);
        record_pages(&k, &p, p.n - 1);
        ((uint8_t *)p.page[p.n - 1].p)[20] ^= 1;
        f = op_file(&k, id_root, "f", c);
        assert_int_equal(commit_deep(&k, &p, &f, 1).code, RES_CORRUPT);
        pages_free(&p);
        kit_close(&k);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(hashes_grant_nothing), cmocka_unit_test(claims_expire), cmocka_unit_test(claims_reserve_quota), cmocka_unit_test(deep_contents),
                cmocka_unit_test(wrong_lists),
        };
        return kit_main(tests, ARRAY_SIZE(tests));
}
