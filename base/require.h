/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults in our own program. REQUIRE always aborts. CHECK is for what can be survived:
 * it returns the truth of its condition and the caller must handle false. DEBUG_CHECK
 * exists only in testing builds. Foreign input is never judged by any of the three.
 */
#ifndef BASE_REQUIRE_H
#define BASE_REQUIRE_H

#include <stdbool.h>

/* Tells 'require_report' and aborts. */
_Noreturn void require_failed(const char *condition, const char *file, int line);

/* How a broken condition is reported; NULL (a pure room alone): not at all. Set by log_open. */
extern void (*require_report)(const char *condition, const char *file, int line);

/* Failed CHECKs since the start, for metrics and tests. */
extern unsigned long require_n_failed_checks;

static inline __attribute__((warn_unused_result)) bool require_check(bool holds)
{
	if (!holds) {
		__atomic_fetch_add(&require_n_failed_checks, 1, __ATOMIC_RELAXED);
	}
	return holds;
}

#define REQUIRE(condition)                                              \
	do {                                                            \
		if (__builtin_expect(!(condition), 0)) {                \
			require_failed(#condition, __FILE__, __LINE__); \
		}                                                       \
	} while (0)

#define CHECK(condition) require_check(!!(condition))

#ifdef DISTORCH_TESTING
#	define DEBUG_CHECK(condition) REQUIRE(condition)
#else
#	define DEBUG_CHECK(condition) ((void)sizeof(!!(condition)))
#endif

#endif
