/* SPDX-License-Identifier: Apache-2.0 */
/* The whole load room over real files: submissions in, results out of the mailbox. */
#include "base/os/clock.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/scratch.h"
#include "tests/support/slow_call.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/load/hash.h"
#include "daemon/load/image_set.h"
#include "daemon/load/loader.h"
#include "proto/gen/wire_code.h"
#include "proto/table.h"

#define MIB       (1ULL << 20)
#define JOB       11
#define SEGMENT   22
#define WAIT_MS   20000          /* far more than anything here takes */
#define STALL_NS  300000000U     /* where stalls are the case; see with_stalls */
#define PATIENCE  30000000000ULL /* elsewhere: a busy machine is no stall */
#define N_TENSORS 3

static const uint8_t model_id[16] = "sixteen letters";

struct fixture {
	struct baseline before;
	uint32_t n_threads;
	struct device *device;
	struct mailbox *box;
	struct loader *loader;
	int fd; /* the source, read-write */
	struct file *file;
	struct image_set *images; /* of the last fill */
	uint64_t data_offset;
};

static struct fixture fixture;

static void start_loader(uint64_t stall_ns)
{
	const struct loader_options options = {
		.direct_io = true,
		.hugepages = true,
		.stall_ns = stall_ns,
		.progress_ns = 10000000U,
	};
	struct err err = {0};

	fixture.loader = loader_new(&options, fixture.device, fixture.box, &err);
	assert_non_null(fixture.loader);
}

static void with_stalls(void)
{
	assert_null(loader_free(fixture.loader));
	start_loader(STALL_NS);
}

static int setup(void **state)
{
	struct err err = {0};

	(void)state;
	memset(&fixture, 0, sizeof fixture);
	fixture.before = baseline_take();
	fixture.n_threads = scratch_count_threads();
	fixture.fd = -1;
	assert_int_equal(device_open("host", "cpu", &fixture.device, &err), 0);
	fixture.box = mailbox_new(&err);
	assert_non_null(fixture.box);
	start_loader(PATIENCE);
	return 0;
}

static void wait_for_threads(uint32_t n_threads)
{
	for (int i = 0; scratch_count_threads() > n_threads && i < 1000; i++) {
		scratch_sleep_ms(5);
	}
	assert_int_equal(scratch_count_threads(), n_threads);
}

static int teardown(void **state)
{
	struct mail *mail;

	(void)state;
	sys_fault_clear();
	assert_null(loader_free(fixture.loader));
	while ((mail = mailbox_take(fixture.box)) != NULL) {
		(void)load_result_free(load_result_from_mail(mail));
	}
	(void)mailbox_free(fixture.box);
	(void)device_close(fixture.device);
	(void)file_unref(fixture.file);
	(void)image_set_free(fixture.images);
	if (fixture.fd >= 0) {
		(void)close(fixture.fd);
	}
	wait_for_threads(fixture.n_threads); /* a counted thread still has to return */
	baseline_check(&fixture.before);
	return 0;
}

/* ---- files ---- */

/* A safetensors file: an F32 scalar, an empty tensor, and one that fills up to 'bytes'. */
static void write_model(int fd, uint64_t bytes)
{
	char header[512];
	uint64_t length = 256;
	uint64_t data_bytes = bytes - 8 - length;
	uint8_t prefix[8] = {0};
	int written;

	prefix[0] = (uint8_t)(length & 0xff);
	prefix[1] = (uint8_t)(length >> 8);
	written =
		snprintf(header, sizeof header,
			 "{\"__metadata__\":{\"format\":\"pt\"},"
			 "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
			 "\"empty\":{\"dtype\":\"F16\",\"shape\":[0,3],\"data_offsets\":[4,4]},"
			 "\"rest\":{\"dtype\":\"U8\",\"shape\":[%llu],\"data_offsets\":[4,%llu]}}",
			 (unsigned long long)(data_bytes - 4), (unsigned long long)data_bytes);
	assert_true(written > 0 && (uint64_t)written <= length);
	memset(header + written, ' ', length - (uint64_t)written);
	scratch_fill(fd, 8 + length, data_bytes);
	scratch_write(fd, prefix, sizeof prefix, 0);
	scratch_write(fd, header, length, sizeof prefix);
	fixture.data_offset = 8 + length;
}

static void take_file(void)
{
	struct err err = {0};

	assert_int_equal(file_new(scratch_reopen(fixture.fd, O_RDONLY),
				  scratch_reopen(fixture.fd, O_RDONLY | O_DIRECT), &fixture.file,
				  &err),
			 0);
}

static void given_model(uint64_t bytes)
{
	fixture.fd = scratch_open();
	write_model(fixture.fd, bytes);
	assert_int_equal(fsync(fixture.fd), 0);
	take_file();
}

static void ask_header(uint64_t job, struct file *file, enum cache_wish wish)
{
	const struct header_request request = {.job = job, .file = file, .wish = wish};

	loader_read_header(fixture.loader, &request);
}

/* ---- results ---- */

static struct load_result *next_result(void)
{
	struct pollfd readable = {.fd = mailbox_fd(fixture.box), .events = POLLIN};
	struct mail *mail = mailbox_take(fixture.box);

	while (mail == NULL) {
		assert_int_equal(poll(&readable, 1, WAIT_MS), 1);
		mail = mailbox_take(fixture.box);
	}
	return load_result_from_mail(mail);
}

static struct load_result *next_final(void)
{
	struct load_result *result = next_result();

	while (result->type == LOAD_PROGRESS) {
		(void)load_result_free(result);
		result = next_result();
	}
	return result;
}

static void assert_quiet(void)
{
	struct mail *mail = mailbox_take(fixture.box);

	assert_null(mail);
}

static struct tensor_map *read_header(void)
{
	struct load_result *result;
	struct tensor_map *map;

