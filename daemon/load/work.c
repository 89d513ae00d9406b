/* SPDX-License-Identifier: Apache-2.0 */
/* What jobs do, each on a thread of its own: header, fill, recheck, verify. See job.h. */
#include "base/cleanup.h"
#include "base/os/crash.h"
#include "base/os/sys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/load/hash.h"
#include "daemon/load/image_table.h"
#include "daemon/load/job.h"
#include "daemon/load/reader.h"
#include "proto/gen/wire_code.h"

#define VERIFY_PIECE (2ULL << 20) /* bytes hashed at once, out of the CPU's cache */

static bool is_stopped(const struct job *job)
{
	return __atomic_load_n(&job->progress.is_stopped, __ATOMIC_RELAXED);
}

static struct reader reader_of(const struct work *work, struct job *job, uint64_t bytes)
{
	return (struct reader){
		.file = job->file,
		.bytes = bytes,
		.n_threads = work->options->n_threads,
		.direct_io = work->options->direct_io,
		.group = work->group,
		.progress = &job->progress,
	};
}

/* ---- headers ---- */

/* The first 'size' bytes of the file. '*ret' is the caller's to free. */
static int read_first(const struct work *work, struct job *job, uint64_t size, uint8_t **ret,
		      struct err *err)
{
	AUTO_FREE uint8_t *bytes = sys_malloc(size == 0 ? 1 : size);
	struct reader reader = reader_of(work, job, size);
	int code;

	if (bytes == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a header of %llu bytes",
			       (unsigned long long)size);
	}
	reader.memory = bytes;
	reader.direct_io = false; /* little, and not at aligned places */
	reader.n_threads = 1;
	code = reader_run(&reader, err);
	if (code == 0) {
		*ret = steal_ptr(&bytes);
	}
	return code;
}

static int parse_header(const struct work *work, struct job *job, uint64_t file_size,
			struct tensor_map **ret, struct err *err)
{
	AUTO_FREE uint8_t *first = NULL;
	uint64_t wanted = file_size < FORMAT_PROBE_SIZE ? file_size : FORMAT_PROBE_SIZE;
	uint64_t probed;
	enum format format = FORMAT_AUTO;
	int code;

	do { /* each time more: a probe asks for more than it got only while it needs it */
		probed = wanted;
		free(first);
		first = NULL;
		code = read_first(work, job, probed, &first, err);
		if (code == 0) {
			code = format_probe(first, probed, file_size, job->wanted, &format, &wanted,
					    err);
		}
	} while (code == 0 && wanted > probed);
	return code < 0 ? code : format_parse(format, first, wanted, file_size, ret, err);
}

void work_header(const struct work *work, struct job *job, struct load_result *ret)
{
	struct file_key after;
	int code = file_check_filesystem(job->file, &ret->err);

	if (code == 0) {
		code = file_read_key(job->file, &ret->key, &ret->err);
	}
	if (code == 0) {
		code = parse_header(work, job, ret->key.size, &ret->map, &ret->err);
	}
	if (code == 0) {
		code = file_read_key(job->file, &after, &ret->err);
	}
	if (code == 0 && !file_key_is_equal(&ret->key, &after)) {
		(void)err_set(&ret->err, WIRE_CHANGED_WHILE_READING,
			      "the file changed while its header was read");
	}
	if (ret->err.code != 0) {
		ret->map = tensor_map_free(ret->map);
	}
}

/* ---- fills ---- */

static int check_key(const struct job *job, struct err *err)
{
	struct file_key now;
	int code = file_read_key(job->file, &now, err);

	if (code == 0 && !file_key_is_equal(&now, &job->key)) {
		return now.size == job->key.size
			       ? err_set(err, WIRE_CHANGED_WHILE_READING,
					 "the file changed while it was read: it was written or "
					 "touched")
			       : err_set(err, WIRE_CHANGED_WHILE_READING,
					 "the file changed while it was read: %llu bytes before, "
					 "%llu now",
					 (unsigned long long)job->key.size,
					 (unsigned long long)now.size);
	}
	return code;
}

static int make_table(struct job *job, struct load_result *ret)
{
	AUTO_CLOSE int image_fd = -1;
	struct stat image = {0};
	int code = device_export(ret->extent, &image_fd, &ret->err);
	const struct image_facts facts = {
		.model_id = job->model_id,
		.generation = job->generation,
		.owner_uid = job->owner_uid,
		.name = job->name,
		.key = &job->key,
		.image_fd = image_fd,
		.sums = ret->sums,
		.n_sums = ret->n_sums,
	};

	if (code == 0 && sys_fstat(image_fd, &image) < 0) {
		code = err_set_sys(&ret->err, WIRE_INTERNAL, errno, "fstat of an image: %s",
				   strerror(errno));
	}
	if (code < 0) {
		return code;
	}
	ret->image_dev = image.st_dev;
	ret->image_ino = image.st_ino;
	return image_table_make(job->map, &facts, &ret->table_fd, &ret->err);
}

/* As the configuration has it. A model that cannot be locked serves as well, and says so. */
static void lock_extent(const struct work *work, struct extent *extent, char *ret_notice)
{
	struct err err = {0};

	if (work->options->lock && device_lock(extent, &err) < 0) {
		(void)snprintf(ret_notice, DEVICE_NOTICE_SIZE, "%.*s", DEVICE_NOTICE_SIZE - 1,
			       err.text);
	}
}

