/* SPDX-License-Identifier: Apache-2.0 */
/* name.c: names in directories. Each change is one call of the tree, hence one transaction, and is accepted when it returns.
 *
 * A lookup that finds nothing is answered with a negative entry that the kernel keeps; "not loaded and offline" (EHOSTDOWN) is an error that it does not
 * keep. A reply that tells the kernel of a node counts in the table before it is written, because a FORGET may come at once.
 *
 * rename and link are commit points of their source: what was written so far is frozen first, so that "write, rename over" is one version even if the
 * writer still has the file open. A freeze that fails does not fail the rename: its error belongs to the writer, who gets it at close.
 *
 * Owners of new nodes: owner.c. The kernel has applied the umask already. */
#include "fs.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/log.h"

static int name_length(const char *name, size_t *ret) {
        size_t n = strlen(name);
        if (n > NAME_BYTES_MAX)
                return -ENAMETOOLONG;
        *ret = n;
        return 0;
}

int reply_entry(struct call *c, const struct node *n) {
        struct fuse_entry_param e;
        entry_fill(c->m, n, &e);
        int r = nodes_ref(c->m, e.ino);
        if (r < 0)
                return r;
        if (fuse_reply_entry(c->req, &e) < 0)
                nodes_forget(c->m, e.ino, 1); /* interrupted: the kernel did not take it */
        return 0;
}

/* Who has a file handle (open_by_handle_at, an NFS server) asks for "." in what he knows, and for ".." of a directory. An older incarnation is ESTALE: what it was is gone. */
static int lookup_by_id(struct call *c, uint64_t nodeid, bool up, struct node *ret) {
        bool superseded = false;
        int r = node_row(c->m, nodeid, ret, &superseded);
        if (r == 0 && (superseded || (ret->unlinked && !nodes_known(c->m, nodeid))))
                r = -ESTALE;
        if (r == 0 && up)
                r = node_row(c->m, ret->parent ? ret->parent : INO_ROOT, ret, &superseded);
        return r == -ENOENT ? -ESTALE : r;
}

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
        struct call c;
        struct node n;
        size_t bytes;
        call_begin(&c, req);
        counter_add(c.m->cfg.counters, fuse_lookup, 1);
        int r = name_length(name, &bytes);
        uint64_t seals = file_seals(c.m->cfg.cache);
        const bool dot = strcmp(name, ".") == 0, up = strcmp(name, "..") == 0;
        if (r == 0)
                r = dot || up ? lookup_by_id(&c, parent, up, &n) : tree_lookup(c.m->cfg.cache->tree, nodeid_ino(parent), name, bytes, &n);
        if (r == 0) {
                if (!dot && !up)
                        node_overlay(c.m, &n, seals);
                r = reply_entry(&c, &n);
        }
        if (r == -ENOENT) {
                struct fuse_entry_param absent = { .ino = 0, .entry_timeout = TIMEOUT_S };
                (void)fuse_reply_entry(req, &absent);
        } else if (r < 0) {
                reply_fail(req, r);
        }
        call_end(&c);
}

void op_forget(fuse_req_t req, fuse_ino_t nodeid, uint64_t nlookup) {
        nodes_forget(req_mount(req), nodeid, nlookup);
        fuse_reply_none(req);
}

void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets) {
        for (size_t i = 0; i < count; i++)
                nodes_forget(req_mount(req), forgets[i].ino, forgets[i].nlookup);
        fuse_reply_none(req);
}

void op_readlink(fuse_req_t req, fuse_ino_t nodeid) {
        struct call c;
        _cleanup_buf_ struct buf b = BUF_INIT(SYMLINK_BYTES_MAX);
        call_begin(&c, req);
        int r = tree_readlink(c.m->cfg.cache->tree, nodeid_ino(nodeid), &b);
        const char *target = r < 0 ? NULL : buf_text(&b);
        if (target)
                r = symlink_check(c.m, nodeid_ino(nodeid), target);
        if (r < 0 || !target)
                reply_fail(req, r < 0 ? r : -ENOMEM);
        else
                (void)fuse_reply_readlink(req, target);
        call_end(&c);
}

int node_new(struct mount *m, fuse_req_t req, uint64_t parent, const char *name, uint32_t mode, uint64_t rdev, const char *target, bool opens,
             struct node *ret) {
        struct tree_new what = { .mode = mode & 07777, .rdev = rdev, .target = target, .opens = opens };
        size_t bytes;
        int r = name_length(name, &bytes);
        if (r == 0)
                r = node_kind_from_mode(mode, &what.kind);
        if (r == 0)
                r = owner_of_new(m, req, nodeid_ino(parent), &what);
        if (r < 0)
                return r;
        if (opens && strcmp(name, NAME_OF_UNNAMED) == 0)
                return tree_create_unnamed(m->cfg.cache->tree, nodeid_ino(parent), &what, ret);
        return tree_create(m->cfg.cache->tree, nodeid_ino(parent), name, bytes, &what, ret);
}

static int make_op(struct call *c, const struct held *h) {
        struct node n;
        int r = node_new(c->m, c->req, h->dir, h->name, h->mode, h->rdev, h->text, false, &n);
        return r < 0 ? r : reply_entry(c, &n);
}

static void make(fuse_req_t req, uint64_t parent, const char *name, uint32_t mode, uint64_t rdev, const char *target) {
        call_with_room(req, &(struct held){ .op = make_op, .adds = true, .dir = parent, .name = name, .mode = mode, .rdev = rdev, .text = target });
}

