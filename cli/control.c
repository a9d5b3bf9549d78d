/* SPDX-License-Identifier: Apache-2.0 */
/* control.c: how other processes talk to a mount's daemon: a Unix socket in the mount's place, JSON, one line per message; and signals.
 *
 *   {"cmd": "status"}                       -> the object that daemon.c makes
 *   {"cmd": "wait", "timeout_ms": N}        -> {"ok": true} when nothing is pending; {"error": "timeout" | "signed_out" | "upgrade_needed" | "ending",
 *                                              "reason", "pending_files", "pending_items"}
 *   {"cmd": "umount", "lazy": BOOL}         -> {"ok": true} or {"error": "busy"}; later one more line, the status at the end; the socket closes when the daemon ends
 *   {"cmd": "nudge"}                        -> {"ok": true}: try the server now
 *   {"cmd": "retry", "path": TEXT}          -> {"retried": N}: what is parked there (no path: anywhere) is tried now
 *   {"cmd": "conflicts"}                    -> the list that conflicts.c makes
 *   {"cmd": "failpoint", "arm": TEXT}       -> {"ok": true} or {"error": ...}, then
 *   {"cmd": "failpoints"}                   -> {"points": {NAME: HITS, ...}}: for tests, see base/failpoint.h; there are none in a release build
 *   {"cmd": "accept"}                       -> {"ok": true}: what the brake holds is removed, in the background
 *   {"cmd": "held"}, {"cmd": "held_of"}, {"cmd": "held_send"}, {"cmd": "held_seen"}   -> see held.c
 *   {"cmd": "scrub"}                        -> later: the object that scrub.c makes. Who asks while one goes on gets the result of that
 *   anything else                           -> {"error": "unknown command"}
 *
 * Connection:  READING --line--> ANSWERING --written--> READING
 *                      --wait--> WAITING --drained, deadline, hopeless--> ANSWERING
 *                      --scrub--> SCRUBBING, the scrub has ended--> ANSWERING
 *                      --umount--> (UNMOUNTING, while the mount is just being made -->) ANSWERING, then HELD, written to at the end
 *
 * Threads: "tarn-control" does everything that is quick: poll over the socket, the signals (signalfd: SIGTERM, SIGINT end the mount, SIGUSR1 nudges, SIGHUP has
 * rules read again) and up to CONNS_MAX connections. It never waits for server or mount, so that `status` is answered in milliseconds whatever they do. "tarn-drain" sits in
 * cache_wait_drained while somebody waits and tells the other through an eventfd. "tarn-scrub" lives as long as a scrub does. `lock` guards what they share: asked, drained, scrubbed, stop. Who asks
 * after a wait has begun belongs to the next one.
 *
 * The socket is private (its directory is 0700, itself 0600), so that whoever can connect is the owner or root. Lines and answers are bounded; a client that neither
 * sends nor reads is dropped after IDLE_MS. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/err.h"
#include "base/failpoint.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/thread.h"
#include "daemon.h"

#define CONNS_MAX 32u
#define LINE_MAX_BYTES 16384u
#define ANSWER_MAX_BYTES (4u << 20)
#define IDLE_MS 10000
#define DRAIN_SLICE_MS 500

enum peer_state { PEER_NONE = 0, PEER_READING, PEER_ANSWERING, PEER_WAITING, PEER_SCRUBBING, PEER_UNMOUNTING, PEER_HELD };
struct conn {
        enum peer_state state; /* NONE: free */
        int fd;
        char line[LINE_MAX_BYTES];
        size_t line_bytes;
        struct buf out;
        size_t out_sent;
        bool hold;             /* after the answer: HELD */
        bool lazy;             /* UNMOUNTING */
        int64_t deadline_ms;
        uint64_t ticket;       /* WAITING: answered by a drained of at least this */
};

