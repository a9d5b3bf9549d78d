/* SPDX-License-Identifier: Apache-2.0 */
/* sim.h: a world of one server and some clients on one thread, under one seed.
 *
 *   real                                     given by the world
 *   the engine, tree, stages, blobs          the clock (moved by hand, only when nothing can happen now)
 *   the whole server (service_handle)        randomness (one seeded generator per party)
 *   the wire format, both codecs             the network (net.c), the workers (jobs run in seeded order)
 *
 * A turn of the world picks one thing that can happen now, at random: a worker's job, a client's engine_step, a message that arrives, a local operation. So the
 * seed alone decides the order of everything, and running it twice gives the same trace (its digest is printed).
 *
 * Safety and liveness are two phases: first operations and faults (trouble.c: lost requests, lost answers, duplicates, 503, stalls, disconnections, killed clients, power cuts, clients that
 * are rolled back or cloned, a horizon that passes them by, full disks, expired tokens, a quota), then healing: no faults, no operations, until everything is quiet; then the oracle (oracle.c) speaks. */
#pragma once
#include <stdio.h>

#include "api/client.h"
#include "api/wire.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/thread.h"
#include "cache/file.h"
#include "server/service.h"
#include "sync/engine.h"

#define CLIENTS_MAX 5u
#define HANDLES_MAX 4u

/* Bytes that some client wrote into a file and closed. */
struct text {
        unsigned number, writer;
        uint8_t *bytes; size_t n;
        struct content content;
        bool superseded;        /* somebody who saw it wrote over it or removed its file */
        bool durable;           /* closed: from here on it must not vanish */
        bool shared;            /* several clients wrote the same bytes (meet.c): only what no cut and no rollback may have taken counts */
        bool local;             /* and its writer's cache was synced since: a power cut does not take it */
};

struct world;
struct client;

/* What happened; each is in the last line of a run, so that one sees that it does happen. */
enum sim_count {
        SIM_TURNS, SIM_OPERATIONS, SIM_COMMITTED, SIM_REFUSED, SIM_CONFLICTS, SIM_CRASHES, SIM_POWER_CUTS, SIM_PAGES_LOST, SIM_ROLLBACKS, SIM_CLONES, SIM_HORIZONS, SIM_GONE, SIM_FULL,
        SIM_EXPIRED, SIM_QUOTA, SIM_LINKS, SIM_EXCHANGES, SIM_XATTRS, SIM_SERVER_ROLLBACKS, SIM_EPOCHS, SIM_NEWER,
        /* the conflict table: local | on the server already (table.c) */
        SIM_ROW_EDIT_SAME, SIM_ROW_EDIT_EDIT, SIM_ROW_EDIT_DELETE, SIM_ROW_DELETE_EDIT, SIM_ROW_DELETE_RENAME, SIM_ROW_OVER_EDIT, SIM_ROW_RENAME_CREATE, SIM_ROW_RENAME_RENAME,
        SIM_ROW_RENAME_EDIT, SIM_ROW_RENAME_DELETE, SIM_ROW_INTO_DELETED, SIM_ROW_CYCLE, SIM_ROW_RMDIR_CHILD, SIM_ROW_CREATE_SAME, SIM_ROW_CREATE_CREATE, SIM_ROW_MKDIR_MKDIR,
        SIM_ROW_FILE_DIR, SIM_ROW_ATTR_ATTR, SIM_COUNTS
};
#define SIM_ROWS SIM_ROW_EDIT_SAME /* the first of them */
extern const char *const sim_count_name[SIM_COUNTS];

/* One message under way (net.c). */
enum message_state { MSG_GOING, MSG_PARKED, MSG_COMING, MSG_DEAD };
/* What it meets on its way; the first of them at random. */
enum fate { FATE_LOST, FATE_ANSWER_LOST, FATE_TWICE, FATE_BUSY, FATE_STALLS, FATES_AT_RANDOM, FATE_ERROR = FATES_AT_RANDOM, FATE_GATEWAY, FATE_CUT, FATE_PORTAL, FATE_EMPTY, FATES, FATE_NONE = FATES };
struct message {
        struct message *next;
        struct client *client;
        struct http_call *call;
        enum message_state state;
        int64_t at;
        uint64_t order;
        int err;                /* what the client will see instead of an answer */
        int refuse, status;     /* answered by somebody else: instead of the server, after it */
        const char *page;       /* with this body */
        bool lose_answer, twice, cut, ready, cancelled;
        struct service_waiter waiter;
        struct service_answer answer; bool has_answer;
};

struct handle { bool used; uint64_t ino; struct file *file; struct text *text; /* as last written through it */ bool unlinked; };
struct gen_text { uint64_t gen; struct text *text; };
struct reading;

struct client {
        struct world *w;
        unsigned index;
        char name[16], dir[300];
        struct cache *cache;
        struct engine *engine;
        struct transport transport;
        struct executor executor;
        struct counters counters;
        struct rng_seeded rng;
        bool connected, woken, up, crashing, has_backup;
        size_t backup_texts;    /* texts that there were when the backup was made */
        int64_t expired_until;  /* its token is not accepted */
        int64_t step_at, flush_at;
        struct job *jobs, **jobs_end; size_t n_jobs;
        struct handle handles[HANDLES_MAX];
        struct gen_text *gens; size_t n_gens;
        uint64_t spoiled[64]; size_t n_spoiled; /* files with a write that was refused */
        struct reading *readings;
        unsigned incarnation;
};

