/* SPDX-License-Identifier: Apache-2.0 */
/* blob_file.c: dir/blob/NNNNNNNN (data: offset 0 is the content's offset 0) and dir/blob/NNNNNNNN.sums. Numbers are handed out once and then live on: a blob that
 * lost its last block gives its pair back, which is truncated and waits in a list in memory for the next large content. So the steady state makes and unlinks nothing
 * (after an unlink, ext4 creates 30 times slower), and an empty file takes no block.
 *
 *   place         who knows it            at the next open
 *   dir/blob/N    a row of the index      claimed
 *   dir/blob/N    nobody: pooled, or lost by a crash   emptied, pooled
 *   dir/lent/N    who borrowed it (a stage: bytes that exist nowhere else)   not touched
 *
 * That is why lending moves the file out: what lies in dir/blob is ours to throw away. The logical size is set when a pair is taken, so that no file system
 * preallocates beyond the end. More than POOL_MAX empty files are unlinked. Nothing here is fsynced: after a power cut every block is hashed before use.
 *
 * The lock guards the list of free numbers; opening, truncating and renaming happen outside. */
#include "blob_file.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/io.h"
#include "base/model.h"

#define POOL_MAX 4096u

struct blob_files {
        struct lock lock;
        char *dir;
        int blob_fd, lent_fd;
        uint32_t *free_numbers; size_t n_free, room_free; /* lock: before settle: unclaimed ones, sorted */
        uint32_t next_number;                             /* lock */
};

static void data_name(uint32_t number, char ret[32]) {
        (void)snprintf(ret, 32, "%08x", number);
}

static void sums_name(uint32_t number, char ret[32]) {
        (void)snprintf(ret, 32, "%08x.sums", number);
}

static bool number_of(const char *name, uint32_t *ret) {
        uint8_t b[4];
        char digits[9];
        if (strlen(name) < 8 || (name[8] != '\0' && strcmp(name + 8, ".sums") != 0))
                return false;
        memcpy(digits, name, 8);
        digits[8] = '\0';
        if (hex_decode(digits, b, 4) < 0)
                return false;
        *ret = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
        return *ret != 0;
}

static int push_free_locked(struct blob_files *f, uint32_t number) {
        if (f->n_free == f->room_free) {
                size_t room = f->room_free ? f->room_free * 2 : 64;
                uint32_t *numbers = reallocarray(f->free_numbers, room, sizeof *numbers);
                if (!numbers)
                        return -ENOMEM;
                f->free_numbers = numbers;
                f->room_free = room;
        }
        f->free_numbers[f->n_free++] = number;
        return 0;
}

static int compare_numbers(const void *a, const void *b) {
        uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
        return x < y ? -1 : x > y;
}

/* Every number that has a data file in `fd`'s directory; the next number is above all. */
static int scan(struct blob_files *f, int fd, bool collect) {
        int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *d = own < 0 ? NULL : fdopendir(own);
        if (!d) {
                int r = -errno;
                if (own >= 0)
                        (void)close(own);
                return r;
        }
        int r = 0;
        for (struct dirent *e; r == 0 && (e = readdir(d));) {
                uint32_t number;
                if (!number_of(e->d_name, &number))
                        continue;
                LOCK_SCOPE(&f->lock);
                f->next_number = MAX(f->next_number, number + 1);
                if (collect && e->d_name[8] == '\0')
                        r = push_free_locked(f, number);
        }
        (void)closedir(d);
        return r;
}

static int subdir(const char *dir, const char *name, int *ret) {
        _cleanup_free_ char *path = path_join(dir, name);
        if (!path)
                return -ENOMEM;
        int r = mkdir_p(path, 0700);
        if (r < 0)
                return r;
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        *ret = fd;
        return 0;
}

