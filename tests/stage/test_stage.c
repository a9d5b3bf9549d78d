/* SPDX-License-Identifier: Apache-2.0 */
/* Stages without files and tree: random changes against a model in memory, with stops in between; cutting; early upload. */
#include "world.h"

#include "base/blocklist.h"
#include "stage_core.h"

struct model { uint8_t *p; size_t n, room; };

static struct stages *open_stages(struct world *w, uint64_t dirty_limit) {
        struct stages_config c = { .dir = w->dir, .blobs = w->blobs, .clock = clock_system(), .counters = &w->counters, .dirty_limit_bytes = dirty_limit, .early_bytes = dirty_limit / 4 };
        struct stages *s;
        assert_int_equal(stages_open(&c, rng_system(), &s), 0);
        return s;
}

static void grow(struct model *m, size_t n) {
        if (n > m->room) {
                m->p = realloc(m->p, n * 2);
                assert_non_null(m->p);
                memset(m->p + m->room, 0, n * 2 - m->room);
                m->room = n * 2;
        }
        if (n > m->n) {
                memset(m->p + m->n, 0, n - m->n);
                m->n = n;
        }
}

enum what { PUT, ZERO, ZERO_GROW, SIZE };
static void change(struct stage *st, enum what what, uint64_t off, const void *buf, uint64_t n) {
        struct stage_room room = STAGE_ROOM_INIT;
        int r;
        for (;;) {
                lock_take(&st->io);
                if (what == PUT)
                        r = stage_put_data(st, off, buf, (size_t)n, &room);
                else if (what == SIZE)
                        r = stage_put_size(st, n, &room);
                else
                        r = stage_put_zero(st, off, n, what == ZERO_GROW, &room);
                lock_drop(&st->io);
                if (r != -EAGAIN)
                        break;
                assert_int_equal(stage_room_get(st->owner, &room), 0);
        }
        assert_int_equal(r, 0);
        stage_room_end(st->owner, &room);
}

static void compare(struct stage *st, const struct model *m) {
        assert_int_equal(stage_size(st), m->n);
        uint8_t *buf = malloc(m->n + 100);
        assert_int_equal(stage_pread(st, 0, buf, m->n + 100, now_ms() + WAIT_MS), (ssize_t)m->n);
        for (size_t i = 0; i < m->n; i++)
                if (buf[i] != m->p[i])
                        fail_msg("byte %zu of %zu: %02x, not %02x", i, m->n, buf[i], m->p[i]);
        free(buf);
}

static struct blocklist cut_whole(const uint8_t *p, size_t n) {
        struct blocklist l = { .param = CHUNK_PARAM_1 };
        for (size_t at = 0; at < n;) {
                size_t len = chunk_next(chunk_param(1), p + at, n - at, true);
                struct blockref ref = { .bytes = (uint32_t)len };
                sha256(p + at, len, &ref.hash);
                assert_int_equal(blocklist_add(&l, &ref), 0);
                at += len;
        }
        return l;
}

static void compare_cuts(struct stage *st, const struct model *m, size_t *ret_sent) {
        const struct blocklist *list;
        struct content content, want_content;
        assert_int_equal(stage_chunk(st, now_ms() + WAIT_MS, &list, &content), 0);
        struct blocklist want = cut_whole(m->p, m->n);
        assert_int_equal(list->n, want.n);
        *ret_sent = 0;
        for (size_t i = 0; i < want.n; i++) {
                assert_int_equal(list->refs[i].bytes, want.refs[i].bytes);
                assert_true(digest_equal(&list->refs[i].hash, &want.refs[i].hash));
                *ret_sent += stage_block_sent(st, i);
        }
        assert_int_equal(blocklist_content(&want, NULL, &want_content), 0);
        assert_true(content_equal(&content, &want_content));
        blocklist_free(&want);
}

static void seal(struct stage *st) {
        lock_take(&st->io);
        int r = stage_seal(st);
        lock_drop(&st->io); /* before the assertion: it leaves by a jump */
        assert_int_equal(r, 0);
}

