/* SPDX-License-Identifier: Apache-2.0 */
/* blob_adopt.c: contents whose bytes are here already, because they were written here.
 *
 * A large stage file becomes the blob's file by a rename: no byte is read. Its blocks are PRESENT and not CHECKED: the first use of each reads it whole, compares
 * the SHA-256 that the server was given, and writes the sums; so what rotted in the stage after it was cut is found out and fetched. The room is added, not taken:
 * the bytes are on the disk under the stage's account, which gives them back right after. What the file holds outside the present blocks is punched.
 *
 * Until the handover (struct blobs_handover) readers have the file's bytes by a descriptor of the stage; after it they come here. Each block is BUSY at that moment, so that they wait
 * instead of fetching, and none can be evicted before: at no time does anybody read a hole.
 *
 * A blob of that content that has blocks already (somebody else wrote the same, or it was read meanwhile) keeps them and its file; missing ones are copied. Small
 * contents go into the pack block by block, hashed here, as they are short. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/digest.h"
#include "base/io.h"
#include "blob_priv.h"

static bool has(const uint8_t *bitmap, size_t i) {
        return bitmap[i / 8] >> (i % 8) & 1;
}

/* The blob with its list. */
static int blob_with_list(struct blobs *b, const struct content *content, const struct blocklist *list, struct blob **ret) {
        struct content proof;
        int r = blocklist_content(list, NULL, &proof);
        if (r < 0)
                return r;
        if (!content_equal(&proof, content))
                return -EINVAL;
        _cleanup_blob_ struct blob *blob = NULL;
        r = blob_get(b, content, &blob);
        if (r < 0)
                return r;
        struct blocklist copy = { .param = list->param };
        for (size_t i = 0; r == 0 && i < list->n; i++)
                r = blocklist_add(&copy, &list->refs[i]);
        if (r == 0) {
                LOCK_SCOPE(&blob->lock);
                if (!blob->list_known)
                        r = blob_set_list_locked(blob, &copy);
        }
        blocklist_free(&copy);
        if (r == 0)
                *ret = steal_ptr(blob);
        return r;
}

static bool claim(struct blob *blob, size_t i) {
        LOCK_SCOPE(&blob->lock);
        if (blob->state[i] & (BS_PRESENT | BS_BUSY | BS_MEM))
                return false;
        block_state_locked(blob, i, 0, BS_BUSY);
        return true;
}

static void unclaim_quietly(struct blob *blob, size_t i) {
        LOCK_SCOPE(&blob->lock);
        block_state_locked(blob, i, BS_BUSY, 0);
}

/* One block from memory, hashed; one that is wrong is left out. */
static void adopt_block(struct blob *blob, size_t i, const void *bytes) {
        struct digest got;
        sha256(bytes, blob->list.refs[i].bytes, &got);
        if (!digest_equal(&got, &blob->list.refs[i].hash)) {
                counter_add(blob->owner->counters, corruptions_found, 1);
                return;
        }
        if (claim(blob, i))
                (void)(block_store(blob, i, bytes) < 0); /* no room: it is only a cache */
}

int blobs_adopt_bytes(struct blobs *b, const struct content *content, const struct blocklist *list, const void *bytes) {
        _cleanup_blob_ struct blob *blob = NULL;
        if (content->size == 0)
                return 0;
        int r = blob_with_list(b, content, list, &blob);
        if (r < 0)
                return r;
        for (size_t i = 0; i < blob->list.n; i++)
                adopt_block(blob, i, (const uint8_t *)bytes + blob->starts[i]);
        blob_kick(blob);
        return 0;
}

/* Nobody needs the file; it goes back to the pool. */
static int file_back(struct blobs *b, const char *path, struct blobs_handover *h) {
        if (h)
                h->now(h);
        return blob_files_unlend(b->files, path);
}

