/* SPDX-License-Identifier: Apache-2.0 */
/* Z14 at the socket: a daemon that answers what no daemon would. Nothing overruns, leaks a
 * descriptor or hangs; the error says what happened. */
#include "tests/support/unit.h"
#include "tests/unit/client/peer.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/include/distorch.h"
#include "client/packet.h"

#define N_EVENTS       5000
#define N_MUTATIONS    20000
#define QUEUE_CAPACITY 1024

static struct peer peer;

static const struct distorch_options quick = {.size = sizeof quick, .timeout_ms = 300};

static struct distorch *open_quickly(void)
{
	struct distorch *c = NULL;

	assert_int_equal(distorch_open(peer.path, &quick, &c), 0);
	return c;
}

/* ---- the hello ---- */

static void send_garbage(struct peer *p)
{
	(void)peer_expect(p, WIRE_METHOD_HELLO);
	peer_send(p, "\xc1garbage", 8, NULL, 0);
	(void)peer_is_closed(p);
}

static void answer_with_protocol_99(struct peer *p)
{
	peer_hello(p, 99);
	(void)peer_is_closed(p);
}

static void say_goodbye(struct peer *p)
{
	const struct wire_goodbye_event goodbye = {.code = wire_str("too-many"),
						   .reason = wire_str(
							   "64 connections of yours are open")};

	(void)peer_expect(p, WIRE_METHOD_HELLO);
	peer_event(p, WIRE_EVENT_GOODBYE, &goodbye);
}

static void hang_up(struct peer *p)
{
	(void)shutdown(p->listener, SHUT_RDWR); /* and nobody takes its place */
	(void)peer_expect(p, WIRE_METHOD_HELLO);
}

static void say_nothing(struct peer *p)
{
	(void)peer_is_closed(p);
}

static void failed_hellos_say_why_and_leave_nothing(void **state)
{
	static const struct {
		void (*script)(struct peer *p);
		int code;
		const char *part;
	} cases[] = {
		{send_garbage, DISTORCH_E_BAD_FRAME, "no message"},
		{answer_with_protocol_99, DISTORCH_E_VERSION, "99"},
		{say_goodbye, DISTORCH_E_TOO_MANY, "64 connections"},
		{hang_up, DISTORCH_E_NO_CONNECTION, "no daemon answers"},
		{say_nothing, DISTORCH_E_TIMEOUT, "300 ms"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct distorch *c = NULL;
		int n_fds = peer_count_fds();

		peer_start_mute(&peer, cases[i].script, NULL);
		assert_int_equal(distorch_open(peer.path, &quick, &c), -cases[i].code);
		assert_null(c);
		assert_non_null(strstr(distorch_error(NULL)->message, cases[i].part));
		peer_stop(&peer);
		peer_wait_fds(n_fds);
	}
}

/* ---- answers ---- */

static void respond_show(struct peer *p, uint32_t id, int fd)
{
	const struct wire_show_response show = {.model = peer_model()};

	peer_respond(p, id, WIRE_METHOD_SHOW, &show, &fd, 1);
}

static void answer_strangers_first(struct peer *p)
{
	uint32_t id = peer_expect(p, WIRE_METHOD_PING);
	int fd = peer_make_table(0, 0);

	peer_respond(p, id + 1000, WIRE_METHOD_PING, NULL, NULL, 0);
	respond_show(p, id - 1, fd);
	peer_respond(p, id, WIRE_METHOD_PING, NULL, NULL, 0);
	(void)close(fd); /* the script's own */
	(void)peer_is_closed(p);
}

static void answers_to_nobody_are_dropped_and_their_descriptors_closed(void **state)
{
	struct distorch *c;
	int n_fds = peer_count_fds();

	(void)state;
	peer_start(&peer, answer_strangers_first, NULL);
	c = open_quickly();
	assert_int_equal(distorch_ping(c), 0);
	distorch_close(c);
	peer_stop(&peer);
	peer_wait_fds(n_fds);
}

static void answer_too_late(struct peer *p)
{
	uint32_t id = peer_expect(p, WIRE_METHOD_SHOW);
	uint32_t ping;
	int fd = peer_make_table(0, 0);

	(void)peer_expect(p, WIRE_METHOD_CANCEL);
	ping = peer_expect(p, WIRE_METHOD_PING);
	respond_show(p, id, fd);
	peer_respond(p, ping, WIRE_METHOD_PING, NULL, NULL, 0);
	(void)close(fd); /* the script's own */
	(void)peer_is_closed(p);
}

/* C08 */
static void an_answer_after_the_timeout_is_dropped(void **state)
{
	struct distorch *c;
	struct distorch_detail *detail = NULL;
	int n_fds = peer_count_fds();

	(void)state;
	peer_start(&peer, answer_too_late, NULL);
	c = open_quickly();
	assert_int_equal(distorch_show(c, "m", &detail, NULL), -DISTORCH_E_TIMEOUT);
	assert_int_equal(distorch_ping(c), 0);
	assert_int_equal(distorch_error(c)->code, 0);
	distorch_close(c);
	peer_stop(&peer);
	peer_wait_fds(n_fds);
}

static void send_more_descriptors_than_announced(struct peer *p)
{
	uint32_t id = peer_expect(p, WIRE_METHOD_PING);
	int fd = peer_make_table(0, 0);
	uint8_t bytes[64];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

	(void)wire_encode_response(&buffer, id, WIRE_METHOD_PING, NULL, 0);
	peer_send(p, bytes, buffer.size, &fd, 1);
	(void)close(fd); /* the script's own */
	(void)peer_is_closed(p);
}

static void send_descriptors_that_nobody_asked_for(struct peer *p)
{
	uint32_t id = peer_expect(p, WIRE_METHOD_PING);
	int fd = peer_make_table(0, 0);

	peer_respond(p, id, WIRE_METHOD_PING, NULL, &fd, 1);
	(void)close(fd); /* the script's own */
	(void)peer_is_closed(p);
}

static void send_a_request(struct peer *p)
{
	uint8_t bytes[64];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

	(void)peer_expect(p, WIRE_METHOD_PING);
	(void)wire_encode_request(&buffer, 1, WIRE_METHOD_PING, NULL, 0);
	peer_send(p, bytes, buffer.size, NULL, 0);
	(void)peer_is_closed(p);
}

static void broken_framing_ends_the_connection(void **state)
{
	static void (*const scripts[])(struct peer * p) = {send_more_descriptors_than_announced,
							   send_descriptors_that_nobody_asked_for,
							   send_a_request};

	(void)state;
	for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
		struct distorch *c;
		int n_fds = peer_count_fds();

		peer_start(&peer, scripts[i], NULL);
		c = open_quickly();
		assert_int_equal(distorch_ping(c), -DISTORCH_E_BAD_FRAME);
		assert_int_equal(distorch_ping(c), -DISTORCH_E_BAD_FRAME); /* and stays lost */
		distorch_close(c);
		peer_stop(&peer);
		peer_wait_fds(n_fds);
	}
}

