/* SPDX-License-Identifier: Apache-2.0 */
/* store.h: the object store: six functions over immutable objects with unique names. The metadata maps blocks into objects; the store knows nothing of
 * blocks, users or workspaces. Layers (verify, count) are the same struct over an inner one.
 *
 * Names: 32 lower-case hex digits, random, made by store_name_new, never reused. Objects: 1..STORE_OBJECT_BYTES_MAX bytes.
 * Any thread may call anything but close; calls may block on the disk, so no ranked lock may be held. */
#pragma once
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/cleanup.h"

#define STORE_NAME_BYTES 32u
#define STORE_OBJECT_BYTES_MAX (16u << 20)

struct store {
        /* Stores the whole object; durable when it returns 0. -EEXIST the name is taken (nothing changed), -EINVAL name or size, -ENOSPC, -EIO, -EBADMSG (verify: what
         * was stored is not what was given; it is gone again). After a failure the object does not exist. */
        int (*put)(struct store *s, const char *object, const void *p, size_t n);
        /* Exactly n bytes from off. -ENOENT no such object, -EIO also when the range passes its end. */
        int (*get)(struct store *s, const char *object, uint64_t off, void *p, size_t n);
        int (*stat)(struct store *s, const char *object, uint64_t *ret_bytes);  /* -ENOENT */
        int (*remove)(struct store *s, const char *object);                     /* -ENOENT */
        /* Names after `after` (NULL or "": from the start) in rising order, with when they were put (since the epoch; 0: not known). Stops when each returns non-zero
         * and returns that. */
        int (*list)(struct store *s, const char *after, int (*each)(void *arg, const char *object, uint64_t bytes, int64_t put_ns), void *arg);
        void (*close)(struct store *s); /* of a layer: its inner store too */
};
static inline void store_close(struct store *s) {
        if (s)
                s->close(s);
}
DEFINE_CLEANUP(store, store_close);

/* A new name; ret gets a NUL too. */
void store_name_new(struct rng *r, char ret[STORE_NAME_BYTES + 1]);
/* -EINVAL unless it is a name. */
int store_name_check(const char *object) _must_check_;

/* A directory with a two-level fan-out (a/bc/abcd...). Makes it if absent; removes temporary files that a crash left. */
int store_dir_open(const char *path, struct store **ret) _must_check_;
/* Memory, for service_config.data_dir NULL and for tests; at most max_bytes in all (-ENOSPC). */
int store_mem_open(size_t max_bytes, struct store **ret) _must_check_;
/* Reads back what was put and compares. Takes over inner (also on failure). */
int store_verify_new(struct store *inner, struct store **ret) _must_check_;
/* Counts calls and bytes. Takes over inner (also on failure). */
struct store_counts { _Atomic uint64_t puts, put_bytes, gets, get_bytes, removes, errors; };
int store_count_new(struct store *inner, struct store_counts *counts, struct store **ret) _must_check_;
