/* SPDX-License-Identifier: Apache-2.0 */
/* file_commit.c: what becomes of generations that left the outbox.
 *
 * Committed. The stage turns into the blob of the new version, without a download, in steps of which each leaves a state that recovery understands:
 *
 *   1. the layer above (if any) logs REBASE: its base is this content now       later: it no longer needs the stage to be recovered. Where that failed the stage stays, and each flush tries again
 *   2. the next flush syncs that log and the tree                                 (a power cut must not bring back an outbox row whose stage is gone)
 *   3. a worker: DONE in the stage's log; bytes to the blobs (below 1 MiB copied into a pack, else the file itself changes hands); blocks that are partly base bytes are completed
 *      while the file changes hands, before the blobs may touch a byte of it, readers are sent to the blob (struct blobs_handover); those under way notice by the stage's epoch
 *   4. the stack closes: whoever was above sits on the blob
 *   5. log and file go back to their pools, the room is discharged
 *
 * Bytes of the base that the stage does not have are found by their hash in the old blob when somebody reads them (blob.c). If anything fails in 3 only cached bytes are lost.
 *
 * A generation that two operations carry (a temporary that was saved over a file while it was on its way) is committed with the last one of them: until then the other one may have to be sent (again)
 * with these bytes. The version that a layer above is based on is an operation of its own node: an answer that is about another node (the temporary's) does not change it, else the layer
 * would be refused as based on something that its node never was.
 *
 * Moved: a conflict copy took the generation; the file with its handles is re-keyed to the new node. Dropped: the stack goes once no handle shows it.
 *
 * One retirement at a time, in commit order; fs->lock guards the list.
 *
 * How long a stage lives. Two things refer to it: a stack (the file of some open handle or of a row that shows it, a stage above it, a call under way), counted in its references; and the column
 * `gen` of the outbox, which *is* a reference, whatever node the row belongs to by now (a save over a file hands operations from one inode to another, and an unlink drops the stack of what
 * is still to be sent). So nobody decides that a stage may go. A stack that its file lets go is put on the loose list, and at each flush a stage of it goes if the list's reference is the only one
 * and no row carries its generation. The rows are asked before the sync and the stage goes after it: a power cut brings no row back whose stage is gone.
 * A generation enters the outbox only from a stack or from another row, so one that is in neither never comes back. */
#include <assert.h>
#include <stdlib.h>

#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"
#include "file_priv.h"

#define ADOPT_BYTES_MAX (1u << 20)
#define HOLES_KEPT_BYTES (4u << 20) /* of one file; blocks of zeros beyond it are fetched when somebody reads them */
#define RETIRED_MAX 64u
#define CHUNK_LATE_MS 10000
#define BASE_LATE_MS 5000 /* bytes of the base that complete a block */

/* The file whose stack holds st, locked and referenced; ret_above: the layer on it, referenced, or NULL if it is the top (or there is no file). */
static struct file *file_of_stage(struct files *fs, struct stage *st, struct stage **ret_above) {
        *ret_above = NULL;
        for (int incarnation = -1;;) {
                struct file *f = file_find(fs, stage_ino(st), incarnation);
                if (!f)
                        return NULL;
                lock_take(&f->lock);
                struct stage *above = NULL, *x = f->top ? stage_ref(f->top) : NULL;
                while (x && x != st) {
                        stage_put(above);
                        above = x;
                        x = stage_below(above);
                }
                stage_put(x);
                if (x) {
                        *ret_above = above;
                        return f;
                }
                stage_put(above);
                unsigned found = f->incarnation;
                lock_drop(&f->lock);
                file_put(f);
                if (found == 0)
                        return NULL;
                incarnation = (int)found - 1;
        }
}

/* Its log says what its header says. If that fails it goes on to name the stage below, which therefore stays (said). io held. */
static void log_rebase(struct stage *above) {
        lock_take(&above->lock);
        above->head.base_limit = above->base_limit;
        bool gone = above->state == STAGE_GONE;
        lock_drop(&above->lock);
        above->rebase_due = above->logged && !gone;
        if (!above->rebase_due)
                return;
        uint8_t b[STAGE_HEADER_BYTES];
        stage_header_encode(&above->head, b);
        int r = FAILPOINT("adopt.rebase");
        if (r == 0)
                r = stage_note(above, LOG_REBASE, 0, 0, 0, 0, b, sizeof b);
        if (r < 0)
                log_warn("file gen=%llu rebase_note error=%s", (unsigned long long)above->gen, err_name(r));
        else
                above->rebase_due = false;
}