static void answer_with_another_type(struct peer *p)
{
	uint32_t id = peer_expect(p, WIRE_METHOD_STATUS);
	const struct wire_list_response list = {.models = {0}};

	peer_respond(p, id, WIRE_METHOD_LIST, &list, NULL, 0);
	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void a_body_of_another_type_fails_only_its_call(void **state)
{
	struct distorch_status *status = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, answer_with_another_type, NULL);
	c = open_quickly();
	assert_int_equal(distorch_status(c, &status), -DISTORCH_E_INTERNAL);
	assert_null(status);
	assert_int_equal(distorch_ping(c), 0);
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- results in a memfd ---- */

struct spill {
	const void *bytes;
	size_t size;
	uint64_t announced;
};

static void answer_list_by_spill(struct peer *p)
{
	const struct spill *spill = p->user;
	uint32_t id = peer_expect(p, WIRE_METHOD_LIST);
	int fd = peer_memfd(spill->bytes, spill->size, PEER_SEALS);
	uint8_t bytes[64];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

	(void)wire_encode_spill(&buffer, id, spill->announced, 1);
	peer_send(p, bytes, buffer.size, &fd, 1);
	(void)close(fd); /* the script's own */
	(void)peer_is_closed(p);
}

static int list_by_spill(struct spill *spill, size_t *ret_n)
{
	struct distorch_models *models = NULL;
	struct distorch *c;
	int n_fds = peer_count_fds();
	int rc;

	peer_start(&peer, answer_list_by_spill, spill);
	c = open_quickly();
	rc = distorch_list(c, NULL, &models);
	*ret_n = rc == 0 ? models->n_models : 0;
	if (rc == 0) {
		assert_string_equal(models->models[*ret_n - 1]->name, "m.safetensors");
		assert_null(models->models[*ret_n]);
	}
	distorch_models_free(models);
	distorch_close(c);
	peer_stop(&peer);
	peer_wait_fds(n_fds);
	return rc;
}

static void spilled_lists_are_read_and_hostile_ones_refused(void **state)
{
	static struct wire_model models[100];
	const struct wire_list_response list = {.models = {.count = 100, .items = models}};
	static uint8_t bytes[65536];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};
	struct spill spill = {.bytes = bytes};
	size_t n = 0;

	(void)state;
	for (size_t i = 0; i < 100; i++) {
		models[i] = peer_model();
	}
	assert_true(wire_encode_body(&buffer, &wire_type_list_response, &list));
	spill.size = buffer.size;
	spill.announced = buffer.size;
	assert_int_equal(list_by_spill(&spill, &n), 0);
	assert_int_equal(n, 100);

	spill.announced = buffer.size + 1; /* more than there is */
	assert_int_equal(list_by_spill(&spill, &n), -DISTORCH_E_INTERNAL);
	spill.announced = buffer.size - 1; /* cut */
	assert_int_equal(list_by_spill(&spill, &n), -DISTORCH_E_INTERNAL);
	spill.announced = WIRE_SPILL_BYTES; /* the most that may be claimed */
	assert_int_equal(list_by_spill(&spill, &n), -DISTORCH_E_INTERNAL);
	memset(bytes, 0xdd, 5); /* an array32 that claims 2^32 items */
	spill.announced = buffer.size;
	assert_int_equal(list_by_spill(&spill, &n), -DISTORCH_E_INTERNAL);
}

