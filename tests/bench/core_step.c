/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one core_step costs where the tables are full: 4,096 resident models of four uids, each
 * with a wish of all of them, and where loads wait besides; and where one model has thousands of
 * blocks that are placed, moved, leased, evicted and lost. Prints nanoseconds, asserts nothing.
 */
#include "base/os/clock.h"

#include <stdio.h>
#include <stdlib.h>

#include "daemon/core/core.h"

#define N_MODELS 4096
#define N_UIDS   4
#define N_STEPS  20000

struct bench {
	struct core *core;
	uint64_t now_ns, file;
	uint32_t request;
	uint64_t clients[N_UIDS];
};

static uint64_t step(struct bench *bench, struct core_event event)
{
	struct core_update update;
	uint64_t ret_id = 0;

	event.now_ns = bench->now_ns += 1000;
	do {
		core_step(bench->core, &event, &update);
		ret_id = event.type == EV_CONTINUE ? ret_id : update.ret_id;
		event.type = EV_CONTINUE;
	} while (update.again);
	return ret_id;
}

static void load(struct bench *bench, uint64_t client, uint64_t inode)
{
	static const uint8_t id[16];
	static const struct core_policy policy = {.said = CORE_SAID_KEEP | CORE_SAID_TTL,
						  .keep = true,
						  .ttl_ns = 3600000000000U,
						  .for_ns = 3600000000000U};
	struct core_file_key key = {.dev = 1, .ino = inode, .size = 100, .mtime_ns = 1};

	(void)step(bench, (struct core_event){.type = EV_LOAD,
					      .client = client,
					      .request = ++bench->request,
					      .load = {.file = ++bench->file,
						       .key = &key,
						       .fresh_id = id,
						       .policy = &policy,
						       .no_wait = true}});
}

/* All that the loader owes for the model, at once. */
static void finish(struct bench *bench, uint64_t inode, uint64_t bytes)
{
	struct core_file_key key = {.dev = 1, .ino = inode, .size = 100, .mtime_ns = 1};
	const struct core_need need = {.device = 0, .bytes = bytes};
	uint64_t model = core_model_find(bench->core, &key);
	struct core_model_view view;
	struct core_segment_view segment;
	uint32_t cursor = 0;

	(void)core_model_get(bench->core, model, &view);
	(void)step(bench, (struct core_event){.type = EV_HEADER_READ,
					      .header = {.job = view.job,
							 .key = &key,
							 .needs = &need,
							 .n_needs = 1}});
	if (core_segment_next(bench->core, model, &cursor, &segment)) {
		(void)step(bench, (struct core_event){.type = EV_FILLED,
						      .filled = {.segment = segment.id}});
	}
}

static void measure(struct bench *bench, const char *what, struct core_event event)
{
	uint64_t begun_ns = clock_mono_ns();

	for (uint32_t i = 0; i < N_STEPS; i++) {
		event.request = ++bench->request;
		(void)step(bench, event);
	}
	(void)printf("%-66s %8.0f ns\n", what,
		     (double)(clock_mono_ns() - begun_ns) / (double)N_STEPS);
}

/* ---- one model of many blocks ---- */

#define N_BLOCK_BYTES 4096ULL
#define MAX_BLOCKS    30000
#define N_HOLDERS     8

struct slowest {
	uint64_t ns, n_steps, total_ns;
};

/* The step, and the longest of its kind. */
static void time_step(struct bench *bench, struct slowest *slowest, struct core_event event)
{
	uint64_t begun_ns = clock_mono_ns();
	uint64_t took_ns;

	event.request = ++bench->request;
	(void)step(bench, event);
	took_ns = clock_mono_ns() - begun_ns;
	slowest->ns = took_ns > slowest->ns ? took_ns : slowest->ns;
	slowest->total_ns += took_ns;
	slowest->n_steps++;
}

static void print_slowest(uint32_t n_blocks, const char *what, struct slowest slowest)
{
	(void)printf(
		"core_step, a model of %6u blocks: %-26s %7.2f ms the longest, %8.0f ns each\n",
		n_blocks, what, (double)slowest.ns / 1e6,
		(double)slowest.total_ns / (double)slowest.n_steps);
}

static const struct core_file_key blocks_key = {.dev = 2, .ino = 1, .size = 100, .mtime_ns = 1};

