/* SPDX-License-Identifier: Apache-2.0 */
/* tree.c: opening the file, transactions, readers, syncing, settings.
 *
 * One SQLite file in WAL (cache/db.c has its rules), one writing connection under t->lock, some read-only ones in a pool. docs/client-state.md describes every table.
 *
 * A transaction (tree_begin .. tree_end) is one local verb, one remote batch or one step of a snapshot. It collects notes for the kernel side and whether the
 * engine has to wake up; both are given after the commit, with the lock still held, so that notes of two transactions come in the order of their commits.
 *
 * Who has a file open (is_open, kept) is asked inside the transaction that changes what it is about, so these callbacks are leaves (RANK_QUEUE at most). An opener counts its handle
 * first and then reads the row by tree_get_open. The transaction notes the ino before it asks. So either the question finds the handle, or the opener finds the note, waits
 * for the end (commit and notes) and reads the new row: nobody opens the old bytes of a node whose incarnation does not tell.
 * open_for_write is asked with no lock held.
 *
 * Numbers (ino, cookie, local order) are never given twice: they are taken in memory, and the file holds a limit below which they may have been given; a
 * crash skips the rest up to the limit.
 *
 * What is durable when: tree_sync.c.
 *
 * Damage: every page is compared with its sum at open (db.c); -EBADMSG then, and the owner makes a new file. A log that ends in something that does not verify has lost its end: quick_check, and the
 * rules of check_tree.c, tell whether what is left is one state.
 *
 * Unclean stop: meta 'open' is 1 while a process has the file. Found at open: quick_check (-EBADMSG: damaged), rows of unlinked nodes that were kept for open handles
 * go (with a tombstone, so that a stage found on disk does not bring them back), and operations that were sent get their answer by being sent again with the same id. */
#include "tree_priv.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>

#include "base/err.h"
#include "base/failpoint.h"
#include "base/log.h"

#define NAMINGS_MAX 256u /* beyond it: any */
#define NUMBERS_AT_ONCE 4096u
#define SCRATCH_BYTES_MAX (256u << 20)
#define LOG_PAGES 2000u

