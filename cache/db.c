/* SPDX-License-Identifier: Apache-2.0 */
/* db.c: SQLite behind the few calls that the cache needs.
 *
 * Rules that this file keeps, and why:
 *  - One connection for each file writes and checkpoints; all others are opened read-only and do not checkpoint when they close. Debian 12's SQLite (3.40.1)
 *    can damage a file when two connections write or checkpoint one log.
 *  - mmap_size=0: a read error is an error code, never a signal.
 *  - WAL with synchronous=NORMAL: a commit is a write to the log without a sync; it survives the end of this process. db_sync makes all commits durable by
 *    syncing the log's file itself. That equals a commit with synchronous=FULL (which syncs the same file after its frames), needs no empty write,
 *    and may run while other threads commit, so that no lock is held during an fsync. If the log was checkpointed in between, the checkpoint
 *    has synced log and file already.
 *  - Of a file with marks (db_mark.c) nothing is moved from the log into the file that is not marked: not at the open, not by a checkpoint, not at the close. There is one place that asks, may_checkpoint.
 *  - Each page has a sum (db_sums.c), unless the caller names a VFS of his own. Opening for writing empties the log into the file, if it may, and reads all pages once; a file made without sums is written
 *    anew with them, or used as it is if there is no room for that. Damage is every code that says so: a sum, SQLite's own checks, a file that is too short, and a statement of ours that does not fit the schema. What the disk answers to a read (EIO) is not.
 *  - A log whose end does not verify is cut there by SQLite, without a word: after a power cut that is its tail that was not synced, in the same boot it is damage. Either way an older state is
 *    shown, as a power cut would have left it. If the file had taken later frames before, by a checkpoint, it would be a mix: db_log_torn tells, so that the caller looks at more than sums.
 *  - The log is bounded: a commit that leaves more than checkpoint_pages in it checkpoints (or, with marks, the owner does: db_mark.c), and journal_size_limit cuts the file to twice that
 *    afterwards. The owner's checkpoint waits for those who read an older state; else the log would never begin anew where somebody always reads.
 *
 * Prepared statements live as long as their connection, in a table keyed by the address of the SQL literal. Two equal literals of two source files
 * make two statements; that costs some memory and nothing else. Using a statement that is in use is a mistake of ours (assert).
 *
 * After a failed sync the log's pages may be gone from the page cache though marked clean, so a later success would prove nothing: db_sync goes on failing until they were written once more
 * (db_again; the head of db_mark.c). */
#include <assert.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/log.h"
#include "db.h"
#include "db_sums.h"

#define STATEMENTS 512u /* power of two, and more than twice what we have */
#define JOURNAL_LIMIT_BYTES (64u << 20)
#define BUSY_MS 10000
#define READERS_MS 2000
#define READERS_TRY_MS 50

struct db_stmt {
        struct db *db;
        sqlite3_stmt *s;
        const char *sql;
        bool busy;
};
struct db {
        sqlite3 *c;
        bool write, exclusive, log_torn;
        bool log_unseen;          /* marked: there was no log before SQLite opened the file, and it is not known yet that there was none for SQLite */
        sqlite3_file *log;        /* the write-ahead log's file: stays the same while the connection is open */
        _Atomic int sync_error;   /* until db_again */
        struct db_marks *marks;   /* NULL: none */
        struct db_mark at;        /* marked: where the log ends after the last commit. Owner's lock */
        uint64_t tried;           /* marked: as many frames were there at the last checkpoint */
        _Atomic uint64_t pages;   /* marked: frames since then */
        size_t n_statements;
        struct db_stmt statements[STATEMENTS];
};

