/* SPDX-License-Identifier: Apache-2.0 */
/* See random.h. */
#include "tests/unit/daemon/plan/random.h"

#include <stdio.h>
#include <string.h>

#define ONE     1000000000ULL
#define PERCENT (100 * ONE)

__extension__ typedef unsigned __int128 wide;

static uint64_t random_next(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15U; /* splitmix64 */

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
	return x ^ (x >> 31);
}

uint64_t random_below(uint64_t *state, uint64_t limit)
{
	return limit == 0 ? 0 : random_next(state) % limit;
}

static bool chance(uint64_t *state, uint64_t of)
{
	return random_below(state, of) == 0;
}

static void make_blocks(struct random_case *it, uint64_t *state)
{
	static const uint64_t scales[] = {1, 100, 4096, 1 << 20, 1 << 26};
	uint64_t scale = scales[random_below(state, 5)];
	uint64_t equal = 1 + random_below(state, 64 * scale);
	bool has_parts = chance(state, it->mode == RANDOM_PARTS ? 2 : 4);
	bool has_heads = chance(state, 2);

	it->is_equal = chance(state, 3);
	it->request.blocks = it->blocks;
	it->request.n_blocks =
		(uint32_t)random_below(state, it->by_fraction ? 10 : RANDOM_MAX_BLOCKS + 1);
	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		struct plan_block *block = &it->blocks[i];

		block->bytes = it->is_equal        ? equal
			       : chance(state, 20) ? 0
						   : 1 + random_below(state, 64 * scale);
		block->packed = block->bytes + (it->is_equal ? 0 : random_below(state, 512));
		block->name = "blocks.7";
		block->name_size = 8;
		block->component = has_parts ? (uint32_t)random_below(state, PLAN_N_COMPONENTS) : 0;
		block->is_head = has_heads && chance(state, 6);
	}
}

static uint64_t sum_of(const struct random_case *it)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		bytes += it->blocks[i].bytes;
	}
	return bytes;
}

static void make_devices(struct random_case *it, uint64_t *state)
{
	static const uint64_t granules[] = {0, 1, 256, 4096, 2 << 20};
	uint64_t model = sum_of(it);
	bool is_rich =
		!chance(state, it->by_fraction ? 1 : 3); /* parts contend for what is scarce */

	it->request.devices = it->devices;
	it->request.n_devices = 1 + (uint32_t)random_below(state, RANDOM_MAX_DEVICES);
	for (uint32_t i = 0; i < it->request.n_devices; i++) {
		struct plan_device *device = &it->devices[i];

		(void)snprintf(it->names[i], sizeof it->names[i], i == 0 ? "cpu" : "cuda:%u",
			       i - 1);
		device->name = it->names[i];
		device->is_host = i == 0;
		device->granularity = granules[random_below(state, 5)];
		device->total = is_rich ? 4 * model + ((uint64_t)1 << 30)
					: random_below(state, 2 * model + 2);
		device->free = is_rich || chance(state, 2) ? device->total
							   : random_below(state, device->total + 1);
		device->evictable = chance(state, 3)
					    ? random_below(state, device->total - device->free + 1)
					    : 0;
		device->spare = chance(state, 3) && !device->is_host
					? random_below(state, device->total - device->free -
								      device->evictable + 1)
					: 0;
		device->peers = (uint32_t)random_next(state);
		for (uint32_t j = 0; j < RANDOM_MAX_DEVICES; j++) {
			device->link[j] = chance(state, 2) ? 0 : random_below(state, 1ULL << 36);
		}
	}
}

static uint64_t random_value(enum random_mode mode, uint64_t model, uint64_t *state)
{
	if (mode == RANDOM_RATIO) {
		return random_below(state, 100) * ONE;
	}
	if (mode == RANDOM_PERCENT_REST) { /* at most five of them beside the wildcard */
		return random_below(state, 20001) * (ONE / 1000);
	}
	if (mode == RANDOM_FRACTION) {
		return random_below(state, ONE + 1);
	}
	return chance(state, 8) ? 0 : 2 + random_below(state, model + 2);
}

