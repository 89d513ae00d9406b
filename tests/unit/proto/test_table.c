/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tensor table: what is written reads back, and each number that is bent is refused even
 * where the hash is not looked at (a hostile daemon hashes its own lies).
 */
#include "base/err.h"
#include "tests/support/unit.h"

#include <stdlib.h>
#include <string.h>

#include "proto/table.h"

#define N_TENSORS 3
#define N_BLOCKS  2

static const uint64_t shape_a[] = {2, 3};
static const uint64_t shape_c[] = {0, 7};
static const uint64_t sums[] = {11, 22, 33};
static const uint8_t model_id[16] = {1, 2, 3};

static struct table_source_shard shards[1];
static struct table_source_tensor tensors[N_TENSORS];
static struct table_source_block blocks[N_BLOCKS];
static struct table_source source;
static uint8_t *memory; /* exact size */
static size_t size;

/* FNV-1a: any hash will do here. */
static uint64_t hash(const void *bytes, size_t n)
{
	uint64_t value = 0xcbf29ce484222325U;

	for (size_t i = 0; i < n; i++) {
		value = (value ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3U;
	}
	return value;
}

static int write_table(void **state)
{
	(void)state;
	shards[0] = (struct table_source_shard){.dev = 1,
						.ino = 2,
						.size = 4096,
						.mtime_ns = -3,
						.ctime_ns = 4,
						.image_ino = 5,
						.image_size = 4096,
						.first_sum = 1,
						.n_sums = 2,
						.name = wire_str("model.safetensors")};
	tensors[0] = (struct table_source_tensor){.name = wire_str("a"),
						  .shape = shape_a,
						  .rank = 2,
						  .dtype = WIRE_DTYPE_F32,
						  .offset = 100,
						  .size = 24};
	tensors[1] = (struct table_source_tensor){.name = wire_str("b.\xc3\xa9"),
						  .dtype = WIRE_DTYPE_BF16,
						  .block = 1,
						  .offset = 4094,
						  .size = 2};
	tensors[2] = (struct table_source_tensor){.name = wire_str(""),
						  .shape = shape_c,
						  .rank = 2,
						  .dtype = WIRE_DTYPE_F4,
						  .offset = 4096};
	blocks[0] = (struct table_source_block){.name = wire_str("head"),
						.size = 26,
						.n_tensors = 2,
						.is_head = true};
	blocks[1] = (struct table_source_block){.name = wire_str("blk.0"),
						.first_tensor = 1,
						.n_tensors = 2,
						.component = 3};
	source = (struct table_source){.model_id = model_id,
				       .generation = 9,
				       .owner_uid = 1000,
				       .format = 1,
				       .n_shards = 1,
				       .n_tensors = N_TENSORS,
				       .n_blocks = N_BLOCKS,
				       .n_sums = 3,
				       .shards = shards,
				       .tensors = tensors,
				       .blocks = blocks,
				       .sums = sums,
				       .sum_range = 64 << 20};
	size = table_size(&source);
	memory = malloc(size);
	assert_non_null(memory);
	memset(memory, 0x5a, size);
	table_write(&source, memory, hash);
	return 0;
}

static int free_table(void **state)
{
	(void)state;
	free(memory);
	return 0;
}

static struct table_header *header(void)
{
	return (void *)memory;
}

static struct table_shard *shard_row(void)
{
	return (void *)(memory + header()->shards_offset);
}

static struct table_tensor *tensor_row(uint32_t index)
{
	return (struct table_tensor *)(void *)(memory + header()->tensors_offset) + index;
}

static struct table_block *block_row(uint32_t index)
{
	return (struct table_block *)(void *)(memory + header()->blocks_offset) + index;
}

static void what_is_written_reads_back(void **state)
{
	struct table table;
	struct err err;

	(void)state;
	assert_int_equal(table_open(memory, size, hash, &table, &err), 0);
	assert_int_equal(table.header->generation, 9);
	assert_int_equal(table.header->owner_uid, 1000);
	assert_int_equal(table.header->sum_range, 64 << 20);
	assert_memory_equal(table.header->model_id, model_id, sizeof model_id);
	assert_int_equal(table.shards[0].dev, 1);
	assert_int_equal(table.shards[0].ino, 2);
	assert_int_equal(table.shards[0].mtime_ns, -3);
	assert_int_equal(table.shards[0].ctime_ns, 4);
	assert_int_equal(table.shards[0].image_ino, 5);
	assert_true(wire_str_is(table_shard_name(&table, 0), "model.safetensors"));
	assert_true(wire_str_is(table_tensor_name(&table, 0), "a"));
	assert_true(wire_str_is(table_tensor_name(&table, 1), "b.\xc3\xa9"));
	assert_true(wire_str_is(table_tensor_name(&table, 2), ""));
	assert_memory_equal(table_tensor_shape(&table, 0), shape_a, sizeof shape_a);
	assert_memory_equal(table_tensor_shape(&table, 2), shape_c, sizeof shape_c);
	assert_int_equal(table.tensors[0].offset, 100);
	assert_int_equal(table.tensors[1].block, 1);
	assert_int_equal(table.tensors[1].rank, 0);
	assert_int_equal(table.tensors[2].dtype, WIRE_DTYPE_F4);
	assert_true(wire_str_is(table_block_name(&table, 1), "blk.0"));
	assert_int_equal(table.blocks[0].is_head, 1);
	assert_int_equal(table.blocks[1].component, 3);
	assert_int_equal(table.blocks[1].first_tensor, 1);
	assert_memory_equal(table.sums, sums, sizeof sums);
}

static void an_empty_model_has_a_table(void **state)
{
	struct table_source none = {.model_id = model_id, .format = 3};
	struct table_header *only;
	struct table table;
	struct err err;

	(void)state;
	assert_int_equal(table_size(&none), sizeof *only);
	only = malloc(sizeof *only);
	assert_non_null(only);
	table_write(&none, only, hash);
	assert_int_equal(table_open(only, sizeof *only, hash, &table, &err), 0);
	free(only);
}

static void names_that_are_no_utf8_are_written_readable(void **state)
{
	struct table table;
	struct err err;

	(void)state;
	shards[0].name = wire_str("caf\xe9.safetensors ");
	free(memory);
	size = table_size(&source);
	memory = malloc(size);
	assert_non_null(memory);
	table_write(&source, memory, hash);
	assert_int_equal(table_open(memory, size, hash, &table, &err), 0);
	assert_true(wire_str_is(table_shard_name(&table, 0), "caf?.safetensors "));
}

static void a_flipped_bit_anywhere_is_noticed(void **state)
{
	(void)state;
	for (size_t i = 0; i < size; i++) {
		struct table table = {0};
		struct err err;

		memory[i] ^= 0x10;
		assert_int_equal(table_open(memory, size, hash, &table, &err), -WIRE_BAD_FILE);
		assert_null(table.bytes);
		memory[i] ^= 0x10;
	}
}

static void every_other_size_is_refused(void **state)
{
	struct table table;
	struct err err;

	(void)state;
	for (size_t n = 0; n < size; n++) {
		uint8_t *prefix = malloc(n + (n == 0));

		assert_non_null(prefix);
		memcpy(prefix, memory, n);
		assert_int_equal(table_open(prefix, n, NULL, &table, &err), -WIRE_BAD_FILE);
		if (n >= sizeof(struct table_header)) { /* the size field bent too */
			((struct table_header *)(void *)prefix)->table_size = n;
			assert_int_equal(table_open(prefix, n, NULL, &table, &err), -WIRE_BAD_FILE);
		}
		free(prefix);
	}
}

static void memory_must_be_aligned(void **state)
{
	uint8_t *shifted = malloc(size + 4);
	struct table table;
	struct err err;

	(void)state;
	assert_non_null(shifted);
	memcpy(shifted + 4, memory, size);
	assert_int_equal(table_open(shifted + 4, size, NULL, &table, &err), -WIRE_BAD_FILE);
	free(shifted);
}

/* Bend one member, expect a refusal that names 'word', and put it back. */
#define ASSERT_BENT(member, value, word)                                                        \
	do {                                                                                    \
		__typeof__(member) before = (member);                                           \
		struct table table;                                                             \
		struct err err = {0};                                                           \
                                                                                                \
		assert_int_equal(table_open(memory, size, NULL, &table, &err), 0);              \
		memset(&table, 0, sizeof table);                                                \
		(member) = (value);                                                             \
		assert_int_equal(table_open(memory, size, NULL, &table, &err), -WIRE_BAD_FILE); \
		assert_null(table.bytes); /* ret untouched */                                   \
		assert_non_null(strstr(err.text, word));                                        \
		(member) = before;                                                              \
	} while (0)

static void bent_headers_are_refused(void **state)
{
	(void)state;
	ASSERT_BENT(header()->magic[0], 'd', "layout");
	ASSERT_BENT(header()->magic[7], 'd', "layout");
	ASSERT_BENT(header()->layout, 2, "layout");
	ASSERT_BENT(header()->complete, 0, "complete");
	ASSERT_BENT(header()->table_size, size + 1, "says");
	ASSERT_BENT(header()->format, 0, "format");
	ASSERT_BENT(header()->format, 4, "format");
	ASSERT_BENT(header()->n_shards, 2, "sections");
	ASSERT_BENT(header()->n_tensors, UINT32_MAX, "sections");
	ASSERT_BENT(header()->n_blocks, 1, "sections");
	ASSERT_BENT(header()->n_sums, 4, "sections");
	ASSERT_BENT(header()->shards_offset, 0, "sections");
	ASSERT_BENT(header()->tensors_offset, header()->tensors_offset + 8, "sections");
	ASSERT_BENT(header()->blocks_offset, UINT64_MAX, "sections");
	ASSERT_BENT(header()->sums_offset, header()->sums_offset - 8, "sections");
	ASSERT_BENT(header()->strings_offset, header()->strings_offset + 1, "sections");
	ASSERT_BENT(header()->strings_size, UINT64_MAX, "sections");
	ASSERT_BENT(header()->strings_size, header()->strings_size - 1, "sections");
}

static void bent_shards_are_refused(void **state)
{
	(void)state;
	ASSERT_BENT(shard_row()->first_sum, 2, "shard 0");
	ASSERT_BENT(shard_row()->n_sums, 3, "shard 0");
	ASSERT_BENT(shard_row()->n_sums, UINT32_MAX, "shard 0");
	ASSERT_BENT(shard_row()->name_offset, UINT32_MAX, "name");
	ASSERT_BENT(shard_row()->name_size, UINT32_MAX, "name");
	ASSERT_BENT(shard_row()->image_size, 4095, "tensor 1 lies outside");
}

static void bent_tensors_are_refused(void **state)
{
	(void)state;
	ASSERT_BENT(tensor_row(0)->offset, 4096 - 23, "outside");
	ASSERT_BENT(tensor_row(0)->offset, UINT64_MAX, "outside");
	ASSERT_BENT(tensor_row(2)->offset, 4097, "outside");
	ASSERT_BENT(tensor_row(0)->size, UINT64_MAX, "outside");
	ASSERT_BENT(tensor_row(0)->size, 23, "shape");
	ASSERT_BENT(tensor_row(0)->rank, 1, "shape");
	ASSERT_BENT(tensor_row(0)->rank, 255, "shape");
	ASSERT_BENT(tensor_row(0)->dtype, WIRE_DTYPE_F64, "shape");
	ASSERT_BENT(tensor_row(2)->dtype, 0, "shape");
	ASSERT_BENT(tensor_row(2)->dtype, UINT16_MAX, "shape");
	ASSERT_BENT(tensor_row(2)->encoding, 1, "shape");
	ASSERT_BENT(tensor_row(1)->shape_offset, 4, "shape");
	ASSERT_BENT(tensor_row(0)->shape_offset, UINT32_MAX - 7, "shape");
	ASSERT_BENT(tensor_row(2)->shard, 1, "shard or block");
	ASSERT_BENT(tensor_row(2)->block, N_BLOCKS, "shard or block");
	ASSERT_BENT(tensor_row(0)->name_offset, UINT32_MAX, "name");
	ASSERT_BENT(tensor_row(1)->name_size, 3, "name"); /* half a character */
}

static void a_shape_that_overflows_is_refused(void **state)
{
	uint64_t *shape = (void *)(memory + header()->strings_offset);

	(void)state;
	ASSERT_BENT(shape[2], 1ULL << 62, "shape"); /* times 4 bits: 0 when it wraps */
	ASSERT_BENT(shape[1], 4, "shape");
}

static int open_unhashed(void)
{
	struct table table;
	struct err err;

	return table_open(memory, size, NULL, &table, &err);
}

static void a_shape_with_a_zero_is_empty_whatever_the_rest(void **state)
{
	uint64_t *shape = (void *)(memory + header()->strings_offset);

	(void)state;
	shape[2] = 0;
	shape[3] = UINT64_MAX;
	assert_int_equal(open_unhashed(), 0);
	shape[2] = UINT64_MAX;
	shape[3] = 0;
	assert_int_equal(open_unhashed(), 0);
	ASSERT_BENT(tensor_row(0)->size, 0, "shape");
	ASSERT_BENT(shape[1], 0, "shape");
}

/* A table of one tensor of this shape, 34 bytes for each 32 elements of a row. */
static int open_quantised(const uint64_t *shape, uint8_t rank, uint64_t bytes)
{
	struct table table;
	struct err err;
	int code;

	tensors[0].dtype = WIRE_DTYPE_Q8_0;
	tensors[0].shape = shape;
	tensors[0].rank = rank;
	tensors[0].size = bytes;
	free(memory);
	size = table_size(&source);
	memory = malloc(size);
	assert_non_null(memory);
	table_write(&source, memory, hash);
	code = table_open(memory, size, hash, &table, &err);
	if (code == 0) {
		assert_int_equal(table.tensors[0].dtype, WIRE_DTYPE_Q8_0);
		assert_memory_equal(table_tensor_shape(&table, 0), shape, rank * sizeof *shape);
	}
	return code;
}

static void quantised_rows_are_whole_groups(void **state)
{
	(void)state;
	assert_int_equal(open_quantised((const uint64_t[]){3, 64}, 2, 204), 0);
	assert_int_equal(open_quantised((const uint64_t[]){32}, 1, 34), 0);
	assert_int_equal(open_quantised((const uint64_t[]){3, 64}, 2, 203), -WIRE_BAD_FILE);
	assert_int_equal(open_quantised((const uint64_t[]){3, 64}, 2, 192), -WIRE_BAD_FILE);
	assert_int_equal(open_quantised((const uint64_t[]){64, 3}, 2, 204), -WIRE_BAD_FILE);
	assert_int_equal(open_quantised((const uint64_t[]){48}, 1, 51), -WIRE_BAD_FILE);
	assert_int_equal(open_quantised(NULL, 0, 34), -WIRE_BAD_FILE);
	assert_int_equal(open_quantised((const uint64_t[]){1ULL << 59, 32}, 2, 0), -WIRE_BAD_FILE);
}

static void bent_blocks_are_refused(void **state)
{
	(void)state;
	ASSERT_BENT(block_row(0)->n_tensors, 4, "block 0");
	ASSERT_BENT(block_row(1)->first_tensor, 2, "block 1");
	ASSERT_BENT(block_row(1)->first_tensor, UINT32_MAX, "block 1");
	ASSERT_BENT(block_row(1)->component, 4, "kind");
	ASSERT_BENT(block_row(1)->is_head, 2, "kind");
	ASSERT_BENT(block_row(0)->name_size, UINT32_MAX, "name");
}

static void names_in_tables_are_utf8_without_nul(void **state)
{
	struct table_tensor *tensor = tensor_row(0);
	char *name = (char *)memory + header()->strings_offset + tensor->name_offset;

	(void)state;
	ASSERT_BENT(*name, '\0', "tensor 0 has no readable name");
	ASSERT_BENT(*name, '\xff', "tensor 0 has no readable name");
}

static void a_table_over_4_gib_has_no_size(void **state)
{
	(void)state;
	source.n_sums = 1U << 29;
	assert_int_equal(table_size(&source), 0);
	source.n_sums = 3;
	tensors[0].name.size = UINT32_MAX;
	assert_int_equal(table_size(&source), 0);
}

static void tensors_of_a_segment_lie_one_behind_the_other(void **state)
{
	static const uint64_t wanted[N_TENSORS] = {0, 0, 256};
	uint64_t offsets[N_TENSORS];
	uint64_t bytes[N_BLOCKS];
	struct table table;

	(void)state;
	tensor_row(2)->block = 1;
	assert_int_equal(table_open(memory, size, NULL, &table, NULL), 0);
	table_segment_offsets(&table, offsets, bytes);
	for (uint32_t i = 0; i < N_TENSORS; i++) {
		assert_int_equal(offsets[i], wanted[i]);
		assert_int_equal(table_segment_offset(&table, i), wanted[i]);
	}
	assert_int_equal(bytes[0], 24);
	assert_int_equal(bytes[1], 256); /* an empty tensor at the end of two bytes */
}

static void a_block_without_bytes_has_a_segment(void **state)
{
	uint64_t offsets[N_TENSORS];
	uint64_t bytes[N_BLOCKS];
	struct table table;

	(void)state;
	tensor_row(1)->block = 0;
	tensor_row(2)->block = 1;
	assert_int_equal(table_open(memory, size, NULL, &table, NULL), 0);
	table_segment_offsets(&table, offsets, bytes);
	assert_int_equal(offsets[1], 256);
	assert_int_equal(bytes[0], 258);
	assert_int_equal(offsets[2], 0);
	assert_int_equal(bytes[1], TABLE_SEGMENT_ALIGNMENT);
}

int main(void)
{
#define TABLE_TEST(name) cmocka_unit_test_setup_teardown(name, write_table, free_table)
	const struct CMUnitTest tests[] = {
		TABLE_TEST(what_is_written_reads_back),
		TABLE_TEST(an_empty_model_has_a_table),
		TABLE_TEST(names_that_are_no_utf8_are_written_readable),
		TABLE_TEST(a_flipped_bit_anywhere_is_noticed),
		TABLE_TEST(every_other_size_is_refused),
		TABLE_TEST(memory_must_be_aligned),
		TABLE_TEST(bent_headers_are_refused),
		TABLE_TEST(bent_shards_are_refused),
		TABLE_TEST(bent_tensors_are_refused),
		TABLE_TEST(a_shape_that_overflows_is_refused),
		TABLE_TEST(a_shape_with_a_zero_is_empty_whatever_the_rest),
		TABLE_TEST(quantised_rows_are_whole_groups),
		TABLE_TEST(bent_blocks_are_refused),
		TABLE_TEST(names_in_tables_are_utf8_without_nul),
		TABLE_TEST(a_table_over_4_gib_has_no_size),
		TABLE_TEST(tensors_of_a_segment_lie_one_behind_the_other),
		TABLE_TEST(a_block_without_bytes_has_a_segment),
	};

	return cmocka_run_group_tests_name("proto table", tests, NULL, NULL);
}
