/* SPDX-License-Identifier: Apache-2.0 */
/* mount.c: the life of a mount.
 *
 *   mount_new     an object and its listener; no thread, nothing mounted
 *   mount_start   checks the mount point, mounts, starts notifier, job pool, closer and workers
 *   running       workers read requests and answer; mount_wait blocks
 *   ended         unmounted (by us, umount(8), fusermount3 -u): every worker's read fails with ENODEV and it leaves
 *   mount_free    joins everything: workers, notifier, what is parked, jobs, closer; releases the handles whose RELEASE never came
 *
 * mount_stop without lazy fails with -EBUSY while files are open below. With lazy the mount leaves the tree at once; programs that still have files open would keep
 * the connection and hence us, so the workers are told to leave too: a signal (SIGURG, with an empty handler, blocked everywhere else) gets them out of read(2), again
 * and again until each has seen the flag. Closing the descriptor then ends the connection for those programs.
 *
 * A mount point that answers ENOTCONN is what a killed daemon left: it is detached. Root mounts and unmounts itself; others need fusermount3. */
#include "fs.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"

#define WORKERS_DEFAULT 8u
#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256 /* linux/mount.h; not in every libc's */
#endif
#define JOB_THREADS 4u
#define WAKE_SIGNAL SIGURG
#define MOUNTINFO_BYTES_MAX (16u << 20)

extern char **environ;

static const struct fuse_lowlevel_ops ops = {
        .init = op_init,
        .lookup = op_lookup,
        .forget = op_forget,
        .forget_multi = op_forget_multi,
        .getattr = op_getattr,
        .setattr = op_setattr,
        .readlink = op_readlink,
        .mknod = op_mknod,
        .mkdir = op_mkdir,
        .unlink = op_unlink,
        .rmdir = op_rmdir,
        .symlink = op_symlink,
        .rename = op_rename,
        .link = op_link,
        .open = op_open,
        .create = op_create,
        .read = op_read,
        .write = op_write,
        .flush = op_flush,
        .release = op_release,
        .fsync = op_fsync,
        .opendir = op_opendir,
        .readdir = op_readdir,
        .readdirplus = op_readdirplus,
        .releasedir = op_releasedir,
        .fsyncdir = op_fsyncdir,
        .statfs = op_statfs,
        .setxattr = op_setxattr,
        .getxattr = op_getxattr,
        .listxattr = op_listxattr,
        .removexattr = op_removexattr,
        .access = op_access,
        .fallocate = op_fallocate,
        .lseek = op_lseek,
        .copy_file_range = op_copy_file_range,
};

static int why(char *ret, size_t n, int r, const char *fmt, ...) _printf_(4, 5);
static int why(char *ret, size_t n, int r, const char *fmt, ...) {
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(ret, n, fmt, args);
        va_end(args);
        return r;
}

static void fuse_says(enum fuse_log_level level, const char *fmt, va_list args) {
        char line[512];
        (void)vsnprintf(line, sizeof line, fmt, args);
        size_t n = strlen(line);
        while (n > 0 && line[n - 1] == '\n')
                line[--n] = 0;
        log_debug("event=libfuse text=\"%s\"", line);
}

int mount_new(const struct mount_config *config, struct mount **ret) {
        struct mount *m = calloc(1, sizeof *m);
        if (!m)
                return -ENOMEM;
        m->cfg = *config;
        lock_init(&m->lock, "mount", RANK_QUEUE);
        lock_init(&m->life, "mount life", RANK_QUEUE);
        cond_init(&m->life_changed);
        cond_init(&m->park_gone);
        notify_init(m);
        m->mountpoint = strdup(config->mountpoint);
        m->source_name = strdup(config->source_name ? config->source_name : "tarn");
        if (!m->mountpoint || !m->source_name || nodes_init(m) < 0) {
                mount_free(m);
                return -ENOMEM;
        }
        m->cfg.mountpoint = m->mountpoint;
        m->cfg.source_name = m->source_name;
        m->n_workers = config->threads ? config->threads : WORKERS_DEFAULT;
        *ret = m;
        return 0;
}

struct listener *mount_listener(struct mount *m) {
        return &m->listener;
}

/* ---- mount points ---- */