int blob_files_open(const char *dir, struct blob_files **ret) {
        struct blob_files *f = calloc(1, sizeof *f);
        if (!f)
                return -ENOMEM;
        lock_init(&f->lock, "blob files", RANK_BLOB_FILES);
        f->next_number = 1;
        f->blob_fd = f->lent_fd = -1;
        f->dir = strdup(dir);
        int r = f->dir ? subdir(dir, "blob", &f->blob_fd) : -ENOMEM;
        if (r == 0)
                r = subdir(dir, "lent", &f->lent_fd);
        if (r == 0)
                r = scan(f, f->lent_fd, false);
        if (r == 0)
                r = scan(f, f->blob_fd, true);
        if (r < 0) {
                blob_files_close(f);
                return r;
        }
        if (f->n_free > 0)
                qsort(f->free_numbers, f->n_free, sizeof *f->free_numbers, compare_numbers);
        *ret = f;
        return 0;
}

void blob_files_close(struct blob_files *f) {
        if (!f)
                return;
        if (f->blob_fd >= 0)
                (void)close(f->blob_fd);
        if (f->lent_fd >= 0)
                (void)close(f->lent_fd);
        free(f->free_numbers);
        free(f->dir);
        lock_destroy(&f->lock);
        free(f);
}

bool blob_files_claim(struct blob_files *f, uint32_t number) {
        LOCK_SCOPE(&f->lock);
        if (f->n_free == 0 || number == 0)
                return false;
        uint32_t *at = bsearch(&number, f->free_numbers, f->n_free, sizeof number, compare_numbers);
        if (!at)
                return false;
        memmove(at, at + 1, (size_t)(f->free_numbers + f->n_free - at - 1) * sizeof *at);
        f->n_free--;
        return true;
}

int blob_files_settle(struct blob_files *f) {
        LOCK_SCOPE(&f->lock); /* open is one thread: nobody waits */
        for (size_t i = 0; i < f->n_free; i++) {
                char name[32];
                data_name(f->free_numbers[i], name);
                _cleanup_close_ int data_fd = openat(f->blob_fd, name, O_WRONLY | O_CLOEXEC);
                if (data_fd < 0 || ftruncate(data_fd, 0) < 0)
                        return -errno;
                sums_name(f->free_numbers[i], name);
                _cleanup_close_ int sums_fd = openat(f->blob_fd, name, O_WRONLY | O_CLOEXEC);
                if (sums_fd >= 0 && ftruncate(sums_fd, 0) < 0)
                        return -errno;
        }
        return 0;
}

static int number_next(struct blob_files *f, uint32_t *ret, bool *ret_recycled) {
        LOCK_SCOPE(&f->lock);
        *ret_recycled = f->n_free > 0;
        if (f->n_free > 0) {
                *ret = f->free_numbers[--f->n_free];
                return 0;
        }
        if (f->next_number == UINT32_MAX)
                return -ENOSPC;
        *ret = f->next_number++;
        return 0;
}

static void number_free(struct blob_files *f, uint32_t number) {
        char name[32];
        {
                LOCK_SCOPE(&f->lock);
                if (f->n_free < POOL_MAX && push_free_locked(f, number) == 0)
                        return;
        }
        data_name(number, name);
        (void)unlinkat(f->blob_fd, name, 0);
        sums_name(number, name);
        (void)unlinkat(f->blob_fd, name, 0);
}

static int open_pair(struct blob_files *f, uint32_t number, int flags, int *ret_data_fd, int *ret_sums_fd) {
        char name[32];
        data_name(number, name);
        _cleanup_close_ int data_fd = openat(f->blob_fd, name, O_RDWR | O_CLOEXEC | flags, 0600);
        if (data_fd < 0)
                return -errno;
        sums_name(number, name);
        _cleanup_close_ int sums_fd = openat(f->blob_fd, name, O_RDWR | O_CLOEXEC | O_CREAT, 0600);
        if (sums_fd < 0)
                return -errno;
        *ret_data_fd = steal_fd(&data_fd);
        *ret_sums_fd = steal_fd(&sums_fd);
        return 0;
}

int blob_files_fds(struct blob_files *f, uint32_t number, int *ret_data_fd, int *ret_sums_fd) {
        return open_pair(f, number, 0, ret_data_fd, ret_sums_fd);
}

