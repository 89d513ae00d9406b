/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl warm: what the daemon loads at each start. */
#include "options.h"
#include "render.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct argp_option no_options[] = {OPTIONS_END};

static int print_list(struct ctl *ctl, const struct distorch_warm *warm)
{
	static const struct column columns[] = {
		{.title = "PATH", .may_cut = true},  {.title = "ID", .is_extra = true},
		{.title = "SIZE", .is_right = true}, {.title = "STATE"},
		{.title = "FROM", .is_extra = true}, {.title = "WHY", .is_wide = true},
	};
	struct sheet sheet;
	char safe[600];
	bool has_failed = false;

	if (warm->n_entries == 0 && ctl->arguments.output == OUTPUT_TABLE) {
		(void)printf(
			"Nothing is loaded at the start. Add one: distorchctl warm add FILE\n");
		return EXIT_DONE;
	}
	sheet_init(&sheet, columns, sizeof columns / sizeof columns[0]);
	for (size_t i = 0; i < warm->n_entries; i++) {
		const struct distorch_warm_entry *entry = warm->entries[i];
		char id[40] = "-";
		char size[24] = "-";
		const char *cells[] = {entry->path,   id,
				       size,          entry->state,
				       entry->source, entry->text == NULL ? "-" : entry->text};

		if (entry->model != NULL) {
			(void)snprintf(id, sizeof id, "%.*s",
				       ctl->arguments.output == OUTPUT_CSV ? 32 : 6, entry->model);
		}
		if (entry->bytes != DISTORCH_ABSENT) {
			(void)size_cell(ctl, entry->bytes, size);
		}
		sheet_add(&sheet, cells);
		has_failed = has_failed || entry->text != NULL;
	}
	(void)sheet_print(ctl, &sheet);
	for (size_t i = 0;
	     has_failed && ctl->arguments.output == OUTPUT_TABLE && i < warm->n_entries; i++) {
		if (warm->entries[i]->text != NULL) {
			(void)printf("%s\n", safe_text(warm->entries[i]->text, safe, sizeof safe));
		}
	}
	return EXIT_DONE;
}

static int print_json(struct ctl *ctl, const struct distorch_warm *warm)
{
	cJSON *object = json_new();
	cJSON *array = json_add_array(object, "warm");

	for (size_t i = 0; i < warm->n_entries; i++) {
		const struct distorch_warm_entry *entry = warm->entries[i];
		cJSON *item = json_add_item(array);

		json_add_text(item, "path", entry->path);
		json_add_text(item, "source", entry->source);
		json_add_text(item, "state", entry->state);
		json_add_text(item, "model", entry->model);
		json_add_number(item, "bytes", entry->bytes);
		json_add_text(item, "text", entry->text);
	}
	return json_print(ctl, object);
}

static const struct distorch_warm_entry *find_entry(const struct distorch_warm *warm,
						    const char *path)
{
	for (size_t i = 0; i < warm->n_entries; i++) {
		if (strcmp(warm->entries[i]->path, path) == 0) {
			return warm->entries[i];
		}
	}
	return NULL;
}

static void print_done(const struct distorch_warm *warm, const char *path, bool is_added)
{
	const struct distorch_warm_entry *entry = find_entry(warm, path);
	char safe[4200];

	(void)safe_text(path, safe, sizeof safe);
	if (!is_added) {
		(void)printf("%s is loaded at the start no longer. What is in memory stays.\n",
			     safe);
	} else {
		(void)printf("%s is loaded at each start from now on. Now it is %s.\n", safe,
			     entry == NULL ? "gone" : entry->state);
	}
}

/* The daemon has another working folder. Links stay links: what they lead to may change. */
static int make_absolute(struct ctl *ctl, const char *path, char absolute[PATH_MAX])
{
	static char folder[PATH_MAX]; /* large: kept off the stack */

	folder[0] = '\0';
	while (strncmp(path, "./", 2) == 0) {
		path += 2;
	}
	if (path[0] != '/' && getcwd(folder, sizeof folder) == NULL) {
		return ctl_refuse(ctl, EXIT_FAILED, "internal", NULL,
				  "the working folder cannot be told: %s", strerror(errno));
	}
	if (strlen(folder) + strlen(path) + 2 > PATH_MAX) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL, "the path is too long");
	}
	(void)stpcpy(stpcpy(stpcpy(absolute, folder),
			    folder[0] == '\0' || strcmp(folder, "/") == 0 ? "" : "/"),
		     path);
	return EXIT_DONE;
}

static int run_order(struct ctl *ctl, enum distorch_warm_order order)
{
	static char path[PATH_MAX];
	struct distorch_warm *warm = NULL;
	int status = EXIT_DONE;

	if (order != DISTORCH_WARM_LOOK) {
		status = make_absolute(ctl, ctl->arguments.words[1], path);
	}
	if (status == EXIT_DONE) {
		status = ctl_connect(ctl);
	}
	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_warm(ctl->c, order, order == DISTORCH_WARM_LOOK ? NULL : path, &warm) < 0) {
		return ctl_fail(ctl);
	}
	if (is_json(ctl)) {
		status = print_json(ctl, warm);
	} else if (order == DISTORCH_WARM_LOOK) {
		status = print_list(ctl, warm);
	} else if (!ctl->arguments.is_quiet) {
		print_done(warm, path, order == DISTORCH_WARM_ADD);
	}
	distorch_warm_free(warm);
	return status;
}

static int run(struct ctl *ctl)
{
	static const struct {
		const char *name;
		enum distorch_warm_order order;
	} orders[] = {
		{"ls", DISTORCH_WARM_LOOK},       {"list", DISTORCH_WARM_LOOK},
		{"add", DISTORCH_WARM_ADD},       {"rm", DISTORCH_WARM_REMOVE},
		{"remove", DISTORCH_WARM_REMOVE},
	};
	const char *what = ctl->arguments.n_words == 0 ? "ls" : ctl->arguments.words[0];

	for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++) {
		bool takes_file = orders[i].order != DISTORCH_WARM_LOOK;

		if (strcmp(what, orders[i].name) != 0) {
			continue;
		}
		if ((ctl->arguments.n_words > 1) != takes_file) {
			return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL,
					  "usage: distorchctl warm %s%s", what,
					  takes_file ? " FILE" : "");
		}
		return run_order(ctl, orders[i].order);
	}
	return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", "warm add FILE, warm rm FILE, warm ls",
			  "warm has no \"%s\"", what);
}

const struct verb verb_warm = {
	.name = "warm",
	.group = VERB_OPERATOR,
	.usage = "[ls | add FILE | rm FILE]",
	.summary = "The models that are loaded at each start; add one, take one off.",
	.text = "Examples:\n"
		"  distorchctl warm add /srv/models/flux1-dev.safetensors\n"
		"  distorchctl warm\n"
		"The daemon opens the files itself, with its own rights, and loads them in order; "
		"one\n"
		"that cannot be is skipped, and told here and in the log. warm.model of "
		"distorchd.conf(5)\n"
		"lists more. Needs an administrator.",
	.options = no_options,
	.max_words = 2,
	.words = WORDS_FILES,
	.choices = "ls add rm",
	.has_csv = true,
	.run = run,
};
