/* SPDX-License-Identifier: Apache-2.0 */
/* router.h: the table of routes and the way from a request to its handler. */
#pragma once
#include "api_call.h"

extern const struct route routes[];      /* ends with method NULL */

/* Finds the route of method and path (no query; percent-encoded) and fills in the call's parameters if c is not NULL. -ENOENT no such path; -EOPNOTSUPP the
 * path is known, the method is not (ret_allow gets "GET, PUT"); -EILSEQ a parameter is badly encoded. HEAD finds GET's route where it has none of its own. */
int router_find(const char *method, const char *path, size_t path_bytes, struct call *c, const struct route **ret, char *ret_allow, size_t allow_bytes) _must_check_;
/* Runs the call: route, authentication, handler; errors become answers. 0 or -EINPROGRESS. */
int router_run(struct call *c) _must_check_;
/* "GET /v1/..." per line, for the hidden subcommand `routes`. */
int router_print(struct buf *b) _must_check_;
