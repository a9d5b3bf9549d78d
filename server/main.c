/* SPDX-License-Identifier: Apache-2.0 */
/* main.c: the program tarn-server.
 *
 *   tarn-server init --data DIR
 *   tarn-server user add NAME [--password-stdin] --data DIR
 *   tarn-server workspace add NAME --owner USER --data DIR
 *   tarn-server token add --user NAME --data DIR
 *   tarn-server fsck --data DIR [--repair] [--json]
 *   tarn-server scrub --data DIR [--rate BYTES] [--json]
 *   tarn-server gc --data DIR [--dry-run] [--min-age DURATION] [--trash-age DURATION] [--keep-events N] [--lease-time DURATION] [--compact] [--compact-below PERCENT] [--json]
 *   tarn-server backup FILE|-|--to DIR --data DIR [--json]
 *   tarn-server restore --from DIR|FILE|- --data DIR
 *   tarn-server serve --data DIR [--listen HOST:PORT] [--tls-cert F --tls-key F] [--gc-every DURATION] [--trash-age DURATION] [--keep-events N] [--lease-time DURATION]
 *
 * Administration opens the data directory itself; if a server has it (-EBUSY) the same command goes to that server through its socket. A password
 * is read from a terminal without echo, or from standard input; it is never an argument.
 *
 * serve: signals are blocked in every thread and taken by sigwait in this one. Ready means that requests are answered: then one line goes to
 * standard output and the address into DATA/url. The log goes to standard error.
 *
 * Exit codes are part of the interface: see exit_codes. */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <termios.h>

#include "admin.h"
#include "base/args.h"
#include "base/err.h"
#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"
#include "http.h"
#include "maintain.h"
#include "router.h"
#include "upkeep.h"

#define PROGRAM "tarn-server"
#define PASSWORD_BYTES_MAX 1024u
#define STOP_GRACE_MS 10000
#define TEXT_BYTES_MAX (256u << 10)

enum exit_code { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NOT_FOUND = 3, EXIT_EXISTS = 4, EXIT_IN_USE = 5, EXIT_NEWER = 6, EXIT_DAMAGED = 7 };

static const char help_text[] =
        "usage: tarn-server COMMAND ... --data DIR\n"
        "\n"
        "  init                            make a data directory\n"
        "  user add NAME                   add a user (asks for a password; --password-stdin reads it from standard input)\n"
        "  workspace add NAME --owner USER add a workspace\n"
        "  token add --user NAME           make a token for scripts and print it once\n"
        "  serve                           run the server; COMMAND --help lists the options\n"
        "  fsck                            check the database and that all objects are there; --repair repairs what can be (needs a stopped server)\n"
        "  scrub                           read and check every stored byte\n"
        "  gc                              give back the space of what nobody needs\n"
        "  backup FILE|-                   copy everything as of one moment into one file, or to standard output\n"
        "  backup --to DIR                 the same into a directory; again into the same DIR: what is new\n"
        "  restore --from DIR|FILE|-       make a new data directory from a backup\n"
        "\n"
        "While a server runs, the other commands (but restore) go through it.\n"
        "\n"
        "exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found (data directory, user), 4 there already, 5 in use (data directory, address),\n"
        "            6 the data directory was made by a newer version, 7 fsck, scrub or backup found something that is lost or damaged\n";

static int fail(int code, const char *fmt, ...) _printf_(2, 3);
static int fail(int code, const char *fmt, ...) {
        va_list args;

        (void)fputs(PROGRAM ": ", stderr);
        va_start(args, fmt);
        (void)vfprintf(stderr, fmt, args);
        va_end(args);
        (void)fputc('\n', stderr);
        return code;
}

static int exit_code(int err) {
        switch (-err) {
        case 0:
                return EXIT_OK;
        case EINVAL:
                return EXIT_USAGE;
        case ENOENT:
        case ENOTDIR:
                return EXIT_NOT_FOUND;
        case EEXIST:
                return EXIT_EXISTS;
        case EBUSY:
        case EADDRINUSE:
                return EXIT_IN_USE;
        case EPROTONOSUPPORT:
                return EXIT_NEWER;
        case EUCLEAN:
                return EXIT_DAMAGED;
        default:
                return EXIT_FAILED;
        }
}

