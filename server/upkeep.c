/* SPDX-License-Identifier: Apache-2.0 */
/* upkeep.c: what a serving server does by itself. One thread, which waits for the next run or for the end:
 *
 *   started                       first run after FIRST_S, or after gc_every_s if that is less: a server that is restarted each day must come to it, too
 *   ran (also: failed)            next run gc_every_s after this one began
 *   refused, or ended because somebody wants the slot (backup, fsck, scrub, gc by command)   again after RETRY_S
 *
 * A run is `gc` with the words that the command takes (maintain.c), so it keeps all of its promises: short transactions, one maintenance at a time, stopped by the end of the server, what is young or
 * claimed is left alone, and the next run goes on where one was killed. Expired tokens, claims and sessions also go between the runs (service.c).
 *
 * Operation ids are not pruned: a client may come back with one after any time, and its first answer must be there (docs/server-schema.md).
 *
 * Lock: `lock` (a leaf, rank of queues) guards `stop`; it is not held during a run. */
#include "upkeep.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/thread.h"
#include "maintain.h"

#define FIRST_S 900
#define RETRY_S 60
#define TEXT_BYTES_MAX (64u << 10)

struct upkeep {
        struct service *s;
        struct upkeep_config c;
        struct lock lock;
        struct cond wake;
        bool stop;                       /* lock */
        int64_t start_ms;
        pthread_t thread;
};

int64_t upkeep_next_ms(const struct upkeep_config *c, int64_t start_ms, int64_t last_ms, int r) {
        int64_t every_ms = (int64_t)MIN(c->gc_every_s, UINT64_C(1) << 32) * 1000;

        if (last_ms < 0)
                return start_ms + MIN(every_ms, (int64_t)FIRST_S * 1000);
        return last_ms + (r == -EBUSY || r == -ECANCELED ? MIN(every_ms, (int64_t)RETRY_S * 1000) : every_ms);
}

static int run_gc(struct upkeep *u) {
        _cleanup_buf_ struct buf text = BUF_INIT(TEXT_BYTES_MAX);
        char min_age[24], trash_age[24], keep[24];
        const char *words[8] = {"gc", "--min-age", min_age};
        size_t n = 3;

        (void)snprintf(min_age, sizeof min_age, "%" PRIu64, u->c.min_age_s);
        (void)snprintf(trash_age, sizeof trash_age, "%" PRIu64, u->c.trash_age_s);
        (void)snprintf(keep, sizeof keep, "%" PRIu64, u->c.keep_events);
        if (u->c.trash_age_s) {
                words[n++] = "--trash-age";
                words[n++] = trash_age;
        }
        if (u->c.keep_events) {
                words[n++] = "--keep-events";
                words[n++] = keep;
        }
        int r = maintain_run(u->s, words, n, true, &text);
        if (r < 0 && r != -EBUSY && r != -ECANCELED)
                log_warn("event=upkeep error=%s", err_name(r));
        return r;
}

/* True: due; false: the end. */
static bool wait_until(struct upkeep *u, int64_t due_ms) {
        LOCK_SCOPE(&u->lock);
        while (!u->stop)
                if (cond_wait_until(&u->wake, &u->lock, due_ms) == -ETIMEDOUT)
                        return !u->stop;
        return false;
}

static void *upkeep_thread(void *arg) {
        struct upkeep *u = arg;
        int64_t last_ms = -1;
        int r = 0;

        while (wait_until(u, upkeep_next_ms(&u->c, u->start_ms, last_ms, r))) {
                last_ms = clock_mono_ms(clock_system());
                r = run_gc(u);
        }
        return NULL;
}

int upkeep_open(struct service *s, const struct upkeep_config *c, struct upkeep **ret) {
        *ret = NULL;
        if (c->gc_every_s == 0)
                return 0;
        struct upkeep *u = calloc(1, sizeof *u);
        if (!u)
                return -ENOMEM;
        u->s = s;
        u->c = *c;
        u->start_ms = clock_mono_ms(clock_system());
        lock_init(&u->lock, "upkeep", RANK_QUEUE);
        cond_init(&u->wake);
        int r = thread_start(&u->thread, "upkeep", upkeep_thread, u);
        if (r < 0) {
                cond_destroy(&u->wake);
                lock_destroy(&u->lock);
                free(u);
                return r;
        }
        *ret = u;
        return 0;
}

void upkeep_close(struct upkeep *u) {
        if (!u)
                return;
        {
                LOCK_SCOPE(&u->lock);
                u->stop = true;
                cond_broadcast(&u->wake);
        }
        maintain_stop(u->s);
        (void)pthread_join(u->thread, NULL);
        cond_destroy(&u->wake);
        lock_destroy(&u->lock);
        free(u);
}
