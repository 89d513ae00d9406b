/* SPDX-License-Identifier: Apache-2.0 */
/* Lines to the journal or standard error. See log.h. */
#include "base/os/log.h"

#include "base/os/clock.h"
#include "base/os/sys.h"
#include "base/require.h"
#include "base/text.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE_BYTES       896
#define FIELD_BYTES      256
#define WAIT_MS          100 /* for a reader that does not keep up */
#define N_RATES          64
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

static const struct sockaddr_un journal_address = {.sun_family = AF_UNIX,
						   .sun_path = "/run/systemd/journal/socket"};
static int journal_fd = -1;

static bool has_journal(void)
{
	if (journal_fd < 0 && access(journal_address.sun_path, W_OK) == 0) {
		journal_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	}
	return journal_fd >= 0;
}

void log_open(enum log_level level, enum log_format format)
{
	require_report = report_broken;
	max_level = level;
	if (format == LOG_FORMAT_AUTO) {
		format = is_journal() ? LOG_FORMAT_JOURNAL : LOG_FORMAT_TEXT;
	}
	if (format == LOG_FORMAT_JOURNAL && !has_journal()) {
		format = LOG_FORMAT_TEXT;
	}
	chosen_format = format;
}

const char *log_message_id(const char *event)
{
	static const struct {
		const char *event;
		const char *id;
	} ids[] = {
		{"load.begun", "4fd4abd63f93407f9aea9107484dcf85"},
		{"load.done", "0e369c0a1ced44ec9e82100154b07f98"},
		{"load.failed", "ac7451ac6a5a4a6fa9afc78f33128f9b"},
		{"load.cancelled", "efe4c657782b4465a218065750bab7db"},
		{"evicted", "eb8cb4b7a58a4d0f97dcf2fe77b84c2f"},
		{"unloaded", "7bc5e6de20af4e62ad710b08913ba2c6"},
		{"refused", "ab7442f2b5c440f287b850a5da912cfb"},
		{"pinned", "f61eb5e80cc248898b56683a297a93e2"},
		{"unpinned", "b68160263820495f8f1c3f1e4e1d4ef4"},
		{"kept", "21ddb30d4de449ab97d4f679a9c2d71b"},
		{"unkept", "36a5e6a2f45b4dc2b3e2ff4903944d86"},
		{"quarantined", "b0f77fa5977f45e0b897b83a7469f2b7"},
		{"stale", "56cae1d3eef34d02a3fc309198b8f730"},
		{"held", "fc94d75559184534852aaca79537a711"},
		{"freed", "8cfb725d1678491db87245cd0e2c5c33"},
		{"placed", "4ad9c913df7b4db888ad88ffba4ea9bf"},
		{"place.failed", "f7ba0fe45b2f4a51834865a2da774852"},
		{"place.cancelled", "c9f8cc362f1945a881a617a242ef926f"},
	};

	for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
		if (strcmp(ids[i].event, event) == 0) {
			return ids[i].id;
		}
	}
	return NULL;
}

