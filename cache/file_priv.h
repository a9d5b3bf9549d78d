/* SPDX-License-Identifier: Apache-2.0 */
/* file_priv.h: the inside of the file layer, for file*.c and cache.c only. file.c has the design. */
#pragma once
#include "base/lock.h"
#include "base/thread.h"
#include "cache/file.h"
#include "stage_core.h"

#define QUIET_POINT_MS 30000
#define COMMIT_AGE_MS 300000
#define FLUSH_MS 1000
#define INDEX_MS 60000
#define LISTENERS_MAX 4u

struct file {
        struct files *fs;
        struct file *next;            /* fs->lock: hash chain */
        struct file *open_next, *open_prev; /* fs->lock: files with an open stage */
        _Atomic uint64_t ino;         /* fs->lock to change */
        _Atomic unsigned incarnation; /* likewise */
        unsigned refs;                /* fs->lock: handles, and calls under way */
        unsigned handles, writers;    /* fs->lock */
        unsigned opening;             /* fs->lock: file_open under way: counts as open for the tree, not as a handle that holds the stack */
        bool layered, has_open;       /* fs->lock: top != NULL; top is open */
        enum { NAME_UNKNOWN = 0, NAME_KEPT, NAME_NONE } name; /* fs->lock: of files with an open stage, as of the last look: NONE = deleted, and goes with its last handle */
        uint64_t namings;             /* fs->lock: times that it may have changed */
        bool closing;                 /* fs->lock: cache_close has seen it */
        bool unqueued;                /* fs->lock: tree_content failed, to be tried again */
        struct lock lock;             /* RANK_FILE: below; held over SQL, never over fsync */
        bool loaded;
        struct stage *top;            /* reference; NULL: the content alone */
        struct blob *blob;            /* reference, of content; NULL until needed */
        struct content content;       /* if top is NULL */
        struct id version;            /* of the newest content below a stage to come */
        int error;                    /* to be told at close */
};
struct retire { uint64_t n; /* how many were added before and with it */ struct stage *stage; struct content content; struct id version; struct retire *next; };

struct files {
        struct cache *c;
        struct cache_config cfg;
        char *dir, *lost_dir;
        int lock_fd;
        struct lock lock;             /* RANK_QUEUE: all below */
        struct file **bucket; size_t n_buckets, n;
        struct file *open_first; uint64_t n_open, n_open_by_name[3]; /* of those, with each value of name */
        _Atomic uint64_t seals;       /* contents queued, files that moved to another inode; any thread: file_seals */
        struct listener *listener[LISTENERS_MAX]; size_t n_listeners;
        bool online;
        uint64_t answers;             /* cache_answers */
        /* writers that wait for room */
        struct file_write *wait_first, *wait_last;
        uint64_t room_seq, failed_seq; /* room was freed; at the last -ENOSPC of the blobs */
        uint64_t dirty_limit;
        /* flusher */
        pthread_t thread; bool running, stop, dirty, kicked, flushing;
        int64_t dirty_since_ms, index_due_ms;  /* index: of the blobs, once a minute */
        struct cond work, idle;
        struct retire *retire_first, *retire_last;
        struct content retire_now;    /* of the one that a worker has taken from the list; size 0: none */
        uint64_t retire_added, retire_upto; /* those up to this one were synced and may go */
        unsigned jobs;                /* retire_job is on a worker: 1 */
        struct job retire_job;
        struct cond drained;
        bool log_full;                /* the tree's log wants a checkpoint */
        bool found;                   /* the stages of the last life are in the table; set once, by one thread */
        bool unqueued;                /* some file has a sealed stage whose outbox row failed */
        struct stage *loose;          /* linked by chain: tops of stacks that no file holds (file_commit.c) */
        uint64_t discards, looked;    /* how many were listed; at the last look */
        bool held, going;             /* one that nobody needs waits for whoever works on it (an upload); one goes after this flush */
        struct stage *moved;          /* recovery: linked by moved_next, referenced: their logs do not say yet whose they are. One thread */
        int64_t rescue_due_ms;        /* those of them that are to go to lost+found/ first are tried again. The flusher */
        struct stages_found late;     /* older than the tree file: wait for cache_loaded. One thread until then */
};

