/* SPDX-License-Identifier: Apache-2.0 */
/* test_two.c: two clients (real caches, engines on their threads, libcurl) and a real tarn-server process on loopback. What one does appears in the other within a second; a
 * 64 MiB file goes over; what is done while the server is down is there after it came back; a read of what is not cached fails at once while it is down.
 *
 * usage: test_two TARN-SERVER */
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "api/client.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/io.h"
#include "base/lock.h"
#include "base/log.h"
#include "sync/engine.h"
#include "../tmpdir.h"

static const char *server_program;
static char top[200], url[64];
static int port;
static pid_t server_pid;

static int64_t now_ms(void) {
        return clock_mono_ms(clock_system());
}

/* ---- the server ---- */

static pid_t spawn(const char *const *argv, const char *input) {
        int in[2];
        assert_int_equal(pipe2(in, O_CLOEXEC), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void)dup2(in[0], 0);
                int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
                (void)dup2(fd, 1);
                if (!getenv("TARN_TEST_VERBOSE"))
                        (void)dup2(fd, 2);
                execv(argv[0], (char *const *)argv);
                _exit(127);
        }
        (void)close(in[0]);
        if (input)
                assert_int_equal(write_full(in[1], input, strlen(input)), 0);
        (void)close(in[1]);
        return pid;
}

static void run(const char *const *argv, const char *input) {
        int status;
        pid_t pid = spawn(argv, input);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
                fail_msg("%s %s: status %d", argv[0], argv[1], status);
}

static void pick_port(void) {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t n = sizeof a;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_true(fd >= 0);
        assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
        port = ntohs(a.sin_port);
        (void)close(fd);
        snprintf(url, sizeof url, "http://127.0.0.1:%d", port);
}

static int no_token(void *arg, char *ret, size_t n) {
        return -ENOENT;
}

static void server_start(void) {
        char data[300], listen_at[64];
        snprintf(data, sizeof data, "%s/server", top);
        snprintf(listen_at, sizeof listen_at, "127.0.0.1:%d", port);
        server_pid = spawn((const char *const[]){ server_program, "serve", "--data", data, "--listen", listen_at, NULL }, NULL);
        static struct counters counters;
        struct transport_curl_config config = { .base_url = url, .counters = &counters, .token = no_token };
        struct transport *t;
        assert_int_equal(transport_curl_new(&config, &t), 0);
        int64_t deadline = now_ms() + 20000;
        for (;;) {
                struct http_call *c = http_call_new(HTTP_GET, 0, 1 << 20);
                assert_non_null(c);
                c->path = strdup("/v1");
                c->no_auth = true;
                c->deadline_ms = now_ms() + 2000;
                int r = transport_call(t, c);
                http_call_free(c);
                if (r == 0)
                        break;
                assert_int_equal(waitpid(server_pid, NULL, WNOHANG), 0);
                if (now_ms() > deadline)
                        fail_msg("the server does not answer: %s", err_name(r));
        }
        transport_curl_free(t);
}

static void server_stop(void) {
        if (server_pid <= 0)
                return;
        assert_int_equal(kill(server_pid, SIGTERM), 0);
        int status;
        assert_int_equal(waitpid(server_pid, &status, 0), server_pid);
        server_pid = 0;
        assert_int_equal(status, 0); /* what a sanitizer finds at the end shows here */
}

/* ---- a client ---- */

struct client {
        char name[16], dir[300], state[300];
        struct pool *pool;
        struct session *session;
        struct transport *transport;
        struct cache *cache;
        struct engine *engine;
        struct counters counters;
        struct listener listener;
        struct lock lock; struct cond cond; uint64_t notes;
};

static void on_notes(struct listener *l, const struct note *notes, size_t n) {
        struct client *c = container_of(l, struct client, listener);
        LOCK_SCOPE(&c->lock);
        c->notes += n;
        cond_broadcast(&c->cond);
}

static void on_wake(struct listener *l) {
}

