/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of what a real distorchd-worker does: begin one, and be sure that it has ended.
 * WORKER_PROGRAM is its path.
 */
#ifndef TESTS_SUPPORT_WORKER_H
#define TESTS_SUPPORT_WORKER_H

#include "tests/support/unit.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Returns our end of the socket. */
static inline int worker_start(const char *name, pid_t *ret_pid)
{
	int ends[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	*ret_pid = fork();
	assert_true(*ret_pid >= 0);
	if (*ret_pid == 0) {
		/* dup2 onto itself would leave it close-on-exec. */
		int end = fcntl(ends[1], F_DUPFD_CLOEXEC, 10);

		if (dup2(end, 3) == 3) {
			(void)execl(WORKER_PROGRAM, "distorchd-worker", name, (char *)NULL);
		}
		_exit(127);
	}
	(void)close(ends[1]);
	return ends[0];
}

/* By itself, in time; returns its exit code, or minus the signal. */
static inline int worker_wait(pid_t pid)
{
	int status = 0;

	for (int i = 0; i < 2000; i++) {
		pid_t ended = waitpid(pid, &status, WNOHANG);

		assert_true(ended == 0 || ended == pid);
		if (ended == pid) {
			return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
		}
		(void)usleep(10000);
	}
	(void)kill(pid, SIGKILL);
	fail_msg("worker %d does not end", (int)pid);
	return -1;
}

#endif
