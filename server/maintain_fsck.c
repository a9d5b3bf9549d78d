/* SPDX-License-Identifier: Apache-2.0 */
/* maintain_fsck.c: `tarn-server fsck`: whether the database agrees with itself, with the contents and with the object store.
 *
 *   1. rows against rows, the log against the rows                                     meta_check.c
 *   2. contents: every list page of every kept version is read; the references that its blocks need are counted as commits count them (a run begins where a version
 *      of a node holds a block that the version before did not) and compared with block_ref. Too few is an error; too many only keeps bytes too long
 *   3. objects: each that a row names is in the store, with its length; what the store has besides is counted (gc's business)
 *
 * The bytes of data blocks are not read: that is scrub. All of it sees one moment of the database, on a connection of its own; a server goes on meanwhile.
 *
 * --repair needs the directory for itself: meta_repair.c per workspace, references as counted, objects that are lost or cut marked so that their blocks are asked
 * for again. Then it checks once more and reports what is left. */
#include <stdio.h>
#include <string.h>

#include "api_content.h"
#include "base/digest.h"
#include "base/log.h"
#include "maintain.h"

#define LISTED_MAX 200u
#define NODES_PER_STEP 500u
#define SPACES_MAX 4096u

struct fsck {
        struct meta_report report;
        struct maintain *m;
        struct meta_checker *k;
        bool quiet;                      /* the first round of a repair: problems are only noted */
        uint64_t problems, notes, contents, blocks, objects, orphans, repaired;
        json_t *list;
        uint64_t broken[SPACES_MAX]; bool log_broken[SPACES_MAX]; size_t n_broken; /* workspaces with something to repair */
        int err;
};

static bool is_note(const char *kind) {
        return strcmp(kind, "reference_too_high") == 0;
}

/* Problems of the log, or of rows that the log should explain. */
static bool is_log(const char *kind) {
        static const char *const kinds[] = {"event_gap", "event_unreadable", "event_and_columns", "event_and_row", "event_without_row", "row_without_event", "event_time", "mark",
                                            "operation_without_event", "event_without_operation"};

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
                if (strcmp(kind, kinds[i]) == 0)
                        return true;
        return false;
}

static void fsck_problem(struct meta_report *p, uint64_t ws, const char *kind, const char *text) {
        struct fsck *f = container_of(p, struct fsck, report);
        int r = 0;

        if (is_note(kind))
                f->notes++;
        else
                f->problems++;
        if (ws > 0) {
                size_t i = 0;

                while (i < f->n_broken && f->broken[i] != ws)
                        i++;
                if (i == f->n_broken && i < SPACES_MAX) {
                        f->log_broken[i] = false;
                        f->broken[f->n_broken++] = ws;
                }
                if (i < SPACES_MAX && is_log(kind))
                        f->log_broken[i] = true;
        }
        if (f->quiet || f->problems + f->notes > LISTED_MAX)
                return;
        if (f->m->json)
                r = json_array_append_new(f->list, json_pack("{s:I, s:s, s:s}", "workspace", (json_int_t)ws, "kind", kind, "text", text)) < 0 ? -ENOMEM : 0;
        else
                r = ws ? buf_printf(f->m->out, "%s: workspace %llu: %s\n", kind, (unsigned long long)ws, text) : buf_printf(f->m->out, "%s: %s\n", kind, text);
        if (r < 0 && f->err == 0)
                f->err = r;
}

static bool fsck_stopped(struct meta_report *p) {
        return maintain_stopped(container_of(p, struct fsck, report)->m);
}

/* ---- references, counted ---- */

struct tally { struct meta_ref *refs; size_t n, room; }; /* open addressing; refs 0: empty */

static size_t tally_slot(const struct tally *t, const struct digest *hash) {
        uint64_t h;

        memcpy(&h, hash->b, sizeof h);
        size_t at = (size_t)(h & (t->room - 1));
        while (t->refs[at].refs && !digest_equal(&t->refs[at].hash, hash))
                at = (at + 1) & (t->room - 1);
        return at;
}

