/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl status, ping, version, shutdown: the daemon at a glance. */
#include "options.h"
#include "print.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define DAY_MS 86400000U

static const struct argp_option no_options[] = {OPTIONS_END};

static void print_records(const struct distorch_record *const *records, size_t n_records)
{
	char time[40];
	char name[256];
	char why[512];

	for (size_t i = n_records; i > 0; i--) {
		const struct distorch_record *record = records[i - 1];
		bool has_date = record->age_ms > DAY_MS;

		(void)printf("  %s  %s %s%s%s\n", time_text(record->time_ms, has_date, time),
			     record->type, safe_text(record->name, name, sizeof name),
			     record->why != NULL ? ": " : "",
			     record->why != NULL ? safe_text(record->why, why, sizeof why) : "");
	}
}

/* What somebody has to do something about. */
static void print_fault(const char *what, const char *fault, const char *fix)
{
	char safe[600];

	if (fault != NULL) {
		(void)printf("! %s: %s\n  fix: %s\n", what, safe_text(fault, safe, sizeof safe),
			     fix);
	}
}

static int print_status(struct ctl *ctl, const struct distorch_status *status)
{
	struct distorch_server *server = NULL;
	char uptime[32];
	char path[512];
	char saved[24];
	uint64_t n_asked = status->hits + status->misses;

	if (distorch_server(ctl->c, &server) < 0) {
		return ctl_fail(ctl);
	}
	(void)printf("● distorchd %s  up %s   %s   survives a restart: %s\n", status->version,
		     ms_text(status->uptime_ms, uptime),
		     safe_text(server->socket_path, path, sizeof path),
		     status->survives_restart ? "yes" : "no");
	distorch_server_free(server);
	print_fault(CONFIG_FAULT_TEXT, status->config_fault, CONFIG_FAULT_FIX);
	print_fault(STATE_FAULT_TEXT, status->state_fault, STATE_FAULT_FIX);
	print_devices(ctl, status->devices, status->n_devices);
	(void)printf("  Models %" PRIu64, status->models);
	if (status->pinned > 0) {
		(void)printf(" (%" PRIu64 " pinned)", status->pinned);
	}
	if (status->loading > 0) {
		(void)printf("    loading %" PRIu64, status->loading);
	}
	(void)printf("    clients %" PRIu64, status->clients);
	if (n_asked > 0) {
		(void)printf("    hits %" PRIu64 "%%    not read again from disk: %s",
			     status->hits * 100 / n_asked,
			     size_text(ctl, status->bytes_saved, saved));
	}
	(void)putchar('\n');
	print_records(status->last, status->n_last);
	return EXIT_DONE;
}

static int print_status_json(struct ctl *ctl, const struct distorch_status *status)
{
	cJSON *object = json_new();
	cJSON *array;

	json_add_text(object, "version", status->version);
	json_add_number(object, "epoch", status->epoch);
	json_add_number(object, "uptime_s", status->uptime_ms / 1000);
	json_add_number(object, "restarts", status->restarts);
	json_add_bool(object, "survives_restart", status->survives_restart);
	array = json_add_array(object, "devices");
	for (size_t i = 0; i < status->n_devices; i++) {
		(void)json_of_device(json_add_item(array), status->devices[i]);
	}
	json_add_number(object, "models", status->models);
	json_add_number(object, "pinned", status->pinned);
	json_add_number(object, "loading", status->loading);
	json_add_number(object, "clients", status->clients);
	json_add_number(object, "hits", status->hits);
	json_add_number(object, "misses", status->misses);
	json_add_number(object, "bytes_read", status->bytes_read);
	json_add_number(object, "bytes_saved", status->bytes_saved);
	json_add_number(object, "evictions", status->evictions);
	json_add_number(object, "refusals", status->refusals);
	json_add_number(object, "open_fds", status->open_fds);
	json_add_number(object, "rss_bytes", status->rss_bytes);
	array = json_add_array(object, "last");
	for (size_t i = 0; i < status->n_last; i++) {
		(void)json_of_record(json_add_item(array), status->last[i]);
	}
	json_add_text(object, "config_fault", status->config_fault);
	json_add_text(object, "state_fault", status->state_fault);
	json_add_text(object, "no_cards", status->no_cards);
	return json_print(ctl, object);
}

