/* SPDX-License-Identifier: Apache-2.0 */
/* See plan_report.h. */
#include "plan_report.h"

#include "render.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BAR_WIDTH  12
#define SHARE_SIZE 32

/* Block names may have any length. */
#define NAME_SIZE 4304

static double share_of(uint64_t part, uint64_t whole)
{
	return whole == 0 ? 0.0 : (double)part / (double)whole;
}

/* The place in the list of what stands in the row: the cards as they are listed, then the host. */
static uint32_t row_device(const struct plan_report *report, uint32_t row)
{
	uint32_t host = 0;

	while (host < report->n_devices && strcmp(report->devices[host].name, "cpu") != 0) {
		host++;
	}
	if (row == report->n_devices - 1 && host < report->n_devices) {
		return host;
	}
	return row < host ? row : row + 1;
}

static const char *copy_name(const struct plan_report_block *block, char buffer[NAME_SIZE])
{
	size_t size = block->name_size < NAME_SIZE - 1 ? block->name_size : NAME_SIZE - 1;

	memcpy(buffer, block->name, size);
	buffer[size] = '\0';
	return buffer;
}

/* ---- for programs ---- */

static void add_devices(cJSON *object, const struct plan_report *report)
{
	cJSON *array = json_add_array(object, "devices");

	for (uint32_t i = 0; i < report->n_devices; i++) {
		const struct plan_report_device *device = &report->devices[row_device(report, i)];
		cJSON *item = json_add_item(array);

		json_add_text(item, "name", device->name);
		json_add_number(item, "bytes", device->bytes);
		json_add_number(item, "blocks", device->blocks);
		(void)cJSON_AddNumberToObject(item, "share",
					      share_of(device->bytes, report->bytes));
		if (device->total == DISTORCH_ABSENT) {
			(void)cJSON_AddNullToObject(item, "share_of_device");
		} else {
			(void)cJSON_AddNumberToObject(item, "share_of_device",
						      share_of(device->bytes, device->total));
		}
		json_add_number(item, "free_after", device->free_after);
	}
}

static int print_json(struct ctl *ctl, const struct plan_report *report)
{
	cJSON *object = json_new();
	char name[NAME_SIZE];
	cJSON *array;

	add_devices(object, report);
	array = json_add_array(object, "blocks");
	for (uint64_t i = 0; i < report->n_blocks; i++) {
		const struct plan_report_block *block = &report->blocks[i];
		cJSON *item = json_add_item(array);

		json_add_text(item, "name", copy_name(block, name));
		json_add_number(item, "bytes", block->bytes);
		json_add_text(item, "device", report->devices[block->device].name);
		json_add_number(item, "tensors", block->tensors);
	}
	array = json_add_array(object, "warnings");
	for (uint32_t i = 0; i < report->n_warnings; i++) {
		json_add_string(array, report->warnings[i]);
	}
	json_add_number(object, "bytes_moved_per_pass", report->moved);
	if (report->floor_ns == 0) {
		(void)cJSON_AddNullToObject(object, "floor_ms");
	} else {
		(void)cJSON_AddNumberToObject(object, "floor_ms", (double)report->floor_ns / 1e6);
	}
	return json_print(ctl, object);
}

/* ---- for people ---- */

/* "40 %", and 0.400000 in CSV. */
static void share_cell(bool is_csv, uint64_t part, uint64_t whole, char buffer[SHARE_SIZE])
{
	size_t used = 0;

	if (is_csv) {
		text_append(buffer, SHARE_SIZE, &used, "%.6f", share_of(part, whole));
	} else {
		text_append(buffer, SHARE_SIZE, &used, "%.0f %%", share_of(part, whole) * 100);
	}
}

