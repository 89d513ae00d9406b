/* SPDX-License-Identifier: Apache-2.0 */
/* See reload.h. */
#include "daemon/reload.h"

#include "base/err.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/clients.h"
#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/failure.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/server.h"
#include "daemon/load/memory.h"
#include "proto/wire.h"

#define MAX_KEYS WIRE_RELOAD_RESPONSE_APPLIED_MAX

/* owner: daemon::reload, from reload_begin until the loop has its result */
struct reload {
	uv_work_t work;
	struct daemon *daemon;
	uint64_t client;
	uint32_t request;
	struct config *config; /* the new snapshot; NULL: 'err' says why */
	struct host_memory memory;
	struct err err;
	struct wire_str applied[MAX_KEYS], later[MAX_KEYS]; /* keys are the table's own */
	uint32_t n_applied, n_later;
};

/* ---- what can change while the daemon runs ---- */

static void apply_ram(struct daemon *daemon, const struct host_memory *memory)
{
	struct core_event event = {.type = EV_BUDGET};

	event.budget.bytes = daemon_choose_budget(daemon, memory);
	(void)daemon_step(daemon, &event);
}

static void apply_reserve(struct daemon *daemon, const struct host_memory *memory)
{
	daemon->reserve_bytes = daemon_choose_reserve(daemon, memory);
}

static void apply_log(struct daemon *daemon, const struct host_memory *memory)
{
	(void)memory;
	log_open(daemon->config->log_level, daemon->config->log_format);
}

static const struct {
	const char *key;
	void (*apply)(struct daemon *daemon, const struct host_memory *memory);
} at_once[] = {
	{"memory.reserve", apply_reserve},
	{"memory.ram", apply_ram},
	{"log.level", apply_log},
	{"log.format", apply_log},
};

static bool is_at_once(const char *key)
{
	for (size_t i = 0; i < sizeof at_once / sizeof at_once[0]; i++) {
		if (strcmp(at_once[i].key, key) == 0) {
			return true;
		}
	}
	return false;
}

/* ---- comparing snapshots ---- */

/* All values of a key, in order, are the same. Lists give one item a value. */
static bool is_same(const struct config *a, const struct config *b, const char *key)
{
	struct config_item one;
	struct config_item other;
	uint32_t at_a = 0;
	uint32_t at_b = 0;

	for (;;) {
		bool has_one;
		bool has_other;

		while ((has_one = config_next(a, &at_a, &one)) && strcmp(one.key, key) != 0) {
			/* another key's */
		}
		while ((has_other = config_next(b, &at_b, &other)) && strcmp(other.key, key) != 0) {
			/* another key's */
		}
		if (!has_one || !has_other) {
			return has_one == has_other;
		}
		if (strcmp(one.value, other.value) != 0) {
			return false;
		}
	}
}

bool reload_is_later(const struct daemon *daemon, const char *key)
{
	return daemon->config != daemon->start_config && !is_at_once(key) &&
	       !is_same(daemon->config, daemon->start_config, key);
}

static void note_changes(struct reload *reload, const struct config *before)
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(reload->config, &cursor, &item)) {
		bool is_later = !is_at_once(item.key);
		struct wire_str *keys = is_later ? reload->later : reload->applied;
		uint32_t *n_keys = is_later ? &reload->n_later : &reload->n_applied;

		if (is_same(before, reload->config, item.key) || *n_keys == MAX_KEYS ||
		    (*n_keys > 0 && wire_str_is(keys[*n_keys - 1], item.key))) {
			continue;
		}
		keys[(*n_keys)++] = wire_str(item.key);
		log_notice("%s = %s (%s)%s", item.key, item.value, item.source,
			   is_later ? ": from the next start on" : "");
	}
}

static void apply(struct reload *reload)
{
	for (size_t i = 0; i < sizeof at_once / sizeof at_once[0]; i++) {
		for (uint32_t k = 0; k < reload->n_applied; k++) {
			if (wire_str_is(reload->applied[k], at_once[i].key)) {
				at_once[i].apply(reload->daemon, &reload->memory);
			}
		}
	}
}

/* ---- the work ---- */

static void read_again(uv_work_t *work)
{
	struct reload *reload = work->data;

	if (config_load(reload->daemon->request, &reload->config, &reload->err) == 0) {
		(void)host_memory_read(NULL, &reload->memory, &reload->err);
	}
	if (reload->err.code != 0) {
		reload->config = config_free(reload->config);
	}
}

static void answer(struct reload *reload)
{
	struct client *client = daemon_find_client(reload->daemon, reload->client);
	struct pending *pending = client == NULL ? NULL
						 : client_find_pending(client, reload->request);
	const struct wire_reload_response response = {
		.applied = {.items = reload->applied, .count = reload->n_applied},
		.later = {.items = reload->later, .count = reload->n_later},
	};
	struct failure failure;

	if (pending == NULL || client->conn == NULL) {
		return; /* SIGHUP, or it has gone meanwhile */
	}
	if (reload->err.code != 0) {
		failure_from_err(&failure, "", &reload->err);
		conn_respond_error(client->conn, reload->request, &failure.wire);
	} else {
		conn_respond_ok(client->conn, reload->request, &wire_messages[WIRE_METHOD_RELOAD],
				&response, NULL, 0);
	}
	pending_clear(pending);
}

static void on_read(uv_work_t *work, int status)
{
	struct reload *reload = work->data;
	struct daemon *daemon = reload->daemon;
	struct config *before = daemon->reloaded;

	(void)status; /* cancelled only at the end, with nothing read */
	daemon->reload = NULL;
	if (daemon->is_stopped || reload->config == NULL) {
		if (reload->err.code != 0) {
			log_error("the configuration is not changed: %s", reload->err.text);
		}
		if (!daemon->is_stopped) {
			answer(reload);
			server_flush(daemon->server);
		}
		(void)config_free(reload->config);
		free(reload);
		return;
	}
	note_changes(reload, daemon->config);
	daemon->config = daemon->reloaded = reload->config;
	apply(reload);
	log_notice("the configuration was read again: %u in effect, %u from the next start on",
		   reload->n_applied, reload->n_later);
	answer(reload); /* its keys are still those of the snapshots */
	server_flush(daemon->server);
	(void)config_free(before);
	free(reload);
}

int reload_begin(struct daemon *daemon, uint64_t client, uint32_t request)
{
	struct reload *reload = daemon->reload != NULL ? NULL : sys_calloc(1, sizeof *reload);

	if (reload == NULL) {
		return daemon->reload != NULL ? -WIRE_BUSY : -WIRE_NO_MEMORY;
	}
	reload->daemon = daemon;
	reload->client = client;
	reload->request = request;
	reload->work.data = reload;
	if (uv_queue_work(&daemon->loop, &reload->work, read_again, on_read) < 0) {
		free(reload);
		return -WIRE_INTERNAL;
	}
	daemon->reload = reload;
	return 0;
}
