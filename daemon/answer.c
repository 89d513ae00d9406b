/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core's answers and news into messages: the way back of dispatch. A client that has
 * gone meanwhile is simply not told.
 */
#include "daemon/answer.h"

#include "base/cleanup.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/require.h"
#include "base/units.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/describe_use.h"
#include "daemon/device/device.h"
#include "daemon/failure.h"
#include "daemon/ipc/conn.h"
#include "daemon/placement.h"
#include "daemon/recall.h"
#include "daemon/warm.h"
#include "proto/wire.h"

#define NS_PER_MS 1000000U

#define CHECK_TEXT_SIZE 257

static void respond(const struct client *client, const struct pending *pending,
		    const void *response, int *fds, uint32_t n_fds)
{
	conn_respond_ok(client->conn, pending->request, &wire_messages[pending->method], response,
			fds, n_fds);
}

/* The descriptors of a grant: the table, then images when they are to be mapped: as many as one
 * packet takes, the rest is for `map`. */
static int open_grant(const struct daemon *daemon, const struct client *client,
		      const struct core_action *action, int fds[1 + DESCRIBE_MAX_IMAGES],
		      uint32_t *ret_n_fds)
{
	const struct model_info *info = store_find_model(daemon->store, action->model);
	const struct image_range range = {.model = action->model,
					  .generation = action->reply.generation,
					  .count = DESCRIBE_MAX_IMAGES};
	uint32_t n_images = 0;
	int code = 0;

	REQUIRE(info != NULL && info->current.table_fd >= 0);
	if (!client_may_have_fds(daemon, client, 1)) {
		return -WIRE_TOO_MANY;
	}
	fds[0] = sys_fcntl_dup(info->current.table_fd);
	if (fds[0] < 0) {
		return -WIRE_TOO_MANY;
	}
	if (action->reply.map) {
		code = describe_images(daemon, &range, fds + 1, &n_images);
	}
	*ret_n_fds = 1 + n_images;
	return code;
}

static const char *source_name(enum core_source source)
{
	static const char *const names[] = {
		[CORE_SOURCE_BEGUN] = "begun",
		[CORE_SOURCE_DISK] = "disk",
		[CORE_SOURCE_RAM] = "ram",
		[CORE_SOURCE_JOINED] = "joined",
	};

	return names[source];
}

/* What made room for a load, as lines of its answer. */
struct evicted {
	struct wire_outcome outcomes[STORE_MAX_EVICTED];
	struct {
		char id[33];
		char name[512];
	} texts[STORE_MAX_EVICTED];
};

/* Returns what 'response' borrows, to be freed by the caller; NULL: nothing, or no memory. */
static struct evicted *describe_evicted(const struct daemon *daemon, const struct client *viewer,
					uint64_t job_id, bool *ret_has, struct wire_list *ret)
{
	const struct job_info *job = store_find_job(daemon->store, job_id);
	bool is_some = job != NULL && job->n_evicted > 0;
	struct evicted *evicted = is_some ? sys_calloc(1, sizeof *evicted) : NULL;
	uint32_t n_outcomes = 0;

	*ret_has = evicted != NULL || !is_some;
	for (uint32_t i = 0; evicted != NULL && i < job->n_evicted; i++) {
		const struct model_info *victim =
			store_find_model(daemon->store, job->evicted[i].model);

		if (victim == NULL) {
			continue;
		}
		evicted->outcomes[n_outcomes] = (struct wire_outcome){
			.id = wire_str(describe_id(victim->uuid, evicted->texts[n_outcomes].id)),
			.has_name = core_client_may(daemon->core, viewer->id, victim->id),
			.name = wire_str(
				describe_name(daemon, victim->id, evicted->texts[n_outcomes].name)),
			.reason = wire_str("to make room"),
			.bytes = job->evicted[i].bytes,
		};
		n_outcomes++;
	}
	ret->items = evicted == NULL ? NULL : evicted->outcomes;
	ret->count = n_outcomes;
	return evicted;
}

