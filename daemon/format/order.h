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

/* 0, 1, 2, ... */
void order_number(uint32_t *items, uint32_t n_items);

/* Sort 'items'; 'scratch' has room for as many, at most 2^31. */
void order_sort(uint32_t *items, uint32_t *scratch, uint32_t n_items, order_is_before_fn is_before,
		const void *context);

/* A name that an item has; borrowed, not terminated. */
struct order_name {
	const char *text;
	uint32_t size;
};

typedef struct order_name (*order_name_fn)(const void *context, uint32_t item);

/*
 * Is there a name that two of the items 0 to 'n_items' - 1 have? Gives the later one. 'scratch'
 * has room for twice as many items. Where there is none, it begins with all items by name.
 */
bool order_find_twice(uint32_t *scratch, uint32_t n_items, order_name_fn name_of,
		      const void *context, uint32_t *ret_item);

/* The item of this name among 'n_items' that are sorted by it; false when there is none. */
bool order_find(const uint32_t *sorted, uint32_t n_items, order_name_fn name_of,
		const void *context, struct order_name name, uint32_t *ret_item);

#endif
