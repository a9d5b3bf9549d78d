/* SPDX-License-Identifier: Apache-2.0 */
/* nth_world.h: a cache on one thread under failures on demand (nth.h), and what each name may show.
 *
 * A name has a history: the states that its calls were told to have made, the last one being what it shows. A call that failed has happened or not: what is shown then counts. A write that failed
 * may have changed its range in any way (or made it unreadable) until the range is written anew, and such bytes must never reach the server. What must hold then, after a close and a start, after a kill and
 * a start, and after a power cut and a start (the state since the last sync that returned success, or a later one), is asked from look(). */
#pragma once
#define IN_CALLBACK(call) ({ nth_in(); int cb_ = (call); nth_out(); nth_met() && cb_ != -EBADMSG ? 0 : cb_; })
#include "nth.h"

#include "cache_world.h"

#include <dirent.h>
#include <limits.h>

#include "base/digest.h"
#include "base/err.h"

#define NAMES 12
#define STATES 64
#define SIZE_MAX_ (3u << 19)
struct state { bool there; uint64_t sum, n; };
struct entry {
        char name[24];
        struct state past[STATES];
        size_t n_past, durable;       /* past[durable]: what a power cut leaves at least */
        uint64_t synced;              /* number of the last write that a sync covers */
        uint8_t *p; size_t n;         /* what it shows */
        bool spoiled; size_t lo, hi;  /* a write failed there */
        struct file *f;               /* its write handle */
        bool parked;                  /* its sealed stage could not be synced: it waits for people */
        int error;                    /* what its close should tell: a call failed and was not made good */
};
struct nw {
        struct cw *w;
        struct entry e[NAMES];
        size_t n_e;
        char home[128];
        unsigned told;
        uint32_t fill;
        struct id ops[200]; size_t n_ops; /* that the server has taken */
};

static inline uint64_t sum_bytes(const void *p, size_t n) { return n ? xxh3_64(p, n) : 1; }

static inline struct entry *nw_entry(struct nw *x, const char *name) {
        for (size_t i = 0; i < x->n_e; i++)
                if (!strcmp(x->e[i].name, name))
                        return &x->e[i];
        struct entry *e = &x->e[x->n_e++];
        *e = (struct entry) { .n_past = 1 };
        (void)snprintf(e->name, sizeof e->name, "%s", name);
        e->p = calloc(1, SIZE_MAX_);
        return e;
}

static inline void nw_state(struct entry *e, bool there) {
        assert_true(e->n_past < STATES);
        if (!e->spoiled)
                e->past[e->n_past++] = (struct state) { there, there ? sum_bytes(e->p, e->n) : 0, there ? e->n : 0 };
}
static inline const struct state *nw_now(const struct entry *e) { return &e->past[e->n_past - 1]; }

static inline bool told(struct nw *x, int r, const char *what) {
        if (r >= 0)
                return false;
        if (getenv("DBG"))
                log_info("DBG told %s %s", what, err_name(r));
        if (!nth_met())
                fail_msg("%s: %s without a failure", what, err_name(r));
        x->told++;
        return true;
}

/* ---- opening, by hand, and what happens by itself ---- */

static inline int nw_open_raw(struct cw *w) {
        char note[200] = "";
        struct cache_config c = { .dir = w->dir, .limit_bytes = w->limit, .uid = 1000, .gid = 1000, .clock = clock_system(), .rng = rng_system(), .counters = &w->counters, .by_hand = true };
        int r = NTH(cache_open(&c, &w->cache, note, sizeof note));
        if (r == 0)
                cache_set_source(w->cache, &w->source->source);
        else
                w->cache = NULL;
        return r;
}
static inline void nw_open(struct cw *w) {
        int r = nw_open_raw(w);
        if (r < 0)
                fail_msg("cache_open: %s", err_name(r));
        cw_load(w);
        assert_int_equal(cache_loaded(w->cache), 0);
}

