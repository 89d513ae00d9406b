/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one core_step costs where the tables are full: 4,096 resident models of four uids, each
 * with a wish of all of them, and where loads wait besides. Prints nanoseconds, asserts nothing.
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
	return 0;
}
