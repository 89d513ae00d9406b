/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events: progress goes to the load that waits for it, everything else into a bounded queue
 * that distorch_next_event empties. A queued event is its packet.
 */
#include "client/event.h"

#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "client/convert.h"
#include "client/error.h"
#include "client/keeper.h"
#include "client/options.h"
#include "client/result.h"

#define QUEUE_EVENTS       1024
#define QUEUE_BYTES        ((size_t)4 << 20)
#define QUEUE_OWNED_EVENTS 4096 /* then the oldest of them go too */
#define OWN_EVENT_BYTES    512

struct event {
	struct list link; /* owner: distorch::events */
	enum wire_event number;
	bool is_owned;  /* others are dropped first */
	uint64_t lease; /* of a recall or a lost; else 0 */
	size_t size;
	uint8_t bytes[];
};

static void event_remove(struct distorch *c, struct event *event)
{
	list_remove(&event->link);
	c->n_events--;
	c->events_bytes -= event->size;
	free(event);
}

void client_drop_events(struct distorch *c)
{
	LIST_FOR_EACH_SAFE (link, &c->events) {
		event_remove(c, container_of(link, struct event, link));
	}
}

static void event_append(struct distorch *c, enum wire_event number, uint64_t lease,
			 const void *bytes, size_t size)
{
	struct event *event = malloc(sizeof *event + size);

	if (event == NULL) {
		client_lose(c, DISTORCH_E_INTERNAL, "out of memory for events");
		return;
	}
	event->number = number;
	event->is_owned = wire_events[number].is_owned || number == WIRE_EVENT_GOODBYE ||
			  number == WIRE_EVENT_OVERFLOW;
	event->lease = lease;
	event->size = size;
	memcpy(event->bytes, bytes, size);
	list_append(&c->events, &event->link);
	c->n_events++;
	c->events_bytes += size;
	pthread_cond_broadcast(&c->changed);
}

static bool queue_is_full(const struct distorch *c)
{
	return c->n_events >= QUEUE_EVENTS || c->events_bytes >= QUEUE_BYTES;
}

/* A newer word takes the place of an older one that was not read yet: who never reads, and
 * another client that asks often, do not fill the queue. */
static void queue_forget(struct distorch *c, enum wire_event number, uint64_t lease)
{
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): a freed one takes itself off the list */
	LIST_FOR_EACH_SAFE (link, &c->events) {
		struct event *event = container_of(link, struct event, link);

		if (event->number == number && event->lease == lease) {
			event_remove(c, event);
		}
	}
}

/* Without making room. */
static void queue_own(struct distorch *c, enum wire_event number, const void *fields)
{
	uint8_t packet[OWN_EVENT_BYTES];
	struct wire_buffer buffer = {.bytes = packet, .capacity = sizeof packet};

	if (wire_encode_event(&buffer, number, fields, 0)) {
		event_append(c, number, 0, packet, buffer.size);
	}
}

/* Make room: all that nobody owns go, and where the others are too many the oldest of them; one
 * overflow stands for what went. */
static void queue_shed(struct distorch *c)
{
	const struct wire_overflow_event fields = {.seq = 0};
	bool has_shed = false;

	for (int of_owned = 0; of_owned <= 1; of_owned++) {
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): as above */
		LIST_FOR_EACH_SAFE (link, &c->events) {
			struct event *event = container_of(link, struct event, link);

			if (of_owned ? c->n_events >= QUEUE_OWNED_EVENTS : !event->is_owned) {
				event_remove(c, event);
				has_shed = true;
			}
		}
	}
	if (has_shed) {
		queue_forget(c, WIRE_EVENT_OVERFLOW, 0);
		queue_own(c, WIRE_EVENT_OVERFLOW, &fields);
	}
}

/* The call whose thread waits for this progress; NULL when there is none. */
static struct call *progress_call(struct distorch *c, const struct wire_load_progress_event *news)
{
	LIST_FOR_EACH (link, &c->calls) {
		struct call *call = container_of(link, struct call, link);

		if (call->has_progress && news->has_request && news->request == call->id) {
			return call;
		}
	}
	return NULL;
}

