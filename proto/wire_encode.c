/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a generated struct to bytes, with msgpack-c's packer and a write callback into the
 * caller's buffer: nothing is allocated. Past the end of the buffer bytes are only counted.
 */
#include "base/require.h"

#include <msgpack.h>
#include <string.h>

#include "proto/gen/wire_gen.h"
#include "proto/wire_read.h"

static int buffer_write(void *target, const char *bytes, size_t size)
{
	struct wire_buffer *buffer = target;

	if (size > 0 && buffer->size <= buffer->capacity &&
	    size <= buffer->capacity - buffer->size) {
		memcpy(buffer->bytes + buffer->size, bytes, size);
	}
	buffer->size += size; /* over the capacity once, over it for good */
	return 0;
}

struct encoder {
	msgpack_packer packer;
	struct wire_buffer *buffer;
	bool is_cutting; /* strings and lists over their max */
};

static struct encoder encoder_begin(struct wire_buffer *buffer, bool is_cutting)
{
	struct encoder encoder = {.buffer = buffer, .is_cutting = is_cutting};

	msgpack_packer_init(&encoder.packer, buffer, buffer_write);
	return encoder;
}

static bool fits(const struct wire_buffer *buffer)
{
	return buffer->size <= buffer->capacity;
}

static void put_str(struct encoder *encoder, struct wire_str str, uint64_t max)
{
	const uint8_t *text = (const uint8_t *)str.text;
	uint32_t size = encoder->is_cutting ? wire_utf8_cut(text, str.size, max) : str.size;
	struct wire_buffer *buffer = encoder->buffer;
	size_t at;

	(void)msgpack_pack_str(&encoder->packer, size); /* the callback cannot fail */
	at = buffer->size;
	(void)msgpack_pack_str_body(&encoder->packer, str.text, size);
	if (fits(buffer) && !wire_utf8_is_valid(text, size)) {
		wire_utf8_clean(text, size, buffer->bytes + at);
	}
}

static void put_key(struct encoder *encoder, const char *name, size_t size)
{
	encoder->buffer->n_values++;
	(void)msgpack_pack_str(&encoder->packer, size);
	(void)msgpack_pack_str_body(&encoder->packer, name, size);
}

static void put_scalar(struct encoder *encoder, const struct wire_field *field, const void *slot)
{
	encoder->buffer->n_values++;
	switch (field->kind) {
	case WIRE_KIND_BOOL:
		if (*(const bool *)slot) {
			(void)msgpack_pack_true(&encoder->packer);
		} else {
			(void)msgpack_pack_false(&encoder->packer);
		}
		break;
	case WIRE_KIND_UINT:
		(void)msgpack_pack_uint64(&encoder->packer, *(const uint64_t *)slot);
		break;
	case WIRE_KIND_INT:
		(void)msgpack_pack_int64(&encoder->packer, *(const int64_t *)slot);
		break;
	case WIRE_KIND_STR:
		put_str(encoder, *(const struct wire_str *)slot,
			field->is_list ? field->item_max : field->max);
		break;
	case WIRE_KIND_MAP:
		REQUIRE(false); /* maps are levels */
	}
}

/* A struct being written; or, one after the other, the structs of a list. */
struct level {
	const struct wire_type *type;
	const uint8_t *base;
	uint32_t structs_left; /* of the list, behind this one */
	uint16_t next;         /* field */
};

struct stack {
	struct level levels[WIRE_DEPTH];
	uint32_t n_levels;
};

static bool is_there(const struct wire_field *field, const uint8_t *base)
{
	return !field->is_optional || *(const bool *)(base + field->has_offset);
}

/* The head of a map with its fields and 'n_more' pairs that the caller adds. */
static void put_head(struct encoder *encoder, const struct level *level, uint32_t n_more)
{
	for (uint16_t i = 0; i < level->type->n_fields; i++) {
		n_more += is_there(&level->type->fields[i], level->base);
	}
	encoder->buffer->n_values++;
	(void)msgpack_pack_map(&encoder->packer, n_more);
}

static struct level *push_level(struct stack *stack, const struct wire_type *type, const void *base)
{
	struct level *level;

	REQUIRE(stack->n_levels < WIRE_DEPTH); /* the generator refuses deeper schemas */
	level = &stack->levels[stack->n_levels++];
	*level = (struct level){.type = type, .base = base};
	return level;
}

static void put_list(struct encoder *encoder, struct stack *stack, const struct wire_field *field,
		     const struct wire_list *list)
{
	uint32_t count = list->count;

	encoder->buffer->n_values++;
	if (list->bytes) { /* decoded before: the items go on as they came */
		(void)msgpack_pack_array(&encoder->packer, count);
		(void)buffer_write(encoder->buffer, (const char *)list->bytes, list->size);
		encoder->buffer->n_values += count; /* requests alone hold such: never many */
		return;
	}
	if (encoder->is_cutting && count > field->max) {
		count = (uint32_t)field->max;
	}
	(void)msgpack_pack_array(&encoder->packer, count);
	if (count == 0) {
		return;
	}
	if (field->kind == WIRE_KIND_MAP) {
		struct level *level = push_level(stack, field->type, list->items);

		level->structs_left = count - 1;
		put_head(encoder, level, 0);
		return;
	}
	for (uint32_t i = 0; i < count; i++) {
		if (field->kind == WIRE_KIND_STR) {
			put_scalar(encoder, field, (const struct wire_str *)list->items + i);
		} else {
			put_scalar(encoder, field, (const uint64_t *)list->items + i);
		}
	}
}

