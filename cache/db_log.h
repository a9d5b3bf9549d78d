/* SPDX-License-Identifier: Apache-2.0 */
/* db_log.h: what lies in a SQLite log, without SQLite. db_log.c has the format. */
#pragma once
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

#define DB_LOG_HEAD_BYTES 32
#define DB_LOG_SALT_AT 16
#define DB_LOG_SALT_BYTES 8

struct db_log {
        uint8_t head[DB_LOG_HEAD_BYTES]; /* as it lies there; zero: no log */
        bool head_ok;                    /* and it verifies */
        uint64_t frames;                 /* up to the end of the last transaction that SQLite believes */
        bool torn;                       /* something of this log lies behind that */
        bool none;                       /* db_log_prepare: the database is there, and has no log */
};

/* 0, -EIO: the disk. Reads the log once. */
int db_log_look(sqlite3_file *log, struct db_log *ret) _must_check_;
bool db_log_head_ok(const uint8_t head[DB_LOG_HEAD_BYTES]);
/* Frames from..to are compared with their sums (which go on from the first one, so all before them are read), and those and, of a log that begins with them, its header are written once more.
 * -EBADMSG: they are not what was written (nothing, or a part, is written). -ENOSPC, -EIO, -ENOMEM */
int db_log_again(sqlite3_file *log, const uint8_t head[DB_LOG_HEAD_BYTES], uint64_t from, uint64_t to) _must_check_;
/* Where so many frames end. 0: the header does not say. */
int64_t db_log_end(const uint8_t head[DB_LOG_HEAD_BYTES], uint64_t frames);
/* The salts of the first frame, whatever the header says. -ENODATA: there is none. */
int db_log_first_salt(sqlite3_file *log, uint8_t ret[DB_LOG_SALT_BYTES]) _must_check_;
