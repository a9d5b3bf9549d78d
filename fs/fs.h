/* SPDX-License-Identifier: Apache-2.0 */
/* fs.h: what the files of fs/ share. One struct mount; nothing global.
 *
 *   mount.c    life of a mount: checks, session, workers, end        io.c      the door to /dev/fuse (INIT reply, wake-up)
 *   nodes.c    what the kernel knows, what is open, who is in flight notify.c  the one thread that invalidates
 *   attr.c     stat, getattr, setattr, statfs                        xattr.c   extended attributes
 *   name.c     names: lookup, create, unlink, rename, ...            dir.c     listings
 *   handle.c   open files: open, release, fallocate, lseek           rw.c      read and write, parked when they must wait
 *   symlink.c  where symlinks may lead                                crawlers.c who is a crawler
 *   closer.c   flush and fsync, off the workers                      owner.c   whose a node is
 *
 * Locks: m->lock (RANK_QUEUE) guards the node table, the registrations and the note queue; m->closer.lock and m->jobs (same rank, never nested) their queues.
 * No lock is held during a call into cache/ or libfuse. */
#pragma once
#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>

#include <stdatomic.h>

#include "base/lock.h"
#include "base/thread.h"
#include "fs/mount.h"

#define TIMEOUT_S 86400.0            /* entries, negative entries, attributes: notifications keep them true */
#define IO_BYTES_MAX (1u << 20)      /* one READ or WRITE request */
#define NOTES_MAX (1u << 20)         /* notes in the queue; beyond it: see notify.c, flood */
#define INO_MASK ((UINT64_C(1) << 48) - 1)

/* nodeid: what the kernel calls a node. ino | incarnation << 48; the root is 1. */
static inline uint64_t nodeid_of(const struct node *n) { return n->ino | (uint64_t)n->incarnation << 48; }
static inline uint64_t nodeid_ino(uint64_t nodeid) { return nodeid & INO_MASK; }
static inline uint16_t nodeid_incarnation(uint64_t nodeid) { return (uint16_t)(nodeid >> 48); }

/* A request in flight that reads rows and whose reply the kernel will cache. In the order of beginning. */
struct reg { struct reg *next, *prev; uint64_t seq; /* m->lock */ };

struct noted {                       /* a note on its way to the kernel */
        struct noted *next;
        uint64_t seq;                /* registrations up to this one may have read the rows before the change */
        uint32_t number;             /* never 0 */
        bool doubted;                /* a change of this name was refused because of it */
        enum note_kind kind;
        uint64_t ino;
        size_t name_bytes;
        char name[];
};

/* A node that is open, or has parked requests or notes that wait for these. m->lock. */
struct hot {
        uint64_t nodeid;
        unsigned opens, writers;
        struct file *file; unsigned files; /* of its handles (all have the same) and how many of these have not begun to go */
        unsigned parked;             /* requests that wait for the network or for room: the kernel holds pages locked for them */
        struct noted *waiting, **waiting_last;
        bool unlinked;               /* no name left: the row goes with the last handle */
        bool kill_priv;              /* has suid or sgid bits that a write must take away */
        bool kill_caps;              /* may have capabilities (security.capability) that a write must take away, whoever writes */
        uint64_t entry_notes;        /* m->n_entry_notes at the first open: a name may have gone by a remote change if it grew */
        int64_t mtime_ns, ctime_ns;  /* as opened: what stat shows of a superseded incarnation */
        struct node *ghost;          /* without a name and without a row, but the kernel still has it (a working directory, O_PATH): what stat shows until FORGET */
};

/* nodeid 0: free. nlookup UINT32_MAX: stays. pending: number of the newest note that will drop its pages, 0: none. */
struct slot { uint64_t nodeid; uint32_t nlookup, pending; struct hot *hot; };

struct closer {                      /* flush with close=local|server, fsync: see closer.c */
        struct lock lock; struct cond more;
        struct waiter *first, **last; /* lock: waiting for the server */
        bool stop, started;          /* lock */
        pthread_t thread;
};

