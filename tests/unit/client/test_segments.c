/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of attached weights on other devices, and what a daemon may not do with them. */
#include "tests/support/unit.h"
#include "tests/unit/client/peer.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include "base/require.h"

#include <xxhash.h>

#include "client/include/distorch.h"
#include "proto/table.h"

#define N_BLOCKS      70U /* more than two packets take */
#define TENSOR_BYTES  300U
#define SEGMENT_BYTES (512U + TENSOR_BYTES) /* two tensors, the second at a multiple of 256 */
#define IMAGE_BYTES   ((size_t)N_BLOCKS * 2 * TENSOR_BYTES)

enum fault {
	FAULT_NONE,
	FAULT_FEW_LETTERS,
	FAULT_FAR_LETTER,
	FAULT_CPU_SECOND,
	FAULT_NO_UUID,
	FAULT_NO_DEVICES,
	FAULT_SHORT,
	FAULT_UNSEALED,
	FAULT_LEFT_OUT,
	FAULT_TWICE,
	FAULT_FAR_BLOCK,
	FAULT_NO_BLOCKS,
	FAULT_FEWER_FDS,
	FAULT_REFUSED,
	N_FAULTS,
};

/* What the daemon says. */
struct scene {
	char places[N_BLOCKS + 1]; /* a letter each */
	enum fault fault;
	uint32_t n_maps;      /* requests seen */
	uint32_t n_maps_left; /* those that are answered */
};

static uint64_t hash(const void *bytes, size_t size)
{
	return XXH3_64bits(bytes, size);
}

static int make_table(void)
{
	static struct table_source_tensor tensors[N_BLOCKS * 2];
	static struct table_source_block blocks[N_BLOCKS];
	static char names[N_BLOCKS * 3][8];
	static const uint8_t id[16] = {1};
	static const uint64_t shape[] = {TENSOR_BYTES};
	static _Alignas(8) uint8_t memory[65536];
	const uint64_t sum = 1;
	const struct table_source_shard shard = {.size = IMAGE_BYTES,
						 .image_size = IMAGE_BYTES,
						 .n_sums = 1,
						 .name = wire_str("m.safetensors")};
	const struct table_source source = {.model_id = id,
					    .generation = 3,
					    .format = 1,
					    .n_shards = 1,
					    .n_tensors = N_BLOCKS * 2,
					    .n_blocks = N_BLOCKS,
					    .n_sums = 1,
					    .shards = &shard,
					    .tensors = tensors,
					    .blocks = blocks,
					    .sums = &sum,
					    .sum_range = (uint64_t)64 << 20};
	size_t size;

	for (uint32_t i = 0; i < N_BLOCKS * 2; i++) {
		(void)snprintf(names[i], sizeof names[i], "t%u", i);
		tensors[i] = (struct table_source_tensor){.name = wire_str(names[i]),
							  .shape = shape,
							  .rank = 1,
							  .dtype = WIRE_DTYPE_U8,
							  .block = i / 2,
							  .offset = (uint64_t)i * TENSOR_BYTES,
							  .size = TENSOR_BYTES};
	}
	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		char *name = names[N_BLOCKS * 2 + i];

		(void)snprintf(name, sizeof names[0], "b%u", i);
		blocks[i] = (struct table_source_block){.name = wire_str(name),
							.size = (uint64_t)2 * TENSOR_BYTES,
							.first_tensor = 2 * i,
							.n_tensors = 2};
	}
	size = (size_t)table_size(&source);
	REQUIRE(size > 0 && size <= sizeof memory);
	table_write(&source, memory, hash);
	return peer_memfd(memory, size, PEER_SEALS);
}

static int make_image(void)
{
	static uint8_t bytes[IMAGE_BYTES];

	for (size_t i = 0; i < IMAGE_BYTES; i++) {
		bytes[i] = (uint8_t)(i / TENSOR_BYTES);
	}
	return peer_memfd(bytes, sizeof bytes, PEER_SEALS);
}

/* Each tensor's bytes are its number. */
static int make_segment(uint32_t block, enum fault fault)
{
	uint8_t bytes[SEGMENT_BYTES] = {0};

	memset(bytes, (int)(2 * block), TENSOR_BYTES);
	memset(bytes + 512, (int)(2 * block + 1), TENSOR_BYTES);
	return peer_memfd(bytes, fault == FAULT_SHORT ? sizeof bytes - 1 : sizeof bytes,
			  fault == FAULT_UNSEALED ? F_SEAL_GROW : PEER_SEALS);
}

