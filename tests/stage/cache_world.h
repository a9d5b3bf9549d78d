/* SPDX-License-Identifier: Apache-2.0 */
/* cache_world.h: a whole cache in a directory of its own, a server that accepts everything on demand, and files as models in memory. */
#pragma once
#include "world.h"

#include <sys/mman.h>
#include <sys/wait.h>

#include "file_priv.h"
#include "../tmpdir.h"

struct server_node { struct id id; struct node_row row; struct entry_row entry; char name[NAME_BYTES_MAX + 1]; };
struct cw {
        struct world *source;          /* serves what was committed; its own blobs are not used */
        char dir[128];
        struct cache *cache;
        struct counters counters;
        struct pool *pool;
        uint64_t limit;
        struct listener listener;
        _Atomic unsigned wakes;
        struct server_node *nodes; size_t n_nodes;
        uint64_t seq, entry_id;
        bool judges;                   /* the server knows all versions, and what is based on another one than the newest is an error */
        char server_dir[160];          /* if set: every accepted content is written there too, for another process */
};

static inline void cw_wake(struct listener *l) { atomic_fetch_add(&container_of(l, struct cw, listener)->wakes, 1); }
static inline void cw_notes(struct listener *l, const struct note *notes, size_t n) {}

/* The first load: a workspace with a root. */
static inline void cw_load(struct cw *w) {
        struct cursor cursor, at = { .epoch = { { 1 } }, .seq = 1 };
        struct tree *t = w->cache->tree;
        if (tree_cursor(t, &cursor) == 0)
                return;
        struct snapshot_state state;
        struct node_row root = { .id = id_root, .kind = NODE_DIR, .mode = 0755, .uid = 1000, .gid = 1000, .seq = 1 };
        assert_int_equal(tree_snapshot_begin(t, &at, &state), 0);
        state.nodes_after = id_root;
        state.nodes_end = true;
        state.upto = at;
        assert_int_equal(tree_snapshot_nodes(t, &root, 1, &state), 0);
        state.entries_end = true;
        assert_int_equal(tree_snapshot_entries(t, NULL, 0, &state), 0);
        int r;
        while ((r = tree_snapshot_step(t, &at, 1000, (bool (*)(void *, uint64_t))file_is_open, w->cache)) > 0)
                ;
        assert_int_equal(r, 0);
        w->seq = MAX(w->seq, (uint64_t)1);
}

