/* SPDX-License-Identifier: Apache-2.0 */
/* Tables from the core's ids to what they stand for. See store.h. */
#define HASH_NONFATAL_OOM            1
#define uthash_nonfatal_oom(element) ((void)(element), store_out_of_memory = true)

/* Keys are the core's own ids: mixing them is enough, nobody can choose them. */
#define HASH_FUNCTION(key, size, hash) \
	((void)(size), (hash) = (unsigned)((*(const uint64_t *)(key)*0x9e3779b97f4a7c15U) >> 32))

#include "daemon/store.h"

#include "base/idtab.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/format/format.h"
#include "daemon/load/file.h"
#include "daemon/load/image_set.h"
#include "proto/gen/wire_code.h"

/* Set by uthash when it could not grow; the element is not in the table then. */
static bool store_out_of_memory;

struct stored_file {
	struct idtab_slot slot;
	struct file *file;
};

struct stored_extent {
	uint64_t segment;
	struct extent *extent;
	uint32_t n_holds;
	bool is_to_drop;    /* when nobody holds it any more */
	struct list sparse; /* store::sparse */
	struct park park;
	UT_hash_handle hh;
};

struct store {
	struct idtab files;
	struct stored_file *file_slots; /* owner: store */
	struct stored_extent *extents;
	struct list sparse; /* stored_extent::sparse, the next to be looked at first */
	uint32_t n_sparse;
	struct model_info *models;
	struct list models_by_age; /* model_info::by_age, oldest first */
	struct text_index texts;   /* of the models */
	struct job_info *jobs;
};

struct store *store_new(void)
{
	struct store *store = sys_calloc(1, sizeof *store);

	if (store == NULL) {
		return NULL;
	}
	store->file_slots = sys_calloc(STORE_MAX_FILES, sizeof *store->file_slots);
	if (store->file_slots == NULL) {
		free(store);
		return NULL;
	}
	idtab_init(&store->files, store->file_slots, sizeof *store->file_slots, STORE_MAX_FILES);
	list_init(&store->models_by_age);
	list_init(&store->sparse);
	return store;
}

struct store *store_free(struct store *store)
{
	struct stored_extent *extent;
	struct stored_extent *next_extent;
	struct job_info *job;
	struct job_info *next_job;
	struct stored_file *stored;
	uint32_t cursor = 0;

	if (store == NULL) {
		return NULL;
	}
	LIST_FOR_EACH_SAFE (link, &store->models_by_age) {
		store_forget_model(store, container_of(link, struct model_info, by_age)->id);
	}
	HASH_ITER(hh, store->jobs, job, next_job)
	{
		store_forget_job(store, job->id);
	}
	HASH_ITER(hh, store->extents, extent, next_extent)
	{
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): HASH_ITER has the next one already */
		HASH_DEL(store->extents, extent);
		(void)device_release(extent->extent, NULL); /* the process ends: no way to act */
		free(extent);
	}
	while ((stored = idtab_next(&store->files, &cursor)) != NULL) {
		file_unref(stored->file);
		idtab_remove(&store->files, stored);
	}
	free(store->file_slots);
	free(store);
	return NULL;
}

uint64_t store_add_file(struct store *store, struct file *file)
{
	uint64_t id = 0;
	struct stored_file *stored = idtab_add(&store->files, &id);

	if (stored == NULL) {
		return 0;
	}
	stored->file = file;
	return id;
}

struct file *store_find_file(const struct store *store, uint64_t id)
{
	const struct stored_file *stored = idtab_find(&store->files, id);

	return stored == NULL ? NULL : stored->file;
}

struct file *store_take_file(struct store *store, uint64_t id)
{
	struct stored_file *stored = idtab_find(&store->files, id);
	struct file *file;

	REQUIRE(stored != NULL);
	file = stored->file;
	idtab_remove(&store->files, stored);
	return file;
}

uint32_t store_n_files(const struct store *store)
{
	return store->files.n_used;
}

int store_add_extent(struct store *store, uint64_t segment, struct extent *extent)
{
	struct stored_extent *stored = sys_calloc(1, sizeof *stored);

	if (stored == NULL) {
		return -WIRE_NO_MEMORY;
	}
	stored->segment = segment;
	stored->extent = extent;
	store_out_of_memory = false;
	HASH_ADD(hh, store->extents, segment, sizeof stored->segment, stored);
	if (store_out_of_memory) {
		free(stored);
		return -WIRE_NO_MEMORY;
	}
	list_init(&stored->sparse);
	if (device_taken(extent) > 0) {
		list_append(&store->sparse, &stored->sparse);
		store->n_sparse++;
	}
	return 0;
}

