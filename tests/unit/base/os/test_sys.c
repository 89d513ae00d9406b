/* SPDX-License-Identifier: Apache-2.0 */
/* The seam: each call does its work, and fails exactly where the table says. */
#include "base/os/clock.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/fault_loop.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000ULL

static int teardown(void **state)
{
	(void)state;
	sys_fault_clear();
	return 0;
}

static bool set(const char *name, uint64_t nth, int error, bool is_forever)
{
	return sys_fault_set(name, (struct sys_fault){.nth = nth,
						      .error = error,
						      .is_forever = is_forever});
}

static void a_fault_strikes_the_nth_call_once(void **state)
{
	char byte;
	int fd = sys_open("/dev/zero", O_RDONLY);

	(void)state;
	assert_true(set("pread", 2, EIO, false));
	assert_int_equal(sys_pread(fd, &byte, 1, 0), 1);
	assert_true(sys_fault_n_hits("pread") == 0);
	assert_int_equal(sys_pread(fd, &byte, 1, 0), -1);
	assert_int_equal(errno, EIO);
	assert_int_equal(sys_pread(fd, &byte, 1, 0), 1);
	assert_true(sys_fault_n_hits("pread") == 1);
	(void)close(fd);
}

static void a_fault_for_ever_strikes_all_later_calls(void **state)
{
	(void)state;
	assert_true(set("malloc", 2, ENOMEM, true));
	free(sys_malloc(1));
	assert_null(sys_malloc(1));
	assert_null(sys_calloc(1, 1));
	assert_null(sys_realloc(NULL, 1));
	assert_null(sys_strdup("x"));
	assert_int_equal(errno, ENOMEM);
	assert_true(sys_fault_n_hits("malloc") == 4);
	sys_fault_clear();
	assert_true(sys_fault_n_hits("malloc") == 0);
	free(sys_malloc(1));
}

static void a_fault_touches_no_other_call(void **state)
{
	struct stat status;

	(void)state;
	assert_true(set("fcntl", 1, EBADF, true));
	assert_int_equal(sys_fstat(0, &status), 0);
	assert_int_equal(sys_fcntl(0, F_GETFD, 0), -1);
	assert_true(sys_fault_n_hits("fstat") == 0);
}

static void a_short_read_gives_less_and_no_error(void **state)
{
	char bytes[64];
	int fd = sys_open("/dev/zero", O_RDONLY);

	(void)state;
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .short_size = 7}));
	assert_int_equal(sys_pread(fd, bytes, sizeof bytes, 0), 7);
	assert_int_equal(sys_pread(fd, bytes, sizeof bytes, 0), sizeof bytes);
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .short_size = 7}));
	assert_int_equal(sys_pread(fd, bytes, 3, 0), 3);
	(void)close(fd);
}

static void a_delay_is_slow_and_succeeds(void **state)
{
	char byte;
	int fd = sys_open("/dev/zero", O_RDONLY);
	uint64_t begun_ns = clock_mono_ns();

	(void)state;
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .delay_ms = 20}));
	assert_int_equal(sys_pread(fd, &byte, 1, 0), 1);
	assert_true(clock_mono_ns() - begun_ns >= 20 * MS);
	(void)close(fd);
}

static void unknown_names_are_refused(void **state)
{
	(void)state;
	assert_false(set("preadv", 1, EIO, false));
	assert_false(set("prea", 1, EIO, false));
	assert_false(set("", 1, EIO, false));
	assert_true(sys_fault_n_hits("nonsense") == 0);
}

static void text_sets_several_faults(void **state)
{
	char bytes[64];
	int fd = sys_open("/dev/zero", O_RDONLY);
	struct stat status;

	(void)state;
	assert_true(sys_fault_parse("pread:2:short=5:ever;fstat:1:EOVERFLOW:once;;fcntl:1:EPERM"));
	assert_int_equal(sys_pread(fd, bytes, sizeof bytes, 0), sizeof bytes);
	assert_int_equal(sys_pread(fd, bytes, sizeof bytes, 0), 5);
	assert_int_equal(sys_pread(fd, bytes, sizeof bytes, 0), 5);
	assert_int_equal(sys_fstat(fd, &status), -1);
	assert_int_equal(errno, EOVERFLOW);
	assert_int_equal(sys_fstat(fd, &status), 0);
	assert_int_equal(sys_fcntl(fd, F_GETFD, 0), -1);
	assert_int_equal(errno, EPERM);
	assert_true(sys_fault_parse("")); /* nothing asked for */
	assert_true(sys_fault_parse("pread:1:delay=1"));
	(void)close(fd);
}

