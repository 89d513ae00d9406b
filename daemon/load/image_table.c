/* SPDX-License-Identifier: Apache-2.0 */
/* From a tensor map to the records that clients read. See image_table.h. */
#include "daemon/load/image_table.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/format/format.h"
#include "daemon/load/hash.h"
#include "proto/gen/wire_code.h"
#include "proto/table.h"

static void describe_tensors(const struct tensor_map *map, struct table_source_tensor *ret)
{
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		const struct tensor *tensor = &map->tensors[i];

		ret[i] = (struct table_source_tensor){
			.name = {.text = tensor->name, .size = tensor->name_size},
			.shape = tensor->shape,
			.rank = tensor->rank,
			.dtype = tensor->dtype,
			.block = tensor->block,
			.shard = tensor->shard,
			.offset = tensor->offset,
			.size = tensor->size,
		};
	}
}

static void describe_blocks(const struct tensor_map *map, struct table_source_block *ret)
{
	for (uint32_t i = 0; i < map->n_blocks; i++) {
		const struct block *block = &map->blocks[i];

		ret[i] = (struct table_source_block){
			.name = {.text = block->name, .size = block->name_size},
			.size = block->size,
			.first_tensor = block->first_tensor,
			.n_tensors = block->n_tensors,
			.component = block->component,
			.is_head = block->is_head,
		};
	}
}

static void describe_shards(const struct image_table *table, struct table_source_shard *ret)
{
	for (uint32_t i = 0; i < table->n_images; i++) {
		const struct image_facts *image = &table->images[i];

		ret[i] = (struct table_source_shard){
			.dev = image->key.dev,
			.ino = image->key.ino,
			.size = image->key.size,
			.mtime_ns = image->key.mtime_ns,
			.ctime_ns = image->key.ctime_ns,
			.image_ino = image->image_ino,
			.image_size = image->image_bytes,
			.first_sum = image->first_sum,
			.n_sums = image->n_sums,
			.name = {.text = image->name, .size = (uint32_t)strlen(image->name)},
		};
	}
}

int image_table_make(const struct tensor_map *map, const struct image_table *table, int *ret_fd,
		     struct err *err)
{
	/* One more of each: an allocation of nothing may be NULL. */
	AUTO_FREE struct table_source_tensor *tensors =
		sys_calloc((size_t)map->n_tensors + 1, sizeof *tensors);
	AUTO_FREE struct table_source_block *blocks =
		sys_calloc((size_t)map->n_blocks + 1, sizeof *blocks);
	AUTO_FREE struct table_source_shard *shards =
		sys_calloc((size_t)table->n_images + 1, sizeof *shards);
	AUTO_FREE void *memory = NULL;
	struct table_source source = {
		.model_id = table->model_id,
		.generation = table->generation,
		.owner_uid = table->owner_uid,
		.format = (uint32_t)map->format,
		.n_shards = table->n_images,
		.n_tensors = map->n_tensors,
		.n_blocks = map->n_blocks,
		.n_sums = table->n_sums,
		.shards = shards,
		.tensors = tensors,
		.blocks = blocks,
		.sums = table->sums,
		.sum_range = HASH_RANGE_BYTES,
	};
	uint64_t size;

	if (tensors == NULL || blocks == NULL || shards == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the table of %u tensors",
			       map->n_tensors);
	}
	describe_tensors(map, tensors);
	describe_blocks(map, blocks);
	describe_shards(table, shards);
	size = table_size(&source);
	if (size == 0) {
		return err_set(err, WIRE_TOO_LARGE, "the table of %u tensors is too large",
			       map->n_tensors);
	}
	memory = sys_calloc(1, size);
	if (memory == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a table of %llu bytes",
			       (unsigned long long)size);
	}
	table_write(&source, memory, hash_bytes);
	return memfd_from_bytes("distorch:table", memory, size, ret_fd, err);
}
