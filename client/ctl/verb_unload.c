/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl unload: selectively; says what stayed and why. */
#include "options.h"
#include "render.h"

#include <stdio.h>
#include <string.h>

static void add_outcomes(cJSON *object, const char *key,
			 const struct distorch_outcome *const *outcomes, size_t n_outcomes)
{
	cJSON *array = json_add_array(object, key);

	for (size_t i = 0; i < n_outcomes; i++) {
		(void)json_of_outcome(json_add_item(array), outcomes[i]);
	}
}

/* What of it was the page cache of its file, by what there was before: nothing is freed by that. */
static uint64_t cache_bytes(const struct distorch_models *before, const char *id)
{
	uint64_t bytes = 0;

	for (size_t i = 0; before != NULL && i < before->n_models; i++) {
		const struct distorch_model *model = before->models[i];

		for (size_t j = 0; strcmp(model->id, id) == 0 && j < model->n_where; j++) {
			bytes += strcmp(model->where[j]->backing, "file") == 0
					 ? model->where[j]->bytes
					 : 0;
		}
	}
	return bytes;
}

static void print_outcome(struct ctl *ctl, const char *word, const struct distorch_outcome *outcome)
{
	char name[512];
	char size[24];

	(void)printf("%-9s %s  %s", word,
		     safe_text(outcome->name != NULL ? outcome->name : outcome->id, name,
			       sizeof name),
		     size_text(ctl, outcome->bytes, size));
}

static void print_reason(const struct distorch_outcome *outcome, const char *behind)
{
	char reason[512];

	(void)printf("  %s%s", safe_text(outcome->reason, reason, sizeof reason), behind);
}

static void print_unloaded(struct ctl *ctl, const struct distorch_report *report,
			   const struct distorch_models *before)
{
	for (size_t i = 0; i < report->n_unloaded; i++) {
		const struct distorch_outcome *outcome = report->unloaded[i];
		uint64_t cached = cache_bytes(before, outcome->id);
		char size[24];

		print_outcome(ctl, "unloaded", outcome);
		if (outcome->bytes == 0) { /* a reason all the same */
			print_reason(outcome, "");
		} else if (cached > 0) {
			(void)printf("  %s%sin its file's page cache, which the system frees",
				     cached < outcome->bytes ? size_text(ctl, cached, size) : "",
				     cached < outcome->bytes ? " of it " : "");
		}
		(void)putchar('\n');
	}
}

/* With the reason, and with 'behind' where somebody has it. */
static void print_others(struct ctl *ctl, const char *word,
			 const struct distorch_outcome *const *outcomes, size_t n_outcomes,
			 const char *behind)
{
	for (size_t i = 0; i < n_outcomes; i++) {
		print_outcome(ctl, word, outcomes[i]);
		print_reason(outcomes[i], outcomes[i]->n_holders > 0 ? behind : "");
		(void)putchar('\n');
	}
}

/* Then the pins and keeps of what is not there are withdrawn too. */
static bool is_by_name_alone(const struct arguments *arguments)
{
	return arguments->n_words > 0 && arguments->device == NULL && arguments->idle_ms == 0 &&
	       arguments->under == NULL && !arguments->mine;
}

static int report(struct ctl *ctl, const struct distorch_report *report,
		  const struct distorch_models *before)
{
	char size[24];

	if (is_json(ctl)) {
		cJSON *object = json_new();

		add_outcomes(object, "kept", report->kept, report->n_kept);
		add_outcomes(object, "unloaded", report->unloaded, report->n_unloaded);
		add_outcomes(object, "held", report->held, report->n_held);
		json_add_number(object, "total_bytes", report->total_bytes);
		return json_print(ctl, object);
	}
	if (ctl->arguments.is_quiet) {
		return EXIT_DONE;
	}
	print_unloaded(ctl, report, before);
	print_others(ctl, "kept", report->kept, report->n_kept, "");
	print_others(ctl, "held", report->held, report->n_held,
		     "; will be freed when its last user closes it");
	if (report->n_unloaded + report->n_kept + report->n_held == 0) {
		(void)printf("Nothing there to unload%s.\n",
			     is_by_name_alone(&ctl->arguments)
				     ? "; nothing of it is pinned or kept now"
				     : "");
	} else {
		(void)printf("Freed %s.\n", size_text(ctl, report->total_bytes, size));
	}
	return EXIT_DONE;
}

