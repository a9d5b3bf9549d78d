/* SPDX-License-Identifier: Apache-2.0 */
/* world.c: the turn, the clients' lives, the trace. A killed client is made by copying its cache directory as it is at that moment (what a kill leaves: every write that was
 * accepted, no goodbye), ending the old one, and opening the copy in its place. */
#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/io.h"
#include "disk.h"
#include "sim.h"

const char *const sim_count_name[SIM_COUNTS] = {
        [SIM_TURNS] = "turns", [SIM_OPERATIONS] = "operations", [SIM_COMMITTED] = "committed", [SIM_REFUSED] = "refused", [SIM_CONFLICTS] = "conflict names", [SIM_CRASHES] = "crashes",
        [SIM_POWER_CUTS] = "power cuts", [SIM_PAGES_LOST] = "pages lost", [SIM_ROLLBACKS] = "clients rolled back", [SIM_CLONES] = "clients cloned", [SIM_HORIZONS] = "horizons moved",
        [SIM_GONE] = "cursors gone", [SIM_FULL] = "full disks", [SIM_EXPIRED] = "tokens expired", [SIM_QUOTA] = "quotas used up", [SIM_LINKS] = "links", [SIM_EXCHANGES] = "exchanges",
        [SIM_XATTRS] = "xattrs",
        [SIM_SERVER_ROLLBACKS] = "servers rolled back", [SIM_EPOCHS] = "new epochs", [SIM_NEWER] = "newer ones held",
        [SIM_ROW_EDIT_SAME] = "edit|same edit", [SIM_ROW_EDIT_EDIT] = "edit|edit", [SIM_ROW_EDIT_DELETE] = "edit|delete", [SIM_ROW_DELETE_EDIT] = "delete|edit",
        [SIM_ROW_DELETE_RENAME] = "delete|rename", [SIM_ROW_OVER_EDIT] = "rename over|edit", [SIM_ROW_RENAME_CREATE] = "rename|create", [SIM_ROW_RENAME_RENAME] = "rename|rename",
        [SIM_ROW_RENAME_EDIT] = "rename|edit", [SIM_ROW_RENAME_DELETE] = "rename|delete", [SIM_ROW_INTO_DELETED] = "into deleted directory", [SIM_ROW_CYCLE] = "cycle",
        [SIM_ROW_RMDIR_CHILD] = "rmdir|child", [SIM_ROW_CREATE_SAME] = "create|same create", [SIM_ROW_CREATE_CREATE] = "create|create", [SIM_ROW_MKDIR_MKDIR] = "mkdir|mkdir",
        [SIM_ROW_FILE_DIR] = "file|directory", [SIM_ROW_ATTR_ATTR] = "attribute|attribute",
};

uint64_t pick(struct world *w, uint64_t bound) {
        return rng_below(&w->rng.rng, bound);
}

bool chance(struct world *w, unsigned per_mille) {
        return rng_below(&w->rng.rng, 1000) < per_mille;
}

void trace(struct world *w, const char *fmt, ...) {
        char line[600];
        va_list ap;
        int n = snprintf(line, sizeof line, "%lld ", (long long)w->clock.mono_ms);
        va_start(ap, fmt);
        int more = vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
        va_end(ap);
        size_t bytes = MIN((size_t)(n + more), sizeof line - 1);
        sha256_add(w->trace, line, bytes);
        if (w->verbose)
                fprintf(stderr, "%s\n", line);
}

int wrong(struct world *w, const char *fmt, ...) {
        va_list ap;
        if (w->why[0])
                return -EIO;
        va_start(ap, fmt);
        vsnprintf(w->why, sizeof w->why, fmt, ap);
        va_end(ap);
        if (w->verbose)
                fprintf(stderr, "WRONG: %s\n", w->why);
        return -EIO;
}

/* ---- workers ---- */

static void submit_job(struct executor *x, struct job *j) {
        struct client *c = container_of(x, struct client, executor);
        j->next = NULL;
        *c->jobs_end = j;
        c->jobs_end = &j->next;
        c->n_jobs++;
}

