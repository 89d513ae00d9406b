/* SPDX-License-Identifier: Apache-2.0 */
/* Models of several files through the whole load room: joined, filled, checked, compared. */
#include "base/os/sys.h"
#include "base/weight_map.h"
#include "tests/support/baseline.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "daemon/format/join.h"
#include "daemon/load/hash.h"
#include "daemon/load/image_set.h"
#include "daemon/load/loader.h"
#include "proto/gen/wire_code.h"
#include "proto/table.h"

#define N_FILES    5
#define FILE_BYTES 300000U
#define JOB        7
#define WAIT_MS    20000
#define HEADER     128U

static struct {
	struct baseline before;
	uint32_t n_threads;
	struct device *device;
	struct mailbox *box;
	struct loader *loader;
	int fds[N_FILES];
	int index_fd;
	struct file *file; /* of all */
	struct image_set *images;
} fixture;

/* ---- files ---- */

/* One tensor, "t.N", up to the end. */
static void write_file(uint32_t number)
{
	char header[HEADER + 1];
	uint8_t prefix[8] = {HEADER};
	int written =
		snprintf(header, sizeof header,
			 "{\"t.%u\":{\"dtype\":\"U8\",\"shape\":[%u],\"data_offsets\":[0,%u]}}",
			 number, FILE_BYTES - 8 - HEADER, FILE_BYTES - 8 - HEADER);

	assert_true(written > 0 && written <= (int)HEADER);
	memset(header + written, ' ', HEADER - (size_t)written);
	fixture.fds[number] = scratch_open();
	scratch_fill(fixture.fds[number], 8 + HEADER, FILE_BYTES - 8 - HEADER);
	scratch_write(fixture.fds[number], prefix, sizeof prefix, 0);
	scratch_write(fixture.fds[number], header, HEADER, sizeof prefix);
}

static void write_index(const char *text)
{
	fixture.index_fd = scratch_open();
	scratch_write(fixture.index_fd, text, strlen(text), 0);
}

static void write_true_index(void)
{
	write_index("{\"weight_map\":{\"t.0\":\"f0\",\"t.1\":\"f1\",\"t.2\":\"f2\",\"t.3\":\"f3\","
		    "\"t.4\":\"f4\"}}");
}

static struct file *reopen_named(int fd, const char *name)
{
	struct file *file = NULL;

	assert_int_equal(file_new(scratch_reopen(fd, O_RDONLY), -1, &file, NULL), 0);
	assert_true(file_set_name(file, name));
	return file;
}

/* 'order': which file comes at which place. */
static struct file *join_files(const uint32_t order[N_FILES])
{
	struct file *files[N_FILES];
	struct file *file = NULL;
	char name[4];

	for (uint32_t i = 0; i < N_FILES; i++) {
		(void)snprintf(name, sizeof name, "f%u", order[i] % 10);
		files[i] = reopen_named(fixture.fds[order[i]], name);
	}
	assert_int_equal(file_join(1000, reopen_named(fixture.index_fd, "index"), files, N_FILES,
				   &file, NULL),
			 0);
	return file;
}

static const uint32_t in_order[N_FILES] = {0, 1, 2, 3, 4};

static int setup(void **state)
{
	const struct loader_options options = {.direct_io = true,
					       .stall_ns = 30000000000U,
					       .progress_ns = 10000000U};

	(void)state;
	memset(&fixture, 0, sizeof fixture);
	fixture.before = baseline_take();
	fixture.n_threads = scratch_count_threads();
	assert_int_equal(device_open("host", "cpu", &fixture.device, NULL), 0);
	fixture.box = mailbox_new(NULL);
	fixture.loader = loader_new(&options, fixture.device, fixture.box, NULL);
	assert_non_null(fixture.loader);
	for (uint32_t i = 0; i < N_FILES; i++) {
		write_file(i);
	}
	write_true_index();
	fixture.file = join_files(in_order);
	return 0;
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
	(void)image_set_free(fixture.images);
	(void)file_unref(fixture.file);
	for (uint32_t i = 0; i < N_FILES; i++) {
		(void)close(fixture.fds[i]);
	}
	(void)close(fixture.index_fd);
	baseline_check(&fixture.before);
	return 0;
}

