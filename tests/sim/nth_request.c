/* SPDX-License-Identifier: Apache-2.0 */
/* nth_request.c: the n-th request of a client fails, for each n and in each way that a request can fail (enum fate), once and from then on for a while; the simulated network and server.
 *
 *   journey   what it has of requests
 *   life      the first load, events and blocks of what another client made, operations and inline contents in batches, a large file in blocks, a save by rename over, names, attributes,
 *             deletes
 *   stream    a file larger than the room for dirty data, whose blocks go up while it is written, under an upload session; if its program gives up, the next one finds the room that it had
 *   room      a large file is deleted while its blocks go up: what is written then needs the room that it had, server or not
 *
 * Another client takes part whose requests are left alone. While requests fail, calls of programs end well; only a read of what is not here may say that the network is away. Then, without
 * anybody's help (no retry by hand; nothing stays parked) and within HEALS_MS: everything is sent, the client, the other one and one with an empty cache show the same tree, it is the one that the
 * calls made, and the server's log has each operation and each saved content at most once. Nothing stays open.
 *
 * Half of an answer, a sign-in page or nothing under 200 are passed on as whole answers here: the transport finds most of them (wire.h, X-Tarn-Sum), but not every answer has a sum.
 *
 * usage: nth-request [life|stream|room [FATE [N [once|while]]]]. The suite does each n of `life` once, and a part of the rest, evenly spread; TARN_TEST_SCALE: so many times as many, at most all;
 * TARN_TEST_SHARE: only that part. */
#include <assert.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api_call.h"
#include "base/log.h"
#include "disk.h"
#include "sim.h"
#include "../tmpdir.h"

#define WHILE_MS 15000
#define HEALS_MS 90000 /* a connection that gave broken answers is asked again after half a minute */
#define PUT_MS 160000  /* the deadline of a request with 4 MiB of blocks, and until then it may hang */

static const char *const fate_name[FATES] = { "lost", "answer lost", "twice", "503", "stalls", "500", "502 after it acted", "cut short", "sign-in page", "empty" };

static struct { enum fate fate; unsigned n, seen; bool lasting; int64_t until; } plan;
static struct world world;
static struct client *const a = &world.clients[0], *const b = &world.clients[1];
static unsigned reads_refused, writes_refused;
static int64_t slowest_ms;
static uint64_t traces; /* the sum of all traces' digests: two runs print the same one */
static char base_dir[200];
static bool verbose;

static enum fate decide(const struct message *m) {
        if (m->client != a)
                return FATE_NONE;
        plan.seen++;
        if (plan.seen == plan.n && plan.lasting)
                plan.until = world.clock.mono_ms + WHILE_MS;
        return plan.seen == plan.n || world.clock.mono_ms < plan.until ? plan.fate : FATE_NONE;
}

/* ---- what must be there in the end ---- */

struct want { char path[64]; struct text *text; const char *target; };
static struct want wants[64];
static size_t n_wants;

static struct want *want(const char *path) {
        for (size_t i = 0; i < n_wants; i++)
                if (!strcmp(wants[i].path, path))
                        return &wants[i];
        assert(n_wants < ARRAY_SIZE(wants));
        struct want *x = &wants[n_wants++];
        *x = (struct want){ .text = NULL };
        (void)snprintf(x->path, sizeof x->path, "%s", path);
        return x;
}

static void unwant(const char *path) {
        struct want *x = want(path);
        *x = wants[--n_wants];
}

/* ---- what programs do; each must end well ---- */

static void check(struct client *c, const char *what, const char *path, int r) {
        if (r < 0)
                wrong(&world, "%s: %s %s: %s", c->name, what, path, err_name(r));
}

/* The directory of a path and its last name. */
static const char *split(struct client *c, const char *path, uint64_t *ret_dir) {
        uint64_t dir = INO_ROOT;
        for (const char *slash; (slash = strchr(path, '/')); path = slash + 1) {
                struct node n = { 0 };
                check(c, "lookup", path, tree_lookup(c->cache->tree, dir, path, (size_t)(slash - path), &n));
                dir = n.ino;
        }
        *ret_dir = dir;
        return path;
}

