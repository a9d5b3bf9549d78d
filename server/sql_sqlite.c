/* SPDX-License-Identifier: Apache-2.0 */
/* sql_sqlite.c: the SQLite driver.
 *
 * One connection writes and checkpoints a file; readers only read: query_only is set and their close never checkpoints (SQLite 3.40.1 of Debian 12 can
 * corrupt a WAL file when two connections write or checkpoint it). WAL with synchronous=FULL: a commit that returned is on disk. mmap is off: an
 * I/O error must be an error, not a signal. The server's data directory lock keeps other processes out.
 *
 * The connection is opened NOMUTEX: the owner's lock or pool gives it to one thread at a time. The database's clock is the one that the owner gives, since an
 * embedded database has no other. */
#include <assert.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "sql.h"

struct sqlite {
        struct sql sql;
        sqlite3 *db;
        struct clock *clock;
        bool writer;
};
struct sql_stmt {
        sqlite3_stmt *st;
        struct sqlite *owner;
};

static struct sqlite *up(struct sql *db) { return container_of(db, struct sqlite, sql); }

static int fail(struct sqlite *q, int rc) {
        switch (rc & 0xff) {
        case SQLITE_OK: return 0;
        case SQLITE_CONSTRAINT:
                if (rc == SQLITE_CONSTRAINT_UNIQUE || rc == SQLITE_CONSTRAINT_PRIMARYKEY)
                        return -EEXIST;
                break;
        case SQLITE_BUSY: case SQLITE_LOCKED: return -EAGAIN;
        case SQLITE_NOMEM: return -ENOMEM;
        case SQLITE_FULL: return -ENOSPC;
        case SQLITE_CORRUPT: case SQLITE_NOTADB: return -EBADMSG;
        case SQLITE_READONLY: case SQLITE_PERM: case SQLITE_AUTH: return -EACCES;
        case SQLITE_CANTOPEN: return -ENOENT;
        }
        log_debug("sqlite rc=%d error=\"%s\"", rc, q && q->db ? sqlite3_errmsg(q->db) : sqlite3_errstr(rc));
        return -EIO;
}

static int op_exec(struct sql *db, const char *script) { return fail(up(db), sqlite3_exec(up(db)->db, script, NULL, NULL, NULL)); }

static int op_prepare(struct sql *db, const char *text, struct sql_stmt **ret) {
        _cleanup_free_ struct sql_stmt *s = calloc(1, sizeof *s);
        if (!s)
                return -ENOMEM;
        s->owner = up(db);
        int rc = sqlite3_prepare_v3(up(db)->db, text, -1, SQLITE_PREPARE_PERSISTENT, &s->st, NULL);
        if (rc != SQLITE_OK)
                return fail(up(db), rc);
        *ret = steal_ptr(s);
        return 0;
}

static void op_finalize(struct sql_stmt *s) {
        if (!s)
                return;
        sqlite3_finalize(s->st);
        free(s);
}

static int op_bind_int(struct sql_stmt *s, int at, int64_t v) { return fail(s->owner, sqlite3_bind_int64(s->st, at, v)); }

static int op_bind_blob(struct sql_stmt *s, int at, const void *p, size_t n) {
        if (!p)
                return fail(s->owner, sqlite3_bind_null(s->st, at));
        return fail(s->owner, sqlite3_bind_blob64(s->st, at, p, n, SQLITE_STATIC));
}

static int op_bind_text(struct sql_stmt *s, int at, const char *t) {
        if (!t)
                return fail(s->owner, sqlite3_bind_null(s->st, at));
        return fail(s->owner, sqlite3_bind_text(s->st, at, t, -1, SQLITE_STATIC));
}

static int op_step(struct sql_stmt *s) {
        int rc = sqlite3_step(s->st);
        if (rc == SQLITE_ROW)
                return 1;
        if (rc == SQLITE_DONE)
                return 0;
        return fail(s->owner, sqlite3_extended_errcode(s->owner->db));
}

static void op_reset(struct sql_stmt *s) {
        sqlite3_reset(s->st);
        sqlite3_clear_bindings(s->st);
}

