/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl pin, unpin, keep, unkeep: one body, four rows. */
#include "options.h"
#include "outcome.h"
#include "render.h"

#include <stdio.h>
#include <unistd.h>

/* Is there anything that this withdraws? */
static bool has_wish(struct ctl *ctl, const char *name, uint32_t said)
{
	struct distorch_detail *detail = NULL;
	bool is_there = true; /* where that cannot be had the call itself says why */

	if (distorch_show(ctl->c, name, &detail, NULL) == 0) {
		is_there = false;
		for (size_t i = 0; i < detail->n_wishes; i++) {
			const struct distorch_wish *wish = detail->wishes[i];

			is_there = is_there ||
				   (wish->uid == geteuid() &&
				    (said == DISTORCH_SAID_PIN ? wish->pin : wish->keep));
		}
	}
	distorch_detail_free(detail);
	return is_there;
}

static int set_one(struct ctl *ctl, const char *name, const struct distorch_policy *policy,
		   const char *done, struct outcome *outcome)
{
	const bool withdraws = !policy->pin && !policy->keep;
	const bool is_there = !withdraws || outcome->object != NULL || ctl->arguments.is_quiet ||
			      has_wish(ctl, name, policy->said);
	struct distorch_model *model = NULL;
	char text[512];
	char lapse[32];

	if (distorch_set(ctl->c, name, policy, NULL, &model) < 0) {
		return outcome_fail(ctl, outcome, "model", name);
	}
	if (outcome->object != NULL) {
		(void)json_of_model(json_add_item(outcome->models), model);
	} else if (!is_there) {
		(void)printf("There was no %s of yours for %s (id %.6s)\n",
			     policy->said == DISTORCH_SAID_PIN ? "pin" : "keep",
			     safe_text(model->name, text, sizeof text), model->id);
	} else if (!ctl->arguments.is_quiet) {
		(void)printf("%s %s (id %.6s)%s%s%s\n", done,
			     safe_text(model->name, text, sizeof text), model->id,
			     policy->for_ms != 0 ? " for " : "",
			     policy->for_ms != 0 ? ms_text(policy->for_ms, lapse) : "",
			     model->n_where == 0 && (policy->pin || policy->keep)
				     ? "; it is not in memory, so this is a wish for when it is"
				     : "");
	}
	distorch_model_free(model);
	return EXIT_DONE;
}

static int set_all(struct ctl *ctl, struct distorch_policy policy, const char *done)
{
	struct outcome outcome;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	policy.size = sizeof policy;
	if (ctl->arguments.has_for && !ctl->arguments.is_forever) {
		policy.said |= DISTORCH_SAID_FOR;
		policy.for_ms = ctl->arguments.for_ms;
	}
	outcome_begin(ctl, &outcome);
	for (size_t i = 0; i < ctl->arguments.n_words && outcome_goes_on(&outcome); i++) {
		outcome_take(&outcome,
			     set_one(ctl, ctl->arguments.words[i], &policy, done, &outcome));
	}
	return outcome_end(ctl, &outcome);
}

static int run_pin(struct ctl *ctl)
{
	return set_all(ctl, (struct distorch_policy){.said = DISTORCH_SAID_PIN, .pin = true},
		       "Pinned");
}

static int run_unpin(struct ctl *ctl)
{
	return set_all(ctl, (struct distorch_policy){.said = DISTORCH_SAID_PIN}, "Unpinned");
}

static int run_keep(struct ctl *ctl)
{
	return set_all(ctl, (struct distorch_policy){.said = DISTORCH_SAID_KEEP, .keep = true},
		       "Keeping");
}

static int run_unkeep(struct ctl *ctl)
{
	return set_all(ctl, (struct distorch_policy){.said = DISTORCH_SAID_KEEP},
		       "No longer keeping");
}

static const struct argp_option lapse_options[] = {
	{"for", OPTION_FOR, "TIME", 0, "Only for this long (2h, forever)", 0},
	OPTIONS_END,
};

static const struct argp_option no_options[] = {OPTIONS_END};

const struct verb verb_pin = {
	.name = "pin",
	.group = VERB_EVERYDAY,
	.usage = "MODEL…",
	.summary = "Never evict these models.",
	.text = "Examples:\n"
		"  distorchctl pin flux1-dev.safetensors\n"
		"  distorchctl pin --for 2h 9f31",
	.options = lapse_options,
	.min_words = 1,
	.max_words = CTL_MAX_WORDS,
	.words = WORDS_MODELS,
	.run = run_pin,
};

const struct verb verb_unpin = {
	.name = "unpin",
	.group = VERB_MORE,
	.usage = "MODEL…",
	.summary = "Withdraw your pin; another user's pin stays.",
	.text = "Example:\n  distorchctl unpin flux1-dev.safetensors",
	.options = no_options,
	.min_words = 1,
	.max_words = CTL_MAX_WORDS,
	.words = WORDS_MODELS,
	.run = run_unpin,
};

const struct verb verb_keep = {
	.name = "keep",
	.group = VERB_MORE,
	.usage = "MODEL…",
	.summary = "Let these models survive a selective unload (unload --not-kept).",
	.text = "Example:\n  distorchctl keep vae.safetensors",
	.options = lapse_options,
	.min_words = 1,
	.max_words = CTL_MAX_WORDS,
	.words = WORDS_MODELS,
	.run = run_keep,
};

const struct verb verb_unkeep = {
	.name = "unkeep",
	.group = VERB_MORE,
	.usage = "MODEL…",
	.summary = "Withdraw your keep.",
	.text = "Example:\n  distorchctl unkeep vae.safetensors",
	.options = no_options,
	.min_words = 1,
	.max_words = CTL_MAX_WORDS,
	.words = WORDS_MODELS,
	.run = run_unkeep,
};
