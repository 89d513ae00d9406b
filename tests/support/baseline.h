/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a test must leave as it found it: open descriptors and, in address-sanitizer builds,
 * memory that nothing points to any more. Take a baseline before, check it after. Descriptors
 * that the closer has (base/os/closer.h) go a moment later.
 */
#ifndef TESTS_SUPPORT_BASELINE_H
#define TESTS_SUPPORT_BASELINE_H

#include "tests/support/unit.h"

#include <dirent.h>
#include <time.h>

#ifdef __has_feature
#	if __has_feature(address_sanitizer)
#		define BASELINE_CHECKS_MEMORY
#	endif
#elif defined(__SANITIZE_ADDRESS__)
#	define BASELINE_CHECKS_MEMORY
#endif
#ifdef BASELINE_CHECKS_MEMORY
#	include <sanitizer/lsan_interface.h>
#endif

struct baseline {
	size_t n_fds;
};

static inline size_t baseline_n_fds(void)
{
	DIR *folder = opendir("/proc/self/fd");
	size_t n_fds = 0;

	assert_non_null(folder);
	while (readdir(folder) != NULL) {
		n_fds++;
	}
	assert_int_equal(closedir(folder), 0);
	return n_fds - 3; /* ".", ".." and the folder itself */
}

static inline struct baseline baseline_take(void)
{
	struct baseline baseline = {.n_fds = baseline_n_fds()};

	return baseline;
}

static inline void baseline_wait_fds(size_t n_fds)
{
	const struct timespec moment = {.tv_nsec = 1000000};

	for (int i = 0; i < 2000 && baseline_n_fds() > n_fds; i++) {
		(void)nanosleep(&moment, NULL);
	}
	assert_int_equal(baseline_n_fds(), n_fds);
}

static inline void baseline_check(const struct baseline *before)
{
	baseline_wait_fds(before->n_fds);
#ifdef BASELINE_CHECKS_MEMORY
	assert_int_equal(__lsan_do_recoverable_leak_check(), 0);
#endif
}

#endif
