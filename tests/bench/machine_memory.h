/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtual machine whose host takes free memory back (a balloon with free page reporting) gets
 * it again at 0.2 to 1 GB/s, once: the host's pace, not that of what is measured. So each job is
 * measured with the memory that it takes at hand, and the pace is printed beside it. What is free
 * for some 2 s is gone again: a job has to be shorter.
 */
#ifndef BENCH_MACHINE_MEMORY_H
#define BENCH_MACHINE_MEMORY_H

#include "base/os/sys.h"
#include "base/require.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

static inline double seconds_to_take(uint64_t bytes)
{
	struct timespec begun;
	struct timespec end;
	void *memory =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(memory != MAP_FAILED && clock_gettime(CLOCK_MONOTONIC, &begun) == 0);
	(void)madvise(memory, bytes, MADV_HUGEPAGE); /* the host takes back whole ones */
	REQUIRE(madvise(memory, bytes, MADV_POPULATE_WRITE) == 0);
	REQUIRE(clock_gettime(CLOCK_MONOTONIC, &end) == 0 && munmap(memory, bytes) == 0);
	return (double)(end.tv_sec - begun.tv_sec) + (double)(end.tv_nsec - begun.tv_nsec) * 1e-9;
}

/* What new memory costs here, the first time and with it at hand. */
static inline void print_new_memory(uint64_t bytes)
{
	const double first = seconds_to_take(bytes);
	const double again = seconds_to_take(bytes);

	(void)printf("new memory: %.2f GB/s at first, %.2f GB/s once it is at hand\n",
		     (double)bytes / first / 1e9, (double)bytes / again / 1e9);
}

#endif
