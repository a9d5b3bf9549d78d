/* SPDX-License-Identifier: Apache-2.0 */
/* block.c: blocks as they travel. zstd at level 1, and only where a sample shrinks: compressing is the one expensive step of an upload (500 MB/s
 * against 1.8 GB/s of SHA-256), and most large files are compressed already.
 *
 * Expanding is bounded before memory is spent: the frame says how many bytes come out, at most BLOCK_BYTES_MAX, the decoder writes into
 * exactly that room, and whatever comes out must have the block's SHA-256. A bomb costs one block. The window is the output itself (one-shot
 * decoding), so no further memory depends on what the bytes say. */
#include <zstd.h>

#include "api/wire.h"
#include "base/digest.h"

#define SAMPLE_BYTES 8192u   /* from three places of a large block */
#define COMPRESS_MIN 256u    /* smaller ones are not worth a header */

static int expand_zstd(const struct wire_block *block, const void *base, size_t base_bytes, void *out) {
        ZSTD_DCtx *ctx = ZSTD_createDCtx();
        if (!ctx)
                return -ENOMEM;
        size_t n = 0;
        if (base)
                n = ZSTD_DCtx_refPrefix(ctx, base, base_bytes);
        if (!ZSTD_isError(n))
                n = ZSTD_decompressDCtx(ctx, out, block->raw_bytes, block->bytes, block->n);
        ZSTD_freeDCtx(ctx);
        return !ZSTD_isError(n) && n == block->raw_bytes ? 0 : -EBADMSG;
}

int wire_block_expand(const struct wire_block *block, const void *base, size_t base_bytes, void *out) {
        struct digest hash;
        int r = 0;
        if (block->raw_bytes > BLOCK_BYTES_MAX)
                return -EBADMSG;
        switch (block->encoding) {
        case ENC_RAW:
                if (block->n != block->raw_bytes)
                        return -EBADMSG;
                if (block->n > 0)
                        memcpy(out, block->bytes, block->n);
                break;
        case ENC_ZSTD:
                r = expand_zstd(block, NULL, 0, out);
                break;
        case ENC_ZSTD_PATCH:
                r = base && base_bytes > 0 ? expand_zstd(block, base, base_bytes, out) : -EBADMSG;
                break;
        default:
                return -EPROTONOSUPPORT;
        }
        if (r < 0)
                return r;
        sha256(out, block->raw_bytes, &hash);
        return digest_equal(&hash, &block->hash) ? 0 : -EBADMSG;
}

/* Does it shrink by at least a sixteenth? Looks at the start, the middle and the end. */
static bool sample_shrinks(const uint8_t *p, uint32_t n) {
        uint8_t in[3 * SAMPLE_BYTES], out[ZSTD_COMPRESSBOUND(3 * SAMPLE_BYTES)];
        for (uint32_t i = 0; i < 3; i++)
                memcpy(in + i * SAMPLE_BYTES, p + (uint64_t)(n - SAMPLE_BYTES) * i / 2, SAMPLE_BYTES);
        size_t k = ZSTD_compress(out, sizeof out, in, sizeof in, 1);
        return !ZSTD_isError(k) && k <= sizeof in - sizeof in / 16;
}

int wire_block_compress(const struct digest *hash, const void *p, uint32_t n, struct buf *scratch, struct wire_block *ret) {
        struct wire_block block = { .hash = *hash, .encoding = ENC_RAW, .raw_bytes = n, .bytes = p, .n = n };
        buf_reset(scratch);
        if (n >= COMPRESS_MIN && n <= BLOCK_BYTES_MAX && (n <= 4 * SAMPLE_BYTES || sample_shrinks(p, n))) {
                int r = buf_reserve(scratch, ZSTD_COMPRESSBOUND(n));
                if (r < 0)
                        return r;
                size_t k = ZSTD_compress(scratch->data, ZSTD_COMPRESSBOUND(n), p, n, 1);
                if (!ZSTD_isError(k) && k <= n - n / 16) {
                        scratch->bytes = k;
                        block.encoding = ENC_ZSTD;
                        block.bytes = scratch->data;
                        block.n = (uint32_t)k;
                }
        }
        *ret = block;
        return 0;
}
