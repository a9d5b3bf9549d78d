/* SPDX-License-Identifier: Apache-2.0 */
/* dir.c: listings. READDIRPLUS always: one request fills the kernel's names and attributes for a whole page, and a later stat of each is answered without us. The
 * kernel also caches the listing itself (CACHE_DIR, KEEP_CACHE); with NO_OPENDIR it does not even ask to open a directory. So a second ls -lR makes no
 * request at all; notifications keep it true.
 *
 * An offset is the cookie of the entry before it, moved by two for "." (1) and ".." (2): the row id of a name, which stays while others come and go. There
 * is no state between requests.
 *
 * An entry counts in the node table before the reply leaves; what did not fit, or a reply that was not taken, is counted back. */
#include "fs.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define DOTS 2u

struct listing {
        struct call *c;
        char *buf;
        size_t used, size;
        bool plus;
        uint64_t *ids; size_t n_ids; /* counted in this reply; at the end of the buffer's thread memory */
        size_t ids_max;
        uint64_t seals;              /* before the first row was read */
};

void op_opendir(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi) {
        struct mount *m = req_mount(req);
        counter_add(m->cfg.counters, fuse_requests, 1);
        if (m->no_opendir) {
                (void)fuse_reply_err(req, ENOSYS); /* means: no need to ask; keep and cache */
                return;
        }
        fi->cache_readdir = 1;
        lock_take(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        fi->keep_cache = s && s->pending == 0 && !m->flood;
        lock_drop(&m->lock);
        (void)fuse_reply_open(req, fi);
}

void op_releasedir(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi) {
        counter_add(req_mount(req)->cfg.counters, fuse_requests, 1);
        (void)fuse_reply_err(req, 0);
}

/* 1: the buffer is full. */
static int put(struct listing *l, const char *name, const struct fuse_entry_param *e, uint64_t next) {
        char *at = l->buf + l->used;
        size_t room = l->size - l->used;
        size_t n = l->plus ? fuse_add_direntry_plus(l->c->req, at, room, name, e, (off_t)next) : fuse_add_direntry(l->c->req, at, room, name, &e->attr, (off_t)next);
        if (n > room)
                return 1;
        l->used += n;
        return 0;
}

static int put_entry(void *arg, const struct tree_entry *entry) {
        struct listing *l = arg;
        struct fuse_entry_param e;
        struct node n = entry->node;
        node_overlay(l->c->m, &n, l->seals);
        entry_fill(l->c->m, &n, &e);
        if (l->plus && l->n_ids == l->ids_max)
                return 1;
        size_t before = l->used;
        if (put(l, entry->name, &e, entry->cookie + DOTS))
                return 1;
        if (l->plus) {
                int r = nodes_ref(l->c->m, e.ino);
                if (r < 0) {
                        l->used = before;
                        return l->used > 0 ? 1 : r;
                }
                l->ids[l->n_ids++] = e.ino;
        }
        return 0;
}

static int put_dots(struct listing *l, uint64_t dir, uint64_t off) {
        struct node n;
        for (; off < DOTS; off++) {
                struct fuse_entry_param e = { .attr = { .st_ino = dir, .st_mode = S_IFDIR } };
                if (off == 1 && dir != INO_ROOT) {
                        int r = tree_get(l->c->m->cfg.cache->tree, dir, &n);
                        if (r < 0)
                                return r;
                        e.attr.st_ino = n.parent ? n.parent : INO_ROOT;
                }
                if (put(l, off == 0 ? "." : "..", &e, off + 1))
                        return 1;
        }
        return 0;
}

static void list(fuse_req_t req, uint64_t nodeid, size_t size, off_t off, bool plus) {
        struct call c;
        call_begin(&c, req);
        counter_add(c.m->cfg.counters, fuse_readdir, 1);
        size = MIN(size, (size_t)IO_BYTES_MAX);
        size_t ids_max = size / 128 + 1; /* a plus entry has 152 bytes and its name */
        char *memory = worker_buffer(size + ids_max * sizeof(uint64_t) + 8);
        struct listing l = { .c = &c, .buf = memory, .size = size, .plus = plus, .ids_max = ids_max, .seals = file_seals(c.m->cfg.cache) };
        int r = memory && off >= 0 ? 0 : memory ? -EINVAL : -ENOMEM;
        if (r == 0) {
                l.ids = (uint64_t *)(((uintptr_t)memory + size + 7) & ~(uintptr_t)7);
                r = put_dots(&l, nodeid_ino(nodeid), (uint64_t)off);
        }
        if (r == 0)
                r = tree_list(c.m->cfg.cache->tree, nodeid_ino(nodeid), (uint64_t)off > DOTS ? (uint64_t)off - DOTS : 0, put_entry, &l);
        if (r < 0 && l.n_ids == 0) {
                reply_fail(req, r);
        } else if (fuse_reply_buf(req, l.buf, l.used) < 0) {
                for (size_t i = 0; i < l.n_ids; i++)
                        nodes_forget(c.m, l.ids[i], 1);
        }
        call_end(&c);
}

void op_readdir(fuse_req_t req, fuse_ino_t nodeid, size_t size, off_t off, struct fuse_file_info *fi) {
        list(req, nodeid, size, off, false);
}

void op_readdirplus(fuse_req_t req, fuse_ino_t nodeid, size_t size, off_t off, struct fuse_file_info *fi) {
        list(req, nodeid, size, off, true);
}
