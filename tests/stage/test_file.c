/* SPDX-License-Identifier: Apache-2.0 */
/* Files on the real tree, blobs and stages; the server is a function that accepts. */
#include "cache_world.h"

struct model { uint8_t *p; size_t n; };

static void model_put(struct model *m, uint64_t off, const void *buf, size_t n) {
        if (off + n > m->n) {
                m->p = realloc(m->p, off + n);
                memset(m->p + m->n, 0, off + n - m->n);
                m->n = off + n;
        }
        memcpy(m->p + off, buf, n);
}
static void model_size(struct model *m, size_t n) {
        if (n > m->n) {
                m->p = realloc(m->p, n);
                memset(m->p + m->n, 0, n - m->n);
        }
        m->n = n;
}

static void compare(struct file *f, const struct model *m) {
        uint8_t *buf = malloc(m->n + 64);
        ssize_t n = read_at(f, 0, buf, m->n + 64);
        if (n != (ssize_t)m->n)
                fail_msg("read gives %zd, not %zu", n, m->n);
        for (size_t i = 0; i < m->n; i++)
                if (buf[i] != m->p[i])
                        fail_msg("byte %zu of %zu: %02x, not %02x", i, m->n, buf[i], m->p[i]);
        free(buf);
}
static void compare_ino(struct cw *w, uint64_t ino, const struct model *m) {
        struct file *f = cw_file(w, ino, false, false);
        compare(f, m);
        file_release(f, false);
}

static void test_save(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "a");
        struct file *f = cw_file(w, n.ino, true, false);
        uint64_t size;
        int64_t mtime, ctime;
        assert_false(file_overlay(w->cache, n.ino, &size, &mtime, &ctime));
        assert_int_equal(write_at(f, 0, "hello", 5, false, 0), 5);
        assert_int_equal(write_at(f, 0, " world", 6, true, 0), 6);
        assert_true(file_overlay(w->cache, n.ino, &size, &mtime, &ctime));
        assert_int_equal(size, 11);
        assert_int_equal(cw_row(w, n.ino).size, 0);
        assert_true(file_is_open_for_write(w->cache, n.ino));
        struct cache_totals t;
        assert_int_equal(cache_totals(w->cache, &t), 0);
        assert_true(t.pending_files >= 1);
        assert_int_equal(file_set_mtime(w->cache, n.ino, 12345), 0);
        assert_int_equal(cache_wait_drained(w->cache, now_ms() + 1), -ETIMEDOUT);
        uint64_t sql = counter_get(&w->counters, sql_transactions);
        file_release(f, true);
        assert_int_equal(counter_get(&w->counters, sql_transactions), sql + 1);
        n = cw_row(w, n.ino);
        assert_int_equal(n.size, 11);
        assert_int_equal(n.mtime_ns, 12345);
        assert_true(n.gen != 0 && n.pending);
        struct model m = { 0 };
        model_put(&m, 0, "hello world", 11);
        compare_ino(w, n.ino, &m);
        /* again, with a stop before anything was sent */
        cw_close(w);
        cw_open(w);
        compare_ino(w, n.ino, &m);
        f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 6, "there", 5, false, 0), 5);
        model_put(&m, 6, "there", 5);
        compare(f, &m);
        file_release(f, true);
        /* held back: nothing may be held by the 2 s rule now */
        assert_int_equal(cw_accept_all(w), 1);
        assert_int_equal(cache_wait_drained(w->cache, now_ms() + WAIT_MS), 0);
        n = cw_row(w, n.ino);
        assert_int_equal(n.gen, 0);
        assert_int_equal(n.content.size, 11);
        f = cw_file(w, n.ino, false, false);
        compare(f, &m);
        cw_settle(w);
        compare(f, &m);
        file_release(f, false);
        size_t fetches = get_size(w->source, &w->source->fetches);
        compare_ino(w, n.ino, &m);
        assert_int_equal(get_size(w->source, &w->source->fetches), fetches);
        struct stages_totals st;
        stages_totals(w->cache->stages, &st);
        assert_int_equal(st.open + st.sealed, 0);
        assert_int_equal(st.dirty_bytes, 0);
        free(m.p);
        cw_free(w);
}

