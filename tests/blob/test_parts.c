/* SPDX-License-Identifier: Apache-2.0 */
/* test_parts.c: the parts below blobs by themselves: LRU against a model, extents of the pack, the account. */
#include "world.h"

#include "lru.h"
#include "pack.h"
#include "room.h"
#include "../tmpdir.h"

static void test_lru_order(void **state) {
        struct lru *l;
        struct lru_block b;
        assert_int_equal(lru_new(&l), 0);
        for (uint32_t i = 0; i < 10; i++) {
                assert_int_equal(lru_reserve(l), 0);
                lru_add(l, (struct lru_block){ 1, i }, i % 3, 4096);
        }
        /* Block 0 is used twice: protected. A scan touches the others once: they stay in order and go first. */
        lru_touch(l, (struct lru_block){ 1, 0 });
        lru_touch(l, (struct lru_block){ 1, 0 });
        for (uint32_t i = 1; i < 10; i++)
                lru_touch(l, (struct lru_block){ 1, i });
        lru_demote(l, (struct lru_block){ 1, 7 });
        lru_check(l);
        static const uint32_t expected[] = { 7, 1, 2, 3, 4, 5, 6, 8, 9, 0 };
        struct lru_block order[16];
        bool part[16];
        assert_int_equal(lru_order(l, order, part, 16), 10);
        for (size_t i = 0; i < 10; i++) {
                assert_int_equal(order[i].index, expected[i]);
                assert_int_equal(part[i], expected[i] == 0);
        }
        struct lru_block found[10];
        assert_int_equal(lru_find(l, 1, found, 10), 3);
        for (size_t i = 0; i < 10; i++) {
                assert_true(lru_take(l, &b));
                assert_int_equal(b.index, expected[i]);
        }
        assert_false(lru_take(l, &b));
        assert_int_equal(lru_find(l, 1, found, 10), 0);
        /* A saved order comes back. */
        for (uint32_t i = 0; i < 10; i++) {
                assert_int_equal(lru_reserve(l), 0);
                lru_add(l, (struct lru_block){ 1, i }, 0, 4096);
        }
        for (size_t i = 10; i-- > 0;)
                lru_restore(l, order[i], part[i]);
        for (size_t i = 0; i < 10; i++) {
                assert_true(lru_take(l, &b));
                assert_int_equal(b.index, expected[i]);
        }
        lru_free(l);
}

/* A working set that is read again and again survives a scan of ten times its size. */
static void test_lru_resists_a_scan(void **state) {
        struct lru *l;
        struct lru_block b;
        assert_int_equal(lru_new(&l), 0);
        size_t lost = 0;
        for (uint32_t i = 0; i < 1000; i++) {
                assert_int_equal(lru_reserve(l), 0);
                lru_add(l, (struct lru_block){ 1, i }, i, 4096);
        }
        for (int round = 0; round < 2; round++)
                for (uint32_t i = 0; i < 500; i++)
                        lru_touch(l, (struct lru_block){ 1, i });
        for (uint32_t i = 0; i < 10000; i++) {
                assert_true(lru_take(l, &b));
                lost += b.blob == 1 && b.index < 500;
                assert_int_equal(lru_reserve(l), 0);
                lru_add(l, (struct lru_block){ 2, i }, i, 4096);
                lru_touch(l, (struct lru_block){ 2, i });
        }
        assert_int_equal(lost, 0);
        lru_check(l);
        lru_free(l);
}

static void test_lru_random(void **state) {
        struct rng_seeded rng;
        rng_seed(&rng, test_seed());
        struct lru *l;
        static bool in[5000];
        memset(in, 0, sizeof in);
        size_t n = 0;
        assert_int_equal(lru_new(&l), 0);
        for (int step = 0; step < 200000; step++) {
                uint32_t i = (uint32_t)rng_below(&rng.rng, ARRAY_SIZE(in));
                struct lru_block b = { i % 70, i };
                switch (rng_below(&rng.rng, 5)) {
                case 0:
                case 1:
                        if (!in[i]) {
                                assert_int_equal(lru_reserve(l), 0);
                                lru_add(l, b, i, (uint32_t)rng_below(&rng.rng, 1000000));
                                n++;
                        }
                        in[i] = true;
                        break;
                case 2:
                        lru_remove(l, b);
                        n -= in[i];
                        in[i] = false;
                        break;
                case 3:
                        lru_touch(l, b);
                        break;
                case 4:
                        if (step % 3 == 0 && lru_take(l, &b)) {
                                assert_true(in[b.index]);
                                in[b.index] = false;
                                n--;
                        }
                        break;
                }
                assert_int_equal(lru_count(l), n);
                if (step % 10000 == 0)
                        lru_check(l);
        }
        lru_free(l);
}

