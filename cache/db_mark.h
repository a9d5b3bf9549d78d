/* SPDX-License-Identifier: Apache-2.0 */
/* db_mark.h: up to where a SQLite log counts after a power cut. db_mark.c has the design. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "db_log.h"

/* A place in a log: its life (its header, above all the salts in there) and a number of frames from its beginning. */
struct db_mark { uint8_t head[DB_LOG_HEAD_BYTES]; uint64_t frames; };

struct db_marks;
/* The file of marks beside the database, made if there is none. vfs: NULL: SQLite's own. */
int db_marks_open(const char *vfs, const char *path, struct db_marks **ret) _must_check_;
void db_marks_close(struct db_marks *m);
/* The mark is on the platter on return. One caller at a time. 1 fdatasync */
int db_marks_write(struct db_marks *m, const struct db_mark *mark) _must_check_;
/* Does the last mark cover all up to that place? */
bool db_marks_cover(const struct db_marks *m, const struct db_mark *at);

/* What lies behind the last mark, up to that place, is written once more: a sync that comes after it has to write it, whatever an earlier one has told. As db_log_again (db_log.h). Nobody writes to the log meanwhile. */
int db_marks_again(const struct db_marks *m, sqlite3_file *log, const struct db_mark *at) _must_check_;

/* Before SQLite opens the database: a header of the log that does not verify is mended from the last mark (NULL: there are none); cut: what lies behind the last mark goes (nothing, if no mark
 * verifies). Then the log is read. -EIO, -ENOMEM; -EBUSY: there is something to cut, and another process has the database open. */
int db_log_prepare(const char *vfs, const char *path, const struct db_marks *m, bool cut, struct db_log *ret) _must_check_;
