/* SPDX-License-Identifier: Apache-2.0 */
/* See spread.h. */
#include "tests/unit/daemon/load/spread.h"

#include "tests/support/worker.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include "daemon/device/remote.h"
#include "daemon/format/segment_layout.h"
#include "daemon/load/hash.h"
#include "proto/table.h"

struct spread spread;

/* ---- results ---- */

struct load_result *spread_next(void)
{
	struct pollfd readable = {.fd = mailbox_fd(spread.box), .events = POLLIN};

	for (;;) {
		struct mail *mail = mailbox_take(spread.box);
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

struct tensor_map *spread_read_header(bool by_tensor)
{
	const struct header_request request = {.job = JOB,
					       .file = spread.model.file,
					       .by_tensor = by_tensor};
	struct load_result *result;
	struct tensor_map *map;

	loader_read_header(spread.loader, &request);
	result = spread_next();
	if (result->err.code != 0) {
		fail_msg("%s", result->err.text);
	}
	map = result->map;
	result->map = NULL;
	(void)load_result_free(result);
	return map;
}

/* One of the other devices, anew where it was there before. */
void spread_attach(uint32_t index)
{
	const struct remote_options options = {.sims = spread.sims,
					       .n_sims = N_DEVICES - 1,
					       .limit_ns = 20000000000U};
	struct err err = {0};
	char name[16];
	int socket;

	(void)snprintf(name, sizeof name, "sim:%u", index - 1);
	socket = worker_start(name, &spread.workers[index]);
	if (spread.devices[index] == NULL) {
		assert_int_equal(device_open("remote", name, &spread.devices[index], &err), 0);
	}
	if (remote_attach(spread.devices[index], socket, &options, NULL, NULL, &err) != 0) {
		fail_msg("%s", err.text);
	}
}

static void spread_open_devices(void)
{
	static bool is_registered;
	char name[16];

	if (!is_registered) {
		device_register(&sim_device_ops);
		device_register(&remote_device_ops);
		is_registered = true;
	}
	for (uint32_t i = 1; i < N_DEVICES; i++) {
		(void)snprintf(name, sizeof name, "sim:%u", i - 1);
		if (strcmp(spread.subject, "host") == 0) {
			assert_int_equal(device_open("host", "cpu", &spread.devices[i], NULL), 0);
		} else if (strcmp(spread.subject, "sim") == 0) {
			sim_configure(spread.sims, N_DEVICES - 1);
			assert_int_equal(device_open("sim", name, &spread.devices[i], NULL), 0);
		} else {
			spread_attach(i);
		}
	}
}

void spread_let_fail(uint32_t index, const char *what)
{
	struct err err = {0};

	if (remote_test(spread.devices[index], what, &err) != 0) {
		fail_msg("%s", err.text);
	}
}

void spread_kill_worker(uint32_t index)
{
	assert_int_equal(kill(spread.workers[index], SIGKILL), 0);
	assert_int_equal(worker_wait(spread.workers[index]), -SIGKILL);
	spread.workers[index] = 0;
}

void spread_start_loader(uint64_t stall_ns)
{
	const struct loader_options options = {.direct_io = true,
					       .hugepages = true,
					       .stall_ns = stall_ns,
					       .progress_ns = 10000000U};

	spread.loader = loader_new(&options, spread.devices[0], spread.box, NULL);
	assert_non_null(spread.loader);
}

int spread_setup(void **state)
{
	memset(&spread, 0, sizeof spread);
	spread.subject = *state == NULL ? "host" : *state;
	for (uint32_t i = 0; i < N_DEVICES - 1; i++) {
		spread.sims[i] =
			(struct sim_config){.memory_bytes = SIM_BYTES,
					    .granularity = SIM_GRANULE,
					    .has_peers = strcmp(spread.subject, "peers") == 0};
	}
	spread.before = baseline_take();
	spread.n_threads = scratch_count_threads();
	assert_int_equal(device_open("host", "cpu", &spread.devices[0], NULL), 0);
	spread_open_devices();
	spread.box = mailbox_new(NULL);
	spread_start_loader(30000000000U);
	spread_init(&spread.model);
	spread.map = spread_read_header(false);
	assert_int_equal(spread.map->n_blocks, SPREAD_BLOCKS);
	return 0;
}

/* Nothing is left on a device when all of it can be had. */
static void spread_check_empty(struct device *device)
{
	const struct device_alloc all = {.name = "all", .bytes = SIM_BYTES};
	struct extent *extent = NULL;
	struct err err = {0};

	if (device_alloc(device, &all, &extent, &err) != 0 && err.code != WIRE_DEVICE_LOST) {
		fail_msg("%s: %s", device->name, err.text);
	}
	(void)device_release(extent, NULL);
}

int spread_teardown(void **state)
{
	struct mail *mail;

	(void)state;
	sys_fault_clear();
	assert_null(loader_free(spread.loader));
	while ((mail = mailbox_take(spread.box)) != NULL) {
		(void)load_result_free(load_result_from_mail(mail));
	}
	(void)mailbox_free(spread.box);
	for (uint32_t i = 0; i < N_DEVICES; i++) {
		if (i > 0 && strcmp(spread.subject, "host") != 0) {
			spread_check_empty(spread.devices[i]);
		}
		(void)device_close(spread.devices[i]);
		if (spread.workers[i] > 0) {
			(void)worker_wait(spread.workers[i]);
		}
	}
	(void)tensor_map_free(spread.map);
	spread_fini(&spread.model);
	for (int i = 0; scratch_count_threads() > spread.n_threads && i < 1000; i++) {
		scratch_sleep_ms(5);
	}
	baseline_check(&spread.before);
	return 0;
}

/* ---- generations ---- */

static bool generation_has_image(const struct generation *generation, uint32_t file)
{
	for (uint32_t i = 0; i < spread.map->n_tensors; i++) {
		const struct tensor *tensor = &spread.map->tensors[i];

		if (tensor->shard == file && tensor->size > 0 &&
		    generation->places[tensor->block] == 0) {
			return true;
		}
	}
	return false;
}

void generation_begin(struct generation *generation, struct image_set_request *request)
{
	request->map = spread.map;
	request->model_id = (const uint8_t *)"sixteen letters.";
	request->generation = 3;
	request->owner_uid = 1000;
	request->has_sums = true;
	request->name = "a model";
	request->places = generation->places;
	generation->set = image_set_new(request);
	assert_non_null(generation->set);
}

static void generation_submit_image(const struct generation *generation, uint32_t file)
{
	const struct fill_request request = {.job = JOB,
					     .segment = FILE_BASE + file,
					     .file = spread.model.file,
					     .images = generation->set,
					     .index = file};

	loader_fill(spread.loader, &request);
}

void generation_submit_block(const struct generation *generation, uint32_t block)
{
	const struct device *const peers[] = {spread.devices[1], spread.devices[2]};
	const struct fill_request request = {.job = JOB,
					     .segment = BLOCK_BASE + block,
					     .file = spread.model.file,
					     .images = generation->set,
					     .index = block,
					     .into = FILL_DEVICE,
					     .device = spread.devices[generation->places[block]],
					     .peers = peers,
					     .n_peers = strcmp(spread.subject, "peers") == 0
								? N_DEVICES - 1
								: 0};

	loader_fill(spread.loader, &request);
}

/* Everything that 'earlier' does not keep. Returns how many results there will be. */
uint32_t generation_submit(const struct generation *generation, const struct earlier_image *earlier)
{
	uint32_t n_fills = 0;

	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		if (generation_has_image(generation, i) &&
		    (earlier == NULL || !earlier[i].is_kept)) {
			generation_submit_image(generation, i);
			n_fills++;
		}
	}
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		if (generation->places[i] != 0) {
			generation_submit_block(generation, i);
			n_fills++;
		}
	}
	return n_fills;
}

