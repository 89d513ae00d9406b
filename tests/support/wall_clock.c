/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into a client by the end-to-end tests: its wall clock is off by the seconds that the
 * file WALL_CLOCK holds (an int64), from one moment to the next where the test writes it. The
 * clocks that are there for deadlines are the kernel's.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t seconds_off(void)
{
	static const int64_t *off;
	const char *path = getenv("WALL_CLOCK");
	int fd = off != NULL || path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		void *memory = mmap(NULL, sizeof *off, PROT_READ, MAP_SHARED, fd, 0);

		off = memory == MAP_FAILED ? NULL : memory;
		(void)close(fd);
	}
	return off == NULL ? 0 : *(const volatile int64_t *)off;
}

__attribute__((visibility("default"))) int clock_gettime(clockid_t clock, struct timespec *ret)
{
	static int (*real)(clockid_t, struct timespec *);
	int result;

	if (real == NULL) {
		*(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
	}
	result = real(clock, ret);
	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		ret->tv_sec += seconds_off();
	}
	return result;
}

__attribute__((visibility("default"))) int gettimeofday(struct timeval *ret, void *zone)
{
	struct timespec now;

	(void)zone; /* nobody asks for it */
	if (clock_gettime(CLOCK_REALTIME, &now) < 0) {
		return -1;
	}
	*ret = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
	return 0;
}

__attribute__((visibility("default"))) time_t time(time_t *ret)
{
	struct timespec now = {0};

	(void)clock_gettime(CLOCK_REALTIME, &now); /* cannot fail */
	if (ret != NULL) {
		*ret = now.tv_sec;
	}
	return now.tv_sec;
}
