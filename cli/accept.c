/* SPDX-License-Identifier: Apache-2.0 */
/* accept.c: `tarn accept DIR`: the brake (cache/tree_held.c) holds what a snapshot of the server would have removed in bulk; the user says that it may go. The daemon removes it in steps, in the
 * background. */
#include <stdio.h>
#include <string.h>

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
        _cleanup_free_ char *state = NULL;
        _cleanup_free_ const struct mount_info **found = NULL;
        _cleanup_json_ json_t *ok = NULL;
        struct mount_info *all = NULL;
        size_t n = 0;
        int r = args_parse(PROGRAM, table, argc, argv);
        if (r < 0)
                return args_exit(r);
        r = state_dir(state_option, &state);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot find a state directory: %s", strerror(-r));
        int code = find_mounts(PROGRAM, state, dir, &all, &n, &found);
        if (code)
                return code;
        r = control_ask(found[0]->place_dir, "accept", ANSWER_MS, &ok);
        if (r < 0)
                code = cli_fail(PROGRAM, EXIT_OTHER, "the daemon of %s does not answer: %s", dir, strerror(-r));
        else
                (void)printf("what is held at %s is removed in the background; `tarn status` tells when it is done\n", found[0]->mountpoint);
        mount_infos_free(all, n);
        return code;
}
