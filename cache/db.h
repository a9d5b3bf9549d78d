/* SPDX-License-Identifier: Apache-2.0 */
/* db.h: the only door to SQLite in cache/. One struct db = one connection with its cache of prepared statements. It is not thread-safe: its owner's
 * lock guards it. Errors are negative errnos: -EBADMSG damaged file, -ENOSPC, -EIO, -EEXIST a constraint, -EBUSY, -ENOMEM, -EROFS, -EMSGSIZE.
 *
 * Arguments are bound by a string of letters, one for each `?`:
 *   i  int64_t or uint64_t (pass a 64-bit value: cast it)
 *   b  const void *, size_t   blob (NULL pointer: NULL)
 *   t  const char *, size_t   text (NULL pointer: NULL)
 *   I  const struct id *      16-byte blob (NULL pointer or zero id: NULL)
 *   D  const struct digest *  32-byte blob (NULL pointer or zero digest: NULL)
 *   n  (nothing)              NULL
 * Blobs and texts are borrowed until the statement is reset or bound again. */
#pragma once
#include "base/cleanup.h"
#include "base/model.h"
#include "db_mark.h"

struct db;
struct db_stmt;

struct db_config {
        const char *path;
        const char *vfs;        /* NULL: SQLite's own, with sums in the pages */
        bool write;             /* false: never writes, never checkpoints (also not when it closes) */
        bool exclusive;         /* the only connection to this file ever: no shared memory needed */
        unsigned cache_kib;     /* page cache; 0: 2,048 */
        unsigned checkpoint_pages; /* writer: log pages after which a commit checkpoints; 0: 2,000 */
        bool marked;            /* writer: has marks (db_mark.c): no commit checkpoints, db_checkpoint alone does */
        bool power_cut;         /* marked: what is behind the last mark goes first */
};
/* Opens (a writer creates: WAL, synchronous=NORMAL, incremental vacuum, mmap_size=0). A writer must be the first connection: it empties the log into the file (marked: only if all in it is marked) and compares each page with its sum:
 * one sequential read of the file. -EBADMSG: damaged, by whatever it shows. */
int db_open(const struct db_config *config, struct db **ret) _must_check_;
void db_close(struct db *db);
/* The file as it lies there, untouched: its user_version, if the page that says so verifies. -ENODATA: there is no such file, or nothing is known; any other error: the disk cannot say. No connection of this process may be open (a close drops its locks). */
int db_version_of(const char *path, uint32_t *ret) _must_check_;

/* The statement for this SQL, prepared once for each connection and found again by the address of the literal: pass literals (or strings
 * that live as long as db). The statement must not be in use already (a statement is in use from db_bind or db_step until db_reset or the end of its rows). */
int db_get(struct db *db, const char *sql, struct db_stmt **ret) _must_check_;
int db_bind(struct db_stmt *s, const char *types, ...) _must_check_;
/* One more value for `?at` (from 1) of a statement that db_bind has begun: an integer, or NULL. */
int db_bind_more(struct db_stmt *s, int at, bool some, int64_t value) _must_check_;
/* 1: a row; 0: no more (the statement is reset); negative errno (reset too). */
int db_step(struct db_stmt *s) _must_check_;
void db_reset(struct db_stmt *s);
static inline void cleanup_db_reset_p(struct db_stmt **s) { if (*s) db_reset(*s); }
/* A statement that is reset at the end of the scope. */
#define _cleanup_stmt_ _cleanup_(cleanup_db_reset_p)

/* get + bind + first step. 1: a row, *ret is to be read and reset; 0: none, *ret is NULL. */
int db_query(struct db *db, struct db_stmt **ret, const char *sql, const char *types, ...) _must_check_;
/* get + bind + step to the end; rows are ignored. */
int db_run(struct db *db, const char *sql, const char *types, ...) _must_check_;
/* First column of the first row as an integer. -ENOENT: no row. NULL counts as 0. */
int db_int(struct db *db, int64_t *ret, const char *sql, const char *types, ...) _must_check_;
int db_exec(struct db *db, const char *sql) _must_check_;  /* several statements, nothing cached: for schemas */

/* Columns of the current row; valid until the next step or reset. */
int64_t db_col_int(struct db_stmt *s, int col);
bool db_col_null(struct db_stmt *s, int col);
const void *db_col_blob(struct db_stmt *s, int col, size_t *ret_n); /* NULL if NULL or empty */
const char *db_col_text(struct db_stmt *s, int col, size_t *ret_n); /* NUL-terminated; NULL if NULL */
struct id db_col_id(struct db_stmt *s, int col);                    /* zero if NULL or of another size */
struct digest db_col_digest(struct db_stmt *s, int col);

int db_begin(struct db *db) _must_check_;         /* BEGIN IMMEDIATE for a writer, BEGIN for a reader */
int db_commit(struct db *db) _must_check_;        /* on failure the transaction has been rolled back */
void db_rollback(struct db *db);                  /* also if none is open */
bool db_in_transaction(const struct db *db);
int64_t db_changes(const struct db *db);          /* rows of the last INSERT, UPDATE, DELETE */

/* Writes of committed transactions reach the disk: syncs the log. Needs no lock while other threads use the connection (it touches only
 * the log's file); everything committed before the call is durable on return. */
int db_sync(struct db *db) _must_check_;
/* db_sync has failed: it goes on failing, because another sync says nothing about what this one could not write, until db_again has succeeded. Any thread. */
bool db_sync_failed(const struct db *db);
/* Marked: what is not marked is written to the log once more, if db_sync has failed. Nobody commits meanwhile; no lock needed. -EBADMSG: it is not there any more as it was written, and the next open
 * finds what the disk has. -ENOSPC, -EIO: not this time. Reads the log once. */
int db_again(struct db *db) _must_check_;
/* The log that was found at the open had an end that did not verify: see the head of db.c. */
bool db_log_torn(const struct db *db);
/* As much as readers permit. Marked: -EAGAIN, nothing happens, if something in the log was not marked; and waits for readers (two seconds at most), so that the log begins anew (-EBUSY: it does not). */
int db_checkpoint(struct db *db) _must_check_;
/* Marked only. Where the log ends (the owner's lock is held), and that up to there everything is on the platter (no lock needed, one caller at a time; after db_sync).
 * -EAGAIN, no mark is made: the log's header could not be read when the place was noted; the next time it may be. */
void db_log_at(struct db *db, struct db_mark *ret);
int db_mark(struct db *db, const struct db_mark *mark) _must_check_;
uint64_t db_log_pages(const struct db *db);       /* written to the log since the last checkpoint, or try of one; any thread */
/* PRAGMA quick_check. -EBADMSG: damaged. */
int db_check(struct db *db) _must_check_;
/* Message of the last failure on this connection, for one log line. */
const char *db_message(struct db *db);