static int run_fusermount(const char *option, const char *option2, const char *path) {
        const char *argv[7] = { "fusermount3", "-u" };
        size_t n = 2;
        if (option)
                argv[n++] = option;
        if (option2)
                argv[n++] = option2;
        argv[n++] = "--";
        argv[n++] = path;
        argv[n] = NULL;
        pid_t pid;
        int status;
        posix_spawn_file_actions_t actions;
        if (posix_spawn_file_actions_init(&actions) != 0)
                return -ENOMEM;
        (void)posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
        int r = -posix_spawnp(&pid, "fusermount3", &actions, NULL, (char *const *)argv, environ);
        (void)posix_spawn_file_actions_destroy(&actions);
        if (r < 0)
                return r;
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return -errno;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

static int detach(const char *path, bool lazy) {
        if (umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
                return 0;
        if (errno != EPERM)
                return -errno;
        return run_fusermount("-q", lazy ? "-z" : NULL, path);
}

/* Octal escapes of mountinfo (\040) undone in place. */
static void unescape(char *s) {
        char *to = s;
        for (; *s; s++) {
                if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
                        *to++ = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
                        s += 3;
                } else {
                        *to++ = *s;
                }
        }
        *to = 0;
}

/* Is the topmost file system at path a FUSE one? ret_source gets its source. */
static bool fuse_mounted(const char *path, char *ret_source, size_t n) {
        _cleanup_buf_ struct buf b = BUF_INIT(MOUNTINFO_BYTES_MAX);
        bool found = false;
        if (file_load("/proc/self/mountinfo", MOUNTINFO_BYTES_MAX, &b) < 0 || !buf_text(&b))
                return false;
        char *rest = (char *)b.data, *line;
        while ((line = strsep(&rest, "\n"))) { /* id parent dev root point options [fields] - type source options */
                char *dash = strstr(line, " - "), *field = line, *point = NULL;
                for (int i = 0; i < 5 && field; i++)
                        point = strsep(&field, " ");
                if (!dash || !point)
                        continue;
                char *tail = dash + 3, *type = strsep(&tail, " "), *source = strsep(&tail, " ");
                unescape(point);
                if (strcmp(point, path) != 0)
                        continue;
                found = type && strncmp(type, "fuse", 4) == 0; /* later lines lie on top */
                if (found && source) {
                        unescape(source);
                        (void)snprintf(ret_source, n, "%s", source);
                }
        }
        return found;
}

static int check_mountpoint(struct mount *m, char *ret_why, size_t n) {
        const char *path = m->mountpoint;
        struct stat st;
        struct statvfs v;
        int r = statvfs(path, &v) < 0 || stat(path, &st) < 0 ? -errno : 0; /* stat alone may come from the kernel's cache long after the daemon died */
        if (r == -ENOTCONN) { /* left by a daemon that is gone */
                r = detach(path, true);
                if (r < 0)
                        return why(ret_why, n, -EBUSY, "%s: a dead mount is there and cannot be detached (%s); try: fusermount3 -u -z %s", path, err_name(r), path);
                log_info("event=stale_mount_detached mountpoint=%s", path);
                r = stat(path, &st) < 0 ? -errno : 0;
        }
        if (r == -ENOENT)
                return why(ret_why, n, r, "%s: no such directory; create it first: mkdir -p %s", path, path);
        if (r < 0)
                return why(ret_why, n, r, "%s: %s", path, strerrordesc_np(-r));
        if (!S_ISDIR(st.st_mode))
                return why(ret_why, n, -ENOTDIR, "%s: is not a directory; give an empty directory", path);
        char source[256] = "?", *real = realpath(path, NULL);
        bool live = real && fuse_mounted(real, source, sizeof source);
        free(real);
        if (live)
                return why(ret_why, n, -EBUSY, "%s: %s is mounted there already; unmount it first: tarn umount %s", path, source, path);
        if (m->cfg.nonempty)
                return 0;
        DIR *dir = opendir(path);
        if (!dir)
                return why(ret_why, n, -errno, "%s: cannot be read: %s", path, strerrordesc_np(errno));
        struct dirent *entry;
        while ((entry = readdir(dir)) && (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0))
                ;
        char found[NAME_BYTES_MAX + 1];
        (void)snprintf(found, sizeof found, "%s", entry ? entry->d_name : "");
        (void)closedir(dir);
        if (found[0])
                return why(ret_why, n, -ENOTEMPTY, "%s: is not empty (it has %s); give an empty directory, or -o nonempty to hide what is there", path, found);
        return 0;
}

static int check_device(char *ret_why, size_t n) {
        _cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
        if (fd >= 0)
                return 0;
        if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
                return why(ret_why, n, -ENODEV, "/dev/fuse is missing: load the kernel module (modprobe fuse), or give this container the device");
        return why(ret_why, n, -EPERM, "/dev/fuse: %s: FUSE is not permitted here", strerrordesc_np(errno));
}

/* Dirty mapped pages of programs that still have files open reach us before they are cut off. */
static void flush_pages(const char *path) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0)
                (void)syncfs(fd);
}

