/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an administrator says that outlives the daemon: budgets, settings. It is written first
 * (saved.h); only what is written is carried out, and then answered.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/sys.h"
#include "base/units.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/answer.h"
#include "daemon/change.h"
#include "daemon/config_saved.h"
#include "daemon/describe.h"
#include "daemon/dispatch.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/server.h"
#include "daemon/reload.h"
#include "daemon/saved.h"

#define RAM_KEY         "memory.ram"
#define BUDGET_KEY_SIZE 96
#define GPU_KEY         "gpu.budget." /* then a device's name or UUID */

/* ---- budgets ---- */

/* What a budget answer borrows. */
struct budget_texts {
	struct devices_description devices;
	struct answer_went went;
};

/* 'n_records': what the history had before the budget was set; UINT64_MAX: it was not. */
static void answer_budget(const struct call *call, uint64_t n_records, const char *notice)
{
	AUTO_FREE struct budget_texts *texts = sys_calloc(1, sizeof *texts);
	struct wire_budget_response response = {.has_notice = notice[0] != '\0',
						.notice = wire_str(notice)};

	if (texts == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	response.devices = describe_devices(call->daemon, &texts->devices);
	response.has_evicted = n_records != UINT64_MAX;
	if (response.has_evicted) {
		answer_find_went(call->daemon, call->client, n_records, CORE_WHY_BUDGET,
				 ANSWER_ANY_DEVICE, &texts->went);
		response.evicted.items = texts->went.outcomes;
		response.evicted.count = texts->went.n_outcomes;
	}
	call_answer(call, &response);
}

/* May the caller set this budget? Answered where not. */
static bool check_budget(const struct call *call, uint32_t device, uint64_t bytes)
{
	const struct known_device *known = &call->daemon->devices[device];
	const uint64_t most = device == 0 ? call->daemon->host_total_bytes
					  : known->info.total_bytes;
	char size[16];
	char total[16];
	char label[PLAN_LABEL_SIZE];

	if (!call->client->is_admin) {
		call_refuse(call, WIRE_NOT_ALLOWED, NULL,
			    "setting a budget needs an administrator (root, the daemon's "
			    "user, or access.control)");
		return false;
	}
	if (device != 0 && known->info.uuid[0] == '\0') {
		call_refuse(call, WIRE_DEVICE_LOST, "device", "%s has not said yet what it is: %s",
			    known->name, known->reason);
		return false;
	}
	if (bytes > most) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "bytes", "%s is more than %s has (%s)",
			    units_format_size(bytes, size, sizeof size),
			    device == 0 ? "this machine"
					: describe_device_label(call->daemon, device, label),
			    units_format_size(most, total, sizeof total));
		return false;
	}
	return true;
}

static void set_budget(struct daemon *daemon, uint32_t device, uint64_t bytes)
{
	struct core_event event = {.type = EV_BUDGET, .budget = {.device = device, .bytes = bytes}};

	if (device != 0) {
		workers_set_budget(daemon, device, bytes);
	} else {
		(void)daemon_step(daemon, &event);
	}
}

/* The setting that says it. */
static void budget_key(const struct daemon *daemon, uint32_t device, char ret[BUDGET_KEY_SIZE])
{
	if (device == 0) {
		(void)snprintf(ret, BUDGET_KEY_SIZE, RAM_KEY);
	} else {
		(void)snprintf(ret, BUDGET_KEY_SIZE, GPU_KEY "%s",
			       daemon->devices[device].info.uuid);
	}
}

/* The same by the device's other name, where the key is of a device that is known. */
static bool other_budget_key(const struct daemon *daemon, const char *key,
			     char ret[BUDGET_KEY_SIZE])
{
	const size_t prefix = sizeof GPU_KEY - 1;

	for (uint32_t i = 1; strncmp(key, GPU_KEY, prefix) == 0 && i < daemon->n_devices; i++) {
		const struct known_device *device = &daemon->devices[i];
		bool is_name = strcasecmp(&key[prefix], device->name) == 0;

		if (is_name || strcasecmp(&key[prefix], device->info.uuid) == 0) {
			(void)snprintf(ret, BUDGET_KEY_SIZE, GPU_KEY "%s",
				       is_name ? device->info.uuid : device->name);
			return true;
		}
	}
	return false;
}

