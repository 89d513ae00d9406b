/* SPDX-License-Identifier: Apache-2.0 */
/* See keeper.h. */
#include "client/keeper.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/error.h"
#include "client/event.h"
#include "client/result.h"

#define FIRST_WAIT_MS   10 /* between two tries to connect, doubled up to the longest */
#define LONGEST_WAIT_MS 2000
#define STACK_BYTES     ((size_t)256 << 10)

/* ---- leases ---- */

struct kept_lease *keeper_add(struct distorch *c, uint64_t number, uint64_t serial)
{
	struct kept_lease *lease = calloc(1, sizeof *lease);

	if (lease == NULL) {
		return NULL;
	}
	pthread_mutex_lock(&c->lock);
	*lease = (struct kept_lease){.number = number,
				     .epoch = c->server->epoch,
				     .serial = serial,
				     .fd = -1};
	list_append(&c->leases, &lease->link);
	pthread_mutex_unlock(&c->lock);
	return lease;
}

void keeper_mapped(struct distorch *c, struct kept_lease *lease, int fd)
{
	pthread_mutex_lock(&c->lock);
	lease->fd = fd;
	keeper_start(c);
	pthread_mutex_unlock(&c->lock);
}

void keeper_leaving(struct distorch *c, struct kept_lease *lease)
{
	if (c->pid != getpid()) {
		return; /* a process that took no part; the lock may be held for ever */
	}
	pthread_mutex_lock(&c->lock);
	lease->fd = -1;
	pthread_mutex_unlock(&c->lock);
}

static void lease_free(struct kept_lease *lease)
{
	list_remove(&lease->link);
	free(lease);
}

/* Once told, a lease is kept until the answer: the daemon may die in between. False: the socket
 * takes nothing now. */
static bool tell_over(struct distorch *c, struct kept_lease *lease)
{
	const struct wire_release_request release = {.token = lease->number};
	const struct wire_detach_request detach = {.lease = lease->number};
	const struct wire_unmapped_request unmapped = {.lease = lease->number,
						       .has_epoch = true,
						       .epoch = lease->epoch};
	bool is_told;

	lease->told_id = c->next_id;
	lease->told_serial = c->serial;
	if (lease->awaited == WIRE_METHOD_RESERVE) {
		is_told = client_post(c, WIRE_METHOD_RELEASE, &release);
	} else if (lease->serial == c->serial) {
		is_told = client_post(c, WIRE_METHOD_DETACH, &detach);
	} else { /* of a connection that broke: held until this word */
		is_told = client_post(c, WIRE_METHOD_UNMAPPED, &unmapped);
	}
	lease->told_id = is_told ? lease->told_id : 0;
	return is_told;
}

/* The lease or the reservation that a response brings; 0: none. */
static uint64_t number_of(enum wire_method method, const struct wire_packet *packet)
{
	union wire_body body;
	struct wire_fault fault;

	if (packet->error != NULL || packet->body == NULL ||
	    wire_decode_body(wire_messages[method].response, packet->body, packet->body_size, false,
			     &body, &fault) < 0) {
		return 0;
	}
	if (method == WIRE_METHOD_LOAD) {
		return body.load_response.has_lease ? body.load_response.lease : 0;
	}
	return method == WIRE_METHOD_ATTACH ? body.attach_response.lease
					    : body.reserve_response.token;
}

void keeper_await(struct distorch *c, enum wire_method method, uint32_t id)
{
	struct kept_lease *lease = NULL;

	if (method == WIRE_METHOD_LOAD || method == WIRE_METHOD_ATTACH ||
	    method == WIRE_METHOD_RESERVE) {
		lease = calloc(1, sizeof *lease);
	}
	if (lease != NULL) {
		*lease = (struct kept_lease){.epoch = c->server->epoch,
					     .serial = c->serial,
					     .fd = -1,
					     .awaited_id = id,
					     .awaited = method};
		list_append(&c->leases, &lease->link);
		keeper_start(c); /* nobody else may ever read again */
	}
}

