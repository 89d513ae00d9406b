/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Items -> runs. Items before the wildcard take from the row's front, those behind it from its
 * end, the wildcard what is between; so the devices stand in the order typed. Bytes and
 * fractions take blocks while they fit; percentages cut at the block's edge that is nearest.
 * See place.h.
 */
#include "base/checked.h"
#include "base/err.h"
#include "base/units.h"

#include <stdio.h>

#include "daemon/plan/place.h"
#include "proto/gen/wire_code.h"

/* What bounds items beside their quotas. "Up to": a fraction asks for no more than there is, or
 * than there is when the loads under way have ended; a size does. */
enum bound { BOUND_NOW, BOUND_LATER, BOUND_NONE };

/* A piece of the row that is being cut. */
struct cut {
	const struct plan_request *request;
	const struct spec_part *part;
	uint32_t start, end;
	enum bound bound;
};

/* ---- pieces ---- */

static uint64_t sum_bytes(const struct plan_request *request, const struct spec_part *part,
			  uint32_t start, uint32_t end)
{
	uint64_t bytes = 0;

	for (uint32_t i = start; i < end; i++) {
		if (place_is_in(part, &request->blocks[i])) {
			bytes += request->blocks[i].bytes; /* plan_make knows that the sum fits */
		}
	}
	return bytes;
}

/* Is nothing of the row left in the cut? */
static bool is_done(const struct cut *cut)
{
	for (uint32_t i = cut->start; i < cut->end; i++) {
		if (place_is_in(cut->part, &cut->request->blocks[i])) {
			return false;
		}
	}
	return true;
}

static uint64_t bounded_room(const struct place_work *work, uint32_t index, enum bound bound)
{
	const struct plan_device *device = &work->request->devices[index];
	uint64_t taken = work->shares[index].taken;
	uint64_t room = UINT64_MAX;

	if (bound == BOUND_NONE) {
		return PLACE_NO_LIMIT;
	}
	(void)checked_add(place_room(device), bound == BOUND_LATER ? device->later : 0, &room);
	return taken > room ? 0 : room - taken;
}

/* Room that is left of a device. */
static uint64_t room_left(const struct place_work *work, uint32_t device)
{
	return bounded_room(work, device, BOUND_NOW);
}

/* Blocks from the front or the back of the cut that fit; returns where they end or begin. */
static uint32_t fill(const struct cut *cut, uint32_t device, uint64_t limit, uint64_t room,
		     bool from_back)
{
	uint64_t bytes = 0;
	uint64_t taken = 0;
	uint32_t n = 0;

	for (; n < cut->end - cut->start; n++) {
		const struct plan_block *block =
			&cut->request->blocks[from_back ? cut->end - 1 - n : cut->start + n];
		uint64_t charge;

		if (!place_is_in(cut->part, block)) {
			continue;
		}
		charge = place_charge(&cut->request->devices[device], block);
		if (block->bytes > limit - bytes || charge > room - taken) {
			break;
		}
		bytes += block->bytes;
		taken += charge;
	}
	return from_back ? cut->end - n : cut->start + n;
}

static void add_run(struct place_layout *layout, uint32_t device, uint32_t end, uint64_t limit)
{
	layout->runs[layout->n_runs++] =
		(struct place_run){.device = device, .end = end, .limit = limit};
}

/* What is left of an item's quota when the head has had its share. */
static uint64_t after_head(struct place_work *work, const struct spec_part *part,
			   const struct place_layout *layout, uint32_t device, uint64_t quota)
{
	if (device != part->compute) {
		return quota;
	}
	if (layout->head_bytes > quota) {
		place_warn(work, PLAN_HEAD_OVER, device, layout->head_bytes, quota);
		return 0;
	}
	return quota - layout->head_bytes;
}

/* ---- bytes and fractions ---- */

static uint64_t quota_of(const struct plan_request *request, const struct spec_part *part,
			 const struct spec_item *item)
{
	uint64_t total = request->devices[item->device].total;

	if (part->mode != SPEC_FRACTION) {
		return item->value;
	}
	return place_mul_div(total, item->value, SPEC_ONE);
}

