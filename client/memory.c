/* SPDX-License-Identifier: Apache-2.0 */
/* See memory.h. */
#include "client/memory.h"

#include "base/checked.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define HUGE_PAGE   ((uint64_t)2 << 20)
#define SEALS       (F_SEAL_SHRINK | F_SEAL_GROW)
#define SEALS_WRITE (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)

/* Is there memory behind all of it? */
static bool is_whole(int fd, size_t bytes)
{
	struct stat status;

	return fstat(fd, &status) == 0 && (uint64_t)status.st_blocks * 512 >= bytes;
}

void *memory_map(int fd, size_t bytes)
{
	uint64_t padded;
	uint64_t reserve;
	unsigned char *room;
	unsigned char *base;
	size_t head;

	if (!checked_round_up(bytes, HUGE_PAGE, &padded) ||
	    !checked_add(padded, HUGE_PAGE, &reserve)) {
		errno = EOVERFLOW;
		return NULL;
	}
	room = mmap(NULL, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED) {
		return NULL;
	}
	head = (size_t)(-(uintptr_t)room & (HUGE_PAGE - 1));
	base = room + head;
	if (mmap(base, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) ==
	    MAP_FAILED) {
		int sys = errno;

		(void)munmap(room, reserve); /* ours and whole */
		errno = sys;
		return NULL;
	}
	if (head > 0) {
		(void)munmap(room, head); /* ours; never fails on a whole reservation */
	}
	(void)munmap(base + padded, reserve - head - padded); /* likewise */
	/* Hints; where they are refused, the memory is as good. Holes would be filled by the first. */
	if (is_whole(fd, bytes)) {
		(void)madvise(base, bytes, MADV_HUGEPAGE);
	}
	(void)madvise(base, bytes, MADV_DONTDUMP);
	return base;
}

void memory_unmap(void *base, size_t bytes)
{
	/* With the padding behind it. */
	(void)munmap(base, (bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1)); /* ours */
}

bool memory_is_sealed(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & SEALS) == SEALS && (seals & SEALS_WRITE) != 0;
}
