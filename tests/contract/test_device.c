/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of daemon/device/device.h, over every backend in 'subjects'. What is only
 * true of one backend is below, under its name.
 */
#include "base/err.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/dies.h"
#ifdef DISTORCH_WITH_CUDA
#	include "tests/support/fakecuda.h"
#endif
#include "tests/support/scratch.h"
#include "tests/support/unit.h"
#include "tests/support/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/device/remote.h"
#include "daemon/device/sim.h"
#include "proto/gen/wire_code.h"

#define MIB  (1ULL << 20)
#define SIZE (5 * MIB + 1234) /* two pages of 2 MiB and a tail that ends in a page */

static const struct subject {
	const char *backend;
	const char *device;
	bool is_imported; /* what it exports is mapped by its own import only */
} subjects[] = {
	{"host", "cpu", false},   {"sim", "sim:0", false},         {"remote sim", "sim:0", false},
#ifdef DISTORCH_WITH_CUDA
	{"cuda", "cuda:0", true}, {"remote cuda", "cuda:0", true},
#endif
};

/* ---- a remote device, with a worker of its own for each that is opened ---- */

static const struct sim_config sims[] = {
	{.memory_bytes = 96 * MIB,
	 .granularity = 2 * MIB,
	 .bytes_per_s = 4096 * MIB,
	 .latency_ns = 10000,
	 .has_peers = true},
	{.memory_bytes = 96 * MIB,
	 .granularity = 2 * MIB,
	 .bytes_per_s = 4096 * MIB,
	 .latency_ns = 10000,
	 .has_peers = true},
};
static const struct remote_options remote_options = {.sims = sims,
						     .n_sims = 2,
						     .limit_ns = 20000000000ULL};
static struct {
	struct device *device;
	pid_t pid;
} workers[8];

static int open_with_worker(const char *name, struct device **ret, struct err *err)
{
	pid_t pid;
	int socket = worker_start(name, &pid);
	int code = remote_device_ops.open(name, ret, err);

	assert_int_equal(code, 0);
	code = remote_attach(*ret, socket, &remote_options, NULL, NULL, err);
	if (code < 0) {
		remote_device_ops.close(*ret);
		*ret = NULL;
		assert_int_equal(worker_wait(pid), 0);
		return code;
	}
	for (size_t i = 0;; i++) {
		assert_true(i < sizeof workers / sizeof workers[0]);
		if (workers[i].device == NULL) {
			workers[i].device = *ret;
			workers[i].pid = pid;
			return 0;
		}
	}
}

static void close_with_worker(struct device *device)
{
	remote_device_ops.close(device);
	for (size_t i = 0; i < sizeof workers / sizeof workers[0]; i++) {
		if (workers[i].device == device) {
			workers[i].device = NULL;
			assert_int_equal(worker_wait(workers[i].pid), 0);
		}
	}
}

#ifdef DISTORCH_WITH_CUDA
static uint32_t probe_by_worker(char (*names)[DEVICE_NAME_SIZE], uint32_t max_names)
{
	char all[DEVICE_MAX_PEERS + 1][DEVICE_NAME_SIZE];
	uint32_t n_names = 0;
	struct err err = {0};
	pid_t pid;
	int socket = worker_start("cuda", &pid);

	assert_int_equal(remote_probe(socket, all, DEVICE_MAX_PEERS + 1, &remote_options, &n_names,
				      &err),
			 0);
	assert_int_equal(worker_wait(pid), 0);
	memcpy(names, all, (n_names < max_names ? n_names : max_names) * sizeof all[0]);
	return n_names;
}
#endif

static void register_backends(void)
{
	struct device_ops remote = remote_device_ops;

	sim_configure(sims, 2);
	device_register(&sim_device_ops);
	remote.name = "remote sim";
	remote.open = open_with_worker;
	remote.close = close_with_worker;
	remote.probe = sim_device_ops.probe; /* they are the same ones */
	device_register(&remote);
#ifdef DISTORCH_WITH_CUDA
	device_register(&cuda_device_ops);
	remote.name = "remote cuda";
	remote.probe = probe_by_worker;
	device_register(&remote);
#endif
}

