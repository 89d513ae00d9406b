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

static bool is_same_key(const struct core_file_key *a, const struct core_file_key *b)
{
	return model_is_same_content(a, b) && a->ctime_ns == b->ctime_ns;
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
	    !is_same_key(key, &model->key)) {
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

static void answer_resident(struct core *core, const struct core_event *event,
			    struct client *client, struct model *model)
{
	const struct waiter now = {.client = client,
				   .request = event->request,
				   .attach = event->load.attach,
				   .map = event->load.map};

	core_close_file(core, event->load.file);
	model->is_doomed = false;
	model->last_used_ns = core->now_ns;
	model_touch(core, model);
	if (lease_grant(core, &now, model, CORE_SOURCE_RAM, NULL)) {
		core->counters.hits++;
		core->counters.bytes_saved += model->key.size;
	}
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
				    .is_first = is_first};
	struct core_action *action;

	if (event->load.no_wait) {
		job->no_wait = true;
		core_reply(core, client, event->request, 0, job->model);
		action = &core->actions[core->n_actions - 1];
		action->job = idtab_id(&core->job_table, job);
		action->reply.source = CORE_SOURCE_BEGUN;
		return true;
	}
	if (waiter_add(core, &like, job) == NULL) {
		core_reply_too_many(core, client, event->request, CORE_LIMIT_WAITERS, job->model);
		return false;
	}
	return true;
}

static void begin(struct core *core, const struct core_event *event, struct client *client,
		  struct model *model)
{
	bool is_recheck = model_is_resident(model) &&
			  model_is_same_content(event->load.key, &model->key);
	struct job *job = job_begin(core, model, is_recheck ? JOB_RECHECK : JOB_LOAD,
				    event->load.key, event->load.file, client->uid);

	if (job == NULL) {
		refuse(core, event, client, job_limit(core, client->uid), model);
		model_settle(core, model);
		return;
	}
	model->format = event->load.format;
	if (!wait_for(core, event, client, job, true)) {
		job_drop_if_unwanted(core, job);
	}
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
	wish_apply(core, wish, event->load.policy);
	if (model->job != NULL) {
		job_join(model->job, event->load.key);
		core_close_file(core, event->load.file);
		(void)wait_for(core, event, client, model->job, false);
	} else if (model_is_resident(model) && is_same_key(event->load.key, &model->key)) {
		answer_resident(core, event, client, model);
	} else {
		begin(core, event, client, model);
	}
}