/* Returns true when the event was for a waiting call, or says nothing to anybody. */
static bool take_progress(struct distorch *c, const struct wire_packet *packet)
{
	struct wire_load_progress_event news;
	struct wire_fault fault;
	struct call *call;

	if (wire_decode_body(&wire_type_load_progress_event, packet->body, packet->body_size, false,
			     &news, &fault) < 0) {
		return true;
	}
	call = progress_call(c, &news);
	if (call == NULL) {
		return false;
	}
	(void)wire_str_copy(news.model, call->model, sizeof call->model);
	(void)wire_str_copy(news.phase, call->phase, sizeof call->phase);
	call->bytes = news.bytes;
	call->total = news.total;
	call->has_news = true;
	pthread_cond_broadcast(&c->changed);
	return true;
}

/* Remember why the connection is about to end. */
static void take_goodbye(struct distorch *c, const struct wire_packet *packet)
{
	struct wire_goodbye_event goodbye;
	struct wire_fault fault;
	char reason[WIRE_GOODBYE_EVENT_REASON_MAX + 1];

	if (wire_decode_body(&wire_type_goodbye_event, packet->body, packet->body_size, false,
			     &goodbye, &fault) == 0) {
		c->lost_code = (int)wire_code_find(goodbye.code);
		(void)wire_str_copy(goodbye.reason, reason, sizeof reason);
		(void)snprintf(c->lost, sizeof c->lost, "the daemon ended the connection: %s",
			       reason);
	}
}

/* The lease that a recall or a lost is about; of another event, or one that is not the schema's,
 * 0. */
static uint64_t lease_of(const struct wire_packet *packet)
{
	union wire_body body;
	struct wire_fault fault;
	const enum wire_event number = (enum wire_event)packet->event->number;

	if ((number != WIRE_EVENT_RECALL && number != WIRE_EVENT_LOST) ||
	    wire_decode_body(wire_events[number].fields, packet->body, packet->body_size, false,
			     &body, &fault) < 0) {
		return 0;
	}
	return number == WIRE_EVENT_RECALL ? body.recall_event.lease : body.lost_event.lease;
}

void client_take_event(struct distorch *c, const struct wire_packet *packet, const void *bytes,
		       size_t size)
{
	uint64_t lease;

	if (packet->event == NULL || packet->body == NULL) {
		return; /* of a newer daemon, or empty */
	}
	if (packet->event->number == WIRE_EVENT_LOAD_PROGRESS && take_progress(c, packet)) {
		return;
	}
	if (packet->event->number == WIRE_EVENT_GOODBYE) {
		take_goodbye(c, packet);
	}
	lease = lease_of(packet);
	if (lease != 0) {
		queue_forget(c, (enum wire_event)packet->event->number, lease);
	}
	if (queue_is_full(c)) {
		queue_shed(c);
	}
	event_append(c, (enum wire_event)packet->event->number, lease, bytes, size);
}

void client_queue_event(struct distorch *c, enum wire_event number, const void *fields)
{
	if (number == WIRE_EVENT_OVERFLOW) {
		queue_forget(c, number, 0); /* one stands for all */
	}
	if (queue_is_full(c)) {
		queue_shed(c);
	}
	queue_own(c, number, fields);
}

/* ---- from packet to public structure ---- */

/* What a conversion works on. */
struct conversion {
	struct distorch_event *event; /* the result */
	union wire_body body;
};

static bool text(struct conversion *work, bool is_there, struct wire_str from, const char **ret)
{
	return convert_text(work->event, is_there, from, ret);
}

static bool convert_load_progress(struct conversion *work)
{
	const struct wire_load_progress_event *from = &work->body.load_progress_event;

	work->event->bytes = from->bytes;
	work->event->total = from->total;
	return text(work, true, from->model, &work->event->model) &&
	       text(work, true, from->phase, &work->event->phase);
}

static bool convert_load_done(struct conversion *work)
{
	const struct wire_load_done_event *from = &work->body.load_done_event;

	if (from->has_error) {
		work->event->error = error_convert(work->event, &from->error);
	}
	return text(work, true, from->model, &work->event->model) &&
	       (!from->has_error || work->event->error != NULL);
}

