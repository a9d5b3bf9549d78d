/* SPDX-License-Identifier: Apache-2.0 */
/* pack.c: segments. A segment is a sparse file of 64 MiB, dir/pack/NNNNN.seg, made once and never removed. An extent (*place* = segment << 14 | page) holds one block: its
 * bytes, padding to 8, the sums of its 4 KiB pieces. There is nothing else in a segment, neither header nor map: the index knows the places, and sums that are keyed
 * with the block's hash (blob_sums.c) tell whether the bytes at a place are the block.
 *
 *   page         bits           charged   left by
 *   hole         -              no        pack_alloc
 *   used         used, alloc    yes       pack_free
 *   free         alloc          yes       pack_reuse, pack_alloc, pack_trim (punched: hole)
 *
 * Freed pages stay on disk, because writing over them costs the file system nothing (no allocation, no extent changes) and they are wanted again at once in a
 * cache that is full. Only when room is needed elsewhere are they punched. The search is first fit from a hint, in extents of whole pages; each segment remembers an
 * upper bound of its longest run, learned when a search fails and forgotten when something is freed, so that full segments cost one comparison. If fragments are too
 * short, a new segment is made: logical size costs nothing, as holes are not charged.
 *
 * pack.c never frees on its own: the caller frees an extent only after the transaction that forgot it is on disk. The lock is held for bit operations only; a trim
 * marks pages as used while it punches. Left out: moving extents to join fragments. */
#include "pack.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/io.h"

#define WORDS (PACK_SEGMENT_PAGES / 64)
#define SEGMENTS_MAX (UINT32_C(1) << 18)
#define SEGMENT_BYTES ((off_t)PACK_SEGMENT_PAGES * PACK_PAGE)

struct segment {
        int fd;
        uint64_t used[WORDS], alloc[WORDS]; /* lock; used is within alloc */
        unsigned n_free;                    /* lock: alloc and not used */
        unsigned reuse_max, any_max;        /* lock: no longer run than this exists */
};

struct pack {
        struct lock lock;
        struct room *room;
        int dir_fd;
        struct segment **segments;  /* SEGMENTS_MAX slots; a slot is set once and stays */
        uint32_t n;                 /* lock */
        uint32_t hint_reuse, hint_any; /* lock: where the last search ended */
        uint64_t n_free;            /* lock: over all segments */
};

static bool bit(const uint64_t *map, unsigned i) {
        return map[i / 64] >> (i % 64) & 1;
}

static void set_bits(uint64_t *map, unsigned first, unsigned n, bool value) {
        for (unsigned i = first; i < first + n; i++) {
                if (value)
                        map[i / 64] |= UINT64_C(1) << (i % 64);
                else
                        map[i / 64] &= ~(UINT64_C(1) << (i % 64));
        }
}

static int segment_open(struct pack *p, uint32_t number, bool make, struct segment **ret) {
        char name[32];
        (void)snprintf(name, sizeof name, "%05x.seg", number);
        struct segment *s = calloc(1, sizeof *s);
        if (!s)
                return -ENOMEM;
        s->fd = openat(p->dir_fd, name, O_RDWR | O_CLOEXEC | (make ? O_CREAT : 0), 0600);
        if (s->fd < 0 || ftruncate(s->fd, SEGMENT_BYTES) < 0) { /* size first: no preallocation beyond the end */
                int r = -errno;
                if (s->fd >= 0)
                        (void)close(s->fd);
                free(s);
                return r;
        }
        s->reuse_max = s->any_max = PACK_SEGMENT_PAGES;
        *ret = s;
        return 0;
}

int pack_open(const char *dir, struct room *room, struct pack **ret) {
        _cleanup_free_ char *path = path_join(dir, "pack");
        struct pack *p = calloc(1, sizeof *p);
        if (!path || !p) {
                free(p);
                return -ENOMEM;
        }
        lock_init(&p->lock, "pack", RANK_PACK);
        p->room = room;
        p->dir_fd = -1;
        p->segments = calloc(SEGMENTS_MAX, sizeof *p->segments);
        int r = p->segments ? mkdir_p(path, 0700) : -ENOMEM;
        if (r == 0) {
                p->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                r = p->dir_fd < 0 ? -errno : 0;
        }
        while (r == 0 && p->n < SEGMENTS_MAX) { /* numbers are dense */
                r = segment_open(p, p->n, false, &p->segments[p->n]);
                if (r == 0)
                        p->n++;
        }
        if (r < 0 && r != -ENOENT) {
                pack_close(p);
                return r;
        }
        *ret = p;
        return 0;
}

void pack_close(struct pack *p) {
        if (!p)
                return;
        for (uint32_t i = 0; i < p->n; i++) {
                (void)close(p->segments[i]->fd);
                free(p->segments[i]);
        }
        free(p->segments);
        if (p->dir_fd >= 0)
                (void)close(p->dir_fd);
        lock_destroy(&p->lock);
        free(p);
}

