/* SPDX-License-Identifier: Apache-2.0 */
/* The cursor: strings, integers and where exactly it refuses. */
#include "base/err.h"
#include "base/json_scan.h"
#include "tests/support/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

struct given {
	struct json_cursor cursor;
	struct err err;
	char *bytes; /* of exactly the size, so that a sanitizer sees any read past it */
};

static void given_text(struct given *given, const char *text, size_t size)
{
	memset(given, 0, sizeof *given);
	given->bytes = malloc(size + (size == 0));
	assert_non_null(given->bytes);
	memcpy(given->bytes, text, size);
	given->cursor = (struct json_cursor){.bytes = given->bytes,
					     .size = size,
					     .base = 100,
					     .err = &given->err};
}

/* 'raw' goes between quotes; 'decoded' is what comes of it. */
static void check_string(const char *raw, const char *decoded, size_t decoded_size)
{
	struct given given;
	struct json_string string;
	char quoted[256];
	char result[256];
	int size = snprintf(quoted, sizeof quoted, " \"%s\",", raw);

	given_text(&given, quoted, (size_t)size);
	assert_int_equal(json_read_string(&given.cursor, decoded_size, &string), 0);
	assert_int_equal(string.size, decoded_size);
	assert_int_equal(string.at, 1);
	assert_int_equal(json_string_decode(&string, result, sizeof result), decoded_size);
	assert_memory_equal(result, decoded, decoded_size);
	assert_int_equal(string.has_nul, memchr(decoded, 0, decoded_size) != NULL);
	if (!string.has_nul) {
		assert_true(json_string_is(&string, decoded));
	}
	assert_true(json_take(&given.cursor, ','));
	/* One byte less room is too little, and decoding stops where it is told to. */
	given.cursor.at = 0;
	if (decoded_size > 0) {
		assert_int_equal(json_read_string(&given.cursor, decoded_size - 1, &string),
				 -WIRE_BAD_FILE);
		assert_int_equal(given.err.offset, 101);
		given.cursor.at = 0;
		assert_int_equal(json_read_string(&given.cursor, 200, &string), 0);
		memset(result, 'z', sizeof result);
		assert_int_equal(json_string_decode(&string, result, decoded_size - 1),
				 decoded_size - 1);
		assert_memory_equal(result, decoded, decoded_size - 1);
		assert_int_equal(result[decoded_size - 1], 'z');
	}
	free(given.bytes);
}

#define CHECK_STRING(raw, decoded) check_string(raw, decoded, sizeof decoded - 1)

static void strings_are_decoded(void **state)
{
	(void)state;
	CHECK_STRING("", "");
	CHECK_STRING("plain", "plain");
	CHECK_STRING("\\\"\\\\\\/\\b\\f\\n\\r\\t", "\"\\/\b\f\n\r\t");
	CHECK_STRING("a\\u0041\\u00e9\\u20AC", "aA\xc3\xa9\xe2\x82\xac");
	CHECK_STRING("\\u007f\\u0080\\u07ff\\u0800\\uffff",
		     "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf");
	CHECK_STRING("\\ud800\\udc00", "\xf0\x90\x80\x80");
	CHECK_STRING("\\udbff\\udfff", "\xf4\x8f\xbf\xbf");
	CHECK_STRING("\\uD83D\\uDE00 ", "\xf0\x9f\x98\x80 ");
	CHECK_STRING("\\u0000", "\0");
	CHECK_STRING("x\\u0000y", "x\0y");
	CHECK_STRING(
		"\x7f\xc2\x80\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
		"\x7f\xc2\x80\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf");
}

static void strings_are_compared_as_decoded(void **state)
{
	struct given given;
	struct json_string string;

	(void)state;
	given_text(&given, "\"sh\\u0061pe\"", 12);
	assert_int_equal(json_read_string(&given.cursor, 100, &string), 0);
	assert_true(json_string_is(&string, "shape"));
	assert_false(json_string_is(&string, "shaPe"));
	assert_false(json_string_is(&string, "shapes"));
	assert_false(json_string_is(&string, "shap"));
	assert_false(json_string_is(&string, ""));
	free(given.bytes);
}

/* Refused at byte 'at' of the string, and not for want of more bytes. */
static void check_no_string(const char *raw, size_t raw_size, size_t at)
{
	struct given given;
	struct json_string string;
	char quoted[64] = "\"";

	memcpy(&quoted[1], raw, raw_size);
	memcpy(&quoted[1 + raw_size], "xxxxxxxxxxxxxxx\"", 16);
	given_text(&given, quoted, raw_size + 17);
	assert_int_equal(json_read_string(&given.cursor, 100, &string), -WIRE_BAD_FILE);
	assert_int_equal(given.err.offset, 101 + at);
	assert_false(given.cursor.is_past_end);
	free(given.bytes);
}