static int error_from(int rc, sqlite3 *c) {
        switch (rc & 0xff) {
        case SQLITE_OK:
        case SQLITE_ROW:
        case SQLITE_DONE:
                return 0;
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
        case SQLITE_FORMAT:
        case SQLITE_ERROR:      /* statements and schema are ours and fit: then this is not our schema */
        case SQLITE_MISMATCH:
        case SQLITE_INTERNAL:
                return -EBADMSG;
        case SQLITE_FULL:
                return -ENOSPC;
        case SQLITE_IOERR:
                if (rc == SQLITE_IOERR_DATA || rc == SQLITE_IOERR_SHORT_READ)
                        return -EBADMSG;
                return c && sqlite3_system_errno(c) == ENOSPC ? -ENOSPC : -EIO;
        case SQLITE_CANTOPEN:
                return c && sqlite3_system_errno(c) > 0 ? -sqlite3_system_errno(c) : -ENOENT;
        case SQLITE_CONSTRAINT:
                return -EEXIST;
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
                return -EBUSY;
        case SQLITE_NOMEM:
                return -ENOMEM;
        case SQLITE_READONLY:
                return -EROFS;
        case SQLITE_TOOBIG:
                return -EMSGSIZE;
        case SQLITE_INTERRUPT:
                return -EINTR;
        default:
                return -EIO;
        }
}

static int pragma(struct db *db, const char *sql) {
        return error_from(sqlite3_exec(db->c, sql, NULL, NULL, NULL), db->c);
}

/* Nothing in the log that may not be moved into the file: it has no marks, or they cover it. */
static bool may_checkpoint(const struct db *db) {
        return !db->marks || (!db->log_unseen && db_marks_cover(db->marks, &db->at));
}

/* There was no log before SQLite opened the file: then what it reads now has none, or an empty one. */
static int no_log(struct db *db) {
        sqlite3_file *log = NULL;
        sqlite3_int64 size = 0;
        int r = pragma(db, "SELECT count(*) FROM sqlite_schema");
        if (r == 0)
                r = error_from(sqlite3_file_control(db->c, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log), db->c);
        if (r == 0 && log && log->pMethods && (log->pMethods->xFileSize(log, &size) != SQLITE_OK || size > 0))
                r = -EIO;
        db->log_unseen = r < 0;
        return r;
}

static void checkpointed(struct db *db) {
        db->tried = db->at.frames;
        atomic_store(&db->pages, 0);
}

/* Pages without sums get them. No room: another time. */
static int make_sums(struct db *db) {
        sqlite3_int64 before = 0;
        int rc = db->log->pMethods->xFileSize(db->log, &before);
        if (rc == SQLITE_OK)
                rc = sqlite3_exec(db->c, "VACUUM", NULL, NULL, NULL);
        int r = error_from(rc, db->c);
        if (r == -ENOSPC) {
                log_warn("db event=no_room_for_sums");
                (void)db->log->pMethods->xTruncate(db->log, before); /* nobody else needs what it has taken */
                return 0;
        }
        return r;
}

/* All pages are what was written. The only connection so far, and the log was read. */
static int verify(struct db *db) {
        sqlite3_file *file;
        bool moved = false;
        int r = error_from(sqlite3_file_control(db->c, "main", SQLITE_FCNTL_FILE_POINTER, &file), db->c);
        if (r == 0 && !db_sums_on(file)) /* made by an older program */
                r = make_sums(db);
        if (r < 0)
                return r;
        if (may_checkpoint(db)) {
                int frames = 0, done = 0;
                moved = sqlite3_wal_checkpoint_v2(db->c, NULL, SQLITE_CHECKPOINT_PASSIVE, &frames, &done) == SQLITE_OK && frames == done;
                checkpointed(db);
        }
        if (db_sums_on(file)) {
                int rc = db_sums_check(file);
                if (rc != SQLITE_IOERR_DATA || moved)
                        return error_from(rc, db->c);
        }
        return db_check(db); /* pages of the file that the log shadows may be torn: those that count are read one by one */
}

/* Zero: it cannot be read now. No mark is made of that place then, and none covers it. */
static void read_head(const struct db *db, uint8_t ret[DB_LOG_HEAD_BYTES]) {
        if (db->log->pMethods->xRead(db->log, ret, DB_LOG_HEAD_BYTES, 0) != SQLITE_OK)
                memset(ret, 0, DB_LOG_HEAD_BYTES);
}

