/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl verify, clients, budget, config: for whoever runs the daemon. */
#include "base/err.h"
#include "base/units.h"
#include "options.h"
#include "render.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NO_DAEMON_TEXT "distorchd is neither beside distorchctl nor on the PATH"

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
		(void)printf("Nothing is held, so there is nothing to verify.\n");
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
	.text = "A copy that differs is taken out of service and loaded again.\n"
		"Needs an administrator. Exit status: 9 when something differed.",
	.options = no_options,
	.max_words = CTL_MAX_WORDS,
	.words = WORDS_MODELS,
	.run = run_verify,
};

/* ---- clients ---- */

static int print_clients(struct ctl *ctl, const struct distorch_clients *clients)
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
					  : "gone, still maps",
			client->library,
		};

		(void)snprintf(pid, sizeof pid, "%u", client->pid);
		(void)snprintf(uid, sizeof uid, "%u", client->uid);
		(void)snprintf(leases, sizeof leases, "%llu", (unsigned long long)client->leases);
		sheet_add(&sheet, cells);
	}
	return sheet_print(ctl, &sheet);
}

static int print_clients_json(struct ctl *ctl, const struct distorch_clients *clients)
{
	cJSON *object = json_new();
	cJSON *array = json_add_array(object, "clients");

	for (size_t i = 0; i < clients->n_clients; i++) {
		const struct distorch_client *client = clients->clients[i];
		cJSON *item = json_add_item(array);

		json_add_number(item, "client", client->client);
		json_add_number(item, "pid", client->pid);
		json_add_number(item, "uid", client->uid);
		json_add_text(item, "comm", client->comm);
		json_add_text(item, "label", client->label);
		json_add_text(item, "library", client->library);
		json_add_bool(item, "connected", client->connected);
		json_add_bool(item, "admin", client->admin);
		json_add_number(item, "leases", client->leases);
		json_add_number(item, "held_bytes", client->held_bytes);
		json_add_number(item, "age_ms", client->age_ms);
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

static int run_budget(struct ctl *ctl)
{
	struct distorch_devices *devices = NULL;
	struct err err = {0};
	uint64_t bytes = 0;
	const char *device = NULL;
	char used[24];
	char budget[24];
	int status;

	if (ctl->arguments.n_words == 1) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", "distorchctl budget ram 48G",
				  "a budget needs a device and a size");
	}
	if (ctl->arguments.n_words == 2) {
		device = ctl->arguments.words[0];
		if (units_parse_size(ctl->arguments.words[1], &bytes, &err) < 0) {
			return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL, "%s", err.text);
		}
	}
	if (ctl->arguments.save) {
		return ctl_refuse(ctl, EXIT_BAD_FILE, "unsupported",
				  "set memory.ram in distorchd.conf instead",
				  "this version does not save budgets");
	}
	status = ctl_connect(ctl);
	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_budget(ctl->c, device, bytes, &devices) < 0) {
		return ctl_fail(ctl);
	}
	if (is_json(ctl)) {
		status = json_print_devices(ctl, devices);
	} else {
		for (size_t i = 0; i < devices->n_devices; i++) {
			(void)printf("%-8s budget %s, used %s\n",
				     device_text(devices->devices[i]->name),
				     size_text(ctl, devices->devices[i]->budget, budget),
				     size_text(ctl, devices->devices[i]->used, used));
		}
	}
	distorch_devices_free(devices);
	return status;
}

static const struct argp_option budget_options[] = {
	{"save", OPTION_SAVE, NULL, 0, "Keep it over a restart (a later version)", 0},
	OPTIONS_END,
};

const struct verb verb_budget = {
	.name = "budget",
	.group = VERB_OPERATOR,
	.usage = "[DEVICE SIZE]",
	.summary = "Show how much memory may be used, or set it (needs an administrator).",
	.text = "Examples:\n  distorchctl budget\n  distorchctl budget ram 48G",
	.options = budget_options,
	.max_words = 2,
	.choices = "ram",
	.run = run_budget,
};

/* ---- config ---- */

/* Become the daemon's own check, so that there is one reader of its files. Returns only when
 * there is no daemon. */
static void become_check(void)
{
	static char name[] = "distorchd";
	static char flag[] = "--check-config";
	char *const arguments[] = {name, flag, NULL};
	char path[PATH_MAX];
	ssize_t size = readlink("/proc/self/exe", path, sizeof path - 16);
	char *slash;

	if (size > 0) {
		path[size] = '\0';
		slash = strrchr(path, '/');
		if (slash != NULL) {
			(void)snprintf(slash + 1, 16, "distorchd");
			(void)execv(path, arguments);
		}
	}
	(void)execvp(name, arguments);
}

/* Run it in a process of its own and tell its words and its exit status as JSON. */
static int run_check_json(struct ctl *ctl)
{
	char text[4096];
	size_t used = 0;
	int ends[2];
	int status = 0;
	cJSON *object;
	ssize_t n;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		return ctl_refuse(ctl, EXIT_FAILED, "internal", NULL, "no process can be started");
	}
	if (pid == 0) {
		(void)dup2(ends[1], STDOUT_FILENO); /* on failure its words are shown, not told */
		(void)dup2(ends[1], STDERR_FILENO);
		become_check();
		_exit(127);
	}
	(void)close(ends[1]); /* the child has it */
	while (used < sizeof text - 1 &&
	       (n = read(ends[0], text + used, sizeof text - 1 - used)) > 0) {
		used += (size_t)n;
	}
	text[used > 0 && text[used - 1] == '\n' ? used - 1 : used] = '\0';
	(void)close(ends[0]);
	if (waitpid(pid, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 127) {
		return ctl_refuse(ctl, EXIT_FAILED, "not-found", NULL, NO_DAEMON_TEXT);
	}
	object = json_new();
	json_add_bool(object, "ok", WEXITSTATUS(status) == 0);
	json_add_text(object, "text", text);
	(void)json_print(ctl, object);
	return WEXITSTATUS(status);
}

