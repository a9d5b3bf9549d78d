/* SPDX-License-Identifier: Apache-2.0 */
/* model.h: the vocabulary that client, server and wire share: ids, contents, rows, operations, events, results. Plain values; nothing
 * here owns memory unless a comment says so (strings and arrays inside rows are borrowed from whoever filled the row:
 * a decoder's arena, a statement, the caller).
 *
 * A *node* is known by an id that never changes. A *name* (entry) is a (parent, name) -> node row apart from the node.
 * A *content version* and a *placement* are named by the id of the operation that made them. */
#pragma once
#include <linux/limits.h> /* XATTR_NAME_MAX: 255 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ID_BYTES 16
#define DIGEST_BYTES 32
#define NAME_BYTES_MAX 255u
#define SYMLINK_BYTES_MAX 4095u
#define XATTR_VALUE_MAX 65536u
#define XATTR_TOTAL_MAX 131072u  /* of one node, names and values */
#define BATCH_BYTES_MAX (8u << 20)  /* body of one commit, put or packed read answer */
#define BATCH_OPS_MAX 1024u
#define INLINE_BYTES_MAX (128u << 10) /* content up to this may travel inside its operation */
#define LIST_FANOUT 1024u        /* block references in one list page */
#define BLOCK_BYTES_MAX (2u << 20)
#define SNAPSHOT_ROWS_MAX 50000u

struct id { uint8_t b[ID_BYTES]; };          /* all zero = none; node, operation, device, ... */
struct digest { uint8_t b[DIGEST_BYTES]; };  /* SHA-256 */

static inline bool id_equal(const struct id *a, const struct id *b) { return memcmp(a->b, b->b, ID_BYTES) == 0; }
static inline bool digest_equal(const struct digest *a, const struct digest *b) { return memcmp(a->b, b->b, DIGEST_BYTES) == 0; }
static inline bool id_is_zero(const struct id *a) { static const struct id z; return memcmp(a->b, z.b, ID_BYTES) == 0; }
static inline bool digest_is_zero(const struct digest *a) { static const struct digest z; return memcmp(a->b, z.b, DIGEST_BYTES) == 0; }

/* The root directory of every workspace has the id 00..01; it is made with the workspace and has no entry. */
extern const struct id id_root;

/* Lower-case hex; ret must hold 2 * bytes + 1. */
void hex_encode(const void *bytes, size_t n, char *ret);
/* -EINVAL unless text is exactly 2 * n hex digits. */
int hex_decode(const char *text, void *ret_bytes, size_t n);

enum node_kind {
        NODE_FILE = 1, NODE_DIR = 2, NODE_SYMLINK = 3, NODE_FIFO = 4, NODE_SOCKET = 5, NODE_CHAR = 6, NODE_BLOCK = 7,
        NODE_GRAFT = 8,     /* a workspace shown inside another: reserved, refused politely (ERR_UPGRADE) */
        NODE_RESERVED = 9,  /* likewise */
};
uint32_t node_kind_to_mode(enum node_kind kind);           /* S_IFREG, ...; 0 for graft and reserved */
int node_kind_from_mode(uint32_t mode, enum node_kind *ret); /* -EINVAL */

/* The identity of a file's bytes. Blocks are cut by content (base/chunk.h) under the parameter set `param`.
 *   depth 0: no block (size 0, root all zero) or one block (root = its SHA-256)
 *   depth 1: root = SHA-256 of a list page: up to LIST_FANOUT (digest, length) pairs (base/blocklist.h)
 *   depth 2+: a page of pages. Pages are stored and sent like blocks.
 * Equal (root, depth, size, param) = equal bytes. */
struct content {
        struct digest root;
        uint64_t size;      /* bytes */
        uint8_t depth;      /* 0..3 */
        uint8_t param;      /* chunking parameter id; 1 = base/chunk.h as of version 1 */
};
static inline bool content_equal(const struct content *a, const struct content *b) {
        return a->size == b->size && a->depth == b->depth && (a->size == 0 || a->param == b->param) && digest_equal(&a->root, &b->root);
}
static const struct content content_empty = { .param = 1 };

struct blockref { struct digest hash; uint32_t bytes; };

struct xattr { const char *name; const void *value; uint32_t value_bytes; };

/* One node, with its latest version on the row. */
struct node_row {
        struct id id;
        enum node_kind kind;
        uint32_t mode;           /* permission bits only, 07777 */
        uint32_t uid, gid;
        uint64_t rdev;           /* char, block */
        int64_t mtime_ns, ctime_ns, btime_ns; /* since the epoch */
        const char *target;      /* symlink: NUL-terminated; else NULL */
        const struct xattr *xattrs; size_t n_xattrs;
        struct content content;  /* file */
        struct id version;       /* operation that made the content; zero: none yet (dir, special) */
        uint64_t seq;            /* sequence number of the last change to this row */
        bool deleted;            /* tombstone: only id and seq count */
};