static bool convert_model_state(struct conversion *work)
{
	const struct wire_model_state_event *from = &work->body.model_state_event;

	work->event->seq = from->has_seq ? from->seq : DISTORCH_ABSENT;
	return text(work, true, from->model, &work->event->model) &&
	       text(work, from->has_name, from->name, &work->event->name) &&
	       text(work, true, from->state, &work->event->state);
}

static bool convert_record_event(struct conversion *work)
{
	const struct wire_record_event *from = &work->body.record_event;
	struct distorch_record *record = result_add(work->event, sizeof *record);

	if (record == NULL || !convert_record(work->event, &from->record, record)) {
		return false;
	}
	work->event->seq = from->has_seq ? from->seq : DISTORCH_ABSENT;
	work->event->record = record;
	work->event->model = record->model;
	work->event->name = record->name;
	return true;
}

static bool convert_evicted(struct conversion *work)
{
	const struct wire_evicted_event *from = &work->body.evicted_event;

	work->event->bytes = from->bytes;
	work->event->seq = from->has_seq ? from->seq : DISTORCH_ABSENT;
	return text(work, true, from->model, &work->event->model) &&
	       text(work, from->has_name, from->name, &work->event->name) &&
	       text(work, true, from->device, &work->event->device) &&
	       text(work, true, from->why, &work->event->why) &&
	       text(work, from->has_for_whom, from->for_whom, &work->event->for_whom);
}

static bool convert_pressure(struct conversion *work)
{
	const struct wire_pressure_event *from = &work->body.pressure_event;

	work->event->free = from->free;
	work->event->wanted = from->wanted;
	work->event->seq = from->has_seq ? from->seq : DISTORCH_ABSENT;
	return text(work, true, from->device, &work->event->device);
}

static bool convert_recall(struct conversion *work)
{
	const struct wire_recall_event *from = &work->body.recall_event;

	work->event->lease = from->lease;
	work->event->deadline_ms = from->deadline_ms;
	return text(work, true, from->reason, &work->event->why) &&
	       text(work, from->has_for_whom, from->for_whom, &work->event->for_whom);
}

static bool convert_lost(struct conversion *work)
{
	const struct wire_lost_event *from = &work->body.lost_event;

	work->event->lease = from->lease;
	return text(work, true, from->reason, &work->event->why);
}

static bool convert_device(struct conversion *work)
{
	const struct wire_device_event *from = &work->body.device_event;

	work->event->seq = from->has_seq ? from->seq : DISTORCH_ABSENT;
	return text(work, true, from->name, &work->event->device) &&
	       text(work, true, from->uuid, &work->event->uuid) &&
	       text(work, true, from->state, &work->event->state);
}

static bool convert_overflow(struct conversion *work)
{
	work->event->seq = work->body.overflow_event.seq;
	return true;
}

static bool convert_goodbye(struct conversion *work)
{
	const struct wire_goodbye_event *from = &work->body.goodbye_event;

	return text(work, true, from->code, &work->event->code) &&
	       text(work, true, from->reason, &work->event->why);
}

static bool (*const conversions[WIRE_N_EVENTS])(struct conversion *work) = {
	[WIRE_EVENT_LOAD_PROGRESS] = convert_load_progress,
	[WIRE_EVENT_LOAD_DONE] = convert_load_done,
	[WIRE_EVENT_MODEL_STATE] = convert_model_state,
	[WIRE_EVENT_RECORD] = convert_record_event,
	[WIRE_EVENT_EVICTED] = convert_evicted,
	[WIRE_EVENT_PRESSURE] = convert_pressure,
	[WIRE_EVENT_RECALL] = convert_recall,
	[WIRE_EVENT_LOST] = convert_lost,
	[WIRE_EVENT_DEVICE] = convert_device,
	[WIRE_EVENT_OVERFLOW] = convert_overflow,
	[WIRE_EVENT_GOODBYE] = convert_goodbye,
};

static struct distorch_event *event_new(enum wire_event number)
{
	struct distorch_event *event = result_new(sizeof *event);

