/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The envelope and the structure of packets: cases P03, P04, P06, P07, P09 to P12 of the fault
 * list. Bytes lie in exact-size heap memory, so that a sanitizer sees any read past the end.
 */
#include "tests/support/unit.h"
#include "tests/support/wire_check.h"

#include "proto/wire_read.h"

/* Decode a copy of exactly these bytes; the packet borrows from nothing afterwards. */
static int decode(const void *bytes, size_t size, struct wire_packet *ret, struct wire_fault *fault)
{
	uint8_t *copy = malloc(size + (size == 0));
	int error;

	assert_non_null(copy);
	memcpy(copy, bytes, size);
	error = wire_decode_packet(copy, size, &wire_packet_limits, ret, fault);
	free(copy);
	return error;
}

#define BYTES(...)                                              \
	(const uint8_t[]){__VA_ARGS__}, sizeof(const uint8_t[]) \
	{                                                       \
		__VA_ARGS__                                     \
	}

static void assert_bad(const void *bytes, size_t size)
{
	struct wire_packet packet;
	struct wire_fault fault;

	memset(&packet, 0x5a, sizeof packet);
	struct wire_packet before = packet;

	assert_int_equal(decode(bytes, size, &packet, &fault), -WIRE_BAD_FRAME);
	assert_int_equal(fault.code, WIRE_BAD_FRAME);
	assert_true(fault.text[0] != '\0');
	assert_memory_equal(&packet, &before, sizeof packet); /* ret untouched */
}

static void assert_good(const void *bytes, size_t size)
{
	struct wire_packet packet;
	struct wire_fault fault;

	assert_int_equal(decode(bytes, size, &packet, &fault), 0);
}

/* [0, 1, "ping", <params>] */
static size_t ping_with(uint8_t *packet, const void *params, size_t size)
{
	static const uint8_t head[] = {0x94, 0x00, 0x01, 0xa4, 'p', 'i', 'n', 'g'};

	memcpy(packet, head, sizeof head);
	memcpy(packet + sizeof head, params, size);
	return sizeof head + size;
}

static void assert_params(const void *params, size_t size, bool is_good)
{
	static uint8_t packet[WIRE_PACKET_BYTES];
	size_t packet_size = ping_with(packet, params, size);

	if (is_good) {
		assert_good(packet, packet_size);
	} else {
		assert_bad(packet, packet_size);
	}
}

static void requests_responses_and_events_are_told_apart(void **state)
{
	const uint8_t request[] = {0x94, 0, 0xcd, 0x01, 0x00, 0xa4, 'p', 'i', 'n', 'g', 0x80};
	const uint8_t response[] = {0x94, 1, 7, 0xc0, 0x80};
	const uint8_t failure[] = {0x94, 1, 7, 0x80, 0xc0};
	const uint8_t event[] = {0x93, 2, 0xa4, 'l', 'o', 's', 't', 0x80};
	struct wire_packet packet;
	struct wire_fault fault;

	(void)state;
	assert_int_equal(decode(request, sizeof request, &packet, &fault), 0);
	assert_int_equal(packet.kind, WIRE_REQUEST);
	assert_int_equal(packet.id, 256);
	assert_ptr_equal(packet.message, &wire_messages[WIRE_METHOD_PING]);
	assert_int_equal(packet.body_size, 1);

	assert_int_equal(decode(response, sizeof response, &packet, &fault), 0);
	assert_int_equal(packet.kind, WIRE_RESPONSE);
	assert_int_equal(packet.id, 7);
	assert_null(packet.error);
	assert_non_null(packet.body);

	assert_int_equal(decode(failure, sizeof failure, &packet, &fault), 0);
	assert_non_null(packet.error);
	assert_int_equal(packet.error_size, 1);
	assert_null(packet.body);
	assert_int_equal(packet.body_size, 0);

	assert_int_equal(decode(event, sizeof event, &packet, &fault), 0);
	assert_int_equal(packet.kind, WIRE_EVENT);
	assert_ptr_equal(packet.event, &wire_events[WIRE_EVENT_LOST]);
}

