/* SPDX-License-Identifier: Apache-2.0 */
/* test_needs.c: a large cached file is edited while there is no server, and the cache gets full: the blocks that the edit stands on stay, over a start too, and the edit can be cut without a byte that
 * is gone. */
#include "cache_world.h"

#define LIMIT (48u * MIB)
#define FILE_BYTES (16u * MIB)

static void no_server(struct cw *w, bool on) {
        LOCK_SCOPE(&w->source->lock);
        w->source->offline = on;
}

static struct node make(struct cw *w, const char *name, const uint8_t *bytes, size_t n) {
        struct node node = cw_create(w, INO_ROOT, name);
        struct file *f = cw_file(w, node.ino, true, false);
        for (size_t at = 0; at < n; at += MIB)
                assert_int_equal(write_at(f, at, bytes + at, MIN(n - at, (size_t)MIB), false, WAIT_MS), (ssize_t)MIN(n - at, (size_t)MIB));
        file_release(f, true);
        return node;
}

/* Everything clean that may go goes; offline by what the engine said last. */
static uint64_t evicted(struct cw *w) {
        uint64_t before = counter_get(&w->counters, cache_evicted_blocks);
        assert_int_equal(blobs_evict_all(w->cache->blobs), 0);
        return counter_get(&w->counters, cache_evicted_blocks) - before;
}

/* Bytes of [off, off + n) that can be read now. */
static size_t readable(struct cw *w, uint64_t ino, const uint8_t *want, size_t off, size_t n) {
        static uint8_t buf[4096];
        size_t good = 0;
        struct file *f = cw_file(w, ino, false, false);
        for (size_t at = off; at < off + n; at += sizeof buf) {
                ssize_t r = read_at(f, at, buf, MIN(sizeof buf, off + n - at));
                assert_true(r == -EHOSTDOWN || r == (ssize_t)MIN(sizeof buf, off + n - at));
                if (r > 0) {
                        assert_memory_equal(buf, want + at, (size_t)r);
                        good += (size_t)r;
                }
        }
        file_release(f, false);
        return good;
}

static void put(struct cw *w, uint64_t ino, uint8_t *bytes, size_t at, const void *p, size_t n) {
        struct file *f = cw_file(w, ino, true, false);
        assert_int_equal(write_at(f, at, p, n, false, WAIT_MS), (ssize_t)n);
        memcpy(bytes + at, p, n);
        file_release(f, true);
}

static void test_edit(void **state) {
        struct cw *w = cw_new(LIMIT, test_seed());
        struct rng *r = &w->source->rng.rng;
        uint8_t *bytes = malloc(FILE_BYTES + MIB), *other = malloc(FILE_BYTES);
        r->fill(r, bytes, FILE_BYTES);
        r->fill(r, other, FILE_BYTES);
        cw_open(w);
        struct node n = make(w, "large", bytes, FILE_BYTES);
        cw_accept_all(w);
        cw_settle(w);
        no_server(w, true);
        cache_set_online(w->cache, false);
        assert_int_equal(readable(w, n.ino, bytes, 0, FILE_BYTES), FILE_BYTES);
        put(w, n.ino, bytes, 5 * MIB + 17, "an edit", 7);
        put(w, n.ino, bytes, 5 * MIB + 17 + 4096, "on top", 6); /* the first one is sealed: a layer below */
        put(w, n.ino, bytes, 11 * MIB, other, 3 * MIB);            /* covers blocks: those are not needed */
        put(w, n.ino, bytes, FILE_BYTES, "more", 4);
        /* as much as may be dirty: what is clean has to go for it */
        struct node full = make(w, "full", other, FILE_BYTES);
        assert_int_equal(readable(w, full.ino, other, 0, FILE_BYTES), FILE_BYTES);
        for (int life = 0; life < 2; life++) {
                (void)evicted(w);
                assert_int_equal(evicted(w), 0);
                size_t good = readable(w, n.ino, bytes, 0, FILE_BYTES + 4);
                print_message("%zu KiB of %u stayed\n", good / KIB, FILE_BYTES / KIB);
                assert_true(good > 3 * MIB && good < FILE_BYTES / 4 * 3); /* the others did go */
                assert_int_equal(readable(w, n.ino, bytes, 5 * MIB, 8192), 8192);
                assert_int_equal(readable(w, n.ino, bytes, 11 * MIB - 4096, 3 * MIB + 8192), 3 * MIB + 8192);
                assert_int_equal(readable(w, n.ino, bytes, FILE_BYTES - 4096, 4100), 4100);
                if (life == 0) { /* and after a start */
                        cw_close(w);
                        cw_open_bare(w, clock_system());
                        assert_int_equal(cache_loaded(w->cache), 0);
                        cache_set_online(w->cache, false);
                }
        }
        /* with a server they may go when nothing else is left, and nothing is lost by it */
        no_server(w, false);
        cache_set_online(w->cache, true);
        assert_true(evicted(w) > 0);
        assert_int_equal(readable(w, n.ino, bytes, 0, FILE_BYTES + 4), FILE_BYTES + 4);
        cw_accept_all(w);
        cw_settle(w);
        assert_int_equal(readable(w, n.ino, bytes, 0, FILE_BYTES + 4), FILE_BYTES + 4);
        cache_set_online(w->cache, false);
        (void)evicted(w);
        struct blobs_totals t;
        blobs_totals(w->cache->blobs, &t);
        assert_int_equal(t.blocks, 0); /* nothing waits: nothing is kept */
        free(bytes);
        free(other);
        cw_free(w);
}