static inline void nw_pump(struct cw *w) {
        struct world *s = w->source;
        while (s->n_queue) {
                struct fetch *f = s->queue[0];
                memmove(&s->queue[0], &s->queue[1], --s->n_queue * sizeof s->queue[0]);
                int err = f->priv ? -ECANCELED : 0;
                if (!err)
                        (void)serve(s, f);
                NTH_DO(f->done(f, err));
        }
        NTH_DO(blobs_turn(w->cache->blobs));
}

struct nw_wait { bool over; ssize_t result; };
static inline void nw_read_over(struct file_read *r, ssize_t result) { *(struct nw_wait *)r->owner = (struct nw_wait) { true, result }; }
static inline ssize_t nw_read(struct cw *w, struct file *f, uint64_t off, void *buf, size_t n) {
        struct nw_wait x = { false, 0 };
        struct file_read r = { .file = f, .off = off, .buf = buf, .n = n, .deadline_ms = now_ms() + WAIT_MS, .done = nw_read_over, .owner = &x };
        ssize_t got = NTH(file_read(&r));
        if (got != -EINPROGRESS)
                return got;
        for (int64_t end = now_ms() + WAIT_MS; !x.over; assert_true(now_ms() < end))
                nw_pump(w);
        return x.result;
}

/* ---- calls ---- */

static inline int nw_row(struct nw *x, const struct entry *e, struct node *ret) {
        return NTH(tree_lookup(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), ret));
}

/* After a call that failed: is the generation spoiled? If not, nothing has happened. */
static inline bool gen_is_spoiled(struct nw *x, const struct entry *e, bool write) {
        struct node n;
        assert_int_equal(tree_lookup(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), &n), 0);
        struct file *f = file_find(x->w->cache->files, n.ino, -1);
        struct stage *st = f ? f->top : NULL;
        bool open = st && st->state == STAGE_OPEN && st->logged, error = open && st->error;
        if (write && open && !error)
                fail_msg("%s: a write failed, and the generation is as good as before; failed in %s", e->name, nth_where());
        if (!error) {
                uint8_t *buf = malloc(SIZE_MAX_);
                struct file *r = cw_file(x->w, n.ino, false, false);
                nth_quiet(true);
                ssize_t got = nw_read(x->w, r, 0, buf, SIZE_MAX_);
                nth_quiet(false);
                if (!e->spoiled && (got != (ssize_t)e->n || memcmp(buf, e->p, e->n)))
                        fail_msg("%s: a change that failed, in %s, is shown in part (%zd of %zu)", e->name, nth_where(), got, e->n);
                file_release(r, false);
                free(buf);
        }
        if (f)
                file_put(f);
        return error || e->spoiled;
}

static inline bool nw_open_file(struct nw *x, struct entry *e, bool truncate) {
        struct node n;
        nth_step("open");
        int r = nw_row(x, e, &n);
        if (r == -ENOENT) {
                struct tree_new what = { .kind = NODE_FILE, .mode = 0644, .uid = 1000, .gid = 1000 };
                nth_step("create");
                r = NTH(tree_create(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), &what, &n));
                struct node there;
                if (r < 0 && tree_lookup(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), &there) < 0) {
                        (void)told(x, r, "create");
                        return false;
                }
                e->n = 0;
                nw_state(e, true);
                if (told(x, r, "create"))
                        return false;
        }
        if (told(x, r, "lookup"))
                return false;
        r = NTH(file_open(x->w->cache, n.ino, n.incarnation, true, truncate, &e->f));
        if (r < 0) {
                e->f = NULL;
                (void)told(x, r, "open");
                if (truncate) { /* it may have been emptied */
                        struct file *f = cw_file(x->w, n.ino, false, false);
                        uint8_t b;
                        nth_quiet(true);
                        if (nw_read(x->w, f, 0, &b, 1) == 0 && e->n > 0) {
                                e->n = 0;
                                e->spoiled = false;
                                nw_state(e, true);
                        }
                        nth_quiet(false);
                        file_release(f, false);
                }
                return false;
        }
        if (truncate) {
                e->n = 0;
                e->spoiled = false;
                e->error = 0;
                nw_state(e, true);
        }
        return true;
}

