/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines as their readers get them: whole, escaped, limited, and never in the way. The
 * journal is played by a socket of our own in a mount namespace, where one may be had.
 */
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/require.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS     1000000ULL
#define MINUTE 60000000000ULL

static int real_stderr = -1;
static int reader = -1;

/* Standard error goes into a pipe until capture_end; nothing may be asserted meanwhile. */
static void capture_begin(void)
{
	int ends[2];

	assert_int_equal(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
	(void)fflush(stderr);
	real_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	(void)dup2(ends[1], STDERR_FILENO);
	(void)close(ends[1]);
	reader = ends[0];
}

static char *capture_end(char *text, size_t size)
{
	ssize_t n_read = read(reader, text, size - 1);

	(void)dup2(real_stderr, STDERR_FILENO);
	(void)close(real_stderr);
	(void)close(reader);
	text[n_read > 0 ? n_read : 0] = '\0';
	return text;
}

static void a_text_line_says_level_and_words(void **state)
{
	char text[PIPE_BUF];

	(void)state;
	capture_begin();
	log_open(LOG_LEVEL_DEBUG, LOG_FORMAT_TEXT);
	log_error("cannot start: %s", "no");
	log_warning("odd");
	log_notice("ready on %d", 7);
	log_info("loaded");
	log_debug("client %d", 1);
	assert_string_equal(capture_end(text, sizeof text), "distorchd: error: cannot start: no\n"
							    "distorchd: warning: odd\n"
							    "distorchd: ready on 7\n"
							    "distorchd: loaded\n"
							    "distorchd: debug: client 1\n");
}

static void lines_below_the_level_are_left_out(void **state)
{
	char text[PIPE_BUF];

	(void)state;
	capture_begin();
	log_open(LOG_LEVEL_WARNING, LOG_FORMAT_TEXT);
	log_info("loaded");
	log_notice("ready");
	log_warning("odd");
	assert_string_equal(capture_end(text, sizeof text), "distorchd: warning: odd\n");
}

static void a_stranger_cannot_make_a_second_line_or_colour(void **state)
{
	char text[PIPE_BUF];

	(void)state;
	capture_begin();
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
	log_info("file %s", "a\ndistorchd: error: forged\x1b[31m\xe2\x80\xae");
	assert_string_equal(capture_end(text, sizeof text),
			    "distorchd: file a\\x0adistorchd: error: forged\\x1b[31m"
			    "\\xe2\\x80\\xae\n");
}

static void errno_is_kept_even_where_the_line_cannot_be_written(void **state)
{
	char text[PIPE_BUF];
	int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
	int after;

	(void)state;
	assert_true(full >= 0);
	capture_begin();
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
	(void)dup2(full, STDERR_FILENO);
	errno = EDOM;
	log_info("line");
	after = errno;
	(void)capture_end(text, sizeof text);
	(void)close(full);
	assert_int_equal(after, EDOM);
	/* Take the notice of the lost line out of the way of later tests. */
	capture_begin();
	log_info("line");
	(void)capture_end(text, sizeof text);
	assert_string_equal(text, "distorchd: 1 lines were lost\ndistorchd: line\n");
}

static void a_long_line_is_cut_and_still_ends(void **state)
{
	char text[PIPE_BUF];
	char words[3000];

	(void)state;
	memset(words, 'x', sizeof words - 1);
	words[sizeof words - 1] = '\0';
	capture_begin();
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
	log_info("%s", words);
	(void)capture_end(text, sizeof text);
	assert_true(strlen(text) > 500 && strlen(text) < 1000);
	assert_string_equal(text + strlen(text) - 3, "xx\n");
}

static void json_has_the_fields_and_marks_quotes(void **state)
{
	static const struct log_field fields[] = {
		{"DISTORCHD_EVENT", "evicted"},
		{"DISTORCHD_MODEL", "a \"b\"\\c\n"},
	};
	char text[PIPE_BUF];
	const char *rest;

	(void)state;
	capture_begin();
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_JSON);
	log_event(LOG_LEVEL_NOTICE, fields, 2, "gone: \"%s\"", "m");
	(void)capture_end(text, sizeof text);
	assert_int_equal(strncmp(text, "{\"time_ms\":", 11), 0);
	assert_true(strtoull(text + 11, NULL, 10) >= clock_real_ns() / MS - 10000);
	rest = strchr(text, ',');
	assert_non_null(rest);
	assert_string_equal(rest, ",\"priority\":5,\"message\":\"gone: \\\"m\\\"\","
				  "\"DISTORCHD_EVENT\":\"evicted\","
				  "\"DISTORCHD_MODEL\":\"a \\\"b\\\"\\\\x5cc\\\\x0a\"}\n");
}

