/* SPDX-License-Identifier: Apache-2.0 */
/* stage_write.c: changes of an open stage, and its seal. Its way to the platter: stage_sync.c.
 *
 * Every change is made under `io` in the order that stage.c tells. What may have to wait for room is never done under it: a change that finds that it needs disk room, a file or a
 * segment says so in a struct stage_room and answers -EAGAIN; the caller drops the lock, gets it (which may evict, or fail with -ENOSPC so that the writer is parked) and comes
 * again. Room that was got and not used goes back.
 *
 * Charged: for a large stage each 4 KiB page of its file that a DATA extent touches, and its log in steps; for a small one nothing, because its segment was charged whole.
 *
 * Errors: a write that failed after bytes may have changed spoils the generation (FAILED record) until the same range is written or cut; an fsync that failed spoils the
 * stage for good, because nobody can say which pages are gone: the file layer takes a new stage when the program truncates, else it keeps answering -EIO.
 */
#include "stage_core.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>

#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"

int stage_room_get(struct stages *s, struct stage_room *room) {
        lock_assert_none();
        if (room->want > room->charged) {
                int r = blobs_charge(s->cfg.blobs, room->want - room->charged);
                if (r < 0)
                        return r;
                room->charged = room->want;
        }
        if (room->want_file && room->fd < 0) {
                int r = blobs_file_take(s->cfg.blobs, &room->fd, room->path, sizeof room->path);
                if (r < 0)
                        return r;
        }
        if (room->want_record) {
                int r = segments_prepare(s->segs, room->want_record);
                if (r < 0)
                        return r;
        }
        room->want_file = false;
        room->want_record = 0;
        return 0;
}

void stage_room_end(struct stages *s, struct stage_room *room) {
        if (room->charged)
                blobs_discharge(s->cfg.blobs, room->charged);
        room->charged = room->want = 0;
        if (room->fd >= 0) {
                (void)close(steal_fd(&room->fd));
                int r = blobs_file_return(s->cfg.blobs, room->path);
                if (r < 0)
                        log_debug("stage file_return path=%s error=%s", room->path, err_name(r));
        }
}

/* One record in whatever home; small: ret_seg and ret_at tell where the payload is. */
static int append(struct stage *st, struct slog_entry *e, const void *payload, bool control, struct segment **ret_seg, uint64_t *ret_at) {
        e->gen = st->gen;
        e->copy = st->copy;
        if (st->large) {
                if (st->log.released)
                        return 0; /* a remark about a stage that is gone */
                int r = own_log_append(st, e, payload);
                if (r == 0 && e->kind != LOG_SYNC) /* a remark of a sync is nothing that the next one has to cover: two that go side by side would each miss the other's */
                        st->changes++;
                return r;
        }
        uint8_t head[STAGE_HEADER_BYTES];
        struct slog_entry he = { .kind = LOG_HEADER, .gen = st->gen, .payload_bytes = sizeof head };
        bool with_head = !st->logged;
        for (;;) {
                struct segment *seg;
                uint64_t pos;
                int r;
                if (with_head) {
                        stage_header_encode(&st->head, head);
                        r = segments_append(st->owner->segs, &he, head, control, &seg, &pos);
                } else {
                        e->seq = st->seq;
                        r = segments_append(st->owner->segs, e, payload, control, &seg, &pos);
                }
                if (r < 0)
                        return r;
                bool have = false;
                for (unsigned i = 0; i < st->n_segs; i++)
                        have |= st->segs[i] == seg;
                if (have)
                        segment_put(seg);
                else if (st->n_segs < STAGE_SEGS_MAX)
                        st->segs[st->n_segs++] = seg;
                /* else: only control records come that far; the reference stays with the segment until the next start */
                st->was_small = true;
                st->seq++;
                st->records++;
                if (!with_head) {
                        st->appended += e->payload_bytes;
                        st->changes++;
                        if (ret_seg) {
                                *ret_seg = seg;
                                *ret_at = pos + LOG_UNIT;
                        }
                        return 0;
                }
                st->logged = true;
                with_head = false;
        }
}

