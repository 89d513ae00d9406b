/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a map on the wire to a generated struct. The tables say which fields there are, of
 * which type and how large; what passes here needs no further check of form. Maps in maps
 * and lists of maps are kept on a stack of fixed depth.
 */
#include "base/require.h"

#include <string.h>

#include "proto/gen/wire_gen.h"
#include "proto/wire_read.h"

/* An open map; or, one after the other, the maps of an open list. */
struct level {
	const struct wire_type *type;
	uint8_t *base;                  /* the struct to fill; NULL: check only (items of lists) */
	const struct wire_field *field; /* being read; names the fault */
	uint64_t seen;                  /* bit n: field n was there */
	uint64_t pairs_left;
	uint64_t maps_left;     /* of the list, behind the open one */
	struct wire_list *list; /* to fill when the list ends, or NULL */
	uint16_t next;          /* field that a sender in the schema's order writes next */
};

struct body {
	struct wire_reader reader;
	struct wire_fault *fault;
	struct level levels[WIRE_DEPTH];
	uint32_t n_levels;
	bool is_strict;
};

/* Begin a fault about the field that is being read, with its dotted name. */
static int refuse(struct body *body, enum wire_code code, const char *text)
{
	int error = wire_fault_begin(body->fault, code, text);

	for (uint32_t i = 0; i < body->n_levels; i++) {
		const struct wire_field *field = body->levels[i].field;

		if (field) {
			wire_fault_field(body->fault, field->name, field->name_size);
		}
	}
	return error;
}

static int refuse_frame(struct body *body)
{
	return refuse(body, WIRE_BAD_FRAME, "ends early, or holds a type that is not used here");
}

static int refuse_over(struct body *body, const char *what, uint64_t is, uint64_t max)
{
	(void)refuse(body, WIRE_BAD_ARGUMENT, what);
	wire_fault_text(body->fault, " ");
	wire_fault_number(body->fault, is);
	wire_fault_text(body->fault, " is over the largest allowed, ");
	wire_fault_number(body->fault, max);
	return -WIRE_BAD_ARGUMENT;
}

static int refuse_type(struct body *body, const struct wire_field *field, bool is_item)
{
	static const char *const names[] = {
		[WIRE_KIND_BOOL] = "true or false",
		[WIRE_KIND_UINT] = "a number that is not negative",
		[WIRE_KIND_INT] = "a whole number",
		[WIRE_KIND_STR] = "a string",
		[WIRE_KIND_MAP] = "a map",
	};

	(void)refuse(body, WIRE_BAD_ARGUMENT, is_item ? "each item must be " : "must be ");
	wire_fault_text(body->fault, field->is_list && !is_item ? "a list" : names[field->kind]);
	return -WIRE_BAD_ARGUMENT;
}

/* The field named by a key, or NULL. Senders mostly keep the schema's order. */
static const struct wire_field *find_field(struct level *level, const struct wire_item *key)
{
	const struct wire_type *type = level->type;

	for (uint16_t i = 0; i < type->n_fields; i++) {
		uint16_t index = (uint16_t)(level->next + i);

		if (index >= type->n_fields) {
			index = (uint16_t)(index - type->n_fields);
		}
		if (type->fields[index].name_size == key->number &&
		    memcmp(type->fields[index].name, key->text, key->number) == 0) {
			level->next = (uint16_t)(index + 1 < type->n_fields ? index + 1 : 0);
			level->seen |= 1ULL << index;
			return &type->fields[index];
		}
	}
	return NULL;
}

/* Open the next map of a level. */
static int open_map(struct body *body, struct level *level)
{
	struct wire_item item;

	if (!wire_read_item(&body->reader, &item)) {
		return refuse_frame(body);
	}
	if (item.kind != WIRE_ITEM_MAP) {
		(void)refuse(body, WIRE_BAD_ARGUMENT, "each item must be a map");
		return -WIRE_BAD_ARGUMENT;
	}
	level->pairs_left = item.number;
	level->seen = 0;
	level->next = 0;
	level->field = NULL;
	return 0;
}

static struct level *push_level(struct body *body, const struct wire_type *type, void *base)
{
	REQUIRE(body->n_levels < WIRE_DEPTH); /* the generator refuses deeper schemas */
	struct level *level = &body->levels[body->n_levels++];

	*level = (struct level){.type = type, .base = base};
	return level;
}

