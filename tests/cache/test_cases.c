/* SPDX-License-Identifier: Apache-2.0 */
/* Planner and apply, property by property, in many small cases: a case is a directory in which this client and another one each do a few random things while what was done travels between them. CASES of
 * them make a group: they share a tree, a server (model.c) and the journeys, so that what a transaction costs is paid once for all. For each case it must hold that
 *
 *   it ends          the outbox is empty after a bounded number of rounds
 *   it converges     the tree shows what the server has, the invariants of the tree hold, settling everything anew changes nothing
 *   order, twice     a second tree does the same things, but hears of everything otherwise: rows inside an event and inside a refusal in another order, the events of an answer in other
 *                    transactions, each of them twice, each answer that was accepted twice. It draws the same ids, has the same outbox, and in the end the same rows
 *   no byte lost     every content that anybody wrote is in some file, unless somebody who saw it wrote over it or removed its last name
 *
 * A content is known by its size, which no other has.
 *
 * `test-cache-cases N` does N cases, from seed TARN_TEST_SEED on (without it the same ones each time: what fails once in a million is looked for by hand). A failure prints the command that runs its group again. TARN_TEST_CASE=K beside it lets only case K do something, which mostly is enough and easier to read (TARN_TEST_TRACE=1). */
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "sync/planner.h"
#include "world.h"

#define CASES 40u
#define ROUNDS_MAX 60u
#define BATCH 64u
#define JOBS_MAX 16u

static const char *const names[] = { "a", "b.txt", "save.tmp", "dir" };

struct shared { _Atomic unsigned next, actions, refused, events, texts; _Atomic unsigned group[JOBS_MAX]; };

struct one { struct rng_seeded rng; struct id dir; bool idle; };
struct text { bool superseded, name_taken[2]; /* one of several, here and by the other client */ unsigned whose; };

static struct world a, b; /* b is told otherwise */
static struct model m;
static struct rng_seeded rng, other;
static struct one cases[CASES];
static struct text *texts;
static size_t n_texts, texts_room;
static uint64_t gen;
static unsigned all_cases;
static bool tracing;
static uint64_t base_seed;
static struct shared *shared;

#define SAY(...) (tracing ? (void)printf(__VA_ARGS__) : (void)0)

static uint64_t text_new(unsigned whose) {
        if (n_texts == texts_room) {
                texts_room = texts_room ? texts_room * 2 : 256;
                texts = realloc(texts, texts_room * sizeof *texts);
                assert_non_null(texts);
        }
        texts[n_texts] = (struct text){ .whose = whose };
        return ++n_texts;
}

static void supersede(uint64_t size) {
        if (size)
                texts[size - 1].superseded = true;
}

/* A name of a file with that content is taken away. If it is not the last one, the content stays, unless the other client takes the other ones: that is what two who each unlink one name get. */
static void take_name(uint64_t size, bool last, unsigned who) {
        if (!size)
                return;
        struct text *t = &texts[size - 1];
        t->name_taken[who] = true;
        t->superseded = t->superseded || last || (t->name_taken[0] && t->name_taken[1]);
}

/* ---- what is here of a case ---- */

struct found { uint64_t dir, ino; char name[32]; bool is_dir; };
struct survey { struct found v[48]; size_t n, files, dirs; uint64_t at; };

static int survey_entry(void *arg, const struct tree_entry *e) {
        struct survey *s = arg;
        if (s->n == ARRAY_SIZE(s->v) || e->node.kind > NODE_DIR || strlen(e->name) >= sizeof s->v[0].name)
                return 0;
        struct found *f = &s->v[s->n++];
        *f = (struct found){ .dir = s->at, .ino = e->node.ino, .is_dir = e->node.kind == NODE_DIR };
        (void)snprintf(f->name, sizeof f->name, "%s", e->name);
        s->files += !f->is_dir;
        s->dirs += f->is_dir;
        return 0;
}

static void survey(struct one *c, struct survey *s, uint64_t *ret_top) {
        s->n = s->files = s->dirs = 0;
        MUST(tree_find_id(a.tree, &c->dir, ret_top));
        s->at = *ret_top;
        MUST(tree_list(a.tree, s->at, 0, survey_entry, s));
        for (size_t i = 0; i < s->n; i++)
                if (s->v[i].is_dir) {
                        s->at = s->v[i].ino;
                        MUST(tree_list(a.tree, s->at, 0, survey_entry, s));
                }
}

