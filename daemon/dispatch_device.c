/* SPDX-License-Identifier: Apache-2.0 */
/* Which device a request means: by the client's own numbers, a UUID, or a card's name. */
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
		const char *own = ret->names[i];

		/* One that a client does not see has no number for him. */
		own = own[0] != '\0' ? own : known->info.uuid;
		ret->devices[i] = (struct plan_device){.name = has_order ? own : known->name,
						       .uuid = known->info.uuid,
						       .product = known->info.product,
						       .is_host = i == 0};
	}
}

/* Those that 'name' may mean, or, where it means none, all that have a number. */
static int refuse(struct failure *failure, struct named_devices *named, struct wire_str name,
		  uint32_t n_found, const char *field)
{
	char wanted[65];
	char there[256];

	(void)wire_str_copy(name, wanted, sizeof wanted);
	if (n_found > 1) {
		failure_set(failure, WIRE_BAD_ARGUMENT, "%u devices are a \"%s\"", n_found, wanted);
		failure_set_hint(failure, "say which by number (cuda:0) or UUID: distorchctl "
					  "devices");
		failure_set_field(failure, field);
		return -WIRE_BAD_ARGUMENT;
	}
	for (uint32_t i = 0; i < named->n_devices; i++) {
		if (named->devices[i].name == named->devices[i].uuid) {
			named->devices[i].name = "";
		}
	}
	failure_set(failure, WIRE_NOT_FOUND, "there is no device \"%s\"; there %s %s", wanted,
		    named->n_devices == 1 ? "is" : "are",
		    name_list(named->devices, named->n_devices, there, sizeof there));
	failure_set_hint(failure, "see what there is: distorchctl devices");
	failure_set_field(failure, field);
	return -WIRE_NOT_FOUND;
}

int dispatch_find_device(const struct call *call, struct wire_str name, const char *field,
			 uint32_t *ret_device, struct failure *failure)
{
	struct named_devices named;
	const struct plan_text text = {name.text, name.size};
	uint32_t n_found;

	name_devices(call, &named);
	n_found = name_find(named.devices, named.n_devices, text, ret_device);
	return n_found == 1 ? 0 : refuse(failure, &named, name, n_found, field);
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
