/* SPDX-License-Identifier: Apache-2.0 */
/* planner.c: the conflict table: a refusal in, a decision out. Nothing is read or written here.
 *
 * Local and pending against what is already on the server (semantics.md, section 4):
 *
 *   operation        answer                      decision
 *   any              MERGED                      our node is theirs now
 *   any              SKIPPED, BUSY               again, same id
 *   any              BLOCKS_MISSING              upload those, again, same id
 *   any              ID_REUSED                   again with a new id (this state was rolled back or cloned). A create whose node is there: drop; if its bytes are others than the
 *                                                server's: conflict copy
 *   any              QUOTA                       parked for half a minute
 *   any              NAME_INVALID, FORBIDDEN, UNSUPPORTED, INVALID, TOO_LARGE, CORRUPT   parked, with the reason
 *   create           EXISTS, STALE               conflict name (the server merges what can be merged)
 *   mkdir            EXISTS, a file              the directory gets the name, the file a conflict name
 *   create           parent deleted              revive it (a directory that has its name by now stands for it); if that is refused: parked
 *   content          STALE, same bytes           drop: both say the same
 *   content          STALE                       conflict copy; the server's version keeps the name
 *   content          deleted, edited or not      revive: edit wins; if that is refused: conflict copy
 *   attributes       deleted                     drop
 *   link             EXISTS                      conflict name
 *   link             node deleted                drop; its new parent deleted: revive
 *   unlink           STALE, content unchanged    rebase: it was only renamed, delete wins
 *   unlink           STALE                       drop: the file reappears with the edit
 *   unlink           deleted, NOT_EMPTY          drop
 *   rename           its own name is gone        drop: the first rename wins
 *   rename           target exists or changed    conflict name: both stay
 *   rename           node deleted                drop: delete wins, unless the edit that is pending behind it brings the node back
 *   rename           new parent deleted          revive it
 *   rename           CYCLE                       drop: undone here
 *   replace          as content; only the temporary changed: rebase
 */
#include <assert.h>
#include <string.h>

#include "sync/planner.h"

static const struct change *current_of(const struct op_result *r, const struct id *node) {
        if (id_is_zero(node))
                return NULL;
        for (size_t i = 0; i < r->n_current; i++)
                if (id_equal(&r->current[i].node.id, node))
                        return &r->current[i];
        return NULL;
}

static bool is_deleted(const struct op_result *r, const struct id *node) {
        const struct change *c = current_of(r, node);
        return c && c->node.deleted;
}

/* What is told to have the name that a new directory wants is not a directory. */
static bool file_has_name(const struct op *op, const struct op_result *r) {
        for (size_t i = 0; i < r->n_current; i++)
                for (size_t k = 0; k < r->current[i].n_entries; k++) {
                        const struct entry_row *e = &r->current[i].entries[k];
                        if (id_equal(&e->parent, &op->parent) && e->name_bytes == op->name_bytes && memcmp(e->name, op->name, op->name_bytes) == 0)
                                return !r->current[i].node.deleted && r->current[i].node.kind != NODE_DIR;
                }
        return false;
}

/* The name that the operation wants to take away is still where it was. */
static bool name_is_there(const struct op *op, const struct op_result *r) {
        const struct change *c = current_of(r, &op->node);
        if (!c || !c->has_entries)
                return true; /* not told otherwise */
        for (size_t i = 0; i < c->n_entries; i++)
                if (id_equal(&c->entries[i].placement, &op->placement) && c->entries[i].name_bytes == op->name_bytes && memcmp(c->entries[i].name, op->name, op->name_bytes) == 0)
                        return true;
        return false;
}

static void resolve(struct plan *p, enum resolve_kind how) {
        *p = (struct plan){ .kind = PLAN_RESOLVE, .resolve = how };
}

static void park(struct plan *p, int error, int64_t retry_s, const char *reason) {
        *p = (struct plan){ .kind = PLAN_PARK, .error = error, .reason = reason, .retry_after_ms = retry_s * 1000 };
}

