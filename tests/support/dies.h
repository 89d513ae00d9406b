/* SPDX-License-Identifier: Apache-2.0 */
/* Does a body end its process by abort()? Run in a child, without a core file. */
#ifndef TESTS_SUPPORT_DIES_H
#define TESTS_SUPPORT_DIES_H

#include "tests/support/unit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static inline bool dies(void (*body)(void *context), void *context)
{
	pid_t child = fork();
	int status = 0;

	assert_true(child >= 0);
	if (child == 0) {
		int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

		(void)prctl(PR_SET_DUMPABLE, 0);
		(void)signal(SIGABRT, SIG_DFL); /* the test runner's own handler would go on */
		(void)dup2(null, STDERR_FILENO);
		(void)alarm(20);
		body(context);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

#define assert_dies(body, context) assert_true(dies((body), (context)))

#endif