/* ---- events ---- */

static void flood_with_events(struct peer *p)
{
	const struct wire_model_state_event change = {.model = wire_str("abcd"),
						      .state = wire_str("resident"),
						      .has_seq = true};
	uint32_t id = peer_expect(p, WIRE_METHOD_PING);

	for (int i = 0; i < N_EVENTS; i++) {
		peer_event(p, WIRE_EVENT_MODEL_STATE, &change);
	}
	peer_respond(p, id, WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void a_flood_of_events_is_bounded_and_said(void **state)
{
	struct distorch_event *event = NULL;
	struct distorch *c = NULL;
	size_t n_events = 0;
	size_t n_overflows = 0;

	(void)state;
	peer_start(&peer, flood_with_events, NULL);
	assert_int_equal(distorch_open(peer.path, NULL, &c), 0);
	assert_int_equal(distorch_ping(c), 0);
	while (distorch_next_event(c, 0, &event) == 0) {
		n_events++;
		n_overflows += strcmp(event->type, "overflow") == 0 ? 1 : 0;
		distorch_event_free(event);
	}
	assert_int_equal(distorch_error(c)->code, DISTORCH_E_TIMEOUT);
	assert_int_equal(n_overflows, 1);
	assert_true(n_events <= QUEUE_CAPACITY + 1);
	distorch_close(c);
	peer_stop(&peer);
}

/* 5,000 recalls and losses of two leases, and 5,000 loads that nobody asks about. */
static void flood_with_owned_events(struct peer *p)
{
	const struct wire_load_done_event done = {.model = wire_str("abcd")};
	uint32_t id = peer_expect(p, WIRE_METHOD_PING);

	for (uint64_t i = 0; i < N_EVENTS; i++) {
		const struct wire_recall_event recall = {.lease = 7 + i % 2,
							 .reason = wire_str("room"),
							 .deadline_ms = i};
		const struct wire_lost_event lost = {.lease = 7 + i % 2,
						     .reason = wire_str("gone")};

		peer_event(p, WIRE_EVENT_RECALL, &recall);
		peer_event(p, WIRE_EVENT_LOST, &lost);
	}
	peer_respond(p, id, WIRE_METHOD_PING, NULL, NULL, 0);
	id = peer_expect(p, WIRE_METHOD_PING);
	for (int i = 0; i < N_EVENTS; i++) {
		peer_event(p, WIRE_EVENT_LOAD_DONE, &done);
	}
	peer_respond(p, id, WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void events_that_nobody_reads_end_no_connection(void **state)
{
	struct distorch_event *event = NULL;
	struct distorch *c = NULL;
	size_t n_overflows = 0;
	size_t n_done = 0;

	(void)state;
	peer_start(&peer, flood_with_owned_events, NULL);
	assert_int_equal(distorch_open(peer.path, NULL, &c), 0);
	assert_int_equal(distorch_ping(c), 0);
	for (uint64_t i = 0; i < 4; i++) { /* of each lease the newest */
		assert_int_equal(distorch_next_event(c, 0, &event), 0);
		assert_string_equal(event->type, i % 2 == 0 ? "recall" : "lost");
		assert_int_equal(event->lease, 7 + (N_EVENTS - 2 + i / 2) % 2);
		assert_true(i % 2 == 1 || event->deadline_ms == N_EVENTS - 2 + i / 2);
		distorch_event_free(event);
	}
	assert_int_equal(distorch_next_event(c, 0, &event), -DISTORCH_E_TIMEOUT);
	assert_int_equal(distorch_ping(c), 0);
	while (distorch_next_event(c, 0, &event) == 0) {
		n_overflows += strcmp(event->type, "overflow") == 0 ? 1 : 0;
		n_done += strcmp(event->type, "load.done") == 0 ? 1 : 0;
		distorch_event_free(event);
	}
	assert_int_equal(distorch_error(c)->code, DISTORCH_E_TIMEOUT);
	assert_int_equal(n_overflows, 1);
	assert_true(n_done >= 4000 && n_done <= 4096);
	distorch_close(c);
	peer_stop(&peer);
}

static void send_strange_events(struct peer *p)
{
	static const char unknown[] = "\x93\x02\xa7strange\x81\xa1x\x01";
	static const char empty[] = "\x93\x02\xabmodel.state\x80";
	uint32_t id = peer_expect(p, WIRE_METHOD_PING);

	peer_send(p, unknown, sizeof unknown - 1, NULL, 0);
	peer_send(p, empty, sizeof empty - 1, NULL, 0);
	peer_respond(p, id, WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void unknown_events_are_skipped_and_incomplete_ones_fail_once(void **state)
{
	struct distorch_event *event = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, send_strange_events, NULL);
	c = open_quickly();
	assert_int_equal(distorch_ping(c), 0);
	assert_int_equal(distorch_next_event(c, 0, &event), -DISTORCH_E_INTERNAL);
	assert_int_equal(distorch_next_event(c, 0, &event), -DISTORCH_E_TIMEOUT);
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- mutations ---- */

static uint32_t next_random(uint32_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 17;
	*seed ^= *seed << 5;
	return *seed;
}

static size_t good_show(uint8_t *bytes, size_t capacity)
{
	struct wire_place places[] = {{.device = wire_str("cpu"), .backing = wire_str("image")}};
	struct wire_str stays[] = {wire_str("pinned"), wire_str("kept")};
	struct wire_holder holders[] = {{.client = 1, .comm = wire_str("python")}};
	struct wire_wish wishes[] = {{.uid = 1, .pin = true}};
	struct wire_show_response show = {
		.model = peer_model(),
		.clients = {.count = 1, .items = holders},
		.wishes = {.count = 1, .items = wishes},
	};
	struct wire_buffer buffer = {.bytes = bytes, .capacity = capacity};

	show.model.where = (struct wire_list){.count = 1, .items = places};
	show.model.stays = (struct wire_list){.count = 2, .items = stays};
	assert_true(wire_encode_response(&buffer, 1, WIRE_METHOD_SHOW, &show, 0));
	return buffer.size;
}

static void mutated_answers_never_overrun(void **state)
{
	uint8_t good[4096];
	size_t size = good_show(good, sizeof good);
	uint32_t seed = 12345;
	size_t n_accepted = 0;

	(void)state;
	for (int i = 0; i < N_MUTATIONS; i++) {
		struct wire_show_response show;
		struct answer answer = {.size = 1 + next_random(&seed) % size};

		answer.packet = malloc(answer.size); /* exact, so that a sanitizer sees it */
		assert_non_null(answer.packet);
		memcpy(answer.packet, good, answer.size);
		for (uint32_t n = next_random(&seed) % 4; n > 0; n--) {
			answer.packet[next_random(&seed) % answer.size] =
				(uint8_t)next_random(&seed);
		}
		if (i % 3 == 0 && answer.size < size) {
			answer.packet = realloc(answer.packet, size);
			assert_non_null(answer.packet);
			memcpy(answer.packet + answer.size, good + answer.size, size - answer.size);
			answer.size = size;
		}
		n_accepted += packet_decode(WIRE_METHOD_SHOW, &answer, &show) == 0 ? 1 : 0;
		answer_fini(&answer);
	}
	assert_true(n_accepted > 0); /* else the good one is not good */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(failed_hellos_say_why_and_leave_nothing),
		cmocka_unit_test(answers_to_nobody_are_dropped_and_their_descriptors_closed),
		cmocka_unit_test(an_answer_after_the_timeout_is_dropped),
		cmocka_unit_test(broken_framing_ends_the_connection),
		cmocka_unit_test(a_body_of_another_type_fails_only_its_call),
		cmocka_unit_test(spilled_lists_are_read_and_hostile_ones_refused),
		cmocka_unit_test(a_flood_of_events_is_bounded_and_said),
		cmocka_unit_test(events_that_nobody_reads_end_no_connection),
		cmocka_unit_test(unknown_events_are_skipped_and_incomplete_ones_fail_once),
		cmocka_unit_test(mutated_answers_never_overrun),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