static void make_items(struct random_case *it, uint64_t *state)
{
	uint64_t model = sum_of(it);
	uint64_t sum = 0;

	it->n_items = 1 + (uint32_t)random_below(state, it->request.n_devices);
	for (uint32_t i = 0; i < it->n_items; i++) {
		it->items[i].device = i;
	}
	/* Which of the devices, and in which order. */
	for (uint32_t i = 0; i < it->n_items; i++) {
		uint32_t other = i + (uint32_t)random_below(state, it->request.n_devices - i);
		bool is_item = false;

		for (uint32_t j = 0; j < it->n_items && !is_item; j++) {
			if (it->items[j].device == other && j >= i) {
				uint32_t device = it->items[i].device;

				it->items[i].device = other;
				it->items[j].device = device;
				is_item = true;
			}
		}
		if (!is_item) {
			bool is_used = false;

			for (uint32_t j = 0; j < i; j++) {
				is_used = is_used || it->items[j].device == other;
			}
			it->items[i].device = is_used ? it->items[i].device : other;
		}
		it->items[i].value =
			random_value(it->by_fraction ? RANDOM_FRACTION : it->mode, model, state);
		sum += it->items[i].value;
	}
	if (it->mode == RANDOM_RATIO && sum == 0) {
		it->items[0].value = ONE;
	}
	if (it->mode == RANDOM_PERCENT_REST || (it->mode != RANDOM_RATIO && chance(state, 2))) {
		uint32_t wildcard = (uint32_t)random_below(state, it->n_items);

		it->items[wildcard].is_wildcard = true;
		it->items[wildcard].value = 0;
	}
	it->compute = 0;
	for (uint32_t i = it->n_items; i > 0; i--) {
		it->compute = it->items[i - 1].device != 0 ? it->items[i - 1].device : it->compute;
	}
}

static void append(struct random_case *it, const char *text)
{
	size_t used = strlen(it->text);

	(void)snprintf(it->text + used, sizeof it->text - used, "%s", text);
}

static void append_items(struct random_case *it, uint32_t n_items)
{
	for (uint32_t i = 0; i < n_items; i++) {
		const struct random_item *item = &it->items[i];
		unsigned long long value = item->value;
		char text[48];

		append(it, i == 0 ? "" : "; ");
		append(it, it->names[item->device]);
		if (it->mode == RANDOM_DEVICE) {
			break;
		}
		if (item->is_wildcard) {
			(void)snprintf(text, sizeof text, ",*");
		} else if (it->mode == RANDOM_FRACTION || it->by_fraction) {
			(void)snprintf(text, sizeof text, ",%llu.%09llu", value / ONE, value % ONE);
		} else if (it->mode == RANDOM_BYTES || it->mode == RANDOM_PARTS) {
			(void)snprintf(text, sizeof text, ",%lluB", value);
		} else {
			(void)snprintf(text, sizeof text, ",%llu.%09llu%%", value / ONE,
				       value % ONE);
		}
		append(it, text);
	}
}

/* The same for each part that there is. */
static void append_parts(struct random_case *it)
{
	static const char *const names[] = {"", "unet=", "CLIP = ", "vae="};
	uint32_t components = 0;

	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		components |= 1U << it->blocks[i].component;
	}
	for (uint32_t i = PLAN_UNET; i < PLAN_N_COMPONENTS; i++) {
		if ((components & (1U << i)) != 0) {
			append(it, it->text[0] == '\0' ? "" : "|");
			append(it, names[i]);
			append_items(it, it->by_fraction && i != it->all_part ? 1 : it->n_items);
		}
	}
	if (it->text[0] == '\0') {
		append_items(it, it->n_items);
	}
}

void random_write(struct random_case *it)
{
	it->text[0] = '\0';
	if (it->mode == RANDOM_PARTS) {
		append_parts(it);
	} else if (it->mode == RANDOM_AUTO) {
		append(it, "auto");
	} else if (it->mode != RANDOM_VIRTUAL) {
		append_items(it, it->n_items);
	}
	it->request.allocation = (struct plan_text){it->text, (uint32_t)strlen(it->text)};
}

static void make_virtual(struct random_case *it, uint64_t *state)
{
	it->request.virtual_vram = 1 + random_below(state, sum_of(it) + 2);
	it->request.donors = it->donors;
	for (uint32_t i = 0; i < it->request.n_devices; i++) {
		if (i != 1 && chance(state, 2)) {
			it->donors[it->request.n_donors++] =
				(struct plan_text){it->names[i], (uint32_t)strlen(it->names[i])};
		}
	}
}

