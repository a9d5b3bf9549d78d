/* SPDX-License-Identifier: Apache-2.0 */
/* handle.c: open files. A handle is the kernel's fh: the cache's file, the nodeid it was opened under and whether it may write.
 *
 * Order at open: count the handle (nodes_open), then the cache opens the file (it counts, waits for a transaction that asks about this very node, then reads the row), so that an
 * unlink or a remote change that runs beside it either finds the handle or is seen by it. Only then is it known which content the handle has, so only then the row is read
 * that stat shows of it and asked whether the kernel's pages are of this content. At release the other way round: file_release first (a commit point if it was the last writer), then the
 * count; with the last handle of a node without a name its row goes too (tree_forget), and what is pending of its bytes (file_forget): the release saw to that only if the name was gone by then,
 * and an unlink may come between the two. Whether the name may have gone is known without a query for local unlinks; after any remote change of names since the open the row is looked at.
 *
 * A crawler (crawlers.c) is known by its open; its handle carries what may be fetched for it.
 *
 * Pages: an open keeps what the kernel has cached unless a note is pending that would drop it. Read-only handles need no FLUSH. An open of a nodeid whose
 * incarnation is no longer the row's is ESTALE: the kernel looks the path up again and comes back with the new one. */
#include "fs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <stdlib.h>
#include <string.h>

#include <linux/falloc.h>

#include "base/err.h"
#include "base/log.h"

void node_drop(struct mount *m, uint64_t ino) {
        struct node n;
        int r = tree_get(m->cfg.cache->tree, ino, &n);
        if ((r < 0 && r != -ENOENT) || (r == 0 && !n.unlinked))
                return;
        if (r == 0) {
                nodes_ghost(m, &n);
                r = tree_forget(m->cfg.cache->tree, ino);
                if (r < 0)
                        log_debug("event=forget ino=%llu error=%s", (unsigned long long)ino, err_name(r));
        }
        file_forget(m->cfg.cache, ino); /* its file was released before: while the name was still there, perhaps */
}

static void handle_add(struct mount *m, struct handle *h) {
        LOCK_SCOPE(&m->lock);
        h->prev = NULL;
        h->next = m->handles;
        if (h->next)
                h->next->prev = h;
        m->handles = h;
}

static void handle_end(struct mount *m, struct handle *h) {
        lock_take(&m->lock);
        if (h->prev)
                h->prev->next = h->next;
        else
                m->handles = h->next;
        if (h->next)
                h->next->prev = h->prev;
        lock_drop(&m->lock);
        nodes_closing(m, h->nodeid);
        file_release(h->file, h->write);
        if (nodes_close(m, h->nodeid, h->write))
                node_drop(m, nodeid_ino(h->nodeid));
        free(h->crawler);
        free(h);
}

void handles_end(struct mount *m) {
        while (m->handles) /* no worker is left: nobody else changes the list */
                handle_end(m, m->handles);
}

/* Opens a nodeid that the kernel knows. flags: of open(2). */
static int handle_begin(struct call *c, uint64_t nodeid, int flags, struct fuse_file_info *fi, struct handle **ret) {
        struct mount *m = c->m;
        struct node n;
        uint64_t ino = nodeid_ino(nodeid);
        bool write = (flags & O_ACCMODE) != O_RDONLY;
        _cleanup_free_ struct handle *h = calloc(1, sizeof *h);
        if (!h)
                return -ENOMEM;
        h->nodeid = nodeid;
        h->write = write;
        int r = nodes_open(m, nodeid, write);
        if (r < 0)
                return r;
        r = file_open(m->cfg.cache, ino, nodeid_incarnation(nodeid), write, write && (flags & O_TRUNC), &h->file);
        if (r < 0) {
                if (nodes_close(m, nodeid, write))
                        node_drop(m, ino);
                return r;
        }
        bool known = tree_get(m->cfg.cache->tree, ino, &n) == 0, keep = nodes_opened(m, nodeid, known ? &n : NULL, h->file);
        if (flags & O_TRUNC) {
                if (!write) /* O_RDONLY | O_TRUNC truncates too */
                        r = file_truncate(m->cfg.cache, ino, 0);
                if (r == 0 && !may_keep_priv(c->req) && nodes_take_kill(m, nodeid))
                        r = drop_priv(m, c->req, ino);
                if (r == 0 && m->cfg.owner_stored && nodes_take_caps(m, nodeid))
                        r = drop_caps(m, ino);
                if (r < 0) {
                        nodes_closing(m, nodeid);
                        file_release(h->file, write);
                        if (nodes_close(m, nodeid, write))
                                node_drop(m, ino);
                        return r;
                }
        }
        h->crawler = crawlers_find(m->cfg.crawlers, fuse_req_ctx(c->req)->pid);
        if (h->crawler)
                counter_add(m->cfg.counters, crawler_opens, 1);
        handle_add(m, h);
        fi->fh = (uint64_t)(uintptr_t)h;
        fi->keep_cache = keep && !(flags & O_TRUNC);
        fi->noflush = !write;
        *ret = steal_ptr(h);
        return 0;
}

void op_open(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi) {
        struct call c;
        struct handle *h = NULL;
        call_begin(&c, req);
        counter_add(c.m->cfg.counters, fuse_open, 1);
        int r = handle_begin(&c, nodeid, fi->flags, fi, &h);
        if (r < 0)
                reply_fail(req, r);
        else if (fuse_reply_open(req, fi) < 0)
                handle_end(c.m, h); /* interrupted: no RELEASE will come */
        call_end(&c);
}

