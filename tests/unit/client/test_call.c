/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that wait: threads on one connection, cancelling, silence, events, fork, options. */
#include "base/require.h"
#include "tests/support/unit.h"
#include "tests/unit/client/peer.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/include/distorch.h"

#define N_THREADS 64
#define N_PINGS   20
#define QUICK_MS  300

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

/* ---- threads ---- */

/* Answer in pairs, the later one first, so that answers go to others than who reads. */
static void answer_in_pairs(struct peer *p)
{
	struct wire_packet packet;
	uint32_t first;

	while (peer_receive(p, &packet)) {
		struct pollfd poller = {.fd = p->fd, .events = POLLIN};

		first = packet.id;
		if (poll(&poller, 1, 2) == 1 && peer_receive(p, &packet)) {
			peer_respond(p, packet.id, WIRE_METHOD_PING, NULL, NULL, 0);
		}
		peer_respond(p, first, WIRE_METHOD_PING, NULL, NULL, 0);
	}
}

static void *ping_often(void *c)
{
	for (int i = 0; i < N_PINGS; i++) {
		REQUIRE(distorch_ping(c) == 0);
	}
	return NULL;
}

/* C07 */
static void many_threads_share_a_connection(void **state)
{
	pthread_t threads[N_THREADS];
	struct distorch *c;

	(void)state;
	peer_start(&peer, answer_in_pairs, NULL);
	c = open_connection(30000);
	for (size_t i = 0; i < N_THREADS; i++) {
		assert_int_equal(pthread_create(&threads[i], NULL, ping_often, c), 0);
	}
	for (size_t i = 0; i < N_THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	}
	distorch_close(c);
	peer_stop(&peer);
}

