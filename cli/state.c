/* SPDX-License-Identifier: Apache-2.0 */
/* state.c: where a client keeps things, and which mounts there are.
 *
 *   STATE/session-*.json          a login (api/session.c), shared by all mounts of that server
 *   STATE/mounts/NAME/            one per (server, workspace); NAME = workspace, host and 8 digits of a hash of both
 *       lock                      held by the daemon as long as it lives: one daemon for one state
 *       mount.json                {"version", "pid", "mountpoint", "url"}: for `status`, `wait`, `umount`; may be left over by a killed daemon
 *       place.json                the same and where the cache is, its limits and the server: written at each start and never removed, for `doctor` and `scrub`
 *       control.sock              answers while the daemon lives
 *       log                       the daemon's log; log.1 is the one before
 *       cache/                    (unless -o cache_dir) tree, outbox, blobs, stages: holds data that the server may not have yet, so it is state,
 *                                 not something under ~/.cache that a cleaner may take away
 *
 * The state directory is private (0700). A mount is found by the text of its path first: lstat on a mount point whose daemon hangs would hang as well. */
#include <dirent.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/io.h"
#include "cli.h"

#define INFO_BYTES_MAX 65536u
#define MOUNTS_MAX 1024u

static int absolute(const char *path, char **ret) {
        char cwd[PATH_MAX];
        char *p;
        if (path[0] == '/')
                p = strdup(path);
        else if (!getcwd(cwd, sizeof cwd))
                return -errno;
        else
                p = path_join(cwd, path);
        if (!p)
                return -ENOMEM;
        *ret = p;
        return 0;
}

int state_dir(const char *option, char **ret) {
        const char *s = option && *option ? option : getenv("TARN_STATE_DIR");
        if (s && *s)
                return absolute(s, ret);
        char *p = NULL;
        s = getenv("XDG_STATE_HOME");
        if (s && *s == '/')
                p = path_join(s, "tarn");
        else {
                s = getenv("HOME");
                if (!s || *s != '/') {
                        const struct passwd *pw = getpwuid(getuid());
                        s = pw ? pw->pw_dir : "/";
                }
                p = path_join(s, ".local/state/tarn");
        }
        if (!p)
                return -ENOMEM;
        *ret = p;
        return 0;
}

/* Plain bytes of s, the others as '_'; at most n - 1 of them. */
static void plain(const char *s, char *ret, size_t n) {
        size_t i = 0;
        for (; s[i] && i < n - 1; i++) {
                char c = s[i];
                ret[i] = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (i > 0 && c == '.') || c == '-' ? c : '_';
        }
        ret[i] = 0;
}

void place_free(struct place *p) {
        free(p->dir);
        free(p->lock);
        free(p->info);
        free(p->log);
        free(p->cache);
        *p = (struct place){ 0 };
}

int place_of(const char *state, const char *base_url, const char *workspace, struct place *ret) {
        struct place p = { 0 };
        struct digest d;
        char name[48], host[48], hash[2 * DIGEST_BYTES + 1];
        _cleanup_free_ char *both = NULL;
        if (asprintf(&both, "%s\n%s", base_url, workspace) < 0) {
                both = NULL;
                return -ENOMEM;
        }
        sha256(both, strlen(both), &d);
        hex_encode(d.b, 4, hash);
        const char *h = strstr(base_url, "://");
        plain(workspace, name, sizeof name);
        plain(h ? h + 3 : base_url, host, sizeof host);
        if (asprintf(&p.dir, "%s/mounts/%s-%s-%s", state, name, host, hash) < 0) {
                p.dir = NULL;
                return -ENOMEM;
        }
        p.lock = path_join(p.dir, "lock");
        p.info = path_join(p.dir, "mount.json");
        p.log = path_join(p.dir, "log");
        p.cache = path_join(p.dir, "cache");
        if (!p.lock || !p.info || !p.log || !p.cache) {
                place_free(&p);
                return -ENOMEM;
        }
        *ret = p;
        return 0;
}