static const char schema[] =
        "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;"
        "CREATE TABLE setting(key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;"
        "CREATE TABLE node(ino INTEGER PRIMARY KEY, id BLOB NOT NULL, mode INTEGER, uid INTEGER, gid INTEGER, nlink INTEGER, rdev INTEGER, mtime INTEGER, ctime_d INTEGER,"
        "  btime_d INTEGER, size INTEGER, csize INTEGER, root BLOB, shape INTEGER, version BLOB, gen INTEGER, last_gen INTEGER, seq INTEGER, nseq INTEGER, parent INTEGER,"
        "  cookie INTEGER, bits INTEGER, pend INTEGER, extra BLOB, atime INTEGER);"
        "CREATE UNIQUE INDEX node_id ON node(id);"
        "CREATE INDEX node_kept ON node(parent) WHERE bits & 6;"
        "CREATE INDEX node_conflict ON node(ino) WHERE bits & 64;"
        "CREATE TABLE entry(parent INTEGER, cookie INTEGER, name TEXT, node INTEGER, placement BLOB, bits INTEGER, PRIMARY KEY(parent, cookie)) WITHOUT ROWID;"
        "CREATE UNIQUE INDEX entry_name ON entry(parent, name);"
        "CREATE INDEX entry_more ON entry(node) WHERE bits >= 2;"
        "CREATE TABLE shadow(ino INTEGER PRIMARY KEY, row BLOB);"
        "CREATE TABLE shadow_name(ino INTEGER, parent INTEGER, name TEXT, placement BLOB, PRIMARY KEY(ino, parent, name)) WITHOUT ROWID;"
        "CREATE INDEX shadow_name_at ON shadow_name(parent, name);"
        "CREATE TABLE alias(id BLOB PRIMARY KEY, ino INTEGER, local INTEGER) WITHOUT ROWID;"
        "CREATE INDEX alias_ino ON alias(ino);"
        "CREATE TABLE tomb(id BLOB PRIMARY KEY, seq INTEGER, local INTEGER) WITHOUT ROWID;"
        "CREATE INDEX tomb_seq ON tomb(seq) WHERE seq > 0;"
        "CREATE TABLE outbox(ord INTEGER PRIMARY KEY, id BLOB NOT NULL, kind INTEGER, state INTEGER, bits INTEGER, ino INTEGER, ino2 INTEGER, p1 INTEGER, n1 TEXT, p2 INTEGER,"
        "  n2 TEXT, gen INTEGER, body BLOB, queued_ns INTEGER, nwait INTEGER, class INTEGER, rev INTEGER, attempts INTEGER, error INTEGER, next_try_ns INTEGER, reason TEXT);"
        "CREATE UNIQUE INDEX outbox_id ON outbox(id);"
        "CREATE INDEX outbox_ino ON outbox(ino);"
        "CREATE INDEX outbox_ino2 ON outbox(ino2) WHERE ino2 > 0;"
        "CREATE INDEX outbox_at1 ON outbox(p1, n1) WHERE p1 > 0;"
        "CREATE INDEX outbox_at2 ON outbox(p2, n2) WHERE p2 > 0;"
        "CREATE INDEX outbox_ready ON outbox(class) WHERE state = 0 AND nwait = 0;"
        "CREATE INDEX outbox_parked ON outbox(next_try_ns) WHERE state = 2;"
        "CREATE INDEX outbox_sent ON outbox(state) WHERE state = 1;"
        "CREATE INDEX outbox_content ON outbox(queued_ns) WHERE gen > 0 AND state <> 2;"
        "CREATE INDEX outbox_gen ON outbox(gen) WHERE gen > 0;"
        "CREATE INDEX outbox_dirmove ON outbox(kind) WHERE kind = 6 AND bits >= 16;"
        "CREATE TABLE dep(succ INTEGER, pred INTEGER, PRIMARY KEY(succ, pred)) WITHOUT ROWID;"
        "CREATE INDEX dep_pred ON dep(pred);"
        "CREATE TABLE snap_node(id BLOB PRIMARY KEY, seq INTEGER, nseq INTEGER, deleted INTEGER, row BLOB) WITHOUT ROWID;"
        "CREATE TABLE snap_entry(entry_id INTEGER PRIMARY KEY, parent BLOB, node BLOB, name TEXT, placement BLOB, seq INTEGER);"
        "PRAGMA application_id=1952543342;"
        "PRAGMA user_version=2;";

static const char *const number_keys[N_NUMBERS] = { "next_ino", "next_cookie", "next_order", "next_gen" };

int meta_get(struct db *db, const char *key, int64_t *ret) {
        int r = db_int(db, ret, "SELECT value FROM meta WHERE key=?", "t", key, strlen(key));
        if (r == -ENOENT) {
                *ret = 0;
                r = 0;
        }
        return r;
}

int meta_set(struct db *db, const char *key, int64_t value) {
        return db_run(db, "INSERT INTO meta(key,value) VALUES(?1,?2) ON CONFLICT(key) DO UPDATE SET value=?2", "ti", key, strlen(key), value);
}

/* ---- opening ---- */

static int create_schema(struct tree *t, const struct tree_config *config) {
        int r = db_exec(t->w, schema);
        if (r == 0)
                r = meta_set(t->w, "schema", TREE_SCHEMA_VERSION);
        if (r == 0)
                r = meta_set(t->w, "born", clock_real_ns(t->clock) / 1000);
        if (r == 0)
                r = meta_set(t->w, "newborn", 1); /* until tree_birth */
        struct nrow root = { .ino = INO_ROOT, .id = id_root, .nlink = 2,
                             .v = { .kind = NODE_DIR, .mode = 0755, .uid = config->uid, .gid = config->gid, .mtime_ns = t->now_ns, .ctime_ns = t->now_ns, .btime_ns = t->now_ns } };
        if (r == 0)
                r = row_insert(t, &root);
        return r;
}