static void unknown_methods_and_events_keep_their_name(void **state)
{
	const uint8_t request[] = {0x94, 0, 1, 0xa4, 'p', 'o', 'n', 'g', 0x80};
	const uint8_t longer[] = {0x94, 0, 1, 0xa5, 'p', 'i', 'n', 'g', 's', 0x80};
	const uint8_t event[] = {0x93, 2, 0xa3, 'l', 'o', 's', 0x80};
	struct wire_packet packet;
	struct wire_fault fault;

	(void)state;
	assert_int_equal(wire_decode_packet(request, sizeof request, &wire_packet_limits, &packet,
					    &fault),
			 0);
	assert_null(packet.message);
	assert_true(wire_str_is(packet.name, "pong"));
	assert_int_equal(decode(longer, sizeof longer, &packet, &fault), 0);
	assert_null(packet.message);
	assert_int_equal(wire_decode_packet(event, sizeof event, &wire_packet_limits, &packet,
					    &fault),
			 0);
	assert_null(packet.event);
	assert_true(wire_str_is(packet.name, "los"));
}

/* fault: P03 P08 */
static void bent_envelopes_are_bad_frames(void **state)
{
	(void)state;
	assert_bad(BYTES(0xc0));                                    /* P03: one byte */
	assert_bad(BYTES(0x80));                                    /* no array */
	assert_bad(BYTES(0x90));                                    /* empty */
	assert_bad(BYTES(0x91, 0x00));                              /* only a kind */
	assert_bad(BYTES(0x93, 0x00, 0x01, 0xa1, 'x'));             /* a part missing */
	assert_bad(BYTES(0x95, 0x00, 0x01, 0xa1, 'x', 0x80, 0xc0)); /* one too many */
	assert_bad(BYTES(0x94, 0x03, 0x01, 0xa1, 'x', 0x80));       /* kind 3 */
	assert_bad(BYTES(0x94, 0xff, 0x01, 0xa1, 'x', 0x80));       /* kind -1 */
	assert_bad(BYTES(0x94, 0xc2, 0x01, 0xa1, 'x', 0x80));       /* kind false */
	assert_bad(BYTES(0x93, 0x00, 0xa1, 'x', 0x80));             /* request without id */
	assert_bad(BYTES(0x94, 0x02, 0x01, 0xa1, 'x', 0x80));       /* event with id */
	assert_bad(BYTES(0x94, 0x00, 0xff, 0xa1, 'x', 0x80));       /* id -1 */
	assert_bad(BYTES(0x94, 0x00, 0xa1, '1', 0xa1, 'x', 0x80));  /* id a string */
	assert_bad(BYTES(0x94, 0x00, 0x01, 0x07, 0x80));            /* method a number */
	assert_bad(BYTES(0x94, 0x00, 0x01, 0xc4, 0x01, 'x', 0x80)); /* method bin */
	assert_bad(BYTES(0x94, 0x00, 0x01, 0xa1, 0xff, 0x80));      /* method no UTF-8 */
	assert_bad(BYTES(0x94, 0x00, 0x01, 0xa1, 0x00, 0x80));      /* method NUL */
	assert_bad(BYTES(0x94, 0x00, 0x01, 0xa1, 'x', 0xc0));       /* params nil */
	assert_bad(BYTES(0x94, 0x00, 0x01, 0xa1, 'x', 0x90));       /* params an array */
	assert_bad(BYTES(0x94, 0x01, 0x01, 0xc0, 0xc0));            /* neither */
	assert_bad(BYTES(0x94, 0x01, 0x01, 0x80, 0x80));            /* error and result */
	assert_bad(BYTES(0x94, 0x01, 0x01, 0xa1, 'x', 0xc0));       /* error a string */
	assert_bad(BYTES(0x94, 0x01, 0x01, 0xc0, 0x01));            /* result a number */
	assert_bad(BYTES(0x93, 0x02, 0xa1, 'x', 0xc0));             /* event nil */
	assert_good(BYTES(0x94, 0x00, 0xce, 0xff, 0xff, 0xff, 0xff, 0xa1, 'x', 0x80));
	assert_bad(BYTES(0x94, 0x00, 0xcf, 0, 0, 0, 1, 0, 0, 0, 0, 0xa1, 'x', 0x80));
}

