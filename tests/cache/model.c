/* SPDX-License-Identifier: Apache-2.0 */
/* model.c: a server in a few arrays: operations are judged and applied as data-model.md and the conflict table say, each accepted one makes an event with whole rows. No
 * speed, no blocks, one workspace. Deleted nodes stay as tombstones with their last names, for revival. Also what stands for the engine: batches up, events down, and refusals as the
 * real planner decides them. */
#include "sync/planner.h"
#include "world.h"

void model_open(struct model *m, uint64_t seed) {
        memset(m, 0, sizeof(*m));
        rng_seed(&m->rng, seed ^ 0x5eed);
        MUST(arena_new(512u << 20, &m->arena));
        m->epoch.b[0] = 7;
        m->seq = 1;
        m->nodes[m->n_nodes++] = (struct model_node){ .row = { .id = id_root, .kind = NODE_DIR, .mode = 0755, .uid = 1000, .gid = 1000, .mtime_ns = 1, .ctime_ns = 1, .btime_ns = 1, .seq = 1 } };
}

void model_close(struct model *m) {
        arena_free(m->arena);
        free(m->done);
        free(m->log);
}

struct cursor model_cursor(const struct model *m, uint64_t seq) {
        struct cursor c = { .epoch = m->epoch, .seq = seq };
        memcpy(c.mark, &seq, sizeof(seq));
        return c;
}

struct model_node *model_find(struct model *m, const struct id *id) {
        struct id want = *id;
        for (size_t i = 0; i < m->n_alias; i++)
                if (id_equal(&m->alias[i].from, &want))
                        want = m->alias[i].to;
        for (size_t i = 0; i < m->n_nodes; i++)
                if (id_equal(&m->nodes[i].row.id, &want))
                        return &m->nodes[i];
        return NULL;
}

struct model_entry *model_at(struct model *m, const struct id *parent, const char *name) {
        for (size_t i = 0; i < m->n_entries; i++)
                if (m->entries[i].live && id_equal(&m->entries[i].row.parent, parent) && strcmp(m->entries[i].name, name) == 0)
                        return &m->entries[i];
        return NULL;
}

static struct model_entry *at_n(struct model *m, const struct id *parent, const char *name, size_t n) {
        char text[NAME_BYTES_MAX + 1];
        memcpy(text, name, n);
        text[n] = 0;
        return model_at(m, parent, text);
}

static bool any_child(struct model *m, const struct id *dir) {
        for (size_t i = 0; i < m->n_entries; i++)
                if (m->entries[i].live && id_equal(&m->entries[i].row.parent, dir))
                        return true;
        return false;
}

static size_t links(struct model *m, const struct id *node) {
        size_t n = 0;
        for (size_t i = 0; i < m->n_entries; i++)
                n += m->entries[i].live && id_equal(&m->entries[i].row.node, node);
        return n;
}

static void change_of(struct model *m, const struct model_node *node, struct change *ret) {
        struct entry_row *rows = arena_alloc(m->arena, 16 * sizeof(*rows));
        size_t n = 0;
        for (size_t i = 0; i < m->n_entries; i++)
                if (m->entries[i].live && id_equal(&m->entries[i].row.node, &node->row.id) && n < 16) {
                        rows[n] = m->entries[i].row;
                        rows[n].name = arena_strndup(m->arena, m->entries[i].name, m->entries[i].row.name_bytes);
                        n++;
                }
        *ret = (struct change){ .node = node->row, .has_entries = !node->row.deleted && !id_equal(&node->row.id, &id_root), .entries = rows, .n_entries = n };
}

struct touched { struct model_node *v[16]; size_t n; };
static void touch(struct touched *t, struct model_node *n) {
        for (size_t i = 0; i < t->n; i++)
                if (t->v[i] == n)
                        return;
        assert_true(t->n < 16);
        t->v[t->n++] = n;
}

