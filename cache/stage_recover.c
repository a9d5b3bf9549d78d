/* SPDX-License-Identifier: Apache-2.0 */
/* stage_recover.c: stages from what is on disk.
 *
 * Every record of every log is read once, sorted by (generation, copy, seq), and replayed per generation on the highest copy that is complete. What is believed:
 *
 *   after kill -9     everything that verifies. A gap in seq with records behind it is damage; a last record that does not verify was being written and was never promised
 *   after a power cut (new boot)   own logs: up to the last SYNC record, because the bytes of later ones may be missing; shared log: every record carries the sum of its bytes, so
 *                     up to the first gap; a gap before the segment's sync mark is damage
 *
 * A stage whose sync had failed (FAILED, for all of it) is not trusted now either, and what it replaced is kept as before. A sealed one is sealed again: its bytes carry sums, so what the disk has lost of it
 * is found when it is read, and all the rest gets to the server. An open one keeps its error until it is emptied.
 *
 * Damage is never deleted and never uploaded: what can be read of the stage goes to lost+found/ as a plain file. Files in stages/ and lent/ that no log names go there
 * too, empty ones to the pools.
 *
 * A data file goes back to the pool when its stage has ended, and another stage may take it. After a crash the log of the first may be there all the same, by a power cut even without its DONE: a file
 * belongs to the newest generation that names it, and the others have ended.
 *
 * A large stage's file may hold bytes that its map does not (a kill between record and punch): they are punched here, so that holes are zeros when the file becomes a blob.
 *
 * One thread, before the others start. */
#include "stage_core.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/log.h"

#define RECORDS_MAX (16u << 20)

struct rec {
        struct slog_entry e;
        uint64_t pos;
        struct segment *seg;     /* shared; NULL: own */
        uint64_t order;          /* of the segment: with pos the moment it was written */
        uint32_t number;         /* own: of the log */
        bool bad, is_void;       /* payload damaged; cut off by an earlier recovery */
        uint8_t *payload;        /* small ones, copied; DATA: sums of its pieces */
};
struct own_found { uint32_t number; struct slog_file f; uint64_t end; bool used; };
struct reading {
        struct stages *s;
        bool new_boot;
        struct rec *v; size_t n, room;
        struct segment **segs; size_t n_segs;
        struct own_found *own; size_t n_own;
        struct { char name[STAGE_DATA_NAME]; bool used; } *lent; size_t n_lent;
        unsigned lost;
        /* of the file being scanned */
        struct segment *seg;
        uint32_t number;
        uint64_t synced;
};

static void *grown(void *v, size_t n, size_t each) {
        return (n & (n - 1)) == 0 ? realloc(v, (n ? n * 2 : 1) * each) : v;
}

static int take_record(void *arg, const struct slog_entry *e, uint64_t pos, const uint8_t *payload) {
        struct reading *rd = arg;
        if (e->gen == 0) {
                if (e->kind == LOG_SYNC)
                        rd->synced = MAX(rd->synced, e->off);
                return 0;
        }
        if (rd->n >= RECORDS_MAX)
                return -EFBIG;
        struct rec *v = grown(rd->v, rd->n, sizeof *v);
        if (!v)
                return -ENOMEM;
        rd->v = v;
        struct rec *r = &v[rd->n];
        *r = (struct rec) { .e = *e, .pos = pos, .seg = rd->seg, .order = rd->seg ? rd->seg->order : 0, .number = rd->number, .bad = e->payload_bytes && !payload };
        if (payload && e->kind != LOG_DATA) {
                r->payload = malloc(e->payload_bytes);
                if (!r->payload)
                        return -ENOMEM;
                memcpy(r->payload, payload, e->payload_bytes);
        }
        if (payload && e->kind == LOG_DATA) {
                uint64_t *sums = calloc((e->payload_bytes + EXTENT_PAGE - 1) / EXTENT_PAGE, sizeof *sums);
                if (!sums)
                        return -ENOMEM;
                payload_sums(payload, e->payload_bytes, sums);
                r->payload = (uint8_t *)sums;
        }
        rd->n++;
        return 0;
}

