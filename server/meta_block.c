/* SPDX-License-Identifier: Apache-2.0 */
/* meta_block.c: where blocks lie, who may name them, claims.
 *
 * A block (SHA-256) lies once in the store, whoever brought it: its row maps it into an object. Whether somebody may *name* it is a question to one workspace:
 *   1. a kept version there refers to it (block_ref), or
 *   2. the same account has a claim on it there and its bytes have come (a live row in block).
 * Nothing else counts: knowing a hash proves nothing. "Missing?" answers by the same rule, so that asking tells nothing about other workspaces, and
 * claims what it was asked for; "put" claims what it stored.
 *
 * A claim reserves quota by the block's length as soon as that is known to this subject (at put, or when the block is here already); a commit turns it into use. A
 * claim ends 7 days after its last use, or with its upload session (30 days after the session's last use). A dead block (marked by gc) counts as missing
 * everywhere; new bytes bring it back with a new mapping.
 *
 * A bad block (bytes found damaged) is wanted: "missing?" and the commit ask for it again, even where a kept version refers to it, and the first new bytes
 * replace its mapping. Until then it is still given to readers, who check its hash: a disk that failed once may read well the next time, and then the mark goes. */
#include <stdio.h>
#include <string.h>

#include "meta_int.h"

#define S_NS 1000000000ll

int block_right(struct sql *db, uint64_t ws, uint64_t account, const struct digest *hash, uint32_t *ret_raw, uint32_t *ret_reserved) {
        struct sql_stmt *st;
        int r = sql_first(db, &st, "SELECT raw FROM block_ref WHERE workspace = ?1 AND hash = ?2", "id", (int64_t)ws, hash);
        if (r < 0)
                return r;
        if (r > 0) {
                *ret_raw = (uint32_t)sql_int(db, st, 0);
                *ret_reserved = 0;
                sql_reset(db, st);
                r = sql_first(db, &st, "SELECT 1 FROM block WHERE hash = ?1 AND dead_ns IS NULL AND bad_ns IS NULL", "d", hash);
                if (r > 0)
                        sql_reset(db, st);
                return r < 0 ? r : r ? RIGHT_KEPT : RIGHT_WANTED;
        }
        r = sql_first(db, &st, "SELECT b.raw, c.raw FROM claim c JOIN block b ON b.hash = c.hash WHERE c.workspace = ?1 AND c.account = ?2 AND c.hash = ?3 AND b.dead_ns IS NULL"
                               " AND b.bad_ns IS NULL AND c.raw > 0", "iid", (int64_t)ws, (int64_t)account, hash);
        if (r <= 0)
                return r;
        *ret_raw = (uint32_t)sql_int(db, st, 0);
        *ret_reserved = (uint32_t)sql_int(db, st, 1);
        sql_reset(db, st);
        return RIGHT_CLAIM;
}

/* Editors only; a session is made or renewed. *ret_refusal set: stop. */
static int uploader(struct txn *t, const struct meta_subject *subject, uint64_t ws, const struct id *session, struct space **ret, int *ret_refusal) {
        int r = txn_space(t, ws, ret);
        if (r <= 0) {
                *ret_refusal = -ENOENT;
                return r;
        }
        r = role_get(t->db, ws, subject->account);
        if (r < ROLE_EDITOR) {
                *ret_refusal = -EACCES;
                return r < 0 ? r : 0;
        }
        if (!session)
                return 0;
        return sql_run(t->db, "INSERT INTO upload_session(workspace, account, id, expires_ns) VALUES(?1, ?2, ?3, ?4)"
                              " ON CONFLICT(workspace, account, id) DO UPDATE SET expires_ns = excluded.expires_ns", "iiDi", (int64_t)ws, (int64_t)subject->account, session,
                       t->now_ns + META_SESSION_S * S_NS);
}

/* raw 0: length not known yet, keeps what the claim had. */
static int claim_put(struct txn *t, uint64_t ws, uint64_t account, const struct digest *hash, uint32_t raw, const struct id *session) {
        return sql_run(t->db,
                       "INSERT INTO claim(workspace, account, hash, raw, session, expires_ns) VALUES(?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT(workspace, account, hash) DO UPDATE"
                       " SET raw = CASE WHEN claim.raw > excluded.raw THEN claim.raw ELSE excluded.raw END, session = coalesce(excluded.session, claim.session), expires_ns = excluded.expires_ns",
                       "iidibi", (int64_t)ws, (int64_t)account, hash, (int64_t)raw, (const void *)session, (size_t)ID_BYTES, t->now_ns + META_CLAIM_S * S_NS);
}

