/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks agree with the kernel's, never step back, and jump where a test says so. */
#include "base/os/clock.h"
#include "tests/support/unit.h"

#include <time.h>

#define S 1000000000ULL

static uint64_t kernel_ns(clockid_t clock)
{
	struct timespec now;

	assert_int_equal(clock_gettime(clock, &now), 0);
	return (uint64_t)now.tv_sec * S + (uint64_t)now.tv_nsec;
}

/* Between two readings of the kernel's own clock. */
static void check(uint64_t (*read_ns)(void), clockid_t clock, uint64_t warp_ns)
{
	uint64_t before = kernel_ns(clock);
	uint64_t ours = read_ns();
	uint64_t after = kernel_ns(clock);

	assert_true(before + warp_ns <= ours);
	assert_true(ours <= after + warp_ns);
}

static void each_clock_reads_its_own_kernel_clock(void **state)
{
	(void)state;
	check(clock_mono_ns, CLOCK_MONOTONIC, 0);
	check(clock_boot_ns, CLOCK_BOOTTIME, 0);
	check(clock_real_ns, CLOCK_REALTIME, 0);
}

static void warps_add_up_on_all_three(void **state)
{
	(void)state;
	clock_warp(3600 * S);
	clock_warp(60 * S);
	check(clock_mono_ns, CLOCK_MONOTONIC, 3660 * S);
	check(clock_boot_ns, CLOCK_BOOTTIME, 3660 * S);
	check(clock_real_ns, CLOCK_REALTIME, 3660 * S);
}

static void time_never_steps_back(void **state)
{
	uint64_t last = 0;

	(void)state;
	for (int i = 0; i < 1000; i++) {
		uint64_t now = clock_mono_ns();

		assert_true(now >= last);
		last = now;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_clock_reads_its_own_kernel_clock),
		cmocka_unit_test(warps_add_up_on_all_three), /* the jump stays for what follows */
		cmocka_unit_test(time_never_steps_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