struct fixture {
	const struct subject *subject;
	struct device *device;
	int file; /* SIZE known bytes */
	struct baseline before;
};

static struct fixture fixture;
static int file_of_all; /* made once: a disk that is written to takes its time */

static struct extent *given_extent(uint64_t bytes)
{
	const struct device_alloc request = {.name = "test", .bytes = bytes, .hugepages = true};
	struct extent *extent = NULL;
	struct err err = {0};

	assert_int_equal(device_alloc(fixture.device, &request, &extent, &err), 0);
	assert_non_null(extent);
	assert_int_equal(extent->bytes, bytes);
	return extent;
}

static void fill(struct extent *extent)
{
	struct device_source source = {.fd = fixture.file, .bytes = extent->bytes};
	struct err err = {0};

	while (source.bytes > 0) {
		uint64_t n_bytes = 0;

		assert_int_equal(device_fill(extent, source.offset, &source, &n_bytes, &err), 0);
		assert_true(n_bytes > 0 && n_bytes <= source.bytes);
		source.offset += n_bytes;
		source.bytes -= n_bytes;
	}
}

static int setup(void **state)
{
	struct extent *used;
	struct err err = {0};

	fixture = (struct fixture){.subject = *state};
	fixture.file = file_of_all;
	if (device_open(fixture.subject->backend, fixture.subject->device, &fixture.device, &err) <
	    0) {
		fail_msg("%s", err.text);
	}
	/* What a device keeps once it was used is no leak. */
	used = given_extent(1);
	fill(used);
	assert_int_equal(device_release(used, &err), 0);
	fixture.before = baseline_take();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	sys_fault_clear();
	baseline_check(&fixture.before);
	assert_null(device_close(fixture.device));
	return 0;
}

static struct extent *given_sealed(void)
{
	struct extent *extent = given_extent(SIZE);
	struct err err = {0};

	fill(extent);
	assert_int_equal(device_seal(extent, &err), 0);
	return extent;
}

static void assert_known(const uint8_t *bytes, uint64_t begin, uint64_t size)
{
	for (uint64_t i = 0; i < size; i++) {
		if (bytes[i] != scratch_byte(begin + i)) {
			fail_msg("byte %llu is %u", (unsigned long long)(begin + i), bytes[i]);
		}
	}
}

static void assert_extent_known(const struct extent *extent)
{
	uint8_t *bytes = malloc(SIZE);
	struct err err = {0};

	assert_non_null(bytes);
	assert_int_equal(device_read(extent, 0, bytes, SIZE, &err), 0);
	assert_known(bytes, 0, SIZE);
	free(bytes);
}

static void release(struct extent *extent)
{
	struct err err = {0};

	assert_int_equal(device_release(extent, &err), 0);
}

/* ---- the contract ---- */

static void what_was_filled_is_read_back(void **state)
{
	struct extent *extent = given_extent(SIZE);
	uint8_t bytes[100];
	struct err err = {0};

	(void)state;
	fill(extent);
	assert_extent_known(extent);
	assert_int_equal(device_seal(extent, &err), 0);
	assert_extent_known(extent);
	assert_int_equal(device_read(extent, SIZE - 100, bytes, 100, &err), 0);
	assert_known(bytes, SIZE - 100, 100);
	release(extent);
}

static void memory_is_zero_before_it_is_filled(void **state)
{
	struct extent *extent = given_extent(3 * MIB);
	uint8_t bytes[4096] = {1};
	struct err err = {0};

	(void)state;
	device_prepare(extent, 0, 3 * MIB);
	assert_int_equal(device_read(extent, 2 * MIB - 2048, bytes, sizeof bytes, &err), 0);
	for (size_t i = 0; i < sizeof bytes; i++) {
		assert_int_equal(bytes[i], 0);
	}
	release(extent);
}

