/* SPDX-License-Identifier: Apache-2.0 */
/* How long a start takes after a kill, with many nodes and many files pending: test-stage-start [NODES PENDING]. The promise is 2 s with 100,000 and 10,000; the default is a tenth of it and asserts
 * what does not depend on the machine: every pending file is there, and transactions are not counted by the file. The same with the tree file lost. */
#include "cache_world.h"

static unsigned n_nodes = 10000, n_pending = 1000;

/* A process that does all of it and is killed. */
static void build(struct cw *w) {
        pid_t pid = fork();
        if (pid == 0) {
                assert_int_equal(pool_new("worker", CW_WORKERS, &w->pool), 0);
                cw_open_bare(w, clock_system());
                struct tree *t = w->cache->tree;
                struct cursor at = { .epoch.b[0] = 7, .seq = n_nodes + 1 };
                struct snapshot_state st;
                assert_int_equal(tree_snapshot_begin(t, &at, &st), 0);
                struct node_row *rows = calloc(n_nodes, sizeof *rows);
                struct entry_row *entries = calloc(n_nodes, sizeof *entries);
                char (*names)[24] = calloc(n_nodes, sizeof *names);
                assert_true(rows && entries && names);
                rows[0] = (struct node_row) { .id = id_root, .kind = NODE_DIR, .mode = 0755, .seq = 1 };
                struct id dir = id_root;
                for (unsigned i = 1; i < n_nodes; i++) {
                        rows[i] = (struct node_row) { .id = { { 1, (uint8_t)(i >> 24), (uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i } }, .kind = i % 100 == 1 ? NODE_DIR : NODE_FILE, .mode = 0755, .seq = i,
                                                      .content = i % 100 == 1 ? (struct content) { .size = 0 } : content_empty };
                        (void)snprintf(names[i], sizeof names[i], "node %u", i);
                        entries[i - 1] = (struct entry_row) { .entry_id = i, .parent = i % 100 == 1 ? id_root : dir, .node = rows[i].id, .name = names[i], .name_bytes = strlen(names[i]), .placement = rows[i].id, .seq = i };
                        if (i % 100 == 1)
                                dir = rows[i].id;
                }
                st.nodes_end = st.entries_end = true;
                st.upto = at;
                assert_int_equal(tree_snapshot_nodes(t, rows, n_nodes, &st), 0);
                assert_int_equal(tree_snapshot_entries(t, entries, n_nodes - 1, &st), 0);
                int r;
                while ((r = tree_snapshot_step(t, &at, 1000, NULL, NULL)) > 0)
                        ;
                assert_int_equal(r, 0);
                uint8_t data[700];
                for (unsigned i = 0; i < n_pending; i++) {
                        char name[32];
                        (void)snprintf(name, sizeof name, "pending %u", i);
                        struct node n = cw_create(w, INO_ROOT, name);
                        struct file *f = cw_file(w, n.ino, true, false);
                        memset(data, (int)i, sizeof data);
                        assert_int_equal(write_at(f, 0, data, sizeof data, false, 0), sizeof data);
                        file_release(f, true);
                }
                (void)raise(SIGKILL);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
}

static void look(struct cw *w, const char *how, bool loaded) {
        int64_t before = now_ms();
        cw_open_bare(w, clock_system());
        int64_t ms = now_ms() - before;
        struct tree_totals t;
        struct cache_totals c;
        struct stages_totals s;
        assert_int_equal(tree_totals(w->cache->tree, &t), 0);
        assert_int_equal(cache_totals(w->cache, &c), 0);
        stages_totals(w->cache->stages, &s);
        print_message("%s: ready in %lld ms with %llu nodes and %u pending files\n", how, (long long)ms, (unsigned long long)t.nodes, n_pending);
        assert_int_equal(s.sealed, n_pending);
        if (loaded) {
                assert_int_equal(t.nodes, n_nodes + n_pending);
                assert_int_equal(c.pending_files, n_pending);
                assert_true(counter_get(&w->counters, sql_transactions) < 100);
        }
}

static void test_start(void **state) {
        struct cw *w = cw_new(256 * MIB, 1);
        pool_free(w->pool);
        build(w);
        assert_int_equal(pool_new("worker", CW_WORKERS, &w->pool), 0);
        look(w, "after a kill", true);
        cw_close(w);
        look(w, "after a clean end", true);
        cw_close(w);
        char path[200];
        for (unsigned i = 0; i < 3; i++) {
                (void)snprintf(path, sizeof path, "%s/tree.db%s", w->dir, i == 0 ? "" : i == 1 ? "-wal" : "-shm");
                (void)unlink(path);
        }
        look(w, "without its tree file", false);
        int64_t before = now_ms();
        cw_load(w);
        assert_int_equal(cache_loaded(w->cache), 0);
        print_message("matched after the load in %lld ms\n", (long long)(now_ms() - before));
        struct cache_totals c;
        assert_int_equal(cache_totals(w->cache, &c), 0);
        assert_int_equal(c.pending_files, n_pending);
        cw_free(w);
}

int main(int argc, char **argv) {
        if (argc > 2) {
                n_nodes = (unsigned)strtoul(argv[1], NULL, 10);
                n_pending = (unsigned)strtoul(argv[2], NULL, 10);
        }
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_start) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
