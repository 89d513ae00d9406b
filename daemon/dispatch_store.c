/* SPDX-License-Identifier: Apache-2.0 */
/* What operators look at: the metrics, what is parked for the next life (persist.h), a drain. */
#include "base/cleanup.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "daemon/describe.h"
#include "daemon/describe_use.h"
#include "daemon/device/device.h"
#include "daemon/dispatch.h"
#include "daemon/ipc/conn.h"
#include "daemon/load/file.h"
#include "daemon/metrics.h"
#include "daemon/persist.h"
#include "daemon/persist_inside.h"
#include "daemon/workers.h"

void dispatch_metrics(const struct call *call)
{
	AUTO_FREE char *text = sys_malloc(WIRE_METRICS_RESPONSE_TEXT_MAX);
	struct wire_metrics_response response;

	if (text == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	if (!metrics_write(call->daemon, text, WIRE_METRICS_RESPONSE_TEXT_MAX)) {
		call_refuse(call, WIRE_INTERNAL, NULL, "the metrics are more than %d bytes",
			    WIRE_METRICS_RESPONSE_TEXT_MAX);
		return;
	}
	response.text = wire_str(text);
	call_answer(call, &response);
}

/* ---- what is parked ---- */

/* What the lines of one copy borrow. */
struct copy_texts {
	char names[N_PARTS][NOTIFY_NAME_SIZE];
	char id[33];
	char model_name[512];
};

struct listing {
	struct wire_parked *lines; /* owner: the caller, as of texts */
	struct copy_texts *texts;
	uint32_t n_lines, n_copies;
	uint64_t walk; /* over the files, each of which is listed once */
	uint64_t image_bytes;
};

/* Bytes of a memfd, which takes no time to ask. False: unknown. */
static bool memfd_bytes(int fd, uint64_t *ret_bytes)
{
	struct stat status;

	if (fd < 0 || sys_fstat(fd, &status) < 0) {
		return false;
	}
	*ret_bytes = (uint64_t)status.st_size;
	return true;
}

static struct wire_parked *add_line(struct listing *listing, const char *kind, const char *name,
				    bool is_taken)
{
	struct wire_parked *line = &listing->lines[listing->n_lines++];

	*line = (struct wire_parked){.kind = wire_str(kind),
				     .name = wire_str(name),
				     .state = wire_str(is_taken ? "kept" : "sent")};
	return line;
}

/* Is it parked with this copy, or with this file of what lies on other devices too? */
static bool has_part(const struct park *park, enum part part)
{
	switch (part) {
	case PART_IMAGE:
		return !park->is_file && park->n_files == 0; /* else its source is all there is */
	case PART_SOURCE:
		return true;
	case PART_PLACED:
		return park->n_files > 0 && park->index == 0;
	case PART_INDEX:
		return park->index == 0 && park->has_index;
	case PART_TABLE:
	case N_PARTS:
		break;
	}
	return park->index == 0;
}

/* 'bytes': of the file, and so of its image; UINT64_MAX: not known. */
static void add_parts(const struct daemon *daemon, const struct model_info *model,
		      const struct park *park, uint64_t bytes, struct listing *listing)
{
	static const char *const kinds[N_PARTS] = {"table", "index", "image", "source",
						   "placement"};
	struct copy_texts *texts = &listing->texts[listing->n_copies++];
	struct core_model_view view = {0};
	struct wire_parked *line;
	const char *name;

	(void)core_model_get(daemon->core, model->id, &view);
	for (int part = 0; part < N_PARTS; part++) {
		if (!has_part(park, (enum part)part)) {
			continue;
		}
		name = part == PART_SOURCE || part == PART_INDEX
			       ? source_list(daemon->persist, park, (enum part)part, listing->walk)
			       : persist_name(texts->names[part], (enum part)part, park);
		if (name == NULL) {
			continue; /* another generation has it too */
		}
		line = add_line(listing, kinds[part], name, park->is_taken);
		line->has_model = line->has_model_name = line->has_generation = true;
		line->model = wire_str(describe_id(model->uuid, texts->id));
		line->model_name = wire_str(describe_name(daemon, model->id, texts->model_name));
		line->generation = park->generation;
		line->has_bytes = (part == PART_IMAGE || part == PART_SOURCE) &&
				  bytes != UINT64_MAX;
		line->bytes = bytes; /* the image is the file, byte for byte */
		if (part == PART_TABLE) {
			line->has_bytes = park->generation == view.generation &&
					  memfd_bytes(model->current.table_fd, &line->bytes);
		}
	}
}

static void add_copy(const struct daemon *daemon, const struct model_info *model,
		     const struct core_segment_view *segment, struct listing *listing)
{
	const struct park *park = store_find_park(daemon->store, segment->id);
	const struct extent *extent = store_find_extent(daemon->store, segment->id);

	if (park != NULL && park->is_parked) {
		listing->image_bytes += park->is_file ? 0 : extent->bytes;
		add_parts(daemon, model, park, extent->bytes, listing);
	}
}

/* What it has on other devices too: its files, and how it lies. */
static void add_placed(const struct daemon *daemon, const struct model_info *model,
		       struct listing *listing)
{
	struct core_model_view view = {0};
	struct park park = model->park;
	struct file *file = core_model_get(daemon->core, model->id, &view)
				    ? store_find_file(daemon->store, view.file)
				    : NULL;

	for (; park.is_parked && park.index < park.n_files; park.index++) {
		bool is_known = file != NULL && park.index < file_n_shards(file);

		add_parts(daemon, model, &park,
			  is_known ? file_shard(file, park.index)->key.size : UINT64_MAX, listing);
	}
}

static void list_copies(const struct daemon *daemon, struct listing *listing, uint32_t capacity)
{
	const struct model_info *model = NULL;
	struct core_segment_view segment;

	while ((model = store_next_model(daemon->store, model)) != NULL) {
		uint32_t cursor = 0;

		while (listing->n_copies < capacity &&
		       core_segment_next(daemon->core, model->id, &cursor, &segment)) {
			add_copy(daemon, model, &segment, listing);
		}
		if (listing->n_copies + model->park.n_files <= capacity) {
			add_placed(daemon, model, listing);
		}
	}
}

static void list_own(const struct persist *persist, struct listing *listing)
{
	struct wire_parked *line;

	if (persist->ledger != NULL) {
		line = add_line(listing, "ledger", persist->ledger_name, true);
		line->has_bytes = memfd_bytes(ledger_fd(persist->ledger), &line->bytes);
	}
	if (persist->listener[0] != '\0') {
		(void)add_line(listing, "socket", persist->listener, persist->has_listener);
	}
}

void dispatch_store(const struct call *call)
{
	const struct daemon *daemon = call->daemon;
	struct wire_store_response response = {.survives_restart =
						       persist_is_safe(daemon->persist)};
	const struct model_info *model = NULL;
	struct core_segment_view segment;
	struct listing listing = {0};
	AUTO_FREE struct wire_parked *lines = NULL;
	AUTO_FREE struct copy_texts *texts = NULL;
	uint32_t n_copies = 0;
	uint32_t cursor = 0;

	while (core_segment_next(daemon->core, 0, &cursor, &segment)) {
		n_copies++;
	}
	while ((model = store_next_model(daemon->store, model)) != NULL) {
		n_copies += model->park.n_files;
	}
	lines = sys_calloc((size_t)n_copies * N_PARTS + 2, sizeof *lines);
	texts = sys_calloc((size_t)n_copies + 1, sizeof *texts);
	if (lines == NULL || texts == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	if (response.survives_restart) {
		listing.lines = lines;
		listing.texts = texts;
		listing.walk = ++daemon->persist->walk;
		list_own(daemon->persist, &listing);
		list_copies(daemon, &listing, n_copies);
		response.descriptors = daemon->persist->n_fds;
		response.max_descriptors = daemon->persist->max_fds;
	}
	response.bytes = listing.image_bytes;
	response.parked.items = lines;
	response.parked.count = listing.n_lines;
	call_answer(call, &response);
}

/* ---- drain ---- */

static bool is_draining(const struct daemon *daemon, uint32_t device)
{
	struct core_account_view account;

	for (uint32_t i = 0; i < daemon->n_devices; i++) {
		core_account_get(daemon->core, i, &account);
		if ((device == i || device == CORE_ALL_DEVICES) && !account.is_draining) {
			return false;
		}
	}
	return true;
}

static void change_drain(const struct call *call, uint32_t device, bool is_on)
{
	struct core_event event = {.type = EV_DRAIN, .drain = {.device = device, .is_on = is_on}};
	bool was_on = is_draining(call->daemon, device);

	(void)daemon_step(call->daemon, &event);
	if (is_on != was_on) {
		log_notice("%s%s%s, told by pid %u (%s, uid %u)",
			   is_on ? "draining: new loads are refused" : "new loads are taken again",
			   device == CORE_ALL_DEVICES ? "" : " of what needs ",
			   device == CORE_ALL_DEVICES ? "" : call->daemon->devices[device].name,
			   call->client->pid, client_display(call->client), call->client->uid);
	}
	workers_apply_drain(call->daemon);
}

void dispatch_drain(const struct call *call, const struct wire_drain_request *request)
{
	AUTO_FREE struct work_description *work = sys_calloc(1, sizeof *work);
	struct wire_drain_response response;
	uint32_t device = CORE_ALL_DEVICES;

	if (work == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	if (request->has_device && !dispatch_take_device(call, request->device, &device)) {
		return;
	}
	if (request->has_on) {
		change_drain(call, device, request->on);
	}
	describe_work(call->daemon, call->client, device, work);
	response = (struct wire_drain_response){
		.draining = is_draining(call->daemon, device),
		.loads = work->n_loads,
		.loading = {.items = work->names, .count = work->n_names},
		.leases = work->n_leases,
		.holders = {.items = work->use.holders, .count = work->use.n_holders},
		.has_reservers = true,
		.reservers = {.items = work->use.reservers, .count = work->use.n_reservers},
	};
	call_answer(call, &response);
}