	ask_header(JOB, fixture.file, CACHE_NEVER);
	result = next_final();
	assert_int_equal(result->type, LOAD_HEADER);
	assert_int_equal(result->job, JOB);
	if (result->err.code != 0) {
		fail_msg("%s", result->err.text);
	}
	map = result->map;
	result->map = NULL;
	assert_non_null(map);
	(void)load_result_free(result);
	return map;
}

static void submit_fill(const struct tensor_map *map)
{
	const struct image_set_request set = {
		.map = map,
		.model_id = model_id,
		.generation = 5,
		.owner_uid = 1000,
		.has_sums = true,
		.name = "test model",
	};
	struct fill_request request = {.job = JOB, .segment = SEGMENT, .file = fixture.file};

	(void)image_set_free(fixture.images);
	fixture.images = image_set_new(&set); /* without memory the loader says so */
	request.images = fixture.images;
	loader_fill(fixture.loader, &request);
}

static struct load_result *fill(const struct tensor_map *map)
{
	struct load_result *result;

	submit_fill(map);
	result = next_final();
	assert_int_equal(result->type, LOAD_FILLED);
	assert_int_equal(result->job, JOB);
	assert_int_equal(result->segment, SEGMENT);
	return result;
}

/* A filled model of so many bytes. */
static struct load_result *given_filled(uint64_t bytes)
{
	struct load_result *result;
	struct tensor_map *map;

	given_model(bytes);
	map = read_header();
	result = fill(map);
	if (result->err.code != 0) {
		fail_msg("%s", result->err.text);
	}
	(void)tensor_map_free(map);
	return result;
}

static void assert_failed(struct load_result *result, enum load_type type, int code)
{
	assert_int_equal(result->type, type);
	if (result->err.code != code) {
		fail_msg("code %d: %s", result->err.code, result->err.text);
	}
	assert_true(result->err.text[0] != '\0');
	assert_null(result->map);
	assert_null(result->extent);
	assert_int_equal(result->table_fd, -1);
	(void)load_result_free(result);
}

/* ---- headers ---- */

static void a_header_is_read_and_parsed(void **state)
{
	struct load_result *result;
	struct stat status;

	(void)state;
	given_model(100000);
	ask_header(JOB, fixture.file, CACHE_NEVER);
	result = next_final();
	assert_int_equal(result->err.code, 0);
	assert_int_equal(result->map->n_tensors, N_TENSORS);
	assert_int_equal(result->map->file_size, 100000);
	assert_int_equal(fstat(fixture.fd, &status), 0);
	assert_int_equal(result->key.ino, status.st_ino);
	assert_int_equal(result->key.size, 100000);
	assert_true(result->available > MIB);
	(void)load_result_free(result);
	assert_quiet();
}

/* Longer than what is probed first: read by a second look. */
static void a_long_header_is_read_whole(void **state)
{
	const uint64_t length = 300000;
	char *header = malloc(length);
	uint8_t prefix[8] = {(uint8_t)(length & 0xff), (uint8_t)(length >> 8 & 0xff),
			     (uint8_t)(length >> 16)};
	static const char begin[] = "{\"__metadata__\":{\"x\":\"";
	static const char end[] =
		"\"},\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
	struct tensor_map *map;

	(void)state;
	assert_non_null(header);
	memset(header, 'x', length);
	memcpy(header, begin, strlen(begin));
	memcpy(header + length - strlen(end), end, strlen(end));
	fixture.fd = scratch_open();
	scratch_write(fixture.fd, prefix, 8, 0);
	scratch_write(fixture.fd, header, length, 8);
	scratch_write(fixture.fd, "data", 4, 8 + length);
	free(header);
	take_file();
	map = read_header();
	assert_int_equal(map->n_tensors, 1);
	(void)tensor_map_free(map);
}

static void a_file_that_is_no_model_is_refused(void **state)
{
	(void)state;
	fixture.fd = scratch_open();
	scratch_write(fixture.fd, "hello", 5, 0);
	take_file();
	ask_header(JOB, fixture.file, CACHE_NEVER);
	assert_failed(next_final(), LOAD_HEADER, WIRE_BAD_FILE);
}

static void an_empty_file_is_refused(void **state)
{
	(void)state;
	fixture.fd = scratch_open();
	take_file();
	ask_header(JOB, fixture.file, CACHE_NEVER);
	assert_failed(next_final(), LOAD_HEADER, WIRE_BAD_FILE);
}

/* fault: D08 */
static void a_file_of_proc_is_refused_unread(void **state)
{
	(void)state;
	fixture.fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	take_file();
	assert_true(sys_fault_set("pread",
				  (struct sys_fault){.nth = 1, .error = EIO, .is_forever = true}));
	ask_header(JOB, fixture.file, CACHE_NEVER);
	assert_failed(next_final(), LOAD_HEADER, WIRE_BAD_FD);
}

/* fault: F34 */
static void the_header_of_a_huge_sparse_file_costs_nothing(void **state)
{
	const uint64_t length = 128;
	const uint64_t data_bytes = (8ULL << 40) - 136;
	uint8_t prefix[8] = {128};
	char header[129];
	struct load_result *result;

	(void)state;
	fixture.fd = scratch_open();
	memset(header, ' ', sizeof header);
	(void)snprintf(header, sizeof header,
		       "{\"a\":{\"dtype\":\"U8\",\"shape\":[%llu],\"data_offsets\":[0,%llu]}}%40s",
		       (unsigned long long)data_bytes, (unsigned long long)data_bytes, "");
	memset(header + strlen(header), ' ', sizeof header - strlen(header));
	scratch_write(fixture.fd, prefix, 8, 0);
	scratch_write(fixture.fd, header, length, 8);
	if (ftruncate(fixture.fd, (off_t)(data_bytes + 136)) < 0) {
		skip(); /* this filesystem has no such files */
	}
	take_file();
	ask_header(JOB, fixture.file, CACHE_NEVER);
	result = next_final();
	assert_int_equal(result->err.code, 0);
	assert_int_equal(result->key.size, 8ULL << 40);
	assert_true(result->duration_ns < 5000000000U);
	(void)load_result_free(result);
}

