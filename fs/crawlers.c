/* SPDX-License-Identifier: Apache-2.0 */
/* crawlers.c: who is a crawler, by rules. docs/crawlers.md says why and what follows from it; blob_read.c keeps to the limit that a handle carries.
 *
 *   line     exe PATTERN [head BYTES]      the opener's executable
 *            cgroup PATTERN [head BYTES]   one of its groups
 *            not PATTERN                   either: not a crawler, whatever comes behind
 *            # remark, or nothing
 *
 * The first line that fits counts. A pattern with a slash is compared with the whole path, one without with its last part (a group: with each of its parts). Patterns are those of the shell; * also
 * stands for slashes. Whoever can write the file is the owner of the mount or root, but a slip in it must neither stop the mount nor take the other rules with it: so what is
 * wrong is noted with its line, up to a bound, and left out.
 *
 * What is asked of /proc is not kept. The executable of a process changes at exec, its groups at any time, and nothing that could tell so is cheaper to read than they are: on one machine readlink
 * of exe took 3 us, a read of stat (for the start time, which would not tell of an exec) 24, a read of cgroup 41. So groups are read only when a rule about them is reached, and no table has to be
 * bounded, to age, or to be wrong. A process is looked up by the thread that opens, which /proc knows by its number too.
 *
 * Rules are an array that never changes, counted by references; a load puts another in its place. Lock: c->lock (RANK_QUEUE, a leaf) guards the pointer and what status shows; matching and /proc
 * are outside it. Files on FUSE are not read: it could be this mount, which would have to answer while its control thread waits for it. */
#include "fs/crawlers.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <linux/magic.h>

#include "base/args.h"
#include "base/buf.h"
#include "base/io.h"
#include "base/lock.h"

#define FILE_MAX_BYTES 65536u
#define LINE_MAX_BYTES 1024u
#define RULES_MAX 1024u
#define STARS_MAX 8u             /* in a pattern: what a comparison costs is bounded */
#define EXE_MAX_BYTES 4096u
#define CGROUPS_MAX_BYTES 16384u

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

enum kind { RULE_EXE, RULE_CGROUP, RULE_NOT };
struct rule { enum kind kind; bool whole, literal; uint64_t head; char *pattern; };
struct rules { _Atomic unsigned refs; size_t n, room; struct rule *v; size_t n_errors; char errors[CRAWLER_ERRORS_KEPT][256]; };

struct crawlers {
        _Atomic bool any;
        struct lock lock;
        struct rules *rules;         /* lock: the pointer */
        char last[256]; pid_t last_pid; /* lock */
};

/* ---- rules ---- */

static void rules_put(struct rules *r) {
        if (!r || atomic_fetch_sub(&r->refs, 1) > 1)
                return;
        for (size_t i = 0; i < r->n; i++)
                free(r->v[i].pattern);
        free(r->v);
        free(r);
}

static void rules_put_p(struct rules **r) {
        rules_put(*r);
}

static struct rules *rules_new(void) {
        struct rules *r = calloc(1, sizeof *r);
        if (r)
                atomic_store(&r->refs, 1);
        return r;
}

static struct rules *rules_get(struct crawlers *c) {
        LOCK_SCOPE(&c->lock);
        atomic_fetch_add(&c->rules->refs, 1);
        return c->rules;
}

static void _printf_(4, 5) wrong(struct rules *r, const char *name, size_t line, const char *fmt, ...) {
        if (r->n_errors++ >= CRAWLER_ERRORS_KEPT)
                return;
        char *at = r->errors[r->n_errors - 1];
        int n = line ? snprintf(at, sizeof r->errors[0], "%.100s:%zu: ", name, line) : snprintf(at, sizeof r->errors[0], "%.100s: ", name);
        va_list ap;
        va_start(ap, fmt);
        (void)vsnprintf(at + n, sizeof r->errors[0] - (size_t)n, fmt, ap);
        va_end(ap);
        for (char *p = at; *p; p++) /* what was quoted may hold anything, and goes into JSON and to terminals */
                if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f)
                        *p = '?';
}

