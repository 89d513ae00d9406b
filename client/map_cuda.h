/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A card's memory that the daemon owns, in this process: read-only, by the driver that the
 * program uses anyway. Opened when first needed; a program without a card never loads it.
 * Failures fill the thread's error (client/error.h). Any thread.
 */
#ifndef CLIENT_MAP_CUDA_H
#define CLIENT_MAP_CUDA_H

#include <stdint.h>

struct cuda_mapping {
	uint64_t address; /* a CUdeviceptr */
	uint64_t size;    /* whole granules: what is mapped */
	int ordinal; /* of the card in this process, whose CUDA_VISIBLE_DEVICES may hide some */
};

/*
 * Map a segment of 'bytes' of the card 'uuid' ("GPU-...") behind 'fd', which is taken and closed
 * in every case. A write through the mapping is a fault that ends the program's use of the
 * card. Returns 0, or -DISTORCH_E_UNSUPPORTED (no driver, the card is hidden from this process,
 * a build without CUDA), _BAD_FD (not memory of that card, or not so much), _NO_MEMORY,
 * _DEVICE_LOST or _INTERNAL.
 */
int map_cuda_import(int fd, const char *uuid, uint64_t bytes, struct cuda_mapping *ret);

/*
 * Wait for everything that this process does on the card, then unmap. Only then may the daemon be
 * told: it may reuse the bytes at once. On failure (_DEVICE_LOST, _INTERNAL) the mapping is
 * still there. Never in a process that was forked since.
 */
int map_cuda_release(const struct cuda_mapping *mapping);

#endif