static int64_t op_col_int(struct sql_stmt *s, int at) { return sqlite3_column_int64(s->st, at); }

static const void *op_col_blob(struct sql_stmt *s, int at, size_t *ret_n) {
        const void *p = sqlite3_column_blob(s->st, at);
        *ret_n = p ? (size_t)sqlite3_column_bytes(s->st, at) : 0;
        return p;
}

static const char *op_col_text(struct sql_stmt *s, int at) { return (const char *)sqlite3_column_text(s->st, at); }

/* The writer is the only one that writes, so BEGIN IMMEDIATE never waits; a busy answer means a second process and is passed on. */
static int op_begin(struct sql *db, bool write) { return write ? sql_run(db, "BEGIN IMMEDIATE", "") : sql_run(db, "BEGIN", ""); }
static int op_commit(struct sql *db) { return sql_run(db, "COMMIT", ""); }

/* Prepared when the connection is opened: a transaction that could not be ended for want of memory would stay open for ever, and each later one would fail. */
static const char rollback[] = "ROLLBACK";
static void op_rollback(struct sql *db) {
        if (!sqlite3_get_autocommit(up(db)->db) && sql_run(db, rollback, "") < 0 && !sqlite3_get_autocommit(up(db)->db))
                (void)op_exec(db, rollback);
}

static int op_now_ns(struct sql *db, int64_t *ret) {
        *ret = clock_real_ns(up(db)->clock);
        return 0;
}

static int op_tables(struct sql *db, const char *name, bool *ret_any, bool *ret_named) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT count(*), sum(name = ?1) FROM sqlite_master WHERE type = 'table'", "t", name);
        if (r < 0)
                return r;
        *ret_any = sql_int(db, st, 0) > 0;
        *ret_named = sql_int(db, st, 1) > 0;
        sql_reset(db, st);
        return 0;
}

static int64_t op_changes(struct sql *db) { return sqlite3_changes64(up(db)->db); }

static void op_close(struct sql *db) {
        int rc = sqlite3_close(up(db)->db);
        assert(rc == SQLITE_OK);
        (void)rc;
        free(up(db));
}

static int op_copy(struct sql *db, const char *path) {
        struct sql_stmt *st;
        int r = op_exec(db, "PRAGMA query_only=0;"); /* it would forbid writing the new file too */
        if (r == 0)
                r = sql_first(db, &st, "VACUUM INTO ?1", "t", path);
        if (!up(db)->writer)
                (void)op_exec(db, "PRAGMA query_only=1;");
        return r < 0 ? r : 0;
}

static int op_verify(struct sql *db, void (*each)(void *arg, const char *problem), void *arg) {
        struct sql_stmt *st;
        int r = sql_stmt(db, &st, "PRAGMA integrity_check(100)", "");
        if (r < 0)
                return r;
        while ((r = op_step(st)) > 0) {
                const char *text = op_col_text(st, 0);
                /* 3.40.1 looks for NULLs in the wrong columns of WITHOUT ROWID tables whose key is not in the order of its columns */
                if (text && strcmp(text, "ok") != 0 && strncmp(text, "NULL value in ", 14) != 0)
                        each(arg, text);
        }
        op_reset(st);
        return r;
}

