/* SPDX-License-Identifier: Apache-2.0 */
/* Which format a file has, and the refusal of those that are not read. See format.h. */
#include "daemon/format/format.h"

#include "base/err.h"
#include "base/require.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/format/gguf.h"
#include "daemon/format/raw.h"
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

/* What is neither of the formats, or not the one that was asked for. */
static int refuse_foreign(const void *first, size_t size, enum format wanted, struct err *err)
{
	if (is_pickle(first, size)) {
		return refuse_pickle(err);
	}
	if (begins_with(first, size, "PK\3\4", 4)) {
		return err_set(err, WIRE_UNSUPPORTED,
			       "the file is a zip archive, not a safetensors file");
	}
	if (wanted == FORMAT_SAFETENSORS && gguf_is_likely(first, size)) {
		return err_set(err, WIRE_UNSUPPORTED,
			       "not a safetensors file: it is GGUF; ask for format auto or gguf");
	}
	return 0;
}

int format_probe(const void *first, size_t size, uint64_t file_size, enum format wanted,
		 enum format *ret_format, uint64_t *ret_header_bytes, struct err *err)
{
	enum format format = wanted;
	int code = 0;

	if (wanted != FORMAT_RAW && !safetensors_is_likely(first, size)) {
		code = refuse_foreign(first, size, wanted, err);
		if (code < 0) {
			return code;
		}
	}
	if (wanted == FORMAT_AUTO) {
		format = gguf_is_likely(first, size) ? FORMAT_GGUF : FORMAT_SAFETENSORS;
	}
	switch (format) {
	case FORMAT_RAW:
		code = raw_check(file_size, err);
		if (code == 0) {
			*ret_header_bytes = 0;
		}
		break;
	case FORMAT_GGUF:
		code = gguf_probe(first, size, file_size, ret_header_bytes, err);
		break;
	case FORMAT_AUTO:
	case FORMAT_SAFETENSORS:
		code = safetensors_probe(first, size, file_size, ret_header_bytes, err);
		break;
	}
	if (code == 0) {
		*ret_format = format;
	}
	return code;
}

int format_parse(enum format format, const void *header, size_t size, uint64_t file_size,
		 struct tensor_map **ret_map, struct err *err)
{
	switch (format) {
	case FORMAT_SAFETENSORS:
		return safetensors_parse(header, size, file_size, ret_map, err);
	case FORMAT_GGUF:
		return gguf_parse(header, size, file_size, ret_map, err);
	case FORMAT_RAW:
		return raw_parse(file_size, ret_map, err);
	case FORMAT_AUTO:
		break;
	}
	REQUIRE(false); /* format_probe says which */
	return -WIRE_INTERNAL;
}

uint32_t tensor_map_n_shards(const struct tensor_map *map)
{
	return map->parts == NULL ? 1 : map->n_parts;
}

uint64_t tensor_map_shard_size(const struct tensor_map *map, uint32_t shard)
{
	return map->parts == NULL ? map->file_size : map->parts[shard]->file_size;
}

static void free_one(struct tensor_map *map)
{
	free(map->tensor_memory);
	free(map->block_memory);
	free(map->parts);
	free(map);
}

struct tensor_map *tensor_map_free(struct tensor_map *map)
{
	if (map != NULL) {
		for (uint32_t i = 0; i < map->n_parts; i++) {
			free_one(map->parts[i]); /* of single files, which have none */
		}
		free_one(map);
	}
	return NULL;
}
