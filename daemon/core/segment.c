/* SPDX-License-Identifier: Apache-2.0 */
/* Copies and their states. Every change of state moves the bytes between buckets. */
#include "base/require.h"

#include "daemon/core/state.h"

void segment_add(struct model *model, struct segment *segment)
{
	segment->model = model;
	list_append(&model->segments, &segment->by_model);
	list_init(&segment->touched);
}

struct segment *segment_plan(struct core *core, struct job *job, const struct core_need *need)
{
	uint64_t id = 0;
	struct segment *segment = idtab_add(&core->segments, &id);

	if (segment == NULL) {
		return NULL;
	}
	segment->generation = job->generation;
	segment->last = NEVER;
	segment->size = need->bytes;
	segment->padding = need->padding;
	segment->bytes = job->backing == CORE_BACKING_FILE ? 0 : need->bytes;
	segment->backing = job->backing;
	segment->device = (uint16_t)need->device;
	segment->index = (uint16_t)need->index;
	segment->is_block = need->is_block;
	segment->is_same = need->is_same;
	segment->is_bare = need->is_bare;
	segment->job = idtab_id(&core->job_table, job);
	segment->state = SEGMENT_PLANNED;
	segment_add(job->model, segment);
	segment_touch(core, segment);
	core->accounts[segment->device].bucket[SEGMENT_PLANNED] += segment->bytes;
	return segment;
}

void segment_end(struct segment *segment)
{
	uint64_t published = segment->model->generation;

	if (segment->last == NEVER) {
		segment->last = segment->generation > published ? segment->generation : published;
	}
}

