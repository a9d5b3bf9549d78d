/* SPDX-License-Identifier: Apache-2.0 */
/* daemon.c: one mount from wiring to end. The only place that knows every layer.
 *
 *   start    place locked -> session, pool, transport -> cache_open (recovers) -> engine, mount object -> cache gets its source and listeners
 *            -> mount.json -> control socket -> engine_start -> tree loaded (only if it never was: an offline start must work) -> mount_start -> "0" to the parent
 *   run      this thread sits in mount_wait
 *            Whoever sees the mount finds its account and its socket: both are there before the kernel knows of it. An account of a daemon that was killed is replaced before this one's
 *            socket answers, so that no path leads to the wrong mount
 *   end      mount gone (umount, SIGTERM, fusermount3) -> the mount hears no more notes -> mount_free: handles released, their contents queued -> local, always
 *            -> drain: up to drain_timeout while the server is there -> last word to those who asked for the unmount -> engine_stop -> cache_close
 *            -> the rest in the reverse order -> place unlocked
 *
 * A first start asks the server one question (is there this workspace for this login?) before the engine runs: its answer is the clear line
 * that a wrong URL, certificate, login or workspace deserves. A later start asks nothing and works offline.
 *
 * Told to end or to unmount:   STARTING -> the start is given up       MOUNTING -> asked again when it is over, in an instant       MOUNTED -> mount_stop       ENDED -> nothing to do
 *
 * Threads: this one; tarn-control (status, commands, signals: control.c); the layers' own. `lock` guards phase, mount, mount_users, ending: control may be inside mount_stop while this
 * thread wants to free the mount. The gate stands between cache and mount for the notes: the cache keeps its listeners until it closes, the mount goes
 * earlier. gate.lock is held during a note, so that a closed gate means that no note is under way. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "daemon.h"

#include "api/client.h"
#include "base/err.h"
#include "base/io.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/thread.h"
#include "fs/mount.h"
#include "sync/engine.h"

#define CACHE_DEFAULT_BYTES (10ull << 30)
#define FLOOR_DEFAULT_BYTES (1ull << 30)
#define SLICE_MS 250
#define WORKERS_MIN 4

enum phase { STARTING = 0, MOUNTING, MOUNTED, ENDED };
struct gate { struct listener listener; struct lock lock; struct listener *to; /* lock */ };

struct daemon {
        const struct daemon_config *c;
        struct counters counters;
        struct session *session;
        struct pool *pool;
        struct transport *transport;
        struct cache *cache;
        struct engine *engine;
        struct gate gate;
        struct control *control;
        int lock_fd;
        bool recorded;                /* mount.json is ours */
        struct lock lock;
        struct cond cond;
        enum phase phase;             /* lock */
        struct mount *mount;          /* lock; NULL before and after */
        unsigned mount_users;         /* lock; threads inside mount_stop */
        unsigned ending;              /* lock; how often we were told to end */
        struct patrol *patrol;        /* NULL: never scrubs by itself */
        struct guard guard;
        int64_t started_ms;
        char *cache_dir;
        char host[128];
        char last_word[1100];
};

static int64_t now_ms(void) {
        return clock_mono_ms(clock_system());
}

static int tell_parent(struct daemon *d) {
        int r = write_full(d->c->status_fd, d->last_word, strlen(d->last_word));
        (void)close(d->c->status_fd);
        return r;
}

/* The one line that the parent (or the terminal) shows. A failure is told when all is taken down again, so that whoever reads it may try again at once. */
static int _printf_(3, 4) report(struct daemon *d, int code, const char *fmt, ...) {
        char line[1024];
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(line, sizeof line, fmt, ap);
        va_end(ap);
        for (char *p = line; *p; p++)
                if (*p == '\n')
                        *p = ' ';
        if (d->c->status_fd < 0)
                return code == EXIT_OK ? code : cli_fail(d->c->program, code, "%s", line);
        if (code != EXIT_OK)
                log_error("start failed exit=%d: %s", code, line);
        (void)snprintf(d->last_word, sizeof d->last_word, code == EXIT_OK ? "%d\n" : "%d %s\n", code, line);
        return code == EXIT_OK && tell_parent(d) < 0 ? EXIT_OTHER : code; /* the parent is gone: it was interrupted, nobody wants this mount */
}