/* fault: F33 */
static void a_header_read_that_hangs_is_answered_without_its_thread(void **state)
{
	struct load_result *result;

	(void)state;
	with_stalls();
	given_model(100000);
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .delay_ms = 60000}));
	ask_header(JOB, fixture.file, CACHE_NEVER);
	result = next_final();
	assert_int_equal(result->err.offset, 0);
	assert_true(result->duration_ns >= 2ULL * STALL_NS);
	assert_true(result->duration_ns < 50000000000U); /* the read still hangs */
	sys_fault_clear();
	assert_failed(result, LOAD_HEADER, WIRE_TIMEOUT);
	wait_for_threads(fixture.n_threads + 3);
	assert_quiet(); /* and never a second answer */
}

static void a_cancelled_header_read_is_answered_soon(void **state)
{
	(void)state;
	given_model(100000);
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .delay_ms = 1000}));
	ask_header(JOB, fixture.file, CACHE_NEVER);
	slow_call_await("pread");
	loader_cancel(fixture.loader, JOB);
	loader_cancel(fixture.loader, JOB); /* twice is once */
	loader_cancel(fixture.loader, JOB + 1);
	assert_failed(next_final(), LOAD_HEADER, WIRE_CANCELLED);
	wait_for_threads(fixture.n_threads + 3);
	assert_quiet();
}

/* A header read that goes on hanging when it has been cancelled. */
static void given_a_stuck_read(void)
{
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .delay_ms = 60000}));
	ask_header(JOB, fixture.file, CACHE_NEVER);
	slow_call_await("pread");
	loader_cancel(fixture.loader, JOB);
	assert_failed(next_final(), LOAD_HEADER, WIRE_CANCELLED);
}

/* fault: F33 */
static void reads_that_hang_are_few_of_one_owner(void **state)
{
	struct file *hanging;
	struct err err = {0};

	(void)state;
	given_model(100000);
	hanging = fixture.file;
	for (int i = 0; i < 4; i++) {
		given_a_stuck_read();
	}
	take_file(); /* another one of theirs, which would answer */
	for (int i = 0; i < 3; i++) {
		ask_header(JOB, fixture.file, CACHE_NEVER);
		assert_failed(next_final(), LOAD_HEADER, WIRE_TOO_MANY);
	}
	loader_recheck(fixture.loader, JOB, fixture.file, NULL, 0);
	assert_failed(next_final(), LOAD_RECHECKED, WIRE_TOO_MANY);
	(void)file_unref(fixture.file);
	assert_int_equal(file_take(4711, scratch_reopen(fixture.fd, O_RDONLY), -1, &fixture.file,
				   &err),
			 0);
	given_a_stuck_read();
	sys_fault_clear();
	wait_for_threads(fixture.n_threads + 3);
	(void)file_unref(fixture.file);
	fixture.file = hanging;
	(void)tensor_map_free(read_header());
	assert_quiet();
}

/* ---- fills ---- */

static void assert_image_known(const struct load_result *result, uint64_t bytes)
{
	uint8_t *found = malloc(bytes);
	uint8_t *wanted = malloc(bytes);
	struct err err = {0};

	assert_non_null(found);
	assert_non_null(wanted);
	assert_int_equal(device_read(result->extent, 0, found, bytes, &err), 0);
	assert_int_equal(pread(fixture.fd, wanted, bytes, 0), (ssize_t)bytes);
	assert_memory_equal(found, wanted, bytes);
	assert_int_equal(found[fixture.data_offset + 9], scratch_byte(fixture.data_offset + 9));
	for (uint32_t i = 0; i < result->n_sums; i++) {
		const uint64_t begin = i * HASH_RANGE_BYTES;
		const uint64_t left = bytes - begin;

		assert_int_equal(result->sums[i],
				 hash_bytes(wanted + begin,
					    left < HASH_RANGE_BYTES ? left : HASH_RANGE_BYTES));
	}
	free(found);
	free(wanted);
}

static void a_filled_image_is_the_file_sealed_and_hashed(void **state)
{
	static const uint64_t sizes[] = {300, 4096, 65 * MIB + 3};

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		struct load_result *result = given_filled(sizes[i]);
		struct err err = {0};
		int fd = -1;

		assert_image_known(result, sizes[i]);
		assert_int_equal(result->bytes, sizes[i]);
		assert_int_equal(result->n_sums, hash_count_sums(sizes[i]));
		assert_int_equal(result->checksum, hash_sums(result->sums, result->n_sums));
		assert_int_equal(result->key.size, sizes[i]);
		assert_true(result->page_bytes == 4096 || result->page_bytes == 2 * MIB);
		assert_true(result->huge_bytes <= sizes[i]);
		assert_true(result->duration_ns > 0);
		assert_int_equal(device_export(result->extent, &fd, &err), 0); /* so it is sealed */
		(void)close(fd);
		(void)load_result_free(result);
		assert_quiet();
		fixture.file = file_unref(fixture.file);
		(void)close(fixture.fd);
	}
	fixture.fd = -1;
}

