/* SPDX-License-Identifier: Apache-2.0 */
/* test_transport.c: the transport and the session against servers that misbehave on request (http_peer.py): done comes exactly once, with the right errno, in time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "api/client.h"
#include "api/wire.h"
#include "base/io.h"
#include "base/json.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/thread.h"

static struct counters counters;
static char base[64], tls_base[64], tls_by_address[64];
static const char *ca, *dir;

static int64_t now(void) {
        return clock_mono_ms(clock_system());
}

static struct transport *open_to(const char *url, const char *ca_file, unsigned connections) {
        struct transport *t = NULL;
        assert_int_equal(transport_curl_new(&(struct transport_curl_config){ .base_url = url, .ca_file = ca_file, .max_connections = connections, .counters = &counters }, &t), 0);
        return t;
}

static struct http_call *call(enum http_method method, const char *path, int64_t ms) {
        struct http_call *c = http_call_new(method, 32u << 20, 32u << 20);
        c->path = strdup(path);
        c->deadline_ms = now() + ms;
        return c;
}

/* One call; gives its result and says what came. */
static int get(struct transport *t, const char *path, int64_t ms, char ret_text[512]) {
        struct http_call *c = call(HTTP_GET, path, ms);
        int r = transport_call(t, c);
        snprintf(ret_text, 512, "%.*s%s%s", (int)MIN(c->answer.bytes, 200u), c->answer.data ? (char *)c->answer.data : "", c->message[0] ? " | " : "", c->message);
        http_call_free(c);
        return r;
}

static void test_answers(void **state) {
        struct transport *t = open_to(base, NULL, 0);
        char text[512], first[512];
        assert_int_equal(get(t, "/ok", 5000, first), 0);
        assert_int_equal(get(t, "/ok", 5000, text), 0);
        assert_string_equal(first, text); /* the same connection: the server names the peer's port */
        assert_int_equal(get(t, "/gone", 5000, text), -EIDRM);
        assert_int_equal(get(t, "/denied", 5000, text), -EKEYREJECTED);
        assert_int_equal(get(t, "/proxy", 5000, text), -EAGAIN); /* no code in the body */
        assert_int_equal(get(t, "/nowhere", 5000, text), -ENOENT);
        assert_int_equal(get(t, "/moved", 5000, text), -EPROTO); /* not followed */
        assert_int_equal(get(t, "/auth", 5000, text), 0);
        assert_string_equal(text, "none");
        struct http_call *c = call(HTTP_GET, "/busy", 5000);
        assert_int_equal(transport_call(t, c), -EAGAIN);
        assert_int_equal(c->err, 0);
        assert_int_equal(c->status, 503);
        assert_int_equal(c->retry_after_ms, 7000);
        assert_string_equal(c->error_code, "UNAVAILABLE");
        assert_string_equal(c->message, "come back later");
        http_call_free(c);
        c = call(HTTP_HEAD, "/ok", 5000);
        assert_int_equal(transport_call(t, c), 0);
        assert_int_equal(c->answer.bytes, 0);
        http_call_free(c);
        static const enum http_method methods[] = { HTTP_POST, HTTP_PUT, HTTP_DELETE };
        static const char *const names[] = { "POST", "PUT", "DELETE" };
        for (size_t i = 0; i < ARRAY_SIZE(methods); i++) {
                c = call(methods[i], "/ok", 5000);
                assert_int_equal(transport_call(t, c), 0);
                assert_memory_equal(c->answer.data, names[i], strlen(names[i]));
                http_call_free(c);
        }
        transport_curl_free(t);
}

static void test_bodies(void **state) {
        struct transport *t = open_to(base, NULL, 0);
        uint64_t sent = counter_get(&counters, bytes_sent), received = counter_get(&counters, bytes_received), requests = counter_get(&counters, http_requests);
        struct http_call *c = call(HTTP_POST, "/echo", 20000);
        size_t n = 12u << 20;
        assert_int_equal(buf_reserve(&c->body, n), 0);
        for (c->body.bytes = 0; c->body.bytes < n; c->body.bytes++)
                c->body.data[c->body.bytes] = (uint8_t)(c->body.bytes * 7 >> 3);
        assert_int_equal(transport_call(t, c), 0);
        assert_int_equal(c->answer.bytes, n);
        assert_memory_equal(c->answer.data, c->body.data, n);
        http_call_free(c);
        assert_in_range(counter_get(&counters, bytes_sent) - sent, n, n + 8192);
        assert_in_range(counter_get(&counters, bytes_received) - received, n, n + 8192);
        assert_int_equal(counter_get(&counters, http_requests) - requests, 1);
        c = http_call_new(HTTP_GET, 0, 999999);
        c->path = strdup("/big");
        c->deadline_ms = now() + 5000;
        assert_int_equal(transport_call(t, c), -EMSGSIZE);
        assert_in_range(c->answer.bytes, 0, 999999);
        http_call_free(c);
        transport_curl_free(t);
}

