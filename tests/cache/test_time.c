/* SPDX-License-Identifier: Apache-2.0 */
/* Prints how much CPU time the tree takes here (the machine may be busy with other things), and how many bytes a node takes; asserts nothing about time. TARN_TEST_SCALE multiplies the sizes. */
#include "world.h"

#include <time.h>

static double now_s(void) {
        struct timespec ts;
        (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
        return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void report(const char *what, size_t n, double seconds) {
        printf("%-34s %9zu in %7.3f s  %10.0f/s\n", what, n, seconds, (double)n / seconds);
}

static int count_entry(void *arg, const struct tree_entry *e) {
        ++*(size_t *)arg;
        return 0;
}

static void test_local(void **state) {
        struct world w;
        char name[32];
        size_t n = 10000 * world_scale(), seen = 0;
        struct outbox_item *items = calloc(1024, sizeof(*items));
        struct node node;
        world_open(&w, 1, 2);
        struct tree_new what = { .kind = NODE_FILE, .mode = 0644 };
        double t = now_s();
        for (size_t i = 0; i < n; i++) {
                (void)snprintf(name, sizeof(name), "file-%zu.txt", i);
                MUST(tree_create(w.tree, INO_ROOT, name, strlen(name), &what, &node));
        }
        report("create", n, now_s() - t);
        t = now_s();
        for (size_t i = 0; i < n; i++) {
                uint64_t dropped;
                MUST(tree_content(w.tree, 2 + i, i + 1, 4096, 1, NULL, &dropped));
        }
        report("content into the create", n, now_s() - t);
        t = now_s();
        for (size_t i = 0; i < n; i++) {
                (void)snprintf(name, sizeof(name), "file-%zu.txt", i);
                MUST(tree_lookup(w.tree, INO_ROOT, name, strlen(name), &node));
        }
        report("lookup", n, now_s() - t);
        t = now_s();
        MUST(tree_list(w.tree, INO_ROOT, 0, count_entry, &seen));
        report("list", seen, now_s() - t);
        t = now_s();
        size_t got = 0, rounds = 0;
        for (;; rounds++) {
                size_t k = outbox_ready(&w, items, 1024, NULL);
                struct id ids[1024];
                if (k == 0)
                        break;
                for (size_t i = 0; i < k; i++)
                        ids[i] = items[i].op.id;
                MUST(outbox_mark_sent(w.tree, ids, k));
                got += k;
                arena_reset(w.arena);
        }
        report("outbox_next + mark_sent", got, now_s() - t);
        t = now_s();
        for (size_t i = 0; i < n; i++) {
                (void)snprintf(name, sizeof(name), "file-%zu.txt", i);
                MUST(tree_unlink(w.tree, INO_ROOT, name, strlen(name), false, NULL, NULL, &node));
        }
        report("unlink (sent)", n, now_s() - t);
        free(items);
        world_close(&w);
}

static void test_load(void **state) {
        struct world w;
        size_t n = 50000 * world_scale(), dirs = n / 20;
        struct node_row *rows = calloc(n + 1, sizeof(*rows));
        struct entry_row *entries = calloc(n, sizeof(*entries));
        char (*names)[32] = calloc(n, sizeof(*names));
        struct cursor c = { .epoch = { { 7 } }, .seq = n + 1 };
        struct snapshot_state st;
        world_open_bare(&w, 1, 2);
        rows[0] = (struct node_row){ .id = id_root, .kind = NODE_DIR, .mode = 0755, .seq = 1 };
        for (size_t i = 1; i <= n; i++) {
                rows[i] = (struct node_row){ .kind = i <= dirs ? NODE_DIR : NODE_FILE, .mode = 0644, .uid = 1000, .gid = 1000, .mtime_ns = 1700000000000000000 + (int64_t)i, .seq = i };
                rows[i].ctime_ns = rows[i].btime_ns = rows[i].mtime_ns;
                for (int k = 0; k < 4; k++)
                        rows[i].id.b[k] = (uint8_t)(i * 2654435761u >> (24 - 8 * k));
                rows[i].id.b[15] = 2;
                if (i > dirs) {
                        rows[i].version = rng_id(&w.rng.rng);
                        rows[i].content = (struct content){ .size = i * 37, .param = 1 };
                        w.rng.rng.fill(&w.rng.rng, rows[i].content.root.b, DIGEST_BYTES);
                }
                int len = snprintf(names[i - 1], 32, "document-%zu.odt", i);
                entries[i - 1] = (struct entry_row){ .entry_id = i, .parent = i <= dirs / 10 ? id_root : rows[1 + i % (i <= dirs ? dirs / 10 : dirs)].id, .node = rows[i].id, .name = names[i - 1],
                                                     .name_bytes = (size_t)len, .placement = rng_id(&w.rng.rng), .seq = i };
        }
        double t = now_s(), total = t;
        MUST(tree_snapshot_begin(w.tree, &c, &st));
        for (size_t i = 0; i <= n; i += 10000)
                MUST(tree_snapshot_nodes(w.tree, rows + i, MIN(n + 1 - i, (size_t)10000), &st));
        for (size_t i = 0; i < n; i += 10000)
                MUST(tree_snapshot_entries(w.tree, entries + i, MIN(n - i, (size_t)10000), &st));
        report("snapshot rows into side tables", 2 * n, now_s() - t);
        t = now_s();
        int r;
        size_t steps = 0;
        double shown = 0;
        while ((r = tree_snapshot_step(w.tree, &c, 1000, NULL, NULL)) > 0) {
                struct tree_totals totals;
                steps++;
                if (!shown && tree_totals(w.tree, &totals) == 0 && totals.complete)
                        shown = now_s();
        }
        MUST(r);
        if (!shown)
                shown = now_s();
        report("side tables into the tree", 2 * n, shown - t);
        report("first load in all", 2 * n, shown - total);
        printf("%-34s %9zu steps, giving pages back %.3f s\n", "", steps, now_s() - shown);
        tree_close(w.tree);
        struct stat sb;
        MUST(stat(w.path, &sb));
        printf("%-34s %9.0f bytes on disk for each node\n", "", (double)sb.st_size / (double)n);
        world_reopen(&w, 2);
        /* the same again, under another epoch: everything is compared, nothing changes */
        struct cursor again = { .epoch = { { 8 } }, .seq = n + 1 };
        MUST(tree_snapshot_begin(w.tree, &again, &st));
        for (size_t i = 0; i <= n; i += 10000)
                MUST(tree_snapshot_nodes(w.tree, rows + i, MIN(n + 1 - i, (size_t)10000), &st));
        for (size_t i = 0; i < n; i += 10000)
                MUST(tree_snapshot_entries(w.tree, entries + i, MIN(n - i, (size_t)10000), &st));
        t = now_s();
        w.n_notes = 0;
        while ((r = tree_snapshot_step(w.tree, &again, 1000, NULL, NULL)) > 0)
                ;
        MUST(r);
        report("the same under a new epoch", 2 * n, now_s() - t);
        assert_int_equal(w.n_notes, 0);
        /* events */
        struct event *events = calloc(5000, sizeof(*events));
        struct change *changes = calloc(5000, sizeof(*changes));
        for (size_t i = 0; i < 5000; i++) {
                changes[i] = (struct change){ .node = rows[dirs + 1 + i] };
                changes[i].node.seq = n + 2 + i;
                changes[i].node.version = rng_id(&w.rng.rng);
                changes[i].node.content.root.b[0] ^= 1;
                events[i] = (struct event){ .seq = n + 2 + i, .op = changes[i].node.version, .changes = &changes[i], .n_changes = 1 };
        }
        struct tree_applied applied;
        t = now_s();
        for (size_t i = 0; i < 5000; i += 250)
                MUST(tree_apply(w.tree, events + i, 250, NULL, world_is_open, &w, w.arena, &applied));
        report("events", 5000, now_s() - t);
        free(events);
        free(changes);
        free(rows);
        free(entries);
        free(names);
        world_close(&w);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_local), cmocka_unit_test(test_load) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
