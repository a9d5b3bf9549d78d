/* SPDX-License-Identifier: Apache-2.0 */
/* api_files.h: what reading (api_files.c), writing (api_put.c) and versions (api_versions.c) by path share. */
#pragma once
#include "api_call.h"

/* Whether an If-Match / If-None-Match list names the tag ("*" does); weak: W/ tags count too. */
bool etag_in_list(const char *list, const char *etag, bool weak);
/* call_path with its error answered: true = answered. */
int files_path(struct call *c, const char *encoded, const char **ret);
