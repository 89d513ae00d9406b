/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which copies a job makes and which it takes over. What it counts on stays until it has ended;
 * only while it waits for room may the one that is first in the order take that away, and then it
 * makes anew what it lost: else two that wait for each other's copies would do so for ever.
 */
#include "base/checked.h"
#include "base/require.h"

#include <string.h>

#include "daemon/core/state.h"

/* Copies of the same content stay while the job may take them over or read them. */
static void count_on_copies(struct core *core, struct job *job)
{
	LIST_FOR_EACH (link, &job->model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment_is_current(segment) && segment_is_droppable(segment) &&
		    !segment->is_bad && !segment->is_stale) {
			segment->job = idtab_id(&core->job_table, job);
			segment->is_same = false;
		}
	}
	model_touch(core, job->model);
}

/* Those of them on the device, blocks or images, each in the place of its index. The file's own
 * cache is no copy to be taken over. */
static void index_copies(const struct core *core, const struct job *job, uint32_t device)
{
	memset(core->victims, 0, core->config.max_segments * sizeof(struct segment *));
	LIST_FOR_EACH (link, &job->model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment->job == idtab_id(&core->job_table, job) && segment->device == device &&
		    segment->state == SEGMENT_READY && !segment->is_retained &&
		    segment->backing == CORE_BACKING_IMAGE && job->backing == CORE_BACKING_IMAGE &&
		    segment->generation != job->generation &&
		    segment->index < core->config.max_segments) {
			core->victims[segment->index] = segment;
		}
	}
}

static struct segment *find_indexed(const struct core *core, uint32_t index, bool is_block)
{
	struct segment *segment = index < core->config.max_segments ? core->victims[index] : NULL;

	return segment != NULL && segment->is_block == is_block && !segment->is_retained ? segment
											 : NULL;
}

static bool plan_new(struct core *core, struct job *job, const struct core_need *need)
{
	const struct segment *segment = segment_plan(core, job, need);

	if (segment == NULL) {
		return false;
	}
	job->takes |= 1U << need->device;
	job->need[need->device] = account_add(job->need[need->device], segment->bytes);
	job->moved += segment_tensor_bytes(segment);
	return true;
}

static bool plan_copy(struct core *core, struct job *job, const struct core_need *need)
{
	struct segment *segment = need->is_same ? find_indexed(core, need->index, need->is_block)
						: NULL;

	job->devices |= 1U << need->device;
	if (segment == NULL) {
		return plan_new(core, job, need);
	}
	segment->is_retained = true;
	return true;
}

bool retain_is_countable(const struct core *core, const struct core_need *needs, uint32_t n_needs)
{
	uint64_t sums[CORE_MAX_DEVICES] = {0};

	for (uint32_t i = 0; i < n_needs; i++) {
		if (needs[i].device >= core->config.n_devices ||
		    !checked_add(sums[needs[i].device], needs[i].bytes, &sums[needs[i].device]) ||
		    sums[needs[i].device] > 1ULL << 63) { /* accounts add one such at most */
			return false;
		}
	}
	return true;
}

bool retain_plan(struct core *core, struct job *job, const struct core_need *needs,
		 uint32_t n_needs)
{
	bool has_room = true;
	uint32_t devices = 0;

	job->generation = ++job->model->last_generation;
	job->n_copies = n_needs;
	if (job->may_share) {
		count_on_copies(core, job);
	}
	job->n_images = 0;
	for (uint32_t i = 0; i < n_needs; i++) {
		devices |= 1U << needs[i].device;
		job->n_images += needs[i].is_block ? 0 : 1;
	}
	for (uint32_t device = 0; device < core->config.n_devices && has_room; device++) {
		if ((devices >> device & 1) == 0) {
			continue;
		}
		index_copies(core, job, device);
		for (uint32_t i = 0; i < n_needs && has_room; i++) {
			has_room = needs[i].device != device || plan_copy(core, job, &needs[i]);
		}
	}
	return has_room;
}

/* It makes this one anew. False: the table is full. */
static bool let_one_go(struct core *core, struct job *job, struct segment *segment)
{
	const struct core_need need = {.device = segment->device,
				       .index = segment->index,
				       .bytes = segment->size,
				       .padding = segment->padding,
				       .is_block = segment->is_block,
				       .is_same = true,
				       .is_bare = segment->is_bare};
	bool was_retained = segment->is_retained;

	segment->is_same = was_retained; /* it goes after what would go anyway */
	segment->is_retained = false;
	segment->job = 0;
	model_touch(core, segment->model);
	return !was_retained || plan_new(core, job, &need);
}

bool retain_give_way(struct core *core, const struct model *spare, uint32_t devices)
{
	bool has_given = false;

	LIST_FOR_EACH (link, &core->rooms) {
		struct job *job = OF(link, struct job, by_room);

		if (job->model == spare || !job->may_share) {
			continue; /* it counts on nothing that could go */
		}
		LIST_FOR_EACH (part, &job->model->segments) {
			struct segment *segment = OF(part, struct segment, by_model);

			if (segment->state == SEGMENT_READY && segment->job != 0 &&
			    (devices >> segment->device & 1) != 0) {
				has_given = job->has_given_way = true;
				job->is_too_many = !let_one_go(core, job, segment) ||
						   job->is_too_many;
			}
		}
	}
	return has_given;
}

/* What it planned in place of copies that are still there it need not make. */
static void take_back_on(struct core *core, struct job *job, uint32_t device)
{
	index_copies(core, job, device);
	LIST_FOR_EACH_SAFE (link, &job->model->segments) {
		struct segment *planned = OF(link, struct segment, by_model);
		struct segment *segment;

		if (planned->state != SEGMENT_PLANNED || !planned->is_same ||
		    planned->device != device) {
			continue;
		}
		segment = find_indexed(core, planned->index, planned->is_block);
		if (segment != NULL) {
			segment->is_retained = true;
			job->need[device] -= planned->bytes;
			job->moved -= segment_tensor_bytes(planned);
			segment_remove(core, planned);
		}
	}
}

void retain_take_back(struct core *core, struct job *job)
{
	if (!job->has_given_way) {
		return;
	}
	job->has_given_way = false;
	count_on_copies(core, job);
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		if ((job->takes >> device & 1) != 0) {
			take_back_on(core, job, device);
		}
	}
	job->takes = 0;
	LIST_FOR_EACH (link, &job->model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		job->takes |= segment->state == SEGMENT_PLANNED ? 1U << segment->device : 0;
	}
}

void retain_lose_bad(struct core *core, struct job *job)
{
	bool is_full = false;

	LIST_FOR_EACH (link, &job->model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (!segment->is_bad || segment->job == 0 || segment->state != SEGMENT_READY) {
			continue;
		}
		if (job->state == JOB_ROOM) {
			is_full = !let_one_go(core, job, segment) || is_full;
		} else {
			/* It takes it over, or has read it: it begins again. */
			segment->is_retained = false;
			segment->job = 0;
			segment_touch(core, segment);
			job->code = job->code == 0 ? WIRE_CHANGED_WHILE_READING : job->code;
		}
	}
	if (is_full) {
		job_fail(core, job, WIRE_TOO_MANY);
	}
}
