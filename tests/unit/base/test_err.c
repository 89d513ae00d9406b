/* SPDX-License-Identifier: Apache-2.0 */
/* Errors: filled once, prefixed on the way up, cut and never over-run. */
#include "base/err.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <string.h>

#include "proto/gen/wire_code.h"

static void set_fills_every_field(void **state)
{
	struct err err = {.code = 99, .sys = 98, .driver = 97, .offset = 96, .text = "old"};

	(void)state;
	assert_int_equal(err_set(&err, WIRE_BAD_FILE, "file is %d bytes", 12), -WIRE_BAD_FILE);
	assert_int_equal(err.code, WIRE_BAD_FILE);
	assert_int_equal(err.sys, 0);
	assert_int_equal(err.driver, 0);
	assert_true(err.offset == 0);
	assert_string_equal(err.where, "set_fills_every_field");
	assert_string_equal(err.text, "file is 12 bytes");
}

static void set_sys_keeps_errno_as_detail(void **state)
{
	struct err err = {0};

	(void)state;
	assert_int_equal(err_set_sys(&err, WIRE_IO, EIO, "read: %s", "no"), -WIRE_IO);
	assert_int_equal(err.code, WIRE_IO);
	assert_int_equal(err.sys, EIO);
	assert_string_equal(err.text, "read: no");
}

static void nobody_has_to_ask_for_the_error(void **state)
{
	(void)state;
	assert_int_equal(err_set(NULL, WIRE_BUSY, "in use"), -WIRE_BUSY);
	/* A failure whose code is lost must not read as success. */
	assert_true(err_wrap(NULL, "load") < 0);
}

static void a_long_text_is_cut_within_the_field(void **state)
{
	struct {
		struct err err;
		char guard;
	} box = {.guard = 'g'};
	char text[2 * ERR_TEXT_SIZE];

	(void)state;
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	assert_int_equal(err_set(&box.err, WIRE_IO, "%s", text), -WIRE_IO);
	assert_int_equal(strlen(box.err.text), ERR_TEXT_SIZE - 1);
	assert_int_equal(box.guard, 'g');
}

static void wrap_puts_a_prefix_before_and_keeps_the_rest(void **state)
{
	struct err err = {0};

	(void)state;
	(void)err_set_sys(&err, WIRE_IO, ENOSPC, "no room");
	err.offset = 4096;
	assert_int_equal(err_wrap(&err, "shard %d", 3), -WIRE_IO);
	assert_string_equal(err.text, "shard 3: no room");
	assert_int_equal(err.code, WIRE_IO);
	assert_int_equal(err.sys, ENOSPC);
	assert_true(err.offset == 4096);
	assert_string_equal(err.where, "wrap_puts_a_prefix_before_and_keeps_the_rest");
}

static void wrap_cuts_the_old_text_first_then_the_prefix(void **state)
{
	struct err err = {0};
	char text[2 * ERR_TEXT_SIZE];

	(void)state;
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	(void)err_set(&err, WIRE_IO, "%s", text);
	assert_int_equal(err_wrap(&err, "prefix"), -WIRE_IO);
	assert_int_equal(strncmp(err.text, "prefix: xxx", 11), 0);
	assert_int_equal(strlen(err.text), ERR_TEXT_SIZE - 1);

	(void)err_set(&err, WIRE_IO, "tail");
	assert_int_equal(err_wrap(&err, "%s", text), -WIRE_IO);
	assert_int_equal(strlen(err.text), ERR_TEXT_SIZE - 1);
	assert_null(strstr(err.text, "tail"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(set_fills_every_field),
		cmocka_unit_test(set_sys_keeps_errno_as_detail),
		cmocka_unit_test(nobody_has_to_ask_for_the_error),
		cmocka_unit_test(a_long_text_is_cut_within_the_field),
		cmocka_unit_test(wrap_puts_a_prefix_before_and_keeps_the_rest),
		cmocka_unit_test(wrap_cuts_the_old_text_first_then_the_prefix),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