static int look(struct client *c, const char *path, struct node *ret) {
        uint64_t dir;
        const char *name = split(c, path, &dir);
        return tree_lookup(c->cache->tree, dir, name, strlen(name), ret);
}

static void run_for(int64_t ms) {
        int64_t until = world.clock.mono_ms + ms;
        for (uint64_t i = 0; !world.why[0] && world_turn(&world, until); i++)
                if (i > 1000000)
                        wrong(&world, "somebody runs in a circle");
}

static void save(struct client *c, const char *path, size_t n) {
        struct node node;
        uint64_t dir;
        const char *name = split(c, path, &dir);
        int r = tree_lookup(c->cache->tree, dir, name, strlen(name), &node);
        if (r == -ENOENT)
                r = make_file(c, dir, name, strlen(name), &node);
        else if (r == 0)
                supersede(c, &node);
        struct text *t = text_of_size(c, n);
        if (r >= 0)
                r = write_text(c, &node, t);
        check(c, "save", path, r);
        want(path)->text = t;
}

static void make_directory(struct client *c, const char *path) {
        uint64_t dir;
        const char *name = split(c, path, &dir);
        check(c, "mkdir", path, make_dir(c, dir, name));
        (void)want(path);
}

static void take_away(struct client *c, const char *path) {
        uint64_t dir;
        const char *name = split(c, path, &dir);
        check(c, "unlink", path, remove_name(c, dir, name));
        unwant(path);
}

static void move_to(struct client *c, const char *from, const char *to) {
        uint64_t dir, dir2;
        const char *name = split(c, from, &dir), *name2 = split(c, to, &dir2);
        check(c, "rename", from, rename_to(c, dir, name, strlen(name), dir2, name2, strlen(name2)));
        struct want x = *want(from);
        unwant(from);
        want(to)->text = x.text;
        want(to)->target = x.target;
}

static void add_link(struct client *c, const char *from, const char *to) {
        struct node n = { 0 }, linked;
        uint64_t dir;
        const char *name = split(c, to, &dir);
        check(c, "lookup", from, look(c, from, &n));
        check(c, "link", to, tree_link(c->cache->tree, n.ino, dir, name, strlen(name), &linked));
        want(to)->text = want(from)->text;
}

static void add_symlink(struct client *c, const char *path, const char *target) {
        struct tree_new what = { .kind = NODE_SYMLINK, .mode = 0777, .uid = 1000, .gid = 1000, .target = target };
        struct node n;
        uint64_t dir;
        const char *name = split(c, path, &dir);
        check(c, "symlink", path, tree_create(c->cache->tree, dir, name, strlen(name), &what, &n));
        want(path)->target = target;
}

static void set_attributes(struct client *c, const char *path) {
        struct tree_attrs attrs = { .mask = ATTR_MODE, .mode = 0640 };
        struct node n = { 0 };
        check(c, "lookup", path, look(c, path, &n));
        check(c, "chmod", path, tree_setattr(c->cache->tree, n.ino, &attrs, &n));
        check(c, "setxattr", path, tree_xattr_set(c->cache->tree, n.ino, "user.colour", "blue", 4, 0));
}

/* A read may say that the network is away, and nothing else. */
static void look_at(struct client *c, const char *path) {
        struct node n;
        struct buf bytes = BUF_INIT(16u << 20);
        if (look(c, path, &n) < 0)
                return; /* not heard of yet */
        struct text *t = text_of_node(c, &n);
        int r = read_whole(c, &n, &bytes);
        if (r == -EHOSTDOWN || r == -ETIMEDOUT)
                reads_refused++;
        else if (r < 0)
                check(c, "read", path, r);
        else if (!t || bytes.bytes != t->n || memcmp(bytes.data, t->bytes, t->n) != 0)
                wrong(&world, "%s: read %s: wrong bytes", c->name, path);
        buf_free(&bytes);
}

static void write_over(struct file_write *fw, int result) {
        *(int *)fw->owner = result;
}

