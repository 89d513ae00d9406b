/* SPDX-License-Identifier: Apache-2.0 */
/* Arithmetic on foreign numbers: at the edge, one past it, and results left alone. */
#include "base/checked.h"
#include "tests/support/unit.h"

#define UNTOUCHED 0x5eedULL

static void add_refuses_what_wraps(void **state)
{
	uint64_t sum = UNTOUCHED;

	(void)state;
	assert_false(checked_add(UINT64_MAX, 1, &sum));
	assert_false(checked_add(1, UINT64_MAX, &sum));
	assert_true(sum == UNTOUCHED);
	assert_true(checked_add(UINT64_MAX - 1, 1, &sum));
	assert_true(sum == UINT64_MAX);
	assert_true(checked_add(2, 3, &sum));
	assert_true(sum == 5);
}

static void sub_refuses_what_is_negative(void **state)
{
	uint64_t rest = UNTOUCHED;

	(void)state;
	assert_false(checked_sub(4, 5, &rest));
	assert_true(rest == UNTOUCHED);
	assert_true(checked_sub(5, 5, &rest));
	assert_true(rest == 0);
	assert_true(checked_sub(UINT64_MAX, 1, &rest));
	assert_true(rest == UINT64_MAX - 1);
}

static void mul_refuses_what_wraps(void **state)
{
	uint64_t product = UNTOUCHED;

	(void)state;
	assert_false(checked_mul(1ULL << 32, 1ULL << 32, &product));
	assert_false(checked_mul(UINT64_MAX, 2, &product));
	assert_true(product == UNTOUCHED);
	assert_true(checked_mul(UINT64_MAX, 1, &product));
	assert_true(product == UINT64_MAX);
	assert_true(checked_mul(0, UINT64_MAX, &product));
	assert_true(product == 0);
}

static void round_up_wants_a_power_of_two_and_room(void **state)
{
	uint64_t rounded = UNTOUCHED;

	(void)state;
	assert_false(checked_round_up(1, 0, &rounded));
	assert_false(checked_round_up(1, 3, &rounded));
	assert_false(checked_round_up(UINT64_MAX, 4096, &rounded));
	assert_false(checked_round_up(UINT64_MAX - 4094, 4096, &rounded));
	assert_true(rounded == UNTOUCHED);
	assert_true(checked_round_up(UINT64_MAX - 4095, 4096, &rounded));
	assert_true(rounded == UINT64_MAX - 4095);
	assert_true(checked_round_up(0, 4096, &rounded));
	assert_true(rounded == 0);
	assert_true(checked_round_up(1, 4096, &rounded));
	assert_true(rounded == 4096);
	assert_true(checked_round_up(4096, 4096, &rounded));
	assert_true(rounded == 4096);
	assert_true(checked_round_up(77, 1, &rounded));
	assert_true(rounded == 77);
}

static void narrow_refuses_what_is_wider(void **state)
{
	uint32_t narrow = 7;
	size_t size = 7;

	(void)state;
	assert_false(checked_narrow_u32(UINT32_MAX + 1ULL, &narrow));
	assert_int_equal(narrow, 7);
	assert_true(checked_narrow_u32(UINT32_MAX, &narrow));
	assert_true(narrow == UINT32_MAX);
	assert_true(checked_narrow_size(SIZE_MAX, &size));
	assert_true(size == SIZE_MAX);
}

static void range_never_adds_offset_and_size(void **state)
{
	(void)state;
	assert_true(checked_range(0, 10, 10));
	assert_true(checked_range(10, 0, 10));
	assert_false(checked_range(11, 0, 10));
	assert_false(checked_range(5, 6, 10));
	assert_true(checked_range(5, 5, 10));
	/* The sum would wrap to 4. */
	assert_false(checked_range(5, UINT64_MAX, 10));
	assert_false(checked_range(UINT64_MAX, 5, 10));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(add_refuses_what_wraps),
		cmocka_unit_test(sub_refuses_what_is_negative),
		cmocka_unit_test(mul_refuses_what_wraps),
		cmocka_unit_test(round_up_wants_a_power_of_two_and_room),
		cmocka_unit_test(narrow_refuses_what_is_wider),
		cmocka_unit_test(range_never_adds_offset_and_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