/* One item's blocks, from the front or the back of the cut, which they leave. */
static void take_quota(struct place_work *work, struct cut *cut, uint32_t device, uint64_t quota,
		       bool from_back)
{
	uint64_t room = bounded_room(work, device, cut->bound);
	uint32_t end = fill(cut, device, quota, room, from_back);

	if (end != fill(cut, device, quota, PLACE_NO_LIMIT, from_back)) {
		place_warn(work, PLAN_CLAMPED, device, room, quota);
	}
	if (from_back) {
		cut->end = end;
	} else {
		cut->start = end;
	}
}

/* 'wildcard' may be n_items: the host, behind all of them. */
static void cut_with_wildcard(struct place_work *work, const struct spec_part *part,
			      uint32_t wildcard, uint32_t wildcard_device, const uint64_t *quotas,
			      struct place_layout *layout)
{
	struct cut cut = {.request = work->request,
			  .part = part,
			  .end = work->request->n_blocks,
			  .bound = part->mode == SPEC_FRACTION ? BOUND_NOW : BOUND_NONE};
	uint32_t n_runs = wildcard == part->n_items ? part->n_items + 1 : part->n_items;

	layout->n_runs = 0;
	for (uint32_t i = 0; i < wildcard; i++) {
		take_quota(work, &cut, part->items[i].device, quotas[i], false);
		add_run(layout, part->items[i].device, cut.start, quotas[i]);
	}
	layout->n_runs = n_runs;
	for (uint32_t i = n_runs - 1; i > wildcard; i--) {
		layout->runs[i] = (struct place_run){.device = part->items[i].device,
						     .end = cut.end,
						     .limit = quotas[i]};
		take_quota(work, &cut, part->items[i].device, quotas[i], true);
	}
	layout->runs[wildcard] = (struct place_run){.device = wildcard_device,
						    .end = cut.end,
						    .limit = PLACE_NO_LIMIT};
}

/* All items from the front. True: nothing is left. */
static bool cut_from_front(struct place_work *work, const struct spec_part *part,
			   const uint64_t *quotas, enum bound bound, struct place_layout *layout)
{
	struct cut cut = {.request = work->request,
			  .part = part,
			  .end = work->request->n_blocks,
			  .bound = bound};

	layout->n_runs = 0;
	for (uint32_t i = 0; i < part->n_items; i++) {
		take_quota(work, &cut, part->items[i].device, quotas[i], false);
		add_run(layout, part->items[i].device, cut.start, quotas[i]);
	}
	return is_done(&cut);
}

/* Fractions that hold all of it where there is room: without room for that they are cut as if there
 * were, and what is short is told, or waited for, as of sizes. */
static int cut_fractions(struct place_work *work, const struct spec_part *part,
			 const uint64_t *quotas, struct place_layout *layout)
{
	const struct plan_request *request = work->request;
	const uint32_t n_warnings = work->summary->n_warnings;
	uint64_t rest;
	char left[24];
	char all[24];

	for (int bound = BOUND_NOW; bound <= BOUND_NONE; bound++) {
		work->summary->n_warnings = n_warnings;
		if (cut_from_front(work, part, quotas, (enum bound)bound, layout)) {
			return 0;
		}
	}
	rest = sum_bytes(request, part, layout->runs[layout->n_runs - 1].end, request->n_blocks);
	return err_set(work->err, WIRE_BAD_ARGUMENT,
		       "%s of %s fit in none of the fractions: raise one, or let a device "
		       "take the rest (cpu,*)",
		       units_format_size(rest, left, sizeof left),
		       units_format_size(layout->bytes + layout->head_bytes, all, sizeof all));
}

/* Sizes: where something is left it goes to the host. */
static int cut_sizes(struct place_work *work, const struct spec_part *part, const uint64_t *quotas,
		     struct place_layout *layout)
{
	const struct plan_request *request = work->request;
	uint32_t host = 0;
	uint32_t item = 0;
	uint64_t rest;

	if (cut_from_front(work, part, quotas, BOUND_NONE, layout)) {
		return 0;
	}
	if (!spec_find_host(request, &host)) {
		return err_set(work->err, WIRE_BAD_ARGUMENT,
			       "the rest goes to cpu, and there is no device cpu");
	}
	while (item < part->n_items && part->items[item].device != host) {
		item++;
	}
	cut_with_wildcard(work, part, item, host, quotas, layout);
	if (item < part->n_items) {
		uint32_t start = item == 0 ? 0 : layout->runs[item - 1].end;

		rest = sum_bytes(request, part, start, layout->runs[item].end);
		rest += part->compute == host ? layout->head_bytes : 0;
		place_warn(work, PLAN_REST_ON_HOST, host, rest, part->items[item].value);
	}
	return 0;
}