/* What this claim has reserved: bytes, -1 no claim, or -errno below -1 (as -1 is EPERM, which no database gives). */
static int64_t claim_raw(struct txn *t, uint64_t ws, uint64_t account, const struct digest *hash) {
        struct sql_stmt *st;
        int r = sql_first(t->db, &st, "SELECT raw FROM claim WHERE workspace = ?1 AND account = ?2 AND hash = ?3", "iid", (int64_t)ws, (int64_t)account, hash);
        if (r <= 0)
                return r < 0 ? r : -1;
        int64_t raw = sql_int(t->db, st, 0);
        sql_reset(t->db, st);
        return raw;
}

static int over_quota(const struct space *s, uint64_t more) {
        uint64_t taken = s->used + s->reserved;
        return s->quota && more > 0 && (taken > s->quota || more > s->quota - taken);
}

struct record_arg {
        const struct meta_subject *subject; uint64_t ws; const struct id *session;
        const char *object; uint64_t object_bytes;
        const struct meta_block *blocks; size_t n;
};

static int record_write(struct txn *t, void *arg, int *ret_refusal) {
        struct record_arg *g = arg;
        struct space *s = NULL;
        int r = uploader(t, g->subject, g->ws, g->session, &s, ret_refusal);
        if (r < 0 || *ret_refusal)
                return r;
        uint64_t more = 0;
        for (size_t i = 0; i < g->n; i++) {
                uint32_t raw, reserved;
                r = block_right(t->db, g->ws, g->subject->account, &g->blocks[i].hash, &raw, &reserved);
                if (r < 0)
                        return r;
                if (r == RIGHT_NONE)
                        more += g->blocks[i].raw_bytes;
        }
        if (over_quota(s, more)) {
                *ret_refusal = -EDQUOT;
                return 0;
        }
        int64_t object = 0;
        for (size_t i = 0; i < g->n; i++) {
                const struct meta_block *b = &g->blocks[i];
                r = block_map(t, g->object, g->object_bytes, b, &object);
                if (r < 0)
                        return r;
                uint32_t raw, reserved;
                r = block_right(t->db, g->ws, g->subject->account, &b->hash, &raw, &reserved);
                if (r < 0)
                        return r;
                if (r == RIGHT_KEPT)
                        continue; /* in use here: no claim is needed */
                int64_t had = claim_raw(t, g->ws, g->subject->account, &b->hash);
                if (had < -1)
                        return (int)had;
                r = claim_put(t, g->ws, g->subject->account, &b->hash, b->raw_bytes, g->session);
                if (r < 0)
                        return r;
                if (had < (int64_t)b->raw_bytes) {
                        s->reserved += b->raw_bytes - (uint64_t)MAX(had, (int64_t)0);
                        s->dirty = true;
                }
        }
        return 0;
}

int block_map(struct txn *t, const char *object, uint64_t object_bytes, const struct meta_block *b, int64_t *object_id) {
        struct sql_stmt *st;
        int r = sql_first(t->db, &st, "SELECT 1 FROM block WHERE hash = ?1 AND dead_ns IS NULL AND bad_ns IS NULL", "d", &b->hash);
        if (r != 0) {
                if (r > 0)
                        sql_reset(t->db, st);
                return r < 0 ? r : 0;
        }
        if (*object_id == 0) {
                r = sql_run(t->db, "INSERT INTO object(name, bytes, created_ns) VALUES(?1, ?2, ?3) ON CONFLICT(name) DO NOTHING", "tii", object, (int64_t)object_bytes, t->now_ns);
                if (r == 0)
                        r = sql_first(t->db, &st, "SELECT id FROM object WHERE name = ?1", "t", object);
                if (r <= 0)
                        return r < 0 ? r : -EIO;
                *object_id = sql_int(t->db, st, 0);
                sql_reset(t->db, st);
        }
        return sql_run(t->db,
                       "INSERT INTO block(hash, object, offset, stored, raw, encoding, base, dead_ns) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL) ON CONFLICT(hash) DO UPDATE SET"
                       " object = excluded.object, offset = excluded.offset, stored = excluded.stored, raw = excluded.raw, encoding = excluded.encoding, base = excluded.base,"
                       " dead_ns = NULL, bad_ns = NULL",
                       "diiiiib", &b->hash, *object_id, (int64_t)b->offset, (int64_t)b->stored_bytes, (int64_t)b->raw_bytes, (int64_t)b->encoding,
                       digest_is_zero(&b->base) ? NULL : (const void *)b->base.b, (size_t)DIGEST_BYTES);
}

int meta_blocks_record(struct meta *m, const struct meta_subject *subject, uint64_t ws, const struct id *session, const char *object, uint64_t object_bytes,
                       const struct meta_block *blocks, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (blocks[i].raw_bytes == 0 || blocks[i].raw_bytes > BLOCK_BYTES_MAX || blocks[i].offset > object_bytes || blocks[i].stored_bytes > object_bytes - blocks[i].offset)
                        return -EINVAL;
        struct record_arg g = { subject, ws, session, object, object_bytes, blocks, n };
        return meta_write(m, record_write, &g);
}

