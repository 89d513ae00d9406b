/* SPDX-License-Identifier: Apache-2.0 */
/* The cursor. Every step forward is one byte that was looked at before. See json_scan.h. */
#include "base/json_scan.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/utf8.h"

#include <stdio.h>
#include <string.h>

#include "proto/gen/wire_code.h"

#define MAX_UTF8_SIZE 4

int json_fail(struct json_cursor *cursor, size_t at, const char *what)
{
	uint64_t offset = 0;
	int code;

	(void)checked_add(cursor->base, at, &offset); /* both lie within one file */
	code = err_set(cursor->err, WIRE_BAD_FILE, "byte %llu: %s", (unsigned long long)offset,
		       what);
	if (cursor->err != NULL) {
		cursor->err->offset = offset;
	}
	return code;
}

static int fail_past_end(struct json_cursor *cursor)
{
	char what[64];

	cursor->is_past_end = true;
	(void)snprintf(what, sizeof what, "the %s ends in the middle",
		       cursor->what == NULL ? "header" : cursor->what);
	return json_fail(cursor, cursor->size, what);
}

static bool is_at_end(const struct json_cursor *cursor)
{
	return cursor->at == cursor->size;
}

static void skip_blanks(struct json_cursor *cursor)
{
	while (!is_at_end(cursor)) {
		char c = cursor->bytes[cursor->at];

		if (c != ' ' && c != '\n' && c != '\r' && c != '\t') {
			break;
		}
		cursor->at++;
	}
}

bool json_take(struct json_cursor *cursor, char wanted)
{
	skip_blanks(cursor);
	if (is_at_end(cursor) || cursor->bytes[cursor->at] != wanted) {
		return false;
	}
	cursor->at++;
	return true;
}

int json_expect(struct json_cursor *cursor, char wanted)
{
	char what[] = "'?' is missing";

	if (json_take(cursor, wanted)) {
		return 0;
	}
	if (is_at_end(cursor)) {
		return fail_past_end(cursor);
	}
	what[1] = wanted;
	return json_fail(cursor, cursor->at, what);
}

int json_expect_word(struct json_cursor *cursor, const char *word)
{
	skip_blanks(cursor);
	for (size_t i = 0; word[i] != '\0'; i++) {
		if (is_at_end(cursor)) {
			return fail_past_end(cursor);
		}
		if (cursor->bytes[cursor->at] != word[i]) {
			return json_fail(cursor, cursor->at,
					 "a value of another kind was expected");
		}
		cursor->at++;
	}
	return 0;
}

int json_expect_end(struct json_cursor *cursor)
{
	char what[64];

	skip_blanks(cursor);
	if (is_at_end(cursor)) {
		return 0;
	}
	(void)snprintf(what, sizeof what, "text after the %s's last brace",
		       cursor->what == NULL ? "header" : cursor->what);
	return json_fail(cursor, cursor->at, what);
}

/* ---- strings ---- */

