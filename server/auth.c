/* SPDX-License-Identifier: Apache-2.0 */
/* auth.c: passwords and tokens.
 *
 * Passwords: argon2id at libsodium's INTERACTIVE cost (64 MiB, about 60 ms here); a wrong user name is verified against a hash of nothing, so that
 * both refusals take the same time. Tokens carry 256 random bits and a letter for their kind; the database has only their SHA-256, so that a
 * copy of the database opens nothing. */
#include "auth.h"

#include <assert.h>
#include <errno.h>
#include <sodium.h>
#include <string.h>

#include "base/digest.h"

_Static_assert(PASSWORD_HASH_BYTES >= crypto_pwhash_argon2id_STRBYTES, "room for a password hash");

int auth_init(void) { return sodium_init() < 0 ? -EIO : 0; }

static unsigned long long ops_of(bool cheap) { return cheap ? crypto_pwhash_argon2id_OPSLIMIT_MIN : crypto_pwhash_argon2id_OPSLIMIT_INTERACTIVE; }
static size_t mem_of(bool cheap) { return cheap ? crypto_pwhash_argon2id_MEMLIMIT_MIN : crypto_pwhash_argon2id_MEMLIMIT_INTERACTIVE; }

int password_hash(const char *password, bool cheap, char ret[PASSWORD_HASH_BYTES]) {
        char out[PASSWORD_HASH_BYTES] = { 0 };
        if (crypto_pwhash_argon2id_str(out, password, strlen(password), ops_of(cheap), mem_of(cheap)) != 0)
                return -ENOMEM;
        memcpy(ret, out, PASSWORD_HASH_BYTES);
        return 0;
}

int password_verify(const char *hash, const char *password, bool cheap) {
        size_t n = strnlen(password, PASSWORD_BYTES_MAX + 1);
        if (n > PASSWORD_BYTES_MAX)
                return -EKEYREJECTED;
        if (!hash) { /* no such user: the same work */
                char out[PASSWORD_HASH_BYTES];
                if (crypto_pwhash_argon2id_str(out, password, n, ops_of(cheap), mem_of(cheap)) != 0)
                        return -ENOMEM;
                return -EKEYREJECTED;
        }
        return crypto_pwhash_argon2id_str_verify(hash, password, n) == 0 ? 0 : -EKEYREJECTED;
}

void token_new(struct rng *r, char kind, char ret[TOKEN_TEXT_BYTES]) {
        unsigned char secret[32];
        r->fill(r, secret, sizeof secret);
        memcpy(ret, "tarn", 4);
        ret[4] = kind;
        ret[5] = '_';
        sodium_bin2base64(ret + 6, TOKEN_TEXT_BYTES - 6, secret, sizeof secret, sodium_base64_VARIANT_URLSAFE_NO_PADDING);
        sodium_memzero(secret, sizeof secret);
}

int token_digest(const char *text, char *ret_kind, struct digest *ret) {
        size_t n = strnlen(text, TOKEN_TEXT_BYTES);
        if (n != 6 + 43 || memcmp(text, "tarn", 4) != 0 || text[5] != '_' || !strchr("ars", text[4]))
                return -EINVAL;
        sha256(text, n, ret);
        *ret_kind = text[4];
        return 0;
}
