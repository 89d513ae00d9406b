/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing: exact bytes, buffers that are too small, text that is no UTF-8, what is cut and
 * what is not. That packed messages decode again is shown by test_vectors.c.
 */
#include "tests/support/unit.h"
#include "tests/support/wire_check.h"

#define BYTES(...)                                              \
	(const uint8_t[]){__VA_ARGS__}, sizeof(const uint8_t[]) \
	{                                                       \
		__VA_ARGS__                                     \
	}

static uint8_t memory[WIRE_PACKET_BYTES];
static struct wire_buffer buffer;

static int fresh_buffer(void **state)
{
	(void)state;
	memset(memory, 0x5a, sizeof memory);
	buffer = (struct wire_buffer){.bytes = memory, .capacity = sizeof memory};
	return 0;
}

static void assert_packed(const uint8_t *bytes, size_t size)
{
	assert_int_equal(buffer.size, size);
	assert_memory_equal(memory, bytes, size);
}

static void a_request_has_its_fds_first(void **state)
{
	struct wire_cancel_request cancel = {.id = 300};

	(void)state;
	assert_true(wire_encode_request(&buffer, 5, WIRE_METHOD_CANCEL, &cancel, 2));
	assert_packed(BYTES(0x94, 0, 5, 0xa6, 'c', 'a', 'n', 'c', 'e', 'l', 0x82, 0xa3, 'f', 'd',
			    's', 2, 0xa2, 'i', 'd', 0xcd, 1, 44));
}

static void a_body_without_fields_may_be_null(void **state)
{
	(void)state;
	assert_true(wire_encode_request(&buffer, 1, WIRE_METHOD_PING, NULL, 0));
	assert_packed(BYTES(0x94, 0, 1, 0xa4, 'p', 'i', 'n', 'g', 0x80));
	buffer.size = 0;
	assert_true(wire_encode_response(&buffer, 1, WIRE_METHOD_PING, NULL, 1));
	assert_packed(BYTES(0x94, 1, 1, 0xc0, 0x81, 0xa3, 'f', 'd', 's', 1));
}

static void absent_optional_fields_are_not_written(void **state)
{
	struct wire_error error = {
		.code = wire_str("io"),
		.message = wire_str("m"),
		.hint = wire_str("not there"),
	};

	(void)state;
	assert_true(wire_encode_error(&buffer, 9, &error));
	assert_packed(BYTES(0x94, 1, 9, 0x83, 0xa4, 'c', 'o', 'd', 'e', 0xa2, 'i', 'o', 0xa7, 'm',
			    'e', 's', 's', 'a', 'g', 'e', 0xa1, 'm', 0xa9, 'r', 'e', 't', 'r', 'y',
			    'a', 'b', 'l', 'e', 0xc2, 0xc0));
}

static void events_have_no_id(void **state)
{
	struct wire_overflow_event overflow = {.seq = 1};

	(void)state;
	assert_true(wire_encode_event(&buffer, WIRE_EVENT_OVERFLOW, &overflow, 0));
	assert_packed(BYTES(0x93, 2, 0xa8, 'o', 'v', 'e', 'r', 'f', 'l', 'o', 'w', 0x81, 0xa3, 's',
			    'e', 'q', 1));
}

static void a_spill_announces_bytes_and_descriptors(void **state)
{
	(void)state;
	assert_true(wire_encode_spill(&buffer, 3, 65536, 2));
	assert_packed(BYTES(0x94, 1, 3, 0xc0, 0x82, 0xa3, 'f', 'd', 's', 2, 0xa5, 's', 'p', 'i',
			    'l', 'l', 0xce, 0, 1, 0, 0));
}

