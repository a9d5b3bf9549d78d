/* SPDX-License-Identifier: Apache-2.0 */
/* maintain_backup.c: `tarn-server backup --to DIR` and `tarn-server restore --from DIR --data DIR`. A backup in one file: maintain_file.c.
 *
 * A backup is a directory like a data directory: objects/ and meta.db, and backup.json, which says what it is. It is taken while the server serves:
 *
 *   1. gc waits (one maintenance at a time), so that no object goes away meanwhile
 *   2. the database as of one moment becomes meta.db.new
 *   3. every object that it names and that DIR does not have yet is copied and synced: a second backup into the same DIR copies what is new
 *   4. backup.json.new, then meta.db.new takes its name: from here the backup is the new one
 *   5. objects that the new database does not name are removed from DIR
 * Killed before 4 the former backup in DIR is whole; after it, the new one is. Objects are never changed, so one that is in DIR with its length is the same one; a copy
 * that is there is never replaced by one that may have rotted since. `scrub --data` of a restored backup checks all bytes.
 *
 * Restore makes a new data directory: objects copied, database copied, and then every workspace gets a *new epoch* that names the old one and the seq at which it
 * forks, before the directory becomes usable (`format` is written last). What the old server accepted after the backup is thus known to be missing: clients see 410 with
 * fork_seq, load anew, and keep what only they have above it. Restoring by copying files by hand is found out by the marks (meta_read.c), but without a fork. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"
#include "maintain.h"

#define FORMAT_TEXT "tarn-server 1\n"
#define BACKUP_TEXT "tarn-backup 1"

struct copy { struct maintain *m; struct store *from, *to; uint8_t *bytes; uint64_t objects, bytes_copied, kept, lost; };

static int copy_object(struct copy *c, const struct meta_object *o) {
        uint64_t there;
        int r = c->to->stat(c->to, o->name, &there);

        if (r >= 0 && there == o->bytes) {
                c->kept++;
                return 0;
        }
        if (r >= 0) /* cut: it cannot be from us, who sync first */
                r = c->to->remove(c->to, o->name);
        if (r < 0 && r != -ENOENT)
                return r;
        if (o->bytes == 0 || o->bytes > STORE_OBJECT_BYTES_MAX)
                return -EBADMSG;
        r = c->from->get(c->from, o->name, 0, c->bytes, (size_t)o->bytes);
        if (r == -ENOENT || r == -EIO) {
                log_error("event=object_not_copied object=%s error=%s", o->name, err_name(r));
                c->lost++;
                return 0;
        }
        if (r >= 0)
                r = c->to->put(c->to, o->name, c->bytes, (size_t)o->bytes);
        c->objects++;
        c->bytes_copied += o->bytes;
        if (r >= 0 && c->m)
                r = maintain_pace(c->m, o->bytes);
        return r < 0 ? r : 0;
}

/* All objects that the database names. */
static int copy_objects(struct copy *c, struct meta *db) {
        struct meta_object o = {.id = 0};
        size_t n = 1;
        int r = 0;

        while (r == 0) {
                r = meta_objects(db, o.id, 1, &o, &n);
                if (r < 0 || n == 0)
                        break;
                r = copy_object(c, &o);
        }
        return r;
}

struct surplus { struct meta *db; meta_object_name names[500], last; size_t n; };

static int surplus_each(void *arg, const char *object, uint64_t bytes, int64_t put_ns) {
        struct surplus *s = arg;

        (void)bytes;
        (void)put_ns;
        (void)snprintf(s->last, sizeof s->last, "%s", object);
        (void)snprintf(s->names[s->n++], sizeof s->names[0], "%s", object);
        return s->n == ARRAY_SIZE(s->names);
}

static int surplus_remove(struct store *store, struct meta *db) {
        _cleanup_free_ struct surplus *s = calloc(1, sizeof *s);
        uint64_t bytes;
        int r;

        if (!s)
                return -ENOMEM;
        do {
                s->n = 0;
                r = store->list(store, s->last, surplus_each, s);
                for (size_t i = 0; r >= 0 && i < s->n; i++) {
                        int k = meta_object_find(db, s->names[i], &bytes);

                        if (k == -ENOENT)
                                k = store->remove(store, s->names[i]);
                        if (k < 0)
                                return k;
                }
        } while (r > 0);
        return r;
}

int backup_manifest(struct meta *db, struct buf *ret) {
        _cleanup_arena_ struct arena *a = NULL;
        _cleanup_json_ json_t *list = json_array(), *j = NULL;
        struct meta_workspace *w;
        size_t n;
        int r = arena_new(4u << 20, &a);

        if (r == 0)
                r = meta_workspaces(db, NULL, a, &w, &n);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = json_array_append_new(list, json_pack("{s:s, s:o, s:I}", "name", w[i].name, "epoch", json_hex(w[i].at.epoch.b, ID_BYTES), "seq", (json_int_t)w[i].at.seq)) < 0 ? -ENOMEM : 0;
        if (r == 0)
                j = json_pack("{s:s, s:s, s:I, s:O}", "format", BACKUP_TEXT, "version", TARN_VERSION, "time_s", (json_int_t)(clock_real_ns(clock_system()) / 1000000000), "workspaces", list);
        return r < 0 ? r : j ? json_to_buf(j, ret) : -ENOMEM;
}

