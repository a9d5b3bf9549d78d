/* SPDX-License-Identifier: Apache-2.0 */
/* stage_log.c: records of stages: encoding, checking, scanning.
 *
 * One format for both homes of a stage. A *shared* log holds the records of many small stages, with their bytes as payload; an *own* log holds those of one large
 * stage, whose bytes are in a sparse file at their file offsets. A log file begins with 64 bytes {magic, version, kind, salt, order, sum}; records follow, each
 * 64 bytes and its payload padded to 64. All integers are little endian.
 *
 * Each record carries an XXH3-64 over itself, the file's salt and its position: bytes of an earlier life of the file, or a record at a wrong place, never verify.
 * The payload has a sum of its own inside the record, so that damage in a payload can still be told to belong to a stage.
 *
 * What a reader may conclude:
 *   tail does not verify                  never reached the disk (power cut) or was being written (kill): cut off, nothing was promised
 *   hole, then records with seq in order  another stage's reservation that was never written: nothing lost
 *   gap in a stage's seq                  a record is damaged: the stage is
 *
 * Thread rules: pure functions and positional I/O; who appends where is decided by stage_seg.c and stage_own.c. */
#include "stage_log.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/digest.h"
#include "base/io.h"

static const char magic[8] = "tarnlog1";
static const char stage_magic[8] = "tarnstg1";

static void put64(uint8_t *p, uint64_t v) {
        v = htole64(v);
        memcpy(p, &v, sizeof v);
}
static void put32(uint8_t *p, uint32_t v) {
        v = htole32(v);
        memcpy(p, &v, sizeof v);
}
static uint64_t get64(const uint8_t *p) {
        uint64_t v;
        memcpy(&v, p, sizeof v);
        return le64toh(v);
}
static uint32_t get32(const uint8_t *p) {
        uint32_t v;
        memcpy(&v, p, sizeof v);
        return le32toh(v);
}

/* 0 magic 8 | 8 version 4 | 12 kind 4 | 16 salt 16 | 32 order 8 | 40 zero 16 | 56 sum 8 */
void slog_file_encode(const struct slog_file *f, uint8_t ret[LOG_UNIT]) {
        memset(ret, 0, LOG_UNIT);
        memcpy(ret, magic, sizeof magic);
        put32(ret + 8, LOG_VERSION);
        put32(ret + 12, f->kind);
        memcpy(ret + 16, f->salt.b, ID_BYTES);
        put64(ret + 32, f->order);
        put64(ret + 56, xxh3_64(ret, 56));
}

int slog_file_decode(const uint8_t p[LOG_UNIT], struct slog_file *ret) {
        static const uint8_t zero[LOG_UNIT];
        if (!memcmp(p, zero, LOG_UNIT))
                return -ENODATA;
        if (memcmp(p, magic, sizeof magic) || get64(p + 56) != xxh3_64(p, 56))
                return -EBADMSG;
        if (get32(p + 8) != LOG_VERSION)
                return -EPROTONOSUPPORT;
        uint32_t kind = get32(p + 12);
        if (kind != LOG_SHARED && kind != LOG_OWN)
                return -EBADMSG;
        struct slog_file f = { .kind = kind, .order = get64(p + 32) };
        memcpy(f.salt.b, p + 16, ID_BYTES);
        *ret = f;
        return 0;
}

static uint64_t record_sum(const uint8_t rec[LOG_UNIT], const struct id *salt, uint64_t pos) {
        uint8_t b[LOG_UNIT + ID_BYTES];
        memcpy(b, rec, LOG_UNIT);
        put64(b, pos); /* in the place of the sum */
        memcpy(b + LOG_UNIT, salt->b, ID_BYTES);
        return xxh3_64(b, sizeof b);
}

/* 0 sum 8 | 8 kind 1 | 9 flags 1 | 10 copy 2 | 12 payload bytes 4 | 16 gen 8 | 24 seq 8 | 32 off 8 | 40 bytes 8 | 48 time 8 | 56 payload's sum 8 */
void slog_entry_encode(const struct slog_entry *e, const struct id *salt, uint64_t pos, const void *payload, uint8_t ret[LOG_UNIT]) {
        assert(e->payload_bytes <= LOG_PAYLOAD_MAX);
        ret[8] = (uint8_t)e->kind;
        ret[9] = e->flags;
        ret[10] = (uint8_t)e->copy;
        ret[11] = (uint8_t)(e->copy >> 8);
        put32(ret + 12, e->payload_bytes);
        put64(ret + 16, e->gen);
        put64(ret + 24, e->seq);
        put64(ret + 32, e->off);
        put64(ret + 40, e->bytes);
        put64(ret + 48, (uint64_t)e->time_ns);
        put64(ret + 56, e->payload_bytes ? xxh3_64(payload, e->payload_bytes) : 0);
        put64(ret, record_sum(ret, salt, pos));
}

