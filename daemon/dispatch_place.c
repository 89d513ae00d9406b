/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests about where blocks lie: place, room for others, and the descriptors of blocks on other devices. A
 * device may take its time to give one, so that is asked for on a thread.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/change.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/device/device.h"
#include "daemon/dispatch.h"
#include "daemon/errand.h"
#include "daemon/execute.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/server.h"
#include "daemon/load/memory.h"
#include "daemon/placement.h"

/* ---- place ---- */

bool dispatch_read_placement(const struct call *call, const struct placement_words *words,
			     uint64_t *ret_placement)
{
	struct err err = {0};
	struct failure failure;

	if (placement_take(call->daemon, call->client, words, ret_placement, &err) == 0) {
		return true;
	}
	failure_from_err(&failure, "", &err);
	failure_set_field(&failure, "allocation");
	call_fail(call, &failure);
	return false;
}

void dispatch_place(const struct call *call, const struct wire_place_request *request)
{
	const struct placement_words words = PLACEMENT_WORDS(request);
	struct core_event event = {.type = EV_PLACE,
				   .client = call->client->id,
				   .request = call->request};
	struct failure failure;

	if (!dispatch_read_placement(call, &words, &event.place.placement)) {
		return;
	}
	if (event.place.placement == CORE_PLACEMENT_ANY) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "allocation",
			    "say where: an allocation, or virtual VRAM");
	} else if (dispatch_find_model(call, request->model, &event.place.model, &failure) < 0) {
		call_fail(call, &failure);
	} else if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

/* ---- room for others ---- */

/* A card that is to be let go of is not kept by more. False: that has been answered. */
__attribute__((noinline)) static bool takes_rooms(const struct call *call, uint32_t device)
{
	struct core_account_view account;
	struct failure failure;

	core_account_get(call->daemon->core, device, &account);
	if (device == 0 || !account.is_draining || account.is_lost) {
		return true; /* of one that is gone the core says more */
	}
	failure_set_draining(&failure, call->daemon, 1U << device);
	call_fail(call, &failure);
	return false;
}

/* owner: its errand */
struct measuring {
	struct errand errand;
	struct core_event event; /* of the reservation */
	struct host_memory memory;
	int code;
};

static void measure(struct errand *errand)
{
	struct measuring *measuring = container_of(errand, struct measuring, errand);

	measuring->code = host_memory_read("", &measuring->memory, NULL);
}

static void drop_measuring(struct errand *errand)
{
	free(container_of(errand, struct measuring, errand));
}

static void go_on_measured(struct daemon *daemon, struct core_event *event)
{
	struct client *client = daemon_find_client(daemon, event->client);
	struct pending *pending = client == NULL ? NULL
						 : client_find_pending(client, event->request);
	struct failure failure;
	struct call call;

	if (pending == NULL || !pending->is_cancelled) {
		if (pending != NULL) {
			pending->is_measuring = false;
		}
		(void)daemon_step(daemon, event); /* of one who is gone: nothing */
	} else if (change_find_request(daemon, event->client, event->request, &call)) {
		failure_set(&failure, WIRE_CANCELLED, "the request was cancelled");
		call_fail(&call, &failure);
	}
}

static void on_measured(struct daemon *daemon, struct errand *errand)
{
	struct measuring *measuring = container_of(errand, struct measuring, errand);
	struct core_event event = {.type = EV_AVAILABLE,
				   .budget = {
					   .bytes = daemon_available(daemon,
								     measuring->memory.available)}};

	if (measuring->code == 0) {
		(void)daemon_step(daemon, &event);
	}
	go_on_measured(daemon, &measuring->event);
	server_flush(daemon->server);
	drop_measuring(errand);
}

/* What the machine has left is looked at first: nothing else here may have been for hours. */
static void reserve_of_host(struct daemon *daemon, struct core_event *event)
{
	struct measuring *measuring = sys_calloc(1, sizeof *measuring);

	if (measuring != NULL) {
		measuring->errand = (struct errand){.work = measure,
						    .done = on_measured,
						    .drop = drop_measuring};
		measuring->event = *event;
		if (errand_start(daemon->errands, &measuring->errand)) {
			return;
		}
	}
	free(measuring);
	go_on_measured(daemon, event); /* by what was seen last */
}

void dispatch_reserve(const struct call *call, const struct wire_reserve_request *request)
{
	struct core_event event = {
		.type = EV_RESERVE,
		.client = call->client->id,
		.request = call->request,
		.reserve = {.bytes = request->bytes,
			    .ttl_ns = request->has_ttl_ms ? dispatch_ns_of(request->ttl_ms) : 0,
			    .recall_ns = request->has_recall_ms ? dispatch_ns_of(request->recall_ms)
								: 0},
	};

	struct pending *pending;

	if (!dispatch_take_device(call, request->device, &event.reserve.device)) {
		return;
	}
	if (request->bytes == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "bytes", "reserve more than 0 bytes");
		return;
	}
	if (request->has_ttl_ms && request->ttl_ms == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "ttl_ms",
			    "ttl_ms is 0: say how long, or leave it out for no end");
		return;
	}
	if (!takes_rooms(call, event.reserve.device)) {
		return;
	}
	pending = call_expect(call);
	if (pending == NULL) {
		return;
	}
	pending->device = event.reserve.device;
	pending->n_records = call->daemon->history.n_ever;
	if (event.reserve.device == 0) {
		pending->is_measuring = true;
		reserve_of_host(call->daemon, &event);
	} else {
		(void)daemon_step(call->daemon, &event);
	}
}