static int manifest_write(const char *path, struct meta *db) {
        _cleanup_buf_ struct buf text = BUF_INIT(4u << 20);
        int r = backup_manifest(db, &text);

        return r < 0 ? r : file_replace(path, text.data, text.bytes, 0600);
}

static int file_sync(const char *path) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

        return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

struct paths { char *dir_objects, *db, *db_new, *manifest, *format; };
static void cleanup_paths_p(struct paths *p) {
        free(p->dir_objects);
        free(p->db);
        free(p->db_new);
        free(p->manifest);
        free(p->format);
}

static int paths_in(const char *dir, struct paths *p) {
        p->dir_objects = path_join(dir, "objects");
        p->db = path_join(dir, "meta.db");
        p->db_new = path_join(dir, "meta.db.new");
        p->manifest = path_join(dir, "backup.json");
        p->format = path_join(dir, "format");
        return p->dir_objects && p->db && p->db_new && p->manifest && p->format ? 0 : -ENOMEM;
}

static bool exists(const char *path) {
        struct stat st;

        return stat(path, &st) == 0;
}

/* What SQLite keeps beside a database: left by a backup that was killed, it must not be read with the file that has the name next. */
static int log_remove(const char *db) {
        static const char *const ends[] = {"-wal", "-shm"};

        for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
                char path[PATH_MAX];

                if ((size_t)snprintf(path, sizeof path, "%s%s", db, ends[i]) >= sizeof path)
                        return -ENAMETOOLONG;
                if (unlink(path) < 0 && errno != ENOENT)
                        return -errno;
        }
        return 0;
}

int backup_db_remove(const char *db) {
        return unlink(db) < 0 && errno != ENOENT ? -errno : log_remove(db);
}

static int backup_into(struct maintain *m, const struct paths *p, struct copy *c) {
        struct meta_config mc = {.path = p->db_new, .clock = clock_system(), .rng = rng_system(), .readers = 1};
        struct meta *db = NULL;
        char why[300];
        int r;

        r = backup_db_remove(p->db_new);
        if (r < 0)
                return r;
        r = meta_copy(m->s->meta, p->db_new);
        if (r == 0)
                r = meta_open(&mc, &db, why, sizeof why);
        if (r < 0)
                return r;
        c->m = m;
        c->from = m->s->store;
        r = copy_objects(c, db);
        if (r == 0)
                r = manifest_write(p->manifest, db);
        if (r < 0) {
                meta_close(db);
                return r;
        }
        meta_close(db); /* the copy is one file again: the last connection empties its log */
        FAILPOINT_HERE("backup.copied");
        r = file_sync(p->db_new);
        if (r == 0)
                r = log_remove(p->db);
        if (r == 0 && rename(p->db_new, p->db) < 0)
                r = -errno;
        if (r == 0)
                r = fsync_parent(p->db);
        FAILPOINT_HERE("backup.switched");
        mc.path = p->db;
        if (r == 0)
                r = meta_open(&mc, &db, why, sizeof why);
        if (r == 0) {
                r = surplus_remove(c->to, db);
                meta_close(db);
        }
        return r;
}

int maintain_backup(struct maintain *m) {
        _cleanup_(cleanup_paths_p) struct paths p = {0};
        _cleanup_(cleanup_store_p) struct store *to = NULL;
        _cleanup_free_ uint8_t *bytes = malloc(STORE_OBJECT_BYTES_MAX);
        struct copy c = {.bytes = bytes};
        int r;

        if (m->file)
                return maintain_backup_file(m);
        if (!m->to)
                return buf_add_str(m->out, "a FILE or --to DIR is missing: where the backup goes") < 0 ? -ENOMEM : -EBUSY;
        r = bytes ? paths_in(m->to, &p) : -ENOMEM;
        if (r == 0 && exists(p.format))
                return buf_printf(m->out, "%s is a server's data directory; a backup needs a directory of its own", m->to) < 0 ? -ENOMEM : -EBUSY;
        if (r == 0) {
                r = mkdir_p(m->to, 0700);
                r = r == -EEXIST ? 0 : r;
        }
        if (r == 0)
                r = store_dir_open(p.dir_objects, &to);
        if (r == 0)
                r = store_verify_new(steal_ptr(to), &to);
        c.to = to;
        if (r == 0)
                r = backup_into(m, &p, &c);
        if (r < 0)
                return r;
        log_info("event=backup to=%s objects=%llu bytes=%llu kept=%llu lost=%llu", m->to, (unsigned long long)c.objects, (unsigned long long)c.bytes_copied, (unsigned long long)c.kept,
                 (unsigned long long)c.lost);
        r = maintain_say(m, "objects_copied", c.objects);
        if (r == 0)
                r = maintain_say(m, "bytes_copied", c.bytes_copied);
        if (r == 0)
                r = maintain_say(m, "objects_there_already", c.kept);
        if (r == 0)
                r = maintain_say(m, "objects_not_readable", c.lost);
        return r < 0 ? r : c.lost > 0 ? -EUCLEAN : 0;
}