static void random_change(struct rng *r, struct stage *st, struct model *m, size_t max) {
        static uint8_t buf[400000];
        unsigned what = (unsigned)rng_below(r, 20);
        uint64_t off = rng_below(r, 4) ? rng_below(r, m->n + 1) : rng_below(r, max);
        uint64_t n = 1 + rng_below(r, rng_below(r, 10) ? 9000 : sizeof buf - 1);
        if (off + n > max)
                n = off < max ? max - off : 1;
        if (what < 14) {
                if (what < 4)
                        off = m->n; /* append */
                r->fill(r, buf, (size_t)n);
                change(st, PUT, off, buf, n);
                grow(m, off + n);
                memcpy(m->p + off, buf, n);
        } else if (what < 17) {
                bool longer = what == 14;
                if (!longer && off >= m->n)
                        return;
                if (!longer)
                        n = MIN(n, m->n - off);
                change(st, longer ? ZERO_GROW : ZERO, off, NULL, n);
                if (longer)
                        grow(m, off + n);
                memset(m->p + off, 0, n);
        } else {
                uint64_t size = rng_below(r, 3) ? rng_below(r, m->n + 10000) : rng_below(r, 3) ? m->n / 2 : 0;
                change(st, SIZE, 0, NULL, size);
                if (size < m->n)
                        memset(m->p + size, 0, m->n - size);
                if (size < m->n)
                        m->n = size;
                else
                        grow(m, size);
        }
}

/* Forgets everything in memory, as a kill does, and reads the logs. */
static struct stages *stop_and_go(struct world *w, struct stages *s, struct stage **st, size_t n) {
        uint64_t gen[8];
        for (size_t i = n; i-- > 0;)
                gen[i] = st[i]->gen;
        for (size_t i = 0; i < n; i++)
                stage_put(st[i]);
        uint64_t limit = s->cfg.dirty_limit_bytes;
        stages_close(s);
        world_close(w);
        world_open(w, 256 * MIB, false);
        s = open_stages(w, limit);
        struct stages_found found;
        char lost[160];
        (void)snprintf(lost, sizeof lost, "%s/lost+found", w->dir);
        assert_int_equal(stages_recover(s, false, lost, &found), 0);
        assert_int_equal(found.lost, 0);
        for (size_t i = 0; i < found.n; i++)
                assert_true(!found.v[i].damaged && !found.v[i].incomplete);
        for (size_t i = 0; i < n; i++)
                assert_int_equal(stage_get(s, gen[i], &st[i]), 0);
        stages_found_free(&found);
        return s;
}

/* What ends a stage is never refused for lack of a place in the log: neither if nothing was ever written there, nor if it is full. */
static void test_control_records(void **state) {
        struct world *w = world_new(256 * MIB);
        struct stages *s = open_stages(w, 2 * MIB); /* segments of 256 KiB */
        struct stage *st;
        struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base = content_empty };
        assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
        uint8_t head[STAGE_HEADER_BYTES];
        stage_header_encode(&h, head);
        for (size_t i = 0; i < 3 * (256 * KIB + SEGMENT_SLACK) / sizeof head; i++) {
                lock_take(&st->io);
                int r = stage_note(st, LOG_REASSIGN, 0, 0, 0, 0, head, sizeof head);
                lock_drop(&st->io);
                assert_int_equal(r, 0);
        }
        seal(st);
        s = stop_and_go(w, s, &st, 1);
        assert_int_equal(st->state, STAGE_SEALED);
        stage_put(st);
        stages_close(s);
        world_free(w);
}

