/* SPDX-License-Identifier: Apache-2.0 */
/* buf.h: a growing byte buffer with a mandatory maximum. One owner, no lock. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct buf {
        uint8_t *data;
        size_t bytes;     /* used */
        size_t room;      /* allocated */
        size_t max_bytes; /* growing beyond is -EMSGSIZE */
};
#define BUF_INIT(max) { .max_bytes = (max) }
void buf_free(struct buf *b);                     /* releases the bytes; the struct can be used again */
void buf_reset(struct buf *b);                    /* keeps the room */
int buf_reserve(struct buf *b, size_t more) _must_check_; /* -ENOMEM, -EMSGSIZE */
int buf_add(struct buf *b, const void *p, size_t n) _must_check_;
int buf_add_str(struct buf *b, const char *s) _must_check_;
int buf_printf(struct buf *b, const char *fmt, ...) _printf_(2, 3) _must_check_;
/* Adds a NUL that `bytes` does not count; returns the text, or NULL for lack of room or memory. */
const char *buf_text(struct buf *b);
static inline void cleanup_buf_p(struct buf *b) { buf_free(b); }
#define _cleanup_buf_ _cleanup_(cleanup_buf_p)

/* An arena: many small allocations freed together, bounded. For decoded rows. One owner, no lock. */
struct arena;
int arena_new(size_t max_bytes, struct arena **ret) _must_check_;
void arena_free(struct arena *a);
void arena_reset(struct arena *a);
void *arena_alloc(struct arena *a, size_t bytes);            /* aligned to 16, zeroed; NULL: over the maximum or no memory */
char *arena_strndup(struct arena *a, const char *s, size_t n); /* NUL-terminated */
static inline void cleanup_arena_p(struct arena **a) { arena_free(*a); }
#define _cleanup_arena_ _cleanup_(cleanup_arena_p)
