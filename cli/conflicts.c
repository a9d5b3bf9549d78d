/* SPDX-License-Identifier: Apache-2.0 */
/* conflicts.c: `tarn conflicts [DIR]` lists conflict copies with both versions, `tarn conflicts resolve PATH --keep mine|theirs|both` decides about one.
 *
 * The list comes from the daemon (its database knows the marks, cache/tree_conflict.c):
 *
 *   {"conflicts": [{"path", "kind", "size", "mtime_ns", "version", "pending",              the copy
 *                   "host", "first_version",                                              who made it; the version that had the name then
 *                   "original": {"path", "kind", "size", "mtime_ns", "version", "pending"} or null}], "more": BOOL}
 *
 * Deciding is done by this program on the mount, with calls that any program can make, so that the kernel's caches, open files and permissions are as always:
 *
 *   mine    rename(copy, original): the file system makes the copy's bytes the original's new version, the replaced one stays in its history
 *   theirs  unlink(copy): the server keeps it as it keeps whatever is deleted
 *   both    removexattr(copy, user.tarn.conflict) */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "base/args.h"
#include "base/io.h"
#include "daemon.h"

#define PROGRAM "tarn conflicts"
#define ANSWER_MS 10000
#define LISTED_MAX 2000u

/* ---- the daemon's side ---- */

struct listing { struct cache *cache; json_t *list; bool more; };

static const char *kind_name(enum node_kind kind) {
        static const char *const names[] = { [NODE_FILE] = "file", [NODE_DIR] = "directory", [NODE_SYMLINK] = "symlink" };
        return kind < ARRAY_SIZE(names) && names[kind] ? names[kind] : "special";
}

static json_t *node_json(struct listing *l, const struct node *n, uint64_t parent, const char *name) {
        _cleanup_buf_ struct buf path = BUF_INIT(1u << 20);
        char version[2 * ID_BYTES + 1];
        int r = tree_path(l->cache->tree, name ? parent : n->ino, &path);
        if (r == 0 && name && path.bytes)
                r = buf_add_str(&path, "/");
        if (r == 0 && name)
                r = buf_add_str(&path, name);
        if (r < 0 || !buf_text(&path))
                return NULL;
        hex_encode(n->version.b, ID_BYTES, version);
        return json_pack("{s:s, s:s, s:I, s:I, s:s, s:b}", "path", buf_text(&path), "kind", kind_name(n->kind), "size", (json_int_t)n->size, "mtime_ns", (json_int_t)n->mtime_ns, "version",
                         version, "pending", (int)n->pending);
}

static int add_one(void *arg, const struct tree_conflict *c) {
        struct listing *l = arg;
        char first[2 * ID_BYTES + 1];
        if (json_array_size(l->list) == LISTED_MAX) {
                l->more = true;
                return 1;
        }
        json_t *j = node_json(l, &c->copy, c->parent, c->name);
        if (!j) /* moved away meanwhile */
                return 0;
        hex_encode(c->version.b, ID_BYTES, first);
        (void)json_object_set_new(j, "host", json_string(c->host));
        (void)json_object_set_new(j, "first_version", json_string(first));
        json_t *original = c->original.ino ? node_json(l, &c->original, 0, NULL) : NULL;
        (void)json_object_set_new(j, "original", original ? original : json_null());
        return json_array_append_new(l->list, j) < 0 ? -ENOMEM : 0;
}

json_t *conflicts_json(struct cache *cache) {
        struct listing l = { .cache = cache, .list = json_array() };
        int r = l.list ? tree_conflicts(cache->tree, add_one, &l) : -ENOMEM;
        if (r < 0) {
                json_decref(l.list);
                return json_pack("{s:s}", "error", "the local database does not answer");
        }
        return json_pack("{s:o, s:b}", "conflicts", l.list, "more", (int)l.more);
}

/* ---- this side ---- */

static void show_version(const char *what, const json_t *j) {
        char size[24], when[40] = "?";
        const time_t t = (time_t)(answer_int(j, "mtime_ns") / 1000000000);
        struct tm tm;
        format_bytes((uint64_t)answer_int(j, "size"), size);
        if (localtime_r(&t, &tm))
                (void)strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
        (void)printf("  %-7s %s\n          %s, %s, changed %s, version %.8s%s\n", what, answer_str(j, "path"), answer_str(j, "kind"), size, when, answer_str(j, "version"),
                     json_is_true(json_object_get(j, "pending")) ? ", not on the server yet" : "");
}

