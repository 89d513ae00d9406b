/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file's bytes: eight of length, then JSON, then data. Whatever is accepted has disjoint
 * tensors that cover the file and are as large as their shapes say, and cJSON, an independent
 * reader, finds as many tensors. What is refused says so in words.
 */
#include "base/err.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/map_check.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

/* cJSON takes more than JSON, so it must take all that we take. It needs no NUL. */
static void check_oracle(const struct tensor_map *map, const uint8_t *bytes)
{
	cJSON *tree = cJSON_ParseWithLength((const char *)&bytes[8], map->data_offset - 8);
	const cJSON *item;
	uint32_t n_tensors = 0;

	if (tree == NULL) {
		/* It refuses strings with an escaped NUL; only metadata may hold one. */
		REQUIRE(memmem(bytes, map->data_offset, "\\u0000", 6) != NULL);
		return;
	}
	cJSON_ArrayForEach(item, tree)
	{
		n_tensors += strcmp(item->string, "__metadata__") == 0 ? 0 : 1;
	}
	REQUIRE(n_tensors == map->n_tensors);
	cJSON_Delete(tree);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	enum format format = FORMAT_AUTO;
	uint64_t header_bytes = 0;
	struct tensor_map *map = NULL;
	struct err err = {0};
	uint8_t *header;
	/* GGUF has a target of its own. */
	int code = format_probe(bytes, size < 64 ? size : 64, size, FORMAT_SAFETENSORS, &format,
				&header_bytes, &err);

	if (code == 0) {
		/* Exactly as much as was asked for, so that a sanitizer sees any read past it. */
		REQUIRE(header_bytes <= size);
		header = malloc(header_bytes);
		REQUIRE(header != NULL);
		memcpy(header, bytes, header_bytes);
		code = format_parse(format, header, header_bytes, size, &map, &err);
		free(header);
	}
	if (code < 0) {
		REQUIRE(map == NULL && code == -err.code && err.text[0] != '\0');
		REQUIRE(code == -WIRE_BAD_FILE || code == -WIRE_UNSUPPORTED);
		return 0;
	}
	map_check(map);
	check_oracle(map, bytes);
	(void)tensor_map_free(map);
	return 0;
}