static inline void nw_fill(struct nw *x, uint8_t *p, size_t n) {
        x->fill = x->fill * 1664525u + 1013904223u;
        uint32_t v = x->fill;
        for (size_t i = 0; i < n; i++)
                p[i] = (uint8_t)((v = v * 1664525u + 1013904223u) >> 24) | 1;
}

static inline void nw_write(struct nw *x, struct entry *e, size_t off, size_t n) {
        if (!e->f)
                return;
        uint8_t *buf = malloc(n);
        nw_fill(x, buf, n);
        nth_step("write");
        struct file_write w = { .file = e->f, .off = off, .buf = buf, .n = n, .deadline_ms = now_ms() + WAIT_MS, .done = NULL };
        ssize_t r = NTH(file_write(&w));
        if (r == -EINPROGRESS)
                fail_msg("a write waits for room");
        if (told(x, (int)MIN(r, (ssize_t)0), "write")) {
                if (gen_is_spoiled(x, e, true)) {
                e->lo = e->spoiled ? MIN(e->lo, off) : off;
                e->hi = e->spoiled ? MAX(e->hi, off + n) : off + n;
                e->spoiled = true;
                }
                e->error = (int)r;
        } else {
                assert_int_equal(r, n);
                if (off > e->n)
                        memset(e->p + e->n, 0, off - e->n);
                memcpy(e->p + off, buf, n);
                e->n = MAX(e->n, off + n);
                if (e->spoiled && off <= e->lo && off + n >= e->hi)
                        e->spoiled = false;
                nw_state(e, true);
        }
        free(buf);
}

static inline size_t shown_size(struct nw *x, struct entry *e) {
        struct node n = { .size = 0 };
        uint64_t size = 0;
        int64_t m, c;
        assert_int_equal(tree_lookup(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), &n), 0);
        return file_overlay(x->w->cache, n.ino, &size, &m, &c) ? size : n.size;
}

static inline void set_length(struct entry *e, size_t n) {
        if (n > e->n)
                memset(e->p + e->n, 0, n - e->n);
        e->n = n;
}

static inline void nw_size(struct nw *x, struct entry *e, size_t n) {
        struct node node;
        nth_step("truncate");
        int r = e->f ? NTH(file_set_size(e->f, n)) : nw_row(x, e, &node);
        if (r == -ENOENT || (!e->f && told(x, r, "lookup")))
                return;
        if (r == 0 && !e->f)
                r = NTH(file_truncate(x->w->cache, node.ino, n));
        if (told(x, r, "truncate")) {
                if (!gen_is_spoiled(x, e, false))
                        return;
                /* a program knows that it may be either */
                if (!e->spoiled) {
                        e->lo = MIN(n, e->n);
                        e->hi = MAX(n, e->n);
                } else {
                        e->lo = MIN(e->lo, n);
                        e->hi = MAX(e->hi, MAX(n, e->n));
                }
                e->spoiled = true;
                e->error = r;
                return;
        }
        set_length(e, n);
        if (e->spoiled && (n <= e->lo))
                e->spoiled = false;
        nw_state(e, true);
}

static inline void nw_punch(struct nw *x, struct entry *e, size_t off, size_t n) {
        if (!e->f)
                return;
        nth_step("punch");
        int r = NTH(file_allocate(e->f, FILE_ALLOC_PUNCH, off, n));
        if (told(x, r, "punch")) {
                if (!gen_is_spoiled(x, e, false))
                        return;
                e->lo = e->spoiled ? MIN(e->lo, off) : off;
                e->hi = e->spoiled ? MAX(e->hi, off + n) : off + n;
                e->spoiled = true;
                e->error = r;
                return;
        }
        if (off < e->n)
                memset(e->p + off, 0, MIN(n, e->n - off));
        if (e->spoiled && off <= e->lo && off + n >= e->hi)
                e->spoiled = false;
        nw_state(e, true);
}

