/* SPDX-License-Identifier: Apache-2.0 */
/* One encoded message on its way out: bytes, and descriptors that are closed with it. */
#ifndef IPC_PACKET_H
#define IPC_PACKET_H

#include "base/os/fdpass.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct packet {
	struct packet *next; /* owner: conn::out */
	bool is_response;
	uint32_t n_fds;
	int fds[FDPASS_MAX_FDS]; /* owner: packet */
	uint8_t *spill;          /* a result that is too long for it; NULL: none; owner: packet */
	size_t spill_size;
	uint32_t request; /* whose result that is */
	size_t size;
	uint8_t bytes[];
};

/* Room for 'size' bytes, no descriptors. NULL: no memory. */
struct packet *packet_new(size_t size);
/* NULL is fine. Closes the descriptors. Returns NULL. */
struct packet *packet_free(struct packet *packet);

#endif
