/* SPDX-License-Identifier: Apache-2.0 */
/* wait.c: `tarn wait [DIR] [--timeout S]`: 0 as soon as every local change of the mount (of all mounts) is on the server. The daemon does the waiting and answers when it is
 * so. It ends early only if waiting is pointless: signed out, or the server is too new. */
#include <stdio.h>
#include <string.h>

#include "base/args.h"
#include "base/clock.h"
#include "cli.h"

#define PROGRAM "tarn wait"

static int wait_one(const struct mount_info *m, int64_t deadline_ms) {
        _cleanup_close_ int fd = -1;
        _cleanup_json_ json_t *answer = NULL;
        int64_t left = deadline_ms - clock_mono_ms(clock_system()), files, items;
        const char *error, *reason;
        _cleanup_json_ json_t *q = json_pack("{s:s, s:I}", "cmd", "wait", "timeout_ms", (json_int_t)MAX(left, (int64_t)0));
        int r = control_connect(m->place_dir, &fd);
        if (r == 0)
                r = control_send(fd, q);
        if (r == 0)
                r = control_receive(fd, deadline_ms > INT64_MAX - 10000 ? INT64_MAX : deadline_ms + 5000, &answer);
        if (r < 0)
                return cli_fail(PROGRAM, r == -ETIMEDOUT ? EXIT_TIMEOUT : EXIT_NOT_MOUNTED, "the daemon of %s does not answer: %s", m->mountpoint, strerror(-r));
        if (json_get_str(answer, "error", &error) < 0)
                return EXIT_OK;
        if (json_get_str(answer, "reason", &reason) < 0)
                reason = "";
        if (json_get_int(answer, "pending_files", 0, INT64_MAX, &files) < 0)
                files = 0;
        if (json_get_int(answer, "pending_items", 0, INT64_MAX, &items) < 0)
                items = 0;
        if (strcmp(error, "signed_out") == 0)
                return cli_fail(PROGRAM, EXIT_SIGN_IN, "%s: signed out with %lld changes not on the server: sign in again with `tarn login`", m->mountpoint, (long long)items);
        if (strcmp(error, "upgrade_needed") == 0)
                return cli_fail(PROGRAM, EXIT_UPGRADE, "%s: %s", m->mountpoint, reason);
        if (strcmp(error, "timeout") == 0)
                return cli_fail(PROGRAM, EXIT_TIMEOUT, "%s: %lld files and %lld changes are not on the server yet%s%s; see `tarn status`", m->mountpoint, (long long)files, (long long)items,
                            *reason ? ": " : "", reason);
        return cli_fail(PROGRAM, EXIT_OTHER, "%s: %s %s", m->mountpoint, error, reason);
}

int cmd_wait(int argc, char **argv) {
        const char *dir = NULL, *state_option = NULL;
        uint64_t timeout_s = 0;
        const struct arg table[] = {
                { "DIR", 0, ARG_POSITIONAL_OPTIONAL, &dir, "the mount point, or anything in it; without: all mounts" },
                { "timeout", 't', ARG_DURATION_S, &timeout_s, "give up after this time (default: never)" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_(mounts_free) struct mounts m = { 0 };
        int code;
        if (!mounts_of_arguments(PROGRAM, table, argc, argv, &state_option, &dir, &m, &code))
                return code;
        int64_t deadline_ms = timeout_s > 0 ? clock_mono_ms(clock_system()) + (int64_t)MIN(timeout_s, (uint64_t)INT32_MAX) * 1000 : INT64_MAX;
        for (size_t i = 0; code == 0 && m.found[i]; i++)
                code = wait_one(m.found[i], deadline_ms);
        return code;
}