static void test_random(void **state) {
        uint64_t seed = test_seed();
        for (int round = 0; round < 12; round++) {
                struct world *w = world_new(256 * MIB);
                rng_seed(&w->rng, seed + (uint64_t)round);
                struct rng *r = &w->rng.rng;
                struct stages *s = open_stages(w, 64 * MIB);
                size_t max = round % 3 ? 6 * MIB : 50000;
                struct known *base = know_random(w, 1 + rng_below(r, max), 0);
                struct model m = { 0 };
                struct stage *stack[4];
                size_t n = 0;
                bool with_base = round % 4 != 0;
                if (with_base) {
                        grow(&m, base->n);
                        memcpy(m.p, base->bytes, base->n);
                }
                for (; n < 4; n++) {
                        struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base_limit = m.n, .base = n || !with_base ? content_empty : base->content };
                        struct blob *blob = n || !with_base ? NULL : get_blob(w, base);
                        h.below_gen = n ? stack[n - 1]->gen : 0;
                        assert_int_equal(stage_new(s, &h, n ? stack[n - 1] : NULL, blob, m.n, &stack[n]), 0);
                        blob_put(blob);
                        size_t changes = 1 + rng_below(r, 120);
                        for (size_t i = 0; i < changes; i++) {
                                do
                                        random_change(r, stack[n], &m, max);
                                while (!stack[n]->logged); /* not every change is one */
                                if (rng_below(r, 12) == 0)
                                        compare(stack[n], &m);
                                if (rng_below(r, 40) == 0)
                                        s = stop_and_go(w, s, stack, n + 1);
                                if (rng_below(r, 40) == 0)
                                        assert_int_equal(stages_sync_dirty(s), 0);
                        }
                        compare(stack[n], &m);
                        seal(stack[n]);
                        compare(stack[n], &m);
                        if (rng_below(r, 2)) {
                                size_t sent;
                                compare_cuts(stack[n], &m, &sent);
                        }
                }
                s = stop_and_go(w, s, stack, 4);
                size_t sent;
                compare(stack[3], &m);
                compare_cuts(stack[3], &m, &sent);
                for (size_t i = 0; i < 4; i++)
                        stage_put(stack[i]);
                stages_close(s);
                free(m.p);
                world_free(w);
        }
}

/* A few bytes changed in a large content: only the neighbourhood is read and cut again. */
/* Holes are cut as zeros are, but cost nothing by their length: 40 MiB are compared with the cut of the whole, 1 TiB has its list at once. */
static void test_holes(void **state) {
        struct world *w = world_new(256 * MIB);
        rng_seed(&w->rng, test_seed());
        struct rng *r = &w->rng.rng;
        struct stages *s = open_stages(w, 64 * MIB);
        for (unsigned round = 0; round < 6; round++) {
                struct model m = { 0 };
                struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base = content_empty };
                struct stage *st;
                size_t sent;
                assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
                change(st, SIZE, 0, NULL, 40 * MIB + round);
                grow(&m, 40 * MIB + round);
                for (unsigned i = 0; i < round; i++) {
                        uint8_t buf[70000];
                        uint64_t off = rng_below(r, m.n - sizeof buf);
                        r->fill(r, buf, sizeof buf);
                        change(st, PUT, off, buf, sizeof buf);
                        memcpy(m.p + off, buf, sizeof buf);
                }
                seal(st);
                compare_cuts(st, &m, &sent);
                stage_put(st);
                free(m.p);
        }
        struct stage_header h = { .gen = stages_gen(s), .ino = 6, .base = content_empty };
        struct stage *st;
        const struct blocklist *list;
        struct content content;
        assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
        change(st, PUT, UINT64_C(1) << 39, "x", 1);
        change(st, SIZE, 0, NULL, UINT64_C(1) << 40);
        seal(st);
        assert_int_equal(stage_chunk(st, now_ms() + WAIT_MS, &list, &content), 0);
        assert_true(content.size == UINT64_C(1) << 40 && list->n >= UINT64_C(1) << 19);
        stage_put(st);
        stages_close(s);
        world_free(w);
}

