/* SPDX-License-Identifier: Apache-2.0 */
/* meta_repair.c: makes rows agree again that a bug or a broken disk put apart, for a database that nobody else uses (the caller holds the data directory's lock and
 * answers no requests).
 *
 *   a name that leads to nothing             goes
 *   a name in no live directory,             into the root as "lost+found-" and the node's id
 *   a live node without a name,
 *   a directory that hangs in a cycle
 *   a directory with several names           keeps the newest
 *   a deleted node without a last place      gets one in the root, so that it can be taken from the trash
 *   a history with a gap                     each revision ends where the next begins
 *   ids, claims, members of nobody,          go
 *   revisions of no node
 *   counters                                 from the rows
 *   a log that does not fit the rows         is forgotten: the horizon moves to the newest event
 *
 * Nothing that holds content is deleted. Rows that change here change without an event; so a workspace whose tree or log was touched gets a new epoch that forks
 * at its present seq: clients load anew and compare, and keep what only they have.
 * Everything of one workspace is one transaction. */
#include <stdio.h>
#include <string.h>

#include "meta_int.h"
#include "meta_maintain.h"

struct repair_arg { uint64_t ws; bool forget_log, epoch; struct id new_epoch; };

/* Runs a statement with (workspace, root) and notes whether it changed rows. */
#define FIX(sql_text)                                                                        \
        do {                                                                                 \
                r = sql_run(t->db, sql_text, "iD", (int64_t)g->ws, &id_root);                \
                if (r < 0)                                                                   \
                        return r;                                                            \
                changed += t->db->ops->changes(t->db);                                       \
        } while (0)

static int fix_names(struct txn *t, struct repair_arg *g, int64_t *ret_changed) {
        int64_t changed = 0;
        int r;
        FIX("UPDATE node SET deleted = 0, kind = 2 WHERE workspace = ?1 AND id = ?2 AND (deleted <> 0 OR kind <> 2)");
        FIX("DELETE FROM entry WHERE workspace = ?1 AND (node = ?2 OR NOT EXISTS (SELECT 1 FROM node n WHERE n.workspace = entry.workspace AND n.id = entry.node AND n.deleted = 0))");
        FIX("DELETE FROM entry WHERE workspace = ?1 AND ?2 IS NOT NULL AND EXISTS (SELECT 1 FROM node n WHERE n.workspace = entry.workspace AND n.id = entry.node AND n.kind = 2) AND EXISTS"
            " (SELECT 1 FROM entry o WHERE o.workspace = entry.workspace AND o.node = entry.node AND o.id > entry.id)");
        FIX("DELETE FROM entry WHERE workspace = ?1 AND ?2 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM node n WHERE n.workspace = entry.workspace AND n.id = entry.parent AND n.deleted = 0 AND n.kind = 2)");
        *ret_changed += changed;
        return 0;
}

static int add_lost(struct txn *t, struct repair_arg *g, int64_t *ret_changed) {
        int64_t changed = 0;
        int r;
        FIX("INSERT INTO entry(workspace, id, parent, name, fold, node, placement, seq) SELECT n.workspace, (SELECT entry_next FROM workspace w WHERE w.id = ?1) + row_number() OVER (ORDER BY n.id),"
            " ?2, CAST('lost+found-' || lower(hex(n.id)) AS BLOB), CASE (SELECT name_rule FROM workspace w WHERE w.id = ?1) WHEN 2 THEN CAST('lost+found-' || lower(hex(n.id)) AS BLOB) END, n.id, n.id, n.seq FROM node n WHERE n.workspace = ?1 AND n.deleted = 0 AND n.id <> ?2 AND NOT EXISTS"
            " (SELECT 1 FROM entry e WHERE e.workspace = n.workspace AND e.node = n.id)");
        *ret_changed += changed;
        FIX("UPDATE workspace SET entry_next = 1 + max(entry_next, coalesce((SELECT max(e.id) FROM entry e WHERE e.workspace = ?1), 0)) WHERE id = ?1 AND ?2 IS NOT NULL");
        return 0;
}

/* Directories from which no way leads up to the root: one at a time loses its name, and is put into the root with what hangs below it. */
static int cut_cycles(struct txn *t, struct repair_arg *g, int64_t *ret_changed) {
        int64_t changed;
        int r;
        do {
                changed = 0;
                FIX("DELETE FROM entry WHERE workspace = ?1 AND node = (WITH RECURSIVE reach(id) AS (SELECT ?2 UNION SELECT e.node FROM reach JOIN entry e ON e.workspace = ?1 AND e.parent = reach.id"
                    " JOIN node n ON n.workspace = ?1 AND n.id = e.node WHERE n.kind = 2) SELECT min(n.id) FROM node n WHERE n.workspace = ?1 AND n.kind = 2 AND n.deleted = 0 AND n.id NOT IN"
                    " (SELECT id FROM reach))");
                int64_t cut = changed;
                r = add_lost(t, g, ret_changed);
                if (r < 0)
                        return r;
                changed = cut;
        } while (changed > 0);
        return 0;
}

