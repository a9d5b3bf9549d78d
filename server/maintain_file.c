/* SPDX-License-Identifier: Apache-2.0 */
/* maintain_file.c: a backup as one file: `tarn-server backup FILE`, `tarn-server restore --from FILE`.
 *
 *   magic                      FILE_MAGIC
 *   frames                     name, NUL-padded to 40 bytes; length, 8 bytes, little-endian; that many bytes
 *     backup.json              what it is, for people
 *     NAME (32 hex digits)     an object; all that the database names
 *     meta.db                  the database as of one moment
 *     end                      32 bytes: SHA-256 of all before this frame
 *
 * Made while the server serves, as into a directory (maintain_backup.c): gc waits, the database of one moment is copied to FILE.db, then the objects that it names follow. All goes to FILE.part, which is
 * synced and takes the name at the end: killed before that, the former FILE is whole, and the next backup writes over what is left.
 *
 * Restore reads the file twice: first whole, to see that it is one and that nothing is missing or damaged; only then is something made. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"
#include "maintain.h"

#define FILE_MAGIC "tarn-backup-file 1\n"
#define MAGIC_BYTES (sizeof(FILE_MAGIC) - 1)
#define NAME_BYTES 40u
#define HEAD_BYTES (NAME_BYTES + 8u)
#define PIECE_BYTES (1u << 20)

DEFINE_CLEANUP(sha256_state, sha256_free);

/* ---- writing ---- */

struct out { int fd; struct sha256_state *sum; uint8_t *piece; struct maintain *m; uint64_t objects, bytes, lost; };

static int put(struct out *o, const void *p, size_t n) {
        sha256_add(o->sum, p, n);
        int r = write_full(o->fd, p, n);
        return r < 0 ? r : maintain_pace(o->m, n);
}

static int put_head(struct out *o, const char *name, uint64_t bytes) {
        uint8_t head[HEAD_BYTES] = {0};

        memcpy(head, name, MIN(strlen(name), (size_t)NAME_BYTES - 1));
        for (unsigned i = 0; i < 8; i++)
                head[NAME_BYTES + i] = (uint8_t)(bytes >> (8 * i));
        return put(o, head, sizeof head);
}

static int put_objects(struct out *o, struct meta *db) {
        struct meta_object ob = {.id = 0};
        size_t n = 1;

        for (;;) {
                int r = meta_objects(db, ob.id, 1, &ob, &n);

                if (r < 0 || n == 0)
                        return r;
                if (ob.bytes == 0 || ob.bytes > STORE_OBJECT_BYTES_MAX)
                        return -EBADMSG;
                r = o->m->s->store->get(o->m->s->store, ob.name, 0, o->piece, (size_t)ob.bytes);
                if (r == -ENOENT || r == -EIO) {
                        log_error("event=object_not_copied object=%s error=%s", ob.name, err_name(r));
                        o->lost++;
                        continue;
                }
                if (r >= 0)
                        r = put_head(o, ob.name, ob.bytes);
                if (r >= 0)
                        r = put(o, o->piece, (size_t)ob.bytes);
                if (r < 0)
                        return r;
                o->objects++;
                o->bytes += ob.bytes;
        }
}

static int put_file(struct out *o, const char *path) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct stat st;
        int r;

        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;
        r = put_head(o, "meta.db", (uint64_t)st.st_size);
        for (uint64_t at = 0; r == 0 && at < (uint64_t)st.st_size;) {
                size_t n = (size_t)MIN((uint64_t)st.st_size - at, (uint64_t)PIECE_BYTES);

                r = pread_full(fd, o->piece, n, at);
                if (r == 0)
                        r = put(o, o->piece, n);
                at += n;
        }
        return r;
}

static int put_all(struct out *o, struct meta *db, const char *db_path) {
        _cleanup_buf_ struct buf text = BUF_INIT(4u << 20);
        struct digest sum;
        int r = put(o, FILE_MAGIC, MAGIC_BYTES);

        if (r == 0)
                r = backup_manifest(db, &text);
        if (r == 0)
                r = put_head(o, "backup.json", text.bytes);
        if (r == 0)
                r = put(o, text.data, text.bytes);
        if (r == 0)
                r = put_objects(o, db);
        meta_close(db); /* the copy is one file again: the last connection empties its log */
        if (r == 0)
                r = put_file(o, db_path);
        if (r < 0)
                return r;
        sha256_end(o->sum, &sum);
        r = put_head(o, "end", DIGEST_BYTES);
        if (r == 0)
                r = write_full(o->fd, sum.b, DIGEST_BYTES);
        return r < 0 ? r : fsync(o->fd) < 0 ? -errno : 0;
}

static int backup_file(struct out *o, const char *part, const char *db_path) {
        struct meta_config mc = {.path = db_path, .clock = clock_system(), .rng = rng_system(), .readers = 1};
        struct meta *db = NULL;
        char why[300];
        int r = backup_db_remove(db_path);

        if (r == 0)
                r = meta_copy(o->m->s->meta, db_path);
        if (r == 0)
                r = meta_open(&mc, &db, why, sizeof why);
        if (r < 0)
                return r;
        o->fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (o->fd < 0) {
                r = -errno;
                meta_close(db);
                return r;
        }
        return put_all(o, db, db_path);
}