/* A program that writes more than there is room for: its writes wait for the network. Without one they fail, and the program gives up (if it may). */
static void stream(struct client *c, const char *path, size_t n, bool may_give_up) {
        struct text *t = text_of_size(c, n);
        struct node node = { 0 };
        struct file *f;
        bool gave_up = false;
        uint64_t dir;
        const char *name = split(c, path, &dir);
        check(c, "create", path, make_file(c, dir, name, strlen(name), &node));
        int r = file_open(c->cache, node.ino, node.incarnation, true, true, &f);
        check(c, "open", path, r);
        for (size_t at = 0; r >= 0 && at < n && !world.why[0];) {
                int over = 1; /* 1: waits */
                struct file_write fw = { .file = f, .off = at, .buf = t->bytes + at, .n = MIN(n - at, (size_t)256 << 10), .deadline_ms = INT64_MAX / 2, .done = write_over, .owner = &over };
                ssize_t k = file_write(&fw);
                while (k == -EINPROGRESS && over == 1 && !world.why[0])
                        run_for(5);
                if (k == -EINPROGRESS)
                        k = over == 1 ? -ETIMEDOUT : over; /* 0: there is room, again */
                if (k == -ENOSPC && may_give_up && plan.seen >= plan.n) {
                        writes_refused++;
                        gave_up = true;
                        break;
                }
                check(c, "write", path, (int)MIN(k, (ssize_t)0));
                at += (size_t)MAX(k, (ssize_t)0);
                run_for(2);
        }
        if (r >= 0)
                file_release(f, true);
        t->durable = !gave_up;
        want(path)->text = t;
        if (gave_up)
                take_away(c, path);
}

/* ---- journeys ---- */

static void wait_loaded(struct client *c) {
        struct engine_status status = { .loaded = false };
        int64_t until = world.clock.mono_ms + WHILE_MS + HEALS_MS;
        check(c, "start", c->name, client_up(c));
        while (!world.why[0] && !status.loaded && world.clock.mono_ms < until) {
                run_for(10);
                engine_status(c->engine, &status);
        }
        if (!status.loaded)
                wrong(&world, "%s: not loaded: %s", c->name, status.reason);
}

static void before(void) {
        wait_loaded(b);
        make_directory(b, "old");
        save(b, "old/one", 2000);
        save(b, "old/two", 400000);
        save(b, "old/gone", 1000);
        run_for(2000);
}

static void life(void) {
        wait_loaded(a);
        look_at(a, "old/one");
        save(a, "first", 3000);
        run_for(300);
        make_directory(a, "dir");
        make_directory(a, "dir/sub");
        save(a, "dir/sub/inline", 100000);
        run_for(300);
        save(a, "first", 4000);
        run_for(700);
        move_to(a, "first", "dir/first");
        run_for(200);
        save(a, "large", 1800000);
        run_for(1200);
        save(b, "remote", 5000); /* news */
        save(b, "old/one", 2500);
        take_away(b, "old/gone");
        run_for(800);
        look_at(a, "remote");
        look_at(a, "old/two");
        save(a, ".first.tmp", 4500); /* a save as editors do it */
        move_to(a, ".first.tmp", "dir/first");
        run_for(500);
        move_to(b, "remote", "old/remote");
        add_link(a, "dir/first", "linked");
        add_symlink(a, "points", "dir/first");
        set_attributes(a, "dir/sub/inline");
        run_for(400);
        take_away(a, "large");
        take_away(a, "dir/sub/inline");
        take_away(a, "dir/sub");
        run_for(400);
        save(a, "last", 200000);
}

static void streaming(void) {
        world.limit_bytes = 20u << 20;
        wait_loaded(a);
        stream(a, "stream", 12u << 20, true);
        stream(a, "after", 300000, false); /* what was deleted has given its room back, whatever hangs */
}

/* Has the server been told of an operation of which it has not answered yet? Its bytes cannot go. */
static bool some_sent(struct client *c) {
        struct arena *arena;
        struct outbox_item items[16];
        size_t n = 0;
        bool yes = false;
        assert(arena_new(16u << 20, &arena) >= 0);
        check(c, "outbox", c->name, outbox_list(c->cache->tree, arena, false, items, ARRAY_SIZE(items), &n));
        for (size_t i = 0; i < n; i++)
                yes |= items[i].state == OUT_SENT;
        arena_free(arena);
        return yes;
}

static void deleting(void) {
        world.limit_bytes = 20u << 20;
        wait_loaded(a);
        save(a, "large", 7u << 20);
        run_for(400);
        take_away(a, "large");
        stream(a, "after", 7u << 20, some_sent(a));
}

