/* SPDX-License-Identifier: Apache-2.0 */
/* test_store.c: the object store's six functions on both homes, and the layers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/thread.h"
#include "store.h"
#include "../tmpdir.h"

struct home { char dir[64]; struct store *store; };

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) {
        (void)st;
        (void)flag;
        (void)ftw;
        return remove(path);
}

static int home_close(void **state) {
        struct home *h = *state;

        store_close(h->store);
        if (h->dir[0])
                assert_int_equal(nftw(h->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
        free(h);
        return 0;
}

static int home_dir(void **state) {
        struct home *h = calloc(1, sizeof *h);

        assert_non_null(h);
        (void)snprintf(h->dir, sizeof h->dir, "/tmp/tarn-store-XXXXXX");
        assert_non_null(tmpdir_new(h->dir));
        assert_int_equal(store_dir_open(h->dir, &h->store), 0);
        *state = h;
        return 0;
}

static int home_mem(void **state) {
        struct home *h = calloc(1, sizeof *h);

        assert_non_null(h);
        assert_int_equal(store_mem_open(1 << 20, &h->store), 0);
        *state = h;
        return 0;
}

struct seen { char last[STORE_NAME_BYTES + 1]; size_t n; uint64_t bytes; size_t stop_at; };

static int see(void *arg, const char *object, uint64_t bytes, int64_t put_ns) {
        struct seen *s = arg;

        assert_true(strcmp(s->last, object) < 0); /* rising, each once */
        memcpy(s->last, object, sizeof s->last);
        s->bytes += bytes;
        return ++s->n == s->stop_at ? 7 : 0;
}

static void test_six_functions(void **state) {
        struct store *s = ((struct home *)*state)->store;
        char name[STORE_NAME_BYTES + 1], middle[STORE_NAME_BYTES + 1] = "", back[16];
        struct seen all = {0}, rest = {0}, first = {.stop_at = 1};
        uint64_t bytes, put = 0;

        for (int i = 1; i <= 200; i++) {
                char data[256];

                memset(data, i, sizeof data);
                store_name_new(rng_system(), name);
                assert_int_equal(store_name_check(name), 0);
                assert_int_equal(s->put(s, name, data, (size_t)i), 0);
                put += (uint64_t)i;
                assert_int_equal(s->stat(s, name, &bytes), 0);
                assert_int_equal(bytes, i);
                if (i >= 10) {
                        assert_int_equal(s->get(s, name, (uint64_t)i - 10, back, 10), 0);
                        assert_memory_equal(back, data, 10);
                }
                assert_int_equal(s->get(s, name, (uint64_t)i, back, 1), -EIO); /* beyond the end: never short, never padded */
                assert_int_equal(s->get(s, name, 0, data, sizeof data), -EIO);
        }
        assert_int_equal(s->put(s, name, "other", 5), -EEXIST); /* a name is never given anew */
        assert_int_equal(s->stat(s, name, &bytes), 0);
        assert_int_equal(bytes, 200);
        assert_int_equal(s->list(s, NULL, see, &all), 0);
        assert_int_equal(all.n, 200);
        assert_int_equal(all.bytes, put);
        assert_int_equal(s->list(s, NULL, see, &first), 7); /* the callback's answer ends it and is passed on */
        memcpy(middle, first.last, sizeof middle);
        memcpy(rest.last, middle, sizeof middle);
        assert_int_equal(s->list(s, middle, see, &rest), 0);
        assert_int_equal(rest.n, 199);
        assert_int_equal(s->remove(s, name), 0);
        assert_int_equal(s->remove(s, name), -ENOENT);
        assert_int_equal(s->stat(s, name, &bytes), -ENOENT);
        assert_int_equal(s->get(s, name, 0, back, 1), -ENOENT);
}

