/* SPDX-License-Identifier: Apache-2.0 */
/* Every row of the schema's dtypes, by name, number and width. */
#include "tests/support/unit.h"

#include <string.h>

#include "daemon/format/dtype.h"
#include "proto/gen/wire_code.h"

static void every_dtype_is_found_by_its_name(void **state)
{
	unsigned n_found = 0;

	(void)state;
#define FIND(number, word, bits, group)                             \
	assert_int_equal(dtype_find(#word, strlen(#word)), number); \
	assert_string_equal(dtype_name(number), #word);             \
	assert_int_equal(dtype_bits(number), bits);                 \
	assert_int_equal(dtype_group(number), group);               \
	n_found++;
	WIRE_DTYPES(FIND)
#undef FIND
	assert_int_equal(n_found, 48);
	assert_int_equal(dtype_bits(WIRE_DTYPE_F32), 32);
	assert_int_equal(dtype_bits(WIRE_DTYPE_F6_E2M3), 6);
	assert_int_equal(dtype_group(WIRE_DTYPE_F32), 1);
	assert_int_equal(dtype_bits(WIRE_DTYPE_Q8_0), 34 * 8);
	assert_int_equal(dtype_group(WIRE_DTYPE_Q8_0), 32);
}

static void what_is_no_dtype_is_zero(void **state)
{
	(void)state;
	assert_int_equal(dtype_find("", 0), 0);
	assert_int_equal(dtype_find("F3", 2), 0);
	assert_int_equal(dtype_find("F322", 4), 0);
	assert_int_equal(dtype_find("f32", 3), 0);
	assert_int_equal(dtype_find("F32\0", 4), 0);
	assert_int_equal(dtype_bits(0), 0);
	assert_int_equal(dtype_bits(49), 0);
	assert_int_equal(dtype_bits(UINT16_MAX), 0);
	assert_int_equal(dtype_group(0), 0);
	assert_int_equal(dtype_group(49), 0);
	assert_null(dtype_name(0));
	assert_null(dtype_name(49));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_dtype_is_found_by_its_name),
		cmocka_unit_test(what_is_no_dtype_is_zero),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
