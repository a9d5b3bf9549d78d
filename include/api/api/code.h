/* SPDX-License-Identifier: Apache-2.0 */
/* code.h: the symbolic codes of the wire and their exact way to an errno and an HTTP status, in one table (api/code.c). */
#pragma once
#include "base/err.h"
#include "base/model.h"

/* "STALE", "BLOCKS_MISSING", ...: of an operation's result. "UNKNOWN" for a value we do not know. */
const char *op_code_name(enum op_code code);
int op_code_errno(enum op_code code);  /* positive errno; 0 for OK and MERGED */

/* Codes of whole requests: {code, message, request_id, retry_after?, current?}. */
struct api_code { const char *code; int http_status; int err; };
/* By symbolic name; NULL if unknown. UNAUTHORIZED 401 EKEYREJECTED, FORBIDDEN 403 EACCES, NOT_FOUND 404 ENOENT, METHOD_NOT_ALLOWED 405 EOPNOTSUPP,
 * CONFLICT 409 EEXIST, CURSOR_GONE 410 EIDRM, PRECONDITION_FAILED 412 ESTALE, TOO_LARGE 413 EMSGSIZE, BAD_RANGE 416 EINVAL, INVALID 400 EINVAL,
 * NAME_INVALID 400 EILSEQ, HASH_MISMATCH 422 EBADMSG, BLOCKS_MISSING 409 ENODATA, QUOTA 507 EDQUOT, NO_SPACE 507 ENOSPC, RATE_LIMITED 429 EAGAIN, UNAVAILABLE 503 EAGAIN,
 * OPERATION_ID_REUSED 409 EALREADY, UPGRADE_NEEDED 426 EPROTONOSUPPORT, INTERNAL 500 EIO, IS_DIR 409 EISDIR, NOT_DIR 409 ENOTDIR, NOT_EMPTY 409 ENOTEMPTY,
 * LOCKED 423 EAGAIN, DEADLOCK 409 EDEADLK, LEASE_ENDED 410 ENOLCK. */
const struct api_code *api_code_find(const char *name);
const struct api_code *api_code_from_errno(int err); /* INTERNAL if none fits */