static int fix_rest(struct txn *t, struct repair_arg *g) {
        int64_t changed = 0;
        int r;
        FIX("INSERT INTO entry_past(workspace, id, parent, name, node, placement, seq, until_seq) SELECT n.workspace, (SELECT entry_next FROM workspace w WHERE w.id = ?1) + row_number() OVER (ORDER BY"
            " n.id), ?2, CAST('lost+found-' || lower(hex(n.id)) AS BLOB), n.id, n.id, 0, n.seq FROM node n WHERE n.workspace = ?1 AND n.deleted = 1 AND NOT EXISTS"
            " (SELECT 1 FROM entry_past p WHERE p.workspace = n.workspace AND p.node = n.id AND p.until_seq = n.seq)");
        FIX("DELETE FROM alias WHERE workspace = ?1 AND ?2 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM node n WHERE n.workspace = alias.workspace AND n.id = alias.node)");
        FIX("DELETE FROM claim WHERE workspace = ?1 AND ?2 IS NOT NULL AND (raw < 0 OR NOT EXISTS (SELECT 1 FROM account a WHERE a.id = claim.account))");
        FIX("DELETE FROM member WHERE workspace = ?1 AND ?2 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM account a WHERE a.id = member.account)");
        FIX("DELETE FROM revision WHERE workspace = ?1 AND ?2 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM node n WHERE n.workspace = revision.workspace AND n.id = revision.id)");
        FIX("UPDATE revision SET until_seq = coalesce((SELECT min(q.seq) FROM revision q WHERE q.workspace = ?1 AND q.id = revision.id AND q.seq > revision.seq),"
            " (SELECT n.seq FROM node n WHERE n.workspace = ?1 AND n.id = revision.id AND n.seq > revision.seq)) WHERE workspace = ?1 AND ?2 IS NOT NULL AND until_seq <>"
            " coalesce((SELECT min(q.seq) FROM revision q WHERE q.workspace = ?1 AND q.id = revision.id AND q.seq > revision.seq),"
            " (SELECT n.seq FROM node n WHERE n.workspace = ?1 AND n.id = revision.id AND n.seq > revision.seq))");
        FIX("UPDATE workspace SET entry_next = 1 + max(entry_next, coalesce((SELECT max(e.id) FROM entry e WHERE e.workspace = ?1), 0),"
            " coalesce((SELECT max(p.id) FROM entry_past p WHERE p.workspace = ?1), 0)), nodes = (SELECT count(*) FROM node n WHERE n.workspace = ?1 AND n.deleted = 0),"
            " used = (SELECT coalesce(sum(b.raw), 0) FROM block_ref b WHERE b.workspace = ?1), reserved = (SELECT coalesce(sum(c.raw), 0) FROM claim c WHERE c.workspace = ?1),"
            " seq = max(seq, coalesce((SELECT max(n.seq) FROM node n WHERE n.workspace = ?1), 0), coalesce((SELECT max(e.seq) FROM entry e WHERE e.workspace = ?1), 0),"
            " coalesce((SELECT max(o.seq) FROM operation o WHERE o.workspace = ?1), 0)) WHERE id = ?1 AND ?2 IS NOT NULL");
        return 0;
}

static int repair_write(struct txn *t, void *arg, int *ret_refusal) {
        struct repair_arg *g = arg;
        int64_t changed = 0;
        int r = fix_names(t, g, &changed);
        if (r == 0)
                r = add_lost(t, g, &changed);
        if (r == 0)
                r = cut_cycles(t, g, &changed);
        if (r == 0)
                r = fix_rest(t, g);
        if (r < 0)
                return r;
        g->epoch = changed > 0 || g->forget_log;
        if (!g->epoch)
                return 0;
        r = epoch_change(t->db, g->ws, &g->new_epoch);
        if (r == 0 && g->forget_log) {
                r = sql_run(t->db, "UPDATE workspace SET horizon = seq, horizon_mark = mark WHERE id = ?1", "i", (int64_t)g->ws);
                if (r == 0)
                        r = sql_run(t->db, "DELETE FROM event WHERE workspace = ?1", "i", (int64_t)g->ws);
        }
        return r;
}

int meta_repair(struct meta *m, uint64_t ws, bool forget_log, bool *ret_epoch) {
        struct repair_arg g = { .ws = ws, .forget_log = forget_log, .new_epoch = rng_id(m->c.rng) };
        int r = meta_write(m, repair_write, &g);
        if (r == 0)
                *ret_epoch = g.epoch;
        return r;
}

struct refs_arg { uint64_t ws; const struct meta_ref *refs; size_t n; };

static int refs_write(struct txn *t, void *arg, int *ret_refusal) {
        struct refs_arg *g = arg;
        int r = 0;
        for (size_t i = 0; r == 0 && i < g->n; i++) {
                const struct meta_ref *f = &g->refs[i];
                r = f->refs == 0 ? sql_run(t->db, "DELETE FROM block_ref WHERE workspace = ?1 AND hash = ?2", "id", (int64_t)g->ws, &f->hash)
                                 : sql_run(t->db, "INSERT INTO block_ref(workspace, hash, refs, raw) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(workspace, hash) DO UPDATE SET refs = excluded.refs,"
                                                  " raw = excluded.raw", "idii", (int64_t)g->ws, &f->hash, (int64_t)f->refs, (int64_t)f->raw);
        }
        return r == 0 ? sql_run(t->db, "UPDATE workspace SET used = (SELECT coalesce(sum(b.raw), 0) FROM block_ref b WHERE b.workspace = ?1) WHERE id = ?1", "i", (int64_t)g->ws) : r;
}

int meta_refs_set(struct meta *m, uint64_t ws, const struct meta_ref *refs, size_t n) {
        struct refs_arg g = { ws, refs, n };
        return meta_write(m, refs_write, &g);
}

static int lost_write(struct txn *t, void *arg, int *ret_refusal) {
        return sql_run(t->db, "UPDATE block SET bad_ns = ?2 WHERE bad_ns IS NULL AND object = (SELECT id FROM object WHERE name = ?1)", "ti", (const char *)arg, t->now_ns);
}

int meta_object_lost(struct meta *m, const char *object) { return meta_write(m, lost_write, (void *)(uintptr_t)object); }