/* The usual edit, of a few bytes: it is cut without a server, and what is to be sent is here. */
static void test_cut_offline(void **state) {
        struct cw *w = cw_new(LIMIT, test_seed());
        struct rng *r = &w->source->rng.rng;
        uint8_t *bytes = malloc(FILE_BYTES), *buf = malloc(BLOCK_BYTES_MAX);
        r->fill(r, bytes, FILE_BYTES);
        cw_open(w);
        struct node n = make(w, "large", bytes, FILE_BYTES);
        cw_accept_all(w);
        cw_settle(w);
        no_server(w, true);
        cache_set_online(w->cache, false);
        put(w, n.ino, bytes, 9 * MIB + 17, "an edit", 7);
        assert_true(evicted(w) > 10);
        struct stage *st;
        const struct blocklist *list;
        struct content content;
        assert_int_equal(stage_get(w->cache->stages, cw_row(w, n.ino).gen, &st), 0);
        assert_int_equal(stage_chunk(st, now_ms() + WAIT_MS, &list, &content), 0);
        uint64_t off = 0;
        unsigned sent = 0;
        for (size_t i = 0; i < list->n; off += list->refs[i++].bytes)
                if (!stage_block_sent(st, i))
                        assert_int_equal(stage_pread(st, off, buf, list->refs[i].bytes, now_ms() + WAIT_MS), (ssize_t)list->refs[i].bytes);
                else
                        sent++;
        assert_true(sent + 4 > list->n);
        struct known *whole = know(w->source, bytes, FILE_BYTES, 0);
        assert_true(content_equal(&whole->content, &content));
        stage_put(st);
        free(bytes);
        free(buf);
        cw_free(w);
}

/* Cut off in the middle of a block, and longer again: the block with the first end is needed, what is behind it is not. */
static void test_cut(void **state) {
        struct cw *w = cw_new(LIMIT, test_seed());
        struct rng *r = &w->source->rng.rng;
        uint8_t *bytes = malloc(FILE_BYTES);
        r->fill(r, bytes, FILE_BYTES);
        cw_open(w);
        struct node n = make(w, "cut", bytes, FILE_BYTES);
        cw_accept_all(w);
        cw_settle(w);
        no_server(w, true);
        cache_set_online(w->cache, false);
        struct file *f = cw_file(w, n.ino, true, false);
        assert_int_equal(file_set_size(f, 7 * MIB + 1), 0);
        assert_int_equal(file_set_size(f, 9 * MIB), 0);
        file_release(f, true);
        memset(bytes + 7 * MIB + 1, 0, 2 * MIB - 1);
        (void)evicted(w);
        assert_int_equal(readable(w, n.ino, bytes, 7 * MIB, 2 * MIB), 2 * MIB);
        size_t good = readable(w, n.ino, bytes, 0, 9 * MIB);
        assert_true(good < 5 * MIB);
        free(bytes);
        cw_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_edit), cmocka_unit_test(test_cut_offline), cmocka_unit_test(test_cut) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
