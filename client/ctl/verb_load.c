/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl load: with a progress bar on a terminal; Ctrl-C cancels at the daemon. */
#include "base/text.h"
#include "options.h"
#include "outcome.h"
#include "placement.h"
#include "print.h"
#include "progress.h"

#include <stdio.h>
#include <string.h>

static struct distorch_policy read_policy(const struct arguments *arguments)
{
	struct distorch_policy policy = {.size = sizeof policy};

	if (arguments->pin) {
		policy.said |= DISTORCH_SAID_PIN;
		policy.pin = true;
	}
	if (arguments->keep) {
		policy.said |= DISTORCH_SAID_KEEP;
		policy.keep = true;
	}
	if (arguments->has_for && (arguments->pin || arguments->keep)) {
		policy.said |= arguments->is_forever ? 0U : (uint32_t)DISTORCH_SAID_FOR;
		policy.for_ms = arguments->for_ms;
	} else if (arguments->has_for) {
		policy.said |= DISTORCH_SAID_TTL;
		policy.ttl_ms = arguments->for_ms; /* forever: no ttl */
	}
	if (arguments->has_priority) {
		policy.said |= DISTORCH_SAID_PRIORITY;
		policy.priority = arguments->priority;
	}
	return policy;
}

void print_evicted(struct ctl *ctl, FILE *out, const struct distorch_outcome *const *evicted,
		   size_t n_evicted)
{
	char name[512];
	char size[24];

	for (size_t i = 0; i < n_evicted; i++) {
		(void)fprintf(out, "%s%s (%s)", i == 0 ? " Evicted: " : ", ",
			      safe_text(evicted[i]->name != NULL ? evicted[i]->name
								 : evicted[i]->id,
					name, sizeof name),
			      size_text(ctl, evicted[i]->bytes, size));
	}
	(void)fputs(n_evicted > 0 ? "." : "", out);
}

/* What was said of it besides. */
static void print_said(const struct arguments *arguments)
{
	char lapse[32];

	if (!arguments->pin && !arguments->keep) {
		return;
	}
	(void)printf(" %s",
		     arguments->pin ? arguments->keep ? "Pinned and kept" : "Pinned" : "Kept");
	if (arguments->has_for && !arguments->is_forever) {
		(void)printf(" for %s", ms_text(arguments->for_ms, lapse));
	}
	(void)putchar('.');
}

void print_warnings(const struct ctl *ctl, const char *const *warnings, size_t n_warnings)
{
	char safe[512];

	for (size_t i = 0; i < n_warnings && !ctl->arguments.is_quiet; i++) {
		(void)fprintf(stderr, "warning: %s\n", safe_text(warnings[i], safe, sizeof safe));
	}
}

void add_warnings(cJSON *object, const char *const *warnings, size_t n_warnings)
{
	cJSON *array = json_add_array(object, "warnings");

	for (size_t i = 0; i < n_warnings; i++) {
		json_add_string(array, warnings[i]);
	}
}

/* 'path' names it where the daemon has no name for it yet. */
static void print_loaded(struct ctl *ctl, const struct distorch_loaded *loaded, const char *path)
{
	const struct distorch_model *model = loaded->model;
	char name[512];
	char size[24];
	char duration[32];
	char places[512];
	char where[1024];

	(void)safe_text(model->name != NULL ? model->name : path_base(path), name, sizeof name);
	(void)size_text(ctl, model->bytes, size);
	(void)safe_text(where_text(ctl, model, places, sizeof places), where, sizeof where);
	if (strcmp(loaded->source, "begun") == 0) {
		(void)printf("Loading %s (id %.6s, %s) in the background. See it: distorchctl ps\n",
			     name, model->id, size);
		return;
	}
	if (strcmp(loaded->source, "ram") == 0) {
		(void)printf("%s (id %.6s, %s, %llu tensor%s) is in %s already.", name, model->id,
			     size, (unsigned long long)model->tensors,
			     model->tensors == 1 ? "" : "s", where);
	} else {
		(void)printf("Loaded %s (id %.6s, %s, %llu tensor%s) into %s in %s.", name,
			     model->id, size, (unsigned long long)model->tensors,
			     model->tensors == 1 ? "" : "s", where,
			     ms_text(loaded->duration_ms, duration));
	}
	print_said(&ctl->arguments);
	print_evicted(ctl, stdout, loaded->evicted, loaded->n_evicted);
	(void)putchar('\n');
	print_warnings(ctl, loaded->warnings, loaded->n_warnings);
	if (ctl->is_tty && !ctl->arguments.is_quiet) {
		(void)printf("See it: distorchctl show %.4s\n", model->id);
	}
}

static void add_loaded(cJSON *array, const struct distorch_loaded *loaded)
{
	cJSON *object = json_of_model(json_add_item(array), loaded->model);
	cJSON *evicted = json_add_array(object, "evicted");

	json_add_text(object, "source", loaded->source);
	json_add_number(object, "duration_ms", loaded->duration_ms);
	for (size_t i = 0; i < loaded->n_evicted; i++) {
		(void)json_of_outcome(json_add_item(evicted), loaded->evicted[i]);
	}
	add_warnings(object, loaded->warnings, loaded->n_warnings);
}

