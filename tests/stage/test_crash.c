/* SPDX-License-Identifier: Apache-2.0 */
/* What survives: kill -9 at any moment, a lost tree file, damaged and cut logs; and what happens when there is no room. */
#include <sched.h>
#include <signal.h>

#include "cache_world.h"

/* ---- kill -9: the child tells in shared memory what was accepted before it goes on ---- */
#define FILES 4
#define OPS_MAX 200000
enum { OP_WRITE, OP_SIZE, OP_PUNCH };
struct told_op { int file, what; uint64_t off, n; uint32_t fill; };
struct told { _Atomic uint64_t accepted, begun; struct told_op op[OPS_MAX]; };

static void pattern(uint8_t *p, size_t n, uint32_t fill) {
        for (size_t i = 0; i < n; i++)
                p[i] = (uint8_t)(fill * 31 + i * 7 + (i >> 8) * fill);
}

static struct told_op random_op(struct rng *r, const uint64_t *size) {
        struct told_op o = { .file = (int)rng_below(r, FILES), .fill = (uint32_t)rng_u64(r) };
        unsigned what = (unsigned)rng_below(r, 12);
        o.off = rng_below(r, 3) ? size[o.file] : rng_below(r, size[o.file] + 1);
        o.n = 1 + rng_below(r, rng_below(r, 6) ? 5000 : 150000);
        o.what = what < 10 ? OP_WRITE : what == 10 ? OP_SIZE : OP_PUNCH;
        if (o.what == OP_SIZE)
                o.n = rng_below(r, size[o.file] + 2000);
        if (size[o.file] > 2 * MIB) {
                o.what = OP_SIZE;
                o.n = rng_below(r, 100000);
        }
        if (o.what == OP_PUNCH && o.off >= size[o.file])
                o.what = OP_WRITE;
        return o;
}

static void note_size(const struct told_op *o, uint64_t *size) {
        if (o->what == OP_SIZE)
                size[o->file] = o->n;
        else if (o->what == OP_WRITE)
                size[o->file] = MAX(size[o->file], o->off + o->n);
}

static void child(struct cw *w, struct told *t, uint64_t seed, const uint64_t *ino) {
        struct rng_seeded r;
        rng_seed(&r, seed);
        uint8_t *buf = malloc(200000);
        struct file *f[FILES] = { 0 };
        uint64_t size[FILES] = { 0 };
        for (uint64_t i = 0; i < t->accepted; i++)
                note_size(&t->op[i], size);
        for (;;) {
                uint64_t i = t->accepted;
                if (i == OPS_MAX)
                        raise(SIGKILL);
                struct told_op o = random_op(&r.rng, size);
                t->op[i] = o;
                atomic_store(&t->begun, i + 1);
                if (!f[o.file])
                        f[o.file] = cw_file(w, ino[o.file], true, false);
                ssize_t k = 0;
                if (o.what == OP_WRITE) {
                        pattern(buf, o.n, o.fill);
                        k = write_at(f[o.file], o.off, buf, o.n, false, WAIT_MS);
                } else if (o.what == OP_SIZE) {
                        k = file_truncate(w->cache, ino[o.file], o.n);
                } else {
                        k = file_allocate(f[o.file], FILE_ALLOC_PUNCH, o.off, o.n);
                }
                if (k < 0)
                        abort();
                note_size(&o, size);
                atomic_store(&t->accepted, i + 1);
                if (rng_below(&r.rng, 8) == 0) {
                        int x = (int)rng_below(&r.rng, FILES);
                        if (f[x])
                                file_release(f[x], true);
                        f[x] = NULL;
                } else if (rng_below(&r.rng, 30) == 0) {
                        cw_accept_all(w);
                } else if (rng_below(&r.rng, 60) == 0) {
                        if (cache_sync(w->cache) < 0)
                                abort();
                }
        }
}

static void apply(uint8_t *m, uint64_t *size, const struct told_op *o) {
        if (o->what == OP_WRITE) {
                if (o->off > *size)
                        memset(m + *size, 0, o->off - *size);
                pattern(m + o->off, o->n, o->fill);
                *size = MAX(*size, o->off + o->n);
        } else if (o->what == OP_SIZE) {
                if (o->n > *size)
                        memset(m + *size, 0, o->n - *size);
                *size = o->n;
        } else {
                memset(m + o->off, 0, MIN(o->n, *size - o->off));
        }
}

static bool same(struct cw *w, uint64_t ino, const uint8_t *m, uint64_t size) {
        struct file *f = cw_file(w, ino, false, false);
        uint8_t *buf = malloc(size + 10);
        bool ok = read_at(f, 0, buf, size + 10) == (ssize_t)size && memcmp(buf, m, size) == 0;
        free(buf);
        file_release(f, false);
        return ok;
}