static int tally_add(struct tally *t, const struct blockref *ref) {
        if (t->n * 2 >= t->room) {
                struct tally more = {.room = MAX(t->room * 2, (size_t)4096)};

                more.refs = calloc(more.room, sizeof *more.refs);
                if (!more.refs)
                        return -ENOMEM;
                for (size_t i = 0; i < t->room; i++)
                        if (t->refs[i].refs)
                                more.refs[tally_slot(&more, &t->refs[i].hash)] = t->refs[i];
                more.n = t->n;
                free(t->refs);
                *t = more;
        }
        struct meta_ref *at = &t->refs[tally_slot(t, &ref->hash)];
        if (!at->refs) {
                at->hash = ref->hash;
                at->raw = ref->bytes;
                t->n++;
        }
        at->refs++;
        return 0;
}

struct fsck_pages { struct page_get get; struct fsck *f; struct arena *a; uint8_t *bytes; };

static int pages_get(struct page_get *g, const struct digest *hash, const void **ret_bytes, size_t *ret_n) {
        struct fsck_pages *p = container_of(g, struct fsck_pages, get);
        struct meta_place place;
        struct store *store = p->f->m->s->store;
        struct digest d;
        int r;

        arena_reset(p->a);
        r = meta_check_place(p->f->k, hash, p->a, &place);
        if (r < 0)
                return r;
        if (!place.found || place.block.stored_bytes > BLOCK_BYTES_MAX || place.block.raw_bytes > BLOCK_BYTES_MAX)
                return -ENODATA;
        if (place.block.encoding == ENC_RAW) {
                if (place.block.stored_bytes != place.block.raw_bytes)
                        return -EBADMSG;
                r = store->get(store, place.object, place.block.offset, p->bytes, place.block.raw_bytes);
        } else {
                _cleanup_free_ uint8_t *stored = malloc(BLOCK_BYTES_MAX);
                struct wire_block wire = {.hash = *hash, .encoding = place.block.encoding, .raw_bytes = place.block.raw_bytes, .n = place.block.stored_bytes, .bytes = stored};

                if (!stored)
                        return -ENOMEM;
                r = store->get(store, place.object, place.block.offset, stored, place.block.stored_bytes);
                if (r >= 0)
                        r = wire_block_expand(&wire, NULL, 0, p->bytes);
        }
        if (r == -ENOMEM)
                return r;
        sha256(p->bytes, place.block.raw_bytes, &d);
        if (r < 0 || !digest_equal(&d, hash))
                return -ENODATA;
        *ret_bytes = p->bytes;
        *ret_n = place.block.raw_bytes;
        return 0;
}

static int tally_each(void *arg, const struct blockref *ref) { return tally_add(arg, ref); }

/* 0 all lists were read; 1 some could not be. */
static int count_space(struct fsck *f, uint64_t ws, struct tally *t, struct fsck_pages *pages) {
        struct meta_set prev = {.n = 0}, now = {.n = 0};
        _cleanup_arena_ struct arena *a = NULL;
        struct id after = {{0}};
        bool end = false, lacking = false;
        int r = arena_new(256u << 20, &a);

        while (r == 0 && !end) {
                struct meta_check_content *list;
                size_t n;

                arena_reset(a);
                r = meta_check_contents(f->k, ws, &after, NODES_PER_STEP, a, &list, &n, &after, &end);
                for (size_t i = 0; r == 0 && i < n; i++) {
                        bool first = list[i].first;

                        f->contents++;
                        now = (struct meta_set){.content = list[i].content};
                        r = meta_content_set(&now.content, &pages->get, &now.refs, &now.n);
                        if (r == -ENODATA || r == -EBADMSG) {
                                char text[200], hex[2 * ID_BYTES + 1];

                                hex_encode(list[i].node.b, ID_BYTES, hex);
                                (void)snprintf(text, sizeof text, "the block list of a version of node %s cannot be read (%s)", hex, err_name(r));
                                f->report.problem(&f->report, ws, "list_unreadable", text);
                                lacking = true;
                                r = 0;
                        }
                        if (r == 0)
                                r = meta_runs(first ? NULL : &prev, &now, tally_each, t);
                        free(prev.refs);
                        prev = now;
                }
                if (r == 0 && maintain_stopped(f->m))
                        r = -ECANCELED;
        }
        free(prev.refs);
        return r < 0 ? r : lacking;
}