/* part: of all n, how many are run in the suite, once and lasting. */
static const struct journey { const char *name; void (*run)(void); double part[2]; int64_t heals_ms; } journeys[] = {
        { "life", life, { 1, 0.2 }, HEALS_MS }, { "stream", streaming, { 0.1, 0.1 }, HEALS_MS }, { "room", deleting, { 0.1, 0.1 }, HEALS_MS + PUT_MS },
};

/* ---- what must hold ---- */

static void check_wanted(struct client *c) {
        for (size_t i = 0; i < n_wants && !world.why[0]; i++) {
                struct want *x = &wants[i];
                struct node n = { 0 };
                int r = look(c, x->path, &n);
                if (r < 0 || n.kind != (x->text ? NODE_FILE : x->target ? NODE_SYMLINK : NODE_DIR) || (x->text && !content_equal(&n.content, &x->text->content)))
                        wrong(&world, "%s: %s is not what was made: %s", c->name, x->path, err_name(r));
        }
}

static int count_one(void *arg, const struct tree_entry *e) {
        size_t *n = arg;
        ++*n;
        return e->node.kind == NODE_DIR ? tree_list(world.clients[CLIENTS_MAX].cache->tree, e->node.ino, 0, count_one, n) : 0;
}

/* The server's log: an operation is in it once, and so is a content that was saved (what is sent again under another id would be a second version). */
static void check_log(void) {
        struct cursor at;
        struct meta_event *events;
        struct meta_workspace ws;
        struct arena *arena;
        size_t n = 0, seen = 0;
        assert(arena_new(64u << 20, &arena) >= 0);
        int r = net_server_at(&world, &at);
        struct cursor from = { .epoch = at.epoch }, upto;
        if (r >= 0)
                r = meta_events(world.server->meta, 1, &from, 100000, 64u << 20, arena, &events, &n, &upto, &ws);
        struct id *ops = calloc(n + 1, sizeof *ops);
        unsigned *versions = calloc(world.n_texts + 1, sizeof *versions);
        assert(ops && versions);
        for (size_t i = 0; r >= 0 && i < n; i++) {
                struct event e;
                r = wire_unpack_event(events[i].bytes, events[i].n, arena, &e);
                for (size_t k = 0; r >= 0 && k < seen; k++)
                        if (id_equal(&ops[k], &e.op))
                                wrong(&world, "an operation was applied twice");
                for (size_t k = 0; r >= 0 && k < e.n_changes; k++) {
                        const struct node_row *row = &e.changes[k].node;
                        struct text *t = row->deleted || !id_equal(&row->version, &e.op) || !row->content.size ? NULL : text_find(&world, &row->content);
                        if (t && versions[t->number]++)
                                wrong(&world, "text %u was committed twice", t->number);
                }
                ops[seen++] = e.op;
        }
        if (r < 0 || upto.seq != at.seq)
                wrong(&world, "the server's log: %s", err_name(r));
        free(ops);
        free(versions);
        arena_free(arena);
}

static int descriptors(void) {
        int n = 0;
        DIR *d = opendir("/proc/self/fd");
        while (d && readdir(d))
                n++;
        if (d)
                (void)closedir(d);
        return n;
}