static void run_job(struct client *c, size_t index) {
        struct job **p = &c->jobs;
        while (index--)
                p = &(*p)->next;
        struct job *j = *p;
        *p = j->next;
        if (!*p)
                c->jobs_end = p;
        c->n_jobs--;
        j->run(j);
}

/* ---- clients ---- */

static void on_woken(void *arg) {
        ((struct client *)arg)->woken = true;
}

int client_up(struct client *c) {
        struct world *w = c->w;
        char note[200] = "";
        c->jobs_end = &c->jobs;
        c->executor = (struct executor){ .submit = submit_job };
        net_transport(c);
        struct cache_config config = { .dir = c->dir, .limit_bytes = w->limit_bytes ? w->limit_bytes : 256u << 20, .free_floor_bytes = 0, .uid = 1000, .gid = 1000, .clock = &w->clock.clock, .rng = &c->rng.rng,
                                       .counters = &c->counters, .by_hand = true };
        int r = cache_open(&config, &c->cache, note, sizeof note);
        if (r < 0)
                return wrong(w, "%s: cache_open: %s", c->name, err_name(r));
        struct engine_config ec = { .cache = c->cache, .transport = &c->transport, .workers = &c->executor, .clock = &w->clock.clock, .rng = &c->rng.rng, .counters = &c->counters,
                                    .workspace = "w", .host = c->name, .net_timeout_ms = 5000 };
        r = engine_new(&ec, &c->engine);
        if (r < 0)
                return wrong(w, "%s: engine_new: %s", c->name, err_name(r));
        engine_set_woken(c->engine, on_woken, c);
        cache_set_source(c->cache, engine_source(c->engine));
        cache_set_listener(c->cache, engine_listener(c->engine));
        c->step_at = w->clock.mono_ms;
        c->flush_at = w->clock.mono_ms + 1000;
        c->woken = true;
        c->up = true;
        c->incarnation++;
        trace(w, "%s up", c->name);
        return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) {
        return remove(path);
}

