/* SPDX-License-Identifier: Apache-2.0 */
/* meta.c: opening, transactions, housekeeping.
 *
 * Writing: everything goes through the commit queue, whose callbacks are here. A transaction holds db_lock from BEGIN IMMEDIATE to COMMIT. The workspace
 * rows that its steps touch are loaded once (the lock on the workspace: first statement on it in the transaction) and written back once, just before the commit; on
 * a rollback they are simply forgotten. After the commit, with no lock held, each workspace whose seq moved is announced.
 *
 * Reading: a view is one read transaction on one of a few connections; the number of views bounds concurrent reads, others wait. In memory there is one
 * connection, shared with the writer under db_lock. */
#include "meta_int.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "auth.h"

#include "schema.h"

struct news { uint64_t ws, seq; char name[META_NAME_MAX + 1]; };
struct note { size_t n; struct news news[]; };

static int txn_begin(void *arg) {
        struct meta *m = arg;
        lock_take(&m->db_lock);
        m->txn.n_spaces = 0;
        int r = sql_begin(m->writer, true);
        if (r == 0)
                r = m->writer->ops->now_ns(m->writer, &m->txn.now_ns);
        if (r < 0) {
                sql_rollback(m->writer);
                lock_drop(&m->db_lock);
        }
        return r;
}

int space_write(struct txn *t, struct space *s) {
        int r = sql_run(t->db,
                        "UPDATE workspace SET seq = ?2, mark = ?3, entry_next = ?4, time_ns = ?5, used = ?6, reserved = ?7, nodes = ?8, quota = ?9 WHERE id = ?1",
                        "iibiiiiii", (int64_t)s->ws, (int64_t)s->at.seq, s->at.mark, (size_t)8, (int64_t)s->entry_next, s->time_ns, (int64_t)s->used,
                        (int64_t)s->reserved, (int64_t)s->nodes, (int64_t)s->quota);
        if (r == 0)
                s->dirty = false;
        return r;
}

static int txn_commit(void *arg, void **ret_note) {
        struct meta *m = arg;
        struct txn *t = &m->txn;
        size_t n = 0;
        for (size_t i = 0; i < t->n_spaces; i++) {
                if (t->spaces[i].dirty) {
                        int r = space_write(t, &t->spaces[i]);
                        if (r < 0)
                                return r;
                }
                n += t->spaces[i].news;
        }
        struct note *note = NULL;
        if (n > 0 && m->c.notify) {
                note = calloc(1, sizeof *note + n * sizeof note->news[0]);
                if (!note)
                        return -ENOMEM;
                for (size_t i = 0; i < t->n_spaces; i++)
                        if (t->spaces[i].news) {
                                struct news *w = &note->news[note->n++];
                                w->ws = t->spaces[i].ws;
                                w->seq = t->spaces[i].at.seq;
                                memcpy(w->name, t->spaces[i].name, sizeof w->name);
                        }
        }
        int r = sql_commit(m->writer);
        if (r < 0) {
                free(note);
                return r;
        }
        if (m->c.counters)
                counter_add(m->c.counters, sql_transactions, 1);
        lock_drop(&m->db_lock);
        *ret_note = note;
        return 0;
}

static void txn_rollback(void *arg) {
        struct meta *m = arg;
        sql_rollback(m->writer);
        lock_drop(&m->db_lock);
}

static void txn_failed(void *arg, int err) {
        struct meta *m = arg;
        if (err == -ENOSPC && m->c.full)
                m->c.full(m->c.full_arg);
}

static void txn_committed(void *arg, void *p) {
        struct meta *m = arg;
        _cleanup_free_ struct note *note = p;
        for (size_t i = 0; note && i < note->n; i++)
                m->c.notify(m->c.notify_arg, note->news[i].ws, note->news[i].name, note->news[i].seq);
}

int txn_space(struct txn *t, uint64_t ws, struct space **ret) {
        for (size_t i = 0; i < t->n_spaces; i++)
                if (t->spaces[i].ws == ws) {
                        *ret = &t->spaces[i];
                        return 1;
                }
        assert(t->n_spaces < TXN_SPACES_MAX);
        struct sql_stmt *st;
        int r = sql_first(t->db, &st,
                          "SELECT name, epoch, seq, mark, horizon, entry_next, time_ns, quota, used, reserved, nodes, name_rule FROM workspace WHERE id = ?1", "i", (int64_t)ws);
        if (r <= 0)
                return r;
        struct space *s = &t->spaces[t->n_spaces];
        memset(s, 0, sizeof *s);
        s->ws = ws;
        (void)snprintf(s->name, sizeof s->name, "%s", sql_text(t->db, st, 0));
        sql_get_id(t->db, st, 1, &s->at.epoch);
        s->at.seq = (uint64_t)sql_int(t->db, st, 2);
        size_t n;
        const void *mark = sql_blob(t->db, st, 3, &n);
        if (mark && n == 8)
                memcpy(s->at.mark, mark, 8);
        s->horizon = (uint64_t)sql_int(t->db, st, 4);
        s->entry_next = (uint64_t)sql_int(t->db, st, 5);
        s->time_ns = sql_int(t->db, st, 6);
        s->quota = (uint64_t)sql_int(t->db, st, 7);
        s->used = (uint64_t)sql_int(t->db, st, 8);
        s->reserved = (uint64_t)sql_int(t->db, st, 9);
        s->nodes = (uint64_t)sql_int(t->db, st, 10);
        s->portable = sql_int(t->db, st, 11) == NAMES_PORTABLE;
        sql_reset(t->db, st);
        t->n_spaces++;
        *ret = s;
        return 1;
}

