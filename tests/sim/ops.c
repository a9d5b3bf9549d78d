/* SPDX-License-Identifier: Apache-2.0 */
/* ops.c: what people do on the clients: random operations of a few kinds on a small set of names, so that clients meet. Every content is unique, so it can be recognised
 * wherever it ends up. A client that writes over or removes a content that it sees supersedes it; nobody else may make it vanish. */
#include <stdlib.h>
#include <string.h>
#include <assert.h>
#include <linux/fs.h>

#include "base/chunk.h"
#include "sim.h"

/* ---- texts ---- */

static int content_of(const uint8_t *p, size_t n, struct content *ret) {
        struct blocklist list = { .param = CHUNK_PARAM_1 };
        const struct chunk_param *param = chunk_param(CHUNK_PARAM_1);
        int r = 0;
        for (size_t at = 0; at < n && r >= 0;) {
                struct blockref ref;
                size_t k = chunk_next(param, p + at, n - at, true);
                sha256(p + at, k, &ref.hash);
                ref.bytes = (uint32_t)k;
                r = blocklist_add(&list, &ref);
                at += k;
        }
        if (r >= 0)
                r = blocklist_content(&list, NULL, ret);
        blocklist_free(&list);
        return r;
}

static struct text *text_add(struct client *c, uint8_t *bytes, size_t n) {
        struct world *w = c->w;
        struct text *t = calloc(1, sizeof *t);
        struct text **all = reallocarray(w->texts, w->n_texts + 1, sizeof *all);
        assert(t && all);
        w->texts = all;
        t->number = (unsigned)w->n_texts;
        t->writer = c->index;
        t->bytes = bytes;
        t->n = n;
        int r = content_of(bytes, n, &t->content);
        assert(r >= 0);
        all[w->n_texts++] = t;
        return t;
}

struct text *text_find(struct world *w, const struct content *content) {
        for (size_t i = w->n_texts; i-- > 0;)
                if (content_equal(&w->texts[i]->content, content))
                        return w->texts[i];
        return NULL;
}

static size_t random_size(struct world *w) {
        uint64_t k = pick(w, 1000);
        return k < 850 ? 1 + pick(w, 3000) : k < 970 ? 60000 + pick(w, 200000) : k < 995 ? 400000 + pick(w, 1000000) : 1500000 + pick(w, 2500000);
}

static void fill(struct world *w, struct client *c, uint8_t *p, size_t n) {
        uint64_t x = pick(w, UINT64_MAX);
        char head[64];
        for (size_t i = 0; i < n; i++) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                p[i] = (uint8_t)x;
        }
        int k = snprintf(head, sizeof head, "<%s:%zu>", c->name, w->n_texts);
        memcpy(p, head, MIN((size_t)k, n));
}

struct text *text_new(struct client *c) {
        return text_of_size(c, random_size(c->w));
}

struct text *text_of_size(struct client *c, size_t n) {
        uint8_t *p = malloc(n);
        assert(p);
        fill(c->w, c, p, n);
        return text_add(c, p, n);
}

static void remember_gen(struct client *c, uint64_t ino, struct text *t) {
        struct node n;
        if (tree_get(c->cache->tree, ino, &n) < 0 || !n.gen)
                return;
        struct gen_text *all = reallocarray(c->gens, c->n_gens + 1, sizeof *all);
        assert(all);
        c->gens = all;
        all[c->n_gens++] = (struct gen_text){ .gen = n.gen, .text = t };
}

struct reading {
        struct reading *next;
        struct client *c;
        struct file_read r;
        struct text *expect;
        uint8_t *buf;
        _Atomic bool over; ssize_t result;
        bool cancelled;
};
static struct reading *start_read(struct client *c, const struct node *n);
static void sweep(struct client *c);