#define CHECK_NO_STRING(raw, at) check_no_string(raw, sizeof raw - 1, at)

static void strings_that_json_does_not_have_are_refused(void **state)
{
	(void)state;
	CHECK_NO_STRING("\0", 0);
	CHECK_NO_STRING("a\n", 1);
	CHECK_NO_STRING("a\x1f", 1);
	CHECK_NO_STRING("\\a", 0);
	CHECK_NO_STRING("\\\0", 0);
	CHECK_NO_STRING("\\U0041", 0);
	CHECK_NO_STRING("\\u004g", 0);
	CHECK_NO_STRING("\\u-041", 0);
	CHECK_NO_STRING("\\udc00", 0);
	CHECK_NO_STRING("\\udfff\\ud800", 0);
	CHECK_NO_STRING("\\ud800", 0);
	CHECK_NO_STRING("\\ud800\\n", 0);
	CHECK_NO_STRING("\\ud800\\u0041", 0);
	CHECK_NO_STRING("\\ud800\\ue000", 0);
	CHECK_NO_STRING("a\x80", 1);
	CHECK_NO_STRING("\xbf", 0);
	CHECK_NO_STRING("\xc1\xbf", 0);
	CHECK_NO_STRING("\xc2", 0);
	CHECK_NO_STRING("\xc2\xc0", 0);
	CHECK_NO_STRING("\xe0\x9f\xbf", 0);
	CHECK_NO_STRING("\xed\xa0\x80", 0);
	CHECK_NO_STRING("\xe1\x80", 0);
	CHECK_NO_STRING("\xf0\x8f\xbf\xbf", 0);
	CHECK_NO_STRING("\xf4\x90\x80\x80", 0);
	CHECK_NO_STRING("\xf5\x80\x80\x80", 0);
	CHECK_NO_STRING("\xf1\x80\x80", 0);
	CHECK_NO_STRING("\xff", 0);
}

static void every_cut_of_a_string_wants_more(void **state)
{
	static const char text[] =
		"\"a\\n\\u0041\\ud83d\\ude00\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"";

	(void)state;
	for (size_t size = 0; size < sizeof text - 1; size++) {
		struct given given;
		struct json_string string;

		given_text(&given, text, size);
		assert_int_equal(json_read_string(&given.cursor, 100, &string), -WIRE_BAD_FILE);
		assert_true(given.cursor.is_past_end);
		assert_int_equal(given.err.offset, 100 + size);
		free(given.bytes);
	}
}

static void check_integer(const char *text, uint64_t wanted)
{
	struct given given;
	uint64_t value = 77;

	given_text(&given, text, strlen(text));
	assert_int_equal(json_read_integer(&given.cursor, &value), 0);
	assert_int_equal(value, wanted);
	assert_true(json_take(&given.cursor, ']'));
	free(given.bytes);
}

static void integers_are_exact(void **state)
{
	(void)state;
	check_integer("0]", 0);
	check_integer(" \t\r\n10 ]", 10);
	check_integer("9007199254740991]", 9007199254740991U);
	check_integer("9007199254740992]", 9007199254740992U);
}

static void other_numbers_are_refused_where_they_begin(void **state)
{
	static const char *const texts[] = {" 00]",
					    " 01]",
					    " -1]",
					    " -0]",
					    " +1]",
					    " 1.0]",
					    " 1e3]",
					    " 1E3]",
					    " .5]",
					    " x]",
					    " ]",
					    " \"1\"]",
					    " 9007199254740993]",
					    " 18446744073709551616]",
					    " 99999999999999999999999999]"};

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		struct given given;
		uint64_t value = 77;

		given_text(&given, texts[i], strlen(texts[i]));
		assert_int_equal(json_read_integer(&given.cursor, &value), -WIRE_BAD_FILE);
		assert_int_equal(given.err.offset, 101);
		assert_false(given.cursor.is_past_end);
		assert_int_equal(value, 77);
		free(given.bytes);
	}
}

static void a_number_at_the_end_may_go_on(void **state)
{
	struct given given;
	uint64_t value;

	(void)state;
	given_text(&given, "12", 2);
	assert_int_equal(json_read_integer(&given.cursor, &value), -WIRE_BAD_FILE);
	assert_true(given.cursor.is_past_end);
	free(given.bytes);
}