static void client_start(struct client *c, const char *name) {
        char why[300] = "";
        memset(c, 0, sizeof *c);
        snprintf(c->name, sizeof c->name, "%s", name);
        snprintf(c->dir, sizeof c->dir, "%s/cache-%s", top, name);
        snprintf(c->state, sizeof c->state, "%s/state-%s", top, name);
        assert_int_equal(mkdir_p(c->state, 0700), 0);
        lock_init(&c->lock, "test", RANK_QUEUE);
        cond_init(&c->cond);
        c->listener = (struct listener){ .notes = on_notes, .wake = on_wake };
        if (session_open(c->state, url, &c->session) < 0) {
                if (session_login(c->state, url, NULL, "ada", "correct horse", why, sizeof why) < 0)
                        fail_msg("login: %s", why);
                assert_int_equal(session_open(c->state, url, &c->session), 0);
        }
        assert_int_equal(pool_new("work", 4, &c->pool), 0);
        struct transport_curl_config tc = { .base_url = url, .counters = &c->counters, .token = session_token, .token_arg = c->session };
        assert_int_equal(transport_curl_new(&tc, &c->transport), 0);
        struct cache_config cc = { .dir = c->dir, .limit_bytes = 512u << 20, .uid = 1000, .gid = 1000, .clock = clock_system(), .rng = rng_system(), .counters = &c->counters,
                                   .workers = pool_executor(c->pool) };
        if (cache_open(&cc, &c->cache, why, sizeof why) < 0)
                fail_msg("cache_open: %s", why);
        struct engine_config ec = { .cache = c->cache, .transport = c->transport, .session = c->session, .workers = pool_executor(c->pool), .clock = clock_system(),
                                    .rng = rng_system(), .counters = &c->counters, .workspace = "docs", .host = c->name, .net_timeout_ms = 10000 };
        assert_int_equal(engine_new(&ec, &c->engine), 0);
        cache_set_source(c->cache, engine_source(c->engine));
        cache_set_listener(c->cache, engine_listener(c->engine));
        cache_set_listener(c->cache, &c->listener);
        assert_int_equal(engine_start(c->engine), 0);
        if (engine_wait_loaded(c->engine, now_ms() + 20000, why, sizeof why) < 0)
                fail_msg("wait_loaded: %s", why);
}

static void client_stop(struct client *c) {
        engine_stop(c->engine);
        cache_close(c->cache);
        engine_free(c->engine);
        transport_curl_free(c->transport);
        pool_free(c->pool);
        session_free(c->session);
        cond_destroy(&c->cond);
        lock_destroy(&c->lock);
}

/* Waits until predicate holds, looking after each note. Returns how long it took in ms. */
static int64_t wait_until(struct client *c, bool (*predicate)(struct client *c, const void *arg), const void *arg, int64_t timeout_ms, const char *what) {
        int64_t start = now_ms();
        for (;;) {
                uint64_t seen;
                {
                        LOCK_SCOPE(&c->lock);
                        seen = c->notes;
                }
                if (predicate(c, arg))
                        return now_ms() - start;
                if (now_ms() >= start + timeout_ms)
                        fail_msg("%s: not within %lld ms", what, (long long)timeout_ms);
                LOCK_SCOPE(&c->lock);
                while (c->notes == seen)
                        if (cond_wait_until(&c->cond, &c->lock, MIN(start + timeout_ms, now_ms() + 100)) < 0)
                                break;
        }
}

static bool is_kept(void *arg, uint64_t ino) {
        return false;
}

static int find(struct client *c, const char *name, struct node *ret) {
        return tree_lookup(c->cache->tree, INO_ROOT, name, strlen(name), ret);
}

static bool is_there(struct client *c, const void *arg) {
        struct node n;
        return find(c, arg, &n) >= 0;
}

static bool is_gone(struct client *c, const void *arg) {
        struct node n;
        return find(c, arg, &n) == -ENOENT;
}

struct sized { const char *name; uint64_t size; };
static bool has_size(struct client *c, const void *arg) {
        const struct sized *s = arg;
        struct node n;
        return find(c, s->name, &n) >= 0 && n.size == s->size;
}

static void write_file(struct client *c, const char *name, const void *p, size_t n) {
        struct tree_new what = { .kind = NODE_FILE, .mode = 0644, .uid = 1000, .gid = 1000 };
        struct node node;
        struct file *f;
        int r = find(c, name, &node);
        if (r == -ENOENT)
                r = tree_create(c->cache->tree, INO_ROOT, name, strlen(name), &what, &node);
        assert_true(r >= 0);
        assert_int_equal(file_open(c->cache, node.ino, node.incarnation, true, true, &f), 0);
        for (size_t at = 0; at < n;) {
                struct file_write w = { .file = f, .off = at, .buf = (const uint8_t *)p + at, .n = MIN(n - at, (size_t)1 << 20), .deadline_ms = now_ms() + 10000 };
                ssize_t k = file_write(&w);
                assert_true(k > 0);
                at += (size_t)k;
        }
        file_release(f, true);
}

