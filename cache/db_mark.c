/* SPDX-License-Identifier: Apache-2.0 */
/* db_mark.c: up to where a SQLite log counts after a power cut.
 *
 * SQLite believes every transaction of its log that is whole. That is too much where rows speak of bytes in other files: drives and the kernel write pages when they like, so a row may be on the
 * platter before the bytes that it names, and nobody can tell. A *mark* says: all that the rows up to here speak of is on the platter too. It is written after those bytes and the log were synced. After a
 * power cut (not after the mere end of a process: then nothing is missing) the log is cut at the last mark before SQLite sees it. So the file shows the state of one moment, that of a
 * transaction's end, with everything that belongs to it; of what came later nothing is there.
 *
 * A checkpoint copies rows from the log into the database, from where they cannot be taken back. So only what is marked may be checkpointed; who has marks checkpoints himself (db_checkpoint), and
 * SQLite never does by itself, also not when the file is opened or closed: a process that was killed leaves a log with a tail that is not marked, and only who has synced what that names may move it. Then a log whose salts are not those of the last mark began after a checkpoint of all that is marked, and none of it counts.
 *
 *   PATH-mark   two places of 64 bytes, at 0 and 4096, written in turn: magic 8 | number 8 | salts 8 | frames 8 | the rest of the log's header 24 | XXH3-64 of the first 56. Number and frames little endian,
 *               the header as in the log. The valid one with the higher number counts: a mark that was being written promised nothing yet. Without any nothing is cut (the file is new, or both are damaged).
 *
 * The header of the log is the one thing in there without which nothing counts for SQLite; so the mark has a copy, and a header that does not verify is mended from it.
 *
 * A sync that fails is told once, to one caller; the kernel holds what it could not write for written from then on, and a later sync says nothing about it. So before the next one counts, what lies behind the
 * mark is written once more (db_marks_again), from a copy of which each frame's sum verified: the kernel may also have dropped what it could not write, and shows what the disk has. The same at an open:
 * the process before this one may have been told of a failure and have died.
 *
 * A cut is for a file that nobody has open: a foreign reader (a shell, a backup) that came before us keeps an index of the log in shared memory, which would name frames that are gone. Then the start is
 * refused, and nothing was changed.
 *
 * Files are reached through SQLite's VFS, as the log is. */
#include "db_mark.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/log.h"

#define SLOT_BYTES 64u
#define SLOT_STEP 4096u
#define SHM_OPEN_BYTE 128 /* SQLite: UNIX_SHM_DMS */
#define REST_BEFORE DB_LOG_SALT_AT /* of the header, around the salts */
#define REST_BEHIND (DB_LOG_HEAD_BYTES - DB_LOG_SALT_AT - DB_LOG_SALT_BYTES)

static const uint8_t magic[8] = "tarnmrk1";

struct db_marks { sqlite3_file *file; uint64_t number; struct db_mark last; /* number 0: none */ };

static int error_of(int rc) {
        return rc == SQLITE_OK ? 0 : (rc & 0xff) == SQLITE_FULL ? -ENOSPC : -EIO;
}

/* -ENOENT only if the disk says so: SQLite's own question whether a file is there (xAccess) takes every error for a no. */
static int open_file(const char *vfs, const char *path, const char *suffix, int flags, sqlite3_file **ret) {
        sqlite3_vfs *v = sqlite3_vfs_find(vfs);
        if (!v)
                return -EINVAL;
        size_t n = strlen(path) + strlen(suffix);
        sqlite3_file *f = calloc(1, (size_t)v->szOsFile + n + 4); /* the name behind it: a VFS keeps the pointer, and its names end with several zeros */
        int r = f ? 0 : -ENOMEM;
        if (r == 0) {
                char *name = (char *)f + v->szOsFile;
                (void)snprintf(name, n + 1, "%s%s", path, suffix);
                if (v->xOpen(v, name, f, flags, NULL) != SQLITE_OK) {
                        int error = v->xGetLastError ? v->xGetLastError(v, 0, NULL) : EIO;
                        r = error == ENOSPC || error == ENOENT ? -error : -EIO;
                }
        }
        if (r < 0) {
                free(f);
                return r;
        }
        *ret = f;
        return 0;
}

static void close_file(sqlite3_file *f) {
        if (f && f->pMethods)
                (void)f->pMethods->xClose(f);
        free(f);
}

