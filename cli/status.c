/* SPDX-License-Identifier: Apache-2.0 */
/* status.c: `tarn status [DIR] [--json]`: asks the daemon over its control socket and shows the answer: for people, or as it came (one JSON object per line, one line
 * per mount). Never touches the mount or the server, so it answers at once whatever they do. control.c says which fields there are. */
#include <stdio.h>
#include <string.h>

#include "base/args.h"
#include "cli.h"

#define PROGRAM "tarn status"
#define ANSWER_MS 5000

static void show(const json_t *j) {
        char pending[24], cache[24], limit[24];
        const json_t *parked = json_object_get(j, "parked");
        format_bytes((uint64_t)answer_int(j, "pending_bytes"), pending);
        format_bytes((uint64_t)answer_int(j, "cache_bytes"), cache);
        format_bytes((uint64_t)answer_int(j, "cache_limit_bytes"), limit);
        (void)printf("%s  %s  %s  (pid %lld)\n", answer_str(j, "mountpoint"), answer_str(j, "state"), answer_str(j, "url"), (long long)answer_int(j, "pid"));
        if (*answer_str(j, "reason"))
                (void)printf("  reason   %s\n", answer_str(j, "reason"));
        if (!json_is_true(json_object_get(j, "mounted")))
                (void)printf("  mount    is just being made\n");
        if (!json_is_true(json_object_get(j, "loaded")))
                (void)printf("  loading  %lld rows so far\n", (long long)answer_int(j, "load_rows"));
        if (answer_int(j, "pending_files") == 0 && answer_int(j, "pending_items") == 0)
                (void)printf("  pending  nothing: everything is on the server\n");
        else
                (void)printf("  pending  %lld files, %lld changes, %s, the oldest for %lld s\n", (long long)answer_int(j, "pending_files"), (long long)answer_int(j, "pending_items"), pending,
                             (long long)answer_int(j, "oldest_pending_s"));
        (void)printf("  files    %lld on the server, %lld local, %lld accepted\n", (long long)answer_int(j, "files_server"), (long long)answer_int(j, "files_local"), (long long)answer_int(j, "files_accepted"));
        (void)printf("  cache    %s of %s\n", cache, limit);
        const json_t *s = json_object_get(j, "scrub");
        if (strcmp(answer_str(s, "round"), "reading") == 0 || strcmp(answer_str(s, "round"), "urgent") == 0)
                (void)printf("  scrub    %lld of %lld cached blocks read%s", (long long)answer_int(s, "blocks"), (long long)answer_int(s, "blocks_total"), strcmp(answer_str(s, "round"), "urgent") == 0 ? " after an unclean stop of the machine" : "");
        else
                (void)printf("  scrub    %s", json_is_null(s) ? "never (-o scrub=0)" : answer_int(s, "finished_s") ? "all was read" : "begins soon");
        if (answer_int(s, "blocks_bad"))
                (void)printf("; %lld were damaged, %lld of them fetched again", (long long)answer_int(s, "blocks_bad"), (long long)answer_int(s, "blocks_healed"));
        if (answer_int(s, "stages_bad"))
                (void)printf("; %lld pending files are damaged: see `tarn scrub %s`", (long long)answer_int(s, "stages_bad"), answer_str(j, "mountpoint"));
        (void)printf("\n");
        if (answer_int(j, "held_nodes") > 0) {
                const char *first = json_string_value(json_array_get(json_object_get(j, "held"), 0));
                (void)printf("  held     %lld files and directories that the server does not have (any more) (%s ...) are kept here; `tarn held` lists them, sends them again (--send) or removes them (--drop; `tarn accept %s`: all)\n",
                             (long long)answer_int(j, "held_nodes"), first ? first : "?", answer_str(j, "mountpoint"));
        }
        if (answer_int(j, "rescues"))
                (void)printf("  rescue   %lld damaged or unknown pending files wait for room in %s/lost+found: they are tried again each minute\n", (long long)answer_int(j, "rescues"), answer_str(j, "cache_dir"));
        const json_t *guard = json_object_get(j, "crawlers"), *wrong = json_object_get(guard, "errors");
        if (answer_int(guard, "refused"))
                (void)printf("  crawlers %lld reads were refused, the last of %s (pid %lld): see CRAWLERS in tarn(1)\n", (long long)answer_int(guard, "refused"), answer_str(guard, "last"), (long long)answer_int(guard, "last_pid"));
        for (size_t i = 0; i < json_array_size(wrong); i++)
                (void)printf("  rules    %s\n", json_string_value(json_array_get(wrong, i)));
        if (answer_int(j, "conflicts"))
                (void)printf("  conflict %lld cop%s: see `tarn conflicts`\n", (long long)answer_int(j, "conflicts"), answer_int(j, "conflicts") == 1 ? "y" : "ies");
        for (size_t i = 0; i < json_array_size(parked); i++) {
                const json_t *p = json_array_get(parked, i);
                (void)printf("  parked   %s: %s, %s (for %lld s, next try in %lld s)\n", answer_str(p, "path"), answer_str(p, "error"), answer_str(p, "reason"), (long long)answer_int(p, "age_s"),
                             (long long)answer_int(p, "next_try_s"));
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
        _cleanup_(mounts_free) struct mounts m = { 0 };
        int code;
        if (!mounts_of_arguments(PROGRAM, table, argc, argv, &state_option, &dir, &m, &code))
                return code;
        for (size_t i = 0; code == 0 && m.found[i]; i++) {
                _cleanup_json_ json_t *answer = NULL;
                _cleanup_buf_ struct buf b = BUF_INIT(8u << 20);
                code = mount_ask(PROGRAM, m.found[i], "status", ANSWER_MS, &answer);
                if (code == 0 && !json)
                        show(answer);
                else if (code == 0 && json_to_buf(answer, &b) == 0 && buf_text(&b))
                        (void)printf("%s\n", b.data);
        }
        return code;
}
