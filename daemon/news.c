/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happened, told once in three places: a line of history, a line in the log, an event
 * for those who subscribed.
 */
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/units.h"

#include <stdio.h>
#include <string.h>
#include <utlist.h>

#include "daemon/answer.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/failure.h"
#include "daemon/ipc/conn.h"
#include "daemon/where.h"

#define NS_PER_MS 1000000U

/* The failure in words, kept with the model for those who ask later. */
static void fill_failure(struct daemon *daemon, const struct core_action *action,
			 struct model_info *info, struct record *record)
{
	const struct job_info *job = store_find_job(daemon->store, action->job);

	if (job != NULL && job->failure.code == action->code) {
		(void)wire_str_copy(wire_str(job->failure.text), record->text, sizeof record->text);
		record->device = CORE_ALL_DEVICES; /* the text says which */
		return;                            /* the model has it already */
	}
	if (action->note.note == CORE_NOTE_REFUSED) {
		(void)failure_refusal_text(daemon, action, record->text, sizeof record->text);
	} else if (action->code == WIRE_BUSY) {
		(void)failure_draining_text(daemon, job, record->text, sizeof record->text);
	}
	if (info != NULL && (action->note.note == CORE_NOTE_REFUSED ||
			     action->note.note == CORE_NOTE_LOAD_FAILED)) {
		(void)err_set(&info->failure, action->code, "%s",
			      record->text[0] != '\0'
				      ? record->text
				      : wire_code_info((enum wire_code)action->code)->text);
	}
}

/* Where it lies now, and after a move where it was before. */
static void fill_where(const struct daemon *daemon, const struct core_model_view *view,
		       struct record *record)
{
	struct sentence sentence = {.text = record->text, .capacity = sizeof record->text};
	bool is_move = record->type == CORE_NOTE_PLACED;
	char before[WHERE_SIZE] = "";
	char now[WHERE_SIZE];
	char why[128];

	(void)history_why_text(record, record->for_whom, why, sizeof why);
	if (is_move) {
		(void)where_before(daemon, view, before);
	}
	if (where_now(daemon, view, now)[0] == '\0') {
		return;
	}
	record->device = where_device(daemon, view);
	sentence_add(&sentence, "%s%s", why, why[0] != '\0' ? ", " : "");
	if (before[0] != '\0' && strcmp(before, now) != 0) {
		sentence_add(&sentence, "from %s ", before);
	}
	sentence_add(&sentence, "%s %s", is_move ? "to" : "into", now);
}

static void fill_record(struct daemon *daemon, const struct core_action *action,
			struct record *record)
{
	struct model_info *info = daemon_know_model(daemon, action->model);
	const struct client *client = daemon_find_client(daemon, action->client);
	struct core_model_view view;
	struct core_model_view other;
	bool has_view = core_model_get(daemon->core, action->model, &view);
	char name[512];

	record->at_ns = clock_boot_ns();
	record->real_ms = clock_real_ns() / NS_PER_MS;
	record->type = action->note.note;
	record->why = action->note.why;
	record->code = action->code;
	record->device = action->device;
	record->model = action->model;
	record->bytes = action->note.bytes;
	record->duration_ns = action->note.duration_ns;
	record->owner_uid = has_view ? view.owner_uid : action->note.uid;
	if (info != NULL) {
		memcpy(record->uuid, info->uuid, sizeof record->uuid);
		(void)wire_str_copy(wire_str(describe_name(daemon, info->id, name)), record->name,
				    sizeof record->name);
	}
	if (action->note.for_model != 0) {
		record->for_model = action->note.for_model;
		record->for_uid = core_model_get(daemon->core, record->for_model, &other)
					  ? other.owner_uid
					  : 0;
		(void)wire_str_copy(wire_str(describe_name(daemon, action->note.for_model, name)),
				    record->for_whom, sizeof record->for_whom);
	} else if (history_is_wish(record->type)) {
		(void)snprintf(record->for_whom, sizeof record->for_whom, "uid %u",
			       action->note.uid);
	} else if (client != NULL) { /* his label is not for everybody */
		(void)snprintf(record->for_whom, sizeof record->for_whom, "%s (PID %u)",
			       client->comm, client->pid);
	}
	if (has_view && (record->type == CORE_NOTE_LOAD_DONE || record->type == CORE_NOTE_PLACED)) {
		fill_where(daemon, &view, record);
	}
	if (info != NULL && record->type == CORE_NOTE_QUARANTINED) {
		(void)wire_str_copy(wire_str(info->bad_text), record->text, sizeof record->text);
	}
	if (action->code != 0) {
		fill_failure(daemon, action, info, record);
	}
}