int blob_files_take(struct blob_files *f, uint64_t bytes, uint32_t *ret_number, int *ret_data_fd, int *ret_sums_fd, bool *ret_recycled) {
        uint32_t number;
        int r = number_next(f, &number, ret_recycled);
        if (r < 0)
                return r;
        int data_fd = -1, sums_fd = -1;
        r = open_pair(f, number, O_CREAT, &data_fd, &sums_fd);
        if (r == 0 && ftruncate(data_fd, (off_t)bytes) < 0) {
                r = -errno;
                (void)close(data_fd);
                (void)close(sums_fd);
        }
        if (r < 0) {
                number_free(f, number);
                return r;
        }
        *ret_number = number;
        *ret_data_fd = data_fd;
        *ret_sums_fd = sums_fd;
        return 0;
}

void blob_files_return(struct blob_files *f, uint32_t number, int data_fd, int sums_fd) {
        bool emptied = data_fd >= 0 && sums_fd >= 0;
        if (!emptied)
                emptied = open_pair(f, number, 0, &data_fd, &sums_fd) == 0;
        emptied = emptied && ftruncate(data_fd, 0) == 0 && ftruncate(sums_fd, 0) == 0;
        if (data_fd >= 0)
                (void)close(data_fd);
        if (sums_fd >= 0)
                (void)close(sums_fd);
        if (emptied) /* else: the next open reclaims it */
                number_free(f, number);
}

int blob_files_lend(struct blob_files *f, int *ret_fd, char *ret_path, size_t n) {
        uint32_t number;
        bool recycled;
        char name[32];
        int r = number_next(f, &number, &recycled);
        if (r < 0)
                return r;
        data_name(number, name);
        _cleanup_close_ int fd = openat(f->blob_fd, name, O_RDWR | O_CLOEXEC | O_CREAT, 0600);
        if (fd < 0)
                r = -errno;
        else if ((size_t)snprintf(ret_path, n, "%s/lent/%s", f->dir, name) >= n)
                r = -ENAMETOOLONG;
        else if ((r = FAILPOINT("blob.lend")) == 0 && renameat(f->blob_fd, name, f->lent_fd, name) < 0)
                r = -errno;
        if (r < 0) {
                number_free(f, number);
                return r;
        }
        *ret_fd = steal_fd(&fd);
        return 0;
}

/* The file at path moves to dir/blob under its own number if it was lent from here, else under a new one. */
static int bring_back(struct blob_files *f, const char *path, uint32_t *ret_number) {
        const char *base = strrchr(path, '/');
        char name[32];
        uint32_t number;
        bool ours = false, recycled;
        base = base ? base + 1 : path;
        if (strlen(base) == 8 && number_of(base, &number)) {
                char lent[PATH_MAX];
                ours = (size_t)snprintf(lent, sizeof lent, "%s/lent/%s", f->dir, base) < sizeof lent && strcmp(lent, path) == 0;
        }
        if (!ours) {
                int r = number_next(f, &number, &recycled);
                if (r < 0)
                        return r;
        }
        data_name(number, name);
        int fr = FAILPOINT("blob.rename");
        if (fr < 0 || renameat(AT_FDCWD, path, f->blob_fd, name) < 0) {
                int r = fr < 0 ? fr : -errno;
                if (!ours)
                        number_free(f, number);
                return r;
        }
        FAILPOINT_HERE("blob.renamed");
        *ret_number = number;
        return 0;
}

int blob_files_unlend(struct blob_files *f, const char *path) {
        if (truncate(path, 0) < 0)
                return -errno;
        uint32_t number;
        int r = bring_back(f, path, &number);
        if (r < 0)
                return r;
        number_free(f, number);
        return 0;
}

int blob_files_adopt(struct blob_files *f, const char *path, uint64_t bytes, uint32_t *ret_number, int *ret_data_fd, int *ret_sums_fd) {
        uint32_t number;
        int data_fd = -1, sums_fd = -1;
        int r = bring_back(f, path, &number);
        if (r < 0)
                return r;
        r = open_pair(f, number, 0, &data_fd, &sums_fd);
        if (r < 0)
                return r;
        if (ftruncate(data_fd, (off_t)bytes) < 0) {
                r = -errno;
                blob_files_return(f, number, data_fd, sums_fd);
                return r;
        }
        *ret_number = number;
        *ret_data_fd = data_fd;
        *ret_sums_fd = sums_fd;
        return 0;
}