static void answer_map(struct peer *peer, struct scene *scene)
{
	struct wire_packet packet;
	struct wire_map_request request;
	struct wire_fault fault;
	struct wire_list range;
	struct wire_place places[WIRE_FDS_PER_PACKET];
	uint64_t blocks[WIRE_FDS_PER_PACKET];
	struct wire_map_response response = {0};
	int fds[WIRE_FDS_PER_PACKET];
	uint64_t from = 0;
	uint32_t n = 0;

	REQUIRE(peer_receive(peer, &packet) && packet.message->number == WIRE_METHOD_MAP);
	REQUIRE(wire_decode_body(&wire_type_map_request, packet.body, packet.body_size, true,
				 &request, &fault) == 0);
	REQUIRE(request.has_blocks && !request.has_segments && request.lease == 5);
	range = request.blocks;
	REQUIRE(wire_list_next(&range, NULL, &from));
	scene->n_maps++;
	if (scene->fault == FAULT_REFUSED) {
		peer_fail(peer, packet.id, "device-lost", "sim:0 is gone");
		return;
	}
	for (uint64_t i = from; i < N_BLOCKS && n < WIRE_FDS_PER_PACKET; i++) {
		if (scene->places[i] == 'A') {
			continue;
		}
		if (scene->fault == FAULT_LEFT_OUT && i < 6) {
			continue;
		}
		blocks[n] = i;
		fds[n] = make_segment((uint32_t)i, scene->fault);
		places[n] = (struct wire_place){.device = wire_str("sim:0"),
						.bytes = SEGMENT_BYTES,
						.backing = wire_str("device")};
		n++;
	}
	if (scene->fault == FAULT_TWICE) {
		blocks[1] = blocks[0];
	} else if (scene->fault == FAULT_FAR_BLOCK) {
		blocks[n - 1] = N_BLOCKS;
	}
	response.segments = (struct wire_list){.count = n, .items = places};
	response.has_blocks = scene->fault != FAULT_NO_BLOCKS;
	response.blocks = (struct wire_list){.count = n, .items = blocks};
	if (scene->fault == FAULT_FEWER_FDS) {
		response.blocks.count--;
	}
	peer_respond(peer, packet.id, WIRE_METHOD_MAP, &response, fds, n);
	for (uint32_t i = 0; i < n; i++) {
		REQUIRE(close(fds[i]) == 0);
	}
}

static void serve(struct peer *peer)
{
	struct scene *scene = peer->user;
	struct wire_str devices[] = {wire_str("cpu"), wire_str("sim:0"), wire_str("cuda:0")};
	const struct wire_str uuids[] = {wire_str(""), wire_str("SIM-0"), wire_str("GPU-0")};
	int fds[2] = {make_table(), make_image()};
	struct wire_attach_response response = {.lease = 5,
						.generation = 3,
						.images = 1,
						.model = peer_model(),
						.has_layout = true};
	uint32_t id = peer_expect(peer, WIRE_METHOD_ATTACH);

	if (scene->fault == FAULT_CPU_SECOND) {
		devices[0] = wire_str("sim:0");
		devices[1] = wire_str("cpu");
	}
	response.layout = (struct wire_layout){
		.devices = {.count = scene->fault == FAULT_NO_DEVICES ? 0 : 3, .items = devices},
		.uuids = {.count = scene->fault == FAULT_NO_UUID ? 2 : 3, .items = uuids},
		.places = wire_str(scene->places),
	};
	response.layout.places.size -= scene->fault == FAULT_FEW_LETTERS ? 1 : 0;
	peer_respond(peer, id, WIRE_METHOD_ATTACH, &response, fds, 2);
	REQUIRE(close(fds[0]) == 0 && close(fds[1]) == 0);
	for (uint32_t i = 0; i < scene->n_maps_left; i++) {
		answer_map(peer, scene);
	}
	(void)peer_is_closed(peer);
}

static int attach(struct scene *scene, struct distorch_weights **ret_weights,
		  uint32_t *ret_detached)
{
	struct peer *peer = calloc(1, sizeof *peer);
	struct distorch *c = NULL;
	int rc;

	assert_non_null(peer);
	peer_start(peer, serve, scene);
	assert_int_equal(distorch_open(peer->path, NULL, &c), 0);
	rc = distorch_attach(c, "m", ret_weights);
	distorch_close(c);
	peer_stop(peer);
	*ret_detached = peer->n_detached;
	free(peer);
	return rc;
}