/* version NULL: it is based on the version that it names already. */
static void note_rebase(struct stage *above, const struct content *content, const struct id *version) {
        LOCK_SCOPE(&above->io);
        above->head.base = *content;
        above->head.below_gen = 0;
        if (version)
                above->head.base_version = *version;
        log_rebase(above);
}

/* At the end of the list. fs->lock held. */
static void retire_list_locked(struct files *fs, struct retire *re) {
        re->next = NULL;
        re->n = ++fs->retire_added;
        if (fs->retire_last)
                fs->retire_last->next = re;
        else
                fs->retire_first = re;
        fs->retire_last = re;
}

void files_retire_add(struct files *fs, struct stage *st, const struct content *content, const struct id *version) {
        struct retire *re = calloc(1, sizeof *re);
        lock_take(&st->lock);
        bool again = st->committed;
        st->committed = true;
        st->version = *version;
        if (!st->chunked)
                st->content = *content;
        lock_drop(&st->lock);
        if (!re || again) {
                free(re);
                stage_put(st);
                return;
        }
        *re = (struct retire) { .stage = st, .content = *content, .version = *version };
        LOCK_SCOPE(&fs->lock);
        retire_list_locked(fs, re);
        if (!fs->dirty) {
                fs->dirty = true;
                fs->dirty_since_ms = clock_mono_ms(clock_system());
        }
        if (fs->wait_first)
                fs->kicked = true;
        cond_broadcast(&fs->work);
}

/* ---- stacks that no file holds ---- */

void files_discard(struct files *fs, struct stage *top) {
        lock_take(&fs->lock);
        bool listed = top->listed;
        if (!listed) {
                top->listed = true;
                top->due = false;
                top->chain = fs->loose;
                fs->loose = top;
                fs->discards++;
        }
        lock_drop(&fs->lock);
        if (listed)
                stage_put(top); /* a stack took it from the list and gave it back */
        else
                files_kick(fs, false);
}

/* The stage above st in a loose stack, referenced, or NULL. */
static struct stage *loose_above(struct files *fs, const struct stage *st) {
        LOCK_SCOPE(&fs->lock);
        for (struct stage *top = fs->loose; top; top = top->chain)
                for (struct stage *x = top; x->below; x = x->below)
                        if (x->below == st)
                                return stage_ref(x);
        return NULL;
}

/* st's reference of the stage below, if it was in no stack but that of st. st may be in a loose stack. */
static struct stage *take_below(struct files *fs, struct stage *st) {
        lock_take(&st->lock);
        lock_take(&fs->lock);
        struct stage *below = steal_ptr(st->below);
        lock_drop(&fs->lock);
        bool shared = st->below_shared;
        lock_drop(&st->lock);
        if (!shared)
                return below;
        stage_put(below);
        return NULL;
}

static bool only_ref(const struct stage *st, unsigned ours) {
        return atomic_load(&((struct stage *)st)->refs) == ours;
}

/* Nothing but the outbox could still refer to it: does it? */
static bool not_needed(struct files *fs, struct stage *st) {
        lock_take(&st->lock);
        bool committed = st->committed;
        lock_drop(&st->lock);
        return committed || st->dead || outbox_carries(fs->c->tree, st->gen) == 0; /* if it cannot be told: kept */
}

/* Once a minute. */
static void rescue_loose(struct files *fs, struct stage *top) {
        int64_t now = clock_mono_ms(clock_system());
        if (now < fs->rescue_due_ms && !fs->cfg.by_hand)
                return;
        fs->rescue_due_ms = now + INDEX_MS;
        for (; top; top = top->chain)
                if (top->rescue && stage_salvage(top, fs->lost_dir) == 0)
                        top->rescue = false;
}

/* Nobody needs it, but somebody works on it. If no file of its node is open here either, that is an upload, and its end is near: the engine hears of it. */
static bool is_held(struct files *fs, struct stage *st) {
        lock_take(&st->lock);
        bool committed = st->committed;
        lock_drop(&st->lock);
        struct file *f = committed ? NULL : file_find(fs, stage_ino(st), -1);
        if (f)
                file_put(f);
        return !committed && !f;
}