static void long_forms_of_small_numbers_are_accepted(void **state)
{
	(void)state;
	assert_good(
		BYTES(0xdc, 0, 4, 0xcc, 0, 0xd3, 0, 0, 0, 0, 0, 0, 0, 1, 0xd9, 1, 'x', 0xde, 0, 0));
	assert_good(
		BYTES(0xdd, 0, 0, 0, 4, 0xd0, 0, 0xd1, 0, 1, 0xda, 0, 1, 'x', 0xdf, 0, 0, 0, 0));
}

/* fault: P03 */
static void packets_are_64_kib_at_most(void **state)
{
	uint8_t *packet = malloc(WIRE_PACKET_BYTES + 1);
	uint8_t params[] = {0x81, 0xa1, 'x', 0xc5, 0, 0};
	struct wire_packet ret;
	struct wire_fault fault;

	(void)state;
	assert_non_null(packet);
	memset(packet, 0, WIRE_PACKET_BYTES + 1);
	size_t head = ping_with(packet, params, sizeof params);
	size_t size = WIRE_PACKET_BYTES - head;

	packet[head - 2] = (uint8_t)(size >> 8);
	packet[head - 1] = (uint8_t)size;
	assert_good(packet, WIRE_PACKET_BYTES);
	packet[head - 1]++;
	assert_int_equal(decode(packet, WIRE_PACKET_BYTES + 1, &ret, &fault), -WIRE_BAD_FRAME);
	assert_non_null(strstr(fault.text, "65536"));
	assert_non_null(strstr(fault.text, "65537"));
	free(packet);
}

/* fault: P06 */
static void counts_over_the_bytes_left_are_refused(void **state)
{
	static const uint8_t marks[] = {0xd9, 0xda, 0xdb, 0xc4, 0xc5, 0xc6, 0xdc,
					0xdd, 0xde, 0xdf, 0xc7, 0xc8, 0xc9};

	(void)state;
	for (size_t i = 0; i < sizeof marks; i++) {
		assert_params((uint8_t[]){0x81, 0xa1, 'x', marks[i], 0xff, 0xff, 0xff, 0xff, 1}, 9,
			      false);
	}
	assert_params(BYTES(0x81, 0xa1, 'x', 0x91), false);       /* one item, no byte */
	assert_params(BYTES(0x81, 0xa1, 'x', 0x81, 0xa0), false); /* one pair, one byte */
	assert_params(BYTES(0x81, 0xa1, 'x', 0xa2, 'y'), false);
	assert_params(BYTES(0x81, 0xa1, 'x', 0xdf, 0x80, 0, 0, 0), false); /* doubled: wraps */
	assert_params(BYTES(0x81, 0xa1, 'x', 0xa1, 'y'), true);
}

/* fault: P06 */
static void a_head_is_refused_before_its_items_are_looked_for(void **state)
{
	static const uint8_t array[] = {0xdd, 0, 0, 0, 3, 1, 2};
	static const uint8_t map[] = {0xdf, 0x80, 0, 0, 1, 0xa0, 0xa0};
	struct wire_reader reader = {array, array + sizeof array};
	struct wire_item item = {.number = 77};

	(void)state;
	assert_false(wire_read_item(&reader, &item));
	reader = (struct wire_reader){map, map + sizeof map};
	assert_false(wire_read_item(&reader, &item));
	assert_int_equal(item.number, 77);
}

static void every_type_is_skipped_where_nothing_is_known(void **state)
{
	(void)state;
	assert_params(BYTES(0x8c, 0xa1, 'a', 0xc0, 0xa1, 'b', 0xc2, 0xa1, 'c', 0xc4, 1, 0, 0xa1,
			    'd', 0xca, 1, 2, 3, 4, 0xa1, 'e', 0xcb, 1, 2, 3, 4, 5, 6, 7, 8, 0xa1,
			    'f', 0xcc, 1, 0xa1, 'g', 0xcd, 1, 2, 0xa1, 'h', 0xce, 1, 2, 3, 4, 0xa1,
			    'i', 0xcf, 1, 2, 3, 4, 5, 6, 7, 8, 0xa1, 'j', 0xd0, 1, 0xa1, 'k', 0xd2,
			    1, 2, 3, 4, 0xa1, 'l', 0xe0),
		      true);
}