static void use_index(const char *text)
{
	(void)file_unref(fixture.file);
	(void)close(fixture.index_fd);
	write_index(text);
	fixture.file = join_files(in_order);
}

static void ask_header(uint64_t job, struct file *file, enum cache_wish wish)
{
	const struct header_request request = {.job = job, .file = file, .wish = wish};

	loader_read_header(fixture.loader, &request);
}

/* ---- results ---- */

static struct load_result *next_final(void)
{
	struct pollfd readable = {.fd = mailbox_fd(fixture.box), .events = POLLIN};

	for (;;) {
		struct mail *mail = mailbox_take(fixture.box);
		struct load_result *result = mail == NULL ? NULL : load_result_from_mail(mail);

		if (result != NULL && result->type != LOAD_PROGRESS) {
			return result;
		}
		if (result == NULL) {
			assert_int_equal(poll(&readable, 1, WAIT_MS), 1);
		} else {
			(void)load_result_free(result);
		}
	}
}

static void expect_refusal(int code, const char *words)
{
	struct load_result *result;

	ask_header(JOB, fixture.file, CACHE_NEVER);
	result = next_final();
	if (result->err.code != code || strstr(result->err.text, words) == NULL) {
		fail_msg("%d: %s", result->err.code, result->err.text);
	}
	assert_null(result->map);
	(void)load_result_free(result);
}

static struct tensor_map *read_header(void)
{
	struct load_result *result;
	struct tensor_map *map;

	ask_header(JOB, fixture.file, CACHE_NEVER);
	result = next_final();
	if (result->err.code != 0) {
		fail_msg("%s", result->err.text);
	}
	assert_true(file_key_is_equal(&result->key, &fixture.file->key));
	map = result->map;
	result->map = NULL;
	(void)load_result_free(result);
	return map;
}

static void begin_images(const struct tensor_map *map)
{
	const struct image_set_request set = {.map = map,
					      .model_id = (const uint8_t *)"sixteen letters.",
					      .generation = 3,
					      .owner_uid = 1000,
					      .has_sums = true,
					      .name = "a model"};

	fixture.images = image_set_free(fixture.images);
	fixture.images = image_set_new(&set);
	assert_non_null(fixture.images);
}

static void submit_begun(void)
{
	for (uint32_t i = 0; i < N_FILES; i++) {
		const struct fill_request request = {.job = JOB,
						     .segment = 100 + i,
						     .file = fixture.file,
						     .images = fixture.images,
						     .index = i};

		loader_fill(fixture.loader, &request);
	}
}

static void submit_fills(const struct tensor_map *map)
{
	begin_images(map);
	submit_begun();
}

/* All results, by their segments; returns the one that came with the table. */
static struct load_result *take_fills(struct load_result *ret[N_FILES])
{
	struct load_result *last = NULL;

	memset(ret, 0, N_FILES * sizeof(struct load_result *));
	for (uint32_t i = 0; i < N_FILES; i++) {
		struct load_result *result = next_final();

		assert_int_equal(result->type, LOAD_FILLED);
		assert_true(result->segment >= 100 && result->segment < 100 + N_FILES);
		assert_null(ret[result->segment - 100]);
		ret[result->segment - 100] = result;
		assert_true(result->table_fd < 0 || last == NULL);
		last = result->table_fd >= 0 ? result : last;
	}
	return last;
}

static void free_all(struct load_result *results[N_FILES])
{
	for (uint32_t i = 0; i < N_FILES; i++) {
		(void)load_result_free(results[i]);
	}
}

/* ---- cases ---- */

static void files_are_one_source_with_one_key(void **state)
{
	static const uint32_t turned[N_FILES] = {1, 0, 2, 3, 4};
	struct file *again = join_files(in_order);
	struct file *other = join_files(turned);
	struct file_key keys[N_FILES];
	struct file_key now;

	(void)state;
	assert_int_equal(fixture.file->key.size, N_FILES * FILE_BYTES);
	assert_true(file_key_is_equal(&again->key, &fixture.file->key));
	assert_true(other->key.ino != again->key.ino || other->key.dev != again->key.dev);
	assert_int_equal(file_read_keys(again, keys, &now, NULL), 0);
	assert_true(file_key_is_equal(&again->key, &now));
	scratch_fill(fixture.fds[3], FILE_BYTES, 1);
	assert_int_equal(file_read_keys(again, keys, &now, NULL), 0);
	assert_false(file_key_is_equal(&again->key, &now));
	assert_int_equal(now.ino, again->key.ino);
	(void)file_unref(again);
	(void)file_unref(other);
}

