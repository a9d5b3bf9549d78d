/* SPDX-License-Identifier: Apache-2.0 */
/* patrol.c: the background scrub: bits that flip in what nobody reads are found while somebody else still has the bytes.
 *
 *   round    RESTING --period since its start--> [URGENT ->] READING --last block--> RESTING
 *
 * A round reads the cached blocks in the order of their numbers (blob, block), which no eviction and no start changes; what comes meanwhile was just checked. Its pace is what is left of the cache by what is left
 * of four fifths of the period, 8 MiB/s at most: a steady trickle, and a machine that was off catches up. After a power cut (cache->new_boot) blocks that were not checked since come first, within an hour.
 * Bytes of pending files, of which there are few, are read once a day, or once in a round that is shorter.
 *
 * While the mount is busy (requests of the kernel within the last second) a step waits, but not for more than a minute. Each step reads 256 KiB or a block. Damage: a block is dropped and fetched again
 * (`healed`), or later by who reads it; a pending file is logged by its number, and `tarn scrub` tells its path. Errors of the disk count as damage; others end the step.
 *
 * Where it is lies in the tree's setting "patrol" (40 bytes, saved each hour and at the end): a kill repeats an hour. Lost: a new round begins.
 *
 * One thread, "tarn-patrol", which waits for the clock; `lock` guards the numbers that status shows and `stop`. */
#include <assert.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/thread.h"
#include "cache/patrol.h"
#include "cache/scrub.h"
#include "file_priv.h"

#define KEY "patrol"
#define SAVED_BYTES 40u
#define STEP_BYTES (256u << 10)
#define STEP_BLOCKS 64u
#define BATCH 256u
#define RATE_MAX_PER_MS 8192u
#define START_MS 300000           /* after the start there are other things to do */
#define BUSY_MS 1000
#define BUSY_MAX_MS 60000
#define SAVE_MS 3600000
#define URGENT_MS 3600000
#define STAGES_MS (INT64_C(24) * 3600 * 1000)
#define REST_MAX_MS (INT64_C(24) * 3600 * 1000)
#define HEAL_MS 10000
#define NS INT64_C(1000000)

struct patrol {
        struct patrol_config c;
        struct clock *clock;
        pthread_t thread;
        bool started;
        struct cond cond;
        struct lock lock;
        _Atomic bool stop;
        struct patrol_status s;       /* lock; written by the thread alone */
        /* the thread's */
        uint64_t position, batch[BATCH];
        size_t n_batch, at;
        int64_t due_ms, save_ms, stages_ms;
        int64_t busy_since_ms;        /* a step waits since then; 0: none does */
        uint64_t requests;
};

static void put64(uint8_t *p, uint64_t v) { memcpy(p, &v, sizeof v); }
static uint64_t get64(const uint8_t *p) {
        uint64_t v;
        memcpy(&v, p, sizeof v);
        return v;
}

static void save(struct patrol *p, int64_t now) {
        uint8_t b[SAVED_BYTES];
        put64(b, (uint64_t)p->s.started_ns);
        put64(b + 8, (uint64_t)p->s.finished_ns);
        put64(b + 16, p->position);
        put64(b + 24, p->s.blocks);
        put64(b + 32, p->s.urgent);
        p->save_ms = now + SAVE_MS;
        int r = tree_setting_set(p->c.cache->tree, KEY, b, sizeof b);
        if (r < 0)
                log_debug("patrol not saved error=%d", -r); /* an hour is read again */
}

static void load(struct patrol *p) {
        _cleanup_buf_ struct buf b = BUF_INIT(4096);
        if (tree_setting_get(p->c.cache->tree, KEY, &b) < 0 || b.bytes != SAVED_BYTES)
                return;
        p->s.started_ns = (int64_t)get64(b.data);
        p->s.finished_ns = (int64_t)get64(b.data + 8);
        p->position = get64(b.data + 16);
        p->s.blocks = get64(b.data + 24);
        p->s.urgent = get64(b.data + 32) & 1;
}

