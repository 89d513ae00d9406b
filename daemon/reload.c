/* SPDX-License-Identifier: Apache-2.0 */
/* See reload.h. */
#include "daemon/reload.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/clients.h"
#include "daemon/config.h"
#include "daemon/config_saved.h"
#include "daemon/daemon.h"
#include "daemon/errand.h"
#include "daemon/failure.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/server.h"
#include "daemon/last_good.h"
#include "daemon/load/memory.h"
#include "daemon/names.h"
#include "daemon/saved.h"
#include "daemon/testing.h"
#include "daemon/warm.h"
#include "proto/wire.h"

/* owner: its errand; daemon::reload knows it until the loop has its result */
struct reload {
	struct errand errand;
	uint64_t client;
	uint32_t request;
	enum wire_method method;    /* of the request */
	struct config_request how;  /* to read it */
	struct config_saved *saved; /* of 'how' */
	uint64_t n_saved;           /* saved_n_changes then */
	struct config *config;      /* the new snapshot; NULL: 'err' says why */
	struct host_memory memory;
	struct err err;
	struct reload_changes changes;
	bool is_wanted_again; /* somebody said so while the files were read */
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

static void apply_warm(struct daemon *daemon, const struct host_memory *memory)
{
	(void)memory;
	warm_take_list(daemon);
}

static void apply_device_budgets(struct daemon *daemon, const struct host_memory *memory)
{
	(void)memory;
	workers_apply_config(daemon);
}

static const struct {
	const char *key;
	void (*apply)(struct daemon *daemon, const struct host_memory *memory);
} at_once[] = {
	{"memory.reserve", apply_reserve}, {"memory.ram", apply_ram},
	{"log.level", apply_log},          {"log.format", apply_log},
	{"warm.model", apply_warm},        {"gpu.budget", apply_device_budgets},
};

/* The key itself, or its value for one device. */
static bool is_of(const char *key, const char *at_once_key)
{
	const size_t size = strlen(at_once_key);

	return strncmp(key, at_once_key, size) == 0 && (key[size] == '\0' || key[size] == '.');
}

static bool is_at_once(const char *key)
{
	for (size_t i = 0; i < sizeof at_once / sizeof at_once[0]; i++) {
		if (is_of(key, at_once[i].key)) {
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

/* False: it is one of them already, or there is no room for it. */
static bool note_change(struct reload_changes *changes, const char *key)
{
	const bool is_later = !is_at_once(key);
	struct wire_str *keys = is_later ? changes->later : changes->applied;
	uint32_t *n_keys = is_later ? &changes->n_later : &changes->n_applied;

	if (*n_keys == RELOAD_MAX_KEYS ||
	    (*n_keys > 0 && wire_str_is(keys[*n_keys - 1], key))) { /* the items of a list */
		return false;
	}
	keys[(*n_keys)++] = wire_str(key);
	return true;
}

static bool has_item(const struct config *config, const char *key)
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(config, &cursor, &item)) {
		if (strcmp(item.key, key) == 0) {
			return true;
		}
	}
	return false;
}

static const char *when_text(const char *key)
{
	return is_at_once(key) ? "" : ": from the next start on";
}

static void note_changes(const struct daemon *daemon, const struct config *next,
			 struct reload_changes *changes)
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(next, &cursor, &item)) {
		if (is_same(daemon->config, next, item.key) || !note_change(changes, item.key)) {
			continue;
		}
		if (strcmp(item.key, "warm.model") == 0) { /* the others are not told one by one */
			log_notice("%s: %u models are listed", item.key, next->n_warm_models);
			continue;
		}
		log_notice("%s = %s (%s)%s", item.key, item.value, item.source,
			   when_text(item.key));
	}
	cursor = 0;
	/* What is for one device alone is there only while somebody says it. */
	while (config_next(daemon->config, &cursor, &item)) {
		if (!has_item(next, item.key) && note_change(changes, item.key)) {
			log_notice("%s is said no more%s", item.key, when_text(item.key));
		}
	}
}

void reload_changes_fini(struct reload_changes *changes)
{
	changes->before = config_free(changes->before);
}

static bool has_key(const struct wire_str *keys, uint32_t n_keys, const char *key)
{
	for (uint32_t i = 0; i < n_keys; i++) {
		if (is_of(keys[i].text, key)) { /* of the snapshot: terminated */
			return true;
		}
	}
	return false;
}

void reload_take(struct daemon *daemon, struct config *next, const struct host_memory *memory,
		 struct reload_changes *ret)
{
	testing_point("reloading");
	note_changes(daemon, next, ret);
	ret->before = daemon->reloaded;
	daemon->config = daemon->reloaded = next;
	last_good_keep(daemon);
	for (size_t i = 0; i < sizeof at_once / sizeof at_once[0]; i++) {
		if (has_key(ret->applied, ret->n_applied, at_once[i].key)) {
			at_once[i].apply(daemon, memory);
		}
	}
}