static int to_lost(struct reading *rd, const char *path, const char *name, const char *lost_dir) {
        int r = mkdir_p(lost_dir, 0700);
        if (r < 0)
                return r;
        char to[PATH_MAX];
        for (unsigned i = 0; i < 1000; i++) {
                if ((size_t)snprintf(to, sizeof to, i ? "%s/%s.%u" : "%s/%s", lost_dir, name, i) >= sizeof to)
                        return -ENAMETOOLONG;
                if (renameat2(AT_FDCWD, path, AT_FDCWD, to, RENAME_NOREPLACE) == 0) {
                        rd->lost++;
                        log_warn("cache recover file=%s moved_to=%s", name, to);
                        return 0;
                }
                if (errno != EEXIST)
                        return -errno;
        }
        return -EEXIST;
}

/* What lies in a segment behind its last sync is written once more. The process before may have been told that the disk refused it and have died before all who have bytes there heard of it: the kernel tells
 * nobody else, and a sync would succeed without having written it (as with the tree's log, db_mark.c). */
struct tail { int fd; const struct slog_file *file; uint64_t synced; };
static int tail_record(void *arg, const struct slog_entry *e, uint64_t pos, const uint8_t *payload) {
        const struct tail *t = arg;
        return pos < t->synced || (e->payload_bytes && !payload) ? 0 : slog_write(t->fd, &t->file->salt, pos, e, payload);
}
static int write_tail(int fd, const struct slog_file *f, uint64_t synced) {
        struct tail t = { fd, f, synced };
        const struct slog_scan scan = { tail_record, &t };
        struct slog_file again;
        uint64_t end;
        uint8_t first[LOG_UNIT];
        slog_file_encode(f, first);
        int r = synced > 0 ? 0 : pwrite_full(fd, first, sizeof first, 0);
        return r < 0 ? r : slog_scan(fd, &again, &scan, &end);
}

