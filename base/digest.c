/* SPDX-License-Identifier: Apache-2.0 */
/* digest.c: the only file that knows OpenSSL and xxHash.
 *
 * SHA-256 goes through EVP with an algorithm fetched once: OpenSSL 3 would otherwise search its providers for each call. It uses the CPU's SHA
 * instructions where there are any. Hashing memory cannot fail but for a lack of memory of a few hundred bytes: sha256() then aborts, because a wrong
 * name for a block is worse than a restart, which loses no accepted byte. XXH3 guards pieces on our own disk against rot. */
#include "base/digest.h"

#include <assert.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static EVP_MD *sha256_md; /* fetched once, kept for the life of the process */

static void sha256_fetch(void) {
        sha256_md = EVP_MD_fetch(NULL, "SHA256", NULL);
}

static const EVP_MD *sha256_get(void) {
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        (void)pthread_once(&once, sha256_fetch);
        if (!sha256_md)
                abort();
        return sha256_md;
}

void sha256(const void *p, size_t n, struct digest *ret) {
        unsigned bytes = 0;
        if (EVP_Digest(n ? p : "", n, ret->b, &bytes, sha256_get(), NULL) != 1 || bytes != DIGEST_BYTES)
                abort();
}

struct sha256_state {
        EVP_MD_CTX *ctx;
};

int sha256_new(struct sha256_state **ret) {
        struct sha256_state *s = calloc(1, sizeof *s);
        if (!s)
                return -ENOMEM;
        s->ctx = EVP_MD_CTX_new();
        if (!s->ctx || EVP_DigestInit_ex(s->ctx, sha256_get(), NULL) != 1) {
                sha256_free(s);
                return -ENOMEM;
        }
        *ret = s;
        return 0;
}

void sha256_add(struct sha256_state *s, const void *p, size_t n) {
        if (n > 0 && EVP_DigestUpdate(s->ctx, p, n) != 1)
                abort();
}

void sha256_end(struct sha256_state *s, struct digest *ret) {
        unsigned bytes = 0;
        if (EVP_DigestFinal_ex(s->ctx, ret->b, &bytes) != 1 || bytes != DIGEST_BYTES || EVP_DigestInit_ex(s->ctx, sha256_get(), NULL) != 1)
                abort();
}

void sha256_free(struct sha256_state *s) {
        if (!s)
                return;
        EVP_MD_CTX_free(s->ctx);
        free(s);
}

uint64_t xxh3_64(const void *p, size_t n) {
        return XXH3_64bits(p, n);
}
