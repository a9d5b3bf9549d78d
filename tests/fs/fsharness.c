/* SPDX-License-Identifier: Apache-2.0 */
/* A mount without a server: the real cache and the real FUSE side, and a "server" that is this program. It reads commands on stdin, one a line, and answers each with one
 * line: "ok ..." or "error ERRNO". Nodes of the server are named by labels; "/" is the root.
 *
 *   mkdir LABEL PARENT NAME            create LABEL PARENT NAME TEXT      symlink LABEL PARENT NAME TARGET
 *   rename LABEL PARENT NAME           link LABEL PARENT NAME             unlink LABEL PARENT NAME
 *   content LABEL TEXT                 chmod LABEL OCTAL                  mtime LABEL NS                 chown LABEL UID GID
 *       one event each, applied by tree_apply as the engine would; TEXT: the bytes themselves, or "@N:BYTE" for N times a character
 *   online | offline | stall           how the source answers; stall: it keeps the wishes until the next online or offline
 *   stalled                            number of wishes kept
 *   counter NAME                       sync                               pending                        dirty: bytes
 *   open INO: is it                    arm TEXT: base/failpoint.h         hits NAME: of a failpoint since it was armed
 *   space QUOTA USED                   what statfs is told of the server
 *   stop                               unmounts (not lazily): "error EBUSY" if busy
 *   quit [lazy]                        unmounts, closes the cache and ends
 *
 * fsharness STATE_DIR MOUNTPOINT [ro] [allow_other] [owner_stored] [fastperm] [idmap=MAP] [suid] [dev] [noexec] [nosubtype] [symlinks=inside|none] [close=local] [close=server] [uid=N] [timeout_ms=N] [cache=BYTES] */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/chunk.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/failpoint.h"
#include "base/lock.h"
#include "base/log.h"
#include "fs/mount.h"

#define NODES_MAX 4096
#define NAMES_MAX 8
#define BYTES_MAX (64u << 20)

struct remote_name { struct remote *parent; char name[256]; struct id placement; };
struct remote {
        char label[64];
        struct id id;
        enum node_kind kind;
        uint32_t mode, uid, gid;
        int64_t mtime_ns;
        char target[256];
        struct content content;
        struct id version;
        struct remote_name names[NAMES_MAX];
        size_t n_names;
        bool deleted;
};
static struct remote *nodes[NODES_MAX];
static size_t n_nodes;
static struct cursor cursor = { .seq = 1 };

/* ---- the source: blocks by hash, answered from a thread of its own ---- */
struct stored { struct digest hash; uint8_t *bytes; size_t n; };
static struct stored blocks[65536];
static _Atomic size_t n_blocks; /* they are only added, by the main thread; the source's reads those that are there */
static struct {
        struct source source;
        struct lock lock;
        struct cond changed;
        enum { ONLINE, OFFLINE, STALL } mode;
        struct fetch *wishes[1024];
        bool cancelled[1024];
        size_t n;
        bool stop;
        pthread_t thread;
} src;

static const struct stored *stored_find(const struct digest *hash) {
        for (size_t i = 0; i < n_blocks; i++)
                if (digest_equal(&blocks[i].hash, hash))
                        return &blocks[i];
        return NULL;
}

static int wish_pages(struct fetch *f, const struct digest *hash, unsigned depth) {
        const struct stored *s = stored_find(hash);
        if (!s)
                return -ENOENT;
        int r = f->block(f, &s->hash, s->bytes, s->n);
        if (depth == 0 || r < 0)
                return r < 0 ? r : 0;
        struct list_page *page = malloc(sizeof *page);
        r = page ? list_page_parse(s->bytes, s->n, page) : -ENOMEM;
        for (size_t i = 0; r == 0 && i < page->n; i++)
                r = wish_pages(f, &page->hash[i], depth - 1);
        free(page);
        return r;
}

static int wish_answer(struct fetch *f) {
        int r = 0;
        if (f->n_hashes == 0 && f->content.size > 0)
                r = wish_pages(f, &f->content.root, f->content.depth);
        for (size_t i = 0; i < f->n_hashes && r == 0; i++)
                r = wish_pages(f, &f->hashes[i], 0);
        return r;
}

