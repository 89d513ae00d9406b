/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line an event: lower case, what, which, how long. To the journal when standard error
 * is connected to it, else to standard error as text or as JSON lines. Control bytes are
 * escaped, errno is kept. A reader of standard error that is stuck or gone costs 100 ms
 * once; then lines are left out and counted. Only daemon/ and daemon/ipc log. Any thread.
 */
#ifndef BASE_OS_LOG_H
#define BASE_OS_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level {
	LOG_LEVEL_ERROR = 3, /* the numbers of syslog */
	LOG_LEVEL_WARNING = 4,
	LOG_LEVEL_NOTICE = 5,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7,
};

enum log_format { LOG_FORMAT_AUTO, LOG_FORMAT_JOURNAL, LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

/*
 * A structured field: an upper-case name of the journal and its value (cut at 255 bytes).
 * Shown by the journal and in JSON, not in text. At most 8. DISTORCHD_EVENT brings the
 * MESSAGE_ID of its kind along.
 */
struct log_field {
	const char *name;
	const char *value;
};

/*
 * Before that, lines of level info and above go to standard error as text. So does what
 * was meant for a journal that is not there. To be called before other threads log.
 */
void log_open(enum log_level level, enum log_format format);

void log_event(enum log_level level, const struct log_field *fields, size_t n_fields,
	       const char *format, ...) __attribute__((format(printf, 4, 5)));

#define log_error(...)   log_event(LOG_LEVEL_ERROR, NULL, 0, __VA_ARGS__)
#define log_warning(...) log_event(LOG_LEVEL_WARNING, NULL, 0, __VA_ARGS__)
#define log_notice(...)  log_event(LOG_LEVEL_NOTICE, NULL, 0, __VA_ARGS__)
#define log_info(...)    log_event(LOG_LEVEL_INFO, NULL, 0, __VA_ARGS__)
#define log_debug(...)   log_event(LOG_LEVEL_DEBUG, NULL, 0, __VA_ARGS__)

/*
 * May a line about what 'uid' does be written? The first at once, then one a minute each
 * (event, uid); 'ret_n_skipped' says how many were left out since. 'event' is static text.
 */
bool log_allows(const char *event, uint32_t uid, uint64_t now_ns, uint32_t *ret_n_skipped);

/* 32 hexadecimal digits for `journalctl MESSAGE_ID=` and the catalog; NULL: no such event. */
const char *log_message_id(const char *event);

#endif
