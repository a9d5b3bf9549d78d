/* SPDX-License-Identifier: Apache-2.0 */
/* blocklist.c: the flat list of a content's blocks, and its tree of list pages.
 *
 *   blocks  0          depth 0, root zero
 *           1          depth 0, root = the block
 *           2..1024    depth 1, root = a page of level 1
 *           ..2^20     depth 2, root = a page of level 2 over pages of level 1
 *           ..2^30     depth 3
 *
 * The form is canonical: equal lists give equal pages and hence an equal root. So reading is strict: every page of a level but its last is full, the root page
 * has at least two references (else the depth is too great), blocks are 1..BLOCK_BYTES_MAX bytes, the sums agree at every level, and a page's bytes hash
 * to its name. Anything else is -EBADMSG: such a page was not made by us.
 *
 * Loading walks depth first, so it holds one parsed page per level and the result. Memory is bounded by max_refs before anything
 * grows. Pure; any thread. */
#include "base/blocklist.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/digest.h"

#define PAGE_HEAD 16u
#define PAGE_REF 40u
#define DEPTH_MAX 3u
static const char page_magic[8] = { 't', 'a', 'r', 'n', 'l', 's', 't', '1' };

void blocklist_free(struct blocklist *l) {
        if (!l)
                return;
        free(l->refs);
        l->refs = NULL;
        l->n = l->room = 0;
        l->size = 0;
}

int blocklist_add(struct blocklist *l, const struct blockref *ref) {
        if (ref->bytes == 0 || ref->bytes > BLOCK_BYTES_MAX)
                return -EINVAL;
        if (l->n >= (size_t)LIST_FANOUT * LIST_FANOUT * LIST_FANOUT || l->size > INT64_MAX - ref->bytes)
                return -EFBIG;
        if (l->n == l->room) {
                size_t room = l->room ? l->room * 2 : 8;
                struct blockref *refs = reallocarray(l->refs, room, sizeof *refs);
                if (!refs)
                        return -ENOMEM;
                l->refs = refs;
                l->room = room;
        }
        l->refs[l->n++] = *ref;
        l->size += ref->bytes;
        return 0;
}

int blocklist_starts(const struct blocklist *l, uint64_t **ret) {
        uint64_t *starts = reallocarray(NULL, l->n + 1, sizeof *starts);
        if (!starts)
                return -ENOMEM;
        starts[0] = 0;
        for (size_t i = 0; i < l->n; i++)
                starts[i + 1] = starts[i] + l->refs[i].bytes;
        *ret = starts;
        return 0;
}

size_t blocklist_find(const uint64_t *starts, size_t n, uint64_t off) {
        assert(n > 0 && off < starts[n]);
        size_t low = 0, high = n; /* starts[low] <= off < starts[high] */
        while (high - low > 1) {
                size_t middle = low + (high - low) / 2;
                if (starts[middle] <= off)
                        low = middle;
                else
                        high = middle;
        }
        return low;
}

static void put_u64(uint8_t *p, uint64_t v) {
        for (int i = 0; i < 8; i++)
                p[i] = (uint8_t)(v >> 8 * i);
}

static uint64_t get_u64(const uint8_t *p) {
        uint64_t v = 0;
        for (int i = 7; i >= 0; i--)
                v = v << 8 | p[i];
        return v;
}

struct up { struct digest hash; uint64_t bytes; };

/* Writes the pages of one level over `below`; the references to them replace the first ceil(n / fanout) elements of `below`. */
static int level_write(struct up *below, size_t n, uint8_t level, uint8_t param, uint8_t *page, struct page_sink *sink) {
        for (size_t first = 0, k = 0; first < n; first += LIST_FANOUT, k++) {
                size_t count = MIN(n - first, (size_t)LIST_FANOUT);
                uint64_t sum = 0;
                memcpy(page, page_magic, 8);
                page[8] = level;
                page[9] = param;
                page[10] = (uint8_t)(count & 0xff);
                page[11] = (uint8_t)(count >> 8);
                memset(page + 12, 0, 4);
                for (size_t i = 0; i < count; i++) {
                        memcpy(page + PAGE_HEAD + i * PAGE_REF, below[first + i].hash.b, DIGEST_BYTES);
                        put_u64(page + PAGE_HEAD + i * PAGE_REF + DIGEST_BYTES, below[first + i].bytes);
                        sum += below[first + i].bytes;
                }
                size_t bytes = PAGE_HEAD + count * PAGE_REF;
                struct up made = { .bytes = sum };
                sha256(page, bytes, &made.hash);
                int r = sink ? sink->page(sink, &made.hash, page, bytes, level) : 0;
                if (r < 0)
                        return r;
                below[k] = made;
        }
        return 0;
}