static void a_fill_says_how_much_came_and_where_the_file_ends(void **state)
{
	struct extent *extent = given_extent(SIZE);
	struct device_source source = {.fd = fixture.file, .offset = SIZE - 10, .bytes = 4096};
	struct err err = {0};
	uint64_t n_bytes = 77;

	(void)state;
	assert_int_equal(device_fill(extent, 0, &source, &n_bytes, &err), 0);
	assert_int_equal(n_bytes, 10);
	source.offset = SIZE;
	assert_int_equal(device_fill(extent, 0, &source, &n_bytes, &err), 0);
	assert_int_equal(n_bytes, 0);
	release(extent);
}

static void a_failed_fill_names_errno_and_offset(void **state)
{
	static const int errors[] = {EIO, EINTR, EINVAL};
	struct extent *extent = given_extent(SIZE);
	const struct device_source source = {.fd = fixture.file, .offset = 512, .bytes = 4096};

	(void)state;
	for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
		struct err err = {0};
		uint64_t n_bytes = 77;

		assert_true(
			sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = errors[i]}));
		assert_int_equal(device_fill(extent, 0, &source, &n_bytes, &err), -WIRE_IO);
		assert_int_equal(err.sys, errors[i]);
		assert_int_equal(err.offset, 512);
		assert_int_equal(n_bytes, 77);
	}
	release(extent);
}

static void ranges_outside_the_extent_are_refused(void **state)
{
	static const struct {
		uint64_t offset, bytes;
	} bad[] = {{SIZE, 1}, {SIZE - 1, 2}, {0, SIZE + 1}, {UINT64_MAX, 2}, {2, UINT64_MAX}};
	struct extent *extent = given_extent(SIZE);
	uint8_t byte[2];

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		const struct device_source source = {.fd = fixture.file, .bytes = bad[i].bytes};
		struct err err = {0};
		uint64_t n_bytes;

		assert_int_equal(device_fill(extent, bad[i].offset, &source, &n_bytes, &err),
				 -WIRE_BAD_ARGUMENT);
		assert_int_equal(device_read(extent, bad[i].offset, byte, bad[i].bytes, &err),
				 -WIRE_BAD_ARGUMENT);
		device_prepare(extent, bad[i].offset, bad[i].bytes);
	}
	release(extent);
}

static void sizes_that_cannot_be_are_refused(void **state)
{
	static const uint64_t sizes[] = {0, 1ULL << 62, UINT64_MAX - 4096, UINT64_MAX};

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		const struct device_alloc request = {.name = "test", .bytes = sizes[i]};
		struct extent *extent = NULL;
		struct err err = {0};

		assert_true(device_alloc(fixture.device, &request, &extent, &err) < 0);
		assert_null(extent);
		assert_int_not_equal(err.code, 0);
		assert_true(err.text[0] != '\0');
	}
}

static void a_charge_is_what_whole_granules_take(void **state)
{
	struct device_info info;
	struct err err = {0};

	(void)state;
	assert_int_equal(device_info(fixture.device, &info, &err), 0);
	assert_true(info.total_bytes > 64 * MIB && info.granularity > 0);
	assert_int_equal(device_charge(fixture.device, info.granularity), info.granularity);
	assert_int_equal(device_charge(fixture.device, 1), info.granularity);
	assert_int_equal(device_charge(fixture.device, info.granularity + 1), 2 * info.granularity);
	assert_int_equal(device_charge(fixture.device, UINT64_MAX), UINT64_MAX);
}

static void a_sealed_extent_cannot_be_filled(void **state)
{
	struct extent *extent = given_sealed();
	const struct device_source source = {.fd = fixture.file, .bytes = 1};
	struct err err = {0};
	uint64_t n_bytes = 0;

	(void)state;
	assert_int_equal(device_fill(extent, 0, &source, &n_bytes, &err), -WIRE_NOT_ALLOWED);
	assert_null(device_bytes(extent));
	device_prepare(extent, 0, SIZE);
	assert_int_equal(device_seal(extent, &err), 0); /* twice is once */
	assert_extent_known(extent);
	release(extent);
}

static void a_locked_extent_is_the_same_one(void **state)
{
	struct extent *extent = given_sealed();
	struct err err = {0};

	(void)state;
	assert_int_equal(device_lock(extent, &err), 0);
	assert_int_equal(device_lock(extent, &err), 0); /* twice is once */
	assert_extent_known(extent);
	release(extent);
}

