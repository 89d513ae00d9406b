/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is true of devices in worker processes, beside the contract: copies between them, and
 * workers that end, hang or are begun anew.
 */
#include "base/err.h"
#include "base/os/clock.h"
#include "base/os/fdpass.h"
#include "tests/support/baseline.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"
#include "tests/support/worker.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "daemon/device/device.h"
#include "daemon/device/remote.h"
#include "daemon/device/sim.h"
#include "proto/gen/wire_gen.h"
#include "proto/wire.h"

#define MIB       (1ULL << 20)
#define GRANULE   (2 * MIB)
#define N_DEVICES 4
#define LIMIT_NS  60000000000ULL
#define SHORT_NS  2000000000ULL

static const struct sim_config sims[N_DEVICES] = {
	{.memory_bytes = 32 * MIB, .granularity = GRANULE, .has_peers = true},
	{.memory_bytes = 256 * MIB,
	 .granularity = GRANULE,
	 .bytes_per_s = 256 * MIB,
	 .has_peers = true},
	{.memory_bytes = 256 * MIB,
	 .granularity = GRANULE,
	 .bytes_per_s = 512 * MIB,
	 .has_peers = true},
	{.memory_bytes = 256 * MIB, .granularity = GRANULE, .bytes_per_s = 512 * MIB},
};

static struct fixture {
	struct device *devices[N_DEVICES]; /* by a worker each; NULL: not begun */
	pid_t pids[N_DEVICES];
	int file; /* known bytes, 128 MiB with holes behind 4 MiB */
	struct baseline before;
} fixture;

static struct remote_options options = {.sims = sims, .n_sims = N_DEVICES, .limit_ns = LIMIT_NS};

static int setup(void **state)
{
	(void)state;
	fixture = (struct fixture){.file = scratch_open()};
	scratch_fill(fixture.file, 0, 4 * MIB);
	assert_int_equal(ftruncate(fixture.file, 128 * MIB), 0);
	options.limit_ns = LIMIT_NS;
	fixture.before = baseline_take();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_DEVICES; i++) {
		fixture.devices[i] = device_close(fixture.devices[i]);
		if (fixture.pids[i] > 0) {
			(void)worker_wait(fixture.pids[i]);
		}
	}
	baseline_check(&fixture.before);
	(void)close(fixture.file);
	return 0;
}

static const char *name_of(size_t number)
{
	static const char *const names[N_DEVICES] = {"sim:0", "sim:1", "sim:2", "sim:3"};

	return names[number];
}

static struct device *given_device(size_t number)
{
	struct err err = {0};
	int socket = worker_start(name_of(number), &fixture.pids[number]);

	if (fixture.devices[number] == NULL) {
		assert_int_equal(device_open("remote", name_of(number), &fixture.devices[number],
					     &err),
				 0);
	}
	if (remote_attach(fixture.devices[number], socket, &options, NULL, NULL, &err) < 0) {
		fail_msg("%s", err.text);
	}
	return fixture.devices[number];
}

static void end_worker(size_t number)
{
	assert_int_equal(kill(fixture.pids[number], SIGKILL), 0);
	assert_int_equal(worker_wait(fixture.pids[number]), -SIGKILL);
	fixture.pids[number] = 0;
}

static struct extent *try_extent(struct device *device, uint64_t bytes, int want)
{
	const struct device_alloc request = {.name = "test", .bytes = bytes};
	struct extent *extent = NULL;
	struct err err = {0};

	if (device_alloc(device, &request, &extent, &err) != want) {
		fail_msg("%s", err.text);
	}
	assert_true(want == 0 ? extent != NULL : extent == NULL && err.text[0] != '\0');
	return extent;
}

static struct extent *given_extent(struct device *device, uint64_t bytes)
{
	return try_extent(device, bytes, 0);
}

static int fill(struct extent *extent, struct err *err)
{
	struct device_source source = {.fd = fixture.file, .bytes = extent->bytes};

	while (source.bytes > 0) {
		uint64_t n_bytes = 0;
		int code = device_fill(extent, source.offset, &source, &n_bytes, err);

		if (code < 0) {
			return code;
		}
		assert_true(n_bytes > 0);
		source.offset += n_bytes;
		source.bytes -= n_bytes;
	}
	return 0;
}

static struct extent *given_sealed(struct device *device, uint64_t bytes)
{
	struct extent *extent = given_extent(device, bytes);
	struct err err = {0};

	assert_int_equal(fill(extent, &err), 0);
	assert_int_equal(device_seal(extent, &err), 0);
	return extent;
}