/* The body's sum goes with a request; an answer whose sum is wrong never arrives. */
static void test_sums(void **state) {
        struct transport *t = open_to(base, NULL, 0);
        char sum[WIRE_SUM_CHARS + 1], of_answer[WIRE_SUM_CHARS + 1], path[64];
        wire_sum(0, "abc", 3, sum);
        wire_sum(200, sum, WIRE_SUM_CHARS, of_answer);
        assert_string_not_equal(sum, of_answer);
        for (unsigned i = 0; i < 3; i++) {
                snprintf(path, sizeof path, i == 0 ? "/sum" : "/sum?%s", of_answer);
                if (i == 2)
                        path[10] ^= 1;
                struct http_call *c = call(HTTP_POST, path, 5000);
                assert_int_equal(buf_add(&c->body, "abc", 3), 0);
                assert_int_equal(transport_call(t, c), i == 2 ? -EHOSTDOWN : 0);
                if (i == 2)
                        assert_non_null(strstr(c->message, "damaged"));
                else
                        assert_memory_equal(c->answer.data, sum, WIRE_SUM_CHARS);
                http_call_free(c);
        }
        struct http_call *c = call(HTTP_GET, "/sum", 5000); /* no body, no sum */
        assert_int_equal(transport_call(t, c), 0);
        assert_memory_equal(c->answer.data, "none", 4);
        http_call_free(c);
        transport_curl_free(t);
}

static void test_broken(void **state) {
        struct transport *t = open_to(base, NULL, 0);
        char text[512];
        struct http_call *c = call(HTTP_GET, "/cut", 5000);
        assert_int_equal(transport_call(t, c), -EHOSTDOWN);
        assert_true(c->sent);
        http_call_free(c);
        assert_int_equal(get(t, "/close", 5000, text), -EHOSTDOWN);
        assert_int_equal(get(t, "/headless", 5000, text), -EHOSTDOWN);
        assert_int_equal(get(t, "/garbage", 5000, text), -EHOSTDOWN);
        assert_non_null(strstr(text, "does not answer as a tarn server"));
        transport_curl_free(t);

        t = open_to("http://127.0.0.1:1", NULL, 0);
        c = call(HTTP_GET, "/ok", 5000);
        assert_int_equal(transport_call(t, c), -EHOSTDOWN);
        assert_false(c->sent);
        assert_non_null(strstr(c->message, "cannot connect to http://127.0.0.1:1"));
        http_call_free(c);
        transport_curl_free(t);
        t = open_to("http://no-such-host.invalid", NULL, 0);
        assert_int_equal(get(t, "/ok", 5000, text), -EHOSTDOWN);
        assert_non_null(strstr(text, "cannot find the host"));
        transport_curl_free(t);
}

static void test_deadline(void **state) {
        struct transport *t = open_to(base, NULL, 0);
        static const char *const paths[] = { "/stall", "/drip" };
        char text[512];
        for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
                int64_t begin = now();
                assert_int_equal(get(t, paths[i], 150, text), -ETIMEDOUT);
                assert_in_range(now() - begin, 140, 3000);
        }
        transport_curl_free(t);
        /* also for a request that waits for a connection */
        t = open_to(base, NULL, 1);
        struct http_call *a = call(HTTP_GET, "/stall", 700);
        a->done = http_call_free;
        assert_int_equal(t->submit(t, a), 0);
        int64_t begin = now();
        assert_int_equal(get(t, "/ok", 100, text), -ETIMEDOUT);
        assert_in_range(now() - begin, 90, 650);
        transport_curl_free(t);
}