/* A sync has returned success: what is called local from now on is not taken away by a power cut. */
static inline void now_durable(struct nw *x, struct entry *e) {
        struct node n;
        enum level level = LEVEL_LOCAL;
        int r = tree_lookup(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), &n);
        if (r == 0)
                assert_int_equal(file_level(x->w->cache, n.ino, &level), 0);
        if (level >= LEVEL_LOCAL)
                e->durable = e->n_past - 1;
}

/* A sync failed: an open stage that it was about is kept back from the server as it is. */
static inline void nw_untrusted(struct nw *x, struct entry *e) {
        struct node n;
        if (tree_lookup(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), &n) < 0)
                return;
        struct file *f = file_find(x->w->cache->files, n.ino, -1);
        if (f && f->top && f->top->state == STAGE_OPEN && f->top->untrusted && !e->spoiled) {
                e->spoiled = true;
                e->lo = e->hi = e->n;
        }
        if (f)
                file_put(f);
}

static inline void nw_fsync(struct nw *x, struct entry *e) {
        if (!e->f)
                return;
        nth_step("fsync");
        int r = NTH(file_sync(e->f));
        if (!told(x, r, "fsync"))
                now_durable(x, e);
        else
                nw_untrusted(x, e);
}

static inline void nw_close(struct nw *x, struct entry *e) {
        if (!e->f)
                return;
        nth_step("close");
        int r = NTH(file_take_error(e->f));
        if ((e->spoiled || e->error) && r == 0)
                fail_msg("%s: close tells nothing of %s, spoiled %d; failed in %s", e->name, err_name(e->error), e->spoiled, nth_where());
        NTH_DO(file_release(e->f, true));
        e->f = NULL;
        e->error = 0;
}

static inline void nw_turn(struct nw *x) {
        nth_step("flush");
        int r = NTH(cache_turn(x->w->cache));
        bool failed = told(x, r, "flush");
        for (size_t i = 0; i < x->n_e; i++)
                if (failed)
                        nw_untrusted(x, &x->e[i]);
                else
                        now_durable(x, &x->e[i]);
        nw_pump(x->w);
}

static inline void nw_unlink(struct nw *x, struct entry *e) {
        struct node n, gone;
        nth_step("unlink");
        int r = nw_row(x, e, &n);
        if (r == -ENOENT || told(x, r, "lookup"))
                return;
        r = NTH(tree_unlink(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), false, (bool (*)(void *, uint64_t))file_is_open, x->w->cache, &gone));
        struct node there;
        if (told(x, r, "unlink") && tree_lookup(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), &there) == 0)
                return;
        NTH_DO(file_forget(x->w->cache, n.ino));
        e->spoiled = false;
        e->n = 0;
        nw_state(e, false);
}

/* write-temp, rename-over */
static inline void nw_rename(struct nw *x, struct entry *from, struct entry *to) {
        struct node n, old = { 0 };
        nth_step("rename");
        int r = nw_row(x, from, &n);
        if (r == -ENOENT || told(x, r, "lookup"))
                return;
        uint64_t gen;
        r = NTH(file_freeze(x->w->cache, n.ino, &gen));
        if (told(x, r, "freeze"))
                return;
        struct node moved, there;
        r = NTH(tree_rename(x->w->cache->tree, INO_ROOT, from->name, strlen(from->name), INO_ROOT, to->name, strlen(to->name), 0, (bool (*)(void *, uint64_t))file_is_open, x->w->cache, &moved, &old));
        if (told(x, r, "rename") && tree_lookup(x->w->cache->tree, INO_ROOT, from->name, strlen(from->name), &there) == 0)
                return;
        if (r == 0) {
                NTH_DO(file_renamed(x->w->cache, &moved, &old));
                if (old.ino)
                        NTH_DO(file_forget(x->w->cache, old.ino));
        }
        memcpy(to->p, from->p, from->n);
        to->n = from->n;
        to->spoiled = from->spoiled;
        to->lo = from->lo;
        to->hi = from->hi;
        if (!to->spoiled)
                nw_state(to, true);
        from->spoiled = false;
        nw_state(from, false);
}

/* ---- the server ---- */