static inline void cw_open_bare(struct cw *w, struct clock *clock) {
        char note[200];
        struct cache_config c = { .dir = w->dir, .limit_bytes = w->limit, .uid = 1000, .gid = 1000, .clock = clock, .rng = rng_system(), .counters = &w->counters, .workers = pool_executor(w->pool) };
        int r = cache_open(&c, &w->cache, note, sizeof note);
        if (r < 0)
                fail_msg("cache_open: %s", err_name(r));
        if (note[0])
                print_message("note: %s\n", note);
        w->listener = (struct listener) { cw_notes, cw_wake };
        cache_set_source(w->cache, &w->source->source);
        cache_set_listener(w->cache, &w->listener);
}
static inline void cw_open_with(struct cw *w, struct clock *clock) {
        cw_open_bare(w, clock);
        cw_load(w);
        assert_int_equal(cache_loaded(w->cache), 0);
}
static inline void cw_open(struct cw *w) { cw_open_with(w, clock_system()); }
/* Without threads of its own: nothing is synced but by the test. */
static inline void cw_open_by_hand(struct cw *w, struct clock *clock) {
        char note[200];
        struct cache_config c = { .dir = w->dir, .limit_bytes = w->limit, .uid = 1000, .gid = 1000, .clock = clock, .rng = rng_system(), .counters = &w->counters,
                                  .workers = pool_executor(w->pool), .by_hand = true };
        assert_int_equal(cache_open(&c, &w->cache, note, sizeof note), 0);
        cache_set_source(w->cache, &w->source->source);
        cw_load(w);
}
static inline void cw_close(struct cw *w) {
        cache_close(w->cache);
        w->cache = NULL;
}
/* A copy beside it of the directory, or of what in it ("/stages"), as it is at one moment: the workers do what they were given before, and then nothing until it is made. */
#define CW_WORKERS 2
struct cw_stop { struct job jobs[CW_WORKERS]; pthread_barrier_t held, over; };
static inline void cw_stop_run(struct cw_stop *s) {
        (void)pthread_barrier_wait(&s->held);
        (void)pthread_barrier_wait(&s->over);
}
static inline void cw_stop_0(struct job *j) { cw_stop_run(container_of(j, struct cw_stop, jobs[0])); }
static inline void cw_stop_1(struct job *j) { cw_stop_run(container_of(j, struct cw_stop, jobs[1])); }
static inline void cw_copy(struct cw *w, const char *what, char to[static 200]) {
        (void)snprintf(to, 200, "%s%s.copy", w->dir, what);
        assert_true(tmpdir_adopt(to));
        struct cw_stop s = { .jobs = { { .run = cw_stop_0 }, { .run = cw_stop_1 } } };
        assert_int_equal(pthread_barrier_init(&s.held, NULL, CW_WORKERS + 1), 0);
        assert_int_equal(pthread_barrier_init(&s.over, NULL, CW_WORKERS + 1), 0);
        for (unsigned i = 0; i < CW_WORKERS; i++)
                executor_submit(pool_executor(w->pool), &s.jobs[i]);
        (void)pthread_barrier_wait(&s.held);
        char cmd[700];
        (void)snprintf(cmd, sizeof cmd, "cp -a --sparse=always %s%s %s", w->dir, what, to);
        int r = system(cmd);
        (void)pthread_barrier_wait(&s.over);
        (void)pthread_barrier_destroy(&s.held);
        (void)pthread_barrier_destroy(&s.over);
        assert_int_equal(r, 0);
}
/* The copy takes the place of the directory; cut: as a power cut leaves it (another boot), else as a kill. The caller opens it. */
static inline void cw_become(struct cw *w, const char *copy, bool cut) {
        char path[200];
        cw_close(w);
        remove_tree(w->dir);
        assert_int_equal(rename(copy, w->dir), 0);
        (void)snprintf(path, sizeof path, "%s/boot", w->dir);
        if (cut)
                assert_int_equal(file_replace(path, "00000000-0000-0000-0000-000000000000", 36, 0600), 0);
}

static inline struct cw *cw_new(uint64_t limit, uint64_t seed) {
        struct cw *w = calloc(1, sizeof *w);
        w->limit = limit;
        w->source = world_new(256 * MIB);
        rng_seed(&w->source->rng, seed);
        (void)snprintf(w->dir, sizeof w->dir, "/tmp/tarn-stage-XXXXXX");
        assert_non_null(tmpdir_new(w->dir));
        assert_int_equal(pool_new("worker", CW_WORKERS, &w->pool), 0);
        return w;
}
static inline void cw_free(struct cw *w) {
        if (w->cache)
                cw_close(w);
        pool_free(w->pool);
        remove_tree(w->dir);
        world_free(w->source);
        free(w->nodes);
        free(w);
}

static inline struct node cw_create(struct cw *w, uint64_t dir, const char *name) {
        struct node n;
        struct tree_new what = { .kind = NODE_FILE, .mode = 0644, .uid = 1000, .gid = 1000 };
        assert_int_equal(tree_create(w->cache->tree, dir, name, strlen(name), &what, &n), 0);
        return n;
}
static inline struct node cw_row(struct cw *w, uint64_t ino) {
        struct node n;
        assert_int_equal(tree_get(w->cache->tree, ino, &n), 0);
        return n;
}
static inline struct file *cw_file(struct cw *w, uint64_t ino, bool write, bool truncate) {
        struct file *f;
        struct node n = cw_row(w, ino);
        assert_int_equal(file_open(w->cache, ino, n.incarnation, write, truncate, &f), 0);
        return f;
}

/* Blocking forms. */
struct waiter { struct lock lock; struct cond cond; bool over; ssize_t result; };
static inline void waiter_init(struct waiter *x) {
        *x = (struct waiter) { 0 };
        lock_init(&x->lock, "waiter", RANK_QUEUE);
        cond_init(&x->cond);
}
static inline void waiter_tell(struct waiter *x, ssize_t result) {
        LOCK_SCOPE(&x->lock);
        x->result = result;
        x->over = true;
        cond_broadcast(&x->cond);
}
static inline ssize_t waiter_wait(struct waiter *x) {
        lock_take(&x->lock);
        while (!x->over)
                if (cond_wait_until(&x->cond, &x->lock, now_ms() + WAIT_MS) < 0)
                        fail_msg("nothing came within %d ms", WAIT_MS);
        lock_drop(&x->lock);
        lock_destroy(&x->lock);
        cond_destroy(&x->cond);
        return x->result;
}
static inline void read_over(struct file_read *r, ssize_t result) { waiter_tell(r->owner, result); }
static inline void write_over(struct file_write *w, int result) { waiter_tell(w->owner, result); }

