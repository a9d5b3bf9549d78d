/* SPDX-License-Identifier: Apache-2.0 */
/* accept.c: `tarn accept DIR`: the brake (cache/tree_held.c) holds what a snapshot of the server would have removed in bulk; the user says that it may go. The daemon removes it in steps, in the
 * background. */
#include <stdio.h>

#include "base/args.h"
#include "cli.h"

#define PROGRAM "tarn accept"
#define ANSWER_MS 5000

int cmd_accept(int argc, char **argv) {
        const char *dir = NULL, *state_option = NULL;
        const struct arg table[] = {
                { "DIR", 0, ARG_POSITIONAL, &dir, "the mount point, or anything in it" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_(mounts_free) struct mounts m = { 0 };
        _cleanup_json_ json_t *ok = NULL;
        int code;
        if (!mounts_of_arguments(PROGRAM, table, argc, argv, &state_option, &dir, &m, &code))
                return code;
        code = mount_ask(PROGRAM, m.found[0], "accept", ANSWER_MS, &ok);
        if (code == 0)
                (void)printf("what is held at %s is removed in the background; `tarn status` tells when it is done\n", m.found[0]->mountpoint);
        return code;
}
