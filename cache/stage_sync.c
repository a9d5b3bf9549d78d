/* SPDX-License-Identifier: Apache-2.0 */
/* stage_sync.c: the way of stages to the platter.
 *
 * Small stages share one fdatasync of the segments (stage_seg.c). A large one needs its data file, then a SYNC record in its log that says up to where, then the log. After a power cut only what the last
 * SYNC vouches for is believed. Several large ones go side by side: write-back of all data files is started, all are synced, then all marks are written, then all logs are synced; so a file
 * system with a journal commits it a few times and not twice for each.
 *
 * The list s->dirty has every stage that may lack something: it enters with a change (under io) and leaves when a sync has covered all changes (likewise), was spoilt, or the stage is gone. It does not leave
 * while it is being synced: two who sync at the same time both wait for the disk, and nobody takes for durable what another one has only begun.
 *
 *   stage_sync            one stage (fsync of a file; before a block leaves the disk)
 *   stages_sync_some      those of a batch, before it is marked as sent
 *   stages_sync_sealed    all sealed ones: before each sync of the tree, whose rows name these
 *   stages_sync_dirty     all: once a second
 *
 * An fsync that failed spoils the stage (stage_write.c), for everybody, for good or until it was written once more (stage_again.c): the kernel tells it once, to whoever asks first, so one asks at a time (st->sync, and the segments' own) and the answer is
 * kept. What a spoilt generation replaced is not let go while a row names it (stages_spoilt). No room for the mark: nothing is spoilt, and the stage stays in the list.
 * Locks below RANK_STAGE_IO may be held: a transaction that finds the tree's log full comes here with its file's lock (tree_sync.c). */
#include "stage_core.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"

struct one {
        struct stage *stage;
        uint64_t changes, seq;        /* what is covered: so many changes; large: records before that one */
        bool large, busy;             /* busy: something is to be done, and nothing failed so far */
        bool sealed;                  /* its SEAL is among what is covered: only control records can follow */
        int fd, log_fd, result;
};

static void leave_list(struct stage *st) {
        struct stages *s = st->owner;
        LOCK_SCOPE(&s->lock);
        stage_unlist_locked(st);
}

/* What it needs now. */
static void begin(struct one *o) {
        struct stage *st = o->stage;
        LOCK_SCOPE(&st->io);
        o->changes = st->changes;
        o->seq = st->seq;
        o->large = st->large;
        o->log_fd = -1;
        o->result = st->untrusted ? -EIO : 0;
        st->log.last_open = false; /* what comes from now on is in later records */
        lock_take(&st->lock);
        o->sealed = st->state == STAGE_SEALED;
        bool done = st->synced >= o->changes || st->state == STAGE_GONE || st->data_gone; /* without its file: what is noted of it keeps nothing */
        o->fd = st->fd;
        lock_drop(&st->lock);
        o->busy = !done && !st->untrusted;
        if (!o->busy)
                leave_list(st);
}

static void failed(struct one *o, int r) {
        o->result = r;
        o->busy = false;
}

/* The kernel tells a failure to one caller only: so one asks at a time, and it is noted before the next one does. */
static int ask_disk(struct stage *st, int fd, int r) {
        lock_assert_held(&st->sync);
        if (r == 0 && fdatasync(fd) < 0)
                r = -errno;
        if (r < 0) {
                st->sync_failed = true;
                st->sync_failures++;
        }
        return r == 0 && st->sync_failed ? -EIO : r;
}

static void sync_data(struct one *o) {
        LOCK_SCOPE(&o->stage->sync);
        int r = ask_disk(o->stage, o->fd, FAILPOINT("stage.sync"));
        if (r < 0)
                failed(o, r);
}