/* Returns how many failed. */
uint32_t generation_collect(struct generation *generation, uint32_t n_fills)
{
	uint32_t n_failed = 0;

	for (uint32_t i = 0; i < n_fills; i++) {
		struct load_result *result = spread_next();
		struct load_result **place =
			result->segment >= BLOCK_BASE
				? &generation->blocks[result->segment - BLOCK_BASE]
				: &generation->images[result->segment - FILE_BASE];

		assert_int_equal(result->type, LOAD_FILLED);
		assert_null(*place);
		assert_int_equal(result->table_fd, -1);
		assert_true((result->err.code == 0) == (result->extent != NULL));
		n_failed += result->err.code != 0 ? 1 : 0;
		*place = result;
	}
	return n_failed;
}

void generation_make_table(struct generation *generation)
{
	const struct table_request request = {.job = JOB,
					      .file = spread.model.file,
					      .images = generation->set};

	loader_make_table(spread.loader, &request);
	generation->table = spread_next();
	assert_int_equal(generation->table->type, LOAD_TABLED);
	assert_int_equal(generation->table->job, JOB);
}

static void generation_assert_good(const struct generation *generation)
{
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		if (generation->images[i] != NULL && generation->images[i]->err.code != 0) {
			fail_msg("file %u: %s", i, generation->images[i]->err.text);
		}
	}
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		if (generation->blocks[i] != NULL && generation->blocks[i]->err.code != 0) {
			fail_msg("block %u: %s", i, generation->blocks[i]->err.text);
		}
	}
	if (generation->table->err.code != 0) {
		fail_msg("table: %s", generation->table->err.text);
	}
}