/* A large file: committed, it becomes the blob without a download; an edit of a few bytes too. */
static void test_large(void **state) {
        struct cw *w = cw_new(256 * MIB, test_seed());
        cw_open(w);
        struct rng *r = &w->source->rng.rng;
        struct node n = cw_create(w, INO_ROOT, "large");
        struct model m = { 0 };
        static uint8_t buf[MIB];
        struct file *f = cw_file(w, n.ino, true, false);
        for (int i = 0; i < 12; i++) {
                r->fill(r, buf, sizeof buf);
                assert_int_equal(write_at(f, m.n, buf, sizeof buf, false, 0), sizeof buf);
                model_put(&m, m.n, buf, sizeof buf);
        }
        file_release(f, true);
        f = cw_file(w, n.ino, false, false);
        compare(f, &m);
        cw_accept_all(w);
        cw_settle(w);
        compare(f, &m);
        assert_int_equal(get_size(w->source, &w->source->fetches), 0);
        struct blobs_totals b;
        blobs_totals(w->cache->blobs, &b);
        assert_int_equal(b.dirty_bytes / MIB, w->cache->stages->cfg.dirty_limit_bytes ? b.dirty_bytes / MIB : 0);
        for (int i = 0; i < 3; i++) {
                struct file *e = cw_file(w, n.ino, true, false);
                uint64_t off = rng_below(r, m.n - 5000);
                r->fill(r, buf, 5000);
                assert_int_equal(write_at(e, off, buf, 5000, false, 0), 5000);
                model_put(&m, off, buf, 5000);
                file_release(e, true);
                cw_accept_all(w);
                cw_settle(w);
                compare(f, &m);
        }
        file_release(f, false);
        compare_ino(w, n.ino, &m);
        assert_int_equal(get_size(w->source, &w->source->fetches), 0);
        free(m.p);
        cw_free(w);
}

static void test_truncate_and_holes(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "t");
        struct model m = { 0 };
        /* without a handle: a commit point */
        assert_int_equal(file_truncate(w->cache, n.ino, 100000), 0);
        model_size(&m, 100000);
        n = cw_row(w, n.ino);
        assert_int_equal(n.size, 100000);
        assert_true(n.gen != 0);
        compare_ino(w, n.ino, &m);
        struct file *f = cw_file(w, n.ino, true, false);
        uint64_t at;
        assert_int_equal(file_seek(f, true, 0, &at), -ENXIO);
        assert_int_equal(file_seek(f, false, 5, &at), 0);
        assert_int_equal(at, 5);
        assert_int_equal(write_at(f, 50000, "xx", 2, false, 0), 2);
        model_put(&m, 50000, "xx", 2);
        assert_int_equal(file_seek(f, true, 0, &at), 0);
        assert_int_equal(at, 50000);
        assert_int_equal(file_seek(f, false, 50001, &at), 0);
        assert_int_equal(at, 50002);
        assert_int_equal(file_seek(f, false, 100000, &at), -ENXIO);
        assert_int_equal(file_allocate(f, FILE_ALLOC_EXTEND, 0, 200000), 0);
        model_size(&m, 200000);
        assert_int_equal(file_allocate(f, FILE_ALLOC_PUNCH, 50001, 1000000), 0);
        model_put(&m, 50001, "\0", 1);
        assert_int_equal(file_allocate(f, FILE_ALLOC_ZERO, 199000, 2000), 0);
        model_size(&m, 201000);
        assert_int_equal(file_allocate(f, FILE_ALLOC_KEEP, 0, 1 << 30), 0);
        compare(f, &m);
        file_release(f, true);
        compare_ino(w, n.ino, &m);
        f = cw_file(w, n.ino, true, true);
        m.n = 0;
        compare(f, &m);
        assert_int_equal(write_at(f, 3, "abc", 3, false, 0), 3);
        model_put(&m, 3, "abc", 3);
        file_release(f, true);
        cw_accept_all(w);
        cw_settle(w);
        compare_ino(w, n.ino, &m);
        free(m.p);
        cw_free(w);
}

