/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl verify, clients, budget: for whoever runs the daemon. */
#include "base/err.h"
#include "base/units.h"
#include "options.h"
#include "print.h"

#include <stdio.h>
#include <string.h>

static const struct argp_option no_options[] = {OPTIONS_END};

/* ---- verify ---- */

static int print_checks(struct ctl *ctl, const struct distorch_checks *checks)
{
	char name[512];
	char size[24];
	char text[512];
	bool has_findings = false;
	cJSON *object = is_json(ctl) ? json_new() : NULL;
	cJSON *array = object == NULL ? NULL : json_add_array(object, "checks");

	for (size_t i = 0; i < checks->n_checks; i++) {
		const struct distorch_check *check = checks->checks[i];

		has_findings = has_findings || !check->ok;
		if (array != NULL) {
			cJSON *item = json_add_item(array);

			json_add_text(item, "id", check->id);
			json_add_text(item, "name", check->name);
			json_add_bool(item, "ok", check->ok);
			json_add_number(item, "bytes", check->bytes);
			json_add_text(item, "text", check->text);
		} else if (!check->ok || !ctl->arguments.is_quiet) {
			(void)printf("%s %s  %s%s%s\n", check->ok ? "✔" : "✖",
				     safe_text(check->name, name, sizeof name),
				     size_text(ctl, check->bytes, size),
				     check->text != NULL ? "  " : "",
				     check->text != NULL ? safe_text(check->text, text, sizeof text)
							 : "");
		}
	}
	if (object != NULL) {
		(void)json_print(ctl, object);
	} else if (checks->n_checks == 0) {
		(void)printf(
			"No model has a copy of its own in memory, so there is nothing to verify.\n");
	}
	return has_findings ? EXIT_FINDINGS : EXIT_DONE;
}

static int run_verify(struct ctl *ctl)
{
	struct distorch_checks *checks = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_verify(ctl->c, ctl->arguments.words, ctl->arguments.n_words, &checks) < 0) {
		return ctl_fail(ctl);
	}
	status = print_checks(ctl, checks);
	distorch_checks_free(checks);
	return status;
}

const struct verb verb_verify = {
	.name = "verify",
	.group = VERB_OPERATOR,
	.usage = "[MODEL…]",
	.summary = "Hash what is held again and compare it with what was read from the file.",
	.text = "A copy that differs is taken out of service and loaded again. Who uses one on a card\n"
		"could write into it, and is named. Of a model that is in memory in part, that part is hashed.\n"
		"Needs an administrator. Exit status: 9 when something differed.",
	.options = no_options,
	.max_words = CTL_MAX_WORDS,
	.words = WORDS_MODELS,
	.run = run_verify,
};

/* ---- clients ---- */

int print_clients(struct ctl *ctl, const struct distorch_clients *clients)
{
	static const struct column columns[] = {
		{.title = "PID", .is_right = true},
		{.title = "COMMAND", .may_cut = true},
		{.title = "UID", .is_right = true},
		{.title = "LEASES", .is_right = true},
		{.title = "HOLDS", .is_right = true},
		{.title = "SINCE"},
		{.title = "STATE"},
		{.title = "LIBRARY", .is_wide = true},
	};
	struct sheet sheet;

	sheet_init(&sheet, columns, sizeof columns / sizeof columns[0]);
	for (size_t i = 0; i < clients->n_clients; i++) {
		const struct distorch_client *client = clients->clients[i];
		char pid[16];
		char uid[16];
		char leases[24];
		char size[24];
		char age[32];
		const char *cells[] = {
			pid,
			client->label != NULL ? client->label : client->comm,
			uid,
			leases,
			size_cell(ctl, client->held_bytes, size),
			ago_cell(ctl, client->age_ms, age),
			client->connected ? (client->admin ? "connected, admin" : "connected")
					  : "no connection, still maps",
			client->library,
		};

		(void)snprintf(pid, sizeof pid, "%u", client->pid);
		(void)snprintf(uid, sizeof uid, "%u", client->uid);
		(void)snprintf(leases, sizeof leases, "%llu", (unsigned long long)client->leases);
		sheet_add(&sheet, cells);
	}
	return sheet_print(ctl, &sheet);
}

cJSON *json_of_client(cJSON *object, const struct distorch_client *client)
{
	json_add_number(object, "client", client->client);
	json_add_number(object, "pid", client->pid);
	json_add_number(object, "uid", client->uid);
	json_add_text(object, "comm", client->comm);
	json_add_text(object, "label", client->label);
	json_add_text(object, "library", client->library);
	json_add_bool(object, "connected", client->connected);
	json_add_bool(object, "admin", client->admin);
	json_add_number(object, "leases", client->leases);
	json_add_number(object, "held_bytes", client->held_bytes);
	json_add_number(object, "age_ms", client->age_ms);
	return object;
}

static int print_clients_json(struct ctl *ctl, const struct distorch_clients *clients)
{
	cJSON *object = json_new();
	cJSON *array = json_add_array(object, "clients");

	for (size_t i = 0; i < clients->n_clients; i++) {
		(void)json_of_client(json_add_item(array), clients->clients[i]);
	}
	return json_print(ctl, object);
}

static int run_clients(struct ctl *ctl)
{
	struct distorch_clients *clients = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_clients(ctl->c, &clients) < 0) {
		return ctl_fail(ctl);
	}
	status = is_json(ctl) ? print_clients_json(ctl, clients) : print_clients(ctl, clients);
	distorch_clients_free(clients);
	return status;
}