/* After a crash: what only a running process could own. */
static int recover(struct tree *t) {
        struct open_set sent = {0};
        struct db_stmt *s;
        int r = db_run(t->w, "INSERT OR IGNORE INTO tomb(id,seq,local) SELECT id,0,CASE WHEN bits & 32 THEN 2 ELSE 1 END FROM node WHERE bits & 6 AND parent = 0", "");
        if (r == 0) /* with pending work they stay until the answer */
                r = db_run(t->w, "DELETE FROM node WHERE bits & 6 AND parent = 0 AND pend = 0", "");
        if (r == 0)
                r = db_run(t->w, "UPDATE node SET bits = bits & ~6 WHERE bits & 6", "");
        if (r == 0)
                r = db_query(t->w, &s, "SELECT ord FROM outbox WHERE state = 1", "");
        while (r > 0) {
                r = open_set_add(&sent, (uint64_t)db_col_int(s, 0));
                if (r < 0)
                        db_reset(s);
                else
                        r = db_step(s);
        }
        for (size_t i = 0; i < sent.n && r == 0; i++) {
                r = db_run(t->w, "UPDATE outbox SET nwait=nwait+1 WHERE ord IN (SELECT succ FROM dep WHERE pred=?)", "i", (int64_t)sent.ino[i]);
                if (r == 0)
                        r = db_run(t->w, "UPDATE outbox SET state=0, bits=bits|1 WHERE ord=?", "i", (int64_t)sent.ino[i]);
        }
        cleanup_open_set_p(&sent);
        return r;
}

/* Files of older programs have no column for access times. */
static int add_atime(struct tree *t) {
        int64_t there;
        int r = db_int(t->w, &there, "SELECT count(*) FROM pragma_table_info('node') WHERE name='atime'", "");
        return r < 0 || there ? r : db_exec(t->w, "ALTER TABLE node ADD COLUMN atime INTEGER");
}

static int read_cursor(struct tree *t, const char *key, struct cursor *ret) {
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(t->w, &s, "SELECT value FROM setting WHERE key=?", "t", key, strlen(key));
        if (r <= 0)
                return r;
        size_t n;
        const uint8_t *p = db_col_blob(s, 0, &n);
        if (n != ID_BYTES + 16)
                return -EBADMSG;
        memcpy(ret->epoch.b, p, ID_BYTES);
        for (unsigned i = 0; i < 8; i++)
                ret->seq |= (uint64_t)p[ID_BYTES + i] << (8 * i);
        memcpy(ret->mark, p + ID_BYTES + 8, 8);
        return 0;
}

/* All that was committed; it is synced, and names no bytes that are not. */
static int mark_all(struct tree *t) {
        struct db_mark mark;
        db_log_at(t->w, &mark);
        return db_mark(t->w, &mark);
}

/* Below this all rows are. */
static int gens_of_rows(struct tree *t, int64_t *ret_limit) {
        int64_t newest;
        int r = db_int(t->w, &newest, "SELECT max(last_gen) FROM node", ""); /* all rows, once */
        if (r == 0)
                r = meta_set(t->w, number_keys[NUMBER_GEN], *ret_limit = newest + 1);
        return r;
}