/* The change that was under way: not there, there, or (a write) there in part and nowhere else. It is then made a fact by doing it again. */
static bool settle_begun(struct cw *w, uint64_t ino, uint8_t *m, uint64_t *size, struct told *t, uint64_t i) {
        const struct told_op *o = &t->op[i];
        uint8_t *after = malloc(4 * MIB), *buf = malloc(4 * MIB);
        uint64_t after_size = *size;
        memcpy(after, m, 4 * MIB);
        apply(after, &after_size, o);
        struct file *f = cw_file(w, ino, true, false);
        ssize_t n = read_at(f, 0, buf, 4 * MIB);
        bool ok = n == (ssize_t)*size || n == (ssize_t)after_size;
        for (uint64_t k = 0; ok && k < (uint64_t)n; k++)
                ok = buf[k] == after[k] || (k < *size && buf[k] == m[k]);
        if (ok && o->what == OP_WRITE)
                ok = write_at(f, o->off, after + o->off, o->n, false, WAIT_MS) == (ssize_t)o->n;
        else if (ok && o->what == OP_PUNCH)
                ok = file_allocate(f, FILE_ALLOC_PUNCH, o->off, o->n) == 0;
        file_release(f, true);
        if (ok && o->what == OP_SIZE)
                ok = file_truncate(w->cache, ino, o->n) == 0;
        if (ok) {
                memcpy(m, after, 4 * MIB);
                *size = after_size;
                ok = same(w, ino, m, *size);
                atomic_store(&t->accepted, i + 1);
        }
        free(after);
        free(buf);
        return ok;
}

static void explain(struct cw *w, uint64_t ino, const uint8_t *m, uint64_t size) {
        struct file *f = cw_file(w, ino, false, false);
        uint8_t *buf = malloc(size + 10);
        ssize_t n = read_at(f, 0, buf, size + 10);
        uint64_t i = 0;
        while (n > 0 && i < (uint64_t)n && i < size && buf[i] == m[i])
                i++;
        print_message("read gives %zd of %llu, equal up to %llu; gen %llu\n", n, (unsigned long long)size, (unsigned long long)i, (unsigned long long)cw_row(w, ino).gen);
        free(buf);
        file_release(f, false);
}

static void tell_stages(struct files *fs, unsigned jobs) {
        struct stages *ss = fs->c->stages;
        print_message("jobs %u, retire %d; stages:\n", jobs, fs->retire_first != NULL);
        for (size_t i = 0; i < ss->n_buckets; i++)
                for (struct stage *st = ss->bucket[i]; st; st = st->hash_next) {
                        struct node n = { 0 };
                        (void)!tree_get(fs->c->tree, stage_ino(st), &n);
                        print_message("gen %llu ino %llu (shows %llu) below %llu, refs %u, listed %d, due %d, state %d, queued %d, layer %d, committed %d, carried %d\n", (unsigned long long)st->gen, (unsigned long long)stage_ino(st),
                                      (unsigned long long)n.gen, st->below ? (unsigned long long)st->below->gen : 0, st->refs, st->listed, st->due, (int)st->state, st->queued, st->layer, st->committed, outbox_carries(fs->c->tree, st->gen));
                }
}

/* Committed stages that were found become blobs in the background. */
static void settle_committed(struct cw *w) {
        struct files *fs = w->cache->files;
        for (int64_t end = now_ms() + WAIT_MS;;) {
                assert_int_equal(cache_sync(w->cache), 0);
                bool late = now_ms() >= end;
                lock_take(&fs->lock);
                unsigned jobs = fs->jobs;
                bool over = jobs == 0 && !fs->retire_first && !fs->loose;
                lock_drop(&fs->lock);
                if (late && !over)
                        tell_stages(fs, jobs);
                assert_true(over || !late);
                if (over)
                        return;
                LOCK_SCOPE(&fs->lock);
                (void)!cond_wait_until(&fs->idle, &fs->lock, now_ms() + 20);
        }
}