void keeper_answered(struct distorch *c, const struct wire_packet *packet)
{
	LIST_FOR_EACH_SAFE (link, &c->leases) {
		struct kept_lease *lease = container_of(link, struct kept_lease, link);

		if (lease->told_id == packet->id && lease->told_serial == c->serial) {
			lease_free(lease);
			keeper_pay(c); /* what the socket did not take before */
			return;
		}
		if (lease->awaited_id == packet->id && lease->serial == c->serial) {
			lease->number = number_of(lease->awaited, packet);
			lease->awaited_id = 0;
			lease->is_over = true;
			if (lease->number == 0) {
				lease_free(lease);
			}
			keeper_pay(c);
			return;
		}
	}
}

/* What was awaited on a connection that is gone went with it, and so did a reservation. */
static bool is_in_vain(const struct distorch *c, const struct kept_lease *lease)
{
	return lease->serial != c->serial &&
	       (lease->awaited_id != 0 || lease->awaited == WIRE_METHOD_RESERVE);
}

/* It is over, and this connection has not said so: it takes no more, or is lost. */
static bool is_untold(const struct distorch *c, const struct kept_lease *lease)
{
	return lease->is_over && lease->epoch != 0 && lease->awaited != WIRE_METHOD_RESERVE &&
	       (c->is_lost || lease->told_id == 0 || lease->told_serial != c->serial);
}

void keeper_pay(struct distorch *c)
{
	/* Later, when the daemon is back; and not while the leases are being asserted. */
	if (c->is_lost || c->fd < 0 || c->is_opening) {
		return;
	}
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): a freed one takes itself off the list */
	LIST_FOR_EACH_SAFE (link, &c->leases) {
		struct kept_lease *lease = container_of(link, struct kept_lease, link);

		if (is_in_vain(c, lease) || (lease->is_over && lease->epoch == 0)) {
			lease_free(lease); /* a parent's: he tells it */
		} else if (lease->is_over &&
			   (lease->told_id == 0 || lease->told_serial != c->serial) &&
			   !tell_over(c, lease)) {
			return;
		}
	}
}

void keeper_drop(struct distorch *c)
{
	LIST_FOR_EACH_SAFE (link, &c->leases) {
		struct kept_lease *lease = container_of(link, struct kept_lease, link);

		if (lease->is_over || lease->awaited_id != 0) {
			lease_free(lease);
		} else {
			list_remove(&lease->link); /* its weights come to keeper_over */
		}
	}
}

void keeper_orphan(struct distorch *c)
{
	if (c->has_keeper) {
		(void)__atomic_sub_fetch(&c->n_refs, 1, __ATOMIC_RELAXED); /* its thread's */
		c->has_keeper = false;
	}
	LIST_FOR_EACH (link, &c->leases) {
		struct kept_lease *lease = container_of(link, struct kept_lease, link);

		lease->epoch = 0;
		lease->fd = -1;
	}
}

/* ---- after a loss ---- */

/* The lease cannot be had again, as the thread's error says: the memory stays as it is, its owner is
 * told. */
static void tell_lost(struct distorch *c, const struct kept_lease *lease, int rc)
{
	char reason[WIRE_LOST_EVENT_REASON_MAX + 1] =
		"the restarted daemon does not have this model any more";
	struct wire_lost_event fields = {.lease = lease->number};

	if (rc != -DISTORCH_E_NOT_FOUND && rc != -DISTORCH_E_NOT_RESIDENT &&
	    rc != -DISTORCH_E_STALE) {
		(void)snprintf(reason, sizeof reason,
			       "the restarted daemon did not give the lease again: %s",
			       distorch_error(NULL)->message); /* may be cut */
	}
	fields.reason = wire_str(reason);
	client_queue_event(c, WIRE_EVENT_LOST, &fields);
}

/* The lock is given back while waiting: the lease may be over afterwards, or even gone. */
static bool assert_again(struct distorch *c, struct kept_lease *lease)
{
	const struct wire_attach_request body = {.has_lease = true,
						 .lease = lease->number,
						 .has_epoch = true,
						 .epoch = lease->epoch};
	int fd = lease->fd;
	const struct request request = {.method = WIRE_METHOD_ATTACH,
					.body = &body,
					.fds = &fd,
					.n_fds = 1,
					.is_hello = true,
					.is_whole_without_fds = true};
	AUTO_ANSWER struct answer answer = {0};
	struct wire_attach_response response;
	int rc = client_call(c, &request, &answer, &response);

	if (rc == 0) {
		lease->number = response.lease;
		lease->epoch = c->server->epoch;
		lease->serial = c->serial;
	} else if (!c->is_lost) {
		tell_lost(c, lease, rc);
		lease->fd = -1;
	}
	return !c->is_lost;
}