void files_loose_look(struct files *fs) {
        bool held = false, going = false;
        lock_take(&fs->lock);
        struct stage *top = fs->loose; /* only this thread takes from the list */
        fs->looked = fs->discards;
        lock_drop(&fs->lock);
        rescue_loose(fs, top);
        for (; top; top = top->chain) {
                struct stage *st = stage_ref(top);
                for (bool due = true; st && due;) {
                        due = !st->rescue && not_needed(fs, st);
                        if (due && !only_ref(st, 2)) {
                                held = held || is_held(fs, st);
                                due = false;
                        }
                        st->due = due;
                        going |= due;
                        lock_take(&st->lock);
                        struct stage *below = st->below ? stage_ref(st->below) : NULL;
                        lock_drop(&st->lock);
                        stage_put(st);
                        st = below;
                }
                stage_put(st);
        }
        lock_take(&fs->lock);
        fs->held = held;
        fs->going = going;
        lock_drop(&fs->lock);
        if (held)
                files_wake(fs);
}

/* Its bytes go, unless it was committed: then they become a blob. Takes the reference; the one of the stage below is the caller's now. */
static struct stage *let_go(struct files *fs, struct stage *st) {
        lock_take(&st->io);
        lock_take(&st->lock);
        bool goes = st->state != STAGE_GONE && !st->committed, committed = st->committed;
        if (goes) {
                stages_count_state(st->owner, st->state, STAGE_GONE);
                st->state = STAGE_GONE;
                st->epoch++;
                atomic_store_explicit(&st->first_write_ns, 0, memory_order_relaxed);
        }
        lock_drop(&st->lock);
        lock_drop(&st->io);
        struct stage *below = committed ? NULL : take_below(fs, st); /* committed: retire_one needs it */
        if (goes)
                stage_release_disk(st, false);
        stage_put(st);
        return below;
}

void files_loose_go(struct files *fs) {
        struct stage *gone = NULL;
        lock_take(&fs->lock);
        for (struct stage **p = &fs->loose; *p;) {
                struct stage *st = *p;
                if (!st->due || !only_ref(st, 1)) {
                        p = &st->chain;
                        continue;
                }
                *p = st->chain;
                st->listed = false;
                st->chain = gone;
                gone = st;
        }
        lock_drop(&fs->lock);
        while (gone) {
                struct stage *st = gone;
                gone = st->chain;
                do
                        st = let_go(fs, st);
                while (st && st->due && only_ref(st, 1));
                if (st)
                        files_discard(fs, st);
        }
        LOCK_SCOPE(&fs->lock);
        fs->going = false;
}

static void committed(struct files *fs, const struct tree_done *d) {
        struct stage *st, *above;
        if (outbox_carries(fs->c->tree, d->gen) != 0 || stage_get(fs->c->stages, d->gen, &st) < 0)
                return;
        struct file *f = file_of_stage(fs, st, &above);
        if (f) {
                const struct id *version = d->ino == f->ino ? &d->version : NULL;
                /* under f->lock: a stage that is made on top from now on names the content as its base, one that is there already is told */
                files_retire_add(fs, stage_ref(st), &d->content, &d->version);
                if (above)
                        note_rebase(above, &d->content, version);
                else if (version)
                        f->version = *version;
                lock_drop(&f->lock);
                file_put(f);
        } else {
                above = loose_above(fs, st);
                files_retire_add(fs, stage_ref(st), &d->content, &d->version);
                if (above)
                        note_rebase(above, &d->content, d->ino == stage_ino(above) ? &d->version : NULL);
        }
        stage_put(above);
        stage_put(st);
}

int file_reassign(struct cache *c, uint64_t gen, uint64_t new_ino) {
        struct files *fs = c->files;
        struct stage *st, *above = NULL;
        struct node node;
        int r = tree_get(c->tree, new_ino, &node);
        if (r == 0)
                r = stage_get(c->stages, gen, &st);
        if (r < 0)
                return r;
        struct file *f = stage_ino(st) != new_ino ? file_of_stage(fs, st, &above) : NULL;
        if (f) {
                file_rekey(f, new_ino, node.incarnation);
                f->version = node.version;
                for (struct stage *x = f->top ? stage_ref(f->top) : NULL, *next; x; x = next) {
                        atomic_store(&x->ino, new_ino);
                        lock_take(&x->io);
                        x->head.ino = new_ino;
                        x->head.node = node.id;
                        if (x == above || !above)
                                x->head.base_version = node.version;
                        if (x->logged) {
                                uint8_t b[STAGE_HEADER_BYTES];
                                stage_header_encode(&x->head, b);
                                int k = stage_note(x, LOG_REASSIGN, 0, 0, 0, 0, b, sizeof b);
                                if (k < 0)
                                        r = k;
                        }
                        lock_drop(&x->io);
                        next = stage_below(x);
                        stage_put(x);
                }
                lock_drop(&f->lock);
                file_put(f);
        }
        stage_put(above);
        stage_put(st);
        return r;
}

