/* SPDX-License-Identifier: Apache-2.0 */
/* blob_fetch.c: the source's side: claims, arriving blocks and pages, the end of a fetch.
 *
 * A *fill* is one fetch under way. With a known list it claims blocks (BUSY), asks for them by hash, at most 7 MiB, and readahead rides along. With an unknown list there is at
 * most one fill for each blob: it asks for a range with all list pages in one request; pages and blocks come in any order and are held in memory by hash (bounded) until
 * the root and the pages below it are there; then the list is built and proved, the held blocks are placed, what is missing of the range is claimed as if it had been asked
 * for by hash, and readers of other ranges are driven.
 *
 *   what comes                           what happens
 *   block that hashes to its name        stored (made room for, written, summed), its readers completed
 *   wrong bytes, end with -EBADMSG       -EBADMSG to the source, counted; asked for once more after the end, then -EIO
 *   end, err 0, block not delivered      -EIO: the source does not have it
 *   end, err -EHOSTDOWN and so on        its readers get that error (-EIO if the block was here and is damaged; a worker hears the truth: it comes again, and what it works for is not damaged)
 *   end, cancelled or a prefetch         its readers, if any, get a fetch of their own
 *
 * source->fetch is called under the blob's lock, so that no reader can come between the claim and a refusal; it only queues. The source's callbacks take the lock
 * and drop it before they hash, write or complete anything. A fill is freed in its done; until then it is in blob->fills, which is why cancel
 * (under the lock) never sees a freed one. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "blob_priv.h"

int read_error(int err) {
        switch (err) {
        case -EHOSTDOWN:
        case -ETIMEDOUT:
        case -EKEYREJECTED:
        case -EINTR:
        case -ENOMEM:
                return err;
        default:
                return -EIO;
        }
}

int reader_error_locked(const struct blob *blob, const struct blob_read *r, int err) {
        if (err != -EHOSTDOWN || (r->exact && !r->crawler) || !blob->list_known)
                return err;
        size_t first, last;
        blob_range(blob, r->off, r->n, &first, &last);
        for (size_t i = first; i <= last; i++)
                if (blob->state[i] & BS_DAMAGED)
                        return -EIO;
        return err;
}

static int fill_block(struct fetch *f, const struct digest *hash, const void *p, size_t n);
static void fill_done(struct fetch *f, int err);

static struct fill *fill_new(struct blob *blob, size_t max_hashes, bool prefetch) {
        struct fill *fill = calloc(1, sizeof *fill + max_hashes * sizeof fill->hashes[0]);
        if (!fill)
                return NULL;
        if (max_hashes > 0 && !(fill->index = reallocarray(NULL, max_hashes, sizeof *fill->index))) {
                free(fill);
                return NULL;
        }
        fill->room = max_hashes;
        fill->blob = blob;
        fill->fetch = (struct fetch){ .prefetch = prefetch, .block = fill_block, .done = fill_done, .owner = fill };
        return fill;
}

static void fill_free(struct fill *fill) {
        free(fill->index);
        free(fill);
}

/* Asks the source; on refusal the claims end and the fill is freed. */
static int fill_start_locked(struct fill *fill) {
        struct blob *blob = fill->blob;
        struct blobs *b = blob->owner;
        struct source *source = atomic_load(&b->source);
        fill->next = blob->fills;
        blob->fills = fill;
        (void)blob_ref(blob);
        {
                LOCK_SCOPE(&b->wait_lock);
                b->inflight++;
        }
        int r = source ? source->fetch(source, &fill->fetch) : -EHOSTDOWN;
        if (r == 0) {
                if (fill->list)
                        blob->list_wanted = true;
                return 0;
        }
        for (size_t i = 0; i < fill->n; i++)
                block_state_locked(blob, fill->index[i], BS_BUSY, 0);
        blob->fills = fill->next;
        fill_free(fill);
        atomic_fetch_sub(&blob->refs, 1); /* not the last: the caller has one */
        LOCK_SCOPE(&b->wait_lock);
        if (--b->inflight == 0)
                cond_broadcast(&b->wait_idle);
        return read_error(r);
}