static int fill_extent(const struct work *work, struct job *job, struct load_result *ret)
{
	struct reader reader = reader_of(work, job, job->key.size);
	struct device_pages pages;
	int code;

	reader.extent = ret->extent;
	reader.sums = ret->sums;
	code = reader_run(&reader, &ret->err);
	if (code == 0) {
		code = check_key(job, &ret->err);
	}
	if (code < 0) {
		return code;
	}
	code = device_seal(ret->extent, &ret->err);
	device_pages(ret->extent, &pages);
	ret->page_bytes = pages.page_bytes;
	ret->huge_bytes = pages.huge_bytes;
	memcpy(ret->notice, pages.notice, sizeof ret->notice);
	if (code == 0) {
		lock_extent(work, ret->extent, ret->notice);
		code = make_table(job, ret);
	}
	return code;
}

void work_fill(const struct work *work, struct job *job, struct load_result *ret)
{
	char name[128];
	const struct device_alloc request = {.name = name,
					     .bytes = job->key.size,
					     .hugepages = work->options->hugepages};
	int code = check_key(job, &ret->err);

	(void)snprintf(name, sizeof name, "distorch:%.100s", job->name);
	ret->key = job->key;
	ret->n_sums = hash_count_sums(job->key.size);
	ret->sums = sys_calloc((size_t)ret->n_sums + 1, sizeof *ret->sums);
	if (code == 0 && ret->sums == NULL) {
		code = err_set(&ret->err, WIRE_NO_MEMORY, "no memory for %u sums", ret->n_sums);
	}
	if (code == 0) {
		code = device_alloc(work->device, &request, &ret->extent, &ret->err);
	}
	if (code == 0) {
		code = fill_extent(work, job, ret);
	}
	ret->bytes = __atomic_load_n(&job->progress.bytes, __ATOMIC_RELAXED);
	if (code == 0) {
		ret->checksum = hash_sums(ret->sums, ret->n_sums);
		return;
	}
	/* Free before the result says so. The host never refuses; who does keeps the bytes. */
	(void)device_release(ret->extent, NULL);
	ret->extent = NULL;
	free(ret->sums);
	ret->sums = NULL;
	ret->n_sums = 0;
}

/* ---- comparing ---- */

static void compare_sums(const uint64_t *found, const struct job *job, struct load_result *ret)
{
	for (uint32_t i = 0; i < job->n_sums; i++) {
		if (found[i] != job->sums[i]) {
			ret->differs_at = i * HASH_RANGE_BYTES;
			return;
		}
	}
	ret->is_equal = true;
}

void work_recheck(const struct work *work, struct job *job, struct load_result *ret)
{
	AUTO_FREE uint64_t *found = NULL;
	struct file_key after;
	struct reader reader;
	int code = file_read_key(job->file, &ret->key, &ret->err);

	if (code < 0 || hash_count_sums(ret->key.size) != job->n_sums) {
		return; /* another length: not equal from the first byte on, and nothing to read */
	}
	found = sys_calloc((size_t)job->n_sums + 1, sizeof *found);
	if (found == NULL) {
		(void)err_set(&ret->err, WIRE_NO_MEMORY, "no memory for %u sums", job->n_sums);
		return;
	}
	reader = reader_of(work, job, ret->key.size);
	reader.sums = found;
	code = reader_run(&reader, &ret->err);
	ret->bytes = __atomic_load_n(&job->progress.bytes, __ATOMIC_RELAXED);
	if (code == 0) {
		code = file_read_key(job->file, &after, &ret->err);
	}
	if (code == 0 && !file_key_is_equal(&ret->key, &after)) {
		code = err_set(&ret->err, WIRE_CHANGED_WHILE_READING,
			       "the file changed while it was read again");
	}
	if (code == 0) {
		compare_sums(found, job, ret);
	}
}

/* One 64 MiB of the copy, piece by piece. */
static int hash_range(const struct job *job, uint64_t begin, uint8_t *piece,
		      struct hash_stream *hash, struct err *err)
{
	const uint64_t left = job->extent->bytes - begin;
	const uint64_t size = left < HASH_RANGE_BYTES ? left : HASH_RANGE_BYTES;
	uint64_t n_bytes;

	hash_stream_begin(hash);
	for (uint64_t done = 0; done < size; done += n_bytes) {
		int code;

		n_bytes = size - done < VERIFY_PIECE ? size - done : VERIFY_PIECE;
		if (is_stopped(job)) {
			return err_set(err, WIRE_CANCELLED, "the verification was cancelled");
		}
		code = device_read(job->extent, begin + done, piece, n_bytes, err);
		if (code < 0) {
			return code;
		}
		hash_stream_add(hash, piece, n_bytes);
	}
	return 0;
}

void work_verify(const struct work *work, struct job *job, struct load_result *ret)
{
	AUTO_FREE uint8_t *piece = sys_malloc(VERIFY_PIECE);
	struct hash_stream *hash = hash_stream_new();
	char note[64];

	lock_extent(work, job->extent, ret->notice); /* one taken over is not yet */
	if (piece == NULL || hash == NULL) {
		(void)err_set(&ret->err, WIRE_NO_MEMORY, "no memory to verify with");
		(void)hash_stream_free(hash);
		return;
	}
	(void)snprintf(note, sizeof note, "the copy that is segment %llu",
		       (unsigned long long)job->segment);
	crash_note(note);
	ret->is_equal = hash_count_sums(job->extent->bytes) == job->n_sums;
	for (uint32_t i = 0; ret->is_equal && i < job->n_sums; i++) {
		const uint64_t begin = i * HASH_RANGE_BYTES;

		if (hash_range(job, begin, piece, hash, &ret->err) < 0) {
			ret->is_equal = false;
			break;
		}
		if (hash_stream_end(hash) != job->sums[i]) {
			ret->is_equal = false;
			ret->differs_at = begin;
		}
	}
	crash_note(NULL);
	(void)hash_stream_free(hash);
}
