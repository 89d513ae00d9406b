/* SPDX-License-Identifier: Apache-2.0 */
/* See raw.h. */
#include "daemon/format/raw.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/format/blocks.h"
#include "daemon/format/format.h"
#include "daemon/format/shelf.h"
#include "proto/gen/wire_code.h"

#define NAME      "data"
#define NAME_SIZE (sizeof NAME - 1)

int raw_check(uint64_t file_size, struct err *err)
{
	return file_size > 0 ? 0 : err_set(err, WIRE_BAD_FILE, "the file is empty");
}

static int fill_map(struct tensor_map *map, struct err *err)
{
	struct shelf shelf = {0};
	int code = shelf_take(map, 1, 1, NAME_SIZE, &shelf, err);

	if (code < 0) {
		return code;
	}
	memcpy(shelf.names, NAME, NAME_SIZE);
	*shelf.shapes = map->file_size;
	*shelf.tensors = (struct tensor){.name = shelf.names,
					 .name_size = NAME_SIZE,
					 .dtype = WIRE_DTYPE_U8,
					 .rank = 1,
					 .shape = shelf.shapes,
					 .size = map->file_size};
	return blocks_compute(shelf.tensors, 1, &map->block_memory, &map->blocks, &map->n_blocks,
			      err);
}

int raw_parse(uint64_t file_size, struct tensor_map **ret_map, struct err *err)
{
	struct tensor_map *map;
	int code = raw_check(file_size, err);

	if (code < 0) {
		return code;
	}
	map = malloc(sizeof *map);
	if (map == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a tensor map");
	}
	*map = (struct tensor_map){.format = FORMAT_RAW, .file_size = file_size};
	code = fill_map(map, err);
	if (code < 0) {
		(void)tensor_map_free(map);
		return code;
	}
	*ret_map = map;
	return 0;
}