static struct stored_extent *find_extent(const struct store *store, uint64_t segment)
{
	struct stored_extent *stored = NULL;

	HASH_FIND(hh, store->extents, &segment, sizeof segment, stored);
	return stored;
}

struct extent *store_find_extent(const struct store *store, uint64_t segment)
{
	const struct stored_extent *stored = find_extent(store, segment);

	return stored == NULL ? NULL : stored->extent;
}

void store_hold_extent(struct store *store, uint64_t segment)
{
	struct stored_extent *stored = find_extent(store, segment);

	REQUIRE(stored != NULL);
	stored->n_holds++;
}

bool store_unhold_extent(struct store *store, uint64_t segment)
{
	struct stored_extent *stored = find_extent(store, segment);

	REQUIRE(stored != NULL && stored->n_holds > 0);
	return --stored->n_holds == 0 && stored->is_to_drop;
}

bool store_drop_later(struct store *store, uint64_t segment)
{
	struct stored_extent *stored = find_extent(store, segment);

	if (stored == NULL || stored->n_holds == 0) {
		return false;
	}
	stored->is_to_drop = true;
	return true;
}

uint32_t store_n_sparse(const struct store *store)
{
	return store->n_sparse;
}

uint64_t store_next_sparse(struct store *store, uint64_t *ret_taken)
{
	struct stored_extent *stored;

	if (list_is_empty(&store->sparse)) {
		return 0;
	}
	stored = container_of(store->sparse.next, struct stored_extent, sparse);
	list_remove(&stored->sparse);
	list_append(&store->sparse, &stored->sparse);
	*ret_taken = device_taken(stored->extent);
	return stored->segment;
}

void store_set_park(struct store *store, uint64_t segment, const struct park *park)
{
	struct stored_extent *stored = find_extent(store, segment);

	if (stored != NULL) {
		stored->park = *park;
	}
}

const struct park *store_find_park(const struct store *store, uint64_t segment)
{
	const struct stored_extent *stored = find_extent(store, segment);

	return stored == NULL ? NULL : &stored->park;
}

struct extent *store_take_extent(struct store *store, uint64_t segment, struct park *ret_park)
{
	struct stored_extent *stored = find_extent(store, segment);
	struct extent *extent;

	if (stored == NULL) {
		return NULL;
	}
	extent = stored->extent;
	if (ret_park != NULL) {
		*ret_park = stored->park;
	}
	store->n_sparse -= list_is_empty(&stored->sparse) ? 0 : 1;
	list_remove(&stored->sparse);
	HASH_DEL(store->extents, stored);
	free(stored);
	return extent;
}

static void model_info_free(struct model_info *model)
{
	generation_info_fini(&model->current);
	free(model->name);
	free(model->path);
	free(model->label);
	free(model->file_ids);
	free(model->returning);
	free(model);
}

/* How many trailing parts of both paths are equal. */
static uint32_t count_common_parts(const char *a, const char *b)
{
	size_t i = strlen(a);
	size_t j = strlen(b);
	uint32_t n_parts = 0;

	while (i > 0 && j > 0 && a[i - 1] == b[j - 1]) {
		i--;
		j--;
		n_parts += a[i] == '/' ? 1 : 0;
	}
	return n_parts;
}

/* Both need folders before their names from now on, if they have the same one. */
static void tell_apart(struct model_info *a, struct model_info *b)
{
	uint32_t n_common;

	if (strcmp(a->name, b->name) != 0 || strcmp(a->path, b->path) == 0) {
		return;
	}
	n_common = count_common_parts(a->path, b->path);
	a->n_folders = n_common > a->n_folders ? n_common : a->n_folders;
	b->n_folders = n_common > b->n_folders ? n_common : b->n_folders;
}

