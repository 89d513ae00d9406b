/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills of images of which only parts lie on the host: from an earlier image what that has, the
 * rest from the file; where the file is another one by now, from segments on other devices. What
 * is copied comes first, then the reader goes over all of it, for it makes the sums. See job.h.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdlib.h>

#include "daemon/format/segment_layout.h"
#include "daemon/load/image_set.h"
#include "daemon/load/job.h"
#include "daemon/load/piece.h"
#include "daemon/load/transfer.h"
#include "proto/gen/wire_code.h"

#define PREPARED_STEP (64ULL << 20) /* between two looks at whether to go on; whole 2 MiB pages */

enum supply { FROM_FILE, FROM_IMAGE, FROM_BLOCK };

/* What is copied and what is read. */
struct plan {
	const struct job *job;
	const struct image_set *set;
	const struct tensor_map *map;
	bool can_read;  /* the file is what its header was read from */
	bool must_read; /* ... and has to be */
	struct read_part *parts;
	uint32_t n_parts;
	struct piece_list from_image;
};

/* ---- the plan ---- */

static enum supply supply_of_block(const struct plan *plan, uint32_t block)
{
	if (image_set_earlier_image(plan->set, plan->job->index, block) != NULL) {
		return FROM_IMAGE;
	}
	return !plan->can_read && image_set_earlier_block(plan->set, block) != NULL ? FROM_BLOCK
										    : FROM_FILE;
}

static void add_run(struct plan *plan, uint64_t begin, uint64_t end, enum supply supply)
{
	const struct piece piece = {.from = begin, .to = begin, .bytes = end - begin};
	const bool is_filled = supply != FROM_FILE;
	struct read_part *last = plan->n_parts == 0 ? NULL : &plan->parts[plan->n_parts - 1];

	REQUIRE(plan->parts != NULL);
	if (begin == end) {
		return;
	}
	if (supply == FROM_IMAGE) {
		piece_list_add(&plan->from_image, &piece);
	}
	plan->must_read = plan->must_read || supply == FROM_FILE;
	if (last != NULL && last->is_filled == is_filled && last->offset + last->bytes == begin) {
		last->bytes += end - begin;
	} else {
		plan->parts[plan->n_parts++] = (struct read_part){.offset = begin,
								  .bytes = end - begin,
								  .is_filled = is_filled};
	}
}

/* What lies between two tensors is read with one that is read, else it is of the second. Returns
 * the first tensor behind the part. */
static uint32_t add_part(struct plan *plan, const struct file_part *part, uint32_t tensor)
{
	const struct tensor_map *map = plan->map;
	const uint64_t end = part->offset + part->bytes;
	/* An image has the header whatever blocks it has. */
	enum supply before = image_set_earlier_header(plan->set, plan->job->index) != NULL
				     ? FROM_IMAGE
				     : FROM_FILE;
	uint64_t at = part->offset;

	for (; tensor < map->n_tensors && map->tensors[tensor].shard == plan->job->index;
	     tensor++) {
		const struct tensor *one = &map->tensors[tensor];

		if (one->offset >= end) {
			break;
		}
		if (one->size == 0 || one->offset < at) { /* of none, or before the part */
			continue;
		}
		if (at == 0 || before == FROM_FILE) {
			add_run(plan, at, one->offset, before);
			at = one->offset;
		}
		before = supply_of_block(plan, one->block);
		add_run(plan, at, one->offset + one->size, before);
		at = one->offset + one->size;
	}
	add_run(plan, at, end, before);
	return tensor;
}

static uint32_t find_first_tensor(const struct tensor_map *map, uint32_t file)
{
	uint32_t first = 0;

	while (first < map->n_tensors && map->tensors[first].shard < file) {
		first++;
	}
	return first;
}

static int make_plan(struct plan *plan, struct err *err)
{
	const uint32_t file = plan->job->index;
	const uint8_t *places = image_set_places(plan->set);
	uint32_t tensor = find_first_tensor(plan->map, file);
	/* A run a tensor, one before each and one behind all. */
	const uint32_t n_runs = 2 * (plan->map->n_tensors - tensor) + 2;
	struct part_walk walk = {.file = file};
	struct file_part part;

	plan->parts = sys_calloc(n_runs, sizeof *plan->parts);
	if (plan->parts == NULL || !piece_list_init(&plan->from_image, n_runs)) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the parts of an image");
	}
	while (file_part_next(plan->map, places, &walk, &part)) {
		tensor = add_part(plan, &part, tensor);
	}
	return 0;
}

/* ---- copying ---- */

