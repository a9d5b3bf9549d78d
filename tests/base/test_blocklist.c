/* SPDX-License-Identifier: Apache-2.0 */
/* Block lists: round trip at every edge of the tree of pages, and refusal of every page that we would not have made. */
#include "base_test.h"

#include "base/blocklist.h"
#include "base/digest.h"

static struct rng_seeded rng;

struct stored { struct digest hash; uint8_t *bytes; size_t n; uint8_t level; };
struct store {
        struct page_sink sink;
        struct page_get get;
        struct stored *pages;
        size_t n, room;
        uint8_t last_level;
};

static int store_page(struct page_sink *s, const struct digest *hash, const void *bytes, size_t n, uint8_t level) {
        struct store *st = container_of(s, struct store, sink);
        assert_true(level >= st->last_level); /* children before parents */
        assert_true(n <= LIST_PAGE_BYTES_MAX);
        st->last_level = level;
        if (st->n == st->room) {
                st->room = st->room ? st->room * 2 : 16;
                st->pages = realloc(st->pages, st->room * sizeof *st->pages);
        }
        uint8_t *copy = malloc(n);
        memcpy(copy, bytes, n);
        st->pages[st->n++] = (struct stored){ *hash, copy, n, level };
        return 0;
}

static int find_page(struct page_get *g, const struct digest *hash, const void **ret, size_t *ret_n) {
        struct store *st = container_of(g, struct store, get);
        for (size_t i = 0; i < st->n; i++)
                if (digest_equal(&st->pages[i].hash, hash)) {
                        *ret = st->pages[i].bytes;
                        *ret_n = st->pages[i].n;
                        return 0;
                }
        return -ENODATA;
}

static void store_init(struct store *s) {
        *s = (struct store){ .sink = { store_page }, .get = { find_page } };
}

static void store_free(struct store *s) {
        for (size_t i = 0; i < s->n; i++)
                free(s->pages[i].bytes);
        free(s->pages);
}

static void fill(struct blocklist *l, size_t n) {
        *l = (struct blocklist){ .param = 1 };
        for (size_t i = 0; i < n; i++) {
                struct blockref ref = { .bytes = (uint32_t)rng_below(&rng.rng, BLOCK_BYTES_MAX) + 1 };
                rng.rng.fill(&rng.rng, ref.hash.b, 8);
                memcpy(ref.hash.b + 8, &i, sizeof i);
                assert_int_equal(blocklist_add(l, &ref), 0);
        }
}

static void round_trip(size_t n, unsigned depth, size_t pages) {
        struct blocklist l, back = { 0 };
        struct store s;
        struct content c, again;
        fill(&l, n);
        store_init(&s);
        assert_int_equal(blocklist_content(&l, &s.sink, &c), 0);
        assert_int_equal(c.depth, depth);
        assert_int_equal(s.n, pages);
        assert_true(c.size == l.size);
        assert_int_equal(blocklist_content(&l, NULL, &again), 0);
        assert_true(content_equal(&c, &again));
        assert_int_equal(blocklist_load(&c, &s.get, n + 1, &back), 0);
        assert_int_equal(back.n, n);
        assert_true(back.size == l.size);
        for (size_t i = 0; i < n; i++) {
                assert_true(digest_equal(&back.refs[i].hash, &l.refs[i].hash));
                assert_int_equal(back.refs[i].bytes, l.refs[i].bytes);
        }
        if (n > 0) {
                struct blocklist small = { 0 };
                assert_int_equal(blocklist_load(&c, &s.get, n - 1, &small), -EFBIG);
                assert_int_equal(small.n, 0);
        }
        blocklist_free(&l);
        blocklist_free(&back);
        store_free(&s);
}

static void test_round_trips(void **state) {
        round_trip(0, 0, 0);
        round_trip(1, 0, 0);
        round_trip(2, 1, 1);
        round_trip(1023, 1, 1);
        round_trip(1024, 1, 1);
        round_trip(1025, 2, 3);
        round_trip(5000, 2, 6);
        round_trip((1u << 20), 2, 1025);
        round_trip((1u << 20) + 1, 3, 1025 + 3); /* 1024 + 1 of level 1, 2 of level 2, the root */
}

static void test_refuses_refs(void **state) {
        struct blocklist l = { .param = 1 };
        assert_int_equal(blocklist_add(&l, &(struct blockref){ .bytes = 0 }), -EINVAL);
        assert_int_equal(blocklist_add(&l, &(struct blockref){ .bytes = BLOCK_BYTES_MAX + 1 }), -EINVAL);
        blocklist_free(&l);
        blocklist_free(NULL);
}

static void test_find(void **state) {
        struct blocklist l;
        _cleanup_free_ uint64_t *starts = NULL;
        fill(&l, 777);
        assert_int_equal(blocklist_starts(&l, &starts), 0);
        assert_true(starts[777] == l.size);
        for (int i = 0; i < 2000; i++) {
                uint64_t off = rng_below(&rng.rng, l.size);
                size_t k = blocklist_find(starts, l.n, off);
                assert_true(starts[k] <= off && off < starts[k + 1]);
        }
        assert_int_equal(blocklist_find(starts, l.n, 0), 0);
        assert_int_equal(blocklist_find(starts, l.n, l.size - 1), 776);
        blocklist_free(&l);
}