/* fault: P08 */
static void ext_types_and_0xc1_are_refused(void **state)
{
	(void)state;
	for (uint8_t mark = 0xd4; mark <= 0xd8; mark++) { /* fixext 1 to 16 */
		uint8_t params[21] = {0x81, 0xa1, 'x', mark};

		assert_params(params, 5 + (1U << (mark - 0xd4)), false);
	}
	assert_params(BYTES(0x81, 0xa1, 'x', 0xc7, 1, 1, 1), false);
	assert_params(BYTES(0x81, 0xa1, 'x', 0xc8, 0, 1, 1, 1), false);
	assert_params(BYTES(0x81, 0xa1, 'x', 0xc9, 0, 0, 0, 1, 1, 1), false);
	assert_params(BYTES(0x81, 0xa1, 'x', 0xc1), false);
}

/* 'n' arrays in each other as params' only value: with envelope and params n + 2 deep. */
static void assert_nested(size_t n, bool is_good)
{
	static uint8_t params[WIRE_PACKET_BYTES - 16];

	params[0] = 0x81;
	params[1] = 0xa1;
	params[2] = 'x';
	memset(params + 3, 0x91, n - 1);
	params[2 + n] = 0x90;
	assert_params(params, 3 + n, is_good);
}

/* fault: P09 */
static void eight_containers_in_each_other_are_the_most(void **state)
{
	(void)state;
	assert_nested(WIRE_DEPTH - 2, true);
	assert_nested(WIRE_DEPTH - 1, false);
	assert_nested(33, false);
	assert_nested(60000, false);
}

/* fault: P09 */
static void maps_count_as_depth_too(void **state)
{
	uint8_t params[3 * (WIRE_DEPTH - 1) + 1];

	(void)state;
	for (size_t i = 0; i < WIRE_DEPTH - 1; i++) {
		memcpy(params + 3 * i, (uint8_t[]){0x81, 0xa1, 'x'}, 3);
	}
	params[3 * (WIRE_DEPTH - 2)] = 0x80;
	assert_params(params, 3 * (WIRE_DEPTH - 2) + 1, true);
	params[3 * (WIRE_DEPTH - 2)] = 0x81;
	params[3 * (WIRE_DEPTH - 1)] = 0x80;
	assert_params(params, 3 * (WIRE_DEPTH - 1) + 1, false);
}

/* params {"x": [nil, nil, …]} with the given number of values in the whole packet. */
static void assert_nodes(uint32_t nodes, bool is_good)
{
	static uint8_t params[WIRE_PACKET_BYTES - 16];
	uint32_t items = nodes - 7; /* envelope 4, params, key, array */

	memcpy(params, (uint8_t[]){0x81, 0xa1, 'x', 0xdc, (uint8_t)(items >> 8), (uint8_t)items},
	       6);
	memset(params + 6, 0xc0, items);
	assert_params(params, 6 + items, is_good);
}

/* fault: P07 */
static void a_packet_holds_4096_values_at_most(void **state)
{
	(void)state;
	assert_nodes(WIRE_NODES, true);
	assert_nodes(WIRE_NODES + 1, false);
	assert_nodes(65000, false);
}

/* fault: P10 */
static void the_same_key_twice_is_a_bad_frame(void **state)
{
	(void)state;
	assert_params(BYTES(0x82, 0xa1, 'x', 1, 0xa1, 'x', 2), false);
	assert_params(BYTES(0x82, 0xa1, 'x', 1, 0xd9, 1, 'x', 2), false); /* other length form */
	assert_params(BYTES(0x83, 0xa1, 'x', 1, 0xa1, 'y', 1, 0xa1, 'x', 2), false);
	assert_params(BYTES(0x82, 0xa0, 1, 0xa0, 2), false); /* the empty key */
	assert_params(BYTES(0x82, 0xa1, 'x', 1, 0xa1, 'X', 2), true);
	assert_params(BYTES(0x82, 0xa1, 'x', 1, 0xa2, 'x', 'x', 2), true);
	/* in a map inside a list inside an unknown field; the same key in two maps is fine */
	assert_params(BYTES(0x81, 0xa1, 'x', 0x91, 0x82, 0xa1, 'y', 1, 0xa1, 'y', 2), false);
	assert_params(BYTES(0x82, 0xa1, 'x', 0x81, 0xa1, 'y', 1, 0xa1, 'y', 0x81, 0xa1, 'x', 1),
		      true);
	/* the outer key comes again after a map that holds it */
	assert_params(BYTES(0x82, 0xa1, 'x', 0x81, 0xa1, 'x', 1, 0xa1, 'x', 1), false);
}

