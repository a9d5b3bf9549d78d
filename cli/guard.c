/* SPDX-License-Identifier: Apache-2.0 */
/* guard.c: where the rules about crawlers come from (fs/crawlers.c reads them), when, and what is told of them. -o crawlers=FILE names the one file that counts, -o crawlers=none no file; else
 * first the user's, $XDG_CONFIG_HOME/tarn/crawlers (~/.config/tarn/crawlers), then the machine's: so who mounts has the first word, on a mount of root's root. Read before the mount is there
 * and at SIGHUP, on the control thread: two small files of a local disk. */
#include <stdio.h>
#include <string.h>

#include "base/io.h"
#include "base/log.h"
#include "daemon.h"

#define MACHINE_FILE TARN_SYSCONFDIR "/tarn/crawlers"

static char *user_file(void) {
        const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
        if (config && *config == '/')
                return path_join(config, "tarn/crawlers");
        return home && *home == '/' ? path_join(home, ".config/tarn/crawlers") : NULL;
}

int guard_open(const char *option, struct guard *ret) {
        struct guard g = { 0 };
        int r = crawlers_new(&g.crawlers);
        if (r < 0)
                return r;
        if (option && strcmp(option, "none") != 0)
                g.paths[g.n++] = strdup(option);
        if (!option && (g.paths[g.n] = user_file()))
                g.n++;
        if (!option)
                g.paths[g.n++] = strdup(MACHINE_FILE);
        for (size_t i = 0; i < g.n; i++)
                if (!g.paths[i]) {
                        guard_close(&g);
                        return -ENOMEM;
                }
        guard_load(&g);
        *ret = g;
        return 0;
}

void guard_close(struct guard *g) {
        crawlers_free(g->crawlers);
        for (size_t i = 0; i < g->n; i++)
                free(g->paths[i]);
        *g = (struct guard){ 0 };
}

void guard_load(struct guard *g) {
        struct crawlers_status s;
        int r = crawlers_load(g->crawlers, (const char *const *)g->paths, g->n);
        crawlers_status(g->crawlers, &s);
        if (r < 0)
                log_warn("event=crawlers error=%s rules=%zu: those of before", strerrorname_np(-r), s.rules);
        for (size_t i = 0; i < MIN(s.n_errors, (size_t)CRAWLER_ERRORS_KEPT); i++)
                log_warn("event=crawlers %s", s.errors[i]);
        if (s.rules || s.n_errors)
                log_info("event=crawlers rules=%zu errors=%zu", s.rules, s.n_errors);
}

json_t *guard_json(const struct guard *g, const struct counters *c) {
        struct crawlers_status s;
        crawlers_status(g->crawlers, &s);
        json_t *errors = json_array(), *last = json_string(s.last); /* a name need not be UTF-8 */
        for (size_t i = 0; errors && i < MIN(s.n_errors, (size_t)CRAWLER_ERRORS_KEPT); i++)
                (void)json_array_append_new(errors, json_string(s.errors[i]));
        return json_pack("{s:I, s:I, s:o, s:I, s:o, s:i}", "rules", (json_int_t)s.rules, "errors_total", (json_int_t)s.n_errors, "errors", errors, "refused", (json_int_t)counter_get(c, crawler_refusals),
                         "last", last ? last : json_string("?"), "last_pid", (int)s.last_pid);
}
