/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generations that are spread over devices, through the whole load room: every byte of every
 * segment and image, wherever it came from, and exactly the memory that was announced.
 */
#include "tests/unit/daemon/load/spread.h"

#include <errno.h>

#include "daemon/format/segment_layout.h"

/* ---- cases: from files ---- */

static void every_way_to_place_the_blocks_comes_out_to_the_byte(void **state)
{
	/* 3 to the 5th; neither 7 nor 29 has a factor of it. */
	const uint32_t step = strcmp(*state, "host") == 0 ? 7 : 29;

	for (uint32_t i = 0; i < 243; i += step) {
		struct generation generation = {0};
		struct image_set_request request = {0};
		uint32_t rest = i;

		for (uint32_t j = 0; j < SPREAD_BLOCKS; j++) {
			generation.places[j] = (uint8_t)(rest % N_DEVICES);
			rest /= N_DEVICES;
		}
		if (i % 2 == 1) {
			spread_forget(&spread.model);
		}
		generation_fill(&generation, &request);
		generation_check(&generation);
		generation_fini(&generation);
	}
}

static void a_block_a_tensor_is_placed_alone(void **state)
{
	struct tensor_map *map = spread_read_header(true);

	(void)state;
	assert_int_equal(map->n_blocks, SPREAD_TENSORS);
	for (uint32_t i = 0; i < map->n_blocks; i++) {
		uint8_t places[SPREAD_TENSORS] = {0};
		struct image_set_request request = {.map = map,
						    .model_id = (const uint8_t *)"sixteen letters.",
						    .name = "m",
						    .places = places};
		struct image_set *set = image_set_new(&request);
		const struct fill_request fill = {.job = JOB,
						  .segment = BLOCK_BASE,
						  .file = spread.model.file,
						  .images = set,
						  .index = i,
						  .into = FILL_DEVICE,
						  .device = spread.devices[1]};
		struct load_result *result;

		loader_fill(spread.loader, &fill);
		result = spread_next();
		assert_int_equal(result->err.code, 0);
		if (map->blocks[i].size == 0) { /* there is no extent of nothing */
			assert_int_equal(result->extent->bytes, SEGMENT_ALIGNMENT);
		} else {
			spread_check_segment(result->extent, &spread.model, map, i);
		}
		(void)load_result_free(result);
		(void)image_set_free(set);
	}
	(void)tensor_map_free(map);
}

/* "b.3.w" begins at 3.3 MiB of the first file and ends at 10.3: three pages of 2 MiB are whole. */
static void large_pages_are_taken_only_where_all_of_them_is_filled(void **state)
{
	struct generation generation = {0};
	struct image_set_request request = {0};

	(void)state;
	generation_place(&generation, "b.0.w=1 b.1.w=1 b.2.w=1 top=1");
	generation_fill(&generation, &request);
	generation_check(&generation);             /* of which memory it takes, to the byte */
	if (generation.table->notice[0] == '\0') { /* else the kernel refused some */
		assert_int_equal(generation.table->huge_bytes, 6 * SPREAD_MIB);
	}
	generation_fini(&generation);
}

/* ---- cases: from an earlier generation ---- */

static void blocks_move_without_a_look_at_the_file(void **state)
{
	static const char *const ways[][2] = {
		{"", "b.0.w=1 b.1.w=1 b.3.w=2"},        /* from the host */
		{"b.0.w=1", "b.0.w=2"},                 /* from one device to another */
		{"b.0.w=1 b.3.w=1", ""},                /* back to the host */
		{"b.0.w=1 b.1.w=2", "b.0.w=2 b.2.w=1"}, /* all at once */
		{"b.0.w=1 b.1.w=2 b.2.w=1", "top=1"},
		{"b.0.w=1 b.2.w=2 b.3.w=1 top=1", "b.0.w=2 b.3.w=1 top=2"}, /* file 1: no image */
	};

	for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
		struct generation earlier = {0};
		struct generation next = {0};
		struct image_set_request first = {0};
		struct image_set_request second;
		struct sources sources;

		generation_place(&earlier, ways[i][0]);
		generation_place(&next, ways[i][1]);
		generation_fill(&earlier, &first);
		sources_take(&earlier, false, &sources);
		second = sources_request(&earlier, &sources);
		spread_spoil();
		if (i == 5) { /* its header is nowhere but in the file */
			generation_begin(&next, &second);
			assert_int_equal(generation_collect(&next, generation_submit(&next, NULL)),
					 1);
			assert_int_equal(next.images[1]->err.code, WIRE_CHANGED_WHILE_READING);
			assert_non_null(strstr(next.images[1]->err.text, "f1: "));
		} else {
			generation_fill(&next, &second);
			generation_check(&next);
		}
		generation_fini(&next);
		generation_fini(&earlier);
		spread_teardown(state);
		spread_setup(state);
	}
}

