/* SPDX-License-Identifier: Apache-2.0 */
/* Ids are tag << 32 | index + 1, below 2^63; the tag is odd while the slot is in use. See idtab.h. */
#include "base/idtab.h"

#include "base/require.h"

#define TAG_MASK 0x7fffffffU /* ids go over the wire as signed numbers too */

#include <string.h>

static struct idtab_slot *slot_at(const struct idtab *tab, uint32_t index)
{
	return (struct idtab_slot *)(void *)((char *)tab->slots + (size_t)index * tab->slot_size);
}

static uint32_t index_of(const struct idtab *tab, const void *object)
{
	size_t offset = (size_t)((const char *)object - (const char *)tab->slots);

	REQUIRE(offset % tab->slot_size == 0 && offset / tab->slot_size < tab->n_touched);
	return (uint32_t)(offset / tab->slot_size);
}

static bool is_in_use(const struct idtab_slot *slot)
{
	return (slot->tag & 1U) != 0;
}

void idtab_init(struct idtab *tab, void *slots, size_t slot_size, uint32_t capacity)
{
	REQUIRE(slot_size >= sizeof(struct idtab_slot) && capacity < UINT32_MAX);
	*tab = (struct idtab){.slots = slots, .slot_size = slot_size, .capacity = capacity};
}

void *idtab_add(struct idtab *tab, uint64_t *ret_id)
{
	struct idtab_slot *slot;
	uint32_t index;
	uint32_t tag;

	if (tab->first_free != 0) {
		index = tab->first_free - 1;
		slot = slot_at(tab, index);
		tab->first_free = slot->next_free;
	} else if (tab->n_touched < tab->capacity) {
		index = tab->n_touched++;
		slot = slot_at(tab, index);
		slot->tag = tab->first_tag;
	} else {
		return NULL;
	}
	tag = (slot->tag + 1) & TAG_MASK;
	memset(slot, 0, tab->slot_size);
	slot->tag = tag;
	tab->n_used++;
	*ret_id = ((uint64_t)tag << 32) | ((uint64_t)index + 1);
	return slot;
}

void *idtab_find(const struct idtab *tab, uint64_t id)
{
	uint32_t index = (uint32_t)id - 1;
	struct idtab_slot *slot;

	if ((uint32_t)id == 0 || index >= tab->n_touched) {
		return NULL;
	}
	slot = slot_at(tab, index);
	return slot->tag == (uint32_t)(id >> 32) && is_in_use(slot) ? slot : NULL;
}

void idtab_remove(struct idtab *tab, void *object)
{
	uint32_t index = index_of(tab, object);
	struct idtab_slot *slot = object;

	REQUIRE(is_in_use(slot));
	slot->tag = (slot->tag + 1) & TAG_MASK;
	tab->n_used--;
	if (slot->tag == 0) {
		return; /* the last tag: one of before could be taken for an old id */
	}
	slot->next_free = tab->first_free;
	tab->first_free = index + 1;
}

uint64_t idtab_id(const struct idtab *tab, const void *object)
{
	const struct idtab_slot *slot = object;

	REQUIRE(is_in_use(slot));
	return ((uint64_t)slot->tag << 32) | ((uint64_t)index_of(tab, object) + 1);
}

void *idtab_next(const struct idtab *tab, uint32_t *cursor)
{
	while (*cursor < tab->n_touched) {
		struct idtab_slot *slot = slot_at(tab, (*cursor)++);

		if (is_in_use(slot)) {
			return slot;
		}
	}
	return NULL;
}
