/* SPDX-License-Identifier: Apache-2.0 */
/* calls.c: many times one system call, and how long that took. What bench/local.py runs on both sides: an interpreter would be slower than what is measured.
 *
 *   calls create DIR N BYTES       N new files (1,000 to a directory): open, write BYTES, close
 *   calls durable DIR N BYTES      likewise, with an fsync before each close
 *   calls stat|rename|unlink DIR N the files of create: lstat in an order of its own; to another name beside; away (of what rename left)
 *   calls mkdir|rmdir DIR N        N directories in one
 *   calls write FILE BYTES CHUNK   a new file, and close
 *   calls read FILE BYTES CHUNK    from the beginning
 *   calls random FILE N CHUNK      N reads of CHUNK bytes at places that are a multiple of it; the same ones in every run
 *
 * Prints one number: seconds, of the calls alone. Anything that fails ends it with 1 and says what. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PER_DIR 1000u

static double now_s(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static _Noreturn void fail(const char *what, const char *path) {
        fprintf(stderr, "calls: %s %s: %s\n", what, path, strerror(errno));
        exit(1);
}

static void name_of(char path[static 4096], const char *dir, char kind, uint64_t i) {
        (void)snprintf(path, 4096, "%s/%03u/%c%06u", dir, (unsigned)(i / PER_DIR), kind, (unsigned)i);
}

static void make_dirs(const char *dir, uint64_t n) {
        char path[4096];
        for (uint64_t d = 0; d * PER_DIR < n; d++) {
                (void)snprintf(path, sizeof path, "%s/%03u", dir, (unsigned)d);
                if (mkdir(path, 0755) < 0 && errno != EEXIST)
                        fail("mkdir", path);
        }
}

static void create(const char *dir, uint64_t n, size_t bytes, bool durable) {
        char path[4096], buf[1u << 16];
        memset(buf, 'c', sizeof buf);
        if (bytes > sizeof buf) {
                errno = EINVAL;
                fail("bytes", dir);
        }
        for (uint64_t i = 0; i < n; i++) {
                name_of(path, dir, 'f', i);
                memcpy(buf, &i, sizeof i); /* no two are the same */
                int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
                if (fd < 0 || write(fd, buf, bytes) != (ssize_t)bytes || (durable && fsync(fd) < 0) || close(fd) < 0)
                        fail("create", path);
        }
}

static void each(const char *dir, uint64_t n, const char *what) {
        char path[4096], to[4096];
        struct stat st;
        for (uint64_t k = 0; k < n; k++) {
                uint64_t i = *what == 's' ? k * 7919 % n : k; /* 7919 is a prime: all of them unless n is a multiple of it */
                name_of(path, dir, *what == 'u' ? 'g' : 'f', i);
                name_of(to, dir, 'g', i);
                if ((*what == 's' && lstat(path, &st) < 0) || (*what == 'r' && rename(path, to) < 0) || (*what == 'u' && unlink(path) < 0))
                        fail(what, path);
        }
}

static void dirs(const char *dir, uint64_t n, bool make) {
        char path[4096];
        for (uint64_t i = 0; i < n; i++) {
                (void)snprintf(path, sizeof path, "%s/m%06u", dir, (unsigned)i);
                if ((make ? mkdir(path, 0755) : rmdir(path)) < 0)
                        fail(make ? "mkdir" : "rmdir", path);
        }
}

static uint64_t next(uint64_t *x) { /* xorshift64 (Marsaglia, 2003) */
        *x ^= *x << 13;
        *x ^= *x >> 7;
        return *x ^= *x << 17;
}

static double stream(const char *path, uint64_t bytes, size_t chunk, char kind) {
        uint8_t *buf = aligned_alloc(4096, (chunk + 4095) / 4096 * 4096);
        if (!buf)
                fail("memory", path);
        uint64_t seed = 88172645463325252u;
        for (size_t i = 0; i + 8 <= chunk; i += 8) {
                uint64_t v = next(&seed);
                memcpy(buf + i, &v, 8);
        }
        double began = now_s();
        int fd = kind == 'w' ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : open(path, O_RDONLY | O_CLOEXEC);
        struct stat st;
        if (fd < 0 || fstat(fd, &st) < 0)
                fail("open", path);
        for (uint64_t at = 0, i = 0; kind == 'x' ? i < bytes : at < bytes; at += chunk, i++) {
                ssize_t k;
                if (kind == 'w') {
                        memcpy(buf, &at, sizeof at);
                        k = write(fd, buf, chunk);
                } else if (kind == 'r') {
                        k = read(fd, buf, chunk);
                } else {
                        k = pread(fd, buf, chunk, (off_t)(next(&seed) % ((uint64_t)st.st_size / chunk) * chunk));
                }
                if (k != (ssize_t)chunk)
                        fail(k < 0 ? "data" : "short", path);
        }
        if (close(fd) < 0)
                fail("close", path);
        double took = now_s() - began;
        free(buf);
        return took;
}

int main(int argc, char **argv) {
        if (argc < 4) {
                fprintf(stderr, "usage: calls create|durable|stat|rename|unlink|mkdir|rmdir|write|read|random PATH N [BYTES]\n");
                return 2;
        }
        const char *what = argv[1], *path = argv[2];
        uint64_t n = strtoull(argv[3], NULL, 10), bytes = argc > 4 ? strtoull(argv[4], NULL, 10) : 4096;
        double began, took = 0;
        if (!strcmp(what, "write") || !strcmp(what, "read") || !strcmp(what, "random")) {
                took = stream(path, n, (size_t)bytes, !strcmp(what, "random") ? 'x' : *what);
        } else {
                bool make = !strcmp(what, "create") || !strcmp(what, "durable");
                if (make)
                        make_dirs(path, n);
                began = now_s();
                if (make)
                        create(path, n, (size_t)bytes, *what == 'd');
                else if (!strcmp(what, "mkdir") || !strcmp(what, "rmdir"))
                        dirs(path, n, *what == 'm');
                else
                        each(path, n, what);
                took = now_s() - began;
        }
        printf("%.6f\n", took);
        return 0;
}
