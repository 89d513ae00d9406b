/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls that look, and those that change a wish: each is one request, one decoded response
 * and one conversion. Those that steer the daemon are in steer.c.
 */
#include "base/cleanup.h"

#include <limits.h>

#include "client/client.h"
#include "client/convert.h"
#include "client/error.h"
#include "client/file.h"
#include "client/keeper.h"
#include "client/map.h"
#include "client/options.h"
#include "client/policy.h"
#include "client/result.h"

#define MAX_PLACES 17 /* devices and "file" */

/* Copies of 'n' texts, the argument 'name', as wire strings; all live with 'result'. */
static int give_texts(void *result, const char *name, const char *const *texts, size_t n,
		      struct wire_list *ret)
{
	int rc = options_need_all(name, texts, n);
	struct wire_str *items =
		n < UINT32_MAX / sizeof *items ? result_add(result, (n + 1) * sizeof *items) : NULL;

	if (rc < 0) {
		return rc;
	}
	if (items == NULL) {
		return failure_memory();
	}
	for (size_t i = 0; i < n; i++) {
		const char *copy = result_text(result, wire_str(texts[i]));

		if (copy == NULL) {
			return failure_memory();
		}
		items[i] = wire_str(copy);
	}
	*ret = (struct wire_list){.count = (uint32_t)n, .items = items};
	return 0;
}

/* A call without anything to say or to return. */
static int call_plain(struct distorch *c, enum wire_method method)
{
	const struct request request = {.method = method};
	AUTO_ANSWER struct answer answer = {0};

	failure_clear(c);
	return client_call(c, &request, &answer, NULL);
}

int distorch_ping(struct distorch *c)
{
	return call_plain(c, WIRE_METHOD_PING);
}

int distorch_shutdown(struct distorch *c)
{
	return call_plain(c, WIRE_METHOD_SHUTDOWN);
}

/* ---- wishes ---- */

int distorch_set(struct distorch *c, const char *model, const struct distorch_policy *policy,
		 const char *label, struct distorch_model **ret_model)
{
	char path[PATH_MAX];
	struct wire_set_request body = {0};
	struct wire_set_response response;
	const struct request request = {.method = WIRE_METHOD_SET, .body = &body};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_model *result;
	int rc;

	failure_clear(c);
	body.has_policy = policy != NULL;
	rc = options_need("model", model);
	if (rc == 0) {
		rc = policy_encode(policy, &body.policy);
	}
	if (rc == 0) {
		rc = file_model_text(model, path, &body.model);
	}
	if (rc < 0) {
		return rc;
	}
	options_text(label, &body.has_label, &body.label);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0 || ret_model == NULL) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL || !convert_model(result, &response.model, result)) {
		result_free(result);
		return failure_memory();
	}
	*ret_model = result;
	return 0;
}

void distorch_model_free(struct distorch_model *model)
{
	result_free(model);
}

/* ---- models ---- */

int distorch_list(struct distorch *c, const struct distorch_list_filter *given,
		  struct distorch_models **ret_models)
{
	struct distorch_list_filter filter = {0};
	struct wire_list_request body = {0};
	struct wire_list_response response;
	const struct request request = {.method = WIRE_METHOD_LIST, .body = &body};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_models *result;
	int rc;

	failure_clear(c);
	rc = options_take(given, sizeof filter, &filter);
	if (rc < 0) {
		return rc;
	}
	options_text(filter.device, &body.has_device, &body.device);
	body.has_mine = filter.mine;
	body.mine = filter.mine;
	body.has_all = filter.all;
	body.all = filter.all;
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_models(result, response.models, &result->models, &result->n_models)) {
		result_free(result);
		return failure_memory();
	}
	*ret_models = result;
	return 0;
}

void distorch_models_free(struct distorch_models *models)
{
	result_free(models);
}

/* One text a block. */
static bool convert_layout(struct distorch_detail *detail, const struct wire_layout *layout)
{
	const char *names[MAX_PLACES];
	const char **places = result_add(detail, (layout->places.size + 1) * sizeof *places);
	struct wire_list devices = layout->devices;
	struct wire_str name;
	uint32_t n_names = 0;

	while (n_names < MAX_PLACES && wire_list_next(&devices, NULL, &name)) {
		if (!convert_text(detail, true, name, &names[n_names++])) {
			return false;
		}
	}
	for (uint32_t i = 0; places != NULL && i < layout->places.size; i++) {
		const int device = layout->places.text[i] - 'A';

		places[i] = device >= 0 && (uint32_t)device < n_names ? names[device] : "?";
	}
	detail->n_places = layout->places.size;
	detail->places = places;
	return places != NULL;
}

static struct distorch_detail *detail_convert(const struct wire_show_response *from)
{
	struct distorch_detail *detail = result_new(sizeof *detail);
	struct distorch_model *model;

