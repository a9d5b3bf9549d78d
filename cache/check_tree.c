/* SPDX-License-Identifier: Apache-2.0 */
/* check_tree.c: tree.db, the outbox against the stages, and blobs.db, looked at from outside (check.h).
 *
 * A cache directory without a daemon is read with read-only connections, so that looking changes nothing but SQLite's shared-memory file. Order: SQLite's own integrity_check first, because a rule that fails on a
 * damaged file says nothing; then the rules below, each a query that must find no row. The rules are those that the tests of the tree assert after every step; they are written with grouped joins, because a tree
 * may have a million nodes and `entry` has no index by node. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "cache/check.h"
#include "tree_priv.h"

#define FUTURE_US (60 * INT64_C(1000000))
#define NAMED_MAX 20u /* findings of one kind that are told one by one */

static void tell(const struct check_report *rep, enum check_grade g, const char *check, const char *todo, const char *fmt, ...) _printf_(5, 6);
static void tell(const struct check_report *rep, enum check_grade g, const char *check, const char *todo, const char *fmt, ...) {
        char text[600];
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        if (rep)
                rep->line(rep->arg, g, check, text, todo);
}

#define REBUILD "its next mount makes a new one from the server and the files being written: run `tarn doctor --repair`, then mount"

static const struct rule { const char *sql, *what; } rules[] = {
        { "SELECT count(*) FROM entry e LEFT JOIN node n ON n.ino=e.node WHERE n.ino IS NULL", "names of nodes that are not there" },
        { "SELECT count(*) FROM entry e LEFT JOIN node n ON n.ino=e.parent WHERE n.ino IS NULL OR n.mode>>12 <> 2", "names in what is not a directory" },
        { "SELECT count(*) FROM node n WHERE n.cookie>0 AND NOT EXISTS(SELECT 1 FROM entry e WHERE e.parent=n.parent AND e.cookie=n.cookie AND e.node=n.ino AND e.bits<2)", "nodes whose own name is not there" },
        { "SELECT count(*) FROM node n LEFT JOIN (SELECT node k, count(*) c FROM entry GROUP BY node) e ON e.k=n.ino WHERE n.mode>>12 <> 2 AND n.nlink <> ifnull(e.c,0)", "files whose link count is not that of their names" },
        { "SELECT count(*) FROM (SELECT node k, count(*) c FROM entry GROUP BY node HAVING c>1) e JOIN node n ON n.ino=e.k WHERE n.mode>>12 = 2", "directories with two names" },
        { "SELECT count(*) FROM node n LEFT JOIN (SELECT e.parent p, count(*) c FROM entry e JOIN node k ON k.ino=e.node WHERE k.mode>>12 = 2 GROUP BY e.parent) s ON s.p=n.ino"
          " WHERE n.mode>>12 = 2 AND n.nlink <> 2 + ifnull(s.c,0)", "directories whose link count is not that of their subdirectories" },
        { "SELECT count(*) FROM node n WHERE n.pend <> (SELECT count(*) FROM outbox WHERE ino=n.ino) + (SELECT count(*) FROM outbox WHERE ino2=n.ino AND ino2>0)", "nodes that count their pending changes wrong" },
        { "SELECT count(*) FROM outbox o WHERE NOT EXISTS(SELECT 1 FROM node n WHERE n.ino=o.ino)", "pending changes of nodes that are not there" },
        { "SELECT count(*) FROM outbox o WHERE o.nwait <> (SELECT count(*) FROM dep d JOIN outbox p ON p.ord=d.pred WHERE d.succ=o.ord AND p.state<>1)", "pending changes that wait for the wrong ones" },
        { "SELECT count(*) FROM dep WHERE pred>=succ OR succ NOT IN (SELECT ord FROM outbox) OR pred NOT IN (SELECT ord FROM outbox)", "dependencies without their changes" },
        { "SELECT count(*) FROM shadow s LEFT JOIN node n ON n.ino=s.ino WHERE n.ino IS NULL OR n.bits & 1 = 0", "server rows of nodes that have none" },
        { "SELECT count(*) FROM node n WHERE n.bits & 1 AND NOT EXISTS(SELECT 1 FROM shadow s WHERE s.ino=n.ino)", "nodes whose server row is gone" },
        { "SELECT count(*) FROM shadow_name s WHERE NOT EXISTS(SELECT 1 FROM shadow x WHERE x.ino=s.ino)", "server names without their row" },
};

