/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a tensor map: a header is walked once to check and count, then this takes
 * exactly so much, and a second walk stores. Pure but for memory; any thread.
 */
#ifndef FORMAT_SHELF_H
#define FORMAT_SHELF_H

#include <stdint.h>

struct err;
struct tensor;
struct tensor_map;

/* Where the next tensor, its shape and its name go. */
struct shelf {
	struct tensor *tensors;
	uint64_t *shapes;
	char *names;
	uint64_t data_offset;
};

/* Memory for so much, the map's. Returns 0, -WIRE_NO_MEMORY or -WIRE_BAD_FILE. */
int shelf_take(struct tensor_map *map, uint32_t n_tensors, uint64_t n_dims, uint64_t name_bytes,
	       struct shelf *ret, struct err *err);

/* Are the names all different? 'scratch' has room for two numbers a tensor. */
int shelf_check_names(const struct tensor *tensors, uint32_t n_tensors, uint32_t *scratch,
		      struct err *err);

#endif
