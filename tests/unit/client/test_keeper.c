/* SPDX-License-Identifier: Apache-2.0 */
/* A connection over the daemon's death: leases, subscriptions, and what ended meanwhile. */
#include "base/require.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"
#include "tests/unit/client/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/include/distorch.h"
#include "proto/wire.h"

static struct peer peer;
static int step; /* what the script saw last; atomic */

static void reach(int number)
{
	__atomic_store_n(&step, number, __ATOMIC_RELEASE);
}

static void wait_for(int number)
{
	for (int i = 0; i < 5000 && __atomic_load_n(&step, __ATOMIC_ACQUIRE) < number; i++) {
		(void)poll(NULL, 0, 2);
	}
	assert_true(__atomic_load_n(&step, __ATOMIC_ACQUIRE) >= number);
}

static struct distorch *opened(void)
{
	struct distorch_options options = {.size = sizeof options, .timeout_ms = 5000};
	struct distorch *c = NULL;

	assert_int_equal(distorch_open(peer.path, &options, &c), 0);
	return c;
}

/* The daemon dies and another takes the listening socket over. */
static void die_and_return(struct peer *p)
{
	REQUIRE(close(p->fd) == 0);
	peer_accept(p);
	peer_hello(p, WIRE_PROTOCOL_VERSION);
}

static void give_attach(struct peer *p)
{
	const int fds[] = {peer_make_table(0, PEER_SEALS), peer_make_image(PEER_SEALS)};
	const struct wire_attach_response response = {.lease = 5,
						      .generation = 3,
						      .images = 1,
						      .model = peer_model()};

	peer_respond(p, peer_expect(p, WIRE_METHOD_ATTACH), WIRE_METHOD_ATTACH, &response, fds, 2);
	REQUIRE(close(fds[0]) == 0 && close(fds[1]) == 0);
}

/* The request by which a lease is asserted again; answers it, by a refusal where that is a code. */
static void expect_assertion(struct peer *p, uint64_t lease, const char *refusal)
{
	struct wire_packet packet;
	struct wire_attach_request request;
	struct wire_fault fault;
	int table = peer_make_table(0, PEER_SEALS);
	const struct wire_attach_response response = {.lease = lease + 100,
						      .generation = 3,
						      .model = peer_model()};

	REQUIRE(peer_receive(p, &packet) && packet.message->number == WIRE_METHOD_ATTACH);
	REQUIRE(wire_decode_body(&wire_type_attach_request, packet.body, packet.body_size, true,
				 &request, &fault) == 0);
	REQUIRE(request.has_lease && request.lease == lease && request.has_epoch &&
		!request.has_model && packet.n_fds == 1);
	if (refusal == NULL) {
		peer_respond(p, packet.id, WIRE_METHOD_ATTACH, &response, &table, 1);
	} else {
		peer_fail(p, packet.id, refusal, "no room for leases");
	}
	REQUIRE(close(table) == 0);
}

static void restart_twice(struct peer *p)
{
	give_attach(p);
	die_and_return(p);
	expect_assertion(p, 5, NULL);
	die_and_return(p);
	expect_assertion(p, 105, NULL);
	reach(1);
	(void)peer_is_closed(p);
}

static void a_lease_is_asserted_after_every_loss(void **state)
{
	struct distorch_weights *weights = NULL;
	struct distorch *c;
	const uint8_t *base;
	uint64_t bytes;

	(void)state;
	reach(0);
	peer_start(&peer, restart_twice, NULL);
	c = opened();
	assert_int_equal(distorch_attach(c, "m", &weights), 0);
	wait_for(1); /* without any call of ours */
	for (int i = 0; i < 5000 && distorch_weights_lease(weights) != 205; i++) {
		scratch_sleep_ms(1); /* the answer has gone out, and is heard soon */
	}
	assert_int_equal(distorch_weights_lease(weights), 205);
	base = distorch_weights_base(weights, 0, &bytes);
	assert_int_equal(base[bytes - 1], peer_pattern(bytes - 1));
	assert_null(distorch_weights_unref(weights));
	distorch_close(c);
	peer_stop(&peer);
	assert_int_equal(peer.n_detached, 1);
	assert_int_equal(peer.detached, 205);
}

