/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealed shared memory. The daemon keeps its own read-write descriptor to itself; what leaves
 * is a fresh read-only reopen. Any thread. Functions return 0 or a negative code with 'err'.
 */
#ifndef BASE_OS_MEMFD_H
#define BASE_OS_MEMFD_H

#include <stddef.h>
#include <stdint.h>

struct err;

#define MEMFD_HUGE_BYTES (2U << 20) /* page size that images aim at */

/* An unsealed memfd of 'size' zero bytes: no page is taken yet. WIRE_TOO_LARGE: RLIMIT_FSIZE. */
int memfd_create_sized(const char *name, uint64_t size, int *ret_fd, struct err *err);

/*
 * Reserve an address range and map the memfd at a multiple of 2 MiB in it, so that huge
 * pages can be mapped whole. 'protection' as for mmap, 'flags' MAP_SHARED or MAP_PRIVATE.
 * Unmap with memfd_unmap and the same size. Not part of core dumps.
 */
int memfd_map(int fd, uint64_t size, int protection, int flags, void **ret_address,
	      struct err *err);
void memfd_unmap(void *address, uint64_t size);

/*
 * Take 2 MiB pages, as many as are whole, for a shared writable mapping of memfd_map's, or a part
 * that begins at a multiple of them. They are made and read several times as fast as small ones
 * (docs/gpu-notes.md). Returns 0, or -1 with errno: then some lie in small pages or are
 * not taken yet, and all goes on as without.
 */
int memfd_take_huge(void *address, uint64_t size);

/*
 * Nobody can shrink, grow or newly write it afterwards, and nobody can take that back; mode
 * 0444. Existing writable mappings stay writable: unmap them first.
 */
int memfd_seal(int fd, struct err *err);

/* Is the memfd sealed as memfd_seal does, or harder, and 'size' bytes long? 0 or -WIRE_BAD_FD. */
int memfd_check_seals(int fd, uint64_t size, struct err *err);

/* The same memory by a new read-only description of its own; the caller closes it. */
int memfd_reopen(int fd, int *ret_fd, struct err *err);

/* A small memfd with these bytes, sealed against everything; read-only description. */
int memfd_from_bytes(const char *name, const void *bytes, size_t size, int *ret_fd,
		     struct err *err);

#endif
