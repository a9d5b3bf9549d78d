/* SPDX-License-Identifier: Apache-2.0 */
/* reserve.c: deleting works on a full disk.
 *
 * A deletion writes to the database before anything becomes free; with not a byte left it could not, and the disk would stay full for ever. Two things prevent it:
 *
 *   a margin    while less than `bytes` are free on the file system, contents and new names are refused (507): objects never take the last of it
 *   a reserve   the file DATA/reserve holds `bytes` of blocks. If a transaction fails all the same because another program took what was left, the file is cut to
 *               nothing and the transaction is tried again; until room is back only operations that give room back are let through
 *
 *   state    file     free                      let through                     leaves on
 *   EASY     full     >= bytes                  everything                      free < bytes -> TIGHT (and back)
 *   TIGHT    full     < bytes                   what gives room back            -ENOSPC of a transaction -> SPENT
 *   SPENT    empty    any                       what gives room back            free >= 3 * bytes -> the file is filled again, EASY
 *
 * bytes: a 64th of the file system, at least 1 MiB, at most 32 MiB: some thousand deletions. The file is allocated, not only sized.
 * `lock` guards the file's state; it is held for the allocation of the file, never by the commit thread for longer than a truncate. */
#include "reserve.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/io.h"
#include "base/lock.h"
#include "base/log.h"

#define BYTES_MIN (UINT64_C(1) << 20)
#define BYTES_MAX (UINT64_C(32) << 20)

struct reserve {
        int fd;                  /* -1: in memory */
        uint64_t bytes;
        struct lock lock;
        bool spent;              /* lock */
};

/* -ENOSPC: there is no room for it; the file is empty then. */
static int fill(struct reserve *r) {
        struct stat st;
        int k;

        if (fstat(r->fd, &st) < 0)
                return -errno;
        if ((uint64_t)st.st_size == r->bytes && (uint64_t)st.st_blocks * 512 >= r->bytes)
                return 0;
        k = -posix_fallocate(r->fd, 0, (off_t)r->bytes);
        if (k == 0 && fsync(r->fd) < 0)
                k = -errno;
        if (k < 0 && ftruncate(r->fd, 0) < 0)
                k = -errno;
        return k;
}

int reserve_open(const char *data_dir, struct reserve **ret) {
        struct reserve *r = calloc(1, sizeof *r);
        _cleanup_free_ char *path = NULL;
        struct statvfs v;
        int k = 0;

        if (!r)
                return -ENOMEM;
        r->fd = -1;
        lock_init(&r->lock, "reserve", RANK_QUEUE - 5);
        if (data_dir) {
                path = path_join(data_dir, "reserve");
                k = path ? 0 : -ENOMEM;
                if (k == 0) {
                        r->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
                        if (r->fd < 0 || fstatvfs(r->fd, &v) < 0)
                                k = -errno;
                }
                if (k == 0) {
                        r->bytes = MIN(MAX((uint64_t)v.f_blocks * v.f_frsize / 64, BYTES_MIN), BYTES_MAX);
                        r->spent = (uint64_t)v.f_bavail * v.f_frsize < 3 * r->bytes || fill(r) < 0;
                        if (r->spent) { /* what is there counts all the same */
                                struct stat st;

                                r->spent = fstat(r->fd, &st) < 0 || (uint64_t)st.st_size < r->bytes;
                        }
                }
        }
        if (k < 0) {
                reserve_close(r);
                return k;
        }
        *ret = r;
        return 0;
}

void reserve_close(struct reserve *r) {
        if (!r)
                return;
        if (r->fd >= 0)
                (void)close(r->fd);
        lock_destroy(&r->lock);
        free(r);
}

bool reserve_tight(struct reserve *r) {
        uint64_t free_bytes;

        if (r->fd < 0 || disk_free(r->fd, &free_bytes) < 0)
                return false;
        LOCK_SCOPE(&r->lock);
        if (!r->spent)
                return free_bytes < r->bytes;
        if (free_bytes < 3 * r->bytes || fill(r) < 0)
                return true;
        r->spent = false;
        log_info("event=room_is_back free_bytes=%llu", (unsigned long long)free_bytes);
        return false;
}

bool reserve_release(struct reserve *r) {
        if (r->fd < 0)
                return false;
        LOCK_SCOPE(&r->lock);
        if (r->spent || ftruncate(r->fd, 0) < 0)
                return false;
        r->spent = true;
        log_warn("event=disk_full message=\"only deletions are let through until there is room again\"");
        return true;
}