/* Walks one line of flat JSON: strings closed, one brace pair, nothing behind. */
static int is_whole_json_line(const char *line)
{
	int is_inside = 0;
	const char *at;

	for (at = line; *at != '\0' && *at != '\n'; at++) {
		if (is_inside && *at == '\\') {
			at++;
		} else if (*at == '"') {
			is_inside = !is_inside;
		}
	}
	return !is_inside && line[0] == '{' && at > line && at[-1] == '}' && at[0] == '\n' &&
	       at[1] == '\0';
}

static void json_too_long_for_one_write_loses_fields_not_its_form(void **state)
{
	char quotes[2000];
	struct log_field fields[8];
	static char text[2 * PIPE_BUF];

	(void)state;
	memset(quotes, '"', sizeof quotes - 1);
	quotes[sizeof quotes - 1] = '\0';
	for (int i = 0; i < 8; i++) {
		fields[i] = (struct log_field){"DISTORCHD_MODEL", quotes};
	}
	for (size_t n_fields = 0; n_fields <= 8; n_fields++) {
		capture_begin();
		log_open(LOG_LEVEL_INFO, LOG_FORMAT_JSON);
		log_event(LOG_LEVEL_INFO, fields, n_fields, "%s", quotes);
		(void)capture_end(text, sizeof text);
		assert_true(strlen(text) <= PIPE_BUF);
		assert_true(is_whole_json_line(text));
		assert_true(n_fields == 0 || strstr(text, "DISTORCHD_MODEL") != NULL);
	}
}

static void a_reader_that_is_stuck_stops_nothing(void **state)
{
	static char text[1 << 20];
	char filler[PIPE_BUF];
	uint64_t begun_ns;
	uint64_t took_ns;
	int n_filled = 0;
	int n_rest;

	(void)state;
	memset(filler, '.', sizeof filler);
	capture_begin();
	while (write(STDERR_FILENO, filler, sizeof filler) > 0) {
		n_filled++;
	}
	/* As a real standard error: writing to it would block. */
	(void)fcntl(STDERR_FILENO, F_SETFL, 0);
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
	(void)alarm(20);
	begun_ns = clock_mono_ns();
	for (int i = 0; i < 1000; i++) {
		log_info("line %d", i);
	}
	took_ns = clock_mono_ns() - begun_ns;
	for (int i = 0; i < n_filled; i++) {
		(void)!read(reader, filler, sizeof filler);
	}
	log_info("again");
	(void)alarm(0);
	n_rest = (int)strlen(capture_end(text, sizeof text));
	assert_true(n_filled > 0 && n_rest > 0);
	assert_true(took_ns < 5000 * MS);
	assert_string_equal(text, "distorchd: 1000 lines were lost\ndistorchd: again\n");
}

static void lost_lines_are_told_in_json_too(void **state)
{
	char text[PIPE_BUF];

	(void)state;
	capture_begin();
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_JSON);
	(void)close(reader);
	(void)signal(SIGPIPE, SIG_DFL); /* a signal would end the test */
	reader = fcntl(real_stderr, F_DUPFD_CLOEXEC, 3);
	log_info("lost");
	(void)dup2(real_stderr, STDERR_FILENO);
	(void)close(real_stderr);
	(void)close(reader);
	capture_begin();
	log_info("again");
	(void)capture_end(text, sizeof text);
	assert_int_equal(
		strncmp(text,
			"{\"priority\":4,\"message\":\"1 lines were lost\"}\n{\"time_ms\":", 55),
		0);
}

