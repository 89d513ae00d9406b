/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchctl plan: what a string would do, before anything does it. With --devices the planner
 * runs here, on the file's header: no daemon, no card. The only verb that knows more of the
 * pure rooms daemon/plan and daemon/format than how devices are named.
 */
#include "base/err.h"
#include "base/units.h"
#include "options.h"
#include "placement.h"
#include "plan_file.h"
#include "plan_report.h"
#include "render.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/plan/explain.h"
#include "daemon/plan/name.h"
#include "proto/gen/wire_code.h"

#define CARD_GRANULARITY (2ULL << 20) /* of today's cards */
#define HOST_GRANULARITY 4096
#define SHOWN(piece)     (int)((piece).size < 64 ? (piece).size : 64), (piece).text /* for "%.*s" */

_Static_assert(PLACEMENT_MAX_DONORS == PLAN_MAX_DONORS, "what is read is planned");

/* What was said, as the planner takes it. */
struct wanted {
	struct plan_device devices[PLAN_MAX_DEVICES];
	char names[PLAN_MAX_DEVICES][32];
	struct plan_text donors[PLAN_MAX_DONORS];
	struct plan_request request;
	struct plan_file file;
	uint64_t machine_bytes; /* memory of the host in all; 0: not known */
	bool by_tensor;
};

/* ---- options ---- */

static struct plan_text text_of(const char *text)
{
	return text == NULL ? (struct plan_text){0}
			    : (struct plan_text){text, (uint32_t)strlen(text)};
}

/* The next piece of a list; false: there is none left. */
static bool next_piece(struct plan_text *rest, struct plan_text *ret)
{
	while (rest->size > 0) {
		uint32_t size = 0;

		while (size < rest->size && rest->text[size] != ',' && rest->text[size] != ';') {
			size++;
		}
		*ret = text_trim((struct plan_text){rest->text, size});
		rest->text += size < rest->size ? size + 1 : size;
		rest->size -= size < rest->size ? size + 1 : size;
		if (ret->size > 0) {
			return true;
		}
	}
	return false;
}

static bool is_host_name(struct plan_text name)
{
	return text_is(name, "cpu") || text_is(name, "ram") || text_is(name, "host");
}

static bool is_digit(char byte)
{
	return byte >= '0' && byte <= '9';
}

/* "cuda:0=24GiB" */
static int add_device(struct wanted *wanted, struct plan_text piece, struct err *err)
{
	uint32_t index = wanted->request.n_devices;
	struct plan_device *device;
	const char *equals = memchr(piece.text, '=', piece.size);
	struct plan_text name;
	char size[40];
	uint64_t bytes = 0;

	if (index == PLAN_MAX_DEVICES) {
		return err_set(err, WIRE_BAD_ARGUMENT, "--devices: more than %d", PLAN_MAX_DEVICES);
	}
	device = &wanted->devices[index];
	if (equals == NULL || equals == piece.text ||
	    piece.size - (size_t)(equals - piece.text) > sizeof size) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "--devices: \"%.*s\" is not like cuda:0=24GiB", SHOWN(piece));
	}
	memcpy(size, equals + 1, piece.size - (size_t)(equals - piece.text) - 1);
	size[piece.size - (size_t)(equals - piece.text) - 1] = '\0';
	name = text_trim((struct plan_text){piece.text, (uint32_t)(equals - piece.text)});
	if (name.size == 0 || name.size >= sizeof wanted->names[0]) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "--devices: \"%.*s\": a name has 1 to %zu letters", SHOWN(piece),
			       sizeof wanted->names[0] - 1);
	}
	if (units_parse_size(size, &bytes, err) < 0) {
		return err_wrap(err, "--devices");
	}
	if (bytes > 0 && bytes < 1U << 20 && is_digit(size[strlen(size) - 1])) {
		return err_set(err, WIRE_BAD_ARGUMENT, "--devices: \"%.*s\" has no unit: %sGiB?",
			       SHOWN(piece), size);
	}
	device->is_host = is_host_name(name);
	memcpy(wanted->names[index], name.text, name.size); /* it ends with a zero */
	device->name = device->is_host ? "cpu" : wanted->names[index];
	for (uint32_t i = 0; i < index; i++) {
		if (text_is(text_of(device->name), wanted->devices[i].name)) {
			return err_set(err, WIRE_BAD_ARGUMENT, "--devices: %s stands twice",
				       device->name);
		}
	}
	device->total = bytes;
	device->free = bytes;
	device->granularity = device->is_host ? HOST_GRANULARITY : CARD_GRANULARITY;
	device->peers = UINT32_MAX; /* not known: nothing is said about it */
	wanted->request.n_devices++;
	return 0;
}