/* -ECANCELED: help was shown. */
static int parse(const char *program, const struct arg *table, int argc, char **argv, const char *const *data, int *ret_exit) {
        int r = args_parse(program, table, argc, argv);

        *ret_exit = r == -ECANCELED ? EXIT_OK : EXIT_USAGE;
        if (r < 0)
                return r;
        if (!*data) {
                *ret_exit = fail(EXIT_USAGE, "--data DIR is missing: the server's data directory");
                return -EINVAL;
        }
        return 0;
}

/* ---- administration ---- */

/* Runs the words on the data directory, or through the server that has it. */
static int administrate(const char *data, const char *const *words, size_t n, const char *password) {
        _cleanup_buf_ struct buf text = BUF_INIT(TEXT_BYTES_MAX);
        struct service_config config = {.data_dir = data};
        struct service *s;
        char why[400];
        int r = service_open(&config, &s, why, sizeof why);

        if (r == -EBUSY) {
                r = admin_ask(data, words, n, password, &text);
                if (r == -ECONNREFUSED)
                        return fail(EXIT_IN_USE, "%s", why);
                if (r < 0 && text.bytes == 0)
                        return fail(EXIT_FAILED, "the server that runs on %s does not answer: %s", data, strerror(-r));
        } else if (r < 0) {
                return fail(exit_code(r), "%s", why);
        } else {
                r = service_admin(s, words, n, password, &text);
                service_close(s);
        }
        if (!buf_text(&text))
                return fail(EXIT_FAILED, "no memory");
        if (r < 0 && r != -EUCLEAN)
                return fail(exit_code(r), "%s", (const char *)text.data);
        (void)printf("%s\n", (const char *)text.data);
        return exit_code(r);
}

/* One line from fd, without its end. */
static int read_line(int fd, char *ret, size_t size) {
        size_t n = 0;

        for (;;) {
                char ch;
                ssize_t m = read(fd, &ch, 1);

                if (m < 0 && errno == EINTR)
                        continue;
                if (m < 0)
                        return -errno;
                if (m == 0 || ch == '\n')
                        break;
                if (n + 1 >= size)
                        return -EMSGSIZE;
                ret[n++] = ch;
        }
        if (n > 0 && ret[n - 1] == '\r')
                n--;
        ret[n] = 0;
        return n > 0 ? 0 : -ENODATA;
}

static int prompt(int tty, const char *text, char *ret, size_t size) {
        struct termios old, quiet;
        int r;

        if (tcgetattr(tty, &old) < 0)
                return -errno;
        quiet = old;
        quiet.c_lflag &= ~(tcflag_t)ECHO;
        if (tcsetattr(tty, TCSAFLUSH, &quiet) < 0) /* before the prompt: what is typed after it is neither shown nor dropped */
                return -errno;
        r = write_full(tty, text, strlen(text));
        if (r >= 0)
                r = read_line(tty, ret, size);
        (void)tcsetattr(tty, TCSAFLUSH, &old);
        if (write_full(tty, "\n", 1) < 0)
                return -EIO;
        return r;
}

static int password_get(bool from_stdin, const char *user, char ret[PASSWORD_BYTES_MAX + 2]) {
        char text[160], again[PASSWORD_BYTES_MAX + 2];
        _cleanup_close_ int tty = -1;
        int r;

        if (from_stdin) {
                r = read_line(STDIN_FILENO, ret, PASSWORD_BYTES_MAX + 2);
                return r < 0 ? fail(EXIT_USAGE, "--password-stdin: there is no password of 8 to %u bytes on standard input", PASSWORD_BYTES_MAX) : 0;
        }
        if (!isatty(STDIN_FILENO) || (tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY)) < 0)
                return fail(EXIT_USAGE, "there is no terminal to ask for a password; give it on standard input with --password-stdin");
        (void)snprintf(text, sizeof text, "Password for %.64s: ", user);
        r = prompt(tty, text, ret, PASSWORD_BYTES_MAX + 2);
        if (r >= 0)
                r = prompt(tty, "The same again: ", again, sizeof again);
        if (r < 0)
                return fail(EXIT_FAILED, "no password was given");
        r = strcmp(ret, again);
        explicit_bzero(again, sizeof again);
        return r != 0 ? fail(EXIT_USAGE, "the two passwords differ") : 0;
}

