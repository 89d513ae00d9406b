/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of what happens while a call is slow. */
#ifndef TESTS_SUPPORT_SLOW_CALL_H
#define TESTS_SUPPORT_SLOW_CALL_H

#include "base/os/sys.h"
#include "tests/support/scratch.h"

/* Until a call has met its fault: a slow one is under way then, and sys_fault_clear ends it. */
static inline void slow_call_await(const char *call)
{
	for (int i = 0; sys_fault_n_hits(call) == 0 && i < 20000; i++) {
		scratch_sleep_ms(1);
	}
	assert_true(sys_fault_n_hits(call) > 0);
}

#endif