static void check_file(struct client *c, const char *name, const void *p, size_t n) {
        struct node node;
        struct blob *blob;
        assert_true(find(c, name, &node) >= 0);
        assert_int_equal(node.size, n);
        assert_int_equal(blob_get(c->cache->blobs, &node.content, &blob), 0);
        uint8_t *buf = malloc(1 << 20);
        assert_non_null(buf);
        for (size_t at = 0; at < n;) {
                size_t k = MIN(n - at, (size_t)1 << 20);
                assert_int_equal(blob_pread(blob, at, buf, k, now_ms() + 20000), (ssize_t)k);
                assert_memory_equal(buf, (const uint8_t *)p + at, k);
                at += k;
        }
        free(buf);
        blob_put(blob);
}

/* ---- tests ---- */

static struct client a, b;

static void appears_within_a_second(void **state) {
        struct node n, replaced;
        int64_t worst = 0;
        for (int i = 0; i < 5; i++) {
                char name[32], to[32], text[64];
                snprintf(name, sizeof name, "hello%d.txt", i);
                snprintf(to, sizeof to, "moved%d.txt", i);
                snprintf(text, sizeof text, "first text %d", i);
                write_file(&a, name, text, strlen(text));
                worst = MAX(worst, wait_until(&b, has_size, &(struct sized){ name, strlen(text) }, 5000, "create"));
                check_file(&b, name, text, strlen(text));
                snprintf(text, sizeof text, "another text, longer %d", i);
                write_file(&a, name, text, strlen(text));
                worst = MAX(worst, wait_until(&b, has_size, &(struct sized){ name, strlen(text) }, 5000, "edit"));
                check_file(&b, name, text, strlen(text));
                assert_int_equal(tree_rename(b.cache->tree, INO_ROOT, name, strlen(name), INO_ROOT, to, strlen(to), 0, is_kept, NULL, &n, &replaced), 0);
                worst = MAX(worst, wait_until(&a, is_there, to, 5000, "rename"));
                assert_true(is_gone(&a, name));
                assert_int_equal(tree_unlink(b.cache->tree, INO_ROOT, to, strlen(to), false, is_kept, NULL, &n), 0);
                worst = MAX(worst, wait_until(&a, is_gone, to, 5000, "delete"));
        }
        print_message("slowest appearance %lld ms\n", (long long)worst);
        assert_true(worst < 1000);
}

static void a_large_file(void **state) {
        size_t n = 64u << 20;
        uint8_t *p = malloc(n);
        struct rng_seeded rng;
        rng_seed(&rng, 64);
        rng.rng.fill(&rng.rng, p, n);
        int64_t start = now_ms();
        write_file(&a, "large.bin", p, n);
        assert_int_equal(cache_wait_drained(a.cache, now_ms() + 60000), 0);
        int64_t up = now_ms();
        wait_until(&b, has_size, &(struct sized){ "large.bin", n }, 5000, "large file");
        check_file(&b, "large.bin", p, n);
        print_message("64 MiB: %lld ms up, %lld ms down\n", (long long)(up - start), (long long)(now_ms() - up));
        /* a few bytes in the middle: only their neighbourhood goes */
        uint64_t before = counter_get(&a.counters, blocks_sent);
        struct node node;
        struct file *f;
        assert_true(find(&a, "large.bin", &node) >= 0);
        assert_int_equal(file_open(a.cache, node.ino, node.incarnation, true, false, &f), 0);
        memcpy(p + (32 << 20), "changed", 7);
        struct file_write w = { .file = f, .off = 32 << 20, .buf = "changed", .n = 7, .deadline_ms = now_ms() + 5000 };
        assert_int_equal(file_write(&w), 7);
        file_release(f, true);
        assert_int_equal(cache_wait_drained(a.cache, now_ms() + 20000), 0);
        uint64_t blocks = counter_get(&a.counters, blocks_sent) - before;
        print_message("an edit of 7 bytes sent %llu blocks\n", (unsigned long long)blocks);
        assert_true(blocks <= 6);
        struct node there;
        assert_true(find(&a, "large.bin", &node) >= 0);
        int64_t deadline = now_ms() + 5000;
        do {
                wait_until(&b, has_size, &(struct sized){ "large.bin", n }, 5000, "edited large file");
                assert_true(find(&b, "large.bin", &there) >= 0);
        } while (!content_equal(&there.content, &node.content) && now_ms() < deadline);
        check_file(&b, "large.bin", p, n);
        free(p);
}

struct state_is { enum conn_state state; };
static bool state_is(struct client *c, const void *arg) {
        struct engine_status s;
        engine_status(c->engine, &s);
        return s.state == ((const struct state_is *)arg)->state;
}