static void dropped(struct files *fs, const struct tree_done *d) {
        struct stage *st, *above;
        if (stage_get(fs->c->stages, d->gen, &st) < 0)
                return;
        struct file *f = file_of_stage(fs, st, &above);
        if (f) {
                lock_take(&fs->lock);
                bool held = f->handles > 0 || f->opening > 0;
                lock_drop(&fs->lock);
                struct node node;
                if (!held && !above && tree_get(fs->c->tree, f->ino, &node) == 0)
                        file_drop_stack(f, &node);
                lock_drop(&f->lock);
                file_put(f);
        }
        stage_put(above);
        stage_put(st);
}

void file_committed(struct cache *c, const struct tree_done *done, size_t n) {
        struct files *fs = c->files;
        for (size_t i = 0; i < n; i++) {
                if (!done[i].gen)
                        continue;
                if (done[i].fate == FATE_COMMITTED) {
                        committed(fs, &done[i]);
                } else if (done[i].fate == FATE_MOVED) {
                        int r = file_reassign(c, done[i].gen, done[i].ino);
                        if (r < 0)
                                log_warn("file gen=%llu reassign error=%s", (unsigned long long)done[i].gen, err_name(r));
                } else {
                        dropped(fs, &done[i]);
                }
        }
        cache_poke(c);
}

/* ---- retirement, on a worker ---- */

/* Is every byte of [off, off + n) in the stage's own file (or a hole of it that is a zero)? ret_hole: it is nothing but a hole. */
static bool all_here(struct stage *st, uint64_t off, uint32_t n, bool *ret_hole) {
        uint64_t here = 0;
        *ret_hole = true;
        for (uint64_t at = off; at < off + n;) {
                struct piece p;
                if (view_find(st, at, off + n - at, &p) < 0 || p.kind == PIECE_END) {
                        *ret_hole = false;
                        return false;
                }
                uint64_t bytes = p.bytes;
                *ret_hole = *ret_hole && p.kind == PIECE_ZERO;
                bool own = p.kind == PIECE_DISK && p.stage == st && p.fd == st->fd;
                if (own || p.kind == PIECE_ZERO)
                        here += bytes;
                piece_end(&p);
                at += bytes;
        }
        return here == n;
}

/* From now on readers find the bytes there. */
static void become(struct stage *st, struct blob *blob) {
        LOCK_SCOPE(&st->io);
        lock_take(&st->lock);
        if (st->state != STAGE_GONE) {
                stages_count_state(st->owner, st->state, STAGE_GONE);
                st->state = STAGE_GONE;
                st->become = blob ? blob_ref(blob) : NULL;
                st->epoch++;
        }
        lock_drop(&st->lock);
}

/* A block that is ours in part: the rest of it, under the eyes of readers. */
static int complete(struct stage *st, uint64_t off, const void *buf, size_t n) {
        bool begun;
        LOCK_SCOPE(&st->io);
        return sums_write(st, off, buf, n, &begun);
}

struct adoption { struct blobs_handover handover; struct stage *st; struct blob *blob; };
static void adoption_now(struct blobs_handover *h) {
        struct adoption *a = container_of(h, struct adoption, handover);
        become(a->st, a->blob);
}

