/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors, then shapes, then names, in one piece. See shelf.h. */
#include "daemon/format/shelf.h"

#include "base/checked.h"
#include "base/err.h"

#include <stdlib.h>

#include "daemon/format/format.h"
#include "daemon/format/order.h"
#include "daemon/format/show.h"
#include "proto/gen/wire_code.h"

int shelf_take(struct tensor_map *map, uint32_t n_tensors, uint64_t n_dims, uint64_t name_bytes,
	       struct shelf *ret, struct err *err)
{
	struct shelf shelf = {.data_offset = map->data_offset};
	uint64_t tensor_bytes;
	uint64_t shape_bytes;
	uint64_t size;

	if (!checked_mul(n_tensors, sizeof *shelf.tensors, &tensor_bytes) ||
	    !checked_mul(n_dims, sizeof *shelf.shapes, &shape_bytes) ||
	    !checked_add(tensor_bytes, shape_bytes, &size) ||
	    !checked_add(size, name_bytes, &size)) {
		return err_set(err, WIRE_BAD_FILE, "a header that is too large");
	}
	map->tensor_memory = malloc(size == 0 ? 1 : size);
	if (map->tensor_memory == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the names of %u tensors",
			       n_tensors);
	}
	shelf.tensors = map->tensor_memory;
	shelf.shapes = (void *)((char *)map->tensor_memory + tensor_bytes);
	shelf.names = (char *)shelf.shapes + shape_bytes;
	map->tensors = shelf.tensors;
	map->n_tensors = n_tensors;
	*ret = shelf;
	return 0;
}

static struct order_name name_of_tensor(const void *context, uint32_t item)
{
	const struct tensor *tensors = context;

	return (struct order_name){tensors[item].name, tensors[item].name_size};
}

int shelf_check_names(const struct tensor *tensors, uint32_t n_tensors, uint32_t *scratch,
		      struct err *err)
{
	char shown[SHOW_NAME_SIZE];
	uint32_t twice;

	if (!order_find_twice(scratch, n_tensors, name_of_tensor, tensors, &twice)) {
		return 0;
	}
	return err_set(err, WIRE_BAD_FILE, "tensor \"%s\" is described twice",
		       show_name(tensors[twice].name, tensors[twice].name_size, shown));
}
