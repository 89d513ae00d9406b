/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least virtual VRAM that leaves room to compute. From what runs would need on, plans are
 * tried until one does; then smaller ones, since of unequal blocks others than the last may go.
 * See place.h.
 */
#include <string.h>

#include "daemon/plan/place.h"

#define MAX_TRIES 64
#define MAX_STEPS 8                    /* halving */
#define EXACT     ((1ULL << 30) / 100) /* it is told in hundredths of a GiB */

struct trial {
	struct plan_request request;
	struct spec spec;
	struct place_layout layout;
};

/* Bytes of the compute device that the model may take. */
static uint64_t room_of(const struct plan_device *device)
{
	uint64_t tenth = device->total / 10;
	uint64_t keep = tenth > device->spare ? tenth - device->spare : 0;
	uint64_t room = place_room(device);

	return room > keep ? room - keep : 0;
}

/* Does this much leave the compute device its tenth? 'ret_off': what then lies elsewhere. */
static bool is_enough(struct trial *trial, uint32_t compute, uint64_t virtual_vram,
		      uint64_t *ret_off)
{
	const struct spec_part *part = &trial->spec.parts[0];
	struct place_work work = {.request = &trial->request};

	trial->request.virtual_vram = virtual_vram;
	if (layout_make(&work, part, &trial->layout) < 0) {
		return false;
	}
	layout_take(&work, &trial->layout);
	for (uint32_t i = 0; i < trial->request.n_devices; i++) {
		if (work.shares[i].taken > place_room(&trial->request.devices[i])) {
			return false;
		}
	}
	if (trial->request.strategy != PLAN_CONTIGUOUS) {
		(void)spread_take(&work, part, &trial->layout, NULL); /* else the runs stay */
	}
	*ret_off = 0;
	for (uint32_t i = 0; i < trial->request.n_devices; i++) {
		*ret_off += i == compute ? 0 : work.shares[i].bytes;
	}
	return work.shares[compute].taken <= room_of(&trial->request.devices[compute]);
}

/* Bytes of the blocks that the compute device has no room for, where it takes them from the front
 * on besides the head. '*ret_start': the first of those. */
static uint64_t count_rest(const struct trial *trial, uint32_t compute, uint32_t *ret_start)
{
	const struct plan_request *request = &trial->request;
	const struct plan_device *device = &request->devices[compute];
	uint64_t room = room_of(device);
	uint64_t taken = 0;
	uint64_t off = 0;
	uint32_t i = 0;

	for (uint32_t j = 0; j < request->n_blocks; j++) {
		if (place_is_head(&request->blocks[j])) {
			taken += place_charge(device, &request->blocks[j]);
		}
	}
	for (; i < request->n_blocks; i++) {
		uint64_t charge = place_charge(device, &request->blocks[i]);

		if (place_is_head(&request->blocks[i])) {
			continue;
		}
		if (taken > room || charge > room - taken) {
			break;
		}
		taken += charge;
	}
	*ret_start = i;
	for (; i < request->n_blocks; i++) {
		off += place_is_head(&request->blocks[i]) ? 0 : request->blocks[i].bytes;
	}
	return off;
}

/* Some that is enough; 0: none is found. */
static uint64_t find_enough(struct trial *trial, uint32_t compute)
{
	const struct plan_request *request = &trial->request;
	uint32_t start;
	uint64_t unused;
	uint64_t off = count_rest(trial, compute, &start);

	for (uint32_t tries = 0; tries < MAX_TRIES; tries++) {
		if (is_enough(trial, compute, off, &unused)) {
			return off;
		}
		/* One block more. */
		while (start > 0 && (place_is_head(&request->blocks[start - 1]) ||
				     request->blocks[start - 1].bytes == 0)) {
			start--;
		}
		if (start == 0) {
			break;
		}
		off += request->blocks[--start].bytes;
	}
	return 0;
}

/* With so little off it the rest is more than its room, whatever the blocks. */
static uint64_t too_little(const struct plan_request *request, uint32_t compute)
{
	const uint64_t room = room_of(&request->devices[compute]);
	uint64_t all = 0;

	for (uint32_t i = 0; i < request->n_blocks; i++) {
		all += request->blocks[i].bytes;
	}
	return all > room ? all - room - 1 : 0;
}

uint64_t least_virtual_vram(const struct plan_request *request, uint32_t compute)
{
	struct trial trial = {.request = *request};
	const char *name = request->devices[compute].name;
	uint64_t enough;
	uint64_t less; /* is not enough */
	uint64_t unused;
	uint64_t off;

	trial.request.allocation = (struct plan_text){0};
	trial.request.virtual_vram = 1;
	trial.request.compute = (struct plan_text){name, (uint32_t)strlen(name)};
	if (spec_parse(&trial.request, SPEC_ANY_COMPONENT, &trial.spec, NULL) < 0) {
		return 0;
	}
	enough = find_enough(&trial, compute);
	less = too_little(request, compute);
	for (uint32_t i = 0; i < MAX_STEPS && enough > less && enough - less > EXACT; i++) {
		const uint64_t middle = less + (enough - less) / 2;

		if (!is_enough(&trial, compute, middle, &off)) {
			less = middle;
			continue;
		}
		enough = middle;
		/* No more than what moves then, where that is enough too. */
		if (off < middle && off > less && is_enough(&trial, compute, off, &unused)) {
			enough = off;
		}
	}
	return enough;
}