static int open_state(struct tree *t, const struct tree_config *config) {
        int64_t version, tables, unclean = 0;
        int r = db_int(t->w, &version, "PRAGMA user_version", "");
        if (r == 0)
                r = db_int(t->w, &tables, "SELECT count(*) FROM sqlite_schema", "");
        if (r < 0)
                return r;
        if (version > TREE_SCHEMA_VERSION)
                return -EPROTONOSUPPORT;
        if (version == 0 && tables > 0)
                return -EBADMSG;
        if (version > 0 && (r = meta_get(t->w, "open", &unclean)) < 0)
                return r;
        if ((unclean || db_log_torn(t->w)) && (r = db_check(t->w)) < 0)
                return r;
        if (db_log_torn(t->w) && version > 0 && (r = check_tree_rules(t->w)) != 0)
                return r < 0 ? r : -EBADMSG;
        int64_t newest = 0;
        if (version > 0 && (r = db_int(t->w, &newest, "SELECT max(ino) FROM node", "")) < 0)
                return r;
        t->ino_newest = (uint64_t)newest;
        r = db_begin(t->w);
        if (r == 0 && version == 0)
                r = create_schema(t, config);
        if (r == 0 && version == 0)
                r = FAILPOINT("tree.schema");
        for (unsigned k = 0; k < N_NUMBERS && r == 0; k++) {
                int64_t limit;
                r = meta_get(t->w, number_keys[k], &limit);
                if (r == 0 && k == NUMBER_GEN && limit == 0) /* a new file, or one of a program that did not note it */
                        r = gens_of_rows(t, &limit);
                t->numbers[k].next = t->numbers[k].limit = (uint64_t)MAX(limit, k == NUMBER_INO ? 2 : 1);
        }
        t->inos_known = t->numbers[NUMBER_INO].next;
        if (r == 0)
                r = add_atime(t);
        if (r == 0)
                r = held_open(t);
        if (r == 0)
                r = portable_open(t);
        if (r == 0) /* handles do not outlive the process, clean stop or not */
                r = recover(t);
        if (r == 0)
                r = meta_set(t->w, "open", 1);
        int64_t complete = 0, born = 0;
        if (r == 0)
                r = meta_get(t->w, "born", &born);
        t->born_us = (uint64_t)born;
        if (r == 0)
                r = meta_get(t->w, "complete", &complete);
        atomic_store(&t->complete, complete != 0);
        if (r == 0)
                r = read_cursor(t, ".cursor", &t->cursor);
        if (r == 0)
                r = read_cursor(t, ".answered", &t->answered);
        if (r < 0) {
                db_rollback(t->w);
                return r;
        }
        r = db_commit(t->w);
        if (r == 0)
                r = FAILPOINT("tree.opened");
        if (r == 0)
                r = db_sync(t->w);
        if (r == 0 && version == 0) { /* there is a mark from the beginning, and the file itself says that there is */
                r = mark_all(t);
                if (r == 0)
                        r = db_checkpoint(t->w);
        }
        if (version == 1)
                t->raise = true;
        return r;
}

int tree_open(const struct tree_config *config, struct tree **ret) {
        assert(config->path && config->clock && config->rng && config->counters);
        uint32_t version = TREE_SCHEMA_VERSION;
        int r = 0;
        /* a file of a newer program must not even be switched to another journal mode: its header is looked at first */
        if (!config->vfs && (r = db_version_of(config->path, &version)) < 0 && r != -ENODATA)
                return r; /* it may be an older program's, whose log must not be cut */
        if (version > TREE_SCHEMA_VERSION)
                return -EPROTONOSUPPORT;
        const bool older = version < TREE_SCHEMA_VERSION; /* a program that knows no marks may have written to it since the last one, if there is any */
        struct tree *t = calloc(1, sizeof(*t));
        if (!t)
                return -ENOMEM;
        lock_init(&t->lock, "tree", RANK_TREE);
        lock_init(&t->rlock, "tree readers", RANK_OUTBOX);
        lock_init(&t->alock, "tree asked", RANK_QUEUE);
        cond_init(&t->acond);
        lock_init(&t->slock, "tree sync", RANK_OUTBOX);
        cond_init(&t->rcond);
        cond_init(&t->scond);
        cond_init(&t->gcond);
        t->clock = config->clock;
        t->rng = config->rng;
        t->counters = config->counters;
        t->now_ns = clock_real_ns(t->clock);
        t->sync_first = config->sync_first;
        t->log_full = config->log_full;
        t->power_cut = config->power_cut && !older;
        t->raise = older;
        t->sync_arg = config->sync_arg;
        t->log_pages = config->log_pages ? config->log_pages : LOG_PAGES;
        atomic_store(&t->commits, 1); /* what the last process left is one commit that may not be synced */
        r = arena_new(SCRATCH_BYTES_MAX, &t->scratch);
        struct db_config dbc = { .path = config->path, .vfs = config->vfs, .write = true, .exclusive = config->readers == 0, .cache_kib = 16384, .checkpoint_pages = t->log_pages,
                                 .marked = true, .power_cut = t->power_cut };
        if (r == 0)
                r = db_open(&dbc, &t->w);
        if (r == 0)
                r = open_state(t, config);
        if (r == 0 && config->readers) {
                t->readers = calloc(config->readers, sizeof(*t->readers));
                t->reader_busy = calloc(config->readers, sizeof(*t->reader_busy));
                r = t->readers && t->reader_busy ? 0 : -ENOMEM;
                dbc.write = dbc.marked = false;
                dbc.cache_kib = 2048;
                for (; r == 0 && t->n_readers < config->readers; t->n_readers++)
                        if ((r = db_open(&dbc, &t->readers[t->n_readers])) < 0)
                                break;
        }
        for (size_t i = 0; i < config->n_listeners && r == 0; i++)
                tree_add_listener(t, &config->listener[i]);
        if (r < 0) {
                for (unsigned i = 0; i < t->n_readers; i++)
                        db_close(t->readers[i]);
                t->n_readers = 0;
                db_close(t->w);
                t->w = NULL;
                tree_close(t);
                return r;
        }
        *ret = t;
        return 0;
}

