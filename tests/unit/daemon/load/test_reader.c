/* SPDX-License-Identifier: Apache-2.0 */
#include "base/err.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/load/file.h"
#include "daemon/load/hash.h"
#include "daemon/load/reader.h"
#include "daemon/load/thread.h"
#include "proto/gen/wire_code.h"

#define MIB      (1ULL << 20)
#define MAX_SUMS 4

struct fixture {
	struct baseline before;
	struct device *device;
	struct thread_group group;
	struct file *file;
	struct extent *extent;
	struct read_progress progress;
	uint64_t sums[MAX_SUMS];
	struct reader reader;
};

static struct fixture fixture;

static int setup(void **state)
{
	struct err err = {0};

	(void)state;
	memset(&fixture, 0, sizeof fixture);
	fixture.before = baseline_take();
	assert_int_equal(device_open("host", "cpu", &fixture.device, &err), 0);
	thread_group_init(&fixture.group);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	sys_fault_clear();
	assert_true(thread_group_wait(&fixture.group, 5000000000U));
	thread_group_fini(&fixture.group);
	(void)device_release(fixture.extent, NULL);
	(void)file_unref(fixture.file);
	(void)device_close(fixture.device);
	baseline_check(&fixture.before);
	return 0;
}

/* A reader of a file of 'bytes' known bytes into a new extent, by four threads. */
static void given_file(uint64_t bytes)
{
	const struct device_alloc request = {.name = "test", .bytes = bytes, .hugepages = true};
	int fd = scratch_open();
	struct err err = {0};

	scratch_fill(fd, 0, bytes);
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(file_new(fd, scratch_reopen(fd, O_RDONLY | O_DIRECT), &fixture.file, &err),
			 0);
	assert_int_equal(device_alloc(fixture.device, &request, &fixture.extent, &err), 0);
	fixture.reader = (struct reader){
		.file = fixture.file,
		.bytes = bytes,
		.extent = fixture.extent,
		.sums = fixture.sums,
		.n_threads = 4,
		.direct_io = true,
		.group = &fixture.group,
		.progress = &fixture.progress,
	};
}

static void forget_cached_pages(void)
{
	(void)posix_fadvise(fixture.file->fd, 0, 0, POSIX_FADV_DONTNEED);
}

static uint64_t count_cached_pages(void)
{
	const size_t size = fixture.reader.bytes;
	const size_t n_pages = (size + 4095) / 4096;
	void *memory = mmap(NULL, size, PROT_READ, MAP_SHARED, fixture.file->fd, 0);
	unsigned char *pages = malloc(n_pages);
	uint64_t n_cached = 0;

	assert_ptr_not_equal(memory, MAP_FAILED);
	assert_non_null(pages);
	assert_int_equal(mincore(memory, size, pages), 0);
	for (size_t i = 0; i < n_pages; i++) {
		n_cached += pages[i] & 1U;
	}
	free(pages);
	assert_int_equal(munmap(memory, size), 0);
	return n_cached;
}

static void assert_all_is_there(void)
{
	const uint8_t *bytes = device_bytes(fixture.extent);

	for (uint64_t i = 0; i < fixture.reader.bytes; i++) {
		if (bytes[i] != scratch_byte(i)) {
			fail_msg("byte %llu is %u", (unsigned long long)i, bytes[i]);
		}
	}
	for (uint32_t i = 0; i < hash_count_sums(fixture.reader.bytes); i++) {
		const uint64_t begin = i * HASH_RANGE_BYTES;
		const uint64_t left = fixture.reader.bytes - begin;

		assert_int_equal(fixture.sums[i],
				 hash_bytes(bytes + begin,
					    left < HASH_RANGE_BYTES ? left : HASH_RANGE_BYTES));
	}
	assert_int_equal(fixture.progress.bytes, fixture.reader.bytes);
	assert_int_equal(read_progress_offset(&fixture.progress), 0);
}

static int run(struct err *err)
{
	*err = (struct err){0};
	memset(&fixture.progress, 0, sizeof fixture.progress);
	memset(fixture.sums, 0, sizeof fixture.sums);
	return reader_run(&fixture.reader, err);
}

static void assert_reads_all(void)
{
	struct err err;

	assert_int_equal(run(&err), 0);
	assert_all_is_there();
}

static void files_of_all_sizes_arrive_whole_and_hashed(void **state)
{
	static const uint64_t sizes[] = {1,        4095,         4096,
					 4097,     2 * MIB - 1,  8 * MIB + 1,
					 64 * MIB, 64 * MIB + 1, 129 * MIB + 7};

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		given_file(sizes[i]);
		forget_cached_pages();
		assert_reads_all();
		fixture.reader.direct_io = false;
		forget_cached_pages();
		assert_reads_all();
		assert_reads_all(); /* and once more */
		(void)device_release(fixture.extent, NULL);
		fixture.extent = NULL;
		fixture.file = file_unref(fixture.file);
	}
}

