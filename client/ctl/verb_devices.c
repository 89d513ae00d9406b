/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl devices: memory that can hold models; one with all that is known of it. */
#include "options.h"
#include "print.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "daemon/plan/name.h"

#define BAR_WIDTH 18

static void print_device(struct ctl *ctl, const struct distorch_device *device)
{
	char bar[BAR_WIDTH * 3 + 8];
	char used[24];
	char budget[24];
	char extra[24];
	char safe[256];

	(void)printf("  %-7s %s  %s of %s   %" PRIu64 " model%s",
		     strcmp(device->name, "cpu") == 0 ? "RAM"
						      : safe_text(device->name, safe, sizeof safe),
		     bar_text(device->used, device->budget, BAR_WIDTH, bar, sizeof bar),
		     size_text(ctl, device->used, used), size_text(ctl, device->budget, budget),
		     device->models, device->models == 1 ? "" : "s");
	if (device->product != NULL) {
		(void)printf("   %s", safe_text(device->product, safe, sizeof safe));
	}
	if (device->temperature != DISTORCH_ABSENT) {
		(void)printf("   %" PRIu64 "°C", device->temperature);
	}
	if (device->foreign != DISTORCH_ABSENT && device->foreign > 0) {
		(void)printf("   others use %s", size_text(ctl, device->foreign, extra));
	}
	if (device->reserved > 0) {
		(void)printf("   %s reserved", size_text(ctl, device->reserved, extra));
	}
	if (device->held > 0) {
		(void)printf("   %s still mapped by clients", size_text(ctl, device->held, extra));
	}
	if (device->draining) {
		(void)printf("   draining: new loads are refused");
	}
	if (strcmp(device->state, "ok") != 0) {
		(void)printf("   %s", safe_text(device->state, safe, sizeof safe));
	}
	if (device->text != NULL) {
		(void)printf(": %s", safe_text(device->text, safe, sizeof safe));
	}
	(void)putchar('\n');
}

void print_devices(struct ctl *ctl, const struct distorch_device *const *devices, size_t n_devices)
{
	for (size_t i = 0; i < n_devices; i++) {
		print_device(ctl, devices[i]);
	}
}

static const struct column columns[] = {
	{.title = "DEVICE", .may_cut = true},
	{.title = "STATE"},
	{.title = "TOTAL", .is_right = true, .is_extra = true},
	{.title = "BUDGET", .is_right = true},
	{.title = "USED", .is_right = true},
	{.title = "HELD", .is_right = true, .is_extra = true},
	{.title = "OTHERS", .is_right = true},
	{.title = "RESERVED", .is_right = true},
	{.title = "FREE", .is_right = true},
	{.title = "MODELS", .is_right = true, .is_extra = true},
	{.title = "TEMP", .is_right = true, .is_wide = true},
	{.title = "XID", .is_right = true, .is_wide = true},
	{.title = "UUID", .is_wide = true},
};

/* A number that the device may not tell. */
static const char *maybe_size(const struct ctl *ctl, uint64_t bytes, char buffer[24])
{
	return bytes == DISTORCH_ABSENT ? "-" : size_cell(ctl, bytes, buffer);
}

static const char *maybe_number(uint64_t number, char buffer[24])
{
	if (number == DISTORCH_ABSENT) {
		return "-";
	}
	(void)snprintf(buffer, 24, "%" PRIu64, number);
	return buffer;
}

static const char *state_text(const struct distorch_device *device, char buffer[64])
{
	(void)snprintf(buffer, 64, "%.32s%s", device->state, device->draining ? ", draining" : "");
	return buffer;
}

static void add_row(const struct ctl *ctl, struct sheet *sheet,
		    const struct distorch_device *device)
{
	char label[256];
	char state[64];
	char sizes[7][24];
	char models[24];
	char temperature[24];
	char xid[24];
	const char *cells[] = {
		ctl->arguments.output == OUTPUT_CSV ? device->name
						    : device_label(device, label, sizeof label),
		state_text(device, state),
		size_cell(ctl, device->total, sizes[0]),
		size_cell(ctl, device->budget, sizes[1]),
		size_cell(ctl, device->used, sizes[2]),
		size_cell(ctl, device->held, sizes[3]),
		maybe_size(ctl, device->foreign, sizes[4]),
		size_cell(ctl, device->reserved, sizes[5]),
		/* Nothing can be had of one that is not there. */
		maybe_size(ctl, strcmp(device->state, "ok") == 0 ? device->free : DISTORCH_ABSENT,
			   sizes[6]),
		maybe_number(device->models, models),
		maybe_number(device->temperature, temperature),
		maybe_number(device->last_xid, xid),
		device->uuid,
	};

	_Static_assert(sizeof cells / sizeof *cells == sizeof columns / sizeof *columns, "each");
	sheet_add(sheet, cells);
}

