/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl place: move the blocks of a model between devices. */
#include "options.h"
#include "placement.h"
#include "print.h"
#include "progress.h"

#include <stdio.h>

static int print_moved(struct ctl *ctl, const struct distorch_moved *moved)
{
	const struct distorch_model *model = moved->model;
	char name[512];
	char where[512];
	char safe[1024];
	char size[24];
	char duration[32];

	if (is_json(ctl)) {
		cJSON *object = json_of_model(json_new(), model);
		cJSON *evicted = json_add_array(object, "evicted");

		json_add_number(object, "moved_bytes", moved->moved_bytes);
		json_add_number(object, "duration_ms", moved->duration_ms);
		for (size_t i = 0; i < moved->n_evicted; i++) {
			(void)json_of_outcome(json_add_item(evicted), moved->evicted[i]);
		}
		add_warnings(object, moved->warnings, moved->n_warnings);
		return json_print(ctl, object);
	}
	if (ctl->arguments.is_quiet) {
		return EXIT_DONE;
	}
	(void)printf("%s (id %.6s) lies in %s now",
		     safe_text(model->name != NULL ? model->name : model->id, name, sizeof name),
		     model->id,
		     safe_text(where_text(ctl, model, where, sizeof where), safe, sizeof safe));
	if (moved->moved_bytes != DISTORCH_ABSENT) {
		(void)printf(": %s copied", size_text(ctl, moved->moved_bytes, size));
	}
	if (moved->duration_ms != DISTORCH_ABSENT) {
		(void)printf(" in %s", ms_text(moved->duration_ms, duration));
	}
	(void)putchar('.');
	if (model->n_older > 0) {
		(void)printf(" %s.", safe_text(older_text(ctl, model, where, sizeof where), safe,
					       sizeof safe));
	}
	print_evicted(ctl, stdout, moved->evicted, moved->n_evicted);
	(void)putchar('\n');
	print_warnings(ctl, moved->warnings, moved->n_warnings);
	return EXIT_DONE;
}

static int run(struct ctl *ctl)
{
	struct watcher watcher = {.ctl = ctl, .doing = "Moving", .name = ctl->arguments.words[0]};
	struct placement placement;
	struct distorch_moved *moved = NULL;
	const char *allocation = ctl->arguments.n_words > 1 ? ctl->arguments.words[1] : NULL;
	int status;
	int code;

	if (allocation == NULL && ctl->arguments.virtual_vram == NULL) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "distorchctl place MODEL 'cuda:0,6gb;cpu,*', or --virtual-vram 4",
				  "it is not said where its blocks are to go");
	}
	status = placement_read(ctl, allocation, &placement);
	if (status == EXIT_DONE) {
		status = ctl_connect(ctl);
	}
	if (status != EXIT_DONE) {
		return status;
	}
	placement.wanted.progress = progress_show;
	placement.wanted.user = &watcher;
	progress_begin(&watcher);
	code = distorch_place(ctl->c, ctl->arguments.words[0], &placement.wanted, &moved);
	progress_end(&watcher);
	if (code < 0) {
		return ctl_fail(ctl);
	}
	status = print_moved(ctl, moved);
	distorch_moved_free(moved);
	return status;
}

static const struct argp_option options[] = {
	{"compute", OPTION_COMPUTE, "DEVICE", 0, "Device that computes", 0},
	{"virtual-vram", OPTION_VIRTUAL_VRAM, "SIZE", 0,
	 "So much of it lives off the compute device, on the donors; a number alone is GiB", 0},
	{"donors", OPTION_DONORS, "LIST", 0,
	 "Who takes what --virtual-vram sends off, in order (ram)", 0},
	{"strategy", OPTION_STRATEGY, "STRATEGY", 0,
	 "contiguous (usual for a string) or spread (usual for auto and --virtual-vram)", 0},
	{"granularity", OPTION_GRANULARITY, "UNIT", 0, "block (usual) or tensor", 0},
	OPTIONS_END,
};

static const char *const aliases[] = {"move", NULL};

const struct verb verb_place = {
	.name = "place",
	.aliases = aliases,
	.group = VERB_MORE,
	.usage = "MODEL ['ALLOCATION']",
	.summary = "Move the blocks of a model between devices, all or nothing.",
	.text = "Examples:\n"
		"  distorchctl place flux1-dev 'cuda:0,6gb;cpu,*'\n"
		"  distorchctl place flux1-dev cuda:1\n"
		"  distorchctl place flux1-dev ram\n"
		"  distorchctl place flux1-dev --virtual-vram 4 --compute cuda:0\n\n"
		"Who uses the model keeps what he has mapped; who attaches it afterwards has the "
		"blocks where they lie then. Ctrl-C cancels it, and they stay where they are. distorchctl "
		"plan shows what a string would do.\n"
		"Exit status: 2 the string is wrong (item and column are named), 4 no such model, 6 "
		"it does not fit.",
	.options = options,
	.min_words = 1,
	.max_words = 2,
	.words = WORDS_MODELS,
	.run = run,
};