static void lists_in_lists_are_written_from_arrays(void **state)
{
	const struct wire_holder holders[] = {{.client = 1, .comm = wire_str("a")},
					      {.client = 2, .comm = wire_str("b")}};
	const struct wire_outcome outcomes[] = {
		{.id = wire_str("1"),
		 .has_holders = true,
		 .holders = {.count = 2, .items = holders}},
		{.id = wire_str("2")},
	};
	struct wire_unload_response unload = {
		.kept = {.count = 2, .items = outcomes},
		.held = {.count = 1, .items = outcomes + 1},
		.total_bytes = 3,
	};
	struct wire_unload_response twin;
	struct wire_packet packet;
	struct wire_fault fault;
	struct wire_outcome outcome;
	struct wire_holder holder;

	(void)state;
	assert_true(wire_encode_response(&buffer, 1, WIRE_METHOD_UNLOAD, &unload, 0));
	assert_int_equal(wire_decode_packet(memory, buffer.size, &wire_packet_limits, &packet,
					    &fault),
			 0);
	assert_int_equal(wire_decode_body(&wire_type_unload_response, packet.body, packet.body_size,
					  true, &twin, &fault),
			 0);
	assert_int_equal(twin.kept.count, 2);
	assert_int_equal(twin.unloaded.count, 0);
	assert_int_equal(twin.held.count, 1);
	assert_int_equal(twin.total_bytes, 3);
	assert_true(wire_list_next(&twin.kept, &wire_type_outcome, &outcome));
	assert_true(wire_str_is(outcome.id, "1"));
	assert_true(wire_list_next(&outcome.holders, &wire_type_holder, &holder));
	assert_true(wire_list_next(&outcome.holders, &wire_type_holder, &holder));
	assert_int_equal(holder.client, 2);
	assert_true(wire_list_next(&twin.kept, &wire_type_outcome, &outcome));
	assert_true(wire_str_is(outcome.id, "2"));
	assert_false(outcome.has_holders);
}

static void a_decoded_list_goes_on_as_it_came(void **state)
{
	const uint8_t items[] = {0xcd, 0, 1, 2}; /* a long form stays long */
	struct wire_map_request map = {
		.has_segments = true,
		.lease = 1,
		.segments = {.count = 2, .bytes = items, .size = sizeof items},
	};

	(void)state;
	assert_true(wire_encode_body(&buffer, &wire_type_map_request, &map));
	assert_packed(BYTES(0x82, 0xa5, 'l', 'e', 'a', 's', 'e', 1, 0xa8, 's', 'e', 'g', 'm', 'e',
			    'n', 't', 's', 0x92, 0xcd, 0, 1, 2));
}

static void a_small_buffer_is_never_written_past_its_end(void **state)
{
	struct wire_goodbye_event goodbye = {.code = wire_str("timeout"),
					     .reason = wire_str("not UTF-8: \xff, and some more")};
	struct wire_buffer counting = {0};

	(void)state;
	assert_false(wire_encode_event(&counting, WIRE_EVENT_GOODBYE, &goodbye, 0));
	assert_true(wire_encode_event(&buffer, WIRE_EVENT_GOODBYE, &goodbye, 0));
	assert_int_equal(counting.size, buffer.size);
	for (size_t capacity = 0; capacity < counting.size; capacity++) {
		uint8_t *exact = malloc(capacity + (capacity == 0));
		struct wire_buffer small = {.bytes = exact, .capacity = capacity};

		assert_non_null(exact);
		assert_false(wire_encode_event(&small, WIRE_EVENT_GOODBYE, &goodbye, 0));
		assert_int_equal(small.size, counting.size);
		free(exact);
	}
	uint8_t *exact = malloc(counting.size);
	struct wire_buffer just = {.bytes = exact, .capacity = counting.size};

	assert_non_null(exact);
	assert_true(wire_encode_event(&just, WIRE_EVENT_GOODBYE, &goodbye, 0));
	assert_memory_equal(exact, memory, counting.size);
	free(exact);
}

static void bytes_that_are_no_utf8_go_out_as_question_marks(void **state)
{
	struct wire_attach_request attach = {.has_model = true};

	(void)state;
	attach.model = (struct wire_str){"a\xff\xc3\xa9\0\xe2\x82", 7};
	assert_true(wire_encode_request(&buffer, 1, WIRE_METHOD_ATTACH, &attach, 0));
	assert_memory_equal(memory + buffer.size - 8,
			    "\xa7"
			    "a?\xc3\xa9???",
			    8);
}

