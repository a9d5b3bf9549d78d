/* SPDX-License-Identifier: Apache-2.0 */
/* admin.c: users, workspaces and tokens, by command.
 *
 * The data directory belongs to one process. While a server runs, `tarn-server user add` finds the directory locked and asks the server instead,
 * through DATA/admin.sock: who can open that socket (mode 0600 in a directory of mode 0700) owns the data anyway; the peer's uid is checked too.
 *
 * One exchange per connection: the asker sends one JSON object {words, password?} and closes its sending side; the server answers one object {code, text}
 * (code: 0 or a positive errno) and closes. Both are bounded; each side gives the other ADMIN_MS. One thread serves them in turn: they are rare and short. fsck,
 * scrub, gc and backup may take hours: such a command runs on a thread of its own ("admin-job"), one at a time, and its asker waits for it without a limit; the
 * end of the server ends it.
 *
 * The thread waits in poll for the socket and for an eventfd that ends it. */
#include "admin.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include "api_call.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "maintain.h"

#define ADMIN_MS 10000
#define ADMIN_BYTES_MAX (256u << 10)
#define SOCKET_NAME "admin.sock"

static int say(struct buf *b, int err, const char *fmt, ...) _printf_(3, 4);
static int say(struct buf *b, int err, const char *fmt, ...) {
        char text[600];
        va_list args;
        int r;

        va_start(args, fmt);
        (void)vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        r = buf_add_str(b, text);
        return r < 0 ? r : err;
}

static int run_user_add(struct service *s, const char *name, const char *password, struct buf *b) {
        int r = meta_user_add(s->meta, name, password);

        switch (r) {
        case 0:
                return say(b, 0, "user %s added", name);
        case -EEXIST:
                return say(b, r, "there is a user %s already", name);
        case -EINVAL:
                return say(b, r, "a user's name has 1 to %u of the characters A-Z a-z 0-9 . _ - @, a password 8 to 1024 bytes", META_NAME_MAX);
        default:
                return say(b, r, "cannot add user %s: %s", name, err_name(r));
        }
}

static int run_workspace_add(struct service *s, const char *name, const char *owner, bool portable, struct buf *b) {
        uint64_t ws;
        int r = meta_workspace_add(s->meta, name, owner, portable ? NAMES_PORTABLE : NAMES_EXACT, 0, &ws);

        switch (r) {
        case 0:
                return say(b, 0, "workspace %s added", name);
        case -EEXIST:
                return say(b, r, "there is a workspace %s already", name);
        case -ENOENT:
                return say(b, r, "there is no user %s; add one with: tarn-server user add %s", owner, owner);
        case -EINVAL:
                return say(b, r, "a workspace's name has 1 to %u of the characters A-Z a-z 0-9 . _ - @", META_NAME_MAX);
        default:
                return say(b, r, "cannot add workspace %s: %s", name, err_name(r));
        }
}

static int run_token_add(struct service *s, const char *user, struct buf *b) {
        char token[72];
        struct id device;
        int r = meta_script_token_add(s->meta, user, "script", token, &device);

        if (r == 0)
                return say(b, 0, "%s", token);
        if (r == -ENOENT)
                return say(b, r, "there is no user %s; add one with: tarn-server user add %s", user, user);
        return say(b, r, "cannot make a token for %s: %s", user, err_name(r));
}

int admin_run(struct service *s, const char *const *words, size_t n, const char *password, struct buf *ret_text) {
        if (n == 3 && strcmp(words[0], "user") == 0 && strcmp(words[1], "add") == 0)
                return run_user_add(s, words[2], password, ret_text);
        if ((n == 5 || (n == 6 && strcmp(words[5], "--portable-names") == 0)) && strcmp(words[0], "workspace") == 0 && strcmp(words[1], "add") == 0 && strcmp(words[3], "--owner") == 0)
                return run_workspace_add(s, words[2], words[4], n == 6, ret_text);
        if (n == 4 && strcmp(words[0], "token") == 0 && strcmp(words[1], "add") == 0 && strcmp(words[2], "--user") == 0)
                return run_token_add(s, words[3], ret_text);
        if (n > 0 && maintain_knows(words[0]))
                return maintain_run(s, words, n, false, ret_text);
        return say(ret_text, -EINVAL, "unknown command; see tarn-server --help");
}

struct admin {
        struct service *service;
        int dir_fd, listen_fd, stop_fd;
        pthread_t thread, job;
        bool started, job_started;       /* the admin thread's, and admin_close's after it */
        atomic_bool job_ended;
};

/* One command, taken apart. */
struct asked { struct admin *a; int fd; json_t *ask; const char *words[ADMIN_WORDS_MAX], *password; size_t n; unsigned uid; };