static int lay_quotas(struct place_work *work, const struct spec_part *part,
		      struct place_layout *layout)
{
	uint64_t quotas[PLAN_MAX_DEVICES] = {0};
	uint32_t wildcard = part->wildcard;
	bool has_compute = false;
	uint64_t rest;

	for (uint32_t i = 0; i < part->n_items; i++) {
		const struct spec_item *item = &part->items[i];

		has_compute = has_compute || item->device == part->compute;
		quotas[i] = i == wildcard ? PLACE_NO_LIMIT
					  : after_head(work, part, layout, item->device,
						       quota_of(work->request, part, item));
	}
	if (!has_compute && layout->head_bytes > 0) {
		place_warn(work, PLAN_HEAD_OVER, part->compute, layout->head_bytes, 0);
	}
	if (wildcard == UINT32_MAX) {
		return part->mode == SPEC_FRACTION ? cut_fractions(work, part, quotas, layout)
						   : cut_sizes(work, part, quotas, layout);
	}
	cut_with_wildcard(work, part, wildcard, part->items[wildcard].device, quotas, layout);
	rest = sum_bytes(work->request, part, wildcard == 0 ? 0 : layout->runs[wildcard - 1].end,
			 layout->runs[wildcard].end);
	rest += part->items[wildcard].device == part->compute ? layout->head_bytes : 0;
	if (part->items[wildcard].value > 0 && rest > part->items[wildcard].value) {
		place_warn(work, PLAN_OVER_WILDCARD, part->items[wildcard].device, rest,
			   part->items[wildcard].value);
	}
	return 0;
}

/* ---- percentages ---- */

/*
 * The edge in the row nearest to numerator / denominator bytes, from 'start' on. Half way the
 * earlier device takes the block; blocks without bytes go to the later one.
 */
static uint32_t nearest_edge(const struct cut *cut, place_wide numerator, uint64_t denominator)
{
	uint64_t bytes = sum_bytes(cut->request, cut->part, 0, cut->start);
	uint32_t best = cut->start;
	place_wide at = (place_wide)bytes * denominator;
	place_wide distance = at > numerator ? at - numerator : numerator - at;

	for (uint32_t i = cut->start; i < cut->end && at < numerator; i++) {
		const struct plan_block *block = &cut->request->blocks[i];
		place_wide far;

		if (!place_is_in(cut->part, block) || block->bytes == 0) {
			continue;
		}
		bytes += block->bytes;
		at = (place_wide)bytes * denominator;
		far = at > numerator ? at - numerator : numerator - at;
		if (far <= distance) {
			best = i + 1;
			distance = far;
		}
	}
	return best;
}

/* The shares of the row in 'asked' / 'denominator' bytes, the head's taken off. */
static uint64_t ask_shares(struct place_work *work, const struct spec_part *part,
			   const struct place_layout *layout, place_wide *asked)
{
	uint64_t model = layout->bytes + layout->head_bytes;
	uint64_t sum = SPEC_PERCENT;
	uint64_t head_share = 0;
	uint64_t denominator;
	bool is_over = true; /* the head is more than its share, or has none */
	bool has_rest = part->wildcard != UINT32_MAX &&
			part->items[part->wildcard].device == part->compute;

	if (part->mode == SPEC_RATIO) {
		sum = 0;
		for (uint32_t i = 0; i < part->n_items; i++) {
			sum += part->items[i].value;
		}
	}
	for (uint32_t i = 0; i < part->n_items; i++) {
		if (part->items[i].device == part->compute) {
			head_share = part->items[i].value;
			is_over = (place_wide)head_share * model <
				  (place_wide)layout->head_bytes * sum;
		}
	}
	is_over = is_over && !has_rest;
	if (is_over && layout->head_bytes > 0) {
		place_warn(work, PLAN_HEAD_OVER, part->compute, layout->head_bytes,
			   place_mul_div(model, head_share, sum));
	}
	/* In ratios the others share what the head leaves when it takes more than its own. */
	denominator = part->mode == SPEC_RATIO && is_over ? sum - head_share : sum;
	for (uint32_t i = 0; i < part->n_items; i++) {
		uint64_t value = part->items[i].value;

		if (part->items[i].device == part->compute && i != part->wildcard) {
			asked[i] = is_over ? 0
					   : (place_wide)value * model -
						     (place_wide)layout->head_bytes * sum;
		} else if (part->mode == SPEC_RATIO && is_over) {
			asked[i] = (place_wide)value * layout->bytes;
		} else {
			asked[i] = (place_wide)value * model;
		}
	}
	return denominator;
}