/* Reads block after block out of the file and stores those that are missing; the file goes back to the pool. */
static int adopt_copies(struct blob *blob, const char *path, const uint8_t *present, struct blobs_handover *h) {
        struct blobs *b = blob->owner;
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ uint8_t *buf = malloc(BLOCK_BYTES_MAX);
        if (fd < 0)
                return -errno;
        if (!buf)
                return -ENOMEM;
        for (size_t i = 0; i < blob->list.n; i++)
                if (has(present, i) && pread_full(fd, buf, blob->list.refs[i].bytes, blob->starts[i]) == 0)
                        adopt_block(blob, i, buf);
        blob_kick(blob);
        return file_back(b, path, h);
}

/* Ranges without a present block leave the disk. The descriptor is ours alone yet. */
static void punch_rest(struct blob *blob, int fd, const uint8_t *present) {
        uint64_t at = 0, end = (blob->content.size + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE;
        for (size_t i = 0; i <= blob->list.n; i++) {
                if (i < blob->list.n && !has(present, i))
                        continue;
                uint64_t upto = i < blob->list.n ? blob->starts[i] / ROOM_PAGE * ROOM_PAGE : end;
                if (upto > at)
                        (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(upto - at));
                if (i < blob->list.n)
                        at = (blob->starts[i + 1] + ROOM_PAGE - 1) / ROOM_PAGE * ROOM_PAGE;
        }
}

int blobs_adopt_file(struct blobs *b, const struct content *content, const struct blocklist *list, const char *path, const uint8_t *present, struct blobs_handover *h) {
        if (content->size == 0)
                return file_back(b, path, h);
        _cleanup_blob_ struct blob *blob = NULL;
        int r = blob_with_list(b, content, list, &blob);
        if (r < 0)
                return r;
        bool any = false;
        for (size_t i = 0; i < blob->list.n; i++)
                any |= has(present, i);
        if (!any)
                return file_back(b, path, h);
        if (content->size < PACK_CONTENT_MAX)
                return adopt_copies(blob, path, present, h);
        /* Take the file over only if nothing is there or coming; claim everything so that it stays so. */
        bool empty;
        {
                LOCK_SCOPE(&blob->lock);
                empty = blob->n_present == 0 && blob->n_busy == 0 && blob->file == 0;
                for (size_t i = 0; empty && i < blob->list.n; i++)
                        block_state_locked(blob, i, 0, BS_BUSY);
        }
        if (!empty)
                return adopt_copies(blob, path, present, h);
        uint32_t number;
        int data_fd, sums_fd;
        r = blob_files_adopt(b->files, path, content->size, &number, &data_fd, &sums_fd);
        if (r < 0) {
                for (size_t i = 0; i < blob->list.n; i++)
                        unclaim_quietly(blob, i);
                blob_kick(blob);
                return r;
        }
        if (h)
                h->now(h);
        punch_rest(blob, data_fd, present);
        uint64_t charge = FILE_CHARGE;
        for (size_t i = 0; i < blob->list.n; i++)
                if (has(present, i))
                        charge += block_charge(blob, i);
        room_add(&b->room, charge, false);
        {
                LOCK_SCOPE(&blob->lock);
                blob->file = number;
                blob->data_fd = data_fd;
                blob->sums_fd = sums_fd;
                LOCK_SCOPE(&b->lru_lock);
                for (size_t i = 0; i < blob->list.n; i++) {
                        bool there = has(present, i);
                        if (there && lru_reserve(b->lru) == 0)
                                lru_add(b->lru, (struct lru_block){ blob->id, (uint32_t)i }, block_hash32(blob, i), (uint32_t)block_charge(blob, i));
                        block_state_locked(blob, i, BS_BUSY, there ? BS_PRESENT : 0);
                }
        }
        blob_mark_dirty(blob);
        blob_kick(blob);
        if (room_over(&b->room)) /* the stage gave its room back first, and somebody took it */
                (void)(blobs_make_room(b, 0, false) < 0);
        return 0;
}