/* -EAGAIN: nothing failed, but there was no room for the mark that says what is on the platter. */
static void write_mark(struct one *o) {
        struct stage *st = o->stage;
        LOCK_SCOPE(&st->io);
        if (st->log.released) /* committed or dropped while we synced */
                return;
        uint64_t digest = 0;
        lock_take(&st->lock);
        bool still = o->sealed && st->state == STAGE_SEALED; /* whatever notes came meanwhile, that of another sync among them */
        lock_drop(&st->lock);
        if (still && sums_digest(&st->map, st->sums_fd, &digest) < 0) /* io guards map and sums */
                digest = 0;
        int r = FAILPOINT("stage.mark");
        if (r == 0)
                r = own_log_open(st);
        if (r == 0)
                r = stage_note(st, LOG_SYNC, o->seq, digest, 0, 0, NULL, 0);
        if (r == -ENOSPC)
                r = -EAGAIN;
        if (r == 0) {
                o->log_fd = fcntl(st->log.fd, F_DUPFD_CLOEXEC, 3); /* the log may move or close meanwhile */
                r = o->log_fd < 0 ? -errno : 0;
        }
        if (r < 0)
                failed(o, r);
}

static void sync_log(struct one *o) {
        LOCK_SCOPE(&o->stage->sync);
        int r = ask_disk(o->stage, o->log_fd, FAILPOINT("stage.sync.log"));
        if (r < 0)
                failed(o, r);
}

/* Small: do all of its records lie where a sync did not fail? io held */
static int segments_state(struct stage *st) {
        for (unsigned i = 0; i < st->n_segs; i++)
                if (segment_failed(st->segs[i]))
                        return -EIO;
        return 0;
}

/* io held */
static void set_synced(struct stage *st, uint64_t changes, bool large) {
        lock_take(&st->lock);
        st->synced = MAX(st->synced, changes);
        if (large && st->n_segs)
                st->epoch++; /* the copy in the shared log may be overwritten from now on */
        if (large && st->state == STAGE_SEALED && st->synced == st->changes)
                own_log_close(st); /* opened again for the few records that may follow */
        lock_drop(&st->lock);
        if (large)
                while (st->n_segs)
                        segment_put(st->segs[--st->n_segs]);
}

/* A row may name it, and what it replaced is still needed then. */
void stages_spoil(struct stages *s, uint64_t gen) {
        LOCK_SCOPE(&s->lock);
        for (size_t i = 0; i < s->n_spoilt; i++)
                if (s->spoilt[i] == gen)
                        return;
        if (s->n_spoilt < SPOILT_MAX)
                s->spoilt[s->n_spoilt++] = gen;
}

bool stages_spoilt(struct stages *s, int (*named)(void *arg, uint64_t gen), void *arg) {
        uint64_t v[SPOILT_MAX];
        lock_assert_none();
        lock_take(&s->lock);
        size_t n = s->n_spoilt, kept = 0;
        memcpy(v, s->spoilt, n * sizeof *v);
        lock_drop(&s->lock);
        for (size_t i = 0; i < n; i++)
                if (n == SPOILT_MAX || named(arg, v[i]) != 0) /* if it cannot be told: needed */
                        kept++;
                else
                        v[i] = 0;
        if (kept == n)
                return n > 0;
        LOCK_SCOPE(&s->lock);
        size_t left = 0;
        for (size_t i = 0; i < s->n_spoilt; i++)
                if (i >= n || v[i])
                        s->spoilt[left++] = s->spoilt[i];
        s->n_spoilt = left;
        return left > 0;
}

void stages_unspoil(struct stages *s, uint64_t gen) {
        LOCK_SCOPE(&s->lock);
        if (s->n_spoilt == SPOILT_MAX) /* others may not be in the list */
                return;
        size_t left = 0;
        for (size_t i = 0; i < s->n_spoilt; i++)
                if (s->spoilt[i] != gen)
                        s->spoilt[left++] = s->spoilt[i];
        s->n_spoilt = left;
}

static void end(struct one *o, bool did) {
        struct stage *st = o->stage;
        if (o->log_fd >= 0)
                (void)close(o->log_fd);
        if (!did)
                return;
        if (o->result == -EAGAIN) {
                o->result = -ENOSPC; /* the next flush tries again */
                return;
        }
        LOCK_SCOPE(&st->io);
        if (o->result == 0 && !o->large && !st->large)
                o->result = segments_state(st);
        if (o->result < 0) {
                stages_spoil(st->owner, st->gen);
                log_error("stage gen=%llu sync error=%s", (unsigned long long)st->gen, err_name(o->result));
                st->untrusted = true;
                stage_fail(st, -EIO, 0, UINT64_MAX);
                o->result = -EIO;
                leave_list(st);
        } else if (o->large || !st->large) { /* else it moved meanwhile: its new home is still to be synced */
                set_synced(st, o->changes, o->large); /* our own mark is none */
                if (st->synced >= st->changes) /* io guards it, too: nobody else raises it */
                        leave_list(st);
        }
}