/* Bytes that are on this client already; -EINPROGRESS: they are not (a base block may be missing under local bytes too; then it is being fetched now). */
static int read_now(struct client *c, const struct node *n, struct buf *ret) {
        if (!n->gen && n->content.size) { /* asked of the blob, so that nothing is started without need */
                struct blob *blob;
                bool all = false;
                if (blob_get(c->cache->blobs, &n->content, &blob) >= 0) {
                        all = blob_complete(blob);
                        blob_put(blob);
                }
                if (!all)
                        return -EINPROGRESS;
        }
        struct reading *g = start_read(c, n);
        if (!g)
                return -EIO;
        if (!g->over)
                return -EINPROGRESS;
        int r = g->result < 0 ? (int)g->result : buf_add(ret, g->buf, (size_t)g->result);
        sweep(c);
        return r;
}

struct text *text_of_node(struct client *c, const struct node *n) {
        if (n->kind != NODE_FILE || n->size == 0)
                return NULL;
        if (!n->gen)
                return text_find(c->w, &n->content);
        for (size_t i = c->n_gens; i-- > 0;)
                if (c->gens[i].gen == n->gen)
                        return c->gens[i].text;
        struct buf bytes = BUF_INIT(16u << 20);
        struct content content;
        struct text *t = NULL;
        if (read_now(c, n, &bytes) >= 0 && content_of(bytes.data, bytes.bytes, &content) >= 0)
                t = text_find(c->w, &content);
        buf_free(&bytes);
        return t;
}

void supersede(struct client *c, const struct node *n) {
        struct text *t = text_of_node(c, n);
        if (t) {
                t->superseded = true;
                trace(c->w, "%s supersedes text %u", c->name, t->number);
        }
}

/* ---- picking ---- */

struct listing { struct tree_entry *e; size_t n, room; };
static int collect(void *arg, const struct tree_entry *e) {
        struct listing *l = arg;
        if (l->n == l->room)
                return 1;
        l->e[l->n++] = *e;
        return 0;
}

static struct tree_entry scratch_entries[256];

static struct listing list(struct client *c, uint64_t dir) {
        struct listing l = { .e = scratch_entries, .room = ARRAY_SIZE(scratch_entries) };
        (void)!tree_list(c->cache->tree, dir, 0, collect, &l);
        return l;
}

uint64_t random_dir(struct client *c) {
        uint64_t dir = INO_ROOT;
        while (chance(c->w, 600)) {
                struct listing l = list(c, dir);
                size_t n = 0;
                for (size_t i = 0; i < l.n; i++)
                        if (l.e[i].node.kind == NODE_DIR)
                                l.e[n++] = l.e[i];
                if (n == 0)
                        break;
                dir = l.e[pick(c->w, n)].node.ino;
        }
        return dir;
}

bool random_entry(struct client *c, int kind, uint64_t *ret_dir, struct tree_entry *ret) {
        for (unsigned tries = 0; tries < 4; tries++) {
                uint64_t dir = random_dir(c);
                struct listing l = list(c, dir);
                size_t n = 0;
                for (size_t i = 0; i < l.n; i++)
                        if (kind == 0 || l.e[i].node.kind == (enum node_kind)kind)
                                l.e[n++] = l.e[i];
                if (n == 0)
                        continue;
                *ret = l.e[pick(c->w, n)];
                *ret_dir = dir;
                return true;
        }
        return false;
}

static size_t random_name(struct world *w, bool dir, char ret[32]) {
        if (chance(w, 40)) /* for both kinds */
                return (size_t)snprintf(ret, 32, "x%u", (unsigned)pick(w, 2));
        return (size_t)snprintf(ret, 32, "%c%u%s", dir ? 'd' : 'f', (unsigned)pick(w, dir ? 4 : 8), dir ? "" : ".txt");
}

static bool is_kept(void *arg, uint64_t ino) {
        return file_is_open(arg, ino);
}

/* ---- doing ---- */

static void write_done(struct file_write *fw, int result) {
        *(int *)fw->owner = result;
}

