/* SPDX-License-Identifier: Apache-2.0 */
/* Files that are one model: joined, compared with their index, refused by name. */
#include "tests/support/header_file.h"
#include "tests/support/heap_watch.h"

#include "daemon/format/join.h"
#include "proto/gen/wire_code.h"

#define N_PARTS 3

static const char *const names[N_PARTS] = {"m-1.safetensors", "m-2.safetensors", "m-3.safetensors"};

/* Tensors named by the letters of 'letters', four bytes each. */
static struct tensor_map *map_of(const char *letters)
{
	struct text json = {0};
	struct header_file file;
	struct tensor_map *map = NULL;
	uint64_t n_bytes = 4 * strlen(letters);

	text_add(&json, "{");
	for (uint64_t i = 0; letters[i] != '\0'; i++) {
		text_add(
			&json,
			"%s\"blk.%c.w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%llu,%llu]}",
			i == 0 ? "" : ",", letters[i], (unsigned long long)(4 * i),
			(unsigned long long)(4 * i + 4));
	}
	text_add(&json, "}");
	file = header_file_sized(json.text, json.size, n_bytes);
	assert_int_equal(header_file_read(&file, &map, NULL), 0);
	free(file.bytes);
	free(json.text);
	return map;
}

struct given {
	struct join_part parts[N_PARTS];
	struct tensor_map *map;
	struct err err;
};

/* "ab c d": which letters are in which file. */
static int join(struct given *given, const char *one, const char *two, const char *three,
		const char *index)
{
	const char *const letters[N_PARTS] = {one, two, three};
	const struct join_index whole = {
		.name = "m.index.json",
		.bytes = index,
		.size = index == NULL ? 0 : strlen(index),
	};
	int code;

	memset(given, 0, sizeof *given);
	for (uint32_t i = 0; i < N_PARTS; i++) {
		given->parts[i] = (struct join_part){names[i], map_of(letters[i])};
		if (index == NULL) { /* then they say it themselves */
			given->parts[i].map->format = FORMAT_GGUF;
			given->parts[i].map->split_no = (uint16_t)i;
			given->parts[i].map->split_count = N_PARTS;
		}
	}
	code = join_maps(given->parts, N_PARTS, &whole, &given->map, &given->err);
	for (uint32_t i = 0; i < N_PARTS; i++) {
		assert_true((given->parts[i].map == NULL) == (code == 0));
		(void)tensor_map_free(given->parts[i].map);
	}
	return code;
}

static void expect_refusal(const char *index, const char *words)
{
	struct given given;
	int code = join(&given, "ab", "c", "d", index);

	if (code != -WIRE_BAD_FILE || strstr(given.err.text, words) == NULL) {
		fail_msg("%s\n%d: %s", index, code, given.err.text);
	}
	assert_non_null(strstr(given.err.text, "index m.index.json: "));
}

#define ENTRY(letter, file) "\"blk." letter ".w\":\"m-" file ".safetensors\""
#define GOOD                ENTRY("a", "1") "," ENTRY("b", "1") "," ENTRY("c", "2")
#define INDEX(entries)      "{\"metadata\":{\"total_size\":16},\"weight_map\":{" entries "}}"

static void tensors_and_blocks_are_those_of_all_files(void **state)
{
	struct given given;

	(void)state;
	assert_int_equal(join(&given, "ab", "", "d", NULL), 0);
	assert_int_equal(given.map->format, FORMAT_GGUF);
	assert_int_equal(given.map->n_tensors, 3);
	assert_int_equal(tensor_map_n_shards(given.map), N_PARTS);
	assert_int_equal(given.map->tensors[1].shard, 0);
	assert_int_equal(given.map->tensors[2].shard, 2);
	assert_memory_equal(given.map->tensors[2].name, "blk.d.w", 7);
	assert_int_equal(given.map->n_blocks, 1); /* "(head)": letters are no numbers */
	assert_int_equal(given.map->blocks[0].n_tensors, 3);
	assert_int_equal(given.map->file_size, tensor_map_shard_size(given.map, 0) +
						       tensor_map_shard_size(given.map, 1) +
						       tensor_map_shard_size(given.map, 2));
	(void)tensor_map_free(given.map);
}

static void a_true_index_is_accepted(void **state)
{
	static const char *const good[] = {
		INDEX(GOOD "," ENTRY("d", "3")),
		INDEX(ENTRY("d", "3") "," ENTRY("a", "1") "," ENTRY("c", "2")), /* one unnamed */
		" { \"weight_map\" : {" GOOD "," ENTRY("\\u0064", "3") "} , \"x\" : [1.5e3, {}] } ",
	};
	struct given given;

	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
		if (join(&given, "ab", "c", "d", good[i]) < 0) {
			fail_msg("%s: %s", good[i], given.err.text);
		}
		(void)tensor_map_free(given.map);
	}
}

static void an_index_that_lies_is_refused(void **state)
{
	(void)state;
	expect_refusal(INDEX(GOOD), "no tensor of it is in m-3.safetensors, which was given too");
	expect_refusal(
		INDEX(GOOD "," ENTRY("d", "2")),
		"tensor \"blk.d.w\": is not in the file that is said, but in m-3.safetensors");
	expect_refusal(INDEX(GOOD "," ENTRY("d", "4")),
		       "tensor \"blk.d.w\": is said to be in a file that was not given, m-4");
	expect_refusal(INDEX(GOOD "," ENTRY("e", "3")),
		       "tensor \"blk.e.w\": is in none of the files; it should be in m-3");
	expect_refusal(INDEX(GOOD "," ENTRY("d", "3") "," ENTRY("d", "3")), "is named twice");
	expect_refusal(INDEX(GOOD "," ENTRY("d", "/../3")), "in a file that was not given");
	expect_refusal(INDEX(""), "no tensor of it is in m-1.safetensors");
}