static int print_devices(struct ctl *ctl, const struct plan_report *report)
{
	static const struct column columns[] = {
		{.title = "DEVICE", .may_cut = true},
		{.title = "SIZE", .is_right = true},
		{.title = "BLOCKS", .is_right = true},
		{.title = "MODEL", .is_right = true},
		{.title = "OF THE DEVICE"},
		{.title = "FREE AFTER", .is_right = true},
	};
	struct sheet sheet;

	sheet_init(&sheet, columns, sizeof columns / sizeof columns[0]);
	for (uint32_t i = 0; i < report->n_devices; i++) {
		const struct plan_report_device *device = &report->devices[row_device(report, i)];
		bool is_csv = ctl->arguments.output == OUTPUT_CSV;
		char size[24];
		char blocks[24];
		char model[SHARE_SIZE];
		char bar[BAR_WIDTH * 3 + 8];
		char share[SHARE_SIZE];
		char part[sizeof bar + SHARE_SIZE] = "";
		size_t used = 0;
		char free_after[24];
		const char *cells[sizeof columns / sizeof columns[0]] =
			{is_csv ? device->name : device->label,
			 size_cell(ctl, device->bytes, size),
			 blocks,
			 model,
			 part,
			 size_cell(ctl, device->free_after, free_after)};

		(void)snprintf(blocks, sizeof blocks, "%llu", (unsigned long long)device->blocks);
		share_cell(is_csv, device->bytes, report->bytes, model);
		if (device->total != DISTORCH_ABSENT) {
			share_cell(is_csv, device->bytes, device->total, share);
			text_append(part, sizeof part, &used, "%s%s%s",
				    is_csv ? ""
					   : bar_text(device->bytes, device->total, BAR_WIDTH, bar,
						      sizeof bar),
				    is_csv ? "" : " ", share);
		}
		sheet_add(&sheet, cells);
	}
	return sheet_print(ctl, &sheet);
}

static int print_blocks(struct ctl *ctl, const struct plan_report *report)
{
	static const struct column columns[] = {
		{.title = "BLOCK", .may_cut = true},
		{.title = "SIZE", .is_right = true},
		{.title = "TENSORS", .is_right = true},
		{.title = "DEVICE"},
	};
	struct sheet sheet;

	sheet_init(&sheet, columns, sizeof columns / sizeof columns[0]);
	for (uint64_t i = 0; i < report->n_blocks; i++) {
		const struct plan_report_block *block = &report->blocks[i];
		char name[NAME_SIZE];
		char size[24];
		char tensors[24];
		const char *cells[sizeof columns / sizeof columns[0]] =
			{copy_name(block, name), size_text(ctl, block->bytes, size), tensors,
			 device_text(report->devices[block->device].name)};

		(void)snprintf(tensors, sizeof tensors, "%llu", (unsigned long long)block->tensors);
		sheet_add(&sheet, cells);
	}
	return sheet_print(ctl, &sheet);
}

/* Runs of blocks on one device. With more than a few of them -o wide is the better picture. */
static void print_runs(const struct plan_report *report)
{
	uint64_t start = 0;
	unsigned n_runs = 0;

	for (uint64_t i = 1; i <= report->n_blocks; i++) {
		n_runs += i == report->n_blocks ||
			  report->blocks[i].device != report->blocks[i - 1].device;
	}
	if (n_runs > 8) {
		(void)printf("\nThe devices take turns (%u times); all blocks: -o wide\n",
			     n_runs - 1);
		return;
	}
	(void)putchar('\n');
	for (uint64_t i = 1; i <= report->n_blocks; i++) {
		char name[NAME_SIZE];
		char first[96];
		char last[96];

		if (i < report->n_blocks &&
		    report->blocks[i].device == report->blocks[start].device) {
			continue;
		}
		(void)safe_text(copy_name(&report->blocks[start], name), first, sizeof first);
		(void)safe_text(copy_name(&report->blocks[i - 1], name), last, sizeof last);
		(void)printf("%-7s %s%s%s\n",
			     device_text(report->devices[report->blocks[start].device].name), first,
			     i - start > 1 ? " … " : "", i - start > 1 ? last : "");
		start = i;
	}
}

/* What a pass copies, and the least time of that where it is known: below 10 ms with a fraction. */
static void print_moved(struct ctl *ctl, const struct plan_report *report)
{
	unsigned long long hundredths = report->floor_ns / 10000;
	char size[24];
	char lapse[32];

	(void)printf("\nEach pass copies %s to where it is used",
		     size_text(ctl, report->moved, size));
	if (hundredths >= 1000) {
		(void)printf(", which takes at least %s",
			     ms_text(report->floor_ns / 1000000, lapse));
	} else if (hundredths > 0) {
		(void)printf(", which takes at least %llu.%02llums", hundredths / 100,
			     hundredths % 100);
	}
	(void)puts(".");
}