/* -ENOSPC: only on a full disk; then the program is told, and nobody will see these bytes. */
static int write_bytes(struct client *c, struct file *f, uint64_t off, const uint8_t *p, size_t n) {
        while (n > 0) {
                size_t k = MIN(n, (size_t)(1 << 20));
                int result = 0;
                struct file_write fw = { .file = f, .off = off, .buf = p, .n = k, .deadline_ms = INT64_MAX / 2, .done = write_done, .owner = &result };
                ssize_t r = file_write(&fw);
                if (r == -EINPROGRESS) { /* no room now: nobody waits here */
                        file_write_cancel(&fw);
                        r = result ? result : -EINTR;
                }
                if (r < 0) {
                        if (c->w->full != c)
                                return wrong(c->w, "%s: file_write: %s", c->name, err_name((int)r));
                        trace(c->w, "%s write failed: %s", c->name, err_name((int)r));
                        return -ENOSPC;
                }
                off += (uint64_t)r;
                p += r;
                n -= (size_t)r;
        }
        return 0;
}

/* Bytes of the file were refused: it is not a version until somebody heals it. It is emptied when there is room. */
static void spoiled(struct client *c, uint64_t ino) {
        if (c->n_spoiled < ARRAY_SIZE(c->spoiled))
                c->spoiled[c->n_spoiled++] = ino;
}

static void healed(struct client *c, uint64_t ino) {
        for (size_t i = 0; i < c->n_spoiled; i++)
                if (c->spoiled[i] == ino)
                        c->spoiled[i--] = c->spoiled[--c->n_spoiled];
}

void heal_spoiled(struct client *c) {
        for (size_t i = 0; i < c->n_spoiled; i++) {
                struct node n;
                uint64_t size;
                int64_t mtime_ns, ctime_ns;
                if (!file_overlay(c->cache, c->spoiled[i], &size, &mtime_ns, &ctime_ns) && tree_get(c->cache->tree, c->spoiled[i], &n) == 0 && !n.unlinked)
                        supersede(c, &n); /* nothing is left of the refused bytes: it shows what somebody wrote */
                int r = file_truncate(c->cache, c->spoiled[i], 0);
                if (r < 0 && r != -ENOENT)
                        wrong(c->w, "%s: emptying ino %llu: %s", c->name, (unsigned long long)c->spoiled[i], err_name(r));
        }
        c->n_spoiled = 0;
}

static bool unexpected(struct client *c, const char *what, int r);

int write_text(struct client *c, const struct node *n, struct text *t) {
        struct file *f;
        int r = file_open(c->cache, n->ino, n->incarnation, true, true, &f);
        if (r < 0)
                return unexpected(c, "file_open", r) ? r : -ENOSPC;
        r = write_bytes(c, f, 0, t->bytes, t->n);
        if (r < 0)
                spoiled(c, file_ino(f));
        else
                healed(c, file_ino(f)); /* written whole */
        file_release(f, true);
        if (r < 0)
                return r;
        t->durable = true;
        remember_gen(c, n->ino, t);
        trace(c->w, "%s text %u in ino %llu bytes=%zu", c->name, t->number, (unsigned long long)n->ino, t->n);
        return 0;
}

static bool unexpected(struct client *c, const char *what, int r) {
        if (r >= 0 || r == -EEXIST || r == -ENOENT || r == -ENOTDIR || r == -EISDIR || r == -ENOTEMPTY || r == -EINVAL || r == -ELOOP || r == -EPERM || r == -EMLINK || r == -ENODATA ||
            (c->w->full == c && (r == -ENOSPC || r == -EIO || r == -EINTR)) || (r == -EXDEV && c->w->count[SIM_SERVER_ROLLBACKS]) /* held */)
                return false;
        wrong(c->w, "%s: %s: %s", c->name, what, err_name(r));
        return true;
}

