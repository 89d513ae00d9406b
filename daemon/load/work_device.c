/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments on other devices than the host: filled from an image, from the segment of the same
 * block on another device, or from the file, whichever there is; and compared with image or file.
 * See job.h.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "daemon/format/segment_layout.h"
#include "daemon/load/image_set.h"
#include "daemon/load/job.h"
#include "daemon/load/piece.h"
#include "daemon/load/transfer.h"
#include "proto/gen/wire_code.h"
#include "proto/table.h"

#define MAX_LANES 2 /* threads a segment: one reads while the bytes of the other travel */

/* Where the bytes of one segment come from. */
struct supply {
	const struct work *work;
	struct job *job;
	struct piece_list list;
	uint32_t n_files;
	int *image_fds; /* of each file; -1: the file itself */
};

/* ---- files and images ---- */

static int supply_init(struct supply *supply, uint32_t n_files, struct err *err)
{
	supply->n_files = n_files;
	supply->image_fds = sys_calloc((size_t)n_files + 1, sizeof *supply->image_fds);
	for (uint32_t i = 0; supply->image_fds != NULL && i < n_files; i++) {
		supply->image_fds[i] = -1;
	}
	return supply->image_fds == NULL
		       ? err_set(err, WIRE_NO_MEMORY, "no memory for %u files", n_files)
		       : 0;
}

static void supply_fini(struct supply *supply)
{
	for (uint32_t i = 0; supply->image_fds != NULL && i < supply->n_files; i++) {
		if (supply->image_fds[i] >= 0) {
			(void)close(supply->image_fds[i]); /* only read */
		}
	}
	free(supply->image_fds);
	piece_list_fini(&supply->list);
}

/* Does a piece come from the file itself? */
static bool is_from_file(const struct supply *supply, const struct piece *piece)
{
	return supply->image_fds[piece->file] < 0;
}

static bool needs_files(const struct supply *supply)
{
	for (uint32_t i = 0; i < supply->list.n_pieces; i++) {
		if (is_from_file(supply, &supply->list.pieces[i])) {
			return true;
		}
	}
	return false;
}

/* 'image' (may be NULL) has what the segment needs of the file. */
static int add_image(struct supply *supply, uint32_t file, const struct extent *image,
		     struct err *err)
{
	return image == NULL || supply->image_fds[file] >= 0
		       ? 0
		       : device_export(image, &supply->image_fds[file], err);
}

/* Are the files that are read what their headers were read from? */
static int check_files(const struct supply *supply, struct err *err)
{
	uint32_t checked = UINT32_MAX;

	for (uint32_t i = 0; i < supply->list.n_pieces; i++) {
		const struct piece *piece = &supply->list.pieces[i];
		const struct file *file = file_shard(supply->job->file, piece->file);
		int code;

		if (piece->file == checked || !is_from_file(supply, piece)) {
			continue;
		}
		checked = piece->file;
		code = work_check_key(file, &supply->job->keys[checked], err);
		if (code < 0) {
			return work_name_file(file, code, err);
		}
	}
	return 0;
}

static struct transfer transfer_of(const struct supply *supply, struct extent *extent)
{
	const struct loader_options *options = supply->work->options;

	return (struct transfer){.list = &supply->list,
				 .extent = extent,
				 .image_fds = supply->image_fds,
				 .file = supply->job->file,
				 .keys = supply->job->keys,
				 .direct_io = options->direct_io,
				 .n_threads = options->n_threads < MAX_LANES ? options->n_threads
									     : MAX_LANES,
				 .group = supply->work->group,
				 .pool = supply->work->pool,
				 .progress = &supply->job->progress};
}

/* ---- fills ---- */

static int fill_from_files(const struct supply *supply, struct extent *extent, struct err *err)
{
	const struct transfer transfer = transfer_of(supply, extent);
	int code = check_files(supply, err);

	if (code == 0) {
		code = transfer_run(&transfer, NULL, err);
	}
	return code < 0 ? code : check_files(supply, err);
}