/* Reads until the other side closes. */
static int receive_all(int fd, struct buf *b) {
        for (;;) {
                char piece[4096];
                ssize_t n = recv(fd, piece, sizeof piece, 0);
                int r;

                if (n == 0)
                        return 0;
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return errno == EAGAIN ? -ETIMEDOUT : -errno;
                r = buf_add(b, piece, (size_t)n);
                if (r < 0)
                        return r;
        }
}

static int send_all(int fd, const void *p, size_t n) {
        const uint8_t *at = p;

        while (n > 0) {
                ssize_t m = send(fd, at, n, MSG_NOSIGNAL);

                if (m < 0 && errno == EINTR)
                        continue;
                if (m < 0)
                        return errno == EAGAIN ? -ETIMEDOUT : -errno;
                at += m;
                n -= (size_t)m;
        }
        return 0;
}

static void set_timeouts(int fd, int ms) {
        struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};

        (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv);
}

static void asked_free(struct asked *q) {
        if (q->fd >= 0)
                (void)close(q->fd);
        json_decref(q->ask);
        free(q);
}

/* Who asks, and what. */
static int asked_read(struct asked *q, struct buf *in) {
        struct ucred peer;
        socklen_t size = sizeof peer;
        json_t *list;
        int r;

        if (getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
                return -errno;
        if (peer.uid != 0 && peer.uid != geteuid())
                return -EACCES;
        q->uid = peer.uid;
        set_timeouts(q->fd, ADMIN_MS);
        r = receive_all(q->fd, in);
        if (r >= 0)
                r = json_parse(in->data, in->bytes, &q->ask);
        if (r < 0)
                return r;
        list = json_object_get(q->ask, "words");
        q->n = json_array_size(list);
        if (q->n == 0 || q->n > ADMIN_WORDS_MAX)
                return -EPROTO;
        for (size_t i = 0; i < q->n; i++) {
                q->words[i] = json_string_value(json_array_get(list, i));
                if (!q->words[i])
                        return -EPROTO;
        }
        r = json_get_str(q->ask, "password", &q->password);
        return r == -ENOENT ? 0 : r;
}

static int answer_send(struct asked *q, int result, struct buf *text) {
        _cleanup_buf_ struct buf out = BUF_INIT(4 * ADMIN_BYTES_MAX);
        _cleanup_json_ json_t *answer = json_pack("{s:i, s:s}", "code", result < 0 ? -result : 0, "text", buf_text(text) ? (const char *)text->data : "");
        int r = answer ? json_to_buf(answer, &out) : -ENOMEM;

        return r < 0 ? r : send_all(q->fd, out.data, out.bytes);
}

/* ended: set before the answer goes out, because whoever has it may come with the next command at once. */
static int asked_run(struct asked *q, atomic_bool *ended) {
        _cleanup_buf_ struct buf text = BUF_INIT(ADMIN_BYTES_MAX);
        int r = admin_run(q->a->service, q->words, q->n, q->password, &text);

        if (ended)
                atomic_store(ended, true);
        log_info("event=admin command=%s %s result=%s uid=%u", q->words[0], q->n > 1 ? q->words[1] : "", r < 0 ? err_name(r) : "ok", q->uid);
        return answer_send(q, r, &text);
}

static void *job_thread(void *arg) {
        struct asked *q = arg;
        struct admin *a = q->a;
        int r = asked_run(q, &a->job_ended);

        if (r < 0)
                log_debug("event=admin_job error=%s", err_name(r));
        asked_free(q);
        return NULL;
}

/* Takes q over. */
static int job_start(struct admin *a, struct asked *q) {
        int r;

        if (a->job_started && atomic_load(&a->job_ended)) {
                (void)pthread_join(a->job, NULL);
                a->job_started = false;
        }
        if (a->job_started) { /* never on this thread: admin_close waits for it before it stops the job */
                _cleanup_buf_ struct buf text = BUF_INIT(1024);

                r = answer_send(q, say(&text, -EBUSY, "only one of fsck, scrub, gc and backup runs at a time; another is under way"), &text);
                asked_free(q);
                return r;
        }
        atomic_store(&a->job_ended, false);
        r = thread_start(&a->job, "admin-job", job_thread, q);
        a->job_started = r >= 0;
        if (r < 0)
                asked_free(q);
        return r;
}

/* One exchange; takes fd over. -errno: the asker broke it off. */
static int serve_one(struct admin *a, int fd) {
        _cleanup_buf_ struct buf in = BUF_INIT(ADMIN_BYTES_MAX);
        struct asked *q = calloc(1, sizeof *q);
        int r;

        if (!q) {
                (void)close(fd);
                return -ENOMEM;
        }
        q->a = a;
        q->fd = fd;
        r = asked_read(q, &in);
        if (r >= 0 && maintain_knows(q->words[0]))
                return job_start(a, q);
        if (r >= 0)
                r = asked_run(q, NULL);
        asked_free(q);
        return r;
}

static void *admin_thread(void *arg) {
        struct admin *a = arg;

        for (;;) {
                struct pollfd p[2] = {{.fd = a->listen_fd, .events = POLLIN}, {.fd = a->stop_fd, .events = POLLIN}};
                int fd, r;

                if (poll(p, 2, -1) < 0 && errno != EINTR)
                        break;
                if (p[1].revents)
                        break;
                if (!(p[0].revents & POLLIN))
                        continue;
                fd = accept4(a->listen_fd, NULL, NULL, SOCK_CLOEXEC);
                if (fd < 0)
                        continue;
                r = serve_one(a, fd);
                if (r < 0)
                        log_debug("event=admin error=%s", err_name(r));
        }
        return NULL;
}

/* The socket's address through a descriptor of its directory: data directories may have long paths. */
static int address(int dir_fd, struct sockaddr_un *ret) {
        *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
        if (snprintf(ret->sun_path, sizeof ret->sun_path, "/proc/self/fd/%d/%s", dir_fd, SOCKET_NAME) >= (int)sizeof ret->sun_path)
                return -ENAMETOOLONG;
        return 0;
}

int admin_open(struct service *s, const char *data_dir, struct admin **ret) {
        struct admin *a = calloc(1, sizeof *a);
        struct sockaddr_un addr;
        int r = 0;

        if (!a)
                return -ENOMEM;
        a->service = s;
        a->listen_fd = a->stop_fd = -1;
        a->dir_fd = open(data_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (a->dir_fd < 0)
                r = -errno;
        if (r >= 0) {
                a->stop_fd = eventfd(0, EFD_CLOEXEC);
                a->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
                if (a->stop_fd < 0 || a->listen_fd < 0)
                        r = -errno;
        }
        if (r >= 0)
                r = address(a->dir_fd, &addr);
        if (r >= 0 && unlinkat(a->dir_fd, SOCKET_NAME, 0) < 0 && errno != ENOENT)
                r = -errno;
        if (r >= 0 && (bind(a->listen_fd, (struct sockaddr *)&addr, sizeof addr) < 0 || fchmodat(a->dir_fd, SOCKET_NAME, 0600, 0) < 0 || listen(a->listen_fd, 16) < 0))
                r = -errno;
        if (r >= 0)
                r = thread_start(&a->thread, "admin", admin_thread, a);
        a->started = r >= 0;
        if (r < 0) {
                admin_close(a);
                return r;
        }
        *ret = a;
        return 0;
}

void admin_close(struct admin *a) {
        uint64_t one = 1;

        if (!a)
                return;
        if (a->started) {
                if (write(a->stop_fd, &one, sizeof one) != sizeof one)
                        log_warn("event=admin_stop error=%s", err_name(errno));
                (void)pthread_join(a->thread, NULL);
                if (a->job_started) {
                        maintain_stop(a->service);
                        (void)pthread_join(a->job, NULL);
                }
                (void)unlinkat(a->dir_fd, SOCKET_NAME, 0);
        }
        if (a->listen_fd >= 0)
                (void)close(a->listen_fd);
        if (a->stop_fd >= 0)
                (void)close(a->stop_fd);
        if (a->dir_fd >= 0)
                (void)close(a->dir_fd);
        free(a);
}

int admin_ask(const char *data_dir, const char *const *words, size_t n, const char *password, struct buf *ret_text) {
        _cleanup_buf_ struct buf out = BUF_INIT(ADMIN_BYTES_MAX), in = BUF_INIT(4 * ADMIN_BYTES_MAX);
        _cleanup_close_ int dir_fd = open(data_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd = -1;
        _cleanup_json_ json_t *ask = json_pack("{s:[]}", "words"), *answer = NULL;
        struct sockaddr_un addr;
        const char *text;
        int64_t code;
        int r;

        if (dir_fd < 0)
                return -errno;
        if (!ask)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                if (json_array_append_new(json_object_get(ask, "words"), json_string(words[i])) < 0)
                        return -EINVAL;
        if (password && json_object_set_new(ask, "password", json_string(password)) < 0)
                return -EINVAL;
        r = json_to_buf(ask, &out);
        if (r >= 0)
                r = address(dir_fd, &addr);
        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return -errno;
        set_timeouts(fd, maintain_knows(words[0]) ? 0 : 3 * ADMIN_MS);
        if (connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0)
                return errno == ENOENT ? -ECONNREFUSED : -errno;
        r = send_all(fd, out.data, out.bytes);
        if (r >= 0 && shutdown(fd, SHUT_WR) < 0)
                r = -errno;
        if (r >= 0)
                r = receive_all(fd, &in);
        if (r >= 0)
                r = json_parse(in.data, in.bytes, &answer);
        if (r < 0)
                return r == -EINVAL ? -EPROTO : r;
        if (json_get_int(answer, "code", 0, 4095, &code) < 0 || json_get_str(answer, "text", &text) < 0)
                return -EPROTO;
        r = buf_add_str(ret_text, text);
        return r < 0 ? r : (int)-code;
}
