/* SPDX-License-Identifier: Apache-2.0 */
/* A load arrives: known or not, resident or not, the same content or not. */
#include "base/require.h"

#include "daemon/core/state.h"

static void refuse(struct core *core, const struct core_event *event, const struct client *client,
		   enum core_limit limit, const struct model *model)
{
	core_close_file(core, event->load.file);
	core_reply_too_many(core, client, event->request, limit, model);
}

/* The model behind the file. One that has no open source may be another file under a reused
 * inode: then nobody's rights to the old one count for it. */
static struct model *find_model(struct core *core, const struct core_event *event,
				const struct client *client, enum core_limit *ret_limit)
{
	const struct core_file_key *key = event->load.key;
	struct model *model = model_find(core, key);

	if (model != NULL && model->file == 0 && model->job == NULL &&
	    list_is_empty(&model->segments) && list_is_empty(&model->leases) &&
	    !model_is_unchanged(model, key)) {
		model_forget(core, model);
		model = NULL;
	}
	if (model != NULL) {
		return model;
	}
	*ret_limit = model_make_place(core, client->uid);
	return *ret_limit != CORE_LIMIT_NONE ? NULL
					     : model_add(core, key, event->load.fresh_id,
							 event->load.format, client->uid);
}

/* As asked for, and to be had by this client? */
static bool serves(const struct model *model, const struct core_event *event,
		   const struct client *client)
{
	return model_is_unchanged(model, event->load.key) &&
	       place_suits(model, client, event->load.placement, false) &&
	       (!event->load.insists_backing || backing_suits(model, event->load.backing));
}

/* It lies as asked for, and is being moved from there: this was asked for later. */
static bool is_leaving(const struct model *model, uint64_t wanted)
{
	const struct job *job = model->job;

	return job != NULL && !job->is_demotion && wanted != CORE_PLACEMENT_ANY &&
	       wanted == model->placement &&
	       (job->placement != wanted ||
		(job->next_placement != CORE_PLACEMENT_ANY && job->next_placement != wanted));
}

/* False: no lease was left. */
static bool answer_resident(struct core *core, const struct core_event *event,
			    struct client *client, struct model *model)
{
	const struct waiter now = {.client = client,
				   .request = event->request,
				   .attach = event->load.attach,
				   .map = event->load.map};

	core_close_file(core, event->load.file);
	model->is_doomed = false;
	if (!lease_grant(core, &now, model, CORE_SOURCE_RAM, NULL)) {
		return false;
	}
	lease_count_hit(core, model);
	if (event->load.insists_backing) {
		model->wanted = (uint8_t)event->load.backing;
	}
	if (event->load.insists_backing || event->load.policy->said != 0) {
		backing_settle(core, model);
	}
	return true;
}

void load_answer_begun(struct core *core, const struct client *client, uint32_t request,
		       struct job *job, uint64_t placement)
{
	struct core_action *action;

	job->no_wait = true;
	job->is_demotion = false;
	place_ask(job, client);
	if (place_decides(job->model, client, placement)) { /* the last who said one counts */
		job->next_placement = placement == job->placement ? CORE_PLACEMENT_ANY : placement;
		job->next_uid = client->uid;
		job->is_next_admin = client->is_admin;
	}
	core_reply(core, client, request, 0, job->model);
	action = &core->actions[core->n_actions - 1];
	action->job = idtab_id(&core->job_table, job);
	action->reply.source = CORE_SOURCE_BEGUN;
	action->reply.placement = place_decides(job->model, client, placement) ? placement
									       : CORE_PLACEMENT_ANY;
}

/* Wait for the job, or with no_wait be answered at once. False: the table is full. */
static bool wait_for(struct core *core, const struct core_event *event, struct client *client,
		     struct job *job, bool is_first)
{
	const struct waiter like = {.client = client,
				    .model = job->model,
				    .request = event->request,
				    .attach = event->load.attach,
				    .map = event->load.map,
				    .is_first = is_first,
				    .placement = event->load.placement};

	if (event->load.no_wait) {
		load_answer_begun(core, client, event->request, job,
				  is_first ? job->placement : event->load.placement);
		return true;
	}
	if (waiter_add(core, &like, job) == NULL) {
		core_reply_too_many(core, client, event->request, CORE_LIMIT_WAITERS, job->model);
		return false;
	}
	place_supersede(job, client, event->load.placement);
	return true;
}

/* Blocks that lie where this client may not have them stay there; it gets images besides. */
static void choose_placement(const struct core *core, const struct core_event *event,
			     const struct client *client, struct job *job)
{
	const struct model *model = job->model;
	uint64_t wanted = event->load.placement;
	bool stays = model->generation != 0 && place_stays(model, client, wanted) &&
		     model_is_same_content(event->load.key, &model->key) &&
		     !account_is_lost(core, model->devices);

	if (stays) {
		job->placement = model->placement;
		job->placed_uid = model->placed_uid;
		job->with_host = place_needs_host(model, client->uid);
		return;
	}
	job->placed_uid = place_uid(model, client);
	if (wanted != CORE_PLACEMENT_ANY) {
		job->placement = wanted;
	}
}