static bool entry_decode(const uint8_t p[LOG_UNIT], const struct id *salt, uint64_t pos, struct slog_entry *ret) {
        if (p[8] == 0 || p[8] > LOG_KIND_LAST || get32(p + 12) > LOG_PAYLOAD_MAX)
                return false;
        if (get64(p) != record_sum(p, salt, pos))
                return false;
        *ret = (struct slog_entry) {
                .kind = p[8], .flags = p[9], .copy = (uint16_t)(p[10] | p[11] << 8), .payload_bytes = get32(p + 12), .gen = get64(p + 16), .seq = get64(p + 24),
                .off = get64(p + 32), .bytes = get64(p + 40), .time_ns = (int64_t)get64(p + 48),
        };
        return true;
}

/* 0 magic 8 | 8 gen | 16 ino | 24 below | 32 base limit | 40 node 16 | 56 parent 16 | 72 base version 16 | 88 session 16 | 104 base root 32 | 136 base size 8 |
 * 144 depth 1 | 145 param 1 | 146 zero 2 | 148 mode 4 | 152 mtime 8 | 160 data name 32 | 192 name 256 | 448 zero */
void stage_header_encode(const struct stage_header *h, uint8_t ret[STAGE_HEADER_BYTES]) {
        memset(ret, 0, STAGE_HEADER_BYTES);
        memcpy(ret, stage_magic, sizeof stage_magic);
        put64(ret + 8, h->gen);
        put64(ret + 16, h->ino);
        put64(ret + 24, h->below_gen);
        put64(ret + 32, h->base_limit);
        memcpy(ret + 40, h->node.b, ID_BYTES);
        memcpy(ret + 56, h->parent.b, ID_BYTES);
        memcpy(ret + 72, h->base_version.b, ID_BYTES);
        memcpy(ret + 88, h->session.b, ID_BYTES);
        memcpy(ret + 104, h->base.root.b, DIGEST_BYTES);
        put64(ret + 136, h->base.size);
        ret[144] = h->base.depth;
        ret[145] = h->base.param;
        put32(ret + 148, h->mode);
        put64(ret + 152, (uint64_t)h->mtime_ns);
        memcpy(ret + 160, h->data_name, strnlen(h->data_name, STAGE_DATA_NAME - 1));
        memcpy(ret + 192, h->name, strnlen(h->name, NAME_BYTES_MAX));
}

int stage_header_decode(const uint8_t *p, size_t n, struct stage_header *ret) {
        if (n != STAGE_HEADER_BYTES || memcmp(p, stage_magic, sizeof stage_magic))
                return -EBADMSG;
        struct stage_header h = {
                .gen = get64(p + 8), .ino = get64(p + 16), .below_gen = get64(p + 24), .base_limit = get64(p + 32), .base = { .size = get64(p + 136), .depth = p[144], .param = p[145] },
                .mode = get32(p + 148), .mtime_ns = (int64_t)get64(p + 152),
        };
        memcpy(h.node.b, p + 40, ID_BYTES);
        memcpy(h.parent.b, p + 56, ID_BYTES);
        memcpy(h.base_version.b, p + 72, ID_BYTES);
        memcpy(h.session.b, p + 88, ID_BYTES);
        memcpy(h.base.root.b, p + 104, DIGEST_BYTES);
        memcpy(h.data_name, p + 160, STAGE_DATA_NAME - 1);
        memcpy(h.name, p + 192, NAME_BYTES_MAX);
        if (strchr(h.data_name, '/') || h.data_name[0] == '.' || strchr(h.name, '/'))
                return -EBADMSG;
        *ret = h;
        return 0;
}

void slog_sent_encode(const struct slog_sent *s, uint8_t ret[LOG_SENT_BYTES]) {
        memcpy(ret, s->hash.b, DIGEST_BYTES);
        put32(ret + 32, s->block_bytes);
        put32(ret + 36, s->block_off);
}

int slog_sent_decode(const uint8_t *p, size_t n, struct slog_sent *ret) {
        if (n != LOG_SENT_BYTES)
                return -EBADMSG;
        struct slog_sent s = { .block_bytes = get32(p + 32), .block_off = get32(p + 36) };
        memcpy(s.hash.b, p, DIGEST_BYTES);
        if (s.block_bytes > BLOCK_BYTES_MAX || s.block_off >= s.block_bytes)
                return -EBADMSG;
        *ret = s;
        return 0;
}

