/* SPDX-License-Identifier: Apache-2.0 */
/* crawlers.h: who is a crawler (docs/crawlers.md): rules from files, asked at open. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"

#define CRAWLER_HEAD_BYTES (UINT64_C(64) << 10) /* of a rule that names none */
#define CRAWLER_ERRORS_KEPT 8u

struct crawlers;
/* An opener that a rule names: `head` bytes of each file may be fetched for it. Freed with free(). */
struct crawler { uint64_t head; pid_t pid; char name[]; };

int crawlers_new(struct crawlers **ret) _must_check_;
void crawlers_free(struct crawlers *c);
/* The rules of these files, one after the other, take the place of those before. A file that does not exist has none; a line that is wrong is told in the status, and the others count.
 * -ENOMEM: as it was. Any thread; reads files of local disks only (-> status). */
int crawlers_load(struct crawlers *c, const char *const *paths, size_t n) _must_check_;
/* The same from text, for tests. name: for the errors. */
int crawlers_load_text(struct crawlers *c, const char *name, const char *text, size_t n) _must_check_;
/* Who opens. NULL: nobody special, or not to be found out (pid 0: of another namespace; a process that is gone; no right to look; no memory). Without rules one atomic load, else readlink of
 * /proc/PID/exe, and /proc/PID/cgroup only if a rule about groups is reached. No lock held. */
struct crawler *crawlers_find(struct crawlers *c, pid_t pid);
/* What find decides, as a function of what it has read: exe NULL: unknown; cgroups: text of /proc/PID/cgroup. True: a crawler. */
bool crawlers_judge(struct crawlers *c, const char *exe, const char *cgroups, uint64_t *ret_head);
/* A read of it was refused. A leaf lock (RANK_QUEUE). */
void crawlers_refused(struct crawlers *c, const struct crawler *who);
struct crawlers_status {
        size_t rules, n_errors;
        char errors[CRAWLER_ERRORS_KEPT][256]; /* the first, "FILE:LINE: what is wrong" */
        char last[256]; pid_t last_pid;        /* who was refused last; "": nobody */
};
void crawlers_status(struct crawlers *c, struct crawlers_status *ret);
