/* SPDX-License-Identifier: Apache-2.0 */
/* test_block.c: blocks in and out of their encodings, and what must not come out: bombs, lies about length, wrong hashes. Names and codes too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <zstd.h>

#include "api/code.h"
#include "api/wire.h"
#include "base/clock.h"
#include "base/digest.h"

static void round_trip(const void *p, uint32_t n, bool shrinks) {
        struct buf scratch = BUF_INIT(BLOCK_BYTES_MAX * 2);
        struct wire_block block;
        struct digest hash;
        uint8_t *out = malloc(n ? n : 1);
        sha256(p, n, &hash);
        assert_int_equal(wire_block_compress(&hash, p, n, &scratch, &block), 0);
        assert_int_equal(block.encoding, shrinks ? ENC_ZSTD : ENC_RAW);
        assert_true(!shrinks || block.n <= n - n / 16);
        assert_int_equal(wire_block_expand(&block, NULL, 0, out), 0);
        assert_memory_equal(p, out, n);
        block.hash.b[5] ^= 1;
        assert_int_equal(wire_block_expand(&block, NULL, 0, out), -EBADMSG);
        free(out);
        buf_free(&scratch);
}

static void test_compress(void **state) {
        struct rng_seeded rng;
        uint8_t *noise = malloc(BLOCK_BYTES_MAX), *text = malloc(BLOCK_BYTES_MAX);
        rng_seed(&rng, 7);
        rng.rng.fill(&rng.rng, noise, BLOCK_BYTES_MAX);
        for (size_t i = 0; i < BLOCK_BYTES_MAX; i++)
                text[i] = (uint8_t)("the quick brown fox "[i % 20] ^ (i % 977 == 0));
        static const uint32_t sizes[] = { 0, 1, 255, 256, 257, 4096, 32768, 32769, 131072, 1048577, BLOCK_BYTES_MAX };
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                round_trip(noise, sizes[i], false);
                round_trip(text, sizes[i], sizes[i] >= 256);
        }
        free(noise);
        free(text);
}

static void test_bombs(void **state) {
        size_t bomb_bytes = 512u << 20;
        uint8_t *zeros = calloc(1, bomb_bytes), *out = malloc(BLOCK_BYTES_MAX);
        size_t room = ZSTD_compressBound(bomb_bytes);
        uint8_t *packed = malloc(room);
        size_t n = ZSTD_compress(packed, room, zeros, bomb_bytes, 1);
        assert_false(ZSTD_isError(n));
        struct wire_block b = { .encoding = ENC_ZSTD, .bytes = packed, .n = (uint32_t)n };
        for (uint32_t raw = 0; raw <= BLOCK_BYTES_MAX; raw = raw ? raw * 2 : 1) { /* more comes out than was said: refused */
                b.raw_bytes = raw;
                sha256(zeros, raw, &b.hash);
                assert_int_equal(wire_block_expand(&b, NULL, 0, out), -EBADMSG);
        }
        b.raw_bytes = (uint32_t)bomb_bytes; /* said honestly: over the maximum, refused before anything is done */
        assert_int_equal(wire_block_expand(&b, NULL, 0, out), -EBADMSG);
        n = ZSTD_compress(packed, room, zeros, 1000, 1); /* less than said */
        b.n = (uint32_t)n;
        b.raw_bytes = 1001;
        assert_int_equal(wire_block_expand(&b, NULL, 0, out), -EBADMSG);
        b.encoding = ENC_RAW;
        assert_int_equal(wire_block_expand(&b, NULL, 0, out), -EBADMSG);
        b.encoding = ENC_ZSTD_PATCH; /* no base */
        assert_int_equal(wire_block_expand(&b, NULL, 0, out), -EBADMSG);
        b.encoding = (enum block_encoding)9;
        assert_int_equal(wire_block_expand(&b, NULL, 0, out), -EPROTONOSUPPORT);
        free(zeros);
        free(packed);
        free(out);
}

