/* SPDX-License-Identifier: Apache-2.0 */
/* What models of several files are called. */
#include "base/shard_name.h"
#include "tests/support/unit.h"

#include <stdio.h>
#include <string.h>

static void names_are_those_of_the_whole(void **state)
{
	static const char *const names[][2] = {
		{"m.safetensors.index.json", "m.safetensors"},
		{"m.safetensors.index.fp16.json", "m.fp16.safetensors"},
		{"m.safetensors.fp16.index.json", "m.safetensors.fp16"},
		{"m.index.fp16.json", "m.fp16"},
		{"m.index.json", "m"},
		{"m.index..json", "m"},
		{"m-00001-of-00003.gguf", "m.gguf"},
		{"m-00002-of-00003.fp16.safetensors", "m.fp16.safetensors"},
		{"a-b-1-of-2", "a-b"},
		{"best-of-all-1-of-2.gguf", "best-of-all.gguf"},
		{"a-1-of-2-3-of-4", "a-1-of-2"},
		/* no names of parts */
		{"m.safetensors", "m.safetensors"},
		{".index.json", ".index.json"},
		{"m.index.jso", "m.index.jso"},
		{"m.index.xjson", "m.index.xjson"},
		{"m-1-of-1234567890", "m-1-of-1234567890"},
		{"1-of-2", "1-of-2"},
		{"-1-of-2", "-1-of-2"},
		{"m-of-2", "m-of-2"},
		{"m-1-of-", "m-1-of-"},
		{"json", "json"},
		{"", ""},
	};
	char name[128];

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		(void)snprintf(name, sizeof name, "%s", names[i][0]);
		shard_name_of_model(name);
		assert_string_equal(name, names[i][1]);
		assert_true(strlen(name) <= strlen(names[i][0]));
	}
}

static void numbers_are_read(void **state)
{
	struct shard_number number = {0};

	(void)state;
	assert_true(shard_name_number("m-00002-of-00003.gguf", &number));
	assert_int_equal(number.start, 1);
	assert_int_equal(number.end, 16);
	assert_int_equal(number.n_digits, 5);
	assert_int_equal(number.number, 2);
	assert_int_equal(number.count, 3);
	assert_true(shard_name_number("m-7-of-999999999", &number));
	assert_int_equal(number.n_digits, -1);
	assert_int_equal(number.count, 999999999);
	assert_false(shard_name_number("m-1-of-1234567890", &number));
	assert_false(shard_name_number("m", &number));
}

static void an_index_is_known_by_its_name(void **state)
{
	(void)state;
	assert_true(shard_name_is_index("m.safetensors.index.json"));
	assert_true(shard_name_is_index("m.safetensors.index.fp16.json"));
	assert_false(shard_name_is_index("m.index.xjson"));
	assert_false(shard_name_is_index(".index.json"));
	assert_false(shard_name_is_index("m.json"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_are_those_of_the_whole),
		cmocka_unit_test(numbers_are_read),
		cmocka_unit_test(an_index_is_known_by_its_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
