/* SPDX-License-Identifier: Apache-2.0 */
/* meta_content.c: the blocks of a content: may the subject name them, are they there, and who refers to them.
 *
 * A content of one block needs nothing but its root. A deeper one is a tree of list pages, which are read before the transaction (content_plan_make): store
 * reads never happen under the database lock. Pages are read only if the subject may name them, since what a page says is as secret as the file. The list of
 * the version that will be replaced is loaded too: blocks that it holds need no check and no row, so that a commit costs what it changes.
 *
 * In the transaction (content_check) every block that begins a *run*, that is, is not in the replaced version, is looked up anew: referred to by the
 * workspace, claimed by the subject and present, or fresh (it came with this request). Its length must be the stored one. Then quota. Only after everything
 * else was decided content_apply maps fresh blocks, counts the runs and turns claims into use.
 *
 * If the node's content is not the one that the plan was made for (somebody committed in between), the answer is OPX_AGAIN. A one-block content that follows a
 * deep one always begins a run: the rule needs no list. */
#include <assert.h>
#include <string.h>

#include "base/chunk.h"
#include "base/digest.h"
#include "base/log.h"
#include "meta_maintain.h"
#include "meta_op.h"

struct set { struct blockref *refs; size_t n, room; };
struct loader {
        struct meta *m; const struct meta_subject *subject; uint64_t ws; struct page_get *pages;
        uint8_t param;
        bool free_of_rights;      /* the replaced version's own list */
        struct set set;
        struct digest *missing; size_t n_missing;
        enum op_code code;
};

static int set_add(struct loader *l, const struct digest *hash, uint64_t bytes) {
        if (l->set.n >= META_CONTENT_BLOCKS_MAX) {
                l->code = RES_TOO_LARGE;
                return -EFBIG;
        }
        if (bytes > BLOCK_BYTES_MAX) {
                l->code = RES_CORRUPT;
                return -EBADMSG;
        }
        if (l->set.n == l->set.room) {
                size_t room = MAX(l->set.room * 2, (size_t)256);
                struct blockref *more = reallocarray(l->set.refs, room, sizeof *more);
                if (!more)
                        return -ENOMEM;
                l->set.refs = more;
                l->set.room = room;
        }
        l->set.refs[l->set.n++] = (struct blockref){ *hash, (uint32_t)bytes };
        return 0;
}

static int page_missing(struct loader *l, const struct digest *hash) {
        struct digest *more = reallocarray(l->missing, l->n_missing + 1, sizeof *more);
        if (!more)
                return -ENOMEM;
        l->missing = more;
        l->missing[l->n_missing++] = *hash;
        return 0;
}

static int page_readable(struct loader *l, const struct digest *hash) {
        if (!l->pages)
                return 0;
        if (l->free_of_rights)
                return 1;
        _cleanup_view_ struct view v = { l->m, NULL };
        int r = view_begin(l->m, &v.db);
        if (r < 0)
                return r;
        uint32_t raw, reserved;
        return block_right(v.db, l->ws, l->subject->account, hash, &raw, &reserved);
}

/* last: on the right edge of the tree, where pages may be short. */
static int load(struct loader *l, const struct digest *hash, uint8_t level, uint64_t bytes, bool last, bool root) {
        int r = page_readable(l, hash);
        const void *p = NULL;
        size_t n = 0;
        if (r > 0) {
                r = l->pages->page(l->pages, hash, &p, &n);
                if (r == -ENODATA || r == -ENOENT || r == -EBADMSG)
                        r = page_missing(l, hash);
                else if (r == 0)
                        r = 1;
        } else if (r == 0)
                r = page_missing(l, hash);
        if (r <= 0)
                return r;
        struct digest real;
        sha256(p, n, &real);
        _cleanup_free_ struct list_page *page = malloc(sizeof *page);
        if (!page)
                return -ENOMEM;
        bool good = digest_equal(&real, hash) && list_page_parse(p, n, page) == 0 && page->level == level && page->param == l->param &&
                    (last || page->n == LIST_FANOUT) && (!root || page->n >= 2);
        uint64_t sum = 0;
        for (size_t i = 0; good && i < page->n; i++) {
                good = page->bytes[i] > 0 && page->bytes[i] <= bytes && sum <= bytes - page->bytes[i];
                sum += page->bytes[i];
        }
        if (!good || sum != bytes) {
                l->code = RES_CORRUPT;
                return -EBADMSG;
        }
        r = set_add(l, hash, n);
        for (size_t i = 0; r == 0 && i < page->n; i++)
                r = level == 1 ? set_add(l, &page->hash[i], page->bytes[i])
                               : load(l, &page->hash[i], (uint8_t)(level - 1), page->bytes[i], last && i + 1 == page->n, false);
        return r;
}

