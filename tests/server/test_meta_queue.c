/* SPDX-License-Identifier: Apache-2.0 */
/* test_meta_queue.c: group commit. The queue alone with a made-up database that fails on demand; then the real one: sixteen threads, the n-th database call failing,
 * a process that dies without a word, and how fast small creates are. */
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/thread.h"
#include "meta_int.h"
#include "test_meta_kit.h"

/* ---- the queue alone ---- */

struct fake { int begun, committed, rolled_back, fail_begin, fail_commit, open; };
static int fake_begin(void *arg) {
        struct fake *f = arg;
        f->begun++;
        if (f->fail_begin > 0 && --f->fail_begin == 0)
                return -EAGAIN;
        f->open = 1;
        return 0;
}
static int fake_commit(void *arg, void **ret_note) {
        struct fake *f = arg;
        if (f->fail_commit > 0 && --f->fail_commit == 0)
                return -EIO;
        f->open = 0;
        f->committed++;
        *ret_note = NULL;
        return 0;
}
static void fake_rollback(void *arg) {
        struct fake *f = arg;
        f->open = 0;
        f->rolled_back++;
}
static void fake_committed(void *arg, void *note) {}

struct counter_job { struct commit_job job; struct fake *f; int steps, next, kept, bad_step, given_up, last_err; };
static int counter_step(struct commit_job *j) {
        struct counter_job *c = container_of(j, struct counter_job, job);
        assert_int_equal(c->f->open, 1);
        if (c->next == c->bad_step)
                return -EIO;
        return ++c->next < c->steps;
}
static void counter_rewind(struct commit_job *j) {
        struct counter_job *c = container_of(j, struct counter_job, job);
        c->next = c->kept;
}
static void counter_keep(struct commit_job *j) {
        struct counter_job *c = container_of(j, struct counter_job, job);
        c->kept = c->next;
}
static int counter_give_up(struct commit_job *j, int err) {
        struct counter_job *c = container_of(j, struct counter_job, job);
        c->given_up++;
        c->last_err = err;
        c->kept = ++c->next;
        return c->next < c->steps;
}

static struct counter_job counter_of(struct fake *f, int steps, int bad_step) {
        return (struct counter_job){ .job = { .step = counter_step, .rewind = counter_rewind, .keep = counter_keep, .give_up = counter_give_up },
                                     .f = f, .steps = steps, .bad_step = bad_step };
}

static void queue_alone(void **state) {
        for (int threaded = 0; threaded < 2; threaded++) {
                struct fake f = { 0 };
                struct commit_queue_config c = { .begin = fake_begin, .commit = fake_commit, .rollback = fake_rollback, .committed = fake_committed, .arg = &f,
                                                 .threaded = threaded, .max_ops = 10, .max_ms = 1000000, .clock = clock_system() };
                struct commit_queue *q;
                assert_int_equal(commit_queue_new(&c, &q), 0);
                struct counter_job j = counter_of(&f, 25, -1);
                assert_int_equal(commit_queue_run(q, &j.job), 0);
                assert_int_equal(j.kept, 25);
                assert_int_equal(f.committed, 3); /* 10 + 10 + 5 */
                /* one bad step: its group is rolled back and redone one by one, only that step is given up */
                f = (struct fake){ 0 };
                j = counter_of(&f, 25, 13);
                assert_int_equal(commit_queue_run(q, &j.job), 0);
                assert_int_equal(j.kept, 25);
                assert_int_equal(j.given_up, 1);
                assert_int_equal(j.last_err, -EIO);
                assert_int_equal(f.rolled_back, 2);
                /* the commit fails once: everything is done again, nothing is lost */
                f = (struct fake){ .fail_commit = 2 };
                j = counter_of(&f, 25, -1);
                assert_int_equal(commit_queue_run(q, &j.job), 0);
                assert_int_equal(j.kept, 25);
                assert_int_equal(j.given_up, 0);
                /* the beginning fails, alone too */
                f = (struct fake){ .fail_begin = 1 };
                j = counter_of(&f, 3, -1);
                assert_int_equal(commit_queue_run(q, &j.job), 0);
                assert_int_equal(j.kept, 3);
                assert_int_equal(j.given_up, 0);
                struct commit_queue_stats s;
                commit_queue_stats_get(q, &s);
                assert_int_equal(s.largest_group, 10);
                assert_int_equal(s.rollbacks, 3);
                commit_queue_free(q);
        }
}

/* ---- sixteen threads ---- */

#define THREADS 16
struct worker { struct kit *k; int i, rounds; struct meta_subject *who; uint64_t seqs[4096]; uint8_t marks[4096][8]; size_t n; atomic_int *failures; };