static struct model_entry *add_entry(struct model *m, const struct id *parent, const char *name, size_t n, const struct id *node, const struct id *placement) {
        assert_true(m->n_entries < MODEL_ENTRIES);
        struct model_entry *e = &m->entries[m->n_entries++];
        memcpy(e->name, name, n);
        e->name[n] = 0;
        e->live = true;
        e->row = (struct entry_row){ .entry_id = ++m->next_entry, .parent = *parent, .node = *node, .name = e->name, .name_bytes = n, .placement = *placement, .seq = m->seq + 1 };
        return e;
}

static void touch_dir(struct model *m, struct touched *t, const struct id *dir, int64_t time_ns) {
        struct model_node *d = model_find(m, dir);
        d->row.mtime_ns = d->row.ctime_ns = time_ns;
        touch(t, d);
}

static void drop_entry(struct model *m, struct touched *t, struct model_entry *e, int64_t time_ns) {
        struct model_node *n = model_find(m, &e->row.node);
        e->live = false;
        touch_dir(m, t, &e->row.parent, time_ns);
        touch(t, n);
        if (links(m, &n->row.id) == 0)
                n->row.deleted = true;
        n->row.ctime_ns = time_ns;
}

/* Brings a deleted node back under its last name, and its parents. */
static bool revive(struct model *m, struct touched *t, struct model_node *n, const struct id *op) {
        if (!n->row.deleted)
                return true;
        for (size_t i = m->n_entries; i-- > 0;) {
                struct model_entry *e = &m->entries[i];
                if (!id_equal(&e->row.node, &n->row.id))
                        continue;
                struct model_node *parent = model_find(m, &e->row.parent);
                if (!revive(m, t, parent, op))
                        return false;
                char name[NAME_BYTES_MAX + 1];
                (void)snprintf(name, sizeof(name), "%s", e->name);
                while (model_at(m, &parent->row.id, name))
                        (void)snprintf(name, sizeof(name), "revived%llu", (unsigned long long)rng_below(&m->rng.rng, 1000000));
                n->row.deleted = false;
                (void)add_entry(m, &parent->row.id, name, strlen(name), &n->row.id, op);
                touch(t, n);
                touch(t, parent);
                return true;
        }
        return false;
}

static bool below(struct model *m, const struct id *dir, const struct id *top) {
        struct id at = *dir;
        while (!id_equal(&at, &id_root)) {
                if (id_equal(&at, top))
                        return true;
                bool found = false;
                for (size_t i = 0; i < m->n_entries && !found; i++)
                        if (m->entries[i].live && id_equal(&m->entries[i].row.node, &at)) {
                                at = m->entries[i].row.parent;
                                found = true;
                        }
                if (!found)
                        return false;
        }
        return false;
}

static void take_attrs(struct model *m, struct node_row *row, const struct op *op, uint32_t mask) {
        const struct node_row *a = &op->attrs;
        if (mask & ATTR_XATTR) {
                struct xattr *list = arena_alloc(m->arena, (a->n_xattrs + 1) * sizeof(*list));
                for (size_t i = 0; i < a->n_xattrs; i++)
                        list[i] = (struct xattr){ .name = arena_strndup(m->arena, a->xattrs[i].name, strlen(a->xattrs[i].name)), .value_bytes = a->xattrs[i].value_bytes,
                                                  .value = arena_strndup(m->arena, a->xattrs[i].value, a->xattrs[i].value_bytes) };
                row->xattrs = list;
                row->n_xattrs = a->n_xattrs;
        }
        if (mask & ATTR_MODE)
                row->mode = a->mode;
        if (mask & ATTR_UID)
                row->uid = a->uid;
        if (mask & ATTR_GID)
                row->gid = a->gid;
        if (mask & ATTR_MTIME)
                row->mtime_ns = a->mtime_ns;
        if (mask & ATTR_BTIME)
                row->btime_ns = a->btime_ns;
        if (mask & ATTR_CTIME)
                row->ctime_ns = a->ctime_ns;
}

/* A base may name an operation that was merged: it stands for what was there. */
static bool base_is(struct model *m, const struct id *base, const struct id *current, bool placement) {
        if (id_equal(base, current))
                return true;
        for (size_t i = 0; i < m->n_done; i++)
                if (id_equal(&m->done[i].op, base) && m->done[i].result.code == RES_MERGED)
                        return id_equal(placement ? &m->done[i].placement : &m->done[i].version, current);
        return false;
}

