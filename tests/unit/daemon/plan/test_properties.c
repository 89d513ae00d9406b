/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random blocks, devices and strings: what holds for every plan, and the same placement as a
 * slow and plain planner's. PLAN_CASES says how many (1,000,000), PLAN_SEED with which to begin.
 */
#include "base/err.h"
#include "base/require.h"
#include "tests/support/unit.h"
#include "tests/unit/daemon/plan/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

#define N_CASES 1000000

struct outcome {
	int code;
	uint8_t devices[RANDOM_MAX_BLOCKS];
	struct plan_summary summary;
	struct err err;
};

/* Says which case it was: PLAN_SEED=N PLAN_CASES=1 is that one alone. */
#define HOLDS(it, what)                                                                       \
	do {                                                                                  \
		if (!(what)) {                                                                \
			fail_msg("seed %llu, \"%s\": not %s", (unsigned long long)(it)->seed, \
				 (it)->text, #what);                                          \
		}                                                                             \
	} while (0)

static void plan(const struct random_case *it, struct outcome *ret)
{
	memset(ret, 0xee, sizeof *ret);
	ret->err = (struct err){0};
	ret->code = plan_make(&it->request, ret->devices, &ret->summary, &ret->err);
}

static uint64_t charge(const struct plan_device *device, const struct plan_block *block)
{
	uint64_t bytes = device->is_host ? block->bytes : block->packed;
	uint64_t granule = device->granularity == 0 ? 1 : device->granularity;

	return (bytes + granule - 1) / granule * granule;
}

/* Every block once, every sum what it is the sum of, and nothing over what there is. */
static void check_sums(const struct random_case *it, const struct outcome *outcome)
{
	struct plan_share shares[PLAN_MAX_DEVICES] = {0};
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		uint8_t device = outcome->devices[i];

		HOLDS(it, device < it->request.n_devices);
		shares[device].bytes += it->blocks[i].bytes;
		shares[device].taken += charge(&it->devices[device], &it->blocks[i]);
		shares[device].n_blocks++;
		bytes += it->blocks[i].bytes;
	}
	HOLDS(it, bytes == outcome->summary.bytes);
	for (uint32_t i = 0; i < PLAN_MAX_DEVICES; i++) {
		HOLDS(it, shares[i].bytes == outcome->summary.shares[i].bytes);
		HOLDS(it, shares[i].taken == outcome->summary.shares[i].taken);
		HOLDS(it, shares[i].n_blocks == outcome->summary.shares[i].n_blocks);
		HOLDS(it,
		      i >= it->request.n_devices ||
			      shares[i].taken <= it->devices[i].free + it->devices[i].evictable);
	}
}

/* No size and no fraction is exceeded, but by the head and by the host that takes the rest. */
static void check_quotas(const struct random_case *it, const struct outcome *outcome)
{
	uint64_t head = 0;

	if (it->mode != RANDOM_BYTES && it->mode != RANDOM_FRACTION) {
		return;
	}
	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		head += it->blocks[i].is_head ? it->blocks[i].bytes : 0;
	}
	for (uint32_t i = 0; i < it->n_items; i++) {
		const struct random_item *item = &it->items[i];
		uint64_t bytes = outcome->summary.shares[item->device].bytes;
		bool takes_rest = item->is_wildcard ||
				  (it->mode == RANDOM_BYTES && item->device == 0);

		if (takes_rest || (item->device == it->compute && bytes == head)) {
			continue;
		}
		HOLDS(it, it->mode == RANDOM_BYTES
				  ? bytes <= item->value
				  : (double)bytes <= (double)it->devices[item->device].total *
							     (double)item->value / 1e9 * 1.000001);
	}
}

/* One run a device, in the order typed, the host's rest behind. */
static void check_order(const struct random_case *it, const struct outcome *outcome)
{
	bool is_over[RANDOM_MAX_DEVICES] = {0};
	uint32_t item = 0;
	uint32_t before = UINT32_MAX;

	if (it->mode > RANDOM_FRACTION || outcome->summary.strategy == PLAN_SPREAD) {
		return;
	}
	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		uint32_t device = outcome->devices[i];

		if (it->blocks[i].is_head || device == before) {
			continue;
		}
		HOLDS(it, !is_over[device]);
		if (before != UINT32_MAX) {
			is_over[before] = true;
		}
		before = device;
		while (item < it->n_items && it->items[item].device != device) {
			item++;
		}
		HOLDS(it, item < it->n_items || device == 0);
	}
}

