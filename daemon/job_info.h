/* SPDX-License-Identifier: Apache-2.0 */
/* What is known of a job of the core while it runs (store.h). Loop only. */
#ifndef DAEMON_JOB_INFO_H
#define DAEMON_JOB_INFO_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <uthash.h>

#include "daemon/core/action.h"
#include "daemon/generation.h"
#include "daemon/plan/plan.h"

struct image_set;
struct placement_warnings;
struct tensor_map;

#define STORE_MAX_EVICTED  16 /* victims that a load's answer names */
#define STORE_MAX_WATCHERS 8  /* clients told of the end of a load begun with no_wait */

/* owner: store::jobs, from the first action of a job until ACT_FORGET_JOB */
struct job_info {
	uint64_t id;
	uint64_t model;
	uint64_t begun_ns;
	uint64_t file;            /* its source, while it is filled */
	struct tensor_map *map;   /* parsed header, until the fill is done */
	struct image_set *images; /* of the generation that is filled */
	uint64_t images_of;       /* that generation; 0: none yet */
	uint64_t *filled_bytes;   /* of each of its files, then of each block */
	uint64_t placement;       /* of its generation */
	uint64_t moved;           /* bytes of what it fills */
	bool is_tabled;           /* its table is made apart */
	bool with_host;           /* all of it in images, besides blocks on devices */
	bool may_share;           /* the published copies are of the same content */
	bool by_tensor;           /* each tensor is a block */
	uint64_t *held;           /* segments of an earlier generation that its fills may read */
	uint32_t n_held;
	uint8_t *places; /* with is_tabled: the device of each block */
	uint32_t n_shards;
	uint32_t n_filled;           /* of them whole */
	uint64_t told_ns;            /* when the core was last told of progress */
	struct generation_info next; /* becomes the model's at ACT_PUBLISH */
	struct park park;            /* likewise */
	struct err failure;
	struct plan_shortage shortage; /* what its plan, or a device, lacks, with WIRE_NO_MEMORY */
	bool is_taken; /* by the device's account there was room: others had it by then */
	struct placement_warnings *warnings; /* of its plan; NULL: none */
	uint32_t n_evicted;
	struct {
		uint64_t model;
		uint64_t bytes;
		enum core_why why;
	} evicted[STORE_MAX_EVICTED];
	uint32_t n_watchers;
	struct {
		uint64_t client;
		uint32_t request;
		uint64_t placement; /* that was asked for, or CORE_PLACEMENT_ANY */
	} watchers[STORE_MAX_WATCHERS];
	UT_hash_handle hh; /* store::jobs, by id */
};

#endif