/* Many files, everything at random, stops in between. */
#define FILES 6
static void test_random(void **state) {
        uint64_t seed = test_seed();
        struct cw *w = cw_new(256 * MIB, seed);
        struct rng *r = &w->source->rng.rng;
        cw_open(w);
        uint64_t ino[FILES];
        struct model m[FILES] = { 0 };
        struct file *open[FILES][3] = { 0 };
        bool writes[FILES][3] = { 0 };
        static uint8_t buf[300000];
        for (int i = 0; i < FILES; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "f%d", i);
                ino[i] = cw_create(w, INO_ROOT, name).ino;
        }
        for (int step = 0; step < 3000; step++) {
                int i = (int)rng_below(r, FILES), h = (int)rng_below(r, 3);
                struct file **f = &open[i][h];
                unsigned what = (unsigned)rng_below(r, 100);
                if (!*f) {
                        writes[i][h] = rng_below(r, 2);
                        bool truncate = writes[i][h] && rng_below(r, 4) == 0;
                        *f = cw_file(w, ino[i], writes[i][h], truncate);
                        if (truncate)
                                m[i].n = 0;
                        continue;
                }
                if (what < 50 && writes[i][h]) {
                        size_t n = 1 + rng_below(r, rng_below(r, 8) ? 6000 : sizeof buf - 1);
                        bool append = rng_below(r, 3) == 0;
                        uint64_t off = append ? m[i].n : rng_below(r, m[i].n + 3000);
                        if (off + n > 3 * MIB)
                                continue;
                        r->fill(r, buf, n);
                        assert_int_equal(write_at(*f, append ? 77 : off, buf, n, append, WAIT_MS), n);
                        model_put(&m[i], off, buf, n);
                } else if (what < 70) {
                        uint64_t off = rng_below(r, m[i].n + 100);
                        size_t n = rng_below(r, sizeof buf), want = off < m[i].n ? MIN(n, m[i].n - off) : 0;
                        assert_int_equal(read_at(*f, off, buf, n), want);
                        if (want)
                                assert_memory_equal(buf, m[i].p + off, want);
                } else if (what < 75) {
                        size_t n = rng_below(r, m[i].n + 5000);
                        assert_int_equal(file_truncate(w->cache, ino[i], n), 0);
                        model_size(&m[i], n);
                } else if (what < 78 && writes[i][h] && m[i].n > 0) {
                        uint64_t off = rng_below(r, m[i].n), n = 1 + rng_below(r, 20000);
                        assert_int_equal(file_allocate(*f, FILE_ALLOC_PUNCH, off, n), 0);
                        memset(m[i].p + off, 0, MIN(n, m[i].n - off));
                } else if (what < 82) {
                        uint64_t gen;
                        assert_int_equal(file_freeze(w->cache, ino[i], &gen), 0);
                } else if (what < 84) {
                        assert_int_equal(file_sync(*f), 0);
                } else if (what < 87) {
                        (void)cw_accept_all(w);
                } else if (what < 88) {
                        cw_accept_all(w);
                        assert_int_equal(cache_sync(w->cache), 0);
                } else if (what < 89) {
                        assert_int_equal(blobs_evict_all(w->cache->blobs), 0);
                } else if (what < 90 && rng_below(r, 4) == 0) {
                        for (int k = 0; k < FILES; k++)
                                for (int x = 0; x < 3; x++)
                                        if (open[k][x]) {
                                                file_release(open[k][x], writes[k][x]);
                                                open[k][x] = NULL;
                                        }
                        cw_close(w);
                        cw_open(w);
                        for (int k = 0; k < FILES; k++)
                                compare_ino(w, ino[k], &m[k]);
                } else {
                        file_release(*f, writes[i][h]);
                        *f = NULL;
                }
                uint64_t size;
                int64_t mt, ct;
                if (!file_overlay(w->cache, ino[i], &size, &mt, &ct))
                        size = cw_row(w, ino[i]).size;
                assert_int_equal(size, m[i].n);
        }
        for (int k = 0; k < FILES; k++) {
                compare_ino(w, ino[k], &m[k]);
                for (int x = 0; x < 3; x++)
                        if (open[k][x])
                                file_release(open[k][x], writes[k][x]);
        }
        cw_accept_all(w);
        cw_settle(w);
        struct blobs_totals b;
        blobs_totals(w->cache->blobs, &b);
        uint64_t segments = segments_bytes(w->cache->stages->segs);
        assert_int_equal(b.dirty_bytes, segments); /* nothing of the room is lost */
        for (int k = 0; k < FILES; k++) {
                compare_ino(w, ino[k], &m[k]);
                free(m[k].p);
        }
        cw_free(w);
}

/* O_APPEND from several threads: every record whole, none lost. */
struct appender { struct file *f; int id; };
static void *append_run(void *arg) {
        struct appender *a = arg;
        char line[64];
        for (int i = 0; i < 500; i++) {
                int n = snprintf(line, sizeof line, "%d:%05d:%.*s\n", a->id, i, i % 40, "........................................");
                if (write_at(a->f, 0, line, (size_t)n, true, WAIT_MS) != n)
                        abort();
        }
        return NULL;
}
static void test_append(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "log");
        struct file *f = cw_file(w, n.ino, true, false);
        pthread_t t[4];
        struct appender a[4];
        for (int i = 0; i < 4; i++) {
                a[i] = (struct appender) { f, i };
                assert_int_equal(thread_start(&t[i], "append", append_run, &a[i]), 0);
        }
        for (int i = 0; i < 20; i++) {
                uint64_t gen;
                assert_int_equal(file_freeze(w->cache, n.ino, &gen), 0);
                cw_accept_all(w);
        }
        for (int i = 0; i < 4; i++)
                (void)pthread_join(t[i], NULL);
        uint64_t size;
        int64_t mt, ct;
        if (!file_overlay(w->cache, n.ino, &size, &mt, &ct))
                size = cw_row(w, n.ino).size;
        char *text = calloc(1, size + 1);
        assert_int_equal(read_at(f, 0, text, size), size);
        int next[4] = { 0 }, lines = 0;
        for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save), lines++) {
                int id, i;
                assert_int_equal(sscanf(line, "%d:%d:", &id, &i), 2);
                assert_int_equal(next[id]++, i);
                assert_int_equal(strlen(line), 8 + i % 40);
        }
        assert_int_equal(lines, 2000);
        free(text);
        file_release(f, true);
        cw_free(w);
}

