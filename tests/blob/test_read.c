/* SPDX-License-Identifier: Apache-2.0 */
/* test_read.c: reads: hit, miss, waiters, unknown lists, readahead, cancel, deadline, wrong bytes, offline, reuse across versions, adoption. */
#include "world.h"

static const size_t sizes[] = { 1, 100, 4095, 4096, 4097, 100000, 128 * KIB, MIB - 1, MIB, 3 * MIB + 17, 9 * MIB };

static void test_hit_and_miss(void **state) {
        struct world *w = world_new(256 * MIB);
        for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
                struct known *k = know_random(w, sizes[s], 0);
                struct blob *blob = get_blob(w, k);
                assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
                size_t fetches = get_size(w, &w->fetches);
                assert_true(blob_complete(blob));
                assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
                for (int i = 0; i < 50; i++) {
                        uint64_t off = rng_below(&w->rng.rng, k->n + 10);
                        assert_true(read_compare(blob, k, off, rng_below(&w->rng.rng, 200000) + 1) >= 0);
                }
                assert_int_equal(get_size(w, &w->fetches), fetches);
                blob_put(blob);
        }
        struct known *empty = know(w, "", 0, 0);
        struct blob *blob = get_blob(w, empty);
        assert_int_equal(read_compare(blob, empty, 0, 10), 0);
        assert_true(blob_complete(blob));
        blob_put(blob);
        world_free(w);
}

/* The journey table: a cold range of a content whose list is unknown is one request. */
static void test_unknown_list_is_one_fetch(void **state) {
        for (int pages_last = 0; pages_last < 2; pages_last++) {
                struct world *w = world_new(256 * MIB);
                set_bool(w, &w->pages_last, pages_last);
                struct known *k = know_random(w, 20 * MIB, 0), *many = know_random(w, 6 * MIB, 4096); /* many: pages of two levels */
                assert_int_equal(many->content.depth, 2);
                struct blob *blob = get_blob(w, k), *small = get_blob(w, many);
                const struct blocklist *list;
                assert_int_equal(blob_list(blob, &list), -ENODATA);
                assert_int_equal(read_compare(blob, k, 11 * MIB, 128 * KIB), 128 * KIB);
                assert_int_equal(get_size(w, &w->fetches), 1);
                assert_int_equal(blob_list(blob, &list), 0);
                assert_int_equal(list->n, k->list.n);
                assert_int_equal(read_compare(small, many, 3 * MIB + 5, 128 * KIB), 128 * KIB);
                assert_int_equal(get_size(w, &w->fetches), 2);
                blob_put(blob);
                blob_put(small);
                world_free(w);
        }
}

static void test_waiters_share_one_fetch(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *k = know_random(w, 600 * KIB, 0), *big = know_random(w, 5 * MIB, 512 * KIB);
        struct blob *blob = get_blob(w, k), *large = get_blob(w, big);
        assert_int_equal(read_compare(large, big, 4 * MIB, 10), 10); /* its list is known now */
        size_t before = get_size(w, &w->fetches);
        struct async a[16];
        set_bool(w, &w->hold, true);
        for (size_t i = 0; i < 8; i++)
                assert_int_equal(async_start(&a[i], w, blob, i * 10, 4096, now_ms() + WAIT_MS), -EINPROGRESS);
        for (size_t i = 8; i < 16; i++) /* two different blocks */
                assert_int_equal(async_start(&a[i], w, large, 100 + i % 2 * 600 * KIB, 4096, now_ms() + WAIT_MS), -EINPROGRESS);
        set_bool(w, &w->hold, false);
        for (size_t i = 0; i < 16; i++)
                assert_int_equal(async_end(&a[i]), 4096);
        assert_in_range(get_size(w, &w->fetches) - before, 2, 3);
        blob_put(blob);
        blob_put(large);
        world_free(w);
}

struct reader { struct world *w; struct known *k; uint64_t seed; };
static void *reader_run(void *arg) {
        struct reader *r = arg;
        struct rng_seeded rng;
        rng_seed(&rng, r->seed);
        struct blob *blob = get_blob(r->w, r->k);
        for (int i = 0; i < 200; i++) {
                uint64_t off = rng_below(&rng.rng, r->k->n);
                assert_true(read_compare(blob, r->k, off, rng_below(&rng.rng, 300 * KIB) + 1) > 0);
                if (i % 20 == 0)
                        assert_true(blob_prefetch(blob, rng_below(&rng.rng, r->k->n), 1 * MIB) <= 0);
        }
        blob_put(blob);
        return NULL;
}

