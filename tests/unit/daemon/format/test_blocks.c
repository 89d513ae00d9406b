/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors -> blocks, by name and size alone. */
#include "base/err.h"
#include "tests/support/heap_watch.h"
#include "tests/support/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/blocks.h"
#include "proto/gen/wire_code.h"

#define MIB  (1ULL << 20)
#define MOST 32U

/* Tensors of a file in file order, and the blocks that came of them. */
struct given {
	struct tensor tensors[MOST];
	uint32_t n_tensors;
	void *memory;
	const struct block *blocks;
	uint32_t n_blocks;
};

static void add_tensor(struct given *given, const char *name, uint64_t size)
{
	assert_true(given->n_tensors < MOST);
	given->tensors[given->n_tensors++] =
		(struct tensor){.name = name, .name_size = (uint32_t)strlen(name), .size = size};
}

static void compute(struct given *given)
{
	uint32_t n_tensors = 0;
	uint64_t bytes = 0;
	uint64_t block_bytes = 0;

	assert_int_equal(blocks_compute(given->tensors, given->n_tensors, &given->memory,
					&given->blocks, &given->n_blocks, NULL),
			 0);
	/* Each tensor is in one block, and the blocks know. */
	for (uint32_t i = 0; i < given->n_tensors; i++) {
		const struct tensor *tensor = &given->tensors[i];

		assert_true(tensor->block < given->n_blocks);
		assert_true(given->blocks[tensor->block].first_tensor <= i);
		bytes += tensor->size;
	}
	for (uint32_t i = 0; i < given->n_blocks; i++) {
		const struct block *block = &given->blocks[i];

		assert_int_equal(given->tensors[block->first_tensor].block, i);
		assert_true(block->n_tensors > 0);
		n_tensors += block->n_tensors;
		block_bytes += block->size;
	}
	assert_int_equal(n_tensors, given->n_tensors);
	assert_int_equal(block_bytes, bytes);
}

/* One tensor a name, in file order; the blocks' names with blanks between. */
static void expect_blocks(const char *const *names, const char *wanted)
{
	struct given given = {0};
	char found[1024] = "";
	size_t used = 0;

	for (; *names != NULL; names++) {
		add_tensor(&given, *names, 4);
	}
	compute(&given);
	for (uint32_t i = 0; i < given.n_blocks; i++) {
		used += (size_t)snprintf(&found[used], sizeof found - used, "%s%.*s",
					 i == 0 ? "" : " ", (int)given.blocks[i].name_size,
					 given.blocks[i].name);
		assert_true(used < sizeof found);
	}
	assert_string_equal(found, wanted);
	free(given.memory);
}

#define EXPECT_BLOCKS(wanted, ...) expect_blocks((const char *const[]){__VA_ARGS__, NULL}, wanted)

static void the_first_number_of_a_name_closes_its_block(void **state)
{
	(void)state;
	EXPECT_BLOCKS("double_blocks.7", "double_blocks.7.img_attn.qkv.weight");
	EXPECT_BLOCKS("encoder.block.11", "encoder.block.11.layer.0.weight");
	EXPECT_BLOCKS("model.diffusion_model.input_blocks.4",
		      "model.diffusion_model.input_blocks.4.1.proj.weight");
	EXPECT_BLOCKS("3", "3.weight");
	EXPECT_BLOCKS("a.3", "a.3");
	EXPECT_BLOCKS("(head)", "img_in", "final_layer.weight", "", ".", "a..b", "4x.a", "a.x4");
	EXPECT_BLOCKS(".5", ".5.a");
	EXPECT_BLOCKS("a..5", "a..5.a");
}

static void blocks_of_a_stem_are_in_natural_order(void **state)
{
	(void)state;
	EXPECT_BLOCKS("b.0 b.1 b.2 b.7 b.10 b.11", "b.0.w", "b.1.w", "b.10.w", "b.11.w", "b.2.w",
		      "b.7.w");
	EXPECT_BLOCKS("b.7 b.007 b.08 b.10", "b.10", "b.08", "b.007", "b.7");
	EXPECT_BLOCKS("b.0 b.00 b.1", "b.1", "b.00", "b.0");
	EXPECT_BLOCKS("b.99999999999999999999998 b.99999999999999999999999",
		      "b.99999999999999999999999.w", "b.99999999999999999999998.w");
}

static void stems_keep_their_place_in_the_file(void **state)
{
	(void)state;
	EXPECT_BLOCKS("double_blocks.0 double_blocks.10 (head) single_blocks.2 single_blocks.10",
		      "double_blocks.10.w", "double_blocks.0.w", "img_in.w", "single_blocks.10.w",
		      "single_blocks.2.w", "txt_in.w", "double_blocks.0.b");
	EXPECT_BLOCKS("z.1 z.2 a.0", "z.2.w", "a.0.w", "z.1.w");
	/* A stem is not the beginning of another one. */
	EXPECT_BLOCKS("a.b.0 a.0 ab.0", "a.b.0.w", "a.0.w", "ab.0.w");
}

