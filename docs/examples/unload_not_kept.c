/* SPDX-License-Identifier: Apache-2.0 */
/* Free what nobody asked to keep, as a workflow does at its end, and say what happened. */
#include <distorch.h>
#include <stdio.h>
#include <string.h>

static void print(const char *what, const struct distorch_outcome *const *outcomes, size_t n)
{
	size_t i;

	/* By id: names come from strangers, and may hold what steers a terminal. */
	for (i = 0; i < n; i++) {
		printf("%s %s: %llu bytes\n", what, outcomes[i]->id,
		       (unsigned long long)outcomes[i]->bytes);
	}
}

int main(void)
{
	struct distorch_select select;
	struct distorch_report *report;
	struct distorch *c = NULL;

	memset(&select, 0, sizeof select);
	select.size = sizeof select;
	select.not_kept = true;
	if (distorch_open(NULL, NULL, &c) < 0 || distorch_unload(c, &select, &report) < 0) {
		const struct distorch_error *error = distorch_error(NULL);
		int status = error->exit_code;

		fprintf(stderr, "error: %s\n", error->message);
		if (error->hint != NULL) {
			fprintf(stderr, "hint:  %s\n", error->hint);
		}
		distorch_close(c);
		return status;
	}
	print("kept", report->kept, report->n_kept);
	print("unloaded", report->unloaded, report->n_unloaded);
	print("held", report->held, report->n_held);
	printf("freed %llu bytes\n", (unsigned long long)report->total_bytes);
	distorch_report_free(report);
	distorch_close(c);
	return 0;
}
