/* SPDX-License-Identifier: Apache-2.0 */
/* Copies and their states. Every change of state moves the bytes between buckets. */
#include "base/require.h"

#include "daemon/core/state.h"

struct segment *segment_add(struct core *core, struct job *job, uint32_t index)
{
	uint64_t id = 0;
	struct segment *segment = idtab_add(&core->segments, &id);

	if (segment == NULL) {
		return NULL;
	}
	segment->model = job->model;
	segment->generation = job->generation;
	segment->bytes = job->needs[index].bytes;
	segment->device = (uint16_t)job->needs[index].device;
	segment->index = (uint16_t)index;
	segment->job = idtab_id(&core->job_table, job);
	segment->state = SEGMENT_RESERVED;
	list_append(&job->model->segments, &segment->by_model);
	model_touch(core, job->model);
	core->accounts[segment->device].bucket[SEGMENT_RESERVED] += segment->bytes;
	return segment;
}

/* Which edges there are; from the rest of the states there is no way. */
static bool may_become(enum segment_state from, enum segment_state to)
{
	switch (from) {
	case SEGMENT_RESERVED:
		return to == SEGMENT_FILLING || to == SEGMENT_DROPPING;
	case SEGMENT_FILLING:
		return to == SEGMENT_READY || to == SEGMENT_DROPPING;
	case SEGMENT_READY:
		return to == SEGMENT_DROPPING;
	case SEGMENT_DROPPING:
		return to == SEGMENT_HELD;
	case SEGMENT_ABSENT:
	case SEGMENT_HELD:
	case SEGMENT_LOST:
	case SEGMENT_N_STATES:
		break;
	}
	return false;
}

void segment_set_state(struct core *core, struct segment *segment, enum segment_state state)
{
	struct account *account = &core->accounts[segment->device];

	REQUIRE(may_become((enum segment_state)segment->state, state));
	REQUIRE(account->bucket[segment->state] >= segment->bytes);
	account->bucket[segment->state] -= segment->bytes;
	segment->state = (uint8_t)state;
	account->bucket[state] += segment->bytes;
	model_touch(core, segment->model);
}

void segment_answer_verifiers(struct core *core, const struct model *model, int code)
{
	LIST_FOR_EACH_SAFE (link, &model->verifiers) {
		struct waiter *waiter = OF(link, struct waiter, by_owner);

		core_reply(core, waiter->client, waiter->request, code, model);
		waiter_remove(core, waiter);
	}
}

void segment_drop(struct core *core, struct segment *segment, enum core_why why)
{
	struct core_action *action;

	segment->why = (uint8_t)why;
	segment->job = 0;
	if (segment->is_verifying) {
		segment->is_verifying = false; /* its result says nothing any more */
		segment_answer_verifiers(core, segment->model, WIRE_CANCELLED);
	}
	segment_set_state(core, segment, SEGMENT_DROPPING);
	action = core_act(core, ACT_DROP);
	action->segment = idtab_id(&core->segments, segment);
	action->model = idtab_id(&core->models, segment->model);
	action->device = segment->device;
}

void segment_remove(struct core *core, struct segment *segment)
{
	struct account *account = &core->accounts[segment->device];

	REQUIRE(account->bucket[segment->state] >= segment->bytes);
	account->bucket[segment->state] -= segment->bytes;
	account->sums[segment->sum] -= segment->bytes;
	model_touch(core, segment->model);
	list_remove(&segment->by_model);
	idtab_remove(&core->segments, segment);
}

bool segment_is_droppable(const struct segment *segment)
{
	return segment->state == SEGMENT_READY && segment->job == 0;
}

bool segment_is_mapped(const struct segment *segment)
{
	LIST_FOR_EACH (link, &segment->model->holders) {
		const struct holder *holder = OF(link, struct holder, by_model);

		if (holder->n_mapped > 0 && holder->generation == segment->generation) {
			return true;
		}
	}
	return false;
}

enum segment_sum segment_sum_of(const struct core *core, const struct segment *segment)
{
	const struct model *model = segment->model;
	const struct job *job = segment->job == 0 ? NULL : job_of(core, segment->job);

	if (segment->state == SEGMENT_DROPPING) {
		return segment_is_mapped(segment) ? SUM_NONE : SUM_DROPPING;
	}
	if (segment->state > SEGMENT_READY || model_is_pinned(core, model)) {
		return SUM_NONE;
	}
	if (segment_is_droppable(segment)) {
		return model_is_idle(model) && !segment_is_mapped(segment) ? SUM_EVICTABLE
									   : SUM_NONE;
	}
	return job != NULL && job->n_attaching == 0 ? SUM_LATER : SUM_NONE;
}

