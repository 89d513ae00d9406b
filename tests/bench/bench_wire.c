/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many packets a second the codec reads: envelope, structure and body, one thread. Prints
 * one line a case; the aim is 1 M/s for small requests. The last case is the most expensive
 * packet that a peer can send.
 */
#include "base/require.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "proto/gen/wire_gen.h"

static uint8_t packet[WIRE_PACKET_BYTES];

static double seconds(void)
{
	struct timespec now;

	REQUIRE(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
	return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* 'code' is what the body must come to. */
static void measure(const char *name, size_t size, int code)
{
	double begin = seconds();
	double end = begin;
	double n = 0;

	while (end - begin < 0.5) {
		for (int i = 0; i < 100; i++) {
			struct wire_packet decoded;
			struct wire_fault fault;
			union wire_body body;

			REQUIRE(wire_decode_packet(packet, size, &wire_packet_limits, &decoded,
						   &fault) == 0);
			REQUIRE(wire_decode_body(decoded.message->request, decoded.body,
						 decoded.body_size, true, &body, &fault) == code);
		}
		n += 100;
		end = seconds();
	}
	(void)printf("wire decode  %-28s %5zu bytes  %8.3f M/s  %8.0f ns\n", name, size,
		     n / (end - begin) / 1e6, (end - begin) / n * 1e9);
}

static struct wire_buffer whole_packet(void)
{
	return (struct wire_buffer){.bytes = packet, .capacity = sizeof packet};
}

/* As many keys as open maps may hold, none known, as long as fit, equal but for their ends. */
static size_t most_expensive(void)
{
	static const uint8_t head[] = {0x94, 0, 1, 0xa4, 'p', 'i', 'n', 'g', 0xde, 4, 0};
	size_t size = sizeof head;

	memcpy(packet, head, sizeof head);
	for (unsigned int i = 0; i < WIRE_KEYS; i++) {
		packet[size] = 0xd9;
		packet[size + 1] = 56;
		memset(packet + size + 2, 'k', 54);
		packet[size + 56] = (uint8_t)('0' + i * 7 % WIRE_KEYS / 32);
		packet[size + 57] = (uint8_t)('0' + i * 7 % 32);
		packet[size + 58] = 0xc0;
		size += 59;
	}
	return size;
}

int main(void)
{
	struct wire_cancel_request cancel = {.id = 77};
	struct wire_attach_request attach = {.has_model = true,
					     .model = wire_str("model.safetensors"),
					     .has_map = true};
	struct wire_load_request load = {
		.has_name = true,
		.name = wire_str("flux1-dev.safetensors"),
		.has_allocation = true,
		.allocation = wire_str("cuda:0,2.5gb;cpu,*"),
		.has_policy = true,
		.policy = {.has_keep = true, .keep = true, .has_ttl_ms = true, .ttl_ms = 60000},
		.has_attach = true,
		.attach = true,
	};
	struct wire_buffer buffer = whole_packet();

	REQUIRE(wire_encode_request(&buffer, 1, WIRE_METHOD_PING, NULL, 0));
	measure("ping", buffer.size, 0);
	buffer = whole_packet();
	REQUIRE(wire_encode_request(&buffer, 1, WIRE_METHOD_CANCEL, &cancel, 0));
	measure("cancel", buffer.size, 0);
	buffer = whole_packet();
	REQUIRE(wire_encode_request(&buffer, 1, WIRE_METHOD_ATTACH, &attach, 0));
	measure("attach", buffer.size, 0);
	buffer = whole_packet();
	REQUIRE(wire_encode_request(&buffer, 1, WIRE_METHOD_LOAD, &load, 2));
	measure("load", buffer.size, 0);
	measure("1,024 unknown keys", most_expensive(), -WIRE_UNKNOWN_FIELD);
	return 0;
}
