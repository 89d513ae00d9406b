/* SPDX-License-Identifier: Apache-2.0 */
#include "client/shards.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/model_path.h"
#include "base/shard_name.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/error.h"

#define ALL_DIRECT 2 /* descriptors of each file */

void source_close(struct source *source)
{
	file_close(&source->file);
	for (uint32_t i = 0; i < source->n_shards; i++) {
		file_close(&source->shards[i]);
	}
	(void)model_files_free(source->files);
	free(source->shards);
	free(source->names);
	free(source->called);
	*source = (struct source){.file = {.fds = {-1, -1}}};
}

int source_open_single(const char *path, struct source *ret)
{
	*ret = (struct source){.file = {.fds = {-1, -1}}};
	return file_open(path, &ret->file);
}

int source_borrow(int fd, struct source *ret)
{
	*ret = (struct source){.file = {.fds = {-1, -1}}};
	return file_borrow(fd, &ret->file);
}

/* ---- opening ---- */

static int open_shard(const struct model_path *found, const char *name, struct file *ret)
{
	AUTO_FREE char *path = model_path_of_file(found, name);
	int rc;

	if (path == NULL) {
		return failure_memory();
	}
	rc = file_open(path, ret);
	if (rc == -DISTORCH_E_NOT_FOUND) {
		return failure_set(DISTORCH_E_NOT_FOUND, 0, "is the download complete?",
				   "there is no file %s, which is of the same model as %s", path,
				   found->whole);
	}
	return rc;
}

/* Two descriptors of each file or one of each; where one lacks the second, all go without. */
static void level(struct source *source)
{
	source->is_direct = true;
	for (uint32_t i = 0; i < source->n_shards; i++) {
		source->is_direct = source->is_direct && source->shards[i].n_fds == ALL_DIRECT;
	}
	for (uint32_t i = 0; !source->is_direct && i < source->n_shards; i++) {
		if (source->shards[i].n_fds == ALL_DIRECT) {
			(void)close(steal_fd(&source->shards[i].fds[1])); /* read only */
			source->shards[i].n_fds = 1;
		}
	}
}

static int open_shards(const struct model_path *found, struct source *source)
{
	uint32_t n_shards = source->files->n;
	int rc = 0;

	source->shards = calloc(n_shards, sizeof *source->shards);
	source->names = calloc(n_shards, sizeof *source->names);
	if (source->shards == NULL || source->names == NULL) {
		return failure_memory();
	}
	for (uint32_t i = 0; rc == 0 && i < n_shards; i++) {
		source->names[i] = wire_str(source->files->names[i]);
		rc = open_shard(found, source->files->names[i], &source->shards[i]);
		source->n_shards += rc == 0 ? 1 : 0;
	}
	level(source);
	return rc;
}

static int open_several(const struct model_path *found, struct source *source)
{
	const char *slash = strrchr(found->whole, '/');

	source->called = strdup(slash == NULL ? found->whole : slash + 1);
	if (source->called == NULL) {
		return failure_memory();
	}
	shard_name_of_model(source->called);
	if (found->has_index) {
		int rc = file_open(found->whole, &source->file);

		if (rc < 0) {
			return rc;
		}
		if (source->file.n_fds == ALL_DIRECT) { /* it is read through the page cache */
			(void)close(steal_fd(&source->file.fds[1])); /* read only */
			source->file.n_fds = 1;
		}
	}
	return open_shards(found, source);
}

int source_open(const char *path, struct source *ret)
{
	struct model_path found;
	struct err err = {0};
	int rc;

	*ret = (struct source){.file = {.fds = {-1, -1}}};
	rc = model_path_find(path, &found, &err);
	if (rc < 0) {
		model_path_fini(&found);
		return failure_from_err(&err);
	}
	if (found.files == NULL) {
		return file_open(path, &ret->file);
	}
	ret->files = found.files;
	rc = open_several(&found, ret);
	if (rc < 0) {
		source_close(ret);
	}
	return rc;
}

/* ---- presenting ---- */

/* As many of the next files as there is room for. */
static uint32_t add_shards(struct source *source, int *fds, uint32_t n_fds)
{
	uint32_t each = source->is_direct ? ALL_DIRECT : 1;

	while (source->n_sent < source->n_shards && n_fds + each <= WIRE_FDS_PER_PACKET) {
		const struct file *file = &source->shards[source->n_sent++];

		for (uint32_t i = 0; i < each; i++) {
			fds[n_fds++] = file->fds[i];
		}
	}
	return n_fds;
}

uint32_t source_begin(struct source *source, bool with_index, int fds[WIRE_FDS_PER_PACKET])
{
	uint32_t n_fds = 0;

	for (uint32_t i = 0; (source->n_shards == 0 || with_index) && i < source->file.n_fds; i++) {
		fds[n_fds++] = source->file.fds[i];
	}
	return add_shards(source, fds, n_fds);
}

uint32_t source_go_on(struct source *source, int fds[WIRE_FDS_PER_PACKET],
		      struct wire_list *ret_names)
{
	uint32_t first = source->n_sent;
	uint32_t n_fds = add_shards(source, fds, 0);

	*ret_names =
		(struct wire_list){.count = source->n_sent - first, .items = &source->names[first]};
	return n_fds;
}
