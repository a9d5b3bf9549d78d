/* SPDX-License-Identifier: Apache-2.0 */
/* file.c: files as open handles see them.
 *
 * One struct file per (ino, incarnation) that has a handle or local bytes: the top of the stack
 *
 *      open stage --below--> sealed stage --below--> ... --> blob of a committed content
 *
 * or, if nothing is pending, the content alone. It stays in the table as long as a handle, a call or a stage needs it; everything else about a file is its row in the tree.
 *
 *   first write, no open stage   stage_new on top of what is there (3 SELECTs, nothing on disk); the write's record brings the header along
 *   last write handle released,
 *   freeze, quiet point          seal: SEAL record, then tree_content in one transaction. A crash between is repaired by cache.c: a sealed stage without row is queued
 *   committed                    file_commit.c: the stage becomes the blob, the stack above it goes on
 *
 * Superseded: the row's incarnation is greater than ours because remote content replaced an open file. Reads go on with the old bytes. The first write (or the seal of what was
 * written before) moves this file, with all its handles, to a conflict copy: a new node beside the old one. A handle is counted before the row is read (file_open), and the tree
 * asks file_is_open inside the transaction that changes the content: nobody opens old bytes under a new row.
 *
 * A generation with a failed write is not sealed; it stays the open stage and is shown, until it is healed, truncated or unlinked. If nothing ever reached it, it just goes.
 * Locks: f->lock (RANK_FILE) guards the stack and is held over tree calls, never over fsync or waits for room. The table's lock (fs->lock, RANK_QUEUE) is a leaf: the tree asks
 * file_is_open from inside its transactions. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"
#include "file_priv.h"

static size_t slot(const struct files *fs, uint64_t ino) {
        return (size_t)(ino * 0x9e3779b97f4a7c15u >> 32) & (fs->n_buckets - 1);
}

int files_new(struct cache *c, const struct cache_config *cfg, struct files **ret) {
        struct files *fs = calloc(1, sizeof *fs);
        if (!fs)
                return -ENOMEM;
        fs->c = c;
        fs->cfg = *cfg;
        fs->lock_fd = -1;
        fs->online = true;
        fs->n_buckets = 256;
        fs->bucket = calloc(fs->n_buckets, sizeof *fs->bucket);
        fs->dir = strdup(cfg->dir);
        fs->lost_dir = path_join(cfg->dir, "lost+found");
        lock_init(&fs->lock, "files", RANK_QUEUE);
        cond_init(&fs->work);
        cond_init(&fs->idle);
        cond_init(&fs->drained);
        if (!fs->bucket || !fs->dir || !fs->lost_dir) {
                files_free(fs);
                return -ENOMEM;
        }
        *ret = fs;
        return 0;
}

static void file_destroy(struct file *f) {
        stage_put(f->top);
        blob_put(f->blob);
        lock_destroy(&f->lock);
        free(f);
}

void files_free(struct files *fs) {
        if (!fs)
                return;
        for (size_t i = 0; fs->bucket && i < fs->n_buckets; i++)
                while (fs->bucket[i]) {
                        struct file *f = fs->bucket[i];
                        fs->bucket[i] = f->next;
                        file_destroy(f);
                }
        if (fs->lock_fd >= 0)
                (void)close(fs->lock_fd);
        cond_destroy(&fs->work);
        cond_destroy(&fs->idle);
        cond_destroy(&fs->drained);
        lock_destroy(&fs->lock);
        free(fs->bucket);
        free(fs->dir);
        free(fs->lost_dir);
        free(fs);
}

static void table_add_locked(struct files *fs, struct file *f) {
        if (fs->n >= fs->n_buckets) {
                size_t n = fs->n_buckets * 2, old_n = fs->n_buckets;
                struct file **b = calloc(n, sizeof *b), **old = fs->bucket;
                if (b) {
                        fs->bucket = b;
                        fs->n_buckets = n;
                        for (size_t i = 0; i < old_n; i++)
                                for (struct file *x = old[i], *next; x; x = next) {
                                        next = x->next;
                                        size_t k = slot(fs, x->ino);
                                        x->next = b[k];
                                        b[k] = x;
                                }
                        free(old);
                }
        }
        size_t k = slot(fs, f->ino);
        f->next = fs->bucket[k];
        fs->bucket[k] = f;
        fs->n++;
}

static void table_remove_locked(struct files *fs, struct file *f) {
        for (struct file **p = &fs->bucket[slot(fs, f->ino)]; *p; p = &(*p)->next)
                if (*p == f) {
                        *p = f->next;
                        fs->n--;
                        return;
                }
}

static struct file *find_locked(struct files *fs, uint64_t ino, int incarnation) {
        struct file *best = NULL;
        for (struct file *f = fs->bucket[slot(fs, ino)]; f; f = f->next)
                if (f->ino == ino && (incarnation < 0 ? !best || f->incarnation > best->incarnation : f->incarnation == (unsigned)incarnation))
                        best = f;
        return best;
}

struct file *file_find(struct files *fs, uint64_t ino, int incarnation) {
        LOCK_SCOPE(&fs->lock);
        struct file *f = find_locked(fs, ino, incarnation);
        if (f)
                f->refs++;
        return f;
}

struct file *file_get_or_new(struct files *fs, uint64_t ino, uint16_t incarnation) {
        struct file *made = calloc(1, sizeof *made);
        if (!made)
                return NULL;
        made->fs = fs;
        atomic_init(&made->ino, ino);
        atomic_init(&made->incarnation, incarnation);
        lock_init(&made->lock, "file", RANK_FILE);
        lock_take(&fs->lock);
        struct file *f = find_locked(fs, ino, incarnation);
        if (!f) {
                f = steal_ptr(made);
                table_add_locked(fs, f);
        }
        f->refs++;
        lock_drop(&fs->lock);
        if (made)
                file_destroy(made);
        return f;
}

void file_put(struct file *f) {
        if (!f)
                return;
        struct files *fs = f->fs;
        lock_take(&fs->lock);
        assert(f->refs > 0);
        bool gone = --f->refs == 0 && !f->layered;
        if (gone)
                table_remove_locked(fs, f);
        lock_drop(&fs->lock);
        if (gone)
                file_destroy(f);
}

void file_name_set_locked(struct file *f, unsigned name) {
        if (f->has_open) {
                f->fs->n_open_by_name[f->name]--;
                f->fs->n_open_by_name[name]++;
        }
        f->name = name;
        f->namings += name == NAME_UNKNOWN;
}

void files_named(void *files, uint64_t ino) {
        struct files *fs = files;
        LOCK_SCOPE(&fs->lock);
        for (struct file *f = fs->open_first; f && ino == 0; f = f->open_next)
                file_name_set_locked(f, NAME_UNKNOWN);
        for (struct file *f = fs->bucket[slot(fs, ino)]; f && ino; f = f->next)
                if (f->ino == ino)
                        file_name_set_locked(f, NAME_UNKNOWN);
}

void file_rekey(struct file *f, uint64_t ino, uint16_t incarnation) {
        struct files *fs = f->fs;
        LOCK_SCOPE(&fs->lock);
        (void)atomic_fetch_add(&fs->seals, 1); /* before it is not found under the old number: see file_seals */
        file_name_set_locked(f, NAME_UNKNOWN);
        table_remove_locked(fs, f);
        f->ino = ino;
        f->incarnation = incarnation;
        table_add_locked(fs, f);
}

