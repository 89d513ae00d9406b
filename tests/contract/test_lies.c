/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that lie: what they say and what they do with what they are lent ends no daemon. */
#include "base/err.h"
#include "base/os/fdpass.h"
#include "base/require.h"
#include "tests/support/baseline.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/device/remote.h"
#include "daemon/device/remote_inside.h"
#include "daemon/device/sim.h"
#include "daemon/device/worker_link.h"
#include "proto/gen/wire_gen.h"
#include "proto/wire.h"

static const struct remote_options options = {.limit_ns = 60000000000ULL};

static struct baseline before;

static int setup(void **state)
{
	(void)state;
	before = baseline_take();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	baseline_check(&before);
	return 0;
}

static size_t encode_answer(uint32_t id, int kind, uint8_t *bytes, size_t capacity)
{
	struct wire_buffer buffer = {.bytes = bytes, .capacity = capacity};
	struct wire_worker_open_response response = {
		.info = {.uuid = wire_str("x"), .product = wire_str(""), .pci = wire_str("")}};

	switch (kind) {
	case 0:
		memset(bytes, 0xc1, 64);
		return 64;
	case 1: /* an id that nobody waits for */
		assert_true(wire_encode_response(&buffer, id + 1, WIRE_METHOD_WORKER_OPEN,
						 &response, 0));
		break;
	case 2: /* descriptors that are announced and do not come */
		assert_true(
			wire_encode_response(&buffer, id, WIRE_METHOD_WORKER_OPEN, &response, 1));
		break;
	case 3: /* a response of another method */
		assert_true(wire_encode_response(&buffer, id, WIRE_METHOD_WORKER_ALLOC,
						 &(struct wire_worker_alloc_response){.extent = 1},
						 0));
		break;
	default: /* a request */
		assert_true(wire_encode_request(&buffer, id, WIRE_METHOD_PING, NULL, 0));
		break;
	}
	return buffer.size;
}

static void a_worker_that_speaks_another_language_is_given_up(void **state)
{
	(void)state;
	for (int kind = 0; kind < 5; kind++) {
		struct device *device = NULL;
		uint8_t bytes[512];
		struct err err = {0};
		int ends[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
		assert_int_equal(send(ends[1], bytes, encode_answer(0, kind, bytes, sizeof bytes),
				      0) > 0,
				 1);
		assert_int_equal(device_open("remote", "sim:0", &device, &err), 0);
		assert_int_equal(remote_attach(device, ends[0], &options, NULL, NULL, &err),
				 -WIRE_DEVICE_LOST);
		assert_non_null(strstr(err.text, "does not speak our protocol"));
		(void)close(ends[1]);
		(void)device_close(device);
	}
}

/* One that does nothing of what it says, and cuts off what it was lent to read into. */
static void *cut_what_is_lent(void *argument)
{
	static const enum wire_method methods[] = {WIRE_METHOD_WORKER_OPEN,
						   WIRE_METHOD_WORKER_ALLOC,
						   WIRE_METHOD_WORKER_READ,
						   WIRE_METHOD_WORKER_RELEASE};
	const int socket = *(const int *)argument;
	bool was_refused = false;

	for (uint32_t id = 0; id < sizeof methods / sizeof methods[0]; id++) {
		const struct wire_worker_open_response opened = {.info = {.total = 1 << 20,
									  .granularity = 4096,
									  .uuid = wire_str("x"),
									  .product = wire_str(""),
									  .pci = wire_str("")}};
		const struct wire_worker_alloc_response allocated = {.extent = 1};
		uint8_t bytes[4096];
		struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};
		struct fdpass_packet packet;

		while (fdpass_receive(socket, bytes, sizeof bytes, &packet) == FDPASS_AGAIN) {
			scratch_sleep_ms(1);
		}
		if (packet.n_fds == 1) {
			was_refused = ftruncate(packet.fds[0], 0) < 0 && errno == EPERM;
		}
		fdpass_close_all(packet.fds, packet.n_fds);
		REQUIRE(wire_encode_response(&buffer, id, methods[id],
					     id == 0   ? (const void *)&opened
					     : id == 1 ? (const void *)&allocated
						       : NULL,
					     0));
		REQUIRE(send(socket, bytes, buffer.size, 0) == (ssize_t)buffer.size);
	}
	return was_refused ? argument : NULL;
}