static void *source_thread(void *arg) {
        lock_take(&src.lock);
        for (;;) {
                size_t pick = src.n;
                for (size_t i = 0; i < src.n && pick == src.n; i++)
                        if (src.mode != STALL || src.cancelled[i] || src.stop)
                                pick = i;
                if (pick == src.n) {
                        if (src.stop)
                                break;
                        cond_wait(&src.changed, &src.lock);
                        continue;
                }
                struct fetch *f = src.wishes[pick];
                int r = src.cancelled[pick] || src.stop ? -ECANCELED : src.mode == OFFLINE ? -EHOSTDOWN : 0;
                memmove(&src.wishes[pick], &src.wishes[pick + 1], (src.n - pick - 1) * sizeof src.wishes[0]);
                memmove(&src.cancelled[pick], &src.cancelled[pick + 1], (src.n - pick - 1) * sizeof src.cancelled[0]);
                src.n--;
                lock_drop(&src.lock);
                if (r == 0)
                        r = wish_answer(f);
                f->done(f, r);
                lock_take(&src.lock);
        }
        lock_drop(&src.lock);
        return NULL;
}

static int source_fetch(struct source *s, struct fetch *f) {
        LOCK_SCOPE(&src.lock);
        if (src.mode == OFFLINE || src.stop)
                return -EHOSTDOWN;
        assert(src.n < ARRAY_SIZE(src.wishes));
        src.cancelled[src.n] = false;
        src.wishes[src.n++] = f;
        cond_signal(&src.changed);
        return 0;
}

static void source_cancel(struct source *s, struct fetch *f) {
        LOCK_SCOPE(&src.lock);
        for (size_t i = 0; i < src.n; i++)
                if (src.wishes[i] == f)
                        src.cancelled[i] = true;
        cond_signal(&src.changed);
}

/* ---- the server's tree ---- */
static struct cache *cache;

static bool is_open(void *arg, uint64_t ino) {
        return file_is_open(arg, ino);
}

static struct remote *find(const char *label) {
        for (size_t i = 0; i < n_nodes; i++)
                if (strcmp(nodes[i]->label, label) == 0)
                        return nodes[i];
        return NULL;
}

static int store(const uint8_t *p, size_t n, struct digest *ret) {
        sha256(p, n, ret);
        if (stored_find(ret))
                return 0;
        assert(n_blocks < ARRAY_SIZE(blocks));
        uint8_t *copy = malloc(n);
        memcpy(copy, p, n);
        blocks[n_blocks] = (struct stored){ *ret, copy, n };
        n_blocks++;
        return 0;
}

static int store_page(struct page_sink *s, const struct digest *hash, const void *bytes, size_t n, uint8_t level) {
        struct digest d;
        return store(bytes, n, &d);
}

static int set_content(struct remote *r, const char *text) {
        size_t n = strlen(text);
        char *filled = NULL;
        char c;
        if (sscanf(text, "@%zu:%c", &n, &c) == 2) {
                if (n > BYTES_MAX)
                        return -EFBIG;
                filled = malloc(n + 1);
                for (size_t i = 0; i < n; i++) /* not one byte alone: blocks differ */
                        filled[i] = i % 4096 < 8 ? (char)(i >> 12 >> (i % 8) * 8) : c;
                text = filled;
        }
        struct blocklist l = { .param = 1 };
        struct page_sink sink = { store_page };
        int e = 0;
        for (size_t at = 0; at < n && e == 0;) {
                struct blockref ref = { .bytes = (uint32_t)chunk_next(chunk_param(CHUNK_PARAM_1), (const uint8_t *)text + at, n - at, true) };
                e = store((const uint8_t *)text + at, ref.bytes, &ref.hash);
                if (e == 0)
                        e = blocklist_add(&l, &ref);
                at += ref.bytes;
        }
        if (e == 0)
                e = blocklist_content(&l, &sink, &r->content);
        r->version = rng_id(rng_system());
        r->mtime_ns = clock_real_ns(clock_system());
        blocklist_free(&l);
        free(filled);
        return e;
}