static void refuse_the_assertion(struct peer *p)
{
	give_attach(p);
	die_and_return(p);
	expect_assertion(p, 5, p->user);
	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void lose_a_lease(const char *code, const char *reason)
{
	char refusal[16];
	struct distorch_weights *weights = NULL;
	struct distorch_event *event = NULL;
	struct distorch *c;

	(void)snprintf(refusal, sizeof refusal, "%s", code);
	peer_start(&peer, refuse_the_assertion, refusal);
	c = opened();
	assert_int_equal(distorch_attach(c, "m", &weights), 0);
	assert_int_equal(distorch_next_event(c, 5000, &event), 0);
	assert_string_equal(event->type, "lost");
	assert_int_equal(event->lease, 5);
	assert_string_equal(event->why, reason);
	distorch_event_free(event);
	assert_int_equal(distorch_ping(c), 0);
	assert_int_equal(((const uint8_t *)distorch_weights_base(weights, 0, NULL))[7],
			 peer_pattern(7));
	assert_null(distorch_weights_unref(weights));
	distorch_close(c);
	peer_stop(&peer);
}

static void a_lease_that_is_lost_is_told_and_its_memory_stays(void **state)
{
	(void)state;
	lose_a_lease("not-resident", "the restarted daemon does not have this model any more");
}

static void why_a_lease_is_lost_is_said(void **state)
{
	(void)state;
	lose_a_lease("too-many",
		     "the restarted daemon did not give the lease again: no room for leases");
}

static void die_while_it_is_unmapped(struct peer *p)
{
	struct wire_packet packet;
	struct wire_unmapped_request request;
	struct wire_fault fault;

	give_attach(p);
	REQUIRE(close(p->fd) == 0);
	p->fd = -1;
	reach(1);
	while (__atomic_load_n(&step, __ATOMIC_ACQUIRE) < 2) {
		(void)poll(NULL, 0, 2);
	}
	peer_accept(p);
	peer_hello(p, WIRE_PROTOCOL_VERSION);
	REQUIRE(peer_receive(p, &packet) && packet.message->number == WIRE_METHOD_UNMAPPED);
	REQUIRE(wire_decode_body(&wire_type_unmapped_request, packet.body, packet.body_size, true,
				 &request, &fault) == 0);
	REQUIRE(request.lease == 5 && request.has_epoch);
	peer_respond(p, packet.id, WIRE_METHOD_UNMAPPED, NULL, NULL, 0);
	reach(3);
	(void)peer_is_closed(p);
}

static void what_is_unmapped_meanwhile_is_told_later(void **state)
{
	struct distorch_weights *weights = NULL;
	struct distorch *c;

	(void)state;
	reach(0);
	peer_start(&peer, die_while_it_is_unmapped, NULL);
	c = opened();
	assert_int_equal(distorch_attach(c, "m", &weights), 0);
	wait_for(1);
	assert_null(distorch_weights_unref(weights));
	reach(2);
	wait_for(3);
	distorch_close(c);
	peer_stop(&peer);
}

static void lose_a_subscriber(struct peer *p)
{
	const struct wire_subscribe_response response = {0};

	for (int i = 0; i < 2; i++) {
		peer_respond(p, peer_expect(p, WIRE_METHOD_SUBSCRIBE), WIRE_METHOD_SUBSCRIBE,
			     &response, NULL, 0);
		if (i == 0) {
			die_and_return(p);
		}
	}
	(void)peer_is_closed(p);
}

static void a_subscription_is_made_again_and_says_that_it_missed_something(void **state)
{
	const char *const types[] = {"evicted"};
	const struct distorch_event_filter filter = {.size = sizeof filter,
						     .events = types,
						     .n_events = 1};
	struct distorch_event *event = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, lose_a_subscriber, NULL);
	c = opened();
	assert_int_equal(distorch_subscribe(c, &filter), 0);
	assert_int_equal(distorch_next_event(c, 5000, &event), 0);
	assert_string_equal(event->type, "overflow");
	distorch_event_free(event);
	distorch_close(c);
	peer_stop(&peer);
}

