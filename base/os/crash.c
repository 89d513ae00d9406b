/* SPDX-License-Identifier: Apache-2.0 */
/* Naming what was at hand at a bus error. See crash.h. */
#include "base/os/crash.h"

#include "base/require.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local const char *volatile noted;

/* Only what a signal handler may call. There is nowhere to report a failed write to. */
static void say(const char *text)
{
	ssize_t n_written = write(STDERR_FILENO, text, strlen(text));

	(void)n_written;
}

static void on_bus_error(int number)
{
	const char *what = noted;

	(void)number;
	say("distorchd: bus error, the memory behind a mapping is gone or failed; at hand was ");
	say(what == NULL ? "no image" : what);
	say(". Aborting.\n");
	abort();
}

void crash_watch(void)
{
	/* The next one, in the handler itself, ends the process at once. */
	const struct sigaction action = {.sa_handler = on_bus_error, .sa_flags = (int)SA_RESETHAND};

	REQUIRE(sigaction(SIGBUS, &action, NULL) == 0); /* cannot fail for SIGBUS */
}

void crash_note(const char *what)
{
	noted = what;
}
