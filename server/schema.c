/* SPDX-License-Identifier: Apache-2.0 */
/* schema.c: the tables. docs/server-schema.md explains them; ideas in short:
 *
 *   workspace   one row per tree; every mutation takes seq, mark, entry ids and quota from it, so that mutations of one workspace are serial
 *   node        the tree's nodes, live and deleted (a deleted one keeps its last version: trash, revival), latest version on the row
 *   entry       live names, apart from nodes; key (workspace, id), ids from the workspace row, never reused
 *   event       the log: one packed event per seq, as the wire has it
 *   revision    node rows as they were before they changed, valid for seq .. until_seq - 1; with node: versions, trash, the tree at a moment
 *   entry_past  likewise for names
 *   operation   accepted operations: request digest and what a retry must be told; no expiry
 *   alias       node ids that were merged into others
 *   block       bytes -> object, offset, length, encoding; dead_ns: gc has marked it (dead counts as missing)
 *   block_ref   which blocks a workspace's kept versions refer to. refs counts runs: +1 when a version of a node holds a block that the version before it (of
 *               that node) does not hold. A commit therefore touches only what changed, and removing any version can be worked out from its two neighbours.
 *               bad_ns: its bytes were found damaged: still read (and checked), but wanted anew: who has them is asked to send them
 *   epoch       epochs before the present one and up to which seq the present line shares theirs
 *   claim       uploads not yet committed: per workspace, subject and block; with expiry of their own or that of an upload session
 *
 * Schema 2 adds block.bad_ns and epoch; a database of schema 1 is brought up in one transaction when it is opened. A newer schema is refused before
 * anything is written. */
#include "schema.h"

#include <errno.h>
#include <string.h>

#include "base/failpoint.h"
#include "meta.h"

static const char schema_1[] =
        "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE account(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, password TEXT, created_ns INTEGER NOT NULL);"
        "CREATE TABLE device(id BLOB PRIMARY KEY, account INTEGER NOT NULL, name TEXT NOT NULL, script INTEGER NOT NULL, created_ns INTEGER NOT NULL,"
        " seen_ns INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE INDEX device_account ON device(account, created_ns);"
        "CREATE TABLE token(hash BLOB PRIMARY KEY, account INTEGER NOT NULL, device BLOB NOT NULL, kind INTEGER NOT NULL, created_ns INTEGER NOT NULL,"
        " expires_ns INTEGER) WITHOUT ROWID;"
        "CREATE INDEX token_device ON token(device);"
        "CREATE INDEX token_expires ON token(expires_ns) WHERE expires_ns IS NOT NULL;"
        "CREATE TABLE workspace(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, owner INTEGER NOT NULL, created_ns INTEGER NOT NULL,"
        " epoch BLOB NOT NULL, predecessor BLOB, fork_seq INTEGER NOT NULL, seq INTEGER NOT NULL, mark BLOB NOT NULL, horizon INTEGER NOT NULL, horizon_mark BLOB NOT NULL,"
        " entry_next INTEGER NOT NULL, time_ns INTEGER NOT NULL, name_rule INTEGER NOT NULL, unicode INTEGER, quota INTEGER NOT NULL, used INTEGER NOT NULL,"
        " reserved INTEGER NOT NULL, nodes INTEGER NOT NULL);"
        "CREATE TABLE member(workspace INTEGER NOT NULL, account INTEGER NOT NULL, role INTEGER NOT NULL, PRIMARY KEY(workspace, account)) WITHOUT ROWID;"
        "CREATE INDEX member_account ON member(account, workspace);"
        "CREATE TABLE node(workspace INTEGER NOT NULL, id BLOB NOT NULL, kind INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,"
        " rdev INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, btime_ns INTEGER NOT NULL, target BLOB, xattrs BLOB,"
        " root BLOB, size INTEGER NOT NULL, depth INTEGER NOT NULL, param INTEGER NOT NULL, version BLOB, seq INTEGER NOT NULL, deleted INTEGER NOT NULL,"
        " PRIMARY KEY(workspace, id)) WITHOUT ROWID;"
        "CREATE INDEX node_deleted ON node(workspace, seq) WHERE deleted = 1;"
        "CREATE TABLE entry(workspace INTEGER NOT NULL, id INTEGER NOT NULL, parent BLOB NOT NULL, name BLOB NOT NULL, fold BLOB, node BLOB NOT NULL,"
        " placement BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(workspace, id)) WITHOUT ROWID;"
        "CREATE UNIQUE INDEX entry_name ON entry(workspace, parent, name);"
        "CREATE UNIQUE INDEX entry_fold ON entry(workspace, parent, fold) WHERE fold IS NOT NULL;"
        "CREATE INDEX entry_node ON entry(workspace, node);"
        "CREATE TABLE event(workspace INTEGER NOT NULL, seq INTEGER NOT NULL, mark BLOB NOT NULL, op BLOB NOT NULL, job BLOB, actor INTEGER NOT NULL, device BLOB,"
        " time_ns INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY(workspace, seq)) WITHOUT ROWID;"
        "CREATE TABLE revision(workspace INTEGER NOT NULL, id BLOB NOT NULL, kind INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,"
        " rdev INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, btime_ns INTEGER NOT NULL, target BLOB, xattrs BLOB,"
        " root BLOB, size INTEGER NOT NULL, depth INTEGER NOT NULL, param INTEGER NOT NULL, version BLOB, seq INTEGER NOT NULL, deleted INTEGER NOT NULL,"
        " until_seq INTEGER NOT NULL, PRIMARY KEY(workspace, id, seq)) WITHOUT ROWID;"
        "CREATE TABLE entry_past(workspace INTEGER NOT NULL, id INTEGER NOT NULL, parent BLOB NOT NULL, name BLOB NOT NULL, node BLOB NOT NULL, placement BLOB NOT NULL,"
        " seq INTEGER NOT NULL, until_seq INTEGER NOT NULL, PRIMARY KEY(workspace, parent, until_seq, id, seq)) WITHOUT ROWID;"
        "CREATE INDEX entry_past_node ON entry_past(workspace, node, until_seq);"
        "CREATE TABLE operation(workspace INTEGER NOT NULL, id BLOB NOT NULL, digest BLOB NOT NULL, code INTEGER NOT NULL, seq INTEGER NOT NULL, merged_into BLOB,"
        " node BLOB NOT NULL, placement BLOB, version BLOB, PRIMARY KEY(workspace, id)) WITHOUT ROWID;"
        "CREATE TABLE alias(workspace INTEGER NOT NULL, id BLOB NOT NULL, node BLOB NOT NULL, PRIMARY KEY(workspace, id)) WITHOUT ROWID;"
        "CREATE TABLE object(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL, created_ns INTEGER NOT NULL);"
        "CREATE TABLE block(hash BLOB PRIMARY KEY, object INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL, raw INTEGER NOT NULL,"
        " encoding INTEGER NOT NULL, base BLOB, dead_ns INTEGER) WITHOUT ROWID;"
        "CREATE INDEX block_object ON block(object);"
        "CREATE TABLE block_ref(workspace INTEGER NOT NULL, hash BLOB NOT NULL, refs INTEGER NOT NULL, raw INTEGER NOT NULL, PRIMARY KEY(workspace, hash)) WITHOUT ROWID;"
        "CREATE INDEX block_ref_hash ON block_ref(hash);"
        "CREATE TABLE claim(workspace INTEGER NOT NULL, account INTEGER NOT NULL, hash BLOB NOT NULL, raw INTEGER NOT NULL, session BLOB, expires_ns INTEGER NOT NULL,"
        " PRIMARY KEY(workspace, account, hash)) WITHOUT ROWID;"
        "CREATE INDEX claim_hash ON claim(hash);"
        "CREATE INDEX claim_expires ON claim(expires_ns);"
        "CREATE TABLE upload_session(workspace INTEGER NOT NULL, account INTEGER NOT NULL, id BLOB NOT NULL, expires_ns INTEGER NOT NULL,"
        " PRIMARY KEY(workspace, account, id)) WITHOUT ROWID;"
        "INSERT INTO meta(key, value) VALUES('schema', 1);";

