/* SPDX-License-Identifier: Apache-2.0 */
/* ask.c: how a subcommand finds its mounts; and the client's side of a daemon's control socket: connect, one line of JSON there, one line (or, for umount, two) back. control.c has the other side
 * and the commands. Everything has a deadline; a daemon that was stopped by a debugger or a signal must not hang `tarn status`. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/args.h"
#include "base/clock.h"
#include "base/io.h"
#include "cli.h"

#define ANSWER_BYTES_MAX (4u << 20)
#define CONNECT_S 2

int control_connect(const char *place_dir, int *ret_fd) {
        /* A socket's path may be 107 bytes long and a state directory may be deeper: the way goes through a descriptor of the directory. */
        struct sockaddr_un a = { .sun_family = AF_UNIX };
        _cleanup_close_ int dir = open(place_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
        _cleanup_close_ int fd = -1;
        if (dir < 0)
                return -errno;
        (void)snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d/control.sock", dir);
        const struct timeval patience = { .tv_sec = CONNECT_S }; /* bounds connect (a full backlog) and send */
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
                return -errno;
        *ret_fd = steal_fd(&fd);
        return 0;
}

int control_send(int fd, const json_t *request) {
        _cleanup_buf_ struct buf b = BUF_INIT(65536);
        int r = request ? json_to_buf(request, &b) : -ENOMEM;
        if (r == 0)
                r = buf_add(&b, "\n", 1);
        if (r < 0)
                return r;
        ssize_t n = send(fd, b.data, b.bytes, MSG_NOSIGNAL); /* fits into an empty socket buffer */
        return n == (ssize_t)b.bytes ? 0 : n < 0 ? -errno : -EPIPE;
}

int control_receive(int fd, int64_t deadline_ms, json_t **ret) {
        _cleanup_buf_ struct buf b = BUF_INIT(ANSWER_BYTES_MAX);
        for (;;) {
                int64_t left = deadline_ms - clock_mono_ms(clock_system());
                struct pollfd p = { .fd = fd, .events = POLLIN };
                char piece[65536];
                if (left <= 0)
                        return -ETIMEDOUT;
                int k = poll(&p, 1, (int)MIN(left, (int64_t)INT32_MAX));
                if (k < 0 && errno != EINTR)
                        return -errno;
                if (k <= 0)
                        continue;
                /* a second line may follow: no further than the end of the first */
                ssize_t n = recv(fd, piece, sizeof piece, MSG_PEEK | MSG_DONTWAIT);
                if (n < 0 && (errno == EAGAIN || errno == EINTR))
                        continue;
                if (n <= 0)
                        return -EPIPE;
                const char *end = memchr(piece, '\n', (size_t)n);
                size_t take = end ? (size_t)(end - piece) + 1 : (size_t)n;
                n = recv(fd, piece, take, MSG_DONTWAIT);
                if (n != (ssize_t)take)
                        return -EPIPE;
                int r = buf_add(&b, piece, take);
                if (r < 0)
                        return r;
                if (end)
                        return json_parse(b.data, b.bytes, ret);
        }
}

static int control_query(const char *place_dir, const json_t *q, int64_t timeout_ms, json_t **ret) {
        _cleanup_close_ int fd = -1;
        int r = q ? control_connect(place_dir, &fd) : -ENOMEM;
        if (r == 0)
                r = control_send(fd, q);
        return r < 0 ? r : control_receive(fd, clock_mono_ms(clock_system()) + timeout_ms, ret);
}

int control_ask(const char *place_dir, const char *command, int64_t timeout_ms, json_t **ret) {
        _cleanup_json_ json_t *q = json_pack("{s:s}", "cmd", command);
        return control_query(place_dir, q, timeout_ms, ret);
}

static bool alive(const struct mount_info *m) {
        _cleanup_close_ int fd = -1;
        int r = control_connect(m->place_dir, &fd);
        return r == 0 || r == -EAGAIN; /* EAGAIN: its backlog is full */
}

int mount_query(const char *program, const struct mount_info *m, const json_t *q, int64_t timeout_ms, json_t **ret) {
        int r = control_query(m->place_dir, q, timeout_ms, ret);
        return r < 0 ? cli_fail(program, EXIT_OTHER, "the daemon of %s (pid %d) does not answer: %s", m->mountpoint, (int)m->pid, strerror(-r)) : EXIT_OK;
}

int mount_ask(const char *program, const struct mount_info *m, const char *command, int64_t timeout_ms, json_t **ret) {
        _cleanup_json_ json_t *q = json_pack("{s:s}", "cmd", command);
        return mount_query(program, m, q, timeout_ms, ret);
}

bool path_is_at(const char *path, const char *place) {
        size_t n = strlen(place);
        return n == 0 || (strncmp(path, place, n) == 0 && (path[n] == 0 || path[n] == '/'));
}

const char *path_in_mount(const struct mount_info *m, const char *full) {
        size_t top = strlen(m->mountpoint);
        return full && strncmp(full, m->mountpoint, top) == 0 && full[top] == '/' ? full + top + 1 : "";
}

const char *answer_str(const json_t *j, const char *key) {
        const char *s;
        return json_get_str(j, key, &s) == 0 ? s : "";
}

int64_t answer_int(const json_t *j, const char *key) {
        int64_t v;
        return json_get_int(j, key, INT64_MIN, INT64_MAX, &v) == 0 ? v : 0;
}

void mounts_free(struct mounts *m) {
        mount_infos_free(m->all, m->n);
        free(m->found);
        *m = (struct mounts){ 0 };
}

int find_mounts(const char *program, const char *state, const char *dir, struct mounts *ret) {
        _cleanup_(mounts_free) struct mounts m = { 0 };
        size_t found = 0;
        int r = mount_infos_list(state, &m.all, &m.n);
        if (r < 0)
                return cli_fail(program, EXIT_DISK, "cannot read %s: %s", state, strerror(-r));
        m.found = calloc(m.n + 1, sizeof *m.found);
        if (!m.found)
                return cli_fail(program, EXIT_OTHER, "out of memory");
        const struct mount_info *one = dir ? mount_infos_find(m.all, m.n, dir) : NULL;
        for (size_t i = 0; i < m.n; i++)
                if ((!dir || &m.all[i] == one) && alive(&m.all[i]))
                        m.found[found++] = &m.all[i];
        if (found == 0 && !dir)
                return cli_fail(program, EXIT_NOT_MOUNTED, "nothing is mounted (state in %s): mount with `tarn mount URL/WORKSPACE DIR`", state);
        if (found == 0 && one)
                return cli_fail(program, EXIT_NOT_MOUNTED, "the daemon of %s is gone: mount again with `tarn mount %s %s`, nothing is lost", dir, one->url, one->mountpoint);
        if (found == 0)
                return cli_fail(program, EXIT_NOT_MOUNTED, "%s is not a mount of tarn (state in %s); see `tarn status`", dir, state);
        *ret = m;
        m = (struct mounts){ 0 };
        return EXIT_OK;
}

bool mounts_of_arguments(const char *program, const struct arg *table, int argc, char **argv, const char *const *state_option, const char *const *dir, struct mounts *ret, int *ret_code) {
        _cleanup_free_ char *state = NULL;
        int r = args_parse(program, table, argc, argv);
        if (r < 0) {
                *ret_code = args_exit(r);
                return false;
        }
        r = state_dir(*state_option, &state);
        *ret_code = r < 0 ? cli_fail(program, EXIT_DISK, "cannot find a state directory: %s", strerror(-r)) : find_mounts(program, state, *dir, ret);
        return *ret_code == EXIT_OK;
}