static void auto_is_text_unless_standard_error_is_the_journal(void **state)
{
	static const char *const streams[] = {"", "x", "1:2", "1:2:3", "99999999999999999999:1"};
	char text[PIPE_BUF];

	(void)state;
	(void)unsetenv("JOURNAL_STREAM");
	for (size_t i = 0; i <= sizeof streams / sizeof streams[0]; i++) {
		capture_begin();
		log_open(LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
		log_info("line");
		assert_string_equal(capture_end(text, sizeof text), "distorchd: line\n");
		if (i < sizeof streams / sizeof streams[0]) {
			(void)setenv("JOURNAL_STREAM", streams[i], 1);
		}
	}
	(void)unsetenv("JOURNAL_STREAM");
}

static void each_event_kind_has_an_id_of_its_own(void **state)
{
	static const char *const events[] = {
		"load.begun", "load.done",    "load.failed",     "load.cancelled", "evicted",
		"unloaded",   "refused",      "pinned",          "unpinned",       "kept",
		"unkept",     "quarantined",  "stale",           "held",           "freed",
		"placed",     "place.failed", "place.cancelled",
	};

	(void)state;
	for (size_t i = 0; i < sizeof events / sizeof events[0]; i++) {
		const char *id = log_message_id(events[i]);

		assert_non_null(id);
		assert_int_equal(strspn(id, "0123456789abcdef"), 32);
		assert_int_equal(strlen(id), 32);
		for (size_t j = 0; j < i; j++) {
			assert_string_not_equal(id, log_message_id(events[j]));
		}
	}
	assert_null(log_message_id("nonsense"));
}

static void rates_allow_the_first_then_one_a_minute(void **state)
{
	uint64_t now_ns = 1000 * MINUTE;
	uint32_t n_skipped = 7;

	(void)state;
	assert_true(log_allows("quota", 1000, now_ns, &n_skipped));
	assert_int_equal(n_skipped, 0);
	for (int i = 0; i < 5; i++) {
		assert_false(log_allows("quota", 1000, now_ns + MINUTE - 1, &n_skipped));
	}
	/* Another user and another event have lines of their own. */
	assert_true(log_allows("quota", 1001, now_ns, &n_skipped));
	assert_true(log_allows("frame", 1000, now_ns, &n_skipped));
	assert_true(log_allows("quota", 1000, now_ns + MINUTE, &n_skipped));
	assert_int_equal(n_skipped, 5);
	assert_true(log_allows("quota", 1000, now_ns + 2 * MINUTE, &n_skipped));
	assert_int_equal(n_skipped, 0);
}

static void more_users_than_places_push_out_the_oldest(void **state)
{
	uint64_t now_ns = 2000 * MINUTE;
	uint32_t n_skipped = 0;

	(void)state;
	for (uint32_t uid = 0; uid < 200; uid++) {
		assert_true(log_allows("crowd", 5000 + uid, now_ns + uid, &n_skipped));
		assert_int_equal(n_skipped, 0);
	}
	assert_false(log_allows("crowd", 5199, now_ns + 200, &n_skipped));
	assert_true(log_allows("crowd", 5000, now_ns + 200, &n_skipped));
}

static void a_broken_requirement_is_told_on_standard_error(void **state)
{
	char text[PIPE_BUF] = {0};
	int status = 0;
	pid_t child;

	(void)state;
	capture_begin();
	child = fork();
	if (child == 0) {
		(void)signal(SIGABRT, SIG_DFL);
		log_open(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
		REQUIRE(2 + 2 == 5);
	}
	(void)waitpid(child, &status, 0);
	(void)capture_end(text, sizeof text);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	assert_non_null(strstr(text, "broken: 2 + 2 == 5 at "));
	assert_non_null(strstr(text, "test_log.c:"));
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n_written = fd < 0 ? -1 : write(fd, text, strlen(text));

	if (fd >= 0) {
		(void)close(fd);
	}
	return n_written == (ssize_t)strlen(text) ? 0 : -1;
}

/* A /run of our own with a journal socket in it; -1 where this is not allowed. */
static int fake_journal(void)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX,
				   .sun_path = "/run/systemd/journal/socket"};
	uid_t uid = getuid();
	char map[64];
	int fd;

	if (uid == 0 ? unshare(CLONE_NEWNS) < 0 : unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) {
		return -1;
	}
	(void)snprintf(map, sizeof map, "0 %u 1", uid);
	if (uid != 0 && write_file("/proc/self/uid_map", map) < 0) {
		return -1;
	}
	if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", "/run", "tmpfs", 0, NULL) < 0 || mkdir("/run/systemd", 0755) < 0 ||
	    mkdir("/run/systemd/journal", 0755) < 0) {
		return -1;
	}
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return bind(fd, (struct sockaddr *)&name, sizeof name) < 0 ? -1 : fd;
}

enum { IS_GOOD = 0, IS_BAD = 1, IS_SKIPPED = 77 };

/* In a child: its /run and its environment are its own. */
static int log_to_fake_journal(void)
{
	static const char *const wanted[] = {
		"MESSAGE=gone: a\\x0ab\n",   "PRIORITY=5\n",        "SYSLOG_IDENTIFIER=distorchd\n",
		"DISTORCHD_EVENT=evicted\n", "DISTORCHD_MODEL=m\n", "MESSAGE_ID=",
	};
	static const struct log_field fields[] = {{"DISTORCHD_EVENT", "evicted"},
						  {"DISTORCHD_MODEL", "m"}};
	static char packet[8192];
	char stream[64];
	struct stat status;
	ssize_t size;
	int journal = fake_journal();

	if (journal < 0) {
		return IS_SKIPPED;
	}
	if (fstat(STDERR_FILENO, &status) < 0) {
		return IS_BAD;
	}
	(void)snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)status.st_dev,
		       (unsigned long long)status.st_ino);
	(void)setenv("JOURNAL_STREAM", stream, 1);
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
	errno = ENOSPC;
	log_event(LOG_LEVEL_NOTICE, fields, 2, "gone: %s", "a\nb");
	if (errno != ENOSPC) {
		return IS_BAD;
	}
	size = recv(journal, packet, sizeof packet - 1, 0);
	packet[size > 0 ? size : 0] = '\0';
	for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
		if (strstr(packet, wanted[i]) == NULL) {
			(void)fprintf(stderr, "no %s in:\n%s", wanted[i], packet);
			return IS_BAD;
		}
	}
	return strstr(packet, log_message_id("evicted")) != NULL ? IS_GOOD : IS_BAD;
}

