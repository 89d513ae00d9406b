/* SPDX-License-Identifier: Apache-2.0 */
#include "base/err.h"
#include "base/os/clock.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "tests/support/fault_loop.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/load/file.h"
#include "proto/gen/wire_code.h"

#ifndef F_SEAL_FUTURE_WRITE
#	define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* It was handed to the closer, which needs a moment. */
static void assert_closes(int fd)
{
	for (int i = 0; i < 2000 && fcntl(fd, F_GETFD) >= 0; i++) {
		scratch_sleep_ms(1);
	}
	assert_int_equal(fcntl(fd, F_GETFD), -1);
}

/* Offer one descriptor, which must be refused with a text that holds 'word'. */
static void assert_refused(int fd, int direct_fd, const char *word)
{
	struct file *file = NULL;
	struct err err = {0};

	assert_true(fd >= 0);
	assert_int_equal(file_new(fd, direct_fd, &file, &err), -WIRE_BAD_FD);
	assert_null(file);
	assert_int_equal(err.code, WIRE_BAD_FD);
	if (strstr(err.text, word) == NULL) {
		fail_msg("\"%s\" does not say %s", err.text, word);
	}
	assert_closes(fd); /* taken */
	assert_closes(direct_fd);
}

static struct file *given_file(int fd)
{
	struct file *file = NULL;
	struct err err = {0};

	assert_int_equal(file_new(fd, -1, &file, &err), 0);
	return file;
}

/* fault: D07 */
static void what_is_no_regular_file_is_refused_by_its_kind(void **state)
{
	const struct baseline before = baseline_take();
	int pipes[2];
	int sockets[2];

	(void)state;
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	assert_refused(pipes[0], -1, "a pipe");
	assert_refused(sockets[0], -1, "a socket");
	assert_refused(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), -1, "a directory");
	assert_refused(open("/dev/zero", O_RDONLY | O_CLOEXEC), -1, "a character device");
	assert_refused(epoll_create1(EPOLL_CLOEXEC), -1, "regular file");
	(void)close(pipes[1]);
	(void)close(sockets[1]);
	baseline_check(&before);
}

/* fault: D07 */
static void a_file_that_cannot_be_read_through_the_descriptor_is_refused(void **state)
{
	int fd = scratch_open();

	(void)state;
	assert_refused(scratch_reopen(fd, O_WRONLY), -1, "for writing only");
	assert_refused(scratch_reopen(fd, O_PATH), -1, "O_PATH");
	(void)close(fd);
}

/* fault: D07 */
static void a_memfd_is_taken_only_when_it_is_sealed(void **state)
{
	int fd = memfd_create("mine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct file *file;

	(void)state;
	assert_refused(fcntl(fd, F_DUPFD_CLOEXEC, 3), -1, "memfd without seals");
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_refused(fcntl(fd, F_DUPFD_CLOEXEC, 3), -1, "memfd without seals");
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	file = given_file(fd);
	assert_null(file_unref(file));
	fd = memfd_create("not sealable", MFD_CLOEXEC);
	assert_refused(fd, -1, "memfd without seals");
}

/* By its descriptor, or by a mapping that was there before the seals. */
static void what_somebody_can_write_is_not_handed_on(void **state)
{
	static const int seals[] = {F_SEAL_WRITE, F_SEAL_FUTURE_WRITE};
	int plain = scratch_open();

	(void)state;
	for (int i = 0; i < 2; i++) {
		int fd = memfd_create("mine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		struct file *file;

		assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | seals[i]), 0);
		file = given_file(scratch_reopen(fd, O_RDONLY));
		assert_int_equal(file->is_read_only, i == 0);
		assert_null(file_unref(file));
		(void)close(fd);
	}
	for (int i = 0; i < 2; i++) {
		struct file *file = given_file(scratch_reopen(plain, i == 0 ? O_RDONLY : O_RDWR));

		assert_int_equal(file->is_read_only, i == 0);
		assert_null(file_unref(file));
	}
	(void)close(plain);
}

/* fault: D08 */
static void files_that_the_kernel_makes_up_are_refused(void **state)
{
	struct file *proc = given_file(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
	struct file *real = given_file(scratch_open());
	struct err err = {0};
	int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC);

	(void)state;
	assert_int_equal(file_check_filesystem(proc, &err), -WIRE_BAD_FD);
	assert_non_null(strstr(err.text, "made up by the kernel"));
	assert_int_equal(file_check_filesystem(real, &err), 0);
	if (fd >= 0) {
		struct file *sys = given_file(fd);

		assert_int_equal(file_check_filesystem(sys, &err), -WIRE_BAD_FD);
		(void)file_unref(sys);
	}
	(void)file_unref(proc);
	(void)file_unref(real);
}