static enum op_code judge(struct model *m, const struct op *op, struct touched *t, struct id *ret_merged) {
        struct model_node *node = model_find(m, &op->node), *parent = id_is_zero(&op->parent) ? NULL : model_find(m, &op->parent);
        struct model_node *parent2 = id_is_zero(&op->parent2) ? NULL : model_find(m, &op->parent2);
        struct model_entry *e, *o;
        for (size_t i = 0; i < op->n_after; i++) {
                bool found = false;
                for (size_t k = 0; k < m->n_done && !found; k++)
                        found = id_equal(&m->done[k].op, &op->after[i]);
                if (!found)
                        return RES_SKIPPED;
        }
        if (op->kind == OP_CREATE || op->kind == OP_LINK) {
                if (!parent)
                        return RES_NOT_FOUND;
                touch(t, parent);
                if (op->kind == OP_LINK && (!node || node->row.deleted)) {
                        if (node)
                                touch(t, node);
                        return node ? RES_DELETED : RES_NOT_FOUND;
                }
                if (parent->row.deleted && !(op->flags & OPF_REVIVE))
                        return RES_DELETED;
                if (parent->row.deleted && !revive(m, t, parent, &op->id))
                        return RES_NOT_FOUND;
                o = at_n(m, &parent->row.id, op->name, op->name_bytes);
                if (o) {
                        struct model_node *there = model_find(m, &o->row.node);
                        touch(t, there);
                        if (op->kind == OP_CREATE && there->row.kind == op->attrs.kind &&
                            (there->row.kind == NODE_DIR || (there->row.kind == NODE_FILE && content_equal(&there->row.content, &op->content)))) {
                                *ret_merged = there->row.id;
                                return RES_MERGED;
                        }
                        return RES_EXISTS;
                }
                if (op->kind == OP_CREATE) {
                        if (node)
                                return RES_EXISTS;
                        assert_true(m->n_nodes < MODEL_NODES);
                        node = &m->nodes[m->n_nodes++];
                        *node = (struct model_node){ .row = { .id = op->node, .kind = op->attrs.kind, .content = content_empty } };
                        take_attrs(m, &node->row, op, UINT32_MAX);
                        node->row.target = op->attrs.target ? arena_strndup(m->arena, op->attrs.target, strlen(op->attrs.target)) : NULL;
                        if (op->attrs.kind == NODE_FILE) {
                                node->row.content = op->content;
                                node->row.version = op->id;
                        }
                } else {
                        node->row.ctime_ns = op->time_ns;
                }
                (void)add_entry(m, &parent->row.id, op->name, op->name_bytes, &node->row.id, &op->id);
                touch_dir(m, t, &parent->row.id, op->time_ns);
                touch(t, node);
                return RES_OK;
        }
        if (!node)
                return RES_NOT_FOUND;
        touch(t, node);
        if (node->row.deleted && !((op->flags & OPF_REVIVE) && (op->kind == OP_CONTENT || op->kind == OP_REPLACE)))
                return RES_DELETED;
        switch (op->kind) {
        case OP_REPLACE:
        case OP_CONTENT:
                if (!base_is(m, &op->version, &node->row.version, false))
                        return RES_STALE;
                {
                        struct model_node *source = id_is_zero(&op->source) ? NULL : model_find(m, &op->source);
                        e = NULL;
                        if (source && !source->row.deleted) { /* one that is gone by now is no obstacle */
                                touch(t, source);
                                e = parent ? at_n(m, &parent->row.id, op->name, op->name_bytes) : NULL;
                                if (!e)
                                        return RES_NOT_FOUND;
                                if (model_find(m, &e->row.node) != source || !base_is(m, &op->placement, &e->row.placement, true))
                                        return RES_STALE;
                                if (links(m, &source->row.id) == 1 && !id_is_zero(&op->replaced_version) && !base_is(m, &op->replaced_version, &source->row.version, false))
                                        return RES_STALE;
                        }
                }
                if (node->row.deleted && !revive(m, t, node, &op->id))
                        return RES_NOT_FOUND;
                node->row.content = op->content;
                node->row.version = op->id;
                take_attrs(m, &node->row, op, op->attr_mask);
                if (e)
                        drop_entry(m, t, e, op->time_ns);
                return RES_OK;
        case OP_ATTR:
                take_attrs(m, &node->row, op, op->attr_mask);
                return RES_OK;
        case OP_UNLINK:
                e = parent ? at_n(m, &parent->row.id, op->name, op->name_bytes) : NULL;
                if (!e || model_find(m, &e->row.node) != node || !base_is(m, &op->placement, &e->row.placement, true))
                        return RES_STALE;
                if (node->row.kind == NODE_DIR && any_child(m, &node->row.id))
                        return RES_NOT_EMPTY;
                if (node->row.kind == NODE_FILE && links(m, &node->row.id) == 1 && !base_is(m, &op->version, &node->row.version, false))
                        return RES_STALE;
                drop_entry(m, t, e, op->time_ns);
                return RES_OK;
        case OP_RENAME:
                e = parent ? at_n(m, &parent->row.id, op->name, op->name_bytes) : NULL;
                if (!e || model_find(m, &e->row.node) != node || !base_is(m, &op->placement, &e->row.placement, true))
                        return RES_STALE;
                if (!parent2)
                        return RES_NOT_FOUND;
                touch(t, parent2);
                if (parent2->row.deleted && (!(op->flags & OPF_REVIVE) || !revive(m, t, parent2, &op->id)))
                        return RES_DELETED;
                if (node->row.kind == NODE_DIR && below(m, &parent2->row.id, &node->row.id))
                        return RES_CYCLE;
                o = at_n(m, &parent2->row.id, op->name2, op->name2_bytes);
                struct model_node *there = o ? model_find(m, &o->row.node) : NULL;
                if (there)
                        touch(t, there);
                if (op->flags & OPF_EXCHANGE) {
                        if (!o || there != model_find(m, &op->replaced) || !base_is(m, &op->replaced_placement, &o->row.placement, true))
                                return RES_STALE;
                        if (there->row.kind == NODE_DIR && below(m, &parent->row.id, &there->row.id))
                                return RES_CYCLE;
                        struct id a = node->row.id, b = there->row.id;
                        e->live = o->live = false;
                        (void)add_entry(m, &parent2->row.id, op->name2, op->name2_bytes, &a, &op->id);
                        (void)add_entry(m, &parent->row.id, op->name, op->name_bytes, &b, &op->id);
                        there->row.ctime_ns = op->time_ns;
                } else {
                        if (o && id_is_zero(&op->replaced))
                                return RES_EXISTS;
                        if (!o && !id_is_zero(&op->replaced)) {
                                struct model_node *gone = model_find(m, &op->replaced);
                                if (gone)
                                        touch(t, gone);
                                return RES_STALE;
                        }
                        if (o && (there != model_find(m, &op->replaced) || (there->row.kind == NODE_FILE && !base_is(m, &op->replaced_version, &there->row.version, false))))
                                return RES_STALE;
                        if (o && there->row.kind == NODE_DIR && any_child(m, &there->row.id))
                                return RES_NOT_EMPTY;
                        if (o)
                                drop_entry(m, t, o, op->time_ns);
                        e->live = false;
                        (void)add_entry(m, &parent2->row.id, op->name2, op->name2_bytes, &node->row.id, &op->id);
                }
                node->row.ctime_ns = op->time_ns;
                touch_dir(m, t, &parent->row.id, op->time_ns);
                touch_dir(m, t, &parent2->row.id, op->time_ns);
                return RES_OK;
        default:
                return RES_INVALID;
        }
}