static int hex_value(char c)
{
	if (c >= '0' && c <= '9') {
		return c - '0';
	}
	if (c >= 'a' && c <= 'f') {
		return c - 'a' + 10;
	}
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Four hexadecimal digits; false when they are not. */
static bool decode_hex(const char *text, uint32_t *ret)
{
	uint32_t value = 0;

	for (int i = 0; i < 4; i++) {
		int digit = hex_value(text[i]);

		if (digit < 0) {
			return false;
		}
		value = value << 4 | (uint32_t)digit;
	}
	*ret = value;
	return true;
}

static size_t encode_utf8(uint32_t code, char *ret)
{
	if (code < 0x80) {
		ret[0] = (char)code;
		return 1;
	}
	if (code < 0x800) {
		ret[0] = (char)(0xc0 | code >> 6);
		ret[1] = (char)(0x80 | (code & 0x3f));
		return 2;
	}
	if (code < 0x10000) {
		ret[0] = (char)(0xe0 | code >> 12);
		ret[1] = (char)(0x80 | (code >> 6 & 0x3f));
		ret[2] = (char)(0x80 | (code & 0x3f));
		return 3;
	}
	ret[0] = (char)(0xf0 | code >> 18);
	ret[1] = (char)(0x80 | (code >> 12 & 0x3f));
	ret[2] = (char)(0x80 | (code >> 6 & 0x3f));
	ret[3] = (char)(0x80 | (code & 0x3f));
	return 4;
}

static char decode_letter(char letter)
{
	static const char letters[] = "\"\\/bfnrt";
	static const char values[] = "\"\\/\b\f\n\r\t";
	const char *found = letter == '\0' ? NULL : strchr(letters, letter);

	return found == NULL ? '\0' : values[found - letters];
}

/*
 * The escape that begins with the backslash at text[0]; 'left' bytes are there. Returns the
 * bytes it takes, 0 when it is wrong, SIZE_MAX when more bytes are needed to tell.
 */
static size_t decode_escape(const char *text, size_t left, char decoded[MAX_UTF8_SIZE],
			    size_t *ret_decoded_size)
{
	uint32_t code = 0;
	uint32_t low = 0;

	if (left < 2) {
		return SIZE_MAX;
	}
	if (text[1] != 'u') {
		decoded[0] = decode_letter(text[1]);
		*ret_decoded_size = 1;
		return decoded[0] == '\0' ? 0 : 2;
	}
	if (left < 6) {
		return SIZE_MAX;
	}
	if (!decode_hex(&text[2], &code) || (code >= 0xdc00 && code <= 0xdfff)) {
		return 0;
	}
	if (code < 0xd800 || code > 0xdfff) {
		*ret_decoded_size = encode_utf8(code, decoded);
		return 6;
	}
	if (left > 6 && text[6] != '\\') {
		return 0;
	}
	if (left < 12) {
		return SIZE_MAX;
	}
	if (text[7] != 'u' || !decode_hex(&text[8], &low) || low < 0xdc00 || low > 0xdfff) {
		return 0;
	}
	code = 0x10000U + ((code & 0x3ffU) << 10) + (low & 0x3ffU);
	*ret_decoded_size = encode_utf8(code, decoded);
	return 12;
}

static bool is_plain(char c)
{
	return (signed char)c >= 0x20 && c != '"' && c != '\\'; /* ASCII, 0x7f included */
}

/* Take one character that is not plain ASCII. Returns 0 or fails. */
static int read_special(struct json_cursor *cursor, struct json_string *string)
{
	const char *text = &cursor->bytes[cursor->at];
	size_t left = cursor->size - cursor->at;
	char decoded[MAX_UTF8_SIZE] = {0};
	size_t decoded_size = 0;
	size_t size;

	if (*text == '\\') {
		size = decode_escape(text, left, decoded, &decoded_size);
		string->has_nul = string->has_nul || (decoded_size == 1 && decoded[0] == '\0');
	} else if ((unsigned char)*text < 0x20) {
		return json_fail(cursor, cursor->at, "a control byte inside a string");
	} else {
		size = utf8_size((const unsigned char *)text, left);
		decoded_size = size;
	}
	if (size == SIZE_MAX) {
		return fail_past_end(cursor);
	}
	if (size == 0) {
		return json_fail(cursor, cursor->at,
				 *text == '\\' ? "an escape that JSON does not have"
					       : "bytes that are not UTF-8");
	}
	cursor->at += size;
	string->size += decoded_size;
	return 0;
}

/* Skip at most 'most' plain bytes; returns how many. */
static size_t skip_plain(struct json_cursor *cursor, size_t most)
{
	const char *text = &cursor->bytes[cursor->at];
	size_t left = cursor->size - cursor->at;
	size_t size = 0;

	left = left < most ? left : most;
	while (size < left && is_plain(text[size])) {
		size++;
	}
	cursor->at += size;
	return size;
}

int json_read_string(struct json_cursor *cursor, size_t max_size, struct json_string *ret)
{
	struct json_string string = {0};
	int code = json_expect(cursor, '"');

	if (code < 0) {
		return code;
	}
	string.at = cursor->at - 1;
	string.raw = &cursor->bytes[cursor->at];
	while (string.size <= max_size) {
		string.size += skip_plain(cursor, max_size - string.size);
		if (is_at_end(cursor)) {
			return fail_past_end(cursor);
		}
		if (cursor->bytes[cursor->at] == '"') {
			string.raw_size = (size_t)(&cursor->bytes[cursor->at] - string.raw);
			cursor->at++;
			*ret = string;
			return 0;
		}
		if (string.size == max_size) {
			break;
		}
		code = read_special(cursor, &string);
		if (code < 0) {
			return code;
		}
	}
	return json_fail(cursor, string.at, "a string that is too long");
}

/* One decoded piece of a string: a run of bytes as they are, or one escape. */
static size_t next_piece(const struct json_string *string, size_t *at, char decoded[MAX_UTF8_SIZE],
			 const char **ret_piece)
{
	const char *text = &string->raw[*at];
	size_t left = string->raw_size - *at;
	const char *escape = memchr(text, '\\', left);
	size_t size = escape == NULL ? left : (size_t)(escape - text);

	*ret_piece = text;
	if (size == 0) {
		*at += decode_escape(text, left, decoded, &size);
		*ret_piece = decoded;
	} else {
		*at += size;
	}
	return size;
}

bool json_string_is(const struct json_string *string, const char *text)
{
	char decoded[MAX_UTF8_SIZE];
	size_t n_matched = 0;

	if (string->size != strlen(text)) {
		return false;
	}
	for (size_t at = 0; at < string->raw_size;) {
		const char *piece;
		size_t size = next_piece(string, &at, decoded, &piece);

		if (memcmp(&text[n_matched], piece, size) != 0) {
			return false;
		}
		n_matched += size;
	}
	return true;
}

size_t json_string_decode(const struct json_string *string, char *ret, size_t capacity)
{
	char decoded[MAX_UTF8_SIZE];
	size_t used = 0;

	for (size_t at = 0; at < string->raw_size && used < capacity;) {
		const char *piece;
		size_t size = next_piece(string, &at, decoded, &piece);

		size = size < capacity - used ? size : capacity - used;
		memcpy(&ret[used], piece, size);
		used += size;
	}
	return used;
}

/* ---- integers ---- */

static bool is_digit_at(const struct json_cursor *cursor)
{
	return !is_at_end(cursor) && cursor->bytes[cursor->at] >= '0' &&
	       cursor->bytes[cursor->at] <= '9';
}

int json_read_integer(struct json_cursor *cursor, uint64_t *ret)
{
	uint64_t value = 0;
	size_t start;

	skip_blanks(cursor);
	start = cursor->at;
	for (; is_digit_at(cursor); cursor->at++) {
		uint64_t digit = (uint64_t)(cursor->bytes[cursor->at] - '0');

		if (cursor->at > start && value == 0) {
			return json_fail(cursor, start, "a number that begins with 0");
		}
		if (!checked_mul(value, 10, &value) || !checked_add(value, digit, &value) ||
		    value > JSON_MAX_INTEGER) {
			return json_fail(cursor, start, "a number over 2^53");
		}
	}
	/* A number that the bytes end on may go on. */
	if (is_at_end(cursor)) {
		return fail_past_end(cursor);
	}
	if (cursor->at == start || strchr(".eE", cursor->bytes[cursor->at]) != NULL) {
		return json_fail(cursor, start,
				 "a whole number from 0 to 2^53 in plain digits was expected");
	}
	*ret = value;
	return 0;
}

/* ---- values of no interest ---- */

static void skip_digits(struct json_cursor *cursor)
{
	while (is_digit_at(cursor)) {
		cursor->at++;
	}
}

static bool take_byte(struct json_cursor *cursor, char wanted)
{
	if (is_at_end(cursor) || cursor->bytes[cursor->at] != wanted) {
		return false;
	}
	cursor->at++;
	return true;
}

static int need_digits(struct json_cursor *cursor)
{
	if (is_digit_at(cursor)) {
		skip_digits(cursor);
		return 0;
	}
	return is_at_end(cursor) ? fail_past_end(cursor)
				 : json_fail(cursor, cursor->at, "a digit is missing");
}

static int skip_number(struct json_cursor *cursor)
{
	int code = 0;

	(void)take_byte(cursor, '-');
	if (!take_byte(cursor, '0')) {
		code = need_digits(cursor);
	}
	if (code == 0 && take_byte(cursor, '.')) {
		code = need_digits(cursor);
	}
	if (code == 0 && (take_byte(cursor, 'e') || take_byte(cursor, 'E'))) {
		(void)(take_byte(cursor, '+') || take_byte(cursor, '-'));
		code = need_digits(cursor);
	}
	return code;
}

/* Anything but an object or an array. */
static int skip_scalar(struct json_cursor *cursor, size_t max_size)
{
	struct json_string string;

	skip_blanks(cursor);
	switch (is_at_end(cursor) ? '\0' : cursor->bytes[cursor->at]) { /* at the end: no number */
	case '"':
		return json_read_string(cursor, max_size, &string);
	case 't':
		return json_expect_word(cursor, "true");
	case 'f':
		return json_expect_word(cursor, "false");
	case 'n':
		return json_expect_word(cursor, "null");
	default:
		return skip_number(cursor);
	}
}

/* The levels that a cursor is in: bit n says whether level n is an object. */
struct levels {
	uint32_t objects;
	uint32_t depth;
};

static bool is_in_object(const struct levels *levels)
{
	return levels->depth > 0 && (levels->objects >> (levels->depth - 1) & 1) != 0;
}

/* After a value: the ends of levels, up to a comma or the end of all. */
static int skip_ends(struct json_cursor *cursor, struct levels *levels)
{
	while (levels->depth > 0 && !json_take(cursor, ',')) {
		int code = json_expect(cursor, is_in_object(levels) ? '}' : ']');

		if (code < 0) {
			return code;
		}
		levels->depth--;
	}
	return 0;
}

enum entered { ENTERED_NOTHING, ENTERED_EMPTY, ENTERED_LEVEL };

/* Where a value begins: into an object or array, if it is one. An empty one is over at once. */
static int enter(struct json_cursor *cursor, struct levels *levels, enum entered *ret)
{
	bool is_object = json_take(cursor, '{');

	*ret = ENTERED_NOTHING;
	if (!is_object && !json_take(cursor, '[')) {
		return 0;
	}
	if (json_take(cursor, is_object ? '}' : ']')) {
		*ret = ENTERED_EMPTY;
		return 0;
	}
	if (levels->depth == JSON_MAX_DEPTH) {
		return json_fail(cursor, cursor->at, "values more than 32 levels deep");
	}
	levels->objects &= ~(1U << levels->depth);
	levels->objects |= (is_object ? 1U : 0U) << levels->depth;
	levels->depth++;
	*ret = ENTERED_LEVEL;
	return 0;
}

int json_skip_value(struct json_cursor *cursor, size_t max_size)
{
	struct levels levels = {0};
	struct json_string key;
	enum entered entered = ENTERED_NOTHING;
	int code = 0;

	do {
		if (is_in_object(&levels)) {
			code = json_read_string(cursor, max_size, &key);
			code = code < 0 ? code : json_expect(cursor, ':');
		}
		if (code == 0) {
			code = enter(cursor, &levels, &entered);
		}
		if (code == 0 && entered == ENTERED_NOTHING) {
			code = skip_scalar(cursor, max_size);
		}
		if (code == 0 && entered != ENTERED_LEVEL) {
			code = skip_ends(cursor, &levels);
		}
	} while (code == 0 && levels.depth > 0);
	return code;
}