static void odd_text_sets_nothing(void **state)
{
	static const char *const texts[] = {
		"pread",
		"pread:1",
		"pread:0:EIO",
		"pread:x:EIO",
		"pread:1x:EIO",
		"pread:-1:EIO",
		"pread:1:ENOPE",
		"pread:1:",
		"pread:1:short=0",
		"pread:1:short=",
		"pread:1:short=x",
		"pread:1:delay=0",
		"pread:1:EIO:often",
		"pread:1:EIO:ever:x",
		"nope:1:EIO",
		":1:EIO",
		"pread:1:short=4294967296",
	};
	char text[128];
	struct stat status;

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		(void)snprintf(text, sizeof text, "fstat:1:EIO:ever;%s", texts[i]);
		if (sys_fault_parse(text)) {
			fail_msg("\"%s\" was taken", text);
		}
		assert_int_equal(sys_fstat(0, &status), 0); /* the good first part is gone too */
	}
}

static void *nothing(void *argument)
{
	return argument;
}

/* Makes each call once through the seam; returns how many failed with EDOM. */
static unsigned call_each(void)
{
	unsigned n_failed = 0;
	char byte = 0;
	struct iovec vector = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
	struct stat status;
	struct statx extended;
	pthread_t thread;
	void *memory;
	int ends[2] = {-1, -1};
	int timer;
	int fd;

#define COUNT(expression)                                          \
	do {                                                       \
		errno = 0;                                         \
		n_failed += (expression) && errno == EDOM ? 1 : 0; \
	} while (0)
	COUNT(sys_recvmsg(-1, &message, 0) < 0);
	COUNT(sys_sendmsg(-1, &message, 0) < 0);
	COUNT(sys_accept(-1) < 0);
	COUNT((fd = sys_memfd_create("t", MFD_CLOEXEC)) < 0);
	COUNT(sys_ftruncate(fd, 4096) < 0);
	COUNT((memory = sys_mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) ==
	      MAP_FAILED);
	COUNT(sys_madvise(memory, 4096, MADV_NORMAL) < 0);
	COUNT(sys_mlock(memory, 4096) < 0);
	COUNT(sys_pread(fd, &byte, 1, 0) < 0);
	COUNT(sys_fcntl(fd, F_GETFD, 0) < 0);
	COUNT(sys_write(fd, &byte, 1) < 0);
	COUNT(sys_fchmod(fd, 0600) < 0);
	COUNT(sys_fstat(fd, &status) < 0);
	COUNT(sys_statx(fd, 0, &extended) < 0);
	COUNT(sys_fsync(fd) < 0);
	COUNT(sys_inotify_add_watch(fd, "/", 1) < 0);
	COUNT(sys_rename("/nonexistent/a", "/nonexistent/b") < 0);
	COUNT(sys_getrandom(&byte, 1) < 0);
	COUNT(sys_pipe(ends) < 0);
	COUNT((timer = sys_timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)) < 0);
	if (timer >= 0) {
		(void)close(timer);
	}
	for (int i = 0; i < 2; i++) {
		if (ends[i] >= 0) {
			(void)close(ends[i]);
		}
	}
	if (memory != MAP_FAILED) {
		(void)munmap(memory, 4096);
	}
	if (fd >= 0) {
		(void)close(fd);
	}
	COUNT((fd = sys_open("/dev/null", O_RDONLY)) < 0);
	if (fd >= 0) {
		(void)close(fd);
	}
	COUNT(sys_close(open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0);
	memory = NULL;
	COUNT((memory = sys_malloc(1)) == NULL);
	free(memory);
	COUNT(sys_pthread_create(&thread, nothing, NULL) != 0);
	if (errno == 0) {
		(void)pthread_join(thread, NULL);
	}
#undef COUNT
	return n_failed;
}

