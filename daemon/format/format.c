/* SPDX-License-Identifier: Apache-2.0 */
/* Which format a file has, and the refusal of those that are not read. See format.h. */
#include "daemon/format/format.h"

#include "base/err.h"
#include "base/require.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/format/safetensors.h"
#include "proto/gen/wire_code.h"

int format_find(const char *name, size_t size, enum format *ret)
{
	static const char *const names[] = {
		[FORMAT_AUTO] = "auto",
		[FORMAT_SAFETENSORS] = "safetensors",
		[FORMAT_GGUF] = "gguf",
		[FORMAT_RAW] = "raw",
	};

	for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (strlen(names[i]) == size && memcmp(names[i], name, size) == 0) {
			*ret = (enum format)i;
			return 0;
		}
	}
	return -WIRE_BAD_ARGUMENT;
}

static bool begins_with(const void *first, size_t size, const char *magic, size_t magic_size)
{
	return size >= magic_size && memcmp(first, magic, magic_size) == 0;
}

static bool holds(const void *first, size_t size, const char *word)
{
	const char *bytes = first;
	size_t word_size = strlen(word);

	for (size_t i = 0; i < size && size - i >= word_size; i++) {
		if (memcmp(&bytes[i], word, word_size) == 0) {
			return true;
		}
	}
	return false;
}

/* Pickle protocols 2 to 5 begin with 0x80 and their number; torch.save wraps one in a zip. */
static bool is_pickle(const void *first, size_t size)
{
	const unsigned char *bytes = first;

	return (size >= 2 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5) ||
	       (begins_with(first, size, "PK\3\4", 4) && holds(first, size, "data.pkl"));
}

static int refuse_pickle(struct err *err)
{
	return err_set(err, WIRE_UNSUPPORTED,
		       "pickle can run code: .pt and .ckpt files are not read; convert it with "
		       "safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
		       "\"model.safetensors\")");
}

int format_probe(const void *first, size_t size, uint64_t file_size, enum format wanted,
		 enum format *ret_format, uint64_t *ret_header_bytes, struct err *err)
{
	int code;

	if (wanted == FORMAT_RAW) {
		return err_set(err, WIRE_UNSUPPORTED, "raw files come with a later version");
	}
	if (!safetensors_is_likely(first, size)) {
		if (is_pickle(first, size)) {
			return refuse_pickle(err);
		}
		if (begins_with(first, size, "PK\3\4", 4)) {
			return err_set(err, WIRE_UNSUPPORTED,
				       "the file is a zip archive, not a safetensors file");
		}
		if (begins_with(first, size, "GGUF", 4)) {
			wanted = FORMAT_GGUF;
		}
	}
	if (wanted == FORMAT_GGUF) {
		return err_set(err, WIRE_UNSUPPORTED, "GGUF files come with a later version");
	}
	code = safetensors_probe(first, size, file_size, ret_header_bytes, err);
	if (code == 0) {
		*ret_format = FORMAT_SAFETENSORS;
	}
	return code;
}

int format_parse(enum format format, const void *header, size_t size, uint64_t file_size,
		 struct tensor_map **ret_map, struct err *err)
{
	REQUIRE(format == FORMAT_SAFETENSORS); /* as format_probe said */
	return safetensors_parse(header, size, file_size, ret_map, err);
}

struct tensor_map *tensor_map_free(struct tensor_map *map)
{
	if (map != NULL) {
		free(map->tensor_memory);
		free(map->block_memory);
		free(map);
	}
	return NULL;
}
