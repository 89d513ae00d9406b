/* SPDX-License-Identifier: Apache-2.0 */
/* The sealed tensor table (proto/table.h) of filled images. */
#ifndef LOAD_IMAGE_TABLE_H
#define LOAD_IMAGE_TABLE_H

#include <stdint.h>

#include "daemon/load/file.h"

struct err;
struct tensor_map;

/* One image and the file that it is of. */
struct image_facts {
	char *name; /* of the model; of one of several files: with a slash and the file's name */
	struct file_key key;
	uint64_t image_ino, image_bytes;
	uint32_t first_sum, n_sums;
};

/* What stands in the table beside the map; all borrowed. */
struct image_table {
	const uint8_t *model_id; /* 16 bytes */
	uint64_t generation;
	uint32_t owner_uid;
	const struct image_facts *images;
	uint32_t n_images;
	const uint64_t *sums;
	uint32_t n_sums;
};

/* '*ret_fd': a sealed memfd, the caller's. WIRE_NO_MEMORY, WIRE_TOO_LARGE, WIRE_TOO_MANY. */
int image_table_make(const struct tensor_map *map, const struct image_table *table, int *ret_fd,
		     struct err *err);

#endif
