/* SPDX-License-Identifier: Apache-2.0 */
/* store_count.c: a layer that counts calls and bytes, for /v1/metrics and the budget tests. Relaxed atomics in a struct that the caller keeps; no lock.
 *
 * A call is counted when it ends; bytes only if it succeeded; -ENOENT and -EEXIST are answers, not errors. */
#include "store.h"

#define ADD(c, field, n) ((void)atomic_fetch_add_explicit(&(c)->field, (n), memory_order_relaxed))

struct store_count {
        struct store store;
        struct store *inner;
        struct store_counts *counts;
};

static int counted(struct store_count *c, int r) {
        if (r < 0 && r != -ENOENT && r != -EEXIST)
                ADD(c->counts, errors, 1);
        return r;
}

static int count_put(struct store *s, const char *object, const void *p, size_t n) {
        struct store_count *c = container_of(s, struct store_count, store);
        int r = c->inner->put(c->inner, object, p, n);

        ADD(c->counts, puts, 1);
        if (r >= 0)
                ADD(c->counts, put_bytes, n);
        return counted(c, r);
}

static int count_get(struct store *s, const char *object, uint64_t off, void *p, size_t n) {
        struct store_count *c = container_of(s, struct store_count, store);
        int r = c->inner->get(c->inner, object, off, p, n);

        ADD(c->counts, gets, 1);
        if (r >= 0)
                ADD(c->counts, get_bytes, n);
        return counted(c, r);
}

static int count_stat(struct store *s, const char *object, uint64_t *ret_bytes) {
        struct store_count *c = container_of(s, struct store_count, store);

        return counted(c, c->inner->stat(c->inner, object, ret_bytes));
}

static int count_remove(struct store *s, const char *object) {
        struct store_count *c = container_of(s, struct store_count, store);

        ADD(c->counts, removes, 1);
        return counted(c, c->inner->remove(c->inner, object));
}

static int count_list(struct store *s, const char *after, int (*each)(void *arg, const char *object, uint64_t bytes, int64_t put_ns), void *arg) {
        struct store_count *c = container_of(s, struct store_count, store);

        return c->inner->list(c->inner, after, each, arg);
}

static void count_close(struct store *s) {
        struct store_count *c = container_of(s, struct store_count, store);

        store_close(c->inner);
        free(c);
}

int store_count_new(struct store *inner, struct store_counts *counts, struct store **ret) {
        struct store_count *c = calloc(1, sizeof *c);

        if (!c) {
                store_close(inner);
                return -ENOMEM;
        }
        c->store = (struct store){count_put, count_get, count_stat, count_remove, count_list, count_close};
        c->inner = inner;
        c->counts = counts;
        *ret = &c->store;
        return 0;
}
