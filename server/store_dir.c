/* SPDX-License-Identifier: Apache-2.0 */
/* store_dir.c: objects as files of a directory.
 *
 * On disk
 *   DIR/a/bc/abcd0123...    one object, 0600, immutable (4,096 leaf directories: a few million objects before one grows large, and yet soon all
 *                           made, so that a put seldom pays for a new one)
 *   DIR/tmp/NAME            an object being written; what a crash left there is removed at the next open
 *
 * put: write the temporary, fsync it, link it to its name (link, not rename: a taken name is refused, never replaced), unlink the temporary, fsync the
 * leaf directory. A fan-out directory is fsynced into its parent before the first put of this process goes below it, whoever made it: another thread that has just done so, or a put whose
 * fsync failed, proves nothing. So an acknowledged object never hangs below a directory that a power cut takes away. Only then 0 is returned.
 *
 * No lock: names are unique, every step is one system call on a path of its own; two writers of one name are decided by link(2). Two
 * threads that want the same fan-out directory may both fsync.
 *
 * Order of list: the fan-out is the name's prefix, so sorted directories in sorted directories give sorted names. A listing keeps one
 * leaf directory's names in memory at a time.
 *
 * Left out: no cache (the kernel's page cache is one), no checksum (verify.c compares after a put; readers check the block's SHA-256). */
#include "store.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"

#define FAN_OUT 4096u
#define DIR_NAMES_MAX 1000000u /* of one leaf directory */

struct store_dir {
        struct store store;
        int dir_fd;
        int tmp_fd;
        atomic_bool durable[2][FAN_OUT]; /* the name of this top, this leaf directory was fsynced */
};

void store_name_new(struct rng *r, char ret[STORE_NAME_BYTES + 1]) {
        struct id id = rng_id(r);

        hex_encode(id.b, sizeof id.b, ret);
}

int store_name_check(const char *object) {
        size_t n = strnlen(object, STORE_NAME_BYTES + 1);

        if (n != STORE_NAME_BYTES || strspn(object, "0123456789abcdef") != n)
                return -EINVAL;
        return 0;
}

/* "a/bc/abcd..." */
static void object_path(const char *object, char ret[STORE_NAME_BYTES + 8]) {
        int n = snprintf(ret, STORE_NAME_BYTES + 8, "%.1s/%.2s/%s", object, object + 1, object);

        assert(n == STORE_NAME_BYTES + 5);
        (void)n;
}