static int run(struct ctl *ctl)
{
	const struct arguments *arguments = &ctl->arguments;
	struct distorch_select select = {.size = sizeof select,
					 .models = arguments->words,
					 .n_models = arguments->n_words,
					 .under = arguments->under,
					 .device = arguments->device,
					 .idle_ms = arguments->idle_ms,
					 .not_kept = arguments->not_kept,
					 .mine = arguments->mine,
					 .all = arguments->all,
					 .mode = arguments->recall ? "recall" : NULL,
					 .recall_ms = arguments->recall_ms};
	struct distorch_models *before = NULL;
	struct distorch_report *answer = NULL;
	int status;

	if (arguments->force) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "--recall 5s asks them to let it go, and waits so long",
				  "--force: nothing takes memory from those who use it");
	}
	if (arguments->n_words == 0 && !arguments->all && !arguments->not_kept &&
	    arguments->idle_ms == 0 && arguments->device == NULL && arguments->under == NULL) {
		return ctl_refuse(
			ctl, EXIT_USAGE, "bad-argument",
			"name models, or say --not-kept, --idle 10m, --under DIR or --all",
			"nothing is selected to unload");
	}
	status = ctl_connect(ctl);
	if (status != EXIT_DONE) {
		return status;
	}
	if (!is_json(ctl) && !arguments->is_quiet) {
		(void)distorch_list(ctl->c, NULL, &before); /* without it less is said */
	}
	status = distorch_unload(ctl->c, &select, &answer) < 0 ? ctl_fail(ctl)
							       : report(ctl, answer, before);
	distorch_report_free(answer);
	distorch_models_free(before);
	return status;
}

static const struct argp_option options[] = {
	{"all", OPTION_ALL, NULL, 0, "Every model that is not pinned", 0},
	{"not-kept", OPTION_NOT_KEPT, NULL, 0, "Every model that is neither kept nor pinned", 0},
	{"mine", OPTION_MINE, NULL, 0, "Only models this user loaded", 0},
	{"device", OPTION_DEVICE, "DEVICE", 0,
	 "Only models with bytes there; all of them goes, from ram and other devices too", 0},
	{"idle", OPTION_IDLE, "TIME", 0, "Only models not used for this long", 0},
	{"under", OPTION_UNDER, "DIR", 0, "Only models whose file lies below this folder", 0},
	{"recall", OPTION_RECALL, "TIME", 0,
	 "Ask those who use it to let it go, and wait so long for them", 0},
	{"force", OPTION_FORCE, NULL, 0,
	 "Refused: memory that somebody maps cannot be taken away; see --recall", 0},
	OPTIONS_END,
};

static const char *const aliases[] = {"stop", "evict", NULL};

const struct verb verb_unload = {
	.name = "unload",
	.aliases = aliases,
	.group = VERB_EVERYDAY,
	.usage = "[MODEL…]",
	.summary = "Free memory selectively; prints what was unloaded, what was kept and why.",
	.text = "Examples:\n"
		"  distorchctl unload flux1-dev.safetensors\n"
		"  distorchctl unload --not-kept          all but the kept and the pinned\n"
		"  distorchctl unload --idle 30m\n"
		"  distorchctl unload --device cuda:0     models with bytes there, whole\n"
		"  distorchctl unload --recall 5s flux1-dev\n\n"
		"A model named outright loses your own pin and keep. A model that somebody uses is "
		"reported as held and goes when its last user is done.",
	.options = options,
	.max_words = CTL_MAX_WORDS,
	.words = WORDS_MODELS,
	.run = run,
};
