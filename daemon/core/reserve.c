/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room on a device for what is not ours: a sampler's activations, a stranger's program. It takes
 * its turn among the loads by age, evicts what nobody uses, and where it is told to asks those
 * who use something there to let it go. It ends with the connection, its time or a release;
 * then what had to go for one comes back, as soon as it has room without taking any from others.
 */
#include "base/require.h"

#include "daemon/core/state.h"

/* What has no room to come back is tried again, at most about once a minute: nobody waits for it. */
#define FIRST_RETRY_NS 1000000000ULL
#define MAX_DOUBLINGS  6U

static struct account *account_of(struct core *core, const struct reservation *reservation)
{
	return &core->accounts[reservation->device];
}

static struct client *owner_of(const struct reservation *reservation)
{
	return reservation->client;
}

/* ---- what had to go ---- */

void reserve_note_displaced(struct model *model)
{
	if (!model->is_displaced) {
		model->is_displaced = true;
		model->retry_ns = NEVER; /* the reservation's end brings it back */
		model->n_tries = 0;
	}
}

static void retry_later(const struct core *core, struct model *model)
{
	const uint32_t doublings = model->n_tries < MAX_DOUBLINGS ? model->n_tries++
								  : MAX_DOUBLINGS;

	model->retry_ns = account_add(core->now_ns, FIRST_RETRY_NS << doublings);
}

static void bring_back(struct core *core, struct model *model)
{
	struct job *job;

	model->retry_ns = NEVER;
	model_touch(core, model);
	if (model_is_resident(model)) {
		model->is_displaced = false; /* only what nobody needs any more had to go */
		return;
	}
	if (evict_is_overdue(core, model)) {
		place_give_up(core, model);
		return;
	}
	/* It is displaced until that is published: another reservation may still be in the way. */
	job = place_begin(core, model, place_to_return(core, model), model->placed_uid,
			  model->owner_uid);
	if (job != NULL) {
		job->with_host = model->has_host;
		job->is_reload = job->is_return = job->no_wait = true;
		job->why = CORE_WHY_RESERVED;
	} else { /* it has a job, which may fail, or its user has too many */
		retry_later(core, model);
	}
}

void reserve_bring_back(struct core *core, uint32_t device)
{
	struct model *model;
	uint32_t cursor = 0;

	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		place_come_back(core, model, device);
		/* Not only where it lay: what has been away for long comes back to the host. */
		if (model->is_displaced && ((model->devices | 1) >> device & 1) != 0) {
			model->n_tries = 0;
			bring_back(core, model);
		}
	}
}

void reserve_note_failed(struct core *core, struct model *model, const struct job *job)
{
	const int code = job->code;
	const bool may_pass = code == WIRE_NO_MEMORY || code == WIRE_TOO_MANY ||
			      code == WIRE_BUSY || code == WIRE_DEVICE_LOST ||
			      code == WIRE_CANCELLED || code == WIRE_SHUTTING_DOWN;

	if (may_pass || !job->is_return) {
		retry_later(core, model);
	} else {
		place_give_up(core, model); /* its file is what keeps it away */
	}
}

uint64_t reserve_retry_at(const struct model *model)
{
	return model->is_displaced && model->job == NULL ? model->retry_ns : NEVER;
}

void reserve_retry(struct core *core)
{
	account_settle(core);
	while (timer_deadline(&core->retries) <= core->now_ns) {
		struct model *model = OF(timer_first(&core->retries), struct model, retry);

		timer_set(&core->retries, &model->retry, NEVER);
		bring_back(core, model);
	}
}

/* ---- reservations ---- */

static void end(struct core *core, struct reservation *reservation)
{
	const uint32_t device = reservation->device;
	const bool was_in_the_way = reservation->is_granted || reservation->has_displaced;

	if (reservation->is_granted) {
		account_of(core, reservation)->reserved -= reservation->bytes;
		owner_of(reservation)->user->taken[device] -= reservation->bytes;
	}
	timer_set(&core->reservation_ends, &reservation->end, NEVER);
	list_remove(&reservation->by_client);
	list_remove(&reservation->by_age);
	owner_of(reservation)->user->n_reservations--;
	idtab_remove(&core->reservations, reservation);
	if (was_in_the_way) {
		reserve_bring_back(core, device);
	}
}

