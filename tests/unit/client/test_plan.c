/* SPDX-License-Identifier: Apache-2.0 */
/* A plan over blocks that the caller says: what is sent, what comes back, what is refused here. */
#include "base/require.h"
#include "tests/support/unit.h"
#include "tests/unit/client/peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/include/distorch.h"

#define MOST WIRE_PLAN_REQUEST_BLOCKS_MAX

static struct peer peer;
static const struct distorch_placement placement = {.size = sizeof placement,
						    .allocation = "sim:0,50%;cpu,*",
						    .compute = "sim:0",
						    .virtual_vram = 0};

/* As many blocks as may be, and one more. */
static const char *many_names[MOST + 1];
static uint64_t many_bytes[MOST + 1];

static void make_many(const char *name, uint64_t bytes)
{
	for (size_t i = 0; i <= MOST; i++) {
		many_names[i] = name;
		many_bytes[i] = bytes;
	}
}

static struct distorch *open_connection(void)
{
	struct distorch *c = NULL;

	assert_int_equal(distorch_open(peer.path, NULL, &c), 0);
	return c;
}

/* The next request, which is a plan. */
static void take_plan(struct peer *p, uint32_t *ret_id, struct wire_plan_request *ret)
{
	struct wire_packet packet;
	struct wire_fault fault;

	REQUIRE(peer_receive(p, &packet));
	REQUIRE(packet.message != NULL && packet.message->number == WIRE_METHOD_PLAN);
	REQUIRE(wire_decode_body(packet.message->request, packet.body, packet.body_size, true, ret,
				 &fault) == 0);
	*ret_id = packet.id;
}

/* ---- what is sent and what comes back ---- */

static void answer_two_blocks(struct peer *p)
{
	const struct wire_placed_block placed[] = {
		{.name = wire_str("vae.x"), .bytes = 7, .device = wire_str("sim:0")},
		{.name = wire_str("layers.1"), .bytes = 0, .device = wire_str("cpu")},
	};
	const struct wire_share share = {.device = wire_str("sim:0"),
					 .bytes = 7,
					 .blocks = 1,
					 .free_after = 5};
	const struct wire_str warning = wire_str("tight");
	const struct wire_plan_response response = {
		.devices = {.count = 1, .items = &share},
		.blocks = {.count = 2, .items = placed},
		.warnings = {.count = 1, .items = &warning},
		.moved_per_pass = 3,
		.has_compute = true,
		.compute = wire_str("sim:0"),
	};
	struct wire_plan_request request;
	struct wire_sized_block block;
	uint32_t id;

	take_plan(p, &id, &request);
	REQUIRE(!request.has_model && request.has_blocks && request.blocks.count == 2);
	REQUIRE(wire_str_is(request.allocation, "sim:0,50%;cpu,*"));
	REQUIRE(request.has_compute && wire_str_is(request.compute, "sim:0"));
	REQUIRE(!request.has_virtual_vram && !request.has_donors && !request.has_granularity);
	REQUIRE(wire_list_next(&request.blocks, &wire_type_sized_block, &block));
	REQUIRE(wire_str_is(block.name, "vae.x") && block.bytes == 7);
	REQUIRE(wire_list_next(&request.blocks, &wire_type_sized_block, &block));
	REQUIRE(wire_str_is(block.name, "layers.1") && block.bytes == 0);
	peer_respond(p, id, WIRE_METHOD_PLAN, &response, NULL, 0);
	(void)peer_is_closed(p);
}

static void blocks_are_sent_and_their_plan_comes_back(void **state)
{
	static const char *const names[] = {"vae.x", "layers.1"};
	static const uint64_t bytes[] = {7, 0};
	struct distorch_plan *plan = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, answer_two_blocks, NULL);
	c = open_connection();
	assert_int_equal(distorch_plan_blocks(c, names, bytes, 2, &placement, &plan), 0);
	assert_int_equal(plan->n_blocks, 2);
	assert_string_equal(plan->blocks[0]->name, "vae.x");
	assert_string_equal(plan->blocks[0]->device, "sim:0");
	assert_int_equal(plan->blocks[0]->tensors, 0);
	assert_string_equal(plan->blocks[1]->device, "cpu");
	assert_int_equal(plan->n_devices, 1);
	assert_int_equal(plan->devices[0]->free_after, 5);
	assert_string_equal(plan->warnings[0], "tight");
	assert_int_equal(plan->moved_per_pass, 3);
	assert_true(plan->floor_ns == DISTORCH_ABSENT);
	distorch_plan_free(plan);
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- the largest ---- */

