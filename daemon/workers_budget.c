/* SPDX-License-Identifier: Apache-2.0 */
/* What may be taken of each device: by configuration or administrator, and as others leave. See
 * workers.h. */
#include <string.h>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/workers.h"
#include "daemon/workers_inside.h"

/* Of the card as a whole. */
static uint64_t configured_budget(const struct daemon *daemon, const struct known_device *device)
{
	const uint64_t total = device->info.total_bytes;
	struct config_size size = daemon->config->gpu_budget;

	if (config_find_override(daemon->config, "gpu.budget", device->info.uuid, device->name,
				 &size) ||
	    strncmp(device->name, "sim:", 4) != 0) {
		return config_size_of(&size, total);
	}
	return total; /* a simulated card is for models alone */
}

bool workers_take_info(struct daemon *daemon, uint32_t index, const struct device_info *info,
		       uint64_t held_before)
{
	struct known_device *device = &daemon->devices[index];
	const uint64_t known = device->info.foreign_bytes;
	const uint64_t before = device->strangers_bytes;
	uint64_t foreign = info->foreign_bytes;
	struct core_account_view account;
	uint64_t grown;

	core_account_get(daemon->core, index, &account);
	/* What was dropped while somebody maps it is no worker's any more, and in the account. */
	foreign -= account.held < foreign ? account.held : foreign;
	/* Counted at another moment than 'held' is (before, or it changed during the look), it may
	 * hold some of that: what was known stays, and the next look tells. */
	if (info->is_foreign_old || account.dropping > 0 || account.held != held_before) {
		foreign = known;
	}
	device->info = *info;
	device->info.foreign_bytes = foreign;
	if (account.reserved == 0 || foreign < device->foreign_before) {
		device->foreign_before = foreign;
	}
	grown = foreign - device->foreign_before;
	device->strangers_bytes = foreign - (grown < account.reserved ? grown : account.reserved);
	return device->strangers_bytes > before;
}

void workers_tell_budget(struct daemon *daemon, uint32_t index)
{
	struct core_event event = {.type = EV_BUDGET, .budget = {.device = index}};
	struct known_device *device = &daemon->devices[index];
	struct core_account_view account;
	uint64_t wanted;
	uint64_t room = device->info.total_bytes;

	room -= device->strangers_bytes < room ? device->strangers_bytes : room;
	device->configured_bytes = configured_budget(daemon, device);
	wanted = device->has_wanted ? device->wanted_bytes : device->configured_bytes;
	event.budget.bytes = wanted < room ? wanted : room;
	event.budget.by_others = room < wanted;
	core_account_get(daemon->core, index, &account);
	if (account.budget != event.budget.bytes) {
		(void)daemon_step(daemon, &event);
	}
}

void workers_set_budget(struct daemon *daemon, uint32_t device, uint64_t bytes)
{
	daemon->devices[device].has_wanted = true;
	daemon->devices[device].wanted_bytes = bytes;
	workers_tell_budget(daemon,
			    device); /* also of one that is away: who looks sees what it will be */
}

void workers_apply_config(struct daemon *daemon)
{
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		struct known_device *device = &daemon->devices[i];

		/* What was said of one stays until its own setting is another one. */
		device->has_wanted = device->has_wanted &&
				     configured_budget(daemon, device) == device->configured_bytes;
		workers_tell_budget(daemon, i);
	}
}