/* Unlinked while open: bytes stay readable, nothing is left behind. */
static void test_unlinked(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "gone"), after;
        struct file *f = cw_file(w, n.ino, true, false);
        static uint8_t buf[200000], back[200000];
        memset(buf, 7, sizeof buf);
        assert_int_equal(write_at(f, 0, buf, sizeof buf, false, 0), sizeof buf);
        assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, "gone", 4, false, (bool (*)(void *, uint64_t))file_is_open, w->cache, &after), 0);
        assert_true(after.unlinked);
        assert_int_equal(write_at(f, 100, "more", 4, false, 0), 4);
        assert_int_equal(read_at(f, 0, back, sizeof back), sizeof back);
        file_release(f, true);
        assert_int_equal(tree_forget(w->cache->tree, n.ino), 0);
        file_forget(w->cache, n.ino);
        cw_settle(w);
        struct stages_totals t;
        stages_totals(w->cache->stages, &t);
        assert_int_equal(t.open + t.sealed, 0);
        cw_accept_all(w);
        assert_int_equal(cache_wait_drained(w->cache, now_ms() + WAIT_MS), 0);
        cw_close(w);
        cw_open(w);
        assert_int_equal(cw_accept_all(w), 0);
        cw_free(w);
}

static uint64_t pending_files(struct cw *w) {
        struct cache_totals t;
        assert_int_equal(cache_totals(w->cache, &t), 0);
        return t.pending_files;
}

/* What counts as pending of the files that are being written: those with a name, or whose name the server took. A row is read only after a name came or went. */
static void test_open_pending(void **state) {
        enum { N = 300 };
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct files *fs = w->cache->files;
        struct file *f[N];
        uint64_t ino[N];
        char name[16];
        struct node after;
        for (int i = 0; i < N; i++) {
                (void)snprintf(name, sizeof name, "open%d", i);
                ino[i] = cw_create(w, INO_ROOT, name).ino;
        }
        cw_accept_all(w);
        for (int i = 0; i < N; i++) {
                f[i] = cw_file(w, ino[i], true, false);
                assert_int_equal(write_at(f[i], 0, "bytes", 5, false, 0), 5);
        }
        assert_int_equal(fs->n_open_by_name[NAME_UNKNOWN], N);
        assert_int_equal(pending_files(w), N);
        assert_int_equal(fs->n_open_by_name[NAME_KEPT], N);
        cw_create(w, INO_ROOT, "another"); /* the business of others */
        assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, "another", 7, false, (bool (*)(void *, uint64_t))file_is_open, w->cache, &after), 0);
        assert_int_equal(fs->n_open_by_name[NAME_UNKNOWN], 0);
        for (int i = 0; i < 2; i++) {
                (void)snprintf(name, sizeof name, "open%d", i);
                assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, name, strlen(name), false, (bool (*)(void *, uint64_t))file_is_open, w->cache, &after), 0);
                assert_int_equal(fs->n_open_by_name[NAME_UNKNOWN], i + 1);
        }
        cw_accept_all(w);
        assert_int_equal(pending_files(w), N - 2);
        assert_int_equal(fs->n_open_by_name[NAME_NONE], 2);
        for (int i = 2; i < N; i++)
                file_release(f[i], true);
        cw_accept_all(w);
        assert_int_equal(cache_wait_drained(w->cache, now_ms() + WAIT_MS), 0); /* two deleted ones are still open */
        assert_int_equal(fs->n_open, 2);
        file_release(f[0], true);
        file_release(f[1], true);
        assert_int_equal(fs->n_open_by_name[NAME_UNKNOWN] + fs->n_open_by_name[NAME_KEPT] + fs->n_open_by_name[NAME_NONE], 0);
        cw_free(w);
}

static bool somebody(void *arg, uint64_t ino) { return true; }

/* A generation with a failed write waits for its file to be healed, cut or deleted. Deleted while the last handle is being closed (the unlink finds it open, its end finds the name): it is not pending any more when
 * the server has answered, and goes. */