void tree_close(struct tree *t) {
        if (!t)
                return;
        for (unsigned i = 0; i < t->n_readers; i++)
                db_close(t->readers[i]);
        if (t->w) {
                const bool synced = atomic_load(&t->commits) == atomic_load(&t->commits_synced);
                int r = db_begin(t->w);
                if (r == 0)
                        r = meta_set(t->w, "open", 0);
                for (unsigned k = 0; k < N_NUMBERS && r == 0; k++)
                        r = meta_set(t->w, number_keys[k], (int64_t)t->numbers[k].next);
                if (r == 0)
                        r = db_commit(t->w);
                else
                        db_rollback(t->w);
                if (r == 0 && synced) /* else what was not marked stays in the log, where it can be cut off */
                        r = db_sync(t->w);
                if (r == 0 && synced)
                        r = mark_all(t);
                if (r < 0)
                        log_debug("tree event=close_unclean error=%s", err_name(r));
                db_close(t->w);
        }
        free(t->readers);
        free(t->reader_busy);
        for (size_t i = 0; i < t->n_notes; i++)
                free((void *)t->notes[i].name);
        free(t->notes);
        free(t->again);
        free(t->handed);
        arena_free(t->scratch);
        cond_destroy(&t->rcond);
        cond_destroy(&t->scond);
        cond_destroy(&t->gcond);
        lock_destroy(&t->lock);
        lock_destroy(&t->rlock);
        lock_destroy(&t->alock);
        cond_destroy(&t->acond);
        free(t->asked);
        cleanup_open_set_p(&t->born);
        cleanup_open_set_p(&t->namings);
        lock_destroy(&t->slock);
        free(t);
}

void tree_add_listener(struct tree *t, struct listener *l) {
        assert(t->n_listeners < TREE_LISTENERS);
        t->listeners[t->n_listeners++] = l;
}

/* ---- transactions ---- */

int tree_begin(struct tree *t) {
        lock_assert_below(RANK_STAGE_IO); /* see the gate in tree_sync.c */
        lock_take(&t->lock);
        while (t->gate)
                cond_wait(&t->gcond, &t->lock);
        arena_reset(t->scratch);
        assert(t->n_notes == 0 && t->n_again == 0);
        t->wake = false;
        t->cursor_next = t->cursor;
        t->answered_next = t->answered;
        t->now_ns = clock_real_ns(t->clock);
        for (unsigned k = 0; k < N_NUMBERS; k++)
                t->numbers[k].limit_before = t->numbers[k].limit;
        return db_begin(t->w);
}

void tree_count_commit(struct tree *t) {
        counter_add(t->counters, sql_transactions, 1);
        atomic_fetch_add(&t->commits, 1);
}