static void test_bad_names_and_sizes(void **state) {
        struct store *s = ((struct home *)*state)->store;
        static const char *const bad[] = {"", "abc", "../../../../../../../../etc/passwd", "ABCDEF0123456789ABCDEF0123456789", "abcdef0123456789abcdef012345678/",
                                          "abcdef0123456789abcdef01234567890"};
        uint64_t bytes;
        char ch;

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                assert_int_equal(s->put(s, bad[i], "x", 1), -EINVAL);
                assert_int_equal(s->get(s, bad[i], 0, &ch, 1), -EINVAL);
                assert_int_equal(s->stat(s, bad[i], &bytes), -EINVAL);
                assert_int_equal(s->remove(s, bad[i]), -EINVAL);
        }
        assert_int_equal(s->put(s, "abcdef0123456789abcdef0123456789", "", 0), -EINVAL);
}

static void test_mem_is_bounded(void **state) {
        struct store *s = ((struct home *)*state)->store;
        char name[STORE_NAME_BYTES + 1];
        _cleanup_free_ void *p = calloc(1, (1 << 20) + 1);

        store_name_new(rng_system(), name);
        assert_int_equal(s->put(s, name, p, (1 << 20) + 1), -ENOSPC);
        assert_int_equal(s->put(s, name, p, 1 << 20), 0);
        assert_int_equal(s->remove(s, name), 0);
        assert_int_equal(s->put(s, name, p, 1 << 20), 0);
}

static void test_dir_survives_and_cleans(void **state) {
        struct home *h = *state;
        char name[STORE_NAME_BYTES + 1], left[128];
        uint64_t bytes;
        FILE *f;

        store_name_new(rng_system(), name);
        assert_int_equal(h->store->put(h->store, name, "kept", 4), 0);
        store_close(h->store);
        h->store = NULL;
        (void)snprintf(left, sizeof left, "%s/tmp/%s", h->dir, "00112233445566778899aabbccddeeff"); /* what a kill in the middle of a put leaves */
        f = fopen(left, "we");
        assert_non_null(f);
        assert_int_equal(fclose(f), 0);
        assert_int_equal(store_dir_open(h->dir, &h->store), 0);
        assert_int_equal(access(left, F_OK), -1);
        assert_int_equal(h->store->stat(h->store, name, &bytes), 0);
        assert_int_equal(bytes, 4);
}

/* A store that does not keep what it was given. */
struct liar { struct store store; struct store *inner; enum { CUT, FLIP, DROP } how; };
static int liar_put(struct store *s, const char *object, const void *p, size_t n) {
        struct liar *l = container_of(s, struct liar, store);
        _cleanup_free_ uint8_t *copy = malloc(n);

        assert_non_null(copy);
        memcpy(copy, p, n);
        copy[n / 2] ^= l->how == FLIP ? 1 : 0;
        return l->how == DROP ? 0 : l->inner->put(l->inner, object, copy, l->how == CUT ? n - 1 : n);
}
static int liar_get(struct store *s, const char *object, uint64_t off, void *p, size_t n) {
        struct liar *l = container_of(s, struct liar, store);

        return l->inner->get(l->inner, object, off, p, n);
}
static int liar_stat(struct store *s, const char *object, uint64_t *ret) {
        struct liar *l = container_of(s, struct liar, store);

        return l->inner->stat(l->inner, object, ret);
}
static int liar_remove(struct store *s, const char *object) {
        struct liar *l = container_of(s, struct liar, store);

        return l->inner->remove(l->inner, object);
}
static int liar_list(struct store *s, const char *after, int (*each)(void *, const char *, uint64_t, int64_t), void *arg) {
        struct liar *l = container_of(s, struct liar, store);

        return l->inner->list(l->inner, after, each, arg);
}
static void liar_close(struct store *s) {
        struct liar *l = container_of(s, struct liar, store);

        store_close(l->inner);
        free(l);
}