	if (detail == NULL) {
		return NULL;
	}
	model = result_add(detail, sizeof *model);
	detail->model = model;
	detail->page_size = from->has_page_size ? from->page_size : DISTORCH_ABSENT;
	detail->huge_bytes = from->has_huge_bytes ? from->huge_bytes : DISTORCH_ABSENT;
	detail->load_ms = from->has_load_ms ? from->load_ms : DISTORCH_ABSENT;
	if (model == NULL || !convert_model(detail, &from->model, model) ||
	    !convert_text(detail, from->has_notice, from->notice, &detail->notice) ||
	    !convert_text(detail, from->has_backing, from->backing, &detail->backing) ||
	    !convert_text(detail, from->has_loaded_from, from->loaded_from, &detail->loaded_from) ||
	    !convert_text(detail, from->has_checksum, from->checksum, &detail->checksum) ||
	    !convert_holders(detail, from->clients, &detail->clients, &detail->n_clients) ||
	    !convert_wishes(detail, from->wishes, &detail->wishes, &detail->n_wishes) ||
	    (from->has_layout && !convert_layout(detail, &from->layout)) ||
	    (from->has_shards &&
	     !convert_shards(detail, from->shards, &detail->shards, &detail->n_shards))) {
		result_free(detail);
		return NULL;
	}
	return detail;
}

int distorch_show(struct distorch *c, const char *model, struct distorch_detail **ret_detail,
		  struct distorch_weights **ret_table)
{
	char path[PATH_MAX];
	struct wire_show_request body = {
		.has_table = ret_table != NULL,
		.table = ret_table != NULL,
	};
	struct wire_show_response response;
	const struct request request = {.method = WIRE_METHOD_SHOW, .body = &body};
	const struct lease no_lease = {0};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_detail *result;
	int rc;

	failure_clear(c);
	rc = options_need("model", model);
	if (rc == 0) {
		rc = file_model_text(model, path, &body.model);
	}
	if (rc < 0) {
		return rc;
	}
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = detail_convert(&response);
	if (result == NULL) {
		return failure_memory();
	}
	if (ret_table != NULL) {
		rc = weights_make(NULL, &no_lease, &answer, ret_table);
	}
	if (rc < 0) {
		result_free(result);
		return rc;
	}
	*ret_detail = result;
	return 0;
}

void distorch_detail_free(struct distorch_detail *detail)
{
	result_free(detail);
}

/* ---- devices, clients, settings ---- */

int distorch_devices(struct distorch *c, struct distorch_devices **ret_devices)
{
	const struct request request = {.method = WIRE_METHOD_DEVICES};
	struct wire_devices_response response;
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_devices *result;
	int rc;

	failure_clear(c);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_devices(result, response.devices, &result->devices, &result->n_devices)) {
		result_free(result);
		return failure_memory();
	}
	*ret_devices = result;
	return 0;
}

void distorch_devices_free(struct distorch_devices *devices)
{
	result_free(devices);
}

int distorch_clients(struct distorch *c, struct distorch_clients **ret_clients)
{
	const struct request request = {.method = WIRE_METHOD_CLIENTS};
	struct wire_clients_response response;
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_clients *result;
	int rc;

	failure_clear(c);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_clients(result, response.clients, &result->clients, &result->n_clients)) {
		result_free(result);
		return failure_memory();
	}
	*ret_clients = result;
	return 0;
}

void distorch_clients_free(struct distorch_clients *clients)
{
	result_free(clients);
}

int distorch_config(struct distorch *c, struct distorch_settings **ret_settings)
{
	const struct request request = {.method = WIRE_METHOD_CONFIG};
	struct wire_config_response response;
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_settings *result;
	int rc;

	failure_clear(c);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_settings(result, response.settings, &result->settings, &result->n_settings)) {
		result_free(result);
		return failure_memory();
	}
	*ret_settings = result;
	return 0;
}

void distorch_settings_free(struct distorch_settings *settings)
{
	result_free(settings);
}

/* ---- history and status ---- */

int distorch_history(struct distorch *c, const struct distorch_history_filter *given,
		     struct distorch_records **ret_records)
{
	struct distorch_history_filter filter = {0};
	struct wire_events_history_request body = {0};
	struct wire_events_history_response response;
	const struct request request = {.method = WIRE_METHOD_EVENTS_HISTORY, .body = &body};
	AUTO_ANSWER struct answer answer = {0};
	AUTO_RESULT void *texts = result_new(1);
	struct distorch_records *result;
	char path[PATH_MAX];
	int rc;

	failure_clear(c);
	rc = options_take(given, sizeof filter, &filter);
	if (rc < 0) {
		return rc;
	}
	rc = texts == NULL ? failure_memory()
			   : give_texts(texts, "types", filter.types, filter.n_types, &body.types);
	body.has_model = filter.model != NULL;
	if (rc == 0 && body.has_model) {
		rc = file_model_text(filter.model, path, &body.model);
	}
	if (rc < 0) {
		return rc;
	}
	body.has_types = filter.n_types > 0;
	body.has_since_ms = filter.since_ms != 0;
	body.since_ms = filter.since_ms;
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_records(result, response.records, &result->records, &result->n_records)) {
		result_free(result);
		return failure_memory();
	}
	*ret_records = result;
	return 0;
}

void distorch_records_free(struct distorch_records *records)
{
	result_free(records);
}

static struct distorch_status *status_convert(const struct wire_status_response *from)
{
	struct distorch_status *status = result_new(sizeof *status);