/* One that is to be asserted on this connection; NULL: all are. */
static struct kept_lease *next_lease(struct distorch *c)
{
	LIST_FOR_EACH (link, &c->leases) {
		struct kept_lease *lease = container_of(link, struct kept_lease, link);

		if (!lease->is_over && lease->fd >= 0 && lease->serial != c->serial) {
			return lease;
		}
	}
	return NULL;
}

/* What happened meanwhile was missed: the reader of events looks again at all. */
static void subscribe_again(struct distorch *c)
{
	const struct wire_overflow_event fields = {.seq = 0};
	const struct request request = {.method = WIRE_METHOD_SUBSCRIBE,
					.body = &c->subscription,
					.is_hello = true};
	AUTO_ANSWER struct answer answer = {0};
	struct wire_subscribe_response response;

	if (client_call(c, &request, &answer, &response) == 0) {
		client_queue_event(c, WIRE_EVENT_OVERFLOW, &fields);
	}
}

void keeper_restore(struct distorch *c)
{
	struct kept_lease *lease;

	while (!c->is_lost && (lease = next_lease(c)) != NULL && assert_again(c, lease)) {
		/* the next one */
	}
	if (c->subscription_texts != NULL && !c->is_lost) {
		subscribe_again(c);
	}
}

void keeper_subscribe(struct distorch *c, void *texts, const struct wire_subscribe_request *body)
{
	pthread_mutex_lock(&c->lock);
	result_free(c->subscription_texts);
	c->subscription_texts = texts;
	c->subscription = *body;
	keeper_start(c);
	pthread_mutex_unlock(&c->lock);
}

/* ---- the thread ---- */

static bool has_something(const struct distorch *c)
{
	return c->subscription_texts != NULL || !list_is_empty(&c->leases);
}

bool keeper_returns(const struct distorch *c)
{
	return c->has_keeper && has_something(c);
}

/* Read when nobody else does. Who waits for an answer leads; then this only looks on. */
static void listen_in(struct distorch *c)
{
	struct pollfd poller = {.fd = c->fd, .events = POLLIN};
	uint64_t serial = c->serial;

	pthread_mutex_unlock(&c->lock);
	(void)poll(&poller, 1, -1); /* a close wakes it too */
	pthread_mutex_lock(&c->lock);
	if (c->serial != serial || c->is_closed || c->is_lost) {
		return;
	}
	if (c->is_led) {
		client_follow(c, LONGEST_WAIT_MS);
	} else if (poller.revents != 0) {
		client_read(c);
	}
}

static void *keep(void *argument)
{
	struct distorch *c = argument;
	uint64_t wait_ms = FIRST_WAIT_MS;

	pthread_mutex_lock(&c->lock);
	while (!c->is_closed) {
		if (c->is_opening || (c->is_lost && (!has_something(c) || !client_can_return(c)))) {
			client_follow(c, DISTORCH_FOREVER);
		} else if (!c->is_lost) {
			wait_ms = FIRST_WAIT_MS;
			listen_in(c);
		} else if (client_connect(c) < 0 || c->is_lost) { /* also while restoring */
			client_follow(c, wait_ms);
			wait_ms = wait_ms * 2 < LONGEST_WAIT_MS ? wait_ms * 2 : LONGEST_WAIT_MS;
		}
	}
	c->has_keeper = false; /* what a fork from now on finds */
	pthread_mutex_unlock(&c->lock);
	client_unref(c);
	return NULL;
}

/* A thread that gets no signals, for those are the program's. */
static bool start_thread(void *(*run)(void *), void *argument)
{
	pthread_attr_t attributes;
	pthread_t thread;
	sigset_t all;
	sigset_t before;
	bool is_started;

	if (pthread_attr_init(&attributes) != 0) {
		return false;
	}
	(void)pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	(void)pthread_attr_setstacksize(&attributes, STACK_BYTES);
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	is_started = pthread_create(&thread, &attributes, run, argument) == 0;
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	(void)pthread_attr_destroy(&attributes);
	return is_started;
}