bool pack_claim(struct pack *p, uint32_t place, unsigned pages) {
        uint32_t number = place / PACK_SEGMENT_PAGES, page = place % PACK_SEGMENT_PAGES;
        LOCK_SCOPE(&p->lock);
        if (number >= p->n || pages == 0 || pages > PACK_SEGMENT_PAGES - page)
                return false;
        struct segment *s = p->segments[number];
        for (unsigned i = page; i < page + pages; i++)
                if (bit(s->used, i))
                        return false;
        set_bits(s->used, page, pages, true);
        set_bits(s->alloc, page, pages, true);
        return true;
}

int pack_settle(struct pack *p) {
        uint64_t charged = 0;
        {
                LOCK_SCOPE(&p->lock);
                p->n_free = 0;
                for (uint32_t k = 0; k < p->n; k++) {
                        struct segment *s = p->segments[k];
                        off_t at = 0;
                        for (;;) {
                                off_t data = lseek(s->fd, at, SEEK_DATA);
                                if (data < 0 && errno == ENXIO)
                                        break;
                                off_t hole = data < 0 ? -1 : lseek(s->fd, data, SEEK_HOLE);
                                if (hole < 0)
                                        return -errno;
                                unsigned first = (unsigned)(data / PACK_PAGE), end = (unsigned)((MIN(hole, SEGMENT_BYTES) + PACK_PAGE - 1) / PACK_PAGE);
                                set_bits(s->alloc, first, end - first, true);
                                at = hole;
                        }
                        s->n_free = 0;
                        for (unsigned w = 0; w < WORDS; w++) {
                                s->n_free += (unsigned)__builtin_popcountll(s->alloc[w] & ~s->used[w]);
                                charged += (uint64_t)__builtin_popcountll(s->alloc[w]);
                        }
                        p->n_free += s->n_free;
                }
        }
        room_add(p->room, charged * PACK_PAGE, false);
        return 0;
}

/* First page of a run of free pages, or -1. */
static int find_run(const struct segment *s, bool reuse, unsigned pages) {
        unsigned run = 0;
        for (unsigned w = 0; w < WORDS; w++) {
                uint64_t free_pages = ~s->used[w] & (reuse ? s->alloc[w] : UINT64_MAX);
                if (free_pages == 0) {
                        run = 0;
                } else if (free_pages == UINT64_MAX) {
                        run += 64;
                        if (run >= pages)
                                return (int)(w * 64 + 64 - run);
                } else {
                        for (unsigned i = 0; i < 64; i++) {
                                run = free_pages >> i & 1 ? run + 1 : 0;
                                if (run == pages)
                                        return (int)(w * 64 + i + 1 - pages);
                        }
                }
        }
        return -1;
}

/* Takes a run out of any segment; ret_charged: how many of its pages were on disk before. */
static int take_locked(struct pack *p, bool reuse, unsigned pages, uint32_t *ret_place, unsigned *ret_allocated) {
        uint32_t *hint = reuse ? &p->hint_reuse : &p->hint_any;
        for (uint32_t k = 0; k < p->n; k++) {
                uint32_t number = (*hint + k) % p->n;
                struct segment *s = p->segments[number];
                unsigned *bound = reuse ? &s->reuse_max : &s->any_max;
                if (*bound < pages || (reuse && s->n_free < pages))
                        continue;
                int page = find_run(s, reuse, pages);
                if (page < 0) {
                        *bound = pages - 1;
                        continue;
                }
                unsigned allocated = 0;
                for (unsigned i = 0; i < pages; i++)
                        allocated += bit(s->alloc, (unsigned)page + i);
                set_bits(s->used, (unsigned)page, pages, true);
                set_bits(s->alloc, (unsigned)page, pages, true);
                s->n_free -= allocated;
                p->n_free -= allocated;
                *hint = number;
                *ret_place = number * PACK_SEGMENT_PAGES + (uint32_t)page;
                *ret_allocated = allocated;
                return 0;
        }
        return -ENOSPC;
}

int pack_reuse(struct pack *p, unsigned pages, uint32_t *ret_place) {
        unsigned allocated;
        assert(pages > 0 && pages <= PACK_EXTENT_PAGES_MAX);
        LOCK_SCOPE(&p->lock);
        return p->n_free < pages ? -ENOSPC : take_locked(p, true, pages, ret_place, &allocated);
}