static void nothing_is_exported_before_seal(void **state)
{
	struct extent *extent = given_extent(SIZE);
	struct err err = {0};
	int fd = -77;

	(void)state;
	assert_int_equal(device_export(extent, &fd, &err), -WIRE_NOT_ALLOWED);
	assert_int_equal(fd, -77);
	release(extent);
}

static bool is_known_when_mapped(int fd)
{
	const uint8_t *bytes = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	bool is_known = bytes != MAP_FAILED;

	for (uint64_t i = 0; is_known && i < SIZE; i++) {
		is_known = bytes[i] == scratch_byte(i);
	}
	return is_known;
}

/* In the process that look_by_import begins. */
static int is_known_when_imported(const char *backend, const char *name, int fd)
{
	uint8_t *bytes = malloc(SIZE);
	struct device *device = NULL;
	struct extent *extent = NULL;
	int code = device_open(backend, name, &device, NULL);

	if (code == 0) {
		code = device_import(device, fd, SIZE, &extent, NULL);
	}
	if (code == 0) {
		code = device_read(extent, 0, bytes, SIZE, NULL);
	}
	for (uint64_t i = 0; code == 0 && i < SIZE; i++) {
		code = bytes[i] == scratch_byte(i) ? 0 : 1;
	}
	(void)device_release(extent, NULL);
	(void)device_close(device);
	free(bytes);
	return code == 0 ? 0 : 1;
}

/* As a new program: a driver does not outlive a fork. */
static void look_by_import(int fd)
{
	char number[16];

	(void)snprintf(number, sizeof number, "%d", dup(fd)); /* it stays open */
	(void)execl("/proc/self/exe", "test_device", fixture.subject->backend,
		    fixture.subject->device, number, NULL);
	_exit(2);
}