struct missing_arg { const struct meta_subject *subject; uint64_t ws; const struct id *session; const struct digest *hashes; size_t n; bool *missing; };

static int missing_write(struct txn *t, void *arg, int *ret_refusal) {
        struct missing_arg *g = arg;
        struct space *s = NULL;
        int r = uploader(t, g->subject, g->ws, g->session, &s, ret_refusal);
        if (r < 0 || *ret_refusal)
                return r;
        if (over_quota(s, 1)) {
                *ret_refusal = -EDQUOT;
                return 0;
        }
        for (size_t i = 0; i < g->n; i++) {
                uint32_t raw, reserved;
                r = block_right(t->db, g->ws, g->subject->account, &g->hashes[i], &raw, &reserved);
                if (r < 0)
                        return r;
                g->missing[i] = r == RIGHT_NONE || r == RIGHT_WANTED;
                if (r == RIGHT_KEPT || r == RIGHT_WANTED)
                        continue;
                r = claim_put(t, g->ws, g->subject->account, &g->hashes[i], 0, g->session);
                if (r < 0)
                        return r;
        }
        return 0;
}

int meta_blocks_missing(struct meta *m, const struct meta_subject *subject, uint64_t ws, const struct id *session, const struct digest *hashes, size_t n, bool *ret_missing) {
        struct missing_arg g = { subject, ws, session, hashes, n, ret_missing };
        return meta_write(m, missing_write, &g);
}

int place_get(struct sql *db, const struct digest *hash, struct arena *a, const char *near, struct meta_place *ret) {
        struct sql_stmt *st;
        struct meta_place p = { .found = false };
        int r = sql_first(db, &st, "SELECT b.offset, b.stored, b.raw, b.encoding, b.base, o.name, b.bad_ns IS NOT NULL FROM block b JOIN object o ON o.id = b.object WHERE b.hash = ?1"
                                   " AND b.dead_ns IS NULL", "d", hash);
        if (r < 0)
                return r;
        if (r > 0) {
                p.block = (struct meta_block){ .hash = *hash, .offset = (uint64_t)sql_int(db, st, 0), .stored_bytes = (uint32_t)sql_int(db, st, 1),
                                               .raw_bytes = (uint32_t)sql_int(db, st, 2), .encoding = (uint8_t)sql_int(db, st, 3) };
                sql_get_digest(db, st, 4, &p.block.base);
                const char *name = sql_text(db, st, 5);
                p.object = near && strcmp(near, name) == 0 ? near : arena_strndup(a, name, strlen(name));
                p.bad = sql_int(db, st, 6) != 0;
                p.found = true;
                sql_reset(db, st);
                if (!p.object)
                        return -ENOMEM;
        }
        *ret = p;
        return 0;
}

int meta_blocks_find(struct meta *m, const struct meta_subject *subject, uint64_t ws, const struct digest *hashes, size_t n, struct arena *a, struct meta_place *ret) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        const char *last = NULL; /* neighbours usually lie in one object */
        for (size_t i = 0; i < n; i++) {
                ret[i] = (struct meta_place){ .found = false };
                uint32_t raw, reserved;
                r = block_right(v.db, ws, subject->account, &hashes[i], &raw, &reserved);
                if (r > 0)
                        r = place_get(v.db, &hashes[i], a, last, &ret[i]);
                if (r < 0)
                        return r;
                if (ret[i].found)
                        last = ret[i].object;
        }
        return 0;
}

int meta_block_again(struct meta *m, const struct meta_place *place, struct meta_place *ret, char name[33]) {
        _cleanup_arena_ struct arena *a = NULL;
        _cleanup_view_ struct view v = { m, NULL };
        struct meta_place now;
        int r = arena_new(4096, &a);
        if (r == 0)
                r = view_begin(m, &v.db);
        if (r == 0)
                r = place_get(v.db, &place->block.hash, a, NULL, &now);
        if (r < 0 || !now.found)
                return r < 0 ? r : -ENOENT;
        (void)snprintf(name, 33, "%s", now.object);
        now.object = name;
        *ret = now;
        return 0;
}

int meta_object_find(struct meta *m, const char *object, uint64_t *ret_bytes) {
        _cleanup_view_ struct view v = { m, NULL };
        int r = view_begin(m, &v.db);
        if (r < 0)
                return r;
        struct sql_stmt *st;
        r = sql_first(v.db, &st, "SELECT bytes FROM object WHERE name = ?1", "t", object);
        if (r <= 0)
                return r < 0 ? r : -ENOENT;
        *ret_bytes = (uint64_t)sql_int(v.db, st, 0);
        sql_reset(v.db, st);
        return 0;
}