int stage_note(struct stage *st, enum slog_kind kind, uint64_t off, uint64_t bytes, int64_t time_ns, uint8_t flags, const void *payload, uint32_t payload_bytes) {
        lock_assert_held(&st->io);
        struct slog_entry e = { .kind = kind, .flags = flags, .off = off, .bytes = bytes, .time_ns = time_ns, .payload_bytes = payload_bytes };
        int r = append(st, &e, payload, true, NULL, NULL);
        if (r == 0 && kind != LOG_SYNC)
                stage_mark_dirty(st);
        return r;
}

int stage_error(struct stage *st) {
        LOCK_SCOPE(&st->lock);
        return st->error;
}

void stage_fail(struct stage *st, int error, uint64_t off, uint64_t n) {
        assert(error < 0);
        lock_take(&st->lock);
        if (!st->error) {
                st->error_off = off;
                st->error_bytes = n;
        } else {
                uint64_t end = MAX(st->error_off + st->error_bytes, off + n);
                st->error_off = MIN(st->error_off, off);
                st->error_bytes = end - st->error_off;
        }
        st->error = error;
        uint64_t o = st->error_off, b = st->error_bytes;
        lock_drop(&st->lock);
        int r = st->logged ? stage_note(st, LOG_FAILED, o, MAX(b, (uint64_t)1), 0, (uint8_t)-error, NULL, 0) : 0;
        if (r < 0)
                log_debug("stage gen=%llu failed_note error=%s", (unsigned long long)st->gen, err_name(r));
}

static void heal(struct stage *st, uint64_t off, uint64_t end) {
        lock_take(&st->lock);
        bool healed = st->error && !st->untrusted && off <= st->error_off && end >= st->error_off + st->error_bytes;
        if (healed)
                st->error = 0;
        lock_drop(&st->lock);
        if (healed) {
                int r = stage_note(st, LOG_FAILED, 0, 0, 0, 0, NULL, 0);
                if (r < 0)
                        log_debug("stage gen=%llu healed_note error=%s", (unsigned long long)st->gen, err_name(r));
        }
}

/* lock held */
static void touched(struct stage *st, bool wrote, uint64_t end, int64_t now_ns) {
        int64_t now_ms = clock_mono_ms(st->owner->cfg.clock);
        if (!atomic_load_explicit(&st->first_write_ns, memory_order_relaxed)) {
                atomic_store_explicit(&st->first_write_ns, now_ns, memory_order_relaxed);
                st->first_write_ms = now_ms;
        }
        st->last_write_ms = now_ms;
        if (wrote)
                st->last_write_end = end;
        st->mtime_ns = st->ctime_ns = now_ns;
}

static uint64_t hull_pages(uint64_t off, uint64_t n) {
        return n ? (off + n - 1) / EXTENT_PAGE - off / EXTENT_PAGE + 1 : 0;
}

struct sum_pages { uint64_t pages; };
static int sum_small(void *arg, const struct extent *e) {
        if (e->kind == EXTENT_DATA)
                ((struct sum_pages *)arg)->pages += hull_pages(e->off, e->bytes);
        return 0;
}

/* A large home for a write of n more bytes: asks for what is missing. */
static int want_large(struct stage *st, uint64_t off, uint64_t n, bool grow, struct stage_room *room) {
        struct sum_pages sum = { 0 };
        lock_take(&st->lock);
        uint64_t have = grow ? 0 : extents_pages(&st->map, off, n), sums = sums_regions(&st->map, off, n);
        if (grow)
                (void)extents_each(&st->map, 0, UINT64_MAX, sum_small, &sum);
        lock_drop(&st->lock);
        uint64_t want = (hull_pages(off, n) - have + sums + sum.pages * 2 + grow) * EXTENT_PAGE; /* twice: what is here may touch as many pages of sums */
        if (grow || st->log.end + 4 * LOG_UNIT > st->log.charged)
                want += LOG_CHARGE;
        room->want = MAX(room->want, want);
        if (grow && room->fd < 0)
                room->want_file = true;
        return room->charged < want || (grow && room->fd < 0) ? -EAGAIN : 0;
}

