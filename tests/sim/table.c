/* SPDX-License-Identifier: Apache-2.0 */
/* table.c: which rows of the conflict table (sync/planner.c) a run has really met. Read off the wire, not off the engine: each commit that the
 * server answers is decoded beside it.
 *
 * Most rows are refusals and merges, told by operation, code and the rows that come with it. Two rows are accepted on both sides (a rename of a file that was edited elsewhere, the same
 * attribute set twice): for those the table remembers who changed what of a node last, and an accepted operation counts if its client had not seen that yet. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

/* What was last accepted for a node: whose, and when. */
enum aspect { CONTENT, PLACE, MODE, MTIME, XATTR, ASPECTS };
struct told { struct id node; uint64_t seq[ASPECTS]; unsigned by[ASPECTS]; };

static struct told *told_of(struct world *w, const struct id *node) {
        for (size_t i = 0; i < w->n_told; i++)
                if (id_equal(&w->told[i].node, node))
                        return &w->told[i];
        struct told *all = reallocarray(w->told, w->n_told + 1, sizeof *all);
        if (!all)
                abort();
        w->told = all;
        all[w->n_told] = (struct told){ .node = *node };
        return &all[w->n_told++];
}

static const struct change *current_of(const struct op_result *r, const struct id *node) {
        for (size_t i = 0; i < r->n_current && !id_is_zero(node); i++)
                if (id_equal(&r->current[i].node.id, node))
                        return &r->current[i];
        return NULL;
}

static bool is_deleted(const struct op_result *r, const struct id *node) {
        const struct change *c = current_of(r, node);
        return c && c->node.deleted;
}

static bool has_name(const struct change *c, const struct id *parent, const char *name, size_t n) {
        for (size_t i = 0; c && !c->node.deleted && i < c->n_entries; i++)
                if (id_equal(&c->entries[i].parent, parent) && c->entries[i].name_bytes == n && memcmp(c->entries[i].name, name, n) == 0)
                        return true;
        return false;
}

/* The kind of what has the name that the operation wants. */
static enum node_kind kind_there(const struct op_result *r, const struct id *parent, const char *name, size_t n) {
        for (size_t i = 0; i < r->n_current; i++)
                if (has_name(&r->current[i], parent, name, n))
                        return r->current[i].node.kind;
        return 0;
}

static int row_of_create(const struct op *op, const struct op_result *r) {
        if (r->code == RES_MERGED)
                return op->attrs.kind == NODE_DIR ? SIM_ROW_MKDIR_MKDIR : SIM_ROW_CREATE_SAME;
        if (is_deleted(r, &op->parent))
                return SIM_ROW_INTO_DELETED;
        if (r->code != RES_EXISTS)
                return -1;
        enum node_kind there = kind_there(r, &op->parent, op->name, op->name_bytes);
        return there && (there == NODE_DIR) != (op->attrs.kind == NODE_DIR) ? SIM_ROW_FILE_DIR : SIM_ROW_CREATE_CREATE;
}

static int row_of_content(const struct op *op, const struct op_result *r) {
        const struct change *c = current_of(r, &op->node);
        if (r->code == RES_MERGED)
                return SIM_ROW_EDIT_SAME;
        if (is_deleted(r, &op->node))
                return SIM_ROW_EDIT_DELETE;
        if (r->code != RES_STALE || !c || id_equal(&c->node.version, &op->version))
                return -1;
        return op->kind == OP_REPLACE ? SIM_ROW_OVER_EDIT : SIM_ROW_EDIT_EDIT;
}

static int row_of_unlink(const struct op *op, const struct op_result *r) {
        const struct change *c = current_of(r, &op->node);
        if (r->code == RES_NOT_EMPTY)
                return SIM_ROW_RMDIR_CHILD;
        if (r->code != RES_STALE || !c || c->node.deleted)
                return -1;
        if (c->node.kind == NODE_FILE && !id_equal(&c->node.version, &op->version))
                return SIM_ROW_DELETE_EDIT;
        return has_name(c, &op->parent, op->name, op->name_bytes) ? -1 : SIM_ROW_DELETE_RENAME;
}

