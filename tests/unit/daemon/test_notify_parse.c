/* SPDX-License-Identifier: Apache-2.0 */
/* What a message to the service manager says. */
#include "tests/support/unit.h"

#include <string.h>

#include "daemon/notify.h"

static struct notify_message parsed(const char *text)
{
	struct notify_message message;

	notify_parse(text, strlen(text), &message);
	return message;
}

static void each_line_says_one_thing(void **state)
{
	struct notify_message message = parsed("FDSTORE=1\nFDPOLL=0\nFDNAME=img.00ff.1.0");

	(void)state;
	assert_true(message.is_store && !message.is_unstore && !message.is_barrier);
	assert_string_equal(message.name, "img.00ff.1.0");
	message = parsed("READY=1\nSTATUS=serving\n");
	assert_true(message.is_ready && !message.is_store);
	assert_true(parsed("FDSTOREREMOVE=1\nFDNAME=x").is_unstore);
	assert_true(parsed("BARRIER=1").is_barrier);
	assert_true(parsed("WATCHDOG=1").is_alive);
	assert_true(parsed("STOPPING=1").is_stopping);
}

static void a_descriptor_without_a_name_is_called_stored(void **state)
{
	(void)state;
	assert_string_equal(parsed("FDSTORE=1").name, "stored");
	assert_false(parsed("FDSTORE=1").has_bad_name);
}

static void names_that_could_not_be_listed_are_bad(void **state)
{
	static const char *const names[] = {"FDNAME=a:b", "FDNAME=", "FDNAME=a b", "FDNAME=\x7f",
					    "FDNAME=\xc3\xa4"};
	char text[400] = "FDNAME=";

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		assert_true(parsed(names[i]).has_bad_name);
	}
	memset(text + 7, 'a', 256);
	assert_true(parsed(text).has_bad_name);
	text[7 + 255] = '\0';
	assert_false(parsed(text).has_bad_name);
	assert_int_equal(strlen(parsed(text).name), 255);
}

static void other_lines_and_other_values_are_passed_over(void **state)
{
	struct notify_message message = parsed("READY=0\nX=1\n\n=\nREADY=11\nFDSTORE=1x");

	(void)state;
	assert_false(message.is_ready || message.is_store || message.has_bad_name);
	notify_parse("", 0, &message);
	assert_false(message.is_ready);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_line_says_one_thing),
		cmocka_unit_test(a_descriptor_without_a_name_is_called_stored),
		cmocka_unit_test(names_that_could_not_be_listed_are_bad),
		cmocka_unit_test(other_lines_and_other_values_are_passed_over),
	};

	return cmocka_run_group_tests_name("daemon/notify_parse", tests, NULL, NULL);
}