/* ---- the gate ---- */

static void gate_notes(struct listener *l, const struct note *notes, size_t n) {
        struct gate *g = container_of(l, struct gate, listener);
        LOCK_SCOPE(&g->lock);
        if (g->to && g->to->notes)
                g->to->notes(g->to, notes, n);
}

static void gate_wake(struct listener *l) {
        struct gate *g = container_of(l, struct gate, listener);
        LOCK_SCOPE(&g->lock);
        if (g->to && g->to->wake)
                g->to->wake(g->to);
}

static bool gate_doubts(struct listener *l, uint64_t dir, const char *name, size_t n) {
        struct gate *g = container_of(l, struct gate, listener);
        LOCK_SCOPE(&g->lock);
        return g->to && g->to->doubts && g->to->doubts(g->to, dir, name, n);
}

static void gate_set(struct gate *g, struct listener *to) {
        LOCK_SCOPE(&g->lock);
        g->to = to;
}

/* ---- what control asks; on its thread ---- */

static const char *conn_name(enum conn_state s) {
        switch (s) {
        case CONN_ONLINE: return "online";
        case CONN_SIGNED_OUT: return "signed_out";
        case CONN_UPGRADE: return "upgrade_needed";
        default: return "offline";
        }
}

static int add_held(void *arg, const struct node *node) {
        void **both = arg;
        struct daemon *d = both[0];
        _cleanup_buf_ struct buf path = BUF_INIT(65536);
        if (json_array_size(both[1]) >= PARKED_LISTED_MAX)
                return 1;
        const char *text = tree_path(d->cache->tree, node->ino, &path) == 0 ? buf_text(&path) : NULL;
        if (text)
                (void)json_array_append_new(both[1], json_string(text));
        return 0;
}

static json_t *held_json(struct daemon *d) {
        json_t *list = json_array();
        void *both[] = { d, list };
        if (list && tree_held(d->cache->tree) && tree_held_list(d->cache->tree, 0, add_held, both) < 0)
                log_debug("status held failed");
        return list;
}

static json_t *counters_json(struct daemon *d) {
        json_t *j = json_object();
#define X(name) (void)json_object_set_new(j, #name, json_integer((json_int_t)counter_get(&d->counters, name)));
        COUNTERS(X)
#undef X
        return j;
}

static enum phase phase(struct daemon *d) {
        LOCK_SCOPE(&d->lock);
        return d->phase;
}

static json_t *patrol_json(struct daemon *d) {
        struct patrol_status p = { 0 };
        if (!d->patrol)
                return json_null();
        patrol_status(d->patrol, &p);
        bool done = p.finished_ns > 0 && p.finished_ns >= p.started_ns;
        return json_pack("{s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "period_s", (json_int_t)d->c->o->scrub_s, "round", done ? "resting" : p.urgent ? "urgent" : p.started_ns ? "reading" : "waiting", "blocks",
                         (json_int_t)p.blocks, "blocks_total", (json_int_t)MAX(p.blocks_total, p.blocks), "blocks_bad", (json_int_t)p.bad, "blocks_healed", (json_int_t)p.healed, "stages_bad", (json_int_t)p.stages_bad,
                         "started_s", (json_int_t)(p.started_ns / 1000000000), "finished_s", (json_int_t)(p.finished_ns > 0 ? p.finished_ns / 1000000000 : 0));
}