/* Pins against eviction: readers of few contents in a cache that holds a part of them. */
static void test_concurrent_readers_and_eviction(void **state) {
        struct world *w = world_new(24 * MIB);
        struct known *k[4] = { know_random(w, 10 * MIB, 0), know_random(w, 8 * MIB, 0), know_random(w, 700 * KIB, 0), know_random(w, 90 * KIB, 0) };
        pthread_t threads[8];
        struct reader readers[8];
        for (size_t i = 0; i < 8; i++) {
                readers[i] = (struct reader){ w, k[i % 4], i };
                assert_int_equal(thread_start(&threads[i], "reader", reader_run, &readers[i]), 0);
        }
        for (size_t i = 0; i < 8; i++)
                (void)pthread_join(threads[i], NULL);
        assert_int_equal(counter_get(&w->counters, corruptions_found), 0);
        assert_true(counter_get(&w->counters, cache_evicted_blocks) > 0);
        assert_true(du(w->dir) <= 24 * MIB);
        world_free(w);
}

static void test_first_blocks_come_before_the_fetch_ends(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *k = know_random(w, 7 * MIB, MIB);
        struct blob *blob = get_blob(w, k);
        /* Sequential reading asks ahead: far fewer requests than reads. */
        for (uint64_t off = 0; off < k->n; off += 128 * KIB)
                assert_int_equal(read_compare(blob, k, off, 128 * KIB), 128 * KIB);
        assert_in_range(get_size(w, &w->fetches), 2, 6);
        assert_int_equal(get_size(w, &w->blocks), 7 + 1);
        blob_put(blob);
        world_free(w);
}

static void test_cancel_and_deadline(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *k = know_random(w, 3 * MIB, 0), *late = know_random(w, 3 * MIB, 0);
        struct blob *blob = get_blob(w, k), *slow = get_blob(w, late);
        struct async a, b, c;
        set_bool(w, &w->hold, true);
        assert_int_equal(async_start(&a, w, blob, 0, 4096, now_ms() + WAIT_MS), -EINPROGRESS);
        assert_int_equal(async_start(&b, w, blob, MIB, 4096, now_ms() + WAIT_MS), -EINPROGRESS);
        assert_int_equal(async_start(&c, w, slow, 0, 4096, now_ms() + 50), -EINPROGRESS);
        blob_read_cancel(&a.read);
        blob_read_cancel(&a.read);
        assert_int_equal(async_end(&a), -EINTR);
        int64_t before = now_ms();
        assert_int_equal(async_end(&c), -ETIMEDOUT);
        assert_true(now_ms() - before < 2000);
        assert_int_equal(get_size(w, &w->cancels), 0); /* b still waits for blob's fetch; a deadline cancels nothing */
        blob_read_cancel(&b.read);
        assert_int_equal(async_end(&b), -EINTR);
        WAIT_FOR(w, w->cancels == 1);
        set_bool(w, &w->hold, false);
        assert_int_equal(read_compare(blob, k, 0, k->n), k->n); /* a new fetch */
        assert_int_equal(read_compare(slow, late, 0, late->n), late->n);
        blob_put(blob);
        blob_put(slow);
        world_free(w);
}

static void test_offline_and_errors(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *k = know_random(w, 300 * KIB, 0), *here = know_random(w, 5000, 0);
        struct blob *blob = get_blob(w, k), *cached = get_blob(w, here);
        assert_int_equal(read_compare(cached, here, 0, 5000), 5000);
        set_bool(w, &w->offline, true);
        int64_t before = now_ms();
        assert_int_equal(read_compare(blob, k, 0, 4096), -EHOSTDOWN);
        assert_true(now_ms() - before < 500); /* at once: the promise is 50 ms, the rest is for a busy machine */
        assert_int_equal(read_compare(cached, here, 10, 4000), 4000);
        set_bool(w, &w->offline, false);
        static const int errors[] = { -EHOSTDOWN, -ETIMEDOUT, -EKEYREJECTED };
        for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
                set_int(w, &w->fail, errors[i]);
                assert_int_equal(read_compare(blob, k, 0, 4096), errors[i]);
        }
        set_int(w, &w->fail, -ENOENT);
        assert_int_equal(read_compare(blob, k, 0, 4096), -EIO);
        set_int(w, &w->fail, 0);
        set_bool(w, &w->missing, true);
        assert_int_equal(read_compare(blob, k, 0, 4096), -EIO);
        set_bool(w, &w->missing, false);
        blobs_set_source(w->blobs, NULL);
        assert_int_equal(read_compare(blob, k, 0, 4096), -EHOSTDOWN);
        blobs_set_source(w->blobs, &w->source);
        assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
        blob_put(blob);
        blob_put(cached);
        world_free(w);
}

