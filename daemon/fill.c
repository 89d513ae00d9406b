/* SPDX-License-Identifier: Apache-2.0 */
/* See fill.h. */
#include "daemon/fill.h"

#include "base/cleanup.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/execute.h"
#include "daemon/format/format.h"
#include "daemon/load/file.h"
#include "daemon/load/image_set.h"
#include "daemon/load/loader.h"

struct file *fill_source(const struct daemon *daemon, uint64_t id)
{
	struct file *file = store_find_file(daemon->store, id);

	REQUIRE(file != NULL); /* the core gives a file back before it forgets it */
	return file;
}

struct job_info *fill_job(struct daemon *daemon, const struct core_action *action)
{
	(void)daemon_know_model(daemon, action->model);
	return store_get_job(daemon->store, action->job, action->model);
}

/* What an earlier generation of the same content has, for image_set_new. All owned. */
struct earlier {
	struct earlier_image *images;
	struct extent **blocks;
};

static void earlier_fini(struct earlier *earlier)
{
	free(earlier->images);
	free(earlier->blocks);
}

/* It stays until fill_end. */
static void hold(struct daemon *daemon, struct job_info *job, uint64_t segment)
{
	store_hold_extent(daemon->store, segment);
	job->held[job->n_held++] = segment;
}

void fill_end(struct daemon *daemon, struct job_info *job)
{
	if (job == NULL) {
		return;
	}
	job->images = image_set_free(job->images);
	job->images_of = 0;
	for (uint32_t i = 0; i < job->n_held; i++) {
		if (store_unhold_extent(daemon->store, job->held[i])) {
			execute_drop_now(daemon, job->held[i]);
		}
	}
	job->n_held = 0;
}

static void add_earlier(const struct generation_info *current, const struct job_info *job,
			const struct core_segment_view *segment, struct extent *extent,
			struct earlier *ret)
{
	bool has_blocks = current->by_tensor == job->by_tensor;

	if (segment->is_block && has_blocks && segment->index < job->map->n_blocks) {
		ret->blocks[segment->index] = extent;
	} else if (!segment->is_block && segment->index < job->n_shards &&
		   segment->backing == CORE_BACKING_IMAGE &&
		   (has_blocks || current->places == NULL || current->with_host)) {
		const struct shard_info *shard = &current->shards[segment->index];

		ret->images[segment->index].extent = extent;
		ret->images[segment->index].is_kept = true; /* unless it is filled anew */
		ret->images[segment->index].sums = current->sums + shard->first_sum;
		ret->images[segment->index].n_sums = shard->n_sums;
	}
}

/* What is there of the published generation, and what of the next one is filled. */
static bool find_earlier(struct daemon *daemon, const struct model_info *model,
			 struct job_info *job, uint64_t generation, struct earlier *ret)
{
	struct core_segment_view segment;
	uint32_t cursor = 0;

	ret->images = sys_calloc(job->n_shards, sizeof *ret->images);
	ret->blocks = sys_calloc((size_t)job->map->n_blocks + 1, sizeof(struct extent *));
	free(job->held);
	job->held = sys_calloc((size_t)job->n_shards + model->current.n_blocks, sizeof *job->held);
	if (ret->images == NULL || ret->blocks == NULL || job->held == NULL) {
		return false;
	}
	while (model->current.table_fd >= 0 &&
	       core_segment_next(daemon->core, model->id, &cursor, &segment)) {
		struct extent *extent = store_find_extent(daemon->store, segment.id);

		if (segment.state == SEGMENT_READY && segment.last == UINT64_MAX &&
		    segment.generation < generation && segment.is_counted && extent != NULL &&
		    job->n_held < job->n_shards + model->current.n_blocks) {
			hold(daemon, job, segment.id);
			add_earlier(&model->current, job, &segment, extent, ret);
		}
	}
	cursor = 0;
	while (core_segment_next(daemon->core, model->id, &cursor, &segment)) {
		if (segment.generation == generation && !segment.is_block &&
		    segment.index < job->n_shards) {
			ret->images[segment.index].is_kept = false;
		}
	}
	return true;
}

/* The places that its images are filled by. NULL: no memory. */
static uint8_t *image_places(const struct job_info *job)
{
	uint8_t *places = sys_calloc((size_t)job->map->n_blocks + 1, 1);

	if (places != NULL && !job->with_host) {
		memcpy(places, job->places, job->map->n_blocks);
	}
	return places;
}

