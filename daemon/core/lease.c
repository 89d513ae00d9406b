/* SPDX-License-Identifier: Apache-2.0 */
/* Leases: "in use", one generation for life. */
#include "base/require.h"

#include "daemon/core/state.h"

static struct holder *get_holder(struct core *core, struct model *model, struct client *client,
				 uint64_t generation)
{
	struct holder *holder;
	uint64_t id = 0;

	LIST_FOR_EACH (link, &model->holders) {
		holder = OF(link, struct holder, by_model);
		if (holder->client == client && holder->generation == generation) {
			return holder;
		}
	}
	holder = idtab_add(&core->holders, &id);
	REQUIRE(holder != NULL); /* there are as many as leases */
	holder->model = model;
	holder->client = client;
	holder->generation = generation;
	holder->has_blocks = place_has_blocks_for(model, client->uid);
	list_append(&model->holders, &holder->by_model);
	list_append(&client->holders, &holder->by_client);
	return holder;
}

bool holder_has(const struct holder *holder, const struct segment *segment)
{
	return segment->is_remnant == holder->is_remnant &&
	       segment_is_of(segment, holder->generation) &&
	       (!segment->is_block || holder->has_blocks);
}

bool holder_is_like(const struct holder *holder, const struct holder *other)
{
	return other != NULL && holder->model == other->model &&
	       holder->generation == other->generation && holder->has_blocks == other->has_blocks &&
	       holder->is_remnant == other->is_remnant;
}

static bool lies_on(const struct holder *holder, uint32_t device)
{
	LIST_FOR_EACH (link, &holder->model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (segment->device == device && segment->state == SEGMENT_READY &&
		    segment->bytes > 0 && holder_has(holder, segment)) {
			return true;
		}
	}
	return false;
}

void holder_find(const struct model *model, uint32_t device)
{
	const struct holder *last = NULL; /* most have the same */

	LIST_FOR_EACH (link, &model->holders) {
		struct holder *holder = OF(link, struct holder, by_model);

		holder->lies_on = holder_is_like(holder, last) ? last->lies_on
							       : lies_on(holder, device);
		last = holder;
	}
}

/* In the way of one more lease. */
static enum core_limit limit_of(const struct core *core, const struct model *model,
				const struct client *client)
{
	uint32_t bound = core->config.max_leases_per_uid;

	if (model->n_leases >= COUNT_MAX) {
		return CORE_LIMIT_MODEL_LEASES;
	}
	if (bound != 0 && client->user->n_leases >= bound) {
		return CORE_LIMIT_USER_LEASES;
	}
	return core->leases.n_used < core->leases.capacity ? CORE_LIMIT_NONE : CORE_LIMIT_LEASES;
}

struct lease *lease_add(struct core *core, struct model *model, struct client *client,
			uint64_t generation, bool map)
{
	uint64_t id = 0;
	struct lease *lease;

	if (limit_of(core, model, client) != CORE_LIMIT_NONE) {
		return NULL;
	}
	lease = idtab_add(&core->leases, &id);
	if (lease == NULL) {
		return NULL;
	}
	lease->model = model;
	lease->client = client;
	lease->generation = generation;
	lease->is_mapped = map;
	lease->holder = get_holder(core, model, client, generation);
	lease->holder->n_leases++;
	lease->holder->n_live++;
	lease->holder->n_mapped += map ? 1 : 0;
	client->user->n_leases++;
	list_append(&model->leases, &lease->by_model);
	list_append(&client->leases, &lease->by_client);
	model->n_leases++;
	model->is_doomed = false; /* somebody wants it again */
	model_use(core, model, client);
	model_touch_use(core, model);
	lease_record(core, lease);
	return lease;
}

void lease_set_mapped(struct core *core, struct lease *lease, bool is_mapped)
{
	lease->holder->n_mapped -= lease->is_mapped ? 1 : 0;
	lease->holder->n_mapped += is_mapped ? 1 : 0;
	lease->is_mapped = is_mapped; /* it is not a ghost: its copies may not go either way */
	lease_record(core, lease);
}

/* It was the last one that was not a ghost, perhaps: what waited for that goes. */
static void release(struct core *core, struct model *model)
{
	model_drain(core, model);
	if (model->is_doomed) { /* what nobody leases any more; the rest with its last lease */
		(void)model_drop(core, model, CORE_NOTE_UNLOADED, CORE_WHY_ASKED);
		model->is_doomed = !model_is_idle(model);
	}
	if (model->backing == CORE_BACKING_LOCKED) {
		backing_settle(core, model); /* unpinned while it was used, perhaps */
	}
}

