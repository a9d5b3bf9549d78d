/* SPDX-License-Identifier: Apache-2.0 */
/* Random local verbs and random operations of another client meet; events come late, early, twice; answers come before or after their events, or not at all; the process is opened anew. At
 * the end both sides show the same, and at every moment the invariants of world_check hold. */
#include "world.h"

static uint64_t base_seed;

static const char *const names[] = { "a", "b", "c", "dir", "e.txt", "f~", "g", "save.tmp" };

struct pick { struct world *w; uint64_t dirs[64], files[64], file_dir[64]; char file_name[64][NAME_BYTES_MAX + 1], dir_name[64][NAME_BYTES_MAX + 1]; uint64_t dir_parent[64]; size_t n_dirs, n_files; uint64_t at; };

static int pick_entry(void *arg, const struct tree_entry *e) {
        struct pick *p = arg;
        if (e->node.kind == NODE_DIR && p->n_dirs < 64) {
                p->dir_parent[p->n_dirs] = p->at;
                (void)snprintf(p->dir_name[p->n_dirs], sizeof(p->dir_name[0]), "%s", e->name);
                p->dirs[p->n_dirs++] = e->node.ino;
        } else if (e->node.kind == NODE_FILE && p->n_files < 64) {
                p->file_dir[p->n_files] = p->at;
                (void)snprintf(p->file_name[p->n_files], sizeof(p->file_name[0]), "%s", e->name);
                p->files[p->n_files++] = e->node.ino;
        }
        return 0;
}

static void survey(struct world *w, struct pick *p) {
        memset(p, 0, sizeof(*p));
        p->dirs[p->n_dirs++] = INO_ROOT;
        for (size_t i = 0; i < p->n_dirs; i++) {
                p->at = p->dirs[i];
                MUST(tree_list(w->tree, p->dirs[i], 0, pick_entry, p));
        }
}