static void lay_percents(struct place_work *work, const struct spec_part *part,
			 struct place_layout *layout)
{
	place_wide asked[PLAN_MAX_DEVICES] = {0};
	uint64_t denominator = ask_shares(work, part, layout, asked);
	struct cut cut = {.request = work->request, .part = part, .end = work->request->n_blocks};
	uint32_t n_front = part->wildcard == UINT32_MAX ? part->n_items : part->wildcard;
	place_wide sum = 0;

	for (uint32_t i = 0; i < n_front; i++) {
		sum += asked[i];
		cut.start = nearest_edge(&cut, sum, denominator);
		add_run(layout, part->items[i].device, cut.start, PLACE_NO_LIMIT);
	}
	if (part->wildcard == UINT32_MAX) {
		/* The last that asks for anything ends the row. */
		for (uint32_t i = n_front; i > 0; i--) {
			layout->runs[i - 1].end = work->request->n_blocks;
			if (part->items[i - 1].value > 0) {
				break;
			}
		}
		return;
	}
	/* Behind the wildcard: what is left of the row before the items that follow. */
	for (uint32_t i = n_front; i < part->n_items; i++) {
		place_wide end = (place_wide)layout->bytes * denominator;

		for (uint32_t j = i + 1; j < part->n_items; j++) {
			end = asked[j] > end ? 0 : end - asked[j];
		}
		cut.start = i + 1 == part->n_items ? work->request->n_blocks
						   : nearest_edge(&cut, end, denominator);
		add_run(layout, part->items[i].device, cut.start, PLACE_NO_LIMIT);
	}
}

/* ---- automatic and virtual ---- */

/* "20.0G on ram, 6.0G on cuda:0 (2.4G stay free to compute)": of as many devices as can be named. */
static void print_rooms(const struct place_work *work, const struct place_layout *layout,
			uint32_t compute, char *buffer, size_t buffer_size)
{
	const struct plan_request *request = work->request;
	size_t used = 0;

	buffer[0] = '\0';
	for (uint32_t i = 0; i < request->n_devices; i++) {
		const struct plan_device *device = &request->devices[i];
		const uint64_t head = i == layout->head_device ? layout->head_bytes : 0;
		const uint64_t reserve = i == compute ? layout->reserve : 0;
		char text[2][24];
		int size;

		if (device->is_lost) {
			continue;
		}
		size = snprintf(buffer + used, buffer_size - used, "%s%s on %s%s%s%s",
				used == 0 ? "" : ", ",
				units_format_size(room_left(work, i) + head, text[0],
						  sizeof text[0]),
				device->is_host ? "ram" : device->name, reserve == 0 ? "" : " (",
				reserve == 0 ? ""
					     : units_format_size(reserve, text[1], sizeof text[1]),
				reserve == 0 ? "" : " stay free to compute)");
		if (size < 0 || (size_t)size >= buffer_size - used) {
			buffer[used] = '\0';
			return;
		}
		used += (size_t)size;
	}
}

static int refuse_room(struct place_work *work, const struct spec_part *part, uint32_t left_at,
		       const struct place_layout *layout)
{
	const uint64_t all = layout->bytes + layout->head_bytes;
	const uint64_t left = sum_bytes(work->request, part, left_at, work->request->n_blocks);
	char rooms[176];
	char size[2][24];

	work->summary->shortage = (struct plan_shortage){.device = PLAN_ALL_DEVICES, .need = all};
	print_rooms(work, layout, part->compute, rooms, sizeof rooms);
	return err_set(work->err, WIRE_NO_MEMORY, "auto: %s of %s fit nowhere: room for %s",
		       units_format_size(left, size[0], sizeof size[0]),
		       units_format_size(all, size[1], sizeof size[1]), rooms);
}

