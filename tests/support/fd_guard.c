/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into the daemon by the end-to-end tests: a close() of a number that is not open
 * means that somebody closed twice, and between the two it may have been somebody else's.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((visibility("default"))) int close(int fd)
{
	static int (*real)(int);
	int result;

	if (real == NULL) {
		*(void **)&real = dlsym(RTLD_NEXT, "close");
	}
	result = real(fd);
	if (result < 0 && errno == EBADF) {
		(void)fprintf(stderr, "close(%d): it is not open\n", fd);
		abort();
	}
	return result;
}
