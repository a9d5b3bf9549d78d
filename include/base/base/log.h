/* SPDX-License-Identifier: Apache-2.0 */
/* log.h: one line per event, `key=value`, with identity. Layers below log at debug at most; owners log once. To stderr
 * (level prefix, with a time of day unless under the journal) or a file. Threads: any; a line is written by one write(2). */
#pragma once
#include <stdbool.h>

#include "base/cleanup.h"

enum log_level { LOG_LEVEL_ERROR = 0, LOG_LEVEL_WARN = 1, LOG_LEVEL_INFO = 2, LOG_LEVEL_DEBUG = 3 };

/* program: shown in each line. path NULL = stderr. Returns 0 or -errno of opening the file. May be called again. */
int log_open(const char *program, enum log_level level, const char *path) _must_check_;
void log_set_level(enum log_level level);
void log_write(enum log_level level, const char *fmt, ...) _printf_(2, 3);
bool log_enabled(enum log_level level);
#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) ({ if (log_enabled(LOG_LEVEL_DEBUG)) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__); })