static int cmd_init(int argc, char **argv) {
        const char *data = NULL;
        const struct arg table[] = {{"data", 'd', ARG_STR, &data, "the directory to make"}, {NULL, 0, ARG_FLAG, NULL, NULL}};
        char why[400];
        int r, code;

        if (parse("tarn-server init", table, argc, argv, &data, &code) < 0)
                return code;
        r = service_init(data, why, sizeof why);
        if (r < 0)
                return fail(exit_code(r), "%s", why);
        (void)printf("%s is ready; next: tarn-server user add NAME --data %s\n", data, data);
        return EXIT_OK;
}

static int cmd_user_add(int argc, char **argv) {
        const char *data = NULL, *name = NULL;
        bool from_stdin = false;
        const struct arg table[] = {{"NAME", 0, ARG_POSITIONAL, &name, "the user's name"},
                                    {"data", 'd', ARG_STR, &data, "the server's data directory"},
                                    {"password-stdin", 0, ARG_FLAG, &from_stdin, "read the password from standard input instead of the terminal"},
                                    {NULL, 0, ARG_FLAG, NULL, NULL}};
        char password[PASSWORD_BYTES_MAX + 2];
        int code;

        if (parse("tarn-server user add", table, argc, argv, &data, &code) < 0)
                return code;
        code = password_get(from_stdin, name, password);
        if (code == 0) {
                const char *words[] = {"user", "add", name};

                code = administrate(data, words, ARRAY_SIZE(words), password);
        }
        explicit_bzero(password, sizeof password);
        return code;
}

static int cmd_workspace_add(int argc, char **argv) {
        const char *data = NULL, *name = NULL, *owner = NULL;
        bool portable = false;
        const struct arg table[] = {{"NAME", 0, ARG_POSITIONAL, &name, "the workspace's name"},
                                    {"owner", 0, ARG_STR, &owner, "the user who owns it"},
                                    {"portable-names", 0, ARG_FLAG, &portable, "take only names that Windows and macOS can carry, and no two that are one name there"},
                                    {"data", 'd', ARG_STR, &data, "the server's data directory"},
                                    {NULL, 0, ARG_FLAG, NULL, NULL}};
        int code;

        if (parse("tarn-server workspace add", table, argc, argv, &data, &code) < 0)
                return code;
        if (!owner)
                return fail(EXIT_USAGE, "--owner USER is missing: who owns the workspace");
        const char *words[] = {"workspace", "add", name, "--owner", owner, "--portable-names"};
        return administrate(data, words, portable ? 6 : 5, NULL);
}

static int cmd_token_add(int argc, char **argv) {
        const char *data = NULL, *user = NULL;
        const struct arg table[] = {{"user", 0, ARG_STR, &user, "whose token"}, {"data", 'd', ARG_STR, &data, "the server's data directory"}, {NULL, 0, ARG_FLAG, NULL, NULL}};
        int code;

        if (parse("tarn-server token add", table, argc, argv, &data, &code) < 0)
                return code;
        if (!user)
                return fail(EXIT_USAGE, "--user NAME is missing: whose token");
        const char *words[] = {"token", "add", "--user", user};
        return administrate(data, words, ARRAY_SIZE(words), NULL);
}

/* ---- looking after the data directory ---- */

/* A path as a server elsewhere understands it. */
static int absolute(const char *path, char **ret) {
        _cleanup_free_ char *here = NULL;

        if (path[0] == '/') {
                *ret = strdup(path);
        } else {
                here = getcwd(NULL, 0);
                *ret = here ? path_join(here, path) : NULL;
        }
        return *ret ? 0 : -ENOMEM;
}

/* All of `from` to `to`. */
static int pour(int from, int to) {
        _cleanup_free_ uint8_t *piece = malloc(1u << 20);

        if (!piece)
                return -ENOMEM;
        for (;;) {
                ssize_t n = read(from, piece, 1u << 20);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? -errno : 0;
                int r = write_full(to, piece, (size_t)n);
                if (r < 0)
                        return r;
        }
}

