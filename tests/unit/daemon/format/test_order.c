/* SPDX-License-Identifier: Apache-2.0 */
/* The sort, over every length up to 70 and a few patterns. */
#include "tests/support/unit.h"

#include "daemon/format/order.h"

#define MOST 4096U

static unsigned n_compared;

static bool is_before(const void *context, uint32_t a, uint32_t b)
{
	const uint32_t *keys = context;

	n_compared++;
	return keys[a] < keys[b];
}

static void check_sorted(const uint32_t *keys, uint32_t n_items)
{
	static uint32_t items[MOST];
	static uint32_t scratch[MOST];
	static bool is_seen[MOST];

	for (uint32_t i = 0; i < n_items; i++) {
		items[i] = i;
		is_seen[i] = false;
	}
	n_compared = 0;
	order_sort(items, scratch, n_items, is_before, keys);
	for (uint32_t i = 0; i < n_items; i++) {
		assert_true(items[i] < n_items && !is_seen[items[i]]);
		is_seen[items[i]] = true;
		if (i > 0) {
			assert_true(keys[items[i - 1]] <= keys[items[i]]);
			/* Stable: equal keys stay in their order. */
			assert_true(keys[items[i - 1]] != keys[items[i]] ||
				    items[i - 1] < items[i]);
		}
	}
}

static void any_length_is_sorted_and_stable(void **state)
{
	uint32_t keys[70];
	uint32_t random = 1;

	(void)state;
	for (uint32_t n_items = 0; n_items <= 70; n_items++) {
		for (uint32_t n_keys = 1; n_keys < 80; n_keys += 13) {
			for (uint32_t i = 0; i < n_items; i++) {
				random = random * 1664525U + 1013904223U;
				keys[i] = (random >> 16) % n_keys;
			}
			check_sorted(keys, n_items);
		}
	}
}

static void no_pattern_is_slow(void **state)
{
	static uint32_t keys[MOST];

	(void)state;
	for (uint32_t i = 0; i < MOST; i++) {
		keys[i] = i;
	}
	check_sorted(keys, MOST);
	assert_true(n_compared < MOST);
	for (uint32_t i = 0; i < MOST; i++) {
		keys[i] = MOST - i;
	}
	check_sorted(keys, MOST);
	assert_true(n_compared < MOST * 13);
	for (uint32_t i = 0; i < MOST; i++) {
		keys[i] = i % 2 == 0 ? i : MOST - i;
	}
	check_sorted(keys, MOST);
	assert_true(n_compared < MOST * 13);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_length_is_sorted_and_stable),
		cmocka_unit_test(no_pattern_is_slow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