/* Apart from its caller: both need much stack. */
__attribute__((noinline)) static void answer_failure(struct daemon *daemon,
						     const struct client *client,
						     const struct pending *pending,
						     const struct core_action *action)
{
	struct failure failure;
	uint32_t n_skipped = 0;

	failure_from_reply(&failure, daemon, action);
	if (pending->method == WIRE_METHOD_RESERVE &&
	    (action->code == WIRE_NO_MEMORY || action->code == WIRE_BUSY) &&
	    log_allows("refused-room", client->uid, clock_mono_ns(), &n_skipped)) {
		log_warning("refused room for %s (PID %u, uid %u): %s (%u more since)",
			    client_display(client), client->pid, client->uid, failure.message,
			    n_skipped);
	}
	conn_respond_error(client->conn, pending->request, &failure.wire);
}

/* Where the blocks lie, for who may have them. False: no memory. */
static bool describe_lease(const struct daemon *daemon, const struct core_action *action,
			   struct layout_description *ret)
{
	const struct model_info *info = store_find_model(daemon->store, action->model);
	struct core_lease_view lease;

	*ret = (struct layout_description){.letters = NULL};
	return info == NULL || !core_lease_get(daemon->core, action->reply.lease, &lease) ||
	       !lease.has_blocks || describe_layout(daemon, info, ret);
}

/* What the plan of the job's placement warned of. */
static bool describe_warnings(const struct daemon *daemon, uint64_t job_id, struct wire_list *ret)
{
	const struct job_info *job = store_find_job(daemon->store, job_id);

	if (job == NULL || job->warnings == NULL) {
		return false;
	}
	*ret = (struct wire_list){.items = job->warnings->items, .count = job->warnings->count};
	return true;
}

static void answer_load(struct daemon *daemon, struct client *client, const struct pending *pending,
			const struct core_action *action)
{
	struct model_description model;
	struct core_model_view view;
	struct wire_load_response response = {0};
	AUTO_FREE struct evicted *evicted = NULL;
	int fds[1 + DESCRIBE_MAX_IMAGES];
	uint32_t n_fds = 0;
	struct layout_description layout = {.letters = NULL};
	AUTO_FREE char *letters = NULL;
	int code = action->reply.lease == 0 ? 0 : open_grant(daemon, client, action, fds, &n_fds);

	if (code == 0 && !describe_lease(daemon, action, &layout)) {
		code = -WIRE_NO_MEMORY;
	}
	/* NOLINTNEXTLINE(clang-analyzer-deadcode.DeadStores): freed at the end of the scope */
	letters = layout.letters;
	if (code < 0) {
		for (uint32_t i = 0; i < n_fds; i++) {
			(void)close(fds[i]); /* read-only, nothing to lose */
		}
		daemon_revoke(daemon, client->id, action->reply.lease);
		answer_failure(daemon, client, pending,
			       &(struct core_action){.code = -code, .model = action->model});
		return;
	}
	REQUIRE(core_model_get(daemon->core, action->model, &view));
	(void)daemon_know_model(daemon, action->model); /* with no_wait the first word of it */
	describe_model(daemon, client, &view, &model);
	if (pending->method == WIRE_METHOD_ATTACH) {
		const struct wire_attach_response attached = {
			.lease = action->reply.lease,
			.generation = action->reply.generation,
			.images = n_fds - 1,
			.model = model.wire,
			.has_layout = layout.letters != NULL,
			.layout = layout.wire,
		};

		respond(client, pending, &attached, fds, n_fds);
		return;
	}
	daemon->metrics.n_from_memory += action->reply.source == CORE_SOURCE_RAM ? 1 : 0;
	response.model = model.wire;
	response.source = wire_str(source_name(action->reply.source));
	response.has_duration_ms = true;
	response.duration_ms = (clock_mono_ns() - pending->begun_ns) / NS_PER_MS;
	/* NOLINTNEXTLINE(clang-analyzer-deadcode.DeadStores): freed at the end of the scope */
	evicted = describe_evicted(daemon, client, action->job, &response.has_evicted,
				   &response.evicted);
	response.has_lease = response.has_generation = response.has_images = action->reply.lease !=
									     0;
	response.lease = action->reply.lease;
	response.generation = action->reply.generation;
	response.images = n_fds > 0 ? n_fds - 1 : 0;
	response.has_layout = layout.letters != NULL;
	response.layout = layout.wire;
	response.has_warnings = describe_warnings(daemon, action->job, &response.warnings);
	respond(client, pending, &response, fds, n_fds);
}

