/* SPDX-License-Identifier: Apache-2.0 */
/* load.c: a snapshot of the whole workspace into the tree: the first one, and a new one when the server does not know our cursor any more (410: a new epoch, a
 * rolled-back server, a horizon passed).
 *
 *   phase     asks for                                  leaves on
 *   NODES     snapshot/nodes, page by page (by id)      the page with `end` -> ENTRIES
 *   ENTRIES   snapshot/entries, page by page (by key)   the page with `end` -> EVENTS; its `upto` is E
 *   EVENTS    events after S (the first page's upto)    upto >= E -> APPLY (S == E: at once)
 *   APPLY     nothing: the difference, a step a turn    done -> NONE, events.c goes on after E
 *
 * Pages go into side tables (tree_snapshot_*) with the state that continues the scan, in one transaction each, so a killed load resumes after the last whole
 * page. Where an unfinished one stands is known by the setting `load_from` (S); without it the first page tells S and the tree is asked to begin there.
 *
 * What is verified: each page's count and SHA-256, and that it names the digest of the page before and the key it continues from; that every page is of
 * the epoch of S. Anything wrong: the page is asked for again (a few times: connect.c), a wrong epoch begins anew. Nothing is removed from the tree unless both scans ended
 * with a verified trailer: absence is never evidence of deletion.
 *
 * 410 for the events after S: S is older than the server's horizon; the load begins anew. While a load is active the outbox rests: sequence numbers of two epochs must not
 * meet.
 *
 * What a snapshot lacks is not always removed: tree_held.c has the brake. The answer 410 may name the epoch that the new one forks from, and where (load_fork). */
#include <stdio.h>
#include <string.h>

#include "base/digest.h"
#include "base/failpoint.h"
#include "base/json.h"
#include "priv.h"

#define SETTING "load_from"
#define NEWER_WAIT_MS 30000   /* for bytes that were uploaded just now to reach their blob */
#define NEWER_LOOK_MS 100

void load_init(struct engine *e) {
        struct cursor c;
        e->load.backoff = (struct backoff){ .base_ms = 200, .cap_ms = 8000 };
        e->load.page_rows = ROWS_PER_PAGE;
        struct buf from = BUF_INIT(256);
        bool unfinished = tree_setting_get(e->c.cache->tree, SETTING, &from) >= 0 && from.bytes == sizeof c;
        if (unfinished || !e->loaded)
                load_start(e);
        else
                events_start(e);
        buf_free(&from);
}

bool load_active(const struct engine *e) {
        return e->load.phase != LOAD_NONE;
}

static void begin_anew(struct engine *e) {
        if (tree_snapshot_abandon(e->c.cache->tree) < 0)
                log_warn("sync load=abandon failed");
        if (tree_setting_set(e->c.cache->tree, SETTING, "", 0) < 0)
                log_warn("sync load=setting failed");
        e->load.begun = false;
        e->load.rows = 0;
        memset(&e->load.at, 0, sizeof e->load.at);
        e->load.phase = LOAD_NODES;
}

static void resume(struct engine *e) {
        struct load *l = &e->load;
        l->begun = true;
        l->phase = !l->at.nodes_end ? LOAD_NODES : !l->at.entries_end ? LOAD_ENTRIES : LOAD_EVENTS;
}

/* What a 410 says of the epoch that it sends us to. */
void load_fork(struct engine *e, const struct buf *answer) {
        _cleanup_json_ json_t *j = NULL;
        struct id predecessor = { { 0 } };
        const char *text;
        int64_t fork = 0;
        if (json_parse(answer->data, answer->bytes, &j) < 0 || json_get_str(j, "predecessor", &text) < 0 || hex_decode(text, predecessor.b, ID_BYTES) < 0 ||
            json_get_int(j, "fork_seq", 0, INT64_MAX, &fork) < 0)
                memset(&predecessor, 0, sizeof predecessor);
        if (tree_snapshot_fork(e->c.cache->tree, &predecessor, (uint64_t)fork) < 0)
                log_warn("sync load=fork failed"); /* then nothing is removed if the epoch is another */
}