struct mount {
        struct mount_config cfg;
        char *mountpoint, *source_name; /* copies; cfg points to them */
        struct listener listener;
        struct fuse_session *se;
        bool mounted;                /* mount_start succeeded */

        struct lock lock;            /* RANK_QUEUE; what follows up to the blank line */
        struct slot *slots; size_t n_slots, slots_room; /* open addressing by ino; room is a power of 2 */
        struct reg regs;             /* ring head */
        struct handle *handles;      /* open, newest first */
        struct park *parks;          /* parked, newest first */
        struct cond park_gone;
        bool closing;                /* nothing is parked any more */
        uint64_t seq;                /* last registration */
        uint64_t n_entry_notes;
        uint32_t note_number;
        struct noted *queue, **queue_last;
        struct noted *issued;        /* the one that the kernel is being told */
        size_t n_queued, notes_max;
        bool flood;                  /* notes were lost: everything that the kernel knows is doubtful */
        uint64_t flood_seq;
        struct cond note_more;       /* notifier: something to do, or an old registration ended */
        bool note_stop, note_waits;  /* note_waits: the notifier waits for a registration */

        pthread_t notifier; bool notifier_started;
        pthread_t *workers; unsigned n_workers;
        struct lock life; struct cond life_changed;
        unsigned alive;              /* life: workers that run */
        bool stopping, ended;        /* life: asked to end; connection gone */
        bool init_failed;            /* life */
        struct pool *jobs;           /* fsync, retried writes */
        struct closer closer;
        unsigned proto_flags;        /* io.c: the kernel's INIT flags; written before the first reply */
        uint64_t init_unique; atomic_bool init_done;
        bool no_opendir;
        uint64_t conn;               /* minor of the mount's device */
};

/* One request of the kernel: begin before any row is read, end after the reply was written. */
void reg_begin(struct mount *m, struct reg *reg);
void reg_end(struct mount *m, struct reg *reg);
struct call { struct mount *m; fuse_req_t req; struct reg reg; };
void call_begin(struct call *c, fuse_req_t req);
void call_end(struct call *c);
static inline struct mount *req_mount(fuse_req_t req) { return fuse_req_userdata(req); }
/* Replies with the errno that a program may see for r (negative): see attr.c. */
void reply_fail(fuse_req_t req, int r);
static inline void reply_fail_or_ok(fuse_req_t req, int r) {
        if (r < 0)
                reply_fail(req, r);
        else
                (void)fuse_reply_err(req, 0);
}

/* ---- nodes.c ---- */
int nodes_init(struct mount *m) _must_check_;
void nodes_free(struct mount *m);
int nodes_ref(struct mount *m, uint64_t nodeid) _must_check_;     /* the kernel is about to learn of it. -ENOMEM */
void nodes_forget(struct mount *m, uint64_t nodeid, uint64_t n);
bool nodes_known(struct mount *m, uint64_t nodeid);               /* to the kernel */
bool nodes_kept(void *mount, uint64_t ino);                       /* tree's question; may be asked under the tree lock */
/* A handle is about to be made: counted before the cache reads the row. -ENOMEM. */
int nodes_open(struct mount *m, uint64_t nodeid, bool write) _must_check_;
/* It was made: the row that it belongs to (NULL: not known any more) and its file. True: no note is pending, cached pages are those of this content. */
bool nodes_opened(struct mount *m, uint64_t nodeid, const struct node *view, struct file *file);
void nodes_closing(struct mount *m, uint64_t nodeid);             /* before the file of a handle is released */
/* True: it was the last handle of the ino and the row must be looked at, because its last name may have gone. */
bool nodes_close(struct mount *m, uint64_t nodeid, bool write);
void nodes_unlinked(struct mount *m, uint64_t ino);
void nodes_ghost(struct mount *m, const struct node *n);          /* n lost its last name and its row */
bool nodes_ghost_get(struct mount *m, uint64_t nodeid, struct node *ret);
void nodes_set_kill(struct mount *m, uint64_t nodeid, bool kill);
bool nodes_take_kill(struct mount *m, uint64_t nodeid);           /* true at most once after it was set */
void nodes_set_caps(struct mount *m, uint64_t nodeid);
bool nodes_take_caps(struct mount *m, uint64_t nodeid);           /* likewise */
/* Of an open one: the times as opened, and the ino of the file of its handles: another one if a write made a conflict copy of it. */
bool nodes_view(struct mount *m, uint64_t nodeid, uint64_t *ret_ino, int64_t *ret_mtime_ns, int64_t *ret_ctime_ns);
int nodes_park(struct mount *m, uint64_t nodeid) _must_check_;    /* -ENOMEM */
void nodes_unpark(struct mount *m, uint64_t nodeid);
struct slot *slot_find_locked(struct mount *m, uint64_t nodeid);
/* nodeids of ino that the kernel knows, at most max. */
size_t slots_of_ino_locked(struct mount *m, uint64_t ino, uint64_t *ret, size_t max);
struct hot *hot_of_locked(struct mount *m, uint64_t nodeid);      /* makes it; NULL: no memory or unknown */
void hot_drop_locked(struct mount *m, struct hot *h);             /* frees it if nothing needs it */