static void test_failed_and_deleted(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "f"), after;
        cw_accept_all(w);
        struct file *f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, "bytes", 5, false, 0), 5);
        file_write_failed(&(struct file_write) { .file = f, .off = 0, .n = 5 }, -EIO);
        assert_int_equal(file_take_error(f), -EIO);
        file_release(f, true);
        cw_accept_all(w);
        assert_int_equal(pending_files(w), 1);
        assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, "f", 1, false, somebody, NULL, &after), 0);
        assert_true(after.unlinked);
        assert_int_equal(tree_forget(w->cache->tree, n.ino), 0);
        assert_int_equal(cw_accept_all(w), 1);
        assert_int_equal(pending_files(w), 0);
        assert_int_equal(cache_wait_drained(w->cache, now_ms()), 0);
        file_forget(w->cache, n.ino); /* whoever let it go last */
        cw_settle(w);
        struct stages_totals t;
        stages_totals(w->cache->stages, &t);
        assert_int_equal(t.open + t.sealed, 0);
        assert_int_equal(t.dirty_bytes, 0);
        cw_free(w);
}

/* Such a file that the server takes away: it is pending as long as somebody can still write to it. */
static void test_failed_and_taken(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "f");
        cw_accept_all(w);
        struct file *f = cw_file(w, n.ino, true, false);
        assert_int_equal(write_at(f, 0, "bytes", 5, false, 0), 5);
        file_write_failed(&(struct file_write) { .file = f, .off = 0, .n = 5 }, -EIO);
        struct server_node *s = cw_server_node(w, &n.id, false);
        s->row.deleted = true;
        s->row.seq = ++w->seq;
        struct arena *a;
        assert_int_equal(arena_new(16 << 20, &a), 0);
        struct change ch = { .node = s->row, .has_entries = true };
        struct event e = { .seq = w->seq, .changes = &ch, .n_changes = 1 };
        struct cursor to = { .epoch = { { 1 } }, .seq = w->seq };
        struct tree_applied applied = { 0 };
        assert_int_equal(tree_apply(w->cache->tree, &e, 1, &to, (bool (*)(void *, uint64_t))file_is_open, w->cache, a, &applied), 0);
        file_committed(w->cache, applied.done, applied.n_done);
        arena_free(a);
        assert_true(cw_row(w, n.ino).taken);
        assert_int_equal(pending_files(w), 1);
        file_release(f, true);
        assert_int_equal(pending_files(w), 0);
        assert_int_equal(cache_wait_drained(w->cache, now_ms()), 0);
        cw_free(w);
}

/* A file saved again and again while nothing can be sent. */
static void test_layers(void **state) {
        struct cw *w = cw_new(256 * MIB, test_seed());
        struct rng *r = &w->source->rng.rng;
        cw_open(w);
        struct node n = cw_create(w, INO_ROOT, "doc");
        struct model m = { 0 };
        static uint8_t buf[100000];
        for (int i = 0; i < 60; i++) {
                bool whole = i % 7 == 3;
                struct file *f = cw_file(w, n.ino, true, whole);
                if (whole)
                        m.n = 0;
                size_t len = 1 + rng_below(r, i % 5 ? 3000 : sizeof buf - 1);
                uint64_t off = rng_below(r, m.n + 1);
                r->fill(r, buf, len);
                assert_int_equal(write_at(f, off, buf, len, false, 0), len);
                model_put(&m, off, buf, len);
                file_release(f, true);
        }
        compare_ino(w, n.ino, &m);
        assert_int_equal(cache_sync(w->cache), 0);
        struct stages_totals t;
        stages_totals(w->cache->stages, &t);
        print_message("%llu layers\n", (unsigned long long)t.sealed);
        assert_true(t.sealed < 24);
        lock_take(&w->cache->files->lock);
        bool loose = w->cache->files->loose != NULL;
        lock_drop(&w->cache->files->lock);
        assert_false(loose); /* what stays in the stack is not on the list of what may go */
        cw_close(w);
        cw_open(w);
        compare_ino(w, n.ino, &m);
        cw_accept_all(w);
        cw_settle(w);
        compare_ino(w, n.ino, &m);
        free(m.p);
        cw_free(w);
}