static void every_call_can_be_made_to_fail(void **state)
{
	static const char *const names[] = {
#define NAME(name) #name,
		SYS_CALLS(NAME)
#undef NAME
	};
	struct baseline before;

	(void)state;
	assert_int_equal(call_each(), 0);
	before = baseline_take();
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		assert_true(set(names[i], 1, EDOM, true));
		if (call_each() == 0) {
			fail_msg("%s went past the seam", names[i]);
		}
		assert_true(sys_fault_n_hits(names[i]) > 0);
		sys_fault_clear();
	}
	baseline_check(&before);
}

static void a_size_no_file_can_have_is_refused(void **state)
{
	int fd = sys_memfd_create("t", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(sys_ftruncate(fd, 1ULL << 63), -1);
	assert_int_equal(errno, EFBIG);
	(void)close(fd);
}

static void what_is_opened_or_doubled_is_not_inherited(void **state)
{
	int fd = sys_open("/dev/null", O_RDONLY);
	int twin = sys_fcntl_dup(fd);

	(void)state;
	assert_true(fd >= 0 && twin >= 3);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fcntl(twin, F_GETFD), FD_CLOEXEC);
	(void)close(fd);
	(void)close(twin);
}

static void an_accepted_socket_neither_blocks_nor_is_inherited(void **state)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX}; /* autobind: a name of its own */
	socklen_t size = sizeof name;
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int accepted;

	(void)state;
	assert_int_equal(bind(listener, (struct sockaddr *)&name, sizeof(sa_family_t)), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&name, &size), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(connect(client, (struct sockaddr *)&name, size), 0);
	accepted = sys_accept(listener);
	assert_true(accepted >= 0);
	assert_int_equal(fcntl(accepted, F_GETFD), FD_CLOEXEC);
	assert_true((fcntl(accepted, F_GETFL) & O_NONBLOCK) != 0);
	(void)close(accepted);
	(void)close(client);
	(void)close(listener);
}

/* The loop helper itself: it stops, counts, and sees the right number of strikes. */
static void three_allocations(void *context)
{
	unsigned *n_runs = context;

	(*n_runs)++;
	for (int i = 0; i < 3; i++) {
		free(sys_malloc(8));
	}
}

static void a_fault_loop_strikes_each_call_once(void **state)
{
	unsigned n_runs = 0;

	(void)state;
	assert_true(fault_loop("malloc", ENOMEM, false, three_allocations, &n_runs) == 3);
	assert_int_equal(n_runs, 4);
	assert_true(fault_loop("malloc", ENOMEM, true, three_allocations, &n_runs) == 3);
	assert_true(fault_loop("fsync", EIO, false, three_allocations, &n_runs) == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(a_fault_strikes_the_nth_call_once, teardown),
		cmocka_unit_test_teardown(a_fault_for_ever_strikes_all_later_calls, teardown),
		cmocka_unit_test_teardown(a_fault_touches_no_other_call, teardown),
		cmocka_unit_test_teardown(a_short_read_gives_less_and_no_error, teardown),
		cmocka_unit_test_teardown(a_delay_is_slow_and_succeeds, teardown),
		cmocka_unit_test_teardown(unknown_names_are_refused, teardown),
		cmocka_unit_test_teardown(text_sets_several_faults, teardown),
		cmocka_unit_test_teardown(odd_text_sets_nothing, teardown),
		cmocka_unit_test_teardown(every_call_can_be_made_to_fail, teardown),
		cmocka_unit_test(a_size_no_file_can_have_is_refused),
		cmocka_unit_test(what_is_opened_or_doubled_is_not_inherited),
		cmocka_unit_test(an_accepted_socket_neither_blocks_nor_is_inherited),
		cmocka_unit_test_teardown(a_fault_loop_strikes_each_call_once, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