static int by_hash(const void *a, const void *b) { return memcmp(((const struct blockref *)a)->hash.b, ((const struct blockref *)b)->hash.b, DIGEST_BYTES); }

/* 0: the set is there, or `code` or `missing` say why not. */
static int load_set(struct loader *l, const struct content *c) {
        l->param = c->param;
        int r = load(l, &c->root, c->depth, c->size, true, true);
        if (r < 0)
                return l->code != RES_OK ? 0 : r;
        if (l->set.n == 0)
                return 0;
        qsort(l->set.refs, l->set.n, sizeof l->set.refs[0], by_hash);
        size_t k = 0;
        for (size_t i = 0; i < l->set.n; i++) {
                if (k > 0 && digest_equal(&l->set.refs[k - 1].hash, &l->set.refs[i].hash)) {
                        if (l->set.refs[k - 1].bytes != l->set.refs[i].bytes)
                                l->code = RES_CORRUPT;
                        continue;
                }
                l->set.refs[k++] = l->set.refs[i];
        }
        l->set.n = k;
        return 0;
}

int meta_content_set(const struct content *content, struct page_get *pages, struct blockref **ret, size_t *ret_n) {
        struct loader l = { .pages = pages, .free_of_rights = true };
        int r = 0;
        if (content->depth == 0 && content->size > 0)
                r = set_add(&l, &content->root, content->size);
        else if (content->depth > 0)
                r = load_set(&l, content);
        if (r == 0 && l.code != RES_OK)
                r = -EBADMSG;
        if (r == 0 && l.n_missing > 0)
                r = -ENODATA;
        free(l.missing);
        if (r < 0) {
                free(l.set.refs);
                return r;
        }
        *ret = l.set.refs;
        *ret_n = l.set.n;
        return 0;
}

int meta_runs(const struct meta_set *prev, const struct meta_set *now, int (*each)(void *arg, const struct blockref *ref), void *arg) {
        bool compare = prev && (now->content.depth > 0 || prev->content.depth == 0); /* one block after a list always begins a run */
        size_t k = 0;
        for (size_t i = 0; i < now->n; i++) {
                int c = 1;
                while (compare && k < prev->n && (c = by_hash(&prev->refs[k], &now->refs[i])) < 0)
                        k++;
                if (compare && k < prev->n && c == 0)
                        continue;
                int r = each(arg, &now->refs[i]);
                if (r != 0)
                        return r;
        }
        return 0;
}

int content_plan_make(struct meta *m, const struct meta_subject *subject, uint64_t ws, const struct content *content, const struct content *prev, struct page_get *pages,
                      struct content_plan **ret) {
        struct content_plan *p = calloc(1, sizeof *p);
        if (!p)
                return -ENOMEM;
        p->content = *content;
        struct loader l = { .m = m, .subject = subject, .ws = ws, .pages = pages };
        int r = load_set(&l, content);
        p->set = l.set.refs;
        p->n = l.set.n;
        p->missing = l.missing;
        p->n_missing = l.n_missing;
        p->code = l.code;
        if (r == 0 && prev)
                p->prev = *prev;
        if (r == 0 && prev && prev->depth > 0 && p->code == RES_OK && p->n_missing == 0) {
                struct loader q = { .m = m, .subject = subject, .ws = ws, .pages = pages, .free_of_rights = true };
                r = load_set(&q, prev);
                free(q.missing);
                if (r == -ENOMEM || r == -EAGAIN)
                        free(q.set.refs);
                else if (r < 0 || q.code != RES_OK || q.n_missing > 0) {
                        /* The old version cannot be read. Then every block of the new one begins a run: too many are counted, never too few. */
                        log_debug("old block list unreadable workspace=%llu err=%d", (unsigned long long)ws, r);
                        free(q.set.refs);
                        r = 0;
                } else {
                        p->prev_set = q.set.refs;
                        p->prev_n = q.set.n;
                }
        }
        if (r < 0) {
                content_plan_free(p);
                return r;
        }
        *ret = p;
        return 0;
}