static void check_table(const struct load_result *last, struct load_result *results[N_FILES])
{
	struct stat status;
	struct table table;
	struct err err = {0};
	void *memory;
	char name[32];

	assert_int_equal(fstat(last->table_fd, &status), 0);
	memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, last->table_fd, 0);
	assert_ptr_not_equal(memory, MAP_FAILED);
	assert_int_equal(table_open(memory, (size_t)status.st_size, hash_bytes, &table, &err), 0);
	assert_int_equal(table.header->n_shards, N_FILES);
	assert_int_equal(table.header->n_tensors, N_FILES);
	assert_int_equal(table.header->n_sums, N_FILES);
	for (uint32_t i = 0; i < N_FILES; i++) {
		const void *bytes;
		int fd = -1;

		assert_int_equal(table.tensors[i].shard, i);
		assert_int_equal(table.tensors[i].offset, 8 + HEADER);
		assert_int_equal(table.shards[i].first_sum, i);
		(void)snprintf(name, sizeof name, "a model/f%u", i);
		assert_true(wire_str_is(table_shard_name(&table, i), name));
		assert_int_equal(device_export(results[i]->extent, &fd, NULL), 0);
		assert_int_equal(fstat(fd, &status), 0);
		assert_int_equal(table.shards[i].image_ino, status.st_ino);
		bytes = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
		assert_int_equal(hash_bytes(bytes, FILE_BYTES), table.sums[i]);
		assert_int_equal(((const uint8_t *)bytes)[1000], scratch_byte(1000));
		assert_int_equal(munmap((void *)(uintptr_t)bytes, FILE_BYTES), 0);
		(void)close(fd);
	}
	assert_int_equal(munmap(memory, table.header->table_size), 0);
}

static void the_last_fill_brings_the_table_of_all(void **state)
{
	struct tensor_map *map = read_header();
	struct load_result *results[N_FILES];
	const struct load_result *last;

	(void)state;
	assert_int_equal(tensor_map_n_shards(map), N_FILES);
	submit_fills(map);
	last = take_fills(results);
	assert_non_null(last);
	assert_int_equal(last->n_sums, N_FILES);
	assert_int_equal(last->checksum, hash_sums(last->sums, N_FILES));
	check_table(last, results);
	free_all(results);
	(void)tensor_map_free(map);
}

/* fault: F33 */
static void one_file_that_cannot_be_read_fails_alone(void **state)
{
	struct tensor_map *map = read_header();
	struct load_result *results[N_FILES];
	uint32_t n_failed = 0;

	(void)state;
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EIO}));
	submit_fills(map);
	assert_null(take_fills(results));
	for (uint32_t i = 0; i < N_FILES; i++) {
		const struct err *err = &results[i]->err;

		if (err->code != 0) {
			n_failed++;
			assert_int_equal(err->code, WIRE_IO);
			assert_true(err->text[0] == 'f' && err->text[1] == (char)('0' + i));
		}
		assert_true((err->code == 0) == (results[i]->extent != NULL));
	}
	assert_int_equal(n_failed, 1);
	free_all(results);
	(void)tensor_map_free(map);
}

static void a_cancelled_job_answers_for_fills_that_never_began(void **state)
{
	struct tensor_map *map = read_header();
	struct load_result *results[N_FILES];

	(void)state;
	/* Each that begins waits, else a second one would end and a third begin. */
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 20000, .is_forever = true}));
	submit_fills(map);
	loader_cancel(fixture.loader, JOB);
	sys_fault_clear(); /* the read goes on */
	assert_null(take_fills(results));
	for (uint32_t i = 2; i < N_FILES; i++) {
		assert_int_equal(results[i]->err.code, WIRE_CANCELLED);
	}
	free_all(results);
	(void)tensor_map_free(map);
}