/* Of the block that the tensor is in. */
static void expect_block_name(const struct given *given, uint32_t tensor, const char *wanted)
{
	const struct block *block = &given->blocks[given->tensors[tensor].block];

	assert_int_equal(block->name_size, strlen(wanted));
	assert_memory_equal(block->name, wanted, block->name_size);
}

static void each_component_has_its_own_head(void **state)
{
	struct given given = {0};
	static const struct {
		const char *name;
		enum component component;
		bool is_head;
	} rows[] = {
		{"model.diffusion_model.out.weight", COMPONENT_UNET, true},
		{"model.diffusion_model.input_blocks.0.w", COMPONENT_UNET, false},
		{"first_stage_model.post.w", COMPONENT_VAE, true},
		{"vae.decoder.up.0.w", COMPONENT_VAE, false},
		{"vae.x", COMPONENT_VAE, true},
		{"cond_stage_model.t.layers.0.w", COMPONENT_CLIP, false},
		{"conditioner.embedders.0.w", COMPONENT_CLIP, false},
		{"text_encoders.t5.shared.w", COMPONENT_CLIP, true},
		{"vaex.w", COMPONENT_WHOLE, true},
		{"model.diffusion_model", COMPONENT_WHOLE, true},
	};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		add_tensor(&given, rows[i].name, 8);
	}
	compute(&given);
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		const struct block *block = &given.blocks[given.tensors[i].block];

		assert_int_equal(block->component, rows[i].component);
		assert_int_equal(block->is_head, rows[i].is_head);
	}
	/* first_stage_model.post and vae.x share a head; four heads and four numbered blocks. */
	assert_int_equal(given.tensors[2].block, given.tensors[4].block);
	assert_int_equal(given.n_blocks, 8);
	expect_block_name(&given, 0, "model.diffusion_model.(head)");
	expect_block_name(&given, 4, "first_stage_model.(head)");
	expect_block_name(&given, 7, "text_encoders.(head)");
	expect_block_name(&given, 8, "(head)");
	free(given.memory);
}

static void a_block_over_1_gib_is_split_between_tensors(void **state)
{
	struct given given = {0};

	(void)state;
	add_tensor(&given, "b.1.a", 512 * MIB);
	add_tensor(&given, "b.1.b", 512 * MIB); /* exactly 1 GiB so far */
	add_tensor(&given, "b.1.c", 1);
	add_tensor(&given, "b.1.d", 3072 * MIB); /* alone over it */
	add_tensor(&given, "b.1.e", 0);
	add_tensor(&given, "b.1.f", 5);
	add_tensor(&given, "b.2.a", 0);
	add_tensor(&given, "b.2.b", 2048 * MIB); /* not split from an empty one */
	add_tensor(&given, "x", 1024 * MIB);
	add_tensor(&given, "y", 1);
	compute(&given);
	assert_int_equal(given.n_blocks, 7);
	assert_memory_equal(given.blocks[0].name, "b.1", given.blocks[0].name_size);
	assert_int_equal(given.blocks[0].size, 1024 * MIB);
	assert_int_equal(given.blocks[0].n_tensors, 2);
	assert_int_equal(given.blocks[1].name_size, 5);
	assert_memory_equal(given.blocks[1].name, "b.1#2", 5);
	assert_int_equal(given.blocks[1].size, 1);
	assert_memory_equal(given.blocks[2].name, "b.1#3", 5);
	assert_int_equal(given.blocks[2].size, 3072 * MIB);
	assert_memory_equal(given.blocks[3].name, "b.1#4", 5);
	assert_int_equal(given.tensors[4].block, 3);
	assert_int_equal(given.blocks[3].size, 5);
	assert_int_equal(given.blocks[4].n_tensors, 2);
	assert_int_equal(given.blocks[4].size, 2048 * MIB);
	assert_memory_equal(given.blocks[6].name, "(head)#2", 8);
	assert_int_equal(given.blocks[6].name_size, 8);
	assert_true(given.blocks[5].is_head && given.blocks[6].is_head);
	free(given.memory);
}

/* Of a name alone, as of a tensor that is called so. */
static void expect_name(const char *name, enum component wanted, bool is_wanted_head)
{
	enum component component;
	bool is_head;

	block_read_name(name, (uint32_t)strlen(name), &component, &is_head);
	assert_int_equal(component, wanted);
	assert_int_equal(is_head, is_wanted_head);
}