const struct verb verb_clients = {
	.name = "clients",
	.group = VERB_MORE,
	.usage = "",
	.summary = "Who is connected, and what they use or still map.",
	.text = "Other users' clients are shown to administrators only.",
	.options = no_options,
	.has_csv = true,
	.run = run_clients,
};

/* ---- budget ---- */

static int print_budgets(struct ctl *ctl, const struct distorch_devices *devices)
{
	const struct distorch_device *set =
		device_find(devices, ctl->arguments.n_words > 0 ? ctl->arguments.words[0] : "cpu");
	bool is_host = set == NULL || set->uuid == NULL || strcmp(set->name, "cpu") == 0;
	char used[24];
	char budget[24];
	char safe[512];

	for (size_t i = 0; i < devices->n_devices; i++) {
		(void)printf("%-8s budget %s, used %s\n", device_text(devices->devices[i]->name),
			     size_text(ctl, devices->devices[i]->budget, budget),
			     size_text(ctl, devices->devices[i]->used, used));
	}
	if (devices->notice != NULL) {
		(void)printf("note: %s\n", safe_text(devices->notice, safe, sizeof safe));
	} else if (ctl->arguments.save && !ctl->arguments.is_quiet) {
		(void)printf("Saved: it outlives restarts and boots. distorchctl config unset %s%s "
			     "takes it back.\n",
			     is_host ? "memory.ram" : "gpu.budget.", is_host ? "" : set->uuid);
	}
	return EXIT_DONE;
}

/* Thousandths of a percent of what the device has, as bytes. Returns an exit status; what is wrong is
 * printed. */
static int read_share(struct ctl *ctl, uint32_t milli_pct, uint64_t *ret)
{
	const char *const word = ctl->arguments.words[0];
	const uint64_t whole = 100000;
	struct distorch_devices *devices = NULL;
	const struct distorch_device *device;
	uint64_t total;
	char safe[128];

	if (distorch_devices(ctl->c, &devices) < 0) {
		return ctl_fail(ctl);
	}
	device = device_find(devices, word);
	total = device == NULL ? 0 : device->total;
	distorch_devices_free(devices);
	*ret = total / whole * milli_pct + total % whole * milli_pct / whole;
	return total > 0 ? EXIT_DONE
			 : ctl_refuse(ctl, EXIT_NO_SUCH_MODEL, "not-found",
				      "see what there is: distorchctl devices",
				      "nothing is known of a device \"%s\"",
				      safe_text(word, safe, sizeof safe));
}

/* Of the one that is named. */
static int show_budget(struct ctl *ctl)
{
	struct distorch_devices *devices = NULL;
	const struct distorch_device *device;
	struct distorch_devices one;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_budget(ctl->c, NULL, DISTORCH_ABSENT, &devices) < 0) {
		return ctl_fail(ctl);
	}
	device = device_find(devices, ctl->arguments.words[0]);
	one = *devices;
	one.devices = &device;
	one.n_devices = 1;
	if (device == NULL) {
		status = device_refuse(ctl, devices, ctl->arguments.words[0]);
	} else {
		status = is_json(ctl) ? json_print_devices(ctl, &one) : print_budgets(ctl, &one);
	}
	distorch_devices_free(devices);
	return status;
}

static int run_budget(struct ctl *ctl)
{
	struct distorch_devices *devices = NULL;
	struct err err = {0};
	uint64_t bytes = DISTORCH_ABSENT;
	uint32_t milli_pct = 0;
	bool is_share = ctl->arguments.n_words == 2 && strchr(ctl->arguments.words[1], '%') != NULL;
	const char *device = ctl->arguments.n_words > 0 ? ctl->arguments.words[0] : NULL;
	int status;
	int code;

	if (ctl->arguments.n_words == 1 && !ctl->arguments.save) {
		return show_budget(ctl);
	}
	if (ctl->arguments.n_words == 2 &&
	    (is_share ? units_parse_percent(ctl->arguments.words[1], &milli_pct, &err)
		      : units_parse_size_with_unit(ctl->arguments.words[1], &bytes, &err)) < 0) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL, "%s", err.text);
	}
	status = ctl_connect(ctl);
	if (status == EXIT_DONE && is_share) {
		status = read_share(ctl, milli_pct, &bytes);
	}
	if (status != EXIT_DONE) {
		return status;
	}
	code = ctl->arguments.save ? distorch_budget_save(ctl->c, device, bytes, &devices)
				   : distorch_budget(ctl->c, device, bytes, &devices);
	if (code < 0) {
		return ctl_fail(ctl);
	}
	status = is_json(ctl) ? json_print_devices(ctl, devices) : print_budgets(ctl, devices);
	distorch_devices_free(devices);
	return status;
}

static const struct argp_option budget_options[] = {
	{"save", OPTION_SAVE, NULL, 0, "Keep it over restarts and boots", 0},
	OPTIONS_END,
};

const struct verb verb_budget = {
	.name = "budget",
	.group = VERB_OPERATOR,
	.usage = "[DEVICE [SIZE]] [--save]",
	.summary = "Show how much memory may be used, or set it (needs an administrator).",
	.text = "Examples:\n"
		"  distorchctl budget\n"
		"  distorchctl budget cuda:0             of that one alone\n"
		"  distorchctl budget ram 48G            until the daemon ends\n"
		"  distorchctl budget cuda:0 80%         of what the card has\n"
		"  distorchctl budget ram 48G --save     for good\n"
		"  distorchctl budget cuda:0 --save      for good what it is now\n"
		"A size needs its unit: 48G or 512M.\n"
		"What is idle goes when it is lowered; what is in use or pinned stays until it is "
		"not.",
	.options = budget_options,
	.max_words = 2,
	.choices = "ram",
	.run = run_budget,
};