static int read_devices(struct wanted *wanted, const char *text, struct err *err)
{
	struct plan_text rest = text_of(text);
	struct plan_text piece;
	int code = 0;

	wanted->request.devices = wanted->devices;
	while (code == 0 && next_piece(&rest, &piece)) {
		code = add_device(wanted, piece, err);
	}
	if (code == 0 && wanted->request.n_devices == 0) {
		return err_set(err, WIRE_BAD_ARGUMENT, "--devices names none");
	}
	return code;
}

static void take_donors(struct wanted *wanted, const struct distorch_placement *placement)
{
	wanted->request.donors = wanted->donors;
	for (size_t i = 0; i < placement->n_donors; i++) {
		wanted->donors[wanted->request.n_donors++] = text_of(placement->donors[i]);
	}
}

static int read_granularity(struct wanted *wanted, const char *text, struct err *err)
{
	wanted->by_tensor = text != NULL && strcmp(text, "tensor") == 0;
	if (text != NULL && !wanted->by_tensor && strcmp(text, "block") != 0) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "a granularity is block or tensor, not \"%.32s\"", text);
	}
	return 0;
}

static int read_wanted(const struct arguments *arguments,
		       const struct distorch_placement *placement, struct wanted *wanted,
		       struct err *err)
{
	struct plan_request *request = &wanted->request;
	int code = 0;

	request->allocation = text_of(placement->allocation);
	request->compute = text_of(placement->compute);
	request->virtual_vram = placement->virtual_vram;
	take_donors(wanted, placement);
	code = arguments->devices == NULL ? 0 : read_devices(wanted, arguments->devices, err);
	code = code < 0 ? code : read_granularity(wanted, placement->granularity, err);
	return code < 0 ? code
			: plan_strategy_find(text_of(placement->strategy), &request->strategy, err);
}

static uint64_t number_of(uint64_t number)
{
	return number == DISTORCH_ABSENT ? 0 : number;
}

/* In use, pinned, or still mapped. */
static uint64_t stays_on(const struct distorch_device *device)
{
	uint64_t goes = number_of(device->evictable) + number_of(device->dropping) +
			number_of(device->loading);

	return device->used > goes ? device->used - goes : 0;
}

/* What the budget leaves of the card, and others have not taken. */
static uint64_t spare_of(const struct distorch_device *device)
{
	uint64_t foreign = number_of(device->foreign);
	uint64_t spare = device->total > device->budget ? device->total - device->budget : 0;

	return spare > foreign ? spare - foreign : 0;
}

static uint32_t find_device(const struct wanted *wanted, const char *name)
{
	uint32_t i = 0;

	while (i < wanted->request.n_devices && strcmp(wanted->devices[i].name, name) != 0) {
		i++;
	}
	return i;
}

/* Between the host and each device, and from peer to peer. */
static void take_links(const struct distorch_devices *devices, struct wanted *wanted)
{
	const uint32_t n_devices = wanted->request.n_devices;
	const uint32_t host = find_device(wanted, "cpu");

	for (uint32_t i = 0; i < n_devices && host < n_devices; i++) {
		const struct distorch_device *from = devices->devices[i];

		wanted->devices[i].link[host] = number_of(from->link);
		wanted->devices[host].link[i] = number_of(from->link);
		for (size_t j = 0; j < from->n_peers; j++) {
			const uint32_t peer = find_device(wanted, from->peers[j]->device);

			if (peer < n_devices) {
				wanted->devices[peer].peers |= 1U << i;
				wanted->devices[i].link[peer] = number_of(from->peers[j]->link);
			}
		}
	}
}