/* One run. Returns the number of requests. */
static unsigned one(const struct journey *j, enum fate fate, unsigned n, bool lasting, int *ret) {
        int open_before = descriptors();
        size_t all = 0;
        n_wants = 0;
        plan.fate = fate;
        plan.n = n;
        plan.seen = 0;
        plan.until = 0;
        plan.lasting = lasting;
        int r = world_open_quiet(&world, 1, base_dir, verbose);
        world.n_clients = 2;
        world.fate = decide;
        if (r >= 0)
                before();
        if (!world.why[0])
                j->run();
        int64_t ended = world.clock.mono_ms;
        if (!world.why[0])
                (void)!oracle_wait(&world, "after the failures");
        if (!world.why[0] && plan.until > world.clock.mono_ms) /* the request came late: others of its time too */
                run_for(plan.until - world.clock.mono_ms);
        ended = MAX(ended, plan.until);
        if (!world.why[0])
                (void)!oracle_wait(&world, "after the failures");
        int64_t took = world.clock.mono_ms - ended;
        slowest_ms = MAX(slowest_ms, took);
        if (!world.why[0] && took > j->heals_ms)
                wrong(&world, "it took %lld ms until all was sent", (long long)took);
        unsigned requests = plan.seen;
        plan.n = 0;
        if (!world.why[0])
                (void)!oracle_check(&world);
        if (!world.why[0]) {
                check_wanted(a);
                check_wanted(&world.clients[CLIENTS_MAX]);
                check_log();
                (void)!tree_list(world.clients[CLIENTS_MAX].cache->tree, INO_ROOT, 0, count_one, &all);
                if (all != n_wants)
                        wrong(&world, "%zu names, %zu were made", all, n_wants);
        }
        struct digest trace_end;
        uint64_t first;
        sha256_end(world.trace, &trace_end);
        memcpy(&first, trace_end.b, sizeof first);
        traces += first;
        world_close(&world);
        if (!world.why[0] && descriptors() != open_before)
                wrong(&world, "%d descriptors, %d before", descriptors(), open_before);
        *ret = world.why[0] ? -EIO : 0;
        if (*ret < 0)
                fprintf(stderr, "%s, request %u %s, %s: %s\n  again: nth-request %s %d %u %s\n", j->name, n, fate < FATES ? fate_name[fate] : "", lasting ? "from then on" : "once", world.why, j->name,
                        (int)fate, n, lasting ? "while" : "once");
        return requests;
}

static unsigned number(const char *text) {
        return (unsigned)strtoul(text, NULL, 10);
}

int main(int argc, char **argv) {
        const char *share = getenv("TARN_TEST_SHARE"), *scale = getenv("TARN_TEST_SCALE"), *tmp = getenv("TMPDIR");
        double part = (share ? strtod(share, NULL) : 1) * (scale ? strtod(scale, NULL) : 1), due = 0;
        unsigned bad = 0, runs = 0;
        struct timespec t0, t1;
        verbose = argc > 5;
        if (log_open("nth-request", verbose ? LOG_LEVEL_DEBUG : (enum log_level)-1, NULL) < 0)
                return 1;
        disk_start();
        (void)snprintf(base_dir, sizeof base_dir, "%s/tarn-sim-XXXXXX", tmp ? tmp : access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        if (!tmpdir_new(base_dir))
                return 1;
        for (size_t i = 0; i < ARRAY_SIZE(journeys); i++) {
                int r;
                if (argc > 1 && strcmp(argv[1], journeys[i].name) != 0)
                        continue;
                (void)clock_gettime(CLOCK_MONOTONIC, &t0);
                unsigned all = one(&journeys[i], FATE_NONE, UINT32_MAX, false, &r), before = runs;
                bad += r < 0;
                reads_refused = writes_refused = 0;
                slowest_ms = 0;
                for (enum fate fate = 0; fate < FATES && r >= 0; fate++)
                        for (unsigned lasting = 0; lasting < 2; lasting++) {
                                if ((argc > 2 && number(argv[2]) != fate) || (argc > 4 && (strcmp(argv[4], "once") != 0) != lasting))
                                        continue;
                                for (unsigned n = 1; n <= all; n++) {
                                        due += argc > 2 || (fate == FATE_EMPTY && !lasting && part >= 1) ? 1 : MIN(1.0, part * journeys[i].part[lasting]); /* nothing must not be taken for "none is missing" */
                                        if ((argc > 3 && number(argv[3]) ? number(argv[3]) != n : due < 1) || bad > 20)
                                                continue;
                                        due -= 1;
                                        int k;
                                        (void)one(&journeys[i], fate, n, lasting, &k);
                                        bad += k < 0;
                                        runs++;
                                }
                        }
                (void)clock_gettime(CLOCK_MONOTONIC, &t1);
                printf("%s: %u requests, %u runs, %u reads were told that the network is away, %u writes that there is no room, slowest to heal %lld ms, %.1f s\n", journeys[i].name, all, runs - before, reads_refused, writes_refused,
                       (long long)slowest_ms, (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9);
        }
        world_remove(base_dir);
        printf("%u runs, traces %016llx, %u failed\n", runs, (unsigned long long)traces, bad);
        return bad || !runs ? 1 : 0;
}
