/* SPDX-License-Identifier: Apache-2.0 */
/* file_recover.c: what recovery (cache.c) writes into the logs of stages, and what it brings to lost+found/. One thread, no lock held. */
#include <inttypes.h>

#include "base/log.h"
#include "file_priv.h"

bool files_rescued(struct files *fs, struct stage *st, bool note) {
        int r = stage_salvage(st, fs->lost_dir);
        if (r == 0)
                return true;
        log_error("cache recover gen=%" PRIu64 " salvage error=%s: it stays, and is tried again", st->gen, err_name(r));
        st->rescue = true;
        if (note) { /* else the next start asks the tree, which knows it no more */
                LOCK_SCOPE(&st->io);
                struct stage_header h = st->head;
                uint8_t b[STAGE_HEADER_BYTES];
                h.ino = STAGE_NOBODY;
                stage_header_encode(&h, b);
                r = stage_note(st, LOG_REASSIGN, 0, 0, 0, 0, b, sizeof b);
                if (r < 0)
                        log_error("cache recover gen=%" PRIu64 " note error=%s", st->gen, err_name(r));
        }
        return false;
}

void files_note_moved(struct files *fs) {
        for (struct stage *st; (st = fs->moved);) {
                fs->moved = st->moved_next;
                lock_take(&st->io);
                uint8_t b[STAGE_HEADER_BYTES];
                stage_header_encode(&st->head, b);
                lock_take(&st->lock);
                bool gone = st->state == STAGE_GONE;
                lock_drop(&st->lock);
                st->moved = false;
                int r = gone ? 0 : stage_note(st, LOG_REASSIGN, 0, 0, 0, 0, b, sizeof b);
                lock_drop(&st->io);
                if (r < 0)
                        log_warn("cache recover gen=%" PRIu64 " reassign_note error=%s", st->gen, err_name(r));
                stage_put(st);
        }
}

void files_forget_moved(struct files *fs) {
        for (struct stage *st; (st = fs->moved);) {
                fs->moved = st->moved_next;
                stage_put(st);
        }
}
