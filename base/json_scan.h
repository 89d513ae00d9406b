/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bounded cursor over strict JSON (RFC 8259, UTF-8): the caller says what must come next.
 * It allocates nothing, never recurses, never reads past the end and reads integers exactly.
 * After a failure the cursor is of no use. Pure; any thread.
 */
#ifndef BASE_JSON_SCAN_H
#define BASE_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define JSON_MAX_INTEGER (1ULL << 53)
#define JSON_MAX_DEPTH   32

struct json_cursor {
	const char *bytes;
	size_t size;
	size_t at;
	uint64_t base;    /* where in the file 'bytes' begins, for messages */
	struct err *err;  /* filled at the first failure */
	const char *what; /* it is, for messages; NULL: a header */
	bool is_past_end; /* it failed because more bytes were wanted */
};

/* A string that was checked. Borrows the cursor's bytes. */
struct json_string {
	const char *raw; /* between the quotes, escapes as written */
	size_t raw_size;
	size_t size; /* bytes once decoded */
	size_t at;   /* of the opening quote */
	bool has_nul;
};

/* Skip blanks and take 'wanted' if it comes next. */
bool json_take(struct json_cursor *cursor, char wanted);

/* All return 0 or -WIRE_BAD_FILE, err naming the byte in the file. */
int json_expect(struct json_cursor *cursor, char wanted);
int json_expect_word(struct json_cursor *cursor, const char *word); /* null */
int json_expect_end(struct json_cursor *cursor);                    /* nothing but blanks is left */

/* A string of at most 'max_size' decoded bytes; lone surrogates are refused. */
int json_read_string(struct json_cursor *cursor, size_t max_size, struct json_string *ret);

/* An integer from 0 to JSON_MAX_INTEGER, written as plain digits: no sign, point, exponent. */
int json_read_integer(struct json_cursor *cursor, uint64_t *ret);

/* Any value, at most JSON_MAX_DEPTH levels deep, its strings at most 'max_size' bytes long. */
int json_skip_value(struct json_cursor *cursor, size_t max_size);

/* Fail at byte 'at' of the cursor's bytes: "byte 123: <what>". */
int json_fail(struct json_cursor *cursor, size_t at, const char *what);

bool json_string_is(const struct json_string *string, const char *text);

/* Write the first 'capacity' bytes at most, not terminated; returns how many. */
size_t json_string_decode(const struct json_string *string, char *ret, size_t capacity);

#endif