static int rules_add(struct rules *r, const struct rule *rule, const char *pattern) {
        if (r->n == r->room) {
                size_t room = r->room ? r->room * 2 : 16;
                struct rule *v = reallocarray(r->v, room, sizeof *v);
                if (!v)
                        return -ENOMEM;
                r->v = v;
                r->room = room;
        }
        r->v[r->n] = *rule;
        r->v[r->n].pattern = strdup(pattern);
        if (!r->v[r->n].pattern)
                return -ENOMEM;
        r->n++;
        return 0;
}

/* Ends at a blank. NULL: no word is left. */
static char *next_word(char **at) {
        char *word = *at + strspn(*at, " \t");
        *at = word + strcspn(word, " \t");
        if (**at)
                *(*at)++ = 0;
        return *word ? word : NULL;
}

/* line: a copy that may be cut up. -ENOMEM */
static int parse_line(struct rules *r, const char *name, size_t number, char *line) {
        char *at = line, *what = next_word(&at), *pattern, *word;
        if (!what || *what == '#')
                return 0;
        struct rule rule = { .head = CRAWLER_HEAD_BYTES };
        if (strcmp(what, "exe") == 0)
                rule.kind = RULE_EXE;
        else if (strcmp(what, "cgroup") == 0)
                rule.kind = RULE_CGROUP;
        else if (strcmp(what, "not") == 0)
                rule.kind = RULE_NOT;
        else
                return wrong(r, name, number, "'%.40s' is not one of exe, cgroup, not", what), 0;
        pattern = next_word(&at);
        if (!pattern)
                return wrong(r, name, number, "a pattern is missing after %s", what), 0;
        unsigned stars = 0;
        for (const char *p = pattern; *p; p++)
                stars += *p == '*';
        if (stars > STARS_MAX)
                return wrong(r, name, number, "the pattern has more than %u stars", STARS_MAX), 0;
        word = next_word(&at);
        if (word && (strcmp(word, "head") != 0 || rule.kind == RULE_NOT))
                return wrong(r, name, number, "'%.40s' after the pattern is not expected (blanks in a pattern are written as ?)", word), 0;
        if (word) {
                word = next_word(&at);
                if (!word || parse_bytes(word, &rule.head) < 0)
                        return wrong(r, name, number, "'%.40s' is not a size such as 0, 65536, 64K, 1M", word ? word : ""), 0;
                if ((word = next_word(&at)))
                        return wrong(r, name, number, "'%.40s' after the size is not expected", word), 0;
        }
        if (r->n == RULES_MAX)
                return wrong(r, name, number, "more than %u rules", RULES_MAX), 0;
        rule.whole = strchr(pattern, '/');
        rule.literal = !pattern[strcspn(pattern, "*?[\\")];
        return rules_add(r, &rule, pattern);
}

static int parse(struct rules *r, const char *name, const char *text, size_t n) {
        size_t number = 1;
        for (size_t at = 0, end; at < n; at = end + 1, number++) {
                char line[LINE_MAX_BYTES + 1];
                const char *nl = memchr(text + at, '\n', n - at);
                end = nl ? (size_t)(nl - text) : n;
                size_t len = end - at;
                if (len > 0 && text[end - 1] == '\r')
                        len--;
                if (len > LINE_MAX_BYTES) {
                        wrong(r, name, number, "the line is longer than %u bytes", LINE_MAX_BYTES);
                        continue;
                }
                if (memchr(text + at, 0, len)) {
                        wrong(r, name, number, "the line has a NUL byte");
                        continue;
                }
                memcpy(line, text + at, len);
                line[len] = 0;
                if (parse_line(r, name, number, line) < 0)
                        return -ENOMEM;
        }
        return 0;
}

