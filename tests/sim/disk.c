/* SPDX-License-Identifier: Apache-2.0 */
/* disk.c: the disk of the simulation. It takes the place of the C library's write, truncate and sync calls in this process, for the caches' files and for SQLite's alike, and
 * keeps for each file below the watched directory an undo list: every page that was written since the file's last sync, as it was then, and the size.
 *
 * A power cut is a copy of the directory in which, per file, all of that is undone, none of it, or each page by its own throw: drives write in any order. Names are not
 * modelled: a rename is durable at once. What SQLite maps (its -shm files) is no file content, and the copy leaves those out.
 *
 * A full disk: whatever would make a file longer ends with ENOSPC, but for the tree's rows, for which a cache keeps room in reserve.
 *
 * One mutex, because a cache has threads; the throws come from a generator per file, so that they do not depend on what those do. */
#undef _FILE_OFFSET_BITS /* pwrite and pwrite64 are two names here */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "disk.h"

#define PAGE 4096
#define FILES 512

struct page { int64_t number; uint8_t *old; /* NULL: zeros, or behind the end */ };
struct dfile { struct dfile *next; ino_t ino; int64_t safe_size; struct page *pages; size_t n, room; };

static struct {
        bool on;
        dev_t dev;
        char full[300];           /* directory whose files do not grow; "" none */
        size_t full_bytes;
        uint64_t refused;
        struct dfile *bucket[FILES];
        pthread_mutex_t lock;
} disk = { .lock = PTHREAD_MUTEX_INITIALIZER };

static struct dfile **find(ino_t ino) {
        struct dfile **p = &disk.bucket[ino % FILES];
        while (*p && (*p)->ino != ino)
                p = &(*p)->next;
        return p;
}

static void drop(struct dfile **p) {
        struct dfile *f = *p;
        *p = f->next;
        for (size_t i = 0; i < f->room; i++)
                free(f->pages[i].old);
        free(f->pages);
        free(f);
}

/* A table with open addressing: number + 1 is kept, 0 is free. */
static struct page *slot(struct dfile *f, int64_t number) {
        if (f->n * 2 >= f->room) {
                struct page *old = f->pages;
                size_t n = f->room;
                f->room = n ? n * 2 : 16;
                f->pages = calloc(f->room, sizeof *f->pages);
                if (!f->pages)
                        abort();
                f->n = 0;
                for (size_t i = 0; i < n; i++)
                        if (old[i].number)
                                *slot(f, old[i].number - 1) = old[i];
                free(old);
        }
        for (size_t i = (uint64_t)number * 0x9e3779b97f4a7c15u >> 20 & (f->room - 1);; i = (i + 1) & (f->room - 1)) {
                if (f->pages[i].number == number + 1)
                        return &f->pages[i];
                if (!f->pages[i].number) {
                        f->n++;
                        return &f->pages[i];
                }
        }
}

static bool watched(int fd, struct stat *st) {
        return (disk.on || disk.full[0]) && fstat(fd, st) == 0 && st->st_dev == disk.dev && S_ISREG(st->st_mode);
}

static int64_t read_old(int fd, uint8_t *p, int64_t at) {
        int64_t n = syscall(SYS_pread64, fd, p, (size_t)PAGE, at);
        if (n >= 0 || errno != EBADF)
                return n;
        char name[64]; /* opened for writing only */
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        int in = open(name, O_RDONLY | O_CLOEXEC);
        if (in < 0)
                return -1;
        n = syscall(SYS_pread64, in, p, (size_t)PAGE, at);
        (void)close(in);
        return n;
}

