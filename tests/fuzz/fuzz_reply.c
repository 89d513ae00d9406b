/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Z14: what a hostile daemon may send to a client: results in a memfd, and bodies whose
 * structure nobody checked. The first byte picks the type. Lists are read to the last item.
 */
#include "tests/fuzz/fuzz.h"
#include "tests/support/wire_check.h"

static const struct wire_type *pick_type(uint8_t byte)
{
	uint32_t index = byte % (WIRE_N_METHODS + WIRE_N_EVENTS + 1);

	if (index < WIRE_N_METHODS) {
		return wire_messages[index].response;
	}
	index -= WIRE_N_METHODS;
	return index < WIRE_N_EVENTS ? wire_events[index].fields : &wire_type_error;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	union wire_body body;
	union wire_body before;
	struct wire_fault fault;
	const struct wire_type *type;
	int checked;
	int error;

	if (size == 0) {
		return 0;
	}
	type = pick_type(bytes[0]);
	bytes++;
	size--;
	memset(&before, 0x5a, sizeof before);
	body = before;
	checked = wire_check_map(bytes, size, &wire_listing_limits, &fault);
	error = wire_decode_body(type, bytes, (uint32_t)size, false, &body, &fault);
	if (error) {
		REQUIRE(error == -WIRE_BAD_ARGUMENT || error == -WIRE_BAD_FRAME);
		REQUIRE(checked != 0 || error == -WIRE_BAD_ARGUMENT);
		REQUIRE(memcmp(&body, &before, sizeof body) == 0);
	} else if (checked == 0) {
		check_round_trip(type, bytes, size, &body);
	} else {
		struct arena arena = {0};

		rebuild_lists(&arena, type, &body); /* safe, whatever it holds */
		arena_free(&arena);
	}
	return 0;
}
