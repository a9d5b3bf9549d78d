/* SPDX-License-Identifier: Apache-2.0 */
/* undelete.c: `tarn undelete [PATH] [--since TIME]`: what was deleted comes back from the server's trash, in every mount of the workspace.
 *
 * PATH (a file, or a directory with all that was in it) need not exist any more, so which mount it was in is told by its text. --since takes what was deleted
 * in that time; both together: that part of it. Without either, the newest deletions are listed.
 *
 * Deletions of this mount that are still on their way go first: the daemon is asked to wait for them, SETTLE_MS at most. One request restores as much as fits into its time and says
 * where the next one goes on; one that was broken off can be sent again, what came back is not in the trash any more. The files appear through the events, like any change. */
#include <stdio.h>
#include <string.h>

#include "api/client.h"
#include "base/args.h"
#include "base/clock.h"
#include "cli.h"

#define PROGRAM "tarn undelete"
#define SETTLE_MS 30000
#define REQUEST_MS 60000
#define ANSWER_BYTES_MAX (1u << 20)

/* cwd + path, "." and ".." taken out by the text: what it names may be gone. */
static int absolute(const char *path, char **ret) {
        _cleanup_free_ char *here = path[0] == '/' ? strdup("") : getcwd(NULL, 0), *out = NULL;
        size_t k = 0;
        if (!here)
                return -errno;
        out = calloc(1, strlen(here) + strlen(path) + 3);
        if (!out)
                return -ENOMEM;
        const char *parts[] = { here, path };
        for (size_t i = 0; i < 2; i++)
                for (const char *p = parts[i]; *p;) {
                        size_t n = strcspn(p, "/");
                        if (n == 2 && memcmp(p, "..", 2) == 0) {
                                while (k > 0 && out[--k] != '/')
                                        ;
                        } else if (n > 0 && !(n == 1 && *p == '.')) {
                                out[k++] = '/';
                                memcpy(out + k, p, n);
                                k += n;
                        }
                        p += n + (p[n] == '/');
                }
        out[k] = 0;
        *ret = steal_ptr(out);
        return 0;
}

struct asker { char *base, *workspace; struct session *session; struct transport *transport; struct counters counters; struct buf escaped; };

static void cleanup_asker_p(struct asker *a) {
        transport_curl_free(a->transport);
        session_free(a->session);
        buf_free(&a->escaped);
        free(a->base);
        free(a->workspace);
}

static int asker_open(const char *state, const char *url, struct asker *a) {
        const char *why = "";
        int r = url_split(url, &a->base, &a->workspace, &why);
        if (r == 0)
                r = session_open(state, a->base, &a->session);
        if (r == 0)
                r = url_escape(a->workspace, &a->escaped);
        if (r == 0 && !buf_text(&a->escaped))
                r = -ENOMEM;
        struct transport_curl_config c = { .base_url = a->base, .token = session_token, .token_arg = a->session, .counters = &a->counters };
        if (r == 0) {
                c.ca_file = session_ca_file(a->session);
                r = transport_curl_new(&c, &a->transport);
        }
        return r;
}

/* One request, once more with a fresh token. */
static int ask(struct asker *a, enum http_method method, const char *path, const json_t *body, json_t **ret, char *ret_why, size_t n) {
        int r = 0;
        for (int tries = 0; tries < 2; tries++) {
                struct http_call *c = http_call_new(method, ANSWER_BYTES_MAX, ANSWER_BYTES_MAX);
                if (!c)
                        return -ENOMEM;
                c->path = NULL;
                if (asprintf(&c->path, "/v1/workspaces/%s/%s", (const char *)a->escaped.data, path) < 0)
                        c->path = NULL;
                c->content_type = c->accept = "application/json";
                c->deadline_ms = clock_mono_ms(clock_system()) + REQUEST_MS;
                r = c->path ? body ? json_to_buf(body, &c->body) : 0 : -ENOMEM;
                if (r == 0)
                        r = transport_call(a->transport, c);
                if (r == 0)
                        r = json_parse(c->answer.data, c->answer.bytes, ret);
                (void)snprintf(ret_why, n, "%s", c->message[0] ? c->message : strerror(r < 0 ? -r : 0));
                http_call_free(c);
                if (r != -EKEYREJECTED || tries > 0 || session_refresh(a->session, a->transport) < 0)
                        break;
        }
        return r;
}

static int failed(int r, const char *why) {
        int code = r == -EKEYREJECTED || r == -EACCES ? EXIT_SIGN_IN : r == -ENOKEY ? EXIT_TLS : r == -ENOENT ? EXIT_WORKSPACE : r == -EHOSTDOWN || r == -ETIMEDOUT || r == -EAGAIN ? EXIT_SERVER : EXIT_OTHER;
        return cli_fail(PROGRAM, code, "%s", why);
}