static void charge_log(struct stage *st, struct stage_room *room) {
        if (st->log.end + 4 * LOG_UNIT > st->log.charged && room->charged >= LOG_CHARGE) {
                st->log.charged += LOG_CHARGE;
                room->charged -= LOG_CHARGE;
                room->want = room->charged;
        }
}

static void charge_sums(struct stage *st, uint64_t pages, struct stage_room *room) {
        assert(pages * EXTENT_PAGE <= room->charged);
        st->log.sums_charged += pages * EXTENT_PAGE;
        room->charged -= pages * EXTENT_PAGE;
        room->want = room->charged;
}

int stage_put_data(struct stage *st, uint64_t off, const void *buf, size_t n, struct stage_room *room) {
        lock_assert_held(&st->io);
        assert(st->state == STAGE_OPEN && n > 0);
        if (st->untrusted)
                return -EIO;
        lock_take(&st->lock);
        int r = extents_reserve(&st->map);
        if (r == 0 && !st->large && n <= SMALL_STAGE_BYTES)
                r = payload_reserve(st, n);
        lock_drop(&st->lock);
        if (r < 0)
                return r;
        bool grow = !st->large && (st->appended + n > SMALL_STAGE_BYTES || st->records >= SMALL_STAGE_RECORDS || st->n_segs + 2 >= STAGE_SEGS_MAX);
        if (st->large || grow) {
                r = want_large(st, off, n, grow, room);
                if (r < 0)
                        return r;
                if (grow) {
                        r = stage_grow(st, room);
                        if (r < 0)
                                return r;
                }
                charge_log(st, room);
                lock_take(&st->lock);
                uint64_t sums = sums_regions(&st->map, off, n);
                lock_drop(&st->lock);
                charge_sums(st, sums, room);
        }
        int64_t now_ns = clock_real_ns(st->owner->cfg.clock);
        uint64_t sums[SMALL_STAGE_BYTES / EXTENT_PAGE + 1];
        struct slog_entry e = { .kind = LOG_DATA, .off = off, .bytes = n, .time_ns = now_ns };
        struct extent x = { .off = off, .bytes = n, .kind = EXTENT_DATA, .at = off };
        if (st->large) {
                lock_take(&st->lock);
                early_touch(st, off, off + n); /* who cuts or sends these bytes right now learns it before they change */
                lock_drop(&st->lock);
                bool begun = true;
                r = FAILPOINT("stage.write");
                if (r == 0)
                        r = sums_write(st, off, buf, n, &begun);
                if (!begun)
                        return r;
                if (r == 0)
                        r = FAILPOINT("stage.written");
                if (r == 0)
                        r = append(st, &e, NULL, false, NULL, NULL);
                if (r < 0) {
                        stage_fail(st, r, off, n);
                        return r;
                }
        } else {
                e.payload_bytes = (uint32_t)n;
                payload_sums(buf, n, sums);
                struct segment *seg;
                r = append(st, &e, buf, false, &seg, &x.at);
                if (r == -EAGAIN) {
                        room->want_record = slog_record_bytes((uint32_t)n) + slog_record_bytes(STAGE_HEADER_BYTES);
                        return r;
                }
                if (r < 0) {
                        stage_fail(st, r, off, n);
                        return r;
                }
                x.where = seg;
        }
        lock_take(&st->lock);
        uint64_t before = st->large ? extents_pages(&st->map, off, n) : 0;
        if (!st->large)
                payload_add(st, x.where, x.at, (uint32_t)n, sums);
        extents_put(&st->map, &x);
        uint64_t pages = st->pages, small = st->small_bytes;
        if (st->large) {
                uint64_t more = extents_pages(&st->map, off, n) - before;
                assert(more * EXTENT_PAGE <= room->charged);
                room->charged -= more * EXTENT_PAGE;
                room->want = room->charged;
                pages += more;
        } else {
                small += n;
        }
        st->size = MAX(st->size, off + n);
        early_touch(st, off, off + n);
        touched(st, true, off + n, now_ns);
        bool error = st->error != 0;
        stage_account(st, pages, small);
        lock_drop(&st->lock);
        FAILPOINT_HERE("stage.logged");
        stage_mark_dirty(st);
        if (error)
                heal(st, off, off + n);
        return 0;
}

