/* SPDX-License-Identifier: Apache-2.0 */
/* Which format a file has, and what is not read at all. */
#include "base/err.h"
#include "tests/support/map_check.h"
#include "tests/support/unit.h"

#include <string.h>

#include "daemon/format/format.h"
#include "proto/gen/wire_code.h"

#define SAFETENSORS "\2\0\0\0\0\0\0\0{}"
#define GGUF        "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" /* no tensors, no keys */

static int probe(const void *bytes, size_t size, enum format wanted, struct err *err)
{
	uint8_t *copy = size == 0 ? NULL : test_malloc(size);
	enum format format = FORMAT_RAW;
	uint64_t header_bytes = 77;
	int code;

	if (copy != NULL) {
		memcpy(copy, bytes, size);
	}
	code = format_probe(copy, size, size, wanted, &format, &header_bytes, err);
	if (copy != NULL) {
		test_free(copy);
	}
	/* Out-parameters are untouched on failure. */
	if (code < 0) {
		assert_int_equal(format, FORMAT_RAW);
		assert_int_equal(header_bytes, 77);
	} else if (wanted == FORMAT_RAW) {
		assert_int_equal(format, FORMAT_RAW);
		assert_int_equal(header_bytes, 0);
	} else {
		assert_int_equal(format, ((const char *)bytes)[0] == 'G' ? FORMAT_GGUF
									 : FORMAT_SAFETENSORS);
		assert_int_equal(header_bytes, size);
	}
	assert_int_equal(err->code, -code);
	return code;
}

static void formats_are_found_by_name(void **state)
{
	enum format format = FORMAT_RAW;

	(void)state;
	assert_int_equal(format_find("auto", 4, &format), 0);
	assert_int_equal(format, FORMAT_AUTO);
	assert_int_equal(format_find("safetensors", 11, &format), 0);
	assert_int_equal(format, 1);
	assert_int_equal(format_find("gguf", 4, &format), 0);
	assert_int_equal(format, 2);
	assert_int_equal(format_find("raw", 3, &format), 0);
	assert_int_equal(format, 3);
	assert_int_equal(format_find("ra", 2, &format), -WIRE_BAD_ARGUMENT);
	assert_int_equal(format_find("RAW", 3, &format), -WIRE_BAD_ARGUMENT);
	assert_int_equal(format_find("", 0, &format), -WIRE_BAD_ARGUMENT);
	assert_int_equal(format, FORMAT_RAW);
}

static void safetensors_are_found_and_asked_for(void **state)
{
	struct err err = {0};

	(void)state;
	assert_int_equal(probe(SAFETENSORS, 10, FORMAT_AUTO, &err), 0);
	assert_int_equal(probe(SAFETENSORS, 10, FORMAT_SAFETENSORS, &err), 0);
}

/* fault: F36 */
static void pickles_are_unsupported_because_they_can_run_code(void **state)
{
	static const char zip[] = "PK\3\4\0\0\10\10\0\0\0\0archive/data.pkl\x80\2";
	struct err err = {0};

	(void)state;
	for (char protocol = 2; protocol <= 5; protocol++) {
		const char pickle[] = {(char)0x80, protocol, (char)0x8a, 10,  'l', (char)0xfc,
				       (char)0x9c, 'F',      (char)0xf9, ' ', 'j'};

		assert_int_equal(probe(pickle, sizeof pickle, FORMAT_AUTO, &err),
				 -WIRE_UNSUPPORTED);
		assert_non_null(strstr(err.text, "pickle can run code"));
		assert_int_equal(probe(pickle, 2, FORMAT_SAFETENSORS, &err), -WIRE_UNSUPPORTED);
	}
	assert_int_equal(probe(zip, sizeof zip, FORMAT_AUTO, &err), -WIRE_UNSUPPORTED);
	assert_non_null(strstr(err.text, "pickle can run code"));
	assert_non_null(strstr(err.text, "save_file"));
	assert_int_equal(probe(zip, sizeof zip - 4, FORMAT_AUTO, &err), -WIRE_UNSUPPORTED);
	assert_non_null(strstr(err.text, "zip archive"));
	assert_int_equal(probe("\x80\1", 2, FORMAT_AUTO, &err), -WIRE_BAD_FILE);
	assert_int_equal(probe("\x80\6", 2, FORMAT_AUTO, &err), -WIRE_BAD_FILE);
}

