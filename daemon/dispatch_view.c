/* SPDX-License-Identifier: Apache-2.0 */
/* Requests answered from what is known, without the core's deciding: listings and status. */
#include "base/cleanup.h"
#include "base/os/clock.h"
#include "base/os/sys.h"
#include "base/units.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/config.h"
#include "daemon/describe.h"
#include "daemon/describe_use.h"
#include "daemon/dispatch.h"
#include "daemon/ipc/conn.h"
#include "daemon/load/memory.h"
#include "daemon/metrics.h"
#include "daemon/persist.h"
#include "daemon/reload.h"
#include "daemon/saved.h"

#define NS_PER_MS 1000000U

/* A failure is large: those that answer one are kept off their callers' stacks. */
#define APART __attribute__((noinline)) static

/* False: there is none, and that has been answered. */
APART bool find_model(const struct call *call, struct wire_str text, uint64_t *ret_model)
{
	struct failure failure;

	if (dispatch_find_model(call, text, ret_model, &failure) < 0) {
		call_fail(call, &failure);
		return false;
	}
	return true;
}

static void refuse_no_memory(const struct call *call)
{
	conn_respond_no_memory(call->conn, call->request);
}

static bool has_place(const struct wire_place *places, uint32_t n_places, const char *device)
{
	for (uint32_t i = 0; i < n_places; i++) {
		if (wire_str_is(places[i].device, device)) {
			return true;
		}
	}
	return false;
}

/* Also such as only those have who use or map an older generation. */
static bool has_bytes(const struct core *core, uint64_t model)
{
	struct core_segment_view segment;
	uint32_t cursor = 0;

	while (core_segment_next(core, model, &cursor, &segment)) {
		if (segment.bytes > 0) {
			return true;
		}
	}
	return false;
}

/* 'device': has bytes on this one, also of older generations; NULL: any. */
static bool is_listed(const struct call *call, const struct wire_list_request *request,
		      const struct core_model_view *view, const uint32_t *device)
{
	const char *name = device == NULL ? NULL : call->daemon->devices[*device].name;
	struct model_description model;

	if (request->has_mine && request->mine &&
	    !core_uid_has_wish(call->daemon->core, call->client->uid, view->id)) {
		return false;
	}
	if (device != NULL) {
		describe_model(call->daemon, call->client, view, &model);
		return has_place(model.places, model.wire.where.count, name) ||
		       has_place(model.older, model.wire.older.count, name);
	}
	return (request->has_all && request->all) || view->is_pinned || view->is_kept ||
	       view->is_torn || has_bytes(call->daemon->core, view->id) ||
	       (view->state == CORE_MODEL_FAILED
			? describe_is_failed(call->daemon, view) && !describe_is_refused(view)
			: view->state != CORE_MODEL_REGISTERED);
}

void dispatch_list(const struct call *call, const struct wire_list_request *request)
{
	const struct core *core = call->daemon->core;
	const struct model_info *info = NULL;
	struct wire_list_response response = {0};
	AUTO_FREE struct model_description *models = NULL;
	AUTO_FREE struct wire_model *wires = NULL;
	struct core_model_view view;
	uint32_t capacity = 0;
	uint32_t n_models = 0;
	uint32_t device = 0;

	if (request->has_device && !dispatch_take_device(call, request->device, &device)) {
		return;
	}
	while ((info = store_next_model(call->daemon->store, info)) != NULL) {
		capacity++;
	}
	models = sys_calloc((size_t)capacity + 1, sizeof *models);
	wires = sys_calloc((size_t)capacity + 1, sizeof *wires);
	if (models == NULL || wires == NULL) {
		refuse_no_memory(call);
		return;
	}
	while ((info = store_next_model(call->daemon->store, info)) != NULL) {
		if (core_model_get(core, info->id, &view) &&
		    is_listed(call, request, &view, request->has_device ? &device : NULL)) {
			describe_model(call->daemon, call->client, &view, &models[n_models]);
			wires[n_models] = models[n_models].wire;
			n_models++;
		}
	}
	response.models.items = wires;
	response.models.count = n_models;
	call_answer(call, &response);
}

static uint64_t ms_until(uint64_t then_ns)
{
	uint64_t now_ns = clock_boot_ns();

	return then_ns > now_ns ? (then_ns - now_ns) / NS_PER_MS : 0;
}