static void answer_place(struct daemon *daemon, const struct client *client,
			 const struct pending *pending, const struct core_action *action)
{
	const struct job_info *job = store_find_job(daemon->store, action->job);
	struct model_description model;
	struct core_model_view view;
	struct wire_place_response response = {
		.has_moved = true,
		.moved = job == NULL ? 0 : job->moved,
		.has_duration_ms = true,
		.duration_ms = (clock_mono_ns() - pending->begun_ns) / NS_PER_MS,
	};
	AUTO_FREE struct evicted *evicted = NULL;

	REQUIRE(core_model_get(daemon->core, action->model, &view));
	describe_model(daemon, client, &view, &model);
	response.model = model.wire;
	/* NOLINTNEXTLINE(clang-analyzer-deadcode.DeadStores): freed at the end of the scope */
	evicted = describe_evicted(daemon, client, action->job, &response.has_evicted,
				   &response.evicted);
	response.has_warnings = describe_warnings(daemon, action->job, &response.warnings);
	respond(client, pending, &response, NULL, 0);
}

static void answer_set(struct daemon *daemon, const struct client *client, struct pending *pending,
		       const struct core_action *action)
{
	struct model_info *info = store_find_model(daemon->store, action->model);
	struct model_description model;
	struct core_model_view view;
	struct wire_set_response response;

	if (pending->label != NULL && info != NULL) {
		free(info->label);
		info->label = pending->label[0] == '\0' ? NULL : steal_ptr(&pending->label);
	}
	REQUIRE(core_model_get(daemon->core, action->model, &view));
	describe_model(daemon, client, &view, &model);
	response.model = model.wire;
	respond(client, pending, &response, NULL, 0);
}

/* Reason of one line, in words. Returns 'buffer'. */
static const char *line_reason(const struct daemon *daemon, const struct client *viewer,
			       const struct answer_line *line, char *buffer, size_t buffer_size)
{
	const struct client *holder = daemon_find_client(daemon, line->holder);

	if (line->why == CORE_WHY_WANTED) {
		(void)snprintf(buffer, buffer_size, "wanted by uid %u", line->uid);
	} else if (holder != NULL && line->why == CORE_WHY_IN_USE) {
		(void)snprintf(buffer, buffer_size, "in use by PID %u (%s)", holder->pid,
			       client_display_to(viewer, holder));
	} else if (holder != NULL && line->why == CORE_WHY_MAPPED) {
		(void)snprintf(buffer, buffer_size,
			       "still mapped by PID %u (%s), frees when it closes", holder->pid,
			       client_display_to(viewer, holder));
	} else if (line->why == CORE_WHY_PINNED || line->why == CORE_WHY_KEPT) {
		(void)snprintf(buffer, buffer_size, "%s by uid %u",
			       line->why == CORE_WHY_PINNED ? "pinned" : "kept", line->uid);
	} else if (line->why == CORE_WHY_FAILED) {
		(void)snprintf(buffer, buffer_size, "its failed load is forgotten");
	} else if (line->why == CORE_WHY_CANCELLED) {
		(void)snprintf(buffer, buffer_size, "its load was ended");
	} else {
		(void)snprintf(buffer, buffer_size, "%s", history_why_words(line->why));
	}
	return buffer;
}

/* Who holds what the line tells of, now: while leases were waited for he whom the core named may
 * have let go, and another leases it still. 0: nobody who is known. */
static uint64_t find_holder(const struct daemon *daemon, const struct answer_line *line)
{
	struct core_holder_view holder;
	uint32_t cursor = 0;
	uint64_t found = 0;

	if (line->why != CORE_WHY_IN_USE) {
		return daemon_find_client(daemon, line->holder) != NULL ? line->holder : 0;
	}
	while (core_holder_next(daemon->core, line->model, &cursor, &holder)) {
		if (holder.is_live && (found == 0 || holder.client == line->holder)) {
			found = holder.client;
		}
	}
	return found;
}

struct unload_texts {
	char reason[256];
	struct wire_holder holder;
};

