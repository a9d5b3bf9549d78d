/* SPDX-License-Identifier: Apache-2.0 */
/* umount.c: `tarn umount DIR`: asks the daemon to unmount. It answers at once (unmounted, or busy), then brings what it can to the server (up to its drain_timeout), makes
 * everything local, and ends; we return when it has ended, so that the next mount finds nothing in its way. A mount point whose daemon is gone is
 * detached with fusermount3. */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/args.h"
#include "base/clock.h"
#include "cli.h"

#define PROGRAM "tarn umount"
#define UNMOUNT_MS 20000
#define END_MS (10 * 60 * 1000)

int mount_detach(const char *dir) {
        pid_t pid = fork();
        int status = 0;
        if (pid < 0)
                return -errno;
        if (pid == 0) {
                execlp("fusermount3", "fusermount3", "-u", "-z", "--", dir, (char *)NULL);
                execlp("umount", "umount", "-l", "--", dir, (char *)NULL);
                _exit(127);
        }
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return -errno;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

/* Is there a FUSE mount of ours at this path, by the kernel's own list? */
bool mount_is_listed(const char *path) {
        FILE *f = fopen("/proc/self/mountinfo", "re");
        char line[8192], where[4096];
        bool found = false;
        while (f && !found && fgets(line, sizeof line, f))
                if (sscanf(line, "%*d %*d %*s %*s %4095s", where) == 1)
                        found = strcmp(where, path) == 0 && strstr(line, " fuse");
        if (f)
                (void)fclose(f);
        return found;
}

static int detach_stale(const char *dir) {
        _cleanup_free_ char *path = NULL;
        if (mountpoint_path(dir, &path) < 0 || !mount_is_listed(path))
                return cli_fail(PROGRAM, EXIT_NOT_MOUNTED, "nothing is mounted at %s", dir);
        if (mount_detach(path) < 0)
                return cli_fail(PROGRAM, EXIT_MOUNT_POINT, "cannot detach %s: try `fusermount3 -uz %s`", dir, path);
        (void)printf("%s detached; its daemon was gone, what it had not sent goes on at the next mount\n", path);
        return EXIT_OK;
}

int cmd_umount(int argc, char **argv) {
        const char *dir = NULL, *state_option = NULL, *error;
        bool lazy = false;
        const struct arg table[] = {
                { "DIR", 0, ARG_POSITIONAL, &dir, "the mount point" },
                { "lazy", 'l', ARG_FLAG, &lazy, "detach now, also if programs have files open" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *state = NULL;
        struct mount_info *all = NULL;
        _cleanup_json_ json_t *answer = NULL, *last = NULL, *end = NULL;
        _cleanup_close_ int fd = -1;
        size_t n = 0;
        int64_t items = 0;
        int r = args_parse(PROGRAM, table, argc, argv);
        if (r < 0)
                return args_exit(r);
        r = state_dir(state_option, &state);
        if (r == 0)
                r = mount_infos_list(state, &all, &n);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot read the state directory: %s", strerror(-r));
        const struct mount_info *m = mount_infos_find(all, n, dir);
        if (!m || control_connect(m->place_dir, &fd) < 0) {
                mount_infos_free(all, n);
                return detach_stale(dir);
        }
        _cleanup_json_ json_t *q = json_pack("{s:s, s:b}", "cmd", "umount", "lazy", (int)lazy);
        r = control_send(fd, q);
        if (r == 0)
                r = control_receive(fd, clock_mono_ms(clock_system()) + UNMOUNT_MS, &answer);
        mount_infos_free(all, n);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_OTHER, "the daemon of %s does not answer: %s", dir, strerror(-r));
        if (json_get_str(answer, "error", &error) == 0) {
                if (strcmp(error, "busy") == 0)
                        return cli_fail(PROGRAM, EXIT_MOUNT_POINT, "%s is busy: programs have files open there (see `fuser -vm %s`); close them, or use --lazy", dir, dir);
                return cli_fail(PROGRAM, EXIT_OTHER, "cannot unmount %s: %s", dir, error);
        }
        /* the daemon's last word, then its end */
        int64_t deadline_ms = clock_mono_ms(clock_system()) + END_MS;
        if (control_receive(fd, deadline_ms, &last) == 0 && json_get_int(last, "pending_items", 0, INT64_MAX, &items) == 0 && items > 0)
                (void)fprintf(stderr, "%s: %lld changes are not on the server yet; they are safe here and go on at the next mount\n", PROGRAM, (long long)items);
        r = control_receive(fd, deadline_ms, &end);
        return r == -ETIMEDOUT ? cli_fail(PROGRAM, EXIT_TIMEOUT, "unmounted, but the daemon is still busy") : EXIT_OK;
}