static bool begin(struct core *core, const struct core_event *event, struct client *client,
		  struct model *model)
{
	/* The file's own cache has no checksums: it is as quick to begin anew. */
	bool is_same = model_is_resident(model) && model_is_unchanged(model, event->load.key);
	bool is_recheck = model_is_resident(model) && model->backing == CORE_BACKING_IMAGE &&
			  model->placement == CORE_PLACEMENT_HOST && !is_same &&
			  model_is_same_content(event->load.key, &model->key);
	struct job *job = job_begin(core, model, is_recheck ? JOB_RECHECK : JOB_LOAD,
				    event->load.key, event->load.file, client->uid);

	if (job == NULL) {
		refuse(core, event, client, job_limit(core, client->uid), model);
		model_settle(core, model);
		return false;
	}
	model->format = event->load.format;
	job->wanted = (uint8_t)event->load.backing;
	job->insists = event->load.insists_backing;
	job->is_move = is_same;
	job->may_share = model->generation != 0 && model_is_unchanged(model, event->load.key);
	choose_placement(core, event, client, job);
	if (!wait_for(core, event, client, job, true)) {
		job_drop_if_unwanted(core, job);
		return false;
	}
	return true;
}

/* Or join one that is on its way. False: it is refused. */
static bool join_or_begin(struct core *core, const struct core_event *event, struct client *client,
			  struct model *model)
{
	if (model->job == NULL) {
		return begin(core, event, client, model);
	}
	job_join(model->job, event->load.key);
	if (event->load.insists_backing) {
		model->job->joined_wanted = (uint8_t)event->load.backing;
	}
	core_close_file(core, event->load.file);
	return wait_for(core, event, client, model->job, false);
}

/* With what it says of the model, which is said no more where it fails. */
static void load_model(struct core *core, const struct core_event *event, struct client *client,
		       struct model *model, struct wish *wish)
{
	const uint64_t wish_id = idtab_id(&core->wishes, wish);
	const uint64_t joined = model->job == NULL ? 0 : idtab_id(&core->job_table, model->job);
	const bool had_said = wish_says(wish);
	const bool is_of_loads = !had_said || (joined != 0 && wish->job == joined);
	bool is_there;
	bool is_done;

	wish_apply(core, wish, event->load.policy);
	is_there = serves(model, event, client) && (model->job == NULL || model->job->is_move) &&
		   !is_leaving(model, event->load.placement);
	is_done = is_there ? answer_resident(core, event, client, model)
			   : join_or_begin(core, event, client, model);
	wish = idtab_find(&core->wishes, wish_id); /* its model was forgotten over it, perhaps */
	if (wish == NULL || event->load.policy->said == 0) {
		return;
	}
	if (is_done) {
		wish->job = is_of_loads && !is_there ? idtab_id(&core->job_table, model->job) : 0;
	} else if (!had_said) {
		wish_withdraw(core, wish);
		backing_settle(core, wish->model);
	}
}

/* Would it have to be read? Not what is there, or on its way. */
static bool needs_bytes(const struct core *core, const struct core_file_key *key)
{
	const struct model *model = model_find(core, key);

	return model == NULL || (model->job == NULL && !(model_is_resident(model) &&
							 model_is_same_content(key, &model->key)));
}

void load_on_load(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	/* Who does not wait could not be given what he asks for. */
	bool is_contrary = event->load.no_wait && event->load.attach;
	enum core_limit limit = CORE_LIMIT_NONE;
	struct model *model;
	struct wish *wish;

	if (client == NULL || core->is_shutting_down || is_contrary) {
		core_close_file(core, event->load.file);
		if (client != NULL) {
			core_reply(core, client, event->request,
				   is_contrary ? WIRE_BAD_ARGUMENT : WIRE_SHUTTING_DOWN, NULL);
		}
		return;
	}
	if (account_is_drained(core) && needs_bytes(core, event->load.key)) {
		core_close_file(core, event->load.file);
		core_reply(core, client, event->request, WIRE_BUSY, NULL);
		return;
	}
	model = find_model(core, event, client, &limit);
	if (model == NULL) {
		refuse(core, event, client, limit, NULL);
		return;
	}
	wish = wish_get(core, model, client->uid);
	if (wish == NULL) {
		refuse(core, event, client, CORE_LIMIT_WISHES, model);
		model_settle(core, model);
		return;
	}
	if (!place_may(model, client, event->load.placement)) {
		core_close_file(core, event->load.file);
		core_reply(core, client, event->request, WIRE_NOT_ALLOWED, model);
	} else {
		load_model(core, event, client, model, wish);
	}
}
