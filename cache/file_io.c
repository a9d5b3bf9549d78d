/* SPDX-License-Identifier: Apache-2.0 */
/* file_io.c: reads, writes and other changes of a file's bytes.
 *
 * Read: piece by piece through the stack (stage_view.c), most often one. Bytes of this disk are read at once; bytes of a blob go through blob_read, which may answer later: then the read
 * goes on from the completion, on the source's thread. r->state tells where it is:
 *
 *      READ_LOCAL       some thread works on it                   -> READ_SUBMIT, or over
 *      READ_SUBMIT      blob_read is being called                 -> READ_BLOB when it will answer later, READ_LOCAL when it answered
 *      READ_COMPLETED   it answered later, yet before we were back: the caller takes the result
 *      READ_BLOB        under way, r belongs to the completion    -> READ_LOCAL on its completion
 *      cancelled        a bit beside these: the next step ends it with -EINTR
 *
 * Write: the open stage (made if needed), under its io lock: size is looked up there for O_APPEND, so appends are atomic. What a change lacks (room, a file, a segment) it says by
 * -EAGAIN; it is got with no lock held, then the change comes again. No room: the writer is parked (file_room.c). */
#include <assert.h>
#include <stdint.h>

#include "base/log.h"
#include "file_priv.h"

#define SHARE_BYTES_MIN INLINE_BYTES_MAX /* below it the bytes go to the server in the operation anyway */

/* ---- reading ---- */
enum { READ_LOCAL = 1, READ_SUBMIT = 2, READ_BLOB = 3, READ_COMPLETED = 4, READ_PLACE = 7, READ_CANCELLED = 8 };

/* What is at off. */
static int find_piece(struct file *f, uint64_t off, uint64_t max, struct piece *ret) {
        lock_take(&f->lock);
        struct stage *top = f->top ? stage_ref(f->top) : NULL;
        int r = 0;
        if (!top) {
                *ret = (struct piece) { .kind = PIECE_END, .fd = -1 };
                if (off < f->content.size && max > 0) {
                        ret->kind = PIECE_BLOB;
                        ret->bytes = MIN(max, f->content.size - off);
                        ret->at = off;
                        r = file_blob(f, &ret->blob);
                }
        }
        lock_drop(&f->lock);
        if (!top)
                return r;
        r = view_find(top, off, max, ret);
        stage_put(top);
        return r;
}

static void read_inner_done(struct blob_read *inner, ssize_t result);

