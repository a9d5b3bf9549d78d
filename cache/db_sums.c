/* SPDX-License-Identifier: Apache-2.0 */
/* db_sums.c: a sum in each page of a SQLite file, so that a bit that flips on this disk is an error and never somebody's row.
 *
 * SQLite leaves the last 8 bytes of each page alone if the header says so (byte 20 of the file, "reserved"). There lies the XXH3-64 of the other 4,088, to which a multiple of the page's number was
 * added, so that a page that was written to another one's place is found too.
 *
 *   write of a page to the database file   the sum is put into a copy of the page
 *   read of a page                         the sum is compared: SQLITE_IOERR_DATA, which db.c calls damage
 *   the log (-wal)                         not here: each of its frames has a sum of SQLite's own, which is compared when a log is found at the start. What a running process reads
 *                                          back from its log was written by itself a moment ago
 *   reads of a part of a page              passed on (SQLite looks at the header so before it has a lock, and reads the page whole before it believes it)
 *   a page of nothing but zeros            passed on: a hole that was never written
 *
 * In WAL mode only a checkpoint writes to the file: sums cost the writers nothing, and the checkpoint about 0.3 us a page. A crash in the middle of a checkpoint may leave torn pages; the log is
 * whole then and shadows them, and the next checkpoint writes them again.
 *
 * A file made without sums has 0 in byte 20. A flipped byte 20 of one that has them looks like that; but then page 1 verifies with an 8 in its place.
 *
 * SQLite calls a disk that answers EIO to a read a damaged file (SQLITE_IOERR_CORRUPTFS). It is not: who sets damaged files aside would do so for a loose cable. Here it stays an error of the disk.
 *
 * Only the database file and its log are wrapped; the rest is the inner VFS's own. No shared state but the registration; a file belongs to its connection. */
#include "db_sums.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/digest.h"
#include "db.h"

#define RESERVED_AT 20u
#define VERSION_AT 60u
#define PAGE_NUMBER_FACTOR UINT64_C(0x9E3779B97F4A7C15)
#define SCAN_PAGES 64u

struct sums_file {
        sqlite3_file base;
        bool database, sums, disk_failed;
        sqlite3_file *inner; /* behind this struct */
};

static sqlite3_vfs vfs_;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static struct sums_file *file_of(sqlite3_file *f) {
        return (struct sums_file *)f;
}

static uint64_t sum_of(const uint8_t *page, uint64_t number) {
        return xxh3_64(page, DB_PAGE_BYTES - DB_SUM_BYTES) + number * PAGE_NUMBER_FACTOR;
}

static void put_sum(uint8_t *page, uint64_t number) {
        uint64_t v = sum_of(page, number);
        for (unsigned i = 0; i < DB_SUM_BYTES; i++)
                page[DB_PAGE_BYTES - DB_SUM_BYTES + i] = (uint8_t)(v >> 8 * i);
}

static bool sum_is_right(const uint8_t *page, uint64_t number) {
        uint64_t v = 0;
        for (unsigned i = DB_SUM_BYTES; i-- > 0;)
                v = v << 8 | page[DB_PAGE_BYTES - DB_SUM_BYTES + i];
        return v == sum_of(page, number);
}

static bool is_zero(const uint8_t *page) {
        return page[0] == 0 && memcmp(page, page + 1, DB_PAGE_BYTES - 1) == 0;
}

/* Does the file whose first page this is have sums? Only what looks like a sound file without them has none: not one whose byte that says so has flipped, nor one without a header. */
static bool has_sums(const uint8_t *page) {
        uint8_t copy[DB_PAGE_BYTES];
        if (memcmp(page, "SQLite format 3", 16) != 0 || page[RESERVED_AT] != 0)
                return true;
        memcpy(copy, page, sizeof copy);
        copy[RESERVED_AT] = DB_SUM_BYTES;
        return sum_is_right(copy, 1);
}

/* ---- the file ---- */

