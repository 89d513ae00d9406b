/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dense table with generation-tagged 64-bit ids: a stale id finds nothing, never a wrong
 * object. Memory belongs to the caller: an array of 'capacity' slots, zeroed, each
 * beginning with a struct idtab_slot. Never touches slots that were never used, so a
 * large table costs only what is in it. Id 0 is never given out. Pure; not thread-safe.
 */
#ifndef BASE_IDTAB_H
#define BASE_IDTAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* First member of every object in a table. Zero: never used. */
struct idtab_slot {
	uint32_t tag;       /* odd while in use; grows by one at add and at remove */
	uint32_t next_free; /* index + 1 of the next free slot, 0 at the end */
};

struct idtab {
	void *slots;         /* borrowed from the owner of the table */
	size_t slot_size;    /* bytes */
	uint32_t capacity;   /* slots */
	uint32_t n_used;     /* objects now in the table */
	uint32_t n_touched;  /* slots ever used; the rest is untouched memory */
	uint32_t first_free; /* index + 1, 0 when none was freed */
	uint32_t
		first_tag; /* even: with which a slot begins that was never used; the owner may set it */
};

void idtab_init(struct idtab *tab, void *slots, size_t slot_size, uint32_t capacity);

/* Returns a zeroed object (its slot header filled) and its id, or NULL when full. */
void *idtab_add(struct idtab *tab, uint64_t *ret_id);

/* NULL for a stale, foreign or zero id. */
void *idtab_find(const struct idtab *tab, uint64_t id);

/* The object must be in the table. Its id finds nothing afterwards. */
void idtab_remove(struct idtab *tab, void *object);

/* The id of an object in the table. */
uint64_t idtab_id(const struct idtab *tab, const void *object);

/* Walk: start with *cursor = 0; NULL at the end. Objects may be removed on the way. */
void *idtab_next(const struct idtab *tab, uint32_t *cursor);

#endif
