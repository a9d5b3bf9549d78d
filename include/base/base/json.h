/* SPDX-License-Identifier: Apache-2.0 */
/* json.h: jansson with our bounds: depth and size limited, duplicate keys refused, getters that say what is wrong. */
#pragma once
#include <jansson.h>
#include <stdbool.h>

#include "base/buf.h"
#include "base/cleanup.h"

static inline void cleanup_json_p(json_t **j) { json_decref(*j); }
#define _cleanup_json_ _cleanup_(cleanup_json_p)
int json_parse(const void *p, size_t n, json_t **ret) _must_check_;                       /* -EINVAL, -ENOMEM */
int json_get_str(const json_t *o, const char *key, const char **ret) _must_check_;        /* -ENOENT absent, -EINVAL other type */
int json_get_int(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *ret) _must_check_;
int json_get_bool(const json_t *o, const char *key, bool *ret) _must_check_;
int json_to_buf(const json_t *j, struct buf *b) _must_check_;                             /* compact, sorted keys not required */
