/* SPDX-License-Identifier: Apache-2.0 */
/* The calls that steer the daemon: budgets, settings, reading them again, what it loads at start. */
#include "client/client.h"
#include "client/convert.h"
#include "client/error.h"
#include "client/options.h"
#include "client/result.h"

/* ---- settings ---- */

static struct distorch_reloaded *reloaded_convert(struct wire_list applied, struct wire_list later)
{
	struct distorch_reloaded *result = result_new(sizeof *result);

	if (result == NULL ||
	    !convert_texts(result, applied, &result->applied, &result->n_applied) ||
	    !convert_texts(result, later, &result->later, &result->n_later)) {
		result_free(result);
		return NULL;
	}
	return result;
}

int distorch_reload(struct distorch *c, struct distorch_reloaded **ret_reloaded)
{
	const struct request request = {.method = WIRE_METHOD_RELOAD};
	AUTO_ANSWER struct answer answer = {0};
	struct wire_reload_response response;
	struct distorch_reloaded *result;
	int rc;

	failure_clear(c);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = reloaded_convert(response.applied, response.later);
	if (result == NULL) {
		return failure_memory();
	}
	*ret_reloaded = result;
	return 0;
}

int distorch_config_set(struct distorch *c, const char *key, const char *value,
			struct distorch_reloaded **ret_reloaded)
{
	struct wire_config_set_request body = {0};
	struct wire_config_set_response response;
	const struct request request = {.method = WIRE_METHOD_CONFIG_SET, .body = &body};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_reloaded *result;
	int rc;

	failure_clear(c);
	rc = options_need("key", key);
	if (rc < 0) {
		return rc;
	}
	body.key = wire_str(key);
	options_text(value, &body.has_value, &body.value);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0 || ret_reloaded == NULL) {
		return rc;
	}
	result = reloaded_convert(response.applied, response.later);
	if (result == NULL ||
	    !convert_text(result, response.has_notice, response.notice, &result->notice)) {
		result_free(result);
		return failure_memory();
	}
	*ret_reloaded = result;
	return 0;
}

void distorch_reloaded_free(struct distorch_reloaded *reloaded)
{
	result_free(reloaded);
}

int distorch_drain(struct distorch *c, const char *device, enum distorch_drain_order order,
		   struct distorch_drain **ret_drain)
{
	struct wire_drain_request body = {.has_on = order != DISTORCH_DRAIN_LOOK,
					  .on = order == DISTORCH_DRAIN_BEGIN};
	struct wire_drain_response response;
	const struct request request = {.method = WIRE_METHOD_DRAIN, .body = &body};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_drain *result;
	int rc;

	failure_clear(c);
	options_text(device, &body.has_device, &body.device);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0 || ret_drain == NULL) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_texts(result, response.loading, &result->loading, &result->n_loading) ||
	    !convert_holders(result, response.holders, &result->holders, &result->n_holders) ||
	    !convert_holders(result, response.reservers, &result->reservers,
			     &result->n_reservers)) {
		result_free(result);
		return failure_memory();
	}
	result->draining = response.draining;
	result->loads = response.loads;
	result->leases = response.leases;
	*ret_drain = result;
	return 0;
}

void distorch_drain_free(struct distorch_drain *drain)
{
	result_free(drain);
}

/* ---- budgets ---- */

static int call_budget(struct distorch *c, struct wire_budget_request *body, const char *device,
		       uint64_t bytes, struct distorch_devices **ret_devices)
{
	struct wire_budget_response response;
	const struct request request = {.method = WIRE_METHOD_BUDGET, .body = body};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_devices *result;
	int rc;

	failure_clear(c);
	body->has_bytes = device != NULL && bytes != DISTORCH_ABSENT;
	body->bytes = bytes;
	options_text(device, &body->has_device, &body->device);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0 || ret_devices == NULL) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_devices(result, response.devices, &result->devices, &result->n_devices) ||
	    !convert_text(result, response.has_notice, response.notice, &result->notice)) {
		result_free(result);
		return failure_memory();
	}
	*ret_devices = result;
	return 0;
}

int distorch_budget(struct distorch *c, const char *device, uint64_t bytes,
		    struct distorch_devices **ret_devices)
{
	struct wire_budget_request body = {0};

	return call_budget(c, &body, device, bytes, ret_devices);
}

int distorch_budget_save(struct distorch *c, const char *device, uint64_t bytes,
			 struct distorch_devices **ret_devices)
{
	struct wire_budget_request body = {.has_save = true, .save = true};

	return call_budget(c, &body, device, bytes, ret_devices);
}

/* ---- the warm list ---- */

int distorch_warm(struct distorch *c, enum distorch_warm_order order, const char *path,
		  struct distorch_warm **ret_warm)
{
	struct wire_warm_request body = {0};
	struct wire_warm_response response;
	const struct request request = {.method = WIRE_METHOD_WARM, .body = &body};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_warm *result;
	int rc;

	failure_clear(c);
	rc = order == DISTORCH_WARM_LOOK ? 0 : options_need("path", path);
	if (rc < 0) {
		return rc;
	}
	if (order == DISTORCH_WARM_ADD) {
		options_text(path, &body.has_add, &body.add);
	} else if (order == DISTORCH_WARM_REMOVE) {
		options_text(path, &body.has_remove, &body.remove);
	}
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0 || ret_warm == NULL) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_warm(result, response.entries, &result->entries, &result->n_entries)) {
		result_free(result);
		return failure_memory();
	}
	*ret_warm = result;
	return 0;
}

void distorch_warm_free(struct distorch_warm *warm)
{
	result_free(warm);
}
