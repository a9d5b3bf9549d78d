/* SPDX-License-Identifier: Apache-2.0 */
/* held.c: `tarn held [PATH]` lists what only this client has after the server went back (cache/tree_held.c), `--send` sends it again, `--drop` lets it go. People decide: the server may have been restored on
 * purpose. PATH: a file, a directory with all that is in it, or a mount point.
 *
 *   {"cmd": "held", "after": INO} -> {"held": [{"ino", "path", "kind", "size", "mtime_ns"}, ...], "more": BOOL}   "path" is missing if something of the server has the name by now
 *       of a copy of what was newer here (cache/tree_newer.c) also "newer": true, "original": PATH or null, "changed": BOOL
 *       with "after" 0 also "lost": [{"ino", "path", "size", "mtime_ns"}, ...]: files whose newer bytes were here in part only; the first 500
 *   {"cmd": "held_of", "ino": INO} -> one of them as it is now, or {}
 *   {"cmd": "held_send", "ino": INO} -> {"ok": true} or {"error"}
 *   {"cmd": "held_seen", "ino": INO} -> {"ok": true}: a lost one is not listed any more
 *
 * Deciding is done by this program on the mount, as far as any program can do it, so that the kernel's caches, open files and permissions are as always:
 *
 *   send   a file with bytes    copied beside it, then renamed over it: for the server a new file. A kill in between leaves a temporary; what is held is held on
 *          a copy of what was newer here, its original unchanged   copied beside the original, renamed over that, and unlinked: the original's next version. The question whether it is unchanged
 *                               comes last before the rename; a version that comes in between is in the file's history, and one that is not here yet makes the server refuse (a conflict copy)
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

static json_t *path_json(struct cache *cache, uint64_t ino) {
        _cleanup_buf_ struct buf path = BUF_INIT(1u << 20);
        return ino && tree_path(cache->tree, ino, &path) == 0 && buf_text(&path) ? json_string(buf_text(&path)) : NULL;
}

static json_t *one_json(struct cache *cache, const struct node *n) {
        struct tree_newer newer;
        json_t *j = json_pack("{s:I, s:s, s:I, s:I}", "ino", (json_int_t)n->ino, "kind", kind_name(n->kind), "size", (json_int_t)n->size, "mtime_ns", (json_int_t)n->mtime_ns);
        json_t *path = path_json(cache, n->ino);
        if (path)
                (void)json_object_set_new(j, "path", path);
        if (n->kind != NODE_FILE || tree_newer_of(cache->tree, n->ino, &newer) != 1)
                return j;
        json_t *original = path_json(cache, newer.original);
        (void)json_object_set_new(j, "newer", json_true());
        (void)json_object_set_new(j, "changed", json_boolean(newer.changed || !original));
        (void)json_object_set_new(j, "original", original ? original : json_null());
        return j;
}

static int add_one(void *arg, const struct node *n) {
        struct listing *l = arg;
        if (json_array_size(l->list) == LISTED_MAX) {
                l->more = true;
                return 1;
        }
        return json_array_append_new(l->list, one_json(l->cache, n)) < 0 ? -ENOMEM : 0;
}

static int add_lost(void *arg, uint64_t ino, uint64_t size, int64_t mtime_ns) {
        struct listing *l = arg;
        json_t *path = path_json(l->cache, ino);
        if (!path || json_array_size(l->list) == LISTED_MAX) {
                json_decref(path);
                return path != NULL;
        }
        return json_array_append_new(l->list, json_pack("{s:I, s:o, s:I, s:I}", "ino", (json_int_t)ino, "path", path, "size", (json_int_t)size, "mtime_ns", (json_int_t)mtime_ns)) < 0 ? -ENOMEM : 0;
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
        json_t *j = json_pack("{s:o, s:b}", "held", l.list, "more", (int)l.more);
        struct listing lost = { .cache = cache, .list = after == 0 ? json_array() : NULL };
        if (lost.list && tree_newer_lost(cache->tree, add_lost, &lost) >= 0)
                (void)json_object_set(j, "lost", lost.list);
        json_decref(lost.list);
        return j;
}

json_t *held_of_json(struct cache *cache, uint64_t ino) {
        struct node n;
        json_t *j = tree_get(cache->tree, ino, &n) == 0 && !n.unlinked ? one_json(cache, &n) : NULL;
        return j ? j : json_object();
}

json_t *held_seen_json(struct cache *cache, uint64_t ino) {
        return tree_newer_seen(cache->tree, ino) < 0 ? json_pack("{s:s}", "error", "the local database does not answer") : json_pack("{s:b}", "ok", 1);
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
static int fetch(const struct mount_info *m, const char *place, json_t *all, json_t *lost, json_t ***ret, size_t *ret_n, size_t *ret_hidden) {
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
                json_array_foreach(json_object_get(page, "lost"), i, one)
                        if (path_is_at(json_string_value(json_object_get(one, "path")), place) && json_array_append(lost, one) < 0)
                                return cli_fail(PROGRAM, EXIT_OTHER, "out of memory");
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

/* may: asked last before the rename. */
static int copy_over(int from, int dir, const char *name, const char *temp, int (*may)(void *arg), void *arg) {
        struct stat st;
        _cleanup_close_ int to = -1;
        if (fstat(from, &st) < 0)
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
        if (r == 0 && may)
                r = may(arg);
        if (r == 0 && renameat(dir, temp, dir, name) < 0)
                r = -errno;
        if (r < 0)
                (void)unlinkat(dir, temp, 0);
        return r;
}

