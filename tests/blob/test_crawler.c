/* SPDX-License-Identifier: Apache-2.0 */
/* test_crawler.c: reads of crawlers: what is here, and a head; nothing beside it; what they fetch goes first; who reads beside them is served as ever. */
#include "world.h"

static ssize_t crawl_start(struct async *a, struct world *w, struct blob *blob, uint64_t off, size_t n, uint64_t head) {
        *a = (struct async){ .w = w, .buf = malloc(n) };
        a->read = (struct blob_read){ .blob = blob, .off = off, .buf = a->buf, .n = n, .deadline_ms = now_ms() + WAIT_MS, .done = async_done, .owner = a, .exact = true, .crawler = true, .head = head };
        ssize_t r = blob_read(&a->read);
        if (r != -EINPROGRESS)
                free(a->buf);
        return r;
}

/* To the end; what comes is compared. */
static ssize_t crawl(struct world *w, struct blob *blob, const struct known *k, uint64_t off, size_t n, uint64_t head) {
        struct async a = { .w = w, .buf = malloc(n) };
        a.read = (struct blob_read){ .blob = blob, .off = off, .buf = a.buf, .n = n, .deadline_ms = now_ms() + WAIT_MS, .done = async_done, .owner = &a, .exact = true, .crawler = true, .head = head };
        ssize_t r = blob_read(&a.read);
        if (r == -EINPROGRESS) {
                WAIT_FOR(w, a.done > 0);
                r = a.result;
        }
        if (r > 0)
                assert_memory_equal(a.buf, k->bytes + off, (size_t)r);
        assert_true(a.read.refused == (r == -EHOSTDOWN));
        free(a.buf);
        return r;
}

static void test_head(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *k = know_random(w, 5 * MIB, 256 * KIB), *small = know_random(w, 5000, 0);
        struct blob *blob = get_blob(w, k), *one = get_blob(w, small);
        /* the list is not known: nothing behind the head is worth a request */
        assert_int_equal(crawl(w, blob, k, MIB, 4096, 64 * KIB), -EHOSTDOWN);
        assert_int_equal(crawl(w, blob, k, 0, 4096, 0), -EHOSTDOWN);
        assert_int_equal(get_size(w, &w->fetches), 0);
        /* the head: its block (and the list), no MiB at the front */
        assert_int_equal(crawl(w, blob, k, 0, 4096, 64 * KIB), 4096);
        assert_int_equal(get_size(w, &w->fetches), 1);
        assert_int_equal(counter_get(&w->counters, blocks_fetched), 2);
        /* rounded up to the block, not a byte further; a read over the edge is refused as a whole */
        assert_int_equal(crawl(w, blob, k, 256 * KIB - 100, 100, 64 * KIB), 100);
        assert_int_equal(crawl(w, blob, k, 256 * KIB - 100, 101, 64 * KIB), -EHOSTDOWN);
        assert_int_equal(crawl(w, blob, k, 256 * KIB, 1, 64 * KIB), -EHOSTDOWN);
        assert_int_equal(crawl(w, blob, k, 0, k->n, 64 * KIB), -EHOSTDOWN);
        assert_int_equal(get_size(w, &w->fetches), 1);
        /* another rule */
        assert_int_equal(crawl(w, blob, k, 256 * KIB, 1, 256 * KIB + 1), 1);
        assert_int_equal(get_size(w, &w->fetches), 2);
        /* what is here is for everybody */
        assert_int_equal(read_compare(blob, k, 3 * MIB, MIB), MIB);
        size_t fetches = get_size(w, &w->fetches);
        assert_int_equal(crawl(w, blob, k, 3 * MIB, MIB, 0), MIB);
        assert_int_equal(crawl(w, one, small, 0, 9000, 1), 5000);
        assert_int_equal(get_size(w, &w->fetches), fetches + 1);
        /* offline, the error is the same and is not counted as refused */
        set_bool(w, &w->offline, true);
        struct known *other = know_random(w, MIB, 0);
        struct blob *gone = get_blob(w, other);
        struct async a;
        assert_int_equal(crawl_start(&a, w, gone, 0, 100, 64 * KIB), -EHOSTDOWN);
        assert_false(a.read.refused);
        blob_put(gone);
        blob_put(blob);
        blob_put(one);
        world_free(w);
}

/* The list comes while the read waits: what it shows to be behind the head is refused then. With the list in one page and in two levels. */
static void test_edge_shows_with_the_list(void **state) {
        for (int deep = 0; deep < 2; deep++) {
                struct world *w = world_new(256 * MIB);
                size_t block = deep ? 4096 : 100 * KIB;
                struct known *k = know_random(w, 6 * MIB, block);
                struct blob *blob = get_blob(w, k);
                assert_int_equal(crawl(w, blob, k, 0, 512 * KIB, 64 * KIB), -EHOSTDOWN);
                size_t fetches = get_size(w, &w->fetches);
                assert_int_equal(crawl(w, blob, k, 0, 64 * KIB, 64 * KIB), 64 * KIB);
                assert_int_equal(get_size(w, &w->fetches), fetches); /* the first one has brought the head */
                assert_true(get_size(w, &w->blocks) <= 64 * KIB / block + 2 + (deep ? 3 : 1) * 8);
                blob_put(blob);
                world_free(w);
        }
}

