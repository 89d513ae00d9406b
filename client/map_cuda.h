/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A card's memory that the daemon owns, in this process: read-only, by the driver that the
 * program uses anyway. Opened when first needed; a program without a card never loads it.
 * Failures fill the thread's error (client/error.h). Any thread.
 */
#ifndef CLIENT_MAP_CUDA_H
#define CLIENT_MAP_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "proto/gen/wire_gen.h"

#define MAP_CUDA_MAX WIRE_FDS_PER_PACKET

/* A segment of 'bytes' behind 'fd'. */
struct cuda_source {
	uint64_t bytes;
	int fd;
};

/* Segments of one card, one after the other: addresses are reserved and opened for all at once,
 * for each of these costs the driver as much as all the rest of an import. */
struct cuda_range {
	uint64_t address; /* a CUdeviceptr */
	uint64_t size;    /* of all */
	int ordinal; /* of the card in this process, whose CUDA_VISIBLE_DEVICES may hide some */
	uint32_t n_mapped;
	uint64_t sizes[MAP_CUDA_MAX]; /* whole granules: what is mapped of each */
};

/*
 * Map the 1 to MAP_CUDA_MAX segments of the card 'uuid' ("GPU-..."), all or none; the descriptors
 * are taken and closed in every case. A write through the mapping is a fault that ends the
 * program's use of the card. Returns 0, or -DISTORCH_E_UNSUPPORTED (no driver, the card is hidden
 * from this process, a build without CUDA), _BAD_FD (not memory of that card, or not so much),
 * _NO_MEMORY, _DEVICE_LOST or _INTERNAL.
 */
int map_cuda_import(const char *uuid, const struct cuda_source *sources, uint32_t n_sources,
		    struct cuda_range *ret);

/*
 * Wait for everything that this process does on the card, then unmap. Only then may the daemon be
 * told: it may reuse the bytes at once. On failure (_DEVICE_LOST, _INTERNAL) some of it is still
 * mapped, and it can be tried again. Never in a process that was forked since.
 */
int map_cuda_release(struct cuda_range *range);

#endif
