/* SPDX-License-Identifier: Apache-2.0 */
/* blob_index.c: the SQLite side of blobs. Tables:
 *
 *   meta(key, value)      'gen': generation of trust, raised at the first open after a change of boot id
 *   blob                  id, key (first 8 bytes of the root, indexed), root, size, depth, param, file, gen, state (2 bits a block), place (u32 a block; pack only),
 *                         sum (XXH3-64 of all that)
 *   list                  blob, refs (36 bytes a block: SHA-256, u32 bytes); none for depth 0, where the content is its only block
 *   lru                   chunk, entries (8 bytes a block: u32 blob | protected << 31, u32 index), 4,096 to a row, the first to go first
 *
 * State and list are apart because the state changes with every block and the list never does: a list of 8,000 blocks is 300 KB.
 *
 * Nothing here is trusted: a row is shown only if its sum is right, the list hashes to the root and fits the size, and everything has the length that it must
 * have. Places and file numbers are checked by the caller against the disk, bytes against sums that are keyed with the block's hash. So a flipped bit or a stale row
 * costs some blocks, not a wrong byte. All numbers are little-endian.
 *
 * Writes are group commits made by blob_flush (blob_evict.c). The log is small (200 pages between checkpoints), because it counts to the limit. */
#include "blob_index.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/digest.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"
#include "db.h"

#define SCHEMA_VERSION 1
#define CHECKPOINT_PAGES 200u
#define FREE_PAGES_MAX 256
#define ORDER_CHUNK 4096u
#define REF_BYTES 36u

struct blob_index {
        struct db *db;
        char *path;
        int64_t gen;
};

static const char schema[] =
        "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE blob(id INTEGER PRIMARY KEY, key INTEGER NOT NULL, root BLOB NOT NULL, size INTEGER NOT NULL, depth INTEGER NOT NULL, param INTEGER NOT NULL,"
        " file INTEGER NOT NULL, gen INTEGER NOT NULL, state BLOB NOT NULL, place BLOB, sum INTEGER NOT NULL);"
        "CREATE INDEX blob_key ON blob(key);"
        "CREATE TABLE list(blob INTEGER PRIMARY KEY, refs BLOB NOT NULL);"
        "CREATE TABLE lru(chunk INTEGER PRIMARY KEY, entries BLOB NOT NULL);"
        "INSERT INTO meta VALUES('gen', 1);"
        "PRAGMA user_version=1;";

#define ROW_COLUMNS "b.id, b.root, b.size, b.depth, b.param, b.file, b.gen, b.state, b.place, l.refs, b.sum FROM blob b LEFT JOIN list l ON l.blob = b.id"