struct compare { struct fsck *f; uint64_t ws; struct tally *t; bool lacking; };

static int compare_each(void *arg, const struct meta_ref *ref) {
        struct compare *c = arg;
        struct meta_ref *at = c->t->room ? &c->t->refs[tally_slot(c->t, &ref->hash)] : NULL;
        uint64_t counted = at ? at->refs : 0;
        char text[200], hex[2 * DIGEST_BYTES + 1];

        c->f->blocks++;
        if (at && counted)
                at->raw = 0; /* seen */
        if (counted == ref->refs || (c->lacking && counted < ref->refs))
                return 0;
        hex_encode(ref->hash.b, DIGEST_BYTES, hex);
        (void)snprintf(text, sizeof text, "the block %s has %llu references, versions need %llu", hex, (unsigned long long)ref->refs, (unsigned long long)counted);
        c->f->report.problem(&c->f->report, c->ws, counted > ref->refs ? "reference_too_low" : "reference_too_high", text);
        return 0;
}

struct fix { struct tally *t; struct meta_ref *list; size_t n, room; };

static int fix_add(struct fix *x, const struct meta_ref *ref) {
        if (x->n == x->room) {
                size_t room = x->room ? x->room * 2 : 1024;
                void *p = reallocarray(x->list, room, sizeof *x->list);

                if (!p)
                        return -ENOMEM;
                x->list = p;
                x->room = room;
        }
        x->list[x->n++] = *ref;
        return 0;
}

/* A reference that no version needs. */
static int fix_each(void *arg, const struct meta_ref *ref) {
        struct fix *x = arg;
        struct meta_ref none = {.hash = ref->hash};

        return x->t->room && x->t->refs[tally_slot(x->t, &ref->hash)].refs ? 0 : fix_add(x, &none);
}

/* The table becomes what was counted. */
static int fix_refs(struct fsck *f, uint64_t ws, struct tally *t) {
        struct fix x = {.t = t};
        int r = meta_check_refs(f->k, ws, fix_each, &x);

        for (size_t i = 0; r == 0 && i < t->room; i++)
                if (t->refs[i].refs)
                        r = fix_add(&x, &t->refs[i]);
        if (r == 0)
                r = meta_refs_set(f->m->s->meta, ws, x.list, x.n);
        free(x.list);
        return r;
}

static int check_space(struct fsck *f, uint64_t ws, bool repair) {
        struct tally t = {.n = 0};
        struct fsck_pages pages = {.get = {pages_get}, .f = f, .bytes = malloc(BLOCK_BYTES_MAX)};
        int r = pages.bytes ? arena_new(64u << 10, &pages.a) : -ENOMEM;
        bool lacking;

        if (r == 0)
                r = count_space(f, ws, &t, &pages);
        lacking = r > 0;
        if (r >= 0 && repair && !lacking)
                r = fix_refs(f, ws, &t);
        if (r >= 0 && !repair) {
                struct compare c = {f, ws, &t, lacking};

                r = meta_check_refs(f->k, ws, compare_each, &c);
                for (size_t i = 0; r == 0 && i < t.room; i++)
                        if (t.refs[i].refs && t.refs[i].raw) {
                                char text[200], hex[2 * DIGEST_BYTES + 1];

                                hex_encode(t.refs[i].hash.b, DIGEST_BYTES, hex);
                                (void)snprintf(text, sizeof text, "the block %s has no reference, versions need %llu", hex, (unsigned long long)t.refs[i].refs);
                                f->report.problem(&f->report, ws, "reference_too_low", text);
                        }
        }
        free(t.refs);
        free(pages.bytes);
        arena_free(pages.a);
        return r < 0 ? r : 0;
}

/* ---- objects ---- */

struct lost { struct fsck *f; meta_object_name *names; size_t n, room; };

