/* SPDX-License-Identifier: Apache-2.0 */
/* mount.c: `tarn mount URL/WORKSPACE DIR`: reads options, checks what can be checked without a daemon, then forks. The parent waits at the status pipe for one line,
 * "0" or "CODE message", shows it, and returns that code; so `tarn mount` returns when the mount answers, and every failure of the daemon's start is this
 * command's failure. The child (daemon.c) is a session of its own with no terminal and no inherited descriptors, and it forks before it makes a thread.
 *
 * As mount.tarn it is called by mount(8): mount.tarn SOURCE DIR [-sfnv] [-o OPTS]; an fstab line is
 *   https://drive.example.org/work  /home/anna/Tarn  tarn  noauto,user,_netdev  0  0
 * Options that are mount(8)'s own business are accepted and dropped. */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/client.h"
#include "base/args.h"
#include "base/io.h"
#include "base/log.h"
#include "daemon.h"

#define PROGRAM "tarn mount"
#define LOG_BYTES_MAX (16 << 20) /* at start; beyond it the log becomes log.1 */
#define STATUS_FD 3

static const char *const mount8_options[] = { "_netdev", "nofail", "noauto", "auto", "user", "nouser", "users", "defaults", "rw", "exec", "nosuid", "nodev", "atime", "noatime",
                                              "relatime", "diratime", "nodiratime", "async", "x-*", "X-*", "comment", "comment=*", "default_permissions", NULL };

struct request {
        const char *url, *dir, *state_option;
        bool foreground;
        struct buf list; /* -o */
        struct mount_options o;
        const char *copies[7]; /* what args_parse_o has copied */
};

static void request_free(struct request *q) {
        buf_free(&q->list);
        for (size_t i = 0; i < ARRAY_SIZE(q->copies); i++)
                free((char *)q->copies[i]);
}