struct op_result model_commit(struct model *m, const struct op *op) {
        for (size_t i = 0; i < m->n_done; i++)
                if (id_equal(&m->done[i].op, &op->id))
                        return m->done[i].result;
        struct touched t = {0};
        struct op_result r = { .op = op->id };
        /* A refusal leaves no trace. All checks come before all changes, but for revivals: those are taken back. */
        static struct model_node nodes_before[MODEL_NODES];
        static struct model_entry entries_before[MODEL_ENTRIES];
        const size_t n_nodes = m->n_nodes, n_entries = m->n_entries;
        if (op->flags & OPF_REVIVE) {
                memcpy(nodes_before, m->nodes, n_nodes * sizeof(nodes_before[0]));
                memcpy(entries_before, m->entries, n_entries * sizeof(entries_before[0]));
        }
        r.code = judge(m, op, &t, &r.merged_into);
        if ((op->flags & OPF_REVIVE) && r.code != RES_OK) {
                memcpy(m->nodes, nodes_before, n_nodes * sizeof(nodes_before[0]));
                memcpy(m->entries, entries_before, n_entries * sizeof(entries_before[0]));
                m->n_nodes = n_nodes;
                m->n_entries = n_entries;
        }
        if (r.code == RES_OK) {
                m->seq++;
                for (size_t i = 0; i < t.n; i++)
                        t.v[i]->row.seq = m->seq;
                r.seq = m->seq;
                memcpy(r.mark, &m->seq, 8);
        }
        if (r.code == RES_MERGED) {
                assert_true(m->n_alias < 256);
                m->alias[m->n_alias].from = op->node;
                m->alias[m->n_alias++].to = r.merged_into;
                r.seq = m->seq;
        }
        struct change *changes = arena_alloc(m->arena, MAX(t.n, 1u) * sizeof(*changes));
        for (size_t i = 0; i < t.n; i++)
                change_of(m, t.v[i], &changes[i]);
        r.current = changes;
        r.n_current = t.n;
        if (r.code == RES_OK || r.code == RES_MERGED) {
                if (m->n_done == m->done_room) {
                        m->done_room = m->done_room ? m->done_room * 2 : 64;
                        m->done = realloc(m->done, m->done_room * sizeof(*m->done));
                }
                struct model_entry *e = op->kind == OP_CREATE || op->kind == OP_LINK ? at_n(m, &model_find(m, &op->parent)->row.id, op->name, op->name_bytes) : NULL;
                struct model_node *n = r.code == RES_MERGED ? model_find(m, &r.merged_into) : NULL;
                m->done[m->n_done].op = op->id;
                m->done[m->n_done].placement = e ? e->row.placement : (struct id){ 0 };
                m->done[m->n_done].version = n ? n->row.version : (struct id){ 0 };
                m->done[m->n_done++].result = r;
        }
        if (r.code == RES_OK) {
                if (m->n_log == m->log_room) {
                        m->log_room = m->log_room ? m->log_room * 2 : 64;
                        m->log = realloc(m->log, m->log_room * sizeof(*m->log));
                }
                m->log[m->n_log++] = (struct event){ .seq = m->seq, .op = op->id, .changes = changes, .n_changes = t.n, .time_ns = op->time_ns };
        }
        return r;
}