/* A reader and a crawler wait for the same bytes, in both orders; neither spoils the other. */
static void test_beside_a_reader(void **state) {
        for (int crawler_first = 0; crawler_first < 2; crawler_first++)
                for (int known = 0; known < 2; known++) {
                        struct world *w = world_new(256 * MIB);
                        struct known *k = know_random(w, 8 * MIB, 512 * KIB);
                        struct blob *blob = get_blob(w, k);
                        if (known)
                                assert_int_equal(read_compare(blob, k, 7 * MIB, 10), 10);
                        struct async reader, crawler;
                        set_bool(w, &w->hold, true);
                        if (!crawler_first)
                                assert_int_equal(async_start(&reader, w, blob, 0, 3 * MIB, now_ms() + WAIT_MS), -EINPROGRESS);
                        ssize_t r = crawl_start(&crawler, w, blob, 0, MIB, 64 * KIB);
                        assert_int_equal(r, known && crawler_first ? -EHOSTDOWN : -EINPROGRESS); /* what somebody fetches it may wait for */
                        if (crawler_first)
                                assert_int_equal(async_start(&reader, w, blob, 0, 3 * MIB, now_ms() + WAIT_MS), -EINPROGRESS);
                        set_bool(w, &w->hold, false);
                        WAIT_FOR(w, reader.done > 0);
                        assert_int_equal(reader.result, 3 * MIB);
                        assert_memory_equal(reader.buf, k->bytes, 3 * MIB);
                        free(reader.buf);
                        if (r == -EINPROGRESS) {
                                r = async_end(&crawler);
                                assert_true(r == MIB || (r == -EHOSTDOWN && crawler.read.refused)); /* by what had come when the list did */
                        }
                        assert_int_equal(crawl(w, blob, k, 0, MIB, 64 * KIB), MIB);
                        blob_put(blob);
                        world_free(w);
                }
}

/* A working set in a full cache, and a crawler that looks at a hundred other contents. */
static void test_what_it_fetches_goes_first(void **state) {
        struct world *w = world_new(16 * MIB);
        struct known *mine[7], *others[100];
        for (size_t i = 0; i < ARRAY_SIZE(mine); i++) {
                mine[i] = know_random(w, 1 * MIB, 256 * KIB);
                struct blob *blob = get_blob(w, mine[i]);
                assert_int_equal(read_compare(blob, mine[i], 0, MIB), MIB);
                blob_put(blob);
        }
        for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
                others[i] = know_random(w, 300 * KIB, 0);
                struct blob *blob = get_blob(w, others[i]);
                assert_int_equal(crawl(w, blob, others[i], 0, 100, 64 * KIB), 100);
                assert_int_equal(crawl(w, blob, others[i], 0, 100, 64 * KIB), 100); /* nor does looking twice warm it */
                blob_put(blob);
        }
        assert_true(counter_get(&w->counters, cache_evicted_blocks) > 50);
        uint64_t before = counter_get(&w->counters, blocks_fetched);
        for (size_t i = 0; i < ARRAY_SIZE(mine); i++) {
                struct blob *blob = get_blob(w, mine[i]);
                assert_int_equal(read_compare(blob, mine[i], 0, MIB), MIB);
                blob_put(blob);
        }
        assert_in_range(counter_get(&w->counters, blocks_fetched) - before, 0, 4); /* of 28: eviction goes in steps, which end in a block of ours now and then */
        world_free(w);
}

/* What a crawler fetched and somebody then uses stays like anything else. */
static void test_use_warms(void **state) {
        struct world *w = world_new(16 * MIB);
        struct known *seen = know_random(w, 100 * KIB, 0), *others[100];
        struct blob *blob = get_blob(w, seen);
        assert_int_equal(crawl(w, blob, seen, 0, 100, 64 * KIB), 100);
        assert_int_equal(read_compare(blob, seen, 0, 100 * KIB), 100 * KIB);
        for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
                others[i] = know_random(w, 300 * KIB, 0);
                struct blob *other = get_blob(w, others[i]);
                assert_int_equal(crawl(w, other, others[i], 0, 100, 64 * KIB), 100);
                blob_put(other);
        }
        uint64_t before = counter_get(&w->counters, blocks_fetched);
        assert_int_equal(read_compare(blob, seen, 0, 100 * KIB), 100 * KIB);
        assert_int_equal(counter_get(&w->counters, blocks_fetched), before);
        blob_put(blob);
        world_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_head), cmocka_unit_test(test_edge_shows_with_the_list), cmocka_unit_test(test_beside_a_reader), cmocka_unit_test(test_what_it_fetches_goes_first),
                cmocka_unit_test(test_use_warms),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