void random_case(struct random_case *ret, uint64_t seed)
{
	uint64_t state = seed;

	*ret = (struct random_case){.seed = seed};
	ret->mode = (enum random_mode)random_below(&state, RANDOM_N_MODES);
	ret->by_fraction = ret->mode == RANDOM_PARTS && chance(&state, 2);
	make_blocks(ret, &state);
	make_devices(ret, &state);
	ret->all_part = PLAN_UNET + (uint32_t)random_below(&state, PLAN_N_COMPONENTS - PLAN_UNET);
	make_items(ret, &state);
	if (ret->mode == RANDOM_VIRTUAL) {
		make_virtual(ret, &state);
	}
	ret->request.strategy = chance(&state, 3) ? (enum plan_strategy)random_below(&state, 3)
						  : PLAN_USUAL;
	random_write(ret);
}

/* ---- the plain planner ---- */

struct row {
	uint32_t n_blocks;
	uint32_t blocks[RANDOM_MAX_BLOCKS]; /* their index in the case */
	uint64_t edges[RANDOM_MAX_BLOCKS + 1];
};

static uint64_t room_of(const struct random_case *it, uint32_t device)
{
	uint64_t granule = it->devices[device].granularity;
	uint64_t room = it->devices[device].free + it->devices[device].evictable;

	granule = granule == 0 ? 1 : granule;
	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		uint64_t bytes = device == 0 ? it->blocks[i].bytes : it->blocks[i].packed;
		uint64_t taken = (bytes + granule - 1) / granule * granule;

		if (it->blocks[i].is_head && device == it->compute) {
			room = taken > room ? 0 : room - taken;
		}
	}
	return room;
}

struct piece {
	uint32_t start, end; /* of the row */
	bool from_back;
	bool is_anywhere; /* the quota alone counts */
};

/* Of that piece of the row, blocks that the quota and for fractions the room allow. */
static uint32_t count_fitting(const struct random_case *it, const struct row *row,
			      struct piece piece, uint32_t item, uint64_t quota)
{
	uint32_t device = it->items[item].device;
	uint64_t granule = it->devices[device].granularity;
	uint64_t room = room_of(it, device);

	granule = granule == 0 ? 1 : granule;
	for (uint32_t n = piece.end - piece.start;; n--) {
		uint64_t bytes = 0;
		uint64_t taken = 0;

		for (uint32_t i = 0; i < n; i++) {
			const struct plan_block *block =
				&it->blocks[row->blocks[piece.from_back ? piece.end - 1 - i
									: piece.start + i]];
			uint64_t size = device == 0 ? block->bytes : block->packed;

			bytes += block->bytes;
			taken += (size + granule - 1) / granule * granule;
		}
		if (bytes <= quota &&
		    (it->mode != RANDOM_FRACTION || piece.is_anywhere || taken <= room)) {
			return n;
		}
	}
}

/* The edge from 'first' on that is nearest to num / den; half way, the later one. */
static uint32_t nearest(const struct row *row, uint32_t first, wide num, wide den)
{
	uint32_t best = first;

	for (uint32_t i = first; i <= row->n_blocks; i++) {
		wide at = row->edges[i] * den;
		wide old = row->edges[best] * den;
		wide far = at > num ? at - num : num - at;
		wide old_far = old > num ? old - num : num - old;

		if (far < old_far || (far == old_far && at > old)) {
			best = i;
		}
	}
	return best;
}

static void write_run(const struct row *row, uint32_t start, uint32_t end, uint32_t device,
		      uint8_t *devices)
{
	for (uint32_t i = start; i < end; i++) {
		devices[row->blocks[i]] = (uint8_t)device;
	}
}