/* Bytes of [off, off + n) leave the data file; freed room goes to `room`. The map has been changed already. */
static void drop_bytes(struct stage *st, uint64_t off, uint64_t n, uint64_t before, struct stage_room *room) {
        if (!st->large)
                return;
        lock_take(&st->lock);
        uint64_t after = extents_pages(&st->map, off, n), pages = st->pages - (before - after);
        stage_account(st, pages, st->small_bytes);
        lock_drop(&st->lock);
        room->charged += (before - after) * EXTENT_PAGE;
        room->want = room->charged;
        sums_punch(st, off, n);
}

static int cut_record(struct stage *st, struct slog_entry *e, struct stage_room *room) {
        if (st->untrusted)
                return -EIO;
        lock_take(&st->lock);
        int r = extents_reserve(&st->map);
        lock_drop(&st->lock);
        if (r < 0)
                return r;
        if (!st->large && (st->records >= SMALL_STAGE_RECORDS || st->n_segs + 2 >= STAGE_SEGS_MAX)) {
                r = want_large(st, 0, 0, true, room);
                if (r == 0)
                        r = stage_grow(st, room);
                if (r < 0)
                        return r;
        }
        if (st->large)
                charge_log(st, room);
        r = append(st, e, NULL, false, NULL, NULL);
        if (r == -EAGAIN)
                room->want_record = slog_record_bytes(STAGE_HEADER_BYTES) + LOG_UNIT;
        else if (r < 0)
                stage_fail(st, r, e->off, e->bytes);
        return r;
}

int stage_put_zero(struct stage *st, uint64_t off, uint64_t n, bool grow, struct stage_room *room) {
        lock_assert_held(&st->io);
        assert(st->state == STAGE_OPEN && n > 0);
        int64_t now_ns = clock_real_ns(st->owner->cfg.clock);
        struct slog_entry e = { .kind = LOG_ZERO, .off = off, .bytes = n, .flags = grow, .time_ns = now_ns };
        int r = sums_edges(st, off, n);
        if (r == 0)
                r = cut_record(st, &e, room);
        if (r < 0)
                return r;
        lock_take(&st->lock);
        uint64_t before = st->large ? extents_pages(&st->map, off, n) : 0;
        extents_put(&st->map, &(struct extent) { .off = off, .bytes = n, .kind = EXTENT_ZERO });
        if (grow)
                st->size = MAX(st->size, off + n);
        early_touch(st, off, off + n);
        touched(st, false, 0, now_ns);
        bool error = st->error != 0;
        lock_drop(&st->lock);
        drop_bytes(st, off, n, before, room);
        stage_mark_dirty(st);
        if (error)
                heal(st, off, off + n);
        return 0;
}

