/* SPDX-License-Identifier: Apache-2.0 */
/* db_log.c: a SQLite log (-wal) read without SQLite, before SQLite opens it: how much of it counts, and whether something lies behind that.
 *
 * SQLite tells neither without moving the log into the database or taking part in it, and what may be moved is the question (db_mark.c). The format is fixed by SQLite's documentation:
 *
 *   header, 32 bytes: magic 4 (its last bit: words of the sums are big-endian) | version 4 | page bytes 4 | number 4 | salts 8 | sum 8 of the first 24
 *   frame: page 4 | pages of the file after this transaction, 0: it goes on 4 | salts 8 | sum 8 | the page.   The sum goes on from the one before, over the first 8 bytes and the page.
 *
 * All big-endian but the words that are summed. A frame counts if its salts are the header's and all sums up to it verify; a transaction if its last frame does. A log that begins anew is written over the
 * old one and has other salts, so old frames behind the end are no sign of anything; frames of its own that do not count are a tail that was being written, or damage. */
#include "db_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FRAME_HEAD_BYTES 24u
#define MAGIC 0x377f0682u
#define VERSION 3007000u
#define PAGE_BYTES_MAX 65536u

struct sum { uint32_t a, b; };

static uint32_t big(const uint8_t *p) {
        return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint32_t little(const uint8_t *p) {
        return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static struct sum sum_on(struct sum s, bool big_words, const uint8_t *p, size_t n) {
        for (size_t i = 0; i + 8 <= n; i += 8) {
                s.a += (big_words ? big(p + i) : little(p + i)) + s.b;
                s.b += (big_words ? big(p + i + 4) : little(p + i + 4)) + s.a;
        }
        return s;
}

static uint32_t page_bytes(const uint8_t *head) {
        uint32_t n = big(head + 8);
        return n >= 512 && n <= PAGE_BYTES_MAX && (n & (n - 1)) == 0 ? n : 0;
}

bool db_log_head_ok(const uint8_t head[DB_LOG_HEAD_BYTES]) {
        struct sum s = sum_on((struct sum){ 0, 0 }, head[3] & 1, head, DB_LOG_HEAD_BYTES - 8);
        return (big(head) & ~1u) == MAGIC && big(head + 4) == VERSION && page_bytes(head) && big(head + 24) == s.a && big(head + 28) == s.b;
}

int64_t db_log_end(const uint8_t head[DB_LOG_HEAD_BYTES], uint64_t frames) {
        uint32_t page = page_bytes(head);
        return page && frames < UINT32_MAX ? (int64_t)(DB_LOG_HEAD_BYTES + frames * (FRAME_HEAD_BYTES + page)) : 0;
}

int db_log_first_salt(sqlite3_file *log, uint8_t ret[DB_LOG_SALT_BYTES]) {
        int rc = log->pMethods->xRead(log, ret, DB_LOG_SALT_BYTES, DB_LOG_HEAD_BYTES + 8);
        return rc == SQLITE_OK ? 0 : rc == SQLITE_IOERR_SHORT_READ ? -ENODATA : -EIO;
}

static struct sum sum_of_frame(struct sum s, const uint8_t *head, const uint8_t *frame, size_t n) {
        return sum_on(sum_on(s, head[3] & 1, frame, 8), head[3] & 1, frame + FRAME_HEAD_BYTES, n - FRAME_HEAD_BYTES);
}

static int error_of(int rc) {
        return rc == SQLITE_OK ? 0 : (rc & 0xff) == SQLITE_FULL ? -ENOSPC : -EIO;
}

int db_log_again(sqlite3_file *log, const uint8_t head[DB_LOG_HEAD_BYTES], uint64_t from, uint64_t to) {
        const size_t n = FRAME_HEAD_BYTES + page_bytes(head);
        if (!db_log_head_ok(head))
                return -EBADMSG;
        _cleanup_free_ uint8_t *frame = malloc(n);
        if (!frame)
                return -ENOMEM;
        struct sum s = { big(head + 24), big(head + 28) };
        int r = from == 0 ? error_of(log->pMethods->xWrite(log, head, DB_LOG_HEAD_BYTES, 0)) : 0;
        for (uint64_t k = 0; r == 0 && k < to; k++) {
                const int64_t at = db_log_end(head, k);
                int rc = log->pMethods->xRead(log, frame, (int)n, at);
                if (rc != SQLITE_OK)
                        return rc == SQLITE_IOERR_SHORT_READ ? -EBADMSG : -EIO;
                s = sum_of_frame(s, head, frame, n);
                if (memcmp(frame + 8, head + DB_LOG_SALT_AT, DB_LOG_SALT_BYTES) != 0 || big(frame + 16) != s.a || big(frame + 20) != s.b)
                        return -EBADMSG;
                if (k >= from)
                        r = error_of(log->pMethods->xWrite(log, frame, (int)n, at));
        }
        return r;
}

int db_log_look(sqlite3_file *log, struct db_log *ret) {
        struct db_log l = { .frames = 0 };
        sqlite3_int64 size;
        if (log->pMethods->xFileSize(log, &size) != SQLITE_OK)
                return -EIO;
        if (size >= DB_LOG_HEAD_BYTES && log->pMethods->xRead(log, l.head, DB_LOG_HEAD_BYTES, 0) != SQLITE_OK)
                return -EIO;
        l.head_ok = db_log_head_ok(l.head);
        l.torn = size > DB_LOG_HEAD_BYTES && !l.head_ok;
        if (!l.head_ok) {
                *ret = l;
                return 0;
        }
        const size_t n = FRAME_HEAD_BYTES + page_bytes(l.head);
        _cleanup_free_ uint8_t *frame = malloc(n);
        if (!frame)
                return -ENOMEM;
        struct sum s = { big(l.head + 24), big(l.head + 28) };
        bool sound = true;
        uint64_t last = 0; /* of its own frames, believed or not */
        for (uint64_t k = 0; db_log_end(l.head, k + 1) <= size; k++) {
                if (log->pMethods->xRead(log, frame, (int)(sound ? n : FRAME_HEAD_BYTES), db_log_end(l.head, k)) != SQLITE_OK)
                        return -EIO;
                if (memcmp(frame + 8, l.head + DB_LOG_SALT_AT, DB_LOG_SALT_BYTES) == 0)
                        last = k + 1;
                if (sound) {
                        s = sum_of_frame(s, l.head, frame, n);
                        sound = last == k + 1 && big(frame) != 0 && big(frame + 16) == s.a && big(frame + 20) == s.b;
                }
                if (sound && big(frame + 4) != 0)
                        l.frames = k + 1;
        }
        l.torn = last > l.frames || (l.frames == 0 && size > DB_LOG_HEAD_BYTES);
        *ret = l;
        return 0;
}