/* Through a file beside the data: what cannot be read whole must not be on its way already. The report goes to standard error. */
static int backup_to_stdout(const char *data, const char **words, size_t k) {
        _cleanup_free_ char *path = NULL, *full = NULL;
        _cleanup_close_ int fd = -1, out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
        int code, r;

        if (asprintf(&path, "%s/backup-%d.tmp", data, (int)getpid()) < 0 || absolute(path, &full) < 0)
                return fail(EXIT_FAILED, "no memory");
        if (out < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
                return fail(EXIT_FAILED, "standard output is closed: %s", strerror(errno));
        words[k++] = "--file";
        words[k++] = full;
        code = administrate(data, words, k, NULL);
        fd = open(full, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && unlink(full) < 0)
                return fail(EXIT_FAILED, "%s: %s", full, strerror(errno));
        if (fd < 0)
                return code ? code : fail(EXIT_FAILED, "%s: %s", full, strerror(errno));
        r = pour(fd, out);
        return r < 0 ? fail(EXIT_FAILED, "cannot write the backup: %s", strerror(-r)) : code;
}

/* Standard input as a file beside the new data directory, which goes by itself. */
static int stdin_as_file(const char *data, char **ret) {
        _cleanup_free_ char *path = NULL;
        _cleanup_close_ int fd = -1;
        int r;

        if (asprintf(&path, "%s.restore-%d.tmp", data, (int)getpid()) < 0)
                return -ENOMEM;
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0)
                return -errno;
        r = pour(STDIN_FILENO, fd);
        if (r < 0) {
                (void)unlink(path);
                return r;
        }
        *ret = steal_ptr(path);
        return 0;
}

static int cmd_maintain(int argc, char **argv) {
        const char *data = NULL, *to = NULL, *file = NULL, *min_age = NULL, *trash_age = NULL, *keep_events = NULL, *rate = NULL, *compact_below = NULL, *word = argv[0], *words[20];
        bool json = false, repair = false, dry_run = false, compact = false;
        const struct arg common[] = {{"data", 'd', ARG_STR, &data, "the server's data directory"}, {"json", 0, ARG_FLAG, &json, "report as JSON"}};
        const struct arg more[] = {{"repair", 0, ARG_FLAG, &repair, "repair what can be repaired (the server must be stopped)"},
                                   {"rate", 0, ARG_STR, &rate, "read at most so many bytes per second (no limit)"},
                                   {"dry-run", 0, ARG_FLAG, &dry_run, "only count"},
                                   {"min-age", 0, ARG_STR, &min_age, "leave what is younger (1d)"},
                                   {"trash-age", 0, ARG_STR, &trash_age, "forget what was deleted so long ago (never)"},
                                   {"keep-events", 0, ARG_STR, &keep_events, "forget all but so many events of each workspace (all are kept)"},
                                   {"compact", 0, ARG_FLAG, &compact, "put together what is left of objects that are mostly empty"},
                                   {"compact-below", 0, ARG_STR, &compact_below, "those that are less than so many percent full (50)"},
                                   {"to", 0, ARG_STR, &to, "the directory of the backup"},
                                   {"rate", 0, ARG_STR, &rate, "copy at most so many bytes per second (no limit)"},
                                   {"FILE", 0, ARG_POSITIONAL_OPTIONAL, &file, "the file of the backup; -: standard output"}};
        static const struct { const char *word; size_t from, to; } own[] = {{"fsck", 0, 1}, {"scrub", 1, 2}, {"gc", 2, 8}, {"backup", 8, 11}};
        struct arg table[10] = {common[0], common[1]};
        _cleanup_free_ char *to_absolute = NULL;
        char program[40];
        size_t n = 2, k = 0;
        int code;

        for (size_t i = 0; i < ARRAY_SIZE(own); i++)
                for (size_t at = own[i].from; strcmp(own[i].word, word) == 0 && at < own[i].to; at++)
                        table[n++] = more[at];
        table[n] = (struct arg){NULL, 0, ARG_FLAG, NULL, NULL};
        (void)snprintf(program, sizeof program, PROGRAM " %s", word);
        if (parse(program, table, argc, argv, &data, &code) < 0)
                return code;
        words[k++] = word;
        if (json)
                words[k++] = "--json";
        if (repair)
                words[k++] = "--repair";
        if (dry_run)
                words[k++] = "--dry-run";
        if (compact)
                words[k++] = "--compact";
        if (compact_below) {
                words[k++] = "--compact-below";
                words[k++] = compact_below;
        }
        if (min_age) {
                words[k++] = "--min-age";
                words[k++] = min_age;
        }
        if (trash_age) {
                words[k++] = "--trash-age";
                words[k++] = trash_age;
        }
        if (keep_events) {
                words[k++] = "--keep-events";
                words[k++] = keep_events;
        }
        if (rate) {
                words[k++] = "--rate";
                words[k++] = rate;
        }
        if (strcmp(word, "backup") == 0 && !to == !file)
                return fail(EXIT_USAGE, "a FILE or --to DIR: where the backup goes");
        if (file && strcmp(file, "-") == 0)
                return backup_to_stdout(data, words, k);
        if (file) {
                if (absolute(file, &to_absolute) < 0)
                        return fail(EXIT_FAILED, "no memory");
                words[k++] = "--file";
                words[k++] = to_absolute;
        }
        if (to) {
                if (absolute(to, &to_absolute) < 0)
                        return fail(EXIT_FAILED, "no memory");
                words[k++] = "--to";
                words[k++] = to_absolute;
        }
        return administrate(data, words, k, NULL);
}

