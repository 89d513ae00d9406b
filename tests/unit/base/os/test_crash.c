/* SPDX-License-Identifier: Apache-2.0 */
/* A bus error ends the process by abort(), with a line that names what was at hand. */
#include "base/os/crash.h"
#include "tests/support/unit.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Read behind the end of a mapped file. */
static void *touch(void *note)
{
	int fd = memfd_create("cut", MFD_CLOEXEC);
	volatile char *memory;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 4096), 0);
	memory = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	assert_true(memory != MAP_FAILED);
	assert_int_equal(ftruncate(fd, 0), 0);
	crash_note(note);
	(void)memory[0];
	return NULL;
}

/* Do it in a child; what it said goes into 'said'. Did it end by abort()? */
static bool aborts(void *(*work)(void *note), char *note, char *said, size_t size)
{
	int ends[2];
	int status = 0;
	pid_t child;
	ssize_t n_read;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		(void)prctl(PR_SET_DUMPABLE, 0);
		(void)signal(SIGABRT, SIG_DFL); /* the test runner's own handler would go on */
		(void)dup2(ends[1], STDERR_FILENO);
		(void)alarm(20);
		crash_watch();
		(void)work(note);
		_exit(0);
	}
	(void)close(ends[1]);
	n_read = read(ends[0], said, size - 1);
	assert_true(n_read >= 0);
	/* The handler says it in pieces. */
	for (ssize_t more = n_read; more > 0 && (size_t)n_read < size - 1; n_read += more) {
		more = read(ends[0], said + n_read, size - 1 - (size_t)n_read);
		assert_true(more >= 0);
	}
	said[n_read] = '\0';
	(void)close(ends[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

/* On a second thread, while the first works on something else. */
static void *touch_elsewhere(void *note)
{
	pthread_t thread;

	crash_note("what the first thread does");
	assert_int_equal(pthread_create(&thread, NULL, touch, note), 0);
	(void)pthread_join(thread, NULL);
	return NULL;
}

/* fault: M08 */
static void a_bus_error_names_what_its_thread_works_on(void **state)
{
	char note[] = "/models/flux.safetensors";
	char said[512];

	(void)state;
	assert_true(aborts(touch, note, said, sizeof said));
	assert_non_null(strstr(said, "bus error"));
	assert_non_null(strstr(said, note));
	assert_true(aborts(touch_elsewhere, note, said, sizeof said));
	assert_non_null(strstr(said, note));
	assert_null(strstr(said, "first thread"));
}

static void without_a_note_it_says_so(void **state)
{
	char said[512];

	(void)state;
	assert_true(aborts(touch, NULL, said, sizeof said));
	assert_non_null(strstr(said, "at hand was no image"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_bus_error_names_what_its_thread_works_on),
		cmocka_unit_test(without_a_note_it_says_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
