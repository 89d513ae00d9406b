/* SPDX-License-Identifier: Apache-2.0 */
/* Names: UTF-8 to the last byte, and no NUL. */
#include "base/utf8.h"
#include "tests/support/unit.h"

#include <string.h>

static bool is_name(const char *text)
{
	return utf8_is_name(text, strlen(text));
}

static void names_are_utf8(void **state)
{
	(void)state;
	assert_true(is_name(""));
	assert_true(is_name("blk.0\n\x7f"));
	assert_true(is_name("\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80"));
	assert_true(is_name("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"));
}

static void what_is_no_utf8_is_no_name(void **state)
{
	static const char *const bad[] = {"\x80",
					  "\xc1\x81",
					  "a\xc3",
					  "\xe2\x82",
					  "\xc3z",
					  "\xe0\x9f\xbf",
					  "\xed\xa0\x80",
					  "\xf0\x8f\xbf\xbf",
					  "\xf4\x90\x80\x80",
					  "\xf5\x80\x80",
					  "\xf0\x90\x80",
					  "\xe2\x82z",
					  "\xff"};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		assert_false(is_name(bad[i]));
	}
	assert_false(utf8_is_name("a\0b", 3));
	assert_false(utf8_is_name("\0", 1));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_are_utf8),
		cmocka_unit_test(what_is_no_utf8_is_no_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
