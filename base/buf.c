/* SPDX-License-Identifier: Apache-2.0 */
/* buf.c: bytes that grow up to a maximum, and the arena.
 *
 * A buffer doubles, so that adding is O(1) on average; it never holds more than max_bytes (plus one for the NUL of buf_text, so that a full
 * buffer can still be read as text). A failed addition leaves what was there.
 *
 * The arena is a list of chunks, newest first; allocation moves a mark in the newest one. An allocation larger than a chunk gets a chunk of its
 * own. The maximum counts what was handed out (rounded to 16), so that it means the same however the chunks fall. Reset keeps one
 * chunk of the ordinary size for the next round. Memory is zeroed when handed out. One owner, no lock. */
#include "base/buf.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define BUF_ROOM_MIN 64u

void buf_free(struct buf *b) {
        if (!b)
                return;
        free(b->data);
        b->data = NULL;
        b->bytes = b->room = 0;
}

void buf_reset(struct buf *b) {
        b->bytes = 0;
}

/* Room for n more and one NUL. */
static int buf_grow(struct buf *b, size_t n) {
        if (n > b->max_bytes || b->bytes > b->max_bytes - n)
                return -EMSGSIZE;
        size_t need = b->bytes + n + 1;
        if (need <= b->room)
                return 0;
        size_t room = MAX(b->room, (size_t)BUF_ROOM_MIN);
        while (room < need)
                room = room > SIZE_MAX / 2 ? need : room * 2;
        if (b->max_bytes < SIZE_MAX)
                room = MAX(need, MIN(room, b->max_bytes + 1));
        uint8_t *data = realloc(b->data, room);
        if (!data)
                return -ENOMEM;
        b->data = data;
        b->room = room;
        return 0;
}

int buf_reserve(struct buf *b, size_t more) {
        return buf_grow(b, more);
}

int buf_add(struct buf *b, const void *p, size_t n) {
        int r = buf_grow(b, n);
        if (r < 0)
                return r;
        if (n > 0)
                memcpy(b->data + b->bytes, p, n);
        b->bytes += n;
        return 0;
}

int buf_add_str(struct buf *b, const char *s) {
        return buf_add(b, s, strlen(s));
}

int buf_printf(struct buf *b, const char *fmt, ...) {
        va_list args, again;
        va_start(args, fmt);
        va_copy(again, args);
        size_t room = b->room - b->bytes;
        int n = vsnprintf(b->data ? (char *)b->data + b->bytes : NULL, b->data ? room : 0, fmt, args);
        va_end(args);
        int r = n < 0 ? -EINVAL : buf_grow(b, (size_t)n);
        if (r == 0) {
                if (room <= (size_t)n)
                        (void)vsnprintf((char *)b->data + b->bytes, (size_t)n + 1, fmt, again);
                b->bytes += (size_t)n;
        }
        va_end(again);
        return r;
}

const char *buf_text(struct buf *b) {
        if (buf_grow(b, 0) < 0)
                return NULL;
        b->data[b->bytes] = 0;
        return (const char *)b->data;
}

#define ARENA_CHUNK_BYTES (64u << 10)

struct arena_chunk {
        struct arena_chunk *next;
        size_t used, room;
        _Alignas(16) uint8_t data[];
};
struct arena {
        struct arena_chunk *chunks;
        size_t used, max_bytes;
};

int arena_new(size_t max_bytes, struct arena **ret) {
        struct arena *a = calloc(1, sizeof *a);
        if (!a)
                return -ENOMEM;
        a->max_bytes = max_bytes;
        *ret = a;
        return 0;
}

static void arena_drop(struct arena *a, struct arena_chunk *keep) {
        struct arena_chunk *next;
        for (struct arena_chunk *c = a->chunks; c; c = next) {
                next = c->next;
                if (c != keep)
                        free(c);
        }
        a->chunks = keep;
        a->used = 0;
        if (keep) {
                keep->next = NULL;
                keep->used = 0;
        }
}

void arena_free(struct arena *a) {
        if (!a)
                return;
        arena_drop(a, NULL);
        free(a);
}

void arena_reset(struct arena *a) {
        struct arena_chunk *keep = NULL;
        for (struct arena_chunk *c = a->chunks; c && !keep; c = c->next)
                if (c->room == ARENA_CHUNK_BYTES)
                        keep = c;
        arena_drop(a, keep);
}

void *arena_alloc(struct arena *a, size_t bytes) {
        if (bytes > a->max_bytes || bytes > SIZE_MAX - 16)
                return NULL;
        size_t n = bytes == 0 ? 16 : (bytes + 15) & ~(size_t)15;
        if (a->used > a->max_bytes || n - 15 > a->max_bytes - a->used)
                return NULL;
        struct arena_chunk *c = a->chunks;
        if (!c || c->room - c->used < n) {
                size_t room = MAX(n, (size_t)ARENA_CHUNK_BYTES);
                struct arena_chunk *fresh = malloc(sizeof *fresh + room);
                if (!fresh)
                        return NULL;
                fresh->used = 0;
                fresh->room = room;
                if (c && n >= ARENA_CHUNK_BYTES) { /* full at once: the chunk with room stays first */
                        fresh->next = c->next;
                        c->next = fresh;
                } else {
                        fresh->next = c;
                        a->chunks = fresh;
                }
                c = fresh;
        }
        void *p = c->data + c->used;
        c->used += n;
        a->used += n;
        memset(p, 0, n);
        return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n) {
        if (n == SIZE_MAX)
                return NULL;
        char *p = arena_alloc(a, n + 1);
        if (p && n > 0)
                memcpy(p, s, n);
        return p;
}