static void to_row(const struct remote *r, struct node_row *ret) {
        *ret = (struct node_row){ .id = r->id, .kind = r->kind, .mode = r->mode, .uid = r->uid, .gid = r->gid, .mtime_ns = r->mtime_ns, .ctime_ns = r->mtime_ns, .btime_ns = r->mtime_ns,
                                  .target = r->kind == NODE_SYMLINK ? r->target : NULL, .content = r->content, .version = r->version, .seq = cursor.seq, .deleted = r->deleted };
}

/* One event with the rows of up to four nodes; those with names carry their whole lists. */
static int emit(struct remote *const *changed, size_t n) {
        struct change changes[4];
        struct entry_row entries[4][NAMES_MAX];
        cursor.seq++;
        rng_system()->fill(rng_system(), cursor.mark, sizeof cursor.mark);
        struct event e = { .seq = cursor.seq, .op = rng_id(rng_system()), .time_ns = clock_real_ns(clock_system()), .changes = changes, .n_changes = n };
        memcpy(e.mark, cursor.mark, sizeof e.mark);
        for (size_t i = 0; i < n; i++) {
                struct remote *r = changed[i];
                changes[i] = (struct change){ .has_entries = !id_equal(&r->id, &id_root) && !r->deleted, .entries = entries[i], .n_entries = r->n_names };
                to_row(r, &changes[i].node);
                for (size_t k = 0; k < r->n_names; k++)
                        entries[i][k] = (struct entry_row){ .entry_id = cursor.seq * 16 + k, .parent = r->names[k].parent->id, .node = r->id, .name = r->names[k].name,
                                                            .name_bytes = strlen(r->names[k].name), .placement = r->names[k].placement, .seq = cursor.seq };
        }
        struct arena *a;
        struct tree_applied applied;
        int r = arena_new(16u << 20, &a);
        if (r == 0)
                r = tree_apply(cache->tree, &e, 1, &cursor, is_open, cache, a, &applied);
        if (r == 0)
                file_committed(cache, applied.done, applied.n_done);
        arena_free(a);
        return r;
}

static int add_name(struct remote *r, struct remote *parent, const char *name) {
        if (r->n_names == NAMES_MAX)
                return -EMLINK;
        struct remote_name *at = &r->names[r->n_names++];
        at->parent = parent;
        at->placement = rng_id(rng_system());
        (void)snprintf(at->name, sizeof at->name, "%s", name);
        parent->mtime_ns = clock_real_ns(clock_system());
        return 0;
}

static int drop_name(struct remote *r, struct remote *parent, const char *name) {
        for (size_t i = 0; i < r->n_names; i++)
                if (r->names[i].parent == parent && (!name || strcmp(r->names[i].name, name) == 0)) {
                        memmove(&r->names[i], &r->names[i + 1], (r->n_names - i - 1) * sizeof r->names[0]);
                        r->n_names--;
                        parent->mtime_ns = clock_real_ns(clock_system());
                        return 0;
                }
        return -ENOENT;
}

static struct remote *new_node(const char *label, enum node_kind kind, uint32_t mode) {
        assert(n_nodes < NODES_MAX);
        struct remote *r = nodes[n_nodes++] = calloc(1, sizeof *r);
        (void)snprintf(r->label, sizeof r->label, "%s", label);
        r->id = rng_id(rng_system());
        r->kind = kind;
        r->mode = mode;
        r->mtime_ns = clock_real_ns(clock_system());
        r->content = kind == NODE_FILE ? content_empty : (struct content){ 0 };
        return r;
}

/* The cache lives longer than the mount and goes on giving notes while it closes: they end here. */
static struct { struct listener listener; struct lock lock; struct listener *inner; } gate;

static void gate_notes(struct listener *l, const struct note *notes, size_t n) {
        LOCK_SCOPE(&gate.lock);
        if (gate.inner)
                gate.inner->notes(gate.inner, notes, n);
}

static void gate_wake(struct listener *l) {
}

static bool gate_doubts(struct listener *l, uint64_t dir, const char *name, size_t n) {
        LOCK_SCOPE(&gate.lock);
        return gate.inner && gate.inner->doubts(gate.inner, dir, name, n);
}

static void gate_set(struct listener *inner) {
        LOCK_SCOPE(&gate.lock);
        gate.inner = inner;
}

