/* SPDX-License-Identifier: Apache-2.0 */
/* nth.c: failures on demand. Symbols of the program come before those of shared libraries, so SQLite's calls come here too; allocations are replaced at link time (--wrap) for the objects of
 * the program only, because a library's own care for memory is not our subject. Everything goes to the kernel directly: sanitizers have replacements of their own, weaker than these. */
#include "nth.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

const char *const nth_names[NTH_KINDS] = { "write (EIO)", "write (ENOSPC)", "write (short)", "sync", "open", "length", "name", "unlink", "map", "read", "allocation" };
const int nth_errors[NTH_KINDS] = { EIO, ENOSPC, ENOSPC, EIO, EMFILE, EIO, EIO, EIO, ENOMEM, EIO, ENOMEM };

#define MAX_1(n) ((n) > 1 ? (n) : 1)

bool nth_all_threads;
static atomic_bool armed, met, for_ever;
static _Atomic int armed_kind;
static _Atomic unsigned left, begun;
/* The last files that were synced. */
static _Atomic unsigned n_synced;
static struct { dev_t dev; ino_t ino; } synced[256];
static _Thread_local int inside;
static char note[300];
static const char *step_now = "", *step_met = "", *phase_now = "";

void nth_note(const char *fmt, ...) {
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(note, sizeof note, fmt, ap);
        va_end(ap);
}

static void tell(int sig) {
        static const char head[] = "\nlast: ";
        (void)syscall(SYS_write, 2, head, sizeof head - 1);
        (void)syscall(SYS_write, 2, note, strlen(note));
        (void)syscall(SYS_write, 2, " | failed in ", 13);
        (void)syscall(SYS_write, 2, step_met, strlen(step_met));
        (void)syscall(SYS_write, 2, " | ", 3);
        (void)syscall(SYS_write, 2, phase_now, strlen(phase_now));
        (void)syscall(SYS_write, 2, " | ", 3);
        (void)syscall(SYS_write, 2, step_now, strlen(step_now));
        (void)syscall(SYS_write, 2, "\n", 1);
}

void nth_print(void) { tell(0); }

static void on_abort(int sig) {
        tell(sig);
        (void)signal(sig, SIG_DFL);
        (void)raise(sig);
}

void nth_arm(enum nth_kind kind, unsigned n, bool ever) {
        static bool once;
        if (!once)
                (void)signal(SIGABRT, on_abort);
        once = true;
        step_met = "";
        atomic_store(&met, false);
        atomic_store(&n_synced, 0);
        atomic_store(&for_ever, ever);
        atomic_store(&left, n);
        atomic_store(&begun, n);
        atomic_store(&armed_kind, (int)kind);
        atomic_store(&armed, true);
}

bool nth_disarm(void) {
        atomic_store(&armed, false);
        return atomic_load(&met);
}
unsigned nth_calls(void) { return atomic_load(&begun) - atomic_load(&left); }

unsigned nth_each(enum nth_kind kind, bool ever, unsigned budget, bool (*one)(enum nth_kind kind, unsigned n, bool ever)) {
        const char *scale = getenv("TARN_TEST_SCALE"), *seed = getenv("TARN_TEST_SEED");
        unsigned failed = 0, step, shift;
        budget *= scale ? (unsigned)MAX_1(strtoul(scale, NULL, 10)) : 1;
        (void)one(kind, UINT_MAX, ever); /* how many there are */
        unsigned all = nth_calls();
        step = all / budget + 1;
        shift = seed ? (unsigned)(strtoull(seed, NULL, 0) % step) : 0;
        for (unsigned n = 1 + shift; one(kind, n, ever); n += step)
                failed++;
        return failed;
}
bool nth_met(void) { return atomic_load(&met); }
void nth_phase(const char *what) { phase_now = what; }
void nth_step(const char *what) { step_now = what; }
const char *nth_where(void) { return step_met; }
void nth_in(void) { inside++; }
void nth_out(void) { inside--; }
void nth_quiet(bool quiet) { inside += quiet ? -1000 : 1000; }

static bool hit(enum nth_kind kind) {
        if (!atomic_load_explicit(&armed, memory_order_relaxed) || (!inside && !nth_all_threads) || inside < 0 || (int)kind != atomic_load(&armed_kind))
                return false;
        if (atomic_load(&met))
                return atomic_load(&for_ever);
        if (atomic_fetch_sub(&left, 1) != 1)
                return false;
        step_met = step_now;
        atomic_store(&met, true);
        return true;
}

static int fail(int error) {
        errno = error;
        return -1;
}

/* 1: fails with errno set; 2: half of it */
static int writes(int fd, size_t n) {
        if (fd <= 2)
                return 0;
        if (hit(NTH_WRITE))
                return fail(EIO), 1;
        if (hit(NTH_FULL))
                return fail(ENOSPC), 1;
        bool before = atomic_load(&met);
        if (!hit(NTH_SHORT))
                return 0;
        return before || n < 2 ? fail(ENOSPC), 1 : 2;
}