/* A header of 0x280 bytes begins with the same two bytes as a pickle. */
static void a_safetensors_file_that_begins_like_a_pickle_is_read(void **state)
{
	char file[8 + 0x280];
	struct err err = {0};

	(void)state;
	memset(file, ' ', sizeof file);
	memcpy(file, "\x80\2\0\0\0\0\0\0{}", 10);
	assert_int_equal(probe(file, sizeof file, FORMAT_AUTO, &err), 0);
}

static void gguf_is_found_by_its_magic(void **state)
{
	struct err err = {0};

	(void)state;
	assert_int_equal(probe(GGUF, 24, FORMAT_AUTO, &err), 0);
	assert_int_equal(probe(GGUF, 24, FORMAT_GGUF, &err), 0);
	assert_int_equal(probe(GGUF, 24, FORMAT_SAFETENSORS, &err), -WIRE_UNSUPPORTED);
	assert_non_null(strstr(err.text, "it is GGUF"));
	assert_int_equal(probe(SAFETENSORS, 10, FORMAT_GGUF, &err), -WIRE_UNSUPPORTED);
	assert_non_null(strstr(err.text, "not a GGUF file"));
	assert_int_equal(probe("\x80\2", 2, FORMAT_GGUF, &err), -WIRE_UNSUPPORTED);
	assert_non_null(strstr(err.text, "pickle can run code"));
	assert_int_equal(probe("GGU", 3, FORMAT_AUTO, &err), -WIRE_BAD_FILE);
	assert_int_equal(probe("", 0, FORMAT_AUTO, &err), -WIRE_BAD_FILE);
	assert_int_equal(probe("", 0, FORMAT_GGUF, &err), -WIRE_UNSUPPORTED);
}

static void raw_is_any_file_as_one_tensor(void **state)
{
	struct tensor_map *map = NULL;
	struct err err = {0};

	(void)state;
	assert_int_equal(probe(SAFETENSORS, 10, FORMAT_RAW, &err), 0);
	assert_int_equal(probe("\x80\2", 2, FORMAT_RAW, &err), 0);
	assert_int_equal(probe("", 0, FORMAT_RAW, &err), -WIRE_BAD_FILE);
	assert_non_null(strstr(err.text, "the file is empty"));
	assert_int_equal(format_parse(FORMAT_RAW, NULL, 0, 1ULL << 40, &map, &err), 0);
	map_check(map);
	assert_int_equal(map->format, FORMAT_RAW);
	assert_int_equal(map->n_tensors, 1);
	assert_int_equal(map->tensors[0].name_size, 4);
	assert_memory_equal(map->tensors[0].name, "data", 4);
	assert_int_equal(map->tensors[0].dtype, WIRE_DTYPE_U8);
	assert_int_equal(map->tensors[0].rank, 1);
	assert_int_equal(map->tensors[0].shape[0], 1ULL << 40);
	assert_int_equal(map->tensors[0].size, 1ULL << 40);
	assert_int_equal(map->n_blocks, 1);
	assert_memory_equal(map->blocks[0].name, "(head)", 6);
	(void)tensor_map_free(map);
	map = NULL;
	assert_int_equal(format_parse(FORMAT_RAW, NULL, 0, 0, &map, &err), -WIRE_BAD_FILE);
	assert_null(map);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(formats_are_found_by_name),
		cmocka_unit_test(safetensors_are_found_and_asked_for),
		cmocka_unit_test(pickles_are_unsupported_because_they_can_run_code),
		cmocka_unit_test(a_safetensors_file_that_begins_like_a_pickle_is_read),
		cmocka_unit_test(gguf_is_found_by_its_magic),
		cmocka_unit_test(raw_is_any_file_as_one_tensor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