static uint32_t describe_wishes(const struct call *call, uint64_t model, struct wire_wish *wishes,
				uint32_t capacity)
{
	struct core_wish_view view;
	uint32_t cursor = 0;
	uint32_t n_wishes = 0;

	while (n_wishes < capacity && core_wish_next(call->daemon->core, model, &cursor, &view)) {
		struct wire_wish *wish = &wishes[n_wishes++];

		*wish = (struct wire_wish){.uid = view.uid,
					   .pin = view.pin,
					   .keep = view.keep,
					   .has_ttl_ms = view.ttl_ns != 0,
					   .ttl_ms = view.ttl_ns / NS_PER_MS,
					   .priority = view.priority};
		wish->has_pin_left_ms = view.pin && view.pin_until_ns != UINT64_MAX;
		wish->pin_left_ms = ms_until(view.pin_until_ns);
		wish->has_keep_left_ms = view.keep && view.keep_until_ns != UINT64_MAX;
		wish->keep_left_ms = ms_until(view.keep_until_ns);
	}
	return n_wishes;
}

/* False: there is none, and that has been answered. */
APART bool open_table(const struct call *call, const struct model_info *info,
		      enum core_model_state state, int *ret_fd)
{
	bool is_going = state == CORE_MODEL_DRAINING; /* the table goes with the last byte */
	struct failure failure;

	if (is_going || info->current.table_fd < 0) {
		failure_set_not_resident(&failure, call->daemon, info->id);
		call_fail(call, &failure);
		return false;
	}
	*ret_fd = client_may_have_fds(call->daemon, call->client, 1)
			  ? sys_fcntl_dup(info->current.table_fd)
			  : -1;
	if (*ret_fd < 0) {
		call_refuse(call, WIRE_TOO_MANY, NULL, "no descriptor is left for the table");
	}
	return *ret_fd >= 0;
}

/* The files of a model that has several; '*ret_shards' is what 'ret' borrows. False: it has not, or
 * there is no memory for them. */
static bool list_shards(const struct model_info *info, struct wire_shard **ret_shards,
			struct wire_list *ret)
{
	const struct generation_info *now = &info->current;
	struct wire_shard *shards;

	if (now->n_shards == 0 || now->shards[0].name == NULL) {
		return false;
	}
	shards = sys_calloc(now->n_shards, sizeof *shards);
	for (uint32_t i = 0; shards != NULL && i < now->n_shards; i++) {
		shards[i] = (struct wire_shard){.name = wire_str(now->shards[i].name),
						.bytes = now->shards[i].bytes};
	}
	*ret_shards = shards;
	*ret = (struct wire_list){.items = shards, .count = now->n_shards};
	return shards != NULL;
}

void dispatch_show(const struct call *call, const struct wire_show_request *request)
{
	struct model_description model;
	struct core_model_view view;
	char checksum[17];
	char notice[DESCRIBE_NOTICE_SIZE];
	uint64_t id = 0;
	const struct model_info *info;
	struct wire_show_response response = {0};
	AUTO_FREE struct wire_holder *holders =
		sys_calloc(WIRE_SHOW_RESPONSE_CLIENTS_MAX, sizeof *holders);
	AUTO_FREE struct wire_wish *wishes =
		sys_calloc(WIRE_SHOW_RESPONSE_WISHES_MAX, sizeof *wishes);
	AUTO_FREE struct wire_shard *shards = NULL;
	struct layout_description layout = {.letters = NULL};
	AUTO_FREE char *letters = NULL;
	AUTO_CLOSE int table_fd = -1;

	if (holders == NULL || wishes == NULL) {
		refuse_no_memory(call);
		return;
	}
	if (!find_model(call, request->model, &id)) {
		return;
	}
	info = store_find_model(call->daemon->store, id);
	(void)core_model_get(call->daemon->core, id, &view); /* found just now */
	if (request->has_table && request->table &&
	    !open_table(call, info, view.state, &table_fd)) {
		return;
	}
	describe_model(call->daemon, call->client, &view, &model);
	response.model = model.wire;
	if (model.wire.has_name && !describe_layout_now(call->daemon, info, &layout)) {
		refuse_no_memory(call);
		return;
	}
	letters = layout.letters;
	response.has_layout = letters != NULL;
	response.layout = layout.wire;
	if (info->current.table_fd >= 0) {
		response.has_page_size = response.has_huge_bytes = response.has_backing = true;
		response.has_loaded_from = response.has_load_ms = true;
		response.has_checksum = info->current.n_sums > 0;
		response.page_size = info->current.page_bytes;
		response.huge_bytes = info->current.huge_bytes;
		response.backing = wire_str(describe_backing(view.backing));
		response.loaded_from = wire_str(info->current.is_from_store ? "store" : "file");
		response.load_ms = view.load_ns / NS_PER_MS;
		(void)snprintf(checksum, sizeof checksum, "%016llx",
			       (unsigned long long)info->current.checksum);
		response.checksum = wire_str(checksum);
	}
	response.notice = wire_str(describe_notice(call->daemon, info, &view, notice));
	response.has_notice = notice[0] != '\0';
	response.has_shards = list_shards(info, &shards, &response.shards);
	response.clients.items = holders;
	response.clients.count = describe_holders(call->daemon, call->client, id, holders,
						  WIRE_SHOW_RESPONSE_CLIENTS_MAX);
	response.wishes.items = wishes;
	response.wishes.count = describe_wishes(call, id, wishes, WIRE_SHOW_RESPONSE_WISHES_MAX);
	call_answer_fds(call, &response, &table_fd, table_fd >= 0 ? 1 : 0);
}