/* The place is gone: bring it back, once. Where even that was refused (something else has its name, its history is forgotten) the change waits for people. */
static void revive_place(const struct op *op, struct plan *p) {
        if (op->flags & OPF_REVIVE)
                park(p, ENOENT, 3600, "its directory was deleted on the server and cannot be brought back");
        else
                resolve(p, RESOLVE_REVIVE);
}

static void decide_create(const struct op *op, const struct op_result *r, struct plan *p) {
        switch (r->code) {
        case RES_EXISTS: case RES_STALE: case RES_IS_DIR:
                if (is_deleted(r, &op->parent) && !(op->flags & OPF_REVIVE))
                        revive_place(op, p);
                else
                        resolve(p, op->attrs.kind == NODE_DIR && file_has_name(op, r) ? RESOLVE_DIR_NAME : RESOLVE_NEW_NAME); /* also where another directory stands for the deleted one by now */
                return;
        case RES_NOT_FOUND: case RES_DELETED: case RES_NOT_DIR:
                revive_place(op, p);
                return;
        default:
                park(p, EIO, 600, "the server does not take this new file");
        }
}

static void decide_content(const struct op *op, const struct op_result *r, const struct plan_facts *facts, struct plan *p) {
        const struct change *c = current_of(r, &op->node);
        const bool revived = c && c->node.deleted && (op->flags & OPF_REVIVE) && r->code == RES_STALE;
        if (op->kind == OP_REPLACE && c && (!c->node.deleted || revived) && id_equal(&c->node.version, &op->version) && r->code != RES_IS_DIR) {
                resolve(p, RESOLVE_REBASE); /* the target is as we knew it: it is the temporary that moved or went */
                return;
        }
        switch (r->code) {
        case RES_STALE: case RES_EXISTS:
                if (is_deleted(r, &op->node) && !(op->flags & OPF_REVIVE))
                        resolve(p, RESOLVE_REVIVE); /* edited, then deleted */
                else
                        resolve(p, facts->same_content ? RESOLVE_DROP : RESOLVE_CONFLICT_COPY);
                return;
        case RES_NOT_FOUND: case RES_DELETED: /* edit wins; if the node cannot be brought back, its bytes become a new one */
                resolve(p, op->flags & OPF_REVIVE ? RESOLVE_CONFLICT_COPY : RESOLVE_REVIVE);
                return;
        case RES_IS_DIR: case RES_NOT_DIR:
                resolve(p, RESOLVE_CONFLICT_COPY);
                return;
        default:
                park(p, EIO, 600, "the server does not take this content");
        }
}

static void decide_link(const struct op *op, const struct op_result *r, struct plan *p) {
        switch (r->code) {
        case RES_EXISTS: case RES_STALE: case RES_IS_DIR:
                resolve(p, RESOLVE_NEW_NAME);
                return;
        case RES_NOT_FOUND: case RES_DELETED:
                if (is_deleted(r, &op->parent) && !is_deleted(r, &op->node))
                        revive_place(op, p);
                else
                        resolve(p, RESOLVE_DROP);
                return;
        default:
                resolve(p, RESOLVE_DROP);
        }
}

static void decide_unlink(const struct op *op, const struct op_result *r, struct plan *p) {
        const struct change *c = current_of(r, &op->node);
        bool unchanged = c && !c->node.deleted && !id_is_zero(&op->version) && id_equal(&c->node.version, &op->version);
        bool directory = c && !c->node.deleted && c->node.kind != NODE_FILE;
        bool moved = c && c->has_entries && c->n_entries > 0 && !name_is_there(op, r);
        if ((r->code == RES_STALE || r->code == RES_NOT_FOUND) && moved && (unchanged || directory) && c->n_entries == 1)
                resolve(p, RESOLVE_REBASE);
        else
                resolve(p, RESOLVE_DROP);
}