static void test_kill(void **state) {
        uint64_t seed = test_seed();
        struct rng_seeded r;
        rng_seed(&r, seed);
        struct told *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(t != MAP_FAILED);
        struct cw *w = cw_new(256 * MIB, seed);
        cw_open(w);
        uint64_t ino[FILES];
        for (int i = 0; i < FILES; i++) {
                char name[8];
                (void)snprintf(name, sizeof name, "k%d", i);
                ino[i] = cw_create(w, INO_ROOT, name).ino;
        }
        cw_accept_all(w);
        cw_settle(w);
        (void)snprintf(w->server_dir, sizeof w->server_dir, "%s.server", w->dir);
        assert_true(mkdir(w->server_dir, 0700) == 0 && tmpdir_adopt(w->server_dir));
        cw_close(w);
        pool_free(w->pool); /* a child has threads of its own */
        world_stop_source(w->source);
        unsigned pending = 0, kills = 12 * (unsigned)strtoul(getenv("TARN_TEST_SCALE") ? getenv("TARN_TEST_SCALE") : "1", NULL, 10);
        unsigned round;
        for (round = 0; round < kills; round++) {
                uint64_t from = t->accepted;
                w->seq += 100000; /* what the child's server counts is not seen here */
                if (from > OPS_MAX - 3000)
                        break;
                pid_t pid = fork();
                assert_true(pid >= 0);
                if (pid == 0) {
                        w->source->stop = false;
                        if (thread_start(&w->source->thread, "source", world_run, w->source) < 0 || pool_new("worker", CW_WORKERS, &w->pool) < 0)
                                abort();
                        cw_open(w);
                        child(w, t, seed * 1000 + round, ino);
                }
                uint64_t until = from + 1 + rng_below(&r.rng, 250);
                int64_t end = now_ms() + WAIT_MS;
                int status;
                while (atomic_load(&t->accepted) < until && waitpid(pid, &status, WNOHANG) == 0) {
                        assert_true(now_ms() < end);
                        (void)sched_yield();
                }
                (void)kill(pid, SIGKILL);
                (void)waitpid(pid, &status, 0);
                assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
                /* all that was accepted is there; what had begun may be */
                uint64_t accepted = t->accepted, begun = t->begun;
                uint8_t *m[FILES];
                uint64_t size[FILES] = { 0 };
                for (int i = 0; i < FILES; i++)
                        m[i] = calloc(1, 4 * MIB);
                for (uint64_t i = 0; i < accepted; i++)
                        apply(m[t->op[i].file], &size[t->op[i].file], &t->op[i]);
                assert_int_equal(pool_new("worker", CW_WORKERS, &w->pool), 0);
                w->source->stop = false;
                cw_load_server(w);
                assert_int_equal(thread_start(&w->source->thread, "source", world_run, w->source), 0);
                cw_open(w);
                struct cache_totals totals;
                assert_int_equal(cache_totals(w->cache, &totals), 0);
                pending += totals.pending_files > 0;
                settle_committed(w);
                for (int i = 0; i < FILES; i++) {
                        bool ok = same(w, ino[i], m[i], size[i]);
                        if (begun > accepted && t->op[accepted].file == i)
                                ok = settle_begun(w, ino[i], m[i], &size[i], t, accepted) || ok;
                        if (!ok)
                                explain(w, ino[i], m[i], size[i]);
                        if (!ok)
                                fail_msg("round %u: file %d differs after %llu accepted changes", round, i, (unsigned long long)accepted);
                        free(m[i]);
                }
                cw_close(w);
                pool_free(w->pool);
                world_stop_source(w->source);
        }
        print_message("%u kills, %llu accepted changes, work pending at %u of them\n", round, (unsigned long long)t->accepted, pending);
        assert_true(round > 0 && pending * 10 >= round * 8);
        assert_int_equal(pool_new("worker", CW_WORKERS, &w->pool), 0);
        w->source->stop = false;
        assert_int_equal(thread_start(&w->source->thread, "source", world_run, w->source), 0);
        remove_tree(w->server_dir);
        cw_free(w);
        (void)munmap(t, sizeof *t);
}

/* ---- the tree file is lost: the stages describe themselves ---- */
static void remove_tree_file(struct cw *w) {
        static const char *const parts[] = { "", "-wal", "-shm" };
        for (size_t i = 0; i < 3; i++) {
                char path[200];
                (void)snprintf(path, sizeof path, "%s/tree.db%s", w->dir, parts[i]);
                (void)unlink(path);
        }
}