int mount_info_write(const struct place *p, const char *mountpoint, const char *url) {
        _cleanup_buf_ struct buf b = BUF_INIT(INFO_BYTES_MAX);
        _cleanup_json_ json_t *j = json_pack("{s:i, s:i, s:s, s:s}", "version", 1, "pid", (int)getpid(), "mountpoint", mountpoint, "url", url);
        int r = j ? json_to_buf(j, &b) : -EILSEQ;
        return r < 0 ? r : file_replace(p->info, b.data, b.bytes, 0600);
}

int place_note_write(const struct place *p, const struct place_note *n) {
        _cleanup_buf_ struct buf b = BUF_INIT(INFO_BYTES_MAX);
        _cleanup_free_ char *path = path_join(p->dir, "place.json");
        _cleanup_json_ json_t *j = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s?, s:I, s:I}", "version", 1, "mountpoint", n->mountpoint, "url", n->url, "base_url", n->base_url, "workspace", n->workspace,
                                             "cache_dir", n->cache_dir, "ca_file", n->ca_file, "limit_bytes", (json_int_t)n->limit_bytes, "floor_bytes", (json_int_t)n->floor_bytes);
        if (!path)
                return -ENOMEM;
        int r = j ? json_to_buf(j, &b) : -EILSEQ;
        return r < 0 ? r : file_replace(path, b.data, b.bytes, 0600);
}

void place_notes_free(struct place_note *v, size_t n) {
        for (size_t i = 0; v && i < n; i++) {
                char *all[] = { v[i].place_dir, v[i].mountpoint, v[i].url, v[i].base_url, v[i].workspace, v[i].cache_dir, v[i].ca_file };
                for (size_t k = 0; k < ARRAY_SIZE(all); k++)
                        free(all[k]);
        }
        free(v);
}

static char *copy_of(const json_t *j, const char *key) {
        const char *s;
        return json_get_str(j, key, &s) == 0 ? strdup(s) : NULL;
}

/* 1: filled in; 0: nothing (readable) there. */
static int read_note(const char *mounts, const char *name, struct place_note *ret) {
        _cleanup_buf_ struct buf b = BUF_INIT(INFO_BYTES_MAX);
        _cleanup_json_ json_t *j = NULL;
        _cleanup_free_ char *dir = path_join(mounts, name), *path = dir ? path_join(dir, "place.json") : NULL;
        int64_t limit = 0, floor = 0;
        if (!path)
                return -ENOMEM;
        if (file_load(path, INFO_BYTES_MAX, &b) < 0 || json_parse(b.data, b.bytes, &j) < 0)
                return 0;
        (void)(json_get_int(j, "limit_bytes", 0, INT64_MAX, &limit) + json_get_int(j, "floor_bytes", 0, INT64_MAX, &floor));
        struct place_note n = { .place_dir = steal_ptr(dir), .mountpoint = copy_of(j, "mountpoint"), .url = copy_of(j, "url"), .base_url = copy_of(j, "base_url"), .workspace = copy_of(j, "workspace"),
                                .cache_dir = copy_of(j, "cache_dir"), .ca_file = copy_of(j, "ca_file"), .limit_bytes = (uint64_t)limit, .floor_bytes = (uint64_t)floor };
        *ret = n;
        return n.mountpoint && n.url && n.base_url && n.workspace && n.cache_dir ? 1 : -EINVAL;
}

int place_notes_list(const char *state, struct place_note **ret, size_t *ret_n) {
        _cleanup_free_ char *mounts = path_join(state, "mounts");
        struct place_note *all = calloc(MOUNTS_MAX, sizeof *all);
        size_t n = 0;
        DIR *d = mounts ? opendir(mounts) : NULL;
        int r = mounts && all ? 0 : -ENOMEM;
        for (struct dirent *e; d && r != -ENOMEM && n < MOUNTS_MAX && (e = readdir(d));) {
                if (e->d_name[0] == '.')
                        continue;
                r = read_note(mounts, e->d_name, &all[n]);
                if (r > 0)
                        n++;
        }
        if (d)
                (void)closedir(d);
        if (r == -ENOMEM) {
                place_notes_free(all, n);
                return r;
        }
        *ret = all;
        *ret_n = n;
        return 0;
}

