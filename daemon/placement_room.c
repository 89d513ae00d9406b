/* SPDX-License-Identifier: Apache-2.0 */
/* The devices as a plan sees them: what there is, who has it, what of it the model has itself. See
 * placement.h. */
#include "base/checked.h"

#include <string.h>

#include "daemon/daemon.h"
#include "daemon/device/device.h"
#include "daemon/placement.h"

/* Bytes of the published generation on each device: a move may take them over, unless it makes
 * other blocks of them. None of its own copies goes for it. */
static void add_own(const struct daemon *daemon, uint64_t model, bool may_take_over,
		    struct plan_device devices[CORE_MAX_DEVICES])
{
	struct core_segment_view segment;
	uint32_t cursor = 0;

	while (model != 0 && core_segment_next(daemon->core, model, &cursor, &segment)) {
		struct plan_device *device = &devices[segment.device];
		const bool is_published = segment.state == SEGMENT_READY &&
					  segment.last == UINT64_MAX;

		if (segment.may_go) {
			device->evictable -= segment.bytes;
		} else if (is_published) {
			device->held -= segment.bytes;
		}
		if (is_published && may_take_over) {
			device->free += segment.bytes;
			device->own += segment.bytes;
		}
	}
}

static void add_peers(struct placement_room *room, uint32_t device)
{
	const struct device_info *info = &room->known[device].info;

	for (uint32_t peer = 0; peer < info->n_peers; peer++) {
		for (uint32_t i = 1; i < room->n_devices; i++) {
			if (strcmp(info->peers[peer].uuid, room->known[i].info.uuid) == 0) {
				room->devices[i].peers |= 1U << device;
				room->devices[device].link[i] = info->peers[peer].bytes_per_s;
			}
		}
	}
}

static uint64_t left_of(uint64_t bytes, uint64_t taken)
{
	return bytes > taken ? bytes - taken : 0;
}

void placement_look(const struct daemon *daemon, uint64_t model, bool may_take_over,
		    struct placement_room *ret)
{
	ret->n_devices = daemon->n_devices;
	memcpy(ret->known, daemon->devices, sizeof ret->known);
	for (uint32_t i = 0; i < daemon->n_devices; i++) {
		const struct known_device *known = &ret->known[i];
		struct core_account_view account;
		bool is_let_go;

		core_account_get(daemon->core, i, &account);
		/* It is refused because it drains, and not for what it has not now. */
		is_let_go = account.is_lost && account.is_draining;
		ret->devices[i] = (struct plan_device){
			.name = known->name,
			.uuid = known->info.uuid,
			.product = known->info.product,
			.pci = known->info.pci,
			.total = i == 0 ? account.budget : known->info.total_bytes,
			.free = is_let_go ? account.budget : account.room,
			.evictable = account.evictable,
			.later = account.later,
			.held = account.held + left_of(account.resident, account.evictable),
			.loading = account.loading,
			.reserved = account.reserved,
			/* What they took of room that is reserved is told as that. */
			.foreign = i == 0 ? known->info.foreign_bytes : known->strangers_bytes,
			.spare = i == 0 ? 0
					: left_of(known->info.total_bytes,
						  account.budget + known->strangers_bytes),
			.granularity = known->info.granularity,
			.is_host = i == 0,
			.is_lost = known->device == NULL || (account.is_lost && !is_let_go),
			.is_draining = account.is_draining,
		};
	}
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		ret->devices[i].link[0] = ret->devices[0].link[i] = ret->known[i].info.bytes_per_s;
		add_peers(ret, i);
	}
	add_own(daemon, model, may_take_over, ret->devices);
}

void placement_request(const struct placement *placement, struct placement_room *room,
		       struct plan_text donors[PLAN_MAX_DONORS], struct plan_request *ret)
{
	*ret = (struct plan_request){
		.n_devices = room->n_devices,
		.devices = room->devices,
		.allocation = {placement->allocation, (uint32_t)strlen(placement->allocation)},
		.compute = {placement->compute, (uint32_t)strlen(placement->compute)},
		.virtual_vram = placement->virtual_vram,
		.donors = donors,
		.n_donors = placement->n_donors,
		.strategy = placement->strategy,
	};
	for (uint32_t i = 0; placement->has_names && i < room->n_devices; i++) {
		room->devices[i].name = placement->names[i];
		room->devices[i].is_lost |= placement->names[i][0] == '\0';
	}
	for (uint32_t i = 0; i < placement->n_donors; i++) {
		donors[i] = (struct plan_text){placement->donors[i],
					       (uint32_t)strlen(placement->donors[i])};
	}
}