static void bytes_can_go_to_memory_or_nowhere(void **state)
{
	uint64_t sums[MAX_SUMS];
	uint8_t *memory;
	struct err err;

	(void)state;
	given_file(66 * MIB + 5);
	assert_reads_all();
	memcpy(sums, fixture.sums, sizeof sums);
	fixture.reader.extent = NULL;
	forget_cached_pages();
	assert_int_equal(run(&err), 0);
	assert_memory_equal(fixture.sums, sums, sizeof sums);

	memory = malloc(100000);
	fixture.reader.memory = memory;
	fixture.reader.sums = NULL;
	fixture.reader.bytes = 100000;
	assert_int_equal(run(&err), 0);
	for (size_t i = 0; i < 100000; i++) {
		assert_int_equal(memory[i], scratch_byte(i));
	}
	free(memory);
}

/* fault: F33 */
static void short_reads_are_invisible(void **state)
{
	(void)state;
	given_file(3 * MIB + 100);
	forget_cached_pages();
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1,
							      .short_size = 1000,
							      .is_forever = true}));
	assert_reads_all();
	assert_true(sys_fault_n_hits("pread") > 3 * MIB / 1000);
	fixture.reader.direct_io = false;
	assert_reads_all();
}

/* fault: F33 */
static void interrupted_reads_are_invisible(void **state)
{
	(void)state;
	given_file(9 * MIB);
	for (uint64_t nth = 1; nth < 4; nth++) {
		forget_cached_pages();
		assert_true(sys_fault_set("pread", (struct sys_fault){.nth = nth, .error = EINTR}));
		assert_reads_all();
		fixture.reader.direct_io = nth % 2 == 0;
	}
}

/* fault: F34 */
static void refused_direct_reads_become_buffered_ones_at_any_moment(void **state)
{
	(void)state;
	given_file(40 * MIB + 11);
	if (fixture.file->direct_fd < 0) {
		skip(); /* this filesystem has no O_DIRECT */
	}
	fixture.reader.n_threads = 1;
	for (uint64_t nth = 1; nth < 6; nth += 2) {
		forget_cached_pages();
		assert_true(
			sys_fault_set("pread", (struct sys_fault){.nth = nth, .error = EINVAL}));
		assert_reads_all();
		assert_int_equal(sys_fault_n_hits("pread"), 1);
	}
}

static void a_refused_buffered_read_is_a_failure(void **state)
{
	struct err err;

	(void)state;
	given_file(MIB);
	fixture.reader.direct_io = false;
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EINVAL}));
	assert_int_equal(run(&err), -WIRE_IO);
	assert_int_equal(err.sys, EINVAL);
}

/* fault: F33 X06 */
static void a_read_error_half_way_is_named_with_its_offset(void **state)
{
	struct err err;

	(void)state;
	given_file(32 * MIB);
	fixture.reader.n_threads = 1;
	fixture.reader.direct_io = false;
	assert_true(sys_fault_set("pread",
				  (struct sys_fault){.nth = 9, .error = EIO, .is_forever = true}));
	assert_int_equal(run(&err), -WIRE_IO);
	assert_int_equal(err.sys, EIO);
	assert_int_equal(err.offset, 16 * MIB);
	assert_non_null(strstr(err.text, "16777216"));
	assert_non_null(strstr(err.text, strerror(EIO)));
}

static void one_threads_failure_stops_them_all(void **state)
{
	struct err err;

	(void)state;
	given_file(192 * MIB);
	assert_true(sys_fault_set("pread",
				  (struct sys_fault){.nth = 3, .error = EIO, .is_forever = true}));
	assert_int_equal(run(&err), -WIRE_IO);
	assert_true(fixture.progress.bytes < 64 * MIB);
}

/* fault: F32 */
static void a_file_that_ends_early_has_changed(void **state)
{
	struct err err;

	(void)state;
	given_file(5 * MIB);
	assert_int_equal(ftruncate(fixture.file->fd, 3 * MIB + 17), 0);
	assert_int_equal(run(&err), -WIRE_CHANGED_WHILE_READING);
	assert_int_equal(err.offset, 3 * MIB + 17);
	fixture.reader.direct_io = false;
	assert_int_equal(run(&err), -WIRE_CHANGED_WHILE_READING);
	assert_int_equal(err.offset, 3 * MIB + 17);
}

