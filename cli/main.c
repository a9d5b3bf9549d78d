/* SPDX-License-Identifier: Apache-2.0 */
/* main.c: the `tarn` program: one word chooses the subcommand, one file per subcommand. Called as mount.tarn it is mount(8)'s helper.
 *
 *   login.c   mount.c (options, fork) -> daemon.c (wires a mount together) + control.c (answers the others)   umount.c   status.c   wait.c   accept.c   held.c   retry.c   conflicts.c   doctor.c   scrub.c
 *
 * Each command ends with a code of enum exit_code; each failure says one line on stderr that tells what to do. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/failpoint.h"
#include "cli.h"

static const struct command { const char *name; int (*run)(int argc, char **argv); const char *help; } commands[] = {
        { "login", cmd_login, "login URL --user NAME [--password-stdin]        sign in; the login is kept in the state directory" },
        { "mount", cmd_mount, "mount URL/WORKSPACE DIR [-f] [-o OPT,...]       mount a workspace; returns when it answers" },
        { "umount", cmd_umount, "umount DIR                                      unmount; what is not on the server yet goes on at the next mount" },
        { "undelete", cmd_undelete, "undelete [PATH] [--since TIME]                  bring back what was deleted, from the server's trash" },
        { "status", cmd_status, "status [DIR] [--json]                           is it online, what is pending, what is in the cache" },
        { "wait", cmd_wait, "wait [DIR] [--timeout S]                        until all local changes are on the server" },
        { "held", cmd_held, "held [PATH] [--send | --drop]                   what only this client has after the server went back: list it, send it again, let it go" },
        { "accept", cmd_accept, "accept DIR                                      remove here what the server lost or deleted in bulk (see status: held)" },
        { "retry", cmd_retry, "retry [PATH]                                    try what is parked again now (see status: parked)" },
        { "conflicts", cmd_conflicts, "conflicts [DIR] [--json]                        conflict copies and what they are copies of; resolve PATH --keep mine|theirs|both" },
        { "doctor", cmd_doctor, "doctor [DIR] [--json] [--repair]                look for what is wrong, also with the daemon dead; say what to do" },
        { "scrub", cmd_scrub, "scrub [DIR] [--json]                            read everything that is cached or pending; heal what the server has" },
};

static const struct { int code; const char *what; } exit_codes[] = {
        { EXIT_OK, "done" },
        { EXIT_OTHER, "another failure" },
        { EXIT_USAGE, "unknown option, bad value, bad URL" },
        { EXIT_SERVER, "the server cannot be reached" },
        { EXIT_SIGN_IN, "not signed in, wrong password, login expired or revoked" },
        { EXIT_TLS, "the server's TLS certificate is not trusted" },
        { EXIT_WORKSPACE, "no such workspace, or no access to it" },
        { EXIT_MOUNT_POINT, "mount point missing, not a directory, not empty or busy; FUSE not permitted" },
        { EXIT_IN_USE, "another daemon uses this state" },
        { EXIT_DISK, "local disk full or not writable, local state not readable" },
        { EXIT_TIMEOUT, "timed out: not everything is on the server yet" },
        { EXIT_NOT_MOUNTED, "no mount there" },
        { EXIT_UPGRADE, "the server or the local state is newer than this program" },
};

void exit_codes_print(void) {
        (void)printf("\nExit codes:\n");
        for (size_t i = 0; i < ARRAY_SIZE(exit_codes); i++)
                (void)printf("  %2d  %s\n", exit_codes[i].code, exit_codes[i].what);
        (void)fflush(stdout);
}

int cli_fail(const char *program, int code, const char *fmt, ...) {
        char line[1024];
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(line, sizeof line, fmt, ap);
        va_end(ap);
        (void)fprintf(stderr, "%s: %s\n", program, line);
        return code;
}

int args_exit(int r) {
        if (r != -ECANCELED)
                return EXIT_USAGE;
        exit_codes_print();
        return EXIT_OK;
}

static void help(FILE *f) {
        (void)fprintf(f, "tarn %s: a cloud drive that is a directory\n\nUsage: tarn COMMAND ...\n\n", TARN_VERSION);
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                (void)fprintf(f, "  tarn %s\n", commands[i].help);
        (void)fprintf(f, "\n  tarn COMMAND --help tells more. --state-dir DIR, or TARN_STATE_DIR, puts all state of one client into DIR.\n");
}

static void print_point(void *arg, const char *name, uint64_t hits) {
        (void)arg;
        (void)hits;
        (void)puts(name);
}

int main(int argc, char **argv) {
        const char *self = argc > 0 ? strrchr(argv[0], '/') : NULL;
        self = self ? self + 1 : argc > 0 ? argv[0] : "tarn";
        if (strcmp(self, "mount.tarn") == 0 || strcmp(self, "mount.fuse.tarn") == 0)
                return cmd_mount_helper(argc, argv);
        /* tarn --state-dir DIR COMMAND ... is the same as tarn COMMAND --state-dir DIR ... */
        if (argc > 2 && strcmp(argv[1], "--state-dir") == 0) {
                if (setenv("TARN_STATE_DIR", argv[2], 1) < 0)
                        return cli_fail("tarn", EXIT_OTHER, "out of memory");
                argc -= 2;
                argv += 2;
        }
        if (argc < 2) {
                help(stderr);
                return EXIT_USAGE;
        }
        if (failpoint_arm_from_environment() < 0)
                return cli_fail("tarn", EXIT_USAGE, "TARN_FAILPOINTS: no such point or action in this build");
        if (argc == 2 && strcmp(argv[1], "failpoints") == 0) { /* for tests */
                failpoint_each(print_point, NULL);
                return EXIT_OK;
        }
        if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
                help(stdout);
                exit_codes_print();
                return EXIT_OK;
        }
        if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) {
                (void)printf("tarn %s\n", TARN_VERSION);
                return EXIT_OK;
        }
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                if (strcmp(argv[1], commands[i].name) == 0)
                        return commands[i].run(argc - 1, argv + 1);
        return cli_fail("tarn", EXIT_USAGE, "unknown command '%.100s'; see tarn --help", argv[1]);
}