/* The rule of file_commit.c: what an operation carries is here. Returns how many do. */
static size_t carried(struct cw *w) {
        static struct outbox_item items[64];
        struct arena *a;
        size_t n = 0, with_bytes = 0;
        assert_int_equal(arena_new(16 << 20, &a), 0);
        assert_int_equal(outbox_list(w->cache->tree, a, false, items, 64, &n), 0);
        for (size_t i = 0; i < n; i++) {
                struct stage *st;
                if (!items[i].gen)
                        continue;
                if (stage_get(w->cache->stages, items[i].gen, &st) < 0)
                        fail_msg("kind %d carries gen %llu, which is gone", (int)items[i].op.kind, (unsigned long long)items[i].gen);
                uint8_t *bytes = malloc(stage_size(st) + 1);
                assert_int_equal(stage_pread(st, 0, bytes, stage_size(st), now_ms() + WAIT_MS), (ssize_t)stage_size(st));
                free(bytes);
                stage_put(st);
                with_bytes++;
        }
        arena_free(a);
        return with_bytes;
}

static void put(struct cw *w, uint64_t ino, bool truncate, size_t off, size_t n) {
        static uint8_t buf[4096];
        struct file *f = cw_file(w, ino, true, truncate);
        memset(buf, (int)n, sizeof buf);
        assert_int_equal(write_at(f, off, buf, n, false, 0), n);
        file_release(f, true);
}

/* An editor's save over a file of the server; then that is opened, written and unlinked before anything was sent. With `sent`, what is in the outbox was on its way before. With
 * `again`, the save is a patch of the save before. */
static void unlinked_save(bool sent, bool again, bool restart) {
        struct cw *w = cw_new(256 * MIB, 1);
        bool (*is_open)(void *, uint64_t) = (bool (*)(void *, uint64_t))file_is_open;
        cw_open(w);
        struct node a = cw_create(w, INO_ROOT, "a"), moved, replaced, gone;
        put(w, a.ino, false, 0, 3000);
        cw_accept_all(w);
        cw_settle(w);
        put(w, a.ino, false, 100, 500);
        size_t on_way = 0;
        if (sent) {
                struct arena *arena;
                static struct outbox_item items[64];
                size_t n = 0;
                assert_int_equal(arena_new(16 << 20, &arena), 0);
                assert_int_equal(outbox_list(w->cache->tree, arena, false, items, 64, &n), 0);
                for (size_t i = 0; i < n; i++) {
                        assert_int_equal(outbox_mark_sent(w->cache->tree, &items[i].op.id, 1), 0);
                        on_way += items[i].gen != 0;
                }
                arena_free(arena);
                if (again)
                        put(w, a.ino, false, 600, 100);
        }
        struct node temp = cw_create(w, INO_ROOT, ".a.tmp");
        put(w, temp.ino, false, 0, 1000);
        assert_int_equal(tree_rename(w->cache->tree, INO_ROOT, ".a.tmp", 6, INO_ROOT, "a", 1, 0, is_open, w->cache, &moved, &replaced), 0);
        file_forget(w->cache, a.ino);
        assert_int_equal(cache_sync(w->cache), 0);
        size_t n = carried(w);
        assert_true(n >= (sent ? 2u : 1u));
        struct file *f = cw_file(w, moved.ino, true, true);
        assert_int_equal(write_at(f, 0, "x", 1, false, 0), 1);
        assert_int_equal(tree_unlink(w->cache->tree, INO_ROOT, "a", 1, false, is_open, w->cache, &gone), 0);
        file_forget(w->cache, moved.ino);
        file_release(f, true);
        assert_int_equal(tree_forget(w->cache->tree, moved.ino), 0);
        for (unsigned i = 0; i < 3; i++) {
                assert_int_equal(cache_sync(w->cache), 0);
                size_t left = carried(w); /* what was not on its way may have gone with the file; no row lost its bytes: asserted there */
                assert_in_range(left, on_way, n);
                n = left;
        }
        for (unsigned i = 0; i < 2 && restart; i++) {
                cw_close(w);
                cw_open(w);
                assert_int_equal(cache_sync(w->cache), 0);
                assert_int_equal(carried(w), n);
        }
        cw_free(w);
}

static void test_unlinked_save(void **state) {
        for (unsigned i = 0; i < 8; i++)
                unlinked_save(i & 1, i & 2, i & 4);
}

/* What is queued for the node, marked as sent; like the engine, with what the row says after that. */
static struct outbox_item on_its_way(struct cw *w, struct arena *a, enum op_kind kind) {
        static struct outbox_item items[64];
        struct outbox_item item;
        size_t n = 0, at = 0;
        assert_int_equal(outbox_list(w->cache->tree, a, false, items, 64, &n), 0);
        while (at < n && items[at].op.kind != kind)
                at++;
        assert_in_range(at, 0, n - 1);
        assert_int_equal(outbox_mark_sent(w->cache->tree, &items[at].op.id, 1), 0);
        assert_int_equal(outbox_get(w->cache->tree, &items[at].op.id, a, &item), 0);
        return item;
}

