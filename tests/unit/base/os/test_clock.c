/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks agree with the kernel's, never step back, and jump where a test says so. */
#include "base/os/clock.h"
#include "tests/support/unit.h"

#include <poll.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

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

static void a_suspend_moves_the_boot_clock_alone(void **state)
{
	(void)state;
	clock_warp_boot(3600 * S);
	clock_warp_boot(60 * S);
	check(clock_mono_ns, CLOCK_MONOTONIC, 0);
	check(clock_boot_ns, CLOCK_BOOTTIME, 3660 * S);
	check(clock_real_ns, CLOCK_REALTIME, 0);
}

static void setting_the_time_moves_the_wall_clock_alone(void **state)
{
	(void)state;
	clock_warp_real((int64_t)(500 * S));
	check(clock_real_ns, CLOCK_REALTIME, 500 * S);
	clock_warp_real(-(int64_t)(1000 * S));
	check(clock_real_ns, CLOCK_REALTIME, (uint64_t) - (int64_t)(500 * S));
	check(clock_mono_ns, CLOCK_MONOTONIC, 0);
	check(clock_boot_ns, CLOCK_BOOTTIME, 3660 * S);
	clock_warp_real((int64_t)(500 * S));
}

static bool rings(int alarm, int wait_ms)
{
	struct pollfd poller = {.fd = alarm, .events = POLLIN};

	return poll(&poller, 1, wait_ms) == 1;
}

static void an_alarm_rings_at_its_moment_and_at_once_when_that_is_past(void **state)
{
	const uint64_t now_ns = clock_boot_ns();
	int alarm = clock_alarm_new();

	(void)state;
	assert_true(alarm >= 0);
	assert_false(rings(alarm, 0));
	clock_alarm_set(alarm, now_ns + 20 * S / 1000);
	assert_true(rings(alarm, 10000));
	assert_true(clock_boot_ns() >= now_ns + 20 * S / 1000);
	clock_alarm_clear(alarm);
	assert_false(rings(alarm, 0));
	clock_alarm_clear(alarm); /* nothing to clear: no wait */
	clock_alarm_set(alarm, now_ns);
	assert_true(rings(alarm, 10000));
	clock_alarm_set(alarm, 0); /* before the clock began, warps and all */
	assert_true(rings(alarm, 10000));
	clock_alarm_set(alarm, UINT64_MAX);
	assert_false(rings(alarm, 20));
	(void)close(alarm);
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
		cmocka_unit_test(a_suspend_moves_the_boot_clock_alone), /* stays for what follows */
		cmocka_unit_test(setting_the_time_moves_the_wall_clock_alone),
		cmocka_unit_test(an_alarm_rings_at_its_moment_and_at_once_when_that_is_past),
		cmocka_unit_test(time_never_steps_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