static int f_close(sqlite3_file *f) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xClose(in);
}
static int f_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at) {
        struct sums_file *s = file_of(f);
        int rc = s->inner->pMethods->xRead(s->inner, p, n, at);
        if (rc != SQLITE_OK && rc != SQLITE_IOERR_SHORT_READ) {
                s->disk_failed = true;
                return SQLITE_IOERR_READ;
        }
        if (rc != SQLITE_OK || !s->sums || n < 512)
                return rc;
        if (n != DB_PAGE_BYTES || at % DB_PAGE_BYTES) /* the header tells a wrong size of pages */
                return SQLITE_IOERR_DATA;
        return sum_is_right(p, (uint64_t)at / DB_PAGE_BYTES + 1) || is_zero(p) ? SQLITE_OK : SQLITE_IOERR_DATA;
}
static int f_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at) {
        struct sums_file *s = file_of(f);
        uint8_t page[DB_PAGE_BYTES];
        if (s->database && at == 0 && n == DB_PAGE_BYTES) /* made, or made anew with sums */
                s->sums = ((const uint8_t *)p)[RESERVED_AT] == DB_SUM_BYTES;
        if (!s->sums || n != DB_PAGE_BYTES)
                return s->inner->pMethods->xWrite(s->inner, p, n, at);
        memcpy(page, p, sizeof page);
        put_sum(page, (uint64_t)at / DB_PAGE_BYTES + 1);
        return s->inner->pMethods->xWrite(s->inner, page, n, at);
}
static int f_truncate(sqlite3_file *f, sqlite3_int64 n) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xTruncate(in, n);
}
static int f_sync(sqlite3_file *f, int flags) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xSync(in, flags);
}
static int f_size(sqlite3_file *f, sqlite3_int64 *ret) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xFileSize(in, ret);
}
static int f_lock(sqlite3_file *f, int level) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xLock(in, level);
}
static int f_unlock(sqlite3_file *f, int level) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xUnlock(in, level);
}
static int f_reserved(sqlite3_file *f, int *ret) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xCheckReservedLock(in, ret);
}
static int f_control(sqlite3_file *f, int op, void *arg) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xFileControl(in, op, arg);
}
static int f_sector(sqlite3_file *f) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xSectorSize(in);
}
static int f_traits(sqlite3_file *f) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xDeviceCharacteristics(in);
}
static int f_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **ret) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xShmMap(in, page, size, extend, ret);
}
static int f_shm_lock(sqlite3_file *f, int at, int n, int flags) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xShmLock(in, at, n, flags);
}
static void f_shm_barrier(sqlite3_file *f) {
        sqlite3_file *in = file_of(f)->inner;
        in->pMethods->xShmBarrier(in);
}
static int f_shm_unmap(sqlite3_file *f, int remove) {
        sqlite3_file *in = file_of(f)->inner;
        return in->pMethods->xShmUnmap(in, remove);
}

/* Version 2: no memory mapping, which would go past the sums. */
static const sqlite3_io_methods methods = {
        .iVersion = 2, .xClose = f_close, .xRead = f_read, .xWrite = f_write, .xTruncate = f_truncate, .xSync = f_sync, .xFileSize = f_size, .xLock = f_lock, .xUnlock = f_unlock,
        .xCheckReservedLock = f_reserved, .xFileControl = f_control, .xSectorSize = f_sector, .xDeviceCharacteristics = f_traits, .xShmMap = f_shm_map, .xShmLock = f_shm_lock,
        .xShmBarrier = f_shm_barrier, .xShmUnmap = f_shm_unmap,
};

/* ---- the VFS ---- */

