/* SPDX-License-Identifier: Apache-2.0 */
/* See recall.h. */
#include "daemon/recall.h"

#include "base/os/clock.h"
#include "base/os/log.h"

#include <string.h>
#include <utlist.h>

#include "daemon/answer.h"
#include "daemon/daemon.h"
#include "daemon/ipc/server.h"

#define NS_PER_MS 1000000U

/* An answer waits so long for what is being dropped: closing a large image takes seconds. */
#define DROP_NS 10000000000U

uint64_t recall_mapped(const struct daemon *daemon, uint64_t model, uint64_t *ret_mapper)
{
	struct core_segment_view segment;
	uint64_t bytes = 0;
	uint32_t cursor = 0;

	*ret_mapper = 0;
	while (core_segment_next(daemon->core, model, &cursor, &segment)) {
		uint64_t mapper;

		if (segment.state != SEGMENT_DROPPING && segment.state != SEGMENT_HELD) {
			continue;
		}
		mapper = core_segment_mapper(daemon->core, segment.id);
		if (mapper != 0) {
			bytes += segment.bytes;
			*ret_mapper = mapper;
		}
	}
	return bytes;
}

static bool is_leased(const struct daemon *daemon, const struct answer_line *line)
{
	return line->outcome == CORE_OUTCOME_HELD && line->why == CORE_WHY_IN_USE &&
	       core_model_is_leased(daemon->core, line->model);
}

/* Is somebody waited for? Not where nobody was asked. */
static bool has_leased(const struct daemon *daemon, const struct pending *pending)
{
	for (uint32_t i = 0; pending->is_recalling && i < pending->n_lines; i++) {
		if (is_leased(daemon, &pending->lines[i])) {
			return true;
		}
	}
	return false;
}

static struct answer_line *find_line(struct pending *pending, uint64_t model,
				     enum core_outcome outcome, enum core_why why)
{
	for (uint32_t i = 0; i < pending->n_lines; i++) {
		struct answer_line *line = &pending->lines[i];

		if (line->model == model && line->outcome == outcome && line->why == why) {
			return line;
		}
	}
	return NULL;
}

/* A part of what 'like' told, with what is told of its model already. */
static void add_part(struct pending *pending, const struct answer_line *like,
		     enum core_outcome outcome, enum core_why why, uint64_t bytes, uint64_t holder)
{
	struct answer_line *line = find_line(pending, like->model, outcome, why);

	if (line == NULL) {
		line = pending_add_line(pending);
		if (line == NULL) {
			log_warning("an answer lost a line: no memory");
			return;
		}
		*line = *like;
		line->bytes = line->freed = 0;
	}
	line->outcome = outcome;
	line->why = why;
	line->bytes += bytes;
	line->freed += outcome == CORE_OUTCOME_UNLOADED && like->freed > 0 ? bytes : 0;
	line->holder = holder;
}

/* What nobody leases any more was dropped with its last lease. Some process may still map it, or
 * a part of it. */
static void note_dropped(const struct daemon *daemon, struct pending *pending, uint32_t index)
{
	const struct answer_line like = pending->lines[index];
	uint64_t mapper;
	uint64_t held = recall_mapped(daemon, like.model, &mapper);

	held -= held < like.was_mapped ? held : like.was_mapped;
	held = held < like.bytes ? held : like.bytes;
	pending->n_lines--;
	memmove(&pending->lines[index], &pending->lines[index + 1],
		(pending->n_lines - index) * sizeof like);
	if (held < like.bytes || held == 0) {
		add_part(pending, &like, CORE_OUTCOME_UNLOADED, CORE_WHY_ASKED, like.bytes - held,
			 0);
	}
	if (held > 0) {
		add_part(pending, &like, CORE_OUTCOME_HELD, CORE_WHY_MAPPED, held, mapper);
	}
}

static void note_all_dropped(const struct daemon *daemon, struct pending *pending)
{
	for (uint32_t i = pending->n_lines; i-- > 0;) {
		const struct answer_line *line = &pending->lines[i];

		if (line->outcome == CORE_OUTCOME_HELD && line->why == CORE_WHY_IN_USE &&
		    !is_leased(daemon, line)) {
			note_dropped(daemon, pending, i);
		}
	}
}