/* What a load does: the server has these files in its root, each with the version that made it. */
static void load(struct cw *w, const struct node *known, const char *const *names, size_t n) {
        struct cursor at = { .epoch = { { 9 } }, .seq = 100 };
        struct snapshot_state st;
        assert_int_equal(tree_snapshot_begin(w->cache->tree, &at, &st), 0);
        struct node_row rows[4] = { { .id = id_root, .kind = NODE_DIR, .mode = 0755, .seq = 1 } };
        struct entry_row entries[4];
        assert_true(n < 4);
        for (size_t i = 0; i < n; i++) {
                rows[i + 1] = (struct node_row) { .id = known[i].id, .kind = NODE_FILE, .mode = 0644, .seq = 2 + i, .version = known[i].version, .content = content_empty };
                entries[i] = (struct entry_row) { .entry_id = i + 1, .parent = id_root, .node = known[i].id, .name = names[i], .name_bytes = strlen(names[i]), .placement = known[i].version, .seq = 2 + i };
        }
        st.nodes_end = st.entries_end = true;
        st.upto = at;
        assert_int_equal(tree_snapshot_nodes(w->cache->tree, rows, n + 1, &st), 0);
        assert_int_equal(tree_snapshot_entries(w->cache->tree, entries, n, &st), 0);
        int r;
        while ((r = tree_snapshot_step(w->cache->tree, &at, 100, NULL, NULL)) > 0)
                ;
        assert_int_equal(r, 0);
        assert_int_equal(cache_loaded(w->cache), 0);
}

static void test_lost_tree(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        static uint8_t buf[300000];
        uint8_t back[sizeof buf];
        for (int i = 0; i < 12; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "file %d", i);
                struct node n = cw_create(w, INO_ROOT, name);
                struct file *f = cw_file(w, n.ino, true, false);
                size_t size = i % 3 ? 1000 + i : sizeof buf - (size_t)i;
                pattern(buf, size, (uint32_t)i);
                assert_int_equal(write_at(f, 0, buf, size, false, 0), size);
                file_release(f, true);
                if (i % 4 == 1) { /* a second save on top */
                        f = cw_file(w, n.ino, true, false);
                        assert_int_equal(write_at(f, 10, "second", 6, false, 0), 6);
                        file_release(f, true);
                }
        }
        struct node known[2], n;
        static const char *const names[] = { "file 1", "other name" }; /* the second was renamed by somebody else */
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "file 1", 6, &known[0]), 0);
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "file 2", 6, &known[1]), 0);
        cw_close(w);
        remove_tree_file(w);
        cw_open_bare(w, clock_system());
        cw_close(w); /* nobody came as far as the load */
        cw_open_bare(w, clock_system());
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "file 3", 6, &n), -EHOSTDOWN);
        load(w, known, names, 2);
        /* what the server knows is an edit of that, under its name there */
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "file 1", 6, &n), 0);
        assert_true(id_equal(&n.id, &known[0].id) && n.gen);
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "file 2", 6, &n), -ENOENT);
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "other name", 10, &n), 0);
        assert_true(id_equal(&n.id, &known[1].id) && n.gen && n.size == 1002);
        int found = 0;
        for (int i = 0; i < 12; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, i == 2 ? "other name" : "file %d", i);
                if (tree_lookup(w->cache->tree, INO_ROOT, name, strlen(name), &n) < 0)
                        continue;
                found++;
                size_t size = i % 3 ? 1000 + i : sizeof buf - (size_t)i;
                pattern(buf, size, (uint32_t)i);
                if (i % 4 == 1)
                        memcpy(buf + 10, "second", 6);
                struct file *f = cw_file(w, n.ino, false, false);
                assert_int_equal(read_at(f, 0, back, size), size);
                assert_memory_equal(back, buf, size);
                file_release(f, false);
                assert_true(n.gen != 0);
        }
        assert_int_equal(found, 12);
        cw_accept_all(w);
        assert_int_equal(cache_wait_drained(w->cache, now_ms() + WAIT_MS), 0);
        cw_free(w);
}

/* ---- damage ---- */
static uint32_t last_log(struct cw *w, bool own, char *ret_path, size_t n) {
        for (uint32_t i = 200; i-- > 0;) {
                (void)snprintf(ret_path, n, "%s/stages/log-%08u", w->dir, i);
                int fd = open(ret_path, O_RDONLY | O_CLOEXEC);
                uint8_t first[LOG_UNIT];
                struct slog_file f;
                if (fd < 0)
                        continue;
                bool right = pread_full(fd, first, sizeof first, 0) == 0 && slog_file_decode(first, &f) == 0 && (f.kind == LOG_OWN) == own;
                (void)close(fd);
                if (right)
                        return i;
        }
        fail_msg("no log");
        return 0;
}

