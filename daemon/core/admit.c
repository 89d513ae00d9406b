/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission, all or nothing over several devices, in the order of arrival. A younger job may
 * pass an older one only where it leaves what the older one needs, so nobody starves and two
 * jobs never wait for each other.
 */
#include "base/checked.h"
#include "base/require.h"

#include "daemon/core/state.h"

static uint64_t need_on(const struct job *job, uint32_t device)
{
	uint64_t need = 0;

	for (uint32_t i = 0; i < job->n_needs; i++) {
		if (job->needs[i].device == device &&
		    !checked_add(need, job->needs[i].bytes, &need)) {
			return NEVER; /* more than there can be */
		}
	}
	return need;
}

static void set_shortage(const struct core *core, struct job *job, uint32_t device,
			 uint64_t reachable)
{
	const struct account *account = &core->accounts[device];
	uint64_t room = account_room(account, 0);

	job->has_shortage = true;
	job->short_device = device;
	job->shortage = (struct core_shortage){
		.need = need_on(job, device),
		.budget = account->budget,
		.free = room,
		.evictable = account_left(reachable, room),
		.held = account->bucket[SEGMENT_HELD],
		.foreign =
			account_left(account_left(account->budget, account_charged(account)), room),
	};
}

enum possible { POSSIBLE_NEVER, POSSIBLE_LATER, POSSIBLE_NOW };

/*
 * Could the job be admitted by evicting what may go, now or once running loads have ended?
 * If never, the numbers are kept for the answer.
 */
static enum possible how_possible(struct core *core, struct job *job)
{
	enum possible possible = POSSIBLE_NOW;

	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		const struct account *account = &core->accounts[device];
		uint64_t need = need_on(job, device);
		uint64_t coming;
		uint64_t reachable;

		if (need == 0) {
			continue;
		}
		coming = account_add(evict_evictable(core, device, job->model),
				     account_sum(core, device, SUM_DROPPING));
		reachable = account_room(account, coming);
		if (!account->is_lost && need <= reachable) {
			continue;
		}
		coming = account_add(coming, account_sum(core, device, SUM_LATER));
		if (account->is_lost || need > account_room(account, coming)) {
			set_shortage(core, job, device, reachable);
			return POSSIBLE_NEVER;
		}
		possible = POSSIBLE_LATER;
	}
	return possible;
}

static bool has_room(const struct core *core, const struct job *job, const uint64_t *older)
{
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		uint64_t need = need_on(job, device);

		if (need > 0 &&
		    account_add(need, older[device]) > account_room(&core->accounts[device], 0)) {
			return false;
		}
	}
	return true;
}

/* Have as much dropped as the job lacks beside what is being dropped already. */
static void make_room(struct core *core, const struct job *job, const uint64_t *older)
{
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		uint64_t need = need_on(job, device);
		uint64_t dropping = account_sum(core, device, SUM_DROPPING);
		uint64_t lacking = need == 0 ? 0
					     : account_lacking(&core->accounts[device], dropping,
							       account_add(need, older[device]));

		if (lacking > 0) {
			/* None or not all: the older jobs go first, then it is tried again. */
			(void)evict_make_room(core, device, lacking, job, CORE_WHY_ROOM);
		}
	}
}

void admit_run(struct core *core)
{
	uint64_t older[CORE_MAX_DEVICES] = {0};

	LIST_FOR_EACH_SAFE (link, &core->rooms) {
		struct job *job = OF(link, struct job, by_room);
		enum possible possible = how_possible(core, job);

		if (possible == POSSIBLE_NEVER) {
			job_fail(core, job, WIRE_NO_MEMORY);
			continue;
		}
		if (has_room(core, job, older)) {
			job_fill(core, job);
			continue;
		}
		if (possible == POSSIBLE_NOW && core->now_ns >= core->quiet_until_ns) {
			make_room(core, job, older);
		}
		for (uint32_t device = 0; device < core->config.n_devices; device++) {
			older[device] = account_add(older[device], need_on(job, device));
		}
	}
}