static void stop_living(struct core *core, const struct lease *lease)
{
	lease->holder->n_live--;
	core->n_let_go += --lease->model->n_leases == 0 ? 1 : 0;
	model_use(core, lease->model, lease->client);
	model_touch_use(core, lease->model);
}

void lease_become_ghost(struct core *core, struct lease *lease)
{
	lease->is_ghost = true;
	lease_record(core, lease);
	stop_living(core, lease);
	if (lease->holder->n_live == 0) {
		release(core, lease->model);
	}
}

void lease_record(struct core *core, const struct lease *lease)
{
	core_act(core, ACT_RECORD_LEASE)->record.id = idtab_id(&core->leases, lease);
}

void lease_end(struct core *core, struct lease *lease)
{
	struct model *model = lease->model;
	struct holder *holder = lease->holder;
	const bool was_live = holder->n_live > 0;
	const bool was_mapped = holder->n_mapped > 0;
	bool is_as_before; /* it leases and maps all that it did */

	lease_record(core, lease);
	if (!lease->is_ghost) {
		stop_living(core, lease);
	}
	holder->n_mapped -= lease->is_mapped ? 1 : 0;
	lease->client->user->n_leases--;
	is_as_before = (holder->n_live > 0) == was_live && (holder->n_mapped > 0) == was_mapped;
	model_touch_use(core, model); /* while the holder is there */
	if (--holder->n_leases == 0) {
		list_remove(&holder->by_model);
		list_remove(&holder->by_client);
		idtab_remove(&core->holders, holder);
	}
	list_remove(&lease->by_model);
	list_remove(&lease->by_client);
	idtab_remove(&core->leases, lease);
	if (!is_as_before) {
		release(core, model);
		segment_release_held(core, model);
	}
}

/* Answer one who waits for the model, which is resident. False: no lease was left. */
bool lease_grant(struct core *core, const struct waiter *waiter, struct model *model,
		 enum core_source source, const struct job *job)
{
	struct lease *lease = NULL;
	struct core_action *action;

	if (waiter->attach) {
		lease = lease_add(core, model, waiter->client, model->generation, waiter->map);
	}
	if (job == NULL && !place_is_foreign(model, waiter->client)) {
		place_stay(core, model); /* also without a lease: he is told where it lies */
	}
	if (waiter->attach && lease == NULL) {
		core_reply_too_many(core, waiter->client, waiter->request,
				    limit_of(core, model, waiter->client), model);
		return false;
	}
	model_use(core, model, waiter->client);
	model_touch_use(core, model);
	core_reply(core, waiter->client, waiter->request, 0, model);
	action = &core->actions[core->n_actions - 1];
	action->job = job == NULL ? 0 : idtab_id(&core->job_table, job);
	action->reply.source = source;
	action->reply.generation = model->generation;
	action->reply.map = waiter->map;
	action->reply.lease = lease == NULL ? 0 : idtab_id(&core->leases, lease);
	return true;
}

void lease_count_hit(struct core *core, const struct model *model)
{
	core->counters.hits++;
	core->counters.bytes_saved += model->key.size;
	core->counters.saved_ns += model->load_ns;
}

/* The file was presented: is it what we hold? Decides the answer. */
static void attach_presented(struct core *core, const struct core_event *event,
			     struct client *client, struct model *model)
{
	const struct core_file_key *key = event->attach.key;
	const struct waiter like = {.client = client,
				    .model = model,
				    .request = event->request,
				    .attach = true,
				    .map = event->attach.map};
	struct job *job;

	if (!model_is_same_content(key, &model->key) || model->backing != CORE_BACKING_IMAGE ||
	    model->placement != CORE_PLACEMENT_HOST) {
		core_close_file(core, event->attach.file);
		core_reply(core, client, event->request, WIRE_STALE, model);
		core->actions[core->n_actions - 1].reply.current = model->generation;
		return;
	}
	/* Its ctime differs (a rename, a link, a chmod), or tells nothing: look at the bytes. */
	job = model->job;
	if (job == NULL) {
		job = job_begin(core, model, JOB_RECHECK, key, event->attach.file, client->uid);
	} else {
		job_join(job, key);
		core_close_file(core, event->attach.file);
	}
	if (job == NULL) {
		core_close_file(core, event->attach.file);
		core_reply_too_many(core, client, event->request, job_limit(core, client->uid),
				    model);
	} else if (waiter_add(core, &like, job) == NULL) {
		core_reply_too_many(core, client, event->request, CORE_LIMIT_WAITERS, model);
		job_drop_if_unwanted(core, job);
	}
}

