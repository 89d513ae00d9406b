/* SPDX-License-Identifier: Apache-2.0 */
/* Random things to plan, and what a slow and plain planner makes of them. */
#ifndef TESTS_PLAN_RANDOM_H
#define TESTS_PLAN_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/plan/plan.h"

#define RANDOM_MAX_BLOCKS  40
#define RANDOM_MAX_DEVICES 5

enum random_mode {
	RANDOM_BYTES,
	RANDOM_RATIO,
	RANDOM_PERCENT_REST,
	RANDOM_FRACTION,
	RANDOM_DEVICE,
	RANDOM_AUTO,
	RANDOM_VIRTUAL,
	RANDOM_PARTS,
	RANDOM_N_MODES,
};

struct random_item {
	uint32_t device;
	uint64_t value; /* as struct spec_item has it */
	bool is_wildcard;
};

/* Strings are written from the items, so that the plain planner needs no parser. */
struct random_case {
	uint64_t seed;
	enum random_mode mode;
	bool by_fraction;  /* parts: of fractions, else of bytes */
	uint32_t all_part; /* of fractions this one has all items, the others the first alone */
	uint32_t n_items;
	struct random_item items[RANDOM_MAX_DEVICES];
	uint32_t compute;
	bool is_equal; /* all blocks of one size */
	struct plan_block blocks[RANDOM_MAX_BLOCKS];
	struct plan_device devices[RANDOM_MAX_DEVICES];
	char text[512];
	char names[RANDOM_MAX_DEVICES][16];
	struct plan_text donors[RANDOM_MAX_DEVICES];
	struct plan_request request;
};

void random_case(struct random_case *ret, uint64_t seed);
/* Write the text again, from the items. */
void random_write(struct random_case *it);
uint64_t random_below(uint64_t *state, uint64_t limit);

/* Bytes, ratios, percentages and fractions of one part. False: nothing would be right. */
bool reference_place(const struct random_case *it, uint8_t *ret_devices);

#endif
