/* SPDX-License-Identifier: Apache-2.0 */
/* cleanup.h: ownership by scope. A variable marked _cleanup_x_ is released when it leaves its scope; steal_ptr and
 * steal_fd hand the value on and leave the variable empty. Every release function takes NULL (or -1). */
#pragma once
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define _must_check_ __attribute__((warn_unused_result))
#define _printf_(a, b) __attribute__((format(printf, a, b)))
#define _unused_ __attribute__((unused))

static inline void cleanup_free_p(void *p) {
        free(*(void **)p);
}
static inline void cleanup_close_p(int *fd) {
        if (*fd >= 0) {
                int saved = errno;
                (void)close(*fd);
                errno = saved;
        }
}
#define _cleanup_free_ _cleanup_(cleanup_free_p)
#define _cleanup_close_ _cleanup_(cleanup_close_p)

#define steal_ptr(p)                      \
        ({                                \
                __typeof__(p) stolen_ = (p); \
                (p) = NULL;               \
                stolen_;                  \
        })
static inline int steal_fd(int *fd) {
        int r = *fd;
        *fd = -1;
        return r;
}

/* Defines cleanup_TYPE_p for `struct TYPE *` variables from a release function that takes NULL. */
#define DEFINE_CLEANUP(type, release)                            \
        static inline void cleanup_##type##_p(struct type **p) { \
                release(*p);                                     \
        }                                                        \
        struct type

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN_(a, b, n) ({ __typeof__(a) a_##n = (a); __typeof__(b) b_##n = (b); a_##n < b_##n ? a_##n : b_##n; })
#define MIN_N_(a, b, n) MIN_(a, b, n)
#define MIN(a, b) MIN_N_(a, b, __COUNTER__) /* may be nested */
#define MAX_(a, b, n) ({ __typeof__(a) a_##n = (a); __typeof__(b) b_##n = (b); a_##n > b_##n ? a_##n : b_##n; })
#define MAX_N_(a, b, n) MAX_(a, b, n)
#define MAX(a, b) MAX_N_(a, b, __COUNTER__)
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))
