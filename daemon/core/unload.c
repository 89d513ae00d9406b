/* SPDX-License-Identifier: Apache-2.0 */
/* Selective unload, and the request to verify: categorise, act, report. */
#include "base/require.h"

#include "daemon/core/state.h"

static void report(struct core *core, const struct core_event *event, const struct model *model,
		   enum core_outcome outcome, enum core_why why)
{
	struct core_action *action = core_act(core, ACT_UNLOAD_ITEM);

	action->client = event->client;
	action->request = event->request;
	action->model = idtab_id(&core->models, model);
	action->unload.outcome = outcome;
	action->unload.why = why;
}

static struct core_action *last_action(struct core *core)
{
	return &core->actions[core->n_actions - 1];
}

static uint64_t ready_bytes(const struct model *model)
{
	uint64_t bytes = 0;

	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		bytes += segment->state == SEGMENT_READY && segment->job == 0 ? segment->size : 0;
	}
	return bytes;
}

/* Not what is going already, or lies there for those only who lease an older generation. */
static bool has_bytes_on(const struct model *model, uint32_t device)
{
	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (segment->device == device && segment->state == SEGMENT_READY &&
		    segment_is_current(segment) && !segment->is_bare) {
			return true;
		}
	}
	return false;
}

static bool is_older_on(const struct segment *segment, uint32_t device)
{
	return segment->device == device && !segment->is_bare && segment_is_older(segment);
}

/* That lie there for those only who lease or map an older generation. */
static uint64_t older_bytes(const struct model *model, uint32_t device)
{
	uint64_t bytes = 0;

	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		bytes += is_older_on(segment, device) ? segment->bytes : 0;
	}
	return bytes;
}

/* Do all conditions hold for this model? A name also means wishes about what is not there. */
static bool is_selected(const struct core *core, const struct core_event *event,
			const struct client *client, const struct model *model)
{
	bool only_mine = event->unload.mine || (!client->is_admin && !event->unload.by_name);

	return (client->is_admin || wish_find(model, client->uid) != NULL) &&
	       (!only_mine || wish_find(model, client->uid) != NULL) &&
	       (!event->unload.has_device || has_bytes_on(model, event->unload.device) ||
		older_bytes(model, event->unload.device) > 0) &&
	       (event->unload.idle_ns == 0 ||
		(model_is_idle(model) &&
		 core->now_ns - model->last_used_ns >= event->unload.idle_ns)) &&
	       (event->unload.by_name || model->job != NULL || !list_is_empty(&model->segments));
}

/* Its uid said that it wants the model: its time has not run out, or it goes after others. */
static bool is_wanted(const struct core *core, const struct wish *wish)
{
	const struct model *model = wish->model;

	return wish->priority > 0 ||
	       (wish->ttl_ns != 0 &&
		(!model_is_idle(model) || core->now_ns - model->last_used_ns < wish->ttl_ns));
}

/* A wish that stands in the way: kept by not_kept, pinned always, others' for a plain user. */
static const struct wish *find_obstacle(const struct core *core, const struct core_event *event,
					const struct client *client, const struct model *model,
					enum core_why *ret_why)
{
	LIST_FOR_EACH (link, &model->wishes) {
		const struct wish *wish = OF(link, struct wish, by_model);
		bool is_foreign = wish->uid != client->uid && !client->is_admin;

		if (wish->pin && wish->pin_until_ns > core->now_ns) {
			*ret_why = CORE_WHY_PINNED;
			return wish;
		}
		if (wish->keep && wish->keep_until_ns > core->now_ns &&
		    (event->unload.not_kept || is_foreign)) {
			*ret_why = CORE_WHY_KEPT;
			return wish;
		}
		if (is_foreign && is_wanted(core, wish)) {
			*ret_why = CORE_WHY_WANTED;
			return wish;
		}
	}
	return NULL;
}

static void withdraw(struct core *core, const struct client *client, struct model *model)
{
	LIST_FOR_EACH (link, &model->wishes) {
		struct wish *wish = OF(link, struct wish, by_model);

		if (client->is_admin || wish->uid == client->uid) {
			wish_withdraw(core, wish);
		}
	}
}

static const struct lease *find_living(const struct model *model)
{
	LIST_FOR_EACH (link, &model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		if (!lease->is_ghost) {
			return lease;
		}
	}
	return NULL;
}

