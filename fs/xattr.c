/* SPDX-License-Identifier: Apache-2.0 */
/* xattr.c: extended attributes. user.* are stored and travel with the node; with owner_stored so are security.* and trusted.* (which the kernel lets only root set and see). All others are
 * EOPNOTSUPP, which ls and cp remember for the whole file system instead of asking for each file. What another mount has stored and this one does not take is not listed.
 *
 * user.tarn.* is ours and read only; it is not listed, so that cp -a and rsync -X do not try to copy it:
 *   user.tarn.state   accepted   survives the end of the daemon
 *                     local      survives a power cut
 *                     server     the server has it
 *   user.tarn.conflict  the mark of a conflict copy; may be removed (cache/tree_conflict.c)
 * The word is that of the moment (cache/file_level.c); of a handle that a remote version superseded it is its conflict copy's, or the node's. Costs: get 1 SELECT (the state 3), set and remove one transaction. */
#include "fs.h"

#include <string.h>
#include <sys/xattr.h>

#define OURS "user.tarn."
#define CONFLICT OURS "conflict"

static bool ours(const char *name) {
        return strncmp(name, OURS, sizeof OURS - 1) == 0;
}

static bool of_system(const char *name) {
        return strncmp(name, "trusted.", 8) == 0 || strncmp(name, "security.", 9) == 0;
}

static int check_name(const struct mount *m, const char *name) {
        if (strncmp(name, "user.", 5) != 0 && !(m->cfg.owner_stored && of_system(name)))
                return -EOPNOTSUPP;
        if (strchr(name, '.')[1] == 0)
                return -EINVAL;
        return strlen(name) > XATTR_NAME_MAX ? -ERANGE : 0;
}

static void reply_bytes(fuse_req_t req, const void *p, size_t n, size_t size) {
        if (size == 0)
                (void)fuse_reply_xattr(req, n);
        else if (n > size)
                (void)fuse_reply_err(req, ERANGE);
        else
                (void)fuse_reply_buf(req, p, n);
}

void op_setxattr(fuse_req_t req, fuse_ino_t nodeid, const char *name, const char *value, size_t size, int flags) {
        struct call c;
        call_begin(&c, req);
        int r = c.m->cfg.ro ? -EROFS : check_name(c.m, name);
        if (r == 0 && ours(name))
                r = -EPERM;
        if (r == 0)
                r = tree_xattr_set(c.m->cfg.cache->tree, nodeid_ino(nodeid), name, value, size, flags);
        if (r == 0 && strcmp(name, "security.capability") == 0)
                nodes_set_caps(c.m, nodeid);
        reply_fail_or_ok(req, r);
        call_end(&c);
}

void op_removexattr(fuse_req_t req, fuse_ino_t nodeid, const char *name) {
        struct call c;
        call_begin(&c, req);
        int r = c.m->cfg.ro ? -EROFS : check_name(c.m, name);
        if (r == 0 && ours(name) && strcmp(name, CONFLICT) != 0) /* to take the mark off is to say: both files stay */
                r = -EPERM;
        if (r == 0)
                r = tree_xattr_remove(c.m->cfg.cache->tree, nodeid_ino(nodeid), name);
        reply_fail_or_ok(req, r);
        call_end(&c);
}

static int state_word(struct mount *m, uint64_t nodeid, const char **ret) {
        uint64_t ino = nodeid_ino(nodeid), file;
        int64_t unused;
        enum level level = LEVEL_SERVER;
        if (nodes_view(m, nodeid, &file, &unused, &unused))
                ino = file;
        int r = file_level(m->cfg.cache, ino, &level);
        if (r == 0)
                *ret = level_name(level);
        return r;
}

void op_getxattr(fuse_req_t req, fuse_ino_t nodeid, const char *name, size_t size) {
        struct mount *m = req_mount(req);
        counter_add(m->cfg.counters, fuse_requests, 1);
        _cleanup_buf_ struct buf b = BUF_INIT(XATTR_VALUE_MAX);
        const char *word;
        int r = check_name(req_mount(req), name);
        if (r == 0 && ours(name) && strcmp(name, CONFLICT) != 0) {
                r = strcmp(name, OURS "state") == 0 ? state_word(m, nodeid, &word) : -ENODATA;
                if (r == 0)
                        r = buf_add_str(&b, word);
        } else if (r == 0) {
                r = tree_xattr_get(m->cfg.cache->tree, nodeid_ino(nodeid), name, &b);
        }
        if (r < 0)
                reply_fail(req, r);
        else
                reply_bytes(req, b.data, b.bytes, size);
}

/* Takes out of a list of names those that the caller is not to see. */
static void filter(const struct mount *m, bool root, struct buf *b) {
        size_t kept = 0;
        for (size_t at = 0, n; at < b->bytes; at += n) {
                const char *name = (const char *)b->data + at;
                n = strlen(name) + 1;
                if (of_system(name) && (!m->cfg.owner_stored || (!root && name[0] == 't')))
                        continue;
                memmove(b->data + kept, name, n);
                kept += n;
        }
        b->bytes = kept;
}

void op_listxattr(fuse_req_t req, fuse_ino_t nodeid, size_t size) {
        struct mount *m = req_mount(req);
        counter_add(m->cfg.counters, fuse_requests, 1);
        _cleanup_buf_ struct buf b = BUF_INIT(XATTR_TOTAL_MAX);
        int r = tree_xattr_list(m->cfg.cache->tree, nodeid_ino(nodeid), &b);
        if (r == 0)
                filter(m, fuse_req_ctx(req)->uid == 0, &b);
        if (r < 0)
                reply_fail(req, r);
        else
                reply_bytes(req, b.data, b.bytes, size);
}