static void a_second_descriptor_must_be_the_same_file_opened_direct(void **state)
{
	int fd = scratch_open();
	int other = scratch_open();
	int direct = scratch_reopen(fd, O_RDONLY | O_DIRECT);
	struct file *file = NULL;
	struct err err = {0};

	(void)state;
	assert_refused(scratch_reopen(fd, O_RDONLY), other, "another file");
	assert_refused(scratch_reopen(fd, O_RDONLY), scratch_reopen(fd, O_RDONLY),
		       "without O_DIRECT");
	assert_refused(scratch_reopen(fd, O_RDONLY), open("/", O_RDONLY | O_CLOEXEC),
		       "the second descriptor is a directory");
	if (direct >= 0) {
		assert_int_equal(file_new(fd, direct, &file, &err), 0);
		assert_int_equal(file->direct_fd, direct);
		(void)file_unref(file);
	} else {
		(void)close(fd); /* a filesystem without O_DIRECT */
	}
}

/* fault: D10 F34 */
static void the_descriptor_is_the_right_to_read_not_the_mode_or_the_path(void **state)
{
	char path[] = "unreachable.XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);
	struct file *file;

	(void)state;
	assert_int_equal(fchmod(fd, 0), 0);
	assert_int_equal(unlink(path), 0);
	file = given_file(fd);
	assert_int_equal(file->fd, fd);
	(void)file_unref(file);
}

static void the_flags_of_the_clients_description_stay_as_they_are(void **state)
{
	int fd = scratch_open();
	int flags = fcntl(fd, F_GETFL);
	struct file *file = given_file(fd);

	(void)state;
	assert_int_equal(fcntl(file->fd, F_GETFL), flags);
	(void)file_unref(file);
}

static void the_key_says_who_the_file_is_and_when_it_changed(void **state)
{
	int fd = scratch_open();
	struct file *file;
	struct file_key now;
	struct stat status;
	struct err err = {0};

	(void)state;
	scratch_fill(fd, 0, 5000);
	assert_int_equal(fstat(fd, &status), 0);
	file = given_file(fd);
	assert_int_equal(file->key.dev, status.st_dev);
	assert_int_equal(file->key.ino, status.st_ino);
	assert_int_equal(file->key.size, 5000);
	assert_int_equal(file->key.mtime_ns,
			 status.st_mtim.tv_sec * 1000000000LL + status.st_mtim.tv_nsec);
	assert_int_equal(file_read_key(file, &now, &err), 0);
	assert_true(file_key_is_equal(&file->key, &now));
	assert_true(file_key_is_equal(&file->read_key, &now));
	scratch_sleep_ms(20); /* coarser than any filesystem's clock tick here */
	scratch_write(fd, "x", 1, 0);
	assert_int_equal(file_read_key(file, &now, &err), 0);
	assert_false(file_key_is_equal(&file->key, &now));
	(void)file_unref(file);
}

/* fault: T04 */
static void what_is_written_after_the_key_was_read_makes_another(void **state)
{
	int fd = scratch_open();
	struct file *file = given_file(fd);
	struct file_key key;
	struct err err = {0};
	uint64_t tick_ns;

	(void)state;
	for (int i = 0; i < 20; i++) { /* a tick may come between the two, but not each time */
		scratch_write(fd, "x", 1, 0);
		assert_int_equal(file_read_key(file, &key, &err), 0);
		tick_ns = clock_tick_ns();
		assert_true((uint64_t)key.ctime_ns < tick_ns);
	}
	(void)file_unref(file);
}

/* fault: T04 */
static void any_time_makes_a_key_of_its_own(void **state)
{
	/* Some are more than 64 bits of nanoseconds reach. */
	static const int64_t seconds[] =
		{0, 1, -1, 4102444800, 1LL << 40, INT64_MAX / 3, INT64_MIN / 3, 18446744073LL};
	const size_t n_times = sizeof seconds / sizeof seconds[0];
	int64_t keys[sizeof seconds / sizeof seconds[0]];
	int fd = memfd_create("times", MFD_CLOEXEC); /* on tmpfs, which takes any time */
	struct file file = {.fd = fd};
	struct file_key key;
	struct err err = {0};

	(void)state;
	for (size_t i = 0; i < n_times; i++) {
		const struct timespec times[2] = {{.tv_sec = seconds[i]}, {.tv_sec = seconds[i]}};

		assert_int_equal(futimens(fd, times), 0);
		assert_int_equal(file_read_key(&file, &key, &err), 0);
		assert_false(key.is_young); /* its ctime is no whole second */
		keys[i] = key.mtime_ns;
		for (size_t other = 0; other < i; other++) {
			assert_true(keys[other] != keys[i]);
		}
	}
	(void)close(fd);
}

static void any_part_of_the_key_tells_files_apart(void **state)
{
	const struct file_key key = {1, 2, 3, 4, 5, false};
	const struct file_key others[] = {{9, 2, 3, 4, 5, false},
					  {1, 9, 3, 4, 5, false},
					  {1, 2, 9, 4, 5, false},
					  {1, 2, 3, 9, 5, false},
					  {1, 2, 3, 4, 9, false}};

	(void)state;
	assert_true(file_key_is_equal(&key, &key));
	for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
		assert_false(file_key_is_equal(&key, &others[i]));
	}
}

