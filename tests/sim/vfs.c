/* SPDX-License-Identifier: Apache-2.0 */
/* vfs.c: SQLite's files in memory. Each file has the bytes as they are and the bytes as of its last sync, in pages; a power cut goes back to the latter, page by page with a
 * chance for each to have got through anyway (drives write in any order). Locks and the shared memory of the write-ahead log are per file, for connections of one process.
 * Names that exist exist durably: directory syncs are not modelled. `guard` covers everything: the flusher of the cache has a thread. */
#include <assert.h>
#include <pthread.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vfs.h"

#define PAGE 4096
#define REGION 32768
#define REGIONS_MAX 64

struct file {
        struct file *next;
        char path[400];
        uint8_t *now, *safe;           /* safe: as of the last sync */
        size_t bytes, safe_bytes, room;
        uint8_t *dirty; size_t dirty_room; /* per page: written since */
        unsigned refs;
        bool gone;                     /* removed while open */
        unsigned shared, reserved, pending, exclusive;
        void *region[REGIONS_MAX];
        unsigned shm_shared[SQLITE_SHM_NLOCK], shm_exclusive[SQLITE_SHM_NLOCK];
};
struct handle { sqlite3_file base; struct file *f; int level; uint16_t shm_shared, shm_exclusive; bool remove; };

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static struct file *files;

static struct file *find(const char *path) {
        for (struct file *f = files; f; f = f->next)
                if (!f->gone && strcmp(f->path, path) == 0)
                        return f;
        return NULL;
}

static void drop(struct file *f) {
        if (!f->gone || f->refs)
                return;
        for (struct file **p = &files; *p; p = &(*p)->next)
                if (*p == f) {
                        *p = f->next;
                        break;
                }
        for (unsigned i = 0; i < REGIONS_MAX; i++)
                free(f->region[i]);
        free(f->now);
        free(f->safe);
        free(f->dirty);
        free(f);
}

static int grow(struct file *f, size_t bytes) {
        if (bytes > f->room) {
                size_t room = (bytes + bytes / 2 + PAGE - 1) / PAGE * PAGE;
                uint8_t *p = realloc(f->now, room), *d;
                if (!p)
                        return SQLITE_NOMEM;
                memset(p + f->room, 0, room - f->room);
                f->now = p;
                p = realloc(f->safe, room);
                if (!p)
                        return SQLITE_NOMEM;
                memset(p + f->room, 0, room - f->room);
                f->safe = p;
                d = realloc(f->dirty, room / PAGE);
                if (!d)
                        return SQLITE_NOMEM;
                memset(d + f->room / PAGE, 0, room / PAGE - f->room / PAGE);
                f->dirty = d;
                f->room = room;
        }
        return SQLITE_OK;
}

/* ---- a file ---- */

static int file_close(sqlite3_file *s) {
        struct handle *h = (struct handle *)s;
        pthread_mutex_lock(&guard);
        if (h->remove)
                h->f->gone = true;
        h->f->refs--;
        drop(h->f);
        pthread_mutex_unlock(&guard);
        return SQLITE_OK;
}

static int file_read(sqlite3_file *s, void *p, int n, sqlite3_int64 off) {
        struct file *f = ((struct handle *)s)->f;
        int r = SQLITE_OK;
        pthread_mutex_lock(&guard);
        size_t have = (size_t)off < f->bytes ? f->bytes - (size_t)off : 0;
        if (have >= (size_t)n) {
                memcpy(p, f->now + off, (size_t)n);
        } else {
                if (have)
                        memcpy(p, f->now + off, have);
                memset((uint8_t *)p + have, 0, (size_t)n - have);
                r = SQLITE_IOERR_SHORT_READ;
        }
        pthread_mutex_unlock(&guard);
        return r;
}

static int file_write(sqlite3_file *s, const void *p, int n, sqlite3_int64 off) {
        struct file *f = ((struct handle *)s)->f;
        pthread_mutex_lock(&guard);
        int r = grow(f, (size_t)off + (size_t)n);
        if (r == SQLITE_OK) {
                memcpy(f->now + off, p, (size_t)n);
                memset(f->dirty + off / PAGE, 1, (size_t)((off + n - 1) / PAGE - off / PAGE + 1));
                if ((size_t)off + (size_t)n > f->bytes)
                        f->bytes = (size_t)off + (size_t)n;
        }
        pthread_mutex_unlock(&guard);
        return r;
}