struct write_job {
        struct commit_job job;
        struct meta *m;
        int (*fn)(struct txn *t, void *arg, int *ret_refusal);
        void *arg;
        int result;
};

static int write_step(struct commit_job *j) {
        struct write_job *w = container_of(j, struct write_job, job);
        int refusal = 0;
        int r = w->fn(&w->m->txn, w->arg, &refusal);
        if (r < 0)
                return r;
        w->result = refusal;
        return 0;
}
static void write_nothing(struct commit_job *j) { (void)j; }
static int write_give_up(struct commit_job *j, int err) {
        container_of(j, struct write_job, job)->result = err;
        return 0;
}

int meta_write(struct meta *m, int (*fn)(struct txn *t, void *arg, int *ret_refusal), void *arg) {
        struct write_job w = {
                .job = { .step = write_step, .rewind = write_nothing, .keep = write_nothing, .give_up = write_give_up },
                .m = m, .fn = fn, .arg = arg, .result = -EIO,
        };
        int r = commit_queue_run(m->queue, &w.job);
        return r < 0 ? r : w.result;
}

int view_begin(struct meta *m, struct sql **ret) {
        if (m->in_memory) {
                lock_take(&m->db_lock);
                int r = sql_begin(m->writer, false);
                if (r < 0) {
                        lock_drop(&m->db_lock);
                        return r;
                }
                *ret = m->writer;
                return 0;
        }
        struct sql *db;
        {
                LOCK_SCOPE(&m->views_lock);
                while (m->n_free == 0)
                        cond_wait(&m->views_free, &m->views_lock);
                db = m->views[--m->n_free];
        }
        int r = sql_begin(db, false);
        if (r < 0) {
                view_end(m, db);
                return r;
        }
        *ret = db;
        return 0;
}

void view_end(struct meta *m, struct sql *db) {
        sql_rollback(db);
        if (m->in_memory) {
                lock_drop(&m->db_lock);
                return;
        }
        LOCK_SCOPE(&m->views_lock);
        m->views[m->n_free++] = db;
        cond_signal(&m->views_free);
}

static int open_database(struct meta *m, const char *path, char *ret_why, size_t n) {
        int r = sql_sqlite_open(path, m->c.vfs, true, m->c.clock, &m->writer);
        if (r == 0)
                r = schema_open(m->writer);
        if (r == -EPROTONOSUPPORT)
                (void)snprintf(ret_why, n, "%s was written by a newer tarn-server (schema above %d); nothing was changed", path, META_SCHEMA_VERSION);
        else if (r == -EBADMSG)
                (void)snprintf(ret_why, n, "%s is damaged or not a database of tarn-server", path);
        else if (r < 0)
                (void)snprintf(ret_why, n, "cannot open %s: %s", path, strerror(-r));
        if (r < 0 || m->in_memory)
                return r;
        size_t readers = m->c.readers ? MIN(m->c.readers, META_READERS_MAX) : 3;
        for (size_t i = 0; i < readers; i++) {
                r = sql_sqlite_open(path, m->c.vfs, false, m->c.clock, &m->all_views[i]);
                if (r < 0) {
                        (void)snprintf(ret_why, n, "cannot open %s for reading: %s", path, strerror(-r));
                        return r;
                }
                m->views[m->n_free++] = m->all_views[i];
                m->n_views++;
        }
        return 0;
}

int meta_open(const struct meta_config *c, struct meta **ret, char *ret_why, size_t n) {
        assert(c->clock && c->rng);
        int r = auth_init();
        if (r < 0)
                return r;
        struct meta *m = calloc(1, sizeof *m);
        if (!m)
                return -ENOMEM;
        m->c = *c;
        const char *path = c->path ? c->path : ":memory:";
        m->in_memory = strcmp(path, ":memory:") == 0;
        m->scratch = (struct buf)BUF_INIT(64u << 20);
        m->path = strdup(path);
        lock_init(&m->db_lock, "meta db", RANK_TREE);
        lock_init(&m->views_lock, "meta views", RANK_QUEUE);
        cond_init(&m->views_free);
        r = m->path ? open_database(m, path, ret_why, n) : -ENOMEM;
        if (r == 0) {
                m->txn.m = m;
                m->txn.db = m->writer;
                struct commit_queue_config q = {
                        .begin = txn_begin, .commit = txn_commit, .rollback = txn_rollback, .committed = txn_committed, .failed = txn_failed, .arg = m,
                        .threaded = c->threaded, .clock = c->clock,
                };
                r = commit_queue_new(&q, &m->queue);
        }
        if (r < 0) {
                meta_close(m);
                return r;
        }
        *ret = m;
        return 0;
}

