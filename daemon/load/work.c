/* SPDX-License-Identifier: Apache-2.0 */
/* What jobs do that only read, each on a thread of its own: header, recheck, verify. See job.h. */
#include "base/cleanup.h"
#include "base/os/crash.h"
#include "base/os/sys.h"
#include "base/weight_map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/format/blocks.h"
#include "daemon/format/join.h"
#include "daemon/load/hash.h"
#include "daemon/load/job.h"
#include "daemon/load/reader.h"
#include "proto/gen/wire_code.h"

#define VERIFY_PIECE (2ULL << 20) /* bytes hashed at once, out of the CPU's cache */

/* ---- headers ---- */

/* The first 'size' bytes of the file. '*ret' is the caller's to free. */
static int read_first(const struct work *work, struct job *job, const struct file *file,
		      uint64_t size, uint8_t **ret, struct err *err)
{
	AUTO_FREE uint8_t *bytes = sys_malloc(size == 0 ? 1 : size);
	struct reader reader = work_reader(work, job, file, size);
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

static int parse_header(const struct work *work, struct job *job, const struct file *file,
			uint64_t file_size, struct tensor_map **ret, struct err *err)
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
		code = read_first(work, job, file, probed, &first, err);
		if (code == 0) {
			code = format_probe(first, probed, file_size, job->wanted, &format, &wanted,
					    err);
		}
		if (code == 0 && wanted > job->header_bytes) {
			code = err_set(err, WIRE_TOO_LARGE,
				       "the headers of its files take more than %d bytes",
				       FORMAT_MAX_HEADER);
		}
	} while (code == 0 && wanted > probed);
	if (code < 0) {
		return code;
	}
	job->header_bytes -= wanted;
	return format_parse(format, first, wanted, file_size, ret, err);
}

/* One of the files, or the only one. */
static int read_header(const struct work *work, struct job *job, uint32_t index,
		       struct tensor_map **ret, struct err *err)
{
	const struct file *file = file_shard(job->file, index);
	int code = file_check_filesystem(file, err);

	if (code == 0) {
		code = parse_header(work, job, file, job->keys[index].size, ret, err);
	}
	return work_name_file(file, code, err);
}

static int read_index(const struct work *work, struct job *job, uint8_t **ret, uint64_t *ret_size,
		      struct err *err)
{
	const struct file *index = job->file->index;
	struct file_key key;
	int code = file_check_filesystem(index, err);

	if (code == 0) {
		code = file_read_key(index, &key, err);
	}
	if (code == 0 && key.size > WEIGHT_MAP_MAX_SIZE) {
		code = err_set(err, WIRE_TOO_LARGE, "it has %llu bytes; an index has at most %u",
			       (unsigned long long)key.size, WEIGHT_MAP_MAX_SIZE);
	}
	if (code == 0) {
		*ret_size = key.size;
		code = read_first(work, job, index, key.size, ret, err);
	}
	return code < 0 ? err_wrap(err, "index %s", index->name) : 0;
}

/* All of one model: each header, then the index over them. */
static int read_headers(const struct work *work, struct job *job, struct join_part *parts,
			struct tensor_map **ret, struct err *err)
{
	AUTO_FREE uint8_t *index = NULL;
	struct join_index join = {0};
	uint64_t size = 0;
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < job->file->n_shards; i++) {
		parts[i].name = job->file->shards[i]->name;
		code = job_is_stopped(job) ? err_set(err, WIRE_CANCELLED, "the read was cancelled")
					   : read_header(work, job, i, &parts[i].map, err);
	}
	if (code == 0 && job->file->index != NULL) {
		code = read_index(work, job, &index, &size, err);
		join = (struct join_index){job->file->index->name, index, size};
	}
	return code < 0 ? code : join_maps(parts, job->file->n_shards, &join, ret, err);
}

static int read_map(const struct work *work, struct job *job, struct tensor_map **ret,
		    struct err *err)
{
	const uint32_t n_files = file_n_shards(job->file);
	AUTO_FREE struct join_part *parts = NULL;
	int code;

	if (job->file->shards == NULL) {
		return read_header(work, job, 0, ret, err);
	}
	parts = sys_calloc(n_files, sizeof *parts);
	if (parts == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u headers", n_files);
	}
	code = read_headers(work, job, parts, ret, err);
	for (uint32_t i = 0; i < n_files; i++) {
		(void)tensor_map_free(parts[i].map); /* none is left where they were joined */
	}
	return code;
}

/* That of the one that lies least well. */
static enum file_place place_of_all(const struct job *job)
{
	enum file_place place = FILE_PLAIN;

	for (uint32_t i = 0; i < file_n_shards(job->file); i++) {
		enum file_place one = file_place(file_shard(job->file, i));

		place = one < place ? one : place;
	}
	return place;
}