static void put_field(struct encoder *encoder, struct stack *stack, const struct wire_field *field,
		      const uint8_t *base)
{
	const void *slot = base + field->offset;

	put_key(encoder, field->name, field->name_size);
	if (field->is_list) {
		put_list(encoder, stack, field, slot);
	} else if (field->kind == WIRE_KIND_MAP) {
		put_head(encoder, push_level(stack, field->type, slot), 0);
	} else {
		put_scalar(encoder, field, slot);
	}
}

static void put_map(struct encoder *encoder, const struct wire_type *type, const void *body,
		    uint32_t n_fds)
{
	struct stack stack = {.n_levels = 0};

	REQUIRE(body || type->n_fields == 0);
	put_head(encoder, push_level(&stack, type, body), n_fds > 0);
	if (n_fds > 0) {
		put_key(encoder, "fds", 3);
		(void)msgpack_pack_uint32(&encoder->packer, n_fds);
		encoder->buffer->n_values++;
	}
	while (stack.n_levels > 0) {
		struct level *level = &stack.levels[stack.n_levels - 1];

		if (level->next < level->type->n_fields) {
			const struct wire_field *field = &level->type->fields[level->next++];

			if (is_there(field, level->base)) {
				put_field(encoder, &stack, field, level->base);
			}
		} else if (level->structs_left > 0) {
			level->structs_left--;
			level->base += level->type->size;
			level->next = 0;
			put_head(encoder, level, 0);
		} else {
			stack.n_levels--;
		}
	}
}

/* [kind, id, …; of events [kind, … */
static void put_envelope(struct encoder *encoder, enum wire_kind kind, uint32_t id)
{
	/* The array, and what of it is neither name nor body: of a response also its nil. */
	encoder->buffer->n_values += kind == WIRE_EVENT ? 2 : kind == WIRE_REQUEST ? 3 : 4;
	(void)msgpack_pack_array(&encoder->packer, kind == WIRE_EVENT ? 3 : 4);
	(void)msgpack_pack_uint8(&encoder->packer, (uint8_t)kind);
	if (kind != WIRE_EVENT) {
		(void)msgpack_pack_uint32(&encoder->packer, id);
	}
}

bool wire_encode_request(struct wire_buffer *buffer, uint32_t id, enum wire_method method,
			 const void *request, uint32_t n_fds)
{
	struct encoder encoder = encoder_begin(buffer, false);
	const struct wire_message *message = &wire_messages[method];

	put_envelope(&encoder, WIRE_REQUEST, id);
	put_key(&encoder, message->method, strlen(message->method));
	put_map(&encoder, message->request, request, n_fds);
	return fits(buffer);
}

bool wire_encode_response(struct wire_buffer *buffer, uint32_t id, enum wire_method method,
			  const void *response, uint32_t n_fds)
{
	struct encoder encoder = encoder_begin(buffer, true);

	put_envelope(&encoder, WIRE_RESPONSE, id);
	(void)msgpack_pack_nil(&encoder.packer);
	put_map(&encoder, wire_messages[method].response, response, n_fds);
	return fits(buffer);
}

bool wire_encode_error(struct wire_buffer *buffer, uint32_t id, const struct wire_error *error)
{
	struct encoder encoder = encoder_begin(buffer, true);

	put_envelope(&encoder, WIRE_RESPONSE, id);
	put_map(&encoder, &wire_type_error, error, 0);
	(void)msgpack_pack_nil(&encoder.packer);
	return fits(buffer);
}

bool wire_encode_event(struct wire_buffer *buffer, enum wire_event event, const void *fields,
		       uint32_t n_fds)
{
	struct encoder encoder = encoder_begin(buffer, true);
	const struct wire_event_type *type = &wire_events[event];

	put_envelope(&encoder, WIRE_EVENT, 0);
	put_key(&encoder, type->name, strlen(type->name));
	put_map(&encoder, type->fields, fields, n_fds);
	return fits(buffer);
}

bool wire_encode_body(struct wire_buffer *buffer, const struct wire_type *type, const void *body)
{
	struct encoder encoder = encoder_begin(buffer, true);

	put_map(&encoder, type, body, 0);
	return fits(buffer);
}

bool wire_encode_spill(struct wire_buffer *buffer, uint32_t id, uint64_t spill_bytes,
		       uint32_t n_fds)
{
	struct encoder encoder = encoder_begin(buffer, true);

	put_envelope(&encoder, WIRE_RESPONSE, id);
	(void)msgpack_pack_nil(&encoder.packer);
	(void)msgpack_pack_map(&encoder.packer, 2);
	put_key(&encoder, "fds", 3);
	(void)msgpack_pack_uint32(&encoder.packer, n_fds);
	put_key(&encoder, "spill", 5);
	(void)msgpack_pack_uint64(&encoder.packer, spill_bytes);
	return fits(buffer);
}