static json_t *status(void *arg) {
        struct daemon *d = arg;
        struct engine_status e = { 0 };
        struct cache_totals t = { 0 };
        struct outbox_totals o = { 0 };
        struct tree_totals tree = { 0 };
        struct cache_levels levels = { 0 };
        uint64_t conflicts = 0;
        struct cursor cursor = { 0 };
        char epoch[2 * ID_BYTES + 1], mark[17];
        engine_status(d->engine, &e);
        int r = cache_totals(d->cache, &t);
        if (r == 0)
                r = outbox_totals(d->cache->tree, &o);
        if (r == 0)
                r = tree_totals(d->cache->tree, &tree);
        if (r == 0)
                r = cache_levels(d->cache, &levels);
        if (r == 0)
                r = tree_conflict_count(d->cache->tree, &conflicts);
        if (r == 0 && tree_cursor(d->cache->tree, &cursor) < 0)
                cursor = (struct cursor){ 0 };
        hex_encode(cursor.epoch.b, ID_BYTES, epoch);
        hex_encode(cursor.mark, 8, mark);
        int64_t now_ns = clock_real_ns(clock_system());
        int64_t oldest_ns = t.oldest_pending_ns && o.oldest_ns ? MIN(t.oldest_pending_ns, o.oldest_ns) : MAX(t.oldest_pending_ns, o.oldest_ns);
        json_t *j = json_pack("{s:s, s:s, s:i, s:s, s:s, s:s, s:s, s:s, s:I}", "state", conn_name(e.state), "version", TARN_VERSION, "pid", (int)getpid(), "mountpoint", d->c->mountpoint, "url", d->c->url,
                              "user", session_user(d->session), "cache_dir", d->cache_dir, "log", d->c->place->log, "uptime_s", (json_int_t)((now_ms() - d->started_ms) / 1000));
        if (!j)
                return NULL;
        bool pending = t.pending_files > 0 || o.items > 0; /* else a stage that is on the server is still being taken into the cache */
        const struct { const char *name; uint64_t v; } numbers[] = {
                { "pending_files", t.pending_files }, { "pending_bytes", pending ? t.pending_bytes : 0 }, { "pending_items", o.items }, { "oldest_pending_s", pending && oldest_ns > 0 ? (uint64_t)(MAX(now_ns - oldest_ns, (int64_t)0) / 1000000000) : 0 },
                { "cache_bytes", t.bytes }, { "cache_limit_bytes", t.limit_bytes }, { "dirty_bytes", t.dirty_bytes }, { "nodes", tree.nodes }, { "files_accepted", levels.accepted }, { "files_local", levels.local },
                { "files_server", tree.files - MIN(tree.files, levels.accepted + levels.local) }, { "load_rows", e.load_rows }, { "sending", e.sending },
                { "quota_bytes", e.quota_bytes }, { "used_bytes", e.used_bytes },
                { "parked_items", o.parked }, { "held_nodes", tree_held(d->cache->tree) }, { "conflicts", conflicts }, { "rescues", t.rescues },
        };
        for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
                (void)json_object_set_new(j, numbers[i].name, json_integer((json_int_t)numbers[i].v));
        (void)json_object_set_new(j, "mounted", json_boolean(phase(d) == MOUNTED));
        (void)json_object_set_new(j, "loaded", json_boolean(e.loaded || tree.complete));
        (void)json_object_set_new(j, "reason", json_string(r < 0 ? "the local database does not answer" : e.reason));
        (void)json_object_set_new(j, "cursor", json_pack("{s:s, s:I, s:s}", "epoch", epoch, "seq", (json_int_t)cursor.seq, "mark", mark));
        (void)json_object_set_new(j, "parked", parked_json(d->cache));
        (void)json_object_set_new(j, "held", held_json(d));
        (void)json_object_set_new(j, "scrub", patrol_json(d));
        (void)json_object_set_new(j, "crawlers", guard_json(&d->guard, &d->counters));
        (void)json_object_set_new(j, "counters", counters_json(d));
        return j;
}

static void space(void *arg, uint64_t *ret_quota_bytes, uint64_t *ret_used_bytes) {
        struct daemon *d = arg;
        struct engine_status e = { 0 };
        engine_status(d->engine, &e);
        *ret_quota_bytes = e.quota_bytes;
        *ret_used_bytes = e.used_bytes;
}

static int unmount(void *arg, bool lazy) {
        struct daemon *d = arg;
        struct mount *m;
        {
                LOCK_SCOPE(&d->lock);
                m = d->mount;
                if (d->phase == STARTING)
                        d->ending++;
                if (d->phase == MOUNTING)
                        return -EAGAIN;
                if (d->phase != MOUNTED)
                        return 0;
                d->mount_users++;
        }
        int r = mount_stop(m, lazy);
        LOCK_SCOPE(&d->lock);
        d->mount_users--;
        cond_broadcast(&d->cond);
        return r;
}

static json_t *retry(void *arg, const char *path) {
        struct daemon *d = arg;
        json_t *answer = retry_json(d->cache, path);
        engine_nudge(d->engine);
        return answer;
}

static void nudge(void *arg) {
        struct daemon *d = arg;
        engine_nudge(d->engine);
}

