/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests that touch files and memory: scratch files whose every byte is known, and
 * counts of what a process holds, to be compared before and after.
 */
#ifndef TESTS_SUPPORT_SCRATCH_H
#define TESTS_SUPPORT_SCRATCH_H

#include "tests/support/unit.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline uint32_t scratch_count_entries(const char *path)
{
	DIR *folder = opendir(path);
	uint32_t n_entries = 0;

	assert_non_null(folder);
	while (readdir(folder) != NULL) {
		n_entries++;
	}
	(void)closedir(folder);
	return n_entries;
}

static inline uint32_t scratch_count_threads(void)
{
	return scratch_count_entries("/proc/self/task");
}

static inline void scratch_sleep_ms(uint32_t ms)
{
	const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	(void)nanosleep(&time, NULL);
}

/* The byte at 'offset' of every scratch file: no two near pages are alike. */
static inline uint8_t scratch_byte(uint64_t offset)
{
	return (uint8_t)((offset * 2654435761U) >> 13 ^ (offset >> 12) * 7);
}

static inline void scratch_write(int fd, const void *bytes, size_t size, uint64_t offset)
{
	assert_int_equal(pwrite(fd, bytes, size, (off_t)offset), (ssize_t)size);
}

/* Known bytes from 'begin' on. */
static inline void scratch_fill(int fd, uint64_t begin, uint64_t size)
{
	static uint8_t buffer[1 << 16];

	while (size > 0) {
		size_t part = size < sizeof buffer ? (size_t)size : sizeof buffer;

		for (size_t i = 0; i < part; i++) {
			buffer[i] = scratch_byte(begin + i);
		}
		scratch_write(fd, buffer, part, begin);
		begin += part;
		size -= part;
	}
}

/* An open, already unlinked file, read-write. The folder of the test's working directory: a
 * real filesystem rather than a tmpfs. */
static inline int scratch_open(void)
{
	char path[] = "scratch.XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(unlink(path), 0);
	return fd;
}

/* A second, own description of the same file. */
static inline int scratch_reopen(int fd, int flags)
{
	char path[64];

	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

#endif