static bool resting(const struct patrol *p) {
        return p->s.started_ns > 0 && p->s.finished_ns >= p->s.started_ns;
}

static void begin(struct patrol *p, int64_t real_ns) {
        LOCK_SCOPE(&p->lock);
        p->s.started_ns = real_ns;
        p->s.finished_ns = MIN(p->s.finished_ns, real_ns - 1);
        p->s.blocks = p->s.bad = p->s.healed = 0;
        p->position = 0;
        p->n_batch = p->at = 0;
}

static bool busy(struct patrol *p, int64_t now) {
        uint64_t requests = p->c.cache->counters ? counter_get(p->c.cache->counters, fuse_requests) : 0;
        bool quiet = requests == p->requests;
        p->requests = requests;
        if (!quiet && p->busy_since_ms == 0)
                p->busy_since_ms = now;
        if (!quiet && now - p->busy_since_ms < BUSY_MAX_MS)
                return true;
        p->busy_since_ms = 0;
        return false;
}

static void look_at_stages(struct patrol *p, int64_t now) {
        uint64_t bad = 0;
        int r = cache_scrub_stages(p->c.cache, &p->stop, &bad);
        if (r == 0) {
                LOCK_SCOPE(&p->lock);
                p->s.stages_bad = bad;
        }
        p->stages_ms = now + MIN(p->c.period_ms, STAGES_MS);
}

/* How long n bytes should take, with `left` blocks to come. */
static int64_t pace(struct patrol *p, uint64_t n, int64_t real_ns, uint64_t left, uint64_t total) {
        struct blobs_totals t;
        blobs_totals(p->c.cache->blobs, &t);
        uint64_t bytes = MAX((uint64_t)((double)(t.bytes - MIN(t.bytes, t.dirty_bytes)) * (double)left / (double)MAX(total, (uint64_t)1)), n);
        int64_t gone = (real_ns - p->s.started_ns) / NS, time = MAX(p->c.period_ms / 5 * 4 - gone, p->c.period_ms / 50);
        if (p->s.urgent)
                time = MIN(time, MAX(URGENT_MS - gone, (int64_t)BUSY_MAX_MS));
        int64_t ms = (int64_t)((double)n * (double)time / (double)MAX(bytes, (uint64_t)1));
        return MIN(MAX(ms, (int64_t)(n / RATE_MAX_PER_MS)), REST_MAX_MS);
}

/* The next ones; at the end the round is over, or the urgent part of it. */
static bool refill(struct patrol *p, int64_t now) {
        p->at = p->n_batch = 0;
        uint64_t left = 0;
        int r = blobs_blocks_after(p->c.cache->blobs, p->position, p->batch, BATCH, &p->n_batch, &left);
        if (r < 0)
                return false;
        {
                LOCK_SCOPE(&p->lock);
                p->s.blocks_total = p->s.blocks + left;
                if (p->n_batch > 0)
                        return true;
                if (p->s.urgent) { /* now all of them */
                        p->s.urgent = false;
                        p->s.blocks = 0;
                        p->position = 0;
                        return false;
                }
                p->s.finished_ns = MAX(clock_real_ns(p->clock), p->s.started_ns);
        }
        log_info("scrub round=done blocks=%llu damaged=%llu fetched_again=%llu", (unsigned long long)p->s.blocks, (unsigned long long)p->s.bad, (unsigned long long)p->s.healed);
        save(p, now);
        return false;
}