/* Another process sees the same bytes, and they live on when the device has let go. */
static void an_export_reaches_another_process_and_outlives_the_extent(void **state)
{
	struct extent *extent = given_sealed();
	struct err err = {0};
	int fd = -1;
	int status = -1;
	pid_t child;

	(void)state;
	assert_int_equal(device_export(extent, &fd, &err), 0);
	assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	release(extent);
	child = fork();
	if (child == 0) {
		if (fixture.subject->is_imported) {
			look_by_import(fd);
		}
		_exit(is_known_when_mapped(fd) ? 0 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	(void)close(fd);
}

static void an_import_is_the_same_memory(void **state)
{
	struct extent *extent = given_sealed();
	struct extent *imported = NULL;
	struct device_pages pages;
	struct err err = {0};
	int fd = -1;

	(void)state;
	assert_int_equal(device_export(extent, &fd, &err), 0);
	release(extent);
	assert_int_equal(device_import(fixture.device, fd, SIZE, &imported, &err), 0);
	(void)close(fd);
	assert_extent_known(imported);
	device_pages(imported, &pages);
	assert_true(pages.page_bytes >= 4096);
	assert_int_equal(device_export(imported, &fd, &err), 0);
	(void)close(fd);
	release(imported);
}

static void exports_of_several_are_all_there_or_none(void **state)
{
	const struct extent *extents[] = {given_sealed(), given_sealed(), given_sealed(),
					  given_extent(SIZE)};
	struct err err = {0};
	int fds[4] = {-77, -77, -77, -77};

	(void)state;
	assert_int_equal(device_export_all(extents, 4, fds, &err), -WIRE_NOT_ALLOWED);
	assert_int_equal(device_export_all(extents, 3, fds, &err), 0);
	for (int i = 0; i < 3; i++) {
		struct extent *imported = NULL;

		assert_int_equal(fcntl(fds[i], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
		assert_int_equal(device_import(fixture.device, fds[i], SIZE, &imported, &err), 0);
		(void)close(fds[i]);
		assert_extent_known(imported);
		release(imported);
	}
	for (int i = 0; i < 4; i++) {
		release((struct extent *)(uintptr_t)extents[i]);
	}
}

static void an_import_of_another_size_is_refused(void **state)
{
	struct extent *extent = given_sealed();
	struct extent *imported = NULL;
	struct err err = {0};
	int fd = -1;

	(void)state;
	assert_int_equal(device_export(extent, &fd, &err), 0);
	assert_int_equal(device_import(fixture.device, fd, device_charge(fixture.device, SIZE) + 1,
				       &imported, &err),
			 -WIRE_BAD_FD);
	assert_int_equal(device_import(fixture.device, fixture.file, SIZE, &imported, &err),
			 -WIRE_BAD_FD);
	assert_null(imported);
	(void)close(fd);
	release(extent);
}

static void a_copy_has_the_same_bytes(void **state)
{
	struct extent *from = given_sealed();
	struct extent *to = given_extent(SIZE);
	struct extent *small = given_extent(SIZE - 1);
	struct err err = {0};

	(void)state;
	assert_int_equal(device_copy(to, from, &err), 0);
	assert_extent_known(to);
	assert_int_equal(device_copy(small, from, &err), -WIRE_BAD_ARGUMENT);
	release(small);
	release(to);
	release(from);
}

/* fault: M11 */
static void any_call_that_fails_leaves_nothing_behind(void **state)
{
	static const char *const calls[] = {"malloc",  "memfd_create", "ftruncate", "mmap",
					    "madvise", "fcntl",        "open",      "fstat"};
	static const int errors[] = {ENOMEM, EMFILE, EPERM};

	(void)state;
	for (size_t i = 0; i < 2 * sizeof calls / sizeof calls[0]; i++) {
		const char *call = calls[i / 2];

		for (uint64_t nth = 1; nth < 20; nth++) {
			const struct device_alloc request = {.name = "test",
							     .bytes = SIZE,
							     .hugepages = true};
			struct extent *extent = NULL;
			struct extent *imported = NULL;
			struct err err = {0};
			int code;
			int fd = -1;

			assert_true(
				sys_fault_set(call, (struct sys_fault){.nth = nth,
								       .error = errors[nth % 3],
								       .is_forever = i % 2 == 1}));
			code = device_alloc(fixture.device, &request, &extent, &err);
			if (code == 0) {
				device_prepare(extent, 0, SIZE);
				code = device_seal(extent, &err);
			}
			if (code == 0) {
				code = device_export(extent, &fd, &err);
			}
			if (code == 0) {
				code = device_import(fixture.device, fd, SIZE, &imported, &err);
			}
			assert_true(code == 0 || (code == -err.code && err.text[0] != '\0'));
			if (fd >= 0) {
				(void)close(fd);
			}
			release(imported);
			release(extent);
			baseline_wait_fds(fixture.before.n_fds);
			if (sys_fault_n_hits(call) == 0) {
				break; /* there was no nth call */
			}
			assert_true(nth < 19);
		}
		sys_fault_clear();
		baseline_check(&fixture.before); /* memory: a look at all of it takes its time */
	}
}

static void an_unknown_device_is_not_found(void **state)
{
	struct device *device = NULL;
	struct err err = {0};

	(void)state;
	assert_int_equal(device_open("abacus", "cpu", &device, &err), -WIRE_NOT_FOUND);
	assert_int_equal(device_open(fixture.subject->backend, "no such", &device, &err),
			 -WIRE_NOT_FOUND);
	assert_null(device);
}

static void a_probe_names_devices_that_open(void **state)
{
	const struct device_ops *ops = device_backend_find(fixture.subject->backend);
	char names[4][DEVICE_NAME_SIZE];
	struct device *device = NULL;
	struct err err = {0};
	uint32_t n_devices;

	(void)state;
	assert_non_null(ops);
	n_devices = ops->probe(names, 4);
	assert_true(n_devices >= 1);
	assert_int_equal(ops->probe(names, 0), n_devices);
	assert_int_equal(device_open(ops->name, names[0], &device, &err), 0);
	assert_string_equal(device->name, names[0]);
	(void)device_close(device);
}

static void register_without_seal(void *context)
{
	struct device_ops ops = *device_backend_find(fixture.subject->backend);

	(void)context;
	ops.seal = NULL;
	device_register(&ops);
}

static void register_another_version(void *context)
{
	struct device_ops ops = *device_backend_find(fixture.subject->backend);

	(void)context;
	ops.version++;
	device_register(&ops);
}

static void a_backend_that_breaks_the_contract_cannot_be_registered(void **state)
{
	(void)state;
	assert_dies(register_without_seal, NULL);
	assert_dies(register_another_version, NULL);
}

/* ---- the host ---- */

/* fault: D13 M05 */
static void nobody_can_change_what_the_host_exported(void **state)
{
	struct extent *extent = given_sealed();
	struct err err = {0};
	int fd = -1;
	int reopened;

	(void)state;
	assert_int_equal(device_export(extent, &fd, &err), 0);
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_int_equal(ftruncate(fd, 1), -1);
	assert_int_equal(ftruncate(fd, 2 * SIZE), -1);
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
	assert_ptr_equal(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);

	/* Root may open it for writing by its path; every write fails all the same. */
	reopened = scratch_reopen(fd, O_RDWR);
	if (reopened >= 0) {
		assert_int_equal(pwrite(reopened, "x", 1, 0), -1);
		assert_int_equal(ftruncate(reopened, 1), -1);
		assert_int_equal(fallocate(reopened, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
					   4096),
				 -1);
		assert_ptr_equal(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, reopened, 0),
				 MAP_FAILED);
		(void)close(reopened);
	}
	assert_extent_known(extent);
	(void)close(fd);
	release(extent);
}

static void a_borrowed_extent_is_the_file_itself(void **state)
{
	const struct device_source source = {.fd = fixture.file, .bytes = 1};
	struct extent *extent = NULL;
	struct device_pages pages;
	struct stat ours;
	struct stat theirs;
	struct err err = {0};
	uint64_t n_bytes;
	int fd = -1;

	(void)state;
	assert_int_equal(device_borrow(fixture.device, fixture.file, SIZE, &extent, &err), 0);
	assert_extent_known(extent);
	assert_int_equal(device_fill(extent, 0, &source, &n_bytes, &err), -WIRE_NOT_ALLOWED);
	assert_int_equal(device_export(extent, &fd, &err), 0);
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(lseek(fd, lseek(fixture.file, 0, SEEK_CUR) + 1, SEEK_SET) - 1,
			 lseek(fixture.file, 0, SEEK_CUR)); /* not its sender's description */
	assert_int_equal(fstat(fd, &ours), 0);
	assert_int_equal(fstat(fixture.file, &theirs), 0);
	assert_int_equal(ours.st_ino, theirs.st_ino);
	device_pages(extent, &pages);
	assert_int_equal(pages.huge_bytes, 0);
	(void)device_lock(extent, &err); /* a sanitizer takes mlock away, a limit may */
	(void)close(fd);
	release(extent);
	scratch_fill(fixture.file, 0, 1); /* and nothing was sealed */
}

/* fault: M06 */
static void writes_through_a_private_mapping_stay_private(void **state)
{
	struct extent *extent = given_sealed();
	struct err err = {0};
	int fd = -1;
	uint8_t *bytes;

	(void)state;
	assert_int_equal(device_export(extent, &fd, &err), 0);
	bytes = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(bytes, MAP_FAILED);
	memset(bytes, 0xaa, SIZE);
	assert_extent_known(extent);
	assert_int_equal(munmap(bytes, SIZE), 0);
	(void)close(fd);
	release(extent);
}

/* An extent of SIZE whose whole 2 MiB pages up to 'bytes' are such, as they are where the kernel has
 * any: it refuses one now and then, for a moment (EAGAIN), or for good (shmem_enabled=deny, an old
 * kernel, no memory in one piece). NULL: none can be had. */
static struct extent *extent_in_huge_pages(uint64_t bytes)
{
	const struct timespec moment = {.tv_nsec = 20000000};

	for (int i = 0; i < 50; i++) {
		struct extent *extent = given_extent(SIZE);
		struct device_pages pages;

		device_prepare(extent, 0, bytes);
		device_pages(extent, &pages);
		if (pages.huge_bytes == bytes / (2 * MIB) * (2 * MIB)) {
			return extent;
		}
		release(extent);
		(void)nanosleep(&moment, NULL);
	}
	return NULL;
}

static void prepared_memory_lies_in_huge_pages_and_says_so(void **state)
{
	struct extent *extent = extent_in_huge_pages(SIZE);
	struct device_pages pages;
	struct err err = {0};

	(void)state;
	if (extent == NULL) {
		skip();
	}
	fill(extent);
	assert_int_equal(device_seal(extent, &err), 0);
	device_pages(extent, &pages);
	assert_int_equal(pages.page_bytes, 2 * MIB);
	assert_int_equal(pages.huge_bytes, 4 * MIB);
	assert_string_equal(pages.notice, "");
	release(extent);
}

/* fault: M12 */
static void refused_huge_pages_become_small_ones_with_a_notice(void **state)
{
	static const int errors[] = {EINVAL, EAGAIN, ENOMEM};

	(void)state;
	for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
		/* Ever: 2 MiB pages are refused at once. */
		struct extent *extent = given_extent(SIZE);
		struct device_pages pages;
		struct err err = {0};

		assert_true(sys_fault_set("madvise", (struct sys_fault){.nth = 1,
									.error = errors[i],
									.is_forever = true}));
		device_prepare(extent, 0, SIZE);
		sys_fault_clear();
		/* What the readers' faults get is the kernel's choice: keep it from huge ones. */
		assert_int_equal(madvise((void *)(uintptr_t)device_bytes(extent), 4 * MIB,
					 MADV_NOHUGEPAGE),
				 0);
		fill(extent);
		assert_int_equal(device_seal(extent, &err), 0);
		device_pages(extent, &pages);
		assert_int_equal(pages.page_bytes, 4096);
		assert_int_equal(pages.huge_bytes, 0);
		assert_non_null(strstr(pages.notice, strerror(errors[i])));
		assert_extent_known(extent);
		release(extent);
	}
}

/* fault: M12 */
static void huge_pages_that_run_out_half_way_leave_the_first_ones(void **state)
{
	struct extent *extent = extent_in_huge_pages(2 * MIB);
	struct device_pages pages;
	struct err err = {0};

	(void)state;
	if (extent == NULL) {
		skip();
	}
	assert_true(
		sys_fault_set("madvise",
			      (struct sys_fault){.nth = 1, .error = ENOMEM, .is_forever = true}));
	device_prepare(extent, 2 * MIB, SIZE - 2 * MIB);
	sys_fault_clear();
	assert_int_equal(madvise((uint8_t *)(uintptr_t)device_bytes(extent) + 2 * MIB, 2 * MIB,
				 MADV_NOHUGEPAGE),
			 0);
	fill(extent);
	assert_int_equal(device_seal(extent, &err), 0);
	device_pages(extent, &pages);
	assert_int_equal(pages.huge_bytes, 2 * MIB);
	assert_non_null(strstr(pages.notice, "2 of 5 MiB"));
	assert_extent_known(extent);
	release(extent);
}

static void small_pages_that_were_asked_for_need_no_notice(void **state)
{
	const struct device_alloc request = {.name = "test", .bytes = SIZE};
	struct extent *extent = NULL;
	struct device_pages pages;
	struct err err = {0};

	(void)state;
	assert_int_equal(device_alloc(fixture.device, &request, &extent, &err), 0);
	device_prepare(extent, 0, SIZE);
	fill(extent);
	assert_int_equal(device_seal(extent, &err), 0);
	device_pages(extent, &pages);
	assert_string_equal(pages.notice, "");
	assert_int_equal(pages.page_bytes, 4096);
	release(extent);
}

static void an_image_is_mode_0444_and_kept_from_core_dumps(void **state)
{
	struct extent *extent = given_sealed();
	struct stat status;
	struct err err = {0};
	int fd = -1;

	(void)state;
	assert_int_equal(device_export(extent, &fd, &err), 0);
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0444);
	assert_int_equal(status.st_size, SIZE);
	(void)close(fd);
	release(extent);
}

/* fault: M07 */
static void a_byte_that_goes_bad_after_seal_is_read_as_such(void **state)
{
	struct extent *extent = given_sealed();
	uint8_t byte = 0;
	struct err err = {0};

	(void)state;
	assert_int_equal(host_corrupt(extent, SIZE, &err), -WIRE_BAD_ARGUMENT);
	assert_int_equal(host_corrupt(extent, SIZE - 1, &err), 0);
	assert_int_equal(device_read(extent, SIZE - 1, &byte, 1, &err), 0);
	assert_int_equal(byte, scratch_byte(SIZE - 1) ^ 0xff);
	release(extent);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

static int run_host_alone(void)
{
	struct CMUnitTest host[] = {
		CASE(nobody_can_change_what_the_host_exported),
		CASE(a_borrowed_extent_is_the_file_itself),
		CASE(writes_through_a_private_mapping_stay_private),
		CASE(prepared_memory_lies_in_huge_pages_and_says_so),
		CASE(refused_huge_pages_become_small_ones_with_a_notice),
		CASE(huge_pages_that_run_out_half_way_leave_the_first_ones),
		CASE(small_pages_that_were_asked_for_need_no_notice),
		CASE(an_image_is_mode_0444_and_kept_from_core_dumps),
		CASE(a_byte_that_goes_bad_after_seal_is_read_as_such),
	};

	for (size_t j = 0; j < sizeof host / sizeof host[0]; j++) {
		host[j].initial_state = (void *)(uintptr_t)&subjects[0];
	}
	return cmocka_run_group_tests_name("host alone", host, NULL, NULL);
}

int main(int argc, char **argv)
{
	const char *only = getenv("DISTORCH_TEST_SUBJECT"); /* one backend, by scripts/gpu-check */
	int n_failed = 0;

	register_backends();
#ifdef DISTORCH_WITH_CUDA
	if (argc != 4 && fakecuda_is_wanted()) {
		fakecuda_prepare("256M,128M");
		fakecuda_load();
	}
#endif
	if (argc == 4) {
		/* Without a look for leaks: LeakSanitizer can fail, and the parent has the case. */
		_exit(is_known_when_imported(argv[1], argv[2], atoi(argv[3])));
	}
	file_of_all = scratch_open();
	scratch_fill(file_of_all, 0, SIZE);
	for (size_t i = 0; i < sizeof subjects / sizeof subjects[0]; i++) {
		if (only != NULL && strcmp(only, subjects[i].backend) != 0) {
			continue;
		}
		struct CMUnitTest contract[] = {
			CASE(what_was_filled_is_read_back),
			CASE(memory_is_zero_before_it_is_filled),
			CASE(a_fill_says_how_much_came_and_where_the_file_ends),
			CASE(a_failed_fill_names_errno_and_offset),
			CASE(ranges_outside_the_extent_are_refused),
			CASE(sizes_that_cannot_be_are_refused),
			CASE(a_charge_is_what_whole_granules_take),
			CASE(a_sealed_extent_cannot_be_filled),
			CASE(a_locked_extent_is_the_same_one),
			CASE(nothing_is_exported_before_seal),
			CASE(an_export_reaches_another_process_and_outlives_the_extent),
			CASE(an_import_is_the_same_memory),
			CASE(exports_of_several_are_all_there_or_none),
			CASE(an_import_of_another_size_is_refused),
			CASE(a_copy_has_the_same_bytes),
			CASE(any_call_that_fails_leaves_nothing_behind),
			CASE(an_unknown_device_is_not_found),
			CASE(a_probe_names_devices_that_open),
			CASE(a_backend_that_breaks_the_contract_cannot_be_registered),
		};

		for (size_t j = 0; j < sizeof contract / sizeof contract[0]; j++) {
			contract[j].initial_state = (void *)(uintptr_t)&subjects[i];
		}
		n_failed += cmocka_run_group_tests_name(subjects[i].backend, contract, NULL, NULL);
	}
	if (only == NULL) {
		n_failed += run_host_alone();
	}
	(void)close(file_of_all);
#ifdef DISTORCH_WITH_CUDA
	fakecuda_end();
#endif
	return n_failed;
}