/* Which edges there are; from the rest of the states there is no way. */
static bool may_become(enum segment_state from, enum segment_state to)
{
	switch (from) {
	case SEGMENT_PLANNED:
		return to == SEGMENT_RESERVED;
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

static uint64_t dropping_bytes(const struct segment *segment)
{
	return segment->state == SEGMENT_DROPPING ? segment->bytes : 0;
}

/* It is dropped no longer, if it was. */
static void end_dropping(struct core *core, const struct segment *segment)
{
	struct model *model = segment->model;
	const uint64_t bytes = dropping_bytes(segment);

	model->dropping -= bytes;
	core->n_let_go += bytes > 0 && model->dropping == 0 ? 1 : 0;
}

void segment_set_state(struct core *core, struct segment *segment, enum segment_state state)
{
	struct account *account = &core->accounts[segment->device];

	REQUIRE(may_become((enum segment_state)segment->state, state));
	REQUIRE(account->bucket[segment->state] >= segment->bytes);
	account->bucket[segment->state] -= segment->bytes;
	user_give_back(segment);
	end_dropping(core, segment);
	segment->state = (uint8_t)state;
	segment->model->dropping += dropping_bytes(segment);
	user_take(segment);
	account->bucket[state] += segment->bytes;
	segment_touch(core, segment);
}

/* It is charged what it takes, be that more than it was admitted with. Nothing makes it less: what
 * is sealed keeps its pages. */
void segment_on_grown(struct core *core, const struct core_event *event)
{
	struct segment *segment = idtab_find(&core->segments, event->grown.segment);
	const struct job *job = segment == NULL ? NULL : job_of(core, segment->job);
	uint64_t more;

	if (segment == NULL || segment->backing != CORE_BACKING_IMAGE ||
	    (segment->state != SEGMENT_READY && segment->state != SEGMENT_DROPPING) ||
	    (job != NULL && job->generation == segment->generation) || /* nobody has it yet */
	    event->grown.bytes <= segment->bytes) {
		return;
	}
	more = event->grown.bytes - segment->bytes;
	user_give_back(segment);
	segment->bytes += more;
	user_take(segment);
	segment->model->dropping += segment->state == SEGMENT_DROPPING ? more : 0;
	segment->model->sums[segment->device][segment->sum] += more;
	core->accounts[segment->device].sums[segment->sum] += more;
	core->accounts[segment->device].bucket[segment->state] += more;
	segment_touch(core, segment);
}

void segment_answer_verifiers(struct core *core, const struct model *model, int code)
{
	LIST_FOR_EACH_SAFE (link, &model->verifiers) {
		struct waiter *waiter = OF(link, struct waiter, by_owner);

		core_reply(core, waiter->client, waiter->request, code, model);
		waiter_remove(core, waiter);
	}
}

/* Is another copy of what is published being verified? The next one is looked at first. */
static bool is_other_verified(const struct segment *segment)
{
	const struct model *model = segment->model;

	LIST_FOR_EACH (link, &segment->by_model) {
		const struct segment *other = OF(link, struct segment, by_model);

		if (link != &model->segments && other->is_verifying && segment_is_current(other)) {
			return true;
		}
	}
	return false;
}

void segment_drop(struct core *core, struct segment *segment, enum core_why why)
{
	const bool is_current = segment_is_current(segment);
	struct core_action *action;

	segment->why = (uint8_t)why;
	segment->job = 0;
	segment_end(segment);
	if (segment->is_verifying) {
		segment->is_verifying = false; /* its result says nothing any more */
		/* Else they wait for what was published since, or for what is there beside it. */
		if (is_current && !is_other_verified(segment)) {
			segment_answer_verifiers(core, segment->model, WIRE_CANCELLED);
		}
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
	account_uncount(core, segment);
	end_dropping(core, segment);
	user_give_back(segment);
	segment_touch(core, segment); /* what follows from it for the model */
	list_remove(&segment->touched);
	list_remove(&segment->by_model);
	idtab_remove(&core->segments, segment);
}

bool segment_is_droppable(const struct segment *segment)
{
	return segment->state == SEGMENT_READY && segment->job == 0;
}

bool segment_is_good(const struct segment *segment)
{
	return segment_is_current(segment) && segment->state == SEGMENT_READY && !segment->is_bad &&
	       !segment->is_stale;
}

uint8_t segment_counts(const struct segment *segment)
{
	const bool is_ready = segment_is_current(segment) && segment->state == SEGMENT_READY;
	const bool is_good = segment_is_good(segment);
	const bool is_old = segment->state == SEGMENT_DROPPING || segment->state == SEGMENT_HELD;

	return (uint8_t)(is_ready << COUNT_READY | (is_ready && segment->job == 0) << COUNT_FREE |
			 is_good << COUNT_GOOD | (is_good && !segment->is_block) << COUNT_IMAGES |
			 segment->is_bad << COUNT_BAD | is_old << COUNT_OLD);
}

const struct holder *segment_mapper(const struct segment *segment)
{
	LIST_FOR_EACH (link, &segment->model->holders) {
		const struct holder *holder = OF(link, struct holder, by_model);

		if (holder->n_mapped > 0 && holder_has(holder, segment)) {
			return holder;
		}
	}
	return NULL;
}

bool segment_is_held(const struct segment *segment)
{
	return segment->backing == CORE_BACKING_IMAGE && /* else it is the kernel's to give back */
	       segment_mapper(segment) != NULL;
}

bool segment_is_leased(const struct segment *segment)
{
	LIST_FOR_EACH (link, &segment->model->holders) {
		const struct holder *holder = OF(link, struct holder, by_model);

		if (holder->n_live > 0 && holder_has(holder, segment)) {
			return true;
		}
	}
	return false;
}

bool segment_is_older(const struct segment *segment)
{
	return !segment_is_current(segment) && segment->last != NEVER &&
	       (segment_is_held(segment) || segment_is_leased(segment));
}

enum segment_sum segment_sum_of(const struct core *core, const struct segment *segment)
{
	const struct model *model = segment->model;
	const struct job *job = segment->job == 0 ? NULL : job_of(core, segment->job);

	if (segment->state == SEGMENT_DROPPING) {
		return segment_is_held(segment) ? SUM_NONE : SUM_DROPPING;
	}
	if (segment->state == SEGMENT_FILLING && job != NULL && job->state == JOB_ENDING) {
		return SUM_DROPPING; /* once the loader has let go of it */
	}
	if (segment->state > SEGMENT_READY || model_is_pinned(core, model)) {
		return SUM_NONE;
	}
	if (segment_is_leased(segment) || segment_is_held(segment)) {
		return SUM_NONE;
	}
	if (segment_is_droppable(segment)) {
		return SUM_EVICTABLE;
	}
	return job != NULL && job->n_attaching == 0 ? SUM_LATER : SUM_NONE;
}

void segment_on_filled(struct core *core, const struct core_event *event)
{
	struct segment *segment = idtab_find(&core->segments, event->filled.segment);
	struct job *job;
	int code = event->filled.code;

	if (segment == NULL || segment->state != SEGMENT_FILLING) {
		return;
	}
	job = job_of(core, segment->job);
	REQUIRE(job != NULL && job->n_outstanding > 0);
	if (code == 0 && job->state == JOB_ENDING) {
		code = job->code; /* good, but nobody wants it any more */
	}
	job->fill_ns = event->filled.duration_ns > job->fill_ns ? event->filled.duration_ns
								: job->fill_ns;
	job->fills_ns = account_add(job->fills_ns, event->filled.duration_ns);
	if (code == 0) {
		segment_set_state(core, segment, SEGMENT_READY);
	} else {
		job->refused[segment->device] +=
			code == WIRE_NO_MEMORY && segment->device != 0 ? segment->bytes : 0;
		segment_drop(core, segment, CORE_WHY_FAILED);
	}
	job_result(core, job, code);
}

/* Once a device for all copies of a generation: with the last that is being dropped. The next one is
 * looked at first: it goes next, most likely. */
static void note_held(struct core *core, const struct segment *last)
{
	uint64_t bytes[CORE_MAX_DEVICES] = {0};

	bytes[last->device] = last->is_bare || last->is_remnant ? 0 : last->bytes;
	LIST_FOR_EACH (link, &last->by_model) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (link == &last->model->segments) {
			continue; /* round the list */
		}
		if (segment->last != last->last || segment->is_remnant) {
			continue;
		}
		if (segment->state == SEGMENT_DROPPING) {
			return;
		}
		bytes[segment->device] +=
			segment->state == SEGMENT_HELD && !segment->is_bare ? segment->bytes : 0;
	}
	core_note_by_device(core, CORE_NOTE_HELD, CORE_WHY_MAPPED, last->model, bytes);
}

void segment_on_dropped(struct core *core, const struct core_event *event)
{
	struct segment *segment = idtab_find(&core->segments, event->dropped.segment);
	struct model *model;

	if (segment == NULL || segment->state != SEGMENT_DROPPING) {
		return;
	}
	model = segment->model;
	if (segment_is_held(segment)) {
		segment_set_state(core, segment, SEGMENT_HELD);
		note_held(core, segment);
		return;
	}
	segment_remove(core, segment);
	model_settle(core, model);
}

void segment_release_held(struct core *core, struct model *model)
{
	uint64_t bytes[CORE_MAX_DEVICES] = {0};

	LIST_FOR_EACH_SAFE (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment->state == SEGMENT_HELD && !segment_is_held(segment)) {
			bytes[segment->device] += segment->is_bare ? 0 : segment->bytes;
			segment_remove(core, segment);
		}
	}
	core_note_by_device(core, CORE_NOTE_FREED, CORE_WHY_NONE, model, bytes);
	model_settle(core, model);
}

/* Images are of no use without each other. */
static bool goes_bad_with(const struct segment *segment, const struct segment *bad)
{
	return segment == bad ||
	       (!segment->is_block && !bad->is_block && segment->last == bad->last &&
		segment_is_current(segment) == segment_is_current(bad));
}

/* A copy that does not match its checksum: out of service, and with it what is of no use without
 * it; holders told, loaded again. */
static void quarantine(struct core *core, const struct segment *segment)
{
	struct model *model = segment->model;
	const bool is_current = segment_is_current(segment);
	struct job *job;

	LIST_FOR_EACH (link, &model->segments) {
		struct segment *other = OF(link, struct segment, by_model);

		other->is_bad = other->is_bad || goes_bad_with(other, segment);
	}
	model_touch(core, model);
	core_note(core, CORE_NOTE_QUARANTINED, CORE_WHY_BAD_SUM, model, segment->bytes);
	core->actions[core->n_actions - 1].device = segment->device;
	LIST_FOR_EACH (link, &model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		if (holder_has(lease->holder, segment) && !lease->is_ghost) {
			struct core_action *action = core_act(core, ACT_LOST);

			action->client = idtab_id(&core->clients, lease->client);
			action->model = idtab_id(&core->models, model);
			action->lost.lease = idtab_id(&core->leases, lease);
			action->lost.why = CORE_WHY_BAD_SUM;
		}
	}
	if (model->job != NULL) {
		retain_lose_bad(core, model->job);
	}
	model_drain(core, model);
	if (!is_current) {
		return; /* what is published is good */
	}
	job = place_begin(core, model, model->placement, model->placed_uid, model->owner_uid);
	if (job != NULL) {
		job->may_share = job_is_placed(job); /* blocks that are good stay */
		job->with_host = model->has_host;
		job->is_reload = true;
		job->why = CORE_WHY_BAD_SUM;
		job->no_wait = true;
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

void segment_verify_all(struct core *core, const struct model *model)
{
	LIST_FOR_EACH (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		/* One that is being hashed already answers for this one too. */
		if (segment->state == SEGMENT_READY && !segment->is_verifying &&
		    segment_is_current(segment)) {
			segment_verify(core, segment);
		}
	}
}

void segment_verify_published(struct core *core, const struct model *model)
{
	if (list_is_empty(&model->verifiers)) {
		return;
	}
	if (model->backing == CORE_BACKING_IMAGE) {
		segment_verify_all(core, model);
	} else {
		segment_answer_verifiers(core, model, WIRE_UNSUPPORTED);
	}
}

void segment_on_device_doubted(struct core *core, const struct core_event *event)
{
	struct segment *segment;
	uint32_t cursor = 0;

	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		if (segment->is_block && segment->device == event->device.device &&
		    segment->state == SEGMENT_READY && !segment->is_verifying &&
		    segment_is_current(segment)) {
			segment_verify(core, segment);
		}
	}
}

void segment_on_verified(struct core *core, const struct core_event *event)
{
	struct segment *segment = idtab_find(&core->segments, event->verified.segment);
	struct model *model;
	int code = event->verified.code;
	bool is_current;

	if (segment == NULL || !segment->is_verifying) {
		return;
	}
	model = segment->model;
	segment->is_verifying = false;
	is_current = segment_is_current(segment);
	if (code == 0 && !event->verified.is_equal) {
		/* First, for those that go with it are no longer verified. */
		if (is_current) {
			segment_answer_verifiers(core, model, WIRE_BAD_FILE);
		}
		if (!segment->is_bad) { /* else another one of its generation was found before */
			quarantine(core, segment);
		}
		return;
	}
	if (!is_current) {
		return; /* they wait for what was published since */
	}
	if (code == WIRE_CANCELLED && segment->state == SEGMENT_READY) {
		segment_verify(core, segment); /* what it was compared with had to go */
		return;
	}
	if (code != 0 || !is_other_verified(segment)) { /* the answer waits for the last copy */
		segment_answer_verifiers(core, model, code);
	}
}

/* Who leases the generation cannot trust what he maps of it. */
static void tell_lost(struct core *core, const struct model *model, uint32_t device)
{
	holder_find(model, device);
	LIST_FOR_EACH (link, &model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		if (lease->holder->lies_on && !lease->is_ghost) {
			struct core_action *action = core_act(core, ACT_LOST);

			action->client = idtab_id(&core->clients, lease->client);
			action->model = idtab_id(&core->models, model);
			action->device = device;
			action->lost.lease = idtab_id(&core->leases, lease);
			action->lost.why = CORE_WHY_LOST;
		}
	}
}

/* Did it never serve? It was made by a job that had not ended, or that failed. */
static bool is_of_job(const struct core *core, const struct segment *segment)
{
	const struct job *job = segment->job == 0 ? NULL : job_of(core, segment->job);

	return segment->why == CORE_WHY_FAILED ||
	       (job != NULL && segment->generation == job->generation);
}

/* Nothing of it is there any more. What is being filled goes when its fill has ended: until then
 * that uses what the job has. Returns the bytes that were and had served; '*ret_is_counted' becomes
 * true where a load counted on some. */
static uint64_t lose_copies(struct core *core, struct model *model, uint32_t device,
			    bool *ret_is_counted)
{
	uint64_t bytes = 0;

	LIST_FOR_EACH_SAFE (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment->device != device || segment->state == SEGMENT_PLANNED) {
			continue;
		}
		if (segment->state == SEGMENT_FILLING) {
			continue;
		}
		*ret_is_counted = *ret_is_counted || segment->job != 0;
		bytes += is_of_job(core, segment) ? 0 : segment->size;
		if (segment->state == SEGMENT_READY) {
			struct core_action *action = core_act(core, ACT_DROP);

			action->segment = idtab_id(&core->segments, segment);
			action->model = idtab_id(&core->models, model);
			action->device = device;
		}
		if (segment->is_block && segment->state == SEGMENT_READY &&
		    segment_is_current(segment)) {
			place_tear(model);
		}
		if (segment->is_verifying && segment_is_current(segment)) {
			segment_answer_verifiers(core, model, WIRE_DEVICE_LOST);
		}
		segment_remove(core, segment);
	}
	return bytes;
}

void segment_on_device_lost(struct core *core, const struct core_event *event)
{
	struct model *model;
	uint32_t cursor = 0;
	uint32_t device = event->device.device;

	if (device >= core->config.n_devices) {
		return;
	}
	core->accounts[device].is_lost = true;
	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		bool is_used = model->job != NULL && (model->job->devices >> device & 1) != 0;
		uint64_t bytes;

		tell_lost(core, model, device);
		bytes = lose_copies(core, model, device, &is_used);
		if (bytes > 0) {
			core_note(core, CORE_NOTE_EVICTED, CORE_WHY_LOST, model, bytes);
			core->actions[core->n_actions - 1].device = device;
		}
		if (is_used && model->job != NULL) {
			job_fail(core, model->job, WIRE_DEVICE_LOST);
		}
		model_settle(core, model);
	}
}