static void the_table_tells_clients_all_they_need(void **state)
{
	struct load_result *result = given_filled(MIB);
	struct table table;
	struct stat status;
	struct wire_str name;
	struct err err = {0};
	int image_fd = -1;
	void *memory;

	(void)state;
	assert_int_equal(fstat(result->table_fd, &status), 0);
	assert_int_equal(fcntl(result->table_fd, F_GET_SEALS) & F_SEAL_WRITE, F_SEAL_WRITE);
	memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, result->table_fd, 0);
	assert_ptr_not_equal(memory, MAP_FAILED);
	assert_int_equal(table_open(memory, (size_t)status.st_size, hash_bytes, &table, &err), 0);
	assert_memory_equal(table.header->model_id, model_id, 16);
	assert_int_equal(table.header->generation, 5);
	assert_int_equal(table.header->owner_uid, 1000);
	assert_int_equal(table.header->format, FORMAT_SAFETENSORS);
	assert_int_equal(table.header->n_tensors, N_TENSORS);
	assert_int_equal(table.header->n_shards, 1);
	assert_int_equal(table.header->sum_range, HASH_RANGE_BYTES);
	assert_int_equal(table.shards[0].size, MIB);
	assert_int_equal(table.shards[0].image_size, MIB);
	assert_int_equal(table.shards[0].n_sums, 1);
	assert_int_equal(table.sums[0], result->sums[0]);
	assert_int_equal(device_export(result->extent, &image_fd, &err), 0);
	assert_int_equal(fstat(image_fd, &status), 0);
	assert_int_equal(table.shards[0].image_ino, status.st_ino);
	(void)close(image_fd);
	name = table_shard_name(&table, 0);
	assert_memory_equal(name.text, "test model", name.size);
	for (uint32_t i = 0; i < N_TENSORS; i++) {
		name = table_tensor_name(&table, i);
		if (name.size == 4 && memcmp(name.text, "rest", 4) == 0) {
			assert_int_equal(table.tensors[i].dtype, WIRE_DTYPE_U8);
			assert_int_equal(table.tensors[i].rank, 1);
			assert_int_equal(table.tensors[i].offset, fixture.data_offset + 4);
			assert_int_equal(table_tensor_shape(&table, i)[0],
					 MIB - fixture.data_offset - 4);
		}
	}
	assert_int_equal(munmap(memory, table.header->table_size), 0);
	(void)load_result_free(result);
}

static void progress_grows_and_comes_before_the_end(void **state)
{
	struct load_result *result;
	struct tensor_map *map;
	uint64_t seen = 0;
	uint32_t n_seen = 0;

	(void)state;
	given_model(40 * MIB);
	map = read_header();
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 25, .is_forever = true}));
	submit_fill(map);
	for (result = next_result(); result->type == LOAD_PROGRESS; result = next_result()) {
		assert_int_equal(result->job, JOB);
		assert_true(result->bytes > seen || result->is_stalled); /* a busy machine */
		seen = result->bytes;
		n_seen++;
		(void)load_result_free(result);
	}
	assert_int_equal(result->err.code, 0);
	assert_true(n_seen >= 2);
	assert_true(n_seen <= result->duration_ns / 10000000U + 2);
	(void)load_result_free(result);
	(void)tensor_map_free(map);
}

/* fault: C01 F35 */
static void a_cancel_half_way_gives_the_memory_back(void **state)
{
	struct tensor_map *map;
	struct load_result *result;

	(void)state;
	given_model(64 * MIB);
	map = read_header();
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 20, .is_forever = true}));
	submit_fill(map);
	result = next_result();
	assert_int_equal(result->type, LOAD_PROGRESS);
	(void)load_result_free(result);
	loader_cancel(fixture.loader, JOB);
	result = next_final();
	assert_true(result->bytes < 64 * MIB);
	assert_failed(result, LOAD_FILLED, WIRE_CANCELLED);
	(void)tensor_map_free(map);
	assert_quiet();
}

/* fault: F33 */
static void a_fill_that_gets_no_byte_is_stalled_then_given_up(void **state)
{
	struct tensor_map *map;
	struct load_result *result;

	(void)state;
	with_stalls();
	given_model(32 * MIB);
	map = read_header();
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 2, .delay_ms = 1500}));
	submit_fill(map);
	result = next_result();
	while (result->type == LOAD_PROGRESS && !(result->is_stalled && result->bytes > 0)) {
		(void)load_result_free(result);
		result = next_result();
	}
	assert_int_equal(result->type, LOAD_PROGRESS); /* stalled, after some bytes */
	(void)load_result_free(result);
	result = next_final();
	assert_true(result->duration_ns >= 1500000000U); /* when the memory was free again */
	assert_true(result->err.offset > 0);
	assert_failed(result, LOAD_FILLED, WIRE_TIMEOUT);
	(void)tensor_map_free(map);
}

/* Slow is not stalled: one byte resets the clock. */
static void a_slow_fill_is_not_given_up(void **state)
{
	struct tensor_map *map;
	struct load_result *result;

	(void)state;
	with_stalls();
	given_model(8 * MIB);
	map = read_header();
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1,
							      .delay_ms = 60,
							      .short_size = 256 << 10,
							      .is_forever = true}));
	result = fill(map);
	assert_int_equal(result->err.code, 0);
	assert_true(result->duration_ns > 4ULL * STALL_NS);
	(void)load_result_free(result);
	(void)tensor_map_free(map);
}

static void change_content(void)
{
	scratch_sleep_ms(20);
	scratch_write(fixture.fd, "x", 1, 60000);
}

static void change_times(void)
{
	const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};

	assert_int_equal(futimens(fixture.fd, times), 0);
}

static void change_length_up(void)
{
	scratch_write(fixture.fd, "x", 1, 100000);
}

static void change_length_down(void)
{
	assert_int_equal(ftruncate(fixture.fd, 70000), 0);
}