static int op_start(struct sql *db) {
        int r = fail(up(db), sqlite3_db_config(up(db)->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL));
        return r < 0 ? r : op_exec(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=4000; PRAGMA journal_size_limit=67108864;");
}

/* Without statistics SQLite takes a table for small and prefers the first column of a primary key to two of another index: one directory's names were then looked for in
 * all names of the workspace. These say what the tables are like when it matters; they are written once and never measured, so that plans do not change from day to day. */
static int op_tune(struct sql *db) {
        struct sql_stmt *st;
        bool any, there;
        int r = op_tables(db, "sqlite_stat1", &any, &there);
        if (r == 0 && there && (r = sql_first(db, &st, "SELECT 1 FROM sqlite_stat1 WHERE idx = 'entry_name' AND stat = '1000000 200000 10 1'", "")) > 0) {
                sql_reset(db, st);
                return 0;
        }
        return r < 0 ? r : op_exec(db, "BEGIN IMMEDIATE; ANALYZE meta; DELETE FROM sqlite_stat1; INSERT INTO sqlite_stat1(tbl, idx, stat) VALUES"
                                       "('entry', 'entry', '1000000 200000 1'), ('entry', 'entry_name', '1000000 200000 10 1'), ('entry', 'entry_node', '1000000 200000 1'),"
                                       "('entry_past', 'entry_past', '1000000 200000 10 2 1 1'), ('entry_past', 'entry_past_node', '1000000 200000 2 1'),"
                                       "('node', 'node', '1000000 200000 1'), ('node', 'node_deleted', '100000 20000 1'), ('revision', 'revision', '3000000 600000 3 1'),"
                                       "('event', 'event', '3000000 600000 1'), ('operation', 'operation', '3000000 600000 1'), ('block', 'block', '1000000 1'), ('block', 'block_object', '1000000 30'),"
                                       "('block', 'block_dead', '1000 1'), ('block', 'block_bad', '10 1'), ('block_ref', 'block_ref', '1000000 200000 1'), ('block_ref', 'block_ref_hash', '1000000 1'),"
                                       "('claim', 'claim', '10000 2000 500 1'), ('claim', 'claim_hash', '10000 1'), ('claim', 'claim_expires', '10000 10'), ('object', 'sqlite_autoindex_object_1', '100000 1'),"
                                       "('object', NULL, '100000'), ('workspace', NULL, '20'), ('account', NULL, '20'), ('member', 'member', '50 3 1'), ('member', 'member_account', '50 3 1'); COMMIT; ANALYZE sqlite_schema;");
}

static const struct sql_ops sqlite_ops = {
        .start = op_start, .tune = op_tune, .exec = op_exec, .prepare = op_prepare, .finalize = op_finalize, .bind_int = op_bind_int, .bind_blob = op_bind_blob, .bind_text = op_bind_text,
        .step = op_step, .reset = op_reset, .col_int = op_col_int, .col_blob = op_col_blob, .col_text = op_col_text, .begin = op_begin,
        .commit = op_commit, .rollback = op_rollback, .now_ns = op_now_ns, .tables = op_tables, .changes = op_changes, .copy = op_copy, .verify = op_verify, .close = op_close,
};

int sql_sqlite_open(const char *path, const char *vfs, bool writer, struct clock *clock, struct sql **ret) {
        assert(path && clock && ret);
        struct sqlite *q = calloc(1, sizeof *q);
        if (!q)
                return -ENOMEM;
        q->sql.ops = &sqlite_ops;
        q->clock = clock;
        q->writer = writer;
        int rc = sqlite3_open_v2(path, &q->db, SQLITE_OPEN_READWRITE | (writer ? SQLITE_OPEN_CREATE : 0) | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, vfs);
        int r = fail(q, rc);
        if (r == 0) {
                (void)sqlite3_busy_timeout(q->db, 5000);
                r = op_exec(&q->sql, writer ? "PRAGMA synchronous=FULL; PRAGMA mmap_size=0; PRAGMA cache_size=-65536; PRAGMA temp_store=MEMORY;"
                                            : "PRAGMA query_only=1; PRAGMA mmap_size=0; PRAGMA cache_size=-16384; PRAGMA temp_store=MEMORY; PRAGMA wal_autocheckpoint=0;");
        }
        if (r == 0)
                r = fail(q, sqlite3_db_config(q->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL));
        if (r == 0 && writer && sqlite3_db_readonly(q->db, "main") == 1)
                r = -EACCES; /* SQLite opens for reading what it could not open for writing */
        struct sql_stmt *st;
        if (r == 0)
                r = sql_stmt(&q->sql, &st, rollback, "");
        if (r < 0) {
                (void)sqlite3_close(q->db);
                free(q);
                return r;
        }
        *ret = &q->sql;
        return 0;
}