struct control {
        struct control_config c;
        int dir_fd, listen_fd, signal_fd, event_fd;
        pthread_t thread, drain_thread;
        bool drain_started;
        struct conn conns[CONNS_MAX]; /* the control thread's */
        struct lock lock;
        struct cond cond;
        uint64_t asked, drained;      /* lock */
        unsigned waiters;             /* lock */
        bool stop;                    /* lock */
        pthread_t scrub_thread;
        bool scrubbing;               /* the control thread's: scrub_thread is to be joined */
        bool scrub_over;              /* lock */
        json_t *scrubbed;             /* lock */
        _Atomic bool scrub_stop;
};

static int64_t now_ms(void) {
        return clock_mono_ms(clock_system());
}

static void wake(struct control *c) {
        uint64_t one = 1;
        ssize_t n = write(c->event_fd, &one, sizeof one);
        (void)n;
}

/* ---- connections ---- */

static void conn_close(struct control *c, struct conn *k) {
        if (k->state == PEER_WAITING) {
                LOCK_SCOPE(&c->lock);
                c->waiters--;
        }
        (void)close(k->fd);
        buf_free(&k->out);
        *k = (struct conn){ .fd = -1 };
}

static void conn_leave_waiting(struct control *c, struct conn *k) {
        if (k->state != PEER_WAITING)
                return;
        LOCK_SCOPE(&c->lock);
        c->waiters--;
        k->state = PEER_READING;
}

/* Takes j. */
static void conn_answer(struct control *c, struct conn *k, json_t *j) {
        conn_leave_waiting(c, k);
        buf_reset(&k->out);
        k->out_sent = 0;
        k->out.max_bytes = ANSWER_MAX_BYTES;
        if (!j || json_to_buf(j, &k->out) < 0 || buf_add(&k->out, "\n", 1) < 0) {
                json_decref(j);
                conn_close(c, k);
                return;
        }
        json_decref(j);
        k->state = PEER_ANSWERING;
        k->deadline_ms = now_ms() + IDLE_MS;
}

/* What could not be waited for: the status says why, and how much is left. */
static json_t *not_drained(struct control *c, const char *error) {
        json_t *j = c->c.status(c->c.arg);
        if (j && json_object_set_new(j, "error", json_string(error)) < 0) {
                json_decref(j);
                return NULL;
        }
        return j;
}

static void start_wait(struct control *c, struct conn *k, int64_t timeout_ms) {
        const char *hopeless = c->c.hopeless(c->c.arg);
        if (hopeless) {
                conn_answer(c, k, not_drained(c, hopeless));
                return;
        }
        k->state = PEER_WAITING;
        k->deadline_ms = timeout_ms > INT32_MAX * (int64_t)1000 ? INT64_MAX : now_ms() + timeout_ms;
        LOCK_SCOPE(&c->lock);
        k->ticket = ++c->asked;
        c->waiters++;
        cond_signal(&c->cond);
}

/* Points of one name are one place to who looks. */
static void add_point(void *arg, const char *name, uint64_t hits) {
        json_t *points = arg;
        (void)json_object_set_new(points, name, json_integer((json_int_t)hits + json_integer_value(json_object_get(points, name))));
}

static void *run_scrub(void *arg) {
        struct control *c = arg;
        json_t *j = c->c.scrub(c->c.arg, &c->scrub_stop);
        {
                LOCK_SCOPE(&c->lock);
                c->scrubbed = j;
                c->scrub_over = true;
        }
        wake(c);
        return NULL;
}

static void start_scrub(struct control *c, struct conn *k) {
        k->state = PEER_SCRUBBING;
        k->deadline_ms = INT64_MAX;
        if (c->scrubbing)
                return;
        c->scrub_over = false; /* no thread of it runs */
        if (thread_start(&c->scrub_thread, "tarn-scrub", run_scrub, c) < 0)
                conn_answer(c, k, json_pack("{s:s}", "error", "no thread"));
        else
                c->scrubbing = true;
}