int tree_end(struct tree *t, int r) {
        if (r >= 0) {
                int c = settle_pending(t);
                r = c < 0 ? c : r;
        }
        if (r >= 0) {
                int c = FAILPOINT("tree.commit");
                r = c < 0 ? c : r;
        }
        if (r >= 0) {
                int c = db_in_transaction(t->w) ? db_commit(t->w) : -EIO;
                if (c < 0)
                        r = c;
                else
                        tree_count_commit(t);
        }
        if (r >= 0) {
                FAILPOINT_HERE("tree.committed");
                t->cursor = t->cursor_next;
                t->answered = t->answered_next;
        } else {
                db_rollback(t->w);
                for (unsigned k = 0; k < N_NUMBERS; k++)
                        t->numbers[k].limit = t->numbers[k].limit_before;
        }
        if (r >= 0 && t->named && t->namings_all)
                t->named(t->named_arg, 0);
        for (size_t i = 0; i < t->namings.n && r >= 0 && t->named && !t->namings_all; i++)
                t->named(t->named_arg, t->namings.ino[i]);
        t->namings.n = 0;
        t->namings_all = false;
        for (size_t i = 0; i < t->n_listeners && r >= 0; i++) {
                if (t->n_notes && t->listeners[i]->notes)
                        t->listeners[i]->notes(t->listeners[i], t->notes, t->n_notes);
                if (t->wake && t->listeners[i]->wake)
                        t->listeners[i]->wake(t->listeners[i]);
        }
        for (size_t i = 0; i < t->n_notes; i++)
                free((void *)t->notes[i].name);
        t->n_notes = 0;
        t->n_again = t->again_at = 0;
        t->is_open = NULL;
        t->content_only = false;
        lock_take(&t->alock);
        if (t->n_asked && t->waiting)
                cond_broadcast(&t->acond);
        t->n_asked = 0;
        lock_drop(&t->alock);
        lock_drop(&t->lock);
        tree_log_grown(t);
        return r;
}

int tree_number(struct tree *t, enum number which, uint64_t *ret) {
        if (t->numbers[which].next >= t->numbers[which].limit) {
                uint64_t limit = t->numbers[which].next + NUMBERS_AT_ONCE;
                int r = meta_set(t->w, number_keys[which], (int64_t)limit);
                if (r < 0)
                        return r;
                t->numbers[which].limit = limit;
        }
        *ret = t->numbers[which].next++;
        return 0;
}

int tree_gen_seen(struct tree *t, uint64_t gen) {
        t->numbers[NUMBER_GEN].next = MAX(t->numbers[NUMBER_GEN].next, gen + 1);
        if (gen == 0 || gen < t->numbers[NUMBER_GEN].limit)
                return 0;
        int r = meta_set(t->w, number_keys[NUMBER_GEN], (int64_t)(gen + NUMBERS_AT_ONCE));
        if (r == 0)
                t->numbers[NUMBER_GEN].limit = gen + NUMBERS_AT_ONCE;
        return r;
}

uint64_t tree_gens(struct tree *t) {
        LOCK_SCOPE(&t->lock);
        return MAX(t->numbers[NUMBER_GEN].limit, t->born_us + 1) - 1;
}

int tree_note(struct tree *t, enum note_kind kind, uint64_t ino, const char *name, size_t n) {
        for (size_t i = t->n_notes; i-- > 0 && i + 8 > t->n_notes;) /* the same one just now */
                if (t->notes[i].kind == kind && t->notes[i].ino == ino && t->notes[i].name_bytes == n && (n == 0 || memcmp(t->notes[i].name, name, n) == 0))
                        return 0;
        if (t->n_notes == t->notes_room) {
                size_t room = t->notes_room ? t->notes_room * 2 : 64;
                struct note *p = reallocarray(t->notes, room, sizeof(*p));
                if (!p)
                        return -ENOMEM;
                t->notes = p;
                t->notes_room = room;
        }
        char *copy = NULL;
        if (name) {
                if (!(copy = malloc(n + 1)))
                        return -ENOMEM;
                memcpy(copy, name, n);
                copy[n] = 0;
        }
        t->notes[t->n_notes++] = (struct note){ .kind = kind, .ino = ino, .name = copy, .name_bytes = n };
        return 0;
}