/* A temporary is saved over a file while its CREATE is on its way; the file is opened at once, cut and written. Then the answers come: before the last close, one of them or both, or after it. With
 * `both`, the save was sent with the CREATE. Nobody else is there: nothing is a conflict. */
static void save_on_its_way(bool both, unsigned before_close, bool restart) {
        struct cw *w = cw_new(256 * MIB, 1);
        bool (*is_open)(void *, uint64_t) = (bool (*)(void *, uint64_t))file_is_open;
        struct outbox_item answer[2];
        struct arena *a;
        w->judges = true;
        cw_open(w);
        assert_int_equal(arena_new(16 << 20, &a), 0);
        struct node doc = cw_create(w, INO_ROOT, "doc"), moved, replaced, n;
        put(w, doc.ino, false, 0, 3000);
        cw_accept_all(w);
        cw_settle(w);
        struct node temp = cw_create(w, INO_ROOT, "new");
        put(w, temp.ino, false, 0, 2000);
        answer[0] = on_its_way(w, a, OP_CREATE);
        assert_int_equal(tree_rename(w->cache->tree, INO_ROOT, "new", 3, INO_ROOT, "doc", 3, 0, is_open, w->cache, &moved, &replaced), 0);
        file_renamed(w->cache, &moved, &replaced);
        assert_int_equal(moved.ino, temp.ino);
        if (both)
                answer[1] = on_its_way(w, a, OP_REPLACE);
        struct file *f = cw_file(w, moved.ino, true, true);
        assert_int_equal(write_at(f, 0, "x", 1, false, 0), 1);
        for (unsigned i = 0; i < 2; i++) {
                if (i == before_close)
                        file_release(f, true);
                if (i == 1 && !both)
                        answer[1] = on_its_way(w, a, OP_REPLACE);
                cw_accept(w, &answer[i]);
                assert_int_equal(cw_row(w, moved.ino).incarnation, moved.incarnation); /* else what is open would become a conflict copy */
                assert_int_equal(cache_sync(w->cache), 0);
                (void)carried(w); /* no row lost its bytes */
                if (restart && i == 0 && before_close == 0) {
                        cw_close(w);
                        cw_open(w);
                }
        }
        if (before_close == 2)
                file_release(f, true);
        cw_accept_all(w);
        cw_settle(w);
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "doc", 3, &n), 0);
        assert_int_equal(n.size, 1);
        struct model m = { .p = (uint8_t *)"x", .n = 1 };
        compare_ino(w, n.ino, &m);
        struct tree_totals totals;
        assert_int_equal(tree_totals(w->cache->tree, &totals), 0);
        assert_int_equal(totals.files, 1); /* no copy */
        arena_free(a);
        cw_free(w);
}

static void test_save_on_its_way(void **state) {
        for (unsigned i = 0; i < 12; i++)
                save_on_its_way(i & 1, (i >> 1) % 3, i >= 6);
}

/* A file takes another one's place while it is being written, and the server is told of that before the writer closes: by a rename over it, between whose freeze and itself something was written, or by the
 * unlink of the old one, which was moved aside. What is closed later is the next version of what the server was told: nobody else is there, nothing is a conflict. */