static struct found *any_of(struct one *c, struct survey *s, bool is_dir) {
        size_t n = is_dir ? s->dirs : s->files;
        if (!n)
                return NULL;
        size_t k = rng_below(&c->rng.rng, n);
        for (size_t i = 0; i < s->n; i++)
                if (s->v[i].is_dir == is_dir && k-- == 0)
                        return &s->v[i];
        return NULL;
}

static const char *any_name(struct one *c) {
        return names[rng_below(&c->rng.rng, ARRAY_SIZE(names))];
}

/* ---- this client: the same in both trees ---- */

static uint64_t shown_at(uint64_t dir, const char *name, bool *ret_last) { /* the content that has this name, and whether it goes with it */
        struct node n;
        bool file = tree_lookup(a.tree, dir, name, strlen(name), &n) == 0 && n.kind == NODE_FILE;
        *ret_last = file && n.nlink == 1;
        return file ? n.size : 0;
}

static void write_file(struct one *c, uint64_t ino) {
        struct node n;
        uint64_t dropped;
        MUST(tree_get(a.tree, ino, &n));
        supersede(n.size);
        uint64_t size = text_new((unsigned)(c - cases));
        gen++;
        MUST(tree_content(a.tree, ino, gen, size, a.clock.real_ns, NULL, &dropped));
        MUST(tree_content(b.tree, ino, gen, size, b.clock.real_ns, NULL, &dropped));
        SAY("  local write %llu: text %llu gen %llu\n", (unsigned long long)ino, (unsigned long long)size, (unsigned long long)gen);
}

static bool make_here(struct one *c, uint64_t dir, const char *name, enum node_kind kind, struct node *ret) {
        struct tree_new what = { .kind = kind, .mode = kind == NODE_DIR ? 0755 : 0644, .uid = 1000, .gid = 1000 };
        struct node second;
        int r = tree_create(a.tree, dir, name, strlen(name), &what, ret);
        assert_int_equal(r, tree_create(b.tree, dir, name, strlen(name), &what, &second));
        SAY("  local make %s in %llu kind %d: %d\n", name, (unsigned long long)dir, (int)kind, r);
        assert_true(r == -EEXIST || (r == 0 && ret->ino == second.ino && id_equal(&ret->id, &second.id)));
        return r == 0;
}

static void unlink_here(uint64_t dir, const char *name, bool is_dir) {
        struct node n;
        bool last = false;
        uint64_t size = is_dir ? 0 : shown_at(dir, name, &last);
        int r = tree_unlink(a.tree, dir, name, strlen(name), is_dir, world_kept, &a, &n);
        assert_int_equal(r, tree_unlink(b.tree, dir, name, strlen(name), is_dir, world_kept, &b, &n));
        SAY("  local unlink %s in %llu: %d\n", name, (unsigned long long)dir, r);
        assert_true(r == 0 || (is_dir && r == -ENOTEMPTY));
        if (r == 0)
                take_name(size, last, 0);
}

static void rename_here(uint64_t dir, const char *name, uint64_t dir2, const char *name2, unsigned flags) {
        struct node moved, replaced, from, to;
        bool same = tree_lookup(a.tree, dir, name, strlen(name), &from) == 0 && tree_lookup(a.tree, dir2, name2, strlen(name2), &to) == 0 && from.ino == to.ino;
        bool last = false;
        uint64_t size = same || flags ? 0 : shown_at(dir2, name2, &last);
        int r = tree_rename(a.tree, dir, name, strlen(name), dir2, name2, strlen(name2), flags, world_kept, &a, &moved, &replaced);
        assert_int_equal(r, tree_rename(b.tree, dir, name, strlen(name), dir2, name2, strlen(name2), flags, world_kept, &b, &moved, &replaced));
        SAY("  local rename %s in %llu to %s in %llu flags %u: %d\n", name, (unsigned long long)dir, name2, (unsigned long long)dir2, flags, r);
        assert_true(r == 0 || r == -EEXIST || r == -ENOENT || r == -ENOTEMPTY || r == -EISDIR || r == -ENOTDIR || r == -EINVAL);
        if (r == 0)
                take_name(size, last, 0);
}