/* ---- notify.c ---- */
int notify_start(struct mount *m) _must_check_;
void notify_stop(struct mount *m);
void notify_init(struct mount *m);
void notes_free(struct noted *first);
void note_requeue_locked(struct mount *m, struct noted *first);   /* parked requests ended: to the front */

/* ---- attr.c ---- */
/* What an open stage knows better than n, which was read after file_seals gave `seals`; reads n again if a commit point came between. */
void node_overlay(struct mount *m, struct node *n, uint64_t seals);
void attr_fill(struct mount *m, const struct node *n, struct stat *ret); /* n: with its overlay */
void entry_fill(struct mount *m, const struct node *n, struct fuse_entry_param *ret);
/* The row behind a nodeid, with its overlay. A superseded incarnation: what its open handles show (their conflict copy, if one was made), always under the nodeid's ino; -ESTALE if nobody
 * has it open. */
int node_row(struct mount *m, uint64_t nodeid, struct node *ret, bool *ret_superseded) _must_check_;
int drop_priv(struct mount *m, fuse_req_t req, uint64_t ino) _must_check_; /* suid and sgid go, as the caller's change has it */
int drop_caps(struct mount *m, uint64_t ino) _must_check_;        /* so do capabilities */
bool may_keep_priv(fuse_req_t req);
/* What a change of bytes takes away: 0 SQL unless there is something. */
int take_privileges(struct mount *m, fuse_req_t req, uint64_t nodeid, const struct file *file) _must_check_;
void op_getattr(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi);
void op_setattr(fuse_req_t req, fuse_ino_t nodeid, struct stat *attr, int valid, struct fuse_file_info *fi);
void op_statfs(fuse_req_t req, fuse_ino_t nodeid);
void op_access(fuse_req_t req, fuse_ino_t nodeid, int mask);

/* ---- owner.c ---- */
void owner_show(const struct mount *m, const struct node *n, uint32_t *ret_uid, uint32_t *ret_gid);
/* chown: what is to be stored, into a. uid, gid: NULL: not asked for. -EPERM, -EINVAL (no such id on the server) */
int owner_change(struct mount *m, const struct node *n, const uint32_t *uid, const uint32_t *gid, struct tree_attrs *a) _must_check_;
/* uid, gid and the inherited set-group-id bit of a node that the caller makes in dir. -EOVERFLOW (no such id on the server), as tree_get */
int owner_of_new(struct mount *m, fuse_req_t req, uint64_t dir, struct tree_new *io_what) _must_check_;

/* ---- symlink.c ---- */
int symlink_check(struct mount *m, uint64_t ino, const char *target) _must_check_; /* -EACCES: it may not be read; as tree_get */

/* ---- xattr.c ---- */
void op_setxattr(fuse_req_t req, fuse_ino_t nodeid, const char *name, const char *value, size_t size, int flags);
void op_getxattr(fuse_req_t req, fuse_ino_t nodeid, const char *name, size_t size);
void op_listxattr(fuse_req_t req, fuse_ino_t nodeid, size_t size);
void op_removexattr(fuse_req_t req, fuse_ino_t nodeid, const char *name);

