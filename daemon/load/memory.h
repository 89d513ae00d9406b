/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much memory the host can give: the kernel's word and that of the cgroups above us (going
 * over a cgroup's limit is a SIGKILL, never ENOMEM). Reads /proc and /sys/fs/cgroup, which do
 * not block for long. Any thread.
 */
#ifndef LOAD_MEMORY_H
#define LOAD_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

struct err;

struct host_memory {
	uint64_t total;     /* MemTotal, or the lowest limit of a cgroup where that is less */
	uint64_t available; /* MemAvailable, or the room in a cgroup where that is less */
};

/* 'root' stands before every path read ("" or NULL: the real ones). WIRE_INTERNAL when
 * /proc/meminfo cannot be read; cgroups that cannot be read bound nothing. */
int host_memory_read(const char *root, struct host_memory *ret, struct err *err);

/* min(40 % of total, available - 25 % of total); where that leaves next to nothing, an eighth of
 * what is available. */
uint64_t host_memory_auto_budget(const struct host_memory *memory);

/* What is never taken: max(4 GiB, 12 % of total), but at most a quarter of a small machine. */
uint64_t host_memory_auto_reserve(const struct host_memory *memory);

/* Bytes swapped out of this process's control group (version 2). False: they cannot be told. */
bool host_memory_read_swapped(const char *root, uint64_t *ret);

/* Resident bytes of this process, shared memory apart; 0 when they cannot be read. */
uint64_t memory_own_bytes(void);

#endif