int make_file(struct client *c, uint64_t dir, const char *name, size_t n, struct node *ret) {
        struct tree_new what = { .kind = NODE_FILE, .mode = 0644, .uid = 1000, .gid = 1000 };
        int r = tree_create(c->cache->tree, dir, name, n, &what, ret);
        if (r >= 0)
                trace(c->w, "%s create %s in %llu ino %llu", c->name, name, (unsigned long long)dir, (unsigned long long)ret->ino);
        unexpected(c, "create", r);
        return r;
}

static void op_create(struct client *c) {
        char name[32];
        struct node n;
        size_t k = random_name(c->w, false, name);
        if (make_file(c, random_dir(c), name, k, &n) >= 0)
                (void)write_text(c, &n, text_new(c));
}

static void op_overwrite(struct client *c) {
        struct tree_entry e;
        uint64_t dir;
        if (!random_entry(c, NODE_FILE, &dir, &e) || file_is_open_for_write(c->cache, e.node.ino))
                return; /* one writer of a file on one client: what two make of it has no text */
        supersede(c, &e.node);
        (void)write_text(c, &e.node, text_new(c));
}

/* Some bytes in the middle or at the end; the rest stays. */
static void op_patch(struct client *c) {
        struct tree_entry e;
        uint64_t dir;
        if (!random_entry(c, NODE_FILE, &dir, &e) || e.node.size == 0 || file_is_open(c->cache, e.node.ino))
                return;
        struct buf old = BUF_INIT(16u << 20);
        if (read_now(c, &e.node, &old) < 0) {
                buf_free(&old);
                return;
        }
        size_t off = chance(c->w, 400) ? old.bytes : pick(c->w, old.bytes), n = 20 + pick(c->w, 5000), end = MAX(old.bytes, off + n);
        uint8_t *p = malloc(end);
        assert(p);
        memcpy(p, old.data, old.bytes);
        fill(c->w, c, p + off, n);
        buf_free(&old);
        supersede(c, &e.node);
        struct text *t = text_add(c, p, end);
        struct file *f;
        int r = file_open(c->cache, e.node.ino, e.node.incarnation, true, false, &f);
        if (r < 0) {
                wrong(c->w, "%s: open: %s", c->name, err_name(r));
                return;
        }
        r = write_bytes(c, f, off, p + off, n);
        if (r < 0)
                spoiled(c, file_ino(f));
        file_release(f, true);
        if (r < 0)
                return;
        t->durable = true;
        remember_gen(c, e.node.ino, t);
        trace(c->w, "%s text %u patches ino %llu off=%zu n=%zu", c->name, t->number, (unsigned long long)e.node.ino, off, n);
}

static void after_unlink(struct client *c, const struct node *n) {
        for (unsigned i = 0; i < HANDLES_MAX; i++)
                if (c->handles[i].used && file_ino(c->handles[i].file) == n->ino && n->unlinked) /* not the ino that was opened: a conflict copy has another */
                        c->handles[i].unlinked = true;
        if (n->unlinked)
                file_forget(c->cache, n->ino);
}

int remove_name(struct client *c, uint64_t dir, const char *name) {
        struct node n, was;
        int r = tree_lookup(c->cache->tree, dir, name, strlen(name), &was);
        if (r < 0)
                return r;
        if (was.kind != NODE_DIR)
                supersede(c, &was); /* with several names too: others may be removing those */
        r = tree_unlink(c->cache->tree, dir, name, strlen(name), was.kind == NODE_DIR, is_kept, c->cache, &n);
        trace(c->w, "%s unlink %s in %llu ino %llu: %s", c->name, name, (unsigned long long)dir, (unsigned long long)was.ino, r < 0 ? err_name(r) : "ok");
        if (!unexpected(c, "unlink", r) && r >= 0)
                after_unlink(c, &n);
        return r;
}

static void op_unlink(struct client *c) {
        struct tree_entry e;
        uint64_t dir;
        if (random_entry(c, 0, &dir, &e) && (e.node.kind != NODE_DIR || chance(c->w, 500)))
                (void)remove_name(c, dir, e.name);
}