static int cmd_restore(int argc, char **argv) {
        const char *data = NULL, *from = NULL;
        const struct arg table[] = {{"data", 'd', ARG_STR, &data, "the data directory to make"}, {"from", 0, ARG_STR, &from, "the backup: a directory, a file, or - for standard input"}, {NULL, 0, ARG_FLAG, NULL, NULL}};
        _cleanup_free_ char *read_in = NULL;
        _cleanup_buf_ struct buf text = BUF_INIT(TEXT_BYTES_MAX);
        int r, code;

        if (parse("tarn-server restore", table, argc, argv, &data, &code) < 0)
                return code;
        if (!from)
                return fail(EXIT_USAGE, "--from DIR, FILE or - is missing: the backup");
        if (strcmp(from, "-") == 0) {
                r = stdin_as_file(data, &read_in);
                if (r < 0)
                        return fail(exit_code(r), "cannot read the backup: %s", strerror(-r));
                from = read_in;
        }
        r = maintain_restore(from, data, &text);
        if (read_in && unlink(read_in) < 0)
                log_warn("event=left_over path=%s error=%s", read_in, err_name(errno));
        if (!buf_text(&text))
                return fail(EXIT_FAILED, "no memory");
        if (r < 0 && r != -EUCLEAN)
                return fail(exit_code(r), "%s", (const char *)text.data);
        (void)printf("%s\n%s is ready; clients load anew and keep what only they have\n", (const char *)text.data, data);
        return exit_code(r);
}

static int cmd_routes(int argc, char **argv) {
        _cleanup_buf_ struct buf text = BUF_INIT(65536);

        (void)argc;
        (void)argv;
        if (router_print(&text) < 0)
                return EXIT_FAILED;
        return write_full(STDOUT_FILENO, text.data, text.bytes) < 0 ? EXIT_FAILED : EXIT_OK;
}

/* ---- serving ---- */

static void limits_raise(void) {
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
                return;
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
                log_warn("event=limit_files error=%s", err_name(errno));
}

/* Says that requests are answered now. */
static int announce(const char *data, const char *url) {
        _cleanup_free_ char *path = path_join(data, "url");
        _cleanup_buf_ struct buf line = BUF_INIT(1024);
        int r;

        if (!path)
                return -ENOMEM;
        r = buf_printf(&line, "%s\n", url);
        if (r >= 0)
                r = file_replace(path, line.data, line.bytes, 0644);
        if (r < 0)
                return r;
        (void)printf("listening on %s\n", url);
        (void)fflush(stdout);
        return 0;
}

static bool is_loopback(const char *listen) {
        return strncmp(listen, "127.", 4) == 0 || strncmp(listen, "[::1]:", 6) == 0 || strncmp(listen, "localhost:", 10) == 0;
}