static void a_file_that_changes_is_named(void **state)
{
	struct tensor_map *map = read_header();
	struct load_result *results[N_FILES];

	(void)state;
	scratch_fill(fixture.fds[4], FILE_BYTES, 10);
	submit_fills(map);
	assert_null(take_fills(results));
	assert_int_equal(results[3]->err.code, 0);
	assert_int_equal(results[4]->err.code, WIRE_CHANGED_WHILE_READING);
	assert_non_null(strstr(results[4]->err.text, "f4: the file changed"));
	free_all(results);
	(void)tensor_map_free(map);
}

static void only_two_fills_of_a_job_run_at_once(void **state)
{
	struct tensor_map *map = read_header();
	struct load_result *results[N_FILES];

	(void)state;
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 20, .is_forever = true}));
	submit_fills(map);
	scratch_sleep_ms(50);
	assert_true(scratch_count_threads() <=
		    fixture.n_threads + 3 + 2); /* and the loader's own */
	assert_non_null(take_fills(results));
	free_all(results);
	(void)tensor_map_free(map);
}

static void what_does_not_fit_together_is_refused_by_name(void **state)
{
	uint8_t byte = '}';

	(void)state;
	use_index("{\"weight_map\":{\"t.0\":\"f0\"}}");
	expect_refusal(WIRE_BAD_FILE, "index index: no tensor of it is in f1");
	use_index("no JSON");
	expect_refusal(WIRE_BAD_FILE, "index index: byte 0: '{' is missing");
	assert_int_equal(ftruncate(fixture.index_fd, WEIGHT_MAP_MAX_SIZE + 1), 0);
	expect_refusal(WIRE_TOO_LARGE, "index index: it has 67108865 bytes");
	scratch_write(fixture.fds[2], &byte, 1, 8);
	expect_refusal(WIRE_BAD_FILE, "f2: ");
}

static struct load_result *recheck(const uint64_t *sums, uint32_t n_sums)
{
	loader_recheck(fixture.loader, JOB, fixture.file, sums, n_sums);
	return next_final();
}

static void all_files_are_compared_with_their_sums(void **state)
{
	struct tensor_map *map = read_header();
	struct load_result *results[N_FILES];
	struct load_result *last;
	struct load_result *checked;
	uint8_t byte = 1;

	(void)state;
	submit_fills(map);
	last = take_fills(results);
	checked = recheck(last->sums, last->n_sums);
	assert_true(checked->err.code == 0 && checked->is_equal);
	(void)load_result_free(checked);
	checked = recheck(last->sums, last->n_sums - 1);
	assert_true(checked->err.code == 0 && !checked->is_equal);
	(void)load_result_free(checked);
	scratch_write(fixture.fds[4], &byte, 1, FILE_BYTES - 1);
	checked = recheck(last->sums, last->n_sums);
	assert_true(checked->err.code == 0 && !checked->is_equal);
	(void)load_result_free(checked);
	free_all(results);
	(void)tensor_map_free(map);
}

/* fault: M11 */
static void any_failing_call_leaves_nothing(void **state)
{
	static const char *const calls[] = {"malloc", "memfd_create", "pthread_create", "statx",
					    "fstat",  "mmap",         "pread"};

	(void)state;
	for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
		bool is_struck = true;

		for (uint64_t nth = 1; is_struck; nth += 3) {
			struct tensor_map *map = read_header();
			struct load_result *results[N_FILES];
			const struct load_result *last;
			bool is_good = true;

			assert_true(nth < 400);
			begin_images(map);
			assert_true(sys_fault_set(calls[i],
						  (struct sys_fault){.nth = nth, .error = EMFILE}));
			submit_begun();
			last = take_fills(results);
			is_struck = sys_fault_n_hits(calls[i]) > 0;
			sys_fault_clear();
			for (uint32_t j = 0; j < N_FILES; j++) {
				is_good = is_good && results[j]->err.code == 0;
			}
			assert_true(is_good == (last != NULL));
			free_all(results);
			(void)tensor_map_free(map);
		}
	}
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(files_are_one_source_with_one_key),
		CASE(the_last_fill_brings_the_table_of_all),
		CASE(one_file_that_cannot_be_read_fails_alone),
		CASE(a_cancelled_job_answers_for_fills_that_never_began),
		CASE(a_file_that_changes_is_named),
		CASE(only_two_fills_of_a_job_run_at_once),
		CASE(what_does_not_fit_together_is_refused_by_name),
		CASE(all_files_are_compared_with_their_sums),
		CASE(any_failing_call_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