static uint64_t dropping_bytes(const struct daemon *daemon, const struct answer_line *line)
{
	return line->outcome == CORE_OUTCOME_UNLOADED && line->freed > 0
		       ? core_model_dropping(daemon->core, line->model)
		       : 0;
}

static bool has_dropping(const struct daemon *daemon, const struct pending *pending)
{
	for (uint32_t i = 0; i < pending->n_lines; i++) {
		if (dropping_bytes(daemon, &pending->lines[i]) > 0) {
			return true;
		}
	}
	return false;
}

/* What is not free yet is not told as freed. */
static void take_off_dropping(const struct daemon *daemon, struct pending *pending)
{
	for (uint32_t i = 0; i < pending->n_lines; i++) {
		struct answer_line *line = &pending->lines[i];
		uint64_t bytes = dropping_bytes(daemon, line);

		line->freed = bytes < line->freed ? line->freed - bytes : 0;
	}
}

bool recall_is_full(const struct daemon *daemon, const struct client *client)
{
	const struct client *other;
	uint32_t n_waiting = 0;

	DL_FOREACH(daemon->clients, other)
	{
		for (uint32_t i = 0; other->uid == client->uid && i < WIRE_REQUESTS_IN_FLIGHT;
		     i++) {
			n_waiting += other->pending[i].is_recalling ? 1 : 0;
		}
	}
	return n_waiting >= DAEMON_MAX_RECALLS;
}

void recall_look_again(struct daemon *daemon)
{
	daemon->recalls_seen = UINT64_MAX;
}

bool recall_waits(struct daemon *daemon, struct pending *pending)
{
	uint64_t now_ns = clock_mono_ns();

	if (pending->recall_until_ns <= now_ns && has_dropping(daemon, pending)) {
		pending->recall_until_ns = now_ns + DROP_NS;
	}
	if (pending->recall_until_ns <= now_ns ||
	    (!has_leased(daemon, pending) && !has_dropping(daemon, pending))) {
		return false;
	}
	daemon->has_recalls = true;
	recall_look_again(daemon);
	return true;
}

bool recall_cancel(struct daemon *daemon, struct client *client, uint32_t request)
{
	struct pending *pending = client_find_pending(client, request);

	if (pending == NULL || pending->recall_until_ns == 0) {
		return false;
	}
	pending->recall_until_ns = clock_mono_ns();
	recall_look_again(daemon);
	recall_look(daemon);
	return true;
}

static void on_timer(uv_timer_t *timer)
{
	struct daemon *daemon = timer->data;

	recall_look_again(daemon);
	recall_look(daemon);
	server_flush(daemon->server); /* no step follows that would */
}

void recall_look(struct daemon *daemon)
{
	uint64_t now_ns = clock_mono_ns();
	uint64_t soonest_ns = UINT64_MAX;
	struct client *client;

	if (!daemon->has_recalls || daemon->recalls_seen == core_n_let_go(daemon->core) ||
	    daemon->is_stepping || daemon->is_taking_results) {
		return;
	}
	daemon->recalls_seen = core_n_let_go(daemon->core);
	DL_FOREACH(daemon->clients, client)
	{
		for (uint32_t i = 0; i < WIRE_REQUESTS_IN_FLIGHT; i++) {
			struct pending *pending = &client->pending[i];

			if (!pending->is_used || pending->recall_until_ns == 0) {
				continue;
			}
			note_all_dropped(daemon, pending);
			if (pending->recall_until_ns > now_ns && client->conn != NULL &&
			    (has_leased(daemon, pending) || has_dropping(daemon, pending))) {
				soonest_ns = pending->recall_until_ns < soonest_ns
						     ? pending->recall_until_ns
						     : soonest_ns;
				continue;
			}
			take_off_dropping(daemon, pending);
			answer_recalled(daemon, client, pending);
		}
	}
	daemon->has_recalls = soonest_ns != UINT64_MAX;
	if (daemon->is_stopped) {
		return; /* its timer is being closed */
	}
	if (daemon->has_recalls) {
		(void)uv_timer_start(&daemon->recall_timer, on_timer,
				     (soonest_ns - now_ns) / NS_PER_MS + 1, 0);
	} else {
		(void)uv_timer_stop(&daemon->recall_timer);
	}
}

void recall_init(struct daemon *daemon)
{
	(void)uv_timer_init(&daemon->loop, &daemon->recall_timer); /* always succeeds */
	daemon->recall_timer.data = daemon;
}