struct seen { struct slog_entry e[100]; uint64_t pos[100]; size_t n; };
static int see(void *arg, const struct slog_entry *e, uint64_t pos, const uint8_t *payload) {
        struct seen *s = arg;
        if (s->n < 100 && e->gen) {
                s->pos[s->n] = pos;
                s->e[s->n++] = *e;
        }
        return 0;
}
/* The open log, and what is in it. */
static int see_all(const char *path, struct seen *ret) {
        *ret = (struct seen) { .n = 0 };
        int fd = open(path, O_RDWR | O_CLOEXEC);
        struct slog_file sf;
        uint64_t end;
        struct slog_scan scan = { see, ret };
        assert_int_equal(slog_scan(fd, &sf, &scan, &end), 0);
        return fd;
}

static void flip(const char *path, uint64_t off) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        uint8_t b;
        assert_true(fd >= 0);
        assert_int_equal(pread_full(fd, &b, 1, off), 0);
        b ^= 4;
        assert_int_equal(pwrite_full(fd, &b, 1, off), 0);
        (void)close(fd);
}

static size_t lost_files(struct cw *w) {
        char path[200];
        (void)snprintf(path, sizeof path, "%s/lost+found", w->dir);
        size_t n = 0;
        char *const paths[] = { path, NULL };
        FTS *fts = fts_open(paths, FTS_PHYSICAL, NULL);
        for (FTSENT *e; fts && (e = fts_read(fts));)
                n += e->fts_info == FTS_F;
        if (fts)
                (void)fts_close(fts);
        return n;
}

/* What was written here, and is on the server now, is still here after a kill: the stages go only when the index of the blobs has their bytes. */
static void test_killed_after_the_commit(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        static const size_t sizes[] = { 300, 60000, 400000, 3 * MIB };
        static uint8_t buf[3 * MIB], back[3 * MIB];
        struct node n[ARRAY_SIZE(sizes)];
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                char name[8];
                (void)snprintf(name, sizeof name, "f%zu", i);
                n[i] = cw_create(w, INO_ROOT, name);
                struct file *f = cw_file(w, n[i].ino, true, false);
                pattern(buf, sizes[i], (uint32_t)i);
                assert_int_equal(write_at(f, 0, buf, sizes[i], false, 0), sizes[i]);
                file_release(f, true);
        }
        cw_accept_all(w);
        cw_settle(w);
        char copy[200];
        cw_copy(w, "", copy);
        cw_become(w, copy, false);
        {
                LOCK_SCOPE(&w->source->lock);
                w->source->offline = true;
        }
        cw_open(w);
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                struct file *f = cw_file(w, n[i].ino, false, false);
                pattern(buf, sizes[i], (uint32_t)i);
                assert_int_equal(read_at(f, 0, back, sizes[i]), sizes[i]);
                assert_memory_equal(buf, back, sizes[i]);
                file_release(f, false);
        }
        cw_free(w);
}

/* own: a large stage. at: which record is hit, from the end (1: the last). */
static void damage(bool own, bool cut, size_t at, bool middle) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "victim"), other = cw_create(w, INO_ROOT, "other");
        static uint8_t buf[100000], back[100000];
        struct file *f = cw_file(w, n.ino, true, false), *g = cw_file(w, other.ino, true, false);
        size_t each = own ? 50000 : 3000;
        for (int i = 0; i < 8; i++) {
                pattern(buf, each, (uint32_t)i);
                assert_int_equal(write_at(f, (uint64_t)i * (each + 10), buf, each, false, 0), each);
                assert_int_equal(write_at(g, (uint64_t)i * 10, "0123456789", 10, false, 0), 10);
        }
        /* as a kill leaves it: nothing sealed */
        pid_t pid = fork();
        if (pid == 0)
                _exit(0);
        (void)waitpid(pid, NULL, 0);
        char path[200], copy[200];
        cw_copy(w, "", copy);
        file_release(f, true);
        file_release(g, true);
        cw_become(w, copy, false);

        (void)last_log(w, own, path, sizeof path);
        struct seen s;
        int fd = see_all(path, &s);
        /* records of the victim alone */
        size_t v[100], nv = 0;
        for (size_t i = 0; i < s.n; i++)
                if (s.e[i].kind == LOG_DATA && s.e[i].bytes >= 3000)
                        v[nv++] = i;
        assert_true(nv >= 6);
        size_t hit = v[nv - at];
        if (cut)
                assert_int_equal(ftruncate(fd, (off_t)s.pos[hit] + 20), 0);
        (void)close(fd);
        if (!cut)
                flip(path, s.pos[hit] + 20);
        if (middle) { /* first no room for lost+found/: it is not lost with that */
                (void)snprintf(path, sizeof path, "%s/lost+found", w->dir);
                fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
                assert_true(fd >= 0);
                (void)close(fd);
                cw_open(w);
                struct cache_totals t;
                assert_int_equal(cache_totals(w->cache, &t), 0);
                assert_true(t.rescues > 0);
                cw_close(w);
                assert_int_equal(unlink(path), 0);
        }
        cw_open(w);
        if (middle) {
                assert_true(lost_files(w) > 0);
                /* the file shows what it had before: nothing half */
                n = cw_row(w, n.ino);
                assert_int_equal(n.size, 0);
        } else {
                assert_int_equal(lost_files(w), 0);
                n = cw_row(w, n.ino);
                size_t whole = n.size / (each + 10);
                print_message("%zu of 8 writes are left\n", whole + (n.size % (each + 10) > 0));
                f = cw_file(w, n.ino, false, false);
                for (size_t i = 0; i * (each + 10) < n.size; i++) {
                        pattern(buf, each, (uint32_t)i);
                        assert_int_equal(read_at(f, i * (each + 10), back, each), each);
                        assert_memory_equal(buf, back, each);
                }
                file_release(f, false);
        }
        if (!cut || own) { /* its neighbour in the same log is untouched */
                assert_int_equal(cw_row(w, other.ino).size, 80);
        }
        cw_free(w);
}