/* ---- name.c ---- */
void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_forget(fuse_req_t req, fuse_ino_t nodeid, uint64_t nlookup);
void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);
void op_readlink(fuse_req_t req, fuse_ino_t nodeid);
void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t parent2, const char *name2, unsigned flags);
void op_link(fuse_req_t req, fuse_ino_t nodeid, fuse_ino_t parent, const char *name);
int node_new(struct mount *m, fuse_req_t req, uint64_t parent, const char *name, uint32_t mode, uint64_t rdev, const char *target, bool opens /* for writing, next: tree_opened */,
             struct node *ret) _must_check_;
#define NAME_OF_UNNAMED "/" /* O_TMPFILE: see io.c */
int reply_entry(struct call *c, const struct node *n) _must_check_;

/* ---- dir.c ---- */
void op_opendir(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi);
void op_releasedir(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi);
void op_readdir(fuse_req_t req, fuse_ino_t nodeid, size_t size, off_t off, struct fuse_file_info *fi);
void op_readdirplus(fuse_req_t req, fuse_ino_t nodeid, size_t size, off_t off, struct fuse_file_info *fi);

/* ---- handle.c ---- */
struct handle { struct handle *next, *prev; /* m->handles */ struct file *file; uint64_t nodeid; bool write; _Atomic int64_t timed_out_ms; /* when a read last waited in vain, monotonic; 0: never */
        struct crawler *crawler; /* or NULL; fixed */ };
static inline struct handle *fi_handle(const struct fuse_file_info *fi) { return fi ? (struct handle *)(uintptr_t)fi->fh : NULL; }
void op_open(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi);
void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
void op_release(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi);
void handles_end(struct mount *m);   /* releases those for which the kernel sent no RELEASE before the connection ended */
void op_fallocate(fuse_req_t req, fuse_ino_t nodeid, int mode, off_t off, off_t len, struct fuse_file_info *fi);
void op_copy_file_range(fuse_req_t req, fuse_ino_t in, off_t off_in, struct fuse_file_info *fi_in, fuse_ino_t out, off_t off_out, struct fuse_file_info *fi_out, size_t len, int flags);
void op_lseek(fuse_req_t req, fuse_ino_t nodeid, off_t off, int whence, struct fuse_file_info *fi);
/* The last handle of a node without a name has gone: so does its row. */
void node_drop(struct mount *m, uint64_t ino);

/* ---- rw.c ---- */
void op_read(fuse_req_t req, fuse_ino_t nodeid, size_t size, off_t off, struct fuse_file_info *fi);
void op_write(fuse_req_t req, fuse_ino_t nodeid, const char *buf, size_t size, off_t off, struct fuse_file_info *fi);
void *worker_buffer(size_t n);       /* this thread's, at least n bytes, valid until its next request; NULL: no memory */
/* A change of names: op replies itself, or fails. If there is no room, clean blocks go and it is tried again; if none can, the request is parked like a write until there is room. */
struct held {
        int (*op)(struct call *c, const struct held *h);
        uint64_t dir, other;
        const char *name, *text; /* text: another name, or a symlink's target; may be NULL */
        uint32_t mode, flags; uint64_t rdev;
        bool adds;               /* rows: not when the disk is nearly full */
        struct fuse_file_info fi;
};
void call_with_room(fuse_req_t req, const struct held *h);
void parks_end(struct mount *m);      /* cancels what is parked and waits until it was answered */
void worker_buffers_free(void);      /* at the end of a worker */

/* ---- closer.c ---- */
int closer_start(struct mount *m) _must_check_;
void closer_stop(struct mount *m);   /* replies -EINTR to who still waits */
void op_flush(fuse_req_t req, fuse_ino_t nodeid, struct fuse_file_info *fi);
void op_fsync(fuse_req_t req, fuse_ino_t nodeid, int datasync, struct fuse_file_info *fi);
void op_fsyncdir(fuse_req_t req, fuse_ino_t nodeid, int datasync, struct fuse_file_info *fi);

/* ---- io.c ---- */
extern const struct fuse_custom_io mount_io;
void op_init(void *userdata, struct fuse_conn_info *conn);