	if (status == NULL) {
		return NULL;
	}
	status->epoch = from->epoch;
	status->uptime_ms = from->uptime_ms;
	status->restarts = from->restarts;
	status->survives_restart = from->survives_restart;
	status->models = from->models;
	status->pinned = from->pinned;
	status->loading = from->loading;
	status->clients = from->clients;
	status->hits = from->hits;
	status->misses = from->misses;
	status->bytes_read = from->bytes_read;
	status->bytes_saved = from->bytes_saved;
	status->evictions = from->evictions;
	status->refusals = from->refusals;
	status->open_fds = from->open_fds;
	status->rss_bytes = from->rss_bytes;
	if (!convert_text(status, true, from->version, &status->version) ||
	    !convert_devices(status, from->devices, &status->devices, &status->n_devices) ||
	    !convert_records(status, from->last, &status->last, &status->n_last) ||
	    !convert_text(status, from->has_config_fault, from->config_fault,
			  &status->config_fault) ||
	    !convert_text(status, from->has_state_fault, from->state_fault, &status->state_fault) ||
	    !convert_text(status, from->has_no_cards, from->no_cards, &status->no_cards)) {
		result_free(status);
		return NULL;
	}
	return status;
}

int distorch_status(struct distorch *c, struct distorch_status **ret_status)
{
	const struct request request = {.method = WIRE_METHOD_STATUS};
	struct wire_status_response response;
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_status *result;
	int rc;

	failure_clear(c);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = status_convert(&response);
	if (result == NULL) {
		return failure_memory();
	}
	*ret_status = result;
	return 0;
}

void distorch_status_free(struct distorch_status *status)
{
	result_free(status);
}

/* ---- for operators ---- */

int distorch_metrics(struct distorch *c, struct distorch_metrics **ret_metrics)
{
	const struct request request = {.method = WIRE_METHOD_METRICS};
	struct wire_metrics_response response;
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_metrics *result;
	int rc;

	failure_clear(c);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL || !convert_text(result, true, response.text, &result->text)) {
		result_free(result);
		return failure_memory();
	}
	*ret_metrics = result;
	return 0;
}

void distorch_metrics_free(struct distorch_metrics *metrics)
{
	result_free(metrics);
}

int distorch_store(struct distorch *c, struct distorch_store **ret_store)
{
	const struct request request = {.method = WIRE_METHOD_STORE};
	struct wire_store_response response;
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_store *result;
	int rc;

	failure_clear(c);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_parked(result, response.parked, &result->parked, &result->n_parked)) {
		result_free(result);
		return failure_memory();
	}
	result->survives_restart = response.survives_restart;
	result->descriptors = response.descriptors;
	result->max_descriptors = response.max_descriptors;
	result->bytes = response.bytes;
	*ret_store = result;
	return 0;
}

void distorch_store_free(struct distorch_store *store)
{
	result_free(store);
}

/* ---- verify, subscribe ---- */

int distorch_verify(struct distorch *c, const char *const *models, size_t n_models,
		    struct distorch_checks **ret_checks)
{
	struct wire_verify_request body = {.has_models = n_models > 0};
	struct wire_verify_response response;
	const struct request request = {.method = WIRE_METHOD_VERIFY,
					.body = &body,
					.is_patient = true};
	AUTO_ANSWER struct answer answer = {0};
	AUTO_RESULT void *texts = result_new(1);
	struct distorch_checks *result;
	int rc;

	failure_clear(c);
	rc = texts == NULL ? failure_memory()
			   : give_texts(texts, "models", models, n_models, &body.models);
	if (rc < 0) {
		return rc;
	}
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	result = result_new(sizeof *result);
	if (result == NULL ||
	    !convert_checks(result, response.checks, &result->checks, &result->n_checks)) {
		result_free(result);
		return failure_memory();
	}
	*ret_checks = result;
	return 0;
}

void distorch_checks_free(struct distorch_checks *checks)
{
	result_free(checks);
}

int distorch_subscribe(struct distorch *c, const struct distorch_event_filter *given)
{
	struct distorch_event_filter filter = {0};
	struct wire_subscribe_request body = {0};
	struct wire_subscribe_response response;
	const struct request request = {.method = WIRE_METHOD_SUBSCRIBE, .body = &body};
	AUTO_ANSWER struct answer answer = {0};
	AUTO_RESULT void *texts = result_new(1);
	int rc;

	failure_clear(c);
	rc = options_take(given, sizeof filter, &filter);
	if (rc < 0) {
		return rc;
	}
	rc = texts == NULL
		     ? failure_memory()
		     : give_texts(texts, "events", filter.events, filter.n_events, &body.events);
	if (rc == 0) {
		rc = give_texts(texts, "models", filter.models, filter.n_models, &body.models);
	}
	if (rc < 0) {
		return rc;
	}
	body.has_events = filter.n_events > 0;
	body.has_models = filter.n_models > 0;
	rc = client_call(c, &request, &answer, &response);
	if (rc == 0) {
		keeper_subscribe(c, steal_ptr(&texts), &body);
	}
	return rc;
}