static inline bool ever_was(struct nw *x, const void *p, size_t n) {
        uint64_t sum = sum_bytes(p, n);
        for (size_t i = 0; i < x->n_e; i++)
                for (size_t k = 0; k < x->e[i].n_past; k++)
                        if (x->e[i].past[k].there && x->e[i].past[k].n == n && x->e[i].past[k].sum == sum)
                                return true;
        return false;
}

/* As cw_accept, where each call into the cache may fail: then it is for another time. */
static inline int nw_accept(struct nw *x, const struct outbox_item *item) {
        struct cw *w = x->w;
        struct content content = content_empty;
        struct stage *st = NULL;
        int r = 0;
        nth_step("upload");
        if (getenv("DBG")) log_info("DBG send kind=%d ino=%llu gen=%llu op=%02x base=%02x node=%02x source=%02x state=%d", item->op.kind, (unsigned long long)item->ino, (unsigned long long)item->gen, item->op.id.b[0], item->op.version.b[0], item->op.node.b[0], item->op.source.b[0], item->state);
        if (item->gen) {
                const struct blocklist *list;
                r = NTH(stage_get(w->cache->stages, item->gen, &st));
                if (r < 0)
                        fail_msg("operation %d of ino %llu has no stage %llu", item->op.kind, (unsigned long long)item->ino, (unsigned long long)item->gen);
                if (r == 0)
                        r = NTH(stage_chunk(st, now_ms() + WAIT_MS, &list, &content));
                if (r == 0)
                        r = NTH(stages_sync_some(w->cache->stages, &item->gen, 1));
                if (r == -EIO && st->untrusted && !st->chunked) { /* parked until somebody saves it again */
                        for (size_t i = 0; i < x->n_e; i++) {
                                struct node n;
                                if (tree_lookup(w->cache->tree, INO_ROOT, x->e[i].name, strlen(x->e[i].name), &n) == 0 && n.gen == item->gen)
                                        x->e[i].parked = true;
                        }
                        stage_put(st);
                        r = outbox_park(w->cache->tree, &item->op.id, EIO, "damaged", 1);
                        return r < 0 ? r : 1;
                }
                uint8_t *bytes = malloc(content.size + 1);
                ssize_t n = r == 0 ? NTH(stage_pread(st, 0, bytes, content.size, now_ms() + WAIT_MS)) : r;
                r = (int)MIN(n, (ssize_t)0);
                if (r == 0 && (uint64_t)n != content.size)
                        fail_msg("upload of %llu: %zd of %llu bytes", (unsigned long long)item->gen, n, (unsigned long long)content.size);
                if (r == 0 && !ever_was(x, bytes, content.size))
                        fail_msg("upload of %llu bytes that no file ever had at an end of a call", (unsigned long long)content.size);
                if (r == 0) {
                        struct known *k = know(w->source, bytes, content.size, 0);
                        assert_true(content_equal(&k->content, &content));
                }
                free(bytes);
        }
        if (r == 0)
                r = NTH(outbox_mark_sent(w->cache->tree, &item->op.id, 1));
        if (r < 0) {
                stage_put(st);
                return r;
        }
        struct server_node *n = cw_server_node(w, &item->op.node, true), *source = id_is_zero(&item->op.source) ? NULL : cw_server_node(w, &item->op.source, false);
        bool known = false;
        for (size_t i = 0; i < x->n_ops && !known; i++)
                known = id_equal(&x->ops[i], &item->op.id);
        assert_true(x->n_ops < ARRAY_SIZE(x->ops));
        if (!known)
                x->ops[x->n_ops++] = item->op.id;
        w->seq += !known;
        struct change ch[2] = { 0 };
        if (known) {
                /* the answer is what it was, the rows are those of now */
        } else if (item->op.kind == OP_CREATE) {
                n->row = item->op.attrs;
                n->row.id = item->op.node;
                n->row.content = content;
                n->row.version = item->op.id;
                memcpy(n->name, item->op.name, item->op.name_bytes);
                n->name[item->op.name_bytes] = 0;
                n->entry = (struct entry_row) { .entry_id = ++w->entry_id, .parent = item->op.parent, .node = item->op.node, .name_bytes = item->op.name_bytes, .placement = item->op.id, .seq = w->seq };
        } else if (item->op.kind == OP_CONTENT || item->op.kind == OP_REPLACE) {
                if (!id_equal(&n->row.version, &item->op.version) && !id_equal(&n->row.version, &item->op.id))
                        fail_msg("a conflict of a file (%s) with itself: kind %d, base %02x, is %02x, op %02x", n->name, item->op.kind, item->op.version.b[0], n->row.version.b[0], item->op.id.b[0]);
                n->row.content = item->gen ? content : item->op.content;
                n->row.version = item->op.id;
                n->row.mtime_ns = item->op.attrs.mtime_ns;
        } else if (item->op.kind == OP_UNLINK) {
                n->row.deleted = true;
        } else if (item->op.kind == OP_RENAME) {
                memcpy(n->name, item->op.name2, item->op.name2_bytes);
                n->name[item->op.name2_bytes] = 0;
                n->entry.name_bytes = item->op.name2_bytes;
                n->entry.placement = item->op.id;
                n->entry.seq = w->seq;
        } else if (item->op.kind == OP_ATTR) {
                n->row.mtime_ns = item->op.attr_mask & ATTR_MTIME ? item->op.attrs.mtime_ns : n->row.mtime_ns;
        } else {
                fail_msg("operation kind %d", item->op.kind);
        }
        if (!known)
                n->row.seq = w->seq;
        n->entry.name = n->name;
        ch[0] = (struct change) { .node = n->row, .has_entries = true, .entries = &n->entry, .n_entries = n->row.deleted ? 0 : 1 };
        if (source) {
                source->row.deleted = true;
                source->row.seq = known ? source->row.seq : w->seq;
                ch[1] = (struct change) { .node = source->row, .has_entries = true };
        }
        struct op_result res = { .op = item->op.id, .code = RES_OK, .seq = w->seq, .current = ch, .n_current = source ? 2 : 1 };
        struct tree_applied applied = { 0 };
        struct arena *a;
        assert_int_equal(arena_new(16 << 20, &a), 0);
        nth_step("answer");
        r = NTH(tree_accepted(w->cache->tree, &res, (bool (*)(void *, uint64_t))file_is_open, w->cache, a, &applied));
        if (r == 0)
                NTH_DO(file_committed(w->cache, applied.done, applied.n_done));
        arena_free(a);
        stage_put(st);
        return r;
}

