/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl store, metrics: what is kept for the daemon's next life, and its numbers. */
#include "options.h"
#include "render.h"

#include <stdio.h>
#include <string.h>

static const struct argp_option no_options[] = {OPTIONS_END};

/* ---- store ---- */

static void add_row(const struct ctl *ctl, struct sheet *sheet,
		    const struct distorch_parked *parked)
{
	char id[40] = "-";
	char generation[24] = "-";
	char size[24] = "-";
	const char *cells[] = {parked->kind, "-",           id,          generation,
			       size,         parked->state, parked->name};

	if (parked->model != NULL) {
		(void)snprintf(id, sizeof id, "%.*s", ctl->arguments.output == OUTPUT_CSV ? 32 : 6,
			       parked->model);
		cells[1] = parked->model_name;
	}
	if (parked->generation != DISTORCH_ABSENT) {
		(void)snprintf(generation, sizeof generation, "%llu",
			       (unsigned long long)parked->generation);
	}
	if (parked->bytes != DISTORCH_ABSENT) {
		(void)size_cell(ctl, parked->bytes, size);
	}
	sheet_add(sheet, cells);
}

static int print_store(struct ctl *ctl, const struct distorch_store *store)
{
	static const struct column columns[] = {
		{.title = "KIND"},
		{.title = "MODEL", .may_cut = true},
		{.title = "ID", .is_extra = true},
		{.title = "GENERATION", .is_right = true, .is_extra = true},
		{.title = "SIZE", .is_right = true},
		{.title = "STATE"},
		{.title = "PARKED AS", .is_wide = true},
	};
	struct sheet sheet;
	char size[24];

	if (ctl->arguments.output != OUTPUT_CSV && !store->survives_restart) {
		(void)printf("Nobody keeps anything for this daemon: its models do not survive a "
			     "restart.\nStart it by distorchd-hold, or as a service of systemd "
			     "with a descriptor store.\n");
		return EXIT_DONE;
	}
	if (ctl->arguments.output != OUTPUT_CSV && !ctl->arguments.is_quiet) {
		(void)printf("survives a restart: yes   %llu of %llu descriptors   images %s\n",
			     (unsigned long long)store->descriptors,
			     (unsigned long long)store->max_descriptors,
			     size_text(ctl, store->bytes, size));
	}
	sheet_init(&sheet, columns, sizeof columns / sizeof columns[0]);
	for (size_t i = 0; i < store->n_parked; i++) {
		add_row(ctl, &sheet, store->parked[i]);
	}
	return sheet_print(ctl, &sheet);
}

static int print_store_json(struct ctl *ctl, const struct distorch_store *store)
{
	cJSON *object = json_new();
	cJSON *array;

	json_add_bool(object, "survives_restart", store->survives_restart);
	json_add_number(object, "descriptors", store->descriptors);
	json_add_number(object, "max_descriptors", store->max_descriptors);
	json_add_number(object, "bytes", store->bytes);
	array = json_add_array(object, "parked");
	for (size_t i = 0; i < store->n_parked; i++) {
		const struct distorch_parked *parked = store->parked[i];
		cJSON *item = json_add_item(array);

		json_add_text(item, "name", parked->name);
		json_add_text(item, "kind", parked->kind);
		json_add_text(item, "state", parked->state);
		json_add_text(item, "model", parked->model);
		json_add_text(item, "model_name", parked->model_name);
		json_add_number(item, "generation", parked->generation);
		json_add_number(item, "bytes", parked->bytes);
	}
	return json_print(ctl, object);
}

static int run_store(struct ctl *ctl)
{
	struct distorch_store *store = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_store(ctl->c, &store) < 0) {
		return ctl_fail(ctl);
	}
	status = is_json(ctl) ? print_store_json(ctl, store) : print_store(ctl, store);
	distorch_store_free(store);
	return status;
}

const struct verb verb_store = {
	.name = "store",
	.group = VERB_OPERATOR,
	.usage = "",
	.summary = "What is kept for the daemon's next life by whoever restarts it.",
	.text = "Each model has a table, an image and its source file, or how it lies over devices "
		"(placement)\ninstead of an image; \"kept\" is what whoever keeps it (distorchd-hold, "
		"systemd) has\nconfirmed. Needs an administrator.",
	.options = no_options,
	.has_csv = true,
	.run = run_store,
};

/* ---- metrics ---- */

static int run_metrics(struct ctl *ctl)
{
	struct distorch_metrics *metrics = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_metrics(ctl->c, &metrics) < 0) {
		return ctl_fail(ctl);
	}
	if (is_json(ctl)) {
		cJSON *object = json_new();

		json_add_text(object, "text", metrics->text);
		status = json_print(ctl, object);
	} else {
		(void)fputs(metrics->text, stdout); /* main looks whether it could be written */
	}
	distorch_metrics_free(metrics);
	return status;
}

const struct verb verb_metrics = {
	.name = "metrics",
	.group = VERB_OPERATOR,
	.usage = "",
	.summary = "What there is to measure, as OpenMetrics text.",
	.text = "Example, for node_exporter's textfile collector:\n"
		"  distorchctl metrics > prom.new && mv prom.new distorchd.prom\n"
		"Needs an administrator. No label names a file or a user.",
	.options = no_options,
	.run = run_metrics,
};
