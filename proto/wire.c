/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The envelope of a packet, and the small words around it: strings, codes, lookups. The
 * structure is checked by proto/wire_read.c, the fields of a body by proto/wire_body.c.
 */
#include "proto/wire.h"

#include "base/require.h"

#include <string.h>

#include "proto/gen/wire_gen.h"
#include "proto/wire_read.h"

const struct wire_bounds wire_packet_limits = {WIRE_DEPTH, WIRE_NODES};
const struct wire_bounds wire_listing_limits = {WIRE_DEPTH, WIRE_SPILL_NODES};

static const struct wire_message *find_message(struct wire_str name)
{
	uint32_t low = 0;
	uint32_t high = WIRE_N_METHODS;

	while (low < high) {
		uint32_t middle = (low + high) / 2;
		const struct wire_message *message = &wire_messages[wire_messages_sorted[middle]];
		size_t size = strlen(message->method);
		int order = memcmp(name.text, message->method, name.size < size ? name.size : size);

		if (order == 0 && name.size == size) {
			return message;
		}
		if (order < 0 || (order == 0 && name.size < size)) {
			high = middle;
		} else {
			low = middle + 1;
		}
	}
	return NULL;
}

static const struct wire_event_type *find_event(struct wire_str name)
{
	for (uint32_t i = 0; i < WIRE_N_EVENTS; i++) {
		if (wire_str_is(name, wire_events[i].name)) {
			return &wire_events[i];
		}
	}
	return NULL;
}

static bool refuse(struct wire_walk *walk, const char *fault)
{
	walk->fault = fault;
	return false;
}

/* One scalar of the envelope. */
static bool take_scalar(struct wire_walk *walk, enum wire_item_kind kind, struct wire_item *ret)
{
	walk->n_nodes++;
	if (!wire_read_item(&walk->reader, ret) || ret->kind != kind) {
		return refuse(walk, "the envelope is not [kind, id, method, params] or alike");
	}
	return true;
}

/* A map, or nil where 'may_be_nil'; *ret_map is NULL for nil. */
static bool take_map(struct wire_walk *walk, bool may_be_nil, const uint8_t **ret_map,
		     uint32_t *ret_size)
{
	const uint8_t *begin = walk->reader.at;
	struct wire_reader ahead = walk->reader;
	struct wire_item item;

	if (!wire_read_item(&ahead, &item)) {
		return refuse(walk, "ends early");
	}
	if (item.kind != WIRE_ITEM_MAP && !(may_be_nil && item.kind == WIRE_ITEM_NIL)) {
		return refuse(walk, "params, result and error are maps");
	}
	if (!wire_walk_value(walk, 1)) {
		return false;
	}
	*ret_map = item.kind == WIRE_ITEM_NIL ? NULL : begin;
	*ret_size = *ret_map ? (uint32_t)(walk->reader.at - begin) : 0;
	return true;
}

static bool take_id(struct wire_walk *walk, uint32_t *ret)
{
	struct wire_item item;

	if (!take_scalar(walk, WIRE_ITEM_UINT, &item)) {
		return false;
	}
	if (item.number > UINT32_MAX) {
		return refuse(walk, "the id is over 4,294,967,295");
	}
	*ret = (uint32_t)item.number;
	return true;
}

static bool take_name(struct wire_walk *walk, struct wire_str *ret)
{
	struct wire_item item;

	if (!take_scalar(walk, WIRE_ITEM_STR, &item)) {
		return false;
	}
	if (!wire_utf8_is_valid(item.text, item.number)) {
		return refuse(walk, "a name is not UTF-8 or holds NUL");
	}
	*ret = (struct wire_str){(const char *)item.text, (uint32_t)item.number};
	return true;
}

static bool take_body(struct wire_walk *walk, struct wire_packet *packet)
{
	walk->is_noting = true;
	return take_map(walk, packet->kind == WIRE_RESPONSE, &packet->body, &packet->body_size);
}

/* What follows the kind. */
static bool take_rest(struct wire_walk *walk, struct wire_packet *packet)
{
	if (packet->kind != WIRE_EVENT && !take_id(walk, &packet->id)) {
		return false;
	}
	if (packet->kind == WIRE_RESPONSE) {
		if (!take_map(walk, true, &packet->error, &packet->error_size) ||
		    !take_body(walk, packet)) {
			return false;
		}
		if ((packet->error == NULL) == (packet->body == NULL)) {
			return refuse(walk, "a response has either an error or a result");
		}
		return true;
	}
	if (!take_name(walk, &packet->name)) {
		return false;
	}
	if (packet->kind == WIRE_REQUEST) {
		packet->message = find_message(packet->name);
	} else {
		packet->event = find_event(packet->name);
	}
	return take_body(walk, packet);
}