/* Is 'a' the better donor for 'compute'? Draining ones last, known links before unknown ones, fast
 * before slow, the host before others, else in order. */
static bool is_better(const struct plan_request *request, uint32_t compute, uint32_t a, uint32_t b)
{
	uint64_t link_a = request->devices[a].link[compute];
	uint64_t link_b = request->devices[b].link[compute];

	if (request->devices[a].is_draining != request->devices[b].is_draining) {
		return request->devices[b].is_draining;
	}
	if (link_a != link_b) {
		return link_a > link_b;
	}
	return request->devices[a].is_host && !request->devices[b].is_host;
}

static int lay_auto(struct place_work *work, const struct spec_part *part,
		    struct place_layout *layout)
{
	const struct plan_request *request = work->request;
	const struct plan_device *compute = &request->devices[part->compute];
	struct cut cut = {.request = request, .part = part, .end = request->n_blocks};
	uint64_t reserve = request->activations > 0 ? request->activations : compute->total / 10;
	uint64_t room = room_left(work, part->compute);
	bool is_used[PLAN_MAX_DEVICES] = {0};

	reserve = compute->is_host ? 0 : reserve;
	layout->reserve = reserve;
	cut.start = fill(&cut, part->compute, PLACE_NO_LIMIT, room > reserve ? room - reserve : 0,
			 false);
	add_run(layout, part->compute, cut.start, PLACE_NO_LIMIT);
	is_used[part->compute] = true;
	while (!is_done(&cut)) {
		uint32_t best = request->n_devices;

		for (uint32_t i = 0; i < request->n_devices; i++) {
			if (!is_used[i] && !request->devices[i].is_lost &&
			    (best == request->n_devices ||
			     is_better(request, part->compute, i, best))) {
				best = i;
			}
		}
		if (best == request->n_devices) {
			return refuse_room(work, part, cut.start, layout);
		}
		is_used[best] = true;
		cut.start = fill(&cut, best, PLACE_NO_LIMIT, room_left(work, best), false);
		add_run(layout, best, cut.start, PLACE_NO_LIMIT);
	}
	layout->runs[layout->n_runs - 1].end = request->n_blocks;
	return 0;
}

/* Do the donors hold the row from 'start' on? Then the runs are theirs. */
static bool fits_donors(struct place_work *work, const struct spec_part *part, uint32_t start,
			struct place_layout *layout)
{
	struct cut cut = {.request = work->request,
			  .part = part,
			  .start = start,
			  .end = work->request->n_blocks};

	layout->n_runs = 0;
	add_run(layout, part->compute, start, PLACE_NO_LIMIT);
	for (uint32_t i = 0; i < part->n_items; i++) {
		cut.start = fill(&cut, part->items[i].device, PLACE_NO_LIMIT,
				 room_left(work, part->items[i].device), false);
		add_run(layout, part->items[i].device, cut.start, PLACE_NO_LIMIT);
	}
	layout->runs[layout->n_runs - 1].end = cut.end;
	return is_done(&cut);
}

/* The first block from 'start' on from which the donors hold all that is behind it. */
static uint32_t find_start(struct place_work *work, const struct spec_part *part, uint32_t start,
			   struct place_layout *layout)
{
	uint32_t end = work->request->n_blocks; /* nothing fits anywhere */

	if (fits_donors(work, part, start, layout)) {
		return start;
	}
	start++;
	while (start < end) {
		uint32_t middle = start + (end - start) / 2;

		if (fits_donors(work, part, middle, layout)) {
			end = middle;
		} else {
			start = middle + 1;
		}
	}
	(void)fits_donors(work, part, start, layout);
	return start;
}

static void lay_virtual(struct place_work *work, const struct spec_part *part,
			struct place_layout *layout)
{
	const struct plan_request *request = work->request;
	const struct cut cut = {.request = request, .part = part, .end = request->n_blocks};
	uint64_t asked = request->virtual_vram;
	uint32_t wanted;
	uint32_t start;