static void act_here(struct one *c) {
        static struct survey s;
        struct node n, second;
        uint64_t top;
        survey(c, &s, &top);
        struct found *file = any_of(c, &s, false), *dir = any_of(c, &s, true);
        uint64_t in = dir && rng_below(&c->rng.rng, 2) ? dir->ino : top;
        const char *name = any_name(c);
        switch (rng_below(&c->rng.rng, 14)) {
        case 0:
        case 1:
                if (make_here(c, in, name, NODE_FILE, &n) && rng_below(&c->rng.rng, 4))
                        write_file(c, n.ino);
                break;
        case 2:
                (void)make_here(c, in, name, NODE_DIR, &n);
                break;
        case 3:
        case 4:
        case 5:
                if (file)
                        write_file(c, file->ino);
                break;
        case 6:
        case 7:
                if (file)
                        unlink_here(file->dir, file->name, false);
                break;
        case 8:
                if (dir)
                        unlink_here(dir->dir, dir->name, true);
                break;
        case 9:
        case 10:
                if (file)
                        rename_here(file->dir, file->name, in, name, rng_below(&c->rng.rng, 6) == 0 ? RENAME_EXCHANGE : 0);
                break;
        case 11:
                if (dir)
                        rename_here(dir->dir, dir->name, top, name, 0);
                else if (file) {
                        int r = tree_link(a.tree, file->ino, in, name, strlen(name), &n);
                        assert_int_equal(r, tree_link(b.tree, file->ino, in, name, strlen(name), &second));
                        SAY("  local link %llu as %s: %d\n", (unsigned long long)file->ino, name, r);
                }
                break;
        case 12: /* a program saves a file */
                if (make_here(c, in, "save.tmp", NODE_FILE, &n)) {
                        write_file(c, n.ino);
                        rename_here(in, "save.tmp", in, name, 0);
                }
                break;
        default:
                if (file) {
                        struct tree_attrs attrs = { .mask = ATTR_MODE, .mode = 0600 + (uint32_t)rng_below(&c->rng.rng, 8) };
                        MUST(tree_setattr(a.tree, file->ino, &attrs, &n));
                        MUST(tree_setattr(b.tree, file->ino, &attrs, &second));
                }
        }
}

/* ---- the other client ---- */

static bool in_case(const struct id *dir, const struct one *c) {
        struct id at = *dir;
        for (unsigned depth = 0; depth < 10; depth++) {
                if (id_equal(&at, &c->dir))
                        return true;
                const struct model_entry *e = NULL;
                for (size_t i = 0; i < m.n_entries && !e; i++)
                        if (m.entries[i].live && id_equal(&m.entries[i].row.node, &at))
                                e = &m.entries[i];
                if (!e)
                        return false;
                at = e->row.parent;
        }
        return false;
}

static uint64_t size_there(const struct id *dir, const char *name, bool *ret_last) {
        struct model_entry *e = model_at(&m, dir, name);
        struct model_node *n = e ? model_find(&m, &e->row.node) : NULL;
        unsigned names_of = 0;
        for (size_t i = 0; n && i < m.n_entries; i++)
                names_of += m.entries[i].live && id_equal(&m.entries[i].row.node, &n->row.id);
        *ret_last = names_of == 1;
        return n && n->row.kind == NODE_FILE ? n->row.content.size : 0;
}

