/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the codec's unit tests and fuzzers share: lists rebuilt item by item, so that encoding
 * again goes through every value, and msgpack-c's unpacker as an independent oracle. It
 * allocates what a header claims, so it sees only what our decoder has accepted.
 */
#ifndef TESTS_SUPPORT_WIRE_CHECK_H
#define TESTS_SUPPORT_WIRE_CHECK_H

#include "base/require.h"

#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_gen.h"

/* Memory that goes all at once. */
struct arena_block {
	struct arena_block *next;
	max_align_t memory[];
};

struct arena {
	struct arena_block *blocks;
};

static inline void *arena_take(struct arena *arena, size_t size)
{
	struct arena_block *block = calloc(1, sizeof *block + size);

	REQUIRE(block != NULL);
	block->next = arena->blocks;
	arena->blocks = block;
	return block->memory;
}

static inline void arena_free(struct arena *arena)
{
	while (arena->blocks) {
		struct arena_block *block = arena->blocks;

		arena->blocks = block->next;
		free(block);
	}
}

static inline size_t item_size(const struct wire_field *field)
{
	if (field->kind == WIRE_KIND_MAP) {
		return field->type->size;
	}
	return field->kind == WIRE_KIND_STR ? sizeof(struct wire_str) : sizeof(uint64_t);
}

/* Replace decoded lists in a struct by arrays of their items, all the way down. */
static inline void rebuild_lists(struct arena *arena, const struct wire_type *type, void *body)
{
	for (uint16_t i = 0; i < type->n_fields; i++) {
		const struct wire_field *field = &type->fields[i];
		void *slot = (char *)body + field->offset;
		struct wire_list *list = slot;
		struct wire_list rest;
		char *items;

		if (field->is_optional && !*((bool *)body + field->has_offset)) {
			continue;
		}
		if (!field->is_list) {
			if (field->kind == WIRE_KIND_MAP) {
				rebuild_lists(arena, field->type, slot);
			}
			continue;
		}
		rest = *list;
		items = arena_take(arena, list->count * item_size(field) + 1);
		for (uint32_t n = 0; n < list->count; n++) {
			void *item = items + n * item_size(field);

			REQUIRE(wire_list_next(&rest, field->type, item));
			if (field->kind == WIRE_KIND_MAP) {
				rebuild_lists(arena, field->type, item);
			}
		}
		REQUIRE(rest.size == 0 && !wire_list_next(&rest, field->type, items));
		*list = (struct wire_list){.count = list->count, .items = items};
	}
}

/* Is everything in 'part' also in 'whole', with the same values? 'whole' may have more keys. */
static inline bool oracle_contains(const msgpack_object *whole, const msgpack_object *part)
{
	if (part->type == MSGPACK_OBJECT_ARRAY && whole->type == MSGPACK_OBJECT_ARRAY) {
		if (part->via.array.size != whole->via.array.size) {
			return false;
		}
		for (uint32_t i = 0; i < part->via.array.size; i++) {
			if (!oracle_contains(&whole->via.array.ptr[i], &part->via.array.ptr[i])) {
				return false;
			}
		}
		return true;
	}
	if (part->type == MSGPACK_OBJECT_MAP && whole->type == MSGPACK_OBJECT_MAP) {
		for (uint32_t i = 0; i < part->via.map.size; i++) {
			const msgpack_object_kv *pair = &part->via.map.ptr[i];
			bool is_found = false;

			for (uint32_t j = 0; j < whole->via.map.size && !is_found; j++) {
				const msgpack_object_kv *other = &whole->via.map.ptr[j];

				is_found = msgpack_object_equal(other->key, pair->key) &&
					   oracle_contains(&other->val, &pair->val);
			}
			if (!is_found) {
				return false;
			}
		}
		return true;
	}
	return msgpack_object_equal(*whole, *part);
}

/* The oracle reads the same bytes, and all of them. */
static inline void oracle_reads(const void *bytes, size_t size, msgpack_unpacked *ret)
{
	size_t used = 0;

	msgpack_unpacked_init(ret);
	REQUIRE(msgpack_unpack_next(ret, bytes, size, &used) == MSGPACK_UNPACK_SUCCESS);
	REQUIRE(used == size);
}

/*
 * A body that was decoded from 'bytes' is encoded again and must hold the same values for
 * the oracle; decoded and encoded once more it must give the same bytes.
 */
static inline void check_round_trip(const struct wire_type *type, const void *bytes, size_t size,
				    void *body)
{
	struct arena arena = {0};
	struct wire_buffer buffer = {0};
	struct wire_buffer again;
	struct wire_fault fault;
	union wire_body twin;
	msgpack_unpacked whole;
	msgpack_unpacked part;

	rebuild_lists(&arena, type, body);
	(void)wire_encode_body(&buffer, type, body); /* counts */
	buffer = (struct wire_buffer){.bytes = arena_take(&arena, buffer.size),
				      .capacity = buffer.size};
	REQUIRE(wire_encode_body(&buffer, type, body) && buffer.size == buffer.capacity);
	oracle_reads(bytes, size, &whole);
	oracle_reads(buffer.bytes, buffer.size, &part);
	REQUIRE(oracle_contains(&whole.data, &part.data));
	msgpack_unpacked_destroy(&whole);
	msgpack_unpacked_destroy(&part);

	REQUIRE(wire_check_map(buffer.bytes, buffer.size, &wire_listing_limits, &fault) == 0);
	REQUIRE(wire_decode_body(type, buffer.bytes, (uint32_t)buffer.size, true, &twin, &fault) ==
		0);
	rebuild_lists(&arena, type, &twin);
	again = (struct wire_buffer){.bytes = arena_take(&arena, buffer.size),
				     .capacity = buffer.size};
	REQUIRE(wire_encode_body(&again, type, &twin) && again.size == buffer.size);
	REQUIRE(memcmp(again.bytes, buffer.bytes, buffer.size) == 0);
	arena_free(&arena);
}

#endif