void dispatch_devices(const struct call *call)
{
	AUTO_FREE struct devices_description *texts = sys_calloc(1, sizeof *texts);
	struct wire_devices_response response;

	if (texts == NULL) {
		refuse_no_memory(call);
		return;
	}
	response.devices = describe_devices(call->daemon, texts);
	call_answer(call, &response);
}

void dispatch_clients(const struct call *call)
{
	struct wire_clients_response response = {0};
	struct core_client_view view;
	uint32_t cursor = 0;
	uint32_t capacity = 0;
	uint32_t n_clients = 0;
	AUTO_FREE struct wire_client *clients = NULL;

	while (core_client_next(call->daemon->core, &cursor, &view)) {
		capacity++;
	}
	clients = sys_calloc((size_t)capacity + 1, sizeof *clients);
	if (clients == NULL) {
		refuse_no_memory(call);
		return;
	}
	cursor = 0;
	while (n_clients < capacity && core_client_next(call->daemon->core, &cursor, &view)) {
		if (call->client->is_admin || view.uid == call->client->uid) {
			describe_client(call->daemon, &view, &clients[n_clients++]);
		}
	}
	response.clients.items = clients;
	response.clients.count = n_clients;
	call_answer(call, &response);
}

static uint32_t describe_last(const struct call *call, struct record_description *texts,
			      struct wire_record *records, uint32_t capacity)
{
	const struct record *found[4];
	const struct record *record;
	uint64_t cursor = 0;
	uint32_t n_found = 0;

	while ((record = history_next(&call->daemon->history, &cursor)) != NULL) {
		if (!describe_may_see(call->daemon, call->client, record) ||
		    record->type == CORE_NOTE_LOAD_BEGUN) {
			continue;
		}
		if (n_found == capacity) {
			memmove(found, found + 1, (capacity - 1) * sizeof(void *));
			n_found--;
		}
		found[n_found++] = record;
	}
	for (uint32_t i = 0; i < n_found; i++) {
		describe_record(call->daemon, call->client, found[i], clock_boot_ns(), &texts[i]);
		records[i] = texts[i].wire;
	}
	return n_found;
}

static void count_models(const struct core *core, struct wire_status_response *response)
{
	struct core_model_view model;
	struct core_client_view client;
	uint32_t cursor = 0;

	while (core_model_next(core, &cursor, &model)) {
		response->models += model.generation != 0 && model.state != CORE_MODEL_REGISTERED;
		response->pinned += model.is_pinned && model.state == CORE_MODEL_RESIDENT;
		response->loading += model.state == CORE_MODEL_LOADING;
	}
	cursor = 0;
	while (core_client_next(core, &cursor, &client)) {
		response->clients += client.is_connected;
	}
}

/* What a status answer borrows: too large for the stack. */
struct status_texts {
	struct devices_description devices;
	struct record_description record_texts[4];
	struct wire_record records[4];
};

