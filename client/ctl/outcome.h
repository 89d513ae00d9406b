/* SPDX-License-Identifier: Apache-2.0 */
/* What a verb over several models comes to: one that fails does not stop the others. */
#ifndef CTL_OUTCOME_H
#define CTL_OUTCOME_H

#include "render.h"

struct outcome {
	cJSON *object; /* owned; NULL: for people */
	cJSON *models; /* in it; what was done */
	cJSON *errors; /* in it; NULL: none so far */
	int status;    /* of the first failure */
	bool is_over;  /* the next ones would fail alike */
};

/* Connected. */
void outcome_begin(struct ctl *ctl, struct outcome *ret);
bool outcome_goes_on(const struct outcome *outcome);
void outcome_take(struct outcome *outcome, int status);
/* The last call's failure, of what has 'text' as its 'key': printed, or added to "errors", the
 * first of them to "error" as well. Returns its exit status. */
int outcome_fail(struct ctl *ctl, struct outcome *outcome, const char *key, const char *text);
/* Prints the JSON. Returns the exit status. */
int outcome_end(struct ctl *ctl, struct outcome *outcome);

#endif
