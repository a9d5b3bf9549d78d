/* SPDX-License-Identifier: Apache-2.0 */
/* conflict.h: names of conflict copies; the grammar is in conflict.c. The mark's functions that work on rows are in tree_priv.h. */
#pragma once
#include "cache/tree.h"

#define CONFLICT_HOST_MAX 64u
/* What the mark of a copy says (tree_conflict.c). */
struct conflict_mark { struct id copy, original, version; char host[CONFLICT_HOST_MAX + 1]; };
bool conflict_is_mark(const char *xattr_name);
struct conflict_suffix { const char *host; size_t host_bytes; unsigned number; }; /* host: in the name, not terminated */
/* The name has a suffix " (conflict HOST N)" at its end or before its extension. */
bool conflict_parse(const char *name, size_t n, struct conflict_suffix *ret) _must_check_;
/* The host as it is written into names. Returns its bytes (1..64). */
size_t conflict_host(const char *host, char ret[CONFLICT_HOST_MAX + 1]);
/* The first number to try for a conflict name made from this one: greater than its own if it is one of this host. */
unsigned conflict_next(const char *name, size_t n, const char *host) _must_check_;