int make_dir(struct client *c, uint64_t dir, const char *name) {
        struct node n;
        struct tree_new what = { .kind = NODE_DIR, .mode = 0755, .uid = 1000, .gid = 1000 };
        int r = tree_create(c->cache->tree, dir, name, strlen(name), &what, &n);
        trace(c->w, "%s mkdir %s: %s", c->name, name, r < 0 ? err_name(r) : "ok");
        unexpected(c, "mkdir", r);
        return r;
}

static void op_mkdir(struct client *c) {
        char name[32];
        (void)random_name(c->w, true, name);
        (void)make_dir(c, random_dir(c), name);
}

/* An empty directory, if there is one: one with something in it is not removed anyway. */
static void op_rmdir(struct client *c) {
        struct tree_entry e;
        uint64_t dir;
        if (random_entry(c, NODE_DIR, &dir, &e) && list(c, e.node.ino).n == 0)
                (void)remove_name(c, dir, e.name);
}

static void op_symlink(struct client *c) {
        char name[32];
        struct node n;
        size_t k = random_name(c->w, false, name);
        struct tree_new what = { .kind = NODE_SYMLINK, .mode = 0777, .uid = 1000, .gid = 1000, .target = "../elsewhere" };
        int r = tree_create(c->cache->tree, random_dir(c), name, k, &what, &n);
        trace(c->w, "%s symlink %s: %s", c->name, name, r < 0 ? err_name(r) : "ok");
        unexpected(c, "symlink", r);
}

int rename_to(struct client *c, uint64_t dir, const char *name, size_t k, uint64_t dir2, const char *name2, size_t k2) {
        struct node moved, replaced, target;
        uint64_t gen;
        struct node source;
        if (tree_lookup(c->cache->tree, dir, name, k, &source) >= 0 && source.kind == NODE_FILE)
                (void)!file_freeze(c->cache, source.ino, &gen);
        bool over = tree_lookup(c->cache->tree, dir2, name2, k2, &target) >= 0 && target.ino != source.ino;
        struct text *lost = over && target.kind == NODE_FILE ? text_of_node(c, &target) : NULL;
        int r = tree_rename(c->cache->tree, dir, name, k, dir2, name2, k2, 0, is_kept, c->cache, &moved, &replaced);
        trace(c->w, "%s rename %s in %llu to %s in %llu: %s", c->name, name, (unsigned long long)dir, name2, (unsigned long long)dir2, r < 0 ? err_name(r) : "ok");
        if (unexpected(c, "rename", r) || r < 0)
                return r;
        if (lost)
                lost->superseded = true;
        if (replaced.ino)
                after_unlink(c, &replaced);
        return 0;
}

/* A name that a directory has, wherever it is. */
struct where { uint64_t ino; char name[NAME_BYTES_MAX + 1]; };
static int is_it(void *arg, const struct tree_entry *e) {
        struct where *x = arg;
        if (e->node.ino == x->ino)
                snprintf(x->name, sizeof x->name, "%s", e->name);
        return e->node.ino == x->ino;
}

int move_dir(struct client *c, uint64_t ino, uint64_t to, const char *name) {
        struct where x = { .ino = ino };
        struct node n;
        int r = tree_get(c->cache->tree, ino, &n);
        if (r < 0 || ino == INO_ROOT || !n.parent || tree_list(c->cache->tree, n.parent, 0, is_it, &x) < 0 || !x.name[0])
                return r < 0 ? r : -ENOENT;
        return rename_to(c, n.parent, x.name, strlen(x.name), to, name, strlen(name));
}

static void op_rename(struct client *c) {
        struct tree_entry e;
        uint64_t dir;
        char name[32];
        if (!random_entry(c, 0, &dir, &e))
                return;
        size_t k = random_name(c->w, e.node.kind == NODE_DIR, name);
        (void)rename_to(c, dir, e.name, e.name_bytes, random_dir(c), name, k);
}

