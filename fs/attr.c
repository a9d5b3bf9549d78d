/* SPDX-License-Identifier: Apache-2.0 */
/* attr.c: what stat shows, and how it is changed.
 *
 * Shown: st_ino is the row id, stable over remounts; size and times of a file that is being written come from its open stage (file_overlay), else from the row. A commit point
 * moves them from one to the other, and a conflict copy takes the stage with it to another inode: if one happened between reading the row and asking for the overlay, the row is read again
 * (file_seals), because the kernel would keep the old size for a day, and who reads what he has just written would miss the end of it. There is
 * no access time that reading would change (the mount behaves as with noatime): it shows the mtime until a program sets it, and then what was set, on this client. Owners: owner.c.
 *
 * A nodeid of an older incarnation (remote content replaced that of an open node) shows what its handles have: the size of the bytes that they read and the times as opened, or,
 * once one of them has written, the conflict copy that they are now (the kernel names no handle in fstat, so this goes by the nodeid: all its handles are one file).
 * ftruncate goes by the handle, as a write does. Without an open handle it is ESTALE, upon which the kernel looks the path up again.
 * Of a directory (it was removed here; the server may refuse that, and then it has a name again, and another nodeid: the kernel has marked the old one dead) it shows the row.
 *
 * statfs: the size is the workspace's quota on the server, or SPACE_WITHOUT_QUOTA; used is what the server counts to the quota (kept versions too: overwriting takes room, deleting gives none back until the
 * version is purged), as it said with the newest events, and what was written here and is not there yet. No request, no SQL. In the moment between a commit and its event a version counts twice.
 *
 * suid and sgid go away on a write or truncate by somebody without privilege and on any chown, capabilities on all of them. The kernel leaves that to us (HANDLE_KILLPRIV_V2), which spares one
 * xattr request per write. */
#include "fs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/err.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"

#define SPACE_WITHOUT_QUOTA (UINT64_C(1) << 50)

static struct timespec to_timespec(int64_t ns) {
        int64_t s = ns / 1000000000, rest = ns % 1000000000;
        if (rest < 0) {
                s--;
                rest += 1000000000;
        }
        return (struct timespec){ .tv_sec = s, .tv_nsec = rest };
}

static int64_t from_timespec(const struct timespec *t) {
        int64_t s = MIN(MAX((int64_t)t->tv_sec, INT64_MIN / 1000000000 + 1), INT64_MAX / 1000000000 - 1);
        return s * 1000000000 + t->tv_nsec;
}

void reply_fail(fuse_req_t req, int r) {
        int err = r < 0 ? -r : EIO;
        switch (err) {
        case ERR_CORRUPT:
        case ERR_PROTOCOL:
                err = EIO;
                break;
        case ERR_SIGNED_OUT: /* without a valid token we are offline */
                err = ERR_OFFLINE;
                break;
        case ERR_UPGRADE: /* a node of a kind that we cannot show */
                err = EOPNOTSUPP;
                break;
        default:
                break;
        }
        if (err == EIO)
                log_debug("event=reply error=EIO cause=%s", err_name(r));
        (void)fuse_reply_err(req, err); /* fails only if the mount is gone or the request was interrupted */
}

/* What the handles of nodeid see, whose node has a newer version: their conflict copy's row, or the version that they hold open. n: the node's row. False: there is no handle. */
static bool superseded_view(struct mount *m, uint64_t nodeid, struct node *n) {
        struct cache *c = m->cfg.cache;
        for (int i = 0; i < 2; i++) { /* the file may become a conflict copy between two questions */
                uint64_t ino, seals;
                struct node copy;
                if (!nodes_view(m, nodeid, &ino, &n->mtime_ns, &n->ctime_ns))
                        return false;
                seals = file_seals(c);
                if (ino != n->ino && tree_get(c->tree, ino, &copy) == 0) {
                        node_overlay(m, &copy, seals);
                        copy.ino = n->ino;
                        *n = copy;
                        return true;
                }
                if (file_shown_size(c, n->ino, nodeid_incarnation(nodeid), &n->size))
                        return true;
        }
        return false;
}

