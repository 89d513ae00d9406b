/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placements: what clients say of where blocks should lie, under the numbers by which the core
 * knows them; and what the planner makes of one for a model. Loop only.
 */
#ifndef DAEMON_PLACEMENT_H
#define DAEMON_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>
#include <uthash.h>

#include "daemon/daemon.h"
#include "daemon/plan/plan.h"
#include "proto/wire.h"

struct core_need;
struct daemon;
struct err;
struct generation_info;
struct job_info;
struct placed_record;
struct tensor_map;

#define PLACEMENT_WARNING_SIZE 320

/* As a request says it; absent texts are empty. */
struct placement_words {
	struct wire_str allocation, compute, strategy, granularity;
	struct wire_list donors;
	uint64_t virtual_vram;
	bool is_plan; /* asks only: who computes says what each pass copies, also of RAM */
};

#define PLACEMENT_WORDS(request)                                                        \
	{                                                                               \
		.allocation = (request)->allocation, .compute = (request)->compute,     \
		.strategy = (request)->strategy, .granularity = (request)->granularity, \
		.donors = (request)->donors, .virtual_vram = (request)->virtual_vram,   \
	}

/* owner: daemon::placements, until there are too many and no model has use for it */
struct placement {
	uint64_t id; /* over CORE_PLACEMENT_HOST */
	char allocation[PLAN_MAX_TEXT + 1];
	char compute[65];
	char donors[PLAN_MAX_DONORS][65];
	uint32_t n_donors;
	enum plan_strategy strategy;
	bool by_tensor;
	bool has_names; /* who said it counts the devices in an order of his own */
	char names[CORE_MAX_DEVICES][DEVICE_NAME_SIZE]; /* then his; empty: he does not see it */
	uint64_t virtual_vram;
	bool is_used; /* while those that are not are looked for */
	UT_hash_handle hh;
};

/*
 * What the client calls each of the daemon's devices: "cuda:0" is the first card in his order
 * where he told it (torch puts the fastest first, the daemon goes by PCI bus). False: as the
 * daemon does, and so are those of a sort (cards, simulated ones) of which he told none. An empty
 * name: he does not see it.
 */
bool placement_names(const struct daemon *daemon, const struct client *client,
		     char ret[CORE_MAX_DEVICES][DEVICE_NAME_SIZE]);

/* The number of what the client says, CORE_PLACEMENT_ANY when that is nothing.
 * WIRE_BAD_ARGUMENT, WIRE_NO_MEMORY, WIRE_TOO_MANY. */
int placement_take(struct daemon *daemon, const struct client *client,
		   const struct placement_words *words, uint64_t *ret_id, struct err *err);
/* What was said, and of which devices by their UUIDs; no device of it is used yet. False: it is one
 * of the core's own. */
bool placement_describe(const struct daemon *daemon, uint64_t id, struct placed_record *ret);
/* The number of what an earlier life was told, by the devices of this one. WIRE_BAD_FILE,
 * WIRE_NO_MEMORY. */
int placement_adopt(struct daemon *daemon, const struct placed_record *record, uint64_t *ret_id,
		    struct err *err);
/* NULL: it is none, or one of the core's own. */
const struct placement *placement_find(const struct daemon *daemon, uint64_t id);
void placement_free_all(struct daemon *daemon);

/* What a plan warns of, as the wire has it. */
struct placement_warnings {
	uint32_t count;
	struct wire_str items[PLAN_MAX_WARNINGS];
	char texts[PLAN_MAX_WARNINGS][PLACEMENT_WARNING_SIZE];
};

/* The devices as they are at one moment, for any thread. */
struct placement_room {
	uint32_t n_devices;
	struct plan_device devices[CORE_MAX_DEVICES]; /* their texts are in 'known' */
	struct known_device known[CORE_MAX_DEVICES];
};

/* 'model': whose own copies do not go for it; 0: none's. 'may_take_over': they are room for it, as
 * they are of the same blocks. 'ret' must not move afterwards. */
void placement_look(const struct daemon *daemon, uint64_t model, bool may_take_over,
		    struct placement_room *ret);

/* All but its blocks; borrows both and 'donors', and gives the devices in 'room' the names that
 * the placement means. Any thread. */
void placement_request(const struct placement *placement, struct placement_room *room,
		       struct plan_text donors[PLAN_MAX_DONORS], struct plan_request *ret);

/*
 * What the job's generation needs, by its header and placement: one image a file, and one segment
 * a block on another device. NULL with 'err' filled; the caller frees it.
 */
struct core_need *placement_needs(struct daemon *daemon, struct job_info *job,
				  uint32_t *ret_n_needs, struct err *err);

#endif
