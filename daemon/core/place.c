/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where blocks lie. A placement is a load of the same content as another generation, which has
 * the copies that stay in common with the one before: so a move is all or nothing, and who leases
 * the old one keeps what he maps. Blocks that nobody uses leave other devices after a while.
 */
#include "daemon/core/state.h"

bool place_has_blocks_for(const struct model *model, uint32_t uid)
{
	return model->placement <= CORE_PLACEMENT_HOST || uid == 0 || uid == model->placed_uid;
}

/* Also while blocks of it have gone from where they lay beside. */
static bool has_images(const struct model *model)
{
	return model->has_host && model_count(model, COUNT_IMAGES) == model->n_images;
}

bool place_serves(const struct model *model, uint32_t uid)
{
	return model_is_resident(model) ? model->has_host || place_has_blocks_for(model, uid)
					: !place_has_blocks_for(model, uid) && has_images(model);
}

bool place_needs_host(const struct model *model, uint32_t uid)
{
	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (model->has_host && !segment->is_block && segment_is_current(segment) &&
		    segment_is_droppable(segment) && !segment->is_bad) {
			return true; /* its images are there still */
		}
	}
	return !place_has_blocks_for(model, uid);
}

bool place_is_foreign(const struct model *model, const struct client *client)
{
	return model->placement > CORE_PLACEMENT_HOST && client->uid != model->placed_uid &&
	       !client->is_admin;
}

void place_ask(struct job *job, const struct client *client)
{
	job->is_asked = true;
	job->uses_blocks = job->uses_blocks || !place_is_foreign(job->model, client);
}

bool core_client_may_place(const struct core *core, uint64_t client, uint64_t id)
{
	const struct model *model = idtab_find(&core->models, id);
	const struct client *asking = idtab_find(&core->clients, client);

	return model != NULL && asking != NULL && !place_is_foreign(model, asking);
}

bool place_suits(const struct model *model, const struct client *client, uint64_t wanted,
		 bool is_place)
{
	return (is_place || place_serves(model, client->uid)) &&
	       (wanted == CORE_PLACEMENT_ANY || wanted == model->placement ||
		(wanted == CORE_PLACEMENT_HOST && model->has_host &&
		 place_is_foreign(model, client)));
}

bool place_stays(const struct model *model, const struct client *client, uint64_t wanted)
{
	return model->placement > CORE_PLACEMENT_HOST &&
	       (wanted == CORE_PLACEMENT_ANY || wanted == model->placement ||
		(wanted == CORE_PLACEMENT_HOST && place_is_foreign(model, client)));
}

bool place_may(const struct model *model, const struct client *client, uint64_t wanted)
{
	return wanted <= CORE_PLACEMENT_HOST || !place_is_foreign(model, client);
}

uint32_t place_uid(const struct model *model, const struct client *client)
{
	return !client->is_admin                        ? client->uid
	       : model->placement > CORE_PLACEMENT_HOST ? model->placed_uid
							: model->owner_uid;
}

struct job *place_begin(struct core *core, struct model *model, uint64_t placement,
			uint32_t placed_uid, uint32_t uid)
{
	struct job *job = NULL;

	if (model->job == NULL && model->file != 0 && !core->is_shutting_down) {
		job = job_begin(core, model, JOB_LOAD, &model->key, model->file, uid);
	}
	if (job != NULL) {
		model->file = 0; /* the job's until it ends */
		job->wanted = CORE_BACKING_IMAGE;
		job->placement = placement;
		job->placed_uid = placed_uid;
		job->may_share = true;
		job->is_move = model_is_resident(model);
	}
	return job;
}

bool place_decides(const struct model *model, const struct client *client, uint64_t wanted)
{
	return wanted != CORE_PLACEMENT_ANY &&
	       !(wanted == CORE_PLACEMENT_HOST && place_is_foreign(model, client));
}

void place_supersede(struct job *job, const struct client *client, uint64_t placement)
{
	if (place_decides(job->model, client, placement)) {
		job->next_placement = CORE_PLACEMENT_ANY;
	}
}

/* What it reads is what its model has, and what all who wait presented. */
static bool is_of_known_content(const struct job *job)
{
	return !job->is_mixed && model_is_unchanged(job->model, &job->key);
}

void place_serve_suited(struct core *core, struct job *job)
{
	const struct model *model = job->model;

	if (!is_of_known_content(job)) {
		return; /* what is there is not what they presented */
	}
	LIST_FOR_EACH_SAFE (link, &job->waiters) {
		struct waiter *waiter = OF(link, struct waiter, by_owner);

		if (waiter->placement != CORE_PLACEMENT_ANY && model_is_resident(model) &&
		    place_suits(model, waiter->client, waiter->placement, waiter->is_place)) {
			if (lease_grant(core, waiter, job->model, CORE_SOURCE_RAM, NULL)) {
				wish_grant(core, model, waiter->client->uid, job);
			}
			waiter_remove(core, waiter);
		}
	}
}