ssize_t write(int fd, const void *p, size_t n) {
        int how = writes(fd, n);
        return how == 1 ? -1 : syscall(SYS_write, fd, p, how ? n / 2 : n);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
        int how = writes(fd, n);
        return how == 1 ? -1 : syscall(SYS_pwrite64, fd, p, how ? n / 2 : n, at);
}
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) {
        size_t all = 0;
        for (int i = 0; i < n; i++)
                all += v[i].iov_len;
        int how = writes(fd, all);
        if (how == 1)
                return -1;
        if (how == 2)
                return syscall(SYS_pwrite64, fd, v[0].iov_base, (v[0].iov_len + 1) / 2, at);
        return syscall(SYS_pwritev, fd, v, n, at, 0L);
}
ssize_t read(int fd, void *p, size_t n) { return fd > 2 && hit(NTH_READ) ? fail(EIO) : syscall(SYS_read, fd, p, n); }
ssize_t pread(int fd, void *p, size_t n, off_t at) { return hit(NTH_READ) ? fail(EIO) : syscall(SYS_pread64, fd, p, n, at); }
static void was_synced(int fd) {
        struct stat st;
        if (atomic_load_explicit(&armed, memory_order_relaxed) && fstat(fd, &st) == 0) {
                unsigned at = atomic_fetch_add(&n_synced, 1) % 256;
                synced[at].dev = st.st_dev;
                synced[at].ino = st.st_ino;
        }
}

bool nth_was_synced(const char *path) {
        struct stat st;
        bool found = false;
        for (unsigned i = 0; stat(path, &st) == 0 && i < 256 && i < atomic_load(&n_synced) && !found; i++)
                found = synced[i].dev == st.st_dev && synced[i].ino == st.st_ino;
        return found;
}

int fsync(int fd) {
        if (hit(NTH_SYNC))
                return fail(EIO);
        int r = (int)syscall(SYS_fsync, fd);
        if (r == 0)
                was_synced(fd);
        return r;
}
int fdatasync(int fd) { return hit(NTH_SYNC) ? fail(EIO) : (int)syscall(SYS_fdatasync, fd); }
int ftruncate(int fd, off_t n) { return hit(NTH_LENGTH) ? fail(EIO) : (int)syscall(SYS_ftruncate, fd, n); }
int fallocate(int fd, int mode, off_t at, off_t n) {
        if (hit(NTH_LENGTH))
                return fail(EIO);
        return hit(NTH_FULL) ? fail(ENOSPC) : (int)syscall(SYS_fallocate, fd, mode, at, n);
}

static int open_at(int dir, const char *path, int flags, va_list ap) {
        unsigned mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, unsigned) : 0;
        return hit(NTH_OPEN) ? fail(EMFILE) : (int)syscall(SYS_openat, dir, path, flags, mode);
}
int open(const char *path, int flags, ...) {
        va_list ap;
        va_start(ap, flags);
        int fd = open_at(AT_FDCWD, path, flags, ap);
        va_end(ap);
        return fd;
}
int openat(int dir, const char *path, int flags, ...) {
        va_list ap;
        va_start(ap, flags);
        int fd = open_at(dir, path, flags, ap);
        va_end(ap);
        return fd;
}

int rename(const char *from, const char *to) { return hit(NTH_NAME) ? fail(EIO) : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return hit(NTH_NAME) ? fail(EIO) : (int)syscall(SYS_renameat2, a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return hit(NTH_NAME) ? fail(EIO) : (int)syscall(SYS_renameat2, a, from, b, to, flags); }
int link(const char *from, const char *to) { return hit(NTH_NAME) ? fail(EIO) : (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return hit(NTH_NAME) ? fail(EIO) : (int)syscall(SYS_linkat, a, from, b, to, flags); }
int mkdir(const char *path, mode_t mode) { return hit(NTH_NAME) ? fail(EIO) : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode); }
int mkdirat(int dir, const char *path, mode_t mode) { return hit(NTH_NAME) ? fail(EIO) : (int)syscall(SYS_mkdirat, dir, path, mode); }
int unlink(const char *path) { return hit(NTH_UNLINK) ? fail(EIO) : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0); }
int unlinkat(int dir, const char *path, int flags) { return hit(NTH_UNLINK) ? fail(EIO) : (int)syscall(SYS_unlinkat, dir, path, flags); }
void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t off) {
        if (fd >= 0 && hit(NTH_MAP))
                return errno = ENOMEM, MAP_FAILED;
        return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, off);
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_reallocarray(void *p, size_t n, size_t size);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_reallocarray(void *p, size_t n, size_t size);
char *__wrap_strdup(const char *s);
void *__wrap_malloc(size_t n) { return hit(NTH_ALLOC) ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t size) { return hit(NTH_ALLOC) ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t n) { return hit(NTH_ALLOC) ? NULL : __real_realloc(p, n); }
void *__wrap_reallocarray(void *p, size_t n, size_t size) { return hit(NTH_ALLOC) ? NULL : __real_reallocarray(p, n, size); }
char *__wrap_strdup(const char *s) { return hit(NTH_ALLOC) ? NULL : __real_strdup(s); }

int nth_descriptors(void) {
        int n = 0;
        DIR *d = opendir("/proc/self/fd");
        while (d && readdir(d))
                n++;
        if (d)
                (void)closedir(d);
        return n;
}