static int v_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *ret_flags) {
        sqlite3_vfs *inner = v->pAppData;
        if (!(flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)))
                return inner->xOpen(inner, name, f, flags, ret_flags);
        struct sums_file *s = file_of(f);
        uint8_t page[DB_PAGE_BYTES];
        *s = (struct sums_file){ .inner = (sqlite3_file *)(s + 1), .database = flags & SQLITE_OPEN_MAIN_DB };
        s->inner->pMethods = NULL;
        int rc = inner->xOpen(inner, name, s->inner, flags, ret_flags);
        if (s->inner->pMethods)
                f->pMethods = &methods;
        if (rc != SQLITE_OK || !s->database)
                return rc;
        rc = s->inner->pMethods->xRead(s->inner, page, sizeof page, 0);
        s->sums = rc == SQLITE_OK ? has_sums(page) : rc == SQLITE_IOERR_SHORT_READ;
        if (rc == SQLITE_OK || rc == SQLITE_IOERR_SHORT_READ)
                return SQLITE_OK;
        (void)s->inner->pMethods->xClose(s->inner);
        f->pMethods = NULL;
        return rc == SQLITE_IOERR_CORRUPTFS ? SQLITE_IOERR_READ : rc;
}

static void init(void) {
        sqlite3_vfs *inner = sqlite3_vfs_find(NULL);
        if (!inner)
                return;
        vfs_ = *inner; /* all but xOpen takes no file, or is asked of the inner one by itself */
        vfs_.iVersion = 2;
        vfs_.pNext = NULL;
        vfs_.zName = "tarn-sums";
        vfs_.szOsFile = (int)sizeof(struct sums_file) + inner->szOsFile;
        vfs_.pAppData = inner;
        vfs_.xOpen = v_open;
        if (sqlite3_vfs_register(&vfs_, 0) != SQLITE_OK)
                vfs_.zName = NULL;
}

const char *db_sums_vfs(void) {
        (void)pthread_once(&once, init);
        return vfs_.zName;
}

int db_sums_on(sqlite3_file *f) {
        return f->pMethods == &methods && file_of(f)->sums;
}

bool db_sums_disk_failed(sqlite3_file *f) {
        if (f->pMethods != &methods)
                return false;
        bool failed = file_of(f)->disk_failed;
        file_of(f)->disk_failed = false;
        return failed;
}

int db_sums_check(sqlite3_file *f) {
        sqlite3_file *in = file_of(f)->inner;
        sqlite3_int64 size, at = 0;
        assert(f->pMethods == &methods);
        _cleanup_free_ uint8_t *buf = malloc((size_t)SCAN_PAGES * DB_PAGE_BYTES);
        if (!buf)
                return SQLITE_NOMEM;
        int rc = in->pMethods->xFileSize(in, &size);
        while (rc == SQLITE_OK && at + DB_PAGE_BYTES <= size) {
                size_t n = MIN((size_t)(size - at) / DB_PAGE_BYTES, (size_t)SCAN_PAGES);
                rc = in->pMethods->xRead(in, buf, (int)(n * DB_PAGE_BYTES), at);
                if (rc == SQLITE_IOERR_CORRUPTFS)
                        rc = SQLITE_IOERR_READ;
                for (size_t i = 0; i < n && rc == SQLITE_OK; i++, at += DB_PAGE_BYTES) {
                        const uint8_t *page = buf + i * DB_PAGE_BYTES;
                        if (!sum_is_right(page, (uint64_t)at / DB_PAGE_BYTES + 1) && !is_zero(page))
                                rc = SQLITE_IOERR_DATA;
                }
        }
        return rc;
}

int db_version_of(const char *path, uint32_t *ret) {
        uint8_t page[DB_PAGE_BYTES];
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? -ENODATA : -errno;
        ssize_t n = pread(fd, page, sizeof page, 0); /* of a regular file: all, or up to its end */
        if (n < 0)
                return -errno;
        if (n < (ssize_t)sizeof page || memcmp(page, "SQLite format 3", 16) != 0 || (has_sums(page) && !sum_is_right(page, 1)))
                return -ENODATA;
        *ret = (uint32_t)page[VERSION_AT] << 24 | (uint32_t)page[VERSION_AT + 1] << 16 | (uint32_t)page[VERSION_AT + 2] << 8 | page[VERSION_AT + 3];
        return 0;
}