void node_overlay(struct mount *m, struct node *n, uint64_t seals) {
        uint64_t size;
        int64_t mtime_ns, ctime_ns;
        FAILPOINT_HERE("attr.row");
        while (n->kind == NODE_FILE) {
                if (file_overlay(m->cfg.cache, n->ino, &size, &mtime_ns, &ctime_ns)) {
                        n->size = size;
                        n->mtime_ns = mtime_ns;
                        n->ctime_ns = MAX(n->ctime_ns, mtime_ns); /* as the row will have it: what was shown stays */
                        return;
                }
                uint64_t now = file_seals(m->cfg.cache);
                struct node again;
                if (now == seals || tree_get(m->cfg.cache->tree, n->ino, &again) < 0)
                        return;
                if (again.incarnation != n->incarnation) { /* n is what its handles see, and that has moved */
                        if (superseded_view(m, nodeid_of(n), &again)) {
                                n->size = again.size;
                                n->mtime_ns = again.mtime_ns;
                                n->ctime_ns = again.ctime_ns;
                        }
                        return;
                }
                seals = now;
                *n = again;
        }
}

void attr_fill(struct mount *m, const struct node *n, struct stat *ret) {
        uint64_t size = n->kind == NODE_DIR ? 4096 : n->size;
        int64_t mtime_ns = n->mtime_ns, ctime_ns = n->ctime_ns;
        memset(ret, 0, sizeof *ret);
        ret->st_ino = n->ino;
        ret->st_mode = node_kind_to_mode(n->kind) | (n->mode & 07777);
        ret->st_nlink = n->nlink;
        owner_show(m, n, &ret->st_uid, &ret->st_gid);
        ret->st_rdev = n->rdev;
        ret->st_size = (off_t)size;
        ret->st_blocks = (blkcnt_t)((size + 511) / 512);
        ret->st_blksize = 4096;
        ret->st_mtim = to_timespec(mtime_ns);
        ret->st_atim = n->has_atime ? to_timespec(n->atime_ns) : ret->st_mtim;
        ret->st_ctim = to_timespec(ctime_ns);
}

void entry_fill(struct mount *m, const struct node *n, struct fuse_entry_param *ret) {
        memset(ret, 0, sizeof *ret);
        ret->ino = nodeid_of(n);
        ret->attr_timeout = ret->entry_timeout = TIMEOUT_S;
        attr_fill(m, n, &ret->attr);
}

int node_row(struct mount *m, uint64_t nodeid, struct node *ret, bool *ret_superseded) {
        struct node n;
        bool superseded = false;
        uint64_t seals = file_seals(m->cfg.cache);
        int r = tree_get(m->cfg.cache->tree, nodeid_ino(nodeid), &n);
        if (r == -ENOENT && nodes_ghost_get(m, nodeid, ret)) {
                *ret_superseded = false;
                return 0;
        }
        if (r < 0)
                return r;
        if (n.incarnation != nodeid_incarnation(nodeid) && n.kind != NODE_DIR) {
                if (!superseded_view(m, nodeid, &n))
                        return -ESTALE;
                superseded = true;
        } else {
                node_overlay(m, &n, seals);
        }
        *ret = n;
        *ret_superseded = superseded;
        return 0;
}

void op_getattr(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi) {
        struct call c;
        struct node n;
        struct stat st;
        call_begin(&c, req);
        counter_add(c.m->cfg.counters, fuse_getattr, 1);
        bool superseded = false;
        int r = node_row(c.m, nodeid, &n, &superseded);
        if (r < 0) {
                reply_fail(req, r);
        } else {
                attr_fill(c.m, &n, &st);
                (void)fuse_reply_attr(req, &st, TIMEOUT_S);
        }
        call_end(&c);
}

bool may_keep_priv(fuse_req_t req) {
        return fuse_req_ctx(req)->uid == 0;
}