/* ---- another client ---- */

static int64_t model_time(struct model *m) {
        return 1700000000000000000 + (int64_t)m->seq * 1000000;
}

struct content model_content(uint64_t gen, uint64_t size) {
        struct content c = { .size = size, .param = 1 };
        if (size)
                memcpy(c.root.b, &gen, sizeof(gen));
        return c;
}

struct id model_make(struct model *m, const struct id *parent, const char *name, enum node_kind kind, uint64_t size) {
        struct op op = { .id = rng_id(&m->rng.rng), .kind = OP_CREATE, .node = rng_id(&m->rng.rng), .parent = *parent, .name = name, .name_bytes = strlen(name), .attr_mask = UINT32_MAX,
                         .time_ns = model_time(m) };
        op.attrs = (struct node_row){ .kind = kind, .mode = 0640, .uid = 1, .gid = 1, .mtime_ns = op.time_ns, .ctime_ns = op.time_ns, .btime_ns = op.time_ns };
        op.content = model_content(rng_u64(&m->rng.rng) | 1, size);
        struct op_result r = model_commit(m, &op);
        return r.code == RES_OK ? op.node : (struct id){ 0 };
}

int model_write(struct model *m, const struct id *node, uint64_t size) {
        struct model_node *n = model_find(m, node);
        struct op op = { .id = rng_id(&m->rng.rng), .kind = OP_CONTENT, .node = *node, .version = n->row.version, .attr_mask = ATTR_MTIME | ATTR_CTIME, .time_ns = model_time(m) };
        op.attrs.mtime_ns = op.attrs.ctime_ns = op.time_ns;
        op.content = model_content(rng_u64(&m->rng.rng) | 1, size);
        return (int)model_commit(m, &op).code;
}