static void test_neighbourhood(void **state) {
        struct world *w = world_new(256 * MIB);
        rng_seed(&w->rng, test_seed());
        struct rng *r = &w->rng.rng;
        struct stages *s = open_stages(w, 64 * MIB);
        struct known *base = know_random(w, 40 * MIB, 0);
        struct blob *blob = get_blob(w, base);
        /* its list becomes known with the first read */
        uint8_t byte;
        assert_int_equal(blob_pread_exact(blob, 0, &byte, 1, now_ms() + WAIT_MS), 1);
        struct model m = { 0 };
        grow(&m, base->n);
        memcpy(m.p, base->bytes, base->n);
        struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base_limit = base->n, .base = base->content };
        struct stage *st;
        assert_int_equal(stage_new(s, &h, NULL, blob, base->n, &st), 0);
        for (int i = 0; i < 3; i++) {
                uint8_t buf[5000];
                uint64_t off = rng_below(r, base->n - sizeof buf);
                r->fill(r, buf, sizeof buf);
                change(st, PUT, off, buf, sizeof buf);
                memcpy(m.p + off, buf, sizeof buf);
        }
        seal(st);
        size_t before = get_size(w, &w->blocks), sent;
        compare_cuts(st, &m, &sent);
        size_t fetched = get_size(w, &w->blocks) - before;
        /* exactly those that the base has */
        bool needed[1024] = { false };
        assert_true(base->list.n < ARRAY_SIZE(needed));
        size_t in_base = 0, may = 0;
        for (size_t i = 0; i < st->list.n; i++) {
                bool there = false;
                for (size_t k = 0; k < base->list.n; k++)
                        there |= digest_equal(&st->list.refs[i].hash, &base->list.refs[k].hash);
                in_base += there;
                assert_int_equal(there, stage_block_sent(st, i));
                /* one that is cut anew is read in steps that double until the cut is seen */
                uint64_t step = 512 * KIB;
                while (step < st->list.refs[i].bytes)
                        step *= 2;
                uint64_t at = 0;
                for (size_t k = 0; !there && k < base->list.n; at += base->list.refs[k++].bytes)
                        needed[k] |= at < st->starts[i] + step && at + base->list.refs[k].bytes > st->starts[i];
        }
        for (size_t k = 0; k < base->list.n; k++)
                may += needed[k];
        assert_int_equal(in_base, sent);
        print_message("%zu of %zu blocks reused, %zu fetched, %zu may be\n", sent, st->list.n, fetched, may);
        assert_true(fetched <= may);
        assert_true(may < base->list.n);
        free(m.p);
        stage_put(st);
        blob_put(blob);
        stages_close(s);
        world_free(w);
}

/* What the engine does with an open stage. Sent blocks become known to the source. */
static size_t upload_early(struct world *w, struct stage *st, struct blocklist *sent) {
        struct early_block b[8];
        size_t n, done = 0;
        static uint8_t buf[BLOCK_BYTES_MAX];
        for (;;) {
                assert_int_equal(stage_early_blocks(st, b, 8, &n), 0);
                if (!n)
                        return done;
                for (size_t i = 0; i < n; i++) {
                        int r = stage_pread_frozen(st, &b[i], buf);
                        assert_int_equal(r, 0);
                        struct digest d;
                        sha256(buf, b[i].ref.bytes, &d);
                        assert_true(digest_equal(&d, &b[i].ref.hash));
                        know(w, buf, b[i].ref.bytes, BLOCK_BYTES_MAX);
                        assert_int_equal(blocklist_add(sent, &b[i].ref), 0);
                        assert_int_equal(stage_early_sent(st, &b[i]), 0);
                        done++;
                }
        }
}

static void test_early(void **state) {
        struct world *w = world_new(32 * MIB);
        rng_seed(&w->rng, test_seed());
        struct rng *r = &w->rng.rng;
        struct stages *s = open_stages(w, 12 * MIB);
        struct model m = { 0 };
        struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base = content_empty };
        struct stage *st;
        assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
        struct blocklist sent = { .param = 1 };
        size_t blocks = 0;
        uint64_t most = 0;
        static uint8_t buf[MIB];
        uint64_t gen;
        for (int i = 0; i < 64; i++) {
                r->fill(r, buf, sizeof buf);
                change(st, PUT, m.n, buf, sizeof buf);
                grow(&m, m.n + sizeof buf);
                memcpy(m.p + m.n - sizeof buf, buf, sizeof buf);
                if (stages_early_next(s, 0, &gen) == 0) {
                        assert_int_equal(gen, st->gen);
                        blocks += upload_early(w, st, &sent);
                }
                most = MAX(most, du(w->dir));
        }
        print_message("%zu blocks early, at most %llu KiB on disk\n", blocks, (unsigned long long)most / 1024);
        assert_true(blocks > 64);
        assert_true(most <= 32 * MIB);
        /* read back: what is gone comes by hash, and is right */
        compare(st, &m);
        /* an overwrite inside a sent block splits it */
        for (int i = 0; i < 5; i++) {
                uint64_t off = rng_below(r, 40 * MIB);
                r->fill(r, buf, 30000);
                change(st, PUT, off, buf, 30000);
                memcpy(m.p + off, buf, 30000);
        }
        compare(st, &m);
        s = stop_and_go(w, s, &st, 1);
        compare(st, &m);
        seal(st);
        size_t n_sent;
        compare_cuts(st, &m, &n_sent);
        print_message("%zu of %zu blocks are on the server at the seal\n", n_sent, st->list.n);
        assert_true(n_sent + 45 >= st->list.n);
        stage_put(st);
        stages_close(s);
        blocklist_free(&sent);
        free(m.p);
        world_free(w);
}