static void keys_are_strings(void **state)
{
	(void)state;
	assert_params(BYTES(0x81, 1, 1), false);
	assert_params(BYTES(0x81, 0xc4, 1, 'x', 1), false);
	assert_params(BYTES(0x81, 0x90, 1), false);
	assert_params(BYTES(0x81, 0xa1, 'x', 0x81, 1, 1), false);
}

/* params with 'n' keys k0000 …, all different unless 'twin' is one of them. */
static size_t put_many_keys(uint8_t *params, uint32_t n, uint32_t twin)
{
	size_t size = 3;

	memcpy(params, (uint8_t[]){0xde, (uint8_t)(n >> 8), (uint8_t)n}, 3);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t number = i == twin ? n - 1 : i * 7 % n; /* not sorted */
		uint8_t key[] = {0xa5,
				 'k',
				 (uint8_t)('0' + number / 1000),
				 (uint8_t)('0' + number / 100 % 10),
				 (uint8_t)('0' + number / 10 % 10),
				 (uint8_t)('0' + number % 10),
				 0xc0};

		memcpy(params + size, key, sizeof key);
		size += sizeof key;
	}
	return size;
}

/* fault: P10 */
static void duplicates_are_found_among_very_many_keys(void **state)
{
	static uint8_t params[WIRE_PACKET_BYTES];

	(void)state;
	assert_params(params, put_many_keys(params, WIRE_KEYS, UINT32_MAX), true);
	assert_params(params, put_many_keys(params, WIRE_KEYS, 0), false);
	assert_params(params, put_many_keys(params, WIRE_KEYS, 500), false);
	assert_params(params, put_many_keys(params, 17, UINT32_MAX), true);
	assert_params(params, put_many_keys(params, 17, 3), false);
	assert_params(params, put_many_keys(params, 16, UINT32_MAX), true);
	assert_params(params, put_many_keys(params, 16, 3), false);
}

static void open_maps_hold_1024_keys_at_most(void **state)
{
	static uint8_t params[WIRE_PACKET_BYTES];

	(void)state;
	assert_params(params, put_many_keys(params, WIRE_KEYS + 1, UINT32_MAX), false);
	assert_params(params, put_many_keys(params, 2000, UINT32_MAX), false);
}

/* fault: P12 */
static void strings_are_utf8_without_nul(void **state)
{
	static const struct {
		const char *text;
		uint32_t size;
		bool is_good;
	} cases[] = {
		{"\xc3\xa9", 2, true},
		{"\xe2\x82\xac", 3, true},
		{"\xf0\x9f\x99\x82", 4, true},
		{"\xf4\x8f\xbf\xbf", 4, true},
		{"\xed\x9f\xbf", 3, true},
		{"\xee\x80\x80", 3, true},
		{"\xe2\x80\xae", 3, true}, /* RTL override: shown escaped, not refused here */
		{"\x1b", 1, true},
		{"\x7f", 1, true},
		{"12345678", 8, true},
		{"1234567\xc3\xa9", 9, true},
		{"\0", 1, false},
		{"1234567\0", 8, false},
		{"1234567\x01", 8, true},
		{"\x80", 1, false},
		{"\xc0\x80", 2, false},
		{"\xc1\xbf", 2, false},
		{"\xc3", 1, false},
		{"\xc3(", 2, false},
		{"\xe0\x9f\xbf", 3, false},
		{"\xe2\x82", 2, false},
		{"\xe2\x82(", 3, false},
		{"\xed\xa0\x80", 3, false},
		{"\xf0\x8f\xbf\xbf", 4, false},
		{"\xf4\x90\x80\x80", 4, false},
		{"\xf5\x80\x80\x80", 4, false},
		{"\xff", 1, false},
		{"1234567\xff", 8, false},
		{"12345678\xc3", 9, false},
		{"\xf0\x9f\x99(", 4, false},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		uint8_t params[32] = {0x81, 0xa1, 'x', (uint8_t)(0xa0 | cases[i].size)};

		memcpy(params + 4, cases[i].text, cases[i].size);
		assert_params(params, 4 + cases[i].size, cases[i].is_good);
		params[0] = 0x81; /* and as a key */
		params[1] = (uint8_t)(0xa0 | cases[i].size);
		memcpy(params + 2, cases[i].text, cases[i].size);
		params[2 + cases[i].size] = 0xc0;
		assert_params(params, 3 + cases[i].size, cases[i].is_good);
	}
}

