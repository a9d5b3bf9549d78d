/* SPDX-License-Identifier: Apache-2.0 */
/* stage_own.c: the large home of a stage: a sparse file with its bytes and a log file with its records.
 *
 * Both files are recycled: the data file is lent by the blob pool (it lies in lent/ and is not touched there) and goes back or becomes the file of a blob; log files are emptied and
 * kept for the next stage. An empty file that no log names is a crash between two steps and goes to the pools at the next start; one with bytes that nobody names goes to
 * lost+found/.
 *
 * A log comes to life by its first 64 bytes, which are written last: the records of a stage that moves here from the shared log are complete before anybody can find them. The copy
 * in the shared log counts until the own log was synced once (stage_sync then gives the segments back).
 *
 * Consecutive writes make the last DATA record longer in place instead of adding one. A record does not cross a sector, so it is either old or new. */
#include "stage_core.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"

static void log_name(uint32_t number, char ret[STAGE_DATA_NAME]) {
        (void)snprintf(ret, STAGE_DATA_NAME, "log-%08" PRIu32, number);
}

int data_file_path(struct stages *s, const char *name, char *ret, size_t n) {
        int len = snprintf(ret, n, "%s/lent/%s", s->cfg.dir, name);
        return len < 0 || (size_t)len >= n ? -ENAMETOOLONG : 0;
}

static int data_file_take(struct stages *s, struct stage_room *room, char ret_name[STAGE_DATA_NAME], int *ret_fd) {
        assert(room->fd >= 0);
        char path[PATH_MAX];
        const char *base = strrchr(room->path, '/');
        if (!base || strlen(base + 1) >= STAGE_DATA_NAME || data_file_path(s, base + 1, path, sizeof path) < 0 || strcmp(path, room->path) != 0)
                return -EINVAL; /* not where recovery would look for it */
        memset(ret_name, 0, STAGE_DATA_NAME);
        memcpy(ret_name, base + 1, strlen(base + 1));
        *ret_fd = steal_fd(&room->fd);
        return 0;
}