void generation_fill(struct generation *generation, struct image_set_request *request)
{
	generation_begin(generation, request);
	(void)generation_collect(generation,
				 generation_submit(generation, request->earlier_images));
	generation_make_table(generation);
	generation_assert_good(generation);
}

void generation_fini(struct generation *generation)
{
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		(void)load_result_free(generation->images[i]);
	}
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		(void)load_result_free(generation->blocks[i]);
	}
	(void)load_result_free(generation->table);
	(void)image_set_free(generation->set);
}

/* Of blocks by the names of one of their tensors: "b.0.w=1 top=2"; the others are on the host. */
void generation_place(struct generation *generation, const char *text)
{
	char copy[128];
	char *rest = copy;
	char *word;

	(void)snprintf(copy, sizeof copy, "%s", text);
	while ((word = strsep(&rest, " ")) != NULL && *word != '\0') {
		char *value = strchr(word, '=');

		assert_non_null(value);
		*value++ = '\0';
		generation->places[spread_block(spread.map, word)] = (uint8_t)(*value - '0');
	}
}

/* ---- judging ---- */

/* Of those that there are. */
void generation_check_copies(const struct generation *generation)
{
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		if (generation->images[i] != NULL && generation->images[i]->extent != NULL) {
			const struct extent *extent = generation->images[i]->extent;

			spread_check_image(extent, &spread.model, spread.map, generation->places,
					   i);
			assert_int_equal(spread_taken(extent),
					 image_set_host_bytes(spread.map, generation->places, i));
		}
	}
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		if (generation->blocks[i] != NULL && generation->blocks[i]->extent != NULL) {
			const struct load_result *result = generation->blocks[i];

			spread_check_segment(result->extent, &spread.model, spread.map, i);
			assert_ptr_equal(result->extent->device,
					 spread.devices[generation->places[i]]);
			assert_int_equal(result->extent->bytes, block_segment_bytes(spread.map, i));
		}
	}
}

/* The sums of an image are of what it has, holes as zeros. */
static void generation_check_sums(const struct table *table, uint32_t file,
				  const struct extent *extent)
{
	const struct table_shard *shard = &table->shards[file];
	uint8_t *bytes = spread_read(extent);

	assert_int_equal(shard->n_sums, hash_count_sums(extent->bytes));
	for (uint32_t i = 0; i < shard->n_sums; i++) {
		const uint64_t begin = i * HASH_RANGE_BYTES;
		const uint64_t left = extent->bytes - begin;

		assert_int_equal(table->sums[shard->first_sum + i],
				 hash_bytes(bytes + begin,
					    left < HASH_RANGE_BYTES ? left : HASH_RANGE_BYTES));
	}
	free(bytes);
}