static void append(char *line, size_t *used, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void append(char *line, size_t *used, const char *format, ...)
{
	size_t room = PIPE_BUF - *used;
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(line + *used, room, format, arguments);
	va_end(arguments);
	if (size > 0) {
		*used += (size_t)size < room ? (size_t)size : room - 1;
	}
}

/* A JSON string of what text_escape has made: only quotes and backslashes are left to mark. */
static void append_json(char *line, size_t *used, const char *escaped)
{
	append(line, used, "\"");
	for (const char *at = escaped; *at != '\0'; at++) {
		append(line, used, *at == '"' || *at == '\\' ? "\\%c" : "%c", *at);
	}
	append(line, used, "\"");
}

static size_t format_json(enum log_level level, const struct log_field *fields, size_t n_fields,
			  const char *escaped, char *line)
{
	size_t used = 0;

	append(line, &used, "{\"time_ms\":%llu,\"priority\":%d,\"message\":",
	       (unsigned long long)clock_real_ns() / 1000000U, (int)level);
	append_json(line, &used, escaped);
	for (size_t i = 0; i < n_fields; i++) {
		char value[FIELD_BYTES];
		size_t before = used;

		append(line, &used, ",\"%s\":", fields[i].name);
		append_json(line, &used, text_escape(fields[i].value, value, sizeof value));
		if (used >= PIPE_BUF - sizeof "}\n") {
			used = before; /* a line that is whole matters more than its last fields */
			break;
		}
	}
	append(line, &used, "}\n");
	return used;
}

/* As the journal's own protocol has it: a value of several lines is preceded by its size. */
static void append_field(char *packet, size_t *used, const char *name, const char *value)
{
	const uint64_t size = strlen(value);
	const uint64_t size_on_wire = htole64(size);

	if (strchr(value, '\n') == NULL) {
		append(packet, used, "%s=%s\n", name, value);
	} else if (*used + strlen(name) + sizeof size_on_wire + size + 3 <= PIPE_BUF) {
		append(packet, used, "%s\n", name);
		memcpy(packet + *used, &size_on_wire, sizeof size_on_wire);
		*used += sizeof size_on_wire;
		append(packet, used, "%s\n", value);
	}
}

/* False: the journal is gone, or has no room now; nobody waits for it. Not by libsystemd, which
 * waits for a journal that hangs, and for one that is gone reports success. 'packet' has room for
 * PIPE_BUF bytes. */
static bool write_journal(enum log_level level, const struct log_field *fields, size_t n_fields,
			  const char *escaped, char *packet)
{
	size_t used = 0;
	struct sockaddr_un address = journal_address;
	struct iovec part = {.iov_base = packet};
	const struct msghdr message = {.msg_name = &address,
				       .msg_namelen = sizeof address,
				       .msg_iov = &part,
				       .msg_iovlen = 1};

	append_field(packet, &used, "MESSAGE", escaped);
	append(packet, &used, "PRIORITY=%d\nSYSLOG_IDENTIFIER=distorchd\n", (int)level);
	for (size_t i = 0; i < n_fields; i++) {
		const char *id = strcmp(fields[i].name, "DISTORCHD_EVENT") == 0
					 ? log_message_id(fields[i].value)
					 : NULL;
		const size_t before = used;

		append_field(packet, &used, fields[i].name, fields[i].value);
		if (id != NULL) {
			append_field(packet, &used, "MESSAGE_ID", id);
		}
		if (used >= PIPE_BUF - 1) {
			used = before; /* cut: the rest is left out */
			break;
		}
	}
	part.iov_len = used;
	return sys_sendmsg(journal_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

/*
 * A line of at most PIPE_BUF bytes does not block once poll says that there is room. A reader
 * that went away shows as POLLERR, so that no SIGPIPE comes.
 */
static bool write_stderr(const char *line, size_t size, int wait_ms)
{
	struct pollfd standard_error = {.fd = STDERR_FILENO, .events = POLLOUT};

	return poll(&standard_error, 1, wait_ms) == 1 && standard_error.revents == POLLOUT &&
	       write(STDERR_FILENO, line, size) >= 0;
}

/* A log that nobody reads stops nothing: the first lost line waits a moment, later ones not. */
static void write_line(const char *line, size_t size)
{
	static unsigned long n_lost;
	unsigned long lost = __atomic_exchange_n(&n_lost, 0, __ATOMIC_RELAXED);
	char notice[80];

	if (lost != 0) {
		int notice_size =
			snprintf(notice, sizeof notice,
				 chosen_format == LOG_FORMAT_JSON
					 ? "{\"priority\":4,\"message\":\"%lu lines were lost\"}\n"
					 : "distorchd: %lu lines were lost\n",
				 lost);

		if (!write_stderr(notice, (size_t)notice_size, 0)) {
			(void)__atomic_add_fetch(&n_lost, lost + 1, __ATOMIC_RELAXED);
			return;
		}
	}
	if (!write_stderr(line, size, WAIT_MS)) {
		(void)__atomic_add_fetch(&n_lost, 1, __ATOMIC_RELAXED);
	}
}

void log_event(enum log_level level, const struct log_field *fields, size_t n_fields,
	       const char *format, ...)
{
	static const char *const words[] = {"error: ", "warning: ", "", "", "debug: "};
	int saved = errno;
	char escaped[LINE_BYTES];
	char line[PIPE_BUF];
	size_t used = 0;
	va_list arguments;

	if (level > max_level) {
		return;
	}
	va_start(arguments, format);
	(void)vsnprintf(line, LINE_BYTES, format, arguments);
	va_end(arguments);
	(void)text_escape(line, escaped, sizeof escaped);
	if (chosen_format == LOG_FORMAT_JOURNAL &&
	    write_journal(level, fields, n_fields, escaped, line)) {
		errno = saved;
		return;
	}
	if (chosen_format == LOG_FORMAT_JSON) {
		used = format_json(level, fields, n_fields, escaped, line);
	} else {
		append(line, &used, "distorchd: %s%s\n", words[level - LOG_LEVEL_ERROR], escaped);
	}
	write_line(line, used);
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