static void fail_then_answer(struct peer *p)
{
	peer_fail(p, peer_expect(p, WIRE_METHOD_PING), "busy", "somebody uses it");
	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

static void *ping_well(void *c)
{
	REQUIRE(distorch_ping(c) == 0);
	REQUIRE(distorch_error(c)->code == 0);
	return NULL;
}

static void errors_belong_to_their_thread(void **state)
{
	pthread_t thread;
	struct distorch *c;

	(void)state;
	peer_start(&peer, fail_then_answer, NULL);
	c = open_connection(5000);
	assert_int_equal(distorch_ping(c), -DISTORCH_E_BUSY);
	assert_int_equal(pthread_create(&thread, NULL, ping_well, c), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(distorch_error(c)->code, DISTORCH_E_BUSY);
	assert_string_equal(distorch_error(c)->word, "busy");
	assert_string_equal(distorch_error(c)->message, "somebody uses it");
	assert_int_equal(distorch_error(NULL)->code, DISTORCH_E_BUSY);
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- progress and cancelling ---- */

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

struct seen {
	int n_calls;
	uint64_t bytes;
	int wants_end;
};

static int see_progress(const struct distorch_progress *progress, void *user)
{
	struct seen *seen = user;

	seen->n_calls++;
	if (progress->bytes > 0) {
		seen->bytes = progress->bytes;
		assert_string_equal(progress->phase, "reading");
		assert_string_equal(progress->model, "abcd");
		return seen->wants_end;
	}
	return 0;
}

static void the_callback_sees_progress_and_cancels(void **state)
{
	struct seen seen = {.wants_end = 1};
	const struct distorch_load_options options = {.size = sizeof options,
						      .progress = see_progress,
						      .user = &seen};
	struct distorch *c;

	(void)state;
	peer_start(&peer, load_until_cancelled, NULL);
	c = open_connection(5000);
	assert_int_equal(distorch_load(c, model_path, &options, NULL, NULL), -DISTORCH_E_CANCELLED);
	assert_int_equal(seen.bytes, 10);
	distorch_close(c);
	peer_stop(&peer);
}

static void *cancel_soon(void *c)
{
	while (distorch_cancel(c, 42) == -DISTORCH_E_NOT_FOUND) {
		(void)usleep(1000); /* until the load has begun */
	}
	return NULL;
}

static void another_thread_cancels_by_tag(void **state)
{
	const struct distorch_load_options options = {.size = sizeof options, .tag = 42};
	pthread_t thread;
	struct distorch *c;

	(void)state;
	peer_start(&peer, load_until_cancelled, NULL);
	c = open_connection(5000);
	assert_int_equal(distorch_cancel(c, 0), -DISTORCH_E_NOT_FOUND);
	assert_int_equal(pthread_create(&thread, NULL, cancel_soon, c), 0);
	assert_int_equal(distorch_load(c, model_path, &options, NULL, NULL), -DISTORCH_E_CANCELLED);
	assert_int_equal(pthread_join(thread, NULL), 0);
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- silence ---- */

static void load_long_but_answer_pings(struct peer *p)
{
	const struct wire_load_response response = loaded();
	uint32_t id = peer_expect(p, WIRE_METHOD_LOAD);

	for (int i = 0; i < 2; i++) {
		peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	}
	peer_respond(p, id, WIRE_METHOD_LOAD, &response, NULL, 0);
	(void)peer_is_closed(p);
}

static void a_load_waits_as_long_as_pings_are_answered(void **state)
{
	struct distorch_loaded *result = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, load_long_but_answer_pings, NULL);
	c = open_connection(100);
	assert_int_equal(distorch_load(c, model_path, NULL, &result, NULL), 0);
	assert_string_equal(result->source, "disk");
	assert_string_equal(result->model->name, "m.safetensors");
	assert_true(result->duration_ms == DISTORCH_ABSENT);
	distorch_loaded_free(result);
	distorch_close(c);
	peer_stop(&peer);
}

static void load_and_fall_silent(struct peer *p)
{
	(void)peer_expect(p, WIRE_METHOD_LOAD);
	(void)peer_expect(p, WIRE_METHOD_PING);
	(void)peer_is_closed(p);
}

static void a_load_ends_when_the_daemon_falls_silent(void **state)
{
	struct distorch *c;

	(void)state;
	peer_start(&peer, load_and_fall_silent, NULL);
	c = open_connection(100);
	assert_int_equal(distorch_load(c, model_path, NULL, NULL, NULL), -DISTORCH_E_TIMEOUT);
	assert_true(distorch_error(c)->is_retryable);
	assert_int_equal(distorch_error(c)->exit_code, 8);
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- events ---- */

static void send_events_before_the_answer(struct peer *p)
{
	const struct wire_recall_event recall = {.lease = 9,
						 .reason = wire_str("room"),
						 .deadline_ms = 500};
	const struct wire_load_done_event done = {.model = wire_str("abcd"),
						  .has_error = true,
						  .error = {.code = wire_str("io"),
							    .message = wire_str("EIO at 7")}};
	uint32_t id = peer_expect(p, WIRE_METHOD_PING);

	peer_event(p, WIRE_EVENT_RECALL, &recall);
	peer_event(p, WIRE_EVENT_LOAD_DONE, &done);
	peer_respond(p, id, WIRE_METHOD_PING, NULL, NULL, 0);
}

static void events_met_while_waiting_come_once_and_in_order(void **state)
{
	struct distorch_event *event = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, send_events_before_the_answer, NULL);
	c = open_connection(5000);
	assert_int_equal(distorch_ping(c), 0);
	assert_int_equal(distorch_next_event(c, 0, &event), 0);
	assert_string_equal(event->type, "recall");
	assert_int_equal(event->lease, 9);
	assert_int_equal(event->deadline_ms, 500);
	assert_string_equal(event->why, "room");
	assert_true(event->seq == DISTORCH_ABSENT);
	distorch_event_free(event);
	assert_int_equal(distorch_next_event(c, 0, &event), 0);
	assert_string_equal(event->type, "load.done");
	assert_int_equal(event->error->code, DISTORCH_E_IO);
	assert_string_equal(event->error->message, "EIO at 7");
	distorch_event_free(event);
	/* The daemon is gone by then or soon. */
	assert_int_equal(distorch_next_event(c, DISTORCH_FOREVER, &event),
			 -DISTORCH_E_NO_CONNECTION);
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- errors with details ---- */

static void refuse_with_details(struct peer *p)
{
	struct wire_holder holders[] = {{.client = 3,
					 .pid = 812,
					 .uid = 1000,
					 .comm = wire_str("ComfyUI"),
					 .held_bytes = 5}};
	const uint64_t uids[] = {1000, 1001};
	const struct wire_str models[] = {wire_str("9f31 /a/x"), wire_str("77ab /b/x")};
	struct wire_error error = {.code = wire_str("no-memory"),
				   .message = wire_str("needs 61"),
				   .has_hint = true,
				   .hint = wire_str("unload"),
				   .retryable = true,
				   .has_detail = true,
				   .detail = {.has_need = true,
					      .need = 61,
					      .has_free = true,
					      .free = 18,
					      .has_in_use = true,
					      .in_use = 40,
					      .has_pinned = true,
					      .pinned = 3,
					      .has_holders = true,
					      .holders = {.count = 1, .items = holders},
					      .has_uids = true,
					      .uids = {.count = 2, .items = uids},
					      .has_models = true,
					      .models = {.count = 2, .items = models},
					      .has_device = true,
					      .device = wire_str("cpu"),
					      .has_errno = true,
					      .errno_ = 12}};
	uint8_t bytes[4096];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

	REQUIRE(wire_encode_error(&buffer, peer_expect(p, WIRE_METHOD_LOAD), &error));
	peer_send(p, bytes, buffer.size, NULL, 0);
	(void)peer_is_closed(p);
}

static void an_error_carries_its_numbers(void **state)
{
	const struct distorch_error *error;
	struct distorch *c;

	(void)state;
	peer_start(&peer, refuse_with_details, NULL);
	c = open_connection(5000);
	assert_int_equal(distorch_load(c, model_path, NULL, NULL, NULL), -DISTORCH_E_NO_MEMORY);
	error = distorch_error(c);
	assert_int_equal(error->exit_code, 6);
	assert_true(error->is_retryable);
	assert_string_equal(error->hint, "unload");
	assert_int_equal(error->need, 61);
	assert_int_equal(error->free, 18);
	assert_true(error->held == DISTORCH_ABSENT);
	assert_int_equal(error->in_use, 40);
	assert_int_equal(error->pinned, 3);
	assert_int_equal(error->sys_errno, 12);
	assert_string_equal(error->device, "cpu");
	assert_int_equal(error->n_holders, 1);
	assert_int_equal(error->holders[0]->pid, 812);
	assert_string_equal(error->holders[0]->comm, "ComfyUI");
	assert_int_equal(error->n_uids, 2);
	assert_int_equal(error->uids[1], 1001);
	assert_int_equal(error->n_candidates, 2);
	assert_string_equal(error->candidates[1], "77ab /b/x");
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- fork and exec ---- */

/* The parent's connection, then the child's, then the parent's again. */
static void serve_parent_and_child(struct peer *p)
{
	int parent = p->fd;

	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	peer_accept(p);
	peer_hello(p, WIRE_PROTOCOL_VERSION);
	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
	(void)close(p->fd); /* the script's own */
	p->fd = parent;
	peer_respond(p, peer_expect(p, WIRE_METHOD_PING), WIRE_METHOD_PING, NULL, NULL, 0);
	(void)peer_is_closed(p);
}

/* C03 */
static void a_forked_child_connects_anew(void **state)
{
	struct distorch *c;
	int status = -1;
	pid_t child;

	(void)state;
	peer_start(&peer, serve_parent_and_child, NULL);
	c = open_connection(5000);
	assert_int_equal(distorch_ping(c), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		int rc = distorch_ping(c);

		distorch_close(c);
		_exit(rc == 0 ? 0 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(distorch_ping(c), 0);
	distorch_close(c);
	peer_stop(&peer);
}

static void say_hello_only(struct peer *p)
{
	(void)peer_is_closed(p);
}

/* C04 */
static void descriptors_are_close_on_exec(void **state)
{
	bool was_there[1024];
	struct distorch *c;
	int n_new = 0;

	(void)state;
	for (int fd = 0; fd < 1024; fd++) {
		was_there[fd] = fcntl(fd, F_GETFD) >= 0;
	}
	peer_start(&peer, say_hello_only, NULL);
	c = open_connection(5000);
	for (int fd = 0; fd < 1024; fd++) {
		int flags = fcntl(fd, F_GETFD);

		if (flags >= 0 && !was_there[fd]) {
			n_new++;
			assert_int_equal(flags & FD_CLOEXEC, FD_CLOEXEC);
		}
	}
	assert_true(n_new >= 2); /* ours and the script's */
	distorch_close(c);
	peer_stop(&peer);
}

/* ---- files and options ---- */

static void what_is_no_readable_file_is_refused_here(void **state)
{
	struct distorch *c;
	char fifo[] = "/tmp/distorch-fifo-XXXXXX";

	(void)state;
	assert_non_null(mkdtemp(fifo));
	assert_int_equal(rmdir(fifo), 0);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	peer_start(&peer, say_hello_only, NULL);
	c = open_connection(5000);
	assert_int_equal(distorch_load(c, "/no/such/file", NULL, NULL, NULL),
			 -DISTORCH_E_NOT_FOUND);
	assert_int_equal(distorch_load(c, "/tmp", NULL, NULL, NULL), -DISTORCH_E_BAD_FILE);
	assert_non_null(strstr(distorch_error(c)->message, "a folder"));
	assert_int_equal(distorch_load(c, fifo, NULL, NULL, NULL), -DISTORCH_E_BAD_FILE);
	assert_int_equal(distorch_load(c, "/dev/null", NULL, NULL, NULL), -DISTORCH_E_BAD_FILE);
	assert_int_equal(distorch_load_fd(c, 9999, NULL, NULL, NULL), -DISTORCH_E_BAD_FD);
	distorch_close(c);
	peer_stop(&peer);
	assert_int_equal(unlink(fifo), 0);
}

static void options_of_other_versions_are_understood_or_refused(void **state)
{
	struct {
		struct distorch_list_filter known;
		uint64_t newer;
	} grown = {.known = {.size = sizeof grown}};
	struct distorch_models *models = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, say_hello_only, NULL);
	c = open_connection(QUICK_MS);
	grown.newer = 1;
	assert_int_equal(distorch_list(c, &grown.known, &models), -DISTORCH_E_UNSUPPORTED);
	grown.newer = 0;
	assert_int_equal(distorch_list(c, &grown.known, &models), -DISTORCH_E_TIMEOUT); /* sent */
	grown.known.size = 0;
	assert_int_equal(distorch_list(c, &grown.known, &models), -DISTORCH_E_BAD_ARGUMENT);
	distorch_close(c);
	peer_stop(&peer);
}

static void no_wait_and_weights_exclude_each_other(void **state)
{
	const struct distorch_load_options options = {.size = sizeof options, .no_wait = true};
	struct distorch_weights *weights = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, say_hello_only, NULL);
	c = open_connection(QUICK_MS);
	assert_int_equal(distorch_load(c, model_path, &options, NULL, &weights),
			 -DISTORCH_E_BAD_ARGUMENT);
	distorch_close(c);
	peer_stop(&peer);
}

/* The call failed as a wrong argument, and the error names which. */
static void assert_names_argument(int rc, const char *name)
{
	assert_int_equal(rc, -DISTORCH_E_BAD_ARGUMENT);
	assert_non_null(strstr(distorch_error(NULL)->message, name));
}

static void a_missing_string_is_refused_by_name(void **state)
{
	static const char *const holed[] = {"a", NULL};
	const struct distorch_select no_models = {.size = sizeof no_models, .n_models = 1};
	const struct distorch_select holes = {.size = sizeof holes, .names = holed, .n_names = 2};
	const struct distorch_history_filter types = {.size = sizeof types,
						      .types = holed,
						      .n_types = 2};
	const struct distorch_event_filter events = {.size = sizeof events,
						     .events = holed,
						     .n_events = 2};
	struct distorch_detail *detail = NULL;
	struct distorch_weights *weights = NULL;
	struct distorch_records *records = NULL;
	struct distorch_checks *checks = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, say_hello_only, NULL);
	c = open_connection(QUICK_MS);
	assert_names_argument(distorch_load(c, NULL, NULL, NULL, NULL), "'path'");
	assert_names_argument(distorch_attach(c, NULL, &weights), "'model'");
	assert_names_argument(distorch_show(c, NULL, &detail, NULL), "'model'");
	assert_names_argument(distorch_set(c, NULL, NULL, NULL, NULL), "'model'");
	assert_names_argument(distorch_unload(c, &no_models, NULL), "'models'");
	assert_names_argument(distorch_unload(c, &holes, NULL), "'names'");
	assert_names_argument(distorch_history(c, &types, &records), "'types'");
	assert_names_argument(distorch_subscribe(c, &events), "'events'");
	assert_names_argument(distorch_verify(c, holed, 2, &checks), "'models'");
	assert_names_argument(distorch_verify(c, NULL, 2, &checks), "'models'");
	assert_names_argument(distorch_ping(NULL), "'c'");
	assert_names_argument(distorch_default_path(NULL, 16), "'buffer'");
	distorch_close(c);
	peer_stop(&peer);
}

static void show_without_a_table(struct peer *p)
{
	const struct wire_show_response show = {.model = peer_model()};
	int empty = peer_memfd("", 0, 0);

	peer_respond(p, peer_expect(p, WIRE_METHOD_SHOW), WIRE_METHOD_SHOW, &show, NULL, 0);
	peer_respond(p, peer_expect(p, WIRE_METHOD_SHOW), WIRE_METHOD_SHOW, &show, &empty, 1);
	REQUIRE(close(empty) == 0);
	(void)peer_is_closed(p);
}

static void a_table_of_a_model_that_is_not_in_memory_is_not_resident(void **state)
{
	struct distorch_detail *detail = NULL;
	struct distorch_weights *table = NULL;
	struct distorch *c;

	(void)state;
	peer_start(&peer, show_without_a_table, NULL);
	c = open_connection(5000);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(distorch_show(c, "m", &detail, &table), -DISTORCH_E_NOT_RESIDENT);
		assert_non_null(strstr(distorch_error(c)->hint, "distorchctl load"));
		assert_int_equal(distorch_error(c)->exit_code, 4);
	}
	distorch_close(c);
	peer_stop(&peer);
}

static void the_default_path_follows_the_environment(void **state)
{
	char path[256];

	(void)state;
	assert_int_equal(setenv("DISTORCH_SOCKET", "/x/y.sock", 1), 0);
	assert_int_equal(distorch_default_path(path, sizeof path), 0);
	assert_string_equal(path, "/x/y.sock");
	assert_int_equal(distorch_default_path(path, 5), -DISTORCH_E_TOO_LARGE);
	assert_int_equal(unsetenv("DISTORCH_SOCKET"), 0);
	assert_int_equal(setenv("XDG_RUNTIME_DIR", "/nowhere", 1), 0);
	assert_int_equal(distorch_default_path(path, sizeof path), 0);
	assert_string_equal(path, "/run/distorchd/distorchd.sock");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(many_threads_share_a_connection),
		cmocka_unit_test(errors_belong_to_their_thread),
		cmocka_unit_test(the_callback_sees_progress_and_cancels),
		cmocka_unit_test(another_thread_cancels_by_tag),
		cmocka_unit_test(a_load_waits_as_long_as_pings_are_answered),
		cmocka_unit_test(a_load_ends_when_the_daemon_falls_silent),
		cmocka_unit_test(events_met_while_waiting_come_once_and_in_order),
		cmocka_unit_test(an_error_carries_its_numbers),
		cmocka_unit_test(a_forked_child_connects_anew),
		cmocka_unit_test(descriptors_are_close_on_exec),
		cmocka_unit_test(what_is_no_readable_file_is_refused_here),
		cmocka_unit_test(options_of_other_versions_are_understood_or_refused),
		cmocka_unit_test(no_wait_and_weights_exclude_each_other),
		cmocka_unit_test(a_missing_string_is_refused_by_name),
		cmocka_unit_test(a_table_of_a_model_that_is_not_in_memory_is_not_resident),
		cmocka_unit_test(the_default_path_follows_the_environment),
	};

	return cmocka_run_group_tests(tests, make_file, remove_file);
}