/* What counts as sent although it never left: as the engine does before it looks. */
static inline int nw_unsend(struct nw *x) {
        struct arena *a;
        static struct outbox_item items[64];
        size_t n = 0;
        assert_int_equal(arena_new(16 << 20, &a), 0);
        nth_step("unsend");
        int r = NTH(outbox_list(x->w->cache->tree, a, false, items, 64, &n));
        for (size_t i = 0; r == 0 && i < n; i++)
                if (items[i].state == OUT_SENT)
                        r = NTH(outbox_unsend(x->w->cache->tree, &items[i].op.id));
        arena_free(a);
        (void)told(x, r, "unsend");
        return r;
}

/* All that may go now. Returns the first failure. */
static inline int nw_send(struct nw *x) {
        int u = nw_unsend(x);
        if (u < 0)
                return u;
        for (;;) {
                struct arena *a;
                static struct outbox_item items[64];
                size_t n = 0;
                int64_t wait;
                assert_int_equal(arena_new(16 << 20, &a), 0);
                nth_step("outbox");
                int r = NTH(outbox_next(x->w->cache->tree, a, items, 64, &n, &wait));
                bool parked = false;
                for (size_t i = 0; r == 0 && i < n; i++) {
                        for (int again = 0; (r = nw_accept(x, &items[i])) == -EHOSTDOWN && again < 3 + (int)(SIZE_MAX_ >> 17); again++)
                                nw_pump(x->w); /* bytes of the base are on their way */
                        parked |= r == 1;
                        r = MIN(r, 0);
                }
                arena_free(a);
                if (told(x, r, "send") || !n || parked)
                        return r;
        }
}

/* ---- what must hold ---- */