static void terminate(void *arg) {
        struct daemon *d = arg;
        {
                LOCK_SCOPE(&d->lock);
                d->ending++;
        }
        int r = unmount(d, true);
        if (r < 0 && r != -EAGAIN) /* then the start sees that it has to end */
                log_warn("unmount err=%s", err_name(r));
}

static void reload(void *arg) {
        struct daemon *d = arg;
        guard_load(&d->guard);
}

static void accept_held(void *arg) {
        struct daemon *d = arg;
        engine_accept(d->engine);
}

static json_t *scrub(void *arg, _Atomic bool *stop) {
        struct daemon *d = arg;
        return scrub_cache(d->cache, stop);
}

static const char *hopeless(void *arg) {
        struct daemon *d = arg;
        struct engine_status e = { 0 };
        engine_status(d->engine, &e);
        return e.state == CONN_SIGNED_OUT || e.state == CONN_UPGRADE ? conn_name(e.state) : NULL;
}

static unsigned ending(struct daemon *d) {
        LOCK_SCOPE(&d->lock);
        return d->ending;
}

/* ---- start ---- */

static int local_error(struct daemon *d, int r, const char *what) {
        switch (r) {
        case -EBUSY:
                return report(d, EXIT_IN_USE, "another process uses %s: unmount it first, or use another --state-dir or cache_dir", what);
        case -ENOSPC:
        case -EDQUOT:
                return report(d, EXIT_DISK, "the disk of %s is full: free some space, or choose another place with -o cache_dir", what);
        case -EPROTONOSUPPORT:
                return report(d, EXIT_UPGRADE, "%s was written by a newer tarn: upgrade this program; nothing was touched", what);
        case -EROFS:
        case -EACCES:
        case -EPERM:
                return report(d, EXIT_DISK, "%s is not writable: %s", what, strerror(-r));
        default:
                return report(d, EXIT_DISK, "cannot open %s: %s; see %s", what, strerror(-r), d->c->place->log);
        }
}

static int open_cache(struct daemon *d) {
        const struct mount_options *o = d->c->o;
        struct statvfs v;
        char note[300] = "";
        int r = mkdir_p(d->cache_dir, 0700);
        if (r == 0 && statvfs(d->cache_dir, &v) < 0)
                r = -errno;
        if (r < 0)
                return local_error(d, r, d->cache_dir);
        uint64_t disk = (uint64_t)v.f_blocks * v.f_frsize;
        struct cache_config c = {
                .dir = d->cache_dir, .uid = getuid(), .gid = getgid(), .clock = clock_system(), .rng = rng_system(), .counters = &d->counters, .workers = pool_executor(d->pool), .read_only = o->ro,
                .limit_bytes = o->cache_size_bytes ? o->cache_size_bytes : MIN(CACHE_DEFAULT_BYTES, disk / 2),
                .free_floor_bytes = o->free_floor_bytes ? o->free_floor_bytes : MIN(FLOOR_DEFAULT_BYTES, disk / 50),
        };
        struct place_note known = { .mountpoint = (char *)d->c->mountpoint, .url = (char *)d->c->url, .base_url = (char *)d->c->base_url, .workspace = (char *)d->c->workspace, .cache_dir = d->cache_dir,
                                    .ca_file = (char *)(o->ca_file ? o->ca_file : session_ca_file(d->session)), .limit_bytes = c.limit_bytes, .floor_bytes = c.free_floor_bytes };
        r = place_note_write(d->c->place, &known);
        if (r < 0)
                return local_error(d, r, d->c->place->dir);
        r = cache_open(&c, &d->cache, note, sizeof note);
        if (r < 0)
                return local_error(d, r, d->cache_dir);
        if (note[0])
                log_warn("cache recovered: %s", note);
        return 0;
}

/* What the workspace says of its names is true for good. */
static int name_rule(struct daemon *d, const struct buf *answer) {
        _cleanup_json_ json_t *j = NULL;
        const char *names;
        if (json_parse(answer->data, answer->bytes, &j) < 0 || json_get_str(j, "names", &names) < 0 || strcmp(names, "portable") != 0)
                return 0;
        return tree_portable_names(d->cache->tree);
}