void load_start(struct engine *e) {
        struct load *l = &e->load;
        struct buf saved = BUF_INIT(256);
        struct cursor from;
        events_stop(e);
        l->retry_at_ms = l->apply_since_ms = 0;
        l->phase = LOAD_NODES;
        l->begun = false;
        if (tree_setting_get(e->c.cache->tree, SETTING, &saved) >= 0 && saved.bytes == sizeof from) {
                memcpy(&from, saved.data, sizeof from);
                if (tree_snapshot_begin(e->c.cache->tree, &from, &l->at) >= 0) {
                        resume(e);
                        buf_free(&saved);
                        return;
                }
        }
        buf_free(&saved);
        memset(&l->at, 0, sizeof l->at);
}

static void again(struct engine *e, int64_t retry_after_ms) {
        e->load.retry_at_ms = engine_now(e) + connect_retry_ms(e, &e->load.backoff, retry_after_ms);
}

/* ---- pages ---- */

struct page { struct node_row *nodes; struct entry_row *entries; size_t n; struct wire_page trailer; };

static int decode_page(const struct buf *body, enum frame_kind kind, struct arena *a, struct page *ret) {
        struct wire_reader r = { .p = body->data, .n = body->bytes };
        struct frame f;
        size_t room = 0;
        bool ended = false;
        /* how many rows: count the frames first, so that the rows are one array */
        for (;;) {
                int k = wire_next(&r, &f);
                if (k < 0)
                        return k;
                if (k == 0)
                        break;
                if (f.kind == kind)
                        room++;
        }
        if (room > SNAPSHOT_ROWS_MAX)
                return -EPROTO;
        struct page p = { 0 };
        if (kind == FRAME_NODE)
                p.nodes = arena_alloc(a, MAX(room, 1u) * sizeof *p.nodes);
        else
                p.entries = arena_alloc(a, MAX(room, 1u) * sizeof *p.entries);
        if (!p.nodes && !p.entries)
                return -ENOMEM;
        r = (struct wire_reader){ .p = body->data, .n = body->bytes };
        for (;;) {
                size_t start = r.at;
                int k = wire_next(&r, &f);
                if (k < 0)
                        return k;
                if (k == 0)
                        break;
                if (ended)
                        return -EPROTO;
                if (f.kind == FRAME_PAGE) {
                        struct digest d;
                        k = wire_get_page(&f, &p.trailer);
                        if (k < 0)
                                return k;
                        sha256(body->data, start, &d);
                        if (!digest_equal(&d, &p.trailer.digest) || p.trailer.count != p.n)
                                return -EPROTO;
                        ended = true;
                } else if (f.kind == kind) {
                        k = kind == FRAME_NODE ? wire_get_node(&f, a, &p.nodes[p.n]) : wire_get_entry(&f, a, &p.entries[p.n]);
                        if (k < 0)
                                return k;
                        p.n++;
                } else {
                        return -EPROTO;
                }
        }
        if (!ended)
                return -EPROTO;
        *ret = p;
        return 0;
}

static int store_page(struct engine *e, const struct page *p, bool nodes) {
        struct load *l = &e->load;
        struct tree *t = e->c.cache->tree;
        struct snapshot_state next = l->at;
        next.upto = p->trailer.upto;
        if (nodes) {
                if (!id_equal(&p->trailer.after_id, &l->at.nodes_after) || !digest_equal(&p->trailer.previous, &l->at.nodes_digest))
                        return -EPROTO;
                next.nodes_after = p->n ? p->trailer.last_id : l->at.nodes_after;
                next.nodes_digest = p->trailer.digest;
                next.nodes_end = p->trailer.end;
        } else {
                if (p->trailer.after_entry != l->at.entries_after || !digest_equal(&p->trailer.previous, &l->at.entries_digest))
                        return -EPROTO;
                next.entries_after = p->n ? p->trailer.last_entry : l->at.entries_after;
                next.entries_digest = p->trailer.digest;
                next.entries_end = p->trailer.end;
        }
        FAILPOINT_HERE("load.page");
        int r = nodes ? tree_snapshot_nodes(t, p->nodes, p->n, &next) : tree_snapshot_entries(t, p->entries, p->n, &next);
        if (r < 0)
                return r;
        l->at = next;
        l->rows += p->n;
        counter_add(e->c.counters, snapshot_rows, p->n);
        engine_set_loaded(e, l->rows, false);
        return 0;
}

