/* SPDX-License-Identifier: Apache-2.0 */
/* world.h: what the tests of the tree share: a tree in a private directory under a manual clock, a model of the server that applies operations as the design says,
 * and checks that hold at any moment (the invariants of tree.db, and that settling every node anew changes nothing). */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/tree.h"

#define MUST(e) assert_int_equal((e), 0)

struct world {
        char dir[64], path[96];
        struct clock_manual clock;
        struct rng_seeded rng;
        struct counters counters;
        struct tree *tree;
        struct listener listener;
        struct arena *arena;
        struct { enum note_kind kind; uint64_t ino; char name[64]; } notes[4096];
        size_t n_notes;
        unsigned wakes;
        uint64_t open[64]; /* inos that is_open says yes to */
        size_t n_open;
};

extern const char *world_at, *world_vfs;     /* its directory is made there; NULL or SQLite's VFS that it is opened with */
void world_open(struct world *w, uint64_t seed, unsigned readers);  /* a tree that is loaded: an empty root */
void world_open_bare(struct world *w, uint64_t seed, unsigned readers); /* nothing loaded yet */
#define WORLD_SUMS 4
void world_sums(struct tree *t, uint64_t ret[WORLD_SUMS]); /* all that the rows of nodes, names, the outbox and shadows say, but for what an open may change */
void world_reopen(struct world *w, unsigned readers);
void world_close(struct world *w);
bool world_is_open(void *arg, uint64_t ino);
bool world_kept(void *arg, uint64_t ino);    /* the same set */
uint64_t world_seed(void);                   /* TARN_TEST_SEED or fresh; printed */
unsigned world_scale(void);
bool world_noted(const struct world *w, enum note_kind kind, uint64_t ino, const char *name);
void world_check(struct world *w);           /* invariants */
void world_print(struct world *w);           /* all rows, for a failure */

/* Short forms. */
struct node make(struct world *w, uint64_t dir, const char *name, enum node_kind kind);
struct node look(struct world *w, uint64_t dir, const char *name);    /* fails the test if absent */
int look_error(struct world *w, uint64_t dir, const char *name);      /* 0 or the error */
int rm(struct world *w, uint64_t dir, const char *name);
int rmdir_at(struct world *w, uint64_t dir, const char *name);
int mv(struct world *w, uint64_t dir, const char *name, uint64_t dir2, const char *name2, unsigned flags);
uint64_t put_content(struct world *w, uint64_t ino, uint64_t gen, uint64_t size); /* returns the dropped generation */
int chmod_to(struct world *w, uint64_t ino, uint32_t mode);
size_t outbox_all(struct world *w, struct outbox_item *items, size_t max);      /* in order; strings in w->arena */
size_t outbox_ready(struct world *w, struct outbox_item *items, size_t max, int64_t *ret_wait_ms);

/* ---- the model of the server ---- */
#define MODEL_NODES 4096
#define MODEL_ENTRIES 4096
struct model_node { struct node_row row; struct id created_by; };
struct model_entry { struct entry_row row; char name[NAME_BYTES_MAX + 1]; bool live; };
struct model {
        struct model_node nodes[MODEL_NODES];
        size_t n_nodes;
        struct model_entry entries[MODEL_ENTRIES];
        size_t n_entries;
        struct { struct id from, to; } alias[256];
        size_t n_alias;
        struct { struct id op, placement, version; /* that a merged one stands for */ struct op_result result; } *done; /* accepted operations */
        size_t n_done, done_room;
        struct event *log;
        size_t n_log, log_room;
        uint64_t seq, next_entry;
        struct id epoch;
        struct rng_seeded rng;
        struct arena *arena; /* rows of results and events */
};
void model_open(struct model *m, uint64_t seed);
void model_close(struct model *m);
/* Judges and applies; the result lives in the model's arena. */
struct op_result model_commit(struct model *m, const struct op *op);
struct model_node *model_find(struct model *m, const struct id *id);   /* aliases too; NULL */
struct model_entry *model_at(struct model *m, const struct id *parent, const char *name);
struct cursor model_cursor(const struct model *m, uint64_t seq);
/* Operations of another client. */
struct id model_make(struct model *m, const struct id *parent, const char *name, enum node_kind kind, uint64_t size);
int model_write(struct model *m, const struct id *node, uint64_t size);
int model_chmod(struct model *m, const struct id *node, uint32_t mode);
int model_rename(struct model *m, const struct id *parent, const char *name, const struct id *parent2, const char *name2);
int model_unlink(struct model *m, const struct id *parent, const char *name);

/* Events after `from` up to `to` into the tree. */
void sync_events(struct world *w, struct model *m, uint64_t from, uint64_t to);
/* All events that the tree has not seen. */
void sync_down(struct world *w, struct model *m);
/* One round of what the engine does: what may go is sent, judged, and its answers handled as the planner does it. Returns the number of operations handled. */
size_t sync_up(struct world *w, struct model *m);
void sync_refused(struct world *w, const struct outbox_item *item, const struct op *op /* as it was sent */, const struct op_result *r);
/* Until nothing is left; fails the test if it does not end. */
void sync_all(struct world *w, struct model *m);
struct content model_content(uint64_t gen, uint64_t size);
/* Tree and model show the same: names, kinds, modes, content versions. */
void compare(struct world *w, struct model *m);
extern void (*load_before_step)(struct world *w); /* as the engine does; NULL: nothing */
void load_snapshot(struct world *w, struct model *m, size_t page, size_t step);