int maintain_backup_file(struct maintain *m) {
        _cleanup_free_ char *part = NULL, *db_path = NULL;
        _cleanup_free_ uint8_t *piece = malloc(STORE_OBJECT_BYTES_MAX);
        _cleanup_(cleanup_sha256_state_p) struct sha256_state *sum = NULL;
        struct out o = {.fd = -1, .piece = piece, .m = m};
        struct stat st;
        int r = piece ? sha256_new(&sum) : -ENOMEM, k;

        if (r < 0 || asprintf(&part, "%s.part", m->file) < 0 || asprintf(&db_path, "%s.db", m->file) < 0)
                return r < 0 ? r : -ENOMEM;
        if (stat(m->file, &st) == 0 && !S_ISREG(st.st_mode))
                return buf_printf(m->out, "%s is there and is not a file; a directory is given by --to", m->file) < 0 ? -ENOMEM : -EBUSY;
        o.sum = sum;
        r = backup_file(&o, part, db_path);
        if (o.fd >= 0 && close(o.fd) < 0 && r == 0)
                r = -errno;
        if (r == 0)
                r = FAILPOINT("backup.file.synced");
        if (r == 0 && rename(part, m->file) < 0)
                r = -errno;
        FAILPOINT_HERE("backup.file.renamed");
        if (r == 0)
                r = fsync_parent(m->file);
        k = backup_db_remove(db_path);
        if (r < 0 && unlink(part) < 0 && errno != ENOENT)
                k = -errno;
        if (k < 0)
                log_warn("event=backup_left_over path=%s error=%s", part, err_name(k));
        if (r < 0)
                return r;
        log_info("event=backup to=%s objects=%llu bytes=%llu lost=%llu", m->file, (unsigned long long)o.objects, (unsigned long long)o.bytes, (unsigned long long)o.lost);
        r = maintain_say(m, "objects_copied", o.objects);
        if (r == 0)
                r = maintain_say(m, "bytes_copied", o.bytes);
        if (r == 0)
                r = maintain_say(m, "objects_not_readable", o.lost);
        return r < 0 ? r : o.lost > 0 ? -EUCLEAN : 0;
}

/* ---- reading ---- */

struct in { int fd; uint64_t at, size; uint8_t *piece; struct sha256_state *sum; struct store *store; const char *db_path; bool db; };

/* -EBADMSG: cut. */
static int get(struct in *f, void *p, size_t n) {
        if (n > f->size - f->at)
                return -EBADMSG;
        int r = pread_full(f->fd, p, n, f->at);
        f->at += n;
        return r;
}

static int skim(struct in *f, uint64_t bytes, int to) {
        while (bytes > 0) {
                size_t n = (size_t)MIN(bytes, (uint64_t)PIECE_BYTES);
                int r = get(f, f->piece, n);

                if (r == 0 && f->sum)
                        sha256_add(f->sum, f->piece, n);
                if (r == 0 && to >= 0)
                        r = write_full(to, f->piece, n);
                if (r < 0)
                        return r;
                bytes -= n;
        }
        return 0;
}

static int unpack(struct in *f, const char *name, uint64_t bytes) {
        if (strcmp(name, "meta.db") == 0) {
                _cleanup_close_ int fd = open(f->db_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
                int r = fd < 0 ? -errno : skim(f, bytes, fd);

                return r < 0 ? r : fsync(fd) < 0 ? -errno : 0;
        }
        if (strcmp(name, "backup.json") == 0)
                return skim(f, bytes, -1);
        if (store_name_check(name) < 0 || bytes == 0 || bytes > STORE_OBJECT_BYTES_MAX)
                return -EBADMSG;
        int r = get(f, f->piece, (size_t)bytes);
        if (r == 0)
                r = f->store->put(f->store, name, f->piece, (size_t)bytes);
        return r == -EEXIST ? 0 : r;
}

/* One pass. Without a store: only the sum. -EBADMSG: not whole. */
static int walk(struct in *f) {
        char magic[MAGIC_BYTES];
        int r = get(f, magic, sizeof magic);

        if (r == 0 && memcmp(magic, FILE_MAGIC, MAGIC_BYTES) != 0)
                r = -EBADMSG;
        if (r == 0 && f->sum)
                sha256_add(f->sum, magic, sizeof magic);
        while (r == 0) {
                uint8_t head[HEAD_BYTES];
                struct digest sum, told;
                uint64_t bytes = 0;

                r = get(f, head, sizeof head);
                for (unsigned i = 0; i < 8; i++)
                        bytes |= (uint64_t)head[NAME_BYTES + i] << (8 * i);
                if (r < 0 || head[NAME_BYTES - 1] != 0)
                        return r < 0 ? r : -EBADMSG;
                const char *name = (const char *)head;
                if (strcmp(name, "end") == 0) {
                        if (f->sum)
                                sha256_end(f->sum, &sum);
                        r = bytes == DIGEST_BYTES ? get(f, told.b, DIGEST_BYTES) : -EBADMSG;
                        return r < 0 ? r : f->at == f->size && f->db && (!f->sum || digest_equal(&sum, &told)) ? 0 : -EBADMSG;
                }
                if (f->sum)
                        sha256_add(f->sum, head, sizeof head);
                f->db = f->db || strcmp(name, "meta.db") == 0;
                r = f->store ? unpack(f, name, bytes) : skim(f, bytes, -1);
        }
        return r;
}

bool backup_is_file(const char *path) {
        struct stat st;

        return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

int backup_file_check(const char *path) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ uint8_t *piece = malloc(PIECE_BYTES);
        _cleanup_(cleanup_sha256_state_p) struct sha256_state *sum = NULL;
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;
        int r = piece ? sha256_new(&sum) : -ENOMEM;
        struct in f = {.fd = fd, .size = (uint64_t)st.st_size, .piece = piece, .sum = sum};
        return r < 0 ? r : walk(&f);
}

int backup_file_unpack(const char *path, struct store *store, const char *db_path) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ uint8_t *piece = malloc(STORE_OBJECT_BYTES_MAX);
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;
        struct in f = {.fd = fd, .size = (uint64_t)st.st_size, .piece = piece, .store = store, .db_path = db_path};
        return piece ? walk(&f) : -ENOMEM;
}
