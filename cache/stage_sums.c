/* SPDX-License-Identifier: Apache-2.0 */
/* stage_sums.c: the bytes of stages are checked on every read, so that a bit that flips on this disk is an error and never somebody's version.
 *
 * Small home: the payload of a record never changes. Its XXH3-64s per 4 KiB (from the payload's start) stay in memory; after a start they are made from the payload, which the
 * record's own sum has proved.
 *
 * Large home: the file sums-N beside log-N has one XXH3-64 for each 4 KiB page of the data file, at 4096 + 8 * page: of the page as it is on disk, holes as zeros. It counts for pages
 * that have a DATA extent. A write that covers a page in part reads it first and checks it: damage is never given a fresh sum; it makes the write fail instead. The same holds for
 * the edges of what is punched.
 *
 *   write    check edges, intent, bytes, sums, record, map          punch    (record, map,) check edges, intent, punch, sums of the edges
 *
 * All of that under `io`. A reader has no lock: it reads bytes, then sums; if they differ it asks again under `io`, where they agree or the bytes are damaged.
 *
 * The *intent* (first 64 bytes of sums-N) tells which range was being changed, for a kill between bytes and sums: if no record came after it, its pages may differ and are believed as they
 * are. No sync is spent on sums: the SYNC record of a sealed stage carries a digest of them all. After a power cut they count if that digest
 * is right and the stage was sealed before (nothing was written after it); else they are made anew from the bytes. */
#include "stage_core.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/digest.h"
#include "base/io.h"
#include "base/log.h"

#define PAGE EXTENT_PAGE
#define SUMS_AT 4096u
#define BATCH 512u
#define REGION (BATCH * (uint64_t)PAGE) /* whose sums share a page of the file */

void sums_name(uint32_t number, char ret[STAGE_DATA_NAME]) {
        (void)snprintf(ret, STAGE_DATA_NAME, "sums-%08" PRIu32, number);
}

static uint64_t sum_of(const void *p, size_t n) {
        return xxh3_64(p, n);
}

/* Up to the end of the file, zeros behind it. */
static int load(int fd, uint64_t at, uint8_t *p, size_t n) {
        ssize_t got = pread_some(fd, p, n, at);
        if (got < 0)
                return (int)got;
        memset(p + got, 0, n - (size_t)got);
        return 0;
}

static int sums_read(int sums_fd, uint64_t page, uint64_t *v, size_t n) {
        return load(sums_fd, SUMS_AT + page * 8, (uint8_t *)v, n * 8);
}

/* ---- checking ---- */

static int check_page(int fd, int sums_fd, uint64_t page, uint8_t buf[PAGE]) {
        uint64_t want;
        int r = load(fd, page * PAGE, buf, PAGE);
        if (r == 0)
                r = sums_read(sums_fd, page, &want, 1);
        return r < 0 ? r : sum_of(buf, PAGE) == want ? 0 : -EBADMSG;
}

/* [at, at + n) of the data file into buf. -EBADMSG: a page and its sum differ. */
static int read_large(int fd, int sums_fd, uint64_t at, uint8_t *buf, size_t n) {
        uint8_t edge[PAGE];
        uint64_t end = at + n;
        while (at < end) {
                uint64_t page = at / PAGE;
                size_t skip = (size_t)(at % PAGE), left = (size_t)(end - at);
                if (skip || left < PAGE) {
                        size_t part = MIN(left, PAGE - skip);
                        int r = check_page(fd, sums_fd, page, edge);
                        if (r < 0)
                                return r;
                        memcpy(buf, edge + skip, part);
                        buf += part;
                        at += part;
                        continue;
                }
                uint64_t want[BATCH];
                size_t pages = MIN(left / PAGE, (size_t)BATCH);
                int r = load(fd, at, buf, pages * PAGE);
                if (r == 0)
                        r = sums_read(sums_fd, page, want, pages);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < pages; i++)
                        if (sum_of(buf + i * PAGE, PAGE) != want[i])
                                return -EBADMSG;
                buf += pages * PAGE;
                at += pages * PAGE;
        }
        return 0;
}

static int read_small(const struct piece *p, uint8_t *buf, size_t n) {
        uint8_t edge[PAGE];
        uint64_t at = p->at, end = p->at + n;
        for (size_t k = 0; at < end; k++) {
                uint64_t a = p->grid + k * PAGE, z = MIN(a + PAGE, p->grid_end);
                assert(at >= a && at < z && k < ARRAY_SIZE(p->sums));
                size_t part = (size_t)(MIN(z, end) - at);
                bool whole = at == a && MIN(z, end) == z;
                uint8_t *to = whole ? buf : edge;
                int r = pread_full(p->fd, to, (size_t)(z - a), a);
                if (r < 0)
                        return r;
                if (sum_of(to, (size_t)(z - a)) != p->sums[k])
                        return -EBADMSG;
                if (!whole)
                        memcpy(buf, edge + (at - a), part);
                buf += part;
                at += part;
        }
        return 0;
}

