/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tensor table from a hostile daemon, its hash recomputed by the liar. What is opened can be
 * read to the last name and shape, and written again with the same meaning.
 */
#include "base/err.h"
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "proto/table.h"

static uint64_t hash(const void *bytes, size_t size)
{
	uint64_t value = 0xcbf29ce484222325U;

	for (size_t i = 0; i < size; i++) {
		value = (value ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3U;
	}
	return value;
}

static bool is_same(struct wire_str a, struct wire_str b)
{
	return a.size == b.size && memcmp(a.text, b.text, a.size) == 0;
}

static void *take(size_t count, size_t size)
{
	void *memory = calloc(count + 1, size);

	REQUIRE(memory != NULL);
	return memory;
}

static struct table_source_shard *copy_shards(const struct table *table)
{
	struct table_source_shard *shards = take(table->header->n_shards, sizeof *shards);

	for (uint32_t i = 0; i < table->header->n_shards; i++) {
		shards[i].image_size = table->shards[i].image_size;
		shards[i].first_sum = table->shards[i].first_sum;
		shards[i].n_sums = table->shards[i].n_sums;
		shards[i].name = table_shard_name(table, i);
	}
	return shards;
}

static struct table_source_tensor *copy_tensors(const struct table *table)
{
	struct table_source_tensor *tensors = take(table->header->n_tensors, sizeof *tensors);

	for (uint32_t i = 0; i < table->header->n_tensors; i++) {
		const struct table_tensor *row = &table->tensors[i];

		tensors[i] = (struct table_source_tensor){
			.name = table_tensor_name(table, i),
			.shape = table_tensor_shape(table, i),
			.rank = row->rank,
			.encoding = row->encoding,
			.dtype = row->dtype,
			.shard = row->shard,
			.block = row->block,
			.offset = row->offset,
			.size = row->size,
		};
	}
	return tensors;
}

static struct table_source_block *copy_blocks(const struct table *table)
{
	struct table_source_block *blocks = take(table->header->n_blocks, sizeof *blocks);

	for (uint32_t i = 0; i < table->header->n_blocks; i++) {
		const struct table_block *row = &table->blocks[i];

		blocks[i] = (struct table_source_block){
			.name = table_block_name(table, i),
			.size = row->size,
			.first_tensor = row->first_tensor,
			.n_tensors = row->n_tensors,
			.component = row->component,
			.is_head = row->is_head != 0,
		};
	}
	return blocks;
}

static void check_same(const struct table *a, const struct table *b)
{
	for (uint32_t i = 0; i < a->header->n_tensors; i++) {
		REQUIRE(is_same(table_tensor_name(a, i), table_tensor_name(b, i)));
		REQUIRE(a->tensors[i].offset == b->tensors[i].offset);
		REQUIRE(a->tensors[i].rank == b->tensors[i].rank);
		REQUIRE(memcmp(table_tensor_shape(a, i), table_tensor_shape(b, i),
			       a->tensors[i].rank * sizeof(uint64_t)) == 0);
	}
	for (uint32_t i = 0; i < a->header->n_blocks; i++) {
		REQUIRE(is_same(table_block_name(a, i), table_block_name(b, i)));
	}
	for (uint32_t i = 0; i < a->header->n_shards; i++) {
		REQUIRE(is_same(table_shard_name(a, i), table_shard_name(b, i)));
	}
	REQUIRE(memcmp(a->sums, b->sums, a->header->n_sums * sizeof(uint64_t)) == 0);
}

static void check_rewrite(const struct table *table)
{
	struct table_source_shard *shards = copy_shards(table);
	struct table_source_tensor *tensors = copy_tensors(table);
	struct table_source_block *blocks = copy_blocks(table);
	struct table_source source = {
		.model_id = table->header->model_id,
		.format = table->header->format,
		.n_shards = table->header->n_shards,
		.n_tensors = table->header->n_tensors,
		.n_blocks = table->header->n_blocks,
		.n_sums = table->header->n_sums,
		.shards = shards,
		.tensors = tensors,
		.blocks = blocks,
		.sums = table->sums,
	};
	uint64_t size = table_size(&source);

	/* Names may overlap in a hostile table, so the copy may be very much larger. */
	if (size > 0 && size < 16 << 20) {
		uint8_t *copy = take(size, 1);
		struct table again;
		struct err err;

		table_write(&source, copy, hash);
		REQUIRE(table_open(copy, size, hash, &again, &err) == 0);
		check_same(table, &again);
		free(copy);
	}
	free(blocks);
	free(tensors);
	free(shards);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	uint8_t *copy = malloc(size + (size == 0)); /* exact, and aligned */
	struct table_header *header = (void *)copy;
	struct table table;
	struct err err = {0};

	REQUIRE(copy != NULL);
	memcpy(copy, bytes, size);
	if (size >= sizeof *header && bytes[0] == 'D') { /* what a liar gets right */
		memcpy(header->magic, "DISTTBL", 8);
		header->table_size = size;
	}
	if (table_open(copy, size, NULL, &table, &err) == 0) {
		check_rewrite(&table);
	} else {
		REQUIRE(err.code == WIRE_BAD_FILE && err.text[0] != '\0');
	}
	free(copy);
	return 0;
}