static void wrong_bytes(bool report) {
        struct world *w = world_new(256 * MIB);
        set_bool(w, &w->report_bad, report);
        struct known *k = know_random(w, 100 * KIB, 0), *large = know_random(w, 3 * MIB, 0);
        struct blob *blob = get_blob(w, k), *big = get_blob(w, large);
        set_int(w, &w->wrong, 1);
        assert_int_equal(read_compare(blob, k, 0, k->n), k->n); /* asked again once */
        assert_int_equal(get_size(w, &w->fetches), 2);
        assert_int_equal(counter_get(&w->counters, corruptions_found), 1);
        set_int(w, &w->wrong, 1); /* a page */
        assert_int_equal(read_compare(big, large, 0, large->n), large->n);
        blob_put(blob);
        struct known *bad = know_random(w, 50 * KIB, 0);
        blob = get_blob(w, bad);
        set_int(w, &w->wrong, 2);
        assert_int_equal(read_compare(blob, bad, 0, 4096), -EIO);
        set_int(w, &w->wrong, 0);
        assert_int_equal(read_compare(blob, bad, 0, 4096), 4096);
        blob_put(blob);
        blob_put(big);
        world_free(w);
}

static void test_wrong_bytes_are_refused(void **state) {
        wrong_bytes(false);
        wrong_bytes(true);
}

static void test_a_new_version_reuses_blocks(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *one = know_random(w, 12 * MIB, 0);
        struct blob *blob = get_blob(w, one);
        assert_int_equal(read_compare(blob, one, 0, one->n), one->n);
        uint8_t *bytes = malloc(one->n + 100);
        memcpy(bytes, one->bytes, 5 * MIB);
        memset(bytes + 5 * MIB, 7, 100);
        memcpy(bytes + 5 * MIB + 100, one->bytes + 5 * MIB, one->n - 5 * MIB);
        struct known *two = know(w, bytes, one->n + 100, 0);
        free(bytes);
        struct blob *next = get_blob(w, two);
        size_t before = get_size(w, &w->blocks);
        assert_int_equal(read_compare(next, two, 6 * MIB, 10), 10); /* the list, and the block at that offset: a range does not know better */
        assert_int_equal(read_compare(next, two, 0, two->n), two->n);
        size_t fetched = get_size(w, &w->blocks) - before;
        print_message("blocks of the new version: %zu, given by the source: %zu (a page, a range, what changed)\n", two->list.n, fetched);
        assert_true(fetched <= 6);
        assert_true(counter_get(&w->counters, blocks_deduplicated) + 8 >= two->list.n);
        uint8_t *buf = malloc(BLOCK_BYTES_MAX);
        set_bool(w, &w->offline, true);
        for (size_t i = 0; i < one->list.n; i++)
                assert_int_equal(blobs_find_block(w->blobs, &one->list.refs[i], buf), 0);
        struct blockref nowhere = { .bytes = 10 };
        assert_int_equal(blobs_find_block(w->blobs, &nowhere, buf), -ENODATA);
        free(buf);
        blob_put(blob);
        blob_put(next);
        world_free(w);
}

static void test_adopt(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *small = know_random(w, 300 * KIB, 0), *large = know_random(w, 6 * MIB, 0), *rotten = know_random(w, 4 * MIB, 0);
        set_bool(w, &w->offline, true);
        assert_int_equal(blobs_adopt_bytes(w->blobs, &small->content, &small->list, small->bytes), 0);
        struct blob *blob = get_blob(w, small);
        assert_true(blob_complete(blob));
        assert_int_equal(read_compare(blob, small, 0, small->n), small->n);
        blob_put(blob);
        for (int round = 0; round < 3; round++) { /* taken over; copied as a duplicate; small content from a file */
                struct known *k = round == 2 ? small : large;
                int fd;
                char path[PATH_MAX];
                assert_int_equal(blobs_file_take(w->blobs, &fd, path, sizeof path), 0);
                assert_int_equal(pwrite_full(fd, k->bytes, k->n, 0), 0);
                assert_int_equal(close(fd), 0);
                uint8_t present[1024];
                memset(present, 0xff, sizeof present);
                if (round == 0)
                        present[0] &= (uint8_t)~2; /* block 1 is not in the file */
                assert_int_equal(blobs_adopt_file(w->blobs, &k->content, &k->list, path, present, NULL), 0);
                assert_int_equal(access(path, F_OK), -1);
                blob = get_blob(w, k);
                assert_int_equal(blob_complete(blob), round > 0);
                if (round > 0)
                        assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
                else
                        assert_int_equal(read_compare(blob, k, 0, k->list.refs[0].bytes), k->list.refs[0].bytes);
                blob_put(blob);
        }
        /* What rotted between the cut and the adoption is found at the first use. */
        int fd;
        char path[PATH_MAX];
        uint8_t present[64];
        memset(present, 0xff, sizeof present);
        assert_int_equal(blobs_file_take(w->blobs, &fd, path, sizeof path), 0);
        assert_int_equal(pwrite_full(fd, rotten->bytes, rotten->n, 0), 0);
        assert_int_equal(pwrite_full(fd, "x", 1, rotten->bytes[12345] == 'x' ? 12346 : 12345), 0);
        assert_int_equal(close(fd), 0);
        assert_int_equal(blobs_adopt_file(w->blobs, &rotten->content, &rotten->list, path, present, NULL), 0);
        blob = get_blob(w, rotten);
        assert_int_equal(read_compare(blob, rotten, 0, 100), -EIO);
        set_bool(w, &w->offline, false);
        assert_int_equal(read_compare(blob, rotten, 0, rotten->n), rotten->n);
        assert_int_equal(counter_get(&w->counters, corruptions_healed), 1);
        blob_put(blob);
        /* A file that is returned is used again. */
        assert_int_equal(blobs_file_take(w->blobs, &fd, path, sizeof path), 0);
        assert_int_equal(pwrite_full(fd, "abc", 3, 0), 0);
        assert_int_equal(close(fd), 0);
        assert_int_equal(blobs_file_return(w->blobs, path), 0);
        char again[PATH_MAX];
        struct stat st;
        assert_int_equal(blobs_file_take(w->blobs, &fd, again, sizeof again), 0);
        assert_string_equal(path, again);
        assert_int_equal(fstat(fd, &st), 0);
        assert_int_equal(st.st_size, 0);
        assert_int_equal(close(fd), 0);
        world_free(w);
}

