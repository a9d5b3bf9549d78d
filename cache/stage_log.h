/* SPDX-License-Identifier: Apache-2.0 */
/* stage_log.h: the records of stages on disk. docs/stage-format.md has the bytes. Pure but for reading and writing the given descriptor. */
#pragma once
#include "base/buf.h"
#include "base/model.h"

#define LOG_UNIT 64u                       /* records, payloads and the file header are multiples of it */
#define LOG_PAYLOAD_MAX (128u << 10)
#define LOG_VERSION 1u
#define STAGE_HEADER_BYTES 512u
#define STAGE_DATA_NAME 32u

#define LOG_COPY_ALL UINT16_MAX            /* a DONE in a shared log is told of the generation, not of a copy */

enum slog_file_kind { LOG_SHARED = 1, LOG_OWN = 2 };
struct slog_file {
        enum slog_file_kind kind;
        struct id salt;                    /* random at each reuse of the file: records of an earlier life never verify */
        uint64_t order;                    /* shared: ascends with each reuse; own: 0 */
};

enum slog_kind {
        LOG_HEADER = 1,   /* payload: struct stage_header. Always seq 0 of its copy */
        LOG_DATA = 2,     /* off, bytes; payload in a shared log, else the bytes are in the stage's file at off */
        LOG_ZERO = 3,     /* off, bytes */
        LOG_SIZE = 4,     /* bytes: new size */
        LOG_SENT = 5,     /* off, bytes; payload: hash, bytes of the block, offset in it */
        LOG_MTIME = 6,    /* time_ns: set by a program */
        LOG_SEAL = 7,     /* off: seq of this record, bytes: size, time_ns: mtime */
        LOG_REBASE = 8,   /* payload: struct stage_header's base content and version: what is below was committed as this */
        LOG_FAILED = 9,   /* off, bytes: a write failed, flags: errno; bytes 0: healed */
        LOG_REASSIGN = 10,/* payload: stage_header, of which ino, node, parent, name and base version count */
        LOG_LAYER = 11,   /* a newer generation took its place in the outbox: only a layer now */
        LOG_DONE = 12,    /* on the server or without meaning: the stage may go */
        LOG_SYNC = 13,    /* everything before `off` (shared: position; own: seq) is on the platter; own: bytes: digest of the sums, or 0 */
        LOG_CUT = 14,     /* recovery: records of this stage with this seq or more that were written before this one are void */
        LOG_INTENT = 15,  /* not in a log, but at the start of the sums file: this range is being changed */
        LOG_SHARE = 16,   /* bytes; payload: stage_header's base content, of which the first `bytes` bytes are all that the stage shows now */
        LOG_KIND_LAST = LOG_SHARE,
};
struct slog_entry {
        enum slog_kind kind;
        uint8_t flags;
        uint16_t copy;           /* of the stage's records: the highest one with a header that counts */
        uint32_t payload_bytes;
        uint64_t gen, seq;       /* seq: 0, 1, 2, ... per (gen, copy); a gap is damage */
        uint64_t off, bytes;
        int64_t time_ns;
};
struct stage_header {
        uint64_t gen, ino, below_gen /* sealed stage under it, or 0 */, base_limit;
        struct id node, parent, base_version, session;
        struct content base;
        uint32_t mode;
        int64_t mtime_ns;
        char data_name[STAGE_DATA_NAME]; /* file with the bytes, in lent/; "" for a shared log */
        char name[NAME_BYTES_MAX + 1];
};
struct slog_sent { struct digest hash; uint32_t block_bytes, block_off; };
#define LOG_SENT_BYTES 40u

static inline uint32_t slog_padded(uint32_t payload_bytes) { return (payload_bytes + LOG_UNIT - 1) / LOG_UNIT * LOG_UNIT; }
static inline uint64_t slog_record_bytes(uint32_t payload_bytes) { return LOG_UNIT + slog_padded(payload_bytes); }

void slog_file_encode(const struct slog_file *f, uint8_t ret[LOG_UNIT]);
int slog_file_decode(const uint8_t p[LOG_UNIT], struct slog_file *ret) _must_check_;       /* -EBADMSG; -ENODATA: all zero */
void slog_entry_encode(const struct slog_entry *e, const struct id *salt, uint64_t pos, const void *payload, uint8_t ret[LOG_UNIT]);
void stage_header_encode(const struct stage_header *h, uint8_t ret[STAGE_HEADER_BYTES]);
int stage_header_decode(const uint8_t *p, size_t n, struct stage_header *ret) _must_check_; /* -EBADMSG */
void slog_sent_encode(const struct slog_sent *s, uint8_t ret[LOG_SENT_BYTES]);
int slog_sent_decode(const uint8_t *p, size_t n, struct slog_sent *ret) _must_check_;

/* Writes one record (payload may be NULL with payload_bytes 0). */
int slog_write(int fd, const struct id *salt, uint64_t pos, const struct slog_entry *e, const void *payload) _must_check_;

/* One record without payload. -EBADMSG: none there. */
int slog_read(int fd, const struct id *salt, uint64_t pos, struct slog_entry *ret) _must_check_;

/* Reads a log file from its first record on. each gets every record whose own sum verifies; payload is NULL if there is none or if its bytes are damaged (then e->payload_bytes
 * is not 0). Damaged or unwritten ranges are skipped: a record after one shows itself by its seq. ret_end: after the last record that verifies. each's negative result ends it. */
struct slog_scan { int (*each)(void *arg, const struct slog_entry *e, uint64_t pos, const uint8_t *payload); void *arg; };
int slog_scan(int fd, struct slog_file *ret_file, const struct slog_scan *scan, uint64_t *ret_end) _must_check_;