/* Lines only for what is wrong. Returns how many rules were broken, or negative. */
static int rules_check(struct db *db, const struct check_report *rep) {
        int wrong = 0;
        for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
                int64_t n;
                int r = db_int(db, &n, rules[i].sql, "");
                if (r < 0)
                        return r;
                if (n > 0) {
                        wrong++;
                        tell(rep, CHECK_BAD, "tree", REBUILD, "%" PRId64 " %s", n, rules[i].what);
                }
        }
        return wrong;
}

int check_tree_rules(struct db *db) {
        return rules_check(db, NULL);
}

/* 0: sound, 1: told. */
static int integrity(struct db *db, const struct check_report *rep, const char *check, const char *todo) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(db, &s, "PRAGMA integrity_check(1)", "");
        const char *text = r > 0 ? db_col_text(s, 0, NULL) : err_name(r);
        if (r > 0 && text && strcmp(text, "ok") == 0)
                return 0;
        tell(rep, CHECK_BAD, check, todo, "the file is damaged: %.300s", text ? text : "?");
        return 1;
}

int check_tree_open(struct tree *t, const struct check_report *rep) {
        TREE_READ(rd, t);
        int r = integrity(rd.db, rep, "tree", "unmount and mount again: the start moves it aside and makes a new one from the server and the files being written");
        int k = r == 0 ? db_begin(rd.db) : 0; /* all rules see one state */
        if (r == 0 && k == 0) {
                k = rules_check(rd.db, rep);
                db_rollback(rd.db);
        }
        return r ? r : k < 0 ? k : k > 0;
}

/* ---- a directory without a daemon ---- */

static int move_aside(const char *path, struct clock *clock, const char *mark, const struct check_report *rep, const char *check) {
        static const char *const parts[] = { "", "-wal", "-shm", "-mark" };
        int64_t now = clock_real_ns(clock) / 1000000000;
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                char from[PATH_MAX], to[PATH_MAX];
                if ((size_t)snprintf(from, sizeof from, "%s%s", path, parts[i]) >= sizeof from || (size_t)snprintf(to, sizeof to, "%s.%s-%" PRId64 "%s", path, mark, now, parts[i]) >= sizeof to)
                        return -ENAMETOOLONG;
                if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) < 0 && errno != ENOENT)
                        return -errno;
        }
        int r = fsync_parent(path);
        if (r == 0)
                tell(rep, CHECK_OK, check, "", "repaired: %s was moved aside, the next mount makes a new one", path);
        return r;
}

static void path_of(struct db *db, uint64_t ino, char *ret, size_t n) {
        char whole[PATH_MAX] = "";
        for (unsigned depth = 0; depth < 256 && ino != INO_ROOT; depth++) {
                _cleanup_stmt_ struct db_stmt *s = NULL;
                char next[PATH_MAX];
                if (db_query(db, &s, "SELECT n.parent, e.name FROM node n JOIN entry e ON e.parent=n.parent AND e.cookie=n.cookie WHERE n.ino=?", "i", (int64_t)ino) <= 0)
                        break;
                ino = (uint64_t)db_col_int(s, 0);
                if ((size_t)snprintf(next, sizeof next, whole[0] ? "%s/%s" : "%s%s", db_col_text(s, 1, NULL), whole) >= sizeof next)
                        break;
                memcpy(whole, next, sizeof whole);
        }
        (void)snprintf(ret, n, "%s", whole);
}

static const struct check_stage *stage_of(const struct check_stages *st, uint64_t gen) {
        size_t lo = 0, hi = st->n;
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                if (st->v[mid].gen < gen)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        return lo < st->n && st->v[lo].gen == gen ? &st->v[lo] : NULL;
}