/* fault: F32 */
static void a_file_that_changes_before_or_while_it_is_read_is_refused(void **state)
{
	static void (*const changes[])(void) = {change_content, change_times, change_length_up,
						change_length_down};

	(void)state;
	for (size_t i = 0; i < 2 * sizeof changes / sizeof changes[0]; i++) {
		struct tensor_map *map;

		given_model(100000);
		map = read_header();
		if (i % 2 == 0) {
			changes[i / 2]();
			submit_fill(map);
		} else {
			assert_true(sys_fault_set("pread",
						  (struct sys_fault){.nth = 1, .delay_ms = 20000}));
			submit_fill(map);
			slow_call_await("pread");
			changes[i / 2]();
			sys_fault_clear(); /* the read goes on */
		}
		assert_failed(next_final(), LOAD_FILLED, WIRE_CHANGED_WHILE_READING);
		(void)tensor_map_free(map);
		fixture.file = file_unref(fixture.file);
		(void)close(fixture.fd);
	}
	fixture.fd = -1;
}

/* After the refusal a new look at the same file loads what is there now. */
static void a_changed_file_loads_at_the_second_try(void **state)
{
	struct tensor_map *map;
	struct load_result *result;

	(void)state;
	given_model(100000);
	map = read_header();
	change_content();
	submit_fill(map);
	assert_failed(next_final(), LOAD_FILLED, WIRE_CHANGED_WHILE_READING);
	(void)tensor_map_free(map);
	map = read_header();
	result = fill(map);
	assert_int_equal(result->err.code, 0);
	assert_image_known(result, 100000);
	(void)load_result_free(result);
	(void)tensor_map_free(map);
}

/* fault: F33 X06 */
static void a_read_error_at_half_is_named_and_nothing_is_kept(void **state)
{
	struct load_result *result;
	struct tensor_map *map;

	(void)state;
	given_model(32 * MIB);
	map = read_header();
	(void)posix_fadvise(fixture.fd, 0, 0, POSIX_FADV_DONTNEED);
	assert_true(sys_fault_set("pread",
				  (struct sys_fault){.nth = 3, .error = EIO, .is_forever = true}));
	submit_fill(map);
	result = next_final();
	assert_int_equal(result->err.sys, EIO);
	assert_true(result->err.offset >= 4 * MIB && result->err.offset <= 16 * MIB);
	assert_failed(result, LOAD_FILLED, WIRE_IO);
	(void)tensor_map_free(map);
}

/* fault: M11 M12 */
static void any_failing_call_gives_one_result_and_leaves_nothing(void **state)
{
	static const char *const calls[] = {"malloc",  "memfd_create",   "ftruncate", "mmap",
					    "madvise", "pthread_create", "open",      "statx",
					    "fstat",   "fcntl",          "pread"};
	struct tensor_map *map;

	(void)state;
	given_model(3 * MIB);
	map = read_header();
	for (size_t i = 0; i < 2 * sizeof calls / sizeof calls[0]; i++) {
		bool is_struck = true;

		for (uint64_t nth = 1; is_struck; nth++) {
			const struct baseline before = baseline_take();
			struct load_result *result;

			assert_true(nth < 200);
			assert_true(sys_fault_set(calls[i / 2],
						  (struct sys_fault){.nth = nth,
								     .error = ENOMEM,
								     .is_forever = i % 2 == 1}));
			result = fill(map);
			is_struck = sys_fault_n_hits(calls[i / 2]) > 0;
			sys_fault_clear();
			if (result->err.code != 0) {
				assert_failed(result, LOAD_FILLED, result->err.code);
			} else {
				assert_image_known(result, 3 * MIB);
				(void)load_result_free(result);
			}
			assert_quiet();
			wait_for_threads(fixture.n_threads + 3);
			baseline_wait_fds(before.n_fds);
		}
	}
	(void)tensor_map_free(map);
}

/* fault: M11 */
static void a_header_read_survives_any_failing_call(void **state)
{
	static const char *const calls[] = {"malloc", "pthread_create", "statx", "pread", "open"};

	(void)state;
	given_model(100000);
	for (size_t i = 0; i < 2 * sizeof calls / sizeof calls[0]; i++) {
		bool is_struck = true;

		for (uint64_t nth = 1; is_struck; nth++) {
			struct load_result *result;

			assert_true(nth < 200);
			assert_true(sys_fault_set(calls[i / 2],
						  (struct sys_fault){.nth = nth,
								     .error = EIO,
								     .is_forever = i % 2 == 1}));
			ask_header(JOB, fixture.file, CACHE_NEVER);
			result = next_final();
			is_struck = sys_fault_n_hits(calls[i / 2]) > 0;
			sys_fault_clear();
			assert_int_equal(result->type, LOAD_HEADER);
			assert_true((result->err.code == 0) == (result->map != NULL));
			(void)load_result_free(result);
			wait_for_threads(fixture.n_threads + 3);
			assert_quiet();
		}
	}
}

/* ---- rechecks, verifications, drops ---- */

static struct load_result *recheck(const uint64_t *sums, uint32_t n_sums)
{
	struct load_result *result;

	loader_recheck(fixture.loader, JOB, fixture.file, sums, n_sums);
	result = next_final();
	assert_int_equal(result->type, LOAD_RECHECKED);
	assert_int_equal(result->job, JOB);
	return result;
}

static void a_recheck_compares_the_file_with_the_sums(void **state)
{
	struct load_result *filled = given_filled(130 * MIB);
	struct load_result *result = recheck(filled->sums, filled->n_sums);

	(void)state;
	assert_int_equal(result->err.code, 0);
	assert_true(result->is_equal);
	assert_int_equal(result->bytes, 130 * MIB);
	(void)load_result_free(result);

	scratch_write(fixture.fd, "x", 1, 64 * MIB + 5);
	result = recheck(filled->sums, filled->n_sums);
	assert_int_equal(result->err.code, 0);
	assert_false(result->is_equal);
	assert_int_equal(result->differs_at, 64 * MIB);
	(void)load_result_free(result);

	result = recheck(filled->sums, 2); /* sums of a shorter file */
	assert_false(result->is_equal);
	(void)load_result_free(result);
	result = recheck(NULL, 0);
	assert_int_equal(result->err.code, 0);
	assert_false(result->is_equal);
	(void)load_result_free(result);
	(void)load_result_free(filled);
}