static int ask_workspace(struct daemon *d, char *ret_why, size_t n, int *ret_status) {
        _cleanup_buf_ struct buf path = BUF_INIT(4096);
        struct http_call *c = http_call_new(HTTP_GET, 0, 1 << 20);
        int r = c ? buf_add_str(&path, "/v1/workspaces/") : -ENOMEM;
        if (r == 0)
                r = url_escape(d->c->workspace, &path);
        const char *text = r == 0 ? buf_text(&path) : NULL;
        if (!text || !(c->path = strdup(text))) {
                http_call_free(c);
                return -ENOMEM;
        }
        c->accept = "application/json";
        c->deadline_ms = now_ms() + (int64_t)d->c->o->net_timeout_s * 1000;
        r = transport_call(d->transport, c);
        if (r == 0)
                r = name_rule(d, &c->answer);
        (void)snprintf(ret_why, n, "%s", c->message);
        *ret_status = c->status;
        http_call_free(c);
        return r;
}

/* Before a first load: one question, one clear line. */
static int preflight(struct daemon *d) {
        char why[320] = "";
        int http = 0;
        int r = ask_workspace(d, why, sizeof why, &http);
        if (r == -EKEYREJECTED) { /* the token is old: the session can get another */
                r = session_refresh(d->session, d->transport);
                if (r == -EAGAIN)
                        r = 0; /* another process has just done it */
                if (r == 0)
                        r = ask_workspace(d, why, sizeof why, &http);
        }
        switch (r) {
        case 0:
                return 0;
        case -EKEYREJECTED:
                return report(d, EXIT_SIGN_IN, "%s no longer accepts this login (expired or revoked): run `tarn login %s --user %s`", d->c->base_url, d->c->base_url, session_user(d->session));
        case -ENOKEY:
                return report(d, EXIT_TLS, "%s", why);
        case -ENOENT:
                return report(d, EXIT_WORKSPACE, "%s has no workspace '%s' that %s may see: check the name after the last slash of the URL", d->c->base_url, d->c->workspace, session_user(d->session));
        case -EACCES:
                return report(d, EXIT_WORKSPACE, "%s has no access to workspace '%s' on %s: ask its owner", session_user(d->session), d->c->workspace, d->c->base_url);
        case -EPROTONOSUPPORT:
                return report(d, EXIT_UPGRADE, "%s speaks a newer version than this program: upgrade tarn", d->c->base_url);
        case -ENOMEM:
                return report(d, EXIT_OTHER, "out of memory");
        default:
                return report(d, EXIT_SERVER, "%s", why[0] ? why : strerror(-r));
        }
}

/* Waits as long as rows keep coming; gives up when none came for net_timeout. */
static int wait_loaded(struct daemon *d) {
        uint64_t rows = 0;
        int64_t since = now_ms();
        char why[300] = "";
        for (;;) {
                struct engine_status e = { 0 };
                int r = engine_wait_loaded(d->engine, now_ms() + SLICE_MS, why, sizeof why);
                if (r == 0)
                        return 0;
                if (ending(d))
                        return report(d, EXIT_OTHER, "interrupted");
                if (r != -ETIMEDOUT)
                        return report(d, r == -EKEYREJECTED ? EXIT_SIGN_IN : r == -ENOENT || r == -EACCES ? EXIT_WORKSPACE : r == -EPROTONOSUPPORT ? EXIT_UPGRADE : r == -ENOSPC ? EXIT_DISK : EXIT_SERVER, "%s", why);
                engine_status(d->engine, &e);
                if (e.load_rows > rows) {
                        rows = e.load_rows;
                        since = now_ms();
                }
                if (now_ms() - since > (int64_t)d->c->o->net_timeout_s * 1000)
                        return report(d, EXIT_SERVER, "%s", why);
        }
}

static int open_network(struct daemon *d) {
        const struct daemon_config *c = d->c;
        int r = session_open(c->state, c->base_url, &d->session);
        if (r < 0)
                return report(d, EXIT_SIGN_IN, "not signed in to %s: run `tarn login %s --user NAME`", c->base_url, c->base_url);
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        r = pool_new("tarn-work", (unsigned)MIN(MAX(cpus, (long)WORKERS_MIN), 16L), &d->pool);
        if (r == 0)
                r = transport_curl_new(&(struct transport_curl_config){ .base_url = c->base_url, .ca_file = c->o->ca_file ? c->o->ca_file : session_ca_file(d->session), .counters = &d->counters,
                                                                        .token = session_token, .token_arg = d->session }, &d->transport);
        return r < 0 ? report(d, EXIT_OTHER, "cannot start: %s", strerror(-r)) : 0;
}