void world_remove(const char *path) {
        (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* What a copy of a cache directory is of: a running one at this moment (a kill), or what a power cut leaves of it. */
struct copying { bool lose; uint64_t seed, *pages; };

static uint64_t name_number(const char *name) {
        uint64_t h = 1469598103934665603u;
        while (*name)
                h = (h ^ (uint8_t)*name++) * 1099511628211u;
        return h;
}

static int copy_file(int from_dir, int to_dir, const char *name, const struct copying *how) {
        struct stat st;
        _cleanup_close_ int in = openat(from_dir, name, O_RDONLY | O_CLOEXEC);
        _cleanup_close_ int out = openat(to_dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        static uint8_t bytes[1 << 16];
        if (in < 0 || out < 0 || fstat(in, &st) < 0 || ftruncate(out, st.st_size) < 0)
                return -errno;
        off_t data = 0, hole = 0;
        while ((data = lseek(in, hole, SEEK_DATA)) >= 0) {
                hole = lseek(in, data, SEEK_HOLE);
                for (off_t at = data; at < hole;) {
                        ssize_t n = pread(in, bytes, MIN(sizeof bytes, (size_t)(hole - at)), at);
                        if (n <= 0 || pwrite(out, bytes, (size_t)n, at) != n)
                                return -EIO;
                        at += n;
                }
        }
        int r = how->lose ? disk_lose(st.st_ino, out, how->seed ^ name_number(name), how->pages) : 0;
        return r < 0 ? r : fsync(out) < 0 ? -errno : 0; /* the copy is what is on its platter */
}

static int copy_tree(const char *from, const char *to, const struct copying *how) {
        DIR *d = opendir(from);
        struct dirent *e;
        int r = mkdir(to, 0700) < 0 ? -errno : 0;
        while (d && r >= 0 && (e = readdir(d))) {
                if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
                        continue;
                struct stat st;
                if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
                        r = -errno;
                } else if (S_ISDIR(st.st_mode)) {
                        _cleanup_free_ char *a = path_join(from, e->d_name), *b = path_join(to, e->d_name);
                        r = copy_tree(a, b, how);
                } else if (S_ISREG(st.st_mode) && !(how->lose && strstr(e->d_name, "-shm"))) {
                        _cleanup_close_ int to_fd = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                        r = to_fd < 0 ? -errno : copy_file(dirfd(d), to_fd, e->d_name, how);
                }
        }
        if (d)
                closedir(d);
        return r;
}

/* What the client closed since its last sync may be gone. */
static void forget_unsynced(struct client *c) {
        for (size_t i = 0; i < c->w->n_texts; i++) {
                struct text *t = c->w->texts[i];
                if ((t->writer == c->index || t->shared) && !t->local)
                        t->durable = false;
        }
}

static void mark_local(struct client *c) {
        for (size_t i = 0; i < c->w->n_texts; i++)
                if (c->w->texts[i]->writer == c->index && c->w->texts[i]->durable && !c->w->texts[i]->shared)
                        c->w->texts[i]->local = true;
}

int client_backup(struct client *c) {
        char to[320];
        struct copying how = { 0 };
        snprintf(to, sizeof to, "%s.backup", c->dir);
        world_remove(to);
        int r = copy_tree(c->dir, to, &how);
        if (r < 0)
                return wrong(c->w, "%s: backup: %s", c->name, err_name(r));
        c->backup_texts = c->w->n_texts;
        c->has_backup = true;
        trace(c->w, "%s backup", c->name);
        return 0;
}

int client_clone(struct client *c) {
        struct world *w = c->w;
        struct client *new = &w->clients[w->n_clients];
        struct copying how = { 0 };
        assert(w->n_clients < CLIENTS_MAX && c->up);
        int r = copy_tree(c->dir, new->dir, &how);
        if (r < 0)
                return wrong(w, "%s: clone: %s", c->name, err_name(r));
        new->gens = calloc(c->n_gens + 1, sizeof *new->gens);
        assert(new->gens);
        if (c->n_gens)
                memcpy(new->gens, c->gens, c->n_gens * sizeof *new->gens);
        new->n_gens = c->n_gens;
        w->n_clients++;
        w->count[SIM_CLONES]++;
        trace(w, "%s is a clone of %s", new->name, c->name);
        return client_up(new);
}

int client_down(struct client *c, enum down how) {
        struct world *w = c->w;
        char copy[320], boot[400];
        int r = 0;
        if (!c->up)
                return 0;
        bool crash = how != DOWN_CLEAN;
        snprintf(copy, sizeof copy, how == DOWN_ROLLED_BACK ? "%s.backup" : "%s.copy", c->dir);
        if (how == DOWN_KILLED || how == DOWN_POWER) {
                struct copying copying = { .lose = how == DOWN_POWER, .seed = w->seed * 1000 + ++w->cuts, .pages = &w->count[SIM_PAGES_LOST] };
                r = copy_tree(c->dir, copy, &copying);
                if (r < 0)
                        return wrong(w, "%s: copy: %s", c->name, err_name(r));
        }
        if (how == DOWN_POWER) { /* another boot id: bytes may be missing */
                static const char other[] = "00000000-0000-0000-0000-000000000000";
                snprintf(boot, sizeof boot, "%s/boot", copy);
                r = file_replace(boot, other, sizeof other - 1, 0600);
                if (r < 0)
                        return wrong(w, "%s: boot: %s", c->name, err_name(r));
                forget_unsynced(c);
        }
        if (how == DOWN_ROLLED_BACK)
                for (size_t i = c->backup_texts; i < w->n_texts; i++)
                        if (w->texts[i]->writer == c->index || w->texts[i]->shared)
                                w->texts[i]->durable = false; /* it may be on the server */
        c->crashing = crash;
        op_close_all(c);
        c->crashing = false;
        engine_shutdown(c->engine);
        for (unsigned i = 0; !engine_quiet(c->engine) || c->n_jobs || !readings_none(c); i++) {
                struct message *m = w->messages;
                while (m && (m->client != c || !m->cancelled))
                        m = m->next;
                if (m)
                        net_run(w, m);
                if (c->n_jobs)
                        run_job(c, 0);
                if (blobs_due(c->cache->blobs) <= w->clock.mono_ms)
                        blobs_turn(c->cache->blobs);
                (void)engine_step(c->engine);
                if (i > 100000)
                        return wrong(w, "%s: does not stop", c->name);
        }
        (void)engine_step(c->engine);
        engine_free(steal_ptr(c->engine));
        cache_close(steal_ptr(c->cache));
        while (c->n_jobs)
                run_job(c, 0);
        c->up = false;
        if (!crash)
                mark_local(c);
        if (crash) {
                world_remove(c->dir);
                if (rename(copy, c->dir) < 0)
                        return wrong(w, "%s: rename: %s", c->name, err_name(-errno));
        }
        if (how == DOWN_ROLLED_BACK)
                c->has_backup = false;
        if (how > DOWN_KILLED) /* a machine takes a moment to come back; numbers made from the clock are never made twice */
                clock_manual_advance(&w->clock, 3000);
        trace(w, "%s down how=%d", c->name, (int)how);
        return 0;
}

/* ---- the server's lives ---- */

static int server_up(struct world *w) {
        char why[200] = "";
        struct service_config config = { .data_dir = w->server_dir[0] ? w->server_dir : NULL, .clock = &w->clock.clock, .rng = &w->server_rng.rng, .counters = &w->counters };
        int r = service_open(&config, &w->server, why, sizeof why);
        return r < 0 ? wrong(w, "service_open: %s (%s)", err_name(r), why) : 0;
}

int server_backup(struct world *w) {
        char to[320];
        struct copying how = { 0 };
        snprintf(to, sizeof to, "%s.backup", w->server_dir);
        world_remove(to);
        int r = copy_tree(w->server_dir, to, &how);
        if (r < 0)
                return wrong(w, "server backup: %s", err_name(r));
        w->server_texts = w->n_texts;
        w->has_backup = true;
        trace(w, "server backup");
        return 0;
}

int server_rollback(struct world *w) {
        char from[320];
        snprintf(from, sizeof from, "%s.backup", w->server_dir);
        for (unsigned i = 0; i <= CLIENTS_MAX; i++)
                net_cut(&w->clients[i]);
        for (struct message *m = w->messages; m; m = m->next) { /* answers that are on their way say what is not true any more */
                m->state = MSG_COMING;
                m->err = -EHOSTDOWN;
        }
        service_close(steal_ptr(w->server));
        world_remove(w->server_dir);
        if (rename(from, w->server_dir) < 0)
                return wrong(w, "server rollback: %s", err_name(-errno));
        w->has_backup = false;
        for (size_t i = w->server_texts; i < w->n_texts; i++)
                w->texts[i]->durable = false;
        clock_manual_advance(&w->clock, 3000);
        return server_up(w);
}

/* ---- one turn ---- */

/* SIM_WATCH=NAME or INO: says when what a client has under that name in the root, or with that number, changes. For people who look for a bug. */
static void watch(struct world *w) {
        static uint64_t last[CLIENTS_MAX + 1][2];
        const char *name = getenv("SIM_WATCH");
        uint64_t ino = name ? strtoull(name, NULL, 10) : 0;
        for (unsigned i = 0; name && i <= CLIENTS_MAX; i++) {
                struct client *c = &w->clients[i];
                struct node n = { 0 };
                if (!c->up)
                        continue;
                int r = ino ? tree_get(c->cache->tree, ino, &n) : tree_lookup(c->cache->tree, INO_ROOT, name, strlen(name), &n);
                if (r < 0)
                        n = (struct node){ 0 };
                if (last[i][0] != n.ino || last[i][1] != n.gen + n.seq) {
                        fprintf(stderr, "%lld WATCH %s %s: ino=%llu id=%02x%02x seq=%llu gen=%llu size=%llu nlink=%u pending=%d\n", (long long)w->clock.mono_ms, c->name, name,
                                (unsigned long long)n.ino, n.id.b[0], n.id.b[1], (unsigned long long)n.seq, (unsigned long long)n.gen, (unsigned long long)n.size, n.nlink, n.pending);
                        last[i][0] = n.ino;
                        last[i][1] = n.gen + n.seq;
                }
        }
}

static struct client *random_up(struct world *w) {
        for (unsigned i = 0; i < 10; i++) {
                struct client *c = &w->clients[pick(w, w->n_clients)];
                struct engine_status status;
                if (!c->up)
                        continue;
                engine_status(c->engine, &status);
                if (status.loaded) /* a mount waits for that */
                        return c;
        }
        return NULL;
}

static void do_operation(struct world *w) {
        struct client *c = random_up(w);
        w->next_op_at = w->clock.mono_ms + (chance(w, 700) ? (int64_t)pick(w, 40) : (int64_t)pick(w, 3000));
        if (w->faults && chance(w, w->rough))
                disturb(w);
        else if (c)
                op_random(w, c);
}

bool world_turn(struct world *w, int64_t until) {
        enum { MAX_CHOICES = 600 };
        struct { int kind; struct client *client; struct message *message; size_t job; } choice[MAX_CHOICES];
        size_t n = 0;
        int64_t now = w->clock.mono_ms, next = until;
        w->turns++;
        if (w->full || w->quota_until)
                trouble_tick(w);
        if (w->operations) {
                if (w->next_op_at <= now)
                        choice[n++].kind = 0;
                next = MIN(next, w->next_op_at);
        }
        for (unsigned i = 0; i <= CLIENTS_MAX; i++) {
                struct client *c = &w->clients[i];
                if (!c->up)
                        continue;
                if (c->flush_at <= now) {
                        choice[n].kind = 4;
                        choice[n++].client = c;
                } else {
                        next = MIN(next, c->flush_at);
                }
                int64_t due = blobs_due(c->cache->blobs);
                if (due <= now) {
                        choice[n].kind = 5;
                        choice[n++].client = c;
                } else {
                        next = MIN(next, due);
                }
                if (c->woken || c->step_at <= now) {
                        choice[n].kind = 1;
                        choice[n++].client = c;
                } else {
                        next = MIN(next, c->step_at);
                }
                for (size_t j = 0; j < c->n_jobs && n < MAX_CHOICES - 100; j++) {
                        choice[n].kind = 2;
                        choice[n].job = j;
                        choice[n++].client = c;
                }
        }
        for (struct message *m = w->messages; m && n < MAX_CHOICES - 1; m = m->next) {
                if (net_due(w, m)) {
                        choice[n].kind = 3;
                        choice[n++].message = m;
                } else {
                        next = MIN(next, net_time(w, m));
                }
        }
        if (n == 0) {
                if (next >= until) {
                        clock_manual_advance(&w->clock, MAX(until - now, 0));
                        return false;
                }
                clock_manual_advance(&w->clock, MAX(next - now, 1));
                return true;
        }
        size_t k = pick(w, n);
        if (w->verbose)
                watch(w);
        switch (choice[k].kind) {
        case 0:
                do_operation(w);
                break;
        case 1: {
                struct client *c = choice[k].client;
                c->woken = false;
                int64_t wait = engine_step(c->engine);
                c->step_at = wait == INT64_MAX ? INT64_MAX : w->clock.mono_ms + wait;
                break;
        }
        case 4: {
                struct client *c = choice[k].client;
                c->flush_at = now + 1000;
                int r = cache_turn(c->cache);
                if (r == 0)
                        mark_local(c);
                else if (!w->full)
                        wrong(w, "%s: cache_turn: %s", c->name, err_name(r));
                break;
        }
        case 5:
                blobs_turn(choice[k].client->cache->blobs);
                break;
        case 2:
                run_job(choice[k].client, choice[k].job);
                break;
        default:
                net_run(w, choice[k].message);
                break;
        }
        return true;
}

/* ---- the world ---- */

int world_open_quiet(struct world *w, uint64_t seed, const char *base, bool verbose) {
        static uint64_t number;
        char why[200] = "";
        memset(w, 0, sizeof *w);
        w->seed = seed;
        w->verbose = verbose;
        rng_seed(&w->rng, seed);
        rng_seed(&w->server_rng, seed ^ 0x5e47e45e47e4ull);
        clock_manual_init(&w->clock, 1000000, 1700000000000000000ll);
        if (sha256_new(&w->trace) < 0)
                return -ENOMEM;
        snprintf(w->dir, sizeof w->dir, "%s/%d-%llu", base, (int)getpid(), (unsigned long long)number++);
        if (mkdir(w->dir, 0700) < 0)
                return -errno;
        int r = 0;
        if (getenv("SIM_SERVER_ROLLBACK") || seed % 8 == 5) { /* this one may be rolled back: it has files */
                snprintf(w->server_dir, sizeof w->server_dir, "%s/server", w->dir);
                r = service_init(w->server_dir, why, sizeof why);
        }
        if (r >= 0)
                r = server_up(w);
        if (r < 0)
                return wrong(w, "service_init: %s (%s)", err_name(r), why);
        struct buf text = BUF_INIT(1000);
        const char *user[] = { "user", "add", "u" }, *workspace[] = { "workspace", "add", "w", "--owner", "u" }, *token[] = { "token", "add", "--user", "u" };
        r = service_admin(w->server, user, 3, NULL, &text);
        if (r >= 0)
                r = service_admin(w->server, workspace, 5, NULL, &text);
        buf_reset(&text);
        if (r >= 0)
                r = service_admin(w->server, token, 4, NULL, &text);
        const char *t = buf_text(&text);
        if (r >= 0 && t)
                snprintf(w->authorization, sizeof w->authorization, "Bearer %.*s", (int)strcspn(t, " \n"), t);
        if (r < 0)
                wrong(w, "service_admin: %s (%s)", err_name(r), t ? t : "");
        buf_free(&text);
        for (unsigned i = 0; i <= CLIENTS_MAX; i++) {
                struct client *c = &w->clients[i];
                c->w = w;
                c->index = i;
                c->connected = true;
                c->jobs_end = &c->jobs;
                rng_seed(&c->rng, seed * 31 + i + 1);
                snprintf(c->name, sizeof c->name, "c%u", i);
                snprintf(c->dir, sizeof c->dir, "%s/%s", w->dir, c->name);
        }
        return r;
}

int world_open(struct world *w, uint64_t seed, const char *base, bool verbose) {
        int r = world_open_quiet(w, seed, base, verbose);
        if (r < 0)
                return r;
        w->n_clients = 2 + (unsigned)pick(w, CLIENTS_MAX - 2);
        w->trouble = chance(w, 300) ? 0 : (unsigned)pick(w, 150);
        w->rough = chance(w, 300) ? 150 : 40;
        w->power = chance(w, 300);
        disk_watch(w->dir, w->power);
        for (unsigned i = 0; i < w->n_clients && r >= 0; i++)
                r = client_up(&w->clients[i]);
        w->next_op_at = w->clock.mono_ms + 200;
        return r;
}

void world_close(struct world *w) {
        for (unsigned i = 0; i <= CLIENTS_MAX; i++) {
                (void)!client_down(&w->clients[i], DOWN_CLEAN);
                free(w->clients[i].gens);
        }
        if (w->server)
                service_close(w->server);
        for (size_t i = 0; i < w->n_texts; i++) {
                free(w->texts[i]->bytes);
                free(w->texts[i]);
        }
        free(w->texts);
        free(w->told);
        sha256_free(w->trace);
        if (w->dir[0])
                world_remove(w->dir);
}
