/* SPDX-License-Identifier: Apache-2.0 */
/* sql.c: what all drivers share: the statement cache and binding by format.
 *
 * Statements are found by the address of their literal text (an open-addressing table per connection, a few hundred entries that never go
 * away), so that a hot statement costs one hash of a pointer. A statement is in use from sql_stmt until its reset; meta never runs one statement
 * nested in itself. Parameters are borrowed: what a format points to lives until the reset. */
#include "sql.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

static int cached(struct sql *db, const char *text, struct sql_stmt **ret) {
        size_t at = (size_t)(((uintptr_t)text >> 2) * 0x9E3779B97F4A7C15ull >> 56) % SQL_CACHE;
        for (size_t i = 0; i < SQL_CACHE; i++, at = (at + 1) % SQL_CACHE) {
                if (db->cache[at].text == text) {
                        *ret = db->cache[at].st;
                        return 0;
                }
                if (!db->cache[at].text) {
                        struct sql_stmt *st;
                        int r = db->ops->prepare(db, text, &st);
                        if (r < 0)
                                return r;
                        db->cache[at].text = text;
                        db->cache[at].st = st;
                        *ret = st;
                        return 0;
                }
        }
        assert(!"more statements than SQL_CACHE");
        return -ENOMEM;
}

static int stmt_v(struct sql *db, struct sql_stmt **ret, const char *text, const char *format, va_list ap) {
        struct sql_stmt *st;
        int r = cached(db, text, &st);
        if (r < 0)
                return r;
        db->ops->reset(st);
        int at = 1;
        for (const char *f = format; *f; f++, at++) {
                switch (*f) {
                case 'i':
                        r = db->ops->bind_int(st, at, va_arg(ap, int64_t));
                        break;
                case 'b': {
                        const void *p = va_arg(ap, const void *);
                        size_t n = va_arg(ap, size_t);
                        r = db->ops->bind_blob(st, at, p, n);
                        break;
                }
                case 'd':
                        r = db->ops->bind_blob(st, at, va_arg(ap, const struct digest *), DIGEST_BYTES);
                        break;
                case 'D':
                        r = db->ops->bind_blob(st, at, va_arg(ap, const struct id *), ID_BYTES);
                        break;
                case 't':
                        r = db->ops->bind_text(st, at, va_arg(ap, const char *));
                        break;
                case 'n':
                        break;
                default:
                        assert(!"unknown binding");
                }
                if (r < 0) {
                        db->ops->reset(st);
                        return r;
                }
        }
        *ret = st;
        return 0;
}

int sql_stmt(struct sql *db, struct sql_stmt **ret, const char *text, const char *format, ...) {
        va_list ap;
        va_start(ap, format);
        int r = stmt_v(db, ret, text, format, ap);
        va_end(ap);
        return r;
}

int sql_first(struct sql *db, struct sql_stmt **ret, const char *text, const char *format, ...) {
        va_list ap;
        va_start(ap, format);
        struct sql_stmt *st = NULL;
        int r = stmt_v(db, &st, text, format, ap);
        va_end(ap);
        if (r < 0)
                return r;
        r = db->ops->step(st);
        if (r <= 0)
                db->ops->reset(st);
        *ret = st;
        return r;
}

int sql_run(struct sql *db, const char *text, const char *format, ...) {
        va_list ap;
        va_start(ap, format);
        struct sql_stmt *st = NULL;
        int r = stmt_v(db, &st, text, format, ap);
        va_end(ap);
        if (r < 0)
                return r;
        r = db->ops->step(st);
        db->ops->reset(st);
        return r < 0 ? r : 0;
}

void sql_get_id(struct sql *db, struct sql_stmt *st, int at, struct id *ret) {
        size_t n;
        const void *p = sql_blob(db, st, at, &n);
        if (p && n == ID_BYTES)
                memcpy(ret->b, p, ID_BYTES);
        else
                memset(ret, 0, sizeof *ret);
}

void sql_get_digest(struct sql *db, struct sql_stmt *st, int at, struct digest *ret) {
        size_t n;
        const void *p = sql_blob(db, st, at, &n);
        if (p && n == DIGEST_BYTES)
                memcpy(ret->b, p, DIGEST_BYTES);
        else
                memset(ret, 0, sizeof *ret);
}

void sql_close(struct sql *db) {
        if (!db)
                return;
        for (size_t i = 0; i < SQL_CACHE; i++)
                if (db->cache[i].st)
                        db->ops->finalize(db->cache[i].st);
        db->ops->close(db);
}