int slog_write(int fd, const struct id *salt, uint64_t pos, const struct slog_entry *e, const void *payload) {
        static const uint8_t zero[LOG_UNIT];
        uint8_t rec[LOG_UNIT];
        slog_entry_encode(e, salt, pos, payload, rec);
        uint32_t pad = slog_padded(e->payload_bytes) - e->payload_bytes;
        struct iovec v[3] = { { rec, LOG_UNIT }, { (void *)payload, e->payload_bytes }, { (void *)zero, pad } };
        size_t all = LOG_UNIT + e->payload_bytes + pad;
        ssize_t n;
        do
                n = pwritev(fd, v, e->payload_bytes ? 3 : 1, (off_t)pos);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        if ((size_t)n == all)
                return 0;
        /* short: the rest piece by piece */
        int r = pwrite_full(fd, rec, LOG_UNIT, pos);
        if (r == 0 && e->payload_bytes)
                r = pwrite_full(fd, payload, e->payload_bytes, pos + LOG_UNIT);
        if (r == 0 && pad)
                r = pwrite_full(fd, zero, pad, pos + LOG_UNIT + e->payload_bytes);
        return r;
}

int slog_read(int fd, const struct id *salt, uint64_t pos, struct slog_entry *ret) {
        uint8_t rec[LOG_UNIT];
        ssize_t n = pread_some(fd, rec, sizeof rec, pos);
        if (n < 0)
                return (int)n;
        return (size_t)n == sizeof rec && entry_decode(rec, salt, pos, ret) && !ret->payload_bytes ? 0 : -EBADMSG;
}

#define WINDOW_BYTES (1u << 20)
struct window { int fd; uint8_t *p; uint64_t off; size_t n; uint64_t size; };

/* Bytes at pos, at least `want` of them or as many as the file has. */
static int window_at(struct window *w, uint64_t pos, size_t want, const uint8_t **ret, size_t *ret_n) {
        if (pos < w->off || pos + want > w->off + w->n) {
                uint64_t left = pos < w->size ? w->size - pos : 0;
                size_t n = (size_t)MIN(left, (uint64_t)WINDOW_BYTES);
                ssize_t got = n ? pread_some(w->fd, w->p, n, pos) : 0;
                if (got < 0)
                        return (int)got;
                w->off = pos;
                w->n = (size_t)got;
        }
        *ret = w->p + (pos - w->off);
        *ret_n = w->n - (size_t)(pos - w->off);
        return 0;
}

int slog_scan(int fd, struct slog_file *ret_file, const struct slog_scan *scan, uint64_t *ret_end) {
        struct stat st;
        if (fstat(fd, &st) < 0)
                return -errno;
        _cleanup_free_ uint8_t *buf = malloc(WINDOW_BYTES);
        if (!buf)
                return -ENOMEM;
        struct window w = { .fd = fd, .p = buf, .size = (uint64_t)st.st_size };
        const uint8_t *p = NULL;
        size_t n = 0;
        int r = window_at(&w, 0, LOG_UNIT, &p, &n);
        if (r < 0)
                return r;
        if (n < LOG_UNIT)
                return -ENODATA;
        struct slog_file f;
        r = slog_file_decode(p, &f);
        if (r < 0)
                return r;
        *ret_file = f; /* each may look at it */
        uint64_t end = LOG_UNIT;
        for (uint64_t pos = LOG_UNIT;;) {
                r = window_at(&w, pos, LOG_UNIT, &p, &n);
                if (r < 0)
                        return r;
                if (n < LOG_UNIT)
                        break;
                struct slog_entry e;
                if (!entry_decode(p, &f.salt, pos, &e)) {
                        pos += LOG_UNIT;
                        continue;
                }
                const uint8_t *payload = NULL;
                if (e.payload_bytes) {
                        r = window_at(&w, pos, LOG_UNIT + e.payload_bytes, &p, &n);
                        if (r < 0)
                                return r;
                        if (n >= LOG_UNIT + e.payload_bytes && get64(p + 56) == xxh3_64(p + LOG_UNIT, e.payload_bytes))
                                payload = p + LOG_UNIT;
                }
                uint64_t here = pos;
                /* after a damaged payload the next record may be anywhere */
                pos += payload || !e.payload_bytes ? slog_record_bytes(e.payload_bytes) : LOG_UNIT;
                end = MAX(end, here + slog_record_bytes(e.payload_bytes));
                r = scan->each(scan->arg, &e, here, payload);
                if (r < 0)
                        return r;
        }
        *ret_end = end;
        return 0;
}
