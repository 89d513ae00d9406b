/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission, all or nothing over several devices, in the order of arrival; but who would exceed
 * its share of a device lets others go first for a while. One that is behind in this order may
 * pass one before it only where it leaves what that needs, so nobody starves and two jobs never
 * wait for each other.
 */
#include "base/checked.h"
#include "base/require.h"

#include "daemon/core/state.h"

static uint64_t need_on(const struct job *job, uint32_t device)
{
	return job->need[device];
}

/* The devices where it needs room, as bits. */
static uint32_t needs_of(const struct job *job)
{
	uint32_t devices = 0;

	for (uint32_t device = 0; device < CORE_MAX_DEVICES; device++) {
		devices |= job->need[device] > 0 ? 1U << device : 0;
	}
	return devices;
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
		if (need <= reachable) {
			continue;
		}
		coming = account_add(coming, evict_later(core, device, job->model));
		if (need > account_room(account, coming)) {
			set_shortage(core, job, device, reachable);
			return POSSIBLE_NEVER;
		}
		possible = POSSIBLE_LATER;
	}
	return possible;
}

/* Does it need a device that takes no new loads, be it no byte of it, and is it new? */
static bool is_too_late(const struct core *core, const struct job *job)
{
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		if (job->age > core->accounts[device].drained_age &&
		    (job->takes >> device & 1) != 0) {
			return true;
		}
	}
	return false;
}

/* Why it cannot be let in, whatever may go; 0: it can, perhaps. */
static int refusal(const struct core *core, const struct job *job)
{
	return is_too_late(core, job)                ? WIRE_BUSY
	       : account_is_lost(core, job->devices) ? WIRE_DEVICE_LOST
	       : job->is_too_many                    ? WIRE_TOO_MANY
						     : 0;
}

/* Until when it lets others go first, and those that come and go. */
static uint64_t patient_until(const struct job *job)
{
	return account_add(job->room_ns, CORE_SHARE_PATIENCE_NS);
}

static bool has_room(struct core *core, const struct job *job, const uint64_t *older)
{
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		uint64_t need = need_on(job, device);

		/* Where it was refused before, what goes for it has to be gone; but others that
		 * come and go there do not keep it for ever. */
		if (need > 0 && job->refused[device] > 0 && core->now_ns < patient_until(job) &&
		    account_sum(core, device, SUM_DROPPING) > 0) {
			return false;
		}
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

/* Let the job in, or make room for it, or put it among the older ones. True: it waits. */
static bool admit(struct core *core, struct job *job, uint64_t *older, bool is_first)
{
	enum possible possible;
	int code;

	retain_take_back(core, job);
	code = refusal(core, job);
	/* What leaves its device for want of use, or comes back to it, takes nothing from others. */
	if (code == 0 && (job->is_demotion || job_is_modest(job)) && !has_room(core, job, older)) {
		code = WIRE_NO_MEMORY;
	}
	if (code != 0) {
		job_fail(core, job, code);
		return false;
	}
	possible = how_possible(core, job);
	if (possible != POSSIBLE_NOW && is_first &&
	    retain_give_way(core, job->model, needs_of(job))) {
		possible = how_possible(core, job);
	}
	if (possible == POSSIBLE_NEVER) {
		job_fail(core, job, WIRE_NO_MEMORY);
		return false;
	}
	if (has_room(core, job, older)) {
		job_fill(core, job);
		return false;
	}
	if (possible == POSSIBLE_NOW && core->now_ns >= core->quiet_until_ns) {
		make_room(core, job, older);
	}
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		older[device] = account_add(older[device], need_on(job, device));
	}
	return true;
}

/* Would it give its model's user more than the share? */
static bool exceeds_share(const struct core *core, const struct job *job)
{
	const struct user *user = job->model->owner;

	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		uint64_t need = need_on(job, device);

		if (need > 0 && account_add(user->taken[device], need) > core_share(core, device)) {
			return true;
		}
	}
	return false;
}

/*
 * Those that have to let the jobs of others go first: that would exceed the share while somebody
 * waits who would not, and has done so for no longer than it has to; and behind each of them all
 * of the same user, so that nobody passes himself.
 */
static void defer(struct core *core)
{
	const struct user *within = NULL;
	bool are_several = false;

	LIST_FOR_EACH (link, &core->rooms) {
		struct job *job = OF(link, struct job, by_room);
		struct user *user = job->model->owner;

		job->is_deferred = exceeds_share(core, job);
		user->is_deferred = false;
		if (!job->is_deferred) {
			are_several = are_several || (within != NULL && within != user);
			within = user;
		}
	}
	LIST_FOR_EACH (link, &core->rooms) {
		struct job *job = OF(link, struct job, by_room);
		struct user *user = job->model->owner;
		bool is_patient = core->now_ns < patient_until(job);
		bool is_other = are_several || (within != NULL && within != user);

		job->is_deferred = user->is_deferred ||
				   (job->is_deferred && is_patient && is_other);
		user->is_deferred = job->is_deferred;
	}
}

/* Those between two ages. True: one of them waits. */
static bool admit_reservations(struct core *core, uint64_t from, uint64_t to, uint64_t *older,
			       bool is_first)
{
	bool is_waiting = false;

	LIST_FOR_EACH_SAFE (link, &core->reserving) {
		struct reservation *reservation = OF(link, struct reservation, by_age);

		if (reservation->age > from && reservation->age < to) {
			is_waiting =
				reserve_admit(core, reservation, older, is_first && !is_waiting) ||
				is_waiting;
		}
	}
	return is_waiting;
}

void admit_run(struct core *core)
{
	uint64_t older[CORE_MAX_DEVICES] = {0};
	uint64_t age = 0;
	bool is_first = true;

	defer(core);
	for (int round = 0; round < 2; round++) {
		LIST_FOR_EACH_SAFE (link, &core->rooms) {
			struct job *job = OF(link, struct job, by_room);

			if (round == 0) {
				is_first =
					!admit_reservations(core, age, job->age, older, is_first) &&
					is_first;
				age = job->age;
			}
			if (job->is_deferred == (round == 1)) {
				is_first = !admit(core, job, older, is_first) && is_first;
			}
		}
		if (round == 0) {
			is_first = !admit_reservations(core, age, NEVER, older, is_first) &&
				   is_first;
		}
	}
}

uint64_t admit_deadline(const struct core *core)
{
	uint64_t soonest_ns = NEVER;

	LIST_FOR_EACH (link, &core->rooms) {
		const uint64_t at_ns = patient_until(OF(link, struct job, by_room));

		soonest_ns = at_ns > core->now_ns && at_ns < soonest_ns ? at_ns : soonest_ns;
	}
	return soonest_ns;
}
