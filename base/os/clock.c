/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's clocks and, in testing builds, jumps of them. See clock.h. */
#include "base/os/clock.h"

#include "base/os/sys.h"

#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000U

#ifdef DISTORCH_TESTING
static uint64_t boot_warp_ns;
static int64_t real_warp_ns;

void clock_warp_boot(uint64_t ns)
{
	(void)__atomic_add_fetch(&boot_warp_ns, ns, __ATOMIC_RELAXED);
}

void clock_warp_real(int64_t ns)
{
	(void)__atomic_add_fetch(&real_warp_ns, ns, __ATOMIC_RELAXED);
}

static uint64_t read_warp(clockid_t clock)
{
	switch (clock) {
	case CLOCK_BOOTTIME:
		return __atomic_load_n(&boot_warp_ns, __ATOMIC_RELAXED);
	case CLOCK_REALTIME:
	case CLOCK_REALTIME_COARSE:
		return (uint64_t)__atomic_load_n(&real_warp_ns, __ATOMIC_RELAXED); /* wraps */
	default:
		return 0;
	}
}
#else
static uint64_t read_warp(clockid_t clock)
{
	(void)clock;
	return 0;
}
#endif

static uint64_t read_clock(clockid_t clock)
{
	struct timespec now = {0};

	(void)clock_gettime(clock, &now); /* cannot fail for these clocks */
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec + read_warp(clock);
}

uint64_t clock_mono_ns(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

uint64_t clock_boot_ns(void)
{
	return read_clock(CLOCK_BOOTTIME);
}

uint64_t clock_real_ns(void)
{
	return read_clock(CLOCK_REALTIME);
}

uint64_t clock_tick_ns(void)
{
	return read_clock(CLOCK_REALTIME_COARSE);
}

int clock_alarm_new(void)
{
	return sys_timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
}

void clock_alarm_set(int alarm, uint64_t boot_ns)
{
	const uint64_t warp_ns = read_warp(CLOCK_BOOTTIME);
	/* What is past already rings at once; nothing at all is the kernel's word for never. */
	const uint64_t at_ns = boot_ns > warp_ns ? boot_ns - warp_ns : 1;
	const struct itimerspec at = {.it_value = {.tv_sec = (time_t)(at_ns / NS_PER_S),
						   .tv_nsec = (long)(at_ns % NS_PER_S)}};
	const struct itimerspec never = {0};

	/* Cannot fail for an alarm and a time that is one. */
	(void)timerfd_settime(alarm, TFD_TIMER_ABSTIME, boot_ns == UINT64_MAX ? &never : &at, NULL);
}

void clock_alarm_clear(int alarm)
{
	uint64_t n_rung;
	ssize_t n_read = read(alarm, &n_rung, sizeof n_rung); /* EAGAIN: it was set anew */

	(void)n_read;
}