/* What comes free when it is dropped, what stays while a process maps it, by now or then, and what
 * stays because it is leased. */
struct split {
	uint64_t free, mapped, leased;
	const struct holder *mapper; /* the last of those; NULL: there are none */
};

static struct split split_bytes(const struct model *model)
{
	struct split split = {0};

	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);
		bool is_held = segment->state == SEGMENT_HELD ||
			       (segment->state == SEGMENT_DROPPING && segment_is_held(segment));

		if (!is_held && !segment_is_droppable(segment)) {
			continue;
		}
		if (!is_held && segment_is_leased(segment)) {
			split.leased += segment->size;
		} else if (is_held || segment_is_held(segment)) {
			split.mapped += segment->size;
			split.mapper = segment_mapper(segment);
		} else {
			split.free += segment->size;
		}
	}
	return split;
}

static void recall_lease(struct core *core, const struct core_event *event,
			 const struct lease *lease)
{
	struct core_action *action = core_act(core, ACT_RECALL);

	action->client = idtab_id(&core->clients, lease->client);
	action->model = idtab_id(&core->models, lease->model);
	action->device = CORE_ALL_DEVICES;
	action->recall.lease = idtab_id(&core->leases, lease);
	action->recall.for_client = event->client;
	action->recall.within_ns = event->unload.recall_ns;
}

/* Those who lease it are asked to let go. */
static void recall(struct core *core, const struct core_event *event, const struct model *model)
{
	if (event->unload.recall_ns == 0) {
		return;
	}
	LIST_FOR_EACH (link, &model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		if (!lease->is_ghost) {
			recall_lease(core, event, lease);
		}
	}
}

/* Drop what is there. What is leased goes with its last lease, and what a process still maps is
 * held by it. 'had_job': its load has just been ended, which is told where there is nothing else. */
static void unload_copies(struct core *core, const struct core_event *event, struct model *model,
			  bool had_job)
{
	const struct split split = split_bytes(model);
	const struct lease *lease = find_living(model);
	const bool is_charged = model->backing != CORE_BACKING_FILE;

	if (ready_bytes(model) > 0) {
		(void)model_drop(core, model, CORE_NOTE_UNLOADED, CORE_WHY_ASKED);
	}
	if (lease != NULL) {
		recall(core, event, model);
		model->is_doomed = true;
	}
	if (split.free > 0 || (had_job && split.mapped == 0 && lease == NULL)) {
		report(core, event, model, CORE_OUTCOME_UNLOADED,
		       split.free > 0 ? CORE_WHY_ASKED : CORE_WHY_CANCELLED);
		last_action(core)->unload.bytes = split.free;
		last_action(core)->unload.freed = is_charged ? split.free : 0;
	}
	if (split.mapped > 0) {
		report(core, event, model, CORE_OUTCOME_HELD, CORE_WHY_MAPPED);
		last_action(core)->unload.bytes = split.mapped;
		last_action(core)->unload.holder = idtab_id(&core->clients, split.mapper->client);
	}
	if (lease != NULL) {
		report(core, event, model, CORE_OUTCOME_HELD, CORE_WHY_IN_USE);
		last_action(core)->unload.bytes = split.leased;
		last_action(core)->unload.freed = is_charged ? split.leased : 0;
		last_action(core)->unload.holder = idtab_id(&core->clients, lease->client);
	}
}

/* Does it hold an older generation's bytes on the device? */
static bool is_of_older(const struct holder *holder, uint32_t device)
{
	LIST_FOR_EACH (link, &holder->model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (is_older_on(segment, device) && holder_has(holder, segment)) {
			return true;
		}
	}
	return false;
}

/* It lies elsewhere now and stays there: all that can be done is to name who is in the way. */
static void report_older(struct core *core, const struct core_event *event,
			 const struct model *model)
{
	const uint32_t device = event->unload.device;
	const struct lease *holder = NULL;
	const struct holder *last = NULL; /* looked at: most have the same */
	bool is_older = false;

	LIST_FOR_EACH (link, &model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		if (!holder_is_like(lease->holder, last)) {
			last = lease->holder;
			is_older = is_of_older(last, device);
		}
		if (!is_older) {
			continue;
		}
		holder = holder == NULL || holder->is_ghost ? lease : holder;
		if (event->unload.recall_ns > 0 && !lease->is_ghost) {
			recall_lease(core, event, lease);
		}
	}
	report(core, event, model, CORE_OUTCOME_HELD,
	       holder != NULL && !holder->is_ghost ? CORE_WHY_IN_USE : CORE_WHY_MAPPED);
	last_action(core)->unload.bytes = older_bytes(model, device);
	last_action(core)->unload.holder =
		holder == NULL ? 0 : idtab_id(&core->clients, holder->client);
}