enum look { LOOK_NOW, LOOK_CUT };
static inline bool spoiled_fits(const struct entry *e, const uint8_t *p, size_t n) {
        if (n != e->n && (n < MIN(e->lo, e->n) || n > MAX(e->hi, e->n)))
                return false;
        for (size_t i = 0; i < MIN(n, e->n); i++)
                if (p[i] != e->p[i] && (i < e->lo || i >= e->hi))
                        return false;
        return true;
}

static inline void nw_look(struct nw *x, enum look how, const char *when) {
        uint8_t *buf = malloc(SIZE_MAX_);
        for (size_t i = 0; i < x->n_e; i++) {
                struct entry *e = &x->e[i];
                struct node n;
                int r = tree_lookup(x->w->cache->tree, INO_ROOT, e->name, strlen(e->name), &n);
                bool ok = false;
                ssize_t got = -ENOENT;
                if (r == 0) {
                        struct file *f = cw_file(x->w, n.ino, false, false);
                        got = nw_read(x->w, f, 0, buf, SIZE_MAX_);
                        file_release(f, false);
                } else {
                        assert_int_equal(r, -ENOENT);
                }
                struct state is = { r == 0, got > 0 ? sum_bytes(buf, (size_t)got) : r == 0 ? 1 : 0, got > 0 ? (uint64_t)got : 0 };
                size_t from = how == LOOK_CUT ? e->durable : e->n_past - 1;
                for (size_t k = from; k < e->n_past && !ok && (got >= 0 || r < 0); k++)
                        ok = e->past[k].there == is.there && e->past[k].sum == is.sum && e->past[k].n == is.n;
                if (!ok && e->spoiled && r == 0)
                        ok = got < 0 || how == LOOK_CUT || spoiled_fits(e, buf, (size_t)got);
                if (!ok)
                        fail_msg("%s: %s is %s (%zd), expected %s of %llu, spoiled %d %zu-%zu, durable %zu of %zu; failed in %s", when, e->name, r == 0 ? "there" : "not there", got,
                                 nw_now(e)->there ? "a file" : "nothing", (unsigned long long)nw_now(e)->n, e->spoiled, e->lo, e->hi, e->durable, e->n_past, nth_where());
        }
        free(buf);
}

static inline void nw_save_spoiled(struct nw *x) {
        for (size_t i = 0; i < x->n_e; i++) {
                struct entry *e = &x->e[i];
                if (!e->spoiled && !e->parked)
                        continue;
                if (!e->f && !nw_open_file(x, e, true))
                        fail_msg("%s: cannot be opened", e->name);
                nw_size(x, e, 0);
                nw_write(x, e, 0, 7000);
                nw_close(x, e);
                if (e->spoiled)
                        fail_msg("%s: saved anew and still spoiled", e->name);
                e->parked = false;
        }
}

/* Everything that is shown gets to the server, and from there through an empty cache back. What was spoiled is saved anew. */
static inline void nw_finish(struct nw *x, const char *when) {
        struct cw *w = x->w;
        for (int i = 0; i < 20; i++) {
                nw_save_spoiled(x);
                nw_turn(x);
                assert_int_equal(nw_send(x), 0);
                struct outbox_totals o;
                assert_int_equal(outbox_totals(w->cache->tree, &o), 0);
                struct stages_totals s;
                stages_totals(w->cache->stages, &s);
                if (o.items == 0 && s.open == 0 && s.sealed == 0)
                        break;
                if (i == 19)
                        fail_msg("%s: %llu operations, %llu open and %llu sealed stages stay; failed in %s", when, (unsigned long long)o.items, (unsigned long long)s.open, (unsigned long long)s.sealed, nth_where());
        }
        uint8_t *buf = malloc(SIZE_MAX_);
        assert_int_equal(blobs_evict_all(w->cache->blobs), 0);
        for (size_t i = 0; i < x->n_e; i++) {
                struct entry *e = &x->e[i];
                struct node n;
                int r = tree_lookup(w->cache->tree, INO_ROOT, e->name, strlen(e->name), &n);
                const struct server_node *sn = NULL;
                for (size_t k = 0; k < w->n_nodes; k++)
                        if (!w->nodes[k].row.deleted && !strcmp(w->nodes[k].name, e->name))
                                sn = &w->nodes[k];
                assert_int_equal(r == 0, sn != NULL);
                if (r < 0)
                        continue;
                assert_int_equal(n.gen, 0);
                assert_true(content_equal(&n.content, &sn->row.content));
                struct file *f = cw_file(w, n.ino, false, false);
                ssize_t got = nw_read(w, f, 0, buf, SIZE_MAX_);
                if (got != (ssize_t)n.size || !ever_was(x, buf, (size_t)got))
                        fail_msg("%s: %s from the server gives %zd of %llu", when, e->name, got, (unsigned long long)n.size);
                file_release(f, false);
        }
        free(buf);
}