static void what_a_worker_is_lent_stays_as_long_as_it_was(void **state)
{
	const struct device_alloc request = {.name = "test", .bytes = 4096};
	struct device *device = NULL;
	struct extent *extent = NULL;
	struct err err = {0};
	void *was_refused = NULL;
	pthread_t thread;
	uint8_t byte;
	int ends[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	assert_int_equal(pthread_create(&thread, NULL, cut_what_is_lent, &ends[1]), 0);
	assert_int_equal(device_open("remote", "sim:0", &device, &err), 0);
	assert_int_equal(remote_attach(device, ends[0], &options, NULL, NULL, &err), 0);
	assert_int_equal(device_alloc(device, &request, &extent, &err), 0);
	assert_int_equal(device_read(extent, 0, &byte, 1, &err), 0); /* and not SIGBUS */
	assert_int_equal(device_release(extent, NULL), 0);
	assert_int_equal(pthread_join(thread, &was_refused), 0);
	assert_non_null(was_refused);
	(void)close(ends[1]);
	(void)device_close(device);
}

static void a_worker_with_pieces_that_no_plan_can_be_made_with_is_refused(void **state)
{
	static const uint64_t pieces[] = {0, 3, 1ULL << 31, 1ULL << 61};

	(void)state;
	for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
		const struct wire_worker_open_response response = {
			.info = {.granularity = pieces[i],
				 .uuid = wire_str("x"),
				 .product = wire_str(""),
				 .pci = wire_str("")}};
		uint8_t bytes[512];
		struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};
		struct device *device = NULL;
		struct err err = {0};
		int ends[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
		assert_true(
			wire_encode_response(&buffer, 0, WIRE_METHOD_WORKER_OPEN, &response, 0));
		assert_int_equal(send(ends[1], bytes, buffer.size, 0), (ssize_t)buffer.size);
		assert_int_equal(device_open("remote", "sim:0", &device, &err), 0);
		assert_int_equal(remote_attach(device, ends[0], &options, NULL, NULL, &err),
				 -WIRE_DEVICE_LOST);
		assert_non_null(strstr(err.text, "memory comes in pieces"));
		(void)close(ends[1]);
		(void)device_close(device);
	}
}

/* It opens as it should, and says another number when it is asked how it is. */
/* Seconds that such a worker has for a call that waits for its link. */
static uint64_t limit_of(const char *name, uint64_t said, const struct remote_options *with)
{
	const struct wire_worker_open_response response = {.info = {.granularity = 4096,
								    .link = said,
								    .uuid = wire_str("x"),
								    .product = wire_str(""),
								    .pci = wire_str("")}};
	uint8_t bytes[512];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};
	struct device *device = NULL;
	struct remote_extent use;
	struct err err = {0};
	int ends[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	assert_true(wire_encode_response(&buffer, 0, WIRE_METHOD_WORKER_OPEN, &response, 0));
	assert_int_equal(send(ends[1], bytes, buffer.size, 0), (ssize_t)buffer.size);
	assert_int_equal(device_open("remote", name, &device, &err), 0);
	assert_int_equal(remote_attach(device, ends[0], with, NULL, NULL, &err), 0);
	assert_int_equal(remote_use_link(device, &use, &err), 0);
	(void)worker_link_unref(use.link);
	(void)close(ends[1]);
	(void)device_close(device);
	return (use.bytes_limit_ns - use.limit_ns) / NS_PER_S;
}