static enum log_level level_of(enum core_note_type type)
{
	switch ((int)type) {
	case CORE_NOTE_LOAD_FAILED:
	case CORE_NOTE_PLACE_FAILED:
	case CORE_NOTE_REFUSED:
		return LOG_LEVEL_WARNING;
	case CORE_NOTE_QUARANTINED:
		return LOG_LEVEL_ERROR;
	case CORE_NOTE_LOAD_BEGUN:
		return LOG_LEVEL_DEBUG;
	default:
		return LOG_LEVEL_INFO;
	}
}

static const char *verb_of(enum core_note_type type)
{
	static const char *const verbs[CORE_NOTE_N_VALUES] = {
		[CORE_NOTE_LOAD_BEGUN] = "loading",
		[CORE_NOTE_LOAD_DONE] = "loaded",
		[CORE_NOTE_LOAD_FAILED] = "could not load",
		[CORE_NOTE_LOAD_CANCELLED] = "stopped loading",
		[CORE_NOTE_EVICTED] = "evicted",
		[CORE_NOTE_UNLOADED] = "unloaded",
		[CORE_NOTE_REFUSED] = "refused to load",
		[CORE_NOTE_PINNED] = "pinned",
		[CORE_NOTE_UNPINNED] = "unpinned",
		[CORE_NOTE_KEPT] = "kept",
		[CORE_NOTE_UNKEPT] = "no longer kept",
		[CORE_NOTE_QUARANTINED] = "quarantined",
		[CORE_NOTE_STALE] = "dropped an old copy of",
		[CORE_NOTE_HELD] = "cannot free",
		[CORE_NOTE_FREED] = "freed",
		[CORE_NOTE_PLACED] = "placed",
		[CORE_NOTE_PLACE_FAILED] = "could not move",
		[CORE_NOTE_PLACE_CANCELLED] = "stopped moving",
	};

	return verbs[type];
}

/* "evicted t5.safetensors (9.1G) from cuda:0: to make room for flux1-dev.safetensors" */
static void log_record(const struct daemon *daemon, const struct record *record)
{
	const bool has_device = record->device < daemon->n_devices;
	const bool has_left =
		has_device && record->device != 0 &&
		(record->type == CORE_NOTE_EVICTED || record->type == CORE_NOTE_UNLOADED);
	bool is_sentence = history_is_wish(record->type) || record->type == CORE_NOTE_LOAD_DONE;
	const char *before_why = is_sentence ? " " : ": ";
	const char *duration_text = "";
	char size[24] = "";
	char number[16];
	char duration[24];
	char why[256];
	char id[33];
	char bytes[24];
	char duration_us[24];
	char device[16] = "";
	const struct log_field fields[] = {
		{"DISTORCHD_EVENT", history_type_name(record->type)},
		{"DISTORCHD_MODEL", record->name},
		{"DISTORCHD_MODEL_ID", describe_id(record->uuid, id)},
		{"DISTORCHD_BYTES", bytes},
		{"DISTORCHD_DURATION_US", duration_us},
		{"DISTORCHD_DEVICE", device}, /* the last: not of all */
	};

	(void)snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)record->bytes);
	(void)snprintf(duration_us, sizeof duration_us, "%llu",
		       (unsigned long long)record->duration_ns / 1000U);
	(void)history_why_text(record, record->for_whom, why, (uint32_t)sizeof why);
	if (record->bytes != 0) {
		(void)snprintf(size, sizeof size, " (%s)",
			       units_format_size(record->bytes, number, sizeof number));
	}
	if (record->duration_ns != 0) {
		duration_text =
			units_format_duration(record->duration_ns, duration, sizeof duration);
	}
	if (has_device) {
		(void)describe_device_name(daemon, record->device, device);
	}
	log_event(level_of(record->type), fields,
		  sizeof fields / sizeof fields[0] - (has_device ? 0 : 1), "%s %s%s%s%s%s%s%s%s",
		  verb_of(record->type), record->name, size, has_left ? " from " : "",
		  has_left ? device : "", duration_text[0] != '\0' ? " in " : "", duration_text,
		  why[0] != '\0' ? before_why : "", why);
}