static void encode(const struct db_mark *m, uint64_t number, uint8_t ret[SLOT_BYTES]) {
        memset(ret, 0, SLOT_BYTES);
        memcpy(ret, magic, sizeof magic);
        uint64_t v = htole64(number);
        memcpy(ret + 8, &v, 8);
        memcpy(ret + 16, m->head + DB_LOG_SALT_AT, DB_LOG_SALT_BYTES);
        v = htole64(m->frames);
        memcpy(ret + 24, &v, 8);
        memcpy(ret + 32, m->head, REST_BEFORE);
        memcpy(ret + 32 + REST_BEFORE, m->head + DB_LOG_SALT_AT + DB_LOG_SALT_BYTES, REST_BEHIND);
        v = htole64(xxh3_64(ret, 56));
        memcpy(ret + 56, &v, 8);
}

/* The mark that counts. number 0: none. */
static int newest(sqlite3_file *f, struct db_mark *ret, uint64_t *ret_number) {
        *ret_number = 0;
        for (unsigned i = 0; i < 2; i++) {
                uint8_t b[SLOT_BYTES];
                int rc = f->pMethods->xRead(f, b, sizeof b, i * SLOT_STEP);
                if (rc != SQLITE_OK && rc != SQLITE_IOERR_SHORT_READ)
                        return -EIO;
                uint64_t number, sum, frames;
                memcpy(&number, b + 8, 8);
                memcpy(&frames, b + 24, 8);
                memcpy(&sum, b + 56, 8);
                if (memcmp(b, magic, sizeof magic) || le64toh(sum) != xxh3_64(b, 56) || le64toh(number) <= *ret_number)
                        continue;
                *ret_number = le64toh(number);
                memcpy(ret->head, b + 32, REST_BEFORE);
                memcpy(ret->head + DB_LOG_SALT_AT, b + 16, DB_LOG_SALT_BYTES);
                memcpy(ret->head + DB_LOG_SALT_AT + DB_LOG_SALT_BYTES, b + 32 + REST_BEFORE, REST_BEHIND);
                ret->frames = le64toh(frames);
        }
        return 0;
}

int db_marks_open(const char *vfs, const char *path, struct db_marks **ret) {
        struct db_marks *m = calloc(1, sizeof *m);
        if (!m)
                return -ENOMEM;
        int r = open_file(vfs, path, "-mark", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_SUPER_JOURNAL, &m->file);
        sqlite3_int64 size = 0;
        if (r == 0 && m->file->pMethods->xFileSize(m->file, &size) != SQLITE_OK)
                r = -EIO;
        if (r == 0 && size < (sqlite3_int64)(2 * SLOT_STEP)) { /* its blocks are there from now on */
                static const uint8_t none[SLOT_STEP];
                for (sqlite3_int64 at = size / SLOT_STEP * SLOT_STEP; r == 0 && at < (sqlite3_int64)(2 * SLOT_STEP); at += SLOT_STEP)
                        r = error_of(m->file->pMethods->xWrite(m->file, none, (int)sizeof none, at));
                if (r == 0)
                        r = error_of(m->file->pMethods->xSync(m->file, SQLITE_SYNC_NORMAL));
        }
        if (r == 0)
                r = newest(m->file, &m->last, &m->number);
        if (r < 0) {
                db_marks_close(m);
                return r;
        }
        *ret = m;
        return 0;
}

void db_marks_close(struct db_marks *m) {
        if (!m)
                return;
        close_file(m->file);
        free(m);
}

int db_marks_write(struct db_marks *m, const struct db_mark *mark) {
        uint8_t b[SLOT_BYTES];
        uint64_t number = m->number + 1;
        encode(mark, number, b);
        sqlite3_file *f = m->file;
        int r = error_of(f->pMethods->xWrite(f, b, (int)sizeof b, (number & 1) * SLOT_STEP));
        if (r < 0)
                return r;
        if (f->pMethods->xSync(f, SQLITE_SYNC_NORMAL | SQLITE_SYNC_DATAONLY) != SQLITE_OK)
                return -EIO;
        m->number = number;
        m->last = *mark;
        return 0;
}

static bool same_log(const uint8_t *a, const uint8_t *b) {
        return memcmp(a + DB_LOG_SALT_AT, b + DB_LOG_SALT_AT, DB_LOG_SALT_BYTES) == 0;
}

bool db_marks_cover(const struct db_marks *m, const struct db_mark *at) {
        return at->frames == 0 || (m->number > 0 && db_log_head_ok(at->head) && same_log(m->last.head, at->head) && at->frames <= m->last.frames);
}

