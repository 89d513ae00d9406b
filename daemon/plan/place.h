/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the planner: what lies between the items of an allocation and the devices of the
 * blocks. A part's blocks, its head aside, are one row in execution order; a layout cuts it into
 * runs, one a device. Pure; any thread.
 */
#ifndef PLAN_PLACE_H
#define PLAN_PLACE_H

#include "daemon/plan/spec.h"

struct err;

#define PLACE_MAX_RUNS (PLAN_MAX_DEVICES + 1) /* every device, and the host for the rest */
#define PLACE_NO_LIMIT UINT64_MAX

__extension__ typedef unsigned __int128 place_wide; /* products of two 64-bit numbers */
__extension__ typedef __int128 place_signed;

/* Blocks from the end of the run before up to 'end' (an index into all blocks, those of other
 * parts and heads between). */
struct place_run {
	uint32_t device;
	uint32_t end;
	struct plan_share share; /* what it has */
	uint64_t limit;          /* of bytes: never more, however they are spread */
};

struct place_layout {
	uint32_t n_runs;
	struct place_run runs[PLACE_MAX_RUNS];
	uint64_t bytes;      /* of all runs */
	uint64_t head_bytes; /* of the head, which is on 'head_device' */
	uint32_t head_device;
	uint64_t reserve;   /* auto: of the compute device's room, to stay free */
	uint64_t off_limit; /* virtual VRAM: of all runs but the compute device's; else no limit */
};

struct place_work {
	const struct plan_request *request;
	struct plan_share shares[PLAN_MAX_DEVICES]; /* taken so far */
	struct plan_summary *summary;               /* for warnings; NULL: nobody wants them */
	struct err *err;
};

/* ---- blocks and devices (place.c) ---- */

bool place_is_head(const struct plan_block *block);
/* Does the block belong to the part's row? */
bool place_is_in(const struct spec_part *part, const struct plan_block *block);
/* What the device gives for it. */
uint64_t place_charge(const struct plan_device *device, const struct plan_block *block);
/* Charge it. */
void place_take(struct place_work *work, uint32_t device, const struct plan_block *block);
void place_give_back(struct place_work *work, uint32_t device, const struct plan_block *block);
/* What may be taken of it: free, and what can be evicted. */
uint64_t place_room(const struct plan_device *device);
void place_warn(struct place_work *work, enum plan_warning_kind kind, uint32_t device, uint64_t a,
		uint64_t b);
/* a * b / c, rounded down; UINT64_MAX where it is more than that. */
uint64_t place_mul_div(uint64_t a, uint64_t b, uint64_t c);

/* ---- runs (layout.c) ---- */

/* Put the head where it belongs and cut the row into runs. Charges the head alone. */
int layout_make(struct place_work *work, const struct spec_part *part, struct place_layout *ret);
/* Charge the runs; and take that back. */
void layout_take(struct place_work *work, const struct place_layout *layout);
void layout_give_back(struct place_work *work, const struct place_layout *layout);
/* The devices of the part's blocks, its head's too. */
void layout_write(const struct plan_request *request, const struct spec_part *part,
		  const struct place_layout *layout, uint8_t *devices);

/*
 * The same bytes a device, its blocks evenly among the others', instead of the runs that are
 * charged. False where they are too unequal for the limits and the devices' room: then the runs
 * stay, and 'devices' (NULL: nobody asks) may hold anything.
 */
bool spread_take(struct place_work *work, const struct spec_part *part,
		 const struct place_layout *layout, uint8_t *devices);

/* The least virtual VRAM with which the compute device keeps a tenth free; 0: there is none. */
uint64_t least_virtual_vram(const struct plan_request *request, uint32_t compute);

#endif
