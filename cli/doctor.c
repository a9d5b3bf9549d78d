/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.c: `tarn doctor [DIR]`: looks for what is wrong with a client, above all when its daemon is dead. One line for each check; what to do about it; changes nothing.
 *
 *   of the machine     fuse        /dev/fuse can be opened
 *                      fusermount  fusermount3 is there and may mount (or we are root)
 *   of each login      login       the file is readable as one, and by its owner only
 *                      server      it answers (GET /v1, 5 s)
 *   of each place      daemon      it lives and answers; what it says about being offline, signed out, parked changes
 *                      mount       no dead mount is at the mount point
 *                      workspace   the server shows it to this login
 *                      lock        nobody else has the cache (another daemon, a cache directory used twice)
 *                      space       free space, the floor, the limit
 *                      tree outbox stages orphans time index     cache/check.h; only without a daemon, under its lock
 *
 * A place is known by place.json (state.c). With a living daemon the files are its business: `tarn scrub` asks it. --repair does only what cannot lose a byte: takes a dead mount away, makes a login file private,
 * moves a damaged database aside, moves files that belong to nobody to lost+found/.
 *
 * Exit: 0 nothing is wrong, 1 something is. --json: one object {"ok", "findings": [{"place", "grade", "check", "text", "todo"}]}. */
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "api/client.h"
#include "base/args.h"
#include "base/err.h"
#include "base/io.h"
#include "cache/check.h"
#include "cli.h"

#define PROGRAM "tarn doctor"
#define SERVER_MS 5000
#define DAEMON_MS 5000
#define SPACE_MIN_BYTES (64u << 20)

struct doctor {
        bool json, repair;
        unsigned bad;
        const char *place; /* of the lines that follow; NULL: the machine's */
        json_t *findings;
};

static void line(void *arg, enum check_grade grade, const char *check, const char *text, const char *todo) {
        struct doctor *d = arg;
        static const char *const grades[] = { [CHECK_OK] = "ok", [CHECK_WARN] = "warn", [CHECK_BAD] = "BAD" };
        d->bad += grade == CHECK_BAD;
        if (d->json) {
                json_t *j = json_pack("{s:s?, s:s, s:s, s:s, s:s}", "place", d->place, "grade", grade == CHECK_BAD ? "bad" : grades[grade], "check", check, "text", text, "todo", todo);
                if (j)
                        (void)json_array_append_new(d->findings, j);
                return;
        }
        (void)printf("  %-5s %-10s %s\n", grades[grade], check, text);
        if (*todo)
                (void)printf("                   -> %s\n", todo);
}

static void tell(struct doctor *d, enum check_grade grade, const char *check, const char *todo, const char *fmt, ...) _printf_(5, 6);
static void tell(struct doctor *d, enum check_grade grade, const char *check, const char *todo, const char *fmt, ...) {
        char text[700];
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        line(d, grade, check, text, todo);
}

static void headline(struct doctor *d, const char *place, const char *prefix, const char *what) {
        d->place = place;
        if (!d->json)
                (void)printf("%s%s\n", prefix, what);
}

/* ---- the machine ---- */