static void local_step(struct world *w, uint64_t *gen) {
        static struct pick p;
        struct node node, other;
        struct tree_new what = { .mode = 0644, .uid = 1000, .gid = 1000 };
        survey(w, &p);
        uint64_t dir = p.dirs[rng_below(&w->rng.rng, p.n_dirs)], dir2 = p.dirs[rng_below(&w->rng.rng, p.n_dirs)];
        const char *name = names[rng_below(&w->rng.rng, ARRAY_SIZE(names))], *name2 = names[rng_below(&w->rng.rng, ARRAY_SIZE(names))];
        size_t f = p.n_files ? rng_below(&w->rng.rng, p.n_files) : 0, d = rng_below(&w->rng.rng, p.n_dirs);
        clock_manual_advance(&w->clock, 1 + (int64_t)rng_below(&w->rng.rng, 400));
        int r = 0;
        const unsigned verb = (unsigned)rng_below(&w->rng.rng, 16);
        if (getenv("TARN_TEST_TRACE"))
                printf("local %u: %s in %llu, %s in %llu, file %s in %llu, dir %s in %llu\n", verb, name, (unsigned long long)dir, name2, (unsigned long long)dir2,
                       p.n_files ? p.file_name[f] : "-", (unsigned long long)(p.n_files ? p.file_dir[f] : 0), d ? p.dir_name[d] : "-", (unsigned long long)p.dir_parent[d]);
        switch (verb) {
        case 0:
        case 1:
                what.kind = NODE_FILE;
                r = tree_create(w->tree, dir, name, strlen(name), &what, &node);
                if (r == 0 && rng_below(&w->rng.rng, 2))
                        {
                        ++*gen;
                        (void)put_content(w, node.ino, *gen, 1 + *gen % 9);
                }
                break;
        case 2:
        case 3:
                what.kind = NODE_DIR;
                r = tree_create(w->tree, dir, name, strlen(name), &what, &node);
                break;
        case 4:
        case 5:
                if (p.n_files)
                        {
                        ++*gen;
                        (void)put_content(w, p.files[f], *gen, 1 + *gen % 9);
                }
                break;
        case 6:
                if (p.n_files)
                        r = rm(w, p.file_dir[f], p.file_name[f]);
                break;
        case 7:
                if (d)
                        r = rmdir_at(w, p.dir_parent[d], p.dir_name[d]);
                break;
        case 8:
        case 9:
                if (p.n_files)
                        r = mv(w, p.file_dir[f], p.file_name[f], dir2, name2, rng_below(&w->rng.rng, 6) == 0 ? 2 : 0);
                break;
        case 10:
                if (d)
                        r = mv(w, p.dir_parent[d], p.dir_name[d], dir2, name2, rng_below(&w->rng.rng, 6) == 0 ? 2 : 0);
                break;
        case 11:
                if (p.n_files)
                        r = chmod_to(w, p.files[f], 0600 + (uint32_t)rng_below(&w->rng.rng, 8));
                break;
        case 12: /* a program saves a file */
                what.kind = NODE_FILE;
                r = tree_create(w->tree, dir, "save.tmp", 8, &what, &node);
                if (r == 0) {
                        {
                        ++*gen;
                        (void)put_content(w, node.ino, *gen, 1 + *gen % 9);
                }
                        if (rng_below(&w->rng.rng, 3) == 0)
                                clock_manual_advance(&w->clock, 2500);
                }
                break;
        case 13:
                for (size_t i = 0; i < p.n_files; i++)
                        if (strcmp(p.file_name[i], "save.tmp") == 0) {
                                r = tree_rename(w->tree, p.file_dir[i], "save.tmp", 8, p.file_dir[i], name, strlen(name), 0, world_kept, w, &node, &other);
                                break;
                        }
                break;
        case 14: /* a save that moves the file aside */
        case 15:
                if (p.n_files && (r = mv(w, p.file_dir[f], p.file_name[f], p.file_dir[f], verb == 14 ? "f~" : name2, 0)) == 0) {
                        what.kind = NODE_FILE;
                        r = tree_create(w->tree, p.file_dir[f], p.file_name[f], strlen(p.file_name[f]), &what, &node);
                        if (r == 0 && rng_below(&w->rng.rng, 8)) {
                                ++*gen;
                                (void)put_content(w, node.ino, *gen, 1 + *gen % 9);
                        }
                        if (rng_below(&w->rng.rng, 4) == 0)
                                clock_manual_advance(&w->clock, 2500);
                        if (r == 0 && rng_below(&w->rng.rng, 4))
                                r = rm(w, p.file_dir[f], verb == 14 ? "f~" : name2);
                }
                break;
        }
        if (r != 0 && r != -EEXIST && r != -ENOENT && r != -ENOTEMPTY && r != -EISDIR && r != -ENOTDIR && r != -EINVAL)
                fail_msg("a local verb failed with %d", r);
}

