/* SPDX-License-Identifier: Apache-2.0 */
/* remount.c: `mount -o remount,...`: changes what the kernel alone decides of a mount that is there: ro, noexec, nosuid, nodev, noatime and their opposites. The daemon goes on. All other options
 * are accepted and change nothing (mount(8) repeats those of fstab here). A mount that began with `ro` stays read only: its daemon refuses changes (EROFS) whatever the kernel says. */
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

#include "cli.h"

static const struct { const char *on, *off; unsigned long st, ms; } flags[] = {
        { "ro", "rw", ST_RDONLY, MS_RDONLY },
        { "nosuid", "suid", ST_NOSUID, MS_NOSUID },
        { "nodev", "dev", ST_NODEV, MS_NODEV },
        { "noexec", "exec", ST_NOEXEC, MS_NOEXEC },
        { "noatime", "atime", ST_NOATIME, MS_NOATIME },
        { "nodiratime", "diratime", ST_NODIRATIME, MS_NODIRATIME },
        { "relatime", "norelatime", ST_RELATIME, MS_RELATIME },
        { "nosymfollow", "symfollow", 0x2000, 256 },
};

static bool is_word(const char *at, size_t n, const char *word) {
        return strlen(word) == n && memcmp(at, word, n) == 0;
}

bool remount_asked(const char *list) {
        for (size_t n; list && *list; list += n + (list[n] == ',')) {
                n = strcspn(list, ",");
                if (is_word(list, n, "remount"))
                        return true;
        }
        return false;
}

int remount(const char *program, const char *dir, const char *list) {
        _cleanup_free_ char *path = NULL;
        struct statvfs v;
        unsigned long ms = MS_REMOUNT;
        int r = mountpoint_path(dir, &path);
        if (r < 0 || !mount_is_listed(path))
                return cli_fail(program, EXIT_MOUNT_POINT, "nothing is mounted at %s", dir);
        if (statvfs(path, &v) < 0)
                return cli_fail(program, EXIT_MOUNT_POINT, "%s: %s", dir, strerror(errno));
        for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
                bool on = v.f_flag & flags[i].st;
                for (const char *at = list; *at;) {
                        size_t n = strcspn(at, ",");
                        on = is_word(at, n, flags[i].on) || (on && !is_word(at, n, flags[i].off));
                        at += n + (at[n] == ',');
                }
                ms |= on ? flags[i].ms : 0;
        }
        if (mount(NULL, path, NULL, ms, NULL) < 0)
                return cli_fail(program, errno == EPERM ? EXIT_USAGE : EXIT_MOUNT_POINT, "cannot remount %s: %s", dir, errno == EPERM ? "only root may" : strerror(errno));
        return EXIT_OK;
}