static void decide_rename(const struct op *op, const struct op_result *r, struct plan *p) {
        switch (r->code) {
        case RES_EXISTS: case RES_NOT_EMPTY: case RES_IS_DIR: case RES_NOT_DIR:
                resolve(p, op->flags & OPF_EXCHANGE ? RESOLVE_DROP : RESOLVE_NEW_NAME);
                return;
        case RES_STALE:
                if (!name_is_there(op, r) || (op->flags & OPF_EXCHANGE))
                        resolve(p, RESOLVE_DROP);
                else
                        resolve(p, RESOLVE_NEW_NAME); /* also if what we wanted to replace is gone: something else has its name, which nobody here has seen */
                return;
        case RES_NOT_FOUND: case RES_DELETED:
                if (is_deleted(r, &op->node))
                        resolve(p, RESOLVE_DROP); /* delete wins; if it was edited here, that edit brings it back, where it was */
                else if (is_deleted(r, &op->parent2) && name_is_there(op, r) && !(op->flags & OPF_REVIVE))
                        resolve(p, RESOLVE_REVIVE);
                else
                        resolve(p, RESOLVE_DROP); /* its own name is gone, or the place cannot come back: it stays where the server has it */
                return;
        default: /* CYCLE and whatever else: undone here, nothing is lost */
                resolve(p, RESOLVE_DROP);
        }
}

void planner_decide(const struct op *op, const struct op_result *r, const struct plan_facts *facts, struct plan *ret) {
        assert(r->code != RES_OK);
        switch (r->code) {
        case RES_MERGED:
                resolve(ret, RESOLVE_MERGED);
                return;
        case RES_SKIPPED:
                *ret = (struct plan){ .kind = PLAN_RETRY, .reason = "an operation before it was refused" };
                return;
        case RES_BUSY:
                *ret = (struct plan){ .kind = PLAN_RETRY, .retry_after_ms = 200, .reason = "the server was busy" };
                return;
        case RES_BLOCKS_MISSING:
                *ret = (struct plan){ .kind = PLAN_UPLOAD_MISSING };
                return;
        case RES_ID_REUSED:
                if (op->kind != OP_CREATE || r->n_current == 0)
                        resolve(ret, RESOLVE_REBASE);
                else if (facts->same_content || op->attrs.kind != NODE_FILE || op->content.size == 0)
                        resolve(ret, RESOLVE_DROP);
                else
                        resolve(ret, RESOLVE_CONFLICT_COPY);
                return;
        case RES_QUOTA:
                park(ret, EDQUOT, 30, "over quota on the server");
                return;
        case RES_NAME_INVALID:
                park(ret, EILSEQ, 3600, "the server does not take this name");
                return;
        case RES_FORBIDDEN:
                park(ret, EACCES, 60, "no right to change this");
                return;
        case RES_UNSUPPORTED:
                park(ret, EOPNOTSUPP, 3600, "the server does not support this kind of change");
                return;
        case RES_INVALID:
                park(ret, EINVAL, 600, "the server calls this change invalid");
                return;
        case RES_TOO_LARGE:
                park(ret, EFBIG, 3600, "too large for the server");
                return;
        case RES_CORRUPT:
                park(ret, EBADMSG, 600, "the content was damaged on its way");
                return;
        case RES_OK: case RES_STALE: case RES_EXISTS: case RES_NOT_FOUND: case RES_NOT_EMPTY: case RES_CYCLE: case RES_IS_DIR: case RES_NOT_DIR: case RES_DELETED:
                break;
        default:
                *ret = (struct plan){ .kind = PLAN_UPGRADE, .error = EPROTONOSUPPORT, .reason = "an answer that this program does not know" };
                return;
        }
        switch (op->kind) {
        case OP_CREATE:
                decide_create(op, r, ret);
                return;
        case OP_CONTENT: case OP_REPLACE:
                decide_content(op, r, facts, ret);
                return;
        case OP_ATTR:
                if (r->code == RES_STALE)
                        resolve(ret, RESOLVE_REBASE);
                else
                        resolve(ret, RESOLVE_DROP);
                return;
        case OP_LINK:
                decide_link(op, r, ret);
                return;
        case OP_UNLINK:
                decide_unlink(op, r, ret);
                return;
        case OP_RENAME:
                decide_rename(op, r, ret);
                return;
        default:
                assert(!"an operation that we made");
        }
}