static int parse_file(struct rules *r, const char *path) {
        struct stat st;
        struct statfs fs;
        _cleanup_close_ int fd = open(path, O_PATH | O_CLOEXEC); /* opens nothing yet: a FIFO does not block, a mount is not asked */
        if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
                return 0;
        if (fd < 0 || fstatfs(fd, &fs) < 0)
                return wrong(r, path, 0, "cannot be read: %s", strerror(errno)), 0;
        if (fs.f_type == FUSE_SUPER_MAGIC)
                return wrong(r, path, 0, "is not read: it lies on a FUSE mount"), 0;
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
                return wrong(r, path, 0, "is not read: it is not a regular file"), 0;
        char again[64];
        (void)snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
        _cleanup_close_ int in = open(again, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ char *text = malloc(FILE_MAX_BYTES + 1);
        if (!text)
                return -ENOMEM;
        ssize_t n = in < 0 ? -errno : pread_some(in, text, FILE_MAX_BYTES + 1, 0);
        if (n < 0)
                return wrong(r, path, 0, "cannot be read: %s", strerror((int)-n)), 0;
        size_t use = (size_t)n;
        if (use > FILE_MAX_BYTES) {
                wrong(r, path, 0, "is longer than %u bytes: what follows is not read", FILE_MAX_BYTES);
                for (use = FILE_MAX_BYTES; use > 0 && text[use - 1] != '\n'; use--)
                        ;
        }
        return parse(r, path, text, use);
}

static void take(struct crawlers *c, struct rules **r) {
        struct rules *old;
        {
                LOCK_SCOPE(&c->lock);
                old = c->rules;
                c->rules = steal_ptr(*r);
                atomic_store(&c->any, c->rules->n > 0);
        }
        rules_put(old);
}

int crawlers_load(struct crawlers *c, const char *const *paths, size_t n) {
        _cleanup_(rules_put_p) struct rules *r = rules_new();
        int k = r ? 0 : -ENOMEM;
        for (size_t i = 0; k == 0 && i < n; i++)
                k = parse_file(r, paths[i]);
        if (k == 0)
                take(c, &r);
        return k;
}

int crawlers_load_text(struct crawlers *c, const char *name, const char *text, size_t n) {
        _cleanup_(rules_put_p) struct rules *r = rules_new();
        int k = r ? parse(r, name, text, n) : -ENOMEM;
        if (k == 0)
                take(c, &r);
        return k;
}

/* ---- matching ---- */

/* What is known of the opener, read when it is first asked for. */
struct who { pid_t pid; bool asked_exe, asked_cgroups; const char *exe, *cgroups; char *buf; };

static bool fits(const struct rule *r, const char *text) {
        return r->literal ? strcmp(r->pattern, text) == 0 : fnmatch(r->pattern, text, 0) == 0;
}

static bool fits_exe(const struct rule *r, const char *exe) {
        const char *last = strrchr(exe, '/');
        return fits(r, r->whole || !last ? exe : last + 1);
}

/* cgroups: lines "ID:CONTROLLERS:PATH" (cgroups(7)). */
static bool fits_cgroups(const struct rule *r, const char *cgroups) {
        char path[EXE_MAX_BYTES];
        for (const char *line = cgroups, *next; *line; line = next) {
                size_t n = strcspn(line, "\n");
                next = line + n + (line[n] == '\n');
                const char *colon = memchr(line, ':', n);
                colon = colon ? memchr(colon + 1, ':', n - (size_t)(colon + 1 - line)) : NULL;
                size_t len = colon ? n - (size_t)(colon + 1 - line) : 0;
                if (!colon || len >= sizeof path)
                        continue;
                memcpy(path, colon + 1, len);
                path[len] = 0;
                if (r->whole) {
                        if (fits(r, path))
                                return true;
                        continue;
                }
                for (char *at = path, *part; (part = strsep(&at, "/"));)
                        if (*part && fits(r, part))
                                return true;
        }
        return false;
}

static const char *exe_of(struct who *w) {
        static const char deleted[] = " (deleted)"; /* replaced by an upgrade while it runs */
        char link[64];
        if (w->asked_exe)
                return w->exe;
        w->asked_exe = true;
        (void)snprintf(link, sizeof link, "/proc/%d/exe", (int)w->pid);
        ssize_t n = readlink(link, w->buf, EXE_MAX_BYTES - 1);
        if (n <= 0)
                return NULL;
        if ((size_t)n >= sizeof deleted && memcmp(w->buf + n - (sizeof deleted - 1), deleted, sizeof deleted - 1) == 0)
                n -= (ssize_t)sizeof deleted - 1;
        w->buf[n] = 0;
        return w->exe = w->buf;
}

static const char *cgroups_of(struct who *w) {
        char path[64];
        if (w->asked_cgroups)
                return w->cgroups;
        char *to = w->buf + EXE_MAX_BYTES;
        w->asked_cgroups = true;
        (void)snprintf(path, sizeof path, "/proc/%d/cgroup", (int)w->pid);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : pread_some(fd, to, CGROUPS_MAX_BYTES - 1, 0);
        if (n < 0)
                return NULL;
        to[n] = 0;
        return w->cgroups = to;
}

static const struct rule *judge(const struct rules *rules, struct who *w) {
        for (size_t i = 0; i < rules->n; i++) {
                const struct rule *r = &rules->v[i];
                const char *text;
                if (r->kind != RULE_CGROUP && (text = exe_of(w)) && fits_exe(r, text))
                        return r;
                if (r->kind != RULE_EXE && (text = cgroups_of(w)) && fits_cgroups(r, text))
                        return r;
        }
        return NULL;
}

bool crawlers_judge(struct crawlers *c, const char *exe, const char *cgroups, uint64_t *ret_head) {
        _cleanup_(rules_put_p) struct rules *rules = rules_get(c);
        struct who w = { .asked_exe = true, .asked_cgroups = true, .exe = exe, .cgroups = cgroups };
        const struct rule *r = judge(rules, &w);
        if (!r || r->kind == RULE_NOT)
                return false;
        *ret_head = r->head;
        return true;
}

struct crawler *crawlers_find(struct crawlers *c, pid_t pid) {
        if (!c || !atomic_load_explicit(&c->any, memory_order_relaxed) || pid <= 0)
                return NULL;
        _cleanup_(rules_put_p) struct rules *rules = rules_get(c);
        char buf[EXE_MAX_BYTES + CGROUPS_MAX_BYTES];
        struct who w = { .pid = pid, .buf = buf };
        const struct rule *r = judge(rules, &w);
        if (!r || r->kind == RULE_NOT)
                return NULL;
        const char *name = exe_of(&w);
        name = name ? name : r->pattern;
        struct crawler *who = malloc(sizeof *who + strlen(name) + 1);
        if (!who)
                return NULL;
        who->head = r->head;
        who->pid = pid;
        memcpy(who->name, name, strlen(name) + 1);
        return who;
}

/* ---- what is shown ---- */

void crawlers_refused(struct crawlers *c, const struct crawler *who) {
        LOCK_SCOPE(&c->lock);
        (void)snprintf(c->last, sizeof c->last, "%s", who->name);
        c->last_pid = who->pid;
}

void crawlers_status(struct crawlers *c, struct crawlers_status *ret) {
        LOCK_SCOPE(&c->lock);
        *ret = (struct crawlers_status){ .rules = c->rules->n, .n_errors = c->rules->n_errors, .last_pid = c->last_pid };
        memcpy(ret->errors, c->rules->errors, sizeof ret->errors);
        memcpy(ret->last, c->last, sizeof ret->last);
}

int crawlers_new(struct crawlers **ret) {
        struct crawlers *c = calloc(1, sizeof *c);
        if (!c || !(c->rules = rules_new())) {
                free(c);
                return -ENOMEM;
        }
        lock_init(&c->lock, "crawlers", RANK_QUEUE);
        *ret = c;
        return 0;
}

void crawlers_free(struct crawlers *c) {
        if (!c)
                return;
        rules_put(c->rules);
        lock_destroy(&c->lock);
        free(c);
}