/* As an editor saves: a temporary beside it, then rename over. */
static void op_save(struct client *c) {
        struct tree_entry e;
        struct node n;
        uint64_t dir;
        char temp[64];
        if (!random_entry(c, NODE_FILE, &dir, &e) || file_is_open_for_write(c->cache, e.node.ino))
                return;
        int k = snprintf(temp, sizeof temp, chance(c->w, 500) ? ".%.30s.tmp" : "%.30s.new", e.name);
        if (make_file(c, dir, temp, (size_t)k, &n) < 0)
                return;
        if (write_text(c, &n, text_new(c)) >= 0 && tree_lookup(c->cache->tree, dir, e.name, e.name_bytes, &n) >= 0)
                (void)rename_to(c, dir, temp, (size_t)k, dir, e.name, e.name_bytes);
}

static void op_link(struct client *c) {
        struct tree_entry e;
        struct node n;
        uint64_t dir, gen;
        char name[32];
        if (!random_entry(c, NODE_FILE, &dir, &e))
                return;
        size_t k = random_name(c->w, false, name);
        (void)!file_freeze(c->cache, e.node.ino, &gen);
        int r = tree_link(c->cache->tree, e.node.ino, random_dir(c), name, k, &n);
        c->w->count[SIM_LINKS] += r >= 0;
        trace(c->w, "%s link %s to %s: %s", c->name, e.name, name, r < 0 ? err_name(r) : "ok");
        unexpected(c, "link", r);
}

static void op_setattr(struct client *c) {
        struct tree_entry e;
        struct node n;
        uint64_t dir;
        if (!random_entry(c, 0, &dir, &e))
                return;
        struct tree_attrs a = { .mask = ATTR_MODE, .mode = 0400 + (uint32_t)pick(c->w, 0400) };
        if (chance(c->w, 400))
                a = (struct tree_attrs){ .mask = ATTR_MTIME, .mtime_ns = c->w->clock.real_ns - (int64_t)pick(c->w, 1000000000000) };
        int r = tree_setattr(c->cache->tree, e.node.ino, &a, &n);
        if (r >= 0 && a.mask == ATTR_MTIME && e.node.kind == NODE_FILE)
                r = file_set_mtime(c->cache, e.node.ino, a.mtime_ns);
        trace(c->w, "%s setattr %s: %s", c->name, e.name, r < 0 ? err_name(r) : "ok");
        unexpected(c, "setattr", r);
}

/* ---- handles that stay open ---- */

static void handle_close(struct client *c, struct handle *h) {
        struct text *t = h->text;
        if (t && h->unlinked)
                t->superseded = true;
        if (t && !c->crashing)
                t->durable = true;
        uint64_t ino = file_ino(h->file);
        file_release(h->file, true);
        if (h->unlinked && !file_is_open(c->cache, ino))
                (void)!tree_forget(c->cache->tree, ino);
        else if (t && !c->crashing)
                remember_gen(c, ino, t);
        if (t)
                trace(c->w, "%s text %u closes ino %llu as %llu", c->name, t->number, (unsigned long long)h->ino, (unsigned long long)ino);
        *h = (struct handle){ 0 };
}

static void op_exchange(struct client *c) {
        struct tree_entry a, b;
        uint64_t dir, dir2, gen;
        struct node moved, replaced;
        if (!random_entry(c, 0, &dir, &a) || !random_entry(c, 0, &dir2, &b))
                return;
        if (a.node.kind == NODE_FILE)
                (void)!file_freeze(c->cache, a.node.ino, &gen);
        if (b.node.kind == NODE_FILE)
                (void)!file_freeze(c->cache, b.node.ino, &gen);
        int r = tree_rename(c->cache->tree, dir, a.name, a.name_bytes, dir2, b.name, b.name_bytes, RENAME_EXCHANGE, is_kept, c->cache, &moved, &replaced);
        trace(c->w, "%s exchange %s in %llu with %s in %llu: %s", c->name, a.name, (unsigned long long)dir, b.name, (unsigned long long)dir2, r < 0 ? err_name(r) : "ok");
        c->w->count[SIM_EXCHANGES] += r >= 0;
        unexpected(c, "exchange", r);
}