/* ---- restore ---- */

static int file_copy(const char *from, const char *to) {
        _cleanup_close_ int in = open(from, O_RDONLY | O_CLOEXEC), out = -1;
        _cleanup_free_ uint8_t *piece = malloc(1u << 20);

        if (in < 0)
                return -errno;
        if (!piece)
                return -ENOMEM;
        out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (out < 0)
                return -errno;
        for (uint64_t at = 0;;) {
                ssize_t n = pread_some(in, piece, 1u << 20, at);
                int r;

                if (n < 0)
                        return (int)n;
                if (n == 0)
                        break;
                r = write_full(out, piece, (size_t)n);
                if (r < 0)
                        return r;
                at += (uint64_t)n;
        }
        return fsync(out) < 0 ? -errno : 0;
}

/* New epochs for all. */
static int epochs_new(struct meta *db, struct buf *text) {
        _cleanup_arena_ struct arena *a = NULL;
        struct meta_workspace *w;
        size_t n = 0;
        int r = arena_new(4u << 20, &a);

        if (r == 0)
                r = meta_workspaces(db, NULL, a, &w, &n);
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct id epoch;

                r = meta_epoch_new(db, w[i].ws, &epoch);
                if (r == 0)
                        r = buf_printf(text, "workspace %s: back at seq %llu, new epoch\n", w[i].name, (unsigned long long)w[i].at.seq);
        }
        return r;
}

/* file: the backup is one, or NULL: it is a directory. */
static int restore_into(const char *file, const struct paths *from, const struct paths *to, struct buf *text) {
        _cleanup_(cleanup_store_p) struct store *in = NULL, *out = NULL;
        _cleanup_free_ uint8_t *bytes = malloc(STORE_OBJECT_BYTES_MAX);
        struct meta_config mc = {.path = to->db, .clock = clock_system(), .rng = rng_system(), .readers = 1};
        struct copy c = {.bytes = bytes};
        struct meta *db = NULL;
        char why[300] = "";
        int r = !bytes ? -ENOMEM : file ? 0 : store_dir_open(from->dir_objects, &in);

        if (r == 0)
                r = store_dir_open(to->dir_objects, &out);
        if (r == 0)
                r = file ? backup_file_unpack(file, out, to->db) : file_copy(from->db, to->db);
        if (r == 0)
                r = meta_open(&mc, &db, why, sizeof why);
        c.from = file ? out : in; /* unpacked already: the objects are counted, and what is missing is found */
        c.to = out;
        if (r == 0)
                r = copy_objects(&c, db);
        FAILPOINT_HERE("restore.copied");
        if (r == 0)
                r = epochs_new(db, text);
        meta_close(db);
        if (r < 0 && *why)
                return buf_add_str(text, why) < 0 ? -ENOMEM : r;
        if (r == 0)
                r = buf_printf(text, "%llu objects, %llu bytes%s", (unsigned long long)(c.objects + c.kept), (unsigned long long)c.bytes_copied,
                               c.lost ? "; some objects could not be read: run tarn-server fsck" : "");
        if (r == 0)
                r = fsync_parent(to->db);
        if (r == 0)
                r = file_replace(to->format, FORMAT_TEXT, strlen(FORMAT_TEXT), 0600);
        return r < 0 ? r : c.lost ? -EUCLEAN : 0;
}

int maintain_restore(const char *from, const char *data_dir, struct buf *ret_text) {
        _cleanup_(cleanup_paths_p) struct paths in = {0}, out = {0};
        int r = paths_in(from, &in), k;

        if (r == 0)
                r = paths_in(data_dir, &out);
        if (r < 0)
                return r;
        const char *file = backup_is_file(from) ? from : NULL;
        if (!file && (!exists(in.manifest) || !exists(in.db)))
                return buf_printf(ret_text, "%s is not a backup: it has no backup.json and meta.db (the first backup into a directory is none before it has ended)", from) < 0 ? -ENOMEM : -ENOENT;
        if (exists(out.format) || exists(out.db))
                return buf_printf(ret_text, "%s is a server's data directory already; restore into a new one", data_dir) < 0 ? -ENOMEM : -EEXIST;
        r = file ? backup_file_check(file) : 0;
        if (r < 0)
                return buf_printf(ret_text, r == -EBADMSG ? "%s is no backup, or it was cut or damaged; nothing was touched" : "%s cannot be read; nothing was touched", file) < 0 ? -ENOMEM : r;
        r = mkdir_p(data_dir, 0700);
        if (r == 0 || r == -EEXIST)
                r = restore_into(file, &in, &out, ret_text);
        if (r < 0 && r != -EUCLEAN) {
                if (unlink(out.db) < 0) /* so that a second try is not taken for a data directory */
                        k = -errno;
                else
                        k = 0;
                log_debug("event=restore_failed error=%s removed=%s", err_name(r), err_name(k));
                if (ret_text->bytes == 0)
                        k = buf_printf(ret_text, "restoring from %s failed: %s", from, strerror(-r));
        }
        return r;
}
