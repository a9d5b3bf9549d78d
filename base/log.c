/* SPDX-License-Identifier: Apache-2.0 */
/* log.c: one line per event. A line is made in a buffer on the stack and leaves with one write(2), so that lines of
 * several threads (and of several processes that append to one file) never mix. Control characters inside a message are shown as '?':
 * a file name with a newline must not be able to forge a line.
 *
 * Form     2024-05-01T10:11:12.345Z program[pid] level: message         stderr and files
 *          <6>program: message                                           under the journal, which has time and pid itself
 *
 * State: where lines go and from which level on, replaced as a whole by log_open. The lock (RANK_LOG, the highest: logging is allowed under
 * any other lock) keeps the descriptor from being closed under a writer. Lines over LINE_MAX_BYTES are cut and end with "...".
 * Left out: rotation (the journal's or logrotate's business; log_open may be called again after SIGHUP). */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/lock.h"

#define LINE_MAX_BYTES 4096

static struct lock log_lock = { PTHREAD_MUTEX_INITIALIZER, "log", RANK_LOG };
static atomic_int log_level_now = LOG_LEVEL_INFO;
static int log_fd = STDERR_FILENO;  /* log_lock */
static char log_program[32] = "tarn"; /* log_lock */
static bool log_journal;            /* log_lock: stderr is the journal's */

int log_open(const char *program, enum log_level level, const char *path) {
        int fd = STDERR_FILENO;
        if (path) {
                fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
                if (fd < 0)
                        return -errno;
        }
        LOCK_SCOPE(&log_lock);
        if (log_fd != STDERR_FILENO)
                (void)close(log_fd);
        log_fd = fd;
        log_journal = !path && getenv("JOURNAL_STREAM") != NULL;
        (void)snprintf(log_program, sizeof log_program, "%s", program ? program : "tarn");
        atomic_store_explicit(&log_level_now, level, memory_order_relaxed);
        return 0;
}

void log_set_level(enum log_level level) {
        atomic_store_explicit(&log_level_now, level, memory_order_relaxed);
}

bool log_enabled(enum log_level level) {
        return (int)level <= atomic_load_explicit(&log_level_now, memory_order_relaxed);
}

static size_t log_head(enum log_level level, char *line, size_t room) {
        static const char *const words[] = { "error", "warning", "info", "debug" };
        static const char priorities[] = { '3', '4', '6', '7' };
        int n;
        if (log_journal) {
                n = snprintf(line, room, "<%c>%s: ", priorities[level], log_program);
        } else {
                struct timespec now;
                struct tm tm;
                (void)clock_gettime(CLOCK_REALTIME, &now);
                (void)gmtime_r(&now.tv_sec, &tm);
                n = snprintf(line, room, "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ %s[%d] %s: ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour,
                             tm.tm_min, tm.tm_sec, now.tv_nsec / 1000000, log_program, (int)getpid(), words[level]);
        }
        return n < 0 ? 0 : MIN((size_t)n, room - 1);
}

void log_write(enum log_level level, const char *fmt, ...) {
        if (!log_enabled(level))
                return;
        int saved = errno;
        char line[LINE_MAX_BYTES];
        LOCK_SCOPE(&log_lock);
        size_t head = log_head(level, line, sizeof line), end = head;
        va_list args;
        va_start(args, fmt);
        errno = saved; /* %m */
        int n = vsnprintf(line + head, sizeof line - head, fmt, args);
        va_end(args);
        if (n > 0)
                end = head + (size_t)n;
        if (end > sizeof line - 2) {
                end = sizeof line - 2;
                memcpy(line + end - 3, "...", 3);
        }
        for (size_t i = head; i < end; i++)
                if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
                        line[i] = '?';
        line[end++] = '\n';
        ssize_t written = write(log_fd, line, end); /* nobody to tell if even this fails */
        (void)written;
        errno = saved;
}
