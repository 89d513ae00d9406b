/* SPDX-License-Identifier: Apache-2.0 */
/* Every step asks for its bytes first. See gguf_scan.h. */
#include "daemon/format/gguf_scan.h"

#include "base/checked.h"
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>

#include "proto/gen/wire_code.h"

#define TYPE_STRING  8U
#define TYPE_ARRAY   9U
#define LENGTH_BYTES 8U
#define NO_MAX       UINT64_MAX

int gguf_fail(struct gguf_cursor *cursor, size_t at, int code, const char *format, ...)
{
	char what[ERR_TEXT_SIZE];
	va_list arguments;
	int result;

	va_start(arguments, format);
	(void)vsnprintf(what, sizeof what, format, arguments);
	va_end(arguments);
	result = err_set(cursor->err, code, "byte %zu: %s", at, what);
	if (cursor->err != NULL) {
		cursor->err->offset = at;
	}
	return result;
}

/* Are 'n_bytes' at hand? */
static int need(struct gguf_cursor *cursor, const char *what, uint64_t n_bytes)
{
	if (n_bytes <= cursor->size - cursor->at) {
		return 0;
	}
	if (checked_range(cursor->at, n_bytes, cursor->file_size)) {
		cursor->is_past_end = true;
		return gguf_fail(cursor, cursor->at, WIRE_BAD_FILE, "the header ends inside of %s",
				 what);
	}
	return gguf_fail(cursor, cursor->at, WIRE_BAD_FILE,
			 "%s of %llu bytes, but the file ends after %llu: damaged, or an "
			 "incomplete download",
			 what, (unsigned long long)n_bytes,
			 (unsigned long long)(cursor->file_size - cursor->at));
}

static int read_number(struct gguf_cursor *cursor, const char *what, unsigned n_bytes,
		       uint64_t *ret)
{
	uint64_t number = 0;
	int code = need(cursor, what, n_bytes);

	if (code < 0) {
		return code;
	}
	for (unsigned i = n_bytes; i > 0; i--) {
		number = number << 8 | cursor->bytes[cursor->at + i - 1];
	}
	cursor->at += n_bytes; /* within 'size' */
	*ret = number;
	return 0;
}

int gguf_read_u32(struct gguf_cursor *cursor, const char *what, uint32_t *ret)
{
	uint64_t number = 0;
	int code = read_number(cursor, what, sizeof *ret, &number);

	if (code == 0) {
		*ret = (uint32_t)number;
	}
	return code;
}

int gguf_read_u64(struct gguf_cursor *cursor, const char *what, uint64_t *ret)
{
	return read_number(cursor, what, sizeof *ret, ret);
}

static int skip(struct gguf_cursor *cursor, const char *what, uint64_t n_bytes)
{
	int code = need(cursor, what, n_bytes);

	if (code == 0) {
		cursor->at += (size_t)n_bytes; /* within 'size' */
	}
	return code;
}

int gguf_read_string(struct gguf_cursor *cursor, const char *what, uint64_t max_size,
		     struct gguf_string *ret)
{
	struct gguf_string string = {.at = cursor->at};
	int code = gguf_read_u64(cursor, what, &string.size);

	if (code == 0 && string.size > max_size) {
		return gguf_fail(cursor, string.at, WIRE_BAD_FILE,
				 "%s of %llu bytes: %llu are the most", what,
				 (unsigned long long)string.size, (unsigned long long)max_size);
	}
	if (code == 0) {
		string.text = (const char *)&cursor->bytes[cursor->at];
		code = skip(cursor, what, string.size);
	}
	if (code == 0) {
		*ret = string;
	}
	return code;
}

int gguf_read_count(struct gguf_cursor *cursor, const char *what, uint64_t least_bytes,
		    uint64_t max, uint64_t *ret)
{
	const size_t at = cursor->at;
	uint64_t count = 0;
	uint64_t least;
	int code = gguf_read_u64(cursor, what, &count);

	if (code < 0) {
		return code;
	}
	if (!checked_mul(count, least_bytes, &least) ||
	    !checked_range(cursor->at, least, cursor->file_size)) {
		return gguf_fail(cursor, at, WIRE_BAD_FILE,
				 "%llu %s do not fit the %llu bytes that are left",
				 (unsigned long long)count, what,
				 (unsigned long long)(cursor->file_size - cursor->at));
	}
	if (count > max) {
		return gguf_fail(cursor, at, WIRE_BAD_FILE, "%llu %s: %llu are the most",
				 (unsigned long long)count, what, (unsigned long long)max);
	}
	*ret = count;
	return 0;
}

/* Bytes of one value; 0 for strings, arrays and what is unknown. */
static uint32_t size_of_type(uint32_t type)
{
	static const uint8_t sizes[GGUF_LAST_VALUE_TYPE + 1] = {1, 1, 2, 2, 4, 4, 4,
								1, 0, 0, 8, 8, 8};

	return type <= GGUF_LAST_VALUE_TYPE ? sizes[type] : 0;
}

static int skip_array(struct gguf_cursor *cursor)
{
	const size_t at = cursor->at;
	struct gguf_string string;
	uint64_t n_bytes = 0;
	uint64_t count = 0;
	uint32_t type = 0;
	int code = gguf_read_u32(cursor, "an array's type", &type);

	if (code < 0) {
		return code;
	}
	if (type == TYPE_ARRAY) {
		return gguf_fail(cursor, at, WIRE_UNSUPPORTED, "an array of arrays");
	}
	if (type > GGUF_LAST_VALUE_TYPE) {
		return gguf_fail(cursor, at, WIRE_BAD_FILE, "an array of type %u, which is none",
				 type);
	}
	code = gguf_read_count(cursor, "items of an array",
			       type == TYPE_STRING ? LENGTH_BYTES : size_of_type(type), NO_MAX,
			       &count);
	if (code < 0) {
		return code;
	}
	if (type != TYPE_STRING) {
		/* gguf_read_count saw that this does not wrap. */
		(void)checked_mul(count, size_of_type(type), &n_bytes);
		return skip(cursor, "an array", n_bytes);
	}
	for (uint64_t i = 0; i < count && code == 0; i++) {
		code = gguf_read_string(cursor, "a string", NO_MAX, &string);
	}
	return code;
}

int gguf_skip_value(struct gguf_cursor *cursor, uint32_t type)
{
	struct gguf_string string;

	if (type == TYPE_STRING) {
		return gguf_read_string(cursor, "a string", NO_MAX, &string);
	}
	if (type == TYPE_ARRAY) {
		return skip_array(cursor);
	}
	if (type > GGUF_LAST_VALUE_TYPE) {
		return gguf_fail(cursor, cursor->at, WIRE_BAD_FILE,
				 "a value of type %u, which is none", type);
	}
	return skip(cursor, "a value", size_of_type(type));
}