static void refuse(struct core *core, struct reservation *reservation, int code)
{
	const struct account *account = account_of(core, reservation);
	struct core_action *action;
	uint64_t room = account_room(account, 0);

	core_reply(core, owner_of(reservation), reservation->request, code, NULL);
	action = &core->actions[core->n_actions - 1];
	action->device = reservation->device;
	if (code == WIRE_NO_MEMORY || code == WIRE_BUSY) {
		action->shortage = (struct core_shortage){
			.need = reservation->bytes,
			.budget = account->budget,
			.free = room,
			.evictable = account_sum(core, reservation->device, SUM_EVICTABLE),
			.held = account->bucket[SEGMENT_HELD],
			.foreign = account_left(account_left(account->budget,
							     account_charged(account)),
						room),
			.is_recalling = reservation->recall_ns > 0,
		};
	}
	end(core, reservation);
}

static void grant(struct core *core, struct reservation *reservation)
{
	struct core_action *action;

	list_remove(&reservation->by_age);
	reservation->is_granted = true;
	account_of(core, reservation)->reserved += reservation->bytes;
	owner_of(reservation)->user->taken[reservation->device] += reservation->bytes;
	timer_set(&core->reservation_ends, &reservation->end,
		  reservation->ttl_ns == 0 ? NEVER
					   : account_add(core->now_ns, reservation->ttl_ns));
	core_reply(core, owner_of(reservation), reservation->request, 0, NULL);
	action = &core->actions[core->n_actions - 1];
	action->device = reservation->device;
	action->reply.lease = idtab_id(&core->reservations, reservation);
}

static void recall_lease(struct core *core, const struct reservation *reservation,
			 const struct lease *lease)
{
	struct core_action *action = core_act(core, ACT_RECALL);

	action->client = idtab_id(&core->clients, lease->client);
	action->model = idtab_id(&core->models, lease->model);
	action->device = reservation->device;
	action->recall.lease = idtab_id(&core->leases, lease);
	action->recall.for_client = idtab_id(&core->clients, reservation->client);
	action->recall.within_ns = reservation->recall_ns;
}

/* Those who lease something there are asked, once; of one reservation in a step. */
static void recall(struct core *core, struct reservation *reservation)
{
	const struct model *model;
	uint32_t cursor = 0;

	if (core->has_recalled) {
		core->has_to_recall = true;
		return;
	}
	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		if (model_is_pinned(core, model)) {
			continue;
		}
		holder_find(model, reservation->device);
		LIST_FOR_EACH (link, &model->leases) {
			const struct lease *lease = OF(link, struct lease, by_model);

			if (!lease->is_ghost && lease->client != reservation->client &&
			    lease->holder->lies_on) {
				recall_lease(core, reservation, lease);
			}
		}
	}
	core->has_recalled = reservation->has_recalled = true;
	reservation->counted_at = 0; /* who ends for that is no obstacle any more */
	timer_set(&core->reservation_ends, &reservation->end,
		  account_add(core->now_ns, reservation->recall_ns));
}

/* Would the holder not let go of what it has there if those who can be asked were? */
static bool is_obstacle(const struct reservation *reservation, const struct holder *holder)
{
	if (holder->n_live == 0) { /* once all were asked it may be one who ends for that */
		return holder->n_mapped > 0 && !reservation->has_recalled;
	}
	return holder->client == reservation->client || !holder->lies_on;
}

/* A load that goes on with it brings more leases of it. */
static bool is_awaited(const struct core *core, const struct segment *segment)
{
	const struct job *job = segment->job == 0 ? NULL : job_of(core, segment->job);

	return job != NULL && job->n_attaching > 0 &&
	       (segment->is_retained || segment->generation == job->generation);
}

/* Once for all of the model's copies. False: none of its holders is one. */
static bool find_obstacles(const struct reservation *reservation, const struct model *model)
{
	bool has_one = false;

	holder_find(model, reservation->device);
	LIST_FOR_EACH (link, &model->holders) {
		struct holder *holder = OF(link, struct holder, by_model);

		holder->is_obstacle = is_obstacle(reservation, holder);
		has_one = has_one || holder->is_obstacle;
	}
	return has_one;
}

static bool has_obstacle(const struct segment *segment)
{
	LIST_FOR_EACH (link, &segment->model->holders) {
		const struct holder *holder = OF(link, struct holder, by_model);

		if (holder->is_obstacle && holder_has(holder, segment) &&
		    (holder->n_live > 0 || segment->backing == CORE_BACKING_IMAGE)) {
			return true;
		}
	}
	return false;
}

