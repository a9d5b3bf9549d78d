/* SPDX-License-Identifier: Apache-2.0 */
/* file_open.c: handles come and go.
 *
 * An opener and a transaction that changes the content of the same node (a version from elsewhere, a conflict that ends) can meet at any moment. The opener counts itself
 * (f->opening), then, under f->lock, reads the row by tree_get_open; the transaction notes the ino, then asks file_is_open, and lets those go that have noticed the note when it has ended:
 *
 *      counted before the question    the incarnation grows; the opener is -ESTALE if it reads the new row, else its handle is of the old incarnation and keeps its bytes
 *      counted after the question     the opener waits for the end and reads the new row
 *
 * So a file with handles shows one content, and its row either has that content or another incarnation. Without handles a file is what its row says, which the first
 * opener sees to (file_refresh): bytes of ours that are on the server but not yet a blob are right only as long as the row has that very content. The last handle (or
 * opener that failed) sees to what ended while it was there (reconcile).
 *
 * The row is read under f->lock, as contents are sealed under it: a row from before a seal names a stage that is only a layer by now, and a stack made from that row would show old bytes
 * and put the newest ones aside. No transaction needs f->lock to come to its end.
 *
 * f->lock guards the stack, fs->lock (a leaf) the counts. */
#include <assert.h>

#include "base/log.h"
#include "file_priv.h"

/* The row says what the file is; ours may be older if no handle held it. */
static int file_refresh(struct file *f, const struct node *node, bool held) {
        bool stale = !f->loaded;
        if (f->loaded && !held && f->top) {
                lock_take(&f->top->lock);
                /* on the server already, but not yet a blob: right only as long as the row has that very content */
                bool shows = node->gen ? f->top->gen == node->gen : f->top->committed && content_equal(&f->top->content, &node->content);
                stale = f->top->state != STAGE_OPEN && f->top->queued && !shows;
                lock_drop(&f->top->lock);
        } else if (f->loaded && !held) {
                stale = node->gen != 0 || !content_equal(&f->content, &node->content);
        }
        return stale ? file_load_locked(f, node) : 0;
}

/* Without handles a file is what its row says: layers that the row no longer knows go. f->lock held. */
static int reconcile(struct file *f) {
        struct node node;
        struct files *fs = f->fs;
        lock_take(&fs->lock);
        bool held = f->handles > 0 || f->opening > 0;
        lock_drop(&fs->lock);
        if (held || !f->top)
                return 0;
        int r = tree_get(fs->c->tree, f->ino, &node);
        if (r == -ENOENT) {
                file_drop_stack(f, NULL);
                return 0;
        }
        if (r < 0)
                return r;
        lock_take(&f->top->lock);
        bool open = f->top->state == STAGE_OPEN, failed = f->top->error != 0, queued = f->top->queued && !f->top->committed; /* committed: becomes a blob by itself */
        lock_drop(&f->top->lock);
        bool gone = node.unlinked && !node.taken; /* taken: by the server, while it was written here: it comes back */
        if (open ? gone : queued && (node.gen == 0 || gone))
                file_drop_stack(f, &node);
        else if (open && !failed) { /* it has a name again */
                uint64_t gen;
                r = file_seal(f, &gen);
        }
        return r;
}

int file_open(struct cache *c, uint64_t ino, uint16_t incarnation, bool write, bool truncate, struct file **ret) {
        struct files *fs = c->files;
        if (write && fs->cfg.read_only)
                return -EROFS;
        for (int round = 0; round < 16; round++) {
                struct node node;
                struct file *f = file_get_or_new(fs, ino, incarnation);
                if (!f)
                        return -ENOMEM;
                lock_take(&fs->lock);
                f->opening++; /* before the row is read: see tree_get_open */
                lock_drop(&fs->lock);
                lock_take(&f->lock); /* and the row under it: a release that seals meanwhile would make the row older than the file */
                int r = tree_get_open(c->tree, ino, &node);
                if (r == 0 && node.kind != NODE_FILE)
                        r = node.kind == NODE_DIR ? -EISDIR : -EINVAL;
                if (r == 0 && node.incarnation != incarnation)
                        r = -ESTALE;
                lock_take(&fs->lock);
                bool held = f->handles > 0;
                lock_drop(&fs->lock);
                if (r == 0)
                        r = f->ino == ino && f->incarnation == incarnation ? file_refresh(f, &node, held) : -EAGAIN;
                lock_take(&fs->lock);
                f->opening--;
                if (r == 0) {
                        f->handles++;
                        f->writers += write;
                }
                bool look = r < 0 && r != -EAGAIN && f->layered; /* what ended meanwhile was left to us */
                lock_drop(&fs->lock);
                if (look && reconcile(f) < 0)
                        log_debug("file ino=%llu reconcile failed", (unsigned long long)ino);
                lock_drop(&f->lock);
                if (r == 0 && truncate) {
                        r = file_set_size(f, 0);
                        if (r < 0) {
                                file_release(f, write);
                                return r;
                        }
                }
                if (r == 0) {
                        *ret = f;
                        return 0;
                }
                file_put(f);
                if (r != -EAGAIN)
                        return r;
                if (round == 15)
                        log_warn("file ino=%llu gen=%llu has no stage", (unsigned long long)ino, (unsigned long long)node.gen);
        }
        return -EIO;
}

void file_release(struct file *f, bool write) {
        struct files *fs = f->fs;
        lock_take(&f->lock);
        lock_take(&fs->lock);
        assert(f->handles > 0 && (!write || f->writers > 0));
        f->handles--;
        f->writers -= write;
        bool last_writer = write && f->writers == 0, last = f->handles == 0, open = f->has_open;
        if (last && open)
                file_name_set_locked(f, NAME_UNKNOWN); /* what is left may be given up (file_commit.c) */
        lock_drop(&fs->lock);
        int r = 0;
        if (last_writer && open) {
                uint64_t gen;
                r = file_seal(f, &gen);
        }
        lock_take(&fs->lock);
        bool look = last && f->layered; /* one SELECT: unlinked or dropped meanwhile? */
        lock_drop(&fs->lock);
        if (r == 0 && look)
                r = reconcile(f);
        if (r < 0)
                log_warn("file ino=%llu release error=%s", (unsigned long long)f->ino, err_name(r));
        lock_drop(&f->lock);
        file_put(f);
}

void file_forget(struct cache *c, uint64_t ino) {
        struct file *f = file_find(c->files, ino, -1);
        if (!f)
                return;
        lock_take(&f->lock);
        int r = reconcile(f);
        lock_drop(&f->lock);
        if (r < 0)
                log_warn("file ino=%llu forget error=%s", (unsigned long long)ino, err_name(r));
        file_put(f);
}