static void queues_while_offline(void **state) {
        char name[40], text[64];
        struct node n;
        write_file(&a, "uncached.txt", "bytes that b has never read", 27);
        wait_until(&b, has_size, &(struct sized){ "uncached.txt", 27 }, 5000, "uncached");
        server_stop();
        wait_until(&a, state_is, &(struct state_is){ CONN_OFFLINE }, 15000, "offline");
        wait_until(&b, state_is, &(struct state_is){ CONN_OFFLINE }, 15000, "offline");
        struct blob *blob;
        char buf[32];
        assert_true(find(&b, "uncached.txt", &n) >= 0);
        assert_int_equal(blob_get(b.cache->blobs, &n.content, &blob), 0);
        int64_t start = now_ms();
        assert_int_equal(blob_pread(blob, 0, buf, 27, start + 20000), -EHOSTDOWN);
        assert_true(now_ms() - start < 50);
        blob_put(blob);
        for (int i = 0; i < 100; i++) {
                snprintf(name, sizeof name, "offline%d.txt", i);
                snprintf(text, sizeof text, "written without a server %d", i);
                write_file(&a, name, text, strlen(text));
        }
        struct tree_new dir = { .kind = NODE_DIR, .mode = 0755, .uid = 1000, .gid = 1000 };
        for (int i = 0; i < 50; i++) {
                struct node replaced;
                snprintf(name, sizeof name, "dir%d", i);
                assert_true(tree_create(a.cache->tree, INO_ROOT, name, strlen(name), &dir, &n) >= 0);
                uint64_t to = n.ino;
                snprintf(name, sizeof name, "offline%d.txt", i);
                assert_int_equal(tree_rename(a.cache->tree, INO_ROOT, name, strlen(name), to, "moved.txt", 9, 0, is_kept, NULL, &n, &replaced), 0);
        }
        assert_int_equal(cache_wait_drained(a.cache, now_ms() + 50), -ETIMEDOUT);
        server_start();
        start = now_ms();
        assert_int_equal(cache_wait_drained(a.cache, now_ms() + 30000), 0);
        print_message("200 operations drained %lld ms after the server came back\n", (long long)(now_ms() - start));
        wait_until(&b, is_there, "offline99.txt", 15000, "drained files");
        for (int i = 0; i < 100; i++) {
                snprintf(text, sizeof text, "written without a server %d", i);
                if (i >= 50) {
                        snprintf(name, sizeof name, "offline%d.txt", i);
                        check_file(&b, name, text, strlen(text));
                } else {
                        snprintf(name, sizeof name, "dir%d", i);
                        wait_until(&b, is_there, name, 15000, name);
                }
        }
}

/* A client that is stopped and started again shows the tree at once, without the server, and goes on where it was. */
static void starts_offline(void **state) {
        struct node n;
        write_file(&b, "kept.txt", "kept", 4);
        assert_int_equal(cache_wait_drained(b.cache, now_ms() + 10000), 0);
        client_stop(&b);
        server_stop();
        client_start(&b, "b");
        assert_true(find(&b, "kept.txt", &n) >= 0);
        check_file(&b, "kept.txt", "kept", 4);
        write_file(&b, "early.txt", "before the server is back", 25);
        server_start();
        wait_until(&a, has_size, &(struct sized){ "early.txt", 25 }, 20000, "work of an offline start");
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) {
        return remove(path);
}

static int setup(void **state) {
        char data[300];
        const char *base = getenv("TMPDIR");
        snprintf(top, sizeof top, "%s/tarn-two-XXXXXX", base ? base : "/tmp");
        assert_non_null(tmpdir_new(top));
        snprintf(data, sizeof data, "%s/server", top);
        pick_port();
        run((const char *const[]){ server_program, "init", "--data", data, NULL }, NULL);
        run((const char *const[]){ server_program, "user", "add", "ada", "--password-stdin", "--data", data, NULL }, "correct horse\n");
        run((const char *const[]){ server_program, "workspace", "add", "docs", "--owner", "ada", "--data", data, NULL }, NULL);
        server_start();
        client_start(&a, "a");
        client_start(&b, "b");
        return 0;
}

static int teardown(void **state) {
        client_stop(&a);
        client_stop(&b);
        server_stop();
        (void)nftw(top, remove_one, 16, FTW_DEPTH | FTW_PHYS);
        return 0;
}

int main(int argc, char **argv) {
        if (argc < 2) {
                fprintf(stderr, "usage: test_two TARN-SERVER\n");
                return 2;
        }
        server_program = argv[1];
        if (log_open("test", getenv("TARN_TEST_VERBOSE") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, NULL) < 0)
                return 1;
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(appears_within_a_second),
                cmocka_unit_test(a_large_file),
                cmocka_unit_test(queues_while_offline),
                cmocka_unit_test(starts_offline),
        };
        return cmocka_run_group_tests(tests, setup, teardown);
}
