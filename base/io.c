/* SPDX-License-Identifier: Apache-2.0 */
/* io.c: whole reads and writes, durable replacement of a file, locks.
 *
 * Every loop goes on after EINTR and after a short transfer; a transfer of nothing is an error (-EIO), never an endless loop. Replacing a file is
 * temp + fsync + rename + fsync of the directory: after a power cut there is the old or the new file, whole. A lock is flock(2): it goes with
 * the process however that ends, so there is no stale lock to judge. No state. */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/failpoint.h"

ssize_t pread_some(int fd, void *p, size_t n, uint64_t off) {
        size_t done = 0;
        while (done < n) {
                ssize_t r = pread(fd, (char *)p + done, n - done, (off_t)(off + done));
                if (r < 0 && errno == EINTR)
                        continue;
                if (r < 0)
                        return -errno;
                if (r == 0)
                        break;
                done += (size_t)r;
        }
        return (ssize_t)done;
}

int pread_full(int fd, void *p, size_t n, uint64_t off) {
        ssize_t r = pread_some(fd, p, n, off);
        if (r < 0)
                return (int)r;
        return (size_t)r == n ? 0 : -EIO;
}

int pwrite_full(int fd, const void *p, size_t n, uint64_t off) {
        size_t done = 0;
        while (done < n) {
                ssize_t r = pwrite(fd, (const char *)p + done, n - done, (off_t)(off + done));
                if (r < 0 && errno == EINTR)
                        continue;
                if (r <= 0)
                        return r < 0 ? -errno : -EIO;
                done += (size_t)r;
        }
        return 0;
}

int write_full(int fd, const void *p, size_t n) {
        size_t done = 0;
        while (done < n) {
                ssize_t r = write(fd, (const char *)p + done, n - done);
                if (r < 0 && errno == EINTR)
                        continue;
                if (r <= 0)
                        return r < 0 ? -errno : -EIO;
                done += (size_t)r;
        }
        return 0;
}

static int is_dir(const char *path) {
        struct stat st;
        if (stat(path, &st) < 0)
                return -errno;
        return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

int mkdir_p(const char *path, mode_t mode) {
        size_t n = strlen(path);
        if (n == 0)
                return -ENOENT;
        if (n >= PATH_MAX)
                return -ENAMETOOLONG;
        char part[PATH_MAX];
        memcpy(part, path, n + 1);
        for (size_t i = 1; i <= n; i++) {
                if (part[i] != '/' && part[i] != 0)
                        continue;
                char end = part[i];
                part[i] = 0;
                if (mkdir(part, mode) < 0) {
                        if (errno != EEXIST) {
                                int r = -errno; /* a read-only or unsearchable parent may hold the directory all the same */
                                if (is_dir(part) < 0)
                                        return r;
                        } else {
                                int r = is_dir(part);
                                if (r < 0)
                                        return r;
                        }
                }
                part[i] = end;
        }
        return 0;
}

int fsync_dir(int dir_fd) {
        return fsync(dir_fd) < 0 ? -errno : 0;
}

int fsync_parent(const char *path) {
        char dir[PATH_MAX];
        const char *slash = strrchr(path, '/');
        size_t n = slash ? (size_t)(slash - path) : 0;
        if (n >= sizeof dir)
                return -ENAMETOOLONG;
        if (!slash)
                memcpy(dir, ".", 2);
        else if (n == 0)
                memcpy(dir, "/", 2);
        else {
                memcpy(dir, path, n);
                dir[n] = 0;
        }
        _cleanup_close_ int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? -errno : fsync_dir(fd);
}

int file_replace(const char *path, const void *p, size_t n, mode_t mode) {
        char temp[PATH_MAX];
        int len = snprintf(temp, sizeof temp, "%s.tmp.XXXXXX", path);
        if (len < 0 || (size_t)len >= sizeof temp)
                return -ENAMETOOLONG;
        _cleanup_close_ int fd = mkostemp(temp, O_CLOEXEC);
        if (fd < 0)
                return -errno;
        int r = fchmod(fd, mode) < 0 ? -errno : 0;
        if (r == 0)
                r = write_full(fd, p, n);
        if (r == 0)
                r = FAILPOINT("replace.fsync");
        if (r == 0 && fsync(fd) < 0)
                r = -errno;
        if (r == 0)
                r = FAILPOINT("replace.rename");
        if (r == 0 && rename(temp, path) < 0)
                r = -errno;
        if (r < 0) {
                (void)unlink(temp);
                return r;
        }
        r = FAILPOINT("replace.renamed");
        return r < 0 ? r : fsync_parent(path);
}

int file_load(const char *path, size_t max_bytes, struct buf *ret) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        _cleanup_buf_ struct buf b = BUF_INIT(max_bytes < SIZE_MAX - 1 ? max_bytes + 1 : max_bytes);
        for (;;) { /* by read, not by size: /proc and pipes have none */
                size_t room = MIN((size_t)65536, b.max_bytes - b.bytes);
                if (room == 0)
                        return -EMSGSIZE;
                int r = buf_reserve(&b, room);
                if (r < 0)
                        return r;
                ssize_t got = read(fd, b.data + b.bytes, room);
                if (got < 0 && errno == EINTR)
                        continue;
                if (got < 0)
                        return -errno;
                if (got == 0)
                        break;
                b.bytes += (size_t)got;
                if (b.bytes > max_bytes)
                        return -EMSGSIZE;
        }
        b.max_bytes = max_bytes;
        buf_free(ret);
        *ret = b;
        b = (struct buf){ 0 };
        return 0;
}

int file_lock(const char *path, int *ret_fd) {
        _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
                return -errno;
        while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
                if (errno == EWOULDBLOCK)
                        return -EBUSY;
                if (errno != EINTR)
                        return -errno;
        }
        *ret_fd = steal_fd(&fd);
        return 0;
}

char *path_join(const char *a, const char *b) {
        char *joined;
        size_t n = strlen(a);
        const char *slash = n > 0 && a[n - 1] == '/' ? "" : "/";
        return asprintf(&joined, "%s%s%s", a, slash, b) < 0 ? NULL : joined;
}

int disk_free(int fd, uint64_t *ret_bytes) {
        struct statvfs v;
        if (fstatvfs(fd, &v) < 0)
                return -errno;
        *ret_bytes = (uint64_t)v.f_bavail * v.f_frsize;
        return 0;
}

int boot_id(char ret[37]) {
        _cleanup_buf_ struct buf b = BUF_INIT(64);
        int r = file_load("/proc/sys/kernel/random/boot_id", 64, &b);
        if (r < 0)
                return r;
        if (b.bytes < 36)
                return -EIO;
        memcpy(ret, b.data, 36);
        ret[36] = 0;
        return 0;
}
