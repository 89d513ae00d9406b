/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who has to go: unleased, unpinned copies that nobody maps (dropping others frees nothing),
 * all that a generation has on the device at once; those of users above their share first, down
 * to it; lowest priority first, then the longest idle for what it costs to get them back. Victims
 * that turn out not to be needed are spared.
 */
#include "base/require.h"

#include <string.h>

#include "daemon/core/state.h"

__extension__ typedef unsigned __int128 wide; /* products of two 64-bit numbers */

/* Of all models, but for the one it would go for. */
static uint64_t sum_of_others(struct core *core, uint32_t device, enum segment_sum sum,
			      const struct model *spare)
{
	uint64_t bytes = account_sum(core, device, sum);

	return spare == NULL ? bytes : bytes - spare->sums[device][sum];
}

uint64_t evict_evictable(struct core *core, uint32_t device, const struct model *spare)
{
	return sum_of_others(core, device, SUM_EVICTABLE, spare);
}

uint64_t evict_later(struct core *core, uint32_t device, const struct model *spare)
{
	return sum_of_others(core, device, SUM_LATER, spare);
}

/* Without one of its copies on a device a generation is of no use: they go together. */
static bool goes_with(const struct segment *segment, const struct segment *victim)
{
	return segment == victim ||
	       (!victim->is_block && !segment->is_block && segment->sum == SUM_EVICTABLE &&
		segment->last == victim->last && segment->device == victim->device);
}

/* The first of those that go together stands for all. */
static bool stands_for_all(const struct segment *victim)
{
	if (victim->is_block) {
		return true;
	}
	LIST_FOR_EACH (link, &victim->model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (goes_with(segment, victim)) {
			return segment == victim;
		}
	}
	return false;
}

static uint64_t bytes_with(const struct segment *victim)
{
	uint64_t bytes = 0;

	if (victim->is_block) {
		return victim->bytes;
	}
	LIST_FOR_EACH (link, &victim->model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		bytes += goes_with(segment, victim) ? segment->bytes : 0;
	}
	return bytes;
}

/* Nanoseconds to get it back: as measured, else by an ordinary disk's speed. */
static wide cost_ns(const struct segment *segment)
{
	if (segment->model->load_ns > 0) {
		return segment->model->load_ns;
	}
	return (wide)segment->model->key.size * DEFAULT_NS_PER_BYTE + 1;
}

static bool goes_before(const struct core *core, const struct segment *a, const struct segment *b)
{
	bool is_old_a = !segment_is_current(a);
	bool is_old_b = !segment_is_current(b);
	int16_t priority_a = model_priority(a->model);
	int16_t priority_b = model_priority(b->model);
	wide idle_a = core->now_ns - a->model->last_used_ns + 1;
	wide idle_b = core->now_ns - b->model->last_used_ns + 1;

	if (is_old_a != is_old_b) {
		return is_old_a;
	}
	if (a->is_above != b->is_above) {
		return a->is_above;
	}
	if (priority_a != priority_b) {
		return priority_a < priority_b;
	}
	if (idle_a * cost_ns(b) != idle_b * cost_ns(a)) {
		return idle_a * cost_ns(b) > idle_b * cost_ns(a);
	}
	if (a->model == b->model && a->is_same != b->is_same) {
		return b->is_same;
	}
	if (a->model == b->model && a->is_block && b->is_block) {
		return a->index > b->index; /* the last blocks are needed last */
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
		    segment->model != spare && stands_for_all(segment)) {
			segment->model->owner->left = segment->model->owner->taken[device];
			segment->is_above = segment->model->owner->left > core_share(core, device);
			core->victims[n_victims++] = segment;
		}
	}
	for (uint32_t i = n_victims / 2; i > 0; i--) {
		sink(core, n_victims, i - 1);
	}
	return n_victims;
}

/* The one on top has to go. Its user may have come down to the share by that. */
static uint64_t take_top(const struct core *core, uint32_t n_left)
{
	struct segment *victim = core->victims[0];
	struct user *owner = victim->model->owner;
	uint64_t bytes = bytes_with(victim);

	core->victims[0] = core->victims[n_left];
	core->victims[n_left] = victim;
	sink(core, n_left, 0);
	owner->left = account_left(owner->left, bytes);
	return bytes;
}

/*
 * Those that are not needed become NULL, the last chosen first; but nobody above the share is
 * spared at the cost of another user.
 */
static void spare_some(struct segment **chosen, uint32_t n_chosen, uint64_t not_needed)
{
	const struct user *other = NULL;
	bool is_mixed = false;

	for (uint32_t i = 0; i < n_chosen; i++) {
		const struct user *owner = chosen[i]->model->owner;
		bool is_above = chosen[i]->is_above;
		bool is_first_to_go = is_above && other != NULL && (is_mixed || other != owner);
		uint64_t bytes = bytes_with(chosen[i]);

		chosen[i]->is_above = false;
		if (bytes <= not_needed && (bytes == 0 || !is_first_to_go)) {
			not_needed -= bytes;
			chosen[i] = NULL;
		} else if (!is_above) {
			is_mixed = is_mixed || (other != NULL && other != owner);
			other = owner;
		}
	}
}