struct tally { struct lock lock; struct cond cond; unsigned done, cancelled, ok; };
static void count(struct http_call *c) {
        struct tally *y = c->owner;
        lock_take(&y->lock);
        y->done++;
        y->cancelled += c->err == -ECANCELED;
        y->ok += c->err == 0 && c->status == 200;
        http_call_free(c);
        cond_signal(&y->cond);
        lock_drop(&y->lock);
}

static void wait_for(struct tally *y, unsigned n) {
        int64_t deadline = now() + 10000;
        lock_take(&y->lock);
        while (y->done < n)
                assert_int_equal(cond_wait_until(&y->cond, &y->lock, deadline), 0);
        lock_drop(&y->lock);
}

static void test_cancel(void **state) {
        struct transport *t = open_to(base, NULL, 2);
        struct tally y = { 0 };
        struct http_call *calls[6];
        lock_init(&y.lock, "tally", RANK_QUEUE);
        cond_init(&y.cond);
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++) { /* two run, four wait */
                calls[i] = call(HTTP_GET, "/stall", 60000);
                calls[i]->done = count;
                calls[i]->owner = &y;
                assert_int_equal(t->submit(t, calls[i]), 0);
        }
        for (size_t i = ARRAY_SIZE(calls); i-- > 1;)
                t->cancel(t, calls[i]);
        wait_for(&y, 5);
        t->cancel(t, calls[5]); /* done and freed long ago: nothing happens */
        assert_int_equal(y.cancelled, 5);
        transport_curl_free(t); /* ends the last one */
        assert_int_equal(y.done, 6);
        assert_int_equal(y.cancelled, 6);
        cond_destroy(&y.cond);
        lock_destroy(&y.lock);
}

/* Background calls leave connections to the others; all come. */
static void test_many(void **state) {
        struct transport *t = open_to(base, NULL, 4);
        struct tally y = { 0 };
        lock_init(&y.lock, "tally", RANK_QUEUE);
        cond_init(&y.cond);
        struct http_call *stalled[3];
        for (unsigned i = 0; i < 3; i++) { /* would take three of four connections; two are permitted */
                stalled[i] = call(HTTP_GET, "/stall", 60000);
                stalled[i]->background = true;
                stalled[i]->done = count;
                stalled[i]->owner = &y;
                assert_int_equal(t->submit(t, stalled[i]), 0);
        }
        for (unsigned i = 0; i < 200; i++) {
                struct http_call *c = call(HTTP_GET, "/ok", 30000);
                c->done = count;
                c->owner = &y;
                assert_int_equal(t->submit(t, c), 0);
        }
        wait_for(&y, 200);
        assert_int_equal(y.ok, 200);
        transport_curl_free(t);
        assert_int_equal(y.done, 203);
        cond_destroy(&y.cond);
        lock_destroy(&y.lock);
}

static void test_tls(void **state) {
        char text[512];
        struct transport *t = open_to(tls_base, ca, 0);
        assert_int_equal(get(t, "/ok", 10000, text), 0);
        transport_curl_free(t);
        t = open_to(tls_base, NULL, 0); /* not an authority of this system */
        assert_int_equal(get(t, "/ok", 10000, text), -ENOKEY);
        assert_non_null(strstr(text, "is not trusted"));
        assert_non_null(strstr(text, "ca_file"));
        transport_curl_free(t);
        t = open_to(tls_by_address, ca, 0); /* the certificate names localhost only */
        assert_int_equal(get(t, "/ok", 10000, text), -ENOKEY);
        transport_curl_free(t);
        char wrong[80];
        snprintf(wrong, sizeof wrong, "https://%s", base + strlen("http://"));
        t = open_to(wrong, ca, 0); /* TLS to a plain server; the peer reads it as a bad request and closes */
        int r = get(t, "/ok", 5000, text);
        assert_true(r == -ENOKEY || r == -EHOSTDOWN || r == -ETIMEDOUT);
        transport_curl_free(t);
        t = open_to(tls_base, "/nonexistent/ca.pem", 0);
        assert_int_equal(get(t, "/ok", 5000, text), -ENOKEY);
        assert_non_null(strstr(text, "/nonexistent/ca.pem"));
        transport_curl_free(t);
}