/* A stage of which nothing but the header is on the disk goes at the start. What it stood on is its file's: it is not for the list of stacks that no file holds. */
static void test_header_alone(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        static uint8_t buf[3000];
        struct node n = cw_create(w, INO_ROOT, "f");
        struct file *f;
        for (int i = 0; i < 2; i++) { /* the second one stands on the first */
                f = cw_file(w, n.ino, true, false);
                assert_int_equal(write_at(f, i ? 10 : 0, buf, i ? 100 : sizeof buf, false, 0), i ? 100 : sizeof buf);
                if (!i)
                        file_release(f, true);
        }
        char copy[200], path[200];
        cw_copy(w, "", copy);
        file_release(f, true);
        cw_become(w, copy, false);
        (void)last_log(w, false, path, sizeof path);
        struct seen s;
        int fd = see_all(path, &s);
        size_t last = s.n - 1;
        assert_int_equal(s.e[last].kind, LOG_DATA);
        assert_int_equal(ftruncate(fd, (off_t)s.pos[last]), 0);
        (void)close(fd);
        cw_open(w);
        settle_committed(w);
        f = cw_file(w, n.ino, false, false);
        static uint8_t back[sizeof buf + 1];
        assert_int_equal(read_at(f, 0, back, sizeof back), sizeof buf);
        file_release(f, false);
        assert_int_equal(cw_row(w, n.ino).size, sizeof buf);
        assert_true(cw_accept_all(w) > 0);
        cw_settle(w);
        cw_free(w);
}

static void test_damage(void **state) {
        damage(false, true, 3, false);  /* cut tail */
        damage(true, true, 3, false);
        damage(true, false, 1, false);  /* the last record */
        damage(false, false, 4, true);  /* in the middle */
        damage(true, false, 4, true);
}

/* A stage that has grown has two homes on disk. Its own log cannot be read any more: what the shared log still has of it, a truncation, is not what was closed. */
static void test_the_newer_home_is_gone(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "victim");
        static uint8_t old[5000], buf[200000], back[sizeof buf];
        pattern(old, sizeof old, 1);
        pattern(buf, sizeof buf, 2);
        struct file *f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, old, sizeof old, false, 0), sizeof old);
        file_release(f, true);
        cw_accept_all(w);
        cw_settle(w);
        f = cw_file(w, n.ino, true, true);
        assert_int_equal(write_at(f, 0, buf, sizeof buf, false, 0), sizeof buf);
        file_release(f, true);
        assert_int_equal(cw_row(w, n.ino).size, sizeof buf);
        cw_close(w);
        char path[200];
        (void)last_log(w, true, path, sizeof path);
        flip(path, 10);
        cw_open(w);
        assert_true(lost_files(w) > 0);
        assert_int_equal(cw_row(w, n.ino).size, sizeof old);
        f = cw_file(w, n.ino, false, false);
        assert_int_equal(read_at(f, 0, back, sizeof back), sizeof old);
        assert_memory_equal(back, old, sizeof old);
        file_release(f, false);
        cw_free(w);
}

