/* SPDX-License-Identifier: Apache-2.0 */
/* nth.h: the n-th call of a kind fails, for n = 1, 2, ... until a run meets no failure any more. System calls (also those of libraries) and our own allocations are replaced in the program
 * that is linked with nth.c. Calls fail only between nth_arm and nth_disarm, and there only inside NTH(...): what the test itself does is never hit. */
#pragma once
#include <stdbool.h>

enum nth_kind {
        NTH_WRITE,      /* write, pwrite, pwritev: EIO */
        NTH_FULL,       /* the same and fallocate: ENOSPC */
        NTH_SHORT,      /* half of it is written, what is left gets ENOSPC (once: gets through) */
        NTH_SYNC,       /* fsync, fdatasync: EIO */
        NTH_OPEN,       /* open, openat: EMFILE */
        NTH_LENGTH,     /* ftruncate, fallocate: EIO */
        NTH_NAME,       /* rename, link, mkdir and their kin: EIO */
        NTH_UNLINK,     /* unlink: EIO */
        NTH_MAP,        /* mmap: ENOMEM */
        NTH_READ,       /* read, pread: EIO */
        NTH_ALLOC,      /* malloc, calloc, realloc, reallocarray, strdup: NULL */
        NTH_KINDS
};
extern const char *const nth_names[NTH_KINDS];
extern const int nth_errors[NTH_KINDS]; /* what a caller is told; others may be right too */

/* ever: all calls of the kind from the n-th on, until nth_disarm. */
void nth_arm(enum nth_kind kind, unsigned n, bool ever);
/* Returns whether a call has failed. */
bool nth_disarm(void);
bool nth_met(void);
/* Calls of the kind since nth_arm, up to the failure. */
unsigned nth_calls(void);
/* Runs one(n) for n = 1, 2, ... until one returns that no failure was met. In the suite, `budget` of them spread evenly (all if there are fewer); TARN_TEST_SCALE multiplies it, TARN_TEST_SEED
 * shifts them. Returns how many failed. */
unsigned nth_each(enum nth_kind kind, bool ever, unsigned budget, bool (*one)(enum nth_kind kind, unsigned n, bool ever));
/* Where the failure was met, as text: a call of nth_step before. */
void nth_step(const char *what);
const char *nth_where(void);
void nth_phase(const char *what);

/* Inside: calls of this thread count. May be nested. */
void nth_in(void);
void nth_out(void);
void nth_quiet(bool quiet);             /* nothing fails on this thread meanwhile, whatever is called */
#define NTH(call) ({ nth_in(); __typeof__(call) nth_r_ = (call); nth_out(); nth_r_; })
#define NTH_DO(call) do { nth_in(); call; nth_out(); } while (0)
/* A thread of the product counts as inside from its start on if this is set. */
extern bool nth_all_threads;

/* Has this file or directory (of this inode) been synced since nth_arm? */
bool nth_was_synced(const char *path);
/* Open descriptors of this process. */
int nth_descriptors(void);
/* What is under way, printed when the process dies by SIGABRT or is told to end by an alarm: `fmt` as printf. */
void nth_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void nth_print(void);                   /* the last note, to stderr */