	if (request->devices[part->compute].is_host) {
		place_warn(work, PLAN_NOTHING_OFF, part->compute, asked, 0);
		add_run(layout, part->compute, request->n_blocks, PLACE_NO_LIMIT);
		return;
	}
	wanted = fill(&cut, part->compute, asked, PLACE_NO_LIMIT, true);
	start = find_start(work, part, wanted, layout);
	layout->off_limit = asked;
	if (start > wanted) {
		layout->off_limit = sum_bytes(request, part, start, request->n_blocks);
		place_warn(work, PLAN_SHORT_DONORS, part->compute, layout->off_limit, asked);
	}
}

/* ---- the door ---- */

static void place_heads(struct place_work *work, const struct spec_part *part,
			struct place_layout *layout)
{
	const struct plan_request *request = work->request;

	layout->head_device = part->mode == SPEC_DEVICE ? part->items[0].device : part->compute;
	for (uint32_t i = 0; i < request->n_blocks; i++) {
		const struct plan_block *block = &request->blocks[i];

		if ((part->components & (1U << block->component)) == 0) {
			continue;
		}
		if (place_is_head(block)) {
			layout->head_bytes += block->bytes;
			place_take(work, layout->head_device, block);
		} else {
			layout->bytes += block->bytes;
		}
	}
}

/* What each run has, when its end is known. */
static void count_runs(const struct plan_request *request, const struct spec_part *part,
		       struct place_layout *layout)
{
	uint32_t start = 0;

	for (uint32_t i = 0; i < layout->n_runs; i++) {
		struct place_run *run = &layout->runs[i];

		for (uint32_t j = start; j < run->end; j++) {
			if (place_is_in(part, &request->blocks[j])) {
				run->share.bytes += request->blocks[j].bytes;
				run->share.taken += place_charge(&request->devices[run->device],
								 &request->blocks[j]);
				run->share.n_blocks++;
			}
		}
		start = run->end;
	}
}

int layout_make(struct place_work *work, const struct spec_part *part, struct place_layout *ret)
{
	int code = 0;

	*ret = (struct place_layout){.off_limit = PLACE_NO_LIMIT};
	place_heads(work, part, ret);
	switch (part->mode) {
	case SPEC_DEVICE:
		add_run(ret, part->items[0].device, work->request->n_blocks, PLACE_NO_LIMIT);
		break;
	case SPEC_BYTES:
	case SPEC_FRACTION:
		code = lay_quotas(work, part, ret);
		break;
	case SPEC_RATIO:
	case SPEC_PERCENT_REST:
		lay_percents(work, part, ret);
		break;
	case SPEC_AUTO:
		code = lay_auto(work, part, ret);
		break;
	case SPEC_VIRTUAL:
		lay_virtual(work, part, ret);
		break;
	}
	if (code == 0) {
		ret->runs[ret->n_runs - 1].end = work->request->n_blocks;
		count_runs(work->request, part, ret);
	}
	return code;
}

void layout_take(struct place_work *work, const struct place_layout *layout)
{
	for (uint32_t i = 0; i < layout->n_runs; i++) {
		const struct place_run *run = &layout->runs[i];

		work->shares[run->device].bytes += run->share.bytes;
		work->shares[run->device].taken += run->share.taken;
		work->shares[run->device].n_blocks += run->share.n_blocks;
	}
}

void layout_give_back(struct place_work *work, const struct place_layout *layout)
{
	for (uint32_t i = 0; i < layout->n_runs; i++) {
		const struct place_run *run = &layout->runs[i];

		work->shares[run->device].bytes -= run->share.bytes;
		work->shares[run->device].taken -= run->share.taken;
		work->shares[run->device].n_blocks -= run->share.n_blocks;
	}
}

void layout_write(const struct plan_request *request, const struct spec_part *part,
		  const struct place_layout *layout, uint8_t *devices)
{
	uint32_t run = 0;

	for (uint32_t i = 0; i < request->n_blocks; i++) {
		const struct plan_block *block = &request->blocks[i];

		while (run + 1 < layout->n_runs && i >= layout->runs[run].end) {
			run++;
		}
		if (place_is_in(part, block)) {
			devices[i] = (uint8_t)layout->runs[run].device;
		} else if ((part->components & (1U << block->component)) != 0) {
			devices[i] = (uint8_t)layout->head_device;
		}
	}
}