static void fds_are_taken_from_params_and_result_only(void **state)
{
	const uint8_t request[] = {0x94, 0,   1,   0xa1, 'x',  0x82, 0xa1, 'f', 0x81, 0xa3,
				   'f',  'd', 's', 9,    0xa3, 'f',  'd',  's', 2};
	const uint8_t failure[] = {0x94, 1, 7, 0x81, 0xa3, 'f', 'd', 's', 3, 0xc0};
	const uint8_t result[] = {0x94, 1, 7, 0xc0, 0x81, 0xa3, 'f', 'd', 's', 32};
	struct wire_packet packet;
	struct wire_fault fault;

	(void)state;
	assert_int_equal(decode(request, sizeof request, &packet, &fault), 0);
	assert_int_equal(packet.n_fds, 2);
	assert_int_equal(decode(failure, sizeof failure, &packet, &fault), 0);
	assert_int_equal(packet.n_fds, 0);
	assert_int_equal(decode(result, sizeof result, &packet, &fault), 0);
	assert_int_equal(packet.n_fds, 32);
	assert_params(BYTES(0x81, 0xa3, 'f', 'd', 's', 33), false);
	assert_params(BYTES(0x81, 0xa3, 'f', 'd', 's', 0xff), false);
	assert_params(BYTES(0x81, 0xa3, 'f', 'd', 's', 0xa1, '1'), false);
	assert_params(BYTES(0x81, 0xa3, 'f', 'd', 's', 0x91, 1), false);
}

static void a_spilled_result_has_a_size_and_a_descriptor(void **state)
{
	uint8_t packet[64];
	struct wire_buffer buffer = {.bytes = packet, .capacity = sizeof packet};
	const uint8_t bare[] = {0x94, 1, 7, 0xc0, 0x81, 0xa5, 's', 'p', 'i', 'l', 'l', 9};
	struct wire_packet ret;
	struct wire_fault fault;

	(void)state;
	assert_true(wire_encode_spill(&buffer, 7, 100000, 1));
	assert_int_equal(decode(packet, buffer.size, &ret, &fault), 0);
	assert_int_equal(wire_packet_spill(&ret), 100000);
	assert_int_equal(ret.n_fds, 1);
	assert_bad(bare, sizeof bare);
	buffer.size = 0;
	assert_true(wire_encode_spill(&buffer, 7, WIRE_SPILL_BYTES, 1));
	assert_good(packet, buffer.size);
	buffer.size = 0;
	assert_true(wire_encode_spill(&buffer, 7, WIRE_SPILL_BYTES + 1ULL, 1));
	assert_bad(packet, buffer.size);
	/* Only responses are spilled. */
	assert_int_equal(decode(BYTES(0x93, 2, 0xa1, 'x', 0x82, 0xa3, 'f', 'd', 's', 1, 0xa5, 's',
				      'p', 'i', 'l', 'l', 9),
				&ret, &fault),
			 0);
	assert_int_equal(wire_packet_spill(&ret), 0);
}

static void a_lone_map_is_checked_as_strictly(void **state)
{
	struct wire_fault fault;

	(void)state;
	assert_int_equal(wire_check_map(BYTES(0x81, 0xa1, 'x', 1), &wire_listing_limits, &fault),
			 0);
	assert_int_equal(wire_check_map(BYTES(0x90), &wire_listing_limits, &fault),
			 -WIRE_BAD_FRAME);
	assert_int_equal(wire_check_map(BYTES(0xc0), &wire_listing_limits, &fault),
			 -WIRE_BAD_FRAME);
	assert_int_equal(wire_check_map(BYTES(0x80, 0xc0), &wire_listing_limits, &fault),
			 -WIRE_BAD_FRAME);
	assert_int_equal(wire_check_map(BYTES(0x81, 0xa1, 'x'), &wire_listing_limits, &fault),
			 -WIRE_BAD_FRAME);
	assert_int_equal(wire_check_map(BYTES(0x82, 0xa1, 'x', 1, 0xa1, 'x', 1),
					&wire_listing_limits, &fault),
			 -WIRE_BAD_FRAME);
	assert_int_equal(wire_check_map("", 0, &wire_listing_limits, &fault), -WIRE_BAD_FRAME);
	assert_non_null(strstr(fault.text, "not 0"));
}

