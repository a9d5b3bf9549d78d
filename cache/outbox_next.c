/* SPDX-License-Identifier: Apache-2.0 */
/* outbox_next.c: what may go now, and the engine's other doors to the outbox.
 *
 * A row may go if it is queued (or parked and due), each of its predecessors was sent or goes in the same answer, and none of these holds it:
 *
 *   hold      a temporary's name (temporary.c), or a new file (or what takes an old one's place) without content that is open for writing or about to be opened by who makes it: until 2 s after it was queued (class HOLD)
 *   barrier   unlink, rename-over, replace (class BARRIER): until every content queued before it is accepted, goes with it, is parked, or has
 *             waited 60 s. Contents that are on their way or go with it are named in `after`, so that the order holds whatever the server answers
 *   children  rmdir, a directory's explicit mtime, a rename over a directory: until the earlier operations in that directory are accepted or go with it, in `after`
 *
 * `after` names at most AFTER_MAX predecessors. A barrier that goes stands for all contents before it, so that the next barrier names only that one and what
 * came since; a row that would need more waits for the answers.
 *
 * Cost. Nothing here walks the queue: rows without unsent predecessors come from a partial index by class, in order; a row whose last missing predecessor was just taken is found
 * through table dep and enters a heap; rows are taken in order of `ord` from both. Barriers stop being looked at when one content before them stays behind. Rows on hold
 * are at most what was queued in the last 2 s (looked at up to HOLD_ROWS_MAX).
 *
 * The open check is a callback into file.c and takes its locks: it is asked before the rows are computed, with no lock held. */
#include "tree_priv.h"

#include <assert.h>
#include <stdio.h>

#define HOLD_ROWS_MAX 4096u
#define NS_PER_MS 1000000ll

/* ---- sets ---- */

struct taken { uint64_t ord; struct id id; bool content, barrier; };
struct heap { uint64_t *v; size_t n, room; };

static int heap_push(struct heap *h, uint64_t ord) {
        for (size_t i = 0; h->n < 64 && i < h->n; i++)
                if (h->v[i] == ord)
                        return 0;
        if (h->n == h->room) {
                size_t room = h->room ? h->room * 2 : 64;
                uint64_t *p = reallocarray(h->v, room, sizeof(*p));
                if (!p)
                        return -ENOMEM;
                h->v = p;
                h->room = room;
        }
        size_t i = h->n++;
        for (; i > 0 && h->v[(i - 1) / 2] > ord; i = (i - 1) / 2)
                h->v[i] = h->v[(i - 1) / 2];
        h->v[i] = ord;
        return 0;
}

static uint64_t heap_pop(struct heap *h) {
        uint64_t top = h->v[0], last = h->v[--h->n];
        size_t i = 0;
        for (;;) {
                size_t k = 2 * i + 1;
                if (k >= h->n)
                        break;
                if (k + 1 < h->n && h->v[k + 1] < h->v[k])
                        k++;
                if (h->v[k] >= last)
                        break;
                h->v[i] = h->v[k];
                i = k;
        }
        if (h->n)
                h->v[i] = last;
        return top;
}

struct pick {
        struct tree *t;
        struct db *db;
        struct arena *a;
        int64_t now_ns;
        struct taken *taken;      /* in order */
        size_t n_taken, max;
        struct open_set held;     /* ords on hold */
        struct open_set free_hold;/* ords of class HOLD that may go */
        struct heap heap;
        uint64_t hold_ord;        /* a content that stays behind: barriers after it wait; UINT64_MAX: none known */
        int64_t barrier_wait_ms;
};

static const struct taken *find_taken(const struct pick *p, uint64_t ord) {
        size_t lo = 0, hi = p->n_taken;
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                if (p->taken[mid].ord == ord)
                        return &p->taken[mid];
                if (p->taken[mid].ord < ord)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        return NULL;
}