void segment_on_filled(struct core *core, const struct core_event *event)
{
	struct segment *segment = idtab_find(&core->segments, event->filled.segment);
	struct job *job;
	int code = event->filled.code;

	if (segment == NULL || segment->state != SEGMENT_FILLING) {
		return; /* its device was lost meanwhile */
	}
	job = job_of(core, segment->job);
	REQUIRE(job != NULL && job->n_outstanding > 0);
	if (code == 0 && job->state == JOB_ENDING) {
		code = job->code; /* good, but nobody wants it any more */
	}
	if (code == 0) {
		segment_set_state(core, segment, SEGMENT_READY);
	} else {
		segment_drop(core, segment, CORE_WHY_FAILED);
	}
	job_result(core, job, code);
}

void segment_on_dropped(struct core *core, const struct core_event *event)
{
	struct segment *segment = idtab_find(&core->segments, event->dropped.segment);
	struct model *model;

	account_set_available(core, event->dropped.available);
	if (segment == NULL || segment->state != SEGMENT_DROPPING) {
		return;
	}
	model = segment->model;
	if (segment_is_mapped(segment)) {
		segment_set_state(core, segment, SEGMENT_HELD);
		core_note(core, CORE_NOTE_HELD, CORE_WHY_MAPPED, model, segment->bytes);
		return;
	}
	segment_remove(core, segment);
	model_settle(core, model);
}

void segment_release_held(struct core *core, struct model *model)
{
	LIST_FOR_EACH_SAFE (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment->state == SEGMENT_HELD && !segment_is_mapped(segment)) {
			core_note(core, CORE_NOTE_FREED, CORE_WHY_NONE, model, segment->bytes);
			segment_remove(core, segment);
		}
	}
	model_settle(core, model);
}

/* A copy that does not match its checksum: out of service, holders told, loaded again. */
static void quarantine(struct core *core, struct segment *segment)
{
	struct model *model = segment->model;
	uint64_t file = model->file;

	segment->is_bad = true;
	model_touch(core, model);
	core_note(core, CORE_NOTE_QUARANTINED, CORE_WHY_BAD_SUM, model, segment->bytes);
	LIST_FOR_EACH (link, &model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		if (lease->generation == segment->generation && !lease->is_ghost) {
			struct core_action *action = core_act(core, ACT_LOST);

			action->client = idtab_id(&core->clients, lease->client);
			action->model = idtab_id(&core->models, model);
			action->lost.lease = idtab_id(&core->leases, lease);
			action->lost.why = CORE_WHY_BAD_SUM;
		}
	}
	model_drain(core, model);
	if (model->job == NULL && file != 0 && !core->is_shutting_down) {
		struct job *job =
			job_begin(core, model, JOB_LOAD, &model->key, file, model->owner_uid);

		if (job != NULL) {
			model->file = 0; /* the job's until it ends */
			job->is_reload = true;
			job->no_wait = true;
		}
	}
}

void segment_verify(struct core *core, struct segment *segment)
{
	struct core_action *action = core_act(core, ACT_VERIFY);

	segment->is_verifying = true;
	action->segment = idtab_id(&core->segments, segment);
	action->model = idtab_id(&core->models, segment->model);
	action->device = segment->device;
}

void segment_on_verified(struct core *core, const struct core_event *event)
{
	struct segment *segment = idtab_find(&core->segments, event->verified.segment);
	struct model *model;
	int code = event->verified.code;

	if (segment == NULL || !segment->is_verifying) {
		return;
	}
	model = segment->model;
	segment->is_verifying = false;
	if (code == 0 && !event->verified.is_equal) {
		code = WIRE_BAD_FILE;
		quarantine(core, segment);
	}
	LIST_FOR_EACH (link, &model->segments) {
		if (OF(link, struct segment, by_model)->is_verifying && code == 0) {
			return; /* the answer waits for the last copy */
		}
	}
	segment_answer_verifiers(core, model, code);
}

void segment_on_device_lost(struct core *core, const struct core_event *event)
{
	struct segment *segment;
	uint32_t cursor = 0;
	uint32_t device = event->device.device;

	if (device >= core->config.n_devices) {
		return;
	}
	core->accounts[device].is_lost = true;
	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		struct model *model = segment->model;
		struct job *job = job_of(core, segment->job);
		bool is_filling = segment->state == SEGMENT_FILLING;

		if (segment->device != device) {
			continue;
		}
		core_note(core, CORE_NOTE_EVICTED, CORE_WHY_LOST, model, segment->bytes);
		if (segment->is_verifying) {
			segment_answer_verifiers(core, model, WIRE_DEVICE_LOST);
		}
		segment_remove(core, segment);
		if (is_filling) {
			job_result(core, job, WIRE_DEVICE_LOST);
		} else if (job != NULL) {
			job_fail(core, job, WIRE_DEVICE_LOST);
		}
		model_settle(core, model);
	}
	LIST_FOR_EACH_SAFE (link, &core->rooms) {
		struct job *job = OF(link, struct job, by_room);

		for (uint32_t i = 0; i < job->n_needs; i++) {
			if (job->needs[i].device == device) {
				job_fail(core, job, WIRE_DEVICE_LOST);
				break;
			}
		}
	}
}