static int want_list_locked(struct blob *blob, uint64_t off, uint64_t n, enum want want) {
        if (blob->list_wanted)
                return 0;
        struct fill *fill = fill_new(blob, 0, want == WANT_PREFETCH);
        if (!fill)
                return -ENOMEM;
        if (off == 0 && want != WANT_COLD)
                n = MAX(n, MIN(FIRST_RANGE_BYTES, blob->content.size));
        fill->list = true;
        fill->cold = want == WANT_COLD;
        fill->fetch.content = blob->content;
        fill->fetch.pages = true;
        fill->fetch.offset = off;
        fill->fetch.bytes = MIN(n, FILL_BYTES_MAX);
        return fill_start_locked(fill);
}

int blob_want_locked(struct blob *blob, uint64_t off, uint64_t n, uint64_t ahead, enum want want) {
        if (!blob->list_known)
                return want_list_locked(blob, off, n, want);
        size_t first, last, demanded;
        const bool prefetch = want == WANT_PREFETCH;
        ahead = MIN(ahead, blob->content.size - (off + n));
        blob_range(blob, off, n, &first, &demanded);
        last = demanded;
        while (last + 1 < blob->list.n && blob->starts[last + 1] < off + n + ahead)
                last++;
        for (size_t i = first; i <= last;) {
                struct fill *fill = NULL;
                uint64_t bytes = 0;
                size_t n_hashes = 0;
                bool demand = false;
                for (; i <= last && bytes < FILL_BYTES_MAX; i++) {
                        const struct blockref *ref = &blob->list.refs[i];
                        if (blob->state[i] & (BS_PRESENT | BS_MEM | BS_BUSY) || (i > demanded && block_has_twin(blob, i)))
                                continue;
                        if (bytes > 0 && bytes + ref->bytes > FILL_BYTES_MAX)
                                break;
                        if (!fill && !(fill = fill_new(blob, MIN(last - i + 1, (size_t)4096), prefetch)))
                                return -ENOMEM;
                        if (fill->n == fill->room)
                                break;
                        bool known = false; /* the same block twice in one content: ask once, place twice */
                        for (size_t k = 0; k < n_hashes && !known; k++)
                                known = digest_equal(&fill->hashes[k], &ref->hash);
                        if (!known) {
                                fill->hashes[n_hashes++] = ref->hash;
                                bytes += ref->bytes;
                        }
                        block_state_locked(blob, i, 0, want == WANT_COLD ? BS_BUSY | BS_COLD : BS_BUSY);
                        fill->index[fill->n++] = (uint32_t)i;
                        demand |= i <= demanded;
                }
                if (!fill)
                        break;
                fill->fetch.hashes = fill->hashes;
                fill->fetch.n_hashes = n_hashes;
                fill->fetch.prefetch = prefetch || !demand;
                int r = fill_start_locked(fill);
                if (r < 0)
                        return demand || prefetch ? r : 0;
        }
        return 0;
}

void blob_cancel_fills_locked(struct blob *blob) {
        struct source *source = atomic_load(&blob->owner->source);
        for (struct fill *fill = blob->fills; source && fill; fill = fill->next)
                if (!fill->fetch.prefetch && !fill->cancelled) {
                        fill->cancelled = true;
                        source->cancel(source, &fill->fetch);
                }
}

/* ---- what comes ---- */

struct held_pages { struct page_get get; struct blob *blob; };

static int held_page(struct page_get *g, const struct digest *hash, const void **ret_bytes, size_t *ret_n) {
        struct held *h = held_find_locked(container_of(g, struct held_pages, get)->blob, hash);
        if (!h)
                return -ENODATA;
        *ret_bytes = h->data;
        *ret_n = h->bytes;
        return 0;
}

/* Is it worth trying? Trying hashes every page, so only when as many are held as the root names. */
static bool pages_complete_locked(struct blob *blob) {
        struct held *root = held_find_locked(blob, &blob->content.root);
        if (!root)
                return false;
        if (blob->content.depth == 1)
                return true;
        _cleanup_free_ struct list_page *page = malloc(sizeof *page);
        if (!page || list_page_parse(root->data, root->bytes, page) < 0)
                return true; /* let the load say what is wrong */
        for (size_t i = 0; i < page->n; i++)
                if (!held_find_locked(blob, &page->hash[i]))
                        return false;
        return true;
}