int tree_sure_of(struct tree *t, uint64_t dir, const char *name, size_t n) {
        bool doubts = false;
        for (size_t i = 0; i < t->n_listeners; i++)
                doubts |= t->listeners[i]->doubts && t->listeners[i]->doubts(t->listeners[i], dir, name, n);
        return doubts ? -ESTALE : 0;
}

void tree_naming(struct tree *t, uint64_t ino) {
        if (!t->named || t->namings_all || (t->namings.n && t->namings.ino[t->namings.n - 1] == ino))
                return;
        t->namings_all = ino == 0 || t->namings.n >= NAMINGS_MAX || open_set_add(&t->namings, ino) < 0;
}

void tree_on_named(struct tree *t, void (*named)(void *arg, uint64_t ino), void *arg) {
        t->named = named;
        t->named_arg = arg;
}

int tree_settle_later(struct tree *t, uint64_t ino) {
        for (size_t i = t->again_at; i < t->n_again; i++) /* those before were settled already, on what was true then */
                if (t->again[i] == ino)
                        return 0;
        if (t->n_again == t->again_room) {
                size_t room = t->again_room ? t->again_room * 2 : 16;
                uint64_t *p = reallocarray(t->again, room, sizeof(*p));
                if (!p)
                        return -ENOMEM;
                t->again = p;
                t->again_room = room;
        }
        t->again[t->n_again++] = ino;
        return 0;
}

/* ---- lists of numbers ---- */

int open_set_add(struct open_set *s, uint64_t ino) {
        if (s->n == s->room) {
                size_t room = s->room ? s->room * 2 : 16;
                uint64_t *p = reallocarray(s->ino, room, sizeof(*p));
                if (!p)
                        return -ENOMEM;
                s->ino = p;
                s->room = room;
        }
        s->ino[s->n++] = ino;
        return 0;
}

void cleanup_open_set_p(struct open_set *s) {
        free(s->ino);
        *s = (struct open_set){0};
}

/* ---- who has what open ---- */

static bool asked_locked(const struct tree *t, uint64_t ino) {
        for (size_t i = 0; i < t->n_asked; i++)
                if (t->asked[i] == ino)
                        return true;
        return false;
}

static int ask_note(struct tree *t, uint64_t ino) {
        LOCK_SCOPE(&t->alock);
        if (asked_locked(t, ino))
                return 0;
        if (t->n_asked == t->asked_room) {
                size_t room = t->asked_room ? t->asked_room * 2 : 16;
                uint64_t *p = reallocarray(t->asked, room, sizeof(*p));
                if (!p)
                        return -ENOMEM;
                t->asked = p;
                t->asked_room = room;
        }
        t->asked[t->n_asked++] = ino;
        return 0;
}

bool tree_asks(struct tree *t, bool (*is_open)(void *arg, uint64_t ino), void *arg, uint64_t ino) {
        lock_assert_held(&t->lock);
        return is_open && (ask_note(t, ino) < 0 || is_open(arg, ino));
}

bool tree_is_open(struct tree *t, uint64_t ino) {
        return tree_asks(t, t->is_open, t->is_open_arg, ino);
}

int tree_get_open(struct tree *t, uint64_t ino, struct node *ret) {
        lock_take(&t->alock);
        t->waiting++;
        while (asked_locked(t, ino))
                cond_wait(&t->acond, &t->alock);
        t->waiting--;
        lock_drop(&t->alock);
        struct nrow row;
        TREE_READ(rd, t);
        int r = row_get(t, rd.db, ino, &row);
        if (r == 0 && row.parent == 0 && ino != INO_ROOT && !(row.bits & (NB_KEPT | NB_UNNAMED)))
                r = -ENOENT;
        if (r == 0)
                row_public(t, &row, ret);
        return r;
}