static const char schema_2[] =
        "ALTER TABLE block ADD COLUMN bad_ns INTEGER;"
        "CREATE INDEX block_dead ON block(dead_ns) WHERE dead_ns IS NOT NULL;"
        "CREATE INDEX block_bad ON block(bad_ns) WHERE bad_ns IS NOT NULL;"
        "CREATE TABLE epoch(workspace INTEGER NOT NULL, id BLOB NOT NULL, fork_seq INTEGER NOT NULL, PRIMARY KEY(workspace, id)) WITHOUT ROWID;"
        "INSERT INTO epoch(workspace, id, fork_seq) SELECT id, predecessor, fork_seq FROM workspace WHERE predecessor IS NOT NULL;"
        "UPDATE meta SET value = 2 WHERE key = 'schema';";

/* Runs what leads from `version` (0: nothing there) to the present schema, in one transaction. */
static int upgrade(struct sql *db, int64_t version) {
        int r = sql_begin(db, true);
        if (r < 0)
                return r;
        if (version < 1)
                r = db->ops->exec(db, schema_1);
        if (r == 0 && version < 2)
                r = db->ops->exec(db, schema_2);
        if (r == 0)
                r = FAILPOINT("server.schema");
        if (r == 0)
                r = sql_commit(db);
        if (r < 0)
                sql_rollback(db);
        return r;
}

int schema_open(struct sql *db) {
        struct sql_stmt *st;
        bool any, ours;
        int r = db->ops->tables(db, "meta", &any, &ours);
        if (r < 0)
                return r;
        if (any) {
                if (!ours)
                        return -EBADMSG;
                r = sql_first(db, &st, "SELECT value FROM meta WHERE key = 'schema'", "");
                if (r < 0)
                        return r;
                int64_t version = r ? sql_int(db, st, 0) : 0;
                sql_reset(db, st);
                if (version > META_SCHEMA_VERSION)
                        return -EPROTONOSUPPORT;
                if (version < 1)
                        return -EBADMSG;
                r = db->ops->start(db);
                if (r == 0 && version < META_SCHEMA_VERSION)
                        r = upgrade(db, version);
                return r < 0 ? r : db->ops->tune(db);
        }
        r = db->ops->start(db);
        if (r == 0)
                r = upgrade(db, 0);
        return r < 0 ? r : db->ops->tune(db);
}