static int adopt_file(struct stage *st, const struct content *content, const struct blocklist *list, struct blob *blob, bool *ret_taken) {
        struct blobs *blobs = st->owner->cfg.blobs;
        char path[PATH_MAX];
        int fd = -1, r;
        lock_take(&st->lock);
        bool large = st->large;
        lock_drop(&st->lock);
        _cleanup_close_ int own_fd = -1;
        _cleanup_free_ uint8_t *present = calloc(1, list->n / 8 + 1), *buf = malloc(BLOCK_BYTES_MAX);
        if (!present || !buf)
                return -ENOMEM;
        if (large) {
                fd = st->fd;
                r = data_file_path(st->owner, st->data_name, path, sizeof path);
        } else {
                r = blobs_file_take(blobs, &own_fd, path, sizeof path);
                fd = own_fd;
        }
        if (r < 0)
                return r;
        uint64_t off = 0, holes_bytes = 0;
        for (size_t i = 0; i < list->n; off += list->refs[i++].bytes) {
                uint32_t n = list->refs[i].bytes;
                bool hole, have = all_here(st, off, n, &hole) && large;
                if (hole && (holes_bytes += n) > HOLES_KEPT_BYTES) /* the cache counts them as bytes: a sparse file would push everything else out, or fill the disk */
                        continue;
                /* cut anew, partly of base bytes: nobody else has this block. One that was taken over from a list is found by its hash. */
                if (!have && !stage_block_reused(st, i))
                        have = stage_pread(st, off, buf, n, clock_mono_ms(st->owner->cfg.clock) + BASE_LATE_MS) == (ssize_t)n && (large ? complete(st, off, buf, n) : pwrite_full(fd, buf, n, off)) == 0;
                if (have)
                        present[i / 8] |= (uint8_t)(1u << (i % 8));
        }
        if (large) {
                lock_take(&st->io);
                r = stage_note(st, LOG_DONE, 0, 0, 0, 0, NULL, 0); /* from here on the log no longer vouches for the file */
                lock_take(&st->lock);
                uint64_t pages = st->pages;
                stage_account(st, 0, 0);
                lock_drop(&st->lock);
                lock_drop(&st->io);
                if (pages)
                        blobs_discharge(blobs, pages * EXTENT_PAGE);
                FAILPOINT_HERE("adopt.done");
                if (r < 0)
                        return r;
                *ret_taken = true;
        }
        struct adoption a = { { adoption_now }, st, blob };
        r = blobs_adopt_file(blobs, content, list, path, present, large ? &a.handover : NULL);
        if (r < 0) {
                become(st, blob);
                (void)!blobs_file_return(blobs, path); /* if it is still there */
        }
        return r;
}

static int adopt(struct stage *st, const struct content *content, struct blob *blob, bool *ret_taken) {
        const struct blocklist *list;
        struct content cut;
        if (content->size == 0 || (stage_is_base(st) && content_equal(&st->base, content))) /* the blob has what is here of it */
                return 0;
        int r = stage_chunk(st, clock_mono_ms(st->owner->cfg.clock) + CHUNK_LATE_MS, &list, &cut);
        if (r < 0)
                return r;
        if (!content_equal(&cut, content))
                return -ESTALE;
        if (content->size >= ADOPT_BYTES_MAX)
                return adopt_file(st, content, list, blob, ret_taken);
        _cleanup_free_ uint8_t *buf = malloc((size_t)content->size);
        if (!buf)
                return -ENOMEM;
        ssize_t n = stage_pread(st, 0, buf, (size_t)content->size, clock_mono_ms(st->owner->cfg.clock) + BASE_LATE_MS);
        if (n < 0)
                return (int)n;
        return (uint64_t)n != content->size ? -EIO : blobs_adopt_bytes(st->owner->cfg.blobs, content, list, buf);
}

static void close_stack(struct files *fs, struct stage *st, struct blob *blob, const struct retire *re) {
        struct stage *above;
        struct file *f = file_of_stage(fs, st, &above);
        struct blob *old = NULL;
        bool held = false;
        if (!f)
                above = loose_above(fs, st);
        if (above) {
                LOCK_SCOPE(&above->lock);
                LOCK_SCOPE(&fs->lock);
                held = above->below == st; /* a loose one may have gone meanwhile */
                if (held) {
                        above->below = NULL;
                        old = above->blob;
                        above->blob = blob ? blob_ref(blob) : NULL;
                        above->base = re->content;
                }
        } else if (f) {
                f->top = NULL;
                old = f->blob;
                f->blob = blob ? blob_ref(blob) : NULL;
                f->content = re->content;
                f->version = re->version;
                held = true;
                file_update_flags(f);
        }
        if (f)
                lock_drop(&f->lock);
        file_put(f);
        stage_put(above);
        blob_put(old);
        if (held)
                stage_put(st);
}

/* What was retired and still has its place among the stages. */
struct retired { struct { struct stage *stage; bool taken; } v[RETIRED_MAX]; size_t n; };