static int run_check(struct ctl *ctl)
{
	if (is_json(ctl)) {
		return run_check_json(ctl);
	}
	become_check();
	return ctl_refuse(ctl, EXIT_FAILED, "not-found", NULL, NO_DAEMON_TEXT);
}

static int print_settings(struct ctl *ctl, const struct distorch_settings *settings,
			  const char *key)
{
	static const struct column columns[] = {
		{.title = "SETTING"},
		{.title = "VALUE", .may_cut = true},
		{.title = "FROM"},
	};
	cJSON *object = is_json(ctl) ? json_new() : NULL;
	cJSON *array = object == NULL ? NULL : json_add_array(object, "settings");
	struct sheet sheet;
	size_t n_shown = 0;

	sheet_init(&sheet, columns, 3);
	for (size_t i = 0; i < settings->n_settings; i++) {
		const struct distorch_setting *setting = settings->settings[i];
		const char *cells[] = {setting->key, setting->value, setting->source};

		if (key != NULL && strcmp(key, setting->key) != 0) {
			continue;
		}
		n_shown++;
		if (array != NULL) {
			cJSON *item = json_add_item(array);

			json_add_text(item, "key", setting->key);
			json_add_text(item, "value", setting->value);
			json_add_text(item, "source", setting->source);
		} else {
			sheet_add(&sheet, cells);
		}
	}
	if (n_shown == 0) {
		cJSON_Delete(object);
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "distorchctl config show lists all of them",
				  "there is no setting %s", key == NULL ? "" : key);
	}
	return object != NULL ? json_print(ctl, object) : sheet_print(ctl, &sheet);
}

static int run_config(struct ctl *ctl)
{
	const char *what = ctl->arguments.n_words == 0 ? "show" : ctl->arguments.words[0];
	struct distorch_settings *settings = NULL;
	int status;

	if (strcmp(what, "check") == 0 && ctl->arguments.n_words > 1) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "distorchd --config FILE --check-config",
				  "config check reads the usual files and takes no \"%s\"",
				  ctl->arguments.words[1]);
	}
	if (strcmp(what, "check") == 0) {
		return run_check(ctl);
	}
	if (strcmp(what, "show") != 0 && strcmp(what, "get") != 0) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", "config show, get KEY or check",
				  "config has no \"%s\"", what);
	}
	if (strcmp(what, "get") == 0 && ctl->arguments.n_words != 2) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "distorchctl config get memory.ram", "config get needs one key");
	}
	status = ctl_connect(ctl);
	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_config(ctl->c, &settings) < 0) {
		return ctl_fail(ctl);
	}
	status = print_settings(ctl, settings,
				strcmp(what, "get") == 0 ? ctl->arguments.words[1] : NULL);
	distorch_settings_free(settings);
	return status;
}

const struct verb verb_config = {
	.name = "config",
	.group = VERB_OPERATOR,
	.usage = "[show | get KEY | check]",
	.summary = "The effective settings and where each came from; or check the files.",
	.text = "Examples:\n"
		"  distorchctl config show\n"
		"  distorchctl config get memory.ram\n"
		"  distorchctl config check            needs no daemon",
	.options = no_options,
	.max_words = 2,
	.has_csv = true,
	.choices = "show get check",
	.run = run_config,
};

static void add_keys(cJSON *object, const char *name, const char *const *keys, size_t n_keys)
{
	cJSON *array = json_add_array(object, name);

	for (size_t i = 0; i < n_keys; i++) {
		json_add_string(array, keys[i]);
	}
}

static void print_keys(const char *what, const char *const *keys, size_t n_keys)
{
	for (size_t i = 0; i < n_keys; i++) {
		(void)printf("%s%s%s", i == 0 ? what : ", ", keys[i], i + 1 == n_keys ? "\n" : "");
	}
}

static int run_reload(struct ctl *ctl)
{
	struct distorch_reloaded *reloaded = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_reload(ctl->c, &reloaded) < 0) {
		return ctl_fail(ctl);
	}
	if (is_json(ctl)) {
		cJSON *object = json_new();

		add_keys(object, "applied", reloaded->applied, reloaded->n_applied);
		add_keys(object, "later", reloaded->later, reloaded->n_later);
		status = json_print(ctl, object);
	} else if (!ctl->arguments.is_quiet) {
		print_keys("in effect: ", reloaded->applied, reloaded->n_applied);
		print_keys("from the next start on: ", reloaded->later, reloaded->n_later);
		if (reloaded->n_applied + reloaded->n_later == 0) {
			(void)printf("Nothing has changed.\n");
		}
	}
	distorch_reloaded_free(reloaded);
	return status;
}

const struct verb verb_reload = {
	.name = "reload",
	.group = VERB_OPERATOR,
	.usage = "",
	.summary = "Read the configuration again; a fault in it changes nothing.",
	.text = "Says what is in effect now, and what is from the next start on.\n"
		"Needs an administrator: root, the daemon's own user, or access.control.",
	.options = no_options,
	.run = run_reload,
};