static void a_recheck_of_a_changing_or_failing_file_says_so(void **state)
{
	struct load_result *filled = given_filled(MIB);

	(void)state;
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .delay_ms = 20000}));
	loader_recheck(fixture.loader, JOB, fixture.file, filled->sums, filled->n_sums);
	slow_call_await("pread");
	change_content();
	sys_fault_clear(); /* the read goes on */
	assert_failed(next_final(), LOAD_RECHECKED, WIRE_CHANGED_WHILE_READING);
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EIO}));
	assert_failed(recheck(filled->sums, filled->n_sums), LOAD_RECHECKED, WIRE_IO);
	(void)load_result_free(filled);
}

/* fault: M07 */
static void a_verification_finds_the_one_byte_that_went_bad(void **state)
{
	struct load_result *filled = given_filled(130 * MIB);
	struct load_result *result;
	struct err err = {0};

	(void)state;
	loader_verify(fixture.loader, SEGMENT, filled->extent, filled->sums, filled->n_sums);
	result = next_final();
	assert_int_equal(result->type, LOAD_VERIFIED);
	assert_int_equal(result->segment, SEGMENT);
	assert_int_equal(result->err.code, 0);
	assert_true(result->is_equal);
	(void)load_result_free(result);

	assert_int_equal(host_corrupt(filled->extent, 70 * MIB, &err), 0);
	loader_verify(fixture.loader, SEGMENT, filled->extent, filled->sums, filled->n_sums);
	result = next_final();
	assert_int_equal(result->err.code, 0);
	assert_false(result->is_equal);
	assert_int_equal(result->differs_at, 64 * MIB);
	(void)load_result_free(result);

	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EIO}));
	loader_verify(fixture.loader, SEGMENT, filled->extent, filled->sums, filled->n_sums);
	result = next_final();
	assert_int_equal(result->err.code, WIRE_IO);
	assert_false(result->is_equal);
	(void)load_result_free(result);
	(void)load_result_free(filled);
}

static void a_drop_frees_the_image_and_answers(void **state)
{
	struct load_result *filled = given_filled(4 * MIB);
	struct load_result *result;
	const size_t n_fds = baseline_n_fds();

	(void)state;
	loader_drop(fixture.loader, SEGMENT, filled->extent);
	filled->extent = NULL;
	result = next_final();
	assert_int_equal(result->type, LOAD_DROPPED);
	assert_int_equal(result->segment, SEGMENT);
	assert_int_equal(result->err.code, 0);
	assert_true(result->available > 0);
	baseline_wait_fds(n_fds - 1);
	(void)load_result_free(result);
	loader_drop(fixture.loader, SEGMENT + 1, NULL); /* a fill that failed has none */
	result = next_final();
	assert_int_equal(result->segment, SEGMENT + 1);
	(void)load_result_free(result);
	(void)load_result_free(filled);
}

static void a_drop_waits_for_the_verification_that_it_cancels(void **state)
{
	struct load_result *filled = given_filled(66 * MIB);
	struct load_result *result;

	(void)state;
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 40, .is_forever = true}));
	loader_verify(fixture.loader, SEGMENT, filled->extent, filled->sums, filled->n_sums);
	slow_call_await("pread");
	loader_drop(fixture.loader, SEGMENT, filled->extent);
	filled->extent = NULL;
	assert_failed(next_final(), LOAD_VERIFIED, WIRE_CANCELLED);
	result = next_final();
	assert_int_equal(result->type, LOAD_DROPPED);
	(void)load_result_free(result);
	(void)load_result_free(filled);
}

/* After a restart all images are hashed, one after the other: what goes meanwhile goes first. */
static void a_drop_does_not_wait_for_the_verifications_of_others(void **state)
{
	struct load_result *hashed = given_filled(66 * MIB);
	struct tensor_map *map = read_header();
	struct load_result *dropped = fill(map);
	struct load_result *result;

	(void)state;
	(void)tensor_map_free(map);
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 40, .is_forever = true}));
	loader_verify(fixture.loader, SEGMENT, hashed->extent, hashed->sums, hashed->n_sums);
	loader_verify(fixture.loader, SEGMENT + 1, dropped->extent, dropped->sums, dropped->n_sums);
	slow_call_await("pread");
	loader_drop(fixture.loader, SEGMENT + 1, dropped->extent);
	dropped->extent = NULL;
	assert_failed(next_final(), LOAD_VERIFIED, WIRE_CANCELLED);
	result = next_final();
	assert_int_equal(result->type, LOAD_DROPPED);
	assert_int_equal(result->segment, SEGMENT + 1);
	(void)load_result_free(result);
	sys_fault_clear();
	result = next_final();
	assert_int_equal(result->type, LOAD_VERIFIED);
	assert_true(result->is_equal);
	(void)load_result_free(result);
	(void)load_result_free(dropped);
	(void)load_result_free(hashed);
}

/* ---- many, none, the end ---- */

/* fault: M10 */
static void without_any_memory_every_submission_is_still_answered(void **state)
{
	struct load_result *filled = given_filled(MIB);
	const struct fill_request request = {.job = JOB, .segment = SEGMENT, .file = fixture.file};
	bool is_seen[LOAD_DROPPED + 1] = {false};

	(void)state;
	assert_true(
		sys_fault_set("malloc",
			      (struct sys_fault){.nth = 1, .error = ENOMEM, .is_forever = true}));
	ask_header(JOB, fixture.file, CACHE_NEVER);
	loader_fill(fixture.loader, &request);
	loader_recheck(fixture.loader, JOB, fixture.file, filled->sums, filled->n_sums);
	loader_verify(fixture.loader, SEGMENT, filled->extent, filled->sums, filled->n_sums);
	loader_drop(fixture.loader, SEGMENT, filled->extent);
	filled->extent = NULL;
	for (int i = 0; i < 5; i++) {
		struct load_result *result = next_result();

		assert_false(is_seen[result->type]);
		is_seen[result->type] = true;
		assert_int_equal(result->err.code,
				 result->type == LOAD_DROPPED ? 0 : WIRE_NO_MEMORY);
		(void)load_result_free(result);
	}
	assert_quiet();
	for (int i = 0; i < 1000; i++) { /* what was lent for that comes back */
		ask_header(JOB, fixture.file, CACHE_NEVER);
		(void)load_result_free(next_result());
	}
	sys_fault_clear();
	(void)load_result_free(filled);
}