static int list(struct asker *a) {
        _cleanup_json_ json_t *answer = NULL;
        char why[400] = "";
        int r = ask(a, HTTP_GET, "trash?limit=20", NULL, &answer, why, sizeof why);
        if (r < 0)
                return failed(r, why);
        json_t *items = json_object_get(answer, "items"), *item;
        size_t i;
        json_array_foreach(items, i, item) {
                const char *path = "", *actor = "", *device = "";
                int64_t deleted_ns = 0;
                if (json_get_str(item, "path", &path) < 0 || json_get_str(item, "actor", &actor) < 0 || json_get_str(item, "device", &device) < 0 ||
                    json_get_int(item, "deleted_ns", 0, INT64_MAX, &deleted_ns) < 0)
                        return cli_fail(PROGRAM, EXIT_SERVER, "the server's answer is not understood");
                (void)printf("%6lld s ago  %s  (%s, %s)\n", (long long)((clock_real_ns(clock_system()) - deleted_ns) / 1000000000), path, actor, device);
        }
        (void)printf("%s", json_array_size(items) ? "bring back with: tarn undelete PATH, or tarn undelete --since 10m\n" : "the trash is empty\n");
        return EXIT_OK;
}

static int undelete(struct asker *a, const char *path, uint64_t since_s) {
        char why[400] = "";
        int64_t restored = 0, left = 0, before = 0;
        do {
                _cleanup_json_ json_t *body = json_object(), *answer = NULL;
                int64_t n;
                if (!body || (path && json_object_set_new(body, "path", json_string(path)) < 0) || (since_s && json_object_set_new(body, "since_s", json_integer((json_int_t)since_s)) < 0) ||
                    (before && json_object_set_new(body, "before", json_integer(before)) < 0))
                        return cli_fail(PROGRAM, EXIT_OTHER, "out of memory");
                int r = ask(a, HTTP_POST, "trash/restore", body, &answer, why, sizeof why);
                if (r < 0)
                        return failed(r, why);
                if (json_get_int(answer, "restored", 0, INT64_MAX, &n) == 0)
                        restored += n;
                if (json_get_int(answer, "left", 0, INT64_MAX, &n) == 0)
                        left += n;
                if (json_get_int(answer, "before", 1, INT64_MAX, &before) < 0)
                        before = 0;
        } while (before > 0);
        (void)printf("%lld brought back%s\n", (long long)restored, left ? "; some could not be, see the server's trash" : "");
        return left ? EXIT_OTHER : EXIT_OK;
}

/* Deletions that are still on their way. */
static void settle(const struct mount_info *m) {
        _cleanup_close_ int fd = -1;
        _cleanup_json_ json_t *q = json_pack("{s:s, s:I}", "cmd", "wait", "timeout_ms", (json_int_t)SETTLE_MS), *answer = NULL;
        const char *error;
        int r = q ? control_connect(m->place_dir, &fd) : -ENOMEM;
        if (r == 0)
                r = control_send(fd, q);
        if (r == 0)
                r = control_receive(fd, clock_mono_ms(clock_system()) + SETTLE_MS + 5000, &answer);
        if (r < 0 || json_get_str(answer, "error", &error) == 0)
                (void)fprintf(stderr, PROGRAM ": not all changes of %s are on the server yet: what was deleted just now may need this command again\n", m->mountpoint);
}

int cmd_undelete(int argc, char **argv) {
        const char *path = NULL, *state_option = NULL;
        uint64_t since_s = 0;
        const struct arg table[] = {
                { "PATH", 0, ARG_POSITIONAL_OPTIONAL, &path, "what was deleted: a file, or a directory with all that was in it" },
                { "since", 's', ARG_DURATION_S, &since_s, "what was deleted in this time, such as 10m" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *state = NULL, *full = NULL;
        _cleanup_(cleanup_asker_p) struct asker a = { .escaped = BUF_INIT(1024) };
        struct mount_info *all = NULL;
        size_t n = 0;
        int r = args_parse(PROGRAM, table, argc, argv), code;
        if (r < 0)
                return args_exit(r);
        r = state_dir(state_option, &state);
        if (r == 0)
                r = absolute(path ? path : ".", &full);
        if (r == 0)
                r = mount_infos_list(state, &all, &n);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot read the state directory: %s", strerror(-r));
        const struct mount_info *m = mount_infos_find(all, n, full);
        if (!m && !path && n == 1)
                m = &all[0];
        if (!m) {
                code = cli_fail(PROGRAM, EXIT_NOT_MOUNTED, "%s is in no mount; name a path in one", full);
        } else if ((r = asker_open(state, m->url, &a)) < 0) {
                code = cli_fail(PROGRAM, r == -ENOENT ? EXIT_SIGN_IN : EXIT_OTHER, "%s", r == -ENOENT ? "not signed in here; run tarn login" : strerror(-r));
        } else {
                const char *below = path && strlen(full) > strlen(m->mountpoint) ? full + strlen(m->mountpoint) + 1 : NULL;
                settle(m);
                code = below || since_s ? undelete(&a, below, since_s) : list(&a);
        }
        mount_infos_free(all, n);
        return code;
}