/* Without overwrites nothing that was sent is read again at the seal. */
static void test_early_not_read_again(void **state) {
        struct world *w = world_new(32 * MIB);
        rng_seed(&w->rng, test_seed());
        struct rng *r = &w->rng.rng;
        struct stages *s = open_stages(w, 12 * MIB);
        struct model m = { 0 };
        struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base = content_empty };
        struct stage *st;
        assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
        struct blocklist sent = { .param = 1 };
        static uint8_t buf[100000];
        uint64_t gen;
        while (m.n < 40 * MIB) {
                r->fill(r, buf, sizeof buf);
                change(st, PUT, m.n, buf, sizeof buf);
                grow(&m, m.n + sizeof buf);
                memcpy(m.p + m.n - sizeof buf, buf, sizeof buf);
                if (stages_early_next(s, 0, &gen) == 0)
                        (void)upload_early(w, st, &sent);
        }
        s = stop_and_go(w, s, &st, 1);
        size_t fetches = get_size(w, &w->fetches), n_sent;
        seal(st);
        compare_cuts(st, &m, &n_sent);
        assert_int_equal(get_size(w, &w->fetches), fetches);
        assert_true(n_sent >= sent.n);
        /* a block that was overwritten in the meantime is refused */
        stage_put(st);
        stages_close(s);
        blocklist_free(&sent);
        free(m.p);
        world_free(w);
}

static void test_early_overwritten(void **state) {
        struct world *w = world_new(64 * MIB);
        rng_seed(&w->rng, 5);
        struct stages *s = open_stages(w, 16 * MIB);
        struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base = content_empty };
        struct stage *st;
        assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
        static uint8_t buf[8 * MIB];
        w->rng.rng.fill(&w->rng.rng, buf, sizeof buf);
        change(st, PUT, 0, buf, sizeof buf);
        struct early_block b[8];
        size_t n;
        assert_int_equal(stage_early_blocks(st, b, 8, &n), 0);
        assert_int_equal(n, 8);
        change(st, PUT, b[2].off + 5, "xyz", 3);
        assert_int_equal(stage_pread_frozen(st, &b[2], buf), -ESTALE);
        assert_int_equal(stage_early_sent(st, &b[2]), -ESTALE);
        assert_int_equal(stage_pread_frozen(st, &b[1], buf), 0);
        assert_int_equal(stage_early_sent(st, &b[1]), 0);
        /* blocks behind the overwritten one are still whole */
        assert_int_equal(stage_early_sent(st, &b[3]), 0);
        seal(st);
        stage_put(st);
        stages_close(s);
        world_free(w);
}

/* ---- bits that flip on this disk ---- */

struct spot { int fd; uint64_t at; };
/* A byte of the stage's own bytes that the view shows, wherever it lies. False: it has none. */
static bool random_spot(struct rng *r, struct stage *st, struct spot *ret) {
        for (int i = 0; i < 200 && st->map.n > 0; i++) {
                struct piece p;
                assert_int_equal(view_find(st, rng_below(r, stage_size(st)), 1, &p), 0);
                bool own = p.kind == PIECE_DISK && p.stage == st;
                *ret = (struct spot) { p.fd, p.at };
                piece_end(&p);
                if (own)
                        return true;
        }
        return false;
}
static void flip(const struct spot *s, uint8_t bit) {
        uint8_t b;
        assert_int_equal(pread_full(s->fd, &b, 1, s->at), 0);
        b ^= bit;
        assert_int_equal(pwrite_full(s->fd, &b, 1, s->at), 0);
}

