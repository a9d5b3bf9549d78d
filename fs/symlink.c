/* SPDX-License-Identifier: Apache-2.0 */
/* symlink.c: where symlinks may lead.
 *
 * Who can write to a workspace can put a link there that points to any file of the machines that mount it; a program that follows it without looking acts on that file with its own rights. A user who
 * mounts a drive of his own wants his links as they are. On a mount for everybody (allow_other, by root) they come from people whom the follower may not trust. So there are three policies:
 *
 *   any      links are what they are. The default of a mount that only its user can look into
 *   inside   a link that may lead out of the mount cannot be read (EACCES): neither followed nor shown. The default of a mount by root with allow_other
 *   none     no link is followed (ELOOP), all are shown: the kernel's nosymfollow; only root can ask for it (mount.c)
 *
 * The kernel asks for a link's target in the same way to follow and to show it, hence EACCES for both. What may lead out is decided from the text alone: an absolute target outside of the mount point;
 * more ".." at its beginning than the link's directory is deep; any ".." behind a name, because that name may be a link to a place less deep. The answer depends on where the link is, so the
 * kernel does not keep it (io.c). A link with several names has no place: it may have no "..". */
#include "fs.h"

#include <string.h>

#define DEPTH_MAX 4096u

static bool is_dotdot(const char *at, size_t n) {
        return n == 2 && at[0] == '.' && at[1] == '.';
}

/* Levels that a relative path climbs before its first name; -1: there is a ".." behind one. */
static int climbs(const char *path) {
        int up = 0;
        bool named = false;
        for (size_t n; *path; path += n) {
                path += strspn(path, "/");
                n = strcspn(path, "/");
                if (is_dotdot(path, n)) {
                        if (named)
                                return -1;
                        up++;
                } else if (n > 0 && !(n == 1 && *path == '.')) {
                        named = true;
                }
        }
        return up;
}

int symlink_check(struct mount *m, uint64_t ino, const char *target) {
        if (m->cfg.symlinks != SYMLINKS_INSIDE)
                return 0;
        if (target[0] == '/') {
                size_t n = strlen(m->mountpoint);
                return strncmp(target, m->mountpoint, n) == 0 && (target[n] == '/' || target[n] == 0) && climbs(target + n) == 0 ? 0 : -EACCES;
        }
        int up = climbs(target);
        if (up <= 0)
                return up < 0 ? -EACCES : 0;
        struct node node;
        int r = tree_get(m->cfg.cache->tree, ino, &node);
        if (r < 0)
                return r;
        if (node.nlink != 1 || up > (int)DEPTH_MAX)
                return -EACCES;
        for (; up > 0; up--) {
                if (node.parent == INO_ROOT || node.parent == 0)
                        return -EACCES;
                r = tree_get(m->cfg.cache->tree, node.parent, &node);
                if (r < 0)
                        return r;
        }
        return 0;
}