void dispatch_status(const struct call *call)
{
	const struct daemon *daemon = call->daemon;
	AUTO_FREE struct status_texts *texts = sys_calloc(1, sizeof *texts);
	const char *state_fault = saved_fault(daemon);
	struct core_counters counters;
	struct wire_status_response response;

	if (texts == NULL) {
		refuse_no_memory(call);
		return;
	}
	response = (struct wire_status_response){
		.version = wire_str(DISTORCH_VERSION),
		.epoch = daemon->epoch,
		.uptime_ms = (clock_boot_ns() - daemon->started_ns) / NS_PER_MS,
		.restarts = persist_n_restarts(daemon->persist),
		.survives_restart = persist_is_safe(daemon->persist),
		.devices = describe_devices(daemon, &texts->devices),
		.bytes_read = daemon->metrics.bytes_read,
		.open_fds = metrics_open_fds(),
		.rss_bytes = memory_own_bytes(),
		.last = {.items = texts->records,
			 .count = describe_last(call, texts->record_texts, texts->records, 4)},
		.has_config_fault = daemon->config_fault.code != 0,
		.config_fault = wire_str(daemon->config_fault.text),
		.has_state_fault = state_fault != NULL,
		.state_fault = wire_str(state_fault == NULL ? "" : state_fault),
		.has_no_cards = workers_no_cards(daemon)[0] != '\0',
		.no_cards = wire_str(workers_no_cards(daemon)),
	};

	core_counters_get(daemon->core, &counters);
	response.hits = counters.hits;
	response.misses = counters.misses;
	response.bytes_saved = counters.bytes_saved;
	response.evictions = counters.evictions;
	response.refusals = counters.refusals;
	count_models(daemon->core, &response);
	call_answer(call, &response);
}

void dispatch_config(const struct call *call)
{
	AUTO_FREE struct wire_setting *settings =
		sys_calloc(WIRE_CONFIG_RESPONSE_SETTINGS_MAX, sizeof *settings);
	AUTO_FREE char(*sources)[256] =
		sys_calloc(WIRE_CONFIG_RESPONSE_SETTINGS_MAX, sizeof *sources);
	struct config_item item;
	uint32_t cursor = 0;
	uint32_t n_settings = 0;
	struct wire_config_response response = {0};

	if (settings == NULL || sources == NULL) {
		refuse_no_memory(call);
		return;
	}
	while (n_settings < WIRE_CONFIG_RESPONSE_SETTINGS_MAX &&
	       config_next(call->daemon->config, &cursor, &item)) {
		struct wire_setting *setting = &settings[n_settings];

		if (!call->client->is_admin && strcmp(item.key, "warm.model") == 0) {
			continue; /* paths are for those who may ask for them: `warm` */
		}
		*setting = (struct wire_setting){.key = wire_str(item.key),
						 .value = wire_str(item.value),
						 .source = wire_str(item.source)};
		if (reload_is_later(call->daemon, item.key)) {
			(void)snprintf(sources[n_settings], sizeof sources[0],
				       "%.200s, from the next start on", item.source);
			setting->source = wire_str(sources[n_settings]);
		}
		n_settings++;
	}
	response.settings.items = settings;
	response.settings.count = n_settings;
	call_answer(call, &response);
}

/* Refuses none at all, and a type that no record can have. */
APART bool check_types(const struct call *call, struct wire_list types)
{
	char names[400];
	char text[33];
	struct wire_str type;
	struct failure failure;

	if (types.count == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "types",
			    "types is empty: leave it out for records of all types");
		return false;
	}
	while (wire_list_next(&types, NULL, &type)) {
		(void)wire_str_copy(type, text, sizeof text);
		if (!history_has_type(text)) {
			failure_set(&failure, WIRE_BAD_ARGUMENT, "nothing is recorded as %s", text);
			failure_set_hint(&failure, "types are load and %s",
					 history_type_names(names, sizeof names));
			failure_set_field(&failure, "types");
			call_fail(call, &failure);
			return false;
		}
	}
	return true;
}

static bool is_wanted_type(struct wire_list types, const struct record *record)
{
	struct wire_str type;

	while (wire_list_next(&types, NULL, &type)) {
		char text[33];

		if (history_is_type(record->type, wire_str_copy(type, text, sizeof text))) {
			return true;
		}
	}
	return false;
}

