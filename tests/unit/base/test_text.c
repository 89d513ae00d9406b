/* SPDX-License-Identifier: Apache-2.0 */
/* Hostile text made harmless, and nearest names. */
#include "base/text.h"
#include "tests/support/unit.h"

#include <string.h>

struct escape_case {
	const char *text;
	const char *expected;
};

static void escape_shows_only_what_is_harmless(void **state)
{
	static const struct escape_case cases[] = {
		{"", ""},
		{"plain ~ text", "plain ~ text"},
		{"tab\tnew\nline\r", "tab\\x09new\\x0aline\\x0d"},
		{"\x1b[31m", "\\x1b[31m"},
		{"del\x7f", "del\\x7f"},
		{"back\\slash", "back\\x5cslash"},
		{"new\\x0aline", "new\\x0aline"}, /* not twice */
		{"\\x0", "\\x5cx0"},
		{"\xc3\xa9\xe2\x82\xac\xf0\x9f\x8e\x89", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x8e\x89"},
		{"\xc2\x9b", "\\xc2\\x9b"},                   /* C1: CSI */
		{"\xe2\x80\xae", "\\xe2\\x80\\xae"},          /* right to left override */
		{"\xe2\x81\xa6", "\\xe2\\x81\\xa6"},          /* isolate */
		{"\xd8\x9c", "\\xd8\\x9c"},                   /* arabic letter mark */
		{"\xe2\x80\x8b", "\\xe2\\x80\\x8b"},          /* zero width space */
		{"\xef\xbb\xbf", "\\xef\\xbb\\xbf"},          /* byte order mark */
		{"\xf3\xa0\x81\x81", "\\xf3\\xa0\\x81\\x81"}, /* tag */
		{"\xc0\xaf", "\\xc0\\xaf"},                   /* overlong, two bytes */
		{"\xe0\x9f\xbf", "\\xe0\\x9f\\xbf"},          /* overlong, three */
		{"\xf0\x8f\xbf\xbf", "\\xf0\\x8f\\xbf\\xbf"}, /* overlong, four */
		{"\xed\xa0\x80", "\\xed\\xa0\\x80"},          /* surrogate */
		{"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"}, /* past the last */
		{"\xf5", "\\xf5"},                            /* no such start */
		{"\x80z", "\\x80z"},                          /* no start at all */
		{"\xe2\x82", "\\xe2\\x82"},                   /* cut at the end */
		{"\xe2(\xa1", "\\xe2(\\xa1"},                 /* broken in the middle */
	};
	char buffer[64];

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		assert_ptr_equal(text_escape(cases[i].text, buffer, sizeof buffer), buffer);
		assert_string_equal(buffer, cases[i].expected);
	}
}

static void escape_cuts_between_characters(void **state)
{
	char buffer[8];

	(void)state;
	memset(buffer, '#', sizeof buffer);
	assert_string_equal(text_escape("ab\xe2\x82\xac", buffer, 5), "ab");
	assert_int_equal(buffer[5], '#');
	assert_string_equal(text_escape("ab\xe2\x82\xac", buffer, 6), "ab\xe2\x82\xac");
	assert_string_equal(text_escape("abc\n", buffer, sizeof buffer), "abc\\x0a");
	assert_string_equal(text_escape("abcd\n", buffer, sizeof buffer), "abcd");
	assert_string_equal(text_escape("x", buffer, 1), "");
}

static void distance_counts_letters(void **state)
{
	char long_text[65];

	(void)state;
	assert_int_equal(text_distance("", ""), 0);
	assert_int_equal(text_distance("load", "load"), 0);
	assert_int_equal(text_distance("", "load"), 4);
	assert_int_equal(text_distance("load", ""), 4);
	assert_int_equal(text_distance("laod", "load"), 2);
	assert_int_equal(text_distance("lod", "load"), 1);
	assert_int_equal(text_distance("kitten", "sitting"), 3);
	memset(long_text, 'x', 64);
	long_text[64] = '\0';
	assert_true(text_distance(long_text, "x") == SIZE_MAX);
	assert_true(text_distance("x", long_text) == SIZE_MAX);
	long_text[63] = '\0';
	assert_int_equal(text_distance(long_text, "x"), 62);
}

static void nearest_is_near_or_none(void **state)
{
	static const char *const names[] = {"load", "unload", "list"};

	(void)state;
	assert_string_equal(text_nearest("laod", names, 3), "load");
	assert_string_equal(text_nearest("lisst", names, 3), "list");
	assert_string_equal(text_nearest("unlaod", names, 3), "unload");
	assert_null(text_nearest("quux", names, 3));
	assert_null(text_nearest("to", (const char *const[]){"si"}, 1)); /* another word */
	assert_null(text_nearest("load", names, 0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(escape_shows_only_what_is_harmless),
		cmocka_unit_test(escape_cuts_between_characters),
		cmocka_unit_test(distance_counts_letters),
		cmocka_unit_test(nearest_is_near_or_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