/*
 * The holder of a lease whose connection broke comes back with the image that it maps still.
 * Its new lease takes the place of the old one, so that its bytes are counted once.
 */
static void reassert(struct core *core, const struct core_event *event, struct client *client,
		     struct model *model)
{
	struct lease *ghost = idtab_find(&core->leases, event->attach.ghost);
	struct lease *lease = NULL;
	struct core_action *action;

	if (model == NULL || !model_is_resident(model) ||
	    model->generation != event->attach.generation) {
		core_reply(core, client, event->request, WIRE_NOT_RESIDENT, model);
		return;
	}
	if (wish_get(core, model, client->uid) == NULL) {
		core_reply_too_many(core, client, event->request, CORE_LIMIT_WISHES, model);
		return;
	}
	lease = lease_add(core, model, client, model->generation, true);
	if (lease == NULL) {
		core_reply_too_many(core, client, event->request, limit_of(core, model, client),
				    model);
		return;
	}
	if (!place_is_foreign(model, client)) {
		place_stay(core, model);
	}
	core_reply(core, client, event->request, 0, model);
	action = &core->actions[core->n_actions - 1];
	action->reply.source = CORE_SOURCE_RAM;
	action->reply.generation = lease->generation;
	action->reply.lease = idtab_id(&core->leases, lease);
	if (ghost != NULL && ghost->is_ghost && ghost->model == model &&
	    ghost->generation == lease->generation && ghost->client->uid == client->uid) {
		client_end_ghost(core, ghost);
	}
}

/* Who presents a file wants its tensors; where nobody read them, its bytes. */
static struct model *find_presented(const struct core *core, const struct core_file_key *key)
{
	struct core_file_key raw = *key;
	struct model *model = model_find(core, key);

	raw.is_raw = true;
	return model != NULL ? model : model_find(core, &raw);
}

void lease_on_attach(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	uint64_t file = event->attach.file;
	struct model *model = file != 0 ? find_presented(core, event->attach.key)
					: idtab_find(&core->models, event->attach.model);
	int code = 0;

	if (client == NULL) {
		core_close_file(core, file);
		return;
	}
	if (event->attach.generation != 0 && !core->is_shutting_down) {
		reassert(core, event, client, model);
		return;
	}
	if (core->is_shutting_down) {
		code = WIRE_SHUTTING_DOWN;
	} else if (model == NULL ||
		   (file == 0 && !core_client_may(core, event->client, event->attach.model))) {
		/* A presented file that nobody loaded is known as little as a foreign id. */
		code = file != 0 ? WIRE_NOT_RESIDENT : WIRE_NOT_FOUND;
		model = NULL;
	} else if (!place_serves(model, client->uid)) {
		code = WIRE_NOT_RESIDENT;
	} else if (file != 0 && wish_get(core, model, client->uid) == NULL) {
		core_close_file(core, file);
		core_reply_too_many(core, client, event->request, CORE_LIMIT_WISHES, model);
		return;
	}
	if (code != 0) {
		core_close_file(core, file);
		core_reply(core, client, event->request, code, model);
		return;
	}
	if (file != 0 && !model_is_unchanged(model, event->attach.key)) {
		attach_presented(core, event, client, model);
		return;
	}
	core_close_file(core, file);
	if (lease_grant(core,
			&(struct waiter){.client = client,
					 .request = event->request,
					 .attach = true,
					 .map = event->attach.map},
			model, CORE_SOURCE_RAM, NULL)) {
		lease_count_hit(core, model);
	}
}

void lease_on_lease_event(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct lease *lease = idtab_find(&core->leases, event->lease.lease);
	struct model *model;

	if (client == NULL) {
		return;
	}
	if (lease != NULL && lease->is_ghost && event->type == EV_UNMAPPED &&
	    lease->client->uid == client->uid) {
		core_reply(core, client, event->request, 0, lease->model);
		client_end_ghost(core, lease);
		return;
	}
	if (lease == NULL || lease->client != client) {
		if (event->type != EV_MAPPED) {
			core_reply(core, client, event->request, WIRE_NOT_FOUND, NULL);
		}
		return;
	}
	model = lease->model;
	if (event->type == EV_MAPPED) {
		lease_set_mapped(core, lease, true);
		return;
	}
	if (event->type == EV_UNMAPPED) {
		lease_set_mapped(core, lease, false);
	} else {
		lease_end(core, lease);
	}
	core_reply(core, client, event->request, 0, model);
}