int model_chmod(struct model *m, const struct id *node, uint32_t mode) {
        struct op op = { .id = rng_id(&m->rng.rng), .kind = OP_ATTR, .node = *node, .attr_mask = ATTR_MODE | ATTR_CTIME, .time_ns = model_time(m) };
        op.attrs.mode = mode;
        op.attrs.ctime_ns = op.time_ns;
        return (int)model_commit(m, &op).code;
}

int model_rename(struct model *m, const struct id *parent, const char *name, const struct id *parent2, const char *name2) {
        struct model_entry *e = model_at(m, parent, name), *o = model_at(m, parent2, name2);
        if (!e || e == o)
                return -1;
        struct op op = { .id = rng_id(&m->rng.rng), .kind = OP_RENAME, .node = e->row.node, .parent = *parent, .name = name, .name_bytes = strlen(name), .parent2 = *parent2, .name2 = name2,
                         .name2_bytes = strlen(name2), .placement = e->row.placement, .time_ns = model_time(m) };
        if (o) {
                op.replaced = o->row.node;
                op.replaced_version = model_find(m, &o->row.node)->row.version;
                if ((model_find(m, &o->row.node)->row.kind == NODE_DIR) != (model_find(m, &e->row.node)->row.kind == NODE_DIR))
                        return -1;
        }
        return (int)model_commit(m, &op).code;
}

int model_unlink(struct model *m, const struct id *parent, const char *name) {
        struct model_entry *e = model_at(m, parent, name);
        if (!e)
                return -1;
        struct op op = { .id = rng_id(&m->rng.rng), .kind = OP_UNLINK, .node = e->row.node, .parent = *parent, .name = name, .name_bytes = strlen(name), .placement = e->row.placement,
                         .version = model_find(m, &e->row.node)->row.version, .time_ns = model_time(m) };
        return (int)model_commit(m, &op).code;
}

/* ---- the engine, in short ---- */

void sync_events(struct world *w, struct model *m, uint64_t from, uint64_t to) {
        struct tree_applied applied;
        size_t first = 0, n = 0;
        while (first < m->n_log && m->log[first].seq <= from)
                first++;
        while (first + n < m->n_log && m->log[first + n].seq <= to)
                n++;
        struct cursor c = model_cursor(m, to);
        MUST(tree_apply(w->tree, m->log ? m->log + first : NULL, n, &c, world_is_open, w, w->arena, &applied));
}

void sync_down(struct world *w, struct model *m) {
        struct cursor c;
        MUST(tree_cursor(w->tree, &c));
        sync_events(w, m, c.seq, m->seq);
}

/* What the engine does about a refusal: the planner's decision. A parked operation is tried again by the next round. */
void sync_refused(struct world *w, const struct outbox_item *item, const struct op *op, const struct op_result *r) {
        struct plan_facts facts = { 0 };
        struct tree_applied applied;
        struct plan plan;
        struct op now = *op;
        int k;
        MUST(tree_ids_now(w->tree, &now));
        for (size_t i = 0; i < r->n_current; i++)
                if (item->gen && id_equal(&r->current[i].node.id, &now.node) && !r->current[i].node.deleted)
                        facts.same_content = content_equal(&r->current[i].node.content, &op->content);
        planner_decide(&now, r, &facts, &plan);
        if (getenv("TARN_TEST_TRACE"))
                printf("   plan %d resolve %d\n", (int)plan.kind, (int)plan.resolve);
        assert_int_not_equal(plan.kind, PLAN_UPGRADE);
        if (plan.kind == PLAN_RESOLVE) {
                struct resolve how = { .kind = plan.resolve, .host = "box" };
                k = tree_resolve(w->tree, r, &how, world_is_open, w, w->arena, &applied);
                if (k != -EINVAL) {
                        assert_int_equal(k, 0);
                        return;
                }
        }
        k = outbox_unsend(w->tree, &op->id);
        assert_true(k == 0 || k == -ENOENT);
}