static bool has(const struct open_set *s, uint64_t ord) {
        size_t lo = 0, hi = s->n;
        while (lo < hi) {
                size_t mid = (lo + hi) / 2;
                if (s->ino[mid] == ord)
                        return true;
                if (s->ino[mid] < ord)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        return false;
}

/* Age in ms by the real clock of this machine; a clock that went back makes it old. */
static int64_t age_ms(const struct pick *p, int64_t queued_ns) {
        return queued_ns > p->now_ns ? INT64_MAX / NS_PER_MS : (p->now_ns - queued_ns) / NS_PER_MS;
}

struct afters { struct id ids[AFTER_MAX]; size_t n; };

static bool add_after(struct afters *l, const struct id *id) {
        for (size_t i = 0; i < l->n; i++)
                if (id_equal(&l->ids[i], id))
                        return true;
        if (l->n == AFTER_MAX)
                return false;
        l->ids[l->n++] = *id;
        return true;
}

/* ---- the rules ---- */

/* 1: all explicit predecessors are sent or taken; 0: not. */
static int check_deps(struct pick *p, const struct orow *o, struct afters *after) {
        struct db_stmt *s;
        int ok = 1;
        int r = db_query(p->db, &s, "SELECT p.ord,p.state,p.id FROM dep d JOIN outbox p ON p.ord=d.pred WHERE d.succ=?", "i", (int64_t)o->ord);
        while (r > 0) {
                struct id id = db_col_id(s, 2);
                if (db_col_int(s, 1) != OUT_SENT && !find_taken(p, (uint64_t)db_col_int(s, 0)))
                        ok = 0;
                else if (!add_after(after, &id))
                        ok = 0;
                r = db_step(s);
        }
        return r < 0 ? r : ok;
}

/* A barrier and the contents queued before it. 1 it may go; 0 not. */
static int check_barrier(struct pick *p, const struct orow *o, struct afters *after) {
        struct db_stmt *s;
        if (o->ord > p->hold_ord)
                return 0;
        /* the newest barrier that goes in this answer stands for what it waited for itself */
        uint64_t from = 0;
        for (size_t i = p->n_taken; i-- > 0 && !from;)
                if (p->taken[i].barrier) {
                        if (!add_after(after, &p->taken[i].id))
                                return 0;
                        from = p->taken[i].ord;
                }
        int64_t since = p->now_ns - BARRIER_MS * NS_PER_MS;
        int ok = 1;
        int r = from ? db_query(p->db, &s, "SELECT ord,state,id,queued_ns FROM outbox WHERE ord > ?1 AND ord < ?2 AND gen > 0 AND state <> 2", "ii", (int64_t)from, (int64_t)o->ord)
                     : db_query(p->db, &s, "SELECT ord,state,id,queued_ns FROM outbox WHERE gen > 0 AND state <> 2 AND queued_ns > ?1 AND +ord < ?2 ORDER BY queued_ns", "ii", since,
                                (int64_t)o->ord);
        while (r > 0) {
                uint64_t ord = (uint64_t)db_col_int(s, 0);
                int64_t age = age_ms(p, db_col_int(s, 3));
                struct id id = db_col_id(s, 2);
                if (age < BARRIER_MS) {
                        bool goes = find_taken(p, ord) || db_col_int(s, 1) == OUT_SENT;
                        if (!goes)
                                p->barrier_wait_ms = BARRIER_MS - age;
                        if (!goes || !add_after(after, &id)) {
                                p->hold_ord = MIN(p->hold_ord, ord); /* nothing that waits for it goes in this answer */
                                ok = 0;
                                db_reset(s);
                                r = 0;
                                break;
                        }
                }
                r = db_step(s);
        }
        return r < 0 ? r : ok;
}

static int check_children(struct pick *p, const struct orow *o, struct afters *after) {
        struct db_stmt *s;
        uint64_t dir = o->op.kind == OP_RENAME ? o->ino2 : o->ino;
        int ok = 1;
        int r = db_query(p->db, &s, "SELECT ord,state,id FROM outbox WHERE p1=?1 AND p1 > 0 AND ord<?2 UNION ALL SELECT ord,state,id FROM outbox WHERE p2=?1 AND p2 > 0 AND ord<?2",
                         "ii", (int64_t)dir, (int64_t)o->ord);
        while (r > 0) {
                struct id id = db_col_id(s, 2);
                if ((db_col_int(s, 1) != OUT_SENT && !find_taken(p, (uint64_t)db_col_int(s, 0))) || !add_after(after, &id)) {
                        ok = 0;
                        db_reset(s);
                        r = 0;
                        break;
                }
                r = db_step(s);
        }
        return r < 0 ? r : ok;
}

/* An earlier content of the same node that was not sent: this one stays soft until it was. */
static int check_content(struct pick *p, const struct orow *o) {
        int64_t v;
        int r = db_int(p->db, &v, "SELECT EXISTS(SELECT 1 FROM outbox WHERE ino=? AND ord<? AND gen > 0 AND state<>1)", "ii", (int64_t)o->ino, (int64_t)o->ord);
        return r < 0 ? r : !v;
}

static int push_dependents(struct pick *p, uint64_t ord) {
        struct db_stmt *s;
        int r = db_query(p->db, &s, "SELECT o.ord FROM dep d JOIN outbox o ON o.ord=d.succ WHERE d.pred=? AND o.state=0 ORDER BY o.ord LIMIT ?", "ii", (int64_t)ord, (int64_t)p->max);
        while (r > 0) {
                r = heap_push(&p->heap, (uint64_t)db_col_int(s, 0));
                if (r < 0)
                        db_reset(s);
                else
                        r = db_step(s);
        }
        return r;
}

/* Takes the row if it may go. */
static int consider(struct pick *p, uint64_t ord, struct outbox_item *items) {
        struct orow o;
        struct afters after = {0};
        struct db_stmt *s;
        if (find_taken(p, ord) || has(&p->held, ord))
                return 0;
        int r = db_query(p->db, &s, "SELECT " OUT_COLS " FROM outbox o WHERE o.ord=?", "i", (int64_t)ord);
        if (r <= 0)
                return r;
        r = outbox_row_read(s, 0, p->a, &o);
        db_reset(s);
        if (r < 0)
                return r;
        if (o.class == CLASS_HOLD && o.state == OUT_QUEUED && !has(&p->free_hold, ord))
                return 0;
        r = check_deps(p, &o, &after);
        if (r > 0 && o.gen)
                r = check_content(p, &o);
        if (r > 0 && (o.bits & OB_CHILDREN))
                r = check_children(p, &o, &after);
        if (r > 0 && (o.bits & OB_BARRIER))
                r = check_barrier(p, &o, &after);
        if (r <= 0)
                return r;
        struct outbox_item *item = &items[p->n_taken];
        r = outbox_item_from(p->a, &o, item);
        if (r < 0)
                return r;
        if (after.n) {
                struct id *ids = arena_alloc(p->a, after.n * sizeof(*ids));
                if (!ids)
                        return -ENOMEM;
                memcpy(ids, after.ids, after.n * sizeof(*ids));
                item->op.after = ids;
                item->op.n_after = after.n;
        }
        p->taken[p->n_taken++] = (struct taken){ .ord = ord, .id = o.op.id, .content = o.gen != 0, .barrier = o.bits & OB_BARRIER };
        return push_dependents(p, ord);
}

/* ---- the streams of rows without unsent predecessors ---- */

struct stream { enum out_class class; uint64_t buf[256]; size_t at, n; uint64_t last; bool end; };

static int stream_head(struct pick *p, struct stream *st, uint64_t *ret) {
        if (st->at == st->n && !st->end) {
                struct db_stmt *s;
                st->at = st->n = 0;
                int r = db_query(p->db, &s, "SELECT ord FROM outbox WHERE state = 0 AND nwait = 0 AND class=? AND ord>? ORDER BY ord LIMIT ?", "iii", (int64_t)st->class,
                                 (int64_t)st->last, (int64_t)ARRAY_SIZE(st->buf));
                while (r > 0) {
                        st->buf[st->n++] = (uint64_t)db_col_int(s, 0);
                        r = db_step(s);
                }
                if (r < 0)
                        return r;
                st->end = st->n < ARRAY_SIZE(st->buf);
                if (st->n)
                        st->last = st->buf[st->n - 1];
        }
        *ret = st->at < st->n ? st->buf[st->at] : UINT64_MAX;
        if (st->class == CLASS_BARRIER && *ret > p->hold_ord) /* none of the later ones may go */
                *ret = UINT64_MAX;
        return 0;
}

static int push_due(struct pick *p, int64_t *io_wait_ms) {
        struct db_stmt *s;
        int64_t next;
        int r = db_query(p->db, &s, "SELECT ord FROM outbox WHERE state = 2 AND next_try_ns <= ? ORDER BY next_try_ns LIMIT 1024", "i", p->now_ns);
        while (r > 0) {
                r = heap_push(&p->heap, (uint64_t)db_col_int(s, 0));
                if (r < 0)
                        db_reset(s);
                else
                        r = db_step(s);
        }
        if (r == 0)
                r = db_int(p->db, &next, "SELECT next_try_ns FROM outbox WHERE state = 2 AND next_try_ns > ? ORDER BY next_try_ns LIMIT 1", "i", p->now_ns);
        if (r == 0) {
                int64_t wait = (next - p->now_ns + NS_PER_MS - 1) / NS_PER_MS;
                *io_wait_ms = *io_wait_ms < 0 ? wait : MIN(*io_wait_ms, wait);
        }
        return r == -ENOENT ? 0 : r;
}

struct holds { struct { uint64_t ord, ino; int64_t queued_ns; bool temp; } *v; size_t n; };

static int read_holds(struct tree *t, struct holds *h) {
        TREE_READ(rd, t);
        struct db_stmt *s;
        int r = db_query(rd.db, &s, "SELECT ord,ino,queued_ns,bits FROM outbox WHERE state = 0 AND nwait = 0 AND class=2 ORDER BY ord LIMIT ?", "i", (int64_t)HOLD_ROWS_MAX);
        while (r > 0) {
                h->v[h->n].ord = (uint64_t)db_col_int(s, 0);
                h->v[h->n].ino = (uint64_t)db_col_int(s, 1);
                h->v[h->n].queued_ns = db_col_int(s, 2);
                h->v[h->n].temp = db_col_int(s, 3) & OB_TEMP;
                h->n++;
                r = db_step(s);
        }
        return r;
}

static int decide_holds(struct pick *p, const struct holds *h, int64_t *io_wait_ms) {
        int r = 0;
        p->now_ns = clock_real_ns(p->t->clock); /* later than anything that was read */
        for (size_t i = 0; i < h->n && r == 0; i++) {
                bool hold = age_ms(p, h->v[i].queued_ns) < HOLD_MS && (h->v[i].temp || tree_is_born(p->t, h->v[i].ino) /* asked first: the opener counts itself before it says so */ ||
                                            (p->t->open_for_write && p->t->open_for_write(p->t->open_for_write_arg, h->v[i].ino)));
                r = open_set_add(hold ? &p->held : &p->free_hold, h->v[i].ord);
                if (hold) {
                        int64_t wait = MAX(HOLD_MS - age_ms(p, h->v[i].queued_ns), 1);
                        *io_wait_ms = *io_wait_ms < 0 ? wait : MIN(*io_wait_ms, wait);
                }
        }
        return r;
}

static int pick_rows(struct pick *p, struct outbox_item *items, int64_t *io_wait_ms) {
        struct stream streams[3] = { { .class = CLASS_PLAIN }, { .class = CLASS_BARRIER }, { .class = CLASS_HOLD } };
        int r = push_due(p, io_wait_ms);
        while (r >= 0 && p->n_taken < p->max) {
                uint64_t best = p->heap.n ? p->heap.v[0] : UINT64_MAX, head[3];
                for (unsigned k = 0; k < 3 && r >= 0; k++) {
                        r = stream_head(p, &streams[k], &head[k]);
                        if (r >= 0 && head[k] < best)
                                best = head[k];
                }
                if (r < 0 || best == UINT64_MAX)
                        break;
                while (p->heap.n && p->heap.v[0] == best)
                        (void)heap_pop(&p->heap);
                for (unsigned k = 0; k < 3; k++)
                        if (head[k] == best)
                                streams[k].at++;
                r = consider(p, best, items);
        }
        if (p->barrier_wait_ms >= 0 && p->hold_ord != UINT64_MAX)
                *io_wait_ms = *io_wait_ms < 0 ? p->barrier_wait_ms : MIN(*io_wait_ms, p->barrier_wait_ms);
        return r;
}

/* The first read of the transaction decides what is seen, and the clock is read after it: a row that came in between would look as if the clock had gone back, and as if it were old. */
static int fix_moment(struct pick *p) {
        int64_t v;
        int r = db_int(p->db, &v, "SELECT EXISTS(SELECT 1 FROM outbox)", "");
        p->now_ns = clock_real_ns(p->t->clock);
        return r;
}

int outbox_next(struct tree *t, struct arena *a, struct outbox_item *items, size_t max, size_t *ret_n, int64_t *ret_wait_ms) {
        struct holds holds = { .v = calloc(HOLD_ROWS_MAX, sizeof(*holds.v)) };
        struct pick p = { .t = t, .a = a, .taken = calloc(MAX(max, 1u), sizeof(*p.taken)), .max = max, .hold_ord = UINT64_MAX, .barrier_wait_ms = -1 };
        int64_t wait_ms = -1;
        int r = holds.v && p.taken ? read_holds(t, &holds) : -ENOMEM;
        if (r == 0)
                r = decide_holds(&p, &holds, &wait_ms);
        if (r == 0) {
                TREE_READ(rd, t);
                p.db = rd.db;
                bool begun = !db_in_transaction(rd.db); /* one moment for all queries */
                r = begun && t->n_readers ? db_begin(rd.db) : 0;
                if (r == 0)
                        r = fix_moment(&p);
                if (r == 0)
                        r = pick_rows(&p, items, &wait_ms);
                if (begun && t->n_readers)
                        db_rollback(rd.db);
        }
        if (r >= 0) {
                LOCK_SCOPE(&t->lock);
                for (size_t i = 0; i < p.n_taken && r >= 0; i++)
                        if (items[i].gen)
                                r = outbox_hand(t, &p.taken[i].id);
        }
        if (r >= 0) {
                *ret_n = p.n_taken;
                *ret_wait_ms = wait_ms;
        }
        free(holds.v);
        free(p.taken);
        free(p.heap.v);
        cleanup_open_set_p(&p.held);
        cleanup_open_set_p(&p.free_hold);
        return r < 0 ? r : 0;
}

/* ---- the other doors ---- */

int outbox_item_from(struct arena *a, const struct orow *o, struct outbox_item *ret) {
        struct outbox_item item = { .order = o->ord, .state = o->state, .ino = o->ino, .gen = o->gen, .op = o->op, .queued_ns = o->queued_ns, .attempts = o->attempts, .error = o->error,
                                    .next_try_ns = o->next_try_ns };
        if (o->op.kind == OP_RENAME || o->op.kind == OP_UNLINK)
                item.op.attrs = (struct node_row){0}; /* kept in the row for ourselves */
        (void)snprintf(item.reason, sizeof(item.reason), "%s", o->reason);
        *ret = item;
        return 0;
}

static int read_ids(struct db_stmt *s, int r, struct afters *l) {
        while (r > 0) {
                struct id id = db_col_id(s, 0);
                (void)add_after(l, &id);
                r = db_step(s);
        }
        return r;
}

/* The list of a row outside outbox_next: explicit predecessors, and what is on its way that the row has to follow. */
static int read_after(struct db *db, struct arena *a, const struct orow *o, struct outbox_item *item) {
        struct db_stmt *s;
        struct afters l = {0};
        int r = db_query(db, &s, "SELECT p.id FROM dep d JOIN outbox p ON p.ord=d.pred WHERE d.succ=?", "i", (int64_t)o->ord);
        r = read_ids(s, r, &l);
        if (r == 0 && (o->bits & OB_CHILDREN)) {
                r = db_query(db, &s, "SELECT id FROM outbox WHERE state = 1 AND (p1=?1 OR p2=?1) AND ord<?2", "ii", (int64_t)(o->op.kind == OP_RENAME ? o->ino2 : o->ino), (int64_t)o->ord);
                r = read_ids(s, r, &l);
        }
        if (r == 0 && (o->bits & OB_BARRIER)) {
                r = db_query(db, &s, "SELECT id,bits FROM outbox WHERE state = 1 AND ord<? AND (gen > 0 OR bits & 2) ORDER BY ord DESC", "i", (int64_t)o->ord);
                while (r > 0) {
                        struct id id = db_col_id(s, 0);
                        bool last = db_col_int(s, 1) & OB_BARRIER; /* stands for all before it */
                        (void)add_after(&l, &id);
                        if (last) {
                                db_reset(s);
                                r = 0;
                                break;
                        }
                        r = db_step(s);
                }
        }
        struct id *ids = l.n ? arena_alloc(a, l.n * sizeof(*ids)) : NULL;
        if (r < 0 || (l.n && !ids))
                return r < 0 ? r : -ENOMEM;
        if (l.n)
                memcpy(ids, l.ids, l.n * sizeof(*ids));
        item->op.after = ids;
        item->op.n_after = l.n;
        return 0;
}

int outbox_carries(struct tree *t, uint64_t gen) {
        TREE_READ(rd, t);
        int64_t v;
        int r = db_int(rd.db, &v, "SELECT EXISTS(SELECT 1 FROM outbox WHERE gen=? AND gen > 0)", "i", (int64_t)gen);
        return r < 0 ? r : v != 0;
}

int outbox_get(struct tree *t, const struct id *op, struct arena *a, struct outbox_item *ret) {
        TREE_READ(rd, t);
        struct orow o;
        struct outbox_item item;
        int r = outbox_find(t, rd.db, a, op, &o);
        if (r == 0)
                r = outbox_item_from(a, &o, &item);
        if (r == 0)
                r = read_after(rd.db, a, &o, &item);
        if (r == 0)
                *ret = item;
        return r;
}

int outbox_list(struct tree *t, struct arena *a, bool parked_only, struct outbox_item *items, size_t max, size_t *ret_n) {
        TREE_READ(rd, t);
        struct db_stmt *s;
        size_t n = 0;
        int r = parked_only ? db_query(rd.db, &s, "SELECT " OUT_COLS " FROM outbox o WHERE o.state = 2 ORDER BY o.ord", "")
                            : db_query(rd.db, &s, "SELECT " OUT_COLS " FROM outbox o ORDER BY o.ord", "");
        while (r > 0) {
                struct orow o;
                if (n == max) {
                        db_reset(s);
                        r = 0;
                        break;
                }
                r = outbox_row_read(s, 0, a, &o);
                if (r == 0)
                        r = outbox_item_from(a, &o, &items[n]);
                if (r < 0) {
                        db_reset(s);
                        break;
                }
                n++;
                r = db_step(s);
        }
        if (r == 0)
                *ret_n = n;
        return r;
}

int outbox_totals(struct tree *t, struct outbox_totals *ret) {
        struct db_stmt *s;
        struct outbox_totals totals = {0};
        {
                LOCK_SCOPE(&t->lock);
                totals.mutations = t->numbers[NUMBER_ORDER].next - 1;
        }
        TREE_READ(rd, t);
        int r = db_query(rd.db, &s, "SELECT (SELECT count(*) FROM outbox), (SELECT count(DISTINCT ino) FROM outbox), (SELECT count(*) FROM outbox WHERE state = 2),"
                                    " (SELECT count(*) FROM outbox WHERE state = 1), (SELECT ifnull(queued_ns,0) FROM outbox ORDER BY ord LIMIT 1)", "");
        if (r <= 0)
                return r < 0 ? r : -EBADMSG;
        totals.items = (uint64_t)db_col_int(s, 0);
        totals.files = (uint64_t)db_col_int(s, 1);
        totals.parked = (uint64_t)db_col_int(s, 2);
        totals.sent = (uint64_t)db_col_int(s, 3);
        totals.oldest_ns = db_col_int(s, 4);
        db_reset(s);
        *ret = totals;
        return 0;
}

void outbox_set_open_check(struct tree *t, bool (*open_for_write)(void *arg, uint64_t ino), void *arg) {
        t->open_for_write_arg = arg;
        t->open_for_write = open_for_write;
}

int outbox_mark_sent(struct tree *t, const struct id *ops, size_t n) {
        int r = tree_begin(t);
        for (size_t i = 0; i < n && r == 0; i++) {
                struct orow o;
                r = outbox_find(t, t->w, t->scratch, &ops[i], &o);
                if (r == -ENOENT) { /* cancelled or answered in the meantime */
                        r = 0;
                        continue;
                }
                if (r == 0 && o.state != OUT_SENT) {
                        o.attempts++;
                        r = outbox_state_set(t, &o, OUT_SENT, true);
                }
                arena_reset(t->scratch);
        }
        r = tree_end(t, r);
        return r < 0 ? r : tree_sync(t);
}

static int set_state(struct tree *t, const struct id *op, enum outbox_state state, int error, const char *reason, int64_t next_try_ns) {
        struct orow o;
        int r = tree_begin(t);
        if (r == 0)
                r = outbox_find(t, t->w, t->scratch, op, &o);
        if (r == 0) {
                o.error = error;
                o.next_try_ns = next_try_ns;
                (void)snprintf(o.reason, sizeof(o.reason), "%s", reason ? reason : "");
                r = outbox_state_set(t, &o, state, false);
        }
        t->wake = state == OUT_QUEUED;
        return tree_end(t, r);
}

int outbox_unsend(struct tree *t, const struct id *op) {
        return set_state(t, op, OUT_QUEUED, 0, NULL, 0);
}
