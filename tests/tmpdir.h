/* SPDX-License-Identifier: Apache-2.0 */
/* tmpdir.h: temporary directories that go with the process, however that ends (assert, SIGKILL by a timeout, _exit): a child of a session of its own waits for the end of a pipe, then
 * removes what was made and is still there. Nothing of it follows links or crosses into another file system. Header-only. */
#pragma once
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct tmpdir_path { struct tmpdir_path *next; char path[256]; };

static inline int tmpdir_remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) {
        (void)st;
        (void)flag;
        (void)ftw;
        (void)!remove(path);
        return 0;
}
static inline void tmpdir_remove(const char *path) { (void)nftw(path, tmpdir_remove_one, 32, FTW_DEPTH | FTW_PHYS | FTW_MOUNT); }

static inline void tmpdir_reap(int fd) {
        struct tmpdir_path *all = NULL, *p;
        (void)dup2(fd, 0);
        int null = open("/dev/null", O_RDWR | O_CLOEXEC); /* who waits for the end of the output does not wait for us */
        (void)dup2(null, 1);
        (void)dup2(null, 2);
        (void)close_range(3, ~0u, 0);
        for (;;) {
                p = malloc(sizeof *p);
                if (!p || read(0, p->path, sizeof p->path) != (ssize_t)sizeof p->path)
                        break;
                p->next = all;
                all = p;
        }
        for (p = all; p; p = p->next)
                tmpdir_remove(p->path);
        _exit(0);
}

/* What lies at path when the process ends goes too. false: errno. */
static inline bool tmpdir_adopt(const char *path) {
        static int to_reaper = -1;
        static pid_t owner; /* a process that was forked off has its own */
        if (to_reaper < 0 || owner != getpid()) {
                int fds[2];
                if (pipe2(fds, O_CLOEXEC) < 0)
                        return false;
                pid_t pid = fork();
                if (pid == 0) {
                        (void)setsid(); /* who ends our group does not end this one */
                        if (fork() == 0)
                                tmpdir_reap(fds[0]);
                        _exit(0);
                }
                if (pid < 0 || waitpid(pid, NULL, 0) != pid)
                        return false;
                (void)close(fds[0]);
                to_reaper = fds[1];
                owner = getpid();
        }
        char line[sizeof ((struct tmpdir_path *)0)->path] = "";
        if (strlen(path) >= sizeof line)
                return false;
        memcpy(line, path, strlen(path)); /* whole lines of less than PIPE_BUF: never mixed */
        return write(to_reaper, line, sizeof line) == (ssize_t)sizeof line;
}

/* Makes a directory from a template as mkdtemp's. NULL: as there. */
static inline char *tmpdir_new(char *path) {
        return mkdtemp(path) && tmpdir_adopt(path) ? path : NULL;
}
