/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Golden packets that Python packed (vectors.py): C reads each, writes the same bytes again,
 * and refuses each of its prefixes.
 */
#include "tests/support/unit.h"
#include "tests/support/wire_check.h"

#include <stdio.h>

#define PACKET_MAX 8192

struct vector {
	char kind[16];
	char name[32];
	char form[16];
	uint8_t *packet; /* exact size, so that a read past the end is seen */
	size_t size;
};

static FILE *vectors_open(void)
{
	FILE *file = fopen(VECTORS_FILE, "re");

	assert_non_null(file);
	return file;
}

/* The next vector, or false at the end. Free with vector_free. */
static bool vector_next(FILE *file, struct vector *ret)
{
	static char line[2 * PACKET_MAX];
	int hex_at = 0;

	do {
		if (!fgets(line, sizeof line, file)) {
			return false;
		}
	} while (line[0] == '#');
	assert_int_equal(sscanf(line, "%15s %31s %15s %n", ret->kind, ret->name, ret->form,
				&hex_at),
			 3);
	ret->size = strcspn(line + hex_at, "\n") / 2;
	ret->packet = malloc(ret->size);
	assert_non_null(ret->packet);
	for (size_t i = 0; i < ret->size; i++) {
		unsigned int byte;

		assert_int_equal(sscanf(line + hex_at + 2 * i, "%2x", &byte), 1);
		ret->packet[i] = (uint8_t)byte;
	}
	return true;
}

static void vector_free(struct vector *vector)
{
	free(vector->packet);
}

static const struct wire_message *message_named(const char *name)
{
	for (int i = 0; i < WIRE_N_METHODS; i++) {
		if (strcmp(wire_messages[i].method, name) == 0) {
			return &wire_messages[i];
		}
	}
	fail_msg("no method %s", name);
	return NULL;
}

static const struct wire_type *type_of(const struct vector *vector,
				       const struct wire_packet *packet)
{
	switch (packet->kind) {
	case WIRE_REQUEST:
		assert_non_null(packet->message);
		assert_string_equal(packet->message->method, vector->name);
		return packet->message->request;
	case WIRE_RESPONSE:
		return packet->error ? &wire_type_error : message_named(vector->name)->response;
	case WIRE_EVENT:
		assert_non_null(packet->event);
		assert_string_equal(packet->event->name, vector->name);
		return packet->event->fields;
	}
	fail();
	return NULL;
}

static bool encode(const struct vector *vector, const struct wire_packet *packet,
		   const union wire_body *body, struct wire_buffer *buffer)
{
	switch (packet->kind) {
	case WIRE_REQUEST:
		return wire_encode_request(buffer, packet->id,
					   (enum wire_method)packet->message->number, body, 0);
	case WIRE_RESPONSE:
		if (packet->error) {
			return wire_encode_error(buffer, packet->id, &body->error);
		}
		return wire_encode_response(buffer, packet->id,
					    (enum wire_method)message_named(vector->name)->number,
					    body, 0);
	case WIRE_EVENT:
		return wire_encode_event(buffer, (enum wire_event)packet->event->number, body, 0);
	}
	return false;
}

static void check_vector(const struct vector *vector)
{
	struct wire_packet packet;
	struct wire_fault fault;
	struct arena arena = {0};
	union wire_body body;
	static uint8_t copy[PACKET_MAX];
	struct wire_buffer buffer = {.bytes = copy, .capacity = sizeof copy};
	struct wire_bounds bounds = wire_packet_limits;
	const struct wire_type *type;
	bool is_maximal = strcmp(vector->form, "maximal") == 0;

	assert_int_equal(wire_decode_packet(vector->packet, vector->size, &wire_packet_limits,
					    &packet, &fault),
			 0);
	if (packet.kind != WIRE_EVENT) {
		assert_int_equal(packet.id, is_maximal ? UINT32_MAX : 0);
	}
	type = type_of(vector, &packet);
	assert_int_equal(wire_decode_body(type, packet.error ? packet.error : packet.body,
					  packet.error ? packet.error_size : packet.body_size, true,
					  &body, &fault),
			 0);
	for (uint16_t i = 0; i < type->n_fields; i++) {
		if (type->fields[i].is_optional) {
			assert_int_equal(*((bool *)&body + type->fields[i].has_offset), is_maximal);
		}
	}
	rebuild_lists(&arena, type, &body);
	assert_true(encode(vector, &packet, &body, &buffer));
	assert_int_equal(buffer.size, vector->size);
	assert_memory_equal(copy, vector->packet, vector->size);
	/* The writer counts as the reader does. */
	bounds.nodes = buffer.n_values;
	assert_int_equal(wire_decode_packet(copy, buffer.size, &bounds, &packet, &fault), 0);
	bounds.nodes--;
	assert_true(wire_decode_packet(copy, buffer.size, &bounds, &packet, &fault) < 0);
	arena_free(&arena);
}

