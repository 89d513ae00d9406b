/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bounded cursor over the header of a GGUF file, little-endian: numbers, strings, and values
 * that are skipped. It allocates nothing, never recurses and never reads past the end. What
 * would not fit the file is refused at once; what would not fit the bytes at hand asks for more
 * (is_past_end). After a failure the cursor is of no use. Pure; any thread.
 */
#ifndef FORMAT_GGUF_SCAN_H
#define FORMAT_GGUF_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define GGUF_LAST_VALUE_TYPE 12U /* of spec: u8 i8 u16 i16 u32 i32 f32 bool string array u64 ... */
#define GGUF_TYPE_UINT16     2U
#define GGUF_TYPE_UINT32     4U

struct gguf_cursor {
	const uint8_t *bytes; /* from the file's first */
	size_t size;
	size_t at;
	uint64_t file_size; /* 'size' at least */
	struct err *err;    /* filled at the first failure */
	bool is_past_end;   /* it failed only because more bytes of the file are wanted */
};

/* Borrows the cursor's bytes. */
struct gguf_string {
	const char *text;
	uint64_t size;
	size_t at; /* of its length */
};

/* All return 0 or a negative code, err naming the byte in the file; 'what' is for that text. */
int gguf_read_u32(struct gguf_cursor *cursor, const char *what, uint32_t *ret);
int gguf_read_u64(struct gguf_cursor *cursor, const char *what, uint64_t *ret);

/* A length and so many bytes, of whatever value; at most 'max_size'. */
int gguf_read_string(struct gguf_cursor *cursor, const char *what, uint64_t max_size,
		     struct gguf_string *ret);

/*
 * A count of things that take 'least_bytes' each: at most 'max', and no more than the file has
 * bytes left for.
 */
int gguf_read_count(struct gguf_cursor *cursor, const char *what, uint64_t least_bytes,
		    uint64_t max, uint64_t *ret);

/* A value of this type: an array too, of numbers or strings. */
int gguf_skip_value(struct gguf_cursor *cursor, uint32_t type);

/* Fail at byte 'at': "byte 123: <what>". */
int gguf_fail(struct gguf_cursor *cursor, size_t at, int code, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

#endif