static void look_at_scrub(struct control *c) {
        _cleanup_json_ json_t *j = NULL;
        if (!c->scrubbing)
                return;
        {
                LOCK_SCOPE(&c->lock);
                if (!c->scrub_over)
                        return;
                j = steal_ptr(c->scrubbed);
        }
        pthread_join(c->scrub_thread, NULL);
        c->scrubbing = false;
        for (size_t i = 0; i < CONNS_MAX; i++)
                if (c->conns[i].state == PEER_SCRUBBING)
                        conn_answer(c, &c->conns[i], json_incref(j));
}

static void try_unmount(struct control *c, struct conn *k) {
        int r = c->c.unmount(c->c.arg, k->lazy);
        if (r == -EAGAIN) {
                k->state = PEER_UNMOUNTING;
                k->deadline_ms = INT64_MAX;
                return;
        }
        k->hold = r == 0;
        conn_answer(c, k, r == 0 ? json_pack("{s:b}", "ok", 1) : json_pack("{s:s}", "error", r == -EBUSY ? "busy" : strerror(-r)));
}

static void command(struct control *c, struct conn *k) {
        _cleanup_json_ json_t *j = NULL;
        const char *cmd = "";
        int64_t timeout_ms, ino;
        if (json_parse(k->line, k->line_bytes, &j) < 0 || json_get_str(j, "cmd", &cmd) < 0)
                cmd = "";
        k->line_bytes = 0;
        if (strcmp(cmd, "status") == 0) {
                conn_answer(c, k, c->c.status(c->c.arg));
        } else if (strcmp(cmd, "nudge") == 0) {
                c->c.nudge(c->c.arg);
                conn_answer(c, k, json_pack("{s:b}", "ok", 1));
        } else if (strcmp(cmd, "retry") == 0) {
                conn_answer(c, k, c->c.retry(c->c.arg, json_get_str(j, "path", &cmd) == 0 ? cmd : NULL));
        } else if (strcmp(cmd, "accept") == 0) {
                c->c.let_go(c->c.arg);
                conn_answer(c, k, json_pack("{s:b}", "ok", 1));
        } else if (strcmp(cmd, "held") == 0) {
                conn_answer(c, k, held_list_json(c->c.cache, json_get_int(j, "after", 0, INT64_MAX, &ino) == 0 ? (uint64_t)ino : 0));
        } else if (strcmp(cmd, "held_of") == 0) {
                conn_answer(c, k, held_of_json(c->c.cache, json_get_int(j, "ino", 1, INT64_MAX, &ino) == 0 ? (uint64_t)ino : 0));
        } else if (strcmp(cmd, "held_seen") == 0) {
                conn_answer(c, k, json_get_int(j, "ino", 1, INT64_MAX, &ino) == 0 ? held_seen_json(c->c.cache, (uint64_t)ino) : json_pack("{s:s}", "error", "which?"));
        } else if (strcmp(cmd, "held_send") == 0) {
                conn_answer(c, k, json_get_int(j, "ino", 1, INT64_MAX, &ino) == 0 ? held_send_json(c->c.cache, (uint64_t)ino) : json_pack("{s:s}", "error", "which?"));
        } else if (strcmp(cmd, "conflicts") == 0) {
                conn_answer(c, k, conflicts_json(c->c.cache));
        } else if (strcmp(cmd, "scrub") == 0) {
                start_scrub(c, k);
        } else if (strcmp(cmd, "wait") == 0) {
                if (json_get_int(j, "timeout_ms", 0, INT64_MAX, &timeout_ms) < 0)
                        timeout_ms = INT64_MAX;
                start_wait(c, k, timeout_ms);
        } else if (strcmp(cmd, "umount") == 0) {
                if (json_get_bool(j, "lazy", &k->lazy) < 0)
                        k->lazy = false;
                try_unmount(c, k);
        } else if (strcmp(cmd, "failpoint") == 0) {
                int r = json_get_str(j, "arm", &cmd) == 0 ? failpoint_arm(cmd) : -EINVAL;
                conn_answer(c, k, r == 0 ? json_pack("{s:b}", "ok", 1) : json_pack("{s:s}", "error", strerror(-r)));
        } else if (strcmp(cmd, "failpoints") == 0) {
                json_t *points = json_object();
                if (points)
                        failpoint_each(add_point, points);
                conn_answer(c, k, json_pack("{s:o}", "points", points));
        } else
                conn_answer(c, k, json_pack("{s:s}", "error", "unknown command"));
}

