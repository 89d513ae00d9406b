/* SPDX-License-Identifier: Apache-2.0 */
/* What a user wishes of a model, said with a load or by itself, and the model's label. */
#include "base/cleanup.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/describe.h"
#include "daemon/dispatch.h"

bool dispatch_read_policy(const struct call *call, const struct wire_policy *wire,
			  struct core_policy *ret)
{
	struct core_policy policy = {0};

	if (wire->has_for_ms && wire->for_ms == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "policy.for_ms",
			    "policy.for_ms is 0: say how long, or leave it out for no end");
		return false;
	}
	if (wire->has_pin) {
		policy.said |= CORE_SAID_PIN;
		policy.pin = wire->pin;
	}
	if (wire->has_keep) {
		policy.said |= CORE_SAID_KEEP;
		policy.keep = wire->keep;
	}
	if (wire->has_ttl_ms) {
		policy.said |= CORE_SAID_TTL;
		policy.ttl_ns = dispatch_ns_of(wire->ttl_ms);
	}
	if (wire->has_priority) {
		policy.said |= CORE_SAID_PRIORITY;
		policy.priority = (int16_t)wire->priority;
	}
	policy.for_ns = wire->has_for_ms ? dispatch_ns_of(wire->for_ms) : 0;
	*ret = policy;
	return true;
}

/* A label is the model's own, not the user's: others see it too. False: it was refused. */
static bool read_label(const struct call *call, uint64_t model, struct wire_str said, char **ret)
{
	struct core_model_view view;
	char label[257];
	char name[512];

	REQUIRE(core_model_get(call->daemon->core, model, &view));
	if (!call->client->is_admin && view.owner_uid != call->client->uid) {
		call_refuse(call, WIRE_NOT_ALLOWED, "label",
			    "%s is uid %u's, who loaded it first: that user or an administrator "
			    "labels it",
			    describe_name(call->daemon, model, name), view.owner_uid);
		return false;
	}
	*ret = sys_strdup(wire_str_copy(said, label, sizeof label));
	if (*ret == NULL) {
		call_refuse(call, WIRE_NO_MEMORY, "label", "no memory for a label");
	}
	return *ret != NULL;
}

void dispatch_set(const struct call *call, const struct wire_set_request *request)
{
	AUTO_FREE char *label = NULL;
	struct pending *pending;
	struct core_policy policy;
	struct core_event event = {.type = EV_SET,
				   .client = call->client->id,
				   .request = call->request,
				   .set = {.policy = &policy}};
	struct failure failure;

	if (!dispatch_read_policy(call, &request->policy, &policy)) {
		return;
	}
	if (dispatch_find_model(call, request->model, &event.set.model, &failure) < 0) {
		call_fail(call, &failure);
		return;
	}
	if (request->has_label && !read_label(call, event.set.model, request->label, &label)) {
		return;
	}
	pending = call_expect(call);
	if (pending != NULL) {
		pending->label = steal_ptr(&label);
		(void)daemon_step(call->daemon, &event);
	}
}