void file_update_flags(struct file *f) {
        lock_assert_held(&f->lock);
        bool open = false;
        if (f->top) {
                LOCK_SCOPE(&f->top->lock);
                open = f->top->state == STAGE_OPEN;
        }
        struct files *fs = f->fs;
        LOCK_SCOPE(&fs->lock);
        f->layered = f->top != NULL;
        if (open == f->has_open)
                return;
        f->has_open = open;
        fs->n_open_by_name[f->name] += open ? 1 : UINT64_MAX;
        file_name_set_locked(f, NAME_UNKNOWN);
        if (open) {
                f->open_prev = NULL;
                f->open_next = fs->open_first;
                if (fs->open_first)
                        fs->open_first->open_prev = f;
                fs->open_first = f;
                fs->n_open++;
        } else {
                if (f->open_prev)
                        f->open_prev->open_next = f->open_next;
                else
                        fs->open_first = f->open_next;
                if (f->open_next)
                        f->open_next->open_prev = f->open_prev;
                f->open_next = f->open_prev = NULL;
                fs->n_open--;
                cond_broadcast(&fs->drained);
        }
}

void files_wake(struct files *fs) {
        for (size_t i = 0; i < fs->n_listeners; i++)
                if (fs->listener[i]->wake)
                        fs->listener[i]->wake(fs->listener[i]);
}