void mount_infos_free(struct mount_info *m, size_t n) {
        for (size_t i = 0; m && i < n; i++) {
                free(m[i].place_dir);
                free(m[i].mountpoint);
                free(m[i].url);
        }
        free(m);
}

/* 1: filled in; 0: no (readable) account there. */
static int read_info(const char *mounts, const char *name, struct mount_info *ret) {
        _cleanup_buf_ struct buf b = BUF_INIT(INFO_BYTES_MAX);
        _cleanup_json_ json_t *j = NULL;
        _cleanup_free_ char *dir = path_join(mounts, name), *path = dir ? path_join(dir, "mount.json") : NULL;
        const char *mountpoint, *url;
        int64_t pid;
        if (!path)
                return -ENOMEM;
        if (file_load(path, INFO_BYTES_MAX, &b) < 0 || json_parse(b.data, b.bytes, &j) < 0 || json_get_str(j, "mountpoint", &mountpoint) < 0 ||
            json_get_str(j, "url", &url) < 0 || json_get_int(j, "pid", 1, INT32_MAX, &pid) < 0)
                return 0;
        struct mount_info m = { .mountpoint = strdup(mountpoint), .url = strdup(url), .pid = (pid_t)pid, .place_dir = steal_ptr(dir) };
        if (!m.mountpoint || !m.url) {
                free(m.mountpoint);
                free(m.url);
                free(m.place_dir);
                return -ENOMEM;
        }
        *ret = m;
        return 1;
}

int mount_infos_list(const char *state, struct mount_info **ret, size_t *ret_n) {
        _cleanup_free_ char *mounts = path_join(state, "mounts");
        struct mount_info *all = calloc(MOUNTS_MAX, sizeof *all);
        size_t n = 0;
        int r = 0;
        if (!mounts || !all) {
                free(all);
                return -ENOMEM;
        }
        DIR *d = opendir(mounts);
        for (struct dirent *e; d && r >= 0 && n < MOUNTS_MAX && (e = readdir(d));) {
                if (e->d_name[0] == '.')
                        continue;
                r = read_info(mounts, e->d_name, &all[n]);
                n += r > 0;
        }
        if (d)
                (void)closedir(d);
        if (r < 0) {
                mount_infos_free(all, n);
                return r;
        }
        *ret = all;
        *ret_n = n;
        return 0;
}

int mountpoint_path(const char *dir, char **ret) {
        _cleanup_free_ char *path = NULL;
        int r = absolute(dir, &path);
        if (r < 0)
                return r;
        size_t n = strlen(path);
        while (n > 1 && path[n - 1] == '/')
                path[--n] = 0;
        char *slash = strrchr(path, '/');
        const char *last = slash + 1;
        char real[PATH_MAX];
        if (!*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0) {
                if (!realpath(path, real))
                        return -errno;
                *ret = strdup(real);
                return *ret ? 0 : -ENOMEM;
        }
        *slash = 0;
        if (!realpath(slash == path ? "/" : path, real))
                return -errno;
        char *p = path_join(strcmp(real, "/") == 0 ? "" : real, last);
        if (!p)
                return -ENOMEM;
        *ret = p;
        return 0;
}

static const struct mount_info *match(const struct mount_info *m, size_t n, const char *path) {
        const struct mount_info *best = NULL;
        for (size_t i = 0; i < n; i++) {
                size_t k = strlen(m[i].mountpoint);
                if (strncmp(m[i].mountpoint, path, k) == 0 && (path[k] == 0 || path[k] == '/') && (!best || k > strlen(best->mountpoint)))
                        best = &m[i];
        }
        return best;
}

const struct mount_info *mount_infos_find(const struct mount_info *m, size_t n, const char *dir) {
        _cleanup_free_ char *path = NULL, *text = NULL;
        const struct mount_info *found = NULL;
        char real[PATH_MAX];
        if (absolute(dir, &text) == 0 && !strstr(text, "/."))
                found = match(m, n, text);
        if (!found && mountpoint_path(dir, &path) == 0)
                found = match(m, n, path);
        if (!found && realpath(dir, real))
                found = match(m, n, real);
        return found;
}