static bool are_all_cached(const struct job *job)
{
	for (uint32_t i = 0; i < file_n_shards(job->file); i++) {
		if (!reader_is_cached(file_shard(job->file, i), job->keys[i].size)) {
			return false;
		}
	}
	return true;
}

static bool may_all_be_given(const struct job *job)
{
	for (uint32_t i = 0; i < file_n_shards(job->file); i++) {
		const struct file *file = file_shard(job->file, i);

		if (!file->is_read_only || !file_is_reopenable(file)) {
			return false;
		}
	}
	return true;
}

/* The answer to 'wish'; where it is refused, 'ret->err' says why. */
static void look_at_cache(const struct job *job, struct load_result *ret)
{
	enum file_place place = job->wish == CACHE_NEVER ? FILE_ELSEWHERE : place_of_all(job);
	bool is_near = place == FILE_PLAIN || (place == FILE_LOCAL && job->wish != CACHE_IF_WARM);

	ret->is_cached = is_near && may_all_be_given(job) &&
			 (job->wish != CACHE_IF_WARM || are_all_cached(job));
	if (job->wish == CACHE_ALWAYS && !is_near) {
		(void)err_set(&ret->err, WIRE_UNSUPPORTED,
			      "a file on this filesystem cannot serve as it is: nothing would tell "
			      "of its changes (so with network, FUSE and stacked filesystems)");
	} else if (job->wish == CACHE_ALWAYS && !ret->is_cached) {
		(void)err_set(&ret->err, WIRE_UNSUPPORTED,
			      "a file that the daemon's user may not read cannot serve as it is: "
			      "nobody is given the descriptor of another");
	}
}

void work_header(const struct work *work, struct job *job, struct load_result *ret)
{
	const uint32_t n_files = file_n_shards(job->file);
	AUTO_FREE struct file_key *after = sys_calloc(n_files, sizeof *after);
	struct file_key all = {0};
	int code = 0;

	job->header_bytes = 8 + FORMAT_MAX_HEADER;
	job->keys = sys_calloc(n_files, sizeof *job->keys);
	if (job->keys == NULL || after == NULL) {
		code = err_set(&ret->err, WIRE_NO_MEMORY, "no memory for %u headers", n_files);
	}
	if (code == 0) {
		code = file_read_keys(job->file, job->keys, &ret->key, &ret->err);
	}
	if (code == 0) {
		code = read_map(work, job, &ret->map, &ret->err);
	}
	if (code == 0 && job->by_tensor) {
		code = blocks_by_tensor(ret->map, &ret->err);
	}
	if (code == 0) {
		code = file_read_keys(job->file, after, &all, &ret->err);
	}
	if (code == 0 && !file_key_is_equal(&ret->key, &all)) {
		(void)err_set(&ret->err, WIRE_CHANGED_WHILE_READING,
			      "the file changed while its header was read");
	}
	if (ret->err.code == 0) {
		look_at_cache(job, ret);
	}
	if (ret->err.code != 0) {
		ret->map = tensor_map_free(ret->map);
	}
}

/* ---- comparing ---- */

/* Hash the files one after the other; 'found' has room for the sums of all. */
static int hash_files(const struct work *work, struct job *job, const struct file_key *keys,
		      uint64_t *found, struct err *err)
{
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < file_n_shards(job->file); i++) {
		const struct file *file = file_shard(job->file, i);
		struct reader reader = work_reader(work, job, file, keys[i].size);

		reader.sums = found;
		found += hash_count_sums(keys[i].size);
		code = work_name_file(file, reader_run(&reader, err), err);
	}
	return code;
}

static bool has_as_many_sums(const struct job *job, const struct file_key *keys)
{
	uint64_t n_sums = 0;

	for (uint32_t i = 0; i < file_n_shards(job->file); i++) {
		n_sums += hash_count_sums(keys[i].size);
	}
	return n_sums == job->n_sums;
}

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
	AUTO_FREE struct file_key *keys = sys_calloc(file_n_shards(job->file), sizeof *keys);
	AUTO_FREE uint64_t *found = sys_calloc((size_t)job->n_sums + 1, sizeof *found);
	struct file_key after;
	int code;

	if (keys == NULL || found == NULL) {
		(void)err_set(&ret->err, WIRE_NO_MEMORY, "no memory for %u sums", job->n_sums);
		return;
	}
	code = file_read_keys(job->file, keys, &ret->key, &ret->err);
	if (code < 0 || !has_as_many_sums(job, keys)) {
		return; /* another length: not equal from the first byte on, and nothing to read */
	}
	code = hash_files(work, job, keys, found, &ret->err);
	ret->bytes = __atomic_load_n(&job->progress.bytes, __ATOMIC_RELAXED);
	if (code == 0) {
		code = file_read_keys(job->file, keys, &after, &ret->err);
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
		if (job_is_stopped(job)) {
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

	if (work->options->lock) {
		work_lock(job->extent, ret->notice); /* one taken over is not yet */
	}
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