static void answer_unload(struct daemon *daemon, const struct client *client,
			  const struct pending *pending)
{
	struct wire_unload_response response = {0};
	struct wire_list *lists[] = {
		[CORE_OUTCOME_KEPT] = &response.kept,
		[CORE_OUTCOME_UNLOADED] = &response.unloaded,
		[CORE_OUTCOME_HELD] = &response.held,
	};
	AUTO_FREE struct wire_outcome *outcomes =
		sys_calloc((size_t)pending->n_lines + 1, sizeof *outcomes);
	AUTO_FREE struct unload_texts *texts =
		sys_calloc((size_t)pending->n_lines + 1, sizeof *texts);
	uint32_t n_outcomes = 0;

	if (outcomes == NULL || texts == NULL) {
		conn_respond_no_memory(client->conn, pending->request);
		return;
	}
	for (int outcome = CORE_OUTCOME_KEPT; outcome <= CORE_OUTCOME_HELD; outcome++) {
		lists[outcome]->items = outcomes + n_outcomes;
		for (uint32_t i = 0; i < pending->n_lines; i++) {
			struct answer_line *line = &pending->lines[i];
			struct wire_outcome *wire = &outcomes[n_outcomes];

			if ((int)line->outcome != outcome) {
				continue;
			}
			wire->id = wire_str(line->uuid);
			wire->has_name = line->name[0] != '\0';
			wire->name = wire_str(line->name);
			wire->bytes = line->bytes;
			line->holder = find_holder(daemon, line);
			wire->reason = wire_str(line_reason(daemon, client, line, texts[i].reason,
							    sizeof texts[i].reason));
			if (line->holder != 0) {
				describe_holder(daemon, client, line->holder, line->bytes,
						&texts[i].holder);
				wire->has_holders = true;
				wire->holders.items = &texts[i].holder;
				wire->holders.count = 1;
			}
			response.total_bytes += outcome == CORE_OUTCOME_UNLOADED ? line->freed : 0;
			lists[outcome]->count++;
			n_outcomes++;
		}
	}
	respond(client, pending, &response, NULL, 0);
}

void answer_recalled(struct daemon *daemon, struct client *client, struct pending *pending)
{
	if (client->conn != NULL) {
		answer_unload(daemon, client, pending);
	}
	pending_clear(pending);
}

void answer_unload_item(struct daemon *daemon, const struct core_action *action)
{
	struct client *client = daemon_find_client(daemon, action->client);
	struct pending *pending = client == NULL ? NULL
						 : client_find_pending(client, action->request);
	struct answer_line *line;
	uint64_t mapper;

	if (pending == NULL || (line = describe_add_line(daemon, pending, action->model)) == NULL) {
		return;
	}
	line->outcome = action->unload.outcome;
	line->why = action->unload.why;
	line->bytes = action->unload.bytes;
	line->freed = action->unload.freed;
	if (line->why == CORE_WHY_IN_USE) {
		line->was_mapped = recall_mapped(daemon, action->model, &mapper);
	}
	line->holder = action->unload.holder;
	line->uid = action->unload.uid;
}

/* Returns 'buffer'. */
static const char *check_text(const struct answer_line *line, const struct model_info *info,
			      char buffer[CHECK_TEXT_SIZE])
{
	bool is_bad = line->code == WIRE_BAD_FILE && info != NULL;

	if (line->is_partial) {
		(void)snprintf(buffer, CHECK_TEXT_SIZE, "the rest of it is not in memory");
		return buffer;
	}
	(void)snprintf(buffer, CHECK_TEXT_SIZE, "%s%s",
		       is_bad ? info->bad_text : wire_code_info((enum wire_code)line->code)->text,
		       is_bad ? "; it is being loaded again" : "");
	return buffer;
}

/* Of tensors, in what is there of it. */
static uint64_t held_bytes(const struct daemon *daemon, const struct core_model_view *model)
{
	struct core_segment_view segment;
	uint32_t cursor = 0;
	uint64_t bytes = 0;

	while (core_segment_next(daemon->core, model->id, &cursor, &segment)) {
		if (segment.state == SEGMENT_READY && !segment.is_bare &&
		    core_segment_is_of(&segment, model->generation)) {
			bytes += segment.size - segment.padding;
		}
	}
	return bytes;
}

