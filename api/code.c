/* SPDX-License-Identifier: Apache-2.0 */
/* code.c: the two tables of code.h. A name is for people and scripts, the number or status for programs; both lead to the same errno. Names are part
 * of the API: never changed, only added.
 *
 * An errno that several codes share finds the first of them in the table: order them from the general to the special. */
#include "api/code.h"

#include "base/cleanup.h"

static const struct { enum op_code code; const char *name; int err; } op_codes[] = {
        { RES_OK, "OK", 0 },
        { RES_MERGED, "MERGED", 0 },
        { RES_SKIPPED, "SKIPPED", ECANCELED },
        { RES_STALE, "STALE", ESTALE },
        { RES_EXISTS, "EXISTS", EEXIST },
        { RES_NOT_FOUND, "NOT_FOUND", ENOENT },
        { RES_NOT_EMPTY, "NOT_EMPTY", ENOTEMPTY },
        { RES_CYCLE, "CYCLE", ELOOP },
        { RES_QUOTA, "QUOTA", EDQUOT },
        { RES_BLOCKS_MISSING, "BLOCKS_MISSING", ENODATA },
        { RES_ID_REUSED, "OPERATION_ID_REUSED", EALREADY },
        { RES_NAME_INVALID, "NAME_INVALID", EILSEQ },
        { RES_FORBIDDEN, "FORBIDDEN", EACCES },
        { RES_UNSUPPORTED, "UNSUPPORTED", EOPNOTSUPP },
        { RES_IS_DIR, "IS_DIR", EISDIR },
        { RES_NOT_DIR, "NOT_DIR", ENOTDIR },
        { RES_INVALID, "INVALID", EINVAL },
        { RES_TOO_LARGE, "TOO_LARGE", EFBIG },
        { RES_CORRUPT, "CORRUPT", EBADMSG },
        { RES_DELETED, "DELETED", EOWNERDEAD },
        { RES_BUSY, "BUSY", EAGAIN },
        { RES_FENCED, "FENCED", ENOLCK },
};

const char *op_code_name(enum op_code code) {
        for (size_t i = 0; i < ARRAY_SIZE(op_codes); i++)
                if (op_codes[i].code == code)
                        return op_codes[i].name;
        return "UNKNOWN";
}

int op_code_errno(enum op_code code) {
        for (size_t i = 0; i < ARRAY_SIZE(op_codes); i++)
                if (op_codes[i].code == code)
                        return op_codes[i].err;
        return EPROTO;
}

static const struct api_code api_codes[] = {
        { "INVALID", 400, EINVAL },
        { "NAME_INVALID", 400, EILSEQ },
        { "UNAUTHORIZED", 401, EKEYREJECTED },
        { "FORBIDDEN", 403, EACCES },
        { "NOT_FOUND", 404, ENOENT },
        { "METHOD_NOT_ALLOWED", 405, EOPNOTSUPP },
        { "CONFLICT", 409, EEXIST },
        { "BLOCKS_MISSING", 409, ENODATA },
        { "OPERATION_ID_REUSED", 409, EALREADY },
        { "IS_DIR", 409, EISDIR },
        { "NOT_DIR", 409, ENOTDIR },
        { "NOT_EMPTY", 409, ENOTEMPTY },
        { "DEADLOCK", 409, EDEADLK },
        { "CURSOR_GONE", 410, EIDRM },
        { "LEASE_ENDED", 410, ENOLCK },
        { "PRECONDITION_FAILED", 412, ESTALE },
        { "TOO_LARGE", 413, EMSGSIZE },
        { "BAD_RANGE", 416, EINVAL },
        { "HASH_MISMATCH", 422, EBADMSG },
        { "UPGRADE_NEEDED", 426, EPROTONOSUPPORT },
        { "UNAVAILABLE", 503, EAGAIN },
        { "RATE_LIMITED", 429, EAGAIN },
        { "LOCKED", 423, EAGAIN },
        { "INTERNAL", 500, EIO },
        { "QUOTA", 507, EDQUOT },
        { "NO_SPACE", 507, ENOSPC },
};

const struct api_code *api_code_find(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(api_codes); i++)
                if (strcmp(api_codes[i].code, name) == 0)
                        return &api_codes[i];
        return NULL;
}

const struct api_code *api_code_from_errno(int err) {
        if (err < 0)
                err = -err;
        for (size_t i = 0; i < ARRAY_SIZE(api_codes); i++)
                if (api_codes[i].err == err)
                        return &api_codes[i];
        return api_code_find("INTERNAL");
}