static void a_blocks_name_tells_what_its_tensors_names_told(void **state)
{
	static const char *const tensors[] = {
		"model.diffusion_model.out.weight",
		"model.diffusion_model.input_blocks.0.w",
		"first_stage_model.post.w",
		"vae.decoder.up.0.w",
		"conditioner.embedders.0.w",
		"text_encoders.t5.shared.w",
		"double_blocks.7",
		"img_in",
	};
	struct given given = {0};

	(void)state;
	for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
		add_tensor(&given, tensors[i], 8);
	}
	compute(&given);
	for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
		const struct block *block = &given.blocks[given.tensors[i].block];
		char name[64];

		expect_name(tensors[i], block->component, block->is_head);
		for (uint32_t part = 2; part < 2000; part *= 9) {
			memcpy(name, block->name, block->name_size);
			(void)snprintf(&name[block->name_size], 16, "#%u", part);
			expect_name(name, block->component, block->is_head);
		}
	}
	free(given.memory);
	expect_name("(head)", COMPONENT_WHOLE, true);
	expect_name("(head)#2", COMPONENT_WHOLE, true);
	expect_name("vae.(head)#3", COMPONENT_VAE, true);
	expect_name("", COMPONENT_WHOLE, true);
	expect_name("7", COMPONENT_WHOLE, false);
	expect_name("#2", COMPONENT_WHOLE, true);
	/* No further part of a block, but part of a tensor's name. */
	expect_name("b.7#", COMPONENT_WHOLE, true);
	expect_name("b.7#x", COMPONENT_WHOLE, true);
	expect_name("b.7#2.w", COMPONENT_WHOLE, true);
}

/* fault: M10 */
static void without_memory_there_are_no_blocks(void **state)
{
	struct given given = {0};
	struct err err = {0};

	(void)state;
	add_tensor(&given, "b.0.w", 4);
	for (size_t nth = 1; nth <= 2; nth++) {
		size_t n_live = heap.n_live;

		heap_watch_begin();
		heap.fail_at = nth;
		assert_int_equal(blocks_compute(given.tensors, 1, &given.memory, &given.blocks,
						&given.n_blocks, &err),
				 -WIRE_NO_MEMORY);
		heap_watch_begin();
		assert_int_equal(err.code, WIRE_NO_MEMORY);
		assert_null(given.memory);
		assert_int_equal(heap.n_live, n_live);
	}
	compute(&given);
	free(given.memory);
}

/* A map as format_parse makes one, by name and size alone. */
static struct tensor_map *map_of(const char *const *names, uint32_t n_names)
{
	struct tensor_map *map = calloc(1, sizeof *map);
	struct tensor *tensors = calloc(n_names, sizeof *tensors);

	assert_non_null(map);
	assert_non_null(tensors);
	for (uint32_t i = 0; i < n_names; i++) {
		tensors[i] = (struct tensor){.name = names[i],
					     .name_size = (uint32_t)strlen(names[i]),
					     .size = i};
	}
	*map = (struct tensor_map){.n_tensors = n_names,
				   .tensors = tensors,
				   .tensor_memory = tensors};
	assert_int_equal(blocks_compute(tensors, n_names, &map->block_memory, &map->blocks,
					&map->n_blocks, NULL),
			 0);
	return map;
}

static void a_tensor_can_be_a_block_of_its_own(void **state)
{
	static const char *const names[] = {"b.10.w", "img_in", "b.2.w", "b.10.a", "out"};
	static const char *const wanted[] = {"b.2.w", "b.10.w", "b.10.a", "img_in", "out"};
	struct tensor_map *map = map_of(names, 5);

	(void)state;
	assert_int_equal(blocks_by_tensor(map, NULL), 0);
	assert_int_equal(map->n_blocks, 5);
	for (uint32_t i = 0; i < 5; i++) {
		const struct block *block = &map->blocks[i];
		const struct tensor *tensor = &map->tensors[block->first_tensor];

		assert_int_equal(block->name_size, strlen(wanted[i]));
		assert_memory_equal(block->name, wanted[i], block->name_size);
		assert_int_equal(block->n_tensors, 1);
		assert_int_equal(block->size, tensor->size);
		assert_int_equal(tensor->block, i);
		assert_int_equal(block->is_head, i >= 3);
		assert_ptr_equal(block->name, tensor->name);
	}
	(void)tensor_map_free(map);
}

static void without_memory_the_blocks_stay_as_they_were(void **state)
{
	static const char *const names[] = {"b.1.w", "b.1.a", "out"};
	struct tensor_map *map = map_of(names, 3);

	(void)state;
	for (uint32_t i = 1; i <= 2; i++) {
		heap_watch_begin();
		heap.fail_at = i;
		assert_int_equal(blocks_by_tensor(map, NULL), -WIRE_NO_MEMORY);
		heap.fail_at = 0;
		assert_int_equal(map->n_blocks, 2);
		assert_int_equal(map->tensors[1].block, 0);
	}
	(void)tensor_map_free(map);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_number_of_a_name_closes_its_block),
		cmocka_unit_test(blocks_of_a_stem_are_in_natural_order),
		cmocka_unit_test(stems_keep_their_place_in_the_file),
		cmocka_unit_test(each_component_has_its_own_head),
		cmocka_unit_test(a_block_over_1_gib_is_split_between_tensors),
		cmocka_unit_test(a_blocks_name_tells_what_its_tensors_names_told),
		cmocka_unit_test(without_memory_there_are_no_blocks),
		cmocka_unit_test(a_tensor_can_be_a_block_of_its_own),
		cmocka_unit_test(without_memory_the_blocks_stay_as_they_were),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