static void act_there(struct one *c) {
        size_t list[32], n = 0;
        struct id sub = c->dir;
        for (size_t i = 0; i < m.n_entries && n < ARRAY_SIZE(list); i++)
                if (m.entries[i].live && in_case(&m.entries[i].row.parent, c)) {
                        list[n++] = i;
                        const struct model_node *node = model_find(&m, &m.entries[i].row.node);
                        if (node->row.kind == NODE_DIR && rng_below(&c->rng.rng, 2))
                                sub = node->row.id;
                }
        const struct model_entry *e = n ? &m.entries[list[rng_below(&c->rng.rng, n)]] : NULL;
        const struct model_node *node = e ? model_find(&m, &e->row.node) : NULL;
        const char *name = any_name(c);
        struct id dir = e ? e->row.parent : c->dir;
        char old[NAME_BYTES_MAX + 1] = "";
        if (e)
                (void)snprintf(old, sizeof old, "%s", e->name);
        uint64_t size;
        bool last = false;
        int r = 0;
        unsigned verb = (unsigned)rng_below(&c->rng.rng, 9);
        switch (verb) {
        case 0:
        case 1:
                if (!model_at(&m, &sub, name))
                        (void)model_make(&m, &sub, name, NODE_FILE, text_new((unsigned)(c - cases)));
                break;
        case 2:
                (void)model_make(&m, &sub, name, NODE_DIR, 0);
                break;
        case 3:
        case 4:
                if (node && node->row.kind == NODE_FILE) {
                        supersede(node->row.content.size);
                        r = model_write(&m, &node->row.id, text_new((unsigned)(c - cases)));
                        assert_int_equal(r, RES_OK);
                }
                break;
        case 5:
                if (node && node->row.kind == NODE_FILE)
                        (void)model_chmod(&m, &node->row.id, 0400 + (uint32_t)rng_below(&c->rng.rng, 8));
                break;
        case 6:
                size = size_there(&sub, name, &last);
                if (e && model_rename(&m, &dir, old, &sub, name) == RES_OK)
                        take_name(size, last, 1);
                break;
        default:
                size = e ? size_there(&dir, old, &last) : 0;
                if (e && model_unlink(&m, &dir, old) == RES_OK)
                        take_name(size, last, 1);
        }
        SAY("  remote %u: %s, %s; seq %llu\n", verb, old, name, (unsigned long long)m.seq);
}

/* ---- what travels ---- */

static void shuffle(struct change *v, size_t n) {
        for (size_t i = n; i > 1; i--) {
                size_t k = rng_below(&other.rng, i);
                struct change swap = v[i - 1];
                v[i - 1] = v[k];
                v[k] = swap;
        }
}

static const struct change *otherwise(const struct change *v, size_t n) {
        struct change *copy = arena_alloc(b.arena, MAX(n, 1u) * sizeof *copy);
        assert_non_null(copy);
        if (n)
                memcpy(copy, v, n * sizeof *copy);
        shuffle(copy, n);
        return copy;
}

static void apply(struct world *w, const struct event *v, size_t n, uint64_t upto) {
        struct tree_applied applied;
        struct cursor c = model_cursor(&m, upto);
        MUST(tree_apply(w->tree, v, n, &c, world_is_open, w, w->arena, &applied));
}

/* Events up to seq, to the second tree in pieces, in another order inside, twice. */
static void down(uint64_t upto) {
        struct cursor c;
        size_t first = 0, n = 0;
        MUST(tree_cursor(a.tree, &c));
        if (upto <= c.seq)
                return;
        while (first < m.n_log && m.log[first].seq <= c.seq)
                first++;
        while (first + n < m.n_log && m.log[first + n].seq <= upto)
                n++;
        apply(&a, m.log + first, n, upto);
        struct event *v = arena_alloc(b.arena, MAX(n, 1u) * sizeof *v);
        assert_non_null(v);
        for (size_t i = 0; i < n; i++) {
                v[i] = m.log[first + i];
                v[i].changes = otherwise(v[i].changes, v[i].n_changes);
        }
        for (size_t at = 0; at < n;) {
                size_t k = MIN(n - at, 1 + rng_below(&other.rng, 40)), again = rng_below(&other.rng, at + 1);
                apply(&b, v + at, k, at + k == n ? upto : v[at + k - 1].seq);
                again = MAX(again, at > 10 ? at - 10 : 0);
                apply(&b, v + again, at + k - again, v[at + k - 1].seq); /* some of what was before, and all of this, again */
                at += k;
        }
        SAY("down to %llu\n", (unsigned long long)upto);
        (void)atomic_fetch_add(&shared->events, (unsigned)n);
}