static void engine_stopped(void *arg, int err) {
        log_error("sync stopped err=%s", err_name(err));
}

static int wire(struct daemon *d) {
        const struct mount_options *o = d->c->o;
        struct mount *m = NULL;
        int r = engine_new(&(struct engine_config){ .cache = d->cache, .transport = d->transport, .session = d->session, .workers = pool_executor(d->pool), .clock = clock_system(), .rng = rng_system(),
                                                    .counters = &d->counters, .workspace = d->c->workspace, .host = d->host, .net_timeout_ms = (int64_t)o->net_timeout_s * 1000, .uploads = (unsigned)o->uploads,
                                                    .stopped = engine_stopped, .stopped_arg = d }, &d->engine);
        if (r == 0)
                r = guard_open(o->crawlers, &d->guard);
        if (r == 0)
                r = mount_new(&(struct mount_config){ .cache = d->cache, .mountpoint = d->c->mountpoint, .source_name = d->c->url, .ro = o->ro, .allow_other = o->allow_other, .default_permissions = !o->fastperm,
                                                      .fastperm = o->fastperm, .debug = o->debug, .owner_stored = o->owner_stored, .idmap = o->ids, .n_idmap = o->n_ids, .suid = o->suid, .dev = o->dev, .noexec = o->noexec, .nosubtype = o->nosubtype, .symlinks = o->symlinks, .uid = getuid(), .gid = getgid(), .close_level = o->close_level,
                                                      .net_timeout_ms = (int64_t)o->net_timeout_s * 1000, .threads = (unsigned)o->threads, .clock = clock_system(), .counters = &d->counters,
                                                      .crawlers = d->guard.crawlers, .space = space, .space_arg = d }, &m);
        if (r < 0)
                return report(d, EXIT_OTHER, "cannot start: %s", strerror(-r));
        cache_set_source(d->cache, engine_source(d->engine));
        cache_set_listener(d->cache, engine_listener(d->engine));
        gate_set(&d->gate, mount_listener(m));
        cache_set_listener(d->cache, &d->gate.listener);
        {
                LOCK_SCOPE(&d->lock);
                d->mount = m;
        }
        r = mount_info_write(d->c->place, d->c->mountpoint, d->c->url);
        if (r < 0)
                return local_error(d, r, d->c->place->info);
        d->recorded = true;
        if (o->scrub_s && (r = patrol_new(&(struct patrol_config){ .cache = d->cache, .period_ms = (int64_t)o->scrub_s * 1000 }, &d->patrol)) < 0)
                return report(d, EXIT_OTHER, "cannot start: %s", strerror(-r));
        r = control_start(&(struct control_config){ .place_dir = d->c->place->dir, .cache = d->cache, .status = status, .unmount = unmount, .nudge = nudge, .retry = retry, .terminate = terminate, .reload = reload, .scrub = scrub, .let_go = accept_held, .hopeless = hopeless, .arg = d },
                          &d->control);
        return r < 0 ? report(d, EXIT_DISK, "cannot make the control socket in %s: %s", d->c->place->dir, strerror(-r)) : 0;
}

static int start_mount(struct daemon *d) {
        char why[400] = "";
        {
                LOCK_SCOPE(&d->lock);
                if (!d->ending)
                        d->phase = MOUNTING;
        }
        if (phase(d) != MOUNTING)
                return report(d, EXIT_OTHER, "interrupted");
        int r = mount_start(d->mount, why, sizeof why);
        {
                LOCK_SCOPE(&d->lock);
                d->phase = r < 0 ? ENDED : MOUNTED;
        }
        control_poke(d->control);
        return r < 0 ? report(d, EXIT_MOUNT_POINT, "%s", why[0] ? why : strerror(-r)) : report(d, EXIT_OK, "mounted");
}