/* The daemon's, as they are now. Their texts are borrowed. */
static void take_devices(const struct distorch_devices *devices, struct wanted *wanted)
{
	wanted->request.devices = wanted->devices;
	for (size_t i = 0; i < devices->n_devices && i < PLAN_MAX_DEVICES; i++) {
		const struct distorch_device *from = devices->devices[i];
		bool is_host = strcmp(from->name, "cpu") == 0;
		bool is_well = strcmp(from->state, "ok") == 0;

		wanted->devices[i] = (struct plan_device){
			.name = from->name,
			.uuid = from->uuid,
			.product = from->product,
			.pci = from->pci,
			.total = is_host ? from->budget : from->total,
			/* What drains is refused for that, be it let go of or not. */
			.free = !is_well && from->draining ? from->budget : number_of(from->room),
			.evictable = number_of(from->evictable),
			.later = number_of(from->later),
			.held = stays_on(from),
			.loading = number_of(from->loading),
			.reserved = from->reserved,
			.foreign = number_of(from->foreign),
			.spare = is_host ? 0 : spare_of(from),
			.granularity = number_of(from->granularity),
			.is_host = is_host,
			.is_lost = !is_well && !from->draining,
			.is_draining = from->draining,
		};
		wanted->machine_bytes = is_host ? from->total : wanted->machine_bytes;
		wanted->request.n_devices++;
	}
	take_links(devices, wanted);
}

/* What the model has itself stays until it lies in other blocks. */
static void keep_own(const struct distorch_model *model, struct wanted *wanted)
{
	for (size_t i = 0; i < model->n_where && model->leases == 0 && !model->pinned; i++) {
		const struct distorch_place *place = model->where[i];
		const uint32_t index = find_device(wanted, place->device);
		struct plan_device *device = &wanted->devices[index];

		if (index < wanted->request.n_devices && strcmp(place->backing, "file") != 0 &&
		    device->evictable >= place->bytes) {
			device->evictable -= place->bytes;
			device->held += place->bytes;
		}
	}
}

/* ---- refusals ---- */

/* Could there be so much room, if nothing else was there and the budget was all? */
static bool may_be_had(const struct wanted *wanted, const struct plan_shortage *shortage)
{
	const struct plan_device *device = &wanted->devices[shortage->device];

	return device->is_host
		       ? wanted->machine_bytes == 0 || shortage->need <= wanted->machine_bytes
		       : shortage->need <= device->total;
}

/* What can be done about what there is no room for. */
static const char *hint_for_shortage(const struct wanted *wanted,
				     const struct plan_shortage *shortage, char *buffer,
				     size_t buffer_size)
{
	char least[32];

	if (shortage->device == PLAN_ALL_DEVICES) {
		return "unload something, raise a budget, or plan for more memory";
	}
	if (shortage->is_head) {
		return "let another device compute: --compute DEVICE";
	}
	if (shortage->virtual_vram > 0) {
		(void)snprintf(buffer, buffer_size, "ask for more virtual VRAM: %s are enough",
			       explain_least(shortage->virtual_vram, least, sizeof least));
		return buffer;
	}
	if (wanted->devices[shortage->device].is_host) {
		return may_be_had(wanted, shortage)
			       ? "less there: let other devices take more, or raise its budget"
			       : "less there: let other devices take more";
	}
	return shortage->is_rest_on_host ? "less there: the host takes the rest already"
					 : "less there, or let the host take the rest: cpu,*";
}

static void fill_shortage(const struct wanted *wanted, const struct plan_shortage *shortage,
			  struct distorch_error *error)
{
	error->need = shortage->need;
	if (shortage->device != PLAN_ALL_DEVICES) {
		const struct plan_device *device = &wanted->devices[shortage->device];

		error->device = device->name;
		error->free = device->free;
		error->evictable = device->evictable;
		error->foreign = device->foreign;
		error->is_retryable = error->is_retryable && may_be_had(wanted, shortage);
	}
}