static uint64_t spread_inode(const struct extent *extent)
{
	struct stat status;
	int fd = -1;

	assert_int_equal(device_export(extent, &fd, NULL), 0);
	assert_int_equal(fstat(fd, &status), 0);
	(void)close(fd);
	return status.st_ino;
}

static void generation_check_layout(const struct table *table)
{
	uint64_t offsets[SPREAD_TENSORS];
	uint64_t bytes[SPREAD_BLOCKS];

	assert_int_equal(table->header->n_tensors, SPREAD_TENSORS);
	assert_int_equal(table->header->n_blocks, SPREAD_BLOCKS);
	table_segment_offsets(table, offsets, bytes);
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		assert_int_equal(bytes[i], block_segment_bytes(spread.map, i));
	}
	for (uint32_t i = 0; i < SPREAD_TENSORS; i++) {
		assert_int_equal(offsets[i], table_segment_offset(table, i));
	}
}

/* 'images': of each file, or NULL where there is none. */
void generation_check_table(const struct generation *generation,
			    const struct extent *const images[SPREAD_FILES])
{
	const struct load_result *result = generation->table;
	struct table table;
	struct stat status;
	struct err err = {0};
	void *memory;

	assert_int_equal(fstat(result->table_fd, &status), 0);
	memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, result->table_fd, 0);
	assert_ptr_not_equal(memory, MAP_FAILED);
	assert_int_equal(table_open(memory, (size_t)status.st_size, hash_bytes, &table, &err), 0);
	assert_int_equal(table.header->n_shards, SPREAD_FILES);
	assert_int_equal(table.header->n_sums, result->n_sums);
	assert_int_equal(result->checksum, hash_sums(result->sums, result->n_sums));
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		const char *const names[] = {"a model/f0", "a model/f1"};

		assert_true(wire_str_is(table_shard_name(&table, i), names[i]));
		assert_int_equal(table.shards[i].size, spread.model.sizes[i]);
		assert_int_equal(table.shards[i].image_size, spread.model.sizes[i]);
		assert_int_equal(table.shards[i].ino,
				 file_shard(spread.model.file, i)->read_key.ino);
		if (images[i] == NULL) {
			assert_int_equal(table.shards[i].image_ino, 0);
			assert_int_equal(table.shards[i].n_sums, 0);
		} else {
			assert_int_equal(table.shards[i].image_ino, spread_inode(images[i]));
			generation_check_sums(&table, i, images[i]);
		}
	}
	generation_check_layout(&table);
	assert_int_equal(munmap(memory, (size_t)status.st_size), 0);
}

void generation_check(const struct generation *generation)
{
	const struct extent *images[SPREAD_FILES] = {NULL};

	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		images[i] = generation->images[i] == NULL ? NULL : generation->images[i]->extent;
	}
	generation_check_copies(generation);
	generation_check_table(generation, images);
}

void sources_take(const struct generation *earlier, bool is_kept, struct sources *ret)
{
	memset(ret, 0, sizeof *ret);
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		if (earlier->images[i] != NULL) {
			const uint32_t first = i == 0 || earlier->images[0] == NULL ? 0 : 1;

			ret->images[i] = (struct earlier_image){
				.extent = earlier->images[i]->extent,
				.is_kept = is_kept,
				.sums = &earlier->table->sums[first],
				.n_sums = 1,
			};
		}
	}
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		ret->blocks[i] = earlier->blocks[i] == NULL ? NULL : earlier->blocks[i]->extent;
	}
}

struct image_set_request sources_request(const struct generation *earlier,
					 const struct sources *sources)
{
	return (struct image_set_request){.earlier_images = sources->images,
					  .earlier_places = earlier->places,
					  .earlier_blocks = sources->blocks};
}

/* Nothing of the files is left that could be read. */
void spread_spoil(void)
{
	scratch_sleep_ms(20);
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		const uint64_t size = spread.model.sizes[i];

		spread_fill(spread.model.fds[i], 77, 8 + SPREAD_HEADER, size - 8 - SPREAD_HEADER);
	}
}