static void conn_read(struct control *c, struct conn *k) {
        ssize_t n = recv(k->fd, k->line + k->line_bytes, sizeof k->line - k->line_bytes, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        if (n <= 0) { /* gone; also one that waited or is held */
                conn_close(c, k);
                return;
        }
        if (k->state != PEER_READING)
                return; /* chatter while it waits: not read */
        k->line_bytes += (size_t)n;
        if (k->line[k->line_bytes - 1] == '\n')
                command(c, k);
        else if (k->line_bytes == sizeof k->line)
                conn_close(c, k);
}

static void conn_write(struct control *c, struct conn *k) {
        ssize_t n = send(k->fd, k->out.data + k->out_sent, k->out.bytes - k->out_sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        if (n < 0) {
                conn_close(c, k);
                return;
        }
        k->out_sent += (size_t)n;
        if (k->out_sent == k->out.bytes) {
                k->state = k->hold ? PEER_HELD : PEER_READING;
                k->deadline_ms = k->hold ? INT64_MAX : now_ms() + IDLE_MS;
        }
}

static void conn_accept(struct control *c) {
        int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
                return;
        struct conn *k = NULL, *idle = NULL;
        for (size_t i = 0; i < CONNS_MAX && !k; i++) {
                struct conn *at = &c->conns[i];
                if (at->state == PEER_NONE)
                        k = at;
                else if (at->state == PEER_READING && (!idle || at->deadline_ms < idle->deadline_ms))
                        idle = at;
        }
        if (!k && idle) { /* full of connections that say nothing: the oldest of them goes */
                conn_close(c, idle);
                k = idle;
        }
        if (k)
                *k = (struct conn){ .state = PEER_READING, .fd = fd, .deadline_ms = now_ms() + IDLE_MS };
        else
                (void)close(fd);
}

/* ---- threads ---- */

static void on_signal(struct control *c) {
        struct signalfd_siginfo s;
        if (read(c->signal_fd, &s, sizeof s) != sizeof s)
                return;
        if (s.ssi_signo == SIGTERM || s.ssi_signo == SIGINT) {
                log_info("signal=%u from_pid=%u: ending", s.ssi_signo, s.ssi_pid);
                c->c.terminate(c->c.arg);
        } else if (s.ssi_signo == SIGHUP)
                c->c.reload(c->c.arg);
        else if (s.ssi_signo == SIGUSR1)
                c->c.nudge(c->c.arg);
}

static void look_at_waiters(struct control *c) {
        const char *hopeless = NULL;
        uint64_t drained;
        bool asked = false;
        {
                LOCK_SCOPE(&c->lock);
                drained = c->drained;
        }
        int64_t now = now_ms();
        for (size_t i = 0; i < CONNS_MAX; i++) {
                struct conn *k = &c->conns[i];
                if (k->state == PEER_WAITING) {
                        if (!asked) {
                                hopeless = c->c.hopeless(c->c.arg);
                                asked = true;
                        }
                        if (k->ticket <= drained)
                                conn_answer(c, k, json_pack("{s:b}", "ok", 1));
                        else if (hopeless || k->deadline_ms <= now)
                                conn_answer(c, k, not_drained(c, hopeless ? hopeless : "timeout"));
                } else if (k->state == PEER_UNMOUNTING)
                        try_unmount(c, k);
                else if (k->state != PEER_NONE && k->deadline_ms <= now)
                        conn_close(c, k);
        }
}

static void *run(void *arg) {
        struct control *c = arg;
        for (;;) {
                struct pollfd p[CONNS_MAX + 3] = { { c->listen_fd, POLLIN, 0 }, { c->signal_fd, POLLIN, 0 }, { c->event_fd, POLLIN, 0 } };
                struct conn *whose[CONNS_MAX];
                nfds_t n = 3;
                int64_t until = INT64_MAX, now = now_ms();
                bool stop;
                for (size_t i = 0; i < CONNS_MAX; i++) {
                        struct conn *k = &c->conns[i];
                        if (k->state == PEER_NONE)
                                continue;
                        whose[n - 3] = k;
                        p[n++] = (struct pollfd){ k->fd, k->state == PEER_ANSWERING ? POLLOUT : POLLIN, 0 };
                        until = MIN(until, k->deadline_ms);
                        if (k->state == PEER_WAITING)
                                until = MIN(until, now + DRAIN_SLICE_MS); /* signed out meanwhile? */
                }
                int timeout = until == INT64_MAX ? -1 : (int)MIN(MAX(until - now, (int64_t)0) + 1, (int64_t)60000);
                if (poll(p, n, timeout) < 0 && errno != EINTR)
                        log_error("control poll err=%s", err_name(errno));
                {
                        LOCK_SCOPE(&c->lock);
                        stop = c->stop;
                }
                if (stop)
                        return NULL;
                if (p[2].revents) {
                        uint64_t v;
                        ssize_t k = read(c->event_fd, &v, sizeof v);
                        (void)k;
                }
                if (p[1].revents)
                        on_signal(c);
                for (nfds_t i = 3; i < n; i++)
                        if (p[i].revents) {
                                if (whose[i - 3]->state == PEER_ANSWERING)
                                        conn_write(c, whose[i - 3]);
                                else
                                        conn_read(c, whose[i - 3]);
                        }
                if (p[0].revents)
                        conn_accept(c);
                look_at_scrub(c);
                look_at_waiters(c);
        }
}

static void *run_drain(void *arg) {
        struct control *c = arg;
        for (;;) {
                uint64_t ticket;
                {
                        LOCK_SCOPE(&c->lock);
                        while (!c->stop && c->waiters == 0)
                                cond_wait(&c->cond, &c->lock);
                        if (c->stop)
                                return NULL;
                        ticket = c->asked;
                }
                if (cache_wait_drained(c->c.cache, now_ms() + DRAIN_SLICE_MS) < 0)
                        continue;
                {
                        LOCK_SCOPE(&c->lock);
                        c->drained = ticket;
                }
                wake(c);
                /* those who wait now are answered; sleep until somebody asks anew */
                LOCK_SCOPE(&c->lock);
                while (!c->stop && c->asked == c->drained)
                        cond_wait(&c->cond, &c->lock);
        }
}

/* ---- making and ending ---- */

static void signals(sigset_t *ret) {
        sigemptyset(ret);
        sigaddset(ret, SIGTERM);
        sigaddset(ret, SIGINT);
        sigaddset(ret, SIGHUP);
        sigaddset(ret, SIGUSR1);
}

void control_block_signals(sigset_t *ret_old) {
        sigset_t s;
        signals(&s);
        sigaddset(&s, SIGPIPE);
        (void)pthread_sigmask(SIG_BLOCK, &s, ret_old);
}

static int open_socket(struct control *c) {
        struct sockaddr_un a = { .sun_family = AF_UNIX };
        c->dir_fd = open(c->c.place_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (c->dir_fd < 0)
                return -errno;
        if (unlinkat(c->dir_fd, "control.sock", 0) < 0 && errno != ENOENT) /* a killed daemon's; we hold the place's lock */
                return -errno;
        (void)snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d/control.sock", c->dir_fd); /* see ask.c */
        c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (c->listen_fd < 0)
                return -errno;
        mode_t old = umask(0177);
        int r = bind(c->listen_fd, (struct sockaddr *)&a, sizeof a) < 0 ? -errno : 0;
        (void)umask(old);
        if (r == 0 && listen(c->listen_fd, 16) < 0)
                r = -errno;
        return r;
}

int control_start(const struct control_config *config, struct control **ret) {
        struct control *c = calloc(1, sizeof *c);
        sigset_t s;
        if (!c)
                return -ENOMEM;
        c->c = *config;
        c->dir_fd = c->listen_fd = c->signal_fd = c->event_fd = -1;
        for (size_t i = 0; i < CONNS_MAX; i++)
                c->conns[i].fd = -1;
        lock_init(&c->lock, "control", RANK_QUEUE);
        cond_init(&c->cond);
        signals(&s);
        int r = open_socket(c);
        if (r == 0 && (c->signal_fd = signalfd(-1, &s, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
                r = -errno;
        if (r == 0 && (c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
                r = -errno;
        if (r == 0)
                r = thread_start(&c->drain_thread, "tarn-drain", run_drain, c);
        if (r == 0) {
                r = thread_start(&c->thread, "tarn-control", run, c);
                if (r < 0) {
                        {
                                LOCK_SCOPE(&c->lock);
                                c->stop = true;
                                cond_broadcast(&c->cond);
                        }
                        pthread_join(c->drain_thread, NULL);
                }
        }
        if (r < 0) {
                control_free(c);
                return r;
        }
        *ret = c;
        return 0;
}

void control_poke(struct control *c) {
        wake(c);
}

void control_stop(struct control *c, json_t *last) {
        _cleanup_json_ json_t *ending = json_pack("{s:s}", "error", "ending");
        {
                LOCK_SCOPE(&c->lock);
                c->stop = true;
                cond_broadcast(&c->cond);
        }
        atomic_store(&c->scrub_stop, true);
        wake(c);
        pthread_join(c->thread, NULL);
        pthread_join(c->drain_thread, NULL);
        if (c->scrubbing) {
                pthread_join(c->scrub_thread, NULL);
                json_decref(c->scrubbed);
        }
        (void)unlinkat(c->dir_fd, "control.sock", 0);
        for (size_t i = 0; i < CONNS_MAX; i++) {
                struct conn *k = &c->conns[i];
                k->hold |= k->state == PEER_UNMOUNTING;
                json_t *j = k->hold ? last : k->state == PEER_WAITING || k->state == PEER_SCRUBBING ? ending : NULL;
                if (k->state == PEER_NONE || !j)
                        continue;
                k->out.max_bytes = ANSWER_MAX_BYTES;
                if (k->state != PEER_ANSWERING)
                        buf_reset(&k->out), k->out_sent = 0;
                if (json_to_buf(j, &k->out) == 0 && buf_add(&k->out, "\n", 1) == 0 && k->out_sent < k->out.bytes) {
                        ssize_t n = send(k->fd, k->out.data + k->out_sent, k->out.bytes - k->out_sent, MSG_DONTWAIT | MSG_NOSIGNAL);
                        (void)n; /* who does not read learns it from the end of the connection */
                }
        }
        json_decref(last);
}

void control_free(struct control *c) {
        if (!c)
                return;
        for (size_t i = 0; i < CONNS_MAX; i++)
                if (c->conns[i].state != PEER_NONE) {
                        if (!c->conns[i].hold) /* those who wait for our end see it when the process ends */
                                (void)close(c->conns[i].fd);
                        buf_free(&c->conns[i].out);
                }
        cleanup_close_p(&c->listen_fd);
        cleanup_close_p(&c->signal_fd);
        cleanup_close_p(&c->event_fd);
        cleanup_close_p(&c->dir_fd);
        cond_destroy(&c->cond);
        lock_destroy(&c->lock);
        free(c);
}
