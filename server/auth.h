/* SPDX-License-Identifier: Apache-2.0 */
/* auth.h: the one libsodium user: password hashes (argon2id) and bearer tokens. Pure functions over memory; any thread. */
#pragma once
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/model.h"

#define PASSWORD_HASH_BYTES 128u
#define PASSWORD_BYTES_MIN 8u
#define PASSWORD_BYTES_MAX 1024u
#define TOKEN_TEXT_BYTES 64u   /* with its NUL */

int auth_init(void) _must_check_; /* -EIO; once per process, any number of times */
/* argon2id; cheap: the smallest cost, for tests. About 60 ms and 64 MiB otherwise: never under a lock. -ENOMEM. */
int password_hash(const char *password, bool cheap, char ret[PASSWORD_HASH_BYTES]) _must_check_;
/* 0; -EKEYREJECTED. hash NULL (no such user) costs the same time and is refused. */
int password_verify(const char *hash, const char *password, bool cheap) _must_check_;

/* A new token: "tarn" kind '_' 43 characters of base64url (256 random bits). kind: 'a' access, 'r' refresh, 's' script. */
void token_new(struct rng *r, char kind, char ret[TOKEN_TEXT_BYTES]);
/* What is stored: SHA-256 of the text (the token has 256 random bits, so no salt or stretching is needed). -EINVAL: not the form of a token. */
int token_digest(const char *text, char *ret_kind, struct digest *ret) _must_check_;
