/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who has to go: unleased, unpinned copies that nobody maps (dropping others frees nothing),
 * lowest priority first, then the longest idle for what it costs to get them back. Victims
 * that turn out not to be needed are spared.
 */
#include "base/require.h"

#include <string.h>

#include "daemon/core/state.h"

__extension__ typedef unsigned __int128 wide; /* products of two 64-bit numbers */

/* What may go, but for the one model it would go for. */
uint64_t evict_evictable(struct core *core, uint32_t device, const struct model *spare)
{
	uint64_t bytes = account_sum(core, device, SUM_EVICTABLE);

	if (spare == NULL) {
		return bytes;
	}
	LIST_FOR_EACH (link, &spare->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		bytes -= segment->device == device && segment->sum == SUM_EVICTABLE ? segment->bytes
										    : 0;
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
	if (idle_a * cost_ns(b) != idle_b * cost_ns(a)) {
		return idle_a * cost_ns(b) > idle_b * cost_ns(a);
	}
	return a < b; /* any order, but always the same */
}

/* Let the victim at 'place' of the heap sink below all that go before it. */
static void sink(const struct core *core, uint32_t n_victims, uint32_t place)
{
	struct segment **victims = core->victims;
	uint32_t child = 2 * place + 1;

	while (child < n_victims) {
		struct segment *above = victims[place];

		if (child + 1 < n_victims &&
		    goes_before(core, victims[child + 1], victims[child])) {
			child++;
		}
		if (goes_before(core, above, victims[child])) {
			return;
		}
		victims[place] = victims[child];
		victims[child] = above;
		place = child;
		child = 2 * place + 1;
	}
}

/* All that may go, as a heap with the first to go on top. Returns how many. */
static uint32_t gather(const struct core *core, uint32_t device, const struct model *spare)
{
	struct segment *segment;
	uint32_t cursor = 0;
	uint32_t n_victims = 0;

	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		if (segment->device == device && segment->sum == SUM_EVICTABLE &&
		    segment->model != spare) {
			core->victims[n_victims++] = segment;
		}
	}
	for (uint32_t i = n_victims / 2; i > 0; i--) {
		sink(core, n_victims, i - 1);
	}
	return n_victims;
}

/*
 * Choose: the chosen ones lie behind the heap then, '*ret_first' is the place of the last chosen
 * and the first chosen comes last. Those that turn out not to be needed become NULL.
 */
static uint32_t choose(const struct core *core, uint32_t device, uint64_t bytes,
		       const struct model *spare)
{
	uint32_t n_all = gather(core, device, spare);
	uint32_t n_left = n_all;
	uint64_t total = 0;

	while (total < bytes && n_left > 0) {
		struct segment *victim = core->victims[0];

		core->victims[0] = core->victims[--n_left];
		core->victims[n_left] = victim;
		sink(core, n_left, 0);
		total += victim->bytes;
	}
	REQUIRE(total >= bytes);
	for (uint32_t i = n_left; i < n_all; i++) {
		if (total - core->victims[i]->bytes >= bytes) {
			total -= core->victims[i]->bytes;
			core->victims[i] = NULL; /* spared */
		}
	}
	memmove(core->victims, core->victims + n_left, (n_all - n_left) * sizeof(void *));
	return n_all - n_left;
}

static void note_eviction(struct core *core, const struct segment *victim, const struct job *job,
			  enum core_why why)
{
	struct core_action *action;

	core->counters.evictions++;
	core_note(core, CORE_NOTE_EVICTED, why, victim->model, victim->bytes);
	action = &core->actions[core->n_actions - 1];
	action->device = victim->device;
	if (job != NULL) {
		action->job = idtab_id(&core->job_table, job);
		action->note.for_model = idtab_id(&core->models, job->model);
	}
}

bool evict_make_room(struct core *core, uint32_t device, uint64_t bytes, const struct job *job,
		     enum core_why why)
{
	const struct model *spare = job == NULL ? NULL : job->model;
	uint32_t n_victims;

	if (evict_evictable(core, device, spare) < bytes) {
		return false;
	}
	n_victims = choose(core, device, bytes, spare);
	for (uint32_t i = n_victims; i > 0; i--) {
		struct segment *victim = core->victims[i - 1];

		if (victim != NULL) {
			note_eviction(core, victim, job, why);
			segment_drop(core, victim, why);
		}
	}
	return true;
}

/* The copy by which the model is judged, when it has some and all of them may go; else NULL. */
static const struct segment *find_leavable(const struct model *model)
{
	const struct segment *first = NULL;

	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (segment->sum != SUM_EVICTABLE) {
			return NULL;
		}
		first = first == NULL ? segment : first;
	}
	return list_is_empty(&model->leases) && model->job == NULL ? first : NULL;
}

bool evict_model(struct core *core, const struct user *owner, bool may_be_kept)
{
	const struct segment *best = NULL;
	struct model *model;
	uint32_t cursor = 0;

	account_settle(core);
	if (core->now_ns < core->quiet_until_ns) {
		return false;
	}
	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		const struct segment *segment =
			owner != NULL && model->owner != owner ? NULL : find_leavable(model);

		if (segment != NULL && (may_be_kept || !model_is_kept(core, model)) &&
		    (best == NULL || goes_before(core, segment, best))) {
			best = segment;
		}
	}
	if (best == NULL) {
		return false;
	}
	model = best->model;
	core->counters.evictions++;
	(void)model_drop(core, model, CORE_NOTE_EVICTED, CORE_WHY_ROOM);
	model->is_leaving = true;
	model->owner->n_leaving++;
	core->n_leaving++;
	return true;
}

/* When the model's time without use runs out; NEVER: it does not, or something keeps it. */
uint64_t evict_expiry(const struct core *core, const struct model *model)
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
	account_settle(core);
	while (timer_deadline(&core->expiries) <= core->now_ns) {
		struct model *model = OF(timer_first(&core->expiries), struct model, expiry);

		timer_set(&core->expiries, &model->expiry, NEVER);
		core->counters.evictions++;
		(void)model_drop(core, model, CORE_NOTE_EVICTED, CORE_WHY_IDLE);
	}
}