static void put_u32(uint8_t *p, uint32_t v) {
        for (int i = 0; i < 4; i++)
                p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get_u32(const uint8_t *p) {
        return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static int64_t key_of(const struct content *content) {
        uint64_t key = 0;
        for (int i = 7; i >= 0; i--)
                key = key << 8 | content->root.b[i];
        return (int64_t)key;
}

/* What the row's sum covers; place_n is 0 for a sparse file. */
static int64_t row_sum(uint32_t id, const struct content *c, uint32_t file, int64_t gen, const uint8_t *state, size_t state_n, const uint8_t *place, size_t place_n) {
        uint8_t head[4 + DIGEST_BYTES + 8 + 2 + 4 + 8];
        put_u32(head, id);
        memcpy(head + 4, c->root.b, DIGEST_BYTES);
        put_u32(head + 36, (uint32_t)c->size);
        put_u32(head + 40, (uint32_t)(c->size >> 32));
        head[44] = c->depth;
        head[45] = c->param;
        put_u32(head + 46, file);
        put_u32(head + 50, (uint32_t)gen);
        put_u32(head + 54, (uint32_t)((uint64_t)gen >> 32));
        uint64_t sums[3] = { xxh3_64(head, sizeof head), xxh3_64(state, state_n), xxh3_64(place, place_n) };
        return (int64_t)xxh3_64(sums, sizeof sums);
}

void blob_row_free(struct blob_row *row) {
        blocklist_free(&row->list);
        free(row->state);
        free(row->place);
        row->state = NULL;
        row->place = NULL;
}

static int try_open(struct blob_index *ix, bool new_boot) {
        struct db_config config = { .path = ix->path, .write = true, .exclusive = true, .cache_kib = 2048, .checkpoint_pages = CHECKPOINT_PAGES };
        int64_t version, tables;
        int r = db_open(&config, &ix->db);
        if (r == 0)
                r = db_int(ix->db, &version, "PRAGMA user_version", "");
        if (r == 0)
                r = db_int(ix->db, &tables, "SELECT count(*) FROM sqlite_schema", "");
        if (r == 0 && version == 0 && tables == 0) {
                r = db_begin(ix->db);
                if (r == 0)
                        r = db_exec(ix->db, schema);
                if (r == 0)
                        r = FAILPOINT("index.schema");
                if (r == 0)
                        r = db_commit(ix->db);
        } else if (r == 0 && version != SCHEMA_VERSION) {
                r = -EBADMSG;
        }
        if (r == 0) /* its log counts to the limit */
                r = db_exec(ix->db, "PRAGMA journal_size_limit=1048576");
        if (r == 0 && new_boot)
                r = db_run(ix->db, "UPDATE meta SET value = value + 1 WHERE key = 'gen'", "");
        if (r == 0 && new_boot)
                r = db_sync(ix->db);
        if (r == 0)
                r = db_int(ix->db, &ix->gen, "SELECT value FROM meta WHERE key = 'gen'", "");
        if (r == -ENOENT)
                r = -EBADMSG;
        if (r < 0) {
                db_close(ix->db);
                ix->db = NULL;
        }
        return r;
}

static void move_aside(const char *path) {
        static const char *const suffixes[] = { "", "-wal", "-shm" };
        for (size_t i = 0; i < ARRAY_SIZE(suffixes); i++) {
                char from[PATH_MAX], to[PATH_MAX];
                (void)snprintf(from, sizeof from, "%s%s", path, suffixes[i]);
                (void)snprintf(to, sizeof to, "%s.damaged%s", path, suffixes[i]);
                if (i > 0 || rename(from, to) < 0)
                        (void)unlink(from); /* a log without its file is worth nothing */
                if (i > 0)
                        (void)unlink(to);
        }
}

int blob_index_open(const char *dir, bool new_boot, struct blob_index **ret, bool *ret_lost) {
        struct blob_index *ix = calloc(1, sizeof *ix);
        bool lost = false;
        if (!ix)
                return -ENOMEM;
        ix->path = path_join(dir, "blobs.db");
        int r = ix->path ? try_open(ix, new_boot) : -ENOMEM;
        if (r == -EBADMSG || r == -EEXIST || r == -EINVAL) {
                log_debug("index: damaged, moved aside path=%s", ix->path);
                move_aside(ix->path);
                lost = true;
                r = try_open(ix, new_boot);
        }
        if (r < 0) {
                blob_index_close(ix);
                return r;
        }
        *ret = ix;
        *ret_lost = lost;
        return 0;
}

void blob_index_close(struct blob_index *ix) {
        if (!ix)
                return;
        db_close(ix->db);
        free(ix->path);
        free(ix);
}

void blob_index_abandon(struct blob_index *ix) {
        db_close(ix->db);
        ix->db = NULL;
        move_aside(ix->path);
        blob_index_close(ix);
}

/* The row as the statement shows it, checked. -EBADMSG: it makes no sense. */
static int row_load(struct blob_index *ix, struct db_stmt *s, struct blob_row *ret) {
        _cleanup_blob_row_ struct blob_row row = { 0 };
        size_t root_n, state_n, place_n, refs_n;
        const uint8_t *root = db_col_blob(s, 1, &root_n), *state = db_col_blob(s, 7, &state_n);
        const uint8_t *place = db_col_blob(s, 8, &place_n), *refs = db_col_blob(s, 9, &refs_n);
        int64_t id = db_col_int(s, 0), size = db_col_int(s, 2), depth = db_col_int(s, 3), param = db_col_int(s, 4), file = db_col_int(s, 5);
        if (id <= 0 || id >= INT32_MAX || !root || root_n != DIGEST_BYTES || size <= 0 || depth < 0 || depth > 3 || param <= 0 || param > 255 || file < 0 || file >= UINT32_MAX || !state)
                return -EBADMSG;
        row.id = (uint32_t)id;
        row.file = (uint32_t)file;
        row.content = (struct content){ .size = (uint64_t)size, .depth = (uint8_t)depth, .param = (uint8_t)param };
        memcpy(row.content.root.b, root, DIGEST_BYTES);
        if (db_col_int(s, 10) != row_sum(row.id, &row.content, row.file, db_col_int(s, 6), state, state_n, place, place_n))
                return -EBADMSG;
        row.list.param = row.content.param;
        int r = 0;
        if (depth == 0) {
                r = blocklist_load(&row.content, NULL, 1, &row.list);
        } else {
                if (!refs || refs_n % REF_BYTES != 0)
                        return -EBADMSG;
                for (size_t i = 0; r == 0 && i < refs_n / REF_BYTES; i++) {
                        struct blockref ref = { .bytes = get_u32(refs + i * REF_BYTES + DIGEST_BYTES) };
                        memcpy(ref.hash.b, refs + i * REF_BYTES, DIGEST_BYTES);
                        r = blocklist_add(&row.list, &ref);
                }
                struct content proof;
                if (r == 0)
                        r = blocklist_content(&row.list, NULL, &proof);
                if (r == 0 && !content_equal(&proof, &row.content))
                        r = -EBADMSG;
        }
        if (r < 0)
                return r == -ENOMEM ? r : -EBADMSG;
        size_t n = row.list.n;
        if (state_n != (n + 3) / 4 || (row.file == 0 && (!place || place_n != n * 4)))
                return -EBADMSG;
        row.state = malloc(n);
        row.place = row.file == 0 ? reallocarray(NULL, n, sizeof *row.place) : NULL;
        if (!row.state || (row.file == 0 && !row.place))
                return -ENOMEM;
        bool trusted = db_col_int(s, 6) == ix->gen;
        for (size_t i = 0; i < n; i++) {
                row.state[i] = state[i / 4] >> (i % 4 * 2) & (trusted ? ROW_PRESENT | ROW_CHECKED : ROW_PRESENT);
                if (row.place)
                        row.place[i] = get_u32(place + i * 4);
        }
        row.list_saved = true;
        *ret = row;
        row = (struct blob_row){ 0 };
        return 0;
}

int blob_index_scan(struct blob_index *ix, bool (*keep)(void *arg, struct blob_row *row), void *arg, uint32_t *ret_id_max) {
        _cleanup_free_ int64_t *drop = NULL;
        size_t n_drop = 0, room = 0;
        uint32_t id_max = 0;
        struct db_stmt *s = NULL;
        int r = db_query(ix->db, &s, "SELECT " ROW_COLUMNS " ORDER BY b.id", "");
        while (r > 0) {
                struct blob_row row = { 0 };
                int64_t id = db_col_int(s, 0);
                r = row_load(ix, s, &row);
                bool bad = r == -EBADMSG || (r == 0 && !keep(arg, &row));
                if (r == 0)
                        id_max = MAX(id_max, row.id);
                blob_row_free(&row);
                if (bad && n_drop == room) {
                        room = room ? room * 2 : 64;
                        int64_t *more = reallocarray(drop, room, sizeof *drop);
                        if (!more)
                                r = -ENOMEM;
                        else
                                drop = more;
                }
                if (r == 0 || r == -EBADMSG) {
                        if (bad)
                                drop[n_drop++] = id;
                        r = db_step(s);
                }
        }
        if (s)
                db_reset(s);
        if (r < 0)
                return r;
        if (n_drop > 0) {
                r = db_begin(ix->db);
                for (size_t i = 0; r == 0 && i < n_drop; i++) {
                        r = db_run(ix->db, "DELETE FROM blob WHERE id = ?", "i", drop[i]);
                        if (r == 0)
                                r = db_run(ix->db, "DELETE FROM list WHERE blob = ?", "i", drop[i]);
                }
                if (r == 0)
                        r = db_commit(ix->db);
                else
                        db_rollback(ix->db);
        }
        if (r == 0)
                *ret_id_max = id_max;
        return r;
}

int blob_index_find(struct blob_index *ix, const struct content *content, struct blob_row *ret) {
        struct db_stmt *s = NULL;
        int r = db_query(ix->db, &s, "SELECT " ROW_COLUMNS " WHERE b.key = ?", "i", key_of(content));
        bool found = false;
        while (r > 0 && !found) {
                struct blob_row row = { 0 };
                int l = row_load(ix, s, &row);
                if (l == 0 && content_equal(&row.content, content)) {
                        *ret = row;
                        found = true;
                        break;
                }
                blob_row_free(&row);
                r = l < 0 && l != -EBADMSG ? l : db_step(s);
        }
        if (s)
                db_reset(s);
        return found ? 0 : r < 0 ? r : -ENOENT;
}

int blob_index_get(struct blob_index *ix, uint32_t id, struct blob_row *ret) {
        struct db_stmt *s = NULL;
        int r = db_query(ix->db, &s, "SELECT " ROW_COLUMNS " WHERE b.id = ?", "i", (int64_t)id);
        if (r > 0) {
                r = row_load(ix, s, ret);
                db_reset(s);
                return r == -EBADMSG ? -ENOENT : r;
        }
        return r < 0 ? r : -ENOENT;
}

int blob_index_begin(struct blob_index *ix) {
        return db_begin(ix->db);
}

int blob_index_commit(struct blob_index *ix) {
        int r = FAILPOINT("index.commit");
        if (r < 0)
                db_rollback(ix->db);
        else
                r = db_commit(ix->db);
        if (r == 0)
                FAILPOINT_HERE("index.committed");
        return r;
}

int blob_index_trim(struct blob_index *ix) {
        int64_t pages;
        int r = db_int(ix->db, &pages, "PRAGMA freelist_count", "");
        return r < 0 || pages < FREE_PAGES_MAX ? r : db_exec(ix->db, "PRAGMA incremental_vacuum(200)");
}

void blob_index_rollback(struct blob_index *ix) {
        db_rollback(ix->db);
}

int blob_index_save(struct blob_index *ix, const struct blob_row *row) {
        size_t n = row->list.n, state_n = (n + 3) / 4;
        _cleanup_free_ uint8_t *bytes = calloc(1, state_n + n * 4 + (row->list_saved || row->content.depth == 0 ? 0 : n * REF_BYTES));
        if (!bytes)
                return -ENOMEM;
        uint8_t *place = bytes + state_n, *refs = place + n * 4;
        size_t place_n = row->place ? n * 4 : 0;
        for (size_t i = 0; i < n; i++) {
                bytes[i / 4] |= (uint8_t)((row->state[i] & (ROW_PRESENT | ROW_CHECKED)) << (i % 4 * 2));
                if (row->place)
                        put_u32(place + i * 4, row->place[i]);
        }
        int r = db_run(ix->db, "INSERT INTO blob(id, key, root, size, depth, param, file, gen, state, place, sum) VALUES(?,?,?,?,?,?,?,?,?,?,?)"
                               " ON CONFLICT(id) DO UPDATE SET file = excluded.file, gen = excluded.gen, state = excluded.state, place = excluded.place, sum = excluded.sum",
                       "iibiiiiibbi", (int64_t)row->id, key_of(&row->content), row->content.root.b, (size_t)DIGEST_BYTES, (int64_t)row->content.size, (int64_t)row->content.depth,
                       (int64_t)row->content.param, (int64_t)row->file, ix->gen, bytes, state_n, row->place ? place : NULL, place_n,
                       row_sum(row->id, &row->content, row->file, ix->gen, bytes, state_n, place, place_n));
        if (r < 0 || row->list_saved || row->content.depth == 0)
                return r;
        for (size_t i = 0; i < n; i++) {
                memcpy(refs + i * REF_BYTES, row->list.refs[i].hash.b, DIGEST_BYTES);
                put_u32(refs + i * REF_BYTES + DIGEST_BYTES, row->list.refs[i].bytes);
        }
        return db_run(ix->db, "INSERT OR REPLACE INTO list(blob, refs) VALUES(?,?)", "ib", (int64_t)row->id, refs, n * REF_BYTES);
}

int blob_index_remove(struct blob_index *ix, uint32_t id) {
        int r = db_run(ix->db, "DELETE FROM blob WHERE id = ?", "i", (int64_t)id);
        return r < 0 ? r : db_run(ix->db, "DELETE FROM list WHERE blob = ?", "i", (int64_t)id);
}

int blob_index_save_order(struct blob_index *ix, const struct lru_block *order, const bool *is_protected, size_t n) {
        _cleanup_free_ uint8_t *bytes = malloc((size_t)ORDER_CHUNK * 8);
        if (!bytes)
                return -ENOMEM;
        int64_t chunk = 0;
        int r = 0;
        for (size_t first = 0; r == 0 && first < n; first += ORDER_CHUNK, chunk++) {
                size_t count = MIN(n - first, (size_t)ORDER_CHUNK);
                for (size_t i = 0; i < count; i++) {
                        put_u32(bytes + i * 8, order[first + i].blob | (is_protected[first + i] ? UINT32_C(1) << 31 : 0));
                        put_u32(bytes + i * 8 + 4, order[first + i].index);
                }
                r = db_run(ix->db, "INSERT OR REPLACE INTO lru(chunk, entries) VALUES(?,?)", "ib", chunk, bytes, count * 8);
        }
        return r < 0 ? r : db_run(ix->db, "DELETE FROM lru WHERE chunk >= ?", "i", chunk);
}

int blob_index_load_order(struct blob_index *ix, void (*each)(void *arg, struct lru_block b, bool is_protected), void *arg) {
        struct db_stmt *s = NULL;
        int r = db_query(ix->db, &s, "SELECT entries FROM lru ORDER BY chunk DESC", "");
        while (r > 0) {
                size_t n;
                const uint8_t *p = db_col_blob(s, 0, &n);
                for (size_t i = n / 8; p && i-- > 0;) {
                        uint32_t blob = get_u32(p + i * 8);
                        each(arg, (struct lru_block){ blob & INT32_MAX, get_u32(p + i * 8 + 4) }, blob >> 31);
                }
                r = db_step(s);
        }
        if (s)
                db_reset(s);
        return r;
}