static int file_truncate(sqlite3_file *s, sqlite3_int64 n) {
        struct file *f = ((struct handle *)s)->f;
        pthread_mutex_lock(&guard);
        if ((size_t)n < f->bytes) {
                memset(f->now + n, 0, f->bytes - (size_t)n);
                memset(f->dirty + n / PAGE, 1, (f->bytes - 1) / PAGE - (size_t)n / PAGE + 1);
                f->bytes = (size_t)n;
        }
        pthread_mutex_unlock(&guard);
        return SQLITE_OK;
}

static int file_sync(sqlite3_file *s, int flags) {
        struct file *f = ((struct handle *)s)->f;
        pthread_mutex_lock(&guard);
        for (size_t i = 0; i < f->room / PAGE; i++)
                if (f->dirty[i]) {
                        memcpy(f->safe + i * PAGE, f->now + i * PAGE, PAGE);
                        f->dirty[i] = 0;
                }
        f->safe_bytes = f->bytes;
        pthread_mutex_unlock(&guard);
        return SQLITE_OK;
}

static int file_size(sqlite3_file *s, sqlite3_int64 *ret) {
        pthread_mutex_lock(&guard);
        *ret = (sqlite3_int64)((struct handle *)s)->f->bytes;
        pthread_mutex_unlock(&guard);
        return SQLITE_OK;
}

static int file_lock(sqlite3_file *s, int level) {
        struct handle *h = (struct handle *)s;
        struct file *f = h->f;
        int r = SQLITE_OK;
        pthread_mutex_lock(&guard);
        if (level > h->level) {
                unsigned own = h->level >= SQLITE_LOCK_SHARED;
                if (h->level == SQLITE_LOCK_NONE) {
                        if (f->pending || f->exclusive)
                                r = SQLITE_BUSY;
                        else
                                f->shared++;
                        own = 1;
                }
                if (r == SQLITE_OK && level >= SQLITE_LOCK_RESERVED && h->level < SQLITE_LOCK_RESERVED) {
                        if (f->reserved)
                                r = SQLITE_BUSY;
                        else
                                f->reserved = 1;
                }
                if (r == SQLITE_OK && level >= SQLITE_LOCK_EXCLUSIVE) {
                        f->pending = 1;
                        if (f->shared > own)
                                r = SQLITE_BUSY;
                        else
                                f->exclusive = 1;
                }
                if (r == SQLITE_OK)
                        h->level = level;
                else if (h->level == SQLITE_LOCK_NONE && own && level > SQLITE_LOCK_SHARED)
                        f->shared--;
        }
        pthread_mutex_unlock(&guard);
        return r;
}

static int file_unlock(sqlite3_file *s, int level) {
        struct handle *h = (struct handle *)s;
        struct file *f = h->f;
        pthread_mutex_lock(&guard);
        if (level < h->level) {
                if (h->level >= SQLITE_LOCK_RESERVED && level < SQLITE_LOCK_RESERVED)
                        f->reserved = f->pending = f->exclusive = 0;
                if (level == SQLITE_LOCK_NONE && h->level >= SQLITE_LOCK_SHARED)
                        f->shared--;
                h->level = level;
        }
        pthread_mutex_unlock(&guard);
        return SQLITE_OK;
}

static int file_reserved(sqlite3_file *s, int *ret) {
        *ret = ((struct handle *)s)->f->reserved != 0;
        return SQLITE_OK;
}

static int file_control(sqlite3_file *s, int op, void *arg) {
        return SQLITE_NOTFOUND;
}

static int file_sector(sqlite3_file *s) {
        return PAGE;
}

static int file_characteristics(sqlite3_file *s) {
        return 0;
}

static int shm_map(sqlite3_file *s, int region, int bytes, int extend, void volatile **ret) {
        struct file *f = ((struct handle *)s)->f;
        int r = SQLITE_OK;
        assert(region < REGIONS_MAX && bytes == REGION);
        pthread_mutex_lock(&guard);
        if (!f->region[region] && extend) {
                f->region[region] = calloc(1, REGION);
                if (!f->region[region])
                        r = SQLITE_NOMEM;
        }
        *ret = f->region[region];
        pthread_mutex_unlock(&guard);
        return r;
}