static void a_stopped_read_reads_no_further(void **state)
{
	struct err err = {0};

	(void)state;
	given_file(64 * MIB);
	fixture.progress.is_stopped = true;
	assert_int_equal(reader_run(&fixture.reader, &err), -WIRE_CANCELLED);
	assert_int_equal(fixture.progress.bytes, 0);
}

/* Once something has been read. */
static void stop_soon(void *argument)
{
	struct read_progress *progress = argument;

	while (__atomic_load_n(&progress->bytes, __ATOMIC_RELAXED) == 0) {
		scratch_sleep_ms(1);
	}
	__atomic_store_n(&progress->is_stopped, true, __ATOMIC_RELAXED);
}

static void a_stop_is_seen_between_two_windows(void **state)
{
	struct err err;

	(void)state;
	given_file(128 * MIB);
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 20, .is_forever = true}));
	memset(&fixture.progress, 0, sizeof fixture.progress);
	assert_true(thread_start(&fixture.group, "stop", stop_soon, &fixture.progress));
	assert_int_equal(reader_run(&fixture.reader, &err), -WIRE_CANCELLED);
	assert_in_range(fixture.progress.bytes, 1, 127 * MIB);
}

static void without_more_threads_it_reads_alone(void **state)
{
	(void)state;
	given_file(130 * MIB);
	assert_true(
		sys_fault_set("pthread_create",
			      (struct sys_fault){.nth = 1, .error = EAGAIN, .is_forever = true}));
	assert_reads_all();
	assert_int_equal(sys_fault_n_hits("pthread_create"), 1);
}

static void without_memory_for_a_buffer_it_fails_cleanly(void **state)
{
	struct err err;

	(void)state;
	given_file(MIB);
	fixture.reader.extent = NULL;
	assert_true(
		sys_fault_set("malloc",
			      (struct sys_fault){.nth = 1, .error = ENOMEM, .is_forever = true}));
	assert_int_equal(run(&err), -WIRE_NO_MEMORY);
}

static void the_page_cache_stays_as_it_was(void **state)
{
	const uint64_t n_pages = 66 * MIB / 4096;

	(void)state;
	given_file(66 * MIB);
	forget_cached_pages();
	if (count_cached_pages() > n_pages / 10) {
		skip(); /* a filesystem that is memory itself */
	}
	fixture.reader.direct_io = false;
	assert_reads_all(); /* what it brought in goes again */
	assert_true(count_cached_pages() < n_pages / 10);

	assert_int_equal(lseek(fixture.file->fd, 0, SEEK_SET), 0);
	for (uint64_t done = 0; done < fixture.reader.bytes; done += 4096) {
		char page[4096];

		assert_int_equal(read(fixture.file->fd, page, sizeof page), sizeof page);
	}
	assert_reads_all(); /* what was there stays */
	fixture.reader.direct_io = true;
	assert_reads_all();
	assert_true(count_cached_pages() > n_pages / 10 * 9);
}

/* The client's file position is its own. */
static void the_clients_file_position_does_not_move(void **state)
{
	(void)state;
	given_file(MIB);
	assert_int_equal(lseek(fixture.file->fd, 1234, SEEK_SET), 1234);
	assert_reads_all();
	assert_int_equal(lseek(fixture.file->fd, 0, SEEK_CUR), 1234);
}

static void progress_names_the_lowest_offset_being_read(void **state)
{
	struct read_progress progress = {0};

	(void)state;
	assert_int_equal(read_progress_offset(&progress), 0);
	progress.positions[3] = 7 * MIB + 1;
	progress.positions[1] = 9 * MIB + 1;
	assert_int_equal(read_progress_offset(&progress), 7 * MIB);
	progress.positions[0] = 1;
	assert_int_equal(read_progress_offset(&progress), 0);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(files_of_all_sizes_arrive_whole_and_hashed),
		CASE(bytes_can_go_to_memory_or_nowhere),
		CASE(short_reads_are_invisible),
		CASE(interrupted_reads_are_invisible),
		CASE(refused_direct_reads_become_buffered_ones_at_any_moment),
		CASE(a_refused_buffered_read_is_a_failure),
		CASE(a_read_error_half_way_is_named_with_its_offset),
		CASE(one_threads_failure_stops_them_all),
		CASE(a_file_that_ends_early_has_changed),
		CASE(a_stopped_read_reads_no_further),
		CASE(a_stop_is_seen_between_two_windows),
		CASE(without_more_threads_it_reads_alone),
		CASE(without_memory_for_a_buffer_it_fails_cleanly),
		CASE(the_page_cache_stays_as_it_was),
		CASE(the_clients_file_position_does_not_move),
		CASE(progress_names_the_lowest_offset_being_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