static size_t up(void) {
        static struct outbox_item items[BATCH], items_b[BATCH];
        struct op_result results[BATCH];
        struct op ops[BATCH];
        struct id ids[BATCH];
        struct tree_applied applied;
        int64_t wait;
        size_t n, n_b;
        MUST(outbox_next(a.tree, a.arena, items, BATCH, &n, &wait));
        MUST(outbox_next(b.tree, b.arena, items_b, BATCH, &n_b, &wait));
        assert_int_equal(n, n_b);
        for (size_t i = 0; i < n; i++) {
                ids[i] = items[i].op.id;
                assert_true(id_equal(&ids[i], &items_b[i].op.id));
                assert_int_equal(items[i].gen, items_b[i].gen);
                ops[i] = items[i].op;
                if (items[i].gen)
                        ops[i].content = model_content(items[i].gen, items[i].op.content.size);
        }
        if (!n)
                return 0;
        MUST(outbox_mark_sent(a.tree, ids, n));
        MUST(outbox_mark_sent(b.tree, ids, n));
        for (size_t i = 0; i < n; i++) {
                results[i] = model_commit(&m, &ops[i]);
                SAY("op kind %d %.*s gen %llu: code %d seq %llu\n", (int)ops[i].kind, (int)ops[i].name_bytes, ops[i].name ? ops[i].name : "", (unsigned long long)items[i].gen,
                    (int)results[i].code, (unsigned long long)results[i].seq);
        }
        if (rng_below(&rng.rng, 4) == 0)
                down(m.seq); /* the events are faster */
        bool lost = rng_below(&rng.rng, 8) == 0;
        for (size_t i = 0; i < n; i++) {
                struct op_result told = results[i];
                if (lost) {
                        int r = outbox_unsend(a.tree, &ids[i]);
                        assert_true(r == 0 || r == -ENOENT);
                        assert_int_equal(r, outbox_unsend(b.tree, &ids[i]));
                        continue;
                }
                told.current = otherwise(told.current, told.n_current);
                if (told.code == RES_OK) {
                        MUST(tree_accepted(a.tree, &results[i], world_is_open, &a, a.arena, &applied));
                        MUST(tree_accepted(b.tree, &told, world_is_open, &b, b.arena, &applied));
                        MUST(tree_accepted(b.tree, &told, world_is_open, &b, b.arena, &applied));
                } else {
                        sync_refused(&a, &items[i], &ops[i], &results[i]);
                        sync_refused(&b, &items_b[i], &ops[i], &told);
                        (void)atomic_fetch_add(&shared->refused, 1);
                }
        }
        return n;
}

static void later(int64_t ms) {
        clock_manual_advance(&a.clock, ms);
        clock_manual_advance(&b.clock, ms);
        arena_reset(a.arena);
        arena_reset(b.arena);
}

static void until_quiet(void) {
        for (unsigned round = 0; round < ROUNDS_MAX; round++) {
                struct outbox_totals totals;
                later(3000);
                down(m.seq);
                (void)up();
                MUST(outbox_totals(a.tree, &totals));
                if (!totals.items) {
                        down(m.seq);
                        return;
                }
        }
        world_print(&a);
        fail_msg("the outbox does not come to an end");
}

/* ---- a group ---- */

static bool *is_here;

static int find_text(void *arg, const struct tree_entry *e) {
        if (e->node.kind == NODE_DIR)
                return tree_list(a.tree, e->node.ino, 0, find_text, arg);
        if (e->node.kind == NODE_FILE && e->node.size)
                is_here[e->node.size - 1] = true;
        return 0;
}

static void no_byte_lost(void) {
        is_here = calloc(n_texts + 1, sizeof *is_here);
        assert_non_null(is_here);
        MUST(tree_list(a.tree, INO_ROOT, 0, find_text, NULL));
        for (size_t i = 0; i < n_texts; i++)
                if (!texts[i].superseded && !is_here[i])
                        fail_msg("case %u: text %zu is gone, and nobody who saw it wrote over it", texts[i].whose, i + 1);
        free(is_here);
        (void)atomic_fetch_add(&shared->texts, (unsigned)n_texts);
}

static void same_rows(void) {
        uint64_t x[WORLD_SUMS], y[WORLD_SUMS];
        world_sums(a.tree, x);
        world_sums(b.tree, y);
        for (unsigned i = 0; i < WORLD_SUMS; i++)
                if (x[i] != y[i]) {
                        static const char *const of[] = { "nodes", "names", "outbox", "server's rows" };
                        world_print(&a);
                        world_print(&b);
                        fail_msg("the tree that was told in another order and twice has other %s", of[i]);
                }
}

