/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An index of any bytes against three files. What is accepted is JSON for cJSON too, which finds
 * in its weight_map only tensors that are where it says, and every file. What is refused says so
 * in words.
 */
#include "base/err.h"
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/format.h"
#include "daemon/format/index.h"
#include "proto/gen/wire_code.h"

#define N_TENSORS 4
#define N_FILES   3

static const struct tensor tensors[N_TENSORS] = {
	{.name = "a", .name_size = 1, .shard = 0},
	{.name = "b.w", .name_size = 3, .shard = 1},
	{.name = "b\"w", .name_size = 3, .shard = 1},
	{.name = "\xc3\xbc", .name_size = 2, .shard = 2},
};
static const uint32_t sorted[N_TENSORS] = {0, 2, 1, 3};
static const struct join_part parts[N_FILES] = {{.name = "1"}, {.name = "2"}, {.name = "3.s"}};

static void check_oracle(const char *text, size_t size)
{
	cJSON *tree = cJSON_ParseWithLength(text, size);
	const cJSON *map = cJSON_GetObjectItemCaseSensitive(tree, "weight_map");
	const cJSON *item;
	bool is_named[N_FILES] = {false};

	if (tree == NULL) { /* it takes no escaped NUL, also where nobody looks */
		REQUIRE(memmem(text, size, "\\u0000", 6) != NULL);
		return;
	}
	REQUIRE(cJSON_IsObject(map));
	cJSON_ArrayForEach(item, map)
	{
		uint32_t i = 0;

		while (i < N_TENSORS &&
		       (strlen(item->string) != tensors[i].name_size ||
			memcmp(item->string, tensors[i].name, tensors[i].name_size) != 0)) {
			i++;
		}
		REQUIRE(i < N_TENSORS && cJSON_IsString(item));
		REQUIRE(strcmp(item->valuestring, parts[tensors[i].shard].name) == 0);
		is_named[tensors[i].shard] = true;
	}
	REQUIRE(is_named[0] && is_named[1] && is_named[2]);
	cJSON_Delete(tree);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	const struct index_subject subject = {.parts = parts,
					      .n_parts = N_FILES,
					      .tensors = tensors,
					      .n_tensors = N_TENSORS,
					      .sorted = sorted};
	char *copy = malloc(size + (size == 0)); /* of just its size: any read past it is seen */
	const struct join_index index = {.name = "i", .bytes = copy, .size = size};
	struct err err = {0};
	int code;

	REQUIRE(copy != NULL);
	memcpy(copy, bytes, size);
	code = index_check(&index, &subject, &err);
	if (code < 0) {
		REQUIRE(code == -WIRE_BAD_FILE && err.code == WIRE_BAD_FILE);
		REQUIRE(strncmp(err.text, "index i: ", 9) == 0);
	} else {
		check_oracle(copy, size);
	}
	free(copy);
	return 0;
}
