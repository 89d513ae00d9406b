/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Z1, Z2, Z3: one packet from a hostile peer. What is accepted, msgpack-c's unpacker reads too,
 * to the last byte and with the same values; what was decoded encodes and decodes to the same.
 */
#include "tests/fuzz/fuzz.h"
#include "tests/support/wire_check.h"

static void check_body(const struct wire_type *type, const uint8_t *bytes, uint32_t size,
		       bool is_strict)
{
	union wire_body body;
	struct wire_fault fault;
	int error = wire_decode_body(type, bytes, size, is_strict, &body, &fault);

	if (error == 0) {
		check_round_trip(type, bytes, size, &body);
		return;
	}
	/* The structure was accepted: what is wrong is a field, and it has a name. */
	REQUIRE(error == -WIRE_BAD_ARGUMENT || (is_strict && error == -WIRE_UNKNOWN_FIELD));
	REQUIRE((int)fault.code == -error && fault.text[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct wire_packet packet;
	struct wire_fault fault;
	msgpack_unpacked oracle;

	if (wire_decode_packet(bytes, size, &wire_packet_limits, &packet, &fault) != 0) {
		REQUIRE(fault.code == WIRE_BAD_FRAME && fault.text[0] != '\0');
		return 0;
	}
	oracle_reads(bytes, size, &oracle);
	REQUIRE(oracle.data.type == MSGPACK_OBJECT_ARRAY);
	REQUIRE(oracle.data.via.array.ptr[0].via.u64 == packet.kind);
	msgpack_unpacked_destroy(&oracle);
	REQUIRE(packet.n_fds <= WIRE_FDS_PER_PACKET);
	REQUIRE(packet.kind == WIRE_RESPONSE || wire_packet_spill(&packet) == 0);

	if (packet.error) {
		check_body(&wire_type_error, packet.error, packet.error_size, false);
	} else if (packet.kind == WIRE_REQUEST && packet.message) {
		check_body(packet.message->request, packet.body, packet.body_size, true);
	} else if (packet.kind == WIRE_EVENT && packet.event) {
		check_body(packet.event->fields, packet.body, packet.body_size, false);
	} else if (packet.kind == WIRE_RESPONSE) {
		for (int i = 0; i < WIRE_N_METHODS; i++) {
			check_body(wire_messages[i].response, packet.body, packet.body_size, false);
		}
	}
	return 0;
}