static void a_refusal_says_where(void **state)
{
	struct wire_packet packet;
	struct wire_fault fault;

	(void)state;
	assert_int_equal(decode(BYTES(0x94, 0, 1, 0xa1, 'x', 0x81, 0xa1, 'x', 0xc1), &packet,
				&fault),
			 -WIRE_BAD_FRAME);
	assert_non_null(strstr(fault.text, "(byte 9 of 9)"));
	assert_string_equal(fault.field, "");
}

static void a_long_refusal_is_cut(void **state)
{
	struct wire_fault fault;

	(void)state;
	assert_int_equal(wire_fault_begin(&fault, WIRE_BAD_FRAME, "x"), -WIRE_BAD_FRAME);
	for (size_t i = 0; i < sizeof fault.text; i++) {
		wire_fault_number(&fault, UINT64_MAX);
	}
	assert_int_equal(strlen(fault.text), sizeof fault.text - 1);
}

static void strings_are_copied_cut_at_a_character(void **state)
{
	char buffer[5];

	(void)state;
	assert_string_equal(wire_str_copy(wire_str("ab"), buffer, sizeof buffer), "ab");
	assert_string_equal(wire_str_copy(wire_str("abcdef"), buffer, sizeof buffer), "abcd");
	assert_string_equal(wire_str_copy(wire_str("abc\xc3\xa9"), buffer, sizeof buffer), "abc");
	assert_string_equal(wire_str_copy(wire_str("ab\xc3\xa9"), buffer, sizeof buffer),
			    "ab\xc3\xa9");
	assert_string_equal(wire_str_copy(wire_str("\xf0\x9f\x99\x82"), buffer, 4), "");
	assert_string_equal(wire_str_copy((struct wire_str){0}, buffer, 1), "");
	assert_true(wire_str_is(wire_str("a"), "a"));
	assert_false(wire_str_is(wire_str("a"), "ab"));
	assert_false(wire_str_is(wire_str("ab"), "a"));
	assert_true(wire_str_is((struct wire_str){0}, ""));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_responses_and_events_are_told_apart),
		cmocka_unit_test(unknown_methods_and_events_keep_their_name),
		cmocka_unit_test(bent_envelopes_are_bad_frames),
		cmocka_unit_test(long_forms_of_small_numbers_are_accepted),
		cmocka_unit_test(packets_are_64_kib_at_most),
		cmocka_unit_test(counts_over_the_bytes_left_are_refused),
		cmocka_unit_test(a_head_is_refused_before_its_items_are_looked_for),
		cmocka_unit_test(every_type_is_skipped_where_nothing_is_known),
		cmocka_unit_test(ext_types_and_0xc1_are_refused),
		cmocka_unit_test(eight_containers_in_each_other_are_the_most),
		cmocka_unit_test(maps_count_as_depth_too),
		cmocka_unit_test(a_packet_holds_4096_values_at_most),
		cmocka_unit_test(the_same_key_twice_is_a_bad_frame),
		cmocka_unit_test(keys_are_strings),
		cmocka_unit_test(duplicates_are_found_among_very_many_keys),
		cmocka_unit_test(open_maps_hold_1024_keys_at_most),
		cmocka_unit_test(strings_are_utf8_without_nul),
		cmocka_unit_test(fds_are_taken_from_params_and_result_only),
		cmocka_unit_test(a_spilled_result_has_a_size_and_a_descriptor),
		cmocka_unit_test(a_lone_map_is_checked_as_strictly),
		cmocka_unit_test(a_refusal_says_where),
		cmocka_unit_test(a_long_refusal_is_cut),
		cmocka_unit_test(strings_are_copied_cut_at_a_character),
	};

	return cmocka_run_group_tests_name("proto wire", tests, NULL, NULL);
}
