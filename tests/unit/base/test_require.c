/* SPDX-License-Identifier: Apache-2.0 */
/* REQUIRE ends the program and says where; CHECK counts and goes on. */
#include "base/require.h"
#include "tests/support/dies.h"
#include "tests/support/unit.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int report_pipe[2];

static void report(const char *condition, const char *file, int line)
{
	char text[256];
	int size = snprintf(text, sizeof text, "%s|%s|%d", condition, file, line > 0);

	(void)!write(report_pipe[1], text, (size_t)size); /* an empty report fails the test */
}

static void require_false(void *context)
{
	int *value = context;

	REQUIRE(*value == 2);
}

static void a_broken_requirement_aborts(void **state)
{
	int value = 1;

	(void)state;
	assert_dies(require_false, &value);
	value = 2;
	assert_false(dies(require_false, &value));
}

static void a_broken_requirement_is_reported_first(void **state)
{
	char text[256] = {0};
	int value = 1;

	(void)state;
	assert_int_equal(pipe2(report_pipe, O_CLOEXEC | O_NONBLOCK), 0);
	require_report = report;
	assert_dies(require_false, &value);
	require_report = NULL;
	assert_true(read(report_pipe[0], text, sizeof text - 1) > 0);
	assert_non_null(strstr(text, "*value == 2|"));
	assert_non_null(strstr(text, "test_require.c|1"));
	(void)close(report_pipe[0]);
	(void)close(report_pipe[1]);
}

static void a_check_tells_and_counts(void **state)
{
	unsigned long before = require_n_failed_checks;
	int bits = 6;

	(void)state;
	assert_true(CHECK(bits & 4)); /* any true value, not only 1 */
	assert_int_equal(require_n_failed_checks, before);
	assert_false(CHECK(bits & 1));
	assert_int_equal(require_n_failed_checks, before + 1);
}

static void debug_check_false(void *context)
{
	int *value = context;

	DEBUG_CHECK(*value == 2);
}

static void a_debug_check_aborts_in_testing_builds(void **state)
{
	int value = 1;

	(void)state;
	assert_dies(debug_check_false, &value);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_broken_requirement_aborts),
		cmocka_unit_test(a_broken_requirement_is_reported_first),
		cmocka_unit_test(a_check_tells_and_counts),
		cmocka_unit_test(a_debug_check_aborts_in_testing_builds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
