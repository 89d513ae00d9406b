/* SPDX-License-Identifier: Apache-2.0 */
/* Bottom-up merge sort. See order.h. */
#include "daemon/format/order.h"

#include <string.h>

struct sorter {
	uint32_t *items;
	uint32_t *scratch;
	order_is_before_fn is_before;
	const void *context;
};

/* Merge the sorted runs [first, middle) and [middle, end). */
static void merge(const struct sorter *sorter, uint32_t first, uint32_t middle, uint32_t end)
{
	uint32_t *items = sorter->items;
	uint32_t left = first;
	uint32_t right = middle;

	if (!sorter->is_before(sorter->context, items[middle], items[middle - 1])) {
		return;
	}
	memcpy(&sorter->scratch[first], &items[first], (end - first) * sizeof *items);
	for (uint32_t at = first; at < end; at++) {
		const uint32_t *from = sorter->scratch;
		bool is_right = left == middle ||
				(right < end &&
				 sorter->is_before(sorter->context, from[right], from[left]));

		items[at] = is_right ? from[right++] : from[left++];
	}
}

void order_sort(uint32_t *items, uint32_t *scratch, uint32_t n_items, order_is_before_fn is_before,
		const void *context)
{
	const struct sorter sorter = {items, scratch, is_before, context};

	for (uint32_t width = 1; width < n_items; width *= 2) {
		for (uint32_t first = 0; n_items - first > width;) {
			uint32_t left = n_items - first;
			uint32_t end = left / 2 < width ? n_items : first + 2 * width;

			merge(&sorter, first, first + width, end);
			first = end;
		}
	}
}

void order_number(uint32_t *items, uint32_t n_items)
{
	for (uint32_t i = 0; i < n_items; i++) {
		items[i] = i;
	}
}

struct named {
	order_name_fn name_of;
	const void *context;
};

static int compare_names(struct order_name x, struct order_name y)
{
	int difference = memcmp(x.text, y.text, x.size < y.size ? x.size : y.size);

	return difference != 0 ? difference : (x.size > y.size) - (x.size < y.size);
}

static bool is_named_before(const void *context, uint32_t a, uint32_t b)
{
	const struct named *named = context;

	return compare_names(named->name_of(named->context, a), named->name_of(named->context, b)) <
	       0;
}

bool order_find_twice(uint32_t *scratch, uint32_t n_items, order_name_fn name_of,
		      const void *context, uint32_t *ret_item)
{
	const struct named named = {name_of, context};

	order_number(scratch, n_items);
	order_sort(scratch, &scratch[n_items], n_items, is_named_before, &named);
	for (uint32_t i = 1; i < n_items; i++) {
		if (!is_named_before(&named, scratch[i - 1], scratch[i])) {
			*ret_item = scratch[i];
			return true;
		}
	}
	return false;
}

bool order_find(const uint32_t *sorted, uint32_t n_items, order_name_fn name_of,
		const void *context, struct order_name name, uint32_t *ret_item)
{
	uint32_t first = 0;
	uint32_t end = n_items;

	while (first < end) {
		uint32_t middle = first + (end - first) / 2;
		int difference = compare_names(name_of(context, sorted[middle]), name);

		if (difference == 0) {
			*ret_item = sorted[middle];
			return true;
		}
		if (difference < 0) {
			first = middle + 1;
		} else {
			end = middle;
		}
	}
	return false;
}