/* The first page of all: begin at its cursor. 1: an unfinished load of this epoch was resumed and the page is not the next one. */
static int begin(struct engine *e, const struct page *p) {
        struct load *l = &e->load;
        int r = tree_snapshot_begin(e->c.cache->tree, &p->trailer.upto, &l->at);
        if (r < 0)
                return r;
        r = tree_setting_set(e->c.cache->tree, SETTING, &l->at.from, sizeof l->at.from);
        if (r < 0)
                return r;
        bool fresh = id_is_zero(&l->at.nodes_after) && !l->at.nodes_end;
        resume(e);
        return fresh ? 0 : 1;
}

static void page_finished(struct request *r, int err) {
        struct engine *e = r->e;
        struct load *l = &e->load;
        bool nodes = l->phase == LOAD_NODES;
        struct arena *a = NULL;
        struct page p;
        l->request = NULL;
        if (err == -EMSGSIZE && l->page_rows > 100) {
                l->page_rows /= 4;
                return;
        }
        if (err == -ENOENT || err == -EACCES) {
                connect_failed(e, err, err == -ENOENT ? "the server has no such workspace" : "this login has no right to the workspace");
                return;
        }
        if (err < 0) {
                again(e, r->call->retry_after_ms);
                return;
        }
        int k = arena_new(4ull * ANSWER_BYTES_MAX, &a);
        if (k >= 0)
                k = decode_page(&r->call->answer, nodes ? FRAME_NODE : FRAME_ENTRY, a, &p);
        if (k >= 0 && l->begun && !id_equal(&p.trailer.upto.epoch, &l->at.from.epoch)) {
                begin_anew(e);
                arena_free(a);
                return;
        }
        bool resumed = false;
        if (k >= 0 && !l->begun) {
                k = begin(e, &p);
                resumed = k > 0;
        }
        if (k >= 0 && !resumed)
                k = store_page(e, &p, nodes);
        arena_free(a);
        if (k == -EPROTO || k == -EPROTONOSUPPORT) {
                connect_protocol_error(e, k, "snapshot page");
                again(e, 0);
                return;
        }
        if (k < 0) {
                log_warn("sync load=page err=%s", err_name(k));
                again(e, 0);
                return;
        }
        connect_parsed(e);
        backoff_reset(&l->backoff);
        resume(e);
}

static void ask_page(struct engine *e, bool nodes) {
        struct load *l = &e->load;
        char after[80] = "", previous[100] = "", hex[2 * DIGEST_BYTES + 1];
        if (nodes && !id_is_zero(&l->at.nodes_after)) {
                hex_encode(l->at.nodes_after.b, ID_BYTES, hex);
                snprintf(after, sizeof after, "&after=%s", hex);
        } else if (!nodes && l->at.entries_after) {
                snprintf(after, sizeof after, "&after=%llu", (unsigned long long)l->at.entries_after);
        }
        const struct digest *d = nodes ? &l->at.nodes_digest : &l->at.entries_digest;
        if (!digest_is_zero(d)) {
                hex_encode(d->b, DIGEST_BYTES, hex);
                snprintf(previous, sizeof previous, "&previous=%s", hex);
        }
        struct request *r = request_new(e, HTTP_GET, 0, ANSWER_BYTES_MAX, "/v1/workspaces/%s/snapshot/%s?limit=%u%s%s", buf_text(&e->ws), nodes ? "nodes" : "entries",
                                        l->page_rows, after, previous);
        if (!r) {
                again(e, 0);
                return;
        }
        r->finished = page_finished;
        l->request = r;
        request_send(r, 0);
}

/* ---- events up to E ---- */

static void catch_up_finished(struct request *r, int err) {
        struct engine *e = r->e;
        struct load *l = &e->load;
        struct arena *a = NULL;
        struct event *events = NULL;
        struct cursor upto;
        size_t n = 0;
        l->request = NULL;
        if (err == -EIDRM) {
                load_fork(e, &r->call->answer);
                begin_anew(e);
                return;
        }
        if (err < 0) {
                again(e, r->call->retry_after_ms);
                return;
        }
        int k = arena_new(4ull * ANSWER_BYTES_MAX, &a);
        if (k >= 0)
                k = events_decode(e, &r->call->answer, a, &events, &n, &upto);
        if (k >= 0 && (!id_equal(&upto.epoch, &l->at.from.epoch) || upto.seq < l->at.from.seq))
                k = -EPROTO;
        if (k >= 0 && n)
                k = tree_snapshot_events(e->c.cache->tree, events, n);
        arena_free(a);
        if (k == -EPROTO || k == -EPROTONOSUPPORT)
                connect_protocol_error(e, k, "events of the snapshot");
        if (k < 0) {
                again(e, 0);
                return;
        }
        connect_parsed(e);
        backoff_reset(&l->backoff);
        l->at.from = upto; /* in memory: a restart asks for these events again, applying them twice changes nothing */
        if (upto.seq >= l->at.upto.seq) {
                l->at.upto = upto;
                l->phase = LOAD_APPLY;
        }
}

