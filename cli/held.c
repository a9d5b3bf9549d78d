/* SPDX-License-Identifier: Apache-2.0 */
/* held.c: `tarn held [PATH]` lists what only this client has after the server went back (cache/tree_held.c), `--send` sends it again, `--drop` lets it go. People decide: the server may have been restored on
 * purpose. PATH: a file, a directory with all that is in it, or a mount point.
 *
 *   {"cmd": "held", "after": INO} -> {"held": [{"ino", "path", "kind", "size", "mtime_ns"}, ...], "more": BOOL}   "path" is missing if something of the server has the name by now
 *   {"cmd": "held_send", "ino": INO} -> {"ok": true} or {"error"}
 *
 * Deciding is done by this program on the mount, as far as any program can do it, so that the kernel's caches, open files and permissions are as always:
 *
 *   send   a file with bytes    copied beside it, then renamed over it: for the server a new file. A kill in between leaves a temporary; what is held is held on
 *          all else             held_send: the daemon sends the row as it is
 *   drop                        unlink, rmdir: the daemon knows that the server has to be told nothing. What something else has the name of goes with `tarn accept` only
 *
 * `--drop` without a path is `tarn accept`: the engine removes all of it, in steps.
 *
 * Directories are sent before, and dropped after what is in them. Each step is whole by itself; what is left after an error is held as before. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "base/args.h"
#include "base/err.h"
#include "base/io.h"
#include "daemon.h"

#define PROGRAM "tarn held"
#define ANSWER_MS 10000
#define LISTED_MAX 500u
#define COPY_BYTES (1u << 20)

/* ---- the daemon's side ---- */

struct listing { struct cache *cache; json_t *list; bool more; };

static const char *kind_name(enum node_kind kind) {
        static const char *const names[] = { [NODE_FILE] = "file", [NODE_DIR] = "directory", [NODE_SYMLINK] = "symlink" };
        return kind < ARRAY_SIZE(names) && names[kind] ? names[kind] : "special";
}

static int add_one(void *arg, const struct node *n) {
        struct listing *l = arg;
        _cleanup_buf_ struct buf path = BUF_INIT(1u << 20);
        if (json_array_size(l->list) == LISTED_MAX) {
                l->more = true;
                return 1;
        }
        json_t *j = json_pack("{s:I, s:s, s:I, s:I}", "ino", (json_int_t)n->ino, "kind", kind_name(n->kind), "size", (json_int_t)n->size, "mtime_ns", (json_int_t)n->mtime_ns);
        if (j && tree_path(l->cache->tree, n->ino, &path) == 0 && buf_text(&path))
                (void)json_object_set_new(j, "path", json_string(buf_text(&path)));
        return json_array_append_new(l->list, j) < 0 ? -ENOMEM : 0;
}

json_t *held_list_json(struct cache *cache, uint64_t after) {
        struct listing l = { .cache = cache, .list = json_array() };
        int r = l.list ? after == 0 ? cache_keep_held(cache) : 0 : -ENOMEM; /* what was dropped or sent since is kept no more */
        if (r == 0)
                r = tree_held_list(cache->tree, after, add_one, &l);
        if (r < 0) {
                json_decref(l.list);
                return json_pack("{s:s}", "error", "the local database does not answer");
        }
        return json_pack("{s:o, s:b}", "held", l.list, "more", (int)l.more);
}

json_t *held_send_json(struct cache *cache, uint64_t ino) {
        int r = tree_held_send(cache->tree, ino);
        if (r == -ENOENT) /* with what is in it, or by somebody else */
                r = 0;
        return r < 0 ? json_pack("{s:s}", "error", r == -EEXIST ? "something on the server has its name" : r == -EMLINK ? "it has several names" : strerror(-r)) : json_pack("{s:b}", "ok", 1);
}

/* ---- this side ---- */

static int ask(const struct mount_info *m, const char *cmd, const char *key, json_int_t value, json_t **ret) {
        _cleanup_json_ json_t *q = json_pack("{s:s, s:I}", "cmd", cmd, key, value), *answer = NULL;
        const char *error;
        int code = mount_query(PROGRAM, m, q, ANSWER_MS, &answer);
        if (code)
                return code;
        if (json_get_str(answer, "error", &error) == 0)
                return cli_fail(PROGRAM, EXIT_OTHER, "%s: %s", m->mountpoint, error);
        *ret = steal_ptr(answer);
        return 0;
}