static inline ssize_t read_at(struct file *f, uint64_t off, void *buf, size_t n) {
        struct waiter x;
        waiter_init(&x);
        struct file_read r = { .file = f, .off = off, .buf = buf, .n = n, .deadline_ms = now_ms() + WAIT_MS, .done = read_over, .owner = &x };
        ssize_t got = file_read(&r);
        if (got != -EINPROGRESS)
                waiter_tell(&x, got);
        return waiter_wait(&x);
}
static inline ssize_t write_at(struct file *f, uint64_t off, const void *buf, size_t n, bool append, int64_t wait_ms) {
        for (;;) {
                struct waiter x;
                waiter_init(&x);
                struct file_write w = { .file = f, .off = off, .buf = buf, .n = n, .append = append, .deadline_ms = now_ms() + wait_ms, .done = write_over, .owner = &x };
                ssize_t put = file_write(&w);
                if (put != -EINPROGRESS)
                        waiter_tell(&x, put);
                ssize_t r = waiter_wait(&x);
                if (put != -EINPROGRESS || r < 0)
                        return r;
        }
}

static inline struct server_node *cw_server_node(struct cw *w, const struct id *id, bool make) {
        for (size_t i = 0; i < w->n_nodes; i++)
                if (id_equal(&w->nodes[i].id, id))
                        return &w->nodes[i];
        if (!make)
                return NULL;
        w->nodes = realloc(w->nodes, (w->n_nodes + 1) * sizeof *w->nodes);
        w->nodes[w->n_nodes] = (struct server_node) { .id = *id };
        return &w->nodes[w->n_nodes++];
}

/* One operation as the server would take it: blocks become known to the source, the answer is applied. Contents and names of files only. */
static inline void cw_accept(struct cw *w, const struct outbox_item *item) {
        struct arena *a;
        assert_int_equal(arena_new(16 << 20, &a), 0);
        struct content content = content_empty;
        struct stage *st = NULL;
        if (item->gen) {
                const struct blocklist *list;
                assert_int_equal(stage_get(w->cache->stages, item->gen, &st), 0);
                assert_int_equal(stage_chunk(st, now_ms() + WAIT_MS, &list, &content), 0);
                uint8_t *bytes = malloc(content.size + 1);
                assert_int_equal(stage_pread(st, 0, bytes, content.size, now_ms() + WAIT_MS), (ssize_t)content.size);
                assert_int_equal(outbox_mark_sent(w->cache->tree, &item->op.id, 1), 0);
                struct known *k = know(w->source, bytes, content.size, 0);
                assert_true(content_equal(&k->content, &content));
                if (w->server_dir[0]) {
                        char path[240];
                        (void)snprintf(path, sizeof path, "%s/%d-%llu", w->server_dir, getpid(), (unsigned long long)w->seq);
                        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
                        assert_true(fd >= 0);
                        assert_int_equal(write_full(fd, bytes, content.size), 0);
                        (void)close(fd);
                }
                free(bytes);
        } else {
                assert_int_equal(outbox_mark_sent(w->cache->tree, &item->op.id, 1), 0);
        }
        struct server_node *n = cw_server_node(w, &item->op.node, true), *source = id_is_zero(&item->op.source) ? NULL : cw_server_node(w, &item->op.source, false);
        w->seq++;
        struct change ch[2] = { 0 };
        if (item->op.kind == OP_CREATE) {
                n->row = item->op.attrs;
                n->row.id = item->op.node;
                n->row.content = content;
                n->row.version = item->op.id;
                memcpy(n->name, item->op.name, item->op.name_bytes);
                n->name[item->op.name_bytes] = 0;
                n->entry = (struct entry_row) { .entry_id = ++w->entry_id, .parent = item->op.parent, .node = item->op.node, .name_bytes = item->op.name_bytes, .placement = item->op.id, .seq = w->seq };
        } else if (item->op.kind == OP_CONTENT || item->op.kind == OP_REPLACE) {
                assert_true(!w->judges || id_equal(&n->row.version, &item->op.version)); /* else it would be a conflict */
                n->row.content = item->gen ? content : item->op.content;
                n->row.version = item->op.id;
                n->row.mtime_ns = item->op.attrs.mtime_ns;
        } else if (item->op.kind == OP_UNLINK) {
                n->row.deleted = true;
        } else if (item->op.kind == OP_ATTR) {
                n->row.mtime_ns = item->op.attr_mask & ATTR_MTIME ? item->op.attrs.mtime_ns : n->row.mtime_ns;
        } else {
                fail_msg("operation kind %d", item->op.kind);
        }
        n->row.seq = w->seq;
        n->entry.name = n->name;
        ch[0] = (struct change) { .node = n->row, .has_entries = true, .entries = &n->entry, .n_entries = n->row.deleted ? 0 : 1 };
        if (source) {
                source->row.deleted = true;
                source->row.seq = w->seq;
                ch[1] = (struct change) { .node = source->row, .has_entries = true };
        }
        struct op_result res = { .op = item->op.id, .code = RES_OK, .seq = w->seq, .current = ch, .n_current = source ? 2 : 1 };
        struct tree_applied applied = { 0 };
        int r = tree_accepted(w->cache->tree, &res, (bool (*)(void *, uint64_t))file_is_open, w->cache, a, &applied);
        if (r < 0)
                fail_msg("tree_accepted: %s", err_name(r));
        file_committed(w->cache, applied.done, applied.n_done);
        stage_put(st);
        arena_free(a);
}

