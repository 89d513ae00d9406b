/* SPDX-License-Identifier: Apache-2.0 */
/* The files of the model, and what has to lie where. See spread_model.h. */
#include "tests/unit/daemon/load/spread_model.h"

#include "base/err.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/device/device.h"
#include "daemon/format/format.h"
#include "daemon/load/file.h"

struct spread_tensor {
	uint32_t file;
	const char *name;
	uint64_t size;
};

static const struct spread_tensor spread_tensors[SPREAD_TENSORS] = {
	{0, "b.0.w", 300000},
	{0, "top", 5000},
	{0, "b.1.w", 3 * SPREAD_MIB + 100},
	{0, "b.0.x", 77},
	{0, "b.1.x", 0},
	{0, "b.2.w", 1},
	{0, "b.3.w", 7 * SPREAD_MIB + 1},
	{1, "b.0.y", 9 * SPREAD_MIB + 3},
	{1, "b.2.x", 2 * SPREAD_MIB + SPREAD_MIB / 2},
	{1, "tail", 12345},
	{1, "b.3.x", 600},
};
/* No two files have the same byte in the same place. */
static uint8_t spread_byte(uint32_t file, uint64_t offset)
{
	return scratch_byte(offset + file * 1000003ULL);
}

void spread_fill(int fd, uint32_t file, uint64_t begin, uint64_t size)
{
	static uint8_t buffer[1 << 16];

	while (size > 0) {
		const size_t part = size < sizeof buffer ? (size_t)size : sizeof buffer;

		for (size_t i = 0; i < part; i++) {
			buffer[i] = spread_byte(file, begin + i);
		}
		scratch_write(fd, buffer, part, begin);
		begin += part;
		size -= part;
	}
}

static uint64_t spread_write(int fd, uint32_t file)
{
	char header[SPREAD_HEADER + 1] = "{";
	uint8_t prefix[8] = {SPREAD_HEADER & 0xff, SPREAD_HEADER >> 8};
	size_t used = 1;
	uint64_t at = 0;

	for (size_t i = 0; i < SPREAD_TENSORS; i++) {
		const struct spread_tensor *tensor = &spread_tensors[i];

		if (tensor->file == file) {
			used += (size_t)snprintf(
				header + used, sizeof header - used,
				"%s\"%s\":{\"dtype\":\"U8\",\"shape\":[%llu],\"data_offsets\":[%llu,"
				"%llu]}",
				used == 1 ? "" : ",", tensor->name,
				(unsigned long long)tensor->size, (unsigned long long)at,
				(unsigned long long)(at + tensor->size));
			at += tensor->size;
		}
	}
	header[used++] = '}';
	assert_true(used <= SPREAD_HEADER);
	memset(header + used, ' ', SPREAD_HEADER - used);
	scratch_write(fd, prefix, sizeof prefix, 0);
	scratch_write(fd, header, SPREAD_HEADER, sizeof prefix);
	spread_fill(fd, file, sizeof prefix + SPREAD_HEADER, at);
	return sizeof prefix + SPREAD_HEADER + at;
}

static int spread_write_index(void)
{
	char text[SPREAD_HEADER] = "{\"weight_map\":{";
	size_t used = strlen(text);
	int fd = scratch_open();

	for (size_t i = 0; i < SPREAD_TENSORS; i++) {
		used += (size_t)snprintf(text + used, sizeof text - used, "%s\"%s\":\"f%u\"",
					 i == 0 ? "" : ",", spread_tensors[i].name,
					 spread_tensors[i].file);
	}
	used += (size_t)snprintf(text + used, sizeof text - used, "}}");
	assert_true(used < sizeof text);
	scratch_write(fd, text, used, 0);
	return fd;
}

static struct file *spread_take(int fd, const char *name)
{
	struct file *file = NULL;
	const int direct_fd = scratch_reopen(fd, O_RDONLY | O_DIRECT);

	assert_int_equal(file_new(scratch_reopen(fd, O_RDONLY), direct_fd, &file, NULL), 0);
	assert_true(file_set_name(file, name));
	return file;
}

static struct file *spread_join(const struct spread_model *model)
{
	struct file *const files[SPREAD_FILES] = {spread_take(model->fds[0], "f0"),
						  spread_take(model->fds[1], "f1")};
	struct file *file = NULL;

