/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills of host copies: the image of a whole file, or the file itself. Images of which only parts
 * are filled are in work_sparse.c, segments on other devices in work_device.c. See job.h.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/load/hash.h"
#include "daemon/load/image_set.h"
#include "daemon/load/job.h"
#include "daemon/load/reader.h"
#include "proto/gen/wire_code.h"

struct reader work_reader(const struct work *work, struct job *job, const struct file *file,
			  uint64_t bytes)
{
	return (struct reader){
		.file = file,
		.bytes = bytes,
		.n_threads = work->options->n_threads,
		.direct_io = work->options->direct_io,
		.group = work->group,
		.progress = &job->progress,
	};
}

int work_name_file(const struct file *file, int code, struct err *err)
{
	if (code < 0 && file->name != NULL) {
		(void)err_wrap(err, "%s", file->name);
	}
	return code;
}

int work_check_key(const struct file *file, const struct file_key *key, struct err *err)
{
	struct file_key now;
	int code = file_read_key(file, &now, err);

	if (code == 0 && !file_key_is_equal(&now, key)) {
		return now.size == key->size
			       ? err_set(err, WIRE_CHANGED_WHILE_READING,
					 "the file changed while it was read: it was written or "
					 "touched")
			       : err_set(err, WIRE_CHANGED_WHILE_READING,
					 "the file changed while it was read: %llu bytes before, "
					 "%llu now",
					 (unsigned long long)key->size,
					 (unsigned long long)now.size);
	}
	return code;
}

void work_lock(struct extent *extent, char *ret_notice)
{
	struct err err = {0};

	if (device_lock(extent, &err) < 0) {
		(void)snprintf(ret_notice, DEVICE_NOTICE_SIZE, "%.*s", DEVICE_NOTICE_SIZE - 1,
			       err.text);
	}
}

/* Tell the others of the same model; with the last one may come the table. */
static int join_images(struct job *job, struct load_result *ret)
{
	AUTO_CLOSE int image_fd = -1;
	int code = device_export(ret->extent, &image_fd, &ret->err);

	return code < 0 ? code
			: image_set_add(job->images, job->index, job->file, image_fd, ret,
					&ret->err);
}

int work_seal_image(const struct work *work, struct job *job, struct load_result *ret)
{
	struct device_pages pages;
	int code = device_seal(ret->extent, &ret->err);

	device_pages(ret->extent, &pages);
	ret->page_bytes = pages.page_bytes;
	ret->huge_bytes = pages.huge_bytes;
	memcpy(ret->notice, pages.notice, sizeof ret->notice);
	if (code == 0 && work->options->lock) {
		work_lock(ret->extent, ret->notice);
	}
	return code < 0 ? code : join_images(job, ret);
}

static int fill_extent(const struct work *work, struct job *job, struct load_result *ret)
{
	struct reader reader = work_reader(work, job, job->file, job->key.size);
	int code;

	reader.extent = ret->extent;
	reader.sums = ret->sums;
	code = reader_run(&reader, &ret->err);
	if (code == 0) {
		code = work_check_key(job->file, &job->key, &ret->err);
	}
	return code < 0 ? code : work_seal_image(work, job, ret);
}

/* The file itself, once all of it is in the page cache. */
static int fill_from_cache(const struct work *work, struct job *job, struct load_result *ret)
{
	struct reader reader = work_reader(work, job, job->file, job->key.size);
	struct device_pages pages;
	int code =
		device_borrow(work->device, job->file->fd, job->key.size, &ret->extent, &ret->err);

	reader.into_cache = true;
	reader.direct_io = false;
	if (code == 0) {
		code = reader_run(&reader, &ret->err);
	}
	if (code < 0) {
		return code;
	}
	if (job->into == FILL_LOCKED) {
		work_lock(ret->extent, ret->notice);
	}
	device_pages(ret->extent, &pages);
	ret->page_bytes = pages.page_bytes;
	code = work_check_key(job->file, &job->key, &ret->err);
	return code < 0 ? code : join_images(job, ret);
}

/* Copied, and a sum made of each 64 MiB on the way. */
static int fill_image(const struct work *work, struct job *job, struct load_result *ret)
{
	const bool is_sparse = image_set_places(job->images) != NULL;
	char name[128];
	const struct device_alloc request = {.name = name,
					     .bytes = job->key.size,
					     .hugepages = work->options->hugepages,
					     .is_sparse = is_sparse};
	int code;

	(void)snprintf(name, sizeof name, "distorch:%.100s",
		       job->file->name == NULL ? image_set_name(job->images) : job->file->name);
	ret->n_sums = hash_count_sums(job->key.size);
	ret->sums = sys_calloc((size_t)ret->n_sums + 1, sizeof *ret->sums);
	if (ret->sums == NULL) {
		return err_set(&ret->err, WIRE_NO_MEMORY, "no memory for %u sums", ret->n_sums);
	}
	code = device_alloc(work->device, &request, &ret->extent, &ret->err);
	if (code < 0) {
		return code;
	}
	return is_sparse ? work_fill_sparse(work, job, ret) : fill_extent(work, job, ret);
}

static int fill_file(const struct work *work, struct job *job, struct load_result *ret)
{
	const bool may_be_gone = job->into == FILL_IMAGE && image_set_places(job->images) != NULL;
	int code = may_be_gone ? 0 : work_check_key(job->file, &job->key, &ret->err);

	ret->key = job->key;
	if (code == 0) {
		code = job->into == FILL_IMAGE ? fill_image(work, job, ret)
					       : fill_from_cache(work, job, ret);
	}
	return work_name_file(job->file, code, &ret->err);
}

/* Free before the result says so. */
static void give_back(struct load_result *ret)
{
	(void)device_release(ret->extent, NULL); /* refused, its device is lost */
	ret->extent = NULL;
	free(ret->sums);
	ret->sums = NULL;
	ret->n_sums = 0;
}

void work_fill(const struct work *work, struct job *job, struct load_result *ret)
{
	int code;

	if (job_is_stopped(job)) { /* while it waited for others of its job */
		code = err_set(&ret->err, WIRE_CANCELLED, "the read was cancelled");
	} else if (job->into == FILL_DEVICE) {
		code = work_fill_device(work, job, ret);
	} else {
		code = fill_file(work, job, ret);
	}
	ret->bytes = __atomic_load_n(&job->progress.bytes, __ATOMIC_RELAXED);
	if (code < 0) {
		give_back(ret);
	}
}

void work_drop(const struct work *work, struct job *job, struct load_result *ret)
{
	(void)work;
	(void)device_release(job->extent, &ret->err); /* refused: the error says so */
}

void work_make_table(const struct work *work, struct job *job, struct load_result *ret)
{
	(void)work;
	if (image_set_finish(job->images, job->file, job->keys, ret, &ret->err) < 0) {
		free(ret->sums);
		ret->sums = NULL;
		ret->n_sums = 0;
	}
}