static void answer_verify(struct daemon *daemon, const struct client *client,
			  struct pending *pending, const struct core_action *action)
{
	struct answer_line *line = describe_add_line(daemon, pending, action->model);
	struct core_model_view view;
	struct wire_verify_response response = {0};
	AUTO_FREE struct wire_check *checks = NULL;
	AUTO_FREE char(*texts)[CHECK_TEXT_SIZE] = NULL;

	if (line != NULL && core_model_get(daemon->core, action->model, &view)) {
		line->is_partial = action->code == 0 && view.state == CORE_MODEL_PARTIAL;
		line->bytes = line->is_partial ? held_bytes(daemon, &view) : view.key.size;
	}
	if (line != NULL) {
		line->code = action->code;
	}
	pending->n_expected--;
	if (pending->n_expected > 0) {
		return;
	}
	checks = sys_calloc((size_t)pending->n_lines + 1, sizeof *checks);
	texts = sys_calloc((size_t)pending->n_lines + 1, sizeof *texts);
	if (checks == NULL || texts == NULL) {
		conn_respond_no_memory(client->conn, pending->request);
		return;
	}
	for (uint32_t i = 0; i < pending->n_lines; i++) {
		const struct answer_line *done = &pending->lines[i];
		const struct model_info *info = store_find_model(daemon->store, done->model);

		checks[i] = (struct wire_check){
			.id = wire_str(done->uuid),
			.has_name = true,
			.name = wire_str(done->name),
			.ok = done->code == 0,
			.bytes = done->bytes,
			.has_offset = done->code == WIRE_BAD_FILE && info != NULL,
			.offset = info == NULL ? 0 : info->bad_at,
			.has_text = done->code != 0 || done->is_partial,
			.text = wire_str(check_text(done, info, texts[i])),
		};
	}
	response.checks.items = checks;
	response.checks.count = pending->n_lines;
	respond(client, pending, &response, NULL, 0);
}

static void answer_reserve(const struct daemon *daemon, const struct client *client,
			   const struct pending *pending, const struct core_action *action)
{
	struct wire_reserve_response response = {.token = action->reply.lease};
	char name[DEVICE_NAME_SIZE];
	AUTO_FREE struct answer_went *went = sys_calloc(1, sizeof *went);

	if (went != NULL) { /* else there is room all the same, and not told is what made it */
		answer_find_went(daemon, client, pending->n_records, CORE_WHY_RESERVED,
				 pending->device, went);
		response.has_evicted = true;
		response.evicted.items = went->outcomes;
		response.evicted.count = went->n_outcomes;
	}
	log_info("room on %s is reserved for %s (PID %u, uid %u)",
		 describe_device_name(daemon, pending->device, name), client_display(client),
		 client->pid, client->uid);
	respond(client, pending, &response, NULL, 0);
}

static void answer_ok(struct daemon *daemon, struct client *client, struct pending *pending,
		      const struct core_action *action)
{
	static const struct wire_detach_response nothing;
	static const struct wire_cancel_response cancelled = {.found = true};

	switch ((int)pending->method) {
	case WIRE_METHOD_LOAD:
	case WIRE_METHOD_ATTACH:
		answer_load(daemon, client, pending, action);
		break;
	case WIRE_METHOD_PLACE:
		answer_place(daemon, client, pending, action);
		break;
	case WIRE_METHOD_SET:
		answer_set(daemon, client, pending, action);
		break;
	case WIRE_METHOD_RESERVE:
		answer_reserve(daemon, client, pending, action);
		break;
	case WIRE_METHOD_CANCEL:
		respond(client, pending, &cancelled, NULL, 0);
		break;
	case WIRE_METHOD_UNLOAD:
		answer_unload(daemon, client, pending);
		break;
	default: /* detach, unmapped */
		respond(client, pending, &nothing, NULL, 0);
		break;
	}
}

static void watch_begun_job(struct daemon *daemon, const struct core_action *action)
{
	struct job_info *job = store_get_job(daemon->store, action->job, action->model);

	if (job == NULL || job->n_watchers == STORE_MAX_WATCHERS) {
		return; /* load.done is news, the load itself goes on */
	}
	job->watchers[job->n_watchers].client = action->client;
	job->watchers[job->n_watchers].request = action->request;
	job->watchers[job->n_watchers].placement = action->reply.placement;
	job->n_watchers++;
}

