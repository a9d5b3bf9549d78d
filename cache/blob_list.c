/* SPDX-License-Identifier: Apache-2.0 */
/* blob_list.c: the block list of a content alone, without a byte of it.
 *
 * A reader gets the list together with the range that it wants (blob_fetch.c). Who only wants to name the blocks (an upload of what was copied, or edited in one place) has no use for bytes. List pages
 * are named by hash like blocks, so they are asked for as such, the root first, then what it names. The answers do not go through the blob's states: nothing of it is claimed.
 *
 * Blocking, for workers. The source ends each fetch in its own time; past the deadline it is cancelled. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "blob_priv.h"

struct page { struct page *next; struct digest hash; size_t n; uint8_t bytes[]; };
struct pages { struct page_get get; struct blobs *b; int64_t deadline_ms; struct page *first; };
struct asked {
        struct fetch fetch;
        struct blobs *b;
        struct lock lock; struct cond cond;
        struct page *page;            /* lock */
        bool over; int err;           /* lock */
};

static int page_came(struct fetch *f, const struct digest *hash, const void *p, size_t n) {
        struct asked *a = f->owner;
        struct digest got;
        sha256(p, n, &got);
        if (!digest_equal(&got, hash) || !digest_equal(hash, f->hashes) || n > BLOCK_BYTES_MAX) {
                counter_add(a->b->counters, corruptions_found, 1);
                return -EBADMSG;
        }
        struct page *page = malloc(sizeof *page + n);
        if (!page)
                return -ENOMEM;
        *page = (struct page){ .hash = *hash, .n = n };
        memcpy(page->bytes, p, n);
        LOCK_SCOPE(&a->lock);
        free(a->page);
        a->page = page;
        return 0;
}

static void page_done(struct fetch *f, int err) {
        struct asked *a = f->owner;
        LOCK_SCOPE(&a->lock);
        a->over = true;
        a->err = err;
        cond_signal(&a->cond);
}

static void inflight(struct blobs *b, int n) {
        LOCK_SCOPE(&b->wait_lock);
        b->inflight += (size_t)n;
        if (b->inflight == 0)
                cond_broadcast(&b->wait_idle);
}

static int ask(struct pages *p, const struct digest *hash, struct page **ret) {
        struct blobs *b = p->b;
        struct source *source = atomic_load(&b->source);
        struct asked a = { .fetch = { .hashes = hash, .n_hashes = 1, .block = page_came, .done = page_done }, .b = b };
        a.fetch.owner = &a;
        if (!source)
                return -EHOSTDOWN;
        lock_init(&a.lock, "list page", RANK_QUEUE);
        cond_init(&a.cond);
        inflight(b, 1);
        int r = source->fetch(source, &a.fetch);
        if (r == 0) {
                bool cancelled = false;
                lock_take(&a.lock);
                while (!a.over)
                        if (cancelled) {
                                cond_wait(&a.cond, &a.lock); /* done comes */
                        } else if (cond_wait_until(&a.cond, &a.lock, p->deadline_ms) < 0 && !a.over) {
                                lock_drop(&a.lock);
                                source->cancel(source, &a.fetch);
                                cancelled = true;
                                lock_take(&a.lock);
                        }
                r = a.page ? 0 : a.err < 0 ? (a.err == -ECANCELED ? -ETIMEDOUT : a.err) : -EIO;
                if (r == 0)
                        *ret = steal_ptr(a.page);
                lock_drop(&a.lock);
        }
        inflight(b, -1);
        cond_destroy(&a.cond);
        lock_destroy(&a.lock);
        return r;
}

static int page_get(struct page_get *g, const struct digest *hash, const void **ret_bytes, size_t *ret_n) {
        struct pages *p = container_of(g, struct pages, get);
        struct page *page = NULL;
        int r = ask(p, hash, &page);
        if (r < 0)
                return r;
        page->next = p->first; /* as long as the list is being made */
        p->first = page;
        *ret_bytes = page->bytes;
        *ret_n = page->n;
        return 0;
}

int blob_fetch_list(struct blob *blob, int64_t deadline_ms) {
        struct blobs *b = blob->owner;
        lock_assert_none();
        {
                LOCK_SCOPE(&blob->lock);
                if (blob->list_known || blob->list_wanted) /* wanted: a reader's fetch brings it */
                        return blob->list_known ? 0 : -EBUSY;
        }
        if (b->by_hand)
                return -EHOSTDOWN;
        struct pages pages = { { page_get }, b, deadline_ms, NULL };
        struct blocklist list = { 0 };
        int r = blocklist_load(&blob->content, &pages.get, SIZE_MAX, &list);
        for (struct page *page = pages.first, *next; page; page = next) {
                next = page->next;
                free(page);
        }
        if (r == 0) {
                LOCK_SCOPE(&blob->lock);
                r = blob->list_known ? 0 : blob->list_wanted ? -EBUSY : blob_set_list_locked(blob, &list);
        }
        blocklist_free(&list);
        return r;
}
