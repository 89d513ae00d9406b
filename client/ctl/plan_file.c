/* SPDX-License-Identifier: Apache-2.0 */
/* Headers -> one tensor map -> blocks of the planner. See plan_file.h. */
#include "plan_file.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/model_path.h"
#include "base/weight_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/format/blocks.h"
#include "daemon/format/format.h"
#include "daemon/format/join.h"
#include "daemon/format/segment_layout.h"
#include "proto/gen/wire_code.h"

_Static_assert((int)PLAN_UNET == (int)COMPONENT_UNET && (int)PLAN_CLIP == (int)COMPONENT_CLIP &&
		       (int)PLAN_VAE == (int)COMPONENT_VAE,
	       "the planner and the formats number components alike");

/* ---- bytes ---- */

static int open_file(const char *path, int *ret_fd, uint64_t *ret_size, struct err *err)
{
	/* O_NONBLOCK: opening a pipe must not wait for a writer. Files ignore it. */
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat status;

	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) {
		return err_set_sys(err, WIRE_NOT_FOUND, errno, "there is no file %s", path);
	}
	if (fd < 0 && (errno == EACCES || errno == EPERM)) {
		return err_set_sys(err, WIRE_NOT_ALLOWED, errno, "you may not read %s", path);
	}
	if (fd < 0 || fstat(fd, &status) != 0) {
		return err_set_sys(err, WIRE_IO, errno, "%s cannot be opened: %s", path,
				   strerror(errno));
	}
	if (!S_ISREG(status.st_mode)) {
		return err_set(err, WIRE_BAD_FILE, "%s is no regular file", path);
	}
	*ret_size = (uint64_t)status.st_size;
	*ret_fd = steal_fd(&fd);
	return 0;
}

/* The first 'size' bytes. '*ret' is the caller's to free. */
static int read_first(int fd, uint64_t size, uint8_t **ret, struct err *err)
{
	uint8_t *bytes = malloc(size == 0 ? 1 : size);
	uint64_t used = 0;
	int code = 0;

	if (bytes == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a header of %llu bytes",
			       (unsigned long long)size);
	}
	while (used < size && code == 0) {
		ssize_t got = pread(fd, &bytes[used], size - used, (off_t)used);

		if (got > 0) {
			used += (uint64_t)got;
		} else if (got == 0) {
			code = err_set(err, WIRE_BAD_FILE, "it became shorter while it was read");
		} else if (errno != EINTR) {
			code = err_set_sys(err, WIRE_IO, errno, "it cannot be read: %s",
					   strerror(errno));
		}
	}
	if (code < 0) {
		free(bytes);
		return code;
	}
	*ret = bytes;
	return 0;
}

/* ---- maps ---- */

static int parse_file(const char *path, enum format wanted, struct tensor_map **ret,
		      struct err *err)
{
	AUTO_CLOSE int fd = -1;
	uint8_t *first = NULL;
	enum format format = FORMAT_AUTO;
	uint64_t file_size = 0;
	uint64_t needed;
	uint64_t probed;
	int code = open_file(path, &fd, &file_size, err);

	if (code < 0) {
		return code;
	}
	needed = file_size < FORMAT_PROBE_SIZE ? file_size : FORMAT_PROBE_SIZE;
	do { /* a probe asks for more than it got only while it needs it */
		probed = needed;
		free(first);
		first = NULL;
		code = read_first(fd, probed, &first, err);
		if (code == 0) {
			code = format_probe(first, probed, file_size, wanted, &format, &needed,
					    err);
		}
	} while (code == 0 && needed > probed);
	if (code == 0) {
		code = format_parse(format, first, needed, file_size, ret, err);
	}
	free(first);
	if (code < 0) {
		(void)err_wrap(err, "%s", path);
	}
	return code;
}

static int read_index(const char *path, uint8_t **ret, uint64_t *ret_size, struct err *err)
{
	AUTO_CLOSE int fd = -1;
	int code = open_file(path, &fd, ret_size, err);

	if (code == 0 && *ret_size > WEIGHT_MAP_MAX_SIZE) {
		return err_set(err, WIRE_TOO_LARGE, "%s has %llu bytes; an index has at most %u",
			       path, (unsigned long long)*ret_size, WEIGHT_MAP_MAX_SIZE);
	}
	return code == 0 ? read_first(fd, *ret_size, ret, err) : code;
}