static void *work(void *arg) {
        struct worker *w = arg;
        struct arena *a;
        if (arena_new(64u << 20, &a) < 0)
                return NULL;
        for (int round = 0; round < w->rounds; round++) {
                struct op ops[8];
                char names[8][32];
                for (int i = 0; i < 8; i++) {
                        (void)snprintf(names[i], sizeof names[i], "t%d-%d-%d", i == 7 ? 0 : w->i, round, i); /* the last one is everybody's */
                        ops[i] = (struct op){ .id = rng_id(rng_system()), .kind = OP_CREATE, .node = rng_id(rng_system()), .parent = id_root, .name = names[i],
                                              .name_bytes = strlen(names[i]), .attrs = { .kind = i == 7 ? NODE_FIFO : NODE_DIR, .mode = 0755 }, .time_ns = 1 };
                }
                struct meta_batch b = { .subject = w->who, .ws = w->k->ws, .ops = ops, .n_ops = 8, .arena = a };
                if (meta_commit(w->k->m, &b) < 0)
                        atomic_fetch_add(w->failures, 1);
                for (int i = 0; i < 8; i++) {
                        if (b.results[i].code == RES_OK) {
                                w->seqs[w->n] = b.results[i].seq;
                                memcpy(w->marks[w->n++], b.results[i].mark, 8);
                        } else if (i < 7 || b.results[i].code != RES_EXISTS)
                                atomic_fetch_add(w->failures, 1);
                }
                struct node_row row; /* what was answered is there for readers */
                if (meta_resolve(w->k->m, w->k->ws, names[0], a, &row) < 0)
                        atomic_fetch_add(w->failures, 1);
                arena_reset(a);
        }
        arena_free(a);
        return NULL;
}

static atomic_uint_fast64_t newest, notified;
static void on_notify(void *arg, uint64_t ws, const char *name, uint64_t seq) {
        uint64_t before = atomic_exchange(&newest, seq);
        if (before < seq && strcmp(name, "w") == 0)
                atomic_fetch_add(&notified, 1);
}

static void many_threads(void **state) {
        struct kit k;
        kit_open_threaded(&k);
        k.m->c.notify = on_notify; /* before any thread */
        atomic_store(&newest, 0);
        atomic_int failures = 0;
        struct worker *w = calloc(THREADS, sizeof *w);
        pthread_t threads[THREADS];
        int rounds = kit_on_disk ? 12 : 40;
        for (int i = 0; i < THREADS; i++) {
                w[i] = (struct worker){ .k = &k, .i = i + 1, .rounds = rounds, .who = &k.ann, .failures = &failures };
                assert_int_equal(thread_start(&threads[i], "worker", work, &w[i]), 0);
        }
        for (int i = 0; i < THREADS; i++)
                pthread_join(threads[i], NULL);
        assert_int_equal(failures, 0);
        size_t total = 0;
        for (int i = 0; i < THREADS; i++)
                total += w[i].n;
        assert_int_equal(total, (size_t)THREADS * rounds * 7 + rounds); /* one of sixteen wins the common name */
        /* dense seqs, each once; marks all different; each caller's in order */
        bool *seen = calloc(total + 1, 1);
        uint64_t *marks = calloc(total, sizeof *marks);
        size_t n = 0;
        for (int i = 0; i < THREADS; i++)
                for (size_t e = 0; e < w[i].n; e++) {
                        assert_true(w[i].seqs[e] >= 1 && w[i].seqs[e] <= total && !seen[w[i].seqs[e]]);
                        assert_true(e == 0 || w[i].seqs[e] > w[i].seqs[e - 1]);
                        seen[w[i].seqs[e]] = true;
                        memcpy(&marks[n++], w[i].marks[e], 8);
                }
        for (size_t i = 0; i < n; i++)
                for (size_t e = i + 1; e < n; e++)
                        assert_true(marks[i] != marks[e]);
        assert_int_equal(atomic_load(&newest), total);
        struct meta_stats s;
        assert_int_equal(meta_stats(k.m, &s), 0);
        assert_int_equal(s.events, total);
        assert_int_equal(s.rollbacks, 0);
        print_message("%llu steps in %llu transactions, largest group %llu\n", (unsigned long long)s.steps, (unsigned long long)s.transactions,
                      (unsigned long long)s.largest_group);
        free(marks);
        free(seen);
        free(w);
        kit_close(&k);
}

/* ---- the n-th call fails ---- */

static struct sql_ops broken;
static const struct sql_ops *whole;
static int calls, fail_from, fail_to;
static bool fails(void) {
        calls++;
        return calls >= fail_from && calls < fail_to;
}
static int broken_step(struct sql_stmt *st) { return fails() ? -EIO : whole->step(st); }
static int broken_commit(struct sql *db) { return fails() ? -ENOSPC : whole->commit(db); }
static int broken_begin(struct sql *db, bool write) { return fails() ? -EAGAIN : whole->begin(db, write); }