static void release(struct extent *extent)
{
	struct err err = {0};

	assert_int_equal(device_release(extent, &err), 0);
}

static void assert_known(const struct extent *extent)
{
	uint8_t bytes[4096];
	struct err err = {0};

	for (uint64_t at = 0; at < extent->bytes && at < 4 * MIB; at += MIB - 4096) {
		const uint64_t left = extent->bytes - at;
		const uint64_t part = left < sizeof bytes ? left : sizeof bytes;

		assert_int_equal(device_read(extent, at, bytes, part, &err), 0);
		for (uint64_t i = 0; i < part && at + i < 4 * MIB; i++) {
			assert_int_equal(bytes[i], scratch_byte(at + i));
		}
	}
}

static double seconds_since(uint64_t start_ns)
{
	return (double)(clock_mono_ns() - start_ns) / 1e9;
}

/* ---- copies ---- */

static void a_copy_goes_at_the_slower_link(void **state)
{
	static const struct {
		size_t from, to;
	} pairs[] = {{1, 2}, {2, 1}, {1, 3}}; /* the last are no peers: through the host */

	(void)state;
	for (size_t i = 1; i < N_DEVICES; i++) {
		(void)given_device(i);
	}
	for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
		struct extent *from = given_sealed(fixture.devices[pairs[i].from], 64 * MIB + 5);
		struct extent *to = given_extent(fixture.devices[pairs[i].to], 64 * MIB + 5);
		struct err err = {0};
		uint64_t start_ns = clock_mono_ns();

		assert_int_equal(device_copy(to, from, &err), 0);
		assert_int_equal(device_seal(to, &err), 0);
		assert_true(seconds_since(start_ns) >= 0.25); /* 64 MiB at 256 MiB/s */
		assert_known(to);
		release(to);
		release(from);
	}
}

static void between_device_and_host_there_is_a_way_both_ways(void **state)
{
	struct extent *on_device = given_sealed(given_device(0), 3 * MIB + 7);
	struct extent *on_host;
	struct extent *back;
	struct device *host = NULL;
	struct err err = {0};

	(void)state;
	assert_int_equal(device_open("host", "cpu", &host, &err), 0);
	on_host = given_extent(host, 3 * MIB + 7);
	assert_int_equal(device_copy(on_host, on_device, &err), 0);
	assert_int_equal(device_seal(on_host, &err), 0);
	back = given_extent(fixture.devices[0], 3 * MIB + 7);
	assert_int_equal(device_copy(back, on_host, &err), 0);
	assert_int_equal(device_seal(back, &err), 0);
	assert_known(on_host);
	assert_known(back);
	release(back);
	release(on_host);
	release(on_device);
	(void)device_close(host);
}

/* ---- workers that end ---- */

static void a_device_without_a_worker_is_lost(void **state)
{
	const struct device_alloc request = {.name = "test", .bytes = 1};
	struct device *device = NULL;
	struct extent *extent = NULL;
	struct device_info info;
	struct err err = {0};

	(void)state;
	assert_int_equal(device_open("remote", "sim:0", &device, &err), 0);
	assert_int_equal(device_info(device, &info, &err), -WIRE_DEVICE_LOST);
	assert_int_equal(device_alloc(device, &request, &extent, &err), -WIRE_DEVICE_LOST);
	assert_int_equal(device_charge(device, 1), UINT64_MAX);
	(void)remote_detach(device, "again", NULL, 0);
	(void)device_close(device);
}

static void all_that_a_killed_worker_had_is_lost_and_no_more(void **state)
{
	struct device *device = given_device(0);
	struct extent *sealed = given_sealed(device, GRANULE);
	struct extent *open_one = given_extent(device, GRANULE);
	struct extent *other = given_sealed(given_device(2), GRANULE);
	const struct device_source source = {.fd = fixture.file, .bytes = 1};
	struct err err = {0};
	uint64_t n_bytes;
	uint8_t byte;
	int exported = -1;
	int fd = -1;

	(void)state;
	assert_int_equal(device_export(sealed, &exported, &err), 0);
	end_worker(0);
	assert_int_equal(device_fill(open_one, 0, &source, &n_bytes, &err), -WIRE_DEVICE_LOST);
	assert_string_equal(err.text, "sim:0 is lost: its worker has ended");
	assert_int_equal(device_read(sealed, 0, &byte, 1, &err), -WIRE_DEVICE_LOST);
	assert_int_equal(device_export(sealed, &fd, &err), -WIRE_DEVICE_LOST);
	assert_int_equal(fd, -1);
	(void)try_extent(device, 1, -WIRE_DEVICE_LOST);
	assert_int_equal(pread(exported, &byte, 1, 0), 1); /* who has it keeps it */
	assert_int_equal(byte, scratch_byte(0));
	(void)close(exported);
	assert_known(other);
	release(sealed);
	release(open_one);
	release(other);
}