static void check_spread(const struct random_case *it, const struct outcome *outcome)
{
	static struct random_case other;
	struct outcome runs;
	uint64_t largest = 0;

	if (outcome->summary.strategy != PLAN_SPREAD) {
		return;
	}
	other = *it;
	other.request.strategy = PLAN_CONTIGUOUS;
	plan(&other, &runs);
	HOLDS(it, runs.code == 0);
	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		largest = it->blocks[i].bytes > largest ? it->blocks[i].bytes : largest;
	}
	for (uint32_t i = 0; i < it->request.n_devices; i++) {
		uint64_t a = runs.summary.shares[i].bytes;
		uint64_t b = outcome->summary.shares[i].bytes;
		bool is_tight = it->mode == RANDOM_VIRTUAL || it->mode == RANDOM_PARTS ||
				it->mode == RANDOM_AUTO || it->mode == RANDOM_BYTES ||
				it->mode == RANDOM_FRACTION;

		if (it->is_equal) {
			HOLDS(it, a == b);
		}
		/* Not much below runs; of virtual VRAM the compute device, which has the rest. */
		HOLDS(it, b >= a - a / 8 ||
				  (it->mode == RANDOM_VIRTUAL && i == outcome->summary.compute) ||
				  it->mode == RANDOM_PARTS);
		/* Never a block or more above; below it may be where limits bind the others. */
		HOLDS(it, is_tight || b < a + largest || a == b);
	}
}

static void check_virtual(const struct random_case *it, const struct outcome *outcome)
{
	uint64_t off =
		outcome->summary.bytes - outcome->summary.shares[outcome->summary.compute].bytes;

	if (it->mode == RANDOM_VIRTUAL && outcome->summary.compute != 0) {
		HOLDS(it, off <= it->request.virtual_vram);
	}
}

/* Auto leaves a tenth of the compute device, where the head alone does not take it. */
static void check_auto(const struct random_case *it, const struct outcome *outcome)
{
	uint32_t compute = outcome->summary.compute;
	const struct plan_device *device = &it->devices[compute];
	uint64_t room = device->free + device->evictable;
	uint64_t head = 0;

	if (it->mode != RANDOM_AUTO || compute == 0) {
		return;
	}
	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		head += it->blocks[i].is_head ? charge(device, &it->blocks[i]) : 0;
	}
	HOLDS(it, outcome->summary.shares[compute].taken <= head ||
			  outcome->summary.shares[compute].taken <= room - device->total / 10);
}

/* What the warning says is enough is enough. */
static void check_least(const struct random_case *it, const struct outcome *outcome)
{
	static struct random_case other;
	struct outcome enough;
	uint32_t compute = outcome->summary.compute;

	if (outcome->summary.virtual_vram == 0) {
		return;
	}
	for (uint32_t i = 0; i < outcome->summary.n_warnings; i++) {
		const struct plan_warning *warning = &outcome->summary.warnings[i];

		/* Parts may compute elsewhere than the first does. */
		compute = warning->kind == PLAN_TIGHT ? warning->device : compute;
	}
	other = *it;
	other.request.allocation = (struct plan_text){0};
	other.request.virtual_vram = outcome->summary.virtual_vram;
	other.request.compute =
		(struct plan_text){it->names[compute], (uint32_t)strlen(it->names[compute])};
	plan(&other, &enough);
	HOLDS(it, enough.code == 0);
	for (uint32_t i = 0; i < enough.summary.n_warnings; i++) {
		HOLDS(it, enough.summary.warnings[i].kind != PLAN_TIGHT);
	}
}

static void check_same(const struct random_case *it, const struct outcome *outcome)
{
	struct outcome again;

	plan(it, &again);
	HOLDS(it, again.code == outcome->code);
	HOLDS(it,
	      again.code < 0 || memcmp(again.devices, outcome->devices, sizeof again.devices) == 0);
	HOLDS(it, strcmp(again.err.text, outcome->err.text) == 0);
}

/* A plan that can be made can be made with more memory. */
static void check_more(const struct random_case *it, uint64_t *state)
{
	static struct random_case more;
	struct plan_device *device = &more.devices[random_below(state, it->request.n_devices)];
	struct outcome outcome;
	uint64_t extra;

	more = *it;
	more.request.devices = more.devices;
	extra = 1 + random_below(state, device->total / 4 + 100);
	device->total += extra;
	device->free += extra;
	plan(&more, &outcome);
	HOLDS(it, outcome.code == 0);
}