static void op_xattr(struct client *c) {
        struct tree_entry e;
        uint64_t dir;
        char name[32], value[32];
        if (!random_entry(c, 0, &dir, &e))
                return;
        snprintf(name, sizeof name, "user.x%u", (unsigned)pick(c->w, 3));
        snprintf(value, sizeof value, "%s-%u", c->name, (unsigned)pick(c->w, 1000));
        int r = chance(c->w, 700) ? tree_xattr_set(c->cache->tree, e.node.ino, name, value, strlen(value), 0) : tree_xattr_remove(c->cache->tree, e.node.ino, name);
        trace(c->w, "%s xattr %s of %s: %s", c->name, name, e.name, r < 0 ? err_name(r) : "ok");
        c->w->count[SIM_XATTRS] += r >= 0;
        unexpected(c, "xattr", r);
}

void op_close_all(struct client *c) {
        for (unsigned i = 0; i < HANDLES_MAX; i++)
                if (c->handles[i].used)
                        handle_close(c, &c->handles[i]);
        readings_forget(c);
}

static void op_handle(struct client *c) {
        struct handle *h = &c->handles[pick(c->w, HANDLES_MAX)];
        if (h->used) {
                if (chance(c->w, 400)) {
                        handle_close(c, h);
                        return;
                }
                /* whole again, a little longer each time; any of these may become a version (a freeze, a quiet point), which others then see */
                size_t n = (h->text ? h->text->n : 0) + 1 + pick(c->w, 2000);
                uint8_t *p = malloc(n);
                assert(p);
                fill(c->w, c, p, n);
                if (h->text)
                        h->text->superseded = true;
                h->text = text_add(c, p, n);
                if (write_bytes(c, h->file, 0, p, n) < 0) {
                        spoiled(c, file_ino(h->file));
                        h->text = NULL;
                        return;
                }
                trace(c->w, "%s text %u through a handle of ino %llu", c->name, h->text->number, (unsigned long long)h->ino);
                return;
        }
        struct tree_entry e;
        uint64_t dir;
        if (!random_entry(c, NODE_FILE, &dir, &e) || file_is_open(c->cache, e.node.ino))
                return;
        struct text *seen = text_of_node(c, &e.node);
        struct file *f;
        int r = file_open(c->cache, e.node.ino, e.node.incarnation, true, true, &f);
        if (seen && r < 0)
                seen->superseded = true;
        if (r < 0) {
                unexpected(c, "open", r);
                return;
        }
        if (seen)
                seen->superseded = true; /* O_TRUNC */
        *h = (struct handle){ .used = true, .ino = e.node.ino, .file = f };
        trace(c->w, "%s opens ino %llu", c->name, (unsigned long long)h->ino);
}

/* ---- reading ---- */

static void read_done(struct file_read *r, ssize_t result) {
        struct reading *g = r->owner;
        g->result = result;
        g->over = true;
}