static int outbox_check(struct db *db, const struct check_stages *st, const struct check_report *rep) {
        struct { uint64_t gen, ino; } *v = NULL;
        size_t n = 0, room = 0;
        int64_t rows = 0, parked = 0, missing = 0;
        int r = db_int(db, &rows, "SELECT count(*) FROM outbox", "");
        if (r == 0)
                r = db_int(db, &parked, "SELECT count(*) FROM outbox WHERE state=2", "");
        struct db_stmt *s;
        if (r == 0)
                r = db_query(db, &s, "SELECT gen, ino FROM outbox WHERE gen>0", "");
        while (r > 0) {
                if (n == room) {
                        room = room ? room * 2 : 256;
                        void *p = reallocarray(v, room, sizeof *v);
                        if (!p) {
                                db_reset(s);
                                free(v);
                                return -ENOMEM;
                        }
                        v = p;
                }
                v[n].gen = (uint64_t)db_col_int(s, 0);
                v[n++].ino = (uint64_t)db_col_int(s, 1);
                r = db_step(s);
        }
        for (size_t i = 0; i < n && r == 0; i++) {
                const struct check_stage *x = stage_of(st, v[i].gen);
                char path[1024];
                if (x && !x->done && !x->damaged)
                        continue;
                if (++missing > NAMED_MAX)
                        continue;
                path_of(db, v[i].ino, path, sizeof path);
                tell(rep, CHECK_BAD, "outbox", x && x->pages_bad ? CHECK_SAVE_AGAIN : x && x->damaged ? "what can be read of it goes to lost+found/ at the next mount; the file shows its last version again" : "the file shows its last version at the next mount",
                     "the bytes of a change of '%.300s' are %s", path[0] ? path : "?", x && x->damaged ? "damaged" : "gone");
        }
        free(v);
        if (r == 0 && missing == 0)
                tell(rep, parked ? CHECK_WARN : CHECK_OK, "outbox", parked ? "`tarn status` says why, when it is mounted" : "", "%" PRId64 " changes are pending, %" PRId64 " of them parked; the bytes of each are here", rows, parked);
        return r;
}

/* ret: open, if it can be read. */
static int tree_check(const char *dir, struct clock *clock, bool repair, const struct check_report *rep, struct db **ret) {
        _cleanup_free_ char *path = path_join(dir, "tree.db");
        struct stat st;
        int64_t version, nodes, complete = 0;
        *ret = NULL;
        if (!path)
                return -ENOMEM;
        if (stat(path, &st) < 0) {
                tell(rep, CHECK_WARN, "tree", "mount: a new one is made from the server and the files being written", "%s is not there", path);
                return 0;
        }
        struct db_config c = { .path = path };
        int r = db_open(&c, ret);
        if (r == 0)
                r = db_int(*ret, &version, "PRAGMA user_version", "");
        bool bad = r == -EBADMSG;
        if (bad)
                tell(rep, CHECK_BAD, "tree", REBUILD, "%s is damaged: not a SQLite file, or not readable as one", path);
        else if (r < 0)
                tell(rep, CHECK_BAD, "tree", "check the rights and the disk of the cache directory", "%s cannot be read: %s", path, err_name(r));
        else if (version > TREE_SCHEMA_VERSION)
                tell(rep, CHECK_BAD, "tree", "upgrade this program; nothing is wrong with the file", "%s was written by a newer tarn (schema %" PRId64 ")", path, version);
        else if (integrity(*ret, rep, "tree", REBUILD) > 0)
                bad = true;
        else {
                r = rules_check(*ret, rep);
                bad = r > 0;
                if (r == 0 && (r = db_int(*ret, &nodes, "SELECT count(*) FROM node", "")) == 0 && (r = meta_get(*ret, "complete", &complete)) == 0)
                        tell(rep, CHECK_OK, "tree", "", "%" PRId64 " nodes%s; SQLite's integrity and %zu rules hold", nodes, complete ? "" : " (not completely loaded yet)", ARRAY_SIZE(rules));
                if (r < 0) {
                        tell(rep, CHECK_BAD, "tree", REBUILD, "%s cannot be read: %s", path, err_name(r));
                        bad = r == -EBADMSG;
                }
        }
        if (r != 0 || bad || version > TREE_SCHEMA_VERSION) {
                db_close(*ret);
                *ret = NULL;
        }
        return bad && repair ? move_aside(path, clock, "damaged", rep, "tree") : 0;
}