static int take_bool(struct body *body, const struct wire_field *field,
		     const struct wire_item *item, bool *slot)
{
	if (item->kind != WIRE_ITEM_BOOL) {
		return refuse_type(body, field, false);
	}
	if (slot) {
		*slot = item->number != 0;
	}
	return 0;
}

static int take_uint(struct body *body, const struct wire_field *field,
		     const struct wire_item *item, uint64_t *slot)
{
	uint64_t max = field->is_list ? field->item_max : field->max;

	if (item->kind != WIRE_ITEM_UINT) {
		return refuse_type(body, field, field->is_list);
	}
	if (item->number > max) {
		return refuse_over(body, "the number", item->number, max);
	}
	if (slot) {
		*slot = item->number;
	}
	return 0;
}

static int take_int(struct body *body, const struct wire_field *field, const struct wire_item *item,
		    int64_t *slot)
{
	if (item->kind != WIRE_ITEM_UINT && item->kind != WIRE_ITEM_NEGATIVE) {
		return refuse_type(body, field, false);
	}
	if (item->kind == WIRE_ITEM_UINT && item->number > field->max) {
		return refuse_over(body, "the number", item->number, field->max);
	}
	if (item->kind == WIRE_ITEM_NEGATIVE && (int64_t)item->number < field->min) {
		(void)refuse(body, WIRE_BAD_ARGUMENT, "the number -");
		wire_fault_number(body->fault, 0 - item->number);
		wire_fault_text(body->fault, " is under the smallest allowed, -");
		wire_fault_number(body->fault, 0 - (uint64_t)field->min);
		return -WIRE_BAD_ARGUMENT;
	}
	if (slot) {
		*slot = (int64_t)item->number;
	}
	return 0;
}

static int take_str(struct body *body, const struct wire_field *field, const struct wire_item *item,
		    struct wire_str *slot)
{
	uint64_t max = field->is_list ? field->item_max : field->max;

	if (item->kind != WIRE_ITEM_STR) {
		return refuse_type(body, field, field->is_list);
	}
	if (item->number > max) {
		return refuse_over(body, "the string's size", item->number, max);
	}
	if (slot) {
		*slot = (struct wire_str){(const char *)item->text, (uint32_t)item->number};
	}
	return 0;
}

/* One scalar, of a field or of a list; 'slot' NULL only checks it. */
static int take_scalar(struct body *body, const struct wire_field *field, void *slot)
{
	struct wire_item item;

	if (!wire_read_item(&body->reader, &item)) {
		return refuse_frame(body);
	}
	switch (field->kind) {
	case WIRE_KIND_BOOL:
		return take_bool(body, field, &item, slot);
	case WIRE_KIND_UINT:
		return take_uint(body, field, &item, slot);
	case WIRE_KIND_INT:
		return take_int(body, field, &item, slot);
	case WIRE_KIND_STR:
		return take_str(body, field, &item, slot);
	case WIRE_KIND_MAP:
		break;
	}
	REQUIRE(false); /* maps are levels */
	return -WIRE_INTERNAL;
}

static int take_list(struct body *body, const struct wire_field *field, struct wire_list *slot)
{
	struct wire_item item;

	if (!wire_read_item(&body->reader, &item)) {
		return refuse_frame(body);
	}
	if (item.kind != WIRE_ITEM_ARRAY) {
		return refuse_type(body, field, false);
	}
	if (item.number > field->max) {
		return refuse_over(body, "the number of items", item.number, field->max);
	}
	if (slot) {
		*slot = (struct wire_list){.count = (uint32_t)item.number,
					   .bytes = body->reader.at};
	}
	if (field->kind == WIRE_KIND_MAP && item.number > 0) {
		struct level *level = push_level(body, field->type, NULL);

		level->list = slot;
		level->maps_left = item.number - 1;
		return open_map(body, level);
	}
	for (uint64_t i = 0; i < item.number; i++) {
		int error = take_scalar(body, field, NULL);

		if (error) {
			return error;
		}
	}
	if (slot) {
		slot->size = (uint32_t)(body->reader.at - slot->bytes);
	}
	return 0;
}