/* What is called `from`, in the place of what is called `to`. */
static int send_file(const char *from, const char *to, int (*may)(void *arg), void *arg) {
        _cleanup_free_ char *parent = strdup(to);
        char temp[64];
        char *slash = parent ? strrchr(parent, '/') : NULL;
        if (!slash)
                return -ENOMEM;
        *slash = 0;
        _cleanup_close_ int dir = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd = open(from, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (dir < 0 || fd < 0)
                return -errno;
        (void)snprintf(temp, sizeof temp, ".tarn-held-%d.tmp", (int)getpid());
        return copy_over(fd, dir, slash + 1, temp, may, arg);
}

struct unchanged { const struct mount_info *m; json_int_t ino; const char *original; };
static int is_unchanged(void *arg) {
        const struct unchanged *u = arg;
        _cleanup_json_ json_t *now = NULL;
        if (ask(u->m, "held_of", "ino", u->ino, &now))
                return -EIO;
        const char *original = json_string_value(json_object_get(now, "original"));
        return !original || strcmp(original, u->original) != 0 || !json_is_false(json_object_get(now, "changed")) ? -ESTALE : 0;
}

/* The bytes of a copy become the next version of the file that it was made of; -ESTALE: that has another one by now, so it stays a copy. */
static int send_newer(const struct mount_info *m, const json_t *one, const char *full) {
        struct unchanged u = { .m = m, .ino = json_integer_value(json_object_get(one, "ino")), .original = json_string_value(json_object_get(one, "original")) };
        _cleanup_free_ char *original = NULL;
        if (!u.original)
                return -ESTALE;
        if (asprintf(&original, "%s/%s", m->mountpoint, u.original) < 0)
                return -ENOMEM;
        int r = is_unchanged(&u);
        if (r == 0)
                r = send_file(full, original, is_unchanged, &u);
        return r < 0 ? r : unlink(full) < 0 && errno != ENOENT ? -errno : 0; /* gone: the same bytes are under the name already */
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
        int r = -ESTALE;
        if (send && json_is_true(json_object_get(one, "newer")))
                r = send_newer(m, one, full);
        if (send && r == -ESTALE)
                r = send_file(full, full, NULL, NULL);
        else if (!send)
                r = (dir ? rmdir(full) : unlink(full)) < 0 ? -errno : 0;
        return r == 0 || (r == -ENOENT && !send) ? 0 : cli_fail(PROGRAM, EXIT_OTHER, "%s: %s", full, strerror(-r));
}

static void print(const struct mount_info *m, const json_t *one, const char *reason) {
        char size[24], when[32] = "?";
        time_t t = (time_t)(json_integer_value(json_object_get(one, "mtime_ns")) / 1000000000);
        struct tm tm;
        format_bytes((uint64_t)json_integer_value(json_object_get(one, "size")), size);
        if (localtime_r(&t, &tm))
                (void)strftime(when, sizeof when, "%Y-%m-%d %H:%M", &tm);
        const char *kind = json_string_value(json_object_get(one, "kind")), *original = json_string_value(json_object_get(one, "original"));
        (void)printf("%s  %-9s  %10s  %s  %s/%s", when, kind ? kind : "file", size, reason, m->mountpoint, json_string_value(json_object_get(one, "path")));
        if (original)
                (void)printf(" (of %s%s)", original, json_is_true(json_object_get(one, "changed")) ? ", which has changed since" : "");
        (void)printf("\n");
}

static int held_at(const struct mount_info *m, const char *place, bool send, bool drop) {
        _cleanup_json_ json_t *all = json_array(), *lost = json_array(), *again = NULL, *ok = NULL;
        json_t *gone;
        _cleanup_free_ json_t **v = NULL;
        size_t n = 0, hidden = 0, done = 0, k;
        if (drop && !*place) {
                int r = mount_ask(PROGRAM, m, "accept", ANSWER_MS, &ok);
                if (r == 0)
                        (void)printf("%s  what is held is removed in the background; `tarn status` tells when it is done\n", m->mountpoint);
                return r;
        }
        int code = all && lost ? fetch(m, place, all, lost, &v, &n, &hidden) : EXIT_OTHER;
        if (code)
                return code;
        for (size_t i = 0; i < n && !send && !drop; i++)
                print(m, v[i], json_is_true(json_object_get(v[i], "newer")) ? "newer here" : "only here");
        json_array_foreach(lost, k, gone) {
                _cleanup_json_ json_t *seen = NULL;
                if (!send && !drop)
                        print(m, gone, "was newer here, but not all of it is cached: lost");
                else if (drop && ask(m, "held_seen", "ino", json_integer_value(json_object_get(gone, "ino")), &seen))
                        return EXIT_OTHER;
        }
        for (size_t i = 0; i < n && (send || drop); i++) {
                int one = decide(m, v[send ? i : n - 1 - i], send);
                done += one == 0;
                code = code ? code : one;
        }
        if (send || drop) {
                int one = ask(m, "held", "after", 0, &again); /* what is held no more is not kept from being evicted any more */
                code = code ? code : one;
                (void)printf("%s  %zu of %zu %s\n", m->mountpoint, done, n, send ? "on their way to the server" : "dropped");
        } else if (n == 0 && json_array_size(lost) == 0) {
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