static int parse_options(struct request *q) {
        struct mount_options *o = &q->o;
        const struct arg table[] = {
                { "cache_dir", 0, ARG_STR, &o->cache_dir, "where contents and pending changes are kept" },
                { "cache_size", 0, ARG_BYTES, &o->cache_size_bytes, "limit of everything in it" },
                { "free_floor", 0, ARG_BYTES, &o->free_floor_bytes, "leave this much of the disk free" },
                { "net_timeout", 0, ARG_DURATION_S, &o->net_timeout_s, "longest wait of a read for the server (30s)" },
                { "close", 0, ARG_STR, &o->close, "what close waits for: fast, local, server" },
                { "ro", 0, ARG_FLAG, &o->ro, "read only" },
                { "allow_other", 0, ARG_FLAG, &o->allow_other, "other users may look in" },
                { "owner", 0, ARG_STR, &o->owner, "stored: show the owners that the server keeps (default: you)" },
                { "idmap", 0, ARG_STR, &o->idmap, "with owner=stored: [u|g|b:]STORED:LOCAL:COUNT+..." },
                { "suid", 0, ARG_FLAG, &o->suid, "set-id programs on it work (root only)" },
                { "dev", 0, ARG_FLAG, &o->dev, "device nodes on it work (root only)" },
                { "noexec", 0, ARG_FLAG, &o->noexec, "no program on it can be started" },
                { "symlinks", 0, ARG_STR, &o->links, "which are followed: any, inside, none" },
                { "nosubtype", 0, ARG_FLAG, &o->nosubtype, "show the type fuse instead of fuse.tarn" },
                { "fastperm", 0, ARG_FLAG, &o->fastperm, "the kernel does not check permissions: faster, for one user" },
                { "drain_timeout", 0, ARG_DURATION_S, &o->drain_timeout_s, "at unmount: longest wait for the server (30s)" },
                { "scrub", 0, ARG_DURATION_S, &o->scrub_s, "read the whole cache within this time, over and over (30d; 0: never)" },
                { "ca_file", 0, ARG_STR, &o->ca_file, "trust this certificate authority (PEM)" },
                { "uploads", 0, ARG_U64, &o->uploads, "requests with blocks at a time (4)" },
                { "threads", 0, ARG_U64, &o->threads, "kernel requests at a time (8)" },
                { "crawlers", 0, ARG_STR, &o->crawlers, "a file with rules about crawlers, or none" },
                { "debug", 0, ARG_FLAG, &o->debug, "log everything" },
                { 0 },
        };
        static const char *const levels[] = { "fast", "local", "server" }, *const links[] = { [SYMLINKS_ANY] = "any", [SYMLINKS_INSIDE] = "inside", [SYMLINKS_NONE] = "none" };
        *o = (struct mount_options){ .net_timeout_s = 30, .drain_timeout_s = 30, .scrub_s = 30 * 86400 };
        const char *list = buf_text(&q->list);
        int r = list && *list ? args_parse_o(PROGRAM, table, mount8_options, list) : 0;
        const char *const copies[] = { o->cache_dir, o->ca_file, o->close, o->owner, o->idmap, o->links, o->crawlers };
        memcpy(q->copies, copies, sizeof copies);
        if (r < 0)
                return EXIT_USAGE;
        bool known = !o->close;
        for (size_t i = 0; o->close && i < ARRAY_SIZE(levels); i++)
                if (strcmp(o->close, levels[i]) == 0) {
                        o->close_level = (enum close_level)i;
                        known = true;
                }
        if (!known)
                return cli_fail(PROGRAM, EXIT_USAGE, "-o close: '%s' is not one of fast, local, server", o->close);
        if (o->owner && strcmp(o->owner, "stored") != 0)
                return cli_fail(PROGRAM, EXIT_USAGE, "-o owner: '%s' is not 'stored'", o->owner);
        o->owner_stored = o->owner;
        o->symlinks = o->allow_other && geteuid() == 0 ? SYMLINKS_INSIDE : SYMLINKS_ANY;
        known = !o->links;
        for (size_t i = 0; o->links && i < ARRAY_SIZE(links); i++)
                if (strcmp(o->links, links[i]) == 0) {
                        o->symlinks = (enum symlinks)i;
                        known = true;
                }
        if (!known)
                return cli_fail(PROGRAM, EXIT_USAGE, "-o symlinks: '%s' is not one of any, inside, none", o->links);
        if (o->symlinks == SYMLINKS_NONE && geteuid() != 0)
                return cli_fail(PROGRAM, EXIT_USAGE, "-o symlinks=none: only root may ask for it");
        if (o->idmap && !o->owner_stored)
                return cli_fail(PROGRAM, EXIT_USAGE, "-o idmap: only with owner=stored");
        if (o->idmap && (r = idmap_parse(o->idmap, o->ids, ARRAY_SIZE(o->ids), &o->n_ids)) < 0)
                return r == -E2BIG ? cli_fail(PROGRAM, EXIT_USAGE, "-o idmap: at most %u ranges", IDMAP_RANGES_MAX)
                                   : cli_fail(PROGRAM, EXIT_USAGE, "-o idmap: '%s' is not [u|g|b:]STORED:LOCAL:COUNT, several joined by '+'", o->idmap);
        if ((o->suid || o->dev) && geteuid() != 0)
                return cli_fail(PROGRAM, EXIT_USAGE, "-o %s: only root may ask for it", o->suid ? "suid" : "dev");
        if (o->cache_size_bytes && o->cache_size_bytes < 20u << 20) /* in less, dirty data may leave no room for the blocks of their base that a cut has to read */
                return cli_fail(PROGRAM, EXIT_USAGE, "-o cache_size: at least 20M");
        if (o->net_timeout_s == 0 || o->net_timeout_s > 3600 || o->drain_timeout_s > 86400)
                return cli_fail(PROGRAM, EXIT_USAGE, "-o net_timeout: 1s to 1h; drain_timeout: up to 1d");
        if (o->scrub_s > 3650 * UINT64_C(86400))
                return cli_fail(PROGRAM, EXIT_USAGE, "-o scrub: up to 3650d");
        if (o->uploads > 64 || o->threads > 256)
                return cli_fail(PROGRAM, EXIT_USAGE, "-o uploads: up to 64; threads: up to 256");
        return 0;
}

/* What is wrong with a mount point as far as anybody can see without mounting. A stale mount (ENOTCONN) is not wrong: it is detached. */
static int check_mountpoint(const char *dir) {
        struct stat st;
        if (stat(dir, &st) < 0) {
                if (errno == ENOTCONN)
                        return 0;
                if (errno == ENOENT)
                        return cli_fail(PROGRAM, EXIT_MOUNT_POINT, "%s does not exist: make it with `mkdir -p %s`", dir, dir);
                return cli_fail(PROGRAM, EXIT_MOUNT_POINT, "cannot use %s as a mount point: %s", dir, strerror(errno));
        }
        if (!S_ISDIR(st.st_mode))
                return cli_fail(PROGRAM, EXIT_MOUNT_POINT, "%s is not a directory", dir);
        DIR *d = opendir(dir);
        if (!d)
                return errno == ENOTCONN ? 0 : cli_fail(PROGRAM, EXIT_MOUNT_POINT, "cannot read %s: %s", dir, strerror(errno));
        bool empty = true;
        for (struct dirent *e; empty && (e = readdir(d));)
                empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
        (void)closedir(d);
        return empty ? 0 : cli_fail(PROGRAM, EXIT_MOUNT_POINT, "%s is not empty: mount on an empty directory", dir);
}