static int shm_lock(sqlite3_file *s, int first, int n, int flags) {
        struct handle *h = (struct handle *)s;
        struct file *f = h->f;
        int r = SQLITE_OK;
        pthread_mutex_lock(&guard);
        for (int i = first; i < first + n && r == SQLITE_OK; i++) {
                uint16_t bit = (uint16_t)(1u << i);
                if (flags & SQLITE_SHM_LOCK) {
                        unsigned others = f->shm_shared[i] - ((h->shm_shared & bit) != 0);
                        if (flags & SQLITE_SHM_SHARED ? f->shm_exclusive[i] != 0 : f->shm_exclusive[i] || others)
                                r = SQLITE_BUSY;
                }
        }
        for (int i = first; i < first + n && r == SQLITE_OK; i++) {
                uint16_t bit = (uint16_t)(1u << i);
                uint16_t *mine = flags & SQLITE_SHM_SHARED ? &h->shm_shared : &h->shm_exclusive;
                unsigned *all = flags & SQLITE_SHM_SHARED ? f->shm_shared : f->shm_exclusive;
                if (flags & SQLITE_SHM_LOCK && !(*mine & bit)) {
                        *mine |= bit;
                        all[i]++;
                } else if (flags & SQLITE_SHM_UNLOCK && *mine & bit) {
                        *mine &= (uint16_t)~bit;
                        all[i]--;
                }
        }
        pthread_mutex_unlock(&guard);
        return r;
}

static void shm_barrier(sqlite3_file *s) {
        pthread_mutex_lock(&guard);
        pthread_mutex_unlock(&guard);
}

static int shm_unmap(sqlite3_file *s, int remove) {
        struct file *f = ((struct handle *)s)->f;
        if (!remove)
                return SQLITE_OK;
        pthread_mutex_lock(&guard);
        for (unsigned i = 0; i < REGIONS_MAX; i++) {
                free(f->region[i]);
                f->region[i] = NULL;
        }
        pthread_mutex_unlock(&guard);
        return SQLITE_OK;
}

static const sqlite3_io_methods methods = {
        .iVersion = 2, .xClose = file_close, .xRead = file_read, .xWrite = file_write, .xTruncate = file_truncate, .xSync = file_sync, .xFileSize = file_size,
        .xLock = file_lock, .xUnlock = file_unlock, .xCheckReservedLock = file_reserved, .xFileControl = file_control, .xSectorSize = file_sector,
        .xDeviceCharacteristics = file_characteristics, .xShmMap = shm_map, .xShmLock = shm_lock, .xShmBarrier = shm_barrier, .xShmUnmap = shm_unmap,
};

/* ---- the names ---- */

static int vfs_open(sqlite3_vfs *v, const char *path, sqlite3_file *s, int flags, int *ret_flags) {
        struct handle *h = (struct handle *)s;
        static unsigned nameless;
        char name[400];
        memset(h, 0, sizeof *h);
        pthread_mutex_lock(&guard);
        if (path)
                snprintf(name, sizeof name, "%s", path);
        else
                snprintf(name, sizeof name, "nameless-%u", nameless++);
        struct file *f = find(name);
        if (!f && (flags & SQLITE_OPEN_CREATE || !path)) {
                f = calloc(1, sizeof *f);
                if (f) {
                        memcpy(f->path, name, sizeof f->path);
                        f->next = files;
                        files = f;
                }
        }
        if (f) {
                f->refs++;
                h->f = f;
                h->remove = flags & SQLITE_OPEN_DELETEONCLOSE;
                h->base.pMethods = &methods;
        }
        pthread_mutex_unlock(&guard);
        if (ret_flags)
                *ret_flags = flags;
        return f ? SQLITE_OK : SQLITE_CANTOPEN;
}

static int vfs_delete(sqlite3_vfs *v, const char *path, int sync) {
        pthread_mutex_lock(&guard);
        struct file *f = find(path);
        if (f) {
                f->gone = true;
                drop(f);
        }
        pthread_mutex_unlock(&guard);
        return f ? SQLITE_OK : SQLITE_IOERR_DELETE_NOENT;
}