int pack_alloc(struct pack *p, unsigned pages, uint32_t *ret_place) {
        assert(pages > 0 && pages <= PACK_EXTENT_PAGES_MAX);
        for (;;) {
                uint32_t number;
                {
                        unsigned allocated;
                        lock_take(&p->lock);
                        int r = take_locked(p, false, pages, ret_place, &allocated);
                        number = p->n;
                        lock_drop(&p->lock);
                        if (r == 0) {
                                room_give(p->room, (uint64_t)allocated * PACK_PAGE, false);
                                return 0;
                        }
                }
                if (number == SEGMENTS_MAX)
                        return -ENOSPC;
                struct segment *s = NULL;
                int r = segment_open(p, number, true, &s);
                if (r < 0)
                        return r;
                LOCK_SCOPE(&p->lock);
                if (p->n == number) {
                        p->segments[p->n++] = s;
                } else { /* another thread was faster: its file is this file */
                        (void)close(s->fd);
                        free(s);
                }
        }
}

void pack_free(struct pack *p, uint32_t place, unsigned pages) {
        uint32_t number = place / PACK_SEGMENT_PAGES, page = place % PACK_SEGMENT_PAGES;
        LOCK_SCOPE(&p->lock);
        assert(number < p->n && page + pages <= PACK_SEGMENT_PAGES);
        struct segment *s = p->segments[number];
        for (unsigned i = page; i < page + pages; i++)
                assert(bit(s->used, i));
        set_bits(s->used, page, pages, false);
        s->n_free += pages;
        p->n_free += pages;
        s->reuse_max = s->any_max = PACK_SEGMENT_PAGES;
}

/* Next run of free pages of any segment, at most max pages, marked as used. */
static struct segment *trim_next_locked(struct pack *p, uint64_t max, unsigned *ret_first, unsigned *ret_n) {
        for (uint32_t k = p->n; k-- > 0;) {
                struct segment *s = p->segments[k];
                if (s->n_free == 0)
                        continue;
                unsigned first = 0, n = 0;
                while (!(bit(s->alloc, first) && !bit(s->used, first)))
                        first++;
                while (n < max && first + n < PACK_SEGMENT_PAGES && bit(s->alloc, first + n) && !bit(s->used, first + n))
                        n++;
                set_bits(s->used, first, n, true);
                s->n_free -= n;
                p->n_free -= n;
                *ret_first = first;
                *ret_n = n;
                return s;
        }
        return NULL;
}

uint64_t pack_trim(struct pack *p, uint64_t bytes) {
        uint64_t given = 0;
        while (given < bytes) {
                unsigned first, n;
                lock_take(&p->lock);
                struct segment *s = trim_next_locked(p, (bytes - given - 1) / PACK_PAGE + 1, &first, &n);
                lock_drop(&p->lock);
                if (!s)
                        break;
                FAILPOINT_HERE("pack.trim");
                bool punched = fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first * PACK_PAGE, (off_t)n * PACK_PAGE) == 0;
                lock_take(&p->lock);
                set_bits(s->used, first, n, false);
                if (punched) {
                        set_bits(s->alloc, first, n, false);
                } else {
                        s->n_free += n;
                        p->n_free += n;
                }
                s->any_max = PACK_SEGMENT_PAGES;
                lock_drop(&p->lock);
                if (!punched)
                        break;
                room_give(p->room, (uint64_t)n * PACK_PAGE, false);
                given += (uint64_t)n * PACK_PAGE;
        }
        return given;
}

uint64_t pack_free_bytes(struct pack *p) {
        LOCK_SCOPE(&p->lock);
        return p->n_free * PACK_PAGE;
}

static int iov_full(int fd, struct iovec *iov, int n, uint64_t off, bool write) {
        while (n > 0) {
                ssize_t got = write ? pwritev(fd, iov, n, (off_t)off) : preadv(fd, iov, n, (off_t)off);
                if (got < 0 && errno == EINTR)
                        continue;
                if (got < 0)
                        return -errno;
                if (got == 0)
                        return -EIO;
                off += (uint64_t)got;
                while (n > 0 && (size_t)got >= iov->iov_len) {
                        got -= (ssize_t)iov->iov_len;
                        iov++;
                        n--;
                }
                if (n > 0) {
                        iov->iov_base = (char *)iov->iov_base + got;
                        iov->iov_len -= (size_t)got;
                }
        }
        return 0;
}

int iov_read_full(int fd, struct iovec *iov, int n, uint64_t off) {
        return iov_full(fd, iov, n, off, false);
}

int iov_write_full(int fd, struct iovec *iov, int n, uint64_t off) {
        return iov_full(fd, iov, n, off, true);
}

int pack_read(struct pack *p, uint32_t place, uint32_t offset, struct iovec *iov, int n) {
        return iov_full(p->segments[place / PACK_SEGMENT_PAGES]->fd, iov, n, (uint64_t)(place % PACK_SEGMENT_PAGES) * PACK_PAGE + offset, false);
}

int pack_write(struct pack *p, uint32_t place, uint32_t offset, struct iovec *iov, int n) {
        return iov_full(p->segments[place / PACK_SEGMENT_PAGES]->fd, iov, n, (uint64_t)(place % PACK_SEGMENT_PAGES) * PACK_PAGE + offset, true);
}
