/* SPDX-License-Identifier: Apache-2.0 */
/* err.c: names of errnos for logs and for the wire's messages. The C library knows them all; we only
 * take either sign and never return NULL, so that a caller can print the result as it is. No state. */
#include "base/err.h"

#include <stdint.h>
#include <string.h>

const char *err_name(int err) {
        if (err == 0)
                return "OK";
        const char *name = err == INT32_MIN ? NULL : strerrorname_np(err < 0 ? -err : err);
        return name ? name : "E?";
}
