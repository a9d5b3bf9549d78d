/* SPDX-License-Identifier: Apache-2.0 */
/* mount.h: the FUSE side: turns kernel requests into reads and changes of the cache, and the cache's notes into kernel invalidations. Knows nothing of sync/. */
#pragma once
#include "cache/file.h"
#include "fs/crawlers.h"

struct mount;
/* `count` ids from `stored` on, as the server has them, are those from `local` on here. */
struct id_range { uint32_t stored, local, count; bool user, group; };
#define IDMAP_RANGES_MAX 32u
/* "[u|g|b:]STORED:LOCAL:COUNT", several with '+' between them. -EINVAL, -E2BIG (more than max). */
int idmap_parse(const char *text, struct id_range *ret, size_t max, size_t *ret_n) _must_check_;
enum symlinks { SYMLINKS_ANY = 0, SYMLINKS_INSIDE = 1, SYMLINKS_NONE = 2 /* root only */ }; /* which are followed: fs/symlink.c */
struct mount_config {
        struct cache *cache;
        const char *mountpoint;       /* absolute */
        const char *source_name;      /* shown in /proc/mounts: the URL */
        bool ro, allow_other, default_permissions, fastperm, debug, nonempty;
        bool owner_stored;            /* false: everything belongs to uid, gid */
        const struct id_range *idmap; size_t n_idmap; /* with owner_stored; the caller's, as long as the mount */
        uint32_t uid, gid;
        bool suid, dev;               /* set-id bits and device nodes work: root only */
        bool noexec, nosubtype;       /* nosubtype: the type shown is `fuse`, not `fuse.tarn` */
        enum symlinks symlinks;
        enum close_level close_level;
        int64_t net_timeout_ms;
        unsigned threads;             /* 0: 8 */
        struct clock *clock; struct counters *counters;
        struct crawlers *crawlers;    /* the caller's, as long as the mount; NULL: nobody is one */
        /* The server's quota (0: none) and what is used of it, as last heard: no waiting, no lock above RANK_QUEUE. NULL: not known. */
        void (*space)(void *arg, uint64_t *ret_quota_bytes, uint64_t *ret_used_bytes); void *space_arg;
};
/* Checks the mount point (exists, a directory, empty unless nonempty is asked; a stale FUSE mount there (ENOTCONN) is detached), mounts, starts workers and the notifier thread.
 * -ENOTEMPTY, -ENOTDIR, -ENOENT, -EBUSY (a live mount is there), -EPERM (fuse not permitted), with one clear line in ret_why. */
int mount_start(struct mount *m, char *ret_why, size_t n) _must_check_;
/* mount_new makes the object and its listener (to be added to the cache before threads start); nothing is mounted yet. */
int mount_new(const struct mount_config *config, struct mount **ret) _must_check_;
struct listener *mount_listener(struct mount *m);
/* Blocks until unmounted (fusermount3 -u, umount(2)) or mount_stop from another thread or a signal handler's helper. */
int mount_wait(struct mount *m) _must_check_;
/* Unmounts (lazily if busy when `lazy`), wakes mount_wait. -EBUSY. */
int mount_stop(struct mount *m, bool lazy) _must_check_;
/* Joins, releases the handles that are left (their contents are queued). The cache must be open, and must not call the listener any more. */
void mount_free(struct mount *m);