static void test_prefetch(void **state) {
        struct world *w = world_new(256 * MIB);
        struct known *k = know_random(w, 20 * MIB, 0);
        struct blob *blob = get_blob(w, k);
        assert_int_equal(blob_prefetch(blob, 0, 100), 0);
        assert_int_equal(read_compare(blob, k, 0, 100), 100);
        assert_int_equal(get_size(w, &w->fetches), 1);
        assert_int_equal(blob_prefetch(blob, 0, UINT64_MAX / 2), 0);
        WAIT_UNLOCKED(w, blob_complete(blob));
        assert_in_range(get_size(w, &w->fetches), 2, 6);
        set_bool(w, &w->offline, true);
        assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
        blob_put(blob);
        world_free(w);
}

/* Charges of stages push clean blocks out; without room the caller is told, and told again when there is some. */
static void room_came(void *arg) {
        struct world *w = arg;
        LOCK_SCOPE(&w->lock);
        w->cancels++;
        cond_broadcast(&w->more);
}
static void test_charge(void **state) {
        struct world *w = world_new(64 * MIB);
        struct known *k = know_random(w, 40 * MIB, 0);
        struct blob *blob = get_blob(w, k);
        blobs_on_room(w->blobs, room_came, w);
        assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
        assert_int_equal(blobs_charge(w->blobs, 40 * MIB), 0);
        struct blobs_totals t;
        blobs_totals(w->blobs, &t);
        assert_int_equal(t.dirty_bytes, 40 * MIB);
        assert_true(t.bytes <= 64 * MIB);
        assert_true(counter_get(&w->counters, cache_evicted_blocks) > 0);
        assert_int_equal(blobs_charge(w->blobs, 40 * MIB), -ENOSPC);
        /* Nothing is left for clean blocks: reads are served all the same. */
        assert_int_equal(blobs_charge(w->blobs, 16 * MIB - 64 * KIB), 0);
        assert_int_equal(read_compare(blob, k, 7 * MIB, 200 * KIB), 200 * KIB);
        size_t before = get_size(w, &w->cancels);
        blobs_discharge(w->blobs, 56 * MIB - 64 * KIB);
        assert_true(get_size(w, &w->cancels) > before);
        assert_int_equal(read_compare(blob, k, 0, k->n), k->n);
        assert_int_equal(blobs_set_limit(w->blobs, 32 * MIB), 0);
        assert_true(du(w->dir) <= 32 * MIB);
        assert_int_equal(blobs_evict_all(w->blobs), 0);
        blobs_totals(w->blobs, &t);
        assert_int_equal(t.blocks, 0);
        assert_int_equal(t.blobs, 0);
        assert_true(du(w->dir) < 2 * MIB);
        blob_put(blob);
        world_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_hit_and_miss),
                cmocka_unit_test(test_unknown_list_is_one_fetch),
                cmocka_unit_test(test_waiters_share_one_fetch),
                cmocka_unit_test(test_concurrent_readers_and_eviction),
                cmocka_unit_test(test_first_blocks_come_before_the_fetch_ends),
                cmocka_unit_test(test_cancel_and_deadline),
                cmocka_unit_test(test_offline_and_errors),
                cmocka_unit_test(test_wrong_bytes_are_refused),
                cmocka_unit_test(test_a_new_version_reuses_blocks),
                cmocka_unit_test(test_adopt),
                cmocka_unit_test(test_prefetch),
                cmocka_unit_test(test_charge),
        };
        return cmocka_run_group_tests_name("blob read", tests, NULL, NULL);
}