/* Wait for the job, or not; with none, the reason. */
static void wait_for(struct core *core, const struct core_event *event, struct client *client,
		     struct model *model, bool is_first)
{
	const struct waiter like = {.client = client,
				    .model = model,
				    .request = event->request,
				    .is_first = is_first,
				    .is_place = true,
				    .placement = event->place.placement};
	struct job *job = model->job;

	if (job == NULL) {
		core_reply_too_many(core, client, event->request, job_limit(core, client->uid),
				    model);
	} else if (event->place.no_wait) {
		load_answer_begun(core, client, event->request, job, event->place.placement);
	} else if (waiter_add(core, &like, job) == NULL) {
		core_reply_too_many(core, client, event->request, CORE_LIMIT_WAITERS, model);
		job_drop_if_unwanted(core, job);
	} else {
		place_supersede(job, client, event->place.placement);
	}
}

void place_on_place(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct model *model = idtab_find(&core->models, event->place.model);
	uint64_t placement = event->place.placement;
	bool is_first;
	int code = 0;

	if (client == NULL) {
		return;
	}
	if (core->is_shutting_down) {
		code = WIRE_SHUTTING_DOWN;
	} else if (model == NULL || !core_client_may(core, event->client, event->place.model)) {
		code = WIRE_NOT_FOUND;
		model = NULL;
	} else if (model->generation == 0 || (model->file == 0 && model->job == NULL)) {
		code = WIRE_NOT_RESIDENT;
	} else if (place_is_foreign(model, client)) {
		code = WIRE_NOT_ALLOWED;
	}
	is_first = code == 0 && model->job == NULL;
	if (code == 0 && (is_first || model->job->is_demotion) && model_is_resident(model) &&
	    place_suits(model, client, placement, true)) {
		(void)lease_grant(core,
				  &(struct waiter){.client = client, .request = event->request},
				  model, CORE_SOURCE_RAM, NULL);
	} else if (code == 0) {
		if (is_first) {
			(void)place_begin(core, model, placement, place_uid(model, client),
					  client->uid);
		}
		wait_for(core, event, client, model, is_first);
	} else {
		core_reply(core, client, event->request, code, model);
	}
}

/* ---- what nobody uses ---- */

static bool has_blocks(const struct model *model)
{
	if (model_count(model, COUNT_FREE) == 0) {
		return false;
	}
	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (segment->is_block && segment_is_current(segment) &&
		    segment_is_droppable(segment) && !segment_is_leased(segment)) {
			return true;
		}
	}
	return false;
}

/* When its blocks have lain on other devices long enough. */
static uint64_t stays_until(const struct core *core, const struct model *model)
{
	if (core->config.linger_ns == 0 || model_is_leased(model) ||
	    model->placement <= CORE_PLACEMENT_HOST || model_is_pinned(core, model)) {
		return NEVER;
	}
	return account_add(model->blocks_used_ns, core->config.linger_ns);
}

uint64_t place_linger(const struct core *core, const struct model *model)
{
	uint64_t until_ns = model->job == NULL ? stays_until(core, model) : NEVER;

	return until_ns != NEVER && has_blocks(model) ? until_ns : NEVER;
}

uint64_t place_to_return(const struct core *core, const struct model *model)
{
	return stays_until(core, model) > core->now_ns ? model->placement : CORE_PLACEMENT_HOST;
}

void place_drop_blocks(struct core *core, struct model *model, enum core_why why)
{
	uint64_t bytes[CORE_MAX_DEVICES] = {0};

	LIST_FOR_EACH_SAFE (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment->is_block && segment_is_current(segment) &&
		    segment_is_droppable(segment) && !segment_is_leased(segment)) {
			bytes[segment->device] += segment->bytes;
			segment_drop(core, segment, why);
		}
	}
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		core->counters.evictions += bytes[device] > 0 ? 1 : 0;
	}
	core_note_by_device(core, CORE_NOTE_EVICTED, why, model, bytes);
}

/* To the host, where there is room; else its file is all that is left. */
static void demote(struct core *core, struct model *model, enum core_why why)
{
	struct job *job =
		place_begin(core, model, CORE_PLACEMENT_HOST, model->placed_uid, model->owner_uid);

	if (job == NULL) {
		place_drop_blocks(core, model, why);
		return;
	}
	job->is_demotion = true;
	job->why = why;
	job->no_wait = true;
}

