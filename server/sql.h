/* SPDX-License-Identifier: Apache-2.0 */
/* sql.h: the driver seam under meta: one connection, statements, transactions, errors. All SQL text is written once, in the subset that SQLite and
 * PostgreSQL share (numbered parameters ?1, ON CONFLICT, RETURNING, partial indexes; integers are 64 bit, bytes are BLOB); a driver translates what little differs.
 *
 * A connection is used by one thread at a time; its owner's lock guards it. Errors are negative errnos:
 *   -EEXIST a unique key exists   -EAGAIN busy or serialisation failure: the transaction may be tried again   -ENOSPC disk full
 *   -EBADMSG the database is damaged   -EPROTONOSUPPORT a newer format   -ENOMEM   -EIO anything else (the driver logs its text at debug)
 * After an error inside a transaction only sql_rollback is of use. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/clock.h"

struct sql;
struct sql_stmt;

struct sql_ops {
        int (*start)(struct sql *db);                                         /* a writer, once its format is accepted: until then nothing is changed, not even on close */
        int (*tune)(struct sql *db);                                          /* a writer whose tables are there: what the planner should know of them */
        int (*exec)(struct sql *db, const char *script);                      /* several statements, no rows */
        int (*prepare)(struct sql *db, const char *text, struct sql_stmt **ret);
        void (*finalize)(struct sql_stmt *st);
        int (*bind_int)(struct sql_stmt *st, int at, int64_t v);              /* at counts from 1 */
        int (*bind_blob)(struct sql_stmt *st, int at, const void *p, size_t n); /* borrowed until reset; NULL p = SQL NULL */
        int (*bind_text)(struct sql_stmt *st, int at, const char *s);         /* likewise */
        int (*step)(struct sql_stmt *st);                                     /* 1 a row, 0 done, -errno */
        void (*reset)(struct sql_stmt *st);                                   /* also drops the bindings */
        int64_t (*col_int)(struct sql_stmt *st, int at);                      /* at counts from 0; 0 for NULL */
        const void *(*col_blob)(struct sql_stmt *st, int at, size_t *ret_n);  /* valid until the next step or reset; NULL for NULL or empty */
        const char *(*col_text)(struct sql_stmt *st, int at);
        int (*begin)(struct sql *db, bool write);                             /* write: takes the write lock at once (BEGIN IMMEDIATE) */
        int (*commit)(struct sql *db);
        void (*rollback)(struct sql *db);
        int (*now_ns)(struct sql *db, int64_t *ret);                          /* the database's clock: the one for expiry and event times */
        int (*tables)(struct sql *db, const char *name, bool *ret_any, bool *ret_named); /* whether there is any table, and this one */
        int64_t (*changes)(struct sql *db);                                   /* rows changed by the last statement */
        int (*copy)(struct sql *db, const char *path);                        /* the whole database as of one moment into a new file; no transaction may be open */
        int (*verify)(struct sql *db, void (*each)(void *arg, const char *problem), void *arg); /* the file's own structure */
        void (*close)(struct sql *db);
};
/* Statements are prepared once per connection and found again by the address of their text: a string literal. */
#define SQL_CACHE 256u
struct sql {
        const struct sql_ops *ops;
        struct { const char *text; struct sql_stmt *st; } cache[SQL_CACHE];
};

/* SQLite. path ":memory:" or a file; vfs NULL = the default. The writer makes the file if absent; start() sets WAL, synchronous=FULL; it must be
 * opened first and closed last. Readers never write or checkpoint. clock is the database's clock. */
int sql_sqlite_open(const char *path, const char *vfs, bool writer, struct clock *clock, struct sql **ret) _must_check_;
void sql_close(struct sql *db);

/* A cached statement with its parameters bound, by format: i int64_t, b (const void *, size_t), d struct digest *, D struct id * (16 bytes), t text,
 * n NULL without argument. text must be a literal. The statement is reset first. */
int sql_stmt(struct sql *db, struct sql_stmt **ret, const char *text, const char *format, ...) _must_check_;
/* The same, stepped once: 1 (a row is there; reset after reading), 0 none. */
int sql_first(struct sql *db, struct sql_stmt **ret, const char *text, const char *format, ...) _must_check_;
/* The same for statements without rows: 0 or -errno; always reset. */
int sql_run(struct sql *db, const char *text, const char *format, ...) _must_check_;

static inline int sql_step(struct sql *db, struct sql_stmt *st) { return db->ops->step(st); }
static inline void sql_reset(struct sql *db, struct sql_stmt *st) { if (st) db->ops->reset(st); }
static inline int64_t sql_int(struct sql *db, struct sql_stmt *st, int at) { return db->ops->col_int(st, at); }
static inline const void *sql_blob(struct sql *db, struct sql_stmt *st, int at, size_t *ret_n) { return db->ops->col_blob(st, at, ret_n); }
static inline const char *sql_text(struct sql *db, struct sql_stmt *st, int at) { return db->ops->col_text(st, at); }
void sql_get_id(struct sql *db, struct sql_stmt *st, int at, struct id *ret);         /* zero for NULL or another length */
void sql_get_digest(struct sql *db, struct sql_stmt *st, int at, struct digest *ret);
static inline int sql_begin(struct sql *db, bool write) { return db->ops->begin(db, write); }
static inline int sql_commit(struct sql *db) { return db->ops->commit(db); }
static inline void sql_rollback(struct sql *db) { db->ops->rollback(db); }
