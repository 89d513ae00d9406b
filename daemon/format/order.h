/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sort indices: stable, O(n log n) whatever the input is, O(n) when it is in order already
 * (files mostly are), no allocation. Pure; any thread.
 */
#ifndef FORMAT_ORDER_H
#define FORMAT_ORDER_H

#include <stdbool.h>
#include <stdint.h>

typedef bool (*order_is_before_fn)(const void *context, uint32_t a, uint32_t b);

/* Sort 'items'; 'scratch' has room for as many, at most 2^31. */
void order_sort(uint32_t *items, uint32_t *scratch, uint32_t n_items, order_is_before_fn is_before,
		const void *context);

#endif
