/* SPDX-License-Identifier: Apache-2.0 */
/* args.h: one table per command gives parsing, --help and the manual's option list. Long options (--name value, --name=value),
 * short ones, -o KEY=VALUE lists, positionals. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/cleanup.h"

/* ARG_LIST: ret is a struct buf *; each time the option is given its value is added, joined by commas (a buffer without a maximum gets one of 64 KiB;
 * buf_text is already called). For options like -o that may be repeated. */
enum arg_type { ARG_FLAG, ARG_STR, ARG_U64, ARG_BYTES, ARG_DURATION_S, ARG_POSITIONAL, ARG_POSITIONAL_OPTIONAL, ARG_LIST };
struct arg {
        const char *name;    /* long name without dashes, or the positional's name */
        char letter;         /* 0: none */
        enum arg_type type;
        void *ret;           /* bool *, const char **, uint64_t *, ... of the type */
        const char *help;
};
/* Parses argv[1..]; table ends with name NULL. -EINVAL after one clear line on stderr that names the word and what is expected (the nearest known option
 * is suggested). -ECANCELED after --help was printed on stdout. */
int args_parse(const char *program, const struct arg *table, int argc, char **argv) _must_check_;
/* One -o list ("a=b,c,d=e", a backslash escapes a comma) against a table of the same kind. Unknown: -EINVAL with a clear line. ARG_STR values are copied and never freed.
 * Names in `ignored` (NULL-terminated, a trailing * is a prefix) are accepted and dropped. */
int args_parse_o(const char *program, const struct arg *table, const char *const *ignored, const char *list) _must_check_;
int parse_bytes(const char *text, uint64_t *ret) _must_check_;      /* 512, 64K, 256M, 2G, 1T (powers of 1,024), "10MiB" */
int parse_duration_s(const char *text, uint64_t *ret) _must_check_; /* 30, 30s, 5m, 2h, 1d */
void format_bytes(uint64_t n, char ret[24]);                        /* "1.5 GiB" */