struct model_info *store_add_model(struct store *store, uint64_t id, const uint8_t *uuid,
				   const char *name, const char *path)
{
	struct model_info *model = sys_calloc(1, sizeof *model);
	struct model_info *other;
	struct text_walk walk = {0};

	if (model == NULL) {
		return NULL;
	}
	model->id = id;
	memcpy(model->uuid, uuid, sizeof model->uuid);
	model->current.table_fd = -1;
	model->name = sys_strdup(name);
	model->path = sys_strdup(path);
	if (model->name == NULL || model->path == NULL) {
		model_info_free(model);
		return NULL;
	}
	store_out_of_memory = false;
	HASH_ADD(hh, store->models, id, sizeof model->id, model);
	if (store_out_of_memory) {
		model_info_free(model);
		return NULL;
	}
	while ((other = text_index_next(&store->texts, model->name, &walk)) != NULL) {
		tell_apart(other, model);
	}
	text_index_add(&store->texts, model);
	list_append(&store->models_by_age, &model->by_age);
	return model;
}

void model_info_set_files(struct model_info *model, const struct file *file)
{
	if (file->shards == NULL || model->file_ids != NULL) {
		return;
	}
	model->file_ids = sys_calloc(file->n_shards, sizeof *model->file_ids);
	if (model->file_ids != NULL) {
		memcpy(model->file_ids, file->ids, file->n_shards * sizeof *file->ids);
		model->n_file_ids = file->n_shards;
	}
}

bool model_info_has_files(const struct model_info *model, const struct file *file)
{
	return file->shards == NULL ||
	       (model->n_file_ids == file->n_shards &&
		memcmp(model->file_ids, file->ids, file->n_shards * sizeof *file->ids) == 0);
}

struct model_info *store_find_model(const struct store *store, uint64_t id)
{
	struct model_info *model = NULL;

	HASH_FIND(hh, store->models, &id, sizeof id, model);
	return model;
}

struct model_info *store_next_meant(struct store *store, const char *text, struct text_walk *walk)
{
	return text_index_next(&store->texts, text, walk);
}

void store_forget_model(struct store *store, uint64_t id)
{
	struct model_info *model = store_find_model(store, id);

	if (model == NULL) {
		return;
	}
	HASH_DEL(store->models, model);
	text_index_remove(&store->texts, model);
	list_remove(&model->by_age);
	model_info_free(model);
}

struct model_info *store_next_model(const struct store *store, const struct model_info *previous)
{
	struct list *link = previous == NULL ? store->models_by_age.next : previous->by_age.next;

	return link == &store->models_by_age ? NULL : container_of(link, struct model_info, by_age);
}

const char *store_display_name(const struct model_info *model, char *buffer, uint32_t buffer_size)
{
	const char *slash = strrchr(model->path, '/');
	const char *start = slash;
	size_t used;

	if (model->n_folders == 0 || slash == NULL) {
		(void)snprintf(buffer, buffer_size, "%s", model->name);
		return buffer;
	}
	for (uint32_t n_slashes = 0; start > model->path; start--) {
		n_slashes += start[-1] == '/' ? 1 : 0;
		if (n_slashes == model->n_folders) {
			break;
		}
	}
	used = (size_t)(slash + 1 - start);
	used = used < buffer_size ? used : buffer_size - 1;
	memcpy(buffer, start, used);
	(void)snprintf(buffer + used, buffer_size - used, "%s", model->name);
	return buffer;
}

struct job_info *store_get_job(struct store *store, uint64_t id, uint64_t model)
{
	struct job_info *job = store_find_job(store, id);

	if (job != NULL) {
		return job;
	}
	job = sys_calloc(1, sizeof *job);
	if (job == NULL) {
		return NULL;
	}
	job->id = id;
	job->model = model;
	job->next.table_fd = -1;
	store_out_of_memory = false;
	HASH_ADD(hh, store->jobs, id, sizeof job->id, job);
	if (store_out_of_memory) {
		free(job);
		return NULL;
	}
	return job;
}

struct job_info *store_find_job(const struct store *store, uint64_t id)
{
	struct job_info *job = NULL;

	HASH_FIND(hh, store->jobs, &id, sizeof id, job);
	return job;
}

void store_forget_job(struct store *store, uint64_t id)
{
	struct job_info *job = store_find_job(store, id);

	if (job == NULL) {
		return;
	}
	HASH_DEL(store->jobs, job); /* NOLINT(clang-analyzer-core.NullDereference): it is in it */
	(void)image_set_free(job->images);
	free(job->filled_bytes);
	free(job->held);
	free(job->places);
	free(job->warnings);
	tensor_map_free(job->map);
	generation_info_fini(&job->next);
	free(job);
}