/* One device has one saved budget, whatever it was called. False: none was saved. */
static bool remove_setting(const struct daemon *daemon, struct state *state, const char *key)
{
	char other[BUDGET_KEY_SIZE];
	bool was_saved = state_remove_setting(state, key);

	if (other_budget_key(daemon, key, other)) {
		was_saved = state_remove_setting(state, other) || was_saved;
	}
	return was_saved;
}

static bool replace_setting(const struct daemon *daemon, struct state *state, const char *key,
			    const char *value)
{
	(void)remove_setting(daemon, state, key);
	return state_add_setting(state, key, value);
}

static void tell_what_wins(const struct daemon *daemon, const char *key,
			   char notice[CHANGE_NOTICE_SIZE])
{
	char other[BUDGET_KEY_SIZE];

	change_tell_what_wins(daemon->config, key, notice);
	if (notice[0] == '\0' && other_budget_key(daemon, key, other)) {
		change_tell_what_wins(daemon->config, other, notice);
	}
}

static void on_budget_saved(struct daemon *daemon, struct saved_change *saved,
			    const struct err *err)
{
	struct change *change = container_of(saved, struct change, saved);
	uint64_t n_records = daemon->history.n_ever;
	char notice[CHANGE_NOTICE_SIZE];
	char key[BUDGET_KEY_SIZE];
	struct call call;

	if (err->code != 0) {
		change_fail(daemon, change, err);
		change_free(change);
		return;
	}
	set_budget(daemon, change->device,
		   change->bytes); /* also where something above it is configured */
	change_take(daemon, change);
	budget_key(daemon, change->device, key);
	tell_what_wins(daemon, key, notice);
	if (change_find_call(daemon, change, &call)) {
		answer_budget(&call, n_records, notice);
	}
	server_flush(daemon->server);
	change_free(change);
}

/* "48G" where that says it all. */
static void write_size(uint64_t bytes, char text[32])
{
	static const char units[] = "TGMK";

	for (unsigned i = 0; units[i] != '\0'; i++) {
		uint64_t unit = 1ULL << (10 * (4 - i));

		if (bytes >= unit && bytes % unit == 0) {
			(void)snprintf(text, 32, "%llu%c", (unsigned long long)(bytes / unit),
				       units[i]);
			return;
		}
	}
	(void)snprintf(text, 32, "%lluB", (unsigned long long)bytes);
}

static void save_budget(const struct call *call, uint32_t device, uint64_t bytes)
{
	struct change *change;
	char key[BUDGET_KEY_SIZE];
	char text[32];

	if (bytes == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "bytes",
			    "a budget of 0 cannot be saved: with it no start would hold anything");
		return;
	}
	change = change_new(call, on_budget_saved);
	if (change == NULL) {
		return;
	}
	write_size(bytes, text);
	change->bytes = bytes;
	change->device = device;
	budget_key(call->daemon, device, key);
	if (!replace_setting(call->daemon, &change->saved.next, key, text)) {
		change_free(change);
		call_refuse(call, WIRE_TOO_MANY, NULL, "%u settings are saved already",
			    STATE_MAX_SETTINGS);
		return;
	}
	change_begin(call, change);
}

/* Of a card also what it cannot have now, since others use it. */
static uint64_t wanted_budget(const struct daemon *daemon, uint32_t device)
{
	const struct known_device *known = &daemon->devices[device];
	struct core_account_view account;

	core_account_get(daemon->core, device, &account);
	return device == 0         ? account.budget
	       : known->has_wanted ? known->wanted_bytes
				   : known->configured_bytes;
}

void dispatch_budget(const struct call *call, const struct wire_budget_request *request)
{
	uint64_t n_records = call->daemon->history.n_ever;
	uint32_t device = 0;
	bool is_saved = request->has_save && request->save;

	if (request->has_device && !dispatch_take_device(call, request->device, &device)) {
		return;
	}
	if ((request->has_bytes || is_saved) &&
	    !check_budget(call, device, request->has_bytes ? request->bytes : 0)) {
		return;
	}
	if (is_saved) {
		save_budget(call, device,
			    request->has_bytes ? request->bytes
					       : wanted_budget(call->daemon, device));
		return;
	}
	if (request->has_bytes) {
		set_budget(call->daemon, device, request->bytes);
	}
	answer_budget(call, request->has_bytes ? n_records : UINT64_MAX, "");
}