/* May it be copied from there without the host between? */
static bool is_peer(const struct job *job, const struct device *from)
{
	bool is_there = from == job->device;

	for (uint32_t i = 0; i < job->n_peers; i++) {
		is_there = is_there || job->peers[i] == from;
	}
	return is_there;
}

/* Through memory of ours, window by window. */
static int copy_staged(const struct supply *supply, struct extent *to, const struct extent *from,
		       struct err *err)
{
	struct piece whole = {.bytes = to->bytes};
	const struct piece_list list = {.pieces = &whole, .n_pieces = 1};
	struct transfer transfer = transfer_of(supply, to);

	transfer.list = &list;
	transfer.from = from;
	return transfer_run(&transfer, NULL, err);
}

static int fill_from_block(const struct supply *supply, struct extent *to,
			   const struct extent *from, struct err *err)
{
	struct job *job = supply->job;

	if (is_peer(job, from->device)) {
		if (device_copy(to, from, NULL) == 0) {
			__atomic_store_n(&job->progress.bytes, to->bytes, __ATOMIC_RELAXED);
			return job_is_stopped(job)
				       ? err_set(err, WIRE_CANCELLED, "the fill was cancelled")
				       : 0;
		}
	}
	return copy_staged(supply, to, from, err);
}

static int fill_segment(const struct supply *supply, struct extent *extent, struct err *err)
{
	struct job *job = supply->job;
	const struct extent *block = image_set_earlier_block(job->images, job->index);

	if (block != NULL && block->bytes == extent->bytes && needs_files(supply)) {
		int code = fill_from_block(supply, extent, block, err);

		if (code == 0 || job_is_stopped(job)) {
			return code;
		}
		*err = (struct err){0}; /* the file may serve, or says why not */
		__atomic_store_n(&job->progress.bytes, 0, __ATOMIC_RELAXED);
	}
	return fill_from_files(supply, extent, err);
}

static int add_images(struct supply *supply, struct err *err)
{
	const struct job *job = supply->job;
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < supply->list.n_pieces; i++) {
		const uint32_t file = supply->list.pieces[i].file;

		code = add_image(supply, file,
				 image_set_earlier_image(job->images, file, job->index), err);
	}
	return code;
}

static int alloc_segment(struct job *job, struct load_result *ret)
{
	const struct tensor_map *map = image_set_map(job->images);
	const struct block *block = &map->blocks[job->index];
	const uint64_t bytes = block_segment_bytes(map, job->index);
	char name[128];
	const struct device_alloc request = {.name = name, .bytes = bytes};

	(void)snprintf(name, sizeof name, "distorch:%.60s/%.*s", image_set_name(job->images),
		       (int)(block->name_size < 40 ? block->name_size : 40), block->name);
	return device_alloc(job->device, &request, &ret->extent, &ret->err);
}

int work_fill_device(const struct work *work, struct job *job, struct load_result *ret)
{
	struct supply supply = {.work = work, .job = job};
	int code = supply_init(&supply, file_n_shards(job->file), &ret->err);

	if (code == 0) {
		code = piece_list_of_block(image_set_map(job->images), job->index, &supply.list,
					   &ret->err);
	}
	if (code == 0) {
		code = add_images(&supply, &ret->err);
	}
	if (code == 0) {
		code = alloc_segment(job, ret);
	}
	if (code == 0) {
		code = fill_segment(&supply, ret->extent, &ret->err);
	}
	if (code == 0) {
		code = device_seal(ret->extent, &ret->err);
	}
	supply_fini(&supply);
	return code;
}

/* ---- comparing ---- */

/* The table's view of the generation, mapped while a comparison is prepared. */
static int open_table(int fd, void **ret_memory, struct table *ret, struct err *err)
{
	struct stat status;
	void *memory;
	int code;

	if (sys_fstat(fd, &status) < 0) {
		return err_set(err, WIRE_INTERNAL, "the table cannot be looked at");
	}
	memory = sys_mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to map the table");
	}
	code = table_open(memory, (size_t)status.st_size, NULL, ret, err);
	if (code < 0) {
		(void)munmap(memory, (size_t)status.st_size);
		return code;
	}
	*ret_memory = memory;
	return 0;
}

