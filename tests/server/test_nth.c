/* SPDX-License-Identifier: Apache-2.0 */
/* test_nth.c: each failure of the disk and of memory (nth.h) in the server.
 *
 *   store      put, get, remove and list on a directory; what was acknowledged is there whole, what failed is not there, and every directory above an acknowledged object was synced
 *   service    the whole server in process: files by path, batches, deletes, gc, restarts; each request that was answered with success is there after a stop and after a kill, one that failed has
 *              happened or not, the same request again gives the same, and fsck finds nothing
 *
 * usage: test_nth [KIND [N [once|ever]]] */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "nth.h"
#include "server/service.h"
#include "store.h"
#include "tmpdir.h"

#define BUDGET 34u /* per kind, in the suite */
static int only_kind = -1, only_n, only_ever = -1;
static unsigned told;

static void home_new(char *ret, size_t n) {
        (void)snprintf(ret, n, "%s/tarn-nth-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        assert_non_null(tmpdir_new(ret));
}

static void each(bool (*one)(enum nth_kind kind, unsigned n, bool ever)) {
        for (enum nth_kind kind = 0; kind < NTH_KINDS; kind++)
                for (int ever = 0; ever < 2; ever++) {
                        if ((only_kind >= 0 && (int)kind != only_kind) || (only_ever >= 0 && ever != only_ever))
                                continue;
                        told = 0;
                        int64_t start = clock_mono_ms(clock_system());
                        unsigned failed = only_n ? one(kind, (unsigned)only_n, ever) : nth_each(kind, ever, BUDGET, one);
                        print_message("%s, %s: %u of %u failed, %u told, %lld ms\n", nth_names[kind], ever ? "from then on" : "once", failed, nth_calls(), told,
                                      (long long)(clock_mono_ms(clock_system()) - start));
                }
}

/* ---- the object store ---- */

#define OBJECTS 8
struct object { char name[STORE_NAME_BYTES + 1]; uint8_t bytes[3000]; size_t n; bool put, removed, maybe; };

static int count_object(void *arg, const char *object, uint64_t bytes, int64_t put_ns) {
        (*(size_t *)arg)++;
        return 0;
}

static void check_objects(struct store *s, const struct object *o) {
        size_t least = 0, most = 0, n = 0;
        for (int i = 0; i < OBJECTS; i++) {
                uint8_t back[sizeof o->bytes];
                int r = s->get(s, o[i].name, 0, back, o[i].n);
                if (o[i].put && !o[i].removed)
                        assert_int_equal(r, 0);
                else if (!o[i].maybe)
                        assert_int_equal(r, -ENOENT);
                if (r == 0)
                        assert_memory_equal(back, o[i].bytes, o[i].n);
                least += o[i].put && !o[i].removed;
                most += r == 0;
        }
        assert_int_equal(s->list(s, NULL, count_object, &n), 0);
        assert_true(n >= least && n <= most);
}

static bool store_once(enum nth_kind kind, unsigned n, bool ever) {
        struct store *s = NULL;
        struct object *o = calloc(OBJECTS, sizeof *o);
        char home[64], path[200];
        nth_note("store: %s %u %s", nth_names[kind], n, ever ? "ever" : "once");
        home_new(home, sizeof home);
        int before = nth_descriptors(), failed = 0;
        nth_arm(kind, n, ever);
        nth_step("open");
        int r = NTH(store_dir_open(home, &s));
        for (int i = 0; r == 0 && i < OBJECTS; i++) {
                (void)snprintf(o[i].name, sizeof o[i].name, "ab%d0123456789abcdef0123456789a%d", i / 4, i); /* some share their directories */
                o[i].name[STORE_NAME_BYTES - 1] = (char)('0' + i);
                memset(o[i].bytes, i + 1, sizeof o[i].bytes);
                o[i].n = 1000 + (size_t)i * 200;
                nth_step("put");
                int k = NTH(s->put(s, o[i].name, o[i].bytes, o[i].n));
                failed += k < 0;
                o[i].put = k == 0;
                o[i].maybe = k < 0 && ever; /* what must go again cannot be unlinked either */
                if (k == 0) { /* acknowledged: each directory on the way was synced after what it names had come */
                        (void)snprintf(path, sizeof path, "%s/%.1s", home, o[i].name);
                        assert_true(nth_was_synced(home));
                        assert_true(nth_was_synced(path));
                        (void)snprintf(path, sizeof path, "%s/%.1s/%.2s", home, o[i].name, o[i].name + 1);
                        assert_true(nth_was_synced(path));
                }
                if (i % 3 == 2 && o[i].put) {
                        nth_step("remove");
                        k = NTH(s->remove(s, o[i].name));
                        failed += k < 0;
                        o[i].removed = k == 0;
                }
                if (i % 3 == 1 && o[i].put) {
                        uint8_t back[sizeof o->bytes];
                        nth_step("get");
                        k = NTH(s->get(s, o[i].name, 0, back, o[i].n));
                        failed += k < 0;
                        assert_true(k < 0 || memcmp(back, o[i].bytes, o[i].n) == 0);
                        size_t seen = 0;
                        nth_step("list");
                        k = NTH(s->list(s, NULL, count_object, &seen));
                        failed += k < 0;
                }
        }
        bool met = nth_disarm();
        nth_step("checks");
        told += failed > 0 || r < 0;
        assert_true(met || failed == 0);
        if (r == 0) {
                check_objects(s, o);
                store_close(s);
                assert_int_equal(store_dir_open(home, &s), 0);
                check_objects(s, o);
                store_close(s);
        } else {
                assert_true(met);
                assert_int_equal(store_dir_open(home, &s), 0);
                store_close(s);
        }
        assert_int_equal(nth_descriptors(), before);
        tmpdir_remove(home);
        free(o);
        return met;
}

/* ---- the service ---- */

#define FILES 6
#define FILE_BYTES 200000u
#define STATES 8
struct file { unsigned fill[STATES]; size_t n[STATES]; bool gone[STATES], maybe_gone; int states; /* what it may have, the first was acknowledged; 0: nothing */ };
struct server {
        char home[64], data[200], auth[100];
        struct service *s;
        struct file f[FILES];
        unsigned fill, failed;
};

static int open_service(struct server *v) {
        struct service_config c = { .data_dir = v->data };
        char why[300] = "";
        int r = NTH(service_open(&c, &v->s, why, sizeof why));
        if (r < 0)
                v->s = NULL;
        return r;
}

static int call(struct server *v, const char *method, const char *target, const char *key, const void *body, size_t n, struct service_answer *a) {
        struct service_request r = { .method = method, .target = target, .authorization = v->auth, .body = body, .body_bytes = n, .idempotency_key = key };
        *a = (struct service_answer) { 0 };
        int k = NTH(service_handle(v->s, &r, a));
        assert_int_equal(k, 0);
        return a->status;
}

static int words(struct server *v, const char *password, struct buf *text, const char *a, const char *b, const char *c, const char *d, const char *e) {
        const char *const w[] = { a, b, c, d, e };
        size_t n = 0;
        while (n < ARRAY_SIZE(w) && w[n])
                n++;
        buf_reset(text);
        return service_admin(v->s, w, n, password, text);
}

static void target_of(int i, char ret[80]) { (void)snprintf(ret, 80, "/v1/workspaces/w/files/file%d", i); }

static void fill(uint8_t *p, size_t n, unsigned seed) {
        for (size_t i = 0; i < n; i++)
                p[i] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
}

/* What file i has: -1 nothing, else its bytes in buf. */
static ssize_t content(struct server *v, int i, uint8_t *buf) {
        struct service_answer a;
        char target[80];
        target_of(i, target);
        int status = call(v, "GET", target, NULL, NULL, 0, &a);
        ssize_t n = -1;
        if (status == 200) {
                n = (ssize_t)(a.pull ? a.pull_bytes : a.body.bytes);
                assert_true(n <= (ssize_t)FILE_BYTES);
                if (!a.pull && n)
                        memcpy(buf, a.body.data, (size_t)n);
                for (uint64_t at = 0; a.pull && at < a.pull_bytes;) {
                        _cleanup_free_ uint8_t *part = malloc(SERVICE_PULL_BYTES);
                        int64_t got = a.pull(a.pull_arg, at, part, SERVICE_PULL_BYTES);
                        if (got <= 0)
                                fail_msg("file %d: %s at %llu", i, err_name((int)got), (unsigned long long)at);
                        memcpy(buf + at, part, (size_t)got);
                        at += (uint64_t)got;
                }
        } else {
                assert_int_equal(status, 404);
        }
        service_answer_free(&a);
        return n;
}

static void check_files(struct server *v, const char *when) {
        uint8_t *buf = malloc(FILE_BYTES), *want = malloc(FILE_BYTES);
        for (int i = 0; i < FILES; i++) {
                struct file *f = &v->f[i];
                ssize_t n = content(v, i, buf);
                bool ok = (f->states == 0 || f->maybe_gone) && n < 0;
                for (int k = 0; k < f->states && !ok; k++) {
                        fill(want, f->n[k], f->fill[k]);
                        ok = f->gone[k] ? n < 0 : n == (ssize_t)f->n[k] && memcmp(buf, want, f->n[k]) == 0;
                }
                if (!ok)
                        fail_msg("%s: file %d has %zd bytes, %d states, the first of %zu; failed in %s", when, i, n, f->states, f->n[0], nth_where());
        }
        free(buf);
        free(want);
}

/* An acknowledged state counts alone; one that failed is as good as the one before. */
static void now_is(struct file *f, bool acknowledged, bool gone, unsigned seed, size_t n) {
        if (!acknowledged && f->states == 0) {
                f->gone[0] = true;
                f->states = 1;
        }
        int at = acknowledged ? 0 : f->states;
        assert_true(at < STATES);
        f->gone[at] = gone;
        f->fill[at] = seed;
        f->n[at] = n;
        f->states = at + 1;
        f->maybe_gone &= !acknowledged;
}

static void put(struct server *v, int i, size_t n) {
        char target[80], key[20];
        uint8_t *bytes = malloc(n + 1);
        struct service_answer a;
        unsigned seed = ++v->fill;
        target_of(i, target);
        (void)snprintf(key, sizeof key, "key%u", seed);
        fill(bytes, n, seed);
        nth_step("put");
        int status = call(v, "PUT", target, key, bytes, n, &a);
        bool ok = status == 200 || status == 201;
        service_answer_free(&a);
        if (!ok) {
                if (!nth_met() || status < 500)
                        fail_msg("PUT: %d", status);
                v->failed++;
                now_is(&v->f[i], false, false, seed, n);
                nth_step("put again");
                status = call(v, "PUT", target, key, bytes, n, &a);
                ok = status == 200 || status == 201;
                service_answer_free(&a);
        }
        if (ok)
                now_is(&v->f[i], true, false, seed, n);
        free(bytes);
}

static void delete(struct server *v, int i) {
        char target[80];
        struct service_answer a;
        struct file *f = &v->f[i];
        target_of(i, target);
        nth_step("delete");
        int status = call(v, "DELETE", target, NULL, NULL, 0, &a);
        service_answer_free(&a);
        if (status >= 500) {
                assert_true(nth_met());
                v->failed++;
                f->maybe_gone = true;
        } else {
                assert_true(status == 404 || status / 100 == 2);
                now_is(f, true, true, 0, 0);
        }
}

static void run(struct server *v) {
        put(v, 0, 10);
        put(v, 1, 5000);
        put(v, 2, 150000);
        put(v, 1, 6000);
        delete(v, 0);
        put(v, 3, 1);
        put(v, 0, 20);
        put(v, 4, FILE_BYTES);
        put(v, 2, 100);
        delete(v, 3);
        put(v, 5, 0);
}

static void fsck(struct server *v, const char *when) {
        _cleanup_buf_ struct buf text = BUF_INIT(1 << 20);
        int r = words(v, NULL, &text, "fsck", NULL, NULL, NULL, NULL);
        if (r < 0)
                fail_msg("%s: fsck: %s: %s; failed in %s", when, err_name(r), buf_text(&text), nth_where());
}

static void copy_tree(const char *from, const char *to) {
        assert_int_equal(mkdir(to, 0700), 0);
        DIR *d = opendir(from);
        assert_non_null(d);
        for (struct dirent *e; (e = readdir(d));) {
                char a[PATH_MAX], b[PATH_MAX];
                if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
                        continue;
                assert_true((size_t)snprintf(a, sizeof a, "%s/%s", from, e->d_name) < sizeof a);
                assert_true((size_t)snprintf(b, sizeof b, "%s/%s", to, e->d_name) < sizeof b);
                struct stat st;
                assert_int_equal(lstat(a, &st), 0);
                if (S_ISDIR(st.st_mode)) {
                        copy_tree(a, b);
                } else if (S_ISREG(st.st_mode)) {
                        _cleanup_buf_ struct buf all = BUF_INIT(256 << 20);
                        assert_int_equal(file_load(a, 256 << 20, &all), 0);
                        int fd = open(b, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
                        assert_true(fd >= 0);
                        assert_int_equal(write_full(fd, all.data, all.bytes), 0);
                        (void)close(fd);
                }
        }
        (void)closedir(d);
}

static char template[64], template_auth[100]; /* a server with a user, a workspace and a token */

static void template_make(void) {
        struct server v = { .s = NULL };
        _cleanup_buf_ struct buf text = BUF_INIT(4096);
        char why[300] = "";
        home_new(template, sizeof template);
        (void)snprintf(v.data, sizeof v.data, "%s/data", template);
        assert_int_equal(service_init(v.data, why, sizeof why), 0);
        assert_int_equal(open_service(&v), 0);
        assert_int_equal(words(&v, "correct horse", &text, "user", "add", "ann", NULL, NULL), 0);
        assert_int_equal(words(&v, NULL, &text, "workspace", "add", "w", "--owner", "ann"), 0);
        assert_int_equal(words(&v, NULL, &text, "token", "add", "--user", "ann", NULL), 0);
        (void)snprintf(template_auth, sizeof template_auth, "Bearer %s", buf_text(&text));
        service_close(v.s);
}

static bool service_once(enum nth_kind kind, unsigned n, bool ever) {
        struct server v = { .s = NULL };
        char from[200], killed[200];
        nth_note("service: %s %u %s", nth_names[kind], n, ever ? "ever" : "once");
        if (!template[0])
                template_make();
        home_new(v.home, sizeof v.home);
        memcpy(v.auth, template_auth, sizeof v.auth);
        (void)snprintf(v.data, sizeof v.data, "%s/data", v.home);
        (void)snprintf(killed, sizeof killed, "%s/killed", v.home);
        (void)snprintf(from, sizeof from, "%s/data", template);
        copy_tree(from, v.data);
        int before = nth_descriptors();
        nth_phase("run");
        nth_step("open");
        nth_arm(kind, n, ever);
        int r = open_service(&v);
        if (r == 0)
                run(&v);
        bool met = nth_disarm();
        nth_phase("now");
        told += v.failed > 0 || r < 0;
        assert_true(met || r == 0);
        if (r == 0) {
                check_files(&v, "now");
                copy_tree(v.data, killed);
                service_close(v.s);
        }
        nth_phase("stopped");
        assert_int_equal(open_service(&v), 0);
        check_files(&v, "stopped");
        fsck(&v, "stopped");
        put(&v, 0, 77);
        service_close(v.s);
        if (r == 0) {
                nth_phase("killed");
                (void)snprintf(v.data, sizeof v.data, "%s", killed);
                assert_int_equal(open_service(&v), 0);
                v.f[0].states = 0;
                put(&v, 0, 78);
                check_files(&v, "killed");
                fsck(&v, "killed");
                service_close(v.s);
        }
        int after = nth_descriptors();
        if (after != before)
                fail_msg("%d descriptors, %d before", after, before);
        tmpdir_remove(v.home);
        return met;
}

static void test_store(void **state) { each(store_once); }
static void test_service(void **state) { each(service_once); }

static int after(void **state) {
        nth_print();
        return 0;
}

int main(int argc, char **argv) {
        only_kind = argc > 1 ? (int)strtol(argv[1], NULL, 10) : -1;
        only_n = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
        only_ever = argc > 3 ? !strcmp(argv[3], "ever") : -1;
        if (argc <= 4)
                log_set_level((enum log_level)-1);
        const struct CMUnitTest tests[] = { cmocka_unit_test_teardown(test_store, after), cmocka_unit_test_teardown(test_service, after) };
        return cmocka_run_group_tests_name("nth", tests, NULL, NULL);
}