int stage_put_size(struct stage *st, uint64_t size, struct stage_room *room) {
        lock_assert_held(&st->io);
        assert(st->state == STAGE_OPEN);
        int64_t now_ns = clock_real_ns(st->owner->cfg.clock);
        struct slog_entry e = { .kind = LOG_SIZE, .bytes = size, .time_ns = now_ns };
        int r = sums_edges(st, size, UINT64_MAX - size);
        if (r == 0)
                r = cut_record(st, &e, room);
        if (r < 0)
                return r;
        lock_take(&st->lock);
        uint64_t before = st->large ? extents_pages(&st->map, size, UINT64_MAX - size) : 0;
        bool shrinks = size < st->size;
        extents_cut(&st->map, size, UINT64_MAX - size);
        early_touch(st, MIN(size, st->size), UINT64_MAX);
        st->size = size;
        st->base_limit = MIN(st->base_limit, size);
        touched(st, false, 0, now_ns);
        bool error = st->error != 0;
        lock_drop(&st->lock);
        if (shrinks)
                drop_bytes(st, size, UINT64_MAX - size, before, room);
        stage_mark_dirty(st);
        if (error)
                heal(st, size, UINT64_MAX);
        return 0;
}

int stage_put_share(struct stage *st, const struct content *content, struct blob *blob, uint64_t off, uint64_t n, struct stage_room *room) {
        lock_assert_held(&st->io);
        assert(st->state == STAGE_OPEN && n > 0 && off + n <= content->size);
        struct extent any;
        lock_take(&st->lock);
        bool can = !st->below && st->size == off && st->base_limit == off && !extents_find(&st->map, 0, &any) && !st->error && (off == 0 || content_equal(&st->base, content));
        lock_drop(&st->lock);
        if (!can || st->large || st->untrusted || st->records + 2 >= SMALL_STAGE_RECORDS || st->n_segs + 2 >= STAGE_SEGS_MAX)
                return -EOPNOTSUPP;
        int64_t now_ns = clock_real_ns(st->owner->cfg.clock);
        struct stage_header head = st->head;
        uint8_t b[STAGE_HEADER_BYTES];
        head.base = *content;
        head.below_gen = 0;
        head.base_limit = off + n;
        stage_header_encode(&head, b);
        struct slog_entry e = { .kind = LOG_SHARE, .bytes = off + n, .time_ns = now_ns, .payload_bytes = sizeof b };
        int r = append(st, &e, b, false, NULL, NULL);
        if (r == -EAGAIN)
                room->want_record = 2 * slog_record_bytes(STAGE_HEADER_BYTES);
        if (r < 0)
                return r;
        st->head = head;
        lock_take(&st->lock);
        struct blob *old = st->blob;
        st->blob = blob_ref(blob);
        st->base = *content;
        st->base_limit = st->size = off + n;
        early_touch(st, off, off + n);
        touched(st, false, 0, now_ns);
        lock_drop(&st->lock);
        blob_put(old);
        stage_set_based(st);
        stage_mark_dirty(st);
        return 0;
}

int stage_put_mtime(struct stage *st, int64_t mtime_ns) {
        int r = stage_note(st, LOG_MTIME, 0, 0, mtime_ns, 0, NULL, 0);
        if (r < 0)
                return r;
        LOCK_SCOPE(&st->lock);
        st->mtime_ns = mtime_ns;
        st->ctime_ns = clock_real_ns(st->owner->cfg.clock);
        return 0;
}

int stage_seal(struct stage *st) {
        lock_assert_held(&st->io);
        assert(st->state == STAGE_OPEN);
        lock_take(&st->lock);
        uint64_t size = st->size;
        int64_t mtime_ns = st->mtime_ns;
        lock_drop(&st->lock);
        uint64_t before = st->changes;
        int r = stage_note(st, LOG_SEAL, st->seq, size, mtime_ns, 0, NULL, 0);
        if (r < 0)
                return r;
        st->content_changes = before;
        LOCK_SCOPE(&st->lock);
        st->state = STAGE_SEALED;
        atomic_store_explicit(&st->first_write_ns, 0, memory_order_relaxed);
        stages_count_state(st->owner, STAGE_OPEN, STAGE_SEALED);
        return 0;
}