uint64_t file_size_locked(struct file *f) {
        return f->top ? stage_size(f->top) : f->content.size;
}

int file_blob(struct file *f, struct blob **ret) {
        lock_assert_held(&f->lock);
        if (!f->blob && f->content.size > 0) {
                int r = blob_get(f->fs->c->blobs, &f->content, &f->blob);
                if (r < 0)
                        return r;
        }
        *ret = f->blob ? blob_ref(f->blob) : NULL;
        return 0;
}

void stack_set_ino(struct stage *top, uint64_t ino) {
        for (struct stage *st = stage_ref(top), *next; st; st = next) {
                atomic_store(&st->ino, ino);
                next = stage_below(st);
                stage_put(st);
        }
}

/* Does st lie in the stack of top? */
static bool stack_has(struct stage *top, const struct stage *st) {
        struct stage *x = top ? stage_ref(top) : NULL;
        while (x && x != st) {
                struct stage *next = stage_below(x);
                stage_put(x);
                x = next;
        }
        stage_put(x);
        return x != NULL;
}

int file_load_locked(struct file *f, const struct node *node) {
        lock_assert_held(&f->lock);
        struct stage *top = NULL;
        if (node->gen) {
                int r = stage_get(f->fs->c->stages, node->gen, &top);
                if (r < 0)
                        return r == -ENOENT ? -EAGAIN : r; /* committed in between: read the row again */
                lock_take(&top->lock);
                bool gone = top->state == STAGE_GONE;
                lock_drop(&top->lock);
                if (gone) { /* likewise, and no stack is to be built on it */
                        stage_put(top);
                        return -EAGAIN;
                }
                stack_set_ino(top, node->ino);
        }
        struct stage *old = f->top;
        f->top = top;
        if (old && stack_has(top, old))
                stage_put(old);
        else if (old)
                files_discard(f->fs, old);
        if (!content_equal(&f->content, &node->content) || !f->loaded) {
                blob_put(f->blob);
                f->blob = NULL;
                f->content = node->content;
        }
        f->version = node->version;
        f->loaded = true;
        file_update_flags(f);
        return 0;
}

int file_stage_identity(struct files *fs, const struct node *node, struct stage_header *ret) {
        *ret = (struct stage_header) { .ino = node->ino, .node = node->id, .mode = node->mode };
        _cleanup_buf_ struct buf path = BUF_INIT(1u << 20);
        int r = tree_path(fs->c->tree, node->ino, &path);
        if (r < 0)
                return r == -ENOENT ? 0 : r; /* no name: O_TMPFILE, or unlinked */
        const char *text = buf_text(&path);
        if (!text)
                return -ENOMEM;
        const char *name = strrchr(text, '/');
        (void)snprintf(ret->name, sizeof ret->name, "%s", name ? name + 1 : text);
        struct node parent;
        if (node->parent && tree_get(fs->c->tree, node->parent, &parent) == 0)
                ret->parent = parent.id;
        return 0;
}