/* The letters given, again and again. */
static struct scene scene_of(const char *letters, uint32_t n_maps)
{
	struct scene scene = {.n_maps_left = n_maps};

	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		scene.places[i] = letters[i % strlen(letters)];
	}
	return scene;
}

static void check_tensors(struct distorch_weights *weights, const char *letters)
{
	for (uint32_t i = 0; i < N_BLOCKS * 2; i++) {
		const struct distorch_tensor *tensor = distorch_weights_tensor(weights, i);
		const struct distorch_block *block = distorch_weights_block(weights, i / 2);
		const uint8_t *bytes = tensor->data;
		char letter = letters[i / 2 % strlen(letters)];

		assert_int_equal(tensor->block, i / 2);
		assert_string_equal(tensor->device, block->device);
		assert_int_equal(block->n_tensors, 2);
		assert_string_equal(tensor->device, letter == 'A'   ? "cpu"
						    : letter == 'B' ? "sim:0"
								    : "cuda:0");
		if (letter == 'A') {
			assert_null(tensor->uuid);
			assert_null(block->data);
			assert_int_equal(block->bytes, 2 * TENSOR_BYTES);
		} else {
			assert_string_equal(tensor->uuid, letter == 'B' ? "SIM-0" : "GPU-0");
			assert_int_equal(tensor->block_offset, i % 2 == 0 ? 0 : 512);
			assert_int_equal(block->bytes, SEGMENT_BYTES);
		}
		if (letter == 'C') {
			assert_null(bytes); /* a card's memory is not this process's to see */
			assert_null(block->data);
			continue;
		}
		assert_int_equal(bytes[0], (uint8_t)i);
		assert_int_equal(bytes[TENSOR_BYTES - 1], (uint8_t)i);
		if (letter == 'B') {
			assert_ptr_equal(bytes,
					 (const uint8_t *)block->data + tensor->block_offset);
		}
	}
}

/* Before any thread: those of a test before may have one open for a moment. */
static int quiet_fds;

static void blocks_come_from_where_they_lie(void **state)
{
	static const struct {
		const char *letters;
		uint32_t n_maps;
	} cases[] = {{"AB", 2}, {"B", 3}, {"ABC", 2}, {"C", 0}, {"CAA", 0}, {"A", 0}, {"BC", 3}};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct scene scene = scene_of(cases[i].letters, cases[i].n_maps);
		struct distorch_weights *weights = NULL;
		uint32_t n_detached = 0;
		uint8_t *bytes;

		assert_int_equal(attach(&scene, &weights, &n_detached), 0);
		assert_int_equal(scene.n_maps, cases[i].n_maps);
		assert_int_equal(distorch_weights_n_blocks(weights), N_BLOCKS);
		assert_null(distorch_weights_block(weights, N_BLOCKS));
		assert_string_equal(distorch_weights_block(weights, 69)->name, "b69");
		check_tensors(weights, cases[i].letters);
		bytes = distorch_weights_tensor(weights, 1)->data;
		if (bytes != NULL) {
			bytes[0] = 77; /* private, as an image is */
		}
		assert_non_null(distorch_weights_base(weights, 0, NULL));
		distorch_weights_unref(weights);
		peer_wait_fds(quiet_fds);
	}
}

static void what_does_not_fit_is_refused(void **state)
{
	(void)state;
	for (enum fault fault = FAULT_NONE + 1; fault < N_FAULTS; fault++) {
		struct scene scene = scene_of("AB", 1);
		struct distorch_weights *weights = NULL;
		uint32_t n_detached = 0;
		int rc;

		scene.fault = fault;
		scene.places[3] = fault == FAULT_FAR_LETTER ? 'D' : scene.places[3];
		if (fault < FAULT_SHORT) {
			scene.n_maps_left = 0; /* it does not come to that */
		}
		rc = attach(&scene, &weights, &n_detached);
		assert_int_equal(rc, fault == FAULT_REFUSED ? -DISTORCH_E_DEVICE_LOST
							    : -DISTORCH_E_INTERNAL);
		assert_null(weights);
		assert_int_equal(n_detached, 1); /* the lease is given back */
		peer_wait_fds(quiet_fds);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_come_from_where_they_lie),
		cmocka_unit_test(what_does_not_fit_is_refused),
	};

	quiet_fds = peer_count_fds();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