static int damaged(struct stage *st, uint64_t off, size_t n) {
        if (st->owner->cfg.counters)
                counter_add(st->owner->cfg.counters, corruptions_found, 1);
        if (!atomic_exchange(&st->damage_told, true))
                log_error("stage gen=%" PRIu64 " ino=%" PRIu64 " off=%" PRIu64 " bytes=%zu damaged on disk", st->gen, stage_ino(st), off, n);
        return -EIO;
}

int piece_read(const struct piece *p, void *buf, size_t n) {
        struct stage *st = p->stage;
        assert(p->kind == PIECE_DISK && n <= p->bytes);
        int r = p->large ? read_large(p->fd, p->sums_fd, p->at, buf, n) : read_small(p, buf, n);
        lock_take(&st->lock);
        bool moved = st->epoch != p->epoch;
        lock_drop(&st->lock);
        if (moved)
                return -ESTALE;
        if (r != -EBADMSG)
                return r;
        if (!p->large)
                return damaged(st, p->at, n);
        /* a writer between bytes and sums? */
        LOCK_SCOPE(&st->io);
        struct extent e;
        lock_take(&st->lock);
        bool here = st->epoch == p->epoch && extents_find(&st->map, p->at, &e) && e.kind == EXTENT_DATA && !e.where && e.off <= p->at && e.off + e.bytes >= p->at + n;
        lock_drop(&st->lock);
        if (!here)
                return -ESTALE;
        r = read_large(p->fd, p->sums_fd, p->at, buf, n);
        return r == -EBADMSG ? damaged(st, p->at, n) : r;
}

/* ---- small home ---- */

int payload_reserve(struct stage *st, size_t n) {
        lock_assert_held(&st->lock);
        size_t pieces = (n + PAGE - 1) / PAGE;
        if (st->n_payloads == st->payload_room) {
                size_t room = MAX(st->payload_room * 2, (size_t)16);
                struct payload *v = realloc(st->payloads, room * sizeof *v);
                if (!v)
                        return -ENOMEM;
                st->payloads = v;
                st->payload_room = room;
        }
        if (st->n_payload_sums + pieces > st->payload_sum_room) {
                size_t room = MAX(st->payload_sum_room * 2, st->n_payload_sums + pieces);
                uint64_t *v = realloc(st->payload_sums, room * sizeof *v);
                if (!v)
                        return -ENOMEM;
                st->payload_sums = v;
                st->payload_sum_room = room;
        }
        return 0;
}

void payload_sums(const void *buf, size_t n, uint64_t *ret) {
        for (size_t at = 0; at < n; at += PAGE)
                *ret++ = sum_of((const uint8_t *)buf + at, MIN(n - at, (size_t)PAGE));
}

void payload_add(struct stage *st, const struct segment *seg, uint64_t at, uint32_t bytes, const uint64_t *sums) {
        lock_assert_held(&st->lock);
        size_t pieces = (bytes + PAGE - 1) / PAGE;
        assert(st->n_payloads < st->payload_room && st->n_payload_sums + pieces <= st->payload_sum_room);
        st->payloads[st->n_payloads++] = (struct payload) { .seg = seg, .at = at, .bytes = bytes, .first = (uint32_t)st->n_payload_sums };
        memcpy(st->payload_sums + st->n_payload_sums, sums, pieces * sizeof *sums);
        st->n_payload_sums += pieces;
}

void payload_piece(const struct stage *st, const struct segment *seg, struct piece *p) {
        for (size_t i = st->n_payloads; i-- > 0;) {
                const struct payload *x = &st->payloads[i];
                if (x->seg != seg || p->at < x->at || p->at >= x->at + x->bytes)
                        continue;
                size_t k = (size_t)(p->at - x->at) / PAGE, all = (x->bytes + PAGE - 1) / PAGE;
                p->grid = x->at + k * PAGE;
                p->grid_end = x->at + x->bytes;
                assert(p->at + p->bytes <= p->grid_end);
                memcpy(p->sums, st->payload_sums + x->first + k, MIN(all - k, ARRAY_SIZE(p->sums)) * sizeof *p->sums);
                return;
        }
        assert(false); /* each extent in a segment lies in one payload */
}

/* ---- large home; io held ---- */