static void a_worker_that_says_its_link_is_slow_gains_no_years(void **state)
{
	static const struct sim_config sim = {.bytes_per_s = 16 << 10};
	static const struct remote_options with_sim = {.sims = &sim,
						       .n_sims = 1,
						       .limit_ns = 60000000000ULL};

	(void)state;
	assert_int_equal(limit_of("cuda:0", 0, &options), 8);
	assert_int_equal(limit_of("cuda:0", 1ULL << 34, &options), 8);
	assert_int_equal(limit_of("cuda:0", 2 << 20, &options), 256);
	assert_int_equal(limit_of("cuda:0", 1, &options), 512);
	assert_int_equal(limit_of("cuda:0", 1, &with_sim), 512);
	/* The one that is configured so slow is. */
	assert_int_equal(limit_of("sim:0", 16 << 10, &with_sim), 32768);
	assert_int_equal(limit_of("sim:0", 1, &with_sim), 32768);
}

static void *say_another_number(void *argument)
{
	static const uint64_t pieces[] = {4096, 3};
	const int socket = *(const int *)argument;

	for (uint32_t id = 0; id < 2; id++) {
		const struct wire_worker_info info = {.total = 1 << 20,
						      .granularity = pieces[id],
						      .uuid = wire_str("x"),
						      .product = wire_str(""),
						      .pci = wire_str("")};
		const struct wire_worker_open_response opened = {.info = info};
		const struct wire_worker_info_response looked = {.info = info};
		uint8_t bytes[4096];
		struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

		REQUIRE(recv(socket, bytes, sizeof bytes, 0) > 0);
		REQUIRE(wire_encode_response(&buffer, id,
					     id == 0 ? WIRE_METHOD_WORKER_OPEN
						     : WIRE_METHOD_WORKER_INFO,
					     id == 0 ? (const void *)&opened
						     : (const void *)&looked,
					     0));
		REQUIRE(send(socket, bytes, buffer.size, 0) == (ssize_t)buffer.size);
	}
	return NULL;
}

static void a_worker_whose_pieces_change_is_given_up(void **state)
{
	struct device_info info = {.granularity = 7};
	struct device *device = NULL;
	struct err err = {0};
	pthread_t thread;
	int ends[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	assert_int_equal(pthread_create(&thread, NULL, say_another_number, &ends[1]), 0);
	assert_int_equal(device_open("remote", "sim:0", &device, &err), 0);
	assert_int_equal(remote_attach(device, ends[0], &options, NULL, NULL, &err), 0);
	assert_int_equal(device_info(device, &info, &err), -WIRE_DEVICE_LOST);
	assert_non_null(strstr(err.text, "memory comes in pieces of 3 bytes"));
	assert_int_equal(info.granularity, 7);
	assert_int_equal(device_info(device, &info, &err), -WIRE_DEVICE_LOST); /* at once */
	assert_int_equal(pthread_join(thread, NULL), 0);
	(void)close(ends[1]);
	(void)device_close(device);
}

/* A worker by rote: answers these, and takes note of what it is lent. */
struct rote {
	int socket;
	const enum wire_method *methods;
	uint32_t n_methods;
	bool leaves_last; /* instead of an answer */
	ino_t lent;       /* the last */
};

static bool encode_rote(struct wire_buffer *buffer, uint32_t id, enum wire_method method)
{
	const struct wire_worker_open_response opened = {.info = {.total = 1 << 20,
								  .granularity = 4096,
								  .uuid = wire_str("x"),
								  .product = wire_str(""),
								  .pci = wire_str("")}};
	const struct wire_worker_alloc_response allocated = {.extent = 1};
	const struct wire_worker_fill_response filled = {.bytes = 4096};
	const struct wire_error refused = {.code = wire_str("unsupported"),
					   .message = wire_str("no peers")};

	return method == WIRE_METHOD_WORKER_EXPORT
		       ? wire_encode_error(buffer, id, &refused)
		       : wire_encode_response(buffer, id, method,
					      method == WIRE_METHOD_WORKER_OPEN
						      ? (const void *)&opened
					      : method == WIRE_METHOD_WORKER_ALLOC
						      ? (const void *)&allocated
					      : method == WIRE_METHOD_WORKER_FILL
						      ? (const void *)&filled
						      : NULL,
					      0);
}

static void *live_by_rote(void *argument)
{
	struct rote *rote = argument;

	for (uint32_t id = 0; id < rote->n_methods; id++) {
		uint8_t bytes[4096];
		struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};
		struct fdpass_packet packet;
		struct stat stat;

		while (fdpass_receive(rote->socket, bytes, sizeof bytes, &packet) == FDPASS_AGAIN) {
			scratch_sleep_ms(1);
		}
		if (packet.n_fds == 1) {
			REQUIRE(fstat(packet.fds[0], &stat) == 0);
			rote->lent = stat.st_ino;
		}
		fdpass_close_all(packet.fds, packet.n_fds);
		if (rote->leaves_last && id + 1 == rote->n_methods) {
			(void)shutdown(rote->socket, SHUT_RDWR);
			break;
		}
		REQUIRE(encode_rote(&buffer, id, rote->methods[id]));
		REQUIRE(send(rote->socket, bytes, buffer.size, 0) == (ssize_t)buffer.size);
	}
	return NULL;
}