void dispatch_history(const struct call *call, const struct wire_events_history_request *request)
{
	const struct record *record;
	struct wire_events_history_response response = {0};
	uint64_t model = 0;
	uint64_t cursor = 0;
	uint64_t now_ns = clock_boot_ns();
	uint32_t n_records = 0;
	AUTO_FREE struct record_description *texts = NULL;
	AUTO_FREE struct wire_record *records = NULL;

	if (request->has_model && !find_model(call, request->model, &model)) {
		return;
	}
	if (request->has_types && !check_types(call, request->types)) {
		return;
	}
	texts = sys_calloc(HISTORY_CAPACITY, sizeof *texts);
	records = sys_calloc(HISTORY_CAPACITY, sizeof *records);
	if (texts == NULL || records == NULL) {
		refuse_no_memory(call);
		return;
	}
	while ((record = history_next(&call->daemon->history, &cursor)) != NULL) {
		uint64_t age_ns = now_ns > record->at_ns ? now_ns - record->at_ns : 0;

		if ((model != 0 && record->model != model) ||
		    (request->has_since_ms && age_ns / NS_PER_MS > request->since_ms) ||
		    !describe_may_see(call->daemon, call->client, record) ||
		    (request->has_types && !is_wanted_type(request->types, record))) {
			continue;
		}
		describe_record(call->daemon, call->client, record, now_ns, &texts[n_records]);
		records[n_records] = texts[n_records].wire;
		n_records++;
	}
	response.records.items = records;
	response.records.count = n_records;
	call_answer(call, &response);
}

static bool read_id(struct wire_str text, uint8_t ret[16])
{
	static const char digits[] = "0123456789abcdef";
	char hex[33];

	(void)wire_str_copy(text, hex, sizeof hex);
	if (strspn(hex, digits) != 32) {
		return false;
	}
	for (unsigned i = 0; i < 32; i++) {
		unsigned digit = (unsigned)(strchr(digits, hex[i]) - digits);

		ret[i / 2] = (uint8_t)(i % 2 == 0 ? digit << 4 : ret[i / 2] | digit);
	}
	return true;
}

static const struct wire_event_type *find_event(struct wire_str name)
{
	for (unsigned i = 0; i < WIRE_N_EVENTS; i++) {
		if (wire_str_is(name, wire_events[i].name)) {
			return &wire_events[i];
		}
	}
	return NULL;
}

APART void refuse_event(const struct call *call, struct wire_str name)
{
	struct failure failure;
	char names[400] = "";
	char text[33];
	struct sentence sentence = {.text = names, .capacity = sizeof names};

	for (unsigned i = 0; i < WIRE_N_EVENTS; i++) {
		sentence_add(&sentence, "%s%s", i == 0 ? "" : ", ", wire_events[i].name);
	}
	failure_set(&failure, WIRE_BAD_ARGUMENT, "there is no event %s",
		    wire_str_copy(name, text, sizeof text));
	failure_set_hint(&failure, "events are %s", names);
	failure_set_field(&failure, "events");
	call_fail(call, &failure);
}

/* False: one is unknown, and that has been answered. */
static bool read_event_mask(const struct call *call, const struct wire_subscribe_request *request,
			    uint64_t *ret_mask)
{
	struct wire_list names = request->events;
	struct wire_str name;
	uint64_t mask = 0;

	if (!request->has_events) {
		*ret_mask = UINT64_MAX;
		return true;
	}
	while (wire_list_next(&names, NULL, &name)) {
		const struct wire_event_type *type = find_event(name);

		if (type == NULL) {
			refuse_event(call, name);
			return false;
		}
		mask |= 1ULL << type->number;
	}
	*ret_mask = mask;
	return true;
}

void dispatch_subscribe(const struct call *call, const struct wire_subscribe_request *request)
{
	struct subscription *subscription = &call->client->subscription;
	const struct wire_subscribe_response response = {.subscription = 1};
	struct wire_list models = request->models;
	uint8_t(*ids)[16] = NULL;
	uint32_t n_ids = 0;
	uint64_t events = 0;
	struct wire_str text;

	if (!read_event_mask(call, request, &events)) {
		return;
	}
	if (request->has_models && models.count == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "models",
			    "models is empty: leave it out for events of all models");
		return;
	}
	if (request->has_models) {
		ids = sys_calloc(models.count, sizeof *ids);
		if (ids == NULL) {
			refuse_no_memory(call);
			return;
		}
		while (wire_list_next(&models, NULL, &text)) {
			if (!read_id(text, ids[n_ids++])) {
				free(ids);
				call_refuse(call, WIRE_BAD_ARGUMENT, "models",
					    "models are given by their 32-digit ids");
				return;
			}
		}
	}
	free(subscription->models);
	*subscription = (struct subscription){.is_active = true,
					      .events = events,
					      .models = ids,
					      .n_models = n_ids};
	call_answer(call, &response);
}