static void ask_events(struct engine *e) {
        struct load *l = &e->load;
        char epoch[2 * ID_BYTES + 1], mark[17];
        if (l->at.from.seq >= l->at.upto.seq) {
                l->phase = LOAD_APPLY;
                return;
        }
        hex_encode(l->at.from.epoch.b, ID_BYTES, epoch);
        hex_encode(l->at.from.mark, 8, mark);
        struct request *r = request_new(e, HTTP_GET, 0, ANSWER_BYTES_MAX, "/v1/events?cursor=%s:%s:%llu:%s&wait=0&limit=%u", buf_text(&e->ws), epoch,
                                        (unsigned long long)l->at.from.seq, mark, EVENTS_PER_POLL);
        if (!r) {
                again(e, 0);
                return;
        }
        r->finished = catch_up_finished;
        l->request = r;
        request_send(r, 0);
}

/* ---- one turn ---- */

static int64_t apply(struct engine *e, int64_t now) {
        struct load *l = &e->load;
        FAILPOINT_HERE("load.step");
        if (l->apply_since_ms == 0)
                l->apply_since_ms = now;
        int r = cache_newer(e->c.cache, now - l->apply_since_ms < NEWER_WAIT_MS);
        if (r == -EAGAIN) {
                l->retry_at_ms = now + NEWER_LOOK_MS;
                return l->retry_at_ms;
        }
        if (r == 0)
                r = tree_snapshot_step(e->c.cache->tree, &l->at.upto, ROWS_PER_STEP, engine_is_open, e->c.cache);
        if (r > 0)
                return now;
        if (r < 0) {
                log_warn("sync load=apply err=%s", err_name(r));
                again(e, 0);
                return l->retry_at_ms;
        }
        r = cache_loaded(e->c.cache);
        if (r == 0)
                r = cache_keep_held(e->c.cache);
        if (r < 0) { /* the tree is complete, so the next start tries again */
                again(e, 0);
                return l->retry_at_ms;
        }
        if (tree_setting_set(e->c.cache->tree, SETTING, "", 0) < 0)
                log_warn("sync load=setting failed");
        if (tree_held(e->c.cache->tree))
                log_warn("sync brake: the snapshot would remove %llu nodes; they are held", (unsigned long long)tree_held(e->c.cache->tree));
        log_info("sync load=done rows=%llu seq=%llu", (unsigned long long)l->rows, (unsigned long long)l->at.upto.seq);
        l->phase = LOAD_NONE;
        engine_set_loaded(e, l->rows, true);
        events_start(e);
        outbox_look(e);
        return now;
}

/* What the brake holds goes, a step a turn. */
static int64_t let_go(struct engine *e, int64_t now) {
        int r = tree_held_drop(e->c.cache->tree, ROWS_PER_STEP, engine_is_open, e->c.cache);
        if (r > 0)
                return now;
        if (r == 0)
                r = cache_keep_held(e->c.cache);
        if (r < 0)
                log_warn("sync accept err=%s", err_name(r));
        else
                log_info("sync accept=done");
        atomic_store(&e->accept, false);
        return NEVER;
}

int64_t load_step(struct engine *e, int64_t now) {
        struct load *l = &e->load;
        if (l->phase == LOAD_NONE && atomic_load(&e->accept))
                return let_go(e, now);
        if (l->phase == LOAD_NONE || l->request)
                return NEVER;
        if (l->retry_at_ms > now)
                return l->retry_at_ms;
        if (l->phase == LOAD_APPLY)
                return apply(e, now);
        if (!connect_online(e))
                return NEVER; /* connect.c calls for a turn when that changes */
        if (e->outbox.in_flight)
                return NEVER; /* its answer belongs to the old state */
        if (l->phase == LOAD_NODES || l->phase == LOAD_ENTRIES)
                ask_page(e, l->phase == LOAD_NODES);
        else
                ask_events(e);
        return l->request ? NEVER : l->phase == LOAD_APPLY ? now : MAX(l->retry_at_ms, now);
}
