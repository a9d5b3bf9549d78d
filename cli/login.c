/* SPDX-License-Identifier: Apache-2.0 */
/* login.c: `tarn login URL --user NAME`: the password comes from standard input or from the terminal without echo, never from argv or the environment. The
 * tokens that the server gives in return go into a file of the state directory, 0600 (api/session.c). Daemons of this state that were signed out
 * are told to look at it. */
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "api/client.h"
#include "base/args.h"
#include "cli.h"

#define PROGRAM "tarn login"
#define PASSWORD_MAX 1024u

static int read_line(int fd, char *ret, size_t n) {
        size_t k = 0;
        for (;;) {
                char c;
                ssize_t r = read(fd, &c, 1);
                if (r < 0 && errno == EINTR)
                        continue;
                if (r < 0)
                        return -errno;
                if (r == 0 || c == '\n')
                        break;
                if (k == n - 1)
                        return -EMSGSIZE;
                ret[k++] = c;
        }
        ret[k] = 0;
        return 0;
}

static int ask_password(const char *user, char *ret, size_t n) {
        struct termios old, quiet;
        if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &old) < 0)
                return -ENOTTY;
        (void)fprintf(stderr, "Password of %s: ", user);
        quiet = old;
        quiet.c_lflag &= ~(tcflag_t)ECHO;
        if (tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet) < 0)
                return -errno;
        int r = read_line(STDIN_FILENO, ret, n);
        (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &old);
        (void)fprintf(stderr, "\n");
        return r;
}

static void nudge_daemons(const char *state) {
        struct mount_info *all = NULL;
        size_t n = 0;
        if (mount_infos_list(state, &all, &n) < 0)
                return;
        for (size_t i = 0; i < n; i++) {
                _cleanup_json_ json_t *answer = NULL;
                int r = control_ask(all[i].place_dir, "nudge", 1000, &answer); /* dead or slow: it finds out by itself */
                (void)r;
        }
        mount_infos_free(all, n);
}

static int exit_for(int r) {
        switch (r) {
        case -EACCES: return EXIT_SIGN_IN;
        case -ENOKEY: return EXIT_TLS;
        case -EHOSTDOWN:
        case -ETIMEDOUT:
        case -EAGAIN:
        case -EPROTO: return EXIT_SERVER;
        case -ENOSPC:
        case -EROFS:
        case -EDQUOT:
        case -ENOTDIR: return EXIT_DISK;
        default: return EXIT_OTHER;
        }
}

int cmd_login(int argc, char **argv) {
        const char *url = NULL, *user = NULL, *state_option = NULL, *ca_file = NULL, *why = NULL;
        bool from_stdin = false;
        const struct arg table[] = {
                { "URL", 0, ARG_POSITIONAL, &url, "the server, such as https://drive.example.org" },
                { "user", 'u', ARG_STR, &user, "your name on the server" },
                { "password-stdin", 0, ARG_FLAG, &from_stdin, "read the password from standard input (one line)" },
                { "ca-file", 0, ARG_STR, &ca_file, "trust this certificate authority (PEM); kept for later mounts" },
                { "state-dir", 0, ARG_STR, &state_option, "all state of this client in one directory" },
                { 0 },
        };
        _cleanup_free_ char *base = NULL, *state = NULL, *ca = NULL;
        char password[PASSWORD_MAX] = "", reason[400] = "";
        int r = args_parse(PROGRAM, table, argc, argv);
        if (r < 0)
                return args_exit(r);
        if (!user || !*user)
                return cli_fail(PROGRAM, EXIT_USAGE, "who are you? give --user NAME");
        r = url_base(url, &base, &why);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_USAGE, "%s", r == -ENOMEM ? "out of memory" : why);
        if (ca_file && !(ca = realpath(ca_file, NULL)))
                return cli_fail(PROGRAM, EXIT_USAGE, "cannot read --ca-file %s: %s", ca_file, strerror(errno));
        r = state_dir(state_option, &state);
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_DISK, "cannot find a state directory: %s", strerror(-r));
        r = from_stdin ? read_line(STDIN_FILENO, password, sizeof password) : ask_password(user, password, sizeof password);
        if (r == -ENOTTY)
                return cli_fail(PROGRAM, EXIT_USAGE, "no terminal to ask for the password: give it on standard input with --password-stdin");
        if (r < 0)
                return cli_fail(PROGRAM, EXIT_USAGE, "cannot read the password: %s", r == -EMSGSIZE ? "too long" : strerror(-r));
        r = session_login(state, base, ca, user, password, reason, sizeof reason);
        explicit_bzero(password, sizeof password);
        if (r < 0)
                return cli_fail(PROGRAM, exit_for(r), "%s", reason);
        nudge_daemons(state);
        (void)printf("signed in to %s as %s\n", base, user);
        return EXIT_OK;
}