/* What a worker may still write into is no other's buffer. */
static void a_buffer_that_a_lost_worker_has_is_not_used_again(void **state)
{
	static const enum wire_method gives[] = {WIRE_METHOD_WORKER_OPEN, WIRE_METHOD_WORKER_ALLOC,
						 WIRE_METHOD_WORKER_SEAL, WIRE_METHOD_WORKER_EXPORT,
						 WIRE_METHOD_WORKER_READ};
	static const enum wire_method takes[] = {WIRE_METHOD_WORKER_OPEN, WIRE_METHOD_WORKER_ALLOC,
						 WIRE_METHOD_WORKER_FILL,
						 WIRE_METHOD_WORKER_RELEASE};
	const struct device_alloc request = {.name = "test", .bytes = 4096};
	struct rote rotes[2] = {{.methods = gives, .n_methods = 5, .leaves_last = true},
				{.methods = takes, .n_methods = 4}};
	const int file = scratch_open();
	const struct device_source source = {.fd = file, .bytes = 4096};
	struct device *devices[2] = {0};
	struct extent *extents[2] = {0};
	struct err err = {0};
	pthread_t threads[2];
	uint64_t n_filled;
	int ends[2][2];

	(void)state;
	scratch_fill(file, 0, 4096);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends[i]), 0);
		rotes[i].socket = ends[i][1];
		assert_int_equal(pthread_create(&threads[i], NULL, live_by_rote, &rotes[i]), 0);
		assert_int_equal(device_open("remote", "sim:0", &devices[i], &err), 0);
		assert_int_equal(remote_attach(devices[i], ends[i][0], &options, NULL, NULL, &err),
				 0);
		assert_int_equal(device_alloc(devices[i], &request, &extents[i], &err), 0);
	}
	assert_int_equal(device_seal(extents[0], &err), 0);
	assert_int_equal(device_copy(extents[1], extents[0], &err), -WIRE_DEVICE_LOST);
	assert_int_equal(pthread_join(threads[0], NULL), 0);
	assert_int_not_equal(rotes[0].lent, 0);
	assert_int_equal(device_fill(extents[1], 0, &source, &n_filled, &err), 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(device_release(extents[i], NULL), 0);
		(void)device_close(devices[i]);
		(void)close(ends[i][1]);
	}
	assert_int_equal(pthread_join(threads[1], NULL), 0);
	assert_int_not_equal(rotes[1].lent, 0);
	assert_int_not_equal(rotes[1].lent, rotes[0].lent);
	(void)close(file);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(a_worker_that_speaks_another_language_is_given_up),
		CASE(what_a_worker_is_lent_stays_as_long_as_it_was),
		CASE(a_buffer_that_a_lost_worker_has_is_not_used_again),
		CASE(a_worker_whose_pieces_change_is_given_up),
		CASE(a_worker_with_pieces_that_no_plan_can_be_made_with_is_refused),
		CASE(a_worker_that_says_its_link_is_slow_gains_no_years),
	};

	device_register(&remote_device_ops);
	return cmocka_run_group_tests_name("contract/lies", tests, NULL, NULL);
}