static int row_of_rename(const struct op *op, const struct op_result *r) {
        if (r->code == RES_CYCLE)
                return SIM_ROW_CYCLE;
        if (r->code == RES_EXISTS)
                return SIM_ROW_RENAME_CREATE;
        if (is_deleted(r, &op->node))
                return SIM_ROW_RENAME_DELETE;
        if (is_deleted(r, &op->parent2))
                return SIM_ROW_INTO_DELETED;
        if (r->code != RES_STALE)
                return -1;
        if (!has_name(current_of(r, &op->node), &op->parent, op->name, op->name_bytes))
                return SIM_ROW_RENAME_RENAME;
        return id_is_zero(&op->replaced) || op->flags & OPF_EXCHANGE ? -1 : SIM_ROW_OVER_EDIT;
}

/* Accepted, though somebody else changed `what` of the node and this client has not seen it. */
static bool unseen(struct client *c, const struct told *t, enum aspect what) {
        uint64_t ino;
        struct node n;
        return t->seq[what] && t->by[what] != c->index && tree_find_id(c->cache->tree, &t->node, &ino) >= 0 && tree_get(c->cache->tree, ino, &n) >= 0 && n.seq < t->seq[what];
}

static void accepted(struct client *c, const struct op *op, const struct op_result *r) {
        static const struct { uint32_t mask; enum aspect what; } fields[] = { { ATTR_MODE, MODE }, { ATTR_MTIME, MTIME }, { ATTR_XATTR, XATTR } };
        struct world *w = c->w;
        struct told *t = told_of(w, &op->node);
        const bool content = op->kind == OP_CONTENT || op->kind == OP_REPLACE, place = op->kind == OP_RENAME;
        bool same = false;
        if (r->seq <= t->seq[CONTENT] || r->seq <= t->seq[PLACE]) /* the same answer again */
                return;
        w->count[SIM_ROW_RENAME_EDIT] += (place && unseen(c, t, CONTENT)) || (content && unseen(c, t, PLACE));
        for (size_t i = 0; i < ARRAY_SIZE(fields) && op->kind == OP_ATTR; i++)
                if (op->attr_mask & fields[i].mask) {
                        same |= unseen(c, t, fields[i].what);
                        t->seq[fields[i].what] = r->seq;
                        t->by[fields[i].what] = c->index;
                }
        w->count[SIM_ROW_ATTR_ATTR] += same;
        if (content || place) {
                t->seq[content ? CONTENT : PLACE] = r->seq;
                t->by[content ? CONTENT : PLACE] = c->index;
        }
}

static void result(struct client *c, const struct op *op, const struct op_result *r) {
        int row = -1;
        if (c->w->verbose)
                fprintf(stderr, "  op kind=%d id=%02x%02x node=%02x%02x flags=%u %02x%02x/%.*s -> %02x%02x/%.*s source=%02x%02x replaced=%02x%02x bytes=%llu: code=%d seq=%llu\n", (int)op->kind,
                        op->id.b[0], op->id.b[1], op->node.b[0], op->node.b[1], op->flags, op->parent.b[0], op->parent.b[1], (int)op->name_bytes, op->name ? op->name : "", op->parent2.b[0],
                        op->parent2.b[1], (int)op->name2_bytes, op->name2 ? op->name2 : "", op->source.b[0], op->source.b[1], op->replaced.b[0], op->replaced.b[1],
                        (unsigned long long)op->content.size, (int)r->code, (unsigned long long)r->seq);
        if (r->code == RES_OK)
                accepted(c, op, r);
        else if (op->kind == OP_CREATE)
                row = row_of_create(op, r);
        else if (op->kind == OP_CONTENT || op->kind == OP_REPLACE)
                row = row_of_content(op, r);
        else if (op->kind == OP_UNLINK)
                row = row_of_unlink(op, r);
        else if (op->kind == OP_RENAME)
                row = row_of_rename(op, r);
        if (row >= 0)
                c->w->count[row]++;
}

void table_commit(struct client *c, const struct buf *request, const struct buf *answer) {
        struct wire_reader ops = { .p = request->data, .n = request->bytes }, results = { .p = answer->data, .n = answer->bytes };
        struct arena *a = NULL;
        struct frame f, g;
        if (arena_new(64u << 20, &a) < 0)
                abort();
        while (wire_next(&ops, &f) > 0) {
                struct op op;
                struct op_result r;
                if (f.kind != FRAME_OP)
                        continue;
                if (wire_get_op(&f, a, &op) < 0 || wire_next(&results, &g) <= 0 || g.kind != FRAME_RESULT || wire_get_result(&g, a, &r) < 0 || !id_equal(&op.id, &r.op)) {
                        wrong(c->w, "%s: an answer to a commit that does not fit it", c->name);
                        break;
                }
                result(c, &op, &r);
        }
        arena_free(a);
}
