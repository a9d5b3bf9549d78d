/* SPDX-License-Identifier: Apache-2.0 */
/* view.h: what is shown of a node, as a pure function of the server's row, the pending operations and what was shown before. */
#pragma once
#include "base/buf.h"
#include "base/model.h"

/* Attributes and content of a node, as the server has them or as they are shown. */
struct vrow {
        enum node_kind kind;
        uint32_t mode, uid, gid;
        uint64_t rdev;
        int64_t mtime_ns, ctime_ns, btime_ns;
        struct content content;  /* newest of the server that is shown */
        struct id version;
        uint64_t gen;            /* pending local content, 0: none */
        uint64_t size;           /* of gen or content */
        const uint8_t *extra;    /* packed symlink target and extended attributes (tree_pack.c), NULL: none */
        size_t extra_n;
        bool ctime_set;          /* inside view_fold only */
};
struct vname {
        uint64_t parent, cookie; /* cookie: shown names only */
        const char *name;
        size_t n;
        struct id placement;
        bool local;              /* given by a pending operation */
};
struct vnames { struct vname *v; size_t n; };

/* A pending operation that names the node: as the node that changes, or (second) as the one replaced, exchanged with, or used as source. */
struct view_op {
        const struct op *op;
        bool second;
        uint64_t p1, p2, gen;
        const uint8_t *extra;
        size_t extra_n;
};
struct view_in {
        bool exists;             /* the server has (or had) the node */
        bool own;                /* the server's side changed by an operation of ours just now */
        bool news;               /* the server's row is another one than before */
        bool dir_busy;           /* directory with pending operations on its entries or times */
        const struct vrow *server;
        struct vnames server_names;
        const struct view_op *ops;
        size_t n_ops;
        const struct vrow *before; /* shown until now; NULL: nothing */
};
struct view_out { struct vrow v; struct vnames names; };
/* 0, -ENOMEM. Names and extra are borrowed from the input or live in a. */
int view_fold(const struct view_in *in, struct arena *a, struct view_out *ret) _must_check_;