/* [off, off + n) is about to change, or the size to become `size` (< 0: what the write makes it). */
static void remember(int fd, const struct stat *st, int64_t off, int64_t n) {
        pthread_mutex_lock(&disk.lock);
        struct dfile **p = find(st->st_ino), *f = *p;
        if (!f) {
                f = *p = calloc(1, sizeof *f);
                if (!f)
                        abort();
                f->ino = st->st_ino;
                f->safe_size = st->st_size;
        }
        for (int64_t number = off / PAGE; n > 0 && number <= (off + n - 1) / PAGE; number++) {
                struct page *page = slot(f, number);
                if (page->number)
                        continue;
                page->number = number + 1;
                if (number * PAGE < f->safe_size) {
                        page->old = calloc(1, PAGE);
                        if (!page->old || read_old(fd, page->old, number * PAGE) < 0)
                                abort();
                }
        }
        pthread_mutex_unlock(&disk.lock);
}

static bool no_room(int fd, const struct stat *st, int64_t off, int64_t n) {
        char link[64], path[400];
        if (!disk.full[0] || off + n <= st->st_size)
                return false;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t k = readlink(link, path, sizeof path - 1);
        if (k < 0 || (size_t)k < disk.full_bytes || memcmp(path, disk.full, disk.full_bytes) != 0)
                return false;
        path[k] = 0;
        if (strstr(path + disk.full_bytes, "/tree.db"))
                return false;
        disk.refused++;
        errno = ENOSPC;
        return true;
}

/* false: the call must not be made, errno is set. */
static bool before_write(int fd, int64_t off, int64_t n) {
        struct stat st;
        if (!watched(fd, &st))
                return true;
        if (no_room(fd, &st, off, n))
                return false;
        if (disk.on)
                remember(fd, &st, off, n);
        return true;
}

static void after_sync(int fd, long result) {
        struct stat st;
        if (result < 0 || !disk.on || !watched(fd, &st))
                return;
        pthread_mutex_lock(&disk.lock);
        struct dfile **p = find(st.st_ino);
        if (*p)
                drop(p);
        pthread_mutex_unlock(&disk.lock);
}

static int64_t bytes_of(const struct iovec *v, int n) {
        int64_t bytes = 0;
        for (int i = 0; i < n; i++)
                bytes += (int64_t)v[i].iov_len;
        return bytes;
}

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t off) {
        return before_write(fd, off, (int64_t)n) ? (ssize_t)syscall(SYS_pwrite64, fd, p, n, off) : -1;
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t off) {
        return pwrite64(fd, p, n, off);
}
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t off) {
        return before_write(fd, off, bytes_of(v, n)) ? (ssize_t)syscall(SYS_pwritev, fd, v, n, off, 0) : -1;
}
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t off) {
        return pwritev64(fd, v, n, off);
}
ssize_t write(int fd, const void *p, size_t n) {
        int64_t off = disk.on || disk.full[0] ? syscall(SYS_lseek, fd, 0, SEEK_CUR) : -1;
        return off < 0 || before_write(fd, off, (int64_t)n) ? (ssize_t)syscall(SYS_write, fd, p, n) : -1;
}
int ftruncate64(int fd, off64_t size) {
        struct stat st;
        if (watched(fd, &st) && disk.on)
                remember(fd, &st, MIN((int64_t)st.st_size, size), MAX((int64_t)st.st_size - size, (int64_t)0));
        return (int)syscall(SYS_ftruncate, fd, size);
}
int ftruncate(int fd, off_t size) {
        return ftruncate64(fd, size);
}
int fallocate64(int fd, int mode, off64_t off, off64_t n) {
        struct stat st;
        if (watched(fd, &st)) {
                if (!(mode & FALLOC_FL_PUNCH_HOLE) && no_room(fd, &st, off, n))
                        return -1;
                int64_t end = MIN(off + n, (int64_t)st.st_size); /* without PUNCH_HOLE nothing changes below the end */
                if (disk.on)
                        remember(fd, &st, off, mode & FALLOC_FL_PUNCH_HOLE ? MAX(end - off, (int64_t)0) : 0);
        }
        if (mode & FALLOC_FL_PUNCH_HOLE)
                return (int)syscall(SYS_fallocate, fd, mode, off, n);
        /* Room is what `no_room` says: blocks that nobody writes to need not be there, and would cost a tenth of all time. */
        if (mode & FALLOC_FL_KEEP_SIZE)
                return 0;
        return fstat(fd, &st) < 0 ? -1 : st.st_size < off + n ? (int)syscall(SYS_ftruncate, fd, off + n) : 0;
}
int fallocate(int fd, int mode, off_t off, off_t n) {
        return fallocate64(fd, mode, off, n);
}
int posix_fallocate64(int fd, off64_t off, off64_t n) {
        return fallocate64(fd, 0, off, n) < 0 ? errno : 0;
}
int posix_fallocate(int fd, off_t off, off_t n) {
        return posix_fallocate64(fd, off, n);
}
int fsync(int fd) {
        long r = syscall(SYS_fsync, fd);
        after_sync(fd, r);
        return (int)r;
}
int fdatasync(int fd) {
        long r = syscall(SYS_fdatasync, fd);
        after_sync(fd, r);
        return (int)r;
}