/* Reads all of it in pieces: right bytes, or -EIO. Returns how many were refused. */
static size_t read_damaged(struct rng *r, struct stage *st, const struct model *m) {
        size_t refused = 0;
        uint8_t *buf = malloc(m->n + 1);
        for (size_t at = 0; at < m->n;) {
                size_t n = MIN(1 + (size_t)rng_below(r, rng_below(r, 2) ? 200000 : 5000), m->n - at);
                ssize_t got = stage_pread(st, at, buf, n, now_ms() + WAIT_MS);
                assert_true(got == (ssize_t)n || got == -EIO);
                if (got > 0)
                        assert_memory_equal(buf, m->p + at, n);
                refused += got < 0;
                at += n;
        }
        free(buf);
        return refused;
}

static void test_flips(void **state) {
        struct world *w = world_new(256 * MIB);
        rng_seed(&w->rng, test_seed());
        struct rng *r = &w->rng.rng;
        size_t flips = 0, kept = 0;
        for (int round = 0; round < 30; round++) {
                struct stages *s = open_stages(w, 64 * MIB);
                size_t max = round % 2 ? 3 * MIB : 40000;
                struct model m = { 0 };
                struct stage *st;
                struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base = content_empty };
                assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
                for (size_t i = 1 + rng_below(r, 40); i-- > 0;)
                        do
                                random_change(r, st, &m, max);
                        while (!st->logged);
                struct spot spot;
                bool sealed = rng_below(r, 2);
                if (sealed)
                        seal(st);
                if (random_spot(r, st, &spot)) {
                        uint8_t bit = (uint8_t)(1u << rng_below(r, 8));
                        uint64_t before = counter_get(&w->counters, corruptions_found);
                        flip(&spot, bit);
                        flips++;
                        assert_true(read_damaged(r, st, &m) > 0);
                        assert_true(counter_get(&w->counters, corruptions_found) > before);
                        if (sealed) { /* and it is never made a version */
                                const struct blocklist *list;
                                struct content content;
                                assert_int_equal(stage_chunk(st, now_ms() + WAIT_MS, &list, &content), -EIO);
                        }
                        if (st->large && round % 4 == 1) { /* found also after a start */
                                flip(&spot, bit);
                                int fd = dup(spot.fd);
                                s = stop_and_go(w, s, &st, 1);
                                assert_int_equal(read_damaged(r, st, &m), 0);
                                spot.fd = fd;
                                flip(&spot, bit);
                                s = stop_and_go(w, s, &st, 1);
                                assert_true(read_damaged(r, st, &m) > 0);
                                flip(&spot, bit);
                                (void)close(fd);
                                kept++;
                        } else {
                                flip(&spot, bit);
                        }
                }
                assert_int_equal(read_damaged(r, st, &m), 0);
                stage_put(st);
                stages_close(s);
                free(m.p);
                world_close(w);
                remove_tree(w->dir);
                assert_int_equal(mkdir(w->dir, 0700), 0);
                world_open(w, 256 * MIB, false);
        }
        print_message("%zu flips, %zu of them over a start\n", flips, kept);
        assert_true(flips > 15);
        world_free(w);
}