static int refuse(struct ctl *ctl, int code, const struct err *err, const struct wanted *wanted,
		  const struct plan_shortage *shortage)
{
	struct distorch_error error = ctl_error(distorch_code_word(code), NULL, err->text);
	char text[128];

	if (code == -WIRE_BAD_ARGUMENT) {
		error.hint = "docs/allocation-strings.md has the grammar, plan --help the five "
			     "usual ones";
	}
	if (code == -WIRE_BUSY && shortage != NULL) { /* the device of check_draining */
		(void)snprintf(text, sizeof text,
			       "an administrator ends it: distorchctl drain --off --device %s",
			       device_text(wanted->devices[shortage->device].name));
		error.hint = text;
	}
	if (strncmp(err->text, "--", 2) == 0) {
		error.hint = NULL; /* it is an option's value */
	}
	if (code == -WIRE_NO_MEMORY && shortage != NULL && shortage->need > 0) {
		error.hint = hint_for_shortage(wanted, shortage, text, sizeof text);
		fill_shortage(wanted, shortage, &error);
	}
	return ctl_refuse_error(ctl, (enum exit_status)distorch_code_exit(code), &error);
}

/* ---- planning here ---- */

static void report_devices(const struct wanted *wanted, const struct plan_summary *summary,
			   struct plan_report *report)
{
	report->n_devices = wanted->request.n_devices;
	for (uint32_t i = 0; i < report->n_devices; i++) {
		const struct plan_device *device = &wanted->devices[i];
		const struct plan_share *share = &summary->shares[i];
		/* Where something has to be evicted for it, nothing is left. */
		uint64_t free_after = share->taken > device->free ? 0 : device->free - share->taken;

		report->devices[i] = (struct plan_report_device){.name = device->name,
								 .bytes = share->bytes,
								 .blocks = share->n_blocks,
								 .total = device->total,
								 .free_after = free_after};
		(void)name_label(device, report->devices[i].label, sizeof report->devices[i].label);
	}
	report->compute = report->devices[summary->compute].label;
	report->n_warnings = summary->n_warnings;
	for (uint32_t i = 0; i < summary->n_warnings; i++) {
		(void)explain_warning(&wanted->request, summary, &summary->warnings[i],
				      report->warnings[i], sizeof report->warnings[i]);
	}
}

static int print_plan(struct ctl *ctl, const struct wanted *wanted,
		      const struct plan_summary *summary, const uint8_t *devices,
		      struct plan_report_block *blocks)
{
	static struct plan_report report; /* large, and made once */

	report.model = ctl->arguments.words[0];
	report.bytes = summary->bytes;
	report.blocks = blocks;
	report.n_blocks = wanted->file.n_blocks;
	report.moved = summary->moved;
	report.floor_ns = summary->floor_ns;
	report_devices(wanted, summary, &report);
	for (uint32_t i = 0; i < wanted->file.n_blocks; i++) {
		blocks[i] =
			(struct plan_report_block){.name = wanted->file.blocks[i].name,
						   .name_size = wanted->file.blocks[i].name_size,
						   .device = devices[i],
						   .bytes = wanted->file.blocks[i].bytes,
						   .tensors = wanted->file.n_tensors[i]};
	}
	return plan_report_print(ctl, &report);
}

/* It is no load yet, so nothing of it is there. */
static int check_draining(const struct wanted *wanted, struct plan_summary *summary,
			  struct err *err)
{
	char label[PLAN_LABEL_SIZE];

	for (uint32_t i = 0; i < wanted->request.n_devices; i++) {
		if (wanted->devices[i].is_draining && summary->shares[i].n_blocks > 0) {
			summary->shortage.device = i;
			return err_set(err, WIRE_BUSY, "%s is draining and takes no new loads",
				       name_label(&wanted->devices[i], label, sizeof label));
		}
	}
	return 0;
}

