/* SPDX-License-Identifier: Apache-2.0 */
/* test_nth.c: each failure of the disk and of memory (nth.h) in a run of ordinary life of a cache: saves, patches, truncates, fsyncs, renames over, unlinks, uploads, stages that become blobs,
 * reads through an empty cache; and in the start after it. The n-th call fails, once or from then on, for each n. Then, without failures: what is shown, what is after a close and a start, after a kill
 * and a start, after a power cut and a start is what the calls were told; all of it gets to the server and back; nothing is left open.
 *
 * usage: test_nth [KIND [N [once|ever]]] */
#include "nth_world.h"

#define LIMIT (256u * MIB)

static void life(struct nw *x) {
        struct entry *s = nw_entry(x, "small"), *l = nw_entry(x, "large"), *h = nw_entry(x, "huge"), *t = nw_entry(x, "draft"), *o = nw_entry(x, "other");
        /* new files: small, growing out of the shared log, fsynced in between */
        if (nw_open_file(x, s, false)) {
                nw_write(x, s, 0, 3000);
                nw_write(x, s, 3000, 500);
                nw_fsync(x, s);
                nw_close(x, s);
        }
        if (nw_open_file(x, l, false)) {
                for (size_t at = 0; at < 200000; at += 50000)
                        nw_write(x, l, at, 50000);
                nw_fsync(x, l);
                nw_write(x, l, 200000, 30000);
                nw_close(x, l);
        }
        nw_turn(x);
        (void)nw_send(x);
        nw_turn(x);
        /* patches of what is on the server, truncates, holes */
        if (nw_open_file(x, l, false)) {
                nw_write(x, l, 90000, 5000);
                nw_punch(x, l, 100000, 20000);
                nw_close(x, l);
        }
        nw_size(x, s, 1000);
        if (nw_open_file(x, s, false)) {
                nw_write(x, s, 2000, 100);
                nw_fsync(x, s);
        }
        /* a file with a blob file of its own */
        if (nw_open_file(x, h, false)) {
                nw_write(x, h, 0, 700000);
                nw_write(x, h, 700000, 700000);
                nw_close(x, h);
        }
        (void)nw_send(x);
        nw_turn(x);
        nw_close(x, s);
        /* write-temp, fsync, rename over */
        for (int i = 0; i < 2; i++) {
                if (nw_open_file(x, t, true)) {
                        nw_write(x, t, 0, i ? 90000 : 4000);
                        nw_fsync(x, t);
                        nw_close(x, t);
                }
                nw_rename(x, t, i ? l : s);
        }
        if (nw_open_file(x, h, false)) {
                nw_write(x, h, 500000, 4096);
                nw_size(x, h, 1300000);
                nw_close(x, h);
        }
        if (nw_open_file(x, o, false)) {
                nw_write(x, o, 0, 100);
                nw_close(x, o);
        }
        nw_turn(x);
        (void)nw_send(x);
        nw_unlink(x, o);
        nw_turn(x);
        /* through an empty cache */
        nth_step("evict");
        (void)told(x, NTH(blobs_evict_all(x->w->cache->blobs)), "evict");
        struct node n;
        if (nw_row(x, h, &n) == 0) {
                struct file *f;
                nth_step("read");
                int r = NTH(file_open(x->w->cache, n.ino, n.incarnation, false, false, &f));
                if (!told(x, r, "open")) {
                        uint8_t *buf = malloc(SIZE_MAX_);
                        ssize_t got = nw_read(x->w, f, 0, buf, SIZE_MAX_);
                        if (!told(x, (int)MIN(got, (ssize_t)0), "read") && !h->spoiled && ((size_t)got != h->n || memcmp(buf, h->p, h->n)))
                                fail_msg("read: wrong bytes");
                        free(buf);
                        NTH_DO(file_release(f, false));
                }
        }
        nw_turn(x);
}

#define BUDGET 70u /* per kind, in the suite */
static unsigned tells;
static int only_kind = -1, only_n, only_ever = -1;