/* What each file was when the generation was loaded. */
static int take_keys(struct job *job, const struct table *table, struct err *err)
{
	job->keys = sys_calloc(table->header->n_shards, sizeof *job->keys);
	if (job->keys == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u files",
			       table->header->n_shards);
	}
	for (uint32_t i = 0; i < table->header->n_shards; i++) {
		const struct table_shard *shard = &table->shards[i];

		job->keys[i] = (struct file_key){.dev = shard->dev,
						 .ino = shard->ino,
						 .size = shard->size,
						 .mtime_ns = shard->mtime_ns,
						 .ctime_ns = shard->ctime_ns};
	}
	return 0;
}

static int read_table(struct supply *supply, struct err *err)
{
	struct job *job = supply->job;
	struct table table;
	void *memory = NULL;
	int code = open_table(job->table_fd, &memory, &table, err);

	if (code < 0) {
		return code;
	}
	code = piece_list_of_table(&table, job->index, &supply->list, err);
	if (code == 0) {
		code = take_keys(job, &table, err);
	}
	if (code == 0) {
		code = supply_init(supply, table.header->n_shards, err);
	}
	for (uint32_t i = 0; code == 0 && i < supply->n_files && i < job->n_from; i++) {
		code = add_image(supply, i, job->from[i], err);
	}
	(void)munmap(memory, table.header->table_size);
	return code;
}

/*
 * Are the files that are read still those? One that was only renamed, linked or given other
 * rights has its bytes still; '*ret_is_touched' says that nobody knows for certain.
 */
static int find_files(const struct supply *supply, bool *ret_is_touched, struct err *err)
{
	struct job *job = supply->job;

	for (uint32_t i = 0; i < supply->list.n_pieces; i++) {
		const struct piece *piece = &supply->list.pieces[i];
		struct file_key *key = &job->keys[piece->file];
		struct file_key now;
		int code;

		if (!is_from_file(supply, piece)) {
			continue;
		}
		code = file_read_key(file_shard(job->file, piece->file), &now, err);
		if (code < 0) {
			return code;
		}
		*ret_is_touched = *ret_is_touched || now.ctime_ns != key->ctime_ns;
		key->ctime_ns = now.ctime_ns;
		if (!file_key_is_equal(&now, key)) {
			return -WIRE_STALE;
		}
	}
	return 0;
}

static int compare(const struct supply *supply, struct difference *ret, struct err *err)
{
	const struct job *job = supply->job;
	struct transfer transfer = transfer_of(supply, job->extent);
	bool is_touched = false;
	int code = 0;

	if (needs_files(supply)) {
		code = job->file == NULL || file_n_shards(job->file) != supply->n_files
			       ? -WIRE_STALE
			       : find_files(supply, &is_touched, err);
	}
	transfer.is_comparison = true;
	if (code == 0) {
		code = transfer_run(&transfer, ret, err);
	}
	if (code == 0 && ret->is_found && is_touched) {
		code = -WIRE_STALE;
	}
	if (code == 0 && needs_files(supply)) {
		code = find_files(supply, &is_touched, err);
	}
	return code != -WIRE_STALE
		       ? code
		       : err_set(err, WIRE_STALE,
				 "its file has changed since it was loaded, and no image has these "
				 "bytes: there is nothing to compare with");
}

void work_verify_device(const struct work *work, struct job *job, struct load_result *ret)
{
	struct supply supply = {.work = work, .job = job};
	struct difference difference = {0};
	int code = job_is_stopped(job) /* while it waited for its turn */
			   ? err_set(&ret->err, WIRE_CANCELLED, "the verification was cancelled")
			   : read_table(&supply, &ret->err);

	if (code == 0) {
		code = compare(&supply, &difference, &ret->err);
	}
	if (code == 0) {
		ret->is_equal = !difference.is_found;
		ret->differs_at = difference.offset;
		ret->differs_in = difference.file;
	}
	ret->bytes = __atomic_load_n(&job->progress.bytes, __ATOMIC_RELAXED);
	supply_fini(&supply);
}