static int by_path(const void *a, const void *b) {
        return strcmp(json_string_value(json_object_get(*(json_t *const *)a, "path")), json_string_value(json_object_get(*(json_t *const *)b, "path")));
}

/* Those at the place, parents before what is in them. ret_hidden: how many have no path. */
static int fetch(const struct mount_info *m, const char *place, json_t *all, json_t ***ret, size_t *ret_n, size_t *ret_hidden) {
        json_int_t after = 0;
        bool more = true;
        *ret_hidden = 0;
        while (more) {
                _cleanup_json_ json_t *page = NULL;
                json_t *one;
                size_t i;
                int code = ask(m, "held", "after", after, &page);
                if (code)
                        return code;
                json_t *held = json_object_get(page, "held");
                json_array_foreach(held, i, one) {
                        const char *path = json_string_value(json_object_get(one, "path"));
                        after = json_integer_value(json_object_get(one, "ino"));
                        if (!path)
                                ++*ret_hidden;
                        else if (path_is_at(path, place) && json_array_append(all, one) < 0)
                                return cli_fail(PROGRAM, EXIT_OTHER, "out of memory");
                }
                more = json_is_true(json_object_get(page, "more"));
        }
        size_t n = json_array_size(all);
        json_t **v = calloc(n + 1, sizeof(*v));
        if (!v)
                return cli_fail(PROGRAM, EXIT_OTHER, "out of memory");
        for (size_t i = 0; i < n; i++)
                v[i] = json_array_get(all, i);
        qsort(v, n, sizeof(*v), by_path);
        *ret = v;
        *ret_n = n;
        return 0;
}

static int copy_bytes(int from, int to) {
        _cleanup_free_ char *buf = malloc(COPY_BYTES);
        if (!buf)
                return -ENOMEM;
        for (;;) {
                ssize_t n = read(from, buf, COPY_BYTES);
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return 0;
                int r = write_full(to, buf, (size_t)n);
                if (r < 0)
                        return r;
        }
}

/* Attributes of users; tarn's own are about the node, not of it. */
static int copy_xattrs(int from, int to) {
        char names[65536], value[65536];
        ssize_t n = flistxattr(from, names, sizeof names);
        for (ssize_t at = 0; at < n; at += (ssize_t)strlen(names + at) + 1) {
                if (strncmp(names + at, "user.tarn.", 10) == 0)
                        continue;
                ssize_t k = fgetxattr(from, names + at, value, sizeof value);
                if (k < 0 || fsetxattr(to, names + at, value, (size_t)k, 0) < 0)
                        return -errno;
        }
        return n < 0 && errno != ENOTSUP ? -errno : 0;
}

static int copy_over(int dir, const char *name, const char *temp) {
        struct stat st;
        _cleanup_close_ int from = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC), to = -1;
        if (from < 0 || fstat(from, &st) < 0)
                return -errno;
        to = openat(dir, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (to < 0)
                return -errno;
        int r = copy_bytes(from, to);
        if (r == 0)
                r = copy_xattrs(from, to);
        if (r == 0 && (st.st_uid != getuid() || st.st_gid != getgid()) && fchown(to, st.st_uid, st.st_gid) < 0 && errno != EPERM)
                r = -errno;
        const struct timespec times[2] = { st.st_atim, st.st_mtim };
        if (r == 0 && (fchmod(to, st.st_mode & 07777) < 0 || futimens(to, times) < 0 || fsync(to) < 0))
                r = -errno;
        if (r == 0 && close(steal_fd(&to)) < 0)
                r = -errno;
        if (r == 0 && renameat(dir, temp, dir, name) < 0)
                r = -errno;
        if (r < 0)
                (void)unlinkat(dir, temp, 0);
        return r;
}

static int send_file(const char *full) {
        _cleanup_free_ char *parent = strdup(full);
        char temp[64];
        char *slash = parent ? strrchr(parent, '/') : NULL;
        if (!slash)
                return -ENOMEM;
        *slash = 0;
        _cleanup_close_ int dir = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dir < 0)
                return -errno;
        (void)snprintf(temp, sizeof temp, ".tarn-held-%d.tmp", (int)getpid());
        return copy_over(dir, slash + 1, temp);
}

