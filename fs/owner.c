/* SPDX-License-Identifier: Apache-2.0 */
/* owner.c: whose a node is.
 *
 *   one owner (default)   everything is shown as the mounting user's. What is stored is never altered: a new node is stored as that user's, chown to the same owner
 *                         succeeds and does nothing, to any other it is EPERM
 *   owner_stored          what is stored is shown. A new node is the caller's; in a directory with the set-group-id bit it has the directory's group, and a new directory the bit, too
 *
 * With a map (idmap) stored ids are translated to those of this machine and back, range by range, the first that fits. A stored id that no range has is shown as nobody (65534) and
 * stays as it is. A caller whose id no range has cannot make a node (EOVERFLOW), and nothing can be given to such an id (EINVAL), as with the kernel's own mapped mounts. To give a node to nobody
 * that shows nobody already changes nothing.
 *
 * The map is read only after mount_new; no lock. */
#include "fs.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define NOBODY 65534u

/* One range: [u|g|b:]STORED:LOCAL:COUNT. */
static int parse_range(const char *text, size_t n, struct id_range *ret) {
        char word[64];
        int end = 0;
        if (n == 0 || n >= sizeof word)
                return -EINVAL;
        memcpy(word, text, n);
        word[n] = 0;
        char *at = word, which = 'b';
        if (strchr("ugb", *at) && at[1] == ':') {
                which = *at;
                at += 2;
        }
        struct id_range r = { .user = which != 'g', .group = which != 'u' };
        if (strspn(at, "0123456789:") != strlen(at) || sscanf(at, "%10" SCNu32 ":%10" SCNu32 ":%10" SCNu32 "%n", &r.stored, &r.local, &r.count, &end) != 3 || at[end])
                return -EINVAL;
        if (r.count == 0 || r.count - 1 > UINT32_MAX - 1 - r.stored || r.count - 1 > UINT32_MAX - 1 - r.local) /* the last one means none */
                return -EINVAL;
        *ret = r;
        return 0;
}

int idmap_parse(const char *text, struct id_range *ret, size_t max, size_t *ret_n) {
        size_t count = 0;
        while (*text) {
                size_t n = strcspn(text, "+");
                if (count == max)
                        return -E2BIG;
                int r = parse_range(text, n, &ret[count]);
                if (r < 0)
                        return r;
                count++;
                text += n;
                if (*text && !*++text)
                        return -EINVAL; /* ends in a separator */
        }
        if (count == 0)
                return -EINVAL;
        *ret_n = count;
        return 0;
}

static uint32_t to_local(const struct mount *m, uint32_t stored, bool user) {
        if (m->cfg.n_idmap == 0)
                return stored;
        for (size_t i = 0; i < m->cfg.n_idmap; i++) {
                const struct id_range *r = &m->cfg.idmap[i];
                if ((user ? r->user : r->group) && stored >= r->stored && stored - r->stored < r->count)
                        return r->local + (stored - r->stored);
        }
        return NOBODY;
}

static bool to_stored(const struct mount *m, uint32_t local, bool user, uint32_t *ret) {
        *ret = local;
        if (m->cfg.n_idmap == 0)
                return true;
        for (size_t i = 0; i < m->cfg.n_idmap; i++) {
                const struct id_range *r = &m->cfg.idmap[i];
                if ((user ? r->user : r->group) && local >= r->local && local - r->local < r->count) {
                        *ret = r->stored + (local - r->local);
                        return true;
                }
        }
        return false;
}

void owner_show(const struct mount *m, const struct node *n, uint32_t *ret_uid, uint32_t *ret_gid) {
        *ret_uid = m->cfg.owner_stored ? to_local(m, n->uid, true) : m->cfg.uid;
        *ret_gid = m->cfg.owner_stored ? to_local(m, n->gid, false) : m->cfg.gid;
}

int owner_change(struct mount *m, const struct node *n, const uint32_t *uid, const uint32_t *gid, struct tree_attrs *a) {
        uint32_t shown_uid, shown_gid, stored;
        owner_show(m, n, &shown_uid, &shown_gid);
        if (!m->cfg.owner_stored)
                return (uid && *uid != shown_uid) || (gid && *gid != shown_gid) ? -EPERM : 0;
        if (uid && !(m->cfg.n_idmap && *uid == shown_uid)) {
                if (!to_stored(m, *uid, true, &stored))
                        return -EINVAL;
                a->mask |= ATTR_UID;
                a->uid = stored;
        }
        if (gid && !(m->cfg.n_idmap && *gid == shown_gid)) {
                if (!to_stored(m, *gid, false, &stored))
                        return -EINVAL;
                a->mask |= ATTR_GID;
                a->gid = stored;
        }
        return 0;
}

int owner_of_new(struct mount *m, fuse_req_t req, uint64_t dir_ino, struct tree_new *io_what) {
        const struct fuse_ctx *ctx = fuse_req_ctx(req);
        struct node dir;
        io_what->uid = m->cfg.uid;
        io_what->gid = m->cfg.gid;
        if (!m->cfg.owner_stored)
                return 0;
        int r = tree_get(m->cfg.cache->tree, dir_ino, &dir);
        if (r < 0)
                return r;
        if (!to_stored(m, ctx->uid, true, &io_what->uid) || (!(dir.mode & 02000) && !to_stored(m, ctx->gid, false, &io_what->gid)))
                return -EOVERFLOW;
        if (dir.mode & 02000) {
                io_what->gid = dir.gid;
                if (io_what->kind == NODE_DIR)
                        io_what->mode |= 02000;
        }
        return 0;
}
