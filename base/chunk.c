/* SPDX-License-Identifier: Apache-2.0 */
/* chunk.c: where a file is cut into blocks. FastCDC (Xia et al. 2016, 2020):
 *
 *   gear hash       h = (h << 1) + gear[byte], 64 bits: what is in h comes from the last 64 bytes only, hence equal bytes
 *                   meet the same cuts again soon after an insertion
 *   normalised      up to a point below the average the hard mask (4 times rarer than the average asks for), after it the easy one (4 times
 *                   likelier): most blocks end near the average, few reach the maximum
 *   two bytes       per step: one shift by two and tables and masks shifted by one for the first of the pair; gives exactly the cuts
 *                   of one byte at a time (the unit test compares)
 *
 * The first min_bytes of a block are skipped but for the last 64 of them, which fill the hash, so that a cut depends on the 64 bytes before it and
 * on where the block begins, on nothing else. The change of masks is at 13/16 of the average: with the tails on both sides the mean
 * block of random data is then the average (measured: see the test).
 *
 * The table: gear[i] = i-th output of splitmix64 seeded with the ASCII bytes "tarngear". Table, masks and sizes belong to the
 * parameter id for ever: another table is another id, because versions of one file are compared by their cuts. Pure; any thread. */
#include "base/chunk.h"

#include <assert.h>
#include <pthread.h>

#include "base/cleanup.h"

#define GEAR_SEED 0x7461726e67656172u /* "tarngear" */
#define WINDOW 64u

static uint64_t gear[256], gear_shifted[256];

static void gear_init(void) {
        uint64_t state = GEAR_SEED;
        for (int i = 0; i < 256; i++) {
                uint64_t z = state += 0x9e3779b97f4a7c15u;
                z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
                z = (z ^ z >> 27) * 0x94d049bb133111ebu;
                gear[i] = z ^ z >> 31;
                gear_shifted[i] = gear[i] << 1;
        }
}

const struct chunk_param *chunk_param(uint8_t id) {
        static const struct chunk_param param_1 = { 128u << 10, 512u << 10, 2u << 20 };
        return id == CHUNK_PARAM_1 ? &param_1 : NULL;
}

/* `bits` ones below bit 63, which stays free for the shifted form. */
static uint64_t mask_of(unsigned bits) {
        return ((UINT64_C(1) << bits) - 1) << (63 - bits);
}

/* Looks for a cut after position i, up to `end` bytes. Returns its length or 0; *h goes on. */
static size_t scan(const uint8_t *p, size_t i, size_t end, uint64_t mask, uint64_t *h) {
        uint64_t v = *h, mask_shifted = mask << 1;
        for (; i + 2 <= end; i += 2) {
                v = (v << 2) + gear_shifted[p[i]];
                if (!(v & mask_shifted))
                        return i + 1;
                v += gear[p[i + 1]];
                if (!(v & mask))
                        return i + 2;
        }
        if (i < end) {
                v = (v << 1) + gear[p[i]];
                if (!(v & mask))
                        return i + 1;
        }
        *h = v;
        return 0;
}

size_t chunk_next(const struct chunk_param *param, const uint8_t *p, size_t n, bool final) {
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        assert(param && param->min_bytes >= WINDOW && param->min_bytes < param->avg_bytes && param->avg_bytes < param->max_bytes);
        if (n <= param->min_bytes)
                return final ? n : 0;
        (void)pthread_once(&once, gear_init);

        unsigned bits = 31u - (unsigned)__builtin_clz(param->avg_bytes);
        size_t turn = MAX((size_t)param->min_bytes, (size_t)param->avg_bytes / 16 * 13), end = MIN(n, (size_t)param->max_bytes);
        uint64_t h = 0;
        for (size_t i = param->min_bytes - WINDOW; i < param->min_bytes; i++)
                h = (h << 1) + gear[p[i]];
        size_t cut = scan(p, param->min_bytes, MIN(end, turn), mask_of(bits + 2), &h);
        if (cut == 0 && end > turn)
                cut = scan(p, turn, end, mask_of(bits - 2), &h);
        if (cut > 0)
                return cut;
        return final || n >= param->max_bytes ? end : 0;
}