void keeper_start(struct distorch *c)
{
	if (c->has_keeper || c->is_closed) {
		return;
	}
	client_ref(c);
	c->has_keeper = start_thread(keep, c);
	if (!c->has_keeper) {
		client_unref(c); /* without it the next call connects again */
	}
}

/* ---- the end of a lease ---- */

/* What is told of leases whose connection was closed before. */
struct farewell {
	char *path;
	size_t n_bodies;
	struct wire_unmapped_request bodies[];
};

static struct farewell *farewell_free(struct farewell *farewell)
{
	if (farewell != NULL) {
		free(farewell->path);
		free(farewell);
	}
	return NULL;
}

/* NULL: no memory; what it is for is held until this process ends. */
static struct farewell *farewell_new(const struct distorch *c, size_t n_bodies)
{
	struct farewell *farewell =
		calloc(1, sizeof *farewell + n_bodies * sizeof farewell->bodies[0]);

	if (farewell != NULL) {
		farewell->path = strdup(c->path);
	}
	return farewell != NULL && farewell->path == NULL ? farewell_free(farewell) : farewell;
}

static void farewell_add(struct farewell *farewell, const struct kept_lease *lease)
{
	farewell->bodies[farewell->n_bodies++] =
		(struct wire_unmapped_request){.lease = lease->number,
					       .has_epoch = true,
					       .epoch = lease->epoch};
}

/* One of this daemon's life is not found until it has seen that the connection was closed:
 * '*wait_ms' grows. */
static int say_unmapped(struct distorch *c, const struct wire_unmapped_request *body,
			uint64_t *wait_ms)
{
	const struct request request = {.method = WIRE_METHOD_UNMAPPED, .body = body};

	for (;;) {
		AUTO_ANSWER struct answer answer = {0};
		struct wire_unmapped_response response;
		int rc = client_call(c, &request, &answer, &response);

		if (rc != -DISTORCH_E_NOT_FOUND) {
			return rc;
		}
		if (body->epoch != c->server->epoch || *wait_ms > LONGEST_WAIT_MS) {
			return 0;
		}
		(void)poll(NULL, 0, (int)*wait_ms); /* only a pause */
		*wait_ms *= 2;
	}
}

static void *say_farewell(void *argument)
{
	struct farewell *farewell = argument;
	const struct distorch_options options = {.size = sizeof options,
						 .timeout_ms = LONGEST_WAIT_MS};
	uint64_t wait_ms = FIRST_WAIT_MS;
	struct distorch *c;

	if (distorch_open(farewell->path, &options, &c) == 0) {
		for (size_t i = 0; i < farewell->n_bodies; i++) {
			if (say_unmapped(c, &farewell->bodies[i], &wait_ms) < 0) {
				break; /* the rest ends with this process */
			}
		}
		(void)distorch_close(c);
	}
	(void)farewell_free(farewell);
	return NULL;
}

/* By a connection of its own, and not by who lets go: that does not block. */
static void farewell_begin(struct farewell *farewell)
{
	if (farewell->n_bodies == 0 || !start_thread(say_farewell, farewell)) {
		(void)farewell_free(farewell); /* held until this process ends */
	}
}

void keeper_part(struct distorch *c)
{
	struct farewell *farewell;
	size_t n_untold = 0;

	LIST_FOR_EACH (link, &c->leases) {
		n_untold += is_untold(c, container_of(link, struct kept_lease, link)) ? 1 : 0;
	}
	farewell = n_untold == 0 ? NULL : farewell_new(c, n_untold);
	if (farewell == NULL) {
		return;
	}
	LIST_FOR_EACH (link, &c->leases) {
		const struct kept_lease *lease = container_of(link, struct kept_lease, link);

		if (is_untold(c, lease)) {
			farewell_add(farewell, lease);
		}
	}
	farewell_begin(farewell);
}

void keeper_over(struct distorch *c, struct kept_lease *lease)
{
	struct farewell *farewell = NULL;

	if (c->pid != getpid()) {
		return; /* a process that took no part; it goes with that */
	}
	pthread_mutex_lock(&c->lock);
	if (c->is_closed && lease->epoch != 0) { /* 0: a parent's */
		farewell = farewell_new(c, 1);
	}
	if (farewell != NULL) {
		farewell_add(farewell, lease);
		farewell_begin(farewell);
	}
	lease->is_over = true;
	keeper_pay(c);
	pthread_mutex_unlock(&c->lock);
}
