/* SPDX-License-Identifier: Apache-2.0 */
/* The sealed tensor table (proto/table.h) of a filled image. */
#ifndef LOAD_IMAGE_TABLE_H
#define LOAD_IMAGE_TABLE_H

#include <stdint.h>

struct err;
struct file_key;
struct tensor_map;

/* What stands in the table beside the map; all borrowed. */
struct image_facts {
	const uint8_t *model_id; /* 16 bytes */
	uint64_t generation;
	uint32_t owner_uid;
	const char *name;
	const struct file_key *key;
	int image_fd; /* an export of the image */
	const uint64_t *sums;
	uint32_t n_sums;
};

/* '*ret_fd': a sealed memfd, the caller's. WIRE_NO_MEMORY, WIRE_TOO_LARGE, WIRE_TOO_MANY. */
int image_table_make(const struct tensor_map *map, const struct image_facts *facts, int *ret_fd,
		     struct err *err);

#endif