/* More failures than there are prepared results: the rest waits its turn. */
/* fault: M10 */
static void without_memory_many_submissions_at_once_are_answered(void **state)
{
	bool is_seen[2000] = {false};

	(void)state;
	given_model(1000);
	assert_true(
		sys_fault_set("malloc",
			      (struct sys_fault){.nth = 1, .error = ENOMEM, .is_forever = true}));
	for (uint64_t i = 0; i < 2000; i++) {
		ask_header(i, fixture.file, CACHE_NEVER);
	}
	for (int i = 0; i < 2000; i++) {
		struct load_result *result = next_result();

		assert_true(result->job < 2000 && !is_seen[result->job]);
		is_seen[result->job] = true;
		assert_int_equal(result->err.code, WIRE_NO_MEMORY);
		assert_true(result->available > 0);
		(void)load_result_free(result);
	}
	assert_quiet();
	sys_fault_clear();
}

static void write_meminfo(const char *path)
{
	static const char text[] = "MemTotal: 1000000 kB\nMemAvailable: 500000 kB\n";
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
	(void)close(fd);
}

/* The FIFO gets a writer, which lets its readers go, and makes room for a file. */
static void release_readers(const char *path, const char *good)
{
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(rename(good, path), 0);
	scratch_sleep_ms(100);
	(void)close(fd);
}

/* What the host has left is read where it may take long: never under the lock, never here. */
static void a_slow_proc_holds_no_submission_up(void **state)
{
	char root[] = "/tmp/distorch-test-XXXXXX";
	char folder[40];
	char path[56];
	char good[56];
	const struct loader_options options = {.stall_ns = 20000000000U,
					       .progress_ns = 10000000U,
					       .root = root};
	uint64_t begun_ns;

	(void)state;
	assert_non_null(mkdtemp(root));
	(void)snprintf(folder, sizeof folder, "%s/proc", root);
	(void)snprintf(path, sizeof path, "%s/meminfo", folder);
	(void)snprintf(good, sizeof good, "%s/good", folder);
	assert_int_equal(mkdir(folder, 0700), 0);
	write_meminfo(path);
	assert_null(loader_free(fixture.loader));
	fixture.loader = loader_new(&options, fixture.device, fixture.box, NULL);
	assert_non_null(fixture.loader);
	given_model(1000);
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .delay_ms = 1500}));
	ask_header(JOB, fixture.file, CACHE_NEVER);
	slow_call_await("pread");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkfifo(path, 0600), 0);
	loader_cancel(fixture.loader, JOB); /* it hangs: the watch answers for it */
	scratch_sleep_ms(200);
	sys_fault_clear();
	begun_ns = clock_mono_ns();
	loader_cancel(fixture.loader, JOB + 1);
	assert_true(sys_fault_set("malloc", (struct sys_fault){.nth = 1, .error = ENOMEM}));
	ask_header(JOB + 2, fixture.file, CACHE_NEVER);
	sys_fault_clear();
	assert_true(clock_mono_ns() - begun_ns < 10000000000U); /* nothing ends what hangs */
	write_meminfo(good);
	release_readers(path, good);
	for (int i = 0; i < 2; i++) {
		(void)load_result_free(next_final());
	}
	assert_int_equal(unlink(path), 0);
	assert_int_equal(rmdir(folder), 0);
	assert_int_equal(rmdir(root), 0);
}

/* fault: F33 */
static void a_hanging_file_holds_only_its_own_job_up(void **state)
{
	struct file *hanging;
	struct load_result *result;

	(void)state;
	given_model(100000);
	hanging = fixture.file;
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .delay_ms = 60000}));
	ask_header(JOB + 1, hanging, CACHE_NEVER);
	slow_call_await("pread");
	take_file();
	for (uint64_t job = 100; job < 120; job++) {
		ask_header(job, fixture.file, CACHE_NEVER);
	}
	for (int i = 0; i < 20; i++) {
		result = next_final();
		assert_in_range(result->job, 100, 119);
		assert_int_equal(result->err.code, 0);
		(void)load_result_free(result);
	}
	sys_fault_clear();
	result = next_final();
	assert_int_equal(result->job, JOB + 1);
	(void)load_result_free(result);
	(void)file_unref(hanging);
}

static void closing_a_file_happens_elsewhere(void **state)
{
	const size_t n_fds = baseline_n_fds();
	uint64_t begun_ns;

	(void)state;
	given_model(1000);
	assert_true(
		sys_fault_set("close",
			      (struct sys_fault){.nth = 1, .delay_ms = 60000, .is_forever = true}));
	loader_close_file(fixture.loader, file_ref(fixture.file)); /* not the last reference */
	begun_ns = clock_mono_ns();
	loader_close_file(fixture.loader, fixture.file);
	assert_true(clock_mono_ns() - begun_ns < 50000000000);
	sys_fault_clear();
	fixture.file = NULL;
	loader_close_file(fixture.loader, NULL);
	baseline_wait_fds(n_fds + 1);
}

