/* SPDX-License-Identifier: Apache-2.0 */
/* Calls whose answer finds nobody: given up by their caller, or left behind by a fork. */
#include "base/require.h"
#include "tests/support/unit.h"
#include "tests/unit/client/peer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/client.h"
#include "client/include/distorch.h"
#include "proto/wire.h"

#define QUICK_MS 300

static struct peer peer;
static char model_path[64];

static struct distorch *open_connection(uint32_t timeout_ms)
{
	const struct distorch_options options = {.size = sizeof options, .timeout_ms = timeout_ms};
	struct distorch *c = NULL;

	assert_int_equal(distorch_open(peer.path, &options, &c), 0);
	return c;
}

static int make_file(void **state)
{
	int fd;

	(void)state;
	strcpy(model_path, "/tmp/distorch-test-XXXXXX");
	fd = mkstemp(model_path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "weights", 7), 7);
	return close(fd);
}

static int remove_file(void **state)
{
	(void)state;
	return unlink(model_path);
}

static struct wire_load_response loaded(void)
{
	return (struct wire_load_response){.model = peer_model(), .source = wire_str("disk")};
}

static void load_until_cancelled(struct peer *p)
{
	uint32_t id = peer_expect(p, WIRE_METHOD_LOAD);
	struct wire_load_progress_event progress = {.has_request = true,
						    .request = id,
						    .model = wire_str("abcd"),
						    .phase = wire_str("reading"),
						    .bytes = 10,
						    .total = 100};
	struct wire_packet packet;
	struct wire_cancel_request cancel;
	struct wire_fault fault;

	peer_event(p, WIRE_EVENT_LOAD_PROGRESS, &progress);
	REQUIRE(peer_receive(p, &packet) && packet.message->number == WIRE_METHOD_CANCEL);
	REQUIRE(wire_decode_body(&wire_type_cancel_request, packet.body, packet.body_size, true,
				 &cancel, &fault) == 0);
	REQUIRE(cancel.id == id);
	peer_fail(p, id, "cancelled", "the load was cancelled");
	(void)peer_is_closed(p);
}

struct forked {
	pid_t child; /* 0: this is the child */
	bool is_forked;
};

static int fork_once(const struct distorch_progress *progress, void *user)
{
	struct forked *forked = user;

	(void)progress;
	if (!forked->is_forked) {
		forked->is_forked = true;
		forked->child = fork();
		assert_true(forked->child >= 0);
	}
	return 1;
}

static void a_call_that_forks_in_its_callback_ends_in_the_child(void **state)
{
	struct forked forked = {.child = -1};
	const struct distorch_load_options options = {.size = sizeof options,
						      .progress = fork_once,
						      .user = &forked};
	struct call other = {.is_done = true}; /* as if another thread was calling, too */
	struct distorch *c;
	int status = -1;
	int rc;

	(void)state;
	peer_start(&peer, load_until_cancelled, NULL);
	c = open_connection(5000);
	list_append(&c->calls, &other.link);
	rc = distorch_load(c, model_path, &options, NULL, NULL);
	if (forked.child == 0) {
		_exit(rc == -DISTORCH_E_NO_CONNECTION && c->n_calls == 0 &&
				      c->calls.next == &c->calls && c->calls.prev == &c->calls
			      ? 0
			      : 1);
	}
	list_remove(&other.link);
	assert_int_equal(rc, -DISTORCH_E_CANCELLED);
	assert_int_equal(waitpid(forked.child, &status, 0), forked.child);
	assert_int_equal(status, 0);
	distorch_close(c);
	peer_stop(&peer);
}

/* The answer that nobody waits for any more brings a lease. */
static void answer_too_late(struct peer *p)
{
	struct wire_load_response late = loaded();
	const uint32_t load = peer_expect(p, WIRE_METHOD_LOAD);
	uint32_t ping = peer_expect(p, WIRE_METHOD_PING); /* is the daemon there? */

	REQUIRE(peer_expect(p, WIRE_METHOD_CANCEL) != 0);
	late.has_lease = true;
	late.lease = 77;
	peer_respond(p, ping, WIRE_METHOD_PING, NULL, NULL, 0);
	peer_respond(p, load, WIRE_METHOD_LOAD, &late, NULL, 0);
	for (int i = 0; i < 2; i++) {
		ping = peer_expect(p, WIRE_METHOD_PING); /* the first one reads the answer */
		peer_respond(p, ping, WIRE_METHOD_PING, NULL, NULL, 0);
	}
	(void)peer_is_closed(p);
}

static void a_lease_that_comes_too_late_is_given_back(void **state)
{
	struct distorch *c;

	(void)state;
	peer_start(&peer, answer_too_late, NULL);
	c = open_connection(QUICK_MS);
	assert_int_equal(distorch_load(c, model_path, NULL, NULL, NULL), -DISTORCH_E_TIMEOUT);
	assert_int_equal(distorch_ping(c), 0);
	assert_int_equal(distorch_ping(c), 0);
	distorch_close(c);
	peer_stop(&peer);
	assert_int_equal(peer.n_detached, 1);
	assert_int_equal(peer.detached, 77);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_call_that_forks_in_its_callback_ends_in_the_child),
		cmocka_unit_test(a_lease_that_comes_too_late_is_given_back),
	};

	return cmocka_run_group_tests(tests, make_file, remove_file);
}