	if (event != NULL) {
		event->type = wire_events[number].name;
		event->seq = DISTORCH_ABSENT;
		event->lease = DISTORCH_ABSENT;
		event->bytes = DISTORCH_ABSENT;
		event->total = DISTORCH_ABSENT;
		event->free = DISTORCH_ABSENT;
		event->wanted = DISTORCH_ABSENT;
		event->deadline_ms = DISTORCH_ABSENT;
	}
	return event;
}

/* Fails with a code, also for an event whose fields are not the schema's. */
static int event_convert(const struct event *queued, struct distorch_event **ret_event)
{
	struct conversion work = {.event = event_new(queued->number)};
	struct wire_packet packet;
	struct wire_fault fault;

	if (work.event == NULL) {
		return failure_memory();
	}
	if (wire_decode_packet(queued->bytes, queued->size, &wire_packet_limits, &packet, &fault) <
		    0 ||
	    wire_decode_body(wire_events[queued->number].fields, packet.body, packet.body_size,
			     false, &work.body, &fault) < 0) {
		result_free(work.event);
		return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
				   "the daemon's event %s cannot be used: %s %s",
				   wire_events[queued->number].name, fault.field, fault.text);
	}
	if (!conversions[queued->number](&work)) {
		result_free(work.event);
		return failure_memory();
	}
	*ret_event = work.event;
	return 0;
}

/* The oldest one, of the recalls where only they are wanted; NULL: there is none. */
static struct event *event_find(struct distorch *c, bool of_recalls)
{
	LIST_FOR_EACH (link, &c->events) {
		struct event *event = container_of(link, struct event, link);

		if (!of_recalls || event->number == WIRE_EVENT_RECALL) {
			return event;
		}
	}
	return NULL;
}

/* Wait with the lock held until such an event is queued. */
static int event_wait(struct distorch *c, bool of_recalls, uint32_t timeout_ms)
{
	uint64_t until = timeout_ms == DISTORCH_FOREVER ? UINT64_MAX : client_now_ms() + timeout_ms;
	bool has_looked = false;

	while (event_find(c, of_recalls) == NULL) {
		uint64_t now = client_now_ms();

		if (c->is_closed || (c->is_lost && !c->is_opening &&
				     (!keeper_returns(c) || !client_can_return(c)))) {
			return client_lost(c);
		}
		if ((c->is_lost || c->is_opening) && (!has_looked || now < until)) {
			/* Another thread is at it, and reads what it needs for that itself. */
			client_follow(c, now < until ? until - now : 0);
			has_looked = true;
			continue;
		}
		if (has_looked && now >= until) {
			return failure_set(DISTORCH_E_TIMEOUT, 0, NULL, "no event in %u ms",
					   timeout_ms);
		}
		client_turn(c, now < until ? until - now : 0);
		has_looked = true;
	}
	return 0;
}

/* Take it out of the queue; lock held. */
static struct event *event_pop(struct distorch *c, bool of_recalls)
{
	struct event *event = event_find(c, of_recalls);

	list_remove(&event->link);
	c->n_events--;
	c->events_bytes -= event->size;
	return event;
}

static int next_event(struct distorch *c, bool of_recalls, uint32_t timeout_ms,
		      struct distorch_event **ret_event)
{
	AUTO_FREE struct event *event = NULL;
	int rc;

	failure_clear(c);
	rc = client_lock(c); /* what came before a loss is still there */
	if (rc < 0) {
		return rc;
	}
	rc = event_wait(c, of_recalls, timeout_ms);
	if (rc == 0) {
		event = event_pop(c, of_recalls);
	}
	client_leave(c);
	return event != NULL ? event_convert(event, ret_event) : rc;
}

int distorch_next_event(struct distorch *c, uint32_t timeout_ms, struct distorch_event **ret_event)
{
	return next_event(c, false, timeout_ms, ret_event);
}

int distorch_next_recall(struct distorch *c, uint32_t timeout_ms, struct distorch_event **ret_event)
{
	return next_event(c, true, timeout_ms, ret_event);
}

void distorch_event_free(struct distorch_event *event)
{
	result_free(event);
}