void content_plan_free(struct content_plan *p) {
        if (!p)
                return;
        free(p->set);
        free(p->prev_set);
        free(p->missing);
        free(p);
}

/* `order` is a hash table of indices (+1) into blocks, open addressing, twice as large as n. */
static size_t fresh_slot(const struct fresh *f, const struct digest *hash, size_t size) {
        uint64_t h;
        memcpy(&h, hash->b, sizeof h);
        size_t at = (size_t)(h % size);
        while (f->order[at] && !digest_equal(&f->blocks[f->order[at] - 1].hash, hash))
                at = (at + 1) % size;
        return at;
}

int fresh_init(struct fresh *f, const char *object, uint64_t object_bytes, const struct meta_block *blocks, size_t n) {
        *f = (struct fresh){ .object = object, .object_bytes = object_bytes, .blocks = blocks, .n = n };
        if (n == 0)
                return 0;
        f->order = calloc(2 * n, sizeof *f->order);
        if (!f->order)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                f->order[fresh_slot(f, &blocks[i].hash, 2 * n)] = (uint32_t)i + 1;
        return 0;
}

void fresh_free(struct fresh *f) { free(f->order); }

static const struct meta_block *fresh_find(const struct fresh *f, const struct digest *hash) {
        if (!f || f->n == 0)
                return NULL;
        uint32_t i = f->order[fresh_slot(f, hash, 2 * f->n)];
        return i ? &f->blocks[i - 1] : NULL;
}

/* What the subject may do with a block: fills run; 1 it is there, 0 missing, -errno. */
static int look_up(struct opx *x, const struct blockref *ref, struct run *run) {
        *run = (struct run){ .hash = ref->hash };
        run->fresh = fresh_find(x->fresh, &ref->hash);
        int r = block_right(x->db, x->s->ws, x->subject->account, &ref->hash, &run->raw, &run->reserved);
        if (r < 0)
                return r;
        if (r == RIGHT_KEPT || r == RIGHT_CLAIM) {
                run->state = r == RIGHT_KEPT ? RUN_KNOWN : RUN_CLAIMED;
                return 1;
        }
        if (!run->fresh)
                return 0;
        if (r == RIGHT_WANTED) {
                run->state = RUN_HEALED;
                return 1;
        }
        run->raw = run->fresh->raw_bytes;
        run->state = RUN_FRESH;
        return 1;
}

/* A block that the last version has needs nothing, and is not asked for if it is damaged: who edits another part of the file may not have it. But its bytes are taken if they came: 1. */
static int repeated(struct opx *x, const struct blockref *ref, struct run *run) {
        *run = (struct run){ .hash = ref->hash, .state = RUN_REPEATED, .fresh = fresh_find(x->fresh, &ref->hash) };
        if (!run->fresh)
                return 0;
        int r = block_right(x->db, x->s->ws, x->subject->account, &ref->hash, &run->raw, &run->reserved);
        run->reserved = 0;
        return r < 0 ? r : r == RIGHT_WANTED && run->raw == ref->bytes;
}

