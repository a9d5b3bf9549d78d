/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.c: what must be true when everything is quiet:
 *   - nothing is pending or parked anywhere, and every client stands where the server stands;
 *   - every client shows the same tree, and it is the one that a client shows which comes with an empty cache (so: the server's);
 *   - every file reads back as the bytes that some client wrote under that very version;
 *   - every content that was closed is in that tree, unless somebody who saw it wrote over it or removed it. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

/* Not the number alone: another epoch, or another life of the server, has reached it too. */
static bool cursor_equal(const struct cursor *a, const struct cursor *b) {
        return a->seq == b->seq && id_equal(&a->epoch, &b->epoch) && memcmp(a->mark, b->mark, sizeof a->mark) == 0;
}

int oracle_quiet(struct world *w, bool *ret) {
        struct cursor at;
        int r = net_server_at(w, &at);
        *ret = false;
        if (r < 0)
                return wrong(w, "the server does not tell its seq: %s", err_name(r));
        for (unsigned i = 0; i <= CLIENTS_MAX; i++) {
                struct client *c = &w->clients[i];
                struct engine_status status;
                struct outbox_totals totals;
                struct cache_totals ct;
                struct cursor cursor;
                if (!c->up)
                        continue;
                engine_status(c->engine, &status);
                if (status.state == CONN_UPGRADE)
                        return wrong(w, "%s: %s", c->name, status.reason);
                if (!status.loaded || status.state != CONN_ONLINE || c->n_jobs || !readings_none(c))
                        return 0;
                if (tree_cursor(c->cache->tree, &cursor) < 0 || !cursor_equal(&cursor, &at))
                        return 0;
                const bool back = w->count[SIM_SERVER_ROLLBACKS]; /* then what was made in a directory that the server has forgotten waits for people */
                if (outbox_totals(c->cache->tree, &totals) < 0 || totals.items > (back ? totals.parked + 8 : 0))
                        return 0;
                if (cache_totals(c->cache, &ct) < 0 || (ct.pending_files && !back))
                        return 0;
                if (back && totals.items && !totals.parked)
                        return 0;
                w->waiting |= back && totals.items;
        }
        *ret = true;
        return 0;
}

static int by_name(const void *a, const void *b) {
        const struct tree_entry *x = a, *y = b;
        return strcmp(x->name, y->name);
}

struct all { struct tree_entry *e; size_t n; };
static int add_entry(void *arg, const struct tree_entry *e) {
        struct all *l = arg;
        struct tree_entry *p = reallocarray(l->e, l->n + 1, sizeof *p);
        if (!p)
                return -ENOMEM;
        l->e = p;
        p[l->n++] = *e;
        return 0;
}

static int list(struct client *c, uint64_t dir, const char *path, struct buf *out, unsigned depth) {
        struct all l = { 0 };
        int r = tree_list(c->cache->tree, dir, 0, add_entry, &l);
        if (r >= 0 && l.n)
                qsort(l.e, l.n, sizeof *l.e, by_name);
        for (size_t i = 0; r >= 0 && i < l.n; i++) {
                const struct node *n = &l.e[i].node;
                char sub[1200], root[2 * DIGEST_BYTES + 1] = "-";
                snprintf(sub, sizeof sub, "%s/%s", path, l.e[i].name);
                if (n->kind == NODE_FILE)
                        hex_encode(n->content.root.b, 6, root);
                r = buf_printf(out, "%s kind=%d mode=%o owner=%u:%u nlink=%u", sub, (int)n->kind, n->mode, n->uid, n->gid, n->kind == NODE_DIR ? 0 : n->nlink);
                if (r >= 0 && n->kind != NODE_DIR)
                        r = buf_printf(out, " mtime=%lld", (long long)n->mtime_ns);
                if (r >= 0 && n->kind == NODE_FILE)
                        r = buf_printf(out, " size=%llu root=%s", (unsigned long long)n->size, root);
                if (r >= 0 && n->kind == NODE_SYMLINK) {
                        struct buf target = BUF_INIT(SYMLINK_BYTES_MAX + 1);
                        r = tree_readlink(c->cache->tree, n->ino, &target);
                        if (r >= 0)
                                r = buf_printf(out, " target=%s", buf_text(&target));
                        buf_free(&target);
                }
                if (r >= 0 && n->has_xattrs) {
                        struct buf names = BUF_INIT(XATTR_TOTAL_MAX), value = BUF_INIT(XATTR_VALUE_MAX + 1);
                        r = tree_xattr_list(c->cache->tree, n->ino, &names);
                        for (size_t at = 0; r >= 0 && at < names.bytes; at += strlen((const char *)names.data + at) + 1) {
                                buf_reset(&value);
                                r = tree_xattr_get(c->cache->tree, n->ino, (const char *)names.data + at, &value);
                                if (r >= 0)
                                        r = buf_printf(out, " %s=%s", (const char *)names.data + at, buf_text(&value));
                        }
                        buf_free(&names);
                        buf_free(&value);
                }
                if (r >= 0)
                        r = buf_add(out, "\n", 1);
                if (r >= 0 && n->kind == NODE_DIR)
                        r = depth < 64 ? list(c, n->ino, sub, out, depth + 1) : wrong(c->w, "%s: the tree has a cycle at %s", c->name, sub);
        }
        free(l.e);
        return r;
}

/* First line in which two listings differ. */
static int compare(struct world *w, const struct client *a, const char *x, const struct client *b, const char *y) {
        while (*x && *y) {
                size_t n = strcspn(x, "\n"), m = strcspn(y, "\n");
                if (n != m || memcmp(x, y, n))
                        break;
                x += n + (x[n] != 0);
                y += m + (y[m] != 0);
        }
        if (!*x && !*y)
                return 0;
        return wrong(w, "trees differ: %s has \"%.*s\", %s has \"%.*s\"", a->name, (int)MIN(strcspn(x, "\n"), (size_t)350), x, b->name, (int)MIN(strcspn(y, "\n"), (size_t)350), y);
}

struct check { struct client *c; bool *found; };

static int check_file(struct check *k, uint64_t dir, unsigned depth) {
        struct world *w = k->c->w;
        struct all l = { 0 };
        int r = tree_list(k->c->cache->tree, dir, 0, add_entry, &l);
        for (size_t i = 0; r >= 0 && i < l.n; i++) {
                const struct node *n = &l.e[i].node;
                if (n->kind == NODE_DIR)
                        r = check_file(k, n->ino, depth + 1);
                if (n->kind != NODE_FILE || n->size == 0 || (n->gen && w->waiting)) /* pending: the row's content is what lies under it */
                        continue;
                struct text *t = text_find(w, &n->content);
                if (!t) {
                        r = wrong(w, "%s: \"%s\" holds a content that nobody wrote (%llu bytes)", k->c->name, l.e[i].name, (unsigned long long)n->size);
                        break;
                }
                k->found[t->number] = true;
                struct buf bytes = BUF_INIT(16u << 20);
                r = read_whole(k->c, n, &bytes);
                if (r == -EIO && w->count[SIM_SERVER_ROLLBACKS]) { /* the server has forgotten it */
                        r = 0;
                        buf_free(&bytes);
                        continue;
                }
                if (r < 0)
                        wrong(w, "%s: \"%s\" cannot be read: %s", k->c->name, l.e[i].name, err_name(r));
                else if (bytes.bytes != t->n || memcmp(bytes.data, t->bytes, t->n))
                        r = wrong(w, "%s: \"%s\" has other bytes than text %u", k->c->name, l.e[i].name, t->number);
                buf_free(&bytes);
        }
        free(l.e);
        return r;
}

int oracle_wait(struct world *w, const char *what) {
        int64_t until = w->clock.mono_ms + 600000;
        bool quiet = false;
        for (unsigned i = 0; !quiet && !w->why[0]; i++) {
                bool more = world_turn(w, until);
                if (i > 200000)
                        return wrong(w, "%s: somebody runs in a circle", what);
                if (i % 16 == 0 || !more) {
                        int r = oracle_quiet(w, &quiet);
                        if (r < 0)
                                return r;
                }
                if (!more && !quiet)
                        break;
        }
        if (quiet)
                return 0;
        for (unsigned i = 0; i <= CLIENTS_MAX && !w->why[0]; i++) {
                struct client *c = &w->clients[i];
                struct engine_status status;
                struct outbox_totals totals = { 0 };
                struct cache_totals ct = { 0 };
                struct cursor cursor = { 0 }, at = { 0 };
                bool alone = false;
                if (!c->up)
                        continue;
                engine_status(c->engine, &status);
                (void)!outbox_totals(c->cache->tree, &totals);
                (void)!cache_totals(c->cache, &ct);
                (void)!tree_cursor(c->cache->tree, &cursor);
                (void)!net_server_at(w, &at);
                alone = status.loaded && status.state == CONN_ONLINE && !totals.items && !ct.pending_files && cursor_equal(&cursor, &at);
                if (alone)
                        continue;
                char reason[300] = "";
                struct arena *a = NULL;
                struct outbox_item item;
                size_t n = 0;
                if (totals.items && arena_new(16u << 20, &a) >= 0 && outbox_list(c->cache->tree, a, false, &item, 1, &n) >= 0 && n)
                        snprintf(reason, sizeof reason, "first: kind %d state %d name \"%s\" gen %llu attempts %u error %d %s", (int)item.op.kind, (int)item.state,
                                 item.op.name ? item.op.name : "", (unsigned long long)item.gen, item.attempts, item.error, item.reason);
                wrong(w, "%s: %s not quiet after 10 min: state=%d (%s) loaded=%d outbox=%llu parked=%llu pending_files=%llu cursor=%llu server=%llu %s", what, c->name, (int)status.state,
                      status.reason, status.loaded, (unsigned long long)totals.items, (unsigned long long)totals.parked, (unsigned long long)ct.pending_files,
                      (unsigned long long)cursor.seq, (unsigned long long)at.seq, reason);
                arena_free(a);
        }
        return w->why[0] ? -EIO : wrong(w, "%s: not quiet after 10 min", what);
}

/* What was newer than the server's and is held beside it: all of it is here. */
static int check_newer(void *arg, const struct node *n) {
        struct client *c = arg;
        struct tree_newer newer;
        struct buf bytes = BUF_INIT(16u << 20);
        int r = n->kind == NODE_FILE ? tree_newer_of(c->cache->tree, n->ino, &newer) : 0;
        if (r <= 0 || n->gen)
                return r;
        c->w->count[SIM_NEWER]++;
        struct text *t = text_find(c->w, &n->content);
        r = t ? read_whole(c, n, &bytes) : wrong(c->w, "%s: a held copy has a content that nobody wrote", c->name);
        if (t && r == -EIO && c->w->count[SIM_POWER_CUTS]) /* what was downloaded is not synced */
                r = 0;
        else if (t && (r < 0 || bytes.bytes != t->n || memcmp(bytes.data, t->bytes, t->n)))
                r = wrong(c->w, "%s: a held copy of text %u cannot be read: %s", c->name, t->number, r < 0 ? err_name(r) : "other bytes");
        buf_free(&bytes);
        return MIN(r, 0);
}

int oracle_check(struct world *w) {
        struct buf fresh = BUF_INIT(64u << 20), other = BUF_INIT(64u << 20);
        struct client *last = &w->clients[CLIENTS_MAX];
        static const struct id everything;
        trouble_end(w);
        for (unsigned i = 0; i < w->n_clients; i++) {
                struct client *c = &w->clients[i];
                c->connected = true;
                if (!c->up && client_up(c) < 0)
                        return -EIO;
                op_close_all(c);
                heal_spoiled(c);
                (void)!outbox_unpark(c->cache->tree, &everything);
                engine_nudge(c->engine);
        }
        int r = oracle_wait(w, "healing");
        for (unsigned i = 0; r >= 0 && i < w->n_clients; i++)
                r = tree_held_list(w->clients[i].cache->tree, 0, check_newer, &w->clients[i]);
        for (unsigned i = 0; r >= 0 && i < w->n_clients && w->count[SIM_SERVER_ROLLBACKS]; i++) /* what only clients have is kept until their users let it go */
                for (r = 1; r > 0;)
                        r = tree_held_drop(w->clients[i].cache->tree, 1000, NULL, NULL);
        if (r >= 0)
                r = client_up(last);
        if (r >= 0)
                r = oracle_wait(w, "a client with an empty cache");
        if (r >= 0)
                r = list(last, INO_ROOT, "", &fresh, 0);
        for (unsigned i = 0; r >= 0 && i < w->n_clients; i++) {
                buf_reset(&other);
                r = list(&w->clients[i], INO_ROOT, "", &other, 0);
                if (r >= 0 && !w->waiting)
                        r = compare(w, last, buf_text(&fresh), &w->clients[i], buf_text(&other));
        }
        bool *found = calloc(w->n_texts + 1, sizeof *found);
        struct check check = { .c = last, .found = found };
        if (r >= 0)
                r = check_file(&check, INO_ROOT, 0);
        check.c = &w->clients[pick(w, w->n_clients)];
        if (r >= 0)
                r = check_file(&check, INO_ROOT, 0);
        for (size_t i = 0; r >= 0 && i < w->n_texts; i++) {
                struct text *t = w->texts[i];
                if (t->durable && !t->superseded && !found[i] && !w->count[SIM_SERVER_ROLLBACKS]) /* it may have come after the copy, from an older queue */
                        r = wrong(w, "text %u of c%u was closed, nobody who saw it replaced it, and it is gone", t->number, t->writer);
        }
        if (r >= 0)
                trace(w, "tree %s", buf_text(&fresh));
        if (w->verbose)
                fprintf(stderr, "%s", buf_text(&fresh));
        buf_free(&fresh);
        buf_free(&other);
        free(found);
        return r;
}