/* The caller's thread has gid among its supplementary groups. Read here, because libfuse 3.14 searches what it has read without an end mark (fuse_req_getgroups). A thread that is gone has none. */
static bool has_group(fuse_req_t req, gid_t gid) {
        char path[32];
        _cleanup_buf_ struct buf b = BUF_INIT(1u << 20);
        (void)snprintf(path, sizeof path, "/proc/%d/status", (int)fuse_req_ctx(req)->pid);
        const char *at = file_load(path, 1u << 20, &b) == 0 ? buf_text(&b) : NULL;
        at = at ? strstr(at, "\nGroups:") : NULL;
        if (!at)
                return false;
        at += strlen("\nGroups:");
        for (char *end;; at = end) { /* blanks and numbers up to the end of the line */
                at += strspn(at, " \t");
                unsigned long group = strtoul(at, &end, 10);
                if (*at == '\n' || end == at)
                        return false;
                if (group == gid)
                        return true;
        }
}

static bool in_group(struct mount *m, fuse_req_t req, const struct node *n) {
        uint32_t uid, gid;
        owner_show(m, n, &uid, &gid);
        return fuse_req_ctx(req)->gid == gid || has_group(req, gid); /* reads /proc: only for a set-group-id bit without group execution */
}

/* The mode after a change by the caller that takes set-id bits away: suid always; sgid if the group may execute, or if the caller is not of the group. */
static uint32_t mode_without_priv(struct mount *m, fuse_req_t req, const struct node *n) {
        uint32_t mode = n->mode & ~04000u;
        if ((mode & 02010) == 02010 || ((mode & 02000) && !may_keep_priv(req) && !in_group(m, req, n)))
                mode &= ~02000u;
        return mode;
}

int drop_priv(struct mount *m, fuse_req_t req, uint64_t ino) {
        struct node n;
        int r = tree_get(m->cfg.cache->tree, ino, &n);
        if (r < 0)
                return r;
        uint32_t mode = mode_without_priv(m, req, &n);
        if (n.kind != NODE_FILE || mode == n.mode)
                return 0;
        struct tree_attrs a = { .mask = ATTR_MODE, .mode = mode };
        return tree_setattr(m->cfg.cache->tree, ino, &a, &n);
}

int drop_caps(struct mount *m, uint64_t ino) {
        int r = tree_xattr_remove(m->cfg.cache->tree, ino, "security.capability");
        return r == -ENODATA ? 0 : r;
}

int take_privileges(struct mount *m, fuse_req_t req, uint64_t nodeid, const struct file *file) {
        int r = !may_keep_priv(req) && nodes_take_kill(m, nodeid) ? drop_priv(m, req, file_ino(file)) : 0;
        return r == 0 && m->cfg.owner_stored && nodes_take_caps(m, nodeid) ? drop_caps(m, file_ino(file)) : r;
}