/* The header of the model's job: its blocks on the device, from one on; those before on device 1. */
static struct core_event header_of(const struct bench *bench, uint32_t n_blocks, uint32_t from,
				   uint32_t device)
{
	static struct core_need needs[MAX_BLOCKS];
	struct core_model_view view;

	(void)core_model_get(bench->core, core_model_find(bench->core, &blocks_key), &view);
	for (uint32_t i = 0; i < n_blocks; i++) {
		needs[i] = (struct core_need){.device = i < from ? 1 : device,
					      .index = i,
					      .bytes = N_BLOCK_BYTES,
					      .is_block = true,
					      .is_same = i < from};
	}
	return (struct core_event){.type = EV_HEADER_READ,
				   .header = {.job = view.job,
					      .key = &blocks_key,
					      .needs = needs,
					      .n_needs = n_blocks}};
}

/* A result for each of the model's copies in this state. */
static struct slowest finish_all(struct bench *bench, enum segment_state state)
{
	uint64_t model = core_model_find(bench->core, &blocks_key);
	struct slowest slowest = {0};
	struct core_segment_view view;
	static uint64_t ids[MAX_BLOCKS];
	uint32_t n_ids = 0;
	uint32_t cursor = 0;

	while (core_segment_next(bench->core, model, &cursor, &view)) {
		if (view.state == state && n_ids < MAX_BLOCKS) {
			ids[n_ids++] = view.id;
		}
	}
	for (uint32_t i = 0; i < n_ids; i++) {
		struct core_event event = {.type = EV_FILLED, .filled = {.segment = ids[i]}};

		if (state == SEGMENT_DROPPING) {
			event = (struct core_event){.type = EV_DROPPED,
						    .dropped = {.segment = ids[i]}};
		}
		time_step(bench, &slowest, event);
	}
	return slowest;
}

static void make_table(struct bench *bench, struct slowest *slowest)
{
	struct core_model_view view;

	(void)core_model_get(bench->core, core_model_find(bench->core, &blocks_key), &view);
	time_step(bench, slowest,
		  (struct core_event){.type = EV_TABLED, .tabled = {.job = view.job}});
}

/* Those who lease it are asked to let go for a reservation, which is taken back, and leave. */
static void recall(struct bench *bench, uint32_t n_blocks)
{
	const struct core_event opened = {.type = EV_CLIENT_OPENED, .opened = {.uid = 1000}};
	const uint64_t model = core_model_find(bench->core, &blocks_key);
	uint64_t holders[N_HOLDERS];
	struct slowest asking = {0};
	struct slowest leaving = {0};

	for (uint32_t i = 0; i < N_HOLDERS; i++) {
		holders[i] = step(bench, opened);
		(void)step(bench, (struct core_event){.type = EV_ATTACH,
						      .client = holders[i],
						      .request = ++bench->request,
						      .attach = {.model = model}});
	}
	time_step(bench, &asking,
		  (struct core_event){.type = EV_RESERVE,
				      .client = bench->clients[0],
				      .reserve = {.device = 2,
						  .bytes = (1ULL << 40) - N_BLOCK_BYTES,
						  .recall_ns = 1000000000}});
	print_slowest(n_blocks, "eight are asked for room", asking);
	(void)step(bench, (struct core_event){.type = EV_CANCEL,
					      .client = bench->clients[0],
					      .cancel = {.request = bench->request}});
	for (uint32_t i = 0; i < N_HOLDERS; i++) {
		time_step(bench, &leaving,
			  (struct core_event){.type = EV_CLIENT_CLOSED, .client = holders[i]});
	}
	print_slowest(n_blocks, "they leave", leaving);
}

