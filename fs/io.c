/* SPDX-License-Identifier: Apache-2.0 */
/* io.c: the door to /dev/fuse, and what is agreed on in INIT.
 *
 * libfuse 3.14 does not pass on two things that the kernel offers and that matter here, so the INIT reply is amended on its way out (fuse_session_custom_io):
 *   PARALLEL_DIROPS       lookups in one directory at the same time
 *   HANDLE_KILLPRIV_V2    the kernel does not ask for security.capability before every write; we take suid and sgid away (attr.c)
 * Both only if the kernel's INIT request has them.
 *
 * Nor does it know O_TMPFILE. The kernel's request for that is a CREATE of the name "/", which no file can have, under another number; it becomes one on its way in (handle.c). Everything else goes
 * through as it is.
 *
 * Agreed otherwise: READDIRPLUS always; explicit invalidation only (AUTO_INVAL_DATA would drop pages on each mtime change that a write here makes); no writeback
 * cache (it would break "accepted"); symlinks cached; locks are the kernel's own. Data goes through plain buffers: splice gains nothing here. */
#include "fs.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/fuse.h>

static ssize_t io_read(int fd, void *buf, size_t n, void *userdata) {
        struct mount *m = userdata;
        ssize_t got = read(fd, buf, n);
        if (got > 0 && !atomic_load_explicit(&m->init_done, memory_order_acquire)) {
                struct fuse_in_header head;
                struct fuse_init_in in = { 0 };
                memcpy(&head, buf, MIN((size_t)got, sizeof head));
                if ((size_t)got >= sizeof head && head.opcode == FUSE_INIT) {
                        memcpy(&in, (char *)buf + sizeof head, MIN((size_t)got - sizeof head, sizeof in));
                        m->proto_flags = in.flags;
                        m->init_unique = head.unique;
                }
        }
        if (got >= (ssize_t)sizeof(struct fuse_in_header)) {
                struct fuse_in_header *head = buf;
                if (head->opcode == FUSE_TMPFILE)
                        head->opcode = FUSE_CREATE;
        }
        return got;
}

static ssize_t io_writev(int fd, struct iovec *iov, int count, void *userdata) {
        struct mount *m = userdata;
        struct fuse_out_header *head = count > 0 && iov[0].iov_len >= sizeof *head ? iov[0].iov_base : NULL;
        if (!atomic_load_explicit(&m->init_done, memory_order_acquire) && head && head->unique == m->init_unique && head->error == 0 && count == 2 &&
            iov[1].iov_len >= 24) {
                struct fuse_init_out out;
                size_t n = MIN(iov[1].iov_len, sizeof out);
                memcpy(&out, iov[1].iov_base, n);
                out.flags |= m->proto_flags & (FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2);
                memcpy(iov[1].iov_base, &out, n);
                atomic_store_explicit(&m->init_done, true, memory_order_release);
        }
        ssize_t r;
        do
                r = writev(fd, iov, count);
        while (r < 0 && errno == EINTR);
        return r;
}

const struct fuse_custom_io mount_io = { .writev = io_writev, .read = io_read };

void op_init(void *userdata, struct fuse_conn_info *conn) {
        struct mount *m = userdata;
        const unsigned wanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_READDIRPLUS | FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_CACHE_SYMLINKS |
                                FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_DIO | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_EXPORT_SUPPORT;
        unsigned unwanted = FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
                                  FUSE_CAP_SPLICE_MOVE | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS | FUSE_CAP_POSIX_ACL | FUSE_CAP_DONT_MASK;
        if (m->cfg.symlinks == SYMLINKS_INSIDE) /* where a target leads depends on where its link is */
                unwanted |= FUSE_CAP_CACHE_SYMLINKS;
        conn->want = (conn->want | (wanted & conn->capable)) & ~unwanted;
        conn->max_write = IO_BYTES_MAX;
        conn->max_background = 64;
        conn->congestion_threshold = 48;
        conn->time_gran = 1;
        m->no_opendir = conn->capable & FUSE_CAP_NO_OPENDIR_SUPPORT;
}