static bool place_quotas(const struct random_case *it, const struct row *row, uint64_t head,
			 uint8_t *devices)
{
	uint64_t quotas[RANDOM_MAX_DEVICES];
	uint32_t rest = it->n_items;
	uint32_t start = 0;
	uint32_t end = row->n_blocks;
	bool is_anywhere = false;

	for (uint32_t i = 0; i < it->n_items; i++) {
		const struct random_item *item = &it->items[i];

		quotas[i] = it->mode == RANDOM_FRACTION
				    ? (uint64_t)((wide)it->devices[item->device].total *
						 item->value / ONE)
				    : item->value;
		if (item->device == it->compute) {
			quotas[i] = quotas[i] > head ? quotas[i] - head : 0;
		}
		rest = item->is_wildcard ? i : rest;
	}
	if (rest == it->n_items) {
		for (int anywhere = 0; anywhere <= 1 && start < end; anywhere++) {
			start = 0;
			is_anywhere = anywhere == 1;
			for (uint32_t i = 0; i < it->n_items; i++) {
				start += count_fitting(it, row,
						       (struct piece){start, end, false,
								      is_anywhere},
						       i, quotas[i]);
			}
		}
		if (start < end && it->mode == RANDOM_FRACTION) {
			return false;
		}
		for (uint32_t i = 0; i < it->n_items && start < end; i++) {
			rest = it->items[i].device == 0 ? i : rest;
		}
	}
	start = 0;
	for (uint32_t i = 0; i < rest; i++) {
		uint32_t n = count_fitting(it, row, (struct piece){start, end, false, is_anywhere},
					   i, quotas[i]);

		write_run(row, start, start + n, it->items[i].device, devices);
		start += n;
	}
	for (uint32_t i = it->n_items; i > rest + 1; i--) {
		uint32_t n = count_fitting(it, row, (struct piece){start, end, true, false}, i - 1,
					   quotas[i - 1]);

		write_run(row, end - n, end, it->items[i - 1].device, devices);
		end -= n;
	}
	write_run(row, start, end, rest == it->n_items ? 0 : it->items[rest].device, devices);
	return true;
}

static void place_percents(const struct random_case *it, const struct row *row, uint64_t head,
			   uint8_t *devices)
{
	uint64_t model = row->edges[row->n_blocks] + head;
	wide asked[RANDOM_MAX_DEVICES];
	wide sum = 0; /* of what they are shares of */
	wide share = 0;
	wide at = 0;
	uint32_t rest = it->n_items;
	uint32_t start = 0;
	bool is_over;

	for (uint32_t i = 0; i < it->n_items; i++) {
		sum += it->items[i].value;
		rest = it->items[i].is_wildcard ? i : rest;
		share += it->items[i].device == it->compute ? it->items[i].value : 0;
	}
	sum = rest < it->n_items ? PERCENT : sum;
	is_over = share * model < head * sum;
	for (uint32_t i = 0; i < it->n_items; i++) {
		asked[i] = it->items[i].value * (wide)model;
		if (it->items[i].device == it->compute) {
			asked[i] = is_over ? 0 : asked[i] - head * sum;
		} else if (is_over && rest == it->n_items) {
			asked[i] = it->items[i].value * (wide)row->edges[row->n_blocks];
		}
	}
	if (is_over && rest == it->n_items) {
		sum -= share;
	}
	for (uint32_t i = 0; i < it->n_items; i++) {
		uint32_t end = row->n_blocks;
		bool is_last = true;

		for (uint32_t j = i + 1; j < it->n_items; j++) {
			is_last = is_last && rest == it->n_items && it->items[j].value == 0;
		}
		at += i == rest ? 0 : asked[i];
		if (rest <= i) { /* counted from the end: what is behind it is asked for */
			at = row->edges[row->n_blocks] * sum;
			for (uint32_t j = i + 1; j < it->n_items; j++) {
				at = asked[j] > at ? 0 : at - asked[j];
			}
		}
		if (!is_last) {
			end = nearest(row, start, at, sum);
		}
		write_run(row, start, end, it->items[i].device, devices);
		start = end;
	}
}

bool reference_place(const struct random_case *it, uint8_t *ret_devices)
{
	struct row row = {0};
	uint64_t head = 0;

	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		if (it->blocks[i].is_head) {
			ret_devices[i] = (uint8_t)it->compute;
			head += it->blocks[i].bytes;
			continue;
		}
		row.blocks[row.n_blocks] = i;
		row.edges[row.n_blocks + 1] = row.edges[row.n_blocks] + it->blocks[i].bytes;
		row.n_blocks++;
	}
	if (it->mode == RANDOM_BYTES || it->mode == RANDOM_FRACTION) {
		return place_quotas(it, &row, head, ret_devices);
	}
	place_percents(it, &row, head, ret_devices);
	return true;
}
