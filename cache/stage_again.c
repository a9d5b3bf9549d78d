/* SPDX-License-Identifier: Apache-2.0 */
/* stage_again.c: a sealed stage whose sync failed is written once more.
 *
 * After an fsync that failed nobody knows what of the file is on the platter, and the kernel, which has told it once, holds for written what it could not write. So nothing of that generation is trusted
 * (stage_sync.c). But its bytes have sums: what is read and fits them is what the program wrote, wherever the kernel has it from. Before such a generation is named to the server
 *
 *   small   it moves to a file of its own, as one that keeps an old segment (stage_own.c): every payload is compared on the way
 *   large   its pages are compared and written over themselves, then its log, record by record: all of it is dirty again, and has to be written by the next sync (a drive takes another sector for
 *           one that it could not write)
 *
 * and it is synced as if it were new. If that succeeds it is as good as any other one. If not, or if bytes are not what was written, it stays what it was: an error, and the next try does the same.
 *
 * A sync that had begun before somebody else's failed may still be at work, and may hear of what is being written here: then it has not been written either, and this was no try.
 *
 * Nothing that is sealed changes but by notes; `io` is held for one batch of pages at a time, and whether the file is still ours is asked under it: who gives it back (stage_release_disk), or makes it a
 * blob's, notes so in the log under `io` before. Nobody else begins to sync a stage that is not trusted. */
#include "stage_core.h"

#include <stdlib.h>

#include "base/io.h"
#include "base/log.h"

#define BATCH_PAGES 256u
#define SMALL_CHARGE (LOG_CHARGE + SMALL_STAGE_BYTES + (SMALL_STAGE_RECORDS + STAGE_SEGS_MAX) * 4 * EXTENT_PAGE)

/* io held */
static bool ours(struct stage *st) {
        LOCK_SCOPE(&st->lock);
        return st->state == STAGE_SEALED && st->untrusted && !st->committed && !st->log.released && !st->data_gone;
}

static int error_of(struct stage *st, int error) {
        LOCK_SCOPE(&st->lock);
        int before = st->error;
        st->error = error;
        return before;
}

static int move_small(struct stage *st) {
        struct stage_room room = { .fd = -1, .want = SMALL_CHARGE, .want_file = true };
        int r = stage_room_get(st->owner, &room);
        if (r == 0) {
                LOCK_SCOPE(&st->io);
                if (!ours(st))
                        r = -EIO;
                else if (!st->large) {
                        int error = error_of(st, 0); /* it is not one of the new copy */
                        r = stage_grow(st, &room);
                        (void)error_of(st, error);
                }
        }
        stage_room_end(st->owner, &room);
        return r;
}

static int write_pages(struct stage *st) {
        uint64_t page = 0;
        int r = 1;
        while (r > 0) {
                LOCK_SCOPE(&st->io);
                r = ours(st) ? sums_again(st, &page, BATCH_PAGES) : -EIO;
        }
        return r;
}

struct writer { struct stage *st; uint64_t seq; };
static int write_record(void *arg, const struct slog_entry *e, uint64_t pos, const uint8_t *payload) {
        struct writer *w = arg;
        if (pos >= w->st->log.end)
                return 0; /* of nobody: it is not believed either */
        if (e->gen != w->st->gen || e->copy != w->st->copy || e->seq != w->seq || (e->payload_bytes && !payload))
                return -EBADMSG;
        w->seq++;
        return slog_write(w->st->log.fd, &w->st->log.salt, pos, e, payload);
}

/* io held */
static int write_log(struct stage *st) {
        struct slog_file f;
        uint8_t first[LOG_UNIT];
        uint64_t end;
        struct writer w = { .st = st };
        const struct slog_scan scan = { write_record, &w };
        int r = own_log_open(st);
        if (r == 0)
                r = slog_scan(st->log.fd, &f, &scan, &end);
        if (r == 0 && (w.seq != st->seq || !id_equal(&f.salt, &st->log.salt)))
                r = -EBADMSG;
        if (r < 0)
                return r;
        slog_file_encode(&f, first);
        return pwrite_full(st->log.fd, first, sizeof first, 0);
}

static unsigned failures(struct stage *st) {
        LOCK_SCOPE(&st->sync);
        return st->sync_failures;
}

/* It is dirty as a whole, and nothing is known to be wrong with it. before: so many syncs had failed before it was written. */
static int trust(struct stage *st, unsigned before) {
        lock_take(&st->sync);
        bool failed = st->sync_failures != before;
        if (!failed)
                st->sync_failed = false;
        lock_drop(&st->sync);
        if (failed)
                return -EIO;
        LOCK_SCOPE(&st->io);
        if (!ours(st))
                return -EIO;
        int r = write_log(st);
        if (r == 0)
                r = stage_note(st, LOG_FAILED, 0, 0, 0, 0, NULL, 0);
        if (r < 0)
                return r;
        st->untrusted = false;
        lock_take(&st->lock);
        st->error = 0;
        st->synced = 0;
        lock_drop(&st->lock);
        stage_mark_dirty(st);
        return 0;
}

int stage_again(struct stage *st) {
        lock_assert_none();
        const unsigned before = failures(st);
        lock_take(&st->io);
        bool is_ours = ours(st), large = st->large;
        lock_drop(&st->io);
        int r = !is_ours ? -EIO : large ? write_pages(st) : move_small(st);
        if (r == 0)
                r = trust(st, before);
        if (r == 0)
                r = stage_sync(st);
        if (r == 0) {
                stages_unspoil(st->owner, st->gen);
                log_info("stage gen=%llu written again after a sync that failed", (unsigned long long)st->gen);
        }
        return r == 0 || r == -ENOSPC ? r : -EIO;
}