/* All that is known of one. */
static void print_one(const struct ctl *ctl, const struct distorch_device *device)
{
	char text[256];
	char state[64];
	char sizes[4][24];

	(void)printf("%s   %s\n", device_label(device, text, sizeof text),
		     state_text(device, state));
	if (device->text != NULL) {
		(void)printf("  why       %s\n", safe_text(device->text, text, sizeof text));
	}
	if (device->uuid != NULL && device->uuid[0] != '\0') {
		(void)printf("  uuid      %s\n", safe_text(device->uuid, text, sizeof text));
	}
	(void)printf("  budget    %s of %s\n", size_text(ctl, device->budget, sizes[0]),
		     size_text(ctl, device->total, sizes[1]));
	(void)printf("  used      %s by %" PRIu64 " model%s\n",
		     size_text(ctl, device->used, sizes[0]), device->models,
		     device->models == 1 ? "" : "s");
	if (device->held > 0) {
		(void)printf("  held      %s of it: let go of, and still mapped by clients\n",
			     size_text(ctl, device->held, sizes[0]));
	}
	if (device->foreign != DISTORCH_ABSENT) {
		(void)printf("  others    %s\n", size_text(ctl, device->foreign, sizes[0]));
	}
	(void)printf("  reserved  %s\n", size_text(ctl, device->reserved, sizes[0]));
	(void)printf("  free      %s\n", size_text(ctl, device->free, sizes[0]));
	if (device->temperature != DISTORCH_ABSENT) {
		(void)printf("  heat      %" PRIu64 "°C\n", device->temperature);
	}
	if (device->last_xid != DISTORCH_ABSENT) {
		(void)printf("  last Xid  %" PRIu64 "\n", device->last_xid);
	}
	if (device->link != DISTORCH_ABSENT) {
		(void)printf("  link      %s/s\n", size_text(ctl, device->link, sizes[0]));
	}
	for (size_t i = 0; i < device->n_peers; i++) {
		const struct distorch_peer *peer = device->peers[i];

		(void)printf("%s%s", i == 0 ? "  peers     " : ", ",
			     safe_text(peer->device, text, sizeof text));
		if (peer->link != DISTORCH_ABSENT) {
			(void)printf(" (%s/s)", size_text(ctl, peer->link, sizes[0]));
		}
	}
	(void)fputs(device->n_peers > 0 ? "\n" : "", stdout);
	if (device->pid != DISTORCH_ABSENT) {
		(void)printf("  worker    process %" PRIu64 "\n", device->pid);
	}
}

/* As the planner and the daemon take names. */
struct named {
	struct plan_device devices[PLAN_MAX_DEVICES];
	uint32_t n_devices;
	uint32_t found; /* those that the word may mean: bit i for device i */
};

static void find_named(const struct distorch_devices *devices, const char *word, struct named *ret)
{
	*ret = (struct named){0};
	for (size_t i = 0; i < devices->n_devices && i < PLAN_MAX_DEVICES; i++) {
		const struct distorch_device *device = devices->devices[i];

		ret->devices[ret->n_devices++] =
			(struct plan_device){.name = device->name,
					     .uuid = device->uuid,
					     .product = device->product,
					     .is_host = strcmp(device->name, "cpu") == 0};
	}
	ret->found = name_find(ret->devices, ret->n_devices,
			       (struct plan_text){word, (uint32_t)strlen(word)});
}

const struct distorch_device *device_find(const struct distorch_devices *devices, const char *word)
{
	struct named named;

	find_named(devices, word, &named);
	return name_count(named.found) == 1 ? devices->devices[name_first(named.found)] : NULL;
}

int device_refuse(struct ctl *ctl, const struct distorch_devices *devices, const char *word)
{
	struct named named;
	char there[256];

	find_named(devices, word, &named);
	(void)name_list(named.devices, named.n_devices, named.found == 0 ? NAME_ALL : named.found,
			there, sizeof there);
	if (named.found != 0) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "say which by its number or UUID: distorchctl devices",
				  "%u devices are a \"%s\": %s", name_count(named.found), word,
				  there);
	}
	return ctl_refuse(ctl, EXIT_NO_SUCH_MODEL, "not-found",
			  "see what there is: distorchctl devices",
			  "there is no device \"%s\"; there %s %s", word,
			  named.n_devices == 1 ? "is" : "are", there);
}

static int print_found(struct ctl *ctl, const struct distorch_devices *devices)
{
	struct sheet sheet;
	struct distorch_devices one = *devices;
	const struct distorch_device *device = NULL;

	if (ctl->arguments.n_words > 0) {
		device = device_find(devices, ctl->arguments.words[0]);
		if (device == NULL) {
			return device_refuse(ctl, devices, ctl->arguments.words[0]);
		}
		one.devices = &device;
		one.n_devices = 1;
	}
	if (is_json(ctl)) {
		return json_print_devices(ctl, &one);
	}
	if (ctl->arguments.output == OUTPUT_ID) {
		for (size_t i = 0; i < one.n_devices; i++) {
			(void)printf("%s\n", one.devices[i]->name);
		}
		return EXIT_DONE;
	}
	if (device != NULL && ctl->arguments.output == OUTPUT_TABLE) {
		print_one(ctl, device);
		return EXIT_DONE;
	}
	sheet_init(&sheet, columns, sizeof columns / sizeof columns[0]);
	for (size_t i = 0; i < one.n_devices; i++) {
		add_row(ctl, &sheet, one.devices[i]);
	}
	return sheet_print(ctl, &sheet);
}

static int run(struct ctl *ctl)
{
	struct distorch_devices *devices = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_devices(ctl->c, &devices) < 0) {
		return ctl_fail(ctl);
	}
	status = print_found(ctl, devices);
	distorch_devices_free(devices);
	return status;
}

static const struct argp_option options[] = {OPTIONS_END};

static const char *const aliases[] = {"gpu", "gpus", NULL};

const struct verb verb_devices = {
	.name = "devices",
	.aliases = aliases,
	.group = VERB_MORE,
	.usage = "[DEVICE]",
	.summary = "Memory that can hold models: what of it is used, by whom, and what is free.",
	.text = "DEVICE is a name (ram, cuda:0, sim:0), a UUID or its first 8 letters or more, or a "
		"card's own name where it is the only one: then all that is known of it.\n"
		"Examples:\n"
		"  distorchctl devices\n"
		"  distorchctl devices cuda:0\n"
		"  distorchctl devices -o wide       with temperature, last Xid and UUID",
	.options = options,
	.max_words = 1,
	.has_csv = true,
	.has_id = true,
	.choices = "ram",
	.run = run,
};