/* A new node beside the superseded one; this file and its handles are it from now on. */
static int file_detach_copy(struct file *f, struct node *ret) {
        struct files *fs = f->fs;
        char host[64] = "", name[NAME_BYTES_MAX + 1];
        _cleanup_buf_ struct buf set = BUF_INIT(256);
        if (tree_setting_get(fs->c->tree, "host", &set) == 0 && set.bytes > 0 && set.bytes < sizeof host)
                memcpy(host, set.data, set.bytes);
        else if (gethostname(host, sizeof host - 1) < 0)
                (void)snprintf(host, sizeof host, "here");
        int r = tree_create_copy(fs->c->tree, f->ino, host, ret, name);
        if (r < 0)
                return r;
        log_info("file conflict_copy ino=%llu new_ino=%llu name=%s", (unsigned long long)f->ino, (unsigned long long)ret->ino, name);
        if (fs->c->counters)
                counter_add(fs->c->counters, conflicts, 1);
        file_rekey(f, ret->ino, ret->incarnation);
        f->version = ret->version;
        if (f->top) {
                stack_set_ino(f->top, ret->ino);
                LOCK_SCOPE(&f->top->io);
                f->top->head.ino = ret->ino;
                f->top->head.node = ret->id;
                f->top->head.base_version = ret->version;
                memcpy(f->top->head.name, name, sizeof name);
                if (f->top->logged) {
                        uint8_t b[STAGE_HEADER_BYTES];
                        stage_header_encode(&f->top->head, b);
                        r = stage_note(f->top, LOG_REASSIGN, 0, 0, 0, 0, b, sizeof b);
                }
        }
        return r;
}

int file_open_stage(struct file *f, struct stage **ret) {
        lock_assert_held(&f->lock);
        struct files *fs = f->fs;
        struct stage *top = f->top;
        if (top) {
                lock_take(&top->lock);
                bool open = top->state == STAGE_OPEN;
                lock_drop(&top->lock);
                if (open) {
                        *ret = stage_ref(top);
                        return 0;
                }
        }
        if (fs->cfg.read_only)
                return -EROFS;
        struct node node;
        int r = tree_get(fs->c->tree, f->ino, &node);
        if (r < 0)
                return r;
        if (node.incarnation != f->incarnation) {
                struct node copy;
                r = file_detach_copy(f, &copy);
                if (r < 0)
                        return r;
                node = copy;
        } else {
                f->version = node.version;
        }
        struct stage_header head;
        r = file_stage_identity(fs, &node, &head);
        if (r < 0)
                return r;
        head.gen = stages_gen(fs->c->stages);
        head.base_version = f->version;
        head.mtime_ns = node.mtime_ns;
        head.base_limit = file_size_locked(f);
        head.session = top ? top->session : rng_id(fs->c->rng);
        struct blob *blob = NULL;
        if (top) {
                LOCK_SCOPE(&top->lock);
                if (top->committed)
                        head.base = top->content;
                else
                        head.below_gen = top->gen;
        } else {
                head.base = f->content;
                r = file_blob(f, &blob);
                if (r < 0)
                        return r;
        }
        struct stage *st;
        r = stage_new(fs->c->stages, &head, top, blob, head.base_limit, &st);
        blob_put(blob);
        if (r < 0)
                return r;
        f->top = st;
        stage_put(top); /* the new one holds it */
        file_update_flags(f);
        *ret = stage_ref(st);
        return 0;
}

/* Layers under st that were replaced in the outbox and that st does not let through leave the stack, as one of its own: nobody needs their bytes, but who reads one of them right now goes on.
 * f->lock held. */
static void drop_hidden_layers(struct file *f, struct stage *st) {
        lock_take(&st->lock);
        struct stage *hidden = st->base_limit == 0 && st->below ? stage_ref(st->below) : NULL, *next = hidden ? stage_ref(hidden) : NULL, *last = NULL;
        struct content base = st->base;
        lock_drop(&st->lock);
        while (next) {
                lock_take(&next->lock);
                bool layer = next->layer && !next->committed;
                struct stage *below = layer && next->below ? stage_ref(next->below) : NULL;
                if (layer)
                        base = next->base;
                lock_drop(&next->lock);
                if (!layer)
                        break;
                stage_put(last);
                last = next;
                next = below;
        }
        if (!last) {
                stage_put(hidden);
                stage_put(next);
                return;
        }
        lock_take(&last->lock);
        last->below_shared = true;
        lock_drop(&last->lock);
        stage_put(last);
        lock_take(&st->lock);
        bool same = st->below == hidden;
        if (same) {
                st->below = next;
                if (!next)
                        st->base = base;
        }
        lock_drop(&st->lock);
        if (same)
                files_discard(f->fs, hidden); /* st's reference */
        else
                stage_put(next); /* committed meanwhile */
        stage_put(hidden);
}