/* With the first fill of a generation: what its fills bring is gathered. False: no memory. */
static bool begin_images(struct daemon *daemon, struct job_info *job,
			 const struct core_action *action)
{
	const struct model_info *model = daemon_know_model(daemon, action->model);
	struct core_model_view view;
	struct earlier earlier = {0};
	AUTO_FREE uint8_t *places = NULL;
	struct image_set_request request = {
		.map = job->map,
		.generation = action->fill.generation,
		/* Where there is nothing to fill, images are what there was. */
		.has_sums = action->type == ACT_MAKE_TABLE ||
			    action->fill.backing == CORE_BACKING_IMAGE,
		.name = model == NULL ? "" : model->name,
	};
	bool is_good;

	REQUIRE(core_model_get(daemon->core, action->model, &view));
	request.model_id = view.uuid;
	request.owner_uid = view.owner_uid;
	fill_end(daemon, job);
	job->images_of = action->fill.generation;
	free(job->filled_bytes);
	job->n_shards = tensor_map_n_shards(job->map);
	job->n_filled = 0;
	job->moved = 0;
	job->filled_bytes =
		sys_calloc((size_t)job->n_shards + job->map->n_blocks, sizeof *job->filled_bytes);
	is_good = job->filled_bytes != NULL;
	if (is_good && job->is_tabled) {
		request.places = places = image_places(job);
		is_good = places != NULL && model != NULL &&
			  find_earlier(daemon, model, job, action->fill.generation, &earlier);
	}
	if (is_good && job->is_tabled) {
		request.earlier_images = earlier.images;
		request.earlier_blocks = earlier.blocks;
		request.earlier_places = model->current.with_host ||
							 model->current.by_tensor != job->by_tensor
						 ? NULL
						 : model->current.places;
	}
	job->images = is_good ? image_set_new(&request) : NULL;
	earlier_fini(&earlier);
	return job->images != NULL;
}

/* NULL: no memory for it. */
static struct image_set *images_of(struct daemon *daemon, struct job_info *job,
				   const struct core_action *action)
{
	if (job == NULL) {
		return NULL;
	}
	job->file = action->fill.file;
	if (job->images_of != action->fill.generation) {
		(void)begin_images(daemon, job, action);
	}
	return job->images;
}

/* As they were last known: nobody is asked, since what an answer says beside is heard once. */
static uint32_t find_peers(const struct daemon *daemon, uint32_t device,
			   const struct device *ret[DEVICE_MAX_PEERS])
{
	const char *uuid = daemon->devices[device].info.uuid;
	uint32_t n_peers = 0;

	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		const struct known_device *other = &daemon->devices[i];

		for (uint32_t j = 0; j < other->info.n_peers && n_peers < DEVICE_MAX_PEERS; j++) {
			if (uuid[0] != '\0' && strcmp(other->info.peers[j].uuid, uuid) == 0) {
				ret[n_peers++] = other->device;
			}
		}
	}
	return n_peers;
}

void fill_copy(struct daemon *daemon, const struct core_action *action)
{
	static const enum fill_into into[CORE_BACKING_N_VALUES] = {
		[CORE_BACKING_IMAGE] = FILL_IMAGE,
		[CORE_BACKING_FILE] = FILL_CACHE,
		[CORE_BACKING_LOCKED] = FILL_LOCKED,
	};
	const struct device *peers[DEVICE_MAX_PEERS];
	const struct fill_request request = {
		.job = action->job,
		.segment = action->segment,
		.file = fill_source(daemon, action->fill.file),
		.images = images_of(daemon, fill_job(daemon, action), action),
		.index = action->fill.index,
		.into = action->fill.is_block ? FILL_DEVICE : into[action->fill.backing],
		.device = daemon->devices[action->device].device,
		.peers = peers,
		.n_peers = find_peers(daemon, action->device, peers),
	};

	loader_fill(daemon->loader, &request);
}

void fill_make_table(struct daemon *daemon, const struct core_action *action)
{
	const struct table_request request = {
		.job = action->job,
		.file = fill_source(daemon, action->fill.file),
		.images = images_of(daemon, fill_job(daemon, action), action),
	};

	loader_make_table(daemon->loader, &request);
}
