/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/unit.h"

#include <stdlib.h>

#include "daemon/load/hash.h"

static void the_hash_is_xxh3_with_64_bits(void **state)
{
	(void)state;
	/* Vectors of the XXH3 specification: the empty input, and "a" as in its own tests. */
	assert_int_equal(hash_bytes("", 0), 0x2d06800538d394c2ULL);
	assert_int_equal(hash_bytes("a", 1), 0xe6c632b61e964e1fULL);
}

static void pieces_give_the_hash_of_the_whole(void **state)
{
	static uint8_t bytes[100003];
	struct hash_stream *stream = hash_stream_new();

	(void)state;
	assert_non_null(stream);
	for (size_t i = 0; i < sizeof bytes; i++) {
		bytes[i] = (uint8_t)(i * 31 >> 3);
	}
	for (size_t piece = 1; piece < sizeof bytes; piece = piece * 7 + 1) {
		hash_stream_begin(stream);
		for (size_t at = 0; at < sizeof bytes; at += piece) {
			size_t left = sizeof bytes - at;

			hash_stream_add(stream, bytes + at, left < piece ? left : piece);
		}
		assert_int_equal(hash_stream_end(stream), hash_bytes(bytes, sizeof bytes));
	}
	assert_null(hash_stream_free(stream));
}

static void every_started_range_has_a_sum(void **state)
{
	(void)state;
	assert_int_equal(hash_count_sums(0), 0);
	assert_int_equal(hash_count_sums(1), 1);
	assert_int_equal(hash_count_sums(HASH_RANGE_BYTES), 1);
	assert_int_equal(hash_count_sums(HASH_RANGE_BYTES + 1), 2);
	assert_int_equal(hash_count_sums(UINT64_MAX), UINT32_MAX);
}

static void the_sum_of_a_hole_is_that_of_zeros(void **state)
{
	uint8_t *zeros = calloc(1, HASH_RANGE_BYTES);

	(void)state;
	assert_non_null(zeros);
	assert_int_equal(hash_bytes(zeros, HASH_RANGE_BYTES), HASH_OF_HOLE);
	free(zeros);
}

static void one_number_stands_for_all_sums(void **state)
{
	const uint64_t sums[2] = {1, 2};
	const uint64_t other[2] = {2, 1};

	(void)state;
	assert_int_equal(hash_sums(sums, 2), hash_bytes("\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0", 16));
	assert_int_not_equal(hash_sums(sums, 2), hash_sums(other, 2));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_hash_is_xxh3_with_64_bits),
		cmocka_unit_test(pieces_give_the_hash_of_the_whole),
		cmocka_unit_test(every_started_range_has_a_sum),
		cmocka_unit_test(the_sum_of_a_hole_is_that_of_zeros),
		cmocka_unit_test(one_number_stands_for_all_sums),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
