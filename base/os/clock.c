/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's clocks and, in testing builds, a jump ahead of them. See clock.h. */
#include "base/os/clock.h"

#include <time.h>

#define NS_PER_S 1000000000U

#ifdef DISTORCH_TESTING
static uint64_t warp_ns;

void clock_warp(uint64_t ns)
{
	(void)__atomic_add_fetch(&warp_ns, ns, __ATOMIC_RELAXED);
}
#endif

static uint64_t read_clock(clockid_t clock)
{
	struct timespec now = {0};
	uint64_t ns;

	(void)clock_gettime(clock, &now); /* cannot fail for these clocks */
	ns = (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
#ifdef DISTORCH_TESTING
	ns += __atomic_load_n(&warp_ns, __ATOMIC_RELAXED);
#endif
	return ns;
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