static bool may_be_recalled(const struct core *core, const struct reservation *reservation,
			    const struct segment *segment, bool has_obstacles)
{
	bool is_held = segment->state == SEGMENT_DROPPING || segment->state == SEGMENT_HELD;

	return segment->device == reservation->device && segment->sum == SUM_NONE &&
	       !is_awaited(core, segment) &&
	       (segment->state == SEGMENT_READY || (is_held && reservation->has_recalled)) &&
	       !(has_obstacles && has_obstacle(segment));
}

/* Bytes that may go when all who can be asked have let go of what they lease; 0: nobody is. */
static uint64_t count_recallable(const struct core *core, const struct reservation *reservation)
{
	const struct model *model;
	uint32_t cursor = 0;
	uint64_t bytes = 0;

	while (reservation->recall_ns > 0 && (model = idtab_next(&core->models, &cursor)) != NULL) {
		bool has_obstacles;

		if (list_is_empty(&model->holders) || model_is_pinned(core, model)) {
			continue;
		}
		has_obstacles = find_obstacles(reservation, model);
		LIST_FOR_EACH (link, &model->segments) {
			const struct segment *segment = OF(link, struct segment, by_model);

			bytes += may_be_recalled(core, reservation, segment, has_obstacles)
					 ? segment->bytes
					 : 0;
		}
	}
	return bytes;
}

/* Likewise; where nothing has changed since, the walk over all models is spared. */
static uint64_t recallable(const struct core *core, struct reservation *reservation)
{
	if (reservation->counted_at != core->n_touches + 1) {
		reservation->recallable = count_recallable(core, reservation);
		reservation->counted_at = core->n_touches + 1;
	}
	return reservation->recallable;
}

/* It has no room by what may go, nor by loads under way: would it have it by those who can be asked
 * to let go? Then they are. */
static bool may_ask(struct core *core, struct reservation *reservation, uint64_t coming)
{
	uint64_t asked = recallable(core, reservation);

	if (reservation->bytes >
	    account_room(account_of(core, reservation), account_add(coming, asked))) {
		return false;
	}
	if (asked > 0 && !reservation->has_recalled) {
		recall(core, reservation);
	}
	return true;
}

bool reserve_admit(struct core *core, struct reservation *reservation, uint64_t *older,
		   bool is_first)
{
	const uint32_t device = reservation->device;
	const struct account *account = &core->accounts[device];
	uint64_t wanted = account_add(reservation->bytes, older[device]);
	uint64_t dropping = account_sum(core, device, SUM_DROPPING);
	uint64_t coming = account_add(dropping, evict_evictable(core, device, NULL));

	if (account->is_lost) {
		refuse(core, reservation, WIRE_DEVICE_LOST);
		return false;
	}
	if (wanted <= account_room(account, 0)) {
		grant(core, reservation);
		return false;
	}
	if (is_first && reservation->bytes > account_room(account, coming) &&
	    retain_give_way(core, NULL, 1U << device)) {
		coming = account_add(dropping, evict_evictable(core, device, NULL));
	}
	if (reservation->bytes <= account_room(account, coming)) {
		uint64_t lacking = account_lacking(account, dropping, wanted);

		if (lacking > 0 && core->now_ns >= core->quiet_until_ns) {
			reservation->has_displaced = true;
			core->displacing_client = idtab_id(&core->clients, reservation->client);
			(void)evict_make_room(core, device, lacking, NULL, CORE_WHY_RESERVED);
			core->displacing_client = 0;
		}
	} else {
		coming = account_add(coming, evict_later(core, device, NULL));
		if (reservation->bytes > account_room(account, coming)) {
			if (may_ask(core, reservation, coming)) {
				return true; /* and nobody behind it: leases end when they end */
			}
			refuse(core, reservation, WIRE_NO_MEMORY);
			return false;
		}
	}
	older[device] = wanted;
	return true;
}

/* In the way of one more. */
static enum core_limit limit_of(const struct core *core, const struct client *client)
{
	uint32_t bound = core->config.max_reservations_per_uid;