static bool has_data(struct stage *st, uint64_t page) {
        LOCK_SCOPE(&st->lock);
        return extents_pages(&st->map, page * PAGE, 1) > 0;
}

static int put_sums(int sums_fd, uint64_t page, const uint64_t *v, size_t n) {
        return pwrite_full(sums_fd, v, n * 8, SUMS_AT + page * 8);
}

static int refresh(int fd, int sums_fd, uint64_t page) {
        uint8_t buf[PAGE];
        int r = load(fd, page * PAGE, buf, PAGE);
        uint64_t sum = r == 0 ? sum_of(buf, PAGE) : 0;
        return r < 0 ? r : put_sums(sums_fd, page, &sum, 1);
}

static int intent(struct stage *st, uint64_t off, uint64_t n) {
        struct slog_entry e = { .kind = LOG_INTENT, .gen = st->gen, .seq = st->seq, .off = off, .bytes = n };
        return slog_write(st->sums_fd, &st->log.salt, 0, &e, NULL);
}

int sums_write(struct stage *st, uint64_t off, const void *buf, size_t n, bool *ret_begun) {
        lock_assert_held(&st->io);
        const uint8_t *p = buf;
        uint8_t edge[2][PAGE];
        uint64_t end = off + n, first = off / PAGE, last = (end - 1) / PAGE, sums[BATCH];
        bool head = off % PAGE != 0 || end < (first + 1) * PAGE, tail = last != first && end % PAGE != 0;
        *ret_begun = false;
        int r = 0;
        if (head)
                r = has_data(st, first) ? check_page(st->fd, st->sums_fd, first, edge[0]) : load(st->fd, first * PAGE, edge[0], PAGE);
        if (r == 0 && tail)
                r = has_data(st, last) ? check_page(st->fd, st->sums_fd, last, edge[1]) : load(st->fd, last * PAGE, edge[1], PAGE);
        if (r == -EBADMSG)
                return damaged(st, off, n);
        lock_take(&st->lock);
        bool over = extents_pages(&st->map, off, n) > 0;
        lock_drop(&st->lock);
        if (r == 0 && over)
                r = intent(st, off, n);
        if (over)
                st->log.last_open = false; /* a record of its own ends the intent */
        if (r < 0)
                return r;
        *ret_begun = true;
        r = pwrite_full(st->fd, buf, n, off);
        size_t k = 0;
        for (uint64_t page = first; r == 0 && page <= last; page++) {
                uint64_t at = page * PAGE;
                if (page == first && head) {
                        memcpy(edge[0] + (off - at), p, (size_t)(MIN(end, at + PAGE) - off));
                        sums[k++] = sum_of(edge[0], PAGE);
                } else if (page == last && tail) {
                        memcpy(edge[1], p + (at - off), (size_t)(end - at));
                        sums[k++] = sum_of(edge[1], PAGE);
                } else {
                        sums[k++] = sum_of(p + (at - off), PAGE);
                }
                if (k == BATCH || page == last) {
                        r = put_sums(st->sums_fd, page + 1 - k, sums, k);
                        k = 0;
                }
        }
        for (uint64_t page = first; r < 0 && page <= last; page++) /* the program is told; what is there now is what it is */
                (void)(refresh(st->fd, st->sums_fd, page) < 0);
        return r;
}

/* The pages that [off, off + n) covers in part. */
static size_t edges_of(struct stage *st, uint64_t off, uint64_t n, uint64_t ret[2]) {
        uint64_t end = off + n < off ? UINT64_MAX : off + n;
        size_t k = 0;
        if (off % PAGE && has_data(st, off / PAGE))
                ret[k++] = off / PAGE;
        if (end % PAGE && end != UINT64_MAX && (!k || ret[0] != end / PAGE) && has_data(st, end / PAGE))
                ret[k++] = end / PAGE;
        return k;
}

int sums_edges(struct stage *st, uint64_t off, uint64_t n) {
        uint8_t buf[PAGE];
        uint64_t page[2];
        if (!st->large)
                return 0;
        for (size_t i = 0, k = edges_of(st, off, n, page); i < k; i++) {
                int r = check_page(st->fd, st->sums_fd, page[i], buf);
                if (r < 0)
                        return r == -EBADMSG ? damaged(st, page[i] * PAGE, PAGE) : r;
        }
        return 0;
}

static int punch(int fd, uint64_t off, uint64_t n) {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)MIN(n, (uint64_t)INT64_MAX - off)) < 0 ? -errno : 0;
}