static void a_new_worker_begins_with_nothing_of_the_old_one(void **state)
{
	struct device *device = given_device(0);
	struct extent *old = given_sealed(device, 32 * MIB);
	struct extent *new_one;
	uint8_t byte;
	struct err err = {0};

	(void)state;
	end_worker(0);
	(void)given_device(0);
	new_one = given_sealed(device, 32 * MIB);
	assert_int_equal(device_read(old, 0, &byte, 1, &err), -WIRE_DEVICE_LOST);
	assert_known(new_one);
	release(old); /* and not the new one's, though it has the same number */
	assert_known(new_one);
	release(new_one);
}

struct filler {
	struct extent *extent;
	int code;
	struct err err;
	pthread_t thread;
};

static void *fill_and_seal(void *argument)
{
	struct filler *filler = argument;

	filler->code = fill(filler->extent, &filler->err);
	if (filler->code == 0) {
		filler->code = device_seal(filler->extent, &filler->err);
	}
	return NULL;
}

static void start_fillers(struct filler *fillers, size_t n_fillers, struct device *device,
			  uint64_t bytes)
{
	for (size_t i = 0; i < n_fillers; i++) {
		fillers[i] = (struct filler){.extent = given_extent(device, bytes)};
		assert_int_equal(pthread_create(&fillers[i].thread, NULL, fill_and_seal,
						&fillers[i]),
				 0);
	}
}

static void many_threads_use_one_worker_at_once(void **state)
{
	struct filler fillers[12];
	struct device *device = given_device(2);

	(void)state;
	for (int round = 0; round < 3; round++) {
		start_fillers(fillers, 12, device, 3 * MIB + 11);
		for (size_t i = 0; i < 12; i++) {
			assert_int_equal(pthread_join(fillers[i].thread, NULL), 0);
			assert_int_equal(fillers[i].code, 0);
			assert_known(fillers[i].extent);
			release(fillers[i].extent);
		}
	}
}

static void threads_that_wait_hear_at_once_that_a_worker_was_killed(void **state)
{
	struct filler fillers[4];
	struct device *device = given_device(1);
	uint64_t start_ns;

	(void)state;
	start_fillers(fillers, 4, device, 64 * MIB); /* a second at 256 MiB/s */
	scratch_sleep_ms(100);
	end_worker(1);
	start_ns = clock_mono_ns();
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(fillers[i].thread, NULL), 0);
		assert_int_equal(fillers[i].code, -WIRE_DEVICE_LOST);
		release(fillers[i].extent);
	}
	assert_true(seconds_since(start_ns) < 5);
}

static void a_device_that_says_it_is_lost_has_no_worker_any_more(void **state)
{
	struct device *device = given_device(0);
	struct extent *extent = given_extent(device, GRANULE);
	struct err err = {0};

	(void)state;
	assert_int_equal(remote_test(device, "seal:1:device-lost", &err), 0);
	assert_int_equal(device_seal(extent, &err), -WIRE_DEVICE_LOST);
	assert_int_equal(worker_wait(fixture.pids[0]), 1);
	fixture.pids[0] = 0;
	(void)try_extent(device, 1, -WIRE_DEVICE_LOST);
	release(extent);
}

static void another_failure_is_told_as_it_happened_and_leaves_nothing(void **state)
{
	static const char *const calls[] = {"alloc", "fill", "seal", "export", "import", "copy"};
	struct device *device = given_device(0);

	(void)state;
	for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
		const struct device_alloc request = {.name = "test", .bytes = 16 * MIB};
		struct extent *from = NULL;
		struct extent *to = NULL;
		struct err err = {0};
		char what[64];
		int fd = -1;
		int code;

		(void)snprintf(what, sizeof what, "%s:1:io", calls[i]);
		assert_int_equal(remote_test(device, what, &err), 0);
		code = device_alloc(device, &request, &from, &err);
		code = code < 0 ? code : fill(from, &err);
		code = code < 0 ? code : device_seal(from, &err);
		code = code < 0 ? code : device_export(from, &fd, &err);
		if (code == 0) {
			struct extent *imported = NULL;

			code = device_import(device, fd, 16 * MIB, &imported, &err);
			release(imported);
		}
		code = code < 0 ? code : device_alloc(device, &request, &to, &err);
		code = code < 0 ? code : device_copy(to, from, &err);
		assert_int_equal(code, -WIRE_IO);
		assert_string_equal(err.text, "a fault was asked for");
		if (fd >= 0) {
			(void)close(fd);
		}
		release(from);
		release(to);
		release(given_extent(device, 32 * MIB));
	}
}

