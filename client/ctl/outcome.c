/* SPDX-License-Identifier: Apache-2.0 */
/* See outcome.h. */
#include "outcome.h"

void outcome_begin(struct ctl *ctl, struct outcome *ret)
{
	*ret = (struct outcome){.status = EXIT_DONE};
	if (is_json(ctl)) {
		ret->object = json_new();
		ret->models = json_add_array(ret->object, "models");
	}
}

bool outcome_goes_on(const struct outcome *outcome)
{
	return !outcome->is_over && !ctl_interrupted;
}

void outcome_take(struct outcome *outcome, int status)
{
	outcome->status = outcome->status == EXIT_DONE ? status : outcome->status;
	outcome->is_over = outcome->is_over || status == EXIT_NOT_RUNNING;
}

int outcome_fail(struct ctl *ctl, struct outcome *outcome, const char *key, const char *text)
{
	const struct distorch_error *error = distorch_error(ctl->c);
	cJSON *item;

	if (outcome->object == NULL) {
		return ctl_fail(ctl);
	}
	if (outcome->errors == NULL) {
		(void)json_of_error(cJSON_AddObjectToObject(outcome->object, "error"), error);
		outcome->errors = json_add_array(outcome->object, "errors");
	}
	item = json_add_item(outcome->errors);
	json_add_text(item, key, text);
	(void)json_of_error(item, error);
	return ctl_interrupted ? EXIT_INTERRUPTED : error->exit_code;
}

int outcome_end(struct ctl *ctl, struct outcome *outcome)
{
	if (outcome->object != NULL) {
		(void)json_print(ctl, outcome->object);
	}
	return ctl_interrupted ? EXIT_INTERRUPTED : outcome->status;
}
