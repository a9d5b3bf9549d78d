/* SPDX-License-Identifier: Apache-2.0 */
/* store_mem.c: objects in memory: for a server without a data directory (the simulation, unit tests).
 *
 * A sorted array of pointers to objects under one lock; names are looked up by bisection. Insertion moves pointers, which is cheap for
 * the some ten thousand objects that a test makes. Bytes are copied in and out under the lock: objects can be removed by another thread.
 *
 * The lock's rank lies above the queues: nothing is called with it held but memcpy, malloc, and the list callback, which must not call
 * back into the store. */
#include "store.h"

#include <assert.h>
#include <string.h>

#include "base/lock.h"

struct object {
        char name[STORE_NAME_BYTES + 1];
        size_t bytes;
        uint8_t data[];
};
struct store_mem {
        struct store store;
        struct lock lock;
        struct object **objects; /* lock; sorted by name */
        size_t n, room;          /* lock */
        size_t bytes, max_bytes; /* lock; constant */
};

/* Index of the first object whose name is not below `name`. */
static size_t mem_find_locked(struct store_mem *m, const char *name, bool *ret_equal) {
        size_t lo = 0, hi = m->n;

        while (lo < hi) {
                size_t mid = lo + (hi - lo) / 2;

                if (strcmp(m->objects[mid]->name, name) < 0)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        *ret_equal = lo < m->n && strcmp(m->objects[lo]->name, name) == 0;
        return lo;
}

static int mem_put(struct store *s, const char *object, const void *p, size_t n) {
        struct store_mem *m = container_of(s, struct store_mem, store);
        struct object *o;
        bool equal;
        size_t at;

        if (store_name_check(object) < 0 || n == 0 || n > STORE_OBJECT_BYTES_MAX)
                return -EINVAL;
        LOCK_SCOPE(&m->lock);
        at = mem_find_locked(m, object, &equal);
        if (equal)
                return -EEXIST;
        if (n > m->max_bytes - m->bytes)
                return -ENOSPC;
        if (m->n == m->room) {
                size_t room = m->room ? m->room * 2 : 64;
                void *q = reallocarray(m->objects, room, sizeof *m->objects);

                if (!q)
                        return -ENOMEM;
                m->objects = q;
                m->room = room;
        }
        o = malloc(sizeof *o + n);
        if (!o)
                return -ENOMEM;
        memcpy(o->name, object, sizeof o->name);
        o->bytes = n;
        memcpy(o->data, p, n);
        memmove(m->objects + at + 1, m->objects + at, (m->n - at) * sizeof *m->objects);
        m->objects[at] = o;
        m->n++;
        m->bytes += n;
        return 0;
}

static int mem_get(struct store *s, const char *object, uint64_t off, void *p, size_t n) {
        struct store_mem *m = container_of(s, struct store_mem, store);
        bool equal;
        size_t at;

        if (store_name_check(object) < 0)
                return -EINVAL;
        LOCK_SCOPE(&m->lock);
        at = mem_find_locked(m, object, &equal);
        if (!equal)
                return -ENOENT;
        if (off > m->objects[at]->bytes || n > m->objects[at]->bytes - off)
                return -EIO;
        memcpy(p, m->objects[at]->data + off, n);
        return 0;
}

static int mem_stat(struct store *s, const char *object, uint64_t *ret_bytes) {
        struct store_mem *m = container_of(s, struct store_mem, store);
        bool equal;
        size_t at;

        if (store_name_check(object) < 0)
                return -EINVAL;
        LOCK_SCOPE(&m->lock);
        at = mem_find_locked(m, object, &equal);
        if (!equal)
                return -ENOENT;
        *ret_bytes = m->objects[at]->bytes;
        return 0;
}

static int mem_remove(struct store *s, const char *object) {
        struct store_mem *m = container_of(s, struct store_mem, store);
        bool equal;
        size_t at;

        if (store_name_check(object) < 0)
                return -EINVAL;
        LOCK_SCOPE(&m->lock);
        at = mem_find_locked(m, object, &equal);
        if (!equal)
                return -ENOENT;
        m->bytes -= m->objects[at]->bytes;
        free(m->objects[at]);
        m->n--;
        memmove(m->objects + at, m->objects + at + 1, (m->n - at) * sizeof *m->objects);
        return 0;
}

static int mem_list(struct store *s, const char *after, int (*each)(void *arg, const char *object, uint64_t bytes, int64_t put_ns), void *arg) {
        struct store_mem *m = container_of(s, struct store_mem, store);
        bool equal = false;
        size_t at;
        int r = 0;

        LOCK_SCOPE(&m->lock);
        at = after && *after ? mem_find_locked(m, after, &equal) : 0;
        if (equal)
                at++;
        for (; r == 0 && at < m->n; at++)
                r = each(arg, m->objects[at]->name, m->objects[at]->bytes, 0);
        return r;
}

static void mem_close(struct store *s) {
        struct store_mem *m = container_of(s, struct store_mem, store);

        for (size_t i = 0; i < m->n; i++)
                free(m->objects[i]);
        free(m->objects);
        lock_destroy(&m->lock);
        free(m);
}

int store_mem_open(size_t max_bytes, struct store **ret) {
        struct store_mem *m = calloc(1, sizeof *m);

        if (!m)
                return -ENOMEM;
        m->store = (struct store){mem_put, mem_get, mem_stat, mem_remove, mem_list, mem_close};
        m->max_bytes = max_bytes;
        lock_init(&m->lock, "store-mem", RANK_QUEUE + 2);
        *ret = &m->store;
        return 0;
}