void place_expired(struct core *core)
{
	account_settle(core);
	while (timer_deadline(&core->lingers) <= core->now_ns) {
		struct model *model = OF(timer_first(&core->lingers), struct model, linger);

		timer_set(&core->lingers, &model->linger, NEVER);
		demote(core, model, CORE_WHY_LINGERED);
	}
}

static bool lies_on(const struct model *model, uint32_t device)
{
	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (segment->device == device && segment_is_current(segment)) {
			return true;
		}
	}
	return false;
}

/* As if their time had run out; what never goes by time stays. */
void place_on_device_short(struct core *core, const struct core_event *event)
{
	struct model *model;
	uint32_t cursor = 0;

	account_settle(core);
	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		if (place_linger(core, model) != NEVER && lies_on(model, event->device.device)) {
			timer_set(&core->lingers, &model->linger, NEVER);
			demote(core, model, CORE_WHY_PRESSURE);
		}
	}
}

void place_stay(struct core *core, const struct model *model)
{
	struct job *job = model->job;

	if (job != NULL && job->is_demotion) {
		job_fail(core, job, WIRE_CANCELLED);
	}
}

/* ---- what one generation did not settle ---- */

bool place_is_for(const struct job *job, const struct waiter *waiter)
{
	return waiter->placement == CORE_PLACEMENT_ANY || waiter->placement == job->placement ||
	       (waiter->placement == CORE_PLACEMENT_HOST && job->with_host &&
		place_is_foreign(job->model, waiter->client));
}

bool place_is_wanted(const struct job *job)
{
	LIST_FOR_EACH (link, &job->waiters) {
		if (!is_of_known_content(job) ||
		    place_is_for(job, OF(link, struct waiter, by_owner))) {
			return true;
		}
	}
	return false;
}

bool place_may_go_on(const struct job *job, int code)
{
	return (code == WIRE_NO_MEMORY || code == WIRE_BAD_ARGUMENT || code == WIRE_DEVICE_LOST ||
		code == WIRE_BUSY) &&
	       is_of_known_content(job);
}

static void refuse_some(struct core *core, const struct model *model, struct job *ended)
{
	LIST_FOR_EACH_SAFE (link, &ended->waiters) {
		struct waiter *waiter = OF(link, struct waiter, by_owner);

		if (!place_may(model, waiter->client, waiter->placement)) {
			core_reply(core, waiter->client, waiter->request, WIRE_NOT_ALLOWED, model);
			waiter_remove(core, waiter);
		}
	}
}

static void move_waiters(struct job *from, struct job *to)
{
	LIST_FOR_EACH_SAFE (link, &from->waiters) {
		struct waiter *waiter = OF(link, struct waiter, by_owner);

		from->n_attaching -= waiter->attach ? 1 : 0;
		to->n_attaching += waiter->attach ? 1 : 0;
		waiter->job = to;
		list_remove(&waiter->by_owner);
		list_append(&to->waiters, &waiter->by_owner);
	}
}

/* Who wants something else than what was published. False: nobody does. */
static bool find_next(const struct job *ended, struct client *ret_client, uint64_t *ret_placement)
{
	const struct waiter *first = NULL;

	if (!list_is_empty(&ended->waiters)) {
		first = OF(ended->waiters.next, struct waiter, by_owner);
		*ret_placement = first->placement;
		*ret_client = *first->client;
		return true;
	}
	*ret_placement = ended->next_placement;
	*ret_client = (struct client){.uid = ended->next_uid, .is_admin = ended->is_next_admin};
	return ended->next_placement != CORE_PLACEMENT_ANY &&
	       place_may(ended->model, ret_client, ended->next_placement) &&
	       !(model_is_resident(ended->model) &&
		 place_suits(ended->model, ret_client, ended->next_placement, true));
}

static struct job *begin_next(struct core *core, struct model *model, const struct job *ended,
			      const struct client *client, uint64_t placement)
{
	/* Another's blocks stay where they are: he gets images besides. */
	bool stays = place_stays(model, client, placement);
	struct job *job =
		stays ? place_begin(core, model, model->placement, model->placed_uid, client->uid)
		      : place_begin(core, model, placement, place_uid(model, client), client->uid);

	if (job != NULL) {
		struct core_action *action = core_act(core, ACT_FOLLOW);

		action->job = idtab_id(&core->job_table, ended);
		action->model = idtab_id(&core->models, model);
		action->follow.next = idtab_id(&core->job_table, job);
		action->follow.placement = ended->placement;
		job->with_host = stays;
		if (!job_is_placed(job) &&
		    model->generation == 0) { /* a load still, as asked for */
			job->wanted = ended->joined_wanted != CORE_BACKING_AUTO
					      ? ended->joined_wanted
					      : ended->wanted;
			job->insists = ended->insists;
		}
		place_ask(job, client);
		job->no_wait = list_is_empty(&ended->waiters);
		job->next_placement = job->no_wait ? CORE_PLACEMENT_ANY : ended->next_placement;
		job->next_uid = ended->next_uid;
		job->is_next_admin = ended->is_next_admin;
	}
	return job;
}