static void nth_failure(void **state) {
        struct kit k;
        kit_open(&k);
        whole = k.m->writer->ops;
        broken = *whole;
        broken.step = broken_step;
        broken.commit = broken_commit;
        broken.begin = broken_begin;
        struct op f = op_file(&k, id_root, "f", kit_block(&k, &k.ann, k.ws, "one"));
        expect(&k, &f, RES_OK);
        size_t busy = 0, accepted = 1, n;
        struct id version = f.id;
        for (n = 1; n < 400; n++) {
                char name[16], text[16];
                (void)snprintf(name, sizeof name, "d%zu", n);
                (void)snprintf(text, sizeof text, "text %zu", n);
                struct op ops[3] = { op_create(&k, NODE_DIR, id_root, name), op_content(&k, f.node, version, content_of(text)), op_create(&k, NODE_DIR, id_root, "last") };
                ops[2].parent = ops[0].node;
                struct meta_block fresh = { .hash = ops[1].content.root, .raw_bytes = (uint32_t)ops[1].content.size, .stored_bytes = (uint32_t)ops[1].content.size };
                char object[33];
                (void)snprintf(object, sizeof object, "%032zu", n);
                struct meta_batch b = { .subject = &k.ann, .ws = k.ws, .ops = ops, .n_ops = 3, .object = object, .object_bytes = ops[1].content.size, .blocks = &fresh, .n_blocks = 1,
                                        .arena = k.a };
                calls = 0, fail_from = (int)n, fail_to = (int)n + 1 + (n % 3 == 0 ? 60 : 0); /* once, or for so long that the retry alone fails too */
                k.m->writer->ops = &broken;
                int r = meta_commit(k.m, &b);
                k.m->writer->ops = whole;
                assert_int_equal(r, 0);
                bool reached = calls >= fail_from;
                for (int i = 0; i < 3; i++) {
                        if (b.results[i].code == RES_OK)
                                accepted++;
                        else if (b.results[i].code == RES_BUSY)
                                busy++;
                        else
                                assert_true(i == 2 && b.results[i].code == RES_NOT_FOUND && b.results[0].code == RES_BUSY);
                }
                /* again, undisturbed: what was accepted stays, the rest happens now */
                assert_int_equal(meta_commit(k.m, &b), 0);
                for (int i = 0; i < 3; i++)
                        assert_int_equal(b.results[i].code, RES_OK);
                version = ops[1].id;
                struct meta_workspace w;
                assert_int_equal(meta_access(k.m, NULL, "w", ROLE_NONE, &w), 0);
                assert_int_equal(w.at.seq, 1 + 3 * n);
                assert_int_equal(w.nodes, 2 + 2 * n);
                kit_reset(&k);
                if (!reached)
                        break;
        }
        print_message("%zu calls tried, %zu operations busy\n", n, busy);
        assert_true(n > 30 && n < 400 && busy > 0);
        struct meta_workspace w;
        assert_int_equal(meta_access(k.m, NULL, "w", ROLE_NONE, &w), 0);
        uint64_t bytes = 3;
        for (size_t i = 1; i <= n; i++)
                bytes += (size_t)snprintf(NULL, 0, "text %zu", i);
        assert_int_equal(w.used_bytes, bytes); /* neither twice nor missing */
        assert_int_equal(w.reserved_bytes, 0);
        kit_close(&k);
}

/* ---- a process that dies ---- */