static void remote_step(struct world *w, struct model *m) {
        struct model_node *dirs[64], *files[64];
        size_t n_dirs = 0, n_files = 0;
        for (size_t i = 0; i < m->n_nodes; i++)
                if (!m->nodes[i].row.deleted) {
                        if (m->nodes[i].row.kind == NODE_DIR && n_dirs < 64)
                                dirs[n_dirs++] = &m->nodes[i];
                        else if (m->nodes[i].row.kind == NODE_FILE && n_files < 64)
                                files[n_files++] = &m->nodes[i];
                }
        const struct id dir = dirs[rng_below(&w->rng.rng, n_dirs)]->row.id, dir2 = dirs[rng_below(&w->rng.rng, n_dirs)]->row.id;
        const char *name = names[rng_below(&w->rng.rng, ARRAY_SIZE(names))], *name2 = names[rng_below(&w->rng.rng, ARRAY_SIZE(names))];
        const unsigned verb = (unsigned)rng_below(&w->rng.rng, 9);
        if (getenv("TARN_TEST_TRACE"))
                printf("remote %u: %s in %02x%02x, %s in %02x%02x, next %llu\n", verb, name, dir.b[0], dir.b[1], name2, dir2.b[0], dir2.b[1], (unsigned long long)m->seq + 1);
        switch (verb) {
        case 0:
                (void)model_make(m, &dir, name, NODE_FILE, 1 + rng_below(&w->rng.rng, 9));
                break;
        case 1:
                (void)model_make(m, &dir, name, NODE_DIR, 0);
                break;
        case 2:
        case 3:
                if (n_files)
                        (void)model_write(m, &files[rng_below(&w->rng.rng, n_files)]->row.id, 1 + rng_below(&w->rng.rng, 9));
                break;
        case 4:
                if (n_files)
                        (void)model_chmod(m, &files[rng_below(&w->rng.rng, n_files)]->row.id, 0400 + (uint32_t)rng_below(&w->rng.rng, 8));
                break;
        case 5:
        case 6:
                (void)model_rename(m, &dir, name, &dir2, name2);
                break;
        default:
                (void)model_unlink(m, &dir, name);
                break;
        }
}

/* What was committed here must be on the server as a version at some time, or have been given up by its own writer. */
static void run(uint64_t seed, unsigned steps) {
        struct world w;
        static struct model m;
        uint64_t gen = 0;
        world_open(&w, seed, seed % 2 ? 2 : 0);
        model_open(&m, seed);
        for (unsigned i = 0; i < steps; i++) {
                const unsigned step = (unsigned)rng_below(&w.rng.rng, 12);
                if (getenv("TARN_TEST_TRACE") && step < 4)
                        printf("sync %u\n", step);
                switch (step) {
                case 0:
                        sync_down(&w, &m);
                        break;
                case 1:
                        (void)sync_up(&w, &m);
                        break;
                case 2: { /* some of it again */
                        struct cursor c;
                        MUST(tree_cursor(w.tree, &c));
                        sync_events(&w, &m, c.seq > 5 ? c.seq - 5 : 0, c.seq);
                        break;
                }
                case 3: { /* sent and accepted, the answer is lost */
                        struct outbox_item items[4];
                        size_t n = outbox_ready(&w, items, 4, NULL);
                        for (size_t k = 0; k < n; k++) {
                                MUST(outbox_mark_sent(w.tree, &items[k].op.id, 1));
                                struct op op = items[k].op;
                                if (items[k].gen)
                                        op.content = model_content(items[k].gen, op.content.size);
                                (void)model_commit(&m, &op);
                                int r = outbox_unsend(w.tree, &op.id);
                                assert_true(r == 0 || r == -ENOENT);
                        }
                        break;
                }
                case 4:
                case 5:
                case 6:
                        remote_step(&w, &m);
                        break;
                case 7:
                        if (rng_below(&w.rng.rng, 10) == 0) {
                                tree_close(w.tree);
                                world_reopen(&w, seed % 2 ? 2 : 0);
                        }
                        break;
                default:
                        local_step(&w, &gen);
                        break;
                }
                if (i % 4 == 0)
                        world_check(&w);
        }
        sync_all(&w, &m);
        compare(&w, &m);
        for (size_t i = 0; i < m.n_log; i++) /* all of it again */
                sync_events(&w, &m, i, i + 1);
        compare(&w, &m);
        model_close(&m);
        world_close(&w);
}

static void test_converges(void **state) {
        unsigned runs = 150 * world_scale();
        const char *only = getenv("TARN_TEST_RUN");
        for (unsigned i = only ? (unsigned)strtoul(only, NULL, 10) : 0; i < runs; i++) {
                fprintf(stderr, "\rrun %u ", i);
                run(base_seed + i, 60 + i % 80);
                if (only)
                        break;
        }
        fprintf(stderr, "\n");
}

int main(void) {
        base_seed = world_seed();
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_converges) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
