/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl config, reload: the daemon's settings, and where each came from. */
#include "base/text.h"
#include "options.h"
#include "render.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define BUDGET_PREFIX  "gpu.budget."
#define NO_DAEMON_TEXT "distorchd is neither beside distorchctl nor on the PATH"

static const struct argp_option no_options[] = {OPTIONS_END};

/* Become the daemon with one option, so that there is one reader of its files. Returns only when
 * there is no daemon. */
static void become_daemon(char *flag)
{
	static char name[] = "distorchd";
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

/* Run it in a process of its own, and have its words. Returns its exit status, -1 when it cannot
 * be run. */
static int ask_daemon(char *flag, char *text, size_t text_size)
{
	size_t used = 0;
	int ends[2];
	int status = 0;
	ssize_t n;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		return -1;
	}
	if (pid == 0) {
		(void)dup2(ends[1], STDOUT_FILENO); /* on failure its words are shown, not told */
		(void)dup2(ends[1], STDERR_FILENO);
		become_daemon(flag);
		_exit(127);
	}
	(void)close(ends[1]); /* the child has it */
	while (used < text_size - 1 && (n = read(ends[0], text + used, text_size - 1 - used)) > 0) {
		used += (size_t)n;
	}
	text[used > 0 && text[used - 1] == '\n' ? used - 1 : used] = '\0';
	(void)close(ends[0]);
	return waitpid(pid, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 127
		       ? -1
		       : WEXITSTATUS(status);
}

/* 'name': under which the words stand in JSON. */
static int run_daemon(struct ctl *ctl, char *flag, const char *name)
{
	static char text[65536];
	cJSON *object;
	int status;

	if (!is_json(ctl)) {
		become_daemon(flag);
		return ctl_refuse(ctl, EXIT_FAILED, "not-found", NULL, NO_DAEMON_TEXT);
	}
	status = ask_daemon(flag, text, sizeof text);
	if (status < 0) {
		return ctl_refuse(ctl, EXIT_FAILED, "not-found", NULL, NO_DAEMON_TEXT);
	}
	object = json_new();
	json_add_bool(object, "ok", status == 0);
	json_add_text(object, name, text);
	(void)json_print(ctl, object);
	return status;
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
	if (n_shown == 0 && key != NULL &&
	    strncmp(key, BUDGET_PREFIX, strlen(BUDGET_PREFIX)) == 0) {
		cJSON_Delete(object);
		return ctl_refuse(ctl, EXIT_NO_SUCH_MODEL, "not-found", NULL,
				  "%s is not set: gpu.budget counts there", key);
	}
	if (n_shown == 0) {
		cJSON_Delete(object);
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "distorchctl config show lists all of them",
				  "there is no setting %s", key == NULL ? "" : key);
	}
	return object != NULL ? json_print(ctl, object) : sheet_print(ctl, &sheet);
}

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

static int json_print_reloaded(struct ctl *ctl, const struct distorch_reloaded *reloaded)
{
	cJSON *object = json_new();

	add_keys(object, "applied", reloaded->applied, reloaded->n_applied);
	add_keys(object, "later", reloaded->later, reloaded->n_later);
	json_add_text(object, "notice", reloaded->notice);
	return json_print(ctl, object);
}

static void print_reloaded(const struct distorch_reloaded *reloaded, const char *nothing)
{
	char safe[512];

	print_keys("in effect: ", reloaded->applied, reloaded->n_applied);
	print_keys("from the next start on: ", reloaded->later, reloaded->n_later);
	if (reloaded->notice != NULL) {
		(void)printf("note: %s\n", safe_text(reloaded->notice, safe, sizeof safe));
	} else if (reloaded->n_applied + reloaded->n_later == 0) {
		(void)printf("%s\n", nothing);
	}
}

static int run_show(struct ctl *ctl, const char *key)
{
	struct distorch_settings *settings = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_config(ctl->c, &settings) < 0) {
		return ctl_fail(ctl);
	}
	status = print_settings(ctl, settings, key);
	distorch_settings_free(settings);
	return status;
}

