/* SPDX-License-Identifier: Apache-2.0 */
/* scrub.c: `tarn scrub [DIR]`: everything that a mount keeps on this disk is read and compared (cache/scrub.c). A living daemon does it itself, on a thread of its own, and may fetch again what
 * the server has; without one this program does it under the daemon's lock. Both make the same object:
 *
 *   {"blocks", "blocks_bad", "blocks_healed", "stages", "stages_bad", "stage_bytes", "findings": [{"grade": "ok|warn|bad", "check", "text", "todo"}], "error"?}
 *
 * Exit: 0 if nothing is damaged that only this disk has, else 1. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/args.h"
#include "base/err.h"
#include "base/io.h"
#include "base/thread.h"
#include "cache/scrub.h"
#include "daemon.h"

#define PROGRAM "tarn scrub"
#define SCRUB_MS (INT64_C(24) * 3600 * 1000)

static const char *const grades[] = { [CHECK_OK] = "ok", [CHECK_WARN] = "warn", [CHECK_BAD] = "bad" };

static void add_finding(void *arg, enum check_grade grade, const char *check, const char *text, const char *todo) {
        json_t *j = json_pack("{s:s, s:s, s:s+, s:s}", "grade", grades[grade], "check", check, "text", text, "", "todo", todo);
        if (!j) /* a name that is not UTF-8 */
                j = json_pack("{s:s, s:s, s:s, s:s}", "grade", grades[grade], "check", check, "text", "something that cannot be named", "todo", todo);
        if (grade != CHECK_OK)
                (void)json_array_append_new(arg, j);
        else
                json_decref(j);
}

static json_t *result(int r, const struct scrubbed *s, json_t *findings) {
        json_t *j = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "blocks", (json_int_t)s->blocks, "blocks_bad", (json_int_t)s->blocks_bad, "blocks_healed", (json_int_t)s->blocks_healed, "stages",
                              (json_int_t)s->stages, "stages_bad", (json_int_t)s->stages_bad, "stage_bytes", (json_int_t)s->stage_bytes, "findings", findings);
        if (j && r < 0)
                (void)json_object_set_new(j, "error", json_string(err_name(r)));
        return j;
}

json_t *scrub_cache(struct cache *cache, _Atomic bool *stop) {
        json_t *findings = json_array();
        struct check_report rep = { add_finding, findings };
        struct scrubbed s = { 0 };
        int r = findings ? cache_scrub(cache, stop, &rep, &s) : -ENOMEM;
        return result(r, &s, findings);
}

static json_t *scrub_dead(const struct place_note *p) {
        json_t *findings = json_array();
        struct check_report rep = { add_finding, findings };
        struct scrubbed s = { 0 };
        struct pool *pool = NULL;
        _cleanup_close_ int place = -1, dir = -1;
        _cleanup_free_ char *place_lock = path_join(p->place_dir, "lock"), *lock = path_join(p->cache_dir, "lock");
        int r = findings && place_lock && lock ? file_lock(place_lock, &place) : -ENOMEM;
        if (r == 0)
                r = file_lock(lock, &dir);
        if (r == 0)
                r = pool_new("tarn-work", 2, &pool);
        if (r == 0)
                r = cache_scrub_dir(p->cache_dir, clock_system(), pool_executor(pool), &rep, &s);
        if (pool)
                pool_free(pool);
        return result(r, &s, findings);
}

static int show(const struct place_note *p, json_t *j, bool json) {
        int code = EXIT_OK;
        const json_t *findings = json_object_get(j, "findings");
        for (size_t i = 0; i < json_array_size(findings); i++)
                if (strcmp(answer_str(json_array_get(findings, i), "grade"), grades[CHECK_BAD]) == 0)
                        code = EXIT_OTHER;
        if (*answer_str(j, "error"))
                code = strcmp(answer_str(j, "error"), "EBUSY") == 0 ? EXIT_IN_USE : EXIT_OTHER;
        if (json) {
                _cleanup_buf_ struct buf b = BUF_INIT(8u << 20);
                if (json_object_set_new(j, "mountpoint", json_string(p->mountpoint)) == 0 && json_to_buf(j, &b) == 0 && buf_text(&b))
                        (void)printf("%s\n", b.data);
                return code;
        }
        (void)printf("%s  %lld blocks read, %lld damaged, %lld of them fetched again; %lld pending files read, %lld damaged\n", p->mountpoint, (long long)answer_int(j, "blocks"), (long long)answer_int(j, "blocks_bad"),
                     (long long)answer_int(j, "blocks_healed"), (long long)answer_int(j, "stages"), (long long)answer_int(j, "stages_bad"));
        for (size_t i = 0; i < json_array_size(findings); i++) {
                const json_t *f = json_array_get(findings, i);
                (void)printf("  %-5s %-8s %s\n", answer_str(f, "grade"), answer_str(f, "check"), answer_str(f, "text"));
                if (*answer_str(f, "todo"))
                        (void)printf("                 -> %s\n", answer_str(f, "todo"));
        }
        if (*answer_str(j, "error"))
                (void)cli_fail(PROGRAM, code, "%s: not finished: %s", p->mountpoint, answer_str(j, "error"));
        return code;
}

int cmd_scrub(int argc, char **argv) {
        const char *dir = NULL, *state_option = NULL;
        bool json = false;
        const struct arg table[] = {
                { "DIR", 0, ARG_POSITIONAL_OPTIONAL, &dir, "the mount point, or anything in it, mounted or not; without: all that are known" },
                { "json", 0, ARG_FLAG, &json, "one JSON object per mount, each on one line" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *state = NULL;
        struct place_note *all = NULL;
        size_t n = 0, done = 0;
        int r = args_parse(PROGRAM, table, argc, argv), code = EXIT_OK;
        if (r < 0)
                return args_exit(r);
        r = state_dir(state_option, &state);
        if (r == 0)
                r = place_notes_list(state, &all, &n);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot read the state directory: %s", strerror(-r));
        for (size_t i = 0; i < n; i++) {
                struct mount_info m = { .mountpoint = all[i].mountpoint };
                _cleanup_json_ json_t *j = NULL;
                if (dir && !mount_infos_find(&m, 1, dir))
                        continue;
                done++;
                r = control_ask(all[i].place_dir, "scrub", SCRUB_MS, &j);
                if (r == -ECONNREFUSED || r == -ENOENT)
                        j = scrub_dead(&all[i]);
                int one = j ? show(&all[i], j, json) : cli_fail(PROGRAM, EXIT_OTHER, "the daemon of %s does not answer: %s", all[i].mountpoint, strerror(-r));
                code = one ? one : code;
        }
        place_notes_free(all, n);
        return done ? code : cli_fail(PROGRAM, EXIT_NOT_MOUNTED, "%s was never mounted (state in %s)", dir ? dir : "anything", state);
}
