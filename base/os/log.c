/* SPDX-License-Identifier: Apache-2.0 */
/* Lines to the journal or standard error. See log.h. */
#include "base/os/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/os/clock.h"
#include "base/require.h"

#ifdef HAVE_SYSTEMD
#	define SD_JOURNAL_SUPPRESS_LOCATION
#	include <systemd/sd-journal.h>
#endif

#define LINE_BYTES	 960
#define FIELD_BYTES	 256
#define MAX_FIELDS	 8
#define N_RATES		 64
#define RATE_INTERVAL_NS 60000000000U

static enum log_level max_level = LOG_LEVEL_INFO;
static enum log_format chosen_format = LOG_FORMAT_TEXT;

static struct {
	const char *event;
	uint32_t uid;
	uint32_t n_skipped;
	uint64_t last_ns;
} rates[N_RATES];
static pthread_mutex_t rates_lock = PTHREAD_MUTEX_INITIALIZER;

/* Bytes of the UTF-8 character at 'text' that may be shown as it is; 0: escape one byte. */
static size_t printable_size(const unsigned char *text)
{
	size_t size = text[0] < 0x80 ? 1 : text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
	uint32_t code = text[0];

	if (size == 1) {
		return text[0] >= 0x20 && text[0] != 0x7f && text[0] != '\\' ? 1 : 0;
	}
	if (text[0] < 0xc2 || text[0] > 0xf4) {
		return 0;
	}
	code = text[0] & (0xffU >> (size + 1));
	for (size_t i = 1; i < size; i++) {
		if ((text[i] & 0xc0) != 0x80) {
			return 0;
		}
		code = code << 6 | (text[i] & 0x3fU);
	}
	/* C1 controls, direction marks and overrides, line separators, tags. */
	if (code < 0xa0 || code == 0x61c || (code >= 0x200b && code <= 0x200f) ||
	    (code >= 0x2028 && code <= 0x202e) || (code >= 0x2060 && code <= 0x2069) ||
	    code == 0xfeff || (code >= 0xd800 && code <= 0xdfff) || code > 0x10ffff ||
	    (code >= 0xe0000 && code <= 0xe007f)) {
		return 0;
	}
	return size;
}

const char *log_escape(const char *text, char *buffer, size_t buffer_size)
{
	const unsigned char *at = (const unsigned char *)text;
	size_t used = 0;

	while (*at != '\0') {
		size_t size = printable_size(at);

		if (used + (size == 0 ? 4 : size) >= buffer_size) {
			break;
		}
		if (size == 0) {
			(void)snprintf(buffer + used, buffer_size - used, "\\x%02x", *at);
			used += 4;
			at++;
		} else {
			memcpy(buffer + used, at, size);
			used += size;
			at += size;
		}
	}
	buffer[used] = '\0';
	return buffer;
}

static void report_broken(const char *condition, const char *file, int line)
{
	char text[LINE_BYTES];
	int size = snprintf(text, sizeof text, "distorchd: broken: %s at %s:%d; please report it\n",
			    condition, file, line);

	if (size > 0) {
		(void)!write(STDERR_FILENO, text, (size_t)size); /* we are about to abort */
	}
}

/* Is standard error the journal's own socket? systemd says so in JOURNAL_STREAM. */
static bool is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	struct stat status;
	char *end = NULL;
	unsigned long long dev;
	unsigned long long ino;

	if (stream == NULL || fstat(STDERR_FILENO, &status) < 0) {
		return false;
	}
	dev = strtoull(stream, &end, 10);
	if (*end != ':') {
		return false;
	}
	ino = strtoull(end + 1, NULL, 10);
	return dev == status.st_dev && ino == status.st_ino;
}

void log_open(enum log_level level, enum log_format format)
{
	require_report = report_broken;
	max_level = level;
	if (format == LOG_FORMAT_AUTO) {
		format = is_journal() ? LOG_FORMAT_JOURNAL : LOG_FORMAT_TEXT;
	}
#ifndef HAVE_SYSTEMD
	format = format == LOG_FORMAT_JOURNAL ? LOG_FORMAT_TEXT : format;
#endif
	chosen_format = format;
}