void sums_punch(struct stage *st, uint64_t off, uint64_t n) {
        lock_assert_held(&st->io);
        uint8_t buf[PAGE];
        uint64_t page[2];
        size_t k = edges_of(st, off, n, page);
        bool good[2] = { false };
        for (size_t i = 0; i < k; i++)
                good[i] = check_page(st->fd, st->sums_fd, page[i], buf) == 0; /* what is damaged stays known as such */
        if (k && intent(st, off, n) < 0) /* room is given back all the same; only a kill right now would miss it */
                log_debug("stage gen=%" PRIu64 " intent failed", st->gen);
        int r = punch(st->fd, off, n);
        for (size_t i = 0; r == 0 && i < k; i++)
                if (good[i])
                        r = refresh(st->fd, st->sums_fd, page[i]);
        if (r == 0 && k) { /* its record is there already: nothing else would end the intent */
                static const uint8_t none[LOG_UNIT];
                r = pwrite_full(st->sums_fd, none, sizeof none, 0);
        }
        if (r < 0)
                log_debug("stage gen=%" PRIu64 " punch error=%s", st->gen, err_name(r));
}

/* ---- all pages of a map ---- */

struct each_page { int (*page)(struct each_page *p, uint64_t page); uint64_t next; };
static int pages_of(void *arg, const struct extent *e) {
        struct each_page *p = arg;
        if (e->kind != EXTENT_DATA)
                return 0;
        uint64_t a = MAX(e->off / PAGE, p->next), z = (e->off + e->bytes - 1) / PAGE;
        for (; a <= z; a++) {
                int r = p->page(p, a);
                if (r)
                        return r;
        }
        p->next = MAX(p->next, z + 1);
        return 0;
}

struct maker { struct each_page each; int fd, sums_fd; };
static int make_one(struct each_page *p, uint64_t page) {
        struct maker *m = container_of(p, struct maker, each);
        return refresh(m->fd, m->sums_fd, page);
}
int sums_make(const struct extents *map, int fd, int sums_fd) {
        struct maker m = { { make_one, 0 }, fd, sums_fd };
        return extents_each(map, 0, UINT64_MAX, pages_of, &m.each);
}

struct again { struct each_page each; int fd, sums_fd; uint64_t from, last, size; unsigned left; };
static int again_one(struct each_page *p, uint64_t page) {
        struct again *a = container_of(p, struct again, each);
        uint8_t buf[PAGE];
        if (page < a->from)
                return 0;
        if (a->left == 0)
                return 1;
        a->left--;
        a->last = page;
        int r = check_page(a->fd, a->sums_fd, page, buf);
        return r < 0 || page * PAGE >= a->size ? r : pwrite_full(a->fd, buf, (size_t)MIN((uint64_t)PAGE, a->size - page * PAGE), page * PAGE);
}
int sums_again(struct stage *st, uint64_t *io_page, unsigned max) {
        lock_assert_held(&st->io);
        struct stat sb;
        if (fstat(st->fd, &sb) < 0)
                return -errno;
        struct again a = { .each = { again_one, *io_page }, .fd = st->fd, .sums_fd = st->sums_fd, .from = *io_page, .last = *io_page, .size = (uint64_t)sb.st_size, .left = max };
        int r = extents_each(&st->map, *io_page * PAGE, UINT64_MAX - *io_page * PAGE, pages_of, &a.each);
        *io_page = a.last + 1;
        return r;
}

struct digester { struct each_page each; int sums_fd; uint64_t v[1 + BATCH]; size_t n; uint64_t had[BATCH], had_first; size_t had_n; };
static int digest_one(struct each_page *p, uint64_t page) {
        struct digester *d = container_of(p, struct digester, each);
        if (page < d->had_first || page >= d->had_first + d->had_n) {
                d->had_first = page;
                d->had_n = BATCH;
                int r = sums_read(d->sums_fd, page, d->had, BATCH);
                if (r < 0)
                        return r;
        }
        d->v[++d->n] = d->had[page - d->had_first];
        if (d->n == BATCH) {
                d->v[0] = xxh3_64(d->v, sizeof d->v);
                d->n = 0;
        }
        return 0;
}
int sums_digest(const struct extents *map, int sums_fd, uint64_t *ret) {
        _cleanup_free_ struct digester *d = calloc(1, sizeof *d);
        if (!d)
                return -ENOMEM;
        d->each.page = digest_one;
        d->sums_fd = sums_fd;
        int r = extents_each(map, 0, UINT64_MAX, pages_of, &d->each);
        if (r < 0)
                return r;
        uint64_t sum = xxh3_64(d->v, (d->n + 1) * 8);
        *ret = sum ? sum : 1;
        return 0;
}