/* file.c */
int files_new(struct cache *c, const struct cache_config *cfg, struct files **ret) _must_check_;
void files_free(struct files *fs);
struct file *file_find(struct files *fs, uint64_t ino, int incarnation /* -1: the newest */);
struct file *file_get_or_new(struct files *fs, uint64_t ino, uint16_t incarnation);
void file_put(struct file *f);
void file_update_flags(struct file *f);                /* f->lock held: tells the table what top is */
void file_name_set_locked(struct file *f, unsigned name); /* fs->lock held */
void files_named(void *files, uint64_t ino);           /* the tree has given or taken a name; 0: of any */
int file_open_stage(struct file *f, struct stage **ret) _must_check_;  /* f->lock held: the open stage, made if there is none; reference */
int file_seal(struct file *f, uint64_t *ret_gen) _must_check_;         /* f->lock held */
int file_load_locked(struct file *f, const struct node *node) _must_check_;
int file_blob(struct file *f, struct blob **ret) _must_check_;         /* f->lock held; reference or NULL for the empty content */
uint64_t file_size_locked(struct file *f);
void file_rekey(struct file *f, uint64_t ino, uint16_t incarnation);
int file_stage_identity(struct files *fs, const struct node *node, struct stage_header *ret) _must_check_;
void files_wake(struct files *fs);                     /* the listeners */
void file_pop(struct file *f); /* its top stage leaves the stack, which goes on with what is below. f->lock held */
void file_drop_stack(struct file *f, const struct node *now);          /* f->lock held: the file shows now->content */
void stack_set_ino(struct stage *top, uint64_t ino);                   /* where file_commit.c looks for the stack */
void files_queue_again(struct files *fs);
/* file_io.c */
void file_write_failed(struct file_write *w, int err);
/* file_room.c */
int files_start(struct files *fs) _must_check_;
void files_stop(struct files *fs);
void files_kick(struct files *fs, bool now);
void files_dirty(void *arg);
void files_log_full(void *cache);                      /* the tree wants a sync soon */
void files_room(void *arg);
int file_wait_room(struct file_write *w, bool blobs_full) _must_check_;
int files_flush(struct files *fs) _must_check_;
bool files_room_now(struct files *fs, uint64_t n);
/* file_commit.c */
/* No file holds this stack any more: each of its stages goes after the first sync before which no operation carried it. The only way for a stage to go unless it was committed. Takes the
 * reference of the top; those below are held by it. Any lock may be held. */
void files_discard(struct files *fs, struct stage *top);
void files_loose_look(struct files *fs);               /* which of them may go: before a sync */
void files_loose_go(struct files *fs);                 /* those go: after it. No lock held, one thread */
void files_retire_add(struct files *fs, struct stage *st, const struct content *content, const struct id *version); /* takes the reference */
bool files_retiring(struct files *fs, const struct content *content); /* its bytes are in a stage of that list */
void files_retire(struct files *fs, uint64_t upto); /* hands the list up to that one to the workers; after a sync */
/* file_recover.c */
/* What can be read of it goes to lost+found/. If that fails (there is no room) it stays as it is, and is tried again (files_loose_look) and at the next start. note: its log says so. */
bool files_rescued(struct files *fs, struct stage *st, bool note);
/* The nodes that stages were given are durable, and their rows name them: now their logs may say so, too. Said before, a start that is killed would leave it to the next one, whose tree goes back to the mark
 * and knows nothing of such a node. */
void files_note_moved(struct files *fs);
void files_forget_moved(struct files *fs);             /* the next start does it */
/* cache.c. Adds to the counts. May take what was found for later. */
int files_recover(struct files *fs, struct stages_found *found, bool new_boot, unsigned *ret_recovered, unsigned *ret_lost) _must_check_;
