/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes per device: what is charged, and what may still be taken. */
#include "base/checked.h"

#include "daemon/core/state.h"

uint64_t account_charged(const struct account *account)
{
	uint64_t charged = 0;

	for (int state = SEGMENT_RESERVED; state <= SEGMENT_HELD; state++) {
		charged += account->bucket[state];
	}
	return charged + account->reserved;
}

uint64_t account_add(uint64_t a, uint64_t b)
{
	uint64_t sum;

	return checked_add(a, b, &sum) ? sum : NEVER;
}

uint64_t account_left(uint64_t of, uint64_t taken)
{
	return of > taken ? of - taken : 0;
}

/* The budget's word, and what the outside really has beside what is being filled already. */
uint64_t account_room(const struct account *account, uint64_t coming)
{
	uint64_t charged = account_left(account_charged(account), coming);
	uint64_t filling = account->bucket[SEGMENT_RESERVED] + account->bucket[SEGMENT_FILLING];
	uint64_t by_budget = account_left(account->budget, charged);
	uint64_t by_machine = account_left(account_add(account->available, coming), filling);

	if (account->is_lost) {
		return 0;
	}
	return account->available == NEVER || by_budget < by_machine ? by_budget : by_machine;
}

/* How much beside 'coming' must come free before 'wanted' bytes have room. */
uint64_t account_lacking(const struct account *account, uint64_t coming, uint64_t wanted)
{
	uint64_t charged = account_left(account_charged(account), coming);
	uint64_t filling = account->bucket[SEGMENT_RESERVED] + account->bucket[SEGMENT_FILLING];
	uint64_t by_budget = account_left(account_add(charged, wanted), account->budget);
	uint64_t by_machine =
		account_left(account_add(filling, wanted), account_add(account->available, coming));

	return by_budget > by_machine ? by_budget : by_machine;
}

void account_uncount(struct core *core, struct segment *segment)
{
	core->accounts[segment->device].sums[segment->sum] -= segment->bytes;
	segment->model->sums[segment->device][segment->sum] -= segment->bytes;
	for (int i = 0; i < COUNT_N_VALUES; i++) {
		segment->model->counts[i] -= (uint32_t)segment->counts >> i & 1U;
	}
}

static void recount(struct core *core, struct segment *segment)
{
	const enum segment_sum sum = segment_sum_of(core, segment);
	const uint8_t counts = segment_counts(segment);

	if (segment->sum == sum && segment->counts == counts) {
		return; /* of most */
	}
	account_uncount(core, segment);
	segment->sum = (uint8_t)sum;
	segment->counts = counts;
	core->accounts[segment->device].sums[segment->sum] += segment->bytes;
	segment->model->sums[segment->device][segment->sum] += segment->bytes;
	for (int i = 0; i < COUNT_N_VALUES; i++) {
		segment->model->counts[i] += (uint32_t)segment->counts >> i & 1U;
	}
}

static void recount_parts(struct core *core, struct model *model)
{
	LIST_FOR_EACH_SAFE (link, &model->parts) {
		struct segment *segment = OF(link, struct segment, touched);

		list_remove(&segment->touched);
		if (!model->is_touched) {
			recount(core, segment);
		}
	}
	if (model->is_touched) {
		LIST_FOR_EACH (link, &model->segments) {
			recount(core, OF(link, struct segment, by_model));
		}
	}
	model->is_touched = model->beside.is_known = false;
	model->is_counted = true;
}

/* Sums and moments follow from a model's parts: worked out again for those that changed. */
void account_settle(struct core *core)
{
	LIST_FOR_EACH_SAFE (link, &core->touched) {
		struct model *model = OF(link, struct model, touched);

		list_remove(&model->touched);
		recount_parts(core, model);
		timer_set(&core->expiries, &model->expiry, evict_expiry(core, model));
		timer_set(&core->lingers, &model->linger, place_linger(core, model));
		timer_set(&core->retries, &model->retry, reserve_retry_at(model));
	}
}

uint64_t account_sum(struct core *core, uint32_t device, enum segment_sum sum)
{
	account_settle(core);
	return core->accounts[device].sums[sum];
}

void account_on_available(struct core *core, const struct core_event *event)
{
	if (event->budget.device < core->config.n_devices) {
		core->accounts[event->budget.device].available = event->budget.bytes;
	}
}

/* What is in use stays; the rest goes as far as it reaches. */
static void give_back(struct core *core, uint32_t device, uint64_t bytes, enum core_why why)
{
	uint64_t evictable = evict_evictable(core, device, NULL);

	bytes = bytes > evictable ? evictable : bytes;
	if (bytes > 0) {
		(void)evict_make_room(core, device, bytes, NULL, why);
	}
}

static void keep_budget(struct core *core, uint32_t device)
{
	const struct account *account = &core->accounts[device];
	uint64_t charged = account_charged(account);

	if (account->has_budget && charged > account->budget) {
		give_back(core, device,
			  account_left(charged,
				       account_add(account->budget,
						   account_sum(core, device, SUM_DROPPING))),
			  account->is_by_others ? CORE_WHY_PRESSURE : CORE_WHY_BUDGET);
	}
}

void account_keep_budgets(struct core *core)
{
	for (uint32_t i = 0; core->now_ns >= core->quiet_until_ns && i < core->config.n_devices;
	     i++) {
		keep_budget(core, i);
	}
}

void account_on_budget(struct core *core, const struct core_event *event)
{
	uint32_t device = event->budget.device;

	if (device < core->config.n_devices) {
		core->accounts[device].budget = event->budget.bytes;
		core->accounts[device].has_budget = true;
		core->accounts[device].is_by_others = event->budget.by_others;
		keep_budget(core, device);
	}
}

void account_on_pressure(struct core *core, const struct core_event *event)
{
	uint32_t device = event->pressure.device;

	if (device < core->config.n_devices) {
		give_back(core, device,
			  account_left(event->pressure.wanted,
				       account_sum(core, device, SUM_DROPPING)),
			  CORE_WHY_PRESSURE);
	}
}

/* What was begun before goes on; beginning again does not stop it either. */
void account_on_drain(struct core *core, const struct core_event *event)
{
	for (uint32_t i = 0; i < core->config.n_devices; i++) {
		struct account *account = &core->accounts[i];

		if (event->drain.device != i && event->drain.device != CORE_ALL_DEVICES) {
			continue;
		}
		if (!event->drain.is_on && account->drained_age != NEVER) {
			account->drained_age = NEVER;
			reserve_bring_back(core, i); /* one that ended meanwhile could not */
		} else if (event->drain.is_on && account->drained_age == NEVER) {
			account->drained_age = core->n_jobs_begun;
		}
	}
}

bool account_is_lost(const struct core *core, uint32_t devices)
{
	for (uint32_t i = 0; i < core->config.n_devices; i++) {
		if ((devices >> i & 1) != 0 && core->accounts[i].is_lost) {
			return true;
		}
	}
	return false;
}

bool account_is_drained(const struct core *core)
{
	for (uint32_t i = 0; i < core->config.n_devices; i++) {
		if (core->accounts[i].drained_age == NEVER && !core->accounts[i].is_lost) {
			return false;
		}
	}
	return core->config.n_devices > 0;
}