void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev) {
        make(req, parent, name, mode & S_IFMT ? mode : mode | S_IFREG, S_ISCHR(mode) || S_ISBLK(mode) ? rdev : 0, NULL);
}

void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode) {
        make(req, parent, name, S_IFDIR | (mode & 07777), 0, NULL);
}

void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name) {
        if (strlen(target) > SYMLINK_BYTES_MAX)
                (void)fuse_reply_err(req, ENAMETOOLONG);
        else
                make(req, parent, name, S_IFLNK | 0777, 0, target);
}

/* The tree asks whether a node that loses its last name is open; if so its row stays until node_drop. Otherwise the kernel may still hold the node without a handle: a
 * ghost in memory answers for it until FORGET. */
struct keeper { struct mount *m; bool kept; };

static bool keep(void *arg, uint64_t ino) {
        struct keeper *k = arg;
        bool kept = nodes_kept(k->m, ino);
        k->kept |= kept;
        return kept;
}

static void gone(struct keeper *k, const struct node *n) {
        if (n->ino == 0 || !n->unlinked)
                return;
        if (!k->kept) {
                nodes_ghost(k->m, n);
                if (n->kind == NODE_FILE)
                        file_forget(k->m->cfg.cache, n->ino);
                return;
        }
        nodes_unlinked(k->m, n->ino);
        if (!nodes_kept(k->m, n->ino)) { /* closed between the tree's question and now */
                nodes_ghost(k->m, n);
                node_drop(k->m, n->ino);
        }
}

static int remove_op(struct call *c, const struct held *h) {
        struct node n = { 0 }, taker = { 0 };
        size_t bytes;
        int r = name_length(h->name, &bytes);
        struct keeper k = { c->m, false };
        if (r == 0)
                r = tree_unlink_taken(c->m->cfg.cache->tree, nodeid_ino(h->dir), h->name, bytes, h->flags, keep, &k, &n, &taker);
        if (r < 0)
                return r;
        file_renamed(c->m->cfg.cache, &taker, &n);
        gone(&k, &n);
        (void)fuse_reply_err(c->req, 0);
        return 0;
}

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name) {
        call_with_room(req, &(struct held){ .op = remove_op, .dir = parent, .name = name });
}

void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name) {
        call_with_room(req, &(struct held){ .op = remove_op, .dir = parent, .name = name, .flags = true });
}

static int freeze(struct mount *m, uint64_t ino) {
        uint64_t gen;
        int r = file_freeze(m->cfg.cache, ino, &gen);
        if (r < 0)
                log_debug("event=freeze ino=%llu error=%s", (unsigned long long)ino, err_name(r));
        return r;
}

/* over: it is about to take the place of another file. Then what it has must be what was written to it: else the other one would be replaced by less. */
static int freeze_named(struct mount *m, uint64_t parent, const char *name, size_t n, bool over) {
        struct node node;
        int r = tree_lookup(m->cfg.cache->tree, nodeid_ino(parent), name, n, &node);
        if (r == 0 && node.kind == NODE_FILE) {
                int k = freeze(m, node.ino);
                r = over ? k : 0;
        }
        return r;
}

static int rename_op(struct call *c, const struct held *h) {
        struct node moved = { 0 }, replaced = { 0 };
        size_t n, n2;
        struct keeper k = { c->m, false };
        int r = h->flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE) ? -EINVAL : name_length(h->name, &n);
        if (r == 0)
                r = name_length(h->text, &n2);
        struct node there;
        bool over = r == 0 && tree_lookup(c->m->cfg.cache->tree, nodeid_ino(h->other), h->text, n2, &there) == 0 && !(h->flags & (RENAME_NOREPLACE | RENAME_EXCHANGE));
        if (r == 0)
                r = freeze_named(c->m, h->dir, h->name, n, over);
        if (r == 0 && (h->flags & RENAME_EXCHANGE))
                r = freeze_named(c->m, h->other, h->text, n2, false);
        if (r == 0)
                r = tree_rename(c->m->cfg.cache->tree, nodeid_ino(h->dir), h->name, n, nodeid_ino(h->other), h->text, n2, h->flags, keep, &k, &moved, &replaced);
        if (r < 0)
                return r;
        file_renamed(c->m->cfg.cache, &moved, &replaced);
        gone(&k, &replaced);
        (void)fuse_reply_err(c->req, 0);
        return 0;
}

void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t parent2, const char *name2, unsigned flags) {
        call_with_room(req, &(struct held){ .op = rename_op, .dir = parent, .other = parent2, .name = name, .text = name2, .flags = flags });
}

static int link_op(struct call *c, const struct held *h) {
        struct node node;
        size_t bytes;
        int r = name_length(h->name, &bytes);
        if (r == 0)
                (void)!freeze(c->m, nodeid_ino(h->other));
        uint64_t seals = file_seals(c->m->cfg.cache);
        if (r == 0)
                r = tree_link(c->m->cfg.cache->tree, nodeid_ino(h->other), nodeid_ino(h->dir), h->name, bytes, &node);
        if (r < 0)
                return r;
        if (node.nlink == 1) /* it had no name before */
                file_renamed(c->m->cfg.cache, &node, &(struct node){ 0 });
        node_overlay(c->m, &node, seals);
        return reply_entry(c, &node);
}

void op_link(fuse_req_t req, fuse_ino_t nodeid, fuse_ino_t parent, const char *name) {
        call_with_room(req, &(struct held){ .op = link_op, .adds = true, .dir = parent, .other = nodeid, .name = name });
}