/* ---- copies of the cache directory ---- */

static inline void copy_file(const char *from, const char *to) {
        int a = open(from, O_RDONLY | O_CLOEXEC), b = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_true(a >= 0 && b >= 0);
        struct stat st;
        assert_int_equal(fstat(a, &st), 0);
        static uint8_t buf[1 << 18];
        for (off_t at = 0; (at = lseek(a, at, SEEK_DATA)) >= 0;) {
                off_t end = lseek(a, at, SEEK_HOLE);
                while (at < end) {
                        ssize_t n = pread_some(a, buf, MIN(sizeof buf, (size_t)(end - at)), (uint64_t)at);
                        assert_true(n > 0);
                        assert_int_equal(pwrite_full(b, buf, (size_t)n, (uint64_t)at), 0);
                        at += n;
                }
        }
        assert_int_equal(ftruncate(b, st.st_size), 0);
        (void)close(a);
        (void)close(b);
}
static inline void copy_dir(const char *from, const char *to) {
        assert_int_equal(mkdir(to, 0700), 0);
        DIR *d = opendir(from);
        assert_non_null(d);
        for (struct dirent *e; (e = readdir(d));) {
                char a[PATH_MAX], b[PATH_MAX];
                if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
                        continue;
                assert_true((size_t)snprintf(a, sizeof a, "%s/%s", from, e->d_name) < sizeof a);
                assert_true((size_t)snprintf(b, sizeof b, "%s/%s", to, e->d_name) < sizeof b);
                if (e->d_type == DT_DIR)
                        copy_dir(a, b);
                else
                        copy_file(a, b);
        }
        (void)closedir(d);
}
/* The next start of it is the first one after a boot. */
static inline void cut_power(const char *dir) {
        char path[300];
        (void)snprintf(path, sizeof path, "%s/boot", dir);
        assert_int_equal(file_replace(path, "00000000-0000-0000-0000-000000000000", 36, 0600), 0);
}

/* ---- worlds ---- */

static inline void nw_new(struct nw *x, uint64_t limit) {
        *x = (struct nw) { .fill = 1 };
        struct cw *w = x->w = calloc(1, sizeof *w);
        w->limit = limit;
        struct world *s = w->source = calloc(1, sizeof *s);
        s->source = (struct source) { world_fetch, world_cancel };
        lock_init(&s->lock, "world", RANK_QUEUE);
        cond_init(&s->more);
        rng_seed(&s->rng, 1);
        (void)snprintf(w->dir, sizeof w->dir, "%s/tarn-nth-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        assert_non_null(tmpdir_new(w->dir));
        (void)snprintf(x->home, sizeof x->home, "%s", w->dir);
        (void)snprintf(w->dir, sizeof w->dir, "%.100s/cache", x->home);
}
static inline void nw_free(struct nw *x) {
        struct cw *w = x->w;
        struct world *s = w->source;
        for (size_t i = 0; i < x->n_e; i++)
                free(x->e[i].p);
        for (size_t i = 0; i < s->n_known; i++)
                forget_known(s->known[i]);
        free(s->known);
        cond_destroy(&s->more);
        lock_destroy(&s->lock);
        remove_tree(x->home);
        free(s);
        free(w->nodes);
        free(w);
}