static int start(struct daemon *d) {
        struct tree_totals tree = { 0 };
        int r = file_lock(d->c->place->lock, &d->lock_fd);
        if (r < 0)
                return local_error(d, r, d->c->place->dir);
        int code = open_network(d);
        if (code == 0)
                code = open_cache(d);
        if (code)
                return code;
        if (tree_totals(d->cache->tree, &tree) < 0)
                tree.complete = false;
        if (!tree.complete)
                code = preflight(d);
        if (code == 0)
                code = wire(d);
        if (code == 0 && (r = engine_start(d->engine)) < 0)
                code = report(d, EXIT_OTHER, "cannot start: %s", strerror(-r));
        if (code == 0 && !tree.complete)
                code = wait_loaded(d);
        return code ? code : start_mount(d);
}

/* ---- end ---- */

static void drain(struct daemon *d) {
        int64_t deadline = now_ms() + (int64_t)d->c->o->drain_timeout_s * 1000;
        unsigned told = ending(d);
        while (now_ms() < deadline) {
                struct engine_status e = { 0 };
                if (cache_wait_drained(d->cache, MIN(deadline, now_ms() + SLICE_MS)) == 0)
                        return;
                engine_status(d->engine, &e);
                if (e.state != CONN_ONLINE || ending(d) > told) /* nobody there, or told again: in a hurry */
                        return;
        }
}

/* True if it was mounted. */
static bool take_mount_down(struct daemon *d) {
        struct mount *m;
        bool mounted;
        gate_set(&d->gate, NULL);
        {
                LOCK_SCOPE(&d->lock);
                mounted = d->phase == MOUNTED;
                d->phase = ENDED;
                m = d->mount;
                d->mount = NULL;
                while (d->mount_users > 0)
                        cond_wait(&d->cond, &d->lock);
                d->ending += d->ending == 0;
        }
        mount_free(m);
        return mounted;
}

static void end(struct daemon *d) {
        if (take_mount_down(d)) {
                int r = cache_sync(d->cache);
                if (r < 0)
                        log_error("sync err=%s", err_name(r));
                drain(d);
        }
        if (d->control)
                control_stop(d->control, status(d));
        patrol_free(d->patrol);
        if (d->engine)
                engine_stop(d->engine);
        if (d->cache)
                cache_close(d->cache);
        if (d->engine)
                engine_free(d->engine);
        transport_curl_free(d->transport);
        if (d->pool)
                pool_free(d->pool);
        session_free(d->session);
        if (d->recorded)
                (void)unlink(d->c->place->info);
        if (d->lock_fd >= 0)
                (void)close(d->lock_fd);
        control_free(d->control);
        guard_close(&d->guard);
}

int daemon_run(const struct daemon_config *c) {
        struct daemon d = { .c = c, .lock_fd = -1, .started_ms = now_ms(), .host = "this machine" };
        struct rlimit files;
        lock_init(&d.lock, "daemon", RANK_HANDLE);
        lock_init(&d.gate.lock, "gate", RANK_QUEUE - 1);
        cond_init(&d.cond);
        d.gate.listener = (struct listener){ .notes = gate_notes, .wake = gate_wake, .doubts = gate_doubts };
        if (gethostname(d.host, sizeof d.host - 1) < 0)
                (void)snprintf(d.host, sizeof d.host, "this machine");
        d.host[strcspn(d.host, ".")] = 0;
        if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
                files.rlim_cur = MAX(files.rlim_cur, MIN(files.rlim_max, (rlim_t)65536));
                (void)setrlimit(RLIMIT_NOFILE, &files);
        }
        (void)umask(077);
        d.cache_dir = strdup(c->o->cache_dir ? c->o->cache_dir : c->place->cache);
        int code = d.cache_dir ? start(&d) : report(&d, EXIT_OTHER, "out of memory");
        if (code == 0) {
                log_info("mounted url=%s mountpoint=%s pid=%d", c->url, c->mountpoint, (int)getpid());
                int r = ending(&d) ? mount_stop(d.mount, true) : 0; /* told to end before there was anything to stop */
                if (r == 0)
                        r = mount_wait(d.mount);
                if (r < 0)
                        log_warn("mount ended err=%s", err_name(r));
        }
        bool failed = code != 0;
        end(&d);
        if (failed && c->status_fd >= 0 && tell_parent(&d) < 0)
                log_warn("nobody heard that the start failed");
        log_info("ended url=%s mountpoint=%s exit=%d", c->url, c->mountpoint, code);
        free(d.cache_dir);
        cond_destroy(&d.cond);
        lock_destroy(&d.gate.lock);
        lock_destroy(&d.lock);
        return code;
}