static void what_the_daemon_sends_is_cut_at_the_limit(void **state)
{
	static char text[WIRE_GOODBYE_EVENT_REASON_MAX + 2];
	struct wire_goodbye_event goodbye = {.code = wire_str("x"), .reason = {text, sizeof text}};
	struct wire_goodbye_event twin;
	struct wire_packet packet;
	struct wire_fault fault;

	(void)state;
	memset(text, 'x', sizeof text);
	memcpy(text + WIRE_GOODBYE_EVENT_REASON_MAX - 1, "\xc3\xa9", 2);
	assert_true(wire_encode_event(&buffer, WIRE_EVENT_GOODBYE, &goodbye, 0));
	assert_int_equal(wire_decode_packet(memory, buffer.size, &wire_packet_limits, &packet,
					    &fault),
			 0);
	assert_int_equal(wire_decode_body(&wire_type_goodbye_event, packet.body, packet.body_size,
					  true, &twin, &fault),
			 0);
	assert_int_equal(twin.reason.size, WIRE_GOODBYE_EVENT_REASON_MAX - 1);
}

static void lists_of_the_daemon_are_cut_at_the_limit(void **state)
{
	static const struct wire_holder holders[WIRE_OUTCOME_HOLDERS_MAX + 5];
	struct wire_outcome outcome = {
		.has_holders = true,
		.holders = {.count = WIRE_OUTCOME_HOLDERS_MAX + 5, .items = holders},
	};
	struct wire_fault fault;

	(void)state;
	assert_true(wire_encode_body(&buffer, &wire_type_outcome, &outcome));
	assert_int_equal(wire_decode_body(&wire_type_outcome, memory, (uint32_t)buffer.size, true,
					  &outcome, &fault),
			 0);
	assert_int_equal(outcome.holders.count, WIRE_OUTCOME_HOLDERS_MAX);
}

static void requests_are_not_cut(void **state)
{
	static char text[WIRE_ATTACH_REQUEST_MODEL_MAX + 1];
	struct wire_attach_request attach = {.has_model = true, .model = {text, sizeof text}};
	struct wire_packet packet;
	struct wire_fault fault;

	(void)state;
	memset(text, 'x', sizeof text);
	assert_true(wire_encode_request(&buffer, 1, WIRE_METHOD_ATTACH, &attach, 0));
	assert_int_equal(wire_decode_packet(memory, buffer.size, &wire_packet_limits, &packet,
					    &fault),
			 0);
	assert_int_equal(wire_decode_body(&wire_type_attach_request, packet.body, packet.body_size,
					  true, &attach, &fault),
			 -WIRE_BAD_ARGUMENT);
	assert_string_equal(fault.field, "model");
	assert_string_equal(fault.text, "the string's size 4097 is over the largest allowed, 4096");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_request_has_its_fds_first, fresh_buffer),
		cmocka_unit_test_setup(a_body_without_fields_may_be_null, fresh_buffer),
		cmocka_unit_test_setup(absent_optional_fields_are_not_written, fresh_buffer),
		cmocka_unit_test_setup(events_have_no_id, fresh_buffer),
		cmocka_unit_test_setup(a_spill_announces_bytes_and_descriptors, fresh_buffer),
		cmocka_unit_test_setup(lists_in_lists_are_written_from_arrays, fresh_buffer),
		cmocka_unit_test_setup(a_decoded_list_goes_on_as_it_came, fresh_buffer),
		cmocka_unit_test_setup(a_small_buffer_is_never_written_past_its_end, fresh_buffer),
		cmocka_unit_test_setup(bytes_that_are_no_utf8_go_out_as_question_marks,
				       fresh_buffer),
		cmocka_unit_test_setup(what_the_daemon_sends_is_cut_at_the_limit, fresh_buffer),
		cmocka_unit_test_setup(lists_of_the_daemon_are_cut_at_the_limit, fresh_buffer),
		cmocka_unit_test_setup(requests_are_not_cut, fresh_buffer),
	};

	return cmocka_run_group_tests_name("proto wire encode", tests, NULL, NULL);
}
