/* SPDX-License-Identifier: Apache-2.0 */
/* Segments of blocks and parts of files, against what a look at each byte says. */
#include "base/err.h"
#include "tests/support/unit.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/format/blocks.h"
#include "daemon/format/segment_layout.h"

#define MAX_TENSORS 24U
#define MAX_BLOCKS  6U
#define MAX_FILES   3U
#define MAX_BYTES   4096U /* of a file */
#define PAGE        64U   /* small, so that parts share pages */

/* A model of several files whose tensors lie anywhere, with gaps between them. */
static struct {
	struct tensor tensors[MAX_TENSORS];
	struct block blocks[MAX_BLOCKS];
	struct tensor_map files[MAX_FILES];
	struct tensor_map *parts[MAX_FILES];
	struct tensor_map map;
	uint8_t places[MAX_BLOCKS];
} model;

static uint32_t random_below(uint32_t bound)
{
	return (uint32_t)rand() % bound; /* NOLINT(concurrency-mt-unsafe) */
}

static void count_tensor(uint32_t tensor)
{
	struct block *block = &model.blocks[model.tensors[tensor].block];

	if (block->n_tensors++ == 0) {
		block->first_tensor = tensor;
	}
	block->size += model.tensors[tensor].size;
}

static void make_file(uint32_t file, uint32_t n_blocks)
{
	struct tensor_map *map = &model.files[file];
	uint64_t at = random_below(200);

	*map = (struct tensor_map){.data_offset = at};
	while (random_below(8) != 0 && map->n_tensors < MAX_TENSORS / MAX_FILES) {
		const uint32_t index = model.map.n_tensors++;

		at += random_below(3) == 0 ? random_below(100) : 0;
		model.tensors[index] =
			(struct tensor){.offset = at,
					.size = random_below(4) == 0 ? 0 : random_below(300),
					.block = random_below(n_blocks),
					.shard = file};
		at += model.tensors[index].size;
		map->n_tensors++;
		count_tensor(index);
	}
	map->file_size = at + random_below(3) * 7;
	model.parts[file] = map;
}

static void make_model(void)
{
	const uint32_t n_files = 1 + random_below(MAX_FILES);
	const uint32_t n_blocks = 1 + random_below(MAX_BLOCKS);

	memset(&model, 0, sizeof model);
	model.map = (struct tensor_map){.tensors = model.tensors,
					.blocks = model.blocks,
					.n_blocks = n_blocks,
					.parts = model.parts,
					.n_parts = n_files};
	for (uint32_t i = 0; i < n_files; i++) {
		make_file(i, n_blocks);
	}
	for (uint32_t i = 0; i < n_blocks; i++) {
		model.places[i] = (uint8_t)random_below(3);
	}
}

/* Byte by byte: 1 has to be filled, 0 must not be, 2 may be either (gaps). */
static void judge_file(uint32_t file, uint8_t *bytes)
{
	memset(bytes, 2, MAX_BYTES);
	memset(bytes, 1, model.files[file].data_offset);
	for (uint32_t i = 0; i < model.map.n_tensors; i++) {
		const struct tensor *tensor = &model.tensors[i];

		if (tensor->shard == file) {
			memset(bytes + tensor->offset, model.places[tensor->block] == 0 ? 1 : 0,
			       tensor->size);
		}
	}
}

static void check_file(uint32_t file)
{
	uint8_t bytes[MAX_BYTES];
	uint8_t pages[MAX_BYTES / PAGE] = {0};
	struct part_walk walk = {.file = file};
	struct file_part part;
	uint64_t at = 0;
	uint64_t n_pages = 0;
	bool is_first = true;

	judge_file(file, bytes);
	while (file_part_next(&model.map, model.places, &walk, &part)) {
		assert_true(part.bytes > 0);
		assert_true(is_first ? part.offset >= at : part.offset > at);
		for (; at < part.offset; at++) {
			assert_true(bytes[at] != 1);
		}
		for (; at < part.offset + part.bytes; at++) {
			assert_true(bytes[at] != 0);
			pages[at / PAGE] = 1;
		}
		is_first = false;
	}
	assert_true(at <= model.files[file].file_size);
	for (; at < model.files[file].file_size; at++) {
		assert_true(bytes[at] != 1);
	}
	assert_false(file_part_next(&model.map, model.places, &walk, &part));
	for (uint32_t i = 0; i < MAX_BYTES / PAGE; i++) {
		n_pages += pages[i];
	}
	assert_int_equal(file_part_pages(&model.map, model.places, file, PAGE), n_pages);
}

static void parts_are_the_header_and_what_lies_on_the_host(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < 20000; round++) {
		make_model();
		for (uint32_t i = 0; i < model.map.n_parts; i++) {
			check_file(i);
		}
	}
}

static void without_places_a_file_is_one_part(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < 2000; round++) {
		make_model();
		for (uint32_t i = 0; i < model.map.n_parts; i++) {
			struct part_walk walk = {.file = i};
			struct file_part part = {0};
			const uint64_t size = model.files[i].file_size;

			assert_true(file_part_next(&model.map, NULL, &walk, &part) == (size > 0));
			assert_int_equal(part.offset, 0);
			assert_int_equal(part.bytes, size);
			assert_false(file_part_next(&model.map, NULL, &walk, &part));
			assert_int_equal(file_part_pages(&model.map, NULL, i, PAGE),
					 (size + PAGE - 1) / PAGE);
		}
	}
}

static void tensors_of_a_segment_lie_one_behind_the_other(void **state)
{
	uint64_t all[MAX_BLOCKS];

	(void)state;
	for (uint32_t round = 0; round < 20000; round++) {
		make_model();
		block_segment_bytes_all(&model.map, all);
		for (uint32_t i = 0; i < model.map.n_blocks; i++) {
			uint64_t bytes = 0;

			for (uint32_t j = 0; j < model.map.n_tensors; j++) {
				if (model.tensors[j].block == i) {
					bytes = (bytes + 255) / 256 * 256 + model.tensors[j].size;
				}
			}
			bytes = bytes == 0 ? 256 : bytes; /* there is no extent of nothing */
			assert_int_equal(block_segment_bytes(&model.map, i), bytes);
			assert_int_equal(all[i], bytes);
		}
	}
}

static void a_segment_that_cannot_be_counted_is_larger_than_all_memory(void **state)
{
	static const uint64_t sizes[] = {UINT64_MAX, UINT64_MAX - 300, UINT64_MAX - 10, 1};

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		struct tensor tensors[2] = {{.size = sizes[i]}, {.size = sizes[3] + 600}};
		struct block block = {.n_tensors = 2};
		struct tensor_map map = {.tensors = tensors,
					 .n_tensors = 2,
					 .blocks = &block,
					 .n_blocks = 1};
		uint64_t all = 0;

		block_segment_bytes_all(&map, &all);
		assert_int_equal(all, UINT64_MAX);
		assert_int_equal(block_segment_bytes(&map, 0), UINT64_MAX);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parts_are_the_header_and_what_lies_on_the_host),
		cmocka_unit_test(without_places_a_file_is_one_part),
		cmocka_unit_test(tensors_of_a_segment_lie_one_behind_the_other),
		cmocka_unit_test(a_segment_that_cannot_be_counted_is_larger_than_all_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