static void what_is_no_index_is_refused(void **state)
{
	static const char *const bad[][2] = {
		{"", "the index ends in the middle"},
		{"{}", "there is no weight_map"},
		{"[]", "'{' is missing"},
		{"{\"weight_map\":[]}", "'{' is missing"},
		{"{\"weight_map\":{\"blk.a.w\":1}}", "'\"' is missing"},
		{"{\"weight_map\":{\"blk.a.w\":\"m-1\\u0000\"}}", "holds NUL"},
		{"{\"weight_map\":{},\"weight_map\":{}}", "a second weight_map"},
		{INDEX(GOOD "," ENTRY("d", "3")) "x", "text after the index's last brace"},
		{"{\"weight_map\":{" GOOD, "the index ends in the middle"},
		{"{\"metadata\":tru}", "another kind"},
	};
	char deep[80] = "{\"metadata\":";

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		expect_refusal(bad[i][0], bad[i][1]);
	}
	memset(&deep[strlen(deep)], '[', 40);
	expect_refusal(deep, "32 levels deep");
}

static void a_tensor_in_two_files_is_refused(void **state)
{
	struct given given;

	(void)state;
	assert_int_equal(join(&given, "ab", "c", "b", NULL), -WIRE_BAD_FILE);
	assert_string_equal(given.err.text,
			    "tensor \"blk.b.w\" is in two files, m-1.safetensors and "
			    "m-3.safetensors");
}

/* Without an index. */
static void expect_parts(enum format format, uint16_t split_no, uint16_t split_count, int code,
			 const char *words)
{
	struct join_part parts[] = {{names[0], map_of("a")}, {names[1], map_of("b")}};
	const struct join_index none = {0};
	struct tensor_map *map = NULL;
	struct err err = {0};

	for (uint16_t i = 0; i < 2; i++) {
		parts[i].map->format = format;
		parts[i].map->split_no = i;
		parts[i].map->split_count = 2;
	}
	parts[1].map->split_no = split_no;
	parts[1].map->split_count = split_count;
	assert_int_equal(join_maps(parts, 2, &none, &map, &err), -code);
	if (strstr(err.text, words) == NULL) {
		fail_msg("%s", err.text);
	}
	(void)tensor_map_free(parts[0].map);
	(void)tensor_map_free(parts[1].map);
}

static void without_an_index_each_is_the_part_that_it_says(void **state)
{
	(void)state;
	expect_parts(FORMAT_SAFETENSORS, 1, 2, WIRE_UNSUPPORTED, "came without an index");
	expect_parts(FORMAT_GGUF, 0, 0, WIRE_BAD_FILE, "m-2.safetensors is no part of a model");
	expect_parts(FORMAT_GGUF, 2, 3, WIRE_BAD_FILE,
		     "m-2.safetensors says that it is part 3 of 3; it was given as part 2 of 2");
	expect_parts(FORMAT_GGUF, 0, 2, WIRE_BAD_FILE, "part 1 of 2; it was given as part 2");
	expect_parts(FORMAT_GGUF, UINT16_MAX, 2, WIRE_BAD_FILE, "part 65536 of 2");
}

static void formats_that_differ_are_refused(void **state)
{
	struct join_part parts[] = {{names[0], map_of("a")}, {names[1], map_of("b")}};
	const struct join_index none = {0};
	struct tensor_map *map = NULL;
	struct err err = {0};

	(void)state;
	parts[1].map->format = FORMAT_RAW;
	assert_int_equal(join_maps(parts, 2, &none, &map, &err), -WIRE_UNSUPPORTED);
	assert_non_null(strstr(err.text, "m-1.safetensors and m-2.safetensors are of different"));
	(void)tensor_map_free(parts[0].map);
	(void)tensor_map_free(parts[1].map);
}

static void any_allocation_may_fail(void **state)
{
	const struct join_index index = {.name = "i",
					 .bytes = INDEX(GOOD "," ENTRY("d", "3")),
					 .size = strlen(INDEX(GOOD "," ENTRY("d", "3")))};
	int code = -1;

	(void)state;
	for (size_t n = 1; code != 0; n++) {
		struct join_part parts[] = {{names[0], map_of("ab")},
					    {names[1], map_of("c")},
					    {names[2], map_of("d")}};
		struct tensor_map *map = NULL;
		size_t n_live = heap.n_live;
		struct err err = {0};

		assert_true(n < 20);
		heap_watch_begin();
		heap.fail_at = n;
		code = join_maps(parts, N_PARTS, &index, &map, &err);
		heap.fail_at = 0;
		if (code != 0) {
			assert_int_equal(code, -WIRE_NO_MEMORY);
			assert_int_equal(err.code, WIRE_NO_MEMORY);
			assert_int_equal(heap.n_live, n_live);
		}
		for (uint32_t i = 0; i < N_PARTS; i++) {
			(void)tensor_map_free(parts[i].map);
		}
		(void)tensor_map_free(map);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensors_and_blocks_are_those_of_all_files),
		cmocka_unit_test(a_true_index_is_accepted),
		cmocka_unit_test(an_index_that_lies_is_refused),
		cmocka_unit_test(what_is_no_index_is_refused),
		cmocka_unit_test(a_tensor_in_two_files_is_refused),
		cmocka_unit_test(without_an_index_each_is_the_part_that_it_says),
		cmocka_unit_test(formats_that_differ_are_refused),
		cmocka_unit_test(any_allocation_may_fail),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