static void python_packets_decode_and_encode_to_the_same_bytes(void **state)
{
	FILE *file = vectors_open();
	struct vector vector;
	int n = 0;

	(void)state;
	while (vector_next(file, &vector)) {
		check_vector(&vector);
		vector_free(&vector);
		n++;
	}
	(void)fclose(file);
	assert_int_equal(n, 2 * (2 * WIRE_N_METHODS + WIRE_N_EVENTS + 1));
}

static void every_prefix_of_a_packet_is_a_bad_frame(void **state)
{
	FILE *file = vectors_open();
	struct vector vector;

	(void)state;
	while (vector_next(file, &vector)) {
		for (size_t size = 0; size < vector.size; size++) {
			struct wire_packet packet;
			struct wire_fault fault;
			uint8_t *prefix = malloc(size + (size == 0));

			assert_non_null(prefix);
			memcpy(prefix, vector.packet, size);
			assert_int_equal(wire_decode_packet(prefix, size, &wire_packet_limits,
							    &packet, &fault),
					 -WIRE_BAD_FRAME);
			assert_int_equal(fault.code, WIRE_BAD_FRAME);
			free(prefix);
		}
		vector_free(&vector);
	}
	(void)fclose(file);
}

static void a_byte_behind_any_packet_is_a_bad_frame(void **state)
{
	FILE *file = vectors_open();
	struct vector vector;

	(void)state;
	while (vector_next(file, &vector)) {
		struct wire_packet packet;
		struct wire_fault fault;
		uint8_t *longer = malloc(vector.size + 1);

		assert_non_null(longer);
		memcpy(longer, vector.packet, vector.size);
		longer[vector.size] = 0xc0;
		assert_int_equal(wire_decode_packet(longer, vector.size + 1, &wire_packet_limits,
						    &packet, &fault),
				 -WIRE_BAD_FRAME);
		free(longer);
		vector_free(&vector);
	}
	(void)fclose(file);
}

static void the_oracle_reads_the_same_values(void **state)
{
	FILE *file = vectors_open();
	struct vector vector;

	(void)state;
	while (vector_next(file, &vector)) {
		struct wire_packet packet;
		struct wire_fault fault;
		union wire_body body;
		const uint8_t *bytes;
		uint32_t size;

		assert_int_equal(wire_decode_packet(vector.packet, vector.size, &wire_packet_limits,
						    &packet, &fault),
				 0);
		bytes = packet.error ? packet.error : packet.body;
		size = packet.error ? packet.error_size : packet.body_size;
		const struct wire_type *type = type_of(&vector, &packet);

		assert_int_equal(wire_decode_body(type, bytes, size, true, &body, &fault), 0);
		check_round_trip(type, bytes, size, &body);
		vector_free(&vector);
	}
	(void)fclose(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(python_packets_decode_and_encode_to_the_same_bytes),
		cmocka_unit_test(every_prefix_of_a_packet_is_a_bad_frame),
		cmocka_unit_test(a_byte_behind_any_packet_is_a_bad_frame),
		cmocka_unit_test(the_oracle_reads_the_same_values),
	};

	return cmocka_run_group_tests_name("proto vectors", tests, NULL, NULL);
}