static void words_and_ends_are_expected(void **state)
{
	struct given given;

	(void)state;
	given_text(&given, " null \t", 7);
	assert_int_equal(json_expect_word(&given.cursor, "null"), 0);
	assert_int_equal(json_expect_end(&given.cursor), 0);
	assert_int_equal(json_expect(&given.cursor, '}'), -WIRE_BAD_FILE);
	assert_true(given.cursor.is_past_end);
	free(given.bytes);

	given_text(&given, "nul", 3);
	assert_int_equal(json_expect_word(&given.cursor, "null"), -WIRE_BAD_FILE);
	assert_true(given.cursor.is_past_end);
	free(given.bytes);

	given_text(&given, "nulx", 4);
	assert_int_equal(json_expect_word(&given.cursor, "null"), -WIRE_BAD_FILE);
	assert_false(given.cursor.is_past_end);
	assert_int_equal(given.err.offset, 103);
	free(given.bytes);

	given_text(&given, "  x", 3);
	assert_int_equal(json_expect_end(&given.cursor), -WIRE_BAD_FILE);
	assert_int_equal(given.err.offset, 102);
	assert_false(json_take(&given.cursor, 'y'));
	assert_int_equal(json_expect(&given.cursor, 'y'), -WIRE_BAD_FILE);
	assert_string_equal(given.err.text, "byte 102: 'y' is missing");
	given.cursor.err = NULL;
	assert_int_equal(json_expect(&given.cursor, 'y'), -WIRE_BAD_FILE);
	assert_int_equal(json_expect(&given.cursor, 'x'), 0);
	free(given.bytes);
}

static void check_skipped(const char *text, int code, const char *words)
{
	struct given given;
	char whole[512];
	int size = snprintf(whole, sizeof whole, "%s,", text);

	given_text(&given, whole, (size_t)size);
	assert_int_equal(json_skip_value(&given.cursor, 8), code);
	if (code == 0) {
		assert_true(json_take(&given.cursor, ','));
		assert_int_equal(json_expect_end(&given.cursor), 0);
	} else {
		assert_non_null(strstr(given.err.text, words));
	}
	free(given.bytes);
}

static void any_value_is_skipped(void **state)
{
	static const char *const good[] = {
		"1",
		"-0",
		" 10.25e+3",
		"0.5E-7",
		"true",
		"false",
		"null",
		"\"x\"",
		"[]",
		"{}",
		"[[], {}, [ ] ]",
		"{\"a\":{\"b\":[1,{\"c\":[]}]},\"d\":null}",
		"[{\"a\":1},{\"a\":[2,[3]]},4]",
	};
	char deep[2 * JSON_MAX_DEPTH + 3] = "";

	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
		check_skipped(good[i], 0, "");
	}
	memset(deep, '[', JSON_MAX_DEPTH);
	deep[JSON_MAX_DEPTH] = '1';
	memset(deep + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH);
	check_skipped(deep, 0, "");
}

static void no_other_value_is_skipped(void **state)
{
	static const char *const bad[][2] = {
		{"-", "a digit is missing"},
		{"1.", "a digit"},
		{"1e", "a digit"},
		{".5", "a digit"},
		{"nul", "another kind"},
		{"[1", "ends in the"},
		{"[1}", "']' is missing"},
		{"{1:2}", "'\"' is"},
		{"{\"a\"}", "':' is missing"},
		{"[1,]", "a digit"},
		{"{\"a\":1,}", "'\"' is missing"},
		{"\"123456789\"", "long"},
		{"{\"a\":[}", "a digit"},
	};
	char deep[JSON_MAX_DEPTH + 2] = "";

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		check_skipped(bad[i][0], -WIRE_BAD_FILE, bad[i][1]);
	}
	memset(deep, '[', JSON_MAX_DEPTH + 1);
	check_skipped(deep, -WIRE_BAD_FILE, "32 levels");
}

/* What lies behind the end is not the text's, whatever it looks like. */
static void a_value_that_is_cut_off_is_not_looked_for_behind_the_end(void **state)
{
	static const char text[] = "{\"a\":1}";
	struct err err = {0};
	struct json_cursor cursor = {.bytes = text, .size = 5, .err = &err};

	(void)state;
	assert_int_equal(json_skip_value(&cursor, 8), -WIRE_BAD_FILE);
	assert_non_null(strstr(err.text, "ends in the middle"));
	assert_true(cursor.is_past_end);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_value_is_skipped),
		cmocka_unit_test(no_other_value_is_skipped),
		cmocka_unit_test(a_value_that_is_cut_off_is_not_looked_for_behind_the_end),
		cmocka_unit_test(strings_are_decoded),
		cmocka_unit_test(strings_are_compared_as_decoded),
		cmocka_unit_test(strings_that_json_does_not_have_are_refused),
		cmocka_unit_test(every_cut_of_a_string_wants_more),
		cmocka_unit_test(integers_are_exact),
		cmocka_unit_test(other_numbers_are_refused_where_they_begin),
		cmocka_unit_test(a_number_at_the_end_may_go_on),
		cmocka_unit_test(words_and_ends_are_expected),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