/* Takes over blocks of the list that came before it; returns those claimed here, to be stored without the lock. */
static struct held *place_held_locked(struct blob *blob) {
        struct held *all = blob->held, *placed = NULL, *next;
        blob->held = NULL;
        blob->n_held = 0;
        for (; all; all = next) {
                next = all->next;
                all->next = placed;
                placed = all;
        }
        return placed;
}

/* Claims every free place of this hash; returns the number of the first one claimed after `from`, or n. */
static size_t claim_next_locked(struct blob *blob, const struct digest *hash, size_t bytes, size_t from, bool cold) {
        for (size_t i = from; i < blob->list.n; i++)
                if (blob->list.refs[i].bytes == bytes && digest_equal(&blob->list.refs[i].hash, hash) && !(blob->state[i] & (BS_PRESENT | BS_BUSY | BS_MEM))) {
                        block_state_locked(blob, i, 0, cold ? BS_BUSY | BS_COLD : BS_BUSY);
                        return i;
                }
        return blob->list.n;
}

static void store_everywhere(struct blob *blob, const struct digest *hash, const void *p, size_t n, bool cold) {
        for (size_t i = 0;; i++) {
                {
                        LOCK_SCOPE(&blob->lock);
                        i = claim_next_locked(blob, hash, n, i, cold);
                }
                if (i >= blob->list.n)
                        return;
                (void)(block_store(blob, i, p) < 0); /* not stored: its readers ask again */
        }
}

/* The list is known now: what this fill asked for as a range becomes claims. */
static void claim_range_locked(struct fill *fill) {
        struct blob *blob = fill->blob;
        size_t first, last;
        uint64_t n = MIN(fill->fetch.bytes, blob->content.size - fill->fetch.offset);
        blob_range(blob, fill->fetch.offset, n, &first, &last);
        fill->index = reallocarray(NULL, last - first + 1, sizeof *fill->index);
        if (!fill->index)
                return; /* readers claim for themselves */
        fill->room = last - first + 1;
        for (size_t i = first; i <= last; i++)
                if (!(blob->state[i] & (BS_PRESENT | BS_BUSY | BS_MEM))) {
                        block_state_locked(blob, i, 0, fill->cold ? BS_BUSY | BS_COLD : BS_BUSY);
                        fill->index[fill->n++] = (uint32_t)i;
                }
}

/* A page or block while the list is unknown. Returns true if it was taken care of. */
static bool hold_for_list(struct fill *fill, const struct digest *hash, const void *p, size_t n) {
        struct blob *blob = fill->blob;
        struct held *placed;
        {
                LOCK_SCOPE(&blob->lock);
                if (blob->list_known)
                        return false;
                if (!held_find_locked(blob, hash) && held_add_locked(blob, hash, HELD_UNPLACED, p, n) < 0) {
                        fill->dropped = true;
                        return true;
                }
                if ((n < 8 || memcmp(p, "tarnlst1", 8) != 0) || !pages_complete_locked(blob))
                        return true;
                struct held_pages pages = { { held_page }, blob };
                struct blocklist list = { 0 };
                int r = blocklist_load(&blob->content, &pages.get, SIZE_MAX, &list);
                if (r == 0)
                        r = blob_set_list_locked(blob, &list);
                blocklist_free(&list);
                if (r == -EBADMSG)
                        fill->bad++;
                if (r < 0)
                        return true;
                blob->list_bad = 0;
                placed = place_held_locked(blob);
        }
        while (placed) {
                struct held *next = placed->next;
                store_everywhere(blob, &placed->hash, placed->data, placed->bytes, fill->cold);
                atomic_fetch_sub(&blob->owner->held_bytes, placed->bytes);
                free(placed);
                placed = next;
        }
        {
                LOCK_SCOPE(&blob->lock);
                claim_range_locked(fill);
                blob->list_wanted = false;
        }
        blob_kick(blob); /* readers of other ranges */
        return true;
}

/* Takes one claim of this hash out of the fill. */
static bool take_claim_locked(struct fill *fill, const struct digest *hash, size_t bytes, uint32_t *ret) {
        for (size_t k = 0; k < fill->n; k++) {
                const struct blockref *ref = &fill->blob->list.refs[fill->index[k]];
                if (ref->bytes == bytes && digest_equal(&ref->hash, hash)) {
                        *ret = fill->index[k];
                        fill->index[k] = fill->index[--fill->n];
                        return true;
                }
        }
        return false;
}

