/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a host copy lies in: an image of our own, or the source file's page cache. What is warm
 * and wanted by nobody in particular starts as the file; what shall stay becomes an image, or,
 * where the file was asked for by name, is locked. A move from one to the other is a load of
 * the same content: the copy that is there serves until the new one is published.
 */
#include "daemon/core/state.h"

enum core_backing backing_choose(const struct core *core, const struct model *model,
				 enum core_backing wanted, bool is_cached)
{
	bool is_pinned = model_is_pinned(core, model);
	bool stays = is_pinned || model_is_kept(core, model);

	if (wanted == CORE_BACKING_IMAGE || !is_cached || (wanted == CORE_BACKING_AUTO && stays)) {
		return CORE_BACKING_IMAGE;
	}
	return is_pinned ? CORE_BACKING_LOCKED : CORE_BACKING_FILE;
}

bool backing_suits(const struct model *model, enum core_backing wanted)
{
	return wanted == CORE_BACKING_AUTO ||
	       (wanted == CORE_BACKING_IMAGE) == (model->backing == CORE_BACKING_IMAGE);
}

void backing_settle(struct core *core, struct model *model)
{
	enum core_backing better =
		backing_choose(core, model, (enum core_backing)model->wanted, true);
	struct job *job;

	if (model->backing == CORE_BACKING_IMAGE || model->placement > CORE_PLACEMENT_HOST ||
	    model->job != NULL || model->file == 0 || core->is_shutting_down ||
	    !model_is_resident(model) || better == (enum core_backing)model->backing) {
		return;
	}
	if (better == CORE_BACKING_FILE && model_is_leased(model)) {
		return; /* locked until nobody uses it: else it would be charged for each pin */
	}
	/* Not begun, it serves as it is; the next pin or keep tries again. */
	job = job_begin(core, model, JOB_LOAD, &model->key, model->file, model->owner_uid);
	if (job != NULL) {
		model->file = 0; /* the job's until it ends */
		job->wanted = model->wanted;
		job->is_move = true;
		job->no_wait = true;
	}
}

/* The holder is told where the bytes that it maps may have become others. */
static void tell_holders(struct core *core, const struct model *model, uint64_t generation)
{
	LIST_FOR_EACH (link, &model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		if (lease->generation == generation && !lease->is_ghost) {
			struct core_action *action = core_act(core, ACT_LOST);

			action->client = idtab_id(&core->clients, lease->client);
			action->model = idtab_id(&core->models, model);
			action->lost.lease = idtab_id(&core->leases, lease);
			action->lost.why = CORE_WHY_CHANGED;
		}
	}
}

void backing_on_changed(struct core *core, const struct core_event *event)
{
	struct segment *changed = idtab_find(&core->segments, event->changed.segment);
	struct model *model;
	uint64_t generation;
	uint64_t bytes = 0;

	if (changed == NULL || changed->backing == CORE_BACKING_IMAGE || changed->is_stale ||
	    changed->state != SEGMENT_READY || changed->generation > changed->model->generation) {
		return; /* not published yet: its fill looks itself */
	}
	model = changed->model;
	generation = changed->generation;
	LIST_FOR_EACH (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment_is_of(segment, generation) && segment->state == SEGMENT_READY) {
			segment->is_stale = true;
			bytes += segment->size;
		}
	}
	model_touch(core, model);
	core_note(core, CORE_NOTE_STALE, CORE_WHY_CHANGED, model, bytes);
	core->actions[core->n_actions - 1].device = 0; /* where page caches are */
	if (event->changed.was_written) {
		tell_holders(core, model, generation);
	}
	model_drain(core, model);
}