static void crash_keeps_acknowledged(void **state) {
        if (!kit_on_disk)
                return;
        struct kit k;
        kit_open(&k);
        meta_close(k.m);
        size_t acknowledged = 0, lives = 6;
        uint64_t last_seq = 0;
        for (size_t life = 0; life < lives; life++) {
                int pipes[2];
                assert_int_equal(pipe(pipes), 0);
                fflush(stdout);
                pid_t pid = fork();
                assert_true(pid >= 0);
                if (pid == 0) { /* says each acknowledged seq and name, and dies in the middle of it */
                        struct arena *a;
                        struct meta *m;
                        char why[100];
                        struct meta_config c = { .path = k.path, .clock = clock_system(), .rng = rng_system(), .threaded = true, .cheap_passwords = true };
                        if (meta_open(&c, &m, why, sizeof why) < 0 || arena_new(64u << 20, &a) < 0)
                                _exit(3);
                        for (unsigned i = 0;; i++) {
                                struct op ops[5];
                                char names[5][40];
                                for (int o = 0; o < 5; o++) {
                                        (void)snprintf(names[o], sizeof names[o], "l%zu-%u-%d", life, i, o);
                                        ops[o] = (struct op){ .id = rng_id(rng_system()), .kind = OP_CREATE, .node = rng_id(rng_system()), .parent = id_root, .name = names[o],
                                                              .name_bytes = strlen(names[o]), .attrs = { .kind = NODE_DIR, .mode = 0755 } };
                                }
                                struct meta_batch b = { .subject = &k.ann, .ws = k.ws, .ops = ops, .n_ops = 5, .arena = a };
                                if (meta_commit(m, &b) < 0)
                                        _exit(3);
                                for (int o = 0; o < 5; o++) {
                                        if (b.results[o].code != RES_OK)
                                                _exit(3);
                                        char line[80];
                                        int n = snprintf(line, sizeof line, "%llu %s\n", (unsigned long long)b.results[o].seq, names[o]);
                                        if (write(pipes[1], line, (size_t)n) != n)
                                                _exit(3);
                                }
                                arena_reset(a);
                                if (i == 3 + 5 * life)
                                        _exit(7);
                        }
                }
                close(pipes[1]);
                FILE *f = fdopen(pipes[0], "r");
                char (*names)[40] = calloc(1000, sizeof *names);
                unsigned long long seq;
                size_t n = 0;
                while (n < 1000 && fscanf(f, "%llu %39s", &seq, names[n]) == 2) {
                        assert_true(seq > last_seq);
                        last_seq = seq;
                        n++;
                }
                fclose(f);
                int status;
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
                acknowledged += n;
                struct meta_config c = { .path = k.path, .clock = clock_system(), .rng = rng_system(), .cheap_passwords = true };
                char why[100];
                assert_int_equal(meta_open(&c, &k.m, why, sizeof why), 0);
                struct node_row row;
                for (size_t i = 0; i < n; i++)
                        assert_int_equal(meta_resolve(k.m, k.ws, names[i], k.a, &row), 0);
                struct meta_workspace w;
                assert_int_equal(meta_access(k.m, NULL, "w", ROLE_NONE, &w), 0);
                assert_int_equal(w.at.seq, acknowledged);
                kit_reset(&k);
                meta_close(k.m);
                free(names);
        }
        print_message("%zu operations acknowledged in %zu lives, none lost\n", acknowledged, lives);
        k.m = NULL;
        kit_close(&k);
}

/* ---- how fast ---- */

static void speed_of_creates(void **state) {
        struct kit k;
        kit_open(&k);
        enum { BATCH = 500, ROUNDS = 10 };
        struct op *ops = calloc(BATCH, sizeof *ops);
        char (*names)[24] = calloc(BATCH, sizeof *names);
        struct meta_block *blocks = calloc(BATCH, sizeof *blocks);
        struct op dir = op_create(&k, NODE_DIR, id_root, "dir");
        expect(&k, &dir, RES_OK);
        struct timespec t0, t1;
        double s = 0;
        for (int round = 0; round < ROUNDS; round++) {
                char object[33];
                (void)snprintf(object, sizeof object, "%032d", round);
                for (int i = 0; i < BATCH; i++) {
                        (void)snprintf(names[i], sizeof names[i], "file-%d-%d.txt", round, i);
                        ops[i] = op_file(&k, dir.node, names[i], content_of(names[i]));
                        blocks[i] = (struct meta_block){ .hash = ops[i].content.root, .raw_bytes = (uint32_t)ops[i].content.size, .stored_bytes = (uint32_t)ops[i].content.size,
                                                         .offset = (uint64_t)i * 24 };
                }
                struct meta_batch b = { .subject = &k.ann, .ws = k.ws, .ops = ops, .n_ops = BATCH, .object = object, .object_bytes = BATCH * 24, .blocks = blocks, .n_blocks = BATCH,
                                        .arena = k.a };
                clock_gettime(CLOCK_MONOTONIC, &t0);
                assert_int_equal(meta_commit(k.m, &b), 0);
                clock_gettime(CLOCK_MONOTONIC, &t1);
                s += (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
                for (int i = 0; i < BATCH; i++)
                        assert_int_equal(b.results[i].code, RES_OK);
                kit_reset(&k);
        }
        print_message("small creates with content: %.0f/s\n", BATCH * ROUNDS / s);
        free(blocks);
        free(names);
        free(ops);
        kit_close(&k);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(queue_alone), cmocka_unit_test(many_threads), cmocka_unit_test(nth_failure), cmocka_unit_test(crash_keeps_acknowledged),
                cmocka_unit_test(speed_of_creates),
        };
        return kit_main(tests, ARRAY_SIZE(tests));
}