static bool in_path(const char *program, struct stat *ret) {
        _cleanup_free_ char *path = strdup(getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
        char *rest = path, *dir;
        while (rest && (dir = strsep(&rest, ":"))) {
                _cleanup_free_ char *p = path_join(dir, program);
                if (p && stat(p, ret) == 0 && S_ISREG(ret->st_mode))
                        return true;
        }
        return false;
}

static void machine(struct doctor *d) {
        struct stat st;
        const char *device = getenv("TARN_FUSE_DEVICE"); /* tests name one that is not there */
        _cleanup_close_ int fd = open(device ? device : "/dev/fuse", O_RDWR | O_CLOEXEC);
        headline(d, NULL, "", "This machine");
        if (fd >= 0)
                tell(d, CHECK_OK, "fuse", "", "/dev/fuse can be opened");
        else
                tell(d, CHECK_BAD, "fuse", errno == ENOENT ? "load the module: modprobe fuse" : "let this user open it, or run as one who may", "/dev/fuse cannot be opened: %s", strerror(errno));
        if (!in_path("fusermount3", &st))
                tell(d, geteuid() == 0 ? CHECK_WARN : CHECK_BAD, "fusermount", "install fuse3", "fusermount3 is not in PATH");
        else if (geteuid() != 0 && !(st.st_uid == 0 && st.st_mode & S_ISUID))
                tell(d, CHECK_BAD, "fusermount", "install fuse3 as the distribution has it (setuid root)", "fusermount3 may not mount for users");
        else
                tell(d, CHECK_OK, "fusermount", "", "fusermount3 is there");
}

/* ---- logins ---- */

/* GET path; 0, or an error with its reason. */
static int ask(struct session *s, const char *base_url, const char *ca_file, const char *path, char *ret_why, size_t n) {
        struct counters counters = { 0 };
        struct transport *t = NULL;
        struct http_call *c = http_call_new(HTTP_GET, 0, 1 << 20);
        int r = c && (c->path = strdup(path)) ? 0 : -ENOMEM;
        if (r == 0)
                r = transport_curl_new(&(struct transport_curl_config){ .base_url = base_url, .ca_file = ca_file, .counters = &counters, .token = session_token, .token_arg = s }, &t);
        if (r == 0) {
                c->accept = "application/json";
                c->no_auth = !s;
                c->deadline_ms = clock_mono_ms(clock_system()) + SERVER_MS;
                r = transport_call(t, c);
                (void)snprintf(ret_why, n, "%s", c->message[0] ? c->message : err_name(r));
        }
        transport_curl_free(t);
        http_call_free(c);
        return r;
}

static void server(struct doctor *d, struct session *s, const char *base_url) {
        char why[320] = "";
        int r = ask(s, base_url, session_ca_file(s), "/v1", why, sizeof why);
        if (r == 0)
                tell(d, CHECK_OK, "server", "", "%s answers", base_url);
        else
                tell(d, r == -EKEYREJECTED ? CHECK_WARN : CHECK_BAD, "server", r == -ENOKEY ? "log in again with --ca-file, or look at the server's certificate" : "nothing is lost meanwhile: what is cached works, changes wait",
                     "%s: %s", base_url, why);
}

static void logins(struct doctor *d, const char *state) {
        DIR *dir = opendir(state);
        unsigned n = 0;
        headline(d, NULL, "State in ", state);
        struct stat st;
        if (stat(state, &st) == 0 && st.st_mode & 077)
                tell(d, CHECK_BAD, "login", "chmod 700 it", "%s can be looked into by others (mode %03o)", state, st.st_mode & 0777);
        for (struct dirent *e; dir && (e = readdir(dir));) {
                size_t len = strlen(e->d_name);
                if (strncmp(e->d_name, "session-", 8) != 0 || len < 5 || strcmp(e->d_name + len - 5, ".json") != 0)
                        continue;
                _cleanup_free_ char *path = path_join(state, e->d_name);
                _cleanup_buf_ struct buf b = BUF_INIT(65536);
                _cleanup_json_ json_t *j = NULL;
                const char *base_url = NULL;
                struct session *s = NULL;
                n++;
                if (!path || stat(path, &st) < 0)
                        continue;
                if (st.st_mode & 077) {
                        bool repaired = d->repair && chmod(path, 0600) == 0;
                        tell(d, repaired ? CHECK_OK : CHECK_BAD, "login", repaired ? "" : "`tarn doctor --repair`, and change the password if others use this machine", "%s%s was readable by others (mode %03o)",
                             repaired ? "repaired: " : "", path, st.st_mode & 0777);
                }
                bool readable = file_load(path, 65536, &b) == 0 && json_parse(b.data, b.bytes, &j) == 0 && json_get_str(j, "base_url", &base_url) == 0;
                if (!readable || session_open(state, base_url, &s) < 0)
                        tell(d, CHECK_BAD, "login", "log in again: tarn login URL --user NAME", "%s cannot be read as a login", path);
                else {
                        tell(d, CHECK_OK, "login", "", "%s at %s", session_user(s), base_url);
                        server(d, s, base_url);
                }
                session_free(s);
                explicit_bzero(b.data, b.bytes);
        }
        if (dir)
                (void)closedir(dir);
        if (n == 0)
                tell(d, CHECK_WARN, "login", "tarn login URL --user NAME", "nobody is signed in");
}

/* ---- places ---- */

static const char *str(const json_t *j, const char *key) {
        const char *s;
        return json_get_str(j, key, &s) == 0 ? s : "";
}

/* True if the daemon lives. */
static bool living(struct doctor *d, const struct place_note *p) {
        _cleanup_json_ json_t *j = NULL;
        int r = control_ask(p->place_dir, "status", DAEMON_MS, &j);
        if (r == -ECONNREFUSED || r == -ENOENT) {
                _cleanup_free_ char *lock = path_join(p->place_dir, "lock");
                _cleanup_close_ int fd = -1;
                if (!lock || file_lock(lock, &fd) == -EBUSY) {
                        tell(d, CHECK_WARN, "daemon", "wait a moment; if it stays so, look at its log", "a daemon holds %s but does not answer yet, or no more", p->place_dir);
                        return true;
                }
                tell(d, CHECK_OK, "daemon", "", "none runs: the files are looked at here");
                return false;
        }
        if (r < 0) {
                tell(d, CHECK_BAD, "daemon", "look at its log; if it hangs, end it (kill): nothing that was accepted is lost", "the daemon does not answer: %s", err_name(r));
                return true;
        }
        size_t parked = json_array_size(json_object_get(j, "parked"));
        const char *state = str(j, "state");
        bool online = strcmp(state, "online") == 0;
        tell(d, online && !parked ? CHECK_OK : CHECK_WARN, "daemon", parked ? "`tarn status` names them and says why" : online ? "" : strcmp(state, "signed_out") == 0 ? "log in again: tarn login" : "", "it runs, %s%s%s, %zu changes parked",
             state, *str(j, "reason") ? ": " : "", str(j, "reason"), parked);
        return true;
}

static void dead_mount(struct doctor *d, const struct place_note *p) {
        if (!mount_is_listed(p->mountpoint)) {
                tell(d, CHECK_OK, "mount", "", "nothing stale at %s", p->mountpoint);
                return;
        }
        bool repaired = d->repair && mount_detach(p->mountpoint) == 0 && !mount_is_listed(p->mountpoint);
        if (repaired)
                tell(d, CHECK_OK, "mount", "", "repaired: the dead mount at %s is gone", p->mountpoint);
        else
                tell(d, CHECK_BAD, "mount", "mount again, which heals it, or `tarn doctor --repair`", "%s is the mount point of a daemon that is dead", p->mountpoint);
}

static void workspace(struct doctor *d, const char *state, const struct place_note *p) {
        struct session *s = NULL;
        char why[320] = "";
        _cleanup_buf_ struct buf path = BUF_INIT(4096);
        if (session_open(state, p->base_url, &s) < 0) {
                _cleanup_free_ char *todo = NULL;
                if (asprintf(&todo, "tarn login %s --user NAME", p->base_url) < 0)
                        todo = NULL;
                tell(d, CHECK_BAD, "workspace", todo ? todo : "", "not signed in to %s", p->base_url);
                return;
        }
        int r = buf_add_str(&path, "/v1/workspaces/");
        if (r == 0)
                r = url_escape(p->workspace, &path);
        if (r == 0 && buf_text(&path))
                r = ask(s, p->base_url, p->ca_file, buf_text(&path), why, sizeof why);
        if (r == 0)
                tell(d, CHECK_OK, "workspace", "", "the server shows '%s' to %s", p->workspace, session_user(s));
        else if (r == -EKEYREJECTED)
                tell(d, CHECK_WARN, "workspace", "the next mount renews the login; if it cannot, log in again", "the login's token is not valid any more");
        else if (r == -ENOENT || r == -EACCES)
                tell(d, CHECK_BAD, "workspace", "ask its owner; what is pending here stays", "'%s' is not there for %s any more", p->workspace, session_user(s));
        else
                tell(d, CHECK_WARN, "workspace", "", "not asked: %s", why);
        session_free(s);
}

static void space(struct doctor *d, const struct place_note *p) {
        struct statvfs v;
        char is[24], floor[24], limit[24];
        if (statvfs(p->cache_dir, &v) < 0) {
                tell(d, CHECK_BAD, "space", "make it available (a disk that is not mounted?), or restore it: it may hold changes that are nowhere else", "the cache directory %s cannot be looked at: %s", p->cache_dir, strerror(errno));
                return;
        }
        uint64_t free_bytes = (uint64_t)v.f_bavail * v.f_frsize;
        format_bytes(free_bytes, is);
        format_bytes(p->floor_bytes, floor);
        format_bytes(p->limit_bytes, limit);
        if (free_bytes < SPACE_MIN_BYTES)
                tell(d, CHECK_BAD, "space", "free some space: writes will fail soon", "only %s are free on the disk of %s", is, p->cache_dir);
        else if (free_bytes < p->floor_bytes)
                tell(d, CHECK_WARN, "space", "free some space, or mount with a smaller free_floor: the cache shrinks", "%s are free on the disk of %s, less than the floor of %s", is, p->cache_dir, floor);
        else if (v.f_files && v.f_favail < 1000)
                tell(d, CHECK_BAD, "space", "remove files on that disk", "only %llu files may still be made on the disk of %s", (unsigned long long)v.f_favail, p->cache_dir);
        else
                tell(d, CHECK_OK, "space", "", "%s free, the cache may take %s", is, limit);
}

static void files(struct doctor *d, const struct place_note *p) {
        _cleanup_free_ char *place_lock = path_join(p->place_dir, "lock"), *lock = path_join(p->cache_dir, "lock");
        _cleanup_close_ int place = -1, cache = -1;
        struct stat st;
        if (!place_lock || !lock || stat(p->cache_dir, &st) < 0)
                return; /* told by space */
        int r = file_lock(place_lock, &place);
        if (r == 0)
                r = file_lock(lock, &cache);
        if (r == -EBUSY) {
                tell(d, CHECK_BAD, "lock", "end it, or give one of the two another cache_dir", "another process uses %s", p->cache_dir);
                return;
        }
        if (r < 0) {
                tell(d, CHECK_BAD, "lock", "check the rights of the directory", "%s cannot be locked: %s", p->cache_dir, err_name(r));
                return;
        }
        tell(d, CHECK_OK, "lock", "", "nobody else uses the cache");
        struct check_report rep = { line, d };
        r = check_cache(p->cache_dir, clock_system(), d->repair, &rep, NULL);
        if (r < 0)
                tell(d, CHECK_BAD, "tree", "check the rights and the disk of the cache directory", "%s cannot be read: %s", p->cache_dir, err_name(r));
}

static void place(struct doctor *d, const char *state, const struct place_note *p) {
        headline(d, p->mountpoint, "", p->mountpoint);
        bool lives = living(d, p);
        if (!lives)
                dead_mount(d, p);
        workspace(d, state, p);
        space(d, p);
        if (!lives)
                files(d, p);
}

int cmd_doctor(int argc, char **argv) {
        struct doctor d = { 0 };
        const char *dir = NULL, *state_option = NULL;
        const struct arg table[] = {
                { "DIR", 0, ARG_POSITIONAL_OPTIONAL, &dir, "the mount point, or anything in it, mounted or not; without: all that are known" },
                { "json", 0, ARG_FLAG, &d.json, "one JSON object" },
                { "repair", 0, ARG_FLAG, &d.repair, "repair what can be repaired without losing a byte" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *state = NULL;
        _cleanup_json_ json_t *all_json = NULL;
        struct place_note *all = NULL;
        size_t n = 0, seen = 0;
        int r = args_parse(PROGRAM, table, argc, argv);
        if (r < 0)
                return args_exit(r);
        r = state_dir(state_option, &state);
        if (r == 0)
                r = place_notes_list(state, &all, &n);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot read the state directory: %s", strerror(-r));
        d.findings = json_array();
        machine(&d);
        logins(&d, state);
        for (size_t i = 0; i < n; i++) {
                struct mount_info m = { .mountpoint = all[i].mountpoint };
                if (dir && !mount_infos_find(&m, 1, dir))
                        continue;
                seen++;
                place(&d, state, &all[i]);
        }
        place_notes_free(all, n);
        if (d.json) {
                _cleanup_buf_ struct buf b = BUF_INIT(8u << 20);
                all_json = json_pack("{s:b, s:o}", "ok", (int)(d.bad == 0), "findings", d.findings);
                if (all_json && json_to_buf(all_json, &b) == 0 && buf_text(&b))
                        (void)printf("%s\n", b.data);
        } else {
                json_decref(d.findings);
                if (d.bad)
                        (void)printf("%u findings need something to be done\n", d.bad);
                else
                        (void)printf("nothing is wrong\n");
        }
        if (dir && !seen)
                return cli_fail(PROGRAM, EXIT_NOT_MOUNTED, "%s was never mounted (state in %s)", dir, state);
        return d.bad ? EXIT_OTHER : EXIT_OK;
}