static bool wants(const struct daemon *daemon, const struct client *client, enum wire_event event,
		  const struct record *record)
{
	const struct subscription *subscription = &client->subscription;

	if (!subscription->is_active || client->conn == NULL ||
	    (subscription->events & (1ULL << (unsigned)event)) == 0 ||
	    !describe_may_see(daemon, client, record)) {
		return false;
	}
	for (uint32_t i = 0; i < subscription->n_models; i++) {
		if (memcmp(subscription->models[i], record->uuid, sizeof record->uuid) == 0) {
			return true;
		}
	}
	return subscription->models == NULL;
}

/* The next seq of a subscription; an overflow that is owed goes first. */
static bool begin_event(struct client *client, uint64_t *ret_seq)
{
	struct subscription *subscription = &client->subscription;

	if (subscription->has_overflow) {
		const struct wire_overflow_event overflow = {.seq = subscription->seq + 1};

		if (!conn_send_event(client->conn, WIRE_EVENT_OVERFLOW, &overflow)) {
			return false;
		}
		subscription->seq++;
		subscription->has_overflow = false;
	}
	*ret_seq = subscription->seq + 1;
	return true;
}

static void end_event(struct client *client, bool was_sent)
{
	if (was_sent) {
		client->subscription.seq++;
	} else {
		client->subscription.has_overflow = true;
	}
}

static void publish_record(const struct daemon *daemon, struct client *client,
			   const struct record *record)
{
	struct record_description description;
	struct wire_record_event event = {.has_seq = true};

	if (begin_event(client, &event.seq)) {
		describe_record(daemon, client, record, record->at_ns, &description);
		event.record = description.wire;
		end_event(client, conn_send_event(client->conn, WIRE_EVENT_RECORD, &event));
	}
}

static void publish_evicted(const struct daemon *daemon, struct client *client,
			    const struct record *record)
{
	struct record_description text;
	struct wire_evicted_event event = {.has_seq = true};

	if (begin_event(client, &event.seq)) {
		describe_record(daemon, client, record, record->at_ns, &text);
		event.model = text.wire.model;
		event.has_name = text.wire.has_name;
		event.name = text.wire.name;
		event.device = text.wire.device;
		event.bytes = record->bytes;
		event.why = text.wire.why;
		event.has_for_whom = text.wire.has_for_whom;
		event.for_whom = text.wire.for_whom;
		end_event(client, conn_send_event(client->conn, WIRE_EVENT_EVICTED, &event));
	}
}

static void publish_state(const struct daemon *daemon, struct client *client,
			  const struct record *record)
{
	struct model_description model;
	struct core_model_view view;
	struct wire_model_state_event event = {.has_seq = true};

	if (core_model_get(daemon->core, record->model, &view) && begin_event(client, &event.seq)) {
		describe_model(daemon, client, &view, &model);
		event.model = model.wire.id;
		event.has_name = model.wire.has_name;
		event.name = model.wire.name;
		event.state = model.wire.state;
		end_event(client, conn_send_event(client->conn, WIRE_EVENT_MODEL_STATE, &event));
	}
}

void answer_pressure(struct daemon *daemon, const char *device, uint64_t free_bytes,
		     uint64_t wanted_bytes)
{
	struct client *client;

	DL_FOREACH(daemon->clients, client)
	{
		struct wire_pressure_event event = {.device = wire_str(device),
						    .free = free_bytes,
						    .wanted = wanted_bytes,
						    .has_seq = true};

		if (client->conn != NULL && client->subscription.is_active &&
		    (client->subscription.events & (1ULL << WIRE_EVENT_PRESSURE)) != 0 &&
		    begin_event(client, &event.seq)) {
			end_event(client,
				  conn_send_event(client->conn, WIRE_EVENT_PRESSURE, &event));
		}
	}
}

void answer_device(struct daemon *daemon, uint32_t device)
{
	const struct known_device *known = &daemon->devices[device];
	struct client *client;

	DL_FOREACH(daemon->clients, client)
	{
		struct wire_device_event event = {.name = wire_str(known->name),
						  .uuid = wire_str(known->info.uuid),
						  .state =
							  wire_str(device_state_name(known->state)),
						  .has_seq = true};

		if (client->conn != NULL && client->subscription.is_active &&
		    (client->subscription.events & (1ULL << WIRE_EVENT_DEVICE)) != 0 &&
		    begin_event(client, &event.seq)) {
			end_event(client, conn_send_event(client->conn, WIRE_EVENT_DEVICE, &event));
		}
	}
}

static bool changes_state(enum core_note_type type)
{
	return !history_is_wish(type) && type != CORE_NOTE_REFUSED;
}