int blocklist_content(const struct blocklist *l, struct page_sink *sink, struct content *ret) {
        struct content c = { .size = l->size, .param = l->param ? l->param : 1 };
        if (l->n <= 1) {
                if (l->n == 1)
                        c.root = l->refs[0].hash;
                *ret = c;
                return 0;
        }
        _cleanup_free_ struct up *ups = reallocarray(NULL, l->n, sizeof *ups);
        _cleanup_free_ uint8_t *page = malloc(LIST_PAGE_BYTES_MAX);
        if (!ups || !page)
                return -ENOMEM;
        for (size_t i = 0; i < l->n; i++)
                ups[i] = (struct up){ l->refs[i].hash, l->refs[i].bytes };
        size_t n = l->n;
        do {
                if (++c.depth > DEPTH_MAX)
                        return -EFBIG;
                int r = level_write(ups, n, c.depth, c.param, page, sink);
                if (r < 0)
                        return r;
                n = (n + LIST_FANOUT - 1) / LIST_FANOUT;
        } while (n > 1);
        c.root = ups[0].hash;
        *ret = c;
        return 0;
}

int list_page_parse(const void *p, size_t n, struct list_page *ret) {
        const uint8_t *at = p;
        if (n < PAGE_HEAD + PAGE_REF || n > LIST_PAGE_BYTES_MAX || memcmp(at, page_magic, 8) != 0)
                return -EBADMSG;
        size_t count = (size_t)at[10] | (size_t)at[11] << 8;
        if (at[8] < 1 || at[8] > DEPTH_MAX || at[9] == 0 || memcmp(at + 12, "\0\0\0\0", 4) != 0)
                return -EBADMSG;
        if (count < 1 || count > LIST_FANOUT || n != PAGE_HEAD + count * PAGE_REF)
                return -EBADMSG;
        uint64_t below_max = BLOCK_BYTES_MAX; /* what one reference of this level can hold */
        for (unsigned i = 1; i < at[8]; i++)
                below_max *= LIST_FANOUT;
        for (size_t i = 0; i < count; i++) {
                uint64_t bytes = get_u64(at + PAGE_HEAD + i * PAGE_REF + DIGEST_BYTES);
                if (bytes == 0 || bytes > below_max)
                        return -EBADMSG;
        }
        ret->level = at[8];
        ret->param = at[9];
        ret->n = count;
        for (size_t i = 0; i < count; i++) {
                memcpy(ret->hash[i].b, at + PAGE_HEAD + i * PAGE_REF, DIGEST_BYTES);
                ret->bytes[i] = get_u64(at + PAGE_HEAD + i * PAGE_REF + DIGEST_BYTES);
        }
        return 0;
}

struct loading {
        struct page_get *get;
        uint8_t param;
        size_t max_refs;
        struct blocklist *list;
};

/* Loads what is below the page `hash` of `level`; it must hold `bytes`; last: it is the last page of its level. */
static int load_page(struct loading *w, const struct digest *hash, uint8_t level, uint64_t bytes, bool last, bool root) {
        const void *raw;
        size_t raw_n;
        int r = w->get->page(w->get, hash, &raw, &raw_n);
        if (r < 0)
                return r;
        struct digest got;
        sha256(raw, raw_n, &got);
        if (!digest_equal(&got, hash))
                return -EBADMSG;
        _cleanup_free_ struct list_page *page = malloc(sizeof *page);
        if (!page)
                return -ENOMEM;
        r = list_page_parse(raw, raw_n, page);
        if (r < 0)
                return r;
        if (page->level != level || page->param != w->param || (!last && page->n != LIST_FANOUT) || (root && page->n < 2))
                return -EBADMSG;
        uint64_t sum = 0;
        for (size_t i = 0; i < page->n; i++) /* at most 2^10 x 2^41: no overflow */
                sum += page->bytes[i];
        if (sum != bytes)
                return -EBADMSG;
        for (size_t i = 0; i < page->n; i++) {
                if (level > 1) {
                        r = load_page(w, &page->hash[i], level - 1, page->bytes[i], last && i + 1 == page->n, false);
                } else {
                        struct blockref ref = { page->hash[i], (uint32_t)page->bytes[i] };
                        r = w->list->n >= w->max_refs ? -EFBIG : blocklist_add(w->list, &ref);
                }
                if (r < 0)
                        return r;
        }
        return 0;
}

int blocklist_load(const struct content *content, struct page_get *get, size_t max_refs, struct blocklist *ret) {
        struct blocklist list = { .param = content->param };
        int r = 0;
        if (content->depth > DEPTH_MAX || content->param == 0)
                return -EBADMSG;
        if (content->size == 0) {
                if (content->depth != 0 || !digest_is_zero(&content->root))
                        return -EBADMSG;
        } else if (content->depth == 0) {
                if (content->size > BLOCK_BYTES_MAX)
                        return -EBADMSG;
                struct blockref ref = { content->root, (uint32_t)content->size };
                r = max_refs < 1 ? -EFBIG : blocklist_add(&list, &ref);
        } else {
                struct loading w = { get, content->param, max_refs, &list };
                r = load_page(&w, &content->root, content->depth, content->size, true, true);
        }
        if (r < 0) {
                blocklist_free(&list);
                return r;
        }
        *ret = list;
        return 0;
}