static int plan_file(struct ctl *ctl, struct wanted *wanted)
{
	size_t count = (size_t)wanted->file.n_blocks + 1;
	uint8_t *devices = calloc(count, sizeof *devices);
	struct plan_report_block *blocks = calloc(count, sizeof *blocks);
	struct plan_summary summary = {0};
	struct err err = {0};
	int status;
	int code;

	wanted->request.blocks = wanted->file.blocks;
	wanted->request.n_blocks = wanted->file.n_blocks;
	if (devices == NULL || blocks == NULL) {
		code = err_set(&err, WIRE_NO_MEMORY, "no memory for %u blocks",
			       wanted->file.n_blocks);
	} else {
		code = plan_make(&wanted->request, devices, &summary, &err);
	}
	if (code == 0) {
		code = check_draining(wanted, &summary, &err);
	}
	status = code < 0 ? refuse(ctl, code, &err, wanted, &summary.shortage)
			  : print_plan(ctl, wanted, &summary, devices, blocks);
	free(blocks);
	free(devices);
	return status;
}

/* 'devices' NULL: those that were named. 'model' NULL: the daemon does not have it. */
static int plan_here(struct ctl *ctl, const struct distorch_placement *placement,
		     const struct distorch_devices *devices, const struct distorch_model *model)
{
	static struct wanted wanted; /* large, and made once */
	struct err err = {0};
	int code = read_wanted(&ctl->arguments, placement, &wanted, &err);
	int status;

	if (code == 0 && devices != NULL) {
		take_devices(devices, &wanted);
	}
	if (code == 0 && model != NULL) {
		keep_own(model, &wanted);
	}
	if (code == 0) {
		code = plan_file_read(ctl->arguments.words[0], ctl->arguments.format,
				      wanted.by_tensor, &wanted.file, &err);
	}
	status = code < 0 ? refuse(ctl, code, &err, NULL, NULL) : plan_file(ctl, &wanted);
	plan_file_fini(&wanted.file);
	return status;
}

/* ---- asking the daemon ---- */

/* A file that the daemon does not have, or in other blocks: planned here, for the devices it has. */
static int plan_for_daemon(struct ctl *ctl, const struct distorch_placement *placement,
			   bool is_there)
{
	struct distorch_devices *devices = NULL;
	struct distorch_detail *detail = NULL;
	int status;

	if (distorch_devices(ctl->c, &devices) < 0 ||
	    (is_there && distorch_show(ctl->c, ctl->arguments.words[0], &detail, NULL) < 0)) {
		status = ctl_fail(ctl);
	} else {
		status = plan_here(ctl, placement, devices, is_there ? detail->model : NULL);
	}
	distorch_detail_free(detail);
	distorch_devices_free(devices);
	return status;
}

/* Where all is to lie on the host the daemon asks for no granularity, and answers by its blocks. */
static bool is_by_other(const struct distorch_placement *placement,
			const struct distorch_plan *plan)
{
	bool by_tensor = placement->granularity != NULL &&
			 strcmp(placement->granularity, "tensor") == 0;
	bool is_other = false;

	for (size_t i = 0; by_tensor && i < plan->n_blocks; i++) {
		is_other = is_other || plan->blocks[i]->tensors > 1;
	}
	return is_other;
}

static int plan_there(struct ctl *ctl, const struct distorch_placement *placement)
{
	const char *model = ctl->arguments.words[0];
	struct distorch_plan *plan = NULL;
	int status = ctl_connect(ctl);
	int code;

	if (status != EXIT_DONE) {
		return status;
	}
	code = distorch_plan(ctl->c, model, placement, &plan);
	if (code < 0) {
		bool is_unknown = code == -DISTORCH_E_NOT_FOUND ||
				  code == -DISTORCH_E_NOT_RESIDENT ||
				  code == -DISTORCH_E_UNSUPPORTED ||
				  code == -DISTORCH_E_BAD_ARGUMENT; /* it cannot be asked for, or
								     * is refused here too */

		return is_unknown && plan_file_is_meant(model)
			       ? plan_for_daemon(ctl, placement, code == -DISTORCH_E_UNSUPPORTED)
			       : ctl_fail(ctl);
	}
	status = is_by_other(placement, plan) && plan_file_is_meant(model)
			 ? plan_for_daemon(ctl, placement, true)
			 : plan_report_answer(ctl, plan);
	distorch_plan_free(plan);
	return status;
}