void file_pop(struct file *f) {
        lock_assert_held(&f->lock);
        struct stage *st = f->top;
        lock_take(&st->lock);
        f->top = st->below ? stage_ref(st->below) : NULL;
        st->below_shared = true;
        if (!f->top && !f->blob)
                f->content = st->base;
        lock_drop(&st->lock);
        files_discard(f->fs, st);
        file_update_flags(f);
}

void file_drop_stack(struct file *f, const struct node *now) {
        lock_assert_held(&f->lock);
        if (f->top)
                files_discard(f->fs, steal_ptr(f->top));
        if (now) {
                blob_put(f->blob);
                f->blob = NULL;
                f->content = now->content;
                f->version = now->version;
        }
        file_update_flags(f);
}

static int queue_content(struct file *f, struct stage *st) {
        struct files *fs = f->fs;
        lock_take(&st->lock);
        uint64_t size = st->size;
        int64_t mtime_ns = st->mtime_ns;
        lock_drop(&st->lock);
        uint64_t dropped = 0;
        int r = tree_content(fs->c->tree, f->ino, st->gen, size, mtime_ns, &st->head.base_version, &dropped);
        if (r < 0)
                return r;
        (void)atomic_fetch_add(&fs->seals, 1); /* before has_open ends: see file_seals */
        lock_take(&st->lock);
        st->queued = true;
        lock_drop(&st->lock);
        struct stage *old;
        if (dropped && outbox_carries(fs->c->tree, dropped) == 0 && stage_get(fs->c->stages, dropped, &old) == 0) {
                lock_take(&old->io);
                lock_take(&old->lock);
                old->layer = true;
                lock_drop(&old->lock);
                r = stage_note(old, LOG_LAYER, 0, 0, 0, 0, NULL, 0);
                lock_drop(&old->io);
                if (r < 0)
                        log_debug("file gen=%llu layer_note error=%s", (unsigned long long)dropped, err_name(r));
                stage_put(old);
                drop_hidden_layers(f, st);
        }
        return 0;
}

int file_seal(struct file *f, uint64_t *ret_gen) {
        lock_assert_held(&f->lock);
        struct files *fs = f->fs;
        struct stage *st = f->top;
        *ret_gen = 0;
        if (!st)
                return 0;
        lock_take(&st->lock);
        bool open = st->state == STAGE_OPEN, failed = st->error != 0;
        lock_drop(&st->lock);
        if (open && failed) {
                LOCK_SCOPE(&st->io);
                failed = st->logged; /* else there is nothing to be kept back, and it goes */
        }
        if (!open || failed)
                return 0;
        struct node node;
        int r = tree_get(fs->c->tree, f->ino, &node);
        if (r == -ENOENT || (r == 0 && node.unlinked && !node.taken))
                return 0; /* goes with the last handle, unless it gets a name before */
        if (r < 0)
                return r;
        if (node.incarnation != f->incarnation) {
                struct node copy;
                r = file_detach_copy(f, &copy);
                if (r < 0)
                        return r;
        }
        r = FAILPOINT("file.freeze");
        if (r < 0)
                return r;
        lock_take(&st->io);
        bool logged = st->logged;
        r = logged ? stage_seal(st) : 0;
        lock_drop(&st->io);
        if (r < 0)
                return r;
        if (!logged) { /* nothing ever reached it; who reads it goes on */
                file_pop(f);
                return 0;
        }
        r = FAILPOINT("file.frozen");
        if (r == 0)
                r = queue_content(f, st);
        file_update_flags(f); /* after the row has it: in between stat must not see the old row without overlay */
        if (r < 0) {
                log_warn("file ino=%llu gen=%llu queue error=%s", (unsigned long long)f->ino, (unsigned long long)st->gen, err_name(r));
                LOCK_SCOPE(&fs->lock);
                fs->unqueued = true; /* tried again by the flusher; recovery would do it too */
                f->unqueued = true;
        }
        *ret_gen = st->gen;
        return 0;
}