/* Extents never overlap, freed pages are reused in place, what is charged is what is on disk. */
static void test_pack_random(void **state) {
        struct rng_seeded rng;
        rng_seed(&rng, test_seed());
        char dir[] = "/tmp/tarn-pack-XXXXXX";
        assert_non_null(tmpdir_new(dir));
        struct room room;
        struct pack *p;
        room_init(&room, 1024ull * MIB, 0);
        assert_int_equal(pack_open(dir, &room, &p), 0);
        assert_int_equal(pack_settle(p), 0);
        static struct { uint32_t place; unsigned pages; uint8_t mark; } e[400];
        memset(e, 0, sizeof e);
        uint64_t pages_used = 0;
        for (int step = 0; step < 6000; step++) {
                size_t i = rng_below(&rng.rng, ARRAY_SIZE(e));
                uint8_t page[PACK_PAGE];
                if (e[i].pages == 0) {
                        e[i].pages = 1 + (unsigned)rng_below(&rng.rng, rng_below(&rng.rng, 4) == 0 ? 257 : 8);
                        e[i].mark = (uint8_t)rng_below(&rng.rng, 256);
                        if (pack_reuse(p, e[i].pages, &e[i].place) < 0) {
                                assert_int_equal(room_take(&room, (uint64_t)e[i].pages * PACK_PAGE, false), 0);
                                assert_int_equal(pack_alloc(p, e[i].pages, &e[i].place), 0);
                        }
                        memset(page, e[i].mark, sizeof page);
                        for (unsigned k = 0; k < e[i].pages; k++) {
                                struct iovec iov = { page, sizeof page };
                                assert_int_equal(pack_write(p, e[i].place, k * PACK_PAGE, &iov, 1), 0);
                        }
                        pages_used += e[i].pages;
                } else {
                        for (unsigned k = 0; k < e[i].pages; k++) {
                                struct iovec iov = { page, sizeof page };
                                assert_int_equal(pack_read(p, e[i].place, k * PACK_PAGE, &iov, 1), 0);
                                for (size_t at = 0; at < sizeof page; at += 511)
                                        assert_int_equal(page[at], e[i].mark);
                        }
                        pack_free(p, e[i].place, e[i].pages);
                        pages_used -= e[i].pages;
                        e[i].pages = 0;
                }
                if (step % 500 == 0)
                        (void)pack_trim(p, rng_below(&rng.rng, 4 * MIB));
                if (step % 1000 == 0) {
                        struct room_totals t;
                        room_totals(&room, &t);
                        assert_int_equal(t.used, pages_used * PACK_PAGE + pack_free_bytes(p));
                        assert_true(du(dir) <= t.used + 256 * KIB);
                }
        }
        pack_close(p);
        room_destroy(&room);
        /* Opened again, with what is used claimed: the same charge, and no claim twice. */
        room_init(&room, 1024ull * MIB, 0);
        assert_int_equal(pack_open(dir, &room, &p), 0);
        for (size_t i = 0; i < ARRAY_SIZE(e); i++)
                if (e[i].pages > 0) {
                        assert_true(pack_claim(p, e[i].place, e[i].pages));
                        assert_false(pack_claim(p, e[i].place, e[i].pages));
                }
        assert_false(pack_claim(p, UINT32_MAX - 5, 1));
        assert_int_equal(pack_settle(p), 0);
        struct room_totals t;
        room_totals(&room, &t);
        assert_int_equal(t.used, pages_used * PACK_PAGE + pack_free_bytes(p));
        assert_true(pack_trim(p, UINT64_MAX) > 0);
        room_totals(&room, &t);
        assert_int_equal(t.used, pages_used * PACK_PAGE);
        assert_true(du(dir) <= t.used + 256 * KIB);
        pack_close(p);
        room_destroy(&room);
        remove_tree(dir);
}

static void test_room(void **state) {
        struct room r;
        room_init(&r, 100 * MIB, 10 * MIB);
        room_measured(&r, 0, 1000ull * MIB);
        assert_int_equal(room_take(&r, 92 * MIB, false), 0); /* 8 MiB are the reserve */
        assert_int_equal(room_take(&r, 1, true), -ENOSPC);
        room_give(&r, 10 * MIB, false);
        assert_int_equal(room_take(&r, 10 * MIB, true), 0);
        room_measured(&r, 6 * MIB, 1000ull * MIB); /* books grow beyond half the reserve */
        assert_int_equal(room_short(&r, 0), 2 * MIB);
        room_give(&r, 10 * MIB, true);
        assert_int_equal(room_take(&r, 8 * MIB, true), 0);
        room_give(&r, 60 * MIB, false);
        room_measured(&r, 0, 15ull * MIB); /* 5 MiB above the floor */
        assert_int_equal(room_take(&r, 5 * MIB, false), 0);
        assert_int_equal(room_take(&r, 1, false), -ENOSPC);
        room_measured(&r, 0, 4ull * MIB); /* 6 MiB below it */
        assert_int_equal(room_short(&r, 0), 6 * MIB);
        room_destroy(&r);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_lru_order),
                cmocka_unit_test(test_lru_resists_a_scan),
                cmocka_unit_test(test_lru_random),
                cmocka_unit_test(test_pack_random),
                cmocka_unit_test(test_room),
        };
        return cmocka_run_group_tests_name("blob parts", tests, NULL, NULL);
}