/* Any changed bit of any page is noticed, also when the page's name is made to fit (then by the form, or by the parent's hash). */
static void test_corrupted_pages(void **state) {
        struct blocklist l, back;
        struct store s;
        struct content c;
        fill(&l, 2100);
        store_init(&s);
        assert_int_equal(blocklist_content(&l, &s.sink, &c), 0);
        for (int i = 0; i < 300; i++) {
                struct stored *p = &s.pages[rng_below(&rng.rng, s.n)];
                size_t at = rng_below(&rng.rng, p->n);
                uint8_t bit = (uint8_t)(1u << rng_below(&rng.rng, 8));
                p->bytes[at] ^= bit;
                assert_int_equal(blocklist_load(&c, &s.get, 1u << 20, &back), -EBADMSG);
                p->bytes[at] ^= bit;
        }
        struct stored *p = &s.pages[1];
        p->n -= 40;
        assert_int_equal(blocklist_load(&c, &s.get, 1u << 20, &back), -EBADMSG);
        p->n += 40;
        struct digest name = p->hash;
        p->hash.b[0] ^= 1;
        assert_int_equal(blocklist_load(&c, &s.get, 1u << 20, &back), -ENODATA);
        p->hash = name;
        for (int i = 0; i < 4; i++) { /* right pages, wrong claim */
                struct content wrong = c;
                if (i == 0)
                        wrong.size++;
                else if (i == 1)
                        wrong.depth--;
                else if (i == 2)
                        wrong.depth++;
                else
                        wrong.param = 2;
                assert_int_equal(blocklist_load(&wrong, &s.get, 1u << 20, &back), -EBADMSG);
        }
        struct content empty = content_empty;
        empty.root.b[3] = 1;
        assert_int_equal(blocklist_load(&empty, &s.get, 10, &back), -EBADMSG);
        empty = (struct content){ .param = 1, .size = BLOCK_BYTES_MAX + 1 };
        assert_int_equal(blocklist_load(&empty, &s.get, 10, &back), -EBADMSG);
        blocklist_free(&l);
        store_free(&s);
}

/* Pages whose names fit but whose form is not ours: a short page in the middle, a root of one reference, sizes that overflow. */
static void test_uncanonical(void **state) {
        struct store s;
        struct blocklist l, back;
        struct content c;
        uint8_t page[16 + 2 * 40];
        store_init(&s);
        fill(&l, 600);
        assert_int_equal(blocklist_content(&l, &s.sink, &c), 0);
        struct content below = c;
        memcpy(page, "tarnlst1\2\1\2\0\0\0\0\0", 16);
        for (int i = 0; i < 2; i++) {
                memcpy(page + 16 + i * 40, below.root.b, 32);
                for (int k = 0; k < 8; k++)
                        page[16 + i * 40 + 32 + k] = (uint8_t)(below.size >> 8 * k);
        }
        c = (struct content){ .size = below.size * 2, .depth = 2, .param = 1 };
        sha256(page, sizeof page, &c.root);
        assert_int_equal(store_page(&s.sink, &c.root, page, sizeof page, 2), 0);
        assert_int_equal(blocklist_load(&c, &s.get, 1u << 20, &back), -EBADMSG); /* first child is not full */
        page[10] = 1;
        c.size = below.size;
        sha256(page, sizeof page - 40, &c.root);
        assert_int_equal(store_page(&s.sink, &c.root, page, sizeof page - 40, 2), 0);
        assert_int_equal(blocklist_load(&c, &s.get, 1u << 20, &back), -EBADMSG); /* a root over one page */
        struct list_page *parsed = malloc(sizeof *parsed);
        assert_int_equal(list_page_parse(page, sizeof page - 40, parsed), 0);
        assert_int_equal(list_page_parse(page, 16, parsed), -EBADMSG);
        assert_int_equal(list_page_parse(page, sizeof page, parsed), -EBADMSG);
        memset(page + 16 + 32, 0xff, 8);
        assert_int_equal(list_page_parse(page, sizeof page - 40, parsed), -EBADMSG);
        memset(page + 16 + 32, 0, 8);
        assert_int_equal(list_page_parse(page, sizeof page - 40, parsed), -EBADMSG);
        free(parsed);
        blocklist_free(&l);
        store_free(&s);
}

static int failing_page(struct page_sink *s, const struct digest *hash, const void *bytes, size_t n, uint8_t level) {
        return -ENOSPC;
}

static void test_sink_error(void **state) {
        struct blocklist l;
        struct content c;
        struct page_sink sink = { failing_page };
        fill(&l, 2);
        assert_int_equal(blocklist_content(&l, &sink, &c), -ENOSPC);
        blocklist_free(&l);
}

int main(void) {
        test_seed(&rng);
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_round_trips),     cmocka_unit_test(test_refuses_refs), cmocka_unit_test(test_find),
                cmocka_unit_test(test_corrupted_pages), cmocka_unit_test(test_uncanonical),  cmocka_unit_test(test_sink_error),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