static int vfs_access(sqlite3_vfs *v, const char *path, int flags, int *ret) {
        pthread_mutex_lock(&guard);
        *ret = find(path) != NULL;
        pthread_mutex_unlock(&guard);
        return SQLITE_OK;
}

static int vfs_full_path(sqlite3_vfs *v, const char *path, int n, char *ret) {
        snprintf(ret, (size_t)n, "%s", path);
        return SQLITE_OK;
}

static int vfs_randomness(sqlite3_vfs *v, int n, char *ret) {
        memset(ret, 7, (size_t)n);
        return n;
}

static int vfs_wait(sqlite3_vfs *v, int us) {
        return us;
}

static int vfs_time(sqlite3_vfs *v, double *ret) {
        *ret = 2460000.5;
        return SQLITE_OK;
}

static int vfs_error(sqlite3_vfs *v, int n, char *ret) {
        return 0;
}

int memory_vfs_register(void) {
        static sqlite3_vfs vfs = { .iVersion = 1, .szOsFile = sizeof(struct handle), .mxPathname = 399, .zName = MEMORY_VFS, .xOpen = vfs_open, .xDelete = vfs_delete,
                                   .xAccess = vfs_access, .xFullPathname = vfs_full_path, .xRandomness = vfs_randomness, .xSleep = vfs_wait, .xCurrentTime = vfs_time,
                                   .xGetLastError = vfs_error };
        return sqlite3_vfs_register(&vfs, 0) == SQLITE_OK ? 0 : -EIO;
}

static bool begins(const struct file *f, const char *prefix) {
        return !f->gone && strncmp(f->path, prefix, strlen(prefix)) == 0;
}

void memory_vfs_power_cut(const char *prefix, struct rng *rng, unsigned per_mille) {
        pthread_mutex_lock(&guard);
        for (struct file *f = files; f; f = f->next) {
                if (!begins(f, prefix))
                        continue;
                size_t bytes = f->safe_bytes;
                for (size_t i = 0; i < f->room / PAGE; i++) {
                        if (!f->dirty[i])
                                continue;
                        if (rng_below(rng, 1000) < per_mille) {
                                memcpy(f->safe + i * PAGE, f->now + i * PAGE, PAGE);
                                if ((i + 1) * PAGE > bytes)
                                        bytes = (i + 1) * PAGE < f->bytes ? (i + 1) * PAGE : f->bytes;
                        }
                        f->dirty[i] = 0;
                }
                f->bytes = f->safe_bytes = bytes;
                if (f->room)
                        memcpy(f->now, f->safe, f->room);
        }
        pthread_mutex_unlock(&guard);
}

void memory_vfs_remove(const char *prefix) {
        pthread_mutex_lock(&guard);
        for (struct file *f = files, *next; f; f = next) {
                next = f->next;
                if (begins(f, prefix)) {
                        f->gone = true;
                        drop(f);
                }
        }
        pthread_mutex_unlock(&guard);
}

void memory_vfs_copy(const char *prefix, const char *to) {
        pthread_mutex_lock(&guard);
        struct file *added = NULL;
        for (struct file *f = files; f; f = f->next) {
                if (!begins(f, prefix))
                        continue;
                struct file *c = calloc(1, sizeof *c);
                assert(c);
                snprintf(c->path, sizeof c->path, "%s%s", to, f->path + strlen(prefix));
                int r = grow(c, f->room);
                assert(r == SQLITE_OK);
                if (f->room) {
                        memcpy(c->now, f->now, f->room);
                        memcpy(c->safe, f->safe, f->room);
                        memcpy(c->dirty, f->dirty, f->room / PAGE);
                }
                c->bytes = f->bytes;
                c->safe_bytes = f->safe_bytes;
                c->next = added;
                added = c;
        }
        while (added) {
                struct file *next = added->next;
                added->next = files;
                files = added;
                added = next;
        }
        pthread_mutex_unlock(&guard);
}

void memory_vfs_rename(const char *prefix, const char *to) {
        pthread_mutex_lock(&guard);
        for (struct file *f = files; f; f = f->next)
                if (begins(f, prefix)) {
                        char path[400];
                        snprintf(path, sizeof path, "%s%.300s", to, f->path + strlen(prefix));
                        memcpy(f->path, path, sizeof path);
                }
        pthread_mutex_unlock(&guard);
}