/* Somebody else deletes it. */
static inline void cw_deleted(struct cw *w, const struct id *id) {
        struct arena *a;
        assert_int_equal(arena_new(1 << 20, &a), 0);
        struct server_node *n = cw_server_node(w, id, false);
        assert_non_null(n);
        n->row.deleted = true;
        n->row.seq = ++w->seq;
        struct change ch = { .node = n->row, .has_entries = true };
        struct event e = { .seq = w->seq, .changes = &ch, .n_changes = 1 };
        struct tree_applied applied = { 0 };
        assert_int_equal(tree_apply(w->cache->tree, &e, 1, NULL, (bool (*)(void *, uint64_t))file_is_open, w->cache, a, &applied), 0);
        arena_free(a);
}

/* What another process accepted becomes known here. */
static inline void cw_load_server(struct cw *w) {
        char *const paths[] = { w->server_dir, NULL };
        FTS *fts = fts_open(paths, FTS_PHYSICAL, NULL);
        for (FTSENT *e; fts && (e = fts_read(fts));)
                if (e->fts_info == FTS_F) {
                        struct buf b = BUF_INIT(64 * MIB);
                        assert_int_equal(file_load(e->fts_accpath, 64 * MIB, &b), 0);
                        know(w->source, b.data, b.bytes, 0);
                        buf_free(&b);
                        (void)unlink(e->fts_accpath);
                }
        if (fts)
                (void)fts_close(fts);
}

/* Takes what may go now. Returns how many. */
static inline size_t cw_accept_all(struct cw *w) {
        size_t total = 0;
        for (;;) {
                struct arena *a;
                static struct outbox_item items[64];
                size_t n = 0;
                int64_t wait;
                assert_int_equal(arena_new(16 << 20, &a), 0);
                assert_int_equal(outbox_next(w->cache->tree, a, items, 64, &n, &wait), 0);
                for (size_t i = 0; i < n; i++)
                        cw_accept(w, &items[i]);
                arena_free(a);
                if (!n)
                        return total;
                total += n;
        }
}
/* Until every committed stage has become a blob. */
static inline void cw_settle(struct cw *w) {
        for (int64_t end = now_ms() + WAIT_MS;;) {
                struct stages_totals t;
                assert_int_equal(cache_sync(w->cache), 0);
                stages_totals(w->cache->stages, &t);
                struct files *fs = w->cache->files;
                assert_true(now_ms() < end);
                LOCK_SCOPE(&fs->lock);
                if (t.sealed == 0 && fs->jobs == 0 && !fs->retire_first && !fs->loose)
                        return;
                (void)!cond_wait_until(&w->cache->files->idle, &w->cache->files->lock, now_ms() + 20);
        }
}