#ifdef HAVE_SYSTEMD
static bool write_journal(enum log_level level, const struct log_field *fields, size_t n_fields,
			  const char *line)
{
	char message[LINE_BYTES];
	char texts[MAX_FIELDS][FIELD_BYTES];
	char priority[24];
	struct iovec vectors[MAX_FIELDS + 2];
	size_t n_vectors = 0;

	(void)snprintf(message, sizeof message, "MESSAGE=%.*s", LINE_BYTES - 16, line);
	vectors[n_vectors++] = (struct iovec){.iov_base = message, .iov_len = strlen(message)};
	(void)snprintf(priority, sizeof priority, "PRIORITY=%d", (int)level);
	vectors[n_vectors++] = (struct iovec){.iov_base = priority, .iov_len = strlen(priority)};
	for (size_t i = 0; i < n_fields && i < MAX_FIELDS; i++) {
		(void)snprintf(texts[i], FIELD_BYTES, "%s=%s", fields[i].name, fields[i].value);
		vectors[n_vectors++] =
			(struct iovec){.iov_base = texts[i], .iov_len = strlen(texts[i])};
	}
	return sd_journal_sendv(vectors, (int)n_vectors) >= 0;
}
#endif

static void append(char *line, size_t *used, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void append(char *line, size_t *used, const char *format, ...)
{
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(line + *used, LINE_BYTES * 4 - *used, format, arguments);
	va_end(arguments);
	if (size > 0) {
		*used += (size_t)size < LINE_BYTES * 4 - *used ? (size_t)size
							       : LINE_BYTES * 4 - *used - 1;
	}
}

/* A JSON string: what log_escape leaves over needs only quotes and backslashes doubled. */
static void append_json(char *line, size_t *used, const char *text)
{
	char escaped[LINE_BYTES];

	append(line, used, "\"");
	for (const char *at = log_escape(text, escaped, sizeof escaped); *at != '\0'; at++) {
		append(line, used, *at == '"' || *at == '\\' ? "\\%c" : "%c", *at);
	}
	append(line, used, "\"");
}

static void write_line(enum log_level level, const struct log_field *fields, size_t n_fields,
		       const char *text)
{
	static const char *const words[] = {"error: ", "warning: ", "", "", "debug: "};
	char line[LINE_BYTES * 4];
	char escaped[LINE_BYTES];
	size_t used = 0;

	if (chosen_format == LOG_FORMAT_JSON) {
		append(line, &used, "{\"time_ms\":%llu,\"priority\":%d,\"message\":",
		       (unsigned long long)clock_real_ns() / 1000000U, (int)level);
		append_json(line, &used, text);
		for (size_t i = 0; i < n_fields; i++) {
			append(line, &used, ",\"%s\":", fields[i].name);
			append_json(line, &used, fields[i].value);
		}
		append(line, &used, "}\n");
	} else {
		append(line, &used, "distorchd: %s%s\n", words[level - LOG_LEVEL_ERROR],
		       log_escape(text, escaped, sizeof escaped));
	}
	(void)!write(STDERR_FILENO, line, used); /* a log that cannot be written stops nothing */
}

void log_event(enum log_level level, const struct log_field *fields, size_t n_fields,
	       const char *format, ...)
{
	int saved = errno;
	char text[LINE_BYTES];
	va_list arguments;

	if (level > max_level) {
		return;
	}
	va_start(arguments, format);
	(void)vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
#ifdef HAVE_SYSTEMD
	if (chosen_format == LOG_FORMAT_JOURNAL && write_journal(level, fields, n_fields, text)) {
		errno = saved;
		return;
	}
#endif
	write_line(level, fields, n_fields, text);
	errno = saved;
}

bool log_allows(const char *event, uint32_t uid, uint64_t now_ns, uint32_t *ret_n_skipped)
{
	size_t oldest = 0;
	bool is_allowed = true;

	REQUIRE(pthread_mutex_lock(&rates_lock) == 0);
	*ret_n_skipped = 0;
	for (size_t i = 0; i < N_RATES; i++) {
		if (rates[i].event == event && rates[i].uid == uid) {
			is_allowed = now_ns - rates[i].last_ns >= RATE_INTERVAL_NS;
			oldest = i;
			break;
		}
		oldest = rates[i].last_ns < rates[oldest].last_ns ? i : oldest;
	}
	if (rates[oldest].event != event || rates[oldest].uid != uid) {
		rates[oldest].event = event;
		rates[oldest].uid = uid;
		rates[oldest].n_skipped = 0;
	}
	if (is_allowed) {
		*ret_n_skipped = rates[oldest].n_skipped;
		rates[oldest].n_skipped = 0;
		rates[oldest].last_ns = now_ns;
	} else {
		rates[oldest].n_skipped++;
	}
	REQUIRE(pthread_mutex_unlock(&rates_lock) == 0);
	return is_allowed;
}