void place_go_on(struct core *core, struct model *model, struct job *ended)
{
	struct job *job = NULL;
	struct client client;
	uint64_t placement;

	refuse_some(core, model, ended);
	while (job == NULL && find_next(ended, &client, &placement)) {
		struct waiter *first;

		job = begin_next(core, model, ended, &client, placement);
		if (list_is_empty(&ended->waiters)) {
			return;
		}
		if (job == NULL) { /* another of those who wait has room for one, perhaps */
			first = OF(ended->waiters.next, struct waiter, by_owner);
			core_reply_too_many(core, first->client, first->request,
					    job_limit(core, client.uid), model);
			waiter_remove(core, first);
		}
	}
	if (job != NULL) {
		move_waiters(ended, job);
	}
}

/* ---- what comes back ---- */

void place_tear(struct model *model)
{
	model->is_torn = true;
	model->torn_placement = model->placement;
	model->torn_uid = model->placed_uid;
	model->torn_devices = model->devices;
}

void place_stay_away(struct core *core, struct model *model)
{
	model->is_torn = model->is_displaced = false;
	model->placement = model->generation == 0 ? CORE_PLACEMENT_ANY : model->placement;
	model_touch(core, model);
}

void place_give_up(struct core *core, struct model *model)
{
	place_stay_away(core, model);
	model_settle(core, model);
}

static void come_back(struct core *core, struct model *model)
{
	/* Images that are there are worth keeping besides, once all of it is in them. */
	bool has_images = model->placement == CORE_PLACEMENT_HOST && model_is_resident(model);
	bool needs_host = has_images || place_needs_host(model, model->torn_uid);
	struct job *job;

	if (evict_is_overdue(core, model)) {
		place_give_up(core, model);
		return;
	}
	job = place_begin(core, model, model->torn_placement, model->torn_uid, model->owner_uid);
	if (job != NULL) {
		job->with_host = needs_host;
		job->is_reload = job->no_wait = true;
		job->why = CORE_WHY_LOST;
	}
}

void place_come_back(struct core *core, struct model *model, uint32_t device)
{
	if (model->is_torn && model->job == NULL && (model->torn_devices >> device & 1) != 0 &&
	    !account_is_lost(core, model->torn_devices)) { /* with the last of them */
		come_back(core, model);
	}
}

void place_on_device_back(struct core *core, const struct core_event *event)
{
	const uint32_t device = event->device.device;

	if (device < core->config.n_devices && core->accounts[device].is_lost) {
		core->accounts[device].is_lost = false;
		reserve_bring_back(core, device);
	}
}

void place_on_devices_found(struct core *core, const struct core_event *event)
{
	struct model *model = idtab_find(&core->models, event->devices_found.model);
	uint32_t devices = event->devices_found.devices;

	if (model == NULL || !model->is_torn || devices == 0 ||
	    devices >> core->config.n_devices != 0 ||
	    event->devices_found.placement <= CORE_PLACEMENT_HOST) {
		return;
	}
	model->torn_placement = event->devices_found.placement;
	model->torn_devices = devices;
	if (model->generation == 0) {
		model->placement = model->torn_placement;
		model->devices = devices;
	}
	model_touch(core, model);
	if (!account_is_lost(core, devices)) {
		come_back(core, model);
	}
}

bool place_comes_back(const struct model *model)
{
	if (model->is_torn || model->placement <= CORE_PLACEMENT_HOST) {
		return model->is_torn;
	}
	return model->is_displaced || (model->job != NULL && model->job->is_reload) ||
	       (model->generation != 0 && model_count(model, COUNT_READY) == model->n_copies);
}

void place_settle(struct core *core)
{
	LIST_FOR_EACH_SAFE (link, &core->changed) {
		struct model *model = OF(link, struct model, changed);
		bool comes_back = place_comes_back(model);

		list_remove(&model->changed);
		if (model->comes_back && !comes_back) {
			core_act(core, ACT_RECORD_PLACED)->model = idtab_id(&core->models, model);
		}
		model->comes_back = comes_back;
	}
}