/* ---- power cut: simulated by another boot id; what was not synced may be cut, what was is there ---- */
static void test_new_boot(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node a = cw_create(w, INO_ROOT, "a"), b = cw_create(w, INO_ROOT, "b");
        static uint8_t buf[200000], back[200000];
        pattern(buf, sizeof buf, 1);
        struct file *f = cw_file(w, a.ino, true, false), *g = cw_file(w, b.ino, true, false);
        assert_int_equal(write_at(f, 0, buf, sizeof buf, false, 0), sizeof buf);
        assert_int_equal(write_at(g, 0, buf, 5000, false, 0), 5000);
        assert_int_equal(file_sync(f), 0);
        assert_int_equal(file_sync(g), 0);
        char copy[200];
        cw_copy(w, "", copy);
        file_release(f, true);
        file_release(g, true);
        cw_become(w, copy, true);
        cw_open(w);
        f = cw_file(w, a.ino, false, false);
        assert_int_equal(read_at(f, 0, back, sizeof back), sizeof back);
        assert_memory_equal(buf, back, sizeof back);
        file_release(f, false);
        f = cw_file(w, b.ino, false, false);
        assert_int_equal(read_at(f, 0, back, sizeof back), 5000);
        assert_memory_equal(buf, back, 5000);
        file_release(f, false);
        cw_free(w);
}

/* ---- no room ---- */
static void test_offline_full(void **state) {
        struct cw *w = cw_new(24 * MIB, 1);
        cw_open(w);
        cache_set_online(w->cache, false);
        struct node n = cw_create(w, INO_ROOT, "big"), m = cw_create(w, INO_ROOT, "small");
        struct file *f = cw_file(w, n.ino, true, false);
        static uint8_t buf[MIB];
        memset(buf, 3, sizeof buf);
        ssize_t r = 0;
        uint64_t off = 0;
        for (; off < 40 * MIB && r >= 0; off += r > 0 ? (uint64_t)r : 0)
                r = write_at(f, off, buf, sizeof buf, false, WAIT_MS);
        assert_int_equal(r, -ENOSPC);
        assert_true(off >= 4 * MIB);
        assert_true(du(w->dir) <= 24 * MIB);
        assert_int_equal(file_take_error(f), -ENOSPC);
        file_release(f, true);
        /* half a file is no version */
        assert_int_equal(cw_row(w, n.ino).gen, 0);
        /* reading, truncating and removing work */
        f = cw_file(w, n.ino, false, false);
        uint8_t byte;
        assert_int_equal(read_at(f, off - 1, &byte, 1), 1);
        file_release(f, false);
        cw_close(w);
        cw_open(w);
        assert_int_equal(cw_row(w, n.ino).gen, 0); /* nor after a restart */
        f = cw_file(w, n.ino, true, true);
        assert_int_equal(write_at(f, 0, "fits", 4, false, WAIT_MS), 4);
        file_release(f, true);
        assert_true(cw_row(w, n.ino).gen != 0);
        f = cw_file(w, m.ino, true, false);
        assert_int_equal(write_at(f, 0, buf, 5000, false, WAIT_MS), 5000);
        file_release(f, true);
        cw_free(w);
}

struct engine { struct cw *w; pthread_t thread; _Atomic bool stop; size_t sent; bool hold; };
static void *engine_run(void *arg) {
        struct engine *e = arg;
        static uint8_t buf[BLOCK_BYTES_MAX];
        while (!atomic_load(&e->stop)) {
                uint64_t gen = 0;
                while (stages_early_next(e->w->cache->stages, gen, &gen) == 0) {
                        struct stage *st;
                        struct early_block b[8];
                        size_t n;
                        if (stage_get(e->w->cache->stages, gen, &st) < 0)
                                continue;
                        if (stage_early_blocks(st, b, 8, &n) < 0)
                                n = 0;
                        for (size_t i = 0; i < n; i++) {
                                if (stage_pread_frozen(st, &b[i], buf) < 0)
                                        continue;
                                know(e->w->source, buf, b[i].ref.bytes, BLOCK_BYTES_MAX);
                                if (stage_early_sent(st, &b[i]) == 0)
                                        e->sent++;
                        }
                        stage_put(st);
                }
                (void)sched_yield();
        }
        return NULL;
}