/* ---- for the world ---- */

void disk_start(void) {
        /* Memory that was given back is not taken from the kernel again for each request. */
        (void)mallopt(M_MMAP_THRESHOLD, 64 << 20);
        (void)mallopt(M_TRIM_THRESHOLD, 256 << 20);
        (void)mallopt(M_TOP_PAD, 16 << 20);
        (void)sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
        (void)sqlite3_config(SQLITE_CONFIG_SINGLETHREAD);
        sqlite3_vfs *v = sqlite3_initialize() == SQLITE_OK ? sqlite3_vfs_find("unix-excl") : NULL;
        if (v)
                (void)sqlite3_vfs_register(v, 1);
}

void disk_watch(const char *dir, bool on) {
        struct stat st;
        disk.on = false;
        disk_full("");
        for (size_t i = 0; i < FILES; i++)
                while (disk.bucket[i])
                        drop(&disk.bucket[i]);
        if (stat(dir, &st) < 0)
                return;
        disk.dev = st.st_dev;
        disk.on = on;
}

void disk_full(const char *dir) {
        snprintf(disk.full, sizeof disk.full, "%s", dir);
        disk.full_bytes = strlen(disk.full);
}

uint64_t disk_refused(void) {
        return disk.refused;
}

int disk_lose(ino_t from, int copy_fd, uint64_t seed, uint64_t *io_pages) {
        static const uint8_t zeros[PAGE];
        struct rng_seeded rng;
        pthread_mutex_lock(&disk.lock);
        struct dfile *f = *find(from);
        int r = 0;
        rng_seed(&rng, seed);
        uint64_t how = rng_below(&rng.rng, 10); /* of ten files four lose all, two nothing, four some pages */
        if (f && how != 4 && how != 5) {
                bool all = how < 4;
                struct stat st;
                if (fstat(copy_fd, &st) < 0)
                        r = -errno;
                bool shorter = all || rng_below(&rng.rng, 2);
                for (size_t i = 0; r == 0 && i < f->room; i++) {
                        const struct page *page = &f->pages[i];
                        if (!page->number || !(all || rng_below(&rng.rng, 2)))
                                continue;
                        int64_t at = (page->number - 1) * PAGE, end = MAX((int64_t)st.st_size, f->safe_size);
                        if (at >= end)
                                continue;
                        if (syscall(SYS_pwrite64, copy_fd, page->old ? page->old : zeros, (size_t)MIN((int64_t)PAGE, end - at), at) < 0)
                                r = -errno;
                        (*io_pages)++;
                }
                if (r == 0 && syscall(SYS_ftruncate, copy_fd, shorter ? f->safe_size : (int64_t)st.st_size) < 0)
                        r = -errno;
        }
        pthread_mutex_unlock(&disk.lock);
        return r;
}
