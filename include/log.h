/* One line an event on stderr: timestamp= level= message="…" key=value …, as the ai-runner logs. Thread-safe.
 * Never waits: lines that stderr has no room for are left out, and their number is written once it has. */
#ifndef LATENTD_LOG_H
#define LATENTD_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARNING, LOG_LEVEL_ERROR };

void log_set_level(enum log_level lowest);
/* Writes one line. FMT makes the message; quotes and control characters in it are escaped,
 * and what is not UTF-8 is left out. */
void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_debug(...)   log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_info(...)    log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_error(...)   log_write(LOG_LEVEL_ERROR, __VA_ARGS__)

#endif
