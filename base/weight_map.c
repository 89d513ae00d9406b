/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk. Names are decoded into room for the longest that there may be. See weight_map.h.
 */
#include "base/weight_map.h"

#include "base/json_scan.h"

#include <stdbool.h>

struct walk {
	struct json_cursor cursor;
	weight_map_take_fn take;
	void *context;
	char tensor[WEIGHT_MAP_MAX_TENSOR];
	char file[WEIGHT_MAP_MAX_FILE + 1];
};

static int read_entry(struct walk *walk)
{
	struct json_cursor *cursor = &walk->cursor;
	struct weight_map_entry entry = {.tensor = walk->tensor, .file = walk->file};
	struct json_string tensor = {0};
	struct json_string file = {0};
	int code = json_read_string(cursor, WEIGHT_MAP_MAX_TENSOR, &tensor);

	if (code == 0) {
		code = json_expect(cursor, ':');
	}
	if (code == 0) {
		code = json_read_string(cursor, WEIGHT_MAP_MAX_FILE, &file);
	}
	if (code < 0) {
		return code;
	}
	if (file.has_nul) {
		return json_fail(cursor, file.at, "a file's name that holds NUL");
	}
	entry.at = tensor.at;
	entry.tensor_size = json_string_decode(&tensor, walk->tensor, WEIGHT_MAP_MAX_TENSOR);
	walk->file[json_string_decode(&file, walk->file, WEIGHT_MAP_MAX_FILE)] = '\0';
	return walk->take(cursor, &entry, walk->context);
}

static int read_weight_map(struct walk *walk)
{
	struct json_cursor *cursor = &walk->cursor;
	int code = json_expect(cursor, '{');

	if (code < 0 || json_take(cursor, '}')) {
		return code;
	}
	do {
		code = read_entry(walk);
		if (code < 0) {
			return code;
		}
	} while (json_take(cursor, ','));
	return json_expect(cursor, '}');
}

static int read_member(struct walk *walk, bool *has_map)
{
	struct json_cursor *cursor = &walk->cursor;
	struct json_string key;
	int code = json_read_string(cursor, WEIGHT_MAP_MAX_TENSOR, &key);

	if (code == 0) {
		code = json_expect(cursor, ':');
	}
	if (code < 0) {
		return code;
	}
	if (!json_string_is(&key, "weight_map")) {
		return json_skip_value(cursor, WEIGHT_MAP_MAX_SIZE);
	}
	if (*has_map) {
		return json_fail(cursor, key.at, "a second weight_map");
	}
	*has_map = true;
	return read_weight_map(walk);
}

static int read_all(struct walk *walk)
{
	struct json_cursor *cursor = &walk->cursor;
	bool has_map = false;
	int code = json_expect(cursor, '{');

	if (code < 0) {
		return code;
	}
	if (!json_take(cursor, '}')) {
		do {
			code = read_member(walk, &has_map);
			if (code < 0) {
				return code;
			}
		} while (json_take(cursor, ','));
		code = json_expect(cursor, '}');
	}
	if (code == 0) {
		code = json_expect_end(cursor);
	}
	if (code == 0 && !has_map) {
		code = json_fail(cursor, cursor->at, "there is no weight_map");
	}
	return code;
}

int weight_map_read(const void *bytes, size_t size, weight_map_take_fn take, void *context,
		    struct err *err)
{
	struct walk walk;

	walk.cursor =
		(struct json_cursor){.bytes = bytes, .size = size, .err = err, .what = "index"};
	walk.take = take;
	walk.context = context;
	return read_all(&walk);
}