static int run(struct ctl *ctl)
{
	const char *allocation = ctl->arguments.n_words > 1 ? ctl->arguments.words[1] : NULL;
	struct placement placement;
	int status = placement_read(ctl, allocation, &placement);

	if (status != EXIT_DONE) {
		return status;
	}
	if (allocation == NULL && placement.wanted.virtual_vram == 0) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "auto, 'cuda:0,6gb;cpu,*' or --virtual-vram",
				  "say where it is to go");
	}
	return ctl->arguments.devices != NULL ? plan_here(ctl, &placement.wanted, NULL, NULL)
					      : plan_there(ctl, &placement.wanted);
}

static const struct argp_option options[] = {
	{"compute", OPTION_COMPUTE, "DEVICE", 0,
	 "Device that computes (the first one named that is not ram)", 0},
	{"devices", OPTION_DEVICES, "LIST", 0,
	 "Plan for these, without a daemon: 'cuda:0=24GiB,cuda:1=12GiB,cpu=64GiB'", 0},
	{"virtual-vram", OPTION_VIRTUAL_VRAM, "SIZE", 0,
	 "So much of it lives off the compute device, on the donors; a number alone is GiB", 0},
	{"donors", OPTION_DONORS, "LIST", 0,
	 "Who takes what --virtual-vram sends off, in order (ram)", 0},
	{"strategy", OPTION_STRATEGY, "STRATEGY", 0,
	 "contiguous (usual for a string) or spread (usual for auto and --virtual-vram)", 0},
	{"granularity", OPTION_GRANULARITY, "UNIT", 0, "block (usual) or tensor", 0},
	{"format", OPTION_FORMAT, "FORMAT", 0, "auto (by content), safetensors, gguf, raw", 0},
	OPTIONS_END,
};

const struct verb verb_plan = {
	.name = "plan",
	.group = VERB_EVERYDAY,
	.usage = "FILE|MODEL ['ALLOCATION']",
	.summary = "Show where a model's blocks would go. Changes nothing; with --devices it needs "
		   "neither daemon nor card, and reads the file's header only.",
	.text = "The strings people need:\n"
		"  'cuda:0,6gb;cpu,*'           the first 6 GiB on the card, the rest in ram\n"
		"  'cuda:0,10gb;cuda:1,8gb'     two cards in this order, the rest in ram\n"
		"  'cuda:0,60%;cuda:1,40%'      shares of the model\n"
		"  auto                         as much on the card as leaves room to compute\n"
		"  'unet=cuda:0,6gb;cpu,*|clip=cpu|vae=cuda:0'   the parts of a checkpoint\n"
		"and instead of a string: --virtual-vram 4 (4 GiB live in ram, spread out)\n\n"
		"Examples:\n"
		"  distorchctl plan flux1-dev.safetensors auto         for the daemon's devices\n"
		"  distorchctl plan flux1.gguf 'cuda:0,6g;cpu,*' --devices 'cuda:0=24G,cpu=64G'\n"
		"  distorchctl plan flux1.gguf auto --devices 'cuda:0=12G,cuda:1=8G,cpu=64G'\n"
		"  distorchctl plan flux1.gguf --virtual-vram 8 --devices 'cuda:0=12G,cpu=32G'\n\n"
		"Exit status: 0 it can be done, 2 the string is wrong (item and column are named), 6 "
		"it does not fit, 7 bad or unsupported file; without --devices 3 when the daemon is not "
		"running.",
	.options = options,
	.min_words = 1,
	.max_words = 2,
	.words = WORDS_FILES,
	.has_csv = true,
	.run = run,
};