/* After each commit: frames in the log. */
static int on_commit(void *arg, sqlite3 *c, const char *name, int frames) {
        struct db *db = arg;
        uint8_t head[DB_LOG_HEAD_BYTES];
        read_head(db, head);
        if (memcmp(head, db->at.head, sizeof head) != 0)
                db->tried = 0; /* the log has begun anew */
        memcpy(db->at.head, head, sizeof head);
        db->at.frames = (uint64_t)frames;
        atomic_store(&db->pages, db->at.frames - MIN(db->tried, db->at.frames));
        return SQLITE_OK;
}

int db_open(const struct db_config *config, struct db **ret) {
        assert(config && config->path && ret && (!config->marked || config->write));
        struct db *db = calloc(1, sizeof(*db));
        if (!db)
                return -ENOMEM;
        if (config->write) { /* before SQLite sees it */
                struct db_log log;
                int k = config->marked ? db_marks_open(config->vfs, config->path, &db->marks) : 0;
                if (k == 0)
                        k = db_log_prepare(config->vfs, config->path, db->marks, config->power_cut, &log);
                if (k < 0) {
                        db_marks_close(db->marks);
                        free(db);
                        return k;
                }
                db->log_torn = log.torn;
                db->log_unseen = config->marked && log.none;
                db->at.frames = log.frames;
                memcpy(db->at.head, log.head, sizeof db->at.head);
                atomic_store(&db->pages, log.frames);
        }
        const char *vfs = config->vfs ? config->vfs : db_sums_vfs();
        int reserve = DB_SUM_BYTES;
        db->write = config->write;
        db->exclusive = config->exclusive;
        int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE | (config->write ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY);
        int r = error_from(sqlite3_open_v2(config->path, &db->c, flags, vfs), db->c);
        char sql[128];
        if (r == 0 && config->write && !config->vfs)
                r = error_from(sqlite3_file_control(db->c, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserve), db->c);
        if (r == 0) {
                (void)sqlite3_db_config(db->c, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, config->write && !config->marked ? 0 : 1, NULL);
                (void)sqlite3_db_config(db->c, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
                (void)sqlite3_busy_timeout(db->c, config->exclusive ? 0 : BUSY_MS);
                r = pragma(db, "PRAGMA mmap_size=0; PRAGMA cell_size_check=ON");
        }
        if (r == 0) {
                (void)snprintf(sql, sizeof(sql), "PRAGMA cache_size=-%u", config->cache_kib ? config->cache_kib : 2048u);
                r = pragma(db, sql);
        }
        if (r == 0 && config->exclusive)
                r = pragma(db, "PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY");
        if (r == 0 && db->log_unseen)
                r = no_log(db);
        if (r == 0 && config->write) {
                unsigned pages = config->checkpoint_pages ? config->checkpoint_pages : 2000u;
                (void)snprintf(sql, sizeof(sql), "PRAGMA wal_autocheckpoint=%u", config->marked ? 0 : pages);
                r = pragma(db, "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL");
                if (r == 0)
                        r = pragma(db, sql);
                (void)snprintf(sql, sizeof(sql), "PRAGMA journal_size_limit=%u", MIN(JOURNAL_LIMIT_BYTES, pages * 2 * DB_PAGE_BYTES));
                if (r == 0)
                        r = pragma(db, sql);
                if (r == 0) /* the log is there from the first read on */
                        r = pragma(db, "SELECT count(*) FROM sqlite_schema");
                if (r == 0)
                        r = error_from(sqlite3_file_control(db->c, "main", SQLITE_FCNTL_JOURNAL_POINTER, &db->log), db->c);
                if (r == 0 && (!db->log || !db->log->pMethods))
                        r = -EIO;
                if (r == 0 && config->marked)
                        (void)sqlite3_wal_hook(db->c, on_commit, db);
                if (r == 0 && !config->vfs)
                        r = verify(db);
                if (r == 0 && config->marked)
                        r = db_marks_again(db->marks, db->log, &db->at);
                if (r == 0) /* also makes the names of new files durable, once */
                        r = db_sync(db);
        }
        if (r < 0) {
                db_close(db);
                return r;
        }
        *ret = db;
        return 0;
}

void db_close(struct db *db) {
        if (!db)
                return;
        for (size_t i = 0; i < STATEMENTS; i++)
                if (db->statements[i].s)
                        (void)sqlite3_finalize(db->statements[i].s);
        if (db->marks && db->c) /* the close moves the log into the file, and removes it */
                (void)sqlite3_db_config(db->c, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, may_checkpoint(db) ? 0 : 1, NULL);
        int rc = sqlite3_close(db->c);
        assert(rc == SQLITE_OK);
        (void)rc;
        db_marks_close(db->marks);
        free(db);
}

int db_get(struct db *db, const char *sql, struct db_stmt **ret) {
        size_t at = ((uintptr_t)sql * 0x9E3779B97F4A7C15ull) >> 40 & (STATEMENTS - 1);
        while (db->statements[at].s && db->statements[at].sql != sql)
                at = (at + 1) & (STATEMENTS - 1);
        struct db_stmt *s = &db->statements[at];
        if (!s->s) {
                assert(db->n_statements < STATEMENTS / 2);
                int r = error_from(sqlite3_prepare_v3(db->c, sql, -1, SQLITE_PREPARE_PERSISTENT, &s->s, NULL), db->c);
                if (r < 0) {
                        s->s = NULL;
                        return r;
                }
                s->db = db;
                s->sql = sql;
                db->n_statements++;
        }
        assert(!s->busy);
        *ret = s;
        return 0;
}

static int bind_list(struct db_stmt *s, const char *types, va_list ap) {
        int rc = SQLITE_OK;
        s->busy = true;
        for (int i = 1; *types && rc == SQLITE_OK; i++, types++) {
                const void *p;
                size_t n;
                switch (*types) {
                case 'i':
                        rc = sqlite3_bind_int64(s->s, i, va_arg(ap, int64_t));
                        break;
                case 'b':
                        p = va_arg(ap, const void *);
                        n = va_arg(ap, size_t);
                        rc = p ? sqlite3_bind_blob64(s->s, i, n ? p : "", n, SQLITE_STATIC) : sqlite3_bind_null(s->s, i);
                        break;
                case 't':
                        p = va_arg(ap, const char *);
                        n = va_arg(ap, size_t);
                        rc = p ? sqlite3_bind_text64(s->s, i, p, n, SQLITE_STATIC, SQLITE_UTF8) : sqlite3_bind_null(s->s, i);
                        break;
                case 'I': {
                        const struct id *id = va_arg(ap, const struct id *);
                        rc = id && !id_is_zero(id) ? sqlite3_bind_blob(s->s, i, id->b, ID_BYTES, SQLITE_STATIC) : sqlite3_bind_null(s->s, i);
                        break;
                }
                case 'D': {
                        const struct digest *d = va_arg(ap, const struct digest *);
                        rc = d && !digest_is_zero(d) ? sqlite3_bind_blob(s->s, i, d->b, DIGEST_BYTES, SQLITE_STATIC) : sqlite3_bind_null(s->s, i);
                        break;
                }
                case 'n':
                        rc = sqlite3_bind_null(s->s, i);
                        break;
                default:
                        assert(!"letter of db_bind");
                }
        }
        int r = error_from(rc, s->db->c);
        if (r < 0)
                db_reset(s);
        return r;
}

int db_bind(struct db_stmt *s, const char *types, ...) {
        va_list ap;
        va_start(ap, types);
        int r = bind_list(s, types, ap);
        va_end(ap);
        return r;
}

int db_bind_more(struct db_stmt *s, int at, bool some, int64_t value) {
        int r = error_from(some ? sqlite3_bind_int64(s->s, at, value) : sqlite3_bind_null(s->s, at), s->db->c);
        if (r < 0)
                db_reset(s);
        return r;
}

int db_step(struct db_stmt *s) {
        s->busy = true;
        int rc = sqlite3_step(s->s);
        if (rc == SQLITE_ROW)
                return 1;
        int r = error_from(rc, s->db->c);
        db_reset(s);
        return r;
}

void db_reset(struct db_stmt *s) {
        (void)sqlite3_reset(s->s); /* repeats the error of the step, which has been told */
        s->busy = false;
}

int db_query(struct db *db, struct db_stmt **ret, const char *sql, const char *types, ...) {
        struct db_stmt *s;
        *ret = NULL;
        int r = db_get(db, sql, &s);
        if (r < 0)
                return r;
        va_list ap;
        va_start(ap, types);
        r = bind_list(s, types, ap);
        va_end(ap);
        if (r == 0)
                r = db_step(s);
        if (r > 0)
                *ret = s;
        return r;
}

int db_run(struct db *db, const char *sql, const char *types, ...) {
        struct db_stmt *s;
        int r = db_get(db, sql, &s);
        if (r < 0)
                return r;
        va_list ap;
        va_start(ap, types);
        r = bind_list(s, types, ap);
        va_end(ap);
        while (r == 0 && (r = db_step(s)) > 0)
                r = 0;
        return r;
}

int db_int(struct db *db, int64_t *ret, const char *sql, const char *types, ...) {
        struct db_stmt *s;
        int r = db_get(db, sql, &s);
        if (r < 0)
                return r;
        va_list ap;
        va_start(ap, types);
        r = bind_list(s, types, ap);
        va_end(ap);
        if (r == 0)
                r = db_step(s);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        *ret = sqlite3_column_int64(s->s, 0);
        db_reset(s);
        return 0;
}

int db_exec(struct db *db, const char *sql) {
        return error_from(sqlite3_exec(db->c, sql, NULL, NULL, NULL), db->c);
}

int64_t db_col_int(struct db_stmt *s, int col) {
        return sqlite3_column_int64(s->s, col);
}

bool db_col_null(struct db_stmt *s, int col) {
        return sqlite3_column_type(s->s, col) == SQLITE_NULL;
}

const void *db_col_blob(struct db_stmt *s, int col, size_t *ret_n) {
        const void *p = sqlite3_column_blob(s->s, col);
        *ret_n = p ? (size_t)sqlite3_column_bytes(s->s, col) : 0;
        return p;
}

const char *db_col_text(struct db_stmt *s, int col, size_t *ret_n) {
        const char *p = (const char *)sqlite3_column_text(s->s, col);
        if (ret_n)
                *ret_n = p ? (size_t)sqlite3_column_bytes(s->s, col) : 0;
        return p;
}

struct id db_col_id(struct db_stmt *s, int col) {
        struct id id = {0};
        const void *p = sqlite3_column_blob(s->s, col);
        if (p && sqlite3_column_bytes(s->s, col) == ID_BYTES)
                memcpy(id.b, p, ID_BYTES);
        return id;
}

struct digest db_col_digest(struct db_stmt *s, int col) {
        struct digest d = {0};
        const void *p = sqlite3_column_blob(s->s, col);
        if (p && sqlite3_column_bytes(s->s, col) == DIGEST_BYTES)
                memcpy(d.b, p, DIGEST_BYTES);
        return d;
}

int db_begin(struct db *db) {
        assert(!db_in_transaction(db));
        return db->write ? db_run(db, "BEGIN IMMEDIATE", "") : db_run(db, "BEGIN", "");
}

int db_commit(struct db *db) {
        assert(db_in_transaction(db));
        int r = db_run(db, "COMMIT", "");
        /* A failed checkpoint after a good commit is not reported by SQLite; a failed commit leaves the transaction open. */
        if (r < 0)
                db_rollback(db);
        return r;
}

void db_rollback(struct db *db) {
        if (!db_in_transaction(db))
                return;
        int r = db_run(db, "ROLLBACK", "");
        assert(r == 0 || !db_in_transaction(db));
        (void)r;
}

bool db_log_torn(const struct db *db) {
        return db->log_torn;
}

bool db_in_transaction(const struct db *db) {
        return !sqlite3_get_autocommit(db->c);
}

int64_t db_changes(const struct db *db) {
        return sqlite3_changes64(db->c);
}

int db_sync(struct db *db) {
        assert(db->write);
        int r = atomic_load(&db->sync_error);
        if (r < 0)
                return r;
        if (db->log->pMethods->xSync(db->log, SQLITE_SYNC_NORMAL) != SQLITE_OK) {
                atomic_store(&db->sync_error, -EIO);
                return -EIO;
        }
        return 0;
}

bool db_sync_failed(const struct db *db) {
        return atomic_load(&db->sync_error) < 0;
}

int db_again(struct db *db) {
        assert(db->write && db->marks);
        if (!db_sync_failed(db))
                return 0;
        if (!db_log_head_ok(db->at.head))
                read_head(db, db->at.head);
        int r = db_marks_again(db->marks, db->log, &db->at);
        if (r == 0)
                atomic_store(&db->sync_error, 0);
        return r;
}

int db_checkpoint(struct db *db) {
        assert(db->write);
        int frames = 0, done = 0;
        if (!may_checkpoint(db))
                return -EAGAIN;
        int rc = sqlite3_wal_checkpoint_v2(db->c, NULL, SQLITE_CHECKPOINT_PASSIVE, &frames, &done);
        /* Readers were behind. They come and go, so it is all moved sooner or later; but a log begins anew only when none is in it, and with many there may always be one. */
        if (rc == SQLITE_OK && db->marks && frames > 0) {
                /* In short tries: SQLite waits for a reader's slot, not for what is read there; a slot that readers of the newest state hand to each other is never free, and only a new try sees that nobody need be waited for. */
                (void)sqlite3_busy_timeout(db->c, READERS_TRY_MS);
                for (int ms = 0; ms < READERS_MS && (ms == 0 || rc == SQLITE_BUSY); ms += READERS_TRY_MS)
                        rc = sqlite3_wal_checkpoint_v2(db->c, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL);
                (void)sqlite3_busy_timeout(db->c, db->exclusive ? 0 : BUSY_MS);
        }
        checkpointed(db);
        return error_from(rc, db->c);
}

void db_log_at(struct db *db, struct db_mark *ret) {
        assert(db->marks);
        if (!db_log_head_ok(db->at.head)) /* the disk refused it after the last commit; nobody commits now */
                read_head(db, db->at.head);
        *ret = db->at;
}

int db_mark(struct db *db, const struct db_mark *mark) {
        int r = atomic_load(&db->sync_error);
        if (r == 0 && !db_log_head_ok(mark->head)) /* of no log: a cut would take all for another one's */
                r = -EAGAIN;
        return r < 0 ? r : db_marks_write(db->marks, mark);
}

uint64_t db_log_pages(const struct db *db) {
        return atomic_load(&db->pages);
}

/* SQLite tells a disk that cannot be read as a finding, like damage. */
int db_check(struct db *db) {
        sqlite3_file *file, *log;
        if (sqlite3_file_control(db->c, "main", SQLITE_FCNTL_FILE_POINTER, &file) != SQLITE_OK || sqlite3_file_control(db->c, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log) != SQLITE_OK)
                return -EIO;
        (void)db_sums_disk_failed(file);
        (void)db_sums_disk_failed(log);
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(db, &s, "PRAGMA quick_check(1)", "");
        if (r < 0)
                return r;
        const char *text = r > 0 ? db_col_text(s, 0, NULL) : NULL;
        if (text && strcmp(text, "ok") == 0)
                return 0;
        return db_sums_disk_failed(file) || db_sums_disk_failed(log) ? -EIO : -EBADMSG;
}

const char *db_message(struct db *db) {
        return sqlite3_errmsg(db->c);
}