static int decide(const struct mount_info *m, const json_t *one, bool send) {
        const char *path = json_string_value(json_object_get(one, "path")), *kind = json_string_value(json_object_get(one, "kind"));
        _cleanup_free_ char *full = NULL;
        _cleanup_json_ json_t *ok = NULL;
        if (!kind || asprintf(&full, "%s/%s", m->mountpoint, path) < 0)
                return cli_fail(PROGRAM, EXIT_OTHER, "out of memory");
        bool dir = strcmp(kind, "directory") == 0;
        if (send && (strcmp(kind, "file") != 0 || json_integer_value(json_object_get(one, "size")) == 0))
                return ask(m, "held_send", "ino", json_integer_value(json_object_get(one, "ino")), &ok);
        int r = send ? send_file(full) : (dir ? rmdir(full) : unlink(full)) < 0 ? -errno : 0;
        return r == 0 || (r == -ENOENT && !send) ? 0 : cli_fail(PROGRAM, EXIT_OTHER, "%s: %s", full, strerror(-r));
}

static void print(const struct mount_info *m, const json_t *one) {
        char size[24], when[32] = "?";
        time_t t = (time_t)(json_integer_value(json_object_get(one, "mtime_ns")) / 1000000000);
        struct tm tm;
        format_bytes((uint64_t)json_integer_value(json_object_get(one, "size")), size);
        if (localtime_r(&t, &tm))
                (void)strftime(when, sizeof when, "%Y-%m-%d %H:%M", &tm);
        (void)printf("%s  %-9s  %10s  only here  %s/%s\n", when, json_string_value(json_object_get(one, "kind")), size, m->mountpoint, json_string_value(json_object_get(one, "path")));
}

static int held_at(const struct mount_info *m, const char *place, bool send, bool drop) {
        _cleanup_json_ json_t *all = json_array(), *again = NULL, *ok = NULL;
        _cleanup_free_ json_t **v = NULL;
        size_t n = 0, hidden = 0, done = 0;
        if (drop && !*place) {
                int r = mount_ask(PROGRAM, m, "accept", ANSWER_MS, &ok);
                if (r == 0)
                        (void)printf("%s  what is held is removed in the background; `tarn status` tells when it is done\n", m->mountpoint);
                return r;
        }
        int code = all ? fetch(m, place, all, &v, &n, &hidden) : EXIT_OTHER;
        if (code)
                return code;
        for (size_t i = 0; i < n && !send && !drop; i++)
                print(m, v[i]);
        for (size_t i = 0; i < n && (send || drop); i++) {
                int one = decide(m, v[send ? i : n - 1 - i], send);
                done += one == 0;
                code = code ? code : one;
        }
        if (send || drop) {
                int one = ask(m, "held", "after", 0, &again); /* what is held no more is not kept from being evicted any more */
                code = code ? code : one;
                (void)printf("%s  %zu of %zu %s\n", m->mountpoint, done, n, send ? "on their way to the server" : "dropped");
        } else if (n == 0) {
                (void)printf("%s  nothing is held\n", m->mountpoint);
        }
        if (hidden && (!*place))
                (void)printf("%s  %zu more are hidden by what the server has under their names\n", m->mountpoint, hidden);
        return code;
}

int cmd_held(int argc, char **argv) {
        const char *path = NULL, *state_option = NULL;
        bool send = false, drop = false;
        const struct arg table[] = {
                { "PATH", 0, ARG_POSITIONAL_OPTIONAL, &path, "a file, a directory with all that is in it, or a mount point; without: all mounts" },
                { "send", 0, ARG_FLAG, &send, "send it to the server again, as something new" },
                { "drop", 0, ARG_FLAG, &drop, "remove it here" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *state = NULL, *full = NULL;
        _cleanup_(mounts_free) struct mounts m = { 0 };
        int r = args_parse(PROGRAM, table, argc, argv);
        if (r < 0)
                return args_exit(r);
        if (send && drop)
                return cli_fail(PROGRAM, EXIT_USAGE, "--send or --drop, not both");
        r = state_dir(state_option, &state);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot find a state directory: %s", strerror(-r));
        if (path && (r = mountpoint_path(path, &full)) < 0)
                return cli_fail(PROGRAM, EXIT_OTHER, "%s: %s", path, strerror(-r));
        int code = find_mounts(PROGRAM, state, full, &m);
        for (size_t i = 0; code == 0 && m.found[i]; i++)
                code = held_at(m.found[i], path_in_mount(m.found[i], full), send, drop);
        return code;
}