/* All of v at once. Returns the first failure. */
static int sync_all(struct stages *s, struct one *v, size_t n) {
        size_t small = 0;
        int result = 0;
        for (size_t i = 0; i < n; i++) {
                begin(&v[i]);
                small += v[i].busy && !v[i].large;
                if (v[i].busy && v[i].large && n > 1) /* only a hint */
                        (void)sync_file_range(v[i].fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        }
        _cleanup_free_ bool *did = calloc(n + 1, sizeof *did);
        if (!did)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                did[i] = v[i].busy;
        if (small)
                (void)!segments_sync(s->segs); /* each of them hears of its own segments */
        for (size_t i = 0; i < n; i++)
                if (v[i].busy && v[i].large)
                        sync_data(&v[i]);
        for (size_t i = 0; i < n; i++)
                if (v[i].busy && v[i].large)
                        write_mark(&v[i]);
        for (size_t i = 0; i < n; i++)
                if (v[i].busy && v[i].log_fd >= 0)
                        sync_log(&v[i]);
        for (size_t i = 0; i < n; i++) {
                end(&v[i], did[i]);
                if (v[i].result < 0 && result == 0)
                        result = v[i].result;
        }
        return result;
}

int stage_sync(struct stage *st) {
        lock_assert_none();
        struct one o = { .stage = st };
        return sync_all(st->owner, &o, 1);
}

static bool is_untrusted(struct stage *st) {
        LOCK_SCOPE(&st->io);
        return st->untrusted;
}

int stages_sync_some(struct stages *s, const uint64_t *gens, size_t n) {
        lock_assert_none();
        _cleanup_free_ struct one *v = calloc(n + 1, sizeof *v);
        size_t k = 0;
        if (!v)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                if (!gens[i] || stage_get(s, gens[i], &v[k].stage) < 0)
                        continue;
                if (is_untrusted(v[k].stage)) /* told when its sync failed. The server is a better place for it than this disk, and others in the batch wait */
                        stage_put(v[k].stage);
                else
                        k++;
        }
        int result = sync_all(s, v, k);
        while (k > 0)
                stage_put(v[--k].stage);
        return result;
}

/* Those in the list, referenced. */
static int listed(struct stages *s, struct one **ret, size_t *ret_n) {
        for (size_t room = 0;;) {
                struct one *v = room ? calloc(room, sizeof *v) : NULL;
                if (room && !v)
                        return -ENOMEM;
                size_t n = 0, all = 0;
                lock_take(&s->lock);
                for (struct stage *st = s->dirty; st; st = st->dirty_next) {
                        if (++all > room)
                                continue;
                        unsigned refs = atomic_load_explicit(&st->refs, memory_order_relaxed);
                        while (refs > 0 && !atomic_compare_exchange_weak_explicit(&st->refs, &refs, refs + 1, memory_order_acquire, memory_order_relaxed))
                                ;
                        if (refs > 0)
                                v[n++].stage = st;
                }
                lock_drop(&s->lock);
                if (all <= room) {
                        *ret = v;
                        *ret_n = n;
                        return 0;
                }
                while (n > 0)
                        stage_put(v[--n].stage);
                free(v);
                room = all + 16;
        }
}

static int sync_listed(struct stages *s, bool sealed_only) {
        _cleanup_free_ struct one *v = NULL;
        size_t n, k = 0;
        int r = listed(s, &v, &n);
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct stage *st = v[i].stage;
                lock_take(&st->lock);
                bool wanted = !sealed_only || st->state != STAGE_OPEN;
                lock_drop(&st->lock);
                if (wanted)
                        v[k++].stage = st;
                else
                        stage_put(st);
        }
        if (r == 0)
                r = sync_all(s, v, k);
        while (k > 0)
                stage_put(v[--k].stage);
        return r;
}

int stages_sync_dirty(struct stages *s) {
        lock_assert_none();
        return sync_listed(s, false);
}

int stages_sync_sealed(struct stages *s) {
        lock_assert_below(RANK_STAGE_IO);
        return sync_listed(s, true);
}