/* The first load: a snapshot that has the root only. */
static int first_load(void) {
        struct snapshot_state s;
        struct node_row row;
        struct cursor none;
        if (tree_cursor(cache->tree, &none) == 0) {
                cursor = none;
                return 0;
        }
        cursor.epoch = rng_id(rng_system());
        to_row(nodes[0], &row);
        int r = tree_snapshot_begin(cache->tree, &cursor, &s);
        if (r == 0) {
                s.nodes_after = row.id;
                s.nodes_end = s.entries_end = true;
                r = tree_snapshot_nodes(cache->tree, &row, 1, &s);
        }
        if (r == 0)
                r = tree_snapshot_entries(cache->tree, NULL, 0, &s);
        if (r == 0)
                do
                        r = tree_snapshot_step(cache->tree, &cursor, 1000, is_open, cache);
                while (r > 0);
        return r;
}

/* ---- commands ---- */
static int command_make(char **w, int n) {
        struct remote *parent = find(w[2]);
        if (!parent || n < 4)
                return -EINVAL;
        struct remote *r = new_node(w[1], w[0][0] == 'm' ? NODE_DIR : w[0][0] == 's' ? NODE_SYMLINK : NODE_FILE, w[0][0] == 'm' ? 0755 : w[0][0] == 's' ? 0777 : 0644);
        int e = add_name(r, parent, w[3]);
        if (r->kind == NODE_SYMLINK)
                (void)snprintf(r->target, sizeof r->target, "%s", n > 4 ? w[4] : "");
        if (e == 0 && r->kind == NODE_FILE)
                e = set_content(r, n > 4 ? w[4] : "");
        struct remote *both[] = { r, parent };
        return e < 0 ? e : emit(both, 2);
}

static int command_place(char **w, int n) {
        struct remote *r = find(w[1]), *parent = n > 3 ? find(w[2]) : NULL, *old = r && r->n_names ? r->names[0].parent : NULL;
        int e = 0;
        if (!r || !parent)
                return -EINVAL;
        if (w[0][0] == 'r')
                e = drop_name(r, old, NULL);
        if (w[0][0] == 'u')
                e = drop_name(r, parent, w[3]);
        else if (e == 0)
                e = add_name(r, parent, w[3]);
        r->deleted = r->n_names == 0;
        struct remote *three[] = { r, parent, old };
        return e < 0 ? e : emit(three, w[0][0] == 'r' && old != parent ? 3 : 2);
}

static int command_change(char **w, int n) {
        struct remote *r = find(w[1]);
        int e = 0;
        if (!r || n < 3)
                return -EINVAL;
        if (strcmp(w[0], "content") == 0)
                e = set_content(r, w[2]);
        else if (strcmp(w[0], "chmod") == 0)
                r->mode = (uint32_t)strtoul(w[2], NULL, 8);
        else if (strcmp(w[0], "chown") == 0 && n > 3)
                r->uid = (uint32_t)strtoul(w[2], NULL, 10), r->gid = (uint32_t)strtoul(w[3], NULL, 10);
        else
                r->mtime_ns = strtoll(w[2], NULL, 10);
        return e < 0 ? e : emit(&r, 1);
}

