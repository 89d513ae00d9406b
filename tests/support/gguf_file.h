/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GGUF files made piece by piece, and read as the loader reads them: probe, more, parse, each
 * piece in memory of exactly its size, so that a sanitizer sees any read past it.
 */
#ifndef TESTS_SUPPORT_GGUF_FILE_H
#define TESTS_SUPPORT_GGUF_FILE_H

#include "base/err.h"
#include "base/require.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/format.h"

enum gguf_value {
	GGUF_U8 = 0,
	GGUF_U16 = 2,
	GGUF_U32 = 4,
	GGUF_STRING = 8,
	GGUF_ARRAY = 9,
	GGUF_U64 = 10
};

struct gguf_file {
	uint8_t *bytes;
	size_t size, capacity;
};

static inline void gguf_add(struct gguf_file *file, const void *bytes, size_t size)
{
	if (file->capacity - file->size < size) {
		file->capacity = 2 * file->capacity + size + 256;
		file->bytes = realloc(file->bytes, file->capacity);
		REQUIRE(file->bytes != NULL);
	}
	if (size > 0) {
		memcpy(&file->bytes[file->size], bytes, size);
	}
	file->size += size;
}

static inline void gguf_add_number(struct gguf_file *file, uint64_t number, unsigned n_bytes)
{
	uint8_t bytes[8];

	for (unsigned i = 0; i < n_bytes; i++) {
		bytes[i] = (uint8_t)(number >> 8 * i);
	}
	gguf_add(file, bytes, n_bytes);
}

static inline void gguf_add_u32(struct gguf_file *file, uint32_t number)
{
	gguf_add_number(file, number, 4);
}

static inline void gguf_add_u64(struct gguf_file *file, uint64_t number)
{
	gguf_add_number(file, number, 8);
}

static inline void gguf_add_string(struct gguf_file *file, const char *text)
{
	gguf_add_u64(file, strlen(text));
	gguf_add(file, text, strlen(text));
}

static inline void gguf_add_start(struct gguf_file *file, uint32_t version, uint64_t n_tensors,
				  uint64_t n_keys)
{
	gguf_add(file, "GGUF", 4);
	gguf_add_u32(file, version);
	gguf_add_u64(file, n_tensors);
	gguf_add_u64(file, n_keys);
}

static inline void gguf_add_key(struct gguf_file *file, const char *key, uint32_t type)
{
	gguf_add_string(file, key);
	gguf_add_u32(file, type);
}

static inline void gguf_add_key_u32(struct gguf_file *file, const char *key, uint32_t value)
{
	gguf_add_key(file, key, GGUF_U32);
	gguf_add_u32(file, value);
}

static inline void gguf_add_tensor(struct gguf_file *file, const char *name, uint32_t n_dims,
				   const uint64_t *dims, uint32_t type, uint64_t offset)
{
	gguf_add_string(file, name);
	gguf_add_u32(file, n_dims);
	for (uint32_t i = 0; i < n_dims; i++) {
		gguf_add_u64(file, dims[i]);
	}
	gguf_add_u32(file, type);
	gguf_add_u64(file, offset);
}

/* Padding, then so many bytes of data. */
static inline void gguf_add_data(struct gguf_file *file, size_t alignment, size_t size)
{
	static const uint8_t zero[1];

	while (file->size % alignment != 0) {
		gguf_add(file, zero, 1);
	}
	for (size_t i = 0; i < size; i++) {
		gguf_add(file, zero, 1);
	}
}

static inline uint8_t *gguf_copy(const uint8_t *bytes, size_t size)
{
	uint8_t *copy = malloc(size == 0 ? 1 : size);

	REQUIRE(copy != NULL);
	if (size > 0) {
		memcpy(copy, bytes, size);
	}
	return copy;
}

struct gguf_reading {
	size_t first;       /* bytes that are probed at first */
	enum format wanted; /* FORMAT_AUTO */
	uint64_t header_bytes;
	struct tensor_map *map;
	struct err err;
};

/* Read a file that lies wholly in memory. */
static inline int gguf_read(const uint8_t *bytes, size_t size, struct gguf_reading *reading)
{
	enum format format = FORMAT_AUTO;
	uint64_t header_bytes = reading->first < size ? reading->first : size;
	uint64_t probed;
	uint8_t *copy;
	int code;

	do {
		probed = header_bytes;
		copy = gguf_copy(bytes, probed);
		code = format_probe(copy, probed, size, reading->wanted, &format, &header_bytes,
				    &reading->err);
		free(copy);
		REQUIRE(code < 0 || header_bytes <= size);
	} while (code == 0 && header_bytes > probed);
	if (code == 0) {
		copy = gguf_copy(bytes, header_bytes);
		code = format_parse(format, copy, header_bytes, size, &reading->map, &reading->err);
		free(copy);
		reading->header_bytes = header_bytes;
	}
	return code;
}

#endif