static void trace_op(const struct outbox_item *item, const struct op *op, const struct op_result *r) {
        printf("op %llu kind %d %.*s %.*s flags %u gen %llu: code %d seq %llu node %02x%02x parent %02x%02x parent2 %02x%02x placement %02x%02x\n", (unsigned long long)item->order, (int)op->kind,
               (int)op->name_bytes, op->name ? op->name : "", (int)op->name2_bytes, op->name2 ? op->name2 : "", op->flags, (unsigned long long)item->gen, (int)r->code, (unsigned long long)r->seq,
               op->node.b[0], op->node.b[1], op->parent.b[0], op->parent.b[1], op->parent2.b[0], op->parent2.b[1], op->placement.b[0], op->placement.b[1]);
        for (size_t k = 0; k < r->n_current; k++) {
                const struct change *c = &r->current[k];
                printf("      now %02x%02x%s", c->node.id.b[0], c->node.id.b[1], c->node.deleted ? " deleted" : "");
                for (size_t j = 0; j < c->n_entries; j++)
                        printf(" %02x%02x/%.*s by %02x%02x", c->entries[j].parent.b[0], c->entries[j].parent.b[1], (int)c->entries[j].name_bytes, c->entries[j].name,
                               c->entries[j].placement.b[0], c->entries[j].placement.b[1]);
                printf("\n");
        }
}

size_t sync_up(struct world *w, struct model *m) {
        struct outbox_item items[64];
        struct op_result results[64];
        struct op ops[64];
        struct id ids[64];
        int64_t wait;
        size_t n;
        arena_reset(w->arena);
        MUST(outbox_next(w->tree, w->arena, items, 64, &n, &wait));
        for (size_t i = 0; i < n; i++) {
                ids[i] = items[i].op.id;
                ops[i] = items[i].op;
                if (items[i].gen)
                        ops[i].content = model_content(items[i].gen, items[i].op.content.size);
        }
        if (!n)
                return 0;
        MUST(outbox_mark_sent(w->tree, ids, n));
        for (size_t i = 0; i < n; i++) {
                struct outbox_item got; /* what is read after marking names what must go before */
                MUST(outbox_get(w->tree, &ids[i], w->arena, &got));
                assert_true(got.op.n_after >= items[i].op.n_after);
                results[i] = model_commit(m, &ops[i]);
        }
        for (size_t i = 0; i < n; i++) {
                struct tree_applied applied;
                if (getenv("TARN_TEST_TRACE"))
                        trace_op(&items[i], &ops[i], &results[i]);
                if (results[i].code == RES_OK) {
                        if (rng_below(&w->rng.rng, 4) == 0)
                                sync_down(w, m); /* the event is faster */
                        MUST(tree_accepted(w->tree, &results[i], world_is_open, w, w->arena, &applied));
                } else {
                        sync_refused(w, &items[i], &ops[i], &results[i]);
                }
        }
        return n;
}

void sync_all(struct world *w, struct model *m) {
        for (unsigned round = 0; round < 400; round++) {
                struct outbox_totals totals;
                clock_manual_advance(&w->clock, 3000);
                sync_down(w, m);
                (void)sync_up(w, m);
                MUST(outbox_totals(w->tree, &totals));
                if (!totals.items) {
                        sync_down(w, m);
                        return;
                }
        }
        struct outbox_item items[8];
        size_t n = 0;
        MUST(outbox_list(w->tree, w->arena, false, items, 8, &n));
        for (size_t i = 0; i < n; i++)
                printf("left: order %llu kind %d name %.*s name2 %.*s state %d\n", (unsigned long long)items[i].order, (int)items[i].op.kind, (int)items[i].op.name_bytes,
                       items[i].op.name ? items[i].op.name : "", (int)items[i].op.name2_bytes, items[i].op.name2 ? items[i].op.name2 : "", (int)items[i].state);
        world_print(w);
        fail_msg("the outbox does not come to an end");
}