static int take_field(struct body *body, const struct wire_field *field, uint8_t *base)
{
	void *slot = base ? base + field->offset : NULL;

	if (base && field->is_optional) {
		*(bool *)(base + field->has_offset) = true;
	}
	if (field->is_list) {
		return take_list(body, field, slot);
	}
	if (field->kind == WIRE_KIND_MAP) {
		struct wire_reader ahead = body->reader;
		struct wire_item item;

		if (wire_read_item(&ahead, &item) && item.kind != WIRE_ITEM_MAP) {
			return refuse_type(body, field, false);
		}
		return open_map(body, push_level(body, field->type, slot));
	}
	return take_scalar(body, field, slot);
}

static int take_unknown(struct body *body, const struct wire_item *key)
{
	bool is_fds = body->n_levels == 1 && key->number == 3 && memcmp(key->text, "fds", 3) == 0;

	if (body->is_strict && !is_fds) {
		(void)refuse(body, WIRE_UNKNOWN_FIELD, "is not known here");
		wire_fault_field(body->fault, (const char *)key->text, key->number);
		return -WIRE_UNKNOWN_FIELD;
	}
	return wire_skip_value(&body->reader) ? 0 : refuse_frame(body);
}

static int take_pair(struct body *body, struct level *level)
{
	struct wire_item key;

	level->pairs_left--;
	if (!wire_read_item(&body->reader, &key) || key.kind != WIRE_ITEM_STR) {
		return refuse_frame(body);
	}
	level->field = find_field(level, &key);
	if (!level->field) {
		return take_unknown(body, &key);
	}
	return take_field(body, level->field, level->base);
}

/* All pairs are read: is anything missing? Then the next map of the list, or up. */
static int end_map(struct body *body, struct level *level)
{
	uint64_t missing = level->type->required & ~level->seen;

	if (missing != 0) {
		level->field = &level->type->fields[__builtin_ctzll(missing)];
		return refuse(body, WIRE_BAD_ARGUMENT, "is missing");
	}
	if (level->maps_left > 0) {
		level->maps_left--;
		return open_map(body, level);
	}
	if (level->list) {
		level->list->size = (uint32_t)(body->reader.at - level->list->bytes);
	}
	body->n_levels--;
	return 0;
}

/* Read the one map at the reader into 'base'. */
static int take_map(struct body *body, const struct wire_type *type, void *base)
{
	int error = open_map(body, push_level(body, type, base));

	while (error == 0 && body->n_levels > 0) {
		struct level *level = &body->levels[body->n_levels - 1];

		error = level->pairs_left > 0 ? take_pair(body, level) : end_map(body, level);
	}
	return error;
}

int wire_decode_body(const struct wire_type *type, const uint8_t *body, uint32_t body_size,
		     bool is_strict, void *ret_struct, struct wire_fault *fault)
{
	union wire_body filled; /* so that a failure leaves the caller's struct alone */
	struct body state = {
		.reader = {body, body + body_size},
		.fault = fault,
		.is_strict = is_strict,
	};
	int error;

	REQUIRE(type->size <= sizeof filled);
	memset(&filled, 0, type->size);
	error = take_map(&state, type, &filled);
	if (error) {
		return error;
	}
	if (state.reader.at != state.reader.end) {
		return wire_fault_begin(fault, WIRE_BAD_FRAME, "bytes follow the map");
	}
	memcpy(ret_struct, &filled, type->size);
	return 0;
}

/* A scalar tells by itself what it is: the list was checked. */
static bool next_scalar(struct wire_reader *reader, void *ret_item)
{
	struct wire_item item;

	if (!wire_read_item(reader, &item)) {
		return false;
	}
	if (item.kind == WIRE_ITEM_STR) {
		*(struct wire_str *)ret_item =
			(struct wire_str){(const char *)item.text, (uint32_t)item.number};
	} else {
		*(uint64_t *)ret_item = item.number;
	}
	return true;
}

bool wire_list_next(struct wire_list *list, const struct wire_type *item_type, void *ret_item)
{
	struct wire_fault fault;
	struct body state = {.fault = &fault};

	if (list->count == 0 || !list->bytes) {
		return false;
	}
	state.reader = (struct wire_reader){list->bytes, list->bytes + list->size};
	if (!item_type) {
		if (!CHECK(next_scalar(&state.reader, ret_item))) {
			return false;
		}
	} else {
		memset(ret_item, 0, item_type->size);
		if (!CHECK(take_map(&state, item_type, ret_item) == 0)) {
			return false;
		}
	}
	list->size = (uint32_t)(state.reader.end - state.reader.at);
	list->bytes = state.reader.at;
	list->count--;
	return true;
}
