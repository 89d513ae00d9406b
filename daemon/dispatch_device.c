/* SPDX-License-Identifier: Apache-2.0 */
/* Which device a request means: by the client's own numbers, a UUID, or a card's name. */
#include <string.h>

#include "daemon/describe.h"
#include "daemon/dispatch.h"
#include "daemon/placement.h"
#include "daemon/plan/name.h"

/* The devices as one client may name them. */
struct named_devices {
	char names[CORE_MAX_DEVICES][DEVICE_NAME_SIZE];
	struct plan_device devices[CORE_MAX_DEVICES];
	uint32_t n_devices;
};

static void name_devices(const struct call *call, struct named_devices *ret)
{
	const struct daemon *daemon = call->daemon;
	const bool has_order = placement_names(daemon, call->client, ret->names);

	ret->n_devices = daemon->n_devices;
	for (uint32_t i = 0; i < daemon->n_devices; i++) {
		const struct known_device *known = &daemon->devices[i];

		/* One that a client does not see has no name for him: as in an allocation. */
		ret->devices[i] =
			(struct plan_device){.name = has_order ? ret->names[i] : known->name,
					     .uuid = known->info.uuid,
					     .product = known->info.product,
					     .is_host = i == 0};
	}
}

/* The name means several, or none. */
static int refuse(struct failure *failure, const struct named_devices *named, struct wire_str name,
		  uint32_t found, const char *field)
{
	const uint32_t n_found = name_count(found);
	char wanted[260]; /* four for a byte that harms */
	char list[256];

	(void)text_print((struct plan_text){name.text, name.size}, wanted, sizeof wanted);
	(void)name_list(named->devices, named->n_devices, n_found > 1 ? found : NAME_ALL, list,
			sizeof list);
	if (n_found > 1) {
		failure_set(failure, WIRE_BAD_ARGUMENT, "%u devices are a \"%s\": %s", n_found,
			    wanted, list);
		failure_set_hint(failure, "say which by its number or UUID: distorchctl devices");
	} else {
		failure_set(failure, WIRE_NOT_FOUND, "there is no device \"%s\"; there %s %s",
			    wanted, strchr(list, ',') == NULL ? "is" : "are", list);
		failure_set_hint(failure, "see what there is: distorchctl devices");
	}
	failure_set_field(failure, field);
	return n_found > 1 ? -WIRE_BAD_ARGUMENT : -WIRE_NOT_FOUND;
}

int dispatch_find_device(const struct call *call, struct wire_str name, const char *field,
			 uint32_t *ret_device, struct failure *failure)
{
	struct named_devices named;
	uint32_t found;

	name_devices(call, &named);
	found = name_find(named.devices, named.n_devices, (struct plan_text){name.text, name.size});
	if (name_count(found) != 1) {
		return refuse(failure, &named, name, found, field);
	}
	*ret_device = name_first(found);
	return 0;
}

bool dispatch_take_device(const struct call *call, struct wire_str name, uint32_t *ret_device)
{
	struct failure failure;

	if (dispatch_find_device(call, name, "device", ret_device, &failure) < 0) {
		call_fail(call, &failure);
		return false;
	}
	return true;
}