static void sweep(struct client *c) {
        for (struct reading **p = &c->readings; *p;) {
                struct reading *g = *p;
                if (!g->over) {
                        p = &g->next;
                        continue;
                }
                *p = g->next;
                if (g->result >= 0 && g->expect && ((size_t)g->result != g->expect->n || memcmp(g->buf, g->expect->bytes, g->expect->n)))
                        wrong(c->w, "%s: wrong bytes read for text %u (%zd of %zu)", c->name, g->expect->number, g->result, g->expect->n);
                if (g->result < 0 && g->result != -EHOSTDOWN && g->result != -ETIMEDOUT && g->result != -EINTR && g->result != -ECANCELED && g->result != -EKEYREJECTED &&
                    !(g->result == -EIO && (c->w->count[SIM_SERVER_ROLLBACKS] /* the server has forgotten it */ || c->w->count[SIM_POWER_CUTS] /* damaged, and not to be fetched now */)))
                        wrong(c->w, "%s: a read of ino %llu (text %d) ended with %s", c->name, (unsigned long long)file_ino(g->r.file), g->expect ? (int)g->expect->number : -1, err_name((int)g->result));
                if (!g->cancelled)
                        trace(c->w, "%s read %zd", c->name, g->result);
                file_release(g->r.file, false);
                free(g->buf);
                free(g);
        }
}

void readings_forget(struct client *c) {
        for (struct reading *g = c->readings; g; g = g->next)
                if (!g->over) {
                        g->cancelled = true; /* ends on a thread of the cache */
                        file_read_cancel(&g->r);
                }
        sweep(c);
}

bool readings_none(const struct client *c) {
        sweep((struct client *)c);
        return !c->readings;
}

static struct reading *start_read(struct client *c, const struct node *n) {
        struct reading *g = calloc(1, sizeof *g);
        struct file *f;
        assert(g);
        g->c = c;
        g->buf = malloc(n->size + 1);
        assert(g->buf);
        int r = file_open(c->cache, n->ino, n->incarnation, false, false, &f);
        if (r < 0) {
                wrong(c->w, "%s: open for reading: %s", c->name, err_name(r));
                free(g->buf);
                free(g);
                return NULL;
        }
        g->r = (struct file_read){ .file = f, .off = 0, .buf = g->buf, .n = n->size, .deadline_ms = INT64_MAX / 2, .done = read_done, .owner = g };
        g->next = c->readings;
        c->readings = g;
        ssize_t k = file_read(&g->r);
        if (k != -EINPROGRESS) {
                g->result = k;
                g->over = true;
        }
        return g;
}

static void op_read(struct client *c) {
        struct tree_entry e;
        uint64_t dir;
        if (!random_entry(c, NODE_FILE, &dir, &e) || e.node.size == 0 || e.node.size > 100000 || file_is_open_for_write(c->cache, e.node.ino))
                return; /* one block: no readahead, whose fetches start on a thread of the cache */
        struct text *expect = text_of_node(c, &e.node);
        struct reading *g = start_read(c, &e.node);
        if (g)
                g->expect = expect;
}

int read_whole(struct client *c, const struct node *n, struct buf *ret) {
        struct reading *g = start_read(c, n);
        if (!g)
                return -EIO;
        int64_t until = c->w->clock.mono_ms + 60000;
        while (!g->over && world_turn(c->w, until))
                ;
        if (!g->over)
                return wrong(c->w, "%s: a read does not end", c->name);
        int r = g->result < 0 ? (int)g->result : buf_add(ret, g->buf, (size_t)g->result);
        sweep(c);
        return r;
}

void op_random(struct world *w, struct client *c) {
        static const struct { unsigned weight; void (*op)(struct client *c); } ops[] = {
                { 24, op_create }, { 16, op_overwrite }, { 8, op_patch }, { 8, op_unlink }, { 8, op_mkdir }, { 12, op_rename }, { 8, op_save }, { 2, op_link }, { 4, op_setattr },
                { 2, op_symlink }, { 6, op_read }, { 6, op_handle }, { 3, op_exchange }, { 4, op_xattr }, { 3, op_rmdir }, { 10, op_meet },
        };
        unsigned total = 0;
        for (size_t i = 0; i < ARRAY_SIZE(ops); i++)
                total += ops[i].weight;
        uint64_t k = pick(w, total);
        for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
                if (k < ops[i].weight) {
                        ops[i].op(c);
                        break;
                }
                k -= ops[i].weight;
        }
        sweep(c);
        w->ops_done++;
}