static int log_file_take(struct stages *s, struct own_log *ret, int *ret_sums_fd) {
        struct own_log l = { .fd = -1 };
        lock_take(&s->lock);
        bool pooled = s->n_log_pool > 0;
        if (pooled)
                l.number = s->log_pool[--s->n_log_pool];
        lock_drop(&s->lock);
        char name[STAGE_DATA_NAME];
        if (pooled) {
                log_name(l.number, name);
                l.fd = openat(s->dir_fd, name, O_RDWR | O_CLOEXEC);
        }
        while (l.fd < 0) {
                l.number = segments_number(s->segs);
                log_name(l.number, name);
                l.fd = openat(s->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
                if (l.fd < 0 && errno != EEXIST)
                        return -errno;
        }
        l.salt = rng_id(s->rng);
        l.end = LOG_UNIT;
        *ret = l; /* also if there is no file for the sums: it is the caller's to give back */
        sums_name(l.number, name);
        *ret_sums_fd = openat(s->dir_fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (*ret_sums_fd < 0)
                return -errno;
        static const uint8_t none[LOG_UNIT];
        return pwrite_full(*ret_sums_fd, none, sizeof none, 0); /* the intent has its place from now on */
}

void own_log_recycle(struct stages *s, struct own_log *log) {
        char name[STAGE_DATA_NAME];
        log_name(log->number, name);
        FAILPOINT_HERE("stage.recycle");
        char sums[STAGE_DATA_NAME];
        sums_name(log->number, sums);
        (void)unlinkat(s->dir_fd, sums, 0); /* before somebody takes the number; who reads it has it open */
        if (log->fd < 0)
                log->fd = openat(s->dir_fd, name, O_RDWR | O_CLOEXEC);
        bool keep = log->fd >= 0 && ftruncate(log->fd, 0) == 0;
        if (keep) {
                LOCK_SCOPE(&s->lock);
                keep = s->n_log_pool < LOG_POOL_MAX;
                for (size_t i = 0; i < s->n_log_pool; i++)
                        assert(s->log_pool[i] != log->number); /* released once only */
                if (keep)
                        s->log_pool[s->n_log_pool++] = log->number;
        }
        if (!keep)
                (void)unlinkat(s->dir_fd, name, 0);
        if (log->fd >= 0)
                (void)close(steal_fd(&log->fd));
        if (log->charged + log->sums_charged)
                blobs_discharge(s->cfg.blobs, log->charged + log->sums_charged);
        log->charged = log->sums_charged = 0;
}

int own_log_open(struct stage *st) {
        if (st->log.fd >= 0)
                return 0;
        if (st->log.released)
                return -ENOENT; /* the file may be another stage's by now */
        char name[STAGE_DATA_NAME];
        log_name(st->log.number, name);
        st->log.fd = openat(st->owner->dir_fd, name, O_RDWR | O_CLOEXEC);
        return st->log.fd < 0 ? -errno : 0;
}

void own_log_close(struct stage *st) {
        if (st->log.fd >= 0)
                (void)close(steal_fd(&st->log.fd));
}

int own_log_append(struct stage *st, const struct slog_entry *e, const void *payload) {
        struct own_log *l = &st->log;
        int r = own_log_open(st);
        if (r < 0)
                return r;
        if (e->kind == LOG_DATA && l->last_open && l->last.off + l->last.bytes == e->off) {
                struct slog_entry longer = l->last;
                longer.bytes += e->bytes;
                longer.time_ns = e->time_ns;
                r = slog_write(l->fd, &l->salt, l->end - LOG_UNIT, &longer, NULL);
                if (r == 0)
                        l->last = longer;
                return r;
        }
        struct slog_entry x = *e;
        x.gen = st->gen;
        x.copy = st->copy;
        x.seq = st->seq;
        r = slog_write(l->fd, &l->salt, l->end, &x, payload);
        if (r < 0)
                return r;
        st->seq++;
        l->end += slog_record_bytes(x.payload_bytes);
        l->last = x;
        l->last_open = x.kind == LOG_DATA;
        return 0;
}

struct mover { struct stage *st; int fd; struct extent *v; size_t n, room; int err; };
static int collect(void *arg, const struct extent *e) {
        struct mover *m = arg;
        if (m->n == m->room) {
                size_t room = m->room ? m->room * 2 : 64;
                struct extent *v = realloc(m->v, room * sizeof *v);
                if (!v)
                        return -ENOMEM;
                m->v = v;
                m->room = room;
        }
        m->v[m->n++] = *e;
        return 0;
}

static int move_bytes(struct stage *st, const struct extent *e, int fd, uint8_t *buf) {
        struct segment *seg = e->where;
        struct piece p = { .kind = PIECE_DISK, .bytes = e->bytes, .at = e->at, .fd = seg->fd, .stage = st };
        lock_take(&st->lock);
        p.epoch = st->epoch;
        payload_piece(st, seg, &p);
        lock_drop(&st->lock);
        int r = piece_read(&p, buf, (size_t)e->bytes); /* one payload: SMALL_STAGE_BYTES at most */
        return r < 0 ? r : pwrite_full(fd, buf, (size_t)e->bytes, e->off);
}

/* The stage's whole state as records of a new copy, the file's first bytes last. */
static int write_copy(struct stage *st, struct mover *m, struct own_log *l, struct stage_header *head, uint16_t copy, uint64_t *ret_seq) {
        uint8_t b[STAGE_HEADER_BYTES];
        stage_header_encode(head, b);
        lock_take(&st->lock);
        uint64_t size = st->size;
        int64_t mtime_ns = st->mtime_ns;
        int error = st->error;
        uint64_t eo = st->error_off, eb = st->error_bytes;
        bool sealed = st->state == STAGE_SEALED, layer = st->layer;
        lock_drop(&st->lock);
        struct slog_entry e = { .kind = LOG_HEADER, .gen = st->gen, .copy = copy, .payload_bytes = sizeof b };
        int r = slog_write(l->fd, &l->salt, l->end, &e, b);
        l->end += slog_record_bytes(sizeof b);
        uint64_t seq = 1;
        bool fresh = !st->logged;
        for (size_t i = 0; r == 0 && !fresh && i < m->n + 5; i++) {
                e = (struct slog_entry) { .gen = st->gen, .copy = copy, .seq = seq, .time_ns = mtime_ns };
                if (i < m->n) {
                        e.kind = m->v[i].kind == EXTENT_DATA ? LOG_DATA : LOG_ZERO; /* a small stage has no SENT extents */
                        e.off = m->v[i].off;
                        e.bytes = m->v[i].bytes;
                } else if (i == m->n) {
                        e.kind = LOG_SIZE;
                        e.bytes = size;
                } else if (i == m->n + 1) {
                        e.kind = LOG_MTIME;
                } else if (i == m->n + 2) {
                        if (!error)
                                continue;
                        e.kind = LOG_FAILED;
                        e.off = eo;
                        e.bytes = MAX(eb, (uint64_t)1);
                        e.flags = (uint8_t)-error;
                } else if (i == m->n + 3) {
                        if (!sealed)
                                continue;
                        e.kind = LOG_SEAL;
                        e.off = seq;
                        e.bytes = size;
                } else {
                        if (!layer)
                                continue;
                        e.kind = LOG_LAYER;
                }
                r = slog_write(l->fd, &l->salt, l->end, &e, NULL);
                l->end += LOG_UNIT;
                seq++;
        }
        if (r < 0)
                return r;
        struct slog_file f = { .kind = LOG_OWN, .salt = l->salt };
        uint8_t first[LOG_UNIT];
        slog_file_encode(&f, first);
        r = pwrite_full(l->fd, first, sizeof first, 0);
        *ret_seq = seq;
        return r;
}

static int relocate(struct stage *st, const struct segment *old) {
        struct stages *s = st->owner;
        /* an upper bound: 64 KiB in at most SMALL_STAGE_RECORDS pieces */
        struct stage_room room = { .fd = -1, .want = LOG_CHARGE + SMALL_STAGE_BYTES + (SMALL_STAGE_RECORDS + STAGE_SEGS_MAX) * 4 * EXTENT_PAGE };
        int r = 0;
        for (int round = 0; round < 2; round++) {
                lock_take(&st->io);
                bool here = false;
                for (unsigned i = 0; i < st->n_segs; i++)
                        here |= st->segs[i] == old;
                lock_take(&st->lock);
                here &= st->state != STAGE_GONE && !st->large;
                lock_drop(&st->lock);
                if (here && round == 1)
                        r = stage_grow(st, &room);
                lock_drop(&st->io);
                if (!here || r < 0)
                        break;
                if (round == 1) {
                        stage_mark_dirty(st); /* its next sync gives the segment back */
                        break;
                }
                room.want_file = true;
                r = stage_room_get(s, &room);
                if (r == -ENOSPC) { /* moving gives back more than it takes, and nothing else may: an open stage that waits for room itself holds the segments */
                        blobs_charge_found(s->cfg.blobs, room.want - room.charged);
                        room.charged = room.want;
                        r = stage_room_get(s, &room);
                }
                if (r < 0)
                        break;
        }
        stage_room_end(s, &room);
        return r;
}

void stages_relocate(struct stages *s) {
        lock_assert_none();
        struct segment *old = segments_pinned(s->segs);
        if (!old)
                return;
        lock_take(&s->lock);
        size_t max = s->n, n = 0;
        lock_drop(&s->lock);
        _cleanup_free_ struct stage **v = calloc(max + 1, sizeof *v);
        lock_take(&s->lock);
        for (size_t i = 0; v && i < s->n_buckets; i++)
                for (struct stage *st = s->bucket[i]; st && n < max; st = st->hash_next) {
                        unsigned refs = atomic_load_explicit(&st->refs, memory_order_relaxed);
                        while (refs > 0 && !atomic_compare_exchange_weak_explicit(&st->refs, &refs, refs + 1, memory_order_acquire, memory_order_relaxed))
                                ;
                        if (refs > 0)
                                v[n++] = st;
                }
        lock_drop(&s->lock);
        for (size_t i = 0; i < n; i++) {
                int r = relocate(v[i], old);
                if (r < 0)
                        log_debug("stage gen=%llu relocate error=%s", (unsigned long long)v[i]->gen, err_name(r));
                stage_put(v[i]);
        }
        segment_put(old);
}

int stage_grow(struct stage *st, struct stage_room *room) {
        lock_assert_held(&st->io);
        assert(!st->large);
        struct stages *s = st->owner;
        struct stage_header head = st->head;
        struct mover m = { .st = st };
        _cleanup_close_ int fd = -1, sums_fd = -1;
        struct own_log log = { .fd = -1 };
        lock_take(&st->lock);
        head.base_limit = st->base_limit;
        int r = extents_each(&st->map, 0, UINT64_MAX, collect, &m);
        lock_drop(&st->lock);
        _cleanup_free_ struct extent *v = m.v;
        _cleanup_free_ uint8_t *buf = malloc(SMALL_STAGE_BYTES);
        if (r == 0 && !buf)
                r = -ENOMEM;
        if (r < 0)
                return r;
        r = FAILPOINT("stage.grow");
        if (r == 0)
                r = data_file_take(s, room, head.data_name, &fd);
        if (r < 0)
                return r;
        for (size_t i = 0; r == 0 && i < m.n; i++)
                if (v[i].kind == EXTENT_DATA)
                        r = move_bytes(st, &v[i], fd, buf);
        if (r == 0)
                r = log_file_take(s, &log, &sums_fd);
        if (r == 0)
                r = sums_make(&st->map, fd, sums_fd);
        uint16_t copy = (uint16_t)(st->copy + (st->logged ? 1 : 0));
        uint64_t seq = 0;
        if (r == 0)
                r = write_copy(st, &m, &log, &head, copy, &seq);
        if (r == 0)
                FAILPOINT_HERE("stage.grown");
        if (r < 0) {
                char path[PATH_MAX];
                if (log.fd >= 0)
                        own_log_recycle(s, &log);
                if (data_file_path(s, head.data_name, path, sizeof path) < 0 || blobs_file_return(s->cfg.blobs, path) < 0)
                        log_debug("stage gen=%llu grow_undo path=%s", (unsigned long long)st->gen, head.data_name);
                return r;
        }
        if (room->charged >= LOG_CHARGE) {
                log.charged = LOG_CHARGE;
                room->charged -= LOG_CHARGE;
        }
        uint64_t sums = (sums_pages(&st->map) + 1) * EXTENT_PAGE;
        log.sums_charged = MIN(sums, room->charged);
        room->charged -= log.sums_charged;
        st->head = head;
        st->copy = copy;
        st->seq = seq;
        st->log = log;
        st->logged = true;
        st->changes++;
        lock_take(&st->lock);
        st->large = true;
        st->fd = steal_fd(&fd);
        st->sums_fd = steal_fd(&sums_fd);
        memcpy(st->data_name, head.data_name, sizeof st->data_name);
        extents_rehome(&st->map);
        r = extents_reserve(&st->map); /* for the change that made us grow */
        uint64_t pages = extents_pages(&st->map, 0, UINT64_MAX);
        pages = MIN(pages, room->charged / EXTENT_PAGE);
        room->charged -= pages * EXTENT_PAGE;
        room->want = room->charged;
        stage_account(st, pages, 0);
        lock_drop(&st->lock);
        return r;
}

void stage_release_disk(struct stage *st, bool data_taken) {
        struct stages *s = st->owner;
        lock_assert_none();
        lock_take(&st->io);
        bool logged = st->logged, large = st->large;
        data_taken |= st->data_gone;
        int r = logged && large && !data_taken ? stage_note(st, LOG_DONE, 0, 0, 0, 0, NULL, 0) : 0;
        if (r == 0 && logged && st->was_small) {
                struct slog_entry done = { .kind = LOG_DONE, .gen = st->gen, .copy = LOG_COPY_ALL };
                struct segment *seg;
                uint64_t pos;
                r = segments_append(s->segs, &done, NULL, true, &seg, &pos);
                if (r == 0)
                        segment_put(seg); /* older segments go before newer ones: it outlives what it is about */
        }
        if (r < 0)
                log_debug("stage gen=%llu done_note error=%s", (unsigned long long)st->gen, err_name(r));
        lock_take(&st->lock);
        FAILPOINT_HERE("stage.done");
        assert(st->state == STAGE_GONE && !st->log.released);
        st->epoch++;
        uint64_t pages = st->pages;
        stage_account(st, 0, 0);
        lock_drop(&st->lock);
        struct own_log log = st->log;
        st->log.fd = -1;
        st->log.charged = st->log.sums_charged = 0;
        st->log.released = true;
        lock_drop(&st->io);
        if (large) {
                char path[PATH_MAX];
                if (!data_taken) {
                        r = data_file_path(s, st->data_name, path, sizeof path);
                        if (r == 0)
                                r = blobs_file_return(s->cfg.blobs, path);
                        if (r < 0)
                                log_debug("stage gen=%llu file_return error=%s", (unsigned long long)st->gen, err_name(r));
                }
                own_log_recycle(s, &log);
        }
        if (pages)
                blobs_discharge(s->cfg.blobs, pages * EXTENT_PAGE);
}
