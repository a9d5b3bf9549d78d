/* SPDX-License-Identifier: Apache-2.0 */
/* seams.h: the two structs through which cache/ calls out, and nothing else. */
#pragma once
#include "base/model.h"

/* One wish for bytes that are not here. Made and owned by the cache (blob.c); the source answers it.
 * Either a range of a content (with list pages if the list is unknown) or single blocks by hash. */
struct fetch {
        struct content content;          /* zero root and size: by hash only */
        uint64_t offset, bytes;          /* range of the content wanted */
        bool pages;                      /* all list pages too */
        const struct digest *hashes; size_t n_hashes; /* blocks wanted; with a known list always this form */
        bool prefetch;                   /* nobody waits */
        /* called by the source, from its own thread, no lock held: */
        /* A block or list page, not yet verified (the callee checks SHA-256 and returns -EBADMSG if wrong; the source then counts it and goes on). */
        int (*block)(struct fetch *f, const struct digest *hash, const void *p, size_t n);
        /* Exactly once, last. err 0: everything that exists was given; -EBADMSG: wrong bytes came (asked for once more); -EHOSTDOWN, -ETIMEDOUT, -EKEYREJECTED, -ENOENT (the server does not have it),
         * -ECANCELED. */
        void (*done)(struct fetch *f, int err);
        void *owner, *priv;              /* blob.c's; the source's */
};
struct source {
        /* 0: done will come. -EHOSTDOWN at once if known to be offline; -ENOMEM. Never blocks, never calls back from inside: the caller holds a blob's lock
         * (RANK_BLOB), so only queue, RANK_QUEUE at most. The same for cancel, which may come while done is on its way: then it does nothing. */
        int (*fetch)(struct source *s, struct fetch *f);
        void (*cancel)(struct source *s, struct fetch *f); /* done still comes */
};

/* What changed without the kernel knowing it: by applied events, resolutions and merges; given after the commit. */
enum note_kind {
        NOTE_ENTRY = 1,  /* (parent, name) now means something else, or nothing: cached entry or negative entry is wrong */
        NOTE_ATTR = 2,   /* attributes of ino changed, not its bytes */
        NOTE_CONTENT = 3,/* bytes (and attributes) of ino changed: drop pages. If its incarnation grew, ENTRY of each of its names comes too: they mean another nodeid now */
        NOTE_LIST = 4,   /* directory ino has other children: drop its cached listing */
};
struct note { enum note_kind kind; uint64_t ino; const char *name; size_t name_bytes; }; /* ENTRY: ino is the parent */

struct listener {
        /* Notes of one committed transaction, in order; copied by the callee; any thread; the callee only queues, takes RANK_QUEUE at most. */
        void (*notes)(struct listener *l, const struct note *notes, size_t n);
        /* Something for the engine: an outbox row came, a stage wants to go up early, room is short. Queues only. */
        void (*wake)(struct listener *l);
        /* May whoever asks for a local change still believe something older of this name, because a note about it is on its way? True once for each note: who was refused (-ESTALE) looks again. May be
         * NULL. Asked inside the transaction, takes RANK_QUEUE at most. */
        bool (*doubts)(struct listener *l, uint64_t dir, const char *name, size_t n);
};