static int serve(const char *data, struct http_config *config, const struct upkeep_config *upkeep_config, int64_t lease_ms, const sigset_t *signals) {
        struct service_config service_config = {.data_dir = data, .workers = 1, .lease_ms = lease_ms};
        _cleanup_free_ char *url_path = path_join(data, "url");
        struct upkeep *upkeep = NULL;
        struct admin *admin = NULL;
        struct http *http = NULL;
        struct service *s;
        char why[400];
        int r, signal_number = 0;

        if (!url_path)
                return fail(EXIT_FAILED, "no memory");
        r = service_open(&service_config, &s, why, sizeof why);
        if (r < 0)
                return fail(exit_code(r), "%s", why);
        config->service = s;
        r = http_open(config, &http, why, sizeof why);
        if (r >= 0) {
                r = admin_open(s, data, &admin);
                if (r < 0)
                        (void)snprintf(why, sizeof why, "cannot open the administration socket in %s: %s", data, strerror(-r));
        }
        if (r >= 0) {
                r = upkeep_open(s, upkeep_config, &upkeep);
                if (r < 0)
                        (void)snprintf(why, sizeof why, "cannot start the thread for gc: %s", strerror(-r));
        }
        if (r >= 0) {
                r = announce(data, http_url(http));
                if (r < 0)
                        (void)snprintf(why, sizeof why, "cannot write %s: %s", url_path, strerror(-r));
        }
        if (r >= 0) {
                log_info("event=serving url=%s data=%s version=%s", http_url(http), data, TARN_VERSION);
                r = -sigwait(signals, &signal_number);
                log_info("event=stopping signal=%d", signal_number);
                (void)unlink(url_path);
        } else {
                r = fail(r == -ENOENT || r == -EINVAL ? EXIT_USAGE : exit_code(r), "%s", why);
        }
        http_close(http, STOP_GRACE_MS);
        admin_close(admin);
        upkeep_close(upkeep);
        service_close(s);
        log_debug("event=stopped");
        return r < 0 ? EXIT_FAILED : r;
}