static int print_people(struct ctl *ctl, const struct plan_report *report)
{
	const char *slash = strrchr(report->model, '/');
	bool is_quiet = ctl->arguments.is_quiet;
	char name[512];
	char size[24];
	int status;

	if (!is_quiet) {
		(void)printf("%s: %s in %llu block%s, computes on %s\n\n",
			     safe_text(slash == NULL ? report->model : slash + 1, name,
				       sizeof name),
			     size_text(ctl, report->bytes, size),
			     (unsigned long long)report->n_blocks, report->n_blocks == 1 ? "" : "s",
			     report->compute);
	}
	status = print_devices(ctl, report);
	if (status == EXIT_DONE && ctl->arguments.output == OUTPUT_WIDE) {
		(void)putchar('\n');
		status = print_blocks(ctl, report);
	} else if (status == EXIT_DONE && !is_quiet && report->n_blocks > 0) {
		print_runs(report);
	}
	if (!is_quiet && report->moved > 0) {
		print_moved(ctl, report);
	}
	for (uint32_t i = 0; i < report->n_warnings; i++) {
		(void)fprintf(stderr, "warning: %s\n", report->warnings[i]);
	}
	return status;
}

int plan_report_print(struct ctl *ctl, const struct plan_report *report)
{
	if (is_json(ctl)) {
		return print_json(ctl, report);
	}
	return ctl->arguments.output == OUTPUT_CSV ? print_devices(ctl, report)
						   : print_people(ctl, report);
}

/* ---- what the daemon planned ---- */

static const struct distorch_device *find_device(const struct distorch_devices *devices,
						 const char *name)
{
	for (size_t i = 0; i < devices->n_devices; i++) {
		if (strcmp(devices->devices[i]->name, name) == 0) {
			return devices->devices[i];
		}
	}
	return NULL;
}

static void take_shares(const struct distorch_plan *plan, const struct distorch_devices *devices,
			struct plan_report *report)
{
	for (size_t i = 0; i < plan->n_devices && i < PLAN_REPORT_MAX_DEVICES; i++) {
		const struct distorch_share *share = plan->devices[i];
		const struct distorch_device *device = find_device(devices, share->device);
		struct plan_report_device *to = &report->devices[report->n_devices++];
		bool is_host = strcmp(share->device, "cpu") == 0;

		*to = (struct plan_report_device){.name = share->device,
						  .bytes = share->bytes,
						  .blocks = share->blocks,
						  .total = DISTORCH_ABSENT,
						  .free_after = share->free_after};
		(void)snprintf(to->label, sizeof to->label, "%s", device_text(share->device));
		if (device != NULL) {
			to->total = is_host ? device->budget : device->total;
			(void)device_label(device, to->label, sizeof to->label);
		}
		report->bytes += share->bytes;
	}
	for (size_t i = 0; i < plan->n_warnings && i < PLAN_REPORT_MAX_WARNINGS; i++) {
		(void)safe_text(plan->warnings[i], report->warnings[report->n_warnings++],
				sizeof report->warnings[0]);
	}
}

/* Which of the report's devices; the first where it is none of them. */
static uint32_t index_of(const struct plan_report *report, const char *name)
{
	for (uint32_t i = 0; i < report->n_devices; i++) {
		if (strcmp(report->devices[i].name, name) == 0) {
			return i;
		}
	}
	return 0;
}

int plan_report_answer(struct ctl *ctl, const struct distorch_plan *plan)
{
	static struct plan_report report; /* large, and made once */
	struct distorch_devices *devices = NULL;
	struct plan_report_block *blocks;
	int status;

	if (distorch_devices(ctl->c, &devices) < 0) {
		return ctl_fail(ctl);
	}
	blocks = calloc(plan->n_blocks + 1, sizeof *blocks);
	if (blocks == NULL) {
		distorch_devices_free(devices);
		return ctl_refuse(ctl, EXIT_FAILED, "internal", NULL, "no memory for %zu blocks",
				  plan->n_blocks);
	}
	take_shares(plan, devices, &report);
	report.model = ctl->arguments.words[0];
	report.compute = plan->compute == NULL
				 ? "a device that the daemon does not name"
				 : report.devices[index_of(&report, plan->compute)].label;
	report.floor_ns = plan->floor_ns == DISTORCH_ABSENT ? 0 : plan->floor_ns;
	report.moved = plan->moved_per_pass;
	report.blocks = blocks;
	report.n_blocks = report.n_devices == 0 ? 0 : plan->n_blocks;
	for (size_t i = 0; i < plan->n_blocks; i++) {
		const struct distorch_planned_block *block = plan->blocks[i];

		blocks[i] = (struct plan_report_block){.name = block->name,
						       .name_size = (uint32_t)strlen(block->name),
						       .device = index_of(&report, block->device),
						       .bytes = block->bytes,
						       .tensors = block->tensors};
	}
	status = plan_report_print(ctl, &report);
	free(blocks);
	distorch_devices_free(devices);
	return status;
}
