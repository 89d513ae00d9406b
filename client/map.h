/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights: a checked copy of the table, and the images mapped. Any thread.
 */
#ifndef CLIENT_MAP_H
#define CLIENT_MAP_H

#include "client/client.h"

/* What a lease came with. */
struct lease {
	uint64_t number;
	uint64_t generation;
	struct kept_lease *kept; /* the connection's; NULL without one */
	uint32_t n_images;       /* descriptors behind the table's; 0: describe, map nothing */
	const struct wire_layout
		*layout; /* borrowed for the call; NULL: all blocks are in images */
};

/*
 * Make weights of an answer whose descriptors are the table's and then the images'; takes
 * the images' descriptors out of it. 'c' is NULL for weights without a lease. On failure
 * the caller still owes the daemon the lease's end.
 */
int weights_make(struct distorch *c, const struct lease *lease, struct answer *answer,
		 struct distorch_weights **ret_weights);

#endif
