/* SPDX-License-Identifier: Apache-2.0 */
/* digest.h: SHA-256 (OpenSSL EVP, uses the CPU's instructions) names blocks; XXH3-64 guards 4 KiB pieces on our own disk
 * against rot, never against people. Any thread; no state shared. */
#pragma once
#include "base/cleanup.h"
#include "base/model.h"

void sha256(const void *p, size_t n, struct digest *ret);
struct sha256_state;
int sha256_new(struct sha256_state **ret) _must_check_;           /* -ENOMEM */
void sha256_add(struct sha256_state *s, const void *p, size_t n);
void sha256_end(struct sha256_state *s, struct digest *ret);      /* the state starts anew */
void sha256_free(struct sha256_state *s);
uint64_t xxh3_64(const void *p, size_t n);