/* A page that is damaged is not made right by what is written beside the damage, or cut off beside it; only by writing all of it. */
static void test_damage_is_not_laundered(void **state) {
        struct world *w = world_new(256 * MIB);
        rng_seed(&w->rng, 3);
        struct stages *s = open_stages(w, 64 * MIB);
        struct stage *st;
        struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base = content_empty };
        assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
        static uint8_t buf[200000], back[200000];
        w->rng.rng.fill(&w->rng.rng, buf, sizeof buf);
        change(st, PUT, 0, buf, sizeof buf);
        assert_true(st->large);
        flip(&(struct spot) { st->fd, 3 * 4096 + 7 }, 1);
        struct stage_room room = STAGE_ROOM_INIT;
        lock_take(&st->io);
        int a = stage_put_data(st, 3 * 4096 + 2000, "xyz", 3, &room), b = stage_put_zero(st, 3 * 4096 + 100, 50000, false, &room), c = stage_put_size(st, 3 * 4096 + 100, &room);
        int error = st->error;
        lock_drop(&st->io);
        assert_int_equal(a, -EIO);
        assert_int_equal(b, -EIO);
        assert_int_equal(c, -EIO);
        assert_int_equal(error, 0); /* nothing was changed */
        stage_room_end(s, &room);
        assert_int_equal(stage_pread(st, 3 * 4096, back, 100, now_ms() + WAIT_MS), -EIO);
        assert_int_equal(stage_pread(st, 4 * 4096, back, 100, now_ms() + WAIT_MS), 100);
        change(st, PUT, 3 * 4096 - 10, buf, 4096 + 20);
        memcpy(buf + 3 * 4096 - 10, memcpy(back, buf, 4096 + 20), 4096 + 20);
        assert_int_equal(stage_pread(st, 0, back, sizeof back, now_ms() + WAIT_MS), sizeof back);
        assert_memory_equal(back, buf, sizeof buf);
        stage_put(st);
        stages_close(s);
        world_free(w);
}

/* A kill between the bytes and their sums: what was being changed is believed as it is, what lies beside it too. */
static void test_killed_in_a_write(void **state) {
        struct world *w = world_new(256 * MIB);
        rng_seed(&w->rng, test_seed());
        struct stages *s = open_stages(w, 64 * MIB);
        struct stage *st;
        struct stage_header h = { .gen = stages_gen(s), .ino = 5, .base = content_empty };
        assert_int_equal(stage_new(s, &h, NULL, NULL, 0, &st), 0);
        static uint8_t buf[200000], back[200000], sums[4096];
        w->rng.rng.fill(&w->rng.rng, buf, sizeof buf);
        change(st, PUT, 0, buf, sizeof buf);
        /* sums and log of before, bytes of after */
        uint64_t off = 5000, n = 30000, log_end = st->log.end;
        assert_int_equal(pread_full(st->sums_fd, sums, 49 * 8, 4096), 0);
        uint8_t *more = malloc(n);
        w->rng.rng.fill(&w->rng.rng, more, n);
        change(st, PUT, off, more, n);
        assert_int_equal(pwrite_full(st->sums_fd, sums, 49 * 8, 4096), 0);
        assert_int_equal(ftruncate(st->log.fd, (off_t)log_end), 0);
        memcpy(buf + off, more, n);
        s = stop_and_go(w, s, &st, 1);
        assert_int_equal(stage_pread(st, 0, back, sizeof back, now_ms() + WAIT_MS), sizeof back);
        assert_memory_equal(back, buf, sizeof buf);
        /* without a write under way the same is damage */
        change(st, PUT, 100000, more, 3);
        change(st, PUT, 150000, more, 3);
        memcpy(buf + 100000, more, 3);
        memcpy(buf + 150000, more, 3);
        flip(&(struct spot) { st->fd, 100000 }, 4);
        s = stop_and_go(w, s, &st, 1);
        assert_int_equal(stage_pread(st, 100000, back, 3, now_ms() + WAIT_MS), -EIO);
        assert_int_equal(stage_pread(st, 110000, back, 50000, now_ms() + WAIT_MS), 50000);
        free(more);
        stage_put(st);
        stages_close(s);
        world_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_control_records), cmocka_unit_test(test_random), cmocka_unit_test(test_holes), cmocka_unit_test(test_neighbourhood), cmocka_unit_test(test_early), cmocka_unit_test(test_early_not_read_again),
                cmocka_unit_test(test_early_overwritten), cmocka_unit_test(test_flips), cmocka_unit_test(test_damage_is_not_laundered), cmocka_unit_test(test_killed_in_a_write),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