/* Opens the leaf directory of an object; what is missing is made, and durable. */
static int leaf_open(struct store_dir *d, const char *object, int *ret_fd) {
        char top[2] = {object[0], 0}, leaf[3] = {object[1], object[2], 0}, digits[4] = {object[0], object[1], object[2], 0};
        unsigned number = (unsigned)strtoul(digits, NULL, 16);
        _cleanup_close_ int top_fd = -1;
        int fd, r;

        for (int pass = 0; pass < 2; pass++) {
                int base = pass == 0 ? d->dir_fd : top_fd;
                const char *name = pass == 0 ? top : leaf;

                atomic_bool *durable = &d->durable[pass][pass == 0 ? number >> 8 : number];

                if (!atomic_load(durable)) {
                        if (mkdirat(base, name, 0700) < 0 && errno != EEXIST)
                                return -errno;
                        r = fsync_dir(base);
                        if (r < 0)
                                return r;
                        atomic_store(durable, true);
                }
                fd = openat(base, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
                if (fd < 0)
                        return -errno;
                if (pass == 0)
                        top_fd = fd;
                else
                        *ret_fd = fd;
        }
        return 0;
}

static int dir_put(struct store *s, const char *object, const void *p, size_t n) {
        struct store_dir *d = container_of(s, struct store_dir, store);
        _cleanup_close_ int leaf = -1, fd = -1;
        int r;

        if (store_name_check(object) < 0 || n == 0 || n > STORE_OBJECT_BYTES_MAX)
                return -EINVAL;
        r = leaf_open(d, object, &leaf);
        if (r < 0)
                return r;
        fd = openat(d->tmp_fd, object, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0)
                return -errno;
        r = write_full(fd, p, n);
        if (r >= 0)
                r = FAILPOINT("object.fsync");
        if (r >= 0 && fsync(fd) < 0)
                r = -errno;
        if (r >= 0)
                r = FAILPOINT("object.link");
        if (r >= 0 && linkat(d->tmp_fd, object, leaf, object, 0) < 0)
                r = -errno;
        (void)unlinkat(d->tmp_fd, object, 0);
        if (r < 0)
                return r;
        r = FAILPOINT("object.linked");
        if (r >= 0)
                r = fsync_dir(leaf);
        if (r < 0)
                (void)unlinkat(leaf, object, 0);
        return r < 0 ? r : 0;
}

static int dir_get(struct store *s, const char *object, uint64_t off, void *p, size_t n) {
        struct store_dir *d = container_of(s, struct store_dir, store);
        char path[STORE_NAME_BYTES + 8];
        _cleanup_close_ int fd = -1;

        if (store_name_check(object) < 0)
                return -EINVAL;
        object_path(object, path);
        fd = openat(d->dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return -errno;
        return pread_full(fd, p, n, off);
}

static int dir_stat(struct store *s, const char *object, uint64_t *ret_bytes) {
        struct store_dir *d = container_of(s, struct store_dir, store);
        char path[STORE_NAME_BYTES + 8];
        struct stat st;

        if (store_name_check(object) < 0)
                return -EINVAL;
        object_path(object, path);
        if (fstatat(d->dir_fd, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return -ENOENT;
        *ret_bytes = (uint64_t)st.st_size;
        return 0;
}

static int dir_remove(struct store *s, const char *object) {
        struct store_dir *d = container_of(s, struct store_dir, store);
        char path[STORE_NAME_BYTES + 8];

        if (store_name_check(object) < 0)
                return -EINVAL;
        object_path(object, path);
        return unlinkat(d->dir_fd, path, 0) < 0 ? -errno : 0;
}

struct names { char (*name)[STORE_NAME_BYTES + 1]; size_t n, room; };

static int names_compare(const void *a, const void *b) {
        return strcmp(a, b);
}

/* The sorted names in a directory that are `length` hex digits long. */
static int names_read(int base, const char *path, size_t length, struct names *ret) {
        _cleanup_close_ int fd = openat(base, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        struct dirent *e;
        DIR *dir;
        int r = 0;

        ret->n = 0;
        if (fd < 0)
                return errno == ENOENT ? 0 : -errno;
        dir = fdopendir(fd);
        if (!dir)
                return -errno;
        fd = -1;
        while (errno = 0, (e = readdir(dir))) {
                size_t n = strnlen(e->d_name, STORE_NAME_BYTES + 1);

                if (n != length || strspn(e->d_name, "0123456789abcdef") != n)
                        continue;
                if (ret->n == ret->room) {
                        size_t room = ret->room ? ret->room * 2 : 256;
                        void *p;

                        if (room > DIR_NAMES_MAX) {
                                r = -EFBIG;
                                break;
                        }
                        p = reallocarray(ret->name, room, sizeof *ret->name);
                        if (!p) {
                                r = -ENOMEM;
                                break;
                        }
                        ret->name = p;
                        ret->room = room;
                }
                memcpy(ret->name[ret->n++], e->d_name, n + 1);
        }
        if (!e && errno != 0 && r == 0)
                r = -errno;
        (void)closedir(dir);
        if (r == 0 && ret->n > 0)
                qsort(ret->name, ret->n, sizeof *ret->name, names_compare);
        return r;
}

static int list_leaf(struct store_dir *d, const char *path, const char *after, struct names *leaf, int (*each)(void *, const char *, uint64_t, int64_t), void *arg) {
        int r = names_read(d->dir_fd, path, STORE_NAME_BYTES, leaf);

        for (size_t i = 0; r == 0 && i < leaf->n; i++) {
                char object[STORE_NAME_BYTES + 8];
                struct stat st;

                if (strcmp(leaf->name[i], after) <= 0)
                        continue;
                object_path(leaf->name[i], object);
                if (fstatat(d->dir_fd, object, &st, AT_SYMLINK_NOFOLLOW) < 0) {
                        if (errno != ENOENT) /* else removed meanwhile */
                                r = -errno;
                        continue;
                }
                if (S_ISREG(st.st_mode))
                        r = each(arg, leaf->name[i], (uint64_t)st.st_size, (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec);
        }
        return r;
}

static int dir_list(struct store *s, const char *after, int (*each)(void *arg, const char *object, uint64_t bytes, int64_t put_ns), void *arg) {
        struct store_dir *d = container_of(s, struct store_dir, store);
        struct names top = {0}, mid = {0}, leaf = {0};
        int r;

        if (!after)
                after = "";
        r = names_read(d->dir_fd, ".", 1, &top);
        for (size_t i = 0; r == 0 && i < top.n; i++) {
                if (strncmp(top.name[i], after, 1) < 0)
                        continue;
                r = names_read(d->dir_fd, top.name[i], 2, &mid);
                for (size_t j = 0; r == 0 && j < mid.n; j++) {
                        char path[8];

                        if (strncmp(top.name[i], after, 1) == 0 && strncmp(mid.name[j], after + 1, 2) < 0)
                                continue;
                        (void)snprintf(path, sizeof path, "%.1s/%.2s", top.name[i], mid.name[j]);
                        r = list_leaf(d, path, after, &leaf, each, arg);
                }
        }
        free(top.name);
        free(mid.name);
        free(leaf.name);
        return r;
}

static void dir_close(struct store *s) {
        struct store_dir *d = container_of(s, struct store_dir, store);

        if (d->tmp_fd >= 0)
                (void)close(d->tmp_fd);
        if (d->dir_fd >= 0)
                (void)close(d->dir_fd);
        free(d);
}

/* Removes what puts left when the process died. Nobody else writes here: the data directory is locked. */
static int tmp_clean(struct store_dir *d) {
        struct names left = {0};
        int r = names_read(d->tmp_fd, ".", STORE_NAME_BYTES, &left);

        for (size_t i = 0; r == 0 && i < left.n; i++)
                if (unlinkat(d->tmp_fd, left.name[i], 0) < 0 && errno != ENOENT)
                        r = -errno;
        if (r == 0 && left.n > 0)
                log_debug("store=dir unfinished_objects_removed=%zu", left.n);
        free(left.name);
        return r;
}

int store_dir_open(const char *path, struct store **ret) {
        _cleanup_(cleanup_store_p) struct store *s = NULL;
        struct store_dir *d;
        int r;

        d = calloc(1, sizeof *d);
        if (!d)
                return -ENOMEM;
        d->dir_fd = d->tmp_fd = -1;
        s = &d->store;
        *s = (struct store){dir_put, dir_get, dir_stat, dir_remove, dir_list, dir_close};
        r = mkdir_p(path, 0700);
        if (r < 0 && r != -EEXIST)
                return r;
        d->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (d->dir_fd < 0)
                return -errno;
        if (mkdirat(d->dir_fd, "tmp", 0700) < 0 && errno != EEXIST)
                return -errno;
        d->tmp_fd = openat(d->dir_fd, "tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (d->tmp_fd < 0)
                return -errno;
        r = fsync_dir(d->dir_fd);
        if (r < 0)
                return r;
        r = tmp_clean(d);
        if (r < 0)
                return r;
        *ret = steal_ptr(s);
        return 0;
}