int tree_born(struct tree *t, uint64_t ino) {
        LOCK_SCOPE(&t->alock);
        return open_set_add(&t->born, ino);
}

void tree_opened(struct tree *t, uint64_t ino) {
        LOCK_SCOPE(&t->alock);
        for (size_t i = 0; i < t->born.n; i++)
                if (t->born.ino[i] == ino) {
                        t->born.ino[i] = t->born.ino[--t->born.n];
                        return;
                }
}

bool tree_is_born(struct tree *t, uint64_t ino) {
        LOCK_SCOPE(&t->alock);
        for (size_t i = 0; i < t->born.n; i++)
                if (t->born.ino[i] == ino)
                        return true;
        return false;
}

unsigned tree_waiting(struct tree *t) {
        LOCK_SCOPE(&t->alock);
        return t->waiting;
}

/* ---- readers ---- */

struct db *tree_reader(struct tree *t) {
        if (t->n_readers == 0) {
                lock_take(&t->lock);
                return t->w;
        }
        LOCK_SCOPE(&t->rlock);
        for (;;) {
                for (unsigned i = 0; i < t->n_readers; i++)
                        if (!t->reader_busy[i]) {
                                t->reader_busy[i] = true;
                                return t->readers[i];
                        }
                cond_wait(&t->rcond, &t->rlock);
        }
}

void tree_reader_put(struct tree *t, struct db *db) {
        if (t->n_readers == 0) {
                lock_drop(&t->lock);
                return;
        }
        LOCK_SCOPE(&t->rlock);
        for (unsigned i = 0; i < t->n_readers; i++)
                if (t->readers[i] == db)
                        t->reader_busy[i] = false;
        cond_signal(&t->rcond);
}

/* ---- settings, totals ---- */

int tree_setting_get(struct tree *t, const char *key, struct buf *ret) {
        TREE_READ(rd, t);
        _cleanup_stmt_ struct db_stmt *s = NULL;
        int r = db_query(rd.db, &s, "SELECT value FROM setting WHERE key=?", "t", key, strlen(key));
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        size_t n;
        const void *p = db_col_blob(s, 0, &n);
        return buf_add(ret, n ? p : "", n);
}

int tree_setting_set(struct tree *t, const char *key, const void *value, size_t n) {
        int r = tree_begin(t);
        if (r == 0)
                r = db_run(t->w, "INSERT INTO setting(key,value) VALUES(?1,?2) ON CONFLICT(key) DO UPDATE SET value=?2", "tb", key, strlen(key), n ? value : "", n);
        return tree_end(t, r);
}

int tree_totals(struct tree *t, struct tree_totals *ret) {
        TREE_READ(rd, t);
        struct tree_totals totals = { .complete = atomic_load(&t->complete) };
        int64_t v;
        int r = db_int(rd.db, &v, "SELECT count(*) FROM node", "");
        totals.nodes = (uint64_t)v;
        if (r == 0)
                r = db_int(rd.db, &v, "SELECT count(*) FROM node WHERE mode >> 12 = 1", "");
        totals.files = (uint64_t)v;
        if (r == 0)
                r = db_int(rd.db, &v, "SELECT count(*) FROM entry", "");
        totals.entries = (uint64_t)v;
        if (r == 0)
                r = db_int(rd.db, &v, "SELECT sum(size) FROM node", "");
        totals.content_bytes = (uint64_t)v;
        if (r == 0)
                *ret = totals;
        return r;
}

int tree_cursor(struct tree *t, struct cursor *ret) {
        LOCK_SCOPE(&t->lock);
        if (id_is_zero(&t->cursor.epoch))
                return -ENOENT;
        *ret = t->cursor;
        return 0;
}

int tree_answered(struct tree *t, struct cursor *ret) {
        LOCK_SCOPE(&t->lock);
        if (t->answered.seq <= t->cursor.seq || !id_equal(&t->answered.epoch, &t->cursor.epoch))
                return -ENOENT;
        *ret = t->answered;
        return 0;
}