void files_queue_again(struct files *fs) {
        for (;;) {
                struct file *f = NULL;
                lock_take(&fs->lock);
                if (!fs->unqueued) {
                        lock_drop(&fs->lock);
                        return;
                }
                for (size_t i = 0; i < fs->n_buckets && !f; i++)
                        for (f = fs->bucket[i]; f && !f->unqueued; f = f->next)
                                ;
                if (f) {
                        f->refs++;
                        f->unqueued = false;
                } else {
                        fs->unqueued = false;
                }
                lock_drop(&fs->lock);
                if (!f)
                        return;
                lock_take(&f->lock);
                int r = 0;
                for (struct stage *st = f->top ? stage_ref(f->top) : NULL, *next; st; st = next) {
                        lock_take(&st->lock);
                        bool again = st->state == STAGE_SEALED && !st->queued && !st->layer;
                        lock_drop(&st->lock);
                        if (again)
                                r = queue_content(f, st);
                        next = again ? NULL : stage_below(st); /* older ones are its layers */
                        stage_put(st);
                }
                if (r < 0) {
                        LOCK_SCOPE(&fs->lock);
                        f->unqueued = true;
                }
                lock_drop(&f->lock);
                file_put(f);
                if (r < 0)
                        return;
        }
}

uint64_t file_ino(const struct file *f) {
        return atomic_load(&((struct file *)f)->ino);
}

bool file_is_open(struct cache *c, uint64_t ino) {
        struct files *fs = c->files;
        LOCK_SCOPE(&fs->lock);
        for (struct file *f = fs->bucket[slot(fs, ino)]; f; f = f->next)
                if (f->ino == ino && (f->handles > 0 || f->opening > 0 || f->has_open))
                        return true;
        return false;
}

bool file_is_open_for_write(struct cache *c, uint64_t ino) {
        struct files *fs = c->files;
        LOCK_SCOPE(&fs->lock);
        for (struct file *f = fs->bucket[slot(fs, ino)]; f; f = f->next)
                if (f->ino == ino && f->writers > 0)
                        return true;
        return false;
}

bool file_overlay(struct cache *c, uint64_t ino, uint64_t *ret_size, int64_t *ret_mtime_ns, int64_t *ret_ctime_ns) {
        struct files *fs = c->files;
        lock_take(&fs->lock);
        struct file *f = fs->n_open ? find_locked(fs, ino, -1) : NULL;
        if (f && f->has_open)
                f->refs++;
        else
                f = NULL;
        lock_drop(&fs->lock);
        if (!f)
                return false;
        bool shown = false;
        lock_take(&f->lock);
        if (f->top) {
                LOCK_SCOPE(&f->top->lock);
                if (f->top->state == STAGE_OPEN) {
                        *ret_size = f->top->size;
                        *ret_mtime_ns = f->top->mtime_ns;
                        *ret_ctime_ns = f->top->ctime_ns;
                        shown = true;
                }
        }
        lock_drop(&f->lock);
        file_put(f);
        return shown;
}

bool file_shown_size(struct cache *c, uint64_t ino, uint16_t incarnation, uint64_t *ret_size) {
        struct file *f = file_find(c->files, ino, incarnation);
        if (!f)
                return false;
        lock_take(&f->lock);
        bool shown = f->loaded && f->ino == ino;
        if (shown)
                *ret_size = file_size_locked(f);
        lock_drop(&f->lock);
        file_put(f);
        return shown;
}

uint64_t file_seals(struct cache *c) {
        return atomic_load(&c->files->seals);
}

int file_freeze(struct cache *c, uint64_t ino, uint64_t *ret_gen) {
        *ret_gen = 0;
        struct file *f = file_find(c->files, ino, -1);
        if (!f)
                return 0;
        lock_take(&f->lock);
        int r = file_seal(f, ret_gen);
        if (r == 0 && f->top) {
                LOCK_SCOPE(&f->top->lock);
                if (f->top->state == STAGE_OPEN)
                        r = f->top->error;
        }
        lock_drop(&f->lock);
        file_put(f);
        return r;
}
