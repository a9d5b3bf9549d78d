/* SPDX-License-Identifier: Apache-2.0 */
/* failpoint.c: the registry behind FAILPOINT.
 *
 * Each use of the macro leaves a pointer to its word in the linker's section tarn_failpoints; the section is the list, so that no point can be forgotten in a table.
 * Arming writes the details first and the action last; a hit reads the action first. A hit is counted by an atomic add, so that of many threads exactly one
 * sees the number that was asked for.
 *
 * kill is SIGKILL, not exit or abort: no handler, no flush, nothing of this process runs afterwards; what the kernel was given stays, what it was not given is gone. That is
 * the fault that the runner of tests/fault wants to see. hold waits under `lock`, which is taken by nothing else but arming; a thread that holds locks of a lower rank may
 * be held there as well, which is the point of it.
 *
 * Global by nature: points are places in the program, not objects. */
#include "base/failpoint.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"

#if TARN_FAILPOINTS

#include <pthread.h>
#include <time.h>

#define HOLD_S 60

enum { ACT_OFF = 0, ACT_COUNT, ACT_KILL, ACT_ERROR, ACT_FAIL, ACT_HOLD };

extern struct failpoint *const __start_tarn_failpoints[] __attribute__((weak));
extern struct failpoint *const __stop_tarn_failpoints[] __attribute__((weak));

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* no rank: taken last, and nothing is taken under it */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void hold(struct failpoint *p) {
        struct timespec until;
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += HOLD_S;
        (void)pthread_mutex_lock(&lock);
        while (atomic_load(&p->action) == ACT_HOLD)
                if (pthread_cond_timedwait(&changed, &lock, &until) == ETIMEDOUT)
                        break;
        (void)pthread_mutex_unlock(&lock);
}

int failpoint_hit(struct failpoint *p) {
        int action = atomic_load(&p->action);
        uint64_t hit = atomic_fetch_add(&p->hits, 1) + 1, first = atomic_load(&p->first);
        switch (action) {
        case ACT_KILL:
                if (hit >= first)
                        (void)raise(SIGKILL);
                return 0;
        case ACT_ERROR:
                return hit == first ? atomic_load(&p->error) : 0;
        case ACT_FAIL:
                return hit >= first ? atomic_load(&p->error) : 0;
        case ACT_HOLD:
                if (hit >= first)
                        hold(p);
                return 0;
        default:
                return 0;
        }
}

static int parse_errno(const char *s) {
        char *end;
        long n = strtol(s, &end, 10);
        if (end != s && *end == 0)
                return n > 0 && n < 4096 ? (int)-n : 0;
        for (int e = 1; e < 256; e++)
                if (strcmp(err_name(-e), s) == 0)
                        return -e;
        return 0;
}

static int parse_action(char *s, int *ret_action, int *ret_error, uint64_t *ret_first) {
        static const struct { const char *name; int action; } actions[] = { { "off", ACT_OFF }, { "count", ACT_COUNT }, { "kill", ACT_KILL }, { "error", ACT_ERROR }, { "fail", ACT_FAIL }, { "hold", ACT_HOLD } };
        char *at = strchr(s, '@');
        uint64_t first = 1;
        if (at) {
                char *end;
                *at++ = 0;
                first = strtoull(at, &end, 10);
                if (end == at || *end || first == 0)
                        return -EINVAL;
        }
        char *detail = strchr(s, ':');
        int error = 0;
        if (detail) {
                *detail++ = 0;
                error = parse_errno(detail);
        }
        for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
                if (strcmp(actions[i].name, s) == 0) {
                        bool wants = actions[i].action == ACT_ERROR || actions[i].action == ACT_FAIL;
                        if (wants != (error < 0) || (detail && !wants))
                                return -EINVAL;
                        *ret_action = actions[i].action;
                        *ret_error = error;
                        *ret_first = first;
                        return 0;
                }
        return -EINVAL;
}

static int arm_one(char *s) {
        char *equals = strchr(s, '=');
        int action, error;
        uint64_t first;
        bool found = false;
        if (!equals)
                return -EINVAL;
        *equals = 0;
        int r = parse_action(equals + 1, &action, &error, &first);
        if (r < 0)
                return r;
        (void)pthread_mutex_lock(&lock);
        for (struct failpoint *const *p = __start_tarn_failpoints; p < __stop_tarn_failpoints; p++) {
                if (strcmp(s, "*") != 0 && strcmp(s, (*p)->name) != 0)
                        continue;
                atomic_store(&(*p)->action, ACT_OFF);
                atomic_store(&(*p)->hits, 0);
                atomic_store(&(*p)->first, first);
                atomic_store(&(*p)->error, error);
                atomic_store(&(*p)->action, action);
                found = true;
        }
        (void)pthread_cond_broadcast(&changed);
        (void)pthread_mutex_unlock(&lock);
        return found ? 0 : -ENOENT;
}

int failpoint_arm(const char *text) {
        _cleanup_free_ char *copy = strdup(text);
        int r = copy ? 0 : -ENOMEM;
        for (char *s = copy; r == 0 && s && *s;) {
                char *next = strchr(s, ';');
                if (next)
                        *next++ = 0;
                r = arm_one(s);
                s = next;
        }
        return r;
}

void failpoint_each(void (*each)(void *arg, const char *name, uint64_t hits), void *arg) {
        for (struct failpoint *const *p = __start_tarn_failpoints; p < __stop_tarn_failpoints; p++)
                each(arg, (*p)->name, atomic_load(&(*p)->hits));
}

#else

int failpoint_hit(struct failpoint *p) {
        (void)p;
        return 0;
}

int failpoint_arm(const char *text) {
        (void)text;
        return -ENOSYS;
}

void failpoint_each(void (*each)(void *arg, const char *name, uint64_t hits), void *arg) {
        (void)each;
        (void)arg;
}

#endif

int failpoint_arm_from_environment(void) {
        const char *text = getenv("TARN_FAILPOINTS");
        return text && *text ? failpoint_arm(text) : 0;
}