static int command_counter(const char *name) {
#define X(field)                                                                                   \
        if (strcmp(name, #field) == 0) {                                                           \
                printf("ok %llu\n", (unsigned long long)counter_get(cache->counters, field));      \
                return 1;                                                                          \
        }
        COUNTERS(X)
#undef X
        return -ENOENT;
}

static void set_mode(int mode) {
        LOCK_SCOPE(&src.lock);
        src.mode = mode;
        cond_signal(&src.changed);
}

static _Atomic uint64_t quota_bytes, used_bytes; /* what the server would say */

static void space(void *arg, uint64_t *ret_quota_bytes, uint64_t *ret_used_bytes) {
        *ret_quota_bytes = quota_bytes;
        *ret_used_bytes = used_bytes;
}

struct hits { const char *name; uint64_t n; };
static void count_hits(void *arg, const char *name, uint64_t hits) {
        struct hits *h = arg;
        h->n += strcmp(name, h->name) == 0 ? hits : 0;
}

/* 1: answered already. */
static int command(struct mount *m, char **w, int n) {
        struct cache_totals totals;
        if (strcmp(w[0], "mkdir") == 0 || strcmp(w[0], "create") == 0 || strcmp(w[0], "symlink") == 0)
                return n < 3 ? -EINVAL : command_make(w, n);
        if (strcmp(w[0], "rename") == 0 || strcmp(w[0], "link") == 0 || strcmp(w[0], "unlink") == 0)
                return n < 4 ? -EINVAL : command_place(w, n);
        if (strcmp(w[0], "content") == 0 || strcmp(w[0], "chmod") == 0 || strcmp(w[0], "mtime") == 0 || strcmp(w[0], "chown") == 0)
                return command_change(w, n);
        if (strcmp(w[0], "online") == 0 || strcmp(w[0], "offline") == 0 || strcmp(w[0], "stall") == 0) {
                set_mode(w[0][0] == 's' ? STALL : w[0][1] == 'n' ? ONLINE : OFFLINE);
                cache_set_online(cache, w[0][1] != 'f');
                return 0;
        }
        if (strcmp(w[0], "stalled") == 0) {
                LOCK_SCOPE(&src.lock);
                printf("ok %zu\n", src.n);
                return 1;
        }
        if (strcmp(w[0], "counter") == 0 && n > 1)
                return command_counter(w[1]);
        if (strcmp(w[0], "sync") == 0)
                return cache_sync(cache);
        if (strcmp(w[0], "pending") == 0) {
                int r = cache_totals(cache, &totals);
                if (r < 0)
                        return r;
                printf("ok %llu\n", (unsigned long long)totals.pending_files);
                return 1;
        }
        if (strcmp(w[0], "dirty") == 0) {
                int r = cache_totals(cache, &totals);
                if (r < 0)
                        return r;
                printf("ok %llu\n", (unsigned long long)totals.dirty_bytes);
                return 1;
        }
        if (strcmp(w[0], "open") == 0 && n > 1) {
                printf("ok %d\n", file_is_open(cache, strtoull(w[1], NULL, 10)));
                return 1;
        }
        if (strcmp(w[0], "arm") == 0 && n > 1)
                return failpoint_arm(w[1]);
        if (strcmp(w[0], "hits") == 0 && n > 1) {
                struct hits h = { .name = w[1] };
                failpoint_each(count_hits, &h);
                printf("ok %llu\n", (unsigned long long)h.n);
                return 1;
        }
        if (strcmp(w[0], "space") == 0 && n > 2) {
                quota_bytes = strtoull(w[1], NULL, 10);
                used_bytes = strtoull(w[2], NULL, 10);
                return 0;
        }
        if (strcmp(w[0], "stop") == 0)
                return mount_stop(m, false);
        return -EINVAL;
}

static void serve(struct mount *m) {
        char *line = NULL;
        size_t room = 0;
        ssize_t got;
        while ((got = getline(&line, &room, stdin)) > 0) {
                char *w[8] = { 0 }, *rest = line;
                int n = 0;
                if (line[got - 1] == '\n')
                        line[got - 1] = 0;
                while (n < 5 && rest && *rest) { /* the last word may have spaces */
                        w[n] = n < 4 ? strsep(&rest, " ") : steal_ptr(rest);
                        n++;
                }
                if (n == 0)
                        continue;
                if (strcmp(w[0], "quit") == 0) {
                        int r = mount_stop(m, n > 1);
                        printf(r < 0 ? "error %s\n" : "ok\n", err_name(r));
                        fflush(stdout);
                        if (r < 0)
                                continue;
                        break;
                }
                int r = command(m, w, n);
                if (r < 0)
                        printf("error %s\n", err_name(r));
                else if (r == 0)
                        printf("ok\n");
                fflush(stdout);
        }
        fflush(stdout);
        free(line);
}

int main(int argc, char **argv) {
        static struct counters counters;
        if (argc < 3) {
                fprintf(stderr, "usage: fsharness STATE_DIR MOUNTPOINT [OPTION]...\n");
                return 2;
        }
        struct pool *pool;
        static struct id_range map[8];
        uint64_t limit = 256u << 20;
        struct mount_config mc = { .mountpoint = argv[2], .source_name = "http://harness,x/ws", .default_permissions = true, .idmap = map, .uid = 0, .gid = 0, .net_timeout_ms = 30000,
                                   .clock = clock_system(), .counters = &counters, .space = space };
        for (int i = 3; i < argc; i++) {
                mc.ro |= strcmp(argv[i], "ro") == 0;
                mc.allow_other |= strcmp(argv[i], "allow_other") == 0;
                mc.owner_stored |= strcmp(argv[i], "owner_stored") == 0;
                mc.fastperm |= strcmp(argv[i], "fastperm") == 0;
                mc.suid |= strcmp(argv[i], "suid") == 0;
                mc.dev |= strcmp(argv[i], "dev") == 0;
                mc.noexec |= strcmp(argv[i], "noexec") == 0;
                mc.nosubtype |= strcmp(argv[i], "nosubtype") == 0;
                if (strncmp(argv[i], "symlinks=", 9) == 0)
                        mc.symlinks = argv[i][9] == 'i' ? SYMLINKS_INSIDE : SYMLINKS_NONE;
                if (strncmp(argv[i], "idmap=", 6) == 0 && idmap_parse(argv[i] + 6, map, ARRAY_SIZE(map), &mc.n_idmap) < 0)
                        return 2;
                mc.nonempty |= strcmp(argv[i], "nonempty") == 0;
                if (strncmp(argv[i], "close=", 6) == 0)
                        mc.close_level = argv[i][6] == 'l' ? CLOSE_LOCAL : CLOSE_SERVER;
                if (strncmp(argv[i], "uid=", 4) == 0)
                        mc.uid = mc.gid = (uint32_t)strtoul(argv[i] + 4, NULL, 10);
                if (strncmp(argv[i], "timeout_ms=", 11) == 0)
                        mc.net_timeout_ms = strtoll(argv[i] + 11, NULL, 10);
                if (strncmp(argv[i], "cache=", 6) == 0)
                        limit = strtoull(argv[i] + 6, NULL, 10);
        }
        if (log_open("fsharness", getenv("FSHARNESS_DEBUG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN, NULL) < 0 || pool_new("work", 2, &pool) < 0)
                return 1;
        char note[512] = "", why[512] = "";
        struct cache_config cc = { .dir = argv[1], .limit_bytes = limit, .free_floor_bytes = 0, .uid = mc.uid, .gid = mc.gid, .clock = clock_system(), .rng = rng_system(),
                                   .counters = &counters, .workers = pool_executor(pool) };
        int r = cache_open(&cc, &cache, note, sizeof note);
        if (r < 0) {
                printf("error cache_open %s %s\n", err_name(r), note);
                return 1;
        }
        lock_init(&src.lock, "harness source", RANK_QUEUE);
        cond_init(&src.changed);
        src.source = (struct source){ source_fetch, source_cancel };
        struct remote *root = new_node("/", NODE_DIR, 0755);
        root->id = id_root;
        struct mount *m = NULL;
        r = first_load();
        if (r == 0)
                r = thread_start(&src.thread, "source", source_thread, NULL);
        if (r == 0) {
                cache_set_source(cache, &src.source);
                mc.cache = cache;
                r = mount_new(&mc, &m);
        }
        if (r == 0) {
                gate.listener = (struct listener){ gate_notes, gate_wake, gate_doubts };
                lock_init(&gate.lock, "harness gate", RANK_QUEUE - 1);
                gate_set(mount_listener(m));
                cache_set_listener(cache, &gate.listener);
                cache_set_online(cache, true);
                r = mount_start(m, why, sizeof why);
        }
        if (r < 0) {
                printf("error %s %s\n", err_name(r), why);
        } else {
                printf("ready %s\n", note);
                fflush(stdout);
                serve(m);
                r = mount_wait(m);
        }
        if (m)
                gate_set(NULL);
        mount_free(m);
        lock_take(&src.lock);
        src.stop = true;
        cond_signal(&src.changed);
        lock_drop(&src.lock);
        if (src.thread)
                (void)pthread_join(src.thread, NULL);
        cache_close(cache);
        pool_free(pool);
        for (size_t i = 0; i < n_nodes; i++)
                free(nodes[i]);
        for (size_t i = 0; i < n_blocks; i++)
                free(blocks[i].bytes);
        printf("bye\n");
        return r < 0 ? 1 : 0;
}