static void taken_while_written(bool aside, bool sent, bool crash) {
        struct cw *w = cw_new(256 * MIB, 1);
        bool (*is_open)(void *, uint64_t) = (bool (*)(void *, uint64_t))file_is_open;
        struct arena *a;
        uint64_t gen;
        char copy[200];
        w->judges = true;
        cw_open(w);
        assert_int_equal(arena_new(16 << 20, &a), 0);
        struct node doc = cw_create(w, INO_ROOT, "doc"), moved, replaced, temp;
        put(w, doc.ino, false, 0, 3000);
        cw_accept_all(w);
        cw_settle(w);
        if (aside)
                assert_int_equal(tree_rename(w->cache->tree, INO_ROOT, "doc", 3, INO_ROOT, "doc~", 4, 0, is_open, w->cache, &moved, &replaced), 0);
        temp = cw_create(w, INO_ROOT, aside ? "doc" : "doc.tmp");
        struct file *f = cw_file(w, temp.ino, true, true);
        assert_int_equal(write_at(f, 0, "xxx", 3, false, 0), 3);
        if (aside) {
                assert_int_equal(tree_unlink_taken(w->cache->tree, INO_ROOT, "doc~", 4, false, is_open, w->cache, &replaced, &moved), 0);
                assert_int_equal(moved.ino, temp.ino);
                file_renamed(w->cache, &moved, &replaced);
        } else {
                assert_int_equal(file_freeze(w->cache, temp.ino, &gen), 0);
                if (sent) {
                        struct outbox_item create = on_its_way(w, a, OP_CREATE);
                        cw_accept(w, &create);
                }
                assert_int_equal(write_at(f, 3, "yy", 2, false, 0), 2);
                assert_int_equal(tree_rename(w->cache->tree, INO_ROOT, "doc.tmp", 7, INO_ROOT, "doc", 3, 0, is_open, w->cache, &moved, &replaced), 0);
                file_renamed(w->cache, &moved, &replaced);
        }
        struct outbox_item save = on_its_way(w, a, OP_REPLACE);
        assert_true(id_equal(&save.op.node, &doc.id));
        cw_accept(w, &save);
        assert_int_equal(cw_row(w, temp.ino).incarnation, temp.incarnation);
        if (crash) {
                assert_int_equal(cache_sync(w->cache), 0);
                cw_copy(w, "", copy);
        }
        assert_int_equal(write_at(f, aside ? 3 : 5, "z", 1, false, 0), 1);
        file_release(f, true);
        if (crash) {
                cw_become(w, copy, false);
                cw_open(w);
        }
        cw_accept_all(w);
        cw_settle(w);
        assert_int_equal(tree_lookup(w->cache->tree, INO_ROOT, "doc", 3, &temp), 0);
        const char *text = aside ? "xxxz" : "xxxyyz";
        struct model m = { .p = (uint8_t *)text, .n = strlen(text) - crash };
        compare_ino(w, temp.ino, &m);
        struct tree_totals totals;
        assert_int_equal(tree_totals(w->cache->tree, &totals), 0);
        assert_int_equal(totals.files, 1); /* no copy */
        arena_free(a);
        cw_free(w);
}

static void test_taken_while_written(void **state) {
        for (unsigned i = 0; i < 6; i++)
                taken_while_written(i < 2, i >= 4, i & 1);
}

/* Another client's version comes between the commit of ours and the moment at which our stage becomes a blob. */
static void test_replaced_before_retired(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        struct node a = cw_create(w, INO_ROOT, "a");
        put(w, a.ino, false, 0, 700);
        cw_accept_all(w);
        static uint8_t theirs[2317];
        memset(theirs, 'T', sizeof theirs);
        const struct known *k = know(w->source, theirs, sizeof theirs, 0);
        struct server_node *n = cw_server_node(w, &a.id, false);
        assert_non_null(n);
        n->row.content = k->content;
        n->row.version = rng_id(&w->source->rng.rng);
        n->row.seq = ++w->seq;
        struct change ch = { .node = n->row };
        struct event e = { .seq = w->seq, .changes = &ch, .n_changes = 1 };
        struct tree_applied applied = { 0 };
        struct arena *arena;
        assert_int_equal(arena_new(16 << 20, &arena), 0);
        assert_int_equal(tree_apply(w->cache->tree, &e, 1, NULL, (bool (*)(void *, uint64_t))file_is_open, w->cache, arena, &applied), 0);
        file_committed(w->cache, applied.done, applied.n_done);
        arena_free(arena);
        assert_int_equal(cw_row(w, a.ino).size, sizeof theirs);
        struct model m = { .p = theirs, .n = sizeof theirs };
        compare_ino(w, a.ino, &m);
        cw_settle(w);
        compare_ino(w, a.ino, &m);
        cw_free(w);
}

static void test_speed(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        cw_open(w);
        char buf[4096] = "x", name[32];
        enum { N = 3000 };
        int64_t before = now_ms();
        for (int i = 0; i < N; i++) {
                (void)snprintf(name, sizeof name, "s%d", i);
                struct node n = cw_create(w, INO_ROOT, name);
                struct file *f = cw_file(w, n.ino, true, false);
                assert_int_equal(write_at(f, 0, buf, sizeof buf, false, 0), sizeof buf);
                file_release(f, true);
        }
        int64_t ms = now_ms() - before;
        print_message("create + 4 KiB + close: %d in %lld ms, %lld/s\n", N, (long long)ms, (long long)(N * 1000LL / MAX(ms, (int64_t)1)));
        cw_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_save), cmocka_unit_test(test_large), cmocka_unit_test(test_truncate_and_holes), cmocka_unit_test(test_random), cmocka_unit_test(test_append),
                cmocka_unit_test(test_unlinked), cmocka_unit_test(test_open_pending), cmocka_unit_test(test_failed_and_deleted), cmocka_unit_test(test_failed_and_taken), cmocka_unit_test(test_layers), cmocka_unit_test(test_unlinked_save), cmocka_unit_test(test_save_on_its_way), cmocka_unit_test(test_taken_while_written), cmocka_unit_test(test_replaced_before_retired), cmocka_unit_test(test_speed),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
