/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors files made from the text of a header, and the two steps a reader takes. Only
 * the header is in memory, in a block of exactly its size; the tensors' bytes are a number.
 */
#ifndef TESTS_SUPPORT_HEADER_FILE_H
#define TESTS_SUPPORT_HEADER_FILE_H

#include "base/err.h"
#include "tests/support/unit.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/format.h"

struct header_file {
	uint8_t *bytes; /* length and JSON */
	size_t size;
	uint64_t file_size;
};

static inline void put_length(uint8_t *bytes, uint64_t length)
{
	for (int i = 0; i < 8; i++) {
		bytes[i] = (uint8_t)(length >> 8 * i);
	}
}

static inline struct header_file header_file_sized(const char *json, size_t json_size,
						   uint64_t data_bytes)
{
	struct header_file file = {malloc(8 + json_size), 8 + json_size,
				   8 + json_size + data_bytes};

	assert_non_null(file.bytes);
	put_length(file.bytes, json_size);
	memcpy(&file.bytes[8], json, json_size);
	return file;
}

static inline struct header_file header_file(const char *json, uint64_t data_bytes)
{
	return header_file_sized(json, strlen(json), data_bytes);
}

/* Probe the first 64 KiB, then parse what was asked for; the result is the first refusal. */
static inline int header_file_read(const struct header_file *file, struct tensor_map **ret,
				   struct err *err)
{
	enum format format = FORMAT_AUTO;
	uint64_t header_bytes = 0;
	size_t first = file->size < FORMAT_PROBE_SIZE ? file->size : FORMAT_PROBE_SIZE;
	int code = format_probe(file->bytes, first, file->file_size, FORMAT_AUTO, &format,
				&header_bytes, err);

	if (code < 0) {
		return code;
	}
	assert_int_equal(format, FORMAT_SAFETENSORS);
	assert_int_equal(header_bytes, file->size);
	return format_parse(format, file->bytes, file->size, file->file_size, ret, err);
}

/* Text that grows. */
struct text {
	char *text;
	size_t size;
	size_t capacity;
};

__attribute__((format(printf, 2, 3))) static inline void text_add(struct text *text,
								  const char *format, ...)
{
	va_list arguments;
	int size;

	if (text->capacity - text->size < 8192) {
		text->capacity = 2 * text->capacity + 8192;
		text->text = realloc(text->text, text->capacity);
		assert_non_null(text->text);
	}
	va_start(arguments, format);
	size = vsnprintf(&text->text[text->size], text->capacity - text->size, format, arguments);
	va_end(arguments);
	assert_true(size >= 0 && (size_t)size < text->capacity - text->size);
	text->size += (size_t)size;
}

#endif