struct compare { struct world *w; struct model *m; struct id dir; size_t seen; };

static int compare_entry(void *arg, const struct tree_entry *e) {
        struct compare *c = arg;
        struct model_entry *there = model_at(c->m, &c->dir, e->name);
        if (!there)
                fail_msg("%s is shown but not on the server", e->name);
        struct model_node *n = model_find(c->m, &there->row.node);
        if (!id_equal(&n->row.id, &e->node.id))
                fail_msg("%s is another node here", e->name);
        assert_int_equal(n->row.kind, e->node.kind);
        if (n->row.mode != e->node.mode || n->row.uid != e->node.uid)
                fail_msg("%s: mode %o here, %o there", e->name, e->node.mode, n->row.mode);
        if (n->row.kind == NODE_FILE) {
                assert_true(content_equal(&n->row.content, &e->node.content));
                assert_true(id_equal(&n->row.version, &e->node.version));
                assert_int_equal(e->node.gen, 0);
                assert_int_equal(e->node.mtime_ns, n->row.mtime_ns);
                assert_int_equal(e->node.nlink, links(c->m, &n->row.id));
        }
        assert_int_equal(e->node.seq, n->row.seq);
        assert_false(e->node.pending);
        c->seen++;
        if (n->row.kind == NODE_DIR) {
                struct compare sub = { .w = c->w, .m = c->m, .dir = n->row.id };
                MUST(tree_list(c->w->tree, e->node.ino, 0, compare_entry, &sub));
                c->seen += sub.seen;
        }
        return 0;
}

void compare(struct world *w, struct model *m) {
        struct compare c = { .w = w, .m = m, .dir = id_root };
        size_t live = 0;
        MUST(tree_list(w->tree, INO_ROOT, 0, compare_entry, &c));
        for (size_t i = 0; i < m->n_entries; i++)
                live += m->entries[i].live;
        for (size_t i = 0; c.seen != live && i < m->n_entries; i++) {
                const struct model_entry *e = &m->entries[i];
                uint64_t dir = 0;
                struct node node;
                int r = !e->live ? 0 : tree_find_id(w->tree, &e->row.parent, &dir) < 0 ? -ENOENT : tree_lookup(w->tree, dir, e->name, strlen(e->name), &node);
                if (r < 0) {
                        world_print(w);
                        fail_msg("the server's %02x%02x/%s -> %02x%02x is not shown (its directory here: %llu)", e->row.parent.b[0], e->row.parent.b[1], e->name, e->row.node.b[0], e->row.node.b[1],
                                 (unsigned long long)dir);
                }
        }
        assert_int_equal(c.seen, live);
        world_check(w);
}

void (*load_before_step)(struct world *w);

void load_snapshot(struct world *w, struct model *m, size_t page, size_t step) {
        struct cursor c = model_cursor(m, m->seq);
        struct snapshot_state st;
        struct node_row *rows = calloc(MODEL_NODES, sizeof(*rows));
        struct entry_row *entries = calloc(MODEL_ENTRIES, sizeof(*entries));
        size_t n = 0, k = 0;
        MUST(tree_snapshot_begin(w->tree, &c, &st));
        for (size_t i = 0; i < m->n_nodes; i++)
                if (!m->nodes[i].row.deleted)
                        rows[n++] = m->nodes[i].row;
        for (size_t i = 0; i < m->n_entries; i++)
                if (m->entries[i].live)
                        entries[k++] = m->entries[i].row;
        for (size_t i = 0; i < n; i += page)
                MUST(tree_snapshot_nodes(w->tree, rows + i, MIN(page, n - i), &st));
        for (size_t i = 0; i < k; i += page)
                MUST(tree_snapshot_entries(w->tree, entries + i, MIN(page, k - i), &st));
        free(rows);
        free(entries);
        int r = 1;
        while (r > 0) {
                if (load_before_step)
                        load_before_step(w);
                r = tree_snapshot_step(w->tree, &c, step, world_is_open, w);
        }
        MUST(r);
}
