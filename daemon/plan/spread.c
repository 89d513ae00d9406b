/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each block goes to the device that is furthest behind its even share of the bytes so far
 * (largest remainder), so a donor's blocks lie among resident ones and the copy of the next
 * hides behind their arithmetic. With blocks of one size each device gets exactly as many as
 * in runs. With unequal ones limits may leave a device short of its bytes, so a second walk gives
 * it what others have too much; where it is still short of more than an eighth the runs stay.
 * See place.h.
 */
#include "daemon/plan/place.h"

/* One device of the layout; a device with two runs is two, with limits of their own. */
struct lane {
	uint32_t device;
	uint64_t in_runs; /* bytes; the target too, but of virtual VRAM: all that was asked for */
	uint64_t target;
	uint64_t given;
	uint64_t limit;
};

/* What a walk over the blocks has given so far. */
struct lanes {
	struct place_work work; /* its shares alone */
	const struct spec_part *part;
	uint64_t off_left; /* bytes that may still go off the compute device */
	uint64_t reserve;  /* of its room */
	uint32_t n_lanes;
	struct lane lanes[PLACE_MAX_RUNS];
};

static bool is_off(const struct lanes *lanes, const struct lane *lane)
{
	return lane->device != lanes->part->compute;
}

static bool fits(const struct lanes *lanes, const struct lane *lane, const struct plan_block *block)
{
	const struct plan_device *device = &lanes->work.request->devices[lane->device];
	uint64_t room = place_room(device);
	uint64_t taken = lanes->work.shares[lane->device].taken;

	if (!is_off(lanes, lane)) {
		room = room > lanes->reserve ? room - lanes->reserve : 0;
	}
	return block->bytes <= lane->limit - lane->given &&
	       (!is_off(lanes, lane) || block->bytes <= lanes->off_left) && taken <= room &&
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
	lanes->off_left -= is_off(lanes, lane) ? block->bytes : 0;
	place_take(&lanes->work, lane->device, block);
}

static void take_back(struct lanes *lanes, struct lane *lane, const struct plan_block *block)
{
	lane->given -= block->bytes;
	lanes->off_left += is_off(lanes, lane) ? block->bytes : 0;
	place_give_back(&lanes->work, lane->device, block);
}

static uint64_t over(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

/* The lane that is better off with the block than the one that has it, where that has too much:
 * the one that lacks most of those that it brings both nearer to their bytes. */
static struct lane *improve(struct lanes *lanes, struct lane *has, const struct plan_block *block)
{
	const uint64_t surplus = over(has->given, has->target);
	struct lane *best = has;
	uint64_t most = 0;

	if (surplus == 0) {
		return has;
	}
	take_back(lanes, has, block);
	for (uint32_t i = 0; i < lanes->n_lanes; i++) {
		struct lane *lane = &lanes->lanes[i];
		uint64_t lack = over(lane->target, lane->given);

		if (lane != has && lack > most && block->bytes < lack + surplus &&
		    fits(lanes, lane, block)) {
			best = lane;
			most = lack;
		}
	}
	give(lanes, best, block);
	return best;
}

/* Has no lane more than an eighth less than in runs? But the compute device's of virtual VRAM. */
static bool is_near(const struct lanes *lanes, bool is_virtual)
{
	for (uint32_t i = 0; i < lanes->n_lanes; i++) {
		const struct lane *lane = &lanes->lanes[i];

		if (over(lane->in_runs, lane->given) > lane->in_runs / 8 &&
		    (is_off(lanes, lane) || !is_virtual)) {
			return false;
		}
	}
	return true;
}

/* What runs lack of the virtual VRAM, since they end where a block does not fit, may be had of
 * other blocks; a little lies in its nature. */
static void aim_at_all(struct lanes *lanes)
{
	struct lane *last = NULL;
	struct lane *compute = NULL;
	uint64_t lack = lanes->off_left;

	for (uint32_t i = 0; i < lanes->n_lanes; i++) {
		struct lane *lane = &lanes->lanes[i];

		if (is_off(lanes, lane)) {
			last = lane;
			lack -= lane->in_runs;
		} else {
			compute = lane;
		}
	}
	if (last != NULL && compute != NULL && lack > lanes->off_left / 8) {
		lack = lack < compute->target ? lack : compute->target;
		last->target += lack;
		compute->target -= lack;
	}
}

static void begin(const struct place_work *work, const struct spec_part *part,
		  const struct place_layout *layout, struct lanes *ret)
{
	*ret = (struct lanes){.work = {.request = work->request},
			      .part = part,
			      .off_left = layout->off_limit,
			      .reserve = layout->reserve};
	for (uint32_t i = 0; i < PLAN_MAX_DEVICES; i++) {
		ret->work.shares[i] = work->shares[i];
	}
	layout_give_back(&ret->work, layout);
	for (uint32_t i = 0; i < layout->n_runs; i++) {
		ret->lanes[ret->n_lanes++] = (struct lane){.device = layout->runs[i].device,
							   .in_runs = layout->runs[i].share.bytes,
							   .target = layout->runs[i].share.bytes,
							   .limit = layout->runs[i].limit};
	}
	if (layout->off_limit != PLACE_NO_LIMIT) {
		aim_at_all(ret);
	}
}

/*
 * Walk over the blocks: 'first' alone, or with 'end', in which a walk has given all of them and
 * which is improved then; what that did with each block is found by walking again. False: one of
 * the blocks fits nowhere.
 */
static bool walk(struct lanes *first, uint64_t all, struct lanes *end, uint8_t *devices)
{
	const struct plan_request *request = first->work.request;
	uint64_t passed = 0;

	for (uint32_t i = 0; i < request->n_blocks; i++) {
		const struct plan_block *block = &request->blocks[i];
		struct lane *lane;

		if (!place_is_in(first->part, block)) {
			continue;
		}
		passed += block->bytes;
		lane = choose(first, block, passed, all);
		if (lane == NULL) {
			return false;
		}
		give(first, lane, block);
		if (end != NULL) {
			lane = improve(end, &end->lanes[lane - first->lanes], block);
		}
		if (devices != NULL) {
			devices[i] = (uint8_t)lane->device;
		}
	}
	return true;
}

bool spread_take(struct place_work *work, const struct spec_part *part,
		 const struct place_layout *layout, uint8_t *devices)
{
	struct lanes first;
	struct lanes end;

	begin(work, part, layout, &first);
	end = first;
	if (!walk(&end, layout->bytes, NULL, NULL)) {
		return false;
	}
	(void)walk(&first, layout->bytes, &end, devices);
	if (!is_near(&end, layout->off_limit != PLACE_NO_LIMIT)) {
		return false;
	}
	for (uint32_t i = 0; i < PLAN_MAX_DEVICES; i++) {
		work->shares[i] = end.work.shares[i];
	}
	return true;
}