/* All memory at once, where not all of it is read; neighbouring parts may share a 2 MiB page. */
static void prepare(const struct plan *plan, struct extent *extent)
{
	struct part_walk walk = {.file = plan->job->index};
	struct file_part part;

	while (file_part_next(plan->map, image_set_places(plan->set), &walk, &part)) {
		const uint64_t end = part.offset + part.bytes;
		uint64_t next;

		for (uint64_t at = part.offset; at < end && !job_is_stopped(plan->job); at = next) {
			next = (at / PREPARED_STEP + 1) * PREPARED_STEP;
			next = next < end ? next : end;
			device_prepare(extent, at, next - at);
		}
	}
}

static struct transfer transfer_of(const struct work *work, struct job *job, struct extent *extent,
				   const struct piece_list *list)
{
	return (struct transfer){.list = list,
				 .extent = extent,
				 .n_threads = work->options->n_threads,
				 .group = work->group,
				 .pool = work->pool,
				 .progress = &job->progress};
}

static int copy_from_image(const struct work *work, struct job *job, const struct plan *plan,
			   struct load_result *ret)
{
	struct transfer transfer = transfer_of(work, job, ret->extent, &plan->from_image);
	const struct extent *image = image_set_earlier_header(plan->set, job->index);
	AUTO_CLOSE int fd = -1;
	int code;

	if (plan->from_image.n_pieces == 0) {
		return 0;
	}
	code = device_export(image, &fd, &ret->err);
	transfer.image_fds = &fd;
	return code < 0 ? code : transfer_run(&transfer, NULL, &ret->err);
}

/* The pieces of a block that are of this file, from its segment to where they are in the file. */
static void turn_round(struct piece_list *list, uint32_t file)
{
	uint32_t n_kept = 0;

	for (uint32_t i = 0; i < list->n_pieces; i++) {
		const struct piece piece = list->pieces[i];

		if (piece.file == file) {
			list->pieces[n_kept++] = (struct piece){.from = piece.to,
								.to = piece.from,
								.bytes = piece.bytes};
		}
	}
	list->n_pieces = n_kept;
}

static int copy_from_block(const struct work *work, struct job *job, const struct plan *plan,
			   uint32_t block, struct load_result *ret)
{
	struct piece_list list = {0};
	struct transfer transfer = transfer_of(work, job, ret->extent, &list);
	int code = piece_list_of_block(plan->map, block, &list, &ret->err);

	if (code < 0) {
		return code;
	}
	turn_round(&list, job->index);
	transfer.from = image_set_earlier_block(plan->set, block);
	code = transfer_run(&transfer, NULL, &ret->err);
	piece_list_fini(&list);
	return code;
}

static int copy_from_blocks(const struct work *work, struct job *job, const struct plan *plan,
			    struct load_result *ret)
{
	const uint8_t *places = image_set_places(plan->set);
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < plan->map->n_blocks; i++) {
		if (places[i] == 0 && supply_of_block(plan, i) == FROM_BLOCK) {
			code = copy_from_block(work, job, plan, i, ret);
		}
	}
	return code;
}

/* ---- all of it ---- */

static int copy_and_read(const struct work *work, struct job *job, const struct plan *plan,
			 struct load_result *ret)
{
	struct reader reader = work_reader(work, job, job->file, job->key.size);
	int code;

	reader.is_prepared = plan->from_image.n_pieces > 0 || !plan->can_read;
	if (reader.is_prepared) {
		prepare(plan, ret->extent);
	}
	code = copy_from_image(work, job, plan, ret);
	if (code == 0) {
		code = copy_from_blocks(work, job, plan, ret);
	}
	if (code < 0) {
		return code;
	}
	reader.extent = ret->extent;
	reader.sums = ret->sums;
	reader.parts = plan->parts;
	reader.n_parts = plan->n_parts;
	code = reader_run(&reader, &ret->err);
	if (code == 0 && plan->must_read) {
		code = work_check_key(job->file, &job->key, &ret->err);
	}
	return code < 0 ? code : work_seal_image(work, job, ret);
}

int work_fill_sparse(const struct work *work, struct job *job, struct load_result *ret)
{
	struct err change = {0};
	struct plan plan = {.job = job,
			    .set = job->images,
			    .map = image_set_map(job->images),
			    .can_read = work_check_key(job->file, &job->key, &change) == 0};
	int code = make_plan(&plan, &ret->err);

	if (code == 0 && plan.must_read && !plan.can_read) {
		ret->err = change;
		code = -change.code;
	}
	if (code == 0) {
		code = copy_and_read(work, job, &plan, ret);
	}
	piece_list_fini(&plan.from_image);
	free(plan.parts);
	return code;
}