static void start_copy(struct nw *x, const char *dir, const char *what, enum look how) {
        nth_phase(what);
        struct nw y = *x;
        struct cw *w = x->w;
        struct entry saved[NAMES];
        struct server_node *nodes = w->n_nodes ? memcpy(malloc(w->n_nodes * sizeof *nodes), w->nodes, w->n_nodes * sizeof *nodes) : NULL;
        size_t n_nodes = w->n_nodes;
        uint64_t seq = w->seq, entry_id = w->entry_id;
        char home[sizeof w->dir];
        memcpy(saved, x->e, sizeof saved);
        memcpy(home, w->dir, sizeof home);
        (void)snprintf(w->dir, sizeof w->dir, "%s", dir);
        for (size_t i = 0; i < x->n_e; i++) {
                x->e[i].p = memcpy(malloc(SIZE_MAX_), x->e[i].p, x->e[i].n);
                x->e[i].f = NULL;
        }
        nw_open(w);
        nw_look(x, how, what);
        nw_finish(x, what);
        cw_close(w);
        remove_tree(w->dir);
        for (size_t i = 0; i < x->n_e; i++)
                free(x->e[i].p);
        *x = y;
        memcpy(w->dir, home, sizeof home);
        free(w->nodes);
        w->nodes = nodes;
        w->n_nodes = n_nodes;
        w->seq = seq;
        w->entry_id = entry_id;
}

/* One run. False: no failure was met. */
static bool one(enum nth_kind kind, unsigned n, bool ever) {
        struct nw x;
        nth_note("%s %u %s", nth_names[kind], n, ever ? "ever" : "once");
        nw_new(&x, LIMIT);
        int before = nth_descriptors();
        nw_open(x.w);
        assert_int_equal(cache_sync(x.w->cache), 0);
        nth_phase("run");
        nth_arm(kind, n, ever);
        life(&x);
        bool met = nth_disarm();
        nth_phase("now");
        tells += x.told > 0;
        char killed[200], cut[200];
        (void)snprintf(killed, sizeof killed, "%s/killed", x.home);
        (void)snprintf(cut, sizeof cut, "%s/cut", x.home);
        bool all = only_n || getenv("TARN_TEST_SCALE"), kills = all || n % 3 == 0, cuts = all || n % 3 == 1;
        if (kills)
                copy_dir(x.w->dir, killed);
        if (cuts) {
                copy_dir(x.w->dir, cut);
                cut_power(cut);
        }
        nw_look(&x, LOOK_NOW, "now");
        for (size_t i = 0; i < x.n_e; i++)
                if (x.e[i].f) {
                        file_release(x.e[i].f, true);
                        x.e[i].f = NULL;
                }
        cw_close(x.w);
        if (kills)
                start_copy(&x, killed, "killed", LOOK_NOW);
        if (cuts)
                start_copy(&x, cut, "power cut", LOOK_CUT);
        if (all || n % 3 == 2) {
                nth_phase("closed");
                nw_open(x.w);
                nw_look(&x, LOOK_NOW, "after a start");
                nw_finish(&x, "after a start");
                cw_close(x.w);
        }
        nw_free(&x);
        int after = nth_descriptors();
        if (after != before)
                fail_msg("%d descriptors, %d before", after, before);
        return met;
}

static void each(enum nth_kind first, enum nth_kind last) {
        for (enum nth_kind kind = first; kind <= last; kind++)
                for (int ever = 0; ever < 2; ever++) {
                        if ((only_kind >= 0 && (int)kind != only_kind) || (only_ever >= 0 && ever != only_ever))
                                continue;
                        tells = 0;
                        int64_t start = now_ms();
                        unsigned failed = only_n ? one(kind, (unsigned)only_n, ever) : nth_each(kind, ever, BUDGET, one);
                        print_message("%s, %s: %u of %u failed, %u told, %lld ms\n", nth_names[kind], ever ? "from then on" : "once", failed, nth_calls(), tells, (long long)(now_ms() - start));
                }
}

static void test_write(void **state) { each(NTH_WRITE, NTH_SHORT); }
static void test_others(void **state) { each(NTH_SYNC, NTH_READ); }
static void test_alloc(void **state) { each(NTH_ALLOC, NTH_ALLOC); }

static int after(void **state) {
        nth_print();
        return 0;
}

int main(int argc, char **argv) {
        only_kind = argc > 1 ? (int)strtol(argv[1], NULL, 10) : -1;
        only_n = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
        only_ever = argc > 3 ? !strcmp(argv[3], "ever") : -1;
        if (argc <= 4)
                log_set_level((enum log_level)-1);
        const struct CMUnitTest tests[] = { cmocka_unit_test_teardown(test_write, after), cmocka_unit_test_teardown(test_others, after), cmocka_unit_test_teardown(test_alloc, after) };
        return cmocka_run_group_tests_name("nth", tests, NULL, NULL);
}
