/* SPDX-License-Identifier: Apache-2.0 */
/* Free what nobody asked to keep, as a workflow does at its end, and say what happened. */
#include <distorch.h>
#include <stdio.h>
#include <string.h>

static void print(const char *what, const struct distorch_outcome *const *outcomes, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		const char *name = outcomes[i]->name != NULL ? outcomes[i]->name : outcomes[i]->id;

		printf("%s %s: %llu bytes, %s\n", what, name,
		       (unsigned long long)outcomes[i]->bytes, outcomes[i]->reason);
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
		fprintf(stderr, "error: %s\n", distorch_error(NULL)->message);
		distorch_close(c);
		return 1;
	}
	print("kept", report->kept, report->n_kept);
	print("unloaded", report->unloaded, report->n_unloaded);
	print("held", report->held, report->n_held);
	printf("freed %llu bytes\n", (unsigned long long)report->total_bytes);
	distorch_report_free(report);
	distorch_close(c);
	return 0;
}