/*
 * Choose: the chosen ones lie behind the heap then, the first chosen comes last. Those that turn
 * out not to be needed become NULL. Returns how many there are.
 */
static uint32_t choose(const struct core *core, uint32_t device, uint64_t bytes,
		       const struct model *spare)
{
	const uint64_t share = core_share(core, device);
	uint32_t n_all = gather(core, device, spare);
	uint32_t n_left = n_all;
	uint64_t total = 0;

	while (total < bytes && n_left > 0) {
		struct segment *top = core->victims[0];

		if (top->is_above && top->model->owner->left <= share) {
			top->is_above = false;
			sink(core, n_left, 0);
		} else {
			total += take_top(core, --n_left);
		}
	}
	REQUIRE(total >= bytes);
	for (uint32_t i = 0; i < n_left; i++) {
		core->victims[i]->is_above = false;
	}
	spare_some(core->victims + n_left, n_all - n_left, total - bytes);
	memmove(core->victims, core->victims + n_left, (n_all - n_left) * sizeof(void *));
	return n_all - n_left;
}

uint64_t evict_would_free(struct core *core, uint32_t device, uint64_t bytes,
			  const struct model *spare)
{
	uint32_t n_victims;
	uint64_t freed = 0;

	if (bytes == 0 || evict_evictable(core, device, spare) < bytes) {
		return 0;
	}
	n_victims = choose(core, device, bytes, spare);
	for (uint32_t i = 0; i < n_victims; i++) {
		freed += core->victims[i] == NULL ? 0 : bytes_with(core->victims[i]);
	}
	return freed;
}

/* Once for all that go of the model. */
static void note_eviction(struct core *core, const struct segment *victim, const struct job *job,
			  enum core_why why)
{
	struct core_action *action;

	if (victim->model->going == 0) {
		return;
	}
	core->counters.evictions++;
	core_note(core, CORE_NOTE_EVICTED, why, victim->model, victim->model->going);
	victim->model->going = 0;
	action = &core->actions[core->n_actions - 1];
	action->device = victim->device;
	action->client = core->displacing_client;
	if (core->displacing_client != 0) {
		reserve_note_displaced(victim->model);
	}
	model_touch(core, victim->model);
	if (job != NULL) {
		action->job = idtab_id(&core->job_table, job);
		action->note.for_model = idtab_id(&core->models, job->model);
	}
}

static void drop_with(struct core *core, const struct segment *victim, enum core_why why)
{
	if (victim->is_block) {
		return;
	}
	LIST_FOR_EACH_SAFE (link, &victim->model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment != victim && goes_with(segment, victim)) {
			segment_drop(core, segment, why);
		}
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
	for (uint32_t i = 0; i < n_victims; i++) {
		struct segment *victim = core->victims[i];

		if (victim != NULL) {
			victim->model->going += bytes_with(victim);
		}
	}
	for (uint32_t i = n_victims; i > 0; i--) {
		struct segment *victim = core->victims[i - 1];

		if (victim != NULL) {
			note_eviction(core, victim, job, why);
			drop_with(core, victim, why);
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

bool evict_is_overdue(const struct core *core, const struct model *model)
{
	return model_is_idle(model) && !model_is_pinned(core, model) &&
	       core->now_ns - model->last_used_ns >= model_ttl_ns(core, model);
}

/* When the model's time without use runs out; NEVER: it does not, or something keeps it. */
uint64_t evict_expiry(const struct core *core, const struct model *model)
{
	uint64_t ttl_ns = model_ttl_ns(core, model);

	if (ttl_ns == NEVER || !model_is_idle(model) || model_is_pinned(core, model) ||
	    model->job != NULL || model_count(model, COUNT_FREE) == 0 ||
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
		model->is_torn = false; /* it need not come back */
		model->is_displaced = false;
		model_touch(core, model);
		(void)model_drop(core, model, CORE_NOTE_EVICTED, CORE_WHY_IDLE);
	}
}

bool evict_can_make_up(struct core *core, const struct job *job)
{
	bool is_refused = false;

	if (job_is_modest(job)) {
		return false;
	}
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		const uint64_t bytes = job->refused[device];

		if (bytes > evict_evictable(core, device, job->model)) {
			return false;
		}
		is_refused = is_refused || bytes > 0;
	}
	return is_refused && job->n_restarts == 0 && core->now_ns >= core->quiet_until_ns;
}

void evict_make_up(struct core *core, const struct job *job)
{
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		if (job->refused[device] > 0) {
			(void)evict_make_room(core, device, job->refused[device], job,
					      CORE_WHY_ROOM);
		}
	}
}