static void the_journal_gets_fields_of_its_own(void **state)
{
	int status = 0;
	pid_t child = fork();

	(void)state;
	if (child == 0) {
		_exit(log_to_fake_journal());
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == IS_SKIPPED) {
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), IS_GOOD);
}

static int log_to_no_journal(void)
{
	int journal = fake_journal();
	int ends[2];
	char text[64] = {0};

	if (journal < 0) {
		return IS_SKIPPED;
	}
	(void)unlink("/run/systemd/journal/socket");
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0 || dup2(ends[1], STDERR_FILENO) < 0) {
		return IS_BAD;
	}
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_JOURNAL);
	log_info("line");
	(void)!read(ends[0], text, sizeof text - 1);
	return strcmp(text, "distorchd: line\n") == 0 ? IS_GOOD : IS_BAD;
}

static int log_to_ill_journal(void)
{
	int journal = fake_journal();
	static const struct log_field fields[] = {{"DISTORCHD_MODEL", "of two\nlines"}};
	static const char wanted[] = "DISTORCHD_MODEL\n\x0c\0\0\0\0\0\0\0of two\nlines\n";
	static char packet[8192];
	char text[64] = {0};
	int file = memfd_create("stderr", MFD_CLOEXEC);

	if (journal < 0) {
		return IS_SKIPPED;
	}
	(void)dup2(file, STDERR_FILENO);
	log_open(LOG_LEVEL_INFO, LOG_FORMAT_JOURNAL);
	log_event(LOG_LEVEL_NOTICE, fields, 1, "first");
	if (memmem(packet, (size_t)recv(journal, packet, sizeof packet, 0), wanted,
		   sizeof wanted - 1) == NULL) {
		return IS_BAD;
	}
	for (int i = 0; i < 5000; i++) { /* nobody takes them: more than any queue holds */
		log_info("line");
	}
	if (pread(file, text, 16, 0) != 16 || strcmp(text, "distorchd: line\n") != 0) {
		return IS_BAD;
	}
	(void)close(journal);
	if (ftruncate(file, 0) < 0) {
		return IS_BAD;
	}
	(void)lseek(file, 0, SEEK_SET);
	log_info("gone");
	return pread(file, text, 16, 0) == 16 && strcmp(text, "distorchd: gone\n") == 0 ? IS_GOOD
											: IS_BAD;
}

/* fault: X05 */
static void a_journal_that_hangs_or_goes_is_not_waited_for(void **state)
{
	int status = 0;
	pid_t child = fork();

	(void)state;
	if (child == 0) {
		(void)alarm(60);
		_exit(log_to_ill_journal());
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == IS_SKIPPED) {
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), IS_GOOD);
}

static void a_journal_that_is_not_there_means_text(void **state)
{
	int status = 0;
	pid_t child = fork();

	(void)state;
	if (child == 0) {
		_exit(log_to_no_journal());
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == IS_SKIPPED) {
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), IS_GOOD);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_text_line_says_level_and_words),
		cmocka_unit_test(lines_below_the_level_are_left_out),
		cmocka_unit_test(a_stranger_cannot_make_a_second_line_or_colour),
		cmocka_unit_test(errno_is_kept_even_where_the_line_cannot_be_written),
		cmocka_unit_test(a_long_line_is_cut_and_still_ends),
		cmocka_unit_test(json_has_the_fields_and_marks_quotes),
		cmocka_unit_test(json_too_long_for_one_write_loses_fields_not_its_form),
		cmocka_unit_test(a_reader_that_is_stuck_stops_nothing),
		cmocka_unit_test(lost_lines_are_told_in_json_too),
		cmocka_unit_test(auto_is_text_unless_standard_error_is_the_journal),
		cmocka_unit_test(each_event_kind_has_an_id_of_its_own),
		cmocka_unit_test(rates_allow_the_first_then_one_a_minute),
		cmocka_unit_test(more_users_than_places_push_out_the_oldest),
		cmocka_unit_test(a_broken_requirement_is_told_on_standard_error),
		cmocka_unit_test(the_journal_gets_fields_of_its_own),
		cmocka_unit_test(a_journal_that_is_not_there_means_text),
		cmocka_unit_test(a_journal_that_hangs_or_goes_is_not_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