struct entry_row {
        uint64_t entry_id;       /* server's key of the name; 0 in operations */
        struct id parent;
        struct id node;
        const char *name; size_t name_bytes; /* 1..255, UTF-8, no '/' or NUL; NUL-terminated too */
        struct id placement;     /* operation that put the name there */
        uint64_t seq;
};

/* A node as an event or a snapshot difference carries it: the row, and (if changed or asked for) its whole list of names. */
struct change {
        struct node_row node;
        bool has_entries;
        const struct entry_row *entries; size_t n_entries;
};

struct event {
        uint64_t seq;
        uint8_t mark[8];         /* random, tells a rolled-back server */
        struct id op;            /* operation that caused it */
        struct id job;           /* of a durable job, or zero */
        const char *actor, *device; /* names, or NULL */
        int64_t time_ns;
        const struct change *changes; size_t n_changes;
};

struct cursor { struct id epoch; uint64_t seq; uint8_t mark[8]; };

/* Field mask of attributes, in operations and in local changes. */
enum attr_mask {
        ATTR_MODE = 1, ATTR_UID = 2, ATTR_GID = 4, ATTR_MTIME = 8, ATTR_BTIME = 16, ATTR_XATTR = 32, ATTR_CTIME = 64,
};

enum op_kind {
        OP_CREATE = 1,   /* new node (id made by the client) with attributes and one name; a file may carry content */
        OP_CONTENT = 2,  /* new version of a file */
        OP_ATTR = 3,     /* named attribute fields; no base */
        OP_LINK = 4,     /* one more name */
        OP_UNLINK = 5,   /* one name less; the last one deletes the node (files, specials; empty directories) */
        OP_RENAME = 6,   /* (parent, name) -> (parent2, name2), replacing `replaced` if given, or exchanging with it */
        OP_REPLACE = 7,  /* new content and attributes for `node`; the sent temporary `source`, if any, goes with its name */
};
enum op_flags {
        OPF_REVIVE = 1,     /* CONTENT: bring back a deleted node and its parents */
        OPF_EXCHANGE = 2,   /* RENAME: swap with the target */
        OPF_INLINE = 4,     /* content travels with the operation */
};

/* One mutation. Which fields count depends on kind; unused ones are zero. Bases: see data-model.md. */
struct op {
        struct id id;                    /* operation id, random, durable before the first send */
        enum op_kind kind;
        uint32_t flags;
        const struct id *after; size_t n_after; /* must have been accepted before, else SKIPPED */
        struct id node;                  /* the node that changes */
        struct id parent; const char *name; size_t name_bytes;    /* place: create, link (new), unlink, rename (from) */
        struct id parent2; const char *name2; size_t name2_bytes; /* rename (to) */
        struct id placement;             /* base of the name removed: unlink, rename, replace (of source's name) */
        struct id version;               /* base content version: content, replace, unlink of the last name of a file */
        struct id replaced;              /* rename: node now at the target; zero = must not exist */
        struct id replaced_version;      /* its content version */
        struct id replaced_placement;    /* rename with exchange */
        struct id source;                /* replace: the temporary node that was sent before, or zero */
        uint32_t attr_mask;              /* create: all given; attr, content, replace: those named */
        struct node_row attrs;           /* kind, mode, uid, gid, rdev, times, target, xattrs (the set after the change; removals by absence when ATTR_XATTR) */
        struct content content;          /* content, replace, create of a file */
        const void *inline_bytes;        /* OPF_INLINE: content.size bytes */
        int64_t time_ns;                 /* when it happened here: data (parent's mtime), never order */
        struct id lease;                 /* made under a lock: accepted only while this lease lasts; zero: none */
};

enum op_code {
        RES_OK = 0, RES_MERGED = 1,      /* accepted; MERGED names the node that stands for ours */
        RES_SKIPPED = 2,                 /* an `after` was not accepted */
        RES_STALE = 3, RES_EXISTS = 4, RES_NOT_FOUND = 5, RES_NOT_EMPTY = 6, RES_CYCLE = 7, RES_QUOTA = 8,
        RES_BLOCKS_MISSING = 9, RES_ID_REUSED = 10, RES_NAME_INVALID = 11, RES_FORBIDDEN = 12, RES_UNSUPPORTED = 13,
        RES_IS_DIR = 14, RES_NOT_DIR = 15, RES_INVALID = 16, RES_TOO_LARGE = 17, RES_CORRUPT = 18, RES_DELETED = 19,
        RES_BUSY = 20,                   /* the server could not decide (database error); try again */
        RES_FENCED = 21,                 /* the lease under which it was made has ended */
};

/* The answer to one operation. Accepted: seq and the rows after it, as its event has them. Refused: the current rows of
 * what it touched, so that no other request is needed to resolve it. */
struct op_result {
        struct id op;
        enum op_code code;
        uint64_t seq; uint8_t mark[8];
        struct id merged_into;
        const struct change *current; size_t n_current;
        const struct digest *missing; size_t n_missing; /* BLOCKS_MISSING */
};