static void test_verify_finds_a_liar(void **state) {
        static const int expected[] = {[CUT] = -EBADMSG, [FLIP] = -EBADMSG, [DROP] = -ENOENT};
        struct store_counts counts = {0};
        struct liar *l = calloc(1, sizeof *l);
        struct store *s;
        char name[STORE_NAME_BYTES + 1];
        _cleanup_free_ char *data = calloc(1, 700000);
        uint64_t bytes;

        (void)state;
        assert_non_null(l);
        l->store = (struct store){liar_put, liar_get, liar_stat, liar_remove, liar_list, liar_close};
        assert_int_equal(store_mem_open(16 << 20, &l->inner), 0);
        assert_int_equal(store_verify_new(&l->store, &s), 0);
        assert_int_equal(store_count_new(s, &counts, &s), 0);
        for (int how = CUT; how <= DROP; how++) {
                l->how = how;
                store_name_new(rng_system(), name);
                assert_int_equal(s->put(s, name, data, 700000), expected[how]);
                assert_int_equal(s->stat(s, name, &bytes), -ENOENT); /* gone again */
        }
        assert_int_equal(counts.puts, 3);
        assert_int_equal(counts.put_bytes, 0);
        assert_int_equal(counts.errors, 2); /* -ENOENT is an answer */
        store_close(s);
}

static void test_count(void **state) {
        struct store_counts counts = {0};
        struct store *s;
        char name[STORE_NAME_BYTES + 1], back[3];

        (void)state;
        assert_int_equal(store_mem_open(1 << 20, &s), 0);
        assert_int_equal(store_verify_new(s, &s), 0);
        assert_int_equal(store_count_new(s, &counts, &s), 0);
        store_name_new(rng_system(), name);
        assert_int_equal(s->put(s, name, "abc", 3), 0);
        assert_int_equal(s->get(s, name, 0, back, 3), 0);
        assert_int_equal(s->get(s, name, 3, back, 1), -EIO);
        assert_int_equal(s->remove(s, name), 0);
        assert_int_equal(counts.puts, 1);
        assert_int_equal(counts.put_bytes, 3);
        assert_int_equal(counts.gets, 2);
        assert_int_equal(counts.get_bytes, 3);
        assert_int_equal(counts.removes, 1);
        assert_int_equal(counts.errors, 1);
        store_close(s);
}

struct racer { struct store *store; const char *name; int r; };
static void *race(void *arg) {
        struct racer *a = arg;

        a->r = a->store->put(a->store, a->name, a, sizeof a->r);
        return NULL;
}

static void test_dir_one_writer_wins(void **state) {
        struct store *s = ((struct home *)*state)->store;

        for (int round = 0; round < 20; round++) {
                struct racer racers[2];
                pthread_t t[2];
                char name[STORE_NAME_BYTES + 1];
                uint64_t bytes;
                int won = 0;

                store_name_new(rng_system(), name);
                for (int i = 0; i < 2; i++) {
                        racers[i] = (struct racer){s, name, 1};
                        assert_int_equal(thread_start(&t[i], "racer", race, &racers[i]), 0);
                }
                for (int i = 0; i < 2; i++) {
                        assert_int_equal(pthread_join(t[i], NULL), 0);
                        assert_true(racers[i].r == 0 || racers[i].r == -EEXIST);
                        won += racers[i].r == 0;
                }
                assert_int_equal(won, 1);
                assert_int_equal(s->stat(s, name, &bytes), 0);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_six_functions, home_dir, home_close),
                cmocka_unit_test_setup_teardown(test_six_functions, home_mem, home_close),
                cmocka_unit_test_setup_teardown(test_bad_names_and_sizes, home_dir, home_close),
                cmocka_unit_test_setup_teardown(test_bad_names_and_sizes, home_mem, home_close),
                cmocka_unit_test_setup_teardown(test_mem_is_bounded, home_mem, home_close),
                cmocka_unit_test_setup_teardown(test_dir_survives_and_cleans, home_dir, home_close),
                cmocka_unit_test_setup_teardown(test_dir_one_writer_wins, home_dir, home_close),
                cmocka_unit_test(test_verify_finds_a_liar),
                cmocka_unit_test(test_count),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