static void show(const struct mount_info *m, const json_t *answer) {
        const json_t *list = json_object_get(answer, "conflicts");
        (void)printf("%s  %zu conflict%s%s\n", m->mountpoint, json_array_size(list), json_array_size(list) == 1 ? "" : "s", json_is_true(json_object_get(answer, "more")) ? ", and more" : "");
        for (size_t i = 0; i < json_array_size(list); i++) {
                const json_t *c = json_array_get(list, i), *original = json_object_get(c, "original");
                char what[80];
                (void)snprintf(what, sizeof what, "mine");
                show_version(what, c);
                if (json_is_object(original))
                        show_version("theirs", original);
                else
                        (void)printf("  theirs  is gone\n");
                (void)printf("          made by %s\n", answer_str(c, "host"));
        }
        if (json_array_size(list))
                (void)printf("  -> tarn conflicts resolve PATH --keep mine|theirs|both\n");
}

/* The daemon's list. 0, or an exit code after a line on stderr. */
static int ask(const char *program, const struct mount_info *m, json_t **ret) {
        _cleanup_json_ json_t *answer = NULL;
        int code = mount_ask(program, m, "conflicts", ANSWER_MS, &answer);
        if (code)
                return code;
        if (!json_is_array(json_object_get(answer, "conflicts")))
                return cli_fail(program, EXIT_OTHER, "%s: %s", m->mountpoint, answer_str(answer, "error"));
        *ret = steal_ptr(answer);
        return 0;
}

/* The one conflict that a path means: the copy itself, or the file that has one copy. */
static int choose(const char *program, const json_t *answer, const char *path, const json_t **ret) {
        const json_t *list = json_object_get(answer, "conflicts"), *found = NULL;
        for (size_t i = 0; i < json_array_size(list); i++)
                if (strcmp(answer_str(json_array_get(list, i), "path"), path) == 0) {
                        *ret = json_array_get(list, i);
                        return 0;
                }
        for (size_t i = 0; i < json_array_size(list); i++) {
                const json_t *c = json_array_get(list, i), *original = json_object_get(c, "original");
                if (!json_is_object(original) || strcmp(answer_str(original, "path"), path) != 0)
                        continue;
                if (found)
                        return cli_fail(program, EXIT_USAGE, "%s has several conflict copies: name the copy, for example \"%s\"; see `tarn conflicts`", path, answer_str(found, "path"));
                found = c;
        }
        if (!found)
                return cli_fail(program, EXIT_OTHER, "%s is not in conflict; see `tarn conflicts`", path);
        *ret = found;
        return 0;
}

static int keep_mine(const char *program, const char *top, const json_t *c) {
        const json_t *original = json_object_get(c, "original");
        _cleanup_free_ char *copy = path_join(top, answer_str(c, "path")), *target = NULL;
        char name[NAME_BYTES_MAX + 1];
        int r;
        if (!copy)
                return cli_fail(program, EXIT_OTHER, "out of memory");
        if (json_is_object(original)) {
                target = path_join(top, answer_str(original, "path"));
                r = !target ? -ENOMEM : rename(copy, target) < 0 ? -errno : 0;
        } else { /* nobody has the name: it gets it back */
                char *slash = strrchr(copy, '/');
                conflict_plain(slash + 1, strlen(slash + 1), name);
                *slash = 0;
                target = path_join(copy, name);
                *slash = '/';
                r = !target ? -ENOMEM : renameat2(AT_FDCWD, copy, AT_FDCWD, target, RENAME_NOREPLACE) < 0 ? -errno : 0;
        }
        if (r < 0)
                return cli_fail(program, EXIT_OTHER, "cannot rename %s to %s: %s", copy, target ? target : "its name", strerror(-r));
        (void)printf("%s has the bytes of the copy now; what it had is in its history\n", target);
        return EXIT_OK;
}