static int cmd_serve(int argc, char **argv) {
        const char *data = NULL;
        struct http_config config = {.listen = "127.0.0.1:7380"};
        uint64_t workers = 0, connections = 0, head_s = 0, grace_s = 0, idle_s = 0, lease_s = 0;
        struct upkeep_config upkeep = {.gc_every_s = UPKEEP_GC_EVERY_S, .min_age_s = UPKEEP_MIN_AGE_S, .trash_age_s = UPKEEP_TRASH_AGE_S, .keep_events = UPKEEP_KEEP_EVENTS};
        bool verbose = false;
        const struct arg table[] = {
                {"data", 'd', ARG_STR, &data, "the server's data directory"},
                {"listen", 'l', ARG_STR, &config.listen, "HOST:PORT (127.0.0.1:7380); port 0 picks a free one"},
                {"tls-cert", 0, ARG_STR, &config.tls_cert, "certificate chain, PEM"},
                {"tls-key", 0, ARG_STR, &config.tls_key, "its key, PEM"},
                {"workers", 0, ARG_U64, &workers, "threads for each class of requests: metadata, commits, reads (8)"},
                {"connections", 0, ARG_U64, &connections, "most connections at once (1024)"},
                {"head-timeout", 0, ARG_DURATION_S, &head_s, "time for the head of a request (20s)"},
                {"body-grace", 0, ARG_DURATION_S, &grace_s, "time for a body or an answer before --min-rate counts (30s)"},
                {"min-rate", 0, ARG_BYTES, &config.rate_bytes, "bytes per second that a slower client is cut off at (16K)"},
                {"idle-timeout", 0, ARG_DURATION_S, &idle_s, "time that a connection may rest between requests (90s)"},
                {"gc-every", 0, ARG_DURATION_S, &upkeep.gc_every_s, "give back the space of what nobody needs so often (1d); 0: never, run gc yourself"},
                {"gc-min-age", 0, ARG_DURATION_S, &upkeep.min_age_s, "leave what is younger (1d)"},
                {"trash-age", 0, ARG_DURATION_S, &upkeep.trash_age_s, "forget what was deleted so long ago (90d); 0: never"},
                {"keep-events", 0, ARG_U64, &upkeep.keep_events, "events kept of each workspace (1000000); 0: all. A client that was away for longer loads anew"},
                {"lease-time", 0, ARG_DURATION_S, &lease_s, "a client that holds locks and is silent for so long loses them (30s)"},
                {"verbose", 'v', ARG_FLAG, &verbose, "log every request"},
                {NULL, 0, ARG_FLAG, NULL, NULL},
        };
        sigset_t signals;
        int code;

        if (parse("tarn-server serve", table, argc, argv, &data, &code) < 0)
                return code;
        if ((config.tls_cert == NULL) != (config.tls_key == NULL))
                return fail(EXIT_USAGE, "--tls-cert and --tls-key belong together");
        if (workers > 256 || connections > 65536)
                return fail(EXIT_USAGE, "at most 256 --workers and 65536 --connections");
        if (lease_s * 1000 > LEASE_MS_MAX)
                return fail(EXIT_USAGE, "--lease-time: at most %d seconds", LEASE_MS_MAX / 1000);
        config.workers = (unsigned)workers;
        config.connections = (unsigned)connections;
        config.head_ms = (int64_t)MIN(head_s, UINT64_C(86400)) * 1000;
        config.grace_ms = (int64_t)MIN(grace_s, UINT64_C(86400)) * 1000;
        config.idle_ms = (int64_t)MIN(idle_s, UINT64_C(86400)) * 1000;
        if (verbose)
                log_set_level(LOG_LEVEL_DEBUG);
        if (!config.tls_cert && !is_loopback(config.listen))
                log_warn("event=no_tls listen=%s message=\"passwords and files travel unencrypted; use --tls-cert and --tls-key\"", config.listen);
        (void)sigemptyset(&signals);
        (void)sigaddset(&signals, SIGTERM);
        (void)sigaddset(&signals, SIGINT);
        (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
        limits_raise();
        return serve(data, &config, &upkeep, (int64_t)lease_s * 1000, &signals);
}

static void print_point(void *arg, const char *name, uint64_t hits) {
        (void)arg;
        (void)hits;
        (void)puts(name);
}

int main(int argc, char **argv) {
        static const struct { const char *noun, *verb; int (*run)(int argc, char **argv); } commands[] = {
                {"init", NULL, cmd_init}, {"user", "add", cmd_user_add}, {"workspace", "add", cmd_workspace_add},
                {"token", "add", cmd_token_add}, {"serve", NULL, cmd_serve}, {"fsck", NULL, cmd_maintain},
                {"scrub", NULL, cmd_maintain}, {"gc", NULL, cmd_maintain}, {"backup", NULL, cmd_maintain}, {"restore", NULL, cmd_restore}, {"routes", NULL, cmd_routes},
        };

        (void)signal(SIGPIPE, SIG_IGN);
        (void)umask(077);
        if (log_open(PROGRAM, LOG_LEVEL_INFO, NULL) < 0)
                return EXIT_FAILED;
        if (failpoint_arm_from_environment() < 0)
                return fail(EXIT_USAGE, "TARN_FAILPOINTS: no such point or action in this build");
        if (argc == 2 && strcmp(argv[1], "failpoints") == 0) { /* for tests */
                failpoint_each(print_point, NULL);
                return EXIT_OK;
        }
        if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
                (void)fputs(help_text, argc < 2 ? stderr : stdout);
                return argc < 2 ? EXIT_USAGE : EXIT_OK;
        }
        if (strcmp(argv[1], "--version") == 0) {
                (void)puts(PROGRAM " " TARN_VERSION);
                return EXIT_OK;
        }
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
                int skip = commands[i].verb ? 2 : 1;

                if (strcmp(argv[1], commands[i].noun) != 0)
                        continue;
                if (commands[i].verb && (argc < 3 || strcmp(argv[2], commands[i].verb) != 0))
                        return fail(EXIT_USAGE, "'%s %s' is not a command; did you mean '%s %s'? see tarn-server --help", argv[1], argc < 3 ? "" : argv[2], argv[1], commands[i].verb);
                return commands[i].run(argc - skip, argv + skip);
        }
        return fail(EXIT_USAGE, "'%s' is not a command; see tarn-server --help", argv[1]);
}