void answer_load_ended(struct daemon *daemon, const struct core_action *action)
{
	const struct job_info *job = store_find_job(daemon->store, action->job);
	const struct model_info *model = store_find_model(daemon->store, action->model);
	char id[33];

	for (uint32_t i = 0; job != NULL && model != NULL && i < job->n_watchers; i++) {
		const struct client *client = daemon_find_client(daemon, job->watchers[i].client);
		struct core_action to_him = *action;
		struct failure failure;
		struct wire_load_done_event event = {
			.has_request = true,
			.request = job->watchers[i].request,
			.model = wire_str(describe_id(model->uuid, id)),
			.has_error = action->code != 0,
		};

		if (client == NULL || client->conn == NULL) {
			continue;
		}
		if (action->code != 0) {
			to_him.client = client->id;
			failure_from_reply(&failure, daemon, &to_him);
			event.error = failure.wire;
		}
		(void)conn_send_event(client->conn, WIRE_EVENT_LOAD_DONE, &event);
	}
}

void answer_follow(struct daemon *daemon, const struct core_action *action)
{
	struct job_info *ended = store_find_job(daemon->store, action->job);
	struct job_info *next;
	uint32_t n_kept = 0;

	if (ended == NULL || ended->n_watchers == 0) {
		return;
	}
	next = store_get_job(daemon->store, action->follow.next, action->model);
	for (uint32_t i = 0; i < ended->n_watchers; i++) {
		if (next == NULL || next->n_watchers == STORE_MAX_WATCHERS ||
		    ended->watchers[i].placement == CORE_PLACEMENT_ANY ||
		    ended->watchers[i].placement == action->follow.placement) {
			ended->watchers[n_kept++] = ended->watchers[i];
		} else {
			next->watchers[next->n_watchers++] = ended->watchers[i];
		}
	}
	ended->n_watchers = n_kept;
}

static void remember_evicted(struct daemon *daemon, const struct core_action *action)
{
	struct job_info *job = store_find_job(daemon->store, action->job);

	if (action->note.why == CORE_WHY_ROOM && job != NULL &&
	    job->n_evicted < STORE_MAX_EVICTED) {
		job->evicted[job->n_evicted].model = action->model;
		job->evicted[job->n_evicted].bytes = action->note.bytes;
		job->evicted[job->n_evicted].why = action->note.why;
		job->n_evicted++;
	}
}

void answer_find_went(const struct daemon *daemon, const struct client *viewer, uint64_t cursor,
		      enum core_why why, uint32_t device, struct answer_went *ret)
{
	const uint64_t now_ns = clock_boot_ns();
	const struct record *record;

	ret->n_outcomes = 0;
	while (ret->n_outcomes < ANSWER_MAX_WENT &&
	       (record = history_next(&daemon->history, &cursor)) != NULL) {
		struct record_description *text = &ret->texts[ret->n_outcomes];

		if (record->type != CORE_NOTE_EVICTED || record->why != why ||
		    (device != ANSWER_ANY_DEVICE && record->device != device) ||
		    !describe_may_see(daemon, viewer, record)) {
			continue;
		}
		describe_record(daemon, viewer, record, now_ns, text);
		ret->outcomes[ret->n_outcomes++] =
			(struct wire_outcome){.id = text->wire.model,
					      .has_name = text->wire.has_name,
					      .name = text->wire.name,
					      .reason = text->wire.why,
					      .bytes = record->bytes};
	}
}

void answer_note(struct daemon *daemon, const struct core_action *action)
{
	struct record *record = history_add(&daemon->history);
	enum core_note_type type = action->note.note;
	bool is_departure = type == CORE_NOTE_EVICTED || type == CORE_NOTE_UNLOADED;

	daemon->metrics.n_notes[type][action->note.why]++;
	fill_record(daemon, action, record);
	log_record(daemon, record);
	if (type == CORE_NOTE_EVICTED) {
		remember_evicted(daemon, action);
	}
	if (type == CORE_NOTE_LOAD_DONE) {
		daemon->metrics.bytes_read += action->note.bytes;
		metrics_count_load(&daemon->metrics, action->note.duration_ns);
	}
	for (struct client *client = daemon->clients; client != NULL; client = client->next) {
		if (wants(daemon, client, WIRE_EVENT_RECORD, record)) {
			publish_record(daemon, client, record);
		}
		if (is_departure && wants(daemon, client, WIRE_EVENT_EVICTED, record)) {
			publish_evicted(daemon, client, record);
		}
		if (changes_state(type) && wants(daemon, client, WIRE_EVENT_MODEL_STATE, record)) {
			publish_state(daemon, client, record);
		}
	}
}