/* ---- workers that hang or lie ---- */

static void a_worker_that_does_not_answer_is_given_up_in_time(void **state)
{
	struct device *device = given_device(0);
	struct device_info info;
	struct err err = {0};
	uint64_t start_ns;
	int status = 0;

	(void)state;
	end_worker(0);
	options.limit_ns = SHORT_NS;
	(void)given_device(0);
	assert_int_equal(kill(fixture.pids[0], SIGSTOP), 0);
	assert_int_equal(waitpid(fixture.pids[0], &status, WUNTRACED), fixture.pids[0]);
	assert_true(WIFSTOPPED(status));
	start_ns = clock_mono_ns();
	assert_int_equal(device_info(device, &info, &err), -WIRE_DEVICE_LOST);
	assert_string_equal(err.text, "sim:0 is lost: its worker did not answer worker.info "
				      "within 2000 ms");
	assert_true(seconds_since(start_ns) >= 2 && seconds_since(start_ns) < 10);
	assert_int_equal(device_info(device, &info, &err), -WIRE_DEVICE_LOST); /* at once */
	end_worker(0);
}

static void a_worker_that_was_given_up_ends_when_it_can(void **state)
{
	struct device *device;
	struct extent *extent;
	struct err err = {0};

	(void)state;
	options.limit_ns = SHORT_NS;
	device = given_device(0);
	extent = given_extent(device, 1);
	assert_int_equal(remote_test(device, "export:1:hang", &err), 0);
	assert_int_equal(device_seal(extent, &err), 0);
	{
		int fd = -1;

		assert_int_equal(device_export(extent, &fd, &err), -WIRE_DEVICE_LOST);
	}
	assert_int_equal(worker_wait(fixture.pids[0]), 0);
	fixture.pids[0] = 0;
	release(extent);
}

static void a_worker_of_another_version_refuses(void **state)
{
	const struct wire_worker_open_request request = {.version = wire_str("9.9.9")};
	uint8_t bytes[4096];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};
	struct wire_packet packet;
	struct wire_fault fault;
	struct wire_error error;
	char text[256];
	ssize_t size;
	int socket = worker_start("sim:0", &fixture.pids[0]);

	(void)state;
	assert_true(wire_encode_request(&buffer, 5, WIRE_METHOD_WORKER_OPEN, &request, 0));
	assert_int_equal(send(socket, bytes, buffer.size, 0), (ssize_t)buffer.size);
	size = recv(socket, bytes, sizeof bytes, 0);
	assert_true(size > 0);
	assert_int_equal(wire_decode_packet(bytes, (size_t)size, &wire_packet_limits, &packet,
					    &fault),
			 0);
	assert_int_equal(packet.id, 5);
	assert_non_null(packet.error);
	assert_int_equal(wire_decode_body(&wire_type_error, packet.error, packet.error_size, false,
					  &error, &fault),
			 0);
	assert_true(wire_str_is(error.code, "version"));
	assert_non_null(strstr(wire_str_copy(error.message, text, sizeof text), "9.9.9"));
	(void)close(socket);
	assert_int_equal(worker_wait(fixture.pids[0]), 0);
	fixture.pids[0] = 0;
}

static void a_worker_ends_at_what_is_no_request_of_ours(void **state)
{
	(void)state;
	for (int kind = 0; kind < 3; kind++) {
		uint8_t bytes[512] = {0xc1};
		struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};
		int socket = worker_start("sim:0", &fixture.pids[0]);

		if (kind == 1) {
			assert_true(wire_encode_request(&buffer, 1, WIRE_METHOD_PING, NULL, 0));
		} else if (kind == 2) { /* without its descriptor */
			const struct wire_worker_fill_request request = {.bytes = 1};

			assert_true(wire_encode_request(&buffer, 1, WIRE_METHOD_WORKER_FILL,
							&request, 0));
		} else {
			buffer.size = 1;
		}
		assert_int_equal(send(socket, bytes, buffer.size, 0), (ssize_t)buffer.size);
		assert_int_equal(worker_wait(fixture.pids[0]), 1);
		fixture.pids[0] = 0;
		(void)close(socket);
	}
}