int db_marks_again(const struct db_marks *m, sqlite3_file *log, const struct db_mark *at) {
        return db_marks_cover(m, at) ? 0 : db_log_again(log, at->head, m->number > 0 && same_log(m->last.head, at->head) ? m->last.frames : 0, at->frames);
}

/* It does not verify. Frames of the log that the mark is of: then it was damaged, and is what it was. Others: it was being written for a log that began anew. */
static int mend_head(sqlite3_file *log, const char *path, const struct db_mark *mark, struct db_log *l) {
        uint8_t salt[DB_LOG_SALT_BYTES];
        int r = db_log_first_salt(log, salt);
        if (r < 0)
                return r == -ENODATA ? 0 : r;
        if (!db_log_head_ok(mark->head) || memcmp(salt, mark->head + DB_LOG_SALT_AT, sizeof salt) != 0)
                return 0;
        log_warn("db log=%s-wal header damaged, mended", path);
        if (log->pMethods->xWrite(log, mark->head, DB_LOG_HEAD_BYTES, 0) != SQLITE_OK || log->pMethods->xSync(log, SQLITE_SYNC_NORMAL) != SQLITE_OK)
                return -EIO;
        return db_log_look(log, l);
}

/* 1: another process has the database open. Its wal-index, in shared memory, names frames of the log: they must not be cut under it, and SQLite would believe that index. Who has it open holds a lock on
 * one byte of the file -shm, as long as he does. */
static int others_have_it(const char *path) {
        _cleanup_free_ char *name = NULL;
        if (asprintf(&name, "%s-shm", path) < 0) {
                name = NULL;
                return -ENOMEM;
        }
        _cleanup_close_ int fd = open(name, O_RDWR | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? 0 : -errno;
        struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SHM_OPEN_BYTE, .l_len = 1 };
        if (fcntl(fd, F_GETLK, &l) < 0)
                return -errno;
        if (l.l_type == F_UNLCK)
                return 0;
        log_error("db log=%s-wal cannot be cut after a power cut: process %d reads the database; end it and start again", path, (int)l.l_pid);
        return 1;
}

/* A log that SQLite will not believe at all, because of its header, stays as it is: it shows that something is wrong. */
static int cut_log(sqlite3_file *log, const char *path, const struct db_mark *mark, struct db_log *l) {
        sqlite3_int64 size = 0;
        if (log->pMethods->xFileSize(log, &size) != SQLITE_OK)
                return -EIO;
        bool same = same_log(mark->head, l->head);
        int64_t end = same && mark->frames > 0 ? db_log_end(l->head, mark->frames) : 0;
        if (!l->head_ok || size <= end)
                return 0;
        int r = others_have_it(path);
        if (r != 0)
                return r < 0 ? r : -EBUSY;
        log_info("db log=%s-wal cut from=%" PRId64 " to=%" PRId64 " mark=%s", path, (int64_t)size, end, same ? "here" : "before it began");
        if (log->pMethods->xTruncate(log, end) != SQLITE_OK || log->pMethods->xSync(log, SQLITE_SYNC_NORMAL) != SQLITE_OK)
                return -EIO;
        return db_log_look(log, l);
}

/* -ENOENT: it is not there, or empty. */
static int database_there(const char *vfs, const char *path) {
        sqlite3_file *f;
        sqlite3_int64 size = 0;
        int r = open_file(vfs, path, "", SQLITE_OPEN_READONLY | SQLITE_OPEN_MAIN_DB, &f);
        if (r < 0)
                return r;
        r = f->pMethods->xFileSize(f, &size) != SQLITE_OK ? -EIO : size > 0 ? 0 : -ENOENT;
        close_file(f);
        return r;
}

int db_log_prepare(const char *vfs, const char *path, const struct db_marks *m, bool cut, struct db_log *ret) {
        sqlite3_file *log;
        *ret = (struct db_log){ .frames = 0 };
        int r = database_there(vfs, path);
        if (r < 0) /* moved aside, or lost, and what is left of its log and marks is nobody's: SQLite drops such a log */
                return r == -ENOENT ? 0 : r;
        r = open_file(vfs, path, "-wal", SQLITE_OPEN_READWRITE | SQLITE_OPEN_WAL, &log);
        if (r < 0) {
                ret->none = r == -ENOENT;
                return r == -ENOENT ? 0 : r;
        }
        r = db_log_look(log, ret);
        if (r == 0 && !ret->head_ok && m && m->number > 0)
                r = mend_head(log, path, &m->last, ret);
        if (r == 0 && cut && m && m->number > 0)
                r = cut_log(log, path, &m->last, ret);
        close_file(log);
        return r;
}