static void an_image_that_stays_is_in_the_next_table_too(void **state)
{
	struct generation earlier = {0};
	struct generation next = {0};
	struct image_set_request first = {0};
	struct image_set_request second;
	struct sources sources;
	const struct extent *images[SPREAD_FILES];

	(void)state;
	generation_fill(&earlier, &first);
	sources_take(&earlier, true, &sources);
	generation_place(&next, "b.0.w=1 b.2.x=2"); /* as copies of what the host has too */
	second = sources_request(&earlier, &sources);
	spread_spoil();
	generation_fill(&next, &second);
	generation_check_copies(&next);
	images[0] = sources.images[0].extent;
	images[1] = sources.images[1].extent;
	generation_check_table(&next, images);
	assert_int_equal(next.table->image_ino, earlier.table->image_ino);
	assert_int_equal(next.table->image_dev, earlier.table->image_dev);
	assert_int_equal(next.table->huge_bytes, earlier.table->huge_bytes);
	generation_fini(&next);
	generation_fini(&earlier);
}

/* Whoever could map a segment may have written to it: what the host gets is the file's. */
static void an_image_is_made_of_the_file_while_it_is_the_same(void **state)
{
	struct generation earlier = {0};
	struct generation next = {0};
	struct image_set_request first = {0};
	struct image_set_request second;
	struct sources sources;
	struct err err = {0};
	const uint32_t block = spread_block(spread.map, "b.0.w");

	(void)state;
	generation_place(&earlier, "b.0.w=1");
	generation_fill(&earlier, &first);
	assert_int_equal(host_corrupt(earlier.blocks[block]->extent, 5, &err), 0);
	sources_take(&earlier, false, &sources);
	second = sources_request(&earlier, &sources);
	generation_fill(&next, &second);
	generation_check(&next);
	generation_fini(&next);
	generation_fini(&earlier);
}

/* A segment of a device that is gone serves nobody; the file does. */
static void a_source_that_fails_gives_way_to_the_file(void **state)
{
	struct generation earlier = {0};
	struct generation next = {0};
	struct image_set_request first = {0};
	struct image_set_request second;
	struct sources sources;

	(void)state;
	generation_place(&earlier, "b.0.w=1 b.1.w=1");
	generation_place(&next, "b.0.w=2 b.1.w=2");
	generation_fill(&earlier, &first);
	sources_take(&earlier, true, &sources); /* nothing else is read */
	second = sources_request(&earlier, &sources);
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EIO}));
	generation_fill(&next, &second);
	assert_true(sys_fault_n_hits("pread") > 0);
	generation_check_copies(&next);
	generation_fini(&next);
	generation_fini(&earlier);
}

#define CASE_ON(test, subject)                                             \
	{                                                                  \
#		test " on " subject, test, spread_setup, spread_teardown, \
			(void *)(uintptr_t)subject                         \
	}
#define CASE(test) \
	CASE_ON(test, "host"), CASE_ON(test, "sim"), CASE_ON(test, "worker"), CASE_ON(test, "peers")

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(every_way_to_place_the_blocks_comes_out_to_the_byte),
		CASE(a_block_a_tensor_is_placed_alone),
		CASE_ON(large_pages_are_taken_only_where_all_of_them_is_filled, "host"),
		CASE(blocks_move_without_a_look_at_the_file),
		CASE(an_image_that_stays_is_in_the_next_table_too),
		CASE_ON(an_image_is_made_of_the_file_while_it_is_the_same, "host"),
		CASE_ON(a_source_that_fails_gives_way_to_the_file, "host"),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
