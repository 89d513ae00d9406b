/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which files an index of any bytes names. What is accepted is JSON for cJSON too, whose
 * weight_map names just these; what is refused says so in words.
 */
#include "base/err.h"
#include "base/os/model_files.h"
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

static void check_names(const struct model_files *files)
{
	REQUIRE(files->n > 0 && files->n <= MODEL_MAX_FILES);
	for (uint32_t i = 0; i < files->n; i++) {
		const char *name = files->names[i];

		REQUIRE(name[0] != '\0' && strchr(name, '/') == NULL);
		REQUIRE(strcmp(name, ".") != 0 && strcmp(name, "..") != 0);
		REQUIRE(i == 0 || strcmp(files->names[i - 1], name) < 0);
	}
}

static void check_oracle(const struct model_files *files, const char *text, size_t size)
{
	cJSON *tree = cJSON_ParseWithLength(text, size);
	const cJSON *map = cJSON_GetObjectItemCaseSensitive(tree, "weight_map");
	const cJSON *item;
	bool is_named[MODEL_MAX_FILES] = {false};
	uint32_t n_named = 0;

	if (tree == NULL) { /* it takes no escaped NUL, also where nobody looks */
		REQUIRE(memmem(text, size, "\\u0000", 6) != NULL);
		return;
	}
	REQUIRE(cJSON_IsObject(map));
	cJSON_ArrayForEach(item, map)
	{
		uint32_t i = 0;

		REQUIRE(cJSON_IsString(item));
		while (i < files->n && strcmp(files->names[i], item->valuestring) != 0) {
			i++;
		}
		REQUIRE(i < files->n);
		n_named += is_named[i] ? 0 : 1;
		is_named[i] = true;
	}
	REQUIRE(n_named == files->n);
	cJSON_Delete(tree);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char *copy = malloc(size + (size == 0)); /* of just its size: any read past it is seen */
	struct model_files *files = NULL;
	struct err err = {0};
	int code;

	REQUIRE(copy != NULL);
	memcpy(copy, bytes, size);
	code = model_files_read(copy, size, &files, &err);
	if (code < 0) {
		REQUIRE(files == NULL && err.code == -code && err.text[0] != '\0');
		REQUIRE(code == -WIRE_BAD_FILE || code == -WIRE_TOO_LARGE);
	} else {
		check_names(files);
		check_oracle(files, copy, size);
	}
	(void)model_files_free(files);
	free(copy);
	return 0;
}
