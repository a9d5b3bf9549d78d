/* SPDX-License-Identifier: Apache-2.0 */
/* maintain_gc.c: `tarn-server gc`: gives back what nobody needs. meta_gc.c says why it is safe beside commits; here is the order:
 *
 *   0. with --trash-age: what was deleted that long ago is forgotten (meta_trash.c)
 *      with --keep-events: older events are forgotten; clients that were away for longer load anew (410)
 *   1. expired claims and upload sessions go (meta_tidy)
 *   2. blocks without reference and claim are marked dead             older than --min-age (a day)
 *   3. blocks that have been dead for --min-age are forgotten          so a first run frees nothing but old remains
 *   4. objects without a block are forgotten, then removed from the store
 *   5. objects of the store that no row names are removed              older than --min-age; what requests are writing now is known and left alone
 *
 * 5 asks first whether a request is writing the object and then whether there is a row: a request that ended in between has left its row, one that begins later has
 * another name. Every step is a short transaction of its own; killed anywhere, the next run goes on.
 * Space comes back when all blocks of an object are gone. With --compact objects that are mostly empty are put together then (maintain_compact.c). Those that are less than half full in the end, and the
 * bytes that they hold back, are counted and reported. */
#include <stdio.h>
#include <string.h>

#include "api_content.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "maintain.h"

#define ROWS_PER_STEP 2000u
#define NAMES_PER_STEP 500u

struct gc { struct maintain *m; int64_t before_ns; uint64_t marked, marked_bytes, swept, swept_bytes, objects, object_bytes, orphans, orphan_bytes, purged, purged_bytes, events, sparse, sparse_bytes; };

static int gc_blocks(struct gc *g) {
        struct meta *meta = g->m->s->meta;
        struct meta_gc_step s = {.end = false};
        int r = 0;

        while (r == 0 && !s.end) {
                r = meta_gc_mark(meta, g->before_ns, ROWS_PER_STEP, g->m->dry_run, &s);
                g->marked += s.blocks;
                g->marked_bytes += s.bytes;
                FAILPOINT_HERE("gc.marked");
                if (r == 0)
                        r = maintain_pace(g->m, 0);
        }
        s = (struct meta_gc_step){.end = false};
        while (r == 0 && !s.end) {
                r = meta_gc_sweep(meta, meta_now_ns(meta) - (int64_t)g->m->min_age_s * 1000000000, ROWS_PER_STEP, g->m->dry_run, &s);
                g->swept += s.blocks;
                g->swept_bytes += s.bytes;
                FAILPOINT_HERE("gc.swept");
                if (r == 0)
                        r = maintain_pace(g->m, 0);
        }
        return r;
}

static int remove_object(struct gc *g, const char *name) {
        struct store *store = g->m->s->store;
        int r = FAILPOINT("gc.remove");

        if (r == 0)
                r = store->remove(store, name);

        return r == -ENOENT ? 0 : r;
}

static int gc_objects(struct gc *g, meta_object_name *names) {
        struct meta_gc_step s = {.end = false};
        int r = 0;

        while (r == 0 && !s.end) {
                size_t n = 0;

                r = meta_gc_objects(g->m->s->meta, g->before_ns, NAMES_PER_STEP, g->m->dry_run, service_object_busy, g->m->s, &s, names, &n);
                for (size_t i = 0; r == 0 && i < n && !g->m->dry_run; i++)
                        r = remove_object(g, names[i]);
                g->objects += n;
                g->object_bytes += s.bytes;
                if (r == 0)
                        r = maintain_pace(g->m, 0);
        }
        return r;
}

struct found { struct gc *g; meta_object_name *names; uint64_t bytes[NAMES_PER_STEP]; size_t n; meta_object_name last; };

static int found_each(void *arg, const char *object, uint64_t bytes, int64_t put_ns) {
        struct found *f = arg;

        (void)snprintf(f->last, sizeof f->last, "%s", object);
        if (put_ns > f->g->before_ns)
                return 0;
        f->bytes[f->n] = bytes;
        (void)snprintf(f->names[f->n++], sizeof f->names[0], "%s", object);
        return f->n == NAMES_PER_STEP;
}

static int gc_orphans(struct gc *g, meta_object_name *names) {
        struct found f = {.g = g, .names = names};
        struct store *store = g->m->s->store;
        int r;

        do {
                f.n = 0;
                r = store->list(store, f.last, found_each, &f);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < f.n; i++) {
                        uint64_t bytes;
                        int k;

                        if (service_object_busy(g->m->s, names[i]))
                                continue;
                        k = meta_object_find(g->m->s->meta, names[i], &bytes);
                        if (k < 0 && k != -ENOENT)
                                return k;
                        if (k == 0)
                                continue;
                        g->orphans++;
                        g->orphan_bytes += f.bytes[i];
                        k = g->m->dry_run ? 0 : remove_object(g, names[i]);
                        if (k < 0)
                                return k;
                }
                if (maintain_stopped(g->m))
                        return -ECANCELED;
        } while (r > 0);
        return 0;
}

static int gc_sparse(struct gc *g) {
        struct meta_gc_step s = {.end = false};
        int r = 0;

        while (r == 0 && !s.end) {
                r = meta_gc_sparse(g->m->s->meta, 50, ROWS_PER_STEP, &s, NULL, NULL);
                g->sparse += s.blocks;
                g->sparse_bytes += s.bytes;
                if (r == 0)
                        r = maintain_pace(g->m, 0);
        }
        return r;
}