/* libfuse unmounts the path once more when its descriptor still works, whatever is mounted there by now: it is given one that reports an error instead
 * (a pipe without a reader), which also closes the connection. */
static void close_session(struct fuse_session *se) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) == 0) {
                (void)close(ends[0]);
                (void)dup3(ends[1], fuse_session_fd(se), O_CLOEXEC);
                (void)close(ends[1]);
        }
        fuse_session_unmount(se);
}

/* ---- workers ---- */

static void on_wake(int number) {
}

static void *worker(void *arg) {
        struct mount *m = arg;
        struct fuse_buf buf = { 0 };
        sigset_t wake;
        (void)sigemptyset(&wake);
        (void)sigaddset(&wake, WAKE_SIGNAL);
        (void)pthread_sigmask(SIG_UNBLOCK, &wake, NULL);
        while (!fuse_session_exited(m->se)) {
                int r = fuse_session_receive_buf(m->se, &buf);
                if (r == -EINTR || r == -EAGAIN)
                        continue;
                if (r <= 0)
                        break;
                fuse_session_process_buf(m->se, &buf);
                lock_assert_none();
        }
        fuse_session_exit(m->se); /* one saw the end: all leave */
        free(buf.mem);
        worker_buffers_free();
        LOCK_SCOPE(&m->life);
        m->alive--;
        m->ended = true;
        cond_broadcast(&m->life_changed);
        return NULL;
}

static int start_threads(struct mount *m) {
        struct sigaction act = { .sa_handler = on_wake }; /* without SA_RESTART: read(2) returns */
        (void)sigaction(WAKE_SIGNAL, &act, NULL);
        m->workers = calloc(m->n_workers, sizeof *m->workers);
        if (!m->workers)
                return -ENOMEM;
        int r = notify_start(m);
        if (r == 0)
                r = pool_new("fuse-job", JOB_THREADS, &m->jobs);
        if (r == 0)
                r = closer_start(m);
        for (unsigned i = 0; r == 0 && i < m->n_workers; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "fuse-%u", i % 1000);
                lock_take(&m->life);
                r = thread_start(&m->workers[i], name, worker, m);
                m->alive += r == 0;
                lock_drop(&m->life);
                if (r < 0) {
                        m->n_workers = i;
                        return r;
                }
        }
        return r;
}

static int add_options(struct mount *m, struct fuse_args *args) {
        _cleanup_buf_ struct buf b = BUF_INIT(8192);
        int r = buf_add_str(&b, m->cfg.nosubtype ? "fsname=" : "subtype=tarn,fsname=");
        for (const char *p = m->source_name; *p && r == 0; p++) {
                if (*p == ',' || *p == '\\')
                        r = buf_add_str(&b, "\\");
                if (r == 0)
                        r = buf_add(&b, p, 1);
        }
        if (r == 0 && m->cfg.ro)
                r = buf_add_str(&b, ",ro");
        if (r == 0 && m->cfg.allow_other)
                r = buf_add_str(&b, ",allow_other");
        if (r == 0 && m->cfg.default_permissions && !m->cfg.fastperm)
                r = buf_add_str(&b, ",default_permissions");
        if (r == 0 && m->cfg.suid)
                r = buf_add_str(&b, ",suid");
        if (r == 0 && m->cfg.noexec)
                r = buf_add_str(&b, ",noexec");
        if (r == 0 && m->cfg.dev)
                r = buf_add_str(&b, ",dev");
        if (r == 0 && m->cfg.debug)
                r = buf_add_str(&b, ",debug");
        if (r < 0)
                return r;
        const char *text = buf_text(&b);
        return !text || fuse_opt_add_arg(args, "tarn") != 0 || fuse_opt_add_arg(args, "-o") != 0 || fuse_opt_add_arg(args, text) != 0 ? -ENOMEM : 0;
}