/* Some blocks; the ms until the next. */
static int64_t step(struct patrol *p, int64_t now, int64_t real_ns) {
        struct blobs_scrub b = { .heal_ms = cache_online(p->c.cache) ? HEAL_MS : 0, .stop = &p->stop };
        uint64_t n = 0;
        for (unsigned i = 0; i < STEP_BLOCKS * 4 && n < STEP_BYTES && !atomic_load(&p->stop) && atomic_load(&b.checked) < STEP_BLOCKS; i++) {
                if (p->at == p->n_batch && !refill(p, now))
                        break;
                uint64_t bytes = 0;
                int r = blobs_scrub_block(p->c.cache->blobs, p->batch[p->at], p->s.urgent, &b, &bytes);
                if (r < 0)
                        return BUSY_MAX_MS;
                p->position = p->batch[p->at++];
                n += bytes;
                LOCK_SCOPE(&p->lock);
                p->s.blocks++;
        }
        {
                LOCK_SCOPE(&p->lock);
                p->s.bad += atomic_load(&b.bad);
                p->s.healed += atomic_load(&b.healed);
        }
        return resting(p) ? 0 : pace(p, n, real_ns, p->s.blocks_total - MIN(p->s.blocks, p->s.blocks_total), p->s.blocks_total);
}

int64_t patrol_turn(struct patrol *p) {
        int64_t now = clock_mono_ms(p->clock), real_ns = clock_real_ns(p->clock);
        if (now < p->due_ms)
                return p->due_ms - now;
        int64_t wait;
        if (busy(p, now)) {
                wait = BUSY_MS;
        } else if (now >= p->stages_ms) {
                look_at_stages(p, now);
                wait = 0;
        } else {
                int64_t age = (real_ns - p->s.started_ns) / NS;
                if (p->s.started_ns == 0 || age < 0 || (resting(p) && age >= p->c.period_ms))
                        begin(p, real_ns);
                wait = resting(p) ? MIN(p->c.period_ms - age, REST_MAX_MS) : step(p, now, real_ns);
                if (now >= p->save_ms)
                        save(p, now);
        }
        p->due_ms = now + wait;
        return wait;
}

static void *run(void *arg) {
        struct patrol *p = arg;
        lock_take(&p->lock);
        while (!atomic_load(&p->stop)) {
                lock_drop(&p->lock);
                int64_t wait = patrol_turn(p);
                lock_take(&p->lock);
                if (wait > 0 && !atomic_load(&p->stop))
                        (void)!cond_wait_until(&p->cond, &p->lock, clock_mono_ms(clock_system()) + wait);
        }
        lock_drop(&p->lock);
        return NULL;
}

int patrol_new(const struct patrol_config *c, struct patrol **ret) {
        assert(c->period_ms > 0);
        struct patrol *p = calloc(1, sizeof *p);
        if (!p)
                return -ENOMEM;
        p->c = *c;
        p->clock = c->cache->clock;
        atomic_init(&p->stop, false);
        lock_init(&p->lock, "patrol", RANK_QUEUE);
        cond_init(&p->cond);
        load(p);
        struct blobs_totals t;
        blobs_totals(c->cache->blobs, &t);
        if (c->cache->new_boot && t.blocks > 0) { /* from the front, and the doubtful ones first */
                p->s.urgent = true;
                begin(p, clock_real_ns(p->clock));
        }
        int64_t now = clock_mono_ms(p->clock);
        p->save_ms = now + SAVE_MS;
        p->due_ms = p->stages_ms = now + MIN(c->period_ms / 10, START_MS);
        int r = c->by_hand ? 0 : thread_start(&p->thread, "tarn-patrol", run, p);
        if (r < 0) {
                patrol_free(p);
                return r;
        }
        p->started = !c->by_hand;
        *ret = p;
        return 0;
}

void patrol_free(struct patrol *p) {
        if (!p)
                return;
        {
                LOCK_SCOPE(&p->lock);
                atomic_store(&p->stop, true);
                cond_broadcast(&p->cond);
        }
        if (p->started)
                pthread_join(p->thread, NULL);
        if ((p->started || p->c.by_hand) && p->s.started_ns)
                save(p, 0);
        cond_destroy(&p->cond);
        lock_destroy(&p->lock);
        free(p);
}

void patrol_status(struct patrol *p, struct patrol_status *ret) {
        LOCK_SCOPE(&p->lock);
        *ret = p->s;
}
