/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who has to go: unleased, unpinned copies that nobody maps (dropping others frees nothing),
 * lowest priority first, then the longest idle for what it costs to get them back. Victims
 * that turn out not to be needed are spared.
 */
#include "base/require.h"

#include "daemon/core/state.h"

__extension__ typedef unsigned __int128 wide; /* products of two 64-bit numbers */

static bool may_go(const struct core *core, const struct segment *segment,
		   const struct model *spare)
{
	const struct model *model = segment->model;

	return segment_is_droppable(segment) && model != spare && model_is_idle(model) &&
	       !model_is_pinned(core, model) && segment_n_mappers(segment) == 0;
}

uint64_t evict_evictable(const struct core *core, uint32_t device, const struct model *spare)
{
	const struct segment *segment;
	uint64_t bytes = 0;
	uint32_t cursor = 0;

	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		if (segment->device == device && may_go(core, segment, spare)) {
			bytes += segment->bytes;
		}
	}
	return bytes;
}

static bool will_be_leased(const struct job *job)
{
	LIST_FOR_EACH (link, &job->waiters) {
		if (OF(link, struct waiter, by_owner)->attach) {
			return true;
		}
	}
	return false;
}

uint64_t evict_evictable_later(const struct core *core, uint32_t device)
{
	const struct segment *segment;
	uint64_t bytes = 0;
	uint32_t cursor = 0;

	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		const struct job *job = segment->job == 0 ? NULL : job_of(core, segment->job);

		if (job != NULL && segment->device == device && segment->state <= SEGMENT_READY &&
		    !will_be_leased(job) && !model_is_pinned(core, segment->model)) {
			bytes += segment->bytes;
		}
	}
	return bytes;
}

/* Nanoseconds to get it back: as measured, else by an ordinary disk's speed. */
static uint64_t cost_ns(const struct segment *segment)
{
	if (segment->model->load_ns > 0) {
		return segment->model->load_ns;
	}
	return segment->bytes * DEFAULT_NS_PER_BYTE + 1;
}

static bool goes_before(const struct core *core, const struct segment *a, const struct segment *b)
{
	bool is_old_a = a->generation != a->model->generation;
	bool is_old_b = b->generation != b->model->generation;
	int16_t priority_a = model_priority(a->model);
	int16_t priority_b = model_priority(b->model);
	wide idle_a = core->now_ns - a->model->last_used_ns + 1;
	wide idle_b = core->now_ns - b->model->last_used_ns + 1;

	if (is_old_a != is_old_b) {
		return is_old_a;
	}
	if (priority_a != priority_b) {
		return priority_a < priority_b;
	}
	return idle_a * cost_ns(b) > idle_b * cost_ns(a);
}

static struct segment *pick(const struct core *core, uint32_t device, const struct model *spare)
{
	struct segment *best = NULL;
	struct segment *segment;
	uint32_t cursor = 0;

	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		if (segment->device == device && segment->victim_order == 0 &&
		    may_go(core, segment, spare) &&
		    (best == NULL || goes_before(core, segment, best))) {
			best = segment;
		}
	}
	return best;
}

static struct segment *find_order(const struct core *core, uint32_t order)
{
	struct segment *segment;
	uint32_t cursor = 0;

	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		if (segment->victim_order == order) {
			return segment;
		}
	}
	return NULL;
}

/* Choose; returns how many, and spares from the last one back what is not needed. */
static uint32_t choose(struct core *core, uint32_t device, uint64_t bytes,
		       const struct model *spare, uint64_t *ret_total)
{
	uint32_t n_victims = 0;
	uint64_t total = 0;

	while (total < bytes) {
		struct segment *victim = pick(core, device, spare);

		if (victim == NULL) {
			break;
		}
		victim->victim_order = ++n_victims;
		total += victim->bytes;
	}
	for (uint32_t order = n_victims; order > 0 && total >= bytes; order--) {
		struct segment *victim = find_order(core, order);

		if (total - victim->bytes >= bytes) {
			total -= victim->bytes;
			victim->victim_order = UINT32_MAX; /* spared */
		}
	}
	*ret_total = total;
	return n_victims;
}

static void note_eviction(struct core *core, const struct segment *victim, const struct job *job)
{
	struct core_action *action;

	core->counters.evictions++;
	core_note(core, CORE_NOTE_EVICTED, job == NULL ? CORE_WHY_BUDGET : CORE_WHY_ROOM,
		  victim->model, victim->bytes);
	action = &core->actions[core->n_actions - 1];
	action->device = victim->device;
	if (job != NULL) {
		action->job = idtab_id(&core->job_table, job);
		action->note.for_model = idtab_id(&core->models, job->model);
	}
}

bool evict_make_room(struct core *core, uint32_t device, uint64_t bytes, const struct job *job)
{
	struct segment *segment;
	uint64_t total = 0;
	uint32_t cursor = 0;

	(void)choose(core, device, bytes, job == NULL ? NULL : job->model, &total);
	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		uint32_t order = segment->victim_order;

		segment->victim_order = 0;
		if (order != 0 && order != UINT32_MAX && total >= bytes) {
			note_eviction(core, segment, job);
			segment_drop(core, segment, CORE_WHY_ROOM);
		}
	}
	return total >= bytes;
}

/* When the model's time without use runs out; NEVER: it does not, or something keeps it. */
static uint64_t expiry(const struct core *core, const struct model *model)
{
	uint64_t ttl_ns = model_ttl_ns(core, model);

	if (ttl_ns == NEVER || !model_is_idle(model) || model_is_pinned(core, model) ||
	    model->job != NULL || !model_is_resident(model) ||
	    ttl_ns > NEVER - 1 - model->last_used_ns) {
		return NEVER;
	}
	return model->last_used_ns + ttl_ns;
}

void evict_expired(struct core *core)
{
	struct model *model;
	uint32_t cursor = 0;

	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		if (expiry(core, model) <= core->now_ns) {
			core->counters.evictions++;
			(void)model_drop(core, model, CORE_NOTE_EVICTED, CORE_WHY_IDLE);
		}
	}
}

uint64_t evict_deadline(const struct core *core)
{
	const struct model *model;
	uint64_t soonest = NEVER;
	uint32_t cursor = 0;

	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		uint64_t at = expiry(core, model);

		soonest = at < soonest ? at : soonest;
	}
	return soonest;
}