void meta_close(struct meta *m) {
        if (!m)
                return;
        commit_queue_free(m->queue);
        assert(m->n_free == m->n_views);
        for (size_t i = 0; i < META_READERS_MAX; i++)
                sql_close(m->all_views[i]);
        sql_close(m->writer);
        buf_free(&m->scratch);
        free(m->path);
        cond_destroy(&m->views_free);
        lock_destroy(&m->views_lock);
        lock_destroy(&m->db_lock);
        free(m);
}

static int ready_write(struct txn *t, void *arg, int *ret_refusal) {
        return sql_run(t->db, "INSERT INTO meta(key, value) VALUES('ready_ns', ?1) ON CONFLICT(key) DO UPDATE SET value = excluded.value", "i", t->now_ns);
}

int meta_ready(struct meta *m) {
        struct meta_stats stats;
        int r = meta_stats(m, &stats);
        return r < 0 ? r : meta_write(m, ready_write, NULL);
}

static int tidy_write(struct txn *t, void *arg, int *ret_refusal) {
        int r = sql_run(t->db, "DELETE FROM token WHERE expires_ns IS NOT NULL AND expires_ns <= ?1", "i", t->now_ns);
        if (r == 0)
                r = sql_run(t->db, "DELETE FROM device WHERE NOT EXISTS (SELECT 1 FROM token WHERE token.device = device.id)", "");
        if (r == 0)
                r = sql_run(t->db, "DELETE FROM upload_session WHERE expires_ns <= ?1", "i", t->now_ns);
        if (r == 0)
                r = sql_run(t->db, "DELETE FROM claim WHERE expires_ns <= ?1 AND (session IS NULL OR NOT EXISTS (SELECT 1 FROM upload_session s"
                                   " WHERE s.workspace = claim.workspace AND s.account = claim.account AND s.id = claim.session))", "i", t->now_ns);
        if (r < 0)
                return r;
        /* What is reserved follows from the claims that are left. Cached rows go first, so that none is written back over this. */
        for (size_t i = 0; i < t->n_spaces; i++)
                if (t->spaces[i].dirty && (r = space_write(t, &t->spaces[i])) < 0)
                        return r;
        r = sql_run(t->db, "UPDATE workspace SET reserved = (SELECT coalesce(sum(raw), 0) FROM claim WHERE claim.workspace = workspace.id)", "");
        for (size_t i = 0; r == 0 && i < t->n_spaces; i++) {
                struct sql_stmt *st;
                r = sql_first(t->db, &st, "SELECT reserved FROM workspace WHERE id = ?1", "i", (int64_t)t->spaces[i].ws);
                if (r == 1) {
                        t->spaces[i].reserved = (uint64_t)sql_int(t->db, st, 0);
                        sql_reset(t->db, st);
                        r = 0;
                }
        }
        return r;
}

int meta_tidy(struct meta *m) { return meta_write(m, tidy_write, NULL); }

int meta_stats(struct meta *m, struct meta_stats *ret) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        struct sql_stmt *st;
        struct meta_stats s = { 0 };
        r = sql_first(v.db, &st,
                      "SELECT (SELECT count(*) FROM account), (SELECT count(*) FROM workspace), (SELECT coalesce(sum(nodes), 0) FROM workspace),"
                      " (SELECT coalesce(sum(seq - horizon), 0) FROM workspace)", "");
        if (r < 0)
                return r;
        s.users = (uint64_t)sql_int(v.db, st, 0);
        s.workspaces = (uint64_t)sql_int(v.db, st, 1);
        s.nodes = (uint64_t)sql_int(v.db, st, 2);
        s.events = (uint64_t)sql_int(v.db, st, 3);
        sql_reset(v.db, st);
        r = sql_first(v.db, &st, "SELECT (SELECT count(*) FROM operation), count(*), coalesce(sum(raw), 0), coalesce(sum(stored), 0), (SELECT count(*) FROM object),"
                                 " (SELECT count(*) FROM claim) FROM block", "");
        if (r < 0)
                return r;
        s.operations = (uint64_t)sql_int(v.db, st, 0);
        s.blocks = (uint64_t)sql_int(v.db, st, 1);
        s.block_bytes = (uint64_t)sql_int(v.db, st, 2);
        s.stored_bytes = (uint64_t)sql_int(v.db, st, 3);
        s.objects = (uint64_t)sql_int(v.db, st, 4);
        s.claims = (uint64_t)sql_int(v.db, st, 5);
        sql_reset(v.db, st);
        struct commit_queue_stats q;
        commit_queue_stats_get(m->queue, &q);
        s.transactions = q.transactions;
        s.steps = q.steps;
        s.rollbacks = q.rollbacks;
        s.largest_group = q.largest_group;
        *ret = s;
        return 0;
}