static int stages_report(const char *dir, struct clock *clock, bool repair, const struct check_stages *st, struct db *db, const struct check_report *rep) {
        uint64_t live = 0, bytes = 0, bad = 0, newest = 0, unknown = 0;
        for (size_t i = 0; i < st->n; i++) {
                const struct check_stage *s = &st->v[i];
                int64_t known = 1;
                newest = MAX(newest, s->gen);
                if (s->done)
                        continue;
                live++;
                bytes += s->bytes;
                if (s->damaged && ++bad <= NAMED_MAX)
                        tell(rep, CHECK_BAD, "stages", s->pages_bad ? CHECK_SAVE_AGAIN : "what can be read of it goes to lost+found/ at the next mount", "'%.255s' (generation %" PRIu64 "): %s", s->name[0] ? s->name : "?", s->gen, s->why);
                if (db && !s->damaged && db_int(db, &known, "SELECT (SELECT count(*) FROM outbox WHERE gen=?1) + (SELECT count(*) FROM node WHERE last_gen>=?1 AND ino=?2)", "ii", (int64_t)s->gen, (int64_t)s->ino) == 0 && known == 0 &&
                    ++unknown <= NAMED_MAX)
                        tell(rep, CHECK_WARN, "stages", "the next mount brings it back: under its name, or in lost+found/", "'%.255s' (generation %" PRIu64 ") is not known to the database", s->name[0] ? s->name : "?", s->gen);
        }
        if (st->logs_bad)
                tell(rep, CHECK_BAD, "stages", "it goes to lost+found/ at the next mount", "%u of %u logs cannot be read, %s among them", st->logs_bad, st->logs, st->bad_log);
        if (!bad && !st->logs_bad)
                tell(rep, CHECK_OK, "stages", "", "%" PRIu64 " files with %" PRIu64 " KiB wait in %u logs; each header, log and page verifies", live, bytes / 1024, st->logs);
        for (size_t i = 0; i < st->n_orphans; i++) {
                char from[PATH_MAX], to[PATH_MAX];
                if (i < NAMED_MAX)
                        tell(rep, CHECK_WARN, "orphans", "the next mount, or `tarn doctor --repair`, moves it to lost+found/", "lent/%s belongs to no log", st->orphan[i].name);
                if (!repair || (size_t)snprintf(from, sizeof from, "%s/lent/%s", dir, st->orphan[i].name) >= sizeof from || (size_t)snprintf(to, sizeof to, "%s/lost+found", dir) >= sizeof to)
                        continue;
                int r = mkdir_p(to, 0700);
                if (r == 0 && (size_t)snprintf(to, sizeof to, "%s/lost+found/%s", dir, st->orphan[i].name) < sizeof to && renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) < 0)
                        r = -errno;
                if (r < 0)
                        return r;
                tell(rep, CHECK_OK, "orphans", "", "repaired: lent/%s is in lost+found/ now", st->orphan[i].name);
        }
        int64_t ahead_us = (int64_t)newest - clock_real_ns(clock) / 1000;
        if (ahead_us > FUTURE_US)
                tell(rep, CHECK_WARN, "time", "set the clock; nothing is lost by it", "this machine's clock is %" PRId64 " s behind the newest file that was written here", ahead_us / 1000000);
        else
                tell(rep, CHECK_OK, "time", "", "the clock has not gone back behind the newest file");
        return 0;
}

static int index_check(const char *dir, struct clock *clock, bool repair, const struct check_report *rep) {
        static const char todo[] = "only cached copies: the next mount, or `tarn doctor --repair`, starts with an empty cache";
        _cleanup_free_ char *path = path_join(dir, "blobs.db");
        struct stat st;
        struct db *db = NULL;
        int64_t n;
        if (!path)
                return -ENOMEM;
        if (stat(path, &st) < 0) {
                tell(rep, CHECK_OK, "index", "", "nothing is cached yet");
                return 0;
        }
        struct db_config c = { .path = path };
        int r = db_open(&c, &db);
        bool bad = r < 0;
        if (r == 0 && (r = db_int(db, &n, "SELECT count(*) FROM blob", "")) < 0)
                bad = true;
        if (bad)
                tell(rep, CHECK_BAD, "index", todo, "%s cannot be read: %s", path, err_name(r));
        else if (integrity(db, rep, "index", todo) > 0)
                bad = true;
        else
                tell(rep, CHECK_OK, "index", "", "%" PRId64 " contents are cached; `tarn scrub` reads them all", n);
        db_close(db);
        return bad && repair ? move_aside(path, clock, "damaged", rep, "index") : 0;
}

int check_cache(const char *dir, struct clock *clock, bool repair, const struct check_report *report, struct check_stages *ret_stages) {
        struct check_stages st;
        struct db *db = NULL;
        int r = check_stages_read(dir, true, &st);
        if (r < 0)
                return r;
        r = tree_check(dir, clock, repair, report, &db);
        if (r == 0 && db)
                r = outbox_check(db, &st, report);
        if (r == 0)
                r = stages_report(dir, clock, repair, &st, db, report);
        db_close(db);
        if (r == 0 && ret_stages)
                *ret_stages = st;
        else
                check_stages_free(&st);
        return r < 0 ? r : index_check(dir, clock, repair, report);
}
