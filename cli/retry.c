/* SPDX-License-Identifier: Apache-2.0 */
/* retry.c: `tarn retry [PATH]`: changes that the server refused, or that could not be sent, are parked with a reason and tried again by themselves after a while (cache/outbox_parked.c); somebody who has
 * removed the reason does not want to wait for that. A directory stands for all that is in it; the mount point, or no path, for everything.
 *
 *   {"parked": [{"path", "error", "reason", "attempts", "age_s", "next_try_s"}, ...]}   part of the daemon's status
 *   {"retried": N}                                                                       its answer to a retry */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/args.h"
#include "base/err.h"
#include "daemon.h"

#define PROGRAM "tarn retry"
#define ANSWER_MS 10000
#define RETRY_MAX 16384u /* rows looked at by their paths; all others wait for their time */

/* ---- the daemon's side ---- */

static const char *path_of(struct cache *cache, const struct outbox_item *item, struct buf *path) {
        const char *text = tree_path(cache->tree, item->ino, path) == 0 ? buf_text(path) : NULL;
        return text ? text : item->op.name ? item->op.name : "?";
}

json_t *parked_json(struct cache *cache) {
        _cleanup_arena_ struct arena *a = NULL;
        _cleanup_free_ struct outbox_item *items = calloc(PARKED_LISTED_MAX, sizeof *items);
        json_t *list = json_array();
        size_t n = 0;
        int64_t now_ns = clock_real_ns(clock_system());
        if (!items || !list || arena_new(4u << 20, &a) < 0 || outbox_list(cache->tree, a, true, items, PARKED_LISTED_MAX, &n) < 0)
                return list;
        for (size_t i = 0; i < n; i++) {
                _cleanup_buf_ struct buf path = BUF_INIT(65536);
                json_t *j = json_pack("{s:s, s:s, s:s, s:i, s:I, s:I}", "path", path_of(cache, &items[i], &path), "error", err_name(items[i].error), "reason", items[i].reason, "attempts",
                                      (int)items[i].attempts, "age_s", (json_int_t)(MAX(now_ns - items[i].queued_ns, (int64_t)0) / 1000000000), "next_try_s",
                                      (json_int_t)(MAX(items[i].next_try_ns - now_ns, (int64_t)0) / 1000000000));
                if (j)
                        (void)json_array_append_new(list, j);
        }
        return list;
}

json_t *retry_json(struct cache *cache, const char *path) {
        _cleanup_arena_ struct arena *a = NULL;
        _cleanup_free_ struct outbox_item *items = calloc(RETRY_MAX, sizeof *items);
        static const struct id all;
        struct outbox_totals totals;
        size_t n = 0, retried = 0;
        int r = items ? arena_new(256u << 20, &a) : -ENOMEM;
        bool any = !path || !*path;
        if (r >= 0)
                r = any ? outbox_totals(cache->tree, &totals) : outbox_list(cache->tree, a, true, items, RETRY_MAX, &n);
        if (r >= 0 && any && (r = outbox_unpark(cache->tree, &all)) == 0)
                retried = totals.parked;
        for (size_t i = 0; i < n && r >= 0; i++) {
                _cleanup_buf_ struct buf text = BUF_INIT(65536);
                if (!path_is_at(path_of(cache, &items[i], &text), path))
                        continue;
                r = outbox_unpark(cache->tree, &items[i].op.id);
                retried++;
        }
        return r < 0 ? json_pack("{s:s}", "error", strerror(-r)) : json_pack("{s:I}", "retried", (json_int_t)retried);
}

/* ---- this side ---- */

static int retry_at(const struct mount_info *m, const char *path) {
        _cleanup_json_ json_t *q = json_pack("{s:s, s:s}", "cmd", "retry", "path", path), *answer = NULL;
        const char *error;
        int64_t n;
        int code = mount_query(PROGRAM, m, q, ANSWER_MS, &answer);
        if (code)
                return code;
        if (json_get_int(answer, "retried", 0, INT64_MAX, &n) < 0)
                return cli_fail(PROGRAM, EXIT_OTHER, "%s: %s", m->mountpoint, json_get_str(answer, "error", &error) == 0 ? error : "an answer that makes no sense");
        (void)printf("%s  %lld parked change%s tried again now\n", m->mountpoint, (long long)n, n == 1 ? "" : "s");
        return EXIT_OK;
}

int cmd_retry(int argc, char **argv) {
        const char *path = NULL, *state_option = NULL;
        const struct arg table[] = {
                { "PATH", 0, ARG_POSITIONAL_OPTIONAL, &path, "a file, a directory with all that is in it, or a mount point; without: all mounts" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *state = NULL, *full = NULL;
        _cleanup_(mounts_free) struct mounts m = { 0 };
        int r = args_parse(PROGRAM, table, argc, argv);
        if (r < 0)
                return args_exit(r);
        r = state_dir(state_option, &state);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot find a state directory: %s", strerror(-r));
        if (path && (r = mountpoint_path(path, &full)) < 0)
                return cli_fail(PROGRAM, EXIT_OTHER, "%s: %s", path, strerror(-r));
        int code = find_mounts(PROGRAM, state, full, &m);
        for (size_t i = 0; code == 0 && m.found[i]; i++)
                code = retry_at(m.found[i], path_in_mount(m.found[i], full));
        return code;
}
