/* SPDX-License-Identifier: Apache-2.0 */
/* status.c: `tarn status [DIR] [--json]`: asks the daemon over its control socket and shows the answer: for people, or as it came (one JSON object per line, one line
 * per mount). Never touches the mount or the server, so it answers at once whatever they do. control.c says which fields there are. */
#include <stdio.h>
#include <string.h>

#include "base/args.h"
#include "cli.h"

#define PROGRAM "tarn status"
#define ANSWER_MS 5000

static const char *str(const json_t *j, const char *key) {
        const char *s;
        return json_get_str(j, key, &s) == 0 ? s : "";
}

static int64_t num(const json_t *j, const char *key) {
        int64_t v;
        return json_get_int(j, key, INT64_MIN, INT64_MAX, &v) == 0 ? v : 0;
}

static void show(const json_t *j) {
        char pending[24], cache[24], limit[24];
        const json_t *parked = json_object_get(j, "parked");
        format_bytes((uint64_t)num(j, "pending_bytes"), pending);
        format_bytes((uint64_t)num(j, "cache_bytes"), cache);
        format_bytes((uint64_t)num(j, "cache_limit_bytes"), limit);
        (void)printf("%s  %s  %s  (pid %lld)\n", str(j, "mountpoint"), str(j, "state"), str(j, "url"), (long long)num(j, "pid"));
        if (*str(j, "reason"))
                (void)printf("  reason   %s\n", str(j, "reason"));
        if (!json_is_true(json_object_get(j, "mounted")))
                (void)printf("  mount    is just being made\n");
        if (!json_is_true(json_object_get(j, "loaded")))
                (void)printf("  loading  %lld rows so far\n", (long long)num(j, "load_rows"));
        if (num(j, "pending_files") == 0 && num(j, "pending_items") == 0)
                (void)printf("  pending  nothing: everything is on the server\n");
        else
                (void)printf("  pending  %lld files, %lld changes, %s, the oldest for %lld s\n", (long long)num(j, "pending_files"), (long long)num(j, "pending_items"), pending,
                             (long long)num(j, "oldest_pending_s"));
        (void)printf("  files    %lld on the server, %lld local, %lld accepted\n", (long long)num(j, "files_server"), (long long)num(j, "files_local"), (long long)num(j, "files_accepted"));
        (void)printf("  cache    %s of %s\n", cache, limit);
        if (num(j, "held_nodes") > 0) {
                const char *first = json_string_value(json_array_get(json_object_get(j, "held"), 0));
                (void)printf("  held     %lld files and directories that the server does not have any more (%s ...) are kept here; copy what you need, then `tarn accept %s` removes them\n",
                             (long long)num(j, "held_nodes"), first ? first : "?", str(j, "mountpoint"));
        }
        if (num(j, "conflicts"))
                (void)printf("  conflict %lld cop%s: see `tarn conflicts`\n", (long long)num(j, "conflicts"), num(j, "conflicts") == 1 ? "y" : "ies");
        for (size_t i = 0; i < json_array_size(parked); i++) {
                const json_t *p = json_array_get(parked, i);
                (void)printf("  parked   %s: %s, %s (for %lld s, next try in %lld s)\n", str(p, "path"), str(p, "error"), str(p, "reason"), (long long)num(p, "age_s"),
                             (long long)num(p, "next_try_s"));
        }
}

int cmd_status(int argc, char **argv) {
        const char *dir = NULL, *state_option = NULL;
        bool json = false;
        const struct arg table[] = {
                { "DIR", 0, ARG_POSITIONAL_OPTIONAL, &dir, "the mount point, or anything in it; without: all mounts" },
                { "json", 0, ARG_FLAG, &json, "one JSON object per mount, each on one line" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *state = NULL;
        struct mount_info *all = NULL;
        _cleanup_free_ const struct mount_info **found = NULL;
        size_t n = 0;
        int r = args_parse(PROGRAM, table, argc, argv);
        if (r < 0)
                return args_exit(r);
        r = state_dir(state_option, &state);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot find a state directory: %s", strerror(-r));
        int code = find_mounts(PROGRAM, state, dir, &all, &n, &found);
        for (size_t i = 0; code == 0 && found[i]; i++) {
                _cleanup_json_ json_t *answer = NULL;
                _cleanup_buf_ struct buf b = BUF_INIT(8u << 20);
                r = control_ask(found[i]->place_dir, "status", ANSWER_MS, &answer);
                if (r < 0)
                        code = cli_fail(PROGRAM, EXIT_OTHER, "the daemon of %s (pid %d) does not answer: %s", found[i]->mountpoint, (int)found[i]->pid, strerror(-r));
                else if (!json)
                        show(answer);
                else if (json_to_buf(answer, &b) == 0 && buf_text(&b))
                        (void)printf("%s\n", b.data);
        }
        mount_infos_free(all, n);
        return code;
}
