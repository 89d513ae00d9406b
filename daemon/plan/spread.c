/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each block goes to the device that is furthest behind its even share of the bytes so far
 * (largest remainder), so a donor's blocks lie among resident ones and the copy of the next
 * hides behind their arithmetic. With blocks of one size each device gets exactly as many as
 * in runs. See place.h.
 */
#include "daemon/plan/place.h"

/* One device of the layout; a device with two runs is two, with limits of their own. */
struct lane {
	uint32_t device;
	uint64_t target; /* bytes */
	uint64_t given;
	uint64_t limit;
};

struct lanes {
	struct place_work *work;
	const struct spec_part *part;
	uint64_t off_left; /* bytes that may still go off the compute device */
	uint64_t reserve;  /* of its room */
	uint32_t n_lanes;
	struct lane lanes[PLACE_MAX_RUNS];
};

static bool fits(const struct lanes *lanes, const struct lane *lane, const struct plan_block *block)
{
	const struct plan_device *device = &lanes->work->request->devices[lane->device];
	uint64_t room = place_room(device);
	uint64_t taken = lanes->work->shares[lane->device].taken;
	bool is_off = lane->device != lanes->part->compute;

	if (!is_off) {
		room = room > lanes->reserve ? room - lanes->reserve : 0;
	}
	return block->bytes <= lane->limit - lane->given &&
	       (!is_off || block->bytes <= lanes->off_left) && taken <= room &&
	       place_charge(device, block) <= room - taken;
}

/* The lane that gets the block; NULL: none can. 'passed' bytes are behind us with this block. */
static struct lane *choose(struct lanes *lanes, const struct plan_block *block, uint64_t passed,
			   uint64_t all)
{
	struct lane *best = NULL;
	place_signed most = 0;

	for (uint32_t i = 0; i < lanes->n_lanes; i++) {
		struct lane *lane = &lanes->lanes[i];
		place_signed behind;

		if (lane->target == 0 || !fits(lanes, lane, block)) {
			continue;
		}
		/* Each product is less than 2^126: plan_make refuses larger models. */
		behind = (place_signed)lane->target * passed - (place_signed)lane->given * all;
		if (best == NULL || behind > most) {
			best = lane;
			most = behind;
		}
	}
	return best;
}

static void give(struct lanes *lanes, struct lane *lane, const struct plan_block *block)
{
	lane->given += block->bytes;
	if (lane->device != lanes->part->compute) {
		lanes->off_left -= block->bytes;
	}
	place_take(lanes->work, lane->device, block);
}

bool spread_take(struct place_work *work, const struct spec_part *part,
		 const struct place_layout *layout, uint8_t *devices)
{
	const struct plan_request *request = work->request;
	struct plan_share before[PLAN_MAX_DEVICES];
	struct lanes lanes = {.work = work,
			      .part = part,
			      .off_left = layout->off_limit,
			      .reserve = layout->reserve};
	uint64_t passed = 0;

	for (uint32_t i = 0; i < PLAN_MAX_DEVICES; i++) {
		before[i] = work->shares[i];
	}
	layout_give_back(work, layout);
	for (uint32_t i = 0; i < layout->n_runs; i++) {
		lanes.lanes[lanes.n_lanes++] = (struct lane){.device = layout->runs[i].device,
							     .target = layout->runs[i].share.bytes,
							     .limit = layout->runs[i].limit};
	}
	for (uint32_t i = 0; i < request->n_blocks; i++) {
		const struct plan_block *block = &request->blocks[i];
		struct lane *lane;

		if (!place_is_in(part, block)) {
			continue;
		}
		passed += block->bytes;
		lane = choose(&lanes, block, passed, layout->bytes);
		if (lane == NULL) {
			for (uint32_t j = 0; j < PLAN_MAX_DEVICES; j++) {
				work->shares[j] = before[j];
			}
			return false;
		}
		give(&lanes, lane, block);
		if (devices != NULL) {
			devices[i] = (uint8_t)lane->device;
		}
	}
	return true;
}