/* Any damage of a compressed block is found, and nothing is written beyond its room. */
static void test_flips(void **state) {
        uint8_t raw[2000], *out = malloc(sizeof raw);
        struct buf scratch = BUF_INIT(1u << 16);
        struct wire_block b;
        struct digest hash;
        for (size_t i = 0; i < sizeof raw; i++)
                raw[i] = (uint8_t)(i / 7);
        sha256(raw, sizeof raw, &hash);
        assert_int_equal(wire_block_compress(&hash, raw, sizeof raw, &scratch, &b), 0);
        assert_int_equal(b.encoding, ENC_ZSTD);
        for (size_t bit = 0; bit < b.n * 8u; bit++) {
                scratch.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
                int r = wire_block_expand(&b, NULL, 0, out);
                assert_true(r == -EBADMSG || (r == 0 && memcmp(out, raw, sizeof raw) == 0)); /* an unused bit of the header */
                scratch.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        free(out);
        buf_free(&scratch);
}

static void test_patch(void **state) {
        enum { N = 100000 };
        struct rng_seeded rng;
        uint8_t *base = malloc(N), *next = malloc(N), *out = malloc(N), *packed = malloc(ZSTD_compressBound(N));
        rng_seed(&rng, 8);
        rng.rng.fill(&rng.rng, base, N);
        memcpy(next, base, N);
        memcpy(next + 500, "an edit", 7);
        ZSTD_CCtx *cctx = ZSTD_createCCtx();
        ZSTD_CCtx_refPrefix(cctx, base, N);
        size_t n = ZSTD_compress2(cctx, packed, ZSTD_compressBound(N), next, N);
        ZSTD_freeCCtx(cctx);
        assert_true(n < N / 10);
        struct wire_block b = { .encoding = ENC_ZSTD_PATCH, .raw_bytes = N, .bytes = packed, .n = (uint32_t)n };
        sha256(next, N, &b.hash);
        assert_int_equal(wire_block_expand(&b, base, N, out), 0);
        assert_memory_equal(out, next, N);
        base[1000] ^= 1;
        assert_int_equal(wire_block_expand(&b, base, N, out), -EBADMSG);
        free(base);
        free(next);
        free(out);
        free(packed);
}

static void test_names(void **state) {
        char longest[NAME_BYTES_MAX + 2];
        memset(longest, 'a', sizeof longest);
        static const char *const good[] = { "a", "...", ".a", "..a", "a b", "\n", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf" };
        static const char *const wrong_bytes[] = { "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2z", "\xe0\x9f\xbf", "\xe0\xa0", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf",
                                                   "\xf0\x90\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xfe", "\xff", "caf\xe9" };
        for (size_t i = 0; i < ARRAY_SIZE(good); i++)
                assert_int_equal(name_check(good[i], strlen(good[i])), 0);
        for (size_t i = 0; i < ARRAY_SIZE(wrong_bytes); i++)
                assert_int_equal(name_check(wrong_bytes[i], strlen(wrong_bytes[i])), -EILSEQ);
        assert_int_equal(name_check("", 0), -EINVAL);
        assert_int_equal(name_check(".", 1), -EINVAL);
        assert_int_equal(name_check("..", 2), -EINVAL);
        assert_int_equal(name_check("a/b", 3), -EINVAL);
        assert_int_equal(name_check("a\0b", 3), -EINVAL);
        assert_int_equal(name_check(longest, NAME_BYTES_MAX), 0);
        assert_int_equal(name_check(longest, NAME_BYTES_MAX + 1), -ENAMETOOLONG);
}

static void test_codes(void **state) {
        for (int code = RES_OK; code <= RES_FENCED; code++) {
                assert_string_not_equal(op_code_name((enum op_code)code), "UNKNOWN");
                assert_true(code <= RES_MERGED ? op_code_errno((enum op_code)code) == 0 : op_code_errno((enum op_code)code) > 0);
                for (int other = RES_SKIPPED; other < code; other++) /* the way back is exact */
                        assert_int_not_equal(op_code_errno((enum op_code)other), op_code_errno((enum op_code)code));
        }
        assert_string_equal(op_code_name((enum op_code)99), "UNKNOWN");
        assert_int_equal(api_code_find("CURSOR_GONE")->err, ERR_GONE);
        assert_null(api_code_find("NOPE"));
        static const int errs[] = { EKEYREJECTED, EACCES, ENOENT, EOPNOTSUPP, EEXIST, EIDRM, ESTALE, EMSGSIZE, EINVAL, EILSEQ, EBADMSG, ENODATA, EDQUOT, ENOSPC, EAGAIN, EALREADY, EPROTONOSUPPORT, EIO, EISDIR, ENOTDIR, ENOTEMPTY };
        for (size_t i = 0; i < ARRAY_SIZE(errs); i++) {
                assert_int_equal(api_code_from_errno(errs[i])->err, errs[i]);
                assert_ptr_equal(api_code_from_errno(-errs[i]), api_code_from_errno(errs[i]));
        }
        assert_string_equal(api_code_from_errno(EXDEV)->code, "INTERNAL");
        assert_string_equal(api_code_from_errno(EINVAL)->code, "INVALID");
        assert_string_equal(api_code_from_errno(EAGAIN)->code, "UNAVAILABLE");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_compress), cmocka_unit_test(test_bombs), cmocka_unit_test(test_flips), cmocka_unit_test(test_patch), cmocka_unit_test(test_names), cmocka_unit_test(test_codes),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