static int fill_block(struct fetch *f, const struct digest *hash, const void *p, size_t n) {
        struct fill *fill = f->owner;
        struct blob *blob = fill->blob;
        struct blobs *b = blob->owner;
        struct digest got;
        lock_assert_none();
        sha256(p, n, &got);
        if (!digest_equal(&got, hash) || n > BLOCK_BYTES_MAX) {
                counter_add(b->counters, corruptions_found, 1);
                LOCK_SCOPE(&blob->lock);
                fill->bad++;
                return -EBADMSG;
        }
        counter_add(b->counters, blocks_fetched, 1);
        if (fill->list && hold_for_list(fill, hash, p, n)) {
                blob_drive(blob, false);
                return 0;
        }
        bool any = false;
        for (;;) {
                uint32_t i;
                {
                        LOCK_SCOPE(&blob->lock);
                        if (!take_claim_locked(fill, hash, n, &i))
                                break;
                }
                any = true;
                (void)(block_store(blob, i, p) < 0); /* unclaimed: its readers ask again */
        }
        if (!any && fill->list) /* at the edge of the range */
                store_everywhere(blob, hash, p, n, fill->cold);
        blob_drive(blob, false);
        return 0;
}

static bool covers(const struct blob *blob, const struct blob_read *r, uint32_t i) {
        return r->off < blob->starts[i + 1] && r->off + r->n > blob->starts[i];
}

/* What readers of an undelivered block get: 0 = another fetch. */
static int verdict_locked(struct fill *fill, uint32_t i, int err) {
        struct blob *blob = fill->blob;
        if (err == -ECANCELED || (err < 0 && fill->fetch.prefetch))
                return 0;
        if (err < 0)
                return read_error(err);
        if (fill->dropped)
                return 0;
        if (fill->bad > 0 && !(blob->state[i] & BS_BAD)) {
                block_state_locked(blob, i, 0, BS_BAD);
                return 0;
        }
        block_state_locked(blob, i, BS_BAD, 0);
        return -EIO;
}

static void fill_done(struct fetch *f, int err) {
        struct fill *fill = f->owner;
        struct blob *blob = fill->blob;
        struct blobs *b = blob->owner;
        struct blob_read *over = NULL, *next;
        lock_assert_none();
        {
                LOCK_SCOPE(&blob->lock);
                if (err == -EBADMSG) { /* the source passes on what a block was refused with, or saw it itself */
                        fill->bad += fill->bad == 0;
                        err = 0;
                }
                struct fill **at = &blob->fills;
                while (*at != fill)
                        at = &(*at)->next;
                *at = fill->next;
                for (size_t k = 0; k < fill->n; k++) {
                        uint32_t i = fill->index[k];
                        block_state_locked(blob, i, BS_BUSY, 0);
                        int fate = verdict_locked(fill, i, err);
                        for (struct blob_read *r = blob->waiters; fate < 0 && r; r = next) {
                                next = r->next;
                                if (!covers(blob, r, i))
                                        continue;
                                waiter_unlink_locked(blob, r);
                                r->priv = (void *)(intptr_t)reader_error_locked(blob, r, fate);
                                r->next = over;
                                over = r;
                        }
                }
                if (fill->list && !blob->list_known) {
                        int fate = err == -ECANCELED || (err < 0 && fill->fetch.prefetch) ? 0 : err < 0 ? read_error(err) : fill->bad > 0 && blob->list_bad++ == 0 ? 0 : -EIO;
                        blob->list_wanted = false;
                        held_drop_all_locked(blob);
                        for (struct blob_read *r = blob->waiters; fate < 0 && r; r = next) {
                                next = r->next;
                                waiter_unlink_locked(blob, r);
                                r->priv = (void *)(intptr_t)fate;
                                r->next = over;
                                over = r;
                        }
                        if (fate < 0)
                                blob->list_bad = 0;
                }
                if (blob->waiters)
                        blob_kick(blob);
        }
        for (; over; over = next) {
                next = over->next;
                over->done(over, (ssize_t)(intptr_t)over->priv);
        }
        fill_free(fill);
        blob_put(blob);
        LOCK_SCOPE(&b->wait_lock);
        if (--b->inflight == 0)
                cond_broadcast(&b->wait_idle);
}
