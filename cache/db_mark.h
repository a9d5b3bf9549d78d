/* SPDX-License-Identifier: Apache-2.0 */
/* db_mark.h: up to where a SQLite log counts after a power cut. db_mark.c has the design. */
#pragma once
#include <stdint.h>

#include "base/cleanup.h"

/* A place in a log: its life (the salts in its header) and a number of frames from its beginning. */
struct db_mark { uint8_t salt[8]; uint64_t frames; };

struct db_marks;
/* The file of marks beside the database, made if there is none. vfs: NULL: SQLite's own. */
int db_marks_open(const char *vfs, const char *path, struct db_marks **ret) _must_check_;
void db_marks_close(struct db_marks *m);
/* The mark is on the platter on return. One caller at a time. 1 fdatasync */
int db_marks_write(struct db_marks *m, const struct db_mark *mark) _must_check_;

/* Before the database is opened, after a power cut: what lies in the log behind the last mark goes. No mark (never made, or damaged): nothing happens. */
int db_marks_cut(const char *vfs, const char *path) _must_check_;