/* The stages go when the index names their bytes: a kill in between must not take from the cache what was written here. */
static void release_retired(struct files *fs, struct retired *d) {
        if (d->n > 0 && blobs_flush(fs->c->blobs) < 0)
                log_debug("file retired=%zu: the index was not written", d->n); /* only a cache: they can be fetched */
        for (size_t i = 0; i < d->n; i++) {
                stage_release_disk(d->v[i].stage, d->v[i].taken);
                stage_put(d->v[i].stage);
        }
        d->n = 0;
}

/* The layer above, if there is one, no longer names st in its log. It may have failed to say so; said now, and on the platter: else a start would find it without what it stands on. */
static bool said(struct files *fs, struct stage *st) {
        struct stage *above;
        struct file *f = file_of_stage(fs, st, &above);
        if (f) {
                lock_drop(&f->lock);
                file_put(f);
        } else {
                above = loose_above(fs, st);
        }
        if (!above)
                return true;
        lock_take(&above->io);
        bool due = above->rebase_due;
        if (due)
                log_rebase(above);
        bool ok = !above->rebase_due;
        lock_drop(&above->io);
        if (due && ok && stage_sync(above) < 0) {
                LOCK_SCOPE(&above->io);
                above->rebase_due = true;
                ok = false;
        }
        stage_put(above);
        return ok;
}

static void retire_one(struct files *fs, struct retire *re, struct retired *done) {
        struct stage *st = re->stage;
        FAILPOINT_HERE("retire.begin");
        if (!said(fs, st)) { /* again after the next flush */
                LOCK_SCOPE(&fs->lock);
                retire_list_locked(fs, re);
                return;
        }
        lock_take(&st->lock);
        bool gone = st->state == STAGE_GONE;
        lock_drop(&st->lock);
        bool taken = false;
        struct blob *blob = NULL;
        if (!gone) {
                if (re->content.size > 0 && blob_get(fs->c->blobs, &re->content, &blob) < 0)
                        log_warn("file gen=%llu blob error", (unsigned long long)st->gen);
                int r = blob ? adopt(st, &re->content, blob, &taken) : 0;
                if (r < 0)
                        log_debug("file gen=%llu adopt error=%s", (unsigned long long)st->gen, err_name(r));
                FAILPOINT_HERE("retire.adopted");
                become(st, blob);
                close_stack(fs, st, blob, re);
                struct stage *below = take_below(fs, st);
                if (below)
                        files_discard(fs, below);
                done->v[done->n].stage = stage_ref(st);
                done->v[done->n++].taken = taken;
        }
        blob_put(blob);
        stage_put(st);
        free(re);
        if (done->n == RETIRED_MAX)
                release_retired(fs, done);
}

/* One worker at a time takes what was synced from the head of the list. */
static void retire_run(struct job *j) {
        struct files *fs = container_of(j, struct files, retire_job);
        struct retired done = { .n = 0 };
        for (;;) {
                lock_take(&fs->lock);
                struct retire *re = fs->retire_first;
                if (!re || re->n > fs->retire_upto) {
                        if (done.n == 0)
                                break;
                        lock_drop(&fs->lock);
                        release_retired(fs, &done);
                        continue;
                }
                fs->retire_first = re->next;
                if (!re->next)
                        fs->retire_last = NULL;
                fs->retire_now = re->content;
                lock_drop(&fs->lock);
                retire_one(fs, re, &done);
                lock_take(&fs->lock);
                fs->retire_now = (struct content){ 0 };
                lock_drop(&fs->lock);
        }
        fs->jobs--;
        cond_broadcast(&fs->idle);
        cond_broadcast(&fs->work);
        cond_broadcast(&fs->drained);
        lock_drop(&fs->lock);
}

bool files_retiring(struct files *fs, const struct content *content) {
        LOCK_SCOPE(&fs->lock);
        for (const struct retire *re = fs->retire_first; re; re = re->next)
                if (content_equal(&re->content, content))
                        return true;
        return content_equal(&fs->retire_now, content);
}

void files_retire(struct files *fs, uint64_t upto) {
        lock_take(&fs->lock);
        fs->retire_upto = MAX(fs->retire_upto, upto);
        bool start = fs->jobs == 0 && fs->retire_first && fs->retire_first->n <= fs->retire_upto;
        fs->jobs += start;
        lock_drop(&fs->lock);
        if (!start)
                return;
        fs->retire_job = (struct job) { .run = retire_run };
        if (fs->cfg.workers)
                executor_submit(fs->cfg.workers, &fs->retire_job);
        else
                retire_run(&fs->retire_job);
}