static void test_url(void **state) {
        char *b = NULL, *w = NULL;
        const char *why = NULL;
        assert_int_equal(url_split("https://example.org/photos", &b, &w, &why), 0);
        assert_string_equal(b, "https://example.org");
        assert_string_equal(w, "photos");
        free(b);
        free(w);
        assert_int_equal(url_split("http://127.0.0.1:7380/My%20Files/", &b, &w, &why), 0);
        assert_string_equal(b, "http://127.0.0.1:7380");
        assert_string_equal(w, "My Files");
        free(b);
        free(w);
        static const char *const bad[] = { "", "example.org/x", "ftp://example.org/x", "https:///x", "https://example.org", "https://example.org/", "https://example.org/a/b",
                                           "https://anna:secret@example.org/x", "https://example.org/x?y=1", "https://example.org/x#y", "http://exa mple.org/x", "https://example.org:99999/x" };
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                why = NULL;
                assert_int_equal(url_split(bad[i], &b, &w, &why), -EINVAL);
                assert_non_null(why);
        }
        assert_int_equal(url_base("https://example.org:1/any", &b, &why), 0);
        assert_string_equal(b, "https://example.org:1");
        free(b);
        struct buf e = BUF_INIT(100);
        assert_int_equal(url_escape("a/b c%é~", &e), 0);
        assert_string_equal(buf_text(&e), "a%2Fb%20c%25%C3%A9~");
        buf_free(&e);
}

static void session_path(const char *d, char *ret, size_t n) {
        snprintf(ret, n, "%s/session-%s.json", d, base);
        for (char *p = ret + strlen(d) + 1; *p; p++)
                if (*p == ':' || *p == '/')
                        *p = '_';
}

static void *refresh_thread(void *arg) {
        struct session **s = arg;
        struct transport *t = open_to(base, NULL, 1);
        int r = session_refresh(*s, t);
        transport_curl_free(t);
        return (void *)(intptr_t)r;
}

static void test_session(void **state) {
        char d[512], path[640], why[400], token[64], text[512];
        struct session *s = NULL, *other = NULL;
        struct stat st;
        snprintf(d, sizeof d, "%s/state", dir);
        session_path(d, path, sizeof path);
        assert_int_equal(session_open(d, base, &s), -ENOENT);
        assert_int_equal(session_login(d, base, NULL, "anna", "wrong", why, sizeof why), -EACCES);
        assert_non_null(strstr(why, "wrong user name or password"));
        assert_int_equal(session_login(d, "http://127.0.0.1:1", NULL, "anna", "x", why, sizeof why), -EHOSTDOWN);
        assert_non_null(strstr(why, "cannot connect"));
        assert_int_equal(session_login(d, tls_base, NULL, "anna", "pass word", why, sizeof why), -ENOKEY);
        assert_int_equal(session_login(d, base, NULL, "anna", "pass word", why, sizeof why), 0);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_int_equal(session_open(d, base, &s), 0);
        assert_int_equal(session_open(d, base, &other), 0);
        assert_string_equal(session_user(s), "anna");
        assert_int_equal(session_token(s, token, sizeof token), 0);
        assert_string_equal(token, "t1");
        assert_int_equal(session_token(s, token, 2), -EKEYREJECTED);

        struct transport *t = NULL;
        assert_int_equal(transport_curl_new(&(struct transport_curl_config){ .base_url = base, .counters = &counters, .token = session_token, .token_arg = s }, &t), 0);
        assert_int_equal(get(t, "/auth", 5000, text), 0);
        assert_string_equal(text, "Bearer t1");

        /* many at once: one request, and the other session of the same file takes its result over */
        pthread_t threads[4];
        for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
                assert_int_equal(thread_start(&threads[i], "refresh", refresh_thread, i % 2 ? &s : &other), 0);
        for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
                void *r;
                pthread_join(threads[i], &r);
                assert_true((intptr_t)r == 0 || (intptr_t)r == -EAGAIN); /* EAGAIN: the other session held the lock */
        }
        for (int64_t deadline = now() + 5000;;) {
                int r = session_refresh(other, t);
                if (r == 0)
                        break;
                assert_int_equal(r, -EAGAIN);
                assert_true(now() < deadline);
        }
        assert_int_equal(session_refresh(s, t), 0);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_int_equal(get(t, "/auth", 5000, text), 0);
        assert_string_not_equal(text, "Bearer t1");

        /* revoked: signed out, and it stays so without asking; a login in another process brings it back */
        assert_int_equal(get(t, "/revoke", 5000, text), 0);
        int r;
        while ((r = session_refresh(s, t)) == 0) /* the file may hold a newer token than ours once more */
                ;
        assert_int_equal(r, -EKEYREJECTED);
        assert_int_equal(session_token(s, token, sizeof token), -EKEYREJECTED);
        assert_int_equal(get(t, "/auth", 5000, text), -EKEYREJECTED);
        uint64_t requests = counter_get(&counters, http_requests);
        assert_int_equal(session_refresh(s, t), -EKEYREJECTED);
        assert_int_equal(counter_get(&counters, http_requests), requests);
        assert_int_equal(session_login(d, base, ca, "anna", "pass word", why, sizeof why), 0);
        assert_int_equal(session_refresh(s, t), 0);
        assert_int_equal(get(t, "/auth", 5000, text), 0);
        assert_string_equal(text, "Bearer t1");

        /* server gone: still signed in */
        struct transport *dead = open_to("http://127.0.0.1:1", NULL, 1);
        assert_int_equal(session_refresh(s, dead), -EHOSTDOWN);
        assert_int_equal(session_token(s, token, sizeof token), 0);
        transport_curl_free(dead);
        transport_curl_free(t);
        session_free(s);
        session_free(other);
        s = NULL;
        assert_int_equal(session_open(d, base, &s), 0);
        assert_string_equal(session_ca_file(s), ca);
        session_free(s);
        assert_int_equal(file_replace(path, "{", 1, 0600), 0);
        assert_int_equal(session_open(d, base, &s), -EINVAL);
        assert_int_equal(file_replace(path, "{}", 2, 0600), 0);
        assert_int_equal(session_open(d, base, &s), -EINVAL);
}