static void fall_silent_and_die(struct peer *p)
{
	give_attach(p);
	(void)peer_expect(p, WIRE_METHOD_PING);
	die_and_return(p);
	expect_assertion(p, 5, NULL);
	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void a_call_in_flight_fails_and_the_next_one_works(void **state)
{
	struct distorch_weights *weights = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, fall_silent_and_die, NULL);
	c = opened();
	assert_int_equal(distorch_attach(c, "m", &weights), 0);
	assert_int_equal(distorch_ping(c), -DISTORCH_E_NO_CONNECTION);
	assert_true(distorch_error(c)->is_retryable);
	assert_int_equal(distorch_ping(c), 0);
	assert_null(distorch_weights_unref(weights));
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- while it connects ---- */

/* Another takes the socket over and says nothing yet. */
static void return_late(struct peer *p)
{
	const struct wire_subscribe_response response = {0};

	peer_respond(p, peer_expect(p, WIRE_METHOD_SUBSCRIBE), WIRE_METHOD_SUBSCRIBE, &response,
		     NULL, 0);
	REQUIRE(close(p->fd) == 0);
	peer_accept(p);
	reach(1);
	while (__atomic_load_n(&step, __ATOMIC_ACQUIRE) < 2) {
		(void)poll(NULL, 0, 2);
	}
	peer_hello(p, WIRE_PROTOCOL_VERSION);
	peer_respond(p, peer_expect(p, WIRE_METHOD_SUBSCRIBE), WIRE_METHOD_SUBSCRIBE, &response,
		     NULL, 0);
	(void)peer_is_closed(p);
}

static void a_wait_for_events_does_not_wait_for_the_connection(void **state)
{
	struct distorch_event *event = NULL;
	struct distorch *c;

	(void)state;
	reach(0);
	peer_start(&peer, return_late, NULL);
	c = opened();
	assert_int_equal(distorch_subscribe(c, NULL), 0);
	wait_for(1);
	assert_int_equal(distorch_next_event(c, 0, &event), -DISTORCH_E_TIMEOUT);
	assert_int_equal(distorch_next_recall(c, 20, &event), -DISTORCH_E_TIMEOUT);
	reach(2);
	assert_int_equal(distorch_next_event(c, 5000, &event), 0);
	assert_string_equal(event->type, "overflow");
	distorch_event_free(event);
	distorch_close(c);
	peer_stop(&peer);
}

/* The first to take over dies within the hello. */
static void die_in_the_hello(struct peer *p)
{
	REQUIRE(close(p->fd) == 0);
	reach(1);
	peer_accept(p);
	die_and_return(p);
	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void a_call_that_connects_at_the_second_try_leaves_no_error(void **state)
{
	struct distorch *c;

	(void)state;
	reach(0);
	peer_start(&peer, die_in_the_hello, NULL);
	c = opened();
	wait_for(1);
	assert_int_equal(distorch_ping(c), 0);
	assert_int_equal(distorch_error(c)->code, 0);
	distorch_close(c);
	peer_stop(&peer);
}

/* The socket's backlog is full until the test has gone on. */
static void take_nobody(struct peer *p)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fillers[4];
	int n_fillers = 0;

	memcpy(address.sun_path, p->path, strlen(p->path) + 1);
	REQUIRE(listen(p->listener, 0) == 0);
	REQUIRE(close(p->fd) == 0);
	do {
		REQUIRE(n_fillers < 4);
		fillers[n_fillers] =
			socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	} while (connect(fillers[n_fillers++], (const struct sockaddr *)&address, sizeof address) ==
		 0);
	REQUIRE(errno == EAGAIN);
	reach(1);
	while (__atomic_load_n(&step, __ATOMIC_ACQUIRE) < 2) {
		(void)poll(NULL, 0, 2);
	}
	REQUIRE(listen(p->listener, 100) == 0);
	for (int i = 0; i < n_fillers; i++) {
		REQUIRE(close(fillers[i]) == 0);
		if (i + 1 < n_fillers) { /* the last one got no place */
			peer_accept(p);
			REQUIRE(close(p->fd) == 0);
		}
	}
	peer_accept(p);
	peer_hello(p, WIRE_PROTOCOL_VERSION);
	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void *ping_well(void *c)
{
	REQUIRE(distorch_ping(c) == 0);
	return NULL;
}

static void a_full_backlog_holds_only_its_call_up(void **state)
{
	pthread_t thread;
	struct distorch *c;
	int status = -1;
	pid_t pid;

	(void)state;
	reach(0);
	peer_start(&peer, take_nobody, NULL);
	c = opened();
	wait_for(1);
	assert_int_equal(pthread_create(&thread, NULL, ping_well, c), 0);
	scratch_sleep_ms(50); /* it most likely connects now */
	pid = fork();         /* takes all locks */
	if (pid == 0) {
		_exit(0);
	}
	reach(2);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	distorch_close(c);
	peer_stop(&peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_lease_is_asserted_after_every_loss),
		cmocka_unit_test(a_lease_that_is_lost_is_told_and_its_memory_stays),
		cmocka_unit_test(why_a_lease_is_lost_is_said),
		cmocka_unit_test(what_is_unmapped_meanwhile_is_told_later),
		cmocka_unit_test(a_subscription_is_made_again_and_says_that_it_missed_something),
		cmocka_unit_test(a_call_in_flight_fails_and_the_next_one_works),
		cmocka_unit_test(a_wait_for_events_does_not_wait_for_the_connection),
		cmocka_unit_test(a_call_that_connects_at_the_second_try_leaves_no_error),
		cmocka_unit_test(a_full_backlog_holds_only_its_call_up),
	};

	return cmocka_run_group_tests_name("client/keeper", tests, NULL, NULL);
}