static int check_not_mounted(const char *state, const struct place *place) {
        struct mount_info *all = NULL;
        size_t n = 0;
        int code = 0;
        if (mount_infos_list(state, &all, &n) < 0)
                return 0;
        for (size_t i = 0; i < n && code == 0; i++) {
                int fd = -1;
                if (strcmp(all[i].place_dir, place->dir) != 0 || control_connect(place->dir, &fd) < 0)
                        continue;
                (void)close(fd);
                code = cli_fail(PROGRAM, EXIT_IN_USE, "this workspace is mounted at %s already (pid %d): unmount it first, or use another --state-dir", all[i].mountpoint, (int)all[i].pid);
        }
        mount_infos_free(all, n);
        return code;
}

/* A session of its own, no inherited descriptor but the status pipe, output into the log. */
static int become_daemon(const struct place *place, int status_fd) {
        struct stat st;
        if (setsid() < 0)
                return -errno;
        if (stat(place->log, &st) == 0 && st.st_size > LOG_BYTES_MAX) {
                char old[4096];
                (void)snprintf(old, sizeof old, "%s.1", place->log);
                (void)rename(place->log, old);
        }
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC), log = open(place->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (null < 0 || log < 0)
                return -errno;
        if (status_fd != STATUS_FD && dup3(status_fd, STATUS_FD, O_CLOEXEC) < 0)
                return -errno;
        if (dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0 || close_range(STATUS_FD + 1, ~0u, 0) < 0)
                return -errno;
        return chdir("/") < 0 ? -errno : 0;
}

/* The parent: one line from the child. */
static int wait_for_child(int fd, pid_t pid, const struct place *place) {
        char line[1200] = "";
        size_t n = 0;
        while (n < sizeof line - 1 && !memchr(line, '\n', n)) {
                ssize_t k = read(fd, line + n, sizeof line - 1 - n);
                if (k < 0 && errno == EINTR)
                        continue;
                if (k <= 0)
                        break;
                n += (size_t)k;
        }
        char *end = memchr(line, '\n', n), *message = strchr(line, ' ');
        if (!end)
                return cli_fail(PROGRAM, EXIT_OTHER, "the daemon (pid %d) ended without a word: see %s", (int)pid, place->log);
        *end = 0;
        int code = (int)strtol(line, NULL, 10);
        if (code != EXIT_OK || message)
                return cli_fail(PROGRAM, code, "%s", message ? message + 1 : "failed");
        return EXIT_OK;
}

static int start(const struct request *q, struct daemon_config *c) {
        sigset_t old;
        int pipe_fd[2];
        if (q->foreground) {
                control_block_signals(&old);
                int level = q->o.debug ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO;
                if (log_open("tarn", level, NULL) < 0)
                        return EXIT_OTHER;
                return daemon_run(c);
        }
        if (pipe2(pipe_fd, O_CLOEXEC) < 0)
                return cli_fail(PROGRAM, EXIT_OTHER, "cannot make a pipe: %s", strerror(errno));
        pid_t pid = fork();
        if (pid < 0)
                return cli_fail(PROGRAM, EXIT_OTHER, "cannot start a daemon: %s", strerror(errno));
        if (pid > 0) {
                (void)close(pipe_fd[1]);
                int code = wait_for_child(pipe_fd[0], pid, c->place);
                (void)close(pipe_fd[0]);
                return code;
        }
        control_block_signals(&old);
        (void)close(pipe_fd[0]);
        int r = become_daemon(c->place, pipe_fd[1]);
        if (r == 0)
                r = log_open("tarn", q->o.debug ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, c->place->log);
        if (r < 0) {
                (void)dprintf(r == 0 ? STATUS_FD : pipe_fd[1], "%d cannot start the daemon: %s\n", EXIT_DISK, strerror(-r));
                _exit(EXIT_DISK);
        }
        c->status_fd = STATUS_FD;
        return daemon_run(c);
}

