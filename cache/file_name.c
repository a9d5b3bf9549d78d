/* SPDX-License-Identifier: Apache-2.0 */
/* file_name.c: what the stages of a file say about themselves follows its name.
 *
 * A stage's header names node, parent, name and base version as they were at its first write. Those are read, but for the base of what is not queued, in one case only: the tree file is
 * lost, and with it the outbox row that knows better. A rename therefore adds a REASSIGN record to the logs of the file's stages: without it what was saved as `.f.tmp` and renamed over `f` would come back as `.f.tmp`, beside
 * an old `f`. After a save over a file the record carries the id of the node that was replaced and, as the base, the version that it had. A stage whose content is not queued yet (somebody writes on, also
 * after the freeze that came before the rename) is the next version after that save: its header is asked for its base when it is queued, and that is the save.
 *
 * Locks: the file's, then each stage's io; the record is accepted when it is written (durable with the next sync, as the rename itself). A record that cannot be written costs a name
 * after a loss, not bytes: it is logged and forgotten. */
#include <inttypes.h>

#include "base/log.h"
#include "file_priv.h"

void file_renamed(struct cache *c, const struct node *node, const struct node *replaced) {
        struct files *fs = c->files;
        struct stage_header now;
        if (node->ino == 0 || node->kind != NODE_FILE)
                return;
        struct file *f = file_find(fs, node->ino, -1);
        if (!f)
                return;
        int r = file_stage_identity(fs, node, &now);
        lock_take(&f->lock);
        for (struct stage *st = r == 0 ? f->top : NULL; st; st = st->below) {
                LOCK_SCOPE(&st->io);
                bool other = !id_equal(&st->head.node, &now.node);
                lock_take(&st->lock);
                bool queued = st->queued;
                lock_drop(&st->lock);
                st->head.node = now.node;
                st->head.parent = now.parent;
                memcpy(st->head.name, now.name, sizeof now.name);
                if (other && replaced && replaced->ino)
                        st->head.base_version = queued ? replaced->version : node->version;
                if (!st->logged)
                        continue;
                uint8_t b[STAGE_HEADER_BYTES];
                stage_header_encode(&st->head, b);
                int k = stage_note(st, LOG_REASSIGN, 0, 0, 0, 0, b, sizeof b);
                if (k < 0)
                        log_debug("file gen=%" PRIu64 " rename_note error=%s", st->gen, err_name(k));
        }
        lock_drop(&f->lock);
        file_put(f);
}