/* The thread of a job never closes: it would stay, and nothing would count it. */
static void a_job_ends_whatever_becomes_of_its_descriptors(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 20; i++) {
		struct load_result *result;

		if (fixture.fd >= 0) {
			(void)close(fixture.fd);
		}
		given_model(1000);
		assert_true(sys_fault_set("close", (struct sys_fault){.nth = 1,
								      .delay_ms = 200,
								      .is_forever = true}));
		ask_header(i, fixture.file, CACHE_NEVER);
		fixture.file = file_unref(fixture.file); /* the job has the last reference */
		result = next_final();
		assert_int_equal(result->err.code, 0);
		(void)load_result_free(result);
	}
	/* Three of the loader, at most eight that close, perhaps one idle. */
	assert_in_range(scratch_count_threads(), fixture.n_threads + 3, fixture.n_threads + 13);
}

static void at_rest_three_threads_sleep(void **state)
{
	struct load_result *filled = given_filled(MIB);

	(void)state;
	wait_for_threads(fixture.n_threads + 3);
	(void)load_result_free(filled);
}

static void the_end_abandons_what_runs_and_posts_nothing_more(void **state)
{
	struct tensor_map *map;

	(void)state;
	given_model(64 * MIB);
	map = read_header();
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 20, .is_forever = true}));
	submit_fill(map);
	slow_call_await("pread");
	fixture.loader = loader_free(fixture.loader);
	assert_null(fixture.loader);
	for (struct mail *mail; (mail = mailbox_take(fixture.box)) != NULL;) {
		struct load_result *result = load_result_from_mail(mail);

		assert_int_equal(result->type, LOAD_PROGRESS);
		(void)load_result_free(result);
	}
	(void)tensor_map_free(map);
}

static void the_end_does_not_wait_for_a_thread_that_is_stuck(void **state)
{
	static struct loader *stuck; /* lives as long as its thread: for ever, in a daemon */
	struct tensor_map *map;

	(void)state;
	given_model(MIB);
	map = read_header();
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .delay_ms = 2600}));
	submit_fill(map);
	slow_call_await("pread");
	stuck = loader_free(fixture.loader);
	assert_non_null(stuck);
	fixture.loader = NULL;
	wait_for_threads(fixture.n_threads);
	assert_null(loader_free(stuck)); /* now it can be freed after all */
	(void)tensor_map_free(map);
}

static void a_loader_without_threads_or_memory_is_none(void **state)
{
	const struct loader_options options = {.stall_ns = STALL_NS, .progress_ns = 1000000};

	(void)state;
	for (uint64_t nth = 1; nth < 20; nth++) {
		const char *call = nth % 2 == 0 ? "malloc" : "pthread_create";
		struct loader *loader;
		struct err err = {0};

		assert_true(sys_fault_set(call, (struct sys_fault){.nth = (nth + 1) / 2,
								   .error = ENOMEM}));
		loader = loader_new(&options, fixture.device, fixture.box, &err);
		assert_true((loader == NULL) == (sys_fault_n_hits(call) > 0));
		assert_true((err.code == WIRE_NO_MEMORY) == (loader == NULL));
		sys_fault_clear();
		assert_null(loader_free(loader));
	}
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

static void *do_nothing(void *argument)
{
	return argument;
}

/* A sanitizer starts a thread of its own with the first one: before anything is counted. */
static int start_first_thread(void **state)
{
	pthread_t thread;

	(void)state;
	return pthread_create(&thread, NULL, do_nothing, NULL) != 0 ||
	       pthread_join(thread, NULL) != 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(a_header_is_read_and_parsed),
		CASE(a_long_header_is_read_whole),
		CASE(a_file_that_is_no_model_is_refused),
		CASE(an_empty_file_is_refused),
		CASE(a_file_of_proc_is_refused_unread),
		CASE(the_header_of_a_huge_sparse_file_costs_nothing),
		CASE(a_header_read_that_hangs_is_answered_without_its_thread),
		CASE(a_cancelled_header_read_is_answered_soon),
		CASE(reads_that_hang_are_few_of_one_owner),
		CASE(a_filled_image_is_the_file_sealed_and_hashed),
		CASE(the_table_tells_clients_all_they_need),
		CASE(progress_grows_and_comes_before_the_end),
		CASE(a_cancel_half_way_gives_the_memory_back),
		CASE(a_fill_that_gets_no_byte_is_stalled_then_given_up),
		CASE(a_slow_fill_is_not_given_up),
		CASE(a_file_that_changes_before_or_while_it_is_read_is_refused),
		CASE(a_changed_file_loads_at_the_second_try),
		CASE(a_read_error_at_half_is_named_and_nothing_is_kept),
		CASE(any_failing_call_gives_one_result_and_leaves_nothing),
		CASE(a_header_read_survives_any_failing_call),
		CASE(a_recheck_compares_the_file_with_the_sums),
		CASE(a_recheck_of_a_changing_or_failing_file_says_so),
		CASE(a_verification_finds_the_one_byte_that_went_bad),
		CASE(a_drop_frees_the_image_and_answers),
		CASE(a_drop_waits_for_the_verification_that_it_cancels),
		CASE(a_drop_does_not_wait_for_the_verifications_of_others),
		CASE(without_any_memory_every_submission_is_still_answered),
		CASE(without_memory_many_submissions_at_once_are_answered),
		CASE(a_slow_proc_holds_no_submission_up),
		CASE(a_hanging_file_holds_only_its_own_job_up),
		CASE(closing_a_file_happens_elsewhere),
		CASE(a_job_ends_whatever_becomes_of_its_descriptors),
		CASE(at_rest_three_threads_sleep),
		CASE(the_end_abandons_what_runs_and_posts_nothing_more),
		CASE(the_end_does_not_wait_for_a_thread_that_is_stuck),
		CASE(a_loader_without_threads_or_memory_is_none),
	};

	return cmocka_run_group_tests(tests, start_first_thread, NULL);
}