static int check_runs(struct opx *x, const struct blockref *set, size_t n, const struct blockref *prev, size_t prev_n) {
        struct digest *missing = NULL;
        size_t k = 0, n_missing = 0;
        x->runs = n ? arena_alloc(x->a, n * sizeof *x->runs) : NULL;
        if (n && !x->runs)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                while (k < prev_n && by_hash(&prev[k], &set[i]) < 0)
                        k++;
                struct run *run = &x->runs[x->n_runs];
                if (k < prev_n && digest_equal(&prev[k].hash, &set[i].hash)) {
                        if (prev[k].bytes != set[i].bytes)
                                return RES_CORRUPT;
                        int r = repeated(x, &set[i], run);
                        if (r < 0)
                                return r;
                        x->n_runs += r > 0;
                        continue;
                }
                int r = look_up(x, &set[i], run);
                if (r < 0)
                        return r;
                if (r == 0) {
                        if (!missing && !(missing = arena_alloc(x->a, (n - i) * sizeof *missing)))
                                return -ENOMEM;
                        missing[n_missing++] = set[i].hash;
                        continue;
                }
                if (run->raw != set[i].bytes)
                        return RES_CORRUPT;
                x->n_runs++;
                x->bytes_more += run->state == RUN_KNOWN || run->state == RUN_HEALED ? 0 : run->raw;
                x->bytes_released += run->reserved;
        }
        if (n_missing > 0) {
                x->missing = missing;
                x->n_missing = n_missing;
                return RES_BLOCKS_MISSING;
        }
        uint64_t taken = x->s->used + x->s->reserved - MIN(x->bytes_released, x->s->reserved);
        if (x->s->quota && x->bytes_more > 0 && (taken > x->s->quota || x->bytes_more > x->s->quota - taken))
                return RES_QUOTA;
        return RES_OK;
}

int content_check(struct opx *x, const struct content *c, const struct content *prev) {
        if (c->depth > 3 || (c->size == 0 && (c->depth > 0 || !digest_is_zero(&c->root))) || (c->size > 0 && digest_is_zero(&c->root)))
                return RES_INVALID;
        if (c->size == 0)
                return RES_OK;
        if (!chunk_param(c->param))
                return RES_UNSUPPORTED;
        if (c->depth == 0) {
                if (c->size > BLOCK_BYTES_MAX)
                        return RES_INVALID;
                struct blockref one = { c->root, (uint32_t)c->size }, old = { 0 };
                size_t n_old = prev && prev->depth == 0 && prev->size > 0;
                if (n_old)
                        old = (struct blockref){ prev->root, (uint32_t)prev->size };
                return check_runs(x, &one, 1, &old, n_old);
        }
        const struct content_plan *p = x->plan;
        static const struct content none;
        if (!p || !content_equal(&p->content, c) || !content_equal(&p->prev, prev ? prev : &none))
                return OPX_AGAIN;
        if (p->code != RES_OK)
                return (int)p->code;
        if (p->n_missing > 0) {
                struct digest *missing = arena_alloc(x->a, p->n_missing * sizeof *missing);
                if (!missing)
                        return -ENOMEM;
                memcpy(missing, p->missing, p->n_missing * sizeof *missing);
                x->missing = missing;
                x->n_missing = p->n_missing;
                return RES_BLOCKS_MISSING;
        }
        if (p->prev.depth > 0)
                return check_runs(x, p->set, p->n, p->prev_set, p->prev_n);
        struct blockref old = { p->prev.root, (uint32_t)p->prev.size };
        return check_runs(x, p->set, p->n, &old, p->prev.size > 0);
}

int content_apply(struct opx *x) {
        for (size_t i = 0; i < x->n_runs; i++) {
                struct run *run = &x->runs[i];
                int r = 0;
                if (run->state == RUN_FRESH || run->state == RUN_HEALED || run->state == RUN_REPEATED)
                        r = block_map(x->t, x->fresh->object, x->fresh->object_bytes, run->fresh, &x->fresh->object_id);
                if (r == 0 && run->state == RUN_CLAIMED)
                        r = sql_run(x->db, "DELETE FROM claim WHERE workspace = ?1 AND account = ?2 AND hash = ?3", "iid", (int64_t)x->s->ws, (int64_t)x->subject->account, &run->hash);
                if (r == 0 && run->state != RUN_REPEATED)
                        r = sql_run(x->db, "INSERT INTO block_ref(workspace, hash, refs, raw) VALUES(?1, ?2, 1, ?3) ON CONFLICT(workspace, hash) DO UPDATE SET refs = block_ref.refs + 1", "idi",
                                    (int64_t)x->s->ws, &run->hash, (int64_t)run->raw);
                if (r < 0)
                        return r;
        }
        x->s->used += x->bytes_more;
        x->s->reserved -= MIN(x->bytes_released, x->s->reserved);
        x->s->dirty = true;
        return 0;
}