static bool take_packet(struct wire_walk *walk, struct wire_packet *packet)
{
	struct wire_item item;

	if (!take_scalar(walk, WIRE_ITEM_ARRAY, &item)) {
		return false;
	}
	uint64_t n_parts = item.number;

	if (!take_scalar(walk, WIRE_ITEM_UINT, &item)) {
		return false;
	}
	if (item.number > WIRE_EVENT || n_parts != (item.number == WIRE_EVENT ? 3 : 4)) {
		return refuse(walk, "the kind is none of 0, 1 and 2, or has not its parts");
	}
	packet->kind = (enum wire_kind)item.number;
	if (!take_rest(walk, packet)) {
		return false;
	}
	if (walk->reader.at != walk->reader.end) {
		return refuse(walk, "bytes follow the message");
	}
	if (walk->fds > WIRE_FDS_PER_PACKET) {
		return refuse(walk, "fds is no number of descriptors");
	}
	packet->n_fds = (uint32_t)walk->fds;
	if (packet->kind == WIRE_RESPONSE) {
		if (walk->spill > WIRE_SPILL_BYTES || (walk->spill > 0 && walk->fds == 0)) {
			return refuse(walk, "spill is no size, or has no descriptor");
		}
		packet->spill_bytes = walk->spill;
	}
	return true;
}

static struct wire_walk walk_begin(const void *bytes, size_t size, const struct wire_bounds *limits)
{
	REQUIRE(limits->depth <= WIRE_DEPTH);
	return (struct wire_walk){
		.reader = {bytes, (const uint8_t *)bytes + size},
		.begin = bytes,
		.bounds = *limits,
	};
}

static int refuse_frame(struct wire_fault *fault, const struct wire_walk *walk)
{
	(void)wire_fault_begin(fault, WIRE_BAD_FRAME, walk->fault);
	wire_fault_text(fault, " (byte ");
	wire_fault_number(fault, (uint64_t)(walk->reader.at - walk->begin));
	wire_fault_text(fault, " of ");
	wire_fault_number(fault, (uint64_t)(walk->reader.end - walk->begin));
	wire_fault_text(fault, ")");
	return -WIRE_BAD_FRAME;
}

int wire_decode_packet(const void *bytes, size_t size, const struct wire_bounds *limits,
		       struct wire_packet *ret, struct wire_fault *fault)
{
	struct wire_walk walk;
	struct wire_packet packet = {0};

	if (size == 0 || size > WIRE_PACKET_BYTES) {
		(void)wire_fault_begin(fault, WIRE_BAD_FRAME, "a packet has 1 to ");
		wire_fault_number(fault, WIRE_PACKET_BYTES);
		wire_fault_text(fault, " bytes, not ");
		wire_fault_number(fault, size);
		return -WIRE_BAD_FRAME;
	}
	walk = walk_begin(bytes, size, limits);
	if (!take_packet(&walk, &packet)) {
		return refuse_frame(fault, &walk);
	}
	*ret = packet;
	return 0;
}

int wire_check_map(const void *bytes, size_t size, const struct wire_bounds *limits,
		   struct wire_fault *fault)
{
	struct wire_walk walk;
	const uint8_t *map;
	uint32_t map_size;

	if (size == 0 || size > WIRE_SPILL_BYTES) {
		(void)wire_fault_begin(fault, WIRE_BAD_FRAME, "a result has 1 to ");
		wire_fault_number(fault, WIRE_SPILL_BYTES);
		wire_fault_text(fault, " bytes, not ");
		wire_fault_number(fault, size);
		return -WIRE_BAD_FRAME;
	}
	walk = walk_begin(bytes, size, limits);
	if (!take_map(&walk, false, &map, &map_size)) {
		return refuse_frame(fault, &walk);
	}
	if (walk.reader.at != walk.reader.end) {
		walk.fault = "bytes follow the map";
		return refuse_frame(fault, &walk);
	}
	return 0;
}

uint64_t wire_packet_spill(const struct wire_packet *packet)
{
	return packet->spill_bytes;
}

struct wire_str wire_str(const char *text)
{
	return (struct wire_str){text, (uint32_t)strlen(text)};
}

bool wire_str_is(struct wire_str str, const char *text)
{
	return strlen(text) == str.size && (str.size == 0 || memcmp(str.text, text, str.size) == 0);
}

const char *wire_str_copy(struct wire_str str, char *buffer, size_t buffer_size)
{
	uint32_t size;

	REQUIRE(buffer_size > 0);
	size = wire_utf8_cut((const uint8_t *)str.text, str.size, buffer_size - 1);
	if (size > 0) {
		memcpy(buffer, str.text, size);
	}
	buffer[size] = '\0';
	return buffer;
}

const struct wire_code_info *wire_code_info(enum wire_code code)
{
	return &wire_codes[(unsigned int)code < WIRE_N_CODES ? code : WIRE_INTERNAL];
}

enum wire_code wire_code_find(struct wire_str word)
{
	for (uint32_t code = 1; code < WIRE_N_CODES; code++) {
		if (wire_str_is(word, wire_codes[code].word)) {
			return (enum wire_code)code;
		}
	}
	return WIRE_INTERNAL;
}