/* A file larger than the whole cache goes through it. */
static void test_through(void **state) {
        struct cw *w = cw_new(24 * MIB, test_seed());
        struct rng *r = &w->source->rng.rng;
        cw_open(w);
        struct engine e = { .w = w };
        assert_int_equal(thread_start(&e.thread, "engine", engine_run, &e), 0);
        struct node n = cw_create(w, INO_ROOT, "huge");
        struct file *f = cw_file(w, n.ino, true, false);
        static uint8_t buf[128 * KIB];
        const size_t size = 64 * MIB;
        uint8_t *all = malloc(size), *back = malloc(MIB);
        uint64_t most = 0;
        r->fill(r, all, size);
        for (size_t off = 0; off < size; off += sizeof buf) {
                ssize_t k = write_at(f, off, all + off, sizeof buf, false, WAIT_MS);
                if (k != (ssize_t)sizeof buf)
                        fail_msg("write at %zu: %zd", off, k);
                if (off % MIB == 0)
                        most = MAX(most, du(w->dir));
        }
        atomic_store(&e.stop, true);
        (void)pthread_join(e.thread, NULL);
        print_message("%zu blocks early, at most %llu KiB on disk of %u\n", e.sent, (unsigned long long)most / 1024, 24 * 1024);
        assert_true(most <= 24 * MIB);
        file_release(f, true);
        size_t fetches = get_size(w->source, &w->source->fetches);
        struct stage *st;
        const struct blocklist *list;
        struct content content;
        n = cw_row(w, n.ino);
        assert_int_equal(stage_get(w->cache->stages, n.gen, &st), 0);
        assert_int_equal(stage_chunk(st, now_ms() + WAIT_MS, &list, &content), 0);
        assert_int_equal(get_size(w->source, &w->source->fetches), fetches); /* sent blocks are not read again */
        struct blocklist want = { .param = 1 };
        for (size_t at = 0; at < size;) {
                size_t len = chunk_next(chunk_param(1), all + at, size - at, true);
                struct blockref ref = { .bytes = (uint32_t)len };
                sha256(all + at, len, &ref.hash);
                assert_int_equal(blocklist_add(&want, &ref), 0);
                at += len;
        }
        struct content want_content;
        assert_int_equal(blocklist_content(&want, NULL, &want_content), 0);
        assert_true(content_equal(&want_content, &content));
        blocklist_free(&want);
        stage_put(st);
        f = cw_file(w, n.ino, false, false);
        for (size_t off = 0; off < size; off += MIB) {
                assert_int_equal(read_at(f, off, back, MIB), MIB);
                assert_memory_equal(back, all + off, MIB);
        }
        assert_true(du(w->dir) <= 24 * MIB);
        file_release(f, false);
        free(all);
        free(back);
        cw_free(w);
}

/* A parked writer: woken by room, cancelled, or told when its time is over. */
static void test_parked(void **state) {
        struct cw *w = cw_new(24 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "p"), other = cw_create(w, INO_ROOT, "q");
        struct file *f = cw_file(w, n.ino, true, false);
        static uint8_t buf[MIB];
        uint64_t off = 0;
        for (;;) {
                struct waiter x;
                waiter_init(&x);
                struct file_write fw = { .file = f, .off = off, .buf = buf, .n = sizeof buf, .deadline_ms = now_ms() + WAIT_MS, .done = write_over, .owner = &x };
                ssize_t r = file_write(&fw);
                if (r == -EINPROGRESS) {
                        assert_true(atomic_load(&w->wakes) > 0);
                        file_write_cancel(&fw);
                        assert_int_equal(waiter_wait(&x), -EINTR);
                        break;
                }
                assert_int_equal(r, sizeof buf);
                off += sizeof buf;
                assert_true(off < 24 * MIB);
        }
        /* its time is over */
        assert_int_equal(write_at(f, off, buf, sizeof buf, false, 50), -ENOSPC);
        file_release(f, true);
        struct file *g = cw_file(w, n.ino, true, true);
        assert_int_equal(write_at(g, 0, buf, sizeof buf, false, WAIT_MS), sizeof buf);
        file_release(g, true);
        /* full again, then a commit makes room */
        f = cw_file(w, other.ino, true, false);
        for (off = 0;; off += sizeof buf) {
                struct waiter x;
                waiter_init(&x);
                struct file_write fw = { .file = f, .off = off, .buf = buf, .n = sizeof buf, .deadline_ms = now_ms() + WAIT_MS, .done = write_over, .owner = &x };
                ssize_t r = file_write(&fw);
                if (r != -EINPROGRESS) {
                        assert_int_equal(r, sizeof buf);
                        continue;
                }
                uint64_t gen;
                assert_int_equal(file_freeze(w->cache, other.ino, &gen), 0);
                cw_accept_all(w);
                assert_int_equal(waiter_wait(&x), 0);
                break;
        }
        file_release(f, true);
        cw_free(w);
}

int main(int argc, char **argv) {
        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_kill), cmocka_unit_test(test_killed_after_the_commit), cmocka_unit_test(test_lost_tree), cmocka_unit_test(test_damage), cmocka_unit_test(test_header_alone), cmocka_unit_test(test_the_newer_home_is_gone), cmocka_unit_test(test_new_boot), cmocka_unit_test(test_offline_full),
                cmocka_unit_test(test_through), cmocka_unit_test(test_parked),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
