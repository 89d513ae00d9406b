/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold of every tensor map, whatever file it came from; for tests and fuzzers. */
#ifndef TESTS_SUPPORT_MAP_CHECK_H
#define TESTS_SUPPORT_MAP_CHECK_H

#include "base/require.h"

#include <string.h>

#include "daemon/format/dtype.h"
#include "daemon/format/format.h"

/* Tensors lie end to end over the data, and each is as large as its shape says. */
static inline void map_check_tensors(const struct tensor_map *map)
{
	uint64_t at = map->data_offset;

	for (uint32_t i = 0; i < map->n_tensors; i++) {
		const struct tensor *tensor = &map->tensors[i];
		uint64_t bits = 1;

		REQUIRE(tensor->offset == at);
		REQUIRE(tensor->size <= map->file_size - at);
		at += tensor->size;
		REQUIRE(tensor->rank <= FORMAT_MAX_RANK);
		for (uint8_t j = 0; j < tensor->rank; j++) {
			REQUIRE(!__builtin_mul_overflow(bits, tensor->shape[j], &bits));
		}
		REQUIRE(dtype_bits(tensor->dtype) > 0);
		REQUIRE(!__builtin_mul_overflow(bits, dtype_bits(tensor->dtype), &bits));
		REQUIRE(bits % 8 == 0 && bits / 8 == tensor->size);
		REQUIRE(tensor->name_size <= FORMAT_MAX_NAME);
		REQUIRE(memchr(tensor->name, '\0', tensor->name_size) == NULL);
		for (uint32_t j = 0; j < i && map->n_tensors < 100; j++) {
			REQUIRE(map->tensors[j].name_size != tensor->name_size ||
				memcmp(map->tensors[j].name, tensor->name, tensor->name_size) != 0);
		}
	}
	REQUIRE(at == map->file_size);
}

/* Each tensor is in one block, and the blocks' sums agree. */
static inline void map_check_blocks(const struct tensor_map *map)
{
	uint64_t bytes = map->data_offset;
	uint64_t n_tensors = 0;

	for (uint32_t i = 0; i < map->n_blocks; i++) {
		const struct block *block = &map->blocks[i];

		REQUIRE(block->n_tensors > 0 && block->first_tensor < map->n_tensors);
		REQUIRE(map->tensors[block->first_tensor].block == i);
		REQUIRE(block->name_size > 0);
		bytes += block->size;
		n_tensors += block->n_tensors;
	}
	REQUIRE(bytes == map->file_size && n_tensors == map->n_tensors);
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		REQUIRE(map->tensors[i].block < map->n_blocks);
		REQUIRE(map->blocks[map->tensors[i].block].first_tensor <= i);
	}
}

static inline void map_check(const struct tensor_map *map)
{
	REQUIRE(map->format == FORMAT_SAFETENSORS && map->n_notices <= FORMAT_N_NOTICES);
	map_check_tensors(map);
	map_check_blocks(map);
}

#endif