static int load_one(struct ctl *ctl, const char *path, const struct distorch_placement *placement,
		    struct outcome *outcome)
{
	const struct arguments *arguments = &ctl->arguments;
	struct watcher watcher = {.ctl = ctl, .doing = "Loading", .name = path};
	struct distorch_load_options options = {.size = sizeof options,
						.format = arguments->format,
						.allocation = placement->allocation,
						.compute = placement->compute,
						.virtual_vram = placement->virtual_vram,
						.donors = placement->donors,
						.n_donors = placement->n_donors,
						.strategy = placement->strategy,
						.granularity = placement->granularity,
						.backing = arguments->backing,
						.policy = read_policy(arguments),
						.no_wait = arguments->no_wait,
						.progress = progress_show,
						.user = &watcher};
	struct distorch_loaded *loaded = NULL;
	int code;

	progress_begin(&watcher);
	code = distorch_load(ctl->c, path, &options, &loaded, NULL);
	progress_end(&watcher);
	if (code < 0) {
		return outcome_fail(ctl, outcome, "path", path);
	}
	if (outcome->object != NULL) {
		add_loaded(outcome->models, loaded);
	} else if (arguments->output == OUTPUT_ID) {
		(void)printf("%s\n", loaded->model->id);
	} else if (!arguments->is_quiet) {
		print_loaded(ctl, loaded, path);
	}
	distorch_loaded_free(loaded);
	return EXIT_DONE;
}

static int run(struct ctl *ctl)
{
	struct placement placement;
	struct outcome outcome;
	int status = placement_read(ctl, ctl->arguments.allocation, &placement);

	if (status == EXIT_DONE) {
		status = ctl_connect(ctl);
	}
	if (status != EXIT_DONE) {
		return status;
	}
	outcome_begin(ctl, &outcome);
	for (size_t i = 0; i < ctl->arguments.n_words && outcome_goes_on(&outcome); i++) {
		outcome_take(&outcome,
			     load_one(ctl, ctl->arguments.words[i], &placement.wanted, &outcome));
	}
	return outcome_end(ctl, &outcome);
}

static const struct argp_option options[] = {
	{"to", OPTION_TO, "ALLOCATION", 0,
	 "Where its blocks go (ram): 'cuda:0,6gb;cpu,*', cuda:1, auto; see plan --help", 0},
	{"compute", OPTION_COMPUTE, "DEVICE", 0, "Device that computes", 0},
	{"virtual-vram", OPTION_VIRTUAL_VRAM, "SIZE", 0,
	 "So much of it lives off the compute device, on the donors; a number alone is GiB", 0},
	{"donors", OPTION_DONORS, "LIST", 0,
	 "Who takes what --virtual-vram sends off, in order (ram)", 0},
	{"strategy", OPTION_STRATEGY, "STRATEGY", 0, "contiguous or spread", 0},
	{"granularity", OPTION_GRANULARITY, "UNIT", 0, "block (usual) or tensor", 0},
	{"format", OPTION_FORMAT, "FORMAT", 0,
	 "auto (by content), safetensors, gguf; raw: any file as one tensor \"data\" of bytes", 0},
	{"backing", OPTION_BACKING, "KIND", 0,
	 "image: a copy that nobody can change or reclaim; file: its own page cache; auto: the "
	 "file while it is warm and nothing is to stay, else an image",
	 0},
	{"pin", OPTION_PIN, NULL, 0, "Never evict it", 0},
	{"keep", OPTION_KEEP, NULL, 0, "Let it survive a selective unload", 0},
	{"for", OPTION_FOR, "TIME", 0,
	 "Evict it after this long without use (2h, forever); with --pin or --keep: these lapse "
	 "after this long",
	 0},
	{"priority", OPTION_PRIORITY, "N", 0, "-100 to 100; lower ones are evicted first", 0},
	{"no-wait", OPTION_NO_WAIT, NULL, 0, "Return once the load has begun", 0},
	OPTIONS_END,
};

const struct verb verb_load = {
	.name = "load",
	.group = VERB_EVERYDAY,
	.usage = "FILE…",
	.summary = "Load model files into memory, once for every process. Loading what is loaded "
		   "already changes nothing.",
	.text = "Examples:\n"
		"  distorchctl load model.safetensors\n"
		"  distorchctl load --keep vae.safetensors clip.safetensors\n"
		"  distorchctl load llama-8b.Q4_K_M.gguf\n"
		"  distorchctl load model.safetensors.index.json\n"
		"  distorchctl load --pin --priority 10 flux1-dev.safetensors\n"
		"  distorchctl load --for 2h --no-wait sdxl.safetensors\n"
		"  distorchctl load --pin --for 2h sdxl.safetensors\n"
		"  distorchctl load --to 'cuda:0,6gb;cpu,*' flux1-dev.safetensors\n\n"
		"A model of several files is named by its index, or by one of them (also of a "
		"GGUF file in parts): all of them are loaded, as one model.\n"
		"A file that fails does not stop the others; the exit status is that of the first "
		"failure.\n"
		"Exit status: 0 done, 6 not enough memory, 7 bad or unsupported file, 130 "
		"cancelled by Ctrl-C.",
	.options = options,
	.min_words = 1,
	.max_words = CTL_MAX_WORDS,
	.has_id = true,
	.words = WORDS_FILES,
	.run = run,
};
