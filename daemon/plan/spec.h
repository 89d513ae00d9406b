/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of an allocation as items, devices found, modes told apart; every refusal names the
 * item and its column. docs/allocation-strings.md has the grammar. Pure; any thread.
 */
#ifndef PLAN_SPEC_H
#define PLAN_SPEC_H

#include <stddef.h>

#include "daemon/plan/plan.h"

#define SPEC_PERCENT 100000000000ULL /* billionths of a percent in the whole */
#define SPEC_ONE     1000000000ULL   /* billionths of one */

enum spec_mode {
	SPEC_DEVICE, /* all of it on the first item's device */
	SPEC_BYTES,
	SPEC_RATIO,        /* percents that are shares of their sum */
	SPEC_PERCENT_REST, /* percents of the model, and a wildcard */
	SPEC_FRACTION,
	SPEC_AUTO,
	SPEC_VIRTUAL,
};

struct spec_item {
	uint32_t device;
	uint32_t number; /* from 1, as people count */
	uint32_t column; /* likewise; 0: nobody wrote it */
	struct plan_text text;
	uint64_t value; /* bytes; billionths of a percent; billionths of the device */
	bool is_wildcard;
};

/* What is said of some components; of all, where the text does not tell them apart. */
struct spec_part {
	uint32_t components; /* bit per enum plan_component */
	enum spec_mode mode;
	uint32_t compute;
	uint32_t n_items;                             /* for virtual VRAM: the donors, in order */
	struct spec_item items[PLAN_MAX_DEVICES + 1]; /* the last one is never accepted */
	uint32_t wildcard;                            /* its item; UINT32_MAX: there is none */
};

struct spec {
	uint32_t n_parts;
	uint32_t not_named; /* components of the model that it says nothing of: to the host */
	struct spec_part parts[PLAN_N_COMPONENTS];
};

#define SPEC_ANY_COMPONENT UINT32_MAX /* nothing is known of the model */

/* 'components' are those that the model has. Returns 0 or what plan_make returns. */
int spec_parse(const struct plan_request *request, uint32_t components, struct spec *ret,
	       struct err *err);

/* "unet", "clip", "vae". */
const char *spec_component_text(uint32_t component);

/* The host among the devices; false: there is none. */
bool spec_find_host(const struct plan_request *request, uint32_t *ret);

/* "item 2 (column 14) "cuda:5,2gb": ". Returns 'buffer'. */
const char *spec_print_item(const struct spec_item *item, char *buffer, size_t buffer_size);

#endif