/* One page of one workspace's trash. Reading stops at what is too young from above: the oldest are at the end, so all pages are gone through. */
static int purge_page(struct gc *g, uint64_t ws, struct meta_trash_filter *f, bool *ret_end) {
        _cleanup_arena_ struct arena *a = NULL;
        struct content_pages pages;
        struct meta_trash *list;
        struct meta_subject nobody = {.account = 0};
        size_t n;
        int r = arena_new(16u << 20, &a);

        if (r == 0)
                r = meta_trash(g->m->s->meta, ws, f, NAMES_PER_STEP, a, &list, &n, &f->before_seq);
        if (r == 0)
                r = content_pages_open(g->m->s, &nobody, ws, &pages);
        if (r < 0)
                return r;
        for (size_t i = 0; r == 0 && i < n; i++) {
                uint64_t bytes = 0;

                r = g->m->dry_run ? 0 : meta_trash_purge(g->m->s->meta, ws, &list[i], &pages.get, &bytes);
                if (r == -EBADMSG || r == -ENODATA || r == -ESTALE) { /* damaged: it stays; or somebody took it out just now */
                        r = 0;
                        continue;
                }
                g->purged += r == 0;
                g->purged_bytes += bytes;
                if (r == 0)
                        r = maintain_pace(g->m, 0);
        }
        content_pages_close(&pages);
        *ret_end = f->before_seq == 0;
        return r;
}

static int trash_of(struct gc *g, const struct meta_workspace *w) {
        struct meta_trash_filter f = {.until_ns = meta_now_ns(g->m->s->meta) - (int64_t)MIN(g->m->trash_age_s, UINT64_C(1) << 32) * 1000000000};
        bool end = false;
        int r = 0;

        while (r == 0 && !end)
                r = purge_page(g, w->ws, &f, &end);
        return r;
}

static int events_of(struct gc *g, const struct meta_workspace *w) {
        uint64_t to = w->at.seq > g->m->keep_events ? w->at.seq - g->m->keep_events : 0;
        int r = 0;

        for (uint64_t at = w->horizon; r == 0 && at < to;) { /* in steps, so that nobody waits for long */
                at = MIN(at + ROWS_PER_STEP, to);
                r = g->m->dry_run ? 0 : meta_horizon_set(g->m->s->meta, w->ws, at);
                if (r == 0)
                        r = maintain_pace(g->m, 0);
        }
        g->events += to > w->horizon ? to - w->horizon : 0;
        return r;
}

static int each_workspace(struct gc *g, int (*run)(struct gc *g, const struct meta_workspace *w)) {
        _cleanup_arena_ struct arena *a = NULL;
        struct meta_workspace *w;
        size_t n = 0;
        int r = arena_new(4u << 20, &a);

        if (r == 0)
                r = meta_workspaces(g->m->s->meta, NULL, a, &w, &n);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = run(g, &w[i]);
        return r;
}

int maintain_gc(struct maintain *m) {
        _cleanup_free_ meta_object_name *names = calloc(NAMES_PER_STEP, sizeof *names);
        struct gc g = {.m = m, .before_ns = meta_now_ns(m->s->meta) - (int64_t)MIN(m->min_age_s, UINT64_C(1) << 32) * 1000000000};
        int r;

        if (!names)
                return -ENOMEM;
        m->min_age_s = MIN(m->min_age_s, UINT64_C(1) << 32);
        r = m->dry_run ? 0 : meta_tidy(m->s->meta);
        if (r == 0 && m->trash_age_s)
                r = each_workspace(&g, trash_of);
        if (r == 0 && m->keep_events)
                r = each_workspace(&g, events_of);
        if (r == 0)
                r = gc_blocks(&g);
        if (r == 0)
                r = gc_objects(&g, names);
        if (r == 0)
                r = gc_orphans(&g, names);
        if (r == 0 && m->compact && !m->dry_run)
                r = maintain_compact(m, g.before_ns);
        if (r == 0)
                r = gc_sparse(&g);
        if (r < 0)
                return r;
        log_info("event=gc marked=%llu swept=%llu objects=%llu orphans=%llu bytes=%llu dry_run=%d", (unsigned long long)g.marked, (unsigned long long)g.swept,
                 (unsigned long long)g.objects, (unsigned long long)g.orphans, (unsigned long long)(g.object_bytes + g.orphan_bytes), m->dry_run);
        const struct { const char *name; uint64_t value; } lines[] = {
                {"blocks_marked", g.marked}, {"bytes_marked", g.marked_bytes}, {"blocks_forgotten", g.swept}, {"bytes_forgotten", g.swept_bytes}, {"objects_removed", g.objects},
                {"bytes_removed", g.object_bytes}, {"orphans_removed", g.orphans}, {"orphan_bytes_removed", g.orphan_bytes},
                {"trash_purged", g.purged}, {"trash_bytes", g.purged_bytes}, {"events_forgotten", g.events}, {"objects_half_empty", g.sparse}, {"bytes_in_half_empty", g.sparse_bytes},
        };
        for (size_t i = 0; r == 0 && i < ARRAY_SIZE(lines); i++)
                r = maintain_say(m, lines[i].name, lines[i].value);
        return r;
}