	if (bound != 0 && !client->is_admin && client->user->n_reservations >= bound) {
		return CORE_LIMIT_USER_RESERVATIONS;
	}
	return core->reservations.n_used < core->reservations.capacity ? CORE_LIMIT_NONE
								       : CORE_LIMIT_RESERVATIONS;
}

/* Of the user, granted or waited for. */
static uint64_t reserved_by(const struct core *core, const struct user *user, uint32_t device)
{
	const struct reservation *reservation;
	uint32_t cursor = 0;
	uint64_t bytes = 0;

	while ((reservation = idtab_next(&core->reservations, &cursor)) != NULL) {
		if (reservation->client->user == user && reservation->device == device) {
			bytes = account_add(bytes, reservation->bytes);
		}
	}
	return bytes;
}

/* Idle models above the share go when others want room; of the host's memory a reservation would
 * not, so it stays within. True: it does not, and that has been answered. */
static bool refuse_above_share(struct core *core, struct client *client,
			       const struct core_event *event)
{
	const uint32_t device = event->reserve.device;
	const uint64_t share = core_share(core, device);
	const uint64_t left = account_left(share, reserved_by(core, client->user, device));
	struct core_action *action;

	if (device != 0 || client->is_admin || event->reserve.bytes <= left) {
		return false;
	}
	core_reply(core, client, event->request, WIRE_NO_MEMORY, NULL);
	action = &core->actions[core->n_actions - 1];
	action->device = device;
	action->shortage = (struct core_shortage){.need = event->reserve.bytes,
						  .budget = share,
						  .free = left,
						  .is_of_share = true};
	return true;
}

void reserve_on_reserve(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct reservation *reservation;
	enum core_limit limit;
	uint64_t id = 0;

	if (client == NULL) {
		return;
	}
	if (core->is_shutting_down || event->reserve.device >= core->config.n_devices ||
	    event->reserve.bytes == 0) {
		core_reply(core, client, event->request,
			   core->is_shutting_down ? WIRE_SHUTTING_DOWN : WIRE_BAD_ARGUMENT, NULL);
		return;
	}
	limit = limit_of(core, client);
	if (limit != CORE_LIMIT_NONE) {
		core_reply_too_many(core, client, event->request, limit, NULL);
		return;
	}
	if (refuse_above_share(core, client, event)) {
		return;
	}
	reservation = idtab_add(&core->reservations, &id);
	client->user->n_reservations++;
	reservation->client = client;
	reservation->request = event->request;
	reservation->device = event->reserve.device;
	reservation->bytes = event->reserve.bytes;
	reservation->ttl_ns = event->reserve.ttl_ns;
	reservation->recall_ns = event->reserve.recall_ns;
	reservation->age = ++core->n_jobs_begun;
	reservation->end.at_ns = NEVER;
	list_append(&client->reservations, &reservation->by_client);
	list_append(&core->reserving, &reservation->by_age);
}

void reserve_on_release(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct reservation *reservation =
		idtab_find(&core->reservations, event->release.reservation);
	bool is_own = reservation != NULL && reservation->client == client;

	if (client == NULL) {
		return;
	}
	core_reply(core, client, event->request, is_own ? 0 : WIRE_NOT_FOUND, NULL);
	if (is_own) {
		end(core, reservation);
	}
}

void reserve_end_all(struct core *core, struct client *client)
{
	LIST_FOR_EACH_SAFE (link, &client->reservations) {
		end(core, OF(link, struct reservation, by_client));
	}
}

void reserve_cancel(struct core *core, struct client *client, uint32_t request)
{
	LIST_FOR_EACH (link, &client->reservations) {
		struct reservation *reservation = OF(link, struct reservation, by_client);

		if (reservation->request == request && !reservation->is_granted) {
			refuse(core, reservation, WIRE_CANCELLED);
			return;
		}
	}
}

void reserve_shut_down(struct core *core)
{
	LIST_FOR_EACH_SAFE (link, &core->reserving) {
		refuse(core, OF(link, struct reservation, by_age), WIRE_SHUTTING_DOWN);
	}
}

void reserve_expired(struct core *core)
{
	while (timer_deadline(&core->reservation_ends) <= core->now_ns) {
		struct reservation *reservation =
			OF(timer_first(&core->reservation_ends), struct reservation, end);

		if (reservation->is_granted) {
			end(core, reservation);
		} else {
			refuse(core, reservation, WIRE_BUSY); /* they did not let go */
		}
	}
}
