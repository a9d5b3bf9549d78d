/* SPDX-License-Identifier: Apache-2.0 */
/* Records on disk: what was written is read, what was damaged is not, and nothing else suffers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/io.h"
#include "stage_log.h"

struct got { struct slog_entry e[2000]; uint64_t pos[2000]; bool payload[2000]; size_t n; uint8_t first[2000]; };
static int take(void *arg, const struct slog_entry *e, uint64_t pos, const uint8_t *payload) {
        struct got *g = arg;
        assert_true(g->n < 2000);
        g->pos[g->n] = pos;
        g->payload[g->n] = payload != NULL;
        g->first[g->n] = payload ? payload[e->payload_bytes - 1] : 0;
        g->e[g->n++] = *e;
        return 0;
}

static int begin(struct slog_file *f) {
        int fd = memfd_create("log", MFD_CLOEXEC);
        assert_true(fd >= 0);
        *f = (struct slog_file) { .kind = LOG_SHARED, .order = 5, .salt = rng_id(rng_system()) };
        uint8_t b[LOG_UNIT];
        slog_file_encode(f, b);
        assert_int_equal(pwrite_full(fd, b, sizeof b, 0), 0);
        return fd;
}

static size_t scan(int fd, struct got *g, uint64_t *ret_end) {
        struct slog_file f;
        g->n = 0;
        struct slog_scan s = { take, g };
        assert_int_equal(slog_scan(fd, &f, &s, ret_end), 0);
        return g->n;
}

static void test_damage(void **state) {
        struct slog_file f;
        static struct got g, clean;
        static uint8_t payload[70000];
        struct rng_seeded r;
        rng_seed(&r, 3);
        int fd = begin(&f);
        uint64_t pos = LOG_UNIT, end;
        for (uint64_t i = 0; i < 300; i++) {
                uint32_t n = i % 3 ? (uint32_t)rng_below(&r.rng, i % 50 == 1 ? 70000 : 300) : 0;
                memset(payload, (int)i, n ? n : 1);
                struct slog_entry e = { .kind = LOG_DATA, .gen = 9, .seq = i, .off = i * 10, .bytes = i, .payload_bytes = n, .time_ns = -5 };
                assert_int_equal(slog_write(fd, &f.salt, pos, &e, payload), 0);
                pos += slog_record_bytes(n);
        }
        assert_int_equal(scan(fd, &clean, &end), 300);
        assert_int_equal(end, pos);
        for (size_t i = 0; i < 300; i++) {
                assert_int_equal(clean.e[i].seq, i);
                assert_int_equal(clean.e[i].time_ns, -5);
                assert_true(!clean.e[i].payload_bytes || clean.first[i] == (uint8_t)i);
        }
        for (int round = 0; round < 300; round++) {
                uint64_t at = LOG_UNIT + rng_below(&r.rng, pos - LOG_UNIT);
                uint8_t b;
                assert_int_equal(pread_full(fd, &b, 1, at), 0);
                uint8_t bad = b ^ (uint8_t)(1u << rng_below(&r.rng, 8));
                assert_int_equal(pwrite_full(fd, &bad, 1, at), 0);
                size_t n = scan(fd, &g, &end), missing = 0, hurt = 0;
                for (size_t i = 0, k = 0; i < 300; i++) {
                        if (k < n && g.e[k].seq == i) {
                                hurt += g.e[k].payload_bytes && !g.payload[k];
                                assert_true(!g.payload[k] || g.first[k] == (uint8_t)i);
                                k++;
                        } else {
                                missing++;
                        }
                }
                assert_true(missing + hurt <= 1); /* padding may be hit: then nothing */
                assert_int_equal(pwrite_full(fd, &b, 1, at), 0);
        }
        /* another life of the file: nothing of the old one verifies */
        struct slog_file f2 = f;
        f2.salt = rng_id(rng_system());
        uint8_t b[LOG_UNIT];
        slog_file_encode(&f2, b);
        assert_int_equal(pwrite_full(fd, b, sizeof b, 0), 0);
        assert_int_equal(scan(fd, &g, &end), 0);
        assert_int_equal(end, LOG_UNIT);
        (void)close(fd);
}

static void test_tail(void **state) {
        struct slog_file f;
        static struct got g;
        int fd = begin(&f);
        uint64_t pos = LOG_UNIT, end;
        for (uint64_t i = 0; i < 20; i++) {
                struct slog_entry e = { .kind = LOG_DATA, .gen = 1, .seq = i, .payload_bytes = 100 };
                uint8_t payload[100] = { 0 };
                assert_int_equal(slog_write(fd, &f.salt, pos, &e, payload), 0);
                pos += slog_record_bytes(100);
        }
        for (uint64_t cut = pos; cut-- > LOG_UNIT;) {
                assert_int_equal(ftruncate(fd, (off_t)cut), 0);
                uint64_t whole = (cut - LOG_UNIT) / slog_record_bytes(100);
                size_t n = scan(fd, &g, &end);
                size_t good = 0;
                while (good < n && g.payload[good])
                        good++;
                assert_in_range(good, whole, whole + 1); /* padding alone may be missing */
                assert_true(n <= good + 1);
        }
        (void)close(fd);
}

static void test_header(void **state) {
        struct stage_header h = { .gen = 7, .ino = 8, .below_gen = 6, .base_limit = 99, .mode = 0644, .mtime_ns = -1, .base = { .size = 12, .depth = 1, .param = 1 } }, back;
        (void)snprintf(h.name, sizeof h.name, "a name");
        (void)snprintf(h.data_name, sizeof h.data_name, "0000001f");
        uint8_t b[STAGE_HEADER_BYTES];
        stage_header_encode(&h, b);
        assert_int_equal(stage_header_decode(b, sizeof b, &back), 0);
        assert_memory_equal(&h, &back, sizeof h);
        b[0] ^= 1;
        assert_int_equal(stage_header_decode(b, sizeof b, &back), -EBADMSG);
        b[0] ^= 1;
        memcpy(b + 160, "../x", 4); /* a path is not a name */
        assert_int_equal(stage_header_decode(b, sizeof b, &back), -EBADMSG);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_damage), cmocka_unit_test(test_tail), cmocka_unit_test(test_header) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