static int run(struct request *q) {
        _cleanup_free_ char *base = NULL, *workspace = NULL, *state = NULL, *mountpoint = NULL, *cache_dir = NULL, *ca_file = NULL, *crawlers = NULL;
        _cleanup_(place_free) struct place place = { 0 };
        struct session *session = NULL;
        const char *why = NULL, *list = buf_text(&q->list);
        if (remount_asked(list))
                return remount(PROGRAM, q->dir, list);
        int code = parse_options(q);
        if (code)
                return code;
        int r = url_split(q->url, &base, &workspace, &why);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_USAGE, "%s", r == -ENOMEM ? "out of memory" : why);
        if (q->o.ca_file && !(q->o.ca_file = ca_file = realpath(q->o.ca_file, NULL)))
                return cli_fail(PROGRAM, EXIT_USAGE, "cannot read the file of -o ca_file: %s", strerror(errno));
        if (q->o.crawlers && strcmp(q->o.crawlers, "none") != 0 && !(q->o.crawlers = crawlers = realpath(q->o.crawlers, NULL)))
                return cli_fail(PROGRAM, EXIT_USAGE, "cannot read the file of -o crawlers: %s", strerror(errno));
        r = state_dir(q->state_option, &state);
        if (r == 0)
                r = place_of(state, base, workspace, &place);
        if (r == 0)
                r = mkdir_p(place.dir, 0700);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot make the state directory %s: %s", place.dir ? place.dir : "", strerror(-r));
        r = session_open(state, base, &session);
        session_free(session);
        if (r == -ENOENT)
                return cli_fail(PROGRAM, EXIT_SIGN_IN, "not signed in to %s: run `tarn login %s --user NAME`", base, base);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_SIGN_IN, "the login to %s cannot be read: run `tarn login %s --user NAME` again", base, base);
        code = check_not_mounted(state, &place);
        if (code == 0)
                code = check_mountpoint(q->dir);
        if (code)
                return code;
        r = mountpoint_path(q->dir, &mountpoint);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_MOUNT_POINT, "cannot use %s as a mount point: %s", q->dir, strerror(-r));
        if (q->o.cache_dir) { /* made here, so that its path is whole before the daemon leaves this directory */
                r = mkdir_p(q->o.cache_dir, 0700);
                if (r < 0 || !(cache_dir = realpath(q->o.cache_dir, NULL)))
                        return cli_fail(PROGRAM, EXIT_DISK, "cannot make the cache directory %s: %s", q->o.cache_dir, strerror(r < 0 ? -r : errno));
                q->o.cache_dir = cache_dir;
        }
        struct daemon_config c = { .o = &q->o, .program = PROGRAM, .state = state, .base_url = base, .workspace = workspace, .url = q->url, .mountpoint = mountpoint, .place = &place, .status_fd = -1 };
        return start(q, &c);
}

int cmd_mount(int argc, char **argv) {
        struct request q = { 0 };
        const struct arg table[] = {
                { "URL/WORKSPACE", 0, ARG_POSITIONAL, &q.url, "such as https://drive.example.org/work" },
                { "DIR", 0, ARG_POSITIONAL, &q.dir, "an empty directory" },
                { "foreground", 'f', ARG_FLAG, &q.foreground, "stay in the foreground, log to stderr" },
                { "options", 'o', ARG_LIST, &q.list, "cache_dir= cache_size= free_floor= net_timeout= close=fast|local|server ro allow_other owner=stored idmap= suid dev noexec symlinks=any|inside|none nosubtype fastperm drain_timeout= ca_file= uploads= threads= debug" },
                { "state-dir", 0, ARG_STR, &q.state_option, "all state of this client in one directory" },
                { 0 },
        };
        int r = args_parse(PROGRAM, table, argc, argv);
        int code = r < 0 ? args_exit(r) : run(&q);
        request_free(&q);
        return code;
}

/* mount(8) gives SOURCE DIR [-sfnv] [-N namespace] [-o opts] [-t type]. */
int cmd_mount_helper(int argc, char **argv) {
        struct request q = { .list = BUF_INIT(65536) };
        bool fake = false;
        for (int i = 1; i < argc; i++) {
                const char *a = argv[i];
                if (a[0] == '-' && a[1] == 'o' && (a[2] || i + 1 < argc)) {
                        const char *list = a[2] ? a + 2 : argv[++i];
                        if ((q.list.bytes > 0 && buf_add(&q.list, ",", 1) < 0) || buf_add_str(&q.list, list) < 0)
                                return cli_fail("mount.tarn", EXIT_USAGE, "too many options");
                } else if (a[0] == '-' && (a[1] == 't' || a[1] == 'N') && i + 1 < argc)
                        i++;
                else if (a[0] == '-')
                        fake |= strchr(a, 'f') != NULL;
                else if (!q.url)
                        q.url = a;
                else if (!q.dir)
                        q.dir = a;
        }
        if (!q.url || !q.dir)
                return cli_fail("mount.tarn", EXIT_USAGE, "usage: mount.tarn URL/WORKSPACE DIR [-o OPT,...]");
        int code = fake ? EXIT_OK : run(&q);
        request_free(&q);
        return code;
}