/* libfuse does not know the flag. Nothing asks the daemon: it is a flag of this place in the tree of mounts alone. */
static int forbid_following(struct mount *m) {
        const unsigned long keep = MS_NOSUID * !m->cfg.suid | MS_NODEV * !m->cfg.dev | MS_NOEXEC * m->cfg.noexec | MS_RDONLY * m->cfg.ro;
        return mount(NULL, m->mountpoint, NULL, MS_REMOUNT | MS_BIND | MS_NOSYMFOLLOW | keep, NULL) < 0 ? -errno : 0;
}

int mount_start(struct mount *m, char *ret_why, size_t n) {
        int r = check_mountpoint(m, ret_why, n);
        if (r == 0)
                r = check_device(ret_why, n);
        if (r < 0)
                return r;
        fuse_set_log_func(fuse_says);
        struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
        r = add_options(m, &args);
        m->se = r == 0 ? fuse_session_new(&args, &ops, sizeof ops, m) : NULL;
        fuse_opt_free_args(&args);
        if (!m->se)
                return why(ret_why, n, r < 0 ? r : -EINVAL, "%s: libfuse refused the mount options", m->mountpoint);
        if (fuse_session_mount(m->se, m->mountpoint) != 0)
                return why(ret_why, n, -EPERM, "%s: cannot be mounted: FUSE is not permitted here%s", m->mountpoint,
                           geteuid() != 0 ? " (is fusermount3 installed, and user_allow_other set in /etc/fuse.conf if allow_other is wanted?)" : "");
        m->mounted = true;
        r = FAILPOINT("mount.visible");
        if (r == 0 && m->cfg.symlinks == SYMLINKS_NONE)
                r = forbid_following(m);
        if (r == 0)
                r = fuse_session_custom_io(m->se, &mount_io, fuse_session_fd(m->se));
        if (r == 0)
                r = start_threads(m);
        if (r == 0)
                r = FAILPOINT("mount.answers");
        if (r < 0) {
                (void)detach(m->mountpoint, true);
                return why(ret_why, n, r, "%s: cannot start: %s", m->mountpoint, strerrordesc_np(-r));
        }
        return 0;
}

int mount_wait(struct mount *m) {
        LOCK_SCOPE(&m->life);
        while (!m->ended && !m->stopping)
                cond_wait(&m->life_changed, &m->life);
        return 0;
}

/* Gets every worker out of read(2). */
static void wake_workers(struct mount *m) {
        fuse_session_exit(m->se);
        lock_take(&m->life);
        while (m->alive > 0) {
                for (unsigned i = 0; i < m->n_workers; i++)
                        (void)pthread_kill(m->workers[i], WAKE_SIGNAL); /* not joined yet: the handle is good also for one that has left */
                (void)!cond_wait_until(&m->life_changed, &m->life, clock_mono_ms(clock_system()) + 20);
        }
        lock_drop(&m->life);
}

int mount_stop(struct mount *m, bool lazy) {
        if (!m->mounted)
                return 0;
        lock_take(&m->life);
        bool ended = m->ended;
        lock_drop(&m->life);
        if (!ended) {
                if (lazy)
                        flush_pages(m->mountpoint);
                int r = detach(m->mountpoint, lazy);
                if (r < 0 && r != -EINVAL) /* EINVAL: it is no mount point any more */
                        return r;
        }
        LOCK_SCOPE(&m->life);
        m->stopping = true;
        cond_broadcast(&m->life_changed);
        return 0;
}

void mount_free(struct mount *m) {
        if (!m)
                return;
        if (m->mounted) {
                lock_take(&m->life);
                bool gone = m->ended || m->stopping;
                lock_drop(&m->life);
                if (!gone)
                        (void)detach(m->mountpoint, true);
                wake_workers(m);
                for (unsigned i = 0; m->workers && i < m->n_workers; i++)
                        (void)pthread_join(m->workers[i], NULL);
        }
        notify_stop(m);
        parks_end(m);
        pool_free(m->jobs);
        closer_stop(m);
        handles_end(m);
        if (m->se) {
                if (m->mounted)
                        close_session(m->se);
                fuse_session_destroy(m->se);
        }
        nodes_free(m);
        free(m->workers);
        free(m->mountpoint);
        free(m->source_name);
        cond_destroy(&m->note_more);
        cond_destroy(&m->life_changed);
        cond_destroy(&m->park_gone);
        lock_destroy(&m->life);
        lock_destroy(&m->lock);
        free(m);
}