/* 'value' NULL: what was saved is forgotten. */
static int run_set(struct ctl *ctl, const char *key, const char *value)
{
	struct distorch_reloaded *reloaded = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_config_set(ctl->c, key, value, &reloaded) < 0) {
		return ctl_fail(ctl);
	}
	if (is_json(ctl)) {
		status = json_print_reloaded(ctl, reloaded);
	} else if (!ctl->arguments.is_quiet) {
		print_reloaded(reloaded, value != NULL ? "Saved; nothing has changed by it."
						       : "Forgotten; nothing has changed by it.");
	}
	distorch_reloaded_free(reloaded);
	return status;
}

static char check_flag[] = "--check-config";
static char list_flag[] = "--list-config";

/* What stands behind config, and how many words it takes with itself. */
static const struct {
	const char *name;
	size_t n_words;
	const char *usage;
} actions[] = {
	{"show", 1, "config show"},
	{"get", 2, "config get memory.ram"},
	{"set", 3, "config set memory.ram 48G"},
	{"unset", 2, "config unset memory.ram"},
	{"check", 1, "config check (for other files: distorchd --config FILE --check-config)"},
	{"path", 1, "config path"},
};

#define N_ACTIONS (sizeof actions / sizeof actions[0])

static int run_action(struct ctl *ctl, size_t action)
{
	const char *const *words = ctl->arguments.words;

	switch (action) {
	case 1:
		return run_show(ctl, words[1]);
	case 2:
		return run_set(ctl, words[1], words[2]);
	case 3:
		return run_set(ctl, words[1], NULL);
	case 4:
		return run_daemon(ctl, check_flag, "text");
	case 5:
		return run_daemon(ctl, list_flag, "text");
	default:
		return run_show(ctl, NULL);
	}
}

static int run_config(struct ctl *ctl)
{
	const char *what = ctl->arguments.n_words == 0 ? "show" : ctl->arguments.words[0];
	size_t n_words = ctl->arguments.n_words == 0 ? 1 : ctl->arguments.n_words;
	const char *names[N_ACTIONS];
	const char *nearest;
	char hint[64];

	for (size_t i = 0; i < N_ACTIONS; i++) {
		names[i] = actions[i].name;
		if (strcmp(what, actions[i].name) != 0) {
			continue;
		}
		if (n_words != actions[i].n_words) {
			return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL,
					  "usage: distorchctl %s", actions[i].usage);
		}
		return run_action(ctl, i);
	}
	nearest = text_nearest(what, names, N_ACTIONS);
	(void)snprintf(hint, sizeof hint,
		       nearest != NULL ? "did you mean config %s?"
				       : "it has show, get, set, unset, check and path",
		       nearest);
	return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", hint, "config has no \"%s\"", what);
}

const struct verb verb_config = {
	.name = "config",
	.group = VERB_OPERATOR,
	.usage = "[show | get KEY | set KEY VALUE | unset KEY | check | path]",
	.summary = "The effective settings and where each came from; save one; check the files.",
	.text = "Examples:\n"
		"  distorchctl config show\n"
		"  distorchctl config get memory.ram\n"
		"  distorchctl config set memory.idle-evict 30m   saved by the daemon; above\n"
		"                                     its files, below environment and command line\n"
		"  distorchctl config unset memory.idle-evict     forget what was saved\n"
		"  distorchctl config check           read the files; needs no daemon\n"
		"  distorchctl config path            which files are read, in order; likewise\n"
		"set and unset need an administrator.",
	.options = no_options,
	.max_words = 3,
	.has_csv = true,
	.choices = "show get set unset check path",
	.run = run_config,
};

/* ---- reload ---- */

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
		status = json_print_reloaded(ctl, reloaded);
	} else if (!ctl->arguments.is_quiet) {
		print_reloaded(reloaded, "Nothing has changed.");
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
