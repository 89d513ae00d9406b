/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold of every tensor map, whatever file it came from; for tests and fuzzers. */
#ifndef TESTS_SUPPORT_MAP_CHECK_H
#define TESTS_SUPPORT_MAP_CHECK_H

#include "base/require.h"

#include <string.h>

#include "daemon/format/dtype.h"
#include "daemon/format/format.h"

/* A tensor is as large as its shape says, its rows whole groups. */
static inline void map_check_size(const struct tensor *tensor)
{
	const uint32_t group = dtype_group(tensor->dtype);
	uint64_t bits = 1;

	REQUIRE(tensor->rank <= FORMAT_MAX_RANK && group > 0);
	REQUIRE(group == 1 || (tensor->rank > 0 && tensor->shape[tensor->rank - 1] % group == 0));
	for (uint8_t j = 0; j < tensor->rank; j++) {
		uint64_t n_groups = tensor->shape[j] / (j + 1 == tensor->rank ? group : 1);

		REQUIRE(!__builtin_mul_overflow(bits, n_groups, &bits));
	}
	REQUIRE(!__builtin_mul_overflow(bits, dtype_bits(tensor->dtype), &bits));
	REQUIRE(bits % 8 == 0 && bits / 8 == tensor->size);
}

/* Tensors ascend over the data; those of safetensors lie end to end, GGUF's are padded. */
static inline void map_check_tensors(const struct tensor_map *map)
{
	uint64_t at = map->data_offset;

	REQUIRE(map->data_offset <= map->file_size);
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		const struct tensor *tensor = &map->tensors[i];

		REQUIRE(map->format == FORMAT_GGUF ? tensor->offset >= at : tensor->offset == at);
		REQUIRE(map->format != FORMAT_GGUF || tensor->size > 0);
		at = tensor->offset;
		REQUIRE(at <= map->file_size && tensor->size <= map->file_size - at);
		at += tensor->size;
		map_check_size(tensor);
		REQUIRE(tensor->name_size <= FORMAT_MAX_NAME);
		REQUIRE(memchr(tensor->name, '\0', tensor->name_size) == NULL);
		for (uint32_t j = 0; j < i && map->n_tensors < 100; j++) {
			REQUIRE(map->tensors[j].name_size != tensor->name_size ||
				memcmp(map->tensors[j].name, tensor->name, tensor->name_size) != 0);
		}
	}
	REQUIRE(map->format == FORMAT_GGUF || at == map->file_size);
}

/* Each tensor is in one block, and the blocks' sums agree. */
static inline void map_check_blocks(const struct tensor_map *map)
{
	uint64_t bytes = 0;
	uint64_t tensor_bytes = 0;
	uint64_t n_tensors = 0;

	for (uint32_t i = 0; i < map->n_blocks; i++) {
		const struct block *block = &map->blocks[i];

		REQUIRE(block->n_tensors > 0 && block->first_tensor < map->n_tensors);
		REQUIRE(map->tensors[block->first_tensor].block == i);
		REQUIRE(block->name_size > 0);
		bytes += block->size;
		n_tensors += block->n_tensors;
	}
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		tensor_bytes += map->tensors[i].size;
		REQUIRE(map->tensors[i].block < map->n_blocks);
		REQUIRE(map->blocks[map->tensors[i].block].first_tensor <= i);
	}
	REQUIRE(bytes == tensor_bytes && n_tensors == map->n_tensors);
}

static inline void map_check(const struct tensor_map *map)
{
	REQUIRE(map->format != FORMAT_AUTO && map->n_notices <= FORMAT_N_NOTICES);
	map_check_tensors(map);
	map_check_blocks(map);
}

#endif
