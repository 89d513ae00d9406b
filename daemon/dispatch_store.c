/* SPDX-License-Identifier: Apache-2.0 */
/* What operators look at: the metrics, and what is parked for the next life (persist.h). */
#include "base/cleanup.h"
#include "base/os/sys.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "daemon/describe.h"
#include "daemon/device/device.h"
#include "daemon/dispatch.h"
#include "daemon/ipc/conn.h"
#include "daemon/metrics.h"
#include "daemon/persist.h"
#include "daemon/persist_inside.h"

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

enum part { PART_TABLE, PART_IMAGE, PART_SOURCE, N_PARTS };

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

static void add_copy(const struct daemon *daemon, const struct model_info *model,
		     const struct core_segment_view *segment, struct listing *listing)
{
	static const char *const kinds[N_PARTS] = {"table", "image", "source"};
	static const char *const prefixes[N_PARTS] = {"hdr", "img", "src"};
	const struct park *park = store_find_park(daemon->store, segment->id);
	const struct extent *extent = store_find_extent(daemon->store, segment->id);
	struct copy_texts *texts = &listing->texts[listing->n_copies];
	struct core_model_view view;
	struct wire_parked *line;

	if (park == NULL || !park->is_parked || !core_model_get(daemon->core, model->id, &view)) {
		return;
	}
	listing->n_copies++;
	listing->image_bytes += extent->bytes;
	for (int part = 0; part < N_PARTS; part++) {
		line = add_line(listing, kinds[part],
				persist_name(texts->names[part], prefixes[part], park),
				park->is_taken);
		line->has_model = line->has_model_name = line->has_generation = true;
		line->model = wire_str(describe_id(model->uuid, texts->id));
		line->model_name = wire_str(describe_name(daemon, model->id, texts->model_name));
		line->generation = segment->generation;
		line->has_bytes = true;
		line->bytes = extent->bytes; /* the image is the file, byte for byte */
		if (part == PART_TABLE) {
			line->has_bytes = segment->generation == view.generation &&
					  memfd_bytes(model->current.table_fd, &line->bytes);
		}
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
	struct core_segment_view segment;
	struct listing listing = {0};
	AUTO_FREE struct wire_parked *lines = NULL;
	AUTO_FREE struct copy_texts *texts = NULL;
	uint32_t n_copies = 0;
	uint32_t cursor = 0;

	while (core_segment_next(daemon->core, 0, &cursor, &segment)) {
		n_copies++;
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
