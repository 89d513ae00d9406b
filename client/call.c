/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/os/fdpass.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/client.h"
#include "client/error.h"
#include "client/event.h"
#include "client/keeper.h"
#include "client/packet.h"
#include "client/shards.h"

#define TICK_MS         250 /* the progress callback is asked at least this often */
#define SEND_WAIT_MS    50  /* between two tries to send into a full socket */
#define PACKETS_A_TURN  32  /* then look at the own deadline again */
#define SMALL_PACKET    2048
#define WAIT_LONGEST_MS 3600000

uint64_t client_now_ms(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail */
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- sending ---- */

static void call_cancel(struct distorch *c, struct call *call);

/* Send now or not at all. */
static enum fdpass_status send_now(struct distorch *c, const void *bytes, size_t size,
				   const struct request *what)
{
	int sys = 0;
	enum fdpass_status status = fdpass_send(c->fd, bytes, size, what->fds, what->n_fds, &sys);

	if (status != FDPASS_OK && status != FDPASS_AGAIN) {
		client_lose(c, DISTORCH_E_NO_CONNECTION, "the daemon closed the connection");
	}
	return status;
}

/* Encode into 'small' or, where it does not fit, into memory that the caller frees. */
static int encode(const struct request *request, uint32_t id, uint8_t *small, uint8_t **ret_large,
		  size_t *ret_size)
{
	struct wire_buffer buffer = {.bytes = small, .capacity = SMALL_PACKET};

	if (!wire_encode_request(&buffer, id, request->method, request->body, request->n_fds)) {
		if (buffer.size > WIRE_PACKET_BYTES) {
			return failure_set(DISTORCH_E_TOO_LARGE, 0, NULL,
					   "the request takes %zu bytes; a packet holds %d",
					   buffer.size, WIRE_PACKET_BYTES);
		}
		*ret_large = malloc(buffer.size);
		if (*ret_large == NULL) {
			return failure_memory();
		}
		buffer = (struct wire_buffer){.bytes = *ret_large, .capacity = buffer.size};
		(void)wire_encode_request(&buffer, id, request->method, request->body,
					  request->n_fds); /* fits: the same bytes */
	}
	*ret_size = buffer.size;
	return 0;
}

/* Wait, without the lock, until the socket takes more or something can be read. */
static void wait_for_room(struct distorch *c)
{
	struct pollfd poller = {.fd = c->fd, .events = POLLOUT};

	if (c->is_lost) {
		return;
	}
	if (!c->is_led) {
		client_turn(c, 1); /* the daemon may wait for us to read */
	}
	pthread_mutex_unlock(&c->lock);
	(void)poll(&poller, 1, SEND_WAIT_MS); /* a failure is seen at the next send */
	pthread_mutex_lock(&c->lock);
}

static int send_patiently(struct distorch *c, const struct request *request, uint32_t id)
{
	uint64_t deadline = client_now_ms() + c->timeout_ms;
	uint8_t small[SMALL_PACKET];
	AUTO_FREE uint8_t *large = NULL;
	size_t size = 0;
	int rc = encode(request, id, small, &large, &size);

	while (rc == 0 && !c->is_lost) {
		if (send_now(c, large != NULL ? large : small, size, request) == FDPASS_OK) {
			return 0;
		}
		if (client_now_ms() >= deadline) {
			return failure_set(DISTORCH_E_TIMEOUT, 0, NULL,
					   "the daemon did not take a request for %u ms",
					   c->timeout_ms);
		}
		wait_for_room(c);
	}
	return rc < 0 ? rc : client_lost(c);
}

/* The files that did not fit. Nobody waits for the answers: what is wrong is the load's. */
static int send_parts(struct distorch *c, const struct request *request, const struct call *call)
{
	struct source *source = request->source;
	int fds[WIRE_FDS_PER_PACKET];
	int rc = 0;

	while (rc == 0 && source->n_sent < source->n_shards && !call->is_done &&
	       call->serial == c->serial) {
		struct wire_load_part_request body = {.load = call->id};
		struct request part = {.method = WIRE_METHOD_LOAD_PART, .body = &body, .fds = fds};

		part.n_fds = source_go_on(source, fds, &body.shards);
		rc = send_patiently(c, &part, c->next_id++);
	}
	return rc;
}

static int call_send(struct distorch *c, const struct request *request, struct call *call)
{
	int rc = send_patiently(c, request, call->id);

	if (rc == 0 && request->source != NULL) {
		rc = send_parts(c, request, call);
		if (rc < 0 && call->serial == c->serial) {
			call_cancel(c, call);
		}
	}
	return rc;
}

bool client_post(struct distorch *c, enum wire_method method, const void *body)
{
	const struct request request = {.method = method, .body = body};
	uint8_t small[SMALL_PACKET];
	AUTO_FREE uint8_t *large = NULL;
	size_t size = 0;

	if (c->is_lost || c->fd < 0) {
		return true; /* nobody is left to be told */
	}
	return encode(&request, c->next_id++, small, &large, &size) < 0 ||
	       send_now(c, large != NULL ? large : small, size, &request) != FDPASS_AGAIN;
}

/* ---- receiving ---- */

static struct call *call_find(struct distorch *c, uint32_t id)
{
	LIST_FOR_EACH (link, &c->calls) {
		struct call *call = container_of(link, struct call, link);

		if (call->id == id && !call->is_done) {
			return call;
		}
	}
	return NULL;
}

/* What came, as fdpass_receive has it. */
struct arrival {
	size_t size;
	int *fds; /* those that are taken become -1 */
	uint32_t n_fds;
	bool has_lost_fds; /* this process could not have all of them */
};

/* Hand a response to who waits for it. */
static void take_response(struct distorch *c, const struct wire_packet *packet,
			  const struct arrival *arrival)
{
	struct call *call = call_find(c, packet->id);
	bool is_kept;

	if (call == NULL) {
		keeper_answered(c, packet); /* or its caller gave up: drop it */
		return;
	}
	if (!arrival->has_lost_fds && !packet_has_right_fds(call->method, packet, arrival->n_fds)) {
		client_lose(c, DISTORCH_E_BAD_FRAME,
			    "the daemon sent more or fewer descriptors than announced");
		return;
	}
	call->has_lost_fds = arrival->has_lost_fds &&
			     (!call->is_whole_without_fds || packet->spill_bytes > 0);
	is_kept = !call->has_lost_fds;
	if (is_kept) {
		call->answer->packet = malloc(arrival->size);
		is_kept = call->answer->packet != NULL;
		call->is_without_memory = !is_kept;
	}
	if (!is_kept) {
		keeper_await(c, call->method, call->id); /* what it brought ends at once */
		keeper_answered(c, packet);
	} else {
		memcpy(call->answer->packet, c->in, arrival->size);
		call->answer->size = arrival->size;
		call->answer->serial = c->serial;
		while (!arrival->has_lost_fds && call->answer->n_fds < arrival->n_fds) {
			call->answer->fds[call->answer->n_fds] =
				steal_fd(&arrival->fds[call->answer->n_fds]);
			call->answer->n_fds++;
		}
	}
	call->is_done = true;
}

static void take_packet(struct distorch *c, const struct arrival *arrival)
{
	struct wire_packet packet;
	struct wire_fault fault;
	char text[CLIENT_LOST_SIZE];

	if (wire_decode_packet(c->in, arrival->size, &wire_packet_limits, &packet, &fault) < 0) {
		(void)snprintf(text, sizeof text, "the daemon sent what is no message: %s",
			       fault.text);
		client_lose(c, DISTORCH_E_BAD_FRAME, text);
	} else if (packet.kind == WIRE_RESPONSE) {
		take_response(c, &packet, arrival);
	} else if (packet.kind == WIRE_EVENT && arrival->n_fds == 0) {
		client_take_event(c, &packet, c->in, arrival->size);
	} else {
		client_lose(c, DISTORCH_E_BAD_FRAME, "the daemon sent what only a client may send");
	}
}

/* Why a packet could not be received. */
static void lose_by(struct distorch *c, enum fdpass_status status)
{
	if (status == FDPASS_BAD_FDS) {
		client_lose(c, DISTORCH_E_BAD_FRAME, "the daemon sent too many descriptors");
	} else if (status == FDPASS_TOO_LARGE) {
		client_lose(c, DISTORCH_E_BAD_FRAME, "the daemon sent too large a packet");
	} else {
		client_lose(c, DISTORCH_E_NO_CONNECTION, "the daemon closed the connection");
	}
}

/* Read what is there; lock held, leading. */
static void read_packets(struct distorch *c)
{
	for (int i = 0; i < PACKETS_A_TURN && !c->is_lost; i++) {
		struct fdpass_packet packet;
		enum fdpass_status status =
			fdpass_receive(c->fd, c->in, WIRE_PACKET_BYTES, &packet);
		/* The message is whole, and only its call fails: with another connection
		 * nothing would be better. */
		const bool has_lost_fds = status == FDPASS_BAD_FDS && packet.n_fds < FDPASS_MAX_FDS;

		if (status == FDPASS_AGAIN) {
			return;
		}
		if (status != FDPASS_OK && !has_lost_fds) {
			fdpass_close_all(packet.fds, packet.n_fds);
			lose_by(c, status);
			return;
		}
		c->heard_ms = client_now_ms();
		take_packet(c, &(struct arrival){.size = packet.size,
						 .fds = packet.fds,
						 .n_fds = packet.n_fds,
						 .has_lost_fds = has_lost_fds});
		fdpass_close_all(packet.fds, packet.n_fds); /* what nobody took */
	}
}

void client_read(struct distorch *c)
{
	read_packets(c);
	pthread_cond_broadcast(&c->changed);
}

void client_follow(struct distorch *c, uint64_t wait_ms)
{
	struct timespec until;

	wait_ms = wait_ms < WAIT_LONGEST_MS ? wait_ms : WAIT_LONGEST_MS;
	(void)clock_gettime(CLOCK_MONOTONIC, &until); /* cannot fail */
	until.tv_sec += (time_t)(wait_ms / 1000);
	until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	(void)pthread_cond_timedwait(&c->changed, &c->lock, &until); /* callers look again */
}

void client_turn(struct distorch *c, uint64_t wait_ms)
{
	struct pollfd poller = {.fd = c->fd, .events = POLLIN};
	uint64_t serial = c->serial;
	uint64_t longest = wait_ms < WAIT_LONGEST_MS ? wait_ms : WAIT_LONGEST_MS;

	if (c->is_led) {
		client_follow(c, longest);
		return;
	}
	c->is_led = true;
	pthread_mutex_unlock(&c->lock);
	(void)poll(&poller, 1, (int)longest); /* EINTR: the caller looks at its deadline */
	pthread_mutex_lock(&c->lock);
	if (poller.revents != 0 && !c->is_lost && c->serial == serial) {
		read_packets(c);
	}
	c->is_led = false;
	pthread_cond_broadcast(&c->changed);
}

/* ---- waiting ---- */

static void call_cancel(struct distorch *c, struct call *call)
{
	const struct wire_cancel_request body = {.id = call->id};

	if (!call->is_cancelled) {
		/* A full socket: the daemon reads nothing now; the deadline below decides. */
		(void)client_post(c, WIRE_METHOD_CANCEL, &body);
		call->is_cancelled = true;
		call->cancelled_ms = client_now_ms();
	}
}

/* Ask the callback, without the lock. */
static void call_tell(struct distorch *c, const struct request *request, struct call *call)
{
	char model[sizeof call->model];
	char phase[sizeof call->phase];
	struct distorch_progress progress = {
		.model = call->model[0] != '\0' ? model : NULL,
		.phase = phase,
		.bytes = call->bytes,
		.total = call->total,
	};
	int wants_end;

	memcpy(model, call->model, sizeof model);
	memcpy(phase, call->phase, sizeof phase);
	call->has_news = false;
	pthread_mutex_unlock(&c->lock);
	wants_end = request->progress(&progress, request->user);
	pthread_mutex_lock(&c->lock);
	if (wants_end != 0 && call->serial == c->serial) { /* else it was forked: not ours */
		call_cancel(c, call);
	}
}

/* When a call is given up, in ms on the clock: sooner or later after silence. */
static uint64_t call_deadline(struct distorch *c, const struct request *request,
			      const struct call *call, uint64_t begun_ms, uint64_t *pinged_ms)
{
	uint64_t heard = c->heard_ms > begun_ms ? c->heard_ms : begun_ms;

	if (call->is_cancelled) {
		return call->cancelled_ms + c->timeout_ms;
	}
	if (!request->is_patient) {
		return begun_ms + c->timeout_ms;
	}
	if (*pinged_ms <= heard) { /* not asked since it was last heard of */
		if (client_now_ms() < heard + c->timeout_ms) {
			return heard + c->timeout_ms;
		}
		(void)client_post(c, WIRE_METHOD_PING, NULL); /* a full socket is silence too */
		*pinged_ms = client_now_ms();
	}
	return *pinged_ms + c->timeout_ms;
}

static int call_give_up(struct distorch *c, struct call *call)
{
	if (call->is_cancelled) {
		return failure_set(DISTORCH_E_CANCELLED, 0, NULL, "%s was cancelled",
				   wire_messages[call->method].method);
	}
	call_cancel(c, call);
	return failure_set(DISTORCH_E_TIMEOUT, 0, "is the daemon overloaded or stopped?",
			   "the daemon did not answer %s within %u ms",
			   wire_messages[call->method].method, c->timeout_ms);
}

static int call_wait(struct distorch *c, const struct request *request, struct call *call)
{
	uint64_t begun_ms = client_now_ms();
	uint64_t told_ms = begun_ms;
	uint64_t pinged_ms = 0;

	while (!call->is_done) {
		uint64_t now = client_now_ms();
		uint64_t until = call_deadline(c, request, call, begun_ms, &pinged_ms);

		if (call->serial != c->serial) { /* connected anew, or forked in the callback */
			return failure_set(DISTORCH_E_NO_CONNECTION, 0, "ask again",
					   "the connection that %s was asked on is gone",
					   wire_messages[call->method].method);
		}
		if (c->is_lost) {
			return client_lost(c);
		}
		if (now >= until) {
			if (!request->is_hello) { /* the keeper's own look after themselves */
				keeper_await(c, call->method, call->id);
			}
			return call_give_up(c, call);
		}
		if (request->progress != NULL && !call->is_cancelled) {
			if (call->has_news || now >= told_ms + TICK_MS) {
				told_ms = now;
				call_tell(c, request, call);
				continue;
			}
			until = until < told_ms + TICK_MS ? until : told_ms + TICK_MS;
		}
		client_turn(c, until - now);
	}
	if (call->has_lost_fds) {
		return failure_set(DISTORCH_E_TOO_MANY, 0,
				   "close some, or raise the limit: ulimit -n",
				   "the descriptors of the answer to %s were lost: this process "
				   "may open no more",
				   wire_messages[call->method].method);
	}
	return call->is_without_memory ? failure_memory() : 0;
}

/* Wait until the daemon takes one more request of this connection. */
static int call_queue(struct distorch *c)
{
	uint64_t pinged_ms = client_now_ms();

	while (c->n_calls >= c->max_calls) {
		if (c->is_lost) {
			return client_lost(c);
		}
		if (client_now_ms() > pinged_ms + c->timeout_ms) {
			return failure_set(DISTORCH_E_TOO_MANY, 0, "open a second connection",
					   "%u requests of this connection are in flight",
					   c->n_calls);
		}
		client_turn(c, c->timeout_ms);
	}
	return 0;
}

static int call_run(struct distorch *c, const struct request *request, struct answer *answer)
{
	struct call call = {
		.method = request->method,
		.tag = request->tag,
		.is_whole_without_fds = request->is_whole_without_fds,
		.has_progress = request->method == WIRE_METHOD_LOAD ||
				request->method == WIRE_METHOD_PLACE,
		.answer = answer,
	};
	int rc = call_queue(c);

	if (rc < 0) {
		return rc;
	}
	call.id = c->next_id++;
	call.serial = c->serial;
	list_append(&c->calls, &call.link);
	c->n_calls++;
	keeper_pay(c);
	rc = call_send(c, request, &call);
	if (rc == 0) {
		rc = call_wait(c, request, &call);
	}
	list_remove(&call.link);
	c->n_calls -= call.serial == c->serial ? 1 : 0; /* a new connection counts anew */
	pthread_cond_broadcast(&c->changed);
	return rc;
}

int client_call(struct distorch *c, const struct request *request, struct answer *ret_answer,
		void *ret_body)
{
	struct answer answer = {0};
	int rc = 0;

	if (!request->is_hello) {
		rc = client_enter(c);
		if (rc < 0) {
			return rc;
		}
	}
	rc = call_run(c, request, &answer);
	if (!request->is_hello) {
		client_leave(c);
	}
	if (rc == 0) {
		rc = packet_decode(request->method, &answer, ret_body);
	}
	if (rc < 0) {
		answer_fini(&answer);
		return rc;
	}
	*ret_answer = answer;
	return 0;
}

int distorch_cancel(struct distorch *c, uint64_t tag)
{
	bool is_found = false;
	int rc;

	failure_clear(c);
	rc = client_enter(c);
	if (rc < 0) {
		return rc;
	}
	LIST_FOR_EACH (link, &c->calls) {
		struct call *call = container_of(link, struct call, link);

		if (!call->is_done && (tag == 0 ? call->has_progress : call->tag == tag)) {
			call_cancel(c, call);
			is_found = true;
		}
	}
	pthread_cond_broadcast(&c->changed);
	client_leave(c);
	return is_found ? 0 : failure_set(DISTORCH_E_NOT_FOUND, 0, NULL, "no such call is running");
}
