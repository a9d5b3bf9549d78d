/* SPDX-License-Identifier: Apache-2.0 */
/* db_sums.h: a SQLite VFS over SQLite's own whose database pages carry a sum (db_sums.c). */
#pragma once
#include <sqlite3.h>
#include <stdbool.h>

#include "base/cleanup.h"

#define DB_PAGE_BYTES 4096u    /* SQLite's default, and the only one here */
#define DB_SUM_BYTES 8u        /* at the end of each page: what SQLite calls reserved */

/* Its name, for sqlite3_open_v2; registered with the first call. NULL: no memory. Any thread. */
const char *db_sums_vfs(void);
/* Of a main database file that was opened through that VFS: 1 its pages have sums (or will: it is empty), 0 it was made without. */
int db_sums_on(sqlite3_file *f);
/* A read of this file (or log) has failed on the disk since the last call. */
bool db_sums_disk_failed(sqlite3_file *f);
/* Reads all pages of the file and checks them. 0, SQLITE_IOERR_DATA (damaged), or SQLite's code for what the disk said. The log must be in the file: pages that it shadows may be torn. */
int db_sums_check(sqlite3_file *f) _must_check_;