struct checker { struct each_page each; int fd, sums_fd; uint64_t skip_first, skip_last, bad, pages; };
static int check_one(struct each_page *p, uint64_t page) {
        struct checker *c = container_of(p, struct checker, each);
        uint8_t buf[PAGE];
        c->pages++;
        if (page >= c->skip_first && page <= c->skip_last)
                return 0;
        int r = check_page(c->fd, c->sums_fd, page, buf);
        c->bad += r == -EBADMSG || r == -EIO;
        return r == -EBADMSG || r == -EIO ? 0 : r;
}
int sums_check(const struct extents *map, int fd, int sums_fd, const struct id *salt, uint64_t gen, uint64_t seq, uint64_t *ret_bad, uint64_t *ret_pages) {
        struct checker c = { { check_one, 0 }, fd, sums_fd, UINT64_MAX, 0, 0, 0 };
        struct slog_entry e;
        if (slog_read(sums_fd, salt, 0, &e) == 0 && e.kind == LOG_INTENT && e.gen == gen && e.seq == seq) {
                c.skip_first = e.off / PAGE;
                c.skip_last = e.off + e.bytes < e.off ? UINT64_MAX : (e.off + e.bytes) / PAGE;
        }
        int r = extents_each(map, 0, UINT64_MAX, pages_of, &c.each);
        *ret_bad = c.bad;
        *ret_pages = c.pages;
        return r;
}

uint64_t sums_regions(const struct extents *map, uint64_t off, uint64_t n) {
        uint64_t fresh = 0, end = off + n;
        for (uint64_t a = off / REGION * REGION; a < end; a += REGION) {
                struct extent e;
                bool any = false;
                for (uint64_t at = a; !any && at < a + REGION && extents_find(map, at, &e) && e.off < a + REGION; at = e.off + e.bytes)
                        any = e.kind == EXTENT_DATA;
                fresh += !any;
        }
        return fresh;
}

struct region_count { struct each_page each; uint64_t last, n; };
static int count_region(struct each_page *p, uint64_t page) {
        struct region_count *c = container_of(p, struct region_count, each);
        c->n += !c->n || page / BATCH != c->last;
        c->last = page / BATCH;
        return 0;
}
uint64_t sums_pages(const struct extents *map) {
        struct region_count c = { .each = { count_region, 0 } };
        (void)extents_each(map, 0, UINT64_MAX, pages_of, &c.each);
        return c.n;
}

/* ---- recovery; one thread ---- */

/* What is in the file but not in the map leaves it. */
static void punch_gaps(struct stage *st, uint64_t file_bytes, bool strict) {
        for (uint64_t at = 0; at < file_bytes;) {
                struct extent e = { 0 };
                bool any = extents_find(&st->map, at, &e);
                uint64_t upto = any ? MAX(e.off, at) : file_bytes;
                if (any && e.kind == EXTENT_DATA && e.off <= at) {
                        at = e.off + e.bytes;
                        continue;
                }
                if (any && e.off <= at)
                        upto = e.off + e.bytes;
                upto = MIN(upto, file_bytes);
                if (upto > at && strict)
                        sums_punch(st, at, upto - at);
                else if (upto > at)
                        (void)(punch(st->fd, at, upto - at) < 0);
                at = MAX(upto, at + 1);
        }
}

int sums_recover(struct stage *st, uint64_t file_bytes, bool new_boot, bool sealed_then, uint64_t digest, bool *ret_made) {
        uint64_t now = 0;
        int r = new_boot && sealed_then && digest ? sums_digest(&st->map, st->sums_fd, &now) : 0;
        if (r < 0)
                return r;
        bool strict = !new_boot || (sealed_then && digest && now == digest);
        struct slog_entry e;
        if (strict && slog_read(st->sums_fd, &st->log.salt, 0, &e) == 0 && e.kind == LOG_INTENT && e.gen == st->gen && e.seq == st->seq) {
                uint64_t last = (MIN(e.off + e.bytes < e.off ? UINT64_MAX : e.off + e.bytes, file_bytes) + PAGE - 1) / PAGE;
                for (uint64_t page = e.off / PAGE; r == 0 && page < last; page++)
                        if (has_data(st, page))
                                r = refresh(st->fd, st->sums_fd, page);
                uint64_t end = e.off + e.bytes;
                if (r == 0 && end >= e.off && end < file_bytes && has_data(st, end / PAGE))
                        r = refresh(st->fd, st->sums_fd, end / PAGE);
        }
        punch_gaps(st, file_bytes, strict);
        *ret_made = !strict;
        return r < 0 || strict ? r : sums_make(&st->map, st->fd, st->sums_fd);
}
