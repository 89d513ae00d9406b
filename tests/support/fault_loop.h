/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Run a body with the n-th call of one kind failing, n = 1, 2, ... until no call was left to
 * fail, and check after each run that nothing leaked. The body judges its own result; it may
 * ask sys_fault_n_hits whether the fault struck.
 */
#ifndef TESTS_SUPPORT_FAULT_LOOP_H
#define TESTS_SUPPORT_FAULT_LOOP_H

#include "base/os/sys.h"
#include "tests/support/baseline.h"

#include <stdbool.h>

#define FAULT_LOOP_MAX 100000 /* a body that fails for ever is a fault of the test */

/* Returns how many runs were struck; 0 means that the body never makes such a call. */
static inline uint64_t fault_loop(const char *name, int error, bool is_forever,
				  void (*body)(void *state), void *state)
{
	uint64_t n = 0;
	bool is_struck = true;

	while (is_struck) {
		const struct baseline before = baseline_take();

		n++;
		assert_true(n < FAULT_LOOP_MAX);
		assert_true(sys_fault_set(name, (struct sys_fault){.nth = n,
								   .error = error,
								   .is_forever = is_forever}));
		body(state);
		is_struck = sys_fault_n_hits(name) > 0;
		sys_fault_clear();
		baseline_check(&before);
	}
	return n - 1;
}

#endif