static int setattr(struct mount *m, fuse_req_t req, uint64_t nodeid, const struct stat *attr, int valid, struct handle *h, struct node *ret, bool *ret_superseded) {
        struct cache *c = m->cfg.cache;
        uint64_t ino = nodeid_ino(nodeid);
        struct tree_attrs a = { 0 };
        int r = m->cfg.ro ? -EROFS : node_row(m, nodeid, ret, ret_superseded);
        if (r < 0)
                return r;
        r = owner_change(m, ret, valid & FUSE_SET_ATTR_UID ? &attr->st_uid : NULL, valid & FUSE_SET_ATTR_GID ? &attr->st_gid : NULL, &a);
        if (r < 0)
                return r;
        const int64_t mtime_was_ns = ret->mtime_ns;
        const bool nothing = !(valid & ~FUSE_SET_ATTR_CTIME), chown = nothing || (valid & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID));
        const bool loses_priv = ret->kind != NODE_DIR && !(valid & FUSE_SET_ATTR_MODE) && (chown || ((valid & FUSE_SET_ATTR_SIZE) && !may_keep_priv(req)));
        if (valid & FUSE_SET_ATTR_SIZE) {
                if (attr->st_size < 0)
                        return -EINVAL;
                r = h ? file_set_size(h->file, (uint64_t)attr->st_size) : *ret_superseded ? -ESTALE : file_truncate(c, ino, (uint64_t)attr->st_size);
                if (r < 0)
                        return r;
        }
        if (m->cfg.owner_stored && ret->has_xattrs && ret->kind == NODE_FILE && (chown || (valid & FUSE_SET_ATTR_SIZE)) && (r = drop_caps(m, ino)) < 0)
                return r;
        if (*ret_superseded) { /* its handles may be a conflict copy by now */
                int64_t unused;
                if (!nodes_view(m, nodeid, &ino, &unused, &unused))
                        return -ESTALE;
        }
        if (valid & FUSE_SET_ATTR_MODE) {
                a.mask |= ATTR_MODE;
                a.mode = attr->st_mode & 07777;
                nodes_set_kill(m, nodeid, a.mode & 06000);
        } else if (loses_priv && (ret->mode & 06000)) {
                uint32_t uid, gid;
                owner_show(m, ret, &uid, &gid);
                /* A request that names nothing is chown(-1, -1), which the kernel lets pass from everybody, or comes before a write, which takes the bits away itself: of somebody else it changes nothing. */
                a.mode = nothing && !may_keep_priv(req) && fuse_req_ctx(req)->uid != uid ? ret->mode : mode_without_priv(m, req, ret);
                a.mask |= a.mode != ret->mode ? ATTR_MODE : 0;
        }
        if (valid & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) {
                a.mask |= ATTR_MTIME;
                a.mtime_ns = valid & FUSE_SET_ATTR_MTIME_NOW ? clock_real_ns(m->cfg.clock) : from_timespec(&attr->st_mtim);
                if (ret->kind == NODE_FILE) {
                        r = file_set_mtime(c, ino, a.mtime_ns);
                        if (r < 0)
                                return r;
                }
        }
        if (valid & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW)) {
                a.has_atime = true;
                a.atime_ns = valid & FUSE_SET_ATTR_ATIME_NOW ? clock_real_ns(m->cfg.clock) : from_timespec(&attr->st_atim);
        } else if ((a.mask & ATTR_MTIME) && !ret->has_atime) { /* it shows the mtime as it was, and goes on to */
                a.has_atime = true;
                a.atime_ns = mtime_was_ns;
        }
        if (a.mask || a.has_atime) {
                r = tree_setattr(c->tree, ino, &a, ret);
                if (r < 0)
                        return r;
        }
        return node_row(m, nodeid, ret, ret_superseded);
}

void op_setattr(fuse_req_t req, fuse_ino_t nodeid, struct stat *attr, int valid, struct fuse_file_info *fi) {
        struct call c;
        struct node n;
        struct stat st;
        call_begin(&c, req);
        bool superseded = false;
        int r = setattr(c.m, req, nodeid, attr, valid, fi_handle(fi), &n, &superseded);
        if (r < 0) {
                reply_fail(req, r);
        } else {
                attr_fill(c.m, &n, &st);
                (void)fuse_reply_attr(req, &st, TIMEOUT_S);
        }
        call_end(&c);
}

void op_statfs(fuse_req_t req, fuse_ino_t nodeid) {
        struct mount *m = req_mount(req);
        uint64_t quota = 0, used = 0;
        struct stages_totals here;
        counter_add(m->cfg.counters, fuse_requests, 1);
        if (m->cfg.space)
                m->cfg.space(m->cfg.space_arg, &quota, &used);
        stages_totals(m->cfg.cache->stages, &here);
        uint64_t total = quota ? quota : SPACE_WITHOUT_QUOTA, taken = MIN(MIN(used, total) + MIN(here.dirty_bytes, total), total);
        struct statvfs v = {
                .f_bsize = 4096, .f_frsize = 4096, .f_blocks = total / 4096, .f_bfree = (total - taken) / 4096, .f_bavail = (total - taken) / 4096,
                .f_files = UINT32_MAX, .f_ffree = UINT32_MAX, .f_favail = UINT32_MAX, .f_namemax = NAME_BYTES_MAX,
        };
        (void)fuse_reply_statfs(req, &v);
}

void op_access(fuse_req_t req, fuse_ino_t nodeid, int mask) {
        (void)fuse_reply_err(req, ENOSYS); /* asked only without default_permissions: the kernel then stops asking and permits */
}