static void count_blocks(struct peer *p)
{
	struct wire_plan_request request;
	struct wire_sized_block block;
	uint32_t n_blocks = 0;
	uint32_t id;

	take_plan(p, &id, &request);
	while (wire_list_next(&request.blocks, &wire_type_sized_block, &block)) {
		REQUIRE(block.name.size == 100 && block.bytes == INT64_MAX);
		n_blocks++;
	}
	REQUIRE(n_blocks == MOST && request.donors.count == 16);
	peer_fail(p, id, "bad-argument", "too many bytes");
	(void)peer_is_closed(p);
}

static void as_many_as_may_be_fit_one_packet(void **state)
{
	const char *donors[16];
	char name[101];
	char donor[65];
	struct distorch_placement full = placement;
	struct distorch_plan *plan = NULL;
	struct distorch *c;

	(void)state;
	memset(name, 'n', 100);
	name[100] = '\0';
	memset(donor, 'd', 64);
	donor[64] = '\0';
	make_many(name, INT64_MAX);
	for (size_t i = 0; i < 16; i++) {
		donors[i] = donor;
	}
	full.donors = donors;
	full.n_donors = 16;
	full.compute = donor;
	full.virtual_vram = INT64_MAX;
	full.strategy = "contiguous";
	full.granularity = "block";
	peer_start(&peer, count_blocks, NULL);
	c = open_connection();
	assert_int_equal(distorch_plan_blocks(c, many_names, many_bytes, MOST, &full, &plan),
			 -DISTORCH_E_BAD_ARGUMENT);
	assert_string_equal(distorch_error(c)->message, "too many bytes");
	assert_int_equal(distorch_plan_blocks(c, many_names, many_bytes, MOST + 1, &full, &plan),
			 -DISTORCH_E_TOO_MANY);
	assert_non_null(strstr(distorch_error(c)->message, "512"));
	assert_null(plan);
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- refused here ---- */

static void hear_nothing(struct peer *p)
{
	REQUIRE(peer_is_closed(p));
}

static void what_cannot_be_sent_is_refused_by_name(void **state)
{
	static const char *const names[] = {"a.0", NULL};
	static const uint64_t bytes[] = {1, 1};
	const struct distorch_placement nothing = {.size = sizeof nothing};
	char name[200];
	struct distorch_plan *plan = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, hear_nothing, NULL);
	c = open_connection();
	assert_int_equal(distorch_plan_blocks(c, NULL, bytes, 1, &placement, &plan),
			 -DISTORCH_E_BAD_ARGUMENT);
	assert_non_null(strstr(distorch_error(c)->message, "'names' is NULL"));
	assert_int_equal(distorch_plan_blocks(c, names, bytes, 2, &placement, &plan),
			 -DISTORCH_E_BAD_ARGUMENT);
	assert_non_null(strstr(distorch_error(c)->message, "'names' holds a NULL at 1"));
	assert_int_equal(distorch_plan_blocks(c, names, NULL, 1, &placement, &plan),
			 -DISTORCH_E_BAD_ARGUMENT);
	assert_non_null(strstr(distorch_error(c)->message, "'bytes' is NULL"));
	assert_int_equal(distorch_plan_blocks(c, names, bytes, 1, NULL, &plan),
			 -DISTORCH_E_BAD_ARGUMENT);
	assert_non_null(strstr(distorch_error(c)->message, "'placement' is NULL"));
	assert_int_equal(distorch_plan_blocks(c, names, bytes, 1, &nothing, &plan),
			 -DISTORCH_E_BAD_ARGUMENT);
	assert_int_equal(distorch_plan_blocks(NULL, names, bytes, 1, &placement, &plan),
			 -DISTORCH_E_BAD_ARGUMENT);
	memset(name, 'n', sizeof name - 1);
	name[sizeof name - 1] = '\0';
	make_many(name, 0);
	assert_int_equal(distorch_plan_blocks(c, many_names, many_bytes, MOST, &placement, &plan),
			 -DISTORCH_E_TOO_LARGE);
	assert_null(plan);
	distorch_close(c);
	peer_stop(&peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_are_sent_and_their_plan_comes_back),
		cmocka_unit_test(as_many_as_may_be_fit_one_packet),
		cmocka_unit_test(what_cannot_be_sent_is_refused_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