static void measure_blocks(uint32_t n_blocks)
{
	static const uint8_t id[16];
	static const struct core_policy policy;
	const struct core_config config = {.max_clients = 16,
					   .max_models = 16,
					   .max_segments = 65536,
					   .max_leases = 64,
					   .max_waiters = 64,
					   .max_wishes = 64,
					   .max_reservations = 4,
					   .n_devices = 4,
					   .loads_per_uid = 2};
	struct bench bench = {0};
	void *memory = calloc(1, core_size(&config));
	struct slowest room = {0};
	struct slowest table = {0};
	struct slowest moving = {0};
	struct slowest loss = {0};
	struct slowest eviction = {0};

	if (memory == NULL) {
		return;
	}
	bench.core = core_init(memory, &config);
	for (uint32_t i = 0; i < config.n_devices; i++) {
		(void)step(&bench,
			   (struct core_event){.type = EV_BUDGET,
					       .budget = {.device = i, .bytes = 1ULL << 40}});
	}
	bench.clients[0] = step(&bench, (struct core_event){.type = EV_CLIENT_OPENED,
							    .opened = {.uid = 1000}});
	(void)step(&bench, (struct core_event){.type = EV_LOAD,
					       .client = bench.clients[0],
					       .request = ++bench.request,
					       .load = {.file = ++bench.file,
							.key = &blocks_key,
							.fresh_id = id,
							.policy = &policy,
							.placement = 2}});
	time_step(&bench, &room, header_of(&bench, n_blocks, n_blocks, 1));
	print_slowest(n_blocks, "all are let in", room);
	print_slowest(n_blocks, "a block is there", finish_all(&bench, SEGMENT_FILLING));
	make_table(&bench, &table);
	print_slowest(n_blocks, "it is published", table);
	(void)step(&bench,
		   (struct core_event){.type = EV_PLACE,
				       .client = bench.clients[0],
				       .request = ++bench.request,
				       .place = {.model = core_model_find(bench.core, &blocks_key),
						 .placement = 3}});
	time_step(&bench, &moving, header_of(&bench, n_blocks, n_blocks / 2, 2));
	(void)finish_all(&bench, SEGMENT_FILLING);
	make_table(&bench, &moving);
	print_slowest(n_blocks, "half of it moves", moving);
	print_slowest(n_blocks, "a block is closed", finish_all(&bench, SEGMENT_DROPPING));
	recall(&bench, n_blocks);
	time_step(&bench, &eviction,
		  (struct core_event){.type = EV_PRESSURE,
				      .pressure = {.device = 1,
						   .wanted = n_blocks / 4 * N_BLOCK_BYTES}});
	print_slowest(n_blocks, "a quarter is evicted", eviction);
	time_step(&bench, &loss,
		  (struct core_event){.type = EV_DEVICE_LOST, .device = {.device = 2}});
	print_slowest(n_blocks, "its device is lost", loss);
	free(memory);
}

int main(void)
{
	const struct core_config config = {.max_clients = 64,
					   .max_models = N_MODELS + 1000,
					   .max_segments = 65536,
					   .max_leases = 65536,
					   .max_waiters = 32768,
					   .max_wishes = 32768,
					   .n_devices = 1,
					   .loads_per_uid = 2};
	struct bench bench = {0};
	void *memory = calloc(1, core_size(&config));
	struct core_event set = {.type = EV_SET};
	static const struct core_policy priority = {.said = CORE_SAID_PRIORITY, .priority = 1};
	uint64_t begun_ns;

	if (memory == NULL) {
		return 1;
	}
	bench.core = core_init(memory, &config);
	(void)step(&bench,
		   (struct core_event){.type = EV_BUDGET, .budget = {.bytes = N_MODELS * 4096ULL}});
	for (uint32_t i = 0; i < N_UIDS; i++) {
		bench.clients[i] = step(&bench, (struct core_event){.type = EV_CLIENT_OPENED,
								    .opened = {.uid = 1000 + i}});
	}
	begun_ns = clock_mono_ns();
	for (uint32_t i = 0; i < N_MODELS; i++) {
		load(&bench, bench.clients[0], i);
		finish(&bench, i, 4096);
		for (uint32_t k = 1; k < N_UIDS; k++) {
			load(&bench, bench.clients[k], i);
		}
	}
	(void)printf("%-66s %8.0f ns\n", "core_step while 4,096 models are loaded by 4 uids",
		     (double)(clock_mono_ns() - begun_ns) / (N_MODELS * 6.0));
	measure(&bench, "core_step, 4,096 models and 16,384 wishes: nothing to do",
		(struct core_event){.type = EV_TICK});
	set.client = bench.clients[0];
	set.set.model = core_model_find(bench.core, &(struct core_file_key){.dev = 1, .ino = 7});
	set.set.policy = &priority;
	measure(&bench, "core_step, likewise: a wish is said", set);
	for (uint32_t i = 0; i < 1000; i++) {
		load(&bench, bench.clients[0], N_MODELS + i);
	}
	measure(&bench, "core_step, with 1,000 loads of one uid queued", set);
	begun_ns = clock_mono_ns();
	finish(&bench, N_MODELS, N_MODELS * 4096ULL / 2);
	(void)printf("%-66s %8.0f ns\n", "core_step that chooses 2,048 victims for one load (half)",
		     (double)(clock_mono_ns() - begun_ns) / 2.0);
	free(memory);
	measure_blocks(2000);
	measure_blocks(MAX_BLOCKS);
	return 0;
}
