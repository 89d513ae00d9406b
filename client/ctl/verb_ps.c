/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl ps: what is held, once or again and again. */
#include "base/err.h"
#include "base/units.h"
#include "options.h"
#include "print.h"

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct column columns[] = {
	{.title = "NAME", .may_cut = true},
	{.title = "ID", .is_extra = true},
	{.title = "SIZE", .is_right = true},
	{.title = "WHERE", .may_cut = true},
	{.title = "USED BY"},
	{.title = "LAST USED", .is_extra = true},
	{.title = "STAYS", .may_cut = true},
	{.title = "STATE", .is_wide = true},
	{.title = "UID", .is_wide = true, .is_right = true},
	{.title = "TENSORS", .is_wide = true, .is_right = true},
	{.title = "FORMAT", .is_wide = true},
	{.title = "PATH", .is_wide = true},
};

static void add_row(const struct ctl *ctl, struct sheet *sheet, const struct distorch_model *model)
{
	char id[40];
	char size[24];
	char where[128];
	char users[128];
	char last[32];
	char stays[128];
	char uid[16];
	char tensors[24];
	const char *cells[sizeof columns / sizeof columns[0]];

	(void)snprintf(id, sizeof id, "%.*s", ctl->arguments.output == OUTPUT_CSV ? 32 : 6,
		       model->id);
	(void)where_now_text(ctl, model, where, sizeof where);
	(void)snprintf(uid, sizeof uid, "%u", model->uid);
	(void)snprintf(tensors, sizeof tensors, "%llu", (unsigned long long)model->tensors);
	cells[0] = model->name != NULL ? model->name : "(another user's)";
	cells[1] = id;
	cells[2] = size_cell(ctl, model->bytes, size);
	cells[3] = where;
	cells[4] = users_text(model, users, sizeof users);
	cells[5] = ago_cell(ctl, model->last_used_ms, last);
	cells[6] = stays_text(model, stays, sizeof stays);
	cells[7] = model->state;
	cells[8] = uid;
	cells[9] = tensors;
	cells[10] = model->format;
	cells[11] = model->path;
	sheet_add(sheet, cells);
}

static bool is_wanted(const struct ctl *ctl, const struct distorch_model *model)
{
	if (ctl->arguments.n_words == 0) {
		return true;
	}
	return model->name != NULL && (fnmatch(ctl->arguments.words[0], model->name, 0) == 0 ||
				       strstr(model->name, ctl->arguments.words[0]) != NULL);
}

static void print_none(const struct ctl *ctl)
{
	char pattern[512];

	if (ctl->arguments.n_words > 0) {
		(void)printf("No model matches '%s'.\n",
			     safe_text(ctl->arguments.words[0], pattern, sizeof pattern));
	} else if (ctl->arguments.device != NULL || ctl->arguments.mine) {
		(void)printf("No models of that kind.\n");
	} else {
		(void)printf("No models. Load one: distorchctl load FILE\n");
	}
}

int print_models(struct ctl *ctl, const struct distorch_models *models)
{
	struct sheet sheet;
	size_t n_shown = 0;

	if (is_json(ctl)) {
		cJSON *object = json_new();
		cJSON *array = json_add_array(object, "models");

		for (size_t i = 0; i < models->n_models; i++) {
			if (is_wanted(ctl, models->models[i])) {
				(void)json_of_model(json_add_item(array), models->models[i]);
			}
		}
		return json_print(ctl, object);
	}
	sheet_init(&sheet, columns, sizeof columns / sizeof columns[0]);
	for (size_t i = 0; i < models->n_models; i++) {
		if (!is_wanted(ctl, models->models[i])) {
			continue;
		}
		n_shown++;
		if (ctl->arguments.output == OUTPUT_ID) {
			(void)printf("%s\n", models->models[i]->id);
		} else {
			add_row(ctl, &sheet, models->models[i]);
		}
	}
	if (ctl->arguments.output == OUTPUT_ID) {
		return EXIT_DONE;
	}
	if (n_shown == 0 && ctl->arguments.output != OUTPUT_CSV) {
		print_none(ctl);
		return EXIT_DONE;
	}
	return sheet_print(ctl, &sheet);
}

static int print_once(struct ctl *ctl)
{
	const struct distorch_list_filter filter = {.size = sizeof filter,
						    .device = ctl->arguments.device,
						    .mine = ctl->arguments.mine,
						    .all = ctl->arguments.all};
	struct distorch_models *models = NULL;
	int status;

	if (distorch_list(ctl->c, &filter, &models) < 0) {
		return ctl_fail(ctl);
	}
	status = print_models(ctl, models);
	distorch_models_free(models);
	return status;
}

/* Redraw until Ctrl-C or nobody can read it; when the daemon goes away, say so and try again. */
static int watch(struct ctl *ctl)
{
	ctl_on_interrupt = INTERRUPT_ENDS;
	for (;;) {
		if (ctl->is_tty) {
			(void)fputs("\033[H\033[2J", stdout);
		}
		if (ctl->c == NULL && ctl_open(ctl) < 0) {
			(void)printf("reconnecting…\n");
		} else if (print_once(ctl) == EXIT_NOT_RUNNING) {
			ctl->c = distorch_close(ctl->c);
		}
		if (!ctl_flush()) {
			return EXIT_FAILED;
		}
		(void)usleep((useconds_t)(ctl->arguments.watch_ms < 100 ? 100
					  : ctl->arguments.watch_ms > 60000
						  ? 60000
						  : ctl->arguments.watch_ms) *
			     1000U);
	}
}

/* "ps -w 1s": the time would be taken for a pattern. */
static int refuse_interval(struct ctl *ctl)
{
	const char *word = ctl->arguments.words[0];
	char hint[80];

	(void)snprintf(hint, sizeof hint, "ps --watch=%.32s", strcmp(word, "0") == 0 ? "1s" : word);
	return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", hint,
			  "\"%s\" is taken for a pattern; a time is written behind =", word);
}

static int run(struct ctl *ctl)
{
	struct err err = {0};
	uint64_t ns = 0;
	int status;

	if (ctl->arguments.watch && ctl->arguments.n_words > 0 &&
	    units_parse_duration(ctl->arguments.words[0], &ns, &err) == 0) {
		return refuse_interval(ctl);
	}
	status = ctl_connect(ctl);
	if (status != EXIT_DONE) {
		return status;
	}
	return ctl->arguments.watch ? watch(ctl) : print_once(ctl);
}

static const struct argp_option options[] = {
	{"device", OPTION_DEVICE, "DEVICE", 0, "Only models with bytes there", 0},
	{"mine", OPTION_MINE, NULL, 0, "Only models this user loaded", 0},
	{"all", OPTION_ALL, NULL, 0, "Also models that are merely known", 0},
	{"watch", 'w', "TIME", OPTION_ARG_OPTIONAL,
	 "Again and again, every second or as often as said (--watch=5s), until Ctrl-C", 0},
	OPTIONS_END,
};

static const char *const aliases[] = {"ls", "list", NULL};

const struct verb verb_ps = {
	.name = "ps",
	.aliases = aliases,
	.group = VERB_EVERYDAY,
	.usage = "[PATTERN]",
	.summary = "List the models that are held, where they are, who uses them and how long they "
		   "stay.",
	.text = "Examples:\n"
		"  distorchctl ps\n"
		"  distorchctl ps 'flux*'\n"
		"  distorchctl ps --watch\n"
		"  distorchctl ps --json",
	.options = options,
	.max_words = 1,
	.has_csv = true,
	.has_id = true,
	.words = WORDS_MODELS,
	.run = run,
};
