/* SPDX-License-Identifier: Apache-2.0 */
/* failpoint.h: named places at which a test may kill the process, fail a call or hold a thread. They stand around each sync, rename, commit, request, answer, eviction and freeze.
 *
 *   r = FAILPOINT("stage.sync");            0, or the negative errno that a test wants
 *   FAILPOINT_HERE("tree.committed");       where nothing can fail any more: an error that is asked for is ignored
 *
 * Off, a point costs one relaxed load of its own word. In release builds (TARN_FAILPOINTS=0) there are none: nothing is compiled in, the list is empty, arming is -ENOSYS.
 * A name is a place: the same name may stand at several calls that do the same thing, each counts for itself and any of them fires.
 *
 * Armed by text, from the variable TARN_FAILPOINTS at the start of a program or by the control socket:
 *
 *   POINT=ACTION[@HIT][;POINT=ACTION...]    POINT: a name, or * for all; HIT: the first hit that acts, counted from the arming (1)
 *
 *   kill        SIGKILL to this process, then and there
 *   error:ERRNO the call returns -ERRNO (a number or a name of base/err.h), at that hit only
 *   fail:ERRNO  likewise, at that hit and all later ones
 *   hold        the thread waits there until the point is armed otherwise (at most 60 s)
 *   count       hits are counted
 *   off
 *
 * Any thread. */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

struct failpoint {
        const char *name;
        _Atomic int action;         /* enum of failpoint.c; 0: off */
        _Atomic int error;          /* negative errno of error and fail */
        _Atomic uint64_t first, hits;
};

/* Text as above. -EINVAL: malformed; -ENOENT: no such point; -ENOSYS: not in this build. Points named before the one that is wrong are armed. */
int failpoint_arm(const char *text) _must_check_;
/* TARN_FAILPOINTS, if it is set. */
int failpoint_arm_from_environment(void) _must_check_;
/* Calls each for every point of this program, in the order of the linker; equal names follow each other or not. hits counts since the last arming. */
void failpoint_each(void (*each)(void *arg, const char *name, uint64_t hits), void *arg);
int failpoint_hit(struct failpoint *p); /* for the macro: the point is armed */

#if TARN_FAILPOINTS
#define FAILPOINT(text)                                                                                                                                                \
        ({                                                                                                                                                             \
                static struct failpoint point_ = { .name = (text) };                                                                                                   \
                static struct failpoint *const place_ __attribute__((used, section("tarn_failpoints"))) = &point_;                                                     \
                (void)place_;                                                                                                                                          \
                __builtin_expect(atomic_load_explicit(&point_.action, memory_order_relaxed) != 0, 0) ? failpoint_hit(&point_) : 0;                                      \
        })
#else
#define FAILPOINT(text) ((void)(text), 0)
#endif
#define FAILPOINT_HERE(text) ((void)FAILPOINT(text))