/* ---- settings ---- */

static void answer_set(const struct call *call, const struct change *change, const char *notice)
{
	const struct wire_config_set_response response = {
		.applied = {.items = change->changes.applied, .count = change->changes.n_applied},
		.later = {.items = change->changes.later, .count = change->changes.n_later},
		.has_notice = notice[0] != '\0',
		.notice = wire_str(notice),
	};

	call_answer(call, &response);
}

/* What the files say of it is known once they are read. */
static void on_unset(struct daemon *daemon, const struct change *change)
{
	int code = reload_begin(daemon, change->client, change->request, WIRE_METHOD_CONFIG_SET);
	struct call call;

	if (code < 0 && change_find_call(daemon, change, &call)) {
		answer_set(&call, change,
			   "forgotten, but the configuration could not be read now; reload it");
	}
}

/* A budget of a card that is not there may be for one that comes, or a slip. */
static void tell_unknown_device(const struct daemon *daemon, const char *key,
				char notice[CHANGE_NOTICE_SIZE])
{
	char other[BUDGET_KEY_SIZE];

	if (strncmp(key, GPU_KEY, sizeof GPU_KEY - 1) == 0 &&
	    !other_budget_key(daemon, key, other)) {
		(void)snprintf(notice, CHANGE_NOTICE_SIZE,
			       "saved, but no device has the name or UUID %.64s now",
			       &key[sizeof GPU_KEY - 1]);
	}
}

static void on_setting_saved(struct daemon *daemon, struct saved_change *saved,
			     const struct err *err)
{
	struct change *change = container_of(saved, struct change, saved);
	char notice[CHANGE_NOTICE_SIZE];
	struct call call;

	if (err->code != 0) {
		change_fail(daemon, change, err);
	} else if (change->is_unset) {
		on_unset(daemon, change);
	} else {
		change_take(daemon, change);
		tell_what_wins(daemon, change->text, notice);
		tell_unknown_device(daemon, change->text, notice);
		if (change_find_call(daemon, change, &call)) {
			answer_set(&call, change, notice);
		}
	}
	server_flush(daemon->server);
	change_free(change);
}

/* May this be saved? Answered where not. */
__attribute__((noinline)) static bool check_setting(const struct call *call, const char *key,
						    const char *value)
{
	AUTO_FREE char *text = sys_malloc(strlen(key) + strlen(value) + 2);
	struct err err = {0};
	struct failure failure;

	if (text == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return false;
	}
	(void)stpcpy(stpcpy(stpcpy(text, key), "="), value);
	if (strcmp(key, "warm.model") == 0) {
		(void)err_set(&err, WIRE_BAD_ARGUMENT, "%s is a list: distorchctl warm add FILE",
			      key);
	} else if (config_check_saved("config.set", text, false, &err) == 0) {
		return true;
	}
	failure_from_err(&failure, "", &err);
	failure_set_field(&failure, "key");
	call_fail(call, &failure);
	return false;
}

void dispatch_config_set(const struct call *call, const struct wire_config_set_request *request)
{
	char key[WIRE_CONFIG_SET_REQUEST_KEY_MAX + 1];
	AUTO_FREE char *value = sys_malloc((size_t)request->value.size + 1);
	struct change *change;

	(void)wire_str_copy(request->key, key, sizeof key);
	if (value == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	(void)wire_str_copy(request->value, value, request->value.size + 1);
	if (request->has_value && !check_setting(call, key, value)) {
		return;
	}
	change = change_new(call, on_setting_saved);
	if (change == NULL) {
		return;
	}
	change->is_unset = !request->has_value;
	change->saved.key = change->text = sys_strdup(key);
	if (change->is_unset && !remove_setting(call->daemon, &change->saved.next, key)) {
		change_free(change);
		call_refuse(call, WIRE_NOT_FOUND, "key", "no %s was saved", key);
		return;
	}
	if (change->text == NULL) {
		change_free(change);
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	if (request->has_value && !replace_setting(call->daemon, &change->saved.next, key, value)) {
		change_free(change);
		call_refuse(call, WIRE_TOO_MANY, NULL, "%u settings are saved already",
			    STATE_MAX_SETTINGS);
		return;
	}
	change_begin(call, change);
}
