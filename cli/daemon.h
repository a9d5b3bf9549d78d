/* SPDX-License-Identifier: Apache-2.0 */
/* daemon.h: one mount from wiring to end. */
#pragma once
#include <signal.h>
#include <stdatomic.h>

#include "cache/file.h"
#include "cache/patrol.h"
#include "fs/mount.h"
#include "cli.h"

struct mount_options {
        const char *cache_dir, *ca_file, *close, *owner, *idmap, *links, *crawlers;
        uint64_t cache_size_bytes, free_floor_bytes, net_timeout_s, drain_timeout_s, scrub_s, uploads, threads; /* sizes 0: chosen by the disk */
        bool ro, allow_other, fastperm, debug, suid, dev, noexec, nosubtype;
        enum close_level close_level; /* from close */
        bool owner_stored;            /* from owner */
        enum symlinks symlinks;       /* from links */
        struct id_range ids[IDMAP_RANGES_MAX]; size_t n_ids; /* from idmap */
};

struct daemon_config {
        const struct mount_options *o;
        const char *program;          /* for error lines */
        const char *state, *base_url, *workspace, *url; /* url: as shown in /proc/mounts */
        const char *mountpoint;       /* absolute */
        const struct place *place;
        int status_fd;                /* one line "CODE MESSAGE\n" goes there when the mount answers or cannot; -1: foreground, errors to stderr */
};
/* Runs a mount to its end on the calling thread; no other thread may exist yet. Returns an exit code. */
int daemon_run(const struct daemon_config *c);

/* ---- scrub.c: on a thread of its own, minutes for a large cache. NULL: no memory. ---- */
json_t *scrub_cache(struct cache *cache, _Atomic bool *stop);

/* ---- conflicts.c: the list, from the local database. NULL: no memory ---- */
json_t *conflicts_json(struct cache *cache);

/* ---- held.c: what the brake holds, a page of it, and sending one (a row without bytes) again. NULL: no memory ---- */
json_t *held_list_json(struct cache *cache, uint64_t after_ino);
json_t *held_send_json(struct cache *cache, uint64_t ino);
json_t *held_of_json(struct cache *cache, uint64_t ino);
json_t *held_seen_json(struct cache *cache, uint64_t ino);

/* ---- retry.c: what is parked, and trying it now (path: relative to the mount point; NULL or "": all). NULL: no memory ---- */
#define PARKED_LISTED_MAX 100u
json_t *parked_json(struct cache *cache);
json_t *retry_json(struct cache *cache, const char *path);

/* ---- guard.c: rules about crawlers ---- */
struct guard { struct crawlers *crawlers; char *paths[2]; size_t n; /* fixed */ };
int guard_open(const char *option /* of -o, or NULL */, struct guard *ret) _must_check_; /* -ENOMEM */
void guard_close(struct guard *g);
void guard_load(struct guard *g);             /* reads them again; says in the log what is wrong */
json_t *guard_json(const struct guard *g, const struct counters *c); /* NULL: no memory */

/* ---- control.c ---- */
struct control;
struct control_config {
        const char *place_dir;
        struct cache *cache;
        /* all called on the control thread, no lock held */
        json_t *(*status)(void *arg);                 /* NULL: no memory */
        int (*unmount)(void *arg, bool lazy);         /* 0, -EBUSY, -EAGAIN: just being mounted, control_poke follows */
        void (*nudge)(void *arg);
        json_t *(*retry)(void *arg, const char *path); /* NULL: all that is parked */
        void (*terminate)(void *arg);                 /* SIGTERM, SIGINT */
        void (*reload)(void *arg);                    /* SIGHUP */
        void (*let_go)(void *arg);                    /* lets go what the brake holds, in the background */
        json_t *(*scrub)(void *arg, _Atomic bool *stop); /* on a thread of its own: may take minutes; ends soon after *stop; NULL: no memory */
        const char *(*hopeless)(void *arg);           /* why waiting is pointless ("signed_out", "upgrade_needed"), or NULL */
        void *arg;
};
/* Blocks the signals that it will read; call before any thread is made. */
void control_block_signals(sigset_t *ret_old);
int control_start(const struct control_config *config, struct control **ret) _must_check_;
/* An unmount that was answered with -EAGAIN is tried again. Any thread, no lock needed. */
void control_poke(struct control *c);
/* No more commands; those who asked for the unmount get `last` (stolen). Joins the threads; the connections of those stay open until the process ends. */
void control_stop(struct control *c, json_t *last);
void control_free(struct control *c);
