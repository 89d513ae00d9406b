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