	assert_int_equal(file_join(1000, spread_take(model->index_fd, "index"), files, SPREAD_FILES,
				   &file, NULL),
			 0);
	return file;
}

void spread_init(struct spread_model *model)
{
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		model->fds[i] = scratch_open();
		model->sizes[i] = spread_write(model->fds[i], i);
		assert_int_equal(fsync(model->fds[i]), 0);
		model->bytes[i] = malloc(model->sizes[i]);
		assert_non_null(model->bytes[i]);
		assert_int_equal(pread(model->fds[i], model->bytes[i], model->sizes[i], 0),
				 (ssize_t)model->sizes[i]);
	}
	model->index_fd = spread_write_index();
	model->file = spread_join(model);
}

void spread_fini(struct spread_model *model)
{
	(void)file_unref(model->file);
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		(void)close(model->fds[i]);
		free(model->bytes[i]);
	}
	(void)close(model->index_fd);
}

/* Cold: the next read goes to the disk, where there is one. */
void spread_forget(const struct spread_model *model)
{
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		(void)posix_fadvise(model->fds[i], 0, 0, POSIX_FADV_DONTNEED);
	}
}

/* Which block a tensor of that name is in. */
uint32_t spread_block(const struct tensor_map *map, const char *name)
{
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		if (map->tensors[i].name_size == strlen(name) &&
		    memcmp(map->tensors[i].name, name, strlen(name)) == 0) {
			return map->tensors[i].block;
		}
	}
	fail_msg("no tensor %s", name);
	return 0;
}

/* ---- what has to lie where ---- */

uint8_t *spread_read(const struct extent *extent)
{
	uint8_t *bytes = malloc(extent->bytes);
	struct err err = {0};

	assert_non_null(bytes);
	if (device_read(extent, 0, bytes, extent->bytes, &err) != 0) {
		fail_msg("%s", err.text);
	}
	return bytes;
}

/* Every byte of a block's segment, what lies between its tensors too. */
void spread_check_segment(const struct extent *extent, const struct spread_model *model,
			  const struct tensor_map *map, uint32_t block)
{
	uint8_t *bytes = spread_read(extent);
	uint64_t at = 0;

	for (uint32_t i = 0; i < map->n_tensors; i++) {
		const struct tensor *tensor = &map->tensors[i];

		if (tensor->block != block) {
			continue;
		}
		for (; at % 256 != 0; at++) {
			assert_int_equal(bytes[at], 0);
		}
		if (memcmp(bytes + at, model->bytes[tensor->shard] + tensor->offset,
			   tensor->size) != 0) {
			fail_msg("block %u has not the bytes of tensor %u", block, i);
		}
		at += tensor->size;
	}
	assert_int_equal(extent->bytes, at);
	free(bytes);
}

static bool spread_is_zero(const uint8_t *bytes, uint64_t size)
{
	return size == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, size - 1) == 0);
}

/* Every byte of an image: those of blocks on the host, the header, and zeros. */
void spread_check_image(const struct extent *extent, const struct spread_model *model,
			const struct tensor_map *map, const uint8_t *places, uint32_t file)
{
	uint8_t *bytes = spread_read(extent);

	assert_int_equal(extent->bytes, model->sizes[file]);
	assert_memory_equal(bytes, model->bytes[file], 8 + SPREAD_HEADER);
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		const struct tensor *tensor = &map->tensors[i];
		const uint64_t at = tensor->offset;

		if (tensor->shard != file) {
			continue;
		}
		if (places[tensor->block] == 0
			    ? memcmp(bytes + at, model->bytes[file] + at, tensor->size) != 0
			    : !spread_is_zero(bytes + at, tensor->size)) {
			fail_msg("file %u has not what it should have of tensor %u", file, i);
		}
	}
	free(bytes);
}

/* Memory behind an image, to the byte. */
uint64_t spread_taken(const struct extent *extent)
{
	struct stat status;
	int fd = -1;

	assert_int_equal(device_export(extent, &fd, NULL), 0);
	assert_int_equal(fstat(fd, &status), 0);
	(void)close(fd);
	return (uint64_t)status.st_blocks * 512;
}