void answer_reply(struct daemon *daemon, const struct core_action *action)
{
	struct client *client = daemon_find_client(daemon, action->client);
	struct pending *pending = client == NULL ? NULL
						 : client_find_pending(client, action->request);

	if (pending == NULL) {
		warm_answered(daemon, action); /* else gone, or a revoked lease */
		return;
	}
	if (action->code == 0 && pending->method == WIRE_METHOD_LOAD &&
	    action->reply.source == CORE_SOURCE_BEGUN) {
		watch_begun_job(daemon, action);
	}
	if (client->conn == NULL) {
		pending_clear(pending);
		return;
	}
	/* A cancelled verify has one answer, without a model, for all that it still waits for. */
	if (pending->method == WIRE_METHOD_VERIFY &&
	    (action->code != WIRE_CANCELLED || action->model != 0)) {
		answer_verify(daemon, client, pending, action);
		if (pending->n_expected > 0) {
			return;
		}
	} else if (action->code != 0) {
		answer_failure(daemon, client, pending, action);
	} else if (recall_waits(daemon, pending)) {
		return;
	} else {
		answer_ok(daemon, client, pending, action);
	}
	pending_clear(pending);
}

void answer_progress(struct daemon *daemon, const struct core_action *action)
{
	static const char *const phases[] = {
		[CORE_PHASE_QUEUED] = "queued",     [CORE_PHASE_HEADER] = "header",
		[CORE_PHASE_ROOM] = "room",         [CORE_PHASE_READING] = "reading",
		[CORE_PHASE_CHECKING] = "checking", [CORE_PHASE_STALLED] = "stalled",
	};
	const struct client *client = daemon_find_client(daemon, action->client);
	struct wire_load_progress_event event;
	struct core_model_view model;
	char id[33];

	if (client == NULL || client->conn == NULL ||
	    !core_model_get(daemon->core, action->model, &model)) {
		return;
	}
	event = (struct wire_load_progress_event){
		.has_request = true,
		.request = action->request,
		.model = wire_str(describe_id(model.uuid, id)),
		.phase = wire_str(phases[action->progress.phase]),
		.bytes = action->progress.bytes,
		.total = action->progress.total,
	};
	(void)conn_send_event(client->conn, WIRE_EVENT_LOAD_PROGRESS, &event); /* next one wins */
}

void answer_recall(struct daemon *daemon, const struct core_action *action)
{
	const struct client *client = daemon_find_client(daemon, action->client);
	const struct client *other = daemon_find_client(daemon, action->recall.for_client);
	char reason[160];
	char model[512];
	char name[PLAN_LABEL_SIZE];
	struct wire_recall_event event = {
		.lease = action->recall.lease,
		.has_for_whom = other != NULL,
		.for_whom = wire_str(other == NULL ? "" : client_display_to(client, other)),
		.deadline_ms = action->recall.within_ns / NS_PER_MS,
	};

	if (action->device == CORE_ALL_DEVICES) {
		(void)snprintf(reason, sizeof reason, "it is to be unloaded");
	} else {
		(void)snprintf(reason, sizeof reason, "room on %s is asked for",
			       describe_device_label(daemon, action->device, name));
	}
	event.reason = wire_str(reason);
	if (client != NULL && client->conn != NULL) {
		log_info("asked %s (PID %u) to let go of %s: %s", client_display(client),
			 client->pid, describe_name(daemon, action->model, model), reason);
		(void)conn_send_event(client->conn, WIRE_EVENT_RECALL, &event); /* owned: queued */
	}
}

void answer_lost(struct daemon *daemon, const struct core_action *action)
{
	const struct client *client = daemon_find_client(daemon, action->client);
	const struct wire_lost_event event = {
		.lease = action->lost.lease,
		.reason = wire_str(history_why_words(action->lost.why)),
	};

	if (client != NULL && client->conn != NULL) {
		(void)conn_send_event(client->conn, WIRE_EVENT_LOST, &event); /* owned: queued */
	}
}
