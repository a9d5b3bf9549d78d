/* SPDX-License-Identifier: Apache-2.0 */
/* store_verify.c: a layer: what was put is what is stored.
 *
 * put asks the inner store for the object again, in pieces, and compares it byte for byte with what was given; so a store that drops, cuts or
 * changes bytes is noticed while the sender still has them, before a version is acknowledged. A mismatch takes the object away again and is
 * -EBADMSG. The read comes from the page cache of the disk that was just written and costs about a tenth of the write; what rots later is
 * noticed by the reader of each block, who knows its SHA-256 (content.c).
 *
 * The other functions go straight through. No state, no lock. */
#include "store.h"

#include <string.h>

#include "base/log.h"

#define PIECE_BYTES (256u << 10)

struct store_verify {
        struct store store;
        struct store *inner;
};

static int verify_compare(struct store *inner, const char *object, const uint8_t *p, size_t n) {
        _cleanup_free_ uint8_t *piece = malloc(PIECE_BYTES);
        uint64_t stored;
        int r;

        if (!piece)
                return -ENOMEM;
        r = inner->stat(inner, object, &stored);
        if (r < 0)
                return r;
        if (stored != n)
                return -EBADMSG;
        for (size_t at = 0; at < n; at += PIECE_BYTES) {
                size_t m = MIN(n - at, (size_t)PIECE_BYTES);

                r = inner->get(inner, object, at, piece, m);
                if (r < 0)
                        return r;
                if (memcmp(piece, p + at, m) != 0)
                        return -EBADMSG;
        }
        return 0;
}

static int verify_put(struct store *s, const char *object, const void *p, size_t n) {
        struct store_verify *v = container_of(s, struct store_verify, store);
        int r, q;

        r = v->inner->put(v->inner, object, p, n);
        if (r < 0)
                return r;
        r = verify_compare(v->inner, object, p, n);
        if (r < 0) {
                q = v->inner->remove(v->inner, object);
                log_error("store=verify object=%s error=%s removed=%s", object, err_name(r), q == 0 ? "yes" : err_name(q));
        }
        return r;
}

static int verify_get(struct store *s, const char *object, uint64_t off, void *p, size_t n) {
        struct store_verify *v = container_of(s, struct store_verify, store);

        return v->inner->get(v->inner, object, off, p, n);
}

static int verify_stat(struct store *s, const char *object, uint64_t *ret_bytes) {
        struct store_verify *v = container_of(s, struct store_verify, store);

        return v->inner->stat(v->inner, object, ret_bytes);
}

static int verify_remove(struct store *s, const char *object) {
        struct store_verify *v = container_of(s, struct store_verify, store);

        return v->inner->remove(v->inner, object);
}

static int verify_list(struct store *s, const char *after, int (*each)(void *arg, const char *object, uint64_t bytes, int64_t put_ns), void *arg) {
        struct store_verify *v = container_of(s, struct store_verify, store);

        return v->inner->list(v->inner, after, each, arg);
}

static void verify_close(struct store *s) {
        struct store_verify *v = container_of(s, struct store_verify, store);

        store_close(v->inner);
        free(v);
}

int store_verify_new(struct store *inner, struct store **ret) {
        struct store_verify *v = calloc(1, sizeof *v);

        if (!v) {
                store_close(inner);
                return -ENOMEM;
        }
        v->store = (struct store){verify_put, verify_get, verify_stat, verify_remove, verify_list, verify_close};
        v->inner = inner;
        *ret = &v->store;
        return 0;
}