static void group(uint64_t seed) {
        const char *only = getenv("TARN_TEST_CASE");
        rng_seed(&rng, seed);
        rng_seed(&other, seed ^ 0x07e4ull);
        world_open(&a, seed, 0);
        world_open(&b, seed, 0);
        model_open(&m, seed);
        n_texts = 0;
        gen = 0;
        for (unsigned i = 0; i < CASES; i++) {
                char name[16];
                (void)snprintf(name, sizeof name, "case%u", i);
                rng_seed(&cases[i].rng, seed * CASES + i + 1);
                cases[i].dir = model_make(&m, &id_root, name, NODE_DIR, 0);
                cases[i].idle = only && strtoul(only, NULL, 10) != i;
        }
        down(m.seq);
        unsigned rounds = 2 + (unsigned)rng_below(&rng.rng, 2);
        for (unsigned round = 0; round < rounds; round++) {
                for (unsigned i = 0; i < CASES; i++)
                        for (uint64_t k = (round ? 2 : 1) + rng_below(&cases[i].rng.rng, 3); k > 0; k--) {
                                if (cases[i].idle)
                                        continue;
                                SAY("case %u\n", i);
                                if (rng_below(&cases[i].rng.rng, 2))
                                        act_here(&cases[i]);
                                else
                                        act_there(&cases[i]);
                                (void)atomic_fetch_add(&shared->actions, 1);
                        }
                later((int64_t)rng_below(&rng.rng, 3000));
                uint64_t how = rng_below(&rng.rng, 5);
                if (round == 0 && rng_below(&rng.rng, 4)) { /* something that both know */
                        down(m.seq);
                        (void)up();
                        down(m.seq);
                        continue;
                }
                if (how < 3 && m.n_log) /* up to a moment in between */
                        down(how ? m.seq : m.log[rng_below(&rng.rng, m.n_log)].seq);
                if (how > 1)
                        (void)up();
        }
        until_quiet();
        compare(&a, &m);
        same_rows();
        no_byte_lost();
        model_close(&m);
        world_close(&a);
        world_close(&b);
}

static void test_cases(void **state) {
        const char *only = getenv("TARN_TEST_RUN");
        unsigned groups = all_cases / CASES;
        unsigned jobs = (unsigned)MIN(MAX(sysconf(_SC_NPROCESSORS_ONLN), 1l), (long)JOBS_MAX);
        struct timespec t0, t1;
        pid_t pid[JOBS_MAX];
        tracing = getenv("TARN_TEST_TRACE");
        if (only) {
                group(base_seed + strtoul(only, NULL, 10));
                return;
        }
        (void)clock_gettime(CLOCK_MONOTONIC, &t0);
        for (unsigned j = 0; j < jobs; j++) {
                pid[j] = fork();
                assert_true(pid[j] >= 0);
                if (pid[j] > 0)
                        continue;
                if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
                        _exit(1);
                for (unsigned i; (i = atomic_fetch_add(&shared->next, 1)) < groups;) {
                        shared->group[j] = i;
                        group(base_seed + i); /* a failure ends main with an error */
                }
                _exit(0);
        }
        unsigned bad = 0;
        for (unsigned j = 0; j < jobs; j++) {
                int status;
                assert_int_equal(waitpid(pid[j], &status, 0), pid[j]);
                if (status == 0)
                        continue;
                bad++;
                print_error("group %u failed\n  again: TARN_TEST_SEED=%llu TARN_TEST_RUN=%u test-cache-cases\n", shared->group[j], (unsigned long long)base_seed, shared->group[j]);
        }
        (void)clock_gettime(CLOCK_MONOTONIC, &t1);
        double s = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
        print_message("%u cases in %.0f s, %.0f/s in %u processes: %u actions, %u events, %u refusals, %u contents\n", groups * CASES, s, groups * CASES / s, jobs, shared->actions, shared->events,
                      shared->refused, shared->texts);
        assert_int_equal(bad, 0);
        assert_true(shared->refused > groups && shared->texts > groups); /* else nothing met */
}

int main(int argc, char **argv) {
        struct stat st;
        all_cases = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : ALL_CASES * world_scale();
        base_seed = getenv("TARN_TEST_SEED") ? world_seed() & UINT32_MAX : 1;
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (shared == MAP_FAILED)
                return 1;
        if (!getenv("TMPDIR") && stat("/dev/shm", &st) == 0)
                world_at = "/dev/shm";
        world_vfs = "unix-excl"; /* one process has the files: no locks in them */
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_cases) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