static int run_status(struct ctl *ctl)
{
	struct distorch_status *answer = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_status(ctl->c, &answer) < 0) {
		return ctl_fail(ctl);
	}
	status = is_json(ctl) ? print_status_json(ctl, answer) : print_status(ctl, answer);
	distorch_status_free(answer);
	return status;
}

const struct verb verb_status = {
	.name = "status",
	.group = VERB_EVERYDAY,
	.usage = "",
	.summary = "The daemon at a glance: memory, models, clients, what happened last.",
	.text = "Exit status: 3 when the daemon is not running.",
	.options = no_options,
	.run = run_status,
};

static int run_ping(struct ctl *ctl)
{
	struct timespec begun = {0};
	struct timespec ended = {0};
	int status = ctl_connect(ctl);
	double ms;

	if (status != EXIT_DONE) {
		return status;
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &begun); /* cannot fail */
	if (distorch_ping(ctl->c) < 0) {
		return ctl_fail(ctl);
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &ended);
	ms = (double)(ended.tv_sec - begun.tv_sec) * 1e3 +
	     (double)(ended.tv_nsec - begun.tv_nsec) / 1e6;
	if (is_json(ctl)) {
		cJSON *object = json_new();

		(void)cJSON_AddNumberToObject(object, "ms", ms);
		return json_print(ctl, object);
	}
	if (!ctl->arguments.is_quiet) {
		(void)printf("the daemon answers in %.3f ms\n", ms);
	}
	return EXIT_DONE;
}

const struct verb verb_ping = {
	.name = "ping",
	.group = VERB_MORE,
	.usage = "",
	.summary = "Ask the daemon for an answer and say how long it took.",
	.text = "Exit status: 3 when the daemon is not running.",
	.options = no_options,
	.run = run_ping,
};

static int run_version(struct ctl *ctl)
{
	struct distorch_server *server = NULL;
	bool has_daemon = ctl_open(ctl) == 0 && distorch_server(ctl->c, &server) == 0;
	char why[512];

	if (is_json(ctl)) {
		cJSON *object = json_new();

		json_add_text(object, "distorchctl", DISTORCH_VERSION);
		json_add_text(object, "libdistorch", distorch_version());
		json_add_text(object, "daemon", has_daemon ? server->version : NULL);
		json_add_number(object, "protocol",
				has_daemon ? server->protocol : DISTORCH_ABSENT);
		(void)json_print(ctl, object);
	} else {
		(void)printf("distorchctl %s\nlibdistorch %s\n", DISTORCH_VERSION,
			     distorch_version());
		if (has_daemon) {
			(void)printf("daemon      %s, protocol %llu\n", server->version,
				     (unsigned long long)server->protocol);
		} else {
			(void)printf("daemon      %s\n",
				     distorch_error(NULL)->code == DISTORCH_E_NO_CONNECTION
					     ? "not running"
					     : safe_text(distorch_error(NULL)->message, why,
							 sizeof why));
		}
	}
	distorch_server_free(server);
	return EXIT_DONE;
}

const struct verb verb_version = {
	.name = "version",
	.group = VERB_MORE,
	.usage = "",
	.summary = "Versions of this program, its library and the daemon.",
	.text = "Works without a daemon.",
	.options = no_options,
	.run = run_version,
};

static int run_shutdown(struct ctl *ctl)
{
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_shutdown(ctl->c) < 0) {
		return ctl_fail(ctl);
	}
	if (is_json(ctl)) {
		cJSON *object = json_new();

		json_add_bool(object, "ending", true);
		return json_print(ctl, object);
	}
	if (!ctl->arguments.is_quiet) {
		(void)printf("The daemon ends. What clients have mapped stays valid for them.\n");
	}
	return EXIT_DONE;
}

const struct verb verb_shutdown = {
	.name = "shutdown",
	.group = VERB_OPERATOR,
	.usage = "",
	.summary = "End the daemon in order, as SIGTERM does.",
	.text = "Needs an administrator: root, the daemon's own user, or access.control.",
	.options = no_options,
	.run = run_shutdown,
};