/* ---- what a worker has ---- */

static void assert_status(pid_t pid, const char *line)
{
	char path[64];
	char text[256];
	bool is_there = false;
	FILE *file;

	(void)snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	file = fopen(path, "re");
	assert_non_null(file);
	while (fgets(text, sizeof text, file) != NULL) {
		text[strcspn(text, "\n")] = '\0';
		is_there = is_there || strcmp(text, line) == 0;
	}
	(void)fclose(file);
	if (!is_there) {
		fail_msg("%s does not say \"%s\"", path, line);
	}
}

static uint32_t count_fds(pid_t pid)
{
	char path[64];

	(void)snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
	return scratch_count_entries(path) - 2;
}

/* Those of a request are closed a moment after its answer. */
static void wait_for_fds(pid_t pid, uint32_t n_fds)
{
	for (int i = 0; i < 1000 && count_fds(pid) != n_fds; i++) {
		scratch_sleep_ms(10);
	}
	assert_int_equal(count_fds(pid), n_fds);
}

static void a_worker_has_what_it_needs_and_no_more(void **state)
{
	struct device *device = given_device(0);
	const pid_t pid = fixture.pids[0];
	struct extent *extents[8];

	(void)state;
	assert_status(pid, "Name:\tworker sim:0");
	assert_status(pid, "NoNewPrivs:\t1");
	assert_status(pid, "CapEff:\t0000000000000000");
	assert_status(pid, "CapPrm:\t0000000000000000");
	assert_status(pid, "Seccomp:\t2");
	wait_for_fds(pid, 4); /* the standard streams and the socket */
	for (size_t i = 0; i < 8; i++) {
		extents[i] = given_sealed(device, GRANULE);
	}
	wait_for_fds(pid, 12);
	for (size_t i = 0; i < 8; i++) {
		release(extents[i]);
	}
	wait_for_fds(pid, 4);
}

static void a_worker_without_descriptors_imports_no_more_and_stays(void **state)
{
	const struct rlimit few = {.rlim_cur = 40, .rlim_max = 40};
	struct device *device = given_device(0);
	struct extent *extent = given_sealed(device, GRANULE);
	struct extent *imported[40] = {NULL};
	struct err err = {0};
	size_t n_imported = 0;
	int code = 0;
	int fd = -1;

	(void)state;
	assert_int_equal(device_export(extent, &fd, &err), 0);
	assert_int_equal(prlimit(fixture.pids[0], RLIMIT_NOFILE, &few, NULL), 0);
	while (code == 0 && n_imported < 40) {
		code = device_import(device, fd, GRANULE, &imported[n_imported], &err);
		n_imported += code == 0 ? 1 : 0;
	}
	assert_int_equal(code, -WIRE_TOO_MANY);
	assert_non_null(strstr(err.text, "as many descriptors as it may (40)"));
	assert_known(extent);
	for (size_t i = 0; i < n_imported; i++) {
		release(imported[i]);
	}
	release(extent);
	(void)close(fd);
}

static void without_a_socket_it_says_who_begins_it(void **state)
{
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);

		(void)dup2(null, STDERR_FILENO);
		(void)close(3);
		(void)execl(WORKER_PROGRAM, "distorchd-worker", "sim:0", (char *)NULL);
		_exit(127);
	}
	assert_int_equal(worker_wait(pid), 2);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(a_copy_goes_at_the_slower_link),
		CASE(between_device_and_host_there_is_a_way_both_ways),
		CASE(a_device_without_a_worker_is_lost),
		CASE(all_that_a_killed_worker_had_is_lost_and_no_more),
		CASE(a_new_worker_begins_with_nothing_of_the_old_one),
		CASE(many_threads_use_one_worker_at_once),
		CASE(threads_that_wait_hear_at_once_that_a_worker_was_killed),
		CASE(a_device_that_says_it_is_lost_has_no_worker_any_more),
		CASE(another_failure_is_told_as_it_happened_and_leaves_nothing),
		CASE(a_worker_that_does_not_answer_is_given_up_in_time),
		CASE(a_worker_that_was_given_up_ends_when_it_can),
		CASE(a_worker_of_another_version_refuses),
		CASE(a_worker_ends_at_what_is_no_request_of_ours),
		CASE(a_worker_has_what_it_needs_and_no_more),
		CASE(a_worker_without_descriptors_imports_no_more_and_stays),
		CASE(without_a_socket_it_says_who_begins_it),
	};

	device_register(&remote_device_ops);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