static int read_log(struct reading *rd, const char *name, uint32_t number, const char *lost_dir) {
        struct stages *s = rd->s;
        _cleanup_close_ int fd = openat(s->dir_fd, name, O_RDWR | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        uint8_t first[LOG_UNIT];
        struct slog_file f;
        ssize_t got = pread_some(fd, first, sizeof first, 0);
        int r = got < 0 ? (int)got : got < LOG_UNIT ? -ENODATA : slog_file_decode(first, &f);
        segments_number_above(s->segs, number);
        if (r == -ENODATA) { /* never came to life */
                LOCK_SCOPE(&s->lock);
                if (s->n_log_pool < LOG_POOL_MAX && ftruncate(fd, 0) == 0)
                        s->log_pool[s->n_log_pool++] = number;
                else
                        (void)unlinkat(s->dir_fd, name, 0);
                return 0;
        }
        if (r == -EBADMSG) {
                char path[PATH_MAX];
                if ((size_t)snprintf(path, sizeof path, "%s/%s", s->dir, name) >= sizeof path)
                        return -ENAMETOOLONG;
                return to_lost(rd, path, name, lost_dir);
        }
        if (r < 0)
                return r;
        rd->number = number;
        rd->seg = NULL;
        rd->synced = 0;
        if (f.kind == LOG_SHARED) {
                blobs_charge_found(s->cfg.blobs, segments_each(s->segs));
                r = segments_found(s->segs, number, fd, &f, LOG_UNIT, &rd->seg);
                if (r < 0)
                        return r;
                struct segment **v = grown(rd->segs, rd->n_segs, sizeof *v);
                if (!v)
                        return -ENOMEM;
                rd->segs = v;
                v[rd->n_segs++] = rd->seg;
        }
        uint64_t end = LOG_UNIT;
        struct slog_scan scan = { take_record, rd };
        r = slog_scan(fd, &f, &scan, &end);
        if (f.kind == LOG_SHARED) {
                segments_found_end(rd->seg, end, rd->synced);
                if (r == 0 && !rd->new_boot && end > rd->synced + LOG_UNIT && write_tail(fd, &f, rd->synced) < 0)
                        rd->seg->failed = true; /* whoever has bytes there hears of it */
                (void)steal_fd(&fd); /* the segment's */
        } else if (r == 0) {
                struct own_found *v = grown(rd->own, rd->n_own, sizeof *v);
                if (!v)
                        return -ENOMEM;
                rd->own = v;
                v[rd->n_own++] = (struct own_found) { .number = number, .f = f, .end = end };
        }
        return r;
}

static int by_place(const void *a, const void *b) {
        const struct rec *x = a, *y = b;
        if (x->e.gen != y->e.gen)
                return x->e.gen < y->e.gen ? -1 : 1;
        if (x->e.copy != y->e.copy)
                return x->e.copy < y->e.copy ? -1 : 1;
        if (x->e.seq != y->e.seq)
                return x->e.seq < y->e.seq ? -1 : 1;
        if (x->order != y->order)
                return x->order < y->order ? -1 : 1;
        return x->pos < y->pos ? -1 : x->pos > y->pos;
}

static struct own_found *own_of(struct reading *rd, uint32_t number) {
        for (size_t i = 0; i < rd->n_own; i++)
                if (rd->own[i].number == number)
                        return &rd->own[i];
        return NULL;
}

/* How many records of one copy count. ret_damaged: something that had been promised is missing. */
static size_t believed(struct reading *rd, const struct rec *v, size_t n, bool *ret_damaged, uint64_t *ret_digest) {
        size_t good = 0;
        while (good < n && v[good].e.seq == good && !v[good].bad)
                good++;
        *ret_damaged = false;
        *ret_digest = 0;
        bool own = !v[0].seg;
        if (own && rd->new_boot) {
                size_t sync = 0, last = 0; /* what the last SYNC vouches for, wherever it is */
                for (size_t i = 0; i < n; i++)
                        if (v[i].e.kind == LOG_SYNC) { /* of records between its bound and itself the bytes may be missing */
                                size_t upto = (size_t)MIN(v[i].e.off + (v[i].e.off == v[i].e.seq), v[i].e.seq + 1);
                                last = MAX(last, upto);
                                if (i < good && upto >= sync) {
                                        sync = upto;
                                        *ret_digest = v[i].e.bytes;
                                }
                        }
                *ret_damaged = last > sync;
                return sync;
        }
        if (good == n)
                return good;
        if (!rd->new_boot)
                /* a torn last record was not promised; anything else was */
                *ret_damaged = !(good == n - 1 && v[good].bad && v[good].e.seq == good);
        else
                for (size_t i = good; i < n; i++)
                        *ret_damaged |= segment_is_synced(v[i].seg, v[i].pos);
        return good;
}

static int replay(struct stage *st, const struct rec *r, struct found_stage *found, struct stage_header *h) {
        const struct slog_entry *e = &r->e;
        uint64_t end = e->off + e->bytes;
        int k = extents_reserve(&st->map);
        if (k < 0)
                return k;
        found->changed |= e->kind == LOG_DATA || e->kind == LOG_ZERO || e->kind == LOG_SIZE || e->kind == LOG_SENT || e->kind == LOG_MTIME || e->kind == LOG_SHARE;
        switch (e->kind) {
        case LOG_DATA:
                if (!e->bytes || end < e->off || (r->seg && (e->payload_bytes != e->bytes || e->bytes > SMALL_STAGE_BYTES || !r->payload)))
                        return -EBADMSG;
                if (r->seg) {
                        k = payload_reserve(st, (size_t)e->bytes);
                        if (k < 0)
                                return k;
                        payload_add(st, r->seg, r->pos + LOG_UNIT, e->payload_bytes, (const uint64_t *)(const void *)r->payload);
                }
                extents_put(&st->map, &(struct extent) { .off = e->off, .bytes = e->bytes, .kind = EXTENT_DATA, .where = r->seg, .at = r->seg ? r->pos + LOG_UNIT : e->off });
                early_touch(st, e->off, end);
                st->size = MAX(st->size, end);
                st->mtime_ns = e->time_ns;
                if (r->seg) {
                        st->appended += e->payload_bytes;
                        st->small_bytes += e->bytes;
                }
                break;
        case LOG_ZERO:
                if (!e->bytes || end < e->off)
                        return -EBADMSG;
                extents_put(&st->map, &(struct extent) { .off = e->off, .bytes = e->bytes, .kind = EXTENT_ZERO });
                early_touch(st, e->off, end);
                if (e->flags)
                        st->size = MAX(st->size, end);
                st->mtime_ns = e->time_ns ? e->time_ns : st->mtime_ns;
                break;
        case LOG_SIZE:
                extents_cut(&st->map, e->bytes, UINT64_MAX - e->bytes);
                early_touch(st, MIN(e->bytes, st->size), UINT64_MAX);
                st->size = e->bytes;
                st->base_limit = MIN(st->base_limit, e->bytes);
                st->mtime_ns = e->time_ns;
                break;
        case LOG_SENT: {
                struct slog_sent s;
                k = slog_sent_decode(r->payload, r->payload ? e->payload_bytes : 0, &s);
                if (k < 0)
                        return k;
                if (e->bytes != s.block_bytes || s.block_off)
                        return -EBADMSG;
                struct sent_block *b = stage_sent_block(st, &s.hash, s.block_bytes);
                if (!b)
                        return -ENOMEM;
                extents_put(&st->map, &(struct extent) { .off = e->off, .bytes = e->bytes, .kind = EXTENT_SENT, .where = b });
                struct blockref ref = { .hash = s.hash, .bytes = s.block_bytes };
                early_touch(st, e->off, end);
                k = early_known(st, e->off, &ref);
                if (k < 0)
                        return k;
                break;
        }
        case LOG_MTIME:
                st->mtime_ns = e->time_ns;
                break;
        case LOG_SEAL:
                if (e->off != e->seq || e->bytes != st->size)
                        return -EBADMSG;
                found->sealed = true;
                st->mtime_ns = e->time_ns;
                break;
        case LOG_SHARE: {
                struct stage_header x;
                k = stage_header_decode(r->payload, r->payload ? e->payload_bytes : 0, &x);
                if (k < 0)
                        return k;
                if (e->bytes > x.base.size)
                        return -EBADMSG;
                h->base = x.base;
                h->below_gen = 0;
                st->base_limit = st->size = e->bytes;
                st->mtime_ns = e->time_ns;
                break;
        }
        case LOG_REBASE:
        case LOG_REASSIGN: {
                struct stage_header x;
                k = stage_header_decode(r->payload, r->payload ? e->payload_bytes : 0, &x);
                if (k < 0)
                        return k;
                if (e->kind == LOG_REBASE) {
                        h->base = x.base;
                        h->below_gen = x.below_gen;
                        h->base_version = x.base_version;
                        st->base_limit = MIN(st->base_limit, x.base_limit);
                } else {
                        h->ino = x.ino;
                        h->node = x.node;
                        h->parent = x.parent;
                        h->base_version = x.base_version;
                        memcpy(h->name, x.name, sizeof h->name);
                }
                break;
        }
        case LOG_FAILED:
                st->error = e->bytes ? -(int)e->flags : 0;
                st->error_off = e->off;
                st->error_bytes = e->bytes;
                break;
        case LOG_LAYER:
                found->layer = true;
                break;
        case LOG_DONE:
                found->done = true;
                break;
        case LOG_HEADER:
        case LOG_SYNC:
        case LOG_CUT:
        case LOG_INTENT:
                break;
        }
        return 0;
}

static int open_data(struct reading *rd, struct stage *st, const struct found_stage *found, uint64_t digest, bool *ret_made) {
        char path[PATH_MAX];
        for (size_t i = 0; i < rd->n_lent; i++)
                if (strcmp(rd->lent[i].name, st->data_name) == 0) {
                        if (rd->lent[i].used)
                                return -ESTALE;
                        rd->lent[i].used = true;
                }
        int r = data_file_path(rd->s, st->data_name, path, sizeof path);
        if (r < 0)
                return r;
        st->fd = open(path, O_RDWR | O_CLOEXEC);
        if (st->fd < 0)
                return found->done && errno == ENOENT ? 0 : -errno;
        struct stat sb;
        if (fstat(st->fd, &sb) < 0)
                return -errno;
        if (found->done)
                return 0;
        char sums[STAGE_DATA_NAME];
        sums_name(st->log.number, sums);
        st->sums_fd = openat(rd->s->dir_fd, sums, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (st->sums_fd < 0)
                return -errno;
        LOCK_SCOPE(&st->io); /* nobody else is here; asserted */
        return sums_recover(st, (uint64_t)sb.st_size, rd->new_boot, found->sealed, digest, ret_made);
}

/* What an earlier recovery cut off goes; returns what is left, in order. */
static size_t drop_cut(struct rec *v, size_t n) {
        size_t kept = 0;
        for (size_t i = 0; i < n; i++) {
                bool is_void = false;
                for (size_t k = 0; k < n && !is_void; k++)
                        is_void = v[k].e.kind == LOG_CUT && k != i && v[i].e.seq >= v[k].e.seq && (v[i].order < v[k].order || (v[i].order == v[k].order && v[i].pos < v[k].pos));
                if (is_void)
                        free(v[i].payload);
                v[i].is_void = is_void;
        }
        for (size_t i = 0; i < n; i++) {
                struct rec x = v[i];
                if (x.is_void)
                        continue;
                v[i].payload = NULL; /* moves */
                v[kept++] = x;
        }
        for (size_t i = kept; i < n; i++)
                v[i].payload = NULL;
        return kept;
}

static int build(struct reading *rd, struct rec *v, size_t n, struct found_stage *ret) {
        struct stages *s = rd->s;
        for (size_t i = 0; i < n; i++)
                if (v[i].e.kind == LOG_CUT) {
                        n = drop_cut(v, n);
                        break;
                }
        struct stage_header h;
        bool damaged, made = false;
        uint64_t digest;
        size_t good = believed(rd, v, n, &damaged, &digest);
        if (good == 0 || n == 0 || v[0].e.kind != LOG_HEADER || stage_header_decode(v[0].payload, v[0].e.payload_bytes, &h) < 0 || h.gen != v[0].e.gen)
                return -EBADMSG;
        struct stage *st;
        int r = stage_new(s, &h, NULL, NULL, h.base_limit, &st);
        if (r < 0)
                return r;
        struct found_stage f = { .stage = st, .damaged = damaged, .incomplete = good < n };
        lock_take(&st->lock); /* early_touch asserts it; nobody else is here */
        for (size_t i = 0; i < good && r == 0; i++) {
                r = replay(st, &v[i], &f, &h);
                bool have = !v[i].seg;
                for (unsigned k = 0; k < st->n_segs; k++)
                        have |= st->segs[k] == v[i].seg;
                if (!have && st->n_segs < STAGE_SEGS_MAX)
                        st->segs[st->n_segs++] = segment_ref(v[i].seg);
        }
        lock_drop(&st->lock);
        if (r == -EBADMSG) {
                f.damaged = true;
                r = 0;
        }
        st->head = h;
        st->base = h.base;
        if (h.base.size > 0 || h.below_gen)
                stage_set_based(st);
        atomic_store(&st->ino, h.ino);
        st->logged = true;
        st->was_small = true; /* or may have been */
        st->copy = v[0].e.copy;
        st->seq = good;
        st->records = (uint32_t)MIN(good, (size_t)UINT32_MAX);
        st->changes = good;
        if (!h.below_gen)
                st->base_limit = MIN(st->base_limit, h.base.size);
        if (r == 0 && !v[0].seg) {
                struct own_found *o = own_of(rd, v[0].number);
                assert(o);
                o->used = true;
                st->large = true;
                st->log = (struct own_log) { .fd = -1, .number = o->number, .salt = o->f.salt, .end = o->end };
                memcpy(st->data_name, h.data_name, sizeof st->data_name);
                if (good < n && !f.damaged) { /* damaged: the next start, if it comes so far, must see that, too */
                        /* what is not believed must not come back behind new records */
                        st->log.end = v[good - 1].pos + slog_record_bytes(v[good - 1].e.payload_bytes);
                        r = own_log_open(st);
                        if (r == 0 && rd->new_boot) {
                                /* its last SYNC may be among what goes: another one first, in one sector */
                                struct slog_entry sync = { .kind = LOG_SYNC, .gen = h.gen, .copy = st->copy, .seq = st->seq, .off = st->seq };
                                r = slog_write(st->log.fd, &st->log.salt, st->log.end, &sync, NULL);
                                st->log.end += LOG_UNIT;
                                st->seq++;
                        }
                        if (r == 0 && ftruncate(st->log.fd, (off_t)st->log.end) < 0)
                                r = -errno;
                }
                st->log.charged = (st->log.end / LOG_CHARGE + 1) * LOG_CHARGE;
                st->log.sums_charged = (sums_pages(&st->map) + 1) * EXTENT_PAGE;
                blobs_charge_found(s->cfg.blobs, st->log.charged + st->log.sums_charged);
                int k = open_data(rd, st, &f, digest, &made);
                st->data_gone = st->fd < 0; /* whatever gets that name from now on is not ours to empty */
                if (k == -ESTALE) { /* a newer one has the file: this one had ended, and only its log came back */
                        f.done = true;
                        f.damaged = false;
                } else if (k < 0) {
                        f.damaged = true;
                }
        }
        uint64_t pages = st->fd >= 0 && !f.done ? extents_pages(&st->map, 0, UINT64_MAX) : 0, small = st->small_bytes;
        st->small_bytes = 0;
        blobs_charge_found(s->cfg.blobs, pages * EXTENT_PAGE);
        lock_take(&st->lock);
        stage_account(st, pages, small);
        st->untrusted = st->error != 0 && (f.sealed || st->error_bytes == UINT64_MAX); /* a sync failed, not a write */
        if (f.sealed) { /* it goes to the server as it is, but is never called local until then */
                st->error = 0;
                st->state = STAGE_SEALED;
                stages_count_state(s, STAGE_OPEN, STAGE_SEALED);
        }
        st->layer = f.layer;
        lock_drop(&st->lock);
        if (r < 0) {
                stage_put(st);
                return r;
        }
        if (st->untrusted)
                stages_spoil(s, st->gen);
        /* after a mere kill the page cache may hold some of it; what is done, damaged or without its file has nothing to sync, and a sync that must fail would stop the start */
        if ((!rd->new_boot || made || (st->large && good < n)) && !f.done && !f.damaged && !st->data_gone && !st->untrusted)
                stage_mark_dirty(st);
        else
                st->synced = st->changes;
        *ret = f;
        return 0;
}

/* The highest copy that can be built; v: all records of one generation. A DONE that is told of the generation as a whole comes last. */
static int build_best(struct reading *rd, struct rec *v, size_t n, struct stages_found *out) {
        bool done = false;
        for (; n > 0 && v[n - 1].e.copy == LOG_COPY_ALL; n--)
                done |= v[n - 1].e.kind == LOG_DONE;
        while (n > 0) {
                size_t a = n - 1;
                while (a > 0 && v[a - 1].e.copy == v[n - 1].e.copy)
                        a--;
                struct found_stage f;
                int r = build(rd, v + a, n - a, &f);
                if (r == 0) {
                        f.done |= done;
                        f.damaged &= !f.done;
                        struct found_stage *p = grown(out->v, out->n, sizeof *p);
                        if (!p)
                                return -ENOMEM;
                        out->v = p;
                        p[out->n++] = f;
                        return 0;
                }
                if (r != -EBADMSG)
                        return r;
                n = a; /* without a header that counts: never complete */
        }
        return 0;
}

static int list_dir(int dir_fd, const char *path, int (*each)(void *arg, const char *name), void *arg) {
        int fd = openat(dir_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? 0 : -errno;
        DIR *d = fdopendir(fd);
        if (!d) {
                int e = errno;
                (void)close(fd);
                return -e;
        }
        int r = 0;
        struct dirent *e;
        while (r == 0 && (e = readdir(d)))
                if (e->d_name[0] != '.')
                        r = each(arg, e->d_name);
        (void)closedir(d);
        return r;
}

static int add_lent(void *arg, const char *name) {
        struct reading *rd = arg;
        if (strlen(name) >= STAGE_DATA_NAME)
                return 0;
        void *v = grown(rd->lent, rd->n_lent, sizeof *rd->lent);
        if (!v)
                return -ENOMEM;
        rd->lent = v;
        memset(&rd->lent[rd->n_lent], 0, sizeof *rd->lent);
        memcpy(rd->lent[rd->n_lent++].name, name, strlen(name));
        return 0;
}

struct logs { uint32_t *v; size_t n; };
static int add_log(void *arg, const char *name) {
        struct logs *l = arg;
        unsigned number;
        char c;
        if (sscanf(name, "log-%8u%c", &number, &c) != 1)
                return 0;
        uint32_t *v = grown(l->v, l->n, sizeof *v);
        if (!v)
                return -ENOMEM;
        l->v = v;
        v[l->n++] = number;
        return 0;
}

static int by_number(const void *a, const void *b) {
        uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
        return x < y ? -1 : x > y;
}

static int orphans(struct reading *rd, const char *lost_dir) {
        struct stages *s = rd->s;
        for (size_t i = 0; i < rd->n_own; i++) {
                if (rd->own[i].used)
                        continue;
                struct own_log log = { .fd = -1, .number = rd->own[i].number };
                own_log_recycle(s, &log); /* a copy that never counted */
        }
        for (size_t i = 0; i < rd->n_lent; i++) {
                char path[PATH_MAX];
                struct stat sb;
                if (rd->lent[i].used)
                        continue;
                int r = data_file_path(s, rd->lent[i].name, path, sizeof path);
                if (r == 0 && stat(path, &sb) == 0)
                        r = sb.st_blocks == 0 ? blobs_file_return(s->cfg.blobs, path) : to_lost(rd, path, rd->lent[i].name, lost_dir);
                if (r < 0)
                        return r;
        }
        return 0;
}

static struct found_stage *by_gen(struct stages_found *f, uint64_t gen) {
        size_t lo = 0, hi = f->n;
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                if (f->v[mid].stage->gen < gen)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        return lo < f->n && f->v[lo].stage->gen == gen ? &f->v[lo] : NULL;
}

static void link_layers(struct stages_found *f) {
        for (size_t i = 0; i < f->n; i++) {
                struct stage *st = f->v[i].stage;
                struct found_stage *below = st->head.below_gen && st->head.below_gen < st->gen ? by_gen(f, st->head.below_gen) : NULL;
                if (below && !below->done && below->sealed) {
                        st->below = stage_ref(below->stage);
                        st->base_limit = MIN(st->base_limit, below->stage->size);
                        f->v[i].damaged |= below->damaged && st->base_limit > 0;
                } else if (st->head.below_gen && st->base_limit > 0 && !f->v[i].done) {
                        f->v[i].damaged = true; /* the layer that it stands on is gone */
                }
        }
}

int stages_recover(struct stages *s, bool new_boot, const char *lost_dir, struct stages_found *ret) {
        struct reading rd = { .s = s, .new_boot = new_boot };
        struct logs logs = { 0 };
        *ret = (struct stages_found) { 0 };
        char lent[PATH_MAX];
        int r = data_file_path(s, "", lent, sizeof lent);
        if (r == 0)
                r = list_dir(AT_FDCWD, lent, add_lent, &rd);
        if (r == 0)
                r = list_dir(s->dir_fd, ".", add_log, &logs);
        if (logs.n)
                qsort(logs.v, logs.n, sizeof *logs.v, by_number);
        for (size_t i = 0; r == 0 && i < logs.n; i++) {
                char name[STAGE_DATA_NAME];
                (void)snprintf(name, sizeof name, "log-%08" PRIu32, logs.v[i]);
                r = read_log(&rd, name, logs.v[i], lost_dir);
                if (r < 0)
                        log_error("cache recover log=%s error=%s", name, err_name(r));
        }
        if (rd.n)
                qsort(rd.v, rd.n, sizeof *rd.v, by_place);
        for (size_t end = rd.n, i; r == 0 && end > 0; end = i) { /* the newest first: who has a data file now */
                for (i = end - 1; i > 0 && rd.v[i - 1].e.gen == rd.v[end - 1].e.gen; i--)
                        ;
                r = build_best(&rd, rd.v + i, end - i, ret);
                stages_gen_above(s, rd.v[i].e.gen);
        }
        for (size_t i = 0, k = ret->n; i + 1 < k; i++) { /* in order again */
                struct found_stage x = ret->v[i];
                ret->v[i] = ret->v[--k];
                ret->v[k] = x;
        }
        if (r == 0)
                link_layers(ret);
        if (r == 0)
                r = orphans(&rd, lost_dir);
        ret->lost = rd.lost;
        for (size_t i = 0; i < rd.n; i++)
                free(rd.v[i].payload);
        for (size_t i = 0; i < rd.n_segs; i++)
                segment_put(rd.segs[i]);
        free(rd.v);
        free(rd.segs);
        free(rd.own);
        free(rd.lent);
        free(logs.v);
        if (r < 0)
                stages_found_free(ret);
        return r;
}

void stages_found_free(struct stages_found *f) {
        for (size_t i = 0; i < f->n; i++)
                stage_put(f->v[i].stage);
        free(f->v);
        *f = (struct stages_found) { 0 };
}

int stage_void(struct stage *st) {
        const struct slog_entry done = { .kind = LOG_DONE, .gen = st->gen, .copy = LOG_COPY_ALL };
        struct segment *seg;
        uint64_t pos;
        int r = segments_append(st->owner->segs, &done, NULL, true, &seg, &pos);
        if (r == 0)
                segment_put(seg);
        return r;
}

struct salvage { struct stage *st; int fd; uint8_t *buf; int err; };
static int salvage_one(void *arg, const struct extent *e) {
        struct salvage *s = arg;
        if (e->kind != EXTENT_DATA)
                return 0;
        const struct segment *seg = e->where;
        int fd = seg ? seg->fd : s->st->fd;
        for (uint64_t done = 0; fd >= 0 && done < e->bytes;) {
                size_t n = (size_t)MIN(e->bytes - done, (uint64_t)SMALL_STAGE_BYTES);
                if (pread_full(fd, s->buf, n, e->at + done) == 0) /* else it cannot be read: a hole */
                        s->err = pwrite_full(s->fd, s->buf, n, e->off + done);
                if (s->err < 0)
                        return s->err;
                done += n;
        }
        return 0;
}

int stage_salvage(struct stage *st, const char *lost_dir) {
        char path[PATH_MAX];
        int r = mkdir_p(lost_dir, 0700);
        if (r < 0)
                return r;
        if ((size_t)snprintf(path, sizeof path, "%s/stage-%" PRIu64 "-%.200s", lost_dir, st->gen, st->head.name[0] ? st->head.name : "unnamed") >= sizeof path)
                return -ENAMETOOLONG;
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        _cleanup_free_ uint8_t *buf = malloc(SMALL_STAGE_BYTES);
        if (fd < 0)
                return -errno;
        if (!buf)
                return -ENOMEM;
        struct salvage s = { .st = st, .fd = fd, .buf = buf };
        lock_take(&st->lock);
        (void)extents_each(&st->map, 0, UINT64_MAX, salvage_one, &s);
        uint64_t size = st->size;
        lock_drop(&st->lock);
        if (ftruncate(fd, (off_t)MIN(size, (uint64_t)INT64_MAX)) < 0 && s.err == 0)
                s.err = -errno;
        if (fsync(fd) < 0 && s.err == 0)
                s.err = -errno;
        if (s.err < 0) { /* a part of it would look like all of it */
                (void)unlink(path);
                return s.err;
        }
        log_warn("cache recover gen=%" PRIu64 " ino=%" PRIu64 " damaged saved_as=%s", st->gen, stage_ino(st), path);
        return 0;
}