/* ---- the work ---- */

static void read_again(struct errand *errand)
{
	struct reload *reload = container_of(errand, struct reload, errand);

	if (config_load(&reload->how, &reload->config, &reload->err) == 0 &&
	    names_check(reload->config, &reload->err) == 0) {
		(void)host_memory_read(NULL, &reload->memory, &reload->err);
	}
	if (reload->err.code != 0) {
		reload->config = config_free(reload->config);
	}
}

static void respond(const struct reload *reload, struct conn *conn)
{
	const struct wire_list applied = {.items = reload->changes.applied,
					  .count = reload->changes.n_applied};
	const struct wire_list later = {.items = reload->changes.later,
					.count = reload->changes.n_later};
	const struct wire_reload_response reloaded = {.applied = applied, .later = later};
	const struct wire_config_set_response is_set = {.applied = applied, .later = later};

	conn_respond_ok(conn, reload->request, &wire_messages[reload->method],
			reload->method == WIRE_METHOD_RELOAD ? (const void *)&reloaded
							     : (const void *)&is_set,
			NULL, 0);
}

static void answer(struct daemon *daemon, struct reload *reload)
{
	struct client *client = daemon_find_client(daemon, reload->client);
	struct pending *pending = client == NULL ? NULL
						 : client_find_pending(client, reload->request);
	struct failure failure;

	if (pending == NULL || client->conn == NULL) {
		return; /* SIGHUP, or it has gone meanwhile */
	}
	if (reload->err.code != 0) {
		failure_from_err(&failure, "", &reload->err);
		conn_respond_error(client->conn, reload->request, &failure.wire);
	} else {
		respond(reload, client->conn);
	}
	pending_clear(pending);
	server_flush(daemon->server);
}

static void reload_free(struct errand *errand)
{
	struct reload *reload = container_of(errand, struct reload, errand);

	reload_changes_fini(&reload->changes);
	(void)config_free(reload->config);
	saved_config_free(reload->saved);
	free(reload);
}

/* Something was saved while the files were read: it is to be in the snapshot as well. */
static void catch_up(struct daemon *daemon, struct reload *reload)
{
	struct config_saved *saved = NULL;
	struct config *next = NULL;

	if (reload->config == NULL || reload->n_saved == saved_n_changes(daemon)) {
		return;
	}
	if (!saved_config(daemon->saved, &saved)) {
		(void)err_set(&reload->err, WIRE_NO_MEMORY, "no memory for the configuration");
	} else {
		(void)config_resave(reload->config, saved, &next, &reload->err);
	}
	(void)config_free(reload->config);
	reload->config = next;
	saved_config_free(saved);
}

static void on_read(struct daemon *daemon, struct errand *errand)
{
	struct reload *reload = container_of(errand, struct reload, errand);

	daemon->reload = NULL;
	catch_up(daemon, reload);
	if (reload->config == NULL) {
		log_error("the configuration is not changed: %s", reload->err.text);
		if (reload->err.code != WIRE_NO_MEMORY) { /* which says nothing of the files */
			daemon->config_fault = reload->err;
		}
	} else {
		daemon->config_fault = (struct err){0};
		reload_take(daemon, steal_ptr(&reload->config), &reload->memory, &reload->changes);
		log_notice("the configuration was read again: %u in effect, %u from the next start "
			   "on",
			   reload->changes.n_applied, reload->changes.n_later);
		warm_retry(daemon, NULL);
	}
	answer(daemon, reload);
	if (reload->is_wanted_again) {
		(void)reload_begin(daemon, 0, 0, WIRE_METHOD_RELOAD); /* no memory: as a fault */
	}
	reload_free(errand);
}

int reload_begin(struct daemon *daemon, uint64_t client, uint32_t request, enum wire_method method)
{
	struct reload *reload = daemon->reload != NULL ? NULL : sys_calloc(1, sizeof *reload);

	if (daemon->reload != NULL && client == 0) {
		daemon->reload->is_wanted_again = true; /* what is being read may be old by now */
		return 0;
	}
	if (reload == NULL) {
		return daemon->reload != NULL ? -WIRE_BUSY : -WIRE_NO_MEMORY;
	}
	reload->errand = (struct errand){.work = read_again, .done = on_read, .drop = reload_free};
	reload->client = client;
	reload->request = request;
	reload->method = method;
	reload->n_saved = saved_n_changes(daemon);
	if (!saved_config(daemon->saved, &reload->saved)) {
		reload_free(&reload->errand);
		return -WIRE_NO_MEMORY;
	}
	reload->how = *daemon->request;
	reload->how.saved = reload->saved;
	if (!errand_start(daemon->errands, &reload->errand)) {
		reload_free(&reload->errand);
		return -WIRE_NO_MEMORY;
	}
	daemon->reload = reload;
	return 0;
}