/* No token and no password in any log line, at the loudest level. */
static void test_no_secrets_in_logs(void **state) {
        char path[512], d[512], why[400], text[512];
        struct session *s = NULL;
        struct transport *t = NULL;
        snprintf(path, sizeof path, "%s/log", dir);
        snprintf(d, sizeof d, "%s/state2", dir);
        assert_int_equal(log_open("test", LOG_LEVEL_DEBUG, path), 0);
        assert_int_equal(session_login(d, base, NULL, "anna", "wrong", why, sizeof why), -EACCES);
        assert_int_equal(session_login(d, base, NULL, "anna", "pass word", why, sizeof why), 0);
        assert_int_equal(session_open(d, base, &s), 0);
        assert_int_equal(transport_curl_new(&(struct transport_curl_config){ .base_url = base, .counters = &counters, .token = session_token, .token_arg = s }, &t), 0);
        assert_int_equal(get(t, "/auth", 5000, text), 0);
        assert_int_equal(get(t, "/denied", 5000, text), -EKEYREJECTED);
        assert_int_equal(session_refresh(s, t), 0);
        transport_curl_free(t);
        session_free(s);
        assert_int_equal(log_open("test", LOG_LEVEL_INFO, NULL), 0);
        struct buf log = BUF_INIT(1u << 20);
        assert_int_equal(file_load(path, 1u << 20, &log), 0);
        const char *all = buf_text(&log);
        assert_non_null(strstr(all, "/denied")); /* the log was really written */
        assert_null(strstr(all, "pass word"));
        assert_null(strstr(all, "Bearer"));
        assert_null(strstr(all, "\"t1\""));
        assert_null(strstr(all, "refresh_token"));
        buf_free(&log);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_answers), cmocka_unit_test(test_bodies), cmocka_unit_test(test_sums), cmocka_unit_test(test_broken), cmocka_unit_test(test_deadline), cmocka_unit_test(test_cancel), cmocka_unit_test(test_many),
                cmocka_unit_test(test_tls), cmocka_unit_test(test_url), cmocka_unit_test(test_session), cmocka_unit_test(test_no_secrets_in_logs),
        };
        const char *port = getenv("TARN_TEST_PORT"), *tls_port = getenv("TARN_TEST_TLS_PORT");
        ca = getenv("TARN_TEST_CA");
        dir = getenv("TARN_TEST_DIR");
        if (!port || !tls_port || !ca || !dir)
                return 77;
        snprintf(base, sizeof base, "http://127.0.0.1:%s", port);
        snprintf(tls_base, sizeof tls_base, "https://localhost:%s", tls_port);
        snprintf(tls_by_address, sizeof tls_by_address, "https://127.0.0.1:%s", tls_port);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