bool dispatch_cancel_reserve(const struct call *call, uint32_t request)
{
	struct pending *pending = client_find_pending(call->client, request);

	if (pending == NULL || !pending->is_measuring) {
		return false;
	}
	pending->is_cancelled = true;
	return true;
}

void dispatch_release(const struct call *call, const struct wire_release_request *request)
{
	struct core_event event = {.type = EV_RELEASE,
				   .client = call->client->id,
				   .request = call->request,
				   .release = {.reservation = request->token}};

	if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

/* ---- map ---- */

/* owner: its errand */
struct exporting {
	struct errand errand;
	uint64_t client, lease;
	uint32_t request;
	bool has_next;
	uint64_t next;
	uint32_t n_blocks;
	uint64_t blocks[DESCRIBE_MAX_IMAGES];
	uint64_t segments[DESCRIBE_MAX_IMAGES]; /* held */
	const struct extent *extents[DESCRIBE_MAX_IMAGES];
	struct wire_place places[DESCRIBE_MAX_IMAGES];
	char devices[DESCRIBE_MAX_IMAGES][16];
	int fds[DESCRIBE_MAX_IMAGES];
	uint32_t n_fds;
	struct err err;
};

static void exporting_free(struct errand *errand)
{
	struct exporting *exporting = container_of(errand, struct exporting, errand);

	for (uint32_t i = 0; i < exporting->n_fds; i++) {
		(void)close(exporting->fds[i]); /* read-only, nothing to lose */
	}
	free(exporting);
}

/* Those of one device by one call. */
static void export_them(struct errand *errand)
{
	struct exporting *exporting = container_of(errand, struct exporting, errand);
	int code = 0;

	while (code == 0 && exporting->n_fds < exporting->n_blocks) {
		const struct extent **first = &exporting->extents[exporting->n_fds];
		const uint32_t n_left = exporting->n_blocks - exporting->n_fds;
		uint32_t n_extents = 1;

		while (n_extents < n_left && first[n_extents]->device == first[0]->device) {
			n_extents++;
		}
		code = device_export_all(first, n_extents, &exporting->fds[exporting->n_fds],
					 &exporting->err);
		exporting->n_fds += code == 0 ? n_extents : 0;
	}
}

static void release_them(struct daemon *daemon, const struct exporting *exporting)
{
	struct client *client = daemon_find_client(daemon, exporting->client);

	if (client != NULL) {
		client->n_exporting -= exporting->n_blocks;
	}
	for (uint32_t i = 0; i < exporting->n_blocks; i++) {
		if (store_unhold_extent(daemon->store, exporting->segments[i])) {
			execute_drop_now(daemon, exporting->segments[i]);
		}
	}
}

static void answer_blocks(const struct call *call, struct exporting *exporting)
{
	const struct wire_map_response response = {
		.segments = {.items = exporting->places, .count = exporting->n_blocks},
		.has_blocks = true,
		.blocks = {.items = exporting->blocks, .count = exporting->n_blocks},
		.has_next = exporting->has_next,
		.next = exporting->next,
	};
	struct core_event event = {.type = EV_MAPPED,
				   .client = call->client->id,
				   .lease = {.lease = exporting->lease}};

	(void)daemon_step(call->daemon, &event); /* a lease that is over meanwhile: no harm */
	call_answer_fds(call, &response, exporting->fds, exporting->n_fds);
	exporting->n_fds = 0;
}

static void on_exported(struct daemon *daemon, struct errand *errand)
{
	struct exporting *exporting = container_of(errand, struct exporting, errand);
	struct core_lease_view lease;
	struct failure failure;
	struct call call;

	release_them(daemon, exporting);
	if (!change_find_request(daemon, exporting->client, exporting->request, &call)) {
		exporting_free(errand);
		return; /* gone */
	}
	if (exporting->err.code == 0 && !core_lease_get(daemon->core, exporting->lease, &lease)) {
		(void)err_set(&exporting->err, WIRE_NOT_FOUND, "the lease has ended");
	}
	if (exporting->err.code != 0) {
		failure_from_err(&failure, "", &exporting->err);
		call_fail(&call, &failure);
	} else {
		answer_blocks(&call, exporting);
	}
	server_flush(daemon->server);
	exporting_free(errand);
}

static void add_block(struct daemon *daemon, struct exporting *exporting,
		      const struct core_segment_view *segment, const struct extent *extent)
{
	uint32_t i = exporting->n_blocks++;

	store_hold_extent(daemon->store, segment->id);
	exporting->segments[i] = segment->id;
	exporting->blocks[i] = segment->index;
	exporting->extents[i] = extent;
	exporting->places[i] = (struct wire_place){
		.device = wire_str(
			describe_device_name(daemon, segment->device, exporting->devices[i])),
		.bytes = extent->bytes,
		.backing = wire_str("device"),
	};
}

/* Where the lease's blocks lay: what is leased goes by a loss only. */
struct leased_places {
	const uint8_t *places; /* of the published generation; NULL: on the host, or an older one */
	uint32_t n_blocks;
	bool is_older; /* of that no more is known than that it had some, be nothing of it there */
};

static struct leased_places find_places(const struct daemon *daemon,
					const struct core_lease_view *lease)
{
	const struct model_info *info = store_find_model(daemon->store, lease->model);
	struct leased_places ret = {.places = NULL};
	struct core_model_view view;

	if (info != NULL && core_model_get(daemon->core, lease->model, &view)) {
		ret.is_older = view.generation != lease->generation;
		ret.places = ret.is_older ? NULL : info->current.places;
		ret.n_blocks = info->current.n_blocks;
	}
	return ret;
}

static bool was_there(const struct leased_places *leased, uint64_t block)
{
	return leased->places != NULL && block < leased->n_blocks && leased->places[block] != 0;
}

/* The blocks of the range, in order, as many as one packet takes. */
static void gather_blocks(struct daemon *daemon, const struct core_lease_view *lease,
			  uint64_t first, uint64_t count, struct exporting *exporting)
{
	const uint32_t n_blocks = PLAN_MAX_BLOCKS;
	AUTO_FREE uint64_t *found = sys_calloc((size_t)n_blocks + 1, sizeof *found);
	struct core_segment_view segment;
	uint32_t cursor = 0;
	uint64_t end = count > UINT64_MAX - first ? UINT64_MAX : first + count;
	const struct leased_places leased = find_places(daemon, lease);
	bool has_found = false;

	if (found == NULL) {
		(void)err_set(&exporting->err, WIRE_NO_MEMORY, "no memory to find the blocks");
		return;
	}
	while (core_segment_next(daemon->core, lease->model, &cursor, &segment)) {
		if (segment.is_block && segment.state == SEGMENT_READY &&
		    segment.index < n_blocks && core_segment_is_of(&segment, lease->generation)) {
			found[segment.index] = segment.id;
			has_found = true;
		}
	}
	for (uint64_t i = first; i < end && i < n_blocks; i++) {
		const struct extent *extent = store_find_extent(daemon->store, found[i]);

		if (extent == NULL || !core_segment_get(daemon->core, found[i], &segment)) {
			if (was_there(&leased, i) || (leased.is_older && !has_found)) {
				(void)err_set(&exporting->err, WIRE_DEVICE_LOST,
					      "block %llu went with its device; load it again",
					      (unsigned long long)i);
				return;
			}
			continue;
		}
		if (exporting->n_blocks == DESCRIBE_MAX_IMAGES) {
			exporting->has_next = true;
			exporting->next = i;
			return;
		}
		add_block(daemon, exporting, &segment, extent);
	}
}

void dispatch_map_blocks(const struct call *call, const struct wire_map_request *request)
{
	struct exporting *exporting;
	struct core_lease_view lease;
	struct wire_list range = request->blocks;
	uint64_t first = 0;
	uint64_t count = 0;

	if (request->has_segments || !wire_list_next(&range, NULL, &first) ||
	    !wire_list_next(&range, NULL, &count) || count == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "blocks", "say [first, count], or segments");
		return;
	}
	if (!core_lease_get(call->daemon->core, request->lease, &lease) ||
	    lease.client != call->client->id) {
		call_refuse(call, WIRE_NOT_FOUND, "lease", "no such lease");
		return;
	}
	if (!lease.has_blocks) {
		call_refuse(call, WIRE_NOT_ALLOWED, "blocks",
			    "blocks on devices are given to processes of one user only");
		return;
	}
	exporting = sys_calloc(1, sizeof *exporting);
	if (exporting == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	exporting->errand =
		(struct errand){.work = export_them, .done = on_exported, .drop = exporting_free};
	exporting->client = call->client->id;
	exporting->request = call->request;
	exporting->lease = request->lease;
	gather_blocks(call->daemon, &lease, first, count, exporting);
	call->client->n_exporting += exporting->n_blocks;
	if (exporting->err.code == 0 && !client_may_have_fds(call->daemon, call->client, 0)) {
		(void)err_set(&exporting->err, WIRE_TOO_MANY,
			      "answers of this user that nobody has read yet, and blocks that are "
			      "being opened for him, have all descriptors that are his: read them "
			      "first");
	}
	if (call_expect(call) == NULL) {
		release_them(call->daemon, exporting);
		exporting_free(&exporting->errand);
		return;
	}
	if (exporting->n_blocks == 0 || exporting->err.code != 0 ||
	    !errand_start(call->daemon->errands, &exporting->errand)) {
		if (exporting->n_blocks > 0 && exporting->err.code == 0) {
			(void)err_set(&exporting->err, WIRE_NO_MEMORY,
				      "no thread to ask the devices");
		}
		on_exported(call->daemon, &exporting->errand);
	}
}