struct world {
        uint64_t seed;
        struct rng_seeded rng, server_rng;
        struct clock_manual clock;
        struct counters counters;
        struct service *server;
        char dir[240], authorization[120];
        char server_dir[300];    /* "": it lives in memory */
        bool has_backup; size_t server_texts; /* of the server, and the texts that there were then */
        struct client clients[CLIENTS_MAX + 1]; /* the last one comes at the end and sees only what the server has */
        unsigned n_clients;
        struct message *messages; uint64_t order;
        bool faults, operations, verbose;
        bool waiting;            /* for people: operations stay parked */
        bool power;              /* power cuts: what is not synced is remembered (disk.c) */
        unsigned trouble;        /* chance of a fault per message, per mille */
        unsigned rough;          /* chance of a disturbance per operation, per mille */
        struct client *full; int64_t full_until; /* whose disk is full */
        int64_t quota_until;     /* the workspace's quota is used up */
        uint64_t cuts;
        uint64_t limit_bytes;    /* of the caches that are opened; 0: they have room enough */
        enum fate (*fate)(const struct message *m); /* NULL: at random */
        int64_t next_op_at;
        struct text **texts; size_t n_texts;
        struct told *told; size_t n_told; /* table.c's */
        struct sha256_state *trace;
        uint64_t turns, ops_done, count[SIM_COUNTS];
        char why[1000];          /* what went wrong */
        unsigned next_name;
};

uint64_t pick(struct world *w, uint64_t bound);
bool chance(struct world *w, unsigned per_mille);
void trace(struct world *w, const char *fmt, ...) _printf_(2, 3);
/* Remembers the first thing that went wrong; the scenario ends. */
int wrong(struct world *w, const char *fmt, ...) _printf_(2, 3);

/* net.c */
void net_transport(struct client *c);
bool net_due(const struct world *w, const struct message *m);
int64_t net_time(const struct world *w, const struct message *m);
void net_run(struct world *w, struct message *m);
void net_cut(struct client *c);
int net_server_at(struct world *w, struct cursor *ret);

/* world.c */
int world_open(struct world *w, uint64_t seed, const char *base /* directory */, bool verbose) _must_check_;
int world_open_quiet(struct world *w, uint64_t seed, const char *base, bool verbose) _must_check_; /* the same without clients and troubles */
void world_remove(const char *path); /* a tree of files */
void world_close(struct world *w);
int client_up(struct client *c) _must_check_;
enum down { DOWN_CLEAN, DOWN_KILLED, DOWN_POWER, DOWN_ROLLED_BACK /* to its backup */ };
int client_down(struct client *c, enum down how) _must_check_;
int client_backup(struct client *c) _must_check_;
int server_backup(struct world *w) _must_check_;
int server_rollback(struct world *w) _must_check_; /* to its backup */
int client_clone(struct client *c) _must_check_;  /* there is a place for one more */
/* One turn; false: nothing can happen any more before `until`. */
bool world_turn(struct world *w, int64_t until);

/* trouble.c */
void disturb(struct world *w);
void trouble_tick(struct world *w);  /* what lasts for a while ends */
void trouble_end(struct world *w);

/* table.c */
void table_commit(struct client *c, const struct buf *request, const struct buf *answer); /* frames of operations, frames of their results */

/* ops.c */
void op_random(struct world *w, struct client *c);
void op_meet(struct client *c); /* meet.c */
/* Steps of operations, traced and checked. Directories and files by inode; -errno of the tree if it is an ordinary one, what is not ends the scenario. */
struct text *text_new(struct client *c);
struct text *text_of_size(struct client *c, size_t n);
void supersede(struct client *c, const struct node *n);
uint64_t random_dir(struct client *c);
bool random_entry(struct client *c, int kind, uint64_t *ret_dir, struct tree_entry *ret);
int make_file(struct client *c, uint64_t dir, const char *name, size_t n, struct node *ret) _must_check_;
int make_dir(struct client *c, uint64_t dir, const char *name);
int write_text(struct client *c, const struct node *n, struct text *t);
int remove_name(struct client *c, uint64_t dir, const char *name);
int rename_to(struct client *c, uint64_t dir, const char *name, size_t k, uint64_t dir2, const char *name2, size_t k2);
int move_dir(struct client *c, uint64_t ino, uint64_t to, const char *name);
void op_close_all(struct client *c);
void heal_spoiled(struct client *c);
struct text *text_find(struct world *w, const struct content *content);
struct text *text_of_node(struct client *c, const struct node *n);
int read_whole(struct client *c, const struct node *n, struct buf *ret) _must_check_; /* turns the world until it is there */
void readings_forget(struct client *c);
bool readings_none(const struct client *c);

/* oracle.c */
int oracle_quiet(struct world *w, bool *ret);
int oracle_wait(struct world *w, const char *what) _must_check_; /* until it is quiet */
int oracle_check(struct world *w) _must_check_;