static int resolve(int argc, char **argv) {
        static const char program[] = PROGRAM " resolve";
        const char *path = NULL, *keep = NULL, *state_option = NULL;
        const struct arg table[] = {
                { "PATH", 0, ARG_POSITIONAL, &path, "the conflict copy, or the file that it belongs to" },
                { "keep", 'k', ARG_STR, &keep, "mine: the copy becomes the file's new version. theirs: the copy goes. both: both files stay as they are" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *state = NULL, *full = NULL, *copy = NULL;
        _cleanup_(mounts_free) struct mounts m = { 0 };
        _cleanup_json_ json_t *answer = NULL;
        const json_t *c = NULL;
        int r = args_parse(program, table, argc, argv);
        if (r < 0)
                return args_exit(r);
        const bool mine = keep && strcmp(keep, "mine") == 0, theirs = keep && strcmp(keep, "theirs") == 0, both = keep && strcmp(keep, "both") == 0;
        if (!mine && !theirs && !both)
                return cli_fail(program, EXIT_USAGE, "say what to keep: --keep mine, --keep theirs or --keep both");
        r = state_dir(state_option, &state);
        if (r == 0)
                r = mountpoint_path(path, &full);
        if (r < 0)
                return cli_fail(program, r == -ENOENT ? EXIT_OTHER : EXIT_DISK, "%s: %s", path, strerror(-r));
        int code = find_mounts(program, state, full, &m);
        const size_t top_bytes = code == 0 ? strlen(m.found[0]->mountpoint) : 0;
        if (code == 0 && (strncmp(full, m.found[0]->mountpoint, top_bytes) != 0 || full[top_bytes] != '/'))
                code = cli_fail(program, EXIT_USAGE, "%s is the mount point itself: name a file in it", path);
        if (code == 0)
                code = ask(program, m.found[0], &answer);
        if (code == 0)
                code = choose(program, answer, full + top_bytes + 1, &c);
        const json_t *original = json_object_get(c, "original");
        if (code == 0 && !both && (strcmp(answer_str(c, "kind"), "directory") == 0 || (mine && json_is_object(original) && strcmp(answer_str(original, "kind"), "directory") == 0)))
                code = cli_fail(program, EXIT_OTHER, "%s: a directory is part of this conflict: move what you want to keep by hand, then --keep both", path);
        if (code == 0 && !(copy = path_join(m.found[0]->mountpoint, answer_str(c, "path"))))
                code = cli_fail(program, EXIT_OTHER, "out of memory");
        if (code == 0 && mine) {
                code = keep_mine(program, m.found[0]->mountpoint, c);
        } else if (code == 0 && theirs) {
                if (unlink(copy) < 0)
                        code = cli_fail(program, EXIT_OTHER, "cannot remove %s: %s", copy, strerror(errno));
                else
                        (void)printf("%s is gone; the server keeps it as a deleted file\n", copy);
        } else if (code == 0) {
                if (lremovexattr(copy, "user.tarn.conflict") < 0)
                        code = cli_fail(program, EXIT_OTHER, "cannot change %s: %s", copy, strerror(errno));
                else
                        (void)printf("%s is a file like others now\n", copy);
        }
        return code;
}

int cmd_conflicts(int argc, char **argv) {
        const char *dir = NULL, *state_option = NULL;
        bool json = false;
        const struct arg table[] = {
                { "DIR", 0, ARG_POSITIONAL_OPTIONAL, &dir, "the mount point, or anything in it; without: all mounts. (Or: resolve PATH --keep mine|theirs|both)" },
                { "json", 0, ARG_FLAG, &json, "one JSON object per mount, each on one line" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_(mounts_free) struct mounts m = { 0 };
        int code;
        if (argc > 1 && strcmp(argv[1], "resolve") == 0)
                return resolve(argc - 1, argv + 1);
        if (!mounts_of_arguments(PROGRAM, table, argc, argv, &state_option, &dir, &m, &code))
                return code;
        for (size_t i = 0; code == 0 && m.found[i]; i++) {
                _cleanup_json_ json_t *answer = NULL;
                _cleanup_buf_ struct buf b = BUF_INIT(8u << 20);
                code = ask(PROGRAM, m.found[i], &answer);
                if (code == 0 && !json)
                        show(m.found[i], answer);
                else if (code == 0 && json_object_set_new(answer, "mountpoint", json_string(m.found[i]->mountpoint)) == 0 && json_to_buf(answer, &b) == 0 && buf_text(&b))
                        (void)printf("%s\n", b.data);
        }
        return code;
}
