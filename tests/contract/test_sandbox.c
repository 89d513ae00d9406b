/* SPDX-License-Identifier: Apache-2.0 */
/* What a worker may not do to others, seen from within its sandbox. */
#include "tests/support/unit.h"
#include "tests/support/worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "daemon/device/worker.h"

/* Of a daemon that is no root: another process of its user, with no more privileges. */
static void become_plain(void)
{
	if (getuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) {
		_exit(2);
	}
	(void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* as after an exec */
}

static bool is_refused(long result)
{
	return result < 0 && errno == EPERM;
}

/* What of it a process may do that is of the same user; 0 exit code: all is as it should be. */
static void try_from_sandbox(pid_t daemon, const char *name)
{
	const bool has_landlock = syscall(444 /* landlock_create_ruleset */, NULL, 0, 1) > 0;
	siginfo_t info = {.si_code = SI_QUEUE};
	char memory[64];
	char folder[64];
	int was_open;

	(void)snprintf(memory, sizeof memory, "/proc/%d/mem", (int)daemon);
	(void)snprintf(folder, sizeof folder, "/proc/%d/fd/0", (int)daemon);
	was_open = open(memory, O_RDONLY | O_CLOEXEC);
	if (worker_sandbox(STDERR_FILENO, name) != NULL) {
		_exit(3);
	}
	if (was_open >= 0 && has_landlock &&
	    (openat(AT_FDCWD, memory, O_RDONLY) >= 0 || openat(AT_FDCWD, folder, O_RDONLY) >= 0)) {
		_exit(4);
	}
	if (!is_refused(syscall(SYS_kill, daemon, SIGKILL)) ||
	    !is_refused(syscall(SYS_tkill, daemon, SIGKILL)) ||
	    !is_refused(syscall(SYS_tgkill, daemon, daemon, SIGKILL)) ||
	    !is_refused(syscall(SYS_rt_sigqueueinfo, daemon, SIGKILL, &info)) ||
	    !is_refused(syscall(SYS_rt_tgsigqueueinfo, daemon, daemon, SIGKILL, &info)) ||
	    !is_refused(syscall(424 /* pidfd_send_signal */, -1, SIGKILL, NULL, 0))) {
		_exit(5);
	}
	_exit(pthread_kill(pthread_self(), 0) == 0 && raise(SIGCHLD) == 0 ? 0 : 6);
}

static void a_worker_reaches_no_other_process_of_its_user(void **state)
{
	static const char *const names[] = {"sim:0", "cuda:0"};
	int ready[2];
	int codes[2];
	char byte;
	pid_t daemon;

	(void)state;
	assert_int_equal(pipe(ready), 0);
	daemon = fork();
	if (daemon == 0) {
		become_plain();
		(void)!write(ready[1], "x", 1);
		(void)pause();
		_exit(0);
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	for (size_t i = 0; i < 2; i++) {
		const pid_t pid = fork();

		if (pid == 0) {
			become_plain();
			try_from_sandbox(daemon, names[i]);
		}
		codes[i] = worker_wait(pid);
	}
	assert_int_equal(kill(daemon, SIGKILL), 0);
	assert_int_equal(worker_wait(daemon), -SIGKILL);
	(void)close(ready[0]);
	(void)close(ready[1]);
	assert_int_equal(codes[0], 0);
	assert_int_equal(codes[1], 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_worker_reaches_no_other_process_of_its_user),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
