/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GGUF file's bytes. Whatever is accepted has disjoint tensors inside of the file that are as
 * large as their shapes say, and every prefix of its header is refused. What is refused says so
 * in words.
 */
#include "tests/fuzz/fuzz.h"
#include "tests/support/gguf_file.h"
#include "tests/support/map_check.h"

#include "daemon/format/gguf.h"
#include "proto/gen/wire_code.h"

#define MOST_PREFIXES 512U /* of long headers: so many at the end */

static void check_prefixes(const uint8_t *bytes, uint64_t header_bytes, size_t size)
{
	uint64_t cut = header_bytes > MOST_PREFIXES ? header_bytes - MOST_PREFIXES : 0;

	for (; cut < header_bytes; cut++) {
		struct tensor_map *map = NULL;
		struct err err = {0};
		uint8_t *copy = gguf_copy(bytes, cut);

		/* Only so much was read of the file; the file is no longer. */
		REQUIRE(gguf_parse(copy, cut, size, &map, &err) < 0);
		REQUIRE(gguf_parse(copy, cut, cut, &map, &err) < 0);
		REQUIRE(map == NULL && err.text[0] != '\0');
		free(copy);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct gguf_reading got = {.first = 32, .wanted = FORMAT_GGUF};
	int code = gguf_read(bytes, size, &got);

	if (code < 0) {
		REQUIRE(got.map == NULL && code == -got.err.code && got.err.text[0] != '\0');
		REQUIRE(code == -WIRE_BAD_FILE || code == -WIRE_UNSUPPORTED);
		return 0;
	}
	REQUIRE(got.err.code == 0 && got.map->format == FORMAT_GGUF);
	REQUIRE(got.map->file_size == size);
	map_check(got.map);
	check_prefixes(bytes, got.header_bytes, size);
	(void)tensor_map_free(got.map);
	return 0;
}