static int object_each(void *arg, const char *object, uint64_t bytes) {
        struct lost *l = arg;
        struct store *store = l->f->m->s->store;
        uint64_t stored = 0;
        char text[200];
        int r = store->stat(store, object, &stored);

        l->f->objects++;
        if (r < 0 && r != -ENOENT)
                return r;
        if (r >= 0 && stored == bytes)
                return 0;
        (void)snprintf(text, sizeof text, r < 0 ? "object %s is not in the store" : "object %s has %llu bytes instead of %llu", object, (unsigned long long)stored, (unsigned long long)bytes);
        l->f->report.problem(&l->f->report, 0, r < 0 ? "object_lost" : "object_cut", text);
        if (l->n == l->room) {
                size_t room = l->room ? l->room * 2 : 64;
                void *p = reallocarray(l->names, room, sizeof *l->names);

                if (!p)
                        return -ENOMEM;
                l->names = p;
                l->room = room;
        }
        (void)snprintf(l->names[l->n++], sizeof l->names[0], "%s", object);
        return 0;
}

static int stored_each(void *arg, const char *object, uint64_t bytes, int64_t put_ns) {
        (void)object;
        (void)bytes;
        (void)put_ns;
        (*(uint64_t *)arg)++;
        return 0;
}

/* ---- one round ---- */

static int fsck_round(struct fsck *f, bool repair) {
        _cleanup_arena_ struct arena *a = NULL;
        struct lost lost = {.f = f};
        struct store *store = f->m->s->store;
        uint64_t *ws, stored = 0;
        size_t n = 0;
        int r;

        f->problems = f->notes = f->contents = f->blocks = f->objects = 0;
        f->quiet = repair;
        r = arena_new(8u << 20, &a);
        if (r == 0)
                r = meta_checker_open(f->m->s->meta, &f->k);
        if (r < 0)
                return r;
        r = meta_check_rows(f->k, &f->report);
        if (r == 0)
                r = meta_check_spaces(f->k, a, &ws, &n);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = check_space(f, ws[i], false);
        if (r == 0)
                r = meta_check_objects(f->k, object_each, &lost);
        if (r == 0)
                r = store->list(store, NULL, stored_each, &stored);
        f->orphans = stored > f->objects - lost.n ? stored - (f->objects - lost.n) : 0;
        if (r == 0 && repair) {
                f->repaired = f->problems + f->notes;
                for (size_t i = 0; r == 0 && i < n; i++)
                        r = check_space(f, ws[i], true);
        }
        meta_checker_close(f->k);
        f->k = NULL;
        for (size_t i = 0; r == 0 && repair && i < lost.n; i++)
                r = meta_object_lost(f->m->s->meta, lost.names[i]);
        for (size_t i = 0; r == 0 && repair && i < f->n_broken; i++) {
                bool epoch;

                r = meta_repair(f->m->s->meta, f->broken[i], f->log_broken[i], &epoch);
                if (r == 0)
                        log_info("event=fsck_repaired workspace=%llu new_epoch=%d", (unsigned long long)f->broken[i], epoch);
        }
        free(lost.names);
        return r < 0 ? r : f->err;
}

int maintain_fsck(struct maintain *m) {
        struct fsck *f = calloc(1, sizeof *f);
        int r = 0;

        if (!f)
                return -ENOMEM;
        f->report = (struct meta_report){fsck_problem, fsck_stopped};
        f->m = m;
        f->list = json_array();
        if (!f->list || json_object_set_new(m->report, "problems", f->list) < 0)
                r = -ENOMEM;
        if (r == 0 && m->repair && (m->s->serving || !m->s->data_dir))
                r = buf_add_str(m->out, "fsck --repair needs the data directory for itself; stop the server first") < 0 ? -ENOMEM : -EBUSY;
        if (r == 0 && m->repair)
                r = fsck_round(f, true);
        if (r == 0)
                r = fsck_round(f, false);
        const struct { const char *name; uint64_t value; } lines[] = {
                {"contents", f->contents}, {"references", f->blocks}, {"objects", f->objects}, {"objects_without_row", f->orphans}, {"problems_found", m->repair ? f->repaired : f->problems + f->notes},
                {"problems_left", f->problems},
        };
        for (size_t i = 0; r == 0 && i < ARRAY_SIZE(lines); i++)
                r = maintain_say(m, lines[i].name, lines[i].value);
        if (r == 0 && f->problems > 0)
                r = -EUCLEAN;
        free(f);
        return r;
}