/* Two cards that are alike, exchanged in the string: exchanged in the plan. */
static void check_exchange(const struct random_case *it, uint64_t *state)
{
	static struct random_case first;
	static struct random_case second;
	static struct outcome a;
	static struct outcome b;
	uint32_t n_cards = it->request.n_devices - 1;
	uint32_t x = 1 + (uint32_t)random_below(state, n_cards);
	uint32_t y = 1 + (uint32_t)random_below(state, n_cards);

	if (it->mode >= RANDOM_AUTO) {
		return;
	}
	first = *it;
	first.request.devices = first.devices;
	first.devices[y].total = first.devices[x].total;
	first.devices[y].free = first.devices[x].free;
	first.devices[y].evictable = first.devices[x].evictable;
	first.devices[y].granularity = first.devices[x].granularity;
	second = first;
	second.request.devices = second.devices;
	for (uint32_t i = 0; i < second.n_items; i++) {
		uint32_t device = second.items[i].device;

		second.items[i].device = device == x ? y : device == y ? x : device;
	}
	random_write(&second);
	plan(&first, &a);
	plan(&second, &b);
	HOLDS(it, a.code == b.code);
	for (uint32_t i = 0; a.code == 0 && i < it->request.n_blocks; i++) {
		uint8_t device = a.devices[i];

		HOLDS(it, b.devices[i] == (device == x ? y : device == y ? x : device));
	}
}

/* The plain planner's placement, and its verdict on what fits. */
static void check_reference(const struct random_case *it, const struct outcome *outcome)
{
	uint8_t devices[RANDOM_MAX_BLOCKS] = {0};
	uint64_t taken[RANDOM_MAX_DEVICES] = {0};
	bool is_short = false;

	if (it->mode > RANDOM_FRACTION || it->request.strategy == PLAN_SPREAD) {
		return;
	}
	if (!reference_place(it, devices)) {
		HOLDS(it, outcome->code == -WIRE_BAD_ARGUMENT);
		return;
	}
	for (uint32_t i = 0; i < it->request.n_blocks; i++) {
		taken[devices[i]] += charge(&it->devices[devices[i]], &it->blocks[i]);
	}
	for (uint32_t i = 0; i < it->request.n_devices; i++) {
		is_short = is_short || taken[i] > it->devices[i].free + it->devices[i].evictable;
	}
	HOLDS(it, outcome->code == (is_short ? -WIRE_NO_MEMORY : 0));
	HOLDS(it, is_short || memcmp(devices, outcome->devices, it->request.n_blocks) == 0);
}

static uint64_t setting(const char *name, uint64_t usual)
{
	const char *text = getenv(name);

	return text == NULL ? usual : strtoull(text, NULL, 10);
}

static void what_holds_for_every_plan_holds(void **state)
{
	uint64_t first = setting("PLAN_SEED", 1);
	uint64_t n_cases = setting("PLAN_CASES", N_CASES);
	uint64_t n_done[RANDOM_N_MODES] = {0};
	uint64_t n_spread = 0;

	(void)state;
	for (uint64_t seed = first; seed < first + n_cases; seed++) {
		struct random_case it;
		struct outcome outcome;
		uint64_t random = seed ^ 0x5555;

		random_case(&it, seed);
		plan(&it, &outcome);
		HOLDS(&it, outcome.code == 0 || outcome.code == -WIRE_NO_MEMORY ||
				   outcome.code == -WIRE_BAD_ARGUMENT);
		HOLDS(&it, outcome.code == -outcome.err.code);
		check_reference(&it, &outcome);
		check_same(&it, &outcome);
		if (it.request.n_devices > 1) {
			check_exchange(&it, &random);
		}
		if (outcome.code < 0) {
			continue;
		}
		n_done[it.mode]++;
		n_spread += outcome.summary.strategy == PLAN_SPREAD;
		check_sums(&it, &outcome);
		check_quotas(&it, &outcome);
		check_order(&it, &outcome);
		check_spread(&it, &outcome);
		check_virtual(&it, &outcome);
		check_least(&it, &outcome);
		check_auto(&it, &outcome);
		check_more(&it, &random);
	}
	/* Each kind has been planned, and not only refused. */
	for (int i = 0; i < RANDOM_N_MODES && n_cases == N_CASES; i++) {
		assert_true(n_done[i] > n_cases / RANDOM_N_MODES / 4);
	}
	assert_true(n_cases < N_CASES || n_spread > n_cases / 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(what_holds_for_every_plan_holds)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