static void the_path_is_what_the_kernel_says_without_its_remarks(void **state)
{
	char path[] = "named.XXXXXX";
	char folder[4096];
	int fd = mkostemp(path, O_CLOEXEC);
	struct file *file = given_file(fcntl(fd, F_DUPFD_CLOEXEC, 3));
	size_t length = strlen(file_path(file));

	(void)state;
	assert_non_null(getcwd(folder, sizeof folder));
	assert_int_equal(strncmp(file_path(file), folder, strlen(folder)), 0);
	assert_string_equal(file_path(file) + length - strlen(path), path);
	(void)file_unref(file);
	assert_int_equal(unlink(path), 0);
	file = given_file(fd);
	assert_string_equal(file_path(file) + length - strlen(path), path);
	(void)file_unref(file);
}

static void the_last_reference_closes(void **state)
{
	int fd = scratch_open();
	struct file *file = given_file(fd);

	(void)state;
	assert_ptr_equal(file_ref(file), file);
	assert_null(file_unref(file));
	assert_true(fcntl(fd, F_GETFD) >= 0);
	assert_null(file_unref(file));
	assert_closes(fd);
	assert_null(file_unref(NULL));
}

static void take_and_drop(void *state)
{
	int fd = scratch_open();
	struct file *file = NULL;
	struct err err = {0};
	int code = file_new(fd, scratch_reopen(fd, O_RDONLY | O_DIRECT), &file, &err);

	(void)state;
	if (code < 0) {
		assert_null(file);
		assert_true(code == -err.code && err.text[0] != '\0');
	}
	(void)file_unref(file);
}

static void a_failing_call_leaves_no_descriptor(void **state)
{
	(void)state;
	assert_true(fault_loop("malloc", ENOMEM, false, take_and_drop, NULL) > 0);
	assert_true(fault_loop("malloc", ENOMEM, true, take_and_drop, NULL) > 0);
	assert_true(fault_loop("fcntl", EBADF, false, take_and_drop, NULL) > 0);
	assert_true(fault_loop("statx", EIO, false, take_and_drop, NULL) > 0);
	assert_true(fault_loop("statx", EIO, true, take_and_drop, NULL) > 0);
}

static void flags_that_cannot_be_read_are_refused_with_the_reason(void **state)
{
	struct file *file = NULL;
	struct err err = {0};

	(void)state;
	assert_true(sys_fault_set("fcntl", (struct sys_fault){.nth = 1, .error = EIO}));
	assert_int_equal(file_new(scratch_open(), -1, &file, &err), -WIRE_BAD_FD);
	sys_fault_clear();
	assert_null(file);
	assert_int_equal(err.sys, EIO);
}

static void a_key_that_cannot_be_read_is_io(void **state)
{
	struct file *file = given_file(scratch_open());
	struct file_key key = {.ino = 77};
	struct err err = {0};

	(void)state;
	assert_true(sys_fault_set("statx", (struct sys_fault){.nth = 1, .error = ESTALE}));
	assert_int_equal(file_read_key(file, &key, &err), -WIRE_IO);
	sys_fault_clear();
	assert_int_equal(err.sys, ESTALE);
	assert_int_equal(key.ino, 77);
	(void)file_unref(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_no_regular_file_is_refused_by_its_kind),
		cmocka_unit_test(a_file_that_cannot_be_read_through_the_descriptor_is_refused),
		cmocka_unit_test(a_memfd_is_taken_only_when_it_is_sealed),
		cmocka_unit_test(what_somebody_can_write_is_not_handed_on),
		cmocka_unit_test(files_that_the_kernel_makes_up_are_refused),
		cmocka_unit_test(a_second_descriptor_must_be_the_same_file_opened_direct),
		cmocka_unit_test(the_descriptor_is_the_right_to_read_not_the_mode_or_the_path),
		cmocka_unit_test(the_flags_of_the_clients_description_stay_as_they_are),
		cmocka_unit_test(the_key_says_who_the_file_is_and_when_it_changed),
		cmocka_unit_test(what_is_written_after_the_key_was_read_makes_another),
		cmocka_unit_test(any_time_makes_a_key_of_its_own),
		cmocka_unit_test(any_part_of_the_key_tells_files_apart),
		cmocka_unit_test(the_path_is_what_the_kernel_says_without_its_remarks),
		cmocka_unit_test(the_last_reference_closes),
		cmocka_unit_test(a_failing_call_leaves_no_descriptor),
		cmocka_unit_test(flags_that_cannot_be_read_are_refused_with_the_reason),
		cmocka_unit_test(a_key_that_cannot_be_read_is_io),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
