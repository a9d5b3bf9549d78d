/* SPDX-License-Identifier: Apache-2.0 */
/* portable.h: names that every machine can carry, for workspaces whose name rule is `portable`. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

/* Three times the longest name: NFC and case folding lengthen UTF-8 at most so far. */
#define FOLD_BYTES_MAX (3u * 255u)

/* n bytes that name_check accepts. -EINVAL: Windows or macOS cannot carry it: one of < > : " \ | ? * or a control character, a dot or a space at the end, a name of a device (CON, nul.txt, COM1...), a
 * character that Unicode as this program knows it does not have. Two names are the same name there if their folds (NFC of the case folding) are equal bytes: *ret_n of ret. -ENOMEM. */
int name_fold(const char *name, size_t n, char ret[FOLD_BYTES_MAX], size_t *ret_n) _must_check_;
/* As MAJOR * 100 + MINOR. Folds of characters that it knows never change in a later one. */
unsigned name_fold_unicode(void);