static int create(struct call *c, uint64_t parent, const char *name, uint32_t mode, struct fuse_file_info *fi, struct fuse_entry_param *e, struct handle **ret) {
        struct node n;
        int flags = fi->flags;
        uint64_t seals = file_seals(c->m->cfg.cache);
        int r = node_new(c->m, c->req, parent, name, S_IFREG | (mode & 07777), 0, NULL, true, &n);
        const uint64_t born = r == 0 ? n.ino : 0;
        const bool unnamed = strcmp(name, NAME_OF_UNNAMED) == 0;
        if (r == -EEXIST && !(flags & O_EXCL)) /* came from elsewhere a moment ago */
                r = tree_lookup(c->m->cfg.cache->tree, nodeid_ino(parent), name, strlen(name), &n);
        else
                flags &= ~O_TRUNC;
        if (r < 0)
                return r;
        node_overlay(c->m, &n, seals);
        r = nodes_ref(c->m, nodeid_of(&n));
        bool known = r == 0;
        if (known)
                r = n.kind != NODE_FILE ? (n.kind == NODE_DIR ? -EISDIR : -EINVAL) : handle_begin(c, nodeid_of(&n), flags, fi, ret);
        if (born)
                tree_opened(c->m->cfg.cache->tree, born);
        if (unnamed && known && r == 0)
                nodes_unlinked(c->m, n.ino); /* unless it gets a name, its row goes with the last handle */
        else if (unnamed && born && r < 0 && tree_forget(c->m->cfg.cache->tree, born) < 0)
                log_debug("event=forget ino=%llu", (unsigned long long)born);
        if (known && r < 0)
                nodes_forget(c->m, nodeid_of(&n), 1);
        if (r < 0)
                return r;
        if (flags & O_TRUNC)
                n.size = 0;
        entry_fill(c->m, &n, e);
        return 0;
}

static int create_op(struct call *c, const struct held *held) {
        struct handle *h = NULL;
        struct fuse_entry_param e;
        struct fuse_file_info fi = held->fi;
        int r = create(c, held->dir, held->name, held->mode, &fi, &e, &h);
        if (r == 0 && fuse_reply_create(c->req, &e, &fi) < 0) {
                handle_end(c->m, h);
                nodes_forget(c->m, e.ino, 1);
        }
        return r;
}

void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi) {
        counter_add(req_mount(req)->cfg.counters, fuse_open, 1);
        call_with_room(req, &(struct held){ .op = create_op, .adds = true, .dir = parent, .name = name, .mode = mode, .fi = *fi });
}

void op_release(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi) {
        struct mount *m = req_mount(req);
        counter_add(m->cfg.counters, fuse_requests, 1);
        handle_end(m, fi_handle(fi));
        (void)fuse_reply_err(req, 0);
}

void op_fallocate(fuse_req_t req, fuse_ino_t nodeid, int mode, off_t off, off_t len, struct fuse_file_info *fi) {
        struct call c;
        enum file_alloc how = 0;
        call_begin(&c, req);
        switch (mode) {
        case 0:
                how = FILE_ALLOC_EXTEND;
                break;
        case FALLOC_FL_KEEP_SIZE:
                how = FILE_ALLOC_KEEP;
                break;
        case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
                how = FILE_ALLOC_PUNCH;
                break;
        case FALLOC_FL_ZERO_RANGE:
                how = FILE_ALLOC_ZERO;
                break;
        case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
                how = FILE_ALLOC_ZERO_KEEP;
                break;
        default:
                break;
        }
        int r = how == 0 ? -EOPNOTSUPP : off < 0 || len <= 0 ? -EINVAL : 0;
        if (r == 0)
                r = file_allocate(fi_handle(fi)->file, how, (uint64_t)off, (uint64_t)len);
        reply_fail_or_ok(req, r);
        call_end(&c);
}

/* A whole file, or its beginning, into an empty one: the blocks are shared, no byte is read or written. Everything else the kernel copies through the page cache, as it does on EOPNOTSUPP; of that the server is
 * sent no block that it has. */
void op_copy_file_range(fuse_req_t req, fuse_ino_t in, off_t off_in, struct fuse_file_info *fi_in, fuse_ino_t out, off_t off_out, struct fuse_file_info *fi_out, size_t len, int flags) {
        struct call c;
        uint64_t done = 0;
        call_begin(&c, req);
        int r = off_in != off_out || off_in < 0 || len == 0 || (fi_out->flags & O_APPEND) ? -EOPNOTSUPP : take_privileges(c.m, req, out, fi_handle(fi_out)->file);
        if (r == 0)
                r = file_share(fi_handle(fi_out)->file, fi_handle(fi_in)->file, (uint64_t)off_in, len, &done);
        if (r < 0)
                reply_fail(req, r == -ENOSPC ? -EOPNOTSUPP : r); /* as a write it can wait for room */
        else
                (void)fuse_reply_write(req, (size_t)done);
        call_end(&c);
}

void op_lseek(fuse_req_t req, fuse_ino_t nodeid, off_t off, int whence, struct fuse_file_info *fi) {
        struct mount *m = req_mount(req);
        uint64_t at = 0;
        counter_add(m->cfg.counters, fuse_requests, 1);
        int r = whence != SEEK_DATA && whence != SEEK_HOLE ? -EINVAL : off < 0 ? -ENXIO : file_seek(fi_handle(fi)->file, whence == SEEK_DATA, (uint64_t)off, &at);
        if (r < 0)
                reply_fail(req, r);
        else
                (void)fuse_reply_lseek(req, (off_t)at);
}
