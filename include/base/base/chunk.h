/* SPDX-License-Identifier: Apache-2.0 */
/* chunk.h: content-defined cuts (FastCDC: Xia et al., USENIX ATC 2016 and IEEE TPDS 2020: gear hash, normalised chunking, two bytes per step).
 * Cuts are a function of the bytes and the parameter id alone, never of how the bytes arrived, so that cutting on from any true cut gives the same list. */
#pragma once
#include "base/model.h"

#define CHUNK_PARAM_1 1
struct chunk_param { uint32_t min_bytes, avg_bytes, max_bytes; };
/* NULL for an unknown id. Param 1: 128 KiB, 512 KiB, 2 MiB. A file up to min is one block. */
const struct chunk_param *chunk_param(uint8_t id);
/* Length of the next block of data that starts at a true cut. n: bytes available; final: nothing follows them. Returns 0
 * if more bytes are needed to decide (only if !final and n < max_bytes). Cost: one pass over at most max_bytes. */
size_t chunk_next(const struct chunk_param *param, const uint8_t *p, size_t n, bool final);