static int state_get(struct file_read *r) {
        return __atomic_load_n(&r->state, __ATOMIC_ACQUIRE);
}
/* To another place, keeping the cancelled bit. False: the place was not `from`. */
static bool state_move(struct file_read *r, int from, int to) {
        int old = state_get(r);
        while ((old & READ_PLACE) == from)
                if (__atomic_compare_exchange_n(&r->state, &old, (old & READ_CANCELLED) | to, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                        return true;
        return false;
}

/* Bytes of a blob. -EINPROGRESS: the completion goes on with the read, r is not ours any more. */
static ssize_t read_blob(struct file_read *r, const struct piece *p, uint8_t *at) {
        r->inner = (struct blob_read) { .blob = p->blob, .off = p->at, .buf = at, .n = (size_t)p->bytes, .deadline_ms = r->deadline_ms, .done = read_inner_done, .owner = r,
                                        .exact = r->crawler, .crawler = r->crawler, .head = r->head };
        if (!state_move(r, READ_LOCAL, READ_SUBMIT))
                assert(false);
        if (state_get(r) & READ_CANCELLED)
                return -EINTR;
        ssize_t got = blob_read(&r->inner);
        if (got != -EINPROGRESS) {
                r->refused |= r->inner.refused;
                return got;
        }
        if (state_get(r) & READ_CANCELLED)
                blob_read_cancel(&r->inner);
        if (state_move(r, READ_SUBMIT, READ_BLOB))
                return -EINPROGRESS;
        return (ssize_t)(intptr_t)r->priv; /* it completed before we were back */
}

/* Works until the end or until a blob takes over: -EINPROGRESS. */
static ssize_t read_on(struct file_read *r, size_t done) {
        while (done < r->n) {
                struct piece p;
                int k = find_piece(r->file, r->off + done, r->n - done, &p);
                if (k < 0)
                        return k;
                if (p.kind == PIECE_END)
                        break;
                uint8_t *at = (uint8_t *)r->buf + done;
                ssize_t got = (ssize_t)p.bytes;
                if (p.kind == PIECE_ZERO) {
                        memset(at, 0, (size_t)p.bytes);
                } else if (p.kind == PIECE_DISK) {
                        k = piece_read(&p, at, (size_t)p.bytes);
                        got = k == -ESTALE ? 0 : k < 0 ? k : got;
                } else {
                        got = read_blob(r, &p, at);
                        if (got == -EINPROGRESS)
                                return got; /* the completion gives the blob back */
                        __atomic_store_n(&r->state, (state_get(r) & READ_CANCELLED) | READ_LOCAL, __ATOMIC_RELEASE);
                        if (got == 0)
                                got = -EIO; /* a blob shorter than its content */
                }
                piece_end(&p);
                if (got < 0)
                        return got;
                done += (size_t)got;
        }
        return (ssize_t)done;
}

static void read_inner_done(struct blob_read *inner, ssize_t result) {
        struct file_read *r = inner->owner;
        r->priv = (void *)(intptr_t)result;
        r->refused |= inner->refused;
        if (state_move(r, READ_SUBMIT, READ_COMPLETED))
                return;
        blob_put(inner->blob);
        if (!state_move(r, READ_BLOB, READ_LOCAL))
                assert(false);
        if (result == 0)
                result = -EIO;
        if (result > 0) {
                size_t done = (size_t)((uint8_t *)inner->buf - (uint8_t *)r->buf) + (size_t)result;
                result = state_get(r) & READ_CANCELLED && done < r->n ? -EINTR : read_on(r, done);
                if (result == -EINPROGRESS)
                        return;
        }
        r->done(r, result);
}

ssize_t file_read(struct file_read *r) {
        lock_assert_none();
        __atomic_store_n(&r->state, READ_LOCAL, __ATOMIC_RELEASE);
        return r->n ? read_on(r, 0) : 0;
}

void file_read_cancel(struct file_read *r) {
        int old = __atomic_fetch_or(&r->state, READ_CANCELLED, __ATOMIC_ACQ_REL);
        if ((old & READ_PLACE) == READ_BLOB)
                blob_read_cancel(&r->inner);
}

/* ---- changing ---- */
struct change_args { enum { CHANGE_DATA, CHANGE_SIZE, CHANGE_ZERO, CHANGE_SHARE } what; uint64_t off, n; const void *buf; bool append, grow; const struct content *content; struct blob *blob; };

static int change_once(struct file *f, const struct change_args *a, struct stage_room *room, struct stage **ret) {
        struct stage *st;
        lock_take(&f->lock);
        int r = file_open_stage(f, &st);
        if (r < 0) {
                lock_drop(&f->lock);
                return r;
        }
        lock_take(&st->io); /* before f->lock goes: nobody seals in between */
        lock_drop(&f->lock);
        lock_take(&st->lock);
        uint64_t size = st->size;
        lock_drop(&st->lock);
        switch (a->what) {
        case CHANGE_DATA:
                r = a->append && (size > FILE_BYTES_MAX || a->n > FILE_BYTES_MAX - size) ? -EFBIG : stage_put_data(st, a->append ? size : a->off, a->buf, (size_t)a->n, room);
                break;
        case CHANGE_SIZE:
                r = stage_put_size(st, a->n, room);
                break;
        case CHANGE_SHARE:
                r = stage_put_share(st, a->content, a->blob, a->off, a->n, room);
                break;
        case CHANGE_ZERO: {
                uint64_t n = a->grow || a->off >= size ? a->n : MIN(a->n, size - a->off);
                r = !a->grow && a->off >= size ? 0 : stage_put_zero(st, a->off, n, a->grow, room);
                break;
        }
        }
        lock_drop(&st->io);
        *ret = st;
        return r;
}

/* ret_full: the -ENOSPC means that the cache has no room right now. */
static int change(struct file *f, const struct change_args *a, bool *ret_full) {
        struct files *fs = f->fs;
        struct stage_room room = STAGE_ROOM_INIT;
        int r;
        *ret_full = false;
        for (;;) {
                struct stage *st = NULL;
                r = change_once(f, a, &room, &st);
                stage_put(st);
                if (r != -EAGAIN)
                        break;
                r = stage_room_get(fs->c->stages, &room);
                if (r < 0) {
                        *ret_full = r == -ENOSPC;
                        break;
                }
        }
        stage_room_end(fs->c->stages, &room);
        return r;
}

/* The program was told that this range was not written: the generation waits until it is healed. */
static void fail_write(struct file *f, int err, uint64_t off, uint64_t n) {
        struct stage *st;
        LOCK_SCOPE(&f->lock);
        if (!f->error)
                f->error = err;
        if (file_open_stage(f, &st) < 0)
                return; /* no generation, nothing to spoil */
        lock_take(&st->io);
        stage_fail(st, err, off, n);
        lock_drop(&st->io);
        stage_put(st);
}

void file_write_failed(struct file_write *w, int err) {
        uint64_t off = w->off;
        if (w->append) {
                LOCK_SCOPE(&w->file->lock);
                off = file_size_locked(w->file);
        }
        fail_write(w->file, err, off, w->n);
}

ssize_t file_write(struct file_write *w) {
        lock_assert_none();
        struct file *f = w->file;
        struct files *fs = f->fs;
        if (w->n == 0)
                return 0;
        if (fs->cfg.read_only)
                return -EROFS;
        if (!w->append && (w->off > FILE_BYTES_MAX || w->off + w->n > FILE_BYTES_MAX))
                return -EFBIG;
        if (!files_room_now(fs, w->n))
                return file_wait_room(w, false);
        bool full;
        int r = change(f, &(struct change_args) { .what = CHANGE_DATA, .off = w->off, .n = w->n, .buf = w->buf, .append = w->append }, &full);
        if (full)
                return file_wait_room(w, true);
        if (r < 0) {
                file_write_failed(w, r);
                return r;
        }
        if (fs->c->counters)
                counter_add(fs->c->counters, stage_bytes_written, w->n);
        return (ssize_t)w->n;
}

/* A spoiled generation that is cut to nothing starts anew, on a stage of its own. After a start there may be another one below it, which had been left that way before. */
static void drop_untrusted(struct file *f) {
        LOCK_SCOPE(&f->lock);
        for (struct stage *st = f->top; st; st = f->top) {
                lock_take(&st->io);
                bool bad = st->untrusted && st->state == STAGE_OPEN;
                lock_drop(&st->io);
                if (!bad)
                        return;
                file_pop(f);
                f->error = 0;
        }
}

int file_set_size(struct file *f, uint64_t size) {
        lock_assert_none();
        if (size > FILE_BYTES_MAX)
                return -EFBIG;
        if (size == 0)
                drop_untrusted(f);
        lock_take(&f->lock);
        bool same = !f->top && f->content.size == size && size == 0; /* an empty file, emptied */
        lock_drop(&f->lock);
        if (same)
                return 0;
        bool full;
        return change(f, &(struct change_args) { .what = CHANGE_SIZE, .n = size }, &full);
}

int file_share(struct file *f, struct file *from, uint64_t off, uint64_t n, uint64_t *ret_n) {
        lock_assert_none();
        struct blob *blob = NULL;
        struct content content;
        if (f == from)
                return -EOPNOTSUPP;
        lock_take(&from->lock);
        content = from->content;
        int r = from->top || off >= content.size ? -EOPNOTSUPP : file_blob(from, &blob); /* what has a stage is not on the server, or not as long as this one may need it */
        lock_drop(&from->lock);
        if (r < 0)
                return r;
        n = MIN(n, content.size - off);
        bool full;
        r = off + n < SHARE_BYTES_MIN || off + n > FILE_BYTES_MAX ? -EOPNOTSUPP : change(f, &(struct change_args) { .what = CHANGE_SHARE, .off = off, .n = n, .content = &content, .blob = blob }, &full);
        blob_put(blob);
        if (r == 0)
                *ret_n = n;
        return r;
}

int file_truncate(struct cache *c, uint64_t ino, uint64_t size) {
        lock_assert_none();
        struct node node;
        int r = tree_get(c->tree, ino, &node);
        if (r < 0)
                return r;
        struct file *f;
        r = file_open(c, ino, node.incarnation, true, false, &f);
        if (r < 0)
                return r;
        r = file_set_size(f, size);
        file_release(f, true); /* the only handle: a commit point */
        return r;
}

int file_allocate(struct file *f, enum file_alloc how, uint64_t off, uint64_t n) {
        lock_assert_none();
        bool full;
        if (n == 0)
                return -EINVAL;
        if (off > FILE_BYTES_MAX || n > FILE_BYTES_MAX - off)
                return -EFBIG;
        switch (how) {
        case FILE_ALLOC_KEEP:
                return 0; /* room is not reserved by range */
        case FILE_ALLOC_EXTEND: {
                lock_take(&f->lock);
                uint64_t size = file_size_locked(f);
                lock_drop(&f->lock);
                return off + n <= size ? 0 : change(f, &(struct change_args) { .what = CHANGE_SIZE, .n = off + n }, &full);
        }
        case FILE_ALLOC_PUNCH:
        case FILE_ALLOC_ZERO_KEEP:
                return change(f, &(struct change_args) { .what = CHANGE_ZERO, .off = off, .n = n }, &full);
        case FILE_ALLOC_ZERO:
                return change(f, &(struct change_args) { .what = CHANGE_ZERO, .off = off, .n = n, .grow = true }, &full);
        }
        return -EOPNOTSUPP;
}

int file_seek(struct file *f, bool data, uint64_t off, uint64_t *ret) {
        lock_assert_none();
        for (uint64_t at = off;;) {
                struct piece p;
                int r = find_piece(f, at, INT64_MAX, &p);
                if (r < 0)
                        return r;
                enum piece_kind kind = p.kind;
                uint64_t bytes = p.bytes;
                piece_end(&p);
                if (kind == PIECE_END && (data || at == off))
                        return -ENXIO;
                if (kind == PIECE_END || (kind == PIECE_ZERO) != data) {
                        *ret = at;
                        return 0;
                }
                at += bytes;
        }
}

int file_set_mtime(struct cache *c, uint64_t ino, int64_t mtime_ns) {
        struct file *f = file_find(c->files, ino, -1);
        if (!f)
                return 0;
        int r = 0;
        lock_take(&f->lock);
        struct stage *st = f->top;
        if (st) {
                lock_take(&st->io);
                if (st->state == STAGE_OPEN && st->logged)
                        r = stage_put_mtime(st, mtime_ns);
                lock_drop(&st->io);
        }
        lock_drop(&f->lock);
        file_put(f);
        return r;
}

int file_take_error(struct file *f) {
        LOCK_SCOPE(&f->lock);
        int r = f->error;
        if (!r && f->top) {
                LOCK_SCOPE(&f->top->lock);
                if (f->top->state == STAGE_OPEN)
                        r = f->top->error; /* also of a call that was no write: this generation is not committed as it is */
        }
        f->error = 0;
        return r;
}

int file_sync(struct file *f) {
        lock_assert_none();
        lock_take(&f->lock);
        struct stage *st = f->top ? stage_ref(f->top) : NULL;
        lock_drop(&f->lock);
        int r = 0;
        while (st) {
                int k = stage_sync(st);
                if (k < 0 && r == 0)
                        r = k;
                lock_take(&st->lock);
                struct stage *below = st->below ? stage_ref(st->below) : NULL;
                lock_drop(&st->lock);
                stage_put(st);
                st = below;
        }
        if (r < 0) {
                LOCK_SCOPE(&f->lock);
                f->error = r;
                return r;
        }
        return tree_sync(f->fs->c->tree);
}