static bool is_own_job(const struct client *client, const struct job *job)
{
	LIST_FOR_EACH (link, &job->waiters) {
		if (OF(link, struct waiter, by_owner)->client->uid != client->uid) {
			return false;
		}
	}
	return job->uid == client->uid;
}

/* Named, or begun without anybody's asking: it goes as well. */
static bool ends_job(const struct core_event *event, const struct client *client,
		     const struct job *job)
{
	return (event->unload.by_name ||
		((job->is_reload || !job->is_asked) && list_is_empty(&job->waiters))) &&
	       (client->is_admin || is_own_job(client, job));
}

static void unload_one(struct core *core, const struct core_event *event, struct client *client,
		       struct model *model)
{
	enum core_why why = CORE_WHY_NONE;
	const struct wish *obstacle;
	bool had_job = false;

	if (event->unload.has_device && !has_bytes_on(model, event->unload.device)) {
		report_older(core, event, model);
		return;
	}
	if (event->unload.by_name) {
		withdraw(core, client, model);
	}
	obstacle = find_obstacle(core, event, client, model, &why);
	if (obstacle != NULL) {
		report(core, event, model, CORE_OUTCOME_KEPT, why);
		last_action(core)->unload.bytes = ready_bytes(model);
		last_action(core)->unload.uid = obstacle->uid;
		return;
	}
	place_stay_away(core, model);
	if (model->job != NULL) {
		if (ends_job(event, client, model->job)) {
			job_fail(core, model->job, WIRE_CANCELLED);
			had_job = true;
		} else {
			report(core, event, model, CORE_OUTCOME_HELD, CORE_WHY_LOADING);
			return;
		}
	}
	unload_copies(core, event, model, had_job);
	if (list_is_empty(&model->segments)) {
		model_settle(core, model); /* its file was open for what does not come back */
	}
}

void unload_on_unload(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct model *model;
	uint32_t cursor = 0;

	if (client == NULL) {
		return;
	}
	core->n_unloads++;
	for (uint32_t i = 0; event->unload.models != NULL && i < event->unload.n_models; i++) {
		model = idtab_find(&core->models, event->unload.models[i]);
		if (model != NULL && model->unload != core->n_unloads &&
		    is_selected(core, event, client, model)) {
			model->unload = core->n_unloads; /* it may be named twice */
			unload_one(core, event, client, model);
			model = idtab_find(&core->models, event->unload.models[i]);
			if (model != NULL) {                 /* not forgotten over it */
				backing_settle(core, model); /* a pin was withdrawn, perhaps */
			}
		}
	}
	while (event->unload.models == NULL &&
	       (model = idtab_next(&core->models, &cursor)) != NULL) {
		if (is_selected(core, event, client, model)) {
			unload_one(core, event, client, model);
		}
	}
	core_reply(core, client, event->request, 0, NULL);
}

void unload_on_verify(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct model *model = idtab_find(&core->models, event->verify.model);
	int code = 0;

	if (client == NULL) {
		return;
	}
	if (core->is_shutting_down) {
		code = WIRE_SHUTTING_DOWN;
	} else if (model == NULL || !core_client_may(core, event->client, event->verify.model)) {
		code = WIRE_NOT_FOUND;
		model = NULL;
	} else if (!model_is_resident(model) && model_state(model) != CORE_MODEL_PARTIAL) {
		code = WIRE_NOT_RESIDENT;
	} else if (model->backing != CORE_BACKING_IMAGE) {
		code = WIRE_UNSUPPORTED; /* there is no copy that could differ from the file */
	} else if (waiter_add(core,
			      &(struct waiter){.client = client,
					       .model = model,
					       .request = event->request},
			      NULL) == NULL) {
		core_reply_too_many(core, client, event->request, CORE_LIMIT_WAITERS, model);
		return;
	}
	if (code != 0) {
		core_reply(core, client, event->request, code, model);
		return;
	}
	segment_verify_all(core, model);
}