static int parse_part(const struct model_path *found, const char *name, enum format wanted,
		      struct tensor_map **ret, struct err *err)
{
	AUTO_FREE char *path = model_path_of_file(found, name);

	if (path == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a path");
	}
	return parse_file(path, wanted, ret, err);
}

static int join_files(const struct model_path *found, enum format wanted, struct join_part *parts,
		      struct tensor_map **ret, struct err *err)
{
	AUTO_FREE uint8_t *index = NULL;
	struct join_index join = {0};
	uint64_t size = 0;
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < found->files->n; i++) {
		parts[i].name = found->files->names[i];
		code = parse_part(found, parts[i].name, wanted, &parts[i].map, err);
	}
	if (code == 0 && found->has_index) {
		code = read_index(found->whole, &index, &size, err);
		join = (struct join_index){found->whole, index, size};
	}
	return code < 0 ? code : join_maps(parts, found->files->n, &join, ret, err);
}

static int read_map(const char *path, enum format wanted, struct tensor_map **ret, struct err *err)
{
	struct model_path found;
	int code = model_path_find(path, &found, err);

	if (code == 0 && (found.files == NULL || wanted == FORMAT_RAW)) {
		code = parse_file(path, wanted, ret, err);
	} else if (code == 0) {
		uint32_t n_files = found.files->n;
		struct join_part *parts = calloc(n_files, sizeof *parts);

		code = parts == NULL
			       ? err_set(err, WIRE_NO_MEMORY, "no memory for %u headers", n_files)
			       : join_files(&found, wanted, parts, ret, err);
		for (uint32_t i = 0; parts != NULL && i < n_files; i++) {
			(void)tensor_map_free(parts[i].map);
		}
		free(parts);
	}
	model_path_fini(&found);
	return code;
}

/* ---- blocks ---- */

/* False: no memory. */
static bool fill_blocks(struct plan_file *file)
{
	AUTO_FREE uint64_t *packed = calloc((size_t)file->n_blocks + 1, sizeof *packed);

	if (packed == NULL) {
		return false;
	}
	block_segment_bytes_all(file->map, packed);
	for (uint32_t i = 0; i < file->n_blocks; i++) {
		const struct block *block = &file->map->blocks[i];

		file->blocks[i] = (struct plan_block){.bytes = block->size,
						      .packed = packed[i],
						      .name = block->name,
						      .name_size = block->name_size,
						      .component = block->component,
						      .is_head = block->is_head};
		file->n_tensors[i] = block->n_tensors;
	}
	return true;
}

int plan_file_read(const char *path, const char *format, bool by_tensor, struct plan_file *ret,
		   struct err *err)
{
	enum format wanted = FORMAT_AUTO;
	size_t count;
	int code = 0;

	*ret = (struct plan_file){0};
	if (format != NULL) {
		code = format_find(format, strlen(format), &wanted);
	}
	if (code < 0) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "a format is auto, safetensors, gguf or raw, not \"%.32s\"", format);
	}
	code = read_map(path, wanted, &ret->map, err);
	if (code < 0) {
		return code;
	}
	if (by_tensor && blocks_by_tensor(ret->map, err) < 0) {
		return -WIRE_NO_MEMORY;
	}
	ret->n_blocks = ret->map->n_blocks;
	count = (size_t)ret->n_blocks + 1;
	ret->blocks = calloc(count, sizeof *ret->blocks);
	ret->n_tensors = calloc(count, sizeof *ret->n_tensors);
	if (ret->blocks == NULL || ret->n_tensors == NULL || !fill_blocks(ret)) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u blocks", ret->n_blocks);
	}
	return 0;
}

void plan_file_fini(struct plan_file *file)
{
	file->map = tensor_map_free(file->map);
	free(file->blocks);
	free(file->n_tensors);
	*file = (struct plan_file){0};
}

bool plan_file_is_meant(const char *word)
{
	struct model_path found;
	bool is_file = strchr(word, '/') != NULL || model_path_is_file(word);

	if (!is_file) { /* what several files are together, also where their index is bad */
		is_file = model_path_find(word, &found, NULL) < 0 || found.files != NULL;
		model_path_fini(&found);
	}
	return is_file;
}
